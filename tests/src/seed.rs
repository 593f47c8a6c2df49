//! The seed of a test's random choices: printed when it fails, given back by `LOCKSTEP_SEED`.

use std::sync::Mutex;

/// The seed to use: that of the environment, else a new one.
///
/// # Panics
/// When `LOCKSTEP_SEED` is no number.
pub fn choose() -> u64 {
    match std::env::var("LOCKSTEP_SEED") {
        Ok(text) => text.parse().expect("LOCKSTEP_SEED is a number"),
        Err(_) => fastrand::u64(..),
    }
}

/// What replays what runs, where that is no test.
static COMMAND: Mutex<Option<String>> = Mutex::new(None);

/// Says by which command the run that begins is replayed, its seed included.
///
/// # Panics
/// Never: nobody panics while they hold the lock.
pub fn replayed_by(command: String) {
    *COMMAND.lock().expect("no holder panics") = Some(command);
}

/// The command that replays what runs with this seed.
///
/// # Panics
/// Never: nobody panics while they hold the lock.
pub fn replay(seed: u64) -> String {
    if let Some(command) = &*COMMAND.lock().expect("no holder panics") {
        return command.clone();
    }
    let test = std::thread::current().name().unwrap_or("main").to_owned();
    format!("LOCKSTEP_SEED={seed} cargo xtask test {test}")
}
