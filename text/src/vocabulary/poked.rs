//! The protocols of writing a batch, the facts that choose among them, and the obstacles to traps.

use std::fmt;

use modload_threads::{Name, Tid};

/// The knowledge about SIGTRAP in the process's threads while a batch is poked.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum TrapMask {
    /// Checked before each batch: that the handler is this crate's, that no debugger is attached, that no thread blocks
    /// SIGTRAP; else the rendezvous is used. The check is a snapshot, costs some microseconds for each thread, and
    /// misses a mask, a handler or a debugger that changes during the batch.
    #[default]
    Checked,
    /// Promised by the embedder, all three.
    Trusted,
    /// None: always the rendezvous.
    Held,
    /// As [`TrapMask::Checked`], but never the rendezvous: where traps cannot be used, the batch is refused with the
    /// reason, and no thread is sent a signal. A thread that hits a trap gets its SIGTRAP from the processor.
    Unheld,
}

/// The protocol by which a batch was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PokeProtocol {
    /// By traps, with three synchronisations.
    Traps,
    /// While every other thread was held.
    Rendezvous(TrapObstacle),
    /// At once: there was no other thread.
    Alone,
}

/// The result of writing a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Poked {
    /// The protocol.
    pub protocol: PokeProtocol,
    /// The number of synchronisations of all cores.
    pub syncs: u32,
    /// The number of writes.
    pub writes: u32,
}

/// The reason why a batch is not poked by traps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrapObstacle {
    /// The caller asked for it: [`TrapMask::Held`], or [`crate::poke_chosen`].
    Requested,
    /// The kernel cannot synchronise cores.
    NoMembarrier,
    /// The shadow stack would lack the return address of an emulated call.
    ShadowStack,
    /// NOPs of one byte are joined into one instruction.
    JoinedNops,
    /// Other code has installed another handler for SIGTRAP.
    OtherHandler,
    /// A debugger is attached, and gets every SIGTRAP first.
    Traced {
        /// The process id of the debugger.
        by: i32,
    },
    /// An INT3 would kill a thread that hits it.
    Blocked {
        /// The thread.
        tid: Tid,
        /// The thread's name, if it could be read.
        name: Option<Name>,
    },
    /// Threads start and end faster than they can be inspected.
    ThreadChurn,
}

impl fmt::Display for TrapObstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrapObstacle::Requested => f.write_str("the caller asked to hold all threads"),
            TrapObstacle::NoMembarrier => f.write_str("the kernel does not synchronise cores by membarrier(2)"),
            TrapObstacle::ShadowStack => f.write_str("shadow stacks are on"),
            TrapObstacle::JoinedNops => f.write_str("NOPs of one byte are joined"),
            TrapObstacle::OtherHandler => f.write_str("another handler for SIGTRAP is installed"),
            TrapObstacle::Traced { by } => write!(f, "process {by} traces this process"),
            TrapObstacle::Blocked { tid, name: Some(name) } => write!(f, "thread {tid} \"{name}\" blocks SIGTRAP"),
            TrapObstacle::Blocked { tid, name: None } => write!(f, "thread {tid} blocks SIGTRAP"),
            TrapObstacle::ThreadChurn => f.write_str("threads start and end faster than they can be inspected"),
        }
    }
}
