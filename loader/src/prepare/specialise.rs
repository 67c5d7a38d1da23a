//! Stage *specialise*: the engines rewrite code for the target machine, in a fixed order. [`crate::MemoryImage`] uses
//! the same engines with the facts of another machine.

use modload_abi::{Rela, section};
use modload_alternatives::{self as alternatives, Boundaries, Facts};
use modload_edit::{Addr, Code, EditOrigin, Engine, InstructionEffect, Ledger, ORDER, RecordTable, index, wide};
use modload_paravirt::{Direct, call_directly, paravirt};
use modload_relocs::RelocFormula;
use object::elf;

use crate::elf::error::ObjectError;
use crate::elf::file::{File, FileSymbol, Relas, SymbolPlace};
use crate::elf::sections::whole_records;
use crate::prepare::deferred::Waiting;
use crate::prepare::error::PrepareError;
use crate::prepare::layout::ModuleLayout;
use crate::prepare::memory::Staging;
use crate::prepare::x86_64::{THUNK, THUNKS};
use crate::vocabulary::rewriting::{HostOperations, Rewriting, TrampolineBranch, TrampolineCall, record_size};

/// The results of the engines.
#[derive(Default, Debug)]
pub(crate) struct Specialised {
    /// How many records each has followed.
    pub(crate) followed: Vec<(&'static str, u64)>,
    /// Calls of static calls' trampolines, if the file marks itself as having such.
    pub(crate) calls: Vec<TrampolineCall>,
}

/// The sections that request rewriting, and the engines for their records.
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
    layout: &ModuleLayout,
    code: &mut Ledger<'_, Staging>,
    rewriting: &Rewriting,
    waiting: &Waiting<'_>,
) -> Result<Specialised, PrepareError> {
    let mut specialised = Specialised::default();
    if let (Some(operations), Some((symbol, table))) = (&rewriting.host_operations, layout.operations) {
        let table = code.code().addr(table);
        let direct = call_operations(file, layout, symbol, table, operations, code)?;
        specialised.followed.push(("direct calls", direct));
    }
    if file.sections.iter().any(|section| section.name == section::STATIC_CALL_MARK.as_bytes()) {
        specialised.calls = trampoline_calls(file, layout, code);
    }
    let memory = code.code();
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
            whole_records(section, &[record_size(*engine, rewriting.profile)])?;
            tables.push((*engine, *name, RecordTable::of_section(index, at, size)));
        }
    }
    let facts = facts(layout, memory, rewriting);
    let has_entries = tables.iter().any(|(_, name, _)| *name == section::PATCHABLE_FUNCTION_ENTRIES);
    let boundaries = if has_entries { boundaries(file, layout, memory) } else { Boundaries::default() };
    for (engine, name, table) in in_order(&tables) {
        let mut followed = 0;
        for run in waiting.left(table, record_size(engine, rewriting.profile)) {
            followed += match engine {
                Engine::Fentry => entries(name, &run, &boundaries, code)?,
                _ => follow(engine, name, &run, text, &facts, rewriting, code)?,
            };
        }
        specialised.followed.push((name, followed));
    }
    Ok(specialised)
}

/// Runs the engine of function entries; returns the number of records.
fn entries(
    name: &'static str,
    table: &RecordTable,
    boundaries: &Boundaries,
    code: &mut Ledger<'_, Staging>,
) -> Result<u64, PrepareError> {
    let done = alternatives::function_entries(table, boundaries, code);
    done.map_err(|error| PrepareError::Rewrite { section: name, error: error.into() })?;
    Ok(u64::from(table.len(8)))
}

/// Returns all targets of references into the module's text: symbols, and relocations, including those of call frame
/// rows, but not those of the tables of function entries.
fn boundaries(file: &File<'_>, layout: &ModuleLayout, memory: &Staging) -> Boundaries {
    let text = |at: u32| layout.section(at).filter(|spot| spot.part.is_text()).map(|spot| memory.addr(spot));
    let start = |symbol: &FileSymbol<'_>| match symbol.place {
        SymbolPlace::Section(section) => Some(text(section)? + symbol.value),
        _ => None,
    };
    let (mut starts, mut others) = (Vec::new(), Vec::new());
    for (_, symbol) in file.symbols().skip(1).filter(|(_, symbol)| symbol.kind != elf::STT_SECTION) {
        let is_start = symbol.kind == elf::STT_FUNC || symbol.bind != elf::STB_LOCAL;
        if is_start { &mut starts } else { &mut others }.extend(start(&symbol));
    }
    let is_table = |relas: &Relas<'_>| {
        let tables = [section::PATCHABLE_FUNCTION_ENTRIES, section::MCOUNT_LOC].map(str::as_bytes);
        file.section(relas.target).is_some_and(|target| tables.contains(&target.name))
    };
    for relas in file.relas.iter().filter(|relas| !is_table(relas)) {
        let is_code = text(relas.target).is_some();
        // The only relocations of these rows against code are the starts of functions.
        let of_frames = file.section(relas.target).is_some_and(|target| target.name == section::EH_FRAME.as_bytes());
        for rela in relas.records.iter() {
            let Some(at) = file.symbol(rela.symbol).as_ref().and_then(start) else { continue };
            let value = modload_relocs::row(rela.kind).map(|row| row.value);
            // A branch is relative to the end of the instruction, and the operand of a branch is at the end.
            let is_branch =
                is_code && matches!(value, Some(RelocFormula::SymbolMinusPlace | RelocFormula::CallMinusPlace));
            let target = at.offset(rela.addend.saturating_add(if is_branch { 4 } else { 0 }));
            if of_frames { &mut starts } else { &mut others }.push(target);
        }
    }
    Boundaries::new(starts, &others)
}

/// Returns the facts of the machine, with the module's own thunks.
pub(crate) fn facts(layout: &ModuleLayout, memory: &Staging, rewriting: &Rewriting) -> Facts {
    let mut facts = rewriting.facts.clone();
    if let Some(thunks) = layout.thunks {
        let thunks = memory.addr(thunks);
        facts.indirect_thunks = Some(thunks);
        let compiled = thunks + THUNK * THUNKS;
        facts.returns.compiled = Some(compiled);
        facts.returns.thunk = facts.returns.thunk.or(Some(compiled));
    }
    facts
}

/// Makes calls through the host's operations table direct; the calls are found by their relocations. Returns the number
/// of such calls.
fn call_operations(
    file: &File<'_>,
    layout: &ModuleLayout,
    symbol: u32,
    table: Addr,
    operations: &HostOperations,
    code: &mut Ledger<'_, Staging>,
) -> Result<u64, PrepareError> {
    let mut direct = 0;
    for relas in &file.relas {
        let Some(spot) = layout.section(relas.target) else { continue };
        let section = code.code().addr(spot);
        for (record, rela) in (0..).zip(relas.records.iter()).filter(|(_, rela)| rela.symbol == symbol) {
            // The operand is mostly at the end of an instruction: the addend is 4 less than the distance in the table.
            let offset = match modload_relocs::row(rela.kind).map(|row| row.value) {
                Some(RelocFormula::SymbolMinusPlace | RelocFormula::CallMinusPlace) => rela.addend.checked_add(4),
                Some(RelocFormula::Symbol) => Some(rela.addend),
                _ => Some(0),
            };
            let entries = i64::try_from(operations.entries.len()).unwrap_or(i64::MAX);
            if offset.is_none_or(|offset| !(0..8 * entries).contains(&offset)) {
                let why = "it refers to an entry that the host's table does not have";
                return Err(ObjectError::Unsupported { what: "symbol", name: operations.symbol.clone(), why }.into());
            }
            if !spot.part.is_text() {
                continue;
            }
            // The target of the operand, for any relocation type.
            let operand = section + rela.offset;
            let Some(displacement) = code.bytes(operand, 4).and_then(|bytes| bytes.try_into().ok()) else { continue };
            let entry = (operand + 4).offset(i32::from_le_bytes(displacement).into());
            let number = entry.checked_offset_from(table).filter(|offset| offset.is_multiple_of(8));
            let target = number.and_then(|offset| operations.entries.get(index(offset / 8)));
            let Some(&target) = target.filter(|target| **target != Addr::NULL) else { continue };
            let why = EditOrigin { engine: Engine::Paravirt, section: relas.section, record };
            let done = call_directly(operand, target, why, code);
            let done = done.map_err(|error| PrepareError::Rewrite { section: section::TEXT, error: error.into() })?;
            direct += u64::from(done == Direct::Yes);
        }
    }
    Ok(direct)
}

/// Returns the calls of trampolines in a file without records of such calls. Instructions other than a plain call or
/// jump stay unchanged, and work through the trampoline.
fn trampoline_calls(file: &File<'_>, layout: &ModuleLayout, code: &Ledger<'_, Staging>) -> Vec<TrampolineCall> {
    let mut calls = Vec::new();
    for relas in &file.relas {
        let Some(spot) = layout.section(relas.target).filter(|spot| spot.part.is_text()) else { continue };
        let section = code.code().addr(spot);
        for (record, rela) in (0..).zip(relas.records.iter()) {
            let named = file.symbol(rela.symbol);
            let prefix = section::STATIC_CALL_TRAMPOLINE_PREFIX.as_bytes();
            if named.is_some_and(|symbol| symbol.name().starts_with(prefix)) {
                calls.extend(trampoline_call(section, relas.section, record, &rela, code));
            }
        }
    }
    calls
}

/// Returns the call that a relocation against a trampoline belongs to. `target` is the address of the relocated
/// section.
pub(crate) fn trampoline_call(
    target: Addr,
    section: u32,
    record: u32,
    rela: &Rela,
    code: &impl Code,
) -> Option<TrampolineCall> {
    let row = modload_relocs::row(rela.kind).map(|row| row.value);
    if !matches!(row, Some(RelocFormula::SymbolMinusPlace | RelocFormula::CallMinusPlace)) || rela.addend != -4 {
        return None;
    }
    let site = (target + rela.offset).offset(-1);
    let (trampoline, branch) = match InstructionEffect::of(site, code.text(site, 5)?)? {
        InstructionEffect::Call { to, .. } => (to, TrampolineBranch::Call),
        InstructionEffect::Jump(to) => (to, TrampolineBranch::Jump),
        _ => return None,
    };
    let why = EditOrigin { engine: Engine::StaticCall, section, record };
    Some(TrampolineCall { site, trampoline, branch, why })
}

/// Tables in the order in which the engines work.
pub(crate) fn in_order(
    tables: &[(Engine, &'static str, RecordTable)],
) -> impl Iterator<Item = (Engine, &'static str, RecordTable)> {
    ORDER.iter().flat_map(|(engine, _)| tables.iter().filter(move |(of, ..)| of == engine).copied())
}

/// Runs an engine on the records of a table; returns the number of records. `text` is the place of `.text`; `facts` are
/// those of `rewriting`, with the module's own thunks.
pub(crate) fn follow(
    engine: Engine,
    name: &'static str,
    table: &RecordTable,
    text: (Addr, u64),
    facts: &Facts,
    rewriting: &Rewriting,
    code: &mut impl Code,
) -> Result<u64, PrepareError> {
    let Rewriting { profile, operations, .. } = rewriting;
    let rewritten = |error| PrepareError::Rewrite { section: name, error };
    let records = Ok(u64::from(table.len(record_size(engine, *profile))));
    match engine {
        Engine::Paravirt => {
            paravirt(table, operations, code).map_err(|error| rewritten(error.into()))?;
            records
        }
        Engine::Retpoline => {
            alternatives::retpolines(table, facts, code).map_err(|error| rewritten(error.into()))?;
            records
        }
        Engine::Return => {
            alternatives::returns(table, facts, code).map_err(|error| rewritten(error.into()))?;
            records
        }
        Engine::Alternative => {
            alternatives::alternatives(table, *profile, facts, code).map_err(|error| rewritten(error.into()))?;
            records
        }
        Engine::Endbr => {
            alternatives::endbr_seals(table, code).map_err(|error| rewritten(error.into()))?;
            records
        }
        Engine::SmpLock => {
            alternatives::smp_locks(table, text, facts, code).map_err(|error| rewritten(error.into()))?;
            records
        }
        Engine::Fentry => {
            alternatives::function_entries(table, &Boundaries::default(), code)
                .map_err(|error| rewritten(error.into()))?;
            records
        }
        // Relocations are done. Static keys and calls belong to their subscriber. The others have no table.
        Engine::Relocation
        | Engine::Slot
        | Engine::Indirect
        | Engine::Sort
        | Engine::JumpLabel
        | Engine::StaticCall
        | Engine::Subscriber => Ok(0),
    }
}

/// Returns the sections and their engines.
pub(crate) fn tables() -> impl Iterator<Item = (Engine, &'static str)> {
    TABLES.iter().copied()
}
