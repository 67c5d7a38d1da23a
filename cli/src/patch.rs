//! `modhost patch`: operates live patches of a running host.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use modload_control::Client;
use modload_control::protocol::{ModuleName, PatchAction, PatchEntry, Request};

use crate::failure::{CommandFailure, plain};
use crate::operate::connect_to;
use crate::output::CommandOutput;
use crate::patch_args::PatchCommand;

pub(crate) fn run(command: &PatchCommand, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let mut client = connect_to(command.connection().host.as_deref())?;
    match command {
        PatchCommand::List { .. } => {
            let patches: Vec<PatchEntry> = client.request(&Request::Patches {}, &[], |_, _| {})?;
            output.value(&patches)?;
            if patches.is_empty() {
                output.say("no patches")?;
            }
            patches.iter().flat_map(summary).try_for_each(|line| output.say(&plain(&line)))?;
        }
        PatchCommand::Status { name, .. } => {
            let patch: PatchEntry = client.request(&Request::PatchStatus { name: name.clone() }, &[], |_, _| {})?;
            output.value(&patch)?;
            summary(&patch).chain(blocking(&patch)).try_for_each(|line| output.say(&plain(&line)))?;
        }
        PatchCommand::Enable { file, .. } => enable(&mut client, file, output)?,
        PatchCommand::Disable { name, .. } => act(&mut client, name, PatchAction::Disable, output)?,
        PatchCommand::Reverse { name, .. } => act(&mut client, name, PatchAction::Reverse, output)?,
        PatchCommand::Force { name, .. } => act(&mut client, name, PatchAction::Force, output)?,
    }
    Ok(output.flush()?)
}

/// Loads a patch, which is a module that enables itself.
fn enable(client: &mut Client, file: &Path, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let opened =
        File::open(file).map_err(|error| CommandFailure::Read { file: file.to_owned(), source: error.into() })?;
    let files = vec![file.to_string_lossy().into_owned()];
    let request = Request::Load { files, name: None, params: Vec::new(), want: Vec::new() };
    let loaded: ModuleName = client.request(&request, &[opened.as_fd()], |_, _| {})?;
    let patches: Vec<PatchEntry> = client.request(&Request::Patches {}, &[], |_, _| {})?;
    let patch = patches.into_iter().find(|patch| patch.name == loaded.module);
    let patch = patch.ok_or_else(|| CommandFailure::NoPatch(loaded.module))?;
    output.value(&patch)?;
    summary(&patch).try_for_each(|line| output.say(&plain(&line)))?;
    Ok(())
}

fn act(client: &mut Client, name: &str, action: PatchAction, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let request = Request::Patch { name: name.to_owned(), action };
    let patch: Option<PatchEntry> = client.request(&request, &[], |_, _| {})?;
    output.value(&patch)?;
    match &patch {
        None => output.say(&plain(&format!("{name}: gone")))?,
        Some(patch) => summary(patch).try_for_each(|line| output.say(&plain(&line)))?,
    }
    Ok(())
}

/// Returns a line for the patch, and one for each object.
fn summary(patch: &PatchEntry) -> impl Iterator<Item = String> {
    let threads = match patch.blocked {
        1 => "1 thread is".to_owned(),
        count => format!("{count} threads are"),
    };
    let state = match (&patch.transition, patch.enabled) {
        (Some(transition), _) => format!("{transition}: {threads} still in the old state"),
        (None, true) => "enabled".to_owned(),
        (None, false) => "disabled".to_owned(),
    };
    let replace = if patch.replace { ", replaces all others" } else { "" };
    let forced = if patch.forced { ", forced" } else { "" };
    let objects = patch.objects.iter().map(|object| {
        let suffix = if object.patched { "" } else { " (not loaded)" };
        format!("    {}{suffix}: {}", object.name, object.funcs.join(" "))
    });
    std::iter::once(format!("{}  {state}{replace}{forced}", patch.name)).chain(objects.collect::<Vec<_>>())
}

/// Returns the threads that block the transition, with their stacks.
fn blocking(patch: &PatchEntry) -> impl Iterator<Item = String> {
    patch.blocking.iter().flat_map(|thread| {
        let name = if thread.name.is_empty() { String::new() } else { format!(" \"{}\"", thread.name) };
        let first = format!("thread {}{name}, {}, {}", thread.thread, thread.state, thread.why);
        std::iter::once(first).chain(thread.backtrace.iter().map(|frame| format!("    {frame}")))
    })
}
