//! Stage *resolve*: gives an address to each symbol, and reports all undefined symbols at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use modload_abi::livepatch::{self, KlpSymbol};
use modload_abi::{Rela, section};
use modload_edit::{Addr, index};
use modload_relocs::{RelocSymbol, RelocSymbolKind};
use object::elf;

use crate::elf::file::{File, FileSymbol, SymbolPlace};
use crate::elf::modinfo::Modinfo;
use crate::modules::registry::FoundExport;
use crate::operate::elsewhere::{self, FoundDefinition};
use crate::operate::error::Error;
use crate::operate::judge::WantedUse;
use crate::operate::scene::{Absent, Scene};
use crate::operate::suggest::Suggestions;
use crate::prepare::error::{PrepareError, Unresolved};
use crate::prepare::layout::{ModuleLayout, bounded_section};
use crate::prepare::memory::Staging;
use crate::prepare::params;
use crate::prepare::program;
use crate::prepare::resolved::{Resolved, picked};
use crate::prepare::thread_local::ThreadLocals;
use crate::prepare::vague;
use crate::prepare::x86_64::{THUNK, thunk};
use crate::vocabulary::escape::escaped;
use crate::vocabulary::externals::{External, Externals, ModuleLibrary};

pub(crate) fn resolve(
    file: &File<'_>,
    layout: &ModuleLayout,
    memory: &Staging,
    scene: Scene<'_>,
) -> Result<Resolved, Error> {
    let mut symbols: Vec<RelocSymbol> = file.symbols().map(|(_, symbol)| defined(&symbol, layout, memory)).collect();
    for &(at, spot) in &layout.commons {
        symbols[index(at.into())].addr = memory.addr(spot);
    }
    for &at in layout.indirect.symbols() {
        if let Some(entry) = layout.indirect(at) {
            symbols[index(at.into())].addr = memory.addr(entry);
        }
    }
    let mut variables = ThreadLocals::of(file, layout, memory);
    let mut missing = Vec::new();
    let mut near = Vec::new();
    let mut external = 0;
    let mut elsewhere = Vec::new();
    for (at, symbol) in file.symbols() {
        let Some(strength) = vague::strength(file, &symbol) else { continue };
        if let Some(found) = elsewhere::elsewhere(&symbol, strength, scene.shared, scene)? {
            symbols[index(at.into())] = as_relocated(&mut variables, found, symbol.size)?;
            elsewhere.push(at);
            external += 1;
        }
    }
    for &at in &layout.undefined {
        let Some(symbol) = file.symbol(at) else { continue };
        if symbol.is_named(section::TLS_MODULE_BASE_SYMBOL.as_bytes()) {
            symbols[index(at.into())] = variables.module_base();
            continue;
        }
        if layout.slots.is_thread_local(at) {
            match variable(&symbol, scene)? {
                Ok(found) => {
                    symbols[index(at.into())] = as_relocated(&mut variables, found, symbol.size)?;
                    external += 1;
                }
                Err(_) if scene.absent == Absent::Somewhere => {
                    symbols[index(at.into())] = variables.somewhere(symbol.size);
                }
                Err(because) => missing.push((at, Some(because))),
            }
            continue;
        }
        let operations = layout.operations.filter(|(table, _)| *table == at).map(|(_, spot)| memory.addr(spot));
        let resolved = match operations.or_else(|| supplied(symbol.name(), file, layout, memory)) {
            Some(addr) => Some((addr, RelocSymbolKind::Defined)),
            None => {
                let found = outside(&symbol, scene)?;
                external += u64::from(found.is_ok());
                match found {
                    Ok(addr) => {
                        near.extend(near_copy(file, at, addr, scene).map(|contents| (at, contents)));
                        Some((addr, RelocSymbolKind::External))
                    }
                    Err(_) if symbol.bind == elf::STB_WEAK => Some((Addr::NULL, RelocSymbolKind::UndefinedWeak)),
                    Err(_) if scene.absent == Absent::Somewhere => {
                        Some((memory.addr(layout.got), RelocSymbolKind::External))
                    }
                    Err(because) => {
                        missing.push((at, because));
                        None
                    }
                }
            }
        };
        if let Some((addr, kind)) = resolved {
            symbols[index(at.into())] = RelocSymbol { addr, size: symbol.size, kind };
        }
    }
    let of_host = layout.livepatch.iter().filter_map(|&at| {
        let symbol = file.symbol(at)?;
        let klp = KlpSymbol::parse(symbol.name()).filter(|klp| klp.object == livepatch::VMLINUX)?;
        Some((at, symbol, klp))
    });
    let of_host: Vec<_> = of_host.collect();
    // One call for all names: the host may have to read a large file.
    let names: BTreeSet<_> = of_host.iter().map(|(.., klp)| klp.name).collect();
    let own = if names.is_empty() { BTreeMap::new() } else { scene.externals.own(&names) };
    for (at, symbol, klp) in of_host {
        let operations = layout.operations.filter(|(table, _)| *table == at).map(|(_, spot)| memory.addr(spot));
        match operations.or_else(|| picked(own.get(klp.name)?, klp.position)) {
            Some(addr) => {
                symbols[index(at.into())] = RelocSymbol { addr, size: symbol.size, kind: RelocSymbolKind::External }
            }
            None if scene.absent == Absent::Somewhere => {
                let addr = memory.addr(layout.got);
                symbols[index(at.into())] = RelocSymbol { addr, size: symbol.size, kind: RelocSymbolKind::External };
            }
            None => missing.push((at, Some("the host has none of this name and position"))),
        }
    }
    // A linker that drops sections keeps their undefined symbols. Like a linker, refuse only symbols in use.
    missing.retain(|(at, _)| is_used(file, *at));
    if missing.is_empty() {
        let ThreadLocals { blocks: thread_local, library_blocks, .. } = variables;
        return Ok(Resolved { symbols, external, elsewhere, thread_local, library_blocks, near });
    }
    let names = |each: &mut dyn FnMut(&str)| {
        scene.externals.names().iter().for_each(|name| each(name));
        scene.registry.lock().export_names(each);
    };
    let mut suggestions = Suggestions::among(names);
    let reports = missing.iter().map(|&(at, because)| report(file, at, because, &mut suggestions));
    Err(PrepareError::Unresolved(reports.collect()).into())
}

fn defined(symbol: &FileSymbol<'_>, layout: &ModuleLayout, memory: &Staging) -> RelocSymbol {
    let (addr, kind) = match symbol.place {
        SymbolPlace::Absolute => (Addr::new(symbol.value), RelocSymbolKind::Absolute),
        SymbolPlace::Common => (Addr::NULL, RelocSymbolKind::Defined),
        SymbolPlace::Undefined => (Addr::NULL, RelocSymbolKind::UndefinedWeak),
        SymbolPlace::Livepatch => (Addr::NULL, RelocSymbolKind::Waiting),
        SymbolPlace::Section(section) => match (layout.thread_local_offset(section), layout.section(section)) {
            (Some(offset), _) => (Addr::new(offset + symbol.value), RelocSymbolKind::ThreadLocal(0)),
            (None, Some(spot)) => (memory.addr(spot) + symbol.value, RelocSymbolKind::Defined),
            (None, None) => (Addr::NULL, RelocSymbolKind::Discarded),
        },
    };
    RelocSymbol { addr, size: symbol.size, kind }
}

/// Returns the address of a symbol that a linker would define.
fn supplied(name: &[u8], file: &File<'_>, layout: &ModuleLayout, memory: &Staging) -> Option<Addr> {
    if name == section::GOT_SYMBOL.as_bytes() {
        return Some(memory.addr(layout.got));
    }
    if name == section::TLS_GET_ADDR_SYMBOL.as_bytes() {
        return layout.resolvers.map(|spot| memory.addr(spot));
    }
    if name == section::THIS_MODULE_SYMBOL.as_bytes() {
        return layout.this_module.map(|spot| memory.addr(spot));
    }
    if name == section::DSO_HANDLE_SYMBOL.as_bytes() {
        return layout.dso_handle().map(|spot| memory.addr(spot));
    }
    if let Some(ops) = name.strip_prefix(section::PARAM_OPS_PREFIX.as_bytes()) {
        return params::ops(ops);
    }
    if name == section::PARAM_ARRAY_OPS_SYMBOL.as_bytes() {
        return params::ops(b"array");
    }
    if let (Some(number), Some(thunks)) = (thunk(name), layout.thunks) {
        return Some(memory.addr(thunks) + THUNK * number);
    }
    let bounded = bounded_section(name)?;
    let mut of_that_name = file.sections.iter().zip(&layout.sections).filter_map(|(section, spot)| {
        let spot = (*spot).filter(|_| section.name == bounded)?;
        let start = memory.addr(spot);
        Some((start, start + section.size))
    });
    let first = of_that_name.next()?;
    let last = of_that_name.next_back().unwrap_or(first);
    Some(if name.starts_with(section::START_PREFIX.as_bytes()) { first.0 } else { last.1 })
}

/// Returns the address from the host, another module or the process, in this order; or the reason why no address is
/// available.
fn outside(symbol: &FileSymbol<'_>, scene: Scene<'_>) -> Result<Result<Addr, Option<&'static str>>, Error> {
    if symbol.name().is_empty() {
        return Ok(Err(Some("it has no name")));
    }
    if symbol.name().starts_with(section::KLP_MARK_PREFIX.as_bytes()) {
        return Ok(Err(Some("it is marked for `modhost klp-link`, which makes a live patch of such an object")));
    }
    let usable = |external: External| {
        let External { addr, gpl_only, crc } = external;
        let wanted = WantedUse { symbol: symbol.name(), owner: "the host", gpl_only, namespace: &[], crc };
        elsewhere::judge(&wanted, scene).map(|()| Ok(addr))
    };
    if let Some(external) = scene.externals.exported(symbol.name()) {
        return usable(external);
    }
    match exported(symbol.name(), scene)? {
        FoundExport::Usable { block: Some(_), .. } => {
            return Ok(Err(Some("it is a thread-local variable, and is not used as one here")));
        }
        FoundExport::Usable { addr, block: None } => return Ok(Ok(addr)),
        FoundExport::Unavailable(because) => return Ok(Err(Some(because))),
        FoundExport::Nothing => {}
    }
    // Exports also satisfy hidden references, as in Linux, which ignores visibility: with hidden visibility, code
    // states that no table is needed for the access. Symbols of a dynamic linker do not satisfy hidden references.
    if matches!(symbol.visibility, elf::STV_HIDDEN | elf::STV_INTERNAL) {
        return Ok(Err(Some("it is hidden, and neither defined in this module nor exported by another")));
    }
    if let Some(why) = program::bound(symbol.name()) {
        return Ok(Err(Some(why)));
    }
    scene.of_process(symbol.name()).map_or_else(|| Ok(Err(program::driver_adds(symbol.name()))), usable)
}

/// Opens the shared libraries that a module asks for.
pub(crate) fn open_libraries(
    info: &Modinfo<'_>,
    externals: &dyn Externals,
) -> Result<Vec<Arc<dyn ModuleLibrary>>, Error> {
    let open = |name: &[u8]| {
        let failed = |because| Error::Library { name: escaped(name), because };
        let name = std::str::from_utf8(name).map_err(|_| failed("its name is no UTF-8".into()))?;
        externals.library(name).map_err(failed)
    };
    info.libraries().map(open).collect()
}

/// Returns the contents for a copy near the module, if code of the module needs the object near, and the object is
/// constant.
fn near_copy(file: &File<'_>, at: u32, addr: Addr, scene: Scene<'_>) -> Option<Vec<u8>> {
    let symbol = file.symbol(at)?;
    if addr.get() < NEAR {
        return None;
    }
    let contents = scene.externals.constant(symbol.name(), addr)?;
    let is_short = |rela: Rela| {
        let row = modload_relocs::row(rela.kind);
        row.is_some_and(|row| row.field.bits() == 32 && row.value.is_of_symbol()) && rela.symbol == at
    };
    file.relas.iter().any(|relas| relas.records.iter().any(is_short)).then_some(contents)
}

/// The end of the addresses that 32-bit fields of a module in the low 2 GiB reach.
const NEAR: u64 = 1 << 31;

/// Returns another module's export, if the policy permits its use. The module is held from now on.
fn exported(name: &[u8], scene: Scene<'_>) -> Result<FoundExport, Error> {
    let Some((export, owner)) = scene.registry.export(name) else { return Ok(FoundExport::Nothing) };
    let (gpl_only, namespace, crc) = (export.gpl_only, &*export.namespace, export.crc);
    elsewhere::judge(&WantedUse { symbol: name, owner: &owner, gpl_only, namespace, crc }, scene)?;
    Ok(scene.registry.use_export(scene.user, name, &export)?)
}

/// Returns a definition of another module or of a library as relocations see it.
fn as_relocated(variables: &mut ThreadLocals, found: FoundDefinition, size: u64) -> Result<RelocSymbol, PrepareError> {
    Ok(match found {
        FoundDefinition::At(addr) => RelocSymbol { addr, size, kind: RelocSymbolKind::External },
        FoundDefinition::InBlock(offset, block) => variables.of_module(offset, block, size),
        FoundDefinition::InLibrary(found) => variables.of_library(&found, size)?,
    })
}

/// Returns the thread-local variable of another module or of a library, or the reason why there is none.
fn variable(symbol: &FileSymbol<'_>, scene: Scene<'_>) -> Result<Result<FoundDefinition, &'static str>, Error> {
    let name = symbol.name();
    match exported(name, scene)? {
        FoundExport::Usable { addr, block: Some(block) } => return Ok(Ok(FoundDefinition::InBlock(addr, block))),
        FoundExport::Usable { block: None, .. } => {
            return Ok(Err("it is used as a thread-local variable, and is none"));
        }
        FoundExport::Unavailable(because) => return Ok(Err(because)),
        FoundExport::Nothing => {}
    }
    Ok(elsewhere::library_variable(name, scene)
        .ok_or("it is a thread-local variable, and neither a module nor a library of the process has it"))
}

/// Whether any relocation uses a symbol.
fn is_used(file: &File<'_>, at: u32) -> bool {
    let mut all = file.relas.iter().chain(&file.klp_relas);
    all.any(|relas| relas.records.iter().any(|rela| rela.symbol == at))
}

fn report(
    file: &File<'_>,
    at: u32,
    because: Option<&'static str>,
    suggestions: &mut Suggestions<impl Fn(&mut dyn FnMut(&str))>,
) -> Unresolved {
    let symbol = file.display_name(at);
    let mut uses = file.relas.iter().chain(&file.klp_relas).flat_map(|relas| {
        relas.records.iter().filter(move |rela| rela.symbol == at).map(move |rela| (relas.target, rela.offset))
    });
    let first = uses.next();
    let used_at = first.map_or_else(String::new, |(section, offset)| {
        let place = file.display_place(section, offset);
        file.function_at(section, offset).map_or(place.clone(), |function| format!("{place} in {function}"))
    });
    let others = uses.count();
    // A symbol that exists but cannot be used needs no suggestion.
    let nearest = because.is_none().then(|| suggestions.nearest(&symbol)).flatten();
    let uses = modload_edit::wide(others) + u64::from(first.is_some());
    Unresolved { symbol, used_at, uses, nearest, because }
}
