//! The inputs of symbol resolution: the module whose symbols are resolved, and the sources of addresses.

use std::sync::Arc;

use crate::modules::registry::Registry;
use crate::operate::judge::Judge;
use crate::prepare::vague::SharedDefinitions;
use crate::vocabulary::externals::Externals;
use crate::vocabulary::module_id::ModuleId;

/// The module to be resolved, and the sources of addresses.
#[derive(Clone, Copy)]
pub(crate) struct Scene<'a> {
    pub(crate) registry: &'static Registry,
    pub(crate) user: ModuleId,
    pub(crate) name: &'a Arc<str>,
    pub(crate) externals: &'a dyn Externals,
    pub(crate) judge: &'a Judge<'a>,
    pub(crate) absent: Absent,
    /// The definitions that the module shares with others.
    pub(crate) shared: SharedDefinitions,
}

/// The treatment of undefined symbols.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Absent {
    Refused,
    /// Undefined symbols count as within reach: for checks and explanations.
    Somewhere,
}
