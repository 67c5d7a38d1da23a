//! The operations of a host on modules: load, unload, check, explain, inspect, set a parameter.
//!
//! Owns the order of the stages, and the stages that need the registry: *admit*, *resolve*, *form*, *coming* and all
//! later ones. Imports all other tiers.

pub(crate) mod error;
pub(crate) mod load;
pub(crate) mod judge;
pub(crate) mod admit;
pub(crate) mod scene;
pub(crate) mod resolve;
pub(crate) mod elsewhere;
pub(crate) mod suggest;
pub(crate) mod form;
pub(crate) mod announced;
pub(crate) mod onlooker;
pub(crate) mod leave;
pub(crate) mod unload;
pub(crate) mod set_param;
pub(crate) mod check;
pub(crate) mod explain;
pub(crate) mod inspect;
