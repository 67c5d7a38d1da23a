//! Why a module cannot have thread-local variables.

use thiserror::Error;

use crate::sizes::{RESERVE_ALIGN, RESERVE_SIZE};

/// Largest alignment of a variable: a page, as for every other section of a module.
pub(crate) const ALIGN: u64 = 4096;

/// A block cannot be made.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum TlsError {
    /// All numbers are in use.
    #[error("no more than {0} modules can have thread-local variables at the same time")]
    Numbers(usize),
    /// The alignment is too large.
    #[error("thread-local variables are aligned to {0:#x} bytes, and no more than {ALIGN:#x} are supported")]
    Align(u64),
    /// The alignment is too large for a fixed offset.
    #[error(
        "its code needs thread-local variables at a fixed offset from the thread pointer, aligned to {0:#x} bytes, and no \
         more than {RESERVE_ALIGN:#x} are supported there; compile with -fPIC -ftls-model=global-dynamic"
    )]
    FixedAlign(u64),
    /// The reserve has not enough room.
    #[error(
        "its code needs {asked} bytes of thread-local variables at a fixed offset from the thread pointer, and of the \
         reserve's {} bytes {left} are left; compile with -fPIC -ftls-model=global-dynamic, or build the host with the \
         feature large-static-tls",
        RESERVE_SIZE - RESERVE_ALIGN
    )]
    ReserveFull {
        /// The number of bytes that the module needs.
        asked: u64,
        /// The number of bytes that no module uses. They may lie apart.
        left: u64,
    },
    /// The reserve is not static thread-local memory.
    #[error(
        "its code needs thread-local variables at a fixed offset from the thread pointer, and the library that contains \
         this host was loaded too late to have memory there; compile with -fPIC -ftls-model=global-dynamic, link the \
         library to the program, or start the program with GLIBC_TUNABLES=glibc.rtld.optional_static_tls={}",
        2 * RESERVE_SIZE
    )]
    NoReserve,
}
