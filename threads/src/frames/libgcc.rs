//! The process's own unwinder, which exceptions, panics and `backtrace(3)` go by: libgcc's.
//!
//! It is told of runs of descriptions by `__register_frame_info_table`, which takes a table of pointers to runs. Facts of
//! libgcc 12 (unwind-dw2-fde.c):
//! - Tables are kept in two lists. One is searched at each throw, for the first table whose lowest address is not above
//!   the one that is looked for; if that has no description, no other table is asked. So the ranges of tables must not
//!   interleave. What is in no table is looked for in the process's objects.
//! - A table is sorted when it is first searched. Until then its addresses are not known, and it costs a list entry.
//! - Taking a table back searches both lists.
//! - Who has found a description goes on to look at the table's `struct object` when the lock is free again. So that may
//!   not be freed or used again with its table, as long as anybody can be in the middle of a throw through a text of it.
//!
//! So a table for each module would make a throw and an unload slower with each other module: of 10,000, a throw takes
//! 400 us instead of 4, and the first one half a second. Here the text of modules is cut into pieces by address, with one
//! table a piece: what begins in a piece is in its table. When that changes, the new table is registered before the old
//! one is taken back: a throw elsewhere always finds one of them. The old one's object, if libgcc has ever looked at it,
//! is kept until each text that it described is gone: a throw through any of them is over then. (That is about 100 bytes for
//! each change that follows a throw, and matters only where one module stays and its neighbours come and go.)
//!
//! libgcc 13 keeps a tree of ranges instead, in which no two may overlap, so that the new table cannot stand beside the
//! old one. There a table for each text is right, and cheap. Which it is, is asked once, by trying ([`Overlapping`]).

use std::cell::{RefCell, UnsafeCell};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

#[link(name = "gcc_s")]
unsafe extern "C" {
    fn __register_frame_info_table(table: *const *const u8, object: *mut Object);
    fn __deregister_frame_info(table: *const *const u8) -> *mut Object;
    fn _Unwind_Find_FDE(pc: *const c_void, bases: *mut [*const c_void; 3]) -> *const c_void;
}

/// Room for libgcc's `struct object`, whose size is part of the ABI: six words. Its first word is the lowest address of
/// the table, all ones until libgcc has looked.
type Object = [usize; 8];

/// Bits of an address that say where in its piece it is: 64 KiB. A throw after a change sorts the piece anew, and a change
/// copies two words for each text in it; of texts as small as 256 bytes that is 4 KiB.
const PIECE: u32 = 16;

/// An object that libgcc may be looking at. Whoever may have it do so holds it: the table that it is registered with, and
/// when that has been taken back, the texts that the table described.
struct Shared(UnsafeCell<Object>);

// SAFETY: libgcc writes it under its own lock, and we read it when libgcc has given it back.
unsafe impl Send for Shared {}
// SAFETY: the same.
unsafe impl Sync for Shared {}

/// A run in a table.
struct Run {
    at: *const u8,
    /// Objects of earlier tables that described it, and that somebody may be looking at.
    earlier: Vec<Arc<Shared>>,
}

/// A table that libgcc knows.
struct Table {
    runs: Vec<Run>,
    /// What libgcc reads: pointers to the runs, and a null pointer.
    pointers: Vec<*const u8>,
    object: Arc<Shared>,
}

// SAFETY: the pointers are followed by libgcc alone, which locks; their owners outlive the registration.
unsafe impl Send for Table {}

impl Table {
    /// # Safety
    /// Each of the runs is one of whole entries with an end, and stays as it is until the table has been taken back.
    unsafe fn register(runs: Vec<Run>) -> Table {
        let pointers: Vec<*const u8> = runs.iter().map(|run| run.at).chain([ptr::null()]).collect();
        let object = Arc::new(Shared(UnsafeCell::new([0; 8])));
        // SAFETY: a table with an end, of runs as the caller has promised, and room for an object. Both stay where they are
        // until `withdraw` has taken the table back.
        unsafe { __register_frame_info_table(pointers.as_ptr(), object.0.get()) };
        Table { runs, pointers, object }
    }

    /// Takes the table back, by its pointers; says whether libgcc has ever looked at it.
    fn withdraw(pointers: &[*const u8], object: &Shared) -> bool {
        // SAFETY: registered in `register` and not taken back yet: libgcc forgets the table, and gives the object.
        unsafe { __deregister_frame_info(pointers.as_ptr()) };
        // SAFETY: the object is ours, and libgcc writes to it no more; who still looks at it only reads.
        let lowest = unsafe { object.0.get().cast::<usize>().read() };
        lowest != usize::MAX
    }

    /// Puts a table of other runs in the place of this one, if it is of any.
    ///
    /// # Safety
    /// As for [`Table::register`]; only this table may be registered for the runs' addresses.
    unsafe fn replace(self, change: impl FnOnce(&mut Vec<Run>)) -> Option<Table> {
        let Table { mut runs, pointers, object } = self;
        let before = runs.len();
        change(&mut runs);
        // SAFETY: the caller's promise.
        let mut newer = (!runs.is_empty()).then(|| unsafe { Table::register(runs) });
        // After the new one is there.
        if Table::withdraw(&pointers, &object)
            && let Some(newer) = &mut newer
        {
            // A run that was added last was not in the old table.
            newer.runs.iter_mut().take(before).for_each(|run| run.earlier.push(object.clone()));
        }
        newer
    }
}

/// The tables by piece.
static TABLES: Mutex<BTreeMap<u64, Table>> = Mutex::new(BTreeMap::new());

fn tables() -> MutexGuard<'static, BTreeMap<u64, Table>> {
    TABLES.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static OVER_FORK: RefCell<Option<MutexGuard<'static, BTreeMap<u64, Table>>>> = const { RefCell::new(None) };
}

/// Keeps changes out of a fork, so that the child does not find libgcc's lock taken by a thread of ours that it does not
/// have. Until [`after_fork`].
pub(crate) fn before_fork() {
    OVER_FORK.set(Some(tables()));
}

pub(crate) fn after_fork() {
    drop(OVER_FORK.take());
}

/// A run that libgcc knows. Dropping it withdraws it; from then on no throw may pass through its text.
#[derive(Debug)]
pub(crate) struct Registered {
    piece: u64,
    run: *const u8,
}

// SAFETY: the pointer is only compared here.
unsafe impl Send for Registered {}
// SAFETY: the same.
unsafe impl Sync for Registered {}

impl Registered {
    /// Makes a run known that describes the text at `start`.
    ///
    /// # Safety
    /// It is a run of whole entries with absolute addresses and an end, all in one text that begins at `start` and that
    /// no other run describes, and it stays as it is until the result has been dropped.
    pub(crate) unsafe fn new(start: u64, run: *const u8) -> Registered {
        let piece = match Overlapping::of_this_libgcc() {
            Overlapping::Allowed => start >> PIECE,
            Overlapping::Forbidden => start,
        };
        let run = Run { at: run, earlier: Vec::new() };
        let at = run.at;
        let mut tables = tables();
        let table = match tables.remove(&piece) {
            // SAFETY: the caller's promise for the new run, and that of its own caller for each of the others.
            Some(older) => unsafe { older.replace(|runs| runs.push(run)) },
            // SAFETY: the caller's promise.
            None => Some(unsafe { Table::register(vec![run]) }),
        };
        tables.extend(table.map(|table| (piece, table)));
        Registered { piece, run: at }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut tables = tables();
        let Some(older) = tables.remove(&self.piece) else { return };
        let mut gone = None;
        let forget = |runs: &mut Vec<Run>| {
            let place = runs.iter().position(|run| run.at == self.run);
            gone = place.map(|place| runs.remove(place));
        };
        // SAFETY: each of the runs is registered, and so its owner keeps it until it has come here.
        let table = unsafe { older.replace(forget) };
        tables.extend(table.map(|table| (self.piece, table)));
        // Nobody is in the middle of a throw through our text: so from here on we hold no object for it.
        drop(gone);
    }
}

/// Whether two tables may describe the same addresses for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Overlapping {
    /// libgcc to 12.
    Allowed,
    /// libgcc from 13 on: the second one is not taken.
    Forbidden,
}

/// One common entry and one description of 16 bytes, whose address is filled in.
#[repr(align(8))]
struct Trial {
    run: UnsafeCell<[u8; 64]>,
}

// SAFETY: written in `ask` alone, whose callers wait for one another, and read by libgcc.
unsafe impl Sync for Trial {}

/// It stands for the code, too, which no thread runs. libgcc may keep it.
static TRIAL: Trial = Trial { run: UnsafeCell::new([0; 64]) };

impl Overlapping {
    fn of_this_libgcc() -> Overlapping {
        static ASKED: OnceLock<Overlapping> = OnceLock::new();
        *ASKED.get_or_init(Overlapping::ask)
    }

    /// Registers two tables for the same 16 bytes, takes the first back, and looks whether the second one is there.
    fn ask() -> Overlapping {
        static ASKS: Mutex<()> = Mutex::new(());
        let _one_at_a_time = ASKS.lock().unwrap_or_else(PoisonError::into_inner);
        let code = u64::try_from((&raw const TRIAL).expose_provenance()).unwrap_or_default();
        let mut filled = [0; 64];
        let common = [
            20, 0, 0, 0, 0, 0, 0, 0, // length, common information
            1, b'z', b'R', 0, 1, 0x78, 16, 1, 0, // version, "zR", factors 1 and -8, rip, absolute addresses
            0x0c, 7, 8, 0x90, 1, 0, 0, // def_cfa rsp+8; offset rip, cfa-8; nop; nop
        ];
        filled[..24].copy_from_slice(&common);
        filled[24..32].copy_from_slice(&[28, 0, 0, 0, 28, 0, 0, 0]);
        filled[32..40].copy_from_slice(&code.to_le_bytes());
        filled[40..48].copy_from_slice(&16_u64.to_le_bytes());
        // SAFETY: under the lock, and what libgcc may have kept of an earlier call has the same bytes.
        unsafe { TRIAL.run.get().write(filled) };
        let run = || Run { at: TRIAL.run.get().cast(), earlier: Vec::new() };
        // SAFETY: 24 bytes of common information, 32 of a description (no augmentation data, nops), and zeros.
        let first = unsafe { Table::register(vec![run()]) };
        // SAFETY: the same.
        let second = unsafe { Table::register(vec![run()]) };
        Table::withdraw(&first.pointers, &first.object);
        let mut bases = [ptr::null(); 3];
        // SAFETY: any address may be looked for; `bases` has room for three of them.
        let found = unsafe { _Unwind_Find_FDE((&raw const TRIAL).cast(), &raw mut bases) };
        if found.is_null() {
            // Not known to libgcc, which ends the process if it is asked to forget it.
            std::mem::forget(second);
            return Overlapping::Forbidden;
        }
        Table::withdraw(&second.pointers, &second.object);
        Overlapping::Allowed
    }
}

#[cfg(test)]
mod tests {
    use super::{Overlapping, Registered, tables};

    #[test]
    fn the_trial_leaves_nothing_behind() {
        let answer = Overlapping::ask();
        assert_eq!(answer, Overlapping::ask(), "the same each time");
        assert_eq!(answer, Overlapping::of_this_libgcc());
    }

    #[test]
    fn a_piece_has_one_table_and_an_empty_one_none() {
        // Runs without entries: libgcc sorts nothing.
        let empty = Box::new([0_u8; 8]);
        let base = 0x7777_0000_0000;
        let is_ours = |piece: u64| [base >> 16, (base >> 16) + 1, base, base + 0x100, base + 0x1_0000].contains(&piece);
        let count = || tables().keys().filter(|piece| is_ours(**piece)).count();
        let runs: Vec<Registered> = [base, base + 0x100, base + 0x1_0000]
            // SAFETY: a run that ends at once, which outlives the registrations.
            .map(|start| unsafe { Registered::new(start, empty.as_ptr().wrapping_add(usize::from(start != base) * 4)) })
            .into_iter()
            .collect();
        let expected = if Overlapping::of_this_libgcc() == Overlapping::Allowed { 2 } else { 3 };
        assert_eq!(count(), expected);
        drop(runs);
        assert_eq!(count(), 0);
    }
}
