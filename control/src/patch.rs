//! The live patches of a host, as its clients see them.

use modload::Host;
use modload::module::is_same_name;
use modload::patch::{BlockingThread, ObjectStatus, PatchError, PatchStatus, Target};

use crate::error::RequestRefusal;
use crate::protocol::{Blocking, PatchAction, PatchEntry, PatchObject};

/// Returns all patches.
pub(crate) fn list(host: &Host) -> Result<Vec<PatchEntry>, RequestRefusal> {
    Ok(host.patches()?.into_iter().map(entry).collect())
}

/// Returns one patch, with the threads that block its transition.
pub(crate) fn status(host: &Host, name: &str) -> Result<PatchEntry, RequestRefusal> {
    let mut found = find(host, name)?.ok_or_else(|| PatchError::Unknown(name.to_owned()))?;
    found.blocking = host.blocking(name)?.into_iter().map(blocking).collect();
    Ok(found)
}

/// Performs an action on a patch. Returns the patch afterwards, if it still exists.
pub(crate) fn act(host: &Host, name: &str, action: PatchAction) -> Result<Option<PatchEntry>, RequestRefusal> {
    match action {
        PatchAction::Disable => host.disable_patch(name)?,
        PatchAction::Reverse => host.reverse_patch(name)?,
        PatchAction::Force => host.force_patch(name)?,
    }
    find(host, name)
}

fn find(host: &Host, name: &str) -> Result<Option<PatchEntry>, RequestRefusal> {
    Ok(host.patches()?.into_iter().find(|patch| is_same_name(&patch.name, name)).map(entry))
}

fn entry(patch: PatchStatus) -> PatchEntry {
    let transition = patch.transition.as_ref().map(|(target, _)| match target {
        Target::Patched => "patching".to_owned(),
        Target::Unpatched => "unpatching".to_owned(),
    });
    let object = |object: ObjectStatus| PatchObject { name: object.name, patched: object.patched, funcs: object.funcs };
    PatchEntry {
        name: patch.name,
        enabled: patch.enabled,
        replace: patch.replace,
        forced: patch.forced,
        transition,
        blocked: patch.transition.map_or(0, |(_, blocked)| blocked.len()),
        objects: patch.objects.into_iter().map(object).collect(),
        blocking: Vec::new(),
    }
}

fn blocking(thread: BlockingThread) -> Blocking {
    let BlockingThread { thread, name, state, inside, why, backtrace } = thread;
    let backtrace = backtrace.to_string().lines().map(str::to_owned).collect();
    Blocking { thread, name, state, inside, why, backtrace }
}
