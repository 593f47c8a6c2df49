//! One client of a run: asks one thing after the other, by a way of its own, and writes down what
//! it asked and what it was told.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use lockstep_client::{Client, Consistency, Error, Options, Stream};
use lockstep_history::{Action, Operation, Outcome, Reply};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::keys::{Key, Keys};
use super::recorder::Recorder;
use crate::kv;

/// How long an operation may take before its outcome counts as unknown.
const ASK_LIMIT: Duration = Duration::from_millis(1_500);
/// Between two operations of a client: so many clients leave the processors to the cluster.
const PACE: Duration = Duration::from_millis(8);
/// Operations after which a client that keeps to one node goes to another.
const STAY: u32 = 40;
/// One of so many values is long.
const LONG_ONE_IN: usize = 20;
/// Bytes of a long one.
const LONG_BYTES_MAX: usize = 60_000;
/// What makes a value long.
const FILLER: &str = "~";

/// By which way a client reaches the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It follows the leader, with a call for each command.
    Leader,
    /// It follows the leader, with commands on one stream.
    Stream,
    /// It keeps to one node for a while, which forwards.
    OneNode,
    /// It asks another node each time, which forwards.
    AnyNode,
}

/// A client under way.
pub(super) struct Asker {
    number: u32,
    way: Way,
    random: Rng,
    keys: Arc<Keys>,
    recorder: Arc<Recorder>,
    /// Follows the leader.
    client: Client,
    stream: Stream,
    /// Each keeps to one node.
    nodes: Vec<Client>,
    node: usize,
    stays: u32,
    written: u64,
}

impl Asker {
    /// The client of this number; numbers go round the ways.
    pub(super) fn new(
        number: u32,
        seed: u64,
        endpoints: &[String],
        keys: Arc<Keys>,
        recorder: Arc<Recorder>,
    ) -> Self {
        let connect = |endpoints: &[String]| {
            let options = Options { timeout: ASK_LIMIT, ..Options::default() };
            Client::with_options(endpoints.iter().cloned(), options).expect("addresses")
        };
        let client = connect(endpoints);
        let ways = [Way::Leader, Way::Stream, Way::OneNode, Way::AnyNode];
        let mut random = Rng::with_seed(seed ^ (u64::from(number) + 1).rotate_left(32));
        Self {
            number,
            way: ways[usize::try_from(number).expect("few clients") % ways.len()],
            node: recorder.pick_node(&mut random),
            random,
            keys,
            recorder,
            stream: client.stream(),
            client,
            nodes: endpoints.iter().map(|one| connect(std::slice::from_ref(one))).collect(),
            stays: 0,
            written: 0,
        }
    }

    /// Asks until the run stops.
    ///
    /// # Panics
    /// When it is told what no guest says.
    pub(super) async fn run(mut self) {
        let mut pace: Interval = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.recorder.stopped() {
            pace.tick().await;
            let key = self.keys.pick(&mut self.random);
            let action = if key.past { Action::Get } else { self.action() };
            // Which node a stale read asks is known only of clients that choose one.
            let chooses = matches!(self.way, Way::OneNode | Way::AnyNode);
            let stale = action == Action::Get && chooses && self.random.u32(0..4) == 0;
            let action = if stale { Action::GetStale } else { action };
            self.ask(key, action).await;
        }
    }

    /// What to ask next: half reads, and writes that mostly say what they saw.
    fn action(&mut self) -> Action {
        self.written += 1;
        let value = format!("{}.{}", self.number, self.written);
        match self.random.u32(0..20) {
            0 => Action::Set(value),
            1 | 2 => Action::SetAbsent(value),
            3 | 4 => Action::SwapAbsent(value),
            5 => Action::SwapPresent(value),
            6 | 7 => Action::Delete,
            8 | 9 => Action::GetLogged,
            10..14 => Action::Swap(value),
            _ => Action::Get,
        }
    }

    async fn ask(&mut self, key: Key, action: Action) {
        let called_us = self.recorder.now_us();
        let answer = self.answer(&key.name(), &action).await;
        let ended_us = self.recorder.now_us();
        let note = answer.as_ref().err().map(|error| format!("{}: {error}", error.reason));
        let outcome = self.outcome(&action, answer);
        let reads = matches!(action, Action::Get | Action::GetStale);
        if outcome == Outcome::Unknown && !reads {
            self.keys.unknown(key);
        }
        let operation = Operation {
            client: self.number,
            route: self.route(),
            key: key.name(),
            action,
            called_us,
            ended_us,
            outcome: outcome.clone(),
            note: note.unwrap_or_default(),
        };
        self.recorder.operation(operation);
        self.stays += 1;
        let moves = outcome != Outcome::Refused && self.stays < STAY;
        if self.way == Way::AnyNode || (self.way == Way::OneNode && !moves) {
            self.node = self.recorder.pick_node(&mut self.random);
            self.stays = 0;
        }
    }

    /// Asks; the bytes of the reply, and its index.
    async fn answer(&self, key: &str, action: &Action) -> Result<(Vec<u8>, u64, bool), Error> {
        let command = command(key, action);
        let client = match self.way {
            Way::Leader | Way::Stream => &self.client,
            Way::OneNode | Way::AnyNode => &self.nodes[self.node],
        };
        let consistency = match action {
            Action::Get => Some(Consistency::Linearizable),
            Action::GetStale => Some(Consistency::Stale),
            _ => None,
        };
        if let Some(consistency) = consistency {
            let answered = client.query(kv::MACHINE, command, consistency).await?;
            return Ok((answered.reply.to_vec(), answered.applied_index, answered.rejected));
        }
        let executed = match self.way {
            Way::Stream => self.stream.execute(kv::MACHINE, command).await?,
            _ => client.execute(kv::MACHINE, command).await?,
        };
        Ok((executed.reply.to_vec(), executed.index, executed.rejected))
    }

    fn outcome(&self, action: &Action, answer: Result<(Vec<u8>, u64, bool), Error>) -> Outcome {
        match answer {
            Ok((reply, index, false)) => Outcome::Answered { reply: read(&reply), index },
            Ok((reply, _, true)) => {
                let text = String::from_utf8_lossy(&reply).into_owned();
                panic!("client {}: {action} is rejected: {text}", self.number);
            }
            Err(error) => match error.outcome {
                lockstep_client::Outcome::NotApplied => Outcome::Refused,
                lockstep_client::Outcome::Unknown => Outcome::Unknown,
                lockstep_client::Outcome::AppliedError => {
                    panic!("client {}: {action} comes to an error: {error}", self.number)
                }
            },
        }
    }

    fn route(&self) -> String {
        match self.way {
            Way::Leader => "leader".to_owned(),
            Way::Stream => "stream".to_owned(),
            Way::OneNode => format!("node {}", self.node + 1),
            Way::AnyNode => format!("any, node {}", self.node + 1),
        }
    }
}

/// A linearizable read of one key, for the end of a run.
pub(super) fn reading(key: &str, called_us: u64, ended_us: u64, told: (&[u8], u64)) -> Operation {
    Operation {
        client: u32::MAX,
        route: "at the end".to_owned(),
        key: key.to_owned(),
        action: Action::Get,
        called_us,
        ended_us,
        outcome: Outcome::Answered { reply: read(told.0), index: told.1 },
        note: String::new(),
    }
}

fn command(key: &str, action: &Action) -> bytes::Bytes {
    let value = action.value().map(whole).unwrap_or_default();
    kv::text(&match action {
        Action::Set(_) => format!("SET {key} {value}"),
        Action::SetAbsent(_) => format!("SET {key} {value} NX"),
        Action::Swap(_) => format!("SET {key} {value} GET"),
        Action::SwapAbsent(_) => format!("SET {key} {value} NX GET"),
        Action::SwapPresent(_) => format!("SET {key} {value} XX GET"),
        Action::Delete => format!("DEL {key}"),
        Action::GetLogged | Action::Get | Action::GetStale => format!("GET {key}"),
    })
}

/// A value as it is in the cluster: its name, and behind some names so much more that entries and
/// states of every size come up. What is read must have its whole length.
fn whole(name: &str) -> String {
    let number: usize = name.rsplit('.').next().and_then(|last| last.parse().ok()).unwrap_or(0);
    let more = if number.is_multiple_of(LONG_ONE_IN) { number * 997 % LONG_BYTES_MAX } else { 0 };
    format!("{name}{}", FILLER.repeat(more))
}

/// What a reply says.
///
/// # Panics
/// When it is none that this guest gives to these commands.
fn read(reply: &[u8]) -> Reply {
    match reply.first() {
        Some(b'+') if reply == b"+OK\r\n" => Reply::Done,
        Some(b':') => {
            Reply::Count(u64::try_from(kv::integer(reply)).expect("a count is not negative"))
        }
        _ => Reply::Value(kv::value(reply).map(|value| {
            let name = value.trim_end_matches(FILLER);
            assert!(value == whole(name), "{name} is cut or mixed: {} bytes", value.len());
            name.to_owned()
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value comes back as its name; one that is cut, or mixed with another, is found.
    #[test]
    fn values_are_whole() {
        for name in ["1.1", "3.20", "7.12340"] {
            let reply = kv::bulk(&whole(name));
            assert_eq!(read(&reply), Reply::Value(Some(name.to_owned())));
        }
        assert!(whole("3.20").len() > 1_000, "some are long");
        let cut = kv::bulk(&whole("3.20")[..500]);
        assert!(std::panic::catch_unwind(|| read(&cut)).is_err(), "it is cut");
        let mixed = kv::bulk(&whole("3.20").replacen("3.20", "3.40", 1));
        assert!(std::panic::catch_unwind(|| read(&mixed)).is_err(), "it is mixed");
    }
}
