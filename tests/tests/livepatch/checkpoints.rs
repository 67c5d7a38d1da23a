//! Threads migrate only at checkpoints: the threads that have migrated, the threads that have not, and no thread gets a
//! signal.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use modload::Host;
use modload::patch::{BlockReason, PatchError, PatchSpec, Target, Transition};
use modload::trace::Call;

use crate::other::{Other, mask, witness};
use crate::scene::{NEW, TARGET, built, call, func, patch};
use modload_tests::{LONG, Patience, until};

pub(crate) fn host() -> Arc<Host> {
    Arc::new(Host::builder().process_symbols().transition(Transition::CheckpointsOnly).build().unwrap())
}

/// Passes checkpoints until no patch is in transition.
pub(crate) fn settled(host: &Host) {
    let mut patience = Patience::new();
    while host.patches().unwrap().iter().any(|patch| patch.transition.is_some()) {
        host.checkpoint();
        patience.turn(|| format!("{:#?}", host.patches()));
    }
}

/// Returns the reasons why threads have not migrated, with their names, once their number is `count`. The worker thread
/// needs a moment until it is known not to be one of them.
fn left(host: &Host, count: usize) -> Vec<(String, String)> {
    let patches = host.patches().unwrap();
    let mut patience = Patience::new();
    loop {
        let threads = host.blocking(&patches.last().unwrap().name).unwrap();
        let mut threads: Vec<_> = threads.into_iter().map(|thread| (thread.name, thread.why)).collect();
        if threads.len() == count {
            threads.sort();
            return threads;
        }
        patience.turn(|| format!("{count}: {threads:?}"));
    }
}

pub(crate) fn at_checkpoints_nobody_is_sent_a_signal() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let witness = witness();
    let one = || patch("target", vec![func("one", &new, "new_one")]);
    for round in 0..20 {
        host.enable_patch("first", one(), Some(&new)).unwrap();
        assert_eq!((call(&target, "one", 1), witness.calls(&target, "one")), (2, 2), "round {round}");
        assert!(host.checkpoint());
        assert_eq!((call(&target, "one", 1), witness.calls(&target, "one")), (102, 2));
        left(&host, 1);
        host.reverse_patch("first").unwrap();
        host.reverse_patch("first").unwrap();
        assert!(host.checkpoint() && witness.comes_to_a_checkpoint(&host));
        settled(&host);
        assert_eq!((call(&target, "one", 1), witness.calls(&target, "one")), (102, 102));
        host.disable_patch("first").unwrap();
        assert!(witness.comes_to_a_checkpoint(&host));
        assert_eq!((call(&target, "one", 1), witness.calls(&target, "one")), (102, 2));
        settled(&host);
        assert_eq!((call(&target, "one", 1), witness.calls(&target, "one")), (2, 2));
        host.enable_patch("forced", one(), None).unwrap();
        host.force_patch("forced").unwrap();
        assert_eq!(witness.calls(&target, "one"), 102);
        host.disable_patch("forced").unwrap();
        host.force_patch("forced").unwrap();
        assert_eq!(witness.calls(&target, "one"), 2);
    }
    assert_eq!(modload_threads::signal(), None, "none was even chosen");
    // A host with the other mode makes the signal visible.
    let others = Host::builder().process_symbols().build().unwrap();
    let target = others.load(&built("target", TARGET)).unwrap();
    let refused = others.enable_patch("second", patch("target", vec![func("one", &target, "two")]), None).unwrap_err();
    assert!(matches!(refused, PatchError::Trace(_) | PatchError::Threads(_)), "{refused:?}");
    assert!(modload_threads::signal().is_some(), "threads are asked by a signal there, which the witness blocks");
    witness.ends();
}

pub(crate) fn a_thread_that_comes_to_no_checkpoint_stays_and_is_named() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let (stays, ends) = (Other::new(), Other::new());
    host.enable_patch("first", patch("target", vec![func("one", &new, "new_one")]), None).unwrap();
    assert!(left(&host, 3).iter().all(|(_, why)| why == "has not come to a checkpoint"));
    let status = host.patches().unwrap().remove(0);
    assert_eq!(status.how, Transition::CheckpointsOnly);
    let (to, blocked) = status.transition.unwrap();
    assert!(
        to == Target::Patched && blocked.iter().all(|blocked| blocked.why == BlockReason::NoCheckpoint),
        "{blocked:?}"
    );
    assert!(host.checkpoint());
    // Even many calls do not make a thread migrate.
    let module = target.clone();
    assert_eq!(stays.does(move || (0..100_000).map(|_| call(&module, "one", 1)).max().unwrap()), 2);
    assert_eq!(call(&target, "one", 1), 102);
    // A new thread has migrated from the start, and a thread that passes no checkpoint is not waited for after its end.
    let born = Other::new();
    assert_eq!(born.calls(&target, "one"), 102);
    ends.ends();
    assert_eq!(left(&host, 1), [("other".to_owned(), "has not come to a checkpoint".to_owned())]);
    let thread = || host.blocking("first").unwrap().remove(0);
    until("it sleeps", || thread().state == "sleeping");
    let thread = thread();
    assert!(thread.backtrace.frames().is_empty() && thread.inside.is_none(), "{thread:?}");
    thread::sleep(Duration::from_millis(300));
    assert_eq!(stays.calls(&target, "one"), 2, "time alone does not, either");
    stays.ends();
    settled(&host);
    assert_eq!((call(&target, "both", 1), born.calls(&target, "one")), (102_003, 102));
    born.ends();
    // A thread that waits for the removal of a patch passes checkpoints.
    assert!(host.disable_patches(LONG).unwrap().is_empty());
    assert_eq!(call(&target, "one", 1), 2);
}

pub(crate) fn a_checkpoint_within_a_patched_function_is_none() {
    const WITHIN: &str = "
    _Bool klp_checkpoint(void);
    __attribute__((noinline)) int within(int a) { __asm__ volatile(\"\"); return a + klp_checkpoint() * 10; }
    int new_within(int a) { return a + 100; }
    int outside(int a) { return klp_checkpoint() ? a : -1; }
    ";
    let host = host();
    let module = host.load(&built("module", WITHIN)).unwrap();
    assert_eq!(call(&module, "within", 1), 11, "nothing is under way");
    let other = Other::new();
    host.enable_patch("first", patch("module", vec![func("within", &module, "new_within")]), None).unwrap();
    assert_eq!(other.calls(&module, "within"), 1, "it is in the function that changes");
    let (_, why) = left(&host, 2).into_iter().find(|(name, _)| name == "other").unwrap();
    assert!(why.starts_with("was in within+0x") && why.ends_with(" [module] at its last checkpoint"), "{why}");
    assert_eq!((other.calls(&module, "outside"), other.calls(&module, "within")), (1, 101));
    settled(&host);
    other.ends();
}

pub(crate) fn a_transition_at_checkpoints_is_turned_round() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let (other, idle) = (Other::new(), Other::new());
    let both = || patch("target", vec![func("one", &new, "new_one"), func("two", &new, "new_two")]);
    host.enable_patch("first", both(), None).unwrap();
    assert!(other.comes_to_a_checkpoint(&host));
    let born = Other::new();
    assert_eq!(
        (other.calls(&target, "both"), born.calls(&target, "both"), idle.calls(&target, "both")),
        (102_103, 102_103, 2003)
    );
    // Reversed: threads that had not migrated have now migrated, and the others stay where they are until they pass a
    // checkpoint.
    host.disable_patch("first").unwrap();
    left(&host, 2);
    assert_eq!(
        (other.calls(&target, "both"), born.calls(&target, "both"), call(&target, "both", 1)),
        (102_103, 102_103, 2003)
    );
    assert!(born.comes_to_a_checkpoint(&host));
    assert_eq!((other.calls(&target, "both"), born.calls(&target, "both")), (102_103, 2003));
    // Reversed again: threads that have moved back must pass a checkpoint again.
    host.reverse_patch("first").unwrap();
    assert_eq!(
        (other.calls(&target, "both"), born.calls(&target, "both"), idle.calls(&target, "both")),
        (102_103, 2003, 2003)
    );
    assert!(host.checkpoint() && idle.comes_to_a_checkpoint(&host));
    assert_eq!(
        (call(&target, "both", 1), idle.calls(&target, "both"), born.calls(&target, "both")),
        (102_103, 102_103, 2003)
    );
    assert!(born.comes_to_a_checkpoint(&host));
    settled(&host);
    // Reversed at last, with a thread that never passes a checkpoint.
    host.disable_patch("first").unwrap();
    host.disable_patch("first").unwrap_err();
    assert!(born.comes_to_a_checkpoint(&host));
    assert_eq!((born.calls(&target, "both"), idle.calls(&target, "both")), (2003, 102_103));
    host.reverse_patch("first").unwrap();
    assert!(born.comes_to_a_checkpoint(&host));
    settled(&host);
    assert_eq!((born.calls(&target, "both"), idle.calls(&target, "both")), (102_103, 102_103));
    assert!(host.patches().unwrap()[0].enabled);
    [other, idle, born].into_iter().for_each(Other::ends);
}

pub(crate) fn targets_come_and_go_in_a_transition_at_checkpoints() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let (over, idle) = (Other::new(), Other::new());
    let late = "__attribute__((noinline)) int late(int a) { __asm__ volatile(\"\"); return a; }";
    let mut objects = patch("target", vec![func("one", &new, "new_one")]).objects;
    objects.extend(patch("late", vec![func("late", &new, "new_two")]).objects);
    host.enable_patch("first", PatchSpec { objects, ..PatchSpec::default() }, None).unwrap();
    assert!(over.comes_to_a_checkpoint(&host));
    // A module that is loaded during a transition takes part: each thread calls the same version of the module's
    // functions as of the others.
    let module = host.load(&built("late", late)).unwrap();
    assert_eq!((over.calls(&module, "late"), idle.calls(&module, "late")), (103, 1));
    module.unload().unwrap();
    // Also when the transition has been turned round.
    host.reverse_patch("first").unwrap();
    let module = host.load(&built("late", late)).unwrap();
    assert_eq!((over.calls(&module, "late"), idle.calls(&module, "late")), (103, 1));
    assert_eq!((over.calls(&target, "one"), idle.calls(&target, "one")), (102, 2));
    assert!(over.comes_to_a_checkpoint(&host));
    assert_eq!((over.calls(&module, "late"), over.calls(&target, "one")), (1, 2));
    settled(&host);
    assert!(host.patches().unwrap().is_empty());
    assert_eq!((over.calls(&module, "late"), idle.calls(&module, "late")), (1, 1));
    [over, idle].into_iter().for_each(Other::ends);
}

pub(crate) fn traced_functions_change_at_checkpoints() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let idle = Other::new();
    let trace = || {
        host.trace("target:one".parse().unwrap(), |_: &Call<'_>| {
            CALLS.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap()
    };
    let both = |mine: i32, others: i32, counted: usize| {
        assert_eq!((call(&target, "one", 1), idle.calls(&target, "one")), (mine, others));
        assert_eq!(CALLS.swap(0, Ordering::Relaxed), counted);
    };
    // Traced before the transition and during the transition: the function's calls go through the tracer's stub.
    let tracing = trace();
    for (name, new_one, before, after) in [("first", "new_one", 2, 102), ("second", "newer_one", 102, 202)] {
        host.enable_patch(name, patch("target", vec![func("one", &new, new_one)]), None).unwrap();
        both(before, before, 2);
        assert!(host.checkpoint());
        both(after, before, 2);
        assert!(idle.comes_to_a_checkpoint(&host));
        settled(&host);
        both(after, after, 2);
    }
    drop(tracing);
    // Traced from the middle on.
    host.disable_patch("second").unwrap();
    assert!(host.checkpoint());
    both(102, 202, 0);
    let tracing = trace();
    both(102, 202, 2);
    assert!(idle.comes_to_a_checkpoint(&host));
    settled(&host);
    both(102, 102, 2);
    drop(tracing);
    both(102, 102, 0);
    idle.ends();
}

pub(crate) fn a_transition_at_checkpoints_is_forced() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let idle = Other::new();
    host.enable_patch("first", patch("target", vec![func("one", &new, "new_one")]), None).unwrap();
    assert_eq!(idle.calls(&target, "one"), 2);
    host.force_patch("first").unwrap();
    let status = host.patches().unwrap();
    assert!(status[0].forced && status[0].transition.is_none());
    assert_eq!((idle.calls(&target, "one"), call(&target, "one", 1)), (102, 102));
    // A transition that was forced can be followed by an ordinary one.
    host.enable_patch("second", patch("target", vec![func("one", &new, "newer_one")]), None).unwrap();
    assert_eq!((idle.calls(&target, "one"), call(&target, "one", 1)), (102, 102));
    assert!(idle.comes_to_a_checkpoint(&host));
    assert_eq!((idle.calls(&target, "one"), call(&target, "one", 1)), (202, 102));
    settled(&host);
    assert_eq!(call(&target, "one", 1), 202);
    idle.ends();
}

pub(crate) fn a_child_goes_on_with_a_transition_at_checkpoints() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let idle = Other::new();
    host.enable_patch("first", patch("target", vec![func("one", &new, "new_one")]), None).unwrap();
    // SAFETY: the child calls existing functions, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // The child has one thread, and the thread has not migrated under its new id either. Not even `idle` blocks the
        // transition.
        let before = call(&target, "one", 1);
        settled(&host);
        let after = call(&target, "one", 1);
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(if (before, after) == (2, 102) { 42 } else { 1 }) }
    }
    let mut status = 0;
    // SAFETY: waits for the child; the status is ours.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 42, "{status:#x}");
    assert!(host.checkpoint());
    assert_eq!((call(&target, "one", 1), idle.calls(&target, "one")), (102, 2));
    idle.ends();
    settled(&host);
}

pub(crate) fn where_traps_cannot_be_used_checkpoints_alone_are_refused() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let other = Other::new();
    other.does(|| {
        mask(libc::SIG_BLOCK, &[libc::SIGTRAP]);
        0
    });
    let one = || patch("target", vec![func("one", &new, "new_one")]);
    let refused = host.enable_patch("first", one(), None).unwrap_err().to_string();
    assert!(refused.contains("\"other\" blocks SIGTRAP, and no thread may be held"), "{refused}");
    assert!(host.patches().unwrap().is_empty() && host.checkpoint());
    assert_eq!((call(&target, "one", 1), other.calls(&target, "one")), (2, 2));
    other.does(|| {
        mask(libc::SIG_UNBLOCK, &[libc::SIGTRAP]);
        0
    });
    host.enable_patch("first", one(), None).unwrap();
    other.ends();
    settled(&host);
    assert_eq!(call(&target, "one", 1), 102);
}
