//! Blocks: the thread-local storage of a module or of a library.

use modload_edit::index;

use crate::deliver::{NotDelivered, deliver};
use crate::error::{ALIGN, TlsError};
use crate::reserve::ReserveSlice;
use crate::table::{self, BlockContents, BlockSource};

/// The thread-local storage of one module, or of a library of the process. Dropping it frees the copies of all threads.
#[derive(Debug)]
pub struct ThreadLocalBlock {
    number: usize,
    size: usize,
    /// The initial contents of a copy.
    image: Box<[u8]>,
    /// The part of the reserve in which the block lies.
    slice: Option<ReserveSlice>,
}

impl ThreadLocalBlock {
    /// Makes a block for a module, of `size` bytes with this alignment. A copy is zero until the
    /// [image](ThreadLocalBlock::set_image) is set.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new(size: u64, align: u64) -> Result<ThreadLocalBlock, TlsError> {
        if align > ALIGN {
            return Err(TlsError::Align(align));
        }
        Self::reserve(size, align, BlockSource::Contents(BlockContents::ZEROS))
    }

    /// Makes a block for a module whose code works with any block: one with a fixed offset if that costs nothing, because
    /// accesses are cheaper then. `is_zero` says that its contents are zero.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new_cheapest(size: u64, align: u64, is_zero: bool) -> Result<ThreadLocalBlock, TlsError> {
        match ReserveSlice::take_spare(size, align, is_zero) {
            Some(slice) => Self::in_reserve(size, align, slice),
            None => Self::new(size, align),
        }
    }

    /// Makes a block for a module whose code needs a fixed offset from the thread pointer.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new_fixed(size: u64, align: u64) -> Result<ThreadLocalBlock, TlsError> {
        Self::in_reserve(size, align, ReserveSlice::take(size, align)?)
    }

    fn in_reserve(size: u64, align: u64, slice: ReserveSlice) -> Result<ThreadLocalBlock, TlsError> {
        let mut block = Self::reserve(size, align, BlockSource::Fixed(distance(&slice), BlockContents::ZEROS))?;
        block.slice = Some(slice);
        Ok(block)
    }

    /// Makes a block for the library that the C library knows by this number (`dlpi_tls_modid`).
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn of_library(number: usize) -> Result<ThreadLocalBlock, TlsError> {
        Self::reserve(0, 1, BlockSource::Library(number))
    }

    fn reserve(size: u64, align: u64, source: BlockSource) -> Result<ThreadLocalBlock, TlsError> {
        let (size, align) = (index(size), index(align.max(1)));
        let number = table::lock().reserve(size, align, source).ok_or(TlsError::Numbers(table::USABLE))?;
        Ok(ThreadLocalBlock { number, size, image: Box::default(), slice: None })
    }

    /// Returns the number of the block, as pairs and descriptors hold it.
    #[must_use]
    pub fn number(&self) -> u32 {
        u32::try_from(8 * self.number).unwrap_or(u32::MAX)
    }

    /// Returns the distance from the thread pointer, if it is the same in every thread.
    #[must_use]
    pub fn thread_pointer_offset(&self) -> Option<i64> {
        self.slice.as_ref().map(ReserveSlice::thread_pointer_offset)
    }

    /// Sets the initial contents: of copies that are made from now on, or of all threads' copies if the block has a
    /// fixed offset. The rest of a copy is zero. No code of the block's owner has run yet.
    ///
    /// # Errors
    /// [`NotDelivered`] if the contents cannot be brought into every thread.
    ///
    /// # Panics
    /// If the image is longer than the block.
    pub fn set_image(&mut self, image: Box<[u8]>) -> Result<(), NotDelivered> {
        assert!(image.len() <= self.size, "an image of {} bytes is longer than its block", image.len());
        let before = std::mem::replace(&mut self.image, image);
        let image = BlockContents { start: self.image.as_ptr(), len: self.image.len() };
        let source = match &self.slice {
            None => BlockSource::Contents(image),
            Some(slice) => BlockSource::Fixed(distance(slice), image),
        };
        table::lock().set_source(self.number, source);
        drop(before);
        match &self.slice {
            Some(slice) if !slice.is_already(&self.image) => deliver(slice, &self.image),
            _ => Ok(()),
        }
    }
}

fn distance(slice: &ReserveSlice) -> isize {
    isize::try_from(slice.thread_pointer_offset()).unwrap_or(0)
}

impl Drop for ThreadLocalBlock {
    fn drop(&mut self) {
        table::lock().release(self.number);
    }
}
