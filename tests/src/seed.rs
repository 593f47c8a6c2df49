//! The seed of a test's random choices: printed when it fails, given back by `LOCKSTEP_SEED`.

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

/// The command that replays the running test with this seed.
pub fn replay(seed: u64) -> String {
    let test = std::thread::current().name().unwrap_or("main").to_owned();
    format!("LOCKSTEP_SEED={seed} cargo xtask test {test}")
}
