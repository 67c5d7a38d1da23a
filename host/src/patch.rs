//! Live patching, as Linux's: functions of loaded modules are replaced while threads run.

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use modload_abi::modinfo::is_same_name;
use modload_edit::{Addr, wide};
pub use modload_livepatch::link;
pub use modload_livepatch::{
    Blocked, Callbacks, FuncSpec, ObjectSpec, ObjectStatus, PatchError, PatchSpec, PatchStatus, StateSpec, Target,
    Transition, Why,
};
use modload_livepatch::{Log, Standing};

use crate::backtrace::Backtrace;
use crate::builder::HostBuilder;
use crate::c_api;
use crate::foreign::Module;
use crate::host::Host;

/// A thread that stands in the way of a transition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockingThread {
    /// Its id, as gettid(2) gives it.
    pub thread: i32,
    /// Its name, escaped.
    pub name: String,
    /// What it does, in a word: `sleeping`, say.
    pub state: String,
    /// The frame that stood in the way when it was looked at last; `None` if no such frame is known.
    pub inside: Option<String>,
    /// Why it stands in the way, as it is said of it: `is in slow+0x1c/0x40 [target]`, `has not come to a checkpoint`.
    pub why: String,
    /// Its calls as they are now. Empty where threads go over at checkpoints alone: it is not held to be asked.
    pub backtrace: Backtrace,
}

/// Live patching.
impl Host {
    /// Enables a patch: Linux's `klp_enable_patch`. Functions of modules that are there are redirected now, those of others when they
    /// are loaded. When this returns, threads may still be on their way: [`Host::patches`]. `keep` stays loaded as long as the
    /// patch is in force: the module whose functions take the place of others.
    ///
    /// # Errors
    /// [`PatchError`].
    pub fn enable_patch(&self, name: &str, patch: PatchSpec, keep: Option<&Module>) -> Result<(), PatchError> {
        let keep = keep.map(Module::reference);
        let log: Log = match &keep {
            Some(module) => {
                let module = module.clone();
                Arc::new(move |line| module.log(line))
            }
            None => Arc::new(|_| {}),
        };
        self.inner.built_in.livepatch.enable(&self.inner.loader, name, patch, keep, log)
    }

    /// Disables a patch, or turns it round while it is being enabled.
    ///
    /// # Errors
    /// [`PatchError`].
    pub fn disable_patch(&self, name: &str) -> Result<(), PatchError> {
        self.inner.built_in.livepatch.disable(name)
    }

    /// Disables all patches, the newest first, each when the one before is gone, at most so long. Returns those that are still there:
    /// somebody does not leave their functions, or does not come to a checkpoint. While it waits, the calling thread comes to some.
    ///
    /// # Errors
    /// [`PatchError`]: one cannot be disabled.
    pub fn disable_patches(&self, at_most: Duration) -> Result<Vec<PatchStatus>, PatchError> {
        const LONGEST: Duration = Duration::from_millis(50);
        let (begun, mut pause) = (Instant::now(), Duration::from_micros(100));
        loop {
            let patches = self.patches()?;
            let Some(newest) = patches.last() else { return Ok(patches) };
            if newest.enabled {
                match self.disable_patch(&newest.name) {
                    // Gone by itself: nothing waits for that any more.
                    Ok(()) | Err(PatchError::Unknown(_)) => continue,
                    Err(PatchError::InTransition(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            if begun.elapsed() >= at_most {
                return Ok(patches);
            }
            self.checkpoint();
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// Turns the transition of a patch round.
    ///
    /// # Errors
    /// [`PatchError`]; [`PatchError::NoTransition`].
    pub fn reverse_patch(&self, name: &str) -> Result<(), PatchError> {
        self.inner.built_in.livepatch.reverse(name)
    }

    /// Ends the transition of a patch, wherever threads are: those that are in old code finish it, and it stays for them.
    ///
    /// # Errors
    /// [`PatchError`]; [`PatchError::NoTransition`].
    pub fn force_patch(&self, name: &str) -> Result<(), PatchError> {
        self.inner.built_in.livepatch.force(name)
    }

    /// The patches that are enabled or on their way, and who stands in their way.
    ///
    /// # Errors
    /// [`PatchError::Nested`].
    pub fn patches(&self) -> Result<Vec<PatchStatus>, PatchError> {
        self.inner.built_in.livepatch.status()
    }

    /// The threads that stand in the way of a patch's transition, as they are now. They are held for a moment to be asked where they
    /// are, but for [`Transition::CheckpointsOnly`].
    ///
    /// # Errors
    /// [`PatchError`]: there is no such patch, or threads cannot be held.
    pub fn blocking(&self, name: &str) -> Result<Vec<BlockingThread>, PatchError> {
        let patch = self.patches()?.into_iter().find(|patch| is_same_name(&patch.name, name));
        let patch = patch.ok_or_else(|| PatchError::Unknown(name.to_owned()))?;
        let Some((_, blocked)) = patch.transition else { return Ok(Vec::new()) };
        let tids = blocked.iter().map(|blocked| blocked.tid);
        let standing = match patch.how {
            Transition::Anywhere => modload_livepatch::standing(&tids.collect::<Vec<_>>())?,
            Transition::CheckpointsOnly => tids.map(Standing::unknown).collect(),
        };
        let describe = |at: Addr, is_return: bool| {
            let module = self.inner.loader.module_at(if is_return { at.offset(-1) } else { at })?;
            if is_return { module.describe_return(at) } else { module.describe(at) }
        };
        let thread = |one: Standing| {
            let why = blocked.iter().find(|blocked| blocked.tid == one.tid)?.why;
            let named = |pc| {
                let at = Addr::new(pc);
                describe(at, true).or_else(|| describe(at, false)).unwrap_or_else(|| at.to_string())
            };
            let inside = if let Why::Inside(pc) = why { Some(named(pc)) } else { None };
            let why = match (&inside, why, patch.how) {
                (Some(frame), _, Transition::Anywhere) => format!("is in {frame}"),
                (Some(frame), _, Transition::CheckpointsOnly) => format!("was in {frame} at its last checkpoint"),
                (None, Why::NoCheckpoint, _) => "has not come to a checkpoint".to_owned(),
                (None, Why::Unwalked, _) => {
                    "came to a checkpoint with a stack that cannot be walked to its end".to_owned()
                }
                (None, ..) => "has a stack that cannot be walked to its end".to_owned(),
            };
            let state = modload_threads::status(one.tid).ok().flatten().map(|status| status.state);
            let name = modload_threads::name(one.tid).ok().flatten().map(|name| name.to_string());
            Some(BlockingThread {
                thread: one.tid.get(),
                name: name.unwrap_or_default(),
                state: state.map(|state| state.to_string()).unwrap_or_default(),
                inside,
                why,
                backtrace: Backtrace::of(&one.frames, one.ended, describe),
            })
        };
        Ok(standing.into_iter().filter_map(thread).collect())
    }

    /// A place where the calling thread can go over to what a patch brings: with [`Transition::CheckpointsOnly`] the only one. The
    /// thread walks its own stack here, so that this may be called from anywhere, from a patched function, too; it goes over if none
    /// of the functions that change is on the stack. When no transition is under way this costs a load and a branch. Says whether
    /// the thread is over, or need not be.
    ///
    /// What the embedder says by the place that he chooses is more than that: what the thread does between two checkpoints (one
    /// request, say) is done by the old functions or by the new ones.
    #[inline]
    pub fn checkpoint(&self) -> bool {
        modload_livepatch::checkpoint()
    }
}

impl HostBuilder {
    /// How threads go over to what this host's live patches bring. [`Transition::Anywhere`] if nothing else is said.
    #[must_use]
    pub fn transition(mut self, how: Transition) -> HostBuilder {
        self.built_in.transition = how;
        self
    }
}

/// Returns the name and the address of the function by which a module enables its live patch.
pub(crate) fn enable_patch_export() -> (&'static str, Addr) {
    type Function = extern "C" fn(*const c_void) -> c_int;
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let function = enable_patch as Function as *const ();
    ("klp_enable_patch", Addr::new(wide(function.expose_provenance())))
}

/// `int klp_enable_patch(struct klp_patch *)`: from the init of the module in whose data the patch lies (-EINVAL).
extern "C" fn enable_patch(patch: *const c_void) -> c_int {
    let at = Addr::new(wide(patch.expose_provenance()));
    let Some((host, module)) = c_api::owner(at) else { return -c_api::EINVAL };
    match host.built_in.livepatch.enable_from_init(&host.loader, &module, at) {
        Ok(()) => 0,
        Err(error) => {
            tracing::warn!(module = module.name(), %error, "a live patch is not enabled");
            error.errno().saturating_neg()
        }
    }
}
