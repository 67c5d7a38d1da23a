//! Slices: the parts of a patch's module that wait for an object. A slice is written when the object is loaded, before
//! the object's functions are looked up, and taken back when the object is unloaded. Linux's `klp_apply_object_relocs`
//! and `klp_clear_object_relocs`, with the records of special sections that depend on the relocations.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use modload_abi::section;
use modload_edit::{Addr, Edit, EditSet, Sink, wide};
use modload_loader::{Module, Slice, WantedSymbol};
use modload_static_keys::{KeyError, SliceSites, write_slice};
use modload_text::{TextLock, fill, read_fillable};

use crate::error::PatchError;
use crate::find::extent;
use crate::patch::{Patch, PatchHostId, PatchId, PatchedObject, module_identity};
use crate::patches::Patches;
use crate::spec::Transition;
use crate::target::Target;

/// A slice that has been written for an object that is, or was, loaded. The slice outlives its patch if the patch was
/// removed by force and a thread may be inside the code: such a thread needs the object.
#[derive(Debug)]
pub(crate) struct WrittenSlice {
    host: PatchHostId,
    patch: PatchId,
    /// The address of the patch's module, which identifies the module while the module exists.
    module: usize,
    object: Arc<str>,
    edits: EditSet,
    sites: Sites,
    /// The extents of the functions that were written to.
    code: Vec<Range<u64>>,
}

/// The sites of the object's keys in the slice.
#[derive(Debug)]
enum Sites {
    /// These sites are switched together with all others.
    Switched(SliceSites),
    /// The object is unloaded, but the slice could not be taken back: these sites keep their code.
    Kept(Vec<(Addr, Vec<u8>)>),
}

/// Refuses a patch whose module waits for an object that the patch does not change, or waits in the replacement of
/// another object's function.
pub(crate) fn check(patch: &Patch) -> Result<(), PatchError> {
    let Some(slices) = patch.keep.as_deref().and_then(Module::slices) else { return Ok(()) };
    for slice in slices.iter() {
        let is_for = |object: &&PatchedObject| object.name.as_deref() == Some(slice.object());
        if !patch.objects.iter().any(|object| is_for(&object)) {
            return Err(PatchError::NoObject { object: slice.object().to_owned() });
        }
        for object in patch.objects.iter().filter(|object| !is_for(object)) {
            let waits = |extent: &Range<u64>| slice.places().any(|at| extent.contains(&at.get()));
            if let Some(func) = object.funcs.iter().find(|func| func.extent.iter().any(waits)) {
                let (function, object) = (func.old_name.to_string(), object.name().to_owned());
                return Err(PatchError::OtherObject { function, object, awaited: slice.object().to_owned() });
            }
        }
    }
    Ok(())
}

/// The symbols of an object that a slice needs.
struct SliceSymbols {
    /// The addresses of the symbols, in the slice's order.
    symbols: Vec<Addr>,
    /// The static-call keys of the trampolines among the symbols. A key and its trampoline have the same name with
    /// different prefixes.
    keys: BTreeMap<Addr, Addr>,
}

fn find(slice: &Slice, target: &Module) -> Result<SliceSymbols, PatchError> {
    let key_of = |trampoline: &WantedSymbol| {
        let name = trampoline.name.strip_prefix(section::STATIC_CALL_TRAMPOLINE_PREFIX.as_bytes())?;
        Some([section::STATIC_CALL_KEY_PREFIX.as_bytes(), name].concat())
    };
    let key_names: Vec<_> = slice.wanted().iter().map(key_of).collect();
    let names = slice.wanted().iter().map(|wanted| &*wanted.name);
    let positions = target.symbol_positions(names.chain(key_names.iter().flatten().map(Vec::as_slice)));
    let all = |name: &[u8]| positions.get(name).map_or(&[][..], Vec::as_slice);
    let mut found = SliceSymbols { symbols: Vec::with_capacity(slice.wanted().len()), keys: BTreeMap::new() };
    for (wanted, key) in slice.wanted().iter().zip(&key_names) {
        let all_of_name = all(&wanted.name);
        let Some(addr) = wanted.pick(all_of_name) else {
            let (object, symbol) = (target.name().to_owned(), wanted.name.escape_ascii().to_string());
            return Err(match all_of_name.len() {
                0 => PatchError::NotFound { object, symbol },
                count => PatchError::Position { object, symbol, position: wanted.position, count },
            });
        };
        found.symbols.push(addr);
        let key = key.as_deref().and_then(|key| all(key).first());
        found.keys.extend(key.map(|key| (addr, *key)));
    }
    Ok(found)
}

/// The slices of patches' modules that were written for loaded objects.
#[derive(Debug)]
pub(crate) struct WrittenSlices {
    all: Vec<WrittenSlice>,
}

impl WrittenSlices {
    pub(crate) const fn new() -> WrittenSlices {
        WrittenSlices { all: Vec::new() }
    }

    /// Writes the slice of a patch's module for an object, if there is one.
    pub(crate) fn write(
        &mut self,
        host: PatchHostId,
        patch: PatchId,
        module: &Module,
        target: &Module,
    ) -> Result<(), PatchError> {
        let Some(slices) = module.slices() else { return Ok(()) };
        let Some(slice) = slices.of_object(target.name()) else { return Ok(()) };
        // The slice of an earlier load of the object may remain, if it could not be taken back.
        self.take_back(patch, module, target.name(), NoThreadProof::Needed);
        if self.all.iter().any(|written| written.is(patch, target.name())) {
            return Err(PatchError::Stale { patch: module.name().to_owned(), object: target.name().to_owned() });
        }
        let found = find(slice, target)?;
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| PatchError::Slice {
            patch: module.name().to_owned(),
            object: target.name().to_owned(),
            source,
        };
        let plan = slices.plan(slice, &found.symbols).map_err(|error| failed(error.into()))?;
        let written = write_slice(module, slice, plan, &|at| found.keys.get(&at).copied());
        let (edits, sites) = written.map_err(|error| failed(error.into()))?;
        let mut code: Vec<Range<u64>> = Vec::new();
        for at in edits.iter().map(|edit| edit.at).filter(|at| module.holds_code(*at)) {
            // The edits are in order.
            if !code.last().is_some_and(|code| code.contains(&at.get())) {
                // If the function of a place is not known, the range covers at least the place.
                code.push(extent(at).unwrap_or(at.get()..at.get() + 1));
            }
        }
        tracing::debug!(patch = module.name(), object = target.name(), edits = edits.len(), "relocated for its object");
        let (module, object, sites) = (module_identity(module), target.name().into(), Sites::Switched(sites));
        self.all.push(WrittenSlice { host, patch, module, object, edits, sites, code });
        Ok(())
    }

    /// Takes back the slice for an object. If a thread is inside, the slice stays, and keys do not change it any more.
    fn take_back(&mut self, patch: PatchId, module: &Module, object: &str, proof: NoThreadProof) {
        let Some(at) = self.all.iter().position(|written| written.is(patch, object)) else { return };
        let written = &mut self.all[at];
        if proof == NoThreadProof::Unavailable {
            written.keep();
            return;
        }
        // For a slice that could not be taken back once, there is no proof that no thread is inside.
        if proof == NoThreadProof::Needed || matches!(written.sites, Sites::Kept(_)) {
            let inside = match module.occupants(&written.code) {
                Ok(occupants) => occupants.first().map(ToString::to_string),
                Err(error) => Some(format!("threads cannot be held: {error}")),
            };
            if let Some(inside) = inside {
                tracing::warn!(patch = module.name(), %object, %inside, "the relocations for an unloaded object stay, because a thread is inside the relocated code");
                written.keep();
                return;
            }
        }
        if let Err(error) = written.undo(module) {
            tracing::error!(patch = module.name(), %object, %error, "the relocations for an unloaded object stay, because they cannot be undone");
            written.keep();
            return;
        }
        self.all.remove(at);
    }

    /// Takes back the slice of a patch for an object that is unloaded. No call reaches the replacements of the object's
    /// functions any more.
    pub(crate) fn take_back_for(&mut self, patch: &Patch, object: &str, proof: NoThreadProof) {
        if let Some(module) = patch.keep.as_deref() {
            self.take_back(patch.id, module, object, proof);
        }
    }

    /// Takes back all slices of a patch that is removed. A slice stays for good if a thread may be inside.
    pub(crate) fn take_back_all(&mut self, patch: &Patch, proof: NoThreadProof) {
        let Some(module) = patch.keep.as_deref() else { return };
        let objects: Vec<_> =
            self.all.iter().filter(|written| written.patch == patch.id).map(|written| written.object.clone()).collect();
        objects.iter().for_each(|object| self.take_back(patch.id, module, object, proof));
    }

    /// Drops the slices that removed patches have left for an object. The object is unloaded, so these slices keep
    /// nothing any more.
    pub(crate) fn forget_kept_for(&mut self, patches: &Patches, host: PatchHostId, object: &str) {
        let is_for = |written: &WrittenSlice| written.host == host && &*written.object == object;
        self.all.retain(|written| patches.get(written.patch).is_some() || !is_for(written));
    }

    /// Drops the slices that are left in a patch's module that is unloaded. If a thread is inside a slice, that slice
    /// remains and keeps its object.
    pub(crate) fn forget_kept_in(&mut self, module: &Module) {
        let is_empty = |code: &[Range<u64>]| module.occupants(code).is_ok_and(|occupants| occupants.is_empty());
        self.all.retain(|written| written.module != module_identity(module) || !is_empty(&written.code));
    }

    /// Returns the code that is taken back when a patch's transition to this target is complete. The code belongs to
    /// the patches that are removed then, and refers to the objects of these patches. No thread may be inside, no
    /// matter how the thread got there.
    pub(crate) fn code_to_take_back(&self, patch: &Patch, target: Target) -> impl Iterator<Item = Range<u64>> {
        let goes = move |written: &&WrittenSlice| match target {
            Target::Unpatched => written.patch == patch.id,
            Target::Patched => patch.replace && written.host == patch.host && written.patch != patch.id,
        };
        self.all.iter().filter(goes).flat_map(|written| written.code.iter().cloned())
    }

    /// Returns the functions into which a module's addresses were written.
    pub(crate) fn code_for(&self, host: PatchHostId, object: &str) -> impl Iterator<Item = Range<u64>> {
        let written = self.all.iter().filter(move |written| written.host == host && &*written.object == object);
        written.flat_map(|written| written.code.iter().cloned())
    }
}

/// Whether it is known that no thread runs the code that is taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoThreadProof {
    /// The threads must be checked.
    Needed,
    /// No thread can be inside: a transition is complete, or the code has never run.
    Given,
    /// The threads cannot be checked: some were forced to migrate, and threads must not be held.
    Unavailable,
}

impl NoThreadProof {
    /// Returns the proof that a completed transition gives for a patch that it removes.
    pub(crate) fn by_transition(patch: &Patch) -> NoThreadProof {
        match patch.host.transition {
            _ if !patch.forced => NoThreadProof::Given,
            // A thread that was forced to migrate may be anywhere.
            Transition::Anywhere => NoThreadProof::Needed,
            Transition::CheckpointsOnly => NoThreadProof::Unavailable,
        }
    }
}

impl WrittenSlice {
    fn is(&self, patch: PatchId, object: &str) -> bool {
        self.patch == patch && &*self.object == object
    }

    /// Returns the current code at the sites of keys.
    fn current_code(&self) -> Result<Vec<(Addr, Vec<u8>)>, KeyError> {
        match &self.sites {
            Sites::Switched(sites) => sites.shown(),
            Sites::Kept(shown) => Ok(shown.clone()),
        }
    }

    /// Drops the keys: sites that stay are not switched any more.
    fn keep(&mut self) {
        // Without the current code, the sites are assumed to hold the written code. If they do not, the slice is not
        // taken back.
        self.sites = Sites::Kept(self.current_code().unwrap_or_default());
    }

    /// Undoes exactly the slice's edits, with two exceptions. At the sites of keys that have been switched since, the
    /// current code is replaced. Variables to which the module has given other values stay: those values are the
    /// module's own.
    fn undo(&self, module: &Module) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut shown = self.current_code()?;
        shown.sort_unstable();
        let mut lock = TextLock::take();
        let mut undo = EditSet::new();
        for edit in self.edits.iter() {
            let mut there = edit.new.to_vec();
            // No two sites overlap.
            let first = shown.partition_point(|(at, bytes)| *at + wide(bytes.len()) <= edit.at);
            for (at, bytes) in shown[first..].iter().take_while(|(at, _)| *at < edit.end()) {
                let overlap = (0_u64..).zip(bytes).filter_map(|(offset, byte)| {
                    let offset = (*at + offset).checked_offset_from(edit.at)?;
                    Some((modload_edit::index(offset), *byte))
                });
                for (offset, byte) in overlap {
                    if let Some(place) = there.get_mut(offset) {
                        *place = byte;
                    }
                }
            }
            let is_variable = module.holds_variable(edit.at, wide(edit.new.len()));
            if is_variable && read_fillable(&lock, edit.at, there.len()).is_some_and(|found| found != there) {
                let place = module.display_place(edit.at).unwrap_or_default();
                tracing::warn!(patch = module.name(), %place, "a variable was relocated for an object that is unloaded, and was changed since: it keeps its value");
                continue;
            }
            undo.edit(Edit { old: &there, new: edit.old, ..edit })?;
        }
        fill(&mut lock, &undo)?;
        Ok(())
    }
}
