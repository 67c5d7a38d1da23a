//! The registers of the code that is running.

use super::registers::{Register, Registers};

/// Returns the registers of the function that uses this macro, with an address within this function. A macro, because
/// the registers of a called function would not be the same.
macro_rules! registers_here {
    () => {{
        let mut values = [0_u64; 8];
        // SAFETY: stores eight registers into the array and changes nothing else. The address is one of this function, and
        // the registers are those at the address.
        unsafe {
            std::arch::asm!(
                "lea {scratch}, [rip]",
                "mov [{values}], {scratch}",
                "mov [{values} + 8], rsp",
                "mov [{values} + 16], rbp",
                "mov [{values} + 24], rbx",
                "mov [{values} + 32], r12",
                "mov [{values} + 40], r13",
                "mov [{values} + 48], r14",
                "mov [{values} + 56], r15",
                values = in(reg) &raw mut values,
                scratch = out(reg) _,
                options(nostack, preserves_flags)
            );
        }
        $crate::frames::x86_64::from_values(values)
    }};
}
pub(crate) use registers_here;

/// Returns registers from their values in the order rip, rsp, rbp, rbx, r12 to r15.
pub(crate) fn from_values(values: [u64; 8]) -> Registers {
    let order = [16, 7, 6, 3, 12, 13, 14, 15].map(|number| Register::ALL[number]);
    let here = order.into_iter().zip(values);
    here.fold(Registers::unknown(), |registers, (register, value)| registers.with(register, value))
}
