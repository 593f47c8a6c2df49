//! What is done to the cluster of a run: one trouble after the other, some of them within another.
//!
//! A trouble is made, lasts for a moment, and is taken back. Which one, to whom and for how long
//! follows from the seed, as far as the cluster is what it was.

use std::time::Duration;

use lockstep_proto::v1::StatusReply;
use lockstep_proto::v1::status_reply::Role;
use rustix::process::Signal;
use tokio::task::JoinHandle;

use super::Run;
use crate::cluster::SOON;
use crate::node::summary;
use crate::program;
use crate::wait::{throughout, until};

/// How long a trouble lasts, in milliseconds: mostly too short for an election, and sometimes long
/// enough for two.
const LASTS_MS: std::ops::Range<u64> = 50..1_200;
const LASTS_LONG_MS: std::ops::Range<u64> = 1_200..4_500;
/// One of so many lasts long.
const LONG_ONE_IN: u32 = 3;
/// How long a graceful stop may take, in whatever state the cluster is.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Answers that show that the cluster goes on.
const ANSWERS: u64 = 30;
/// How far a clock is set wrong, in milliseconds.
const CLOCK_MS: [i64; 8] = [700, -700, 5_000, -5_000, 60_000, -3_600_000, 3_600_000, 86_400_000];
/// How much longer a sync of a slow disk takes, in milliseconds.
const SYNC_MS: std::ops::Range<u64> = 20..1_000;
/// Seconds that a change of the membership may take.
const CHANGE_SECONDS: &str = "20";

/// What is done in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Processes end, freeze and restart.
    Crashes,
    /// Ways between nodes are cut, in one direction or both; leadership moves.
    Network,
    /// Members come and go, clocks jump, leadership moves; processes end meanwhile.
    Changes,
    /// All of it.
    Everything,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Crashes, Self::Network, Self::Changes, Self::Everything];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crashes => "crashes",
            Self::Network => "network",
            Self::Changes => "changes",
            Self::Everything => "everything",
        }
    }

    pub(super) fn changes_members(self) -> bool {
        matches!(self, Self::Changes | Self::Everything)
    }

    fn troubles(self) -> Vec<Trouble> {
        use Trouble::{
            Checkpoint, Clock, Deaf, Isolate, IsolateLeader, KillAll, KillLeader, KillOne, Mute,
            OneWay, PauseLeader, PauseOne, Replace, SlowDisk, Stop, Transfer,
        };
        let crashes =
            [KillLeader, KillOne, KillAll, PauseLeader, PauseOne, Stop, SlowDisk, Checkpoint];
        let network = [OneWay, Deaf, Mute, Isolate, IsolateLeader, Transfer, PauseLeader];
        let changes = [Replace, Replace, Clock, Transfer, KillLeader, Checkpoint];
        match self {
            Self::Crashes => crashes.to_vec(),
            Self::Network => network.to_vec(),
            Self::Changes => changes.to_vec(),
            Self::Everything => [&crashes[..], &network, &changes].concat(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Trouble {
    KillLeader,
    KillOne,
    KillAll,
    PauseLeader,
    PauseOne,
    /// SIGTERM.
    Stop,
    /// What the leader sends to another is lost, or what that one sends to it.
    OneWay,
    /// What all others send to the leader is lost.
    Deaf,
    /// What the leader sends to all others is lost.
    Mute,
    /// One node is cut off from all others.
    Isolate,
    IsolateLeader,
    /// Leadership is handed to another.
    Transfer,
    /// A member makes place for a new one.
    Replace,
    /// The wall clock of a member is set wrong.
    Clock,
    /// Syncs of the leader's log take their time.
    SlowDisk,
    /// A checkpoint at once.
    Checkpoint,
}

/// How a trouble is taken back.
enum Remedy {
    Nothing,
    Start(Vec<u64>),
    Resume(u64),
    Heal,
    SetClock(u64),
    SpeedUp(u64),
    /// Calls of the command line end by themselves.
    Await(JoinHandle<Vec<(String, program::Ran)>>),
}

impl Run {
    /// Makes a trouble, lets it last, and takes it back. `depth` others go on meanwhile.
    pub(super) async fn trouble(&mut self, kind: Kind, depth: u32) {
        let troubles = kind.troubles();
        let trouble = troubles[self.cluster.random.usize(0..troubles.len())];
        self.troubles += 1;
        let remedy = self.make_trouble(trouble).await;
        self.lasts().await;
        if depth == 0 && self.cluster.random.u32(0..3) == 0 {
            Box::pin(self.trouble(kind, depth + 1)).await;
        }
        self.take_back(remedy).await;
    }

    /// Lets a moment pass.
    async fn lasts(&mut self) {
        let random = &mut self.cluster.random;
        let range = if random.u32(0..LONG_ONE_IN) == 0 { LASTS_LONG_MS } else { LASTS_MS };
        let lasts = Duration::from_millis(random.u64(range));
        throughout("every client is told what a guest says", lasts, async || self.clients_run())
            .await;
    }

    async fn make_trouble(&mut self, trouble: Trouble) -> Remedy {
        let one = self.one();
        let leader = self.leader_or(one).await;
        self.recorder.event(format!("{trouble:?}: leader {leader}, member {one}"));
        match trouble {
            Trouble::KillLeader => self.kill(vec![leader]).await,
            Trouble::KillOne => self.kill(vec![one]).await,
            Trouble::KillAll => self.kill(self.members.clone()).await,
            Trouble::PauseLeader => self.pause(leader).await,
            Trouble::PauseOne => self.pause(one).await,
            Trouble::Stop => {
                let node = self.cluster.node_mut(one);
                if !node.runs() || node.is_paused() {
                    return Remedy::Nothing;
                }
                node.stop_by(Signal::TERM, STOP_LIMIT).await;
                Remedy::Start(vec![one])
            }
            Trouble::OneWay => {
                let other = self.other_than(leader);
                let hears = self.cluster.random.bool();
                self.cut_one_way(leader, &[other], hears)
            }
            Trouble::Deaf => self.cut_one_way(leader, &self.members, false),
            Trouble::Mute => self.cut_one_way(leader, &self.members, true),
            Trouble::Isolate => {
                self.cluster.isolate(one);
                Remedy::Heal
            }
            Trouble::IsolateLeader => {
                self.cluster.isolate(leader);
                Remedy::Heal
            }
            Trouble::Transfer => {
                let to = self.other_than(leader).to_string();
                self.command(vec![vec!["cluster", "transfer", &to, "--timeout", "5"]])
            }
            Trouble::Checkpoint => self.command(vec![vec!["snapshot", "--timeout", "5"]]),
            Trouble::Clock => {
                let offset_ms = CLOCK_MS[self.cluster.random.usize(0..CLOCK_MS.len())];
                self.recorder.event(format!("the clock of {one} is {offset_ms} ms ahead"));
                self.cluster.node(one).clock().set_ahead_ms(offset_ms);
                Remedy::SetClock(one)
            }
            Trouble::SlowDisk => {
                let delay_ms = self.cluster.random.u64(SYNC_MS);
                self.recorder.event(format!("a sync of {leader} takes {delay_ms} ms more"));
                self.cluster.node(leader).faults().set(&format!("sync /log/ delay {delay_ms}"));
                Remedy::SpeedUp(leader)
            }
            Trouble::Replace => self.replace(one).await,
        }
    }

    async fn take_back(&mut self, remedy: Remedy) {
        match remedy {
            Remedy::Nothing => {}
            Remedy::Start(ids) => {
                self.recorder.event(format!("start {ids:?}"));
                let ids: Vec<u64> =
                    ids.into_iter().filter(|id| self.members.contains(id)).collect();
                self.cluster.start_those(|id| ids.contains(&id)).await;
            }
            Remedy::Resume(id) => {
                self.recorder.event(format!("resume {id}"));
                if self.cluster.node_mut(id).runs() {
                    self.cluster.node(id).resume();
                }
            }
            Remedy::Heal => {
                self.recorder.event("heal".to_owned());
                self.cluster.heal();
            }
            Remedy::SetClock(id) => {
                self.recorder.event(format!("the clock of {id} is right"));
                self.cluster.node(id).clock().set_ahead_ms(0);
            }
            Remedy::SpeedUp(id) => {
                self.recorder.event(format!("the disk of {id} is quick"));
                self.cluster.node(id).faults().clear();
            }
            Remedy::Await(calls) => {
                for (call, ran) in calls.await.expect("the command line ends") {
                    let said = ran.err.lines().next().unwrap_or_default();
                    self.recorder.event(format!("{call}: exit code {:?} {said}", ran.code));
                }
            }
        }
    }

    async fn kill(&mut self, ids: Vec<u64>) -> Remedy {
        for id in &ids {
            if self.cluster.node_mut(*id).runs() {
                self.cluster.node_mut(*id).kill().await;
            }
        }
        Remedy::Start(ids)
    }

    /// Loses what a node sends to others, while it hears them; or what they send to it.
    fn cut_one_way(&self, id: u64, others: &[u64], hears: bool) -> Remedy {
        for &other in others {
            let (from, to) = if hears { (id, other) } else { (other, id) };
            self.recorder.event(format!("what {from} sends to {to} is lost"));
            self.cluster.cut_one_way(from, to);
        }
        Remedy::Heal
    }

    async fn pause(&mut self, id: u64) -> Remedy {
        if !self.cluster.node_mut(id).runs() {
            return Remedy::Nothing;
        }
        self.cluster.node_mut(id).pause().await;
        Remedy::Resume(id)
    }

    /// Has a new node take the place of a member, as an operator would.
    async fn replace(&mut self, old: u64) -> Remedy {
        let fresh = self.cluster.nodes.iter().find(|node| !node.was_started());
        let Some(new) = fresh.map(|node| node.id) else { return Remedy::Nothing };
        self.cluster.node_mut(new).start().await;
        self.members.push(new);
        let (address, new) = (self.cluster.node(new).client_addr.clone(), new.to_string());
        let old = old.to_string();
        self.recorder.event(format!("node {new} takes the place of {old}"));
        let timeout = ["--timeout", CHANGE_SECONDS].as_slice();
        let remove = [["cluster", "remove", &old].as_slice(), timeout].concat();
        let at_once = self.cluster.random.bool();
        self.command(if at_once {
            vec![[["cluster", "add", &address].as_slice(), timeout].concat(), remove]
        } else {
            vec![
                [["cluster", "add", &address, "--learner"].as_slice(), timeout].concat(),
                [["cluster", "promote", &new].as_slice(), timeout].concat(),
                remove,
            ]
        })
    }

    /// Calls the command line, one call after the other up to the first that fails, while other
    /// things go on.
    fn command(&self, calls: Vec<Vec<&str>>) -> Remedy {
        let endpoints = self.cluster.endpoints();
        let owned = |call: Vec<&str>| call.into_iter().map(str::to_owned).collect();
        let calls: Vec<Vec<String>> = calls.into_iter().map(owned).collect();
        Remedy::Await(tokio::spawn(async move {
            let mut ended = Vec::new();
            for call in calls {
                let words = call.iter().map(String::as_str).chain(["--endpoint", &endpoints]);
                let ran = program::run(words).await;
                let failed = ran.code != Some(0);
                ended.push((call.join(" "), ran));
                if failed {
                    break;
                }
            }
            ended
        }))
    }

    /// Expects that clients are answered again, and learns who the members are.
    pub(super) async fn goes_on(&mut self) {
        self.progress(ANSWERS).await;
        let status = until("a leader to say who the members are", SOON, async || {
            let leader = self.cluster.leader().await;
            let status = self.cluster.node(leader).status().await?;
            if status.role() == Role::Leader { Ok(status) } else { Err(summary(&status)) }
        });
        let status = status.await;
        self.learn(&status).await;
    }

    /// Takes the members from what the leader says. A node that is none any more may run on, as a
    /// nuisance, or not.
    async fn learn(&mut self, status: &StatusReply) {
        let members: Vec<u64> = status.nodes.iter().map(|node| node.node_id).collect();
        for id in std::mem::take(&mut self.members) {
            let gone = !members.contains(&id);
            if gone && self.cluster.random.bool() && self.cluster.node_mut(id).runs() {
                self.cluster.node_mut(id).kill().await;
            }
        }
        self.members = members;
        let members = self.members.clone();
        self.cluster.start_those(|id| members.contains(&id)).await;
        let running = self.cluster.nodes.iter_mut().enumerate();
        let running = running.filter_map(|(place, node)| node.runs().then_some(place));
        self.recorder.set_nodes(running.collect());
    }

    /// Ends all trouble.
    pub(super) async fn settle(&mut self) {
        self.recorder.event("all trouble ends".to_owned());
        self.cluster.heal();
        self.goes_on().await;
    }

    /// Any member.
    fn one(&mut self) -> u64 {
        self.members[self.cluster.random.usize(0..self.members.len())]
    }

    /// Any member but this one.
    fn other_than(&mut self, not: u64) -> u64 {
        let others: Vec<u64> = self.members.iter().copied().filter(|id| *id != not).collect();
        others.get(self.cluster.random.usize(0..others.len().max(1))).copied().unwrap_or(not)
    }

    /// Whoever says at this moment that it leads, in the highest term; else the one given.
    async fn leader_or(&self, other: u64) -> u64 {
        let statuses = self.cluster.statuses().await;
        let leaders = statuses.iter().filter(|status| status.role() == Role::Leader);
        leaders.max_by_key(|status| status.term).map_or(other, |status| status.node_id)
    }
}
