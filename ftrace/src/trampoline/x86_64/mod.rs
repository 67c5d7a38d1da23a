//! The trampolines of x86-64.
//!
//! Another processor has to provide: stubs with their unwind rows ([`STUB`], [`second_half`], [`stub_rows`],
//! `FunctionRecord::stub_code`), the code that a stub leads to ([`graph`], [`record`], [`sets`], [`event_code`]), the
//! entry of the slow path, which preserves all registers that may hold arguments ([`slow_path_entry`],
//! [`VectorWidth`]), the registers that tracers may read ([`CallRegisters`]), thread-local memory, a call on another
//! stack, and time stamps ([`time_stamp`]). Where a call does not push its return address, sites, stubs and the rows of
//! all this code have another form.

// Reading order: a file imports only from the files before it.
mod vector_width;
mod registers;
mod time_stamp;
mod thread_local;
mod aside;
mod stub;
#[macro_use]
mod operands;
mod event;
pub(super) mod record;
pub(super) mod graph;
pub(super) mod sets;
mod slow_path_entry;

pub(super) use aside::{modload_ftrace_aside, registers_of};
pub use event::event_code;
pub use registers::CallRegisters;
pub(super) use slow_path_entry::slow_path_entry;
pub(crate) use stub::{STUB, second_half, stub_rows};
pub(super) use thread_local::local_address;
pub(crate) use time_stamp::{has_even_time_stamps, time_stamp};
pub(crate) use vector_width::VectorWidth;
