//! The contract of `wit/guest.wit` as the host calls it, generated, and the one import.

// Generated code: its lints are not ours.
#[allow(unsafe_code, unreachable_pub, clippy::all, unused_qualifications, reason = "generated")]
mod generated {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "guest",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

use wasmtime::component::{Linker, WasmStr};
use wasmtime::{StoreContextMut, Trap};

pub(super) use generated::exports::lockstep::guest::machine::{
    Batch, Context, Guest as Calls, Manifest, Replies,
};
pub(super) use generated::lockstep::guest::log::Level;
pub(super) use generated::{Guest as Instance, GuestPre as Prepared};

use super::limits::{Room, cut};
use crate::config::limits;

/// Name of the import that a guest may have.
pub(super) const LOG: &str = "lockstep:guest/log@0.1.0";
/// Name of the export that a guest must have.
pub(super) const MACHINE: &str = "lockstep:guest/machine@0.1.0";

/// Offers `log`.
///
/// Only the first lines of a call are looked at, and only the beginning of each is kept. Each call
/// takes fuel, and each byte of a line that is looked at: a guest pays the same whether anybody
/// hears it, so that replicas agree. A message that is not text is no reason to fail a call; it is
/// said to be none.
pub(super) fn add_log(linker: &mut Linker<Room>) -> wasmtime::Result<()> {
    linker.instance(LOG)?.func_wrap(
        "log",
        |mut store: StoreContextMut<'_, Room>, (level, message): (Level, WasmStr)| {
            charge(&mut store, limits::LOG_FUEL)?;
            if !store.data_mut().takes_line(level) {
                return Ok(());
            }
            let (line, bytes) = match message.to_str(&store) {
                Ok(text) => (cut(&text).to_owned(), text.len()),
                Err(_) => {
                    ("(a line that is not text)".to_owned(), limits::GUEST_LOG_LINE_BYTES_MAX)
                }
            };
            let bytes = u64::try_from(bytes).expect("a length in memory fits");
            charge(&mut store, bytes.saturating_mul(limits::LOG_FUEL_PER_BYTE))?;
            store.data_mut().write_line(level, &line);
            Ok(())
        },
    )
}

/// Takes fuel for what the host does.
fn charge(store: &mut StoreContextMut<'_, Room>, fuel: u64) -> wasmtime::Result<()> {
    let left = store.get_fuel()?.checked_sub(fuel);
    store.set_fuel(left.unwrap_or(0))?;
    left.map(drop).ok_or_else(|| Trap::OutOfFuel.into())
}
