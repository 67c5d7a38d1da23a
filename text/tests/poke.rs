//! Published text that changes while threads run through it.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use modload_edit::{Addr, Edit, EditOrigin, EditSet, Engine, NOPS, Rejected, Sink, ZERO};
use modload_tests::{
    Case, Crowd, Patience, Sites, Until, block, case, deny, fire, handle, in_fork, peek, unblock, until,
};
use modload_text::{
    Arena, Class, HostText, PokeError, PokeProtocol, Poked, TextLock, TrapMask, TrapObstacle, fill, poke,
    traps_in_flight,
};

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(every_form_is_off_and_on),
        case!(a_batch_takes_three_synchronisations),
        Case::new("under_fire_by_traps", || under_fire(TrapMask::Trusted, 10_000)).within_seconds(120),
        Case::new("under_fire_by_rendezvous", || under_fire(TrapMask::Held, 100)).within_seconds(120),
        case!(threads_on_their_way_from_a_trap_are_counted),
        case!(a_forked_child_begins_with_none_of_them),
        case!(a_thread_that_blocks_sigtrap_is_met_by_rendezvous),
        case!(a_handler_installed_later_is_met_by_rendezvous),
        case!(a_thread_that_blocks_everything_is_named),
        case!(without_membarrier_everything_goes_by_rendezvous),
        case!(an_int3_of_the_hosts_reaches_its_owner_meanwhile),
        case!(registered_text_of_the_host_is_poked),
        case!(what_nobody_runs_is_filled),
        case!(a_thread_within_nops_that_would_be_joined_is_named),
        case!(a_debugger_attached_before_is_met_by_rendezvous).needing("gdb"),
        case!(a_debugger_attached_later_is_met_by_rendezvous).needing("gdb"),
        case!(what_is_wrong_is_refused_and_nothing_is_written),
    ])
}

fn every_form_is_off_and_on() {
    let sites = Sites::publish(64, 61, None);
    let all = || 0..sites.len();
    let mut another = None;
    for state in [0, 1, 0, 1, 0, 1] {
        assert!(all().all(|number| sites.call(number) == sites.returns(number)[state]), "{state}");
        let batch = if state == 0 { sites.on(all()) } else { sites.off(all()) };
        let poked = poke(&mut TextLock::take(), &batch, TrapMask::Trusted).unwrap();
        assert_eq!(poked.protocol, if another.is_none() { PokeProtocol::Alone } else { PokeProtocol::Traps });
        if state == 1 {
            another.get_or_insert_with(|| Crowd::of(1, thread::yield_now));
        }
    }
}

fn a_batch_takes_three_synchronisations() {
    let sites = Sites::publish(1000, 64, Some(0));
    for batch in [sites.on(0..1000), sites.off(0..1000)] {
        let poked = poke(&mut TextLock::take(), &batch, TrapMask::Trusted).unwrap();
        assert_eq!(
            (poked.protocol, poked.syncs, poked.writes),
            (PokeProtocol::Alone, 1, 1),
            "the process has no other thread"
        );
    }
    let _another = Crowd::of(1, thread::yield_now);
    for count in [1, 10, 1000] {
        for batch in [sites.on(0..count), sites.off(0..count)] {
            let poked = poke(&mut TextLock::take(), &batch, TrapMask::Trusted).unwrap();
            assert_eq!((poked.protocol, poked.syncs, poked.writes), (PokeProtocol::Traps, 3, 3));
        }
    }
}

fn under_fire(mask: TrapMask, flips: u64) {
    let fired = fire(mask, Until::Flips(flips));
    println!("{mask:?}: {fired}");
    assert!(fired.flips == flips && fired.calls > flips && fired.handled > 0 && fired.children > 0, "{fired}");
    assert!(fired.refused <= flips / 10, "{fired}");
}

const WHY: EditOrigin = EditOrigin { engine: Engine::JumpLabel, section: 3, record: 9 };

fn one(at: Addr, old: &[u8], new: &[u8]) -> EditSet {
    let mut edits = EditSet::new();
    edits.edit(Edit { at, old, new, why: WHY }).unwrap();
    edits
}

fn what_is_wrong_is_refused_and_nothing_is_written() {
    let sites = Sites::publish(8, 61, None);
    let before = peek(sites.base(), 8 * 61);
    let refused = |edits: EditSet| {
        let mut all = sites.on(0..4);
        edits.iter().for_each(|edit| all.edit(edit).unwrap());
        let refused = poke(&mut TextLock::take(), &all, TrapMask::Trusted).unwrap_err();
        assert_eq!(peek(sites.base(), 8 * 61), before, "something was written");
        let at = edits.iter().next().unwrap().at;
        refused.to_string().replace(&at.to_string(), "SITE")
    };
    let nop = NOPS[5];
    let (mov, nop6, zero, end) = (sites.at(5).offset(-5), sites.at(5), sites.at(4), sites.base() + 8 * 61);
    let lines = [
        refused(one(nop6, &[0x90; 6], nop)),
        refused(one(nop6, nop, &[0x90; 6])),
        refused(one(nop6, nop, &[0x81, 0xc0, 0, 0, 0, 0])),
        refused(one(nop6, nop, &[0xff; 6])),
        refused(one(mov, &[0xb8, 1, 0, 0, 0, 0x66], nop)),
        refused(one(zero, &ZERO[..4], NOPS[3])),
        refused(one(end.offset(-3), &[0xcc; 5], NOPS[4])),
        refused(one(end + 0x10_0000, &[0xcc; 5], NOPS[4])),
        refused(one(Addr::NULL, &[0xcc; 5], NOPS[4])),
    ];
    insta::assert_snapshot!("refusals", lines.join("\n"));
    let straddled = sites.on([5]).edit(Edit { at: nop6 + 2, old: &[0; 5], new: &[0; 5], why: WHY });
    assert!(matches!(straddled, Err(Rejected::Collision { .. })));
    let poked = poke(&mut TextLock::take(), &sites.on(0..8), TrapMask::Trusted).unwrap();
    assert_eq!(poked.protocol, PokeProtocol::Alone);
}

/// Turns all sites on and off again, checks their results, and returns the protocol.
fn flip(sites: &Sites, mask: TrapMask) -> Result<Poked, PokeError> {
    let all = || 0..sites.len();
    let poked = poke(&mut TextLock::take(), &sites.on(all()), mask)?;
    assert!(all().all(|number| sites.call(number) == sites.returns(number)[1]));
    poke(&mut TextLock::take(), &sites.off(all()), mask)?;
    assert!(all().all(|number| sites.call(number) == sites.returns(number)[0]));
    Ok(poked)
}

/// A thread that runs through all sites until the end, with a signal blocked or without.
fn with_a_caller<R>(sites: &Sites, blocked: Option<libc::c_int>, run: impl FnOnce() -> R) -> R {
    let (stop, begun) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let caller = || {
            blocked.into_iter().for_each(|signal| assert!(!block(signal)));
            begun.store(true, Ordering::SeqCst);
            while !stop.load(Ordering::Relaxed) {
                for number in 0..sites.len() {
                    assert!(sites.returns(number).contains(&sites.call(number)));
                }
            }
            blocked.into_iter().for_each(unblock);
        };
        thread::Builder::new().name("caller".into()).spawn_scoped(scope, caller).unwrap();
        while !begun.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let result = run();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

fn a_thread_that_blocks_sigtrap_is_met_by_rendezvous() {
    let sites = Sites::publish(1000, 61, None);
    assert_eq!(with_a_caller(&sites, None, || flip(&sites, TrapMask::Checked)).unwrap().protocol, PokeProtocol::Traps);
    let poked = with_a_caller(&sites, Some(libc::SIGTRAP), || flip(&sites, TrapMask::Checked));
    let Ok(Poked { protocol: PokeProtocol::Rendezvous(obstacle), .. }) = poked else { panic!("{poked:?}") };
    let obstacle = obstacle.to_string();
    assert!(obstacle.starts_with("thread ") && obstacle.ends_with(" \"caller\" blocks SIGTRAP"), "{obstacle}");
}

extern "C" fn ignore(_: libc::c_int) {}

fn a_handler_installed_later_is_met_by_rendezvous() {
    let sites = Sites::publish(1000, 61, None);
    handle(libc::SIGTRAP, ignore);
    let poked = with_a_caller(&sites, None, || flip(&sites, TrapMask::Checked)).unwrap();
    assert_eq!(poked.protocol, PokeProtocol::Rendezvous(TrapObstacle::OtherHandler));
}

fn threads_on_their_way_from_a_trap_are_counted() {
    let sites = Sites::publish(1000, 61, None);
    let (seen, done) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                flip(&sites, TrapMask::Trusted).unwrap();
            }
        });
        with_a_caller(&sites, None, || {
            // The count is above zero only for some hundred instructions, so it is read often.
            while seen.load(Ordering::Relaxed) < 100 {
                let now = traps_in_flight();
                assert!(now <= 2, "{now} of the two threads that call");
                seen.fetch_add(u64::from(now != 0), Ordering::Relaxed);
            }
        });
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(traps_in_flight(), 0);
}

/// A breakpoint of the program's own.
#[unsafe(naked)]
extern "C" fn breakpoint() -> i32 {
    std::arch::naked_asm!("int3; ret", options(att_syntax))
}

fn a_forked_child_begins_with_none_of_them() {
    handle(libc::SIGTRAP, count_own);
    drop(Sites::publish(1, 64, None));
    let at = address(breakpoint);
    // Registered, so that the handler checks each trap before passing the trap on; and no lock delays a fork.
    // SAFETY: the function is ours, and stays.
    let _text = unsafe { HostText::register(at, at + 2) }.unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    breakpoint();
                }
            });
        }
        // Threads that a fork has caught there are not in the child.
        let children = (0..2000).map(|_| in_fork(|| assert_eq!(traps_in_flight(), 0)));
        let wrong = children.filter(|ended| ended.status != Some(0)).count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(wrong, 0);
    });
}

/// The signal by which threads are held, from here on.
fn our_signal() -> libc::c_int {
    let signal = libc::SIGRTMAX() - 3;
    modload_threads::use_signal(signal).unwrap();
    signal
}

fn a_thread_that_blocks_everything_is_named() {
    let sites = Sites::publish(100, 61, None);
    let before = peek(sites.base(), 100 * 61);
    let signal = our_signal();
    let refused = with_a_caller(&sites, Some(signal), || flip(&sites, TrapMask::Held)).unwrap_err();
    assert_eq!(peek(sites.base(), 100 * 61), before);
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert!(source.contains("\"caller\" blocks signal"), "{refused}: {source}");
    flip(&sites, TrapMask::Held).unwrap();
}

fn without_membarrier_everything_goes_by_rendezvous() {
    // As on a kernel without it.
    deny(libc::SYS_membarrier, libc::ENOSYS);
    let sites = Sites::publish(1000, 61, None);
    let poked = with_a_caller(&sites, None, || flip(&sites, TrapMask::Trusted)).unwrap();
    assert_eq!(poked.protocol, PokeProtocol::Rendezvous(TrapObstacle::NoMembarrier));
    // Freeing text takes a synchronisation, too.
    with_a_caller(&sites, None, || drop(Sites::publish(10, 61, None)));
}

static OWN: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_own(_: libc::c_int) {
    OWN.fetch_add(1, Ordering::Relaxed);
}

fn an_int3_of_the_hosts_reaches_its_owner_meanwhile() {
    // The other handler is installed before ours.
    handle(libc::SIGTRAP, count_own);
    let sites = Sites::publish(1000, 61, None);
    let (stop, mut traps) = (AtomicBool::new(false), 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                flip(&sites, TrapMask::Checked).unwrap();
            }
        });
        for _ in 0..10_000 {
            // SAFETY: a breakpoint, for which there is a handler.
            unsafe { std::arch::asm!("int3") };
            traps += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(OWN.load(Ordering::Relaxed), traps);
    // The long INT3, in text that may be poked: the instruction ends with another byte.
    let at = address(long_int3);
    // SAFETY: the function is ours, and stays.
    let _text = unsafe { HostText::register(at, at + 10) }.unwrap();
    assert_eq!((long_int3(), OWN.load(Ordering::Relaxed)), (10, traps + 1));
}

/// int $3, of two bytes, and then 5 + 5: a jump into the middle of the first instruction would execute another
/// instruction.
#[unsafe(naked)]
extern "C" fn long_int3() -> i32 {
    std::arch::naked_asm!("mov $5, %eax; .byte 0xcd, 0x03; add %eax, %eax; ret", options(att_syntax))
}

/// int hosts(void): five NOPs of one byte, then 1; behind it a function that returns 2.
#[unsafe(naked)]
extern "C" fn hosts() -> i32 {
    std::arch::naked_asm!("nop; nop; nop; nop; nop; mov $1, %eax; ret; mov $2, %eax; ret", options(att_syntax))
}

fn address(function: extern "C" fn() -> i32) -> Addr {
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let pointer = function as *const ();
    Addr::new(modload_edit::wide(pointer.expose_provenance()))
}

/// jmp over `mov $1, %eax; ret`
const OVER: [u8; 5] = [0xe9, 6, 0, 0, 0];

fn registered_text_of_the_host_is_poked() {
    // Creates the arena, which installs the signal handler.
    drop(Sites::publish(1, 64, None));
    let at = address(hosts);
    let on = one(at, &[0x90; 5], &OVER);
    assert!(matches!(poke(&mut TextLock::take(), &on, TrapMask::Trusted), Err(PokeError::NotText { .. })));
    // SAFETY: the function is ours, and stays.
    let text = unsafe { HostText::register(at, at + 17) }.unwrap();
    // SAFETY: the registration is refused.
    assert!(unsafe { HostText::register(Addr::new(0x1000), Addr::new(0x2000)) }.is_err());
    let poked = poke(&mut TextLock::take(), &on, TrapMask::Trusted).unwrap();
    assert_eq!((poked.protocol, hosts()), (PokeProtocol::Rendezvous(TrapObstacle::JoinedNops), 2));
    let poked = poke(&mut TextLock::take(), &one(at, &OVER, NOPS[4]), TrapMask::Trusted).unwrap();
    assert_eq!((poked.protocol, hosts()), (PokeProtocol::Alone, 1));
    let past = one(at + 13, &[0x02, 0, 0, 0, 0xc3], NOPS[4]);
    assert!(matches!(poke(&mut TextLock::take(), &past, TrapMask::Trusted), Err(PokeError::NotText { .. })));
    drop(text);
    let off = one(at, NOPS[4], &OVER);
    assert!(matches!(poke(&mut TextLock::take(), &off, TrapMask::Trusted), Err(PokeError::NotText { .. })));
}

fn what_nobody_runs_is_filled() {
    let sites = Sites::publish(100, 61, None);
    // Any bytes at all, over several instructions: both functions of a site's return 3.
    let [old, new] =
        [[0xb8, 1, 0, 0, 0, 0xc3, 0xb8, 2, 0, 0, 0, 0xc3], [0xb8, 3, 0, 0, 0, 0xc3, 0xb8, 3, 0, 0, 0, 0xc3]];
    let at = |number: usize| sites.at(number) + 5;
    let mut edits = EditSet::new();
    for number in (0..96).step_by(8) {
        edits.edit(Edit { at: at(number), old: &old, new: &new, why: WHY }).unwrap();
    }
    assert_eq!(fill(&mut TextLock::take(), &edits).unwrap(), 1);
    assert!((0..96).step_by(8).all(|number| sites.call(number) == 3));
    assert!(matches!(fill(&mut TextLock::take(), &edits), Err(PokeError::Mismatch { .. })));
    // Constants and variables can be filled, but not memory that has no owner.
    let arena = Arena::get().unwrap();
    let mut constants = arena.stage_read_only(64, 8).unwrap();
    constants.bytes_mut().fill(7);
    let constants = constants.publish(&mut TextLock::take()).unwrap();
    let data = arena.allocate_data(64, 8).unwrap();
    let stripe = |class| arena.usage().into_iter().find(|stripe| stripe.class == class).unwrap();
    let constant = (stripe(Class::ReadOnly).start, stripe(Class::ReadOnly).touched);
    let at = (0..constant.1).map(|offset| constant.0 + offset).find(|at| constants.read(*at, 64).is_some()).unwrap();
    assert_eq!(fill(&mut TextLock::take(), &one(at, &[7; 3], &[8; 3])).unwrap(), 1);
    assert_eq!(constants.read(at, 4).unwrap(), [8, 8, 8, 7]);
    assert_eq!(fill(&mut TextLock::take(), &one(data.addr(), &[0; 3], &[8; 3])).unwrap(), 1);
    let lock = TextLock::take();
    assert_eq!(modload_text::read_fillable(&lock, data.addr(), 4).unwrap(), [8, 8, 8, 0]);
    drop(lock);
    let beyond = stripe(Class::Data);
    let beyond = beyond.start + beyond.touched;
    let refused = fill(&mut TextLock::take(), &one(beyond, &[0; 3], &[8; 3]));
    assert!(matches!(refused, Err(PokeError::NotText { .. })), "{refused:?}");
}

/// Whether the thread that runs NOPs is in its signal handler.
static WITHIN: AtomicBool = AtomicBool::new(false);

extern "C" fn stay(_: libc::c_int) {
    WITHIN.store(true, Ordering::SeqCst);
    while WITHIN.load(Ordering::SeqCst) {
        std::hint::spin_loop();
    }
}

/// Runs NOPs for ever: a signal interrupts the thread at one of them nearly always.
#[unsafe(naked)]
extern "C" fn nops() -> i32 {
    std::arch::naked_asm!(".cfi_startproc; 2: .fill 60, 1, 0x90; jmp 2b; .cfi_endproc", options(att_syntax))
}

fn a_thread_within_nops_that_would_be_joined_is_named() {
    drop(Sites::publish(1, 64, None));
    let at = address(nops);
    // SAFETY: the function is ours, and stays.
    let _text = unsafe { HostText::register(at, at + 60) }.unwrap();
    handle(libc::SIGUSR1, stay);
    let thread = thread::Builder::new().name("nops".into()).spawn(|| nops()).unwrap();
    thread::sleep(Duration::from_millis(20));
    // All sixty NOPs as edits of five: a thread that is held in the middle of an edit is always found.
    let mut joined = EditSet::new();
    for number in 0..12 {
        joined.edit(Edit { at: at + 5 * number, old: &[0x90; 5], new: NOPS[4], why: WHY }).unwrap();
    }
    let before = peek(at, 60);
    // A signal that is pending when a handler returns interrupts the thread at the same place as the last signal.
    let go_on = || thread::sleep(Duration::from_millis(1));
    let held_within = (0..200).any(|_| {
        go_on();
        let poked = poke(&mut TextLock::take(), &joined, TrapMask::Trusted);
        match poked {
            Err(PokeError::Inside { name, rip, .. }) => {
                assert_eq!((name.unwrap().to_string().as_str(), peek(at, 60) == before), ("nops", true));
                assert!(rip > at && rip < at + 60);
                true
            }
            // The thread was between two edits: the batch is written, and then taken back.
            Ok(_) => {
                // SAFETY: restores the old bytes.
                restore(at);
                false
            }
            Err(other) => panic!("{other}"),
        }
    });
    assert!(held_within);
    // The same if a handler interrupted the thread there and is still running.
    use std::os::unix::thread::JoinHandleExt;
    let interrupted_within = (0..200).any(|_| {
        go_on();
        // SAFETY: a thread of ours, which never ends.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) };
        while !WITHIN.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
        let poked = poke(&mut TextLock::take(), &joined, TrapMask::Trusted);
        if poked.is_ok() {
            restore(at);
        }
        WITHIN.store(false, Ordering::SeqCst);
        match poked {
            Err(PokeError::Inside { rip, .. }) => rip > at && rip < at + 60,
            Err(other) => panic!("{other}: {:?}", std::error::Error::source(&other).map(ToString::to_string)),
            Ok(_) => false,
        }
    });
    assert!(interrupted_within);
}

/// Writes one-byte NOPs again, without `poke`: no poke makes them.
fn restore(at: Addr) {
    use std::os::unix::fs::FileExt;
    let memory = std::fs::OpenOptions::new().write(true).open("/proc/self/mem").unwrap();
    memory.write_all_at(&[0x90; 60], at.get()).unwrap();
}

/// Runs gdb: gdb starts the case of this name of this program, or attaches to this process, lets the process continue
/// and passes our signal.
fn gdb(arguments: &[&str]) -> std::process::Command {
    let signal = our_signal();
    let mut gdb = std::process::Command::new("gdb");
    gdb.args(["-nx", "-batch", "-ex", "set debuginfod enabled off", "-ex", "set confirm off"]);
    gdb.args(["-ex", &format!("handle SIG{signal} nostop noprint pass")]);
    gdb.args(arguments);
    gdb.stdin(std::process::Stdio::null());
    gdb
}

fn traced() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    !status.lines().any(|line| line == "TracerPid:\t0")
}

/// The case that runs under a debugger: flips, and prints the protocol.
fn flips_under_a_debugger() {
    our_signal();
    let sites = Sites::publish(100, 61, None);
    let poked = with_a_caller(&sites, None, || flip(&sites, TrapMask::Checked)).unwrap();
    println!("flipped by {:?}", poked.protocol);
}

fn a_debugger_attached_before_is_met_by_rendezvous() {
    if traced() {
        return flips_under_a_debugger();
    }
    let program = std::env::current_exe().unwrap();
    let output = gdb(&["-ex", "run", "--args"]).arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("flipped by Rendezvous(Traced"), "{text}");
    assert!(text.contains("exited normally"), "{text}");
}

fn a_debugger_attached_later_is_met_by_rendezvous() {
    let sites = Sites::publish(100, 61, None);
    let none = with_a_caller(&sites, None, || flip(&sites, TrapMask::Checked)).unwrap();
    assert_eq!(none.protocol, PokeProtocol::Traps);
    // Any process of this user may attach, for any default of the system.
    // SAFETY: sets an attribute of this process.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    let pid = std::process::id().to_string();
    let mut gdb = gdb(&["-p", &pid, "-ex", "continue"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("gdb attaches", traced);
    let mut patience = Patience::new();
    // While gdb attaches, and stops all threads sometimes, a poke may be refused by name; a later attempt succeeds.
    let poked = with_a_caller(&sites, None, || {
        loop {
            match flip(&sites, TrapMask::Checked) {
                Ok(poked) => break poked,
                Err(why @ PokeError::Threads { .. }) => patience.turn(|| why.to_string()),
                Err(other) => panic!("{other}"),
            }
        }
    });
    assert!(matches!(poked.protocol, PokeProtocol::Rendezvous(TrapObstacle::Traced { .. })), "{poked:?}");
    gdb.kill().unwrap();
    gdb.wait().unwrap();
}
