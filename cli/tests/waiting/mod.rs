//! Waiting for other processes.

pub(crate) use modload_fixtures::until;
