//! The threads of a process, listed, described and asked: errors name the threads that cannot be reached.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

use modload_edit::wide;
use modload_tests::{Crowd, LONG, Patience, WhoAndWhere, block, case, run, unblock, until};
use modload_threads::{
    DEFAULT_LIMIT, Error, StragglerReason, Tasks, ThreadState, Tid, counts, hold, name, run_here, run_in_each, signal,
    status, use_signal,
};

fn main() -> ExitCode {
    run(&[
        case!(everybody_is_listed_and_described),
        case!(signals_are_chosen_once),
        case!(a_signal_named_by_the_embedder_is_used),
        case!(the_calling_thread_answers_too),
        case!(signals_of_others_do_nothing_and_are_counted),
        case!(who_blocks_the_signal_is_named_and_nobody_stays_held),
        case!(a_main_thread_that_has_ended_is_not_waited_for),
        case!(a_thread_in_vfork_is_named),
    ])
}

/// glibc's own signal, which glibc keeps out of every mask.
const SIGSETXID: i32 = 33;

fn everybody_is_listed_and_described() {
    let (tell, told) = mpsc::channel();
    let stop = Arc::new(Barrier::new(2));
    let thread = {
        let stop = stop.clone();
        let run = move || {
            tell.send(Tid::current()).unwrap();
            stop.wait();
        };
        thread::Builder::new().name("a \"name\"\n\u{e9} and more".into()).spawn(run).unwrap()
    };
    let tid = told.recv().unwrap();
    let tasks = Tasks::open().unwrap();
    let listed = || {
        let mut tids = Vec::new();
        let _ = tasks
            .each(|tid| {
                tids.push(tid);
                ControlFlow::<()>::Continue(())
            })
            .unwrap();
        tids
    };
    assert!(listed().contains(&tid) && listed().contains(&Tid::current()));
    assert_eq!(wide(listed().len()), tasks.count().unwrap());
    // The first fifteen bytes of the name, escaped.
    assert_eq!(name(tid).unwrap().unwrap().to_string(), r#"a \"name\"\n\xc3\xa9 and"#);
    let there = status(tid).unwrap().unwrap();
    assert!(matches!(there.state, ThreadState::Sleeping | ThreadState::Running), "{there:?}");
    assert_eq!((there.tracer, there.pending, there.blocks(libc::SIGUSR1)), (0, 0, false));
    let before = block(libc::SIGUSR1);
    assert!(!before && status(Tid::current()).unwrap().unwrap().blocks(libc::SIGUSR1));
    stop.wait();
    thread.join().unwrap();
    until("it is gone", || status(tid).unwrap().is_none());
    assert!(name(tid).unwrap().is_none());
}

fn signals_are_chosen_once() {
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    // SAFETY: ignores a signal that no code sends.
    unsafe { libc::signal(last, libc::SIG_IGN) };
    assert_eq!(signal(), None);
    let not = use_signal(libc::SIGUSR1).unwrap_err();
    assert!(matches!(not, Error::NotRealTime { signal: libc::SIGUSR1, .. }), "{not}");
    assert_eq!(
        not.to_string(),
        format!("signal 10 is not a real-time signal: those of this process are {first} to {last}")
    );
    let taken = use_signal(last).unwrap_err();
    assert_eq!(taken.to_string(), format!("signal {last} is used by other code of this process: it is ignored"));
    drop(hold(DEFAULT_LIMIT).unwrap());
    assert_eq!(signal(), Some(SIGSETXID), "the one that glibc keeps open");
    let chosen = use_signal(first).unwrap_err();
    assert!(matches!(chosen, Error::Chosen { chosen: SIGSETXID, .. }), "{chosen}");
}

fn a_signal_named_by_the_embedder_is_used() {
    let named = libc::SIGRTMIN() + 1;
    use_signal(named).unwrap();
    let _crowd = Crowd::of(2, thread::yield_now);
    assert_eq!(hold(DEFAULT_LIMIT).unwrap().count(), 2);
    assert_eq!(signal(), Some(named));
    // SAFETY: no thread is sent the signal any more: a hold is refused first.
    unsafe { libc::signal(named, libc::SIG_DFL) };
    let replaced = hold(DEFAULT_LIMIT).unwrap_err();
    assert!(matches!(replaced, Error::Replaced { .. }), "{replaced}");
}

fn the_calling_thread_answers_too() {
    for blocked in [false, true] {
        if blocked {
            let _ = block(signal().unwrap());
        }
        let (tid, here, rip) = run_here(&WhoAndWhere).unwrap();
        assert_eq!((tid, here), (Tid::current(), Tid::current()));
        // The instruction is in this program, at the system call.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| {
            let (range, _) = line.split_once(' ').unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let number = |hex| u64::from_str_radix(hex, 16).unwrap();
            (number(start)..number(end)).contains(&rip)
        });
        assert!(line.unwrap().contains("/threads-"), "{line:?}");
        assert_eq!(status(Tid::current()).unwrap().unwrap().blocks(signal().unwrap()), blocked);
    }
}

fn signals_of_others_do_nothing_and_are_counted() {
    let _crowd = Crowd::of(2, thread::yield_now);
    use_signal(libc::SIGRTMAX()).unwrap();
    drop(hold(DEFAULT_LIMIT).unwrap());
    let number = signal().unwrap();
    for value in [0_usize, 1, usize::MAX, 0x6d6f_646c_0000_ffff] {
        // SAFETY: the call takes no arguments.
        let us = unsafe { libc::getpid() };
        // SAFETY: a signal that has a handler.
        unsafe { libc::kill(us, number) };
        let value = libc::sigval { sival_ptr: ptr::without_provenance_mut(value) };
        // SAFETY: as above.
        unsafe { libc::sigqueue(us, number, value) };
        // SAFETY: to this thread.
        unsafe { libc::raise(number) };
    }
    // On a busy machine some of our signals arrive after their round, and are counted separately.
    assert_eq!(counts().stray, 12);
    assert_eq!(hold(DEFAULT_LIMIT).unwrap().count(), 2);
}

fn who_blocks_the_signal_is_named_and_nobody_stays_held() {
    drop(hold(DEFAULT_LIMIT).unwrap());
    let number = signal().unwrap();
    let (tell, told) = mpsc::channel();
    let (go, wait) = mpsc::channel();
    let run = move || {
        let _ = block(number);
        tell.send(Tid::current()).unwrap();
        while wait.recv().unwrap() {
            unblock(number);
            let _ = block(number);
            tell.send(Tid::current()).unwrap();
        }
    };
    let stubborn = thread::Builder::new().name("stubborn".into()).spawn(run).unwrap();
    let tid = told.recv().unwrap();
    let turns = Arc::new(AtomicU64::new(0));
    let count = turns.clone();
    let _crowd = Crowd::of(2, move || {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let limit = Duration::from_millis(100);
    let says = format!("not reached within 100ms: thread {tid} \"stubborn\" blocks signal {number}");
    // On a busy machine other threads may not be reached in time, either: then the question is asked once more.
    let check = |ask: &dyn Fn() -> Error| {
        let mut patience = Patience::new();
        let error = loop {
            let error = ask();
            if error.to_string() == says {
                break error;
            }
            let Error::NotReached { stragglers, .. } = &error else { panic!("{error}") };
            assert!(stragglers.count() > 1, "{error}");
            patience.turn(|| error.to_string());
        };
        let Error::NotReached { stragglers, .. } = error else { unreachable!() };
        let straggler = stragglers.iter().next().unwrap();
        assert_eq!(
            (stragglers.count(), straggler.tid, straggler.why),
            (1, tid, StragglerReason::Blocks { signal: number })
        );
        let before = turns.load(Ordering::Relaxed);
        while turns.load(Ordering::Relaxed) == before {
            thread::yield_now();
        }
    };
    for _ in 0..5 {
        check(&|| hold(limit).unwrap_err());
        check(&|| run_in_each(&WhoAndWhere, limit).unwrap_err());
    }
    // The thread should have been asked several times, but has received no signal.
    assert_eq!(status(tid).unwrap().unwrap().pending & 1 << (number - 1), 0);
    go.send(true).unwrap();
    told.recv().unwrap();
    assert_eq!((status(tid).unwrap().unwrap().pending, counts().stray), (0, 0));
    // When the question is asked again, the thread answers after unblocking the signal.
    check(&|| hold(limit).unwrap_err());
    let seen = Arc::new(AtomicU64::new(0));
    let asker_seen = seen.clone();
    let asker = thread::spawn(move || {
        let held = hold(LONG).unwrap();
        asker_seen.store(held.count(), Ordering::Relaxed);
        // Long enough to be found holding: the main thread is held.
        (0..1000).for_each(|_| std::hint::spin_loop());
    });
    thread::sleep(Duration::from_millis(50));
    assert_eq!(seen.load(Ordering::Relaxed), 0);
    go.send(false).unwrap();
    asker.join().unwrap();
    stubborn.join().unwrap();
    assert!(seen.load(Ordering::Relaxed) >= 3);
}

fn a_main_thread_that_has_ended_is_not_waited_for() {
    // In a child whose main thread calls pthread_exit: the main thread stays a zombie, and stays counted.
    // SAFETY: the child starts threads and makes system calls.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let main = Tid::current();
        thread::spawn(move || {
            while status(main).unwrap().unwrap().state != ThreadState::Ended {
                thread::yield_now();
            }
            let _crowd = Crowd::of(2, thread::yield_now);
            let counts = [(); 3].map(|()| hold(DEFAULT_LIMIT).map_or(99, |held| held.count()));
            let answers = run_in_each(&WhoAndWhere, DEFAULT_LIMIT).map_or(99, |answers| answers.len());
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(if (counts, answers) == ([2; 3], 2) { 0 } else { 1 }) };
        });
        // SAFETY: nothing of this thread's is needed any more.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    let mut status = 0;
    // SAFETY: the child is ours.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
}

fn a_thread_in_vfork_is_named() {
    let (tell, told) = mpsc::channel();
    let parent = thread::Builder::new()
        .name("parent".into())
        .spawn(move || {
            tell.send(Tid::current()).unwrap();
            // A vfork whose child sleeps a while before it ends. The child uses a stack of its own.
            let mut stack = vec![0_u8; 64 << 10];
            extern "C" fn sleeps(_: *mut libc::c_void) -> libc::c_int {
                let while_ = libc::timespec { tv_sec: 0, tv_nsec: 600_000_000 };
                // SAFETY: the time is ours.
                unsafe { libc::nanosleep(&raw const while_, ptr::null_mut()) };
                0
            }
            let top = stack.as_mut_ptr_range().end.cast();
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            // SAFETY: the stack is the child's alone, and this thread waits until the child has ended.
            let pid = unsafe { libc::clone(sleeps, top, flags, ptr::null_mut()) };
            let mut status = 0;
            // SAFETY: the child is ours.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
        })
        .unwrap();
    let tid = told.recv().unwrap();
    while status(tid).unwrap().unwrap().state != ThreadState::Uninterruptible {
        thread::yield_now();
    }
    let error = hold(Duration::from_millis(100)).unwrap_err();
    let says = format!("thread {tid} \"parent\" waits in the kernel uninterruptibly, in vfork say");
    assert_eq!(error.to_string(), format!("not reached within 100ms: {says}"));
    parent.join().unwrap();
    drop(hold(DEFAULT_LIMIT).unwrap());
}
