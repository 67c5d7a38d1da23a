//! The map by which `perf report` finds names for code that is in no file: `/tmp/perf-PID.map`, a line
//! `START SIZE NAME [MODULE]` for each function, in hexadecimal without `0x`.
//!
//! perf reads it when it makes its report, not while it records, and knows no times: a line cannot be withdrawn, and of
//! two lines for one address either may be taken. So the lines of a module stay when it goes, for the samples that were
//! taken of it, and are blotted out when their addresses are another module's. Samples of the first are then shown as
//! the second's: the price of an address used twice.
//!
//! Other code generators of the process may write into the same file. Nothing of theirs is changed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use modload_edit::wide;
use modload_loader::{Onlooker, Seen, Shown, sentence};
use rustix::fs::OFlags;
use rustix::process::geteuid;
use thiserror::Error;

use crate::onlookers::told;

/// The map for `perf` cannot be written.
#[derive(Error)]
#[non_exhaustive]
pub enum PerfMapError {
    /// It cannot be opened.
    #[error("opening {}", .path.display())]
    Open {
        /// The map.
        path: PathBuf,
        /// What the kernel said; that a link is not followed, say.
        source: io::Error,
    },
    /// It is there already and somebody else's. `perf` would not read it either.
    #[error("{} belongs to user {owner}, and this process runs as user {here}; remove it", .path.display())]
    NotOurs {
        /// The map.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        here: u32,
    },
    /// It is there already and not a file, or one that has other names, too.
    #[error("{} is not a plain file of that name alone; remove it", .path.display())]
    NotPlain {
        /// The map.
        path: PathBuf,
    },
}

impl fmt::Debug for PerfMapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

/// Where `perf` looks for maps.
const FOLDER: &str = "/tmp";

/// Writes down the functions of each module.
#[derive(Debug)]
pub(crate) struct PerfMap;

impl PerfMap {
    /// Opens the process's map, if no host has done so.
    pub(crate) fn open() -> Result<PerfMap, PerfMapError> {
        let map = &mut told().map;
        if map.is_none() {
            *map = Some(Map::open(Path::new(FOLDER))?);
        }
        Ok(PerfMap)
    }
}

impl Onlooker for PerfMap {
    fn published(&self, seen: &Seen<'_>) -> Shown {
        let module = seen.module().name();
        let functions = seen.functions().filter(|function| function.size != 0);
        let lines = functions.map(|function| Function {
            start: function.addr.get(),
            size: function.size,
            text: line(function.addr.get(), function.size, function.name, module),
        });
        let lines = lines.collect();
        let added = told().map.as_mut().map_or(Ok(()), |map| map.add(lines));
        // A module is not refused because nobody can profile it.
        if let Err(error) = added {
            tracing::warn!(module, %error, "the map for perf could not be written");
        }
        Shown::default()
    }
}

/// A line. Names are any bytes in a file: what could end the line, or be taken for something else, is escaped.
fn line(start: u64, size: u64, name: &[u8], module: &str) -> String {
    format!("{start:x} {size:x} {} [{module}]\n", name.escape_ascii())
}

/// A function to be written down.
#[derive(Debug)]
struct Function {
    start: u64,
    size: u64,
    text: String,
}

/// A line that is there.
#[derive(Debug)]
struct Line {
    size: u64,
    /// Where it begins in the file.
    at: u64,
    text: String,
}

/// The map of a process; all its hosts share it.
#[derive(Debug)]
pub(crate) struct Map {
    folder: PathBuf,
    file: File,
    /// The process that it belongs to.
    pid: u32,
    /// By the function's first address.
    lines: BTreeMap<u64, Line>,
}

impl Map {
    fn open(folder: &Path) -> Result<Map, PerfMapError> {
        let pid = std::process::id();
        Ok(Map { folder: folder.to_owned(), file: open(folder, pid)?, pid, lines: BTreeMap::new() })
    }

    /// Adds lines at the end, after those that they take the place of are gone.
    fn add(&mut self, mut functions: Vec<Function>) -> io::Result<()> {
        self.follow_fork()?;
        // Of several names for one function, and of functions in functions, one is written down.
        functions.sort_by_key(|function| function.start);
        let mut end = 0;
        functions.retain(|function| {
            let is_apart = function.start >= end;
            if is_apart {
                end = function.start.saturating_add(function.size);
            }
            is_apart
        });
        for function in &functions {
            self.blot_out(function)?;
        }
        let text: String = functions.iter().map(|function| function.text.as_str()).collect();
        let mut at = self.append(&text)?;
        for Function { start, size, text } in functions {
            let len = wide(text.len());
            self.lines.insert(start, Line { size, at, text });
            at += len;
        }
        Ok(())
    }

    /// Writes at the end, wherever that is by now; returns where it was.
    fn append(&mut self, text: &str) -> io::Result<u64> {
        let at = self.file.seek(SeekFrom::End(0))?;
        self.file.write_all(text.as_bytes())?;
        Ok(at)
    }

    /// Makes empty lines of those that overlap a new one.
    fn blot_out(&mut self, new: &Function) -> io::Result<()> {
        let end = new.start.saturating_add(new.size);
        // Lines that are there do not overlap each other, for each has gone through here: those that reach into the new one are the last before its end.
        loop {
            let last = self.lines.range(..end).next_back();
            let Some((&start, line)) = last.filter(|(start, line)| *start + line.size > new.start) else {
                return Ok(());
            };
            let nothing = vec![b'\n'; line.text.len()];
            self.file.write_all_at(&nothing, line.at)?;
            self.lines.remove(&start);
        }
    }

    /// A child has a map of its own, with all that it has inherited.
    fn follow_fork(&mut self) -> io::Result<()> {
        let pid = std::process::id();
        if pid == self.pid {
            return Ok(());
        }
        self.file = open(&self.folder, pid).map_err(io::Error::other)?;
        self.pid = pid;
        let mut at = self.file.seek(SeekFrom::End(0))?;
        for line in self.lines.values_mut() {
            self.file.write_all(line.text.as_bytes())?;
            line.at = at;
            at += wide(line.text.len());
        }
        Ok(())
    }
}

/// Opens the map of a process, which is in a folder that others can write to: no link is followed, and a file that is
/// not ours is refused. What a process of the same number has left behind is dropped.
fn open(folder: &Path, pid: u32) -> Result<File, PerfMapError> {
    let path = folder.join(format!("perf-{pid}.map"));
    let failed = |source| PerfMapError::Open { path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    // Nor is anybody waited for who should read a pipe of that name.
    options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    let file = options.open(&path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let here = geteuid().as_raw();
    if metadata.uid() != here {
        return Err(PerfMapError::NotOurs { path, owner: metadata.uid(), here });
    }
    if !metadata.is_file() || metadata.nlink() != 1 {
        return Err(PerfMapError::NotPlain { path });
    }
    let modified = metadata.modified().map_err(failed)?;
    if metadata.len() != 0 && process_began().is_some_and(|began| modified < began) {
        file.set_len(0).map_err(failed)?;
    }
    Ok(file)
}

/// When this process began, at the latest: what was written before is not its own.
fn process_began() -> Option<SystemTime> {
    // Clock ticks of proc(5) are 100 a second on x86-64.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // After the name: field 3 is the first, and 22 the one that we want.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u32 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let age = Duration::try_from_secs_f64(uptime).ok()?.checked_sub(TICK * ticks)?;
    SystemTime::now().checked_sub(age)?.checked_sub(TICK)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn function(start: u64, size: u64, name: &str) -> Function {
        Function { start, size, text: line(start, size, name.as_bytes(), "m") }
    }

    fn lines(folder: &Path) -> Vec<String> {
        let text = fs::read_to_string(folder.join(format!("perf-{}.map", std::process::id()))).unwrap();
        text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn a_later_line_takes_the_place_of_what_it_overlaps() {
        let folder = tempfile::tempdir().unwrap();
        let mut map = Map::open(folder.path()).unwrap();
        assert_eq!(map.file.metadata().unwrap().mode() & 0o777, 0o600);
        map.add(vec![function(0x1000, 0x10, "a"), function(0x1010, 0x10, "b"), function(0x1020, 0x10, "c")]).unwrap();
        map.add(vec![function(0x1018, 0x10, "d")]).unwrap();
        assert_eq!(lines(folder.path()), ["1000 10 a [m]", "1018 10 d [m]"]);
        // Of two names for one place, and of one within another, the first is taken.
        map.add(vec![function(0x2000, 8, "whole"), function(0x2000, 8, "alias"), function(0x2004, 2, "part")]).unwrap();
        assert_eq!(lines(folder.path()).last().unwrap(), "2000 8 whole [m]");
        map.add(vec![function(0x2004, 0x10, "next")]).unwrap();
        // What merely touches stays, and another writer's lines are left alone.
        let path = folder.path().join(format!("perf-{}.map", std::process::id()));
        OpenOptions::new().append(true).open(path).unwrap().write_all(b"1018 10 other\n").unwrap();
        map.add(vec![function(0x1028, 0x8, "e"), function(0x1000, 0x1, "f")]).unwrap();
        assert_eq!(
            lines(folder.path()),
            ["1018 10 d [m]", "2004 10 next [m]", "1018 10 other", "1000 1 f [m]", "1028 8 e [m]"]
        );
    }

    #[test]
    fn names_cannot_end_a_line() {
        assert_eq!(line(0x2a, 1, b"two\nlines \xff", "m"), "2a 1 two\\nlines \\xff [m]\n");
    }

    #[test]
    fn what_is_not_ours_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("perf-{}.map", std::process::id()));
        let victim = folder.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, &path).unwrap();
        let link = Map::open(folder.path()).unwrap_err();
        assert!(
            matches!(&link, PerfMapError::Open { source, .. } if source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()))
        );
        fs::remove_file(&path).unwrap();
        fs::hard_link(&victim, &path).unwrap();
        assert!(matches!(Map::open(folder.path()), Err(PerfMapError::NotPlain { .. })));
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }

    #[test]
    fn what_a_process_of_the_same_number_has_left_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("perf-{}.map", std::process::id()));
        // Written by this process: another code generator's.
        fs::write(&path, "1000 10 other\n").unwrap();
        let mut map = Map::open(folder.path()).unwrap();
        map.add(vec![function(0x2000, 1, "a")]).unwrap();
        assert_eq!(lines(folder.path()), ["1000 10 other", "2000 1 a [m]"]);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_modified(process_began().unwrap() - Duration::from_secs(1)).unwrap();
        Map::open(folder.path()).unwrap();
        assert!(lines(folder.path()).is_empty());
    }
}
