//! Debian's kernel package: real modules, the symbols of their kernel, and the kernel itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::options::Options;
use crate::process::{cargo, output, run, target_folder};

/// The pattern of suitable packages. The newest one is used.
const PACKAGES: &str = r"^linux-image-6\.1\.[0-9.-]+-amd64$";

/// Fetches and unpacks the package, and prints its folder.
pub(crate) fn fetch(_: &Options) -> Result<()> {
    println!("{}", folder()?.display());
    Ok(())
}

/// Inspects all modules of the package.
pub(crate) fn inspect(_: &Options) -> Result<()> {
    let words = ["test", "--release", "--locked", "-p", "modload-loader", "--test", "kernel", "--", "--nocapture"];
    run(cargo().args(words).env("MODLOAD_KERNEL", folder()?))
}

/// Returns the folder of the unpacked package, which holds `boot` and `lib/modules`. The package is fetched once.
pub(crate) fn folder() -> Result<PathBuf> {
    let folder = target_folder().join("kernel");
    if folder.is_dir() {
        return Ok(folder);
    }
    let scratch = folder.with_extension(format!("making-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    let unpacked = unpack(&scratch).and_then(|unpacked| Ok(fs::rename(unpacked, &folder)?));
    fs::remove_dir_all(&scratch)?;
    unpacked.map(|()| folder)
}

/// Fetches the newest package into a folder, and unpacks it into a folder below.
fn unpack(scratch: &Path) -> Result<PathBuf> {
    let found = output(Command::new("apt-cache").args(["--names-only", "search", PACKAGES]))?;
    let newest = found.lines().filter_map(|line| line.split(' ').next()).max_by_key(|name| version(name));
    let newest = newest.ok_or("apt knows no kernel 6.1: apt-get update?")?;
    run(Command::new("apt-get").args(["download", "-qq", newest]).current_dir(scratch))?;
    let file = fs::read_dir(scratch)?.next().ok_or("apt-get has downloaded nothing")??.path();
    let unpacked = scratch.join("unpacked");
    run(Command::new("dpkg-deb").arg("--extract").args([&file, &unpacked]))?;
    Ok(unpacked)
}

/// Returns the numbers in a package's name, for comparison.
fn version(name: &str) -> Vec<u32> {
    name.split(|letter: char| !letter.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}
