//! Loads, calls and unloads. The only file of the commands with unsafe code: a user who names a file on the command
//! line asks for its code to be run.
#![expect(unsafe_code, reason = "loading a file runs its code, and --call names a function's type")]

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use modload::file::{ModuleFile, SIZE_LIMIT};
use modload::inspect::Catalog;
use modload::timeline::{EventKind, Recording, Timeline};
use modload::{Host, HostBuilder, Image, Input, Module, Trust};

use crate::args::{LoadCommand, ModuleArguments, PrintEvents};
use crate::call::CallOption;
use crate::failure::{CommandFailure, tell};
use crate::host_options::HostOptions;
use crate::output::CommandOutput;
use crate::progress::Progress;
use crate::trace_embedded::Embedded;

/// How long threads may take to leave the code of patches, when all patches are disabled at the end.
pub(crate) const LEFT_WITHIN: Duration = Duration::from_secs(10);

/// Runs `modload FILE ..`.
pub(crate) fn load(
    load: &LoadCommand,
    options: &HostOptions,
    output: &mut CommandOutput,
) -> Result<(), CommandFailure> {
    let host = builder(options)?.build()?;
    let mut session = Session { recording: host.record(), printed: 0, warned: 0, trace: load.trace };
    // Begins before the loads, so that the functions which constructors and init call are traced too.
    let functions = Embedded::begin(&host, &load.functions, load.format)?;
    let mut modules = Vec::new();
    let in_order = match &load.deps {
        None => load.modules.clone(),
        Some(folder) => with_deps(folder, &load.modules)?.into_iter().map(|(_, module)| module).collect(),
    };
    let progress = Progress::new(in_order.len(), load.format, load.trace);
    let mut result = in_order.iter().try_for_each(|arguments| {
        modules.push(progress.module(&arguments.file, || load_one(&host, arguments, &load.calls))?);
        Ok(())
    });
    drop(progress);
    session.print(output)?;
    if result.is_ok() {
        result = load.explain.iter().try_for_each(|function| explain(&host, &modules, &in_order, function, output));
    }
    if result.is_ok() {
        result = load.calls.iter().try_for_each(|call| make(&modules, call, output));
    }
    if let Some(functions) = functions {
        result = result.and(functions.end(output));
    }
    // Unloads all modules even after a failure, the last one first. Patches must be disabled before, because they hold
    // their modules.
    result = result.and(host.disable_patches(LEFT_WITHIN).map(drop).map_err(CommandFailure::from));
    for module in modules.into_iter().rev() {
        let unloaded = module.unload().map_err(CommandFailure::from);
        result = result.and(unloaded);
    }
    session.print(output)?;
    output.flush()?;
    result
}

/// Returns the named modules and all modules that they need, by name and as files, in load order.
pub(crate) fn with_deps(
    folder: &Path,
    named: &[ModuleArguments],
) -> Result<Vec<(String, ModuleArguments)>, CommandFailure> {
    let catalog = Catalog::read(folder)?;
    let names: Vec<String> = named.iter().map(|module| module.file.to_string_lossy().into_owned()).collect();
    let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    let order = catalog.order(&wanted)?;
    let params = |name: &str| {
        let given = names.iter().zip(named).filter(|(wanted, _)| catalog.named(wanted).contains(&name));
        given.flat_map(|(_, module)| module.params.clone()).collect()
    };
    let module = |(name, path): (&str, &Path)| {
        (name.to_owned(), ModuleArguments { name: None, file: path.into(), others: Vec::new(), params: params(name) })
    };
    Ok(order.into_iter().map(module).collect())
}

/// Reads the files of a link unit. Returns them with the stem of the last file.
pub(crate) fn read<'a>(files: impl Iterator<Item = &'a Path>) -> Result<(Vec<Input<'static>>, String), CommandFailure> {
    let mut inputs = Vec::new();
    let mut stem = String::new();
    for file in files {
        let read = ModuleFile::read(file, SIZE_LIMIT);
        let read = read.map_err(|source| CommandFailure::Read { file: file.to_owned(), source })?;
        stem.clone_from(&read.stem);
        inputs.push(read.into_input());
    }
    Ok((inputs, stem))
}

/// Explains a function of the first module that has it, as it is linked with the other loaded modules.
fn explain(
    host: &Host,
    modules: &[Module],
    loaded: &[ModuleArguments],
    function: &str,
    output: &mut CommandOutput,
) -> Result<(), CommandFailure> {
    let mut named = modules.iter().zip(loaded).filter(|(module, _)| module.symbol_info(function).is_some());
    let (_, arguments) = named.next().ok_or_else(|| CommandFailure::NoSymbol(function.to_owned()))?;
    let files: Vec<_> = arguments.files().map(Path::to_owned).collect();
    crate::explain::show(host, arguments.name.as_deref(), &files, function, output)
}

/// Returns a builder of a host with these options.
pub(crate) fn builder(options: &HostOptions) -> Result<HostBuilder, CommandFailure> {
    // SAFETY: the user of this command asked for the code of these libraries to be run.
    let open = |builder: HostBuilder, library| unsafe { builder.library(library) };
    Ok(options.libraries().iter().try_fold(options.builder()?, open)?)
}

/// Loads files as one module into a host of this process. Members of archives are linked in if a call needs them.
pub(crate) fn load_one(
    host: &Host,
    arguments: &ModuleArguments,
    calls: &[CallOption],
) -> Result<Module, CommandFailure> {
    let ModuleArguments { name, file, params, .. } = arguments;
    let (inputs, stem) = read(arguments.files())?;
    // SAFETY: the user of this command asked for the code of these files to be run.
    let image = unsafe { Image::trusted_unit(inputs) }.named(name.clone().unwrap_or(stem));
    let image = params.iter().fold(image, |image, param| image.param(param));
    let image = calls.iter().fold(image, |image, call| image.want(&call.symbol));
    host.load(&image).map_err(|source| CommandFailure::Load { file: file.clone(), source })
}

/// Makes a call in the first module that has the symbol.
pub(crate) fn make(modules: &[Module], call: &CallOption, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let has = |module: &&Module| module.symbol_info(&call.symbol).is_some();
    let module = modules.iter().find(has).ok_or_else(|| CommandFailure::NoSymbol(call.symbol.clone()))?;
    // SAFETY: the user of this command states that the function takes these integers.
    let result = unsafe { module.call(&call.symbol, &call.arguments)? };
    Ok(output.call(module.name(), call, &call.result.value(result))?)
}

/// Makes the promise that clients of the host's socket are trusted.
pub(crate) fn trust() -> Trust {
    // SAFETY: the server serves only this process's user and root, who can run any code as this user anyway. A client
    // that names a file or a function asks for its code to be run.
    unsafe { Trust::new() }
}

/// Returns the socket that systemd passes, as `sd_listen_fds(3)` does. Removes the environment variables, so that
/// neither this process nor its children find the socket again.
pub(crate) fn inherited_socket() -> Result<Option<OwnedFd>, CommandFailure> {
    const FIRST: i32 = 3;
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u32>().ok());
    let (pid, count) = (number("LISTEN_PID"), number("LISTEN_FDS"));
    if pid != Some(std::process::id()) {
        return Ok(None);
    }
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        // SAFETY: no other thread has been started yet.
        unsafe { std::env::remove_var(name) };
    }
    let is_open = std::fs::symlink_metadata(format!("/proc/self/fd/{FIRST}")).is_ok();
    match count {
        None | Some(0) => Ok(None),
        // SAFETY: the descriptor is open, and systemd has passed it to this process for this purpose only.
        Some(1) if is_open => Ok(Some(unsafe { OwnedFd::from_raw_fd(FIRST) })),
        Some(1) => Err(CommandFailure::Inherited("it is not open; start this command by systemd, or use --socket")),
        Some(_) => Err(CommandFailure::Inherited("there are several, but only one socket can be served")),
    }
}

/// Returns an image of bytes that are built into this program.
pub(crate) fn own(bytes: &'static [u8]) -> Image<'static> {
    // SAFETY: the bytes are built from this project's own fixtures.
    unsafe { Image::trusted(bytes) }
}

/// A recording of events, and how much of it has been printed.
pub(crate) struct Session {
    pub(crate) recording: Recording,
    pub(crate) printed: usize,
    pub(crate) warned: usize,
    pub(crate) trace: PrintEvents,
}

impl Session {
    /// Prints only the order in which subscribers were called, for the new events.
    pub(crate) fn print_order(&mut self, output: &mut CommandOutput) -> Result<(), CommandFailure> {
        let timeline = self.recording.so_far();
        let new = Timeline { events: timeline.events.get(self.printed..).unwrap_or_default().to_vec() };
        self.printed = timeline.events.len();
        output.timeline(&new.order(), 0)?;
        Ok(())
    }

    /// Skips the new events.
    pub(crate) fn skip(&mut self) {
        self.printed = self.recording.so_far().events.len();
    }

    /// Prints the new events: the timeline with `--trace`, otherwise only the warnings.
    pub(crate) fn print(&mut self, output: &mut CommandOutput) -> Result<(), CommandFailure> {
        let timeline = self.recording.so_far();
        match self.trace {
            PrintEvents::On => self.printed = output.timeline(&timeline, self.printed)?,
            PrintEvents::Off => self.warned = warn(&timeline, self.warned),
        }
        Ok(())
    }
}

fn warn(timeline: &Timeline, from: usize) -> usize {
    for event in timeline.events.iter().skip(from) {
        if let EventKind::Warning { message } = &event.kind {
            tell(&format!("warning: {}: {message}", event.module));
        }
    }
    timeline.events.len()
}
