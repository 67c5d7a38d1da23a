//! Stage *resolve*: gives an address to each symbol, and reports all undefined symbols at once.

use std::collections::{BTreeMap, BTreeSet};

use modload_abi::livepatch::{self, KlpSymbol};
use modload_abi::section;
use modload_edit::{Addr, index};
use modload_relocs::{RelocSymbol, RelocSymbolKind};
use object::elf;

use crate::elf::file::{File, FileSymbol, SymbolPlace};
use crate::modules::recorder::Recorder;
use crate::modules::registry::FoundExport;
use crate::operate::elsewhere;
use crate::operate::error::Error;
use crate::operate::judge::WantedUse;
use crate::operate::scene::{Absent, Scene};
use crate::operate::suggest::Suggestions;
use crate::prepare::error::{PrepareError, Unresolved};
use crate::prepare::layout::{ModuleLayout, bounded_section};
use crate::prepare::memory::Staging;
use crate::prepare::params;
use crate::prepare::resolved::{Resolved, picked};
use crate::prepare::vague;
use crate::prepare::x86_64::{THUNK, thunk};
use crate::vocabulary::externals::External;

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
    let mut missing = Vec::new();
    let mut external = 0;
    let mut elsewhere = Vec::new();
    for (at, symbol) in file.symbols() {
        let Some(strength) = vague::strength(file, &symbol) else { continue };
        if let Some(addr) = elsewhere::elsewhere(&symbol, strength, scene.shared, scene)? {
            symbols[index(at.into())] = RelocSymbol { addr, size: symbol.size, kind: RelocSymbolKind::External };
            elsewhere.push(at);
            external += 1;
        }
    }
    for &at in &layout.undefined {
        let Some(symbol) = file.symbol(at) else { continue };
        let operations = layout.operations.filter(|(table, _)| *table == at).map(|(_, spot)| memory.addr(spot));
        let resolved = match operations.or_else(|| supplied(symbol.name(), file, layout, memory)) {
            Some(addr) => Some((addr, RelocSymbolKind::Defined)),
            None => {
                let found = outside(&symbol, scene)?;
                external += u64::from(found.is_ok());
                match found {
                    Ok(addr) => Some((addr, RelocSymbolKind::External)),
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
    if missing.is_empty() {
        return Ok(Resolved { symbols, external, elsewhere });
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
        SymbolPlace::Section(section) => match layout.section(section) {
            Some(spot) => (memory.addr(spot) + symbol.value, RelocSymbolKind::Defined),
            None => (Addr::NULL, RelocSymbolKind::Discarded),
        },
    };
    RelocSymbol { addr, size: symbol.size, kind }
}

/// Returns the address of a symbol that a linker would define.
fn supplied(name: &[u8], file: &File<'_>, layout: &ModuleLayout, memory: &Staging) -> Option<Addr> {
    if name == section::GOT_SYMBOL.as_bytes() {
        return Some(memory.addr(layout.got));
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
    let recorder = Recorder { registry: scene.registry, module: scene.name };
    let usable = |external: External| {
        let External { addr, gpl_only, crc } = external;
        let wanted = WantedUse { symbol: symbol.name(), owner: "the host", gpl_only, namespace: &[], crc };
        scene.judge.symbol(recorder, &wanted).map(|()| Ok(addr))
    };
    if let Some(external) = scene.externals.exported(symbol.name()) {
        return usable(external);
    }
    if let Some((export, owner)) = scene.registry.export(symbol.name()) {
        let (gpl_only, namespace, crc) = (export.gpl_only, &*export.namespace, export.crc);
        let wanted = WantedUse { symbol: symbol.name(), owner: &owner, gpl_only, namespace, crc };
        scene.judge.symbol(recorder, &wanted)?;
        match scene.registry.use_export(scene.user, symbol.name(), &export)? {
            FoundExport::Usable { addr } => return Ok(Ok(addr)),
            FoundExport::Unavailable(because) => return Ok(Err(Some(because))),
            FoundExport::Nothing => {}
        }
    }
    // Exports also satisfy hidden references, as in Linux, which ignores visibility: with hidden visibility, code
    // states that no table is needed for the access. Symbols of a dynamic linker do not satisfy hidden references.
    if matches!(symbol.visibility, elf::STV_HIDDEN | elf::STV_INTERNAL) {
        return Ok(Err(Some("it is hidden, and neither defined in this module nor exported by another")));
    }
    scene.externals.fallback(symbol.name()).map_or(Ok(Err(None)), usable)
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
