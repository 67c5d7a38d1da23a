//! Enables and disables patches, and patches modules that are loaded and unloaded: Linux's `kernel/livepatch/core.c`,
//! with its order and its wording.
//!
//! `transition` decides which threads migrate, and when. A file of this folder imports only from the files before it in
//! the list below.

mod complete;
mod worker;
mod enable;
mod disable;
mod going;
mod coming;

pub(crate) use coming::{module_coming, undo_coming};
pub(crate) use disable::{disable, force, reverse};
pub(crate) use enable::{WantedPatch, enable};
pub(crate) use going::{host_going, module_going, set_target_state};
pub(crate) use worker::keep_working;
