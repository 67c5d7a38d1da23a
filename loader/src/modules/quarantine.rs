//! Text of an unloaded module that a thread is still in. The text stays mapped, with unwind rows, until no thread is
//! inside.
//!
//! The module itself has left the registry: `exit` and the going chain have run, and the name is free. The quarantine
//! belongs to the process: memory of a dropped host stays in quarantine, and a sweep of any other host frees that
//! memory.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::modules::inside::{self, Except, LookPatience};
use crate::modules::module::{Module, Reference};
use crate::modules::recorder::Recorder;
use crate::modules::registry::Registry;
use crate::modules::timeline::EventKind;
use crate::prepare::memory::{Core, Installed};
use crate::vocabulary::module_id::ModuleId;

/// Memory of an unloaded module, held until dropped.
#[expect(dead_code, reason = "each is held for its drop")]
pub(crate) enum QuarantinedMemory {
    /// That of a module that was LIVE.
    Live(Core),
    /// Memory of a module whose load has failed after some of the module's code had run.
    Failed(Installed),
}

/// A module's memory that stays.
pub(crate) struct Quarantined {
    module: Arc<Module>,
    /// Dropped first.
    memory: QuarantinedMemory,
    /// The modules whose symbols the code uses. They stay, too.
    providers: Vec<Reference>,
    /// The registry whose timeline records the freeing; `None` when that host is gone.
    registry: Option<&'static Registry>,
}

impl fmt::Debug for Quarantined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Quarantined").field(&self.module.name()).finish()
    }
}

static QUARANTINE: Mutex<Vec<Quarantined>> = Mutex::new(Vec::new());

/// Takes the lock. The lock is never held while threads are held or memory is freed.
pub(crate) fn quarantine() -> MutexGuard<'static, Vec<Quarantined>> {
    QUARANTINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a module's memory there.
pub(crate) fn put(
    registry: &'static Registry,
    module: Arc<Module>,
    memory: QuarantinedMemory,
    providers: Vec<Reference>,
) {
    quarantine().push(Quarantined { module, memory, providers, registry: Some(registry) });
}

/// Whether the memory of a registry's module is there.
pub(crate) fn holds(registry: &'static Registry, id: ModuleId) -> bool {
    let is = |one: &Quarantined| one.module.id == id && one.registry.is_some_and(|its| std::ptr::eq(its, registry));
    quarantine().iter().any(is)
}

/// The entries that a sweep has taken out. Entries that are not freed are put back, also if a proof panics.
struct TakenEntries(Vec<Quarantined>);

impl Drop for TakenEntries {
    fn drop(&mut self) {
        quarantine().append(&mut self.0);
    }
}

/// Frees all memory that no thread is in any more, and returns the names of those modules.
pub(crate) fn sweep() -> Vec<String> {
    // Taken out, so that two sweeps do not look at the same.
    let mut taken = TakenEntries(std::mem::take(&mut *quarantine()));
    let mut freed = Vec::new();
    let mut at = 0;
    while let Some(one) = taken.0.get(at) {
        if inside::prove_empty(&one.module, Except::Nobody, LookPatience::Once).is_err() {
            at += 1;
            continue;
        }
        let Quarantined { module, memory, providers, registry } = taken.0.swap_remove(at);
        drop(memory);
        drop(providers);
        if let Some(registry) = registry {
            Recorder { registry, module: &module.name }.record(|| EventKind::Freed);
        }
        tracing::info!(module = module.name(), "freed from quarantine");
        freed.push(module.name().to_owned());
    }
    freed
}

/// [`sweep`], if there is anything.
pub(crate) fn sweep_if_any() {
    let any = !quarantine().is_empty();
    if any {
        sweep();
    }
}

/// Returns the modules of a host whose memory is in quarantine.
pub(crate) fn of(registry: &'static Registry) -> Vec<Arc<Module>> {
    let all = quarantine();
    let ours = all.iter().filter(|one| one.registry.is_some_and(|its| std::ptr::eq(its, registry)));
    ours.map(|one| one.module.clone()).collect()
}

/// Forgets the registry of a dropped host, because another host may reuse the registry.
pub(crate) fn abandon(registry: &'static Registry) {
    for one in quarantine().iter_mut() {
        one.registry = one.registry.filter(|its| !std::ptr::eq(*its, registry));
    }
}
