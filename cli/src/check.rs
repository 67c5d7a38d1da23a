//! `modhost check`: checks whether files could be loaded, as far as this depends only on their bytes.

use std::path::Path;

use modload::Host;
use modload::file::{ModuleFile, SIZE_LIMIT};
use serde_json::json;

use crate::failure::{CommandFailure, shown};
use crate::operate_args::CheckArguments;
use crate::output::CommandOutput;

pub(crate) fn run(arguments: &CheckArguments, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let host = Host::builder().build()?;
    let mut refused = 0;
    for file in &arguments.files {
        let why = why_not(&host, file);
        output.value(&json!({ "file": file.to_string_lossy(), "refused": why }))?;
        output.say(&format!("{}: {}", shown(file), why.as_deref().unwrap_or("can be loaded")))?;
        refused += usize::from(why.is_some());
    }
    output.flush()?;
    match refused {
        0 => Ok(()),
        refused => Err(CommandFailure::Unloadable { refused, of: arguments.files.len() }),
    }
}

/// Returns why the bytes of a file would be refused, or `None`.
fn why_not(host: &Host, file: &Path) -> Option<String> {
    let file = match ModuleFile::read(file, SIZE_LIMIT) {
        Ok(file) => file,
        Err(error) => return Some(modload_control::sentence(&error)),
    };
    let stem = file.stem.clone();
    host.check(&[file.into_input()], &stem).err().map(|error| modload_control::sentence(&*error.error))
}
