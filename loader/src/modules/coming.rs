//! A module that is COMING, as seen by subscribers.

use modload_edit::{Addr, Edit, RecordTable, Rejected, Sink, Window, index, wide};
use modload_text::Staged;

use crate::modules::module::{Module, lock};
use crate::prepare::deferred::left;
use crate::prepare::layout::MemoryPart;
use crate::prepare::memory::Formed;
use crate::vocabulary::rewriting::TrampolineCall;

/// A module that is COMING: symbols are known, data can be read and written, and text can still be edited by plain
/// stores.
#[derive(Debug)]
pub struct Coming<'m> {
    pub(crate) module: &'m Module,
    pub(crate) memory: &'m mut Formed,
    pub(crate) calls: &'m [TrampolineCall],
    pub(crate) tell_when_published: bool,
}

/// A copy of a section of a module that is COMING.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SectionBytes {
    /// Number, address and size of the section.
    pub table: RecordTable,
    /// The bytes of the section.
    pub bytes: Vec<u8>,
}

impl Coming<'_> {
    /// The module.
    #[must_use]
    pub fn module(&self) -> &Module {
        self.module
    }

    /// Returns the sections of this name, relocated, in the order of the file. If some records of a section wait for an
    /// object of a live patch, returns the parts between those records.
    pub fn sections(&self, name: &str) -> impl Iterator<Item = SectionBytes> {
        let of_name = self.module.placed.iter().filter(move |placed| placed.info.name == name);
        let whole = of_name.map(|placed| RecordTable::of_section(placed.number, placed.info.addr, placed.info.size));
        let parts = whole.flat_map(move |table| left(self.module.slices(), name, table));
        parts.filter_map(|table| {
            let bytes = self.memory.read(table.at, index(table.size))?;
            Some(SectionBytes { table, bytes })
        })
    }

    /// Returns names and addresses of the module's symbols with this prefix, without the prefix. A name may occur
    /// several times.
    #[must_use]
    pub fn symbols_with_prefix(&self, prefix: &str) -> Vec<(Vec<u8>, Addr)> {
        let init = lock(&self.module.init_names);
        let names = [Some(&self.module.names), init.as_ref()];
        let found = names.into_iter().flatten().flat_map(|names| names.with_prefix(prefix.as_bytes()));
        found.map(|(name, addr)| (name.to_vec(), addr)).collect()
    }

    /// Returns the start addresses of the module's functions, and the addresses of all other symbols that are no
    /// variables, sorted.
    #[must_use]
    pub fn functions(&self) -> Vec<Addr> {
        let init = lock(&self.module.init_names);
        let names = [Some(&self.module.names), init.as_ref()];
        let mut functions: Vec<_> = names.into_iter().flatten().flat_map(|names| names.code()).collect();
        functions.sort_unstable();
        functions
    }

    /// Returns calls of static calls' trampolines that have no record, if the file requests a search for such calls.
    #[must_use]
    pub fn trampoline_calls(&self) -> &[TrampolineCall] {
        self.calls
    }

    /// Whether an address lies in a part that is freed when `init` has returned.
    #[must_use]
    pub fn is_init(&self, at: Addr) -> bool {
        let init = MemoryPart::ALL.into_iter().zip(self.module.ranges).filter(|(part, _)| part.is_init());
        init.into_iter().any(|(_, (start, len))| at.checked_offset_from(start).is_some_and(|offset| offset < len))
    }

    /// The bytes at an address of the module's data, read-only or not.
    #[must_use]
    pub fn data(&self, at: Addr, len: usize) -> Option<Vec<u8>> {
        self.memory.read(at, len)
    }

    /// Has [`Subscriber::published`](crate::Subscriber::published) called.
    pub fn tell_when_published(&mut self) {
        self.tell_when_published = true;
    }

    /// Returns the staged text that contains `at`: first address and bytes.
    #[must_use]
    pub fn text(&self, at: Addr) -> Option<(Addr, &[u8])> {
        let holds = |staged: &&Staged| at >= staged.addr() && at < staged.addr() + wide(staged.len());
        let staged = self.memory.texts().find(holds)?;
        Some((staged.addr(), staged.bytes()))
    }
}

/// Edits of the staged text.
impl Sink for Coming<'_> {
    fn edit(&mut self, edit: Edit<'_>) -> Result<(), Rejected> {
        let mut refused = None;
        for staged in self.memory.texts_mut() {
            match Window::new(staged.addr(), staged.bytes_mut()).edit(edit) {
                Err(Rejected::Outside { at, len, start, end, why }) => {
                    refused = refused.or(Some(Rejected::Outside { at, len, start, end, why }));
                }
                taken_or_refused => return taken_or_refused,
            }
        }
        let nothing =
            Rejected::Outside { at: edit.at, len: edit.new.len(), start: Addr::NULL, end: Addr::NULL, why: edit.why };
        Err(refused.unwrap_or(nothing))
    }
}
