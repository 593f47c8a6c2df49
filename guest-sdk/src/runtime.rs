//! What [`export!`](crate::export) expands to: the contract's functions over a state machine.
//!
//! It keeps the one live state of the component. It checks what the host hands over and panics,
//! which is a trap, when the host broke the contract.

use crate::bindings::exports::lockstep::guest::machine as wit;
use crate::export::Export;
use crate::import::Import;
use crate::{Batch, Context, Decode, Level, Replies, StateMachine, log};

/// Bytes of replies after which a call ends, and leaves the rest of its requests to another: so the
/// contract has it for `apply`. It bounds what replies take of the guest's memory.
pub const REPLIES_BYTES: usize = 1 << 20;

/// The state of a component and what is under way around it.
pub struct Live<M: StateMachine> {
    machine: M,
    export: Option<Export<M>>,
    import: Option<Import<M>>,
}

impl<M: StateMachine> Default for Live<M> {
    fn default() -> Self {
        // A trap carries no text, so the reason of a panic is logged before it becomes one.
        std::panic::set_hook(Box::new(|panic| log(Level::Error, &panic.to_string())));
        Self { machine: M::default(), export: None, import: None }
    }
}

/// `describe` of the contract.
pub fn describe<M: StateMachine>() -> wit::Manifest {
    let mut importable_schemas = M::OLDER_SCHEMAS.to_vec();
    importable_schemas.push(M::SCHEMA_VERSION);
    wit::Manifest {
        name: M::NAME.to_owned(),
        schema_version: M::SCHEMA_VERSION,
        importable_schemas,
        read_only: M::READ_ONLY.iter().map(|&name| name.to_owned()).collect(),
        uses_time: M::USES_TIME,
    }
}

impl<M: StateMachine> Live<M> {
    /// `apply` of the contract.
    pub fn apply(&mut self, context: wit::Context, batch: &wit::Batch) -> wit::Replies {
        let context = Context::from(context);
        answer(batch, |request, replies| {
            replies.push(|reply| {
                let command = M::Command::decode(request)?;
                self.machine.apply(&context, command, reply)
            });
        })
    }

    /// `query` of the contract.
    pub fn query(&self, context: wit::Context, batch: &wit::Batch) -> wit::Replies {
        let context = Context::from(context);
        answer(batch, |request, replies| {
            replies.push(|reply| {
                let query = M::Command::decode(request)?;
                self.machine.query(&context, query, reply)
            });
        })
    }

    /// `export-begin` of the contract.
    pub fn export_begin(&mut self) {
        self.export = Some(Export::default());
    }

    /// `export-next` of the contract.
    pub fn export_next(&mut self, bytes_max: u32) -> Vec<u8> {
        let export = self.export.as_mut().expect("the host begins an export before it goes on");
        let bytes_max = usize::try_from(bytes_max).expect("usize is at least 32 bits");
        let chunk = export.next(&self.machine, bytes_max);
        if chunk.is_empty() {
            self.export = None;
        }
        chunk
    }

    /// `import-chunk` of the contract.
    pub fn import_chunk(&mut self, schema: u32, bytes: &[u8], last: bool) -> Result<(), String> {
        if schema != M::SCHEMA_VERSION && !M::OLDER_SCHEMAS.contains(&schema) {
            return Err(format!("schema {schema} is not one that {} imports", M::NAME));
        }
        let import = self.import.get_or_insert_default();
        import.push(schema, bytes)?;
        if last {
            let import = self.import.take().expect("it was just used");
            self.machine = import.finish()?;
        }
        Ok(())
    }
}

impl From<wit::Context> for Context {
    fn from(context: wit::Context) -> Self {
        Self { index: context.index, time_ms: context.time_ms, seed: context.seed }
    }
}

fn answer(batch: &wit::Batch, mut one: impl FnMut(&[u8], &mut Replies)) -> wit::Replies {
    let requests = Batch::new(&batch.data, &batch.ends).expect("the host sends whole batches");
    let mut replies = Replies::with_capacity(requests.count());
    for request in requests.requests() {
        one(request, &mut replies);
        if replies.data.len() >= REPLIES_BYTES {
            break;
        }
    }
    wit::Replies { data: replies.data, ends: replies.ends, rejected: replies.rejected }
}

/// Makes the crate a guest that runs the given [`StateMachine`](crate::StateMachine).
///
/// Once per crate, which must be a `cdylib`. Outside `wasm32` it adds nothing that runs.
#[macro_export]
macro_rules! export {
    ($machine:ty) => {
        const _: () = {
            use std::cell::RefCell;
            use $crate::bindings::exports::lockstep::guest::machine as wit;
            use $crate::runtime::Live;

            thread_local! {
                static LIVE: RefCell<Live<$machine>> = RefCell::default();
            }

            struct Exported;

            impl wit::Guest for Exported {
                fn describe() -> wit::Manifest {
                    $crate::runtime::describe::<$machine>()
                }
                fn apply(context: wit::Context, batch: wit::Batch) -> wit::Replies {
                    LIVE.with_borrow_mut(|live| live.apply(context, &batch))
                }
                fn query(context: wit::Context, batch: wit::Batch) -> wit::Replies {
                    LIVE.with_borrow(|live| live.query(context, &batch))
                }
                fn export_begin() {
                    LIVE.with_borrow_mut(|live| live.export_begin())
                }
                fn export_next(max: u32) -> Vec<u8> {
                    LIVE.with_borrow_mut(|live| live.export_next(max))
                }
                fn import_chunk(schema: u32, bytes: Vec<u8>, last: bool) -> Result<(), String> {
                    LIVE.with_borrow_mut(|live| live.import_chunk(schema, &bytes, last))
                }
            }

            // The names of a component's exports are none that a native linker takes.
            #[cfg(target_family = "wasm")]
    $crate::bindings::export!(Exported with_types_in $crate::bindings);
            #[cfg(not(target_family = "wasm"))]
            const _: fn() -> wit::Manifest = <Exported as wit::Guest>::describe;
        };
    };
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{Rejection, Reply};

    /// Counts its commands, and answers each at length.
    #[derive(Default, Serialize, Deserialize)]
    struct Talker {
        count: usize,
    }

    impl StateMachine for Talker {
        const NAME: &'static str = "talker";
        type Command<'a> = &'a [u8];

        fn apply(&mut self, _: &Context, _: &[u8], reply: &mut Reply<'_>) -> Result<(), Rejection> {
            self.count += 1;
            reply.push(&vec![0; REPLIES_BYTES / 4]);
            Ok(())
        }

        fn query(&self, _: &Context, _: &[u8], reply: &mut Reply<'_>) -> Result<(), Rejection> {
            reply.push(&vec![0; REPLIES_BYTES + 1]);
            Ok(())
        }
    }

    /// What is left of a call once its replies are long enough is neither applied nor answered.
    #[test]
    fn a_call_ends_with_its_bytes_of_replies() {
        let mut live = Live::<Talker>::default();
        let context = wit::Context { index: 1, time_ms: 1, seed: 1 };
        let batch = wit::Batch { data: b"abcdefg".to_vec(), ends: (1..=7).collect() };
        let replies = live.apply(context, &batch);
        assert_eq!((replies.ends.len(), live.machine.count), (4, 4));
        assert_eq!(live.query(context, &batch).ends.len(), 1, "one is always answered");
    }
}
