//! The global symbols of a link unit, and the choice between several definitions by the rules of GNU ld.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use object::elf;

use crate::elf::error::ObjectError;
use crate::elf::file::{FileSymbol, SymbolPlace};
use crate::elf::link::archive::{Offer, OfferKind};
use crate::elf::link::object::{NAMES_LIMIT, UnitObject};
use crate::vocabulary::escape::escaped;

use modload_edit::wide;

/// The place of a definition: number of the object, index in the symbol table of the object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Definition {
    pub(super) object: usize,
    pub(super) symbol: u32,
}

/// State of a global symbol after the objects that are linked so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum GlobalState {
    /// No object has mentioned the symbol.
    Unknown,
    Undefined(LinkStrength),
    /// Size and alignment in bytes are the largest of all.
    Common {
        size: u64,
        align: u64,
    },
    Defined(LinkStrength, Definition),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LinkStrength {
    Weak,
    Strong,
}

/// A global symbol.
#[derive(Clone, Copy, Debug)]
pub(super) struct Global<'a> {
    pub(super) name: &'a [u8],
    pub(super) state: GlobalState,
    /// Whether the caller has asked for this symbol.
    wanted: bool,
    /// The most constraining of all objects.
    pub(super) visibility: elf::SymbolVisibility,
}

/// All global symbols.
#[derive(Default, Debug)]
pub(super) struct GlobalSymbols<'a> {
    /// The symbols in order of first appearance.
    pub(super) globals: Vec<Global<'a>>,
    by_name: HashMap<&'a [u8], usize>,
    /// Symbols that have become undefined since the last call of [`GlobalSymbols::newly_undefined`].
    newly_undefined: Vec<usize>,
    /// Bytes of all names, local ones too.
    names: u64,
}

impl<'a> GlobalSymbols<'a> {
    /// The caller wants this to be defined, but can do without.
    pub(super) fn want(&mut self, name: &'a [u8]) {
        let number = self.number(name);
        self.globals[number].wanted = true;
        self.newly_undefined.push(number);
    }

    /// Returns the names that have become undefined since the last call.
    pub(super) fn newly_undefined(&mut self) -> Vec<&'a [u8]> {
        std::mem::take(&mut self.newly_undefined).into_iter().map(|number| self.globals[number].name).collect()
    }

    /// [`GlobalSymbols::newly_undefined`] will name all that are undefined now.
    pub(super) fn ask_again(&mut self) {
        let asked = self.globals.iter().enumerate().filter(|(_, global)| global.asks());
        self.newly_undefined = asked.map(|(number, _)| number).collect();
    }

    /// Whether a member that defines this name is needed. For a COMMON symbol, a member with a strong definition is
    /// needed, as in GNU ld: a variable with a value wins over one without.
    pub(super) fn takes(&self, offer: &Offer<'_>) -> bool {
        let Some(global) = self.by_name.get(offer.name).map(|&number| &self.globals[number]) else { return false };
        global.asks() && (offer.kind == OfferKind::Definition || !matches!(global.state, GlobalState::Common { .. }))
    }

    /// The number of the symbol of this name.
    pub(super) fn find(&self, name: &[u8]) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    fn number(&mut self, name: &'a [u8]) -> usize {
        match self.by_name.entry(name) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                let visibility = elf::STV_DEFAULT;
                self.globals.push(Global { name, state: GlobalState::Unknown, wanted: false, visibility });
                *entry.insert(self.globals.len() - 1)
            }
        }
    }

    /// Takes the global symbols of the next object, behind `before`.
    pub(super) fn add(&mut self, before: &[UnitObject<'a>], object: &UnitObject<'a>) -> Result<(), ObjectError> {
        for (symbol_index, symbol) in object.file.symbols().skip(1) {
            let name = symbol.name();
            self.names += wide(name.len());
            if self.names > NAMES_LIMIT {
                return Err(object.failed(ObjectError::TooLarge { bytes: self.names, limit: NAMES_LIMIT }));
            }
            if symbol.bind == elf::STB_LOCAL {
                continue;
            }
            let number = self.number(name);
            let global = &mut self.globals[number];
            let asked = global.asks();
            let definition = Definition { object: before.len(), symbol: symbol_index };
            global.visibility = stricter(global.visibility, symbol.visibility);
            let said = of(object, &symbol, definition);
            if said_already(before, global.state, &symbol) {
                continue;
            }
            global.state = global.state.with(said).map_err(|earlier| {
                let first = before.get(earlier.object).map_or_else(|| object.name.clone(), |first| first.name.clone());
                ObjectError::DefinedTwice { symbol: escaped(name), first, second: object.name.clone() }
            })?;
            if global.asks() && !asked {
                self.newly_undefined.push(number);
            }
        }
        Ok(())
    }
}

/// Whether an absolute symbol has been defined before as the same number, which GNU ld takes for one definition.
fn said_already(before: &[UnitObject<'_>], state: GlobalState, symbol: &FileSymbol<'_>) -> bool {
    let GlobalState::Defined(_, Definition { object, symbol: earlier }) = state else { return false };
    let earlier = before.get(object).and_then(|object| object.file.symbol(earlier));
    earlier.is_some_and(|earlier| {
        (earlier.place, symbol.place) == (SymbolPlace::Absolute, SymbolPlace::Absolute) && earlier.value == symbol.value
    })
}

/// Returns the state that one symbol of an object implies.
fn of(object: &UnitObject<'_>, symbol: &FileSymbol<'_>, definition: Definition) -> GlobalState {
    let strength = if symbol.bind == elf::STB_WEAK { LinkStrength::Weak } else { LinkStrength::Strong };
    match symbol.place {
        SymbolPlace::Undefined | SymbolPlace::Livepatch => GlobalState::Undefined(strength),
        SymbolPlace::Common => GlobalState::Common { size: symbol.size, align: symbol.value },
        // The definition in the group that was kept is meant.
        SymbolPlace::Section(section) if object.file.section(section).is_some_and(|section| section.repeated) => {
            GlobalState::Undefined(strength)
        }
        SymbolPlace::Absolute | SymbolPlace::Section(_) => GlobalState::Defined(strength, definition),
    }
}

impl Global<'_> {
    /// Whether archive members may be needed for this symbol.
    fn asks(&self) -> bool {
        match self.state {
            GlobalState::Unknown | GlobalState::Undefined(LinkStrength::Weak) => self.wanted,
            GlobalState::Undefined(LinkStrength::Strong) | GlobalState::Common { .. } => true,
            GlobalState::Defined(..) => false,
        }
    }
}

impl GlobalState {
    /// Combines two states. Fails with the earlier strong definition if `new` is a second one.
    fn with(self, new: GlobalState) -> Result<GlobalState, Definition> {
        use GlobalState::{Common, Defined, Undefined, Unknown};
        use LinkStrength::{Strong, Weak};
        Ok(match (self, new) {
            (Unknown, new) => new,
            (old, Unknown) => old,
            (Undefined(old), Undefined(new)) => Undefined(if old == Strong { old } else { new }),
            (Undefined(_), new) => new,
            (old, Undefined(_)) => old,
            (Defined(Strong, old), Defined(Strong, _)) => return Err(old),
            (Common { size: a, align: b }, Common { size: c, align: d }) => Common { size: a.max(c), align: b.max(d) },
            // Strong, then COMMON, then weak; of two that are alike the first.
            (old @ Defined(Strong, _), _) => old,
            (_, new @ Defined(Strong, _)) => new,
            (old @ Common { .. }, _) => old,
            (_, new @ Common { .. }) => new,
            (old @ Defined(Weak, _), Defined(Weak, _)) => old,
        })
    }
}

/// Of two visibilities the one that lets fewer see the symbol: internal, hidden, protected, default.
fn stricter(a: elf::SymbolVisibility, b: elf::SymbolVisibility) -> elf::SymbolVisibility {
    let rank = |visibility: elf::SymbolVisibility| match visibility {
        elf::STV_DEFAULT => u8::MAX,
        other => other.0,
    };
    if rank(b) < rank(a) { b } else { a }
}
