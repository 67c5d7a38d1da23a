//! A module that is there, and the references that keep it there.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use modload_edit::{Addr, NOPS, ZERO, index, wide};
use modload_threads::creation::Creator;
use modload_threads::frames::is_behind_call;

use crate::modules::registry::{ModuleId, Registry};
use crate::modules::subscriber::Accepted;
use crate::prepare::deferred::Slices;
use crate::prepare::layout::Part;
use crate::prepare::memory::{Core, Ranges};
use crate::prepare::names::{Names, Symbol, SymbolKind};
use crate::prepare::params::ParamInfo;
use crate::prepare::policy::Proof;
use crate::vocabulary::escape::escaped;
use crate::vocabulary::functions::Functions;
use crate::vocabulary::state::State;

/// A function of a module, by one of its names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FunctionSymbol {
    /// Its name, escaped.
    pub name: String,
    /// Its address. For an STT_GNU_IFUNC symbol that of the entry by which it is called.
    pub addr: Addr,
    /// Its size in bytes, 0 if the file does not say.
    pub size: u64,
    /// Whether it is one of init's, which go when `init` has returned.
    pub is_init: bool,
}

/// A section of a module, in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SectionInfo {
    /// Its name, escaped.
    pub name: String,
    /// Its address.
    pub addr: Addr,
    /// Its size in bytes.
    pub size: u64,
}

impl SectionInfo {
    /// Whether an address lies in it.
    fn holds(&self, at: Addr) -> bool {
        at.checked_offset_from(self.addr).is_some_and(|offset| offset < self.size)
    }
}

/// A section, its number in the file, and its part.
#[derive(Clone, Debug)]
pub(crate) struct PlacedSection {
    pub(crate) number: u32,
    pub(crate) info: SectionInfo,
    pub(crate) part: Part,
}

/// A module from COMING on.
#[derive(Debug)]
pub struct Module {
    pub(crate) id: ModuleId,
    pub(crate) name: Arc<str>,
    pub(crate) registry: &'static Registry,
    pub(crate) names: Arc<Names>,
    /// Until `init` has returned.
    pub(crate) init_names: Mutex<Option<Arc<Names>>>,
    pub(crate) placed: Vec<PlacedSection>,
    pub(crate) ranges: Ranges,
    pub(crate) functions: Functions,
    pub(crate) params: Mutex<Vec<ParamInfo>>,
    pub(crate) license: Option<String>,
    taint: String,
    is_live_patch: bool,
    patch_record_sizes: Option<String>,
    slices: Option<Box<Slices>>,
    /// Whether code elsewhere may stand in for its own.
    has_stand_ins: AtomicBool,
    stand_ins: Mutex<Vec<Range<u64>>>,
    pub(crate) proof: Proof,
    /// By its number threads know that the module has created them, and destructors of threads that they are the module's.
    pub(crate) creator: Arc<Creator>,
    /// From LIVE on.
    pub(crate) core: Mutex<Option<Core>>,
    pub(crate) accepted: Mutex<Accepted>,
    /// Whether the parts that `init` needed are gone, or about to go.
    pub(crate) init_dropped: AtomicBool,
    /// How many references are held; [`CLOSED`] when no more are given, [`AWAITED`] if somebody waits for their end.
    references: AtomicUsize,
}

/// Set in the number of references when the module is going.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// Set in the number of references while an unload waits for them to go.
const AWAITED: usize = 1 << (usize::BITS - 2);

/// What a module is made of when it is formed.
pub(crate) struct Parts {
    pub(crate) id: ModuleId,
    pub(crate) name: Arc<str>,
    pub(crate) registry: &'static Registry,
    pub(crate) names: Arc<Names>,
    pub(crate) init_names: Option<Arc<Names>>,
    pub(crate) placed: Vec<PlacedSection>,
    pub(crate) ranges: Ranges,
    pub(crate) functions: Functions,
    pub(crate) params: Vec<ParamInfo>,
    pub(crate) license: Option<String>,
    pub(crate) taint: String,
    pub(crate) is_live_patch: bool,
    pub(crate) patch_record_sizes: Option<String>,
    pub(crate) slices: Option<Box<Slices>>,
    pub(crate) proof: Proof,
}

/// Takes a lock of a module's. Of one that is LIVE, or may be looked at, only with the book in hand: fork holds that,
/// and so no child finds the lock taken by a thread that it does not have.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Module {
    pub(crate) fn new(parts: Parts) -> Module {
        Module {
            id: parts.id,
            name: parts.name,
            registry: parts.registry,
            names: parts.names,
            init_names: Mutex::new(parts.init_names),
            placed: parts.placed,
            ranges: parts.ranges,
            functions: parts.functions,
            params: Mutex::new(parts.params),
            license: parts.license,
            taint: parts.taint,
            is_live_patch: parts.is_live_patch,
            patch_record_sizes: parts.patch_record_sizes,
            slices: parts.slices,
            has_stand_ins: AtomicBool::new(false),
            stand_ins: Mutex::new(Vec::new()),
            proof: parts.proof,
            creator: Arc::new(Creator::new()),
            core: Mutex::new(None),
            accepted: Mutex::new(Accepted::default()),
            init_dropped: AtomicBool::new(false),
            references: AtomicUsize::new(0),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its licence, escaped, if it states one.
    #[must_use]
    pub fn license(&self) -> Option<&str> {
        self.license.as_deref()
    }

    /// What it taints its host with, in Linux's letters: P for a licence that is not compatible with the GPL, F for a
    /// rule that it breaks and the policy let pass, K for a live patch.
    #[must_use]
    pub fn taint(&self) -> &str {
        &self.taint
    }

    /// Whether its `.modinfo` says that it is a live patch.
    #[must_use]
    pub fn is_live_patch(&self) -> bool {
        self.is_live_patch
    }

    /// The sizes of its `struct klp_func`, `struct klp_object` and `struct klp_patch`, with commas between them, as its `.modinfo` says.
    #[must_use]
    pub fn patch_record_sizes(&self) -> Option<&str> {
        self.patch_record_sizes.as_deref()
    }

    /// What of it waits for objects that it patches.
    #[must_use]
    pub fn slices(&self) -> Option<&Slices> {
        self.slices.as_deref()
    }

    /// Whether it is COMING, and this thread is the one that loads it: this is called from its `init`, or from what that calls.
    #[must_use]
    pub fn is_in_init_here(&self) -> bool {
        let book = self.registry.lock();
        let here = thread::current().id();
        book.by_id(self.id).is_some_and(|entry| entry.state == State::Coming && entry.thread == here)
    }

    /// Its state; `None` once it is freed.
    #[must_use]
    pub fn state(&self) -> Option<State> {
        self.registry.lock().by_id(self.id).map(|entry| entry.state)
    }

    /// The symbol of this name, exported or not, a global one before a local one; or what the module exports under this
    /// name, whatever it calls it itself. Symbols of init sections are there until `init` has returned.
    #[must_use]
    pub fn symbol_info(&self, name: &str) -> Option<Symbol> {
        let init = || {
            let _book = self.registry.lock();
            lock(&self.init_names).as_ref().and_then(|names| names.find(name.as_bytes()))
        };
        self.lasting_symbol(name).or_else(init)
    }

    /// As [`Module::symbol_info`], but only what stays for as long as the module does: nothing of its init sections.
    #[must_use]
    pub fn lasting_symbol(&self, name: &str) -> Option<Symbol> {
        self.names.find(name.as_bytes()).or_else(|| self.exported(name))
    }

    /// The symbol at this address, a global one before a local one, and one whose size is known before others. Nothing of its init
    /// sections.
    #[must_use]
    pub fn symbol_at(&self, at: Addr) -> Option<Symbol> {
        self.names.at(at)
    }

    /// Its functions by address, those of init as long as `init` has not returned. One that has several names is there
    /// under each: global ones before local ones, and then by name. What a file in assembly gives no type is no function.
    ///
    /// The list is made anew each time, in O(n log n).
    #[must_use]
    pub fn functions(&self) -> Vec<FunctionSymbol> {
        let init = {
            let _book = self.registry.lock();
            lock(&self.init_names).clone()
        };
        let core = self.names.functions().map(|function| (function, false));
        let of_init = init.iter().flat_map(|names| names.functions()).map(|function| (function, true));
        let mut functions: Vec<_> = core.chain(of_init).collect();
        functions.sort_unstable();
        let symbol = |((addr, _, name, size), is_init)| FunctionSymbol { name: escaped(name), addr, size, is_init };
        functions.into_iter().map(symbol).collect()
    }

    /// The addresses of its functions of this name, in the order of its symbol table: Linux's symbol positions, from 1.
    #[must_use]
    pub fn positions(&self, name: &str) -> Vec<Addr> {
        let init = {
            let _book = self.registry.lock();
            lock(&self.init_names).clone()
        };
        let all = self.names.functions().chain(init.iter().flat_map(|names| names.functions()));
        all.filter(|(_, _, of, _)| *of == name.as_bytes()).map(|(addr, ..)| addr).collect()
    }

    /// For each of these names the addresses of its symbols of that name, in the order of its symbol table, variables among
    /// them. Those of init's sections are left out: they go.
    #[must_use]
    pub fn symbol_positions<'n>(&self, names: impl IntoIterator<Item = &'n [u8]>) -> BTreeMap<&'n [u8], Vec<Addr>> {
        let mut positions = names.into_iter().map(|name| (name, Vec::new())).collect();
        self.names.enter_all(&mut positions);
        positions
    }

    /// Has those who accepted it asked, when it goes, for code elsewhere that stands in for its own:
    /// [`Subscriber::stand_ins`](crate::Subscriber::stand_ins).
    pub fn expect_stand_ins(&self) {
        self.has_stand_ins.store(true, Ordering::Release);
    }

    pub(crate) fn has_stand_ins(&self) -> bool {
        self.has_stand_ins.load(Ordering::Acquire)
    }

    pub(crate) fn set_stand_ins(&self, code: Vec<Range<u64>>) {
        let _book = self.registry.lock();
        *lock(&self.stand_ins) = code;
    }

    /// What was said to stand in for its code when it was last asked.
    pub(crate) fn stand_ins(&self) -> Vec<Range<u64>> {
        if !self.has_stand_ins() {
            return Vec::new();
        }
        let _book = self.registry.lock();
        lock(&self.stand_ins).clone()
    }

    /// What the module exports under this name.
    fn exported(&self, name: &str) -> Option<Symbol> {
        let book = self.registry.lock();
        let addr = book.exports.get(name.as_bytes()).filter(|export| export.module == self.id)?.addr;
        let (text, len) = self.ranges[Part::Text.slot()];
        let in_text = addr.checked_offset_from(text).is_some_and(|offset| offset < len);
        let kind = if in_text { SymbolKind::Function } else { SymbolKind::Object };
        Some(Symbol { addr, size: 0, kind })
    }

    /// Its sections in the order of its file; those of init are there until `init` has returned.
    pub fn sections(&self) -> impl Iterator<Item = &SectionInfo> {
        self.placed.iter().filter(|placed| self.has(placed.part)).map(|placed| &placed.info)
    }

    /// Bytes of text, read-only data, data and ro_after_init data that it keeps while LIVE.
    #[must_use]
    pub fn sizes(&self) -> [u64; 4] {
        [Part::Text, Part::ReadOnly, Part::Data, Part::RoAfterInit].map(|part| self.ranges[part.slot()].1)
    }

    /// Its parameters.
    #[must_use]
    pub fn params(&self) -> Vec<ParamInfo> {
        let _book = self.registry.lock();
        lock(&self.params).clone()
    }

    /// The value of a parameter as it is in the module's memory now. `None` if there is no such parameter, if it was
    /// one of init's, or if the module is not LIVE.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<String> {
        let _book = self.registry.lock();
        let core = lock(&self.core);
        let core = core.as_ref()?;
        lock(&self.params).iter().find(|param| param.is_named(name))?.show(&|at, len| core.read(at, len))
    }

    /// Whether a frame may go on at a place in its text. Where a function begins none does, unless a call ends the one
    /// before it, or what a static call leaves where it calls nothing; anywhere else one may.
    pub(crate) fn may_be_returned_to(&self, at: Addr) -> bool {
        const LONGEST_CALL: u64 = 8;
        if !self.names.begins_at(at) && at != self.ranges[Part::Text.slot()].0 {
            return true;
        }
        let core = lock(&self.core);
        let Some(core) = core.as_ref() else { return true };
        let (text, _) = self.ranges[Part::Text.slot()];
        let len = at.checked_offset_from(text).unwrap_or(0).min(LONGEST_CALL);
        core.code(at.offset(-len.cast_signed()), index(len)).is_none_or(|before| {
            let was_call = [NOPS[4], NOPS[5], &ZERO].iter().any(|was| before.ends_with(was));
            was_call || is_behind_call(&before)
        })
    }

    /// How many references are held.
    #[must_use]
    pub fn references(&self) -> usize {
        self.references.load(Ordering::Relaxed) & !(CLOSED | AWAITED)
    }

    /// The modules that use its symbols.
    #[must_use]
    pub fn users(&self) -> Vec<String> {
        self.registry.lock().users(self.id)
    }

    /// The modules whose symbols it uses.
    #[must_use]
    pub fn uses(&self) -> Vec<String> {
        self.registry.lock().providers(self.id)
    }

    /// The address of its `struct module`, if it refers to it.
    #[must_use]
    pub fn this_module(&self) -> Option<Addr> {
        self.functions.this_module
    }

    /// What threads that it creates know it by.
    #[must_use]
    pub fn creator(&self) -> Arc<Creator> {
        self.creator.clone()
    }

    /// Whether an address lies in the module's memory. That of its init sections is others' when `init` has returned.
    #[must_use]
    pub fn contains(&self, at: Addr) -> bool {
        let mut ranges = Part::ALL.into_iter().zip(self.ranges).filter(|(part, _)| self.has(*part));
        ranges.any(|(_, (start, len))| at.checked_offset_from(start).is_some_and(|offset| offset < len))
    }

    /// Whether a range lies in one part of its memory: text, read-only data, variables.
    #[must_use]
    pub fn holds(&self, at: Addr, len: u64) -> bool {
        Part::ALL.into_iter().any(|part| self.has(part) && self.part_holds(part, at, len))
    }

    /// Whether a range lies among its variables that are there, and can be written, for as long as the module is.
    #[must_use]
    pub fn holds_variable(&self, at: Addr, len: u64) -> bool {
        self.part_holds(Part::Data, at, len)
    }

    /// Whether an address lies in its text, that of init aside.
    #[must_use]
    pub fn holds_code(&self, at: Addr) -> bool {
        self.part_holds(Part::Text, at, 1)
    }

    fn part_holds(&self, part: Part, at: Addr, len: u64) -> bool {
        let (start, size) = self.ranges[part.slot()];
        at.checked_offset_from(start).is_some_and(|offset| size.checked_sub(offset).is_some_and(|left| len <= left))
    }

    /// Whether a part is still this module's.
    fn has(&self, part: Part) -> bool {
        !part.is_init() || !self.init_dropped.load(Ordering::Acquire)
    }

    /// Section and offset of an address in this module, for people and for snapshots: `.text+0x10`.
    #[must_use]
    pub fn display_place(&self, at: Addr) -> Option<String> {
        self.sections().find_map(|section| {
            let offset = at.checked_offset_from(section.addr).filter(|offset| *offset < section.size)?;
            Some(format!("{}+{offset:#x}", section.name))
        })
    }

    /// An address in this module as Linux's `%pS` shows it: `func+0x12/0x40 [module]`, distance and size; the section in
    /// place of a function that no symbol states the size of; the address itself outside of its sections (a PLT entry).
    /// `None` if the module has nothing there.
    #[must_use]
    pub fn describe(&self, at: Addr) -> Option<String> {
        self.describe_behind(at, 0)
    }

    /// [`Module::describe`] of a return address, Linux's `%pB`: the function is that of the call before it, which may be
    /// the last instruction.
    #[must_use]
    pub fn describe_return(&self, at: Addr) -> Option<String> {
        self.describe_behind(at.offset(-1), 1)
    }

    /// What is `distance` behind an address, by what holds the address.
    fn describe_behind(&self, at: Addr, distance: u64) -> Option<String> {
        if !self.contains(at) {
            return None;
        }
        let function = |names: &Names| {
            let (name, offset, size) = names.function_at(at)?;
            Some(format!("{}+{:#x}/{size:#x}", escaped(name), offset + distance))
        };
        let init = || {
            let _book = self.registry.lock();
            lock(&self.init_names).as_deref().and_then(function)
        };
        let section = || {
            let section = self.sections().find(|section| section.holds(at))?;
            Some(format!("{}+{:#x}", section.name, at.checked_offset_from(section.addr)? + distance))
        };
        let place = function(&self.names).or_else(init).or_else(section);
        Some(format!("{} [{}]", place.unwrap_or_else(|| (at + distance).to_string()), self.name))
    }

    /// Where its text is, if it has any.
    pub(crate) fn text(&self) -> Option<Range<u64>> {
        let (start, len) = self.ranges[Part::Text.slot()];
        (len != 0).then(|| start.get()..start.get() + len)
    }

    /// Gives references again.
    pub(crate) fn reopen(&self) {
        self.references.fetch_and(!CLOSED, Ordering::Release);
    }

    /// Counts a reference, unless the module is going: Linux's `try_module_get`. Of one that is COMING, too.
    #[must_use]
    pub fn get(self: &Arc<Module>) -> Option<Reference> {
        let more = |count: usize| (count & CLOSED == 0).then_some(count + 1);
        self.references.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).ok()?;
        Some(Reference { module: self.clone() })
    }

    /// Gives no more references, if none is held. Otherwise says how many are.
    pub(crate) fn close(&self) -> Result<(), usize> {
        let unused = |count: usize| (count & !AWAITED == 0).then_some(CLOSED);
        match self.references.fetch_update(Ordering::AcqRel, Ordering::Relaxed, unused) {
            Ok(_) => Ok(()),
            Err(count) => Err(count & !(CLOSED | AWAITED)),
        }
    }

    /// Gives no more references, and says how many are held.
    pub(crate) fn close_by_force(&self) -> usize {
        self.references.fetch_or(CLOSED, Ordering::AcqRel) & !(CLOSED | AWAITED)
    }

    /// Each reference that is dropped from here on wakes who waits for a change of the registry, whose book the caller
    /// has in hand. Whether that is new: the caller looks at their number once more then.
    pub(crate) fn await_references(&self) -> bool {
        self.references.fetch_or(AWAITED, Ordering::Acquire) & AWAITED == 0
    }

    /// Takes [`Module::await_references`] back.
    pub(crate) fn forget_waiting(&self) {
        self.references.fetch_and(!AWAITED, Ordering::Relaxed);
    }
}

/// A counted reference: as long as one is held, the module cannot be unloaded.
pub struct Reference {
    module: Arc<Module>,
}

impl std::ops::Deref for Reference {
    type Target = Module;
    fn deref(&self) -> &Module {
        &self.module
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reference").field(&self.module.name).finish()
    }
}

impl Clone for Reference {
    fn clone(&self) -> Reference {
        // A module with a reference is not closed.
        self.module.references.fetch_add(1, Ordering::Relaxed);
        Reference { module: self.module.clone() }
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        let before = self.module.references.fetch_sub(1, Ordering::Release);
        if before & AWAITED != 0 {
            self.module.registry.wake_waiting();
        }
    }
}

/// What a file's sections are called once they have addresses.
pub(crate) fn sections(
    file: &crate::elf::file::File<'_>,
    layout: &crate::prepare::layout::Layout,
    memory: &crate::prepare::memory::Staging,
) -> Vec<PlacedSection> {
    let numbered = (0..).zip(file.sections.iter().zip(&layout.sections));
    let placed = numbered.filter_map(|(number, (section, spot))| {
        let spot = (*spot)?;
        let name = escaped(section.name);
        let info = SectionInfo { name, addr: memory.addr(spot), size: section.size.max(wide(section.data.len())) };
        Some(PlacedSection { number, info, part: spot.part })
    });
    placed.collect()
}
