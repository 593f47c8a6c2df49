//! What every command answers, as a table; and the real Redis asked the same.
//!
//! A row is a story: commands in turn, each with its reply, from an empty state. Both machines
//! must give the replies of the table, so an expectation that was made up fails against Redis, and
//! one that we don't meet fails here.

mod redis;
mod words;

use lockstep_guest_kv::{Command, Kv};
use lockstep_guest_sdk::{Context, Decode, Portable, Replies, StateMachine};

use redis::Redis;
use words::{encode, words};

/// A time for the table. Rows give absolute times far from it, so that Redis's clock, whatever it
/// shows, is on the same side of them.
const NOW_MS: u64 = 1_700_000_000_000;

/// Commands, as text with `\0`, `\r`, `\n` and `\xHH`, and their replies.
const STORIES: &[&[(&str, &str)]] = &[
    // PING
    &[("PING", "+PONG\r\n"), ("ping hello", "$5\r\nhello\r\n"), ("PiNg ''", "$0\r\n\r\n")],
    &[("PING a b", "-ERR wrong number of arguments for 'ping' command\r\n")],
    // GET
    &[("GET k", "$-1\r\n"), ("SET k v", "+OK\r\n"), ("gEt k", "$1\r\nv\r\n")],
    &[("GET", "-ERR wrong number of arguments for 'get' command\r\n")],
    &[("GET a b", "-ERR wrong number of arguments for 'get' command\r\n")],
    // Keys and values are any bytes, and none.
    &[
        (r"SET \0\r\n\xff a\0b", "+OK\r\n"),
        (r"GET \0\r\n\xff", "$3\r\na\0b\r\n"),
        (r"GET \0", "$-1\r\n"),
        ("SET '' ''", "+OK\r\n"),
        ("GET ''", "$0\r\n\r\n"),
        ("EXISTS ''", ":1\r\n"),
    ],
    &[
        ("SET a-key-of-16-byte 1", "+OK\r\n"),
        ("SET a-key-of-16-bytes 2", "+OK\r\n"),
        ("SET a-key-of-16-byter 3", "+OK\r\n"),
        ("GET a-key-of-16-byte", "$1\r\n1\r\n"),
        ("GET a-key-of-16-bytes", "$1\r\n2\r\n"),
        ("DEL a-key-of-16-byte a-key-of-16-bytes a-key-of-16-bytet", ":2\r\n"),
        ("GET a-key-of-16-byter", "$1\r\n3\r\n"),
    ],
    // SET overwrites.
    &[
        ("SET k one", "+OK\r\n"),
        ("SET k two", "+OK\r\n"),
        ("GET k", "$3\r\ntwo\r\n"),
        ("SET k three", "+OK\r\n"),
        ("GET k", "$5\r\nthree\r\n"),
        ("SET k 4", "+OK\r\n"),
        ("GET k", "$1\r\n4\r\n"),
    ],
    &[
        ("SET", "-ERR wrong number of arguments for 'set' command\r\n"),
        ("SET k", "-ERR wrong number of arguments for 'set' command\r\n"),
        ("SET k v what", "-ERR syntax error\r\n"),
        ("SET k v ''", "-ERR syntax error\r\n"),
        ("GET k", "$-1\r\n"),
    ],
    // NX and XX.
    &[
        ("SET k v XX", "$-1\r\n"),
        ("GET k", "$-1\r\n"),
        ("SET k v nx", "+OK\r\n"),
        ("SET k w NX", "$-1\r\n"),
        ("GET k", "$1\r\nv\r\n"),
        ("SET k w xX", "+OK\r\n"),
        ("GET k", "$1\r\nw\r\n"),
        ("SET k v NX XX", "-ERR syntax error\r\n"),
        ("SET k v XX NX", "-ERR syntax error\r\n"),
        ("SET k x XX XX", "+OK\r\n"),
        ("SET j x NX NX", "+OK\r\n"),
        // Redis compares options as C strings.
        (r"SET i x NX\0junk", "+OK\r\n"),
    ],
    // GET of SET.
    &[
        ("SET k v GET", "$-1\r\n"),
        ("SET k w GET", "$1\r\nv\r\n"),
        ("SET k x GET NX", "$1\r\nw\r\n"),
        ("GET k", "$1\r\nw\r\n"),
        ("SET k x XX GET", "$1\r\nw\r\n"),
        ("GET k", "$1\r\nx\r\n"),
        ("SET j x NX GET", "$-1\r\n"),
        ("GET j", "$1\r\nx\r\n"),
        ("SET i x XX GET", "$-1\r\n"),
        ("GET i", "$-1\r\n"),
    ],
    // Times: which are read, and which are refused.
    &[
        ("SET k v EX", "-ERR syntax error\r\n"),
        ("SET k v PXAT", "-ERR syntax error\r\n"),
        ("SET k v EX 1.5", "-ERR value is not an integer or out of range\r\n"),
        ("SET k v EX ''", "-ERR value is not an integer or out of range\r\n"),
        ("SET k v EX +1", "-ERR value is not an integer or out of range\r\n"),
        ("SET k v EX ' 1'", "-ERR value is not an integer or out of range\r\n"),
        ("SET k v EX 01", "-ERR value is not an integer or out of range\r\n"),
        ("SET k v PX 9223372036854775808", "-ERR value is not an integer or out of range\r\n"),
        ("SET k v EX 0", "-ERR invalid expire time in 'set' command\r\n"),
        ("SET k v PX -1", "-ERR invalid expire time in 'set' command\r\n"),
        ("SET k v EXAT 0", "-ERR invalid expire time in 'set' command\r\n"),
        ("SET k v PXAT -5", "-ERR invalid expire time in 'set' command\r\n"),
        ("SET k v EX 9223372036854775", "-ERR invalid expire time in 'set' command\r\n"),
        ("SET k v EX 9223372036854776", "-ERR invalid expire time in 'set' command\r\n"),
        ("SET k v PX 9223372036854775807", "-ERR invalid expire time in 'set' command\r\n"),
        ("GET k", "$-1\r\n"),
        ("SET k v PXAT 9223372036854775807", "+OK\r\n"),
        ("SET k v EXAT 9223372036854775", "+OK\r\n"),
        ("GET k", "$1\r\nv\r\n"),
        ("SET k v EXAT 9223372036854776", "-ERR invalid expire time in 'set' command\r\n"),
    ],
    // Times that contradict each other are refused, whatever their numbers; the same again counts.
    &[
        ("SET k v EX 10 PX 10", "-ERR syntax error\r\n"),
        ("SET k v EX 10 EXAT 10", "-ERR syntax error\r\n"),
        ("SET k v PX nan KEEPTTL", "-ERR syntax error\r\n"),
        ("SET k v KEEPTTL PX 10", "-ERR syntax error\r\n"),
        ("SET k v EX nan what", "-ERR syntax error\r\n"),
        ("SET k v EX nan EX 100", "+OK\r\n"),
        ("SET k v EX 100 EX nan", "-ERR value is not an integer or out of range\r\n"),
        ("SET k v KEEPTTL KEEPTTL", "+OK\r\n"),
        ("SET k w ex 100 nx get", "$1\r\nv\r\n"),
        ("SET k w EX NX", "-ERR value is not an integer or out of range\r\n"),
    ],
    // A key whose time has passed is absent, to every command.
    &[
        ("SET k v PXAT 1", "+OK\r\n"),
        ("GET k", "$-1\r\n"),
        ("SET k v EXAT 1", "+OK\r\n"),
        ("EXISTS k k", ":0\r\n"),
        ("SET k v PXAT 1", "+OK\r\n"),
        ("DEL k", ":0\r\n"),
        ("SET k v PXAT 1", "+OK\r\n"),
        ("SET k w XX", "$-1\r\n"),
        ("SET k v PXAT 1", "+OK\r\n"),
        ("SET k w NX GET", "$-1\r\n"),
        ("GET k", "$1\r\nw\r\n"),
    ],
    // KEEPTTL keeps the time; a plain SET forgets it; a time that has passed is not kept.
    &[
        ("SET k v PXAT 4000000000000", "+OK\r\n"),
        ("SET k w KEEPTTL", "+OK\r\n"),
        ("GET k", "$1\r\nw\r\n"),
        ("SET j v PXAT 1", "+OK\r\n"),
        ("SET j w KEEPTTL", "+OK\r\n"),
        ("GET j", "$1\r\nw\r\n"),
        ("SET i v PXAT 1", "+OK\r\n"),
        ("SET i v", "+OK\r\n"),
        ("GET i", "$1\r\nv\r\n"),
        ("SET k v PXAT 1 XX", "+OK\r\n"),
        ("SET k w KEEPTTL XX", "$-1\r\n"),
    ],
    // DEL and EXISTS count, EXISTS a key as often as it is named.
    &[
        ("DEL k", ":0\r\n"),
        ("SET a 1", "+OK\r\n"),
        ("SET b 2", "+OK\r\n"),
        ("EXISTS a b c a a", ":4\r\n"),
        ("DEL a b c a", ":2\r\n"),
        ("exists a b", ":0\r\n"),
        ("DEL", "-ERR wrong number of arguments for 'del' command\r\n"),
        ("EXISTS", "-ERR wrong number of arguments for 'exists' command\r\n"),
    ],
    // Unknown commands are named, cut, and can't break the reply.
    &[
        ("FOO", "-ERR unknown command 'FOO', with args beginning with: \r\n"),
        ("foo a 'b c'", "-ERR unknown command 'foo', with args beginning with: 'a' 'b c' \r\n"),
        ("''", "-ERR unknown command '', with args beginning with: \r\n"),
        (
            r"GETT\r\n x\r\ny",
            "-ERR unknown command 'GETT  ', with args beginning with: 'x  y' \r\n",
        ),
        (r"G\0T a\0b", "-ERR unknown command 'G', with args beginning with: 'a' \r\n"),
        (r"GET\0 k", "-ERR unknown command 'GET', with args beginning with: 'k' \r\n"),
    ],
];

fn at(time_ms: u64) -> Context {
    Context { index: 1, time_ms, seed: 1 }
}

/// Applies one request; the reply, and whether it was rejected.
fn apply(kv: &mut Kv, time_ms: u64, request: &[u8]) -> (Vec<u8>, bool) {
    let mut replies = Replies::default();
    replies.push(|reply| kv.apply(&at(time_ms), Command::decode(request)?, reply));
    (replies.data, !replies.rejected.is_empty())
}

fn query(kv: &Kv, time_ms: u64, request: &[u8]) -> (Vec<u8>, bool) {
    let mut replies = Replies::default();
    replies.push(|reply| kv.query(&at(time_ms), Command::decode(request)?, reply));
    (replies.data, !replies.rejected.is_empty())
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// Our replies are those of the table, an error reply is a rejection, and as a query a command
/// answers the same or is refused.
#[test]
fn the_table_holds_here() {
    for story in STORIES {
        let mut kv = Kv::default();
        for (line, expected) in *story {
            let request = encode(&words(line));
            let asked = query(&kv, NOW_MS, &request);
            let (reply, rejected) = apply(&mut kv, NOW_MS, &request);
            assert_eq!(text(&reply), text(expected.as_bytes()), "{line} in {story:?}");
            assert_eq!(rejected, reply.starts_with(b"-"), "{line}");
            let writes = ["set ", "del "].iter().any(|w| line.to_lowercase().starts_with(w));
            if writes && !rejected {
                assert!(asked.0.starts_with(b"-READONLY "), "{line}");
            } else if !writes {
                assert_eq!(asked, (reply, rejected), "{line}");
            }
        }
    }
}

/// The real Redis gives the replies of the table.
#[test]
fn the_table_holds_in_redis() {
    let Some(mut redis) = Redis::start() else { return };
    for story in STORIES {
        assert_eq!(redis.ask(&encode(&words("FLUSHALL"))), b"+OK\r\n");
        for (line, expected) in *story {
            let reply = redis.ask(&encode(&words(line)));
            assert_eq!(text(&reply), text(expected.as_bytes()), "{line} in {story:?}");
        }
    }
}

/// Long sequences of arbitrary commands, nonsense included, get Redis's replies.
#[test]
fn arbitrary_commands_answer_as_redis() {
    let Some(mut redis) = Redis::start() else { return };
    let seed = 7;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut kv = Kv::default();
    for turn in 0..20_000 {
        let request = encode(&words::arbitrary(&mut random));
        let expected = redis.ask(&request);
        let (reply, _) = apply(&mut kv, NOW_MS, &request);
        assert_eq!(text(&reply), text(&expected), "{} (seed {seed}, {turn})", text(&request));
    }
}

/// A key is there up to its very millisecond, and its bytes go without anybody asking for it.
#[test]
fn keys_end_by_the_time_of_the_entry() {
    let mut kv = Kv::default();
    let ask = |kv: &Kv, time_ms| text(&query(kv, time_ms, &encode(&words("GET k"))).0);
    apply(&mut kv, NOW_MS, &encode(&words("SET k v EX 2")));
    assert_eq!(ask(&kv, NOW_MS), r"$1\r\nv\r\n");
    assert_eq!(ask(&kv, NOW_MS + 2000), r"$1\r\nv\r\n");
    assert_eq!(ask(&kv, NOW_MS + 2001), r"$-1\r\n");
    apply(&mut kv, NOW_MS, &encode(&words("SET k w PX 500 XX")));
    apply(&mut kv, NOW_MS, &encode(&words("SET k x KEEPTTL")));
    assert_eq!(ask(&kv, NOW_MS + 500), r"$1\r\nx\r\n");
    assert_eq!(ask(&kv, NOW_MS + 501), r"$-1\r\n");
    apply(&mut kv, NOW_MS + 501, &encode(&words("PING")));
    assert_eq!(kv, Kv::default());
}

/// An export that is imported is the same state, times included, and anything else is refused.
#[test]
fn a_state_comes_back_from_its_records() {
    let mut kv = Kv::default();
    for number in 0..5_000 {
        let value = "x".repeat(number % 200);
        let ends = if number % 3 == 0 { " PX 500" } else { "" };
        apply(&mut kv, NOW_MS, &encode(&words(&format!("SET key-{number} '{value}'{ends}"))));
    }
    let mut position = <Kv as Portable>::Position::default();
    let mut records = vec![Vec::new()];
    while kv.export_record(&mut position, records.last_mut().unwrap()) {
        records.push(Vec::new());
    }
    assert_eq!(records.pop(), Some(Vec::new()));
    assert!(records.len() > 5, "{} records", records.len());
    assert!(records.iter().all(|record| record.len() < 64 << 10));

    let mut copy = Kv::default();
    records.iter().for_each(|record| copy.import_record(1, record).unwrap());
    assert_eq!(copy, kv);
    assert_eq!(copy.import_record(1, &records[0]).unwrap_err(), "a key is there twice");
    assert!(Kv::default().import_record(1, &records[0][..100]).is_err());
}
