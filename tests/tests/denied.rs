//! Denied system calls: operations with another way succeed, and all other operations fail by name, when the host is
//! built if the host can know then.

use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;

use modload::{Host, UnloadError};
use modload_tests::{Crowd, case, deny, image_from_text, run, until_in};
use modload_threads::Tid;

fn main() -> ExitCode {
    run(&[
        case!(stacks_are_read_where_process_vm_readv_is_denied),
        case!(a_host_that_can_open_nothing_is_not_built),
        case!(a_host_without_proc_is_not_built),
        case!(what_is_denied_later_keeps_the_module),
    ])
}

const SPINS: &str = "
    #include <unistd.h>
    long sleeps(long end) { char byte; return read((int)end, &byte, 1); }
    void cleanup_module(void) {}";

/// The address of a function, for a thread that holds no reference.
fn function(host: &Host, name: &str) -> extern "C" fn(u64) -> u64 {
    let at = host.look().into_iter().find_map(|(module, _)| module.symbol_info(name)).unwrap().addr.get();
    // SAFETY: the text above defines the function.
    unsafe { std::mem::transmute(usize::try_from(at).unwrap()) }
}

fn stacks_are_read_where_process_vm_readv_is_denied() {
    let host = Host::builder().process_symbols().build().unwrap();
    let _crowd = Crowd::of(2, thread::yield_now);
    drop(host.load(&image_from_text("spins", SPINS)).unwrap());
    let sleeps = function(&host, "sleeps");
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    let (tell, told) = mpsc::channel();
    let thread = thread::spawn(move || {
        tell.send(Tid::current()).unwrap();
        sleeps(u64::try_from(ends[0]).unwrap())
    });
    until_in(told.recv().unwrap(), libc::SYS_read);
    deny(libc::SYS_process_vm_readv, libc::EPERM);
    let refused = host.unload("spins").unwrap_err();
    let UnloadError::Occupied { threads, .. } = refused else { panic!("{refused}") };
    assert!(threads[0].to_string().contains("sleeps+0x"), "{}", threads[0]);
    // SAFETY: ours, and closed once.
    unsafe { libc::close(ends[1]) };
    thread.join().unwrap();
    host.unload("spins").unwrap();
    let module = host.load(&image_from_text("spins", SPINS)).unwrap();
    module.unload().unwrap();
    assert!(host.quarantined().is_empty());
}

/// Returns an error with its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn a_host_that_can_open_nothing_is_not_built() {
    deny(libc::SYS_openat, libc::EACCES);
    let refused = whole(&Host::builder().build().unwrap_err());
    assert!(refused.contains("/proc/self/mem cannot be opened"), "{refused}");
}

fn a_host_without_proc_is_not_built() {
    let empty = tempfile::tempdir().unwrap();
    let path = std::ffi::CString::new(empty.path().to_str().unwrap()).unwrap();
    // SAFETY: a path that ends.
    if unsafe { libc::chroot(path.as_ptr()) } != 0 {
        eprintln!("SKIPPED a host without /proc: only root may change the root folder");
        return;
    }
    let refused = whole(&Host::builder().build().unwrap_err());
    assert!(
        refused.contains("/proc/self/mem cannot be opened") && refused.contains("/proc must be mounted"),
        "{refused}"
    );
}

fn what_is_denied_later_keeps_the_module() {
    let host = Host::builder().process_symbols().build().unwrap();
    let crowd = Crowd::of(1, thread::yield_now);
    drop(host.load(&image_from_text("spins", SPINS)).unwrap());
    deny(libc::SYS_openat, libc::EACCES);
    let refused = host.unload("spins").unwrap_err();
    let UnloadError::NotSeen { why, .. } = &refused else { panic!("{refused}") };
    assert!(why.contains("/proc/self/task"), "{why}");
    assert_eq!(host.modules().len(), 1);
    drop(crowd);
}
