//! The general registers of a thread at a function's entry.

use modload_edit::Addr;

/// The general registers of a thread at a function's entry. The registers are read-only. A tracer may only change where
/// the function continues ([`crate::Redirect`]).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "their names say it")]
pub struct CallRegisters {
    pub flags: u64,
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbx: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    set: u64,
    pub rax: u64,
    /// The value that the stub has loaded: free at a function's entry.
    function: u64,
    pub rbp: u64,
    target: u64,
    parent: u64,
}

impl CallRegisters {
    /// Returns the stack pointer at the function's entry: the address of the function's return address.
    #[must_use]
    pub fn rsp(&self) -> Addr {
        Addr::new(modload_edit::wide((&raw const self.parent).addr()))
    }
}
