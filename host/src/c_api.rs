//! The functions that every host exports to modules: Linux's `register_module_notifier` and its inverse,
//! `klp_enable_patch`, a function for log lines, and the functions behind static keys, static calls and live patches.
#![expect(unsafe_code, reason = "C callers pass pointers, and C callbacks take them")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_ulong, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};

use modload_edit::{Addr, index, wide};
use modload_loader::{Coming, Loader, Membership, Module, Order, Refusal, Subscriber};
use modload_text::on_fork;

use crate::built_in::{self, BuiltIn, BuiltInOptions};
use crate::x86_64::aligned;

const MODULE_STATE_LIVE: c_ulong = 0;
const MODULE_STATE_COMING: c_ulong = 1;
const MODULE_STATE_GOING: c_ulong = 2;

const NOTIFY_OK: c_int = 1;
const NOTIFY_STOP_MASK: c_int = 0x8000;

pub(crate) const EINVAL: c_int = 22;
const EEXIST: c_int = 17;
const ENOENT: c_int = 2;

/// `struct notifier_block` of the SDK.
#[repr(C)]
#[derive(Clone, Copy)]
struct NotifierBlock {
    call: Option<extern "C" fn(*mut NotifierBlock, c_ulong, *mut c_void) -> c_int>,
    next: *mut NotifierBlock,
    priority: c_int,
}

/// `struct module` of the SDK.
#[repr(C)]
struct CallbackModule {
    name: [c_char; 56],
    state: c_int,
}

/// The parts of a host.
#[derive(Debug)]
pub(crate) struct HostState {
    /// Dropped first, so that subscribers still in the chains are called for each module that goes.
    pub(crate) loader: Loader,
    /// The subscribers that every host has.
    pub(crate) built_in: BuiltIn,
    /// The number of [`crate::Host`] values. Temporary references, as in [`owner`], do not count.
    pub(crate) handles: AtomicUsize,
    /// Whether the last of these values has been dropped before.
    pub(crate) left: AtomicBool,
    /// Dropped last.
    _notifiers: Notifiers,
}

/// Removes the C notifiers of a host from the chains when it is dropped: those of its modules that are still
/// referenced.
#[derive(Debug)]
struct Notifiers;

impl Drop for Notifiers {
    fn drop(&mut self) {
        let gone: Vec<_> = {
            let mut hosts = hosts();
            let (gone, remaining) = std::mem::take(&mut hosts.notifiers)
                .into_iter()
                .partition::<BTreeMap<_, _>, _>(|(_, (host, _))| host.strong_count() == 0);
            hosts.notifiers = remaining;
            gone.into_values().collect()
        };
        // Dropped without the lock of `HOSTS`: leaving the chains may wait for a call that takes this lock.
        drop(gone);
    }
}

impl HostState {
    pub(crate) fn new(loader: Loader, options: &BuiltInOptions) -> HostState {
        let (handles, left) = (AtomicUsize::new(0), AtomicBool::new(false));
        let built_in = BuiltIn::join(&loader, options);
        HostState { loader, built_in, handles, left, _notifiers: Notifiers }
    }
}

/// All hosts of the process. A C caller does not name its host, but its notifier block lies in a module of that host.
/// The lock is taken before the locks of registries, never while one of them is held, and held during a fork.
struct Hosts {
    all: Vec<Weak<HostState>>,
    /// The memberships by the address of the notifier block.
    notifiers: BTreeMap<Addr, (Weak<HostState>, Membership)>,
}

static HOSTS: Mutex<Hosts> = Mutex::new(Hosts { all: Vec::new(), notifiers: BTreeMap::new() });

thread_local! {
    static HELD: RefCell<Option<MutexGuard<'static, Hosts>>> = const { RefCell::new(None) };
}

fn hosts() -> MutexGuard<'static, Hosts> {
    HOSTS.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn enter(inner: &Arc<HostState>) {
    static FORK: Once = Once::new();
    FORK.call_once(|| on_fork(|| HELD.set(Some(hosts())), || HELD.set(None), || HELD.set(None)));
    let mut hosts = hosts();
    hosts.all.retain(|host| host.strong_count() != 0);
    hosts.all.push(Arc::downgrade(inner));
}

pub(crate) fn owner(block: Addr) -> Option<(Arc<HostState>, Arc<Module>)> {
    let hosts: Vec<_> = hosts().all.iter().filter_map(Weak::upgrade).collect();
    hosts.into_iter().find_map(|host| host.loader.module_at(block).map(|module| (host, module)))
}

/// Returns the names and the entry points of the exported C functions: those below, and those for keys and live
/// patches.
pub(crate) fn exports() -> impl Iterator<Item = (&'static str, Addr)> {
    type OfBlock = extern "C" fn(*mut NotifierBlock) -> c_int;
    type OfText = extern "C" fn(*const c_void, c_int, *const c_char);
    let address = |pointer: *const ()| Addr::new(wide(pointer.expose_provenance()));
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let [register, unregister, log] =
        [register as OfBlock as *const (), unregister as OfBlock as *const (), log as OfText as *const ()];
    let ours = [
        ("register_module_notifier", address(register)),
        ("unregister_module_notifier", address(unregister)),
        ("modload_log", address(log)),
    ];
    let all = ours.into_iter().chain(built_in::exports());
    all.map(|(name, function)| (name, aligned::entry(function)))
}

/// `void modload_log(const struct module *, int level, const char *)`: adds each line of the text to the timeline. The
/// levels are Linux's.
extern "C" fn log(module: *const c_void, level: c_int, text: *const c_char) {
    const ERROR: c_int = 3;
    const WARNING: c_int = 4;
    let Some((_, module)) = owner(Addr::new(wide(module.expose_provenance()))) else { return };
    if text.is_null() {
        return;
    }
    // SAFETY: by the C contract this is a NUL-terminated string. It is not kept.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    for line in text.lines() {
        // A terminal would interpret control characters.
        let mut shown = String::with_capacity(line.len());
        for letter in line.chars() {
            match letter {
                '\t' => shown.push(letter),
                control if control.is_control() => shown.extend(control.escape_debug()),
                _ => shown.push(letter),
            }
        }
        match level {
            ..=ERROR => tracing::error!(module = module.name(), "{shown}"),
            WARNING => tracing::warn!(module = module.name(), "{shown}"),
            _ => tracing::info!(module = module.name(), "{shown}"),
        }
        module.log(shown);
    }
}

/// `int register_module_notifier(struct notifier_block *)`: joins the chains with `Order::same(priority)`. The block
/// must lie in the data of a module of a host (else -EINVAL) and must not be registered already (else -EEXIST).
extern "C" fn register(block: *mut NotifierBlock) -> c_int {
    let at = Addr::new(wide(block.expose_provenance()));
    let Some((host, module)) = owner(at) else { return -EINVAL };
    // SAFETY: the block lies in a module's memory (checked above), and by the C contract it is a notifier block.
    let NotifierBlock { call, priority, .. } = unsafe { ptr::read_unaligned(block) };
    if call.is_none() {
        return -EINVAL;
    }
    let mut hosts = hosts();
    if hosts.notifiers.get(&at).is_some_and(|(_, membership)| membership.is_member()) {
        return -EEXIST;
    }
    let name =
        module.display_place(at).map_or_else(|| module.name().to_owned(), |place| format!("{}:{place}", module.name()));
    let subscriber = Arc::new(CNotifier { block: at });
    let membership = host.loader.subscribe_for(&module, &name, Order::same(priority), subscriber);
    let replaced = hosts.notifiers.insert(at, (Arc::downgrade(&host), membership));
    drop(hosts);
    drop(replaced);
    0
}

/// `int unregister_module_notifier(struct notifier_block *)`: returns once no other thread is in a call of this
/// notifier.
extern "C" fn unregister(block: *mut NotifierBlock) -> c_int {
    let at = Addr::new(wide(block.expose_provenance()));
    if owner(at).is_none() {
        return -EINVAL;
    }
    let found = hosts().notifiers.remove(&at);
    // Dropped without the lock: leaving the chains may wait for a call that takes this lock.
    found.map_or(-ENOENT, |(_, membership)| {
        membership.leave();
        0
    })
}

/// A notifier block of a module.
struct CNotifier {
    block: Addr,
}

impl CNotifier {
    fn call(&self, action: c_ulong, module: &Module) -> c_int {
        let block: *mut NotifierBlock = ptr::with_exposed_provenance_mut(index(self.block.get()));
        // SAFETY: the block lies in the data of a loaded module: the notifier leaves the chains before the module goes.
        let NotifierBlock { call, .. } = unsafe { ptr::read_unaligned(block) };
        let Some(call) = call else { return NOTIFY_OK };
        let mut copy = CallbackModule { name: [0; 56], state: c_int::try_from(action).unwrap_or_default() };
        let named = copy.name.iter_mut().zip(module.name().bytes());
        named.for_each(|(to, from)| *to = c_char::from_ne_bytes([from]));
        let data: *mut c_void = match module.this_module() {
            Some(at) => ptr::with_exposed_provenance_mut(index(at.get())),
            None => ptr::from_mut(&mut copy).cast(),
        };
        call(block, action, data)
    }
}

impl Subscriber for CNotifier {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        let result = self.call(MODULE_STATE_COMING, coming.module());
        // As Linux's notifier_to_errno: NOTIFY_STOP_MASK | (NOTIFY_OK - errno). A stop without an error does not keep
        // later subscribers from being called.
        match (result & !NOTIFY_STOP_MASK).wrapping_sub(NOTIFY_OK) {
            errno @ 1.. if result & NOTIFY_STOP_MASK != 0 => {
                Err(Refusal { reason: format!("error {errno}"), errno: Some(errno) })
            }
            _ => Ok(()),
        }
    }

    fn live(&self, module: &Module) {
        self.call(MODULE_STATE_LIVE, module);
    }

    fn going(&self, module: &Module) {
        self.call(MODULE_STATE_GOING, module);
    }
}
