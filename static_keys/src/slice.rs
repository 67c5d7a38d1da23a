//! Live patches that use keys of another module. When that module comes, its slice of the patch is written here, with
//! the current state of its keys. From then on these sites are switched together with all other sites. Linux refuses
//! such patches.

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
use crate::problem::KeySiteProblem;
use crate::static_call::{CallSite, CallTarget, StaticCalls, add_unrecorded, call_sites, set_site};
use crate::switch::{KeyError, code_at, near, state, target};
use crate::table::{KeyTable, SiteGroup, SiteOwner, Stay, TextPhase, Users, table};

/// The slice was not written. Nothing has changed.
#[derive(Debug, Error)]
pub enum SliceError {
    /// A record cannot be applied.
    #[error(transparent)]
    Record(#[from] modload_edit::PlanError<KeySiteProblem>),
    /// No instruction begins at a site.
    #[error(transparent)]
    Boundary(#[from] NotAnInstruction),
    /// A key does not exist, or the function that it calls is out of reach.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Two edits overlap.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The edits could not be written.
    #[error(transparent)]
    Fill(#[from] PokeError),
}

/// The sites in a written slice. Dropping this value forgets the sites: later switches of their keys do not change
/// them.
pub struct SliceSites {
    owner: SiteOwner,
}

impl fmt::Debug for SliceSites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SliceSites").field(&self.owner).finish()
    }
}

/// Writes a slice, the part of a patch that waited for a module, into the patch. `key_of` returns the key of a
/// trampoline of that module, which need not have been announced yet. Returns the written edits, and the sites among
/// them.
///
/// No thread may be executing the written bytes: see [`fill`].
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

    // The lock of the table keeps all keys from being switched until everything is written.
    let mut table = table();
    let jumps = plan_jumps(jumps, &mut plan)?;
    let calls = plan_calls(calls, &mut plan, &mut table, key_of)?;
    // A later switch changes these sites, so the result includes them even if their bytes are right already.
    for site in jumps.values().flat_map(|(_, sites)| sites) {
        plan.include(site.at, site.code(KeyState::Unknown).len(), site.why)?;
    }
    for site in calls.values().flat_map(|(_, sites)| sites) {
        plan.include(site.at, CALL, site.why)?;
    }
    let written = plan.net()?;
    fill(&mut TextLock::take(), &written)?;
    let owner = SiteOwner::of_slice(slice);
    enter(&mut table.keys, owner, jumps, |site| site.at);
    enter(&mut table.calls, owner, calls, |site| site.at);
    drop(table);
    Ok((written, SliceSites { owner }))
}

/// The length of a static call's site in bytes.
const CALL: usize = 5;

/// Sites by their keys, with the key's value for which each site is written.
type SitesByKey<S, V> = BTreeMap<Addr, (V, Vec<S>)>;

fn plan_jumps(sites: Vec<JumpSite>, plan: &mut SlicePlan<'_>) -> Result<SitesByKey<JumpSite, bool>, SliceError> {
    let mut users: SitesByKey<JumpSite, bool> = BTreeMap::new();
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
    table: &mut KeyTable,
    key_of: &dyn Fn(Addr) -> Option<Addr>,
) -> Result<SitesByKey<CallSite, CallTarget>, SliceError> {
    let facts = Facts::of_this_machine();
    let mut callers: SitesByKey<CallSite, CallTarget> = BTreeMap::new();
    for site in sites {
        // A module that may not name a key names the key's trampoline instead.
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

fn enter<S, V>(users: &mut Users<S, V>, owner: SiteOwner, found: SitesByKey<S, V>, at: impl Fn(&S) -> Addr) {
    for (key, (shown, mut sites)) in found {
        sites.sort_by_key(&at);
        users.add(key, SiteGroup { owner, stay: Stay::Core, phase: TextPhase::Published, shown, sites }, &at);
    }
}

impl SiteOwner {
    fn of_slice(slice: &Slice) -> SiteOwner {
        // A slice is a part of its module, so no module has the same address.
        SiteOwner::at(ptr::from_ref(slice).addr())
    }
}

impl SliceSites {
    /// Returns the current bytes of the sites. Keys may have been switched since the slice was written.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn shown(&self) -> Result<Vec<(Addr, Vec<u8>)>, KeyError> {
        let mut table = table();
        let KeyTable { keys, calls, far, .. } = &mut *table;
        let of_key = |group: &SiteGroup<JumpSite, bool>| {
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
