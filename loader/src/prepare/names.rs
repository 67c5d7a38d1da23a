//! The symbols of a module that is there, by name and by address.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use hashbrown::HashTable;
use modload_edit::{Addr, index};
use modload_text::Describe;
use object::elf;

use crate::elf::file::{File, SymbolPlace, begins_with_string, until_nul};
use crate::prepare::layout::ModuleLayout;
use crate::prepare::memory::Staging;

/// The kind of a symbol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModuleSymbolKind {
    /// A function.
    Function,
    /// A variable.
    Object,
    /// The file states no type.
    Other,
}

/// A symbol of a module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ModuleSymbol {
    /// Address of the symbol.
    pub addr: Addr,
    /// Size of the symbol in bytes, 0 if the file does not state one.
    pub size: u64,
    /// Kind of the symbol.
    pub kind: ModuleSymbolKind,
}

#[derive(Clone, Copy, Debug)]
struct NamedSymbol {
    addr: Addr,
    size: u64,
    /// Offset of the name.
    name: u32,
    kind: ModuleSymbolKind,
    scope: SymbolScope,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SymbolScope {
    Local,
    Global,
}

/// A compact copy of a symbol table, for use without the file.
#[derive(Debug)]
pub(crate) struct SymbolNames {
    module: std::sync::Arc<str>,
    trap_descriptor: i32,
    entries: Box<[NamedSymbol]>,
    /// Names, each ended by a NUL.
    strings: Box<[u8]>,
    lookups: AtomicU32,
    by_name: OnceLock<(RandomState, HashTable<u32>)>,
    questions: AtomicU32,
    /// The addresses of [`SymbolNames::code`], sorted.
    starts: OnceLock<Box<[Addr]>>,
}

/// Number of lookups by scanning the table; later lookups use an index.
const WALKS: u32 = 4;

/// Collects the names of the module's own symbols and, separately, of symbols that are freed when `init` has returned.
pub(crate) fn collect(
    file: &File<'_>,
    layout: &ModuleLayout,
    memory: &Staging,
    module: &std::sync::Arc<str>,
    trap_descriptor: i32,
) -> (SymbolNames, Option<SymbolNames>) {
    let mut core = Vec::with_capacity(index(file.symbol_count().into()));
    let mut init = Vec::new();
    for (at, symbol) in file.symbols() {
        let spot = match symbol.place {
            SymbolPlace::Section(_) if symbol.kind == elf::STT_GNU_IFUNC => {
                layout.indirect(at).map(|spot| (memory.addr(spot), spot.part))
            }
            SymbolPlace::Section(section) => {
                layout.section(section).map(|spot| (memory.addr(spot) + symbol.value, spot.part))
            }
            SymbolPlace::Common => layout.common(at).map(|spot| (memory.addr(spot), spot.part)),
            SymbolPlace::Undefined | SymbolPlace::Absolute | SymbolPlace::Livepatch => None,
        };
        let Some((addr, part)) = spot else { continue };
        let kind = match symbol.kind {
            elf::STT_FUNC | elf::STT_GNU_IFUNC => ModuleSymbolKind::Function,
            elf::STT_OBJECT | elf::STT_COMMON => ModuleSymbolKind::Object,
            elf::STT_NOTYPE => ModuleSymbolKind::Other,
            _ => continue,
        };
        let name = file.name_offset(at);
        if name == 0 {
            continue;
        }
        let scope = if symbol.bind == elf::STB_LOCAL { SymbolScope::Local } else { SymbolScope::Global };
        let entries = if part.is_init() { &mut init } else { &mut core };
        entries.push(NamedSymbol { addr, size: symbol.size, name, kind, scope });
    }
    let names = |entries: Vec<NamedSymbol>| SymbolNames {
        module: module.clone(),
        trap_descriptor,
        entries: entries.into_boxed_slice(),
        strings: file.strings.into(),
        lookups: AtomicU32::new(0),
        by_name: OnceLock::new(),
        questions: AtomicU32::new(0),
        starts: OnceLock::new(),
    };
    let init = (!init.is_empty()).then(|| names(init));
    (names(core), init)
}

impl SymbolNames {
    fn name(&self, entry: &NamedSymbol) -> &[u8] {
        until_nul(self.strings.get(index(entry.name.into())..).unwrap_or_default())
    }

    fn is_named(&self, entry: &NamedSymbol, name: &[u8]) -> bool {
        begins_with_string(self.strings.get(index(entry.name.into())..).unwrap_or_default(), name)
    }

    /// The symbol of this name, a global one before a local one.
    pub(crate) fn find(&self, name: &[u8]) -> Option<ModuleSymbol> {
        if name.contains(&0) {
            // Two names that lie side by side are not one.
            return None;
        }
        let entry = if self.lookups.fetch_add(1, Ordering::Relaxed) < WALKS {
            self.walk(name)
        } else {
            if self.by_name.get().is_none() {
                // Built outside of the cell: a child that is forked meanwhile would wait for the cell for ever.
                let _ = self.by_name.set(self.index());
            }
            let (hasher, table) = self.by_name.get()?;
            let found = table.find(hasher.hash_one(name), |&at| self.is_named(&self.entries[index(at.into())], name));
            found.map(|&at| &self.entries[index(at.into())])
        };
        entry.map(|entry| ModuleSymbol { addr: entry.addr, size: entry.size, kind: entry.kind })
    }

    /// Returns the symbol at an address: one with a known size before others, and then a global one before a local one.
    pub(crate) fn at(&self, at: Addr) -> Option<ModuleSymbol> {
        let there = self.entries.iter().filter(|entry| entry.addr == at);
        let best = there.min_by_key(|entry| (entry.size == 0, entry.scope == SymbolScope::Local))?;
        Some(ModuleSymbol { addr: best.addr, size: best.size, kind: best.kind })
    }

    fn walk(&self, name: &[u8]) -> Option<&NamedSymbol> {
        let mut local = None;
        for entry in self.entries.iter().filter(|entry| self.is_named(entry, name)) {
            if entry.scope == SymbolScope::Global {
                return Some(entry);
            }
            local = local.or(Some(entry));
        }
        local
    }

    fn index(&self) -> (RandomState, HashTable<u32>) {
        let hasher = RandomState::new();
        let mut table = HashTable::with_capacity(self.entries.len());
        let name = |at: u32| self.name(&self.entries[index(at.into())]);
        for scope in [SymbolScope::Global, SymbolScope::Local] {
            for (at, entry) in (0..).zip(&self.entries).filter(|(_, entry)| entry.scope == scope) {
                let name_of = self.name(entry);
                let hash = hasher.hash_one(name_of);
                let entry = table.entry(hash, |&other| name(other) == name_of, |&other| hasher.hash_one(name(other)));
                entry.or_insert(at);
            }
        }
        (hasher, table)
    }

    /// Names and addresses of the symbols that begin so, the prefix taken off.
    pub(crate) fn with_prefix(&self, prefix: &[u8]) -> impl Iterator<Item = (&[u8], Addr)> {
        self.entries.iter().filter_map(move |entry| Some((self.name(entry).strip_prefix(prefix)?, entry.addr)))
    }

    /// Returns the functions: address, whether the name is local, name, size. Sorting by this tuple gives the order for
    /// messages.
    pub(crate) fn functions(&self) -> impl Iterator<Item = (Addr, bool, &[u8], u64)> {
        let functions = self.entries.iter().filter(|entry| entry.kind == ModuleSymbolKind::Function);
        functions.map(|entry| (entry.addr, entry.scope == SymbolScope::Local, self.name(entry), entry.size))
    }

    /// Enters the addresses of all symbols of the names that are there.
    pub(crate) fn enter_all(&self, names: &mut BTreeMap<&[u8], Vec<Addr>>) {
        for entry in &self.entries {
            names.get_mut(self.name(entry)).into_iter().for_each(|all| all.push(entry.addr));
        }
    }

    /// The addresses of everything that is no variable.
    pub(crate) fn code(&self) -> impl Iterator<Item = Addr> {
        self.entries.iter().filter(|entry| entry.kind != ModuleSymbolKind::Object).map(|entry| entry.addr)
    }

    /// Whether a function or other code begins at an address.
    pub(crate) fn begins_at(&self, at: Addr) -> bool {
        if self.questions.fetch_add(1, Ordering::Relaxed) < WALKS {
            return self.code().any(|start| start == at);
        }
        if self.starts.get().is_none() {
            let mut starts: Box<[Addr]> = self.code().collect();
            starts.sort_unstable();
            // Made outside of the cell, as the index of names is.
            let _ = self.starts.set(starts);
        }
        self.starts.get().is_some_and(|starts| starts.binary_search(&at).is_ok())
    }

    /// Returns the function that contains an address, by the sizes in the file: name, distance from the start, and
    /// size. Of several functions, the one with the nearest start, a global one before a local one.
    pub(crate) fn function_at(&self, at: Addr) -> Option<(&[u8], u64, u64)> {
        let holds = |entry: &&NamedSymbol| {
            let offset = at.checked_offset_from(entry.addr);
            entry.kind != ModuleSymbolKind::Object && offset.is_some_and(|offset| offset < entry.size)
        };
        let rank = |entry: &&NamedSymbol| (entry.addr, entry.scope == SymbolScope::Global);
        let found = self.entries.iter().filter(holds).max_by_key(rank)?;
        Some((self.name(found), at.checked_offset_from(found.addr)?, found.size))
    }
}

impl SymbolNames {
    /// Returns the function or variable that contains an address, by the sizes in the file: name and address. Of several,
    /// the one with the nearest start, a global one before a local one.
    pub(crate) fn containing(&self, at: Addr) -> Option<(&CStr, Addr)> {
        let holds =
            |entry: &&NamedSymbol| at.checked_offset_from(entry.addr).is_some_and(|offset| offset < entry.size.max(1));
        let rank = |entry: &&NamedSymbol| (entry.addr, entry.scope == SymbolScope::Global);
        let found = self.entries.iter().filter(holds).max_by_key(rank)?;
        let name = self.strings.get(index(found.name.into())..).unwrap_or_default();
        Some((CStr::from_bytes_until_nul(name).ok()?, found.addr))
    }
}

impl Describe for SymbolNames {
    fn module(&self) -> &str {
        &self.module
    }

    fn symbol(&self, at: Addr) -> Option<(&[u8], u64)> {
        let before = self.entries.iter().filter(|entry| entry.kind != ModuleSymbolKind::Object && entry.addr <= at);
        let nearest = before.max_by_key(|entry| entry.addr)?;
        Some((self.name(nearest), at.checked_offset_from(nearest.addr)?))
    }

    fn descriptor(&self) -> i32 {
        self.trap_descriptor
    }
}

#[cfg(test)]
mod tests {
    use super::{Addr, AtomicU32, ModuleSymbolKind, NamedSymbol, OnceLock, SymbolNames, SymbolScope, WALKS};

    /// Entries: offset of the name, scope. The address is the number of the entry.
    fn names(strings: &[u8], entries: &[(u32, SymbolScope)]) -> SymbolNames {
        let entry = |(at, &(name, scope))| NamedSymbol {
            addr: Addr::new(at),
            size: 0,
            name,
            kind: ModuleSymbolKind::Function,
            scope,
        };
        SymbolNames {
            module: "module".into(),
            trap_descriptor: 2,
            entries: (0..).zip(entries).map(entry).collect(),
            strings: strings.into(),
            lookups: AtomicU32::new(0),
            by_name: OnceLock::new(),
            questions: AtomicU32::new(0),
            starts: OnceLock::new(),
        }
    }

    /// Looks up a name until the index is used.
    fn check(names: &SymbolNames, name: &[u8], expected: Option<u64>) {
        for lookup in 0..=WALKS {
            let found = names.find(name).map(|symbol| symbol.addr.get());
            assert_eq!(found, expected, "{}, look-up {lookup}", name.escape_ascii());
        }
    }

    #[test]
    fn a_global_symbol_comes_before_local_ones_and_the_first_local_one_before_others() {
        let entries =
            [(1, SymbolScope::Local), (5, SymbolScope::Local), (5, SymbolScope::Local), (1, SymbolScope::Global)];
        for (name, expected) in [(&b"add"[..], Some(3)), (b"sub", Some(1)), (b"ad", None), (b"addx", None)] {
            check(&names(b"\0add\0sub\0", &entries), name, expected);
        }
    }

    #[test]
    fn a_function_holds_what_its_size_says() {
        let mut names =
            names(b"\0add\0sub\0", &[(1, SymbolScope::Local), (1, SymbolScope::Global), (5, SymbolScope::Local)]);
        for (entry, (addr, size)) in names.entries.iter_mut().zip([(0x10, 0x20), (0x20, 8), (0x20, 8)]) {
            (entry.addr, entry.size) = (Addr::new(addr), size);
        }
        for (at, expected) in [
            (0xf, None),
            (0x10, Some((&b"add"[..], 0, 0x20))),
            (0x27, Some((b"add", 7, 8))),
            (0x28, Some((b"add", 0x18, 0x20))),
            (0x30, None),
        ] {
            assert_eq!(names.function_at(Addr::new(at)), expected, "{at:#x}");
        }
    }

    #[test]
    fn whether_code_begins_somewhere_is_the_same_by_walking_and_by_the_index() {
        let mut names =
            names(b"\0add\0sub\0", &[(1, SymbolScope::Local), (5, SymbolScope::Global), (1, SymbolScope::Local)]);
        for (entry, (addr, kind)) in names.entries.iter_mut().zip([
            (0x20, ModuleSymbolKind::Function),
            (0x10, ModuleSymbolKind::Other),
            (0x18, ModuleSymbolKind::Object),
        ]) {
            (entry.addr, entry.kind) = (Addr::new(addr), kind);
        }
        for _ in 0..=WALKS {
            let found = [0xf, 0x10, 0x18, 0x1f, 0x20, 0x21].map(|at| names.begins_at(Addr::new(at)));
            assert_eq!(found, [false, true, false, false, true, false]);
        }
        assert!(names.starts.get().is_some());
    }

    #[test]
    fn functions_sort_by_address_then_scope_then_name() {
        let all = [
            (5, SymbolScope::Local),
            (9, SymbolScope::Global),
            (1, SymbolScope::Global),
            (1, SymbolScope::Local),
            (5, SymbolScope::Global),
        ];
        let mut names = names(b"\0add\0sub\0mul\0", &all);
        for (entry, (addr, kind)) in names.entries.iter_mut().zip([
            (0x20, ModuleSymbolKind::Function),
            (0x20, ModuleSymbolKind::Function),
            (0x20, ModuleSymbolKind::Function),
            (0x10, ModuleSymbolKind::Function),
            (0x10, ModuleSymbolKind::Object),
        ]) {
            (entry.addr, entry.kind) = (Addr::new(addr), kind);
        }
        let mut functions: Vec<_> = names.functions().collect();
        functions.sort_unstable();
        let sorted: Vec<_> = functions.iter().map(|(addr, is_local, name, _)| (addr.get(), *is_local, *name)).collect();
        let expected: [(u64, bool, &[u8]); 4] =
            [(0x10, true, b"add"), (0x20, false, b"add"), (0x20, false, b"mul"), (0x20, true, b"sub")];
        assert_eq!(sorted, expected);
    }

    #[test]
    fn two_names_side_by_side_are_not_one() {
        check(&names(b"\0add\0sub\0", &[(1, SymbolScope::Global)]), b"add\0sub", None);
    }
}
