//! The symbol file of a module for a debugger: an ELF image in memory with the addresses of sections and symbols.
//!
//! The image is the module's object, converted to a linked file: sections have their addresses, symbols have their
//! values, and the relocations of debug information and of `.eh_frame` are applied, so that a reader needs no knowledge
//! of this project. Section numbers are those of the object. The contents of sections in the process's memory are left
//! out.
//!
//! This is a pure function from bytes and addresses to bytes. A part that cannot be converted (for example because of
//! an unknown compression) is left out: then the debugger knows less, and the module is loaded anyway.

use modload_abi::{Records, Rela};
use modload_edit::{Addr, Window, index, wide};
use modload_loader::{Seen, SeenSection};
use modload_relocs::{OnDiscarded, RelocSymbol, RelocSymbolKind, RelocatedSection, SlotPlan, Slots, apply};
use object::LittleEndian as LE;
use object::{elf, pod};

/// The sections whose addresses the symbol file gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SymbolFileParts {
    /// All sections.
    All,
    /// The sections that remain after `init` has returned. The addresses of init sections may belong to another module
    /// then.
    Lasting,
}

type ElfSectionHeader = elf::SectionHeader64<LE>;
type ElfSymbol = elf::Sym64<LE>;

/// The size of the records of a SHT_RELA section.
const RELA: usize = 24;

/// Returns whether the module has init sections. Only then [`SymbolFileParts`] makes a difference.
pub(crate) fn has_init(seen: &Seen<'_>) -> bool {
    let sections = sections(seen.object()).map_or(0, <[ElfSectionHeader]>::len);
    (0..sections).any(|at| section(seen, at).is_some_and(|section| section.is_init))
}

fn section(seen: &Seen<'_>, at: usize) -> Option<SeenSection> {
    seen.section(u32::try_from(at).ok()?)
}

fn sections(object: &[u8]) -> Option<&[ElfSectionHeader]> {
    let (header, _) = pod::from_bytes::<elf::FileHeader64<LE>>(object).ok()?;
    let table = object.get(index(header.e_shoff.get(LE))..)?;
    // With 65,280 sections or more, the first section header holds their number.
    let count = match header.e_shnum.get(LE) {
        0 => index(pod::from_bytes::<ElfSectionHeader>(table).ok()?.0.sh_size.get(LE)),
        count => usize::from(count),
    };
    Some(pod::slice_from_bytes(table, count).ok()?.0)
}

/// Makes the image. Returns `None` for an object that was never validated.
pub(crate) fn image(seen: &Seen<'_>, parts: SymbolFileParts) -> Option<Box<[u8]>> {
    let object = seen.object();
    let headers = sections(object)?;
    let place = |at: usize| section(seen, at).filter(|section| parts == SymbolFileParts::All || !section.is_init);
    let symbols = symbols(seen, headers, &place);
    let slots = SlotPlan::new(0).place(Addr::NULL, Addr::NULL);
    let (mut file, _) = pod::from_bytes::<elf::FileHeader64<LE>>(object).ok().map(|(file, rest)| (*file, rest))?;
    let mut image = vec![0; size_of::<elf::FileHeader64<LE>>()];
    let mut table = Vec::with_capacity(headers.len());
    for (at, header) in headers.iter().enumerate() {
        let mut header = *header;
        // Contents are stored decompressed, and groups have no meaning in a linked file.
        let flags = header.sh_flags.get(LE).0 & !(elf::SHF_COMPRESSED.0 | elf::SHF_GROUP.0);
        header.sh_flags.set(LE, elf::SectionFlags(flags));
        let contents = match (role(seen, at, &header), place(at)) {
            (Role::Part, Some(place)) => {
                header.sh_addr.set(LE, place.addr.get());
                header.sh_type.set(LE, elf::SHT_NOBITS);
                Vec::new()
            }
            (Role::Unwind, Some(place)) => {
                header.sh_addr.set(LE, place.addr.get());
                relocated(object, headers, at, place.addr, &symbols, &slots).unwrap_or_default()
            }
            (Role::Debug, _) => match relocated(object, headers, at, Addr::NULL, &symbols, &slots) {
                Some(contents) => contents,
                None => leave_out(&mut header),
            },
            (Role::Symbols, _) => symbol_table(contents(object, &header)?, headers, &symbols, &place),
            (Role::Strings, _) => contents(object, &header)?.to_vec(),
            _ => leave_out(&mut header),
        };
        if header.sh_type.get(LE) != elf::SHT_NOBITS {
            // Tables of records need this alignment.
            image.resize(image.len().next_multiple_of(16), 0);
            header.sh_size.set(LE, wide(contents.len()));
        }
        header.sh_offset.set(LE, wide(image.len()));
        image.extend_from_slice(&contents);
        table.push(header);
    }
    image.resize(image.len().next_multiple_of(16), 0);
    file.e_type.set(LE, elf::ET_EXEC);
    file.e_shoff.set(LE, wide(image.len()));
    image.extend_from_slice(pod::bytes_of_slice(&table));
    image[..size_of::<elf::FileHeader64<LE>>()].copy_from_slice(pod::bytes_of(&file));
    Some(image.into_boxed_slice())
}

/// The use of a section in the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// The section is in the process's memory.
    Part,
    /// The section is in the process's memory, but debuggers read it from the file.
    Unwind,
    Debug,
    Symbols,
    Strings,
    /// Relocations, which have been applied, and sections for linkers.
    Nothing,
}

fn role(seen: &Seen<'_>, at: usize, header: &ElfSectionHeader) -> Role {
    let number = u32::try_from(at).unwrap_or(u32::MAX);
    let allocated = header.sh_flags.get(LE).contains(elf::SHF_ALLOC);
    let unwind = seen.section_name(number) == modload_abi::section::EH_FRAME.as_bytes();
    match header.sh_type.get(LE) {
        _ if seen.is_repeated(number) => Role::Nothing,
        elf::SHT_SYMTAB => Role::Symbols,
        elf::SHT_STRTAB => Role::Strings,
        elf::SHT_PROGBITS | elf::SHT_X86_64_UNWIND if allocated && unwind => Role::Unwind,
        _ if allocated => Role::Part,
        elf::SHT_PROGBITS => Role::Debug,
        _ => Role::Nothing,
    }
}

/// Leaves a section out, except for its number.
fn leave_out(header: &mut ElfSectionHeader) -> Vec<u8> {
    header.sh_type.set(LE, elf::SHT_NULL);
    header.sh_flags.set(LE, elf::SectionFlags(0));
    Vec::new()
}

fn contents<'a>(object: &'a [u8], header: &ElfSectionHeader) -> Option<&'a [u8]> {
    let start = index(header.sh_offset.get(LE));
    object.get(start..start.checked_add(index(header.sh_size.get(LE)))?)
}

/// Returns the symbols as debug information uses them: symbols in debug sections, which have no address, count as
/// offsets.
fn symbols(
    seen: &Seen<'_>,
    headers: &[ElfSectionHeader],
    place: &impl Fn(usize) -> Option<SeenSection>,
) -> Vec<RelocSymbol> {
    let table = headers.iter().find(|header| header.sh_type.get(LE) == elf::SHT_SYMTAB);
    let bytes = table.and_then(|table| contents(seen.object(), table)).unwrap_or_default();
    let symbols = bytes.as_chunks::<{ size_of::<ElfSymbol>() }>().0.iter();
    let debug_symbol = |(bytes, resolved): (&[u8; size_of::<ElfSymbol>()], &RelocSymbol)| {
        let mut symbol = *resolved;
        let Ok((entry, _)) = pod::from_bytes::<ElfSymbol>(bytes) else { return symbol };
        let section = usize::from(entry.st_shndx.get(LE).0);
        let Some(header) = headers.get(section).filter(|_| section != 0) else { return symbol };
        let debug = !header.sh_flags.get(LE).contains(elf::SHF_ALLOC);
        if let Some(section) = place(section) {
            symbol =
                RelocSymbol { addr: section.addr + entry.st_value.get(LE), kind: RelocSymbolKind::Defined, ..symbol };
        } else if debug && !seen.is_repeated(u32::try_from(section).unwrap_or(u32::MAX)) {
            symbol = RelocSymbol { addr: Addr::new(entry.st_value.get(LE)), kind: RelocSymbolKind::Absolute, ..symbol };
        } else {
            symbol.kind = RelocSymbolKind::Discarded;
        }
        symbol
    };
    symbols.zip(seen.symbols()).map(debug_symbol).collect()
}

/// Returns the contents of a section, decompressed and relocated. A field that cannot be relocated (for example a
/// thread-local variable's offset) stays zero.
fn relocated(
    object: &[u8],
    headers: &[ElfSectionHeader],
    at: usize,
    addr: Addr,
    symbols: &[RelocSymbol],
    slots: &Slots,
) -> Option<Vec<u8>> {
    let header = headers.get(at)?;
    let raw = contents(object, header)?;
    let compressed = header.sh_flags.get(LE).contains(elf::SHF_COMPRESSED);
    let mut bytes = if compressed { decompressed(raw)? } else { raw.to_vec() };
    let original = bytes.clone();
    let target = RelocatedSection {
        section: u32::try_from(at).ok()?,
        addr,
        bytes: &original,
        discarded: OnDiscarded::LeaveZero,
    };
    let relas = headers.iter().filter(|relas| {
        relas.sh_type.get(LE) == elf::SHT_RELA && u32::try_from(at).is_ok_and(|at| relas.sh_info.get(LE) == at)
    });
    for relas in relas {
        let records = contents(object, relas)?;
        for record in records.as_chunks::<RELA>().0 {
            let Ok(record) = Records::<Rela>::new(record) else { continue };
            // Records are applied one by one, so that a failing one does not stop the others.
            let _ = apply(&target, record, symbols, slots, &mut Window::new(addr, &mut bytes));
        }
    }
    Some(bytes)
}

/// Returns `None`: this build decompresses nothing, and debuggers do without compressed debug information.
#[cfg(not(feature = "compressed"))]
fn decompressed(_raw: &[u8]) -> Option<Vec<u8>> {
    None
}

/// Decompresses a section of debug information: a header, and a zlib or zstd stream.
#[cfg(feature = "compressed")]
fn decompressed(raw: &[u8]) -> Option<Vec<u8>> {
    use std::io::Read;

    /// The most bytes of debug information in a section, decompressed.
    const LIMIT: u64 = 1 << 30;

    let (header, stream) = pod::from_bytes::<elf::CompressionHeader64<LE>>(raw).ok()?;
    let size = header.ch_size.get(LE);
    if size > LIMIT {
        return None;
    }
    let mut bytes = Vec::with_capacity(index(size));
    match header.ch_type.get(LE) {
        elf::ELFCOMPRESS_ZLIB => flate2::read::ZlibDecoder::new(stream).take(size).read_to_end(&mut bytes).ok()?,
        elf::ELFCOMPRESS_ZSTD => zstd::Decoder::new(stream).ok()?.take(size).read_to_end(&mut bytes).ok()?,
        _ => return None,
    };
    Some(bytes)
}

/// Returns the symbol table with addresses as values. Names of symbols in missing sections are removed, because a
/// debugger would find them.
fn symbol_table(
    bytes: &[u8],
    headers: &[ElfSectionHeader],
    symbols: &[RelocSymbol],
    place: &impl Fn(usize) -> Option<SeenSection>,
) -> Vec<u8> {
    let mut table = bytes.to_vec();
    for (entry, symbol) in table.as_chunks_mut::<{ size_of::<ElfSymbol>() }>().0.iter_mut().zip(symbols) {
        let Ok((entry, _)) = pod::from_bytes_mut::<ElfSymbol>(entry) else { continue };
        let number = entry.st_shndx.get(LE);
        let section = usize::from(number.0);
        match number {
            elf::SHN_UNDEF | elf::SHN_ABS => {}
            elf::SHN_COMMON => {
                entry.st_shndx.set(LE, elf::SHN_ABS);
                entry.st_value.set(LE, symbol.addr.get());
            }
            _ if place(section).is_some() => entry.st_value.set(LE, symbol.addr.get()),
            // The section is debug information, or does not exist any more.
            _ if section < headers.len() => {
                entry.st_shndx.set(LE, elf::SHN_UNDEF);
                entry.st_name.set(LE, 0);
                entry.st_value.set(LE, 0);
            }
            _ => {}
        }
    }
    table
}
