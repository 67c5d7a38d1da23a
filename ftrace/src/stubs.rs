//! Stubs: the targets of the sites of traced functions. Stubs lie side by side in text, and are never freed.

use std::mem::forget;
use std::sync::Arc;

use modload_edit::{Addr, Edit, EditOrigin, EditSet, Engine, Sink, index, wide};
use modload_text::{Arena, ArenaError, Describe, INT3, TextLock, fill};
use modload_threads::frames::Known;

use crate::error::TraceError;
use crate::trampoline::{FunctionRecord, STUB, stub_rows};

/// The least number of stubs for which room is allocated at a time.
const BLOCK: u64 = 64;

/// Room for stubs near code of one kind.
#[derive(Debug)]
pub(crate) struct TraceStubs {
    /// The address of the next stub, and the number of stubs that still fit.
    next: Addr,
    left: u64,
}

/// The name of stubs in descriptions.
struct TraceStubName;

impl Describe for TraceStubName {
    fn module(&self) -> &'static str {
        "function tracing"
    }

    fn symbol(&self, _: Addr) -> Option<(&[u8], u64)> {
        None
    }
}

impl TraceStubs {
    pub(crate) const fn new() -> TraceStubs {
        TraceStubs { next: Addr::NULL, left: 0 }
    }

    /// Takes existing room for `left` stubs from an address on, filled with INT3, for functions near that address.
    pub(crate) fn at(next: Addr, left: u64) -> Result<TraceStubs, TraceError> {
        forget(Known::programmed(next.get()..next.get() + left * STUB, &stub_rows())?);
        Ok(TraceStubs { next, left })
    }

    /// Gives each of these functions a stub. If there is no room left, new room is allocated in the arena, which every
    /// module's code can reach.
    pub(crate) fn make(&mut self, functions: &[&'static FunctionRecord]) -> Result<(), TraceError> {
        let (here, rest) = functions.split_at(functions.len().min(index(self.left)));
        self.fill(here)?;
        if rest.is_empty() {
            return Ok(());
        }
        let room = wide(rest.len()).next_multiple_of(BLOCK);
        let mut staged = Arena::get()?.stage_text(room * STUB, STUB).map_err(ArenaError::from)?;
        let at = staged.addr();
        let (used, spare) = staged.bytes_mut().split_at_mut(rest.len() * index(STUB));
        for (place, function) in used.chunks_mut(index(STUB)).zip(rest) {
            place.copy_from_slice(&function.stub_code());
        }
        spare.fill(INT3);
        staged.set_owner(Arc::new(TraceStubName));
        forget(staged.publish(&mut TextLock::take()).map_err(ArenaError::from)?);
        forget(Known::programmed(at.get()..at.get() + room * STUB, &stub_rows())?);
        self.settle(at, rest);
        self.left = room - wide(rest.len());
        Ok(())
    }

    /// Writes stubs into existing room.
    fn fill(&mut self, functions: &[&'static FunctionRecord]) -> Result<(), TraceError> {
        if functions.is_empty() {
            return Ok(());
        }
        let why = EditOrigin { engine: Engine::Fentry, section: 0, record: 0 };
        let mut batch = EditSet::new();
        for (number, function) in (0..).zip(functions) {
            let (at, old, new) = (self.next + number * STUB, [INT3; 32], function.stub_code());
            batch.edit(Edit { at, old: &old, new: &new, why })?;
        }
        fill(&mut TextLock::take(), &batch)?;
        self.settle(self.next, functions);
        self.left -= wide(functions.len());
        Ok(())
    }

    fn settle(&mut self, at: Addr, functions: &[&'static FunctionRecord]) {
        for (number, function) in (0..).zip(functions) {
            function.set_stub(at + number * STUB);
        }
        self.next = at + wide(functions.len()) * STUB;
    }
}
