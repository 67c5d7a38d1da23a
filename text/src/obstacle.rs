//! What stands in the way of traps: looked for before a batch.

use std::fmt;
use std::io;
use std::ops::ControlFlow;

use modload_edit::EditSet;
use modload_threads::{Name, Tasks, Tid, name, status};

use crate::poke::TrapMask;
use crate::{sync, trap};

/// Why a batch is not poked by traps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Because {
    /// [`TrapMask::Held`].
    Asked,
    /// The kernel cannot synchronise cores.
    NoMembarrier,
    /// A call that is emulated would not be on the shadow stack.
    ShadowStack,
    /// NOPs of one byte are joined into one instruction.
    Joined,
    /// Somebody has installed another handler for SIGTRAP.
    Handler,
    /// A debugger is attached, and gets every SIGTRAP first.
    Traced {
        /// Its process.
        by: i32,
    },
    /// A thread would be killed by an INT3.
    Blocked {
        /// Which.
        tid: Tid,
        /// Its name, if it could be read.
        name: Option<Name>,
    },
    /// Threads start and end faster than they can be looked at.
    Restless,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Because::Asked => f.write_str("it was asked for"),
            Because::NoMembarrier => f.write_str("membarrier(2) does not synchronise cores here"),
            Because::ShadowStack => f.write_str("shadow stacks are on"),
            Because::Joined => f.write_str("NOPs of one byte are joined"),
            Because::Handler => f.write_str("somebody else handles SIGTRAP"),
            Because::Traced { by } => write!(f, "process {by} traces this one"),
            Because::Blocked { tid, name: Some(name) } => write!(f, "thread {tid} \"{name}\" blocks SIGTRAP"),
            Because::Blocked { tid, name: None } => write!(f, "thread {tid} blocks SIGTRAP"),
            Because::Restless => f.write_str("threads start and end too fast to be looked at"),
        }
    }
}

/// How often the list of threads is passed over to see all of them.
const PASSES: u32 = 3;

/// What stands in the way, if anything does.
pub(crate) fn find(edits: &EditSet, mask: TrapMask) -> io::Result<Option<Because>> {
    let looks = matches!(mask, TrapMask::Checked | TrapMask::Unheld);
    let certain = [
        (mask == TrapMask::Held, Because::Asked),
        (!sync::by_membarrier(), Because::NoMembarrier),
        (shadow_stacks(), Because::ShadowStack),
        (edits.iter().any(|edit| joins(edit.old)), Because::Joined),
        (looks && !trap::is_installed(), Because::Handler),
    ];
    let certain = certain.into_iter().find(|(so, _)| *so).map(|(_, because)| because);
    if certain.is_none() && looks { threads() } else { Ok(certain) }
}

/// Whether several NOPs of one byte would become one instruction.
pub(crate) fn joins(old: &[u8]) -> bool {
    old.len() > 1 && old.iter().all(|byte| *byte == 0x90)
}

/// Looks at each thread: whether it blocks SIGTRAP, and whether it is traced.
fn threads() -> io::Result<Option<Because>> {
    let tasks = Tasks::open()?;
    for _ in 0..PASSES {
        let mut seen = 0;
        let found = tasks.each(|tid| {
            seen += 1;
            match status(tid) {
                Err(error) => ControlFlow::Break(Err(error)),
                Ok(Some(status)) if status.tracer != 0 => ControlFlow::Break(Ok(Because::Traced { by: status.tracer })),
                Ok(Some(status)) if status.blocks(libc::SIGTRAP) => {
                    ControlFlow::Break(Ok(Because::Blocked { tid, name: name(tid).ok().flatten() }))
                }
                Ok(_) => ControlFlow::Continue(()),
            }
        })?;
        if let ControlFlow::Break(found) = found {
            return found.map(Some);
        }
        // A pass may end early when a thread does; one that has seen as many as there are has not.
        if seen >= tasks.count()? {
            return Ok(None);
        }
    }
    Ok(Some(Because::Restless))
}

/// arch_prctl(2), <asm/prctl.h>, since Linux 6.6.
const ARCH_SHSTK_STATUS: libc::c_int = 0x5005;
/// Its bit for "on".
const ARCH_SHSTK_SHSTK: u64 = 1;

/// Whether this thread has a shadow stack (`ARCH_SHSTK_STATUS`). The C library gives one to all threads or to none.
#[must_use]
pub fn shadow_stacks() -> bool {
    let mut features = 0_u64;
    // SAFETY: writes eight bytes to a variable of ours, or fails: on kernels that know it not, and without the hardware.
    let failed = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SHSTK_STATUS, &raw mut features) };
    failed == 0 && features & ARCH_SHSTK_SHSTK != 0
}
