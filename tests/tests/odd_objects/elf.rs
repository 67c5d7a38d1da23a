//! Writes relocatable objects byte for byte, with any requested oddity.

use modload_edit::wide;

pub(crate) const PROGBITS: u32 = 1;
pub(crate) const NOTE: u32 = 7;
pub(crate) const NOBITS: u32 = 8;
pub(crate) const INIT_ARRAY: u32 = 14;
pub(crate) const GROUP: u32 = 17;
pub(crate) const CREL: u32 = 0x4000_0014;
pub(crate) const ADDRSIG: u32 = 0x6fff_4c03;

pub(crate) const WRITE: u64 = 1;
pub(crate) const ALLOC: u64 = 2;
pub(crate) const EXEC: u64 = 4;
pub(crate) const MERGE: u64 = 0x10;
pub(crate) const STRINGS: u64 = 0x20;
pub(crate) const LINK_ORDER: u64 = 0x80;
pub(crate) const IN_GROUP: u64 = 0x200;
pub(crate) const RETAIN: u64 = 0x20_0000;
pub(crate) const LARGE: u64 = 0x1000_0000;
pub(crate) const EXCLUDE: u64 = 0x8000_0000;

/// Which section a symbol is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Home {
    Undefined,
    Absolute,
    Common,
    LargeCommon,
    Section(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bind {
    Local = 0,
    Global = 1,
    Weak = 2,
    Unique = 10,
}

#[derive(Clone, Debug)]
pub(crate) struct Symbol {
    pub(crate) name: String,
    pub(crate) bind: Bind,
    /// STT_NOTYPE 0, STT_OBJECT 1, STT_FUNC 2, STT_SECTION 3, STT_GNU_IFUNC 10.
    pub(crate) kind: u8,
    /// STV_DEFAULT 0, STV_INTERNAL 1, STV_HIDDEN 2, STV_PROTECTED 3.
    pub(crate) visibility: u8,
    pub(crate) home: Home,
    pub(crate) value: u64,
    pub(crate) size: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rela {
    pub(crate) offset: u64,
    pub(crate) kind: u32,
    /// Index in [`Object::symbols`].
    pub(crate) symbol: usize,
    pub(crate) addend: i64,
}

#[derive(Clone, Default, Debug)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) kind: u32,
    pub(crate) flags: u64,
    pub(crate) align: u64,
    pub(crate) data: Vec<u8>,
    /// Of NOBITS.
    pub(crate) zeros: u64,
    pub(crate) entry_size: u64,
    /// For SHF_LINK_ORDER: a section.
    pub(crate) link: Option<usize>,
    pub(crate) relas: Vec<Rela>,
}

/// Sections that belong together.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Index in [`Object::symbols`].
    pub(crate) signature: usize,
    pub(crate) comdat: bool,
    pub(crate) members: Vec<usize>,
}

#[derive(Clone, Default, Debug)]
pub(crate) struct Object {
    pub(crate) sections: Vec<Section>,
    pub(crate) symbols: Vec<Symbol>,
    pub(crate) groups: Vec<Group>,
}

/// How relocations are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Relocations {
    Plain,
    Compact,
}

struct Header {
    name: u32,
    kind: u32,
    flags: u64,
    offset: u64,
    size: u64,
    link: u32,
    info: u32,
    align: u64,
    entry: u64,
}

fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap()
}

fn string(table: &mut Vec<u8>, text: &str) -> u32 {
    if text.is_empty() {
        return 0;
    }
    let at = narrow(table.len());
    table.extend(text.as_bytes());
    table.push(0);
    at
}

impl Object {
    pub(crate) fn section(&mut self, section: Section) -> usize {
        self.sections.push(section);
        self.sections.len() - 1
    }

    pub(crate) fn symbol(&mut self, symbol: Symbol) -> usize {
        self.symbols.push(symbol);
        self.symbols.len() - 1
    }

    /// Returns the object's bytes. Groups come first, as compilers write them, then sections, each before its
    /// relocations.
    pub(crate) fn write(&self, relocations: Relocations) -> Vec<u8> {
        // Local symbols come first.
        let mut order: Vec<usize> = (0..self.symbols.len()).collect();
        order.sort_by_key(|at| self.symbols[*at].bind != Bind::Local);
        let mut number = vec![0_u32; self.symbols.len()];
        order.iter().zip(1..).for_each(|(at, to)| number[*at] = to);
        let first_global = order.iter().filter(|at| self.symbols[**at].bind == Bind::Local).count() + 1;

        // Indices of sections: null, groups, then each section and its relocations.
        let mut next = 1 + narrow(self.groups.len());
        let mut index = Vec::new();
        for section in &self.sections {
            index.push(next);
            next += if section.relas.is_empty() { 1 } else { 2 };
        }
        let (symtab, strtab, shstrtab) = (next, next + 1, next + 2);

        let mut bytes = vec![0_u8; 64];
        let mut names = vec![0_u8];
        let mut headers =
            vec![Header { name: 0, kind: 0, flags: 0, offset: 0, size: 0, link: 0, info: 0, align: 0, entry: 0 }];
        let place = |bytes: &mut Vec<u8>, data: &[u8], align: u64| {
            let align = usize::try_from(align.clamp(1, 16)).unwrap();
            bytes.resize(bytes.len().next_multiple_of(align), 0);
            let at = wide(bytes.len());
            bytes.extend(data);
            at
        };
        for group in &self.groups {
            let mut words = u32::from(group.comdat).to_le_bytes().to_vec();
            for member in &group.members {
                words.extend(index[*member].to_le_bytes());
                if !self.sections[*member].relas.is_empty() {
                    words.extend((index[*member] + 1).to_le_bytes());
                }
            }
            let offset = place(&mut bytes, &words, 4);
            let (name, info) = (string(&mut names, ".group"), number[group.signature]);
            let size = wide(words.len());
            headers.push(Header { name, kind: GROUP, flags: 0, offset, size, link: symtab, info, align: 4, entry: 4 });
        }
        for (section, at) in self.sections.iter().zip(&index) {
            let name = string(&mut names, &section.name);
            let offset = place(&mut bytes, &section.data, section.align);
            let size = if section.kind == NOBITS { section.zeros } else { wide(section.data.len()) };
            let link = section.link.map_or(0, |to| index[to]);
            let (kind, flags, align, entry) = (section.kind, section.flags, section.align, section.entry_size);
            headers.push(Header { name, kind, flags, offset, size, link, info: 0, align, entry });
            if section.relas.is_empty() {
                continue;
            }
            let (prefix, kind, entry) = match relocations {
                Relocations::Plain => (".rela", 4, 24),
                Relocations::Compact => (".crel", CREL, 1),
            };
            let data = match relocations {
                Relocations::Plain => plain(&section.relas, &number),
                Relocations::Compact => compact(&section.relas, &number),
            };
            let (name, offset) =
                (string(&mut names, &format!("{prefix}{}", section.name)), place(&mut bytes, &data, 8));
            let flags = 0x40 | section.flags & IN_GROUP;
            let size = wide(data.len());
            headers.push(Header { name, kind, flags, offset, size, link: symtab, info: *at, align: 8, entry });
        }
        let (mut symbols, mut strings) = (vec![0_u8; 24], vec![0_u8]);
        for at in &order {
            let Symbol { name, bind, kind, visibility, home, value, size } = &self.symbols[*at];
            let shndx = match home {
                Home::Undefined => 0,
                Home::Absolute => 0xfff1,
                Home::Common => 0xfff2,
                Home::LargeCommon => 0xff02,
                Home::Section(section) => index[*section],
            };
            let bind = match bind {
                Bind::Local => 0,
                Bind::Global => 1,
                Bind::Weak => 2,
                Bind::Unique => 10,
            };
            symbols.extend(string(&mut strings, name).to_le_bytes());
            symbols.extend([bind << 4 | kind, *visibility]);
            symbols.extend(u16::try_from(shndx).unwrap().to_le_bytes());
            symbols.extend(value.to_le_bytes());
            symbols.extend(size.to_le_bytes());
        }
        let offset = place(&mut bytes, &symbols, 8);
        let (name, info, size) = (string(&mut names, ".symtab"), narrow(first_global), wide(symbols.len()));
        headers.push(Header { name, kind: 2, flags: 0, offset, size, link: strtab, info, align: 8, entry: 24 });
        let offset = place(&mut bytes, &strings, 1);
        let (name, size) = (string(&mut names, ".strtab"), wide(strings.len()));
        headers.push(Header { name, kind: 3, flags: 0, offset, size, link: 0, info: 0, align: 1, entry: 0 });
        let name = string(&mut names, ".shstrtab");
        let (offset, size) = (place(&mut bytes, &names, 1), wide(names.len()));
        headers.push(Header { name, kind: 3, flags: 0, offset, size, link: 0, info: 0, align: 1, entry: 0 });

        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let table = wide(bytes.len());
        for Header { name, kind, flags, offset, size, link, info, align, entry } in &headers {
            bytes.extend(name.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend([0; 8]);
            bytes.extend(offset.to_le_bytes());
            bytes.extend(size.to_le_bytes());
            bytes.extend(link.to_le_bytes());
            bytes.extend(info.to_le_bytes());
            bytes.extend(align.to_le_bytes());
            bytes.extend(entry.to_le_bytes());
        }
        // Only with GNU's extensions may there be STB_GNU_UNIQUE and STT_GNU_IFUNC.
        let gnu = self.symbols.iter().any(|symbol| symbol.bind == Bind::Unique || symbol.kind == 10);
        bytes[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, if gnu { 3 } else { 0 }]);
        let count = u16::try_from(headers.len()).unwrap();
        for (at, field) in [(16, &1_u16.to_le_bytes()[..]), (18, &62_u16.to_le_bytes()), (20, &1_u32.to_le_bytes())] {
            bytes[at..at + field.len()].copy_from_slice(field);
        }
        bytes[40..48].copy_from_slice(&table.to_le_bytes());
        let last = u16::try_from(shstrtab).unwrap();
        for (at, field) in [(52, 64_u16), (58, 64), (60, count), (62, last)] {
            bytes[at..at + 2].copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

fn plain(relas: &[Rela], number: &[u32]) -> Vec<u8> {
    let mut data = Vec::new();
    for rela in relas {
        data.extend(rela.offset.to_le_bytes());
        data.extend(rela.kind.to_le_bytes());
        data.extend(number[rela.symbol].to_le_bytes());
        data.extend(rela.addend.to_le_bytes());
    }
    data
}

fn unsigned(data: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        data.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    data.push(u8::try_from(value).unwrap());
}

fn signed(data: &mut Vec<u8>, mut value: i64) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap();
        value >>= 7;
        if value == if low & 0x40 == 0 { 0 } else { -1 } {
            data.push(low);
            return;
        }
        data.push(low | 0x80);
    }
}

/// Compact relocations with addends and without a shift.
fn compact(relas: &[Rela], number: &[u32]) -> Vec<u8> {
    let mut data = Vec::new();
    unsigned(&mut data, wide(relas.len()) << 3 | 4);
    let (mut offset, mut symbol, mut kind, mut addend) = (0_u64, 0_i64, 0_i64, 0_i64);
    for rela in relas {
        let delta = rela.offset.wrapping_sub(offset);
        let changes =
            [i64::from(number[rela.symbol]) - symbol, i64::from(rela.kind) - kind, rela.addend.wrapping_sub(addend)];
        let flags =
            changes.iter().zip([1, 2, 4]).filter(|(change, _)| **change != 0).map(|(_, flag)| flag).sum::<u64>();
        let first = flags | (delta & 0xf) << 3;
        if delta < 0x10 {
            data.push(u8::try_from(first).unwrap());
        } else {
            data.push(u8::try_from(first).unwrap() | 0x80);
            unsigned(&mut data, delta >> 4);
        }
        changes.iter().filter(|change| **change != 0).for_each(|change| signed(&mut data, *change));
        (offset, symbol, kind, addend) = (rela.offset, number[rela.symbol].into(), rela.kind.into(), rela.addend);
    }
    data
}
