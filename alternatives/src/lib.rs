//! Adapts code to this machine: the tables in which Linux's modules list the sites, and pure functions that apply them.
//!
//! - [`Features`]: the features of a processor, with Linux's numbers. They come from this processor, or from a list of
//!   names or words.
//! - [`alternatives`]: applies `.altinstructions`. The layout of the records is a [`Profile`].
//! - [`retpolines`], [`returns`]: rewrite branches and returns through thunks, as the features require.
//! - [`endbr_seals`], [`smp_locks`], [`function_entries`]: remove ENDBRs that are not needed, remove lock prefixes on
//!   one processor, and replace calls of `__fentry__` by NOPs until the function is traced.
//! - [`Facts`]: all inputs besides the code.
//!
//! Each function takes a [`modload_edit::RecordTable`] and a [`modload_edit::Code`], which it reads and edits record by
//! record. Each fails with a [`modload_edit::PlanError`], which names the record and shows the bytes of its site.
//! [`modload_edit::ORDER`] is the order of the functions. The behaviour is that of Linux 6.1's
//! `arch/x86/kernel/alternative.c`.
//!
//! This crate never sees a pointer, a file or mapped memory.

#![forbid(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use x86_64::{
    Boundaries, Facts, Features, Processors, Profile, Returns, RewriteProblem, UnknownFeature, WORDS, alternatives,
    endbr_seals, function_entries, retpolines, return_at, returns, smp_locks,
};
