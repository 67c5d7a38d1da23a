//! The check before a batch for obstacles to traps.

use std::io;
use std::ops::ControlFlow;

use modload_edit::{EditSet, NOP};
use modload_threads::{Tasks, name, status};

use crate::change::x86_64::has_shadow_stack;
use crate::handlers::trap;
use crate::vocabulary::poked::{TrapMask, TrapObstacle};
use crate::writing::cores;

/// The number of passes over the list of threads to see all of them.
const PASSES: u32 = 3;

/// Returns an obstacle to traps, if there is one.
pub(crate) fn find(edits: &EditSet, mask: TrapMask) -> io::Result<Option<TrapObstacle>> {
    let checks_threads = matches!(mask, TrapMask::Checked | TrapMask::Unheld);
    let certain = [
        (mask == TrapMask::Held, TrapObstacle::Requested),
        (!cores::uses_membarrier(), TrapObstacle::NoMembarrier),
        (has_shadow_stack(), TrapObstacle::ShadowStack),
        (edits.iter().any(|edit| joins_nops(edit.old)), TrapObstacle::JoinedNops),
        (checks_threads && !trap::is_installed(), TrapObstacle::OtherHandler),
    ];
    let certain = certain.into_iter().find(|(applies, _)| *applies).map(|(_, obstacle)| obstacle);
    if certain.is_none() && checks_threads { find_in_threads() } else { Ok(certain) }
}

/// Returns whether the edit joins several NOPs of one byte into one instruction.
pub(crate) fn joins_nops(old: &[u8]) -> bool {
    old.len() > 1 && old.iter().all(|byte| *byte == NOP)
}

/// Checks each thread: whether it blocks SIGTRAP, and whether it is traced.
fn find_in_threads() -> io::Result<Option<TrapObstacle>> {
    let tasks = Tasks::open()?;
    for _ in 0..PASSES {
        let mut seen = 0;
        let found = tasks.each(|tid| {
            match status(tid) {
                Err(error) => ControlFlow::Break(Err(error)),
                Ok(Some(status)) if status.tracer != 0 => {
                    ControlFlow::Break(Ok(TrapObstacle::Traced { by: status.tracer }))
                }
                Ok(Some(status)) if status.blocks(libc::SIGTRAP) => {
                    ControlFlow::Break(Ok(TrapObstacle::Blocked { tid, name: name(tid).ok().flatten() }))
                }
                Ok(Some(_)) => {
                    seen += 1;
                    ControlFlow::Continue(())
                }
                // The thread has ended, and `Tasks::count` does not count it.
                Ok(None) => ControlFlow::Continue(()),
            }
        })?;
        if let ControlFlow::Break(found) = found {
            return found.map(Some);
        }
        // A pass may end early when a thread ends. A pass that has checked as many threads as exist has not ended early.
        if seen >= tasks.count()? {
            return Ok(None);
        }
    }
    Ok(Some(TrapObstacle::ThreadChurn))
}
