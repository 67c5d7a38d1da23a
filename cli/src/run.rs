//! Loads, calls and unloads. The one file of the commands with unsafe code: who names a file on the command line asks
//! for its code to be run.
#![expect(unsafe_code, reason = "loading a file runs its code, and --call names a function's type")]

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use modload::file::{ModuleFile, SIZE_LIMIT};
use modload::inspect::Catalog;
use modload::timeline::{EventKind, Recording, Timeline};
use modload::{Host, Image, Input, Module, Trust};

use crate::args::{Load, ModuleArguments, Trace};
use crate::call::Call;
use crate::failure::{Failure, tell};
use crate::host_options::HostOptions;
use crate::output::Output;
use crate::progress::Progress;
use crate::trace_embedded::Embedded;

/// How long threads may take to leave what patches have put in place, when all patches are disabled at the end.
pub(crate) const LEFT_WITHIN: Duration = Duration::from_secs(10);

/// `modload FILE ..`.
pub(crate) fn load(load: &Load, options: &HostOptions, output: &mut Output) -> Result<(), Failure> {
    let host = options.builder()?.build()?;
    let mut session = Session { recording: host.record(), printed: 0, warned: 0, trace: load.trace };
    // What constructors and init call is traced, too.
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
    // Whatever happened, what was loaded goes, the last one first. Patches hold their modules.
    result = result.and(host.disable_patches(LEFT_WITHIN).map(drop).map_err(Failure::from));
    for module in modules.into_iter().rev() {
        let unloaded = module.unload().map_err(Failure::from);
        result = result.and(unloaded);
    }
    session.print(output)?;
    output.flush()?;
    result
}

/// The modules named and all that they need, by name and as files, in the order in which they load.
pub(crate) fn with_deps(folder: &Path, named: &[ModuleArguments]) -> Result<Vec<(String, ModuleArguments)>, Failure> {
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

/// The files of a link unit, and the stem of the last one.
pub(crate) fn read<'a>(files: impl Iterator<Item = &'a Path>) -> Result<(Vec<Input<'static>>, String), Failure> {
    let mut inputs = Vec::new();
    let mut stem = String::new();
    for file in files {
        let read = ModuleFile::read(file, SIZE_LIMIT);
        let read = read.map_err(|source| Failure::Read { file: file.to_owned(), source })?;
        stem.clone_from(&read.stem);
        inputs.push(read.into_input());
    }
    Ok((inputs, stem))
}

/// Explains a function of the first module that has it, as it stands next to the others that are loaded.
fn explain(
    host: &Host,
    modules: &[Module],
    loaded: &[ModuleArguments],
    function: &str,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut named = modules.iter().zip(loaded).filter(|(module, _)| module.symbol_info(function).is_some());
    let (_, arguments) = named.next().ok_or_else(|| Failure::NoSymbol(function.to_owned()))?;
    let files: Vec<_> = arguments.files().map(Path::to_owned).collect();
    crate::explain::show(host, arguments.name.as_deref(), &files, function, output)
}

/// Loads files as one module into a host of this process. Of an archive, what is going to be called is needed.
pub(crate) fn load_one(host: &Host, arguments: &ModuleArguments, calls: &[Call]) -> Result<Module, Failure> {
    let ModuleArguments { name, file, params, .. } = arguments;
    let (inputs, stem) = read(arguments.files())?;
    // SAFETY: whoever started this command asked for these files' code to be run.
    let image = unsafe { Image::trusted_unit(inputs) }.named(name.clone().unwrap_or(stem));
    let image = params.iter().fold(image, |image, param| image.param(param));
    let image = calls.iter().fold(image, |image, call| image.want(&call.symbol));
    host.load(&image).map_err(|source| Failure::Load { file: file.clone(), source })
}

/// Makes a call in the first module that has the symbol.
pub(crate) fn make(modules: &[Module], call: &Call, output: &mut Output) -> Result<(), Failure> {
    let has = |module: &&Module| module.symbol_info(&call.symbol).is_some();
    let module = modules.iter().find(has).ok_or_else(|| Failure::NoSymbol(call.symbol.clone()))?;
    // SAFETY: whoever started this command says that the function takes these integers.
    let result = unsafe { module.call(&call.symbol, &call.arguments)? };
    Ok(output.call(module.name(), call, &call.result.value(result))?)
}

/// The promise that those who reach the host's socket are trusted.
pub(crate) fn trust() -> Trust {
    // SAFETY: the server serves this process's user and root alone, who run what code they like as this user in any
    // case; who of them names a file or a function asks for its code to be run.
    unsafe { Trust::new() }
}

/// The socket that systemd passes, as `sd_listen_fds(3)` finds it. Nobody else finds it again.
pub(crate) fn inherited_socket() -> Result<Option<OwnedFd>, Failure> {
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
    let there = std::fs::symlink_metadata(format!("/proc/self/fd/{FIRST}")).is_ok();
    match count {
        None | Some(0) => Ok(None),
        // SAFETY: it is open, and whoever started this process left it to it and to nothing in it.
        Some(1) if there => Ok(Some(unsafe { OwnedFd::from_raw_fd(FIRST) })),
        Some(1) => Err(Failure::Inherited("it is not open")),
        Some(_) => Err(Failure::Inherited("there are several, and one is served")),
    }
}

/// An image of bytes that are part of this program.
pub(crate) fn own(bytes: &'static [u8]) -> Image<'static> {
    // SAFETY: built from this project's own fixtures.
    unsafe { Image::trusted(bytes) }
}

/// What has been recorded and how much of it has been printed.
pub(crate) struct Session {
    pub(crate) recording: Recording,
    pub(crate) printed: usize,
    pub(crate) warned: usize,
    pub(crate) trace: Trace,
}

impl Session {
    /// Prints of what is new only who heard of it, and in which order.
    pub(crate) fn print_order(&mut self, output: &mut Output) -> Result<(), Failure> {
        let timeline = self.recording.so_far();
        let new = Timeline { events: timeline.events.get(self.printed..).unwrap_or_default().to_vec() };
        self.printed = timeline.events.len();
        output.timeline(&new.order(), 0)?;
        Ok(())
    }

    /// What is new need not be printed.
    pub(crate) fn skip(&mut self) {
        self.printed = self.recording.so_far().events.len();
    }

    /// Prints what is new: the timeline if it is wanted, and otherwise its warnings.
    pub(crate) fn print(&mut self, output: &mut Output) -> Result<(), Failure> {
        let timeline = self.recording.so_far();
        match self.trace {
            Trace::On => self.printed = output.timeline(&timeline, self.printed)?,
            Trace::Off => self.warned = warn(&timeline, self.warned),
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
