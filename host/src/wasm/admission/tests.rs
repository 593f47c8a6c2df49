//! What is admitted and what is refused: whole files, parts of components, core modules.

use super::super::bindings::{LOG, MACHINE};
use super::super::tests::{ENGINE, component};
use super::*;

/// Work that compiling a module may take here.
const WORK_MAX: u64 = 4_000;

/// Why a component in text is refused.
fn refusal(text: &str) -> String {
    refused(&wat::parse_str(text).unwrap())
}

fn refused(bytes: &[u8]) -> String {
    inspect(bytes, &Limits::largest(), WORK_MAX).expect_err("it is refused").to_string()
}

/// What is said of a component of these parts, which are allowed if all that it lacks is what
/// makes it a guest.
fn parts(text: &str) -> Result<(), String> {
    let bytes = wat::parse_str(format!("(component {text})")).unwrap();
    match inspect(&bytes, &Limits::largest(), WORK_MAX) {
        Ok(_) | Err(Error::MissingExport) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// What is said of a core module of these parts.
pub(super) fn core_module(text: &str) -> Result<(), String> {
    parts(&format!("(core module {text})"))
}

/// The component of a guest with all of one name in it replaced by another.
fn renamed(guest: &str, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = component(guest);
    let mut found = 0;
    for start in 0..bytes.len() - from.len() {
        if bytes[start..].starts_with(from.as_bytes()) {
            bytes[start..start + to.len()].copy_from_slice(to.as_bytes());
            found += 1;
        }
    }
    assert!(found > 0, "{from} is in {guest}");
    bytes
}

/// Every guest of this repository is admitted, and what it is made of is told.
#[test]
fn guests_are_admitted() {
    for guest in ["guest-kv", "counter", "hostile"] {
        let shape = inspect(&component(guest), &Limits::largest(), WORK_MAX).expect(guest);
        assert_eq!(shape.imports, [LOG], "{guest}");
        assert!((10..10_000).contains(&shape.functions), "{guest}: {shape:?}");
        assert!((1..4).contains(&shape.core_modules), "{guest}: {shape:?}");
        assert!((64 << 10..16 << 20).contains(&shape.memory_bytes), "{guest}: {shape:?}");
        let margin = WORK_MAX / shape.compile_work;
        assert!((5..1000).contains(&margin), "{guest}: {shape:?}");
    }
}

/// What is no component is refused as that.
#[test]
fn other_files_are_refused() {
    let begin = "not a WebAssembly component: ";
    for bytes in
        [&b""[..], b"SET k v", b"\x7fELF\x02\x01\x01\0", b"\0asm", b"\0asm\x0d\0\x01\0\x07"]
    {
        let reason = refused(bytes);
        assert!(reason.starts_with(begin), "{reason}");
    }
    assert_eq!(refused(b"SET k v"), format!("{begin}it does not begin as WebAssembly does"));
    let core = "it is a core module; wrap it as a component";
    assert_eq!(refused(b"\0asm\x01\0\0\0"), format!("{begin}{core}"));
    let cut = &component("counter")[..20_000];
    assert!(refused(cut).starts_with(begin), "{}", refused(cut));
    let reason = refused(&vec![0; MODULE_BYTES_MAX + 1]);
    assert_eq!(reason, "the module has 33554433 bytes, and the limit is 33554432");
}

/// An import that is not offered is named, also when it hides behind the one that is.
#[test]
fn imports_are_named() {
    let offered = "which is not offered: the only import is `lockstep:guest/log@0.1.0`";
    assert_eq!(
        refusal(r#"(component (import "wasi:io/poll@0.2.0" (instance)))"#),
        format!("the component imports `wasi:io/poll@0.2.0`, {offered}")
    );
    assert_eq!(
        refusal(r#"(component (import "f" (func)))"#),
        format!("the component imports `f`, {offered}")
    );
    let other = renamed("counter", LOG, "lockstep:guest/lag@0.1.0");
    assert_eq!(
        refused(&other),
        format!("the component imports `lockstep:guest/lag@0.1.0`, {offered}")
    );
}

/// A component of another world, or with other functions or types under our names, is refused.
#[test]
fn the_contract_is_held() {
    let missing = "the component does not export `lockstep:guest/machine@0.1.0`, so it is of \
                   another world than `guest`";
    assert_eq!(refusal("(component)"), missing);
    assert_eq!(refused(&renamed("counter", MACHINE, "lockstep:guest/machine@0.2.0")), missing);
    for (from, to) in [("export-begin", "export-bogus"), ("uses-time", "uses-tame")] {
        let refused =
            ENGINE.compile(&renamed("counter", from, to), WORK_MAX).err().unwrap().to_string();
        assert!(refused.starts_with("the component does not fit the contract: "), "{refused}");
    }
}

/// One memory, of 32 bits, its own, and within the limit from the start.
#[test]
fn memories_are_checked() {
    let with = |modules: &str| {
        let export = r#"(instance $i) (export "lockstep:guest/machine@0.1.0" (instance $i))"#;
        refusal(&format!("(component {modules} {export})"))
    };
    assert_eq!(with(""), "the component has 0 memories, and a guest has one");
    let two = "(core module (memory 1)) (core module (memory 1))";
    assert_eq!(with(two), "the component has 2 memories, and a guest has one");
    let kind = |kind: &str| format!("the component's memory is {kind}, which is not offered");
    assert_eq!(with("(core module (memory 1 2 shared))"), kind("shared"));
    assert_eq!(with("(core module (memory i64 1))"), kind("64-bit"));
    assert_eq!(with("(core module (memory 1 (pagesize 1)))"), kind("of another page size"));
    assert_eq!(
        with("(core module (memory 65536))"),
        "the component starts with 4294967296 bytes of memory, and the limit is 4294901760"
    );
}

/// A component is its own core modules, each run once, so that one memory means one memory; and
/// it is small when all is put together.
#[test]
fn components_are_simple() {
    let nested = r#"(component $c (import "f" (func $f)) (export "g" (func $f)))"#;
    parts(nested).unwrap();
    parts("(core module $m) (core instance (instantiate $m))").unwrap();
    let ends = ": a guest is one component, and runs each core module of its own once";
    let rows = [
        (
            "(core module $m) (core instance (instantiate $m)) (core instance (instantiate $m))",
            "runs a core module twice",
        ),
        ("(component (core module))", "holds code inside of another component"),
        ("(component (component))", "holds code inside of another component"),
        (
            "(component $c) (instance (instantiate $c)) (instance (instantiate $c))",
            "makes instances of a component twice",
        ),
        ("(core module $m) (export \"m\" (core module $m))", "exports code"),
        ("(component $c) (export \"c\" (component $c))", "exports code"),
        ("(component (import \"m\" (core module)))", "imports code"),
        ("(component (import \"c\" (component)))", "imports code"),
        ("(core module $m) (component (alias outer 1 $m (core module)))", "gives code a second"),
        ("(component $c) (component (alias outer 1 $c (component)))", "gives code a second"),
    ];
    for (text, part) in rows {
        let reason = parts(text).expect_err(text);
        let begins = format!("the component {part}");
        assert!(reason.starts_with(&begins) && reason.ends_with(ends), "{text}: {reason}");
    }
}

/// What the host would keep for a guest, no image holds.
#[test]
fn handles_are_refused() {
    let rows = [
        "(type $r (resource (rep i32))) (core func (canon resource.new $r))",
        "(type $r (resource (rep i32))) (core func (canon resource.rep $r))",
        "(type $r (resource (rep i32))) (core func (canon resource.drop $r))",
    ];
    for (text, name) in rows.into_iter().zip(["new", "rep", "drop"]) {
        let reason = parts(text).expect_err(text);
        let begins = format!("the component uses the canonical function `resource-{name}` at");
        assert!(reason.starts_with(&begins), "{text}: {reason}");
    }
    let task = parts("(core func (canon task.cancel))").expect_err("it is async");
    assert!(task.contains("canonical function `task-cancel`"), "{task}");
    let lifted = "(core module $m (func (export \"f\"))) (core instance $i (instantiate $m)) \
                  (func (canon lift (core func $i \"f\") async))";
    let reason = parts(lifted).expect_err("it is async");
    assert!(reason.contains("canonical function `async`"), "{reason}");
}

/// An instruction that changes what no image holds is refused, with its place; one that changes
/// memory, or only reads a table, is not.
#[test]
fn tables_and_segments_stay_as_they_are() {
    let begin = "(memory 1) (table $t 2 funcref) (elem $e func $f) (data $d \"x\") (func $f \
                 (param i32)";
    let zeros = "(i32.const 0) (i32.const 0)";
    let allowed = [
        format!("(memory.copy {zeros} (i32.const 0))"),
        format!("(memory.fill {zeros} (i32.const 0))"),
        "(drop (memory.grow (i32.const 1)))".to_owned(),
        "(drop (table.get $t (i32.const 0)))".to_owned(),
        "(drop (table.size $t)) (drop (ref.func $f))".to_owned(),
        "(call_indirect $t (param i32) (i32.const 0) (i32.const 0))".to_owned(),
        "(drop (i8x16.splat (i32.const 0)))".to_owned(),
        "(drop (i32.trunc_sat_f32_s (f32.const 0)))".to_owned(),
        "(drop (i32.extend8_s (i32.const 0)))".to_owned(),
    ];
    for body in allowed {
        core_module(&format!("{begin} {body})")).expect(&body);
    }
    let refused = [
        ("table.set", "$t (i32.const 0) (ref.null func)".to_owned()),
        ("table.grow", "$t (ref.null func) (i32.const 1)) (drop".to_owned()),
        ("table.fill", "$t (i32.const 0) (ref.null func) (i32.const 1)".to_owned()),
        ("table.copy", format!("$t $t {zeros} (i32.const 1)")),
        ("table.init", format!("$t $e {zeros} (i32.const 1)")),
        ("elem.drop", "$e".to_owned()),
        ("data.drop", "$d".to_owned()),
        ("memory.init", format!("$d {zeros} (i32.const 1)")),
    ];
    for (name, operands) in refused {
        let operands = operands.replace(") (drop", "");
        let body = match name {
            "table.grow" => format!("(drop ({name} {operands}))"),
            _ => format!("({name} {operands})"),
        };
        let reason = core_module(&format!("{begin} {body})")).expect_err(name);
        let begins = "function 0 `f` of core module 0 (offset 0x";
        let ends = format!(") uses `{name}`, which changes more than its memory");
        assert!(reason.starts_with(begins) && reason.ends_with(&ends), "{reason}");
    }
}

/// Parts of WebAssembly that guests do not need are not valid here, and the engine agrees.
#[test]
fn what_is_not_offered_is_not_valid() {
    let rows = [
        "(memory 1) (func (drop (i32.atomic.load (i32.const 0))))",
        "(func $f (return_call $f))",
        "(tag $t) (func (throw $t))",
        "(type (struct (field i32)))",
        "(type $c (func)) (func (param (ref $c)))",
        "(type $f (func)) (type (cont $f))",
        "(func (param i64) (i64.add128 (local.get 0) (local.get 0) (local.get 0) (local.get 0)) \
         drop drop)",
        "(func (param v128) (drop (i8x16.relaxed_swizzle (local.get 0) (local.get 0))))",
        "(table i64 1 funcref)",
        "(global i32 (i32.const 0)) (func (global.set 0 (i32.const 1)))",
    ];
    for text in rows {
        let reason = core_module(text).expect_err(text);
        assert!(reason.starts_with("the component is not valid here: "), "{text}: {reason}");
        let component = wat::parse_str(format!("(component (core module {text}))")).unwrap();
        wasmtime::component::Component::from_binary(ENGINE.inner(), &component)
            .map(drop)
            .expect_err(text);
    }
}

/// The one global that may be written is an `i32` of its own module, and there is one.
#[test]
fn globals_are_checked() {
    let writes = "(func (global.set 0 (global.get 0)))";
    core_module(&format!("(global (mut i32) (i32.const 8)) {writes}")).unwrap();
    core_module("(global (export \"a\") i32 (i32.const 8)) (global (mut i64) (i64.const 8))")
        .unwrap();
    core_module("(import \"m\" \"g\" (global i32))").unwrap();
    let only = ", and a guest's state is its memory alone";
    let rows = [
        (
            "(global (export \"sp\") (mut i32) (i32.const 8))".to_owned(),
            "exports the mutable global `sp`",
        ),
        ("(import \"m\" \"sp\" (global (mut i32)))".to_owned(), "imports the mutable global `sp`"),
        (format!("(global (mut i64) (i64.const 8)) {writes}"), "writes a global that is no i32"),
    ];
    for (text, part) in rows {
        assert_eq!(core_module(&text), Err(format!("core module 0 {part}{only}")));
    }
    let module = format!("(core module (global (mut i32) (i32.const 8)) {writes})");
    let part = "writes a global, and so does another";
    assert_eq!(parts(&module.repeat(2)), Err(format!("core module 1 {part}{only}")));
    let two = "(global (mut i32) (i32.const 8)) (global (mut i32) (i32.const 8))";
    for second in [
        "(global.set 1 (global.get 1))",
        "(global.set 0 (global.get 0))) (func \
                   (global.set 1 (global.get 1))",
    ] {
        let text = format!("{two} (func (global.set 0 (global.get 0)) {second})");
        let reason = core_module(&text).expect_err(second);
        assert!(reason.ends_with("writes global 0, and another global is written too"), "{reason}");
    }
}

/// What would make a compilation long is counted before anything is compiled.
#[test]
fn sizes_are_bounded() {
    let many = |count: u64, part: &str| -> String {
        (0..count).map(|number| part.replace("NUMBER", &number.to_string())).collect()
    };
    let rows = [
        ("core modules", limits::MODULE_CORE_MODULES_MAX, "(core module)", ""),
        ("types", limits::MODULE_TYPES_MAX, "(type (func))", "core"),
        (
            "imports and exports",
            limits::MODULE_NAMES_MAX,
            "(import \"\" \"NUMBER\" (func))",
            "core",
        ),
        ("functions", limits::MODULE_FUNCTIONS_MAX, "(func)", "core"),
        ("globals", limits::MODULE_GLOBALS_MAX, "(global i32 (i32.const 0))", "core"),
        ("data and element segments", limits::MODULE_SEGMENTS_MAX, "(data)", "core"),
        (
            "elements in its tables",
            limits::GUEST_TABLE_ELEMENTS_MAX,
            "(table 100000 funcref)",
            "tables",
        ),
        ("items outside of its code", limits::COMPONENT_ITEMS_MAX, "(core type (func))", ""),
    ];
    for (what, limit, part, inside) in rows {
        let said = |count: u64| match inside {
            "core" => core_module(&many(count, part)),
            "tables" => core_module(&many(count / 100_000, part)),
            _ => parts(&many(count, part)),
        };
        let step = if inside == "tables" { 100_000 } else { 1 };
        said(limit).expect(what);
        let count = limit + step;
        let expected = format!("the component has {count} {what}, and the limit is {limit}");
        assert_eq!(said(count), Err(expected));
    }
    let items = |count: u64| core_module(&format!("(func $f) (elem func {})", many(count, "$f ")));
    items(limits::MODULE_SEGMENT_ITEMS_MAX).unwrap();
    assert_eq!(
        items(limits::MODULE_SEGMENT_ITEMS_MAX + 1).unwrap_err(),
        "the component has 100001 items in element segments, and the limit is 100000"
    );
}

/// A function of too many locals, or too long, is named; one at the limit is admitted.
#[test]
fn functions_are_bounded() {
    let locals =
        |count: u32| core_module(&format!("(func (local {}))", "i32 ".repeat(count as usize)));
    locals(limits::FUNCTION_LOCALS_MAX).unwrap();
    let reason = locals(limits::FUNCTION_LOCALS_MAX + 1).unwrap_err();
    let said = "has 10001 locals, and the limit is 10000";
    assert!(reason.starts_with("function 0 of core module 0 (offset 0x"), "{reason}");
    assert!(reason.ends_with(said), "{reason}");
    let long = |bytes: usize| core_module(&format!("(func $long {})", "nop ".repeat(bytes - 2)));
    long(limits::FUNCTION_BODY_BYTES_MAX).unwrap();
    let reason = long(limits::FUNCTION_BODY_BYTES_MAX + 1).unwrap_err();
    let said = "has 524289 bytes, and the limit is 524288";
    assert!(reason.starts_with("function 0 `long` of"), "{reason}");
    assert!(reason.ends_with(said), "{reason}");
}

/// Counts that only claim to be large are refused without being believed: a million locals in
/// four bytes, a million functions, a body of fifty million bytes that is not there.
#[test]
fn claims_are_not_believed() {
    let section =
        |id: u8, content: &[u8]| [&[id, u8::try_from(content.len()).unwrap()], content].concat();
    let in_component = |sections: &[Vec<u8>]| {
        let module = [b"\0asm\x01\0\0\0".to_vec(), sections.concat()].concat();
        [b"\0asm\x0d\0\x01\0".to_vec(), section(1, &module)].concat()
    };
    let million = [0xc0, 0x84, 0x3d];
    let function = [section(1, &[1, 0x60, 0, 0]), section(3, &[1, 0])].concat();
    let body = [&[1, 6, 1], &million[..], &[0x7f, 0x0b]].concat();
    let locals = in_component(&[function.clone(), section(10, &body)]);
    assert!(refused(&locals).ends_with("has 1000000 locals, and the limit is 10000"));
    let functions = in_component(&[section(1, &[1, 0x60, 0, 0]), section(3, &million)]);
    let said = "the component has 1000000 functions, and the limit is 100000";
    assert_eq!(refused(&functions), said);
    let fifty_million = [0x80, 0xe1, 0xeb, 0x17];
    let body = [&[1], &fifty_million[..], &[0, 0x0b]].concat();
    let long = in_component(&[function, section(10, &body)]);
    assert!(refused(&long).starts_with("not a WebAssembly component: "), "{}", refused(&long));
}
