//! Which functions are proved to put the stack pointer back, and which are refused.

use super::tests::core_module;
use crate::config::limits;

/// What is said of a function `f` of this body, with the pointer as global 0.
fn function(body: &str) -> Result<(), String> {
    core_module(&format!(
        "(global $sp (mut i32) (i32.const 65536)) (memory 1)
         (func $callee (result i32) (i32.const 0))
         (func $f (param $p i32) (param $q i32) (result i32) (local $fp i32) (local $x i32)
           {body})"
    ))
}

/// Takes 64 bytes of stack, and keeps the new pointer in `$fp`.
const PROLOGUE: &str = "(global.set $sp (local.tee $fp (i32.sub (global.get $sp) (i32.const 64))))";
/// Puts the pointer back.
const EPILOGUE: &str = "(global.set $sp (i32.add (local.get $fp) (i32.const 64)))";

/// What compilers emit is proved.
#[test]
#[expect(clippy::too_many_lines, reason = "one table of cases")]
fn what_compilers_emit_is_proved() {
    let rows = [
        ("straight", "PROLOGUE (drop (call $callee)) EPILOGUE (i32.const 1)"),
        (
            "two ways out",
            "PROLOGUE (if (local.get $p) (then EPILOGUE (return (i32.const 1)))) EPILOGUE \
             (i32.const 2)",
        ),
        (
            "a way out of a loop, by a return",
            "PROLOGUE (loop $again (if (local.get $p) (then EPILOGUE (return (i32.const 1)))) \
             (br_if $again (local.tee $p (call $callee)))) EPILOGUE (i32.const 2)",
        ),
        (
            "a way out of a loop, by a block that ends at the epilogue",
            "PROLOGUE (block $out (loop $again (br_if $out (local.get $p)) (br $again))) EPILOGUE \
             (i32.const 2)",
        ),
        (
            "loops in loops, whose counters change",
            "PROLOGUE (loop $a (local.set $p (i32.const 3)) (loop $b (local.set $p (i32.sub \
             (local.get $p) (i32.const 1))) (loop $c (br_if $c (call $callee))) (br_if $b \
             (local.get $p))) (br_if $a (call $callee))) EPILOGUE (i32.const 2)",
        ),
        (
            "a switch",
            "PROLOGUE (block $c (block $b (block $a (br_table $a $b $a $c (local.get $p))) \
             EPILOGUE \
             (return (i32.const 1))) (drop (call $callee))) EPILOGUE (i32.const 2)",
        ),
        (
            "an overaligned frame",
            "(local.set $x (global.get $sp)) (global.set $sp (local.tee $fp (i32.and (i32.sub \
             (global.get $sp) (i32.const 256)) (i32.const -128)))) (drop (call $callee)) \
             (global.set $sp (local.get $x)) (i32.const 1)",
        ),
        (
            "a frame as long as the data",
            "PROLOGUE (global.set $sp (i32.sub (global.get $sp) (local.get $p))) (drop (call \
             $callee)) EPILOGUE (i32.const 1)",
        ),
        (
            "constants that go through locals, as unoptimized code has them",
            "(local.set $x (i32.const 64)) (local.set $fp (i32.sub (global.get $sp) (local.get \
             $x))) (global.set $sp (local.get $fp)) (local.set $q (i32.const 64)) (local.set $p \
             (i32.add (local.get $fp) (local.get $q))) (global.set $sp (local.get $p)) (i32.const \
             1)",
        ),
        (
            "the local is used anew after the epilogue, inside of a loop",
            "PROLOGUE (loop $again (br_if $again (call $callee)) EPILOGUE (local.set $fp (call \
             $callee)) (return (local.get $fp))) (unreachable)",
        ),
        (
            "a panic does not put it back",
            "PROLOGUE (if (local.get $p) (then (unreachable))) EPILOGUE (i32.const 1)",
        ),
        ("a loop without end", "PROLOGUE (loop $again (br $again)) (unreachable)"),
        (
            "code that is never reached",
            "PROLOGUE EPILOGUE (return (i32.const 1)) (global.set $sp (i32.const 3)) (block (br \
             0)) (loop (br 0)) (if (i32.const 0) (then) (else)) (i32.const 1)",
        ),
        (
            "values under a block stay where they are",
            "(global.get $sp) PROLOGUE (block (drop (i32.const 7)) (br_if 0 (local.get $p))) \
             (global.set $sp) (i32.const 1)",
        ),
        (
            "both ways of an if",
            "PROLOGUE (if (local.get $p) (then EPILOGUE) (else EPILOGUE)) (i32.const 1)",
        ),
        ("a branch out of the function", "PROLOGUE EPILOGUE (br 0 (i32.const 1))"),
        (
            "around the addresses",
            "(global.set $sp (i32.sub (global.get $sp) (i32.const -2147483648))) (global.set $sp \
             (i32.sub (global.get $sp) (i32.const -2147483648))) (i32.const 1)",
        ),
        (
            "an if with a result",
            "PROLOGUE (if (result i32) (local.get $p) (then (i32.const 1)) (else (i32.const 2))) \
             EPILOGUE",
        ),
    ];
    for (name, body) in rows {
        let body = body.replace("PROLOGUE", PROLOGUE).replace("EPILOGUE", EPILOGUE);
        assert_eq!(function(&body), Ok(()), "{name}");
    }
}

/// A way out on which the pointer is elsewhere, or may be, is found, however it is hidden.
#[test]
#[expect(clippy::too_many_lines, reason = "one table of cases")]
fn what_moves_the_pointer_is_refused() {
    let moved = "it does not put it back";
    let unknown = "it cannot be shown that it puts it back";
    let rows = [
        ("never back", "PROLOGUE (i32.const 1)", moved),
        ("a constant", "(global.set $sp (i32.const 65536)) (i32.const 1)", moved),
        (
            "too far back",
            "PROLOGUE (global.set $sp (i32.add (local.get $fp) (i32.const 65))) (i32.const 1)",
            moved,
        ),
        ("an argument", "(global.set $sp (local.get $p)) (i32.const 1)", unknown),
        ("memory", "(global.set $sp (i32.load (i32.const 0))) (i32.const 1)", unknown),
        ("a call", "(global.set $sp (call $callee)) (i32.const 1)", unknown),
        ("one way of an if", "PROLOGUE (if (local.get $p) (then EPILOGUE)) (i32.const 1)", unknown),
        (
            "the other way of an if",
            "PROLOGUE (if (local.get $p) (then) (else EPILOGUE)) (i32.const 1)",
            unknown,
        ),
        (
            "a return between",
            "PROLOGUE (if (local.get $p) (then (return (i32.const 1)))) EPILOGUE (i32.const 1)",
            moved,
        ),
        (
            "a branch out of the function",
            "PROLOGUE (br_if 0 (i32.const 1) (local.get $p)) drop EPILOGUE (i32.const 1)",
            moved,
        ),
        (
            "one target of a switch",
            "PROLOGUE (block $b (result i32) (br_table $b 1 (i32.const 1) (local.get $p))) drop \
             EPILOGUE (i32.const 1)",
            moved,
        ),
        (
            "every turn of a loop takes more",
            "(loop $again (global.set $sp (i32.sub (global.get $sp) (i32.const 16))) \
             (br_if $again (local.get $p))) (global.set $sp (i32.add (global.get $sp) \
             (i32.const 16))) (i32.const \
             1)",
            unknown,
        ),
        (
            "a loop in a loop changes the copy",
            "PROLOGUE (loop $a (loop $b (local.set $fp (i32.add (local.get $fp) (i32.const 1))) \
             (br_if $b (local.get $p))) (br_if $a (local.get $q))) EPILOGUE (i32.const 1)",
            moved,
        ),
        (
            "the copy is changed on the way back alone",
            "PROLOGUE (block $out (loop $a (br_if $out (local.get $p)) (local.set $fp (i32.const \
             0)) \
             (br $a))) EPILOGUE (i32.const 1)",
            unknown,
        ),
        (
            "a copy by way of a block's result",
            "(global.set $sp (block (result i32) (global.get $sp))) (i32.const 1)",
            unknown,
        ),
        (
            "by way of select",
            "(global.set $sp (select (global.get $sp) (i32.const 0) (local.get $p))) (i32.const 1)",
            unknown,
        ),
        (
            "a difference",
            "(global.set $sp (i32.sub (i32.const 0) (global.get $sp))) (i32.const 1)",
            unknown,
        ),
    ];
    for (name, body, expected) in rows {
        let body = body.replace("PROLOGUE", PROLOGUE).replace("EPILOGUE", EPILOGUE);
        let reason = function(&body).expect_err(name);
        assert!(
            reason.starts_with("function 1 `f` of core module 0 (offset 0x"),
            "{name}: {reason}"
        );
        assert!(reason.ends_with(&format!(" writes global 0, and {expected}")), "{name}: {reason}");
    }
}

/// What is said of a function of this body that calls one which returns its first parameter, by
/// some ways or by all, and stands behind it in the module.
fn calling(returning: &str, body: &str) -> Result<(), String> {
    let body = body.replace("PROLOGUE", PROLOGUE).replace("EPILOGUE", EPILOGUE);
    core_module(&format!(
        "(global $sp (mut i32) (i32.const 65536)) (memory 1)
         (func $f (param $p i32) (param $q i32) (result i32) (local $fp i32) (local $x i32)
           {body})
         (func $memset (param $to i32) (param $byte i32) (param $n i32) (result i32) (local $x i32)
           {returning})"
    ))
}

/// What `clang` emits where a frame is cleared by `memset`, which returns what it was given: the
/// address of the frame comes back through the call.
#[test]
fn a_frame_that_comes_back_through_a_call_is_proved() {
    let through =
        "PROLOGUE (local.set $fp (call $memset (local.get $fp) (i32.const 0) (i32.const 64)))
                   EPILOGUE (i32.const 1)";
    let good = [
        "(memory.fill (local.get $to) (local.get $byte) (local.get $n)) (local.get $to)",
        "(if (i32.eqz (local.get $n)) (then (return (local.get $to))))
         (local.set $x (local.get $to))
         (loop $again
           (i32.store8 (local.get $x) (local.get $byte))
           (local.set $x (i32.add (local.get $x) (i32.const 1)))
           (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
         (local.get $to)",
    ];
    for returning in good {
        assert_eq!(calling(returning, through), Ok(()), "{returning}");
        let second =
            through.replace("(local.get $fp) (i32.const 0)", "(i32.const 0) (local.get $fp)");
        let reason = calling(returning, &second).expect_err("another parameter");
        assert!(reason.ends_with("it does not put it back"), "{reason}");
    }
    let bad = [
        "(local.set $to (i32.const 8)) (local.get $to)",
        "(local.get $x)",
        "(if (local.get $n) (then (local.set $to (i32.const 1)))) (local.get $to)",
        "(if (local.get $n) (then (return (local.get $byte)))) (local.get $to)",
        "(br_if 0 (local.get $byte) (local.get $n)) drop (local.get $to)",
        "(loop $again (local.set $to (i32.const 1)) (br_if $again (local.get $n))) (local.get $to)",
        "(i32.add (local.get $to) (i32.const 0))",
    ];
    for returning in bad {
        let reason = calling(returning, through).expect_err(returning);
        assert!(reason.starts_with("function 0 `f` of core module 0 (offset 0x"), "{reason}");
        assert!(
            reason.ends_with("it cannot be shown that it puts it back"),
            "{returning}: {reason}"
        );
    }
}

/// What `clang -O0` emits: a local for each intermediate value and each constant. The one with the
/// pointer is not forgotten over them, whether it is read now and then or only at the end.
#[test]
fn unoptimized_code_is_proved() {
    let locals = 200;
    let constants: String = (10..locals)
        .map(|local| {
            let read = format!("(drop (local.get {local}))");
            format!("(local.set {local} (i32.const {local})) {read} {read}")
        })
        .collect();
    let addresses: String = (10..locals)
        .map(|local| {
            let address = format!("(i32.add (local.get 2) (i32.const {local}))");
            format!("(local.set {local} {address}) (drop (local.get {local}))")
        })
        .collect();
    let frame = |body: &str| {
        core_module(&format!(
            "(global (mut i32) (i32.const 65536)) (func $f (local {}) (local.set 0 (global.get 0))
             (local.set 1 (i32.const 64)) (local.set 2 (i32.sub (local.get 0) (local.get 1)))
             (global.set 0 (local.get 2)) {body} (local.set 3 (i32.const 64))
             (local.set 4 (i32.add (local.get 2) (local.get 3))) (global.set 0 (local.get 4)))",
            "i32 ".repeat(locals)
        ))
    };
    for body in [&constants, &addresses, &(constants.clone() + &addresses + &constants)] {
        assert_eq!(frame(body), Ok(()));
    }
    let lost = frame("(local.set 2 (i32.const 64))").expect_err("it is not the pointer");
    assert!(lost.ends_with("it does not put it back"), "{lost}");
}

/// A function without a name is known by its index, its imports counted; and the offset is where
/// the way out is.
#[test]
fn the_place_is_told() {
    let text = "(import \"m\" \"g\" (func)) (global (mut i32) (i32.const 8))
                (func) (func (global.set 0 (i32.const 1)))";
    let bytes = wat::parse_str(format!("(component (core module {text}))")).unwrap();
    let reason = core_module(text).unwrap_err();
    let place = reason.strip_prefix("function 2 of core module 0 (offset 0x").expect("its index");
    let offset = usize::from_str_radix(place.split(')').next().unwrap(), 16).unwrap();
    assert_eq!(bytes[offset - 4..=offset], [0x41, 1, 0x24, 0, 0x0b], "the end after the set");
}

/// Long functions are proved in the time that their length allows, and what is too intricate is
/// refused.
#[test]
fn the_work_is_bounded() {
    let frame = |body: &str| format!("{PROLOGUE} {body} {EPILOGUE} (i32.const 1)");
    let turn = "(loop (if (local.get $p) (then (drop (call $callee)))) (br_if 0 (local.get $q)))";
    let turns = usize::try_from(limits::FUNCTION_BRANCHES_MAX / 3).unwrap();
    let rest = "nop ".repeat(limits::FUNCTION_BODY_BYTES_MAX - 23 * turns);
    assert_eq!(function(&frame(&(turn.repeat(turns) + &rest))), Ok(()));
    // Each loop learns what it changes only from the one inside of it.
    let depth = usize::try_from(limits::FUNCTION_LOOPS_DEEP_MAX).unwrap();
    let locals = "(local.set $x (i32.add (local.get $x) (i32.const 1)))";
    let nested = format!(
        "{}{locals}{}",
        "(loop (local.set $x (i32.const 1)) ".repeat(depth),
        "(br_if 0 (local.get $p)))".repeat(depth)
    );
    assert_eq!(function(&frame(&nested)), Ok(()));
}

/// What costs more than its length allows is refused: here each run of a loop with very many ways
/// back shows one more local that it changes.
#[test]
fn what_is_too_intricate_is_refused() {
    let chained = 15;
    let shift: String = (1..chained)
        .rev()
        .map(|local| format!("(local.set {local} (local.get {}))", local - 1))
        .collect();
    let reset: String =
        (0..chained).map(|local| format!("(local.set {local} (i32.const 0))")).collect();
    let ways_back = "(br_if 0 (i32.const 1))".repeat(1000);
    let text = format!(
        "(global (mut i32) (i32.const 8)) (func $g (result i32) (i32.const 0))
         (func $f (local {}) {reset} (global.set 0 (global.get 0))
           (loop {shift} (local.set 0 (call $g)) {ways_back}))",
        "i32 ".repeat(chained)
    );
    let reason = core_module(&text).unwrap_err();
    assert!(reason.ends_with("writes global 0, and it is too intricate to follow"), "{reason}");
}
