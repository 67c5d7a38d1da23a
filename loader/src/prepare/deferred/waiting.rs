//! Finds the records of special sections that wait with the relocations of an object: records that contain such a
//! relocation, records whose site or replacement contains one, and records that rewrite the same site.

use modload_abi::record::{AltInstr, AltInstr63, FixedRecord, JumpEntry, ParavirtSite, StaticCallSite};
use modload_abi::section;
use modload_alternatives::Profile;
use modload_edit::{Addr, Code, Edit, Edits, Engine, ORDER, RecordTable, disassembled, wide};
use modload_relocs::{Reason, RelocFormula, RelocSite};

use super::{awaited, overlaps};
use crate::elf::file::{File, Relas};
use crate::prepare::error::{PrepareError, RelocationAdvice};
use crate::prepare::layout::ModuleLayout;
use crate::prepare::memory::Staging;
use crate::vocabulary::deferred_error::DeferredError;
use crate::vocabulary::rewriting::record_size;

/// Tables with records that can wait.
pub(super) const TABLES: [(Engine, &str); 4] = [
    (Engine::Paravirt, section::PARAINSTRUCTIONS),
    (Engine::Alternative, section::ALTINSTRUCTIONS),
    (Engine::JumpLabel, section::JUMP_TABLE),
    (Engine::StaticCall, section::STATIC_CALL_SITES),
];

/// Bytes at an address.
type ByteRange = (Addr, u64);

/// The bytes that a relocation which waits may write.
#[derive(Clone, Copy, Debug)]
struct WaitingField {
    extent: ByteRange,
    /// Number of the object in [`Waiting::objects`].
    object: usize,
    site: RelocSite,
    target: u32,
}

/// A record with the code that the record refers to.
#[derive(Clone, Copy, Debug)]
struct WaitingRecord {
    engine: Engine,
    name: &'static str,
    section: u32,
    number: u32,
    /// The record itself.
    own: ByteRange,
    /// The bytes of the record that give the address of code: code of this module.
    code: ByteRange,
    site: ByteRange,
    replacement: ByteRange,
}

/// The waiting parts of a module. Empty for a module that is no live patch.
#[derive(Default, Debug)]
pub(crate) struct Waiting<'a> {
    /// The objects for which anything waits, by name.
    pub(super) objects: Vec<&'a str>,
    fields: Vec<WaitingField>,
    /// Each record with the number of the object; by section, then by number.
    entries: Vec<(WaitingRecord, usize)>,
    /// Sections and numbers of the same.
    left_out: Vec<(u32, u32)>,
}

/// Largest number of bytes that a relocation writes, including bytes before the place.
const LONGEST_FIELD: u64 = 16;

impl<'a> Waiting<'a> {
    /// Finds the waiting parts of a relocated module.
    pub(crate) fn of(
        file: &File<'a>,
        layout: &ModuleLayout,
        memory: &Staging,
        profile: Profile,
    ) -> Result<Waiting<'a>, PrepareError> {
        let mut waiting = Waiting::default();
        for relas in &file.klp_relas {
            let Some(object) = awaited(file, relas) else { continue };
            let place = waiting.objects.binary_search(&object);
            if let Err(place) = place {
                waiting.objects.insert(place, object);
            }
        }
        if waiting.objects.is_empty() {
            return Ok(waiting);
        }
        for relas in &file.klp_relas {
            let object = awaited(file, relas).and_then(|object| waiting.objects.binary_search(&object).ok());
            let Some(object) = object else { continue };
            waiting.add_fields(file, layout, memory, relas, object)?;
        }
        waiting.fields.sort_by_key(|field| field.extent.0);
        waiting.find_records(file, layout, memory, profile)?;
        Ok(waiting)
    }

    fn add_fields(
        &mut self,
        file: &File<'a>,
        layout: &ModuleLayout,
        memory: &Staging,
        relas: &Relas<'a>,
        object: usize,
    ) -> Result<(), PrepareError> {
        let Some(spot) = layout.section(relas.target) else { return Ok(()) };
        let start = memory.addr(spot);
        let size = file.section(relas.target).map_or(0, |section| wide(section.data.len()));
        for (record, rela) in (0..).zip(relas.records.iter()) {
            let site =
                RelocSite { section: relas.section, record, raw: rela.kind, offset: rela.offset, symbol: rela.symbol };
            let failed = |error: modload_relocs::RelocError| PrepareError::Relocation {
                place: file.display_place(relas.target, rela.offset),
                symbol: file.display_name(rela.symbol),
                error: Box::new(error),
                advice: RelocationAdvice::None,
            };
            let refused = |reason| failed(modload_relocs::RelocError::Unsupported { site, reason });
            let row = modload_relocs::row(rela.kind).ok_or_else(|| refused(Reason::Unknown))?;
            let width = row.field.width();
            match row.value {
                RelocFormula::Refused(reason) => return Err(refused(reason)),
                RelocFormula::Nothing => continue,
                _ => {}
            }
            let before = u64::from(row.opcode);
            let end = rela.offset.checked_add(width.into()).filter(|end| *end <= size && rela.offset >= before);
            let Some(end) = end else {
                return Err(failed(modload_relocs::RelocError::Outside { site, width, size }));
            };
            let extent = (start + (rela.offset - before), end - (rela.offset - before));
            self.fields.push(WaitingField { extent, object, site, target: relas.target });
        }
        Ok(())
    }

    fn find_records(
        &mut self,
        file: &File<'a>,
        layout: &ModuleLayout,
        memory: &Staging,
        profile: Profile,
    ) -> Result<(), PrepareError> {
        let mut others = Vec::new();
        for (section, (contents, spot)) in (0..).zip(file.sections.iter().zip(&layout.sections)) {
            let named = TABLES.iter().find(|(_, name)| contents.name == name.as_bytes());
            let (Some(spot), Some(&(engine, name))) = (*spot, named) else { continue };
            let table = RecordTable::of_section(section, memory.addr(spot), wide(contents.data.len()));
            for number in table.numbers(record_size(engine, profile)) {
                let Some(entry) = WaitingRecord::read(engine, name, &table, number, memory, profile) else { continue };
                if let Some(field) = self.fields(entry.code).next() {
                    let object = self.objects[field.object].to_owned();
                    return Err(DeferredError::OtherSite { section: name, record: number, object }.into());
                }
                match self.object_of(&entry, &[entry.own, entry.site, entry.replacement])? {
                    Some(object) => self.entries.push((entry, object)),
                    None => others.push(entry),
                }
            }
        }
        // A record that rewrites the site of a waiting record waits too, because the later record must have the last
        // word.
        loop {
            let before = self.entries.len();
            let mut rest = Vec::with_capacity(others.len());
            for entry in others {
                let shares = |(other, _): &&(WaitingRecord, usize)| overlaps(other.site, entry.site);
                match self.entries.iter().find(shares).map(|(_, object)| *object) {
                    Some(object) => self.entries.push((entry, object)),
                    None => rest.push(entry),
                }
            }
            others = rest;
            if self.entries.len() == before {
                break;
            }
        }
        for (at, (entry, object)) in self.entries.iter().enumerate() {
            let differs = |(other, of): &&(WaitingRecord, usize)| of != object && overlaps(other.site, entry.site);
            if let Some((_, other)) = self.entries[..at].iter().find(differs) {
                return Err(self.two_objects(entry, *other, *object));
            }
        }
        let is_init =
            |(entry, _): &&(WaitingRecord, usize)| memory.at(entry.site.0).is_some_and(|(part, _)| part.is_init());
        if let Some((entry, object)) = self.entries.iter().find(is_init) {
            let (section, record, object) = (entry.name, entry.number, self.objects[*object].to_owned());
            return Err(DeferredError::InitSite { section, record, object }.into());
        }
        self.entries.sort_by_key(|(entry, _)| (entry.section, entry.number));
        self.left_out = self.entries.iter().map(|(entry, _)| (entry.section, entry.number)).collect();
        Ok(())
    }

    /// The object on which a record depends by any of these bytes.
    fn object_of(&self, entry: &WaitingRecord, extents: &[ByteRange]) -> Result<Option<usize>, PrepareError> {
        let mut fields = extents.iter().flat_map(|extent| self.fields(*extent));
        let Some(first) = fields.next() else { return Ok(None) };
        match fields.find(|field| field.object != first.object) {
            Some(other) => Err(self.two_objects(entry, first.object, other.object)),
            None => Ok(Some(first.object)),
        }
    }

    fn two_objects(&self, entry: &WaitingRecord, first: usize, second: usize) -> PrepareError {
        let name = |object: usize| self.objects[object].to_owned();
        let (section, record) = (entry.name, entry.number);
        DeferredError::TwoObjects { section, record, first: name(first), second: name(second) }.into()
    }

    /// The relocations that write any of these bytes.
    fn fields(&self, extent: ByteRange) -> impl Iterator<Item = &WaitingField> {
        let from = Addr::new(extent.0.get().saturating_sub(LONGEST_FIELD));
        let first = self.fields.partition_point(|field| field.extent.0 < from);
        let near = self.fields[first..].iter().take_while(move |field| field.extent.0 < extent.0 + extent.1);
        near.filter(move |field| overlaps(field.extent, extent))
    }

    /// Returns the runs of a table's records that do not wait.
    pub(crate) fn left(&self, table: RecordTable, record: u64) -> impl Iterator<Item = RecordTable> {
        left(&self.left_out, table, record)
    }

    /// Sections and numbers of the records that wait, sorted.
    pub(super) fn left_out(&self) -> &[(u32, u32)] {
        &self.left_out
    }

    /// Returns the records that wait for an object, as tables, in the order of the engines.
    pub(super) fn tables(&self, object: usize, profile: Profile) -> Vec<(Engine, &'static str, RecordTable)> {
        let of_object = self.entries.iter().filter(|(_, of)| *of == object);
        let mut tables: Vec<_> = of_object
            .map(|(entry, _)| {
                let table =
                    RecordTable { section: entry.section, first: entry.number, at: entry.own.0, size: entry.own.1 };
                (entry.engine, entry.name, table)
            })
            .collect();
        debug_assert!(tables.iter().all(|(engine, _, table)| table.size == record_size(*engine, profile)));
        tables.sort_by_key(|(engine, _, table)| (rank(*engine), table.section, table.first));
        tables
    }

    /// Refuses places that an engine without waiting has already rewritten: a later relocation would overwrite the
    /// result, and a later record would be applied after records of later engines.
    pub(super) fn check(&self, file: &File<'_>, memory: &Staging, edits: &Edits) -> Result<(), PrepareError> {
        for field in &self.fields {
            let touching = edits.touching(field.extent.0, field.extent.1);
            if let Some(first) = touching.first() {
                let RelocSite { raw, offset, symbol, .. } = field.site;
                let kind = modload_relocs::name(raw).unwrap_or("a relocation");
                let place = file.display_place(field.target, offset);
                let function =
                    file.function_at(field.target, offset).map_or_else(String::new, |name| format!(" in {name}"));
                let (name, len) = (file.display_name(symbol), field.extent.1);
                let late = format!("{kind} at {place}{function} against \"{name}\", which writes {len} bytes,");
                return Err(self.rewritten(late, field.object, first, memory));
            }
        }
        for (entry, object) in &self.entries {
            let touching = edits.touching(entry.site.0, entry.site.1);
            if let Some(first) = touching.iter().find(|first| rank(first.why.engine) > rank(entry.engine)) {
                let record = format!("record {} of section \"{}\"", entry.number, entry.name);
                return Err(self.rewritten(record, *object, first, memory));
            }
        }
        Ok(())
    }

    fn rewritten(&self, late: String, object: usize, first: &Edit<'_>, memory: &Staging) -> PrepareError {
        let shown = |bytes: &[u8]| format!("{bytes:02x?} ({})", disassembled(first.at, bytes));
        let (object, new) = (self.objects[object].to_owned(), Code::bytes(memory, first.at, first.new.len()));
        let (old, new) = (shown(first.old), shown(new.unwrap_or(first.new)));
        DeferredError::Rewritten { late, object, first: first.why.to_string(), old, new }.into()
    }
}

/// Returns the runs of a table's records between the records that are left out (sections and numbers, sorted).
pub(super) fn left(left_out: &[(u32, u32)], table: RecordTable, record: u64) -> impl Iterator<Item = RecordTable> {
    let from = left_out.partition_point(|(section, _)| *section < table.section);
    let to = left_out.partition_point(|(section, _)| *section <= table.section);
    let out = &left_out[from..to];
    let runs = (0..=out.len()).map(move |run| {
        let start = run.checked_sub(1).map_or(table.first, |before| out[before].1 + 1);
        let end = out.get(run).map_or(u32::MAX, |(_, number)| *number);
        if out.is_empty() { table } else { table.part(record, start, end) }
    });
    runs.filter(move |run| out.is_empty() || !run.is_empty())
}

/// The place of an engine among all.
fn rank(engine: Engine) -> usize {
    ORDER.iter().position(|(known, _)| *known == engine).unwrap_or(0)
}

impl WaitingRecord {
    fn read(
        engine: Engine,
        name: &'static str,
        table: &RecordTable,
        number: u32,
        memory: &Staging,
        profile: Profile,
    ) -> Option<WaitingRecord> {
        /// Length of the shortest jump. A relocation can only be in a longer jump, behind the first byte.
        const SHORT: u64 = 2;
        const CALL: u64 = 5;
        let size = record_size(engine, profile);
        let at = table.at + size * u64::from(number - table.first);
        let near = |offset: u64, distance: i32, len: u64| ((at + offset).offset(distance.into()), len);
        let nothing = (Addr::NULL, 0);
        let (code, site, replacement) = match (engine, profile) {
            (Engine::Paravirt, _) => {
                let (_, bytes) = table.record::<{ ParavirtSite::SIZE }>(memory, number)?;
                let record = ParavirtSite::read(&bytes);
                (8, (Addr::new(record.site), record.len.into()), nothing)
            }
            (Engine::JumpLabel, _) => {
                let (_, bytes) = table.record::<{ JumpEntry::SIZE }>(memory, number)?;
                (8, near(0, JumpEntry::read(&bytes).code, SHORT), nothing)
            }
            (Engine::StaticCall, _) => {
                let (_, bytes) = table.record::<{ StaticCallSite::SIZE }>(memory, number)?;
                (4, near(0, StaticCallSite::read(&bytes).site, CALL), nothing)
            }
            (_, Profile::Linux61) => {
                let (_, bytes) = table.record::<{ AltInstr::SIZE }>(memory, number)?;
                let record = AltInstr::read(&bytes);
                let site = near(0, record.site, record.site_len.into());
                (8, site, near(4, record.replacement, record.replacement_len.into()))
            }
            (_, Profile::Linux63) => {
                let (_, bytes) = table.record::<{ AltInstr63::SIZE }>(memory, number)?;
                let record = AltInstr63::read(&bytes);
                let site = near(0, record.site, record.site_len.into());
                (8, site, near(4, record.replacement, record.replacement_len.into()))
            }
        };
        Some(WaitingRecord {
            engine,
            name,
            section: table.section,
            number,
            own: (at, size),
            code: (at, code),
            site,
            replacement,
        })
    }
}
