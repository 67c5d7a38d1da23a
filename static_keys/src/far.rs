//! Code that static calls lead to and that stands in the arena: a jump to each function that no module's call reaches,
//! the host's own and the C library's; and `__static_call_return0`.

use std::collections::BTreeMap;
use std::mem::forget;
use std::sync::Arc;

use modload_edit::{Addr, wide};
use modload_text::{Arena, ArenaError, Describe, TextLock};
use modload_threads::frames::{Known, Row};

use crate::table::table;

/// jmp *0(%rip), and the address behind it.
const JUMP: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];

/// What there is. It stays: who calls it may be in it at any time, and there is never more of it than functions that
/// somebody has set.
#[derive(Debug)]
pub(crate) struct Far {
    /// Jumps, by where they lead.
    jumps: BTreeMap<Addr, Addr>,
    /// `__static_call_return0`, if a host has asked for it.
    pub(crate) return0: Option<Addr>,
}

/// xor %eax,%eax; ret
const RETURN0: [u8; 3] = [0x31, 0xc0, 0xc3];

/// Names it.
struct Name;

impl Describe for Name {
    fn module(&self) -> &'static str {
        "static calls"
    }

    fn symbol(&self, _: Addr) -> Option<(&[u8], u64)> {
        None
    }
}

/// Publishes code for good.
pub(crate) fn publish(code: &[u8]) -> Result<Addr, ArenaError> {
    let mut staged = Arena::get()?.stage_text(wide(code.len()), 16)?;
    let at = staged.addr();
    staged.bytes_mut().copy_from_slice(code);
    staged.owner(Arc::new(Name));
    forget(staged.publish(&mut TextLock::take())?);
    // Whoever is in it has nothing on the stack but where it returns to.
    match Known::stated(at.get()..at.get() + wide(code.len()), &[Row::at_entry()]) {
        Ok(known) => forget(known),
        Err(error) => tracing::error!(%at, %error, "stacks cannot be walked through it"),
    }
    Ok(at)
}

impl Far {
    pub(crate) const fn new() -> Far {
        Far { jumps: BTreeMap::new(), return0: None }
    }

    /// What a place is to call for this function: the function itself if it is in reach, or a jump to it. Takes the text
    /// lock for a moment if it makes one.
    pub(crate) fn near(&mut self, at: Addr, function: Addr) -> Result<Addr, ArenaError> {
        if i32::try_from(function - (at + 5)).is_ok() {
            return Ok(function);
        }
        if let Some(jump) = self.jumps.get(&function) {
            return Ok(*jump);
        }
        let jump = publish(&[&JUMP[..], &function.get().to_le_bytes()].concat())?;
        self.jumps.insert(function, jump);
        Ok(jump)
    }
}

/// The address of `__static_call_return0`: a function that returns 0, and that no site calls: it becomes a zero in its
/// place.
///
/// # Errors
/// [`ArenaError`]: there is no arena, or no room in it.
pub fn return0() -> Result<Addr, ArenaError> {
    let mut table = table();
    match table.far.return0 {
        Some(at) => Ok(at),
        None => Ok(*table.far.return0.insert(publish(&RETURN0)?)),
    }
}
