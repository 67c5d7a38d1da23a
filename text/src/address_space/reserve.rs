//! Reserves address space, and maps memory into the reserved space.

use std::io;

use modload_edit::{Addr, index, wide};

use crate::address_space::pointer::pointer;
use crate::address_space::x86_64::LOW_END;
use crate::vocabulary::machine::PAGE;

/// Address space that belongs to this crate: the arena's, which is never released, or an annex's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reserved {
    pub(crate) start: Addr,
    pub(crate) len: u64,
}

/// The access that a mapping permits, from the start and for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MappingAccess {
    ReadExecute,
    Read,
    ReadWrite,
}

/// The lowest base to ask for: above a non-PIE executable and the first part of its heap.
const LOWEST: u64 = 0x1000_0000;
const TRIES: u32 = 16;

/// Reserves `len` bytes at a random page of the low 2 GiB; `None` if there is no room.
pub(crate) fn low(len: u64) -> Option<Reserved> {
    let pages = LOW_END.checked_sub(LOWEST)?.checked_sub(len)? / PAGE + 1;
    for _ in 0..TRIES {
        let start = LOWEST + random() % pages * PAGE;
        if let Ok(Some(reserved)) = at(Addr::new(start), len) {
            return Some(reserved);
        }
    }
    None
}

/// Reserves exactly this range; `None` if another mapping overlaps it.
pub(crate) fn at(start: Addr, len: u64) -> io::Result<Option<Reserved>> {
    match reserve(start.get(), len, libc::MAP_FIXED_NOREPLACE) {
        Ok(reserved) if reserved.start == start => Ok(Some(reserved)),
        // A kernel without the flag takes the address as a hint.
        Ok(elsewhere) => elsewhere.release().map(|()| None),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reserves `len` bytes at an address that the kernel chooses.
pub(crate) fn anywhere(len: u64) -> io::Result<Reserved> {
    reserve(0, len, 0)
}

fn reserve(start: u64, len: u64, flags: libc::c_int) -> io::Result<Reserved> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | flags;
    let hint = std::ptr::without_provenance_mut(index(start));
    // SAFETY: without MAP_FIXED the kernel never replaces an existing mapping; MAP_FIXED_NOREPLACE fails instead.
    let mapped = unsafe { libc::mmap(hint, index(len), libc::PROT_NONE, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(Reserved { start: Addr::new(wide(mapped.expose_provenance())), len })
}

impl Reserved {
    /// Unmaps the space and all mappings in it. Must only be called while the space is not in use.
    pub(crate) fn release(self) -> io::Result<()> {
        // SAFETY: `reserve` reserved the range, and the caller knows that nothing uses it (yet, or any more).
        let failed = unsafe { libc::munmap(pointer(self.start).cast(), index(self.len)) };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Maps a part of the reserved space, once, with its final access. The memory reads as zeros.
    pub(crate) fn map(self, at: Addr, len: u64, access: MappingAccess) -> io::Result<()> {
        let inside = at.checked_offset_from(self.start).and_then(|offset| offset.checked_add(len));
        if inside.is_none_or(|end| end > self.len) {
            return Err(io::Error::other("the mapping would reach out of the reserved space"));
        }
        let protection = match access {
            MappingAccess::ReadExecute => libc::PROT_READ | libc::PROT_EXEC,
            MappingAccess::Read => libc::PROT_READ,
            MappingAccess::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: MAP_FIXED replaces existing mappings, and the check above ensures that the range is this crate's own
        // reservation, into which no reference exists.
        let mapped = unsafe { libc::mmap(pointer(at).cast(), index(len), protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Faults in writable pages that were not used yet, so that loads need not do so.
pub(crate) fn populate(at: Addr, len: u64) -> io::Result<()> {
    // SAFETY: MADV_POPULATE_WRITE changes no contents and no protection; on a range that is not mapped it fails.
    let failed = unsafe { libc::madvise(pointer(at).cast(), index(len), libc::MADV_POPULATE_WRITE) };
    if failed == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EINVAL) {
        return Err(error);
    }
    // Linux before 5.14 does not know the advice.
    for page in (0..len).step_by(index(PAGE)) {
        // SAFETY: a page of a data stripe that has not been handed out yet, mapped writable; stores the zero that the
        // page reads as.
        unsafe { pointer(at + page).write_volatile(0) };
    }
    Ok(())
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: the buffer is a local variable of eight bytes. On failure it stays zero, and the base is merely
    // predictable.
    unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    u64::from_le_bytes(bytes)
}
