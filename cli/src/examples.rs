//! Checks that the examples in the help of every command are valid command lines.

use std::ffi::OsString;

use clap::Command;

use crate::{args, commands, operate_args};

/// Returns all commands and subcommands, with their names as typed.
fn all() -> Vec<(String, Command)> {
    let mut all = Vec::new();
    for mut command in commands() {
        command.build();
        let subcommands = command.get_subcommands().filter(|command| command.get_name() != "help");
        let name = |command: &Command| command.get_bin_name().unwrap_or(command.get_name()).to_owned();
        all.extend(subcommands.map(|command| (name(command), command.clone())));
        all.push((name(&command), command));
    }
    all
}

/// Splits a shell line into commands and words. Understands quotes and the separators of commands.
fn shell(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let (mut word, mut quote) = (String::new(), None);
    for letter in line.chars().chain([' ']) {
        match (letter, quote) {
            (letter, Some(mark)) if letter == mark => quote = None,
            ('\'' | '"', None) => quote = Some(letter),
            ('|' | '&' | ';' | ' ', None) => {
                let last = commands.last_mut().expect("there is one from the start");
                last.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty()));
                if letter != ' ' {
                    commands.push(Vec::new());
                }
            }
            (letter, _) => word.push(letter),
        }
    }
    commands
}

/// Parses a command line with the parser of its command. Returns `None` for other programs.
fn parse(words: &[String]) -> Option<Result<(), clap::Error>> {
    let arguments = words.iter().map(OsString::from);
    Some(match words.first()?.as_str() {
        "modload" => args::parse(arguments).map(drop),
        "modhost" => operate_args::parse_host(arguments).map(drop),
        "modunload" => operate_args::parse_unload(arguments).map(drop),
        _ => return None,
    })
}

#[test]
fn every_command_has_examples_that_it_takes() {
    let all = all();
    assert!(all.len() >= 8, "only {}", all.len());
    for (name, command) in &all {
        let help = command.get_after_help().unwrap_or_else(|| panic!("{name} has no examples")).to_string();
        assert!(help.starts_with("Examples:\n"), "{name}: {help}");
        assert!(
            help.trim_end().lines().last().is_some_and(|last| last.starts_with("Exit status: 0 ")),
            "{name}: {help}"
        );
        let examples = help.lines().skip(1).take_while(|line| !line.is_empty());
        let mut own = 0;
        // Lines with more indentation are explanations.
        for line in examples.filter(|line| !line.starts_with("   ")) {
            for words in shell(line) {
                own += usize::from(words.join(" ").contains(name.as_str()));
                if let Some(Err(refused)) = parse(&words) {
                    panic!("{name}: {line}: {refused}");
                }
            }
        }
        assert!(own > 0, "{name}: no example of its own");
    }
}

#[test]
fn an_example_that_is_wrong_is_found() {
    let words = shell("cc -c 'a b.c' && modload --nonsense a.o | jq '.a | .b' &");
    assert_eq!(words[0], ["cc", "-c", "a b.c"]);
    let refused: Vec<_> = words.iter().filter_map(|words| parse(words)).filter(Result::is_err).collect();
    assert_eq!((refused.len(), words.iter().filter(|words| !words.is_empty()).count()), (1, 3));
}
