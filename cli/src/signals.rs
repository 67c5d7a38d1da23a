//! SIGTERM and SIGINT as a descriptor that can be waited for.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::low_level::pipe;

use crate::failure::CommandFailure;

/// Returns a descriptor that becomes readable with the first SIGTERM or SIGINT. The second signal ends the process at
/// once, so that an init that never returns cannot block it.
pub(crate) fn stop() -> Result<UnixStream, CommandFailure> {
    register().map_err(CommandFailure::Signals)
}

fn register() -> io::Result<UnixStream> {
    let (stop, signalled) = UnixStream::pair()?;
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // The order matters: at the first signal the shutdown handler still sees an unset flag.
        flag::register_conditional_shutdown(signal, 1, stopping.clone())?;
        flag::register(signal, stopping.clone())?;
    }
    pipe::register(SIGTERM, signalled.try_clone()?)?;
    pipe::register(SIGINT, signalled)?;
    Ok(stop)
}
