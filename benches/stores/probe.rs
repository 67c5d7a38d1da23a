//! Threads execute sites that are changed without INT3. Records the results of their calls.
#![expect(unsafe_code, reason = "the probe is C, and its functions are called")]

use std::error::Error;
use std::ffi::{c_int, c_uint};
use std::fmt::Write;
use std::io;

use modload_tests::in_fork;

/// `enum stores_how` of `floor/stores.h`.
const ONE: c_int = 0;
const BYTES: c_int = 1;

/// The variants: a name, the kind of change, and the offset of the site in its line of 64 bytes.
const TRIED: [(&str, c_int, usize); 7] = [
    ("one store, bytes 0 to 4 of 8", ONE, 0),
    ("one store, bytes 1 to 5 of 8", ONE, 1),
    ("one store, bytes 3 to 7 of 8", ONE, 3),
    ("one store, across 8 bytes", ONE, 4),
    ("one store, across 16 bytes", ONE, 13),
    ("one store, across 64 bytes", ONE, 61),
    ("a store for each byte", BYTES, 0),
];

/// `struct stores_seen`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Seen {
    flips: u64,
    calls: u64,
    neither: u64,
    settled: u64,
    stale: u64,
}

#[link(name = "stores", kind = "static")]
unsafe extern "C" {
    safe fn stores_open() -> *mut Seen;
    fn stores_run(how: c_int, offset: usize, milliseconds: c_uint, seen: *mut Seen) -> c_int;
}

/// Runs each variant for this time in a child process, which some of them kill.
pub(crate) fn table(milliseconds: c_uint) -> Result<String, Box<dyn Error>> {
    let mut table = format!("{:<30}", "");
    for head in ["flips", "calls", "settled", "neither", "stale"] {
        write!(table, "{head:>12}")?;
    }
    table.push_str("  ended\n");
    for (name, how, offset) in TRIED {
        let seen = stores_open();
        if seen.is_null() {
            return Err(io::Error::last_os_error().into());
        }
        let ended = in_fork(|| {
            // SAFETY: called once, in a process of its own. `seen` was just opened, and is shared with this process.
            let result = unsafe { stores_run(how, offset, milliseconds, seen) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
        });
        // SAFETY: opened above, and the child, which alone wrote to it, has ended.
        let seen = unsafe { seen.read() };
        let how = match (ended.status, ended.signal) {
            (Some(0), _) if seen.flips == 0 => return Err(format!("{name}: nothing was flipped").into()),
            (Some(0), _) => "well".to_owned(),
            (None, Some(signal)) => format!("by signal {signal}"),
            _ => return Err(format!("{name}: {}", ended.stderr).into()),
        };
        let Seen { flips, calls, neither, settled, stale } = seen;
        writeln!(table, "{name:<30}{flips:>12}{calls:>12}{settled:>12}{neither:>12}{stale:>12}  {how}")?;
    }
    Ok(table)
}
