//! What a patch is to do: patch, object, func, as in Linux's `include/linux/livepatch.h`.

use std::fmt;
use std::sync::Arc;

use modload_edit::Addr;

/// How threads go over to what a patch brings.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Transition {
    /// Wherever they are: each is held for a moment by a signal, and its stack is walked. Mostly that is all.
    #[default]
    Anywhere,
    /// Where they come to a [`checkpoint`](crate::checkpoint), and nowhere else. No thread is held or sent a signal, not even one that
    /// never comes to any: it stays in the way of the transition until it ends. Threads that are born meanwhile are over.
    ///
    /// Sites are poked by traps alone: where these cannot be used, because a thread blocks SIGTRAP for example, patches are
    /// refused by name.
    CheckpointsOnly,
}

/// A patch.
#[derive(Clone, Default, Debug)]
pub struct PatchSpec {
    /// What it changes.
    pub objects: Vec<ObjectSpec>,
    /// Whether it replaces all patches that are there: Linux's atomic replace.
    pub replace: bool,
    /// What it leaves behind and later patches must know of.
    pub states: Vec<StateSpec>,
}

/// Something whose functions are patched.
#[derive(Clone, Default, Debug)]
pub struct ObjectSpec {
    /// The module; `None` for the host's own functions (`vmlinux`).
    pub name: Option<String>,
    /// Its functions.
    pub funcs: Vec<FuncSpec>,
    /// What is called around it.
    pub callbacks: Callbacks,
}

/// A function that is replaced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FuncSpec {
    /// Its name.
    pub old_name: String,
    /// Which of several of that name, from 1, in the order of the symbol table; 0 if there is one.
    pub old_sympos: u64,
    /// The address of what takes its place.
    pub new_func: Addr,
}

/// A state: what a patch has changed that is no function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateSpec {
    /// Its number.
    pub id: u64,
    /// Which version of it this patch knows.
    pub version: u32,
}

/// What is called before and after an object is patched and unpatched. A `pre_patch` that gives an error number refuses the patch,
/// or the module that is being loaded.
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
