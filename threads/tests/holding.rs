//! Threads held at any place: in the allocator, in system calls, in handlers; starting, ending and forking.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::fd::FromRawFd;
use std::process::ExitCode;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use modload_edit::wide;
use modload_tests::{Crowd, LONG, WhoAndWhere, case, run, until};
use modload_threads::frames::{Ended, Stack, WalkError, each_stack, know_process};
use modload_threads::{
    Error, Interrupted, Probe, Tid, after_fork_in_child, after_fork_in_parent, before_fork, counts, hold, run_in_each,
};

fn main() -> ExitCode {
    run(&[
        case!(the_saved_rip_is_right_and_can_be_changed),
        case!(threads_that_start_and_end_all_the_time),
        case!(ten_thousand_holds_of_threads_in_malloc),
        case!(system_calls_go_on_or_are_counted),
        case!(a_small_alternate_stack_will_do),
        case!(two_holders_take_turns),
        case!(each_stack_is_walked_once_and_room_is_made_before).within_seconds(120),
        case!(forks_during_holds),
        case!(threads_that_wait_for_a_processor_are_waited_for),
        case!(a_turn_comes_after_many_others),
    ])
}

/// A loop whose addresses are known: from `spin_begin` to `spin_end` while `*flag` is 0. `spin_other` stores 2 to
/// `flag`, which ends the loop as well.
mod spin {
    use std::arch::global_asm;
    use std::sync::atomic::AtomicU32;

    global_asm!(
        ".globl spin_begin, spin_end, spin_other",
        "spin_begin:",
        "cmp dword ptr [rdi], 0",
        "je spin_begin",
        "spin_end:",
        "ret",
        "spin_other:",
        "mov dword ptr [rdi], 2",
        "ret",
    );

    unsafe extern "C" {
        pub(crate) fn spin_begin(flag: *const AtomicU32);
        pub(crate) fn spin_end();
        pub(crate) fn spin_other();
    }
}

fn address(function: *const ()) -> u64 {
    u64::try_from(function.expose_provenance()).unwrap()
}

#[expect(clippy::as_conversions, reason = "functions become pointers by a cast alone")]
fn spin_range() -> std::ops::Range<u64> {
    address(spin::spin_begin as *const ())..address(spin::spin_end as *const ())
}

fn the_saved_rip_is_right_and_can_be_changed() {
    let flag = Arc::new(AtomicU32::new(0));
    let (tell, told) = mpsc::channel();
    let thread = {
        let flag = flag.clone();
        thread::spawn(move || {
            tell.send(Tid::current()).unwrap();
            // SAFETY: the code reads the flag until another thread changes it.
            unsafe { spin::spin_begin(Arc::as_ptr(&flag)) };
            flag.load(Ordering::Relaxed)
        })
    };
    let tid = told.recv().unwrap();
    until("the thread spins", || {
        let held = hold(LONG).unwrap();
        held.threads().all(|thread| spin_range().contains(&thread.rip()))
    });
    for _ in 0..1000 {
        let held = hold(LONG).unwrap();
        let all: Vec<_> =
            held.threads().map(|thread| (thread.tid(), thread.rip(), thread.register(libc::REG_RDI))).collect();
        drop(held);
        assert_eq!(all.len(), 1);
        assert!(all[0].0 == tid && spin_range().contains(&all[0].1), "{all:x?} {:x?}", spin_range());
        assert_eq!(all[0].2, u64::try_from(Arc::as_ptr(&flag).expose_provenance()).unwrap());
    }
    for (tid, answer) in run_in_each(&WhoAndWhere, LONG).unwrap() {
        assert_eq!((tid, tid), (answer.0, answer.1));
        assert!(spin_range().contains(&answer.2));
    }
    let mut held = hold(LONG).unwrap();
    #[expect(clippy::as_conversions, reason = "functions become pointers by a cast alone")]
    let other = address(spin::spin_other as *const ());
    // SAFETY: `spin_other` takes the flag in rdi, as the loop does, and returns as the loop would.
    let changed = unsafe { held.set_rip(tid, other) };
    // SAFETY: no held thread has this id.
    let nobody = unsafe { held.set_rip(Tid::current(), other) };
    drop(held);
    assert!(changed && !nobody);
    assert_eq!(thread.join().unwrap(), 2, "it went on at the other place");
}

fn threads_that_start_and_end_all_the_time() {
    let born = Arc::new(AtomicU64::new(0));
    let count = born.clone();
    let crowd = Crowd::of(4, move || {
        let thread = thread::spawn(|| black_box(Vec::<u8>::with_capacity(64)));
        count.fetch_add(1, Ordering::Relaxed);
        thread.join().unwrap();
    });
    let mut most = 0;
    for _ in 0..3000 {
        let before = born.load(Ordering::Relaxed);
        let held = hold(LONG).unwrap();
        let now = born.load(Ordering::Relaxed);
        // Long enough to notice a thread that was not held: no thread may start.
        (0..2000).for_each(|_| std::hint::spin_loop());
        let later = born.load(Ordering::Relaxed);
        let (held_count, tids) = (held.count(), crowd.count());
        drop(held);
        assert_eq!(now, later);
        assert!(held_count >= tids, "{held_count}");
        most = most.max(held_count);
        // Others get on between two holds.
        while born.load(Ordering::Relaxed) == before {
            thread::yield_now();
        }
    }
    // The question is complete when a pass has found no new thread, which takes many passes here.
    for _ in 0..100 {
        let answers = run_in_each(&WhoAndWhere, LONG).unwrap();
        assert!(wide(answers.len()) >= crowd.count());
        assert!(answers.iter().all(|(tid, answer)| *tid == answer.0 && *tid == answer.1));
    }
    let born = born.load(Ordering::Relaxed);
    assert!(born > 3000 && most > 4, "{born} threads, at most {most} held");
}

fn ten_thousand_holds_of_threads_in_malloc() {
    let turns = Arc::new(AtomicU64::new(0));
    let count = turns.clone();
    let crowd = Crowd::of(4, move || {
        // Large enough for the arena's lock and not only the thread's own cache.
        let all: Vec<Vec<u8>> = (0..16).map(|n| black_box(Vec::with_capacity(2000 + n * 100))).collect();
        drop(black_box(all));
        count.fetch_add(1, Ordering::Relaxed);
    });
    for _ in 0..10_000 {
        let held = hold(LONG).unwrap();
        let count = held.count();
        drop(held);
        assert_eq!(count, crowd.count());
    }
    assert!(turns.load(Ordering::Relaxed) > 1000, "they got on meanwhile");
}

/// The stored data of a stack: its thread, whether the stack passes through [`waits`], the number of frames, and the
/// end of the walk.
type Seen = (Tid, bool, u64, Result<Ended, WalkError>);

/// A frame by which threads are known, below one that is the C library's.
#[inline(never)]
fn waits(time: Duration) {
    thread::sleep(time);
    black_box(());
}

fn see(seen: &mut Vec<Seen>, stack: &Stack<'_>) {
    #[expect(clippy::as_conversions, reason = "functions become pointers by a cast alone")]
    let waits = address(waits as *const ());
    let (mut passes, mut frames) = (false, 0);
    let ended = stack.walk(|frame| {
        passes |= (waits..waits + 64).contains(&frame.inside());
        frames += 1;
        ControlFlow::Continue(())
    });
    seen.push((stack.tid(), passes, frames, ended));
}

fn each_stack_is_walked_once_and_room_is_made_before() {
    know_process().unwrap();
    let alone = each_stack(Vec::with_capacity, see).unwrap();
    assert!(matches!(alone[..], [(tid, false, 2.., Ok(Ended::Outermost))] if tid == Tid::current()), "{alone:?}");
    let mut crowds = vec![Crowd::of(8, || waits(Duration::from_millis(1)))];
    // A hundred more threads start while there seems to be room for all.
    let (mut rooms, mut starts) = (Vec::new(), true);
    let room = |stacks| {
        if std::mem::take(&mut starts) {
            crowds.push(Crowd::of(100, || waits(Duration::from_millis(1))));
        }
        rooms.push(stacks);
        Vec::with_capacity(stacks)
    };
    let seen = each_stack(room, see).unwrap();
    assert!(matches!(rooms[..], [73, 173]), "{rooms:?}");
    assert!(seen.capacity() >= 109 && seen.len() == 109);
    let mut tids: Vec<_> = seen.iter().map(|(tid, ..)| *tid).collect();
    assert_eq!(tids.last(), Some(&Tid::current()));
    tids.sort_unstable();
    tids.dedup();
    assert_eq!(tids.len(), 109, "each once");
    // Nearly every time each thread of the crowd waits; sometimes a thread checks whether the test is over.
    let often = (0..100).map(|_| each_stack(Vec::with_capacity, see).unwrap());
    let (mut waiting, mut all) = (0, 0);
    for (tid, passes, _, ended) in often.flatten() {
        assert_eq!(ended, Ok(Ended::Outermost), "{tid}");
        waiting += u64::from(passes);
        all += 1;
        assert!(!passes || tid != Tid::current());
    }
    // On a busy machine many of them wait for a processor instead.
    assert!(all == 10_900 && waiting > 0, "{waiting} of {all}");
}

fn system_calls_go_on_or_are_counted() {
    // A read of a pipe is restarted.
    let mut ends = [0; 2];
    // SAFETY: pipe writes two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: the descriptor is new and belongs to this test alone.
    let mut read = unsafe { File::from_raw_fd(ends[0]) };
    // SAFETY: as above.
    let mut write = unsafe { File::from_raw_fd(ends[1]) };
    let reader = thread::spawn(move || {
        let mut byte = [0];
        let result = read.read(&mut byte);
        (result.map_err(|error| error.raw_os_error()), byte[0])
    });
    // A wait for a lock continues after the hold.
    let lock = Arc::new(Mutex::new(7));
    let guard = lock.lock().unwrap();
    let locker = {
        let lock = lock.clone();
        thread::spawn(move || *lock.lock().unwrap())
    };
    // SAFETY: a mutex of the C library's that is all zeros is unlocked.
    let mutex: &'static mut libc::pthread_mutex_t = Box::leak(Box::new(unsafe { std::mem::zeroed() }));
    let mutex = (&raw mut *mutex).expose_provenance();
    // SAFETY: the mutex is leaked and initialised.
    assert_eq!(unsafe { libc::pthread_mutex_lock(ptr::with_exposed_provenance_mut(mutex)) }, 0);
    let pthread = thread::spawn(move || {
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_lock(ptr::with_exposed_provenance_mut(mutex)) }
    });
    // nanosleep and poll return EINTR.
    let sleeper = thread::spawn(|| {
        let long = libc::timespec { tv_sec: 100, tv_nsec: 0 };
        // SAFETY: a time of this function; the remaining time is not requested.
        let result = unsafe { libc::nanosleep(&raw const long, ptr::null_mut()) };
        (result, std::io::Error::last_os_error().raw_os_error())
    });
    let poller = thread::spawn(|| {
        // SAFETY: no descriptors.
        let result = unsafe { libc::poll(ptr::null_mut(), 0, 100_000) };
        (result, std::io::Error::last_os_error().raw_os_error())
    });
    // Two of them wait for a lock, one reads, one sleeps and one polls.
    until("all are in their system calls", || {
        let mut calls: Vec<String> = std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("syscall")).ok())
            .filter_map(|line| line.split(' ').next().map(str::to_owned))
            .collect();
        calls.sort();
        let wanted = [libc::SYS_clock_nanosleep, libc::SYS_futex, libc::SYS_futex, libc::SYS_poll, libc::SYS_read];
        let count = |number: i64| calls.iter().filter(|call| **call == number.to_string()).count();
        wanted.iter().all(|number| count(*number) >= wanted.iter().filter(|other| *other == number).count())
    });
    assert_eq!(counts().interrupted, 0);
    let held = hold(LONG).unwrap();
    let count = held.count();
    drop(held);
    // On a busy machine an attempt may fail after interrupting these two threads, and they have ended before the next
    // attempt.
    assert!((3..=5).contains(&count), "{count}");
    assert_eq!(sleeper.join().unwrap(), (-1, Some(libc::EINTR)));
    assert_eq!(poller.join().unwrap(), (-1, Some(libc::EINTR)));
    assert_eq!(counts().interrupted, 2, "just these two");
    for _ in 0..1000 {
        drop(hold(LONG).unwrap());
        run_in_each(&WhoAndWhere, LONG).unwrap();
    }
    assert_eq!(counts().interrupted, 2, "what is restarted is not counted");
    assert!(!reader.is_finished() && !locker.is_finished() && !pthread.is_finished());
    write.write_all(&[42]).unwrap();
    assert_eq!(reader.join().unwrap(), (Ok(1), 42));
    drop(guard);
    assert_eq!(locker.join().unwrap(), 7);
    // SAFETY: as above; this thread has the mutex.
    assert_eq!(unsafe { libc::pthread_mutex_unlock(ptr::with_exposed_provenance_mut(mutex)) }, 0);
    assert_eq!(pthread.join().unwrap(), 0);
}

/// Spins in a handler of SIGUSR1 until the test ends the handler.
static IN_HANDLER: AtomicUsize = AtomicUsize::new(0);
static LEAVE_HANDLER: AtomicBool = AtomicBool::new(false);

extern "C" fn busy_handler(_signal: libc::c_int) {
    IN_HANDLER.fetch_add(1, Ordering::Relaxed);
    while !LEAVE_HANDLER.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
}

/// Puts `errno` to another value, which the thread must not notice.
struct SpoilErrno;

// SAFETY: writes this thread's errno only.
unsafe impl Probe for SpoilErrno {
    type Answer = ();

    fn probe(&self, _: Interrupted<'_>) {
        // SAFETY: errno of this thread.
        let place = unsafe { libc::__errno_location() };
        // SAFETY: as above.
        unsafe { *place = libc::E2BIG };
    }
}

fn a_small_alternate_stack_will_do() {
    // SAFETY: sigaction is integers.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int) = busy_handler;
    #[expect(clippy::as_conversions, reason = "sigaction takes the handler's address as an integer")]
    let at = handler as libc::sighandler_t;
    (action.sa_sigaction, action.sa_flags) = (at, libc::SA_ONSTACK | libc::SA_RESTART);
    // SAFETY: the handler is async-signal-safe.
    assert_eq!(unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut()) }, 0);
    let threads: Vec<_> = (0..2)
        .map(|in_handler| {
            thread::spawn(move || {
                // A stack of SIGSTKSZ bytes. The memory below holds a pattern that no code may change.
                let mut memory = vec![0xa5_u8; 4096 + 8192];
                let stack = libc::stack_t { ss_sp: memory[4096..].as_mut_ptr().cast(), ss_flags: 0, ss_size: 8192 };
                // SAFETY: the memory outlives the thread's use of the stack: the stack is disabled below.
                assert_eq!(unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) }, 0);
                // SAFETY: errno of this thread.
                let errno = unsafe { libc::__errno_location() };
                // SAFETY: as above.
                unsafe { *errno = libc::EXDEV };
                if in_handler == 1 {
                    // SAFETY: to this very thread.
                    unsafe { libc::raise(libc::SIGUSR1) };
                } else {
                    IN_HANDLER.fetch_add(1, Ordering::Relaxed);
                    while !LEAVE_HANDLER.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                }
                // SAFETY: as above.
                let after = unsafe { *errno };
                let off = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
                // SAFETY: the thread is not on that stack.
                assert_eq!(unsafe { libc::sigaltstack(&raw const off, ptr::null_mut()) }, 0);
                let unused = memory.iter().skip(4096).take_while(|byte| **byte == 0xa5).count();
                (after, memory[..4096].iter().all(|byte| *byte == 0xa5), 8192 - unused)
            })
        })
        .collect();
    while IN_HANDLER.load(Ordering::Relaxed) < 2 {
        thread::yield_now();
    }
    for _ in 0..100 {
        let held = hold(LONG).unwrap();
        let count = held.count();
        drop(held);
        assert_eq!(count, 2);
        assert_eq!(run_in_each(&SpoilErrno, LONG).unwrap().len(), 2);
    }
    LEAVE_HANDLER.store(true, Ordering::Relaxed);
    let used: Vec<_> = threads
        .into_iter()
        .map(|thread| {
            let (errno, untouched, used) = thread.join().unwrap();
            assert_eq!((errno, untouched), (libc::EXDEV, true));
            used
        })
        .collect();
    assert!(used[0] > 0 && used[0] < 8192 && used[1] < 8192);
}

fn two_holders_take_turns() {
    // In memory that no held thread owns: only one thread holds at a time.
    let holders = Arc::new(AtomicU32::new(0));
    let threads: Vec<_> = (0..4)
        .map(|n| {
            let holders = holders.clone();
            thread::spawn(move || {
                for _ in 0..500 {
                    if n == 3 {
                        run_in_each(&WhoAndWhere, LONG).unwrap();
                        continue;
                    }
                    let held = hold(LONG).unwrap();
                    let before = holders.fetch_add(1, Ordering::Relaxed);
                    (0..200).for_each(|_| std::hint::spin_loop());
                    holders.fetch_sub(1, Ordering::Relaxed);
                    let nested = hold(LONG);
                    let is_nested = matches!(nested, Err(Error::Nested));
                    drop(held);
                    assert!(before == 0 && is_nested);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    // A waiting thread gets the name of the thread that takes too long.
    let (tell, told) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let holder = thread::spawn(move || {
        before_fork();
        tell.send(Tid::current()).unwrap();
        let _ = ended.recv();
        after_fork_in_parent();
    });
    let tid = told.recv().unwrap();
    let busy = hold(Duration::from_millis(20)).unwrap_err();
    assert_eq!(busy.to_string(), format!("thread {tid} was still holding or asking the others after 20ms"));
    drop(end);
    holder.join().unwrap();
    drop(hold(LONG).unwrap());
}

extern "C" fn prepare() {
    before_fork();
}

extern "C" fn parent() {
    after_fork_in_parent();
}

extern "C" fn in_child() {
    after_fork_in_child();
}

fn forks_during_holds() {
    // SAFETY: the functions live as long as the program.
    assert_eq!(unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(in_child)) }, 0);
    let crowd = Crowd::of(2, || {
        black_box(vec![0_u8; 100]);
    });
    let holder = Crowd::of(1, || {
        drop(hold(LONG).unwrap());
        thread::yield_now();
    });
    for _ in 0..300 {
        // SAFETY: the child calls only functions of ours, which take no lock and no memory, and thread creation.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // A child with one thread holds no thread; nothing of the parent's turn is left. After the child has
            // started a thread, the child holds that thread.
            let alone = hold(LONG).map_or(9, |held| held.count());
            let more = thread::spawn(|| {
                loop {
                    std::hint::spin_loop();
                }
            });
            let two = hold(LONG).map_or(9, |held| held.count());
            std::mem::forget(more);
            let code = if (alone, two) == (0, 1) { 0 } else { 1 };
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: the child is ours.
        while unsafe { libc::waitpid(pid, &raw mut status, 0) } != pid {}
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
    }
    drop((crowd, holder));
}

/// So many threads run that on a busy machine some of them get no processor within the limit.
fn threads_that_wait_for_a_processor_are_waited_for() {
    const LIMIT: Duration = Duration::from_millis(200);
    let stop = Arc::new(AtomicBool::new(false));
    let begun = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..64)
        .map(|_| {
            let (stop, begun) = (stop.clone(), begun.clone());
            thread::spawn(move || {
                begun.fetch_add(1, Ordering::Relaxed);
                while !stop.load(Ordering::Relaxed) {
                    black_box(0);
                }
            })
        })
        .collect();
    until("all threads run", || begun.load(Ordering::Relaxed) == threads.len());
    for _ in 0..20 {
        assert_eq!(hold(LIMIT).map(|held| held.count()).unwrap(), wide(threads.len()));
        assert_eq!(run_in_each(&WhoAndWhere, LIMIT).unwrap().len(), threads.len());
    }
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// The turns of all threads take longer than the limit of one.
fn a_turn_comes_after_many_others() {
    const LIMIT: Duration = Duration::from_millis(300);
    let begin = Arc::new(Barrier::new(8));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let begin = begin.clone();
            thread::spawn(move || {
                begin.wait();
                let held = hold(LIMIT).unwrap();
                thread::sleep(LIMIT / 3);
                drop(held);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
