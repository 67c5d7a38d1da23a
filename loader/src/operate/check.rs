//! Checks whether a module could be loaded into this host: runs every stage up to *form* in temporary memory. No code of the
//! module runs, and no subscriber is called.

use modload_edit::Ledger;

use crate::elf::file::File;
use crate::elf::link::{self, Input};
use crate::elf::modinfo;
use crate::operate::admit;
use crate::operate::error::LoadError;
use crate::operate::form::ModuleTables;
use crate::operate::judge::Judge;
use crate::operate::load::Loader;
use crate::operate::resolve;
use crate::operate::scene::{Absent, Scene};
use crate::prepare::deferred::{self, Slices, Waiting};
use crate::prepare::error::PrepareError;
use crate::prepare::vague::SharedDefinitions;
use crate::prepare::{layout, memory, relocate, specialise};
use crate::vocabulary::stage::Stage;

impl Loader {
    /// Runs the stages *link* to *form* on a link unit and discards the result. Nothing is published and no code runs.
    /// Undefined symbols count as functions within reach, because another module may export them.
    ///
    /// # Errors
    /// [`LoadError`]: the stage at which a load would fail, and the reason.
    pub fn check(&self, inputs: &[Input<'_>], stem: &str) -> Result<(), LoadError> {
        let policy = self.policy();
        let linked = link::link(inputs, &[], policy.size_limit).map_err(LoadError::of_stage(stem, Stage::Link))?;
        let file = File::validate(&linked.bytes).map_err(LoadError::of_stage(stem, Stage::Validate))?;
        let info = modinfo::read(&file, stem).map_err(LoadError::of_stage(stem, Stage::Modinfo))?;
        let admitted = admit::check(&file).and_then(|()| deferred::check_symbols(&file, &info));
        let judge = admitted
            .and_then(|()| Judge::new(policy, &file, &info))
            .map_err(LoadError::of_stage(stem, Stage::Admit))?;
        let operations = policy.rewriting.host_operations.as_ref();
        let shared = SharedDefinitions::of(&file, policy.exports);
        let layout = layout::plan(&file, policy.size_limit, operations, shared)
            .map_err(LoadError::of_stage(stem, Stage::Layout))?;
        let (reservation, name) = self.registry.reserve_to_look(&info.name);
        let arena = self.arena();
        let mut memory = memory::allocate(arena, &layout).map_err(LoadError::of_stage(stem, Stage::Allocate))?;
        memory::copy(&file, &layout, operations, &mut memory);
        let scene = Scene {
            registry: self.registry,
            user: reservation.id,
            name: &name,
            externals: self.externals(),
            judge: &judge,
            libraries: &[],
            absent: Absent::Somewhere,
            shared,
        };
        let resolved =
            resolve::resolve(&file, &layout, &memory, scene).map_err(LoadError::of_stage(stem, Stage::Resolve))?;
        relocate::relocate(&file, &layout, &resolved, &mut memory, arena.is_low())
            .map_err(LoadError::of_stage(stem, Stage::Relocate))?;
        let mut specialised = || -> Result<(), PrepareError> {
            let waiting = Waiting::of(&file, &layout, &memory, policy.rewriting.profile)?;
            let mut code = Ledger::new(&mut memory);
            specialise::specialise(&file, &layout, &mut code, &policy.rewriting, &waiting)?;
            Slices::of(&waiting, &file, &layout, &resolved, &code, &policy.rewriting).map(|_| ())
        };
        specialised().map_err(LoadError::of_stage(stem, Stage::Specialise))?;
        let tables = ModuleTables::read(&file, &layout, &mut memory, &name, policy, shared, &resolved.elsewhere);
        tables.map(|_| ()).map_err(LoadError::of_stage(stem, Stage::Form))
    }
}
