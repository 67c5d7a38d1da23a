//! A checked relocatable object, and questions about its contents. The checks are in `validate.rs`. No code here uses
//! an index that `validate.rs` has not checked.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::CStr;

use modload_abi::{Records, Rela, section};
use modload_edit::index;
use object::LittleEndian as LE;
use object::U32;
use object::elf;

use crate::vocabulary::escape::escaped;

/// A relocatable object that has been checked.
#[derive(Debug)]
pub struct File<'a> {
    /// By index in the section header table.
    pub sections: Vec<FileSection<'a>>,
    /// Index of the section that holds the symbols; 0 if there is none.
    pub(crate) symbol_table: u32,
    pub(crate) symbols: &'a [elf::Sym64<LE>],
    /// The symbol table's strings; empty or ended by a NUL.
    pub(crate) strings: &'a [u8],
    /// Section indices of symbols that do not fit `st_shndx`, by symbol; empty if there are none.
    pub(crate) extended: &'a [U32<LE>],
    /// Whether any symbol is a live patch's.
    pub(crate) has_klp_symbols: bool,
    pub(crate) groups: Vec<ComdatGroup<'a>>,
    /// The relocation sections of kept sections.
    pub(crate) relas: Vec<Relas<'a>>,
    /// The same that a live patch applies: `.klp.rela.OBJECT.SECTION`.
    pub(crate) klp_relas: Vec<Relas<'a>>,
}

/// One section.
#[derive(Clone, Copy, Debug)]
pub struct FileSection<'a> {
    /// Name of the section.
    pub name: &'a [u8],
    /// `sh_type`.
    pub kind: elf::SectionType,
    /// `sh_flags`.
    pub flags: elf::SectionFlags,
    /// Size in memory in bytes.
    pub size: u64,
    /// Alignment in bytes, a power of two.
    pub align: u64,
    /// Contents; empty for SHT_NOBITS.
    pub data: &'a [u8],
    /// `sh_link`.
    pub(crate) link: u32,
    /// `sh_info`.
    pub(crate) info: u32,
    /// Whether the section is part of the module: allocated, and not replaced by a section of another COMDAT group.
    pub kept: bool,
    /// Whether a section of another COMDAT group has replaced this one.
    pub(crate) repeated: bool,
    /// Whether the section belongs to a COMDAT group: other modules may define the same symbols.
    pub(crate) comdat: bool,
}

/// A COMDAT group that has been kept: of several with one signature, in one link unit, only the first is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ComdatGroup<'a> {
    pub(crate) signature: &'a [u8],
    /// Indices of sections.
    pub(crate) members: &'a [U32<LE>],
}

/// A section of relocations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Relas<'a> {
    /// Index of this section.
    pub(crate) section: u32,
    /// Index of the section to be relocated.
    pub(crate) target: u32,
    pub(crate) records: Records<'a, Rela>,
}

/// A symbol of the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileSymbol<'a> {
    /// The string table, from the beginning of the name.
    name_and_rest: &'a [u8],
    pub(crate) value: u64,
    pub(crate) size: u64,
    pub(crate) bind: elf::SymbolBind,
    pub(crate) kind: elf::SymbolType,
    pub(crate) visibility: elf::SymbolVisibility,
    pub(crate) place: SymbolPlace,
}

impl<'a> FileSymbol<'a> {
    /// Name of the symbol. Each call searches the end of the name again, because a load needs the names of few symbols.
    #[inline]
    pub(crate) fn name(&self) -> &'a [u8] {
        until_nul(self.name_and_rest)
    }

    #[inline]
    pub(crate) fn is_named(&self, name: &[u8]) -> bool {
        begins_with_string(self.name_and_rest, name)
    }
}

/// Where a symbol is defined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SymbolPlace {
    Undefined,
    Absolute,
    Common,
    /// A symbol of a live patch. The name of the symbol says which object owns the symbol.
    Livepatch,
    Section(u32),
}

/// Whether a section with this `sh_type` and these `sh_flags` holds relocations that a live patch applies.
pub(crate) fn is_klp(kind: elf::SectionType, flags: elf::SectionFlags) -> bool {
    kind == elf::SHT_RELA && flags.0 & section::SHF_RELA_LIVEPATCH != 0
}

impl<'a> File<'a> {
    #[inline]
    pub(crate) fn symbol_count(&self) -> u32 {
        u32::try_from(self.symbols.len()).unwrap_or(u32::MAX)
    }

    #[inline]
    pub(crate) fn symbol(&self, at: u32) -> Option<FileSymbol<'a>> {
        let symbol = self.symbols.get(index(at.into()))?;
        let place = match symbol.st_shndx.get(LE) {
            elf::SHN_UNDEF => SymbolPlace::Undefined,
            elf::SHN_ABS => SymbolPlace::Absolute,
            elf::SHN_COMMON => SymbolPlace::Common,
            elf::SymbolSection(section::SHN_LIVEPATCH) => SymbolPlace::Livepatch,
            elf::SymbolSection(section::SHN_X86_64_LCOMMON) => SymbolPlace::Common,
            elf::SHN_XINDEX => SymbolPlace::Section(self.extended.get(index(at.into()))?.get(LE)),
            section => SymbolPlace::Section(section.0.into()),
        };
        Some(FileSymbol {
            name_and_rest: self.strings.get(index(symbol.st_name.get(LE).into())..).unwrap_or_default(),
            value: symbol.st_value.get(LE),
            size: symbol.st_size.get(LE),
            bind: symbol.st_bind(),
            kind: symbol.st_type(),
            visibility: symbol.st_visibility(),
            place,
        })
    }

    /// Whether a symbol is undefined or absolute, so that the address is not in this module.
    #[inline]
    pub(crate) fn is_from_outside(&self, at: u32) -> bool {
        let place = self.symbols.get(index(at.into())).map(|symbol| symbol.st_shndx.get(LE));
        place.is_some_and(|place| place == elf::SHN_UNDEF || place == elf::SHN_ABS)
    }

    #[inline]
    pub(crate) fn symbols(&self) -> impl Iterator<Item = (u32, FileSymbol<'a>)> {
        (0..self.symbol_count()).filter_map(|at| Some((at, self.symbol(at)?)))
    }

    /// Offset of a symbol's name in [`File::strings`].
    #[inline]
    pub(crate) fn name_offset(&self, at: u32) -> u32 {
        self.symbols.get(index(at.into())).map_or(0, |symbol| symbol.st_name.get(LE))
    }

    #[inline]
    pub(crate) fn section(&self, at: u32) -> Option<&FileSection<'a>> {
        self.sections.get(index(at.into()))
    }

    /// Drops a group that another group has replaced.
    pub(crate) fn drop_group(&mut self, members: &[U32<LE>]) {
        for member in members {
            if let Some(section) = self.sections.get_mut(index(member.get(LE).into())) {
                section.repeated = true;
                section.kept = false;
            }
        }
    }

    /// Of several sections of one name that begins with `.gnu.linkonce.`, keeps the first; sections in `known` count as
    /// earlier ones. Adds the kept sections to `known`. Returns whether any section was dropped.
    pub(crate) fn drop_repeated_linkonce(&mut self, known: &mut HashSet<&'a [u8]>) -> bool {
        let mut dropped = false;
        for section in self.sections.iter_mut().filter(|section| !section.repeated) {
            let once = section.name.starts_with(section::LINKONCE_PREFIX.as_bytes());
            if once && section.name != section::LINUX_THIS_MODULE.as_bytes() && !known.insert(section.name) {
                section.repeated = true;
                section.kept = false;
                dropped = true;
            }
        }
        dropped
    }

    /// Drops sections that describe dropped sections (SHF_LINK_ORDER). A table of function entries is kept, because gcc
    /// 12 also writes records of other functions there. The records of dropped functions stay zero.
    pub(crate) fn drop_linked(&mut self) {
        for at in 0..self.sections.len() {
            let FileSection { flags, link, name, .. } = self.sections[at];
            if name == section::PATCHABLE_FUNCTION_ENTRIES.as_bytes() {
                continue;
            }
            let linked = flags.contains(elf::SHF_LINK_ORDER).then(|| self.section(link)).flatten();
            if linked.is_some_and(|linked| linked.repeated) {
                self.sections[at].repeated = true;
                self.sections[at].kept = false;
            }
        }
    }

    /// The contents of all kept sections of this name, one behind the other: rustc makes one for each static.
    pub(crate) fn contents(&self, name: &str) -> Cow<'a, [u8]> {
        let mut named = self.sections.iter().filter(|section| section.kept && section.name == name.as_bytes());
        let first = named.next().map_or(&[][..], |section| section.data);
        let mut all = Cow::Borrowed(first);
        named.for_each(|section| all.to_mut().extend_from_slice(section.data));
        all
    }

    /// Returns the bytes of a symbol in the file: as many as the symbol's size, or all bytes up to the next symbol.
    pub(crate) fn extent(&self, section: u32, symbol: &FileSymbol<'_>) -> Option<&'a [u8]> {
        let rest = self.section(section)?.data.get(index(symbol.value)..)?;
        let here = self.symbols().filter(|(_, other)| other.place == SymbolPlace::Section(section));
        let size = match symbol.size {
            0 => here.filter_map(|(_, other)| other.value.checked_sub(symbol.value)).filter(|size| *size != 0).min(),
            size => Some(size),
        };
        rest.get(..size.map_or(rest.len(), |size| index(size).min(rest.len())))
    }

    /// Returns a symbol's name for messages; a section symbol has the name of the section.
    pub(crate) fn display_name(&self, at: u32) -> String {
        match self.symbol(at) {
            Some(symbol @ FileSymbol { place: SymbolPlace::Section(section), .. }) if symbol.name().is_empty() => {
                self.section(section).map_or_else(String::new, |section| escaped(section.name))
            }
            Some(symbol) => escaped(symbol.name()),
            None => format!("symbol {at}"),
        }
    }

    /// Returns section and offset for messages.
    pub(crate) fn display_place(&self, section: u32, offset: u64) -> String {
        self.section(section).map_or_else(String::new, |section| format!("{}+{offset:#x}", escaped(section.name)))
    }

    /// The function that contains a place.
    pub(crate) fn function_at(&self, section: u32, offset: u64) -> Option<String> {
        let covers = |symbol: &FileSymbol<'_>| {
            symbol.place == SymbolPlace::Section(section)
                && symbol.kind == elf::STT_FUNC
                && symbol.value <= offset
                && offset - symbol.value < symbol.size
        };
        self.symbols().find(|(_, symbol)| covers(symbol)).map(|(_, symbol)| escaped(symbol.name()))
    }
}

/// The string at an offset that was checked. The table ends with a NUL.
#[inline]
pub(crate) fn string(strings: &[u8], at: u32) -> &[u8] {
    until_nul(strings.get(index(at.into())..).unwrap_or_default())
}

/// The first of some strings, each ended by a NUL.
#[inline]
pub(crate) fn until_nul(strings: &[u8]) -> &[u8] {
    CStr::from_bytes_until_nul(strings).map_or(strings, CStr::to_bytes)
}

/// Whether the first of some strings is this one.
#[inline]
pub(crate) fn begins_with_string(strings: &[u8], name: &[u8]) -> bool {
    // The NUL first: in most strings this byte is another one, and no further comparison is needed.
    strings.get(name.len()) == Some(&0) && strings.starts_with(name)
}
