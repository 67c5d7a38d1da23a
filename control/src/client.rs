//! The client of the control socket. It makes one request at a time.

use std::io;
use std::mem::take;
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use modload::trace::Batch;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::protocol::{
    GREETING_TIME, Greeting, MAX_ANSWER, MAX_DESCRIPTORS, Request, TraceRequest, TraceStarted, Traced, VERSION,
};
use crate::wire::{LineReader, WireError, send};

/// A refusal by the server.
#[derive(Clone, PartialEq, Debug, Error)]
#[error("{message}")]
pub struct RequestRefused {
    /// The kind of the refusal, for programs. `docs/protocol.md` lists all kinds.
    pub kind: String,
    /// A sentence for people.
    pub message: String,
    /// More facts about the refusal, by name.
    pub data: Map<String, Value>,
}

/// Why a request to a host failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No host serves this socket.
    #[error("{}: no host serves there", .path.display())]
    Connect {
        /// The path of the socket.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The process that listens on the socket has sent no greeting.
    #[error(
        "{}: no greeting within {} s: either this socket is not a host's, or the host is still loading its first \
         modules; try again later",
        .path.display(),
        .patience.as_secs()
    )]
    Silent {
        /// The path of the socket.
        path: PathBuf,
        /// How long the client has waited.
        patience: Duration,
    },
    /// More files than one request can carry.
    #[error("{0} files, and a host takes {MAX_DESCRIPTORS} at once: merge some with ld -r or ar")]
    TooManyFiles(usize),
    /// The server has refused the request.
    #[error(transparent)]
    Refused(#[from] RequestRefused),
    /// The connection failed.
    #[error("the connection to the host broke")]
    Connection(#[source] io::Error),
    /// The server has closed the connection during the request. Which part of the request it has done is not known.
    #[error("the host went away before it answered")]
    Gone,
    /// The server has sent a line that this client does not understand.
    #[error("the host does not speak version {VERSION} of the protocol: {0}")]
    Protocol(String),
}

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    reader: LineReader,
    next_id: u64,
}

/// A message of a running trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TraceNews {
    /// The trace has begun.
    Began(TraceStarted),
    /// New records. An empty batch means that no later batch has a record older than those received so far.
    Batch(Batch),
}

/// A line of a trace. Exactly one of `trace`, `event`, `ok` and `error` is present.
#[derive(Deserialize)]
struct TraceLine {
    id: Option<u64>,
    trace: Option<Batch>,
    #[serde(default)]
    more: bool,
    event: Option<Value>,
    ok: Option<Traced>,
    error: Option<Value>,
}

#[derive(Serialize)]
struct Numbered<'a> {
    id: u64,
    #[serde(flatten)]
    request: &'a Request,
}

impl Client {
    /// Connects to the server of a socket, and reads the greeting.
    ///
    /// # Errors
    /// [`ClientError`]: no host serves this socket, the server refuses this client, or the server speaks another
    /// version.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        Client::connect_within(path, GREETING_TIME)
    }

    /// Like [`Client::connect`], but waits for the greeting for `patience` instead of [`GREETING_TIME`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect_within(path: &Path, patience: Duration) -> Result<Client, ClientError> {
        let connected = UnixStream::connect(path);
        let stream = connected.map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        let mut client = Client { stream, reader: LineReader::new(MAX_ANSWER, 0, None), next_id: 1 };
        client.reader.limit_line_time(Some(patience));
        let line = match client.line() {
            Err(ClientError::Silent { .. }) => return Err(ClientError::Silent { path: path.to_owned(), patience }),
            line => parse::<Value>(&line?)?,
        };
        client.reader.limit_line_time(None);
        if let Some(error) = line.get("error") {
            return Err(refused(error).into());
        }
        match serde_json::from_value::<Greeting>(line) {
            Ok(Greeting { modload: VERSION, .. }) => Ok(client),
            Ok(other) => Err(ClientError::Protocol(format!("it speaks version {}", other.modload))),
            Err(error) => Err(ClientError::Protocol(error.to_string())),
        }
    }

    /// Makes a request, and passes `files` with it. `event` is called for each event before the answer, with the event
    /// object and a line for people.
    ///
    /// # Errors
    /// [`ClientError`]: the server refuses, closes the connection, or sends another answer than expected.
    pub fn request<A: DeserializeOwned>(
        &mut self,
        request: &Request,
        files: &[BorrowedFd<'_>],
        mut event: impl FnMut(&Value, &str),
    ) -> Result<A, ClientError> {
        if files.len() > MAX_DESCRIPTORS {
            return Err(ClientError::TooManyFiles(files.len()));
        }
        let id = self.ask(request, files)?;
        loop {
            let mut line: Value = parse(&self.line()?)?;
            if let Some(error) = line.get("error") {
                return Err(refused(error).into());
            }
            if line.get("id").and_then(Value::as_u64) != Some(id) {
                return Err(other_request());
            }
            if let Some(happened) = line.get("event") {
                event(happened, line.get("text").and_then(Value::as_str).unwrap_or_default());
                continue;
            }
            let answer = line.get_mut("ok").map(Value::take).unwrap_or_default();
            return serde_json::from_value(answer).map_err(|error| ClientError::Protocol(error.to_string()));
        }
    }

    /// Traces functions until the time in `asked` is over, `stop` becomes readable (or is closed), or `on_news` returns
    /// a break. `on_news` is called with each message. In the first two cases the last batch is received before this
    /// function returns.
    ///
    /// # Errors
    /// [`ClientError`]: the server refuses, closes the connection, or sends another answer than expected.
    pub fn trace(
        mut self,
        asked: &TraceRequest,
        stop: impl AsFd,
        mut on_news: impl FnMut(TraceNews) -> ControlFlow<()>,
    ) -> Result<Traced, ClientError> {
        let id = self.ask(&Request::Trace(asked.clone()), &[])?;
        let mut ending = Ending::NotYet;
        let mut batch = Batch::default();
        loop {
            if ending == Ending::NotYet && self.is_stopped(&stop)? {
                ending = self.end_sending()?;
            }
            let line: TraceLine = parse(&self.line()?)?;
            if let Some(error) = line.error {
                return Err(refused(&error).into());
            }
            if line.id != Some(id) {
                return Err(other_request());
            }
            if let Some(traced) = line.ok {
                return Ok(traced);
            }
            let news = match (line.trace, line.event) {
                (Some(part), _) => {
                    join(&mut batch, part);
                    if line.more {
                        continue;
                    }
                    TraceNews::Batch(take(&mut batch))
                }
                // Other events are for clients that know them.
                (None, event) => match event.map(serde_json::from_value) {
                    Some(Ok(tracing)) => TraceNews::Began(tracing),
                    _ => continue,
                },
            };
            if ending != Ending::BrokenOff && on_news(news).is_break() {
                self.end_sending()?;
                ending = Ending::BrokenOff;
            }
        }
    }

    /// Waits until the server sends something or `stop` becomes readable. Returns whether `stop` is readable.
    fn is_stopped(&self, stop: &impl AsFd) -> Result<bool, ClientError> {
        if self.reader.has_line() {
            return Ok(false);
        }
        let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(&self.stream, PollFlags::IN)];
        retry_on_intr(|| poll(&mut fds, None)).map_err(|errno| ClientError::Connection(errno.into()))?;
        Ok(!fds[0].revents().is_empty())
    }

    /// Ends the client's side of the connection, which tells the server to stop the trace.
    fn end_sending(&self) -> Result<Ending, ClientError> {
        match self.stream.shutdown(Shutdown::Write) {
            // If the server has closed the connection, the trace has ended too, and the lines sent before can still be
            // read.
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(ClientError::Connection(error)),
            _ => Ok(Ending::Stopped),
        }
    }

    /// Sends a request. Returns its id.
    fn ask(&mut self, request: &Request, files: &[BorrowedFd<'_>]) -> Result<u64, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        let text = serde_json::to_string(&Numbered { id, request })
            .map_err(|error| ClientError::Protocol(error.to_string()))?;
        let sent = send(&self.stream, &text, files);
        let closed =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        // A server that has closed the connection may have sent its reason before. No other error has an answer,
        // because the server has not received the request.
        if let Some(error) = sent.err().filter(|error| !closed(error)) {
            return Err(ClientError::Connection(error));
        }
        Ok(id)
    }

    fn line(&mut self) -> Result<String, ClientError> {
        match self.reader.next(self.stream.as_fd()) {
            Ok(Some(line)) => Ok(line.text),
            Ok(None) | Err(WireError::CutOff) => Err(ClientError::Gone),
            Err(WireError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => Err(ClientError::Gone),
            Err(WireError::Io(error)) => Err(ClientError::Connection(error)),
            Err(WireError::TooSlow(patience)) => Err(ClientError::Silent { path: PathBuf::new(), patience }),
            Err(other) => Err(ClientError::Protocol(other.to_string())),
        }
    }
}

/// How a trace ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    NotYet,
    /// The server knows that the trace shall stop. The client waits for the remaining messages.
    Stopped,
    /// The client ignores the remaining messages.
    BrokenOff,
}

/// Appends the next part of a batch.
pub(crate) fn join(batch: &mut Batch, part: Batch) {
    batch.functions.extend(part.functions);
    batch.threads.extend(part.threads);
    batch.records.extend(part.records);
    batch.missed = part.missed;
}

fn parse<T: DeserializeOwned>(line: &str) -> Result<T, ClientError> {
    serde_json::from_str(line).map_err(|error| ClientError::Protocol(error.to_string()))
}

fn other_request() -> ClientError {
    ClientError::Protocol("the id in an answer is not that of the request".into())
}

fn refused(error: &Value) -> RequestRefused {
    let mut data = error.as_object().cloned().unwrap_or_default();
    let mut text = |key| data.remove(key).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
    RequestRefused { kind: text("kind"), message: text("message"), data }
}
