//! Thread-local variables of the program and of its libraries.

use std::ffi::c_int;
use std::io;
use std::mem::size_of;
use std::thread;

use libc::{c_void, dl_phdr_info, size_t};
use modload_edit::{Addr, wide};

use crate::x86_64::thread_pointer;

/// A thread-local variable of the program or of a library.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LibraryVariable {
    /// The number by which the C library knows the program or library that defines the variable (`dlpi_tls_modid`).
    pub library: usize,
    /// The offset of the variable in the library's block.
    pub offset: u64,
    /// The distance of the library's block from the thread pointer, if it is the same in every thread: static
    /// thread-local memory.
    pub from_thread_pointer: Option<i64>,
}

/// A library's block in this thread.
#[derive(Clone, Copy)]
struct OwnBlock {
    library: usize,
    start: u64,
    size: u64,
    template: Template,
}

/// Returns the variable that has this address in the calling thread, as dlsym(3) returns it. `None` if the address is
/// not one of thread-local memory.
///
/// # Errors
/// `None` also if no thread can be started: a new thread shows whether the memory is static.
#[must_use]
pub fn library_variable(at: Addr) -> Option<LibraryVariable> {
    let at = at.get();
    let block = find_own(|block| at.checked_sub(block.start).is_some_and(|offset| offset < block.size))?;
    let distance = |block: OwnBlock| block.start.cast_signed().wrapping_sub(wide(thread_pointer()).cast_signed());
    // The C library makes static blocks when a thread starts, and other blocks at the first access.
    let in_new_thread = move || find_own(|own| own.library == block.library && own.start != 0).map(distance);
    let new = run_in_new_thread(in_new_thread).ok()?;
    let from_thread_pointer = new.filter(|new| *new == distance(block));
    Some(LibraryVariable { library: block.library, offset: at - block.start, from_thread_pointer })
}

fn run_in_new_thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let thread = thread::Builder::new().name("modload-tls".into()).stack_size(64 << 10).spawn(run)?;
    thread.join().map_err(|_| io::Error::other("a thread has panicked"))
}

/// The template of a library's blocks, from which the C library makes those of new threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Template {
    /// The address of the first byte.
    pub(crate) start: u64,
    /// The number of bytes. The rest of a block is zero.
    pub(crate) len: u64,
}

/// Returns the template of a library.
pub(crate) fn template(library: usize) -> Option<Template> {
    find_own(|block| block.library == library).map(|block| block.template)
}

/// Returns the first block of this thread of which `is_wanted` is true.
fn find_own(is_wanted: impl Fn(&OwnBlock) -> bool) -> Option<OwnBlock> {
    struct Search<F> {
        is_wanted: F,
        found: Option<OwnBlock>,
    }
    extern "C" fn visit<F: Fn(&OwnBlock) -> bool>(info: *mut dl_phdr_info, size: size_t, data: *mut c_void) -> c_int {
        if size < size_of::<dl_phdr_info>() {
            return 0;
        }
        // SAFETY: the C library passes one description of the size that was just checked.
        let info = unsafe { &*info };
        // SAFETY: `data` is the search below, which nothing else uses meanwhile.
        let search = unsafe { &mut *data.cast::<Search<F>>() };
        let headers = usize::from(info.dlpi_phnum);
        // SAFETY: the description has this number of program headers.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, headers) };
        let segment = headers.iter().find(|header| header.p_type == libc::PT_TLS);
        let block = segment.map(|segment| OwnBlock {
            library: info.dlpi_tls_modid,
            start: wide(info.dlpi_tls_data.expose_provenance()),
            size: segment.p_memsz,
            template: Template { start: info.dlpi_addr.wrapping_add(segment.p_vaddr), len: segment.p_filesz },
        });
        search.found = block.filter(|block| block.start != 0 && (search.is_wanted)(block));
        c_int::from(search.found.is_some())
    }
    fn callback<F: Fn(&OwnBlock) -> bool>(
        _: &Search<F>,
    ) -> unsafe extern "C" fn(*mut dl_phdr_info, size_t, *mut c_void) -> c_int {
        visit::<F>
    }
    let mut search = Search { is_wanted, found: None };
    let visit = callback(&search);
    // SAFETY: the callback gets the search as its argument, and does not keep it.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
    search.found
}
