//! Debuggers and profilers: shown a module when its text is at its place, before any of its code has run.
//!
//! They are no subscribers. The coming chain is too early for them (a breakpoint set there would be written over when
//! the text is published) and LIVE is too late (`init` has run). [`Subscriber::published`](crate::Subscriber::published)
//! comes when they want to hear, but subscribers have a place in an order, may refuse, are told of by timelines, and do
//! not see the object, whose debug information a module does not keep. What a program does must not depend on whether
//! somebody looks. And what they keep goes by being dropped, before the text, whichever way the module takes.
//!
//! They come after the subscribers: text that those change when it is published is as it will be.

use std::fmt;
use std::sync::Arc;

use modload_edit::Addr;
use modload_relocs::RelocSymbol;
use object::elf;

use crate::elf::file::{File, Place};
use crate::modules::module::Module;
use crate::prepare::layout::Layout;
use crate::prepare::resolved::Resolved;
use crate::vocabulary::kept::{AllShown, Kept};

/// Is shown modules. No lock is held meanwhile.
pub trait Onlooker: Send + Sync {
    /// The module's text is at its place, and none of its code has run.
    fn published(&self, seen: &Seen<'_>) -> Shown;
}

impl fmt::Debug for dyn Onlooker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Onlooker")
    }
}

/// What an onlooker keeps. The default is nothing.
#[derive(Default, Debug)]
pub struct Shown {
    /// Dropped before the module's init sections are, but after `until_gone` if the load fails.
    pub until_init: Option<Box<dyn Kept>>,
    /// Dropped when the module's code has run for the last time, before its text is unpublished.
    pub until_gone: Option<Box<dyn Kept>>,
}

/// A module as an onlooker sees it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub(crate) module: &'a Module,
    pub(crate) made: Made<'a>,
}

/// What the module was made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made<'a> {
    pub(crate) object: &'a [u8],
    pub(crate) file: &'a File<'a>,
    pub(crate) layout: &'a Layout,
    pub(crate) resolved: &'a Resolved,
}

/// Where a section stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeenSection {
    /// Its address.
    pub addr: Addr,
    /// Whether it is dropped when `init` has returned.
    pub is_init: bool,
}

/// A function of the module.
#[derive(Clone, Copy, Debug)]
pub struct SeenFunction<'a> {
    /// Its name, as it stands in the file: any bytes.
    pub name: &'a [u8],
    /// Its address.
    pub addr: Addr,
    /// Its size in bytes, 0 if the file does not say.
    pub size: u64,
}

impl<'a> Seen<'a> {
    /// The module.
    #[must_use]
    pub fn module(&self) -> &'a Module {
        self.module
    }

    /// The relocatable object that the module was made of, as it is in its file: not relocated. It has been validated.
    /// A module of several objects is one here.
    #[must_use]
    pub fn object(&self) -> &'a [u8] {
        self.made.object
    }

    /// Where the section of this index stands; `None` if it is not a part of the module, as debug information.
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

    /// Whether the section of this index went because another one of the same COMDAT group took its place.
    #[must_use]
    pub fn is_repeated(&self, at: u32) -> bool {
        self.made.file.section(at).is_some_and(|section| section.repeated)
    }

    /// The addresses of all symbols by their index in the object's symbol table.
    #[must_use]
    pub fn symbols(&self) -> &'a [RelocSymbol] {
        &self.made.resolved.symbols
    }

    /// The functions, in the order of the symbol table; those of init sections are among them.
    pub fn functions(&self) -> impl Iterator<Item = SeenFunction<'a>> + '_ {
        let functions =
            self.made.file.symbols().filter(|(_, symbol)| symbol.kind == elf::STT_FUNC && !symbol.name().is_empty());
        functions.filter_map(|(_, symbol)| {
            let Place::Section(section) = symbol.place else { return None };
            let addr = self.section(section)?.addr + symbol.value;
            Some(SeenFunction { name: symbol.name(), addr, size: symbol.size })
        })
    }
}

/// Shows a module to all of them.
pub(crate) fn show(onlookers: &[Arc<dyn Onlooker>], seen: Seen<'_>) -> AllShown {
    let mut all = AllShown::default();
    for onlooker in onlookers {
        let Shown { until_init, until_gone } = onlooker.published(&seen);
        all.until_init.extend(until_init);
        all.until_gone.extend(until_gone);
    }
    all
}
