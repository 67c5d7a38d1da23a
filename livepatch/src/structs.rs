//! The C side: the records in which a module describes its patch, its callbacks, and the memory of shadow variables.
//! The only file of this crate with unsafe code.
//!
//! Records are read at addresses that a module names. Each record, each string up to its end and each function must lie
//! in the module's own memory; anything else is refused. `klp_object.mod` is written, so it must lie in variables that
//! last.
#![expect(unsafe_code, reason = "C structs are read where a module has them, and C functions are called")]

mod error;

use std::alloc::{self, Layout};
use std::ffi::{c_char, c_int, c_ulong, c_void};
use std::mem::{size_of, transmute};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use modload_edit::{Addr, index, wide};
use modload_loader::{Module, State};
use modload_threads::boundary::{Left, guard};

pub use error::StructError;

use error::{LONGEST, MOST_RECORDS};

use crate::record_sizes::{KlpHeader, KnownSizes, RecordSizes};
use crate::spec::{Callbacks, FuncSpec, ObjectSpec, PatchSpec, StateSpec};

/// The error number that stands for a callback that has thrown.
const EIO: i32 = 5;

/// The part of a `struct klp_func` that is read.
#[repr(C)]
#[derive(Clone, Copy)]
struct KlpFunc {
    old_name: usize,
    new_func: usize,
    old_sympos: c_ulong,
}

/// The part of a `struct klp_object` that is read, with its `struct klp_callbacks`.
#[repr(C)]
#[derive(Clone, Copy)]
struct KlpObject {
    name: usize,
    funcs: usize,
    /// `pre_patch`, `post_patch`, `pre_unpatch`, `post_unpatch`.
    callbacks: [usize; 4],
}

/// `struct klp_state`.
#[repr(C)]
#[derive(Clone, Copy)]
struct KlpState {
    id: c_ulong,
    version: u32,
    padding: u32,
    data: usize,
}

/// The part of a `struct klp_patch` that is read.
#[repr(C)]
#[derive(Clone, Copy)]
struct KlpPatch {
    module: usize,
    objs: usize,
    states: usize,
    replace: u8,
    padding: [u8; 7],
}

const _: () = assert!(size_of::<KlpState>() == STATE);
/// The size of a `struct klp_state`, with every header.
const STATE: usize = 24;

/// Integers and arrays of integers: any bytes are a valid value, and no byte is padding.
trait PlainRecord: Copy {}
impl PlainRecord for u8 {}
impl PlainRecord for KlpFunc {}
impl PlainRecord for KlpObject {}
impl PlainRecord for KlpState {}
impl PlainRecord for KlpPatch {}

/// The contents of a module's `struct klp_patch`.
#[derive(Debug)]
pub(crate) struct CPatch {
    pub(crate) spec: PatchSpec,
    /// The C objects, in the order of the spec.
    pub(crate) objects: Vec<CObject>,
    /// The numbers and the addresses of the states.
    pub(crate) states: Vec<(u64, Addr)>,
}

/// The memory of one module that is in its `init`.
struct InitMemory<'m>(&'m Module);

impl InitMemory<'_> {
    fn read<T: PlainRecord>(&self, at: Addr, what: &'static str) -> Result<T, StructError> {
        self.read_first(at, wide(size_of::<T>()), what)
    }

    /// Reads the first bytes of a record with this size. The size is at least that of `T`.
    fn read_first<T: PlainRecord>(&self, at: Addr, size: u64, what: &'static str) -> Result<T, StructError> {
        if !self.0.holds(at, size.max(wide(size_of::<T>()))) {
            return Err(StructError::Outside { what });
        }
        let from = ptr::with_exposed_provenance::<T>(index(at.get()));
        // SAFETY: all of it lies in one part of the memory of a module that is loaded, and any bytes are a valid `T`.
        Ok(unsafe { ptr::read_unaligned(from) })
    }

    fn string(&self, at: usize, what: &'static str) -> Result<String, StructError> {
        let at = Addr::new(wide(at));
        let mut bytes = Vec::new();
        loop {
            match self.read(at + wide(bytes.len()), what)? {
                0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
                _ if bytes.len() == LONGEST => return Err(StructError::TooLong { what }),
                byte => bytes.push(byte),
            }
        }
    }

    /// Returns the records of an array with their addresses, up to the first empty record.
    fn array<T: PlainRecord>(
        &self,
        at: usize,
        size: u64,
        what: &'static str,
        is_last: impl Fn(&T) -> bool,
    ) -> Result<Vec<(Addr, T)>, StructError> {
        let mut records = Vec::new();
        loop {
            let at = Addr::new(wide(at)) + wide(records.len()) * size;
            match self.read_first(at, size, what)? {
                record if is_last(&record) => return Ok(records),
                _ if records.len() == MOST_RECORDS => return Err(StructError::TooMany { what }),
                record => records.push((at, record)),
            }
        }
    }

    fn variable(&self, at: Addr, len: u64, what: &'static str) -> Result<(), StructError> {
        if self.0.holds_variable(at, len) { Ok(()) } else { Err(StructError::NoVariable { what }) }
    }

    fn code(&self, at: usize, what: &'static str) -> Result<Addr, StructError> {
        let at = Addr::new(wide(at));
        if self.0.holds_code(at) { Ok(at) } else { Err(StructError::NoFunction { what }) }
    }

    fn func(&self, func: &KlpFunc) -> Result<FuncSpec, StructError> {
        if func.old_name == 0 {
            return Err(StructError::Null("a function's `old_name`"));
        }
        let old_name = self.string(func.old_name, "a function's `old_name`")?;
        let new_func = self.code(func.new_func, "`new_func`")?;
        Ok(FuncSpec { old_name, old_sympos: func.old_sympos, new_func })
    }

    fn object(&self, known: &KnownSizes, at: Addr, object: &KlpObject) -> Result<(ObjectSpec, CObject), StructError> {
        let sizes = known.sizes;
        const CALLBACKS: [&str; 4] = ["`pre_patch`", "`post_patch`", "`pre_unpatch`", "`post_unpatch`"];
        if object.funcs == 0 {
            return Err(StructError::Null("an object's `funcs`"));
        }
        self.variable(at, sizes.object, "an object")?;
        let name = (object.name != 0).then(|| self.string(object.name, "an object's `name`")).transpose()?;
        let no_func = |func: &KlpFunc| func.old_name == 0 && func.new_func == 0 && func.old_sympos == 0;
        let funcs = self.array(object.funcs, sizes.func, "functions", no_func)?;
        known.agrees(self.0, Addr::new(wide(object.funcs)), "struct klp_func", sizes.func)?;
        let funcs = funcs.iter().map(|(_, func)| self.func(func)).collect::<Result<_, _>>()?;
        let mut callbacks = [None; 4];
        for ((callback, pointer), what) in callbacks.iter_mut().zip(object.callbacks).zip(CALLBACKS) {
            *callback = if pointer == 0 { None } else { Some(self.code(pointer, what)?) };
        }
        Ok((ObjectSpec { name, funcs, callbacks: called(callbacks, at) }, CObject { at, sizes, copy: None }))
    }
}

/// Reads the description of a module's patch. The module is in its `init`.
pub(crate) fn read(module: &Module, patch: Addr) -> Result<CPatch, StructError> {
    let memory = InitMemory(module);
    let own = module.this_module();
    let KlpPatch { module: of, objs, states, replace, .. } = memory.read(patch, "the patch")?;
    if own.is_none_or(|own| own != Addr::new(wide(of))) {
        return Err(StructError::OtherModule(module.name().to_owned()));
    }
    if objs == 0 {
        return Err(StructError::Null("the patch's `objs`"));
    }
    let known = KnownSizes::of(module, patch)?;
    memory.read_first::<KlpPatch>(patch, known.sizes.patch, "the patch")?;
    let no_object = |object: &KlpObject| object.funcs == 0 && object.name == 0;
    let of_array = memory.array(objs, known.sizes.object, "objects", no_object)?;
    known.agrees(module, Addr::new(wide(objs)), "struct klp_object", known.sizes.object)?;
    let objects =
        of_array.iter().map(|(at, object)| memory.object(&known, *at, object)).collect::<Result<Vec<_>, _>>()?;
    let (specs, objects) = objects.into_iter().unzip();
    let no_state = |state: &KlpState| state.id == 0;
    let states = if states == 0 { Vec::new() } else { memory.array(states, wide(STATE), "states", no_state)? };
    for (at, _) in &states {
        memory.variable(*at, wide(STATE), "a state")?;
    }
    let spec_of = |(_, state): &(Addr, KlpState)| StateSpec { id: state.id, version: state.version };
    let spec = PatchSpec { objects: specs, replace: replace != 0, states: states.iter().map(spec_of).collect() };
    Ok(CPatch { spec, objects, states: states.into_iter().map(|(at, state)| (state.id, at)).collect() })
}

/// The target of `klp_object.mod`, if the module has no `struct module` of the header that the patch was compiled with.
#[derive(Debug)]
enum CModule {
    Sdk(SdkModule),
    Linux(Box<LinuxModule>),
}

/// The SDK's `struct module`.
#[repr(C)]
#[derive(Debug)]
struct SdkModule {
    name: [c_char; 56],
    state: AtomicI32,
}

/// The `struct module` of Linux 6.1, as far as its fields have a value here. The rest is zeros.
#[repr(C)]
#[derive(Debug)]
struct LinuxModule {
    state: AtomicI32,
    list: [usize; 2],
    name: [c_char; 56],
    rest: [usize; 128],
}

impl CModule {
    fn of(module: &Module, header: KlpHeader) -> CModule {
        let mut name = [0; 56];
        let named = name.iter_mut().zip(module.name().bytes());
        named.for_each(|(to, from)| *to = c_char::from_ne_bytes([from]));
        let state = AtomicI32::new(number(module.state().unwrap_or(State::Going)));
        match header {
            KlpHeader::Sdk => CModule::Sdk(SdkModule { name, state }),
            KlpHeader::Linux => CModule::Linux(Box::new(LinuxModule { state, list: [0; 2], name, rest: [0; 128] })),
        }
    }

    fn state(&self) -> &AtomicI32 {
        match self {
            CModule::Sdk(module) => &module.state,
            CModule::Linux(module) => &module.state,
        }
    }

    fn address(&self) -> usize {
        match self {
            CModule::Sdk(module) => ptr::from_ref(module).expose_provenance(),
            CModule::Linux(module) => ptr::from_ref(&**module).expose_provenance(),
        }
    }
}

/// Returns the value of an `enum module_state`.
fn number(state: State) -> i32 {
    match state {
        State::Live => 0,
        State::Coming => 1,
        State::Going => 2,
        State::Unformed => 3,
    }
}

/// A `struct klp_object` in a patch's module. The module stays loaded as long as this value exists.
#[derive(Debug)]
pub(crate) struct CObject {
    at: Addr,
    sizes: RecordSizes,
    /// The target of `mod`, if the target module has no `struct module` of its own.
    copy: Option<Arc<CModule>>,
}

impl CObject {
    /// Sets `mod`: the target module is loaded.
    pub(crate) fn set_target(&mut self, target: &Module) {
        let own = target.this_module().filter(|_| self.sizes.header == KlpHeader::Sdk).map(|at| index(at.get()));
        self.copy = own.is_none().then(|| Arc::new(CModule::of(target, self.sizes.header)));
        let copy = || self.copy.as_deref().map_or(0, CModule::address);
        self.set_module(own.unwrap_or_else(copy));
    }

    /// Updates the target module's state. If the target has a `struct module` of its own, the loader updates that.
    pub(crate) fn set_target_state(&self, state: State) {
        if let Some(copy) = &self.copy {
            copy.state().store(number(state), Ordering::Release);
        }
    }

    /// Clears `mod`: the target module is not loaded any more.
    pub(crate) fn clear_target(&mut self) {
        self.set_module(0);
        self.copy = None;
    }

    fn set_module(&self, module: usize) {
        let field = ptr::with_exposed_provenance_mut::<usize>(index((self.at + self.sizes.module).get()));
        // SAFETY: the whole record lies among the module's variables (checked when the record was read), and `mod`
        // within the record. The module's code reads `mod` in callbacks, and callbacks do not run meanwhile.
        unsafe { field.write_unaligned(module) };
    }
}

impl Drop for CObject {
    fn drop(&mut self) {
        self.clear_target();
    }
}

/// Returns a pointer to an address in a module's text.
fn code(at: Addr) -> *const () {
    ptr::with_exposed_provenance(index(at.get()))
}

/// Returns an object's address as the argument of a callback.
fn pointer(at: Addr) -> *mut c_void {
    ptr::with_exposed_provenance_mut(index(at.get()))
}

/// Returns callbacks that call the functions of a C object. The callbacks live in a patch, which holds its module.
fn called([pre_patch, post_patch, pre_unpatch, post_unpatch]: [Option<Addr>; 4], object: Addr) -> Callbacks {
    let thrown = |Left { thrown, .. }: Left| {
        tracing::error!(%thrown, "a callback of a live patch has thrown");
        EIO
    };
    let plain = |at: Addr| -> Arc<dyn Fn() + Send + Sync> {
        Arc::new(move || {
            // SAFETY: the address lies in the text of a loaded module, and the module says that it is such a function;
            // `Image::trusted` vouches for statements of modules.
            let call = unsafe { transmute::<*const (), extern "C-unwind" fn(*mut c_void)>(code(at)) };
            let _errno = guard(|| call(pointer(object))).map_err(thrown);
        })
    };
    let refusing = |at: Addr| -> Arc<dyn Fn() -> Result<(), i32> + Send + Sync> {
        Arc::new(move || {
            // SAFETY: as above.
            let call = unsafe { transmute::<*const (), extern "C-unwind" fn(*mut c_void) -> c_int>(code(at)) };
            match guard(|| call(pointer(object))) {
                Ok(0) => Ok(()),
                // Linux takes any other number for a refusal, and returns that number.
                Ok(result) => Err(result.saturating_neg()),
                Err(what) => Err(thrown(what)),
            }
        })
    };
    Callbacks {
        pre_patch: pre_patch.map(refusing),
        post_patch: post_patch.map(plain),
        pre_unpatch: pre_unpatch.map(plain),
        post_unpatch: post_unpatch.map(plain),
    }
}

/// The data of a shadow variable: initially zeros, aligned to 16.
#[derive(Debug)]
pub(crate) struct ShadowData {
    at: usize,
    layout: Layout,
}

impl ShadowData {
    /// Allocates the data. Returns `None` if there is no memory. Size 0 is treated as size 1, so that each variable has
    /// an address of its own.
    pub(crate) fn new(size: usize) -> Option<ShadowData> {
        let layout = Layout::from_size_align(size.max(1), 16).ok()?;
        // SAFETY: the size is not zero.
        let at = unsafe { alloc::alloc_zeroed(layout) };
        (!at.is_null()).then(|| ShadowData { at: at.expose_provenance(), layout })
    }

    /// Returns the address for C code.
    pub(crate) fn pointer(&self) -> *mut c_void {
        ptr::with_exposed_provenance_mut(self.at)
    }
}

impl Drop for ShadowData {
    fn drop(&mut self) {
        // SAFETY: the memory is from this allocator with this layout, and is freed once. By the contract of
        // klp_shadow_free, code that still has the address does not use it any more.
        unsafe { alloc::dealloc(self.pointer().cast(), self.layout) };
    }
}

/// `klp_shadow_ctor_t` and `klp_shadow_dtor_t` of the SDK.
pub(crate) type ShadowConstructor = extern "C-unwind" fn(*mut c_void, *mut c_void, *mut c_void) -> c_int;
pub(crate) type ShadowDestructor = extern "C-unwind" fn(*mut c_void, *mut c_void);
