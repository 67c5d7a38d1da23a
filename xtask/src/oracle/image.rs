//! `modhost image`, called as its users call it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::judged::safe;
use crate::Result;
use crate::process::{cargo, run, target_folder};

/// The program, built.
pub(crate) struct Modhost(PathBuf);

/// The sections of one module as we make them.
pub(crate) struct Made {
    folder: PathBuf,
    sizes: HashMap<String, u64>,
}

impl Modhost {
    /// Builds it for speed, and asks whether it knows the command.
    pub(crate) fn build() -> Result<Modhost> {
        run(cargo().args(["build", "--release", "--locked", "--quiet", "-p", "modload-cli", "--bin", "modhost"]))?;
        let modhost = Modhost(target_folder().join("release/modhost"));
        let help = Command::new(&modhost.0).args(["image", "--help"]).output()?;
        if help.status.success() { Ok(modhost) } else { Err("modhost has no command image yet".into()) }
    }

    /// Makes a module. `folder` is where its addresses and facts are; ours goes next to them.
    pub(crate) fn image(&self, file: &Path, folder: &Path, symbols: &Path, caps: &Path) -> Result<Made> {
        let out = folder.join("ours");
        if out.exists() {
            fs::remove_dir_all(&out)?;
        }
        let mut command = Command::new(&self.0);
        command.arg("image").arg(file).arg("--addresses").arg(folder.join("addresses"));
        command.arg("--symbols").arg(symbols).arg("--cpu-caps").arg(caps);
        command.arg("--facts").arg(folder.join("facts")).arg("--out").arg(&out);
        let output = command.output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ").into());
        }
        let mut sizes = HashMap::new();
        for line in String::from_utf8(output.stdout)?.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [section, _, size, _] = words[..] else { return Err(format!("modhost printed {line:?}").into()) };
            sizes.insert(section.to_owned(), size.parse()?);
        }
        Ok(Made { folder: out, sizes })
    }
}

impl Made {
    /// The bytes of a section; that it was printed with their number is part of the contract.
    pub(crate) fn section(&self, name: &str) -> Result<Vec<u8>> {
        let bytes = fs::read(self.folder.join(safe(name))).map_err(|error| format!("{name}: {error}"))?;
        let printed = self.sizes.get(name).ok_or_else(|| format!("{name} was not printed"))?;
        if u64::try_from(bytes.len())? == *printed {
            Ok(bytes)
        } else {
            Err(format!("{name} has {} bytes, not {printed} as printed", bytes.len()).into())
        }
    }

    /// Nobody needs to look at what is as it should be.
    pub(crate) fn discard(self) -> Result<()> {
        Ok(fs::remove_dir_all(self.folder)?)
    }
}
