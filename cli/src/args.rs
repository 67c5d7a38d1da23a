//! The command line of `modload`, and the parts that the other commands share.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use modload_control::{HOST_VARIABLE, host_of_environment};

use crate::call::CallOption;
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
      Loads it into a running modhost serve. modunload --host /run/modload.sock greet unloads it.
  modload --trace-functions 'plain:*' --trace-graph --call add=2,3 plain.o
      Shows which functions of the module ran and for how long, if it was compiled with -fpatchable-function-entry=5.
  gdb -ex 'set breakpoint pending on' -ex 'break add' -ex run --args modload --gdb --call add=2,3 plain.o
      Stops in a function of the module, also in init. If compiled with -g, gdb shows lines and variables.
  perf record -- modload --perf-map --call add=2,3 plain.o
      Makes perf report show a module's functions by name.
  modload --demo
      Shows all this with two modules that are built into this program.

NAME without a value sets a bool parameter. The parameters of a module follow its file, up to the next --.
Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

/// Load relocatable objects (.o, .ko) into a host inside this process, call their functions, and unload them in reverse
/// order.
#[derive(Parser, Debug)]
#[command(name = "modload", version, after_help = EXAMPLES, max_term_width = 120)]
#[command(override_usage = "modload [OPTIONS] FILE [PARAM=VALUE]... [-- FILE [PARAM=VALUE]...]...\n       \
        modload [OPTIONS] --name NAME FILE FILE... [PARAM=VALUE]... [-- ..]...\n       \
        modload [OPTIONS] --deps DIR NAME [PARAM=VALUE]... [-- NAME [PARAM=VALUE]...]...\n       \
        modload --host SOCKET [OPTIONS] [FILE [PARAM=VALUE]... [-- FILE [PARAM=VALUE]...]...]\n       \
        modload --demo")]
pub(crate) struct Arguments {
    /// Call a function with up to six integers (decimal or 0x..) after all loads, and print the result. TYPE is the
    /// type of the result: i32 (the default), u32, i64, u64 or void. May be repeated.
    #[arg(long, value_name = "SYMBOL[:TYPE][=ARG,..]", allow_hyphen_values = true)]
    call: Vec<CallOption>,

    /// Print all events in order.
    #[arg(long)]
    trace: bool,

    /// The output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    #[command(flatten)]
    options: HostOptions,

    #[command(flatten)]
    functions: TraceFunctions,

    /// Load into the host that listens on this socket (modhost serve), and make the calls there. The modules stay
    /// loaded. The environment variable MODLOAD_HOST does the same.
    #[arg(long, value_name = "SOCKET")]
    host: Option<PathBuf>,

    /// Link several objects and archives into one module of this name: every word before the first PARAM=VALUE is a
    /// file. After a --, the option applies to the module that follows. A name= in the module's own .modinfo overrides
    /// NAME.
    #[arg(long, value_name = "NAME", conflicts_with = "deps")]
    name: Option<String>,

    /// Before any call, show the code of this function before and after loading, with all changes and their reasons.
    /// May be repeated.
    #[arg(long, value_name = "SYMBOL", conflicts_with = "host")]
    explain: Vec<String>,

    /// Load modules by name from this folder. The modules of the folder that they need are loaded before.
    #[arg(long, value_name = "DIR", conflicts_with = "export_globals")]
    deps: Option<PathBuf>,

    /// Load two modules that are built into this program, and show every step.
    #[arg(long, conflicts_with_all = ["call", "explain", "trace", "patterns", "export_globals", "no_process_symbols", "library", "policy", "vermagic", "block", "cpu", "gdb", "perf_map", "deps", "host", "name", "file"])]
    demo: bool,

    /// The file of the module. Not required with --host and --call.
    file: Option<PathBuf>,

    /// The parameters of the module.
    #[arg(value_name = "PARAM=VALUE")]
    params: Vec<String>,
}

/// The task of the command.
#[derive(Debug)]
pub(crate) enum ModloadCommand {
    Demo { format: Format },
    Load(Box<LoadCommand>),
}

/// The modules to load and the calls to make.
#[derive(Debug)]
pub(crate) struct LoadCommand {
    pub(crate) modules: Vec<ModuleArguments>,
    /// The folder with the modules, if `modules` holds names.
    pub(crate) deps: Option<PathBuf>,
    pub(crate) calls: Vec<CallOption>,
    /// The functions to explain.
    pub(crate) explain: Vec<String>,
    pub(crate) trace: PrintEvents,
    /// The functions to trace, in an embedded host.
    pub(crate) functions: TraceFunctions,
    pub(crate) format: Format,
    pub(crate) target: LoadTarget,
}

/// The host into which modules are loaded.
#[derive(Debug)]
pub(crate) enum LoadTarget {
    /// A host inside this process.
    Embedded(HostOptions),
    /// The host that listens on this socket.
    Served(PathBuf),
}

/// The files that become one module, and its parameters.
#[derive(Clone, Debug)]
pub(crate) struct ModuleArguments {
    /// The default name of the module. Without it there is one file, whose stem is the default name.
    pub(crate) name: Option<String>,
    /// The first file. With `--deps`, the name of a module.
    pub(crate) file: PathBuf,
    /// The other files, which are linked with the first.
    pub(crate) others: Vec<PathBuf>,
    pub(crate) params: Vec<String>,
}

impl ModuleArguments {
    /// Splits the words after the first file. With a name, words before the first `PARAM=VALUE` are files.
    pub(crate) fn new(name: Option<String>, file: PathBuf, mut rest: Vec<String>) -> ModuleArguments {
        let files = if name.is_some() { rest.iter().take_while(|word| !word.contains('=')).count() } else { 0 };
        let params = rest.split_off(files);
        ModuleArguments { name, file, others: rest.into_iter().map(PathBuf::from).collect(), params }
    }

    /// Returns all files, in the order in which they are linked.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&*self.file).chain(self.others.iter().map(PathBuf::as_path))
    }
}

/// The output format.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum Format {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PrintEvents {
    Off,
    On,
}

/// Splits the arguments at each `--`. clap would drop the first `--`.
pub(crate) fn groups(arguments: &[OsString]) -> impl Iterator<Item = &[OsString]> {
    arguments.split(|argument| argument == "--")
}

/// Returns the modules of all groups. `first` is the group before the first `--`, parsed by clap. Every other group is
/// a file with its parameters.
pub(crate) fn modules<'a>(
    first: FirstModule,
    groups: impl Iterator<Item = &'a [OsString]>,
) -> Result<Vec<ModuleArguments>, String> {
    let first = match first {
        FirstModule { name: Some(_), file: None, .. } => {
            return Err("--name needs the files of its module after it".into());
        }
        FirstModule { file: None, .. } => None,
        FirstModule { name, file: Some(file), params } => Some(Ok(ModuleArguments::new(name, file, params))),
    };
    first.into_iter().chain(groups.map(module)).collect()
}

/// The first module, as parsed by clap.
pub(crate) struct FirstModule {
    pub(crate) name: Option<String>,
    pub(crate) file: Option<PathBuf>,
    pub(crate) params: Vec<String>,
}

fn module(group: &[OsString]) -> Result<ModuleArguments, String> {
    let text = |word: &OsString| word.clone().into_string().map_err(|word| format!("{word:?} is not UTF-8"));
    let (name, group) = match group {
        [flag, name, group @ ..] if flag == "--name" => (Some(text(name)?), group),
        [flag] if flag == "--name" => return Err("--name must be followed by a name".into()),
        [flag, rest @ ..] => match flag.to_str().and_then(|flag| flag.strip_prefix("--name=")) {
            Some(name) => (Some(name.to_owned()), rest),
            None => (None, group),
        },
        [] => (None, group),
    };
    let (file, rest) = group.split_first().ok_or("a -- must be followed by a file")?;
    Ok(ModuleArguments::new(name, file.into(), rest.iter().map(text).collect::<Result<_, _>>()?))
}

/// Parses the command line. The arguments after the first `--` are split without clap.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<ModloadCommand, clap::Error> {
    let arguments: Vec<OsString> = arguments.collect();
    let mut groups = groups(&arguments);
    let matches = Arguments::command().try_get_matches_from(groups.next().unwrap_or_default())?;
    let parsed = Arguments::from_arg_matches(&matches)?;
    let wrong = |kind, message: String| Arguments::command().error(kind, message);
    let first = FirstModule { name: parsed.name, file: parsed.file, params: parsed.params };
    let modules = modules(first, groups).map_err(|message| wrong(ErrorKind::ValueValidation, message))?;
    if parsed.demo {
        if !modules.is_empty() {
            return Err(wrong(ErrorKind::ValueValidation, "--demo takes no files".into()));
        }
        return Ok(ModloadCommand::Demo { format: parsed.format });
    }
    if parsed.deps.is_some() && modules.iter().any(|module| module.name.is_some()) {
        return Err(wrong(
            ErrorKind::ArgumentConflict,
            "--name cannot be used with --deps: the modules have the names of their files".into(),
        ));
    }
    let served = parsed.host.or_else(host_of_environment);
    let json = parsed.format == Format::Json;
    parsed.functions.check(json).map_err(|message| wrong(ErrorKind::ArgumentConflict, message))?;
    if served.is_some() && !parsed.functions.patterns.is_empty() {
        let message = format!(
            "--trace-functions applies to a host inside modload, but --host (or {HOST_VARIABLE}) names another one: use \
             modhost trace for that host"
        );
        return Err(wrong(ErrorKind::ArgumentConflict, message));
    }
    let target = match (served, parsed.options.given()) {
        (None, _) => LoadTarget::Embedded(parsed.options),
        (Some(_), Some(option)) => {
            let message =
                format!("{option} applies to a host inside modload, but --host (or {HOST_VARIABLE}) names another one");
            return Err(wrong(ErrorKind::ArgumentConflict, message));
        }
        (Some(socket), None) => LoadTarget::Served(socket),
    };
    let calls_only = matches!(target, LoadTarget::Served(_)) && !parsed.call.is_empty();
    if modules.is_empty() && !calls_only {
        return Err(wrong(ErrorKind::MissingRequiredArgument, "a FILE must be named".into()));
    }
    Ok(ModloadCommand::Load(Box::new(LoadCommand {
        modules,
        deps: parsed.deps,
        calls: parsed.call,
        explain: parsed.explain,
        trace: if parsed.trace { PrintEvents::On } else { PrintEvents::Off },
        functions: parsed.functions,
        format: parsed.format,
        target,
    })))
}

#[cfg(test)]
mod tests {
    use super::{ModloadCommand, parse};

    fn modules(line: &str) -> Result<Vec<(String, Vec<String>)>, String> {
        match parse(line.split(' ').map(Into::into)) {
            Ok(ModloadCommand::Load(load)) => {
                Ok(load.modules.into_iter().map(|module| (module.file.display().to_string(), module.params)).collect())
            }
            Ok(ModloadCommand::Demo { .. }) => Ok(vec![]),
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
        let ModloadCommand::Load(load) = parsed else { panic!("{parsed:?}") };
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
            ("modload --name m -- a.o", "needs the files of its module"),
            ("modload --host s --call f --name m", "needs the files of its module"),
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
