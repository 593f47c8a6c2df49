//! The commands that wait for an entry, from [`Proposer::propose`] until one takes them.
//!
//! The queue is bounded in commands and bytes. An account may have as much in it as it leaves free,
//! so that however much some queue, others find room. Commands of one account keep the order in
//! which they were queued. A reply counts on its caller's account from when it is there until it is
//! taken; a command whose account is over its share by the time of its entry is refused instead of
//! proposed.
//!
//! **Invariant:** a command is claimed once: by the entry that takes it, or by its caller whose
//! deadline passed before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use crate::budget::{Held, Queued};
use crate::config::{FileConfig, limits};
use crate::in_turn::InTurn;
use crate::machine::Expected;
use crate::raft::ask::error::Error;
use crate::raft::ask::replica::Executed;
use crate::raft::ask::returning::{Answered, Returning};
use crate::types::Command;

type Outcome = Result<(Executed, Held), Error>;

/// A command and who waits for it.
pub(super) struct Waiting {
    pub(super) command: Command,
    pub(super) caller: Caller,
    /// Set by whoever comes first: the batching, or the caller whose deadline passed.
    claimed: Arc<AtomicBool>,
}

/// Where the outcome goes, and what is held for it.
pub(super) struct Caller {
    outcome: oneshot::Sender<Outcome>,
    held: Held,
}

/// A queued command's outcome, to be awaited.
#[derive(Debug)]
pub struct Pending {
    outcome: oneshot::Receiver<Outcome>,
    claimed: Arc<AtomicBool>,
}

/// Where commands are queued.
#[derive(Clone, Debug)]
pub struct Proposer {
    queue: mpsc::Sender<Waiting>,
    /// What waits for its entry, in the channel or for its turn.
    queued: Arc<Queued>,
    commands_max: usize,
    bytes_max: usize,
}

/// Where entries take commands from.
pub(super) struct Queue {
    queue: mpsc::Receiver<Waiting>,
    queued: Arc<Queued>,
    returning: Returning,
    /// What replies have had lately.
    expected: Expected,
    /// While more is queued than one entry takes, callers take turns.
    in_turn: InTurn<Waiting>,
}

/// Both ends of a queue.
pub(super) fn open(config: &FileConfig) -> (Proposer, Queue) {
    let (sender, queue) = mpsc::channel(config.proposer_queue_commands_max);
    let queued = Arc::new(Queued::default());
    let proposer = Proposer {
        queue: sender,
        queued: Arc::clone(&queued),
        commands_max: config.proposer_queue_commands_max,
        bytes_max: config.proposer_queue_bytes_max,
    };
    let (returning, expected) = (Returning::default(), Expected::default());
    (proposer, Queue { queue, queued, returning, expected, in_turn: InTurn::default() })
}

impl Proposer {
    /// Queues a command. Never waits: a full queue is an error. The order of calls with one account
    /// is the order of their commands in the log.
    pub fn propose(&self, command: Command, held: Held) -> Result<Pending, Error> {
        let length = command.bytes.len();
        self.find_room(length, &held)?;
        let (sender, outcome) = oneshot::channel();
        let claimed = Arc::new(AtomicBool::new(false));
        let caller = Caller { outcome: sender, held };
        let waiting = Waiting { command, caller, claimed: Arc::clone(&claimed) };
        self.queue.try_send(waiting).map_err(|error| {
            let (waiting, error) = match error {
                mpsc::error::TrySendError::Full(waiting) => (waiting, Error::Overloaded),
                mpsc::error::TrySendError::Closed(waiting) => (waiting, Error::ShuttingDown),
            };
            leave(&self.queued, &waiting.caller.held, length);
            error
        })?;
        Ok(Pending { outcome, claimed })
    }

    /// Counts a command in, if the queue has room, and its account has no more in it than it leaves
    /// free. Its first is always let in where there is room.
    fn find_room(&self, length: usize, held: &Held) -> Result<(), Error> {
        let (commands, bytes) = self.queued.add(length);
        let (own_commands, own_bytes) = held.queued().add(length);
        let left = self.commands_max.checked_sub(commands).zip(self.bytes_max.checked_sub(bytes));
        let has_room = left.is_some_and(|(commands, bytes)| {
            own_commands == 1 || (own_commands <= commands && own_bytes <= bytes)
        });
        if has_room {
            return Ok(());
        }
        leave(&self.queued, held, length);
        Err(Error::Overloaded)
    }
}

impl Pending {
    /// Waits for the outcome. A command still queued when the deadline passes is never proposed.
    pub async fn wait_until(mut self, deadline: Instant) -> Result<Executed, Error> {
        match tokio::time::timeout_at(deadline.into(), &mut self.outcome).await {
            Ok(Ok(outcome)) => outcome.map(|(executed, _)| executed),
            Ok(Err(_)) => Err(Error::Stopped("the node stopped before it answered".to_owned())),
            Err(_) if self.claimed.swap(true, Ordering::AcqRel) => {
                Err(Error::DeadlineAfterProposal)
            }
            Err(_) => Err(Error::DeadlineBeforeProposal),
        }
    }
}

impl Queue {
    /// Notes an entry that was answered.
    pub(super) fn learn(&mut self, answered: &Answered) {
        self.expected.learn(answered.longest_reply);
        self.returning.expect(answered, self.queue.len() + self.in_turn.len());
    }

    /// Whether commands wait for their turn that the last entry had no room for.
    pub(super) fn has_turns(&self) -> bool {
        !self.in_turn.is_empty()
    }

    /// The next command, once there is one; none when every `Proposer` is gone.
    pub(super) async fn first(&mut self) -> Option<Waiting> {
        self.queue.recv().await
    }

    /// The commands of the next entry.
    pub(super) async fn gather(&mut self, first: Option<Waiting>, may_wait: bool) -> Vec<Waiting> {
        // Answers to one entry bring many commands at once: let those that are here already be
        // queued, so that they share the next entry.
        tokio::task::yield_now().await;
        let commands_max = self.expected.count_max();
        let mut gathered = Gathered { commands_max, ..Gathered::default() };
        let all_fit = self.queue.len() < commands_max && commands_max == limits::ENTRY_COMMANDS_MAX;
        if self.in_turn.is_empty() && all_fit {
            if let Some(first) = first {
                self.take(first, &mut gathered);
            }
            if may_wait {
                self.await_returning(&mut gathered).await;
            }
            self.take_queued(&mut gathered);
        } else {
            self.take_in_turn(first, &mut gathered);
        }
        gathered.commands
    }

    /// Takes one command of each caller, again and again, up to the limits of an entry.
    fn take_in_turn(&mut self, first: Option<Waiting>, gathered: &mut Gathered) {
        let mut next = first.or_else(|| self.queue.try_recv().ok());
        while let Some(waiting) = next {
            self.in_turn.push(waiting.caller.held.account(), waiting);
            next = self.queue.try_recv().ok();
        }
        while !gathered.is_full()
            && let Some(waiting) = self.in_turn.pop()
        {
            self.take(waiting, gathered);
        }
    }

    /// Takes a command off the queue, unless nobody waits for it any more.
    fn take(&self, waiting: Waiting, gathered: &mut Gathered) {
        let length = waiting.command.bytes.len();
        leave(&self.queued, &waiting.caller.held, length);
        let is_gone = waiting.caller.outcome.is_closed();
        if waiting.claimed.swap(true, Ordering::AcqRel) || is_gone {
            return;
        }
        if waiting.caller.held.is_over() {
            return waiting.caller.fail(Error::Overloaded);
        }
        gathered.bytes += length;
        gathered.reply_bytes += waiting.caller.held.expected();
        gathered.commands.push(waiting);
    }

    /// Takes what is queued, up to the limits of an entry.
    fn take_queued(&mut self, gathered: &mut Gathered) {
        while !gathered.is_full() {
            match self.queue.try_recv() {
                Ok(waiting) => self.take(waiting, gathered),
                Err(_) => return,
            }
        }
    }

    /// Takes commands as they come, as long as it pays to wait for those of clients that were just
    /// answered.
    async fn await_returning(&mut self, gathered: &mut Gathered) {
        let Some((count, until)) = self.returning.worth_waiting_for() else { return };
        while gathered.commands.len() < count && !gathered.is_full() {
            match tokio::time::timeout_at(until.into(), self.queue.recv()).await {
                Ok(Some(waiting)) if Instant::now() < until => self.take(waiting, gathered),
                Ok(Some(waiting)) => {
                    self.take(waiting, gathered);
                    return self.returning.disappoint();
                }
                Ok(None) => return,
                Err(_) => return self.returning.disappoint(),
            }
        }
        self.returning.satisfy();
    }
}

/// Counts a command out of the queue and of what its account has in it.
fn leave(queued: &Queued, held: &Held, length: usize) {
    queued.remove(length);
    held.queued().remove(length);
}

impl Gathered {
    fn is_full(&self) -> bool {
        self.commands.len() >= self.commands_max
            || self.bytes >= limits::ENTRY_BYTES_MAX
            || self.reply_bytes >= limits::CALL_REPLY_BYTES_EXPECTED
    }
}

/// Commands of the next entry.
#[derive(Default)]
struct Gathered {
    commands: Vec<Waiting>,
    bytes: usize,
    /// What the replies are taken to have.
    reply_bytes: usize,
    commands_max: usize,
}

/// One that waits no longer has dropped its receiver, which is all there is to ignore.
impl Caller {
    /// Number of the connection that it came by.
    pub(super) fn account(&self) -> u64 {
        self.held.account()
    }

    pub(super) fn tell(self, executed: Executed) {
        let Self { outcome, mut held } = self;
        held.becomes_reply(executed.outcome.length());
        let _ = outcome.send(Ok((executed, held)));
    }

    pub(super) fn fail(self, error: Error) {
        let _ = self.outcome.send(Err(error));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::budget::{Account, Budget};
    use crate::types::MachineId;

    /// Both ends of a queue of so many commands and bytes.
    pub(in crate::raft::ask) fn queue(commands_max: usize, bytes_max: usize) -> (Proposer, Queue) {
        open(&FileConfig {
            proposer_queue_commands_max: commands_max,
            proposer_queue_bytes_max: bytes_max,
            ..FileConfig::default()
        })
    }

    pub(in crate::raft::ask) fn command(machine: u64, text: &'static str) -> Command {
        Command { machine: MachineId(machine), session: None, bytes: text.into() }
    }

    fn account() -> Account {
        Budget::new(64 << 20).open()
    }

    fn texts(gathered: &[Waiting]) -> Vec<&str> {
        gathered
            .iter()
            .map(|waiting| std::str::from_utf8(&waiting.command.bytes).unwrap())
            .collect()
    }

    /// A full queue refuses, by commands and by bytes, and takes more once some were taken.
    #[tokio::test]
    async fn a_queue_is_bounded() {
        let (proposer, mut queue) = queue(3, 10);
        let propose = |text| proposer.propose(command(1, text), account().begin(1).unwrap());
        let _long = propose("12345678").unwrap();
        assert_eq!(propose("abc").err(), Some(Error::Overloaded), "too many bytes");
        let _short = (propose("a").unwrap(), propose("b").unwrap());
        assert_eq!(propose("").err(), Some(Error::Overloaded), "too many commands");
        let first = queue.first().await;
        assert_eq!(texts(&queue.gather(first, false).await), ["12345678", "a", "b"]);
        assert!(propose("1234567890").is_ok());
        drop(queue);
        assert_eq!(propose("").err(), Some(Error::ShuttingDown));
    }

    /// An account has no more in the queue than it leaves free, in commands and in bytes: however
    /// many fill it, one more account finds room, and all again once the queue is empty.
    #[tokio::test]
    async fn accounts_leave_room_for_others() {
        for (text, commands_max, bytes_max) in [("x", 40, 1_000), ("0123456789", 1_000, 400)] {
            let (proposer, mut queue) = queue(commands_max, bytes_max);
            let mut pending = Vec::new();
            let mut fill = || {
                let account = account();
                let propose = || proposer.propose(command(1, text), account.begin(1).unwrap());
                let before = pending.len();
                while let Ok(one) = propose() {
                    pending.push(one);
                }
                pending.len() - before
            };
            let counts: Vec<usize> = (0..8).map(|_| fill()).collect();
            assert_eq!(counts, [20, 10, 5, 2, 1, 1, 1, 0], "{text}");
            while queue.has_turns() || !queue.queue.is_empty() {
                queue.gather(None, false).await;
            }
            assert_eq!(fill(), 20, "{text}");
        }
    }

    /// Either the caller whose deadline passed has a command, and then no entry takes it, or an
    /// entry has it, and then it is in doubt.
    #[tokio::test]
    async fn a_command_is_claimed_once() {
        let account = account();
        let (proposer, mut queue) = queue(10, 100);
        let propose = |text| proposer.propose(command(1, text), account.begin(1).unwrap()).unwrap();
        let (late, gone, taken) = (propose("late"), propose("gone"), propose("taken"));
        let late = late.wait_until(Instant::now()).await;
        assert_eq!(late, Err(Error::DeadlineBeforeProposal));
        drop(gone);
        let first = queue.first().await;
        let gathered = queue.gather(first, false).await;
        assert_eq!(texts(&gathered), ["taken"]);
        assert_eq!(taken.wait_until(Instant::now()).await, Err(Error::DeadlineAfterProposal));
        let unanswered = propose("x");
        drop((gathered, queue));
        let told = unanswered.wait_until(Instant::now() + Duration::from_secs(60)).await;
        assert!(matches!(told, Err(Error::Stopped(_))), "{told:?}");
    }

    /// A command whose account holds more than its share by now is refused, not proposed.
    #[tokio::test]
    async fn who_is_over_its_share_is_refused() {
        let (full, fair) = (account(), account());
        let (proposer, mut queue) = queue(10, 100);
        let refused = proposer.propose(command(1, "a"), full.begin(1).unwrap()).unwrap();
        let _proposed = proposer.propose(command(1, "b"), fair.begin(1).unwrap()).unwrap();
        let kept = full.keep(9 << 20);
        let first = queue.first().await;
        assert_eq!(texts(&queue.gather(first, false).await), ["b"]);
        let told = refused.wait_until(Instant::now() + Duration::from_secs(60)).await;
        assert_eq!(told, Err(Error::Overloaded));
        drop(kept);
    }

    /// Where long replies make entries small, callers take turns, and each keeps its order.
    #[tokio::test]
    async fn callers_take_turns() {
        let (proposer, mut queue) = queue(100, 1000);
        let longest_reply = limits::CALL_REPLY_BYTES_EXPECTED / 2;
        queue.expected.learn(longest_reply);
        let budget = Budget::new(64 << 20);
        // Turns begin behind the account that is numbered 0.
        let (_zero, many, few) = (budget.open(), budget.open(), budget.open());
        let propose = |account: &Account, text| {
            proposer.propose(command(1, text), account.begin(1).unwrap()).unwrap()
        };
        let _pending =
            [propose(&many, "a1"), propose(&many, "a2"), propose(&many, "a3"), propose(&few, "b1")];
        let first = queue.first().await;
        assert_eq!(texts(&queue.gather(first, false).await), ["a1", "b1"]);
        assert!(queue.has_turns());
        assert_eq!(texts(&queue.gather(None, false).await), ["a2", "a3"]);
        assert!(!queue.has_turns());
    }

    /// The bound on commands holds however they wait: those that wait for their turn have left the
    /// channel, and count nevertheless.
    #[tokio::test]
    async fn what_waits_is_bounded_in_count() {
        let (queue, mut waiting) = mpsc::channel(2);
        let queued = Arc::new(Queued::default());
        let (commands_max, bytes_max) = (2, 100);
        let proposer = Proposer { queue, queued: Arc::clone(&queued), commands_max, bytes_max };
        let propose = |bytes: &'static [u8]| {
            let command = Command { machine: MachineId(1), session: None, bytes: bytes.into() };
            proposer.propose(command, account().hold(1).unwrap())
        };
        let mut in_turn = InTurn::default();
        for _ in 0..2 {
            propose(b"a").unwrap();
            in_turn.push(1, waiting.recv().await.unwrap());
        }
        assert_eq!(propose(b"a").err(), Some(Error::Overloaded));
        leave(&queued, &in_turn.pop().unwrap().caller.held, 1);
        assert_eq!(propose(&[0; 100]).err(), Some(Error::Overloaded));
        propose(b"a").unwrap();
    }
}
