//! `lockstep`: parses the command line and runs one subcommand.
//!
//! Exit codes: 0 done, 1 failed (one message on standard error), 2 wrong usage.

use std::process::ExitCode;

fn main() -> ExitCode {
    lockstep_host::cli::main()
}
