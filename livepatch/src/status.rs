//! The status of patches.

use std::ops::ControlFlow;

use modload_threads::Tid;
use modload_threads::frames::{Ended, Frame, WalkError, Walker, each_stack};

use crate::error::PatchError;
use crate::patch::Patch;
use crate::spec::Transition;
use crate::target::Target;
use crate::transition::{ActiveTransition, Blocked};

/// The status of a patch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PatchStatus {
    /// The patch's name.
    pub name: String,
    /// Whether the patch is enabled, or is in transition to be enabled.
    pub enabled: bool,
    /// Whether the patch replaced all others.
    pub replace: bool,
    /// Whether the patch's transition, or the transition of the patch that replaces it, was forced.
    pub forced: bool,
    /// How threads migrate to the patch.
    pub how: Transition,
    /// The transition's target, and the threads that had not migrated at the last check. `None` without a transition.
    pub transition: Option<(Target, Vec<Blocked>)>,
    /// The objects that the patch changes.
    pub objects: Vec<ObjectStatus>,
}

/// An object of a patch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectStatus {
    /// The module's name, or `vmlinux` for the host's own functions.
    pub name: String,
    /// Whether the object is loaded and patched.
    pub patched: bool,
    /// The object's functions: `NAME,POSITION` as in Linux's sysfs.
    pub funcs: Vec<String>,
}

impl PatchStatus {
    /// Returns the status of a patch. `active` is the transition under way, of any patch.
    pub(crate) fn new(patch: &Patch, active: Option<&ActiveTransition>) -> PatchStatus {
        let transition = active.filter(|transition| transition.patch == patch.id);
        let objects = patch.objects.iter().map(|object| ObjectStatus {
            name: object.name().to_owned(),
            patched: object.patched,
            // Linux counts from 1, even if `old_sympos` says that there is exactly one.
            funcs: object.funcs.iter().map(|func| format!("{},{}", func.old_name, func.old_sympos.max(1))).collect(),
        });
        PatchStatus {
            name: patch.name.to_string(),
            enabled: patch.enabled,
            replace: patch.replace,
            forced: patch.forced,
            how: patch.host.transition,
            transition: transition.map(|transition| (transition.target, transition.blocked())),
            objects: objects.collect(),
        }
    }
}

/// A thread's current stack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ThreadStack {
    /// The thread.
    pub tid: Tid,
    /// The thread's frames, innermost first. At most [`MOST_FRAMES`].
    pub frames: Vec<Frame>,
    /// The result of the stack walk.
    pub ended: Result<Ended, WalkError>,
}

impl ThreadStack {
    /// Returns the entry for a thread whose stack is not walked.
    #[must_use]
    pub fn unknown(tid: Tid) -> ThreadStack {
        ThreadStack { tid, frames: Vec::new(), ended: Ok(Ended::Early) }
    }
}

/// The largest number of frames that are kept of a stack.
pub const MOST_FRAMES: usize = 128;

/// Returns the stacks of threads. Threads that have ended meanwhile are left out.
///
/// # Errors
/// Threads could not be held.
pub fn thread_stacks(tids: &[Tid]) -> Result<Vec<ThreadStack>, PatchError> {
    let room = |_| {
        let standing =
            |tid: &Tid| ThreadStack { tid: *tid, frames: Vec::with_capacity(MOST_FRAMES), ended: Ok(Ended::Early) };
        (tids.iter().map(standing).collect::<Vec<_>>(), Walker::new())
    };
    let (mut found, _) = each_stack(room, |(found, walker), stack| {
        let Some(standing) = found.iter_mut().find(|standing| standing.tid == stack.tid()) else { return };
        let frames = &mut standing.frames;
        standing.ended = stack.walk_by(walker, |frame| {
            if frames.len() < MOST_FRAMES {
                frames.push(*frame);
            }
            ControlFlow::Continue(())
        });
    })?;
    found.retain(|standing| !standing.frames.is_empty());
    Ok(found)
}
