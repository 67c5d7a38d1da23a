//! All section types and all section names that have a meaning, and the treatment of each by the loader. A section of
//! an unknown type is refused. A section with an unknown name is plain data or code.
//!
//! Stage *admit* looks up every section here. A test walks both tables, so that the loader cannot skip a section in
//! silence.

use crate::section;

/// How the loader treats the sections of one type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Treatment {
    /// The section is loaded into the module's memory if it is allocated. Otherwise it is for debuggers and linkers.
    Plain,
    /// A table about the file itself. The loader reads it from the file.
    Table,
    /// Like [`Treatment::Plain`], but the loader reads such a section only under one of these names.
    Named(&'static [&'static str]),
    /// A hint for linkers and tools. Ignoring it does not change what the code computes.
    Hint,
    /// Not supported, for this reason. A module with such a section is refused.
    Refused(&'static str),
}

/// A section type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KnownType {
    /// `sh_type`.
    pub number: u32,
    /// The type's name in the ABI or in LLVM's documentation.
    pub name: &'static str,
    /// How the loader treats sections of this type.
    pub treatment: Treatment,
}

/// `sh_type` of compact relocations. LLVM chose this number for the experimental phase of the format.
pub const SHT_CREL: u32 = 0x4000_0014;

const fn known(number: u32, name: &'static str, treatment: Treatment) -> KnownType {
    KnownType { number, name, treatment }
}

const LINKED: Treatment = Treatment::Refused("only linked files have one");
const NO_ADDENDS: &str = "it holds relocations of a kind that is not supported; x86-64 objects use SHT_RELA";

/// All known types, sorted by number (gABI, figure 4-9; extensions of GNU and LLVM).
pub const TYPES: &[KnownType] = &[
    known(0, "SHT_NULL", Treatment::Table),
    known(1, "SHT_PROGBITS", Treatment::Plain),
    known(2, "SHT_SYMTAB", Treatment::Table),
    known(3, "SHT_STRTAB", Treatment::Table),
    known(4, "SHT_RELA", Treatment::Table),
    known(5, "SHT_HASH", LINKED),
    known(6, "SHT_DYNAMIC", LINKED),
    known(7, "SHT_NOTE", Treatment::Plain),
    known(8, "SHT_NOBITS", Treatment::Plain),
    // Stage *validate* refuses SHT_REL if it relocates a section that is kept.
    known(9, "SHT_REL", Treatment::Table),
    known(10, "SHT_SHLIB", Treatment::Refused("its meaning is not specified")),
    known(11, "SHT_DYNSYM", LINKED),
    known(14, "SHT_INIT_ARRAY", Treatment::Named(&[section::INIT_ARRAY, section::CTORS])),
    known(15, "SHT_FINI_ARRAY", Treatment::Named(&[section::FINI_ARRAY, section::DTORS])),
    known(16, "SHT_PREINIT_ARRAY", Treatment::Refused(PREINIT)),
    known(17, "SHT_GROUP", Treatment::Table),
    known(18, "SHT_SYMTAB_SHNDX", Treatment::Table),
    known(19, "SHT_RELR", Treatment::Refused(NO_ADDENDS)),
    // Stage *link* rewrites SHT_CREL as SHT_RELA. A section that reaches stage *admit* in this form is refused.
    known(SHT_CREL, "SHT_CREL", Treatment::Refused("compact relocations are read when a file is loaded only")),
    known(0x6000_0001, "SHT_ANDROID_REL", Treatment::Refused(NO_ADDENDS)),
    known(0x6000_0002, "SHT_ANDROID_RELA", Treatment::Refused(NO_ADDENDS)),
    known(0x6fff_ff00, "SHT_ANDROID_RELR", Treatment::Refused(NO_ADDENDS)),
    known(0x6fff_4700, "SHT_GNU_INCREMENTAL_INPUTS", LINKED),
    known(0x6fff_4c00, "SHT_LLVM_ODRTAB", Treatment::Hint),
    known(0x6fff_4c01, "SHT_LLVM_LINKER_OPTIONS", Treatment::Hint),
    known(0x6fff_4c02, "SHT_LLVM_CALL_GRAPH_PROFILE", Treatment::Hint),
    known(0x6fff_4c03, "SHT_LLVM_ADDRSIG", Treatment::Hint),
    known(0x6fff_4c04, "SHT_LLVM_DEPENDENT_LIBRARIES", Treatment::Hint),
    known(0x6fff_4c05, "SHT_LLVM_SYMPART", Treatment::Refused("a module cannot be split into partitions")),
    known(0x6fff_4c06, "SHT_LLVM_PART_EHDR", LINKED),
    known(0x6fff_4c07, "SHT_LLVM_PART_PHDR", LINKED),
    known(0x6fff_4c08, "SHT_LLVM_BB_ADDR_MAP_V0", Treatment::Hint),
    known(0x6fff_4c09, "SHT_LLVM_CALL_GRAPH_PROFILE", Treatment::Hint),
    known(0x6fff_4c0a, "SHT_LLVM_BB_ADDR_MAP", Treatment::Hint),
    known(0x6fff_4c0b, "SHT_LLVM_OFFLOADING", Treatment::Refused("it holds code for other processors")),
    // The object also holds its own machine code, or a symbol says that it holds none.
    known(0x6fff_4c0c, "SHT_LLVM_LTO", Treatment::Hint),
    known(0x6fff_4c0d, "SHT_LLVM_JT_SIZES", Treatment::Hint),
    known(0x6fff_fff4, "SHT_GNU_SFRAME", Treatment::Plain),
    known(0x6fff_fff5, "SHT_GNU_ATTRIBUTES", Treatment::Hint),
    known(0x6fff_fff6, "SHT_GNU_HASH", LINKED),
    known(0x6fff_fff7, "SHT_GNU_LIBLIST", LINKED),
    known(0x6fff_fffd, "SHT_GNU_verdef", LINKED),
    known(0x6fff_fffe, "SHT_GNU_verneed", LINKED),
    known(0x6fff_ffff, "SHT_GNU_versym", LINKED),
    known(0x7000_0001, "SHT_X86_64_UNWIND", Treatment::Named(&[section::EH_FRAME])),
];

/// Returns the row of a section type.
#[must_use]
pub fn section_type(number: u32) -> Option<&'static KnownType> {
    TYPES.iter().find(|known| known.number == number)
}

/// The known bits of `sh_flags`: all bits of the gABI except SHF_OS_NONCONFORMING, GNU's SHF_GNU_RETAIN,
/// SHF_X86_64_LARGE, SHF_RELA_LIVEPATCH and SHF_EXCLUDE. Sections with SHF_X86_64_LARGE may lie anywhere, so the loader
/// places them like all other sections.
pub const FLAGS: u64 = 0x0ef7 | 0x20_0000 | 0x1000_0000 | section::SHF_RELA_LIVEPATCH | 0x8000_0000;

/// The contents of a section, as its name says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SectionContents {
    /// Records that a stage or a subscriber reads. Each size in the list belongs to one record layout.
    Records(&'static [u64]),
    /// Pointers to functions, which the loader calls.
    Functions,
    /// Strings, which the loader reads.
    Strings,
    /// Call frame information: entries of different sizes, which the loader reads.
    Frames,
    /// Code or data. The name decides where the section is placed and how long it lives.
    Placed,
    /// No contents. The presence of the section is the information.
    Mark,
    /// Data for a mechanism that this version does not have. A module with such a section is refused with this reason
    /// unless the section is empty: without the mechanism the module would not run as its author meant.
    Refused {
        /// The reason: the mechanism that is missing.
        why: &'static str,
        /// The size of a record in Linux 6.1, if the section consists of records.
        record: Option<u64>,
    },
}

/// Which section names a row matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameMatch {
    /// Only the row's name.
    One,
    /// The row's name, and all names that begin with the row's name and a dot: `.init_array.100`.
    Dotted,
    /// All names that begin with the row's name.
    Prefix,
}

/// A section name with a meaning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KnownName {
    /// The name.
    pub name: &'static str,
    /// Which section names this row matches.
    pub names: NameMatch,
    /// The contents of such a section.
    pub contents: SectionContents,
}

impl KnownName {
    /// Returns whether this row matches a section name.
    #[must_use]
    pub fn is(&self, name: &[u8]) -> bool {
        let rest = name.strip_prefix(self.name.as_bytes());
        rest.is_some_and(|rest| match self.names {
            NameMatch::One => rest.is_empty(),
            NameMatch::Dotted => rest.is_empty() || rest[0] == b'.',
            NameMatch::Prefix => true,
        })
    }
}

const PREINIT: &str = "a module has no .preinit_array, as a shared object has none; put the function into .init_array";
const PIECES: &str = "its code is a piece of a function that crti.o and crtn.o would have to complete; put a function into \
                      .init_array or .fini_array";

const fn records(name: &'static str, sizes: &'static [u64]) -> KnownName {
    KnownName { name, names: NameMatch::One, contents: SectionContents::Records(sizes) }
}

const fn functions(name: &'static str) -> KnownName {
    KnownName { name, names: NameMatch::Dotted, contents: SectionContents::Functions }
}

const fn refused(name: &'static str, why: &'static str, record: Option<u64>) -> KnownName {
    KnownName { name, names: NameMatch::One, contents: SectionContents::Refused { why, record } }
}

const fn placed(name: &'static str, names: NameMatch) -> KnownName {
    KnownName { name, names, contents: SectionContents::Placed }
}

/// All known names. If several rows match a name, the first row counts.
pub const NAMES: &[KnownName] = &[
    KnownName { name: section::MODINFO, names: NameMatch::One, contents: SectionContents::Strings },
    records(section::KSYMTAB, &[12]),
    records(section::KSYMTAB_GPL, &[12]),
    records(section::KCRCTAB, &[4]),
    records(section::KCRCTAB_GPL, &[4]),
    records(section::VERSIONS, &[64]),
    records(section::PARAM, &[40]),
    functions(section::INIT_ARRAY),
    functions(section::FINI_ARRAY),
    functions(section::CTORS),
    functions(section::DTORS),
    KnownName { name: section::EH_FRAME, names: NameMatch::One, contents: SectionContents::Frames },
    KnownName { name: section::GNU_STACK, names: NameMatch::One, contents: SectionContents::Mark },
    KnownName { name: section::STATIC_CALL_MARK, names: NameMatch::One, contents: SectionContents::Mark },
    // The record of Linux 6.1, and the larger record since Linux 6.3.
    records(section::ALTINSTRUCTIONS, &[12, 14]),
    records(section::PARAINSTRUCTIONS, &[16]),
    records(section::SMP_LOCKS, &[4]),
    records(section::RETPOLINE_SITES, &[4]),
    records(section::RETURN_SITES, &[4]),
    records(section::IBT_ENDBR_SEAL, &[4]),
    records(section::MCOUNT_LOC, &[8]),
    records(section::PATCHABLE_FUNCTION_ENTRIES, &[8]),
    records(section::JUMP_TABLE, &[16]),
    records(section::STATIC_CALL_SITES, &[8]),
    records(section::STATIC_CALL_TRAMP_KEY, &[8]),
    refused(section::EX_TABLE, "exception tables are not supported yet", Some(12)),
    refused(section::BUG_TABLE, "bug tables are not supported yet", Some(12)),
    refused(section::ORC_UNWIND, "ORC unwind tables are not supported", Some(6)),
    refused(section::ORC_UNWIND_IP, "ORC unwind tables are not supported", Some(4)),
    refused(section::PERCPU, "per-CPU data is not supported yet", None),
    refused(section::LINUX_THIS_MODULE, "a struct module of Linux's own layout is not supported", None),
    refused(section::TRACEPOINTS, "tracepoints are not supported yet", None),
    KnownName { names: NameMatch::Dotted, ..refused(section::PREINIT_ARRAY, PREINIT, Some(8)) },
    refused(section::INIT, PIECES, None),
    refused(section::FINI, PIECES, None),
    placed(section::RO_AFTER_INIT, NameMatch::Dotted),
    placed(section::RELOCATED_READ_ONLY, NameMatch::Dotted),
    placed(section::INIT_PREFIX, NameMatch::Prefix),
    placed(section::LINKONCE_PREFIX, NameMatch::Prefix),
    placed(section::STATIC_CALL_TEXT, NameMatch::One),
    placed(section::TEXT, NameMatch::Dotted),
];

/// Returns the first row that matches a section name.
#[must_use]
pub fn section_name(name: &[u8]) -> Option<&'static KnownName> {
    NAMES.iter().find(|known| known.is(name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{NAMES, NameMatch, TYPES};

    #[test]
    fn every_name_of_a_section_that_is_spelt_is_in_the_table() {
        // The other constants of section.rs: prefixes of relocation sections, and names of symbols.
        const OTHERS: [&str; 7] = [
            "RELA_PREFIX",
            "KLP_RELA_PREFIX",
            "KLP_SYMBOL_PREFIX",
            "KLP_MARK_PREFIX",
            "START_PREFIX",
            "STOP_PREFIX",
            "INIT_SECTION_PREFIX",
        ];
        let is_other = |constant: &str| {
            let symbol = ["_SYMBOL", "THUNK_PREFIX", "OPS_PREFIX", "TRAMPOLINE_PREFIX", "KEY_PREFIX"];
            OTHERS.contains(&constant) || symbol.iter().any(|end| constant.ends_with(end))
        };
        let source = include_str!("section.rs");
        let mut seen = 0;
        for line in source.lines().filter_map(|line| line.strip_prefix("pub const ")) {
            let Some((constant, value)) = line.split_once(": &str = \"") else { continue };
            let value = value.trim_end_matches("\";");
            if !is_other(constant) {
                assert!(NAMES.iter().any(|known| known.name == value), "{constant} ({value}) is in no row of NAMES");
                seen += 1;
            }
        }
        assert_eq!(seen, NAMES.len(), "a row for each name, and a name for each row");
    }

    #[test]
    fn each_row_is_there_once() {
        let numbers: BTreeSet<u32> = TYPES.iter().map(|known| known.number).collect();
        let names: BTreeSet<&str> = NAMES.iter().map(|known| known.name).collect();
        assert_eq!((numbers.len(), names.len()), (TYPES.len(), NAMES.len()));
    }

    #[test]
    fn no_row_hides_one_behind_it() {
        for (at, known) in NAMES.iter().enumerate() {
            let first = NAMES.iter().position(|row| row.is(known.name.as_bytes()));
            assert_eq!(first, Some(at), "{}", known.name);
            let dotted = format!("{}.x", known.name);
            assert_eq!(known.is(dotted.as_bytes()), known.names != NameMatch::One, "{dotted}");
        }
    }
}
