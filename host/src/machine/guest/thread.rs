//! The thread a guest lives on. Calls come through a handle; while one runs, nothing else of the
//! daemon waits on the thread's stack or blocks an async worker.
//!
//! Applying goes before answering queries. Queries of one call are asked together; where that
//! fails they are asked one by one, and what is to be applied goes in between. So a command never
//! waits for more than one call of queries, which has the fuel of one query (`window`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::machine::HostFailure;
use crate::machine::entry::batch::Batch;
use crate::machine::guest::instance::{Blueprint, Frozen, Instance};
use crate::machine::guest::outcome::FuelUse;
use crate::machine::guest::window::{Answer, Query, Window};
use crate::types::{LogIndex, Outcome};
use crate::wasm::{self, Context, Failure, GuestLog, Image, Limits};

type Done<T> = oneshot::Sender<Result<T, HostFailure>>;

enum Request {
    Apply(Context, Batch, usize, Done<Vec<Outcome>>),
    Query(Context, Vec<Query>),
    Freeze(Done<Frozen>),
    SetLimits(Limits, Done<()>),
    Import(ImportPart, Done<Result<(), Outcome>>),
}

/// The next part of an export that a guest takes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportPart {
    /// Version of the state that it is of.
    pub schema: u32,
    /// The part, with the boundaries that it was exported with.
    pub bytes: Bytes,
    /// No other follows.
    pub last: bool,
}

/// A handle on a guest's thread. The thread ends when the last handle is dropped, and after a
/// failure of the host.
///
/// What waits for it is bounded by who asks: entries are applied one after the other, and queries
/// hold a place of their node's each.
#[derive(Clone, Debug)]
pub struct GuestHandle {
    requests: mpsc::Sender<Request>,
    gauges: Arc<Gauges>,
    log: GuestLog,
}

/// What is seen of a guest beside its answers.
#[derive(Debug, Default)]
struct Gauges {
    memory_bytes: AtomicU64,
    fuel_last: AtomicU64,
    fuel_highest: AtomicU64,
}

impl GuestHandle {
    /// Starts a thread with a fresh guest.
    pub(in crate::machine) async fn start(
        name: &str,
        blueprint: Blueprint,
    ) -> Result<Self, Failure> {
        Self::spawn(name, move || Instance::start(blueprint)).await
    }

    /// Starts a thread with a guest in the state of an image.
    pub(in crate::machine) async fn restore(
        name: &str,
        blueprint: Blueprint,
        image: Image,
        fuel_used: u64,
    ) -> Result<Self, Failure> {
        Self::spawn(name, move || Instance::restore(blueprint, image, fuel_used)).await
    }

    async fn spawn(
        name: &str,
        make: impl FnOnce() -> Result<Instance, Failure> + Send + 'static,
    ) -> Result<Self, Failure> {
        let (requests, receiver) = mpsc::channel();
        let (started, start) = oneshot::channel();
        let gauges = Arc::new(Gauges::default());
        let shown = Arc::clone(&gauges);
        let log = GuestLog::new(name);
        let heard = log.clone();
        let tasks = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name(format!("guest-{name}"))
            .stack_size(wasm::THREAD_STACK_BYTES)
            .spawn(move || match make() {
                Ok(mut instance) => {
                    instance.set_log(heard);
                    let window = Window::default();
                    let thread = Thread { instance, window, idle: false, gauges: shown, tasks };
                    thread.show();
                    // Nobody waits only when the node is stopping.
                    let _ = started.send(Ok(()));
                    thread.run(&receiver);
                }
                Err(failure) => drop(started.send(Err(failure))),
            })
            .map_err(|error| Failure::Host(format!("cannot start a guest thread: {error}")))?;
        start.await.map_err(|_| Failure::Host(GONE.to_owned()))??;
        Ok(Self { requests, gauges, log })
    }

    /// Applies the batch of one entry, as [`Instance::apply`] does: an outcome for each command.
    pub(in crate::machine) async fn apply(
        &self,
        context: Context,
        batch: Batch,
        room: usize,
    ) -> Result<Vec<Outcome>, HostFailure> {
        self.call(|done| Request::Apply(context, batch, room, done)).await
    }

    /// Asks the guest, without changing it. Who asks is told; or dropped, when the guest is gone.
    pub fn query(&self, context: Context, queries: Vec<Query>) {
        // A thread that is gone drops what it is sent, too.
        let _ = self.requests.send(Request::Query(context, queries));
    }

    /// The state as of the last call.
    pub(in crate::machine) async fn freeze(&self) -> Result<Frozen, HostFailure> {
        self.call(Request::Freeze).await
    }

    /// Gives the guest other limits from the next call on.
    pub(in crate::machine) async fn set_limits(&self, limits: Limits) -> Result<(), HostFailure> {
        self.call(|done| Request::SetLimits(limits, done)).await
    }

    /// Hands the guest the next part of an export, as [`Instance::import`] does. After an inner
    /// error the handle is to be dropped.
    pub(in crate::machine) async fn import(
        &self,
        part: ImportPart,
    ) -> Result<Result<(), Outcome>, HostFailure> {
        self.call(|done| Request::Import(part, done)).await
    }

    /// The entry that is about to hand over a part of an export stands here in the log.
    pub(in crate::machine) fn imports_at(&self, index: LogIndex) {
        self.log.imports_at(index);
    }

    /// Entries up to this index were applied before: what the guest says to them is not written
    /// again.
    pub(in crate::machine) fn replays_up_to(&self, index: LogIndex) {
        self.log.replays_up_to(index);
    }

    /// A command of the entry at `index` failed: a line of the node's log says so, unless there are
    /// too many or it said so before.
    pub(in crate::machine) fn log_failure(&self, index: LogIndex, position: usize, reason: &str) {
        self.log.write_failure(index, position, reason);
    }

    /// Linear memory the guest holds, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.gauges.memory_bytes.load(Ordering::Relaxed)
    }

    /// What commands took so far, since this node made the guest.
    pub fn fuel_use(&self) -> FuelUse {
        FuelUse {
            last: self.gauges.fuel_last.load(Ordering::Relaxed),
            highest: self.gauges.fuel_highest.load(Ordering::Relaxed),
        }
    }

    async fn call<T>(&self, request: impl FnOnce(Done<T>) -> Request) -> Result<T, HostFailure> {
        let (done, reply) = oneshot::channel();
        let gone = || HostFailure::Stop(GONE.to_owned());
        self.requests.send(request(done)).map_err(|_| gone())?;
        reply.await.map_err(|_| gone())?
    }
}

const GONE: &str = "a guest thread ended unexpectedly";

/// What runs on the thread.
struct Thread {
    instance: Instance,
    window: Window,
    /// Nothing is left to do but to wait for a request.
    idle: bool,
    gauges: Arc<Gauges>,
    /// Where those who ask run.
    tasks: tokio::runtime::Handle,
}

impl Thread {
    /// Serves calls until every handle is gone or the host fails.
    fn run(mut self, requests: &mpsc::Receiver<Request>) {
        loop {
            let request = if self.idle {
                requests.recv().map_err(|_| mpsc::TryRecvError::Disconnected)
            } else {
                requests.try_recv()
            };
            self.idle = false;
            let served = match request {
                Ok(request) => self.serve(request),
                Err(mpsc::TryRecvError::Empty) if self.window.is_empty() => {
                    // Uses the time while nothing is asked.
                    self.idle = !self.instance.prepare_queries();
                    Ok(())
                }
                Err(mpsc::TryRecvError::Empty) => self.ask(),
                Err(mpsc::TryRecvError::Disconnected) => return,
            };
            if served.is_err() {
                return;
            }
        }
    }

    /// A receiver that is gone means that nobody wants the answer any more. An error is the host's
    /// and has been told to whoever waited.
    fn serve(&mut self, request: Request) -> Result<(), ()> {
        match request {
            Request::Apply(context, batch, room, done) => {
                let applied = self.instance.apply(context, &batch, room);
                self.window.applied(context);
                // Before the answer: who has it may look.
                self.show();
                answer(done, applied)
            }
            Request::Query(context, queries) => {
                self.window.push(context, queries);
                Ok(())
            }
            Request::Freeze(done) => answer(done, self.instance.freeze()),
            Request::SetLimits(limits, done) => answer(done, self.instance.set_limits(limits)),
            Request::Import(part, done) => {
                let ImportPart { schema, bytes, last } = part;
                let imported = self.instance.import(schema, &bytes, last);
                self.show();
                answer(done, imported)
            }
        }
    }

    /// Makes one call for the queries that have waited longest.
    fn ask(&mut self) -> Result<(), ()> {
        let Some(asked) = self.window.next(Instant::now()) else { return Ok(()) };
        let fuel_max = asked.fuel_max();
        let cut_short = fuel_max < self.instance.limits().fuel_per_query;
        match self.instance.query(asked.context, asked.batch(), fuel_max) {
            Ok(result) => {
                let answers = self.window.settle(asked, result, cut_short, Instant::now());
                self.tell(answers);
                Ok(())
            }
            Err(failure) => {
                asked.fail(&failure);
                Err(())
            }
        }
    }

    /// Tells answers by a task: waking one task from here costs as much as waking all of those who
    /// ask from one of their own threads. Those of a connection are told together, so that they go
    /// out together.
    fn tell(&self, mut answers: Vec<Answer>) {
        answers.sort_by_key(Answer::account);
        match answers.len() {
            0 => {}
            1 => answers.remove(0).tell(),
            // One that does not run any more drops who asks.
            _ => drop(self.tasks.spawn(async { answers.into_iter().for_each(Answer::tell) })),
        }
    }

    fn show(&self) {
        let bytes = u64::try_from(self.instance.memory_bytes()).unwrap_or(u64::MAX);
        let FuelUse { last, highest } = self.instance.fuel_use();
        self.gauges.memory_bytes.store(bytes, Ordering::Relaxed);
        self.gauges.fuel_last.store(last, Ordering::Relaxed);
        self.gauges.fuel_highest.store(highest, Ordering::Relaxed);
    }
}

fn answer<T>(done: Done<T>, result: Result<T, HostFailure>) -> Result<(), ()> {
    let served = if result.is_ok() { Ok(()) } else { Err(()) };
    let _ = done.send(result);
    served
}
