//! Stage *reserve*, and the state of a host's modules: names, states, exports, users of symbols, waiting loads.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use modload_abi::modinfo;
use modload_edit::Addr;
use modload_notifier::{ChainMember, Chains};
use modload_relocs::TlsBlock;

use crate::modules::entry;
use crate::modules::error::RegistryError;
use crate::modules::module::{Module, Reference};
use crate::modules::subscriber::Seat;
use crate::modules::timeline::Ear;
use crate::modules::uses::ModuleUses;
use crate::prepare::vague::DefinitionStrength;
use crate::vocabulary::module_id::ModuleId;
use crate::vocabulary::state::State;

/// One module, from the reservation of the name until the memory is freed.
#[derive(Debug)]
pub(crate) struct ModuleEntry {
    pub(crate) id: ModuleId,
    pub(crate) name: Arc<str>,
    pub(crate) state: State,
    /// The thread that loads or unloads the module.
    pub(crate) thread: ThreadId,
    /// The module from COMING on, until the memory is freed.
    pub(crate) module: Option<Arc<Module>>,
    /// The names of the module's symbols in [`Book::exports`].
    pub(crate) exports: Vec<Box<[u8]>>,
    /// The same for [`Book::uniques`].
    pub(crate) uniques: Vec<Box<[u8]>>,
}

/// A symbol that a module exports.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    pub(crate) module: ModuleId,
    pub(crate) addr: Addr,
    pub(crate) gpl_only: bool,
    /// The namespace of the export; empty for none.
    pub(crate) namespace: Box<[u8]>,
    /// The CRC in `__kcrctab`.
    pub(crate) crc: Option<u32>,
    /// Whether other modules may define the same symbol.
    pub(crate) strength: DefinitionStrength,
    /// The block of a thread-local variable. Then the address is the offset in the block.
    pub(crate) block: Option<TlsBlock>,
}

#[derive(Default)]
pub(crate) struct Book {
    /// The modules in order of reservation.
    pub(crate) modules: Vec<ModuleEntry>,
    names: HashMap<Arc<str>, ModuleId>,
    next: ModuleId,
    pub(crate) exports: HashMap<Box<[u8]>, Export>,
    /// STB_GNU_UNIQUE definitions, exported or not.
    pub(crate) uniques: HashMap<Box<[u8]>, Export>,
    /// The modules whose symbols other modules use.
    uses: ModuleUses,
    /// Waiting threads and the modules they wait for: the wait-for graph. The other edges of the graph are
    /// [`ModuleEntry::thread`].
    waits: Vec<(ThreadId, ModuleId)>,
    pub(crate) chains: Chains<Arc<Seat>>,
    pub(crate) recordings: Vec<(u64, Ear)>,
    pub(crate) next_recording: u64,
    /// The taint letters of the host, as in Linux.
    pub(crate) taint: BTreeSet<char>,
}

/// Time limit for the module of a needed symbol to become LIVE, as in Linux's `resolve_symbol_wait`.
const PATIENCE: Duration = Duration::from_secs(30);

/// The modules of one host. Registries are never freed and are reused, so that fork can hold all their locks.
pub(crate) struct Registry {
    book: Mutex<Book>,
    /// Some state has changed, some call of a member has ended.
    changed: Condvar,
    /// How many wait for `changed`; rises under the lock.
    waiters: AtomicUsize,
    recordings: AtomicUsize,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

/// All registries, and the unused ones.
pub(crate) struct Pool {
    pub(crate) all: Vec<&'static Registry>,
    free: Vec<&'static Registry>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { all: Vec::new(), free: Vec::new() });

/// Takes the lock of the pool. This lock is taken before the lock of any registry.
pub(crate) fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// An empty registry.
    pub(crate) fn acquire() -> &'static Registry {
        let mut pool = pool();
        pool.free.pop().unwrap_or_else(|| {
            let book = Mutex::new(Book::default());
            let (waiters, recordings) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let new: &'static Registry =
                Box::leak(Box::new(Registry { book, changed: Condvar::new(), waiters, recordings }));
            pool.all.push(new);
            new
        })
    }

    /// Gives an empty registry back. One that still holds modules stays theirs for ever.
    pub(crate) fn release(&'static self) {
        let left = {
            let mut book = self.lock();
            let empty = book.modules.is_empty();
            empty.then(|| {
                self.count_recordings(0);
                book.clear()
            })
        };
        if let Some(members) = left {
            // Dropped without the lock, and before the registry is reused: a subscriber's drop may take the lock.
            drop(members);
            pool().free.push(self);
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Book> {
        // Ignoring poison is safe: no code that holds the lock panics between two changes that belong together.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_recorded(&self) -> bool {
        self.recordings.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn count_recordings(&self, count: usize) {
        self.recordings.store(count, Ordering::Relaxed);
    }

    /// Wakes the threads in [`Registry::wait`] or [`Registry::wait_until`].
    pub(crate) fn wake(&self) {
        // A waiting thread has counted itself under the lock under which the state was changed, or sees the change.
        // Without waiting threads, no system call is made.
        if self.waiters.load(Ordering::Relaxed) != 0 {
            self.changed.notify_all();
        }
    }

    /// Wakes the waiting threads after a change that was made without the lock. Taking the lock first guarantees that a
    /// thread that has seen the old state is asleep by now.
    #[cold]
    pub(crate) fn wake_waiting(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    /// The module's memory is no longer to be found by an address.
    pub(crate) fn hide(&self, id: ModuleId) {
        // The last reference to a module is dropped without the lock.
        let _module = self.lock().by_id_mut(id).and_then(|entry| entry.module.take());
    }

    /// Returns references to the modules whose symbols this one uses.
    pub(crate) fn hold_providers(&self, id: ModuleId) -> Vec<Reference> {
        let book = self.lock();
        // A module that is used is not going.
        book.uses.providers(id).filter_map(|id| book.by_id(id)?.module.as_ref()?.get()).collect()
    }

    /// Waits until `done` returns true for the book.
    pub(crate) fn wait_until(&self, done: impl Fn(&Book) -> bool) {
        let mut book = self.lock();
        while !done(&book) {
            book = self.wait_for_change(book, None);
        }
    }

    pub(crate) fn wait_for_change<'a>(
        &self,
        book: MutexGuard<'a, Book>,
        at_most: Option<Duration>,
    ) -> MutexGuard<'a, Book> {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        let book = match at_most {
            None => self.changed.wait(book).unwrap_or_else(PoisonError::into_inner),
            Some(at_most) => self.changed.wait_timeout(book, at_most).unwrap_or_else(PoisonError::into_inner).0,
        };
        self.waiters.fetch_sub(1, Ordering::Relaxed);
        book
    }

    /// Reserves a name: the module is UNFORMED from here on. Waits while another load of the same name is under way,
    /// and then refuses, as `add_unformed_module` does.
    pub(crate) fn reserve(&'static self, name: &Arc<str>) -> Result<Reservation, RegistryError> {
        let thread = thread::current().id();
        let mut book = self.lock();
        if let Some(entry) = book.by_name(name) {
            if matches!(entry.state, State::Unformed | State::Coming) {
                let id = entry.id;
                book = self.wait(book, thread, id, name, None)?;
            }
            return Err(match book.by_name(name) {
                Some(ModuleEntry { state: State::Live, .. }) => RegistryError::Exists,
                _ => RegistryError::Busy,
            });
        }
        let id = book.reserve(thread, |_| name.clone()).0;
        Ok(Reservation { registry: self, id })
    }

    /// Reserves a name that no module can have, for a check of a module of this name. Such a reservation blocks no
    /// load, and any number of them can exist.
    pub(crate) fn reserve_to_look(&'static self, name: &str) -> (Reservation, Arc<str>) {
        let thread = thread::current().id();
        let (id, name) = self.lock().reserve(thread, |number| format!("({name}/{number})").into());
        (Reservation { registry: self, id }, name)
    }

    /// Waits until a module is neither UNFORMED nor COMING any more.
    pub(crate) fn wait<'a>(
        &'a self,
        mut book: MutexGuard<'a, Book>,
        thread: ThreadId,
        id: ModuleId,
        for_what: &str,
        until: Option<Instant>,
    ) -> Result<MutexGuard<'a, Book>, RegistryError> {
        if let Some(cycle) = book.cycle(thread, id, for_what) {
            return Err(RegistryError::Cycle(cycle));
        }
        book.waits.push((thread, id));
        while book.by_id(id).is_some_and(|entry| matches!(entry.state, State::Unformed | State::Coming)) {
            match until {
                None => book = self.wait_for_change(book, None),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    book = self.wait_for_change(book, Some(left));
                }
            }
        }
        if let Some(at) = book.waits.iter().rposition(|wait| *wait == (thread, id)) {
            book.waits.swap_remove(at);
        }
        Ok(book)
    }
}

/// The registry's tables of definitions that other modules may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ExportTable {
    /// Exports, for any module.
    Exports,
    /// STB_GNU_UNIQUE definitions, for other definitions of the same name only.
    Uniques,
}

/// The result of [`Registry::use_export`].
pub(crate) enum FoundExport {
    /// The symbol is available, and the user is recorded as a user of the provider.
    Usable {
        addr: Addr,
        block: Option<TlsBlock>,
    },
    /// The symbol exists, but cannot be used.
    Unavailable(&'static str),
    Nothing,
}

impl Registry {
    /// Returns an export and the name of the exporting module.
    pub(crate) fn export(&self, name: &[u8]) -> Option<(Export, Arc<str>)> {
        self.export_of(ExportTable::Exports, name)
    }

    /// Returns the entry of a name in a table, and the name of the defining module.
    pub(crate) fn export_of(&self, table: ExportTable, name: &[u8]) -> Option<(Export, Arc<str>)> {
        let book = self.lock();
        let export = book.exported(table, name)?;
        Some((export.clone(), book.by_id(export.module)?.name.clone()))
    }

    /// Waits until the exporting module is LIVE, and records `user` as a user of that module.
    pub(crate) fn use_export(
        &self,
        user: ModuleId,
        name: &[u8],
        judged: &Export,
    ) -> Result<FoundExport, RegistryError> {
        self.use_export_of(ExportTable::Exports, user, name, judged)
    }

    /// Like [`Registry::use_export`], for the entry of a table.
    pub(crate) fn use_export_of(
        &self,
        table: ExportTable,
        user: ModuleId,
        name: &[u8],
        judged: &Export,
    ) -> Result<FoundExport, RegistryError> {
        let thread = thread::current().id();
        let until = Instant::now() + PATIENCE;
        let mut book = self.lock();
        loop {
            // The export may have disappeared since the policy judged the export, and another module may have taken the
            // name.
            let export = book.exported(table, name).filter(|export| export.module == judged.module);
            let Some(export) = export.cloned() else {
                return Ok(FoundExport::Nothing);
            };
            let Some(provider) = book.by_id(export.module) else { return Ok(FoundExport::Nothing) };
            match provider.state {
                State::Live => {
                    let provider = provider.id;
                    if book.by_id(user).is_some() {
                        book.uses.add(user, provider);
                    }
                    return Ok(FoundExport::Usable { addr: export.addr, block: export.block });
                }
                State::Unformed | State::Coming if Instant::now() < until => {
                    let name = provider.name.clone();
                    book = self.wait(book, thread, export.module, &name, Some(until))?;
                }
                State::Unformed | State::Coming => {
                    return Ok(FoundExport::Unavailable("its module did not become LIVE within 30 seconds"));
                }
                State::Going => return Ok(FoundExport::Unavailable("its module is going")),
            }
        }
    }
}

impl Book {
    /// The definition of a name in a table.
    pub(crate) fn exported(&self, table: ExportTable, name: &[u8]) -> Option<&Export> {
        match table {
            ExportTable::Exports => self.exports.get(name),
            ExportTable::Uniques => self.uniques.get(name),
        }
    }

    /// The name of the module that has entered a name in a table.
    pub(crate) fn owner(&self, table: ExportTable, name: &[u8]) -> Option<String> {
        let export = self.exported(table, name)?;
        Some(self.by_id(export.module).map_or_else(String::new, |entry| entry.name.to_string()))
    }

    /// Enters a definition in a table.
    pub(crate) fn enter(&mut self, table: ExportTable, name: Box<[u8]>, export: Export) {
        match table {
            ExportTable::Exports => self.exports.insert(name, export),
            ExportTable::Uniques => self.uniques.insert(name, export),
        };
    }

    /// Returns the module whose memory contains an address, including COMING and GOING ones.
    pub(crate) fn module_at(&self, at: Addr) -> Option<Arc<Module>> {
        self.modules.iter().filter_map(|entry| entry.module.as_ref()).find(|module| module.contains(at)).cloned()
    }

    /// Adds a module; `name` makes the name from the module's number.
    fn reserve(&mut self, thread: ThreadId, name: impl FnOnce(u64) -> Arc<str>) -> (ModuleId, Arc<str>) {
        let id = self.next;
        let name = name(id.number());
        self.next = id.next();
        self.names.insert(name.clone(), id);
        let entry = ModuleEntry {
            id,
            name: name.clone(),
            state: State::Unformed,
            thread,
            module: None,
            exports: Vec::new(),
            uniques: Vec::new(),
        };
        self.modules.push(entry);
        (id, name)
    }

    /// Forgets everything but the numbers that were given out, which must never be given twice. The members of the
    /// chains are for the caller to drop, without the lock.
    fn clear(&mut self) -> Vec<ChainMember<Arc<Seat>>> {
        let mut chains = std::mem::take(&mut self.chains);
        let members = chains.clear();
        *self = Book { next: self.next, next_recording: self.next_recording, chains, ..Book::default() };
        members
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&ModuleEntry> {
        self.by_id(*self.names.get(&*modinfo::canonical(name))?)
    }

    pub(crate) fn by_id(&self, id: ModuleId) -> Option<&ModuleEntry> {
        let at = self.modules.binary_search_by_key(&id, |entry| entry.id).ok()?;
        self.modules.get(at)
    }

    pub(crate) fn by_id_mut(&mut self, id: ModuleId) -> Option<&mut ModuleEntry> {
        let at = self.modules.binary_search_by_key(&id, |entry| entry.id).ok()?;
        self.modules.get_mut(at)
    }

    /// Returns the modules that use symbols of this one, in order of loading.
    pub(crate) fn users(&self, id: ModuleId) -> Vec<String> {
        self.names_of(self.uses.users(id))
    }

    /// Returns the modules whose symbols this one uses, in order of loading.
    pub(crate) fn providers(&self, id: ModuleId) -> Vec<String> {
        self.names_of(self.uses.providers(id))
    }

    fn names_of(&self, ids: impl Iterator<Item = ModuleId>) -> Vec<String> {
        ids.filter_map(|id| self.by_id(id)).map(|entry| entry.name.to_string()).collect()
    }

    /// Returns the chain of waiting modules if waiting for this module would wait, in the end, for `thread` itself.
    fn cycle(&self, thread: ThreadId, id: ModuleId, for_what: &str) -> Option<Vec<String>> {
        let mut path = vec![self.loading(thread).unwrap_or_else(|| "this thread".into()), format!("\"{for_what}\"")];
        let mut at = id;
        loop {
            let owner = self.by_id(at)?.thread;
            if owner == thread {
                return Some(path);
            }
            at = self.waits.iter().rev().find(|(waiter, _)| *waiter == owner)?.1;
            path.push(format!("\"{}\"", self.by_id(at)?.name));
            if path.len() > self.modules.len() + 2 {
                return None;
            }
        }
    }

    /// The module that a thread is loading, the innermost one.
    fn loading(&self, thread: ThreadId) -> Option<String> {
        let busy = |entry: &&ModuleEntry| entry.thread == thread && entry.state != State::Live;
        self.modules.iter().rev().find(busy).map(|entry| format!("\"{}\"", entry.name))
    }

    /// Calls `each` with every exported name of printable ASCII letters.
    pub(crate) fn export_names(&self, each: &mut dyn FnMut(&str)) {
        let shown = |name: &&str| name.bytes().all(|byte| byte.is_ascii_graphic());
        self.exports.keys().filter_map(|name| std::str::from_utf8(name).ok()).filter(shown).for_each(each);
    }

    /// Cleans up after fork. The threads of all other loads do not exist in the child, so those loads never end and are
    /// removed.
    pub(crate) fn only_thread(&mut self, thread: ThreadId) {
        let lost: Vec<ModuleId> = self
            .modules
            .iter()
            .filter(|entry| entry.thread != thread && entry.state != State::Live)
            .map(|entry| entry.id)
            .collect();
        for id in lost {
            self.remove(id);
        }
        self.waits.retain(|(waiter, _)| *waiter == thread);
        self.chains.forget_other_threads(thread);
    }

    /// Sets the state of a module, also in the module's own `struct module`.
    pub(crate) fn set_state(&mut self, id: ModuleId, state: State) {
        if let Some(entry) = self.by_id_mut(id) {
            entry.state = state;
            if let Some(at) = entry.module.as_ref().and_then(|module| module.this_module()) {
                entry::write_state(at, state);
            }
        }
    }

    pub(crate) fn remove(&mut self, id: ModuleId) {
        if let Ok(at) = self.modules.binary_search_by_key(&id, |entry| entry.id) {
            let entry = self.modules.remove(at);
            self.names.remove(&entry.name);
            for name in &entry.exports {
                self.exports.remove(name);
            }
            for name in &entry.uniques {
                self.uniques.remove(name);
            }
            self.uses.remove(entry.id);
        }
    }
}

/// A reserved name. Dropping a reservation removes the module and all entries of the module from the registry.
#[derive(Debug)]
pub(crate) struct Reservation {
    registry: &'static Registry,
    pub(crate) id: ModuleId,
}

impl Reservation {
    /// The module stays, and is LIVE.
    pub(crate) fn live(self) {
        {
            let mut book = self.registry.lock();
            book.set_state(self.id, State::Live);
            let module = book.by_id(self.id).and_then(|entry| entry.module.clone());
            book.taint.extend(module.iter().flat_map(|module| module.taint().chars()));
        }
        self.registry.wake();
        std::mem::forget(self);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.registry.lock().remove(self.id);
        self.registry.wake();
    }
}
