//! Serves one client: its requests, one at a time.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use crate::error::RequestRefusal;
use crate::operation::Operation;
use crate::protocol::{Greeting, LINE_TIME, MAX_DESCRIPTORS, MAX_LINE, OPS, Request, VERSION};
use crate::server::ServerState;
use crate::wire::{LineReader, WireError, WireLine, send};

/// Sends answers to a client. After a failed write, sends no more.
#[derive(Clone, Debug)]
pub(crate) struct Answers {
    stream: Arc<UnixStream>,
    gone: Arc<AtomicBool>,
}

impl Answers {
    pub(crate) fn new(stream: Arc<UnixStream>) -> Answers {
        Answers { stream, gone: Arc::new(AtomicBool::new(false)) }
    }

    pub(crate) fn say(&self, line: &Value) {
        // After an incomplete line the client cannot understand any further line.
        if !self.gone.load(Ordering::Relaxed) && send(&self.stream, &line.to_string(), &[]).is_err() {
            self.gone.store(true, Ordering::Relaxed);
        }
    }

    /// Returns whether the client has closed the connection. A client that has only ended its sending side still reads.
    pub(crate) fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let now = poll(&mut fds, Some(&Timespec::default()));
        self.gone.load(Ordering::Relaxed) || now.is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }

    /// Returns the descriptor that becomes readable when the client sends something.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Refuses a client, or a line without a readable request id.
    pub(crate) fn refuse(&self, refusal: &RequestRefusal) {
        self.say(&json!({ "id": null, "error": refusal.data() }));
    }
}

pub(crate) fn greeting() -> Greeting {
    Greeting { modload: VERSION, version: env!("CARGO_PKG_VERSION").into() }
}

/// Serves a client until it closes the connection or sends a line that cannot be read.
pub(crate) fn run(shared: &ServerState, stream: &Arc<UnixStream>) {
    let answers = Answers::new(stream.clone());
    answers.say(&json!(greeting()));
    let mut reader = LineReader::new(MAX_LINE, MAX_DESCRIPTORS, Some(LINE_TIME));
    loop {
        // Between two requests this thread is in no module function, so this is a checkpoint.
        shared.host.checkpoint();
        match reader.next(stream.as_fd()) {
            Ok(Some(line)) => request(shared, &answers, line),
            Ok(None) | Err(WireError::CutOff | WireError::Io(_)) => return,
            Err(error @ WireError::NotUtf8) => answers.refuse(&error.into()),
            Err(error) => return answers.refuse(&error.into()),
        }
        if answers.gone.load(Ordering::Relaxed) {
            return;
        }
    }
}

fn request(shared: &ServerState, answers: &Answers, line: WireLine) {
    let (id, parsed) = match parse(&line.text) {
        Ok((id, parsed)) => (id, parsed),
        Err(refusal) => return answers.refuse(&refusal),
    };
    let operation = Operation { shared, answers, id, more_came: line.more_came };
    let answer = parsed.and_then(|request| {
        let run = AssertUnwindSafe(|| operation.answer(request, line.descriptors));
        // A panic leaves only the request's own state incomplete: the host keeps its state consistent.
        catch_unwind(run).unwrap_or(Err(RequestRefusal::Internal))
    });
    answers.say(&match answer {
        Ok(ok) => json!({ "id": id, "ok": ok }),
        Err(refusal) => json!({ "id": id, "error": refusal.data() }),
    });
}

/// Returns the id of a request, and the request.
fn parse(text: &str) -> Result<(u64, Result<Request, RequestRefusal>), RequestRefusal> {
    let value: Value = serde_json::from_str(text).map_err(|error| RequestRefusal::Malformed(error.to_string()))?;
    let Value::Object(mut fields) = value else {
        return Err(RequestRefusal::Malformed("it is a JSON value of another type".into()));
    };
    let id = fields.remove("id").and_then(|id| id.as_u64()).ok_or(RequestRefusal::NoId)?;
    let version = fields.remove("modload").filter(|version| *version != json!(VERSION));
    if let Some(version) = version {
        return Ok((id, Err(RequestRefusal::Version(version))));
    }
    let op = fields.get("op").and_then(Value::as_str).unwrap_or_default();
    if !OPS.contains(&op) {
        let op = op.to_owned();
        return Ok((id, Err(RequestRefusal::UnknownOp(op))));
    }
    let request = serde_json::from_value(fields.into());
    Ok((id, request.map_err(|error: serde_json::Error| RequestRefusal::BadRequest(error.to_string()))))
}
