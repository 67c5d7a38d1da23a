//! Next to libgcc's `_Unwind_Backtrace`, from the same place.

use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};

use modload_fixtures::Language;
use modload_threads::frames::{
    Ended, Frame, ProcessMemory, Register, Registers, WalkError, know_process, walk, walk_here,
};

use crate::code::Library;

/// libgcc's data of a frame: the same data as in [`Frame`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Theirs {
    pc: u64,
    is_exact: bool,
    /// The result of `_Unwind_GetCFA`: the stack pointer of the frame, which is the CFA of the frame before.
    stack: u64,
}

#[link(name = "gcc_s")]
unsafe extern "C" {
    fn _Unwind_Backtrace(trace: extern "C" fn(*mut c_void, *mut c_void) -> c_int, argument: *mut c_void) -> c_int;
    fn _Unwind_GetIPInfo(context: *mut c_void, before: *mut c_int) -> usize;
    fn _Unwind_GetCFA(context: *mut c_void) -> usize;
}

extern "C" fn note(context: *mut c_void, frames: *mut c_void) -> c_int {
    let mut before = 0;
    // SAFETY: libgcc passes its context, and `before` is ours.
    let pc = unsafe { _Unwind_GetIPInfo(context, &raw mut before) };
    // SAFETY: libgcc passes its context.
    let stack = unsafe { _Unwind_GetCFA(context) };
    let [pc, stack] = [pc, stack].map(|value| u64::try_from(value).unwrap());
    // SAFETY: the pointer that `theirs` has passed; no other code uses the value during the walk.
    let frames = unsafe { &mut *frames.cast::<Vec<Theirs>>() };
    // The end of a stack counts as a frame there.
    if pc != 0 {
        frames.push(Theirs { pc, is_exact: before != 0, stack });
    }
    0
}

/// The number of comparisons, and of compared frames.
static COMPARED: AtomicUsize = AtomicUsize::new(0);
static FRAMES: AtomicUsize = AtomicUsize::new(0);

/// Both walk from here. From the caller on they must agree.
#[inline(never)]
extern "C" fn compare() {
    let mut ours: Vec<Frame> = Vec::with_capacity(64);
    let ended = walk_here(|frame| {
        ours.push(*frame);
        ControlFlow::Continue(())
    });
    assert_eq!(ended, Ok(Ended::Outermost), "after {ours:x?}");
    let mut theirs: Vec<Theirs> = Vec::with_capacity(64);
    // SAFETY: the function is called with the vector while this call lasts.
    unsafe { _Unwind_Backtrace(note, (&raw mut theirs).cast()) };
    let calls = |frames: usize| frames.checked_sub(1).expect("this frame is one");
    assert_eq!(calls(ours.len()), calls(theirs.len()), "{ours:x?}\n{theirs:x?}");
    for (number, (pair, theirs)) in ours.windows(2).zip(&theirs[1..]).enumerate() {
        let [callee, frame] = pair else { unreachable!() };
        let ours = Theirs { pc: frame.pc, is_exact: frame.is_exact, stack: callee.cfa };
        let signal = ours.is_exact && callee.is_signal;
        // An interrupted frame has a stack pointer of its own, which for our walker is not the CFA of the kernel's
        // frame.
        assert!(ours == *theirs || signal && ours.pc == theirs.pc, "frame {number}: {ours:x?} {theirs:x?}");
    }
    COMPARED.fetch_add(1, Ordering::Relaxed);
    FRAMES.fetch_add(ours.len(), Ordering::Relaxed);
}

/// Returns the number of comparisons in `during`, and the number of frames in all of them.
fn compared(during: impl FnOnce()) -> (usize, usize) {
    know_process().unwrap();
    let before = [&COMPARED, &FRAMES].map(|count| count.load(Ordering::Relaxed));
    during();
    (COMPARED.load(Ordering::Relaxed) - before[0], FRAMES.load(Ordering::Relaxed) - before[1])
}

trait Visit {
    fn visit(&self, depth: usize);
}

/// A call that no compiler sees through.
fn dispatch(visit: &dyn Visit, depth: usize) {
    black_box(visit).visit(depth);
}

struct Plain;

impl Visit for Plain {
    fn visit(&self, depth: usize) {
        if depth == 0 {
            compare();
        } else {
            dispatch(self, depth - 1);
            black_box(depth);
        }
    }
}

pub(crate) fn plain_frames_agree_with_libgcc() {
    let (times, frames) = compared(|| {
        compare();
        dispatch(&Plain, 10);
        [3, 1, 2].sort_by(|a: &i32, b: &i32| {
            compare();
            a.cmp(b)
        });
        std::panic::catch_unwind(|| compare()).unwrap();
    });
    assert!(times >= 5 && frames > 40, "{times}, {frames}");
}

extern "C" fn compare_two(a: *const c_void, b: *const c_void) -> c_int {
    compare();
    // SAFETY: the C library passes elements of an array of i32.
    let (a, b) = (unsafe { *a.cast::<i32>() }, unsafe { *b.cast::<i32>() });
    i32::from(a > b) - i32::from(a < b)
}

unsafe extern "C" {
    fn atexit(function: extern "C" fn()) -> c_int;
    fn pthread_once(control: *mut c_int, function: extern "C" fn()) -> c_int;
}

pub(crate) fn callbacks_of_the_c_library_agree_with_libgcc() {
    let (times, _) = compared(|| {
        let mut numbers: Vec<i32> = (0..40).map(|number| number * 7919 % 41).collect();
        // SAFETY: 40 elements of four bytes, and a function that compares two elements.
        unsafe { libc::qsort(numbers.as_mut_ptr().cast(), 40, 4, Some(compare_two)) };
        assert!(numbers.is_sorted());
        // SAFETY: the same array, which is sorted now.
        let found = unsafe {
            libc::bsearch((&raw const numbers[11]).cast(), numbers.as_ptr().cast(), 40, 4, Some(compare_two))
        };
        assert_eq!(found.cast_const(), (&raw const numbers[11]).cast());
        let mut control = 0;
        // SAFETY: PTHREAD_ONCE_INIT is 0.
        assert_eq!(unsafe { pthread_once(&raw mut control, compare) }, 0);
        // SAFETY: calls the callback with every object of this process; the callback ignores the objects.
        unsafe { libc::dl_iterate_phdr(Some(each_object), std::ptr::null_mut()) };
    });
    assert!(times > 100, "{times}");
    // SAFETY: compares once more while the process ends; a failure there is one of the process.
    assert_eq!(unsafe { atexit(compare) }, 0);
}

unsafe extern "C" fn each_object(_: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    compare();
    0
}

extern "C" fn on_signal(_: c_int) {
    compare();
}

extern "C" fn on_signal_then_another(_: c_int) {
    compare();
    // SAFETY: raises a signal in this thread.
    assert_eq!(unsafe { libc::raise(libc::SIGUSR2) }, 0);
}

/// Has a signal handled, and with which flags.
pub(crate) fn handle(signal: c_int, handler: extern "C" fn(c_int), flags: c_int) {
    // SAFETY: sigaction is a C struct of integers and an optional function pointer; all zeros is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    #[expect(clippy::as_conversions, reason = "sigaction takes the handler's address as an integer")]
    let address = handler as libc::sighandler_t;
    action.sa_sigaction = address;
    action.sa_flags = flags;
    // SAFETY: the handler has the signature that these flags ask for; the tests raise signals where it is safe to allocate.
    assert_eq!(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) }, 0);
}

pub(crate) fn raise(signal: c_int) {
    // SAFETY: raises a signal in this thread.
    assert_eq!(unsafe { libc::raise(signal) }, 0);
}

pub(crate) fn signal_handlers_agree_with_libgcc() {
    let (times, _) = compared(|| {
        handle(libc::SIGUSR1, on_signal, 0);
        raise(libc::SIGUSR1);
        // A signal between two instructions of a function that makes no call: a trap of the function itself.
        handle(libc::SIGTRAP, on_signal, 0);
        // SAFETY: a breakpoint, after which the handler lets us go on.
        unsafe { std::arch::asm!("int3") };
    });
    assert_eq!(times, 2);
}

/// Gives this thread an alternate stack for its handlers. The stack is leaked.
fn another_stack() {
    let len = 1 << 18;
    let stack = Box::leak(vec![0_u8; len].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: len };
    // SAFETY: memory of that size that no other code uses.
    assert_eq!(unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) }, 0);
}

pub(crate) fn signal_handlers_on_a_stack_of_their_own_agree_with_libgcc() {
    let (times, _) = compared(|| {
        another_stack();
        handle(libc::SIGUSR1, on_signal, libc::SA_ONSTACK);
        raise(libc::SIGUSR1);
        std::thread::spawn(|| {
            another_stack();
            raise(libc::SIGUSR1);
        })
        .join()
        .unwrap();
    });
    assert_eq!(times, 2);
}

pub(crate) fn nested_signal_handlers_agree_with_libgcc() {
    let (times, _) = compared(|| {
        another_stack();
        handle(libc::SIGUSR1, on_signal_then_another, 0);
        handle(libc::SIGUSR2, on_signal, libc::SA_ONSTACK);
        raise(libc::SIGUSR1);
    });
    assert_eq!(times, 2);
}

pub(crate) fn threads_agree_with_libgcc() {
    let (times, _) = compared(|| {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|depth| Plain.visit(depth)));
            }
        });
    });
    assert_eq!(times, 200);
}

pub(crate) fn deep_recursion_agrees_with_libgcc() {
    let (times, frames) = compared(|| {
        let deep = || dispatch(&Plain, 20_000);
        std::thread::Builder::new().stack_size(64 << 20).spawn(deep).unwrap().join().unwrap();
    });
    assert!(times == 1 && frames > 20_000, "{times}, {frames}");
}

pub(crate) const C: &str = r"
#include <alloca.h>
#include <string.h>
typedef void callback(void);
static volatile int sink;
__attribute__((noinline)) void plain(callback *f) { f(); sink++; }
__attribute__((noinline)) static int many(callback *f, int a, int b, int c, int d, int e) {
    int x = a * 3, y = b * 5, z = c * 7, u = d * 11, v = e * 13;
    f();
    return x + y * sink + z * a + u * b + v * c;
}
void saves_many(callback *f) { sink = many(f, 1, 2, 3, 4, sink); }
void variable(callback *f) { char *p = alloca(100 + sink * 0); memset(p, 1, 100); f(); sink += p[7]; }
typedef int wide __attribute__((vector_size(64)));
void realigned(callback *f) { volatile wide w = {1}; f(); sink += w[0]; }
void realigned_variable(callback *f) {
    volatile wide w = {1}; char *p = alloca(100 + w[0]); memset(p, 1, 100); f(); sink += p[7] + w[0];
}
__attribute__((ms_abi, noinline)) static void other_abi(callback *f) { f(); sink++; }
void foreign_abi(callback *f) { other_abi(f); }
static callback *kept;
static void inner(void) { kept(); sink++; }
void tail(callback *f) { kept = f; plain(inner); sink--; }
";

/// Functions of [`C`].
pub(crate) const FUNCTIONS: [&str; 7] =
    ["plain", "saves_many", "variable", "realigned", "realigned_variable", "foreign_abi", "tail"];

pub(crate) fn frames_of_c_agree_with_libgcc() {
    for (name, flags) in [
        ("frames_o2", &["-O2", "-fPIC", "-fomit-frame-pointer"][..]),
        ("frames_o0", &["-O0", "-fPIC"]),
        ("frames_fp", &["-O2", "-fPIC", "-fno-omit-frame-pointer"]),
        ("frames_os", &["-Os", "-fPIC", "-mno-red-zone", "-fcf-protection"]),
    ] {
        let library = Library::of(name, Language::C, C, flags);
        let (times, _) = compared(|| FUNCTIONS.iter().for_each(|function| library.calls_back(function)(compare)));
        assert_eq!(times, FUNCTIONS.len());
    }
}

const CXX: &str = r#"
#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <stdexcept>
typedef void callback(void);
extern "C" void sorts(callback *f) {
    std::string words[] = {"c", "b", "a"};
    std::sort(words, words + 3, [&](const std::string &a, const std::string &b) { f(); return a < b; });
}
extern "C" void catches(callback *f) {
    try { f(); throw std::runtime_error("x"); } catch (const std::exception &) { f(); }
}
struct Guard { callback *f; ~Guard() { f(); } };
extern "C" void cleans_up(callback *f) {
    try { Guard guard{f}; throw 1; } catch (int) { f(); }
}
extern "C" void binds(callback *f) { std::function<void(int)> g = [&](int) { f(); }; g(1); }
"#;

pub(crate) fn frames_of_cxx_agree_with_libgcc() {
    for (name, flags) in [("frames_cxx_o2", &["-O2", "-fPIC"][..]), ("frames_cxx_o0", &["-O0", "-fPIC"])] {
        let library = Library::of(name, Language::Cxx, CXX, flags);
        let (times, _) = compared(|| {
            for function in ["sorts", "catches", "cleans_up", "binds"] {
                library.calls_back(function)(compare);
            }
        });
        assert!(times >= 7, "{times}");
    }
}

pub(crate) fn a_library_that_comes_late_is_known() {
    know_process().unwrap();
    for round in 0..20 {
        // Another size each time, so that another library is mapped at an earlier library's address.
        let text = format!("{C}\nchar pad[{}];", round * 5000 + 1);
        let library = Library::of("late", Language::C, &text, &["-O2", "-fPIC"]);
        assert_eq!(compared(|| library.calls_back("saves_many")(compare)).0, 1);
        library.close();
    }
}

/// Walks from a row that is known, on stacks that are not.
pub(crate) fn a_stack_that_was_written_over_is_an_error() {
    know_process().unwrap();
    let library = Library::of("frames_o2", Language::C, C, &["-O2", "-fPIC", "-fomit-frame-pointer"]);
    let function = u64::try_from(library.symbol("plain").expose_provenance()).unwrap();
    let visit = |stack: &[u64]| {
        let at = u64::try_from(stack.as_ptr().expose_provenance()).unwrap();
        let registers = Registers::unknown().with(Register::RIP, function).with(Register::RSP, at);
        walk(&registers, ProcessMemory::own(), |_| ControlFlow::Continue(()))
    };
    assert_eq!(visit(&[0x1234, 0]), Err(WalkError::NoRow { pc: 0x1234 }));
    assert_eq!(visit(&[0, 0]), Err(WalkError::NoRow { pc: 0 }), "nothing says that a stack ends there");
    let heap = Box::new(0_u64);
    let on_the_heap = visit(&[u64::try_from((&raw const *heap).expose_provenance()).unwrap(), 0]);
    assert!(matches!(on_the_heap, Err(WalkError::NoRow { .. })), "{on_the_heap:?}");
    // A stack that contains only return addresses into the function: each frame has 16 bytes, and the stack ends with
    // the mapping.
    let len = 1 << 16;
    // SAFETY: a new private mapping, and behind the mapping a page that stays unmapped, because the page is mapped and
    // then unmapped.
    let mapping = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len + 4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(mapping, libc::MAP_FAILED);
    let behind = mapping.map_addr(|at| at + len);
    // SAFETY: the last page of that mapping.
    assert_eq!(unsafe { libc::munmap(behind, 4096) }, 0);
    // SAFETY: the rest of the mapping belongs to this test alone, and holds zeros.
    let stack = unsafe { std::slice::from_raw_parts_mut(mapping.cast::<u64>(), len / 8) };
    stack.fill(function + 1);
    let end = u64::try_from(mapping.expose_provenance() + len).unwrap();
    let failed = visit(stack);
    assert!(matches!(failed, Err(WalkError::Unreadable { address, .. }) if address == end), "{failed:x?}");
}
