//! Tables of places that need no more than their address: ENDBRs, lock prefixes, function entries.

use iced_x86::Mnemonic;
use modload_abi::record::{Record, RelativeSite, Site};
use modload_edit::{Addr, Code, Engine, NOPS, Table, Why, fill_with_nops, refused, wide, write};

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
        let stands = code.text(site, 1).and_then(|stands| stands.first().copied());
        // Init code runs once, and stays as it is.
        if stands.is_some() && site.checked_offset_from(text.0).is_none_or(|offset| offset >= text.1) {
            continue;
        }
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
/// A record is written over only where nothing refers to the middle of what is written. One that is 0 was of a
/// function that a linker has dropped, and is passed over, as Linux does.
///
/// # Errors
/// [`modload_edit::PlanError`]: the first record that cannot be followed.
pub fn function_entries<C: Code>(table: &Table, boundaries: &Boundaries, code: &mut C) -> Result<(), Error> {
    for record in table.numbers(wide(Site::SIZE)) {
        let why = Why { engine: Engine::Fentry, section: table.section, record };
        let site = table.record::<{ Site::SIZE }>(code, record).map(|(_, bytes)| Addr::new(Site::read(&bytes).site));
        let site = site.ok_or_else(|| refused(code, why, table.at, 0, Problem::PartOfRecord))?;
        if site == Addr::NULL {
            continue;
        }
        let found = entry(site, boundaries, code).map_err(|problem| refused(code, why, site, 8, problem))?;
        if let Some((at, len)) = found {
            let mut nops = [0; LONGEST];
            let nops = &mut nops[..len];
            match len {
                // A NOP of five bytes is what becomes a call, and what is left of a longer one stands behind it.
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

/// Addresses in code that something means. Sorted.
#[derive(Clone, Default, Debug)]
pub struct Boundaries {
    /// Symbols, beginnings of frames' rows, targets of relocations.
    all: Vec<Addr>,
    /// Those of them at which functions begin.
    starts: Vec<Addr>,
}

impl Boundaries {
    /// The addresses at which functions begin, and those that something means besides, in any order.
    #[must_use]
    pub fn new(mut starts: Vec<Addr>, others: &[Addr]) -> Boundaries {
        let mut all = [&starts[..], others].concat();
        for addresses in [&mut starts, &mut all] {
            addresses.sort_unstable();
            addresses.dedup();
        }
        Boundaries { all, starts }
    }

    /// Whether a function begins at an address.
    fn is_start(&self, at: Addr) -> bool {
        self.starts.binary_search(&at).is_ok()
    }

    /// The first beginning of a function behind an address, at most so many bytes away.
    fn next_start(&self, at: Addr, within: usize) -> Option<Addr> {
        next(&self.starts, at, within)
    }

    /// Whether something means an address behind the first of so many bytes.
    fn is_cut(&self, at: Addr, len: usize) -> bool {
        next(&self.all, at, len - 1).is_some()
    }
}

fn next(addresses: &[Addr], at: Addr, within: usize) -> Option<Addr> {
    let next = addresses.get(addresses.partition_point(|known| *known <= at)).copied()?;
    next.checked_offset_from(at).filter(|distance| *distance <= wide(within)).map(|_| next)
}

/// What a jump or a call to elsewhere needs.
const BRANCH: usize = 5;

/// No instruction is longer.
const LONGEST: usize = 15;

/// No compiler makes more NOPs in front of a function.
const ROOM: usize = 64;

/// Where what a record means can be written, and how many bytes; `None` if it stays as it is.
///
/// A record stands at the beginning of a function's NOPs, which may lie in front of its entry (`-fpatchable-function-entry=N,M`
/// with M > 0). What is written there is for calls that come by the entry: so it goes to the NOPs behind that, and never
/// across an address that something means.
fn entry(at: Addr, boundaries: &Boundaries, code: &impl Code) -> Result<Option<(Addr, usize)>, Problem> {
    let stands = code.text(at, LONGEST).ok_or(Problem::SiteOutside(BRANCH))?;
    let what = "a call of __fentry__ or a NOP";
    let instruction = first(at, stands).ok_or(Problem::OtherInstruction(what))?;
    // call __fentry__; call *__fentry__@GOTPCREL(%rip), which may have become addr32 call __fentry__.
    let call = near_branch(&instruction) == Some(Branch::Call) || call_through(&instruction).is_some();
    let (site, len) = match (call, instruction.mnemonic()) {
        (true, _) => (at, Some(instruction.len()).filter(|len| [5, 6].contains(len))),
        (false, Mnemonic::Nop) => {
            let site = behind_entry(at, boundaries, code);
            (site, nops_at(site, code))
        }
        (false, _) => return Err(Problem::OtherInstruction(what)),
    };
    // -fpatchable-function-entry=2 leaves room for a short jump.
    Ok(len.filter(|len| !boundaries.is_cut(site, *len)).map(|len| (site, len)))
}

/// How many bytes of NOPs at a place can become one that is written over: five of one byte, or one of five or more, as clang
/// makes them.
fn nops_at(at: Addr, code: &impl Code) -> Option<usize> {
    let stands = code.text(at, LONGEST)?;
    if stands.starts_with(&[0x90; BRANCH]) {
        return Some(BRANCH);
    }
    let instruction = first(at, stands)?;
    let len = instruction.len();
    (instruction.mnemonic() == Mnemonic::Nop && len >= BRANCH).then_some(len)
}

/// Where the NOPs stand that calls pass: at the record, if the function begins there or with an ENDBR64 before it; else behind
/// the entry that the record's NOPs lead to.
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
    use modload_edit::{Addr, Code, PieceKind, Space, Table};

    use super::{Boundaries, ENDBR64, function_entries};

    const TEXT: u64 = 0x1000;

    /// What becomes of a text with one record, at an offset, if functions begin at these and something means others.
    fn made(text: &[u8], record: u64, starts: &[u64], others: &[u64]) -> String {
        let mut space = Space::default();
        let mut bytes = text.to_vec();
        bytes.resize(64, 0xcc);
        space.add(Addr::new(TEXT), PieceKind::Text, bytes).unwrap();
        space.add(Addr::new(0x2000), PieceKind::Data, (TEXT + record).to_le_bytes().to_vec()).unwrap();
        let addresses = |offsets: &[u64]| offsets.iter().map(|at| Addr::new(TEXT + at)).collect::<Vec<_>>();
        let boundaries = Boundaries::new(addresses(starts), &addresses(others));
        function_entries(&Table::of_section(1, Addr::new(0x2000), 8), &boundaries, &mut space).unwrap();
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
            // 8,3; 5,1; 9,4: the NOPs behind the entry are what calls come by.
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
            // Something means an address among the NOPs behind the entry.
            (code(0, 8), 0, &[0], &[3], "........===="),
            (code(0, 8), 0, &[0], &[5], "NNNNN...===="),
            (code(3, 5), 0, &[3], &[6], "........===="),
            // Clang's, of eight bytes: one of five, and one of three.
            (vec![0x0f, 0x1f, 0x84, 0, 0, 2, 0, 0, 0xc3], 0, &[0], &[], "==N==NN=="),
            ([vec![0x90; 2], vec![0x0f, 0x1f, 0x44, 0, 8, 0xc3]].concat(), 0, &[2], &[], "..====N="),
            // A label at the record, as clang leaves them, is no function.
            (code(3, 5), 0, &[3], &[0], "...NNNNN===="),
            // Nothing is known of the place.
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
