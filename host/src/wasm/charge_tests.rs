//! What the host does for a guest takes the guest's fuel, the same wherever the call is made.

use super::tests::{CONTEXT, ENGINE, HOSTILE, Requests, apply, hostile, on_guest_thread};
use super::*;
use crate::config::limits;

/// Fuel of the default limit for commands of [`hostile`].
const FUEL: u64 = 200_000_000;

/// Fuel that a command took of a guest.
fn fuel(guest: &mut Guest, command: &str) -> u64 {
    apply(guest, &[command]).unwrap();
    FUEL - guest.fuel_left()
}

/// A line takes the same fuel on the live guest, on a fork, on a copy and on a guest that repeats,
/// whether anybody hears it; each byte of a line that is looked at takes more, and the others none.
#[test]
fn a_line_takes_the_same_fuel_everywhere() {
    on_guest_thread(|| {
        for command in ["say", "say more than that", "chatter", "log"] {
            let mut quiet = hostile();
            quiet.set_quiet(true);
            let mut heard = hostile();
            heard.set_log(GuestLog::new("m"));
            let copied = heard.image(None).unwrap();
            let limits = Limits { fuel_per_command: FUEL, ..Limits::default() };
            let mut copy = Guest::restore(&ENGINE, &HOSTILE, limits, copied).unwrap();
            let mut fork = heard.fork(&ENGINE, &HOSTILE).unwrap();
            let replies = fork.apply(&CONTEXT, Requests::of(&[command]).batch());
            replies.unwrap();
            let on_fork = FUEL - fork.fuel_left();
            drop(fork);
            let expected = fuel(&mut heard, command);
            assert!(expected > limits::LOG_FUEL, "{command}: {expected}");
            assert_eq!(fuel(&mut quiet, command), expected, "{command}");
            assert_eq!(fuel(&mut copy, command), expected, "{command}");
            assert_eq!(on_fork, expected, "{command}");
        }
        let mut guest = hostile();
        let (short, long) =
            ("say ".to_owned() + &"x".repeat(100), "say ".to_owned() + &"x".repeat(612));
        let more = fuel(&mut guest, &long) - fuel(&mut guest, &short);
        let bytes = 512 * limits::LOG_FUEL_PER_BYTE;
        assert!(more > bytes, "{more}, and the host alone takes {bytes}");
    });
}

/// A guest that logs without an end takes no longer for its fuel than what is told of others: 500
/// million in half a second of a processor, if it is as fast as ours. It took ten times as long.
#[test]
fn logging_takes_as_long_as_its_fuel() {
    on_guest_thread(|| {
        let mut guest = hostile();
        guest.set_log(GuestLog::new("m"));
        let before = ran_ns();
        let failure = apply(&mut guest, &["mutter"]).unwrap_err();
        let took = ran_ns() - before;
        assert_eq!(failure, Failure::OutOfFuel { limit: "fuel_per_command", fuel: FUEL });
        assert!(took < FUEL, "{took} ns for {FUEL} fuel");
    });
}

/// How long this thread has run on a processor.
fn ran_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// A line that is longer than what may go out at once is called a line, not a reply.
#[test]
fn a_line_over_the_limit_is_called_so() {
    on_guest_thread(|| {
        let mut guest = hostile();
        guest.set_limits(Limits { reply_bytes_max: 4, ..Limits::default() });
        let failure = apply(&mut guest, &["long line"]).unwrap_err().to_string();
        let said = "the guest broke its contract: a line that it logs is longer than the 329728 \
                    bytes that go out at once";
        assert_eq!(failure, said);
        let mut guest = hostile();
        guest.set_limits(Limits { reply_bytes_max: 4, ..Limits::default() });
        let failure = apply(&mut guest, &["flood"]).unwrap_err();
        assert_eq!(failure, Failure::TooLarge { length: 1025, limit: 1024 });
    });
}

/// A guest that runs out of memory says how much it had, asked for and may have.
#[test]
fn memory_that_was_refused_is_named() {
    on_guest_thread(|| {
        let failure = apply(&mut hostile(), &["hoard"]).unwrap_err().to_string();
        let begins = "the guest trapped: wasm trap: wasm `unreachable` instruction executed; it \
                      was refused memory: it has ";
        assert!(failure.starts_with(begins), "{failure}");
        assert!(failure.ends_with(", and the limit is 67108864 (memory_bytes_max)"), "{failure}");
        // Memory that it does without is no reason.
        let mut guest = hostile();
        apply(&mut guest, &["eat memory"]).unwrap();
        let failure = apply(&mut guest, &["unreachable"]).unwrap_err().to_string();
        assert!(failure.ends_with("instruction executed"), "{failure}");
    });
}

/// An export without an end is ended though it hands out little at a time, and for little fuel.
#[test]
fn an_export_of_single_bytes_ends() {
    on_guest_thread(|| {
        let mut guest = hostile();
        apply(&mut guest, &["drip at export"]).unwrap();
        let exported = guest.fork(&ENGINE, &HOSTILE).unwrap().export(&mut |_| Ok(()));
        let said = "the guest broke its contract: the 1001 chunks of its export so far have 1001 \
                    bytes, and beyond 1000 chunks 1024 each are the least";
        assert_eq!(exported.unwrap_err().to_string(), said);
    });
}
