//! The steps around fork: no thread is held or probed while the process is copied, and the child does not inherit
//! another thread's turn.
//!
//! The fork handlers (`pthread_atfork`) of the embedder call these three functions. The calls go inside of any locks
//! that are taken around a hold: last before a fork, first after a fork.

use crate::round;
use crate::thread_exit;
use crate::turn::Turn;

/// Prepares a fork: waits for this thread's turn, so that no thread is held and no operation is half done.
///
/// The thread that holds the others must not fork. Here that thread would wait for itself, so the function returns
/// without waiting.
pub fn before_fork() {
    thread_exit::before_fork();
    if let Ok(turn) = Turn::take(None) {
        turn.keep();
    }
}

/// Ends the turn after a fork, in the parent.
pub fn after_fork_in_parent() {
    drop(Turn::kept());
    thread_exit::after_fork_in_parent();
}

/// Ends the turn after a fork, in the child: the child has one thread, and no signal of the parent is pending for that
/// thread.
pub fn after_fork_in_child() {
    let turn = Turn::kept();
    round::forget_everything();
    drop(turn);
    thread_exit::after_fork_in_child();
}
