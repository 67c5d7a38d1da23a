//! `.altinstructions`: code that is replaced if a processor feature is present, or absent.

use modload_abi::record::{AltInstr, AltInstr63, FixedRecord};
use modload_edit::{Addr, Code, EditOrigin, Engine, MAX_SITE, RecordTable, fill_with_nops, refused, write};

use super::facts::RewriteError;
use super::moved::{call_through, first, is_whole, retarget};
use super::nops::optimize;
use crate::{Facts, Features, RewriteProblem};

/// The layout of the records.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Profile {
    /// 12 bytes, with the flag NOT as a bit of the feature number.
    #[default]
    Linux61,
    /// 14 bytes, with a field for flags.
    Linux63,
}

impl Profile {
    /// Returns the size of a record in bytes.
    #[must_use]
    pub fn record_size(self) -> u64 {
        modload_edit::wide(match self {
            Profile::Linux61 => AltInstr::SIZE,
            Profile::Linux63 => AltInstr63::SIZE,
        })
    }
}

/// A record, decoded from either layout.
#[derive(Clone, Copy, Debug)]
struct Alternative {
    site: Addr,
    replacement: Addr,
    feature: u16,
    wanted: WantedState,
    kind: AlternativeKind,
    site_len: usize,
    replacement_len: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum WantedState {
    Present,
    Absent,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AlternativeKind {
    Replacement,
    DirectCall,
}

/// Applies the records in order, so that a later record of the same site wins. Unchanged sites and replacements are
/// padded with the best NOPs. Linux's `apply_alternatives`.
///
/// # Errors
/// [`modload_edit::PlanError`]: the first record that cannot be applied.
pub fn alternatives<C: Code>(
    table: &RecordTable,
    profile: Profile,
    facts: &Facts,
    code: &mut C,
) -> Result<(), RewriteError> {
    let size = profile.record_size();
    for record in table.numbers(size) {
        let why = EditOrigin { engine: Engine::Alternative, section: table.section, record };
        let alternative = read(table, profile, record, code)
            .ok_or_else(|| refused(code, why, table.at, 0, RewriteProblem::PartOfRecord))?
            .map_err(|problem| refused(code, why, table.at, 0, problem))?;
        alternative.apply(facts, code, why)?;
    }
    if !table.size.is_multiple_of(size) {
        let why = EditOrigin { engine: Engine::Alternative, section: table.section, record: table.numbers(size).end };
        return Err(refused(code, why, table.at, 0, RewriteProblem::PartOfRecord));
    }
    Ok(())
}

fn read(
    table: &RecordTable,
    profile: Profile,
    number: u32,
    code: &impl Code,
) -> Option<Result<Alternative, RewriteProblem>> {
    Some(Ok(match profile {
        Profile::Linux61 => {
            let (at, bytes) = table.record::<{ AltInstr::SIZE }>(code, number)?;
            let record = AltInstr::read(&bytes);
            let not = record.feature & AltInstr::NOT != 0;
            Alternative {
                site: at.offset(record.site.into()),
                replacement: (at + 4).offset(record.replacement.into()),
                feature: record.feature & !AltInstr::NOT,
                wanted: if not { WantedState::Absent } else { WantedState::Present },
                kind: AlternativeKind::Replacement,
                site_len: record.site_len.into(),
                replacement_len: record.replacement_len.into(),
            }
        }
        Profile::Linux63 => {
            let (at, bytes) = table.record::<{ AltInstr63::SIZE }>(code, number)?;
            let record = AltInstr63::read(&bytes);
            if record.flags & !(AltInstr63::NOT | AltInstr63::DIRECT_CALL) != 0 {
                return Some(Err(RewriteProblem::UnknownFlags(record.flags)));
            }
            let direct = record.flags & AltInstr63::DIRECT_CALL != 0;
            let not = record.flags & AltInstr63::NOT != 0;
            Alternative {
                site: at.offset(record.site.into()),
                replacement: (at + 4).offset(record.replacement.into()),
                feature: record.feature,
                wanted: if not { WantedState::Absent } else { WantedState::Present },
                kind: if direct { AlternativeKind::DirectCall } else { AlternativeKind::Replacement },
                site_len: record.site_len.into(),
                replacement_len: record.replacement_len.into(),
            }
        }
    }))
}

impl Alternative {
    fn apply<C: Code>(&self, facts: &Facts, code: &mut C, why: EditOrigin) -> Result<(), RewriteError> {
        let mut buffer = [0; MAX_SITE];
        let new = &mut buffer[..self.site_len];
        self.compute(facts, code, new).map_err(|problem| refused(code, why, self.site, self.site_len, problem))?;
        Ok(write(code, self.site, new, why)?)
    }

    /// Computes the bytes of the site into `new`.
    fn compute(&self, facts: &Facts, code: &impl Code, new: &mut [u8]) -> Result<(), RewriteProblem> {
        let site = code.text(self.site, self.site_len).filter(|site| site.len() == self.site_len);
        let site = site.ok_or(RewriteProblem::SiteOutside(self.site_len))?;
        if !is_whole(site) {
            return Err(RewriteProblem::SiteCut(self.site_len));
        }
        new.copy_from_slice(site);
        let has = facts.features.has(self.feature).filter(|_| Features::name(self.feature).is_some());
        let has = has.ok_or(RewriteProblem::UnknownFeature(self.feature))?;
        // The replacement is checked even if it is not used here: another processor may use it.
        let replacement = self.replacement(code)?;
        if has == (self.wanted == WantedState::Present) {
            let (copy, rest) = new.split_at_mut(replacement.len());
            copy.copy_from_slice(replacement);
            rest.fill(0x90);
            match (self.kind, copy) {
                (AlternativeKind::DirectCall, copy) => direct_call(copy, site, self.site, code)?,
                // The only jump that can become shorter.
                (AlternativeKind::Replacement, &mut [0xe9, a, b, c, d]) => {
                    let distance = i32::from_le_bytes([a, b, c, d]);
                    jump(&mut new[..5], self.site, (self.replacement + 5).offset(distance.into()))?;
                }
                (AlternativeKind::Replacement, copy) => retarget(copy, self.replacement, self.site)?,
            }
        }
        optimize(new);
        Ok(())
    }

    fn replacement<'c>(&self, code: &'c impl Code) -> Result<&'c [u8], RewriteProblem> {
        if self.replacement_len > self.site_len {
            return Err(RewriteProblem::TooLong { replacement: self.replacement_len, site: self.site_len });
        }
        if self.replacement_len == 0 {
            return Ok(&[]);
        }
        let bytes = code.text(self.replacement, self.replacement_len);
        let bytes = bytes.filter(|bytes| bytes.len() == self.replacement_len);
        let bytes = bytes.ok_or(RewriteProblem::ReplacementOutside(self.replacement_len))?;
        if is_whole(bytes) { Ok(bytes) } else { Err(RewriteProblem::ReplacementCut) }
    }
}

/// Encodes a jump from `at` to `target` in five bytes. As in Linux, a short jump followed by a NOP is used if the
/// target is in reach and not before `at`.
fn jump(new: &mut [u8], at: Addr, target: Addr) -> Result<(), RewriteProblem> {
    let distance = target - at;
    match i8::try_from(distance - 2) {
        Ok(short) if distance >= 0 => {
            new[0] = 0xeb; // jmp short
            new[1] = short.to_le_bytes()[0];
            fill_with_nops(&mut new[2..]);
        }
        _ => {
            let near = i32::try_from(distance - 5).map_err(|_| RewriteProblem::OutOfReach(target))?;
            new[0] = 0xe9; // jmp
            new[1..].copy_from_slice(&near.to_le_bytes());
        }
    }
    Ok(())
}

/// Replaces a call through a pointer by a direct call: Linux's `alt_replace_call`. `copy` is a call of five bytes,
/// whose target is filled in here.
fn direct_call(copy: &mut [u8], site: &[u8], at: Addr, code: &impl Code) -> Result<(), RewriteProblem> {
    let pointer = first(at, site).and_then(|call| call_through(&call));
    let pointer = pointer.ok_or(RewriteProblem::OtherInstruction("a call through a pointer"))?;
    let [0xe8, a, b, c, d] = copy else {
        return Err(RewriteProblem::OtherInstruction("one whose replacement is a call"));
    };
    let bytes: [u8; 8] =
        code.bytes(pointer, 8).and_then(|bytes| bytes.try_into().ok()).ok_or(RewriteProblem::NoPointer(pointer))?;
    let target = Addr::new(u64::from_le_bytes(bytes));
    let distance = i32::try_from(target - (at + 5)).map_err(|_| RewriteProblem::OutOfReach(target))?;
    [*a, *b, *c, *d] = distance.to_le_bytes();
    Ok(())
}
