//! The module whose symbols are resolved, and where they are looked for.

use std::sync::Arc;

use crate::modules::registry::{ModuleId, Registry};
use crate::operate::judge::Judge;
use crate::prepare::vague::Shared;
use crate::vocabulary::externals::Externals;

/// Who asks, and whom.
#[derive(Clone, Copy)]
pub(crate) struct Scene<'a> {
    pub(crate) registry: &'static Registry,
    pub(crate) user: ModuleId,
    pub(crate) name: &'a Arc<str>,
    pub(crate) externals: &'a dyn Externals,
    pub(crate) judge: &'a Judge<'a>,
    pub(crate) absent: Absent,
    /// Which of its definitions the module shares with others.
    pub(crate) shared: Shared,
}

/// What is done about symbols that nobody has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Absent {
    Refused,
    /// They are taken to be in reach: for those who only want to see what would become of the module.
    Somewhere,
}
