//! The terms that all other tiers use: stages, states, and small types.
//!
//! Owns types that need nothing else of this crate: the stages of a load, the states of a module, facts about a
//! machine, a module's entry points, data of onlookers, and some errors. Imports no other tier.

pub(crate) mod stage;
pub(crate) mod module_id;
pub(crate) mod state;
pub(crate) mod escape;
pub(crate) mod rewriting;
pub(crate) mod functions;
pub(crate) mod externals;
pub(crate) mod kept;
pub(crate) mod occupant;
pub(crate) mod left;
pub(crate) mod param_error;
pub(crate) mod deferred_error;
pub(crate) mod sentence;
