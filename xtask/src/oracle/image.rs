//! `modhost image`, called as its users call it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;
use crate::process::{cargo, run, target_folder};

/// How far modules are made.
#[derive(Clone, Copy)]
pub(crate) enum Extent {
    /// As any linker would make them.
    Relocated,
    /// As Linux would.
    Rewritten,
}

/// The program, built.
pub(crate) struct Modhost(PathBuf);

impl Modhost {
    /// Builds it for speed.
    pub(crate) fn build() -> Result<Modhost> {
        run(cargo().args(["build", "--release", "--locked", "--quiet", "-p", "modload-cli", "--bin", "modhost"]))?;
        Ok(Modhost(target_folder().join("release/modhost")))
    }

    /// Makes the modules of a list in one process, for the machine that a folder describes. Returns what it printed: why
    /// it could not make some of them, then how long it took.
    pub(crate) fn images(&self, list: &Path, machine: &Path, extent: Extent) -> Result<String> {
        let mut command = Command::new(&self.0);
        command.args(["image", "--batch"]).arg(list).arg("--symbols").arg(machine.join("symbols"));
        command.arg("--cpu-caps").arg(machine.join("cpu-caps")).stderr(Stdio::inherit());
        if let Extent::Relocated = extent {
            command.arg("--only-relocate");
        }
        // It fails if one of them fails; which one is seen from what it printed.
        Ok(String::from_utf8(command.output()?.stdout)?)
    }
}
