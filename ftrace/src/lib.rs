//! Function tracing, with Linux's semantics (Documentation/trace/ftrace) and threads for tasks.

#![deny(unsafe_code)]

pub mod trace;
