//! GOING: out of the registry and out of memory.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::modules::inside::{self, Except, LookPatience, Occupied, SeenInside};
use crate::modules::module::{Module, Reference, lock};
use crate::modules::quarantine::{self, QuarantinedMemory};
use crate::modules::recorder::Recorder;
use crate::modules::registry::{Book, Registry};
use crate::modules::timeline::EventKind;
use crate::modules::{chains, entry};
use crate::operate::error::{self, UnloadError};
use crate::operate::leave::{self, AwaitsDestructors};
use crate::vocabulary::left::LeftBy;
use crate::vocabulary::module_id::ModuleId;
use crate::vocabulary::state::State;

/// The module to be unloaded.
#[derive(Clone, Copy)]
pub(crate) enum Which<'a> {
    /// The one that has this name now.
    Named(&'a str),
    /// This module, and not a later one of the same name.
    This(ModuleId, &'a str),
}

/// The conditions that prevent the unload.
#[derive(Clone, Copy)]
pub(crate) enum Unless {
    /// Other modules, and references that are held.
    Used,
    /// The same, when so much time has passed.
    UsedFor(Duration),
    /// Other modules: references are overridden, as with Linux's `O_TRUNC`.
    UsedByModules,
}

/// Unloads a module.
pub(crate) fn unload_module(registry: &'static Registry, which: Which<'_>, unless: Unless) -> Result<(), UnloadError> {
    quarantine::sweep_if_any();
    let Closed { module, held, seen } = close_when_left(registry, which, unless)?;
    let recorder = Recorder { registry, module: &module.name };
    tracing::debug!(module = %module.name, "GOING");
    recorder.record(|| EventKind::State { state: State::Going });
    if held != 0 {
        recorder.warn(format!("unloaded by force{}: its memory stays until they are dropped", error::held(held)));
    }
    exit(recorder, &module);
    destruct(recorder, &module);
    chains::ask_for_stand_ins(registry, &module);
    let accepted = std::mem::take(&mut *lock(&module.accepted));
    chains::going(recorder, &module, accepted);
    chains::evict(recorder, &module);
    // Hidden before the memory can be reused.
    registry.hide(module.id);
    // The memory of a held module is freed with the last reference, which drops the module.
    if held == 0 {
        free(recorder, &module, seen);
    }
    registry.lock().remove(module.id);
    registry.wake();
    tracing::info!(module = %module.name, "unloaded");
    Ok(())
}

impl Reference {
    /// Drops this reference and unloads the module.
    ///
    /// # Errors
    /// [`UnloadError`]: the module is still in use.
    pub fn unload(self) -> Result<(), UnloadError> {
        let (registry, id, name) = (self.registry, self.id, self.name.clone());
        drop(self);
        unload_module(registry, Which::This(id, &name), Unless::Used)
    }
}

/// Unpublishes the text and frees everything; keeps everything while a thread is inside.
fn free(recorder: Recorder<'_>, module: &Arc<Module>, seen: SeenInside) {
    // No thread was inside when the module was closed, and no code of the module has run since.
    let nothing_ran = seen == SeenInside::Nobody && module.functions.nothing_at_the_end();
    let core = lock(&module.core).take();
    let Some(core) = core else { return };
    let freed = if nothing_ran {
        drop(core);
        true
    } else {
        free_or_keep(recorder, module, QuarantinedMemory::Live(core))
    };
    if freed {
        recorder.record(|| EventKind::Freed);
    }
}

/// Frees a module's memory if no thread is inside, or puts the memory into quarantine. Returns whether the memory was
/// freed.
pub(crate) fn free_or_keep(recorder: Recorder<'_>, module: &Arc<Module>, memory: QuarantinedMemory) -> bool {
    let threads = match inside::prove_empty(module, Except::Nobody, LookPatience::Some) {
        Ok(_) => {
            drop(memory);
            return true;
        }
        Err(Occupied::By(threads)) => threads,
        Err(Occupied::NotHeld(why)) => {
            recorder.warn(format!("whether its code is left cannot be seen: {why}"));
            Vec::new()
        }
    };
    for thread in &threads {
        recorder.warn(format!("gone, but {thread}"));
    }
    // Threads in the text may still call the providers.
    let providers = recorder.registry.hold_providers(module.id);
    quarantine::put(recorder.registry, module.clone(), memory, providers);
    recorder.record(|| EventKind::Quarantined { threads: threads.len() });
    false
}

/// How long is waited between two looks at the threads, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// Closes a module if only threads of the module itself are inside. Otherwise opens the module again.
///
/// A forced unload overrides references, and therefore also the threads that use the references: such threads may be
/// inside.
fn close_when_left(registry: &'static Registry, which: Which<'_>, unless: Unless) -> Result<Closed, UnloadError> {
    let begun = Instant::now();
    let mut pause = PAUSE.0;
    let mut awaits = None;
    loop {
        let left = match unless {
            Unless::UsedFor(at_most) => at_most.saturating_sub(begun.elapsed()),
            Unless::Used | Unless::UsedByModules => Duration::ZERO,
        };
        let unless = if matches!(unless, Unless::UsedFor(_)) { Unless::UsedFor(left) } else { unless };
        let closed = close(registry, which, unless)?;
        if closed.held != 0 {
            return Ok(closed);
        }
        chains::ask_for_stand_ins(registry, &closed.module);
        let occupied = match inside::prove_empty(&closed.module, Except::ItsOwn, LookPatience::Some) {
            Ok(seen) => return Ok(Closed { seen, ..closed }),
            Err(occupied) => occupied,
        };
        if matches!(unless, Unless::UsedByModules) {
            // The memory stays in quarantine as long as threads are inside.
            let recorder = Recorder { registry, module: &closed.module.name };
            recorder.warn(format!("unloaded by force, though {occupied}"));
            registry.lock().taint.insert('R');
            return Ok(closed);
        }
        reopen(registry, &closed.module);
        if left.is_zero() {
            let module = closed.module.name.to_string();
            return Err(match occupied {
                Occupied::By(threads) => UnloadError::Occupied { module, threads },
                Occupied::NotHeld(why) => UnloadError::NotSeen { module, why },
            });
        }
        awaits = awaits.or_else(|| Some(AwaitsDestructors::of(&closed.module)));
        drop(closed);
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// A module that was closed is LIVE as before.
fn reopen(registry: &Registry, module: &Module) {
    {
        let mut book = registry.lock();
        book.set_state(module.id, State::Live);
        module.reopen();
    }
    registry.wake();
}

/// Calls `exit`, which cannot fail: an exception becomes a warning.
pub(crate) fn exit(recorder: Recorder<'_>, module: &Module) {
    if let Some(exit) = module.functions.exit {
        entry::exit(exit).unwrap_or_else(|left| {
            recorder.warn(format!("exit was left by {}", LeftBy::describe(recorder.registry, left)));
        });
        recorder.record(|| EventKind::Exit);
    }
}

/// Calls destructors, which cannot fail either.
pub(crate) fn destruct(recorder: Recorder<'_>, module: &Module) {
    let functions = &module.functions;
    // As at the end of a program: this thread's thread-local variables are destroyed before functions that are
    // registered for the end of the program run.
    leave::call_own(recorder, module);
    entry::destructors(&functions.destructors, functions.dso_handle, |left| leave::warn_left(recorder, left));
}

/// A module that is GOING, and the number of references that are still held.
struct Closed {
    module: Arc<Module>,
    held: usize,
    /// Result of the proof; not proved yet unless [`SeenInside::Nobody`].
    seen: SeenInside,
}

/// Closes a module to new references. From here on the module is GOING, and no other thread can unload the module.
fn close(registry: &'static Registry, which: Which<'_>, unless: Unless) -> Result<Closed, UnloadError> {
    let mut book = registry.lock();
    let (entry, name) = match which {
        Which::Named(name) => (book.by_name(name), name),
        Which::This(id, name) => (book.by_id(id), name),
    };
    let id = entry.ok_or_else(|| UnloadError::NotFound(name.escape_debug().to_string()))?.id;
    let patience = match unless {
        Unless::UsedFor(at_most) => Some((Instant::now(), at_most)),
        Unless::Used | Unless::UsedByModules => None,
    };
    loop {
        let used = match try_close(&mut book, id, name, unless) {
            Err(used @ UnloadError::InUse { .. }) => used,
            done => return done,
        };
        let Some((begun, at_most)) = patience else { return Err(used) };
        let left = at_most.saturating_sub(begun.elapsed());
        let module = book.by_id(id).and_then(|entry| entry.module.as_ref());
        if left.is_zero() {
            // Other threads that wait for this module set the mark again after waking.
            module.inspect(|module| module.forget_waiting());
            drop(book);
            registry.wake();
            return Err(used);
        }
        // A reference that was dropped before this mark wakes no thread.
        let unmarked = module.is_some_and(|module| module.await_references());
        if !unmarked {
            book = registry.wait_for_change(book, Some(left));
        }
    }
}

fn try_close(book: &mut Book, id: ModuleId, name: &str, unless: Unless) -> Result<Closed, UnloadError> {
    let entry = book.by_id(id).ok_or_else(|| UnloadError::NotFound(name.escape_debug().to_string()))?;
    let state = entry.state;
    let live = entry.module.clone().filter(|_| state == State::Live);
    let module = live.ok_or_else(|| UnloadError::NotLive { module: name.into(), state })?;
    let by = book.users(id);
    let in_use = |references| UnloadError::InUse { module: name.into(), by: by.clone(), references };
    if !by.is_empty() {
        return Err(in_use(module.references()));
    }
    let held = match unless {
        Unless::Used | Unless::UsedFor(_) => module.close().map(|()| 0).map_err(in_use)?,
        Unless::UsedByModules => module.close_by_force(),
    };
    book.set_state(id, State::Going);
    if let Some(entry) = book.by_id_mut(id) {
        entry.thread = thread::current().id();
    }
    if held != 0 {
        book.taint.insert('R');
    }
    Ok(Closed { module, held, seen: SeenInside::ItsOwn })
}
