//! Entry points of the functions that hosts export to modules. Kernel code aligns its stack to eight bytes only, but
//! the ABI and the host's own code require sixteen. An entry point aligns the stack and calls the function.
//!
//! Such a function has at most six arguments, all of them integers or pointers, so that no argument is on the stack.
#![expect(unsafe_code, reason = "code that aligns a stack has no type")]

use std::arch::global_asm;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use modload_edit::{Addr, wide};

/// The number of entry points. Each exported function occupies one for the lifetime of the process.
const ENTRIES: usize = 64;
/// The length of an entry point in bytes.
const ENTRY: usize = 32;

/// The functions that the entry points call.
static FUNCTIONS: [AtomicU64; ENTRIES] = [const { AtomicU64::new(0) }; ENTRIES];

global_asm!(
    r#"
    .pushsection .text.modload_aligned, "ax", @progbits
    .balign {entry}
    .hidden modload_aligned
    .globl modload_aligned
    .type modload_aligned, @function
modload_aligned:
    .set modload_aligned_number, 0
    .rept {entries}
    .balign {entry}
    .cfi_startproc
    endbr64
    push rbp
    .cfi_def_cfa_offset 16
    .cfi_offset rbp, -16
    mov rbp, rsp
    .cfi_def_cfa_register rbp
    and rsp, -16
    call qword ptr [rip + {functions} + 8 * modload_aligned_number]
    leave
    .cfi_def_cfa rsp, 8
    .cfi_restore rbp
    ret
    .cfi_endproc
    .set modload_aligned_number, modload_aligned_number + 1
    .endr
    .size modload_aligned, . - modload_aligned
    .popsection
"#,
    entry = const ENTRY,
    entries = const ENTRIES,
    functions = sym FUNCTIONS,
);

unsafe extern "C" {
    static modload_aligned: u8;
}

/// Returns the entry point of a function that is exported to modules. The same function always has the same entry
/// point.
///
/// # Panics
/// Panics if there are more functions than [`ENTRIES`]. Raise this number when a function is added.
pub(crate) fn entry(function: Addr) -> Addr {
    static TAKEN: Mutex<usize> = Mutex::new(0);
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = FUNCTIONS.iter().take(*taken).position(|known| known.load(Ordering::Relaxed) == function.get());
    let number = known.unwrap_or_else(|| {
        FUNCTIONS[*taken].store(function.get(), Ordering::Release);
        *taken += 1;
        *taken - 1
    });
    let first = (&raw const modload_aligned).expose_provenance();
    Addr::new(wide(first + number * ENTRY))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use modload_edit::{Addr, index};

    use super::{ENTRIES, ENTRY};

    /// Returns whether an address is that of an entry point.
    fn is_entry(at: Addr) -> bool {
        let offset = index(at.get()).wrapping_sub((&raw const super::modload_aligned).addr());
        offset < ENTRIES * ENTRY && offset.is_multiple_of(ENTRY)
    }

    #[test]
    fn every_export_has_an_entry_of_its_own_that_aligns() {
        let exports: Vec<_> = crate::c_api::exports().collect();
        // The subscribers of keys and of live patching export most of them.
        let least = if cfg!(feature = "livepatch") { 16 } else { 3 };
        assert!(exports.len() >= least && exports.len() < ENTRIES);
        for (name, at) in &exports {
            assert!(is_entry(*at), "{name}");
        }
        let entries: BTreeSet<_> = exports.iter().map(|(_, at)| *at).collect();
        assert_eq!(entries.len(), exports.len());
        assert_eq!(crate::c_api::exports().collect::<Vec<_>>(), exports, "they stay where they are");
        // SAFETY: the address is that of an entry point's code.
        let code = unsafe { (&raw const super::modload_aligned).cast::<[u8; ENTRY]>().read() };
        // endbr64; push %rbp; mov %rsp,%rbp; and $-16,%rsp; call *FUNCTIONS(%rip)
        assert_eq!(code[..14], [0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xe4, 0xf0, 0xff, 0x15]);
    }
}
