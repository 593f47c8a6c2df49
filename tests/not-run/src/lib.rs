//! The one way in which a test says that it can't run on this machine, for want of a program or a
//! right that it needs. On a machine of a developer it says so and ends; in CI, where `.ci/run` has
//! installed everything, it fails, since nobody reads there what passed.

use std::io::Write as _;

/// The environment variable that CI sets to `true`, as most services do by themselves.
const CI: &str = "CI";

/// Says that the running test is not run, and why. The test returns after it.
///
/// # Panics
/// In CI.
pub fn not_run(reason: &str) {
    let test = std::thread::current().name().unwrap_or("main").to_owned();
    say(&test, reason, std::env::var_os(CI).is_some_and(|value| value == "true"));
}

fn say(test: &str, reason: &str, in_ci: bool) {
    assert!(
        !in_ci,
        "not run: {test}: {reason}; in CI every test runs: .ci/run installs what it needs"
    );
    // Past the capture of the test harness: nobody shall take it for passed.
    let _ = writeln!(std::io::stderr(), "not run: {test}: {reason}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is not run passes on a developer's machine, and fails in CI with the reason.
    #[test]
    fn what_is_not_run_fails_in_ci() {
        say("some_test", "no disk of its own", false);
        let failed = std::panic::catch_unwind(|| say("some_test", "no disk of its own", true));
        let said = failed.expect_err("it fails in CI");
        let said = said.downcast_ref::<String>().expect("it says why");
        assert!(said.starts_with("not run: some_test: no disk of its own;"), "{said}");
    }
}
