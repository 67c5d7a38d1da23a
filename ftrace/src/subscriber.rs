//! The first subscriber of both chains: registers a module's functions before any other subscriber is notified, and
//! forgets the functions after all others.

use modload_edit::{Edit, Sink};
use modload_loader::{Coming, Module, Refusal, Subscriber};
use modload_text::{TextLock, poke};

use crate::Ftrace;
use crate::identity::FunctionOwner;
use crate::sites::FoundSites;
use crate::table::{ModuleFunctions, ModuleTextState, SiteTarget, TraceEntry, TraceTable, table};
use crate::trampoline::variants::VectorWidth;

impl Subscriber for Ftrace {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        let Some(found) = FoundSites::read(coming)? else { return Ok(()) };
        let owner = FunctionOwner::of(coming.module());
        let entries: Vec<_> = found.sites.into_iter().map(TraceEntry::new).collect();
        let part = ModuleFunctions {
            host: self.host,
            module: coming.module().name().into(),
            phase: ModuleTextState::Staged,
            width: found.width.unwrap_or(VectorWidth::Zmm),
            entries,
            untraceable: found.untraceable,
            own: None,
        };
        let mut table = table();
        let all: Vec<usize> = (0..part.entries.len()).collect();
        table.parts.insert(owner, part);
        let twice = |function| {
            Refusal::from(format!(
                "two tracers would redirect {function}: a function can have one redirection at a time"
            ))
        };
        let entered = table.mark_new_functions(owner).map_err(twice).and_then(|()| {
            table
                .prepare(owner, &all)
                .map_err(|error| Refusal::from(format!("its functions cannot be traced: {error}")))?;
            table.show_staged(owner, coming)
        });
        if entered.is_err() {
            table.forget(owner);
        }
        coming.tell_when_published();
        entered
    }

    fn published(&self, module: &Module) -> Result<(), Refusal> {
        let (owner, mut table) = (FunctionOwner::of(module), table());
        let Some(part) = table.parts.get_mut(&owner) else { return Ok(()) };
        part.phase = ModuleTextState::Published;
        let late: Vec<_> = (0..).zip(&part.entries).filter(|(_, entry)| entry.shown != entry.wanted()).collect();
        let late: Vec<usize> = late.into_iter().map(|(number, _)| number).collect();
        let switched = if late.is_empty() { Ok(()) } else { table.switch(&vec![(owner, late)]) };
        switched.map_err(|error| Refusal::from(format!("tracing was switched while the module was coming: {error}")))
    }

    fn live(&self, module: &Module) {
        let (owner, mut table) = (FunctionOwner::of(module), table());
        table.name_parents(|at| module.describe_return(at));
        table.forget_entries(owner, |entry| entry.site.is_init);
    }

    fn going(&self, module: &Module) {
        let (owner, mut table) = (FunctionOwner::of(module), table());
        // The module's addresses will soon be invalid.
        table.name_parents(|at| module.describe_return(at));
        table.restore_nops(owner);
        table.forget(owner);
    }
}

impl TraceTable {
    /// Marks a new module's functions for the tracers and the recording that select them already. The error names a
    /// function that two tracers would redirect.
    pub(crate) fn mark_new_functions(&mut self, owner: FunctionOwner) -> Result<(), String> {
        let Some(part) = self.parts.get_mut(&owner) else { return Ok(()) };
        let mut redirected: Vec<usize> = Vec::new();
        for tracer in self.tracers.iter().filter(|tracer| tracer.host == part.host) {
            let filter = tracer.filter.of_module(&part.module);
            for (number, entry) in part.entries.iter_mut().enumerate() {
                if !filter.matches(&entry.site.name) {
                    continue;
                }
                if tracer.redirects {
                    if redirected.contains(&number) {
                        return Err(entry.site.name.to_string());
                    }
                    redirected.push(number);
                }
                entry.tracers.push(tracer.id);
            }
        }
        if let Some(running) = self.running.as_ref().filter(|running| running.host == part.host) {
            let filter = running.filter.of_module(&part.module);
            let meant = |entry: &&mut TraceEntry| filter.matches(&entry.site.name) && entry.can_be(running.then);
            part.entries.iter_mut().filter(meant).for_each(|entry| entry.recorded = running.then);
        }
        Ok(())
    }

    /// Writes the wanted code to staged sites, by plain stores.
    pub(crate) fn show_staged(&mut self, owner: FunctionOwner, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        let Some(part) = self.parts.get_mut(&owner) else { return Ok(()) };
        for entry in part.entries.iter_mut().filter(|entry| entry.wanted() != SiteTarget::Nothing) {
            let (old, new) = (entry.code(SiteTarget::Nothing), entry.code(entry.wanted()));
            let edit = Edit { at: entry.site.at, old: old.bytes(), new: new.bytes(), why: entry.site.why };
            coming.edit(edit).map_err(|error| Refusal::from(error.to_string()))?;
            entry.note_written();
        }
        Ok(())
    }

    /// Turns the sites of a module that is unloaded into NOPs again. The module's text may stay, if a thread is inside.
    pub(crate) fn restore_nops(&mut self, owner: FunctionOwner) {
        let Some(part) = self.parts.get_mut(&owner).filter(|part| part.phase == ModuleTextState::Published) else {
            return;
        };
        self.batch.clear();
        for entry in part.entries.iter_mut().filter(|entry| entry.shown != SiteTarget::Nothing) {
            let (old, new) = (entry.code(entry.shown), entry.code(SiteTarget::Nothing));
            let edit = Edit { at: entry.site.at, old: old.bytes(), new: new.bytes(), why: entry.site.why };
            if let Err(error) = self.batch.edit(edit) {
                tracing::error!(%error, "a call site of a module that is unloaded could not be changed back");
            }
        }
        if self.batch.is_empty() {
            return;
        }
        if let Err(error) = poke(&mut TextLock::take(), &self.batch, self.trap_mask) {
            // These sites lead to stubs of functions that are not traced any more.
            tracing::error!(module = %part.module, %error, "call sites of a module that is unloaded could not be changed back");
        }
    }

    /// Forgets a module.
    pub(crate) fn forget(&mut self, owner: FunctionOwner) {
        self.forget_entries(owner, |_| true);
        self.parts.remove(&owner);
    }

    /// Forgets some functions of a module.
    fn forget_entries(&mut self, owner: FunctionOwner, which: impl Fn(&TraceEntry) -> bool) {
        let Some(part) = self.parts.get_mut(&owner) else { return };
        let gone: Vec<_> = part.entries.extract_if(.., |entry| which(entry)).collect();
        let functions: Vec<_> = gone.iter().filter_map(|entry| entry.function).collect();
        for function in &functions {
            function.set_tracers(std::ptr::null());
            function.stop_tracing();
        }
        match part.own {
            None => self.give_back(functions.into_iter()),
            Some(_) => self.own.extend(functions.into_iter().map(|function| (function.ip(), function))),
        }
    }
}
