//! Lines with descriptors over a Unix socket: bounded, and never blocked for long by the other side.

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

/// The most descriptors that Linux passes in one message (`SCM_MAX_FD`).
const PER_MESSAGE: usize = 253;

/// How much is asked for at once, in bytes.
const CHUNK: usize = 16 << 10;

/// A line cannot be had from the other side.
#[derive(Debug, Error)]
pub(crate) enum WireError {
    #[error("a line of more than {0} bytes")]
    TooLong(usize),
    #[error("a line that was not ended within {} seconds", .0.as_secs())]
    TooSlow(Duration),
    #[error("more than {0} descriptors with a line")]
    TooManyDescriptors(usize),
    #[error("descriptors that came with a line are lost: this process can have no more")]
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

/// A line without its newline, and the descriptors that had come when it was read.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) text: String,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Whether anything behind it has come by now.
    pub(crate) more_came: bool,
}

/// What has come and is not a whole line yet.
#[derive(Debug)]
pub(crate) struct Reader {
    bytes: Vec<u8>,
    /// How many of them are known to hold no newline.
    searched: usize,
    descriptors: Vec<OwnedFd>,
    max_line: usize,
    max_descriptors: usize,
    /// How long a line may take from its first byte on.
    line_time: Option<Duration>,
    begun: Option<Instant>,
}

impl Reader {
    pub(crate) fn new(max_line: usize, max_descriptors: usize, line_time: Option<Duration>) -> Reader {
        let (bytes, descriptors) = (Vec::new(), Vec::new());
        Reader { bytes, searched: 0, descriptors, max_line, max_descriptors, line_time, begun: None }
    }

    /// From now on a line may take this long; the next one is begun.
    pub(crate) fn hurry(&mut self, line_time: Option<Duration>) {
        self.line_time = line_time;
        self.begun = line_time.map(|_| Instant::now());
    }

    /// The next line; `None` when the other side has ended. After an error other than [`WireError::NotUtf8`] nothing
    /// can be said of where the next line begins.
    pub(crate) fn next(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Line>, WireError> {
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

    /// Whether the next line is here already.
    pub(crate) fn has_line(&self) -> bool {
        self.bytes[self.searched..].contains(&b'\n')
    }

    fn line(&mut self, end: usize) -> Result<Line, WireError> {
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
        Ok(Line { text, descriptors, more_came })
    }

    /// Sleeps until there is something to be read, or a line that was begun takes too long.
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
            // The time that is left is counted anew.
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
        // There is room for as many as Linux passes, but not always for them in the process.
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

/// Sends a line, and descriptors with its first byte. A signal for a pipe that nobody reads is not wanted.
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
            // The kernel counts a time limit anew in each call. Signals that come all the time, because modules are
            // unloaded all the time, must not put it off for ever.
            Err(Errno::INTR) => match socket_timeout(&socket, Timeout::Send)? {
                Some(limit) if progress.elapsed() >= limit => return Err(Errno::AGAIN.into()),
                _ => continue,
            },
            sent => sent?,
        };
        progress = Instant::now();
        // They have gone with what was sent.
        control.clear();
        rest = &rest[sent..];
    }
    Ok(())
}
