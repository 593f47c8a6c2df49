//! Queries that wait for a guest: asked together, one by one once that has failed, and not at all
//! when their callers no longer wait. Each is answered as soon as its answer is there. Callers take
//! turns: who asks much does not delay who asks little.
//!
//! A query runs on a fork, and nothing that it does is seen. So a clock may decide here what is
//! asked and for how long; it decides nothing about commands.
//!
//! **Invariant:** every query that is pushed is told one answer, or its asker is dropped with the
//! guest.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::config::limits;
use crate::in_turn::InTurn;
use crate::machine::HostFailure;
use crate::machine::guest::expected::Expected;
use crate::types::{LogIndex, Outcome};
use crate::wasm::{self, Context};

/// More fuel than most guests can use in a nanosecond: 1 to 2.5 were measured. Bounding a query by
/// its deadline at this rate ends it soon after that. One that copies or fills much memory uses
/// more in a nanosecond, and so runs out before its deadline: it is asked again at twice the rate.
const FUEL_PER_NS: u64 = 4;
/// Of fewer queries those of callers that are gone are dropped when their turn comes.
const SWEPT_MIN: usize = 1024;

/// What came of a query: nothing when its deadline passed before it was answered.
pub type Told = Result<Option<Outcome>, HostFailure>;

/// Whoever asks a query. Bounded in number and bytes by whoever makes them.
pub trait Asker: Send {
    /// Number of the connection that it asks by: connections take turns.
    fn account(&self) -> u64;

    /// Nobody waits for the answer any more.
    fn is_gone(&self) -> bool;

    /// There is room for one more reply to whoever asks.
    fn has_room(&self) -> bool;

    /// What the reply is taken to have, in bytes.
    fn expected(&self) -> usize;

    /// There was none: it is not asked.
    fn refuse(self: Box<Self>);

    /// The reply is there, and has so many bytes.
    fn keep(&mut self, bytes: usize);

    /// Takes the answer of a guest that had applied the log up to `applied`.
    fn tell(self: Box<Self>, told: Told, applied: LogIndex);
}

/// A query, and who asks it.
pub struct Query {
    /// What the guest will see.
    pub bytes: Bytes,
    /// Until when it is worth asking.
    pub deadline: Instant,
    /// Who is told.
    pub asker: Box<dyn Asker>,
}

/// An answer on its way to whoever asked.
pub(in crate::machine) struct Answer {
    asker: Box<dyn Asker>,
    told: Told,
    applied: LogIndex,
}

impl Answer {
    /// Number of the connection that it goes to.
    pub(in crate::machine) fn account(&self) -> u64 {
        self.asker.account()
    }

    /// Tells it.
    pub(in crate::machine) fn tell(self) {
        self.asker.tell(self.told, self.applied);
    }
}

struct Waiting {
    query: Query,
    /// It was asked with others, and one of them failed.
    alone: bool,
    /// What its deadline gives it for each nanosecond that is left.
    fuel_per_ns: u64,
}

/// The queries that wait for one guest.
pub(in crate::machine) struct Window {
    context: Context,
    waiting: InTurn<Waiting>,
    /// When so many wait, those whose callers are gone are looked for among all of them.
    swept_at: usize,
    expected: Expected,
}

impl Default for Window {
    fn default() -> Self {
        let (context, expected) = (Context::default(), Expected::default());
        Self { context, waiting: InTurn::default(), swept_at: SWEPT_MIN, expected }
    }
}

/// Queries of one call, laid out as commands are.
pub(in crate::machine) struct Asked {
    pub(in crate::machine) context: Context,
    queries: Vec<Query>,
    data: Vec<u8>,
    ends: Vec<u32>,
    fuel_per_ns: u64,
    fuel_max: u64,
}

impl Asked {
    fn new(context: Context, queries: Vec<Query>, fuel_per_ns: u64, now: Instant) -> Self {
        let (mut data, mut ends) = (Vec::new(), Vec::with_capacity(queries.len()));
        for query in &queries {
            data.extend_from_slice(&query.bytes);
            ends.push(u32::try_from(data.len()).expect("calls are bounded"));
        }
        let last = queries.iter().map(|query| query.deadline).max();
        let left = last.map_or(Duration::ZERO, |last| last.saturating_duration_since(now));
        let fuel_max = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
        let fuel_max = fuel_max.saturating_mul(fuel_per_ns);
        Self { context, queries, data, ends, fuel_per_ns, fuel_max }
    }

    /// As a guest is called with them.
    pub(in crate::machine) fn batch(&self) -> wasm::Batch<'_> {
        wasm::Batch { data: &self.data, ends: &self.ends }
    }

    /// Fuel that most of them cannot have used before the last of their deadlines.
    pub(in crate::machine) fn fuel_max(&self) -> u64 {
        self.fuel_max
    }

    /// The host failed.
    pub(in crate::machine) fn fail(self, failure: &HostFailure) {
        for query in self.queries {
            query.asker.tell(Err(failure.clone()), self.context.index);
        }
    }
}

impl Window {
    /// Queries, to be asked in a state that shows the log up to that of `context` at least.
    pub(in crate::machine) fn push(&mut self, context: Context, queries: Vec<Query>) {
        if context.index >= self.context.index {
            self.context = context;
        }
        self.queue(queries, false, FUEL_PER_NS);
        if self.waiting.len() >= self.swept_at {
            // They hold places and bytes that others could have.
            self.waiting.retain(|waiting| !waiting.query.asker.is_gone());
            self.swept_at = SWEPT_MIN.max(self.waiting.len() * 2);
        }
    }

    fn queue(&mut self, queries: impl IntoIterator<Item = Query>, alone: bool, fuel_per_ns: u64) {
        for query in queries {
            self.waiting.push(query.asker.account(), Waiting { query, alone, fuel_per_ns });
        }
    }

    /// The guest has applied an entry: answers from here on show it, and say so.
    pub(in crate::machine) fn applied(&mut self, context: Context) {
        if context.index > self.context.index {
            self.context = Context { seed: 0, ..context };
        }
    }

    pub(in crate::machine) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What to ask now: nothing when nobody waits any more.
    pub(in crate::machine) fn next(&mut self, now: Instant) -> Option<Asked> {
        let (mut queries, mut bytes, mut reply_bytes): (Vec<Query>, _, _) = (Vec::new(), 0, 0);
        let mut rate = FUEL_PER_NS;
        while let Some(Waiting { query, alone, .. }) = self.waiting.peek() {
            if query.asker.is_gone() || !query.asker.has_room() || query.deadline <= now {
                self.pass_over();
                continue;
            }
            bytes += query.bytes.len();
            reply_bytes += query.asker.expected();
            let is_full = queries.len() >= self.expected.count_max()
                || bytes > limits::ENTRY_BYTES_MAX
                || reply_bytes > limits::CALL_REPLY_BYTES_EXPECTED
                || *alone;
            if is_full && !queries.is_empty() {
                break;
            }
            let Some(Waiting { query, alone, fuel_per_ns }) = self.waiting.pop() else { break };
            queries.push(query);
            if alone {
                rate = fuel_per_ns;
                break;
            }
        }
        (!queries.is_empty()).then(|| Asked::new(self.context, queries, rate, now))
    }

    /// Ends the next query without asking it.
    fn pass_over(&mut self) {
        let Some(Waiting { query, .. }) = self.waiting.pop() else { return };
        if query.asker.is_gone() {
            return;
        }
        match query.asker.has_room() {
            true => query.asker.tell(Ok(None), self.context.index),
            false => query.asker.refuse(),
        }
    }

    /// Takes what came of a call; the answers, to be told now. `cut_short` says that it had less
    /// fuel than its machine gives: what ran out of that before its deadline is asked again, with
    /// more.
    pub(in crate::machine) fn settle(
        &mut self,
        asked: Asked,
        result: Result<Vec<Outcome>, Outcome>,
        cut_short: bool,
        now: Instant,
    ) -> Vec<Answer> {
        let (applied, fuel_per_ns) = (asked.context.index, asked.fuel_per_ns);
        let outcomes = match result {
            Ok(outcomes) => outcomes,
            Err(_) if asked.queries.len() > 1 => {
                self.queue(asked.queries, true, FUEL_PER_NS);
                return Vec::new();
            }
            Err(outcome) => vec![outcome],
        };
        let (answered, count) = (outcomes.len(), asked.queries.len());
        assert!(0 < answered && answered <= count, "{answered} outcomes of {count} queries");
        self.expected.learn(outcomes.iter().map(Outcome::length).max().unwrap_or(0));
        let mut queries = asked.queries;
        let rest = queries.split_off(answered);
        self.queue(rest, false, FUEL_PER_NS);
        let mut answers = Vec::with_capacity(answered);
        for (mut query, outcome) in queries.into_iter().zip(outcomes) {
            let is_late = cut_short && matches!(outcome, Outcome::OutOfFuel { .. });
            if is_late && query.deadline > now {
                self.queue([query], true, fuel_per_ns.saturating_mul(2));
                continue;
            }
            query.asker.keep(outcome.length());
            let told = Ok((!is_late).then_some(outcome));
            answers.push(Answer { asker: query.asker, told, applied });
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Caller {
        account: u64,
        gone: bool,
        full: bool,
        told: Arc<Mutex<Option<Told>>>,
    }

    impl Asker for Caller {
        fn account(&self) -> u64 {
            self.account
        }

        fn is_gone(&self) -> bool {
            self.gone
        }

        fn has_room(&self) -> bool {
            !self.full
        }

        fn expected(&self) -> usize {
            0
        }

        fn refuse(self: Box<Self>) {}

        fn keep(&mut self, _: usize) {}

        fn tell(self: Box<Self>, told: Told, _: LogIndex) {
            *self.told.lock().unwrap() = Some(told);
        }
    }

    fn tell(answers: Vec<Answer>) {
        answers.into_iter().for_each(Answer::tell);
    }

    fn context() -> Context {
        Context { index: 1, time_ms: 1, seed: 0 }
    }

    fn query(caller: &Caller, length: usize) -> Query {
        let deadline = Instant::now() + Duration::from_secs(600);
        Query { bytes: vec![0; length].into(), deadline, asker: Box::new(caller.clone()) }
    }

    /// Who is gone or has no room is not asked for; one call has bounded bytes, and as few queries
    /// as long replies call for; each answer is told when it is there.
    #[test]
    fn calls_are_bounded() {
        let (gone, here) = (Caller { gone: true, ..Caller::default() }, Caller::default());
        let mut window = Window::default();
        let full = Caller { full: true, ..Caller::default() };
        window.push(context(), vec![query(&gone, 1), query(&here, 1), query(&full, 1)]);
        let asked = window.next(Instant::now()).unwrap();
        assert_eq!(asked.ends, [1]);
        let long = vec![0; limits::REPLY_BYTES_MAX].into();
        tell(window.settle(asked, Ok(vec![Outcome::Accepted(long)]), false, Instant::now()));
        assert!(here.told.lock().unwrap().is_some());
        window.push(context(), (0..1000).map(|_| query(&here, 1)).collect());
        let count = window.next(Instant::now()).unwrap().ends.len();
        assert_eq!(count, limits::CALL_REPLY_BYTES_EXPECTED / limits::REPLY_BYTES_MAX);
        let mut window = Window::default();
        window.push(context(), (0..10).map(|_| query(&here, limits::COMMAND_BYTES_MAX)).collect());
        assert_eq!(window.next(Instant::now()).unwrap().ends.len(), 2);
    }

    /// Queries that wait behind a command are asked at its index and time, whatever was the newest
    /// when they came: its effect is what they are shown.
    #[test]
    fn answers_name_what_they_show() {
        let caller = Caller::default();
        let mut window = Window::default();
        window.push(context(), vec![query(&caller, 1)]);
        window.applied(Context { index: 3, time_ms: 9, seed: 7 });
        window.push(Context { index: 2, time_ms: 8, seed: 0 }, vec![query(&caller, 1)]);
        let asked = window.next(Instant::now()).unwrap();
        assert_eq!(asked.context, Context { index: 3, time_ms: 9, seed: 0 });
    }

    /// A connection that asks a thousand times delays one that asks once by one call.
    #[test]
    fn connections_take_turns() {
        let greedy = Caller::default();
        let modest = Caller { account: 9, ..Caller::default() };
        let mut window = Window::default();
        window.expected.learn(limits::REPLY_BYTES_MAX);
        window.push(context(), (0..1_000).map(|_| query(&greedy, 1)).collect());
        window.push(context(), vec![query(&modest, 2)]);
        assert_eq!(window.next(Instant::now()).unwrap().ends, [2, 3, 4, 5]);
    }

    /// Queries of callers that are gone do not stay until their turn comes: others have their
    /// places.
    #[test]
    fn who_is_gone_waits_no_longer() {
        let gone = Caller { gone: true, ..Caller::default() };
        let here = Caller { account: 1, ..Caller::default() };
        let mut window = Window::default();
        for _ in 0..100 {
            window.push(context(), (0..100).map(|_| query(&gone, 1)).collect());
            window.push(context(), vec![query(&here, 1)]);
        }
        assert!(window.waiting.len() <= SWEPT_MIN, "{}", window.waiting.len());
        let mut asked = 0;
        while let Some(next) = window.next(Instant::now()) {
            asked += next.ends.len();
        }
        assert_eq!(asked, 100);
    }

    /// What uses more fuel in a nanosecond than is thought runs out before its deadline. It is
    /// asked again at twice the rate, until it is answered or the deadline has passed; fuel that
    /// its machine does not give is an answer.
    #[test]
    fn bulk_instructions_are_no_reason_to_be_late() {
        let out = || Outcome::OutOfFuel { limit: "fuel_per_query", fuel: 1 };
        let now = Instant::now();
        let (mut window, caller) = (Window::default(), Caller::default());
        let deadline = now + Duration::from_millis(100);
        window.push(context(), vec![Query { deadline, ..query(&caller, 1) }]);
        for rate in [4, 8, 16] {
            let asked = window.next(now).unwrap();
            assert_eq!(asked.fuel_max(), rate * 100_000_000);
            tell(window.settle(asked, Err(out()), true, now));
            assert!(caller.told.lock().unwrap().is_none(), "it waits");
        }
        let asked = window.next(now).unwrap();
        tell(window.settle(asked, Err(out()), true, deadline));
        let told = caller.told.lock().unwrap().take();
        assert!(matches!(told, Some(Ok(None))), "its time is over: {told:?}");
        window.push(context(), vec![query(&caller, 1)]);
        let asked = window.next(now).unwrap();
        tell(window.settle(asked, Err(out()), false, now));
        let told = caller.told.lock().unwrap().take();
        assert!(matches!(told, Some(Ok(Some(Outcome::OutOfFuel { .. })))), "{told:?}");
        assert!(window.is_empty());
    }

    /// What a guest leaves of a call waits for the next, and not alone.
    #[test]
    fn what_a_guest_leaves_is_asked_again() {
        let callers: Vec<Caller> = (0..3).map(|_| Caller::default()).collect();
        let mut window = Window::default();
        window.push(context(), callers.iter().map(|caller| query(caller, 1)).collect());
        let asked = window.next(Instant::now()).unwrap();
        let first = vec![Outcome::Accepted(Bytes::from_static(b"1"))];
        tell(window.settle(asked, Ok(first), false, Instant::now()));
        let told = callers.iter().filter(|caller| caller.told.lock().unwrap().is_some());
        assert_eq!(told.count(), 1);
        assert_eq!(window.next(Instant::now()).unwrap().ends, [1, 2]);
    }

    /// After a failure of many each is asked alone, behind those that came meanwhile.
    #[test]
    fn a_failure_is_found_alone() {
        let caller = Caller::default();
        let mut window = Window::default();
        window.push(context(), vec![query(&caller, 1), query(&caller, 2)]);
        let asked = window.next(Instant::now()).unwrap();
        window.push(context(), vec![query(&caller, 3)]);
        tell(window.settle(
            asked,
            Err(Outcome::OutOfFuel { limit: "fuel_per_query", fuel: 1 }),
            false,
            Instant::now(),
        ));
        let lengths = std::iter::from_fn(|| window.next(Instant::now()).map(|asked| asked.ends));
        assert_eq!(lengths.collect::<Vec<_>>(), [[3], [1], [2]]);
    }
}
