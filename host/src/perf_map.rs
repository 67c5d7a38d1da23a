//! The map in which `perf report` finds names for code that is in no file: `/tmp/perf-PID.map`, with a line `START SIZE
//! NAME [MODULE]` for each function, in hexadecimal without `0x`.
//!
//! perf reads the map when it makes its report, not while it records, and the map has no times. So a line cannot be
//! withdrawn, and of two lines for one address perf may use either. Therefore the lines of a module stay when the
//! module goes, for the samples taken in it, and are replaced by empty lines when another module uses the addresses.
//! Samples of the first module are then shown as samples of the second: this is the price of reusing an address.
//!
//! Other code generators of the process may write to the same file. Their lines are not changed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use modload_edit::wide;
use modload_loader::{Onlooker, Seen, Shown, sentence};
use rustix::fs::OFlags;
use rustix::process::geteuid;
use thiserror::Error;

use crate::builder::HostBuilder;
use crate::onlookers::onlooker_data;

impl HostBuilder {
    /// Writes the functions of each module to `/tmp/perf-PID.map`, where `perf report` looks for them. Only this user
    /// can read the file, and it stays after the process has ended, for the report. If a second module is loaded at the
    /// addresses of an unloaded one, all samples there count as the second module's.
    ///
    /// # Errors
    /// [`PerfMapError`]: the file cannot be opened, or belongs to another user.
    pub fn perf_map(mut self) -> Result<HostBuilder, PerfMapError> {
        self.onlookers.push(Arc::new(PerfMap::open()?));
        Ok(self)
    }
}

/// The map for `perf` cannot be written.
#[derive(Error)]
#[non_exhaustive]
pub enum PerfMapError {
    /// The map cannot be opened.
    #[error("opening {}", .path.display())]
    Open {
        /// The map.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The map exists already and belongs to another user. `perf` would not read it either.
    #[error("{} belongs to user {owner}, and this process runs as user {here}; remove it", .path.display())]
    NotOurs {
        /// The map.
        path: PathBuf,
        /// The owner's user id.
        owner: u32,
        /// This process's user id.
        here: u32,
    },
    /// The map exists already and is not a regular file, or has another hard link.
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

/// The folder in which `perf` looks for maps.
const FOLDER: &str = "/tmp";

/// An onlooker that writes the functions of each module to the map.
#[derive(Debug)]
pub(crate) struct PerfMap;

impl PerfMap {
    /// Opens the process's map, if no host has done so before.
    pub(crate) fn open() -> Result<PerfMap, PerfMapError> {
        let map = &mut onlooker_data().map;
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
        let lines = functions.map(|function| MapFunction {
            start: function.addr.get(),
            size: function.size,
            text: line(function.addr.get(), function.size, function.name, module),
        });
        let lines = lines.collect();
        let added = onlooker_data().map.as_mut().map_or(Ok(()), |map| map.add(lines));
        // A module is not refused because its functions cannot be written to the map.
        if let Err(error) = added {
            tracing::warn!(module, %error, "the map for perf could not be written");
        }
        Shown::default()
    }
}

/// Formats a line. The name in a module file may have any bytes. Bytes that could end the line or be misread are
/// escaped.
fn line(start: u64, size: u64, name: &[u8], module: &str) -> String {
    format!("{start:x} {size:x} {} [{module}]\n", name.escape_ascii())
}

/// A function to write to the map.
#[derive(Debug)]
struct MapFunction {
    start: u64,
    size: u64,
    text: String,
}

/// A line in the map.
#[derive(Debug)]
struct MapLine {
    size: u64,
    /// The offset of the line in the file.
    at: u64,
    text: String,
}

/// The map of a process. All hosts of the process share it.
#[derive(Debug)]
pub(crate) struct Map {
    folder: PathBuf,
    file: File,
    /// The process to which the map belongs.
    pid: u32,
    /// The lines by the function's first address.
    lines: BTreeMap<u64, MapLine>,
}

impl Map {
    fn open(folder: &Path) -> Result<Map, PerfMapError> {
        let pid = std::process::id();
        Ok(Map { folder: folder.to_owned(), file: open(folder, pid)?, pid, lines: BTreeMap::new() })
    }

    /// Appends lines, after clearing the lines that they replace.
    fn add(&mut self, mut functions: Vec<MapFunction>) -> io::Result<()> {
        self.follow_fork()?;
        // If functions share an address or overlap, only the first is written.
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
            self.clear_overlapping(function)?;
        }
        let text: String = functions.iter().map(|function| function.text.as_str()).collect();
        let mut at = self.append(&text)?;
        for MapFunction { start, size, text } in functions {
            let len = wide(text.len());
            self.lines.insert(start, MapLine { size, at, text });
            at += len;
        }
        Ok(())
    }

    /// Appends text at the current end of the file. Returns the offset of the text.
    fn append(&mut self, text: &str) -> io::Result<u64> {
        let at = self.file.seek(SeekFrom::End(0))?;
        self.file.write_all(text.as_bytes())?;
        Ok(at)
    }

    /// Clears the lines that overlap a new one.
    fn clear_overlapping(&mut self, new: &MapFunction) -> io::Result<()> {
        let end = new.start.saturating_add(new.size);
        // Existing lines do not overlap each other, because each has been added by this function. So the lines that
        // overlap the new one are the last before its end.
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

    /// After a fork, opens a map for the child and writes all inherited lines to it.
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

/// Opens the map of a process. Other users can write to the folder, so no symbolic link is followed, and a file of
/// another user is refused. Lines that an earlier process with the same id has left are removed.
fn open(folder: &Path, pid: u32) -> Result<File, PerfMapError> {
    let path = folder.join(format!("perf-{pid}.map"));
    let failed = |source| PerfMapError::Open { path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    // With NONBLOCK, opening a pipe of that name does not wait for a reader.
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

/// Returns the latest time at which this process can have started. A file that was modified before is not its own.
fn process_began() -> Option<SystemTime> {
    // Clock ticks of proc(5) are 100 a second on x86-64.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // After the name in parentheses the first field is field 3. The start time is field 22.
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

    fn function(start: u64, size: u64, name: &str) -> MapFunction {
        MapFunction { start, size, text: line(start, size, name.as_bytes(), "m") }
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
        // Of two names for one address, and of two overlapping functions, the first is written.
        map.add(vec![function(0x2000, 8, "whole"), function(0x2000, 8, "alias"), function(0x2004, 2, "part")]).unwrap();
        assert_eq!(lines(folder.path()).last().unwrap(), "2000 8 whole [m]");
        map.add(vec![function(0x2004, 0x10, "next")]).unwrap();
        // A line that is merely adjacent stays, and lines of another writer are not changed.
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
        // Written by this process: the line of another code generator.
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
