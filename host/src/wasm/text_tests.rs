//! The sandbox on guests that no compiler makes: core modules in text, made components here.

use std::path::Path;
use std::time::{Duration, Instant};

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use super::tests::ENGINE;

/// A guest that echoes its requests. `PARTS`, `DESCRIBE` and `APPLY` stand for code of a test.
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
  (export "lockstep:guest/machine@0.1.0#query" (func $echo))
  (func (export "lockstep:guest/machine@0.1.0#describe") (result i32) DESCRIBE (i32.const 16))
  (func (export "lockstep:guest/machine@0.1.0#export-begin"))
  (func (export "lockstep:guest/machine@0.1.0#export-next") (param i32) (result i32)
    (i32.const 128))
  (func (export "lockstep:guest/machine@0.1.0#import-chunk") (param i32 i32 i32 i32) (result i32)
    (i32.const 128)))
"#;

/// A guest that echoes, and does something more.
#[derive(Clone, Copy, Debug, Default)]
struct Text {
    parts: &'static str,
    describe: &'static str,
    apply: &'static str,
}

impl Text {
    fn component(self) -> Vec<u8> {
        let Self { parts, describe, apply } = self;
        let text = ECHO.replace("PARTS", parts);
        component(&text.replace("DESCRIBE", describe).replace("APPLY", apply))
    }

    fn refusal(self) -> String {
        ENGINE.compile(&self.component()).err().expect("it is refused").to_string()
    }
}

/// A core module in text as a component of our world.
fn component(text: &str) -> Vec<u8> {
    let mut module = wat::parse_str(text).unwrap();
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
    ENGINE.compile(&Text::default().component()).unwrap();
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
            ENGINE.compile(&guest.component()).expect("it is refused the memory, and goes on");
        } else {
            assert_eq!(guest.refusal(), expected, "{guest:?}");
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{guest:?}: {:?}", began.elapsed());
    }
    let large = ECHO.replace("(memory (export \"memory\") 2)", "(memory (export \"memory\") 4097)");
    let large = large.replace("PARTS", "").replace("DESCRIBE", "").replace("APPLY", "");
    let refusal = ENGINE.compile(&component(&large)).err().expect("it is refused").to_string();
    let said = "the component starts with 268500992 bytes of memory, and the limit is 268435456";
    assert_eq!(refusal, said);
}
