//! The arena of one process: publishing, freeing, and fork. No module code runs here.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use modload_edit::Addr;
use modload_text::{Arena, Describe, INT3, TextLock};

/// Serialises the tests of this file, because each of them inspects the whole arena.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn peek(at: Addr, len: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; len];
    fs::File::open("/proc/self/mem").unwrap().read_exact_at(&mut bytes, at.get()).unwrap();
    bytes
}

fn protection(at: Addr) -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (start, rest) = line.split_once('-').unwrap();
        let (end, _) = rest.split_once(' ').unwrap();
        let number = |hex| u64::from_str_radix(hex, 16).unwrap();
        (number(start)..number(end)).contains(&at.get())
    });
    line.unwrap().split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn text_is_int3_until_published_and_again_when_dropped() {
    let _alone = alone();
    let arena = Arena::get().unwrap();
    let before = arena.usage();
    let mut staged = arena.stage_text(100, 16).unwrap();
    staged.bytes_mut().fill(0x90);
    let at = staged.addr();
    assert!(arena.is_low() && at.get() < 1 << 31);
    assert_eq!((peek(at, 100), protection(at).as_str()), (vec![INT3; 100], "r-xp"));
    let published = staged.publish(&mut TextLock::take()).unwrap();
    assert_eq!((peek(at, 101), protection(at).as_str()), ([vec![0x90; 100], vec![INT3]].concat(), "r-xp"));
    drop(published);
    assert_eq!((peek(at, 100), protection(at).as_str()), (vec![INT3; 100], "r-xp"));
    assert_eq!(arena.usage(), before);
}

#[test]
fn each_class_has_its_protection_and_data_is_zero_again() {
    let _alone = alone();
    let arena = Arena::get().unwrap();
    let before = arena.usage();
    for _ in 0..2 {
        let read_only = arena.stage_read_only(64, 8).unwrap();
        assert_eq!(protection(read_only.addr()), "r--p");
        let mut data = arena.allocate_data(64, 8).unwrap();
        assert_eq!((data.bytes(), protection(data.addr()).as_str()), (&[0; 64][..], "rw-p"));
        data.bytes_mut().fill(7);
        let mut late = arena.allocate_ro_after_init(64, 8).unwrap();
        assert_eq!((&late.bytes()[..64], protection(late.addr()).as_str()), (&[0; 64][..], "rw-p"));
        late.bytes_mut().fill(7);
        let at = late.addr();
        let late = late.hand_over().protect().unwrap();
        assert_eq!(protection(at), "r--p");
        drop(late);
        assert_eq!(protection(at), "r--p", "freed pages stay read-only");
    }
    assert_eq!(arena.usage(), before);
}

#[test]
fn placed_data_is_reached_only_within_its_bounds() {
    let _alone = alone();
    let placed = Arena::get().unwrap().allocate_data(16, 8).unwrap().hand_over();
    let at = placed.addr();
    placed.write(at + 8, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    assert_eq!(placed.read(at + 6, 4), Some(vec![0, 0, 1, 2]));
    assert_eq!(placed.write(at + 9, &[0; 8]), None);
    assert_eq!(placed.read(at.offset(-1), 1), None);
    assert_eq!(placed.read(at + 16, usize::MAX), None);
}

#[test]
fn more_than_a_stripe_is_refused_by_name() {
    let _alone = alone();
    let arena = Arena::get().unwrap();
    let before = arena.usage();
    let refused = arena.stage_text(1 << 40, 16).unwrap_err().to_string();
    assert!(refused.starts_with("no room for 1099511627776 bytes of text, aligned to 16"), "{refused}");
    assert_eq!(arena.usage(), before);
}

/// Forks and runs `child` there; returns its exit status.
fn in_child(child: impl FnOnce() -> bool) -> i32 {
    // SAFETY: the child touches memory and files and ends with _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let status = i32::from(!child());
        // SAFETY: ends the child without running exit code that belongs to the parent.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: waits for this test's own child.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    status
}

#[test]
fn what_a_child_publishes_and_frees_stays_in_the_child() {
    let _alone = alone();
    let arena = Arena::get().unwrap();
    let mut staged = arena.stage_text(64, 16).unwrap();
    staged.bytes_mut().fill(0x90);
    let at = staged.addr();
    let published = staged.publish(&mut TextLock::take()).unwrap();
    let mut published = Some(published);
    let status = in_child(|| {
        drop(published.take());
        let mut again = arena.stage_text(64, 16).unwrap();
        again.bytes_mut().fill(0xc3);
        let again_at = again.addr();
        let _again = again.publish(&mut TextLock::take()).unwrap();
        again_at == at && peek(at, 64) == [0xc3; 64]
    });
    assert_eq!(status, 0, "the child saw its own bytes");
    assert_eq!(peek(at, 64), [0x90; 64], "the parent sees its own");
}

#[test]
fn a_clone_that_is_no_fork_is_refused() {
    let _alone = alone();
    let arena = Arena::get().unwrap();
    let mut staged = Some(arena.stage_text(64, 16).unwrap());
    // SAFETY: as fork(), but without the C library, so that its fork handlers do not run.
    let pid = unsafe { libc::syscall(libc::SYS_fork) };
    if pid == 0 {
        let refused = staged.take().map(|staged| staged.publish(&mut TextLock::take()).unwrap_err());
        let source = refused.map(|refused| refused.source.to_string()).unwrap_or_default();
        let status = i32::from(!source.contains("only fork() is supported"));
        // SAFETY: ends the child without running exit code that belongs to the parent.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: waits for this test's own child.
    unsafe { libc::waitpid(libc::pid_t::try_from(pid).unwrap(), &raw mut status, 0) };
    assert_eq!(status, 0);
}

struct Named {
    descriptor: i32,
}

impl Describe for Named {
    fn module(&self) -> &str {
        "greet"
    }

    fn symbol(&self, at: Addr) -> Option<(&[u8], u64)> {
        Some((b"greet_hello", at.get() % 16))
    }

    fn descriptor(&self) -> i32 {
        self.descriptor
    }
}

/// Jumps to `at` in a child; returns the line that the child reports and the signal that ended it.
fn jump_in_child(at: Addr, pipe: &mut std::io::PipeReader) -> (String, i32) {
    // SAFETY: see the exit below; the jump leads to an INT3, which ends the child.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: the address is that of an INT3 in the text stripe.
        unsafe { std::arch::asm!("call {}", in(reg) at.get(), clobber_abi("C")) };
        // SAFETY: not reached unless a handler swallowed the trap.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: waits for this test's own child.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    let mut line = [0; 512];
    let len = pipe.read(&mut line).unwrap();
    (String::from_utf8_lossy(&line[..len]).into_owned(), libc::WTERMSIG(status))
}

#[test]
fn calls_that_come_too_early_or_too_late_are_reported_by_name() {
    let _alone = alone();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut staged = Arena::get().unwrap().stage_text(64, 16).unwrap();
    staged.bytes_mut().fill(0x90);
    staged.set_owner(Arc::new(Named { descriptor: writer.as_raw_fd() }));
    let at = staged.addr();
    let early = jump_in_child(at, &mut reader);
    assert_eq!(early, ("modload: call to greet_hello [greet] before its text was published\n".into(), libc::SIGTRAP));
    let published = staged.publish(&mut TextLock::take()).unwrap();
    drop(published);
    let late = jump_in_child(at + 3, &mut reader);
    assert_eq!(late, ("modload: execution at greet_hello+0x3 [greet] after it was unloaded\n".into(), libc::SIGTRAP));
}

#[test]
fn the_descriptor_is_not_inherited_by_programs() {
    let _alone = alone();
    Arena::get().unwrap();
    let listing = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    assert!(!listing.contains("/mem"), "{listing}");
}

/// Publishing returns its staging buffer while it holds the text lock; faulting in new pages needs both locks, too.
#[test]
fn publishing_and_growing_at_once_do_not_wait_for_each_other() {
    let _alone = alone();
    let arena = Arena::get().unwrap();
    let (done, all_done) = std::sync::mpsc::channel();
    for _ in 0..2 {
        let (publisher, grower) = (done.clone(), done.clone());
        std::thread::spawn(move || {
            for _ in 0..10_000 {
                let mut staged = arena.stage_text(64, 16).unwrap();
                staged.bytes_mut().fill(INT3);
                let published = staged.publish(&mut TextLock::take()).unwrap();
                drop(published);
            }
            publisher.send(()).unwrap();
        });
        std::thread::spawn(move || {
            // Each is larger than an extent, so each touches new pages.
            let held: Vec<_> = (0..100).map(|_| arena.stage_read_only(65 * 4096, 16).unwrap()).collect();
            drop(held);
            grower.send(()).unwrap();
        });
    }
    for _ in 0..4 {
        all_done.recv_timeout(std::time::Duration::from_secs(60)).expect("no deadlock");
    }
}
