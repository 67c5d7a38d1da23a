//! Calls into text that is not there yet, or not there any more; and a debugger's breakpoints in text that is.

use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::process::{Command, ExitCode};

use modload::text::Addr;
use modload::{Coming, Host, Order, Refusal, Subscriber};
use modload_edit::index;
use modload_tests::{Ended, case, image, in_fork};

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(a_call_before_publish_is_reported_by_name),
        case!(a_call_after_unload_is_reported_by_name),
        case!(the_line_goes_to_the_descriptor_of_the_host),
        case!(a_call_of_dropped_init_text_is_reported_by_name),
        case!(a_trap_of_the_programs_own_is_passed_on),
        case!(a_sigtrap_that_is_sent_is_no_call),
        case!(a_sigtrap_that_is_sent_can_be_ignored),
        case!(an_earlier_handler_still_gets_its_traps),
        case!(an_earlier_handler_gets_stray_calls_after_the_line),
        case!(a_stray_call_leaves_errno_unchanged),
        case!(a_breakpoint_of_gdb_is_hit).needing("gdb"),
        // The program for gdb; without gdb, it only loads a module and calls the module.
        case!(what_gdb_debugs),
    ])
}

fn jump(at: Addr) {
    // SAFETY: the address is that of an INT3, or of a function that takes nothing; either keeps to the C ABI.
    unsafe { std::arch::asm!("call {}", in(reg) at.get(), clobber_abi("C")) };
}

fn killed_with(ended: &Ended, line: &str) {
    assert_eq!((ended.signal, ended.status, ended.stderr.as_str()), (Some(libc::SIGTRAP), None, line));
}

/// Calls a function of the module during its coming.
struct Eager;

impl Subscriber for Eager {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        jump(coming.module().symbol_info("greet_hello").unwrap().addr);
        Ok(())
    }
}

fn a_call_before_publish_is_reported_by_name() {
    let host = Host::builder().build().unwrap();
    let ended = in_fork(|| {
        let _eager = host.subscribe("eager", Order::mirrored(0), Eager);
        let _ = host.load(&image("greet"));
    });
    killed_with(&ended, "modload: call to greet_hello [greet] before its text was published\n");
}

/// Loads and unloads greet. Returns the former address of its function.
fn gone(host: &Host) -> Addr {
    let module = host.load(&image("greet")).unwrap();
    let at = module.symbol_info("greet_hello").unwrap().addr;
    module.unload().unwrap();
    at
}

fn a_call_after_unload_is_reported_by_name() {
    let host = Host::builder().build().unwrap();
    let at = gone(&host);
    let ended = in_fork(|| jump(at));
    killed_with(&ended, "modload: call to greet_hello [greet] after it was unloaded\n");
    let ended = in_fork(|| jump(at + 1));
    killed_with(&ended, "modload: execution at greet_hello+0x1 [greet] after it was unloaded\n");
}

fn the_line_goes_to_the_descriptor_of_the_host() {
    let mut file = tempfile::tempfile().unwrap();
    let host = Host::builder().trap_descriptor(file.as_raw_fd()).build().unwrap();
    let at = gone(&host);
    killed_with(&in_fork(|| jump(at)), "");
    let ended = in_fork(|| {
        let _eager = host.subscribe("eager", Order::mirrored(0), Eager);
        let _ = host.load(&image("greet"));
    });
    killed_with(&ended, "");
    let mut lines = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut lines).unwrap();
    assert_eq!(
        lines,
        "modload: call to greet_hello [greet] after it was unloaded\n\
         modload: call to greet_hello [greet] before its text was published\n"
    );
}

fn a_call_of_dropped_init_text_is_reported_by_name() {
    let host = Host::builder().build().unwrap();
    let module = host.load(&image("init_sections")).unwrap();
    assert!(module.symbol_info("add_up").is_none(), "its name is gone with it");
    let ended = in_fork(|| {
        // SAFETY: `int init_sections_late(void)`, which runs into the trap.
        unsafe { module.call("init_sections_late", &[]) }.unwrap();
    });
    killed_with(&ended, "modload: call to add_up [init_sections] after it was unloaded\n");
}

fn a_trap_of_the_programs_own_is_passed_on() {
    let _host = Host::builder().build().unwrap();
    // SAFETY: a breakpoint, which kills the child.
    let ended = in_fork(|| unsafe { std::arch::asm!("int3") });
    killed_with(&ended, "");
}

/// Sends this thread a SIGTRAP.
fn raise_trap() {
    // SAFETY: raises a signal in this thread, and takes numbers only.
    assert_eq!(unsafe { libc::raise(libc::SIGTRAP) }, 0);
}

fn a_sigtrap_that_is_sent_is_no_call() {
    let _host = Host::builder().build().unwrap();
    killed_with(&in_fork(raise_trap), "");
    let two_bytes = in_fork(|| {
        // SAFETY: a breakpoint of two bytes, which kills the child.
        unsafe { std::arch::asm!(".byte 0xcd, 0x03") };
    });
    killed_with(&two_bytes, "");
}

fn a_sigtrap_that_is_sent_can_be_ignored() {
    // SAFETY: ignores a signal.
    unsafe { libc::signal(libc::SIGTRAP, libc::SIG_IGN) };
    let host = Host::builder().build().unwrap();
    raise_trap();
    let at = gone(&host);
    let ended = in_fork(|| jump(at));
    killed_with(&ended, "modload: call to greet_hello [greet] after it was unloaded\n");
}

/// The observations of [`on_trap`]: the saved instruction pointer of the last trap, and the number of traps.
static SEEN: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

extern "C" fn on_trap(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    SEEN.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
}

extern "C" fn exit_on_trap(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: ends this forked child at once.
    unsafe { libc::_exit(42) };
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// The actions of an embedder before making its host.
fn handle_traps(handler: Handler) {
    // SAFETY: sigaction is a C struct of integers and an optional function pointer; all zeros is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    #[expect(clippy::as_conversions, reason = "sigaction takes the handler's address as an integer")]
    let address = handler as libc::sighandler_t;
    action.sa_sigaction = address;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and is async-signal-safe.
    let installed = unsafe { libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut()) };
    assert_eq!(installed, 0);
}

fn an_earlier_handler_still_gets_its_traps() {
    handle_traps(on_trap);
    let host = Host::builder().build().unwrap();
    let module = host.load(&image("greet")).unwrap();
    for seen in 1..4 {
        // SAFETY: a breakpoint, after which the handler lets the program go on.
        unsafe { std::arch::asm!("int3") };
        assert_eq!(SEEN.load(std::sync::atomic::Ordering::SeqCst), seen);
    }
    // SAFETY: `int greet_hello(void)`.
    assert_eq!(unsafe { module.call("greet_hello", &[]) }.unwrap(), 1);
}

fn an_earlier_handler_gets_stray_calls_after_the_line() {
    handle_traps(exit_on_trap);
    let host = Host::builder().build().unwrap();
    let at = gone(&host);
    let ended = in_fork(|| jump(at));
    let line = "modload: call to greet_hello [greet] after it was unloaded\n".to_owned();
    assert_eq!(ended, Ended { status: Some(42), signal: None, stderr: line });
}

/// Returns from the function that was called, as its `ret` would.
extern "C" fn return_to_caller(_signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: the kernel passes a valid context.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let stack = std::ptr::with_exposed_provenance::<i64>(index(registers[15].cast_unsigned()));
    // SAFETY: the interrupted code has just been called, so the return address is at its stack pointer.
    registers[16] = unsafe { stack.read() };
    registers[15] += 8;
}

/// The report of the call is a failed `write`, and the earlier handler lets the program go on.
fn a_stray_call_leaves_errno_unchanged() {
    handle_traps(return_to_caller);
    let host = Host::builder().trap_descriptor(-1).build().unwrap();
    let at = gone(&host);
    // SAFETY: returns the place of this thread's errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the place is this thread's.
    unsafe { errno.write(libc::EDOM) };
    jump(at);
    // SAFETY: as above.
    assert_eq!(unsafe { errno.read() }, libc::EDOM);
}

/// gdb stops here to learn the address of a function that has just been loaded.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn modload_tests_function_is_loaded(at: u64) {
    std::hint::black_box(at);
}

fn what_gdb_debugs() {
    let host = Host::builder().build().unwrap();
    let module = host.load(&image("greet")).unwrap();
    let at = module.symbol_info("greet_hello").unwrap().addr;
    modload_tests_function_is_loaded(at.get());
    // SAFETY: `int greet_hello(void)`.
    let times = unsafe { module.call("greet_hello", &[]) }.unwrap();
    assert_eq!(index(times), 1);
    module.unload().unwrap();
}

fn a_breakpoint_of_gdb_is_hit() {
    // Commands one after the other: a failing command ends the batch, and the last line is not printed.
    let commands = [
        "set pagination off",
        "set confirm off",
        "break modload_tests_function_is_loaded",
        "run",
        "set $at = $rdi",
        "break *$at",
        "continue",
        "printf \"hit: %d\\n\", $pc == $at",
        "x/i $pc",
        "stepi",
        "printf \"stepped: %d\\n\", $pc != $at",
        "delete",
        "continue",
        "printf \"exit code: %d\\n\", $_exitcode",
    ];
    let mut gdb = Command::new("gdb");
    gdb.args(["--batch", "--nx", "--quiet"]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let program = std::env::current_exe().unwrap();
    gdb.arg("--args").arg(program).env("MODLOAD_TESTS_CASE", "what_gdb_debugs");
    let output = gdb.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    for expected in ["hit: 1", "stepped: 1", "exit code: 0"] {
        assert!(said.contains(expected), "{expected}:\n{said}");
    }
}
