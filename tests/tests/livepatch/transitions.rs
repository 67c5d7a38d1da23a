//! A thread blocks a transition: other threads migrate, this thread does not, and the transition is reversed, forced,
//! or waits.

use std::thread::{self, JoinHandle};

use modload::{Host, Module};

use crate::scene::{NEW, TARGET, built, call, func, host, patch, settled, waiting};
use modload_tests::until;

/// A patch is enabled while a thread is in a changed function: the target, the replacements of its functions, and the
/// thread.
fn in_the_way(host: &Host) -> (Module, Module, JoinHandle<i32>) {
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let thread = waiting(&target);
    let funcs = vec![func("one", &new, "new_one"), func("waits", &new, "new_waits")];
    host.enable_patch("first", patch("target", funcs), None).unwrap();
    (target, new, thread)
}

pub(crate) fn a_thread_that_is_in_old_code_stays_there() {
    let host = host();
    let (target, _new, thread) = in_the_way(&host);
    let status = host.patches().unwrap();
    let (_, blocked) = status[0].transition.clone().expect("a thread is in the way");
    assert_eq!(blocked.len(), 1);
    // Others are over, and new threads begin there.
    assert_eq!((call(&target, "one", 1), call(&target, "waits", 1)), (102, 501));
    let other = target.clone();
    assert_eq!(thread::spawn(move || call(&other, "one", 1)).join().unwrap(), 102);
    call(&target, "release", 0);
    assert_eq!(thread.join().unwrap(), 2, "it calls the old one from the old one");
    settled(&host);
    assert_eq!(call(&target, "waits", 1), 501);
}

pub(crate) fn a_transition_is_turned_round() {
    let host = host();
    let (target, _new, thread) = in_the_way(&host);
    assert_eq!(call(&target, "one", 1), 102);
    host.disable_patch("first").unwrap();
    settled(&host);
    assert_eq!(call(&target, "one", 1), 2);
    call(&target, "release", 0);
    assert_eq!(thread.join().unwrap(), 2);
    assert!(host.patches().unwrap().is_empty());
}

pub(crate) fn a_transition_is_forced() {
    let host = host();
    let (target, _new, thread) = in_the_way(&host);
    host.force_patch("first").unwrap();
    let status = host.patches().unwrap();
    assert!(status[0].forced && status[0].transition.is_none());
    call(&target, "release", 0);
    assert_eq!(thread.join().unwrap(), 102, "forced, it calls the new one from the old one");
}

pub(crate) fn threads_are_born_and_end_in_mid_transition() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let funcs = || vec![func("one", &new, "new_one"), func("waits", &new, "new_waits")];
    for round in 0..20 {
        call(&target, "again", 0);
        let threads: Vec<_> = (0..4).map(|_| waiting(&target)).collect();
        host.enable_patch("first", patch("target", funcs()), None).unwrap();
        assert!(host.patches().unwrap()[0].transition.is_some());
        for _ in 0..50 {
            let target = target.clone();
            assert_eq!(thread::spawn(move || call(&target, "one", 1)).join().unwrap(), 102);
        }
        call(&target, "release", 0);
        for thread in threads {
            assert_eq!(thread.join().unwrap(), 2, "round {round}");
        }
        // No blocking thread exists any more.
        settled(&host);
        host.disable_patch("first").unwrap();
        settled(&host);
        assert_eq!(call(&target, "one", 1), 2);
    }
}

pub(crate) fn a_tail_call_leaves_its_function() {
    const TAILS: &str = "
    static volatile int go, there;
    void release(void) { go = 1; }
    int arrived(int a) { return a + there; }
    __attribute__((noinline)) int end(int a) { there = 1; while (!go) __builtin_ia32_pause(); __asm__ volatile(\"\"); return a; }
    __attribute__((noinline)) int tail(int a) { __asm__ volatile(\"\"); return end(a + 1); }
    int new_tail(int a) { return a + 100; }
    ";
    let host = host();
    let tails = host.load(&built("tails", TAILS)).unwrap();
    let there = tails.clone();
    let thread = thread::spawn(move || call(&there, "tail", 1));
    until("it is there", || call(&tails, "arrived", 0) == 1);
    // The thread is in `end` by a jump from `tail`, so `tail` is on no stack.
    host.enable_patch("first", patch("tails", vec![func("tail", &tails, "new_tail")]), None).unwrap();
    assert!(host.patches().unwrap()[0].transition.is_none());
    assert_eq!(call(&tails, "tail", 1), 101);
    call(&tails, "release", 0);
    assert_eq!(thread.join().unwrap(), 2);
}
