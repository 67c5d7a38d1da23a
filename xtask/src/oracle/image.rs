//! Runs `modhost image` as users do.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;
use crate::process::{cargo, run, target_folder};

/// How far modules are processed.
#[derive(Clone, Copy)]
pub(crate) enum BatchExtent {
    /// Relocated only, like the output of any linker.
    Relocated,
    /// Rewritten, as by Linux.
    Rewritten,
}

/// The built program.
pub(crate) struct Modhost(PathBuf);

impl Modhost {
    /// Builds the program with optimization.
    pub(crate) fn build() -> Result<Modhost> {
        run(cargo().args(["build", "--release", "--locked", "--quiet", "-p", "modload-cli", "--bin", "modhost"]))?;
        Ok(Modhost(target_folder().join("release/modhost")))
    }

    /// Makes the images of a list of modules in one process, for the machine that a folder describes. Returns the
    /// output: the reasons of failures, then the times.
    pub(crate) fn images(&self, list: &Path, machine: &Path, extent: BatchExtent) -> Result<String> {
        let mut command = Command::new(&self.0);
        command.args(["image", "--batch"]).arg(list).arg("--symbols").arg(machine.join("symbols"));
        command.arg("--cpu-caps").arg(machine.join("cpu-caps")).stderr(Stdio::inherit());
        if let BatchExtent::Relocated = extent {
            command.arg("--only-relocate");
        }
        // The command fails if one image fails. The caller finds the failed ones in the output.
        Ok(String::from_utf8(command.output()?.stdout)?)
    }
}
