//! Queries of real guests: they change nothing, and wait for commands and for each other in order.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::*;
use crate::types::LogIndex;
use crate::wasm::Context;

/// A query that fails, or that writes, changes nothing, and costs no other query its answer.
#[tokio::test]
async fn queries_change_nothing() {
    let mut node = Node::new();
    let hostile = node.create("hostile", "hostile").await;
    let before = node.pieces().await;
    let guest = node.machines.running[&hostile].guest.clone();
    let context = Context { index: 1, time_ms: 1, seed: 0 };
    let ask = async |texts: &[&str]| {
        let queries: Vec<_> = texts.iter().map(|text| (*text, far())).collect();
        let answers = ask_guest(&guest, context, &queries).await;
        answers.into_iter().map(|answer| answer.expect("nothing is late")).collect::<Vec<_>>()
    };
    for _ in 0..3 {
        assert_eq!(ask(&["remember 1"]).await, [accepted("remember 1=1 ")]);
        let outcomes = ask(&["a", "unreachable", "remember 2", "spin", "eat memory"]).await;
        assert_eq!((&outcomes[0], &outcomes[2]), (&accepted("a"), &accepted("remember 2=1 ")));
        assert!(matches!(outcomes[1], Outcome::Trapped(_)), "{outcomes:?}");
        assert_eq!(outcomes[3], out_of_fuel());
        assert!(matches!(outcomes[4], Outcome::Accepted(_)), "{outcomes:?}");
    }
    assert_eq!(node.pieces().await, before);
    assert_eq!(node.execute(hostile, &["remember 1"]).await, [accepted("remember 1=1 ")]);
}

struct Caller(oneshot::Sender<Told>);

impl Asker for Caller {
    fn account(&self) -> u64 {
        0
    }

    fn is_gone(&self) -> bool {
        self.0.is_closed()
    }

    fn has_room(&self) -> bool {
        true
    }

    fn expected(&self) -> usize {
        0
    }

    fn keep(&mut self, _: usize) {}

    fn refuse(self: Box<Self>) {}

    fn tell(self: Box<Self>, told: Told, _: LogIndex) {
        let _ = self.0.send(told);
    }
}

/// Asks a guest queries, and waits for all answers.
async fn ask_guest(
    guest: &GuestHandle,
    context: Context,
    queries: &[(&str, Instant)],
) -> Vec<Option<Outcome>> {
    let (mut asked, mut told) = (Vec::new(), Vec::new());
    for (text, deadline) in queries {
        let (sender, receiver) = oneshot::channel();
        let (bytes, asker) = (text.as_bytes().to_vec().into(), Box::new(Caller(sender)));
        asked.push(Query { bytes, deadline: *deadline, asker });
        told.push(receiver);
    }
    guest.query(context, asked);
    let told = futures::future::join_all(told).await;
    told.into_iter().map(|told| told.unwrap().unwrap()).collect()
}

/// What a query without an end comes to.
fn out_of_fuel() -> Outcome {
    Outcome::OutOfFuel { limit: "fuel_per_query", fuel: limits::FUEL_PER_QUERY_DEFAULT }
}

/// A deadline that no test reaches.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

/// A query whose deadline has passed is not begun, one that would run past it is ended then though
/// it has fuel for a minute, and neither costs another query its answer.
#[tokio::test]
async fn late_queries_are_not_answered() {
    let mut node = Node::new();
    let hostile = node.create("hostile", "hostile").await;
    let fuel_per_query = limits::FUEL_MAX;
    let change = LimitsChange { fuel_per_query: Some(fuel_per_query), ..LimitsChange::default() };
    let response = node.apply(Proposal::SetLimits { machine: hostile, change }).await;
    assert_eq!(response, Response::Nothing);
    let guest = node.machines.running[&hostile].guest.clone();
    let context = Context { index: 1, time_ms: 1, seed: 0 };
    let (now, soon) = (Instant::now(), Instant::now() + Duration::from_millis(100));
    let ask = async |queries: &[(&str, Instant)]| ask_guest(&guest, context, queries).await;
    let answered = |text| Some(accepted(text));
    assert_eq!(ask(&[("a", now), ("b", far()), ("c", now)]).await, [None, answered("b"), None]);
    assert_eq!(ask(&[("a", now)]).await, [None]);
    assert_eq!(ask(&[("spin", soon)]).await, [None]);
    assert_eq!(ask(&[("spin", now), ("a", far())]).await, [None, answered("a")]);
    assert_eq!(node.execute(hostile, &["a"]).await, [accepted("a")]);
}

/// A command goes before all queries but those of the call under way, though these came first.
#[tokio::test]
async fn commands_go_before_queries() {
    let mut node = Node::new();
    let hostile = node.create("hostile", "hostile").await;
    let guest = node.machines.running[&hostile].guest.clone();
    let context = Context { index: 1, time_ms: 1, seed: 0 };
    let spinning = vec![("spin", far()); 10];
    let queries = ask_guest(&guest, context, &spinning);
    tokio::pin!(queries);
    tokio::select! {
        biased;
        answers = &mut queries => panic!("they are answered first: {answers:?}"),
        outcomes = node.execute(hostile, &["a"]) => assert_eq!(outcomes, [accepted("a")]),
    }
    assert_eq!(queries.await, vec![Some(out_of_fuel()); 10]);
}
