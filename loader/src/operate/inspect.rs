//! Describes a file, and the places of the sections in memory. Takes untrusted bytes, runs nothing, allocates no module
//! memory and calls no code of the host.

use std::collections::HashMap;

use modload_abi::known::{SectionContents, section_name};
use modload_abi::livepatch::KlpSymbol;
use modload_abi::{Rela, modinfo, section};
use modload_edit::{index, wide};
use object::elf;
#[cfg(feature = "serde")]
use serde::Serialize;

use crate::elf::error::ObjectError;
use crate::elf::file::{File, Relas, SymbolPlace};
use crate::elf::link::{self, Input, NAMES_LIMIT};
use crate::elf::modinfo as info;
use crate::operate::admit;
use crate::prepare::layout::{self, MemoryPart};
use crate::prepare::vague::SharedDefinitions;
use crate::vocabulary::escape::escaped;
use crate::vocabulary::sentence::sentence;

/// Facts about a module that is not loaded. All names are escaped.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize))]
pub struct Inspection {
    /// Name of the module, or the stem of the file.
    pub name: String,
    /// The linked objects; empty for a single object.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Vec::is_empty"))]
    pub objects: Vec<String>,
    /// The entries of `.modinfo`, in order: key and value.
    pub modinfo: Vec<(String, String)>,
    /// Parameters, as described by `.modinfo`.
    pub params: Vec<InspectedParam>,
    /// Exported symbols.
    pub exports: Vec<InspectedExport>,
    /// Undefined symbols.
    pub needs: Vec<InspectedNeed>,
    /// Symbols of a live patch's objects, to be resolved when those objects are loaded.
    pub waits: Vec<InspectedWait>,
    /// All sections but the null one.
    pub sections: Vec<InspectedSection>,
    /// Bytes of each part of the module's memory, by name, empty ones left out.
    pub parts: Vec<(&'static str, u64)>,
    /// How many relocations of each kind the kept sections have.
    pub relocations: Vec<(String, u64)>,
    /// Sections with records that the loader reads or would have to.
    pub special: Vec<InspectedTable>,
    /// The first reason why this version refuses to load the module, if there is one.
    pub refused: Option<String>,
}

/// A file by itself.
fn alone(bytes: &[u8]) -> Input<'_> {
    Input { name: String::new(), bytes: bytes.into() }
}

/// A parameter.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize))]
pub struct InspectedParam {
    /// Name of the parameter.
    pub name: String,
    /// Type of the parameter, as in `module_param`.
    #[cfg_attr(feature = "serde", serde(rename = "type"))]
    pub kind: String,
    /// Description of the parameter, if there is one.
    pub description: Option<String>,
}

/// An exported symbol.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize))]
pub struct InspectedExport {
    /// Name of the symbol.
    pub name: String,
    /// Whether only modules with a GPL-compatible licence may use the symbol.
    pub gpl_only: bool,
}

/// An undefined symbol.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize))]
pub struct InspectedNeed {
    /// Name of the symbol.
    pub name: String,
    /// Whether the module can do without.
    pub weak: bool,
}

/// A symbol of an object of a live patch.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize))]
pub struct InspectedWait {
    /// The object: a module's name, or `vmlinux`.
    pub object: String,
    /// Name of the symbol.
    pub name: String,
    /// Which of several of that name, from 1; 0: there is one.
    pub position: u64,
}

/// A section.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize))]
pub struct InspectedSection {
    /// Index in the section header table.
    pub index: usize,
    /// Name of the section.
    pub name: String,
    /// Size in memory, or in the file for a section that is not kept.
    pub size: u64,
    /// Alignment in bytes.
    pub align: u64,
    /// Flags: w, a, x, g (group) and t (thread-local), as in readelf.
    pub flags: String,
    /// Part and offset in memory; `None` for a section that is not kept.
    pub place: Option<(&'static str, u64)>,
}

/// A section with records.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize))]
pub struct InspectedTable {
    /// Name of the section.
    pub section: String,
    /// Number of records; `None` if the records have no fixed size, or do not fill the section.
    pub records: Option<u64>,
}

fn part_name(part: MemoryPart) -> &'static str {
    match part {
        MemoryPart::Text => "text",
        MemoryPart::InitText => "init text",
        MemoryPart::ReadOnly => "read-only data",
        MemoryPart::InitReadOnly => "init read-only data",
        MemoryPart::Data => "data",
        MemoryPart::InitData => "init data",
        MemoryPart::RoAfterInit => "ro_after_init data",
    }
}

impl Inspection {
    /// Inspects a file. `stem` is the name of a module without a name of its own, `limit` the largest size in memory.
    /// Of an archive, only the members that would be loaded are inspected.
    ///
    /// # Errors
    /// The errors of the stages *link* and *validate*, and [`ObjectError::TooLarge`].
    pub fn of(bytes: &[u8], stem: &str, limit: u64) -> Result<Inspection, ObjectError> {
        Inspection::of_unit(&[alone(bytes)], stem, limit)
    }

    /// Looks at several files that are to become one module.
    ///
    /// # Errors
    /// As [`Inspection::of`].
    pub fn of_unit(inputs: &[Input<'_>], stem: &str, limit: u64) -> Result<Inspection, ObjectError> {
        let linked = link::link(inputs, &[], limit)?;
        let file = File::validate(&linked.bytes)?;
        let layout = layout::plan(&file, limit, None, SharedDefinitions::Uniques)?;
        bound_names(&file, &layout)?;
        let section = file.contents(section::MODINFO);
        let entries: Vec<_> =
            modinfo::entries(&section).map(|entry| (escaped(entry.key), escaped(entry.value))).collect();
        let named = modinfo::get(&section, "name").map_or_else(|| escaped(stem.as_bytes()), escaped);
        let named = modinfo::canonical(&named).into_owned();
        let refused = match info::read(&file, stem) {
            Ok(_) => admit::check(&file).err(),
            Err(error) => Some(error),
        };
        let placed = file.sections.iter().zip(&layout.sections).enumerate().skip(1);
        Ok(Inspection {
            name: named,
            objects: linked.objects,
            params: params(&entries),
            modinfo: entries,
            exports: exports(&file),
            needs: needs(&file, &layout),
            waits: waits(&file, &layout),
            sections: placed
                .map(|(index, (section, spot))| InspectedSection {
                    index,
                    name: escaped(section.name),
                    size: section.size,
                    align: section.align,
                    flags: flags(section.flags),
                    place: spot.map(|spot| (part_name(spot.part), spot.offset)),
                })
                .collect(),
            parts: MemoryPart::ALL
                .into_iter()
                .map(|part| (part_name(part), layout.parts[part.slot()].size))
                .filter(|(_, size)| *size != 0)
                .collect(),
            relocations: relocations(&file),
            special: special(&file),
            refused: refused.map(|error| sentence(&error)),
        })
    }
}

fn bound_names(file: &File<'_>, layout: &layout::ModuleLayout) -> Result<(), ObjectError> {
    let sections = file.sections.iter().map(|section| section.name.len());
    let outside = layout.undefined.iter().chain(&layout.livepatch);
    let needs = outside.filter_map(|&at| file.symbol(at)).map(|symbol| symbol.name().len());
    let exports = file.relas.iter().filter(|relas| export_table(file, relas).is_some()).flat_map(|relas| {
        relas.records.iter().filter(|rela| rela.offset % 12 == 4).filter_map(|rela| Some(name_at(file, &rela)?.len()))
    });
    let mut bytes = 0;
    for len in sections.chain(needs).chain(exports) {
        bytes += wide(len);
        if bytes > NAMES_LIMIT {
            return Err(ObjectError::TooLarge { bytes, limit: NAMES_LIMIT });
        }
    }
    Ok(())
}

fn flags(flags: elf::SectionFlags) -> String {
    let letters = [
        (elf::SHF_WRITE, 'w'),
        (elf::SHF_ALLOC, 'a'),
        (elf::SHF_EXECINSTR, 'x'),
        (elf::SHF_GROUP, 'g'),
        (elf::SHF_TLS, 't'),
    ];
    letters.iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, letter)| letter).collect()
}

/// `parmtype=NAME:TYPE` and `parm=NAME:DESCRIPTION`.
fn params(entries: &[(String, String)]) -> Vec<InspectedParam> {
    let split = |wanted: &'static str| {
        entries.iter().filter(move |(key, _)| key == wanted).filter_map(|(_, value)| value.split_once(':'))
    };
    let mut described: HashMap<&str, &str> = HashMap::new();
    for (name, text) in split("parm") {
        described.entry(name).or_insert(text);
    }
    let param = |(name, kind): (&str, &str)| InspectedParam {
        name: name.to_owned(),
        kind: kind.to_owned(),
        description: described.get(name).map(|&text| text.to_owned()),
    };
    split("parmtype").map(param).collect()
}

/// Whether these relocations are of a table of exports, and if so, whether of the one for GPL-compatible modules.
fn export_table(file: &File<'_>, relas: &Relas<'_>) -> Option<bool> {
    let section = file.section(relas.target)?;
    let gpl_only = section.name == section::KSYMTAB_GPL.as_bytes();
    (gpl_only || section.name == section::KSYMTAB.as_bytes()).then_some(gpl_only)
}

/// Returns the names in the records of `__ksymtab` and `__ksymtab_gpl`: the targets of the relocations of each record's
/// second field.
fn exports(file: &File<'_>) -> Vec<InspectedExport> {
    let tables = file.relas.iter().filter_map(|relas| Some((relas, export_table(file, relas)?)));
    tables
        .flat_map(|(relas, gpl_only)| {
            let names =
                relas.records.iter().filter(|rela| rela.offset % 12 == 4).filter_map(|rela| name_at(file, &rela));
            names.map(move |name| InspectedExport { name: escaped(name), gpl_only })
        })
        .collect()
}

/// The string that a relocation of a name's field refers to.
fn name_at<'a>(file: &File<'a>, rela: &Rela) -> Option<&'a [u8]> {
    let symbol = file.symbol(rela.symbol)?;
    let SymbolPlace::Section(section) = symbol.place else { return None };
    let offset = symbol.value.wrapping_add_signed(rela.addend);
    let rest = file.section(section)?.data.get(index(offset)..)?;
    rest.split(|&byte| byte == 0).next()
}

fn needs(file: &File<'_>, layout: &layout::ModuleLayout) -> Vec<InspectedNeed> {
    let undefined = layout.undefined.iter().filter_map(|&at| file.symbol(at));
    undefined
        .filter(|symbol| symbol.place == SymbolPlace::Undefined && !symbol.name().is_empty())
        .map(|symbol| InspectedNeed { name: escaped(symbol.name()), weak: symbol.bind == elf::STB_WEAK })
        .collect()
}

fn waits(file: &File<'_>, layout: &layout::ModuleLayout) -> Vec<InspectedWait> {
    let waiting = layout.livepatch.iter().filter_map(|&at| file.symbol(at));
    let named = waiting.filter_map(|symbol| {
        let KlpSymbol { object, name, position } = KlpSymbol::parse(symbol.name())?;
        Some(InspectedWait { object: escaped(object), name: escaped(name), position })
    });
    named.collect()
}

fn relocations(file: &File<'_>) -> Vec<(String, u64)> {
    let mut counts = std::collections::BTreeMap::new();
    for rela in file.relas.iter().chain(&file.klp_relas).flat_map(|relas| relas.records.iter()) {
        *counts.entry(rela.kind).or_insert(0) += 1;
    }
    let name = |kind: u32| modload_relocs::name(kind).map_or_else(|| format!("number {kind}"), str::to_owned);
    counts.into_iter().map(|(kind, count)| (name(kind), count)).collect()
}

fn special(file: &File<'_>) -> Vec<InspectedTable> {
    let tables = file.sections.iter().filter(|section| section.kept && section.size != 0);
    tables
        .filter_map(|section| {
            let sizes: &[u64] = match &section_name(section.name)?.contents {
                SectionContents::Records(sizes) => sizes,
                SectionContents::Functions => &[8],
                SectionContents::Refused { record, .. } => record.as_slice(),
                SectionContents::Strings
                | SectionContents::Frames
                | SectionContents::Placed
                | SectionContents::Mark => return None,
            };
            let size = sizes.iter().find(|size| section.size.is_multiple_of(**size));
            Some(InspectedTable { section: escaped(section.name), records: size.map(|size| section.size / size) })
        })
        .collect()
}

/// A function's bytes in the file, and the relocations that will change the bytes.
#[derive(Clone, Debug)]
pub struct FunctionBytes {
    /// Section and offset of the first byte.
    pub place: String,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Offset in the function, relocation and target; by offset.
    pub relocations: Vec<(u64, String)>,
}

impl FunctionBytes {
    /// Returns the function of this name; `None` if the file has no such function. An archive is linked, within `limit`
    /// bytes, for this function.
    ///
    /// # Errors
    /// The errors of the stages *link* and *validate*.
    pub fn of(bytes: &[u8], name: &str, limit: u64) -> Result<Option<FunctionBytes>, ObjectError> {
        let inputs = [alone(bytes)];
        let linked = link::link(&inputs, &[name.to_owned()], limit)?;
        let file = File::validate(&linked.bytes)?;
        let mut named = file.symbols().filter(|(_, symbol)| symbol.name() == name.as_bytes());
        let found = named.find_map(|(_, symbol)| match symbol.place {
            SymbolPlace::Section(at) => {
                file.section(at).filter(|section| section.flags.contains(elf::SHF_EXECINSTR))?;
                Some((at, symbol.value, file.extent(at, &symbol)?.to_vec()))
            }
            SymbolPlace::Undefined | SymbolPlace::Absolute | SymbolPlace::Common | SymbolPlace::Livepatch => None,
        });
        let Some((section, start, bytes)) = found else { return Ok(None) };
        let end = start + wide(bytes.len());
        let all = file.relas.iter().chain(&file.klp_relas);
        let records = all.filter(|relas| relas.target == section).flat_map(|relas| relas.records.iter());
        let mut relocations: Vec<_> = records
            .filter(|rela| (start..end).contains(&rela.offset))
            .map(|rela| {
                let kind = modload_relocs::name(rela.kind).unwrap_or("an unknown relocation");
                let sign = if rela.addend < 0 { '-' } else { '+' };
                let symbol = file.display_name(rela.symbol);
                (rela.offset - start, format!("{kind} {symbol}{sign}{:#x}", rela.addend.unsigned_abs()))
            })
            .collect();
        relocations.sort();
        Ok(Some(FunctionBytes { place: file.display_place(section, start), bytes, relocations }))
    }
}
