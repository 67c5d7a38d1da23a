//! `__jump_table`: branches that static keys control.

use modload_abi::record::{FixedRecord, JumpEntry};
use modload_edit::{Addr, Code, EditOrigin, Engine, NOPS, RecordTable, refused, wide, write};

use crate::problem::{KeyPlanError, KeySiteProblem};
use crate::x86_64::{LONGEST, encode_jump_of, jump_len};

/// The state of a static key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyState {
    /// The count is 0.
    Disabled,
    /// The count is not 0.
    Enabled,
    /// The state is not known: sites stay unchanged.
    Unknown,
}

/// A site that is a jump or a NOP, as its key's state requires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JumpSite {
    /// The address of the site.
    pub at: Addr,
    /// The record.
    pub why: EditOrigin,
    /// The address of the key.
    pub key: Addr,
    likely: bool,
    jump: SiteBytes,
}

/// The two or five bytes of a site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SiteBytes {
    bytes: [u8; 5],
    len: usize,
}

impl std::ops::Deref for SiteBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Makes each site a jump or a NOP, as the state of its key and the likelihood of the branch require. `state` returns
/// the state of the key at an address. Linux's `jump_label_add_module` and `arch_jump_label_transform`.
///
/// # Errors
/// [`modload_edit::PlanError`]: the first record that cannot be applied.
pub fn jump_labels<C: Code>(
    table: &RecordTable,
    mut state: impl FnMut(Addr) -> KeyState,
    code: &mut C,
) -> Result<(), KeyPlanError> {
    for number in table.numbers(wide(JumpEntry::SIZE)) {
        let record = JumpRecord::read(table, number, code)?;
        let state = state(record.key);
        if state != KeyState::Unknown {
            let site = record.site(code)?;
            write(code, site.at, &site.code(state), site.why)?;
        }
    }
    Ok(())
}

/// Returns all sites of a table.
///
/// # Errors
/// [`modload_edit::PlanError`]: the first record that cannot be applied.
pub fn jump_sites<C: Code>(table: &RecordTable, code: &C) -> Result<Vec<JumpSite>, KeyPlanError> {
    table.numbers(wide(JumpEntry::SIZE)).map(|number| JumpRecord::read(table, number, code)?.site(code)).collect()
}

/// A record with its distances converted to addresses.
struct JumpRecord {
    why: EditOrigin,
    at: Addr,
    target: Addr,
    key: Addr,
    likely: bool,
}

impl JumpRecord {
    fn read(table: &RecordTable, number: u32, code: &impl Code) -> Result<JumpRecord, KeyPlanError> {
        let why = EditOrigin { engine: Engine::JumpLabel, section: table.section, record: number };
        let record = table.record::<{ JumpEntry::SIZE }>(code, number);
        let (at, bytes) = record.ok_or_else(|| refused(code, why, table.at, 0, KeySiteProblem::PartOfRecord))?;
        let entry = JumpEntry::read(&bytes);
        Ok(JumpRecord {
            why,
            at: at.offset(entry.code.into()),
            target: (at + 4).offset(entry.target.into()),
            // The two low bits are flags.
            key: (at + 8).offset(entry.key & !3),
            likely: entry.key & 1 != 0,
        })
    }

    fn site(&self, code: &impl Code) -> Result<JumpSite, KeyPlanError> {
        let &JumpRecord { why, at, target, key, likely } = self;
        let jump = length(at, target, code).and_then(|len| jump(at, len, target));
        let jump = jump.map_err(|problem| refused(code, why, at, 8, problem))?;
        Ok(JumpSite { at, why, key, likely, jump })
    }
}

impl JumpSite {
    /// Returns the bytes of the site for a state of its key. [`KeyState::Unknown`] counts as disabled.
    #[must_use]
    pub fn code(&self, state: KeyState) -> SiteBytes {
        if (state == KeyState::Enabled) != self.likely {
            return self.jump;
        }
        let mut nop = self.jump;
        nop.bytes[..nop.len].copy_from_slice(NOPS[nop.len - 1]);
        nop
    }
}

/// Returns the length of the site. Fails unless the site is a NOP or the jump to `target`.
fn length(site: Addr, target: Addr, code: &impl Code) -> Result<usize, KeySiteProblem> {
    let bytes = code.text(site, LONGEST).ok_or(KeySiteProblem::SiteOutside)?;
    jump_len(site, target, bytes).ok_or(KeySiteProblem::NeitherNopNorJump(target))
}

fn jump(site: Addr, len: usize, target: Addr) -> Result<SiteBytes, KeySiteProblem> {
    let bytes = encode_jump_of(len, site, target).ok_or(KeySiteProblem::OutOfReach(target))?;
    Ok(SiteBytes { bytes, len })
}
