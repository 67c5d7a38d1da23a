//! A QEMU machine that boots Debian's kernel with one of our programs as its only process.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use modload_fixtures::workspace_root;

use super::boots::Boot;
use super::initramfs::Initramfs;
use crate::Result;
use crate::process::{output, run};

const QEMU: &str = "qemu-system-x86_64";

/// The size of the disk. Its file is sparse.
const DISK: u64 = 8 << 30;

/// The guest's initial file system while it is written.
pub(crate) type InitramfsArchive = Initramfs<BufWriter<File>>;

/// The inputs of a boot.
pub(crate) struct Guest<'g> {
    pub(crate) boot: &'static Boot,
    /// The source of the guest's program, in `xtask/guest`.
    pub(crate) program: &'static str,
    /// The unpacked package.
    pub(crate) kernel: &'g Path,
    /// The folder for its files.
    pub(crate) folder: PathBuf,
    pub(crate) megabytes: u32,
    pub(crate) limit: Duration,
}

impl Guest<'_> {
    pub(crate) fn disk(&self) -> PathBuf {
        self.folder.join("disk")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Returns all inputs that influence the result, except the files that are added.
    pub(crate) fn inputs(&self) -> Result<String> {
        let init = fs::read_to_string(self.source())?;
        let (boot, vmlinuz) = (self.boot, self.vmlinuz()?);
        let size = fs::metadata(&vmlinuz)?.len();
        let Boot { cpu, cpus, arguments, .. } = boot;
        Ok(format!("{cpu} {cpus} {arguments}\n{vmlinuz:?} {size}\n{init}"))
    }

    /// Boots with the files that `fill` adds to the guest's program, and waits until the guest has turned its machine
    /// off.
    pub(crate) fn run(&self, fill: impl FnOnce(&mut InitramfsArchive) -> Result<()>) -> Result<()> {
        install()?;
        fs::create_dir_all(&self.folder)?;
        let start = Instant::now();
        self.pack(fill)?;
        eprintln!("{}: packed in {:.1?}", self.boot.name, start.elapsed());
        let disk = File::create(self.disk())?;
        disk.set_len(DISK)?;
        let start = Instant::now();
        self.wait(&mut self.command()?)?;
        eprintln!("{}: the machine ran for {:.1?}", self.boot.name, start.elapsed());
        Ok(())
    }

    fn vmlinuz(&self) -> Result<PathBuf> {
        let found = fs::read_dir(self.kernel.join("boot"))?.filter_map(|entry| Some(entry.ok()?.path()));
        let is_kernel =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"));
        found.filter(is_kernel).max().ok_or_else(|| "there is no kernel in the package".into())
    }

    fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs")
    }

    /// Builds the guest's program and its initial file system.
    fn pack(&self, fill: impl FnOnce(&mut InitramfsArchive) -> Result<()>) -> Result<()> {
        let (init, source) = (self.folder.join("init"), self.source());
        run(Command::new("cc").args(["-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&init).arg(source))?;
        let mut archive = Initramfs::new(BufWriter::new(File::create(self.initramfs())?))?;
        archive.copy("init", &init)?;
        fill(&mut archive)?;
        Ok(archive.finish()?)
    }

    fn source(&self) -> PathBuf {
        workspace_root().join("xtask/guest").join(self.program)
    }

    fn command(&self) -> Result<Command> {
        let arguments = format!("nokaslr panic=-1 console=ttyS0 loglevel=4 {}", self.boot.arguments);
        let mut qemu = Command::new(QEMU);
        qemu.args(["-nodefaults", "-no-reboot", "-display", "none", "-accel", "tcg"]);
        qemu.args(["-cpu", self.boot.cpu]).arg("-smp").arg(self.boot.cpus.to_string());
        qemu.arg("-m").arg(self.megabytes.to_string());
        qemu.arg("-kernel").arg(self.vmlinuz()?).arg("-initrd").arg(self.initramfs());
        qemu.args(["-append", arguments.trim_end()]).arg("-serial").arg(format!("file:{}", self.log().display()));
        qemu.arg("-drive").arg(format!("file={},format=raw,if=virtio,cache=unsafe", self.disk().display()));
        Ok(qemu)
    }

    /// Waits until the guest has finished or the time is over. If the guest has not finished, the error shows the end
    /// of its log.
    fn wait(&self, qemu: &mut Command) -> Result<()> {
        let errors = self.folder.join("qemu-errors");
        let mut child = qemu.stderr(File::create(&errors)?).spawn().map_err(|error| format!("{QEMU}: {error}"))?;
        let end = Instant::now() + self.limit;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status.to_string();
            }
            if Instant::now() > end {
                child.kill()?;
                child.wait()?;
                break format!("not done after {:?}", self.limit);
            }
            sleep(Duration::from_millis(100));
        };
        let log = String::from_utf8_lossy(&fs::read(self.log())?).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        if lines.iter().any(|line| line.trim_end() == "ORACLE DONE") {
            return Ok(());
        }
        let last = lines[lines.len().saturating_sub(30)..].join("\n");
        let errors = fs::read_to_string(errors)?;
        Err(format!("{last}\n{errors}{}: {status}; all of it is in {}", self.boot.name, self.log().display()).into())
    }
}

/// Installs QEMU if it is missing.
fn install() -> Result<()> {
    if Command::new(QEMU).arg("--version").output().is_ok() {
        return Ok(());
    }
    install_package(QEMU, "qemu-system-x86")
}

/// Installs a Debian package because `missing` does not exist.
pub(crate) fn install_package(missing: &str, package: &str) -> Result<()> {
    let words = ["install", "-qq", "-y", "--no-install-recommends", package];
    let installed = output(Command::new("apt-get").args(words).env("DEBIAN_FRONTEND", "noninteractive"));
    let text = installed.map_err(|error| format!("{missing} is not there, and cannot be installed: {error}"))?;
    Ok(std::io::stderr().write_all(text.as_bytes())?)
}
