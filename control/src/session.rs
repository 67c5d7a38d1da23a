//! One client: its requests, one after the other.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use crate::error::Refusal;
use crate::operation::Operation;
use crate::protocol::{Greeting, LINE_TIME, MAX_DESCRIPTORS, MAX_LINE, OPS, Request, VERSION};
use crate::server::Shared;
use crate::wire::{Line, Reader, WireError, send};

/// Where a client hears of its request. One that does not listen any more is spoken to no more.
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
        // After a line that was cut off no other can be understood.
        if !self.gone.load(Ordering::Relaxed) && send(&self.stream, &line.to_string(), &[]).is_err() {
            self.gone.store(true, Ordering::Relaxed);
        }
    }

    /// Whether nobody is left to answer. A client that has only ended its side still is.
    pub(crate) fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let now = poll(&mut fds, Some(&Timespec::default()));
        self.gone.load(Ordering::Relaxed) || now.is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }

    /// For who wants to wait until the client says something.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Refuses a client, or a line of which no request's number can be told.
    pub(crate) fn refuse(&self, refusal: &Refusal) {
        self.say(&json!({ "id": null, "error": refusal.data() }));
    }
}

pub(crate) fn greeting() -> Greeting {
    Greeting { modload: VERSION, version: env!("CARGO_PKG_VERSION").into() }
}

/// Serves a client until it goes, or says what cannot be understood.
pub(crate) fn run(shared: &Shared, stream: &Arc<UnixStream>) {
    let answers = Answers::new(stream.clone());
    answers.say(&json!(greeting()));
    let mut reader = Reader::new(MAX_LINE, MAX_DESCRIPTORS, Some(LINE_TIME));
    loop {
        // Between two requests this thread is in nobody's functions.
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

fn request(shared: &Shared, answers: &Answers, line: Line) {
    let (id, parsed) = match parse(&line.text) {
        Ok((id, parsed)) => (id, parsed),
        Err(refusal) => return answers.refuse(&refusal),
    };
    let operation = Operation { shared, answers, id, more_came: line.more_came };
    let answer = parsed.and_then(|request| {
        let run = AssertUnwindSafe(|| operation.answer(request, line.descriptors));
        // What a panic leaves half done is the request's own: the host keeps itself in order.
        catch_unwind(run).unwrap_or(Err(Refusal::Internal))
    });
    answers.say(&match answer {
        Ok(ok) => json!({ "id": id, "ok": ok }),
        Err(refusal) => json!({ "id": id, "error": refusal.data() }),
    });
}

/// The number of a request, and what it asks.
fn parse(text: &str) -> Result<(u64, Result<Request, Refusal>), Refusal> {
    let value: Value = serde_json::from_str(text).map_err(|error| Refusal::Malformed(error.to_string()))?;
    let Value::Object(mut fields) = value else { return Err(Refusal::Malformed("it is another value".into())) };
    let id = fields.remove("id").and_then(|id| id.as_u64()).ok_or(Refusal::NoId)?;
    let version = fields.remove("modload").filter(|version| *version != json!(VERSION));
    if let Some(version) = version {
        return Ok((id, Err(Refusal::Version(version))));
    }
    let op = fields.get("op").and_then(Value::as_str).unwrap_or_default();
    if !OPS.contains(&op) {
        let op = op.to_owned();
        return Ok((id, Err(Refusal::UnknownOp(op))));
    }
    let request = serde_json::from_value(fields.into());
    Ok((id, request.map_err(|error: serde_json::Error| Refusal::BadRequest(error.to_string()))))
}
