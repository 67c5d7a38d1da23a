//! Stage *admit*: what this version cannot load rightly, and what the host does not want, is turned away by name, before
//! anything is done for it.

use modload_abi::known::{Contents, FLAGS, Treatment, section_name, section_type};
use modload_abi::section;
use object::elf;

use crate::elf::file::{File, Place, Section};
use crate::elf::modinfo::Modinfo;
use crate::modules::timeline::Recorder;
use crate::prepare::deferred;
use crate::prepare::policy::{Judge, Policy};
use crate::vocabulary::error::Error;
use crate::vocabulary::escape::escaped;

/// Turns away what cannot or may not be loaded.
pub(crate) fn admit<'a>(
    file: &File<'a>,
    info: &'a Modinfo<'a>,
    policy: &'a Policy,
    recorder: Recorder<'_>,
) -> Result<Judge<'a>, Error> {
    check(file)?;
    deferred::check_symbols(file, info)?;
    let judge = Judge::new(policy, file, info)?;
    judge.module(recorder)?;
    Ok(judge)
}

/// Refuses sections and symbols that ask for what is not there.
pub(crate) fn check(file: &File<'_>) -> Result<(), Error> {
    // First, because it has the better reason for relocations of a live patch that are not marked as such.
    deferred::check(file)?;
    check_sections(file)?;
    for section in &file.sections {
        if section.name == section::GNU_STACK.as_bytes() && section.flags.contains(elf::SHF_EXECINSTR) {
            let why = "it asks for an executable stack; gcc does so for pointers to nested functions";
            return Err(unsupported("section", section.name, why));
        }
    }
    for section in file.sections.iter().filter(|section| section.kept) {
        let refused = |why| Err(unsupported("section", section.name, why));
        let has = |flag| section.flags.contains(flag);
        if has(elf::SHF_TLS) {
            return refused("thread-local storage is not supported yet");
        }
        if has(elf::SHF_WRITE) && has(elf::SHF_EXECINSTR) {
            return refused("it would be both writable and executable");
        }
        if has(elf::SHF_COMPRESSED) {
            return refused("compressed sections can only hold debug information");
        }
    }
    for (_, symbol) in file.symbols() {
        let why = match symbol.kind {
            elf::STT_TLS => "thread-local storage is not supported yet",
            elf::STT_GNU_IFUNC if matches!(symbol.place, Place::Absolute | Place::Common) => {
                "its resolver would be no function of this module"
            }
            _ if symbol.is_named(b"__gnu_lto_slim") => "it holds only GCC's intermediate code; compile without -flto",
            _ => continue,
        };
        return Err(unsupported("symbol", symbol.name(), why));
    }
    Ok(())
}

/// Refuses sections that the loader would skip, completely or in part. In a link unit each object is checked before it is merged,
/// because merging hides incomplete records and drops sections that are not loaded.
pub(crate) fn check_sections(file: &File<'_>) -> Result<(), Error> {
    for section in file.sections.iter().skip(1).filter(|section| !section.repeated) {
        check_type(section)?;
        check_name(section)?;
        check_records(section)?;
    }
    Ok(())
}

/// Refuses unknown section types, allocated or not: such a section might hold relocations.
pub(crate) fn check_type(section: &Section<'_>) -> Result<(), Error> {
    let known = section_type(section.kind.0);
    let refused = |why| {
        let (number, kind) = (section.kind.0, known.map(|known| known.name));
        Err(Error::SectionType { section: escaped(section.name), number, kind, why })
    };
    match known.map(|known| known.treatment) {
        None => refused("no section type with this number is known, and its contents must not be skipped"),
        Some(Treatment::Refused(why)) => refused(why),
        Some(Treatment::Named(names)) => {
            let known = section_name(section.name);
            let is_named = known.is_some_and(|known| names.contains(&known.name));
            if is_named || !section.kept { Ok(()) } else { refused("its name is not one under which it would be read") }
        }
        Some(Treatment::Table) if section.kept => {
            refused("such a table is read from the file, and this one is allocated")
        }
        Some(Treatment::Plain | Treatment::Table | Treatment::Hint) => Ok(()),
    }
}

/// Refuses unknown flags, and names for which this version has no support.
fn check_name(section: &Section<'_>) -> Result<(), Error> {
    let refused = |why| Err(unsupported("section", section.name, why));
    if section.kept && section.flags.0 & !FLAGS != 0 {
        return refused("it has flags (sh_flags) that are not known");
    }
    match section_name(section.name).map(|known| known.contents) {
        Some(Contents::Refused { why, .. }) if section.kept && section.size != 0 => refused(why),
        _ => Ok(()),
    }
}

/// Refuses incomplete records, and tables that are not allocated or have no contents. A section with SHF_EXCLUDE is left out, as
/// linkers do.
pub(crate) fn check_records(section: &Section<'_>) -> Result<(), Error> {
    let sizes = match section_name(section.name).map(|known| known.contents) {
        Some(Contents::Records(sizes)) => sizes,
        Some(Contents::Functions) => &[8],
        Some(Contents::Strings | Contents::Frames) => &[1],
        Some(Contents::Placed | Contents::Mark | Contents::Refused { .. }) | None => return Ok(()),
    };
    if section.size == 0 || section.flags.contains(elf::SHF_EXCLUDE) {
        return Ok(());
    }
    let refused = |why| Err(unsupported("section", section.name, why));
    if !section.kept {
        return refused("it is not allocated (SHF_ALLOC), and so would not be read");
    }
    if section.kind == elf::SHT_NOBITS {
        return refused("it has no contents (SHT_NOBITS), and so would not be read");
    }
    whole_records(section, sizes)
}

/// Refuses a table that is no whole number of records of any of these sizes.
pub(crate) fn whole_records(section: &Section<'_>, sizes: &[u64]) -> Result<(), Error> {
    match sizes.first() {
        Some(record) if !sizes.iter().any(|size| section.size.is_multiple_of(*size)) => {
            Err(Error::PartOfRecord { section: escaped(section.name), size: section.size, record: *record })
        }
        _ => Ok(()),
    }
}

fn unsupported(what: &'static str, name: &[u8], why: &'static str) -> Error {
    Error::Unsupported { what, name: escaped(name), why }
}
