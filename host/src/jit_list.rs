//! The list of symbol files that gdb finds by the symbol `__jit_debug_descriptor`, and the function on which gdb sets
//! its breakpoint.
//!
//! Both symbols are weak. If other code that is linked statically into the program defines them too (for example LLVM's
//! JIT), both share one list, as the interface intends. A shared library has a list of its own; gdb follows both lists
//! since version 11. Each user of a list keeps the entries of others linked. But the interface has no lock: two threads
//! that change one list at the same time destroy it. This crate changes the list under a lock (`onlookers.rs`).
#![expect(unsafe_code, reason = "gdb reads a linked list of C structures")]

use std::collections::BTreeMap;
use std::ptr;

use modload_edit::wide;

// The two symbols of the interface. The function must not be inlined and no call of it may be removed, so it is not
// written in Rust.
std::arch::global_asm!(
    ".pushsection .text.__jit_debug_register_code, \"ax\", @progbits",
    ".weak __jit_debug_register_code",
    ".type __jit_debug_register_code, @function",
    "__jit_debug_register_code:",
    ".cfi_startproc",
    "ret",
    ".cfi_endproc",
    ".size __jit_debug_register_code, . - __jit_debug_register_code",
    ".popsection",
    ".pushsection .data.__jit_debug_descriptor, \"aw\", @progbits",
    ".weak __jit_debug_descriptor",
    ".type __jit_debug_descriptor, @object",
    ".balign 8",
    "__jit_debug_descriptor:",
    ".long 1", // version
    ".long 0", // action_flag
    ".quad 0", // relevant_entry
    ".quad 0", // first_entry
    ".size __jit_debug_descriptor, 24",
    ".popsection",
);

unsafe extern "C" {
    static mut __jit_debug_descriptor: JitDescriptor;
    fn __jit_debug_register_code();
}

/// `struct jit_descriptor`.
#[repr(C)]
struct JitDescriptor {
    version: u32,
    /// The change of `relevant`: 0 none, 1 registered, 2 unregistered.
    action: u32,
    relevant: *mut JitEntry,
    first: *mut JitEntry,
}

const REGISTER: u32 = 1;
const UNREGISTER: u32 = 2;

/// `struct jit_code_entry`.
#[repr(C)]
#[derive(Debug)]
struct JitEntry {
    next: *mut JitEntry,
    prev: *mut JitEntry,
    file: *const u8,
    size: u64,
}

/// A registered symbol file.
#[derive(Debug)]
struct RegisteredFile {
    /// From a `Box`. Linked in gdb's list.
    entry: *mut JitEntry,
    /// From a `Box`. The entry points to it.
    file: *mut [u8],
}

// SAFETY: this value owns both, and no other code writes to them.
unsafe impl Send for RegisteredFile {}

/// The registered symbol files, by number. There is one such list in the process, and its owner may change gdb's list.
#[derive(Debug)]
pub(crate) struct SymbolFileList {
    registered: BTreeMap<u64, RegisteredFile>,
    next: u64,
}

impl SymbolFileList {
    pub(crate) const fn new() -> SymbolFileList {
        SymbolFileList { registered: BTreeMap::new(), next: 0 }
    }

    /// Registers a symbol file. Returns its number. The entry becomes the first of gdb's list, so that the time does
    /// not depend on the length of the list.
    pub(crate) fn add(&mut self, file: Box<[u8]>) -> u64 {
        let size = wide(file.len());
        let file = Box::into_raw(file);
        let entry = JitEntry { next: ptr::null_mut(), prev: ptr::null_mut(), file: file.cast_const().cast(), size };
        let entry = Box::into_raw(Box::new(entry));
        self.push(entry);
        let number = self.next;
        self.next += 1;
        self.registered.insert(number, RegisteredFile { entry, file });
        number
    }

    /// Removes a symbol file. Returns `false` if the file is not registered.
    pub(crate) fn remove(&mut self, number: u64) -> bool {
        let Some(RegisteredFile { entry, file }) = self.registered.remove(&number) else { return false };
        self.take(entry);
        // SAFETY: the entry came from a box, and is in no list any more.
        drop(unsafe { Box::from_raw(entry) });
        // SAFETY: the file came from a box, and the entry that pointed to it is gone.
        drop(unsafe { Box::from_raw(file) });
        true
    }

    fn descriptor() -> *mut JitDescriptor {
        &raw mut __jit_debug_descriptor
    }

    /// Links an entry as the first one, and notifies gdb.
    fn push(&mut self, entry: *mut JitEntry) {
        let descriptor = SymbolFileList::descriptor();
        // SAFETY: the descriptor is a static of this layout, and the owner of `self` may read it.
        let first = unsafe { (*descriptor).first };
        // SAFETY: the entry belongs to the caller, and is not in the list yet.
        unsafe { (*entry).next = first };
        if !first.is_null() {
            // SAFETY: entries in the list are alive.
            unsafe { (*first).prev = entry };
        }
        // SAFETY: as above.
        unsafe { (*descriptor).first = entry };
        self.tell(REGISTER, entry);
    }

    /// Unlinks an entry, and notifies gdb.
    fn take(&mut self, entry: *mut JitEntry) {
        // SAFETY: the entry is alive and in the list.
        let next = unsafe { (*entry).next };
        // SAFETY: as above.
        let prev = unsafe { (*entry).prev };
        if !next.is_null() {
            // SAFETY: entries in the list are alive.
            unsafe { (*next).prev = prev };
        }
        if prev.is_null() {
            // SAFETY: the descriptor is a static of this layout, and this thread owns the list.
            unsafe { (*SymbolFileList::descriptor()).first = next };
        } else {
            // SAFETY: entries in the list are alive.
            unsafe { (*prev).next = next };
        }
        self.tell(UNREGISTER, entry);
    }

    /// Notifies gdb, which stops at the function's first instruction and reads the descriptor.
    fn tell(&mut self, action: u32, entry: *mut JitEntry) {
        let descriptor = SymbolFileList::descriptor();
        // SAFETY: the descriptor is a static of this layout, and this thread owns the list.
        unsafe { (*descriptor).relevant = entry };
        // SAFETY: as above.
        unsafe { (*descriptor).action = action };
        // SAFETY: the function does nothing.
        unsafe { __jit_debug_register_code() };
        // SAFETY: as above. A debugger that attaches later must not take this action for a new one.
        unsafe { (*descriptor).action = 0 };
        // SAFETY: as above.
        unsafe { (*descriptor).relevant = ptr::null_mut() };
    }
}
