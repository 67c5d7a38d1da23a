//! Thread-local storage of modules: a block for each thread, made at the thread's first access.
//!
//! - [`ThreadLocalBlock`]: the thread-local storage of one module or library. It has a number while it lives. Dropping
//!   it frees the copies of all threads.
//! - [`ThreadLocalBlock::new_fixed`]: a block in the *reserve*, for code that needs a fixed offset from the thread
//!   pointer. The reserve is static thread-local memory of the program, of which each thread has a copy from its start.
//! - [`library_variable`]: where a thread-local variable of the program or of a library is.
//! - [`resolvers`]: the code that finds a variable by the block's number. The loader copies it into each module that
//!   needs it, so that it is near the module's own code.
//!
//! Each thread has a *table*: the addresses of the thread's copies, by number. A word of the program's static
//! thread-local memory points to the table. A thread begins with a table that all threads share and that is always
//! empty, so the code needs one check only: whether the copy is there. If not, the *slow path* makes the thread's own
//! table and the copy.
//!
//! The slow path is async-signal-safe: a signal handler may be the first code that accesses a variable. Signals are
//! blocked while the lock is held, and memory comes from the kernel, not from the allocator. The slow path preserves
//! all registers except `rax`, as TLS descriptors require.
//!
//! A thread's copies are freed in the last round of the thread's `pthread_key_create` destructors, or later if the
//! thread ends without them. After a fork, the child frees the copies of the threads that it does not have.

mod block;
mod error;
mod fork;
mod deliver;
mod library;
mod reserve;
mod lock;
mod sizes;
mod slab;
mod table;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use block::ThreadLocalBlock;
pub use deliver::NotDelivered;
pub use error::TlsError;
pub use fork::install;
pub use library::{LibraryVariable, library_variable};
pub use table::{TlsUsage, renew_own, usage};
pub use x86_64::{DESCRIPTOR_RESOLVER, RESOLVERS_SIZE, resolvers};
