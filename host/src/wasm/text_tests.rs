//! The sandbox on guests that no compiler makes: core modules in text, made components here.

use std::path::Path;
use std::time::{Duration, Instant};

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use super::tests::{ENGINE, WORK_MAX};

/// A guest that echoes its requests. Words in capitals stand for code of a test.
const ECHO: &str = r#"
(module
  (import "lockstep:guest/log@0.1.0" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 2)
  ;; Where the next allocation begins.
  (data (i32.const 0) "\00\10\00\00")
  ;; The manifest: name, schema version, importable schemas, no read-only requests, no time.
  (data (i32.const 16) "\40\00\00\00\04\00\00\00\01\00\00\00\50\00\00\00\01\00\00\00")
  (data (i32.const 64) "text")
  (data (i32.const 80) "\01\00\00\00")
  PARTS
  (func (export "cabi_realloc") (param i32 i32 i32) (param $bytes i32) (result i32)
    (local $place i32)
    (local.set $place
      (i32.and (i32.add (i32.load (i32.const 0)) (i32.const 7)) (i32.const -8)))
    (i32.store (i32.const 0) (i32.add (local.get $place) (local.get $bytes)))
    (local.get $place))
  (func $echo (param i64 i64 i64) (param $data i32) (param $bytes i32)
    (param $ends i32) (param $count i32) (result i32)
    APPLY
    (i32.store (i32.const 0) (i32.const 4096))
    (i32.store (i32.const 96) (local.get $data))
    (i32.store (i32.const 100) (local.get $bytes))
    (i32.store (i32.const 104) (local.get $ends))
    (i32.store (i32.const 108) (local.get $count))
    (i32.const 96))
  (export "lockstep:guest/machine@0.1.0#apply" (func $echo))
  (func (export "lockstep:guest/machine@0.1.0#query") (param i64 i64 i64) (param $data i32)
    (param $bytes i32) (param $ends i32) (param $count i32) (result i32)
    QUERY
    (call $echo (local.get 0) (local.get 1) (local.get 2) (local.get $data) (local.get $bytes)
      (local.get $ends) (local.get $count)))
  (func (export "lockstep:guest/machine@0.1.0#describe") (result i32) DESCRIBE (i32.const 16))
  (func (export "lockstep:guest/machine@0.1.0#export-begin"))
  (func (export "lockstep:guest/machine@0.1.0#export-next") (param i32) (result i32)
    NEXT
    (i32.const 128))
  (func (export "lockstep:guest/machine@0.1.0#import-chunk") (param i32 i32 i32 i32) (result i32)
    IMPORT
    (i32.const 128)))
"#;

/// A guest that echoes, and does something more.
#[derive(Clone, Copy, Debug, Default)]
struct Text {
    parts: &'static str,
    describe: &'static str,
    /// Before it answers commands, or queries, in which it calls the same function.
    apply: &'static str,
    /// Before it answers queries.
    query: &'static str,
    /// Before it exports nothing.
    next: &'static str,
    /// Before it takes an import in.
    import: &'static str,
}

impl Text {
    fn component(self) -> Vec<u8> {
        let Self { parts, describe, apply, query, next, import } = self;
        let text = ECHO.replace("PARTS", parts).replace("DESCRIBE", describe);
        let text = text.replace("APPLY", apply).replace("QUERY", query);
        component(&text.replace("NEXT", next).replace("IMPORT", import))
    }

    fn refusal(self) -> String {
        ENGINE.compile(&self.component(), WORK_MAX).err().expect("it is refused").to_string()
    }
}

/// A core module in text as a component of our world.
fn component(text: &str) -> Vec<u8> {
    embedded(wat::parse_str(text).unwrap())
}

/// A core module as a component of our world.
pub(super) fn embedded(mut module: Vec<u8>) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
    let (package, _) = resolve.push_dir(wit).unwrap();
    let world = resolve.select_world(&[package], Some("guest")).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).unwrap();
    ComponentEncoder::default().module(&module).unwrap().encode().unwrap()
}

/// A fault where no command is applied costs a bounded time and memory, and the refusal names what
/// ran out; a guest without one is admitted.
#[test]
fn admission_is_bounded() {
    ENGINE.compile(&Text::default().component(), WORK_MAX).unwrap();
    let started = |start| Text { parts: start, ..Text::default() };
    let described = |describe| Text { describe, ..Text::default() };
    let no_start = "the guest does not start: its start function";
    let rows = [
        (
            started("(func $s (loop (br 0))) (start $s)"),
            format!("{no_start} used up its fuel of 50000000"),
        ),
        (
            started("(func $s unreachable) (start $s)"),
            format!("{no_start} trapped: wasm trap: wasm `unreachable` instruction executed"),
        ),
        (
            started("(func $s (drop (memory.grow (i32.const 1)))) (start $s)"),
            format!(
                "{no_start} asks for more memory, and it has the 131072 bytes that it declares"
            ),
        ),
        (
            started("(func $s (call $log (i32.const 0) (i32.const 64) (i32.const 4))) (start $s)"),
            format!("{no_start} trapped: wasm trap: uninitialized element"),
        ),
        (
            described("(loop (br 0))"),
            "the guest cannot describe itself: the guest used up its fuel of 100000000 (admission)"
                .to_owned(),
        ),
        (
            described(
                "(if (i32.ge_s (memory.grow (i32.const 4095)) (i32.const 0)) (then unreachable))",
            ),
            String::new(),
        ),
    ];
    for (guest, expected) in rows {
        let began = Instant::now();
        if expected.is_empty() {
            ENGINE
                .compile(&guest.component(), WORK_MAX)
                .expect("it is refused the memory, and goes on");
        } else {
            assert_eq!(guest.refusal(), expected, "{guest:?}");
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{guest:?}: {:?}", began.elapsed());
    }
    let large = ECHO.replace("(memory (export \"memory\") 2)", "(memory (export \"memory\") 4097)");
    let large = ["PARTS", "DESCRIBE", "APPLY", "QUERY", "NEXT", "IMPORT"]
        .into_iter()
        .fold(large, |text, word| text.replace(word, ""));
    let refusal =
        ENGINE.compile(&component(&large), WORK_MAX).err().expect("it is refused").to_string();
    let said = "the component starts with 268500992 bytes of memory, and the limit is 268435456";
    assert_eq!(refusal, said);
}

/// A guest whose answers are of no use is refused, and the refusal names the step of the self-test
/// that failed, and how; so is one that fails only once it has a state.
#[test]
fn the_self_test_says_which_step_failed() {
    let plain = Text::default();
    // Counts its commands, and fails as it is exported once there were some.
    let counts = "(i32.store (i32.const 12) (i32.add (i32.load (i32.const 12)) (i32.const 1)))";
    let if_counted = "(if (i32.load (i32.const 12)) (then unreachable))";
    // What is at 120 is an export of one byte, and the next one of none.
    let one_byte = "(if (i32.load (i32.const 12)) (then (i32.store (i32.const 12) (i32.const 0))
                    (i32.store (i32.const 120) (i32.const 64)) (i32.store (i32.const 124) \
                    (i32.const 1)) (return (i32.const 120))))";
    // What is at 120 is a refusal without words.
    let refuses = "(i32.store (i32.const 120) (i32.const 1)) (return (i32.const 120))";
    let trap = "the guest trapped: wasm trap: wasm `unreachable` instruction executed";
    let fails = |what| {
        format!(
            "the guest fails in every one of the 5 probe {what} of the self-test, such as \"\": "
        )
    };
    let rows = [
        (Text { apply: "unreachable", ..plain }, fails("commands") + trap),
        (Text { query: "unreachable", ..plain }, fails("queries") + trap),
        (
            Text { query: "(loop (br 0))", ..plain },
            fails("queries") + "the guest used up its fuel of 50000000 (fuel_per_query)",
        ),
        (
            Text { apply: "(return (i32.const 128))", ..plain },
            fails("commands") + "the guest broke its contract: 0 replies to 1 requests",
        ),
        (
            Text { next: "unreachable", ..plain },
            format!("the guest cannot export its state, before the first command: {trap}"),
        ),
        (
            Text { apply: counts, next: if_counted, ..plain },
            format!("the guest cannot export its state, after some commands: {trap}"),
        ),
        (
            Text { import: "unreachable", ..plain },
            format!("the guest cannot import its own export, before the first command: {trap}"),
        ),
        (
            Text { import: refuses, ..plain },
            "the guest cannot import its own export, before the first command: the guest refuses \
             the import: "
                .to_owned(),
        ),
        (
            Text { apply: counts, next: one_byte, ..plain },
            "the guest exports other bytes once it has taken in its own export, after some \
             commands: 0 bytes, and 1 before; they differ from byte 0 on"
                .to_owned(),
        ),
    ];
    for (guest, expected) in rows {
        let refusal = guest.refusal();
        assert!(refusal.starts_with(&expected), "{guest:?}: {refusal}");
    }
}
