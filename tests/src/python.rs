//! Python with grpcio, for clients that are not ours. Where it is missing, a test says "not run",
//! and fails in CI.

use std::process::{Command, Stdio};
use std::sync::OnceLock;

use lockstep_not_run::not_run;

/// A Python that has grpcio; without one, says that the test is not run, and why.
pub fn with_grpc() -> Option<&'static str> {
    static FOUND: OnceLock<Option<&'static str>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        ["python3", "/usr/bin/python3"].into_iter().find(|python| {
            let mut import = Command::new(python);
            import.args(["-c", "import grpc"]).stdout(Stdio::null()).stderr(Stdio::null());
            import.status().is_ok_and(|status| status.success())
        })
    });
    if found.is_none() {
        not_run("no python3 with grpcio");
    }
    *found
}
