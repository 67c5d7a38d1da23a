//! Live patching, as Linux's: functions of loaded modules are replaced while threads run.
//!
//! ```
//! use modload::patch::{FuncSpec, ObjectSpec, PatchSpec};
//! use modload::{Host, Image};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Compiled with -fpatchable-function-entry=5: int limit(void) { return 10; }
//! # let object = modload_fixtures::c_object("int limit(void) { return 10; }")?;
//! # let fixed = modload_fixtures::c_object("int fixed_limit(void) { return 100; }")?;
//! # let host = Host::builder().build()?;
//! # // SAFETY: the object is the code above.
//! # let limits = host.load(&unsafe { Image::trusted(object) }.named("limits"))?;
//! // The module with the replacement: int fixed_limit(void) { return 100; }
//! # // SAFETY: the object is the code above.
//! # let fix = host.load(&unsafe { Image::trusted(fixed) }.named("fix"))?;
//! let new_func = fix.symbol_info("fixed_limit").ok_or("no such function")?.addr;
//! let funcs = vec![FuncSpec { old_name: "limit".into(), old_sympos: 0, new_func }];
//! let object = ObjectSpec { name: Some("limits".into()), funcs, ..ObjectSpec::default() };
//! host.enable_patch("fix", PatchSpec { objects: vec![object], ..PatchSpec::default() }, Some(&fix))?;
//! // SAFETY: `limit` takes no arguments.
//! assert_eq!(unsafe { limits.call("limit", &[])? }, 100);
//!
//! host.disable_patch("fix")?;
//! # while !host.patches()?.is_empty() {}
//! // SAFETY: as above.
//! assert_eq!(unsafe { limits.call("limit", &[])? }, 10);
//! # Ok(())
//! # }
//! ```

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use modload_abi::modinfo::is_same_name;
use modload_edit::Addr;
pub use modload_livepatch::link;
pub use modload_livepatch::{
    BlockReason, Blocked, Callbacks, FuncSpec, ObjectSpec, ObjectStatus, PatchError, PatchSpec, PatchStatus, StateSpec,
    StructError, StubError, Target, Transition,
};
use modload_livepatch::{Log, ThreadStack};
pub use modload_threads::Tid;

use crate::backtrace::Backtrace;
use crate::builder::HostBuilder;
use crate::foreign::Module;
use crate::host::Host;

/// A thread that blocks a transition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockingThread {
    /// The thread's id, as returned by gettid(2).
    pub thread: i32,
    /// The file's name.
    pub name: String,
    /// The thread's state in one word, for example `sleeping`.
    pub state: String,
    /// The frame that blocked the transition at the last check, or `None` if it is not known.
    pub inside: Option<String>,
    /// Why the thread blocks the transition, as text: `is in slow+0x1c/0x40 [target]`, `has not come to a checkpoint`.
    pub why: String,
    /// The thread's current stack. Empty if threads migrate at checkpoints only, because such a thread is not held for
    /// this.
    pub backtrace: Backtrace,
}

/// Live patching.
impl Host {
    /// Enables a patch: Linux's `klp_enable_patch`. Functions of loaded modules are redirected now, functions of other
    /// modules when those are loaded. When this returns, threads may still be migrating: see [`Host::patches`]. `keep`
    /// is the module with the replacement functions. It stays loaded as long as the patch is enabled.
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

    /// Disables a patch. If the patch is just being enabled, reverses its transition.
    ///
    /// # Errors
    /// [`PatchError`].
    pub fn disable_patch(&self, name: &str) -> Result<(), PatchError> {
        self.inner.built_in.livepatch.disable(name)
    }

    /// Disables all patches, the newest first, each after the one before is gone, for at most `at_most`. Returns the
    /// patches that remain: a thread does not leave their functions, or does not reach a checkpoint. While this
    /// function waits, it calls [`Host::checkpoint`] for the calling thread.
    ///
    /// # Errors
    /// [`PatchError`]: a patch cannot be disabled.
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

    /// Reverses the transition of a patch.
    ///
    /// # Errors
    /// [`PatchError`]; [`PatchError::NoTransition`].
    pub fn reverse_patch(&self, name: &str) -> Result<(), PatchError> {
        self.inner.built_in.livepatch.reverse(name)
    }

    /// Ends the transition of a patch without waiting for the remaining threads. Threads in old code finish that code,
    /// which is kept for them.
    ///
    /// # Errors
    /// [`PatchError`]; [`PatchError::NoTransition`].
    pub fn force_patch(&self, name: &str) -> Result<(), PatchError> {
        self.inner.built_in.livepatch.force(name)
    }

    /// Returns the patches that are enabled or in transition, with the threads that block each transition.
    ///
    /// # Errors
    /// [`PatchError::Nested`].
    pub fn patches(&self) -> Result<Vec<PatchStatus>, PatchError> {
        self.inner.built_in.livepatch.status()
    }

    /// Returns the threads that block a patch's transition now. They are held for a short time to examine their stacks,
    /// except with [`Transition::CheckpointsOnly`].
    ///
    /// # Errors
    /// [`PatchError`]: there is no such patch, or threads cannot be held.
    pub fn blocking(&self, name: &str) -> Result<Vec<BlockingThread>, PatchError> {
        let patch = self.patches()?.into_iter().find(|patch| is_same_name(&patch.name, name));
        let patch = patch.ok_or_else(|| PatchError::Unknown(name.to_owned()))?;
        let Some((_, blocked)) = patch.transition else { return Ok(Vec::new()) };
        let tids = blocked.iter().map(|blocked| blocked.tid);
        let stacks = match patch.how {
            Transition::Anywhere => modload_livepatch::thread_stacks(&tids.collect::<Vec<_>>())?,
            Transition::CheckpointsOnly => tids.map(ThreadStack::unknown).collect(),
        };
        let describe = |at: Addr, is_return: bool| {
            let module = self.inner.loader.module_at(if is_return { at.offset(-1) } else { at })?;
            if is_return { module.describe_return(at) } else { module.describe(at) }
        };
        let thread = |one: ThreadStack| {
            let why = blocked.iter().find(|blocked| blocked.tid == one.tid)?.why;
            let named = |pc| {
                let at = Addr::new(pc);
                describe(at, true).or_else(|| describe(at, false)).unwrap_or_else(|| at.to_string())
            };
            let inside = if let BlockReason::Inside(pc) = why { Some(named(pc)) } else { None };
            let why = match (&inside, why, patch.how) {
                (Some(frame), _, Transition::Anywhere) => format!("is in {frame}"),
                (Some(frame), _, Transition::CheckpointsOnly) => format!("was in {frame} at its last checkpoint"),
                (None, BlockReason::NoCheckpoint, _) => "has not come to a checkpoint".to_owned(),
                (None, BlockReason::Unwalked, _) => {
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
        Ok(stacks.into_iter().filter_map(thread).collect())
    }
}

impl HostBuilder {
    /// Sets how threads migrate to the functions of this host's live patches. The default is [`Transition::Anywhere`].
    #[must_use]
    pub fn transition(mut self, how: Transition) -> HostBuilder {
        self.built_in.transition = how;
        self
    }
}
