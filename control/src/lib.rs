//! The control socket of a host: how a process that holds modules is operated from others.
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use std::sync::Arc;
//! use std::thread;
//!
//! use modload::{Host, Trust};
//! use modload_control::protocol::{Listing, Request};
//! use modload_control::{Client, Listener, Server};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let dir = tempfile::tempdir()?;
//!     let path = dir.path().join("app.sock");
//!
//!     // The application has a host, and serves it beside what it does itself.
//!     let host = Arc::new(Host::builder().process_symbols().build()?);
//!     // SAFETY: the socket is this user's alone, who runs what code he likes in any case.
//!     let server = Server::new(host.clone(), unsafe { Trust::new() });
//!     let listener = Listener::bind(&path)?;
//!     let (stop, stopper) = UnixStream::pair()?;
//!     let serving = thread::spawn(move || server.serve(&listener, &stop));
//!
//!     // From another process, as a rule: `modhost list --host app.sock`.
//!     let listing: Listing = Client::connect(&path)?.request(&Request::List {}, &[], |_, _| {})?;
//!     assert!(listing.modules.is_empty());
//!
//!     // It ends when `stop` becomes readable, or its other end is closed.
//!     drop(stopper);
//!     assert_eq!(serving.join().expect("the server does not panic")?.unfinished, 0);
//!     Ok(())
//! }
//! ```
//!
//! - [`Server`]: serves the clients of a [`Listener`], each in a thread of its own, until it is told to stop.
//! - [`Listener`]: a socket that only its user can open, or one that was inherited; takes over what nobody answers on.
//! - [`Client`]: makes requests, and passes files as descriptors.
//! - [`protocol`]: what is said, line by line.
//!
//! This crate runs nothing of its own accord: [`modload::Trust`] is the promise that its clients may.

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

pub use client::{Client, ClientError, Refused, Told};
pub use details::{error_details, load_details};
pub use listen::{HOST_VARIABLE, ListenError, Listener, NoSocket, default_socket, host_of_environment};
pub use modload::error::sentence;
pub use server::{Ended, ServeError, Server};
