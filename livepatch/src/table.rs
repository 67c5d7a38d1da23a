//! All patches of the process, and the stacks of the functions that they patch.
//!
//! A thread runs through the modules of several hosts, and its word speaks of one transition: there is one table. Its lock is
//! held while callbacks run, as Linux's `klp_mutex` is; who is called by live patching must not call it.

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

/// A host, told from all that were ever there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HostId {
    number: u64,
    /// How threads go over to what its patches bring.
    pub(crate) transition: Transition,
}

impl HostId {
    pub(crate) fn new(transition: Transition) -> HostId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        HostId { number: NEXT.fetch_add(1, Ordering::Relaxed), transition }
    }
}

/// A patch, told from all that were ever there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct PatchId(pub(crate) u64);

/// A func of an object of a patch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FuncId {
    pub(crate) patch: PatchId,
    pub(crate) object: usize,
    pub(crate) func: usize,
}

/// Notes a line of live patching's.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// A patch that is enabled, or was and is still in transition.
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
    /// States in the module's own memory: number and address.
    pub(crate) c_states: Vec<(u64, Addr)>,
    /// Its module stays as long as it is here.
    pub(crate) keep: Option<Reference>,
}

impl fmt::Debug for Patch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patch").field("name", &self.name).field("enabled", &self.enabled).finish_non_exhaustive()
    }
}

impl Patch {
    /// Notes a line, in Linux's wording.
    pub(crate) fn note(&self, line: &str) {
        note(&self.log, line);
    }
}

/// Notes a line of which no patch is there yet.
pub(crate) fn note(log: &Log, line: &str) {
    tracing::info!("livepatch: {line}");
    log(&format!("livepatch: {line}"));
}

/// Something whose functions a patch changes.
#[derive(Debug)]
pub(crate) struct Object {
    /// `None`: the host's own.
    pub(crate) name: Option<Arc<str>>,
    pub(crate) funcs: Vec<Func>,
    pub(crate) callbacks: Callbacks,
    /// The module's own record of it, if a module's init has enabled the patch.
    pub(crate) c: Option<CObject>,
    /// Whether it is here for no-op functions alone.
    pub(crate) is_dynamic: bool,
    /// Whether it is there: its functions are known.
    pub(crate) loaded: bool,
    pub(crate) patched: bool,
    /// Whether `post_unpatch` is called: `pre_patch` has not refused.
    pub(crate) post_unpatch_enabled: bool,
}

/// What the host's own functions are an object of.
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
    /// What takes its place; `None` for the original: a no-op function.
    pub(crate) new_func: Option<Addr>,
    /// Where it is, when its object is there.
    pub(crate) old: Option<Addr>,
    /// Where the new one is.
    pub(crate) extent: Vec<Range<u64>>,
    pub(crate) patched: bool,
}

impl Func {
    /// What names it within its object: name and position from 1, as in the names of Linux's sysfs folders. Positions 0 and 1 mean
    /// the same function, because 0 is valid only if there is one of that name.
    pub(crate) fn named(&self) -> (&str, u64) {
        (&self.old_name, self.old_sympos.max(1))
    }
}

/// A function that is patched.
#[derive(Debug)]
pub(crate) struct Patched {
    /// An address behind its site.
    pub(crate) home: Addr,
    /// Where it is itself.
    pub(crate) extent: Vec<Range<u64>>,
    /// What has taken its place, the newest last.
    pub(crate) stack: Vec<FuncId>,
}

/// What there is.
#[derive(Debug)]
pub(crate) struct Table {
    /// In the order in which they were enabled.
    pub(crate) patches: Vec<Patch>,
    /// By their entries.
    pub(crate) functions: BTreeMap<Addr, Patched>,
    pub(crate) transition: Option<UnderWay>,
    pub(crate) stubs: Stubs,
    /// What patches' modules have got for objects that are there.
    pub(crate) written: Vec<Written>,
    /// Modules that were announced to us and have not gone, by their address.
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

/// The thread that has the lock; 0 if none.
static OWNER: AtomicI32 = AtomicI32::new(0);

thread_local! {
    static HELD: RefCell<Option<Locked>> = const { RefCell::new(None) };
}

/// The table, for this thread alone.
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

/// What must be there before anything is patched. Called when a host is made, after tracing's: it prepares for a fork before that,
/// because its lock is taken first.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The lock of keys is taken within this one.
        let _ = modload_static_keys::StaticKeys::new();
        on_fork(
            || HELD.set(table().ok()),
            || HELD.set(None),
            || {
                if let Some(mut table) = HELD.take() {
                    // Who had the table before the fork is this thread.
                    let before = OWNER.swap(Tid::current().get(), Ordering::Relaxed);
                    table.forked(before);
                }
            },
        );
        modload_ftrace::on_event(crate::transition::came_by);
    });
}

/// The table.
///
/// # Errors
/// [`PatchError::Nested`]: this thread has it already, and is in a callback.
pub(crate) fn table() -> Result<Locked, PatchError> {
    let me = Tid::current().get();
    if OWNER.load(Ordering::Relaxed) == me {
        return Err(PatchError::Nested);
    }
    // Whole between any two statements that can panic.
    let guard = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    OWNER.store(me, Ordering::Relaxed);
    Ok(Locked { guard })
}

/// What a module is told by from others that are there.
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

    /// The states of the patches of its host that were there before a patch, the newest last.
    pub(crate) fn states_before(&self, id: PatchId) -> Vec<(u64, Addr)> {
        let host = self.patch(id).map(|patch| patch.host);
        let before = self.patches.iter().take_while(|patch| patch.id != id);
        before.filter(|patch| Some(patch.host) == host).flat_map(|patch| patch.c_states.iter().copied()).collect()
    }

    pub(crate) fn func(&self, id: FuncId) -> Option<&Func> {
        self.patch(id.patch)?.objects.get(id.object)?.funcs.get(id.func)
    }

    /// Where a function's calls go when nothing is in transition: the newest of its stack; `None` for itself.
    pub(crate) fn settled(&self, entry: Addr) -> Option<Addr> {
        let newest = self.functions.get(&entry)?.stack.last()?;
        self.func(*newest)?.new_func
    }

    /// The code that an entry of a stack stands for: where it begins, `None` for the function itself, and where it is. Below the
    /// first entry is the function itself.
    pub(crate) fn version(&self, entry: Addr, depth: Option<usize>) -> (Option<Addr>, Vec<Range<u64>>) {
        let Some(function) = self.functions.get(&entry) else { return (None, Vec::new()) };
        let func = depth.and_then(|depth| function.stack.get(depth)).and_then(|id| self.func(*id));
        match func.and_then(|func| Some((func.new_func?, func))) {
            Some((new, func)) => (Some(new), func.extent.clone()),
            None => (None, function.extent.clone()),
        }
    }
}
