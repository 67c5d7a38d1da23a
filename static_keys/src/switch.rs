//! Switches keys: all sites of a key, in all modules, change in one batch.

use modload_alternatives::Facts;
use modload_edit::{Addr, Edit, Rejected, Sink};
use modload_text::{
    ArenaError, PokeError, TextLock, TrapMask, WriteFailed, load_u32, load_u64, poke, store_u32, store_u64,
};
use thiserror::Error;

use crate::far::FarJumps;
use crate::jump_label::KeyState;
use crate::problem::KeySiteProblem;
use crate::static_call::{CallKind, CallSite, CallTarget, StaticCalls, call_code};
use crate::table::{KeyTable, TextPhase, table};

/// A key was not switched. The key and all text are unchanged, except with [`KeyError::Write`].
#[derive(Debug, Error)]
pub enum KeyError {
    /// There is no key at this address.
    #[error("there is no key at {at}: it is not in the data of a module or of the arena")]
    Unknown {
        /// The address.
        at: Addr,
    },
    /// The count is 0 or at its maximum, or others have incremented it.
    #[error("the static key at {at} has the count {count}")]
    Unbalanced {
        /// The address of the key.
        at: Addr,
        /// The count.
        count: u32,
    },
    /// The bytes of a site cannot be computed.
    #[error("static call at {at}: {problem}")]
    Site {
        /// The address of the site.
        at: Addr,
        /// The reason.
        problem: KeySiteProblem,
    },
    /// The edits of two sites overlap.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// A function is out of reach, and the arena has no room for a jump to it.
    #[error("no jump to the function {function} could be made")]
    NoJump {
        /// The address of the function.
        function: Addr,
        /// The reason.
        source: ArenaError,
    },
    /// A key of the host has no address yet, and could not be placed in the arena.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The batch could not be poked.
    #[error(transparent)]
    Poke(#[from] PokeError),
    /// The sites are switched, but the key's own variable could not be written.
    #[error("the key at {at} could not be written")]
    Write {
        /// The address of the key.
        at: Addr,
        /// The reason.
        source: WriteFailed,
    },
}

/// A change of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Switch {
    Enable,
    Disable,
    Increment,
    Decrement,
}

/// Enables a key: a count of 0 becomes 1, any other count stays. Linux's `static_key_enable`.
///
/// # Errors
/// [`KeyError`].
pub fn enable(key: Addr) -> Result<(), KeyError> {
    switch(key, Switch::Enable)
}

/// Disables a key: a count of 1 becomes 0, a count of 0 stays. Linux's `static_key_disable`.
///
/// # Errors
/// [`KeyError`]; [`KeyError::Unbalanced`] if others have incremented the count.
pub fn disable(key: Addr) -> Result<(), KeyError> {
    switch(key, Switch::Disable)
}

/// Increments the count of a key. Enables the key if the count was 0. Linux's `static_key_slow_inc`.
///
/// # Errors
/// [`KeyError`].
pub fn increment(key: Addr) -> Result<(), KeyError> {
    switch(key, Switch::Increment)
}

/// Decrements the count of a key. Disables the key if the count becomes 0. Linux's `static_key_slow_dec`.
///
/// # Errors
/// [`KeyError`]; [`KeyError::Unbalanced`] if the count is 0.
pub fn decrement(key: Addr) -> Result<(), KeyError> {
    switch(key, Switch::Decrement)
}

/// Returns the count of a key.
///
/// # Errors
/// [`KeyError::Unknown`].
pub fn count(key: Addr) -> Result<u32, KeyError> {
    load_u32(key).ok_or(KeyError::Unknown { at: key })
}

/// Sets how text is poked when keys are switched from now on, in the whole process. The default is
/// [`TrapMask::Checked`].
pub fn set_trap_mask(mask: TrapMask) {
    table().trap_mask = mask;
}

fn switch(key: Addr, to: Switch) -> Result<(), KeyError> {
    let mut table = table();
    let count = load_u32(key).ok_or(KeyError::Unknown { at: key })?;
    let unbalanced = KeyError::Unbalanced { at: key, count };
    let new = match (to, count) {
        (Switch::Enable, 1..) | (Switch::Disable, 0) => return Ok(()),
        (Switch::Enable, 0) => 1,
        (Switch::Disable, 1) => 0,
        (Switch::Disable, _) => return Err(unbalanced),
        (Switch::Increment, _) => count.checked_add(1).ok_or(unbalanced)?,
        (Switch::Decrement, _) => count.checked_sub(1).ok_or(unbalanced)?,
    };
    let mut lock = TextLock::take();
    // A reader of the count sees the key enabled only after all sites are, and disabled before any site is.
    let set = |lock: &mut TextLock<'_>, count| {
        store_u32(lock, key, count).map_err(|source| KeyError::Write { at: key, source })
    };
    if (new != 0) == (count != 0) {
        return set(&mut lock, new);
    }
    if new == 0 {
        set(&mut lock, 0)?;
    }
    if let Err(failed) = table.show_key(&mut lock, key, new != 0) {
        if new == 0 {
            set(&mut lock, count)?;
        }
        return Err(failed);
    }
    if new == 0 { Ok(()) } else { set(&mut lock, new) }
}

pub(crate) fn state(enabled: bool) -> KeyState {
    if enabled { KeyState::Enabled } else { KeyState::Disabled }
}

impl KeyTable {
    /// Writes all published sites of a key for the enabled or the disabled state.
    pub(crate) fn show_key(&mut self, lock: &mut TextLock<'_>, key: Addr, enabled: bool) -> Result<(), KeyError> {
        self.batch.clear();
        for group in self.keys.of(key) {
            if group.phase == TextPhase::Published && group.shown != enabled {
                for site in &group.sites {
                    let (old, new) = (site.code(state(!enabled)), site.code(state(enabled)));
                    self.batch.edit(Edit { at: site.at, old: &old, new: &new, why: site.why })?;
                }
            }
        }
        self.poke(lock)?;
        for group in self.keys.of_mut(key) {
            if group.phase == TextPhase::Published {
                group.shown = enabled;
            }
        }
        Ok(())
    }

    /// Writes all published sites and trampolines of a static call for a new target.
    pub(crate) fn show_call(&mut self, key: Addr, target: CallTarget) -> Result<(), KeyError> {
        self.batch.clear();
        let facts = Facts::of_this_machine();
        let mut batch = std::mem::take(&mut self.batch);
        for group in self.calls.of(key) {
            if group.phase == TextPhase::Published && group.shown != target {
                for site in &group.sites {
                    let old = code_at(&mut self.far, &facts, site, group.shown)?;
                    let new = code_at(&mut self.far, &facts, site, target)?;
                    if old != new {
                        batch.edit(Edit { at: site.at, old: &old, new: &new, why: site.why })?;
                    }
                }
            }
        }
        self.batch = batch;
        self.poke(&mut TextLock::take())?;
        for group in self.calls.of_mut(key) {
            if group.phase == TextPhase::Published {
                group.shown = target;
            }
        }
        Ok(())
    }

    fn poke(&self, lock: &mut TextLock<'_>) -> Result<(), PokeError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        poke(lock, &self.batch, self.trap_mask).map(drop)
    }
}

/// Returns the bytes of a static call's site for a target at any distance.
pub(crate) fn code_at(
    far: &mut FarJumps,
    facts: &Facts,
    site: &CallSite,
    target: CallTarget,
) -> Result<[u8; 5], KeyError> {
    let target = near(far, site, target)?;
    let calls = StaticCalls { facts, return0: far.return0 };
    call_code(site.at, site.kind, target, calls).map_err(|problem| KeyError::Site { at: site.at, problem })
}

/// Returns a target within reach of the site.
pub(crate) fn near(far: &mut FarJumps, site: &CallSite, target: CallTarget) -> Result<CallTarget, KeyError> {
    match target {
        // The site does not call this function; see [`StaticCalls::return0`].
        CallTarget::Function(function) if site.kind == CallKind::Call && Some(function) == far.return0 => Ok(target),
        CallTarget::Function(function) => {
            let near = far.near(site.at, function).map_err(|source| KeyError::NoJump { function, source })?;
            Ok(CallTarget::Function(near))
        }
        CallTarget::Null | CallTarget::Unknown => Ok(target),
    }
}

/// Sets the function of a static call. With null, the call's sites do nothing and the result is whatever the result
/// register holds. Linux's `__static_call_update`. The caller must pass a function of the call's type: code that calls
/// through the static call relies on this.
///
/// # Errors
/// [`KeyError`].
pub fn update_static_call(key: Addr, function: Addr) -> Result<(), KeyError> {
    let mut table = table();
    if load_u64(key).ok_or(KeyError::Unknown { at: key })? == function.get() {
        return Ok(());
    }
    table.show_call(key, target(function))?;
    store_u64(&mut TextLock::take(), key, function.get()).map_err(|source| KeyError::Write { at: key, source })
}

/// Returns the function of a static call, or null if there is none. Linux's `static_call_query`.
///
/// # Errors
/// [`KeyError::Unknown`].
pub fn static_call_function(key: Addr) -> Result<Addr, KeyError> {
    load_u64(key).map(Addr::new).ok_or(KeyError::Unknown { at: key })
}

pub(crate) fn target(function: Addr) -> CallTarget {
    if function == Addr::NULL { CallTarget::Null } else { CallTarget::Function(function) }
}
