//! One thing that a client asked of one key, and what came of it.
//!
//! Invariant of a history: a value is written by one operation at most. A value that is read thus
//! names the write that it comes from, and a write that is applied twice shows.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a client asked of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Write this value: `SET key value`. Answered with [`Reply::Done`].
    Set(String),
    /// Write this value where there is none: `SET key value NX`. Answered with [`Reply::Done`], or
    /// with the value nil where there is one.
    SetAbsent(String),
    /// Write this value and say what it replaced: `SET key value GET`.
    Swap(String),
    /// Write this value where there is none, and say what is there: `SET key value NX GET`.
    SwapAbsent(String),
    /// Replace the value that is there, and say which: `SET key value XX GET`.
    SwapPresent(String),
    /// Remove the value: `DEL key`. Answered with the number of values removed.
    Delete,
    /// Say what the value is, through the log: `GET key` as a command.
    GetLogged,
    /// Say what the value is, as a linearizable query.
    Get,
    /// Say what the value is on one node, as far as that has applied the log.
    GetStale,
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is done: `+OK`.
    Done,
    /// A value, or none.
    Value(Option<String>),
    /// A number.
    Count(u64),
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It took effect between its call and its end.
    Answered {
        /// What the client was told.
        reply: Reply,
        /// Where it stands in the log; of a query, how far the machine had applied it.
        index: u64,
    },
    /// It has had no effect and never will have one.
    Refused,
    /// It takes effect at some moment after its call, or never.
    Unknown,
}

/// One thing that a client asked of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Which of the clients asked.
    pub client: u32,
    /// How the client reached the cluster, for people.
    pub route: String,
    /// The key.
    pub key: String,
    /// What was asked.
    pub action: Action,
    /// When it was asked, in microseconds from the start of the run.
    pub called_us: u64,
    /// When the client had its answer, or gave up.
    pub ended_us: u64,
    /// What came of it.
    pub outcome: Outcome,
    /// What the client was told besides, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// Something that was done to the cluster meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it was done, in microseconds from the start of the run.
    pub at_us: u64,
    /// What was done, for people.
    pub text: String,
}

/// Everything that the clients of one run asked, in any order, and what was done to the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// How the run is repeated, for people.
    pub title: String,
    /// What the clients asked.
    pub operations: Vec<Operation>,
    /// What was done to the cluster.
    pub events: Vec<Event>,
}

impl Action {
    /// The value that it writes, if it writes one.
    pub fn value(&self) -> Option<&str> {
        match self {
            Self::Set(value)
            | Self::SetAbsent(value)
            | Self::Swap(value)
            | Self::SwapAbsent(value)
            | Self::SwapPresent(value) => Some(value),
            Self::Delete | Self::GetLogged | Self::Get | Self::GetStale => None,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(value) => write!(f, "SET {value}"),
            Self::SetAbsent(value) => write!(f, "SET {value} NX"),
            Self::Swap(value) => write!(f, "SET {value} GET"),
            Self::SwapAbsent(value) => write!(f, "SET {value} NX GET"),
            Self::SwapPresent(value) => write!(f, "SET {value} XX GET"),
            Self::Delete => write!(f, "DEL"),
            Self::GetLogged => write!(f, "GET (logged)"),
            Self::Get => write!(f, "GET"),
            Self::GetStale => write!(f, "GET (stale)"),
        }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => write!(f, "OK"),
            Self::Value(None) => write!(f, "nil"),
            Self::Value(Some(value)) => write!(f, "{value}"),
            Self::Count(count) => write!(f, "{count}"),
        }
    }
}

impl fmt::Display for Operation {
    /// One line: when, who, by which way, what, and what came of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (called, ended) = (Seconds(self.called_us), Seconds(self.ended_us));
        write!(f, "{called} to {ended}  client {:2} {:12} ", self.client, self.route)?;
        write!(f, "{}: {}", self.key, self.action)?;
        match &self.outcome {
            Outcome::Answered { reply, index } => write!(f, " -> {reply} (index {index})"),
            Outcome::Refused => write!(f, " -> refused, not applied: {}", self.note),
            Outcome::Unknown => write!(f, " -> outcome unknown: {}", self.note),
        }
    }
}

/// Microseconds, printed as seconds.
pub(crate) struct Seconds(pub(crate) u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>4}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}
