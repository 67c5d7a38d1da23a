//! The words in which all other files speak of modules: stages, states, errors, and small types that hold facts.
//!
//! Owns types that need nothing of this crate: the stages of a load, the states of a module, the reasons of failures, the facts about
//! a machine, a module's entry points, what an onlooker keeps. Imports no other tier.

pub(crate) mod error;
pub(crate) mod left;
