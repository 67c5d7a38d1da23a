//! A host, and a subscriber that keeps a module in its coming until the test releases the subscriber.

use std::fs;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use modload::{Coming, Host, Refusal, Subscriber};
use modload_tests::until;
use modload_threads::Tid;

pub(crate) fn host() -> Host {
    Host::builder().build().unwrap()
}

/// Blocks in the coming of one module until the test sends an answer, and then accepts or refuses the module.
pub(crate) struct Gate {
    module: &'static str,
    inside: Sender<()>,
    go_on: Mutex<Receiver<Result<(), Refusal>>>,
}

impl Gate {
    /// Returns the gate, the receiver that reports a module in the gate, and the sender of the answer.
    pub(crate) fn new(module: &'static str) -> (Gate, Receiver<()>, Sender<Result<(), Refusal>>) {
        let (inside, is_inside) = channel();
        let (go, go_on) = channel();
        (Gate { module, inside, go_on: Mutex::new(go_on) }, is_inside, go)
    }
}

impl Subscriber for Gate {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        if coming.module().name() != self.module {
            return Ok(());
        }
        self.inside.send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap()
    }
}

/// Starts a thread, and waits until the thread waits for another thread.
pub(crate) fn spawn_waiting<'s, T: Send + 's>(
    scope: &'s Scope<'s, '_>,
    work: impl FnOnce() -> T + Send + 's,
) -> ScopedJoinHandle<'s, T> {
    let (tell, told) = channel();
    let thread = scope.spawn(move || {
        tell.send(Tid::current()).unwrap();
        work()
    });
    let tid = told.recv().unwrap();
    until("the thread waits", || waits(tid));
    thread
}

/// Returns whether a thread sleeps in a futex, and does not run for longer than a lock is held.
fn waits(tid: Tid) -> bool {
    let file = |name: &str| fs::read_to_string(format!("/proc/self/task/{tid}/{name}")).unwrap_or_default();
    let in_futex = format!("{} ", libc::SYS_futex);
    let runs = file("schedstat");
    let slept = file("syscall").starts_with(&in_futex);
    thread::sleep(Duration::from_millis(30));
    slept && file("syscall").starts_with(&in_futex) && file("schedstat") == runs
}
