//! The differences between an image and a memory, with the records that wrote the bytes.

use std::fs;
use std::io;
use std::path::Path;

use modload::image::{ImageSection, MemoryImage};
use modload::text::disassembled;
use serde_json::json;

use crate::failure::CommandFailure;
use crate::image::safe_name;
use crate::output::CommandOutput;

/// The maximum number of differences shown per section.
const SHOWN: usize = 20;
/// The number of bytes around a difference that are also disassembled.
const AROUND: usize = 8;

/// Compares with the sections in a folder, named as by `--out`. Sections without a file are not compared, nor are
/// sections that the module itself writes.
pub(super) fn show(image: &MemoryImage, folder: &Path, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let (mut compared, mut different) = (0, 0);
    for section in image.sections.iter().filter(|section| !section.is_writable) {
        let memory = match fs::read(folder.join(safe_name(section))) {
            Ok(memory) => memory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        compared += 1;
        let runs = differences(&section.bytes, &memory);
        different += usize::from(!runs.is_empty());
        for &(start, end) in runs.iter().take(SHOWN) {
            one(image, section, &memory, start..end, output)?;
        }
        if runs.len() > SHOWN {
            output.say(&format!("{}: and {} more", section.name, runs.len() - SHOWN))?;
        }
    }
    output.say(&format!("{compared} sections compared, {different} differ"))?;
    output.flush()?;
    if different == 0 { Ok(()) } else { Err(CommandFailure::Differs { different, compared }) }
}

/// Returns ranges of differing bytes. Ranges close together become one.
fn differences(ours: &[u8], theirs: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for at in 0..ours.len().max(theirs.len()) {
        if ours.get(at) == theirs.get(at) {
            continue;
        }
        match runs.last_mut() {
            Some((_, end)) if at - *end < 4 => *end = at + 1,
            _ => runs.push((at, at + 1)),
        }
    }
    runs
}

fn one(
    image: &MemoryImage,
    section: &ImageSection,
    memory: &[u8],
    run: std::ops::Range<usize>,
    output: &mut CommandOutput,
) -> io::Result<()> {
    let offset = u64::try_from(run.start).unwrap_or(u64::MAX);
    let len = u64::try_from(run.len()).unwrap_or(u64::MAX);
    let touching = image.edits.touching(section.at + offset, len);
    // An edit begins where an instruction begins.
    let from = touching.iter().filter_map(|edit| edit.at.checked_offset_from(section.at)).min();
    let from = from.and_then(|from| usize::try_from(from).ok()).unwrap_or(run.start).min(run.start);
    let shown = |bytes: &[u8]| {
        let bytes = bytes.get(from..(run.end + AROUND).min(bytes.len())).unwrap_or_default();
        let at = section.at + u64::try_from(from).unwrap_or(u64::MAX);
        let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        if section.is_text { format!("{hex}  {}", disassembled(at, bytes)) } else { hex }
    };
    let (ours, theirs) = (shown(&section.bytes), shown(memory));
    let edits: Vec<String> = touching.iter().map(|edit| edit.why.to_string()).collect();
    let place = format!("{}+{:#x}", section.name, run.start);
    output.say(&format!("{place}: {} bytes differ", run.len()))?;
    output.say(&format!("  here    {ours}"))?;
    output.say(&format!("  memory  {theirs}"))?;
    output.say(&format!("  written by {}", if edits.is_empty() { "no record".into() } else { edits.join(", ") }))?;
    output.value(&json!({ "place": place, "bytes": run.len(), "here": ours, "memory": theirs, "edits": edits }))
}
