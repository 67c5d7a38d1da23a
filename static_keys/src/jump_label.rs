//! `__jump_table`: branches that static keys decide.

use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use modload_abi::record::{JumpEntry, Record};
use modload_edit::{Addr, Code, Engine, NOPS, Table, Why, refused, wide, write};

use crate::{Error, Problem};

/// The state of a static key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyState {
    /// Its count is 0.
    Disabled,
    /// Its count is not 0.
    Enabled,
    /// Not known: the site stays as it is.
    Unknown,
}

/// Makes each site a jump or a NOP, as its key's state and the branch's likelihood want it. `state` is asked with the
/// address of a key. Linux's `jump_label_add_module` and `arch_jump_label_transform`.
///
/// # Errors
/// [`modload_edit::PlanError`]: the first record that cannot be followed.
pub fn jump_labels<C: Code>(table: &Table, mut state: impl FnMut(Addr) -> KeyState, code: &mut C) -> Result<(), Error> {
    for number in 0..table.len(wide(JumpEntry::SIZE)) {
        let why = Why { engine: Engine::JumpLabel, section: table.section, record: number };
        let record = table.record::<{ JumpEntry::SIZE }>(code, number);
        let (at, bytes) = record.ok_or_else(|| refused(code, why, table.at, 0, Problem::PartOfRecord))?;
        let entry = JumpEntry::read(&bytes);
        let (site, target) = (at.offset(entry.code.into()), (at + 4).offset(entry.target.into()));
        let likely = entry.key & 1 != 0;
        // The two low bits are flags.
        let key = (at + 8).offset(entry.key & !3);
        let jumps = match state(key) {
            KeyState::Unknown => continue,
            KeyState::Enabled => !likely,
            KeyState::Disabled => likely,
        };
        let len = length(site, target, code).map_err(|problem| refused(code, why, site, 8, problem))?;
        let mut new = [0; 5];
        let new = &mut new[..len];
        if jumps {
            jump(new, site, target).map_err(|problem| refused(code, why, site, 8, problem))?;
        } else {
            new.copy_from_slice(NOPS[len - 1]);
        }
        write(code, site, new, why)?;
    }
    Ok(())
}

/// How long the site is: 2 or 5. It must be a NOP or the jump that belongs there.
fn length(site: Addr, target: Addr, code: &impl Code) -> Result<usize, Problem> {
    let bytes = code.text(site, 15).ok_or(Problem::SiteOutside)?;
    let instruction = Decoder::with_ip(64, bytes, site.get(), DecoderOptions::NONE).decode();
    let len = instruction.len();
    let nop = matches!(len, 2 | 5) && bytes.get(..len) == Some(NOPS[len - 1]);
    let jump = instruction.mnemonic() == Mnemonic::Jmp && Addr::new(instruction.near_branch_target()) == target;
    if nop || (jump && matches!(len, 2 | 5)) { Ok(len) } else { Err(Problem::NeitherNopNorJump(target)) }
}

fn jump(new: &mut [u8], site: Addr, target: Addr) -> Result<(), Problem> {
    let distance = target - (site + wide(new.len()));
    match new {
        [opcode, short] => {
            let distance = i8::try_from(distance).map_err(|_| Problem::OutOfReach(target))?;
            (*opcode, *short) = (0xeb, distance.to_le_bytes()[0]);
        }
        _ => {
            let distance = i32::try_from(distance).map_err(|_| Problem::OutOfReach(target))?;
            new[0] = 0xe9;
            new[1..].copy_from_slice(&distance.to_le_bytes());
        }
    }
    Ok(())
}
