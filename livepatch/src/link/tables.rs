//! A relocatable object's tables, for editing: section headers, the contents of sections, symbols and strings. Sections
//! and symbols keep their indices. Strings, sections and members of groups can be added. The file is written from the
//! tables that were read, section by section, in the order of the file.

use std::borrow::Cow;
use std::collections::HashMap;

use modload_abi::section::SHF_RELA_LIVEPATCH;
use modload_edit::{index, wide};
use modload_loader::File;
use object::LittleEndian as LE;
use object::elf;
use object::pod;
use object::read::elf::{FileHeader as _, SectionHeader as _};

use super::error::{PatchLinkError, shown};

/// The most bytes that all new names together may have. The file's names may overlap, so a small file can have very
/// long names.
const NAMES_LIMIT: u64 = 64 << 20;

/// The largest alignment of contents in the file. `sh_addralign` holds the alignment in memory.
const ALIGN_IN_FILE: u64 = 16;

/// The size of an `Elf64_Rela`.
pub(super) const RELA_SIZE: u64 = 24;

/// An object that is being edited.
#[derive(Debug)]
pub(super) struct Tables<'a> {
    header: elf::FileHeader64<LE>,
    /// The sections by index, with the null section first.
    pub(super) sections: Vec<EditedSection<'a>>,
    pub(super) symbols: Vec<elf::Sym64<LE>>,
    /// The symbols' string table as it was in the input.
    pub(super) strings: &'a [u8],
    /// The sections' string table as it was in the input.
    names: &'a [u8],
    /// The section indices of these three tables. The last two may be equal.
    symbol_table: usize,
    string_table: usize,
    name_table: usize,
    /// The section index of each member's group.
    groups: HashMap<[u8; 4], usize>,
    /// The number of bytes of names that have been added.
    added: u64,
}

/// A section.
#[derive(Clone, Debug)]
pub(super) struct EditedSection<'a> {
    pub(super) header: elf::SectionHeader64<LE>,
    /// The section's contents. Empty for SHT_NOBITS.
    pub(super) data: Cow<'a, [u8]>,
}

impl EditedSection<'_> {
    pub(super) fn kind(&self) -> elf::SectionType {
        self.header.sh_type.get(LE)
    }

    pub(super) fn has(&self, flag: elf::SectionFlags) -> bool {
        self.header.sh_flags.get(LE).contains(flag)
    }

    /// Returns whether the section is part of the loaded module.
    pub(super) fn is_loaded(&self) -> bool {
        self.has(elf::SHF_ALLOC) && !self.has(elf::SHF_EXCLUDE)
    }
}

/// Returns the name of the first section that begins with `prefix`. The file need not be valid.
pub(super) fn section_named(input: &[u8], prefix: &[u8]) -> Option<String> {
    let header = elf::FileHeader64::<LE>::parse(input).ok()?;
    let sections = header.sections(LE, input).ok()?;
    let mut names = sections.iter().filter_map(|section| sections.section_name(LE, section).ok());
    names.find(|name| name.starts_with(prefix)).map(shown)
}

impl<'a> Tables<'a> {
    /// Reads an object that the loader has validated.
    pub(super) fn read(input: &'a [u8], _sound: &File<'_>) -> Result<Tables<'a>, PatchLinkError> {
        let header = elf::FileHeader64::<LE>::parse(input)?;
        let table = header.sections(LE, input)?;
        let mut sections = Vec::with_capacity(table.len());
        for header in table.iter() {
            // The null section may hold the number of sections, which does not count as contents.
            let data = if header.sh_type(LE) == elf::SHT_NULL { &[] } else { header.data(LE, input)? };
            sections.push(EditedSection { header: *header, data: Cow::Borrowed(data) });
        }
        let (bytes, file) = (sections.iter().map(|section| wide(section.data.len())).sum(), wide(input.len()));
        if bytes > file {
            return Err(PatchLinkError::Overlap { bytes, file });
        }
        let symbols = table.symbols(LE, input, elf::SHT_SYMTAB)?;
        let (symbol_table, string_table) = (symbols.section().0, symbols.string_section().0);
        let name_table = index(header.shstrndx(LE, input)?.into());
        Ok(Tables {
            header: *header,
            symbols: symbols.symbols().to_vec(),
            strings: strings(input, &sections, string_table)?,
            names: strings(input, &sections, name_table)?,
            groups: groups(&sections),
            sections,
            symbol_table,
            string_table,
            name_table,
            added: 0,
        })
    }

    /// Returns the name of a section from the input.
    pub(super) fn name_of(&self, section: &EditedSection<'_>) -> &'a [u8] {
        until_nul(self.names.get(index(section.header.sh_name.get(LE).into())..).unwrap_or_default())
    }

    /// Adds a symbol's name. Returns its offset.
    pub(super) fn add_string(&mut self, string: &[u8]) -> Result<u32, PatchLinkError> {
        self.add(self.string_table, string)
    }

    fn add(&mut self, table: usize, string: &[u8]) -> Result<u32, PatchLinkError> {
        self.added = self.added.saturating_add(wide(string.len()) + 1);
        let bytes = &mut self.sections[table].data;
        let too_large = |bytes, limit| Err(PatchLinkError::TooLarge { bytes, limit });
        if self.added > NAMES_LIMIT {
            return too_large(self.added, NAMES_LIMIT);
        }
        let Ok(offset) = u32::try_from(bytes.len()) else {
            return too_large(wide(bytes.len()), u32::MAX.into());
        };
        bytes.to_mut().extend_from_slice(string);
        bytes.to_mut().push(0);
        Ok(offset)
    }

    /// Turns a section of relocations into a live patch's relocation section for the same target section.
    pub(super) fn make_waiting(&mut self, at: usize, name: &[u8]) -> Result<(), PatchLinkError> {
        let sh_name = self.add(self.name_table, name)?;
        let header = &mut self.sections[at].header;
        let group = header.sh_flags.get(LE) & elf::SHF_GROUP;
        let flags = elf::SHF_ALLOC | elf::SHF_INFO_LINK | elf::SectionFlags(SHF_RELA_LIVEPATCH);
        header.sh_name.set(LE, sh_name);
        header.sh_flags.set(LE, flags | group);
        header.sh_addralign.set(LE, 8);
        header.sh_entsize.set(LE, RELA_SIZE);
        Ok(())
    }

    /// Adds a section with the header of another section and with other contents. The new section is a member of the
    /// same group.
    pub(super) fn add_section_like(&mut self, at: usize, data: Vec<u8>) -> Result<usize, PatchLinkError> {
        let new = self.sections.len();
        let mut section = EditedSection { header: self.sections[at].header, data: Cow::Owned(data) };
        // The new section is placed behind all others.
        section.header.sh_offset.set(LE, u64::MAX);
        self.sections.push(section);
        let number =
            |at| u32::try_from(at).map_err(|_| PatchLinkError::Malformed { section: at, problem: "too many sections" });
        if let Some(&group) = self.groups.get(&number(at)?.to_le_bytes()) {
            self.sections[group].data.to_mut().extend_from_slice(&number(new)?.to_le_bytes());
        }
        Ok(new)
    }

    /// Returns the file. The symbol table exists, because a symbol in it was marked.
    pub(super) fn write(mut self) -> Vec<u8> {
        self.sections[self.symbol_table].data = pod::bytes_of_slice(&self.symbols).to_vec().into();
        let mut order: Vec<usize> = (0..self.sections.len()).collect();
        order.sort_by_key(|&at| self.sections[at].header.sh_offset.get(LE));
        let mut bytes = pod::bytes_of(&self.header).to_vec();
        for at in order {
            let EditedSection { header, data } = &mut self.sections[at];
            if matches!(header.sh_type.get(LE), elf::SHT_NULL | elf::SHT_NOBITS) {
                continue;
            }
            // A section whose alignment is not a power of two is not loaded, so its place in the file does not matter.
            let align = header.sh_addralign.get(LE).min(ALIGN_IN_FILE);
            pad(&mut bytes, if align.is_power_of_two() { align } else { 1 });
            header.sh_offset.set(LE, wide(bytes.len()));
            header.sh_size.set(LE, wide(data.len()));
            bytes.extend_from_slice(data);
        }
        pad(&mut bytes, 8);
        self.header.e_shoff.set(LE, wide(bytes.len()));
        self.count_sections();
        self.sections.iter().for_each(|section| bytes.extend_from_slice(pod::bytes_of(&section.header)));
        bytes[..size_of_val(&self.header)].copy_from_slice(pod::bytes_of(&self.header));
        bytes
    }

    /// Writes the number of sections. A number that does not fit `e_shnum` is stored in the null section.
    fn count_sections(&mut self) {
        let count = self.sections.len();
        match u16::try_from(count) {
            Ok(count) if count < elf::SHN_LORESERVE && self.header.e_shnum.get(LE) != 0 => {
                self.header.e_shnum.set(LE, count);
            }
            _ => {
                self.header.e_shnum.set(LE, 0);
                self.sections[0].header.sh_size.set(LE, wide(count));
            }
        }
    }
}

/// Returns the group of each section that is a member of a group. The first word of a group holds its flags.
fn groups(sections: &[EditedSection<'_>]) -> HashMap<[u8; 4], usize> {
    let groups = sections.iter().enumerate().filter(|(_, section)| section.kind() == elf::SHT_GROUP);
    let members = groups.flat_map(|(at, group)| group.data.chunks_exact(4).skip(1).map(move |member| (member, at)));
    members.filter_map(|(member, at)| Some((member.try_into().ok()?, at))).collect()
}

/// Returns a string table as it is in the file.
fn strings<'a>(input: &'a [u8], sections: &[EditedSection<'a>], at: usize) -> Result<&'a [u8], PatchLinkError> {
    match sections.get(at) {
        Some(section) if at != 0 => Ok(section.header.data(LE, input)?),
        // The file has no names in this case.
        _ => Ok(&[]),
    }
}

fn pad(bytes: &mut Vec<u8>, align: u64) {
    bytes.resize(bytes.len().next_multiple_of(index(align)), 0);
}

/// Returns the first of the strings.
pub(super) fn until_nul(strings: &[u8]) -> &[u8] {
    strings.split(|&byte| byte == 0).next().unwrap_or_default()
}
