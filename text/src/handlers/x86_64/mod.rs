//! The trap of x86-64, and the registers of a thread that has hit it.
//!
//! Another processor has to provide: the effect of an instruction on the registers of a thread ([`emulate`]), the
//! address of the trap that a thread has hit, as the kernel reports it ([`trap_address`]), the address at which the
//! thread continues ([`resume_at`]), and instructions that contain the trap's bytes and are none ([`LONG_TRAP`]).

pub(crate) mod emulate;

use modload_edit::Addr;

pub(crate) use emulate::emulate;

/// `int $3` of two bytes, whose last byte is not the trap.
pub(crate) const LONG_TRAP: [u8; 2] = [0xcd, 0x03];

/// Returns the address of the trap that a thread has hit: INT3 is one byte long, and the saved rip is the address behind
/// it.
pub(crate) fn trap_address(registers: &libc::mcontext_t) -> Addr {
    Addr::new(registers.gregs[emulate::RIP].cast_unsigned()).offset(-1)
}

/// Makes a thread continue at an address.
pub(crate) fn resume_at(at: Addr, registers: &mut libc::mcontext_t) {
    registers.gregs[emulate::RIP] = at.get().cast_signed();
}
