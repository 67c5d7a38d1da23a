//! `modload --host`: opens files and passes them to a running host. The modules stay loaded there.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use modload::State;
use modload_control::protocol::{Called, ModuleListing, ModuleName, Request};
use modload_control::{Client, ClientError};
use serde_json::Value;

use crate::args::{LoadCommand, ModuleArguments, PrintEvents};
use crate::call::CallOption;
use crate::failure::CommandFailure;
use crate::operate::warn;
use crate::output::CommandOutput;
use crate::progress::Progress;
use crate::run::with_deps;

/// Loads modules, then makes the calls. If a step fails, the modules loaded before stay, as with `insmod`.
pub(crate) fn load(load: &LoadCommand, socket: &Path, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let mut client = Client::connect(socket)?;
    let in_order = match &load.deps {
        None => load.modules.clone(),
        Some(folder) => {
            let listing: ModuleListing = client.request(&Request::List {}, &[], |_, _| {})?;
            // A load waits for a needed module that is COMING. A module that is GOING must be loaded again.
            let loaded_names = listing.modules.iter().filter(|entry| entry.state != State::Going);
            let loaded_names: Vec<&str> = loaded_names.map(|entry| entry.name.as_str()).collect();
            let wanted = with_deps(folder, &load.modules)?;
            wanted
                .into_iter()
                .filter(|(name, _)| !loaded_names.contains(&name.as_str()))
                .map(|(_, module)| module)
                .collect()
        }
    };
    let mut modules = Vec::new();
    let progress = Progress::new(in_order.len(), load.format, load.trace);
    for module in &in_order {
        let loaded = progress.module(&module.file, || load_one(&mut client, load, module, &progress, output));
        modules.push(loaded?);
    }
    drop(progress);
    load.calls.iter().try_for_each(|call| make(&mut client, &modules, call, output))?;
    Ok(output.flush()?)
}

fn load_one(
    client: &mut Client,
    load: &LoadCommand,
    module: &ModuleArguments,
    progress: &Progress,
    output: &mut CommandOutput,
) -> Result<String, CommandFailure> {
    let open = |file: &Path| {
        File::open(file).map_err(|error| CommandFailure::Read { file: file.to_owned(), source: error.into() })
    };
    let opened = module.files().map(open).collect::<Result<Vec<_>, _>>()?;
    let descriptors: Vec<_> = opened.iter().map(AsFd::as_fd).collect();
    let request = Request::Load {
        files: module.files().map(|file| file.to_string_lossy().into_owned()).collect(),
        name: module.name.clone(),
        params: module.params.clone(),
        want: load.calls.iter().map(|call| call.symbol.clone()).collect(),
    };
    let mut printed = Ok(());
    let event = |event: &Value, text: &str| match load.trace {
        PrintEvents::On if printed.is_ok() => printed = output.event(event, text),
        PrintEvents::On => {}
        PrintEvents::Off => progress.suspend(|| warn(event, text, load.format)),
    };
    let loaded: Result<ModuleName, ClientError> = client.request(&request, &descriptors, event);
    printed?;
    Ok(loaded?.module)
}

/// Makes a call in the first of these modules that has the function, or else in the first such module of the host.
fn make(
    client: &mut Client,
    modules: &[String],
    call: &CallOption,
    output: &mut CommandOutput,
) -> Result<(), CommandFailure> {
    let mut places = modules.iter().cloned().map(Some).chain([None]);
    loop {
        let module = places.next().flatten();
        let anywhere = module.is_none();
        let CallOption { symbol, result, arguments, .. } = call.clone();
        let request = Request::Call { symbol, module, result, arguments };
        match client.request::<Called>(&request, &[], |_, _| {}) {
            Err(ClientError::Refused(refused)) if refused.kind == "no_symbol" && !anywhere => {}
            called => {
                let Called { module, result } = called?;
                return Ok(output.call(&module, call, &result)?);
            }
        }
    }
}
