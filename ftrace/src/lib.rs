//! Function tracing, with Linux's semantics (Documentation/trace/ftrace) and threads for tasks.
//!
//! Functions that were compiled for it begin with a NOP, which costs nothing, and which becomes a call of a tracer, or of code that
//! records the call, when somebody looks.
//!
//! - [`Ftrace`]: the first subscriber of both chains: what it knows of a host's modules, and who traces them.
//! - [`Tracer`], [`Call`], [`Registers`]: hears of calls. [`Redirect`]: says where they go on.
//! - [`Filter`], [`Pattern`]: which functions, by module and name; in force for modules that are not loaded yet, too.
//! - [`TraceOptions`], [`FunctionTrace`]: records calls, or entries and returns, of all threads; told in [`trace::Batch`]es.
//! - [`Traceable`]: which functions can be traced, and why others cannot.

#![deny(unsafe_code)]

pub mod render;
pub mod trace;
mod error;
mod filter;
mod clock;
mod trampoline;
mod stubs;
mod sites;
mod table;
mod switch;
mod divert;
mod recording;
mod subscriber;
mod tracing;

pub use divert::{Divert, behind, divert, divert_chosen, divert_staged, divert_unheld, redirected, untraceable};
pub use error::TraceError;
pub use filter::{BadPattern, Filter, Pattern};
pub use recording::{FunctionTrace, Mode, TraceOptions};
pub use sites::Traceable;
pub use tracing::{Ftrace, HOST, Tracing, set_trap_mask, sweep};
pub use trampoline::call::{Call, Redirect, Redirecting, Tracer};
pub use trampoline::event::{Event, event_code, on_event};
pub use trampoline::host::HostFunction;
pub use trampoline::sets::Registers;
