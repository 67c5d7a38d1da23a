//! A module's `.eh_frame`: checked, indexed and copied before the module is published, so that a later search for a row
//! neither allocates nor fails on malformed data.
//!
//! Unwinders read the copy. A module has one section for all its texts. The texts of init are freed early, and their
//! addresses become another module's. So each text has a run of descriptions of its own, with absolute addresses and an
//! end, as libgcc requires. The copy is a third larger than the original, and requires nothing of the module's layout.
//!
//! A description's program runs when a walk passes through its function, not before: a module has many functions, and
//! few of them are ever walked through.

use std::borrow::Cow;
use std::ops::Range;

use gimli::{BaseAddresses, EhFrame, EndianSlice, LittleEndian};
use thiserror::Error;

use super::index::{Known, Overlap};
use super::libgcc::RegisteredRun;
use super::section::{Common, Flaw, FrameDescription, FrameSection};
use super::x86_64::{AT_ENTRY_PROGRAM, FACTORS};

type Reader<'a> = EndianSlice<'a, LittleEndian>;

/// An `.eh_frame` that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Malformed {
    /// An entry breaks a rule of the format.
    #[error("the entry at offset {at:#x}: {flaw}")]
    Entry {
        /// The entry's offset.
        at: usize,
        /// The flaw.
        flaw: Flaw,
    },
    /// A description of addresses that are not the module's text.
    #[error("the entry at offset {at:#x} describes {start:#x} to {end:#x}, which is not text of this module")]
    Elsewhere {
        /// The description's offset.
        at: usize,
        /// The first address that it describes.
        start: u64,
        /// The address behind the last one.
        end: u64,
    },
    /// Two descriptions of one address.
    #[error("the entries at offsets {first:#x} and {second:#x} describe the same address, {address:#x}")]
    Twice {
        /// The offset of the description with the lower start.
        first: usize,
        /// The offset of the other description.
        second: usize,
        /// The first address that both describe.
        address: u64,
    },
    /// The sections together or a text are larger than 1 GiB.
    #[error("it, or the text it describes, is larger than 1 GiB")]
    TooLarge,
}

/// The limit for the sections together, and for a text. So offsets into the copy, which is at most three times as
/// large, fit in 32 bits.
const LARGEST: usize = 1 << 30;

/// A description of a function's frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Description {
    /// The first address, as an offset from the start of the text.
    start: u32,
    /// The number of bytes of text that it describes.
    len: u32,
    /// The offset in the copy.
    offset: u32,
    /// The offset in the section.
    origin: u32,
}

/// The rows of one text of a module that is not published yet.
#[derive(Debug)]
pub struct Planned {
    text: Range<u64>,
    copy: Vec<u8>,
    /// The common information that was copied last: its offset in the section, and its offset in the copy.
    common: Option<(usize, usize)>,
    descriptions: Vec<Description>,
}

/// Checks sections of call frame information, `.eh_frame`, each with the address for which it is relocated, and sorts
/// their descriptions by the texts that they describe. Returns one result for each of `texts`, empty ones included, in
/// their order. Leaves out descriptions of no bytes, and descriptions whose function a linker has dropped (a start of
/// 0).
///
/// Code that only branches on, such as PLT entries, has no description in the sections: each instruction of the ranges
/// in `branches` has the frame of a function's first instruction.
///
/// # Errors
/// [`Malformed`].
pub fn plan<'a>(
    sections: impl IntoIterator<Item = (&'a [u8], u64)>,
    branches: &[Range<u64>],
    texts: &[Range<u64>],
) -> Result<Vec<Planned>, Malformed> {
    let is_large = |text: &Range<u64>| text.end.saturating_sub(text.start) > u64::try_from(LARGEST).unwrap_or(0);
    let empty =
        |text: &Range<u64>| Planned { text: text.clone(), copy: Vec::new(), common: None, descriptions: Vec::new() };
    let mut planned: Vec<Planned> = texts.iter().map(empty).collect();
    let mut total = 0_usize;
    for (bytes, at) in sections {
        total = total.saturating_add(bytes.len());
        if total > LARGEST || texts.iter().any(is_large) {
            return Err(Malformed::TooLarge);
        }
        add_section(FrameSection { bytes, at }, &mut planned)?;
    }
    if planned.iter().any(|text| !text.is_empty()) {
        for range in branches {
            add_branches(range, &mut planned)?;
        }
    }
    for text in &mut planned {
        text.finish()?;
    }
    Ok(planned)
}

/// The rows of every function's first instruction.
const AT_ENTRY: Common<'static> = Common {
    at: usize::MAX,
    version: 1,
    letters: b"zR",
    factors: &FACTORS,
    pointers: ABSOLUTE,
    lsda: None,
    personality: None,
    program: &AT_ENTRY_PROGRAM,
};

fn add_branches(range: &Range<u64>, planned: &mut [Planned]) -> Result<(), Malformed> {
    let at = AT_ENTRY.at;
    let elsewhere = Malformed::Elsewhere { at, start: range.start, end: range.end };
    let home = planned.iter_mut().find(|home| home.text.start <= range.start && range.end <= home.text.end);
    let len = range.end.saturating_sub(range.start);
    if len == 0 {
        return Ok(());
    }
    home.ok_or(elsewhere)?.add(
        0,
        &FrameDescription { start: range.start, len, lsda: 0, program: Cow::Borrowed(&[]) },
        &AT_ENTRY,
    )
}

fn add_section(section: FrameSection<'_>, planned: &mut [Planned]) -> Result<(), Malformed> {
    // The cached common information is known by its offset, which is valid in one section only.
    planned.iter_mut().for_each(|text| text.common = None);
    // Reserves room for the copy, as if most of it belonged to the first text.
    if let Some(text) = planned.first_mut() {
        text.copy.reserve(section.bytes.len() + section.bytes.len() / 2);
    }
    let mut known: Option<Common<'_>> = None;
    let mut from = 0;
    loop {
        let cut_off = |flaw| Malformed::Entry { at: from, flaw };
        let Some((entry, next)) = section.entry(from).map_err(cut_off)? else { return Ok(()) };
        from = next;
        let at = entry.at;
        let malformed = |flaw| Malformed::Entry { at, flaw };
        if entry.is_common().map_err(malformed)? {
            // Common entries that no description refers to are checked, too.
            known = Some(section.common(entry).map_err(malformed)?);
        } else {
            let common_at = entry.common().map_err(malformed)?;
            // One common entry serves all functions of an object file, or nearly all.
            let common = match &mut known {
                Some(common) if common.at == common_at => &*common,
                known => known.insert(section.common_at(common_at).map_err(malformed)?),
            };
            let function = section.function(entry, common).map_err(malformed)?;
            if function.len != 0 && function.start != 0 {
                let (start, len) = (function.start, function.len);
                let elsewhere = Malformed::Elsewhere { at, start, end: start.wrapping_add(len) };
                let Some(end) = start.checked_add(len) else { return Err(elsewhere) };
                let home = planned.iter_mut().find(|home| home.text.start <= start && end <= home.text.end);
                home.ok_or(elsewhere)?.add(at, &function, common)?;
            }
        }
    }
}

/// Returns one description for a whole text, by a program with factors of 1.
///
/// # Errors
/// [`Malformed::TooLarge`].
pub(crate) fn described(text: Range<u64>, program: &[u8]) -> Result<Planned, Malformed> {
    let common = Common { factors: &[1, 1, 16], program: &[], ..AT_ENTRY };
    let function = FrameDescription {
        start: text.start,
        len: text.end.saturating_sub(text.start),
        lsda: 0,
        program: program.into(),
    };
    let mut planned = Planned { text, copy: Vec::new(), common: None, descriptions: Vec::new() };
    if function.len != 0 {
        planned.add(0, &function, &common)?;
    }
    planned.finish()?;
    Ok(planned)
}

impl Planned {
    fn add(&mut self, at: usize, function: &FrameDescription<'_>, common: &Common<'_>) -> Result<(), Malformed> {
        let common_at = match self.common.filter(|(origin, _)| *origin == common.at) {
            Some((_, here)) => here,
            None => {
                let here = write_common(&mut self.copy, common);
                self.common = Some((common.at, here));
                here
            }
        };
        let offset = write_function(&mut self.copy, common_at, function, common);
        let narrow = |value: usize| u32::try_from(value).map_err(|_| Malformed::TooLarge);
        let narrow_wide = |value: u64| u32::try_from(value).map_err(|_| Malformed::TooLarge);
        self.descriptions.push(Description {
            start: narrow_wide(function.start - self.text.start)?,
            len: narrow_wide(function.len)?,
            offset: narrow(offset)?,
            origin: narrow(at)?,
        });
        Ok(())
    }

    /// Ends the run, sorts the descriptions by address, and checks that they do not overlap. Compilers write
    /// descriptions in the order of their functions, so there is mostly nothing to sort.
    fn finish(&mut self) -> Result<(), Malformed> {
        self.copy.extend([0; 4]);
        if !self.descriptions.is_sorted_by_key(|description| description.start) {
            self.descriptions.sort_unstable_by_key(|description| (description.start, description.origin));
        }
        let overlapping = self.descriptions.windows(2).find(|pair| pair[1].start - pair[0].start < pair[0].len);
        overlapping.map_or(Ok(()), |pair| {
            let [first, second] = [pair[0].origin, pair[1].origin].map(index);
            Err(Malformed::Twice { first, second, address: self.text.start + u64::from(pair[1].start) })
        })
    }

    /// Returns the number of functions that are described.
    #[must_use]
    pub fn len(&self) -> usize {
        self.descriptions.len()
    }

    /// Returns whether no function is described.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.descriptions.is_empty()
    }

    /// Makes the rows known to walks and to the process's unwinder, until the result is dropped. Returns `None` if
    /// there are no rows, which costs nothing.
    ///
    /// # Errors
    /// [`Overlap`]: other rows are known for a part of the text.
    pub fn publish(self) -> Result<Option<Known>, Overlap> {
        if self.is_empty() {
            return Ok(None);
        }
        let start = self.text.start;
        let listing = Listing { text: start, copy: self.copy.into_boxed_slice(), descriptions: self.descriptions };
        let run = listing.copy.as_ptr();
        let known = Known::new(self.text, listing)?;
        // SAFETY: the run is a boxed slice in the rows that `known` owns, which neither move nor are written until
        // `known` is dropped; and `known` drops the registration before the rows. The run consists of whole entries
        // with an end: `add` has written the entries, and `finish` the end.
        let registered = unsafe { RegisteredRun::new(start, run) };
        Ok(Some(known.and_registered(registered)))
    }
}

/// The alignment of entries, which aligns the addresses in them.
const ALIGN: usize = 8;

/// `DW_EH_PE_absptr`, and the bit for a pointer to the address instead of the address itself.
const ABSOLUTE: u8 = 0x00;
const INDIRECT: u8 = 0x80;

/// Writes an entry; returns its offset. The length is written last.
fn write_entry(copy: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> usize {
    let at = copy.len();
    copy.extend_from_slice(&[0; 4]);
    write(copy);
    // DW_CFA_nop.
    copy.resize(copy.len().next_multiple_of(ALIGN), 0);
    // The entry is at most as long as the section, and some bytes: far below 4 GiB.
    let len = u32::try_from(copy.len() - at - 4).unwrap_or(u32::MAX);
    copy[at..at + 4].copy_from_slice(&len.to_le_bytes());
    at
}

fn write_common(copy: &mut Vec<u8>, common: &Common<'_>) -> usize {
    write_entry(copy, |copy| {
        copy.extend([0; 4]);
        copy.push(common.version);
        copy.extend(common.letters);
        copy.push(0);
        copy.extend(common.factors);
        if !common.letters.is_empty() {
            let len_at = copy.len();
            copy.push(0);
            for letter in &common.letters[1..] {
                match (letter, common.personality) {
                    (b'P', Some((is_indirect, address))) => {
                        copy.push(if is_indirect { ABSOLUTE | INDIRECT } else { ABSOLUTE });
                        copy.extend(address.to_le_bytes());
                    }
                    (b'R' | b'L', _) => copy.push(ABSOLUTE),
                    _ => {}
                }
            }
            // One byte for each letter and eight for an address: the length fits in a one-byte number as long as there
            // are few letters.
            let len = u8::try_from(copy.len() - len_at - 1).unwrap_or(0x7f);
            copy[len_at] = len;
        }
        copy.extend(common.program);
    })
}

fn write_function(copy: &mut Vec<u8>, common_at: usize, function: &FrameDescription<'_>, common: &Common<'_>) -> usize {
    write_entry(copy, |copy| {
        let back = u32::try_from(copy.len() - common_at).unwrap_or(u32::MAX);
        // All fields with a fixed place, written at once: there are many functions.
        let mut fixed = [0; 29];
        fixed[..4].copy_from_slice(&back.to_le_bytes());
        fixed[4..12].copy_from_slice(&function.start.to_le_bytes());
        fixed[12..20].copy_from_slice(&function.len.to_le_bytes());
        let used = match (common.letters.is_empty(), common.lsda) {
            (true, _) => 20,
            (false, None) => 21,
            (false, Some(_)) => {
                fixed[20] = 8;
                fixed[21..].copy_from_slice(&function.lsda.to_le_bytes());
                29
            }
        };
        copy.extend_from_slice(&fixed[..used]);
        copy.extend_from_slice(&function.program);
    })
}

/// The rows of one text of a module.
#[derive(Debug)]
pub(crate) struct Listing {
    text: u64,
    copy: Box<[u8]>,
    descriptions: Vec<Description>,
}

impl Listing {
    /// Returns an `.eh_frame`, its bases, and the offset of the description for an address in it.
    pub(crate) fn description(&self, at: u64) -> Option<(EhFrame<Reader<'_>>, BaseAddresses, usize)> {
        let from_start = u32::try_from(at.checked_sub(self.text)?).ok()?;
        let behind = self.descriptions.partition_point(|description| description.start <= from_start);
        let description = self.descriptions.get(behind.checked_sub(1)?)?;
        if from_start - description.start >= description.len {
            return None;
        }
        // All addresses are absolute.
        Some((EhFrame::new(&self.copy, LittleEndian), BaseAddresses::default(), index(description.offset)))
    }
}

/// Returns an offset as an index: a pointer here has at least 32 bits.
fn index(offset: u32) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
