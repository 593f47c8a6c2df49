//! Keeps the clock of this node: looks at it, asks the leader what time it is, and, where this node
//! leads and does not know, the voters (decision 0012).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver as _;

use crate::machine::Directory;
use crate::raft::Raft;
use crate::raft::clock::Clock;
use crate::raft::network::{Network, Times};
use crate::raft::store::convert::membership_from_raft;
use crate::types::{Membership, NodeId, TimeMs};

/// Time between two looks at the clock.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// A follower asks the leader so often, because no two monotonic clocks run alike.
const ASK_INTERVAL: Duration = Duration::from_secs(60);
/// Whoever is there answers within this.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// Keeps the clock for as long as the node runs.
pub struct TimekeeperTask {
    /// This node.
    pub node: NodeId,
    /// What is kept.
    pub clock: Arc<Clock>,
    /// Who leads.
    pub raft: Raft,
    /// The way to the others.
    pub network: Network,
    /// The time of the last entry.
    pub directory: Arc<Directory>,
}

/// What a new leader makes of what the voters say.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// Some of them know the time.
    Time(TimeMs),
    /// None does, and this is what a majority of the wall clocks says.
    Walls(TimeMs),
    /// Too few have answered.
    TooFew,
}

impl TimekeeperTask {
    /// Runs until openraft is gone, or the clock of this machine cannot be used any more.
    pub async fn run(self) {
        let mut metrics = self.raft.server_metrics();
        let mut asked: Option<Instant> = None;
        let mut alarm = None;
        loop {
            let leads = self.raft.is_leader();
            self.clock.look(leads, self.directory.time_ms());
            if let Err(error) = self.clock.wall_ms() {
                tracing::error!(%error, "the node stops");
                return;
            }
            self.log(&mut alarm);
            let is_due = asked.is_none_or(|asked| asked.elapsed() > ASK_INTERVAL);
            if self.clock.time_ms().is_none() || (!leads && is_due) {
                self.ask(leads).await;
                asked = self.clock.time_ms().map(|_| Instant::now());
            }
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    /// Logs an alarm when it is raised and when it is over.
    fn log(&self, alarm: &mut Option<String>) {
        let now = self.clock.alarm();
        match (&alarm, &now) {
            (None, Some(alarm)) => tracing::warn!("{alarm}"),
            (Some(_), None) => tracing::info!("the wall clock of this node is right again"),
            _ => {}
        }
        *alarm = now;
    }

    async fn ask(&self, leads: bool) {
        let (leader, membership) = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            let membership = membership_from_raft(metrics.membership_config.membership());
            (metrics.current_leader, membership)
        };
        if leads {
            return self.ask_voters(&membership).await;
        }
        let Some(leader) = leader.filter(|leader| *leader != self.node) else { return };
        let Some(member) = membership.members.get(&leader) else { return };
        if let Ok(said) = self.network.times(leader, member, ANSWERS_WITHIN).await
            && let Some(time_ms) = said.time_ms
        {
            self.clock.learn(time_ms);
        }
    }

    async fn ask_voters(&self, membership: &Membership) {
        // The time of the last entry counts, so it must be applied first.
        let applied = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        if !matches!(tokio::time::timeout(ANSWERS_WITHIN, applied).await, Ok(Ok(_))) {
            return;
        }
        let voters = membership.voter_ids().into_iter().filter(|voter| *voter != self.node);
        let question = async |voter: NodeId| {
            let member = membership.members.get(&voter)?;
            let said = self.network.times(voter, member, ANSWERS_WITHIN).await.ok()?;
            Some((voter, said))
        };
        let answers = futures::future::join_all(voters.map(question)).await;
        let Ok(wall_ms) = self.clock.wall_ms() else { return };
        let mut said: Vec<(NodeId, Times)> = answers.into_iter().flatten().collect();
        said.push((self.node, Times { time_ms: None, wall_ms }));
        let last_ms = self.directory.time_ms();
        match weigh(&said, membership) {
            Heard::Time(time_ms) => self.clock.learn(time_ms.max(last_ms)),
            Heard::Walls(wall_ms) => self.clock.begin(last_ms, wall_ms),
            Heard::TooFew => {}
        }
    }
}

/// The middle one of the times, or of the wall clocks, the earlier of two: one clock that is wrong
/// decides nothing among three.
fn weigh(said: &[(NodeId, Times)], membership: &Membership) -> Heard {
    let middle = |mut times: Vec<TimeMs>| {
        times.sort_unstable();
        times.get(times.len().saturating_sub(1) / 2).copied()
    };
    let known = said.iter().filter_map(|(_, times)| times.time_ms);
    if let Some(time_ms) = middle(known.collect()) {
        return Heard::Time(time_ms);
    }
    let heard: BTreeSet<NodeId> = said.iter().map(|(node, _)| *node).collect();
    match middle(said.iter().map(|(_, times)| times.wall_ms).collect()) {
        Some(wall_ms) if membership.is_majority(&heard) => Heard::Walls(wall_ms),
        _ => Heard::TooFew,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who knows the time is believed before any wall clock; of the wall clocks the middle one is,
    /// once a majority of the voters has said its own.
    #[test]
    fn the_voters_are_weighed() {
        let voters = (1..=3).map(NodeId).collect();
        let membership = Membership { voters: vec![voters], ..Membership::default() };
        let wall = |node, wall_ms| (NodeId(node), Times { time_ms: None, wall_ms });
        let time = |node, time_ms| (NodeId(node), Times { time_ms: Some(time_ms), wall_ms: 9 });
        let day_ahead = 1_000 + 86_400_000;
        let rows = [
            (vec![wall(1, day_ahead)], Heard::TooFew),
            (vec![wall(1, day_ahead), wall(2, 1_000)], Heard::Walls(1_000)),
            (vec![wall(1, day_ahead), wall(2, 1_000), wall(3, 1_005)], Heard::Walls(1_005)),
            (vec![wall(1, day_ahead), time(2, 500)], Heard::Time(500)),
            (vec![time(1, 400), time(2, 500), wall(3, day_ahead)], Heard::Time(400)),
        ];
        for (said, expected) in rows {
            assert_eq!(weigh(&said, &membership), expected, "{said:?}");
        }
        let alone = Membership { voters: vec![[NodeId(1)].into()], ..Membership::default() };
        assert_eq!(weigh(&[wall(1, 7)], &alone), Heard::Walls(7));
    }
}
