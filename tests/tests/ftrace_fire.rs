//! Tracing under load: tracers and recordings start and end while threads call, modules are loaded and unloaded, and
//! threads start and end. Every call is compared with the caller's count.

use std::collections::BTreeMap;
use std::process::{ExitCode, abort};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use modload::text::Arena;
use modload::trace::{Batch, ThreadAction};
use modload::trace::{Call, Filter, Mode, Redirect, Redirecting, TraceOptions, Tracer, Tracing};
use modload::{Host, Image, Module};
use modload_edit::{Addr, wide};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{Case, Chance, Recorded, case, descriptors, mappings};
use modload_threads::Tid;

fn main() -> ExitCode {
    modload_tests::run(&[
        Case::new("no_call_is_lost_or_counted_twice", || fire(Duration::from_secs(60))).within_seconds(240),
        case!(tracers_come_and_go_ten_thousand_times).within_seconds(300),
        case!(tracers_that_come_and_go_leave_nothing).within_seconds(120),
        case!(a_tracer_takes_itself_back),
        case!(one_redirects_at_a_time),
    ])
}

/// `top` calls `middle` twice, and that `bottom` three times: ten calls.
const TEXT: &str = "
__attribute__((noinline, noipa)) long bottom(long a) { return a + 1; }
__attribute__((noinline, noipa)) long middle(long a) { return bottom(bottom(bottom(a))) + 1; }
long top(long a) { return middle(middle(a)) + 1; }
";

/// The number of calls of each function in one call of `top`.
const OF_TOP: [(&str, u64); 3] = [("bottom", 6), ("middle", 2), ("top", 1)];

fn image(name: &str) -> Image<'static> {
    let flags = ["-O2", "-fPIC", "-fpatchable-function-entry=5"];
    let object = object_from_text("nine", Language::C, TEXT, Compiler::Cc, &flags).unwrap();
    // SAFETY: the text is ours.
    unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named(name)
}

fn host() -> Host {
    Host::builder().process_symbols().build().unwrap()
}

type Top = extern "C" fn(i64) -> i64;

fn top(module: &Module) -> impl Fn(u64) + '_ {
    // SAFETY: the type of the function.
    let top = unsafe { module.symbol::<Top>("top") }.unwrap();
    move |times| {
        for time in 0..times.cast_signed() {
            assert_eq!(top(time), time + 9);
        }
    }
}

/// Counts calls, and checks that the counter still exists. Nothing is caught, as a panic of a tracer would be.
struct Counter {
    alive: AtomicU32,
    count: Arc<AtomicU64>,
    /// How long each call takes at most.
    micros: u64,
}

const ALIVE: u32 = 0x600d_600d;

impl Counter {
    fn new(count: &Arc<AtomicU64>, micros: u64) -> Counter {
        Counter { alive: AtomicU32::new(ALIVE), count: count.clone(), micros }
    }
}

impl Tracer for Counter {
    fn called(&self, call: &Call<'_>) {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        if self.alive.load(Ordering::SeqCst) != ALIVE || call.symbol().is_empty() {
            abort();
        }
        if self.micros != 0 {
            thread::sleep(Duration::from_micros(number * 7919 % self.micros));
            if self.alive.load(Ordering::SeqCst) != ALIVE {
                abort();
            }
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.alive.store(0xdead_dead, Ordering::SeqCst);
    }
}

/// The calls that the callers of a burst made: by thread, module and function.
type Made = BTreeMap<(i32, String, String), u64>;

/// Calls of one burst of one thread.
fn burst(host: &Host, resident: &[Module], number: usize, made: &Mutex<Made>) {
    let mut chance = Chance::new(wide(number) + 1);
    let own = format!("guest_{}", number % 4);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for module in resident {
        let times = wide(chance.below(400)) + 100;
        top(module)(times);
        *counts.entry(module.name().to_owned()).or_default() += times;
    }
    // A module of this thread's own, which is loaded and unloaded during the burst.
    for _ in 0..2 {
        let guest = host.load(&image(&own)).unwrap();
        top(&guest)(100);
        *counts.entry(own.clone()).or_default() += 100;
        guest.unload().unwrap();
    }
    let mut made = made.lock().unwrap();
    for (module, times) in counts {
        for (function, each) in OF_TOP {
            let key = (Tid::current().get(), module.clone(), function.to_owned());
            *made.entry(key).or_default() += times * each;
        }
    }
}

fn recorded(batch: &Batch) -> Made {
    let mut made = Made::new();
    for record in
        batch.records.iter().filter(|record| matches!(record.what, ThreadAction::Call { .. } | ThreadAction::Enter))
    {
        let function = &batch.functions[usize::try_from(record.function).unwrap()];
        let thread = &batch.threads[usize::try_from(record.thread).unwrap()];
        *made.entry((thread.tid, function.module.clone(), function.name.clone())).or_default() += 1;
    }
    made
}

fn add(all: &mut Batch, more: Batch) {
    all.functions.extend(more.functions);
    all.threads.extend(more.threads);
    all.records.extend(more.records);
    all.missed = more.missed;
}

fn fire(time: Duration) {
    let host = host();
    let resident = [host.load(&image("left")).unwrap(), host.load(&image("right")).unwrap()];
    let over = AtomicBool::new(false);
    let (begin, end) = (Barrier::new(5), Barrier::new(5));
    let made = Mutex::new(Made::new());
    let (switched, churned) = (AtomicU64::new(0), AtomicU64::new(0));
    let (mut bursts, mut calls) = ([0_u64; 3], 0);
    thread::scope(|scope| {
        let (host, resident, over) = (&host, &resident, &over);
        let (begin, end, made, switched, churned) = (&begin, &end, &made, &switched, &churned);
        for caller in 0..4 {
            scope.spawn(move || {
                for number in 0.. {
                    begin.wait();
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    burst(host, resident, number * 4 + caller, made);
                    end.wait();
                }
            });
        }
        // Tracers start and end: of all functions, of one, with registers and without.
        scope.spawn(move || {
            let (mut chance, count) = (Chance::new(99), Arc::default());
            let patterns = ["*", "left:*", "*:middle", "right:bottom", "guest_*:t*", "!left:*"];
            let mut there: Vec<Tracing> = Vec::new();
            while !over.load(Ordering::SeqCst) {
                let filter: Filter = patterns[chance.below(patterns.len())].parse().unwrap();
                let counter = Counter::new(&count, 0);
                there.push(match chance.below(2) {
                    0 => host.trace(filter, counter).unwrap(),
                    _ => host.trace_with_registers(filter, counter).unwrap(),
                });
                while there.len() > 3 || (there.len() == 3 && chance.below(2) == 0) {
                    drop(there.swap_remove(chance.below(there.len())));
                }
                switched.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Modules that no thread waits for are loaded, called and unloaded.
        scope.spawn(move || {
            while !over.load(Ordering::SeqCst) {
                let module = host.load(&image("passing")).unwrap();
                top(&module)(3);
                module.unload().unwrap();
                churned.fetch_add(1, Ordering::Relaxed);
            }
        });
        let begun = Instant::now();
        let kinds = [Some(Mode::Calls), Some(Mode::Graph), None];
        for number in 0_usize.. {
            let kind = kinds[number % 3];
            let count = Arc::default();
            let pattern = "!passing:*";
            let tracing =
                kind.is_none().then(|| host.trace(pattern.parse().unwrap(), Counter::new(&count, 0)).unwrap());
            let options = |mode| TraceOptions::new(mode).pattern(pattern).unwrap().buffer(4 << 20);
            let mut trace = kind.map(|mode| host.trace_functions(&options(mode)).unwrap());
            let mut all = Batch::default();
            begin.wait();
            if number % 2 == 0 {
                trace.iter_mut().for_each(|trace| add(&mut all, trace.drain()));
            }
            end.wait();
            let made = std::mem::take(&mut *made.lock().unwrap());
            if let Some(trace) = trace {
                add(&mut all, trace.finish());
                assert_eq!(all.missed.total(), 0, "burst {number}: {:?}", all.missed);
                assert_eq!(recorded(&all), made, "burst {number} {kind:?}");
                let nested = Recorded::of(&all);
                assert!(nested.unwound.is_empty());
                if kind == Some(Mode::Graph) {
                    for lines in &nested.lines {
                        let entries = lines.iter().filter(|line| line.ends_with('{')).count();
                        assert_eq!(entries * 2, lines.len(), "burst {number}: each has its end");
                    }
                }
            }
            drop(tracing);
            let calls_made = made.values().sum::<u64>();
            if kind.is_none() {
                assert_eq!(count.load(Ordering::SeqCst), calls_made, "burst {number}");
            }
            bursts[number % 3] += 1;
            calls += calls_made;
            if begun.elapsed() > time {
                break;
            }
        }
        over.store(true, Ordering::SeqCst);
        begin.wait();
    });
    println!("bursts {bursts:?}, {calls} calls, {switched:?} tracers, {churned:?} modules");
    assert!(bursts.iter().all(|bursts| *bursts > 5) && switched.into_inner() > 20 && churned.into_inner() > 20);
    assert!(host.sweep().is_empty());
}

/// The resources that must not grow.
fn taken() -> (usize, usize, [u64; 4], u64) {
    // SAFETY: reads counters.
    let heap = unsafe { libc::mallinfo2() };
    let heap = wide(heap.uordblks) + wide(heap.hblkhd);
    (mappings().len(), descriptors(), Arena::get().unwrap().usage().map(|stripe| stripe.used), heap)
}

fn tracers_come_and_go_ten_thousand_times() {
    let host = host();
    let module = host.load(&image("left")).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let (count, calls) = (Arc::default(), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..3)
        .map(|caller| {
            let (over, calls, module) = (over.clone(), calls.clone(), module.clone());
            thread::spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    if caller == 0 {
                        // In a thread that begins and ends.
                        let module = module.clone();
                        thread::spawn(move || top(&module)(1)).join().unwrap();
                    } else {
                        top(&module)(1);
                    }
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut then = Vec::new();
    let begun = Instant::now();
    for cycle in 0..10_000 {
        if [100, 5_000].contains(&cycle) {
            then.push(taken());
        }
        let tracing = host.trace("left:*".parse().unwrap(), Counter::new(&count, 20)).unwrap();
        drop(tracing);
        assert_eq!(Arc::strong_count(&count), 1, "the tracer is gone when it is taken back");
    }
    let last = taken();
    println!("{:?}, {count:?} heard, {calls:?} calls, {then:?} then {last:?}", begun.elapsed());
    over.store(true, Ordering::SeqCst);
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    let first = then[0];
    // A thread that is beginning or ending has a stack, a guard and an alternate stack.
    assert!(last.0 <= first.0 + 8, "mappings {} then {}", first.0, last.0);
    assert_eq!((last.1, last.2), (first.1, first.2), "descriptors and arena");
    assert!(last.3 < first.3 + (256 << 10), "heap {} then {}", first.3, last.3);
    assert!(count.load(Ordering::SeqCst) > 100);
}

/// No other thread exists that could allocate memory.
fn tracers_that_come_and_go_leave_nothing() {
    let host = host();
    let module = host.load(&image("left")).unwrap();
    let count = Arc::default();
    let mut then = Vec::new();
    for cycle in 0..10_000 {
        if cycle == 100 {
            then.push(taken());
        }
        let tracing = host.trace("left:*".parse().unwrap(), Counter::new(&count, 0)).unwrap();
        top(&module)(1);
        drop(tracing);
        if cycle % 100 == 0 {
            drop(host.trace_functions(&TraceOptions::new(Mode::Graph)).unwrap().finish());
        }
    }
    then.push(taken());
    println!("{then:?}");
    assert_eq!(count.load(Ordering::SeqCst), 90_000);
    assert_eq!((then[0].0, then[0].1, then[0].2), (then[1].0, then[1].1, then[1].2), "mappings, descriptors, arena");
    // A table's spare memory for the next batch may have grown.
    assert!(then[1].3 <= then[0].3 + 4096, "heap {} then {}", then[0].3, then[1].3);
}

type Slot = Arc<Mutex<Option<Tracing>>>;

/// A tracer that removes itself, and registers another one.
struct Itself {
    slot: Slot,
    next: Slot,
    host: modload::WeakHost,
    count: Arc<AtomicU64>,
}

impl Tracer for Itself {
    fn called(&self, _: &Call<'_>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        drop(self.slot.lock().unwrap().take());
        let Some(host) = self.host.upgrade() else { abort() };
        let counter = Counter::new(&self.count, 0);
        *self.next.lock().unwrap() = Some(host.trace("left:bottom".parse().unwrap(), counter).unwrap());
    }
}

fn a_tracer_takes_itself_back() {
    let host = host();
    let module = host.load(&image("left")).unwrap();
    let (slot, next): (Slot, Slot) = Default::default();
    let count = Arc::new(AtomicU64::new(0));
    let tracer = Itself { slot: slot.clone(), next: next.clone(), host: host.downgrade(), count: count.clone() };
    let mut held = slot.lock().unwrap();
    *held = Some(host.trace("left:top".parse().unwrap(), tracer).unwrap());
    drop(held);
    top(&module)(1);
    // Called once; then the other tracer gets six calls, because it was registered before the function continued.
    assert_eq!(count.load(Ordering::SeqCst), 1 + 6);
    assert_eq!(Arc::strong_count(&slot), 2, "it waits in quarantine");
    assert!(host.sweep().is_empty());
    assert_eq!(Arc::strong_count(&slot), 1, "it is gone");
    drop(next.lock().unwrap().take());
    top(&module)(1);
    assert_eq!(count.load(Ordering::SeqCst), 7);
}

struct To(Addr);

impl Redirect for To {
    fn redirect(&self, _: &Call<'_>) -> Option<Addr> {
        Some(self.0)
    }
}

fn one_redirects_at_a_time() {
    let host = host();
    let module = host.load(&image("left")).unwrap();
    let text = "long instead(long a) { return a + 100; }";
    let object = object_from_text("other", Language::C, text, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    // SAFETY: the text is ours.
    let other = host.load(&unsafe { Image::trusted(std::fs::read(object).unwrap()) }).unwrap();
    let to = other.symbol_info("instead").unwrap().addr;
    let redirect = |pattern: &str| {
        // SAFETY: the redirection target takes the arguments of `middle`, and stays for the whole test.
        host.redirect(pattern.parse().unwrap(), unsafe { Redirecting::new(To(to)) })
    };
    // SAFETY: the type of the function.
    let top = unsafe { module.symbol::<Top>("top") }.unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let heard = host.trace("left:*".parse().unwrap(), Counter::new(&count, 0)).unwrap();
    let first = redirect("left:middle").unwrap();
    assert_eq!(top(0), 201);
    assert_eq!(count.swap(0, Ordering::SeqCst), 3, "those that are not reached are not called");
    let refused = redirect("left:m*").unwrap_err();
    assert_eq!(
        refused.to_string(),
        "middle [left] is redirected already: a function can have one redirection at a time"
    );
    let trace = host.trace_functions(&TraceOptions::new(Mode::Graph)).unwrap();
    assert_eq!(top(0), 201);
    let recorded = Recorded::of(&trace.finish());
    assert_eq!(recorded.lines[0], ["top {", "middle {", "} middle", "middle {", "} middle", "} top"]);
    drop(first);
    let second = redirect("left:m*").unwrap();
    assert_eq!(top(0), 201);
    drop(second);
    drop(heard);
    assert_eq!(top(0), 9);
}
