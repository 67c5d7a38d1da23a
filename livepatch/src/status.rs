//! What there is to know of patches.

use std::ops::ControlFlow;

use modload_threads::Tid;
use modload_threads::frames::{Ended, Frame, WalkError, Walker, each_stack};

use crate::error::PatchError;
use crate::spec::Transition;
use crate::table::{Patch, Table};
use crate::transition::{Blocked, Target};

/// A patch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PatchStatus {
    /// Its name.
    pub name: String,
    /// Whether it is enabled, or on its way to be.
    pub enabled: bool,
    /// Whether it replaced all others.
    pub replace: bool,
    /// Whether its transition, or that of who replaces it, was forced.
    pub forced: bool,
    /// How threads go over to it.
    pub how: Transition,
    /// If it is in transition: where to, and who was not over when everybody was looked at last.
    pub transition: Option<(Target, Vec<Blocked>)>,
    /// What it changes.
    pub objects: Vec<ObjectStatus>,
}

/// An object of a patch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectStatus {
    /// The module; `vmlinux` for the host's own functions.
    pub name: String,
    /// Whether it is there, and patched.
    pub patched: bool,
    /// Its functions: `NAME,POSITION` as in Linux's sysfs.
    pub funcs: Vec<String>,
}

impl Table {
    pub(crate) fn status(&self, patch: &Patch) -> PatchStatus {
        let transition = self.transition.as_ref().filter(|transition| transition.patch == patch.id);
        let objects = patch.objects.iter().map(|object| ObjectStatus {
            name: object.name().to_owned(),
            patched: object.patched,
            // Linux counts from 1 where it is said to be the only one, too.
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

/// Where a thread stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Which.
    pub tid: Tid,
    /// Its frames, innermost first; [`DEEPEST_SHOWN`] at most.
    pub frames: Vec<Frame>,
    /// How its stack ended.
    pub ended: Result<Ended, WalkError>,
}

impl Standing {
    /// That of a thread that is not asked.
    #[must_use]
    pub fn unknown(tid: Tid) -> Standing {
        Standing { tid, frames: Vec::new(), ended: Ok(Ended::Early) }
    }
}

/// How many frames of a stack are kept.
pub const DEEPEST_SHOWN: usize = 128;

/// Where threads stand; those that have ended meanwhile are left out.
///
/// # Errors
/// Threads could not be held.
pub fn standing(tids: &[Tid]) -> Result<Vec<Standing>, PatchError> {
    let room = |_| {
        let standing =
            |tid: &Tid| Standing { tid: *tid, frames: Vec::with_capacity(DEEPEST_SHOWN), ended: Ok(Ended::Early) };
        (tids.iter().map(standing).collect::<Vec<_>>(), Walker::new())
    };
    let (mut found, _) = each_stack(room, |(found, walker), stack| {
        let Some(standing) = found.iter_mut().find(|standing| standing.tid == stack.tid()) else { return };
        let frames = &mut standing.frames;
        standing.ended = stack.walk_by(walker, |frame| {
            if frames.len() < DEEPEST_SHOWN {
                frames.push(*frame);
            }
            ControlFlow::Continue(())
        });
    })?;
    found.retain(|standing| !standing.frames.is_empty());
    Ok(found)
}
