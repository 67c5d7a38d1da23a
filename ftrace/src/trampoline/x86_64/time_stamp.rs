//! The processor's time stamps.

use std::arch::x86_64::{__cpuid, _rdtsc};

/// Returns the processor's time stamp.
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: every x86-64 processor has this instruction, and Linux lets processes use it.
    unsafe { _rdtsc() }
}

/// Returns whether time stamps run evenly and equally on all processors (`CPUID.80000007H:EDX[8]`).
pub(crate) fn has_even_time_stamps() -> bool {
    __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & 1 << 8 != 0
}
