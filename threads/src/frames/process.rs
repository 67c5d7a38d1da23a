//! Rows of the executable, its libraries and the vDSO, by glibc's `_dl_find_object`.
//!
//! That function is async-signal-safe, takes no lock, and knows at each moment what dlopen and dlclose have done. A
//! table of our own could not: it would have to be made anew after each of them, and until then a walk would read the
//! rows of a library that is gone.

use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicPtr, Ordering};

use gimli::{BaseAddresses, EhFrame, EhFrameHdr, EndianSlice, LittleEndian};
use thiserror::Error;

use super::index;
use super::memory::{Memory, ProcessMemory};

/// Stacks cannot be walked in this process.
#[derive(Debug, Error)]
pub enum NoFinder {
    /// The C library does not have the function.
    #[error(
        "the C library has no _dl_find_object, by which frames of the program and its libraries are known; \
         glibc has it since 2.35"
    )]
    Missing,
    /// The fork handlers cannot be installed.
    #[error("installing the fork handlers for unwind tables")]
    Fork(#[source] io::Error),
}

/// glibc's `struct dl_find_object` on x86-64, from `<dlfcn.h>`.
#[repr(C)]
struct Found {
    flags: u64,
    map_start: *const c_void,
    map_end: *const c_void,
    link_map: *const c_void,
    eh_frame: *const c_void,
    reserved: [u64; 7],
}

type Finder = unsafe extern "C" fn(*mut c_void, *mut Found) -> libc::c_int;

/// `_dl_find_object`, once it has been asked for.
static FINDER: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Makes the process's own frames known: those of the executable, its libraries and the vDSO, whatever dlopen and
/// dlclose do later. To be called before the first walk, and not from a signal handler; a second call does nothing.
///
/// # Errors
/// [`NoFinder`]: walks find no row but those of [`super::Known`] then.
pub fn know_process() -> Result<(), NoFinder> {
    index::install_fork_handlers().map_err(NoFinder::Fork)?;
    if FINDER.load(Ordering::Relaxed).is_null() {
        // SAFETY: a name that ends with NUL, in the default scope.
        let finder = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_dl_find_object".as_ptr()) };
        if finder.is_null() {
            return Err(NoFinder::Missing);
        }
        FINDER.store(finder, Ordering::Relaxed);
    }
    Ok(())
}

type Reader<'a> = EndianSlice<'a, LittleEndian>;

/// Where the rows of an object are: in memory that stays for as long as its code does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Object {
    map: (u64, u64),
    /// From `.eh_frame_hdr` to the end of its segment.
    header: (u64, u64),
    /// From `.eh_frame` to the end of its segment.
    frames: (u64, u64),
}

/// Objects that a walk has met. Most stacks go through few.
#[derive(Default, Debug)]
pub(crate) struct Objects {
    met: [Option<Object>; 4],
    next: usize,
}

impl Objects {
    /// The object with code at this address.
    pub(crate) fn at(&mut self, pc: u64) -> Option<Object> {
        let met = self.met.iter().flatten().find(|object| (object.map.0..object.map.1).contains(&pc));
        if let Some(object) = met {
            return Some(*object);
        }
        let object = Object::at(pc)?;
        self.met[self.next % self.met.len()] = Some(object);
        self.next = self.next.wrapping_add(1);
        Some(object)
    }
}

impl Object {
    fn at(pc: u64) -> Option<Object> {
        let finder = FINDER.load(Ordering::Relaxed);
        if finder.is_null() {
            return None;
        }
        // SAFETY: a function of the C library's with this signature, by its documentation; it is never unloaded.
        let finder = unsafe { std::mem::transmute::<*mut c_void, Finder>(finder) };
        let mut found = MaybeUninit::<Found>::uninit();
        let pc = std::ptr::without_provenance_mut(usize::try_from(pc).ok()?);
        // SAFETY: any address may be asked for, and the result has room for the structure. Async-signal-safe.
        if unsafe { finder(pc, found.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: the function has returned 0, and so has filled it in.
        let found = unsafe { found.assume_init() };
        let [start, end, header] =
            [found.map_start, found.map_end, found.eh_frame].map(|pointer| u64::try_from(pointer.addr()).ok());
        let (start, end, header) = (start?, end?, header?);
        if header == 0 {
            return None;
        }
        let segments = Segments::of(start)?;
        let header = header..segments.readable_to(header)?;
        // SAFETY: the range lies in one readable segment of an object that is mapped, with code that is running.
        let bytes = unsafe { bytes_of(&header) }?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(header.start);
        let frames = EhFrameHdr::new(bytes, LittleEndian).parse(&bases, 8).ok()?.eh_frame_ptr().direct().ok()?;
        let frames_end = segments.readable_to(frames)?;
        Some(Object { map: (start, end), header: (header.start, header.end), frames: (frames, frames_end) })
    }

    /// Its `.eh_frame`, where that begins, and the offset of the description for an address in it.
    pub(crate) fn description(&self, at: u64) -> Option<(EhFrame<Reader<'static>>, BaseAddresses, usize)> {
        // SAFETY: the range lies in one readable segment of an object that is mapped, with code that is running: the
        // loader does not write there any more, and does not unmap it as long as the code is on a stack.
        let header = unsafe { bytes_of(&(self.header.0..self.header.1)) }?;
        // SAFETY: the same.
        let frames = unsafe { bytes_of(&(self.frames.0..self.frames.1)) }?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(self.header.0).set_eh_frame(self.frames.0);
        let parsed = EhFrameHdr::new(header, LittleEndian).parse(&bases, 8).ok()?;
        let description = parsed.table()?.lookup(at, &bases).ok()?.direct().ok()?;
        let offset = usize::try_from(description.checked_sub(self.frames.0)?).ok()?;
        Some((EhFrame::new(frames, LittleEndian), bases, offset))
    }
}

/// # Safety
/// The range is readable, is not written and not unmapped while the result is used.
unsafe fn bytes_of(range: &Range<u64>) -> Option<&'static [u8]> {
    let start = std::ptr::with_exposed_provenance::<u8>(usize::try_from(range.start).ok()?);
    let len = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
    // SAFETY: the caller's promise.
    Some(unsafe { std::slice::from_raw_parts(start, len) })
}

/// The program headers of an object in memory: those of its first page, where every linker puts them; of the program
/// itself those that the kernel has told of.
struct Segments {
    /// The first page's beginning, or of the program the headers alone.
    page: [u8; 2048],
    /// What is added to the addresses of the file.
    bias: u64,
    headers: Range<usize>,
}

/// Size of an `Elf64_Phdr`.
const HEADER: usize = 56;
/// Types of segments: what is mapped, and where the headers are.
const PT_LOAD: [u8; 4] = 1_u32.to_le_bytes();
const PT_PHDR: [u8; 4] = 6_u32.to_le_bytes();

impl Segments {
    fn of(map_start: u64) -> Option<Segments> {
        Segments::of_object(map_start).or_else(|| Segments::of_program(map_start))
    }

    /// Those of the program, if this is where a segment of it begins. glibc tells of the program by its segments where
    /// there are unmapped pages between them: now and then as LLVM's linker lays it out, and always with
    /// `-z max-page-size=0x200000`. Libraries have their holes filled by the dynamic linker.
    fn of_program(segment_start: u64) -> Option<Segments> {
        // SAFETY: takes a number, and reads what the process was started with; no lock.
        let [at, size, count] =
            [libc::AT_PHDR, libc::AT_PHENT, libc::AT_PHNUM].map(|what| unsafe { libc::getauxval(what) });
        let headers = 0..usize::try_from(count).ok()?.checked_mul(HEADER)?;
        let mut segments = Segments { page: [0; 2048], bias: 0, headers };
        let readable = ProcessMemory::own().read(at, segments.page.get_mut(segments.headers.clone())?);
        if !readable || usize::try_from(size) != Ok(HEADER) {
            return None;
        }
        let own = segments.headers.clone().step_by(HEADER).find(|at| segments.page[*at..].starts_with(&PT_PHDR))?;
        segments.bias = at.wrapping_sub(segments.number(own + 16)?);
        let in_file = segment_start.wrapping_sub(segments.bias);
        let is_its = segments.loaded().any(|segment| segment.file.start & !4095 == in_file & !4095);
        is_its.then_some(segments)
    }

    /// Those of an object that begins there with its first page. Reads them through the kernel, because nothing
    /// promises that a first segment can be read.
    fn of_object(map_start: u64) -> Option<Segments> {
        let mut segments = Segments { page: [0; 2048], bias: 0, headers: 0..0 };
        let readable = ProcessMemory::own().read(map_start, &mut segments.page);
        if !readable || !segments.page.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        // e_phoff, e_phentsize and e_phnum of an Elf64_Ehdr.
        let start = usize::try_from(segments.number(32)?).ok()?;
        let [size, count] = [54, 56].map(|at| u16::from_le_bytes([segments.page[at], segments.page[at + 1]]));
        if usize::from(size) != HEADER {
            return None;
        }
        let end = start.checked_add(usize::from(count) * HEADER)?;
        segments.headers = start..(end <= segments.page.len()).then_some(end)?;
        let first = segments.loaded().next()?.file;
        segments.bias = map_start.wrapping_sub(first.start & !4095);
        Some(segments)
    }

    fn number(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(self.page.get(at..at + 8)?.try_into().ok()?))
    }

    /// The segments that are in memory.
    fn loaded(&self) -> impl Iterator<Item = Segment> {
        self.headers.clone().step_by(HEADER).filter_map(|at| {
            let [kind, flags] = [at, at + 4].map(|at| self.page.get(at..at + 4));
            if kind? != PT_LOAD {
                return None;
            }
            let (start, len) = (self.number(at + 16)?, self.number(at + 40)?);
            let file = start..start.checked_add(len)?;
            Some(Segment { file, is_readable: flags?[0] & 4 != 0, is_writable: flags?[0] & 2 != 0 })
        })
    }

    /// The end of the readable segment that holds an address. One that is writable is not for us: its bytes may change.
    fn readable_to(&self, at: u64) -> Option<u64> {
        let in_file = at.wrapping_sub(self.bias);
        let segment = self.loaded().find(|segment| segment.file.contains(&in_file))?;
        (segment.is_readable && !segment.is_writable).then(|| segment.file.end.wrapping_add(self.bias))
    }
}

/// What a `PT_LOAD` header says.
struct Segment {
    /// Addresses before the bias.
    file: Range<u64>,
    is_readable: bool,
    is_writable: bool,
}
