//! Free ports on loopback. A node's address stands in the membership, so a port must stay its
//! own over restarts: it is taken below the range from which the system serves `bind` to port 0
//! and outgoing connections, and given out once in the life of the test process.

use std::net::TcpListener;
use std::ops::Range;
use std::sync::Mutex;

/// Below the ephemeral ports of Linux, above the usual services.
const PORTS: Range<u16> = 20_000..32_000;

/// The next port to try; runs that overlap begin at different places.
static NEXT: Mutex<Option<u16>> = Mutex::new(None);

/// A port of loopback that nobody listens on, never given out before by this process.
///
/// # Panics
/// When every port was tried in vain.
pub fn free() -> u16 {
    free_block(1)
}

/// The first of so many such ports in a row.
///
/// # Panics
/// When every place was tried in vain.
pub fn free_block(count: u16) -> u16 {
    let mut next = NEXT.lock().expect("no holder panics");
    let mut first = next.unwrap_or_else(|| fastrand::u16(PORTS));
    for _ in PORTS {
        if first + count > PORTS.end {
            first = PORTS.start;
        }
        let taken = (first..first + count).find(|port| bind(*port).is_err());
        let Some(taken) = taken else {
            *next = Some(first + count);
            return first;
        };
        first = taken + 1;
    }
    panic!("no free port on loopback in {PORTS:?}");
}

fn bind(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(("127.0.0.1", port))
}

/// The address of a free port.
pub fn address() -> String {
    format!("127.0.0.1:{}", free())
}
