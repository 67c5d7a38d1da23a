//! The core-serialising instruction of x86-64.
//!
//! Another processor has to provide an instruction after which a core executes changed code ([`serialise_core`]), and,
//! if its caches of data and of instructions are not coherent, the cleaning of both before that.

use std::arch::x86_64::__cpuid;

/// Makes this core discard the instructions that it has prefetched (SDM 3, 9.3 "Serializing Instructions").
pub(crate) fn serialise_core() {
    __cpuid(0);
}
