//! Calls through an operations table. A module calls `*ops+8*N`, and the table decides how the call of operation N is
//! rewritten.
//!
//! [`paravirt`] applies the records of `.parainstructions`. [`Operations`] is the table. [`ParavirtOperation`] is one
//! entry: a function to call directly, code that replaces the call, nothing at all, or the unchanged call. Two tables
//! for Linux's operations are built in: [`Operations::native`] and [`Operations::user`]. Paravirt sites are rewritten
//! before alternatives, for the reason in [`modload_edit::ORDER`]. The behaviour is that of Linux 6.1's
//! `apply_paravirt`.
//!
//! This crate never sees a pointer, a file or mapped memory.

#![forbid(unsafe_code)]

mod tables;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use tables::LINUX_OPERATIONS;

use std::collections::BTreeMap;

use modload_abi::record::{FixedRecord, ParavirtSite};
use modload_edit::{
    Addr, Code, EditOrigin, Engine, MAX_SITE, PlanError, RecordTable, encode_call, fill_with_nops, refused, wide, write,
};
use thiserror::Error;

/// How calls of an operation are rewritten.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ParavirtOperation {
    /// The calls stay calls through the table.
    Leave,
    /// The calls are replaced by NOPs.
    Nop,
    /// The calls become direct calls of this function.
    Call(Addr),
    /// The calls are replaced by this code, which must follow the calling convention of the call.
    Inline(Vec<u8>),
    /// The operation is not possible here: a module that calls it is refused. The string is the operation's name.
    Refuse(&'static str),
}

/// An operations table.
#[derive(Clone, Default, Debug)]
pub struct Operations {
    /// The address of the table, as the module sees it. If it is known, the site of each record must call through the
    /// entry that the record names.
    pub base: Option<Addr>,
    /// The entries by operation number. Calls of an operation without an entry stay calls through the table.
    pub operations: BTreeMap<u8, ParavirtOperation>,
}

/// Why a record cannot be applied.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ParavirtProblem {
    /// The record cannot be read.
    #[error("its section is no whole number of records")]
    PartOfRecord,
    /// The site is not completely within text.
    #[error("its site of {0} bytes is not within text")]
    SiteOutside(usize),
    /// The instruction at the site is not a call through a pointer.
    #[error("its site is not a call through a pointer, in {0} bytes")]
    OtherInstruction(usize),
    /// The site calls through another entry than the record says.
    #[error("its site calls through {found}, and operation {op} is at {expected}")]
    OtherEntry {
        /// The operation of the record.
        op: u8,
        /// The address of its entry.
        expected: Addr,
        /// The address of the entry that the site calls through.
        found: Addr,
    },
    /// The operation is not possible here.
    #[error("operation {op} is {name}, which user space cannot do")]
    Refused {
        /// The operation of the record.
        op: u8,
        /// The name of the operation.
        name: &'static str,
    },
    /// The function is too far from the site.
    #[error("operation {op} at {target} is {beyond:#x} beyond the reach of a call")]
    OutOfReach {
        /// The operation of the record.
        op: u8,
        /// The address of the function.
        target: Addr,
        /// The distance beyond the reach of a call, in bytes.
        beyond: u64,
    },
    /// The new code is longer than the site.
    #[error("operation {op} takes {len} bytes, and its site has {room}")]
    TooLong {
        /// The operation of the record.
        op: u8,
        /// The length of the new code in bytes.
        len: usize,
        /// The length of the site in bytes.
        room: usize,
    },
}

/// Rewrites calls through the table as the table says, padded with NOPs. Linux's `apply_paravirt`.
///
/// # Errors
/// [`PlanError`]: the first record that cannot be applied.
pub fn paravirt<C: Code>(
    table: &RecordTable,
    operations: &Operations,
    code: &mut C,
) -> Result<(), PlanError<ParavirtProblem>> {
    let size = wide(ParavirtSite::SIZE);
    for number in table.numbers(size) {
        let why = EditOrigin { engine: Engine::Paravirt, section: table.section, record: number };
        let record = table.record::<{ ParavirtSite::SIZE }>(code, number);
        let record = record.map(|(_, bytes)| ParavirtSite::read(&bytes));
        let record = record.ok_or_else(|| refused(code, why, table.at, 0, ParavirtProblem::PartOfRecord))?;
        let (site, len) = (Addr::new(record.site), usize::from(record.len));
        let mut buffer = [0; MAX_SITE];
        let new = &mut buffer[..len];
        let planned = plan(&record, operations, code, new);
        match planned.map_err(|problem| refused(code, why, site, len, problem))? {
            SiteChange::Stays => {}
            SiteChange::Changed => write(code, site, new, why)?,
        }
    }
    Ok(())
}

/// Replaces a call or a jump through an entry of a table by a direct one. `operand` is the address of the instruction's
/// displacement, and `target` is the address in the entry. The instruction stays unchanged if it is of another kind or
/// if `target` is out of reach. Returns whether it was replaced.
///
/// # Errors
/// [`modload_edit::Rejected`]: the sink has refused the edit.
pub fn call_directly<C: Code>(
    operand: Addr,
    target: Addr,
    why: EditOrigin,
    code: &mut C,
) -> Result<Direct, modload_edit::Rejected> {
    let at = x86_64::branch_of(operand);
    let new = code.text(at, x86_64::THROUGH_LEN).and_then(|branch| x86_64::direct(branch, at, target));
    let Some(new) = new else { return Ok(Direct::No) };
    write(code, at, &new, why)?;
    Ok(Direct::Yes)
}

/// Whether a call has become a direct call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direct {
    /// The call stays a call through its entry: the target is too far away, or the instruction is of another kind.
    No,
    /// The call is direct now.
    Yes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SiteChange {
    Stays,
    Changed,
}

fn plan(
    record: &ParavirtSite,
    operations: &Operations,
    code: &impl Code,
    new: &mut [u8],
) -> Result<SiteChange, ParavirtProblem> {
    let (at, op) = (Addr::new(record.site), record.op);
    let site = code.text(at, new.len()).filter(|site| site.len() == new.len() && !site.is_empty());
    let site = site.ok_or(ParavirtProblem::SiteOutside(new.len()))?;
    let entry = x86_64::called_through(at, site).ok_or(ParavirtProblem::OtherInstruction(new.len()))?;
    if let Some(base) = operations.base {
        let expected = base + 8 * u64::from(op);
        if entry != expected {
            return Err(ParavirtProblem::OtherEntry { op, expected, found: entry });
        }
    }
    let call;
    let bytes: &[u8] = match operations.operations.get(&op) {
        None | Some(ParavirtOperation::Leave) => return Ok(SiteChange::Stays),
        Some(ParavirtOperation::Nop) => &[],
        Some(ParavirtOperation::Refuse(name)) => return Err(ParavirtProblem::Refused { op, name }),
        Some(ParavirtOperation::Inline(bytes)) => bytes,
        Some(ParavirtOperation::Call(target)) => {
            let out_of_reach = || {
                let beyond = x86_64::beyond_reach(at, *target);
                ParavirtProblem::OutOfReach { op, target: *target, beyond }
            };
            call = encode_call(at, *target).ok_or_else(out_of_reach)?;
            &call
        }
    };
    let room = new.len();
    let too_long = ParavirtProblem::TooLong { op, len: bytes.len(), room };
    new.get_mut(..bytes.len()).ok_or(too_long)?.copy_from_slice(bytes);
    fill_with_nops(&mut new[bytes.len()..]);
    Ok(SiteChange::Changed)
}

#[cfg(test)]
mod tests {
    use modload_edit::{Addr, Code, CodeBuffers, Ledger, PieceKind, RecordTable, disassembled};

    use super::{Operations, ParavirtOperation, paravirt};

    const TEXT: Addr = Addr::new(0x1000);
    const OPS: Addr = Addr::new(0x8000);

    /// Returns `call *OPS+8*op(%rip)` at the beginning of the text, and a record of this call.
    fn space(op: u8, len: u8) -> (CodeBuffers, RecordTable) {
        let displacement = OPS + 8 * u64::from(op) - (TEXT + 6);
        let mut text = vec![0xff, 0x15];
        text.extend(&displacement.to_le_bytes()[..4]);
        text.extend([0xc3; 10]);
        let mut record = TEXT.get().to_le_bytes().to_vec();
        record.extend([op, len, 0, 0, 0, 0, 0, 0]);
        let mut space = CodeBuffers::default();
        space.add(TEXT, PieceKind::Text, text).unwrap();
        space.add(Addr::new(0x2000), PieceKind::Data, record).unwrap();
        (space, RecordTable::of_section(4, Addr::new(0x2000), 16))
    }

    fn check(operation: Option<ParavirtOperation>, expected: &str) {
        let (mut space, table) = space(3, 6);
        let operations =
            Operations { base: Some(OPS), operations: operation.into_iter().map(|operation| (3, operation)).collect() };
        paravirt(&table, &operations, &mut Ledger::new(&mut space)).unwrap();
        assert_eq!(disassembled(TEXT, space.bytes(TEXT, 6).unwrap()), expected);
    }

    #[test]
    fn a_call_becomes_what_the_table_says() {
        check(None, "callq *0x7012(%rip)");
        check(Some(ParavirtOperation::Leave), "callq *0x7012(%rip)");
        check(Some(ParavirtOperation::Nop), "nopw (%rax,%rax)");
        check(Some(ParavirtOperation::Call(Addr::new(0x5000))), "call 0x5000; nop");
        check(Some(ParavirtOperation::Inline(vec![0xfa])), "cli; nopl (%rax,%rax)");
    }

    fn refusal(site: (u8, u8), table_says: ParavirtOperation, base: Addr) -> String {
        let (mut space, table) = space(site.0, site.1);
        let before = space.clone();
        let operations = Operations { base: Some(base), operations: [(site.0, table_says)].into() };
        let refused = paravirt(&table, &operations, &mut space).unwrap_err().to_string();
        assert_eq!(space.bytes(TEXT, 16), before.bytes(TEXT, 16), "nothing is written");
        refused
    }

    #[test]
    fn what_cannot_be_followed_is_refused_and_shown() {
        let call = || ParavirtOperation::Call(Addr::new(0x5000));
        for (refused, why) in [
            (refusal((3, 6), call(), Addr::new(0x8008)), "its site calls through 0x8018, and operation 3 is at 0x8020"),
            (refusal((3, 5), call(), OPS), "its site is not a call through a pointer, in 5 bytes"),
            (refusal((3, 7), call(), OPS), "in 7 bytes; the bytes at 0x1000 are"),
            (refusal((3, 200), call(), OPS), "its site of 200 bytes is not within text"),
            (refusal((3, 0), call(), OPS), "its site of 0 bytes"),
            (
                refusal((3, 6), ParavirtOperation::Refuse("cpu.read_msr"), OPS),
                "operation 3 is cpu.read_msr, which user space",
            ),
            (
                refusal((3, 6), ParavirtOperation::Inline(vec![0x90; 7]), OPS),
                "operation 3 takes 7 bytes, and its site has 6",
            ),
            (refusal((3, 6), ParavirtOperation::Call(Addr::new(0x1_0000_1005)), OPS), "is 0x80000001 beyond the reach"),
        ] {
            assert!(refused.contains("paravirt site 0 of section 4") && refused.contains(why), "{refused}");
        }
    }
}
