//! Stage *specialise*: code is made for the machine it will run on, by the engines in their order. The same engines,
//! with another machine's facts, are behind [`crate::MemoryImage`].

use modload_abi::section;
use modload_alternatives::{self as alternatives, Facts, Profile};
use modload_edit::{Addr, Code, Engine, Ledger, ORDER, Table, wide};
use modload_paravirt::{Operations, paravirt};

use crate::error::Error;
use crate::file::File;
use crate::layout::{Layout, THUNK, THUNKS};
use crate::memory::Staging;

/// What code is made for.
#[derive(Clone, Debug)]
pub struct Rewriting {
    /// The machine.
    pub facts: Facts,
    /// The layout of `.altinstructions`.
    pub profile: Profile,
    /// What becomes of calls through an operations table.
    pub operations: Operations,
}

impl Default for Rewriting {
    /// This machine; calls through tables stay.
    fn default() -> Rewriting {
        Rewriting { facts: Facts::of_this_machine(), profile: Profile::default(), operations: Operations::default() }
    }
}

/// How many records each engine has followed.
#[derive(Clone, Default, Debug)]
pub(crate) struct Specialised(pub(crate) Vec<(&'static str, u64)>);

/// The sections by which a module asks for rewriting, and who follows their records.
const TABLES: &[(Engine, &str)] = &[
    (Engine::Paravirt, section::PARAINSTRUCTIONS),
    (Engine::Retpoline, section::RETPOLINE_SITES),
    (Engine::Return, section::RETURN_SITES),
    (Engine::Alternative, section::ALTINSTRUCTIONS),
    (Engine::Endbr, section::IBT_ENDBR_SEAL),
    (Engine::SmpLock, section::SMP_LOCKS),
    (Engine::Fentry, section::MCOUNT_LOC),
    (Engine::Fentry, section::PATCHABLE_FUNCTION_ENTRIES),
];

/// Rewrites a module's staged text.
pub(crate) fn specialise(
    file: &File<'_>,
    layout: &Layout,
    code: &mut Ledger<'_, Staging>,
    rewriting: &Rewriting,
) -> Result<Specialised, Error> {
    let memory = code.code();
    let mut specialised = Specialised::default();
    let asks = |name: &[u8]| TABLES.iter().any(|(_, table)| name == table.as_bytes());
    if !file.sections.iter().any(|section| section.kept && asks(section.name)) {
        return Ok(specialised);
    }
    let mut tables = Vec::new();
    let mut text = (Addr::NULL, 0);
    for (index, (section, spot)) in (0..).zip(file.sections.iter().zip(&layout.sections)) {
        let Some(spot) = *spot else { continue };
        let (at, size) = (memory.addr(spot), wide(section.data.len()));
        if section.name == section::TEXT.as_bytes() {
            text = (at, size);
        }
        if let Some((engine, name)) = TABLES.iter().find(|(_, table)| section.name == table.as_bytes()) {
            tables.push((*engine, *name, Table { section: index, at, size }));
        }
    }
    let mut facts = rewriting.facts.clone();
    if let Some(thunks) = layout.thunks {
        let thunks = memory.addr(thunks);
        facts.indirect_thunks = Some(thunks);
        let compiled = thunks + THUNK * THUNKS;
        facts.returns.compiled = Some(compiled);
        facts.returns.thunk = facts.returns.thunk.or(Some(compiled));
    }
    let rewriting = Rewriting { facts, ..rewriting.clone() };
    for (engine, name, table) in in_order(&tables) {
        let followed = follow(engine, name, &table, text, &rewriting, code)?;
        specialised.0.push((name, followed));
    }
    Ok(specialised)
}

/// Tables in the order in which the engines work.
pub(crate) fn in_order(
    tables: &[(Engine, &'static str, Table)],
) -> impl Iterator<Item = (Engine, &'static str, Table)> {
    ORDER.iter().flat_map(|(engine, _)| tables.iter().filter(move |(of, ..)| of == engine).copied())
}

/// Has an engine follow the records of a table; says how many there were. `text` is where `.text` stands.
pub(crate) fn follow(
    engine: Engine,
    name: &'static str,
    table: &Table,
    text: (Addr, u64),
    rewriting: &Rewriting,
    code: &mut impl Code,
) -> Result<u64, Error> {
    let Rewriting { facts, profile, operations } = rewriting;
    let rewritten = |error| Error::Rewrite { section: name, error };
    let records = |size| Ok(u64::from(table.len(size)));
    match engine {
        Engine::Paravirt => {
            paravirt(table, operations, code).map_err(|error| rewritten(error.into()))?;
            records(16)
        }
        Engine::Retpoline => {
            alternatives::retpolines(table, facts, code).map_err(|error| rewritten(error.into()))?;
            records(4)
        }
        Engine::Return => {
            alternatives::returns(table, facts, code).map_err(|error| rewritten(error.into()))?;
            records(4)
        }
        Engine::Alternative => {
            alternatives::alternatives(table, *profile, facts, code).map_err(|error| rewritten(error.into()))?;
            records(profile.record_size())
        }
        Engine::Endbr => {
            alternatives::endbr_seals(table, code).map_err(|error| rewritten(error.into()))?;
            records(4)
        }
        Engine::SmpLock => {
            alternatives::smp_locks(table, text, facts, code).map_err(|error| rewritten(error.into()))?;
            records(4)
        }
        Engine::Fentry => {
            alternatives::function_entries(table, code).map_err(|error| rewritten(error.into()))?;
            records(8)
        }
        // Relocations are done; keys and calls are for those who know them; the rest has no table.
        Engine::Relocation
        | Engine::Slot
        | Engine::Indirect
        | Engine::Sort
        | Engine::JumpLabel
        | Engine::StaticCall => Ok(0),
    }
}

/// The sections and their engines, for those who look only.
pub(crate) fn tables() -> impl Iterator<Item = (Engine, &'static str)> {
    TABLES.iter().copied()
}
