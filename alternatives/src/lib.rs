//! Code made for this machine: the tables by which Linux's modules ask for it, and pure functions that follow them.
//!
//! - [`Features`]: what a processor has, as Linux counts it; this one's, or another's by names or words.
//! - [`alternatives`]: `.altinstructions`. The layout of its records is a [`Profile`].
//! - [`retpolines`], [`returns`]: branches and returns through thunks, as the features want them.
//! - [`endbr_seals`], [`smp_locks`], [`function_entries`]: ENDBRs nobody needs, lock prefixes on one processor, calls of
//!   `__fentry__` that are NOPs until somebody looks.
//! - [`Facts`]: all that the result depends on besides the code.
//!
//! Each takes a [`modload_edit::Table`] and a [`modload_edit::Code`], which it reads and edits record by record, and
//! fails with a [`modload_edit::PlanError`] that names the record and shows what stands at its place. The order in which
//! they work is [`modload_edit::ORDER`]. Behaviour is that of Linux 6.1's `arch/x86/kernel/alternative.c`.
//!
//! This crate never sees a pointer, a file or mapped memory.

#![forbid(unsafe_code)]

mod features;
mod user_space;
mod cpu;
mod facts;
mod nops;
mod moved;
mod alternative;
mod retpoline;
mod returns;
mod sites;

pub use alternative::{Profile, alternatives};
pub use cpu::{Features, UnknownFeature};
pub use facts::{Facts, Problem, Processors, Returns};
pub use features::WORDS;
pub use retpoline::retpolines;
pub use returns::{return_at, returns};
pub use sites::{Boundaries, endbr_seals, function_entries, smp_locks};
