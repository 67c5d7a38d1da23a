//! `.retpoline_sites`: branches through a register that the compiler has written as calls of a thunk.

use iced_x86::Instruction;
use modload_abi::record::{FixedRecord, RelativeSite};
use modload_edit::{Addr, Code, EditOrigin, Engine, RecordTable, refused, wide, write};

use super::cpu;
use super::facts::RewriteError;
use super::moved::{NearBranch, first, near_branch};
use super::nops::optimize;
use super::sites::relative;
use crate::{Facts, RewriteProblem};

/// The distance between two thunks in bytes.
const THUNK: i64 = 32;

const WHAT: &str = "a call, a jump or a conditional jump to a thunk";

/// Replaces calls of thunks by branches through a register if the features do not require thunks. Linux's
/// `apply_retpolines`.
///
/// # Errors
/// [`modload_edit::PlanError`]: the first record that cannot be applied.
pub fn retpolines<C: Code>(table: &RecordTable, facts: &Facts, code: &mut C) -> Result<(), RewriteError> {
    for record in table.numbers(wide(RelativeSite::SIZE)) {
        let why = EditOrigin { engine: Engine::Retpoline, section: table.section, record };
        let site = relative(table, record, why, code)?;
        let mut buffer = [0; 6];
        let new = plan(site, facts, code, &mut buffer);
        let new = new.map_err(|problem| refused(code, why, site, 8, problem))?;
        if let Some(new) = new {
            write(code, site, new, why)?;
        }
    }
    Ok(())
}

/// Returns the new bytes of a site, or `None` if the site stays unchanged.
fn plan<'b>(
    at: Addr,
    facts: &Facts,
    code: &impl Code,
    new: &'b mut [u8; 6],
) -> Result<Option<&'b [u8]>, RewriteProblem> {
    let site = code.text(at, 15).ok_or(RewriteProblem::SiteOutside(5))?;
    let branch = first(at, site).ok_or(RewriteProblem::OtherInstruction(WHAT))?;
    let kind = near_branch(&branch).ok_or(RewriteProblem::OtherInstruction(WHAT))?;
    let register = register(&branch, facts)?;
    let has = |feature| facts.features.has(feature) == Some(true);
    let lfence = has(cpu::RETPOLINE_LFENCE);
    if has(cpu::RETPOLINE) && !lfence {
        return Ok(None);
    }
    if has(cpu::INDIRECT_THUNK_ITS) {
        return Err(RewriteProblem::Unsupported("the feature INDIRECT_THUNK_ITS, which takes new thunks"));
    }
    let len = branch.len();
    let mut bytes = Vec::with_capacity(16);
    if kind == NearBranch::Conditional {
        // The opposite condition jumps over the branch.
        let condition = site.get(len - 5).map_or(0, |byte| byte & 0xf) ^ 1;
        bytes.extend([0x70 + condition, u8::try_from(len - 2).unwrap_or_default()]);
    }
    if lfence {
        bytes.extend([0x0f, 0xae, 0xe8]);
    }
    if register >= 8 {
        bytes.push(0x41); // REX.B
    }
    let call = kind == NearBranch::Call;
    bytes.extend([0xff, if call { 0xd0 } else { 0xe0 } + register % 8]); // call *%reg, jmp *%reg
    if !call && bytes.len() < len {
        bytes.push(0xcc); // int3
    }
    // If the new code is too long, the site stays unchanged.
    let Some(new) = new.get_mut(..len).filter(|new| bytes.len() <= new.len()) else { return Ok(None) };
    new.fill(0x90);
    new[..bytes.len()].copy_from_slice(&bytes);
    optimize(new);
    Ok(Some(new))
}

/// Returns the number of the register that the thunk branches to.
fn register(branch: &Instruction, facts: &Facts) -> Result<u8, RewriteProblem> {
    let thunks = facts.indirect_thunks.ok_or(RewriteProblem::Missing("__x86_indirect_thunk_array"))?;
    let target = Addr::new(branch.near_branch_target());
    let distance = target - thunks;
    let register = u8::try_from(distance / THUNK).ok().filter(|register| {
        // No thunk branches to %rsp.
        distance % THUNK == 0 && *register < 16 && *register != 4
    });
    register.ok_or(RewriteProblem::NoThunk(target))
}
