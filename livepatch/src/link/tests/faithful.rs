//! Compares the output of `link` with its input: which relocations moved, how they moved, and that nothing else
//! changed.

use modload_abi::record::FixedRecord as _;
use modload_abi::{Rela, section};
use object::LittleEndian as LE;
use object::elf::{self, FileHeader64, SectionHeader64, Sym64};
use object::pod;
use object::read::elf::{FileHeader as _, SectionHeader as _, SectionTable, SymbolTable};

/// A file, read by `object`.
pub(super) struct View<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) sections: SectionTable<'a, FileHeader64<LE>>,
    pub(super) symbols: SymbolTable<'a, FileHeader64<LE>>,
}

impl<'a> View<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> View<'a> {
        let header = FileHeader64::<LE>::parse(bytes).unwrap();
        let sections = header.sections(LE, bytes).unwrap();
        let symbols = sections.symbols(LE, bytes, elf::SHT_SYMTAB).unwrap();
        View { bytes, sections, symbols }
    }

    fn headers(&self) -> &'a [SectionHeader64<LE>] {
        let mut all = self.sections.iter();
        let count = all.len();
        let first = all.next().unwrap();
        // The table is one slice; `object` returns it header by header.
        let start = std::ptr::from_ref(first).addr() - self.bytes.as_ptr().addr();
        pod::slice_from_bytes(&self.bytes[start..], count).unwrap().0
    }

    pub(super) fn name(&self, header: &SectionHeader64<LE>) -> String {
        String::from_utf8(self.sections.section_name(LE, header).unwrap().to_vec()).unwrap()
    }

    fn data(&self, header: &SectionHeader64<LE>) -> &'a [u8] {
        if header.sh_type(LE) == elf::SHT_NULL { &[] } else { header.data(LE, self.bytes).unwrap() }
    }

    fn symbol(&self, at: usize) -> (&'a Sym64<LE>, String) {
        let symbol = &self.symbols.symbols()[at];
        (symbol, String::from_utf8(self.symbols.symbol_name(LE, symbol).unwrap().to_vec()).unwrap())
    }

    fn target(&self, header: &SectionHeader64<LE>) -> &'a SectionHeader64<LE> {
        &self.headers()[usize::try_from(header.sh_info.get(LE)).unwrap()]
    }

    /// Returns the relocations of a section as bytes.
    fn records(&self, header: &SectionHeader64<LE>) -> Vec<&'a [u8]> {
        self.data(header).chunks_exact(Rela::SIZE).collect()
    }
}

fn is_waiting(header: &SectionHeader64<LE>) -> bool {
    header.sh_flags.get(LE).0 & section::SHF_RELA_LIVEPATCH != 0
}

/// Returns the object of a mark, if the name is one, and Linux's name for the symbol.
fn marked(name: &str) -> Option<(String, String)> {
    let mut parts = name.strip_prefix(section::KLP_MARK_PREFIX)?.splitn(2, '.');
    let (object, rest) = (parts.next()?, parts.next()?);
    let (name, position) = rest.rsplit_once('.')?;
    Some((object.to_owned(), format!(".klp.sym.{object}.{name},{position}")))
}

/// Panics if anything differs from the expected output. Returns the number of relocations that wait, and the number
/// that stay in loaded sections.
pub(super) fn check(before: &[u8], after: &[u8]) -> (usize, usize) {
    let (old, new) = (View::new(before), View::new(after));
    let (olds, news) = (old.headers(), new.headers());
    let strings = [old.symbols.string_section().0, {
        let header = FileHeader64::<LE>::parse(before).unwrap();
        usize::try_from(header.shstrndx(LE, before).unwrap()).unwrap()
    }];
    check_symbols(&old, &new);
    for (at, header) in olds.iter().enumerate() {
        let now = &news[at];
        let (name, kind) = (old.name(header), header.sh_type(LE));
        if strings.contains(&at) || kind == elf::SHT_GROUP {
            assert!(new.data(now).starts_with(old.data(header)), "{name}");
        } else if kind != elf::SHT_SYMTAB && kind != elf::SHT_RELA {
            assert_eq!(new.data(now), old.data(header), "{name}");
        }
        if !is_waiting(now) {
            assert_eq!(new.name(now), name);
            let fields = |header: &SectionHeader64<LE>| {
                let SectionHeader64 { sh_type, sh_flags, sh_addr, sh_link, sh_info, sh_addralign, sh_entsize, .. } =
                    header;
                let (kind, flags, addr) = (sh_type.get(LE), sh_flags.get(LE), sh_addr.get(LE));
                (kind, flags, addr, sh_link.get(LE), sh_info.get(LE), sh_addralign.get(LE), sh_entsize.get(LE))
            };
            assert_eq!(fields(now), fields(header), "{name}");
        }
    }
    assert!(news[olds.len()..].iter().all(is_waiting), "nothing else is added");
    check_relocations(&old, &new)
}

fn check_symbols(old: &View<'_>, new: &View<'_>) {
    assert_eq!(new.symbols.len(), old.symbols.len());
    for at in 0..old.symbols.len() {
        let ((before, name), (after, now)) = (old.symbol(at), new.symbol(at));
        let Some((_, expected)) = marked(&name) else {
            assert_eq!((pod::bytes_of(after), now), (pod::bytes_of(before), name));
            continue;
        };
        assert_eq!(now, expected);
        let Sym64 { st_info, st_other, st_shndx, st_value, st_size, .. } = after;
        assert_eq!((st_info.0, st_other.0), (0x10, 0), "global, without type, visible");
        assert_eq!((st_shndx.get(LE).0, st_value.get(LE), st_size.get(LE)), (0xff20, 0, 0));
    }
}

fn check_relocations(old: &View<'_>, new: &View<'_>) -> (usize, usize) {
    let (olds, news) = (old.headers(), new.headers());
    let (mut waiting, mut staying) = (0, 0);
    for (at, header) in olds.iter().enumerate().filter(|(_, header)| header.sh_type(LE) == elf::SHT_RELA) {
        let target = old.target(header);
        let records = old.records(header);
        if !target.sh_flags.get(LE).contains(elf::SHF_ALLOC) {
            assert_eq!(new.records(&news[at]), records, "what is not loaded stays");
            continue;
        }
        let object_of = |record: &[u8]| {
            marked(&old.symbol(usize::try_from(Rela::read(record).symbol).unwrap()).1).map(|(object, _)| object)
        };
        let own = |object: Option<&str>| -> Vec<&[u8]> {
            records.iter().copied().filter(|record| object_of(record).as_deref() == object).collect()
        };
        let stays = own(None);
        staying += stays.len();
        if stays.len() == records.len() || !stays.is_empty() {
            assert_eq!(new.records(&news[at]), stays, "in order");
        }
        let mut objects: Vec<String> = records.iter().filter_map(|record| object_of(record)).collect();
        objects.sort();
        objects.dedup();
        for object in objects {
            let name = format!(".klp.rela.{object}.{}", old.name(target));
            let mut named =
                news.iter().filter(|now| new.name(now) == name && now.sh_info.get(LE) == header.sh_info.get(LE));
            let now = named.next().unwrap_or_else(|| panic!("there is no {name}"));
            assert!(named.next().is_none(), "{name} is there twice");
            assert_eq!(new.records(now), own(Some(&object)), "{name}, in order");
            // SHF_ALLOC, SHF_INFO_LINK and SHF_RELA_LIVEPATCH, and SHF_GROUP like the others.
            assert_eq!(now.sh_flags.get(LE).0, 0x10_0042 | header.sh_flags.get(LE).0 & 0x200, "{name}");
            assert_eq!((now.sh_type.get(LE), now.sh_addralign.get(LE), now.sh_entsize.get(LE)), (elf::SHT_RELA, 8, 24));
            assert_eq!(news[usize::try_from(now.sh_link.get(LE)).unwrap()].sh_type(LE), elf::SHT_SYMTAB);
            assert_eq!(now.sh_offset.get(LE) % 8, 0);
            waiting += own(Some(&object)).len();
        }
    }
    (waiting, staying)
}
