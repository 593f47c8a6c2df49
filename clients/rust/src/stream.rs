//! `Stream`: many callers on one pipelined `ExecuteStream`, with commands in flight up to a bound.
//!
//! One task drives it. It connects to the leader, hands queued commands to the connection in the
//! order in which callers sent them, and gives each reply to its caller. When the connection is
//! lost, the commands handed to it come to UNKNOWN; those still queued go to the next connection,
//! or come to NOT_APPLIED at their deadline.
//!
//! Invariant: a command is claimed once, either by the connection (sent) or by its caller (given
//! up), so "never sent" is certain.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use lockstep_proto::v1;
use lockstep_proto::v1::client_client::ClientClient;
use lockstep_proto::v1::execute_stream_reply::Result as StreamResult;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout_at};
use tonic::Streaming;

use crate::client::{Client, Executed, check_size, left_for_node, mark};
use crate::error::{Error, Outcome};
use crate::reason;
use crate::retry::Retry;
use crate::routes::{Link, Route};

/// A connection that served for this long is one that worked: waits start small again after it.
const CALM: Duration = Duration::from_secs(1);
/// Later than any wait between two connections.
const FAR: Duration = Duration::from_secs(60);

/// A handle on a pipelined stream; clone it for each caller. The stream ends when the last handle
/// is dropped.
#[derive(Clone)]
pub struct Stream {
    client: Client,
    permits: Arc<Semaphore>,
    jobs: mpsc::Sender<Job>,
    trouble: Trouble,
    _driver: Arc<AbortOnDrop>,
}

/// Owns the task behind a stream.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Stream {
    pub(crate) fn open(client: Client) -> Self {
        let in_flight_max = client.options().stream_in_flight_max.max(1);
        let (jobs, receiver) = mpsc::channel(in_flight_max);
        let queue = Arc::new(Mutex::new(receiver));
        let trouble = Trouble::default();
        let driving = drive(client.clone(), queue, Arc::clone(&trouble));
        let driver = tokio::spawn(driving).abort_handle();
        let permits = Arc::new(Semaphore::new(in_flight_max));
        Self { client, permits, jobs, trouble, _driver: Arc::new(AbortOnDrop(driver)) }
    }

    /// Orders one command and waits for the guest's reply to it. Commands enter the log in the
    /// order in which these calls are first polled, except those that have to be sent again.
    pub async fn execute(
        &self,
        machine: &str,
        command: impl Into<Bytes>,
    ) -> Result<Executed, Error> {
        self.execute_within(machine, command, self.client.options().timeout).await
    }

    /// The same, with a time limit of its own.
    pub async fn execute_within(
        &self,
        machine: &str,
        command: impl Into<Bytes>,
        timeout: Duration,
    ) -> Result<Executed, Error> {
        let deadline = Instant::now() + timeout;
        let request = v1::ExecuteRequest {
            machine: machine.to_owned(),
            command: command.into(),
            session: None,
        };
        check_size("the command", &request.command)?;
        let mut retry = Retry::new();
        loop {
            match self.once(request.clone(), deadline).await {
                Err(error) if error.is_transient() && !self.client.options().forwarder => {
                    if !retry.pause(&error, deadline).await {
                        return Err(self.client.routes().explain(error));
                    }
                }
                result => return result,
            }
        }
    }

    async fn once(
        &self,
        request: v1::ExecuteRequest,
        deadline: Instant,
    ) -> Result<Executed, Error> {
        let permit = self.permit(deadline).await?;
        let claimed = Arc::new(AtomicBool::new(false));
        let (reply, replied) = oneshot::channel();
        let job = Job { request, deadline, claimed: Arc::clone(&claimed), reply, _permit: permit };
        // There is a place for every permit, so only the end of the driver can refuse it.
        self.jobs.try_send(job).map_err(|_| Error::unreachable("the stream has ended"))?;
        match timeout_at(deadline, replied).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) if claimed.load(Ordering::Acquire) => Err(lost()),
            Ok(Err(_)) => Err(Error::unreachable("the stream has ended")),
            Err(_) if claimed.swap(true, Ordering::AcqRel) => Err(Error::deadline_after_sending()),
            Err(_) => Err(self.never_sent()),
        }
    }
}

impl Stream {
    /// Waits for a place. When there is one it does not await at all: tokio would let a task that
    /// polls many calls at once wait now and then, which would put them out of order.
    async fn permit(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, Error> {
        let permits = Arc::clone(&self.permits);
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            return Ok(permit);
        }
        let permit = timeout_at(deadline, permits.acquire_owned()).await;
        Ok(permit.map_err(|_| self.never_sent())?.expect("the semaphore is never closed"))
    }

    fn never_sent(&self) -> Error {
        let text = "the deadline passed before the command could be sent: no node took it";
        Error::unreachable(match lock(&self.trouble).as_ref() {
            Some(why) => format!("{text}; {why}"),
            None => text.to_owned(),
        })
    }
}

fn lost() -> Error {
    Error::connection_lost("the connection broke with the command under way")
}

type Reply = oneshot::Sender<Result<Executed, Error>>;
type Queue = Arc<Mutex<mpsc::Receiver<Job>>>;
/// Why there is no connection.
type Trouble = Arc<Mutex<Option<String>>>;

/// A command on its way to a connection.
struct Job {
    request: v1::ExecuteRequest,
    deadline: Instant,
    claimed: Arc<AtomicBool>,
    reply: Reply,
    _permit: OwnedSemaphorePermit,
}

/// A command that was handed to a connection.
struct Sent {
    reply: Reply,
    _permit: OwnedSemaphorePermit,
}

/// The commands under way on one connection, by id. A slot is used again with another generation,
/// so that a late or repeated reply meets nobody else's caller.
#[derive(Default)]
struct Pending {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    sent: Option<Sent>,
}

impl Pending {
    fn insert(&mut self, sent: Sent) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("permits bound the slots")
        });
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.sent = Some(sent);
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    fn take(&mut self, id: u64) -> Option<Sent> {
        let index = u32::try_from(id & u64::from(u32::MAX)).expect("32 bits are left");
        let slot = self.slots.get_mut(index as usize)?;
        if u64::from(slot.generation) != id >> 32 {
            return None;
        }
        let sent = slot.sent.take()?;
        self.free.push(index);
        Some(sent)
    }

    /// Answers what is under way where the error of the whole stream says that no command without a
    /// reply was applied. Otherwise their callers learn from being dropped that nobody knows.
    fn end(&mut self, error: &Error) {
        if error.outcome != Outcome::NotApplied {
            return;
        }
        for sent in self.slots.drain(..).filter_map(|slot| slot.sent) {
            // A caller that has given up meanwhile does not want it.
            let _ = sent.reply.send(Err(error.clone()));
        }
        self.free.clear();
    }
}

/// Locks for a few instructions.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics while it holds this lock")
}

/// The requests of one connection: takes commands from the queue until told to stop.
struct Source {
    queue: Queue,
    pending: Arc<Mutex<Pending>>,
    stop: oneshot::Receiver<()>,
}

impl futures::Stream for Source {
    type Item = v1::ExecuteStreamRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.stop.poll_unpin(context).is_ready() {
            return Poll::Ready(None);
        }
        loop {
            let job = match lock(&self.queue).poll_recv(context) {
                Poll::Ready(Some(job)) => job,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            };
            if !job.reply.is_closed() && !job.claimed.swap(true, Ordering::AcqRel) {
                return Poll::Ready(Some(self.send(job)));
            }
        }
    }
}

impl Source {
    fn send(&self, job: Job) -> v1::ExecuteStreamRequest {
        let left = left_for_node(job.deadline).as_millis();
        let sent = Sent { reply: job.reply, _permit: job._permit };
        v1::ExecuteStreamRequest {
            id: lock(&self.pending).insert(sent),
            request: Some(job.request),
            timeout_ms: u32::try_from(left).unwrap_or(u32::MAX).max(1),
        }
    }
}

/// Why a connection is not used any more.
enum End {
    /// Its node said that it can't help; the rest of its replies may still come.
    Moved(Box<Streaming<v1::ExecuteStreamReply>>, Arc<Mutex<Pending>>, Error),
    /// It broke, or could not be made.
    Broken(Error),
}

/// Keeps one connection in use. It ends by being aborted, once every handle is gone.
async fn drive(client: Client, queue: Queue, trouble: Trouble) {
    let mut left_behind = JoinSet::new();
    let mut retry = Retry::new();
    loop {
        let link = client.routes().link(Route::Leader);
        let started = Instant::now();
        let error = match serve(&client, &link, &queue, &trouble).await {
            End::Broken(error) => error,
            End::Moved(replies, pending, error) => {
                while left_behind.try_join_next().is_some() {}
                left_behind.spawn(read_rest(*replies, pending));
                error
            }
        };
        *lock(&trouble) = Some(error.message.clone());
        if client.options().forwarder {
            refuse(&queue, &error, Retry::new().failed()).await;
            continue;
        }
        client.routes().learn(&link, &error);
        if started.elapsed() >= CALM {
            retry = Retry::new();
        }
        // Deadlines bound commands, not the stream: it goes on for as long as it has handles.
        retry.pause(&error, Instant::now() + FAR).await;
    }
}

/// Answers, until then, all commands that wait for a connection that could not be made. Only for a
/// forwarder, whose clients try again by themselves, and must hear soon that nothing was sent.
async fn refuse(queue: &Queue, error: &Error, until: Instant) {
    let refused = async {
        while let Some(job) = poll_fn(|context| lock(queue).poll_recv(context)).await {
            if !job.claimed.swap(true, Ordering::AcqRel) {
                let error = Error::unreachable(error.message.clone());
                // A caller that has given up meanwhile does not want it.
                let _ = job.reply.send(Err(error));
            }
        }
        // Every handle is gone, and with them the driver.
        std::future::pending::<()>().await;
    };
    // It ends with the time.
    let _ = timeout_at(until, refused).await;
}

/// Opens a stream to one node and serves it until it ends.
async fn serve(client: &Client, link: &Link, queue: &Queue, trouble: &Trouble) -> End {
    let connections = match link.connections().await {
        Ok(connections) => connections,
        Err(error) => {
            client.routes().cannot_reach(link, &error);
            return End::Broken(error);
        }
    };
    *lock(trouble) = None;
    let pending = Arc::new(Mutex::new(Pending::default()));
    let (stop, stopped) = oneshot::channel();
    let source = Source { queue: Arc::clone(queue), pending: Arc::clone(&pending), stop: stopped };
    let mut service = ClientClient::new(connections.channel());
    let mut request = tonic::Request::new(source);
    mark(&mut request, client.options().forwarder, link.forward);
    let mut replies = match service.execute_stream(request).await {
        Ok(replies) => replies.into_inner(),
        Err(status) => {
            client.routes().forget(link);
            let error = Error::from_status(&status);
            lock(&pending).end(&error);
            return End::Broken(error);
        }
    };
    let mut end = read(&mut replies, &pending).await;
    while client.options().forwarder && matches!(end, ReadEnd::Useless(_)) {
        end = read(&mut replies, &pending).await;
    }
    // Dropping it tells the source, which then takes no more commands.
    drop(stop);
    match end {
        ReadEnd::Ended(error) => {
            client.routes().forget(link);
            End::Broken(error)
        }
        ReadEnd::Useless(error) => End::Moved(Box::new(replies), pending, error),
    }
}

/// Why reading replies stopped.
enum ReadEnd {
    /// No more will come.
    Ended(Error),
    /// The node can't help; more may come.
    Useless(Error),
}

/// Hands out replies until the stream ends or the node says that another one should be asked.
async fn read(
    replies: &mut Streaming<v1::ExecuteStreamReply>,
    pending: &Mutex<Pending>,
) -> ReadEnd {
    loop {
        let reply = match replies.message().await {
            Ok(Some(reply)) => reply,
            Ok(None) => return ReadEnd::Ended(lost()),
            Err(status) => {
                let error = Error::from_status(&status);
                lock(pending).end(&error);
                return ReadEnd::Ended(error);
            }
        };
        let result = match reply.result {
            Some(StreamResult::Reply(reply)) => Ok(reply.into()),
            Some(StreamResult::Failure(failure)) => Err(Error::from_failure(failure)),
            None => Err(Error::connection_lost("the node sent a reply without a result")),
        };
        let useless = result.as_ref().err().filter(|error| is_useless(error)).cloned();
        if let Some(sent) = lock(pending).take(reply.id) {
            // A caller that has given up meanwhile does not want it.
            let _ = sent.reply.send(result);
        }
        if let Some(error) = useless {
            return ReadEnd::Useless(error);
        }
    }
}

fn is_useless(error: &Error) -> bool {
    error.is_transient() && error.reason != reason::OVERLOADED
}

/// Hands out what still comes on a connection that is not used any more. What does not come is
/// UNKNOWN: dropping the pending commands tells their callers.
async fn read_rest(mut replies: Streaming<v1::ExecuteStreamReply>, pending: Arc<Mutex<Pending>>) {
    while let ReadEnd::Useless(_) = read(&mut replies, &pending).await {}
}
