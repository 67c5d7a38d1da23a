//! The memory of blocks. Small blocks share chunks: one list of free pieces for each power of two. Chunks are kept for
//! other blocks of their size. A large block has pages of its own.

use std::io;
use std::mem::size_of;
use std::ptr;

use modload_text::{PAGE, Pages};

/// The exponent of the smallest piece: a cache line, so that two threads never write the same line.
const SMALLEST: u32 = 6;
/// The number of sizes, up to 32 KiB.
const SIZES: usize = 10;
/// The size of a chunk.
const CHUNK: usize = 64 << 10;
const PAGE_SIZE: usize = 4096;
const _: () = assert!(PAGE == 4096);

/// A free piece.
#[repr(C)]
struct FreePiece {
    next: *mut FreePiece,
}

/// The free pieces of one size.
#[derive(Clone, Copy)]
struct Pieces {
    free: *mut FreePiece,
    /// The unused rest of the newest chunk.
    fresh: *mut u8,
    rest: usize,
}

/// All memory that is not in use.
pub(crate) struct Slab {
    pieces: [Pieces; SIZES],
    /// Bytes that were taken from the kernel and not returned.
    pub(crate) bytes: usize,
}

// SAFETY: the pieces belong to the slab, and no thread owns them.
unsafe impl Send for Slab {}

/// Returns the number of the size for a block, or `None` if the block gets pages of its own. A piece of 2^N bytes is
/// aligned to 2^N bytes, or to a page.
fn size_number(size: usize, align: usize) -> Option<usize> {
    let piece = size.max(align).checked_next_power_of_two()?.max(1 << SMALLEST);
    let number = usize::try_from(piece.trailing_zeros() - SMALLEST).ok()?;
    (number < SIZES).then_some(number)
}

/// Returns the length of the pages of a large block, whose last bytes hold the [`Pages`] themselves.
fn own_pages(size: usize) -> Option<usize> {
    size.checked_add(size_of::<Pages>())?.checked_next_multiple_of(PAGE_SIZE)
}

impl Slab {
    pub(crate) const fn new() -> Slab {
        let none = Pieces { free: ptr::null_mut(), fresh: ptr::null_mut(), rest: 0 };
        Slab { pieces: [none; SIZES], bytes: 0 }
    }

    /// Returns memory for a block: aligned, and with any contents. The alignment is at most a page.
    pub(crate) fn take(&mut self, size: usize, align: usize) -> io::Result<*mut u8> {
        let Some(number) = size_number(size, align) else {
            let len = own_pages(size).ok_or(io::ErrorKind::InvalidInput)?;
            let pages = Pages::new(len)?;
            let start = pages.as_mut_ptr();
            self.bytes += len;
            // SAFETY: the pages are `len` bytes long and aligned; the block ends before this place.
            let place = unsafe { start.byte_add(len - size_of::<Pages>()) };
            // SAFETY: as above.
            unsafe { place.cast::<Pages>().write(pages) };
            return Ok(start);
        };
        let (pieces, piece) = (&mut self.pieces[number], 1 << (SMALLEST + u32::try_from(number).unwrap_or(0)));
        if !pieces.free.is_null() {
            let found = pieces.free;
            // SAFETY: a piece of the list is memory that nothing else uses, with this value at its start.
            pieces.free = unsafe { found.read() }.next;
            return Ok(found.cast());
        }
        if pieces.rest < piece {
            let chunk = Pages::new(CHUNK)?;
            (pieces.fresh, pieces.rest) = (chunk.as_mut_ptr(), CHUNK);
            self.bytes += CHUNK;
            // Never returned: pieces of it are in use or on a list from here on.
            std::mem::forget(chunk);
        }
        let found = pieces.fresh;
        // SAFETY: the rest of the chunk has room for this piece.
        pieces.fresh = unsafe { found.byte_add(piece) };
        pieces.rest -= piece;
        Ok(found)
    }

    /// Takes memory back.
    ///
    /// # Safety
    /// `at` is the result of [`Slab::take`] of this slab with the same size and alignment, and is not used any more.
    pub(crate) unsafe fn give_back(&mut self, at: *mut u8, size: usize, align: usize) {
        let Some(number) = size_number(size, align) else {
            let len = own_pages(size).unwrap_or(0);
            // SAFETY: `take` has written the pages there.
            let place = unsafe { at.byte_add(len - size_of::<Pages>()) };
            // SAFETY: as above; they are read once.
            drop(unsafe { place.cast::<Pages>().read() });
            self.bytes -= len;
            return;
        };
        let piece = at.cast::<FreePiece>();
        let pieces = &mut self.pieces[number];
        // SAFETY: a piece is at least 64 bytes, aligned, and nothing else uses it.
        unsafe { piece.write(FreePiece { next: pieces.free }) };
        pieces.free = piece;
    }
}

#[cfg(test)]
mod tests {
    use super::{CHUNK, Slab, size_number};

    #[test]
    fn memory_is_aligned_separate_and_used_again() {
        let mut slab = Slab::new();
        let blocks = [(1, 1), (64, 8), (65, 8), (172, 16), (8, 4096), (32 << 10, 64), ((32 << 10) + 1, 4096)];
        let mut taken: Vec<(usize, usize, usize)> = Vec::new();
        for (size, align) in blocks.into_iter().cycle().take(700) {
            let at = slab.take(size, align).unwrap();
            assert_eq!(at.addr() % align, 0);
            // SAFETY: the memory was just taken.
            unsafe { at.write_bytes(0xa5, size) };
            taken.push((at.expose_provenance(), size, align));
        }
        let mut ranges: Vec<_> = taken.iter().map(|(at, size, _)| (*at, at + size)).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|two| two[0].1 <= two[1].0));
        let most = slab.bytes;
        for _ in 0..3 {
            for (at, size, align) in taken.drain(..) {
                // SAFETY: taken above, with the same size and alignment.
                unsafe { slab.give_back(std::ptr::with_exposed_provenance_mut(at), size, align) };
            }
            for (size, align) in blocks.into_iter().cycle().take(700) {
                taken.push((slab.take(size, align).unwrap().expose_provenance(), size, align));
            }
            assert_eq!(slab.bytes, most);
        }
        assert!(size_number(CHUNK, 1).is_none() && size_number(usize::MAX, 1).is_none());
        assert!(slab.take(usize::MAX - 100, 1).is_err());
    }
}
