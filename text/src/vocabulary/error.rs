//! The errors of allocating, staging, publishing and writing.

use std::io;

use modload_edit::Addr;
use thiserror::Error;

use crate::vocabulary::class::Class;

/// Published memory could not be written.
#[derive(Debug, Error)]
pub enum WriteFailed {
    /// The descriptor belongs to another process.
    #[error(
        "process {this_process} shares the memory of process {opened_by} or was cloned from it without fork(): \
         only fork() is supported"
    )]
    OtherProcess {
        /// The process that opened the descriptor.
        opened_by: u32,
        /// This process.
        this_process: u32,
    },
    /// After fork the child could not open the file again, or no arena was ever created.
    #[error(
        "/proc/self/mem is not open: no arena was created, or a forked child could not open the file; create an arena, \
         with /proc mounted and permitted"
    )]
    NotOpen,
    /// The address cannot hold a number.
    #[error("{at} is not the aligned address of a variable in the data of a module")]
    NoVariable {
        /// The address.
        at: Addr,
    },
    /// The bytes are written, but membarrier(2) has failed, so some cores may not have been synchronised.
    #[error("after a change of text, membarrier(2) could not synchronise the cores")]
    Membarrier {
        /// The kernel's error.
        source: io::Error,
    },
    /// The bytes are written, but the threads could not be held, so some cores may not have been synchronised. Threads
    /// are held where the kernel has no membarrier(2) for cores.
    #[error("after a change of text, the threads could not be held to synchronise their cores")]
    Hold {
        /// The threads that could not be held.
        source: modload_threads::Error,
    },
    /// The kernel refuses the write.
    #[error("{len} bytes at {at} cannot be written through /proc/self/mem")]
    Io {
        /// The first address.
        at: Addr,
        /// The number of bytes.
        len: u64,
        /// The kernel's error.
        source: io::Error,
    },
}

/// Text or read-only data could not be published. No code can reach any part of it.
#[derive(Debug, Error)]
#[error("{len} bytes of {class} cannot be published at {at}")]
pub struct PublishFailed {
    /// The class of the memory.
    pub class: Class,
    /// The address of its final place.
    pub at: Addr,
    /// The number of bytes.
    pub len: u64,
    /// The failed write.
    pub source: WriteFailed,
}

/// The arena cannot be created, or has no room for the host's own code.
#[derive(Debug, Error)]
pub enum ArenaError {
    /// There is no room left.
    #[error(transparent)]
    Full(#[from] OutOfMemory),
    /// Code of the host itself could not be published.
    #[error(transparent)]
    Publish(#[from] PublishFailed),
    /// No address space of any size can be reserved.
    #[error("no address space of 1 GiB can be reserved for modules; raise the limit of address space (`ulimit -v`)")]
    Reserve(#[source] io::Error),
    /// A stripe cannot be mapped; SELinux without execmem refuses the text stripe.
    #[error(
        "the stripe of the arena for {class} cannot be mapped; for text, the system must permit executable memory \
         (SELinux: execmem)"
    )]
    Map {
        /// The class of the stripe.
        class: Class,
        /// The kernel's error.
        source: io::Error,
    },
    /// `/proc/self/mem` cannot be opened.
    #[error("/proc/self/mem cannot be opened; modload writes code through it, so /proc must be mounted and permitted")]
    OpenMemory(#[source] io::Error),
    /// The kernel does not let `/proc/self/mem` write past a protection.
    #[error(
        "the kernel forbids writing past a protection through /proc/self/mem; remove the boot option \
         proc_mem.force_override=never or =ptrace, or the seccomp rule that forbids the write"
    )]
    ForceOverride(#[source] WriteFailed),
    /// Threads or their stacks cannot be inspected, so no unload could prove that no thread uses the module's text.
    #[error(
        "the threads or their stacks cannot be inspected, and unloading a module must inspect them; a host can promise \
         with `unload_unseen` what the inspection would prove"
    )]
    Inspect(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The signal handler or the fork handlers cannot be installed.
    #[error("the {what} cannot be installed")]
    Handler {
        /// The handlers.
        what: &'static str,
        /// The C library's error.
        source: io::Error,
    },
}

/// There is no room left, or the requested size is larger than any stripe.
#[derive(Debug, Error)]
pub enum OutOfMemory {
    /// The stripe has no free range that is long enough.
    #[error(
        "no room for {len} bytes of {class}, aligned to {align}, in a stripe of {stripe} bytes of which {used} are \
         used; unload modules, or load a smaller one"
    )]
    Full {
        /// The class of the stripe.
        class: Class,
        /// The requested number of bytes.
        len: u64,
        /// The requested alignment.
        align: u64,
        /// The size of the stripe.
        stripe: u64,
        /// The number of bytes that are in use.
        used: u64,
    },
    /// New pages could not be faulted in, or not be made writable.
    #[error("new pages of {class} cannot be faulted in or made writable")]
    Populate {
        /// The class of the stripe.
        class: Class,
        /// The kernel's error.
        source: io::Error,
    },
    /// New pages could not be filled.
    #[error("new pages of {class} cannot be filled")]
    Fill {
        /// The class of the stripe.
        class: Class,
        /// The failed write.
        source: WriteFailed,
    },
    /// A staging buffer could not be mapped.
    #[error("a staging buffer of {len} bytes cannot be mapped")]
    Staging {
        /// The size of the buffer.
        len: usize,
        /// The kernel's error.
        source: io::Error,
    },
}
