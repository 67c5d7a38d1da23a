//! The server. It accepts clients and limits what each of them can use.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use modload::{Host, Trust};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use thiserror::Error;

use crate::error::RequestRefusal;
use crate::listen::Listener;
use crate::protocol::{FINISH_TIME, MAX_CLIENTS, WRITE_TIME};
use crate::session::{self, Answers};

/// A server for the clients of a socket.
#[derive(Debug)]
pub struct Server {
    shared: Arc<ServerState>,
}

/// The state that all sessions share.
#[derive(Debug)]
pub(crate) struct ServerState {
    pub(crate) host: Arc<Host>,
    pub(crate) trust: Trust,
    stopping: AtomicBool,
    clients: Mutex<Clients>,
    /// Notified when a client is gone.
    gone: Condvar,
}

#[derive(Default, Debug)]
struct Clients {
    streams: HashMap<u64, Arc<UnixStream>>,
    next: u64,
}

/// The server cannot continue.
#[derive(Debug, Error)]
#[error("the server could not wait for clients")]
pub struct ServeError(#[from] io::Error);

/// The result of [`Server::serve`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServeOutcome {
    /// The number of clients whose request was still being processed [`FINISH_TIME`] after the server was told to stop.
    /// The threads of these requests still exist and still hold the modules they call.
    pub unfinished: usize,
}

/// How long the server pauses if it has no descriptors left for another client.
const PAUSE: Duration = Duration::from_millis(50);

impl Server {
    /// Makes a server for a host. Its clients run as this process's user or as root. `trust` is the promise that they
    /// load and call only what [`Trust`] allows.
    #[must_use]
    pub fn new(host: Arc<Host>, trust: Trust) -> Server {
        let (stopping, clients, gone) = (AtomicBool::new(false), Mutex::default(), Condvar::new());
        Server { shared: Arc::new(ServerState { host, trust, stopping, clients, gone }) }
    }

    /// Serves until `stop` becomes readable (or is closed). Then accepts no more clients, and waits up to
    /// [`FINISH_TIME`] for the requests that are being processed. Modules stay loaded; the caller decides whether to
    /// unload them.
    ///
    /// # Errors
    /// [`ServeError`]: waiting for clients failed.
    pub fn serve(self, listener: &Listener, stop: impl AsFd) -> Result<ServeOutcome, ServeError> {
        loop {
            let mut fds = [PollFd::new(&stop, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
            retry_on_intr(|| poll(&mut fds, None)).map_err(io::Error::from)?;
            // Between two clients this thread is in no module function, so this is a checkpoint.
            self.shared.host.checkpoint();
            let [stop, _] = fds;
            if !stop.revents().is_empty() {
                return Ok(self.finish());
            }
            match listener.socket().accept() {
                Ok((stream, _)) => self.admit(stream),
                // The client is gone again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%error, "a client could not be accepted");
                    thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Starts a session for a client, or sends the reason why not.
    fn admit(&self, stream: UnixStream) {
        if let Err(refusal) = self.start(&stream) {
            tracing::warn!(%refusal, "a client was refused");
            Answers::new(Arc::new(stream)).refuse(&refusal);
        }
    }

    fn start(&self, stream: &UnixStream) -> Result<(), RequestRefusal> {
        let system = |error| RequestRefusal::Wire(crate::wire::WireError::Io(error));
        // Reads need no limit here: each waits for its data with a limit of its own.
        stream.set_write_timeout(Some(WRITE_TIME)).map_err(system)?;
        permit(stream)?;
        let stream = Arc::new(stream.try_clone().map_err(system)?);
        let id = self.shared.enter(stream.clone())?;
        let shared = self.shared.clone();
        let session = move || {
            let left = SessionGuard { shared: &shared, id };
            session::run(&shared, &stream);
            drop(left);
        };
        let started = thread::Builder::new().name("modload-session".into()).spawn(session);
        started.map(drop).map_err(|error| {
            self.shared.leave(id);
            system(error)
        })
    }

    /// Waits for the requests that are being processed.
    fn finish(&self) -> ServeOutcome {
        self.shared.stopping.store(true, Ordering::Release);
        let mut clients = self.shared.clients();
        // Ends the sessions that wait for a client's next request.
        for stream in clients.streams.values() {
            let _ = stream.shutdown(Shutdown::Read);
        }
        let until = Instant::now() + FINISH_TIME;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if clients.streams.is_empty() || left.is_zero() {
                return ServeOutcome { unfinished: clients.streams.len() };
            }
            clients = self.shared.gone.wait_timeout(clients, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A client that can load a file can run code as this process's user. So only this user is allowed, and root, who can
/// run such code anyway.
fn permit(stream: &UnixStream) -> Result<(), RequestRefusal> {
    let peer = socket_peercred(stream).map_err(|errno| RequestRefusal::Wire(errno.into()))?;
    if peer.uid == geteuid() || peer.uid.is_root() {
        return Ok(());
    }
    Err(RequestRefusal::NotPermitted { uid: peer.uid.as_raw() })
}

impl ServerState {
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, stream: Arc<UnixStream>) -> Result<u64, RequestRefusal> {
        let mut clients = self.clients();
        if clients.streams.len() >= MAX_CLIENTS {
            return Err(RequestRefusal::TooManyClients);
        }
        let id = clients.next;
        clients.next += 1;
        clients.streams.insert(id, stream);
        Ok(id)
    }

    fn leave(&self, id: u64) {
        self.clients().streams.remove(&id);
        self.gone.notify_all();
    }
}

/// Removes a session from the table when it ends, also by a panic.
struct SessionGuard<'a> {
    shared: &'a ServerState,
    id: u64,
}

impl Drop for SessionGuard<'_> {
    fn drop(&mut self) {
        self.shared.leave(self.id);
    }
}
