//! Guests' linear memory under our control: what wasmtime is given to put a memory in, exact
//! images of it, and shadows of it whose writes are thrown away.
//!
//! A guest is admitted only if its state between two calls is its memory alone (`admission`), so an
//! image is all there is to save and to bring back. An image is taken, and memory is
//! replaced, only while no call is under way.

mod region;
#[cfg(test)]
mod tests;
mod writes;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

use super::engine::MEMORY_RESERVATION_BYTES as RESERVED;
use region::Region;
use writes::Writes;

/// Bytes of a page of WebAssembly: memories grow by whole ones.
pub const PAGE_BYTES: usize = 64 << 10;
/// Bytes of a block in which images are compared with zeros and handed on.
const BLOCK_BYTES: usize = 256 << 10;
/// Bytes of a shadow that are mapped in one step ahead of their use: about 0.1 ms.
const WARM_STEP_BYTES: usize = 1 << 20;

/// An exact copy of a guest's linear memory at rest.
#[derive(Debug)]
pub struct Image(Region);

/// A memory that belongs to an instance, and can be reached beside it.
pub(super) struct Memory(Arc<Mutex<Region>>);

/// A memory of an instance that shows another's until it is written, with what it wrote.
pub(super) struct Shadow {
    memory: Memory,
    writes: Box<Writes>,
    /// What is not mapped yet of its source's pages, as they were when that was asked first.
    cold: Option<VecDeque<Range<usize>>>,
}

/// What the memory that is made next on this thread shall be, and what became of it.
#[derive(Default)]
struct Next {
    /// Its length, if it is not the least that the module asks for.
    bytes: Option<usize>,
    made: Option<Memory>,
    failure: Option<String>,
}

thread_local! {
    static NEXT: RefCell<Next> = RefCell::default();
}

/// Makes the memories of instances.
pub(super) struct HostMemory;

/// A memory as wasmtime holds it.
struct Linear {
    region: Arc<Mutex<Region>>,
    capacity: usize,
}

/// Prepares the process for shadows. Called once the engine exists.
pub(super) fn prepare() -> io::Result<()> {
    writes::install()
}

/// Runs `instantiate`, which makes at most one memory, `bytes` long if that is given. The memory,
/// or why the host could not make it.
pub(super) fn creating<T>(
    bytes: Option<usize>,
    instantiate: impl FnOnce() -> T,
) -> (T, Result<Option<Memory>, String>) {
    NEXT.set(Next { bytes, ..Next::default() });
    let made = instantiate();
    let next = NEXT.take();
    (made, next.failure.map_or(Ok(next.made), Err))
}

impl Image {
    /// An image of `bytes` zeros, to be filled in.
    pub fn zeroed(bytes: usize) -> io::Result<Self> {
        Region::new(reserved_for(bytes), bytes).map(Self)
    }

    /// Another image that is equal.
    pub fn copy(&self) -> io::Result<Self> {
        let mut copy = Region::new(reserved_for(self.bytes()), self.bytes())?;
        copy.copy_from(&self.0)?;
        Ok(Self(copy))
    }

    /// Length of the memory.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// The memory.
    pub fn contents(&self) -> &[u8] {
        self.0.contents()
    }

    /// Puts `bytes` at `offset`; false when they do not fit.
    pub fn put(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let end = offset.checked_add(bytes.len());
        let place = end.and_then(|end| self.0.contents_mut().get_mut(offset..end));
        place.is_some_and(|place| {
            place.copy_from_slice(bytes);
            true
        })
    }

    /// The ranges of equal-sized blocks that hold anything but zeros, in order: a function of the
    /// content alone, equal on all nodes.
    pub fn blocks(&self) -> io::Result<impl Iterator<Item = Range<usize>>> {
        let mut extents = self.0.extents()?.into_iter().peekable();
        let (bytes, contents) = (self.bytes(), self.contents());
        let blocks = (0..bytes).step_by(BLOCK_BYTES);
        Ok(blocks.map(move |start| start..(start + BLOCK_BYTES).min(bytes)).filter(move |block| {
            while extents.next_if(|extent| extent.end <= block.start).is_some() {}
            let has_pages = extents.peek().is_some_and(|extent| extent.start < block.end);
            has_pages && contents[block.clone()].iter().any(|byte| *byte != 0)
        }))
    }
}

impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        self.contents() == other.contents()
    }
}

impl Memory {
    /// Copies the memory at rest into `into`, or into a new image.
    pub(super) fn image(&self, into: Option<Image>) -> io::Result<Image> {
        let source = self.region();
        let mut region = match into {
            Some(Image(region)) => region,
            None => Region::new(reserved_for(source.len()), source.len())?,
        };
        region.copy_from(&source)?;
        Ok(Image(region))
    }

    /// Replaces the memory by an image of the same length, which is used up.
    pub(super) fn restore(&self, image: Image) -> io::Result<()> {
        self.region().take_pages(image.0)
    }

    /// Makes it show `source`.
    pub(super) fn shadow(self, source: &Self) -> io::Result<Shadow> {
        let source = source.region();
        self.shadow_region(&source)
    }

    /// Makes it show an image.
    pub(super) fn shadow_image(self, source: &Image) -> io::Result<Shadow> {
        self.shadow_region(&source.0)
    }

    fn shadow_region(self, source: &Region) -> io::Result<Shadow> {
        let writes = {
            let mut region = self.region();
            region.shadow(source)?;
            Box::new(Writes::new(&region))
        };
        Ok(Shadow { memory: self, writes, cold: None })
    }

    pub(super) fn bytes(&self) -> usize {
        self.region().len()
    }

    /// The memory of an instance that is gone, as room for an image.
    pub(super) fn into_image(self) -> Option<Image> {
        let region = Arc::into_inner(self.0)?;
        Some(Image(region.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }

    fn region(&self) -> MutexGuard<'_, Region> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Shadow {
    /// Makes a call of the instance whose memory this is. What it wrote is given back, unless it
    /// is little.
    pub(super) fn watch<T>(&self, call: impl FnOnce() -> T) -> io::Result<T> {
        let result = self.writes.watch(call);
        self.writes.trim(&self.memory.region())?;
        Ok(result)
    }

    /// Whether it can show all of `source` as it is now, which it was made of: not where memory
    /// grew, here or there.
    pub(super) fn covers(&self, source: &Memory) -> bool {
        let made_with = self.writes.bytes();
        source.bytes() == made_with && self.memory.bytes() == made_with
    }

    /// Throws away what was written, so that it shows `source`, which it covers, as it is now.
    pub(super) fn throw_away(&self, source: &Memory) -> io::Result<()> {
        assert!(self.covers(source), "memory has grown since this shadow was made");
        self.writes.throw_away(&self.memory.region(), &source.region())
    }

    /// Maps some more of the pages of `source`, before they are asked for; false when all are.
    ///
    /// This only saves time, so nothing that goes wrong here is an error: pages that are not mapped
    /// now are mapped when they are read.
    pub(super) fn warm(&mut self, source: &Memory) -> bool {
        let warmed = self.warm_step(source).unwrap_or_else(|error| {
            tracing::debug!(%error, "pages are mapped as they are used");
            false
        });
        if !warmed {
            self.cold = Some(VecDeque::new());
        }
        warmed
    }

    fn warm_step(&mut self, source: &Memory) -> io::Result<bool> {
        let memory = self.memory.region();
        let cold = match &mut self.cold {
            Some(cold) => cold,
            None => {
                let source = source.region();
                // The source may have grown since it was shadowed, and then has pages that this
                // shadow does not show.
                let shown = memory.len().min(source.len());
                self.cold.insert(source.extents_within(0..shown)?.into())
            }
        };
        let Some(extent) = cold.front_mut() else { return Ok(false) };
        let end = extent.end.min(extent.start + WARM_STEP_BYTES);
        memory.populate(extent.start..end)?;
        extent.start = end;
        if extent.start == extent.end {
            cold.pop_front();
        }
        Ok(true)
    }
}

/// SAFETY: `new_memory` returns zeroed memory of the length asked for, or longer, at an
/// address that never changes, followed by inaccessible addresses up to the end of reservation and
/// guard (`Region`'s invariant). A memory is changed from outside only by `Memory::restore` and
/// `Memory::shadow`, which `Guest` calls when no call of the instance is under way, and they keep
/// address and length.
#[expect(unsafe_code, reason = "wasmtime must be able to rely on the memory; see SAFETY")]
unsafe impl MemoryCreator for HostMemory {
    fn new_memory(
        &self,
        _: MemoryType,
        minimum: usize,
        _: Option<usize>,
        reserved: Option<usize>,
        guard: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let capacity = reserved.ok_or("memory that may move is not offered")?;
        NEXT.with_borrow_mut(|next| {
            let bytes = next.bytes.unwrap_or(minimum).max(minimum);
            let region = Region::new(capacity + guard, bytes).map_err(|error| {
                let failure = format!("no memory for a guest: {error}");
                next.failure = Some(failure.clone());
                failure
            })?;
            let region = Arc::new(Mutex::new(region));
            next.made = Some(Memory(Arc::clone(&region)));
            Ok(Box::new(Linear { region, capacity }) as Box<dyn LinearMemory>)
        })
    }
}

impl Linear {
    fn region(&self) -> MutexGuard<'_, Region> {
        self.region.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// SAFETY: base and capacity are fixed when the region is made; the length is what can be
/// accessed, and only `grow_to` changes it.
#[expect(unsafe_code, reason = "wasmtime must be able to rely on the memory; see SAFETY")]
unsafe impl LinearMemory for Linear {
    fn byte_size(&self) -> usize {
        self.region().len()
    }

    fn byte_capacity(&self) -> usize {
        self.capacity
    }

    fn grow_to(&mut self, bytes: usize) -> wasmtime::Result<()> {
        self.region().grow(bytes).map_err(Into::into)
    }

    fn as_ptr(&self) -> *mut u8 {
        self.region().base()
    }
}

/// Addresses for an image; the pages of memories that outgrew it come with addresses of their own.
fn reserved_for(bytes: usize) -> usize {
    bytes
        .next_multiple_of(region::page_bytes())
        .max(usize::try_from(RESERVED).expect("addresses have 64 bits"))
}
