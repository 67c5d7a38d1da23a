//! A module in the memory of another machine: relocated and rewritten for a described machine, and not run. Profile
//! `linux-6.1`: the same bytes as Linux 6.1.

mod machine;
mod place;
mod rewrite;
mod sort;

use std::collections::HashMap;

use modload_abi::section;
use modload_edit::{Addr, CodeBuffers, Edits, Ledger, PieceKind, RecordTable};
use modload_relocs::{OnDiscarded, RelocSymbol, RelocSymbolKind, RelocatedSection, SlotPlan};
use object::elf;

pub use machine::{Kallsyms, Machine, MachineError, hexadecimal};

use crate::elf::error::ObjectError;
use crate::elf::file::{File, SymbolPlace};
use crate::elf::sections;
use crate::prepare::error::{PrepareError, Unresolved};
use crate::vocabulary::escape::escaped;

/// A relocatable object with addresses.
#[derive(Clone, Copy, Debug)]
pub struct Placement<'a> {
    /// The object.
    pub bytes: &'a [u8],
    /// Addresses of sections by name. An empty section, or a section without address, is placed as Linux's
    /// `layout_sections` does.
    pub addresses: &'a HashMap<String, Addr>,
    /// Start address of per-CPU variables.
    pub percpu: Option<Addr>,
    /// Largest total size of the sections in bytes.
    pub size_limit: u64,
}

/// A module's sections in memory.
#[derive(Debug)]
pub struct MemoryImage {
    /// In the order of the file.
    pub sections: Vec<ImageSection>,
    /// All edits, with their engines.
    pub edits: Edits,
}

/// One section in memory.
#[derive(Clone, Debug)]
pub struct ImageSection {
    /// Index in the section header table.
    pub index: u32,
    /// Name of the section, escaped.
    pub name: String,
    /// Address of the section.
    pub at: Addr,
    /// Whether the section is code.
    pub is_text: bool,
    /// Whether the module's own code writes the section.
    pub is_writable: bool,
    /// Bytes of the section.
    pub bytes: Vec<u8>,
    /// Bytes of the section in the file; empty for zeros.
    pub file: Vec<u8>,
}

/// A module that is COMING in another machine's memory.
#[derive(Debug)]
pub struct ImageComing<'a, 'c> {
    file: &'a File<'a>,
    places: &'a [Option<Addr>],
    /// Text and data of the module.
    pub code: &'a mut Ledger<'c, CodeBuffers>,
}

impl ImageComing<'_, '_> {
    /// Returns the section of this name as a table, if the section exists and is not empty.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<RecordTable> {
        place::table(self.file, self.places, name).filter(|table| !table.is_empty())
    }

    /// Returns the index of the symbol table.
    #[must_use]
    pub fn symbol_table(&self) -> u32 {
        self.file.symbol_table
    }

    /// Returns the addresses of the module's own symbols with this prefix, and the rest of each name.
    #[must_use]
    pub fn symbols(&self, prefix: &str) -> Vec<(Vec<u8>, Addr)> {
        let found = self.file.symbols().filter_map(|(_, symbol)| {
            let rest = symbol.name().strip_prefix(prefix.as_bytes())?;
            let SymbolPlace::Section(section) = symbol.place else { return None };
            let at = self.places.get(modload_edit::index(section.into())).copied()??;
            Some((rest.to_vec(), at + symbol.value))
        });
        found.collect()
    }
}

impl MemoryImage {
    /// Makes the image of an object. `coming` takes the place of the coming chain: this function gets the module after
    /// all earlier stages. `share` is called with the name of each completed part of the work.
    ///
    /// # Errors
    /// [`PrepareError`]: the file is malformed, a symbol or an address is missing, or a stage fails.
    pub fn of(
        placement: &Placement<'_>,
        machine: &Machine,
        coming: impl FnOnce(&mut ImageComing<'_, '_>) -> Result<(), PrepareError>,
        mut share: impl FnMut(&'static str),
    ) -> Result<MemoryImage, PrepareError> {
        let file = validated(placement)?;
        share("validate");
        let (places, mut space) = placed(&file, placement)?;
        share("place");
        let symbols = symbols(&file, &places, placement.percpu, machine)?;
        share("resolve");
        let mut ledger = Ledger::new(&mut space);
        relocate(&file, &places, &symbols, &mut ledger)?;
        share("relocate");
        rewrite::rewrite(&file, &places, machine, &mut ledger, &mut share)?;
        coming(&mut ImageComing { file: &file, places: &places, code: &mut ledger })?;
        share("coming");
        let edits = ledger.close();
        Ok(MemoryImage::read(&file, &places, &space, edits))
    }

    /// Makes the image before rewriting and sorting, as any linker would.
    ///
    /// # Errors
    /// [`PrepareError`]: the file is malformed, a symbol or an address is missing, or a relocation fails.
    pub fn relocated(placement: &Placement<'_>, machine: &Machine) -> Result<MemoryImage, PrepareError> {
        let file = validated(placement)?;
        let (places, mut space) = placed(&file, placement)?;
        let symbols = symbols(&file, &places, placement.percpu, machine)?;
        let mut ledger = Ledger::new(&mut space);
        relocate(&file, &places, &symbols, &mut ledger)?;
        let edits = ledger.close();
        Ok(MemoryImage::read(&file, &places, &space, edits))
    }

    /// Returns the sections that have a place, as in memory now.
    fn read(file: &File<'_>, places: &[Option<Addr>], space: &CodeBuffers, edits: Edits) -> MemoryImage {
        let placed = (0..).zip(file.sections.iter().zip(places));
        let sections = placed.filter_map(|(index, (section, at))| {
            let at = (*at)?;
            let bytes = modload_edit::Code::bytes(space, at, modload_edit::index(section.size)).unwrap_or_default();
            let (name, bytes, file) = (escaped(section.name), bytes.to_vec(), section.data.to_vec());
            let is_text = section.flags.contains(elf::SHF_EXECINSTR);
            let is_writable = section.flags.contains(elf::SHF_WRITE);
            Some(ImageSection { index, name, at, is_text, is_writable, bytes, file })
        });
        MemoryImage { sections: sections.collect(), edits }
    }
}

/// Validates the file and refuses sections that would be skipped.
fn validated<'a>(placement: &Placement<'a>) -> Result<File<'a>, ObjectError> {
    let file = File::validate(placement.bytes)?;
    for section in file.sections.iter().skip(1).filter(|section| !section.repeated) {
        sections::check_type(section)?;
        sections::check_records(section)?;
    }
    Ok(file)
}

/// Places the sections, and copies the contents from the file.
fn placed(file: &File<'_>, placement: &Placement<'_>) -> Result<(Vec<Option<Addr>>, CodeBuffers), PrepareError> {
    let places = place::places(file, placement.addresses)?;
    let (mut space, mut bytes, limit) = (CodeBuffers::default(), 0_u64, placement.size_limit);
    for (section, at) in file.sections.iter().zip(&places) {
        let Some(at) = *at else { continue };
        bytes = bytes.saturating_add(section.size);
        if bytes > limit {
            return Err(ObjectError::TooLarge { bytes, limit }.into());
        }
        let kind = if section.flags.contains(elf::SHF_EXECINSTR) { PieceKind::Text } else { PieceKind::Data };
        let mut contents = section.data.to_vec();
        contents.resize(modload_edit::index(section.size), 0);
        if space.add(at, kind, contents).is_err() {
            return Err(PrepareError::NoAddress {
                section: escaped(section.name),
                problem: "it would overlap another section",
            });
        }
    }
    Ok((places, space))
}

/// The addresses of all symbols: Linux's `simplify_symbols`.
fn symbols(
    file: &File<'_>,
    places: &[Option<Addr>],
    percpu: Option<Addr>,
    machine: &Machine,
) -> Result<Vec<RelocSymbol>, PrepareError> {
    let mut symbols = Vec::with_capacity(modload_edit::index(file.symbol_count().into()));
    let mut missing = Vec::new();
    for (_, symbol) in file.symbols() {
        let (addr, kind) = match symbol.place {
            SymbolPlace::Absolute => (Addr::new(symbol.value), RelocSymbolKind::Absolute),
            SymbolPlace::Livepatch => {
                let why = "what a live patch becomes depends on which of its objects are there";
                return Err(ObjectError::Unsupported { what: "symbol", name: escaped(symbol.name()), why }.into());
            }
            SymbolPlace::Common => {
                let why = "a COMMON symbol; Linux refuses these, compile with -fno-common";
                return Err(ObjectError::Unsupported { what: "symbol", name: escaped(symbol.name()), why }.into());
            }
            SymbolPlace::Undefined if symbol.name().is_empty() => (Addr::NULL, RelocSymbolKind::Absolute),
            SymbolPlace::Undefined => match machine.symbols.exported(symbol.name()) {
                Some(addr) => (addr, RelocSymbolKind::External),
                None if symbol.bind == elf::STB_WEAK => (Addr::NULL, RelocSymbolKind::UndefinedWeak),
                None => {
                    missing.push(Unresolved {
                        symbol: escaped(symbol.name()),
                        used_at: String::new(),
                        uses: 0,
                        nearest: None,
                        because: None,
                    });
                    continue;
                }
            },
            SymbolPlace::Section(section) => {
                let named = |name: &str| file.section(section).is_some_and(|section| section.name == name.as_bytes());
                let at = match places.get(modload_edit::index(section.into())).copied().flatten() {
                    None if named(section::PERCPU) => percpu,
                    at => at,
                };
                at.map_or((Addr::NULL, RelocSymbolKind::Discarded), |at| (at + symbol.value, RelocSymbolKind::Defined))
            }
        };
        symbols.push(RelocSymbol { addr, size: symbol.size, kind });
    }
    if missing.is_empty() { Ok(symbols) } else { Err(PrepareError::Unresolved(missing)) }
}

fn relocate(
    file: &File<'_>,
    places: &[Option<Addr>],
    symbols: &[RelocSymbol],
    ledger: &mut Ledger<'_, CodeBuffers>,
) -> Result<(), PrepareError> {
    // Kernels have no GOT: a relocation that needs a slot is refused.
    let slots = SlotPlan::new(file.symbol_count()).place(Addr::NULL, Addr::NULL);
    for relas in &file.relas {
        let at = places.get(modload_edit::index(relas.target.into())).copied().flatten();
        let (Some(section), Some(addr)) = (file.section(relas.target), at) else { continue };
        let target =
            RelocatedSection { section: relas.section, addr, bytes: section.data, discarded: OnDiscarded::Refuse };
        modload_relocs::apply(&target, relas.records, symbols, &slots, ledger)
            .map_err(|source| crate::prepare::relocate::explain(file, source, true))?;
    }
    Ok(())
}
