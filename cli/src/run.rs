//! Loads, calls and unloads. The one file of the commands with unsafe code: who names a file on the command line asks
//! for its code to be run.
#![expect(unsafe_code, reason = "loading a file runs its code, and --call names a function's type")]

use std::path::Path;

use modload::{Catalog, EventKind, Host, HostBuilder, Image, Module, ModuleFile, Recording, SIZE_LIMIT, Timeline};

use crate::args::{Call, Exports, Load, ModuleArguments, ProcessSymbols, Trace};
use crate::failure::{Failure, command};
use crate::output::Output;

/// `modload FILE ..`.
pub(crate) fn load(load: &Load, output: &mut Output) -> Result<(), Failure> {
    let host = build(load)?;
    let mut session = Session { recording: host.record(), printed: 0, warned: 0, trace: load.trace };
    let mut modules = Vec::new();
    let in_order = match &load.deps {
        None => load.modules.clone(),
        Some(folder) => with_deps(folder, &load.modules)?,
    };
    let mut result = in_order.iter().try_for_each(|arguments| {
        modules.push(load_one(&host, arguments, &load.calls)?);
        Ok(())
    });
    session.print(output)?;
    if result.is_ok() {
        result = load.calls.iter().try_for_each(|call| make(&modules, call, output));
    }
    // Whatever happened, what was loaded goes, the last one first.
    for module in modules.into_iter().rev() {
        let unloaded = module.unload().map_err(Failure::from);
        result = result.and(unloaded);
    }
    session.print(output)?;
    output.flush()?;
    result
}

fn build(load: &Load) -> Result<Host, Failure> {
    let mut builder = Host::builder();
    if load.process_symbols == ProcessSymbols::Offered {
        builder = builder.process_symbols();
    }
    if load.exports == Exports::Globals {
        builder = builder.export_globals();
    }
    builder = load.policy.iter().fold(builder, |builder, &(rule, check)| builder.policy(rule, check));
    builder = load.block.iter().fold(builder, HostBuilder::block);
    if let Some(vermagic) = &load.vermagic {
        builder = builder.vermagic(vermagic);
    }
    Ok(builder.build()?)
}

/// The modules named and all that they need, as files in the order in which they load.
fn with_deps(folder: &Path, named: &[ModuleArguments]) -> Result<Vec<ModuleArguments>, Failure> {
    let catalog = Catalog::read(folder)?;
    let names: Vec<String> = named.iter().map(|module| module.file.to_string_lossy().into_owned()).collect();
    let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    let order = catalog.order(&wanted)?;
    let params = |name: &str| {
        let given = names.iter().zip(named).filter(|(wanted, _)| *wanted == name);
        given.flat_map(|(_, module)| module.params.clone()).collect()
    };
    let one = |(name, path): &(&str, &Path)| ModuleArguments {
        name: None,
        file: path.into(),
        others: Vec::new(),
        params: params(name),
    };
    Ok(order.iter().map(one).collect())
}

fn load_one(host: &Host, arguments: &ModuleArguments, calls: &[Call]) -> Result<Module, Failure> {
    let ModuleArguments { name, file, others, params } = arguments;
    let mut inputs = Vec::new();
    let mut stem = String::new();
    for file in [file].into_iter().chain(others) {
        let read = ModuleFile::read(file, SIZE_LIMIT);
        let read = read.map_err(|source| Failure::Read { file: file.clone(), source })?;
        stem.clone_from(&read.stem);
        inputs.push(read.into_input());
    }
    // SAFETY: whoever started this command asked for these files' code to be run.
    let image = unsafe { Image::trusted_unit(inputs) }.named(name.clone().unwrap_or(stem));
    let image = params.iter().fold(image, |image, param| image.param(param));
    // Of an archive, what is going to be called is needed.
    let image = calls.iter().fold(image, |image, call| image.want(&call.symbol));
    host.load(&image).map_err(|source| Failure::Load { file: file.clone(), source })
}

/// Makes a call in the first module that has the symbol.
pub(crate) fn make(modules: &[Module], call: &Call, output: &mut Output) -> Result<(), Failure> {
    let has = |module: &&Module| module.symbol_info(&call.symbol).is_some();
    let module = modules.iter().find(has).ok_or_else(|| Failure::NoSymbol(call.symbol.clone()))?;
    // SAFETY: whoever started this command says that the function takes these integers.
    let result = unsafe { module.call(&call.symbol, &call.arguments)? };
    Ok(output.call(module.name(), call, result)?)
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
            anstream::eprintln!("{}: warning: {}: {message}", command(), event.module);
        }
    }
    timeline.events.len()
}
