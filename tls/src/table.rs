//! The tables: for each thread the addresses of its copies of all blocks.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use modload_edit::index;
use modload_text::Pages;
use modload_threads::{SavedErrno, Tid};

use crate::lock::{Locked, SpinLock};
use crate::sizes::TABLE_SIZE;
use crate::slab::Slab;
use crate::x86_64::{own_table, thread_pointer};

/// How many blocks there can be.
pub(crate) const USABLE: usize = NUMBERS - FIRST;

/// The number of the first block. The table's own data lies at the places of the numbers before it.
const FIRST: usize = 8;
/// How many numbers there are.
const NUMBERS: usize = TABLE_SIZE / 8;

/// The table of a thread.
#[repr(C)]
pub(crate) struct ThreadTable {
    /// The pages in which this table lies.
    pages: MaybeUninit<Pages>,
    next: *mut ThreadTable,
    /// The number of the table's thread.
    tid: i32,
    /// How often the destructor of the exit key was called.
    rounds: u32,
    _unused: [usize; FIRST - 4],
    copies: [AtomicPtr<u8>; NUMBERS - FIRST],
}

const _: () = assert!(size_of::<ThreadTable>() == TABLE_SIZE);
const _: () = assert!(std::mem::offset_of!(ThreadTable, copies) == 8 * FIRST);

/// Where the contents of a block come from.
#[derive(Clone, Copy)]
pub(crate) enum BlockSource {
    /// No block has this number.
    Unused,
    /// Copied from this image, and zeros behind it.
    Contents(BlockContents),
    /// The block lies at this distance from the thread pointer in each thread, and begins as this image.
    Fixed(isize, BlockContents),
    /// The block belongs to the library of this number, and the C library makes it.
    Library(usize),
}

/// The initial contents of a block. The rest of a copy is zero.
#[derive(Clone, Copy)]
pub(crate) struct BlockContents {
    pub(crate) start: *const u8,
    pub(crate) len: usize,
}

impl BlockContents {
    pub(crate) const ZEROS: BlockContents = BlockContents { start: ptr::null(), len: 0 };

    /// Writes the contents to a copy of `size` bytes.
    ///
    /// # Safety
    /// The image lives, and is not longer than the copy, which nothing else uses.
    unsafe fn write(self, copy: *mut u8, size: usize) {
        if self.len != 0 {
            // SAFETY: as the caller says.
            unsafe { copy.copy_from_nonoverlapping(self.start, self.len) };
        }
        // SAFETY: as above.
        let rest = unsafe { copy.byte_add(self.len) };
        // SAFETY: as above.
        unsafe { rest.write_bytes(0, size - self.len) };
    }
}

/// The facts about a block.
#[derive(Clone, Copy)]
struct BlockInfo {
    source: BlockSource,
    size: usize,
    align: usize,
}

impl BlockInfo {
    const UNUSED: BlockInfo = BlockInfo { source: BlockSource::Unused, size: 0, align: 0 };

    /// Whether the copies of the block are this crate's memory.
    fn owns_copies(&self) -> bool {
        matches!(self.source, BlockSource::Contents(_))
    }
}

/// Everything that the lock protects.
pub(crate) struct ThreadTables {
    /// The tables of all threads that have one.
    first: *mut ThreadTable,
    count: usize,
    /// The number of tables at which those of dead threads are looked for.
    sweep_at: usize,
    slab: Slab,
    blocks: [BlockInfo; NUMBERS],
    /// The place at which the search for an unused number begins.
    search: usize,
    used: usize,
}

// SAFETY: the list belongs to this value; a table's thread reads its own table without the lock, by atomics.
unsafe impl Send for ThreadTables {}

static TABLES: SpinLock<ThreadTables> = SpinLock::new(ThreadTables {
    first: ptr::null_mut(),
    count: 0,
    sweep_at: 16,
    slab: Slab::new(),
    blocks: [BlockInfo::UNUSED; NUMBERS],
    search: FIRST,
    used: 0,
});

/// The key whose destructor frees a thread's table, or a value that is no key.
static EXIT_KEY: AtomicU32 = AtomicU32::new(NO_KEY);
const NO_KEY: u32 = u32::MAX;
/// The number of keys whose values are in the thread's own memory. A value of a later key may need the allocator, which
/// a signal handler must not call.
const KEYS_WITHOUT_ALLOCATOR: u32 = 32;
/// How often the C library calls the destructors of a thread that sets values again.
const ROUNDS: u32 = 4;

pub(crate) fn lock() -> Locked<'static, ThreadTables> {
    TABLES.lock()
}

/// Makes the key whose destructor frees tables, if there is none yet.
pub(crate) fn make_exit_key() {
    if EXIT_KEY.load(Ordering::Relaxed) != NO_KEY {
        return;
    }
    let mut key = 0;
    // SAFETY: the call writes the key; `thread_ends` stays in memory as long as this program or library.
    let failed = unsafe { libc::pthread_key_create(&raw mut key, Some(thread_ends)) };
    // Without the key, tables are freed when they are swept.
    if failed != 0 {
        return;
    }
    let usable = key < KEYS_WITHOUT_ALLOCATOR;
    if !usable || EXIT_KEY.compare_exchange(NO_KEY, key, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        // SAFETY: the key was made above, and no thread has a value of it.
        unsafe { libc::pthread_key_delete(key) };
    }
}

/// The destructor of the exit key. Other keys' destructors may access variables, so the table stays until the last
/// round.
extern "C" fn thread_ends(table: *mut libc::c_void) {
    let own = table.cast::<ThreadTable>();
    let mut tables = lock();
    if own_table().load(Ordering::Relaxed).cast::<ThreadTable>() != own || own.is_null() {
        return;
    }
    // SAFETY: the table is this thread's; only this thread uses this field.
    let rounds = unsafe { &mut (*own).rounds };
    *rounds += 1;
    if *rounds < ROUNDS {
        let key = EXIT_KEY.load(Ordering::Relaxed);
        // SAFETY: the key exists for good, and its values are in the thread's own memory.
        unsafe { libc::pthread_setspecific(key, table) };
        return;
    }
    own_table().store(ThreadTable::empty().cast(), Ordering::Relaxed);
    tables.remove(|table| ptr::eq(table, own));
}

impl ThreadTable {
    /// Returns the table with which each thread begins. Nothing writes it.
    fn empty() -> *mut ThreadTable {
        crate::x86_64::empty_table().cast()
    }
}

impl ThreadTables {
    /// Reserves a number for a block.
    pub(crate) fn reserve(&mut self, size: usize, align: usize, source: BlockSource) -> Option<usize> {
        let unused = |number: &usize| matches!(self.blocks[*number].source, BlockSource::Unused);
        let found = (self.search..NUMBERS).find(unused).or_else(|| (FIRST..self.search).find(unused))?;
        self.blocks[found] = BlockInfo { source, size, align };
        // Numbers are used one after the other, so that a stale one is not soon another module's.
        self.search = found + 1;
        self.used += 1;
        Some(found)
    }

    /// Changes the source of a block. Copies that exist stay as they are.
    pub(crate) fn set_source(&mut self, number: usize, source: BlockSource) {
        self.blocks[number].source = source;
    }

    /// Frees all copies of a block, and its number.
    pub(crate) fn release(&mut self, number: usize) {
        let info = std::mem::replace(&mut self.blocks[number], BlockInfo::UNUSED);
        self.used -= 1;
        let mut at = self.first;
        while !at.is_null() {
            // SAFETY: the tables of the list exist, and only atomics are accessed.
            let table = unsafe { &*at };
            let copy = table.copies[number - FIRST].swap(ptr::null_mut(), Ordering::Relaxed);
            if !copy.is_null() && info.owns_copies() {
                // SAFETY: `make` has taken the copy with this size and alignment. The block's owner guarantees that no
                // code uses it any more.
                unsafe { self.slab.give_back(copy, info.size, info.align) };
            }
            at = table.next;
        }
    }

    /// Frees the tables of which `is_gone` is true, with all their copies.
    fn remove(&mut self, mut is_gone: impl FnMut(&ThreadTable) -> bool) {
        let mut before: *mut ThreadTable = ptr::null_mut();
        let mut at = self.first;
        while !at.is_null() {
            // SAFETY: the tables of the list exist.
            let table = unsafe { &*at };
            let next = table.next;
            if !is_gone(table) {
                before = at;
                at = next;
                continue;
            }
            for (info, copy) in self.blocks[FIRST..].iter().zip(&table.copies) {
                let copy = copy.load(Ordering::Relaxed);
                if !copy.is_null() && info.owns_copies() {
                    // SAFETY: as in `release`: the table's thread is gone, or does not use the table any more.
                    unsafe { self.slab.give_back(copy, info.size, info.align) };
                }
            }
            if before.is_null() {
                self.first = next;
            } else {
                // SAFETY: as above; the field is used under the lock only.
                unsafe { (*before).next = next };
            }
            self.count -= 1;
            let pages = table.pages.as_ptr();
            // SAFETY: `own` has written the pages into the table that lies in them; they are read once, and the table
            // is not used any more.
            drop(unsafe { pages.read() });
            at = next;
        }
    }

    /// Keeps the table of this thread only: this is the child of a fork.
    pub(crate) fn keep_own(&mut self) {
        let own = own_table().load(Ordering::Relaxed).cast::<ThreadTable>();
        self.remove(|table| !ptr::eq(table, own));
        if own != ThreadTable::empty() {
            // SAFETY: it is this thread's table.
            unsafe { (*own).tid = Tid::current().get() };
        }
    }

    /// Returns this thread's own table, which is made first if need be.
    fn own(&mut self) -> *mut ThreadTable {
        let own = own_table().load(Ordering::Relaxed).cast::<ThreadTable>();
        if own != ThreadTable::empty() {
            return own;
        }
        let tid = Tid::current().get();
        if self.count >= self.sweep_at {
            self.remove(|table| table.tid == tid || !is_there(table.tid));
            self.sweep_at = 2 * self.count + 16;
        }
        let Ok(pages) = Pages::new(TABLE_SIZE) else { no_memory(TABLE_SIZE) };
        let table = pages.as_mut_ptr().cast::<ThreadTable>();
        // SAFETY: the pages are long enough, and zeros are a table without copies. Nothing else knows it yet.
        let new = unsafe { &mut *table };
        (new.pages, new.next, new.tid) = (MaybeUninit::new(pages), self.first, tid);
        self.first = table;
        self.count += 1;
        own_table().store(table.cast(), Ordering::Release);
        let key = EXIT_KEY.load(Ordering::Relaxed);
        if key != NO_KEY {
            // SAFETY: the key exists for good, and its values are in the thread's own memory.
            unsafe { libc::pthread_setspecific(key, table.cast()) };
        }
        table
    }

    /// Returns this thread's copy of a block that it does not have yet; `Err` for a library's block.
    fn make(&mut self, number: usize) -> Result<*mut u8, usize> {
        let info = self.blocks[number];
        let copy = match info.source {
            BlockSource::Library(library) => return Err(library),
            BlockSource::Fixed(distance, _) => fixed_copy(distance),
            BlockSource::Unused => panic_without_block(),
            BlockSource::Contents(image) => {
                let Ok(copy) = self.slab.take(info.size, info.align) else { no_memory(info.size) };
                // SAFETY: the image lives as long as the block has this source, is not longer than the block, and
                // nothing else knows the copy yet.
                unsafe { image.write(copy, info.size) };
                copy
            }
        };
        self.keep(number, copy);
        Ok(copy)
    }

    /// Gives this thread's copy of a block its initial contents again.
    fn renew_own(&mut self, number: usize) {
        let info = self.blocks[number];
        match info.source {
            BlockSource::Unused | BlockSource::Library(_) => {}
            // SAFETY: the caller of `renew_own` says that nothing uses the copy; the rest is as in `make`.
            BlockSource::Fixed(distance, image) => unsafe { image.write(fixed_copy(distance), info.size) },
            BlockSource::Contents(_) => {
                let own = own_table().load(Ordering::Relaxed).cast::<ThreadTable>();
                if own == ThreadTable::empty() {
                    return;
                }
                // SAFETY: it is this thread's table, and only an atomic is accessed.
                let copy = unsafe { &*own }.copies[number - FIRST].swap(ptr::null_mut(), Ordering::Relaxed);
                if !copy.is_null() {
                    // SAFETY: `make` has taken the copy with this size and alignment, and nothing uses it.
                    unsafe { self.slab.give_back(copy, info.size, info.align) };
                }
            }
        }
    }

    /// Notes this thread's copy of a block.
    fn keep(&mut self, number: usize, copy: *mut u8) {
        let own = self.own();
        // SAFETY: it is this thread's table, and only an atomic is accessed.
        unsafe { &*own }.copies[number - FIRST].store(copy, Ordering::Release);
    }
}

/// How much memory threads have for thread-local variables of modules.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TlsUsage {
    /// The number of blocks.
    pub blocks: usize,
    /// The number of threads that have a table. Threads that have ended may be among them.
    pub tables: usize,
    /// The bytes of all copies, and of memory that is kept for others.
    pub bytes: usize,
}

/// Returns how much memory is in use.
#[must_use]
pub fn usage() -> TlsUsage {
    let tables = lock();
    TlsUsage { blocks: tables.used, tables: tables.count, bytes: tables.slab.bytes }
}

/// Returns this thread's copy of a block with a fixed offset.
fn fixed_copy(distance: isize) -> *mut u8 {
    ptr::with_exposed_provenance_mut::<u8>(thread_pointer()).wrapping_byte_offset(distance)
}

/// Gives this thread's copy of a block its initial contents again. `number` is
/// [`ThreadLocalBlock::number`](crate::ThreadLocalBlock::number). No code of the block's owner runs in this thread.
pub fn renew_own(number: u32) {
    lock().renew_own(index(number.into()) / 8);
}

/// The slow path: returns this thread's copy of a block. `number` is the number in the pair or descriptor.
#[unsafe(export_name = "modload_tls_find")]
pub(crate) extern "C" fn find(number: usize) -> *mut u8 {
    let _errno = SavedErrno::save();
    let number = number / 8;
    let made = lock().make(number);
    made.unwrap_or_else(|library| {
        let argument = [library, 0];
        // SAFETY: the function takes a module's number and an offset. The block's owner keeps the library loaded.
        let copy = unsafe { __tls_get_addr(argument.as_ptr()) };
        lock().keep(number, copy);
        copy
    })
}

unsafe extern "C" {
    /// Of the C library: ELF Handling For Thread-Local Storage, section 3.4.
    fn __tls_get_addr(pair: *const usize) -> *mut u8;
}

/// Whether a thread of this process has this number.
fn is_there(tid: i32) -> bool {
    let process = std::process::id();
    // SAFETY: tgkill takes numbers only; signal 0 is no signal.
    let failed = unsafe { libc::syscall(libc::SYS_tgkill, process, tid, 0) };
    failed == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Ends the process: an access to a variable cannot fail. glibc does the same.
#[cold]
fn no_memory(size: usize) -> ! {
    end("modload: no memory for thread-local variables: ", size)
}

/// Ends the process: code has used the number of a block that is gone.
#[cold]
fn panic_without_block() -> ! {
    end("modload: an access to thread-local variables of a module that is gone: ", 0)
}

fn end(text: &str, number: usize) -> ! {
    let mut digits = [b'\n'; 21];
    let (mut at, mut rest) = (20, number);
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    for part in [text.as_bytes(), &digits[at..]] {
        // SAFETY: the kernel reads the bytes.
        unsafe { libc::write(2, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: abort takes no arguments.
    unsafe { libc::abort() }
}
