//! A thread leaves the modules that it has used: it calls the destructors that modules have registered for its end, and
//! its copies of their thread-local variables begin anew.
//!
//! Such destructors keep their module from being unloaded. A thread that never ends can call them earlier: because its
//! program says so, or at a checkpoint while an unload waits for them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use modload_edit::Addr;
use modload_threads::{Tid, boundary, frames, thread_exit};

use crate::modules::module::Module;
use crate::modules::recorder::Recorder;
use crate::modules::registry::Registry;
use crate::vocabulary::left::LeftBy;
use crate::vocabulary::state::State;

/// The number of unloads that wait for destructors of threads.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// An unload that waits for the destructors of threads, until this is dropped.
pub(crate) struct AwaitsDestructors(Arc<Module>);

impl AwaitsDestructors {
    pub(crate) fn of(module: &Arc<Module>) -> AwaitsDestructors {
        WAITING.fetch_add(1, Ordering::Relaxed);
        module.awaits_destructors.fetch_add(1, Ordering::Relaxed);
        AwaitsDestructors(module.clone())
    }
}

impl Drop for AwaitsDestructors {
    fn drop(&mut self) {
        self.0.awaits_destructors.fetch_sub(1, Ordering::Relaxed);
        WAITING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether any unload waits for destructors.
#[inline]
pub(crate) fn is_awaited() -> bool {
    WAITING.load(Ordering::Relaxed) != 0
}

/// Leaves the modules whose unload waits for destructors.
pub(crate) fn leave_awaited(registry: &'static Registry) {
    leave(registry, |module| module.awaits_destructors.load(Ordering::Relaxed) != 0);
}

/// Calls this thread's destructors of the modules that are wanted and LIVE and not on this thread's stack, and begins its
/// copies of their variables anew. Returns whether none of the wanted modules has destructors of this thread any more.
pub(crate) fn leave(registry: &'static Registry, is_wanted: impl Fn(&Module) -> bool) -> bool {
    let modules: Vec<_> = {
        let book = registry.lock();
        book.modules.iter().filter_map(|entry| Some((entry.module.clone()?, entry.state))).collect()
    };
    let mut left = true;
    for (module, state) in modules {
        let owner = module.creator.number();
        let owes = || thread_exit::open(owner).iter().any(|(tid, _)| *tid == Tid::current());
        if !is_wanted(&module) || !owes() {
            continue;
        }
        // The reference keeps the module while its last destructor has returned, and this thread's copy is still used.
        let reference = if state == State::Live && !is_on_stack(&module) { module.get() } else { None };
        let Some(_reference) = reference else {
            left = false;
            continue;
        };
        call_own(Recorder { registry, module: &module.name }, &module);
        if let Some(block) = module.block {
            modload_tls::renew_own(block);
        }
        left &= !owes();
    }
    left
}

/// Calls this thread's destructors of a module, which cannot fail: an exception becomes a warning.
pub(crate) fn call_own(recorder: Recorder<'_>, module: &Module) {
    let owner = module.creator.number();
    thread_exit::call_own(owner, |destructor| boundary::guard(destructor).unwrap_or_else(|by| warn_left(recorder, by)));
}

/// Warns of an exception that has left a destructor.
pub(crate) fn warn_left(recorder: Recorder<'_>, by: boundary::Left) {
    recorder.warn(format!("a destructor was left by {}", LeftBy::describe(recorder.registry, by)));
}

/// Whether code of a module is on this thread's stack, or may be.
fn is_on_stack(module: &Module) -> bool {
    let mut is_there = false;
    let walked = frames::walk_here(|frame| {
        is_there |= module.holds_code(Addr::new(frame.pc));
        ControlFlow::Continue(())
    });
    is_there || walked != Ok(frames::Ended::Outermost)
}
