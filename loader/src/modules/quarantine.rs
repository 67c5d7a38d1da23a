//! Text that somebody is still in when its module has gone: it stays where it is, with its unwind rows, until nobody is.
//!
//! The module itself is out of its registry: its `exit` and the going chain have run, and its name is free. Quarantine is
//! the process's: a host that is dropped leaves behind what it has there, and any other host's sweep frees it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::modules::inside::{self, Except, Patience};
use crate::modules::module::{Module, Reference};
use crate::modules::recorder::Recorder;
use crate::modules::registry::{ModuleId, Registry};
use crate::modules::timeline::EventKind;
use crate::prepare::memory::{Core, Installed};

/// Memory of a module that has gone. Held for its drop.
#[expect(dead_code, reason = "each is held for its drop")]
pub(crate) enum Memory {
    /// That of a module that was LIVE.
    Live(Core),
    /// That of a module whose load has failed after some of its code had run.
    Failed(Installed),
}

/// A module's memory that stays.
pub(crate) struct Quarantined {
    module: Arc<Module>,
    /// Dropped first.
    memory: Memory,
    /// The modules whose symbols it uses: they stay, too.
    providers: Vec<Reference>,
    /// Whose timeline hears that it is freed; none when that host is gone.
    registry: Option<&'static Registry>,
}

impl fmt::Debug for Quarantined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Quarantined").field(&self.module.name()).finish()
    }
}

static QUARANTINE: Mutex<Vec<Quarantined>> = Mutex::new(Vec::new());

/// The lock, which nobody holds while threads are held or memory is freed.
pub(crate) fn quarantine() -> MutexGuard<'static, Vec<Quarantined>> {
    QUARANTINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a module's memory there.
pub(crate) fn put(registry: &'static Registry, module: Arc<Module>, memory: Memory, providers: Vec<Reference>) {
    quarantine().push(Quarantined { module, memory, providers, registry: Some(registry) });
}

/// Whether the memory of a registry's module is there.
pub(crate) fn holds(registry: &'static Registry, id: ModuleId) -> bool {
    let is = |one: &Quarantined| one.module.id == id && one.registry.is_some_and(|its| std::ptr::eq(its, registry));
    quarantine().iter().any(is)
}

/// What a sweep has taken out. What it has not freed goes back, if a proof panics, too.
struct Taken(Vec<Quarantined>);

impl Drop for Taken {
    fn drop(&mut self) {
        quarantine().append(&mut self.0);
    }
}

/// Frees what nobody is in any more; returns the names of the modules, and leaves the rest.
pub(crate) fn sweep() -> Vec<String> {
    // Taken out, so that two sweeps do not look at the same.
    let mut taken = Taken(std::mem::take(&mut *quarantine()));
    let mut freed = Vec::new();
    let mut at = 0;
    while let Some(one) = taken.0.get(at) {
        if inside::prove_empty(&one.module, Except::Nobody, Patience::Once).is_err() {
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

/// The modules of a host whose memory is there.
pub(crate) fn of(registry: &'static Registry) -> Vec<Arc<Module>> {
    let all = quarantine();
    let ours = all.iter().filter(|one| one.registry.is_some_and(|its| std::ptr::eq(its, registry)));
    ours.map(|one| one.module.clone()).collect()
}

/// A host goes, and its registry may become another's.
pub(crate) fn abandon(registry: &'static Registry) {
    for one in quarantine().iter_mut() {
        one.registry = one.registry.filter(|its| !std::ptr::eq(*its, registry));
    }
}
