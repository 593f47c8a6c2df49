//! One linear memory in this process: addresses set aside for all it may ever grow to, and the
//! pages it has.
//!
//! Pages are those of an anonymous file, so that another region can map them privately and see
//! every write of the owner until it writes itself (`shadow`), and so that the pages of one region
//! can become those of another without a copy (`take_pages`).
//!
//! **Invariant:** the addresses `base .. base + reserved` belong to this region alone, from its
//! making to its end. Of them `base .. base + bytes` can be accessed, and the rest traps.
//! **Invariant:** a region with a file has all of its accessible pages from that file, at equal
//! offsets.

#![expect(unsafe_code, reason = "maps memory; each use says why it is sound")]

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, MemfdFlags, SeekFrom};
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

/// Regions begin at multiples of this many bytes, so that moving pages moves whole page tables.
const ALIGNMENT: usize = 2 << 20;
/// No access.
const NONE: ProtFlags = ProtFlags::empty();
/// Accessible for reads and writes.
const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// A linear memory. Dropping it gives addresses and pages back.
#[derive(Debug)]
pub(in crate::wasm) struct Region {
    base: NonNull<u8>,
    reserved: usize,
    bytes: usize,
    /// Where its pages are; none for a shadow.
    file: Option<OwnedFd>,
}

// SAFETY: a region is a range of addresses that it owns, like a `Vec`; nothing in it is tied to
// the thread that made it.
unsafe impl Send for Region {}
// SAFETY: through `&Region` memory is only read. Whoever writes has `&mut Region`, or is the guest
// whose memory it is, and `Guest` hands the region out only while no call is under way.
unsafe impl Sync for Region {}

impl Region {
    /// A region of `bytes` zeros in `reserved` bytes of addresses. Both are whole pages.
    ///
    /// # Errors
    /// The system has no memory, addresses or file descriptors left.
    pub(super) fn new(reserved: usize, bytes: usize) -> io::Result<Self> {
        assert!(bytes <= reserved && reserved.is_multiple_of(page_bytes()), "{bytes} {reserved}");
        let base = reserve(reserved)?;
        let mut region = Self { base, reserved, bytes: 0, file: None };
        region.file = Some(rustix::fs::memfd_create("guest-memory", MemfdFlags::CLOEXEC)?);
        region.grow(bytes)?;
        Ok(region)
    }

    pub(super) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes that can be accessed.
    pub(in crate::wasm) fn len(&self) -> usize {
        self.bytes
    }

    /// Lengthens it with zeros.
    pub(super) fn grow(&mut self, bytes: usize) -> io::Result<()> {
        assert!(self.bytes <= bytes && bytes <= self.reserved, "{} to {bytes}", self.bytes);
        if let Some(file) = &self.file {
            rustix::fs::ftruncate(file, as_u64(bytes))?;
        }
        self.map(self.bytes..bytes)?;
        self.bytes = bytes;
        Ok(())
    }

    /// The memory at rest.
    pub(in crate::wasm) fn contents(&self) -> &[u8] {
        // SAFETY: `base .. base + bytes` is mapped readable for as long as `self` is borrowed, is
        // initialised (pages start as zeros), and is not written meanwhile (see `Sync`).
        unsafe { std::slice::from_raw_parts(self.base(), self.bytes) }
    }

    /// The memory at rest, to be filled in.
    pub(in crate::wasm) fn contents_mut(&mut self) -> &mut [u8] {
        assert!(self.file.is_some(), "a shadow is not written from outside");
        // SAFETY: as in `contents`; the range is writable, since it is no shadow, and `&mut self`
        // makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.base(), self.bytes) }
    }

    /// The parts of `range` that may hold something else than zeros, in order.
    pub(in crate::wasm) fn extents_within(
        &self,
        range: Range<usize>,
    ) -> io::Result<Vec<Range<usize>>> {
        let extents = self.extents()?.into_iter();
        let within = extents.map(|part| part.start.max(range.start)..part.end.min(range.end));
        Ok(within.filter(|part| !part.is_empty()).collect())
    }

    /// Ranges that may hold something else than zeros, in order: what has pages.
    pub(in crate::wasm) fn extents(&self) -> io::Result<Vec<Range<usize>>> {
        let file = self.file.as_ref().expect("only what has pages of its own is asked");
        let mut extents = Vec::new();
        let mut end = 0;
        loop {
            let start = match rustix::fs::seek(file, SeekFrom::Data(end)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => return Ok(extents),
                Err(error) => return Err(error.into()),
            };
            end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
            extents.push(as_usize(start)..as_usize(end).min(self.bytes));
            if as_usize(end) >= self.bytes {
                return Ok(extents);
            }
        }
    }

    /// Becomes equal to `source`, in length and content. Pages that neither has are not touched.
    pub(super) fn copy_from(&mut self, source: &Self) -> io::Result<()> {
        self.resize(source.bytes)?;
        let mut end = 0;
        for extent in source.extents()? {
            self.clear(end..extent.start)?;
            end = extent.end;
            self.contents_mut()[extent.clone()].copy_from_slice(&source.contents()[extent]);
        }
        self.clear(end..source.bytes)
    }

    /// Takes over the pages of a region of equal length, and with them its content, without a
    /// copy. The addresses of `self` stay as they are.
    pub(super) fn take_pages(&mut self, mut from: Self) -> io::Result<()> {
        assert_eq!(self.bytes, from.bytes, "pages are taken by regions of equal length");
        assert!(self.file.is_some() && from.file.is_some(), "a shadow has no pages of its own");
        if self.bytes > 0 {
            // SAFETY: both ranges belong to regions that this call owns or borrows exclusively, so
            // nothing else refers to what is replaced. DONTUNMAP keeps the range of `from` mapped,
            // so its addresses stay its own until it is dropped.
            unsafe {
                rustix::mm::mremap_fixed(
                    from.pointer(0),
                    from.bytes,
                    from.bytes,
                    MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP,
                    self.pointer(0),
                )?;
            }
        }
        self.file = from.file.take();
        Ok(())
    }

    /// Becomes a private view of `source`: it shows what `source` shows, later writes too, until a
    /// page is written here. Its pages can be read; the first write faults (`writes`).
    pub(super) fn shadow(&mut self, source: &Self) -> io::Result<()> {
        assert_eq!(self.bytes, source.bytes, "a shadow is as long as its source");
        let file = source.file.as_ref().expect("a shadow is not shadowed");
        if self.bytes > 0 {
            let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
            // SAFETY: the range belongs to `self`, which is borrowed exclusively; what was mapped
            // there is replaced as a whole.
            unsafe {
                rustix::mm::mmap(self.pointer(0), self.bytes, ProtFlags::READ, flags, file, 0)?;
            }
        }
        self.file = None;
        Ok(())
    }

    /// Throws the private pages of a shadow in `range` away, so that it shows its source again.
    pub(super) fn forget(&self, range: Range<usize>) -> io::Result<()> {
        assert!(self.file.is_none() && range.end <= self.bytes, "{range:?} of {}", self.bytes);
        // SAFETY: the range lies in this region, which is a shadow: a private mapping of a file
        // that outlives the mapping. Only content is lost, and nobody holds a reference to it,
        // since `contents` of a shadow is taken nowhere while it is in use.
        unsafe {
            rustix::mm::madvise(self.pointer(range.start), range.len(), Advice::LinuxDontNeed)?;
        }
        Ok(())
    }

    /// Copies a range of `source` over pages of this shadow that were written.
    pub(super) fn copy_written(&self, source: &Self, range: Range<usize>) {
        assert!(self.file.is_none() && range.end <= self.bytes, "{range:?} of {}", self.bytes);
        let from = &source.contents()[range.clone()];
        // SAFETY: the range lies in this region, which is a shadow, and is writable, since it was
        // written; if it were not, the process would fault and nothing be overwritten. It overlaps
        // no other region, and nobody holds a reference to it, as in `forget`.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), self.base().add(range.start), from.len());
        }
    }

    /// Has the system map pages of this shadow, so that reading them faults no more.
    pub(super) fn populate(&self, range: Range<usize>) -> io::Result<()> {
        assert!(self.file.is_none() && range.end <= self.bytes, "{range:?} of {}", self.bytes);
        let (start, advice) = (self.pointer(range.start), Advice::LinuxPopulateRead);
        // SAFETY: the range lies in this region, and it is only read; no content changes.
        unsafe { rustix::mm::madvise(start, range.len(), advice)? };
        Ok(())
    }

    /// Lets writes to a shadow fault again.
    pub(super) fn protect(&self, range: Range<usize>) -> io::Result<()> {
        assert!(self.file.is_none() && range.end <= self.bytes, "{range:?} of {}", self.bytes);
        // SAFETY: as in `forget`; fewer rights make no access undefined, it faults.
        unsafe {
            rustix::mm::mprotect(self.pointer(range.start), range.len(), MprotectFlags::READ)?;
        }
        Ok(())
    }

    /// Zeros, without pages.
    fn clear(&mut self, range: Range<usize>) -> io::Result<()> {
        let Some(file) = self.file.as_ref().filter(|_| !range.is_empty()) else { return Ok(()) };
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(file, mode, as_u64(range.start), as_u64(range.len()))?)
    }

    fn resize(&mut self, bytes: usize) -> io::Result<()> {
        if bytes >= self.bytes {
            return self.grow(bytes);
        }
        let (gone, flags) = (bytes..self.bytes, MapFlags::PRIVATE | MapFlags::FIXED);
        // SAFETY: the range belongs to `self`, which is borrowed exclusively; it goes back to what
        // it was before it was grown into.
        unsafe {
            let flags = flags | MapFlags::NORESERVE;
            rustix::mm::mmap_anonymous(self.pointer(gone.start), gone.len(), NONE, flags)?;
        }
        self.bytes = bytes;
        let file = self.file.as_ref().expect("a shadow is never resized");
        Ok(rustix::fs::ftruncate(file, as_u64(bytes))?)
    }

    /// Makes a range accessible that was not.
    fn map(&self, range: Range<usize>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let (address, length) = (self.pointer(range.start), range.len());
        // SAFETY: the range lies in what this region reserved and could not be accessed so far, so
        // no reference into it exists.
        unsafe {
            match &self.file {
                Some(file) => {
                    let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
                    let offset = as_u64(range.start);
                    rustix::mm::mmap(address, length, READ_WRITE, flags, file, offset)?;
                }
                None => {
                    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
                    rustix::mm::mmap_anonymous(address, length, READ_WRITE, flags)?;
                }
            }
        }
        Ok(())
    }

    fn pointer(&self, offset: usize) -> *mut c_void {
        assert!(offset <= self.reserved, "{offset} of {}", self.reserved);
        self.base().wrapping_add(offset).cast()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range is this region's own, and whoever could use it is gone with it.
        let unmapped = unsafe { rustix::mm::munmap(self.pointer(0), self.reserved) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, "cannot give the addresses of a guest's memory back");
        }
    }
}

/// Bytes of a page of this system.
pub(super) fn page_bytes() -> usize {
    rustix::param::page_size()
}

/// Sets `length` bytes of addresses aside, aligned, that cannot be accessed.
fn reserve(length: usize) -> io::Result<NonNull<u8>> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let with_room = length + ALIGNMENT;
    // SAFETY: a new mapping where the system likes; nothing refers to it.
    let start = unsafe {
        rustix::mm::mmap_anonymous(std::ptr::null_mut(), with_room, NONE, flags)?.cast::<u8>()
    };
    let before = start.align_offset(ALIGNMENT);
    let base = start.wrapping_add(before);
    let behind = with_room - before - length;
    for (part, length) in [(start, before), (base.wrapping_add(length), behind)] {
        if length > 0 {
            // SAFETY: the part belongs to the mapping just made and lies outside of the region.
            unsafe { rustix::mm::munmap(part.cast(), length)? };
        }
    }
    NonNull::new(base).ok_or_else(|| io::Error::other("the system mapped memory at address 0"))
}

fn as_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("addresses have at most 64 bits")
}

fn as_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("offsets in memory fit")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 64 << 10;

    fn region(pages: usize) -> Region {
        Region::new(64 * PAGE, pages * PAGE).unwrap()
    }

    /// A copy equals its source whatever either held before, and holes stay holes.
    #[test]
    fn a_copy_equals_its_source() {
        let mut source = region(8);
        source.contents_mut()[3 * PAGE] = 7;
        let mut copy = region(12);
        copy.contents_mut().fill(9);
        copy.copy_from(&source).unwrap();
        // Before the comparison, which gives pages to what it reads.
        assert_eq!(copy.extents().unwrap(), source.extents().unwrap());
        assert_eq!(copy.contents(), source.contents());
        source.grow(20 * PAGE).unwrap();
        source.contents_mut()[19 * PAGE] = 8;
        copy.copy_from(&source).unwrap();
        assert_eq!(copy.contents(), source.contents());
    }

    /// Taking pages moves the content to the taker's addresses, where it can be written.
    #[test]
    fn pages_move_without_a_copy() {
        let mut image = region(40);
        image.contents_mut()[5] = 1;
        image.contents_mut()[39 * PAGE] = 2;
        let expected = image.contents().to_vec();
        let mut live = region(40);
        live.contents_mut().fill(3);
        let base = live.base();
        live.take_pages(image).unwrap();
        assert_eq!((live.contents(), live.base()), (&*expected, base));
        live.contents_mut()[6] = 4;
        live.grow(50 * PAGE).unwrap();
        assert_eq!((live.contents()[6], live.contents()[50 * PAGE - 1]), (4, 0));
    }

    /// A shadow shows its source's later writes, and again after it was told to forget its own.
    #[test]
    fn a_shadow_follows_its_source() {
        let mut live = region(4);
        live.contents_mut()[0] = 1;
        let mut shadow = region(4);
        shadow.shadow(&live).unwrap();
        assert_eq!(shadow.contents()[0], 1);
        live.contents_mut()[PAGE] = 2;
        assert_eq!(shadow.contents()[PAGE], 2);
        shadow.forget(0..4 * PAGE).unwrap();
        assert_eq!(shadow.contents(), live.contents());
    }
}
