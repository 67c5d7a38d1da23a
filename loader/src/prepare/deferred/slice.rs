//! The parts of a live patch that wait for one object: relocations, the GOT slots of the object's symbols, and
//! dependent records, stored separately from the file. Once the symbols have addresses, a slice becomes a plan of
//! edits.

use modload_abi::livepatch::KlpSymbol;
use modload_abi::{Records, Rela};
use modload_alternatives::Facts;
use modload_edit::{
    Addr, Code, CodeBuffers, Edit, EditOrigin, EditSet, Edits, Engine, Ledger, PieceKind, RecordTable, Rejected, Sink,
    index, wide,
};
use modload_relocs::{OnDiscarded, RelocSymbol, RelocSymbolKind, RelocatedSection, Slots};

use super::waiting::TABLES;
use super::{Waiting, awaited, waiting};
use crate::elf::file::File;
use crate::prepare::error::{PrepareError, RelocationAdvice};
use crate::prepare::layout::{MemoryPart, ModuleLayout};
use crate::prepare::memory::Staging;
use crate::prepare::resolved::{Resolved, picked};
use crate::prepare::specialise;
use crate::vocabulary::escape::escaped;
use crate::vocabulary::rewriting::{Rewriting, TrampolineCall, record_size};

/// All that waits in a module, by object.
#[derive(Debug)]
pub struct Slices {
    slices: Vec<Slice>,
    /// Sections and numbers of all records that wait.
    left_out: Vec<(u32, u32)>,
    /// Symbols by index; waiting ones are [`SymbolKind::Waiting`].
    symbols: Vec<RelocSymbol>,
    slots: Slots,
    /// The module's memory after the module's own stages.
    before: CodeBuffers,
    facts: Facts,
    rewriting: Rewriting,
}

/// The relocations and records that wait for one object.
#[derive(Debug)]
pub struct Slice {
    object: String,
    relas: Vec<OwnRelas>,
    wanted: Vec<WantedSymbol>,
    tables: Vec<(Engine, &'static str, RecordTable)>,
}

/// A symbol of an object that is not there yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WantedSymbol {
    /// Index in the patch's symbol table.
    index: u32,
    /// Name of the symbol.
    pub name: Vec<u8>,
    /// Which of several of that name, from 1, in the order of the object's symbol table; 0: there is one.
    pub position: u64,
}

impl WantedSymbol {
    /// Chooses one of all symbols of this name by position. Returns `None` for an invalid position, and for position 0
    /// with several symbols.
    #[must_use]
    pub fn pick(&self, all: &[Addr]) -> Option<Addr> {
        picked(all, self.position)
    }
}

/// Relocations of one section, with the file's contents of that section.
#[derive(Debug)]
struct OwnRelas {
    /// Index of the relocation section.
    section: u32,
    /// Name of the relocated section, escaped.
    target: String,
    is_text: bool,
    addr: Addr,
    bytes: Vec<u8>,
    records: Vec<u8>,
}

impl OwnRelas {
    fn records(&self) -> impl Iterator<Item = Rela> {
        // A whole number of records: checked by stage *validate*.
        Records::<Rela>::new(&self.records).into_iter().flat_map(|records| records.iter())
    }
}

impl Slices {
    /// Keeps the waiting parts. `ledger` knows the edits of the engines.
    pub(crate) fn of(
        waiting: &Waiting<'_>,
        file: &File<'_>,
        layout: &ModuleLayout,
        resolved: &Resolved,
        ledger: &Ledger<'_, Staging>,
        rewriting: &Rewriting,
    ) -> Result<Option<Box<Slices>>, PrepareError> {
        if waiting.objects.is_empty() {
            return Ok(None);
        }
        let memory = ledger.code();
        waiting.check(file, memory, ledger.edits())?;
        let objects = waiting.objects.iter().enumerate();
        let slices = objects.map(|(number, object)| {
            let relas = relas_of(object, file, layout, memory);
            let mut wanted: Vec<_> = relas.iter().flat_map(OwnRelas::records).map(|rela| rela.symbol).collect();
            wanted.sort_unstable();
            wanted.dedup();
            let wanted = wanted.into_iter().filter_map(|at| wanted_symbol(file, at)).collect();
            let tables = waiting.tables(number, rewriting.profile);
            Slice { object: (*object).to_owned(), relas, wanted, tables }
        });
        let slices = slices.collect();
        let mut before = CodeBuffers::default();
        for part in MemoryPart::ALL.into_iter().filter(|part| !part.is_init()) {
            let kind = if part.is_text() { PieceKind::Text } else { PieceKind::Data };
            // Parts of a module do not overlap.
            let _ = before.add(memory.base(part), kind, memory.bytes(part).to_vec());
        }
        Ok(Some(Box::new(Slices {
            slices,
            left_out: waiting.left_out().to_vec(),
            symbols: resolved.symbols.clone(),
            slots: layout.slots.clone().place(memory.addr(layout.got), memory.addr(layout.plt)),
            before,
            facts: specialise::facts(layout, memory, rewriting),
            rewriting: rewriting.clone(),
        })))
    }

    /// Returns the slices, one for each object.
    pub fn iter(&self) -> impl Iterator<Item = &Slice> {
        self.slices.iter()
    }

    /// Returns the slice of the object of this name.
    #[must_use]
    pub fn of_object(&self, object: &str) -> Option<&Slice> {
        self.slices.iter().find(|slice| slice.object == object)
    }

    /// Plans the edits for an object whose symbols have addresses now. `found` has one address for each symbol that the
    /// slice [wants](Slice::wanted). Runs the stages of a load, in the same order.
    ///
    /// # Errors
    /// [`PrepareError::Relocation`], [`PrepareError::Rewrite`]: as in a load.
    pub fn plan(&self, slice: &Slice, found: &[Addr]) -> Result<SlicePlan<'_>, PrepareError> {
        let mut symbols = self.symbols.clone();
        for (wanted, addr) in slice.wanted.iter().zip(found) {
            if let Some(symbol) = symbols.get_mut(index(wanted.index.into())) {
                (symbol.addr, symbol.kind) = (*addr, RelocSymbolKind::External);
            }
        }
        let mut plan = SlicePlan {
            before: &self.before,
            after: self.before.clone(),
            edits: Edits::default(),
            tables: Vec::new(),
            calls: Vec::new(),
        };
        for relas in &slice.relas {
            let target = RelocatedSection {
                section: relas.section,
                addr: relas.addr,
                bytes: &relas.bytes,
                discarded: OnDiscarded::Refuse,
            };
            let Ok(records) = Records::<Rela>::new(&relas.records) else { continue };
            let applied = modload_relocs::apply(&target, records, &symbols[..], &self.slots, &mut plan);
            applied.map_err(|error| slice.failed(relas, error))?;
        }
        for (wanted, addr) in slice.wanted.iter().zip(found) {
            let Some(at) = self.slots.slot(wanted.index) else { continue };
            let why = EditOrigin { engine: Engine::Slot, section: 0, record: wanted.index };
            let edit = Edit { at, old: &[0; 8], new: &addr.get().to_le_bytes(), why };
            plan.edit(edit).map_err(|error| slice.not_written(&wanted.name, &error))?;
        }
        for (engine, name, table) in &slice.tables {
            if matches!(engine, Engine::JumpLabel | Engine::StaticCall) {
                plan.tables.push((*engine, *table));
                continue;
            }
            let nowhere = (Addr::NULL, 0);
            specialise::follow(*engine, name, table, nowhere, &self.facts, &self.rewriting, &mut plan)?;
        }
        // No mark is needed: a reference by name and position to a trampoline of another module is explicit.
        let trampolines: Vec<u32> = slice.trampolines().map(|symbol| symbol.index).collect();
        for relas in slice.relas.iter().filter(|relas| relas.is_text) {
            let of_trampolines = (0..).zip(relas.records()).filter(|(_, rela)| trampolines.contains(&rela.symbol));
            let calls = of_trampolines.filter_map(|(record, rela)| {
                specialise::trampoline_call(relas.addr, relas.section, record, &rela, &plan)
            });
            let calls: Vec<_> = calls.collect();
            plan.calls.extend(calls);
        }
        Ok(plan)
    }
}

/// Returns the parts of a section that do not wait: the whole section in a module without slices.
pub(crate) fn left<'s>(
    slices: Option<&'s Slices>,
    name: &str,
    table: RecordTable,
) -> impl Iterator<Item = RecordTable> + use<'s> {
    let engine = TABLES.iter().find(|(_, of)| *of == name).map(|(engine, _)| *engine);
    // Of other tables all is left.
    let record = slices.zip(engine).map_or(1, |(slices, engine)| record_size(engine, slices.rewriting.profile));
    waiting::left(slices.map_or(&[], |slices| &slices.left_out), table, record)
}

fn relas_of(object: &str, file: &File<'_>, layout: &ModuleLayout, memory: &Staging) -> Vec<OwnRelas> {
    let of_object = file.klp_relas.iter().filter(|relas| awaited(file, relas) == Some(object));
    let own = of_object.filter_map(|relas| {
        let (spot, target) = (layout.section(relas.target)?, file.section(relas.target)?);
        Some(OwnRelas {
            section: relas.section,
            target: escaped(target.name),
            is_text: spot.part.is_text(),
            addr: memory.addr(spot),
            bytes: target.data.to_vec(),
            records: file.section(relas.section)?.data.to_vec(),
        })
    });
    own.collect()
}

fn wanted_symbol(file: &File<'_>, at: u32) -> Option<WantedSymbol> {
    let symbol = file.symbol(at)?;
    let KlpSymbol { name, position, .. } = KlpSymbol::parse(symbol.name())?;
    Some(WantedSymbol { index: at, name: name.to_vec(), position })
}

impl Slice {
    /// The object: a module's name.
    #[must_use]
    pub fn object(&self) -> &str {
        &self.object
    }

    /// The symbols of the object that are needed.
    #[must_use]
    pub fn wanted(&self) -> &[WantedSymbol] {
        &self.wanted
    }

    /// Returns the wanted symbols that are trampolines of static calls.
    pub fn trampolines(&self) -> impl Iterator<Item = &WantedSymbol> {
        let prefix = modload_abi::section::STATIC_CALL_TRAMPOLINE_PREFIX.as_bytes();
        self.wanted.iter().filter(move |symbol| symbol.name.starts_with(prefix))
    }

    /// Returns the places in code that the slice's relocations write.
    pub fn places(&self) -> impl Iterator<Item = Addr> {
        let text = self.relas.iter().filter(|relas| relas.is_text);
        text.flat_map(|relas| relas.records().map(|rela| relas.addr + rela.offset))
    }

    fn failed(&self, relas: &OwnRelas, error: modload_relocs::RelocError) -> PrepareError {
        let site = *error.site();
        let named = self.wanted.iter().find(|symbol| symbol.index == site.symbol);
        PrepareError::Relocation {
            place: format!("{}+{:#x}", relas.target, site.offset),
            symbol: named.map_or_else(String::new, |symbol| escaped(&symbol.name)),
            error: Box::new(error),
            advice: RelocationAdvice::None,
        }
    }

    fn not_written(&self, symbol: &[u8], error: &Rejected) -> PrepareError {
        let name = format!("{} of {}", escaped(symbol), self.object);
        PrepareError::Rewrite { section: ".got", error: format!("the slot of {name}: {error}").into() }
    }
}

/// The planned edits of a live patch for an object. As [`Code`], this is the module after the edits.
#[derive(Debug)]
pub struct SlicePlan<'s> {
    before: &'s CodeBuffers,
    after: CodeBuffers,
    edits: Edits,
    /// Records of `__jump_table` and `.static_call_sites`, for the owner of static keys.
    tables: Vec<(Engine, RecordTable)>,
    calls: Vec<TrampolineCall>,
}

impl SlicePlan<'_> {
    /// The records of static keys and static calls that wait for the object, a table each.
    #[must_use]
    pub fn tables(&self) -> &[(Engine, RecordTable)] {
        &self.tables
    }

    /// Returns calls of static calls' trampolines that have no record.
    #[must_use]
    pub fn trampoline_calls(&self) -> &[TrampolineCall] {
        &self.calls
    }

    /// Returns the text around an address after the edits: start address and bytes.
    #[must_use]
    pub fn text_around(&self, at: Addr) -> Option<(Addr, &[u8])> {
        self.after.text_around(at)
    }

    /// Counts unchanged bytes as written, so that a later change of these bytes can be undone. If a part is written
    /// already, all of the bytes count.
    ///
    /// # Errors
    /// [`Rejected`]: the bytes do not exist, or another engine has written a part.
    pub fn include(&mut self, at: Addr, len: usize, why: EditOrigin) -> Result<(), Rejected> {
        if self.edits.touching(at, wide(len)).iter().any(|edit| edit.at <= at && at + wide(len) <= edit.end()) {
            return Ok(());
        }
        let there = self.bytes(at, len).ok_or(Rejected::Outside { at, len, start: at, end: at, why })?.to_vec();
        self.edit(Edit { at, old: &there, new: &there, why })
    }

    /// All that is to be written, each byte once.
    ///
    /// # Errors
    /// [`Rejected`]: a place lies in none of the module's parts.
    pub fn net(&self) -> Result<EditSet, Rejected> {
        let mut touched: Vec<_> =
            self.edits.iter().enumerate().map(|(made, edit)| (edit.at, edit.end(), made)).collect();
        touched.sort_unstable();
        let edits: Vec<_> = self.edits.iter().collect();
        let mut net = EditSet::new();
        let mut touched = touched.into_iter().peekable();
        while let Some((at, mut end, mut made)) = touched.next() {
            while let Some((_, further, other)) = touched.next_if(|(next, ..)| *next < end) {
                (end, made) = (end.max(further), made.max(other));
            }
            let why = edits[made].why;
            let len = index((end - at).cast_unsigned());
            let (Some(old), Some(new)) = (self.before.bytes(at, len), self.after.bytes(at, len)) else {
                return Err(Rejected::Outside { at, len, start: at, end: at, why });
            };
            net.edit(Edit { at, old, new, why })?;
        }
        Ok(net)
    }
}

impl Sink for SlicePlan<'_> {
    fn edit(&mut self, edit: Edit<'_>) -> Result<(), Rejected> {
        let mut ledger = Ledger::resume(&mut self.after, std::mem::take(&mut self.edits));
        let taken = ledger.edit(edit);
        self.edits = ledger.close();
        taken
    }
}

impl Code for SlicePlan<'_> {
    fn bytes(&self, at: Addr, len: usize) -> Option<&[u8]> {
        self.after.bytes(at, len)
    }

    fn text(&self, at: Addr, len: usize) -> Option<&[u8]> {
        self.after.text(at, len)
    }
}

#[cfg(test)]
mod tests {
    use super::{Code, CodeBuffers, Edit, EditOrigin, Edits, Engine, PieceKind, Rejected, Sink, SlicePlan};
    use modload_edit::Addr;

    #[test]
    fn each_byte_is_written_once() {
        let mut before = CodeBuffers::default();
        let text = [0xe8, 0, 0, 0, 0, 0xc3, 0x90, 0x90, 0xe8, 0, 0, 0, 0];
        before.add(Addr::new(0x1000), PieceKind::Text, text.to_vec()).unwrap();
        let (after, edits) = (before.clone(), Edits::default());
        let mut plan = SlicePlan { before: &before, after, edits, tables: Vec::new(), calls: Vec::new() };
        let why = |engine| EditOrigin { engine, section: 3, record: 1 };
        let edit = |plan: &mut SlicePlan<'_>, engine, at, old: &[u8], new: &[u8]| {
            plan.edit(Edit { at: Addr::new(at), old, new, why: why(engine) }).unwrap();
        };
        // A call that a static call's key turns into a NOP, a byte that is changed and changed back, and an unchanged
        // byte.
        edit(&mut plan, Engine::Relocation, 0x1001, &[0; 4], &[1, 2, 3, 4]);
        edit(&mut plan, Engine::StaticCall, 0x1000, &[0xe8, 1, 2, 3, 4], &[0x0f, 0x1f, 0x44, 0, 0]);
        edit(&mut plan, Engine::Alternative, 0x1006, &[0x90], &[0xf4]);
        edit(&mut plan, Engine::Alternative, 0x1006, &[0xf4], &[0x90]);
        plan.include(Addr::new(0x1005), 1, why(Engine::JumpLabel)).unwrap();
        plan.include(Addr::new(0x1000), 5, why(Engine::StaticCall)).unwrap();
        // A relocated call that needs no further change, but may change later.
        edit(&mut plan, Engine::Relocation, 0x1009, &[0; 4], &[5, 6, 7, 8]);
        plan.include(Addr::new(0x1008), 5, why(Engine::StaticCall)).unwrap();
        // Two keys for one place.
        assert!(matches!(plan.include(Addr::new(0x1003), 3, why(Engine::JumpLabel)), Err(Rejected::Clash { .. })));
        let net = plan.net().unwrap();
        let seen: Vec<_> =
            net.iter().map(|edit| (edit.at.get(), edit.old.to_vec(), edit.new.to_vec(), edit.why)).collect();
        let call = (0x1000, vec![0xe8, 0, 0, 0, 0], vec![0x0f, 0x1f, 0x44, 0, 0], why(Engine::StaticCall));
        let stays = (0x1005, vec![0xc3], vec![0xc3], why(Engine::JumpLabel));
        let back = (0x1006, vec![0x90], vec![0x90], why(Engine::Alternative));
        let right = (0x1008, vec![0xe8, 0, 0, 0, 0], vec![0xe8, 5, 6, 7, 8], why(Engine::StaticCall));
        assert_eq!(seen, [call, stays, back, right]);
        assert_eq!(plan.text(Addr::new(0x1005), 2), Some(&[0xc3, 0x90][..]));
    }
}
