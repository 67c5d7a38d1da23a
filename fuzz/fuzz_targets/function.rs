//! Any function of any file can be examined. The input is the function's name, a NUL, and the file.

#![no_main]

#[path = "../../loader/tests/largest/mod.rs"]
mod largest;

use libfuzzer_sys::fuzz_target;
use modload_loader::FunctionBytes;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    if let (Some(name), Some(file)) = (parts.next(), parts.next()) {
        let name = String::from_utf8_lossy(name);
        let _ = largest::within_bound(file, || FunctionBytes::of(file, &name, 1 << 30));
    }
});
