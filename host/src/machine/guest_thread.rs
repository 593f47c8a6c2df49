//! One thread per machine that owns its guest. Calls arrive in order through a channel, so the
//! guest is never entered twice at once and never runs on a worker of the async runtime.
//!
//! A trapped instance cannot be entered again, so it is dropped. After a failed command every
//! later call gets the same failure; what it means for the machine is decided on the apply path.
//! After a failed query the machine itself is sound, and later calls say that the instance was
//! lost, until the apply path has rebuilt it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use tokio::sync::oneshot;

use super::batch::Batch;
use crate::wasm::{self, Context, ExportError, ExportStopped, Failure, Guest, Replies};

/// Receives the chunks of an export; false asks to stop.
pub type ChunkSink = Box<dyn FnMut(Vec<u8>) -> bool + Send>;

type Done<T> = oneshot::Sender<Result<T, CallFailure>>;

enum Request {
    Apply(Context, Batch, Done<Replies>),
    Query(Context, Queries, Done<Replies>),
    Export(ChunkSink, Done<()>),
    Import(ImportChunk, Done<()>),
    IsLost(oneshot::Sender<bool>),
}

/// Why a call of a guest came to nothing.
#[derive(Clone, Debug)]
pub enum CallFailure {
    /// The guest failed, or the host did in its place.
    Guest(Failure),
    /// An earlier query trapped, and the instance has not been rebuilt yet.
    Lost,
}

/// The instance, or why there is none any more.
enum Instance {
    Live(Guest),
    Failed(Failure),
    Lost,
}

/// Queries of one call, laid out as commands are.
#[derive(Clone, Debug, Default)]
pub struct Queries {
    /// All queries, back to back.
    pub data: Vec<u8>,
    /// Where each ends in `data`.
    pub ends: Vec<u32>,
}

/// A piece of an exported state.
#[derive(Debug)]
pub struct ImportChunk {
    /// Schema version of the export.
    pub schema: u32,
    /// The piece.
    pub bytes: Vec<u8>,
    /// True for the last one.
    pub last: bool,
}

/// A handle on a guest's thread. The thread ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct GuestHandle {
    requests: mpsc::Sender<Request>,
    memory_bytes: Arc<AtomicU64>,
}

impl GuestHandle {
    /// Starts a thread with a fresh instance of `module`.
    pub async fn start(
        name: &str,
        engine: wasm::Engine,
        module: wasm::Module,
    ) -> Result<Self, Failure> {
        let (requests, receiver) = mpsc::channel();
        let (started, start) = oneshot::channel();
        let memory_bytes = Arc::new(AtomicU64::new(0));
        let gauge = Arc::clone(&memory_bytes);
        std::thread::Builder::new()
            .name(format!("guest-{name}"))
            .stack_size(wasm::THREAD_STACK_BYTES)
            .spawn(move || run(&engine, &module, started, receiver, &gauge))
            .map_err(|error| Failure::Host(format!("cannot start a guest thread: {error}")))?;
        start.await.map_err(|_| gone())??;
        Ok(Self { requests, memory_bytes })
    }

    /// Applies the batch of one entry.
    pub async fn apply(&self, context: Context, batch: Batch) -> Result<Replies, CallFailure> {
        self.call(|done| Request::Apply(context, batch, done)).await
    }

    /// Asks the live instance.
    pub async fn query(&self, context: Context, queries: Queries) -> Result<Replies, CallFailure> {
        self.call(|done| Request::Query(context, queries, done)).await
    }

    /// Has the guest serialize its state into `sink`.
    pub async fn export(&self, sink: ChunkSink) -> Result<(), CallFailure> {
        self.call(|done| Request::Export(sink, done)).await
    }

    /// Gives a fresh guest a piece of an exported state.
    pub async fn import(&self, chunk: ImportChunk) -> Result<(), CallFailure> {
        self.call(|done| Request::Import(chunk, done)).await
    }

    /// Whether the instance was lost to a failed query, once the calls before this one are done.
    pub async fn is_lost(&self) -> bool {
        let (done, reply) = oneshot::channel();
        self.requests.send(Request::IsLost(done)).is_ok() && reply.await.unwrap_or(false)
    }

    /// Linear memory the guest holds, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Ordering::Relaxed)
    }

    async fn call<T>(&self, request: impl FnOnce(Done<T>) -> Request) -> Result<T, CallFailure> {
        let (done, reply) = oneshot::channel();
        let gone = || CallFailure::Guest(gone());
        self.requests.send(request(done)).map_err(|_| gone())?;
        reply.await.map_err(|_| gone())?
    }
}

fn gone() -> Failure {
    Failure::Host("a guest thread ended unexpectedly".to_owned())
}

/// The thread: an instance, then calls until every handle is gone.
fn run(
    engine: &wasm::Engine,
    module: &wasm::Module,
    started: oneshot::Sender<Result<(), Failure>>,
    requests: mpsc::Receiver<Request>,
    memory_bytes: &AtomicU64,
) {
    let mut instance = match Guest::instantiate(engine, module) {
        Ok(guest) => Instance::Live(guest),
        Err(failure) => {
            let _ = started.send(Err(failure));
            return;
        }
    };
    memory_bytes.store(instance.memory_bytes(), Ordering::Relaxed);
    // Nobody waits only when the node is stopping.
    let _ = started.send(Ok(()));
    for request in requests {
        instance.serve(request);
        memory_bytes.store(instance.memory_bytes(), Ordering::Relaxed);
    }
}

impl Instance {
    /// Serves one request. A receiver that is gone means that nobody wants the answer any more.
    fn serve(&mut self, request: Request) {
        match request {
            Request::Apply(context, batch, done) => {
                let call = wasm::Batch { data: batch.data(), ends: batch.ends() };
                let result = self.enter(|guest| guest.apply(&context, call));
                let _ = done.send(self.fail_on_error(result));
            }
            Request::Query(context, queries, done) => {
                let call = wasm::Batch { data: &queries.data, ends: &queries.ends };
                let result = self.enter(|guest| guest.query(&context, call));
                if let (Self::Live(_), Err(CallFailure::Guest(_))) = (&self, &result) {
                    *self = Self::Lost;
                }
                let _ = done.send(result);
            }
            Request::Export(mut sink, done) => {
                let result = self.enter(|guest| export(guest, &mut *sink));
                let _ = done.send(self.fail_on_error(result));
            }
            Request::IsLost(done) => {
                let _ = done.send(matches!(self, Self::Lost));
            }
            Request::Import(chunk, done) => {
                let import =
                    |guest: &mut Guest| guest.import(chunk.schema, &chunk.bytes, chunk.last);
                let result = self.enter(import);
                let _ = done.send(self.fail_on_error(result));
            }
        }
    }

    fn enter<T>(
        &mut self,
        call: impl FnOnce(&mut Guest) -> Result<T, Failure>,
    ) -> Result<T, CallFailure> {
        match self {
            Self::Live(guest) => call(guest).map_err(CallFailure::Guest),
            Self::Failed(failure) => Err(CallFailure::Guest(failure.clone())),
            Self::Lost => Err(CallFailure::Lost),
        }
    }

    fn fail_on_error<T>(&mut self, result: Result<T, CallFailure>) -> Result<T, CallFailure> {
        if let Err(CallFailure::Guest(failure)) = &result {
            *self = Self::Failed(failure.clone());
        }
        result
    }

    fn memory_bytes(&self) -> u64 {
        match self {
            Self::Live(guest) => u64::try_from(guest.memory_bytes()).unwrap_or(u64::MAX),
            Self::Failed(_) | Self::Lost => 0,
        }
    }
}

/// Exports the state into `sink`. A sink that wants no more is the host's doing, not the guest's.
fn export(guest: &mut Guest, sink: &mut dyn FnMut(Vec<u8>) -> bool) -> Result<(), Failure> {
    let mut emit = |chunk| if sink(chunk) { Ok(()) } else { Err(ExportStopped) };
    match guest.export(&mut emit) {
        Ok(_) => Ok(()),
        Err(ExportError::Guest(failure)) => Err(failure),
        Err(ExportError::Stopped) => {
            Err(Failure::Host("nobody takes the export of a guest".to_owned()))
        }
    }
}
