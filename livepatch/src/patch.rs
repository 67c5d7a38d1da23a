//! The patches as data: patches, their objects, the functions that they change, and the identities of all of them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use modload_edit::Addr;
use modload_loader::{Module, Reference};

use crate::log::{Log, note};
use crate::spec::{Callbacks, StateSpec, Transition};
use crate::structs::CObject;

/// The identity of a host, unique in the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PatchHostId {
    number: u64,
    /// How threads migrate to the host's patches.
    pub(crate) transition: Transition,
}

impl PatchHostId {
    pub(crate) fn new(transition: Transition) -> PatchHostId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        PatchHostId { number: NEXT.fetch_add(1, Ordering::Relaxed), transition }
    }
}

/// The identity of a patch, unique in the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct PatchId(pub(crate) u64);

/// Returns the identity of a module among the modules that exist.
pub(crate) fn module_identity(module: &Module) -> usize {
    std::ptr::from_ref(module).addr()
}

/// A func of an object of a patch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FuncId {
    pub(crate) patch: PatchId,
    pub(crate) object: usize,
    pub(crate) func: usize,
}

/// A patch that is enabled, or that was enabled and is still in transition.
pub(crate) struct Patch {
    pub(crate) id: PatchId,
    pub(crate) host: PatchHostId,
    pub(crate) name: Arc<str>,
    pub(crate) objects: Vec<PatchedObject>,
    pub(crate) replace: bool,
    pub(crate) states: Vec<StateSpec>,
    pub(crate) enabled: bool,
    pub(crate) forced: bool,
    pub(crate) log: Log,
    /// The states in the module's own memory: number and address.
    pub(crate) c_states: Vec<(u64, Addr)>,
    /// The patch's module stays loaded as long as the patch exists.
    pub(crate) keep: Option<Reference>,
}

impl fmt::Debug for Patch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patch").field("name", &self.name).field("enabled", &self.enabled).finish_non_exhaustive()
    }
}

impl Patch {
    /// Logs a line, in Linux's wording.
    pub(crate) fn note(&self, line: &str) {
        note(&self.log, line);
    }
}

/// An object whose functions a patch changes.
#[derive(Debug)]
pub(crate) struct PatchedObject {
    /// The module's name, or `None` for the host's own functions.
    pub(crate) name: Option<Arc<str>>,
    pub(crate) funcs: Vec<Func>,
    pub(crate) callbacks: Callbacks,
    /// The module's own record of the object, if a module's init has enabled the patch.
    pub(crate) c: Option<CObject>,
    /// Whether the object exists only for no-op functions.
    pub(crate) is_dynamic: bool,
    /// Whether the object is loaded, so that its functions are known.
    pub(crate) loaded: bool,
    pub(crate) patched: bool,
    /// Whether `post_unpatch` will be called: `pre_patch` has succeeded.
    pub(crate) post_unpatch_enabled: bool,
}

/// The name of the object that holds the host's own functions.
pub(crate) const VMLINUX: &str = modload_ftrace::HOST;

impl PatchedObject {
    pub(crate) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(VMLINUX)
    }
}

/// A function that a patch changes.
#[derive(Clone, Debug)]
pub(crate) struct Func {
    pub(crate) old_name: Arc<str>,
    pub(crate) old_sympos: u64,
    /// The replacement, or `None` for a no-op function, which means the original.
    pub(crate) new_func: Option<Addr>,
    /// The address of the original function, if its object is loaded.
    pub(crate) old: Option<Addr>,
    /// The address ranges of the replacement.
    pub(crate) extent: Vec<Range<u64>>,
    pub(crate) patched: bool,
}

impl Func {
    /// Returns the key of the function within its object: name and position from 1, as in the names of Linux's sysfs
    /// folders. Positions 0 and 1 mean the same function, because 0 is valid only if there is exactly one function of
    /// that name.
    pub(crate) fn key(&self) -> (&str, u64) {
        (&self.old_name, self.old_sympos.max(1))
    }
}

/// A patched function.
#[derive(Debug)]
pub(crate) struct PatchedFunction {
    /// An address behind the function's site.
    pub(crate) home: Addr,
    /// The address ranges of the original function.
    pub(crate) extent: Vec<Range<u64>>,
    /// The function stack: the replacements, the newest last.
    pub(crate) stack: Vec<FuncId>,
}
