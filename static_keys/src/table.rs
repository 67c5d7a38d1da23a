//! All static keys and static calls of the process: where they are used, and what stands there.
//!
//! Keys are known by their addresses, so that there is one table for all hosts. Its lock is taken before the text lock,
//! and held over fork.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::ptr;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use modload_edit::{Addr, EditSet};
use modload_loader::Module;
use modload_text::{TrapMask, on_fork};

use crate::far::Far;
use crate::jump_label::JumpSite;
use crate::static_call::{CallSite, Target};

/// The one table.
static TABLE: Mutex<Table> = Mutex::new(Table::new());

thread_local! {
    static HELD: RefCell<Option<MutexGuard<'static, Table>>> = const { RefCell::new(None) };
}

/// What there is.
#[derive(Debug)]
pub(crate) struct Table {
    /// Sites of static keys, by the key.
    pub(crate) keys: Users<JumpSite, bool>,
    /// Sites and trampolines of static calls, by the key.
    pub(crate) calls: Users<CallSite, Target>,
    /// Keys of static calls, by the trampoline.
    pub(crate) trampolines: BTreeMap<Addr, Addr>,
    pub(crate) far: Far,
    pub(crate) trap_mask: TrapMask,
    /// The batch of the switch under way; kept for its memory.
    pub(crate) batch: EditSet,
}

/// A module, or a slice of one, told from others while it is there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Owner(usize);

impl Owner {
    /// The host, which is no module's address.
    pub(crate) const HOST: Owner = Owner(0);

    pub(crate) fn of(module: &Module) -> Owner {
        Owner::at(ptr::from_ref(module).addr())
    }

    pub(crate) fn at(address: usize) -> Owner {
        Owner(address)
    }
}

/// Whether text can be poked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// It is still staged, and cannot be reached: what stands there is looked at again when it is published.
    Staged,
    /// It can.
    Published,
}

/// How long text stays.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Stay {
    /// As long as the module.
    Core,
    /// Until `init` has returned.
    Init,
}

/// The sites of one key in one part of one module.
#[derive(Debug)]
pub(crate) struct Group<S, V> {
    pub(crate) owner: Owner,
    pub(crate) stay: Stay,
    pub(crate) phase: Phase,
    /// For what value of the key they stand.
    pub(crate) shown: V,
    /// In order of their addresses.
    pub(crate) sites: Vec<S>,
}

/// Who uses which key.
#[derive(Debug)]
pub(crate) struct Users<S, V> {
    /// Of a key, groups are in order of their addresses, so that a batch is made in order.
    groups: BTreeMap<Addr, Vec<Group<S, V>>>,
    /// The keys that each module uses.
    keys: BTreeMap<Owner, BTreeSet<Addr>>,
}

impl<S, V> Users<S, V> {
    const fn new() -> Users<S, V> {
        Users { groups: BTreeMap::new(), keys: BTreeMap::new() }
    }

    /// The groups of a key.
    pub(crate) fn of(&self, key: Addr) -> &[Group<S, V>] {
        self.groups.get(&key).map_or(&[], Vec::as_slice)
    }

    /// The groups of a key, to be changed.
    pub(crate) fn of_mut(&mut self, key: Addr) -> &mut [Group<S, V>] {
        self.groups.get_mut(&key).map_or(&mut [], Vec::as_mut_slice)
    }

    /// The groups of an owner.
    pub(crate) fn of_owner(&self, owner: Owner) -> impl Iterator<Item = &Group<S, V>> {
        let keys = self.keys.get(&owner).into_iter().flatten();
        keys.flat_map(|key| self.of(*key)).filter(move |group| group.owner == owner)
    }

    /// Adds a group, which has sites.
    pub(crate) fn add(&mut self, key: Addr, group: Group<S, V>, first: impl Fn(&S) -> Addr) {
        self.keys.entry(group.owner).or_default().insert(key);
        let groups = self.groups.entry(key).or_default();
        let starts = |group: &Group<S, V>| group.sites.first().map(&first);
        let place = groups.partition_point(|there| starts(there) < starts(&group));
        groups.insert(place, group);
    }

    /// Adds the sites of a module that is coming, by their key and by how long they stay, with the value that they show.
    pub(crate) fn add_staged(
        &mut self,
        owner: Owner,
        found: BTreeMap<(Addr, Stay), (V, Vec<S>)>,
        at: impl Fn(&S) -> Addr,
    ) {
        for ((key, stay), (shown, mut sites)) in found {
            sites.sort_by_key(&at);
            self.add(key, Group { owner, stay, phase: Phase::Staged, shown, sites }, &at);
        }
    }

    /// The keys that a module uses; its groups are published from now on.
    pub(crate) fn published(&mut self, owner: Owner) -> BTreeSet<Addr> {
        let keys = self.keys.get(&owner).cloned().unwrap_or_default();
        for key in &keys {
            let of_owner = self.of_mut(*key).iter_mut().filter(|group| group.owner == owner);
            of_owner.for_each(|group| group.phase = Phase::Published);
        }
        keys
    }

    /// Forgets a module's sites: all of them, or those that stay until `init` has returned.
    pub(crate) fn forget(&mut self, owner: Owner, stay: Stay) {
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

impl Table {
    const fn new() -> Table {
        Table {
            keys: Users::new(),
            calls: Users::new(),
            trampolines: BTreeMap::new(),
            far: Far::new(),
            trap_mask: TrapMask::Checked,
            batch: EditSet::new(),
        }
    }
}

/// The table, for this thread alone.
pub(crate) fn table() -> MutexGuard<'static, Table> {
    static FORK: Once = Once::new();
    FORK.call_once(|| on_fork(|| HELD.set(Some(lock())), || HELD.set(None), || HELD.set(None)));
    lock()
}

fn lock() -> MutexGuard<'static, Table> {
    // Whole between any two statements that can panic.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}
