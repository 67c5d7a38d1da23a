//! Requests to a running host: `modhost list`, `modhost params`, `modunload`.

use std::path::Path;

use modload_control::protocol::{ModuleEntry, ModuleListing, ModuleName, ParamEntry, Request};
use modload_control::{Client, default_socket, host_of_environment};
use serde_json::{Value, json};

use crate::args::Format;
use crate::failure::{CommandFailure, plain, tell};
use crate::operate_args::{Connection, ListArguments, Params, Unload};
use crate::output::CommandOutput;

fn connect(connection: &Connection) -> Result<Client, CommandFailure> {
    connect_to(connection.host.as_deref())
}

/// Connects to the given host. The default is the host of the environment variable, then the default socket.
pub(crate) fn connect_to(host: Option<&Path>) -> Result<Client, CommandFailure> {
    let named = host.map(Path::to_owned).or_else(host_of_environment);
    let path = named.map_or_else(default_socket, Ok)?;
    Ok(Client::connect(&path)?)
}

/// Ignores events of a request that has none for the user.
fn nothing(_: &Value, _: &str) {}

/// Runs `modhost list`.
pub(crate) fn list(arguments: &ListArguments, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let mut client = connect(&arguments.connection)?;
    match &arguments.name {
        None => {
            let listing: ModuleListing = client.request(&Request::List {}, &[], nothing)?;
            output.value(&listing)?;
            table(&listing).iter().try_for_each(|line| output.say(&plain(line)))?;
        }
        Some(name) => {
            let entry: ModuleEntry = client.request(&Request::Info { name: name.clone() }, &[], nothing)?;
            output.value(&entry)?;
            details(&entry).iter().try_for_each(|line| output.say(&plain(line)))?;
        }
    }
    Ok(output.flush()?)
}

fn table(listing: &ModuleListing) -> Vec<String> {
    let headings = ["MODULE", "STATE", "REFERENCES", "SIZE", "TAINT", "USED BY"].map(str::to_owned);
    let row = |entry: &ModuleEntry| {
        let sizes = entry.sizes;
        let size = sizes.text + sizes.read_only + sizes.data + sizes.ro_after_init;
        [
            entry.name.clone(),
            entry.state.to_string(),
            entry.references.to_string(),
            format!("{size} B"),
            or_dash(&entry.taint).to_owned(),
            or_dash(&entry.used_by.join(",")).to_owned(),
        ]
    };
    let rows: Vec<_> = std::iter::once(headings).chain(listing.modules.iter().map(row)).collect();
    let mut lines = columns(&rows);
    if !listing.taint.is_empty() {
        lines.push(format!("the host is tainted: {}", listing.taint));
    }
    if !listing.quarantined.is_empty() {
        let names = listing.quarantined.join(", ");
        lines.push(format!("in quarantine until no thread is in their code: {names}"));
    }
    lines
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// Aligns the columns of all rows, with two blanks between columns.
fn columns<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  "));
        cells.collect::<String>().trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn details(entry: &ModuleEntry) -> Vec<String> {
    let sizes = entry.sizes;
    let mut lines = vec![
        format!("module      {}", entry.name),
        format!("state       {}", entry.state),
        format!("references  {}", entry.references),
        format!("used by     {}", or_dash(&entry.used_by.join(", "))),
        format!("uses        {}", or_dash(&entry.uses.join(", "))),
        format!(
            "memory      text {} B, read-only data {} B, data {} B, ro_after_init data {} B",
            sizes.text, sizes.read_only, sizes.data, sizes.ro_after_init
        ),
        format!("license     {}", entry.license.as_deref().unwrap_or("-")),
        format!("taint       {}", or_dash(&entry.taint)),
    ];
    lines.extend(entry.params.iter().map(|param| format!("parameter   {}", shown(param))));
    lines
}

fn shown(param: &ParamEntry) -> String {
    let value = param.value.as_ref().map_or_else(|| "cannot be read".into(), |value| format!("= {value}"));
    format!("{} ({}, {}) {value}", param.name, param.kind, param.perm)
}

/// Runs `modhost params`.
pub(crate) fn params(arguments: &Params, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let mut client = connect(&arguments.connection)?;
    let name = || arguments.name.clone();
    if arguments.set.is_empty() {
        let params: Vec<ParamEntry> = client.request(&Request::Params { name: name() }, &[], nothing)?;
        params.iter().try_for_each(|param| say(param, output))?;
    }
    for given in &arguments.set {
        let (param, value) =
            given.split_once('=').map_or((given.as_str(), None), |(param, value)| (param, Some(value)));
        let request = Request::SetParam { name: name(), param: param.into(), value: value.map(str::to_owned) };
        say(&client.request(&request, &[], nothing)?, output)?;
    }
    Ok(output.flush()?)
}

fn say(param: &ParamEntry, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    output.value(param)?;
    Ok(output.say(&plain(&shown(param)))?)
}

/// Runs `modunload`. Tries to unload every module even if one fails, as `rmmod` does.
pub(crate) fn unload(arguments: &Unload, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let mut client = connect(&arguments.connection)?;
    let format = arguments.connection.format;
    let mut result = Ok(());
    for name in &arguments.names {
        let request = Request::Unload { name: name.clone(), wait: arguments.wait, force: arguments.force };
        match client.request::<ModuleName>(&request, &[], |event, text| warn(event, text, format)) {
            Ok(ModuleName { module }) => output.value(&json!({ "event": "unloaded", "module": module }))?,
            Err(refused) => {
                // The last failure becomes the result of the command.
                if let Err(before) = std::mem::replace(&mut result, Err(CommandFailure::from(refused))) {
                    before.report(format);
                }
            }
        }
    }
    output.flush()?;
    result
}

/// Prints warnings, and what an unload waits for.
pub(crate) fn warn(event: &Value, text: &str, format: Format) {
    let kind = event.get("event").and_then(Value::as_str).unwrap_or_default();
    let of_interest = format == Format::Text && ["warning", "waiting"].contains(&kind);
    match event.get("message").and_then(Value::as_str) {
        Some(message) if of_interest => {
            let module = event.get("module").and_then(Value::as_str).unwrap_or_default();
            tell(&format!("warning: {module}: {message}"));
        }
        None if of_interest => tell(text),
        _ => {}
    }
}
