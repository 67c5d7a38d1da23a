//! `.static_call_sites`: calls of what a key's function is at the time.

use modload_abi::record::{Record, StaticCallSite};
use modload_alternatives::{Facts, return_at};
use modload_edit::{Addr, Code, Engine, NOPS, Table, Why, refused, wide, write};

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

/// cs cs cs xor %eax,%eax
const ZERO: [u8; 5] = [0x2e, 0x2e, 0x2e, 0x31, 0xc0];
/// What stands behind a trampoline: ud1 %esp,%ecx.
const TRAMPOLINE: [u8; 3] = [0x0f, 0xb9, 0xcc];

const CALL: u8 = 0xe8;
const JUMP: u8 = 0xe9;
const RETURN: u8 = 0xc3;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Call,
    Tail,
}

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
    for number in 0..table.len(wide(StaticCallSite::SIZE)) {
        let why = Why { engine: Engine::StaticCall, section: table.section, record: number };
        let record = table.record::<{ StaticCallSite::SIZE }>(code, number);
        let (at, bytes) = record.ok_or_else(|| refused(code, why, table.at, 0, Problem::PartOfRecord))?;
        let record = StaticCallSite::read(&bytes);
        let site = at.offset(record.site.into());
        // The flags are the low bits of the sum, not of the distance: the table need not be aligned.
        let key = (at + 4).offset(record.key.into());
        let kind = if key.get() & 1 != 0 { Kind::Tail } else { Kind::Call };
        let key = Addr::new(key.get() & !3);
        let target = target(key);
        if target == Target::Unknown {
            continue;
        }
        let new = plan(site, kind, target, calls, code).map_err(|problem| refused(code, why, site, 8, problem))?;
        write(code, site, &new, why)?;
    }
    Ok(())
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
    if target == Target::Unknown {
        return Ok(());
    }
    let behind = code.text(at + 5, TRAMPOLINE.len());
    if behind != Some(&TRAMPOLINE) {
        return Err(refused(code, why, at, 8, Problem::OtherInstruction("a trampoline")));
    }
    let new = plan(at, Kind::Tail, target, calls, code).map_err(|problem| refused(code, why, at, 8, problem))?;
    Ok(write(code, at, &new, why)?)
}

fn plan(at: Addr, kind: Kind, target: Target, calls: StaticCalls<'_>, code: &impl Code) -> Result<[u8; 5], Problem> {
    let site = code.text(at, 5).filter(|site| site.len() == 5).ok_or(Problem::SiteOutside)?;
    let known = match kind {
        Kind::Call => site[0] == CALL || site == NOPS[4] || site == ZERO,
        Kind::Tail => site[0] == JUMP || site[0] == RETURN,
    };
    if !known {
        return Err(Problem::OtherInstruction(match kind {
            Kind::Call => "a call, the NOP of 5 bytes or a zero",
            Kind::Tail => "a jump or a return",
        }));
    }
    match (kind, target) {
        (Kind::Call, Target::Function(function)) if Some(function) == calls.return0 => Ok(ZERO),
        (Kind::Call, Target::Function(function)) => branch(CALL, at, function),
        (Kind::Tail, Target::Function(function)) => branch(JUMP, at, function),
        (Kind::Tail, _) => Ok(return_at(at, calls.facts)?),
        (Kind::Call, _) => Ok([NOPS[4][0], NOPS[4][1], NOPS[4][2], NOPS[4][3], NOPS[4][4]]),
    }
}

fn branch(opcode: u8, at: Addr, to: Addr) -> Result<[u8; 5], Problem> {
    let distance = i32::try_from(to - (at + 5)).map_err(|_| Problem::OutOfReach(to))?;
    let [a, b, c, d] = distance.to_le_bytes();
    Ok([opcode, a, b, c, d])
}
