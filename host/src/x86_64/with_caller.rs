//! Functions that pass on the return address of their caller.

/// Defines a function that continues in another function, with its caller's return address as an additional argument:
/// the argument of this number, counted from 1.
macro_rules! with_caller {
    ($name:ident, $number:tt, $next:ident) => {
        #[unsafe(naked)]
        unsafe extern "C-unwind" fn $name() {
            std::arch::naked_asm!(
                concat!("mov ", $crate::x86_64::argument_register!($number), ", [rsp]"),
                "jmp {next}",
                next = sym $next,
            )
        }
    };
}
pub(crate) use with_caller;

/// The register of an argument (psABI, 3.2.3).
macro_rules! argument_register {
    (2) => {
        "rsi"
    };
    (3) => {
        "rdx"
    };
    (4) => {
        "rcx"
    };
    (5) => {
        "r8"
    };
}
pub(crate) use argument_register;
