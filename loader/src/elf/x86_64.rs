//! The machine of module files.
//!
//! Another processor has to provide its number in the ELF header, and the names of the other machines for errors.

use object::elf;

/// The machine of module files.
pub(crate) const MACHINE: elf::Machine = elf::EM_X86_64;

/// Names the machine, if users may confuse the machine with x86-64.
pub(crate) fn other_machine(machine: elf::Machine) -> &'static str {
    match machine {
        elf::EM_386 => "i386",
        elf::EM_AARCH64 => "AArch64",
        elf::EM_ARM => "ARM",
        elf::EM_RISCV => "RISC-V",
        elf::EM_PPC64 => "PowerPC64",
        elf::EM_S390 => "S/390",
        elf::EM_BPF => "BPF",
        _ => "for a machine that is not x86-64",
    }
}
