//! Switches tracing on and off: the changes of all sites become one batch.

use modload_edit::{Edit, Sink};
use modload_text::{TextLock, TrapMask, poke};

use crate::error::TraceError;
use crate::identity::{FunctionOwner, TraceHostId, TracerId};
use crate::table::{ModuleFunctions, ModuleTextState, SiteTarget, TraceEntry, TraceTable};
use crate::trampoline::call::TracerGroup;
use crate::trampoline::variants::{AfterTracers, SiteBranch};

/// The entries that have changed, by their owners.
pub(crate) type Changed = Vec<(FunctionOwner, Vec<usize>)>;

impl TraceTable {
    /// Marks the functions of the tracer's host that the tracer's filter selects. Returns these functions.
    pub(crate) fn add_tracer(&mut self, id: TracerId) -> Result<Changed, TraceError> {
        let Some(tracer) = self.tracers.iter().find(|tracer| tracer.id == id) else { return Ok(Vec::new()) };
        let redirecting: Vec<_> = self.tracers.iter().filter(|one| one.redirects).map(|one| one.id).collect();
        let mut changed = Vec::new();
        for (owner, part) in self.parts.iter_mut().filter(|(_, part)| part.host == tracer.host) {
            let filter = tracer.filter.of_module(&part.module);
            let meant = |(_, entry): &(usize, &TraceEntry)| filter.matches(&entry.site.name);
            let meant: Vec<usize> = part.entries.iter().enumerate().filter(meant).map(|(number, _)| number).collect();
            let taken = |number: &&usize| {
                let entry = &part.entries[**number];
                entry.divert.is_some() || entry.tracers.iter().any(|id| redirecting.contains(id))
            };
            if let Some(number) = meant.iter().find(taken).filter(|_| tracer.redirects) {
                let function = part.entries[*number].site.name.to_string();
                return Err(TraceError::Redirected { module: part.module.to_string(), function });
            }
            if !meant.is_empty() {
                changed.push((*owner, meant));
            }
        }
        for (owner, entries) in &changed {
            if let Some(part) = self.parts.get_mut(owner) {
                entries.iter().for_each(|number| part.entries[*number].tracers.push(id));
            }
        }
        Ok(changed)
    }

    /// Removes a tracer from all functions. Returns the functions that had the tracer.
    pub(crate) fn remove_tracer(&mut self, id: TracerId) -> Changed {
        let mut changed = Vec::new();
        for (owner, part) in &mut self.parts {
            let mut of_part = Vec::new();
            for (number, entry) in part.entries.iter_mut().enumerate() {
                let before = entry.tracers.len();
                entry.tracers.retain(|one| *one != id);
                if entry.tracers.len() != before {
                    of_part.push(number);
                }
            }
            if !of_part.is_empty() {
                changed.push((*owner, of_part));
            }
        }
        changed
    }

    /// Sets the recording of a host's functions that `meant` selects. Returns the changed functions.
    pub(crate) fn set_recorded(
        &mut self,
        then: AfterTracers,
        meant: impl Fn(&str, &TraceEntry) -> bool,
        host: TraceHostId,
    ) -> Changed {
        let mut changed = Vec::new();
        for (owner, part) in self.parts.iter_mut().filter(|(_, part)| part.host == host) {
            let module = part.module.clone();
            let mut of_part = Vec::new();
            for (number, entry) in part.entries.iter_mut().enumerate() {
                if entry.recorded != then && meant(&module, entry) && entry.can_be(then) {
                    entry.recorded = then;
                    of_part.push(number);
                }
            }
            if !of_part.is_empty() {
                changed.push((*owner, of_part));
            }
        }
        changed
    }

    /// Writes the wanted code to the sites of these functions, and sets the wanted targets of their calls.
    ///
    /// Functions get their stubs and their tracers before a site leads there, and lose them after no site does.
    pub(crate) fn switch(&mut self, changed: &Changed) -> Result<(), TraceError> {
        self.switch_by(changed, self.trap_mask)
    }

    /// Like [`TraceTable::switch`], with the knowledge about SIGTRAP.
    pub(crate) fn switch_by(&mut self, changed: &Changed, mask: TrapMask) -> Result<(), TraceError> {
        for (owner, entries) in changed {
            self.prepare(*owner, entries)?;
        }
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        let made = changed.iter().try_for_each(|(owner, entries)| {
            let part = self.parts.get(owner).filter(|part| part.phase == ModuleTextState::Published);
            let entries = part.iter().flat_map(|part| entries.iter().map(|number| &part.entries[*number]));
            entries.filter(|entry| entry.shown != entry.wanted()).try_for_each(|entry| {
                let (old, new) = (entry.code(entry.shown), entry.code(entry.wanted()));
                batch.edit(Edit { at: entry.site.at, old: old.bytes(), new: new.bytes(), why: entry.site.why })
            })
        });
        self.batch = batch;
        made?;
        if !self.batch.is_empty() {
            poke(&mut TextLock::take(), &self.batch, mask)?;
        }
        for (owner, entries) in changed {
            let Some(part) = self.parts.get_mut(owner).filter(|part| part.phase == ModuleTextState::Published) else {
                continue;
            };
            for number in entries {
                part.entries[*number].note_written();
            }
        }
        Ok(())
    }

    /// Gives functions everything that their calls need, before their sites lead there.
    pub(crate) fn prepare(&mut self, owner: FunctionOwner, entries: &[usize]) -> Result<(), TraceError> {
        let Some(mut part) = self.parts.remove(&owner) else { return Ok(()) };
        let given = self.give_stubs(&mut part, entries, TraceEntry::wanted);
        if given.is_ok() {
            self.set_code_of(&part, entries, TraceEntry::wanted);
        }
        self.parts.insert(owner, part);
        given
    }

    /// Like [`TraceTable::prepare`], for one function whose site may lead to its stub in this way.
    pub(crate) fn prepare_as(
        &mut self,
        owner: FunctionOwner,
        number: usize,
        shown: SiteTarget,
    ) -> Result<(), TraceError> {
        let Some(mut part) = self.parts.remove(&owner) else { return Ok(()) };
        let given = self.give_stubs(&mut part, &[number], |_| shown);
        if given.is_ok() {
            self.set_code_of(&part, &[number], |_| shown);
        }
        self.parts.insert(owner, part);
        given
    }

    /// Gives stubs to the functions whose sites are to lead to stubs.
    fn give_stubs(
        &mut self,
        part: &mut ModuleFunctions,
        entries: &[usize],
        wanted: impl Fn(&TraceEntry) -> SiteTarget,
    ) -> Result<(), TraceError> {
        let mut without = Vec::new();
        for number in entries {
            let entry = &mut part.entries[*number];
            if matches!(wanted(entry), SiteTarget::Nothing | SiteTarget::Diverted(_)) {
                continue;
            }
            let function = *entry.function.get_or_insert_with(|| match part.own {
                None => self.function(&part.module, &entry.site.name),
                Some(_) => self.own_function(&part.module, &entry.site.name, entry.site.entry),
            });
            if function.stub().is_none() {
                without.push(function);
            }
        }
        part.own.as_mut().map_or(&mut self.stubs, |own| &mut own.stubs).make(&without)
    }

    /// Leads calls that pass a function's stub to the tracers and on, or past the tracers.
    fn set_code_of(&mut self, part: &ModuleFunctions, entries: &[usize], wanted: impl Fn(&TraceEntry) -> SiteTarget) {
        // Adjacent functions mostly have the same tracers.
        let mut last: (&[TracerId], _) = (&[], None);
        for number in entries {
            let entry = &part.entries[*number];
            let Some(function) = entry.function else { continue };
            if last.0 != entry.tracers {
                last = (&entry.tracers, self.group(&entry.tracers).map(|group| (group.set(), group.saved())));
            }
            let (group, by) = match wanted(entry) {
                SiteTarget::Called => (last.1, Some(SiteBranch::Call)),
                SiteTarget::Jumped => (last.1, Some(SiteBranch::Jump)),
                SiteTarget::Nothing | SiteTarget::Diverted(_) => (None, None),
            };
            function.set_entry(entry.site.entry, entry.target(entry.divert));
            function.set_tracers(group.map_or(std::ptr::null(), |(set, _)| set));
            match by {
                Some(by) => function.set_code(by, group.map(|(_, saved)| (part.width, saved)), entry.recorded),
                None => function.stop_tracing(),
            }
        }
    }

    /// Returns the group of these tracers.
    fn group(&mut self, tracers: &[TracerId]) -> Option<&TracerGroup> {
        if tracers.is_empty() {
            return None;
        }
        if !self.groups.contains_key(tracers) {
            let member = |id: &TracerId| self.tracers.iter().find(|one| one.id == *id).map(|one| one.member.clone());
            let members = tracers.iter().filter_map(member).collect();
            self.groups.insert(tracers.to_vec(), TracerGroup::new(members));
        }
        self.groups.get(tracers).map(|group| &**group)
    }

    /// Retires the groups with this tracer: no function has them any more.
    pub(crate) fn retire(&mut self, id: TracerId) {
        let with: Vec<_> = self.groups.keys().filter(|tracers| tracers.contains(&id)).cloned().collect();
        for tracers in with {
            let group = self.groups.remove(&tracers);
            self.retired.extend(group.map(|group| (tracers, group)));
        }
    }
}

impl TraceEntry {
    /// Notes that the site holds the wanted code. A thread in the other half of the stub is late, and passes without
    /// tracing.
    pub(crate) fn note_written(&mut self) {
        self.shown = self.wanted();
        let Some(function) = self.function else { return };
        match self.shown {
            SiteTarget::Called => function.stop_tracing_half(SiteBranch::Jump),
            SiteTarget::Jumped => function.stop_tracing_half(SiteBranch::Call),
            SiteTarget::Nothing | SiteTarget::Diverted(_) => function.stop_tracing(),
        }
    }
}
