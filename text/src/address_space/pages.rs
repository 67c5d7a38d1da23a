//! Memory that is allocated without the allocator: for a thread that may be in a signal handler, or inside of malloc.

use std::fmt;
use std::io;

use memmap2::{MmapMut, MmapRaw};
use modload_edit::{Addr, index, wide};

use crate::vocabulary::machine::PAGE;

/// Whole pages of zeros, readable and writable and never executable, with one owner. Dropping this value returns them
/// to the kernel.
///
/// Allocating and freeing take one system call each, and neither a lock nor the allocator. So both may be done in a
/// signal handler that saves `errno`, and while threads are held. The pages are lent by a raw pointer only: the owner
/// must order the accesses of several threads and handlers by atomics.
///
/// A forked child has a copy of its own, at the same address.
pub struct Pages {
    memory: MmapRaw,
}

impl Pages {
    /// Allocates pages for `len` bytes. The kernel provides each page at its first access.
    ///
    /// # Errors
    /// The error of mmap(2); `InvalidInput` for no bytes, and for more than fit in an address space.
    pub fn new(len: usize) -> io::Result<Pages> {
        let whole = len.checked_next_multiple_of(index(PAGE)).filter(|len| *len != 0);
        let len = whole.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Pages { memory: MmapMut::map_anon(len)?.into() })
    }

    /// Returns a pointer to the first byte. Valid for [`Pages::len`] bytes, for as long as this value lives.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.memory.as_mut_ptr()
    }

    /// Returns the first address, a multiple of [`PAGE`].
    #[must_use]
    pub fn addr(&self) -> Addr {
        Addr::new(wide(self.as_mut_ptr().expose_provenance()))
    }

    /// Returns the number of bytes: the requested number, rounded up to whole pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Returns `false`: there is at least a page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pages({}, {:#x} bytes)", self.addr(), self.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::Pages;

    /// Returns the access of the mapping that covers `len` bytes from an address on.
    fn access(at: u64, len: usize) -> Option<String> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let range = |range: &str| {
            let (from, to) = range.split_once('-').unwrap();
            u64::from_str_radix(from, 16).unwrap()..u64::from_str_radix(to, 16).unwrap()
        };
        let end = at + u64::try_from(len).unwrap();
        let lines = maps.lines().filter_map(|line| line.split_once(' '));
        let mut lines = lines.map(|(at, rest)| (range(at), rest[..4].to_owned()));
        lines.find(|(range, _)| range.contains(&at) && range.end >= end).map(|(_, access)| access)
    }

    #[test]
    fn pages_are_zero_writable_and_gone_when_dropped() {
        // The pages are so large that the mappings of other tests do not take all of their place.
        let pages = Pages::new((64 << 20) + 1).unwrap();
        let (at, len) = (pages.addr().get(), pages.len());
        assert_eq!((len, at % 4096, access(at, len).as_deref()), ((64 << 20) + 4096, 0, Some("rw-p")));
        for offset in [0, 4096, len - 1] {
            let byte = pages.as_mut_ptr().wrapping_add(offset);
            // SAFETY: a byte of pages that nothing else uses.
            assert_eq!(unsafe { byte.read() }, 0);
            // SAFETY: as above.
            unsafe { byte.write(7) };
            // SAFETY: as above.
            assert_eq!(unsafe { byte.read() }, 7);
        }
        drop(pages);
        assert_eq!(access(at, len), None);
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for (len, kind) in
            [(0, ErrorKind::InvalidInput), (usize::MAX, ErrorKind::InvalidInput), (1 << 60, ErrorKind::OutOfMemory)]
        {
            assert_eq!(Pages::new(len).unwrap_err().kind(), kind, "{len:#x}");
        }
    }
}
