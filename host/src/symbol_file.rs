//! The symbol file of a module for a debugger: an ELF image in memory that says what stands where.
//!
//! It is the module's object, made into a linked file: sections have their addresses, symbols their values, and
//! relocations of debug information and of `.eh_frame` are done, so that a reader needs to know nothing of ours. Section
//! numbers are those of the object. Contents that are in the process's memory anyway are left out.
//!
//! A pure function from bytes and addresses to bytes. What cannot be made (a compression that we do not know, say) is
//! left out: the debugger then knows less, and the module loads all the same.

use modload_abi::{Records, Rela};
use modload_edit::{Addr, Window, index, wide};
use modload_loader::{Seen, SeenSection};
use modload_relocs::{OnDiscarded, SlotPlan, Slots, Symbol, SymbolKind, Target, apply};
use object::LittleEndian as LE;
use object::{elf, pod};

/// Whose addresses are to be known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Parts {
    /// All sections'.
    All,
    /// Those of sections that stay when `init` has returned. The others' addresses may be another module's then.
    Lasting,
}

type Header = elf::SectionHeader64<LE>;
type Sym = elf::Sym64<LE>;

/// Size of the records of a SHT_RELA section.
const RELA: usize = 24;

/// The sections of the module that `init` alone needs, if there are any: then [`Parts`] makes a difference.
pub(crate) fn has_init(seen: &Seen<'_>) -> bool {
    let sections = sections(seen.object()).map_or(0, <[Header]>::len);
    (0..sections).any(|at| section(seen, at).is_some_and(|section| section.is_init))
}

fn section(seen: &Seen<'_>, at: usize) -> Option<SeenSection> {
    seen.section(u32::try_from(at).ok()?)
}

fn sections(object: &[u8]) -> Option<&[Header]> {
    let (header, _) = pod::from_bytes::<elf::FileHeader64<LE>>(object).ok()?;
    let table = object.get(index(header.e_shoff.get(LE))..)?;
    // With 65,280 sections or more the number stands in the first one.
    let count = match header.e_shnum.get(LE) {
        0 => index(pod::from_bytes::<Header>(table).ok()?.0.sh_size.get(LE)),
        count => usize::from(count),
    };
    Some(pod::slice_from_bytes(table, count).ok()?.0)
}

/// Makes the image; `None` for an object that was never validated.
pub(crate) fn image(seen: &Seen<'_>, parts: Parts) -> Option<Box<[u8]>> {
    let object = seen.object();
    let headers = sections(object)?;
    let place = |at: usize| section(seen, at).filter(|section| parts == Parts::All || !section.is_init);
    let symbols = symbols(seen, headers, &place);
    let slots = SlotPlan::new(0).place(Addr::NULL, Addr::NULL);
    let (mut file, _) = pod::from_bytes::<elf::FileHeader64<LE>>(object).ok().map(|(file, rest)| (*file, rest))?;
    let mut image = vec![0; size_of::<elf::FileHeader64<LE>>()];
    let mut table = Vec::with_capacity(headers.len());
    for (at, header) in headers.iter().enumerate() {
        let mut header = *header;
        // Contents are decompressed, and groups are no matter any more.
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
            // Tables of records are aligned as they want to be.
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

/// What a section is for in the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// In the process's memory.
    Part,
    /// In memory as well, but debuggers read it from the file.
    Unwind,
    Debug,
    Symbols,
    Strings,
    /// Relocations, which are done, and what tells a linker something.
    Nothing,
}

fn role(seen: &Seen<'_>, at: usize, header: &Header) -> Role {
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

/// A section that keeps its number and nothing else.
fn leave_out(header: &mut Header) -> Vec<u8> {
    header.sh_type.set(LE, elf::SHT_NULL);
    header.sh_flags.set(LE, elf::SectionFlags(0));
    Vec::new()
}

fn contents<'a>(object: &'a [u8], header: &Header) -> Option<&'a [u8]> {
    let start = index(header.sh_offset.get(LE));
    object.get(start..start.checked_add(index(header.sh_size.get(LE)))?)
}

/// Symbols as debug information means them: it counts offsets in its own sections, which stand nowhere.
fn symbols(seen: &Seen<'_>, headers: &[Header], place: &impl Fn(usize) -> Option<SeenSection>) -> Vec<Symbol> {
    let table = headers.iter().find(|header| header.sh_type.get(LE) == elf::SHT_SYMTAB);
    let bytes = table.and_then(|table| contents(seen.object(), table)).unwrap_or_default();
    let symbols = bytes.as_chunks::<{ size_of::<Sym>() }>().0.iter();
    let meant = |(bytes, resolved): (&[u8; size_of::<Sym>()], &Symbol)| {
        let mut symbol = *resolved;
        let Ok((entry, _)) = pod::from_bytes::<Sym>(bytes) else { return symbol };
        let section = usize::from(entry.st_shndx.get(LE).0);
        let Some(header) = headers.get(section).filter(|_| section != 0) else { return symbol };
        let debug = !header.sh_flags.get(LE).contains(elf::SHF_ALLOC);
        if let Some(section) = place(section) {
            symbol = Symbol { addr: section.addr + entry.st_value.get(LE), kind: SymbolKind::Defined, ..symbol };
        } else if debug && !seen.is_repeated(u32::try_from(section).unwrap_or(u32::MAX)) {
            symbol = Symbol { addr: Addr::new(entry.st_value.get(LE)), kind: SymbolKind::Absolute, ..symbol };
        } else {
            symbol.kind = SymbolKind::Discarded;
        }
        symbol
    };
    symbols.zip(seen.symbols()).map(meant).collect()
}

/// A section's contents with its relocations done, decompressed. What cannot be relocated (a thread-local variable's
/// offset) stays zero.
fn relocated(
    object: &[u8],
    headers: &[Header],
    at: usize,
    addr: Addr,
    symbols: &[Symbol],
    slots: &Slots,
) -> Option<Vec<u8>> {
    let header = headers.get(at)?;
    let raw = contents(object, header)?;
    let compressed = header.sh_flags.get(LE).contains(elf::SHF_COMPRESSED);
    let mut bytes = if compressed { decompressed(raw)? } else { raw.to_vec() };
    let original = bytes.clone();
    let target = Target { section: u32::try_from(at).ok()?, addr, bytes: &original, discarded: OnDiscarded::LeaveZero };
    let relas = headers.iter().filter(|relas| {
        relas.sh_type.get(LE) == elf::SHT_RELA && u32::try_from(at).is_ok_and(|at| relas.sh_info.get(LE) == at)
    });
    for relas in relas {
        let records = contents(object, relas)?;
        for record in records.as_chunks::<RELA>().0 {
            let Ok(record) = Records::<Rela>::new(record) else { continue };
            // One by one: one that cannot be done must not keep the others from being done.
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

/// The symbol table with addresses for values. Symbols of what is not there are none: their names would be found.
fn symbol_table(
    bytes: &[u8],
    headers: &[Header],
    symbols: &[Symbol],
    place: &impl Fn(usize) -> Option<SeenSection>,
) -> Vec<u8> {
    let mut table = bytes.to_vec();
    for (entry, symbol) in table.as_chunks_mut::<{ size_of::<Sym>() }>().0.iter_mut().zip(symbols) {
        let Ok((entry, _)) = pod::from_bytes_mut::<Sym>(entry) else { continue };
        let number = entry.st_shndx.get(LE);
        let section = usize::from(number.0);
        match number {
            elf::SHN_UNDEF | elf::SHN_ABS => {}
            elf::SHN_COMMON => {
                entry.st_shndx.set(LE, elf::SHN_ABS);
                entry.st_value.set(LE, symbol.addr.get());
            }
            _ if place(section).is_some() => entry.st_value.set(LE, symbol.addr.get()),
            // Of debug information, or of what is not there any more.
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
