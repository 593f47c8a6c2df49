//! Rules on the text of one file: its header, its length, and words that must not be in it.

use super::Finding;

/// Files are looked at whose names end so; `run` is `.ci/run`.
pub(super) const EXTENSIONS: &[&str] =
    &[".rs", ".md", ".toml", ".proto", ".wit", ".sh", "run", ".yml"];

/// Longest file of code, in lines.
const FILE_LINES_MAX: usize = 499;
/// Longest line of code, and of prose in Markdown, in characters.
const LINE_CHARACTERS_MAX: usize = 100;
/// Longest README, in lines.
const README_LINES_MAX: usize = 150;

/// The one file of tests that may wait for time to pass: everything else waits for a condition
/// through it.
const MAY_SLEEP: &str = "tests/src/wait.rs";
/// Files that may hold unsafe code, each with its reason in the exception itself.
const MAY_BE_UNSAFE: &[&str] = &[
    "guest-sdk/src/",
    "host/src/wasm/bindings.rs",
    "host/src/wasm/cache.rs",
    "host/src/wasm/memory.rs",
    "host/src/wasm/memory/",
    "tests/guests/",
];
/// Files of generated code: what it does to lints differs from target to target.
const GENERATED: &[&str] = &["guest-sdk/src/bindings.rs", "host/src/wasm/bindings.rs"];
/// It spells what it looks for.
const SPELLS_THE_RULES: &str = "xtask/src/tidy/";

/// Checks one file.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut complain = |line: usize, rule: &str| {
        findings.push(Finding { path: path.to_owned(), line, rule: rule.to_owned() });
    };
    let lines = text.lines().count();
    if path.ends_with(".rs") {
        if !text.starts_with("//! ") {
            complain(1, "a file begins with `//!`: what it is, and what it does not do");
        }
        if lines > FILE_LINES_MAX {
            complain(lines, "a file has fewer than 500 lines: split it");
        }
    }
    if path == "README.md" && lines > README_LINES_MAX {
        complain(lines, "the README has at most 150 lines");
    }
    if path.ends_with(".md") {
        long_prose(text).for_each(|line| complain(line, "prose has at most 100 characters a line"));
    }
    if is_member_manifest(path) && !text.contains("[lints]\nworkspace = true") {
        complain(1, "a member keeps the workspace's lints: `[lints]` `workspace = true`");
    }
    if !path.starts_with(SPELLS_THE_RULES) {
        let mut in_tests = is_test(path);
        for (number, line) in text.lines().enumerate() {
            in_tests |= line.trim_start().starts_with("#[cfg(test)]");
            forbidden(path, line, in_tests).into_iter().for_each(|rule| complain(number + 1, rule));
        }
    }
    findings
}

/// The rules that one line breaks.
fn forbidden(path: &str, line: &str, in_tests: bool) -> Vec<&'static str> {
    let code = path.ends_with(".rs");
    let statement = line.trim_start();
    let comment = statement.starts_with("//");
    let mut broken = Vec::new();
    let mut rule = |is_broken: bool, text| broken.extend(is_broken.then_some(text));
    rule(names_home(line), "no absolute path of somebody's machine");
    rule(code && line.chars().count() > LINE_CHARACTERS_MAX, "a line has at most 100 characters");
    let code = code && !comment;
    rule(code && statement.starts_with("#[ignore"), "a test runs or is deleted: no #[ignore]");
    rule(
        code && in_tests && path != MAY_SLEEP && calls(line, "sleep"),
        "no sleep in tests: wait for a condition (lockstep_tests::wait), with a deadline",
    );
    rule(
        code && !GENERATED.contains(&path)
            && (statement.starts_with("#[allow(") || statement.starts_with("#![allow(")),
        "an exception from a lint is an `expect` with a reason",
    );
    rule(
        code && is_unsafe(line) && !MAY_BE_UNSAFE.iter().any(|place| path.starts_with(place)),
        "no unsafe code here",
    );
    broken
}

/// The lines of Markdown, counted from 1, that are too long. A row of a table and a line of a code
/// block cannot be broken, so they are let pass.
fn long_prose(text: &str) -> impl Iterator<Item = usize> {
    let mut in_code = false;
    (1..).zip(text.lines()).filter_map(move |(number, line)| {
        let begins_with = |mark: &str| line.trim_start().starts_with(mark);
        let is_fence = begins_with("```");
        in_code ^= is_fence;
        let is_prose = !in_code && !is_fence && !begins_with("|");
        (is_prose && line.chars().count() > LINE_CHARACTERS_MAX).then_some(number)
    })
}

/// The manifest of a crate in a folder directly under the workspace's.
fn is_member_manifest(path: &str) -> bool {
    path.strip_suffix("/Cargo.toml").is_some_and(|folder| !folder.contains('/'))
}

/// Files that hold nothing but tests.
pub(super) fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("tests.rs")
}

/// True when `name` is called, and not only a part of another name.
fn calls(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = &line[start + name.len()..];
        !before.is_some_and(|character| character.is_alphanumeric() || character == '_')
            && (after.starts_with('(') || after.starts_with("_until("))
    })
}

/// True when unsafe code begins here, or the lint against it is lifted.
fn is_unsafe(line: &str) -> bool {
    line.contains("(unsafe_code")
        || ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
            .iter()
            .any(|text| line.contains(text))
}

/// True when the line holds a path into a home or work folder.
fn names_home(line: &str) -> bool {
    ["/home/", "/root/", "/Users/", "/work/"].iter().any(|folder| {
        line.match_indices(folder).any(|(start, _)| {
            let before = line[..start].chars().next_back();
            !before
                .is_some_and(|character| character.is_alphanumeric() || "-_.}".contains(character))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expect_rules(path: &str, text: &str, expected: &[&str]) {
        let found = check(path, text);
        assert_eq!(found.len(), expected.len(), "{path}: {text:?}: {found:?}");
        for (finding, part) in found.iter().zip(expected) {
            assert!(finding.rule.contains(part), "{path}: {text:?}: {finding}");
        }
    }

    /// Every rule finds what it is for, and lets its neighbours pass.
    #[test]
    fn each_rule_finds_its_own() {
        let rows: &[(&str, &str, &[&str])] = &[
            ("host/src/a.rs", "//! A.\nfn f() {}", &[]),
            ("host/src/a.rs", "fn f() {}", &["begins with"]),
            ("host/src/a.rs", "//! A.\n#[test]\n#[ignore]\nfn f() {}", &["#[ignore]"]),
            ("host/src/a.rs", "//! A.\n// #[ignore] is not used", &[]),
            ("host/src/a.rs", "//! A.\nfn f() { sleep(s).await }", &[]),
            ("host/src/a.rs", "//! A.\n#[cfg(test)]\nfn f() { sleep(s).await }", &["no sleep"]),
            ("tests/src/a.rs", "//! A.\ntokio::time::sleep_until(s)", &["no sleep"]),
            ("tests/src/wait.rs", "//! A.\ntokio::time::sleep(s)", &[]),
            ("host/tests/a.rs", "//! A.\nfn no_sleep() { oversleep(1) }", &[]),
            ("host/src/a.rs", "//! A.\n#![allow(dead_code)]", &["`expect` with a reason"]),
            ("host/src/a.rs", "//! A.\nunsafe { f() }", &["no unsafe"]),
            ("host/src/a.rs", "//! A.\n#[expect(unsafe_code, reason = \"\")]", &["no unsafe"]),
            ("guest-sdk/src/a.rs", "//! A.\nunsafe { f() }", &[]),
            ("docs/a.md", "see /home/me/x", &["absolute path"]),
            ("docs/a.md", "see https://example.org/work/x and /var/lib/lockstep", &[]),
            ("docs/a.md", "see $HOME/work/x", &[]),
            ("host/Cargo.toml", "[package]", &["workspace's lints"]),
            ("host/Cargo.toml", "[lints]\nworkspace = true\n", &[]),
            ("Cargo.toml", "[workspace]", &[]),
        ];
        rows.iter().for_each(|(path, text, expected)| expect_rules(path, text, expected));
    }

    /// Lengths are bounded, and the bound itself is allowed.
    #[test]
    fn lengths_are_bounded() {
        let file = |lines: usize| format!("//! A.\n{}", "\n".repeat(lines - 1));
        expect_rules("a.rs", &file(499), &[]);
        expect_rules("a.rs", &file(500), &["fewer than 500"]);
        expect_rules("README.md", &"x\n".repeat(150), &[]);
        expect_rules("README.md", &"x\n".repeat(151), &["at most 150"]);
        let line = |characters: usize| format!("//! {}", "é".repeat(characters - 4));
        expect_rules("a.rs", &line(100), &[]);
        expect_rules("a.rs", &line(101), &["at most 100 characters"]);
    }

    /// Prose in Markdown is broken at 100 characters; tables and code blocks are as wide as they
    /// are, and what follows a code block is prose again.
    #[test]
    fn prose_in_markdown_is_bounded() {
        let prose = |characters: usize| "é".repeat(characters);
        let long = prose(101);
        expect_rules("docs/a.md", &prose(100), &[]);
        expect_rules("docs/a.md", &long, &["prose has at most 100"]);
        expect_rules("docs/a.md", &format!("- {long}"), &["prose has at most 100"]);
        expect_rules("docs/a.md", &format!("| {long} |\n  | {long} |"), &[]);
        expect_rules("docs/a.md", &format!("```\n{long}\n```\n"), &[]);
        expect_rules("docs/a.md", &format!("   ```rust\n{long}\n   ```\n"), &[]);
        expect_rules("docs/a.md", &format!("```\nx\n```\n{long}"), &["prose has at most 100"]);
        let found = check("docs/a.md", &format!("short\n\n{long}\nshort"));
        assert_eq!(found.iter().map(|finding| finding.line).collect::<Vec<_>>(), [3]);
    }
}
