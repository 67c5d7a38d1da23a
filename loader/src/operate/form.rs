//! Stage *form*: reads the module's own tables from relocated memory, publishes read-only data and enters the module in
//! the registry: from here on the module is COMING.

use std::sync::Arc;

use modload_abi::{ExportedSymbol, KernelParam, Records, section};
use modload_edit::{Addr, wide};
use modload_relocs::TlsBlock;
use modload_tls::ThreadLocalBlock;
use object::elf;

use crate::elf::error::ObjectError;
use crate::elf::file::{File, FileSymbol, SymbolPlace};
use crate::elf::modinfo::Modinfo;
use crate::modules::module::{self, Module, ModuleParts};
use crate::modules::registry::{Export, ExportTable, Registry};
use crate::operate::error::Error;
use crate::operate::judge::Judge;
use crate::prepare::deferred::Slices;
use crate::prepare::error::PrepareError;
use crate::prepare::layout::{ModuleLayout, Spot};
use crate::prepare::memory::{Formed, Staging};
use crate::prepare::names::{self, SymbolNames};
use crate::prepare::params::ParamInfo;
use crate::prepare::policy::Policy;
use crate::prepare::tables::{numbered_tables, tables};
use crate::prepare::vague::{self, DefinitionStrength, SharedDefinitions};
use crate::prepare::{frames, unwind};
use crate::vocabulary::escape::escaped;
use crate::vocabulary::externals::Externals;
use crate::vocabulary::functions::EntryPoints;
use crate::vocabulary::module_id::ModuleId;
use crate::vocabulary::state::State;

/// A symbol to be exported.
#[derive(Debug)]
struct NewExport {
    name: Box<[u8]>,
    addr: Addr,
    gpl_only: bool,
    namespace: Box<[u8]>,
    crc: Option<u32>,
    strength: DefinitionStrength,
    /// The block of a thread-local variable.
    block: Option<TlsBlock>,
}

/// Definitions of a module that other modules may use.
#[derive(Default, Debug)]
struct NewExports {
    /// Exported symbols.
    exports: Vec<NewExport>,
    /// STB_GNU_UNIQUE definitions, exported or not.
    uniques: Vec<NewExport>,
}

/// The parts from which a module is formed.
pub(crate) struct Unformed<'a> {
    pub(crate) file: &'a File<'a>,
    pub(crate) info: &'a Modinfo<'a>,
    pub(crate) layout: &'a ModuleLayout,
    pub(crate) id: ModuleId,
    pub(crate) name: Arc<str>,
    pub(crate) registry: &'static Registry,
    pub(crate) externals: &'a dyn Externals,
    pub(crate) policy: &'a Policy,
    pub(crate) judge: &'a Judge<'a>,
    pub(crate) slices: Option<Box<Slices>>,
    pub(crate) shared: SharedDefinitions,
    /// The symbols that another module's definition replaces.
    pub(crate) elsewhere: &'a [u32],
}

/// A module that is in the registry, and the memory of the module.
#[derive(Debug)]
pub(crate) struct NewModule {
    pub(crate) module: Arc<Module>,
    pub(crate) memory: Formed,
}

/// The contents of the module's own relocated tables.
pub(crate) struct ModuleTables {
    names: Arc<SymbolNames>,
    init_names: Option<Arc<SymbolNames>>,
    exports: NewExports,
    functions: EntryPoints,
    params: Vec<ParamInfo>,
    frames: frames::FramesPlan,
}

impl ModuleTables {
    /// Reads all tables, and writes the module's name into the `struct module`.
    pub(crate) fn read(
        file: &File<'_>,
        layout: &ModuleLayout,
        memory: &mut Staging,
        name: &Arc<str>,
        policy: &Policy,
        shared: SharedDefinitions,
        elsewhere: &[u32],
    ) -> Result<ModuleTables, PrepareError> {
        let (names, init_names) = names::collect(file, layout, memory, name, policy.trap_descriptor);
        let (names, init_names) = (Arc::new(names), init_names.map(Arc::new));
        memory.own_text(names.clone(), init_names.as_ref().unwrap_or(&names).clone());
        let exports = exports(file, layout, memory, shared, elsewhere)?;
        let functions = functions(file, layout, memory, &names, init_names.as_deref())?;
        let params = params(file, layout, memory)?;
        fill_own_block(layout, memory, name);
        let frames = unwind::plan(file, layout, memory)?;
        Ok(ModuleTables { names, init_names, exports, functions, params, frames })
    }
}

impl Unformed<'_> {
    /// Forms the module.
    pub(crate) fn form(self, mut memory: Staging) -> Result<NewModule, Error> {
        let Unformed { file, info, layout, id, name, registry, externals, policy, judge, slices, .. } = self;
        let tables = ModuleTables::read(file, layout, &mut memory, &name, policy, self.shared, self.elsewhere)?;
        let ModuleTables { names, init_names, exports, functions, params, frames } = tables;
        let module = Arc::new(Module::new(ModuleParts {
            id,
            name,
            registry,
            names,
            init_names,
            placed: module::sections(file, layout, &memory),
            ranges: memory.ranges(),
            functions,
            params,
            license: info.license().map(escaped),
            taint: judge.taint(),
            is_live_patch: info.is_live_patch(),
            patch_record_sizes: info.patch_record_sizes(),
            slices,
            block: memory.own_block().map(ThreadLocalBlock::number),
            proof: policy.proof,
        }));
        let memory = memory.form(frames, layout.thread_local.as_ref())?;
        publish_exports(registry, externals, id, exports)?;
        enter(registry, id, &module);
        Ok(NewModule { module, memory })
    }
}

/// Reads `__ksymtab` and `__ksymtab_gpl`, or takes all globals.
fn exports(
    file: &File<'_>,
    layout: &ModuleLayout,
    memory: &Staging,
    shared: SharedDefinitions,
    elsewhere: &[u32],
) -> Result<NewExports, ObjectError> {
    let mut exports = Vec::new();
    for (table, crcs, gpl_only) in
        [(section::KSYMTAB, section::KCRCTAB, false), (section::KSYMTAB_GPL, section::KCRCTAB_GPL, true)]
    {
        // In the order of the records, also if both tables consist of several sections.
        let crc_table = crcs;
        let mut crcs = tables(file, layout, memory, crcs).flat_map(|(_, bytes)| bytes.chunks_exact(4)).peekable();
        let has_crcs = crcs.peek().is_some();
        let first = exports.len();
        for (number, start, bytes) in numbered_tables(file, layout, memory, table) {
            let bad = |record, problem| ObjectError::BadRecord { section: table, record, problem };
            let records = Records::<ExportedSymbol>::new(bytes).map_err(|_| bad(0, "its size is no multiple of 12"))?;
            for (at, record) in records.iter().enumerate() {
                let place = start + 12 * wide(at);
                let addr = place.offset(record.value.into());
                let is_number = || is_absolute(file, number, 12 * wide(at));
                if memory.at(addr).map_or_else(|| !is_number(), |(part, _)| part.is_init()) {
                    return Err(bad(at, "the symbol does not lie in this module, or is dropped after init"));
                }
                let name = memory.string((place + 4).offset(record.name.into()));
                let name =
                    name.filter(|name| !name.is_empty()).ok_or_else(|| bad(at, "the name is not in this module"))?;
                let namespace = match record.namespace {
                    0 => Some(&[][..]),
                    distance => memory.string((place + 8).offset(distance.into())),
                };
                let namespace = namespace.ok_or_else(|| bad(at, "the namespace is not in this module"))?;
                let crc = crcs.next().and_then(|crc| Some(u32::from_le_bytes(crc.try_into().ok()?)));
                let (name, namespace) = (name.into(), namespace.into());
                let strength = DefinitionStrength::Strong;
                exports.push(NewExport { name, addr, gpl_only, namespace, crc, strength, block: None });
            }
        }
        let without = exports[first..].iter().position(|export| has_crcs && export.crc.is_none());
        if let Some(record) = without.or_else(|| crcs.next().map(|_| exports.len() - first)) {
            let problem = "there is not one CRC for each exported symbol";
            return Err(ObjectError::BadRecord { section: crc_table, record, problem });
        }
    }
    let mut all = NewExports { exports, uniques: Vec::new() };
    for (at, symbol) in file.symbols().skip(1).filter(|(at, _)| elsewhere.binary_search(at).is_err()) {
        let Some(strength) = vague::strength(file, &symbol) else { continue };
        let (addr, block) = match variable(&symbol, layout, memory) {
            Some((addr, block)) => (addr, Some(block)),
            None => match address(&symbol, at, layout, memory) {
                Some(addr) => (addr, None),
                None => continue,
            },
        };
        let name = symbol.name();
        let export = || {
            let namespace = [].into();
            NewExport { name: name.into(), addr, gpl_only: false, namespace, crc: None, strength, block }
        };
        let entry = name == section::INIT_SYMBOL.as_bytes() || name == section::EXIT_SYMBOL.as_bytes();
        if shared == SharedDefinitions::Globals && !entry && !name.is_empty() {
            all.exports.push(export());
        }
        if strength == DefinitionStrength::Unique {
            all.uniques.push(export());
        }
    }
    Ok(all)
}

/// Returns the offset of a thread-local variable in the module's block, and the block.
fn variable(symbol: &FileSymbol<'_>, layout: &ModuleLayout, memory: &Staging) -> Option<(Addr, TlsBlock)> {
    let SymbolPlace::Section(section) = symbol.place else { return None };
    let offset = layout.thread_local_offset(section)?;
    let own = memory.own_block()?;
    let block = TlsBlock { number: own.number(), from_thread_pointer: own.thread_pointer_offset() };
    Some((Addr::new(offset + symbol.value), block))
}

/// Returns the address of a definition for other modules. Returns `None` for init sections, and for symbols that are
/// neither code, data nor a number.
fn address(symbol: &FileSymbol<'_>, at: u32, layout: &ModuleLayout, memory: &Staging) -> Option<Addr> {
    let kinds = [elf::STT_FUNC, elf::STT_GNU_IFUNC, elf::STT_OBJECT, elf::STT_COMMON, elf::STT_NOTYPE];
    if !kinds.contains(&symbol.kind) {
        return None;
    }
    let lasting = |spot: Spot| (!spot.part.is_init()).then(|| memory.addr(spot));
    match symbol.place {
        SymbolPlace::Section(_) if symbol.kind == elf::STT_GNU_IFUNC => lasting(layout.indirect(at)?),
        SymbolPlace::Section(section) => lasting(layout.section(section)?).map(|start| start + symbol.value),
        SymbolPlace::Common => lasting(layout.common(at)?),
        SymbolPlace::Absolute => Some(Addr::new(symbol.value)),
        SymbolPlace::Undefined | SymbolPlace::Livepatch => None,
    }
}

/// Whether a place of a section is relocated against a mere number.
fn is_absolute(file: &File<'_>, section: u32, offset: u64) -> bool {
    let of_section = file.relas.iter().filter(|relas| relas.target == section);
    let mut here = of_section.flat_map(|relas| relas.records.iter()).filter(|rela| rela.offset == offset);
    here.any(|rela| file.symbol(rela.symbol).is_some_and(|symbol| symbol.place == SymbolPlace::Absolute))
}

/// Reads `__param`.
fn params(file: &File<'_>, layout: &ModuleLayout, memory: &Staging) -> Result<Vec<ParamInfo>, ObjectError> {
    let mut params = Vec::new();
    for (_, bytes) in tables(file, layout, memory, section::PARAM) {
        let bad = |record, problem| ObjectError::BadRecord { section: section::PARAM, record, problem };
        let records = Records::<KernelParam>::new(bytes).map_err(|_| bad(0, "its size is no multiple of 40"))?;
        for (at, record) in records.iter().enumerate() {
            let name =
                memory.string(Addr::new(record.name)).ok_or_else(|| bad(at, "the name is not in this module"))?;
            params.push(ParamInfo::read(escaped(name), &record, memory).map_err(|problem| bad(at, problem))?);
        }
    }
    Ok(params)
}

/// Finds init, exit, constructors and destructors.
fn functions(
    file: &File<'_>,
    layout: &ModuleLayout,
    memory: &Staging,
    core: &SymbolNames,
    init: Option<&SymbolNames>,
) -> Result<EntryPoints, ObjectError> {
    let find = |name: &'static str| {
        let symbol = core.find(name.as_bytes()).or_else(|| init.and_then(|init| init.find(name.as_bytes())));
        let Some(addr) = symbol.map(|symbol| symbol.addr) else { return Ok(None) };
        if memory.at(addr).is_some_and(|(part, _)| part.is_text()) {
            return Ok(Some(addr));
        }
        let why = "it would be called, and is no function of this module";
        Err(ObjectError::Unsupported { what: "symbol", name: name.into(), why })
    };
    let mut destructors = arrays(file, layout, memory, section::FINI_ARRAY, section::DTORS)?;
    destructors.reverse();
    Ok(EntryPoints {
        init: find(section::INIT_SYMBOL)?,
        exit: find(section::EXIT_SYMBOL)?,
        resolvers: resolvers(file, layout, memory)?,
        constructors: arrays(file, layout, memory, section::INIT_ARRAY, section::CTORS)?,
        destructors,
        this_module: layout.this_module.map(|spot| memory.addr(spot)),
        dso_handle: layout.dso_handle().map(|spot| memory.addr(spot)),
    })
}

/// Returns the resolvers of the module's indirect functions, each with a slot.
fn resolvers(file: &File<'_>, layout: &ModuleLayout, memory: &Staging) -> Result<Vec<(Addr, Addr)>, ObjectError> {
    let slots = memory.addr(layout.indirect_slots);
    let found = layout.indirect.symbols().iter().filter_map(|&at| {
        let (symbol, slot) = (file.symbol(at)?, slots + layout.indirect.slot(at)?);
        let SymbolPlace::Section(section) = symbol.place else { return None };
        let resolver = memory.addr(layout.section(section)?) + symbol.value;
        if memory.at(resolver).is_some_and(|(part, _)| part.is_text()) {
            return Some(Ok((resolver, slot)));
        }
        let why = "its resolver is no function of this module";
        Some(Err(ObjectError::Unsupported { what: "symbol", name: escaped(symbol.name()), why }))
    });
    found.collect()
}

/// Returns the function pointers of all `.init_array`, `.init_array.N`, `.ctors` and `.ctors.N`, in the order of GNU
/// ld's `.init_array`: by priority, sections without priority last, each `.ctors` from the last entry to the first.
fn arrays(
    file: &File<'_>,
    layout: &ModuleLayout,
    memory: &Staging,
    array: &'static str,
    older: &'static str,
) -> Result<Vec<Addr>, ObjectError> {
    let mut found = Vec::new();
    for (section, spot) in file.sections.iter().zip(&layout.sections) {
        let Some(Spot { part, offset }) = *spot else { continue };
        let of =
            |name: &str| section.name.strip_prefix(name.as_bytes()).filter(|rest| rest.is_empty() || rest[0] == b'.');
        let (rest, name) = match (of(array), of(older)) {
            (Some(rest), _) => (rest, array),
            (None, Some(rest)) => (rest, older),
            (None, None) => continue,
        };
        let number = rest.strip_prefix(b".").and_then(|number| std::str::from_utf8(number).ok()?.parse::<u16>().ok());
        let priority = number.map(|number| if name == older { u16::MAX - number } else { number });
        let start = modload_edit::index(offset);
        let bytes = &memory.bytes(part)[start..start + modload_edit::index(section.size)];
        let mut functions = Vec::new();
        for (record, pointer) in bytes.chunks(8).enumerate() {
            let bad = |problem| ObjectError::BadRecord { section: name, record, problem };
            let pointer: [u8; 8] = pointer.try_into().map_err(|_| bad("its size is no multiple of 8"))?;
            let addr = Addr::new(u64::from_le_bytes(pointer));
            if !memory.at(addr).is_some_and(|(part, _)| part.is_text()) {
                return Err(bad("it is no function of this module"));
            }
            functions.push(addr);
        }
        if name == older {
            functions.reverse();
        }
        found.push((priority.map_or(u32::MAX, u32::from), functions));
    }
    found.sort_by_key(|(priority, _)| *priority);
    Ok(found.into_iter().flat_map(|(_, functions)| functions).collect())
}

/// Writes the module's name into the `struct module`, and the address of `__dso_handle` into `__dso_handle`, as gcc's
/// `crtbeginS.o` does: `atexit`, `at_quick_exit` and `pthread_atfork` of glibc's `libc_nonshared.a` pass this value on.
fn fill_own_block(layout: &ModuleLayout, memory: &mut Staging, name: &str) {
    let handle = layout.dso_handle().map(|spot| (spot, memory.addr(spot).get().to_le_bytes()));
    let handle = handle.as_ref().map(|(spot, address)| (*spot, &address[..]));
    for (spot, bytes) in layout.this_module.map(|spot| (spot, name.as_bytes())).into_iter().chain(handle) {
        let start = modload_edit::index(spot.offset);
        if let Some(block) = memory.bytes_mut(spot.part).get_mut(start..start + bytes.len()) {
            block.copy_from_slice(bytes);
        }
    }
}

/// Enters all of the module's exports, or none. Another load may have defined a vague symbol after this module's own
/// definition was chosen; that is refused.
fn publish_exports(registry: &Registry, externals: &dyn Externals, id: ModuleId, new: NewExports) -> Result<(), Error> {
    let duplicate = |export: &NewExport, owner: String| Error::DuplicateExport { symbol: escaped(&export.name), owner };
    // Called before the lock is taken, because this is code of the host.
    if let Some(export) = new.exports.iter().find(|export| externals.exported(&export.name).is_some()) {
        return Err(duplicate(export, "the host".into()));
    }
    let mut book = registry.lock();
    let mut refused = Ok(());
    let tables = [(ExportTable::Exports, new.exports), (ExportTable::Uniques, new.uniques)];
    for (table, exports) in tables {
        let mut taken = Vec::with_capacity(exports.len());
        for export in exports {
            if let Some(owner) = book.owner(table, &export.name) {
                refused = refused.and(Err(duplicate(&export, owner)));
                break;
            }
            let NewExport { name, addr, gpl_only, namespace, crc, strength, block } = export;
            taken.push(name.clone());
            book.enter(table, name, Export { module: id, addr, gpl_only, namespace, crc, strength, block });
        }
        // In any case, dropping the reservation removes the names noted here.
        if let Some(entry) = book.by_id_mut(id) {
            match table {
                ExportTable::Exports => entry.exports = taken,
                ExportTable::Uniques => entry.uniques = taken,
            }
        }
    }
    refused
}

/// The module can be found from here on.
fn enter(registry: &Registry, id: ModuleId, module: &Arc<Module>) {
    let mut book = registry.lock();
    if let Some(entry) = book.by_id_mut(id) {
        entry.module = Some(module.clone());
    }
    book.set_state(id, State::Coming);
}
