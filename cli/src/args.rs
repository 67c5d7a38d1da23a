//! The command line of `modload`, and what the other commands share with it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use modload_control::{HOST_VARIABLE, host_of_environment};

use crate::call::Call;
use crate::host_options::HostOptions;
use crate::trace_args::TraceFunctions;

const EXAMPLES: &str = "\
Examples:
  cc -O2 -c plain.c && modload --call add=2,3 plain.o
      Loads a plain object, calls add(2, 3) in it, prints the result, unloads it.
  modload --trace greet.o times=3 -- guest.o visits=2
      Loads greet with a parameter, then guest, which uses it, and prints every event in order.
  modload --format json --trace greet.o | jq -c 'select(.event == \"notify\")'
      The same events as JSON, one object a line.
  modload --deps modules guest
      Loads the module guest from the folder modules, after all the modules of that folder that it needs.
  modload --name greeter greet.o words.o libgreet.a
      Loads two objects, and what they need of an archive, as one module.
  modload --host /run/modload.sock greet.o times=3
      Loads it into the host that modhost serve keeps there. modunload --host /run/modload.sock greet takes it out.
  modload --trace-functions 'plain:*' --trace-graph --call add=2,3 plain.o
      Shows which functions of it ran and for how long, if they are compiled with -fpatchable-function-entry=5.
  gdb -ex 'set breakpoint pending on' -ex 'break add' -ex run --args modload --gdb --call add=2,3 plain.o
      Stops in a module's function, in init's as well. With -g there are lines and variables.
  perf record -- modload --perf-map --call add=2,3 plain.o
      Has perf report show a module's functions by name.
  modload --demo
      Shows all this with two modules that are part of this program.

A parameter without a value (NAME alone) is for bools. What a module is loaded with follows its file, up to the next --.
Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

/// Load relocatable objects (.o, .ko) into a host that lasts as long as the command, call their functions, and unload
/// them in reverse order.
#[derive(Parser, Debug)]
#[command(name = "modload", version, after_help = EXAMPLES, max_term_width = 120)]
#[command(override_usage = "modload [OPTIONS] FILE [PARAM=VALUE]... [-- FILE [PARAM=VALUE]...]...\n       \
        modload [OPTIONS] --name NAME FILE FILE... [PARAM=VALUE]... [-- ..]...\n       \
        modload [OPTIONS] --deps DIR NAME [PARAM=VALUE]... [-- NAME [PARAM=VALUE]...]...\n       \
        modload --host SOCKET [OPTIONS] [FILE [PARAM=VALUE]... [-- FILE [PARAM=VALUE]...]...]\n       \
        modload --demo")]
pub(crate) struct Arguments {
    /// After all loads, call a function with up to six integers (decimal or 0x..) and print the result. TYPE is the
    /// result's: i32 (the default), u32, i64, u64 or void. May be repeated.
    #[arg(long, value_name = "SYMBOL[:TYPE][=ARG,..]", allow_hyphen_values = true)]
    call: Vec<Call>,

    /// Print everything that happens, in order.
    #[arg(long)]
    trace: bool,

    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    #[command(flatten)]
    options: HostOptions,

    #[command(flatten)]
    functions: TraceFunctions,

    /// Load into the host that serves at this socket (modhost serve), where the modules stay, and make the calls
    /// there. The environment variable MODLOAD_HOST does the same.
    #[arg(long, value_name = "SOCKET")]
    host: Option<PathBuf>,

    /// Make one module of several objects and archives: every word is a file, up to the first PARAM=VALUE. After a --
    /// it holds for the module that stands there. A name= in the module's own .modinfo goes before NAME.
    #[arg(long, value_name = "NAME", conflicts_with = "deps")]
    name: Option<String>,

    /// Before anything is called, show this function before and after, with all that changed it. May be repeated.
    #[arg(long, value_name = "SYMBOL", conflicts_with = "host")]
    explain: Vec<String>,

    /// Take modules by name from this folder, and whatever they need from it before them.
    #[arg(long, value_name = "DIR", conflicts_with = "export_globals")]
    deps: Option<PathBuf>,

    /// Load two modules that are part of this program, and show what happens.
    #[arg(long, conflicts_with_all = ["call", "explain", "trace", "patterns", "export_globals", "no_process_symbols", "policy", "vermagic", "block", "cpu", "gdb", "perf_map", "deps", "host", "name", "file"])]
    demo: bool,

    /// The module's file. With --host and --call there need be none.
    file: Option<PathBuf>,

    /// Its parameters.
    #[arg(value_name = "PARAM=VALUE")]
    params: Vec<String>,
}

/// What the command is to do.
#[derive(Debug)]
pub(crate) enum Command {
    Demo { format: Format },
    Load(Box<Load>),
}

/// What is to be loaded and called.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) modules: Vec<ModuleArguments>,
    /// The folder in which the modules' names are looked up, if they are names.
    pub(crate) deps: Option<PathBuf>,
    pub(crate) calls: Vec<Call>,
    /// Functions to be explained.
    pub(crate) explain: Vec<String>,
    pub(crate) trace: Trace,
    /// Functions to be traced, by an embedded host.
    pub(crate) functions: TraceFunctions,
    pub(crate) format: Format,
    pub(crate) target: Target,
}

/// Where modules are loaded.
#[derive(Debug)]
pub(crate) enum Target {
    /// Into a host that lasts as long as the command.
    Embedded(HostOptions),
    /// Into the host that serves at this socket.
    Served(PathBuf),
}

/// What becomes one module, and what it is loaded with.
#[derive(Clone, Debug)]
pub(crate) struct ModuleArguments {
    /// The name it gets if it has none of its own. Without one there is one file, whose stem is the name.
    pub(crate) name: Option<String>,
    /// The first one is a module's name with `--deps`.
    pub(crate) file: PathBuf,
    /// Those that are linked with it.
    pub(crate) others: Vec<PathBuf>,
    pub(crate) params: Vec<String>,
}

impl ModuleArguments {
    /// With a name, what stands before the first parameter with a value is a file.
    pub(crate) fn new(name: Option<String>, file: PathBuf, mut rest: Vec<String>) -> ModuleArguments {
        let files = if name.is_some() { rest.iter().take_while(|word| !word.contains('=')).count() } else { 0 };
        let params = rest.split_off(files);
        ModuleArguments { name, file, others: rest.into_iter().map(PathBuf::from).collect(), params }
    }

    /// All files, in the order in which they are linked.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&*self.file).chain(self.others.iter().map(PathBuf::as_path))
    }
}

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum Format {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trace {
    Off,
    On,
}

/// The groups of arguments between each `--` and the next. clap would drop the first one.
pub(crate) fn groups(arguments: &[OsString]) -> impl Iterator<Item = &[OsString]> {
    arguments.split(|argument| argument == "--")
}

/// The modules of all groups: `first` is what clap made of the one before the first `--`, and the others have a file and
/// its parameters each.
pub(crate) fn modules<'a>(
    first: First,
    groups: impl Iterator<Item = &'a [OsString]>,
) -> Result<Vec<ModuleArguments>, String> {
    let first = match first {
        First { name: Some(_), file: None, .. } => return Err("--name stands before the files of its module".into()),
        First { file: None, .. } => None,
        First { name, file: Some(file), params } => Some(Ok(ModuleArguments::new(name, file, params))),
    };
    first.into_iter().chain(groups.map(module)).collect()
}

/// A module as clap has parsed it.
pub(crate) struct First {
    pub(crate) name: Option<String>,
    pub(crate) file: Option<PathBuf>,
    pub(crate) params: Vec<String>,
}

fn module(group: &[OsString]) -> Result<ModuleArguments, String> {
    let text = |word: &OsString| word.clone().into_string().map_err(|word| format!("{word:?} is not UTF-8"));
    let (name, group) = match group {
        [flag, name, group @ ..] if flag == "--name" => (Some(text(name)?), group),
        [flag] if flag == "--name" => return Err("--name is followed by a name".into()),
        [flag, rest @ ..] => match flag.to_str().and_then(|flag| flag.strip_prefix("--name=")) {
            Some(name) => (Some(name.to_owned()), rest),
            None => (None, group),
        },
        [] => (None, group),
    };
    let (file, rest) = group.split_first().ok_or("a -- must be followed by a file")?;
    Ok(ModuleArguments::new(name, file.into(), rest.iter().map(text).collect::<Result<_, _>>()?))
}

/// Parses the command line. What stands behind the first `--` is split by hand.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Command, clap::Error> {
    let arguments: Vec<OsString> = arguments.collect();
    let mut groups = groups(&arguments);
    let matches = Arguments::command().try_get_matches_from(groups.next().unwrap_or_default())?;
    let parsed = Arguments::from_arg_matches(&matches)?;
    let wrong = |kind, message: String| Arguments::command().error(kind, message);
    let first = First { name: parsed.name, file: parsed.file, params: parsed.params };
    let modules = modules(first, groups).map_err(|message| wrong(ErrorKind::ValueValidation, message))?;
    if parsed.demo {
        if !modules.is_empty() {
            return Err(wrong(ErrorKind::ValueValidation, "--demo takes no files".into()));
        }
        return Ok(Command::Demo { format: parsed.format });
    }
    if parsed.deps.is_some() && modules.iter().any(|module| module.name.is_some()) {
        return Err(wrong(ErrorKind::ArgumentConflict, "with --deps modules have the names of their files".into()));
    }
    let served = parsed.host.or_else(host_of_environment);
    let json = parsed.format == Format::Json;
    parsed.functions.check(json).map_err(|message| wrong(ErrorKind::ArgumentConflict, message))?;
    if served.is_some() && !parsed.functions.patterns.is_empty() {
        let message = format!(
            "--trace-functions is for the host that modload embeds, and --host (or {HOST_VARIABLE}) names another one: modhost \
             trace traces that"
        );
        return Err(wrong(ErrorKind::ArgumentConflict, message));
    }
    let target = match (served, parsed.options.given()) {
        (None, _) => Target::Embedded(parsed.options),
        (Some(_), Some(option)) => {
            let message = format!(
                "{option} is for the host that modload embeds, and --host (or {HOST_VARIABLE}) names another one"
            );
            return Err(wrong(ErrorKind::ArgumentConflict, message));
        }
        (Some(socket), None) => Target::Served(socket),
    };
    let calls_only = matches!(target, Target::Served(_)) && !parsed.call.is_empty();
    if modules.is_empty() && !calls_only {
        return Err(wrong(ErrorKind::MissingRequiredArgument, "a FILE must be named".into()));
    }
    Ok(Command::Load(Box::new(Load {
        modules,
        deps: parsed.deps,
        calls: parsed.call,
        explain: parsed.explain,
        trace: if parsed.trace { Trace::On } else { Trace::Off },
        functions: parsed.functions,
        format: parsed.format,
        target,
    })))
}

#[cfg(test)]
mod tests {
    use super::{Command, parse};

    fn modules(line: &str) -> Result<Vec<(String, Vec<String>)>, String> {
        match parse(line.split(' ').map(Into::into)) {
            Ok(Command::Load(load)) => {
                Ok(load.modules.into_iter().map(|module| (module.file.display().to_string(), module.params)).collect())
            }
            Ok(Command::Demo { .. }) => Ok(vec![]),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn files_are_separated_by_dashes() {
        let expected = vec![
            ("a.o".into(), vec!["x=1".into(), "flag".into()]),
            ("b.o".into(), vec![]),
            ("--c.o".into(), vec!["--y=2".into()]),
        ];
        assert_eq!(modules("modload --trace a.o x=1 flag -- b.o -- --c.o --y=2"), Ok(expected));
    }

    #[test]
    fn with_a_name_words_are_files_up_to_the_first_value() {
        let parsed = parse("modload --name m a.o b.o x=1 flag -- --name n c.o d.a".split(' ').map(Into::into)).unwrap();
        let Command::Load(load) = parsed else { panic!("{parsed:?}") };
        let modules: Vec<_> = load
            .modules
            .iter()
            .map(|module| {
                (module.name.as_deref(), module.files().map(|file| file.to_str().unwrap()).collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(modules, [(Some("m"), vec!["a.o", "b.o"]), (Some("n"), vec!["c.o", "d.a"])]);
        assert_eq!(load.modules[0].params, ["x=1", "flag"]);
    }

    #[test]
    fn nonsense_is_wrong_usage() {
        for line in
            ["modload", "modload --no-such a.o", "modload a.o --", "modload --demo -- a.o", "modload --call f=x a.o"]
        {
            assert!(modules(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_name_belongs_to_files_that_follow_it() {
        assert_eq!(modules("modload a.o -- --name=n c.o x=1"), modules("modload a.o -- --name n c.o x=1"));
        for (line, says) in [
            ("modload --name m -- a.o", "stands before the files"),
            ("modload --host s --call f --name m", "stands before the files"),
            ("modload a.o -- --name", "followed by a name"),
            ("modload a.o -- --name m", "followed by a file"),
            ("modload a.o -- --name=m", "followed by a file"),
            ("modload --deps d a -- --name m b", "names of their files"),
            ("modload --deps d --name m a", "cannot be used with"),
        ] {
            let refused = modules(line).unwrap_err();
            assert!(refused.contains(says), "{line}: {refused}");
        }
    }
}
