//! The control socket of a host: how a process that holds modules is operated from others.
//!
//! ```no_run
//! use std::os::unix::net::UnixStream;
//! use std::sync::Arc;
//!
//! use modload::{Host, Trust};
//! use modload_control::{Listener, Server};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let host = Arc::new(Host::builder().process_symbols().build()?);
//!     // SAFETY: the socket is this user's alone, who runs what code he likes in any case.
//!     let trust = unsafe { Trust::new() };
//!     let listener = Listener::bind("/run/user/1000/app.sock".as_ref())?;
//!     // Whatever becomes readable when it is to stop: here nothing ever does.
//!     let (stop, _stopper) = UnixStream::pair()?;
//!     Server::new(host, trust).serve(&listener, &stop)?;
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
mod client;

pub use client::{Client, ClientError, Refused};
pub use details::{error_details, load_details};
pub use error::sentence;
pub use listen::{HOST_VARIABLE, ListenError, Listener, NoSocket, default_socket};
pub use server::{Ended, ServeError, Server};
