//! A guest that breaks the contract on request: the first command of a batch that says how.
//!
//! It goes below the SDK, which would not let it.

use std::cell::{Cell, RefCell};
#[expect(clippy::disallowed_types, reason = "its order is what the tests of images are about")]
use std::collections::HashMap;
use std::hint::black_box;

#[cfg(target_family = "wasm")]
use lockstep_guest_sdk::bindings;
use lockstep_guest_sdk::bindings::exports::lockstep::guest::machine as wit;
use lockstep_guest_sdk::{Batch, Level, log};

struct Hostile;

#[expect(clippy::disallowed_types, reason = "its order is what the tests of images are about")]
type Remembered = HashMap<Vec<u8>, u32>;

thread_local! {
    /// What it was told to remember, in an order that depends on where the map lies in memory.
    static REMEMBERED: RefCell<Remembered> = RefCell::default();
    /// What is to go wrong at an export.
    static AT_EXPORT: Cell<AtExport> = const { Cell::new(AtExport::Nothing) };
    /// The rest of an export under way, or of an import as far as it is in.
    static PORTED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What goes wrong at an export.
#[derive(Clone, Copy)]
enum AtExport {
    Nothing,
    /// It traps.
    Trap,
    /// It takes memory until there is no more.
    Hoard,
    /// It never ends, and its chunks are longer than they may be.
    Flood,
    /// It never ends, a byte at a time.
    Drip,
}

/// First byte of an export.
const EXPORT: u8 = b'H';

impl wit::Guest for Hostile {
    fn describe() -> wit::Manifest {
        wit::Manifest {
            name: "hostile".to_owned(),
            schema_version: 1,
            importable_schemas: vec![1],
            read_only: Vec::new(),
            uses_time: false,
        }
    }

    fn apply(_: wit::Context, batch: wit::Batch) -> wit::Replies {
        let requests = Batch::new(&batch.data, &batch.ends).expect("the host sends whole batches");
        let mut answers = Vec::new();
        let mut ends = Vec::new();
        for request in requests.requests() {
            if let Some(misbehaviour) = misbehave(request) {
                return misbehaviour;
            }
            answers.extend_from_slice(&answer(request));
            ends.push(u32::try_from(answers.len()).expect("replies here are short enough"));
        }
        replies(answers, ends, Vec::new())
    }

    fn query(context: wit::Context, batch: wit::Batch) -> wit::Replies {
        Self::apply(context, batch)
    }

    fn export_begin() {
        match AT_EXPORT.get() {
            AtExport::Trap => drop(trap()),
            AtExport::Hoard => drop(hoard()),
            AtExport::Nothing | AtExport::Flood | AtExport::Drip => PORTED.set(exported()),
        }
    }

    fn export_next(max: u32) -> Vec<u8> {
        let max = usize::try_from(max).expect("usize is at least 32 bits");
        match AT_EXPORT.get() {
            AtExport::Flood => vec![0; max + 1],
            AtExport::Drip => vec![0],
            _ => PORTED.with_borrow_mut(|rest| rest.drain(..rest.len().min(max)).collect()),
        }
    }

    fn import_chunk(_: u32, bytes: Vec<u8>, last: bool) -> Result<(), String> {
        PORTED.with_borrow_mut(|ported| ported.extend(bytes));
        if last { import(&PORTED.take()) } else { Ok(()) }
    }
}

/// What it remembers: for each request its length, its bytes and its count, in the order of the
/// requests.
fn exported() -> Vec<u8> {
    let mut bytes = vec![EXPORT];
    REMEMBERED.with_borrow(|remembered| {
        let mut sorted: Vec<_> = remembered.iter().collect();
        sorted.sort();
        for (request, count) in sorted {
            let length = u32::try_from(request.len()).expect("requests are short enough");
            bytes.extend(length.to_le_bytes());
            bytes.extend(request);
            bytes.extend(count.to_le_bytes());
        }
    });
    bytes
}

fn import(bytes: &[u8]) -> Result<(), String> {
    let Some((&EXPORT, mut rest)) = bytes.split_first() else {
        return Err("it takes nothing in".to_owned());
    };
    let cut = || "its export is cut".to_owned();
    while !rest.is_empty() {
        let (length, more) = rest.split_first_chunk().ok_or_else(cut)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).expect("32 bits fit");
        let (request, more) = more.split_at_checked(length).ok_or_else(cut)?;
        let (count, more) = more.split_first_chunk().ok_or_else(cut)?;
        let count = u32::from_le_bytes(*count);
        REMEMBERED.with_borrow_mut(|remembered| remembered.insert(request.to_vec(), count));
        rest = more;
    }
    Ok(())
}

/// Answers what is no misbehaviour; what it does not know it echoes.
fn answer(request: &[u8]) -> Vec<u8> {
    match request {
        b"nan" => not_a_number(),
        b"trap at export" => at_export(AtExport::Trap, request),
        b"hoard at export" => at_export(AtExport::Hoard, request),
        b"flood at export" => at_export(AtExport::Flood, request),
        b"drip at export" => at_export(AtExport::Drip, request),
        b"grow" => grow(),
        _ if request.starts_with(b"big") => [remember(request), vec![b'x'; 600 << 10]].concat(),
        _ if request.starts_with(b"say") => {
            log(Level::Info, &String::from_utf8_lossy(request));
            request.to_vec()
        }
        _ if request.starts_with(b"remember") => remember(request),
        _ if request.starts_with(b"count") => count(request).to_string().into_bytes(),
        _ => request.to_vec(),
    }
}

fn at_export(what: AtExport, request: &[u8]) -> Vec<u8> {
    AT_EXPORT.set(what);
    request.to_vec()
}

/// How often it was told this, this time included.
fn count(request: &[u8]) -> u32 {
    REMEMBERED.with_borrow_mut(|remembered| {
        let count = remembered.entry(request.to_vec()).or_default();
        *count += 1;
        *count
    })
}

/// Bits of results that are no number, of which a processor may choose the sign and the payload.
fn not_a_number() -> Vec<u8> {
    let (zero, nothing, one) = (black_box(0.0_f64), black_box(0.0_f64), black_box(1.0_f64));
    let (infinite, endless) = (one / zero, one / nothing);
    let wide = [zero / nothing, infinite - endless, infinite * zero, -(zero / nothing) + one];
    let signalling = black_box(f32::from_bits(0xffa0_0001));
    let narrow = [signalling + 1.0, black_box(0.0_f32) / black_box(0.0_f32)];
    let wide = wide.iter().map(|number| format!("{:016x} ", number.to_bits()));
    let narrow = narrow.iter().map(|number| format!("{:08x} ", number.to_bits()));
    let text: String = wide.chain(narrow).collect();
    remember(format!("remember {text}").as_bytes());
    text.into_bytes()
}

/// Counts a request, and tells of all that were counted, in the map's own order.
fn remember(request: &[u8]) -> Vec<u8> {
    REMEMBERED.with_borrow_mut(|remembered| {
        *remembered.entry(request.to_vec()).or_default() += 1;
        let one = |(request, count): (&Vec<u8>, &u32)| {
            format!("{}={count} ", String::from_utf8_lossy(request)).into_bytes()
        };
        remembered.iter().flat_map(one).collect()
    })
}

/// What comes of a request to fail.
fn misbehave(request: &[u8]) -> Option<wit::Replies> {
    Some(match request {
        b"panic" => panic!("as it was told to"),
        b"unreachable" => trap(),
        b"spin" => spin(),
        b"recurse" => one_reply(recurse(black_box(u64::MAX)).to_string().into_bytes()),
        b"recurse in memory" => one_reply(fill_stack(u64::MAX).to_string().into_bytes()),
        b"long reply" => one_reply(vec![b'x'; (1 << 20) + 1]),
        b"flood" => one_reply(vec![b'x'; 40 << 20]),
        b"no replies" => replies(Vec::new(), Vec::new(), Vec::new()),
        b"falling ends" => replies(b"abc".to_vec(), vec![3, 2], Vec::new()),
        b"end too far" => replies(b"abc".to_vec(), vec![4], Vec::new()),
        b"rejects another" => replies(b"abc".to_vec(), vec![3], vec![1]),
        b"rejects twice" => replies(b"abc".to_vec(), vec![3], vec![0, 0]),
        b"eat memory" => eat_memory(),
        b"hoard" => hoard(),
        b"grow too far" => one_reply(grow_too_far().to_string().into_bytes()),
        b"chatter" => chatter(),
        b"mutter" => mutter(),
        b"long line" => long_line(),
        b"log" => speak(),
        b"last words" => last_words(),
        b"last words that are no text" => speak_no_text(),
        b"remember and trap" => {
            remember(request);
            trap()
        }
        b"remember and spin" => {
            remember(request);
            spin()
        }
        _ => return None,
    })
}

fn replies(data: Vec<u8>, ends: Vec<u32>, rejected: Vec<u32>) -> wit::Replies {
    wit::Replies { data, ends, rejected }
}

fn one_reply(data: Vec<u8>) -> wit::Replies {
    let end = u32::try_from(data.len()).expect("replies here are short enough");
    replies(data, vec![end], Vec::new())
}

fn trap() -> wit::Replies {
    #[cfg(target_family = "wasm")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_family = "wasm"))]
    unreachable!("only a component is asked to")
}

fn spin() -> wit::Replies {
    let mut turns = 0_u64;
    while black_box(true) {
        turns = black_box(turns.wrapping_add(1));
    }
    one_reply(turns.to_string().into_bytes())
}

/// Recurses without an end, all in registers, so that it fills the host's stack alone.
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    if depth < 2 { depth } else { recurse(depth - 1) ^ recurse(depth - 2).rotate_left(1) }
}

/// Recurses without an end, with something in each frame, so that it fills the guest's own stack.
#[inline(never)]
fn fill_stack(depth: u64) -> u64 {
    let frame = black_box([depth; 8]);
    if black_box(depth == 0) { 0 } else { fill_stack(depth - 1) ^ frame[3] }
}

/// Takes memory until there is no more, and answers how many MiB it got.
fn eat_memory() -> wit::Replies {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut block = Vec::new();
        if block.try_reserve_exact(1 << 20).is_err() {
            let count = taken.len();
            drop(taken);
            return one_reply(count.to_string().into_bytes());
        }
        taken.push(block);
    }
}

/// Takes memory until there is no more, which ends a guest in Rust.
fn hoard() -> wit::Replies {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    while black_box(true) {
        taken.push(vec![1; 1 << 20]);
    }
    one_reply(taken.concat())
}

/// Takes 128 MiB of memory and keeps them, no page of them empty; answers how many pages.
fn grow() -> Vec<u8> {
    let mut block = vec![0_u8; 128 << 20];
    for (number, page) in (1_u64..).zip(block.chunks_mut(4096)) {
        page[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    let pages = block.len() / 4096;
    black_box(block.leak());
    pages.to_string().into_bytes()
}

/// Grows memory by one page, then past what 32 bits can address; answers what the second gave.
fn grow_too_far() -> usize {
    #[cfg(target_family = "wasm")]
    {
        core::arch::wasm32::memory_grow::<0>(1);
        core::arch::wasm32::memory_grow::<0>(65535)
    }
    #[cfg(not(target_family = "wasm"))]
    usize::MAX
}

/// Says a line at each level, and one that would be several.
fn speak() -> wit::Replies {
    log(Level::Error, "an error");
    log(Level::Warn, "a warning");
    log(Level::Info, "news");
    log(Level::Debug, "a detail");
    log(Level::Info, FORGED);
    one_reply(b"said".to_vec())
}

/// A line that would end, and go on as one of the host's, on a terminal in red.
const FORGED: &str = "done\n2026-01-01T00:00:00.000000Z ERROR lockstep_host::node: \
                      forged machine=kv\r\x1b[31m\u{9b}31m\u{202e}";

/// Says 20 lines of errors, and traps.
fn last_words() -> wit::Replies {
    for number in 0..20 {
        log(Level::Error, &format!("line {number}\n\x1b[2J forged"));
    }
    trap()
}

/// Says what is not UTF-8, and traps.
fn speak_no_text() -> wit::Replies {
    #[expect(unsafe_code, reason = "the SDK takes text alone, and this is to be none")]
    // SAFETY: it is handed to the host as bytes, and nothing here reads it as text.
    let no_text = unsafe { std::str::from_utf8_unchecked(black_box(b"\xff\xfe")) };
    log(Level::Error, no_text);
    trap()
}

fn chatter() -> wit::Replies {
    for _ in 0..10_000 {
        log(Level::Info, &"x".repeat(10_000));
    }
    one_reply(b"heard".to_vec())
}

/// Logs nothing, without an end.
fn mutter() -> wit::Replies {
    while black_box(true) {
        log(Level::Info, "");
    }
    one_reply(Vec::new())
}

/// Logs one line of 8 MiB.
fn long_line() -> wit::Replies {
    log(Level::Info, &"x".repeat(8 << 20));
    one_reply(b"said".to_vec())
}

// The names of a component's exports are none that a native linker takes.
#[cfg(target_family = "wasm")]
bindings::export!(Hostile with_types_in bindings);
#[cfg(not(target_family = "wasm"))]
const _: fn() -> wit::Manifest = <Hostile as wit::Guest>::describe;
