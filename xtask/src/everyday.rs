//! The checks of every day, and all checks.

use std::collections::BTreeSet;
use std::iter;
use std::process::Command;
use std::time::Instant;

use modload_fixtures::workspace_root;
use serde_json::Value;

use crate::options::Options;
use crate::process::{cargo, output, run};
use crate::{Result, suite};

/// Checks the format, and runs the unit tests and all test targets except the slow ones.
pub(crate) fn quick(_options: &Options) -> Result<()> {
    let begun = Instant::now();
    run(cargo().args(["fmt", "--all", "--check"]))?;
    let targets = test_targets()?;
    if let Some(unknown) = suite::SLOW.iter().find(|slow| !targets.contains(**slow)) {
        return Err(format!("{unknown} is no test target: remove it from the list in xtask/src/suite.rs").into());
    }
    let quick = targets.iter().filter(|target| !suite::SLOW.contains(&target.as_str()));
    let selected = quick.flat_map(|target| ["--test", target]);
    let failed = suite::run_programs(&iter::once("--lib").chain(selected).collect::<Vec<_>>(), suite::LANES)?;
    suite::none_of(&failed)?;
    eprintln!("{} s. Left out, for `cargo xtask ci`: {}", begun.elapsed().as_secs(), suite::SLOW.join(", "));
    Ok(())
}

/// Returns the names of the workspace's integration tests.
fn test_targets() -> Result<BTreeSet<String>> {
    let metadata = output(cargo().args(["metadata", "--no-deps", "--locked", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let targets = list(&metadata["packages"]).into_iter().flat_map(|package| list(&package["targets"]));
    let tests = targets.filter(|target| list(&target["kind"]).iter().any(|kind| kind == "test"));
    Ok(tests.filter_map(|target| target["name"].as_str().map(str::to_owned)).collect())
}

/// Runs all that CI runs.
pub(crate) fn ci(_options: &Options) -> Result<()> {
    run(Command::new(workspace_root().join(".ci/run")).current_dir(workspace_root()))
}
