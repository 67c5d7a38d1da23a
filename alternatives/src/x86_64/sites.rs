//! Tables whose records hold only an address: ENDBRs, lock prefixes, function entries.

use iced_x86::Mnemonic;
use modload_abi::record::{AddressSite, FixedRecord, RelativeSite};
use modload_edit::{Addr, Code, EditOrigin, Engine, NOPS, RecordTable, fill_with_nops, refused, wide, write};

use super::facts::RewriteError;
use super::moved::{NearBranch, call_through, first, near_branch};
use crate::{Facts, Processors, RewriteProblem};

/// endbr64
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// nopw (%rax). No other code is encoded as these bytes.
const SEALED: [u8; 4] = [0x66, 0x0f, 0x1f, 0x00];

/// Returns the address that a record gives as a distance.
pub(crate) fn relative(
    table: &RecordTable,
    record: u32,
    why: EditOrigin,
    code: &impl Code,
) -> Result<Addr, RewriteError> {
    let site = table.record::<{ RelativeSite::SIZE }>(code, record);
    let site = site.map(|(at, bytes)| at.offset(RelativeSite::read(&bytes).site.into()));
    site.ok_or_else(|| refused(code, why, table.at, 0, RewriteProblem::PartOfRecord))
}

/// `.ibt_endbr_seal`: removes the ENDBRs of functions that are never called through a pointer. Linux's
/// `apply_ibt_endbr`.
///
/// # Errors
/// [`modload_edit::PlanError`]: the first record that cannot be applied.
pub fn endbr_seals<C: Code>(table: &RecordTable, code: &mut C) -> Result<(), RewriteError> {
    for record in table.numbers(wide(RelativeSite::SIZE)) {
        let why = EditOrigin { engine: Engine::Endbr, section: table.section, record };
        let site = relative(table, record, why, code)?;
        let found = code.text(site, ENDBR64.len()).ok_or(RewriteProblem::SiteOutside(ENDBR64.len()));
        let is_endbr = found.and_then(|found| {
            let endbr = found == ENDBR64 || found == SEALED;
            if endbr { Ok(()) } else { Err(RewriteProblem::OtherInstruction("endbr64")) }
        });
        is_endbr.map_err(|problem| refused(code, why, site, ENDBR64.len(), problem))?;
        write(code, site, &SEALED, why)?;
    }
    Ok(())
}

/// `.smp_locks`: on one processor, replaces lock prefixes within `text` (first address and size) by prefixes without
/// effect. On several processors, replaces those by lock prefixes again. Linux's `alternatives_smp_lock` and
/// `alternatives_smp_unlock`.
///
/// # Errors
/// [`modload_edit::PlanError`]: the first record that cannot be applied.
pub fn smp_locks<C: Code>(
    table: &RecordTable,
    text: (Addr, u64),
    facts: &Facts,
    code: &mut C,
) -> Result<(), RewriteError> {
    const LOCK: u8 = 0xf0;
    const DS: u8 = 0x3e;
    let new = match facts.processors {
        Processors::One => DS,
        Processors::Several => LOCK,
    };
    for record in table.numbers(wide(RelativeSite::SIZE)) {
        let why = EditOrigin { engine: Engine::SmpLock, section: table.section, record };
        let site = relative(table, record, why, code)?;
        let found = code.text(site, 1).and_then(|found| found.first().copied());
        // Init code runs once, so it stays unchanged.
        if found.is_some() && site.checked_offset_from(text.0).is_none_or(|offset| offset >= text.1) {
            continue;
        }
        match found {
            Some(LOCK | DS) => write(code, site, &[new], why)?,
            Some(_) => return Err(refused(code, why, site, 8, RewriteProblem::OtherInstruction("a lock prefix"))),
            None => return Err(refused(code, why, site, 1, RewriteProblem::SiteOutside(1))),
        }
    }
    Ok(())
}

/// `__mcount_loc` and `__patchable_function_entries`: replaces calls of `__fentry__`, also calls through a pointer, and
/// sequences of one-byte NOPs by one long NOP each. NOPs of another length stay unchanged. Linux's `ftrace_make_nop`.
///
/// A site is rewritten only if no symbol, row or relocation refers to the middle of the new bytes. A record with
/// address 0 belongs to a function that a linker has dropped, and is skipped as in Linux.
///
/// # Errors
/// [`modload_edit::PlanError`]: the first record that cannot be applied.
pub fn function_entries<C: Code>(
    table: &RecordTable,
    boundaries: &Boundaries,
    code: &mut C,
) -> Result<(), RewriteError> {
    for record in table.numbers(wide(AddressSite::SIZE)) {
        let why = EditOrigin { engine: Engine::Fentry, section: table.section, record };
        let site = table
            .record::<{ AddressSite::SIZE }>(code, record)
            .map(|(_, bytes)| Addr::new(AddressSite::read(&bytes).site));
        let site = site.ok_or_else(|| refused(code, why, table.at, 0, RewriteProblem::PartOfRecord))?;
        if site == Addr::NULL {
            continue;
        }
        let found = entry(site, boundaries, code).map_err(|problem| refused(code, why, site, 8, problem))?;
        if let Some((at, len)) = found {
            let mut nops = [0; LONGEST];
            let nops = &mut nops[..len];
            match len {
                // The first five bytes are the NOP that can become a call. Shorter NOPs fill the rest of a longer site.
                7.. => {
                    nops[..BRANCH].copy_from_slice(NOPS[BRANCH - 1]);
                    fill_with_nops(&mut nops[BRANCH..]);
                }
                _ => nops.copy_from_slice(NOPS[len - 1]),
            }
            write(code, at, nops, why)?;
        }
    }
    Ok(())
}

/// Addresses in code that a symbol, a row or a relocation refers to. Sorted.
#[derive(Clone, Default, Debug)]
pub struct Boundaries {
    /// The addresses of symbols, of the first bytes of unwind rows, and of relocation targets.
    all: Vec<Addr>,
    /// Those of `all` at which functions begin.
    starts: Vec<Addr>,
}

impl Boundaries {
    /// Makes boundaries of the addresses at which functions begin, and of all other referenced addresses, both in any
    /// order.
    #[must_use]
    pub fn new(mut starts: Vec<Addr>, others: &[Addr]) -> Boundaries {
        let mut all = [&starts[..], others].concat();
        for addresses in [&mut starts, &mut all] {
            addresses.sort_unstable();
            addresses.dedup();
        }
        Boundaries { all, starts }
    }

    /// Returns whether a function begins at an address.
    fn is_start(&self, at: Addr) -> bool {
        self.starts.binary_search(&at).is_ok()
    }

    /// Returns the first function start after `at`, at most `within` bytes away.
    fn next_start(&self, at: Addr, within: usize) -> Option<Addr> {
        next(&self.starts, at, within)
    }

    /// Returns whether an address after the first of `len` bytes is referenced.
    fn is_cut(&self, at: Addr, len: usize) -> bool {
        next(&self.all, at, len - 1).is_some()
    }
}

fn next(addresses: &[Addr], at: Addr, within: usize) -> Option<Addr> {
    let next = addresses.get(addresses.partition_point(|known| *known <= at)).copied()?;
    next.checked_offset_from(at).filter(|distance| *distance <= wide(within)).map(|_| next)
}

/// The length of a jump or a call in bytes.
const BRANCH: usize = 5;

/// The maximum length of an instruction in bytes.
const LONGEST: usize = 15;

/// The maximum number of NOP bytes that a compiler writes before a function.
const ROOM: usize = 64;

/// Returns the address and the length of the bytes to rewrite for a record, or `None` if the site stays unchanged.
///
/// A record refers to the start of a function's NOPs, which may lie before the function's entry
/// (`-fpatchable-function-entry=N,M` with M > 0). The rewritten site must be executed by every call of the entry. So it
/// lies in the NOPs after the entry, and never covers a referenced address.
fn entry(at: Addr, boundaries: &Boundaries, code: &impl Code) -> Result<Option<(Addr, usize)>, RewriteProblem> {
    let found = code.text(at, LONGEST).ok_or(RewriteProblem::SiteOutside(BRANCH))?;
    let what = "a call of __fentry__ or a NOP";
    let instruction = first(at, found).ok_or(RewriteProblem::OtherInstruction(what))?;
    // Either `call __fentry__`, or `call *__fentry__@GOTPCREL(%rip)`, which relaxation may have replaced by `addr32
    // call __fentry__`.
    let call = near_branch(&instruction) == Some(NearBranch::Call) || call_through(&instruction).is_some();
    let (site, len) = match (call, instruction.mnemonic()) {
        (true, _) => (at, Some(instruction.len()).filter(|len| [5, 6].contains(len))),
        (false, Mnemonic::Nop) => {
            let site = behind_entry(at, boundaries, code);
            (site, nops_at(site, code))
        }
        (false, _) => return Err(RewriteProblem::OtherInstruction(what)),
    };
    // The NOPs of -fpatchable-function-entry=2 only have room for a short jump.
    Ok(len.filter(|len| !boundaries.is_cut(site, *len)).map(|len| (site, len)))
}

/// Returns the number of NOP bytes at an address that can become one rewritable instruction: five NOPs of one byte, or
/// one NOP of five bytes or more, as clang writes it.
fn nops_at(at: Addr, code: &impl Code) -> Option<usize> {
    let found = code.text(at, LONGEST)?;
    if found.starts_with(&[0x90; BRANCH]) {
        return Some(BRANCH);
    }
    let instruction = first(at, found)?;
    let len = instruction.len();
    (instruction.mnemonic() == Mnemonic::Nop && len >= BRANCH).then_some(len)
}

/// Returns the address of the NOPs that every call executes: the record's address if the function begins there or with
/// an ENDBR64 before it, else the address after the entry that follows the record's NOPs.
fn behind_entry(at: Addr, boundaries: &Boundaries, code: &impl Code) -> Addr {
    let is_endbr = |at: Addr| code.text(at, ENDBR64.len()).is_some_and(|bytes| bytes == ENDBR64);
    let before = at.offset(-4);
    if boundaries.is_start(at) || (boundaries.is_start(before) && is_endbr(before)) {
        return at;
    }
    let room = code.text(at, ROOM).map_or(0, |bytes| bytes.iter().take_while(|byte| **byte == 0x90).count());
    match boundaries.next_start(at, room) {
        Some(entry) if is_endbr(entry) => entry + 4,
        Some(entry) => entry,
        None => at,
    }
}

#[cfg(test)]
mod tests {
    use modload_edit::{Addr, Code, CodeBuffers, PieceKind, RecordTable};

    use super::{Boundaries, ENDBR64, function_entries};

    const TEXT: u64 = 0x1000;

    /// Returns the rewritten text for one record at an offset, with these function starts and other referenced
    /// addresses.
    fn made(text: &[u8], record: u64, starts: &[u64], others: &[u64]) -> String {
        let mut space = CodeBuffers::default();
        let mut bytes = text.to_vec();
        bytes.resize(64, 0xcc);
        space.add(Addr::new(TEXT), PieceKind::Text, bytes).unwrap();
        space.add(Addr::new(0x2000), PieceKind::Data, (TEXT + record).to_le_bytes().to_vec()).unwrap();
        let addresses = |offsets: &[u64]| offsets.iter().map(|at| Addr::new(TEXT + at)).collect::<Vec<_>>();
        let boundaries = Boundaries::new(addresses(starts), &addresses(others));
        function_entries(&RecordTable::of_section(1, Addr::new(0x2000), 8), &boundaries, &mut space).unwrap();
        let new = space.bytes(Addr::new(TEXT), text.len()).unwrap();
        let letter = |(old, new): (&u8, &u8)| match (old, new) {
            (0x90, 0x90) => '.',
            (old, new) if old == new => '=',
            _ => 'N',
        };
        text.iter().zip(new).map(letter).collect()
    }

    #[test]
    fn a_nop_goes_to_the_entry_and_never_across_it() {
        let code = |before: usize, behind: usize| [vec![0x90; before + behind], vec![0xc3; 4]].concat();
        let with_endbr = |before: usize, behind: usize| {
            [vec![0x90; before], ENDBR64.to_vec(), vec![0x90; behind], vec![0xc3; 4]].concat()
        };
        for (text, record, starts, others, expected) in [
            // N,M = 5,0; 16,0; 4,0.
            (code(0, 5), 0, &[0][..], &[][..], "NNNNN===="),
            (code(0, 16), 0, &[0], &[], "NNNNN...........===="),
            (code(0, 4), 0, &[0], &[], "....===="),
            // 8,3; 5,1; 9,4: calls execute the NOPs after the entry.
            (code(3, 5), 0, &[3], &[], "...NNNNN===="),
            (code(1, 4), 0, &[1], &[], ".....===="),
            (code(4, 5), 0, &[4], &[], "....NNNNN===="),
            // 16,14; 16,11; 5,5.
            (code(14, 2), 0, &[14], &[], "................===="),
            (code(11, 5), 0, &[11], &[], "...........NNNNN===="),
            (code(5, 0), 0, &[5], &[], ".....===="),
            // With an ENDBR64 at the entry.
            (with_endbr(0, 5), 4, &[0], &[], "====NNNNN===="),
            (with_endbr(3, 5), 0, &[3], &[], "...====NNNNN===="),
            (with_endbr(3, 4), 0, &[3], &[], "...====....===="),
            // A referenced address lies among the NOPs after the entry.
            (code(0, 8), 0, &[0], &[3], "........===="),
            (code(0, 8), 0, &[0], &[5], "NNNNN...===="),
            (code(3, 5), 0, &[3], &[6], "........===="),
            // A NOP of eight bytes, as clang writes it, becomes one of five and one of three.
            (vec![0x0f, 0x1f, 0x84, 0, 0, 2, 0, 0, 0xc3], 0, &[0], &[], "==N==NN=="),
            ([vec![0x90; 2], vec![0x0f, 0x1f, 0x44, 0, 8, 0xc3]].concat(), 0, &[2], &[], "..====N="),
            // A label at the record, as clang writes it, is no function start.
            (code(3, 5), 0, &[3], &[0], "...NNNNN===="),
            // No address is referenced.
            (code(0, 5), 0, &[], &[], "NNNNN===="),
        ] {
            assert_eq!(made(&text, record, starts, others), expected, "{text:x?} {record} {starts:?} {others:?}");
        }
    }

    #[test]
    fn one_instruction_is_not_written_over_if_something_means_its_middle() {
        let call = [0xe8, 1, 2, 3, 4, 0xc3];
        let whole = made(&call, 0, &[0], &[]);
        assert_eq!((whole, made(&call, 0, &[0], &[2])), ("NNNNN=".into(), "======".into()));
    }
}
