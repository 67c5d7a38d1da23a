//! The control socket of a host. Other processes use it to operate the process that holds the modules.
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use std::sync::Arc;
//! use std::thread;
//!
//! use modload::{Host, Trust};
//! use modload_control::protocol::{ModuleListing, Request};
//! use modload_control::{Client, Listener, Server};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let dir = tempfile::tempdir()?;
//!     let path = dir.path().join("app.sock");
//!
//!     // The application has a host, and serves the socket in a thread of its own.
//!     let host = Arc::new(Host::builder().process_symbols().build()?);
//!     // SAFETY: only this user can open the socket, and this user may run any code anyway.
//!     let server = Server::new(host.clone(), unsafe { Trust::new() });
//!     let listener = Listener::bind(&path)?;
//!     let (stop, stopper) = UnixStream::pair()?;
//!     let serving = thread::spawn(move || server.serve(&listener, &stop));
//!
//!     // Usually in another process: `modhost list --host app.sock`.
//!     let listing: ModuleListing = Client::connect(&path)?.request(&Request::List {}, &[], |_, _| {})?;
//!     assert!(listing.modules.is_empty());
//!
//!     // The server stops when `stop` becomes readable, or its other end is closed.
//!     drop(stopper);
//!     assert_eq!(serving.join().expect("the server does not panic")?.unfinished, 0);
//!     Ok(())
//! }
//! ```
//!
//! - [`Server`]: serves the clients of a [`Listener`], each in a thread of its own, until it is told to stop.
//! - [`Listener`]: a socket that only its user can open, or an inherited socket. It replaces a socket file on which no
//!   server listens any more.
//! - [`Client`]: makes requests, and passes files as descriptors.
//! - [`protocol`]: the lines that client and server exchange.
//!
//! This crate runs no module code unless a client asks for it: [`modload::Trust`] is the promise that its clients may.

#![forbid(unsafe_code)]

pub mod protocol;

mod error;
mod details;
mod wire;
mod listen;
mod server;
mod session;
mod operation;
mod patch;
mod trace;
mod client;

pub use client::{Client, ClientError, RequestRefused, TraceNews};
pub use details::{error_details, load_details};
pub use listen::{HOST_VARIABLE, ListenError, Listener, NoSocket, default_socket, host_of_environment};
pub use modload::error::sentence;
pub use server::{ServeError, ServeOutcome, Server};
