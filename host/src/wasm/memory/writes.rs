//! Which pages of a shadow were written, found by faults, so that throwing them away costs as much
//! as was written and not as much as there is.
//!
//! A shadow's pages can only be read at first. The first write to one raises SIGSEGV on the thread
//! that runs the guest; the handler here notes the page, makes it writable and lets the write go
//! on. Where a call wrote a few pages, the shadow keeps them, and they are copied from the source
//! before the next call: what is written once is mostly written again, and a copy is a tenth of
//! two faults and a page given back. Many pages are given back at once.
//!
//! **Invariant:** each page of the shadow that differs from its source is noted.

#![expect(unsafe_code, reason = "handles a signal; each use says why it is sound")]

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::null;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::mm::MprotectFlags;

use super::region::{Region, page_bytes};

/// Pages noted one by one; each can split a mapping, of which a process may have only so many.
/// Beyond it all pages count as written.
const PAGES_MAX: usize = 256;
/// Pages that are kept, and copied before each call.
const KEPT_MAX: usize = 32;
/// Value of `noted` when all pages count as written.
const ALL: usize = usize::MAX;

thread_local! {
    /// The shadow that this thread's guest call runs on.
    static WATCHED: Cell<*const Writes> = const { Cell::new(null()) };
}

/// What was there before our handler: wasmtime's.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Pages of one shadow that can be written, and may have been.
#[derive(Debug)]
pub(in crate::wasm) struct Writes {
    base: usize,
    bytes: usize,
    page_bytes: usize,
    /// How many of `pages` are noted, or `ALL`.
    noted: AtomicUsize,
    /// Numbers of pages.
    pages: [AtomicUsize; PAGES_MAX],
}

/// Puts the handler in front of wasmtime's, whose engine exists by now. Once for the process.
pub(super) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        let mut previous = MaybeUninit::zeroed();
        // SAFETY: a null pointer asks for the present action only, and `previous` has room for it.
        if unsafe { libc::sigaction(libc::SIGSEGV, null(), previous.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error().raw_os_error().unwrap_or_default());
        }
        // SAFETY: the call above has filled it in; all zeros would be valid too.
        PREVIOUS.get_or_init(|| unsafe { previous.assume_init() });
        // SAFETY: all zeros are a valid `sigaction`; the fields that matter are set below.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = on_fault as *const () as usize;
        // As wasmtime has it: on the alternate stack, for a guest may have used up its own, and
        // open to a second fault inside, which the handler behind this one may cause.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: `action` is complete, its handler has the signature that SA_SIGINFO asks for and
        // does only what may be done in one (see there).
        match unsafe { libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or_default()),
        }
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// Handles a fault: ours if this thread watches a shadow and the address is in it, else that of
/// the handler before.
///
/// It does only what a signal handler may: it reads a thread-local without initialiser or
/// destructor, writes atomics, makes one system call, and allocates and locks nothing.
extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let watched = WATCHED.get();
    if !watched.is_null() {
        // SAFETY: `watch` sets the pointer for as long as it borrows the `Writes`, on this thread.
        // The system hands a valid `siginfo_t`, and SIGSEGV has an address.
        let (writes, address) = unsafe { (&*watched, (*info).si_addr() as usize) };
        if writes.note(address) {
            return;
        }
    }
    let previous = PREVIOUS.get().expect("set before the handler");
    if previous.sa_flags & libc::SA_SIGINFO != 0 {
        type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
        // SAFETY: with SA_SIGINFO, the action is a function of this type.
        let handler = unsafe { std::mem::transmute::<usize, Handler>(previous.sa_sigaction) };
        handler(signal, info, context);
    } else {
        // SAFETY: gives the signal back its former action; the fault repeats and meets that.
        unsafe { libc::sigaction(signal, previous, std::ptr::null_mut()) };
    }
}

impl Writes {
    /// Watches a shadow, none of whose pages can be written yet.
    pub(super) fn new(shadow: &Region) -> Self {
        Self {
            base: shadow.base() as usize,
            bytes: shadow.len(),
            page_bytes: page_bytes(),
            noted: AtomicUsize::new(0),
            pages: [const { AtomicUsize::new(0) }; PAGES_MAX],
        }
    }

    /// Length of the shadow when this was made: what it has of its source.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes a call that may write to the shadow.
    pub(in crate::wasm) fn watch<T>(&self, call: impl FnOnce() -> T) -> T {
        struct Reset(*const Writes);
        impl Drop for Reset {
            fn drop(&mut self) {
                WATCHED.set(self.0);
            }
        }
        let _reset = Reset(WATCHED.replace(self));
        call()
    }

    /// Gives the pages back that were written to the shadow, the one this was made for, unless
    /// they are few.
    pub(super) fn trim(&self, shadow: &Region) -> io::Result<()> {
        let noted = self.noted.load(Ordering::Relaxed);
        if noted <= KEPT_MAX {
            return Ok(());
        }
        for run in self.runs(shadow) {
            shadow.forget(run.clone())?;
            shadow.protect(run)?;
        }
        self.noted.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the shadow, the one this was made for, equal to its source as it is now.
    pub(super) fn throw_away(&self, shadow: &Region, source: &Region) -> io::Result<()> {
        self.trim(shadow)?;
        for run in self.runs(shadow) {
            shadow.copy_written(source, run);
        }
        Ok(())
    }

    /// The ranges that were written.
    fn runs(&self, shadow: &Region) -> Vec<Range<usize>> {
        assert_eq!(self.base, shadow.base() as usize, "the writes of another shadow");
        let noted = self.noted.load(Ordering::Relaxed);
        if noted == ALL {
            return std::iter::once(0..self.bytes).collect();
        }
        let numbers = self.pages[..noted].iter();
        let mut pages: Vec<usize> = numbers.map(|page| page.load(Ordering::Relaxed)).collect();
        pages.sort_unstable();
        let runs = pages.chunk_by(|one, next| one + 1 == *next);
        let range = |run: &[usize]| {
            let start = run[0] * self.page_bytes;
            start..start + run.len() * self.page_bytes
        };
        runs.map(range).collect()
    }

    /// Notes the page of `address` and makes it writable; false when the fault is not ours.
    fn note(&self, address: usize) -> bool {
        let Some(offset) = address.checked_sub(self.base).filter(|at| *at < self.bytes) else {
            return false;
        };
        let noted = self.noted.load(Ordering::Relaxed);
        let (start, length) = match noted {
            // Writable already: this fault has another cause.
            ALL => return false,
            PAGES_MAX => (0, self.bytes),
            _ => (offset / self.page_bytes * self.page_bytes, self.page_bytes),
        };
        let rights = MprotectFlags::READ.union(MprotectFlags::WRITE);
        let pointer = (self.base + start) as *mut libc::c_void;
        // SAFETY: the range lies in the shadow, a private mapping whose pages the guest may write;
        // this gives it the right to. The call allocates nothing and leaves `errno` alone.
        if unsafe { rustix::mm::mprotect(pointer, length, rights) }.is_err() {
            return false;
        }
        if noted == PAGES_MAX {
            self.noted.store(ALL, Ordering::Relaxed);
        } else {
            self.pages[noted].store(start / self.page_bytes, Ordering::Relaxed);
            self.noted.store(noted + 1, Ordering::Relaxed);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::tests::ENGINE;

    /// Writes to a shadow never reach its source, are gone after `throw_away`, whether a few pages
    /// were written, more than are kept or more than are noted one by one, and later writes of
    /// the source show.
    #[test]
    fn writes_to_a_shadow_vanish() {
        std::sync::LazyLock::force(&ENGINE);
        let page = page_bytes();
        let pages = 4 * PAGES_MAX;
        let mut live = Region::new(2 * pages * page, pages * page).unwrap();
        live.contents_mut().fill(1);
        let mut shadow = Region::new(2 * pages * page, pages * page).unwrap();
        shadow.shadow(&live).unwrap();
        let writes = Writes::new(&shadow);
        for (round, written) in (0_u8..).zip([3, 3, 2 * PAGES_MAX, 2, 2 * KEPT_MAX, 3]) {
            writes.watch(|| {
                for number in 0..written {
                    // SAFETY: inside of the shadow, which this test alone uses.
                    unsafe { shadow.base().add(number * 2 * page).write_volatile(9) };
                }
            });
            assert_eq!(shadow.contents()[(written - 1) * 2 * page], 9, "round {round}");
            assert!(live.contents().iter().all(|byte| *byte == round + 1), "round {round}");
            writes.trim(&shadow).unwrap();
            let next = round + 2;
            live.contents_mut().fill(next);
            writes.throw_away(&shadow, &live).unwrap();
            assert!(shadow.contents().iter().all(|byte| *byte == next), "round {round}");
        }
    }
}
