//! Registration of rows with the process's own unwinder, libgcc's, which exceptions, panics and `backtrace(3)` use.
//!
//! `__register_frame_info_table` registers runs of descriptions with libgcc: its argument is a table of pointers to
//! runs. Facts of libgcc 12 (unwind-dw2-fde.c):
//! - libgcc keeps tables in two lists. Each throw searches one of them for the first table whose lowest address is not
//!   above the searched address; if that table has no description, libgcc searches no other table. So the ranges of
//!   tables must not interleave. An address that is in no table is looked up in the process's objects.
//! - libgcc sorts a table at its first search. Until then the table's addresses are not known, and the table costs a
//!   list entry.
//! - Deregistering a table searches both lists.
//! - A thread that has found a description still reads the table's `struct object` after it has released the lock. So
//!   the object must not be freed or reused with its table, as long as a thread can be in the middle of a throw through
//!   a text of the table.
//!
//! So a table for each module would make a throw and an unload slower with each other module: with 10,000 modules, a
//! throw takes 400 us instead of 4, and the first throw half a second. Here the text of modules is cut into pieces by
//! address, with one table for each piece: a text belongs to the table of the piece in which the text begins. When a
//! piece changes, the new table is registered before the old one is deregistered: a throw elsewhere always finds one of
//! the two. If libgcc has ever read the old table's object, the object is kept until each text that it described is
//! gone: a throw through any of these texts is over then. (The cost is about 100 bytes for each change that follows a
//! throw, and matters only where one module stays and its neighbours are loaded and unloaded often.)
//!
//! libgcc 13 keeps a tree of ranges instead, in which no two ranges may overlap, so the new table cannot be registered
//! beside the old one. For libgcc 13, a table for each text is right, and cheap. One trial finds out which of the two
//! this libgcc is ([`Overlapping`]).

use std::cell::{RefCell, UnsafeCell};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::x86_64::{AT_ENTRY_PROGRAM, FACTORS};

#[link(name = "gcc_s")]
unsafe extern "C" {
    fn __register_frame_info_table(table: *const *const u8, object: *mut Object);
    fn __deregister_frame_info(table: *const *const u8) -> *mut Object;
    fn _Unwind_Find_FDE(pc: *const c_void, bases: *mut [*const c_void; 3]) -> *const c_void;
}

/// Room for libgcc's `struct object`, whose size is part of the ABI: six words. The object's first word is the lowest address of
/// the table; the word is all ones until libgcc has searched the table.
type Object = [usize; 8];

/// The number of low bits of an address that give the offset in its piece: pieces of 64 KiB. A throw after a change
/// sorts the piece again, and a change copies two words for each text in the piece; with texts as small as 256 bytes
/// that is 4 KiB.
const PIECE: u32 = 16;

/// An object that libgcc may be reading. The object's holders are the table that it is registered with and, after that table is
/// deregistered, the texts that the table described.
struct Shared(UnsafeCell<Object>);

// SAFETY: libgcc writes the object under its own lock, and this module reads it after libgcc has given it back.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A run in a table.
struct Run {
    at: *const u8,
    /// Objects of earlier tables that described this run. A thread may still be reading them.
    earlier: Vec<Arc<Shared>>,
}

/// A table that is registered with libgcc.
struct RegisteredTable {
    runs: Vec<Run>,
    /// The array that libgcc reads: pointers to the runs, and a null pointer.
    pointers: Vec<*const u8>,
    object: Arc<Shared>,
}

// SAFETY: only libgcc follows the pointers, under its lock; the owners of the runs outlive the registration.
unsafe impl Send for RegisteredTable {}

impl RegisteredTable {
    /// # Safety
    /// Each run consists of whole entries with an end, and does not change until the table has been deregistered.
    unsafe fn register(runs: Vec<Run>) -> RegisteredTable {
        let pointers: Vec<*const u8> = runs.iter().map(|run| run.at).chain([ptr::null()]).collect();
        let object = Arc::new(Shared(UnsafeCell::new([0; 8])));
        // SAFETY: a table with an end, of runs as the caller has promised, and room for an object. Neither moves until
        // `withdraw` has deregistered the table.
        unsafe { __register_frame_info_table(pointers.as_ptr(), object.0.get()) };
        RegisteredTable { runs, pointers, object }
    }

    /// Deregisters the table, by its pointers. Returns whether libgcc has ever searched the table.
    fn withdraw(pointers: &[*const u8], object: &Shared) -> bool {
        // SAFETY: `register` registered the table, and it is not deregistered yet: libgcc forgets the table, and
        // returns the object.
        unsafe { __deregister_frame_info(pointers.as_ptr()) };
        // SAFETY: this module owns the object, and libgcc writes to it no more; threads that still use it only read.
        let lowest = unsafe { object.0.get().cast::<usize>().read() };
        lowest != usize::MAX
    }

    /// Replaces this table by a table of the changed runs, or by none if no run is left.
    ///
    /// # Safety
    /// As for [`RegisteredTable::register`]; only this table may be registered for the runs' addresses.
    unsafe fn replace(self, change: impl FnOnce(&mut Vec<Run>)) -> Option<RegisteredTable> {
        let RegisteredTable { mut runs, pointers, object } = self;
        let before = runs.len();
        change(&mut runs);
        // SAFETY: the caller's promise.
        let mut newer = (!runs.is_empty()).then(|| unsafe { RegisteredTable::register(runs) });
        // The old table is deregistered only after the new one is registered.
        if RegisteredTable::withdraw(&pointers, &object)
            && let Some(newer) = &mut newer
        {
            // The run that was added last was not in the old table.
            newer.runs.iter_mut().take(before).for_each(|run| run.earlier.push(object.clone()));
        }
        newer
    }
}

/// The tables, by piece.
static TABLES: Mutex<BTreeMap<u64, RegisteredTable>> = Mutex::new(BTreeMap::new());

fn tables() -> MutexGuard<'static, BTreeMap<u64, RegisteredTable>> {
    TABLES.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static OVER_FORK: RefCell<Option<MutexGuard<'static, BTreeMap<u64, RegisteredTable>>>> = const { RefCell::new(None) };
}

/// Keeps changes out of a fork until [`after_fork`], so that libgcc's lock is not held by a thread that the child does
/// not have.
pub(crate) fn before_fork() {
    OVER_FORK.set(Some(tables()));
}

pub(crate) fn after_fork() {
    drop(OVER_FORK.take());
}

/// A run that libgcc knows. Dropping this value withdraws the run; from then on no throw may pass through its text.
#[derive(Debug)]
pub(crate) struct RegisteredRun {
    piece: u64,
    run: *const u8,
}

// SAFETY: the pointer is only compared here.
unsafe impl Send for RegisteredRun {}
// SAFETY: as above.
unsafe impl Sync for RegisteredRun {}

impl RegisteredRun {
    /// Registers a run that describes the text at `start`.
    ///
    /// # Safety
    /// `run` consists of whole entries with absolute addresses and an end, all in one text that begins at `start` and
    /// that no other run describes. The run does not change until the result has been dropped.
    pub(crate) unsafe fn new(start: u64, run: *const u8) -> RegisteredRun {
        let piece = match Overlapping::of_this_libgcc() {
            Overlapping::Allowed => start >> PIECE,
            Overlapping::Forbidden => start,
        };
        let run = Run { at: run, earlier: Vec::new() };
        let at = run.at;
        let mut tables = tables();
        let table = match tables.remove(&piece) {
            // SAFETY: this caller promises it for the new run, and the caller of each other run promised it for that
            // run.
            Some(older) => unsafe { older.replace(|runs| runs.push(run)) },
            // SAFETY: the caller's promise for the new run.
            None => Some(unsafe { RegisteredTable::register(vec![run]) }),
        };
        tables.extend(table.map(|table| (piece, table)));
        RegisteredRun { piece, run: at }
    }
}

impl Drop for RegisteredRun {
    fn drop(&mut self) {
        let mut tables = tables();
        let Some(older) = tables.remove(&self.piece) else { return };
        let mut gone = None;
        let forget = |runs: &mut Vec<Run>| {
            let place = runs.iter().position(|run| run.at == self.run);
            gone = place.map(|place| runs.remove(place));
        };
        // SAFETY: each of the runs is registered, so its owner keeps it until it is dropped here.
        let table = unsafe { older.replace(forget) };
        tables.extend(table.map(|table| (self.piece, table)));
        // No thread is in the middle of a throw through this text, so the text needs its objects no longer.
        drop(gone);
    }
}

/// Tells whether two tables may describe the same addresses for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Overlapping {
    /// libgcc up to 12.
    Allowed,
    /// libgcc from 13 on: libgcc does not accept the second table.
    Forbidden,
}

/// A common entry and one description of 16 bytes. The address of the description is filled in later.
#[repr(align(8))]
struct Trial {
    run: UnsafeCell<[u8; 64]>,
}

// SAFETY: only `ask` writes the bytes, one call at a time, and libgcc reads them.
unsafe impl Sync for Trial {}

/// The trial's run. The run's address also serves as the described code, which no thread runs. libgcc may keep the run.
static TRIAL: Trial = Trial { run: UnsafeCell::new([0; 64]) };

impl Overlapping {
    fn of_this_libgcc() -> Overlapping {
        static ASKED: OnceLock<Overlapping> = OnceLock::new();
        *ASKED.get_or_init(Overlapping::ask)
    }

    /// Registers two tables for the same 16 bytes, deregisters the first, and checks whether libgcc finds the second.
    fn ask() -> Overlapping {
        static ASKS: Mutex<()> = Mutex::new(());
        let _one_at_a_time = ASKS.lock().unwrap_or_else(PoisonError::into_inner);
        let code = u64::try_from((&raw const TRIAL).expose_provenance()).unwrap_or_default();
        let mut filled = [0; 64];
        let [code_factor, data_factor, return_address] = FACTORS;
        let common = [
            20,
            0,
            0,
            0,
            0,
            0,
            0,
            0, // length, common information
            1,
            b'z',
            b'R',
            0,
            code_factor,
            data_factor,
            return_address,
            1,
            0, // version, "zR", absolute addresses
        ];
        filled[..17].copy_from_slice(&common);
        // The zeros behind the program are NOPs.
        filled[17..22].copy_from_slice(&AT_ENTRY_PROGRAM);
        filled[24..32].copy_from_slice(&[28, 0, 0, 0, 28, 0, 0, 0]);
        filled[32..40].copy_from_slice(&code.to_le_bytes());
        filled[40..48].copy_from_slice(&16_u64.to_le_bytes());
        // SAFETY: the lock is held, and any run that libgcc kept of an earlier call has the same bytes.
        unsafe { TRIAL.run.get().write(filled) };
        let run = || Run { at: TRIAL.run.get().cast(), earlier: Vec::new() };
        // SAFETY: 24 bytes of common information, 32 of a description (no augmentation data, nops), and zeros.
        let first = unsafe { RegisteredTable::register(vec![run()]) };
        // SAFETY: as above.
        let second = unsafe { RegisteredTable::register(vec![run()]) };
        RegisteredTable::withdraw(&first.pointers, &first.object);
        let mut bases = [ptr::null(); 3];
        // SAFETY: any address may be looked up; `bases` has room for three pointers.
        let found = unsafe { _Unwind_Find_FDE((&raw const TRIAL).cast(), &raw mut bases) };
        if found.is_null() {
            // libgcc does not know the second table, and would end the process at its deregistration.
            std::mem::forget(second);
            return Overlapping::Forbidden;
        }
        RegisteredTable::withdraw(&second.pointers, &second.object);
        Overlapping::Allowed
    }
}

#[cfg(test)]
mod tests {
    use super::{Overlapping, RegisteredRun, tables};

    #[test]
    fn the_trial_leaves_nothing_behind() {
        let answer = Overlapping::ask();
        assert_eq!(answer, Overlapping::ask(), "the same each time");
        assert_eq!(answer, Overlapping::of_this_libgcc());
    }

    #[test]
    fn a_piece_has_one_table_and_an_empty_one_none() {
        // Runs without entries, so libgcc has nothing to sort.
        let empty = Box::new([0_u8; 8]);
        let base = 0x7777_0000_0000;
        let is_ours = |piece: u64| [base >> 16, (base >> 16) + 1, base, base + 0x100, base + 0x1_0000].contains(&piece);
        let count = || tables().keys().filter(|piece| is_ours(**piece)).count();
        let runs: Vec<RegisteredRun> = [base, base + 0x100, base + 0x1_0000]
            // SAFETY: a run that consists of its end only, which outlives the registrations.
            .map(|start| unsafe {
                RegisteredRun::new(start, empty.as_ptr().wrapping_add(usize::from(start != base) * 4))
            })
            .into_iter()
            .collect();
        let expected = if Overlapping::of_this_libgcc() == Overlapping::Allowed { 2 } else { 3 };
        assert_eq!(count(), expected);
        drop(runs);
        assert_eq!(count(), 0);
    }
}
