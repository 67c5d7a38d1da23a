//! All functions of the process that can be traced, and their tracers.
//!
//! There is one table for all hosts, because a thread runs through the modules of several hosts. The table's lock is
//! taken before the text lock, and held over fork. Traced code never takes it.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use modload_edit::{Addr, EditSet};
use modload_text::{HostText, TrapMask, on_fork};

use crate::filter::Filter;
use crate::identity::{FunctionOwner, TraceHostId, TracerId};
use crate::running::RunningRecording;
use crate::sites::{Site, why_no_returns};
use crate::stubs::TraceStubs;
use crate::trampoline::attach::take_new_threads;
use crate::trampoline::call::{TracerGroup, TracerMember};
use crate::trampoline::reader::RingReader;
use crate::trampoline::slow_path::prepare;
use crate::trampoline::variants::{AfterTracers, VectorWidth};
use crate::trampoline::{FunctionRecord, second_half};
use crate::x86_64::{LONGEST_SITE, reaches, write_call, write_jump};

static TABLE: Mutex<TraceTable> = Mutex::new(TraceTable::new());

thread_local! {
    static HELD: RefCell<Option<MutexGuard<'static, TraceTable>>> = const { RefCell::new(None) };
}

/// Whether text can be poked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ModuleTextState {
    /// The text is still staged. Sites in staged text are checked again when the text is published.
    Staged,
    /// The text can be poked.
    Published,
}

/// The code at a site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SiteTarget {
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
pub(crate) struct TraceEntry {
    pub(crate) site: Site,
    /// The function's record for stubs, which exists once the function was traced.
    pub(crate) function: Option<&'static FunctionRecord>,
    /// The tracers of the function, in the order of their registration.
    pub(crate) tracers: Vec<TracerId>,
    /// The events of the function that are recorded.
    pub(crate) recorded: AfterTracers,
    /// The target to which live patching redirects calls, if any.
    pub(crate) divert: Option<Addr>,
    pub(crate) shown: SiteTarget,
}

/// The functions of a module.
#[derive(Debug)]
pub(crate) struct ModuleFunctions {
    pub(crate) host: TraceHostId,
    pub(crate) module: Arc<str>,
    pub(crate) phase: ModuleTextState,
    pub(crate) width: VectorWidth,
    /// The functions in the order of their addresses.
    pub(crate) entries: Vec<TraceEntry>,
    pub(crate) untraceable: Vec<(Arc<str>, String)>,
    /// Set for a host's own functions.
    pub(crate) own: Option<HostResources>,
}

/// The resources for a host's own functions.
#[derive(Debug)]
pub(crate) struct HostResources {
    /// The stubs, near the functions.
    pub(crate) stubs: TraceStubs,
    /// The registered texts, which exist as long as the functions may be poked.
    pub(crate) _texts: Vec<HostText>,
}

/// A registered tracer.
#[derive(Debug)]
pub(crate) struct RegisteredTracer {
    pub(crate) id: TracerId,
    pub(crate) host: TraceHostId,
    pub(crate) filter: Filter,
    pub(crate) member: TracerMember,
    pub(crate) redirects: bool,
}

/// Functions by module and name.
type Spare = HashMap<(Arc<str>, Arc<str>), Vec<&'static FunctionRecord>>;

/// All state of function tracing.
#[derive(Debug)]
pub(crate) struct TraceTable {
    pub(crate) parts: BTreeMap<FunctionOwner, ModuleFunctions>,
    /// The tracers in the order of their registration.
    pub(crate) tracers: Vec<RegisteredTracer>,
    /// The groups by their members.
    pub(crate) groups: BTreeMap<Vec<TracerId>, Box<TracerGroup>>,
    /// The groups that no function has any more but that threads may be in, with their members.
    pub(crate) retired: Vec<(Vec<TracerId>, Box<TracerGroup>)>,
    /// The functions of unloaded modules, to be used again for functions of the same name.
    spare: Option<Spare>,
    /// The hosts' own functions that no host has registered, by their entries. The stubs of these functions stay near
    /// the functions.
    pub(crate) own: BTreeMap<Addr, &'static FunctionRecord>,
    /// All functions, by their numbers.
    pub(crate) functions: Vec<&'static FunctionRecord>,
    pub(crate) stubs: TraceStubs,
    /// The threads that have taken part in a recording.
    pub(crate) readers: Vec<RingReader>,
    pub(crate) running: Option<RunningRecording>,
    pub(crate) trap_mask: TrapMask,
    /// The batch of the switch under way, which is kept for its memory.
    pub(crate) batch: EditSet,
    next_tracer: u64,
    /// The number of the last recording.
    pub(crate) last_session: u32,
}

impl TraceTable {
    const fn new() -> TraceTable {
        TraceTable {
            parts: BTreeMap::new(),
            tracers: Vec::new(),
            groups: BTreeMap::new(),
            retired: Vec::new(),
            spare: None,
            own: BTreeMap::new(),
            functions: Vec::new(),
            stubs: TraceStubs::new(),
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

    /// Returns a function that is not traced, for this name.
    pub(crate) fn function(&mut self, module: &Arc<str>, name: &Arc<str>) -> &'static FunctionRecord {
        let spare = self.spare.get_or_insert_default();
        if let Some(function) = spare.get_mut(&(module.clone(), name.clone())).and_then(Vec::pop) {
            return function;
        }
        self.make(module, name)
    }

    fn make(&mut self, module: &Arc<str>, name: &Arc<str>) -> &'static FunctionRecord {
        // Names for so many functions would not fit in memory.
        let number = u32::try_from(self.functions.len()).unwrap_or(u32::MAX);
        let function = FunctionRecord::make(number, module.clone(), name.clone());
        self.functions.push(function);
        function
    }

    /// Returns the function for one of the host's own functions.
    pub(crate) fn own_function(&mut self, module: &Arc<str>, name: &Arc<str>, entry: Addr) -> &'static FunctionRecord {
        self.own.remove(&entry).unwrap_or_else(|| self.make(module, name))
    }

    /// Gives back the functions of an unloaded module.
    pub(crate) fn give_back(&mut self, functions: impl Iterator<Item = &'static FunctionRecord>) {
        let spare = self.spare.get_or_insert_default();
        for function in functions {
            spare.entry((function.module.clone(), function.name.clone())).or_default().push(function);
        }
    }
}

/// Prepares the process for tracing. Called when a host is made, and not when the table is first needed: if another
/// thread forked at that moment, the child would wait for ever.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        prepare(VectorWidth::of_this_machine());
        on_fork(
            || HELD.set(Some(table())),
            || HELD.set(None),
            || {
                if let Some(mut table) = HELD.take() {
                    table.readers.extend(take_new_threads());
                    table.readers.iter().for_each(RingReader::forked);
                }
            },
        );
    });
}

/// Locks the table.
pub(crate) fn table() -> MutexGuard<'static, TraceTable> {
    // The table is consistent between any two statements that can panic.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TraceEntry {
    pub(crate) fn new(site: Site) -> TraceEntry {
        TraceEntry {
            site,
            function: None,
            tracers: Vec::new(),
            recorded: AfterTracers::Function,
            divert: None,
            shown: SiteTarget::Nothing,
        }
    }

    /// Returns whether the function can be recorded in this way.
    pub(crate) fn can_be(&self, recorded: AfterTracers) -> bool {
        recorded != AfterTracers::Graph || why_no_returns(&self.site.name).is_none()
    }

    /// Returns the code that the site should hold.
    pub(crate) fn wanted(&self) -> SiteTarget {
        self.wanted_with(self.divert)
    }

    /// Returns the code that the site should hold if the function's calls were diverted, or not diverted, in this way.
    pub(crate) fn wanted_with(&self, divert: Option<Addr>) -> SiteTarget {
        match (self.recorded, self.tracers.is_empty(), divert) {
            (AfterTracers::Function, true, None) => SiteTarget::Nothing,
            (AfterTracers::Function, true, Some(to)) if self.reaches(to) => SiteTarget::Diverted(to),
            (AfterTracers::Graph, ..) | (.., Some(_)) => SiteTarget::Jumped,
            _ => SiteTarget::Called,
        }
    }

    fn reaches(&self, to: Addr) -> bool {
        reaches(self.behind(), to)
    }

    /// Returns the address behind the site.
    pub(crate) fn behind(&self) -> Addr {
        self.site.at + u64::from(self.site.len)
    }

    /// Returns the address at which the function's calls continue.
    pub(crate) fn target(&self, divert: Option<Addr>) -> Addr {
        divert.unwrap_or_else(|| self.behind())
    }

    /// Returns the bytes of the site.
    pub(crate) fn code(&self, shown: SiteTarget) -> SiteCode {
        let stub = self.function.and_then(FunctionRecord::stub).unwrap_or_default();
        SiteCode::of(self.site.at, self.site.len, shown, stub)
    }
}

/// The bytes of a site, which are one instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SiteCode {
    bytes: [u8; LONGEST_SITE],
    len: u8,
}

impl SiteCode {
    fn of(at: Addr, len: u8, shown: SiteTarget, stub: Addr) -> SiteCode {
        let mut bytes = [0; LONGEST_SITE];
        let site = &mut bytes[..usize::from(len)];
        // Stubs are near their functions, and sites jump directly only to targets in reach.
        match shown {
            SiteTarget::Nothing => site.copy_from_slice(modload_edit::NOPS[site.len() - 1]),
            SiteTarget::Called => write_call(site, at, stub),
            SiteTarget::Jumped => write_jump(site, at, second_half(stub)),
            SiteTarget::Diverted(to) => write_jump(site, at, to),
        }
        SiteCode { bytes, len }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}
