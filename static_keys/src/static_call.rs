//! `.static_call_sites`: calls of what a key's function is at the time.

use std::collections::BTreeSet;

use modload_abi::record::{Record, StaticCallSite};
use modload_alternatives::{Facts, return_at};
use modload_edit::{Addr, Code, Engine, NOPS, Table, Why, ZERO, refused, wide, write};
use modload_loader::{TrampolineBranch, TrampolineCall};

use crate::{Error, Problem};

/// What a key calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Nothing: `NULL`.
    Null,
    /// A function.
    Function(Addr),
    /// Not known: the site stays as it is.
    Unknown,
}

/// What the sites must know.
#[derive(Clone, Copy, Debug)]
pub struct StaticCalls<'a> {
    /// For returns at tail calls of nothing.
    pub facts: &'a Facts,
    /// The address of `__static_call_return0`: calls of it become a zero.
    pub return0: Option<Addr>,
}

/// What a site is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallKind {
    /// A call, or what stands for it.
    Call,
    /// A tail call, or what stands for it; trampolines, too.
    Tail,
}

/// A site that calls what its key says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallSite {
    /// Where it is.
    pub at: Addr,
    /// What it is.
    pub kind: CallKind,
    /// The record.
    pub why: Why,
    /// The address of the key, or of a trampoline if that is all the record has.
    pub key: Addr,
}

/// What stands behind a trampoline: ud1 %esp,%ecx.
pub(crate) const TRAMPOLINE: [u8; 3] = [0x0f, 0xb9, 0xcc];

const CALL: u8 = 0xe8;
const JUMP: u8 = 0xe9;
const RETURN: u8 = 0xc3;

/// Makes each site a direct call, jump, zero, NOP or return, as its key's target wants it. `target` is asked with the
/// address of a key, or of a trampoline if that is all the record has. Linux's `static_call_add_module` and
/// `arch_static_call_transform`.
///
/// # Errors
/// [`modload_edit::PlanError`]: the first record that cannot be followed.
pub fn static_calls<C: Code>(
    table: &Table,
    calls: StaticCalls<'_>,
    mut target: impl FnMut(Addr) -> Target,
    code: &mut C,
) -> Result<(), Error> {
    for number in table.numbers(wide(StaticCallSite::SIZE)) {
        let site = CallSite::read(table, number, code)?;
        set_site(&site, target(site.key), calls, code)?;
    }
    Ok(())
}

/// All sites of a table; what stands there has not been looked at.
///
/// # Errors
/// [`modload_edit::PlanError`]: the table ends within a record.
pub fn call_sites<C: Code>(table: &Table, code: &C) -> Result<Vec<CallSite>, Error> {
    table.numbers(wide(StaticCallSite::SIZE)).map(|number| CallSite::read(table, number, code)).collect()
}

/// Adds the calls of trampolines that no record tells of: a site each, by the trampoline.
pub(crate) fn add_unrecorded(sites: &mut Vec<CallSite>, calls: &[TrampolineCall]) {
    let recorded: BTreeSet<_> = sites.iter().map(|site| site.at).collect();
    let unrecorded = calls.iter().filter(|call| !recorded.contains(&call.site));
    sites.extend(unrecorded.map(|call| {
        let kind = if call.branch == TrampolineBranch::Call { CallKind::Call } else { CallKind::Tail };
        CallSite { at: call.site, kind, why: call.why, key: call.trampoline }
    }));
}

/// Makes one site what its key's target wants.
///
/// # Errors
/// [`modload_edit::PlanError`]: something else stands there.
pub fn set_site<C: Code>(site: &CallSite, target: Target, calls: StaticCalls<'_>, code: &mut C) -> Result<(), Error> {
    let &CallSite { at, kind, why, .. } = site;
    if target == Target::Unknown {
        return Ok(());
    }
    let new = is_site(at, kind, code).and_then(|()| call_code(at, kind, target, calls));
    let new = new.map_err(|problem| refused(code, why, at, 8, problem))?;
    Ok(write(code, at, &new, why)?)
}

/// Makes a trampoline lead to its key's target.
///
/// # Errors
/// [`modload_edit::PlanError`]: it is none.
pub fn trampoline<C: Code>(
    at: Addr,
    target: Target,
    calls: StaticCalls<'_>,
    why: Why,
    code: &mut C,
) -> Result<(), Error> {
    if target != Target::Unknown && code.text(at + 5, TRAMPOLINE.len()) != Some(&TRAMPOLINE) {
        return Err(refused(code, why, at, 8, Problem::OtherInstruction("a trampoline")));
    }
    set_site(&CallSite { at, kind: CallKind::Tail, why, key: Addr::NULL }, target, calls, code)
}

impl CallSite {
    fn read(table: &Table, number: u32, code: &impl Code) -> Result<CallSite, Error> {
        let why = Why { engine: Engine::StaticCall, section: table.section, record: number };
        let record = table.record::<{ StaticCallSite::SIZE }>(code, number);
        let (at, bytes) = record.ok_or_else(|| refused(code, why, table.at, 0, Problem::PartOfRecord))?;
        let record = StaticCallSite::read(&bytes);
        // The flags are the low bits of the sum, not of the distance: the table need not be aligned.
        let key = (at + 4).offset(record.key.into());
        let kind = if key.get() & 1 != 0 { CallKind::Tail } else { CallKind::Call };
        Ok(CallSite { at: at.offset(record.site.into()), kind, why, key: Addr::new(key.get() & !3) })
    }
}

/// Looks whether a site is one of the things that a static call is.
fn is_site(at: Addr, kind: CallKind, code: &impl Code) -> Result<(), Problem> {
    let site = code.text(at, 5).filter(|site| site.len() == 5).ok_or(Problem::SiteOutside)?;
    let known = match kind {
        CallKind::Call => site[0] == CALL || site == NOPS[4] || site == ZERO,
        CallKind::Tail => site[0] == JUMP || site[0] == RETURN,
    };
    if known {
        return Ok(());
    }
    Err(Problem::OtherInstruction(match kind {
        CallKind::Call => "a call, the NOP of 5 bytes or a zero",
        CallKind::Tail => "a jump or a return",
    }))
}

/// What stands at a site, or at a trampoline, whose key has this target. An unknown one is none.
///
/// # Errors
/// [`Problem`]: it is out of reach, or a return needs a thunk that is not known.
pub fn call_code(at: Addr, kind: CallKind, target: Target, calls: StaticCalls<'_>) -> Result<[u8; 5], Problem> {
    match (kind, target) {
        (CallKind::Call, Target::Function(function)) if Some(function) == calls.return0 => Ok(ZERO),
        (CallKind::Call, Target::Function(function)) => branch(CALL, at, function),
        (CallKind::Tail, Target::Function(function)) => branch(JUMP, at, function),
        (CallKind::Tail, _) => Ok(return_at(at, calls.facts)?),
        (CallKind::Call, _) => Ok([NOPS[4][0], NOPS[4][1], NOPS[4][2], NOPS[4][3], NOPS[4][4]]),
    }
}

fn branch(opcode: u8, at: Addr, to: Addr) -> Result<[u8; 5], Problem> {
    let distance = i32::try_from(to - (at + 5)).map_err(|_| Problem::OutOfReach(to))?;
    let [a, b, c, d] = distance.to_le_bytes();
    Ok([opcode, a, b, c, d])
}
