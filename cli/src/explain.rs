//! `modhost explain` and `modload --explain`: one function before and after loading, with the record behind each
//! change.

use std::io;
use std::path::PathBuf;

use anstyle::{AnsiColor, Style};
use modload::Host;
use modload::inspect::{Change, Explanation};
use modload::text::formatter;

use crate::failure::CommandFailure;
use crate::operate_args::Explain;
use crate::output::CommandOutput;
use crate::run::{self, read};
use crate::x86_64::{DecodedInstruction, decode};

const CHANGED: Style = AnsiColor::Yellow.on_default();
const DIM: Style = Style::new().dimmed();

/// Runs `modhost explain`, in a host of its own.
pub(crate) fn run(arguments: &Explain, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let host = run::builder(&arguments.options)?.build()?;
    show(&host, None, std::slice::from_ref(&arguments.file), &arguments.symbol, output)
}

/// Explains a function of some files in a host.
pub(crate) fn show(
    host: &Host,
    name: Option<&str>,
    files: &[PathBuf],
    function: &str,
    output: &mut CommandOutput,
) -> Result<(), CommandFailure> {
    let (inputs, stem) = read(files.iter().map(PathBuf::as_path))?;
    let explained = host.explain(&inputs, name.unwrap_or(&stem), function);
    let file = files.first().cloned().unwrap_or_default();
    let explained = explained.map_err(|source| CommandFailure::Load { file, source })?;
    output.value(&explained)?;
    table(&explained, output)?;
    Ok(output.flush()?)
}

/// Prints both sides. Rows are aligned where an instruction begins on both sides.
fn table(explained: &Explanation, output: &mut CommandOutput) -> io::Result<()> {
    let Explanation { function, place, before, after, changes } = explained;
    output.heading(&format!("{function} at {place}"))?;
    let (left, right) = (decode(before, formatter()), decode(after, formatter()));
    let mut offsets: Vec<usize> = left.iter().chain(&right).map(|line| line.offset).collect();
    offsets.sort_unstable();
    offsets.dedup();
    // Sorted by start offset. Changes with the same start keep their order.
    let mut begun: Vec<(usize, usize)> = changes
        .iter()
        .enumerate()
        .map(|(number, change)| (usize::try_from(change.offset).unwrap_or(0), number))
        .collect();
    begun.sort_unstable();
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    for offset in offsets {
        let old = left.next_if(|line| line.offset == offset);
        let new = right.next_if(|line| line.offset == offset);
        let shown = |line: &Option<DecodedInstruction>, bytes: &[u8]| {
            line.as_ref().map_or_else(String::new, |line| {
                let hex: Vec<String> =
                    bytes[line.offset..line.offset + line.len].iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{:<24} {}", hex.join(" "), line.text)
            })
        };
        let end = [&old, &new].into_iter().flatten().map(|line| line.offset + line.len).max().unwrap_or(offset);
        let changed = before.get(offset..end) != after.get(offset..end);
        let style = if changed { CHANGED } else { Style::new() };
        output.say(&format!("{style}{offset:>6x}:  {:<58} | {}{style:#}", shown(&old, before), shown(&new, after)))?;
        let behind = |offset| begun.partition_point(|(begins, _)| *begins < offset);
        let mut here: Vec<usize> = begun[behind(offset)..behind(end)].iter().map(|(_, number)| *number).collect();
        here.sort_unstable();
        for Change { engine, because, .. } in here.into_iter().map(|number| &changes[number]) {
            output.say(&format!("{DIM}         {engine}: {because}{DIM:#}"))?;
        }
    }
    Ok(())
}
