//! The merged object, written as bytes.

use modload_abi::section;
use modload_edit::{INT3, index, wide};
use object::Endianness;
use object::elf;
use object::write::StringId;
use object::write::elf::{FileHeader, SectionHeader, SectionIndex, Sym, Writer};

use crate::elf::error::ObjectError;
use crate::elf::link::output::{MergedPlace, NewSymbol, OutputSection, SectionContents};
use crate::elf::x86_64::MACHINE;

/// The place of an output section in the file.
struct WrittenPlace {
    index: SectionIndex,
    name: StringId,
    offset: u64,
    /// The relocations of the section: name of the relocation section, and offset of the relocations.
    relas: Option<(StringId, u64)>,
}

/// Writes an object. The first `locals` symbols are local, the null symbol, which `symbols` does not have, counted.
pub(super) fn write(
    outputs: &[OutputSection<'_>],
    symbols: &[NewSymbol<'_>],
    locals: u32,
) -> Result<Vec<u8>, ObjectError> {
    let rela_names: Vec<Vec<u8>> =
        outputs.iter().map(|output| [section::RELA_PREFIX.as_bytes(), output.key.name].concat()).collect();
    let mut bytes = Vec::new();
    let mut writer = Writer::new(Endianness::Little, true, &mut bytes);

    // First, every part is given a place.
    writer.reserve_file_header();
    let places: Vec<WrittenPlace> =
        outputs.iter().zip(&rela_names).map(|(output, name)| reserve(&mut writer, output, name)).collect();
    writer.reserve_null_symbol_index();
    let names: Vec<Option<StringId>> =
        symbols.iter().map(|symbol| reserve_symbol(&mut writer, &places, symbol)).collect();
    writer.reserve_symtab_section_index();
    if writer.symtab_shndx_needed() {
        writer.reserve_symtab_shndx_section_index();
    }
    writer.reserve_strtab_section_index();
    writer.reserve_shstrtab_section_index();
    writer.reserve_symtab();
    writer.reserve_symtab_shndx();
    let too_large = |_| ObjectError::NotAnObject("more than one object can hold");
    writer.reserve_strtab().map_err(too_large)?;
    writer.reserve_shstrtab().map_err(too_large)?;
    writer.reserve_section_headers();

    writer.write_file_header(&HEADER).map_err(too_large)?;
    for (output, place) in outputs.iter().zip(&places) {
        contents(&mut writer, output, place);
    }
    writer.write_null_symbol();
    for (symbol, name) in symbols.iter().zip(names) {
        let symbol = raw_symbol(&writer, &places, symbol, name);
        writer.write_symbol(&symbol);
    }
    writer.write_symtab_shndx();
    writer.write_strtab();
    writer.write_shstrtab();
    writer.write_null_section_header();
    for (output, place) in outputs.iter().zip(&places) {
        headers(&mut writer, output, place);
    }
    writer.write_symtab_section_header(locals);
    writer.write_symtab_shndx_section_header();
    writer.write_strtab_section_header();
    writer.write_shstrtab_section_header();
    Ok(bytes)
}

const HEADER: FileHeader = FileHeader {
    os_abi: elf::ELFOSABI_SYSV,
    abi_version: 0,
    e_type: elf::ET_REL,
    e_machine: MACHINE,
    e_entry: 0,
    e_flags: elf::FileFlags(0),
};

fn reserve<'a>(writer: &mut Writer<'a>, output: &OutputSection<'a>, rela_name: &'a [u8]) -> WrittenPlace {
    let index = writer.reserve_section_index();
    let name = writer.add_section_name(output.key.name);
    let in_file = if output.key.contents == SectionContents::Zeros { 0 } else { output.size };
    let offset = writer.reserve(in_file, output.align.min(16));
    let relas = (!output.relas.is_empty()).then(|| {
        writer.reserve_section_index();
        (writer.add_section_name(rela_name), writer.reserve_relocations(output.relas.len(), true))
    });
    WrittenPlace { index, name, offset, relas }
}

fn reserve_symbol<'a>(writer: &mut Writer<'a>, places: &[WrittenPlace], symbol: &NewSymbol<'a>) -> Option<StringId> {
    writer.reserve_symbol_index(match symbol.at {
        MergedPlace::Output(output) => Some(places[output].index),
        MergedPlace::Special(_) => None,
    });
    (!symbol.name.is_empty()).then(|| writer.add_string(symbol.name))
}

fn contents(writer: &mut Writer<'_>, output: &OutputSection<'_>, place: &WrittenPlace) {
    writer.pad_until(place.offset);
    if output.key.contents != SectionContents::Zeros {
        // Gaps between pieces of text.
        let fill = if output.key.flags.contains(elf::SHF_EXECINSTR) { INT3 } else { 0 };
        let mut end = 0;
        for (offset, data) in &output.pieces {
            writer.write(&vec![fill; index(offset - end)]);
            writer.write(data);
            end = offset + wide(data.len());
        }
        writer.write(&vec![fill; index(output.size - end)]);
    }
    if let Some((_, offset)) = place.relas {
        writer.pad_until(offset);
        output.relas.iter().for_each(|rela| writer.write_relocation(true, rela));
    }
}

fn raw_symbol(writer: &Writer<'_>, places: &[WrittenPlace], symbol: &NewSymbol<'_>, name: Option<StringId>) -> Sym {
    let (section, special) = match symbol.at {
        MergedPlace::Output(output) => (Some(places[output].index.0), elf::SHN_UNDEF),
        MergedPlace::Special(special) => (None, special),
    };
    Sym {
        section,
        st_name: writer.string_offset(name),
        st_info: symbol.info,
        st_other: elf::SymbolOther(symbol.visibility.0),
        st_shndx: special,
        st_value: symbol.value,
        st_size: symbol.size,
    }
}

fn headers(writer: &mut Writer<'_>, output: &OutputSection<'_>, place: &WrittenPlace) {
    let sh_name = writer.section_name_offset(Some(place.name));
    writer.write_section_header(&SectionHeader {
        sh_name,
        sh_type: output.kind,
        sh_flags: output.key.flags,
        sh_addr: 0,
        sh_offset: place.offset,
        sh_size: output.size,
        sh_link: 0,
        sh_info: 0,
        sh_addralign: output.align,
        sh_entsize: 0,
    });
    if let Some((name, offset)) = place.relas {
        let symbols = writer.symtab_index();
        writer.write_relocation_section_header(name, place.index, symbols, offset, output.relas.len(), true);
    }
}
