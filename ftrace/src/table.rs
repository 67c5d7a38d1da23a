//! All functions of the process that can be traced, and who traces them.
//!
//! There is one table for all hosts, because a thread runs through the modules of several. Its lock is taken before the text
//! lock, and held over fork. Code that is traced never takes it.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use modload_edit::{Addr, EditSet};
use modload_loader::Module;
use modload_text::{HostText, TrapMask, on_fork};

use crate::filter::Filter;
use crate::recording::Running;
use crate::sites::{Site, why_no_returns};
use crate::stubs::Stubs;
use crate::trampoline::call::{Group, Member};
use crate::trampoline::ring::Reader;
use crate::trampoline::sets::Then;
use crate::trampoline::{Function, Width, thread};

static TABLE: Mutex<Table> = Mutex::new(Table::new());

thread_local! {
    static HELD: RefCell<Option<MutexGuard<'static, Table>>> = const { RefCell::new(None) };
}

/// A host, told from all that were ever there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct HostId(u64);

impl HostId {
    pub(crate) fn new() -> HostId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        HostId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Whose functions they are: a module's, by its address while it is there, or a host's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Owner {
    Module(usize),
    Host(HostId),
}

impl Owner {
    pub(crate) fn of(module: &Module) -> Owner {
        Owner::Module(std::ptr::from_ref(module).addr())
    }
}

/// A tracer, told from all that were ever there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct TracerId(pub(crate) u64);

/// Whether text can be poked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// It is still staged: what stands there is looked at again when it is published.
    Staged,
    /// It can.
    Published,
}

/// What stands at a site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shown {
    /// A NOP.
    Nothing,
    /// A call of the function's stub.
    Called,
    /// A jump to the second half of the function's stub.
    Jumped,
    /// A jump to other code, within reach.
    Diverted(Addr),
}

/// A function that can be traced.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) site: Site,
    /// From when it is traced first.
    pub(crate) function: Option<&'static Function>,
    /// Who wants to hear of its calls, in the order in which they came.
    pub(crate) tracers: Vec<TracerId>,
    /// What is recorded of it.
    pub(crate) recorded: Then,
    /// Where its calls go instead, if live patching says so.
    pub(crate) divert: Option<Addr>,
    pub(crate) shown: Shown,
}

/// The functions of a module.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) host: HostId,
    pub(crate) module: Arc<str>,
    pub(crate) phase: Phase,
    pub(crate) width: Width,
    /// In order of their addresses.
    pub(crate) entries: Vec<Entry>,
    pub(crate) untraceable: Vec<(Arc<str>, String)>,
    /// If it is a host's own.
    pub(crate) own: Option<Own>,
}

/// What a host's own functions need.
#[derive(Debug)]
pub(crate) struct Own {
    /// Near them.
    pub(crate) stubs: Stubs,
    /// For as long as they may be poked.
    pub(crate) _texts: Vec<HostText>,
}

/// Who traces what.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) id: TracerId,
    pub(crate) host: HostId,
    pub(crate) filter: Filter,
    pub(crate) member: Member,
    pub(crate) redirects: bool,
}

/// Functions by module and name.
type Spare = HashMap<(Arc<str>, Arc<str>), Vec<&'static Function>>;

/// What there is.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) parts: BTreeMap<Owner, Part>,
    /// In the order in which they came.
    pub(crate) tracers: Vec<Registered>,
    /// By their members.
    pub(crate) groups: BTreeMap<Vec<TracerId>, Box<Group>>,
    /// Groups that no function has any more, and that threads may be in; with their members.
    pub(crate) retired: Vec<(Vec<TracerId>, Box<Group>)>,
    /// Functions whose modules are gone, for the next of the same name.
    spare: Option<Spare>,
    /// Hosts' own functions that no host has registered, by their entries. Their stubs stay near them.
    pub(crate) own: BTreeMap<Addr, &'static Function>,
    /// All that there are, by their numbers.
    pub(crate) functions: Vec<&'static Function>,
    pub(crate) stubs: Stubs,
    /// Threads that have taken part in a recording.
    pub(crate) readers: Vec<Reader>,
    pub(crate) running: Option<Running>,
    pub(crate) trap_mask: TrapMask,
    /// The batch of the switch under way; kept for its memory.
    pub(crate) batch: EditSet,
    next_tracer: u64,
    /// The number of the last recording.
    pub(crate) last_session: u32,
}

impl Table {
    const fn new() -> Table {
        Table {
            parts: BTreeMap::new(),
            tracers: Vec::new(),
            groups: BTreeMap::new(),
            retired: Vec::new(),
            spare: None,
            own: BTreeMap::new(),
            functions: Vec::new(),
            stubs: Stubs::new(),
            readers: Vec::new(),
            running: None,
            trap_mask: TrapMask::Checked,
            batch: EditSet::new(),
            next_tracer: 0,
            last_session: 0,
        }
    }

    pub(crate) fn new_tracer(&mut self) -> TracerId {
        self.next_tracer += 1;
        TracerId(self.next_tracer)
    }

    /// A function that nobody looks at, for one of this name.
    pub(crate) fn function(&mut self, module: &Arc<str>, name: &Arc<str>) -> &'static Function {
        let spare = self.spare.get_or_insert_default();
        if let Some(function) = spare.get_mut(&(module.clone(), name.clone())).and_then(Vec::pop) {
            return function;
        }
        self.make(module, name)
    }

    fn make(&mut self, module: &Arc<str>, name: &Arc<str>) -> &'static Function {
        // Far fewer than names that would fit in memory.
        let number = u32::try_from(self.functions.len()).unwrap_or(u32::MAX);
        let function = Function::make(number, module.clone(), name.clone());
        self.functions.push(function);
        function
    }

    /// A function of the host's own.
    pub(crate) fn own_function(&mut self, module: &Arc<str>, name: &Arc<str>, entry: Addr) -> &'static Function {
        self.own.remove(&entry).unwrap_or_else(|| self.make(module, name))
    }

    /// Gives functions back whose module is gone.
    pub(crate) fn give_back(&mut self, functions: impl Iterator<Item = &'static Function>) {
        let spare = self.spare.get_or_insert_default();
        for function in functions {
            spare.entry((function.module.clone(), function.name.clone())).or_default().push(function);
        }
    }
}

/// What must be there before anything is traced. Called when a host is made, and not when the table is first needed: a fork of another
/// thread at that moment would leave the child waiting for ever.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        thread::prepare(Width::of_this_machine());
        on_fork(
            || HELD.set(Some(table())),
            || HELD.set(None),
            || {
                if let Some(mut table) = HELD.take() {
                    table.readers.extend(thread::take_new());
                    table.readers.iter().for_each(Reader::forked);
                }
            },
        );
    });
}

/// The table, for this thread alone.
pub(crate) fn table() -> MutexGuard<'static, Table> {
    // Whole between any two statements that can panic.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    pub(crate) fn new(site: Site) -> Entry {
        Entry {
            site,
            function: None,
            tracers: Vec::new(),
            recorded: Then::Function,
            divert: None,
            shown: Shown::Nothing,
        }
    }

    /// Whether this can be recorded of it.
    pub(crate) fn can_be(&self, recorded: Then) -> bool {
        recorded != Then::Graph || why_no_returns(&self.site.name).is_none()
    }

    /// What is to stand at its site.
    pub(crate) fn wanted(&self) -> Shown {
        self.wanted_with(self.divert)
    }

    /// What would be to stand there if its calls went elsewhere, or did not.
    pub(crate) fn wanted_with(&self, divert: Option<Addr>) -> Shown {
        match (self.recorded, self.tracers.is_empty(), divert) {
            (Then::Function, true, None) => Shown::Nothing,
            (Then::Function, true, Some(to)) if self.reaches(to) => Shown::Diverted(to),
            (Then::Graph, ..) | (.., Some(_)) => Shown::Jumped,
            _ => Shown::Called,
        }
    }

    fn reaches(&self, to: Addr) -> bool {
        i32::try_from(to - self.behind()).is_ok()
    }

    /// The address behind its site.
    pub(crate) fn behind(&self) -> Addr {
        self.site.at + u64::from(self.site.len)
    }

    /// Where its calls go on.
    pub(crate) fn target(&self, divert: Option<Addr>) -> Addr {
        divert.unwrap_or_else(|| self.behind())
    }

    /// The bytes of its site.
    pub(crate) fn code(&self, shown: Shown) -> SiteCode {
        let stub = self.function.and_then(Function::stub).unwrap_or_default();
        SiteCode::of(self.site.at, self.site.len, shown, stub)
    }
}

/// The bytes of a site, which are one instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SiteCode {
    bytes: [u8; 6],
    len: u8,
}

impl SiteCode {
    fn of(at: Addr, len: u8, shown: Shown, stub: Addr) -> SiteCode {
        let long = usize::from(len);
        let mut bytes = [0; 6];
        let (opcode, to) = match shown {
            Shown::Nothing => {
                bytes[..long].copy_from_slice(modload_edit::NOPS[long - 1]);
                return SiteCode { bytes, len };
            }
            Shown::Called => (0xe8, stub),
            Shown::Jumped => (0xe9, crate::trampoline::jumped(stub)),
            Shown::Diverted(to) => (0xe9, to),
        };
        // addr32, which a branch does not heed, where a byte is over.
        bytes[0] = 0x67;
        bytes[long - 5] = opcode;
        // Stubs are near their functions, and what is farther is not jumped to straight.
        let distance = i32::try_from(to - (at + u64::from(len))).unwrap_or_default();
        bytes[long - 4..long].copy_from_slice(&distance.to_le_bytes());
        SiteCode { bytes, len }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}
