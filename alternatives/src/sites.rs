//! Tables of places that need no more than their address: ENDBRs, lock prefixes, function entries.

use iced_x86::Mnemonic;
use modload_abi::record::{Record, RelativeSite, Site};
use modload_edit::{Addr, Code, Engine, NOPS, Table, Why, refused, wide, write};

use crate::facts::Error;
use crate::moved::{Branch, call_through, first, near_branch};
use crate::{Facts, Problem, Processors};

/// endbr64
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// nopw (%rax), which nothing else is encoded as
const SEALED: [u8; 4] = [0x66, 0x0f, 0x1f, 0x00];

/// The place that a record means by its distance.
pub(crate) fn relative(table: &Table, record: u32, why: Why, code: &impl Code) -> Result<Addr, Error> {
    let site = table.record::<{ RelativeSite::SIZE }>(code, record);
    let site = site.map(|(at, bytes)| at.offset(RelativeSite::read(&bytes).site.into()));
    site.ok_or_else(|| refused(code, why, table.at, 0, Problem::PartOfRecord))
}

/// `.ibt_endbr_seal`: ENDBRs of functions that nobody calls through a pointer are taken away. Linux's
/// `apply_ibt_endbr`.
///
/// # Errors
/// [`modload_edit::PlanError`]: the first record that cannot be followed.
pub fn endbr_seals<C: Code>(table: &Table, code: &mut C) -> Result<(), Error> {
    for record in table.numbers(wide(RelativeSite::SIZE)) {
        let why = Why { engine: Engine::Endbr, section: table.section, record };
        let site = relative(table, record, why, code)?;
        let stands = code.text(site, ENDBR64.len()).ok_or(Problem::SiteOutside(ENDBR64.len()));
        let is_endbr = stands.and_then(|stands| {
            let endbr = stands == ENDBR64 || stands == SEALED;
            if endbr { Ok(()) } else { Err(Problem::OtherInstruction("endbr64")) }
        });
        is_endbr.map_err(|problem| refused(code, why, site, ENDBR64.len(), problem))?;
        write(code, site, &SEALED, why)?;
    }
    Ok(())
}

/// `.smp_locks`: on one processor lock prefixes within `text` (first address and size) become prefixes without effect,
/// on several such prefixes become locks again. Linux's `alternatives_smp_lock` and `alternatives_smp_unlock`.
///
/// # Errors
/// [`modload_edit::PlanError`]: the first record that cannot be followed.
pub fn smp_locks<C: Code>(table: &Table, text: (Addr, u64), facts: &Facts, code: &mut C) -> Result<(), Error> {
    const LOCK: u8 = 0xf0;
    const DS: u8 = 0x3e;
    let new = match facts.processors {
        Processors::One => DS,
        Processors::Several => LOCK,
    };
    for record in table.numbers(wide(RelativeSite::SIZE)) {
        let why = Why { engine: Engine::SmpLock, section: table.section, record };
        let site = relative(table, record, why, code)?;
        // Init code runs once, and stays as it is.
        if site.checked_offset_from(text.0).is_none_or(|offset| offset >= text.1) {
            continue;
        }
        let stands = code.text(site, 1).and_then(|stands| stands.first().copied());
        match stands {
            Some(LOCK | DS) => write(code, site, &[new], why)?,
            Some(_) => return Err(refused(code, why, site, 8, Problem::OtherInstruction("a lock prefix"))),
            None => return Err(refused(code, why, site, 1, Problem::SiteOutside(1))),
        }
    }
    Ok(())
}

/// `__mcount_loc` and `__patchable_function_entries`: calls of `__fentry__`, through a pointer too, and NOPs side by side
/// become one NOP each; NOPs of another length stay. Linux's `ftrace_make_nop`.
///
/// # Errors
/// [`modload_edit::PlanError`]: the first record that cannot be followed.
pub fn function_entries<C: Code>(table: &Table, code: &mut C) -> Result<(), Error> {
    for record in table.numbers(wide(Site::SIZE)) {
        let why = Why { engine: Engine::Fentry, section: table.section, record };
        let site = table.record::<{ Site::SIZE }>(code, record).map(|(_, bytes)| Addr::new(Site::read(&bytes).site));
        let site = site.ok_or_else(|| refused(code, why, table.at, 0, Problem::PartOfRecord))?;
        let len = entry(site, code).map_err(|problem| refused(code, why, site, 8, problem))?;
        if let Some(len) = len {
            write(code, site, NOPS[len - 1], why)?;
        }
    }
    Ok(())
}

/// How many bytes of a function's entry become one NOP; `None` if it stays as it is.
fn entry(at: Addr, code: &impl Code) -> Result<Option<usize>, Problem> {
    let site = code.text(at, 15).ok_or(Problem::SiteOutside(5))?;
    if site.starts_with(&[0x90; 5]) {
        return Ok(Some(5));
    }
    let what = "a call of __fentry__ or a NOP";
    let instruction = first(at, site).ok_or(Problem::OtherInstruction(what))?;
    let len = instruction.len();
    // call __fentry__; call *__fentry__@GOTPCREL(%rip), which may have become addr32 call __fentry__.
    let call = near_branch(&instruction) == Some(Branch::Call) || call_through(&instruction).is_some();
    // Clang's are others than the best.
    let nop = instruction.mnemonic() == Mnemonic::Nop;
    match len {
        5 | 6 if call || nop => Ok(Some(len)),
        // -fpatchable-function-entry=2 leaves room for a short jump.
        _ if nop => Ok(None),
        _ => Err(Problem::OtherInstruction(what)),
    }
}
