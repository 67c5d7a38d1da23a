//! GOING: out of the registry and out of memory.

use std::sync::Arc;
use std::thread;

use crate::chains;
use crate::entry;
use crate::error::UnloadError;
use crate::module::{Module, lock};
use crate::registry::{ModuleId, Registry, State};
use crate::timeline::{EventKind, Recorder};

/// Which module is to go.
#[derive(Clone, Copy)]
pub(crate) enum Which<'a> {
    /// The one that has this name now.
    Named(&'a str),
    /// This one, and not another that has come under its name since.
    This(ModuleId, &'a str),
}

/// Unloads a module that nobody uses.
pub(crate) fn unload_module(registry: &'static Registry, which: Which<'_>) -> Result<(), UnloadError> {
    let module = close(registry, which)?;
    let recorder = Recorder { registry, module: &module.name };
    tracing::debug!(module = %module.name, "GOING");
    recorder.record(|| EventKind::State { state: State::Going });
    exit(recorder, &module);
    entry::destructors(&module.functions.destructors, module.functions.dso_handle);
    let accepted = std::mem::take(&mut *lock(&module.accepted));
    chains::going(recorder, &module, accepted);
    chains::evict(recorder, &module);
    // Before its memory can be another's.
    registry.hide(module.id);
    // Unpublishes the text, and then gives everything back.
    let core = lock(&module.core).take();
    drop(core);
    recorder.record(|| EventKind::Freed);
    registry.lock().remove(module.id);
    registry.wake();
    tracing::info!(module = %module.name, "unloaded");
    Ok(())
}

/// Calls `exit`.
pub(crate) fn exit(recorder: Recorder<'_>, module: &Module) {
    if let Some(exit) = module.functions.exit {
        entry::exit(exit);
        recorder.record(|| EventKind::Exit);
    }
}

/// Closes a module to new references: it is GOING from here on, and nobody else can unload it.
fn close(registry: &'static Registry, which: Which<'_>) -> Result<Arc<Module>, UnloadError> {
    let mut book = registry.lock();
    let (entry, name) = match which {
        Which::Named(name) => (book.by_name(name), name),
        Which::This(id, name) => (book.by_id(id), name),
    };
    let entry = entry.ok_or_else(|| UnloadError::NotFound(name.escape_debug().to_string()))?;
    let (id, state) = (entry.id, entry.state);
    let live = entry.module.clone().filter(|_| state == State::Live);
    let module = live.ok_or_else(|| UnloadError::NotLive { module: name.into(), state })?;
    let by = book.users(id);
    let in_use = |references| UnloadError::InUse { module: name.into(), by: by.clone(), references };
    if !by.is_empty() {
        return Err(in_use(module.references()));
    }
    module.close().map_err(in_use)?;
    if let Some(entry) = book.by_id_mut(id) {
        entry.state = State::Going;
        entry.thread = thread::current().id();
    }
    Ok(module)
}
