//! The socket: who may open it, who takes it over, who removes it.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt,
};
use rustix::process::geteuid;
use thiserror::Error;

use crate::protocol::MAX_CLIENTS;

/// The environment variable that names the socket of the host to talk to.
pub const HOST_VARIABLE: &str = "MODLOAD_HOST";

/// Nothing says where the socket is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("no socket: XDG_RUNTIME_DIR is not set; name one")]
pub struct NoSocket;

/// Where the socket is if nothing else is said: `modload.sock` in `$XDG_RUNTIME_DIR`, else in `/run` for root.
///
/// # Errors
/// [`NoSocket`]: neither.
pub fn default_socket() -> Result<PathBuf, NoSocket> {
    match env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) if !folder.is_empty() => Ok(Path::new(&folder).join("modload.sock")),
        _ if geteuid().is_root() => Ok("/run/modload.sock".into()),
        _ => Err(NoSocket),
    }
}

/// The socket that [`HOST_VARIABLE`] names. Empty, it names none.
#[must_use]
pub fn host_of_environment() -> Option<PathBuf> {
    env::var_os(HOST_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// There is no socket to serve on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Somebody serves there.
    #[error("{}: another host serves there", .0.display())]
    Served(PathBuf),
    /// Something else has that name, and is not touched.
    #[error("{}: there is something there that is not a socket of this user's", .0.display())]
    Occupied(PathBuf),
    /// The system refuses.
    #[error("{}: {what}", .path.display())]
    System {
        /// Where.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// An inherited descriptor is something else.
    #[error("the inherited descriptor is not a listening Unix stream socket")]
    NotASocket,
}

/// A socket that is listened on. Dropping it removes its file, if that is still its own.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    /// `None`: it was inherited, and its file is somebody else's.
    bound: Option<Bound>,
}

#[derive(Debug)]
struct Bound {
    path: PathBuf,
    /// Device and inode of the socket's file.
    identity: Option<(u64, u64)>,
    /// Holds the lock that keeps two servers from taking one socket over. Its file stays: who removes it may remove
    /// it from under a server that has just opened it.
    _lock: File,
}

impl Listener {
    /// Makes a socket with mode 0600, from the moment it exists. One of this user's on which nobody answers is taken
    /// over. A file `PATH.lock` is made, and stays.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(path: &Path) -> Result<Listener, ListenError> {
        let failed = |what| move |errno: Errno| system(path, what, errno.into());
        let address = SocketAddrUnix::new(path).map_err(failed("naming the socket"))?;
        // Where there can be no socket, no lock is left behind.
        our_socket(path)?;
        let lock = take_lock(path)?;
        remove_stale(path, &address)?;
        let socket = stream_socket().map_err(failed("making the socket"))?;
        // The file gets the socket's own mode when it is bound: there is no moment at which others could open it.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed("making the socket private"))?;
        bind(&socket, &address).map_err(failed("binding the socket"))?;
        // From here on its file is removed whatever happens.
        let bound = Bound { path: path.to_owned(), identity: identity(path), _lock: lock };
        let listener = Listener { socket: socket.into(), bound: Some(bound) };
        let backlog = i32::try_from(MAX_CLIENTS).unwrap_or(i32::MAX);
        listen(&listener, backlog).map_err(failed("listening"))?;
        Ok(listener)
    }

    /// A socket that whoever started this process listens on: systemd, say. Who may open it is his affair; who is
    /// served is not. Its file is left alone.
    ///
    /// # Errors
    /// [`ListenError::NotASocket`].
    pub fn inherited(socket: OwnedFd) -> Result<Listener, ListenError> {
        let listens = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(&socket) == Ok(SocketType::STREAM)
            && sockopt::socket_acceptconn(&socket) == Ok(true);
        // No program that a module starts inherits it in its turn.
        if !listens || fcntl_setfd(&socket, FdFlags::CLOEXEC).is_err() {
            return Err(ListenError::NotASocket);
        }
        let socket = UnixListener::from(socket);
        // A client that is gone again must not make the server wait in accept.
        socket.set_nonblocking(true).map_err(|_| ListenError::NotASocket)?;
        Ok(Listener { socket, bound: None })
    }

    /// Where it is, if it was not inherited.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.bound.as_ref().map(|bound| bound.path.as_path())
    }

    pub(crate) fn socket(&self) -> &UnixListener {
        &self.socket
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(bound) = &self.bound
            && bound.identity.is_some()
            && identity(&bound.path) == bound.identity
            && let Err(error) = fs::remove_file(&bound.path)
        {
            tracing::error!(%error, path = %bound.path.display(), "the socket stays");
        }
    }
}

fn system(path: &Path, what: &'static str, source: io::Error) -> ListenError {
    ListenError::System { path: path.to_owned(), what, source }
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

fn take_lock(path: &Path) -> Result<File, ListenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    // Never through a symbolic link, which somebody else may have put there.
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let opened = OpenOptions::new().write(true).create(true).mode(0o600).custom_flags(nofollow).open(&name);
    let lock = opened.map_err(|error| system(Path::new(&name), "making the lock file", error))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(ListenError::Served(path.to_owned())),
        Err(errno) => Err(system(path, "locking its lock file", errno.into())),
    }
}

/// Whether there is a socket of ours. Anything else is not touched.
fn our_socket(path: &Path) -> Result<bool, ListenError> {
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() && file.uid() == geteuid().as_raw() => Ok(true),
        Ok(_) => Err(ListenError::Occupied(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(system(path, "looking at what is there", error)),
    }
}

/// Removes a socket of ours on which nobody answers.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    if !our_socket(path)? {
        return Ok(());
    }
    let probe = stream_socket().map_err(|errno| system(path, "making a socket", errno.into()))?;
    match connect(&probe, address) {
        // Who has a queue that is full is there, too.
        Ok(()) | Err(Errno::AGAIN) => Err(ListenError::Served(path.to_owned())),
        Err(Errno::CONNREFUSED) => {
            tracing::info!(path = %path.display(), "nobody answers: taken over");
            fs::remove_file(path).map_err(|error| system(path, "removing the socket that nobody answers on", error))
        }
        Err(errno) => Err(system(path, "asking whether anybody serves there", errno.into())),
    }
}
