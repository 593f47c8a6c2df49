//! The sandbox on real guests: what they answer, how they fail, and what is not admitted.

use std::path::PathBuf;
use std::sync::LazyLock;

use super::*;

/// What compiling a module may take here, as in a cluster that set nothing.
pub(crate) const WORK_MAX: u64 = crate::config::limits::COMPILE_WORK_MAX_DEFAULT;

pub(crate) static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new().unwrap());
static COUNTER: LazyLock<Module> = LazyLock::new(|| compiled("counter"));
pub(super) static HOSTILE: LazyLock<Module> = LazyLock::new(|| compiled("hostile"));
static KV: LazyLock<Module> = LazyLock::new(|| compiled("guest-kv"));

pub(super) const CONTEXT: Context = Context { index: 7, time_ms: 1_700_000_000_000, seed: 3 };

pub(crate) fn component(name: &str) -> Vec<u8> {
    let folder = std::env::var_os("LOCKSTEP_GUESTS_DIR").map(PathBuf::from);
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guests");
    let path = folder.unwrap_or_else(|| built.into()).join(format!("{name}.wasm"));
    std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}: run `cargo xtask guests`", path.display()))
}

fn compiled(name: &str) -> Module {
    ENGINE.compile(&component(name), WORK_MAX).unwrap()
}

/// Runs a test where guests run: on a thread with a stack for them.
pub(super) fn on_guest_thread(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(THREAD_STACK_BYTES);
    if let Err(panic) = thread.spawn(test).unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// Requests as a batch.
#[derive(Default)]
pub(super) struct Requests {
    data: Vec<u8>,
    ends: Vec<u32>,
}

impl Requests {
    pub(super) fn of(requests: &[impl AsRef<[u8]>]) -> Self {
        let mut laid_out = Self::default();
        requests.iter().for_each(|request| laid_out.push(request.as_ref()));
        laid_out
    }

    fn push(&mut self, request: &[u8]) {
        self.data.extend_from_slice(request);
        self.ends.push(u32::try_from(self.data.len()).unwrap());
    }

    pub(super) fn batch(&self) -> Batch<'_> {
        Batch { data: &self.data, ends: &self.ends }
    }
}

/// Replies as text, refused ones after a `!`.
fn text(replies: &Replies) -> Vec<String> {
    let mut start = 0;
    let one = |(position, &end): (usize, &u32)| {
        let end = usize::try_from(end).unwrap();
        let reply = replies.data[start..end].escape_ascii().to_string();
        start = end;
        let refused = replies.rejected.contains(&u32::try_from(position).unwrap());
        if refused { format!("!{reply}") } else { reply }
    };
    replies.ends.iter().enumerate().map(one).collect()
}

pub(super) fn apply(guest: &mut Guest, requests: &[&str]) -> Result<Vec<String>, Failure> {
    let replies = guest.apply(&CONTEXT, Requests::of(requests).batch());
    replies.map(|replies| text(&replies))
}

pub(super) fn query(guest: &Guest, module: &Module, requests: &[&str]) -> Vec<String> {
    let mut fork = guest.fork(&ENGINE, module).unwrap();
    text(&fork.query(&CONTEXT, Requests::of(requests).batch(), u64::MAX).unwrap())
}

pub(super) fn exported(guest: &Guest, module: &Module) -> (u32, Vec<Vec<u8>>) {
    let mut chunks = Vec::new();
    let schema = guest.fork(&ENGINE, module).unwrap().export(&mut |chunk| {
        chunks.push(chunk);
        Ok(())
    });
    (schema.unwrap(), chunks)
}

pub(super) fn imported(module: &Module, schema: u32, chunks: &[Vec<u8>]) -> Guest {
    let mut guest = Guest::instantiate(&ENGINE, module).unwrap();
    for (number, chunk) in chunks.iter().enumerate() {
        guest.import(schema, chunk, number + 1 == chunks.len()).unwrap();
    }
    guest
}

fn resp(words: &[&str]) -> String {
    let bulk = |word: &&str| format!("${}\r\n{word}\r\n", word.len());
    format!("*{}\r\n{}", words.len(), words.iter().map(bulk).collect::<String>())
}

/// A guest says what it is, answers each command of a batch by itself, and keeps its state.
#[test]
fn a_guest_answers_every_command() {
    on_guest_thread(|| {
        let manifest = COUNTER.manifest();
        assert_eq!((manifest.name.as_str(), manifest.schema_version), ("counter", 1));
        let mut guest = Guest::instantiate(&ENGINE, &COUNTER).unwrap();
        let replies = apply(&mut guest, &["1", "x", "", "41", "9223372036854775807"]);
        let no = "!not a whole number";
        assert_eq!(replies.unwrap(), ["1", no, no, "42", "!the total would overflow"]);
        assert_eq!(query(&guest, &COUNTER, &["", ""]), ["42", "42"]);
        assert_eq!(apply(&mut guest, &["-2"]).unwrap(), ["40"]);
    });
}

/// The reference guest answers by the time of the entry, and as a query only what changes nothing.
#[test]
fn the_reference_guest_answers() {
    on_guest_thread(|| {
        assert_eq!(KV.manifest().read_only, ["GET", "EXISTS", "PING"]);
        assert!(KV.manifest().uses_time);
        let mut guest = Guest::instantiate(&ENGINE, &KV).unwrap();
        let set = resp(&["SET", "k", "v", "PX", "5"]);
        let get = resp(&["GET", "k"]);
        let replies = apply(&mut guest, &[&set, &get, "junk"]).unwrap();
        let junk = r"!-ERR Protocol error: expected an array of bulk strings\r\n";
        assert_eq!(replies, [r"+OK\r\n", r"$1\r\nv\r\n", junk]);
        let refused = r"!-READONLY \'set\' writes: send it as a command, not a query\r\n";
        assert_eq!(query(&guest, &KV, &[&get, &set]), [r"$1\r\nv\r\n", refused]);
        let later = Context { time_ms: CONTEXT.time_ms + 6, ..CONTEXT };
        let mut fork = guest.fork(&ENGINE, &KV).unwrap();
        let replies = fork.query(&later, Requests::of(&[&get]).batch(), u64::MAX).unwrap();
        assert_eq!(text(&replies), [r"$-1\r\n"]);
    });
}

/// One million keys of 16 bytes with values of 100 stay far below 250 MiB of guest memory, after
/// an export of them and after an import too, and come back equal.
#[test]
fn a_million_keys_fit() {
    on_guest_thread(|| {
        let mut guest = Guest::instantiate(&ENGINE, &KV).unwrap();
        let value = "v".repeat(100);
        for block in 0..1000 {
            let mut requests = Requests::default();
            for number in block * 1000..(block + 1) * 1000 {
                // Scattered, as hashed keys are.
                let key = format!("{:016x}", 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number));
                requests.push(resp(&["SET", &key, &value]).as_bytes());
            }
            let replies = guest.apply(&CONTEXT, requests.batch()).unwrap();
            assert_eq!(replies.data, b"+OK\r\n".repeat(1000));
        }
        let (schema, chunks) = exported(&guest, &KV);
        assert!(guest.memory_bytes() < 200 << 20, "{} bytes", guest.memory_bytes());
        assert!(chunks.len() > 400, "{} chunks", chunks.len());
        drop(guest);

        let copy = imported(&KV, schema, &chunks);
        assert!(copy.memory_bytes() < 200 << 20, "{} bytes", copy.memory_bytes());
        assert!(exported(&copy, &KV).1 == chunks, "the copy exports something else");
    });
}

/// A state comes back from its export, and an export that was damaged or cut is refused in words.
#[test]
fn a_state_comes_back_from_its_export() {
    on_guest_thread(|| {
        let mut guest = Guest::instantiate(&ENGINE, &COUNTER).unwrap();
        apply(&mut guest, &["42"]).unwrap();
        let (schema, chunks) = exported(&guest, &COUNTER);
        assert_eq!(apply(&mut guest, &["1"]).unwrap(), ["43"], "it goes on after an export");
        let copy = imported(&COUNTER, schema, &chunks);
        assert_eq!(query(&copy, &COUNTER, &[""]), ["42"]);

        let whole = chunks.concat();
        let refused = |schema: u32, bytes: &[u8]| {
            let mut fresh = Guest::instantiate(&ENGINE, &COUNTER).unwrap();
            fresh.import(schema, bytes, true).unwrap_err().to_string()
        };
        let begin = "the guest refuses the import: ";
        let early = "the export ends early, after 1 records";
        assert_eq!(refused(schema, &whole[..whole.len() - 1]), format!("{begin}{early}"));
        let schema_9 = "schema 9 is not one that counter imports";
        assert_eq!(refused(9, &whole), format!("{begin}{schema_9}"));
    });
}

/// Whoever takes an export may stop it, and the guest goes on.
#[test]
fn an_export_can_be_stopped() {
    on_guest_thread(|| {
        let mut guest = Guest::instantiate(&ENGINE, &COUNTER).unwrap();
        let mut fork = guest.fork(&ENGINE, &COUNTER).unwrap();
        assert_eq!(fork.export(&mut |_| Err(ExportStopped)), Err(ExportError::Stopped));
        assert_eq!(apply(&mut guest, &["1"]).unwrap(), ["1"]);
        assert_eq!(exported(&guest, &COUNTER).0, 1);
    });
}

pub(super) fn hostile() -> Guest {
    let limits = Limits {
        fuel_per_command: 200_000_000,
        memory_bytes_max: 64 << 20,
        reply_bytes_max: 128 << 10,
        ..Limits::default()
    };
    Guest::instantiate_with(&ENGINE, &HOSTILE, limits).unwrap()
}

/// Every way in which a guest can fail is a value, with a text that holds nothing of the host;
/// and the same failure leaves the same fuel.
#[test]
fn every_failure_of_a_guest_is_a_value() {
    let malformed = |text: &str| Failure::Malformed(text.to_owned());
    let trapped = |text: &str| Failure::Trapped(text.to_owned());
    let unreachable = "wasm trap: wasm `unreachable` instruction executed";
    let rows = [
        ("unreachable", trapped(unreachable)),
        ("recurse in memory", trapped("wasm trap: out of bounds memory access")),
        ("recurse", trapped("wasm trap: call stack exhausted")),
        ("spin", Failure::OutOfFuel { limit: "fuel_per_command", fuel: 200_000_000 }),
        ("long reply", Failure::TooLarge { length: (1 << 20) + 1, limit: 128 << 10 }),
        ("flood", Failure::TooLarge { length: (16 << 20) + 1, limit: 16 << 20 }),
        ("no replies", malformed("0 replies to 1 requests")),
        ("end too far", malformed("the last reply ends at 4 of 3 bytes")),
        ("rejects another", malformed("its list of rejected requests is none of 1 requests")),
        ("rejects twice", malformed("its list of rejected requests is none of 1 requests")),
    ];
    on_guest_thread(move || {
        let falls = apply(&mut hostile(), &["falling ends", ""]).unwrap_err();
        assert_eq!(falls, malformed("reply 1 ends before the one ahead of it"));
        // It answers the last request alone: that is no call that ended with long replies.
        let forgotten = apply(&mut hostile(), &["hello", "log"]).unwrap_err();
        assert_eq!(forgotten, malformed("1 replies to 2 requests"));
        for (command, expected) in rows {
            let mut guests = [hostile(), hostile()];
            for guest in &mut guests {
                assert_eq!(apply(guest, &["hello"]).unwrap(), ["hello"]);
                assert_eq!(apply(guest, &[command]).unwrap_err(), expected, "{command}");
            }
            assert_eq!(guests[0].fuel_left(), guests[1].fuel_left(), "{command}");
        }
    });
}

/// A guest that panics says why in its failure, without folders of the machine that built it.
#[test]
fn a_panic_says_why() {
    on_guest_thread(|| {
        let mut guest = Guest::instantiate(&ENGINE, &COUNTER).unwrap();
        let broken = Batch { data: b"12", ends: &[1] };
        let Failure::Trapped(text) = guest.apply(&CONTEXT, broken).unwrap_err() else {
            panic!("not a trap")
        };
        assert!(text.contains("it said: panicked at guest-sdk/src/runtime.rs:"), "{text}");
        assert!(text.contains("the host sends whole batches"), "{text}");
    });
}

/// Memory is refused at the limit and beyond what 32 bits reach, and the guest is told so: that is
/// no failure of the host.
#[test]
fn memory_ends_at_its_limit() {
    on_guest_thread(|| {
        let mut guest = hostile();
        let got: u64 = apply(&mut guest, &["eat memory"]).unwrap()[0].parse().unwrap();
        assert!((50..64).contains(&got), "{got} MiB of 64");
        assert!(guest.memory_bytes() <= 64 << 20);
        let mut guest = hostile();
        let refused = u32::MAX.to_string();
        assert_eq!(apply(&mut guest, &["grow too far"]).unwrap(), [refused]);
    });
}

/// Limits change between two calls: fuel of commands and queries apart, replies, and memory, of
/// which a guest keeps what it has and gets no more; and they can be raised again.
#[test]
fn limits_change_between_calls() {
    on_guest_thread(|| {
        let mut guest = hostile();
        assert_eq!(apply(&mut guest, &["eat memory"]).unwrap().len(), 1);
        let held = guest.memory_bytes();
        let before = Limits { memory_bytes_max: 64 << 20, ..Limits::default() };
        guest.set_limits(Limits { memory_bytes_max: 1 << 20, reply_bytes_max: 4, ..before });
        assert_eq!(guest.memory_bytes(), held);
        let refused = u32::MAX.to_string();
        let too_large = Failure::TooLarge { length: 10, limit: 4 };
        assert_eq!(apply(&mut guest, &["grow too far"]).unwrap_err(), too_large);
        assert_eq!(guest.memory_bytes(), held, "it gets no more");
        guest.set_limits(before);
        assert_eq!(apply(&mut guest, &["grow too far"]).unwrap(), [refused]);
        assert_eq!(guest.memory_bytes(), held + (64 << 10), "it gets more again");

        let spin = Requests::of(&["spin"]);
        let fuel = |guest: &mut Guest, command: u64, query: u64| {
            guest.set_limits(Limits { fuel_per_command: command, fuel_per_query: query, ..before });
        };
        for (command, query) in [(3_000_000, 9_000_000), (9_000_000, 3_000_000)] {
            let mut guest = hostile();
            fuel(&mut guest, command, query);
            assert_eq!(apply(&mut guest, &["hello"]).unwrap(), ["hello"]);
            assert!((command - 100_000..command).contains(&guest.fuel_left()));
            let mut fork = guest.fork(&ENGINE, &HOSTILE).unwrap();
            fork.query(&CONTEXT, Requests::of(&["hello"]).batch(), u64::MAX).unwrap();
            assert!((query - 100_000..query).contains(&fork.fuel_left()));
            let failure = fork.query(&CONTEXT, spin.batch(), u64::MAX).unwrap_err();
            assert_eq!(failure, Failure::OutOfFuel { limit: "fuel_per_query", fuel: query });
        }
    });
}

/// Each limit has bounds, which the refusal names; at them, and by default, it is none.
#[test]
fn limits_are_bounded() {
    type Set = fn(&mut LimitsChange, u64);
    let rows: [(&str, u64, u64, Set); 7] = [
        ("fuel_per_command", 1_000_000, 100_000_000_000, |c, v| c.fuel_per_command = Some(v)),
        ("fuel_per_query", 1_000_000, 100_000_000_000, |c, v| c.fuel_per_query = Some(v)),
        ("fuel_per_export_step", 1_000_000_000, 100_000_000_000, |c, v| {
            c.fuel_per_export_step = Some(v);
        }),
        ("memory_bytes_max", 65_536, 4_294_901_760, |c, v| c.memory_bytes_max = Some(v)),
        ("table_elements_max", 0, 1_000_000, |c, v| c.table_elements_max = Some(v)),
        ("reply_bytes_max", 1, 1_048_576, |c, v| c.reply_bytes_max = Some(v)),
        ("export_bytes_max", 262_144, 17_179_869_184, |c, v| c.export_bytes_max = Some(v)),
    ];
    assert_eq!(Limits::default().check(), Ok(()));
    assert_eq!(Limits::largest().check(), Ok(()));
    for (name, min, max, set) in rows {
        let changed = |value: u64| {
            let mut change = LimitsChange::default();
            set(&mut change, value);
            let text = format!("{:?}", Limits::default().with(&change));
            assert!(text.contains(&format!("{name}: {value}")), "{text}");
            change.check()
        };
        assert_eq!((changed(min), changed(max)), (Ok(()), Ok(())), "{name}");
        for value in [min.wrapping_sub(1), max + 1, u64::MAX] {
            assert_eq!(changed(value), Err(InvalidLimit { name, value, min, max }));
        }
    }
    let refusal = LimitsChange { reply_bytes_max: Some(0), ..LimitsChange::default() }.check();
    let text = "reply_bytes_max must be 1 to 1048576, and 0 is not";
    assert_eq!(refusal.unwrap_err().to_string(), text);
}

/// What the system refuses, while the limit allows it, is the host's failure, and the guest does
/// not go on with it.
#[test]
fn memory_that_the_system_refuses_is_the_hosts_failure() {
    use wasmtime::ResourceLimiter;
    let mut room = limits::Room::new("some", Limits::default());
    room.memory_growing(0, 1 << 20, None).unwrap();
    room.memory_grow_failed(wasmtime::Error::msg("Cannot allocate memory")).unwrap_err();
    let reason = room.take_host_failure().unwrap();
    assert_eq!(reason, "the memory of guest some cannot grow: Cannot allocate memory");
    room.table_grow_failed(wasmtime::Error::msg("Cannot allocate memory")).unwrap_err();
    assert!(room.take_host_failure().unwrap().starts_with("a table of guest some"));
}

/// A guest that logs without end is heard for some lines, and its answer does not depend on it.
#[test]
fn a_chatterer_is_answered() {
    on_guest_thread(|| {
        let mut guest = Guest::instantiate(&ENGINE, &HOSTILE).unwrap();
        guest.set_log(GuestLog::new("m"));
        assert_eq!(apply(&mut guest, &["chatter"]).unwrap(), ["heard"]);
    });
}

/// What a guest said before it trapped is in the text of the trap: its last error among its first
/// 16 lines, harmless, and the same whether anybody hears it, it is a replay, or it is one line of
/// too many; also where it is not text.
#[test]
fn last_words_depend_on_the_guest_alone() {
    let said = |words: &str| {
        let trap = "wasm trap: wasm `unreachable` instruction executed";
        Failure::Trapped(format!("{trap}; it said: {words}"))
    };
    on_guest_thread(move || {
        let rows = [
            ("last words", said(r"line 15\n\u{1b}[2J forged")),
            ("last words that are no text", said("(a line that is not text)")),
        ];
        let log = GuestLog::new("m");
        let check = |round: u32| {
            for (command, expected) in &rows {
                let mut guest = hostile();
                if round.is_multiple_of(2) {
                    guest.set_log(log.clone());
                }
                guest.set_quiet(round.is_multiple_of(3));
                assert_eq!(apply(&mut guest, &[command]).unwrap_err(), *expected, "{command}");
            }
        };
        // Six rounds are over the rate, where somebody listens.
        let listener = tracing_subscriber::fmt().with_writer(std::io::sink).finish();
        tracing::subscriber::with_default(listener, || (0..20).for_each(check));
        check(0);
    });
}

/// An export is held to the size asked for, and an import that the guest refuses says why.
#[test]
fn exports_and_imports_are_held_to_the_contract() {
    on_guest_thread(|| {
        let too_long = "an export chunk has 262145 bytes, and 262144 were asked for";
        let export = |command: &str| {
            let mut guest = hostile();
            apply(&mut guest, &[command]).unwrap();
            guest.fork(&ENGINE, &HOSTILE).unwrap().export(&mut |_| Ok(())).unwrap_err().to_string()
        };
        let failed = export("flood at export");
        assert_eq!(failed, format!("the guest broke its contract: {too_long}"));
        let trap = "the guest trapped: wasm trap: wasm `unreachable` instruction executed";
        let failed = export("hoard at export");
        let memory = format!("{trap}; it was refused memory: it has ");
        assert!(failed.starts_with(&memory), "{failed}");
        assert!(failed.ends_with(", and the limit is 67108864 (memory_bytes_max)"), "{failed}");
        assert_eq!(export("trap at export"), trap, "it was refused no memory");
        let refused = hostile().import(1, b"", true).unwrap_err();
        assert_eq!(refused, Failure::Refused("it takes nothing in".to_owned()));
    });
}

/// Equal calls on two instances use equal fuel: replicas agree on who runs out.
#[test]
fn fuel_is_equal() {
    on_guest_thread(|| {
        let run = || {
            let mut guest = Guest::instantiate(&ENGINE, &KV).unwrap();
            let used = |number: u32| {
                let set =
                    resp(&["SET", &format!("key {}", number % 40), &"v".repeat(number as usize)]);
                apply(&mut guest, &[&set, &resp(&["GET", "key 3"])]).unwrap();
                (guest.fuel_left(), guest.memory_bytes())
            };
            (0..300).map(used).collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
    });
}

/// Two engines of one build have one profile, which nothing of the process enters.
#[test]
fn the_profile_is_the_builds() {
    let profile = ENGINE.profile();
    assert_eq!(profile.len(), 64);
    assert!(profile.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    assert_eq!(profile, Engine::new().unwrap().profile());
}

/// A guest may be made on one thread and run on another.
#[test]
fn guests_can_be_sent() {
    fn sendable<T: Send>(_: &T) {}
    sendable(&Guest::instantiate(&ENGINE, &COUNTER).unwrap());
}
