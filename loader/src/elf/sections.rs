//! Refuses sections that would be skipped, completely or in part, and names them.

use modload_abi::known::{FLAGS, SectionContents, Treatment, section_name, section_type};
use object::elf;

use crate::elf::error::ObjectError;
use crate::elf::file::{File, FileSection};
use crate::vocabulary::escape::escaped;

/// Refuses sections that the loader would skip, completely or in part. In a link unit each object is checked before it is merged,
/// because merging hides incomplete records and drops sections that are not loaded.
pub(crate) fn check_sections(file: &File<'_>) -> Result<(), ObjectError> {
    for section in file.sections.iter().skip(1).filter(|section| !section.repeated) {
        check_type(section)?;
        check_name(section)?;
        check_records(section)?;
    }
    Ok(())
}

/// Refuses unknown section types, allocated or not: such a section might hold relocations.
pub(crate) fn check_type(section: &FileSection<'_>) -> Result<(), ObjectError> {
    let known = section_type(section.kind.0);
    let refused = |why| {
        let (number, kind) = (section.kind.0, known.map(|known| known.name));
        Err(ObjectError::SectionType { section: escaped(section.name), number, kind, why })
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
fn check_name(section: &FileSection<'_>) -> Result<(), ObjectError> {
    let refused = |why| Err(unsupported("section", section.name, why));
    if section.kept && section.flags.0 & !FLAGS != 0 {
        return refused("it has flags (sh_flags) that are not known");
    }
    match section_name(section.name).map(|known| known.contents) {
        Some(SectionContents::Refused { why, .. }) if section.kept && section.size != 0 => refused(why),
        _ => Ok(()),
    }
}

/// Refuses incomplete records, and tables that are not allocated or have no contents. A section with SHF_EXCLUDE is left out, as
/// linkers do.
pub(crate) fn check_records(section: &FileSection<'_>) -> Result<(), ObjectError> {
    let sizes = match section_name(section.name).map(|known| known.contents) {
        Some(SectionContents::Records(sizes)) => sizes,
        Some(SectionContents::Functions) => &[8],
        Some(SectionContents::Strings | SectionContents::Frames) => &[1],
        Some(SectionContents::Placed | SectionContents::Mark | SectionContents::Refused { .. }) | None => return Ok(()),
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
pub(crate) fn whole_records(section: &FileSection<'_>, sizes: &[u64]) -> Result<(), ObjectError> {
    match sizes.first() {
        Some(record) if !sizes.iter().any(|size| section.size.is_multiple_of(*size)) => {
            Err(ObjectError::PartOfRecord { section: escaped(section.name), size: section.size, record: *record })
        }
        _ => Ok(()),
    }
}

/// The error of something that this version does not do.
pub(crate) fn unsupported(what: &'static str, name: &[u8], why: &'static str) -> ObjectError {
    ObjectError::Unsupported { what, name: escaped(name), why }
}
