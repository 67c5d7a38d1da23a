//! A hundred thousand mutants and truncations of ten objects, through everything of the loader that does not run code:
//! no panic, nothing left behind, no allocation beyond a bound. Seeded, so that a failure comes back; `MODLOAD_MUTANTS`
//! says how many are made.

mod scene;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use modload_fixtures::{Compiler, Fixture, Language};
use modload_loader::{FunctionBytes, Image, Inspection, Loader, Policy, Stage};
use modload_text::Arena;
use scene::{BeforeRunning, Everything};

/// Notes the largest allocation.
struct Largest;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Largest = Largest;

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// xorshift64*: all that is wanted is that the same seed gives the same mutants.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 16).unwrap() % bound.max(1)
    }
}

fn objects() -> Vec<(String, Vec<u8>)> {
    let wanted: [(&str, Compiler, &[&str]); 10] = [
        ("greet", Compiler::Cc, &["-O2", "-fPIC"]),
        ("guest", Compiler::Cc, &["-O2", "-mcmodel=large"]),
        ("matrix", Compiler::Cc, &["-O2", "-g"]),
        ("params_all", Compiler::Cc, &["-O2", "-fPIC", "-ffunction-sections"]),
        ("ctors_cxx", Compiler::Cc, &["-O2", "-fPIC"]),
        ("common", Compiler::Cc, &["-O0", "-fcommon"]),
        ("groups", Compiler::Cc, &[]),
        ("matrix", Compiler::Clang, &["-O2", "-fPIC"]),
        ("export_data", Compiler::Clang, &["-Os", "-g"]),
        ("rust_add", Compiler::Rustc, &["-C", "opt-level=2", "-C", "panic=abort"]),
    ];
    let mut objects = Vec::new();
    for (name, compiler, flags) in wanted {
        let fixture = Fixture::new(name);
        let language: Language = fixture.language().unwrap();
        if compiler.find_for(language).is_none() {
            eprintln!("SKIPPED mutants of {name}: {} is not installed", compiler.name());
            continue;
        }
        objects.push((
            format!("{name} by {}", compiler.name()),
            fs::read(fixture.object(compiler, flags).unwrap()).unwrap(),
        ));
    }
    objects
}

/// Changes a few bytes, most of them where the tables are, or cuts the file off.
fn mutate(object: &[u8], random: &mut Random) -> Vec<u8> {
    let mut mutant = object.to_vec();
    if random.below(16) == 0 {
        mutant.truncate(random.below(object.len()));
        return mutant;
    }
    let table = usize::try_from(u64::from_le_bytes(object[40..48].try_into().unwrap())).unwrap();
    for _ in 0..=random.below(4) {
        let at = match random.below(4) {
            0 => table + random.below(object.len() - table),
            1 => random.below(64),
            _ => random.below(object.len()),
        };
        let value = match random.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << random.below(64),
            3 => random.next(),
            4 => u64::try_from(object.len()).unwrap().wrapping_sub(random.next() % 16),
            _ => u64::from(object[at]) ^ (1 << random.below(8)),
        };
        let width = [1, 2, 4, 8][random.below(4)].min(mutant.len() - at);
        mutant[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }
    mutant
}

#[test]
fn mutants_never_do_more_than_fail() {
    let count = std::env::var("MODLOAD_MUTANTS").map_or(100_000, |count| count.parse().unwrap());
    let policy = Policy { size_limit: 16 << 20, ..Policy::default() };
    let loader = Loader::new(Arc::new(Everything), policy.clone()).unwrap();
    let usage = || Arena::get().unwrap().usage().map(|stripe| (stripe.used, stripe.free));
    let before = usage();
    let objects = objects();
    let longest = objects.iter().map(|(_, object)| object.len()).max().unwrap();
    LARGEST.store(0, Ordering::Relaxed);
    let mut random = Random(0x6d6f_646c_6f61_6421);
    let mut refused = 0;
    for round in 0..count {
        let (name, object) = &objects[round % objects.len()];
        let mutant = mutate(object, &mut random);
        let _ = Inspection::of(&mutant, "mutant", policy.size_limit);
        let _ = FunctionBytes::of(&mutant, "add", policy.size_limit);
        // SAFETY: nothing of it is run: see `BeforeRunning`.
        let image = unsafe { Image::trusted(&mutant[..]) }.named("mutant");
        let error = loader.load_module_with(&image, &BeforeRunning).expect_err("it is made to fail at the latest");
        refused += usize::from(error.stage != Stage::Publish);
        assert!(loader.modules().is_empty(), "round {round}, {name}: {error}");
    }
    assert_eq!(usage(), before);
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest <= 64 * longest, "an allocation of {largest} bytes for files of at most {longest}");
    println!("{count} mutants of {} objects, {refused} refused; largest allocation {largest} bytes", objects.len());
    assert!(refused > count / 4, "{refused} of {count} were refused");
}
