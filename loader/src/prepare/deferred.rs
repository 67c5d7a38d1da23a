//! Relocations and records of a live patch that wait until an object is loaded: `.klp.rela.OBJECT.*`, and the records
//! of special sections that depend on those relocations. Refuses, by name, files that ask for more. Relocations against
//! `vmlinux` do not wait.
//!
//! The format is that of Documentation/livepatch/module-elf-format.rst of Linux 6.1. Waiting records are an extension:
//! Linux refuses a static key of a module in a live patch, and corrupts code that was rewritten in the meantime.

mod slice;
mod waiting;

use modload_abi::livepatch::{self, KlpSymbol, object_of_relocations};
use modload_abi::section;
use modload_edit::Addr;

pub(crate) use slice::left;
pub use slice::{Slice, SlicePlan, Slices, WantedSymbol};
pub(crate) use waiting::Waiting;

use crate::elf::error::ObjectError;
use crate::elf::file::{File, Relas, SymbolPlace};
use crate::elf::modinfo::Modinfo;
use crate::prepare::layout::MemoryPart;
use crate::vocabulary::escape::escaped;

/// Tables that are read when the module is formed, or earlier: a waiting relocation in such a table would be applied
/// too late.
const READ_EARLY: [&str; 19] = [
    section::MODINFO,
    section::VERSIONS,
    section::KSYMTAB,
    section::KSYMTAB_GPL,
    section::KCRCTAB,
    section::KCRCTAB_GPL,
    section::PARAM,
    section::EH_FRAME,
    section::INIT_ARRAY,
    section::FINI_ARRAY,
    section::CTORS,
    section::DTORS,
    section::RETPOLINE_SITES,
    section::RETURN_SITES,
    section::IBT_ENDBR_SEAL,
    section::SMP_LOCKS,
    section::STATIC_CALL_TRAMP_KEY,
    section::MCOUNT_LOC,
    section::PATCHABLE_FUNCTION_ENTRIES,
];

/// Returns the object for which a section of relocations waits; `None` for relocations against the host, which is
/// always present.
pub(crate) fn awaited<'a>(file: &File<'a>, relas: &Relas<'a>) -> Option<&'a str> {
    let object = object_of_relocations(file.section(relas.section)?.name)?;
    std::str::from_utf8(object).ok().filter(|_| object != livepatch::VMLINUX)
}

/// Refuses relocations that cannot wait, and waiting relocations that name no object.
pub(crate) fn check(file: &File<'_>) -> Result<(), ObjectError> {
    let refused = |what, name: &[u8], why| Err(ObjectError::Unsupported { what, name: escaped(name), why });
    for section in file.sections.iter().filter(|section| section.kept) {
        if section.name.starts_with(section::KLP_RELA_PREFIX.as_bytes()) {
            return refused(
                "section",
                section.name,
                "it does not say with SHF_RELA_LIVEPATCH that a live patch applies it",
            );
        }
    }
    for relas in &file.klp_relas {
        let (Some(section), Some(target)) = (file.section(relas.section), file.section(relas.target)) else { continue };
        let refuse = |why| refused("section", section.name, why);
        let object = object_of_relocations(section.name);
        let Some(object) = object.filter(|object| std::str::from_utf8(object).is_ok()) else {
            return refuse("relocations that a live patch applies stand in `.klp.rela.OBJECT.SECTION`");
        };
        if object.contains(&b'-') {
            return refuse("its object's name has a dash, and modules are called with `_` in the place of each");
        }
        if object != livepatch::VMLINUX {
            let is = |name: &str| {
                let rest = target.name.strip_prefix(name.as_bytes());
                rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'.')
            };
            if MemoryPart::of(target).is_init() {
                return refuse("what goes when init has returned cannot wait for an object");
            }
            if READ_EARLY.into_iter().any(is) {
                return refuse("what it relocates is read when the module is loaded, and cannot wait for an object");
            }
        }
        for rela in relas.records.iter() {
            let Some(symbol) = file.symbol(rela.symbol) else { continue };
            let wrong = match KlpSymbol::parse(symbol.name()) {
                _ if symbol.place != SymbolPlace::Livepatch => {
                    "a relocation that a live patch applies is of none of its symbols"
                }
                None => "a live patch's symbols are called `.klp.sym.OBJECT.NAME,POSITION`",
                Some(klp) if klp.object != object => "a relocation of one object is of a symbol of another",
                Some(_) => continue,
            };
            return refused("symbol", symbol.name(), wrong);
        }
    }
    Ok(())
}

/// Refuses symbols of live patching in modules that are no live patch, and in relocations that do not wait.
pub(crate) fn check_symbols(file: &File<'_>, info: &Modinfo<'_>) -> Result<(), ObjectError> {
    let refused = |name: &[u8], why| Err(ObjectError::Unsupported { what: "symbol", name: escaped(name), why });
    if !file.has_klp_symbols {
        return Ok(());
    }
    let symbols = || file.symbols().filter(|(_, symbol)| symbol.place == SymbolPlace::Livepatch);
    if let Some((_, first)) = symbols().next().filter(|_| !info.is_live_patch()) {
        return refused(first.name(), "only a module whose .modinfo says livepatch=Y has symbols of live patching");
    }
    let klp: Vec<u32> = symbols().map(|(at, _)| at).collect();
    let early =
        file.relas.iter().flat_map(|relas| relas.records.iter()).find(|rela| klp.binary_search(&rela.symbol).is_ok());
    match early.and_then(|rela| file.symbol(rela.symbol)) {
        Some(symbol) => {
            refused(symbol.name(), "a relocation of it is not in `.klp.rela.OBJECT.SECTION`: nothing waits with it")
        }
        None => Ok(()),
    }
}

/// Whether some bytes have one in common with others.
fn overlaps((at, len): (Addr, u64), (other, other_len): (Addr, u64)) -> bool {
    at < other + other_len && other < at + len
}

#[cfg(test)]
mod tests {
    use modload_abi::known::{SectionContents, section_name};
    use modload_alternatives::Profile;
    use modload_edit::ORDER;

    use super::{READ_EARLY, waiting};
    use crate::prepare::specialise;
    use crate::vocabulary::rewriting::record_size;

    #[test]
    fn every_table_of_an_engine_is_in_the_lists_of_all_tables() {
        for (engine, name) in specialise::tables().chain(waiting::TABLES) {
            assert!(ORDER.iter().any(|(known, _)| *known == engine), "{name}: {engine} has no row in ORDER");
            let can_wait = waiting::TABLES.contains(&(engine, name));
            assert_ne!(READ_EARLY.contains(&name), can_wait, "{name}: its relocations wait, or it is in READ_EARLY");
            let sizes = match section_name(name.as_bytes()).map(|known| known.contents) {
                Some(SectionContents::Records(sizes)) => sizes,
                other => panic!("{name}: {other:?}"),
            };
            for profile in [Profile::Linux61, Profile::Linux63] {
                let size = record_size(engine, profile);
                assert!(sizes.contains(&size), "{name}: record_size says {size}, and NAMES {sizes:?}");
            }
        }
    }
}
