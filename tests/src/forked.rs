//! A forked child, for code that ends a process or must not be visible to the parent.

use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How a child ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The exit status of the child; 101 if the child panicked.
    pub status: Option<i32>,
    /// The signal that killed the child.
    pub signal: Option<i32>,
    /// The standard error output of the child.
    pub stderr: String,
}

impl Ended {
    /// Demands that the child's function has returned.
    pub fn well(&self) {
        assert_eq!((self.status, self.signal), (Some(0), None), "the child wrote:\n{}", self.stderr);
    }
}

/// Forks, runs `child` in the child, and waits for its end.
pub fn in_fork(child: impl FnOnce()) -> Ended {
    let mut output = tempfile::tempfile().unwrap();
    // SAFETY: the child continues with this thread alone. modload and the C library support that. The child ends with
    // _exit, without using objects of the parent's other threads.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        // SAFETY: two descriptors that are open.
        unsafe { libc::dup2(output.as_raw_fd(), 2) };
        let status = catch_unwind(AssertUnwindSafe(child)).map_or(101, |()| 0);
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid);
    let mut bytes = Vec::new();
    output.rewind().unwrap();
    output.read_to_end(&mut bytes).unwrap();
    Ended {
        status: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
        signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
        stderr: String::from_utf8_lossy(&bytes).into_owned(),
    }
}
