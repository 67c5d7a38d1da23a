//! In which order engines rewrite code, and who may write over whom. Each rule once, with its reason.

use crate::Engine;

/// The engines in the order in which they work on a module, as Linux's `module_finalize` and what follows it do.
pub const ORDER: &[(Engine, &str)] = &[
    (Engine::Relocation, "everything else reads addresses that only relocations make right"),
    (Engine::Paravirt, "alternatives may replace what was a call through an operations table: paravirt goes first"),
    (Engine::Retpoline, "alternatives may copy an indirect branch: what they copy is final"),
    (Engine::Return, "alternatives may copy a return: what they copy is final"),
    (Engine::Alternative, "its replacements are final by now"),
    (Engine::Endbr, "alternatives may bring in the beginning of a function"),
    (Engine::SmpLock, "alternatives may bring in locked instructions"),
    (Engine::Sort, "the tables are not read by position any more"),
    (Engine::Fentry, "tracing is the first subscriber of COMING"),
    (Engine::JumpLabel, "static keys come after tracing, whose sites are other ones"),
    (Engine::StaticCall, "with static keys"),
];

/// An engine whose bytes another one, which works later, may write over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Yields {
    /// Who wrote first.
    pub first: Engine,
    /// Who writes over it.
    pub then: Engine,
    /// Why that is right.
    pub because: &'static str,
}

const fn row(first: Engine, then: Engine, because: &'static str) -> Yields {
    Yields { first, then, because }
}

/// All that may overlap. Any other pair on the same bytes is an error.
pub const YIELDS: &[Yields] = &[
    row(Engine::Relocation, Engine::Paravirt, "the site's operand named the table; it is read and replaced"),
    row(Engine::Relocation, Engine::Retpoline, "the site's operand named the thunk; it is read and replaced"),
    row(Engine::Relocation, Engine::Return, "the site's operand named the return thunk; it is read and replaced"),
    row(Engine::Relocation, Engine::Alternative, "the site's own operands go with the instruction they belong to"),
    row(Engine::Relocation, Engine::Sort, "records move with what relocations wrote into them"),
    row(Engine::Relocation, Engine::Fentry, "the site's operand named __fentry__; nobody calls it"),
    row(Engine::Relocation, Engine::StaticCall, "the site's operand named the trampoline; it is replaced"),
    row(Engine::Paravirt, Engine::Alternative, "Linux's irq-flag sites: first a direct call, then the instruction"),
    row(Engine::Retpoline, Engine::Alternative, "a site within a place for which there is something better"),
    row(Engine::Return, Engine::Alternative, "a return within a place for which there is something better"),
    row(Engine::Return, Engine::StaticCall, "a trampoline without a target is a return, until it has one"),
    row(Engine::Alternative, Engine::Alternative, "several records for one place: a later one holds"),
    row(Engine::Sort, Engine::Sort, "two tables that are sorted together"),
];

/// Whether `then` may write over what `first` wrote.
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
