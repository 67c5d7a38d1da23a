//! Images of fixtures, subscribers that keep a log, chance that can be repeated.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use modload::{Coming, Image, ModuleInfo, Refusal, Subscriber};
use modload_fixtures::{Compiler, Fixture, Language, object_from_text};
use modload_loader::{External, Externals, Loader, Policy};

/// The object of a fixture, compiled in the first of its ways.
///
/// # Panics
/// If there is no compiler.
#[must_use]
pub fn object(fixture: &str) -> PathBuf {
    let fixture = Fixture::new(fixture);
    let cases = fixture.cases().unwrap();
    let compiler = if fixture.language().unwrap() == Language::Rust { Compiler::Rustc } else { Compiler::Cc };
    fixture.object_of(&cases[0], compiler).unwrap()
}

/// A fixture, ready to be loaded.
#[must_use]
pub fn image(fixture: &str) -> Image<'static> {
    // SAFETY: the fixtures are ours; their sources show their effects.
    unsafe { Image::trusted(fs::read(object(fixture)).unwrap()) }.named(fixture)
}

/// A module from a C text, which may include the SDK's header.
///
/// # Panics
/// If the text does not compile.
#[must_use]
pub fn image_from_text(name: &str, text: &str) -> Image<'static> {
    let object = object_from_text(name, Language::C, text, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    // SAFETY: the texts are ours.
    unsafe { Image::trusted(fs::read(object).unwrap()) }.named(name)
}

struct Nothing;

impl Externals for Nothing {
    fn exported(&self, _: &[u8]) -> Option<External> {
        None
    }

    fn fallback(&self, _: &[u8]) -> Option<External> {
        None
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Returns a loader that offers no symbols.
///
/// # Panics
/// If the system does not permit an arena.
#[must_use]
pub fn loader() -> Loader {
    Loader::new(Arc::new(Nothing), Policy::default()).unwrap()
}

/// The notifications of subscribers, in order. Clones share the log.
#[derive(Clone, Default, Debug)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// Adds a line.
    pub fn push(&self, line: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line.into());
    }

    /// Takes all lines out.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A subscriber that logs `STATE LABEL MODULE`, and may refuse a module by name with ENODEV.
#[derive(Clone, Debug)]
pub struct Watcher {
    /// The name of the subscriber in the log.
    pub label: String,
    /// The log.
    pub log: Log,
    /// The module that the subscriber refuses.
    pub refuses: Option<&'static str>,
}

impl Watcher {
    /// Returns a subscriber that refuses no module.
    #[must_use]
    pub fn new(label: impl Into<String>, log: &Log) -> Watcher {
        Watcher { label: label.into(), log: log.clone(), refuses: None }
    }

    /// One that refuses a module.
    #[must_use]
    pub fn refusing(self, module: &'static str) -> Watcher {
        Watcher { refuses: Some(module), ..self }
    }
}

impl Subscriber for Watcher {
    fn coming(&self, module: &mut Coming<'_>) -> Result<(), Refusal> {
        let name = module.module().name();
        self.log.push(format!("COMING {} {name}", self.label));
        match self.refuses {
            Some(refused) if refused == name => Err(Refusal { reason: "not wanted".into(), errno: Some(19) }),
            _ => Ok(()),
        }
    }

    fn live(&self, module: &ModuleInfo) {
        self.log.push(format!("LIVE {} {}", self.label, module.name()));
    }

    fn going(&self, module: &ModuleInfo) {
        self.log.push(format!("GOING {} {}", self.label, module.name()));
    }
}

/// Chance that is the same each time: xorshift64*.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// From a seed that is not zero.
    #[must_use]
    pub fn new(seed: u64) -> Chance {
        assert_ne!(seed, 0);
        Chance(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        modload_edit::index(number) % bound
    }
}
