//! All static keys and static calls of the process: their sites, and the value for which the sites are written.
//!
//! A key is identified by its address, so all hosts share one table. Its lock is taken before the text lock, and held
//! during a fork.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::ptr;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use modload_edit::{Addr, EditSet};
use modload_loader::Module;
use modload_text::{TrapMask, on_fork};

use crate::far::FarJumps;
use crate::jump_label::JumpSite;
use crate::static_call::{CallSite, CallTarget};

/// The table of the process.
static TABLE: Mutex<KeyTable> = Mutex::new(KeyTable::new());

thread_local! {
    static HELD: RefCell<Option<MutexGuard<'static, KeyTable>>> = const { RefCell::new(None) };
}

/// All static keys and static calls of the process.
#[derive(Debug)]
pub(crate) struct KeyTable {
    /// The sites of static keys, by key.
    pub(crate) keys: Users<JumpSite, bool>,
    /// The sites and trampolines of static calls, by key.
    pub(crate) calls: Users<CallSite, CallTarget>,
    /// The keys of static calls, by trampoline.
    pub(crate) trampolines: BTreeMap<Addr, Addr>,
    pub(crate) far: FarJumps,
    pub(crate) trap_mask: TrapMask,
    /// The edits of the current switch. Kept between switches to reuse the memory.
    pub(crate) batch: EditSet,
}

/// The identity of a module, or of a slice of a module, while it is loaded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct SiteOwner(usize);

impl SiteOwner {
    /// The host. No module has the address 0.
    pub(crate) const HOST: SiteOwner = SiteOwner(0);

    pub(crate) fn of(module: &Module) -> SiteOwner {
        SiteOwner::at(ptr::from_ref(module).addr())
    }

    pub(crate) fn at(address: usize) -> SiteOwner {
        SiteOwner(address)
    }
}

/// Whether text can be poked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TextPhase {
    /// The text is still staged and cannot be poked. Its sites are set again when it is published.
    Staged,
    /// The text is published and can be poked.
    Published,
}

/// How long text exists.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Stay {
    /// As long as the module.
    Core,
    /// Until `init` has returned.
    Init,
}

/// The sites of one key in one part of one module.
#[derive(Debug)]
pub(crate) struct SiteGroup<S, V> {
    pub(crate) owner: SiteOwner,
    pub(crate) stay: Stay,
    pub(crate) phase: TextPhase,
    /// The value of the key for which the sites are written.
    pub(crate) shown: V,
    /// Sorted by address.
    pub(crate) sites: Vec<S>,
}

/// The sites of all keys.
#[derive(Debug)]
pub(crate) struct Users<S, V> {
    /// The groups of each key, sorted by address, so that the edits of a batch are sorted too.
    groups: BTreeMap<Addr, Vec<SiteGroup<S, V>>>,
    /// The keys that each module uses.
    keys: BTreeMap<SiteOwner, BTreeSet<Addr>>,
}

impl<S, V> Users<S, V> {
    const fn new() -> Users<S, V> {
        Users { groups: BTreeMap::new(), keys: BTreeMap::new() }
    }

    /// Returns the groups of a key.
    pub(crate) fn of(&self, key: Addr) -> &[SiteGroup<S, V>] {
        self.groups.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Returns the groups of a key, for changes.
    pub(crate) fn of_mut(&mut self, key: Addr) -> &mut [SiteGroup<S, V>] {
        self.groups.get_mut(&key).map_or(&mut [], Vec::as_mut_slice)
    }

    /// Returns the groups of an owner.
    pub(crate) fn of_owner(&self, owner: SiteOwner) -> impl Iterator<Item = &SiteGroup<S, V>> {
        let keys = self.keys.get(&owner).into_iter().flatten();
        keys.flat_map(|key| self.of(*key)).filter(move |group| group.owner == owner)
    }

    /// Adds a group, which has at least one site.
    pub(crate) fn add(&mut self, key: Addr, group: SiteGroup<S, V>, first: impl Fn(&S) -> Addr) {
        self.keys.entry(group.owner).or_default().insert(key);
        let groups = self.groups.entry(key).or_default();
        let starts = |group: &SiteGroup<S, V>| group.sites.first().map(&first);
        let place = groups.partition_point(|there| starts(there) < starts(&group));
        groups.insert(place, group);
    }

    /// Adds the sites of a module that is coming, grouped by key and by how long they exist, with the value for which
    /// they are written.
    pub(crate) fn add_staged(
        &mut self,
        owner: SiteOwner,
        found: BTreeMap<(Addr, Stay), (V, Vec<S>)>,
        at: impl Fn(&S) -> Addr,
    ) {
        for ((key, stay), (shown, mut sites)) in found {
            sites.sort_by_key(&at);
            self.add(key, SiteGroup { owner, stay, phase: TextPhase::Staged, shown, sites }, &at);
        }
    }

    /// Marks the groups of a module as published. Returns the keys that the module uses.
    pub(crate) fn published(&mut self, owner: SiteOwner) -> BTreeSet<Addr> {
        let keys = self.keys.get(&owner).cloned().unwrap_or_default();
        for key in &keys {
            let of_owner = self.of_mut(*key).iter_mut().filter(|group| group.owner == owner);
            of_owner.for_each(|group| group.phase = TextPhase::Published);
        }
        keys
    }

    /// Forgets all sites of a module, or only those in init text.
    pub(crate) fn forget(&mut self, owner: SiteOwner, stay: Stay) {
        let keys = match stay {
            Stay::Core => self.keys.remove(&owner).unwrap_or_default(),
            Stay::Init => self.keys.get(&owner).cloned().unwrap_or_default(),
        };
        for key in keys {
            let btree_map::Entry::Occupied(mut groups) = self.groups.entry(key) else { continue };
            groups.get_mut().retain(|group| group.owner != owner || group.stay < stay);
            if groups.get().is_empty() {
                groups.remove();
            }
        }
    }
}

impl KeyTable {
    const fn new() -> KeyTable {
        KeyTable {
            keys: Users::new(),
            calls: Users::new(),
            trampolines: BTreeMap::new(),
            far: FarJumps::new(),
            trap_mask: TrapMask::Checked,
            batch: EditSet::new(),
        }
    }
}

/// Locks and returns the table.
pub(crate) fn table() -> MutexGuard<'static, KeyTable> {
    static FORK: Once = Once::new();
    FORK.call_once(|| on_fork(|| HELD.set(Some(lock())), || HELD.set(None), || HELD.set(None)));
    lock()
}

fn lock() -> MutexGuard<'static, KeyTable> {
    // The table is consistent between any two statements that can panic, so a poisoned lock is usable.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}
