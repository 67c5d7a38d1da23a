//! The description of a patch: patch, object, func, as in Linux's `include/linux/livepatch.h`.

use std::fmt;
use std::sync::Arc;

use modload_edit::Addr;

/// How threads migrate to a patch.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Transition {
    /// Threads migrate anywhere. A signal holds each thread for a moment, and its stack is walked. Usually all threads
    /// migrate then.
    #[default]
    Anywhere,
    /// Threads migrate only at a [`checkpoint`](crate::checkpoint). No thread is held or gets a signal. A thread that
    /// never reaches a checkpoint blocks the transition until the thread ends. Threads that start during the transition
    /// have already migrated.
    ///
    /// Call sites are poked only by traps. If traps cannot be used, for example because a thread blocks SIGTRAP,
    /// patches are refused, and the error names the reason.
    CheckpointsOnly,
}

/// A patch.
#[derive(Clone, Default, Debug)]
pub struct PatchSpec {
    /// The objects that the patch changes.
    pub objects: Vec<ObjectSpec>,
    /// Whether the patch replaces all existing patches: Linux's atomic replace.
    pub replace: bool,
    /// The states that the patch leaves behind, and that later patches must know.
    pub states: Vec<StateSpec>,
}

/// An object whose functions are patched.
#[derive(Clone, Default, Debug)]
pub struct ObjectSpec {
    /// The module's name, or `None` for the host's own functions (`vmlinux`).
    pub name: Option<String>,
    /// The functions that are replaced.
    pub funcs: Vec<FuncSpec>,
    /// The callbacks for this object.
    pub callbacks: Callbacks,
}

/// A function that is replaced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FuncSpec {
    /// The name of the replaced function.
    pub old_name: String,
    /// The position among several functions of that name, from 1, in the order of the symbol table. 0 means that there
    /// is exactly one.
    pub old_sympos: u64,
    /// The address of the replacement function.
    pub new_func: Addr,
}

/// A state: a change by a patch that is not the replacement of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateSpec {
    /// The state's number.
    pub id: u64,
    /// The version of the state that this patch knows.
    pub version: u32,
}

/// The functions that are called before and after an object is patched and unpatched. If `pre_patch` returns an error
/// number, the patch is refused, or the module that is being loaded.
#[derive(Clone, Default)]
#[expect(missing_docs, reason = "their names are Linux's")]
pub struct Callbacks {
    pub pre_patch: Option<Arc<dyn Fn() -> Result<(), i32> + Send + Sync>>,
    pub post_patch: Option<Arc<dyn Fn() + Send + Sync>>,
    pub pre_unpatch: Option<Arc<dyn Fn() + Send + Sync>>,
    pub post_unpatch: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let there = [
            ("pre_patch", self.pre_patch.is_some()),
            ("post_patch", self.post_patch.is_some()),
            ("pre_unpatch", self.pre_unpatch.is_some()),
            ("post_unpatch", self.post_unpatch.is_some()),
        ];
        f.debug_set().entries(there.into_iter().filter(|(_, there)| *there).map(|(name, _)| name)).finish()
    }
}
