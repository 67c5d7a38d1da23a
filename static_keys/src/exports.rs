//! The functions that every host exports to modules, for the SDK's macros. They take addresses and never read through
//! them without checking.

use std::ffi::{c_int, c_void};

use modload_edit::{Addr, wide};

use crate::switch::{self, KeyError};

const EAGAIN: c_int = 11;
const EINVAL: c_int = 22;

type KeyAddress = *const c_void;

fn address(at: KeyAddress) -> Addr {
    Addr::new(wide(at.expose_provenance()))
}

/// Returns 0, or logs a failure and returns a negative error number.
fn outcome(function: &str, outcome: Result<(), KeyError>) -> c_int {
    let Err(error) = outcome else { return 0 };
    tracing::warn!(function, %error, "the key was not switched");
    match error {
        KeyError::Unknown { .. } | KeyError::Unbalanced { .. } | KeyError::Site { .. } => -EINVAL,
        _ => -EAGAIN,
    }
}

extern "C" fn static_key_enable(key: KeyAddress) -> c_int {
    outcome("static_key_enable", switch::enable(address(key)))
}

extern "C" fn static_key_disable(key: KeyAddress) -> c_int {
    outcome("static_key_disable", switch::disable(address(key)))
}

extern "C" fn static_key_slow_inc(key: KeyAddress) -> c_int {
    outcome("static_key_slow_inc", switch::increment(address(key)))
}

extern "C" fn static_key_slow_dec(key: KeyAddress) -> c_int {
    outcome("static_key_slow_dec", switch::decrement(address(key)))
}

extern "C" fn static_key_count(key: KeyAddress) -> c_int {
    let count = switch::count(address(key)).unwrap_or_default();
    c_int::try_from(count).unwrap_or(c_int::MAX)
}

/// `_trampoline` is unused: the table finds the trampoline by the key.
extern "C" fn static_call_update(key: KeyAddress, _trampoline: KeyAddress, function: KeyAddress) -> c_int {
    outcome("__static_call_update", switch::update_static_call(address(key), address(function)))
}

/// Returns the names and addresses of the exported functions, except [`return0`](crate::return0).
#[must_use]
pub fn exports() -> [(&'static str, Addr); 6] {
    type OfKey = extern "C" fn(KeyAddress) -> c_int;
    type OfCall = extern "C" fn(KeyAddress, KeyAddress, KeyAddress) -> c_int;
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let of_key = |function: OfKey| address((function as *const ()).cast());
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let of_call = |function: OfCall| address((function as *const ()).cast());
    [
        ("static_key_enable", of_key(static_key_enable)),
        ("static_key_disable", of_key(static_key_disable)),
        ("static_key_slow_inc", of_key(static_key_slow_inc)),
        ("static_key_slow_dec", of_key(static_key_slow_dec)),
        ("static_key_count", of_key(static_key_count)),
        ("__static_call_update", of_call(static_call_update)),
    ]
}
