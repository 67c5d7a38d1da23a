//! Redirects functions' calls, for live patching. The site jumps to the new target. If the function is traced, or the
//! target is out of a jump's reach, the call passes the stub.

use modload_edit::{Addr, Edit, EditSet, Sink};
use modload_loader::{Coming, Refusal};
use modload_text::{TextLock, TrapMask, poke_chosen};
use modload_threads::Held;

use crate::error::TraceError;
use crate::identity::FunctionOwner;
use crate::switch::Changed;
use crate::table::{ModuleFunctions, ModuleTextState, SiteTarget, TraceEntry, TraceTable, table};
use crate::trampoline::FunctionRecord;

/// The redirection of a function's calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Divert {
    /// The function's entry.
    pub entry: Addr,
    /// The new target, or `None` for the function itself.
    pub to: Option<Addr>,
}

/// An entry of the table, and the new target of its calls.
type FoundEntry = (FunctionOwner, usize, Option<Addr>);

/// Redirects functions' calls from now on. Calls that are under way are not checked.
///
/// # Errors
/// [`TraceError`]: nothing has changed.
pub fn divert(diverts: &[Divert]) -> Result<(), TraceError> {
    let mask = table().trap_mask;
    divert_by(diverts, mask)
}

/// Like [`divert`], but sends no signal to any thread, regardless of [`crate::set_trap_mask`].
///
/// # Errors
/// [`TraceError`]: nothing has changed; [`modload_text::PokeError::Unheld`] if text cannot be changed in this way.
pub fn divert_unheld(diverts: &[Divert]) -> Result<(), TraceError> {
    divert_by(diverts, TrapMask::Unheld)
}

fn divert_by(diverts: &[Divert], mask: TrapMask) -> Result<(), TraceError> {
    let mut table = table();
    let found = table.find(diverts)?;
    let before: Vec<_> =
        found.iter().map(|&(owner, number, _)| table.entry(owner, number).and_then(|entry| entry.divert)).collect();
    let changed: Changed = found.iter().map(|&(owner, number, _)| (owner, vec![number])).collect();
    for &(owner, number, to) in &found {
        table.set_divert(owner, number, to);
    }
    let switched = table.switch_by(&changed, mask);
    if switched.is_err() {
        for (&(owner, number, _), before) in found.iter().zip(before) {
            table.set_divert(owner, number, before);
            // An error does not matter here: the function still has everything that its former state needs.
            let _ = table.prepare(owner, &[number]);
        }
    }
    switched
}

/// Selects one of several ways by the state of all threads of the process, and applies it while no thread runs. Returns
/// the index of the way, or `None` if none was chosen.
///
/// `choose` runs while all threads are held: [`modload_text::poke_chosen`].
///
/// # Errors
/// [`TraceError`]: nothing has changed; `choose` may have been called if it is [`modload_text::PokeError::Write`].
pub fn divert_chosen(
    ways: &[Vec<Divert>],
    choose: impl FnOnce(&Held) -> Option<usize>,
) -> Result<Option<usize>, TraceError> {
    let mut table = table();
    let found: Vec<Vec<FoundEntry>> = ways.iter().map(|way| table.find(way)).collect::<Result<_, _>>()?;
    for &(owner, number, to) in found.iter().flatten() {
        let Some(entry) = table.entry(owner, number) else { continue };
        let (shown, wanted) = (entry.shown, entry.wanted_with(to));
        // Prepares functions whose calls would pass a half of their stubs that the calls do not pass yet.
        if matches!(wanted, SiteTarget::Called | SiteTarget::Jumped) && wanted != shown {
            table.prepare_as(owner, number, wanted)?;
        }
    }
    let batches: Vec<EditSet> = found.iter().map(|way| table.batch(way)).collect::<Result<_, _>>()?;
    let targets: Vec<Vec<(&'static FunctionRecord, Addr, Addr)>> = found.iter().map(|way| table.targets(way)).collect();
    let references: Vec<&EditSet> = batches.iter().collect();
    let mut chosen = None;
    let poked = poke_chosen(&mut TextLock::take(), &references, |held| {
        chosen = choose(held);
        for (function, _, to) in chosen.and_then(|way| targets.get(way)).into_iter().flatten() {
            function.set_target(*to);
        }
        chosen
    });
    if let Err(error) = poked {
        for (function, before, _) in chosen.and_then(|way| targets.get(way)).into_iter().flatten() {
            function.set_target(*before);
        }
        return Err(error.into());
    }
    for &(owner, number, to) in chosen.and_then(|way| found.get(way)).into_iter().flatten() {
        table.set_divert(owner, number, to);
        // Staged text was not written: a site in staged text is checked again when the text is published.
        if let Some(part) = table.parts.get_mut(&owner).filter(|part| part.phase == ModuleTextState::Published) {
            part.entries[number].note_written();
        }
    }
    Ok(chosen)
}

/// Redirects calls of a loading module's functions, before any of its code runs.
///
/// # Errors
/// A [`Refusal`] that names the function that cannot be diverted.
pub fn divert_staged(coming: &mut Coming<'_>, diverts: &[Divert]) -> Result<(), Refusal> {
    let mut table = table();
    let owner = FunctionOwner::of(coming.module());
    let found = table.find(diverts).map_err(|error| Refusal::from(error.to_string()))?;
    for &(_, number, to) in &found {
        let Some(part) = table.parts.get_mut(&owner) else { continue };
        let entry = &part.entries[number];
        let (shown, at, why) = (entry.code(entry.shown), entry.site.at, entry.site.why);
        table.set_divert(owner, number, to);
        table.prepare(owner, &[number]).map_err(|error| Refusal::from(error.to_string()))?;
        let Some(part) = table.parts.get_mut(&owner) else { continue };
        let entry = &mut part.entries[number];
        let wanted = entry.code(entry.wanted());
        let edit = Edit { at, old: shown.bytes(), new: wanted.bytes(), why };
        coming.edit(edit).map_err(|error| Refusal::from(error.to_string()))?;
        entry.note_written();
    }
    Ok(())
}

/// Returns the reason for which calls of a function cannot be diverted, by its entry, module and name. `None` if they
/// can.
#[must_use]
pub fn untraceable(entry: Addr, module: &str, function: &str) -> Option<TraceError> {
    let table = table();
    let error = table.find(&[Divert { entry, to: None }]).err()?;
    let parts = table.parts.values().filter(|part| &*part.module == module);
    let mut reasons = parts.flat_map(|part| &part.untraceable).filter(|(name, _)| &**name == function);
    match (&error, reasons.next()) {
        (TraceError::NoSite { .. }, Some((_, why))) => {
            Some(TraceError::NoSite { entry, why: format!("cannot be traced: {why}").into() })
        }
        _ => Some(error),
    }
}

/// Returns an error if a tracer redirects the function already, so that its calls cannot be diverted.
#[must_use]
pub fn redirected(entry: Addr) -> Option<TraceError> {
    let found = table().find(&[Divert { entry, to: Some(entry) }]);
    found.err().filter(|error| matches!(error, TraceError::Redirected { .. }))
}

/// Returns the address behind a function's site.
#[must_use]
pub fn behind(entry: Addr) -> Option<Addr> {
    let table = table();
    let (owner, number, _) = table.find_one(&Divert { entry, to: None }).ok()?;
    table.entry(owner, number).map(TraceEntry::behind)
}

impl TraceTable {
    /// Returns the table entries of functions.
    fn find(&self, diverts: &[Divert]) -> Result<Vec<FoundEntry>, TraceError> {
        diverts.iter().map(|divert| self.find_one(divert)).collect()
    }

    fn find_one(&self, divert: &Divert) -> Result<FoundEntry, TraceError> {
        let of = |(owner, part): (&FunctionOwner, &ModuleFunctions)| {
            // At most an ENDBR64 lies between an entry and its site.
            let first = part.entries.partition_point(|entry| entry.site.at < divert.entry);
            let here = part.entries.get(first).filter(|entry| entry.site.entry == divert.entry)?;
            Some((*owner, first, here.tracers.clone(), part.module.clone(), here.site.name.clone()))
        };
        let Some((owner, number, tracers, module, function)) = self.parts.iter().find_map(of) else {
            let why = "cannot be traced: Host::traceable has the reason".into();
            return Err(TraceError::NoSite { entry: divert.entry, why });
        };
        let redirects = |id| self.tracers.iter().any(|tracer| tracer.id == id && tracer.redirects);
        if divert.to.is_some() && tracers.into_iter().any(redirects) {
            return Err(TraceError::Redirected { module: module.to_string(), function: function.to_string() });
        }
        Ok((owner, number, divert.to))
    }

    fn entry(&self, owner: FunctionOwner, number: usize) -> Option<&TraceEntry> {
        self.parts.get(&owner)?.entries.get(number)
    }

    fn set_divert(&mut self, owner: FunctionOwner, number: usize, to: Option<Addr>) {
        if let Some(part) = self.parts.get_mut(&owner) {
            part.entries[number].divert = to;
        }
    }

    fn batch(&self, way: &[FoundEntry]) -> Result<EditSet, TraceError> {
        let mut batch = EditSet::new();
        for &(owner, number, to) in way {
            let Some(part) = self.parts.get(&owner).filter(|part| part.phase == ModuleTextState::Published) else {
                continue;
            };
            let entry = &part.entries[number];
            let (old, new) = (entry.code(entry.shown), entry.code(entry.wanted_with(to)));
            if old != new {
                batch.edit(Edit { at: entry.site.at, old: old.bytes(), new: new.bytes(), why: entry.site.why })?;
            }
        }
        Ok(batch)
    }

    /// Returns the existing functions of a way, each with its present target and its target in this way.
    fn targets(&self, way: &[FoundEntry]) -> Vec<(&'static FunctionRecord, Addr, Addr)> {
        let target = |&(owner, number, to): &FoundEntry| {
            let entry = self.entry(owner, number)?;
            Some((entry.function?, entry.target(entry.divert), entry.target(to)))
        };
        way.iter().filter_map(target).collect()
    }
}
