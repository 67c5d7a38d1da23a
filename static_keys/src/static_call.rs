//! `.static_call_sites`: calls of the function that a key currently holds.

use std::collections::BTreeSet;

use modload_abi::record::{FixedRecord, StaticCallSite};
use modload_alternatives::{Facts, return_at};
use modload_edit::{Addr, Code, EditOrigin, Engine, RecordTable, ZERO, encode_call, encode_jump, refused, wide, write};
use modload_loader::{TrampolineBranch, TrampolineCall};

use crate::problem::{KeyPlanError, KeySiteProblem};
use crate::x86_64::{CALL_LEN, CALL_NOP, TRAMPOLINE_MARK, is_call_form, is_tail_form};

/// The target of a static call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallTarget {
    /// No function: `NULL`.
    Null,
    /// A function.
    Function(Addr),
    /// The target is not known: sites stay unchanged.
    Unknown,
}

/// The inputs of sites.
#[derive(Clone, Copy, Debug)]
pub struct StaticCalls<'a> {
    /// For returns, which replace tail calls of no function.
    pub facts: &'a Facts,
    /// The address of `__static_call_return0`. Calls of this function become an instruction that zeroes the result.
    pub return0: Option<Addr>,
}

/// The kind of a site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallKind {
    /// A call, or its replacement.
    Call,
    /// A tail call, or its replacement. Trampolines are of this kind, too.
    Tail,
}

/// A site that calls the function of its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallSite {
    /// The address of the site.
    pub at: Addr,
    /// The kind of the site.
    pub kind: CallKind,
    /// The record.
    pub why: EditOrigin,
    /// The address of the key, or of a trampoline if the record names only that.
    pub key: Addr,
}

/// Makes each site a direct call, jump, zero, NOP or return, as the target of its key requires. `target` returns the
/// target for the address of a key, or of a trampoline if the record names only that. Linux's `static_call_add_module`
/// and `arch_static_call_transform`.
///
/// # Errors
/// [`modload_edit::PlanError`]: the first record that cannot be applied.
pub fn static_calls<C: Code>(
    table: &RecordTable,
    calls: StaticCalls<'_>,
    mut target: impl FnMut(Addr) -> CallTarget,
    code: &mut C,
) -> Result<(), KeyPlanError> {
    for number in table.numbers(wide(StaticCallSite::SIZE)) {
        let site = CallSite::read(table, number, code)?;
        set_site(&site, target(site.key), calls, code)?;
    }
    Ok(())
}

/// Returns all sites of a table. Does not check the bytes at the sites.
///
/// # Errors
/// [`modload_edit::PlanError`]: the table ends within a record.
pub fn call_sites<C: Code>(table: &RecordTable, code: &C) -> Result<Vec<CallSite>, KeyPlanError> {
    table.numbers(wide(StaticCallSite::SIZE)).map(|number| CallSite::read(table, number, code)).collect()
}

/// Adds a site for each call of a trampoline without a record. Its key is the trampoline.
pub(crate) fn add_unrecorded(sites: &mut Vec<CallSite>, calls: &[TrampolineCall]) {
    let recorded: BTreeSet<_> = sites.iter().map(|site| site.at).collect();
    let unrecorded = calls.iter().filter(|call| !recorded.contains(&call.site));
    sites.extend(unrecorded.map(|call| {
        let kind = if call.branch == TrampolineBranch::Call { CallKind::Call } else { CallKind::Tail };
        CallSite { at: call.site, kind, why: call.why, key: call.trampoline }
    }));
}

/// Writes one site as the target of its key requires.
///
/// # Errors
/// [`modload_edit::PlanError`]: the site has unexpected bytes.
pub fn set_site<C: Code>(
    site: &CallSite,
    target: CallTarget,
    calls: StaticCalls<'_>,
    code: &mut C,
) -> Result<(), KeyPlanError> {
    let &CallSite { at, kind, why, .. } = site;
    if target == CallTarget::Unknown {
        return Ok(());
    }
    let new = is_site(at, kind, code).and_then(|()| call_code(at, kind, target, calls));
    let new = new.map_err(|problem| refused(code, why, at, 8, problem))?;
    Ok(write(code, at, &new, why)?)
}

/// Makes a trampoline jump to the target of its key.
///
/// # Errors
/// [`modload_edit::PlanError`]: the bytes there are not a trampoline.
pub fn trampoline<C: Code>(
    at: Addr,
    target: CallTarget,
    calls: StaticCalls<'_>,
    why: EditOrigin,
    code: &mut C,
) -> Result<(), KeyPlanError> {
    if target != CallTarget::Unknown && code.text(at + wide(CALL_LEN), TRAMPOLINE_MARK.len()) != Some(&TRAMPOLINE_MARK)
    {
        return Err(refused(code, why, at, 8, KeySiteProblem::OtherInstruction("a trampoline")));
    }
    set_site(&CallSite { at, kind: CallKind::Tail, why, key: Addr::NULL }, target, calls, code)
}

impl CallSite {
    fn read(table: &RecordTable, number: u32, code: &impl Code) -> Result<CallSite, KeyPlanError> {
        let why = EditOrigin { engine: Engine::StaticCall, section: table.section, record: number };
        let record = table.record::<{ StaticCallSite::SIZE }>(code, number);
        let (at, bytes) = record.ok_or_else(|| refused(code, why, table.at, 0, KeySiteProblem::PartOfRecord))?;
        let record = StaticCallSite::read(&bytes);
        // The flags are the low bits of the sum, not of the distance, because the table need not be aligned.
        let key = (at + 4).offset(record.key.into());
        let kind = if key.get() & 1 != 0 { CallKind::Tail } else { CallKind::Call };
        Ok(CallSite { at: at.offset(record.site.into()), kind, why, key: Addr::new(key.get() & !3) })
    }
}

/// Fails unless the site is one of the instructions that a static call can be.
fn is_site(at: Addr, kind: CallKind, code: &impl Code) -> Result<(), KeySiteProblem> {
    let site = code.text(at, CALL_LEN).filter(|site| site.len() == CALL_LEN).ok_or(KeySiteProblem::SiteOutside)?;
    let known = match kind {
        CallKind::Call => is_call_form(site),
        CallKind::Tail => is_tail_form(site),
    };
    if known {
        return Ok(());
    }
    Err(KeySiteProblem::OtherInstruction(match kind {
        CallKind::Call => "a call, the NOP of 5 bytes or a zero",
        CallKind::Tail => "a jump or a return",
    }))
}

/// Returns the bytes of a site, or of a trampoline, for this target. An unknown target counts as none.
///
/// # Errors
/// [`KeySiteProblem`]: the target is out of reach, or a return needs a thunk whose address is not known.
pub fn call_code(
    at: Addr,
    kind: CallKind,
    target: CallTarget,
    calls: StaticCalls<'_>,
) -> Result<[u8; CALL_LEN], KeySiteProblem> {
    match (kind, target) {
        (CallKind::Call, CallTarget::Function(function)) if Some(function) == calls.return0 => Ok(ZERO),
        (CallKind::Call, CallTarget::Function(function)) => {
            encode_call(at, function).ok_or(KeySiteProblem::OutOfReach(function))
        }
        (CallKind::Tail, CallTarget::Function(function)) => {
            encode_jump(at, function).ok_or(KeySiteProblem::OutOfReach(function))
        }
        (CallKind::Tail, _) => Ok(return_at(at, calls.facts)?),
        (CallKind::Call, _) => Ok(CALL_NOP),
    }
}
