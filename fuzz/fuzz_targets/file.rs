//! Any file can be read. Compressed files are decompressed up to a limit.

#![no_main]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use modload::file::ModuleFile;

const LIMIT: u64 = 1 << 20;

/// One file for all runs. The kernel deletes it when this process ends.
static FILE: LazyLock<File> = LazyLock::new(|| tempfile::tempfile().expect("a temporary file"));

fuzz_target!(|bytes: &[u8]| {
    FILE.set_len(0).expect("it is emptied");
    FILE.write_all_at(bytes, 0).expect("it is filled");
    let path = PathBuf::from(format!("/proc/self/fd/{}", FILE.as_raw_fd()));
    if let Ok(read) = ModuleFile::read(&path, LIMIT) {
        assert!(read.bytes.len() <= 1 << 20, "{} bytes", read.bytes.len());
    }
});
