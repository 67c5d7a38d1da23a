//! One edit, and the reason it carries.

use std::fmt;

use crate::{Addr, wide};

/// Which engine made an edit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Engine {
    /// A relocation of a `.rela` section.
    Relocation,
    /// A GOT slot or a PLT entry that the loader supplies.
    Slot,
    /// An indirect function's PLT entry, or the slot it jumps through.
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
    /// A table that is sorted where it stands.
    Sort,
    /// A record of `__mcount_loc` or `__patchable_function_entries`.
    Fentry,
    /// A record of `__jump_table`.
    JumpLabel,
    /// A record of `.static_call_sites`, or a trampoline.
    StaticCall,
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
        })
    }
}

/// Where an edit comes from: a record of a section of the module's file. Small and copied freely; the names are
/// looked up only when somebody asks for an explanation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Why {
    /// The engine that read the record.
    pub engine: Engine,
    /// Index of the section (in the module's section header table) that holds the record.
    pub section: u32,
    /// Index of the record in that section.
    pub record: u32,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of section {}", self.engine, self.record, self.section)
    }
}

/// At `at`, the bytes `old` become `new`. Both have the same length, which is not zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edit<'a> {
    /// Address of the first byte.
    pub at: Addr,
    /// What must stand there before.
    pub old: &'a [u8],
    /// What stands there afterwards.
    pub new: &'a [u8],
    /// Who wants it.
    pub why: Why,
}

impl Edit<'_> {
    /// The address behind the last byte.
    #[must_use]
    pub fn end(&self) -> Addr {
        self.at + wide(self.new.len())
    }
}

/// The edit that takes `edit` back: `old` and `new` change places.
impl std::ops::Not for Edit<'_> {
    type Output = Self;
    fn not(self) -> Self {
        Edit { old: self.new, new: self.old, ..self }
    }
}
