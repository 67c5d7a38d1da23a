//! The file of a module, as far as the comparison needs it: sections, symbols, relocations.

use object::LittleEndian as LE;
use object::elf;
use object::read::elf::{FileHeader, Rela, SectionHeader, SectionTable, Sym, SymbolTable};

use crate::Result;

type ElfFileHeader = elf::FileHeader64<LE>;

/// A section of a file.
#[derive(Clone, Debug)]
pub(crate) struct KoSection {
    pub(crate) name: String,
    pub(crate) kind: elf::SectionType,
    pub(crate) flags: elf::SectionFlags,
    pub(crate) size: u64,
    pub(crate) align: u64,
}

/// A symbol of a file.
#[derive(Clone, Debug)]
pub(crate) struct KoSymbol {
    pub(crate) name: String,
    /// 0 for an undefined symbol.
    pub(crate) section: elf::SymbolSection,
    pub(crate) value: u64,
}

/// One relocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KoRelocation {
    pub(crate) offset: u64,
    pub(crate) raw: elf::RelocationType,
    pub(crate) symbol: usize,
    pub(crate) addend: i64,
}

/// A module's file.
pub(crate) struct Ko<'b> {
    bytes: &'b [u8],
    pub(crate) sections: Vec<KoSection>,
    table: SectionTable<'b, ElfFileHeader>,
    symbols: SymbolTable<'b, ElfFileHeader>,
}

impl KoSection {
    fn has(&self, flag: elf::SectionFlags) -> bool {
        self.flags.0 & flag.0 != 0
    }

    /// Returns whether the section is kept in memory and, unless empty, listed in sysfs. `.modinfo` and `__versions`
    /// are only read, and `.data..percpu` has a copy per CPU.
    pub(crate) fn is_kept(&self) -> bool {
        self.has(elf::SHF_ALLOC) && ![".modinfo", "__versions", PERCPU].contains(&self.name.as_str())
    }

    /// Returns whether the section's memory is freed after init.
    pub(crate) fn is_init(&self) -> bool {
        self.name.starts_with(".init")
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.has(elf::SHF_WRITE)
    }

    pub(crate) fn is_executable(&self) -> bool {
        self.has(elf::SHF_EXECINSTR)
    }

    /// Returns whether the section's bytes are compared: it is read-only, and still in memory after init.
    pub(crate) fn is_judged(&self) -> bool {
        self.is_kept() && !self.is_init() && !self.is_writable() && self.kind != elf::SHT_NOBITS && self.size > 0
    }
}

/// The section with a copy per CPU.
pub(crate) const PERCPU: &str = ".data..percpu";

impl<'b> Ko<'b> {
    pub(crate) fn parse(bytes: &'b [u8]) -> Result<Ko<'b>> {
        let header = ElfFileHeader::parse(bytes)?;
        let table = header.sections(LE, bytes)?;
        let symbols = table.symbols(LE, bytes, elf::SHT_SYMTAB)?;
        let mut sections = Vec::new();
        for section in table.iter() {
            sections.push(KoSection {
                name: String::from_utf8(table.section_name(LE, section)?.to_vec())?,
                kind: section.sh_type(LE),
                flags: section.sh_flags(LE),
                size: section.sh_size(LE),
                align: section.sh_addralign(LE).max(1),
            });
        }
        Ok(Ko { bytes, sections, table, symbols })
    }

    /// Returns the sections with their indices.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (usize, &KoSection)> {
        self.sections.iter().enumerate()
    }

    /// Returns the bytes of a section in the file.
    pub(crate) fn bytes_of(&self, section: usize) -> Result<&'b [u8]> {
        Ok(self.table.section(object::SectionIndex(section))?.data(LE, self.bytes)?)
    }

    pub(crate) fn symbol(&self, index: usize) -> Result<KoSymbol> {
        let symbol = self.symbols.symbol(object::SymbolIndex(index))?;
        Ok(KoSymbol {
            name: String::from_utf8_lossy(symbol.name(LE, self.symbols.strings())?).into_owned(),
            section: symbol.st_shndx(LE),
            value: symbol.st_value(LE),
        })
    }

    /// Returns all symbols except the null symbol.
    pub(crate) fn symbols(&self) -> impl Iterator<Item = Result<KoSymbol>> {
        (1..self.symbols.len()).map(|index| self.symbol(index))
    }

    /// Returns the relocations of a section.
    pub(crate) fn relocations(&self, section: usize) -> Result<Vec<KoRelocation>> {
        let mut found = Vec::new();
        for header in self.table.iter() {
            if usize::try_from(header.sh_info(LE)) != Ok(section) {
                continue;
            }
            let Some((records, _)) = header.rela(LE, self.bytes)? else { continue };
            for record in records {
                found.push(KoRelocation {
                    offset: record.r_offset(LE),
                    raw: record.r_type(LE, false),
                    symbol: usize::try_from(record.r_sym(LE, false))?,
                    addend: record.r_addend(LE),
                });
            }
        }
        Ok(found)
    }
}
