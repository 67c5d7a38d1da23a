//! Patches are enabled and disabled: Linux's `kernel/livepatch/core.c`, with its order and its wording.

use std::sync::Arc;

use modload_edit::Addr;
use modload_ftrace::{Divert, divert, redirected};
use modload_loader::{Module, Reference, Refusal, State};

use crate::error::PatchError;
use crate::find::{Place, extent};
use crate::previous::Previous;
use crate::spec::{ObjectSpec, PatchSpec};
use crate::structs::CObject;
use crate::table::{Func, FuncId, HostId, Log, Object, Patch, PatchId, Patched, Table, note};
use crate::transition::Target;

/// A patch that is to be enabled.
pub(crate) struct Wanted {
    pub(crate) host: HostId,
    pub(crate) name: Arc<str>,
    pub(crate) spec: PatchSpec,
    /// The records of a module whose init enables it: one for each object.
    pub(crate) c_objects: Vec<CObject>,
    pub(crate) c_states: Vec<(u64, Addr)>,
    pub(crate) keep: Option<Reference>,
    pub(crate) log: Log,
}

fn object(spec: ObjectSpec, c: Option<CObject>) -> Result<Object, PatchError> {
    let name: Option<Arc<str>> = spec.name.map(Into::into);
    let func = |func: crate::spec::FuncSpec| {
        let extent = vec![extent(func.new_func)?];
        let (old_name, old_sympos) = (func.old_name.into(), func.old_sympos);
        Ok(Func { old_name, old_sympos, new_func: Some(func.new_func), old: None, extent, patched: false })
    };
    let funcs = spec.funcs.into_iter().map(func).collect::<Result<_, PatchError>>()?;
    let callbacks = spec.callbacks;
    let object = Object::new(name, funcs);
    Ok(Object { callbacks, c, ..object })
}

impl Object {
    fn new(name: Option<Arc<str>>, funcs: Vec<Func>) -> Object {
        let callbacks = crate::spec::Callbacks::default();
        let (c, is_dynamic, loaded, patched, post_unpatch_enabled) = (None, false, false, false, false);
        Object { name, funcs, callbacks, c, is_dynamic, loaded, patched, post_unpatch_enabled }
    }

    /// Finds the functions of an object that is there: Linux's `klp_init_object_loaded`.
    fn is_loaded(&mut self, place: &Place<'_>) -> Result<Vec<(Addr, Patched)>, PatchError> {
        let mut found = Vec::new();
        for func in &mut self.funcs {
            let (entry, extent) = place.function(func)?;
            func.old = Some(entry);
            let home = modload_ftrace::behind(entry).unwrap_or(entry);
            found.push((entry, Patched { home, extent, stack: Vec::new() }));
        }
        self.loaded = true;
        if let (Some(c), Place::Module(module, _)) = (&mut self.c, place) {
            c.arrives(module);
        }
        Ok(found)
    }

    /// It is not there any more.
    fn is_unloaded(&mut self) {
        self.loaded = false;
        self.funcs.iter_mut().for_each(|func| func.old = None);
        self.c.iter_mut().for_each(CObject::leaves);
    }

    fn pre_patch(&mut self) -> Result<(), i32> {
        let result = self.callbacks.pre_patch.as_ref().map_or(Ok(()), |call| call());
        self.post_unpatch_enabled = result.is_ok();
        result
    }

    fn post_patch(&self) {
        if let Some(call) = &self.callbacks.post_patch {
            call();
        }
    }

    fn pre_unpatch(&self) {
        if let Some(call) = &self.callbacks.pre_unpatch {
            call();
        }
    }

    fn post_unpatch(&mut self) {
        if let Some(call) = self.callbacks.post_unpatch.as_ref().filter(|_| self.post_unpatch_enabled) {
            call();
        }
        self.post_unpatch_enabled = false;
    }
}

/// How lines name a target.
fn named(target: Target) -> &'static str {
    match target {
        Target::Patched => "patching",
        Target::Unpatched => "unpatching",
    }
}

impl Table {
    /// Linux's `klp_enable_patch`. `place` finds objects that are there.
    pub(crate) fn enable<'a>(
        &mut self,
        wanted: Wanted,
        place: &mut dyn FnMut(Option<&str>) -> Option<Place<'a>>,
    ) -> Result<(), PatchError> {
        let Wanted { host, name, spec, c_objects, c_states, keep, log } = wanted;
        if spec.objects.is_empty() {
            return Err(PatchError::Empty);
        }
        if self.patches.iter().any(|patch| patch.host == host && patch.name == name) {
            return Err(PatchError::Enabled(name.to_string()));
        }
        if let Some(transition) = &self.transition {
            return Err(PatchError::InTransition(self.name(transition.patch)));
        }
        let PatchSpec { objects, replace, states } = spec;
        let knows = |old: &crate::spec::StateSpec| match states.iter().find(|state| state.id == old.id) {
            Some(state) => state.version >= old.version,
            None => !replace,
        };
        if !self.patches.iter().filter(|patch| patch.host == host).flat_map(|patch| &patch.states).all(knows) {
            note(&log, &format!("Livepatch patch ({name}) is not compatible with the already installed livepatches."));
            return Err(PatchError::Incompatible { patch: name.to_string() });
        }
        let records = c_objects.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let objects =
            objects.into_iter().zip(records).map(|(spec, c)| object(spec, c)).collect::<Result<Vec<_>, _>>()?;
        self.last_patch += 1;
        let id = PatchId(self.last_patch);
        let mut patch =
            Patch { id, host, name, objects, replace, states, enabled: false, forced: false, log, c_states, keep };
        if replace {
            self.add_nops(&mut patch);
        }
        let mut found = Vec::new();
        for object in &mut patch.objects {
            if let Some(place) = place(object.name.as_deref()) {
                found.extend(object.is_loaded(&place).inspect_err(|error| error.note(&patch.log))?);
            }
        }
        patch.note(&format!("enabling patch '{}'", patch.name));
        patch.note(&format!("'{}': initializing patching transition", patch.name));
        self.patches.push(patch);
        for (entry, patched) in found {
            self.functions.entry(entry).or_insert(patched);
        }
        let _previous = Previous::are(self.states_before(id));
        let enabled = self.enable_objects(id).and_then(|()| {
            self.note(id, "starting patching transition");
            self.begin(id, Target::Patched)
        });
        match enabled {
            Ok(over) => {
                if let Some(patch) = self.patch_mut(id) {
                    patch.enabled = true;
                }
                if over {
                    self.complete(id, Target::Patched);
                }
                Ok(())
            }
            Err(error) => {
                self.cancel(id, &error);
                Err(error)
            }
        }
    }

    fn name(&self, id: PatchId) -> String {
        self.patch(id).map(|patch| patch.name.to_string()).unwrap_or_default()
    }

    /// Notes what a patch does.
    fn note(&self, id: PatchId, what: &str) {
        if let Some(patch) = self.patch(id) {
            patch.note(&format!("'{}': {what}", patch.name));
        }
    }

    /// Functions that patches of the same host have changed and this one does not: it puts the originals back.
    fn add_nops(&self, patch: &mut Patch) {
        for old in self.patches.iter().filter(|old| old.host == patch.host) {
            for old_object in &old.objects {
                let same = patch.objects.iter().position(|object| object.name == old_object.name);
                let at = same.unwrap_or_else(|| {
                    let object = Object::new(old_object.name.clone(), Vec::new());
                    patch.objects.push(Object { is_dynamic: true, ..object });
                    patch.objects.len() - 1
                });
                let object = &mut patch.objects[at];
                for old in &old_object.funcs {
                    let is_old = |func: &Func| func.old_name == old.old_name && func.old_sympos == old.old_sympos;
                    if !object.funcs.iter().any(is_old) {
                        let nop = Func { new_func: None, old: None, extent: Vec::new(), patched: false, ..old.clone() };
                        object.funcs.push(nop);
                    }
                }
            }
        }
    }

    /// Calls `pre_patch` of all objects that are there, and has their functions patched.
    fn enable_objects(&mut self, id: PatchId) -> Result<(), PatchError> {
        let count = self.patch(id).map_or(0, |patch| patch.objects.len());
        for number in 0..count {
            let Some(object) = self.patch_mut(id).map(|patch| &mut patch.objects[number]) else { continue };
            if !object.loaded {
                continue;
            }
            let (name, result) = (object.name().to_owned(), object.pre_patch());
            if let Err(errno) = result {
                if let Some(patch) = self.patch(id) {
                    patch.note(&format!("pre-patch callback failed for object '{name}'"));
                }
                return Err(PatchError::Callback { object: name, errno });
            }
            if let Err(source) = self.can_divert(id, number) {
                if let Some(patch) = self.patch(id) {
                    patch.note(&format!("failed to patch object '{name}'"));
                }
                return Err(source);
            }
            self.patch_object(id, number);
        }
        Ok(())
    }

    /// Looks whether somebody else redirects one of an object's functions, as far as that can be known before it is done.
    fn can_divert(&self, id: PatchId, object: usize) -> Result<(), PatchError> {
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

    /// Puts an object's functions on top of their stacks.
    fn patch_object(&mut self, patch: PatchId, object: usize) {
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

    /// Takes an object's functions from their stacks.
    fn unpatch_object(&mut self, patch: PatchId, object: usize) -> Vec<Addr> {
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

    /// Forgets functions that nothing patches.
    fn forget(&mut self, entries: &[Addr]) {
        for entry in entries {
            if self.functions.get(entry).is_some_and(|function| function.stack.is_empty()) {
                self.functions.remove(entry);
            }
        }
    }

    /// A patch could not be enabled: Linux's `klp_cancel_transition`.
    fn cancel(&mut self, id: PatchId, error: &PatchError) {
        tracing::warn!(%error, "a patch could not be enabled");
        if let Some(patch) = self.patch(id) {
            patch.note(&format!("failed to enable patch '{}'", patch.name));
        }
        self.note(id, "canceling patching transition, going to unpatch");
        self.complete(id, Target::Unpatched);
    }

    /// All threads are over: Linux's `klp_complete_transition`.
    pub(crate) fn complete(&mut self, id: PatchId, target: Target) {
        let _previous = Previous::are(self.states_before(id));
        self.note(id, &format!("completing {} transition", named(target)));
        if let Some(transition) = self.transition.take() {
            self.stubs.retire(transition.moving.iter().map(|moving| moving.fork));
        }
        let mut entries = Vec::new();
        let mut replaced = Vec::new();
        match target {
            Target::Patched if self.patch(id).is_some_and(|patch| patch.replace) => {
                let host = self.patch(id).map(|patch| patch.host);
                let others: Vec<_> = self
                    .patches
                    .iter()
                    .filter(|patch| patch.id != id && Some(patch.host) == host)
                    .map(|patch| patch.id)
                    .collect();
                for other in others {
                    entries.extend(self.unpatch_all(other));
                    replaced.extend(self.patches.extract_if(.., |patch| patch.id == other));
                }
                entries.extend(self.discard_nops(id));
            }
            Target::Patched => {}
            Target::Unpatched => entries.extend(self.unpatch_all(id)),
        }
        self.forget(&entries);
        if let Some(patch) = self.patch_mut(id) {
            for object in patch.objects.iter_mut().filter(|object| object.loaded) {
                match target {
                    Target::Patched => object.post_patch(),
                    Target::Unpatched => object.post_unpatch(),
                }
            }
        }
        self.note(id, &format!("{} complete", named(target)));
        if target == Target::Unpatched {
            replaced.extend(self.patches.extract_if(.., |patch| patch.id == id));
        }
        // Their modules may go now.
        drop(replaced);
    }

    fn unpatch_all(&mut self, id: PatchId) -> Vec<Addr> {
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

    /// The originals are what is left: nothing needs to be on top of them.
    fn discard_nops(&mut self, patch: PatchId) -> Vec<Addr> {
        let mut entries = Vec::new();
        let Some(of) = self.patches.iter_mut().find(|one| one.id == patch) else { return entries };
        for (object, of) in of.objects.iter_mut().enumerate() {
            // No-op functions come last, so that the numbers of the others stay.
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
        // They came last, too.
        of.objects.retain(|object| !object.is_dynamic);
        entries
    }

    /// Linux's `__klp_disable_patch`.
    pub(crate) fn disable(&mut self, id: PatchId) -> Result<(), PatchError> {
        if let Some(transition) = &self.transition {
            return Err(PatchError::InTransition(self.name(transition.patch)));
        }
        self.note(id, "initializing unpatching transition");
        let _previous = Previous::are(self.states_before(id));
        if let Some(patch) = self.patch(id) {
            patch.objects.iter().filter(|object| object.patched).for_each(Object::pre_unpatch);
        }
        self.note(id, "starting unpatching transition");
        let over = self.begin(id, Target::Unpatched)?;
        if let Some(patch) = self.patch_mut(id) {
            patch.enabled = false;
        }
        if over {
            self.complete(id, Target::Unpatched);
        }
        Ok(())
    }

    /// Linux's `klp_reverse_transition`.
    pub(crate) fn reverse(&mut self) -> Result<(), PatchError> {
        let Some((id, from)) = self.transition.as_ref().map(|transition| (transition.patch, transition.target)) else {
            return Err(PatchError::NoTransition);
        };
        self.turn()?;
        let to = if from == Target::Patched { Target::Unpatched } else { Target::Patched };
        self.note(id, &format!("reversing transition from {} to {}", named(from), named(to)));
        if let Some(patch) = self.patch_mut(id) {
            patch.enabled = to == Target::Patched;
        }
        self.note(id, &format!("starting {} transition", named(to)));
        self.go_on()
    }

    /// Linux's `klp_force_transition`.
    pub(crate) fn force_all(&mut self) -> Result<(), PatchError> {
        let Some(id) = self.transition.as_ref().map(|transition| transition.patch) else {
            return Err(PatchError::NoTransition);
        };
        tracing::warn!("livepatch: forcing remaining tasks to the patched state");
        if let Some(patch) = self.patch(id) {
            patch.note("forcing remaining tasks to the patched state");
        }
        let over = self.force()?;
        let replaces = self.patch(id).is_some_and(|patch| patch.replace);
        for patch in self.patches.iter_mut().filter(|patch| patch.id == id || replaces) {
            patch.forced = true;
        }
        if over {
            self.completed();
        }
        Ok(())
    }

    /// Looks whether the transition under way can be completed.
    pub(crate) fn go_on(&mut self) -> Result<(), PatchError> {
        if self.transition.is_some() && self.try_again()? {
            self.completed();
        }
        Ok(())
    }

    fn completed(&mut self) {
        if let Some((id, target)) = self.transition.as_ref().map(|transition| (transition.patch, transition.target)) {
            self.complete(id, target);
        }
    }

    /// Where functions' calls go when nothing is in transition.
    fn settle(&self, entries: &[Addr]) -> Vec<Divert> {
        entries.iter().map(|&entry| Divert { entry, to: self.settled(entry) }).collect()
    }

    /// A module is coming: its functions are patched by all patches that name it, before any of its code runs. Linux's
    /// `klp_module_coming`.
    pub(crate) fn module_coming(
        &mut self,
        host: HostId,
        place: &Place<'_>,
        module: &str,
    ) -> Result<Vec<Divert>, Refusal> {
        let _previous = self.transition.as_ref().map(|transition| Previous::are(self.states_before(transition.patch)));
        let ids: Vec<_> = self.patches.iter().filter(|patch| patch.host == host).map(|patch| patch.id).collect();
        let mut entries = Vec::new();
        for id in ids {
            let patch = self.patches.iter_mut().find(|patch| patch.id == id);
            let object =
                patch.and_then(|patch| patch.objects.iter().position(|object| object.name.as_deref() == Some(module)));
            let Some(number) = object else { continue };
            match self.object_coming(id, number, place, module) {
                Ok(more) => entries.extend(more),
                Err(error) => {
                    let name = self.name(id);
                    if let Some(patch) = self.patch(id) {
                        patch.note(&format!(
                            "patch '{name}' failed for module '{module}', refusing to load module '{module}'"
                        ));
                    }
                    self.undo_coming(host, module, id);
                    let reason = format!("patch '{name}' failed for module '{module}': {error}");
                    return Err(Refusal { reason, errno: Some(error.errno()) });
                }
            }
        }
        entries.sort();
        entries.dedup();
        let moving = self.transition.iter().flat_map(|transition| &transition.moving);
        let stubs: std::collections::BTreeMap<_, _> = moving.map(|moving| (moving.entry, moving.fork.stub())).collect();
        let to = |divert: Divert| Divert { to: stubs.get(&divert.entry).copied().or(divert.to), ..divert };
        Ok(self.settle(&entries).into_iter().map(to).collect())
    }

    fn object_coming(
        &mut self,
        id: PatchId,
        number: usize,
        place: &Place<'_>,
        module: &str,
    ) -> Result<Vec<Addr>, PatchError> {
        let in_transition = self.transition.as_ref().is_some_and(|transition| transition.patch == id);
        let Some(patch) = self.patch_mut(id) else { return Ok(Vec::new()) };
        let found = patch.objects[number].is_loaded(place);
        let found = found.inspect_err(|error| {
            error.note(&patch.log);
            let (name, errno) = (&patch.name, error.errno());
            patch.note(&format!("failed to initialize patch '{name}' for module '{module}' (-{errno})"));
        })?;
        patch.note(&format!("applying patch '{}' to loading module '{module}'", patch.name));
        if let Err(errno) = patch.objects[number].pre_patch() {
            patch.note(&format!("pre-patch callback failed for object '{module}'"));
            return Err(PatchError::Callback { object: module.to_owned(), errno });
        }
        if let Err(error) = self.can_divert(id, number) {
            if let Some(patch) = self.patch_mut(id) {
                let (name, errno) = (&patch.name, error.errno());
                patch.note(&format!("failed to apply patch '{name}' to module '{module}' (-{errno})"));
                patch.objects[number].post_unpatch();
            }
            return Err(error);
        }
        let mut entries = Vec::new();
        for (entry, patched) in found {
            entries.push(entry);
            self.functions.entry(entry).or_insert(patched);
        }
        self.patch_object(id, number);
        if in_transition {
            self.join(id)?;
        } else if let Some(patch) = self.patch(id) {
            patch.objects[number].post_patch();
        }
        Ok(entries)
    }

    /// A target is refused: those that have been applied to it are taken back.
    fn undo_coming(&mut self, host: HostId, module: &str, failed: PatchId) {
        self.cleanup(host, module, Some(failed));
        if let Some(patch) = self.patch_mut(failed) {
            let of_module = patch.objects.iter_mut().filter(|object| object.name.as_deref() == Some(module));
            of_module.for_each(Object::is_unloaded);
        }
    }

    /// A module goes: Linux's `klp_module_going`.
    pub(crate) fn module_going(&mut self, host: HostId, module: &str) {
        let _previous = self.transition.as_ref().map(|transition| Previous::are(self.states_before(transition.patch)));
        self.target_is(host, module, State::Going);
        let entries = self.cleanup(host, module, None);
        // Its text may stay, if somebody is in it.
        if let Err(error) = divert(&self.settle(&entries)) {
            tracing::error!(%module, %error, "sites of a module that goes stay as they are");
        }
        self.forget(&entries);
    }

    /// A module that patches name has this state now.
    pub(crate) fn target_is(&self, host: HostId, module: &str, state: State) {
        let objects = self.patches.iter().filter(|patch| patch.host == host).flat_map(|patch| &patch.objects);
        let named = objects.filter(|object| object.name.as_deref() == Some(module));
        named.filter_map(|object| object.c.as_ref()).for_each(|c| c.is_now(state));
    }

    /// A module goes: what it has enabled, and could not hold it, is not in force any more. That is one whose init has failed
    /// behind klp_enable_patch, or that is unloaded by force.
    pub(crate) fn abandon(&mut self, host: HostId, module: &Module) {
        let is_kept = |patch: &Patch| {
            let kept = patch.keep.as_deref();
            patch.host == host && kept.is_some_and(|kept| std::ptr::eq(kept, module))
        };
        for name in self.patches.iter().filter(|patch| is_kept(patch)).map(|patch| patch.name.clone()) {
            tracing::error!(patch = %name, "the module of a patch goes: it is not in force any more, whoever is in its functions");
        }
        self.withdraw(&is_kept);
    }

    /// Linux's `klp_cleanup_module_patches_limited`.
    fn cleanup(&mut self, host: HostId, module: &str, limit: Option<PatchId>) -> Vec<Addr> {
        let ids: Vec<_> = self.patches.iter().filter(|patch| patch.host == host).map(|patch| patch.id).collect();
        let mut entries = Vec::new();
        for id in ids {
            if Some(id) == limit {
                break;
            }
            let in_transition = self.transition.as_ref().is_some_and(|transition| transition.patch == id);
            let Some(patch) = self.patch(id) else { continue };
            let Some(number) =
                patch.objects.iter().position(|object| object.loaded && object.name.as_deref() == Some(module))
            else {
                continue;
            };
            if !in_transition {
                patch.objects[number].pre_unpatch();
            }
            patch.note(&format!("reverting patch '{}' on unloading module '{module}'", patch.name));
            let gone = self.unpatch_object(id, number);
            self.part(&gone);
            entries.extend(gone);
            if let Some(patch) = self.patch_mut(id) {
                let object = &mut patch.objects[number];
                object.post_unpatch();
                object.is_unloaded();
            }
        }
        entries.sort();
        entries.dedup();
        if limit.is_some() {
            self.forget(&entries);
        }
        entries
    }

    /// A host goes: its patches are not in force any more, whoever is in them.
    pub(crate) fn leave(&mut self, host: HostId) {
        self.withdraw(&|patch: &Patch| patch.host == host);
    }

    /// Takes patches out of force at once.
    fn withdraw(&mut self, which: &dyn Fn(&Patch) -> bool) {
        if !self.patches.iter().any(which) {
            return;
        }
        if self.transition.as_ref().is_some_and(|transition| self.patch(transition.patch).is_some_and(which))
            && let Err(error) = self.force_all()
        {
            tracing::error!(%error, "a transition cannot be ended");
        }
        let ids: Vec<_> = self.patches.iter().rev().filter(|patch| which(patch)).map(|patch| patch.id).collect();
        let entries: Vec<_> = ids.into_iter().flat_map(|id| self.unpatch_all(id)).collect();
        if let Err(error) = divert(&self.settle(&entries)) {
            tracing::error!(%error, "sites of functions that were patched stay as they are");
        }
        self.forget(&entries);
        let gone: Vec<_> = self.patches.extract_if(.., |patch| which(patch)).collect();
        drop(gone);
    }
}
