//! Bytes that a node holds for others: requests under way, replies that nobody has taken yet.
//!
//! A [`Budget`] is the node's, an [`Account`] one connection's. Whoever keeps bytes keeps a
//! [`Held`] beside them, and gives the bytes back by dropping it. Sizes of replies are not known
//! beforehand: a command or query is begun with what replies of its account had lately.
//!
//! **Invariant:** what is held of a budget is the sum of what its accounts hold.
//! **Invariant:** an account over its share begins nothing new. One that holds four times its
//! share is closed. Where the budget itself is spent, the account that holds most is closed, so
//! that who holds little goes on.

mod closing;
mod queued;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::WaitForCancellationFutureOwned;

use closing::Closing;
pub use queued::Queued;

/// The share of an account is this part of the budget.
const SHARES: usize = 8;
/// An account that holds so many times its share is closed.
const SHARES_HELD_MAX: usize = 4;
/// What a request takes beside its own bytes, in bytes, rounded up: messages, channels, tasks.
const REQUEST_BYTES: usize = 1 << 10;
/// What the first replies of an account are taken to have at least, in bytes: as many as others'
/// have lately.
const FIRST_REPLY_BYTES: usize = 256 << 10;
/// How slowly a long reply is forgotten: each reply takes this part of it away.
const FORGET_PART: usize = 16;

/// A connection that has been refused so often is closed, where refusals count.
const REFUSED_MAX: usize = 16;

/// Calls with many messages that one connection may have open.
pub const STREAMS_MAX: u32 = 16;

/// There is no room: the account is over its share, or the budget is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too much is under way: try again later")]
pub struct Full;

/// What a node may hold for all connections of one kind. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bytes_max: usize,
    held: AtomicUsize,
    /// What replies have had lately, whoever asked.
    reply_bytes: AtomicUsize,
    next: AtomicU64,
    accounts: Mutex<BTreeMap<u64, Weak<Inner>>>,
}

/// What one connection holds. Clones share it; it is closed when the last is dropped.
#[derive(Clone, Debug)]
pub struct Account(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    budget: Arc<Shared>,
    id: u64,
    held: AtomicUsize,
    /// What its next reply is taken to have.
    reply_bytes: AtomicUsize,
    spoke: AtomicBool,
    refused: AtomicUsize,
    queued: Queued,
    closed: Closing,
    streams: Arc<Semaphore>,
}

/// Bytes that are held, until it is dropped.
#[derive(Debug)]
pub struct Held {
    account: Account,
    bytes: usize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Shared {
            bytes_max,
            held: AtomicUsize::new(0),
            reply_bytes: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            accounts: Mutex::default(),
        }))
    }

    /// An account of a new connection.
    pub fn open(&self) -> Account {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let inner = Arc::new(Inner {
            budget: Arc::clone(&self.0),
            id,
            held: AtomicUsize::new(0),
            reply_bytes: AtomicUsize::new(self.first_reply_bytes()),
            spoke: AtomicBool::new(false),
            refused: AtomicUsize::new(0),
            queued: Queued::default(),
            closed: Closing::default(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX as usize)),
        });
        let mut accounts = self.0.accounts();
        accounts.retain(|_, account| account.strong_count() > 0);
        accounts.insert(id, Arc::downgrade(&inner));
        drop(accounts);
        Account(inner)
    }

    fn first_reply_bytes(&self) -> usize {
        self.0.reply_bytes.load(Ordering::Relaxed).max(FIRST_REPLY_BYTES)
    }

    /// Bytes held of it.
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// Closes the oldest account that never asked for anything; false when there is none.
    pub fn close_silent(&self) -> bool {
        let accounts = self.0.accounts();
        let mut open = accounts.values().filter_map(Weak::upgrade);
        let silent = |account: &Arc<Inner>| {
            !account.spoke.load(Ordering::Relaxed) && !account.closed.is_said()
        };
        open.find(silent).map(|account| account.closed.say()).is_some()
    }
}

impl Shared {
    fn share(&self) -> usize {
        self.bytes_max / SHARES
    }

    fn accounts(&self) -> MutexGuard<'_, BTreeMap<u64, Weak<Inner>>> {
        self.accounts.lock().expect("nothing panics while it holds the accounts")
    }

    /// Sees to it that the budget is kept: closes the account that holds most, unless that is
    /// `asking`. What closed accounts hold comes back as soon as their connections have ended.
    fn make_room(&self, asking: &Inner) -> bool {
        let accounts = self.accounts();
        let open: Vec<Arc<Inner>> = accounts
            .values()
            .filter_map(Weak::upgrade)
            .filter(|account| !account.closed.is_said())
            .collect();
        let held = |account: &Arc<Inner>| account.held.load(Ordering::Relaxed);
        if open.iter().map(held).sum::<usize>() <= self.bytes_max {
            return true;
        }
        match open.iter().max_by_key(|account| held(account)) {
            Some(most) if most.id != asking.id => {
                most.close("it holds most of a budget that is spent");
                true
            }
            _ => false,
        }
    }
}

impl Inner {
    fn close(&self, reason: &'static str) {
        if !self.closed.is_said() {
            let held = self.held.load(Ordering::Relaxed);
            tracing::warn!(connection = self.id, held, reason, "a connection is closed");
            self.closed.say();
        }
    }

    fn add(&self, bytes: usize) -> usize {
        self.budget.held.fetch_add(bytes, Ordering::Relaxed);
        self.held.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    fn remove(&self, bytes: usize) {
        let before = self.held.fetch_sub(bytes, Ordering::Relaxed);
        assert!(before >= bytes, "{bytes} bytes are given back of {before}");
        self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn is_budget_spent(&self) -> bool {
        self.budget.held.load(Ordering::Relaxed) > self.budget.bytes_max
    }
}

impl Account {
    /// Holds bytes that have come, or are about to.
    ///
    /// # Errors
    /// When the account holds its share, or the budget is spent.
    pub fn hold(&self, bytes: usize) -> Result<Held, Full> {
        let inner = &self.0;
        inner.spoke.store(true, Ordering::Relaxed);
        let held = inner.add(bytes);
        let taken = Held { account: self.clone(), bytes };
        // One thing is always let in, whatever its size.
        let is_over = held > inner.budget.share() && held > bytes;
        if is_over || inner.closed.is_said() {
            return Err(Full);
        }
        if inner.is_budget_spent() && !inner.budget.make_room(inner) {
            return Err(Full);
        }
        Ok(taken)
    }

    /// Begins a request of so many bytes, with room for the reply.
    ///
    /// # Errors
    /// As [`Account::hold`].
    pub fn begin(&self, bytes: usize) -> Result<Held, Full> {
        self.hold(self.next_bytes(bytes))
    }

    /// Holds bytes that are there already, whatever else is held.
    pub fn keep(&self, bytes: usize) -> Held {
        self.0.add(bytes);
        self.keep_bounds();
        Held { account: self.clone(), bytes }
    }

    /// A place for one more stream of commands, until it is dropped.
    ///
    /// # Errors
    /// When the connection has as many as it may.
    pub fn open_stream(&self) -> Result<OwnedSemaphorePermit, Full> {
        Arc::clone(&self.0.streams).try_acquire_owned().map_err(|_| Full)
    }

    /// True while one more request of up to `longest` bytes might be refused.
    pub fn is_full(&self, longest: usize) -> bool {
        self.0.held.load(Ordering::Relaxed) + self.next_bytes(longest) > self.0.budget.share()
    }

    fn next_bytes(&self, request: usize) -> usize {
        request + REQUEST_BYTES + self.0.reply_bytes.load(Ordering::Relaxed)
    }

    /// Its connection was refused something that nobody asks for who belongs here. It counts as
    /// silent, so that it gives way to who comes, and is closed soon: dialing again costs the
    /// caller more than it costs this node.
    pub fn note_refused(&self) {
        self.0.spoke.store(false, Ordering::Relaxed);
        if self.0.refused.fetch_add(1, Ordering::Relaxed) + 1 >= REFUSED_MAX {
            // Strangers fill no log.
            tracing::debug!(connection = self.0.id, "a connection is closed: it was often refused");
            self.0.closed.say();
        }
    }

    /// True once it has been closed.
    pub fn is_closed(&self) -> bool {
        self.0.closed.is_said()
    }

    /// Waits until it is closed.
    pub fn closed(&self) -> WaitForCancellationFutureOwned {
        self.0.closed.wait()
    }

    /// Notes what a reply had, for the next ones.
    pub fn learn(&self, reply: usize) {
        for lately in [&self.0.reply_bytes, &self.0.budget.reply_bytes] {
            let known = lately.load(Ordering::Relaxed);
            let next = reply.max(known - known.div_ceil(FORGET_PART));
            // Most often nothing changes, and all threads read it.
            if next != known {
                lately.store(next, Ordering::Relaxed);
            }
        }
    }

    fn keep_bounds(&self) {
        let inner = &self.0;
        if inner.held.load(Ordering::Relaxed) > inner.budget.share() * SHARES_HELD_MAX {
            inner.close("it does not take its replies");
        }
        if inner.is_budget_spent() && !inner.budget.make_room(inner) {
            inner.close("it holds most of a budget that is spent");
        }
    }
}

impl Held {
    /// What was held for a request is now held for its reply.
    pub fn becomes_reply(&mut self, bytes: usize) {
        self.account.learn(bytes);
        let before = std::mem::replace(&mut self.bytes, bytes + REQUEST_BYTES);
        if self.bytes > before {
            self.account.0.add(self.bytes - before);
            self.account.keep_bounds();
        } else {
            self.account.0.remove(before - self.bytes);
        }
    }

    /// What a reply to its account is taken to have, in bytes.
    pub fn expected(&self) -> usize {
        self.account.0.reply_bytes.load(Ordering::Relaxed)
    }

    /// Whose it is.
    pub fn owner(&self) -> &Account {
        &self.account
    }

    /// What its account has in the queue.
    pub fn queued(&self) -> &Queued {
        &self.account.0.queued
    }

    /// Number of its account.
    pub fn account(&self) -> u64 {
        self.account.0.id
    }

    /// True while its account holds more than its share: what has not begun should not begin.
    pub fn is_over(&self) -> bool {
        let inner = &self.account.0;
        inner.held.load(Ordering::Relaxed) > inner.budget.share() + self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.account.0.remove(self.bytes);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        assert_eq!(*self.held.get_mut(), 0, "an account ends with nothing held");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: usize = 1 << 20;

    fn budget() -> Budget {
        Budget::new(SHARE * SHARES)
    }

    /// An account begins nothing over its share; what is dropped is given back.
    #[test]
    fn an_account_has_a_share() {
        let budget = budget();
        let account = budget.open();
        let first = account.hold(2 * SHARE).expect("one thing is always let in");
        assert_eq!(account.hold(1).err(), Some(Full));
        assert!(account.is_full(0));
        drop(first);
        assert_eq!(budget.held(), 0);
        let half = account.hold(SHARE / 2).unwrap();
        assert!(account.hold(SHARE / 2).is_ok());
        assert_eq!(account.hold(SHARE / 2 + 1).err(), Some(Full));
        assert_eq!(budget.held(), SHARE / 2);
        drop(half);
    }

    /// Replies that turned out longer than thought let fewer requests begin, and short ones more.
    #[test]
    fn replies_are_learned_from() {
        let budget = budget();
        let account = budget.open();
        let begin = || {
            let mut begun = Vec::new();
            while let Ok(held) = account.begin(10) {
                begun.push(held);
            }
            begun.len()
        };
        let at_first = begin();
        account.learn(SHARE / 4);
        assert!(begin() <= 4, "each may have as much");
        for _ in 0..2_000 {
            account.learn(10);
        }
        assert!(begin() > at_first, "short ones have made it forget");
    }

    /// While it is not full, what begins next is let in: who reads a stream only then refuses
    /// nothing of it, and keeps its order.
    #[test]
    fn what_is_read_with_room_is_let_in() {
        let account = budget().open();
        let mut begun = Vec::new();
        while !account.is_full(SHARE / 16) {
            begun.push(account.begin(SHARE / 16).expect("it has room"));
        }
        assert!(!begun.is_empty());
        assert_eq!(account.begin(SHARE / 16).err(), Some(Full));
    }

    /// Where the budget is spent, whoever holds most is closed, and whoever holds little goes on.
    #[test]
    fn the_largest_gives_way() {
        let budget = budget();
        let hogs: Vec<Account> = (0..3).map(|_| budget.open()).collect();
        let kept: Vec<Held> = hogs.iter().map(|hog| hog.keep(2 * SHARE + 3 * SHARE / 4)).collect();
        let good = budget.open();
        let held = good.hold(SHARE).expect("it holds little");
        assert_eq!(hogs.iter().filter(|hog| hog.is_closed()).count(), 1);
        assert!(!good.is_closed());
        drop((kept, held));
        assert_eq!(budget.held(), 0);
    }

    /// An account that keeps far more than its share is closed, though the budget has room.
    #[test]
    fn a_hog_is_closed() {
        let account = budget().open();
        let mut held = account.begin(10).unwrap();
        held.becomes_reply(SHARES_HELD_MAX * SHARE);
        assert!(account.is_closed());
        assert_eq!(account.hold(1).err(), Some(Full));
    }

    /// A connection that is refused gives way; refused again and again, it is closed.
    #[test]
    fn who_is_refused_is_closed() {
        let budget = budget();
        let (welcome, refused) = (budget.open(), budget.open());
        for account in [&welcome, &refused] {
            account.hold(1).unwrap();
        }
        refused.note_refused();
        assert!(budget.close_silent());
        assert!(refused.is_closed() && !welcome.is_closed());
        let account = budget.open();
        for _ in 1..REFUSED_MAX {
            account.note_refused();
        }
        assert!(!account.is_closed());
        account.note_refused();
        assert!(account.is_closed());
    }

    /// Room at the door is made by closing those that never asked for anything, oldest first.
    #[test]
    fn silent_ones_give_way() {
        let budget = budget();
        let (spoke, silent) = (budget.open(), budget.open());
        spoke.hold(1).unwrap();
        assert!(budget.close_silent());
        assert!(silent.is_closed() && !spoke.is_closed());
        assert!(!budget.close_silent());
    }
}
