//! Compares live patching with Linux's: the modules of `tests/klp`, compiled for Linux, run the same scenes on Debian's
//! kernel, and Linux's log is compared line by line with the snapshots of our logs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use modload::patch::link;
use modload_fixtures::workspace_root;
use modload_tests::{KlpScene, klp_folder, klp_scenes};

use super::boots::LIVE_PATCHING;
use super::guest::{Guest, install_package};
use crate::options::Options;
use crate::process::{run as run_command, target_folder};
use crate::{Result, kernel};

/// Scenes whose logs differ by design, or that this kernel cannot run, with the reason. Such a scene must differ.
const DIFFERENT: &[(&str, &str)] = &[];

/// The prefix of the lines that the guest prints.
const MARK: &str = "KLP|";

/// Compiles, boots and compares.
pub(crate) fn run(options: &Options) -> Result<()> {
    let folder = match options.text("out") {
        "" => target_folder().join("oracle").join(LIVE_PATCHING.name),
        out => PathBuf::from(out),
    };
    let kernel = kernel::folder()?;
    let start = Instant::now();
    let modules = build(&folder.join("modules"), &release(&kernel)?)?;
    eprintln!("{} modules compiled for Linux in {:.1?}", modules.len(), start.elapsed());
    let guest = Guest {
        boot: &LIVE_PATCHING,
        program: "klp.c",
        kernel: &kernel,
        folder: folder.join("guest"),
        megabytes: options.number("megabytes")?,
        limit: Duration::from_secs(options.number("seconds")?),
    };
    guest.run(|archive| {
        for module in &modules {
            let name = module.file_name().ok_or("a module without a name")?.to_string_lossy();
            archive.copy(&format!("ko/{name}"), module)?;
        }
        Ok(archive.copy("scenes", &klp_folder().join("scenes.txt"))?)
    })?;
    let log = String::from_utf8_lossy(&fs::read(guest.log())?).into_owned();
    compare(&log, &folder)
}

/// Returns the kernel's release, which is part of the name of its header package.
fn release(kernel: &Path) -> Result<String> {
    let names = fs::read_dir(kernel.join("boot"))?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let releases = names.filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned));
    releases.max().ok_or_else(|| "there is no kernel in the package".into())
}

/// Compiles the scenes' modules with the kernel's own build system. Returns the files.
fn build(folder: &Path, release: &str) -> Result<Vec<PathBuf>> {
    let headers = PathBuf::from(format!("/usr/src/linux-headers-{release}"));
    if !headers.join("Makefile").exists() {
        install_package(&headers.display().to_string(), &format!("linux-headers-{release}"))?;
    }
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder.join("modload"))?;
    let guest = workspace_root().join("xtask/guest/klp");
    for from in [klp_folder(), guest.clone(), guest.join("modload")] {
        let to = if from.ends_with("modload") { folder.join("modload") } else { folder.to_owned() };
        for file in fs::read_dir(from)? {
            let file = file?;
            if file.file_type()?.is_file() {
                fs::copy(file.path(), to.join(file.file_name()))?;
            }
        }
    }
    let names = sources(folder)?;
    let objects: Vec<String> = names.iter().map(|name| format!("{name}.o")).collect();
    fs::write(folder.join("Kbuild"), format!("obj-m := {}\nccflags-y := -I$(src)\n", objects.join(" ")))?;
    let of_module = format!("M={}", folder.canonicalize()?.display());
    // Marked symbols of a patch are defined in no module here, which modpost would otherwise refuse.
    let words = [&of_module, "KBUILD_MODPOST_WARN=1", "modules"];
    run_command(Command::new("make").arg("-s").arg("-C").arg(&headers).args(words))?;
    let modules: Vec<PathBuf> = names.iter().map(|name| folder.join(format!("{name}.ko"))).collect();
    modules.iter().try_for_each(|module| link(module))?;
    Ok(modules)
}

/// Links the marked references of a module, if there are any.
fn link(module: &Path) -> Result<()> {
    match link::link(&fs::read(module)?) {
        Ok(linked) => Ok(fs::write(module, linked.bytes)?),
        Err(link::PatchLinkError::NothingMarked) => Ok(()),
        Err(refused) => Err(format!("{}: {refused}", module.display()).into()),
    }
}

/// Returns the names of the modules, from their sources.
fn sources(folder: &Path) -> Result<Vec<String>> {
    let paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let sources = paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "c"));
    let mut names: Vec<String> = sources.filter_map(|path| path.file_stem()?.to_str()).map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

/// Compares Linux's log of each scene with our snapshot, and writes Linux's log to a file.
fn compare(log: &str, folder: &Path) -> Result<()> {
    let (mut same, mut lines, mut wrong) = (0, 0, Vec::new());
    let scenes = klp_scenes();
    for scene in &scenes {
        let (theirs, ours) = (of_linux(log, scene), of_ours(scene)?);
        let difference = difference(&ours, &theirs);
        let by_design = DIFFERENT.iter().find(|(title, _)| *title == scene.title);
        fs::write(folder.join(format!("{}.linux", scene.name())), theirs.join("\n"))?;
        match (difference, by_design) {
            (None, None) => {
                same += 1;
                lines += ours.len();
            }
            (Some(_), Some((title, why))) => println!("{title}: differs by design: {why}"),
            (None, Some((title, _))) => wrong.push(format!("{title}: should differ by design, and does not")),
            (Some(difference), None) => wrong.push(format!("{}:\n{difference}", scene.title)),
        }
    }
    println!(
        "live patching: {same} of {} scenes are as on Linux, {lines} lines; {} differ by design",
        scenes.len(),
        DIFFERENT.len()
    );
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// Returns the lines of a scene in the guest's log.
fn of_linux(log: &str, scene: &KlpScene) -> Vec<String> {
    let marked = log.lines().filter_map(|line| line.trim_end().strip_prefix(MARK));
    let title = format!("scene {}", scene.title);
    let scene = marked.skip_while(|line| *line != title).skip(1);
    scene.take_while(|line| !line.starts_with("scene ")).map(str::to_owned).collect()
}

/// Returns the lines of a scene's snapshot, without its header.
fn of_ours(scene: &KlpScene) -> Result<Vec<String>> {
    let path = scene.snapshot();
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let body = text.splitn(3, "---\n").nth(2).ok_or("a snapshot without a head")?;
    Ok(body.lines().map(str::to_owned).collect())
}

/// Returns the first difference of two logs, with some lines of each.
fn difference(ours: &[String], theirs: &[String]) -> Option<String> {
    const SHOWN: usize = 4;
    let first = (0..ours.len().max(theirs.len())).find(|&line| ours.get(line) != theirs.get(line))?;
    let from = first.saturating_sub(1);
    let some = |label: &str, lines: &[String]| -> String {
        lines.iter().skip(from).take(SHOWN).map(|line| format!("  {label} {line}\n")).collect()
    };
    Some(format!("  from line {} on\n{}{}", first + 1, some("ours ", ours), some("Linux", theirs)))
}

#[cfg(test)]
mod tests {
    use super::{difference, of_linux};
    use modload_fixtures::workspace_root;
    use modload_tests::KlpScene;

    #[test]
    fn marks_are_those_of_the_sdk() {
        let marks = |header: &str| -> Vec<String> {
            let text = std::fs::read_to_string(workspace_root().join(header)).unwrap();
            text.lines().filter(|line| line.starts_with("#define KLP_SYMBOL")).map(str::to_owned).collect()
        };
        let sdk = marks("sdk/include/modload/livepatch.h");
        assert_eq!(sdk.len(), 2);
        assert_eq!(marks("xtask/guest/klp/modload/livepatch.h"), sdk);
    }

    #[test]
    fn a_scene_is_what_stands_between_two_titles() {
        let log = "boot\r\nKLP|scene a\r\nKLP|% load x\r\nnoise\r\nKLP|livepatch: y\r\nKLP|scene b\r\nKLP|z\r\n";
        let scene = |title: &str| KlpScene { title: title.to_owned(), steps: Vec::new() };
        assert_eq!(of_linux(log, &scene("a")), ["% load x", "livepatch: y"]);
        assert_eq!(of_linux(log, &scene("b")), ["z"]);
        assert!(of_linux(log, &scene("c")).is_empty());
    }

    #[test]
    fn a_difference_is_named_by_its_line() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        assert_eq!(difference(&lines(&["a", "b"]), &lines(&["a", "b"])), None);
        let text = difference(&lines(&["a", "b", "c"]), &lines(&["a", "c"])).unwrap();
        assert_eq!(text, "  from line 2 on\n  ours  a\n  ours  b\n  ours  c\n  Linux a\n  Linux c\n");
        assert!(difference(&lines(&["a"]), &[]).is_some() && difference(&[], &lines(&["a"])).is_some());
    }
}
