//! Transfers lines and descriptors over a Unix socket. Lengths are limited, and the other side cannot block a transfer
//! for long.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, take};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{Timeout, socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;

/// The maximum number of descriptors that Linux passes in one message (`SCM_MAX_FD`).
const PER_MESSAGE: usize = 253;

/// The size of one read in bytes.
const CHUNK: usize = 16 << 10;

/// Why no line could be read.
#[derive(Debug, Error)]
pub(crate) enum WireError {
    #[error("a line of more than {0} bytes")]
    TooLong(usize),
    #[error("a line that was not ended within {} seconds", .0.as_secs())]
    TooSlow(Duration),
    #[error("more than {0} descriptors with a line")]
    TooManyDescriptors(usize),
    #[error("the descriptors of a line are lost: this process has reached its limit of open descriptors")]
    DescriptorsLost,
    #[error("a line that is not UTF-8")]
    NotUtf8,
    #[error("a line without an end")]
    CutOff,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl WireError {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            WireError::TooLong(_) => "line_too_long",
            WireError::TooSlow(_) => "line_too_slow",
            WireError::TooManyDescriptors(_) => "too_many_descriptors",
            WireError::DescriptorsLost => "descriptors_lost",
            WireError::NotUtf8 => "not_utf8",
            WireError::CutOff | WireError::Io(_) => "connection",
        }
    }
}

impl From<Errno> for WireError {
    fn from(errno: Errno) -> WireError {
        WireError::Io(errno.into())
    }
}

/// A line without its newline, and the descriptors that had arrived with it.
#[derive(Debug)]
pub(crate) struct WireLine {
    pub(crate) text: String,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Whether more bytes have arrived after this line.
    pub(crate) more_came: bool,
}

/// Bytes and descriptors that have arrived but are not a complete line yet.
#[derive(Debug)]
pub(crate) struct LineReader {
    bytes: Vec<u8>,
    /// The number of leading bytes that are known to hold no newline.
    searched: usize,
    descriptors: Vec<OwnedFd>,
    max_line: usize,
    max_descriptors: usize,
    /// The maximum time for a line, counted from its first byte.
    line_time: Option<Duration>,
    begun: Option<Instant>,
}

impl LineReader {
    pub(crate) fn new(max_line: usize, max_descriptors: usize, line_time: Option<Duration>) -> LineReader {
        let (bytes, descriptors) = (Vec::new(), Vec::new());
        LineReader { bytes, searched: 0, descriptors, max_line, max_descriptors, line_time, begun: None }
    }

    /// Sets the maximum time for a line. For the next line, the time starts now.
    pub(crate) fn limit_line_time(&mut self, line_time: Option<Duration>) {
        self.line_time = line_time;
        self.begun = line_time.map(|_| Instant::now());
    }

    /// Returns the next line, or `None` when the other side has ended. After an error other than [`WireError::NotUtf8`]
    /// the start of the next line is not known.
    pub(crate) fn next(&mut self, socket: BorrowedFd<'_>) -> Result<Option<WireLine>, WireError> {
        loop {
            if let Some(at) = self.bytes[self.searched..].iter().position(|&byte| byte == b'\n') {
                return self.line(self.searched + at).map(Some);
            }
            self.searched = self.bytes.len();
            if self.bytes.len() > self.max_line {
                return Err(WireError::TooLong(self.max_line));
            }
            self.wait(socket)?;
            if self.receive(socket)? == 0 {
                let ended = self.bytes.is_empty();
                return if ended { Ok(None) } else { Err(WireError::CutOff) };
            }
            if self.descriptors.len() > self.max_descriptors {
                self.descriptors.clear();
                return Err(WireError::TooManyDescriptors(self.max_descriptors));
            }
        }
    }

    /// Returns whether a complete line has arrived already.
    pub(crate) fn has_line(&self) -> bool {
        self.bytes[self.searched..].contains(&b'\n')
    }

    fn line(&mut self, end: usize) -> Result<WireLine, WireError> {
        let rest = self.bytes.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        line.truncate(end);
        self.searched = 0;
        self.begun = (!self.bytes.is_empty()).then(Instant::now);
        let (descriptors, more_came) = (take(&mut self.descriptors), !self.bytes.is_empty());
        if line.len() > self.max_line {
            return Err(WireError::TooLong(self.max_line));
        }
        let text = String::from_utf8(line).map_err(|_| WireError::NotUtf8)?;
        Ok(WireLine { text, descriptors, more_came })
    }

    /// Waits for data, or until the current line takes too long.
    fn wait(&self, socket: BorrowedFd<'_>) -> Result<(), WireError> {
        let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        let Some((begun, at_most)) = self.begun.zip(self.line_time) else {
            retry_on_intr(|| poll(&mut fds, None))?;
            return Ok(());
        };
        let left = at_most.saturating_sub(begun.elapsed());
        let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => Err(WireError::TooSlow(at_most)),
            // The remaining time is computed again.
            Err(Errno::INTR) => self.wait(socket),
            ready => Ok(ready.map(drop)?),
        }
    }

    fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<usize, WireError> {
        let mut chunk = [0; CHUNK];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PER_MESSAGE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = retry_on_intr(|| {
            recvmsg(socket, &mut [IoSliceMut::new(&mut chunk)], &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        // The buffer has room for the maximum number of descriptors, but the process may have reached its own limit.
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(WireError::DescriptorsLost);
        }
        self.bytes.extend_from_slice(&chunk[..received.bytes]);
        if received.bytes != 0 {
            self.begun.get_or_insert_with(Instant::now);
        }
        Ok(received.bytes)
    }
}

/// Sends a line, and descriptors with its first byte. Suppresses the signal SIGPIPE.
pub(crate) fn send(socket: impl AsFd, line: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PER_MESSAGE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    let bytes = [line.as_bytes(), b"\n"].concat();
    let mut rest = &bytes[..];
    let mut progress = Instant::now();
    while !rest.is_empty() {
        let sent = match sendmsg(&socket, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL) {
            // The kernel starts a new time limit with each call. Frequent signals, which unloading of modules causes,
            // must not extend the limit for ever.
            Err(Errno::INTR) => match socket_timeout(&socket, Timeout::Send)? {
                Some(limit) if progress.elapsed() >= limit => return Err(Errno::AGAIN.into()),
                _ => continue,
            },
            sent => sent?,
        };
        progress = Instant::now();
        // The descriptors have been sent with the first bytes.
        control.clear();
        rest = &rest[sent..];
    }
    Ok(())
}
