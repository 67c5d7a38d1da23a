//! Threads as the kernel lists them, under `/proc/self/task`. No function here allocates memory or takes a lock, except
//! for callbacks of the caller: all of them may be used while threads are held.

use std::ffi::CStr;
use std::fmt;
use std::io::{self, Write};
use std::ops::ControlFlow;

use crate::system::{self, Descriptor};

/// A thread's id, as gettid(2) gives it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tid(i32);

impl Tid {
    /// Returns the calling thread's id.
    #[must_use]
    pub fn current() -> Tid {
        Tid(system::gettid())
    }

    /// Returns whether this is the first thread of the process, whose id is the process id.
    #[must_use]
    pub fn is_first(self) -> bool {
        self.0 == system::getpid()
    }

    /// Returns the id as a number.
    #[must_use]
    pub fn get(self) -> i32 {
        self.0
    }

    /// Returns the id with this number. A thread with this id need not exist.
    #[must_use]
    pub fn new(number: i32) -> Tid {
        Tid(number)
    }
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The list of the process's threads, open for reading.
#[derive(Debug)]
pub struct Tasks {
    directory: Descriptor,
}

/// The size of the buffer for one system call: 170 names of threads, at 24 bytes each.
const LISTED_AT_ONCE: usize = 4096;

// struct linux_dirent64: ino (8), off (8), the record's length (2), type (1), the name.
const LENGTH_AT: usize = 16;
const NAME_AT: usize = 19;

impl Tasks {
    /// Opens the list.
    ///
    /// # Errors
    ///
    /// The error of open(2), for example if `/proc` is not mounted.
    pub fn open() -> io::Result<Tasks> {
        Ok(Tasks { directory: Descriptor::open(c"/proc/self/task", libc::O_DIRECTORY)? })
    }

    /// Returns the number of threads at this moment, including threads that have ended and are not reaped yet.
    ///
    /// The number is the kernel's own count (the directory's links). The count is exact where [`each`](Tasks::each) is not.
    ///
    /// # Errors
    ///
    /// The error of fstat(2).
    pub fn count(&self) -> io::Result<u64> {
        Ok(self.directory.links()?.saturating_sub(2))
    }

    /// Passes over the list once, from its beginning, until `visit` breaks.
    ///
    /// The kernel ends the list early if the thread at its current position ends meanwhile. So one pass may miss
    /// threads; [`count`](Tasks::count) shows whether any was missed.
    ///
    /// # Errors
    ///
    /// The error of lseek(2) or getdents64(2).
    pub fn each<B>(&self, mut visit: impl FnMut(Tid) -> ControlFlow<B>) -> io::Result<ControlFlow<B>> {
        self.directory.rewind()?;
        let mut buffer = [0; LISTED_AT_ONCE];
        loop {
            let filled = self.directory.entries(&mut buffer)?;
            let mut records = buffer.get(..filled).unwrap_or_default();
            if records.is_empty() {
                return Ok(ControlFlow::Continue(()));
            }
            while let Some((name, rest)) = first_record(records) {
                records = rest;
                if let Some(number) = number(name)
                    && let broken @ ControlFlow::Break(_) = visit(Tid(number))
                {
                    return Ok(broken);
                }
            }
        }
    }
}

/// Returns the name in the first of several directory entries, and the entries behind it.
fn first_record(records: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = records.get(LENGTH_AT..LENGTH_AT + 2)?;
    let length = usize::from(u16::from_le_bytes(length.try_into().ok()?));
    let (record, rest) = records.split_at_checked(length)?;
    let name = record.get(NAME_AT..)?;
    let end = name.iter().position(|byte| *byte == 0)?;
    Some((&name[..end], rest))
}

/// Parses a decimal number that fills all of `text`.
pub(crate) fn number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A thread's name (its `comm`): up to 15 bytes of anything.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; 16],
    len: usize,
}

impl Name {
    /// Returns the name's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Writes the name, with all bytes escaped that are not printable ASCII.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().escape_ascii().fmt(f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// The activity of a thread, by its `State:` line in `/proc`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ThreadState {
    /// R: runs, or waits for a processor.
    Running,
    /// S: sleeps in the kernel until an event or a signal wakes the thread.
    Sleeping,
    /// D: sleeps in the kernel, and no signal wakes the thread; the parent of a vfork does so.
    Uninterruptible,
    /// T: stopped by job control.
    Stopped,
    /// t: stopped by a tracer.
    Traced,
    /// Z, X: has ended.
    Ended,
    /// Another letter of the kernel.
    Other(u8),
}

impl fmt::Display for ThreadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ThreadState::Running => f.write_str("running"),
            ThreadState::Sleeping => f.write_str("sleeping"),
            ThreadState::Uninterruptible => f.write_str("sleeping uninterruptibly"),
            ThreadState::Stopped => f.write_str("stopped"),
            ThreadState::Traced => f.write_str("stopped by a tracer"),
            ThreadState::Ended => f.write_str("ended"),
            ThreadState::Other(letter) => write!(f, "{}", letter.escape_ascii()),
        }
    }
}

impl ThreadState {
    fn of(letter: u8) -> ThreadState {
        match letter {
            b'R' => ThreadState::Running,
            b'S' => ThreadState::Sleeping,
            b'D' => ThreadState::Uninterruptible,
            b'T' => ThreadState::Stopped,
            b't' => ThreadState::Traced,
            b'Z' | b'X' => ThreadState::Ended,
            other => ThreadState::Other(other),
        }
    }
}

/// The fields of `/proc/self/task/TID/status` that this crate uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// The activity of the thread.
    pub state: ThreadState,
    /// The process that traces the thread; 0: none.
    pub tracer: i32,
    /// Signals that are pending for this thread alone; bit N-1 is signal N.
    pub pending: u64,
    /// Signals that the thread blocks; bit N-1 is signal N.
    pub blocked: u64,
}

impl Status {
    /// Returns whether the thread blocks this signal.
    #[must_use]
    pub fn blocks(&self, signal: i32) -> bool {
        self.blocked & bit(signal) != 0
    }
}

/// Returns a signal's bit in a signal mask of the kernel; 0 if there is no such signal.
pub(crate) fn bit(signal: i32) -> u64 {
    u32::try_from(signal - 1).ok().and_then(|shift| 1_u64.checked_shl(shift)).unwrap_or(0)
}

/// Opens a file of a thread's folder.
fn open(tid: Tid, file: &str) -> io::Result<Descriptor> {
    let mut path = [0; 64];
    // A decimal i32 and the longest file name of this crate fit, with a zero behind them.
    write!(&mut path[..63], "/proc/self/task/{tid}/{file}")?;
    let path = CStr::from_bytes_until_nul(&path).map_err(|_| io::ErrorKind::InvalidInput)?;
    Descriptor::open(path, 0)
}

/// Reads a thread's status; `None` if the thread has ended meanwhile.
///
/// # Errors
///
/// The error of open(2) or read(2), except for the error of a thread that is gone; `InvalidData` if a line is missing.
pub fn status(tid: Tid) -> io::Result<Option<Status>> {
    gone_is_none(read_status(tid))
}

/// Reads a small file of a thread's folder, or as much of it as fits; `None` if the thread has ended.
pub(crate) fn read_file<'b>(tid: Tid, file: &str, buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
    let read = gone_is_none(open(tid, file).and_then(|file| file.read(buffer)))?;
    Ok(read.map(|read| &buffer[..read]))
}

fn gone_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a thread's status. Lines are parsed piece by piece, because `Groups:` may be longer than any buffer.
fn read_status(tid: Tid) -> io::Result<Status> {
    let file = open(tid, "status")?;
    let mut found = StatusLines::default();
    let mut buffer = [0; 2048];
    let mut kept = 0;
    loop {
        let read = file.read(&mut buffer[kept..])?;
        let filled = kept + read;
        let mut rest = &buffer[..filled];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            found.line(&rest[..end]);
            rest = &rest[end + 1..];
        }
        if let Some(status) = found.all() {
            return Ok(status);
        }
        if read == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // The beginning of a line waits for its end. A line that fills the buffer is not one of the required lines, and
        // neither is its rest.
        let from = filled - rest.len();
        kept = if rest.len() == buffer.len() { 0 } else { rest.len() };
        buffer.copy_within(from..from + kept, 0);
    }
}

#[derive(Default)]
struct StatusLines {
    state: Option<ThreadState>,
    tracer: Option<i32>,
    pending: Option<u64>,
    blocked: Option<u64>,
}

impl StatusLines {
    fn line(&mut self, line: &[u8]) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let value = line[colon + 1..].trim_ascii();
        match &line[..colon] {
            b"State" => self.state = value.first().map(|letter| ThreadState::of(*letter)),
            b"TracerPid" => self.tracer = number(value),
            b"SigPnd" => self.pending = hex(value),
            b"SigBlk" => self.blocked = hex(value),
            _ => {}
        }
    }

    fn all(&self) -> Option<Status> {
        Some(Status { state: self.state?, tracer: self.tracer?, pending: self.pending?, blocked: self.blocked? })
    }
}

/// Parses a hexadecimal number that fills all of `text`.
pub(crate) fn hex(text: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()
}

/// Reads a thread's name; `None` if the thread has ended meanwhile.
///
/// # Errors
///
/// The error of open(2) or read(2), except for the error of a thread that is gone.
pub fn name(tid: Tid) -> io::Result<Option<Name>> {
    gone_is_none(read_name(tid))
}

fn read_name(tid: Tid) -> io::Result<Name> {
    let file = open(tid, "comm")?;
    let mut bytes = [0; 16];
    let read = file.read(&mut bytes)?;
    // A name may contain line breaks.
    let len = bytes[..read].strip_suffix(b"\n").map_or(read, <[u8]>::len);
    Ok(Name { bytes, len })
}

/// Tells whether a thread can enter the signal handler at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Presence {
    /// The thread can enter the handler.
    Present,
    /// The thread is still listed and will never run user code (again): it is ending, has ended, or is a worker of
    /// io_uring.
    Absent,
    /// There is no such thread.
    Gone,
}

// Task flags of the kernel, as the ninth field of /proc/PID/stat shows them. Other kernel threads in a process
// (PF_USER_WORKER, of vhost) have a flag that had another meaning before Linux 6.4: inspecting their stack identifies
// them.
const PF_EXITING: u64 = 0x4;
const PF_IO_WORKER: u64 = 0x10;

/// Returns the highest address of the first thread's stack, where the stack begins: the 28th field of the thread's
/// `stat`. `None` if the thread has ended.
pub(crate) fn start_of_stack(tid: Tid) -> io::Result<Option<u64>> {
    let mut buffer = [0; 1024];
    let Some(text) = read_file(tid, "stat", &mut buffer)? else { return Ok(None) };
    // The 26th field behind the name.
    fields_behind_name(text).nth(25).and_then(number).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Returns the fields of a `stat` from the third on. The name before them is enclosed in parentheses, and may contain
/// some.
fn fields_behind_name(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let behind_name = text.iter().rposition(|byte| *byte == b')').map_or(0, |at| at + 1);
    text[behind_name..].split(|byte| *byte == b' ').filter(|field| !field.is_empty())
}

/// Returns whether this thread can enter the signal handler.
pub(crate) fn presence(tid: Tid) -> io::Result<Presence> {
    Ok(gone_is_none(read_presence(tid))?.unwrap_or(Presence::Gone))
}

fn read_presence(tid: Tid) -> io::Result<Presence> {
    let file = open(tid, "stat")?;
    let mut buffer = [0; 512];
    let read = file.read(&mut buffer)?;
    let text = &buffer[..read];
    let mut fields = fields_behind_name(text);
    // After the name: state ppid pgrp session tty tpgid flags.
    let state = fields.next().and_then(|field| field.first()).map(|letter| ThreadState::of(*letter));
    let flags: Option<u64> = fields.nth(5).and_then(number);
    let (Some(state), Some(flags)) = (state, flags) else { return Err(io::ErrorKind::InvalidData.into()) };
    let never = state == ThreadState::Ended || flags & (PF_EXITING | PF_IO_WORKER) != 0;
    Ok(if never { Presence::Absent } else { Presence::Present })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> Vec<u8> {
        let length = (NAME_AT + name.len() + 1).next_multiple_of(8);
        let mut record = vec![0; length];
        record[LENGTH_AT..NAME_AT - 1].copy_from_slice(&u16::try_from(length).unwrap().to_le_bytes());
        record[NAME_AT..NAME_AT + name.len()].copy_from_slice(name.as_bytes());
        record
    }

    #[test]
    fn entries_of_a_directory_are_taken_apart() {
        let records = [record("."), record("12345"), record("678901234")].concat();
        let (first, rest) = first_record(&records).unwrap();
        let (second, rest) = first_record(rest).unwrap();
        let (third, rest) = first_record(rest).unwrap();
        assert_eq!([first, second, third], [&b"."[..], b"12345", b"678901234"]);
        assert!(rest.is_empty() && first_record(rest).is_none());
        // The record claims to be longer than the buffer.
        assert!(first_record(&records[..20]).is_none());
    }

    #[test]
    fn masks_have_a_bit_for_each_signal() {
        assert_eq!((bit(1), bit(64), bit(0), bit(65)), (1, 1 << 63, 0, 0));
    }
}
