//! The calls of a guest since its image.

use std::ops::Range;
use std::sync::Arc;

use crate::machine::HostFailure;
use crate::machine::entry::batch::Batch;
use crate::machine::guest::history::History;
use crate::types::MachineId;
use crate::wasm::Context;

/// Bytes of batches that stay in memory; of earlier calls only their place in the log does.
const BYTES_MAX: usize = 8 << 20;
/// What a batch takes beside its data.
const BATCH_BYTES: usize = 128;
/// Calls that are remembered at all: each takes some tens of bytes.
const CALLS_MAX: usize = 1 << 20;

/// The calls since the image, and the fuel that they took.
pub(super) struct Journal {
    history: Arc<dyn History>,
    calls: Vec<Call>,
    /// The first call whose batch is in memory.
    recent: usize,
    /// Bytes of the batches in memory.
    bytes: usize,
    fuel: u64,
}

struct Call {
    context: Context,
    machine: MachineId,
    /// Which commands of the entry's batch the guest was called with.
    part: Range<usize>,
    /// None where it has to be fetched.
    batch: Option<Batch>,
}

impl Journal {
    /// No calls yet; batches that go from memory are found in `history`.
    pub(super) fn new(history: Arc<dyn History>) -> Self {
        Self { history, calls: Vec::new(), recent: 0, bytes: 0, fuel: 0 }
    }

    /// Begins anew.
    pub(super) fn clear(&mut self) {
        *self = Self::new(Arc::clone(&self.history));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Whether it can take no more.
    pub(super) fn is_full(&self) -> bool {
        self.calls.len() >= CALLS_MAX
    }

    /// Fuel of its calls.
    pub(super) fn fuel(&self) -> u64 {
        self.fuel
    }

    /// Notes a call that succeeded with `batch`, which is a part of the one in the log.
    pub(super) fn push(&mut self, context: Context, batch: Batch, part: Range<usize>, fuel: u64) {
        let last = self.calls.last().map(|call| call.context.index);
        assert!(last <= Some(context.index), "a call of {} follows {last:?}", context.index);
        assert_eq!(part.len(), batch.count(), "the batch of a call is {part:?} of its entry's");
        let machine = batch.machine();
        let first = self.calls.first().map_or(machine, |call| call.machine);
        assert_eq!(machine, first, "a guest is of one machine");
        self.fuel = self.fuel.saturating_add(fuel);
        self.bytes += taken(&batch);
        self.calls.push(Call { context, machine, part, batch: Some(batch) });
        self.shed(BYTES_MAX);
    }

    /// Lets the oldest batches go from memory until the rest has no more than so many bytes.
    pub(super) fn shed(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max {
            let gone = self.calls[self.recent].batch.take().expect("it is in memory");
            self.bytes = self.bytes.checked_sub(taken(&gone)).expect("it was counted in");
            self.recent += 1;
        }
        assert!(self.recent <= self.calls.len(), "what went from memory was there");
    }

    /// Makes all calls again, in order.
    pub(super) fn replay(
        &self,
        mut call: impl FnMut(&Context, &Batch) -> Result<(), HostFailure>,
    ) -> Result<(), HostFailure> {
        for Call { context, machine, part, batch } in &self.calls {
            match batch {
                Some(batch) => call(context, batch)?,
                None => call(context, &self.fetch(context, *machine, part)?)?,
            }
        }
        Ok(())
    }

    fn fetch(
        &self,
        context: &Context,
        machine: MachineId,
        part: &Range<usize>,
    ) -> Result<Batch, HostFailure> {
        let batch = self.history.batch(context.index, machine).map_err(|error| {
            let index = context.index;
            HostFailure::Stop(format!("log index {index} cannot be applied again: {error}"))
        })?;
        if part.end > batch.count() {
            let index = context.index;
            let reason = format!("log index {index} holds another batch than was applied");
            return Err(HostFailure::Stop(reason));
        }
        Ok(batch.part(part.clone()))
    }
}

fn taken(batch: &Batch) -> usize {
    batch.data().len() + BATCH_BYTES
}
