//! The inputs of symbol resolution: the module whose symbols are resolved, and the sources of addresses.

use std::sync::Arc;

use crate::modules::registry::Registry;
use crate::operate::judge::Judge;
use crate::prepare::vague::SharedDefinitions;
use crate::vocabulary::externals::{External, Externals, ModuleLibrary};
use crate::vocabulary::module_id::ModuleId;

/// The module to be resolved, and the sources of addresses.
#[derive(Clone, Copy)]
pub(crate) struct Scene<'a> {
    pub(crate) registry: &'static Registry,
    pub(crate) user: ModuleId,
    pub(crate) name: &'a Arc<str>,
    pub(crate) externals: &'a dyn Externals,
    pub(crate) judge: &'a Judge<'a>,
    /// Libraries that the module has asked for.
    pub(crate) libraries: &'a [Arc<dyn ModuleLibrary>],
    pub(crate) absent: Absent,
    /// The definitions that the module shares with others.
    pub(crate) shared: SharedDefinitions,
}

impl Scene<'_> {
    /// Returns a symbol of the process or of the module's libraries.
    pub(crate) fn of_process(&self, name: &[u8]) -> Option<External> {
        let of_libraries = || self.libraries.iter().find_map(|library| library.symbol(name));
        self.externals.fallback(name).or_else(of_libraries)
    }
}

/// The treatment of undefined symbols.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Absent {
    Refused,
    /// Undefined symbols count as within reach: for checks and explanations.
    Somewhere,
}
