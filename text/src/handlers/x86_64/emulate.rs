//! Applies the effect of an instruction to the registers of a thread that was stopped there. Async-signal-safe.

use modload_edit::{Addr, InstructionEffect};

use crate::address_space::pointer::pointer;

// Indexes in `gregs`: `enum` of <sys/ucontext.h>, which the `libc` crate declares as signed numbers.
pub(super) const RIP: usize = 16;
const RSP: usize = 15;
const RAX: usize = 13;
const FLAGS: usize = 17;

/// The arithmetic flags: CF, PF, AF, ZF, SF and OF.
const ARITHMETIC: i64 = 0x8d5;
/// ZF and PF: the flags that `xor` of a register with itself sets.
const ZERO_AND_PARITY: i64 = 0x44;

/// Gives a thread the effect of an instruction. Pushes and pops use the thread's own stack.
pub(crate) fn emulate(effect: InstructionEffect, registers: &mut libc::mcontext_t) {
    let registers = &mut registers.gregs;
    let rsp = Addr::new(registers[RSP].cast_unsigned());
    let (to, rsp) = match effect {
        InstructionEffect::Next(to) | InstructionEffect::Jump(to) => (to, rsp),
        InstructionEffect::JumpThrough(slot) => (read(slot), rsp),
        InstructionEffect::Call { to, back } => (to, push(rsp, back)),
        InstructionEffect::CallThrough { slot, back } => (read(slot), push(rsp, back)),
        InstructionEffect::Return => (read(rsp), rsp + 8),
        InstructionEffect::Zero(to) => {
            registers[RAX] = 0;
            registers[FLAGS] = registers[FLAGS] & !ARITHMETIC | ZERO_AND_PARITY;
            (to, rsp)
        }
    };
    registers[RSP] = rsp.get().cast_signed();
    registers[RIP] = to.get().cast_signed();
}

fn push(rsp: Addr, back: Addr) -> Addr {
    let rsp = rsp.offset(-8);
    // SAFETY: the emulated call writes the same eight bytes of the thread's stack.
    unsafe { pointer(rsp).cast::<u64>().write_unaligned(back.get()) };
    rsp
}

fn read(at: Addr) -> Addr {
    // SAFETY: the emulated instruction reads the same eight bytes.
    Addr::new(unsafe { pointer(at).cast::<u64>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    #[test]
    fn registers_are_where_the_c_library_has_them() {
        let named = [libc::REG_RIP, libc::REG_RSP, libc::REG_RAX, libc::REG_EFL];
        let used = [super::RIP, super::RSP, super::RAX, super::FLAGS];
        assert_eq!(named.map(|register| usize::try_from(register).unwrap()), used);
    }
}
