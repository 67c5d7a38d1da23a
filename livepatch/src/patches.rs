//! All patches of the process, and the function stacks of the functions that they change: pushes an object's functions
//! on their function stacks, and removes them. Linux's `kernel/livepatch/patch.c`.

use std::collections::BTreeMap;
use std::ops::Range;

use modload_edit::Addr;
use modload_ftrace::{Divert, redirected};

use crate::error::PatchError;
use crate::patch::{Func, FuncId, Patch, PatchHostId, PatchId, PatchedFunction, PatchedObject};

/// The patches and the function stacks.
#[derive(Debug)]
pub(crate) struct Patches {
    /// The patches in the order in which they were enabled.
    pub(crate) all: Vec<Patch>,
    /// The patched functions by entry.
    functions: BTreeMap<Addr, PatchedFunction>,
    /// The number of the last patch.
    last: u64,
}

impl Patches {
    pub(crate) const fn new() -> Patches {
        Patches { all: Vec::new(), functions: BTreeMap::new(), last: 0 }
    }

    /// Returns the identity of a new patch.
    pub(crate) fn new_id(&mut self) -> PatchId {
        self.last += 1;
        PatchId(self.last)
    }

    pub(crate) fn get(&self, id: PatchId) -> Option<&Patch> {
        self.all.iter().find(|patch| patch.id == id)
    }

    pub(crate) fn get_mut(&mut self, id: PatchId) -> Option<&mut Patch> {
        self.all.iter_mut().find(|patch| patch.id == id)
    }

    /// Returns the patches of a host, in the order in which they were enabled.
    pub(crate) fn of_host(&self, host: PatchHostId) -> impl Iterator<Item = &Patch> {
        self.all.iter().filter(move |patch| patch.host == host)
    }

    /// Returns the identities of the patches of a host, in the order in which they were enabled.
    pub(crate) fn ids_of_host(&self, host: PatchHostId) -> Vec<PatchId> {
        self.of_host(host).map(|patch| patch.id).collect()
    }

    pub(crate) fn name(&self, id: PatchId) -> String {
        self.get(id).map(|patch| patch.name.to_string()).unwrap_or_default()
    }

    /// Logs a line that begins with the name of a patch.
    pub(crate) fn note(&self, id: PatchId, line: &str) {
        if let Some(patch) = self.get(id) {
            patch.note(&format!("'{}': {line}", patch.name));
        }
    }

    /// Returns the states of the patches of the same host that were enabled before a patch, the newest last.
    pub(crate) fn states_before(&self, id: PatchId) -> Vec<(u64, Addr)> {
        let host = self.get(id).map(|patch| patch.host);
        let before = self.all.iter().take_while(|patch| patch.id != id);
        before.filter(|patch| Some(patch.host) == host).flat_map(|patch| patch.c_states.iter().copied()).collect()
    }

    fn func(&self, id: FuncId) -> Option<&Func> {
        self.get(id.patch)?.objects.get(id.object)?.funcs.get(id.func)
    }

    /// Returns the address ranges of the functions that replace a module's functions.
    pub(crate) fn replacements(&self, host: PatchHostId, module: &str) -> impl Iterator<Item = Range<u64>> {
        let named = move |object: &&PatchedObject| object.name.as_deref() == Some(module);
        let objects = self.of_host(host).flat_map(move |patch| patch.objects.iter().filter(named));
        objects.flat_map(|object| &object.funcs).flat_map(|func| func.extent.iter().cloned())
    }

    /// Adds functions that have no function stack yet.
    pub(crate) fn add_functions(&mut self, found: impl IntoIterator<Item = (Addr, PatchedFunction)>) {
        for (entry, patched) in found {
            self.functions.entry(entry).or_insert(patched);
        }
    }

    /// Forgets functions that no patch changes.
    pub(crate) fn forget(&mut self, entries: &[Addr]) {
        for entry in entries {
            if self.functions.get(entry).is_some_and(|function| function.stack.is_empty()) {
                self.functions.remove(entry);
            }
        }
    }

    /// Returns the patched functions by entry.
    pub(crate) fn functions(&self) -> impl Iterator<Item = (Addr, &PatchedFunction)> {
        self.functions.iter().map(|(entry, function)| (*entry, function))
    }

    /// Returns an address behind a function's site.
    pub(crate) fn home(&self, entry: Addr) -> Addr {
        self.functions.get(&entry).map_or(entry, |function| function.home)
    }

    /// Returns the code for an entry of a function stack: the start, `None` for the function itself, and the address
    /// ranges. Below the first entry is the function itself.
    pub(crate) fn version(&self, entry: Addr, depth: Option<usize>) -> (Option<Addr>, Vec<Range<u64>>) {
        let Some(function) = self.functions.get(&entry) else { return (None, Vec::new()) };
        let func = depth.and_then(|depth| function.stack.get(depth)).and_then(|id| self.func(*id));
        match func.and_then(|func| Some((func.new_func?, func))) {
            Some((new, func)) => (Some(new), func.extent.clone()),
            None => (None, function.extent.clone()),
        }
    }

    /// Returns the target of a function's calls outside of transitions: the newest replacement on the function stack,
    /// or `None` for the function itself.
    fn settled(&self, entry: Addr) -> Option<Addr> {
        let newest = self.functions.get(&entry)?.stack.last()?;
        self.func(*newest)?.new_func
    }

    /// Returns the redirections of functions' calls outside of transitions.
    pub(crate) fn settled_diverts(&self, entries: &[Addr]) -> Vec<Divert> {
        entries.iter().map(|&entry| Divert { entry, to: self.settled(entry) }).collect()
    }

    /// Fails if another user redirects one of an object's functions, as far as that can be known in advance.
    pub(crate) fn can_divert(&self, id: PatchId, object: usize) -> Result<(), PatchError> {
        let Some(patch) = self.get(id) else { return Ok(()) };
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
    pub(crate) fn patch_object(&mut self, patch: PatchId, object: usize) {
        let Some(of) = self.all.iter_mut().find(|one| one.id == patch).map(|patch| &mut patch.objects[object]) else {
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
    pub(crate) fn unpatch_object(&mut self, patch: PatchId, object: usize) -> Vec<Addr> {
        let mut entries = Vec::new();
        let Some(of) = self.all.iter_mut().find(|one| one.id == patch).map(|patch| &mut patch.objects[object]) else {
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

    /// Removes the functions of a patch's objects from their function stacks. Returns the entries of the functions.
    pub(crate) fn unpatch_all(&mut self, id: PatchId) -> Vec<Addr> {
        let count = self.get(id).map_or(0, |patch| patch.objects.len());
        let mut entries = Vec::new();
        for object in 0..count {
            if self.get(id).is_some_and(|patch| patch.objects[object].patched) {
                entries.extend(self.unpatch_object(id, object));
            }
        }
        entries
    }

    /// Removes the no-op functions of a patch: the originals remain, so no-op functions are not needed any more.
    /// Returns the entries of the functions.
    pub(crate) fn discard_nops(&mut self, patch: PatchId) -> Vec<Addr> {
        let mut entries = Vec::new();
        let Some(of) = self.all.iter_mut().find(|one| one.id == patch) else { return entries };
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
}
