//! Text that is poked while threads run through the text: long-lived threads, threads that start and end, signal
//! handlers, and forked children that poke their own text.

use std::error::Error;
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use modload_edit::{EditSet, index};
use modload_text::{PokeError, Poked, TextLock, TrapMask, poke};

use crate::{Chance, Sites, handle, in_fork};

/// When a fire ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// After this number of flips of all sites.
    Flips(u64),
    /// With the first flip that ends after this time.
    After(Duration),
}

/// The events of a fire. Every call returned the state of its site at the time of the call or at the time of the
/// return. After each batch every call returns the new state.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Fired {
    /// The number of sites that each flip changed.
    pub sites: usize,
    /// The number of batches that were poked.
    pub flips: u64,
    /// The number of batches that were refused because not every thread could be held in time. Nothing was written, and
    /// each batch was tried again.
    pub refused: u64,
    /// The number of calls by the long-lived threads.
    pub calls: u64,
    /// The number of signal handlers that ran, each with 32 calls.
    pub handled: u64,
    /// The number of forked children. Each child checked all sites and poked them twice.
    pub children: u64,
    /// The duration.
    pub seconds: f64,
}

impl Fired {
    /// Adds the events of another fire with the same number of sites.
    pub fn add(&mut self, other: &Fired) {
        self.sites = other.sites;
        self.flips += other.flips;
        self.refused += other.refused;
        self.calls += other.calls;
        self.handled += other.handled;
        self.children += other.children;
        self.seconds += other.seconds;
    }
}

impl fmt::Display for Fired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fired { sites, flips, refused, calls, handled, children, seconds } = self;
        write!(f, "{flips} flips of {sites} sites, {refused} refused, {calls} calls, {handled} handlers, ")?;
        write!(f, "{children} children in {seconds:.1} s")
    }
}

/// The state that the threads of a fire share.
struct Fire {
    sites: Sites,
    batches: [EditSet; 2],
    /// Twice the number of the batch when the batch is complete; one more while the next batch is under way.
    state: AtomicU64,
    stop: AtomicBool,
    /// The number of handlers that have run when the fire begins.
    handled: u64,
}

/// Pokes 10,000 sites of every form while threads call them. The sites are 61 bytes apart, so that they have every
/// position in a cache line. Only one fire at a time can run in a process, because a fire uses SIGUSR1.
///
/// # Panics
/// If a call returns a wrong result, or a batch cannot be poked. In a signal handler the process aborts.
#[must_use]
pub fn fire(mask: TrapMask, until: Until) -> Fired {
    let sites = Sites::publish(10_000, 61, None);
    let batches = [sites.on(0..sites.len()), sites.off(0..sites.len())];
    let handled = HANDLED.load(Ordering::Relaxed);
    let fire = Fire { sites, batches, state: AtomicU64::new(0), stop: AtomicBool::new(false), handled };
    let begun = Instant::now();
    let mut fired = Fired { sites: fire.sites.len(), ..Fired::default() };
    thread::scope(|scope| {
        let fire = &fire;
        let callers: Vec<_> = (1..=4).map(|seed| scope.spawn(move || fire.caller(seed))).collect();
        scope.spawn(|| fire.come_and_go());
        let interrupting = scope.spawn(|| fire.interrupt());
        let forking = scope.spawn(|| fire.fork());
        // A failing poke or a failing call must not leave the other threads running, because the scope waits for them.
        let stopped = Stopped(&fire.stop);
        let goes_on = |flips| match until {
            Until::Flips(wanted) => flips < wanted,
            Until::After(time) => begun.elapsed() < time,
        };
        while goes_on(fired.flips) && !fire.is_over() {
            match fire.flip(fired.flips, mask) {
                Ok(_) => fired.flips += 1,
                // On a machine with much else to do, threads that start and end may take their second and more.
                Err(PokeError::Threads { .. }) if mask == TrapMask::Held => fired.refused += 1,
                Err(other) => panic!("{other}: {:?}", other.source().map(ToString::to_string)),
            }
        }
        drop(stopped);
        fired.calls = callers.into_iter().map(|caller| caller.join().unwrap()).sum();
        fired.handled = interrupting.join().unwrap();
        fired.children = forking.join().unwrap();
    });
    fired.seconds = begun.elapsed().as_secs_f64();
    fired
}

/// Ends the fire on drop.
struct Stopped<'s>(&'s AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Fire {
    fn flip(&self, flip: u64, mask: TrapMask) -> Result<Poked, PokeError> {
        self.state.fetch_add(1, Ordering::SeqCst);
        let poked = poke(&mut TextLock::take(), &self.batches[index(flip % 2)], mask);
        // If the batch was refused, the callers check that nothing has changed.
        match poked {
            Ok(_) => self.state.fetch_add(1, Ordering::SeqCst),
            Err(_) => self.state.fetch_sub(1, Ordering::SeqCst),
        };
        poked
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Runs a long-lived thread. Returns the number of its calls.
    fn caller(&self, seed: u64) -> u64 {
        let _stopped = Stopped(&self.stop);
        let mut chance = Chance::new(seed);
        let mut calls = 0;
        while !self.is_over() {
            let first = chance.below(self.sites.len());
            for number in (first..self.sites.len()).take(256) {
                self.call(number);
                calls += 1;
            }
        }
        calls
    }

    fn call(&self, number: usize) {
        let before = self.state.load(Ordering::SeqCst);
        let result = self.sites.call(number);
        let after = self.state.load(Ordering::SeqCst);
        let allowed = self.sites.returns(number);
        if before == after && before.is_multiple_of(2) {
            let now = index(before / 2 % 2);
            assert_eq!(result, allowed[now], "site {number} after batch {}", before / 2);
        } else {
            assert!(allowed.contains(&result), "site {number}: {result}");
        }
    }

    /// Threads that start and end.
    fn come_and_go(&self) {
        let _stopped = Stopped(&self.stop);
        while !self.is_over() {
            thread::scope(|short| {
                short.spawn(|| (0..64).for_each(|number| self.call(number * 100)));
            });
        }
    }

    /// Sends signals whose handler calls through the sites, in any thread. Returns the number of handlers that ran.
    fn interrupt(&self) -> u64 {
        INTERRUPTED.store(ptr::from_ref(&self.sites).cast_mut(), Ordering::SeqCst);
        handle(libc::SIGUSR1, on_signal);
        let here = std::process::id().cast_signed();
        while !self.is_over() {
            // SAFETY: sends a signal to this process, which has a handler for it.
            unsafe { libc::kill(here, libc::SIGUSR1) };
            thread::sleep(Duration::from_micros(200));
        }
        // SAFETY: ignores the signal from here on.
        unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
        INTERRUPTED.store(ptr::null_mut(), Ordering::SeqCst);
        // A handler that has read the pointer earlier is counted: the sites stay until that handler has ended.
        while RUNNING.load(Ordering::SeqCst) != 0 {
            thread::yield_now();
        }
        HANDLED.load(Ordering::Relaxed) - self.handled
    }

    /// Forks children during the fire. Each child finds whole sites, and can poke its own. Returns the number of
    /// children.
    fn fork(&self) -> u64 {
        let _stopped = Stopped(&self.stop);
        let mut children = 0;
        while !self.is_over() {
            in_fork(|| self.in_child()).well();
            children += 1;
            thread::sleep(Duration::from_millis(50));
        }
        children
    }

    /// In a child, which has one thread: all sites are in one state, and go to the other and back.
    fn in_child(&self) {
        let sites = &self.sites;
        let state = usize::from(sites.call(0) == sites.returns(0)[1]);
        for state in [state, 1 - state] {
            let all = 0..sites.len();
            assert!(all.clone().all(|number| sites.call(number) == sites.returns(number)[state]), "half a batch");
            poke(&mut TextLock::take(), &self.batches[state], TrapMask::Trusted).unwrap();
            assert!(all.clone().all(|number| sites.call(number) == sites.returns(number)[1 - state]), "half a batch");
        }
    }
}

/// The sites that the handler calls through; null when there are none.
static INTERRUPTED: AtomicPtr<Sites> = AtomicPtr::new(ptr::null_mut());
/// The number of handlers that may be using the sites.
static RUNNING: AtomicU64 = AtomicU64::new(0);
/// The number of handlers that have called through the sites.
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_signal(_: libc::c_int) {
    RUNNING.fetch_add(1, Ordering::SeqCst);
    // SAFETY: null, or the sites of a fire. A fire ends only after storing null and then seeing no handler. Either the
    // fire waits for this handler, which was counted before, or this handler has loaded null. The sites are never
    // written through this pointer.
    if let Some(sites) = unsafe { INTERRUPTED.load(Ordering::SeqCst).as_ref() } {
        for number in 0..32 {
            let result = sites.call(number * 7);
            if !sites.returns(number * 7).contains(&result) {
                std::process::abort();
            }
        }
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }
    RUNNING.fetch_sub(1, Ordering::SeqCst);
}
