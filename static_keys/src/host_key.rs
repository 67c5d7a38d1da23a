//! Keys that the host owns, in Rust. Their numbers and trampolines live in the arena, where every module's code reaches
//! them.

use std::mem::forget;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use modload_edit::{Addr, Engine, Why};
use modload_text::{Arena, ArenaError, Describe, TextLock, load_u32, load_u64};

use crate::static_call::{CallKind, CallSite, TRAMPOLINE, Target};
use crate::switch::{KeyError, decrement, disable, enable, increment};
use crate::table::{Group, Owner, Phase, Stay, table};

/// A static key of the host's: modules branch on it at the price of a NOP.
///
/// ```
/// # use modload_static_keys::StaticKey;
/// static VERBOSE: StaticKey = StaticKey::disabled();
/// assert!(!VERBOSE.is_enabled());
/// ```
#[derive(Debug)]
pub struct StaticKey {
    initial: u32,
    /// Where its `struct static_key` is; 0 until somebody asks.
    home: AtomicU64,
}

/// A static call of the host's: what modules call through it can be changed, and costs them a direct call.
#[derive(Debug)]
pub struct StaticCall {
    /// Where its `struct static_call_key` and its trampoline are; 0 until somebody asks.
    home: AtomicU64,
    trampoline: AtomicU64,
}

/// `struct static_key` and `struct static_call_key` of the SDK.
const SIZE: u64 = 16;

/// A key of this size and value in the arena, for good.
fn place(value: &[u8]) -> Result<Addr, ArenaError> {
    let mut fresh = Arena::get()?.place_data(SIZE, SIZE)?;
    fresh.bytes_mut()[..value.len()].copy_from_slice(value);
    let at = fresh.addr();
    forget(fresh.settle());
    Ok(at)
}

impl StaticKey {
    /// A key whose count is 0.
    #[must_use]
    pub const fn disabled() -> StaticKey {
        StaticKey { initial: 0, home: AtomicU64::new(0) }
    }

    /// A key whose count is 1.
    #[must_use]
    pub const fn enabled() -> StaticKey {
        StaticKey { initial: 1, home: AtomicU64::new(0) }
    }

    /// Where modules see it: a `struct static_key` in the arena.
    ///
    /// # Errors
    /// [`ArenaError`]: there is no arena, or no room in it.
    pub fn addr(&self) -> Result<Addr, ArenaError> {
        // For two that ask at a time.
        let _table = table();
        let at = self.home.load(Ordering::Acquire);
        if at != 0 {
            return Ok(Addr::new(at));
        }
        let at = place(&self.initial.to_ne_bytes())?;
        self.home.store(at.get(), Ordering::Release);
        Ok(at)
    }

    /// Whether its count is not 0.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        load_u32(Addr::new(self.home.load(Ordering::Acquire))).unwrap_or(self.initial) != 0
    }

    /// [`enable`]s it.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn enable(&self) -> Result<(), KeyError> {
        enable(self.addr()?)
    }

    /// [`disable`]s it.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn disable(&self) -> Result<(), KeyError> {
        disable(self.addr()?)
    }

    /// Counts it up: [`increment`].
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn increment(&self) -> Result<(), KeyError> {
        increment(self.addr()?)
    }

    /// Counts it down: [`decrement`].
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn decrement(&self) -> Result<(), KeyError> {
        decrement(self.addr()?)
    }
}

/// Names a trampoline of the host's.
struct Name;

impl Describe for Name {
    fn module(&self) -> &'static str {
        "static calls"
    }

    fn symbol(&self, _: Addr) -> Option<(&[u8], u64)> {
        None
    }
}

impl StaticCall {
    /// A call of nothing.
    #[must_use]
    pub const fn null() -> StaticCall {
        StaticCall { home: AtomicU64::new(0), trampoline: AtomicU64::new(0) }
    }

    /// Where modules see it: its `struct static_call_key` and its trampoline, both in the arena.
    ///
    /// # Errors
    /// [`ArenaError`]: there is no arena, or no room in it.
    pub fn addrs(&self) -> Result<(Addr, Addr), ArenaError> {
        let mut table = table();
        let at = self.home.load(Ordering::Acquire);
        if at != 0 {
            return Ok((Addr::new(at), Addr::new(self.trampoline.load(Ordering::Acquire))));
        }
        let key = place(&[])?;
        // ret; int3, and what says that it is a trampoline.
        let mut staged = Arena::get()?.stage_text(SIZE, SIZE)?;
        let at = staged.addr();
        staged.bytes_mut().fill(modload_text::INT3);
        staged.bytes_mut()[0] = 0xc3;
        staged.bytes_mut()[5..5 + TRAMPOLINE.len()].copy_from_slice(&TRAMPOLINE);
        staged.owner(Arc::new(Name));
        forget(staged.publish(&mut TextLock::take())?);
        let why = Why { engine: Engine::StaticCall, section: 0, record: 0 };
        let sites = vec![CallSite { at, kind: CallKind::Tail, why, key }];
        let (stay, phase, shown) = (Stay::Core, Phase::Published, Target::Null);
        table.calls.add(key, Group { owner: Owner::HOST, stay, phase, shown, sites }, |site| site.at);
        table.trampolines.insert(at, key);
        self.trampoline.store(at.get(), Ordering::Release);
        self.home.store(key.get(), Ordering::Release);
        Ok((key, at))
    }

    /// The function that it calls; null for nothing.
    #[must_use]
    pub fn function(&self) -> Addr {
        Addr::new(load_u64(Addr::new(self.home.load(Ordering::Acquire))).unwrap_or_default())
    }
}
