//! Tables of records that say where code is to be rewritten, and what is said of a record that is refused.

use std::fmt;

use thiserror::Error;

use crate::{Addr, Code, Edit, Rejected, Why, disassembled, wide};

/// A section of records, where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table {
    /// Index of the section (in the module's section header table); what the edits' [`Why`] says.
    pub section: u32,
    /// Its address.
    pub at: Addr,
    /// Its size in bytes.
    pub size: u64,
}

impl Table {
    /// How many records of this size it holds, a part of one at the end left out.
    #[must_use]
    pub fn len(&self, record: u64) -> u32 {
        u32::try_from(self.size / record).unwrap_or(u32::MAX)
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Address and bytes of a record, copied, as the edits so far have left it.
    #[must_use]
    pub fn record<const SIZE: usize>(&self, code: &(impl Code + ?Sized), number: u32) -> Option<(Addr, [u8; SIZE])> {
        let at = self.at + wide(SIZE) * u64::from(number);
        Some((at, code.bytes(at, SIZE)?.try_into().ok()?))
    }
}

/// Why an engine stopped. Nothing that it would have written at this record has been written.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PlanError<P: fmt::Debug + fmt::Display> {
    /// A record cannot be followed.
    #[error("{why}: {problem}{}", place(.site))]
    Refused {
        /// Which engine, section and record.
        why: Why,
        /// The place that the record means and what stands there, if there is anything.
        site: Option<(Addr, Vec<u8>)>,
        /// What is wrong.
        problem: P,
    },
    /// The edit was not taken.
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

fn place(site: &Option<(Addr, Vec<u8>)>) -> String {
    match site {
        Some((at, bytes)) => format!("; at {at} stands {bytes:02x?} ({})", disassembled(*at, bytes)),
        None => String::new(),
    }
}

/// A refused record with what stands at its site, up to `len` bytes.
pub fn refused<P: fmt::Debug + fmt::Display>(
    code: &(impl Code + ?Sized),
    why: Why,
    site: Addr,
    len: usize,
    problem: P,
) -> PlanError<P> {
    let bytes = code.text(site, len).or_else(|| code.bytes(site, len)).filter(|bytes| !bytes.is_empty());
    PlanError::Refused { why, site: bytes.map(|bytes| (site, bytes.to_vec())), problem }
}

/// Writes `new` at a place; nothing if that stands there already.
///
/// # Errors
/// [`Rejected`]: the sink does not take it.
pub fn write(code: &mut (impl Code + ?Sized), at: Addr, new: &[u8], why: Why) -> Result<(), Rejected> {
    let mut old = [0; MAX_SITE];
    let found = code.bytes(at, new.len());
    let (Some(old), Some(found)) = (old.get_mut(..new.len()), found) else {
        return Err(Rejected::Outside { at, len: new.len(), start: at, end: at, why });
    };
    old.copy_from_slice(found);
    if old == new { Ok(()) } else { code.edit(Edit { at, old, new, why }) }
}

/// The most bytes that one record may rewrite: what its length, a byte, can say.
pub const MAX_SITE: usize = 255;
