//! `modhost klp-link`: makes a live patch of a compiler's object. The output file is either complete or not created.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use modload::file::{ModuleFile, SIZE_LIMIT};
use modload::patch::link::{Linked, LinkedObject, LinkedSymbol};
use serde_json::{Value, json};

use crate::failure::{CommandFailure, shown};
use crate::operate_args::KlpLink;
use crate::output::CommandOutput;

pub(crate) fn run(arguments: &KlpLink, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let KlpLink { input, output: path, .. } = arguments;
    let file = ModuleFile::read(input, SIZE_LIMIT);
    let file = file.map_err(|source| CommandFailure::Read { file: input.clone(), source })?;
    let linked = modload::patch::link::link(&file.bytes)
        .map_err(|source| CommandFailure::Link { file: input.clone(), source })?;
    if same_file(input, path) {
        return Err(CommandFailure::SameFile(path.clone()));
    }
    write(path, &linked.bytes).map_err(|source| CommandFailure::Out { file: path.clone(), source })?;
    show(path, &linked, output)?;
    Ok(output.flush()?)
}

/// Returns whether two paths name the same file.
fn same_file(one: &Path, other: &Path) -> bool {
    let number = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    number(one).is_some_and(|one| Some(one) == number(other))
}

/// A file that is being written. Dropping this removes the file.
struct Unfinished {
    path: PathBuf,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After the file has been renamed, nothing is left to remove.
        let _ = fs::remove_file(&self.path);
    }
}

/// Writes a file beside its final path and renames it.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A device, or a symbolic link to one, must not be replaced by a file.
    if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(io::Error::other("is there already, and is no regular file: name another file with -o"));
    }
    let name = path.file_name().ok_or_else(|| io::Error::other("is not the name of a file"))?;
    let beside = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let mut file = File::create_new(&beside)?;
    let unfinished = Unfinished { path: beside };
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished.path, path)
}

fn show(path: &Path, linked: &Linked, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    for object in &linked.objects {
        let symbols: Vec<String> = object.symbols.iter().map(symbol).collect();
        let sections = object.sections.iter().map(|section| format!("{} in {}", section.relocations, section.name));
        let sections: Vec<String> = sections.collect();
        output.say(&format!("{}: waits for {}", shown(path), object.name))?;
        output.say(&format!("  symbols      {}", symbols.join(", ")))?;
        output.say(&format!(
            "  relocations  {}",
            if sections.is_empty() { "none".into() } else { sections.join(", ") }
        ))?;
    }
    let objects: Vec<Value> = linked.objects.iter().map(data).collect();
    Ok(output.value(&json!({ "file": path.to_string_lossy(), "objects": objects }))?)
}

/// Formats a symbol, with its position if there are several of that name.
fn symbol(symbol: &LinkedSymbol) -> String {
    match symbol {
        LinkedSymbol { name, position: 0 } => name.clone(),
        LinkedSymbol { name, position } => format!("{name} (number {position})"),
    }
}

fn data(object: &LinkedObject) -> Value {
    let symbols = object.symbols.iter().map(|symbol| json!({ "name": symbol.name, "position": symbol.position }));
    let sections =
        object.sections.iter().map(|section| json!({ "name": section.name, "relocations": section.relocations }));
    json!({ "name": object.name, "symbols": symbols.collect::<Value>(), "sections": sections.collect::<Value>() })
}
