//! Code in the arena that static calls jump to: a jump to each function that is out of reach of module code, as
//! functions of the host and of the C library are; and `__static_call_return0`.

use std::collections::BTreeMap;
use std::mem::forget;
use std::sync::Arc;

use modload_edit::{Addr, encode_jump, wide};
use modload_text::{Arena, ArenaError, Describe, TextLock};
use modload_threads::frames::{Known, Row};

use crate::x86_64::far_jump;

/// All jumps so far. They are never freed: a thread may be in one of them at any time. There are at most as many jumps
/// as functions that static calls were ever set to.
#[derive(Debug)]
pub(crate) struct FarJumps {
    /// The address of the jump to each function.
    jumps: BTreeMap<Addr, Addr>,
    /// The address of `__static_call_return0`, once a host has asked for it.
    pub(crate) return0: Option<Addr>,
}

/// The owner of this code, for symbol lookup.
struct StaticCallCode;

impl Describe for StaticCallCode {
    fn module(&self) -> &'static str {
        "static calls"
    }

    fn symbol(&self, _: Addr) -> Option<(&[u8], u64)> {
        None
    }
}

/// Publishes code that is never freed.
pub(crate) fn publish(code: &[u8]) -> Result<Addr, ArenaError> {
    let mut staged = Arena::get()?.stage_text(wide(code.len()), 16)?;
    let at = staged.addr();
    staged.bytes_mut().copy_from_slice(code);
    staged.set_owner(Arc::new(StaticCallCode));
    forget(staged.publish(&mut TextLock::take())?);
    // The stack of a thread in this code holds only the return address.
    match Known::stated(at.get()..at.get() + wide(code.len()), &[Row::at_entry()]) {
        Ok(known) => forget(known),
        Err(error) => tracing::error!(%at, %error, "stacks with a frame in this code cannot be unwound"),
    }
    Ok(at)
}

impl FarJumps {
    pub(crate) const fn new() -> FarJumps {
        FarJumps { jumps: BTreeMap::new(), return0: None }
    }

    /// Returns the address that a site at `at` must call to reach `function`: the function itself if it is in reach, or
    /// a jump to it. Takes the text lock for a short time if it makes a new jump.
    pub(crate) fn near(&mut self, at: Addr, function: Addr) -> Result<Addr, ArenaError> {
        if encode_jump(at, function).is_some() {
            return Ok(function);
        }
        if let Some(jump) = self.jumps.get(&function) {
            return Ok(*jump);
        }
        let jump = publish(&far_jump(function))?;
        self.jumps.insert(function, jump);
        Ok(jump)
    }
}
