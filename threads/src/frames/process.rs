//! Rows of the executable, its libraries and the vDSO, by glibc's `_dl_find_object`.
//!
//! That function is async-signal-safe, takes no lock, and always knows the effects of dlopen and dlclose. A table of
//! this crate could not be as current: it would have to be rebuilt after each dlopen and dlclose, and until then a walk
//! would read the rows of a library that is gone.

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
struct DlFindObject {
    flags: u64,
    map_start: *const c_void,
    map_end: *const c_void,
    link_map: *const c_void,
    eh_frame: *const c_void,
    reserved: [u64; 7],
}

type Finder = unsafe extern "C" fn(*mut c_void, *mut DlFindObject) -> libc::c_int;

/// The address of `_dl_find_object`, once it has been looked up.
static FINDER: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Makes the process's own frames known: those of the executable, its libraries and the vDSO, including all later
/// changes by dlopen and dlclose. Must be called before the first walk, and not from a signal handler; a second call
/// does nothing.
///
/// # Errors
/// [`NoFinder`]: then walks find no rows except those of [`super::Known`].
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

/// The rows of an object: in memory that stays for as long as the object's code does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadedObject {
    map: (u64, u64),
    /// From `.eh_frame_hdr` to the end of its segment.
    header: (u64, u64),
    /// From `.eh_frame` to the end of its segment.
    frames: (u64, u64),
}

/// The objects that a walk has passed. Most stacks pass through few objects.
#[derive(Default, Debug)]
pub(crate) struct Objects {
    met: [Option<LoadedObject>; 4],
    next: usize,
}

impl Objects {
    /// Returns the object with code at this address.
    pub(crate) fn at(&mut self, pc: u64) -> Option<LoadedObject> {
        let met = self.met.iter().flatten().find(|object| (object.map.0..object.map.1).contains(&pc));
        if let Some(object) = met {
            return Some(*object);
        }
        let object = LoadedObject::at(pc)?;
        self.met[self.next % self.met.len()] = Some(object);
        self.next = self.next.wrapping_add(1);
        Some(object)
    }
}

impl LoadedObject {
    fn at(pc: u64) -> Option<LoadedObject> {
        let finder = FINDER.load(Ordering::Relaxed);
        if finder.is_null() {
            return None;
        }
        // SAFETY: by its documentation, a function of the C library with this signature; it is never unloaded.
        let finder = unsafe { std::mem::transmute::<*mut c_void, Finder>(finder) };
        let mut found = MaybeUninit::<DlFindObject>::uninit();
        let pc = std::ptr::without_provenance_mut(usize::try_from(pc).ok()?);
        // SAFETY: any address may be looked up, and the result has room for the structure. Async-signal-safe.
        if unsafe { finder(pc, found.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: the function has returned 0, and so has filled in the structure.
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
        Some(LoadedObject { map: (start, end), header: (header.start, header.end), frames: (frames, frames_end) })
    }

    /// Returns the object's `.eh_frame`, its address, and the offset of the description for an address in it.
    pub(crate) fn description(&self, at: u64) -> Option<(EhFrame<Reader<'static>>, BaseAddresses, usize)> {
        // SAFETY: the range lies in one readable segment of an object that is mapped, with code that is running: the
        // loader does not write there any more, and does not unmap it as long as the code is on a stack.
        let header = unsafe { bytes_of(&(self.header.0..self.header.1)) }?;
        // SAFETY: as above.
        let frames = unsafe { bytes_of(&(self.frames.0..self.frames.1)) }?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(self.header.0).set_eh_frame(self.frames.0);
        let parsed = EhFrameHdr::new(header, LittleEndian).parse(&bases, 8).ok()?;
        let description = parsed.table()?.lookup(at, &bases).ok()?.direct().ok()?;
        let offset = usize::try_from(description.checked_sub(self.frames.0)?).ok()?;
        Some((EhFrame::new(frames, LittleEndian), bases, offset))
    }
}

/// # Safety
/// The range is readable, and is neither written nor unmapped while the result is used.
unsafe fn bytes_of(range: &Range<u64>) -> Option<&'static [u8]> {
    let start = std::ptr::with_exposed_provenance::<u8>(usize::try_from(range.start).ok()?);
    let len = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
    // SAFETY: the caller's promise.
    Some(unsafe { std::slice::from_raw_parts(start, len) })
}

/// The program headers of an object in memory: read from its first page, where every linker places them; for the
/// program itself, from the place that the kernel has passed to the process.
struct Segments {
    /// The beginning of the first page; for the program, the headers alone.
    page: [u8; 2048],
    /// The number that is added to the addresses of the file.
    bias: u64,
    headers: Range<usize>,
}

/// Size of an `Elf64_Phdr`.
const HEADER: usize = 56;
/// Types of segments: a mapped segment, and the segment with the headers.
const PT_LOAD: [u8; 4] = 1_u32.to_le_bytes();
const PT_PHDR: [u8; 4] = 6_u32.to_le_bytes();

impl Segments {
    fn of(map_start: u64) -> Option<Segments> {
        Segments::of_object(map_start).or_else(|| Segments::of_program(map_start))
    }

    /// Returns the headers of the program, if one of its segments begins at this address. glibc reports the program by
    /// its segments where there are unmapped pages between them: for some programs that LLVM's linker has linked, and
    /// always with `-z max-page-size=0x200000`. In libraries, the dynamic linker fills the holes.
    fn of_program(segment_start: u64) -> Option<Segments> {
        // SAFETY: the call takes a number, and reads the vector that the process was started with; no lock.
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

    /// Returns the headers of an object that begins there with its first page. Reads them through the kernel, because a
    /// first segment is not guaranteed to be readable.
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

    /// Returns the segments that are in memory.
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

    /// Returns the end of the readable segment that holds an address. A writable segment is refused: its bytes may
    /// change.
    fn readable_to(&self, at: u64) -> Option<u64> {
        let in_file = at.wrapping_sub(self.bias);
        let segment = self.loaded().find(|segment| segment.file.contains(&in_file))?;
        (segment.is_readable && !segment.is_writable).then(|| segment.file.end.wrapping_add(self.bias))
    }
}

/// The contents of a `PT_LOAD` header.
struct Segment {
    /// The addresses in the file, before the bias is added.
    file: Range<u64>,
    is_readable: bool,
    is_writable: bool,
}
