//! What the headers of a request say of who asks: by which connection, until when, and whether the
//! request may be passed on.

use std::time::Duration;

use lockstep_client::{FORWARD_HEADER, FORWARDED_HEADER};
use tonic::Request;
use tonic::metadata::MetadataMap;

use crate::api::door::{Caller, Forwarding};
use crate::budget::Account;

/// Who sends a command or a query. `default` is how long one waits who does not say so.
pub(super) fn client<T>(request: &Request<T>, default: Duration) -> Caller {
    let metadata = request.metadata();
    let timeout = asked_timeout(metadata.as_ref()).unwrap_or(default);
    Caller::of_command(account(request), timeout, forwarding(metadata))
}

/// Who sends an admin request.
pub(super) fn operator<T>(request: &Request<T>) -> Caller {
    let metadata = request.metadata();
    let timeout = asked_timeout(metadata.as_ref());
    Caller::of_admin(account(request), timeout, forwarding(metadata))
}

/// The account of the connection by which a request came.
fn account<T>(request: &Request<T>) -> Account {
    let account = request.extensions().get::<Account>();
    account.expect("every connection has an account").clone()
}

fn forwarding(metadata: &MetadataMap) -> Forwarding {
    match (metadata.contains_key(FORWARDED_HEADER), metadata.contains_key(FORWARD_HEADER)) {
        (true, _) => Forwarding::Done,
        (false, true) => Forwarding::Wanted,
        (false, false) => Forwarding::AsSet,
    }
}

/// How long the client waits, if it says so.
pub(super) fn asked_timeout(headers: &http::HeaderMap) -> Option<Duration> {
    parse_timeout(headers.get("grpc-timeout")?.to_str().ok()?)
}

/// Reads `grpc-timeout`: at most eight digits and a unit (gRPC over HTTP/2, "Requests"). `None`
/// for anything else, as if it were absent.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (unit_at, unit) = text.char_indices().last()?;
    let digits = &text[..unit_at];
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(value * 3600)),
        'M' => Some(Duration::from_secs(value * 60)),
        'S' => Some(Duration::from_secs(value)),
        'm' => Some(Duration::from_millis(value)),
        'u' => Some(Duration::from_micros(value)),
        'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    /// grpc-timeout is read as the gRPC specification has it, and ignored when malformed.
    #[test]
    fn timeouts_are_parsed() {
        let check = |text, expected| assert_eq!(parse_timeout(text), expected, "{text}");
        check("1S", Some(Duration::from_secs(1)));
        check("99999999H", Some(Duration::from_secs(99_999_999 * 3600)));
        check("2M", Some(Duration::from_secs(120)));
        check("50m", Some(Duration::from_millis(50)));
        check("7u", Some(Duration::from_micros(7)));
        check("0n", Some(Duration::ZERO));
        for bad in ["", "S", "5", "-1S", "1s", "123456789S", "1.5S", "1\u{e9}"] {
            check(bad, None);
        }
    }

    /// A caller waits as long as the header says, else for the default.
    #[test]
    fn callers_wait_as_they_say() {
        let mut request = Request::new(());
        request.extensions_mut().insert(Budget::new(1 << 20).open());
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        assert!(client(&request, second).remaining() < second);
        assert!(operator(&request).remaining() > second);
        request.metadata_mut().insert("grpc-timeout", "40S".parse().unwrap());
        let left = [client(&request, second).remaining(), operator(&request).remaining()];
        assert!(left.iter().all(|left| (second..minute).contains(left)), "{left:?}");
    }

    /// A request that was passed on goes no further, whatever else it says.
    #[test]
    fn marks_are_read() {
        let mut metadata = MetadataMap::new();
        assert_eq!(forwarding(&metadata), Forwarding::AsSet);
        metadata.insert(FORWARD_HEADER, "1".parse().unwrap());
        assert_eq!(forwarding(&metadata), Forwarding::Wanted);
        metadata.insert(FORWARDED_HEADER, "1".parse().unwrap());
        assert_eq!(forwarding(&metadata), Forwarding::Done);
    }
}
