//! The contenders. Each performs one load, look-up, call and unload on request.
#![expect(unsafe_code, reason = "all of them run foreign code, and two are called by C's rules")]

use std::error::Error;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::io::{self, Write as _};
use std::mem::transmute;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use modload::{Host, Image, Module, read_trusted};

use crate::objects::{Function, Linked, Object};

/// The source of the object's bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    File,
    Memory,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::File => "a file",
            Source::Memory => "memory",
        })
    }
}

/// The times of one load, look-up, call and unload.
#[derive(Clone, Copy)]
pub(crate) struct Cycle {
    /// The result of the call.
    pub(crate) result: i32,
    pub(crate) load: Duration,
    pub(crate) symbol: Duration,
    pub(crate) call: Duration,
    pub(crate) unload: Duration,
}

impl Cycle {
    pub(crate) fn total(&self) -> Duration {
        self.load + self.symbol + self.call + self.unload
    }

    fn measure<M, E: Into<Box<dyn Error>>>(
        load: impl FnOnce() -> Result<M, E>,
        symbol: impl FnOnce(&M) -> Result<Function, Box<dyn Error>>,
        unload: impl FnOnce(M) -> Result<(), Box<dyn Error>>,
    ) -> Result<Cycle, Box<dyn Error>> {
        let start = Instant::now();
        let module = load().map_err(Into::into)?;
        let loaded = Instant::now();
        let function = symbol(&module)?;
        let found = Instant::now();
        let result = function(2, 3);
        let called = Instant::now();
        unload(module)?;
        let end = Instant::now();
        Ok(Cycle { result, load: loaded - start, symbol: found - loaded, call: called - found, unload: end - called })
    }
}

/// A way of loading an object.
pub(crate) trait Contender {
    fn name(&self) -> &'static str;
    fn cycle(&self) -> Result<Cycle, Box<dyn Error>>;
}

/// modload, as an embedder uses it.
pub(crate) struct Modload<'a> {
    pub(crate) host: &'a Host,
    pub(crate) object: &'a Object,
    pub(crate) source: Source,
}

impl Contender for Modload<'_> {
    fn name(&self) -> &'static str {
        "modload"
    }

    fn cycle(&self) -> Result<Cycle, Box<dyn Error>> {
        let load = || match self.source {
            Source::File => load(self.host, &self.object.path),
            Source::Memory => {
                // SAFETY: the benches' own object, which does what its source says.
                let image = unsafe { Image::trusted(&self.object.bytes[..]) }.named(self.object.name);
                Ok(self.host.load(&image)?)
            }
        };
        Cycle::measure(load, add_of, |module| Ok(module.unload()?))
    }
}

/// Loads a file with an object of the benches.
pub(crate) fn load(host: &Host, path: &Path) -> Result<Module, Box<dyn Error>> {
    // SAFETY: the benches' own object, which does what its source says.
    let image = unsafe { read_trusted(path) }?;
    Ok(host.load(&image)?)
}

/// Returns the function that each object of the benches has.
pub(crate) fn add_of(module: &Module) -> Result<Function, Box<dyn Error>> {
    // SAFETY: `add` is `int add(int, int)` in every object of the benches.
    Ok(*unsafe { module.symbol::<Function>("add") }?)
}

/// The C library's dlopen.
pub(crate) struct Dlopen<'a> {
    pub(crate) linked: &'a Linked,
    pub(crate) source: Source,
}

impl Contender for Dlopen<'_> {
    fn name(&self) -> &'static str {
        self.linked.contender
    }

    fn cycle(&self) -> Result<Cycle, Box<dyn Error>> {
        let load = || match self.source {
            Source::File => dlopen(&CString::new(self.linked.path.as_os_str().as_bytes())?),
            Source::Memory => {
                let file = memory_file(&self.linked.bytes)?;
                dlopen(&CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?)
            }
        };
        let symbol = |library: &Library| {
            // SAFETY: the handle is open, and the name ends with a NUL.
            let symbol = unsafe { libc::dlsym(library.0, c"add".as_ptr()) };
            function(symbol)
        };
        let unload = |library: Library| {
            // SAFETY: the handle is open and not used again, and no code of the library is running.
            if unsafe { libc::dlclose(library.0) } == 0 { Ok(()) } else { Err("dlclose fails".into()) }
        };
        Cycle::measure(load, symbol, unload)
    }
}

/// An open handle.
struct Library(*mut c_void);

fn dlopen(path: &CStr) -> Result<Library, Box<dyn Error>> {
    // SAFETY: the path ends with a NUL. The library is the benches' own and runs no code when it is loaded.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        Err(format!("dlopen of {} fails", path.to_string_lossy()).into())
    } else {
        Ok(Library(handle))
    }
}

/// Makes a file without a name. It can be closed once its library is open.
fn memory_file(bytes: &[u8]) -> io::Result<std::fs::File> {
    // SAFETY: the name ends with a NUL.
    let descriptor = unsafe { libc::memfd_create(c"bench".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and has no other owner.
    let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    file.write_all(bytes)?;
    Ok(file)
}

/// The minimal loader: `floor/floor.c`.
pub(crate) struct Floor<'a> {
    pub(crate) arena: FloorArena,
    pub(crate) object: &'a Object,
    pub(crate) source: Source,
}

/// Proof that the floor's memory exists.
#[derive(Clone, Copy)]
pub(crate) struct FloorArena(());

#[link(name = "floor", kind = "static")]
unsafe extern "C" {
    fn floor_open() -> c_int;
    fn floor_load(object: *const u8) -> c_int;
    fn floor_load_file(path: *const c_char) -> c_int;
    fn floor_symbol(name: *const c_char) -> *mut c_void;
    fn floor_unload() -> c_int;
}

impl FloorArena {
    /// Makes the memory. Called once, by the only thread.
    pub(crate) fn open() -> Result<FloorArena, Box<dyn Error>> {
        // SAFETY: the function takes no argument and touches only its own memory.
        if unsafe { floor_open() } == 0 { Ok(FloorArena(())) } else { Err("the floor's arena cannot be had".into()) }
    }
}

impl Contender for Floor<'_> {
    fn name(&self) -> &'static str {
        let FloorArena(()) = self.arena;
        "floor"
    }

    fn cycle(&self) -> Result<Cycle, Box<dyn Error>> {
        let load = || -> Result<(), Box<dyn Error>> {
            let failed = match self.source {
                Source::File => {
                    let path = CString::new(self.object.path.as_os_str().as_bytes())?;
                    // SAFETY: the arena exists and holds no module; the object is the benches' own.
                    unsafe { floor_load_file(path.as_ptr()) }
                }
                // SAFETY: as above, and the bytes outlive the module, which is unloaded below.
                Source::Memory => unsafe { floor_load(self.object.bytes.as_ptr()) },
            };
            if failed == 0 { Ok(()) } else { Err("the floor cannot load".into()) }
        };
        let symbol = |(): &()| {
            // SAFETY: a module is loaded, and the name ends with a NUL.
            let symbol = unsafe { floor_symbol(c"add".as_ptr()) };
            function(symbol)
        };
        let unload = |()| {
            // SAFETY: a module is loaded, and no code of it is running.
            if unsafe { floor_unload() } == 0 { Ok(()) } else { Err("the floor cannot unload".into()) }
        };
        Cycle::measure(load, symbol, unload)
    }
}

/// Converts the symbol `add` to a function.
fn function(symbol: *mut c_void) -> Result<Function, Box<dyn Error>> {
    if symbol.is_null() {
        return Err("there is no symbol add".into());
    }
    // SAFETY: `add` is `int add(int, int)` in every object of the benches.
    Ok(unsafe { transmute::<*mut c_void, Function>(symbol) })
}
