//! An edit, and the record that it comes from.

use std::fmt;

use crate::{Addr, wide};

/// The engine that made an edit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Engine {
    /// A relocation of a `.rela` section.
    Relocation,
    /// A GOT slot or a PLT entry that the loader provides.
    Slot,
    /// The PLT entry of an indirect function, or the slot of this entry.
    Indirect,
    /// A record of `.parainstructions`.
    Paravirt,
    /// A record of `.retpoline_sites`.
    Retpoline,
    /// A record of `.return_sites`.
    Return,
    /// A record of `.altinstructions`.
    Alternative,
    /// A record of `.ibt_endbr_seal`.
    Endbr,
    /// A record of `.smp_locks`.
    SmpLock,
    /// A table that the loader sorts in place.
    Sort,
    /// A record of `__mcount_loc` or `__patchable_function_entries`.
    Fentry,
    /// A record of `__jump_table`.
    JumpLabel,
    /// A record of `.static_call_sites`, or a trampoline.
    StaticCall,
    /// A subscriber of the embedder. The section and the record of the edit's origin are numbers that the subscriber chooses.
    Subscriber,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::Relocation => "relocation",
            Engine::Slot => "slot",
            Engine::Indirect => "indirect function",
            Engine::Paravirt => "paravirt site",
            Engine::Retpoline => "retpoline site",
            Engine::Return => "return site",
            Engine::Alternative => "alternative",
            Engine::Endbr => "endbr seal",
            Engine::SmpLock => "lock prefix",
            Engine::Sort => "sorted record",
            Engine::Fentry => "function entry",
            Engine::JumpLabel => "jump label",
            Engine::StaticCall => "static call",
            Engine::Subscriber => "subscriber's edit",
        })
    }
}

/// The origin of an edit: a record in a section of the module's file. Small, and copied freely. Names are looked up
/// only when an explanation is needed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EditOrigin {
    /// The engine that read the record.
    pub engine: Engine,
    /// The index, in the module's section header table, of the section that holds the record.
    pub section: u32,
    /// The index of the record in that section.
    pub record: u32,
}

impl fmt::Display for EditOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of section {}", self.engine, self.record, self.section)
    }
}

/// Replaces the bytes `old` at `at` by the bytes `new`. Both have the same length, which is not zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edit<'a> {
    /// The address of the first byte.
    pub at: Addr,
    /// The bytes that must be present before the edit.
    pub old: &'a [u8],
    /// The bytes after the edit.
    pub new: &'a [u8],
    /// The record that the edit comes from.
    pub why: EditOrigin,
}

impl Edit<'_> {
    /// Returns the address after the last byte.
    #[must_use]
    pub fn end(&self) -> Addr {
        self.at + wide(self.new.len())
    }
}

/// Returns the inverse of an edit: `old` and `new` exchanged.
impl std::ops::Not for Edit<'_> {
    type Output = Self;
    fn not(self) -> Self {
        Edit { old: self.new, new: self.old, ..self }
    }
}
