//! The guest of the README: it adds up the whole numbers it is sent, and answers with the total.

use lockstep_guest_sdk::{Context, Rejection, Reply, StateMachine};
use serde::{Deserialize, Serialize};

#[derive(Default, Serialize, Deserialize)]
struct Counter {
    total: i64,
}

impl StateMachine for Counter {
    const NAME: &'static str = "counter";
    type Command<'a> = &'a str;

    fn apply(&mut self, context: &Context, step: &str, reply: &mut Reply) -> Result<(), Rejection> {
        let step: i64 = step.parse().map_err(|_| "not a whole number")?;
        self.total = self.total.checked_add(step).ok_or("the total would overflow")?;
        self.query(context, "", reply)
    }

    fn query(&self, _: &Context, _: &str, reply: &mut Reply) -> Result<(), Rejection> {
        write!(reply, "{}", self.total);
        Ok(())
    }
}

lockstep_guest_sdk::export!(Counter);
