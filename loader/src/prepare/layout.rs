//! Stage *layout*: gives each kept section a part of memory and an offset there, and counts everything that a linker
//! would supply (GOT, PLT, COMMON, `__start_X`, the module's own handle), before any address is known.

use std::collections::BTreeMap;

use modload_abi::livepatch::{self, KlpSymbol};
use modload_abi::section;
use modload_edit::index;
use modload_relocs::{IndirectPlan, SlotPlan};
use object::elf;

use crate::elf::error::ObjectError;
use crate::elf::file::{File, FileSection, FileSymbol, SymbolPlace};
use crate::prepare::vague::{self, SharedDefinitions};
use crate::prepare::x86_64::{THUNK, THUNKS, thunk};
use crate::vocabulary::rewriting::HostOperations;

/// A part of a module's memory: one range of one stripe.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum MemoryPart {
    Text,
    InitText,
    ReadOnly,
    InitReadOnly,
    Data,
    InitData,
    RoAfterInit,
}

impl MemoryPart {
    pub(crate) const COUNT: usize = 7;
    pub(crate) const ALL: [MemoryPart; MemoryPart::COUNT] = [
        MemoryPart::Text,
        MemoryPart::InitText,
        MemoryPart::ReadOnly,
        MemoryPart::InitReadOnly,
        MemoryPart::Data,
        MemoryPart::InitData,
        MemoryPart::RoAfterInit,
    ];

    pub(crate) fn slot(self) -> usize {
        match self {
            MemoryPart::Text => 0,
            MemoryPart::InitText => 1,
            MemoryPart::ReadOnly => 2,
            MemoryPart::InitReadOnly => 3,
            MemoryPart::Data => 4,
            MemoryPart::InitData => 5,
            MemoryPart::RoAfterInit => 6,
        }
    }

    /// Whether this part is dropped when `init` has returned.
    pub(crate) fn is_init(self) -> bool {
        matches!(self, MemoryPart::InitText | MemoryPart::InitReadOnly | MemoryPart::InitData)
    }

    pub(crate) fn is_text(self) -> bool {
        matches!(self, MemoryPart::Text | MemoryPart::InitText)
    }

    /// Where a section belongs.
    pub(crate) fn of(section: &FileSection<'_>) -> MemoryPart {
        let named = |name: &str| section.name.starts_with(name.as_bytes());
        let is = |name: &str| {
            section.name.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'.')
        };
        let constructors = is(section::INIT_ARRAY) || is(section::CTORS);
        let init = named(section::INIT_PREFIX) || constructors;
        let relocated_only =
            constructors || is(section::FINI_ARRAY) || is(section::DTORS) || is(section::RELOCATED_READ_ONLY);
        if section.flags.contains(elf::SHF_EXECINSTR) {
            return if init { MemoryPart::InitText } else { MemoryPart::Text };
        }
        if section.flags.contains(elf::SHF_TLS) {
            // The image from which each thread's copy is made, until the block has its own.
            return MemoryPart::InitReadOnly;
        }
        if is(section::RO_AFTER_INIT) {
            return MemoryPart::RoAfterInit;
        }
        match (section.flags.contains(elf::SHF_WRITE) && !relocated_only, init) {
            (true, true) => MemoryPart::InitData,
            (true, false) => MemoryPart::Data,
            (false, true) => MemoryPart::InitReadOnly,
            (false, false) => MemoryPart::ReadOnly,
        }
    }
}

/// Size and alignment of a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PartSpace {
    pub(crate) size: u64,
    pub(crate) align: u64,
}

impl PartSpace {
    const EMPTY: PartSpace = PartSpace { size: 0, align: 1 };

    /// Adds a block at the end; returns the offset of the block.
    fn add(&mut self, size: u64, align: u64) -> Option<u64> {
        let offset = self.size.checked_next_multiple_of(align)?;
        self.size = offset.checked_add(size)?;
        self.align = self.align.max(align);
        Some(offset)
    }
}

/// A place in a module's memory, without address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Spot {
    pub(crate) part: MemoryPart,
    pub(crate) offset: u64,
}

/// Size of the target of `__this_module`, a `struct module` of the SDK. The target of `__dso_handle` follows.
const THIS_MODULE_SIZE: u64 = 64;
const DSO_HANDLE_SIZE: u64 = 8;

/// The places of everything in a module.
#[derive(Debug)]
pub(crate) struct ModuleLayout {
    /// By [`MemoryPart::slot`].
    pub(crate) parts: [PartSpace; MemoryPart::COUNT],
    /// By section index; `None` for a section that is not kept.
    pub(crate) sections: Vec<Option<Spot>>,
    /// COMMON symbols, by symbol index, in order.
    pub(crate) commons: Vec<(u32, Spot)>,
    /// Undefined symbols, by index.
    pub(crate) undefined: Vec<u32>,
    /// A live patch's symbols, by index.
    pub(crate) livepatch: Vec<u32>,
    pub(crate) slots: SlotPlan,
    pub(crate) got: Spot,
    pub(crate) plt: Spot,
    /// Indirect functions.
    pub(crate) indirect: IndirectPlan,
    /// The PLT entries of indirect functions.
    pub(crate) indirect_plt: Spot,
    /// The slots of indirect functions.
    pub(crate) indirect_slots: Spot,
    /// The module's `struct module`, if the module refers to one.
    pub(crate) this_module: Option<Spot>,
    /// The symbol of the host's operations table, and the place of the module's copy of that table.
    pub(crate) operations: Option<(u32, Spot)>,
    /// Thunks for branches through registers, and one for returns, if the module refers to any.
    pub(crate) thunks: Option<Spot>,
    /// The module's thread-local variables.
    pub(crate) thread_local: Option<ThreadLocalLayout>,
    /// The functions that find thread-local variables, if the module has or uses any.
    pub(crate) resolvers: Option<Spot>,
}

/// A module's thread-local variables: the sections with SHF_TLS, one after the other as in a linked object's PT_TLS
/// segment, those with contents first.
#[derive(Debug)]
pub(crate) struct ThreadLocalLayout {
    /// The size and the alignment of a thread's copy.
    pub(crate) space: PartSpace,
    /// The image from which copies are made. The rest of a copy is zero.
    pub(crate) image: Spot,
    /// The size of the image.
    pub(crate) image_size: u64,
    /// Whether code of the module needs a fixed offset from the thread pointer.
    pub(crate) is_fixed: bool,
    /// The offset of each section in a copy, by section index.
    offsets: Vec<(u32, u64)>,
}

impl ThreadLocalLayout {
    /// Returns the layout of the sections, without the place of the image; `None` if there are none.
    fn of(file: &File<'_>, limit: u64) -> Result<Option<ThreadLocalLayout>, ObjectError> {
        let is_thread_local = |section: &FileSection<'_>| section.kept && section.flags.contains(elf::SHF_TLS);
        let sections = (0..).zip(&file.sections).filter(|(_, section)| is_thread_local(section));
        let (bytes, zeros): (Vec<_>, Vec<_>) = sections.partition(|(_, section)| section.kind != elf::SHT_NOBITS);
        if bytes.is_empty() && zeros.is_empty() {
            return Ok(None);
        }
        let (mut space, mut offsets, mut image_size) = (PartSpace::EMPTY, Vec::new(), 0);
        for (at, section) in bytes.into_iter().chain(zeros) {
            let offset = space.add(section.size, section.align).filter(|_| space.size <= limit);
            let offset =
                offset.ok_or(ObjectError::TooLarge { bytes: space.size.saturating_add(section.size), limit })?;
            if section.kind != elf::SHT_NOBITS {
                image_size = space.size;
            }
            offsets.push((at, offset));
        }
        let image = Spot { part: MemoryPart::InitReadOnly, offset: 0 };
        Ok(Some(ThreadLocalLayout { space, image, image_size, is_fixed: false, offsets }))
    }

    /// Returns the offset of a section in a copy, if it is one of thread-local variables.
    pub(crate) fn offset(&self, section: u32) -> Option<u64> {
        self.offsets.iter().find(|(at, _)| *at == section).map(|(_, offset)| *offset)
    }
}

impl ModuleLayout {
    /// Bytes of all parts.
    pub(crate) fn size(&self) -> u64 {
        self.parts.iter().map(|space| space.size).sum()
    }

    /// Returns the place of a COMMON symbol.
    pub(crate) fn common(&self, symbol: u32) -> Option<Spot> {
        let at = self.commons.binary_search_by_key(&symbol, |common| common.0).ok()?;
        Some(self.commons[at].1)
    }

    /// The PLT entry of an indirect function of the module's.
    pub(crate) fn indirect(&self, symbol: u32) -> Option<Spot> {
        let Spot { part, offset } = self.indirect_plt;
        Some(Spot { part, offset: offset + self.indirect.entry(symbol)? })
    }

    pub(crate) fn section(&self, at: u32) -> Option<Spot> {
        self.sections.get(index(at.into())).copied().flatten()
    }

    /// Returns the offset of a section in the module's thread-local storage, if it is one of thread-local variables.
    pub(crate) fn thread_local_offset(&self, section: u32) -> Option<u64> {
        self.thread_local.as_ref()?.offset(section)
    }

    /// Returns the place of the target of `__dso_handle`.
    pub(crate) fn dso_handle(&self) -> Option<Spot> {
        self.this_module.map(|Spot { part, offset }| Spot { part, offset: offset + THIS_MODULE_SIZE })
    }
}

/// Largest size of a module under any policy: the address space of a process.
const ADDRESS_SPACE: u64 = 1 << 47;

/// Lays out a file within `limit` bytes. A module that refers to the host's operations table gets a copy of the table,
/// because the host may be out of reach. References to definitions in `shared` may resolve to another module.
pub(crate) fn plan(
    file: &File<'_>,
    limit: u64,
    operations: Option<&HostOperations>,
    shared: SharedDefinitions,
) -> Result<ModuleLayout, ObjectError> {
    let limit = limit.min(ADDRESS_SPACE);
    let mut layout = ModuleLayout {
        parts: [PartSpace::EMPTY; MemoryPart::COUNT],
        sections: vec![None; file.sections.len()],
        commons: Vec::new(),
        undefined: Vec::new(),
        livepatch: Vec::new(),
        slots: SlotPlan::new(file.symbol_count()),
        got: Spot { part: MemoryPart::ReadOnly, offset: 0 },
        plt: Spot { part: MemoryPart::Text, offset: 0 },
        indirect: IndirectPlan::default(),
        indirect_plt: Spot { part: MemoryPart::Text, offset: 0 },
        indirect_slots: Spot { part: MemoryPart::RoAfterInit, offset: 0 },
        this_module: None,
        operations: None,
        thunks: None,
        thread_local: ThreadLocalLayout::of(file, limit)?,
        resolvers: None,
    };
    let mut wants_own_block = false;
    let mut wants_bounds = false;
    let mut wants_thunks = false;
    let mut wants_operations = None;
    for (at, symbol) in file.symbols().skip(1) {
        let table = |name: &[u8]| {
            let named = operations.filter(|operations| name == operations.symbol.as_bytes())?;
            Some((at, 8 * modload_edit::wide(named.entries.len())))
        };
        match symbol.place {
            SymbolPlace::Undefined => {
                layout.undefined.push(at);
                wants_own_block |= symbol.is_named(section::THIS_MODULE_SYMBOL.as_bytes())
                    || symbol.is_named(section::DSO_HANDLE_SYMBOL.as_bytes());
                wants_operations = table(symbol.name()).or(wants_operations);
                wants_thunks |= thunk(symbol.name()).is_some();
                wants_bounds |= bounded_section(symbol.name()).is_some();
            }
            SymbolPlace::Common => {
                let spot = layout.add(MemoryPart::Data, symbol.size, symbol.value, limit)?;
                layout.commons.push((at, spot));
            }
            SymbolPlace::Section(section) if symbol.kind == elf::STT_GNU_IFUNC => {
                if file.section(section).is_some_and(|section| section.kept) {
                    layout.indirect.add(at);
                }
            }
            SymbolPlace::Livepatch => {
                layout.livepatch.push(at);
                let of_host = KlpSymbol::parse(symbol.name()).filter(|klp| klp.object == livepatch::VMLINUX);
                wants_operations = of_host.and_then(|klp| table(klp.name)).or(wants_operations);
            }
            SymbolPlace::Absolute | SymbolPlace::Section(_) => {}
        }
    }
    let image = layout.thread_local.as_ref().map(|image| (image.image_size, image.space.align));
    if let Some((size, align)) = image {
        let spot = layout.add(MemoryPart::InitReadOnly, size, align, limit)?;
        layout.thread_local.iter_mut().for_each(|image| image.image = spot);
    }
    for (at, part) in order(file, wants_bounds) {
        let section = &file.sections[at];
        if section.flags.contains(elf::SHF_TLS) {
            let image = layout.thread_local.as_ref().filter(|_| section.kind != elf::SHT_NOBITS);
            let spot = image.and_then(|image| {
                let offset = image.image.offset + image.offset(u32::try_from(at).ok()?)?;
                Some(Spot { part, offset })
            });
            layout.sections[at] = spot;
            continue;
        }
        let spot = layout.add(part, section.size, section.align, limit)?;
        layout.sections[at] = Some(spot);
    }
    for relas in &file.relas {
        layout.slots.scan(relas.section, relas.records, |symbol| {
            file.is_from_outside(symbol) || vague::may_be_elsewhere(file, symbol, shared)
        });
    }
    // All symbols of these relocations belong to objects.
    for relas in &file.klp_relas {
        layout.slots.scan(relas.section, relas.records, |_| true);
    }
    layout.got = layout.add(MemoryPart::ReadOnly, layout.slots.got_size(), layout.slots.got_align(), limit)?;
    layout.plt = layout.add(MemoryPart::Text, layout.slots.plt_size(), layout.slots.plt_align(), limit)?;
    let indirect = &layout.indirect;
    let (plt, slots) = ((indirect.plt_size(), indirect.plt_align()), (indirect.slots_size(), indirect.slots_align()));
    if plt.0 != 0 {
        layout.indirect_plt = layout.add(MemoryPart::Text, plt.0, plt.1, limit)?;
        layout.indirect_slots = layout.add(MemoryPart::RoAfterInit, slots.0, slots.1, limit)?;
    }
    if let Some((symbol, size)) = wants_operations {
        layout.operations = Some((symbol, layout.add(MemoryPart::ReadOnly, size, 8, limit)?));
    }
    if wants_thunks {
        layout.thunks = Some(layout.add(MemoryPart::Text, THUNK * (THUNKS + 1), THUNK, limit)?);
    }
    let is_own = |symbol: FileSymbol<'_>| match symbol.place {
        SymbolPlace::Section(section) => layout.thread_local_offset(section).is_some(),
        _ => false,
    };
    let is_fixed = layout.slots.fixed().iter().any(|site| file.symbol(site.symbol).is_some_and(is_own));
    layout.thread_local.iter_mut().for_each(|of| of.is_fixed = is_fixed);
    if layout.slots.has_thread_local() {
        let resolvers = layout.add(MemoryPart::Text, modload_tls::RESOLVERS_SIZE, 16, limit)?;
        layout.resolvers = Some(resolvers);
    }
    if wants_own_block {
        layout.this_module = Some(layout.add(MemoryPart::Data, THIS_MODULE_SIZE + DSO_HANDLE_SIZE, 16, limit)?);
    }
    Ok(layout)
}

impl ModuleLayout {
    fn add(&mut self, part: MemoryPart, size: u64, align: u64, limit: u64) -> Result<Spot, ObjectError> {
        let others = self.size();
        let space = &mut self.parts[part.slot()];
        let offset = space.add(size, align).filter(|_| space.size <= limit && others.saturating_add(size) <= limit);
        let too_large = ObjectError::TooLarge { bytes: others.saturating_add(size), limit };
        offset.map(|offset| Spot { part, offset }).ok_or(too_large)
    }
}

/// Returns the section whose start or end a symbol `__start_X` or `__stop_X` marks.
pub(crate) fn bounded_section(symbol: &[u8]) -> Option<&[u8]> {
    let prefixes = [section::START_PREFIX, section::STOP_PREFIX];
    let name = prefixes.iter().find_map(|prefix| symbol.strip_prefix(prefix.as_bytes()))?;
    is_identifier(name).then_some(name)
}

fn is_identifier(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

/// Returns the kept sections in layout order, with their parts. The order is that of the file. If the module refers to
/// the bounds of any section, sections of one name are placed side by side, and all such sections are writable if one
/// is writable. `.modinfo` has been read and is left out, as in Linux.
fn order(file: &File<'_>, by_name: bool) -> Vec<(usize, MemoryPart)> {
    let stays = |section: &FileSection<'_>| section.kept && section.name != section::MODINFO.as_bytes();
    let kept = file.sections.iter().enumerate().filter(|(_, section)| stays(section));
    let mut kept: Vec<(usize, MemoryPart)> = kept.map(|(at, section)| (at, MemoryPart::of(section))).collect();
    if by_name {
        // By name: the first, and whether any is writable.
        let mut named: BTreeMap<&[u8], (usize, bool)> = BTreeMap::new();
        for &(at, part) in &kept {
            named.entry(file.sections[at].name).or_insert((at, false)).1 |= part == MemoryPart::Data;
        }
        for (at, part) in &mut kept {
            let name = file.sections[*at].name;
            if *part == MemoryPart::ReadOnly && is_identifier(name) && named[name].1 {
                *part = MemoryPart::Data;
            }
        }
        kept.sort_by_key(|&(at, _)| (named[file.sections[at].name].0, at));
    }
    kept
}
