//! All patches of the process, and the function stacks of the functions that they patch.
//!
//! A thread runs through the modules of several hosts, and its word refers to one transition, so there is one table for
//! all hosts. The table's lock is held while callbacks run, like Linux's `klp_mutex`. A callback of live patching must
//! not call live patching.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use modload_edit::Addr;
use modload_loader::{Module, Reference};
use modload_text::on_fork;
use modload_threads::Tid;

use crate::error::PatchError;
use crate::slices::Written;
use crate::spec::{Callbacks, StateSpec, Transition};
use crate::structs::CObject;
use crate::stub::Stubs;
use crate::transition::UnderWay;

/// The identity of a host, unique in the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HostId {
    number: u64,
    /// How threads migrate to the host's patches.
    pub(crate) transition: Transition,
}

impl HostId {
    pub(crate) fn new(transition: Transition) -> HostId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        HostId { number: NEXT.fetch_add(1, Ordering::Relaxed), transition }
    }
}

/// The identity of a patch, unique in the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct PatchId(pub(crate) u64);

/// A func of an object of a patch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FuncId {
    pub(crate) patch: PatchId,
    pub(crate) object: usize,
    pub(crate) func: usize,
}

/// Logs a line of live patching.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// A patch that is enabled, or that was enabled and is still in transition.
pub(crate) struct Patch {
    pub(crate) id: PatchId,
    pub(crate) host: HostId,
    pub(crate) name: Arc<str>,
    pub(crate) objects: Vec<Object>,
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

/// Logs a line for a patch that does not exist yet.
pub(crate) fn note(log: &Log, line: &str) {
    tracing::info!("livepatch: {line}");
    log(&format!("livepatch: {line}"));
}

/// An object whose functions a patch changes.
#[derive(Debug)]
pub(crate) struct Object {
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

impl Object {
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
    pub(crate) fn named(&self) -> (&str, u64) {
        (&self.old_name, self.old_sympos.max(1))
    }
}

/// A patched function.
#[derive(Debug)]
pub(crate) struct Patched {
    /// An address behind the function's site.
    pub(crate) home: Addr,
    /// The address ranges of the original function.
    pub(crate) extent: Vec<Range<u64>>,
    /// The function stack: the replacements, the newest last.
    pub(crate) stack: Vec<FuncId>,
}

/// All state of live patching.
#[derive(Debug)]
pub(crate) struct Table {
    /// The patches in the order in which they were enabled.
    pub(crate) patches: Vec<Patch>,
    /// The patched functions by entry.
    pub(crate) functions: BTreeMap<Addr, Patched>,
    pub(crate) transition: Option<UnderWay>,
    pub(crate) stubs: Stubs,
    /// The slices of patches' modules that were written for loaded objects.
    pub(crate) written: Vec<Written>,
    /// The addresses of modules that were announced to this subscriber and are not unloaded.
    pub(crate) alive: Vec<usize>,
    pub(crate) last_patch: u64,
}

static TABLE: Mutex<Table> = Mutex::new(Table {
    patches: Vec::new(),
    functions: BTreeMap::new(),
    transition: None,
    stubs: Stubs::new(),
    written: Vec::new(),
    alive: Vec::new(),
    last_patch: 0,
});

/// The thread that holds the lock, or 0.
static OWNER: AtomicI32 = AtomicI32::new(0);

thread_local! {
    static HELD: RefCell<Option<Locked>> = const { RefCell::new(None) };
}

/// The table, locked for this thread.
pub(crate) struct Locked {
    guard: MutexGuard<'static, Table>,
}

impl Drop for Locked {
    fn drop(&mut self) {
        OWNER.store(0, Ordering::Relaxed);
    }
}

impl std::ops::Deref for Locked {
    type Target = Table;
    fn deref(&self) -> &Table {
        &self.guard
    }
}

impl std::ops::DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut Table {
        &mut self.guard
    }
}

/// Prepares the process for patching. Called when a host is made, after tracing's `install`: so the fork handler of
/// live patching runs before tracing's, because the lock of live patching is taken first.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The lock of static keys is taken within this lock.
        let _ = modload_static_keys::StaticKeys::new();
        on_fork(
            || HELD.set(table().ok()),
            || HELD.set(None),
            || {
                if let Some(mut table) = HELD.take() {
                    // The thread that held the table before the fork is this thread.
                    let before = OWNER.swap(Tid::current().get(), Ordering::Relaxed);
                    table.forked(before);
                }
            },
        );
        modload_ftrace::on_event(crate::transition::came_by);
    });
}

/// Locks the table.
///
/// # Errors
/// [`PatchError::Nested`]: this thread already holds the lock, and is in a callback.
pub(crate) fn table() -> Result<Locked, PatchError> {
    let me = Tid::current().get();
    if OWNER.load(Ordering::Relaxed) == me {
        return Err(PatchError::Nested);
    }
    // The table is consistent between any two statements that can panic.
    let guard = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    OWNER.store(me, Ordering::Relaxed);
    Ok(Locked { guard })
}

/// Returns the identity of a module among the modules that exist.
pub(crate) fn address(module: &Module) -> usize {
    std::ptr::from_ref(module).addr()
}

impl Table {
    pub(crate) fn patch(&self, id: PatchId) -> Option<&Patch> {
        self.patches.iter().find(|patch| patch.id == id)
    }

    pub(crate) fn patch_mut(&mut self, id: PatchId) -> Option<&mut Patch> {
        self.patches.iter_mut().find(|patch| patch.id == id)
    }

    /// Returns the states of the patches of the same host that were enabled before a patch, the newest last.
    pub(crate) fn states_before(&self, id: PatchId) -> Vec<(u64, Addr)> {
        let host = self.patch(id).map(|patch| patch.host);
        let before = self.patches.iter().take_while(|patch| patch.id != id);
        before.filter(|patch| Some(patch.host) == host).flat_map(|patch| patch.c_states.iter().copied()).collect()
    }

    pub(crate) fn func(&self, id: FuncId) -> Option<&Func> {
        self.patch(id.patch)?.objects.get(id.object)?.funcs.get(id.func)
    }

    /// Returns the target of a function's calls outside of transitions: the newest replacement on the function stack,
    /// or `None` for the function itself.
    pub(crate) fn settled(&self, entry: Addr) -> Option<Addr> {
        let newest = self.functions.get(&entry)?.stack.last()?;
        self.func(*newest)?.new_func
    }

    /// Returns the code for an entry of a function stack: the start, `None` for the function itself, and the address
    /// ranges. Below the first entry is the function itself.
    pub(crate) fn version(&self, entry: Addr, depth: Option<usize>) -> (Option<Addr>, Vec<Range<u64>>) {
        let Some(function) = self.functions.get(&entry) else { return (None, Vec::new()) };
        let func = depth.and_then(|depth| function.stack.get(depth)).and_then(|id| self.func(*id));
        match func.and_then(|func| Some((func.new_func?, func))) {
            Some((new, func)) => (Some(new), func.extent.clone()),
            None => (None, function.extent.clone()),
        }
    }
}
