//! `lockstep` as a build of another version would be: the same program, whose engine counts other
//! fuel and so has another profile. For tests of engine changes.

use std::process::ExitCode;

fn main() -> ExitCode {
    lockstep_host::wasm::stand_for_another_build();
    lockstep_host::cli::main()
}
