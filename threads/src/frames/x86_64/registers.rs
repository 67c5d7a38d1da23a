//! The general registers of a frame, by their DWARF numbers, as far as they are known.

use std::fmt;

/// A general register or the return address, by its DWARF number (x86-64 psABI, figure 3.36).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Register(u8);

const NAMES: [&str; COUNT] = [
    "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip",
];

/// The number of registers.
const COUNT: usize = 17;

impl Register {
    /// The base register of some frames.
    pub const RBP: Register = Register(6);
    /// A callee-saved register, as are r12 to r15.
    pub const RBX: Register = Register(3);
    /// The stack pointer.
    pub const RSP: Register = Register(7);
    /// The instruction pointer; in a row, the return address.
    pub const RIP: Register = Register(16);

    /// The register that holds the stack pointer.
    pub const STACK: Register = Register::RSP;
    /// The register whose rule in a row leads to the address at which the caller resumes.
    pub const RETURN: Register = Register::RIP;

    /// All registers, in the order of their numbers.
    pub const ALL: [Register; COUNT] = {
        let mut all = [Register(0); COUNT];
        let mut number = 0;
        let mut slot = 0;
        while slot < COUNT {
            all[slot] = Register(number);
            number += 1;
            slot += 1;
        }
        all
    };

    /// Returns the register of this number, if there is one.
    #[must_use]
    pub const fn numbered(number: u16) -> Option<Register> {
        let [low, high] = number.to_le_bytes();
        if high == 0 && low <= Register::RIP.0 { Some(Register(low)) } else { None }
    }

    /// Returns the DWARF number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Returns whether a function preserves the register (psABI, figure 3.4).
    #[must_use]
    pub const fn is_preserved(self) -> bool {
        matches!(self.0, 3 | 6 | 12..=15)
    }

    fn slot(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES[self.slot()])
    }
}

/// The values of a frame's registers, as far as they are known: in a caller's frame, mostly the registers that
/// functions preserve.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Registers {
    values: [u64; COUNT],
    /// One bit for each register that is known.
    known: u32,
}

impl Registers {
    /// Returns registers of which none is known.
    #[must_use]
    pub const fn unknown() -> Registers {
        Registers { values: [0; COUNT], known: 0 }
    }

    /// Returns the registers that a signal has interrupted, from the third argument of the handler.
    #[must_use]
    pub fn interrupted(context: &libc::ucontext_t) -> Registers {
        /// The index of each register in the kernel's `struct sigcontext`, in the order of DWARF numbers.
        const PLACES: [libc::c_int; COUNT] = [
            libc::REG_RAX,
            libc::REG_RDX,
            libc::REG_RCX,
            libc::REG_RBX,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_RBP,
            libc::REG_RSP,
            libc::REG_R8,
            libc::REG_R9,
            libc::REG_R10,
            libc::REG_R11,
            libc::REG_R12,
            libc::REG_R13,
            libc::REG_R14,
            libc::REG_R15,
            libc::REG_RIP,
        ];
        let mut registers = Registers::unknown();
        for (register, place) in Register::ALL.into_iter().zip(PLACES) {
            // The constants of the C library are small and positive, each below the array's length.
            let value = usize::try_from(place).ok().and_then(|place| context.uc_mcontext.gregs.get(place));
            if let Some(value) = value {
                registers.set(register, value.cast_unsigned());
            }
        }
        registers
    }

    /// Returns the value of a register, if it is known.
    #[must_use]
    pub fn get(&self, register: Register) -> Option<u64> {
        (self.known & 1 << register.0 != 0).then(|| self.values[register.slot()])
    }

    /// Records the value of a register.
    pub fn set(&mut self, register: Register, value: u64) {
        self.values[register.slot()] = value;
        self.known |= 1 << register.0;
    }

    /// Works like [`Registers::set`], for building a value.
    #[must_use]
    pub fn with(mut self, register: Register, value: u64) -> Registers {
        self.set(register, value);
        self
    }
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Register::ALL.into_iter().filter_map(|register| Some((register, self.get(register)?)));
        f.debug_map().entries(known.map(|(register, value)| (NAMES[register.slot()], value))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{Register, Registers};

    #[test]
    fn what_is_not_set_is_not_known() {
        let registers = Registers::unknown().with(Register::RSP, 16);
        assert_eq!((registers.get(Register::RSP), registers.get(Register::RIP)), (Some(16), None));
        assert_eq!(format!("{registers:?}"), r#"{"rsp": 16}"#);
    }

    #[test]
    fn numbers_are_those_of_the_psabi() {
        let preserved = Register::ALL.into_iter().filter(|register| register.is_preserved());
        let names: Vec<String> = preserved.map(|register| register.to_string()).collect();
        assert_eq!(names, ["rbx", "rbp", "r12", "r13", "r14", "r15"]);
        assert_eq!([Register::RSP, Register::RBP, Register::RIP].map(Register::number), [7, 6, 16]);
        assert_eq!((Register::numbered(16), Register::numbered(17)), (Some(Register::RIP), None));
        assert_eq!(Register::numbered(0x107), None);
    }
}
