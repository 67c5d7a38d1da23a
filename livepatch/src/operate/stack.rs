//! Pushes an object's functions on their function stacks, and removes them: Linux's `kernel/livepatch/patch.c`.

use modload_edit::Addr;
use modload_ftrace::{Divert, redirected};

use crate::error::PatchError;
use crate::table::{FuncId, PatchId, Table};

impl Table {
    /// Fails if another user redirects one of an object's functions, as far as that can be known in advance.
    pub(super) fn can_divert(&self, id: PatchId, object: usize) -> Result<(), PatchError> {
        let Some(patch) = self.patch(id) else { return Ok(()) };
        let object = &patch.objects[object];
        for func in &object.funcs {
            let Some(source) = func.old.and_then(redirected) else { continue };
            let symbol = func.old_name.to_string();
            let error = PatchError::Function { object: object.name().to_owned(), symbol, source: Box::new(source) };
            let (name, errno) = (&func.old_name, error.errno());
            patch.note(&format!("failed to register ftrace handler for function '{name}' (-{errno})"));
            return Err(error);
        }
        Ok(())
    }

    /// Pushes an object's functions on their function stacks.
    pub(super) fn patch_object(&mut self, patch: PatchId, object: usize) {
        let Some(of) = self.patches.iter_mut().find(|one| one.id == patch).map(|patch| &mut patch.objects[object])
        else {
            return;
        };
        of.patched = true;
        for (number, func) in of.funcs.iter_mut().enumerate() {
            if let Some(function) = func.old.and_then(|old| self.functions.get_mut(&old)) {
                function.stack.push(FuncId { patch, object, func: number });
                func.patched = true;
            }
        }
    }

    /// Removes an object's functions from their function stacks. Returns the entries of the functions.
    pub(super) fn unpatch_object(&mut self, patch: PatchId, object: usize) -> Vec<Addr> {
        let mut entries = Vec::new();
        let Some(of) = self.patches.iter_mut().find(|one| one.id == patch).map(|patch| &mut patch.objects[object])
        else {
            return entries;
        };
        of.patched = false;
        for (number, func) in of.funcs.iter_mut().enumerate() {
            let id = FuncId { patch, object, func: number };
            func.patched = false;
            let Some(entry) = func.old else { continue };
            entries.push(entry);
            if let Some(function) = self.functions.get_mut(&entry) {
                function.stack.retain(|one| *one != id);
            }
        }
        entries
    }

    pub(super) fn unpatch_all(&mut self, id: PatchId) -> Vec<Addr> {
        let count = self.patch(id).map_or(0, |patch| patch.objects.len());
        let patched = |table: &Table, object: usize| table.patch(id).is_some_and(|patch| patch.objects[object].patched);
        let mut entries = Vec::new();
        for object in 0..count {
            if patched(self, object) {
                entries.extend(self.unpatch_object(id, object));
            }
        }
        entries
    }

    /// Removes the no-op functions of a patch: the originals remain, so no-op functions are not needed any more.
    pub(super) fn discard_nops(&mut self, patch: PatchId) -> Vec<Addr> {
        let mut entries = Vec::new();
        let Some(of) = self.patches.iter_mut().find(|one| one.id == patch) else { return entries };
        for (object, of) in of.objects.iter_mut().enumerate() {
            // No-op functions come last, so the numbers of the others stay valid.
            let nops = of.funcs.iter().position(|func| func.new_func.is_none()).unwrap_or(of.funcs.len());
            for (number, func) in of.funcs.drain(nops..).enumerate() {
                let id = FuncId { patch, object, func: nops + number };
                let Some(entry) = func.old else { continue };
                entries.push(entry);
                if let Some(function) = self.functions.get_mut(&entry) {
                    function.stack.retain(|one| *one != id);
                }
            }
        }
        // Dynamic objects came last, too.
        of.objects.retain(|object| !object.is_dynamic);
        entries
    }

    /// Forgets functions that no patch changes.
    pub(super) fn forget(&mut self, entries: &[Addr]) {
        for entry in entries {
            if self.functions.get(entry).is_some_and(|function| function.stack.is_empty()) {
                self.functions.remove(entry);
            }
        }
    }

    /// Returns the targets of functions' calls outside of transitions.
    pub(super) fn settle(&self, entries: &[Addr]) -> Vec<Divert> {
        entries.iter().map(|&entry| Divert { entry, to: self.settled(entry) }).collect()
    }
}
