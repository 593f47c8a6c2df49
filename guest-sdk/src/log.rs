//! Lines for the log of the node, for whoever operates it.
//!
//! Not part of the state or of any answer: the node may cut or drop them.

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something is wrong with the guest.
    Error,
    /// Something may become wrong.
    Warn,
    /// Something worth knowing happened.
    Info,
    /// For whoever works on the guest.
    Debug,
    /// For whoever works on the guest, in detail.
    Trace,
}

/// Writes a line to the log of this node. Outside a component it does nothing.
pub fn log(level: Level, message: &str) {
    #[cfg(target_family = "wasm")]
    {
        use crate::bindings::lockstep::guest::log;
        let level = match level {
            Level::Error => log::Level::Error,
            Level::Warn => log::Level::Warn,
            Level::Info => log::Level::Info,
            Level::Debug => log::Level::Debug,
            Level::Trace => log::Level::Trace,
        };
        log::log(level, message);
    }
    #[cfg(not(target_family = "wasm"))]
    let _ = (level, message);
}
