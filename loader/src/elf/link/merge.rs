//! Merges several relocatable objects into one: sections of one name are concatenated, local symbols stay separate, and
//! each global name has one symbol. Same result as `ld -r`, except that repeated groups are dropped immediately.

use std::collections::HashMap;

use modload_abi::known::{self, section_name};
use modload_abi::section::EH_FRAME;
use modload_abi::{Records, Rela};
use modload_edit::{index, wide};
use object::elf;
use object::write::elf::Rel;

use crate::elf::error::ObjectError;
use crate::elf::file::{FileSection, FileSymbol, SymbolPlace};
use crate::elf::link::object::UnitObject;
use crate::elf::link::output::{MergeKey, MergedPlace, NewSymbol, OutputSection, SectionContents};
use crate::elf::link::symbols::{Definition, Global, GlobalState, GlobalSymbols, LinkStrength};
use crate::elf::link::write;
use crate::vocabulary::escape::escaped;

/// The section flags that matter to a loader. All other flags are for linkers.
const FLAGS: &[elf::SectionFlags] =
    &[elf::SHF_WRITE, elf::SHF_ALLOC, elf::SHF_EXECINSTR, elf::SHF_TLS, elf::SHF_EXCLUDE, elf::SHF_COMPRESSED];

/// Sections with a larger alignment are not merged: the gaps in front of such sections would be out of proportion to
/// the file.
const PAGE: u64 = 4096;

/// The new place of an object's section: output section and offset.
#[derive(Clone, Copy)]
struct MergedPiece {
    output: usize,
    offset: u64,
}

/// The merged object under construction.
struct Merged<'a> {
    outputs: Vec<OutputSection<'a>>,
    by_key: HashMap<MergeKey<'a>, usize>,
    /// New places by object, then by section; `None` for a section that is not in the result.
    pieces: Vec<Vec<Option<MergedPiece>>>,
    symbols: Vec<NewSymbol<'a>>,
    /// How many of the symbols are local, the null symbol included.
    locals: u32,
    /// Bytes of everything so far.
    bytes: u64,
    limit: u64,
}

/// Makes one object of several, of at most `limit` bytes.
pub(super) fn merge<'a>(
    objects: &[UnitObject<'a>],
    globals: &GlobalSymbols<'a>,
    limit: u64,
) -> Result<Vec<u8>, ObjectError> {
    let mut merged = Merged {
        outputs: Vec::new(),
        by_key: HashMap::new(),
        pieces: Vec::new(),
        symbols: Vec::new(),
        locals: 1,
        bytes: 0,
        limit,
    };
    for (number, object) in objects.iter().enumerate() {
        merged.place(number, object).map_err(|error| object.failed(error))?;
    }
    // Index in the result, by object, then by symbol.
    let mut indices = merged.locals(objects);
    let numbers = merged.globals(objects, globals);
    for (object, indices) in objects.iter().zip(&mut indices) {
        for (at, symbol) in object.file.symbols().skip(1).filter(|(_, symbol)| symbol.bind != elf::STB_LOCAL) {
            let number = globals.find(symbol.name()).and_then(|number| numbers.get(number).copied());
            indices[index(at.into())] = number.unwrap_or_default();
        }
    }
    for ((number, object), indices) in objects.iter().enumerate().zip(&indices) {
        merged.relocate(number, object, indices).map_err(|error| object.failed(error))?;
    }
    write::write(&merged.outputs, &merged.symbols, merged.locals)
}

impl<'a> Merged<'a> {
    fn grow(&mut self, by: u64) -> Result<(), ObjectError> {
        self.bytes = self.bytes.saturating_add(by);
        if self.bytes > self.limit {
            return Err(ObjectError::TooLarge { bytes: self.bytes, limit: self.limit });
        }
        Ok(())
    }

    /// Gives a place to each section of an object.
    fn place(&mut self, number: usize, object: &UnitObject<'a>) -> Result<(), ObjectError> {
        let file = &object.file;
        if let Some(section) = file.klp_relas.first().and_then(|relas| file.section(relas.section)) {
            let why =
                "a live patch cannot be linked with other objects: link them first, and then use `modhost klp-link`";
            return Err(ObjectError::Unsupported { what: "section", name: escaped(section.name), why });
        }
        let mut pieces = Vec::with_capacity(object.file.sections.len());
        for (at, section) in (0..).zip(&object.file.sections) {
            let contents = contents(number, at, section);
            pieces.push(contents.map(|contents| self.place_one(section, contents)).transpose()?);
        }
        self.pieces.push(pieces);
        Ok(())
    }

    fn place_one(&mut self, section: &FileSection<'a>, contents: SectionContents) -> Result<MergedPiece, ObjectError> {
        let limit = self.limit;
        let section = &without_terminator(section);
        let output = self.output(MergeKey { name: section.name, flags: known(section.flags), contents }, section.kind);
        let into = &mut self.outputs[output];
        // The alignment is checked for kept sections only.
        let align = if section.kept || section.align.is_power_of_two() { section.align } else { 1 };
        let offset = into.size.checked_next_multiple_of(align);
        let end = offset.and_then(|offset| offset.checked_add(section.size)).filter(|end| *end <= limit);
        let (Some(offset), Some(end)) = (offset, end) else {
            return Err(ObjectError::TooLarge { bytes: section.size.saturating_add(into.size), limit });
        };
        let grown = end - into.size;
        into.size = end;
        into.align = into.align.max(align);
        if !section.data.is_empty() {
            into.pieces.push((offset, section.data));
        }
        if contents != SectionContents::Zeros {
            self.grow(grown)?;
        }
        Ok(MergedPiece { output, offset })
    }

    /// The output for sections like this.
    fn output(&mut self, key: MergeKey<'a>, kind: elf::SectionType) -> usize {
        let next = self.outputs.len();
        let output = *self.by_key.entry(key).or_insert(next);
        if output == next {
            self.outputs.push(OutputSection { key, kind, size: 0, align: 1, pieces: Vec::new(), relas: Vec::new() });
        }
        output
    }

    /// The local symbols of all objects.
    fn locals(&mut self, objects: &[UnitObject<'a>]) -> Vec<Vec<u32>> {
        let mut all = Vec::with_capacity(objects.len());
        for (number, object) in objects.iter().enumerate() {
            let mut indices = vec![0; index(object.file.symbol_count().into())];
            let symbols = object.file.symbols().skip(1);
            for (at, symbol) in symbols.filter(|(_, symbol)| symbol.bind == elf::STB_LOCAL) {
                let (place, value) = match symbol.place {
                    SymbolPlace::Undefined | SymbolPlace::Livepatch => continue,
                    SymbolPlace::Absolute => (MergedPlace::Special(elf::SHN_ABS), symbol.value),
                    SymbolPlace::Common => (MergedPlace::Special(elf::SHN_COMMON), symbol.value),
                    SymbolPlace::Section(section) => self.placed(objects, number, section, symbol.value),
                };
                indices[index(at.into())] = self.locals;
                self.locals += 1;
                self.symbols.push(NewSymbol {
                    name: symbol.name(),
                    info: elf::SymbolInfo::new(symbol.bind, symbol.kind),
                    visibility: symbol.visibility,
                    at: place,
                    value,
                    size: symbol.size,
                });
            }
            all.push(indices);
        }
        all
    }

    /// Returns the new place of a symbol. A symbol of a dropped section is put into an empty section of the same name
    /// that is not part of the module, so that a relocation against the symbol is reported as discarded.
    fn placed(&mut self, objects: &[UnitObject<'a>], object: usize, section: u32, value: u64) -> (MergedPlace, u64) {
        if let Some(MergedPiece { output, offset }) = self.pieces[object][index(section.into())] {
            return (MergedPlace::Output(output), value.wrapping_add(offset));
        }
        let name = objects[object].file.section(section).map_or(&[][..], |section| section.name);
        let key = MergeKey { name, flags: elf::SectionFlags(0), contents: SectionContents::Gone };
        (MergedPlace::Output(self.output(key, elf::SHT_PROGBITS)), 0)
    }

    /// Adds the global symbols and returns their indices, in order. A name that only the caller has asked for gets no
    /// symbol.
    fn globals(&mut self, objects: &[UnitObject<'a>], globals: &GlobalSymbols<'a>) -> Vec<u32> {
        let mut next = self.locals;
        let mut indices = Vec::with_capacity(globals.globals.len());
        for &Global { name, state, visibility, .. } in &globals.globals {
            let undefined = MergedPlace::Special(elf::SHN_UNDEF);
            let (bind, kind, at, value, size) = match state {
                GlobalState::Unknown => {
                    indices.push(0);
                    continue;
                }
                GlobalState::Undefined(LinkStrength::Strong) => (elf::STB_GLOBAL, elf::STT_NOTYPE, undefined, 0, 0),
                GlobalState::Undefined(LinkStrength::Weak) => (elf::STB_WEAK, elf::STT_NOTYPE, undefined, 0, 0),
                GlobalState::Common { size, align } => {
                    (elf::STB_GLOBAL, elf::STT_OBJECT, MergedPlace::Special(elf::SHN_COMMON), align, size)
                }
                GlobalState::Defined(_, Definition { object, symbol }) => {
                    let Some(symbol) = objects.get(object).and_then(|object| object.file.symbol(symbol)) else {
                        indices.push(0);
                        continue;
                    };
                    let (at, value) = match symbol.place {
                        SymbolPlace::Section(section) => self.placed(objects, object, section, symbol.value),
                        _ => (MergedPlace::Special(elf::SHN_ABS), symbol.value),
                    };
                    // The result has no groups. A weak symbol still gives way to a definition of another module.
                    let bind = if is_comdat(objects, object, &symbol) { elf::STB_WEAK } else { symbol.bind };
                    (bind, symbol.kind, at, value, symbol.size)
                }
            };
            indices.push(next);
            next += 1;
            self.symbols.push(NewSymbol { name, info: elf::SymbolInfo::new(bind, kind), visibility, at, value, size });
        }
        indices
    }

    /// Takes an object's relocations.
    fn relocate(&mut self, number: usize, object: &UnitObject<'a>, indices: &[u32]) -> Result<(), ObjectError> {
        for section in object.file.sections.iter().filter(|section| section.kind == elf::SHT_RELA) {
            let piece = self.pieces[number].get(index(section.info.into())).copied().flatten();
            let (Some(target), Some(piece)) = (object.file.section(section.info), piece) else { continue };
            let malformed = |record, field, value, problem| {
                Err(ObjectError::Malformed { table: "relocation", index: record, field, value, problem })
            };
            let Ok(records) = Records::<Rela>::new(section.data) else {
                return malformed(0, "sh_size", wide(section.data.len()), "no whole number of relocations");
            };
            self.grow(wide(section.data.len()))?;
            let alone = matches!(self.outputs[piece.output].key.contents, SectionContents::Alone(..));
            for (record, rela) in records.iter().enumerate() {
                let Some(&symbol) = indices.get(index(rela.symbol.into())) else {
                    return malformed(record, "r_sym", rela.symbol.into(), "there is no such symbol");
                };
                // After merging, bytes of another object follow this section. Offsets in a section that is not merged,
                // for example a compressed one, are not checked.
                let width = modload_relocs::row(rela.kind).map_or(0, |row| row.field.width());
                if !alone && rela.offset.checked_add(width.into()).is_none_or(|end| end > target.size) {
                    return malformed(record, "r_offset", rela.offset, "lies outside its section");
                }
                self.outputs[piece.output].relas.push(Rel {
                    r_offset: rela.offset + piece.offset,
                    r_sym: symbol,
                    r_type: elf::RelocationType(rela.kind),
                    r_addend: rela.addend,
                });
            }
        }
        Ok(())
    }
}

/// Whether a strong definition is of a COMDAT group.
fn is_comdat(objects: &[UnitObject<'_>], object: usize, symbol: &FileSymbol<'_>) -> bool {
    let SymbolPlace::Section(section) = symbol.place else { return false };
    let section = objects.get(object).and_then(|object| object.file.section(section));
    symbol.bind == elf::STB_GLOBAL && section.is_some_and(|section| section.comdat)
}

/// Returns a section of call frame information without the terminator, because rows of other objects will follow.
fn without_terminator<'a>(section: &FileSection<'a>) -> FileSection<'a> {
    let frames = section.name == EH_FRAME.as_bytes() && section.kind != elf::SHT_NOBITS;
    let end = if frames { entries_end(section.data) } else { section.data.len() };
    FileSection { size: if frames { wide(end) } else { section.size }, data: &section.data[..end], ..*section }
}

/// Returns the end of the last entry if only zeros follow, or the end of the section otherwise.
fn entries_end(frames: &[u8]) -> usize {
    let mut end = 0;
    while let Some(len) = frames.get(end..end + 4).and_then(|len| len.try_into().ok()).map(u32::from_le_bytes) {
        let next = usize::try_from(len).ok().and_then(|len| (end + 4).checked_add(len));
        match next.filter(|next| *next <= frames.len()) {
            Some(next) if len != 0 => end = next,
            _ => break,
        }
    }
    if frames[end..].iter().all(|byte| *byte == 0) { end } else { frames.len() }
}

/// Returns the flags that matter to a loader.
fn known(flags: elf::SectionFlags) -> elf::SectionFlags {
    let kept = FLAGS.iter().filter(|flag| flags.contains(**flag));
    kept.fold(elf::SectionFlags(0), |all, flag| all | *flag)
}

/// Whether a section is one of constructors or destructors.
fn is_array(section: &FileSection<'_>) -> bool {
    section_name(section.name).is_some_and(|known| known.contents == known::SectionContents::Functions)
}

/// Returns the kind of a section's contents. Returns `None` for tables that are generated anew, for sections that only
/// linkers read, and for sections that a group has replaced.
fn contents(object: usize, at: u32, section: &FileSection<'_>) -> Option<SectionContents> {
    match section.kind {
        _ if section.repeated => None,
        elf::SHT_NULL | elf::SHT_SYMTAB | elf::SHT_STRTAB | elf::SHT_RELA | elf::SHT_GROUP | elf::SHT_SYMTAB_SHNDX => {
            None
        }
        elf::SHT_NOBITS => Some(SectionContents::Zeros),
        _ if section.flags.contains(elf::SHF_COMPRESSED) || section.align > PAGE => {
            Some(SectionContents::Alone(object, at))
        }
        // Each `.ctors` is called from the last entry to the first, at a fixed position among the `.init_array` of all
        // objects.
        _ if is_array(section) => Some(SectionContents::Alone(object, at)),
        elf::SHT_PROGBITS | elf::SHT_NOTE => Some(SectionContents::Bytes),
        _ => section.flags.contains(elf::SHF_ALLOC).then_some(SectionContents::Bytes),
    }
}
