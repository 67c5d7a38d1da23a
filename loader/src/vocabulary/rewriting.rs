//! What code is made for: facts about a machine and a host, and what the engines find in a module.

use modload_alternatives::{Facts, Profile};
use modload_edit::{Addr, EditOrigin, Engine};
use modload_paravirt::Operations;

/// What code is made for.
#[derive(Clone, Debug)]
pub struct Rewriting {
    /// The machine.
    pub facts: Facts,
    /// The layout of `.altinstructions`.
    pub profile: Profile,
    /// What becomes of calls through an operations table that records tell of.
    pub operations: Operations,
    /// The host's own operations table, if it has one.
    pub host_operations: Option<HostOperations>,
}

/// A table of functions that a host offers to its modules. A call through an entry (`call *table+8*N(%rip)`, which is
/// what compilers make of `table.function()`) becomes a direct call where the function is in reach.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostOperations {
    /// The table's name.
    pub symbol: String,
    /// Its functions.
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

/// A call of a static call's trampoline, known by its relocation: what `objtool` would have made a record of
/// `.static_call_sites`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrampolineCall {
    /// The instruction.
    pub site: Addr,
    /// Where it leads.
    pub trampoline: Addr,
    /// What it is.
    pub branch: Branch,
    /// The relocation.
    pub why: EditOrigin,
}

/// How a trampoline is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Branch {
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
