//! A hundred thousand mutants and truncations of objects from each compiler, of an archive and of Debian's own modules,
//! through all loader code that does not run module code: no panic, nothing left, no allocation beyond a bound.
//! `MODLOAD_MUTANTS` is the number of mutants. A mutant depends only on the object, on `MODLOAD_SEED` and on the round,
//! so that a failure can be reproduced.

mod elsewhere;
mod largest;
mod scene;

use std::fs;
use std::io::{self, Write};
use std::sync::Arc;

use elsewhere::Elsewhere;
use largest::within_bound;
use modload_fixtures::{Compiler, Fixture, Kernel, archive};
use modload_loader::{FunctionBytes, Image, Inspection, LoadError, Loader, Policy, Stage};
use modload_text::Arena;
use scene::{BeforeRunning, Everything};

/// xorshift64*: all that is wanted is that the same seed and round give the same mutant.
struct Random(u64);

impl Random {
    fn new(seed: u64, round: usize) -> Random {
        let mixed = u64::try_from(round).unwrap().wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed;
        let mut random = Random(mixed.max(1));
        random.next();
        random
    }

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

/// The mutated fixtures, with compiler and flags.
const OBJECTS: [(&str, Compiler, &[&str]); 10] = [
    ("greet", Compiler::Gcc, &["-O2", "-fPIC"]),
    ("guest", Compiler::Gcc, &["-O2", "-mcmodel=large"]),
    ("matrix", Compiler::Gcc, &["-O2", "-g"]),
    ("params_all", Compiler::Gcc, &["-O2", "-fPIC", "-ffunction-sections"]),
    ("ctors_cxx", Compiler::Gcc, &["-O2", "-fPIC"]),
    ("common", Compiler::Gcc, &["-O0", "-fcommon"]),
    // Written for the assembler.
    ("groups", Compiler::Gcc, &[]),
    ("matrix", Compiler::Clang, &["-O2", "-fPIC"]),
    ("export_data", Compiler::Clang, &["-Os", "-g"]),
    ("rust_add", Compiler::Rustc, &["-C", "opt-level=2", "-C", "panic=abort"]),
];

/// Modules of Debian's that are mutated, too: of 6, 80 and 400 KiB.
const KERNEL_MODULES: [&str; 3] = ["crc7.ko", "loop.ko", "fuse.ko"];

/// Written past the harness's capture, so that this is not mistaken for a pass.
fn skipped(what: &str) {
    writeln!(io::stderr().lock(), "SKIPPED mutants of {what}").unwrap();
}

/// Names and bytes of the mutated objects.
fn objects() -> Vec<(String, Vec<u8>)> {
    let mut objects = Vec::new();
    for (name, compiler, flags) in OBJECTS {
        let fixture = Fixture::new(name);
        if compiler.find_for(fixture.language().unwrap()).is_none() {
            skipped(&format!("{name}: {} is not installed", compiler.name()));
            continue;
        }
        objects.push((format!("{name} by {}", compiler.name()), fixture.object(compiler, flags).unwrap()));
    }
    let members: Vec<_> = objects.iter().take(3).map(|(_, object)| object.clone()).collect();
    objects.push(("an archive".into(), archive("mutants", &members).unwrap()));
    match Kernel::find() {
        None => skipped("Debian's modules: MODLOAD_KERNEL is not set, see cargo xtask kernel"),
        Some(kernel) => {
            let modules = kernel.modules().unwrap();
            for name in KERNEL_MODULES {
                let found = modules.iter().find(|path| path.ends_with(name)).expect("every kernel has it");
                objects.push((name.to_owned(), found.clone()));
            }
        }
    }
    objects.into_iter().map(|(name, path)| (name, fs::read(path).unwrap())).collect()
}

/// Changes a few bytes, most of them where the tables are, or cuts the file off.
fn mutate(object: &[u8], random: &mut Random) -> Vec<u8> {
    let mut mutant = object.to_vec();
    if random.below(16) == 0 {
        mutant.truncate(random.below(object.len()));
        return mutant;
    }
    // An archive has something else there.
    let table = usize::try_from(u64::from_le_bytes(object[40..48].try_into().unwrap())).unwrap();
    let table = if table < object.len() { table } else { 0 };
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

/// Everything of the loader that takes bytes and runs nothing.
fn examine(loader: &Loader, elsewhere: Option<&Elsewhere>, mutant: &[u8]) -> LoadError {
    let _ = Inspection::of(mutant, "mutant", SIZE_LIMIT);
    let _ = FunctionBytes::of(mutant, "add", SIZE_LIMIT);
    if let Some(elsewhere) = elsewhere {
        let _ = elsewhere.image(mutant);
    }
    // SAFETY: no code of the image runs: see `BeforeRunning`.
    let image = unsafe { Image::trusted(mutant) }.named("mutant");
    loader.load_module_with(&image, &BeforeRunning).expect_err("it is made to fail at the latest")
}

/// Names the mutant if the loader panics.
struct Under<'a> {
    seed: u64,
    round: usize,
    name: &'a str,
}

impl Drop for Under<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("MODLOAD_SEED={}, round {}: a mutant of {}", self.seed, self.round, self.name);
        }
    }
}

/// The most bytes that a module may take in memory.
const SIZE_LIMIT: u64 = 16 << 20;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn mutants_never_do_more_than_fail() {
    let count = usize::try_from(variable("MODLOAD_MUTANTS").unwrap_or(100_000)).unwrap();
    let seed = variable("MODLOAD_SEED").unwrap_or(0x6d6f_646c_6f61_6421);
    let policy = Policy { size_limit: SIZE_LIMIT, ..Policy::default() };
    let loader = Loader::new(Arc::new(Everything), policy).unwrap();
    let usage = || Arena::get().unwrap().usage().map(|stripe| (stripe.used, stripe.free));
    let before = usage();
    let objects = objects();
    let elsewheres: Vec<Elsewhere> = objects.iter().map(|(_, object)| Elsewhere::for_object(object)).collect();
    for ((name, object), elsewhere) in objects.iter().zip(&elsewheres) {
        let image = elsewhere.image(object);
        assert!(image.is_ok() || !KERNEL_MODULES.contains(&&**name), "{name}: {image:?}");
    }
    let mut refused = 0;
    for round in 0..count {
        let (name, object) = &objects[round % objects.len()];
        let mut random = Random::new(seed, round);
        let mutant = mutate(object, &mut random);
        // One takes as long as all the rest does for three mutants.
        let elsewhere = elsewheres.get(round % objects.len()).filter(|_| random.below(8) == 0);
        let under = Under { seed, round, name };
        let error = within_bound(&mutant, || examine(&loader, elsewhere, &mutant));
        refused += usize::from(error.stage != Stage::Publish);
        assert!(loader.modules().is_empty(), "{error}");
        drop(under);
    }
    assert_eq!(usage(), before);
    println!("{count} mutants of {} objects with seed {seed}, {refused} refused", objects.len());
    assert!(refused > count / 4, "{refused} of {count} were refused");
}
