//! `.return_sites`: returns that the compiler has written as jumps to a thunk.

use modload_abi::record::{FixedRecord, RelativeSite};
use modload_abi::section;
use modload_edit::{Addr, Code, EditOrigin, Engine, RecordTable, refused, wide, write};

use super::cpu;
use super::facts::RewriteError;
use super::moved::{NearBranch, first, near_branch};
use super::sites::relative;
use crate::{Facts, RewriteProblem};

/// The length of a site in bytes.
const LEN: usize = 5;
/// The bytes after the trampoline of a static call: ud1 %esp,%ecx.
const TRAMPOLINE: [u8; 3] = [0x0f, 0xb9, 0xcc];

/// Replaces jumps to `__x86_return_thunk` by returns, or by jumps to the return thunk in use. Linux's `apply_returns`.
///
/// # Errors
/// [`modload_edit::PlanError`]: the first record that cannot be applied.
pub fn returns<C: Code>(table: &RecordTable, facts: &Facts, code: &mut C) -> Result<(), RewriteError> {
    for record in table.numbers(wide(RelativeSite::SIZE)) {
        let why = EditOrigin { engine: Engine::Return, section: table.section, record };
        let site = relative(table, record, why, code)?;
        let new = plan(site, facts, code).map_err(|problem| refused(code, why, site, LEN, problem))?;
        write(code, site, &new, why)?;
    }
    Ok(())
}

/// Returns the new bytes of a site.
fn plan(at: Addr, facts: &Facts, code: &impl Code) -> Result<[u8; LEN], RewriteProblem> {
    let site = code.text(at, LEN + TRAMPOLINE.len()).filter(|site| site.len() >= LEN);
    let site = site.ok_or(RewriteProblem::SiteOutside(LEN))?;
    let compiled = facts.returns.compiled.ok_or(RewriteProblem::Missing(section::RETURN_THUNK_SYMBOL))?;
    let jump = first(at, site).filter(|jump| near_branch(jump) == Some(NearBranch::Jump) && jump.len() == LEN);
    let to_thunk = jump.is_some_and(|jump| Addr::new(jump.near_branch_target()) == compiled);
    // A trampoline without a target may have become a return before.
    let trampoline = site[LEN..] == TRAMPOLINE && site[0] == 0xc3;
    if !to_thunk && !trampoline {
        return Err(RewriteProblem::OtherInstruction("a jump to __x86_return_thunk"));
    }
    return_at(at, facts)
}

/// Returns the five bytes of a return at this address.
///
/// # Errors
/// [`RewriteProblem`]: the address of the return thunk is not known, or is out of reach.
pub fn return_at(at: Addr, facts: &Facts) -> Result<[u8; LEN], RewriteProblem> {
    if !wants_thunk(at, facts) {
        return Ok([0xc3, 0xcc, 0xcc, 0xcc, 0xcc]); // ret; int3
    }
    let thunk = facts.returns.thunk.ok_or(RewriteProblem::Missing("x86_return_thunk"))?;
    let distance = i32::try_from(thunk - (at + wide(LEN))).map_err(|_| RewriteProblem::OutOfReach(thunk))?;
    let [a, b, c, d] = distance.to_le_bytes();
    Ok([0xe9, a, b, c, d]) // jmp thunk
}

/// Returns whether a return at this address must use a thunk: Linux's `cpu_wants_rethunk_at`.
fn wants_thunk(at: Addr, facts: &Facts) -> bool {
    let its = facts.returns.thunk.is_some() && facts.returns.thunk == facts.returns.its;
    facts.features.has(cpu::RETHUNK) == Some(true) && !(its && at.get() & 0x20 != 0)
}
