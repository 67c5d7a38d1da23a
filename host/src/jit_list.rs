//! The list of symbol files that gdb knows by the name `__jit_debug_descriptor`, and the function on which it has its
//! breakpoint.
//!
//! Both symbols are weak: whatever else in the program has them as well (LLVM's JIT, say) shares the list, as the
//! interface means it to be, if it is linked statically. A shared library has a list of its own then, and gdb follows
//! both, from version 11 on. Each part of the program keeps the others' entries linked, but the interface has no lock:
//! two that change one list at the same time, from two threads, spoil it. Ours is changed under a lock (`onlookers.rs`).
#![expect(unsafe_code, reason = "gdb reads a linked list of C structures")]

use std::collections::BTreeMap;
use std::ptr;

use modload_edit::wide;

// The interface's two symbols. The function must not be inlined, and each call must be seen: so it is not Rust's.
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
    static mut __jit_debug_descriptor: Descriptor;
    fn __jit_debug_register_code();
}

/// `struct jit_descriptor`.
#[repr(C)]
struct Descriptor {
    version: u32,
    /// What has happened to `relevant`: 0 nothing, 1 it is new, 2 it goes.
    action: u32,
    relevant: *mut Entry,
    first: *mut Entry,
}

const REGISTER: u32 = 1;
const UNREGISTER: u32 = 2;

/// `struct jit_code_entry`.
#[repr(C)]
#[derive(Debug)]
struct Entry {
    next: *mut Entry,
    prev: *mut Entry,
    file: *const u8,
    size: u64,
}

/// A symbol file that gdb knows.
#[derive(Debug)]
struct Registered {
    /// From a `Box`; in gdb's list.
    entry: *mut Entry,
    /// From a `Box`; what the entry points to.
    file: *mut [u8],
}

// SAFETY: both are owned, and nobody else writes to them.
unsafe impl Send for Registered {}

/// The symbol files that are registered, by number. There is one list in the process, and who has it may change gdb's.
#[derive(Debug)]
pub(crate) struct List {
    registered: BTreeMap<u64, Registered>,
    next: u64,
}

impl List {
    pub(crate) const fn new() -> List {
        List { registered: BTreeMap::new(), next: 0 }
    }

    /// Registers a symbol file; returns its number. gdb's list has it in front, so that this takes the same time however
    /// many there are.
    pub(crate) fn add(&mut self, file: Box<[u8]>) -> u64 {
        let size = wide(file.len());
        let file = Box::into_raw(file);
        let entry = Entry { next: ptr::null_mut(), prev: ptr::null_mut(), file: file.cast_const().cast(), size };
        let entry = Box::into_raw(Box::new(entry));
        self.push(entry);
        let number = self.next;
        self.next += 1;
        self.registered.insert(number, Registered { entry, file });
        number
    }

    /// Takes a symbol file out; `false` if it is not there.
    pub(crate) fn remove(&mut self, number: u64) -> bool {
        let Some(Registered { entry, file }) = self.registered.remove(&number) else { return false };
        self.take(entry);
        // SAFETY: it came from a box, and is in no list any more.
        drop(unsafe { Box::from_raw(entry) });
        // SAFETY: it came from a box, and the entry that pointed to it is gone.
        drop(unsafe { Box::from_raw(file) });
        true
    }

    fn descriptor() -> *mut Descriptor {
        &raw mut __jit_debug_descriptor
    }

    /// Puts an entry in front, and tells gdb.
    fn push(&mut self, entry: *mut Entry) {
        let descriptor = List::descriptor();
        // SAFETY: the descriptor is a static of this layout, and whoever has the list may read it.
        let first = unsafe { (*descriptor).first };
        // SAFETY: the entry is the caller's, and not in the list yet.
        unsafe { (*entry).next = first };
        if !first.is_null() {
            // SAFETY: what is in the list lives.
            unsafe { (*first).prev = entry };
        }
        // SAFETY: as above.
        unsafe { (*descriptor).first = entry };
        self.tell(REGISTER, entry);
    }

    /// Takes an entry out, and tells gdb.
    fn take(&mut self, entry: *mut Entry) {
        // SAFETY: the entry lives and is in the list.
        let next = unsafe { (*entry).next };
        // SAFETY: as above.
        let prev = unsafe { (*entry).prev };
        if !next.is_null() {
            // SAFETY: what is in the list lives.
            unsafe { (*next).prev = prev };
        }
        if prev.is_null() {
            // SAFETY: the descriptor is a static of this layout, and we have the list.
            unsafe { (*List::descriptor()).first = next };
        } else {
            // SAFETY: what is in the list lives.
            unsafe { (*prev).next = next };
        }
        self.tell(UNREGISTER, entry);
    }

    /// gdb stops at the function's first instruction and looks at the descriptor.
    fn tell(&mut self, action: u32, entry: *mut Entry) {
        let descriptor = List::descriptor();
        // SAFETY: the descriptor is a static of this layout, and we have the list.
        unsafe { (*descriptor).relevant = entry };
        // SAFETY: as above.
        unsafe { (*descriptor).action = action };
        // SAFETY: it does nothing.
        unsafe { __jit_debug_register_code() };
        // SAFETY: as above. Who attaches later must not take it for news.
        unsafe { (*descriptor).action = 0 };
        // SAFETY: as above.
        unsafe { (*descriptor).relevant = ptr::null_mut() };
    }
}
