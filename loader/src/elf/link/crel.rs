//! Converts compact relocations (SHT_CREL) to SHT_RELA, the only kind that later stages read.

use modload_abi::crel::decode;
use modload_abi::known::SHT_CREL;
use modload_edit::{index, wide};
use object::LittleEndian as LE;
use object::{elf, pod};

use crate::elf::error::ObjectError;
use crate::elf::file::string;
use crate::vocabulary::escape::escaped;

/// Size of a section header, and offsets of the fields that change.
const HEADER: usize = 64;
const TYPE: usize = 4;
const OFFSET: usize = 24;
const SIZE: usize = 32;
const ALIGN: usize = 48;
const ENTRY_SIZE: usize = 56;

/// Returns the object with each SHT_CREL section converted to SHT_RELA, or `None` without such a section. The new
/// records are appended to the file. A file without a readable section table is left to stage *validate*. The result
/// has at most `limit` bytes.
pub(super) fn written_out(bytes: &[u8], limit: u64) -> Result<Option<Vec<u8>>, ObjectError> {
    let Some((table, headers)) = headers(bytes) else { return Ok(None) };
    let compact = |header: &&elf::SectionHeader64<LE>| header.sh_type.get(LE).0 == SHT_CREL;
    if !headers.iter().any(|header| compact(&header)) {
        return Ok(None);
    }
    let names = names(bytes, headers);
    let mut new = bytes.to_vec();
    for (at, header) in headers.iter().enumerate().filter(|(_, header)| compact(header)) {
        let start = index(header.sh_offset.get(LE));
        let section = start.checked_add(index(header.sh_size.get(LE))).and_then(|end| bytes.get(start..end));
        // Outside of the file: stage *validate* reports this.
        let Some(section) = section else { return Ok(None) };
        let name = || escaped(string(names, header.sh_name.get(LE)));
        let relas = decode(section).map_err(|problem| ObjectError::Crel { section: name(), problem })?;
        new.resize(new.len().next_multiple_of(8), 0);
        let (offset, size) = (wide(new.len()), 24 * wide(relas.len()));
        if offset.saturating_add(size) > limit {
            return Err(ObjectError::TooLarge { bytes: offset.saturating_add(size), limit });
        }
        for rela in relas {
            new.extend(rela.offset.to_le_bytes());
            new.extend(rela.kind.to_le_bytes());
            new.extend(rela.symbol.to_le_bytes());
            new.extend(rela.addend.to_le_bytes());
        }
        let header = &mut new[table + HEADER * at..][..HEADER];
        header[TYPE..TYPE + 4].copy_from_slice(&elf::SHT_RELA.0.to_le_bytes());
        for (field, value) in [(OFFSET, offset), (SIZE, size), (ALIGN, 8), (ENTRY_SIZE, 24)] {
            header[field..field + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
    Ok(Some(new))
}

/// The offset of the section header table, and the headers.
fn headers(bytes: &[u8]) -> Option<(usize, &[elf::SectionHeader64<LE>])> {
    let (header, _) = pod::from_bytes::<elf::FileHeader64<LE>>(bytes).ok()?;
    let ident = header.e_ident;
    let is_ours = ident.magic == *b"\x7fELF" && ident.class == elf::ELFCLASS64 && ident.data == elf::ELFDATA2LSB;
    let table = usize::try_from(header.e_shoff.get(LE)).ok().filter(|table| is_ours && *table >= HEADER)?;
    let (first, _) = pod::from_bytes::<elf::SectionHeader64<LE>>(bytes.get(table..)?).ok()?;
    let count = match header.e_shnum.get(LE) {
        0 => usize::try_from(first.sh_size.get(LE)).ok()?,
        count => count.into(),
    };
    let (headers, _) = pod::slice_from_bytes(&bytes[table..], count).ok()?;
    Some((table, headers))
}

/// The section name string table; empty if the file has no valid one.
fn names<'a>(bytes: &'a [u8], headers: &[elf::SectionHeader64<LE>]) -> &'a [u8] {
    let (header, _) = match pod::from_bytes::<elf::FileHeader64<LE>>(bytes) {
        Ok(header) => header,
        Err(()) => return &[],
    };
    let at = match header.e_shstrndx.get(LE) {
        elf::SHN_XINDEX => headers.first().map_or(0, |first| first.sh_link.get(LE)),
        at => at.0.into(),
    };
    let section = headers.get(index(at.into()));
    let range = section.map(|section| (index(section.sh_offset.get(LE)), index(section.sh_size.get(LE))));
    range.and_then(|(start, size)| bytes.get(start..start.checked_add(size)?)).unwrap_or_default()
}
