//! The target of code rewriting: facts about a machine and a host; and calls that the engines have found in a module.

use modload_alternatives::{Facts, Profile};
use modload_edit::{Addr, EditOrigin, Engine};
use modload_paravirt::Operations;

/// The target of code rewriting.
#[derive(Clone, Debug)]
pub struct Rewriting {
    /// The machine.
    pub facts: Facts,
    /// The layout of `.altinstructions`.
    pub profile: Profile,
    /// The replacement of calls through an operations table that have records.
    pub operations: Operations,
    /// The host's own operations table, if there is one.
    pub host_operations: Option<HostOperations>,
}

/// A table of functions that a host offers to modules. A call through an entry (`call *table+8*N(%rip)`, which
/// compilers emit for `table.function()`) becomes a direct call if the function is in reach.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostOperations {
    /// The table's name.
    pub symbol: String,
    /// The functions of the table.
    pub entries: Vec<Addr>,
}

impl Default for Rewriting {
    /// This machine; calls through tables stay.
    fn default() -> Rewriting {
        Rewriting {
            facts: Facts::of_this_machine(),
            profile: Profile::default(),
            operations: Operations::default(),
            host_operations: None,
        }
    }
}

/// A call of a static call's trampoline, found by the relocation of the call: equivalent to a record of
/// `.static_call_sites` as written by `objtool`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrampolineCall {
    /// The instruction.
    pub site: Addr,
    /// The target of the call.
    pub trampoline: Addr,
    /// The kind of the call.
    pub branch: TrampolineBranch,
    /// The relocation.
    pub why: EditOrigin,
}

/// How a trampoline is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrampolineBranch {
    /// `call`.
    Call,
    /// `jmp`: a tail call.
    Jump,
}

/// The size of the records that an engine follows.
pub(crate) fn record_size(engine: Engine, profile: Profile) -> u64 {
    match engine {
        Engine::Paravirt | Engine::JumpLabel => 16,
        Engine::Fentry | Engine::StaticCall => 8,
        Engine::Alternative => profile.record_size(),
        _ => 4,
    }
}
