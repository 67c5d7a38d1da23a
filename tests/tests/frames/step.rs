//! At every single instruction: a child is stepped through a call, and the walker runs after each step.
//!
//! The expected result is known without any unwind information, from the executed instructions: each `call` pushes a
//! return address and each `ret` pops one. The kernel's way into a signal handler and back is visible too. So a wrong
//! row for a single instruction of a prologue, of an epilogue or of a PLT entry is found.

use std::ffi::{c_char, c_int, c_void};
use std::hint::black_box;
use std::ops::ControlFlow;

use modload::{Host, Image};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_threads::frames::{
    Ended, Frame, Memory, ProcessMemory, Register, Registers, WalkError, know_process, walk,
};

use crate::agree::{C, FUNCTIONS, handle, raise};
use crate::code::Library;

/// A frame that was called or interrupted from another frame: the address at which the other frame continues, and the
/// callee's CFA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Below {
    pc: u64,
    cfa: u64,
}

/// The effect of an instruction on the stack of calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Call,
    Return,
    SystemCall,
    Other,
}

fn kind(code: &[u8]) -> Kind {
    let is_prefix = |byte: &u8| matches!(byte, 0xf2 | 0xf3 | 0x2e | 0x3e | 0x66 | 0x40..=0x4f);
    let code = &code[code.iter().take_while(|byte| is_prefix(byte)).count()..];
    match code {
        [0xe8, ..] => Kind::Call,
        [0xff, modrm, ..] if modrm >> 3 & 7 == 2 => Kind::Call,
        [0xc3 | 0xc2, ..] => Kind::Return,
        [0x0f, 0x05, ..] => Kind::SystemCall,
        _ => Kind::Other,
    }
}

fn ptrace(request: libc::c_uint, child: libc::pid_t, data: usize) {
    // SAFETY: the requests that are made here take numbers only.
    let done = unsafe { libc::ptrace(request, child, std::ptr::null_mut::<c_void>(), data) };
    assert_eq!(done, 0, "ptrace: {}", std::io::Error::last_os_error());
}

fn registers_of(child: libc::pid_t) -> (Registers, u64) {
    // SAFETY: a C struct of integers; all zeros is a value of it.
    let mut user: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: a child that has stopped, and room for its registers.
    let done = unsafe { libc::ptrace(libc::PTRACE_GETREGS, child, std::ptr::null_mut::<c_void>(), &raw mut user) };
    assert_eq!(done, 0);
    let values = [
        user.rax, user.rdx, user.rcx, user.rbx, user.rsi, user.rdi, user.rbp, user.rsp, user.r8, user.r9, user.r10,
        user.r11, user.r12, user.r13, user.r14, user.r15, user.rip,
    ];
    let pairs = Register::ALL.into_iter().zip(values);
    (pairs.fold(Registers::unknown(), |all, (register, value)| all.with(register, value)), user.orig_rax)
}

/// The results.
#[derive(Default, Debug)]
struct Seen {
    steps: usize,
    deepest: usize,
    /// Frames whose caller was known from the instructions and found by the walker.
    frames: usize,
    signals: usize,
    /// Steps at an instruction that has no row.
    unknown: usize,
}

/// Steps a forked child through a function, and compares after each step.
fn stepped(function: impl FnOnce()) -> Seen {
    know_process().unwrap();
    // SAFETY: the child goes on with this thread alone and ends with _exit.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        ptrace(libc::PTRACE_TRACEME, 0, 0);
        raise(libc::SIGSTOP);
        function();
        // SAFETY: ends the child without running what belongs to its parent's other threads.
        unsafe { libc::_exit(0) };
    }
    assert_eq!(libc::WSTOPSIG(wait(child)), libc::SIGSTOP);
    let mut seen = Seen::default();
    let mut calls: Vec<Below> = Vec::new();
    let (mut before, _) = registers_of(child);
    let mut signal = 0;
    loop {
        let [pc, stack] = [Register::RIP, Register::RSP].map(|register| before.get(register).unwrap());
        let mut code = [0; 16];
        let readable = (1..=16).rev().find(|len| ProcessMemory::of(child).read(pc, &mut code[..*len]));
        let instruction = kind(&code[..readable.expect("the child runs it")]);
        let is_sigreturn = instruction == Kind::SystemCall && before.get(Register::ALL[0]) == Some(15);
        ptrace(libc::PTRACE_SINGLESTEP, child, usize::try_from(signal).unwrap());
        let delivered = std::mem::take(&mut signal) != 0;
        let status = wait(child);
        if libc::WIFEXITED(status) {
            assert_eq!(libc::WEXITSTATUS(status), 0);
            return seen;
        }
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
        let (now, _) = registers_of(child);
        if libc::WSTOPSIG(status) != libc::SIGTRAP {
            // Nothing was executed: the signal is delivered with the next step.
            signal = libc::WSTOPSIG(status);
            before = now;
            continue;
        }
        let mut memory = ProcessMemory::of(child);
        let [now_pc, now_stack] = [Register::RIP, Register::RSP].map(|register| now.get(register).unwrap());
        if delivered {
            // The kernel's frame lies between: the handler returns into the kernel's code, and that code to the
            // interrupted place.
            seen.signals += 1;
            calls.push(Below { pc, cfa: stack });
            calls.push(Below { pc: memory.word(now_stack).unwrap(), cfa: now_stack + 8 });
        } else if is_sigreturn {
            assert_eq!(calls.pop(), Some(Below { pc: now_pc, cfa: now_stack }));
        } else if instruction == Kind::Call {
            calls.push(Below { pc: memory.word(now_stack).unwrap(), cfa: now_stack + 8 });
        } else if instruction == Kind::Return {
            let returned = calls.pop();
            assert!(returned.is_none_or(|below| below == Below { pc: now_pc, cfa: now_stack }), "a clean return");
        }
        if has_no_row(child, now_pc) {
            seen.unknown += 1;
        } else {
            check(&now, memory, &calls, seen.steps.is_multiple_of(64));
        }
        seen.steps += 1;
        seen.deepest = seen.deepest.max(calls.len());
        seen.frames += calls.len();
        before = now;
    }
}

/// LLVM's linker, which links Rust programs, describes no PLT. A thread in a PLT entry has no known caller, and the
/// walker says so. If all symbols are bound at the start, one instruction of each entry is executed: a jump through
/// memory.
fn has_no_row(child: libc::pid_t, pc: u64) -> bool {
    let mut code = [0; 2];
    let is_plt = ProcessMemory::of(child).read(pc, &mut code) && code == [0xff, 0x25];
    let registers = Registers::unknown().with(Register::RIP, pc).with(Register::RSP, 0);
    let walked = walk(&registers, ProcessMemory::of(child), |_| ControlFlow::Break(()));
    is_plt && walked == Err(WalkError::NoRow { pc })
}

fn wait(child: libc::pid_t) -> c_int {
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

/// Requires that the walker finds the known frames. With `to_the_end` the walk continues to the end of the stack.
fn check(registers: &Registers, memory: ProcessMemory, calls: &[Below], to_the_end: bool) {
    let mut frames: Vec<Frame> = Vec::with_capacity(calls.len() + 1);
    let ended = walk(registers, memory, |frame| {
        frames.push(*frame);
        if !to_the_end && frames.len() > calls.len() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let expected = if to_the_end { Ended::Outermost } else { Ended::Early };
    let found: Vec<Below> = frames.windows(2).map(|pair| Below { pc: pair[1].pc, cfa: pair[0].cfa }).collect();
    let known: Vec<Below> = calls.iter().rev().copied().collect();
    let known_found = found.get(..known.len()).unwrap_or(&found);
    assert!(
        known_found == known && (ended == Ok(expected) || ended == Ok(Ended::Outermost)),
        "{ended:x?} at {registers:x?}\nfound {found:x?}\nknown {known:x?}"
    );
}

extern "C" fn nothing() {
    black_box(0);
}

pub(crate) fn every_instruction_of_c_functions() {
    for (name, flags) in [
        ("frames_o2", &["-O2", "-fPIC", "-fomit-frame-pointer"][..]),
        ("frames_o0", &["-O0", "-fPIC"]),
        ("frames_os", &["-Os", "-fPIC", "-mno-red-zone", "-fcf-protection"]),
    ] {
        let library = Library::of(name, Language::C, C, flags);
        for function in FUNCTIONS {
            let function = library.calls_back(function);
            let seen = stepped(|| function(nothing));
            assert!(seen.steps > 30 && seen.deepest >= 2, "{seen:?}");
        }
    }
}

/// Functions of a module. They reach the C library through PLT entries of ours, select one of their own functions by a
/// resolver, and branch through a thunk.
const MODULE: &str = "
#include <stdlib.h>
static long one_more(long x) { return x + 1; }
static long (*pick(void))(long) { return one_more; }
long picked(long) __attribute__((ifunc(\"pick\")));
void far_calls(callback *f) { f(); sink += strtol(\"12\", 0, 10) + (int)strlen(\"1234\"); }
void indirect_calls(callback *f) { f(); sink += picked(sink); }
";

pub(crate) fn every_instruction_of_a_module() {
    let host = Host::builder().process_symbols().build().unwrap();
    for (name, flags) in [
        ("stepped_o2", &["-O2", "-fPIC", "-fomit-frame-pointer"][..]),
        ("stepped_o0", &["-O0", "-fPIC"]),
        ("stepped_thunks", &["-O2", "-fPIC", "-mindirect-branch=thunk-extern", "-mindirect-branch-register"]),
    ] {
        let text = format!("{C}{MODULE}");
        let object = object_from_text(name, Language::C, &text, Compiler::Cc, flags).unwrap();
        // SAFETY: the text is ours.
        let image = unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named(name);
        let module = host.load(&image).unwrap();
        for function in FUNCTIONS.into_iter().chain(["far_calls", "indirect_calls"]) {
            // SAFETY: the text gives it this type.
            let function = *unsafe { module.symbol::<extern "C" fn(extern "C" fn())>(function) }.unwrap();
            let seen = stepped(|| function(nothing));
            assert!(seen.steps > 30 && seen.deepest >= 2 && seen.unknown == 0, "{name}: {seen:?}");
        }
    }
}

const CALLER: &str = "
#include <string.h>
#include <stdlib.h>
#include <unistd.h>
long call(long x) { return strtol(x ? \"12\" : \"3\", 0, 10) + getppid() * 0 + (long)strlen(\"1234\"); }
";

pub(crate) fn every_instruction_of_a_lazy_call() {
    for (name, flags) in [("lazy", &["-O2", "-fPIC"][..]), ("lazy_ibt", &["-O2", "-fPIC", "-fcf-protection"])] {
        let library = Library::of(name, Language::C, CALLER, flags);
        let call = library.computes("call");
        let first = stepped(|| assert_eq!(call(1), 16));
        assert_eq!(call(1), 16);
        let bound = stepped(|| assert_eq!(call(0), 7));
        // The dynamic loader was stepped through, too.
        assert!(first.steps > 3 * bound.steps && bound.steps > 50, "{first:?} {bound:?}");
    }
}

pub(crate) fn every_instruction_of_the_vdso() {
    let seen = stepped(|| {
        for clock in [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME_COARSE, libc::CLOCK_PROCESS_CPUTIME_ID] {
            // SAFETY: a C struct of integers; all zeros is a value of it.
            let mut time: libc::timespec = unsafe { std::mem::zeroed() };
            // SAFETY: a clock and room for its time.
            unsafe { libc::clock_gettime(clock, &raw mut time) };
        }
        // SAFETY: takes nothing.
        unsafe { libc::sched_getcpu() };
    });
    assert!(seen.steps > 150 && seen.deepest >= 2, "{seen:?}");
}

extern "C" fn on_signal(_: c_int) {
    nothing();
}

pub(crate) fn every_instruction_of_a_signal() {
    handle(libc::SIGUSR1, on_signal, 0);
    let seen = stepped(|| {
        raise(libc::SIGUSR1);
        raise(libc::SIGUSR1);
    });
    assert!(seen.signals == 2 && seen.deepest >= 4, "{seen:?}");
}

extern "C" fn compare(a: *const c_void, b: *const c_void) -> c_int {
    // SAFETY: the C library passes elements of an array of i32.
    let (a, b) = (unsafe { *a.cast::<i32>() }, unsafe { *b.cast::<i32>() });
    i32::from(a > b) - i32::from(a < b)
}

pub(crate) fn every_instruction_of_the_c_library() {
    let seen = stepped(|| {
        let mut numbers = [5, 3, 9, 1, 7, 2];
        // SAFETY: six elements of four bytes, and a function that compares two elements.
        unsafe { libc::qsort(numbers.as_mut_ptr().cast(), 6, 4, Some(compare)) };
        let mut text = [0_u8; 64];
        let at: *mut c_char = text.as_mut_ptr().cast();
        // SAFETY: room for 64 bytes, and arguments that fit the format.
        unsafe { libc::snprintf(at, 64, c"%d %s %.3f".as_ptr(), 42, c"x".as_ptr(), 1.5_f64) };
        // SAFETY: a text that ends with NUL.
        unsafe { libc::strtod(c"3.25e10".as_ptr(), std::ptr::null_mut()) };
        let words: Vec<String> = (0..20).map(|number| format!("{number:>40}")).collect();
        black_box(words);
        black_box(std::fs::metadata("/proc/self/status").is_ok());
        // SAFETY: takes nothing, and gives the child nothing but a process group.
        unsafe { libc::getpgrp() };
    });
    assert!(seen.steps > 5000 && seen.deepest > 5 && seen.unknown < seen.steps / 100, "{seen:?}");
}
