//! Live memory, shadows of it and images of it under random growth, writes and calls, against a
//! model that is a vector of bytes for each.

use proptest::prelude::*;

use super::*;
use crate::wasm::tests::ENGINE;

/// Longest that a memory of the test may grow to, in pages of WebAssembly.
const PAGES_MAX: usize = 48;

/// A step of what a machine does with its guest's memory. Places and lengths are parts of what
/// there is, in thousandths.
#[derive(Clone, Debug)]
enum Step {
    /// A command writes.
    Write { at: usize, length: usize, byte: u8 },
    /// A command grows memory by so many pages.
    Grow(usize),
    /// A query on a fork, which is made anew where the one there is cannot follow. It writes, and
    /// may grow its own memory.
    Query { at: usize, length: usize, byte: u8, grow: usize },
    /// So many pieces of work ahead of queries.
    Warm(usize),
    /// An image is taken, in the room of the last one if nothing else has it.
    Image,
    /// A snapshot is written from the image: it stays as it is for some steps.
    Pin(bool),
    /// A fork of the image reads it all, as an export does.
    Export,
    /// A command failed: the image becomes the memory of a new instance.
    RollBack,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = || (0..1000_usize, 0..400_usize, any::<u8>());
    let step = prop_oneof![
        4 => place().prop_map(|(at, length, byte)| Step::Write { at, length, byte }),
        3 => (0..4_usize).prop_map(Step::Grow),
        4 => (place(), prop_oneof![3 => Just(0), 1 => 1..4_usize]).prop_map(
            |((at, length, byte), grow)| Step::Query { at, length, byte, grow }
        ),
        4 => (1..6_usize).prop_map(Step::Warm),
        1 => Just(Step::Image),
        1 => any::<bool>().prop_map(Step::Pin),
        1 => Just(Step::Export),
        1 => Just(Step::RollBack),
    ];
    proptest::collection::vec(step, 1..60)
}

/// A memory as an instance has it, without the instance.
fn memory(bytes: usize) -> Memory {
    let reserved = PAGES_MAX * 2 * PAGE_BYTES;
    Memory(Arc::new(Mutex::new(Region::new(reserved, bytes).unwrap())))
}

/// Writes as a guest does: to addresses, without asking anybody.
fn write(memory: &Memory, place: &Range<usize>, byte: u8) {
    let base = memory.region().base();
    for offset in place.clone().step_by(509) {
        assert!(offset < memory.bytes());
        // SAFETY: inside of the memory, which this test alone uses; a shadow's page that cannot
        // be written yet faults into the handler of `writes`.
        #[expect(unsafe_code, reason = "stands for a guest; see SAFETY")]
        unsafe {
            base.add(offset).write_volatile(byte);
        }
    }
}

/// The same in a model.
fn write_model(model: &mut [u8], place: &Range<usize>, byte: u8) {
    place.clone().step_by(509).for_each(|offset| model[offset] = byte);
}

/// The bytes that a step means, of so many.
fn place(at: usize, length: usize, bytes: usize) -> Range<usize> {
    let start = at * bytes / 1000;
    start..(start + length * bytes / 1000).min(bytes)
}

/// A machine's memories, each beside what it should hold.
struct Machine {
    live: Memory,
    model: Vec<u8>,
    image: Option<Arc<Image>>,
    image_model: Vec<u8>,
    pinned: Option<(Arc<Image>, Vec<u8>)>,
    fork: Option<Shadow>,
}

impl Machine {
    fn new(bytes: usize) -> Self {
        let live = memory(bytes);
        let image = Some(Arc::new(live.image(None).unwrap()));
        let model = vec![0; bytes];
        Self { live, image_model: model.clone(), model, image, pinned: None, fork: None }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Write { at, length, byte } => {
                let place = place(at, length, self.model.len());
                write(&self.live, &place, byte);
                write_model(&mut self.model, &place, byte);
            }
            Step::Grow(pages) => {
                let bytes = (self.model.len() + pages * PAGE_BYTES).min(PAGES_MAX * PAGE_BYTES);
                self.live.region().grow(bytes).unwrap();
                self.model.resize(bytes, 0);
            }
            Step::Query { at, length, byte, grow } => self.query(at, length, byte, grow),
            Step::Warm(steps) => {
                if let Some(fork) = &mut self.fork {
                    let _ = (0..steps).take_while(|_| fork.warm(&self.live)).count();
                }
            }
            Step::Image => {
                let room = self.image.take().and_then(Arc::into_inner);
                self.image = Some(Arc::new(self.live.image(room).unwrap()));
                self.image_model.clone_from(&self.model);
            }
            Step::Pin(true) => {
                let image = self.image.as_ref().expect("one stands");
                self.pinned = Some((Arc::clone(image), self.image_model.clone()));
            }
            Step::Pin(false) => self.pinned = None,
            Step::Export => {
                let image = self.image.as_ref().expect("one stands");
                let shadow = memory(image.bytes()).shadow_image(image).unwrap();
                assert!(shadow.memory.region().contents() == self.image_model, "an export");
            }
            Step::RollBack => self.roll_back(),
        }
    }

    /// As `Instance::fork` and `Fork::follow` do it.
    fn query(&mut self, at: usize, length: usize, byte: u8, grow: usize) {
        let bytes = self.live.bytes();
        let follows = self.fork.take().filter(|fork| fork.covers(&self.live));
        let fork = match follows {
            Some(fork) => {
                fork.throw_away(&self.live).unwrap();
                fork
            }
            None => memory(bytes).shadow(&self.live).unwrap(),
        };
        assert!(fork.memory.region().contents() == self.model, "a query sees the state");
        fork.watch(|| {
            if grow > 0 {
                fork.memory.region().grow(bytes + grow * PAGE_BYTES).unwrap();
            }
            write(&fork.memory, &place(at, length, bytes + grow * PAGE_BYTES), byte);
        })
        .unwrap();
        self.fork = Some(fork);
    }

    /// As `Instance::roll_back` does it; the fork goes with the memory that it shows.
    fn roll_back(&mut self) {
        self.fork = None;
        let image = self.image.take().expect("one stands");
        let image = Arc::try_unwrap(image).unwrap_or_else(|shared| shared.copy().unwrap());
        let live = memory(image.bytes());
        live.restore(image).unwrap();
        let failed = std::mem::replace(&mut self.live, live);
        self.model.clone_from(&self.image_model);
        let room = failed.into_image();
        self.image = Some(Arc::new(self.live.image(room).unwrap()));
    }

    fn check(&self) {
        assert!(self.live.region().contents() == self.model, "the live memory");
        let image = self.image.as_ref().expect("one stands");
        assert!(image.contents() == self.image_model, "the image");
        if let Some((image, model)) = &self.pinned {
            assert!(image.contents() == *model, "the image that a snapshot is written from");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever a guest's memory goes through, each memory holds what the model says, and what is
    /// done ahead of queries for speed alone fails nothing.
    #[test]
    fn memories_equal_their_models(pages in 1..8_usize, steps in steps()) {
        std::sync::LazyLock::force(&ENGINE);
        let mut machine = Machine::new(pages * PAGE_BYTES);
        for step in steps {
            machine.take(step);
            machine.check();
        }
    }
}

/// A shadow whose source has grown since is warmed as far as it shows it, and no further.
#[test]
fn a_source_that_grew_is_warmed_as_far_as_it_is_shown() {
    std::sync::LazyLock::force(&ENGINE);
    let live = memory(2 * PAGE_BYTES);
    write(&live, &(0..2 * PAGE_BYTES), 1);
    let mut shadow = memory(2 * PAGE_BYTES).shadow(&live).unwrap();
    live.region().grow(40 * PAGE_BYTES).unwrap();
    write(&live, &(0..40 * PAGE_BYTES), 2);
    while shadow.warm(&live) {}
    let shown = shadow.memory.region();
    assert!(shown.contents() == &live.region().contents()[..shown.len()]);
}
