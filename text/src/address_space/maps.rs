//! The mappings of this process, by `/proc/self/maps` (proc(5)).

use std::fs;
use std::io;

use modload_edit::Addr;

/// A mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mapping {
    pub(crate) start: Addr,
    /// The address behind the mapping.
    pub(crate) end: Addr,
    /// The access as four letters: `r-xp` is a private mapping that can be read and executed and not written.
    pub(crate) access: [u8; 4],
    pub(crate) backing: Backing,
}

/// The kind of memory behind a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Backing {
    File,
    /// The stack of the process's first thread, which grows downward.
    Stack,
    /// Memory without a file, such as the heap.
    Anonymous,
}

/// Reads all mappings, by address. The kernel returns them in parts, so a change in between may be included
/// incompletely.
pub(crate) fn read() -> io::Result<Vec<Mapping>> {
    Ok(parse(&fs::read_to_string("/proc/self/maps")?))
}

pub(crate) fn parse(maps: &str) -> Vec<Mapping> {
    maps.lines().filter_map(mapping).collect()
}

/// Parses a line: `START-END ACCESS OFFSET DEVICE INODE NAME`. A file's name may contain any character except a line
/// break.
fn mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let address = |hex| u64::from_str_radix(hex, 16).ok().map(Addr::new);
    let access = fields.next()?.as_bytes().try_into().ok()?;
    let inode = fields.nth(2)?;
    let backing = match (inode, fields.next()) {
        ("0", Some("[stack]")) => Backing::Stack,
        ("0", _) => Backing::Anonymous,
        _ => Backing::File,
    };
    Some(Mapping { start: address(start)?, end: address(end)?, access, backing })
}
