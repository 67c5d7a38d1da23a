//! A module in memory, and the references that prevent unloading.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use modload_edit::{Addr, NOPS, ZERO, index, wide};
use modload_threads::creation::Creator;
use modload_threads::frames::is_behind_call;

use crate::modules::registry::Registry;
use crate::modules::subscriber::Accepted;
use crate::prepare::deferred::Slices;
use crate::prepare::layout::MemoryPart;
use crate::prepare::memory::{Core, PartRanges};
use crate::prepare::names::{ModuleSymbol, ModuleSymbolKind, SymbolNames};
use crate::prepare::params::ParamInfo;
use crate::prepare::policy::Proof;
use crate::vocabulary::escape::escaped;
use crate::vocabulary::functions::EntryPoints;
use crate::vocabulary::module_id::ModuleId;
use crate::vocabulary::state::State;

/// A function of a module, under one of several possible names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FunctionSymbol {
    /// Name of the function, escaped.
    pub name: String,
    /// Address of the function. For an STT_GNU_IFUNC symbol, the address of the PLT entry.
    pub addr: Addr,
    /// Size of the function in bytes, 0 if the file does not state one.
    pub size: u64,
    /// Whether the function is in an init section, which is freed when `init` has returned.
    pub is_init: bool,
}

/// A section of a module, in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SectionInfo {
    /// Name of the section, escaped.
    pub name: String,
    /// Address of the section.
    pub addr: Addr,
    /// Size of the section in bytes.
    pub size: u64,
}

impl SectionInfo {
    /// Whether an address lies in this section.
    fn holds(&self, at: Addr) -> bool {
        at.checked_offset_from(self.addr).is_some_and(|offset| offset < self.size)
    }
}

/// A section with its number in the file and its part of memory.
#[derive(Clone, Debug)]
pub(crate) struct PlacedSection {
    pub(crate) number: u32,
    pub(crate) info: SectionInfo,
    pub(crate) part: MemoryPart,
}

/// A module from COMING on.
#[derive(Debug)]
pub struct Module {
    pub(crate) id: ModuleId,
    pub(crate) name: Arc<str>,
    /// The name for C callers.
    c_name: CString,
    pub(crate) registry: &'static Registry,
    pub(crate) names: Arc<SymbolNames>,
    /// Until `init` has returned.
    pub(crate) init_names: Mutex<Option<Arc<SymbolNames>>>,
    pub(crate) placed: Vec<PlacedSection>,
    pub(crate) ranges: PartRanges,
    pub(crate) functions: EntryPoints,
    pub(crate) params: Mutex<Vec<ParamInfo>>,
    pub(crate) license: Option<String>,
    taint: String,
    is_live_patch: bool,
    patch_record_sizes: Option<String>,
    slices: Option<Box<Slices>>,
    /// Whether code of other modules may replace functions of this one.
    has_stand_ins: AtomicBool,
    stand_ins: Mutex<Vec<Range<u64>>>,
    pub(crate) proof: Proof,
    /// Number by which threads and destructors of threads are known to belong to this module.
    pub(crate) creator: Arc<Creator>,
    /// Number of the block of the module's thread-local variables.
    pub(crate) block: Option<u32>,
    /// Number of unloads that wait for destructors of threads.
    pub(crate) awaits_destructors: AtomicUsize,
    /// From LIVE on.
    pub(crate) core: Mutex<Option<Core>>,
    pub(crate) accepted: Mutex<Accepted>,
    /// Whether the parts that only `init` needed are freed, or about to be freed.
    pub(crate) init_dropped: AtomicBool,
    /// Number of references. [`CLOSED`] is set when no more are given, [`AWAITED`] if an unload waits for the last one.
    references: AtomicUsize,
}

/// Set in the number of references when the module is going.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// Set in the number of references while an unload waits for the last reference.
const AWAITED: usize = 1 << (usize::BITS - 2);

/// The parts from which a module is formed.
pub(crate) struct ModuleParts {
    pub(crate) id: ModuleId,
    pub(crate) name: Arc<str>,
    pub(crate) registry: &'static Registry,
    pub(crate) names: Arc<SymbolNames>,
    pub(crate) init_names: Option<Arc<SymbolNames>>,
    pub(crate) placed: Vec<PlacedSection>,
    pub(crate) ranges: PartRanges,
    pub(crate) functions: EntryPoints,
    pub(crate) params: Vec<ParamInfo>,
    pub(crate) license: Option<String>,
    pub(crate) taint: String,
    pub(crate) is_live_patch: bool,
    pub(crate) patch_record_sizes: Option<String>,
    pub(crate) slices: Option<Box<Slices>>,
    pub(crate) proof: Proof,
    pub(crate) block: Option<u32>,
}

/// Takes a lock of a module. For a module that is LIVE or visible, the caller must hold the lock of the book: fork
/// takes that lock, so a child never finds a module's lock taken by a thread that does not exist.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Module {
    pub(crate) fn new(parts: ModuleParts) -> Module {
        Module {
            id: parts.id,
            c_name: CString::new(parts.name.as_bytes()).unwrap_or_default(),
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
            block: parts.block,
            awaits_destructors: AtomicUsize::new(0),
            core: Mutex::new(None),
            accepted: Mutex::new(Accepted::default()),
            init_dropped: AtomicBool::new(false),
            references: AtomicUsize::new(0),
        }
    }

    /// Name of the module.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name of the module for C callers, valid as long as this value.
    #[must_use]
    pub fn c_name(&self) -> &CStr {
        &self.c_name
    }

    /// Returns the start of the module's text.
    #[must_use]
    pub fn text_start(&self) -> Addr {
        self.ranges[MemoryPart::Text.slot()].0
    }

    /// Returns the function or variable that contains an address, except those that only `init` needed: name and
    /// address, as dladdr(3) has them.
    #[must_use]
    pub fn containing(&self, at: Addr) -> Option<(&CStr, Addr)> {
        self.names.containing(at)
    }

    /// Licence of the module, escaped, if `.modinfo` states one.
    #[must_use]
    pub fn license(&self) -> Option<&str> {
        self.license.as_deref()
    }

    /// Returns the taint letters of the module, as in Linux: P for a licence that is not compatible with the GPL, F for
    /// a broken rule that the policy has allowed, K for a live patch.
    #[must_use]
    pub fn taint(&self) -> &str {
        &self.taint
    }

    /// Whether `.modinfo` marks the module as a live patch.
    #[must_use]
    pub fn is_live_patch(&self) -> bool {
        self.is_live_patch
    }

    /// Returns the sizes of `struct klp_func`, `struct klp_object` and `struct klp_patch`, separated by commas, as
    /// stated in `.modinfo`.
    #[must_use]
    pub fn patch_record_sizes(&self) -> Option<&str> {
        self.patch_record_sizes.as_deref()
    }

    /// Returns the relocations and records that wait for objects of this live patch.
    #[must_use]
    pub fn slices(&self) -> Option<&Slices> {
        self.slices.as_deref()
    }

    /// Whether the module is COMING and this thread is loading the module: true in calls from the module's `init`.
    #[must_use]
    pub fn is_in_init_here(&self) -> bool {
        let book = self.registry.lock();
        let here = thread::current().id();
        book.by_id(self.id).is_some_and(|entry| entry.state == State::Coming && entry.thread == here)
    }

    /// State of the module; `None` once the module is freed.
    #[must_use]
    pub fn state(&self) -> Option<State> {
        self.registry.lock().by_id(self.id).map(|entry| entry.state)
    }

    /// Returns the symbol of this name, exported or not, a global one before a local one; or the symbol that is
    /// exported under this name, if the internal name is another one. Symbols of init sections exist until `init` has
    /// returned.
    #[must_use]
    pub fn symbol_info(&self, name: &str) -> Option<ModuleSymbol> {
        let init = || {
            let _book = self.registry.lock();
            lock(&self.init_names).as_ref().and_then(|names| names.find(name.as_bytes()))
        };
        self.lasting_symbol(name).or_else(init)
    }

    /// Like [`Module::symbol_info`], without symbols of init sections.
    #[must_use]
    pub fn lasting_symbol(&self, name: &str) -> Option<ModuleSymbol> {
        self.names.find(name.as_bytes()).or_else(|| self.exported(name))
    }

    /// Returns the symbol at this address: a global one before a local one, and one with a known size before others.
    /// Symbols of init sections are left out.
    #[must_use]
    pub fn symbol_at(&self, at: Addr) -> Option<ModuleSymbol> {
        self.names.at(at)
    }

    /// Returns the functions by address; those of init sections until `init` has returned. A function with several
    /// names is listed under each: global names before local ones, and then by name. A symbol without type, as assembly
    /// may have, is not a function.
    ///
    /// Builds the list at each call, in O(n log n).
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

    /// Returns the addresses of the functions of this name, in the order of the symbol table: Linux's symbol positions,
    /// from 1.
    #[must_use]
    pub fn positions(&self, name: &str) -> Vec<Addr> {
        let init = {
            let _book = self.registry.lock();
            lock(&self.init_names).clone()
        };
        let all = self.names.functions().chain(init.iter().flat_map(|names| names.functions()));
        all.filter(|(_, _, of, _)| *of == name.as_bytes()).map(|(addr, ..)| addr).collect()
    }

    /// Returns, for each of these names, the addresses of all symbols of that name, in the order of the symbol table,
    /// including variables. Symbols of init sections are left out, because they are freed.
    #[must_use]
    pub fn symbol_positions<'n>(&self, names: impl IntoIterator<Item = &'n [u8]>) -> BTreeMap<&'n [u8], Vec<Addr>> {
        let mut positions = names.into_iter().map(|name| (name, Vec::new())).collect();
        self.names.enter_all(&mut positions);
        positions
    }

    /// Requests a call of [`Subscriber::stand_ins`](crate::Subscriber::stand_ins) on unload: code elsewhere may replace
    /// functions of this module.
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

    /// Returns the replacing code of the last such call.
    pub(crate) fn stand_ins(&self) -> Vec<Range<u64>> {
        if !self.has_stand_ins() {
            return Vec::new();
        }
        let _book = self.registry.lock();
        lock(&self.stand_ins).clone()
    }

    /// Returns the symbol that the module exports under this name.
    fn exported(&self, name: &str) -> Option<ModuleSymbol> {
        let book = self.registry.lock();
        let addr = book.exports.get(name.as_bytes()).filter(|export| export.module == self.id)?.addr;
        let (text, len) = self.ranges[MemoryPart::Text.slot()];
        let in_text = addr.checked_offset_from(text).is_some_and(|offset| offset < len);
        let kind = if in_text { ModuleSymbolKind::Function } else { ModuleSymbolKind::Object };
        Some(ModuleSymbol { addr, size: 0, kind })
    }

    /// Returns the sections in the order of the file; those of init until `init` has returned.
    pub fn sections(&self) -> impl Iterator<Item = &SectionInfo> {
        self.placed.iter().filter(|placed| self.has(placed.part)).map(|placed| &placed.info)
    }

    /// Returns the sizes in bytes of text, read-only data, data and ro_after_init data that stay while the module is
    /// LIVE.
    #[must_use]
    pub fn sizes(&self) -> [u64; 4] {
        [MemoryPart::Text, MemoryPart::ReadOnly, MemoryPart::Data, MemoryPart::RoAfterInit]
            .map(|part| self.ranges[part.slot()].1)
    }

    /// Returns the parameters.
    #[must_use]
    pub fn params(&self) -> Vec<ParamInfo> {
        let _book = self.registry.lock();
        lock(&self.params).clone()
    }

    /// Returns the value of a parameter as stored in the module's memory now. Returns `None` for an unknown parameter,
    /// for one of init's, or if the module is not LIVE.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<String> {
        let _book = self.registry.lock();
        let core = lock(&self.core);
        let core = core.as_ref()?;
        lock(&self.params).iter().find(|param| param.is_named(name))?.show(&|at, len| core.read(at, len))
    }

    /// Whether a frame may continue at a place in the text. No frame continues at the start of a function, unless the
    /// bytes before are a call, or the replacement of a static call that calls nothing. A frame may continue at any
    /// other place.
    pub(crate) fn may_be_returned_to(&self, at: Addr) -> bool {
        const LONGEST_CALL: u64 = 8;
        if !self.names.begins_at(at) && at != self.ranges[MemoryPart::Text.slot()].0 {
            return true;
        }
        let core = lock(&self.core);
        let Some(core) = core.as_ref() else { return true };
        let (text, _) = self.ranges[MemoryPart::Text.slot()];
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

    /// Returns the modules that use symbols of this one.
    #[must_use]
    pub fn users(&self) -> Vec<String> {
        self.registry.lock().users(self.id)
    }

    /// Returns the modules whose symbols this one uses.
    #[must_use]
    pub fn uses(&self) -> Vec<String> {
        self.registry.lock().providers(self.id)
    }

    /// Returns the address of the module's `struct module`, if the module refers to one.
    #[must_use]
    pub fn this_module(&self) -> Option<Addr> {
        self.functions.this_module
    }

    /// Returns the mark that threads of this module carry.
    #[must_use]
    pub fn creator(&self) -> Arc<Creator> {
        self.creator.clone()
    }

    /// Whether an address lies in the module's memory. Memory of init sections belongs to other modules after `init`
    /// has returned.
    #[must_use]
    pub fn contains(&self, at: Addr) -> bool {
        let mut ranges = MemoryPart::ALL.into_iter().zip(self.ranges).filter(|(part, _)| self.has(*part));
        ranges.any(|(_, (start, len))| at.checked_offset_from(start).is_some_and(|offset| offset < len))
    }

    /// Whether a range lies in one part of the module's memory: text, read-only data, variables.
    #[must_use]
    pub fn holds(&self, at: Addr, len: u64) -> bool {
        MemoryPart::ALL.into_iter().any(|part| self.has(part) && self.part_holds(part, at, len))
    }

    /// Whether a range lies among the variables that exist, and are writable, for the lifetime of the module.
    #[must_use]
    pub fn holds_variable(&self, at: Addr, len: u64) -> bool {
        self.part_holds(MemoryPart::Data, at, len)
    }

    /// Whether an address lies in the module's text, without init text.
    #[must_use]
    pub fn holds_code(&self, at: Addr) -> bool {
        self.part_holds(MemoryPart::Text, at, 1)
    }

    fn part_holds(&self, part: MemoryPart, at: Addr, len: u64) -> bool {
        let (start, size) = self.ranges[part.slot()];
        at.checked_offset_from(start).is_some_and(|offset| size.checked_sub(offset).is_some_and(|left| len <= left))
    }

    /// Whether a part is still this module's.
    fn has(&self, part: MemoryPart) -> bool {
        !part.is_init() || !self.init_dropped.load(Ordering::Acquire)
    }

    /// Returns section and offset of an address in this module, for messages and snapshots: `.text+0x10`.
    #[must_use]
    pub fn display_place(&self, at: Addr) -> Option<String> {
        self.sections().find_map(|section| {
            let offset = at.checked_offset_from(section.addr).filter(|offset| *offset < section.size)?;
            Some(format!("{}+{offset:#x}", section.name))
        })
    }

    /// Describes an address in this module as Linux's `%pS` does: `func+0x12/0x40 [module]`, distance and size. Without
    /// a function of known size, shows the section; outside of sections (a PLT entry), shows the address. Returns
    /// `None` for an address in no module memory.
    #[must_use]
    pub fn describe(&self, at: Addr) -> Option<String> {
        self.describe_behind(at, 0)
    }

    /// [`Module::describe`] for a return address, Linux's `%pB`: names the function of the call before the address,
    /// because that call may be the last instruction.
    #[must_use]
    pub fn describe_return(&self, at: Addr) -> Option<String> {
        self.describe_behind(at.offset(-1), 1)
    }

    /// Describes the place `distance` behind an address by the function or section that contains the address.
    fn describe_behind(&self, at: Addr, distance: u64) -> Option<String> {
        if !self.contains(at) {
            return None;
        }
        let function = |names: &SymbolNames| {
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

    /// Range of the text, if there is any.
    pub(crate) fn text(&self) -> Option<Range<u64>> {
        let (start, len) = self.ranges[MemoryPart::Text.slot()];
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

    /// Stops giving references if none is held. Otherwise returns the number of held references.
    pub(crate) fn close(&self) -> Result<(), usize> {
        let unused = |count: usize| (count & !AWAITED == 0).then_some(CLOSED);
        match self.references.fetch_update(Ordering::AcqRel, Ordering::Relaxed, unused) {
            Ok(_) => Ok(()),
            Err(count) => Err(count & !(CLOSED | AWAITED)),
        }
    }

    /// Stops giving references, and returns the number of held references.
    pub(crate) fn close_by_force(&self) -> usize {
        self.references.fetch_or(CLOSED, Ordering::AcqRel) & !(CLOSED | AWAITED)
    }

    /// Makes each reference that is dropped from now on wake the threads that wait for a change of the registry. The
    /// caller holds the lock of the book. Returns whether this is new: the caller then checks the number of references
    /// once more.
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

/// Returns names and addresses of a file's sections.
pub(crate) fn sections(
    file: &crate::elf::file::File<'_>,
    layout: &crate::prepare::layout::ModuleLayout,
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
