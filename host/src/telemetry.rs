//! Logging: where it goes, in which form, and from which level on. The names of spans and metrics
//! will stand here too, in one place.
//!
//! Logs go to standard error, so that what a command prints can be piped.

use std::str::FromStr as _;

use tracing_subscriber::EnvFilter;

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A line for people.
    Text,
    /// A JSON object in each line.
    Json,
}

impl Format {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The level is none, nor a list of `module=level`.
    #[error("--log-level {text:?} is not one of error, warn, info, debug, trace: {reason}")]
    Level {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Logging was set up before.
    #[error("logging is set up already")]
    Twice,
}

/// Sets up logging for the process. `level` is a level, or a filter as `info,lockstep_host=debug`.
pub fn init(level: &str, format: Format) -> Result<(), Error> {
    let filter = EnvFilter::from_str(level)
        .map_err(|error| Error::Level { text: level.to_owned(), reason: error.to_string() })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set = match format {
        Format::Text => builder.with_ansi(false).try_init(),
        Format::Json => builder.json().try_init(),
    };
    set.map_err(|_| Error::Twice)
}
