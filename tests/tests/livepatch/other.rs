//! A thread that runs given jobs and nothing else, and a thread that shows which signals it has received.

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use modload::{Host, Module};

use crate::scene::call;

type Job = Box<dyn FnOnce() -> i32 + Send>;

/// A thread that runs given jobs, and nothing else.
pub(crate) struct Other {
    jobs: Sender<Job>,
    results: Receiver<i32>,
    thread: JoinHandle<()>,
}

impl Other {
    pub(crate) fn new() -> Other {
        let (jobs, told) = channel::<Job>();
        let (tell, results) = channel();
        let run = move || told.into_iter().for_each(|job| tell.send(job()).unwrap());
        let other = Other { jobs, results, thread: thread::Builder::new().name("other".into()).spawn(run).unwrap() };
        assert_eq!(other.does(|| 7), 7);
        other
    }

    pub(crate) fn does(&self, job: impl FnOnce() -> i32 + Send + 'static) -> i32 {
        self.jobs.send(Box::new(job)).unwrap();
        self.results.recv().unwrap()
    }

    pub(crate) fn calls(&self, module: &Module, function: &'static str) -> i32 {
        let module = module.clone();
        self.does(move || call(&module, function, 1))
    }

    pub(crate) fn comes_to_a_checkpoint(&self, host: &Arc<Host>) -> bool {
        let host = host.clone();
        self.does(move || i32::from(host.checkpoint())) == 1
    }

    pub(crate) fn ends(self) {
        drop(self.jobs);
        self.thread.join().unwrap();
    }
}

/// Changes which signals this thread blocks.
pub(crate) fn mask(how: i32, signals: &[i32]) {
    let mut set = MaybeUninit::uninit();
    // SAFETY: makes the set empty.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: adds to a set that is there.
        unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) };
    }
    // SAFETY: reads the set, and gets no pointer for the old set.
    assert_eq!(unsafe { libc::pthread_sigmask(how, set.as_ptr(), std::ptr::null_mut()) }, 0);
}

/// A thread that blocks all real-time signals, including the C library's own, so that the thread cannot be asked
/// anything.
pub(crate) fn witness() -> Other {
    let witness = Other::new();
    witness.does(|| {
        modload_tests::mask(libc::SIG_BLOCK, u64::MAX << 31);
        0
    });
    witness
}
