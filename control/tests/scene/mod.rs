//! A server in this process, and a client that sends any bytes.

use std::io::{BufRead, BufReader, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use modload::{Host, Trust};
use modload_control::{Client, Listener, ServeOutcome, Server};
use modload_fixtures::{Compiler, Fixture, LONG};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use tempfile::TempDir;

/// Compiles a fixture so that its functions can be traced.
pub(crate) fn object(fixture: &str) -> PathBuf {
    let flags = ["-O2", "-fPIC", "-fvisibility=hidden", "-fpatchable-function-entry=5"];
    Fixture::new(fixture).object(Compiler::Cc, &flags).unwrap()
}

/// A host with a server that runs until this is dropped.
pub(crate) struct Scene {
    pub(crate) dir: TempDir,
    stopper: Option<UnixStream>,
    serving: Option<JoinHandle<ServeOutcome>>,
}

impl Scene {
    pub(crate) fn new() -> Scene {
        let host = Host::builder().process_symbols().allow_forced_unload().build().unwrap();
        Scene::of(Arc::new(host))
    }

    /// Serves an existing host.
    pub(crate) fn of(host: Arc<Host>) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&dir.path().join("host.sock")).unwrap();
        let (stop, stopper) = UnixStream::pair().unwrap();
        // SAFETY: the clients are these tests, which load fixtures and call functions of these.
        let server = Server::new(host, unsafe { Trust::new() });
        let serving = std::thread::spawn(move || server.serve(&listener, &stop).unwrap());
        Scene { dir, stopper: Some(stopper), serving: Some(serving) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("host.sock")
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }

    pub(crate) fn raw(&self) -> Raw {
        Raw::connect(&self.socket())
    }

    pub(crate) fn stop(&mut self) -> Option<ServeOutcome> {
        self.stopper = None;
        self.serving.take().map(|serving| serving.join().unwrap())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A client that sends any bytes.
pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Raw {
    pub(crate) fn connect(path: &Path) -> Raw {
        let stream = UnixStream::connect(path).unwrap();
        // If the server sends nothing, the test fails instead of waiting for ever.
        stream.set_read_timeout(Some(LONG)).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        let mut raw = Raw { stream, lines };
        let greeting = raw.line().expect("a greeting");
        assert!(greeting["modload"] == 1 || greeting["error"].is_object(), "{greeting}");
        raw
    }

    /// Sends bytes unchanged, and descriptors with the first of them. Returns `false` if the server has closed the
    /// connection.
    pub(crate) fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let Ok(sent) = sendmsg(&self.stream, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL) else {
                return false;
            };
            control.clear();
            rest = &rest[sent..];
        }
        true
    }

    /// Returns the next line, or `None` if the server has closed the connection.
    pub(crate) fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }
}
