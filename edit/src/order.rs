//! The order in which engines rewrite code, and the pairs of engines that may overwrite each other's bytes. Each rule
//! is written once, with its reason.

use crate::Engine;

/// The engines in the order in which they process a module, as in Linux's `module_finalize` and the steps that follow
/// it.
pub const ORDER: &[(Engine, &str)] = &[
    (Engine::Relocation, "all other engines read addresses that relocations write"),
    (
        Engine::Paravirt,
        "alternatives may replace a site that was a call through an operations table: paravirt goes first",
    ),
    (Engine::Retpoline, "alternatives may copy an indirect branch, which must be final before"),
    (Engine::Return, "alternatives may copy a return, which must be final before"),
    (Engine::Alternative, "the replacements are final now"),
    (Engine::Endbr, "alternatives may copy an ENDBR into a function"),
    (Engine::SmpLock, "alternatives may copy locked instructions"),
    (Engine::Sort, "no engine after this one reads the tables by position"),
    (Engine::Fentry, "tracing is the first subscriber of COMING"),
    (Engine::JumpLabel, "the subscriber of static keys follows tracing; their sites differ"),
    (Engine::StaticCall, "the same subscriber as static keys"),
    (Engine::Subscriber, "subscribers of the embedder follow the built-in subscribers"),
];

/// A pair of engines of which the later one may overwrite bytes that the earlier one wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Yields {
    /// The engine that wrote first.
    pub first: Engine,
    /// The engine that overwrites those bytes.
    pub then: Engine,
    /// Why this is correct.
    pub because: &'static str,
}

const fn row(first: Engine, then: Engine, because: &'static str) -> Yields {
    Yields { first, then, because }
}

/// All pairs of engines whose edits may overlap. An overlap of any other pair is an error.
pub const YIELDS: &[Yields] = &[
    row(Engine::Relocation, Engine::Paravirt, "the site's operand named the table; it is read and replaced"),
    row(Engine::Relocation, Engine::Retpoline, "the site's operand named the thunk; it is read and replaced"),
    row(Engine::Relocation, Engine::Return, "the site's operand named the return thunk; it is read and replaced"),
    row(Engine::Relocation, Engine::Alternative, "the site's operands are replaced together with their instruction"),
    row(Engine::Relocation, Engine::Sort, "records move together with their relocated fields"),
    row(Engine::Relocation, Engine::Fentry, "the site's operand named __fentry__; the call becomes a NOP"),
    row(Engine::Relocation, Engine::StaticCall, "the site's operand named the trampoline; it is replaced"),
    row(
        Engine::Paravirt,
        Engine::Alternative,
        "Linux's irq-flag sites: first a direct call, then the instruction itself",
    ),
    row(Engine::Retpoline, Engine::Alternative, "a site within code that an alternative replaces"),
    row(Engine::Return, Engine::Alternative, "a return within code that an alternative replaces"),
    row(
        Engine::Return,
        Engine::StaticCall,
        "a trampoline without a target is a return, until the static call has a target",
    ),
    row(Engine::Alternative, Engine::Alternative, "several records for one site: the last matching record applies"),
    row(Engine::Sort, Engine::Sort, "two tables that are sorted together"),
];

/// Returns whether `then` may overwrite bytes that `first` wrote.
#[must_use]
pub fn may_follow(first: Engine, then: Engine) -> bool {
    YIELDS.iter().any(|row| row.first == first && row.then == then)
}

#[cfg(test)]
mod tests {
    use super::{Engine, ORDER, YIELDS, may_follow};

    #[test]
    fn who_yields_works_before_who_follows() {
        let place = |engine: Engine| ORDER.iter().position(|(known, _)| *known == engine).unwrap();
        for row in YIELDS {
            assert!(place(row.first) <= place(row.then), "{row:?}");
        }
    }

    #[test]
    fn a_late_relocation_may_not_land_on_a_rewritten_site() {
        for engine in [Engine::Paravirt, Engine::Alternative, Engine::Retpoline, Engine::JumpLabel] {
            assert!(!may_follow(engine, Engine::Relocation), "{engine}");
        }
    }
}
