//! The tasks that check: `test`, and `ci`, which is everything.
//!
//! The quick checks come first. Tests and daemon are built by one call of cargo, so that no
//! dependency is compiled twice for two sets of features.

use anyhow::Result;

use crate::step;
use crate::{run, tidy};

/// Builds everything and runs all tests, or those that the arguments select.
pub(crate) fn test(arguments: &[String]) -> Result<()> {
    run::guests(&[])?;
    step::run(
        "building the daemon and the tests (some minutes the first time)",
        step::cargo(&["build", "--workspace", "--all-targets"]),
        "the compiler's message is above",
    )?;
    let mut tests = step::cargo(&["test", "--workspace", "--no-fail-fast"]);
    tests.args(arguments);
    step::run("running the tests", tests, "the failed tests and how to replay them are above")
}

/// Everything that must hold before a change lands.
pub(crate) fn ci() -> Result<()> {
    step::run(
        "checking the formatting",
        step::cargo(&["fmt", "--all", "--check"]),
        "run `cargo fmt --all` (`rustup component add rustfmt` if it is missing)",
    )?;
    tidy::run()?;
    step::run(
        "checking with clippy, warnings denied",
        step::cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]),
        "its findings are above (`rustup component add clippy` if it is missing)",
    )?;
    test(&[])
}
