//! A plugin with Rust's standard library: `cargo build --release`, then
//! `modload --call seen=7 --call seen=7 target/release/librust_plugin.a`.

use std::cell::RefCell;
use std::collections::HashMap;

thread_local! {
    static SEEN: RefCell<HashMap<u64, u64>> = RefCell::new(HashMap::new());
}

/// Returns how often this thread has seen a number.
#[unsafe(no_mangle)]
pub extern "C" fn seen(number: u64) -> u64 {
    SEEN.with_borrow_mut(|seen| {
        let times = seen.entry(number).or_default();
        *times += 1;
        *times
    })
}
