//! SIGTERM and SIGINT, as something that can be waited for.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::low_level::pipe;

use crate::failure::Failure;

/// Becomes readable with the first SIGTERM or SIGINT. The second one ends the process at once: an init that never returns
/// must not keep it.
pub(crate) fn stop() -> Result<UnixStream, Failure> {
    register().map_err(Failure::Signals)
}

fn register() -> io::Result<UnixStream> {
    let (stop, signalled) = UnixStream::pair()?;
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the first one only sets the flag.
        flag::register_conditional_shutdown(signal, 1, stopping.clone())?;
        flag::register(signal, stopping.clone())?;
    }
    pipe::register(SIGTERM, signalled.try_clone()?)?;
    pipe::register(SIGINT, signalled)?;
    Ok(stop)
}
