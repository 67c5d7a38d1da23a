//! The subscriber of both chains. It sets the sites of a module before any notifier of a module or of the embedder runs,
//! and forgets the sites when the module goes.

use std::collections::BTreeMap;
use std::fmt;

use modload_abi::section;
use modload_alternatives::Facts;
use modload_edit::{Addr, Code, Edit, EditOrigin, Engine, RecordTable, Rejected, Sink};
use modload_loader::{Coming, Module, Refusal, SectionBytes, Subscriber};
use modload_text::{TextLock, load_u32, load_u64};

use crate::boundaries;
use crate::jump_label::{JumpSite, jump_sites};
use crate::static_call::{
    CallKind, CallSite, CallTarget, StaticCalls, add_unrecorded, call_sites, set_site, trampoline,
};
use crate::switch::{KeyError, near, state, target};
use crate::table::{KeyTable, SiteOwner, Stay, table};

/// Static keys and static calls of modules. Each host has a value of this type, but the table behind is the process's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct StaticKeys;

impl Default for StaticKeys {
    fn default() -> StaticKeys {
        StaticKeys::new()
    }
}

impl StaticKeys {
    /// Makes the subscriber of a new host. Installs the fork handlers of the table, so that a child never finds them
    /// half installed.
    #[must_use]
    pub fn new() -> StaticKeys {
        drop(table());
        StaticKeys
    }
}

/// Staged text, and one section beside it, for the planners.
struct ComingCode<'w, 'm> {
    coming: &'w mut Coming<'m>,
    section: SectionBytes,
}

impl Code for ComingCode<'_, '_> {
    fn bytes(&self, at: Addr, len: usize) -> Option<&[u8]> {
        let SectionBytes { table, bytes } = &self.section;
        let start = at.checked_offset_from(table.at).map(modload_edit::index);
        let found = start.and_then(|start| bytes.get(start..start.checked_add(len)?));
        found.or_else(|| self.text(at, len).filter(|text| text.len() == len))
    }

    fn text(&self, at: Addr, len: usize) -> Option<&[u8]> {
        let (start, bytes) = self.coming.text(at)?;
        let rest = bytes.get(modload_edit::index(at.checked_offset_from(start)?)..)?;
        Some(&rest[..len.min(rest.len())])
    }
}

impl Sink for ComingCode<'_, '_> {
    fn edit(&mut self, edit: Edit<'_>) -> Result<(), Rejected> {
        self.coming.edit(edit)
    }
}

impl Subscriber for StaticKeys {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        let found = ModuleSites::read(coming)?;
        if !found.is_empty() {
            boundaries::check(coming.module(), &coming.functions(), &|at| coming.text(at), found.sites())?;
            found.enter(coming, &mut table())?;
            coming.tell_when_published();
        }
        Ok(())
    }

    fn published(&self, module: &Module) -> Result<(), Refusal> {
        let (owner, mut table) = (SiteOwner::of(module), table());
        let refused = |key: Addr, error: KeyError| {
            let place = module.display_place(key).unwrap_or_else(|| key.to_string());
            Refusal::from(format!("the key at {place} was switched while the module was coming: {error}"))
        };
        for key in table.keys.published(owner) {
            let Some(count) = load_u32(key) else { continue };
            table.show_key(&mut TextLock::take(), key, count != 0).map_err(|error| refused(key, error))?;
        }
        for key in table.calls.published(owner) {
            let Some(function) = load_u64(key) else { continue };
            table.show_call(key, target(Addr::new(function))).map_err(|error| refused(key, error))?;
        }
        Ok(())
    }

    fn live(&self, module: &Module) {
        let (owner, mut table) = (SiteOwner::of(module), table());
        table.keys.forget(owner, Stay::Init);
        table.calls.forget(owner, Stay::Init);
    }

    fn going(&self, module: &Module) {
        let (owner, mut table) = (SiteOwner::of(module), table());
        table.keys.forget(owner, Stay::Core);
        table.calls.forget(owner, Stay::Core);
        table.trampolines.retain(|trampoline, _| !module.contains(*trampoline));
    }
}

/// The sites and keys in a module's tables and symbols.
#[derive(Default)]
struct ModuleSites {
    jumps: Vec<JumpSite>,
    calls: Vec<CallSite>,
    /// Trampolines and their keys. The module's own trampolines are sites, too.
    trampolines: Vec<(Addr, Addr)>,
    own: Vec<CallSite>,
}

fn refused(section: &str, error: impl fmt::Display) -> Refusal {
    format!("{section}: {error}").into()
}

impl ModuleSites {
    fn read(coming: &mut Coming<'_>) -> Result<ModuleSites, Refusal> {
        let mut found = ModuleSites::default();
        let tables = |coming: &Coming<'_>, name| coming.sections(name).collect::<Vec<_>>();
        for section in tables(coming, section::JUMP_TABLE) {
            let table = section.table;
            let sites = jump_sites(&table, &ComingCode { coming, section });
            found.jumps.extend(sites.map_err(|error| refused(section::JUMP_TABLE, error))?);
        }
        for section in tables(coming, section::STATIC_CALL_SITES) {
            let table = section.table;
            let sites = call_sites(&table, &ComingCode { coming, section });
            found.calls.extend(sites.map_err(|error| refused(section::STATIC_CALL_SITES, error))?);
        }
        for section in tables(coming, section::STATIC_CALL_TRAMP_KEY) {
            let table = section.table;
            let sites = call_sites(&table, &ComingCode { coming, section });
            let sites = sites.map_err(|error| refused(section::STATIC_CALL_TRAMP_KEY, error))?;
            found.trampolines.extend(sites.iter().map(|record| (record.at, record.key)));
        }
        add_unrecorded(&mut found.calls, coming.trampoline_calls());
        // Searching all symbols is slow, so it is done only if the module has trampolines.
        if !coming.module().sections().any(|placed| placed.name == section::STATIC_CALL_TEXT) {
            return Ok(found);
        }
        let keys: BTreeMap<_, _> = coming.symbols_with_prefix(section::STATIC_CALL_KEY_PREFIX).into_iter().collect();
        let trampolines = coming.symbols_with_prefix(section::STATIC_CALL_TRAMPOLINE_PREFIX);
        for (record, (name, at)) in (0..).zip(trampolines) {
            let Some(&key) = keys.get(&name) else { continue };
            let why = EditOrigin { engine: Engine::StaticCall, section: 0, record };
            found.trampolines.push((at, key));
            found.own.push(CallSite { at, kind: CallKind::Tail, why, key });
        }
        Ok(found)
    }

    fn is_empty(&self) -> bool {
        self.jumps.is_empty() && self.calls.is_empty() && self.trampolines.is_empty()
    }

    /// Returns the addresses at which instructions must begin, with the record of each.
    fn sites(&self) -> Vec<(Addr, EditOrigin)> {
        let jumps = self.jumps.iter().map(|site| (site.at, site.why));
        jumps.chain(self.calls.iter().chain(&self.own).map(|site| (site.at, site.why))).collect()
    }

    /// Writes every site as its key requires, and adds all sites to the table.
    fn enter(self, coming: &mut Coming<'_>, table: &mut KeyTable) -> Result<(), Refusal> {
        let ModuleSites { jumps, calls, trampolines, own } = self;
        let owner = SiteOwner::of(coming.module());
        let nothing = SectionBytes { table: RecordTable::of_section(0, Addr::NULL, 0), bytes: Vec::new() };
        let place = |coming: &Coming<'_>, at| coming.module().display_place(at).unwrap_or_else(|| at.to_string());
        let mut users: BTreeMap<(Addr, Stay), (bool, Vec<JumpSite>)> = BTreeMap::new();
        for site in jumps {
            let key = site.key;
            let count = load_u32(key).ok_or_else(|| {
                let (why, key) = (site.why, place(coming, key));
                refused(section::JUMP_TABLE, format!("{why}: there is no key at {key}"))
            })?;
            if coming.is_init(key) && !coming.is_init(site.at) {
                let why = site.why;
                return Err(refused(
                    section::JUMP_TABLE,
                    format!(
                        "{why}: its key is freed with the init sections, but its site is not; move the key out of init data"
                    ),
                ));
            }
            let enabled = count != 0;
            let mut work = ComingCode { coming, section: nothing.clone() };
            modload_edit::write(&mut work, site.at, &site.code(state(enabled)), site.why)
                .map_err(|error| refused(section::JUMP_TABLE, error))?;
            users.entry((key, stay(coming, site.at))).or_insert((enabled, Vec::new())).1.push(site);
        }
        let known: BTreeMap<_, _> = trampolines.iter().copied().collect();
        let mut callers: BTreeMap<(Addr, Stay), (CallTarget, Vec<CallSite>)> = BTreeMap::new();
        let facts = Facts::of_this_machine();
        let planned = StaticCalls { facts: &facts, return0: table.far.return0 };
        let own = own.into_iter().map(|site| (site, CallPlace::Trampoline));
        for (site, named) in calls.into_iter().map(|site| (site, CallPlace::Site)).chain(own) {
            let failed = |error: &dyn fmt::Display| refused(section::STATIC_CALL_SITES, error);
            // A module that may not name a key names the key's trampoline instead.
            let named_by = known.get(&site.key).or_else(|| table.trampolines.get(&site.key));
            let key = named_by.copied().unwrap_or(site.key);
            let function = load_u64(key).ok_or_else(|| {
                let (why, key) = (site.why, place(coming, key));
                failed(&format_args!("{why}: there is no key and no trampoline at {key}"))
            })?;
            if coming.is_init(key) && !coming.is_init(site.at) {
                let why = site.why;
                return Err(failed(&format_args!(
                    "{why}: its key is freed with the init sections, but its site is not; move the key out of init data"
                )));
            }
            let shown = target(Addr::new(function));
            let reached = near(&mut table.far, &site, shown).map_err(|error| failed(&error))?;
            let mut work = ComingCode { coming, section: nothing.clone() };
            match named {
                CallPlace::Site => set_site(&site, reached, planned, &mut work),
                CallPlace::Trampoline => trampoline(site.at, reached, planned, site.why, &mut work),
            }
            .map_err(|error| failed(&error))?;
            callers.entry((key, stay(coming, site.at))).or_insert((shown, Vec::new())).1.push(site);
        }
        table.trampolines.extend(known);
        table.keys.add_staged(owner, users, |site| site.at);
        table.calls.add_staged(owner, callers, |site| site.at);
        Ok(())
    }
}

/// How the table knows a place that calls.
enum CallPlace {
    Site,
    Trampoline,
}

fn stay(coming: &Coming<'_>, at: Addr) -> Stay {
    if coming.is_init(at) { Stay::Init } else { Stay::Core }
}
