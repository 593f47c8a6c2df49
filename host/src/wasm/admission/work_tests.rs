//! What would make a compilation long is refused before anything is compiled, by what it is.

use super::tests::core_module;
use super::{Error, inspect};
use crate::config::limits;
use crate::wasm::limits::Limits;

/// A function with so many locals.
fn function(locals: usize, body: &str) -> String {
    format!("(func $costly (param i32) (local {}) {body})", "i32 ".repeat(locals - 1))
}

/// Branches to one place, an assignment before each.
fn meeting(opening: &str, branches: usize) -> String {
    let branch = "(local.set 0 (i32.const 1)) (br_if 0 (local.get 0))";
    function(1, &format!("({opening} {})", branch.repeat(branches)))
}

/// A loop that assigns some of its locals and is repeated from many places.
fn repeated(locals: usize, assigned: usize, branches: usize) -> String {
    let assign = |local| format!("(local.set {local} (i32.const 1))");
    let assigned: String = (0..assigned).map(assign).collect();
    function(locals, &format!("(loop {assigned} {})", "(br_if 0 (local.get 0))".repeat(branches)))
}

/// Says that the first is admitted, and why the second is not.
fn check(below: &str, above: &str, said: &str) {
    core_module(below).unwrap_or_else(|reason| panic!("the one below {said}: {reason}"));
    let reason = core_module(above).expect_err(said);
    assert!(reason.starts_with("function 0 `costly` of core module 0 (offset 0x"), "{reason}");
    assert!(reason.ends_with(said), "{reason}, and not: {said}");
}

/// A compiler looks at all open loops for each operator in them.
#[test]
fn loops_in_one_another_are_bounded() {
    let deep = |count: usize| {
        function(1, &format!("{} {} {}", "loop ".repeat(count), "end ".repeat(count), "(loop)"))
    };
    check(&deep(100), &deep(101), "has 101 loops in one another, and the limit is 100");
}

/// Each block and each branch begins one in the compiled code, a switch as many as it has
/// targets, and a call by pointer.
#[test]
fn branches_are_bounded() {
    let limit = usize::try_from(limits::FUNCTION_BRANCHES_MAX).unwrap();
    let call = "(call_indirect (i32.const 0))";
    let kinds = [
        ("(block)", 1),
        ("(loop)", 1),
        ("(block (br 0))", 2),
        ("(block (br_if 0 (i32.const 0)))", 2),
        ("(if (i32.const 0) (then))", 1),
        ("(if (i32.const 0) (then) (else (nop)))", 2),
        ("(block (br_table 0 0 0 0 0 0 0 0 0 (i32.const 0)))", 10),
        ("(if (i32.const 0) (then (return)))", 2),
        (call, 1),
    ];
    for (kind, each) in kinds {
        let (whole, rest) = (kind.repeat(limit / each), "(block)".repeat(limit % each));
        let below = format!("(table 1 funcref) {}", function(1, &(rest + &whole)));
        let above = below.replace("(local )", "(local ) (block)");
        let said = "has 15001 blocks and branches, and the limit is 15000";
        check(&below, &above, said);
    }
}

/// A compiler knows at each branch of each local and each operand, so many of both are refused
/// though neither is many alone.
#[test]
fn values_at_branches_are_bounded() {
    let locals = |branches: usize| function(8000, &"(block)".repeat(branches));
    let said = "has 8008000 values times branches, and the limit is 8000000";
    check(&locals(1000), &locals(1001), said);
    let operands = |branches: usize| {
        let (push, pop) = ("i32.const 0 ".repeat(7999), "drop ".repeat(7999));
        function(1, &format!("{push} {} {pop}", "block end ".repeat(branches)))
    };
    check(&operands(1000), &operands(1001), said);
}

/// Where many branches meet, a compiler joins what each of them assigned.
#[test]
fn merges_are_bounded() {
    let said = "has 20007729 assignments times branches past them, and the limit is 20000000";
    for opening in ["loop", "block"] {
        check(&meeting(opening, 4471), &meeting(opening, 4472), said);
    }
}

/// What a branch takes with it from the stack is carried too.
#[test]
fn carried_operands_are_bounded() {
    let (pushes, drops) = ("(i32.const 0)".repeat(1000), "(drop)".repeat(1000));
    let list = "i32 ".repeat(1000);
    let body = |branch: &str| {
        let branches = format!("{pushes} {branch} {drops}").repeat(150);
        function(9000, &format!("(block (result {list}) {branches} {pushes}) {drops}"))
    };
    let carrying = body("(br_if 0 (i32.const 0))");
    let alone = body("(if (i32.const 0) (then))");
    core_module(&alone).unwrap();
    let reason = core_module(&carrying).expect_err("each branch carries a thousand");
    assert!(reason.starts_with("compiling the component takes "), "{reason}");
}

/// What branches carry is looked through for each value at each branch.
#[test]
fn carried_values_are_bounded() {
    core_module(&repeated(1000, 1000, 500)).unwrap();
    let reason = core_module(&repeated(1000, 1000, 600)).unwrap_err();
    let said = "units of work by estimate, and the limit is 4000 (compile_work_max of the cluster)";
    assert!(reason.contains(said), "{reason}");
    assert!(reason.contains(" of them are for function 0 `costly` of"), "{reason}");
    core_module(&repeated(1000, 100, 600)).expect("what is not assigned is not carried");
}

/// The estimates of all functions are added: of the functions themselves, operators among few
/// values and among many, calls, and branches.
#[test]
fn functions_are_added_up() {
    let rows = [
        ("(func (nop) (nop) (nop))".to_owned(), 98_000, 2_000),
        (function(1, &"nop ".repeat(500_000)), 12, 2),
        (function(1000, &"nop ".repeat(500_000)), 1, 1),
        (function(1, &"(call 0 (i32.const 0))".repeat(120_000)), 3, 1),
        (function(1, &"(block)".repeat(15_000)), 1, 1),
        (function(1, &"(block)".repeat(5_000)), 7, 1),
    ];
    for (number, (text, fit, more)) in rows.into_iter().enumerate() {
        let many = |count: usize| text.replace("$costly", "").repeat(count);
        core_module(&many(fit)).unwrap_or_else(|reason| panic!("row {number}: {reason}"));
        let reason = core_module(&many(fit + more)).expect_err("that is too much");
        assert!(reason.starts_with("compiling the component takes "), "row {number}: {reason}");
    }
}

/// A refusal names the whole work, that of the functions behind the limit included, and the
/// heaviest function; nothing but the limit decides.
#[test]
fn the_whole_work_is_named() {
    let costly =
        |count: usize| function(1, &"nop ".repeat(500_000)).replace("$costly", "").repeat(count);
    let heavy = function(1, &"(call 0 (i32.const 0))".repeat(120_000));
    let text = format!("(component (core module {} {heavy} {}))", costly(20), costly(20));
    let bytes = wat::parse_str(text).unwrap();
    let refused = |limit| inspect(&bytes, &Limits::largest(), limit).unwrap_err();
    let Error::TooMuchWork { work, limit: 10_000, heaviest } = refused(10_000) else {
        panic!("it is too much")
    };
    assert_eq!((heaviest.place.function, heaviest.place.name.as_deref()), (20, Some("costly")));
    assert!(heaviest.work * 3 < work, "{heaviest:?} of {work}");
    let same = Error::TooMuchWork { work, limit: work - 1, heaviest };
    assert_eq!(refused(work - 1).to_string(), same.to_string());
    assert!(matches!(refused(work), Error::MissingExport), "it fits");
}
