//! Any file can be inspected.

#![no_main]

#[path = "../../loader/tests/largest/mod.rs"]
mod largest;

use libfuzzer_sys::fuzz_target;
use modload_loader::Inspection;

fuzz_target!(|bytes: &[u8]| {
    let _ = largest::within_bound(bytes, || Inspection::of(bytes, "module", 1 << 30));
});
