//! Debuggers and profilers. An onlooker sees a module when the text is published, before any code of the module has
//! run.
//!
//! Onlookers are not subscribers. The coming chain is too early for a debugger (publishing the text would overwrite a
//! breakpoint), and LIVE is too late (`init` has run). [`Subscriber::published`](crate::Subscriber::published) is
//! called at the right time, but subscribers have an order, may refuse, are recorded in timelines, and cannot see the
//! object, whose debug information a module does not keep. A program must behave the same with and without a debugger.
//! Data that an onlooker keeps is dropped before the text, on every path.
//!
//! Onlookers run after the subscribers, so they see text as changed by subscribers at publication.

use std::fmt;
use std::sync::Arc;

use modload_edit::Addr;
use modload_relocs::RelocSymbol;
use object::elf;

use crate::elf::file::{File, SymbolPlace};
use crate::modules::module::Module;
use crate::prepare::layout::ModuleLayout;
use crate::prepare::resolved::Resolved;
use crate::vocabulary::kept::{AllShown, Kept};

/// Is shown modules. No lock is held meanwhile.
pub trait Onlooker: Send + Sync {
    /// Called when the module's text is published, before any code of the module runs.
    fn published(&self, seen: &Seen<'_>) -> Shown;
}

impl fmt::Debug for dyn Onlooker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Onlooker")
    }
}

/// Data that an onlooker keeps. The default is nothing.
#[derive(Default, Debug)]
pub struct Shown {
    /// Dropped before the module's init sections are, but after `until_gone` if the load fails.
    pub until_init: Option<Box<dyn Kept>>,
    /// Dropped after the module's code has run for the last time, before the text is unpublished.
    pub until_gone: Option<Box<dyn Kept>>,
}

/// A module as shown to an onlooker.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub(crate) module: &'a Module,
    pub(crate) made: Made<'a>,
}

/// The inputs from which the module was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made<'a> {
    pub(crate) object: &'a [u8],
    pub(crate) file: &'a File<'a>,
    pub(crate) layout: &'a ModuleLayout,
    pub(crate) resolved: &'a Resolved,
}

/// The place of a section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeenSection {
    /// Address of the section.
    pub addr: Addr,
    /// Whether the section is dropped when `init` has returned.
    pub is_init: bool,
}

/// A function of the module.
#[derive(Clone, Copy, Debug)]
pub struct SeenFunction<'a> {
    /// Name of the function in the file: any bytes.
    pub name: &'a [u8],
    /// Address of the function.
    pub addr: Addr,
    /// Size of the function in bytes, 0 if the file does not state one.
    pub size: u64,
}

impl<'a> Seen<'a> {
    /// The module.
    #[must_use]
    pub fn module(&self) -> &'a Module {
        self.module
    }

    /// The relocatable object of the module as in the file: validated, not relocated. A module of several objects has
    /// one merged object.
    #[must_use]
    pub fn object(&self) -> &'a [u8] {
        self.made.object
    }

    /// Returns the place of the section of this index; `None` for a section that is not part of the module, such as
    /// debug information.
    #[must_use]
    pub fn section(&self, at: u32) -> Option<SeenSection> {
        let spot = self.made.layout.section(at)?;
        let (base, _) = self.module.ranges[spot.part.slot()];
        Some(SeenSection { addr: base + spot.offset, is_init: spot.part.is_init() })
    }

    /// The name of the section of this index; empty if there is none.
    #[must_use]
    pub fn section_name(&self, at: u32) -> &'a [u8] {
        self.made.file.section(at).map_or(&[], |section| section.name)
    }

    /// Whether a section of another COMDAT group has replaced the section of this index.
    #[must_use]
    pub fn is_repeated(&self, at: u32) -> bool {
        self.made.file.section(at).is_some_and(|section| section.repeated)
    }

    /// Returns the addresses of all symbols, by index in the object's symbol table.
    #[must_use]
    pub fn symbols(&self) -> &'a [RelocSymbol] {
        &self.made.resolved.symbols
    }

    /// Returns the functions in the order of the symbol table, including those of init sections.
    pub fn functions(&self) -> impl Iterator<Item = SeenFunction<'a>> + '_ {
        let functions =
            self.made.file.symbols().filter(|(_, symbol)| symbol.kind == elf::STT_FUNC && !symbol.name().is_empty());
        functions.filter_map(|(_, symbol)| {
            let SymbolPlace::Section(section) = symbol.place else { return None };
            let addr = self.section(section)?.addr + symbol.value;
            Some(SeenFunction { name: symbol.name(), addr, size: symbol.size })
        })
    }
}

/// Shows a module to all onlookers.
pub(crate) fn show(onlookers: &[Arc<dyn Onlooker>], seen: Seen<'_>) -> AllShown {
    let mut all = AllShown::default();
    for onlooker in onlookers {
        let Shown { until_init, until_gone } = onlooker.published(&seen);
        all.until_init.extend(until_init);
        all.until_gone.extend(until_gone);
    }
    all
}
