//! `modhost inspect`: shows the contents of a module file. No code of the file runs, and all text of the file is
//! escaped.

use std::io;

use modload::error::ObjectError;
use modload::file::{ModuleFile, SIZE_LIMIT};
use modload::inspect::{FunctionBytes, Inspection};
use serde::Serialize;

use crate::failure::CommandFailure;
use crate::operate_args::Inspect;
use crate::output::CommandOutput;
use crate::x86_64::{DecodedInstruction, decode, plain_formatter};

pub(crate) fn run(arguments: &Inspect, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let path = || arguments.file.clone();
    let file = ModuleFile::read(&arguments.file, SIZE_LIMIT);
    let file = file.map_err(|source| CommandFailure::Read { file: path(), source })?;
    let failed = |source: ObjectError| CommandFailure::Inspect { file: path(), source: source.into() };
    match &arguments.function {
        None => {
            let stem = file.stem.clone();
            let inspection = Inspection::of_unit(&[file.into_input()], &stem, SIZE_LIMIT).map_err(failed)?;
            output.value(&inspection)?;
            show(&inspection, output)?;
        }
        Some(name) => {
            let function = FunctionBytes::of(&file.bytes, name, SIZE_LIMIT).map_err(failed)?;
            let function =
                function.ok_or_else(|| CommandFailure::NoFunction { file: path(), function: name.clone() })?;
            let listing =
                FunctionListing { function: name, place: &function.place, instructions: disassemble(&function) };
            output.value(&listing)?;
            list(&listing, output)?;
        }
    }
    Ok(output.flush()?)
}

fn show(inspection: &Inspection, output: &mut CommandOutput) -> io::Result<()> {
    output.say(&format!("name         {}", inspection.name))?;
    for (key, value) in
        inspection.modinfo.iter().filter(|(key, _)| !matches!(key.as_str(), "name" | "parm" | "parmtype"))
    {
        output.say(&format!("{key:<12} {value}"))?;
    }
    if let Some(refused) = &inspection.refused {
        output.say(&format!("cannot load  {refused}"))?;
    }
    section(output, "objects", &inspection.objects, Clone::clone)?;
    section(output, "parameters", &inspection.params, |param| {
        let description = param.description.as_ref().map_or_else(String::new, |text| format!(": {text}"));
        format!("{} ({}){description}", param.name, param.kind)
    })?;
    section(output, "exports", &inspection.exports, |export| {
        format!("{}{}", export.name, if export.gpl_only { " (GPL only)" } else { "" })
    })?;
    section(output, "needs", &inspection.needs, |need| {
        format!("{}{}", need.name, if need.weak { " (weak)" } else { "" })
    })?;
    section(output, "waits for", &inspection.waits, |wait| {
        let position = if wait.position == 0 { String::new() } else { format!(",{}", wait.position) };
        format!("{}: {}{position}", wait.object, wait.name)
    })?;
    section(output, "memory", &inspection.parts, |(part, size)| format!("{size:>8} bytes of {part}"))?;
    section(output, "sections", &inspection.sections, |section| {
        let place = section.place.map_or_else(|| "-".into(), |(part, offset)| format!("{part}+{offset:#x}"));
        let (index, size, align) = (section.index, section.size, section.align);
        format!("{index:>4}  {size:>8} bytes, align {align:<4} {:<4} {place:<24} {}", section.flags, section.name)
    })?;
    section(output, "relocations", &inspection.relocations, |(kind, count)| format!("{count:>8} {kind}"))?;
    section(output, "tables", &inspection.special, |table| {
        let records = table.records.map_or_else(|| "? records".into(), |records| format!("{records} records"));
        format!("{}: {records}", table.section)
    })
}

/// Prints a heading and a line per item. Prints nothing if there are no items.
fn section<T>(output: &mut CommandOutput, title: &str, items: &[T], line: impl Fn(&T) -> String) -> io::Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    output.heading(title)?;
    items.iter().try_for_each(|item| output.say(&format!("  {}", line(item))))
}

/// A disassembled function.
#[derive(Serialize)]
struct FunctionListing<'a> {
    function: &'a str,
    place: &'a str,
    instructions: Vec<ListedInstruction>,
}

/// One instruction.
#[derive(Serialize)]
struct ListedInstruction {
    /// The offset from the start of the function.
    offset: usize,
    bytes: String,
    text: String,
    /// The relocations that change the instruction when the module is loaded.
    relocations: Vec<String>,
}

fn disassemble(function: &FunctionBytes) -> Vec<ListedInstruction> {
    // Both lists are sorted by offset.
    let mut relocations = function.relocations.iter().peekable();
    let line = |DecodedInstruction { offset, len, text }: DecodedInstruction| {
        let end = offset + len;
        let inside =
            std::iter::from_fn(|| relocations.next_if(|(at, _)| usize::try_from(*at).is_ok_and(|at| at < end)));
        ListedInstruction {
            offset,
            bytes: function.bytes[offset..end].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "),
            text,
            relocations: inside.map(|(_, text)| text.clone()).collect(),
        }
    };
    decode(&function.bytes, plain_formatter()).into_iter().map(line).collect()
}

fn list(listing: &FunctionListing<'_>, output: &mut CommandOutput) -> io::Result<()> {
    output.say(&format!("{} at {}", listing.function.escape_debug(), listing.place))?;
    for line in &listing.instructions {
        let relocations = line.relocations.iter().map(|text| format!("   # {text}")).collect::<String>();
        output.say(&format!("  {:>6x}:  {:<30} {}{relocations}", line.offset, line.bytes, line.text))?;
    }
    Ok(())
}
