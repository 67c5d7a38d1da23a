//! The part of a loader that this crate leaves to its caller: reads an object, assigns the addresses of a [`Layout`],
//! and relocates the object.

use std::collections::{BTreeMap, BTreeSet};

use modload_abi::{Records, Rela};
use modload_edit::{Addr, EditSet, Window};
use modload_relocs::{
    OnDiscarded, RelocCounts, RelocError, RelocSymbol, RelocSymbolKind, RelocatedSection, SlotPlan, Slots, TlsBlock,
    TlsBlocks, apply, clear, name, relaxes_local_dynamic,
};
use object::elf::{SHF_TLS, SHN_ABS, SHN_UNDEF, STB_WEAK};
use object::read::elf::{ElfFile64, SectionHeader, Sym};
use object::{Endianness, Object, ObjectSection};

use crate::tools::Layout;

/// An object with addresses.
pub(crate) struct Module {
    sections: BTreeMap<String, Vec<u8>>,
    relocations: Vec<Relocations>,
    symbols: Vec<RelocSymbol>,
    layout: Layout,
    /// The thread-local storage, with fixed offsets as in an executable.
    tls: TlsBlocks,
    /// Whether calls of undefined functions may use PLT entries.
    plt: bool,
}

struct Relocations {
    section: u32,
    target: String,
    records: Vec<u8>,
}

/// A relocated module.
pub(crate) struct Relocated {
    /// The sections that have relocations, `.got` without its reserved slots, and the PLT as `.plt.got`.
    pub(crate) sections: BTreeMap<String, Vec<u8>>,
    /// The statistics.
    pub(crate) counts: RelocCounts,
    /// The GOT slots and PLT entries.
    pub(crate) slots: Slots,
}

impl Module {
    /// Reads the object and assigns its addresses.
    pub(crate) fn new(object: &[u8], layout: &Layout) -> Module {
        let file = ElfFile64::<Endianness>::parse(object).unwrap();
        let mut module = Module {
            sections: BTreeMap::new(),
            relocations: Vec::new(),
            symbols: Vec::new(),
            layout: layout.clone(),
            tls: TlsBlocks::default(),
            plt: true,
        };
        let mut names = vec![String::new()];
        let is_thread_local =
            |header: &object::elf::SectionHeader64<Endianness>| header.sh_flags(file.endian()).contains(SHF_TLS);
        let address = |name: &str| layout.sections.get(name).copied().unwrap_or_default();
        let table = file.elf_section_table();
        let variables = table.iter().filter(|header| is_thread_local(header)).map(|header| {
            let at = address(std::str::from_utf8(table.section_name(file.endian(), header).unwrap()).unwrap());
            (at, at + header.sh_size(file.endian()), header.sh_addralign(file.endian()))
        });
        // The thread pointer lies behind the block, at a multiple of its alignment (psABI, 3.4.6).
        let (start, end, align) =
            variables.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1), a.2.max(b.2))).unwrap_or((0, 0, 1));
        let size = i64::try_from((end - start).next_multiple_of(align)).unwrap();
        module.tls = TlsBlocks {
            blocks: vec![TlsBlock { number: 0, from_thread_pointer: Some(-size) }],
            get_addr: Addr::new(layout.symbols.get("__tls_get_addr").copied().unwrap_or_default()),
            resolver: Addr::NULL,
            relax_local: true,
        };
        for section in file.sections() {
            names.push(section.name().unwrap().to_owned());
            module.sections.insert(section.name().unwrap().to_owned(), section.data().unwrap().to_vec());
        }
        for (index, header) in file.elf_section_table().enumerate() {
            if header.sh_type(file.endian()) == object::elf::SHT_RELA {
                let target = names[usize::try_from(header.sh_info(file.endian())).unwrap()].clone();
                let records = header.data(file.endian(), object).unwrap().to_vec();
                module.relocations.push(Relocations { section: u32::try_from(index.0).unwrap(), target, records });
            }
        }
        for symbol in file.elf_symbol_table().iter() {
            let at = file.elf_symbol_table().symbol_name(file.endian(), symbol).unwrap();
            let own = symbol.st_value(file.endian());
            let given = layout.symbols.get(std::str::from_utf8(at).unwrap()).copied();
            let (addr, kind) = match symbol.st_shndx(file.endian()) {
                SHN_UNDEF if at.is_empty() => (0, RelocSymbolKind::Absolute),
                SHN_UNDEF if at == b"_GLOBAL_OFFSET_TABLE_" => (layout.sections[".got"], RelocSymbolKind::Defined),
                SHN_UNDEF => match given {
                    Some(given) => (given, RelocSymbolKind::External),
                    None if symbol.st_bind() == STB_WEAK => (0, RelocSymbolKind::UndefinedWeak),
                    None => panic!("the layout does not define {}", at.escape_ascii()),
                },
                SHN_ABS => (own, RelocSymbolKind::Absolute),
                section => {
                    let base = address(&names[usize::from(section.0)]);
                    match is_thread_local(table.section(object::SectionIndex(section.0.into())).unwrap()) {
                        true => (base + own - start, RelocSymbolKind::ThreadLocal(0)),
                        false => (base.wrapping_add(own), RelocSymbolKind::Defined),
                    }
                }
            };
            module.symbols.push(RelocSymbol { addr: Addr::new(addr), size: symbol.st_size(file.endian()), kind });
        }
        let is_relaxed = |table: &Relocations| {
            relaxes_local_dynamic(&module.sections[&table.target], Records::new(&table.records).unwrap())
        };
        module.tls.relax_local = module.relocations.iter().all(is_relaxed);
        module
    }

    /// Returns this module without PLT entries: every call must reach its function.
    pub(crate) fn without_plt(self) -> Module {
        Module { plt: false, ..self }
    }

    fn tables(&self) -> impl Iterator<Item = (&Relocations, Records<'_, Rela>)> {
        self.relocations.iter().map(|table| (table, Records::new(&table.records).unwrap()))
    }

    /// Returns the names of the relocations that occur.
    pub(crate) fn rows(&self) -> BTreeSet<&'static str> {
        self.tables().flat_map(|(_, records)| records.iter().map(|rela| name(rela.kind).unwrap())).collect()
    }

    /// Returns how many GOT slots the module needs, without the reserved ones.
    pub(crate) fn slots(&self) -> u64 {
        self.plan(0).got_size() / 8
    }

    /// Plans the slots. The first `reserved` slots go to invented symbols, because ld reserves that many for itself.
    fn plan(&self, reserved: u32) -> SlotPlan {
        let symbols = u32::try_from(self.symbols.len()).unwrap();
        let mut plan = SlotPlan::new(symbols + reserved);
        for symbol in symbols..symbols + reserved {
            let mut record = vec![0; 8];
            record.extend(9_u32.to_le_bytes());
            record.extend(symbol.to_le_bytes());
            record.extend([0; 8]);
            plan.scan(0, Records::new(&record).unwrap(), |_| false);
        }
        for (table, records) in self.tables() {
            plan.scan(table.section, records, |symbol| {
                self.plt && self.symbols[usize::try_from(symbol).unwrap()].kind == RelocSymbolKind::External
            });
        }
        plan
    }

    /// Relocates the module. Checks that [`clear`] restores every byte and that the edits are disjoint.
    pub(crate) fn relocate(&self, reserved: u32) -> Result<Relocated, RelocError> {
        let address = |name: &str| Addr::new(self.layout.sections.get(name).copied().unwrap_or_default());
        let plan = self.plan(reserved);
        let mut got = vec![0; usize::try_from(plan.got_size()).unwrap()];
        let mut plt = vec![0xcc; usize::try_from(plan.plt_size()).unwrap()];
        let slots = plan.place(address(".got"), address(".plt.got")).with_thread_local(self.tls.clone());
        let mut symbols = self.symbols.clone();
        let nothing = RelocSymbol { addr: Addr::NULL, size: 0, kind: RelocSymbolKind::Absolute };
        symbols.extend((0..reserved).map(|_| nothing));
        slots.fill_got(&symbols[..], &mut Window::new(slots.got(), &mut got))?;
        slots.fill_plt(&mut Window::new(slots.plt(), &mut plt))?;

        let mut relocated = Relocated { sections: BTreeMap::new(), counts: RelocCounts::default(), slots };
        for (table, records) in self.tables() {
            let file = &self.sections[&table.target];
            let addr = address(&table.target);
            let target = RelocatedSection { section: table.section, addr, bytes: file, discarded: OnDiscarded::Refuse };
            let slots = &relocated.slots;
            let mut bytes = file.clone();
            let mut window = Window::new(addr, &mut bytes);
            let counts = apply(&target, records, &symbols[..], slots, &mut window)?;

            let mut back = bytes.clone();
            clear(&target, records, &symbols[..], slots, &mut Window::new(addr, &mut back))?;
            assert_eq!(back, *file, "clear leaves something behind in {}", table.target);
            let mut plan = EditSet::new();
            apply(&target, records, &symbols[..], slots, &mut plan)?;
            // The call in a relaxed sequence has a record of its own.
            let calls =
                records.iter().filter(|rela| matches!(name(rela.kind), Some("R_X86_64_TLSGD" | "R_X86_64_TLSLD")));
            assert_eq!(plan.len() + calls.count(), usize::try_from(counts.total()).unwrap(), "one edit a relocation");

            relocated.counts += counts;
            relocated.sections.insert(table.target.clone(), bytes);
        }
        let reserved = usize::try_from(reserved).unwrap() * 8;
        if !plt.is_empty() {
            relocated.sections.insert(".plt.got".to_owned(), plt);
        }
        if got.len() > reserved {
            relocated.sections.insert(".got".to_owned(), got.split_off(reserved));
        }
        Ok(relocated)
    }
}
