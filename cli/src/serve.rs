//! `modhost serve`: runs a host until it is told to stop.

use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;

use modload_control::{Listener, ServeOutcome, Server, default_socket};

use crate::args::{Format, ModuleArguments, PrintEvents};
use crate::failure::CommandFailure;
use crate::operate_args::Serve;
use crate::progress::Progress;
use crate::run;
use crate::signals;

pub(crate) fn run(arguments: &Serve) -> Result<(), CommandFailure> {
    // Installed before any long step, so that no signal is lost.
    let stop = signals::stop()?;
    let listener = listener(arguments)?;
    let mut builder = run::builder(&arguments.options)?;
    if arguments.allow_force {
        builder = builder.allow_forced_unload();
    }
    let host = Arc::new(builder.build()?);
    // The handles are dropped at once, so that clients can unload these modules.
    let progress = Progress::new(arguments.modules.len(), Format::Text, PrintEvents::Off);
    let load = |module: &ModuleArguments| progress.module(&module.file, || run::load_one(&host, module, &[])).map(drop);
    let loaded = arguments.modules.iter().try_for_each(load);
    drop(progress);
    let served = loaded.and_then(|()| {
        ready(&listener)?;
        Ok(Server::new(host.clone(), run::trust()).serve(&listener, &stop)?)
    });
    // Removes the socket first, so that no client connects to a host that is being cleared.
    drop(listener);
    // Unloads all modules even after a failure, the last one first. Patches must be disabled before, because they hold
    // their modules.
    let disabled = host.disable_patches(run::LEFT_WITHIN);
    let held = host.unload_all();
    let ServeOutcome { unfinished } = served?;
    disabled?;
    if held.is_empty() { Ok(()) } else { Err(CommandFailure::Held { held, unfinished }) }
}

/// Returns the named socket, else the inherited socket, else the default socket.
fn listener(arguments: &Serve) -> Result<Listener, CommandFailure> {
    if let Some(path) = &arguments.socket {
        return Ok(Listener::bind(path)?);
    }
    match run::inherited_socket()? {
        Some(socket) => Ok(Listener::inherited(socket)?),
        None => Ok(Listener::bind(&default_socket()?)?),
    }
}

/// Reports that clients are served from now on: to the user, and to systemd if it asks.
fn ready(listener: &Listener) -> Result<(), CommandFailure> {
    let place = listener.path().map_or_else(|| "the inherited socket".into(), crate::failure::shown);
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on {place}")?;
    stdout.flush()?;
    if let Some(place) = std::env::var_os("NOTIFY_SOCKET") {
        let address = match place.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&place),
        };
        // A failure is ignored, as sd_notify(3) does if the receiver is gone.
        let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(b"READY=1", &address?));
    }
    Ok(())
}
