//! The socket: its permissions, and the creation, replacement and removal of its file.

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

/// The environment variable with the path of the host's socket.
pub const HOST_VARIABLE: &str = "MODLOAD_HOST";

/// No path for the socket is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the path of the control socket is not known: XDG_RUNTIME_DIR is not set; name a socket")]
pub struct NoSocket;

/// Returns the default path of the socket: `modload.sock` in `$XDG_RUNTIME_DIR`, or in `/run` for root.
///
/// # Errors
/// [`NoSocket`]: XDG_RUNTIME_DIR is not set, and the user is not root.
pub fn default_socket() -> Result<PathBuf, NoSocket> {
    match env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) if !folder.is_empty() => Ok(Path::new(&folder).join("modload.sock")),
        _ if geteuid().is_root() => Ok("/run/modload.sock".into()),
        _ => Err(NoSocket),
    }
}

/// Returns the path in [`HOST_VARIABLE`], or `None` if the variable is not set or empty.
#[must_use]
pub fn host_of_environment() -> Option<PathBuf> {
    env::var_os(HOST_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The server has no socket to listen on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another server listens on this socket.
    #[error("{}: another host serves there", .0.display())]
    Served(PathBuf),
    /// Another file has this path. It is left unchanged.
    #[error("{}: a file exists there that is not a socket of this user; remove it or name another path", .0.display())]
    Occupied(PathBuf),
    /// A system call has failed.
    #[error("{}: {what}", .path.display())]
    System {
        /// The path of the socket.
        path: PathBuf,
        /// The operation that failed.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// An inherited descriptor is not a listening socket.
    #[error("the inherited descriptor is not a listening Unix stream socket")]
    NotASocket,
}

/// A listening socket. Dropping it removes the socket's file, unless the file has been replaced.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    /// `None` if the socket was inherited. Then its file belongs to another process.
    bound: Option<Bound>,
}

#[derive(Debug)]
struct Bound {
    path: PathBuf,
    /// The device and inode numbers of the socket's file.
    identity: Option<(u64, u64)>,
    /// The lock that keeps two servers from replacing the same socket file. The lock file is never removed: another
    /// server may have opened it already, and would lock a file that no longer has a name.
    _lock: File,
}

impl Listener {
    /// Makes a socket whose mode is 0600 from the moment it exists. Replaces a socket file of this user on which no
    /// server listens. Creates a file `PATH.lock`, which is not removed.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(path: &Path) -> Result<Listener, ListenError> {
        let failed = |what| move |errno: Errno| system(path, what, errno.into());
        let address = SocketAddrUnix::new(path).map_err(failed("naming the socket"))?;
        // Checked before the lock file is created, so that no lock file is left behind where no socket can be.
        our_socket(path)?;
        let lock = take_lock(path)?;
        remove_stale(path, &address)?;
        let socket = stream_socket().map_err(failed("making the socket"))?;
        // The socket's own mode becomes the mode of the file when it is bound, so that other users can never open it.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed("making the socket private"))?;
        bind(&socket, &address).map_err(failed("binding the socket"))?;
        // From here on, dropping the listener removes the file.
        let bound = Bound { path: path.to_owned(), identity: identity(path), _lock: lock };
        let listener = Listener { socket: socket.into(), bound: Some(bound) };
        let backlog = i32::try_from(MAX_CLIENTS).unwrap_or(i32::MAX);
        listen(&listener, backlog).map_err(failed("listening"))?;
        Ok(listener)
    }

    /// Takes a listening socket from the process that started this one, for example systemd. That process decides which
    /// users may open the socket; this server still decides which users it serves. The socket's file is left unchanged.
    ///
    /// # Errors
    /// [`ListenError::NotASocket`].
    pub fn inherited(socket: OwnedFd) -> Result<Listener, ListenError> {
        let listens = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(&socket) == Ok(SocketType::STREAM)
            && sockopt::socket_acceptconn(&socket) == Ok(true);
        // Programs that a module starts must not inherit the socket.
        if !listens || fcntl_setfd(&socket, FdFlags::CLOEXEC).is_err() {
            return Err(ListenError::NotASocket);
        }
        let socket = UnixListener::from(socket);
        // The socket is not blocking, so that the server does not hang in accept if a client is gone again.
        socket.set_nonblocking(true).map_err(|_| ListenError::NotASocket)?;
        Ok(Listener { socket, bound: None })
    }

    /// Returns the path of the socket, or `None` if it was inherited.
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
            tracing::error!(%error, path = %bound.path.display(), "the socket's file could not be removed");
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
    // Does not follow a symbolic link, which another user may have placed there.
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let opened = OpenOptions::new().write(true).create(true).mode(0o600).custom_flags(nofollow).open(&name);
    let lock = opened.map_err(|error| system(Path::new(&name), "making the lock file", error))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(ListenError::Served(path.to_owned())),
        Err(errno) => Err(system(path, "locking its lock file", errno.into())),
    }
}

/// Returns whether a socket of this user has this path. Any other file is an error and is left unchanged.
fn our_socket(path: &Path) -> Result<bool, ListenError> {
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() && file.uid() == geteuid().as_raw() => Ok(true),
        Ok(_) => Err(ListenError::Occupied(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(system(path, "examining the file there", error)),
    }
}

/// Removes a socket file of this user on which no server listens.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    if !our_socket(path)? {
        return Ok(());
    }
    let probe = stream_socket().map_err(|errno| system(path, "making a socket", errno.into()))?;
    match connect(&probe, address) {
        // A server whose queue of connections is full exists too.
        Ok(()) | Err(Errno::AGAIN) => Err(ListenError::Served(path.to_owned())),
        Err(Errno::CONNREFUSED) => {
            tracing::info!(path = %path.display(), "no server listens on this socket file: it is replaced");
            fs::remove_file(path).map_err(|error| system(path, "removing the unused socket file", error))
        }
        Err(errno) => Err(system(path, "checking whether a server listens there", errno.into())),
    }
}
