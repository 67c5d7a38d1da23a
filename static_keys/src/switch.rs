//! Switching keys: what stands at all their sites, in all modules, changes as one batch.

use modload_alternatives::Facts;
use modload_edit::{Addr, Edit, Rejected, Sink};
use modload_text::{
    ArenaError, PokeError, TextLock, TrapMask, WriteFailed, load_u32, load_u64, poke, store_u32, store_u64,
};
use thiserror::Error;

use crate::Problem;
use crate::far::Far;
use crate::jump_label::KeyState;
use crate::static_call::{CallKind, CallSite, StaticCalls, Target, call_code};
use crate::table::{Phase, Table, table};

/// A key that was not switched. It is as it was, and so is all text.
#[derive(Debug, Error)]
pub enum KeyError {
    /// There is none.
    #[error("there is no key at {at}: it is not in the data of a module or of the arena")]
    Unknown {
        /// Where.
        at: Addr,
    },
    /// Its count is 0, or as large as it can be.
    #[error("the static key at {at} has the count {count}")]
    Unbalanced {
        /// Where.
        at: Addr,
        /// Its count.
        count: u32,
    },
    /// What a site would be is not known.
    #[error("static call at {at}: {problem}")]
    Site {
        /// Where.
        at: Addr,
        /// What is wrong.
        problem: Problem,
    },
    /// Two sites lie on one another.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// A function is out of reach, and no jump to it could be made.
    #[error("no jump to the function {function} could be made")]
    NoJump {
        /// Where it is.
        function: Addr,
        /// Why not.
        source: ArenaError,
    },
    /// A key of the host's has no place yet, and got none.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The batch was not poked.
    #[error(transparent)]
    Poke(#[from] PokeError),
    /// The sites are switched, but the key's own variable could not be written.
    #[error("the key at {at} could not be written")]
    Write {
        /// Where.
        at: Addr,
        /// Why not.
        source: WriteFailed,
    },
}

/// What a key is switched to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Switch {
    Enable,
    Disable,
    Increment,
    Decrement,
}

/// Enables a key: its count becomes 1 if it was 0, and stays if it was not. Linux's `static_key_enable`.
///
/// # Errors
/// [`KeyError`].
pub fn enable(key: Addr) -> Result<(), KeyError> {
    switch(key, Switch::Enable)
}

/// Disables a key whose count is 1; one whose count is 0 stays as it is. Linux's `static_key_disable`.
///
/// # Errors
/// [`KeyError`]; [`KeyError::Unbalanced`] if others have counted it up.
pub fn disable(key: Addr) -> Result<(), KeyError> {
    switch(key, Switch::Disable)
}

/// Counts a key up, and enables it if its count was 0. Linux's `static_key_slow_inc`.
///
/// # Errors
/// [`KeyError`].
pub fn increment(key: Addr) -> Result<(), KeyError> {
    switch(key, Switch::Increment)
}

/// Counts a key down, and disables it if its count becomes 0. Linux's `static_key_slow_dec`.
///
/// # Errors
/// [`KeyError`]; [`KeyError::Unbalanced`] if its count is 0.
pub fn decrement(key: Addr) -> Result<(), KeyError> {
    switch(key, Switch::Decrement)
}

/// A key's count.
///
/// # Errors
/// [`KeyError::Unknown`].
pub fn count(key: Addr) -> Result<u32, KeyError> {
    load_u32(key).ok_or(KeyError::Unknown { at: key })
}

/// How text is poked from now on when keys are switched, in the whole process. [`TrapMask::Checked`] if nothing else is
/// said.
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
    // Whoever reads the count finds it enabled only when every site is, and disabled before any site is.
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

impl Table {
    /// Makes all published sites of a key show that it is enabled, or that it is not.
    pub(crate) fn show_key(&mut self, lock: &mut TextLock<'_>, key: Addr, enabled: bool) -> Result<(), KeyError> {
        self.batch.clear();
        for group in self.keys.of(key) {
            if group.phase == Phase::Published && group.shown != enabled {
                for site in &group.sites {
                    let (old, new) = (site.code(state(!enabled)), site.code(state(enabled)));
                    self.batch.edit(Edit { at: site.at, old: &old, new: &new, why: site.why })?;
                }
            }
        }
        self.poke(lock)?;
        for group in self.keys.of_mut(key) {
            if group.phase == Phase::Published {
                group.shown = enabled;
            }
        }
        Ok(())
    }

    /// Makes all published sites and trampolines of a static call lead where its key does.
    pub(crate) fn show_call(&mut self, key: Addr, target: Target) -> Result<(), KeyError> {
        self.batch.clear();
        let facts = Facts::of_this_machine();
        let mut batch = std::mem::take(&mut self.batch);
        for group in self.calls.of(key) {
            if group.phase == Phase::Published && group.shown != target {
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
            if group.phase == Phase::Published {
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

/// What stands at the site of a static call for a target, however far away that is.
pub(crate) fn code_at(far: &mut Far, facts: &Facts, site: &CallSite, target: Target) -> Result<[u8; 5], KeyError> {
    let target = near(far, site, target)?;
    let calls = StaticCalls { facts, return0: far.return0 };
    call_code(site.at, site.kind, target, calls).map_err(|problem| KeyError::Site { at: site.at, problem })
}

/// A target that a site reaches.
pub(crate) fn near(far: &mut Far, site: &CallSite, target: Target) -> Result<Target, KeyError> {
    match target {
        // A call of it is not made.
        Target::Function(function) if site.kind == CallKind::Call && Some(function) == far.return0 => Ok(target),
        Target::Function(function) => {
            let near = far.near(site.at, function).map_err(|source| KeyError::NoJump { function, source })?;
            Ok(Target::Function(near))
        }
        Target::Null | Target::Unknown => Ok(target),
    }
}

/// Has a static call call another function from now on; null for none: its sites do nothing then, and give what is in
/// the register of results. Linux's `__static_call_update`. That the function has the call's type is for the caller to
/// see to: who calls through it trusts that.
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

/// What a static call calls; null for nothing. Linux's `static_call_query`.
///
/// # Errors
/// [`KeyError::Unknown`].
pub fn static_call_function(key: Addr) -> Result<Addr, KeyError> {
    load_u64(key).map(Addr::new).ok_or(KeyError::Unknown { at: key })
}

pub(crate) fn target(function: Addr) -> Target {
    if function == Addr::NULL { Target::Null } else { Target::Function(function) }
}
