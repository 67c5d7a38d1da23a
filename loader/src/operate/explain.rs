//! Explains the result of a load without loading: the module is laid out, resolved, relocated and rewritten in
//! temporary memory, and every edit is kept. Nothing is published or run, and no subscriber is called.

use modload_abi::Rela;
use modload_abi::record::{AltInstr, AltInstr63, FixedRecord, ParavirtSite};
use modload_alternatives::{Features, Profile};
use modload_edit::{Addr, Code, Edit, EditOrigin, Edits, Engine, Ledger, index, wide};
use object::elf;
#[cfg(feature = "serde")]
use serde::Serialize;

use crate::elf::error::ObjectError;
use crate::elf::file::{File, SymbolPlace};
use crate::elf::link::{self, Input};
use crate::elf::modinfo;
use crate::operate::admit;
use crate::operate::error::LoadError;
use crate::operate::judge::Judge;
use crate::operate::load::Loader;
use crate::operate::resolve;
use crate::operate::scene::{Absent, Scene};
use crate::prepare::deferred::Waiting;
use crate::prepare::layout::{self, ModuleLayout};
use crate::prepare::memory::{self, Staging};
use crate::prepare::relocate;
use crate::prepare::specialise::specialise;
use crate::prepare::vague::SharedDefinitions;
use crate::vocabulary::escape::escaped;
use crate::vocabulary::rewriting::Rewriting;
use crate::vocabulary::stage::Stage;

/// One function, before and after.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize))]
pub struct Explanation {
    /// Name of the function, escaped.
    pub function: String,
    /// Section and offset of the first byte.
    pub place: String,
    /// Bytes of the function in the file.
    pub before: Vec<u8>,
    /// Bytes of the function in memory.
    pub after: Vec<u8>,
    /// The edits with their engines, in order.
    pub changes: Vec<Change>,
}

/// One edit of a function.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize))]
pub struct Change {
    /// Offset of the first byte in the function; negative for an edit that begins before the function.
    pub offset: i64,
    /// The old bytes.
    pub old: Vec<u8>,
    /// The new bytes.
    pub new: Vec<u8>,
    /// Which engine: "relocation", "alternative", ..
    pub engine: String,
    /// The record that requires the edit: relocation, symbol and addend; the feature of the alternative; the operation.
    pub because: String,
}

impl Loader {
    /// Explains a function of a link unit: the bytes that the function would have in this host. Undefined symbols count
    /// as functions within reach.
    ///
    /// # Errors
    /// [`LoadError`]: the stage that has failed, and the reason.
    pub fn explain(&self, inputs: &[Input<'_>], stem: &str, function: &str) -> Result<Explanation, LoadError> {
        let policy = self.policy();
        let linked = link::link(inputs, &[function.to_owned()], policy.size_limit)
            .map_err(LoadError::of_stage(stem, Stage::Link))?;
        let file = File::validate(&linked.bytes).map_err(LoadError::of_stage(stem, Stage::Validate))?;
        let info = modinfo::read(&file, stem).map_err(LoadError::of_stage(stem, Stage::Modinfo))?;
        admit::check(&file).map_err(LoadError::of_stage(stem, Stage::Admit))?;
        let judge = Judge::new(policy, &file, &info).map_err(LoadError::of_stage(stem, Stage::Admit))?;
        let operations = policy.rewriting.host_operations.as_ref();
        let shared = SharedDefinitions::of(&file, policy.exports);
        let layout = layout::plan(&file, policy.size_limit, operations, shared)
            .map_err(LoadError::of_stage(stem, Stage::Layout))?;
        let (reservation, name) = self.registry.reserve_to_look(&info.name);
        let arena = self.arena();
        let mut memory = memory::allocate(arena, &layout).map_err(LoadError::of_stage(stem, Stage::Allocate))?;
        memory::copy(&file, &layout, operations, &mut memory);
        let scene = Scene {
            registry: self.registry,
            user: reservation.id,
            name: &name,
            externals: self.externals(),
            judge: &judge,
            libraries: &[],
            absent: Absent::Somewhere,
            shared,
        };
        let resolved =
            resolve::resolve(&file, &layout, &memory, scene).map_err(LoadError::of_stage(stem, Stage::Resolve))?;
        let mut ledger = Ledger::new(&mut memory);
        relocate::relocate_kept(&file, &layout, &resolved, &mut ledger, arena.is_low())
            .map_err(LoadError::of_stage(stem, Stage::Relocate))?;
        let waiting = Waiting::of(&file, &layout, ledger.code(), policy.rewriting.profile);
        let waiting = waiting.map_err(LoadError::of_stage(stem, Stage::Specialise))?;
        specialise(&file, &layout, &mut ledger, &policy.rewriting, &waiting)
            .map_err(LoadError::of_stage(stem, Stage::Specialise))?;
        let edits = ledger.close();
        let plan =
            ExplainPlan { file: &file, layout: &layout, memory: &memory, edits: &edits, rewriting: &policy.rewriting };
        plan.explain(function).ok_or_else(|| {
            let why = "the module has no function of this name";
            LoadError::of_stage(stem, Stage::Resolve)(ObjectError::Unsupported {
                what: "symbol",
                name: escaped(function.as_bytes()),
                why,
            })
        })
    }
}

struct ExplainPlan<'a> {
    file: &'a File<'a>,
    layout: &'a ModuleLayout,
    memory: &'a Staging,
    edits: &'a Edits,
    rewriting: &'a Rewriting,
}

impl ExplainPlan<'_> {
    fn explain(&self, name: &str) -> Option<Explanation> {
        let file = self.file;
        let mut named = file.symbols().filter(|(_, symbol)| symbol.name() == name.as_bytes());
        let (at, section, symbol) = named.find_map(|(_, symbol)| {
            let SymbolPlace::Section(section) = symbol.place else { return None };
            let code = file.section(section)?.flags.contains(elf::SHF_EXECINSTR);
            let spot = self.layout.section(section).filter(|_| code)?;
            Some((self.memory.addr(spot) + symbol.value, section, symbol))
        })?;
        let before = file.extent(section, &symbol)?;
        let len = before.len();
        let changes = self.edits.touching(at, wide(len)).into_iter().map(|edit| self.change(&edit, at));
        Some(Explanation {
            function: escaped(name.as_bytes()),
            place: file.display_place(section, symbol.value),
            before: before.to_vec(),
            after: Code::bytes(self.memory, at, len)?.to_vec(),
            changes: changes.collect(),
        })
    }

    fn change(&self, edit: &Edit<'_>, function: Addr) -> Change {
        Change {
            offset: edit.at - function,
            old: edit.old.to_vec(),
            new: edit.new.to_vec(),
            engine: edit.why.engine.to_string(),
            because: self.because(edit.why).unwrap_or_default(),
        }
    }

    /// Describes the record behind an edit.
    fn because(&self, why: EditOrigin) -> Option<String> {
        let section = self.file.section(why.section)?;
        let record = |size: usize| {
            let start = index(u64::from(why.record)) * size;
            section.data.get(start..start + size)
        };
        Some(match why.engine {
            Engine::Relocation | Engine::Slot => {
                let rela = Rela::read(record(Rela::SIZE)?);
                let kind = modload_relocs::name(rela.kind).unwrap_or("an unknown relocation");
                let sign = if rela.addend < 0 { '-' } else { '+' };
                format!("{kind} {}{sign}{:#x}", self.file.display_name(rela.symbol), rela.addend.unsigned_abs())
            }
            Engine::Alternative => {
                let (feature, not) = match self.rewriting.profile {
                    Profile::Linux61 => {
                        let record = AltInstr::read(record(AltInstr::SIZE)?);
                        (record.feature & !AltInstr::NOT, record.feature & AltInstr::NOT != 0)
                    }
                    Profile::Linux63 => {
                        let record = AltInstr63::read(record(AltInstr63::SIZE)?);
                        (record.feature, record.flags & AltInstr63::NOT != 0)
                    }
                };
                let name = Features::name(feature).unwrap_or("?");
                let has = self.rewriting.facts.features.has(feature) == Some(true);
                let here = if has { "has" } else { "has not" };
                format!("for a processor {} {name}; this one {here}", if not { "without" } else { "with" })
            }
            Engine::Paravirt if section.kind == elf::SHT_RELA => {
                let rela = Rela::read(record(Rela::SIZE)?);
                format!("a call through {}, whose function is in reach", self.file.display_name(rela.symbol))
            }
            Engine::Paravirt => {
                // The address in the record is relocated, the operation is not.
                let record = ParavirtSite::read(record(ParavirtSite::SIZE)?);
                format!("operation {}", record.op)
            }
            Engine::Indirect => format!("{} is an indirect function", self.file.display_name(why.record)),
            _ => format!("record {} of {}", why.record, escaped(section.name)),
        })
    }
}
