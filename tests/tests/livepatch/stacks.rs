//! The stack of a thread when a function changes: with the function many times, asleep in a system call, and cancelled
//! there.

use std::thread;
use std::time::Duration;

use modload::{Host, Module};

use crate::scene::{built, call, func, host, patch, settled, settled_after};
use modload_tests::until;

/// Sleeps at the deepest level of a recursion, in a thread that can be woken or cancelled there.
const DEEP: &str = r#"
#include <pthread.h>
#include <unistd.h>
#include <modload/module.h>
#define SHARED __attribute__((visibility("default")))
#define NEVER_INLINE __attribute__((noinline, visibility("default")))
static pthread_t thread;
static int ends[2], arrived, cleaned;
static void clean(void *unused) { (void)unused; cleaned++; }
/* Nobody's function to replace: the thread returns from here into whatever it was called by. */
NEVER_INLINE void bottom(void)
{
	char byte;
	pthread_cleanup_push(clean, 0);
	__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
	while (read(ends[0], &byte, 1) != 1)
		;
	pthread_cleanup_pop(0);
}
NEVER_INLINE int down(int n)
{
	if (n <= 0) {
		if (n < 0)
			bottom();
		return 0;
	}
	int below = down(n == 1 ? -1 : n - 1);
	__asm__ volatile("");
	return below + 1;
}
NEVER_INLINE int quietly(int n) { int below = n ? quietly(n - 1) : 0; __asm__ volatile(""); return below + (n != 0); }
static void *run(void *depth) { return (void *)(long)down((int)(long)depth); }
EXPORT_SYMBOL(bottom);
EXPORT_SYMBOL(down);
EXPORT_SYMBOL(quietly);
SHARED int begin(int depth)
{
	if (!ends[1] && pipe(ends))
		return -1;
	return pthread_create(&thread, 0, run, (void *)(long)depth);
}
SHARED int finish(int cancelled)
{
	void *result;
	if (cancelled ? pthread_cancel(thread) : write(ends[1], "x", 1) != 1)
		return -2;
	pthread_join(thread, &result);
	return result == PTHREAD_CANCELED ? -1 : (int)(long)result;
}
SHARED int arrivals(int unused) { (void)unused; return __atomic_load_n(&arrived, __ATOMIC_SEQ_CST); }
SHARED int cleanups(int unused) { (void)unused; return cleaned; }
"#;

const NEW: &str = r#"
int down(int), quietly(int);
void bottom(void);
__attribute__((visibility("default"))) int new_down(int n)
{
	if (n <= 0) {
		if (n < 0)
			bottom();
		return 0;
	}
	int below = down(n == 1 ? -1 : n - 1);
	__asm__ volatile("");
	return below + 10;
}
__attribute__((visibility("default"))) int new_quietly(int n)
{
	int below = n ? quietly(n - 1) : 0;
	__asm__ volatile("");
	return below + 10 * (n != 0);
}
"#;

const DEPTH: i32 = 200;

/// A thread that sleeps so deep.
fn asleep(deep: &Module) {
    let before = call(deep, "arrivals", 0);
    assert_eq!(call(deep, "begin", DEPTH), 0);
    until("it sleeps", || call(deep, "arrivals", 0) != before);
}

fn modules(host: &Host) -> [Module; 2] {
    let deep = host.load(&built("deep", DEEP)).unwrap();
    [deep, host.load(&built("new", NEW)).unwrap()]
}

fn enable(host: &Host, new: &Module) {
    let funcs = vec![func("down", new, "new_down"), func("quietly", new, "new_quietly")];
    host.enable_patch("first", patch("deep", funcs), None).unwrap();
}

/// Returns whether a thread blocks the current transition.
fn is_blocked(host: &Host) -> bool {
    host.patches().unwrap().iter().any(|patch| patch.transition.is_some())
}

pub(crate) fn a_recursion_is_of_one_kind_at_every_depth() {
    let host = host();
    let [deep, new] = modules(&host);
    for _ in 0..3 {
        assert_eq!(call(&deep, "quietly", DEPTH), DEPTH);
        asleep(&deep);
        enable(&host, &new);
        assert!(is_blocked(&host), "it is two hundred times in what changes");
        // A thread that has migrated runs the new code at every depth.
        assert_eq!(call(&deep, "quietly", DEPTH), 10 * DEPTH);
        assert_eq!(call(&deep, "finish", 0), DEPTH, "all of one kind: the old one");
        settled(&host);
        asleep(&deep);
        assert_eq!(call(&deep, "quietly", DEPTH), 10 * DEPTH);
        host.disable_patch("first").unwrap();
        assert!(is_blocked(&host));
        assert_eq!(call(&deep, "quietly", DEPTH), DEPTH);
        assert_eq!(call(&deep, "finish", 0), 10 * DEPTH, "all of one kind: the new one");
        settled(&host);
    }
}

pub(crate) fn who_is_cancelled_asleep_is_out_of_the_way() {
    let host = host();
    let [deep, new] = modules(&host);
    for round in 1..=10 {
        // In old code, during a transition, which ends with the thread.
        asleep(&deep);
        enable(&host, &new);
        assert!(is_blocked(&host));
        assert_eq!(call(&deep, "finish", 1), -1);
        assert_eq!(call(&deep, "cleanups", 0), 2 * round - 1);
        settled(&host);
        // In new code, settled, and then on the way back.
        asleep(&deep);
        host.disable_patch("first").unwrap();
        assert!(is_blocked(&host));
        assert_eq!(call(&deep, "finish", 1), -1);
        assert_eq!(call(&deep, "cleanups", 0), 2 * round);
        settled(&host);
        assert!(host.patches().unwrap().is_empty());
        assert_eq!(call(&deep, "quietly", DEPTH), DEPTH);
    }
    drop((deep, new));
    assert!(host.unload("new").is_ok() && host.unload("deep").is_ok());
}

/// The intervals of the checks grow during a transition. But when a blocking thread ends, the threads are checked at
/// once.
pub(crate) fn the_end_of_a_thread_is_not_left_to_the_clock() {
    let this = modload_threads::Tid::current().get();
    // SAFETY: a number and a flag; the descriptor is closed when the process ends.
    let end = unsafe { libc::syscall(libc::SYS_pidfd_open, this, libc::O_EXCL) };
    if end < 0 {
        println!("SKIPPED: this kernel has no pidfds of threads (Linux 6.9): the clock tells of their ends");
        return;
    }
    let host = host();
    let [deep, new] = modules(&host);
    let mut took = [(); 4].map(|()| {
        asleep(&deep);
        enable(&host, &new);
        thread::sleep(Duration::from_millis(2200));
        assert!(is_blocked(&host));
        assert_eq!(call(&deep, "finish", 1), -1);
        let took = settled_after(&host);
        host.disable_patch("first").unwrap();
        settled(&host);
        took
    });
    // With the timer alone the transition would take any part of a second, a thousand turns and more at the speed of
    // the others.
    took.sort_unstable();
    assert!(took[2] < 500, "{took:?}");
}
