//! Measures the cost of holding threads: `cargo bench -p modload-threads`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use modload_threads::{Interrupted, Probe, hold, run_in_each};

/// The time limit: with few processors, many busy threads take long until each has got processor time.
const LIMIT: Duration = Duration::from_secs(60);

/// The activity of the threads that are held.
#[derive(Clone, Copy)]
enum What {
    Sleep,
    Spin,
}

struct Nothing;

// SAFETY: the probe does nothing.
unsafe impl Probe for Nothing {
    type Answer = ();

    fn probe(&self, _: Interrupted<'_>) {}
}

fn main() {
    println!("{:>8} {:>9} {:>14} {:>14} {:>14} {:>14}", "threads", "", "hold, release", "a thread", "ask", "a thread");
    row(0, What::Sleep);
    for what in [What::Sleep, What::Spin] {
        for count in [1, 8, 64] {
            row(count, what);
        }
    }
}

fn row(count: u32, what: What) {
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..count)
        .map(|_| {
            let stop = stop.clone();
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match what {
                        What::Sleep => thread::park_timeout(Duration::from_millis(20)),
                        What::Spin => (0..1000).for_each(|_| std::hint::spin_loop()),
                    }
                }
            })
        })
        .collect();
    let held = median(what, count, || {
        let held = hold(LIMIT).expect("everybody can be held");
        assert_eq!(held.count(), u64::from(count));
    });
    let asked = median(what, count, || {
        let answers = run_in_each(&Nothing, LIMIT).expect("everybody answers");
        assert_eq!(answers.len(), threads.len());
    });
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().expect("it only waits"));
    let doing = match what {
        What::Sleep => "sleeping",
        What::Spin => "busy",
    };
    let each = |time: Duration| time / count.max(1);
    println!("{count:>8} {doing:>9} {held:>14.2?} {:>14.2?} {asked:>14.2?} {:>14.2?}", each(held), each(asked));
}

fn median(what: What, count: u32, step: impl Fn()) -> Duration {
    let rounds = match what {
        What::Spin if count > 2 => 21,
        _ => 501,
    };
    let time = |_| {
        let begin = Instant::now();
        step();
        begin.elapsed()
    };
    let mut times: Vec<Duration> = (0..rounds).map(time).collect();
    times.sort_unstable();
    times[times.len() / 2]
}
