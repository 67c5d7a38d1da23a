//! Any file is linked as a live patch or refused. The result cannot be linked again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use modload::patch::link::link;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(linked) = link(bytes) {
        assert!(link(&linked.bytes).is_err(), "it has been linked twice");
    }
});
