//! Any file can be loaded up to the point where its code would run: the result is an error, and nothing is left behind.

#![no_main]

#[path = "../../loader/tests/largest/mod.rs"]
mod largest;
#[path = "../../loader/tests/scene/mod.rs"]
mod scene;

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use modload_loader::{Image, Loader, Policy};
use modload_text::Arena;
use scene::{BeforeRunning, Everything};

static LOADER: LazyLock<Loader> = LazyLock::new(|| {
    let policy = Policy { size_limit: 16 << 20, ..Policy::default() };
    Loader::new(Arc::new(Everything), policy).expect("the arena can be had")
});

/// Returns the used bytes of each stripe.
fn used() -> Vec<u64> {
    let arena = Arena::get().expect("the loader has it");
    arena.usage().iter().map(|stripe| stripe.used).collect()
}

fuzz_target!(|bytes: &[u8]| {
    let loader = &*LOADER;
    let before = used();
    // SAFETY: no code of it is run: see `BeforeRunning`.
    let image = unsafe { Image::trusted(bytes) }.named("module");
    let loaded = largest::within_bound(bytes, || loader.load_module_with(&image, &BeforeRunning));
    assert!(loaded.is_err(), "it is made to fail at the latest");
    assert!(loader.modules().is_empty(), "nothing is left in the registry");
    assert_eq!(used(), before, "nothing is left in the arena");
});
