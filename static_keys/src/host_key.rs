//! Keys that the host owns, in Rust. Their variables and trampolines are in the arena, within reach of every module's
//! code.

use std::mem::forget;
use std::sync::atomic::{AtomicU64, Ordering};

use modload_edit::{Addr, EditOrigin, Engine};
use modload_text::{Arena, ArenaError, load_u32, load_u64};

use crate::far::publish;
use crate::static_call::{CallKind, CallSite, CallTarget};
use crate::switch::{KeyError, decrement, disable, enable, increment};
use crate::table::{SiteGroup, SiteOwner, Stay, TextPhase, table};
use crate::x86_64::{EMPTY_TRAMPOLINE, RETURN0};

/// A static key of the host. Modules branch on it at the cost of a NOP.
///
/// ```
/// # use modload_static_keys::StaticKey;
/// static VERBOSE: StaticKey = StaticKey::disabled();
/// assert!(!VERBOSE.is_enabled());
/// ```
#[derive(Debug)]
pub struct StaticKey {
    initial: u32,
    /// The address of its `struct static_key`. 0 until [`StaticKey::addr`] has been called.
    home: AtomicU64,
}

/// A static call of the host. The called function can be changed, and modules call it at the cost of a direct call.
#[derive(Debug)]
pub struct StaticCall {
    /// The addresses of its `struct static_call_key` and of its trampoline. 0 until [`StaticCall::addrs`] has been
    /// called.
    home: AtomicU64,
    trampoline: AtomicU64,
}

/// The size of `struct static_key` and of `struct static_call_key` in the SDK.
const SIZE: u64 = 16;

/// Places a key with this value in the arena. It is never freed.
fn place(value: &[u8]) -> Result<Addr, ArenaError> {
    let mut data = Arena::get()?.allocate_data(SIZE, SIZE)?;
    data.bytes_mut()[..value.len()].copy_from_slice(value);
    let at = data.addr();
    forget(data.hand_over());
    Ok(at)
}

/// Returns the address of `__static_call_return0`, a function that returns 0. No site calls this function: such a call
/// becomes an instruction that zeroes the result.
///
/// # Errors
/// [`ArenaError`]: there is no arena, or it is full.
pub fn return0() -> Result<Addr, ArenaError> {
    let mut table = table();
    match table.far.return0 {
        Some(at) => Ok(at),
        None => Ok(*table.far.return0.insert(publish(&RETURN0)?)),
    }
}

impl StaticKey {
    /// Makes a key with the count 0.
    #[must_use]
    pub const fn disabled() -> StaticKey {
        StaticKey { initial: 0, home: AtomicU64::new(0) }
    }

    /// Makes a key with the count 1.
    #[must_use]
    pub const fn enabled() -> StaticKey {
        StaticKey { initial: 1, home: AtomicU64::new(0) }
    }

    /// Returns the address of the key's `struct static_key`, which is in the arena.
    ///
    /// # Errors
    /// [`ArenaError`]: there is no arena, or it is full.
    pub fn addr(&self) -> Result<Addr, ArenaError> {
        // Serialises two concurrent calls.
        let _table = table();
        let at = self.home.load(Ordering::Acquire);
        if at != 0 {
            return Ok(Addr::new(at));
        }
        let at = place(&self.initial.to_ne_bytes())?;
        self.home.store(at.get(), Ordering::Release);
        Ok(at)
    }

    /// Returns whether the count is not 0.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        load_u32(Addr::new(self.home.load(Ordering::Acquire))).unwrap_or(self.initial) != 0
    }

    /// Enables the key: [`enable`].
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn enable(&self) -> Result<(), KeyError> {
        enable(self.addr()?)
    }

    /// Disables the key: [`disable`].
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn disable(&self) -> Result<(), KeyError> {
        disable(self.addr()?)
    }

    /// Increments the count: [`increment`].
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn increment(&self) -> Result<(), KeyError> {
        increment(self.addr()?)
    }

    /// Decrements the count: [`decrement`].
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn decrement(&self) -> Result<(), KeyError> {
        decrement(self.addr()?)
    }
}

impl StaticCall {
    /// Makes a static call without a function.
    #[must_use]
    pub const fn null() -> StaticCall {
        StaticCall { home: AtomicU64::new(0), trampoline: AtomicU64::new(0) }
    }

    /// Returns the addresses of the call's `struct static_call_key` and of its trampoline, both in the arena.
    ///
    /// # Errors
    /// [`ArenaError`]: there is no arena, or it is full.
    pub fn addrs(&self) -> Result<(Addr, Addr), ArenaError> {
        let mut table = table();
        let at = self.home.load(Ordering::Acquire);
        if at != 0 {
            return Ok((Addr::new(at), Addr::new(self.trampoline.load(Ordering::Acquire))));
        }
        let key = place(&[])?;
        let at = publish(&EMPTY_TRAMPOLINE)?;
        let why = EditOrigin { engine: Engine::StaticCall, section: 0, record: 0 };
        let sites = vec![CallSite { at, kind: CallKind::Tail, why, key }];
        let (stay, phase, shown) = (Stay::Core, TextPhase::Published, CallTarget::Null);
        table.calls.add(key, SiteGroup { owner: SiteOwner::HOST, stay, phase, shown, sites }, |site| site.at);
        table.trampolines.insert(at, key);
        self.trampoline.store(at.get(), Ordering::Release);
        self.home.store(key.get(), Ordering::Release);
        Ok((key, at))
    }

    /// Returns the address of the called function. Null if there is none.
    #[must_use]
    pub fn function(&self) -> Addr {
        Addr::new(load_u64(Addr::new(self.home.load(Ordering::Acquire))).unwrap_or_default())
    }
}
