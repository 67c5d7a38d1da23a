//! Function tracing, with Linux's semantics (Documentation/trace/ftrace) and threads for tasks.
//!
//! Functions that were compiled for tracing begin with a NOP, which costs nothing. When a function is traced, the NOP
//! becomes a call of a tracer, or of code that records the call.
//!
//! - [`Ftrace`]: the first subscriber of both chains. Knows the functions of a host's modules, and their tracers.
//! - [`Tracer`], [`Call`], [`CallRegisters`]: a tracer is notified of calls. [`Redirect`]: changes the target of calls.
//! - [`Filter`], [`Pattern`]: select functions by module and name, also in modules that are loaded later.
//! - [`TraceOptions`], [`FunctionTrace`]: record calls, or entries and returns, of all threads. The result is
//!   [`trace::Batch`]es.
//! - [`Traceable`]: the functions that can be traced, and the reasons for which others cannot.

#![deny(unsafe_code)]

pub mod render;
pub mod trace;
#[cfg(target_arch = "x86_64")]
mod x86_64;
mod error;
mod filter;
mod clock;
mod trampoline;
mod stubs;
mod sites;
mod identity;
mod running;
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
pub use trampoline::event::StubEvent;
pub use trampoline::event_hook::on_event;
pub use trampoline::host::HostFunction;
pub use trampoline::{CallRegisters, event_code};
