//! Functions that no module's call reaches: the host's own, the C library's. A static call of one goes through a jump
//! that stands in the arena.

use std::collections::BTreeMap;
use std::sync::Arc;

use modload_edit::Addr;
use modload_text::{Arena, ArenaError, Describe, Published, TextLock};

/// jmp *0(%rip), and the address behind it.
const JUMP: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];
const LEN: usize = JUMP.len() + 8;

/// The jumps that were made so far, by where they lead. They stay: who calls one may be in it at any time, and there
/// are never more than functions that somebody has set.
#[derive(Debug)]
pub(crate) struct Far(BTreeMap<Addr, (Addr, Published)>);

struct Name;

impl Describe for Name {
    fn module(&self) -> &'static str {
        "static calls"
    }

    fn symbol(&self, _: Addr) -> Option<(&[u8], u64)> {
        None
    }
}

impl Far {
    pub(crate) const fn new() -> Far {
        Far(BTreeMap::new())
    }

    /// What a place is to call for this function: the function itself if it is in reach, or a jump to it. Takes the text
    /// lock for a moment if it makes one.
    pub(crate) fn near(&mut self, at: Addr, function: Addr) -> Result<Addr, ArenaError> {
        if i32::try_from(function - (at + 5)).is_ok() {
            return Ok(function);
        }
        if let Some((jump, _)) = self.0.get(&function) {
            return Ok(*jump);
        }
        let mut staged = Arena::get()?.stage_text(modload_edit::wide(LEN), 16)?;
        let jump = staged.addr();
        staged.bytes_mut()[..JUMP.len()].copy_from_slice(&JUMP);
        staged.bytes_mut()[JUMP.len()..].copy_from_slice(&function.get().to_le_bytes());
        staged.owner(Arc::new(Name));
        let published = staged.publish(&mut TextLock::take())?;
        self.0.insert(function, (jump, published));
        Ok(jump)
    }
}
