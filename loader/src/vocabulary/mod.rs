//! The words in which all other files speak of modules: stages, states, errors, and small types that hold facts.
//!
//! Owns types that need nothing of this crate: the stages of a load, the states of a module, the reasons of failures, the facts about
//! a machine, a module's entry points, what an onlooker keeps. Imports no other tier.

pub(crate) mod stage;
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
