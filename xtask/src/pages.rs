//! Man pages and completions, generated from the parsers of the commands.

use std::fs;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::Result;
use crate::options::Options;

/// Runs `cargo xtask man`.
pub(crate) fn man(options: &Options) -> Result<()> {
    let folder = Path::new(options.text("out"));
    fs::create_dir_all(folder)?;
    for command in commands() {
        fs::write(folder.join(format!("{}.1", title(&command))), page(&command)?)?;
    }
    println!("{}", folder.display());
    Ok(())
}

/// Runs `cargo xtask completions`.
pub(crate) fn completions(options: &Options) -> Result<()> {
    let folder = Path::new(options.text("out"));
    fs::create_dir_all(folder)?;
    for mut command in modload_cli::commands() {
        let name = command.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut command, &name, folder)?;
        }
    }
    println!("{}", folder.display());
    Ok(())
}

/// Returns the commands and their subcommands. Each has a page.
fn commands() -> Vec<Command> {
    let mut all = Vec::new();
    for command in modload_cli::commands() {
        // The pages contain the same text as the help subcommand.
        let mut command = command.disable_help_subcommand(true);
        command.build();
        let subcommands: Vec<Command> = command.get_subcommands().cloned().collect();
        all.push(command);
        all.extend(subcommands);
    }
    all
}

/// Returns the title of a page, for example `modhost-serve`.
fn title(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

/// Returns a page, in roff.
fn page(command: &Command) -> Result<Vec<u8>> {
    let source = concat!("modload ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).source(source).manual("modload");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    Help::of(&help)
        .ok_or_else(|| format!("{}: the end of its help is not as expected", title(command)))?
        .render(title(command), &mut page)?;
    Ok(page)
}

/// The parsed end of a command's help.
struct Help<'a> {
    /// Command lines, and their explanations.
    examples: Vec<(&'a str, String)>,
    notes: Vec<&'a str>,
    exit_status: &'a str,
}

impl Help<'_> {
    /// Parses "Examples:", with command lines indented by two and explanations by six; an empty line; notes; "Exit
    /// status: ".
    fn of(text: &str) -> Option<Help<'_>> {
        let (examples, rest) = text.strip_prefix("Examples:\n")?.split_once("\n\n")?;
        let mut help = Help { examples: Vec::new(), notes: Vec::new(), exit_status: "" };
        for line in examples.lines() {
            match (line.strip_prefix("      "), help.examples.last_mut()) {
                (Some(more), Some((_, does))) => *does = [does, " ", more].concat().trim().to_owned(),
                _ => help.examples.push((line.trim(), String::new())),
            }
        }
        for line in rest.lines().filter(|line| !line.is_empty()) {
            match line.strip_prefix("Exit status: ") {
                Some(status) => help.exit_status = status,
                None => help.notes.push(line),
            }
        }
        (!help.exit_status.is_empty()).then_some(help)
    }

    fn render(&self, title: &str, page: &mut Vec<u8>) -> Result<()> {
        let mut roff = Roff::new();
        if !self.notes.is_empty() {
            roff.control("SH", ["NOTES"]);
            for note in &self.notes {
                roff.text([roman(*note)]);
            }
        }
        roff.control("SH", ["EXAMPLES"]);
        for (command, does) in &self.examples {
            roff.control("TP", ["4"]);
            roff.text([bold(*command)]);
            roff.text([roman(does.as_str())]);
        }
        roff.control("SH", ["EXIT STATUS"]);
        roff.text([roman(self.exit_status)]);
        roff.control("SH", ["SEE ALSO"]);
        let others: Vec<String> =
            commands().iter().map(self::title).filter(|it| *it != title).map(|it| format!("{it}(1)")).collect();
        roff.text([roman(others.join(", "))]);
        roff.to_writer(page)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Write;
    use std::path::PathBuf;
    use std::process::{Command as Process, Stdio};

    use super::*;

    /// Returns the long options in a command's help.
    fn long_options(command: &Command) -> BTreeSet<String> {
        let help = command.clone().render_long_help().to_string();
        let shown = help.lines().map(str::trim).filter(|line| line.starts_with('-'));
        let long = |line: &str| {
            let name = &line[line.find("--")?..];
            Some(name.split(|letter: char| letter != '-' && !letter.is_ascii_alphanumeric()).next()?.to_owned())
        };
        shown.filter_map(long).collect()
    }

    fn made() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let options = Options::parse(&[("out", "")], &[format!("out={}", out.display())]).unwrap();
        man(&options).unwrap();
        completions(&options).unwrap();
        (dir, out)
    }

    #[test]
    fn every_command_has_a_page_with_all_its_options() {
        let (_dir, out) = made();
        let commands = commands();
        assert!(commands.len() >= 8);
        for command in &commands {
            let page = fs::read_to_string(out.join(format!("{}.1", title(command)))).unwrap().replace("\\-", "-");
            let options = long_options(command);
            assert!(options.contains("--help"), "{options:?}");
            for part in options.iter().map(String::as_str).chain([
                ".SH SYNOPSIS",
                ".SH OPTIONS",
                ".SH EXAMPLES",
                ".SH \"EXIT STATUS\"",
                "SEE ALSO",
            ]) {
                assert!(page.contains(part), "{}: {part}\n{page}", title(command));
            }
        }
        let read = |name: &str| fs::read_to_string(out.join(name)).unwrap().replace("\\-", "-");
        // The usage line is written by hand, because of the arguments after --.
        assert!(read("modload.1").contains("\\fBmodload\\fR [OPTIONS] --deps DIR NAME [PARAM=VALUE]... [-- NAME"));
        assert!(read("modhost-serve.1").contains("\\fBmodhost serve\\fR [OPTIONS] [FILE [PARAM=VALUE]... [-- FILE"));
        assert!(read("modhost.1").contains("modhost-serve(1)"));
    }

    #[test]
    fn groff_has_nothing_against_the_pages() {
        for command in commands() {
            let started = Process::new("groff")
                .args(["-man", "-Tascii", "-ww"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn();
            let Ok(mut groff) = started else {
                // Written past the test harness's capture, so that the skipped test is visible.
                writeln!(std::io::stderr(), "SKIPPED groff_has_nothing_against_the_pages: there is no groff").unwrap();
                return;
            };
            groff.stdin.take().unwrap().write_all(&page(&command).unwrap()).unwrap();
            let output = groff.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{}: {said}", title(&command));
            assert!(output.stdout.len() > 500);
        }
    }

    #[test]
    fn completions_know_every_option_of_every_command() {
        let (_dir, out) = made();
        let read = |name: String| fs::read_to_string(out.join(name)).unwrap();
        for command in &commands() {
            let words = command.get_bin_name().unwrap_or(command.get_name());
            let name = words.split(' ').next().unwrap();
            let (zsh, fish) = (read(format!("_{name}")), read(format!("{name}.fish")));
            let bash = out.join(format!("{name}.bash"));
            assert!(Process::new("bash").arg("-n").arg(&bash).status().unwrap().success(), "{name}");
            // The completions that bash offers after the beginning of an option.
            let ask = format!(
                "source '{}'; COMP_WORDS=({words} --); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
                 _{name} {name} -- x; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
                bash.display()
            );
            let output = Process::new("bash").args(["-c", &ask]).output().unwrap();
            let offered = String::from_utf8(output.stdout).unwrap();
            let offered: BTreeSet<&str> = offered.lines().collect();
            for option in long_options(command) {
                assert!(offered.contains(option.as_str()), "{words} {option}: {offered:?}");
                let long = option.trim_start_matches('-');
                assert!(zsh.contains(&option) && fish.contains(&format!("-l {long}")), "{words} {option}");
            }
        }
    }
}
