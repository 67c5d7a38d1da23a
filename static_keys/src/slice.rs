//! Keys of another module in a live patch: what waited for that module is planned and written here, with the sites of its
//! keys as these are at that moment, and the sites are switched with all others from then on. Linux refuses such patches.

use std::collections::BTreeMap;
use std::fmt;
use std::ptr;

use modload_alternatives::Facts;
use modload_edit::{Addr, EditSet, Engine, Rejected, write};
use modload_loader::{Module, Slice, SlicePlan};
use modload_text::{PokeError, TextLock, fill, load_u32, load_u64};
use thiserror::Error;

use crate::boundaries::{self, NotAnInstruction};
use crate::jump_label::{JumpSite, KeyState, jump_sites};
use crate::static_call::{CallSite, StaticCalls, Target, add_unrecorded, call_sites, set_site};
use crate::switch::{KeyError, code_at, near, state, target};
use crate::table::{Group, Owner, Phase, Stay, Table, Users, table};

/// What waited for a module was not written; all is as it was.
#[derive(Debug, Error)]
pub enum SliceError {
    /// A record cannot be followed.
    #[error(transparent)]
    Record(#[from] modload_edit::PlanError<crate::Problem>),
    /// A site is not where an instruction begins.
    #[error(transparent)]
    Boundary(#[from] NotAnInstruction),
    /// A key is not there, or a function that it calls cannot be reached.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Two things would be written to one place.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// It could not be written.
    #[error(transparent)]
    Fill(#[from] PokeError),
}

/// The sites of keys in what has been written. Dropping it forgets them: from then on nobody switches them.
pub struct SliceSites {
    owner: Owner,
}

impl fmt::Debug for SliceSites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SliceSites").field(&self.owner).finish()
    }
}

/// Writes what waited for a module into the patch that it belongs to. `key_of` gives the key of a trampoline of that
/// module's, which need not have been announced yet. Returns what was written, and the sites in it.
///
/// Nobody may be running what is written: see [`fill`].
///
/// # Errors
/// [`SliceError`]: nothing was written.
pub fn write_slice(
    patch: &Module,
    slice: &Slice,
    mut plan: SlicePlan<'_>,
    key_of: &dyn Fn(Addr) -> Option<Addr>,
) -> Result<(EditSet, SliceSites), SliceError> {
    let (mut jumps, mut calls) = (Vec::new(), Vec::new());
    for (engine, records) in plan.tables() {
        match engine {
            Engine::JumpLabel => jumps.extend(jump_sites(records, &plan)?),
            _ => calls.extend(call_sites(records, &plan)?),
        }
    }
    add_unrecorded(&mut calls, plan.trampoline_calls());
    let starts = jumps.iter().map(|site| (site.at, site.why)).chain(calls.iter().map(|site| (site.at, site.why)));
    let mut functions: Vec<_> = patch.functions().into_iter().map(|function| function.addr).collect();
    functions.sort_unstable();
    boundaries::check(patch, &functions, &|at| plan.text_around(at), starts.collect())?;

    // Until all is written nobody switches a key.
    let mut table = table();
    let jumps = plan_jumps(jumps, &mut plan)?;
    let calls = plan_calls(calls, &mut plan, &mut table, key_of)?;
    // Those that are right as they are will not stay so.
    for site in jumps.values().flat_map(|(_, sites)| sites) {
        plan.include(site.at, site.code(KeyState::Unknown).len(), site.why)?;
    }
    for site in calls.values().flat_map(|(_, sites)| sites) {
        plan.include(site.at, CALL, site.why)?;
    }
    let written = plan.net()?;
    fill(&mut TextLock::take(), &written)?;
    let owner = Owner::of_slice(slice);
    enter(&mut table.keys, owner, jumps, |site| site.at);
    enter(&mut table.calls, owner, calls, |site| site.at);
    drop(table);
    Ok((written, SliceSites { owner }))
}

/// Bytes of a static call's site.
const CALL: usize = 5;

/// Sites by their keys, with what they show.
type Shown<S, V> = BTreeMap<Addr, (V, Vec<S>)>;

fn plan_jumps(sites: Vec<JumpSite>, plan: &mut SlicePlan<'_>) -> Result<Shown<JumpSite, bool>, SliceError> {
    let mut users: Shown<JumpSite, bool> = BTreeMap::new();
    for site in sites {
        let count = load_u32(site.key).ok_or(KeyError::Unknown { at: site.key })?;
        let enabled = count != 0;
        write(plan, site.at, &site.code(state(enabled)), site.why)?;
        users.entry(site.key).or_insert((enabled, Vec::new())).1.push(site);
    }
    Ok(users)
}

fn plan_calls(
    sites: Vec<CallSite>,
    plan: &mut SlicePlan<'_>,
    table: &mut Table,
    key_of: &dyn Fn(Addr) -> Option<Addr>,
) -> Result<Shown<CallSite, Target>, SliceError> {
    let facts = Facts::of_this_machine();
    let mut callers: Shown<CallSite, Target> = BTreeMap::new();
    for site in sites {
        // Who may not name the key names its trampoline.
        let key = key_of(site.key).or_else(|| table.trampolines.get(&site.key).copied()).unwrap_or(site.key);
        let function = load_u64(key).ok_or(KeyError::Unknown { at: key })?;
        let shown = target(Addr::new(function));
        let reached = near(&mut table.far, &site, shown)?;
        let planned = StaticCalls { facts: &facts, return0: table.far.return0 };
        set_site(&site, reached, planned, plan)?;
        callers.entry(key).or_insert((shown, Vec::new())).1.push(site);
    }
    Ok(callers)
}

fn enter<S, V>(users: &mut Users<S, V>, owner: Owner, found: Shown<S, V>, at: impl Fn(&S) -> Addr) {
    for (key, (shown, mut sites)) in found {
        sites.sort_by_key(&at);
        users.add(key, Group { owner, stay: Stay::Core, phase: Phase::Published, shown, sites }, &at);
    }
}

impl Owner {
    fn of_slice(slice: &Slice) -> Owner {
        // As a part of its module it lies elsewhere than any module.
        Owner::at(ptr::from_ref(slice).addr())
    }
}

impl SliceSites {
    /// What stands at the sites now: keys may have been switched since.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn shown(&self) -> Result<Vec<(Addr, Vec<u8>)>, KeyError> {
        let mut table = table();
        let Table { keys, calls, far, .. } = &mut *table;
        let of_key = |group: &Group<JumpSite, bool>| {
            let now = state(group.shown);
            group.sites.iter().map(|site| (site.at, site.code(now).to_vec())).collect::<Vec<_>>()
        };
        let mut shown: Vec<_> = keys.of_owner(self.owner).flat_map(of_key).collect();
        let facts = Facts::of_this_machine();
        for group in calls.of_owner(self.owner) {
            for site in &group.sites {
                shown.push((site.at, code_at(far, &facts, site, group.shown)?.to_vec()));
            }
        }
        Ok(shown)
    }
}

impl Drop for SliceSites {
    fn drop(&mut self) {
        let mut table = table();
        table.keys.forget(self.owner, Stay::Core);
        table.calls.forget(self.owner, Stay::Core);
    }
}
