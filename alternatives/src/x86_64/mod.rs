//! The engines of this crate for x86-64: nearly the whole crate, because each table exists for a property of the
//! processor.
//!
//! Another processor has to provide the engines for which Linux has code in its folder below `arch/`: the numbers of the
//! processor's features and how they are read ([`Features`]), the alternatives with the layout of their records
//! ([`alternatives`], [`Profile`]), and the instruction at the entry of a function that can be traced
//! ([`function_entries`]). An engine without an equivalent (lock prefixes, ENDBR, thunks) refuses its table.

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
pub use facts::{Facts, Processors, Returns, RewriteProblem};
pub use features::WORDS;
pub use retpoline::retpolines;
pub use returns::{return_at, returns};
pub use sites::{Boundaries, endbr_seals, function_entries, smp_locks};
