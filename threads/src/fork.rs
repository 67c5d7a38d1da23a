//! What fork needs: nobody holds or asks while the process is copied, and the child finds nobody's turn.
//!
//! A fork hook (`pthread_atfork`) of the embedder's calls these three. They go inside of whatever is locked around a
//! hold: before a fork last, after it first.

use crate::round;
use crate::thread_exit;
use crate::turn::Turn;

/// Before a fork: waits for its turn, so that nobody is held and nothing is half done.
///
/// The thread that holds the others must not fork. It could only wait for itself here, and goes on instead.
pub fn before_fork() {
    thread_exit::before_fork();
    if let Ok(turn) = Turn::take(None) {
        turn.keep();
    }
}

/// After a fork, in the parent.
pub fn after_fork_in_parent() {
    drop(Turn::kept());
    thread_exit::after_fork_in_parent();
}

/// After a fork, in the child: it has one thread, and no signal of the parent's is under way to it.
pub fn after_fork_in_child() {
    let turn = Turn::kept();
    round::forget_everything();
    drop(turn);
    thread_exit::after_fork_in_child();
}
