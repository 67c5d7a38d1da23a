//! Stage *validate*: every header, table and index of the file is checked here, once.

use std::collections::HashSet;

use modload_abi::Records;
use modload_abi::known::section_name;
use modload_abi::section::{LINKONCE_PREFIX, SHN_LIVEPATCH, SHN_X86_64_LCOMMON};
use modload_edit::{index, wide};
use object::LittleEndian as LE;
use object::elf;
use object::{U32, pod};

use crate::elf::error::ObjectError;
use crate::elf::file::{ComdatGroup, File, FileSection, Relas, SymbolPlace, is_klp, string};
use crate::elf::x86_64::{MACHINE, other_machine};

/// Largest alignment of a section.
const MAX_ALIGN: u64 = 1 << 21;

fn malformed(table: &'static str, index: usize, field: &'static str, value: u64, problem: &'static str) -> ObjectError {
    ObjectError::Malformed { table, index, field, value, problem }
}

/// Names the format of bytes that are no ELF file, for users that pass a wrong file.
fn other_format(bytes: &[u8]) -> &'static str {
    const FORMATS: [(&[u8], &str); 9] = [
        (b"!<arch>\n", "a static archive within another one"),
        (b"!<thin>\n", "a thin archive within another one"),
        (b"\x1f\x8b", "gzip-compressed; decompress it first, or load it by its file name"),
        (b"\xfd7zXZ\0", "xz-compressed; decompress it first, or load it by its file name"),
        (b"\x28\xb5\x2f\xfd", "zstd-compressed; decompress it first, or load it by its file name"),
        (b"BC\xc0\xde", "LLVM bitcode; compile without -flto"),
        (b"#!", "a script"),
        (b"MZ", "a Windows program or object"),
        (b"\xcf\xfa\xed\xfe", "a Mach-O file"),
    ];
    match FORMATS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        Some((_, what)) => what,
        None if bytes.is_empty() => "an empty file",
        None if b"\x7fELF".starts_with(bytes) => "the beginning of an ELF file, cut off",
        None => "no ELF file at all",
    }
}

impl<'a> File<'a> {
    /// Checks the bytes of a file.
    ///
    /// # Errors
    /// [`ObjectError::NotAnObject`], [`ObjectError::Malformed`] or [`ObjectError::Unsupported`].
    pub fn validate(bytes: &'a [u8]) -> Result<File<'a>, ObjectError> {
        let header = header(bytes)?;
        let headers = section_headers(bytes, header)?;
        let names = section_names(bytes, header, headers)?;
        let mut sections = Vec::with_capacity(headers.len());
        for (at, header) in headers.iter().enumerate() {
            sections.push(section(bytes, names, at, header)?);
        }
        let mut file = File {
            sections,
            symbol_table: 0,
            symbols: &[],
            strings: &[],
            extended: &[],
            has_klp_symbols: false,
            groups: Vec::new(),
            relas: Vec::new(),
            klp_relas: Vec::new(),
        };
        file.read_symbols(headers)?;
        file.check_symbols()?;
        file.drop_repeated_groups(headers)?;
        file.find_relocations(headers)?;
        file.check_overlaps(headers)?;
        Ok(file)
    }

    fn read_symbols(&mut self, headers: &[elf::SectionHeader64<LE>]) -> Result<(), ObjectError> {
        for (at, header) in headers.iter().enumerate() {
            let kind = header.sh_type.get(LE);
            if kind == elf::SHT_SYMTAB {
                if !self.symbols.is_empty() {
                    return Err(malformed("section header", at, "sh_type", kind.0.into(), "a second symbol table"));
                }
                self.symbol_table = u32::try_from(at).unwrap_or(u32::MAX);
                self.symbols = entries(self.sections[at].data, at, header)?;
                let strings = header.sh_link.get(LE);
                let Some(strings) = self.sections.get(index(strings.into())) else {
                    return Err(malformed("section header", at, "sh_link", strings.into(), "there is no such section"));
                };
                self.strings = terminated(strings.data, at, header.sh_link.get(LE))?;
            }
        }
        for (at, header) in headers.iter().enumerate() {
            if header.sh_type.get(LE) == elf::SHT_SYMTAB_SHNDX {
                self.extended = pod::slice_from_all_bytes(self.sections[at].data).map_err(|()| {
                    malformed("section header", at, "sh_size", header.sh_size.get(LE), "not a multiple of 4")
                })?;
            }
        }
        Ok(())
    }

    fn check_symbols(&mut self) -> Result<(), ObjectError> {
        let sections = self.sections.len();
        let mut is_klp = false;
        for (at, symbol) in self.symbols.iter().enumerate() {
            let name = symbol.st_name.get(LE);
            if index(name.into()) >= self.strings.len() && name != 0 {
                return Err(malformed("symbol", at, "st_name", name.into(), "lies behind the string table"));
            }
            let place = symbol.st_shndx.get(LE);
            let known = match place {
                elf::SHN_UNDEF | elf::SHN_ABS | elf::SHN_COMMON => true,
                elf::SymbolSection(SHN_LIVEPATCH | SHN_X86_64_LCOMMON) => true,
                elf::SHN_XINDEX => self.extended.get(at).is_some_and(|to| index(to.get(LE).into()) < sections),
                place => usize::from(place.0) < sections,
            };
            if !known {
                return Err(malformed("symbol", at, "st_shndx", place.0.into(), "there is no such section"));
            }
            is_klp |= place.0 == SHN_LIVEPATCH;
            let align = symbol.st_value.get(LE);
            let is_common = place == elf::SHN_COMMON || place.0 == SHN_X86_64_LCOMMON;
            if is_common && (!align.is_power_of_two() || align > MAX_ALIGN) {
                return Err(malformed("symbol", at, "st_value", align, "no alignment: no power of two up to 2 MiB"));
            }
        }
        self.has_klp_symbols = is_klp;
        Ok(())
    }

    /// Of several groups with one signature the first is kept.
    fn drop_repeated_groups(&mut self, headers: &[elf::SectionHeader64<LE>]) -> Result<(), ObjectError> {
        let mut signatures: HashSet<&[u8]> = HashSet::new();
        let mut dropped = false;
        for (at, header) in headers.iter().enumerate() {
            if header.sh_type.get(LE) != elf::SHT_GROUP {
                continue;
            }
            let words: &[U32<LE>] = pod::slice_from_all_bytes(self.sections[at].data).map_err(|()| {
                malformed("section header", at, "sh_size", header.sh_size.get(LE), "not a multiple of 4")
            })?;
            let symbol = header.sh_info.get(LE);
            let Some(signature) = self.symbol(symbol) else {
                return Err(malformed("section header", at, "sh_info", symbol.into(), "there is no such symbol"));
            };
            let Some((flags, members)) = words.split_first() else {
                return Err(malformed("section header", at, "sh_size", 0, "a group without flags"));
            };
            // If the signature is a section symbol, the signature is the name of that section.
            let signature = match signature.place {
                SymbolPlace::Section(section) if signature.name().is_empty() => {
                    self.sections[index(section.into())].name
                }
                _ => signature.name(),
            };
            let sections = self.sections.len();
            if let Some(member) = members.iter().map(|member| member.get(LE)).find(|at| index((*at).into()) >= sections)
            {
                return Err(malformed("section group", at, "member", member.into(), "there is no such section"));
            }
            let first = signatures.insert(signature);
            if flags.get(LE) & elf::GRP_COMDAT.0 != 0 {
                if first {
                    self.groups.push(ComdatGroup { signature, members });
                    for member in members {
                        self.sections[index(member.get(LE).into())].comdat = true;
                    }
                } else {
                    self.drop_group(members);
                    dropped = true;
                }
            }
        }
        dropped |= self.drop_repeated_linkonce(&mut HashSet::new());
        if dropped {
            self.drop_linked();
        }
        Ok(())
    }

    fn find_relocations(&mut self, headers: &[elf::SectionHeader64<LE>]) -> Result<(), ObjectError> {
        for (at, header) in headers.iter().enumerate() {
            let kind = header.sh_type.get(LE);
            if kind != elf::SHT_RELA && kind != elf::SHT_REL {
                continue;
            }
            let target = header.sh_info.get(LE);
            let Some(section) = self.sections.get(index(target.into())) else {
                return Err(malformed("section header", at, "sh_info", target.into(), "there is no such section"));
            };
            if target == 0 && header.sh_size.get(LE) != 0 {
                return Err(malformed("section header", at, "sh_info", 0, "its relocations are of no section"));
            }
            if !section.kept {
                continue;
            }
            if kind == elf::SHT_REL {
                return Err(malformed(
                    "section header",
                    at,
                    "sh_type",
                    kind.0.into(),
                    "x86-64 relocations have addends",
                ));
            }
            let symbols = headers.get(index(header.sh_link.get(LE).into())).map(|table| table.sh_type.get(LE));
            if symbols != Some(elf::SHT_SYMTAB) {
                let link = header.sh_link.get(LE);
                return Err(malformed("section header", at, "sh_link", link.into(), "not the symbol table"));
            }
            if section.kind == elf::SHT_NOBITS {
                return Err(malformed("section header", at, "sh_info", target.into(), "a section without contents"));
            }
            let records = Records::new(self.sections[at].data).map_err(|_| {
                malformed("section header", at, "sh_size", header.sh_size.get(LE), "no whole number of relocations")
            })?;
            let section = u32::try_from(at).unwrap_or(u32::MAX);
            let relas = if is_klp(kind, self.sections[at].flags) { &mut self.klp_relas } else { &mut self.relas };
            relas.push(Relas { section, target, records });
        }
        Ok(())
    }

    /// No byte of the file may be the contents of two allocated sections.
    fn check_overlaps(&self, headers: &[elf::SectionHeader64<LE>]) -> Result<(), ObjectError> {
        let mut ranges: Vec<(u64, u64, usize)> = self
            .sections
            .iter()
            .zip(headers)
            .enumerate()
            .filter(|(_, (section, _))| section.kept && !section.data.is_empty())
            .map(|(at, (section, header))| (header.sh_offset.get(LE), wide(section.data.len()), at))
            .collect();
        if !ranges.is_sorted() {
            ranges.sort_unstable();
        }
        match ranges.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            Some(pair) => {
                let (offset, _, at) = pair[1];
                Err(malformed("section header", at, "sh_offset", offset, "overlaps the contents of another section"))
            }
            None => Ok(()),
        }
    }
}

fn header(bytes: &[u8]) -> Result<&elf::FileHeader64<LE>, ObjectError> {
    if !bytes.starts_with(b"\x7fELF") {
        return Err(ObjectError::NotAnObject(other_format(bytes)));
    }
    let Ok((header, _)) = pod::from_bytes::<elf::FileHeader64<LE>>(bytes) else {
        return Err(ObjectError::NotAnObject(other_format(&bytes[..4])));
    };
    let field = |field, value, problem| malformed("ELF header", 0, field, value, problem);
    // The machine field has the same offset in both classes, and "this is i386" is more helpful than "this is 32-bit".
    let little = header.e_ident.data == elf::ELFDATA2LSB;
    let machine = header.e_machine.get(LE);
    if little && machine != MACHINE {
        return Err(ObjectError::NotAnObject(other_machine(machine)));
    }
    if header.e_ident.class != elf::ELFCLASS64 {
        return Err(ObjectError::NotAnObject("32-bit"));
    }
    if !little {
        return Err(ObjectError::NotAnObject("big-endian"));
    }
    match header.e_type.get(LE) {
        elf::ET_REL => {}
        elf::ET_DYN => return Err(ObjectError::NotAnObject("a shared object; use dlopen")),
        elf::ET_EXEC => return Err(ObjectError::NotAnObject("an executable")),
        elf::ET_CORE => return Err(ObjectError::NotAnObject("a core dump")),
        other => return Err(field("e_type", other.0.into(), "no type of object")),
    }
    if header.e_ident.version != elf::EV_CURRENT || header.e_version.get(LE) != u32::from(elf::EV_CURRENT.0) {
        return Err(field("e_version", header.e_version.get(LE).into(), "not the one version there is"));
    }
    // Fields that only linked files use.
    let linked = [
        ("e_entry", header.e_entry.get(LE)),
        ("e_phoff", header.e_phoff.get(LE)),
        ("e_phnum", header.e_phnum.get(LE).into()),
        ("e_phentsize", header.e_phentsize.get(LE).into()),
        ("e_flags", header.e_flags.get(LE).0.into()),
        ("EI_ABIVERSION", header.e_ident.abi_version.into()),
    ];
    if let Some((name, value)) = linked.into_iter().find(|(_, value)| *value != 0) {
        return Err(field(name, value, "not 0, as in a relocatable object for x86-64"));
    }
    if !matches!(header.e_ident.os_abi, elf::ELFOSABI_SYSV | elf::ELFOSABI_GNU) {
        return Err(field("EI_OSABI", header.e_ident.os_abi.0.into(), "neither System V nor GNU"));
    }
    if header.e_ehsize.get(LE) != 64 {
        return Err(field("e_ehsize", header.e_ehsize.get(LE).into(), "not 64"));
    }
    if header.e_shentsize.get(LE) != 64 {
        return Err(field("e_shentsize", header.e_shentsize.get(LE).into(), "not 64"));
    }
    Ok(header)
}

fn section_headers<'a>(
    bytes: &'a [u8],
    header: &elf::FileHeader64<LE>,
) -> Result<&'a [elf::SectionHeader64<LE>], ObjectError> {
    let offset = header.e_shoff.get(LE);
    let field = |field, value, problem| malformed("ELF header", 0, field, value, problem);
    let Some(table) = bytes.get(index(offset)..).filter(|_| offset >= 64) else {
        return Err(field("e_shoff", offset, "lies outside the file"));
    };
    let Ok((first, _)) = pod::from_bytes::<elf::SectionHeader64<LE>>(table) else {
        return Err(field("e_shoff", offset, "there is no room for a section header"));
    };
    if first.sh_type.get(LE) != elf::SHT_NULL {
        return Err(field("e_shoff", offset, "what stands there is no section header table"));
    }
    // A number that is too large for e_shnum is in the first header.
    let count = match header.e_shnum.get(LE) {
        0 => first.sh_size.get(LE),
        count => count.into(),
    };
    match pod::slice_from_bytes(table, index(count)) {
        Ok((headers, _)) if count != 0 => Ok(headers),
        _ => Err(field("e_shnum", count, "the section headers do not lie within the file")),
    }
}

fn section_names<'a>(
    bytes: &'a [u8],
    header: &elf::FileHeader64<LE>,
    headers: &[elf::SectionHeader64<LE>],
) -> Result<&'a [u8], ObjectError> {
    let at = match header.e_shstrndx.get(LE) {
        elf::SHN_XINDEX => headers[0].sh_link.get(LE),
        at => at.0.into(),
    };
    let Some(section) = headers.get(index(at.into())).filter(|_| at != 0) else {
        return Err(malformed("ELF header", 0, "e_shstrndx", at.into(), "there is no such section"));
    };
    terminated(contents(bytes, index(at.into()), section)?, index(at.into()), at)
}

fn terminated(strings: &[u8], at: usize, link: u32) -> Result<&[u8], ObjectError> {
    match strings.last() {
        Some(0) | None => Ok(strings),
        Some(_) => Err(malformed("section header", at, "sh_link", link.into(), "a string table that does not end")),
    }
}

fn contents<'a>(bytes: &'a [u8], at: usize, header: &elf::SectionHeader64<LE>) -> Result<&'a [u8], ObjectError> {
    let (offset, size) = (header.sh_offset.get(LE), header.sh_size.get(LE));
    if matches!(header.sh_type.get(LE), elf::SHT_NOBITS | elf::SHT_NULL) || size == 0 {
        return Ok(&[]);
    }
    let Some(rest) = bytes.get(index(offset)..) else {
        return Err(malformed("section header", at, "sh_offset", offset, "lies outside the file"));
    };
    rest.get(..index(size))
        .ok_or_else(|| malformed("section header", at, "sh_size", size, "reaches beyond the file's end"))
}

fn section<'a>(
    bytes: &'a [u8],
    names: &'a [u8],
    at: usize,
    header: &elf::SectionHeader64<LE>,
) -> Result<FileSection<'a>, ObjectError> {
    let field = |field, value, problem| malformed("section header", at, field, value, problem);
    let name = header.sh_name.get(LE);
    if index(name.into()) >= names.len() && name != 0 {
        return Err(field("sh_name", name.into(), "lies behind the string table"));
    }
    let align = header.sh_addralign.get(LE).max(1);
    let flags = header.sh_flags.get(LE);
    let kind = header.sh_type.get(LE);
    // Linux keeps the relocations of a live patch in memory; this loader reads them from the file.
    let allocated = flags.contains(elf::SHF_ALLOC) && !is_klp(kind, flags);
    let kept = allocated && !flags.contains(elf::SHF_EXCLUDE) && at != 0;
    if kept && (!align.is_power_of_two() || align > MAX_ALIGN) {
        return Err(field("sh_addralign", align, "no power of two up to 2 MiB"));
    }
    Ok(FileSection {
        name: string(names, name),
        kind,
        flags,
        size: header.sh_size.get(LE),
        align,
        data: contents(bytes, at, header)?,
        link: header.sh_link.get(LE),
        info: header.sh_info.get(LE),
        kept,
        repeated: false,
        comdat: section_name(string(names, name)).is_some_and(|known| known.name == LINKONCE_PREFIX),
    })
}

fn entries<'a, T: object::Pod>(
    data: &'a [u8],
    at: usize,
    header: &elf::SectionHeader64<LE>,
) -> Result<&'a [T], ObjectError> {
    let size = header.sh_entsize.get(LE);
    if size != wide(size_of::<T>()) {
        return Err(malformed("section header", at, "sh_entsize", size, "not the size of an entry"));
    }
    let whole = pod::slice_from_all_bytes(data);
    whole.map_err(|()| malformed("section header", at, "sh_size", wide(data.len()), "no whole number of entries"))
}
