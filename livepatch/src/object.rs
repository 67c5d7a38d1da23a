//! An object of a patch: its construction from the patch's description, its load and unload, and its callbacks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use modload_abi::modinfo;
use modload_edit::Addr;
use modload_loader::FunctionSymbol;

use crate::error::PatchError;
use crate::find::{ObjectPlace, cold_parts, extent};
use crate::patch::{Func, PatchedFunction, PatchedObject, VMLINUX};
use crate::spec::{Callbacks, FuncSpec, ObjectSpec};
use crate::structs::CObject;

/// Makes an object. `own` are the functions of the patch's module.
pub(crate) fn new_object(
    spec: ObjectSpec,
    c: Option<CObject>,
    own: &[FunctionSymbol],
) -> Result<PatchedObject, PatchError> {
    let name: Option<Arc<str>> = spec.name.map(|name| modinfo::canonical(&name).into());
    let func = |func: FuncSpec| {
        let mut extent = vec![extent(func.new_func)?];
        let named = own.iter().filter(|symbol| symbol.addr == func.new_func);
        extent.extend(named.flat_map(|symbol| cold_parts(own, &symbol.name)));
        let (old_name, old_sympos) = (func.old_name.into(), func.old_sympos);
        Ok(Func { old_name, old_sympos, new_func: Some(func.new_func), old: None, extent, patched: false })
    };
    let funcs = spec.funcs.into_iter().map(func).collect::<Result<Vec<_>, PatchError>>()?;
    refuse_duplicates(name.as_deref().unwrap_or(VMLINUX), &funcs)?;
    let callbacks = spec.callbacks;
    let object = PatchedObject::new(name, funcs);
    Ok(PatchedObject { callbacks, c, ..object })
}

/// Refuses a function that is named twice, even if its object is not loaded yet. Positions 0 and 1 name the same
/// function: 0 is valid only if there is exactly one function of that name.
fn refuse_duplicates(object: &str, funcs: &[Func]) -> Result<(), PatchError> {
    let mut named = BTreeSet::new();
    match funcs.iter().find(|func| !named.insert(func.key())) {
        Some(func) => Err(function_twice(object, func, func)),
        None => Ok(()),
    }
}

fn function_twice(object: &str, first: &Func, second: &Func) -> PatchError {
    let [first, second] = [first, second].map(|func| func.old_name.to_string());
    PatchError::FunctionTwice { object: object.to_owned(), first, second }
}

impl PatchedObject {
    pub(crate) fn new(name: Option<Arc<str>>, funcs: Vec<Func>) -> PatchedObject {
        let callbacks = Callbacks::default();
        let (c, is_dynamic, loaded, patched, post_unpatch_enabled) = (None, false, false, false, false);
        PatchedObject { name, funcs, callbacks, c, is_dynamic, loaded, patched, post_unpatch_enabled }
    }

    /// Finds the functions of a loaded object: Linux's `klp_init_object_loaded`. Functions are compared by their
    /// addresses, because a function may have several names. A function that the patch replaces needs no no-op
    /// function.
    ///
    /// # Errors
    /// A function cannot be found, or the patch replaces a function twice. The object is unchanged: the module is refused, and
    /// another module of that name may be loaded later.
    pub(crate) fn set_loaded(&mut self, place: &ObjectPlace<'_>) -> Result<Vec<(Addr, PatchedFunction)>, PatchError> {
        let mut found: BTreeMap<Addr, PatchedFunction> = BTreeMap::new();
        // The entry of each function; `None` for a no-op function that is not needed.
        let mut entries: Vec<Option<Addr>> = Vec::with_capacity(self.funcs.len());
        // No-op functions come last.
        for func in &self.funcs {
            let (entry, extent) = place.function(func)?;
            if found.contains_key(&entry) {
                if func.new_func.is_none() {
                    entries.push(None);
                    continue;
                }
                let first = entries.iter().position(|known| *known == Some(entry));
                return Err(function_twice(self.name(), first.map_or(func, |first| &self.funcs[first]), func));
            }
            let home = modload_ftrace::behind(entry).unwrap_or(entry);
            found.insert(entry, PatchedFunction { home, extent, stack: Vec::new() });
            entries.push(Some(entry));
        }
        let funcs = std::mem::take(&mut self.funcs).into_iter().zip(entries);
        self.funcs = funcs.filter_map(|(func, entry)| entry.map(|entry| Func { old: Some(entry), ..func })).collect();
        self.loaded = true;
        if let ObjectPlace::Module(module, _) = place {
            module.expect_stand_ins();
            self.c.iter_mut().for_each(|c| c.set_target(module));
        }
        Ok(found.into_iter().collect())
    }

    /// Forgets the addresses of the object's functions: the object is not loaded any more.
    pub(crate) fn set_unloaded(&mut self) {
        self.loaded = false;
        self.funcs.iter_mut().for_each(|func| func.old = None);
        self.c.iter_mut().for_each(CObject::clear_target);
    }

    pub(crate) fn pre_patch(&mut self) -> Result<(), i32> {
        let result = self.callbacks.pre_patch.as_ref().map_or(Ok(()), |call| call());
        self.post_unpatch_enabled = result.is_ok();
        result
    }

    pub(crate) fn post_patch(&self) {
        if let Some(call) = &self.callbacks.post_patch {
            call();
        }
    }

    pub(crate) fn pre_unpatch(&self) {
        if let Some(call) = &self.callbacks.pre_unpatch {
            call();
        }
    }

    pub(crate) fn post_unpatch(&mut self) {
        if let Some(call) = self.callbacks.post_unpatch.as_ref().filter(|_| self.post_unpatch_enabled) {
            call();
        }
        self.post_unpatch_enabled = false;
    }
}
