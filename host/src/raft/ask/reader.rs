//! Linearizable queries: one ReadIndex round for all that wait (Raft dissertation, section 6.4),
//! then one call of each guest for all its queries.
//!
//! While a round is under way, later queries gather for the next one: a query may only use a
//! round that began after the query came. The guest's thread tells each caller its own answer.
//!
//! **Invariant:** a query, linearizable or stale, has a place from when it comes until it is
//! answered, so that no more wait, wherever that is, than there are places.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use openraft::ReadPolicy;
use tokio::sync::{mpsc, oneshot};

use crate::budget::Held;
use crate::machine::{Asker, Context, Directory, GuestHandle, Proposal, Query, Told, View};
use crate::raft::Raft;
use crate::raft::ask::error::Error;
use crate::raft::ask::replica::{Answered, check_writable};
use crate::raft::clock::Clock;
use crate::raft::duties::space::Space;
use crate::raft::type_config::EntryBytes;
use crate::types::{LogIndex, TimeMs};

type Answer = Result<(Answered, Held), Error>;

/// Queries that may be under way.
const PLACES: usize = 65_536;
/// How far the replicated time may lag before a query of a guest that uses time has the leader
/// log a `Tick`, in milliseconds. It bounds ticks to ten a second.
const TICK_LAG_MS: TimeMs = 100;

/// A query and who waits for it.
struct Waiting {
    machine: String,
    query: Bytes,
    deadline: Instant,
    caller: Caller,
}

/// Who waits for an answer, and what is held for it meanwhile.
struct Caller {
    answer: oneshot::Sender<Answer>,
    held: Held,
    _place: Place,
}

/// Places for queries that are under way. A count takes no lock, as a semaphore does.
#[derive(Debug)]
struct Places {
    taken: AtomicUsize,
    max: usize,
}

/// One of the places, until it is dropped.
struct Place(Arc<Places>);

impl Places {
    fn new(max: usize) -> Self {
        Self { taken: AtomicUsize::new(0), max }
    }

    fn take(self: &Arc<Self>) -> Option<Place> {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(self));
        (taken < self.max).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where queries come in.
#[derive(Clone, Debug)]
pub struct Reader {
    queue: mpsc::Sender<Waiting>,
    places: Arc<Places>,
}

/// The task that makes rounds of queued queries.
pub struct ReaderTask {
    raft: Raft,
    directory: Arc<Directory>,
    space: Arc<Space>,
    clock: Arc<Clock>,
    queue: mpsc::Receiver<Waiting>,
}

impl Reader {
    /// A queue and the task that empties it.
    pub fn new(
        raft: Raft,
        directory: Arc<Directory>,
        space: Arc<Space>,
        clock: Arc<Clock>,
    ) -> (Self, ReaderTask) {
        let (sender, queue) = mpsc::channel(PLACES);
        let reader = Self { queue: sender, places: Arc::new(Places::new(PLACES)) };
        (reader, ReaderTask { raft, directory, space, clock, queue })
    }

    /// Asks a machine for an answer that reflects everything acknowledged before this call. One
    /// whose deadline has passed is not begun, and one that runs past it is ended.
    pub async fn query(
        &self,
        machine: &str,
        query: Bytes,
        deadline: Instant,
        held: Held,
    ) -> Result<Answered, Error> {
        let (caller, answer) = self.caller(held)?;
        let waiting = Waiting { machine: machine.to_owned(), query, deadline, caller };
        self.queue.try_send(waiting).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Error::ShuttingDown,
        })?;
        answered(answer).await
    }

    /// Asks a machine at whatever this node has applied.
    pub async fn query_stale(
        &self,
        directory: &Directory,
        machine: &str,
        query: Bytes,
        deadline: Instant,
        held: Held,
    ) -> Result<Answered, Error> {
        let guest = guest_of(&directory.view(), machine)?;
        let (caller, answer) = self.caller(held)?;
        let query = Query { bytes: query, deadline, asker: Box::new(caller) };
        guest.query(context(directory), vec![query]);
        answered(answer).await
    }

    fn caller(&self, held: Held) -> Result<(Caller, oneshot::Receiver<Answer>), Error> {
        let _place = self.places.take().ok_or(Error::Overloaded)?;
        let (answer, receiver) = oneshot::channel();
        Ok((Caller { answer, held, _place }, receiver))
    }
}

/// What is held for an answer is given back as soon as the answer is taken.
async fn answered(answer: oneshot::Receiver<Answer>) -> Result<Answered, Error> {
    answer.await.map_err(|_| Error::ShuttingDown)?.map(|(answered, _)| answered)
}

fn context(directory: &Directory) -> Context {
    Context { index: directory.applied(), time_ms: directory.time_ms(), seed: 0 }
}

impl ReaderTask {
    /// Runs until every `Reader` is gone.
    pub async fn run(mut self) {
        let mut waiting = Vec::new();
        // All that wait have one round: nobody waits for a second one because of others.
        while self.queue.recv_many(&mut waiting, PLACES).await > 0 {
            waiting.retain(|waiting| !waiting.caller.is_gone());
            match self.round(&waiting).await {
                Ok(()) => self.hand_on(std::mem::take(&mut waiting)),
                Err(error) => fail(&error, waiting.drain(..)),
            }
        }
    }

    /// Returns once this node was the leader after the round began and has applied what had been
    /// committed by then.
    async fn round(&self, waiting: &[Waiting]) -> Result<(), Error> {
        let confirmed = self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await;
        confirmed.map_err(Error::from_raft_read)?;
        self.keep_time(waiting).await
    }

    /// A guest that uses time is asked at a time that does not lag, unless the disk is nearly full
    /// or writes have stopped: then nothing is appended, and reads go on at the time of the last
    /// entry.
    async fn keep_time(&self, waiting: &[Waiting]) -> Result<(), Error> {
        let is_late = lags(self.clock.time_ms(), self.directory.time_ms());
        if !is_late || check_writable(&self.space, &self.directory).is_err() {
            return Ok(());
        }
        let view = self.directory.view();
        if !waiting.iter().any(|waiting| uses_time(&view, &waiting.machine)) {
            return Ok(());
        }
        let time_ms = self.clock.stamp(self.directory.time_ms()).await;
        let tick = Proposal::Tick { time_ms }.encode();
        let ticked = self.raft.client_write(EntryBytes(tick)).await;
        ticked.map(drop).map_err(Error::from_raft_write)
    }

    /// Hands the queries to the guests.
    fn hand_on(&self, waiting: Vec<Waiting>) {
        let view = self.directory.view();
        let mut guests: BTreeMap<String, (GuestHandle, Vec<Query>)> = BTreeMap::new();
        for Waiting { machine, query, deadline, caller } in waiting {
            let (_, queries) = match guests.entry(machine) {
                Entry::Occupied(found) => found.into_mut(),
                Entry::Vacant(first) => match guest_of(&view, first.key()) {
                    Ok(guest) => first.insert((guest, Vec::new())),
                    Err(error) => {
                        caller.fail(error);
                        continue;
                    }
                },
            };
            queries.push(Query { bytes: query, deadline, asker: Box::new(caller) });
        }
        for (guest, queries) in guests.into_values() {
            guest.query(context(&self.directory), queries);
        }
    }
}

/// Whether the replicated time lags behind the leader's clock, which has none before its first
/// entry.
fn lags(now: Option<TimeMs>, replicated: TimeMs) -> bool {
    now.is_none_or(|now| now >= replicated + TICK_LAG_MS)
}

/// Whether the answers of a machine depend on the time.
fn uses_time(view: &View, machine: &str) -> bool {
    let manifest = view.machines.get(machine).and_then(|machine| machine.manifest.as_ref());
    manifest.is_some_and(|manifest| manifest.uses_time)
}

/// The guest that answers for a machine, or why none does.
fn guest_of(view: &View, machine: &str) -> Result<GuestHandle, Error> {
    if let Some(reason) = &view.parked {
        return Err(Error::Parked(reason.clone()));
    }
    let published = view.machines.get(machine).ok_or_else(|| match view.replacing {
        true => Error::Recovering,
        false => Error::NoSuchMachine(machine.to_owned()),
    })?;
    published.guest.clone().ok_or_else(|| match published.restoring {
        _ if view.replacing => Error::Recovering,
        Some(_) => Error::Restoring(machine.to_owned()),
        None => Error::NoSuchMachine(machine.to_owned()),
    })
}

fn fail(error: &Error, waiting: impl Iterator<Item = Waiting>) {
    waiting.for_each(|waiting| waiting.caller.fail(error.clone()));
}

impl Caller {
    fn fail(self, error: Error) {
        let _ = self.answer.send(Err(error));
    }
}

impl Asker for Caller {
    fn account(&self) -> u64 {
        self.held.account()
    }

    fn is_gone(&self) -> bool {
        self.answer.is_closed()
    }

    fn has_room(&self) -> bool {
        !self.held.is_over()
    }

    fn expected(&self) -> usize {
        self.held.expected()
    }

    fn refuse(self: Box<Self>) {
        self.fail(Error::Overloaded);
    }

    fn keep(&mut self, bytes: usize) {
        self.held.becomes_reply(bytes);
    }

    fn tell(self: Box<Self>, told: Told, applied: LogIndex) {
        let Self { answer, held, _place } = *self;
        let answered = match told {
            Ok(Some(outcome)) => Ok((Answered { outcome, applied }, held)),
            // What was not applied was not begun, or its changes are thrown away.
            Ok(None) => Err(Error::DeadlineBeforeProposal),
            Err(failure) => Err(Error::Stopped(failure.to_string())),
        };
        let _ = answer.send(answered);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::*;
    use crate::budget::{Account, Budget};
    use crate::machine::{HostFailure, Limits, Published, Restoring};
    use crate::types::{MachineId, ModuleDigest, Outcome};

    fn account() -> Account {
        Budget::new(64 << 20).open()
    }

    /// A reader without a task, and what is queued for one.
    fn reader(places: usize) -> (Reader, mpsc::Receiver<Waiting>) {
        let (queue, queued) = mpsc::channel(PLACES);
        (Reader { queue, places: Arc::new(Places::new(places)) }, queued)
    }

    fn query(reader: &Reader, account: &Account) -> impl Future<Output = Result<Answered, Error>> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let held = account.begin(1).unwrap();
        let (reader, bytes) = (reader.clone(), Bytes::from_static(b"q"));
        async move { reader.query("kv", bytes, deadline, held).await }
    }

    /// What a guest says, that it was not asked in time, and that the host failed, each comes to
    /// the caller as what it is; what was held for the answer is given back.
    #[tokio::test]
    async fn answers_are_told() {
        let accepted = || Outcome::Accepted(Bytes::from_static(b"v"));
        let answered = Answered { outcome: accepted(), applied: 7 };
        let rows: [(Told, Result<Answered, Error>); 3] = [
            (Ok(Some(accepted())), Ok(answered)),
            (Ok(None), Err(Error::DeadlineBeforeProposal)),
            (Err(HostFailure::Stop("x".into())), Err(Error::Stopped("x".into()))),
        ];
        for (told, expected) in rows {
            let budget = Budget::new(64 << 20);
            let (account, (reader, mut queued)) = (budget.open(), reader(1));
            let asked = query(&reader, &account);
            let answer = async {
                let waiting = queued.recv().await.unwrap();
                assert!(!waiting.caller.is_gone() && waiting.caller.has_room());
                Box::new(waiting.caller).tell(told, 7);
            };
            assert_eq!(tokio::join!(asked, answer).0, expected);
            assert_eq!(budget.held(), 0, "{expected:?}");
            assert_eq!(reader.places.taken.load(Ordering::Relaxed), 0, "{expected:?}");
        }
    }

    /// A query has a place until it is answered, or until its caller is gone and that was seen.
    #[tokio::test]
    async fn places_are_bounded() {
        let (account, (reader, mut queued)) = (account(), reader(1));
        let mut first = Box::pin(query(&reader, &account));
        assert!(first.as_mut().now_or_never().is_none(), "it waits");
        assert_eq!(query(&reader, &account).await, Err(Error::Overloaded));
        drop(first);
        let waiting = queued.recv().await.unwrap();
        assert!(waiting.caller.is_gone());
        drop(waiting);
        let second = query(&reader, &account);
        let fail = async { fail(&Error::NoLeader, queued.recv().await.into_iter()) };
        assert_eq!(tokio::join!(second, fail).0, Err(Error::NoLeader));
        drop(queued);
        assert_eq!(query(&reader, &account).await, Err(Error::ShuttingDown));
    }

    /// Why no guest answers: a parked node before all, a state that is being replaced before a
    /// machine that is not there.
    #[test]
    fn why_no_guest_answers() {
        let published = |restoring| Published {
            id: MachineId(1),
            name: "kv".into(),
            module: ModuleDigest([1; 32]),
            manifest: None,
            limits: Limits::default(),
            active_limits: None,
            guest: None,
            restoring,
        };
        let here = |restoring| View {
            machines: [("kv".to_owned(), published(restoring))].into(),
            ..View::default()
        };
        let half = Some(Restoring { schema: 1, parts: 2 });
        let none = || Error::NoSuchMachine("kv".into());
        let rows = [
            (View::default(), none()),
            (View { replacing: true, ..View::default() }, Error::Recovering),
            (here(None), none()),
            (here(half), Error::Restoring("kv".into())),
            (View { replacing: true, ..here(half) }, Error::Recovering),
            (View { parked: Some("why".into()), ..here(half) }, Error::Parked("why".into())),
        ];
        for (view, expected) in rows {
            assert_eq!(guest_of(&view, "kv").err(), Some(expected), "{view:?}");
        }
        assert!(!uses_time(&here(None), "kv") && !uses_time(&here(None), "other"));
    }

    /// The time lags from a tenth of a second on, and as long as the leader has stamped none.
    #[test]
    fn when_the_time_lags() {
        assert!(lags(None, 0));
        assert!(!lags(Some(1_099), 1_000) && lags(Some(1_100), 1_000));
        assert!(!lags(Some(900), 1_000), "the clock was set back");
    }
}
