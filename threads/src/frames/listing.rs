//! A module's `.eh_frame`: checked and indexed before the module is published, so that finding a row later neither
//! allocates nor can go astray.
//!
//! A description's program is run when a walk comes through its function, not before: a module has many functions, and
//! few of them are ever walked through.

use std::ops::Range;

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, EhFrame, EhFrameOffset, EndianSlice, LittleEndian, UnwindSection,
};
use thiserror::Error;

use super::index::{Entries, Known, Overlap};

type Reader<'a> = EndianSlice<'a, LittleEndian>;

/// An `.eh_frame` that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Malformed {
    /// An entry cannot be read.
    #[error("an entry of .eh_frame, after offset {after:#x}: {source}")]
    Entry {
        /// The last entry that could be read.
        after: usize,
        /// Why not.
        source: gimli::Error,
    },
    /// A description of addresses that are not the module's text.
    #[error(".eh_frame+{offset:#x} describes {start:#x} to {end:#x}, which is not text of this module")]
    Elsewhere {
        /// Where the description is.
        offset: usize,
        /// Its first address.
        start: u64,
        /// The one behind its last.
        end: u64,
    },
    /// Two descriptions of one address.
    #[error(".eh_frame+{first:#x} and .eh_frame+{second:#x} describe the same address, {at:#x}")]
    Twice {
        /// Where the description of the lower start is.
        first: usize,
        /// Where the other one is.
        second: usize,
        /// The first address that both describe.
        at: u64,
    },
    /// The section or a text is larger than 4 GiB.
    #[error(".eh_frame or the text it describes is larger than 4 GiB")]
    TooLarge,
}

/// A function's frames are described here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Description {
    /// Its first address, from the start of the text.
    start: u32,
    /// How many bytes of text it describes.
    len: u32,
    /// Where it is in the section.
    offset: u32,
}

/// The rows of one text of a module that is not published yet.
#[derive(Debug)]
pub struct Planned {
    text: Range<u64>,
    section: u64,
    len: usize,
    descriptions: Vec<Description>,
}

/// Checks an `.eh_frame` that will stand at `section`, relocated, and sorts its descriptions by the texts they describe:
/// one result for each of `texts`, empty ones included, in their order. Descriptions of no bytes are left out, and
/// those whose function a linker has dropped (a start of 0).
///
/// # Errors
/// [`Malformed`].
pub fn plan(bytes: &[u8], section: u64, texts: &[Range<u64>]) -> Result<Vec<Planned>, Malformed> {
    let small = |len: u64| u32::try_from(len).map_err(|_| Malformed::TooLarge);
    small(u64::try_from(bytes.len()).map_err(|_| Malformed::TooLarge)?)?;
    for text in texts {
        small(text.end.saturating_sub(text.start))?;
    }
    let planned =
        |text: &Range<u64>| Planned { text: text.clone(), section, len: bytes.len(), descriptions: Vec::new() };
    let mut planned: Vec<Planned> = texts.iter().map(planned).collect();
    let frames = EhFrame::new(bytes, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(section);
    let mut common: Option<(usize, CommonInformationEntry<Reader<'_>>)> = None;
    let mut entries = frames.entries(&bases);
    let mut after = 0;
    loop {
        let malformed = |source| Malformed::Entry { after, source };
        let partial = match entries.next().map_err(malformed)? {
            None => break,
            Some(CieOrFde::Cie(entry)) => {
                after = entry.offset();
                continue;
            }
            Some(CieOrFde::Fde(partial)) => partial,
        };
        let offset = partial.offset();
        let description = partial.parse(|frames, bases, EhFrameOffset(at)| {
            // One common entry serves all functions of an object file, or nearly all.
            if let Some((_, entry)) = common.as_ref().filter(|(known, _)| *known == at) {
                return Ok(entry.clone());
            }
            let entry = frames.cie_from_offset(bases, EhFrameOffset(at))?;
            common = Some((at, entry.clone()));
            Ok(entry)
        });
        let description = description.map_err(malformed)?;
        after = offset;
        let (start, len) = (description.initial_address(), description.len());
        if len == 0 || start == 0 {
            continue;
        }
        let elsewhere = Malformed::Elsewhere { offset, start, end: start.wrapping_add(len) };
        let Some(end) = start.checked_add(len) else { return Err(elsewhere) };
        let Some(home) = planned.iter_mut().find(|text| text.text.start <= start && end <= text.text.end) else {
            return Err(elsewhere);
        };
        let from_start = small(start - home.text.start)?;
        let at = u32::try_from(offset).map_err(|_| Malformed::TooLarge)?;
        home.descriptions.push(Description { start: from_start, len: small(len)?, offset: at });
    }
    for text in &mut planned {
        text.sort()?;
    }
    Ok(planned)
}

impl Planned {
    /// Compilers write descriptions in the order of their functions, so that there is mostly nothing to do.
    fn sort(&mut self) -> Result<(), Malformed> {
        if !self.descriptions.is_sorted_by_key(|description| description.start) {
            self.descriptions.sort_unstable_by_key(|description| (description.start, description.offset));
        }
        let overlapping = self.descriptions.windows(2).find(|pair| pair[1].start - pair[0].start < pair[0].len);
        overlapping.map_or(Ok(()), |pair| {
            let [first, second] = [pair[0].offset, pair[1].offset].map(index);
            Err(Malformed::Twice { first, second, at: self.text.start + u64::from(pair[1].start) })
        })
    }

    /// How many functions are described.
    #[must_use]
    pub fn len(&self) -> usize {
        self.descriptions.len()
    }

    /// Whether no function is described.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.descriptions.is_empty()
    }

    /// Makes the rows known, until the result is dropped.
    ///
    /// # Errors
    /// [`Overlap`]: somebody else's rows are known for a part of the text.
    ///
    /// # Safety
    /// The bytes that were planned with stand at the address they were planned for, readable, and nobody changes them
    /// until the result has been dropped.
    pub unsafe fn publish(self) -> Result<Known, Overlap> {
        let listing =
            Listing { text: self.text.start, section: self.section, len: self.len, descriptions: self.descriptions };
        Known::new(self.text, Entries::Listed(listing))
    }
}

/// The rows of one text of a module.
#[derive(Debug)]
pub(crate) struct Listing {
    text: u64,
    section: u64,
    len: usize,
    descriptions: Vec<Description>,
}

impl Listing {
    /// The `.eh_frame`, where it begins, and the offset of the description for an address in it.
    pub(crate) fn description(&self, at: u64) -> Option<(EhFrame<Reader<'_>>, BaseAddresses, usize)> {
        let from_start = u32::try_from(at.checked_sub(self.text)?).ok()?;
        let behind = self.descriptions.partition_point(|description| description.start <= from_start);
        let description = self.descriptions.get(behind.checked_sub(1)?)?;
        if from_start - description.start >= description.len {
            return None;
        }
        let start = std::ptr::with_exposed_provenance::<u8>(usize::try_from(self.section).ok()?);
        // SAFETY: whoever published the listing has promised that the section is there, readable and unchanged, until
        // the guard has been dropped; and dropping it waits for us, who have found the listing.
        let bytes = unsafe { std::slice::from_raw_parts(start, self.len) };
        let bases = BaseAddresses::default().set_eh_frame(self.section);
        Some((EhFrame::new(bytes, LittleEndian), bases, index(description.offset)))
    }
}

/// An offset as an index: both have the width of a pointer here or are narrower.
fn index(offset: u32) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
