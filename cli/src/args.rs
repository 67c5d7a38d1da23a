//! The command line.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use modload::{Check, Rule};

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
        modload --demo")]
struct Arguments {
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

    /// Let modules use all global symbols of objects that declare no exports.
    #[arg(long)]
    export_globals: bool,

    /// Do not offer the process's own symbols (libc, libm) to modules.
    #[arg(long)]
    no_process_symbols: bool,

    /// What to do about modules that break a rule. RULE is versions, vermagic, namespaces, license or blocklist, CHECK
    /// is off, warn or enforce. May be repeated.
    #[arg(long, value_name = "RULE=CHECK", value_parser = policy)]
    policy: Vec<(Rule, Check)>,

    /// What a module's vermagic must be.
    #[arg(long, value_name = "TEXT")]
    vermagic: Option<String>,

    /// A module that must not be loaded. May be repeated.
    #[arg(long, value_name = "NAME")]
    block: Vec<String>,

    /// Make one module of several objects and archives: every word is a file, up to the first PARAM=VALUE. After a --
    /// it holds for the module that stands there.
    #[arg(long, value_name = "NAME", conflicts_with = "deps")]
    name: Option<String>,

    /// Take modules by name from this folder, and whatever they need from it before them.
    #[arg(long, value_name = "DIR", conflicts_with = "export_globals")]
    deps: Option<PathBuf>,

    /// Load two modules that are part of this program, and show what happens.
    #[arg(long, conflicts_with_all = ["call", "trace", "export_globals", "no_process_symbols", "policy", "vermagic", "block", "deps", "name", "file"])]
    demo: bool,

    /// The module's file.
    #[arg(required_unless_present = "demo")]
    file: Option<PathBuf>,

    /// Its parameters.
    #[arg(value_name = "PARAM=VALUE")]
    params: Vec<String>,
}

const HOST_EXAMPLES: &str = "\
Examples:
  modhost inspect greet.o
      Modinfo, parameters, exports, needs, sections and where they would go, relocations.
  modhost inspect --function greet_hello greet.o
      That function, disassembled, with the relocations that will change it.
  modhost inspect --format json greet.ko.xz | jq .exports

Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

/// Look at module files.
#[derive(Parser, Debug)]
#[command(name = "modhost", version, after_help = HOST_EXAMPLES, max_term_width = 120)]
struct HostArguments {
    #[command(subcommand)]
    command: HostCommand,
}

/// What `modhost` is to do.
#[derive(Subcommand, Debug)]
pub(crate) enum HostCommand {
    /// Show what a module file holds, without running anything of it. The file need not be trusted.
    #[command(after_help = HOST_EXAMPLES)]
    Inspect(Inspect),
}

/// What is to be shown of which file.
#[derive(clap::Args, Debug)]
pub(crate) struct Inspect {
    /// The module's file, compressed perhaps: an object, or an archive of several.
    pub(crate) file: PathBuf,

    /// Disassemble this function instead.
    #[arg(long, value_name = "NAME")]
    pub(crate) function: Option<String>,

    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Parses the command line of `modhost`.
pub(crate) fn parse_host(arguments: impl Iterator<Item = OsString>) -> Result<HostCommand, clap::Error> {
    HostArguments::try_parse_from(arguments).map(|arguments| arguments.command)
}

/// What the command is to do.
#[derive(Debug)]
pub(crate) enum Command {
    Demo { format: Format },
    Load(Load),
}

/// What is to be loaded and called.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) modules: Vec<ModuleArguments>,
    /// The folder in which the modules' names are looked up, if they are names.
    pub(crate) deps: Option<PathBuf>,
    pub(crate) calls: Vec<Call>,
    pub(crate) trace: Trace,
    pub(crate) format: Format,
    pub(crate) exports: Exports,
    pub(crate) process_symbols: ProcessSymbols,
    pub(crate) policy: Vec<(Rule, Check)>,
    pub(crate) vermagic: Option<String>,
    pub(crate) block: Vec<String>,
}

/// Parses `RULE=CHECK`.
fn policy(text: &str) -> Result<(Rule, Check), String> {
    const RULES: [Rule; 5] = [Rule::Versions, Rule::Vermagic, Rule::Namespaces, Rule::License, Rule::Blocklist];
    let (rule, check) = text.split_once('=').ok_or("a policy is RULE=CHECK")?;
    let known = RULES.into_iter().find(|known| known.name() == rule);
    let rule = known.ok_or_else(|| {
        format!("\"{rule}\" is none of the rules versions, vermagic, namespaces, license and blocklist")
    })?;
    let check = match check {
        "off" => Check::Off,
        "warn" => Check::Warn,
        "enforce" => Check::Enforce,
        other => return Err(format!("\"{other}\" is none of off, warn and enforce")),
    };
    Ok((rule, check))
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
    fn new(name: Option<String>, file: PathBuf, mut rest: Vec<String>) -> ModuleArguments {
        let files = if name.is_some() { rest.iter().take_while(|word| !word.contains('=')).count() } else { 0 };
        let params = rest.split_off(files);
        ModuleArguments { name, file, others: rest.into_iter().map(PathBuf::from).collect(), params }
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

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exports {
    Declared,
    Globals,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ProcessSymbols {
    Offered,
    Hidden,
}

/// A call: `SYMBOL[:TYPE][=ARG,..]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Call {
    pub(crate) symbol: String,
    pub(crate) result: ResultType,
    /// As they were written.
    pub(crate) written: Vec<String>,
    pub(crate) arguments: Vec<u64>,
}

/// The type of a call's result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ResultType {
    I32,
    U32,
    I64,
    U64,
    Void,
}

impl FromStr for Call {
    type Err = String;

    fn from_str(text: &str) -> Result<Call, String> {
        let (name, arguments) = text.split_once('=').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let (symbol, kind) = name.split_once(':').unwrap_or((name, "i32"));
        if symbol.is_empty() {
            return Err("a call begins with the name of a function".into());
        }
        let result = match kind {
            "i32" => ResultType::I32,
            "u32" => ResultType::U32,
            "i64" => ResultType::I64,
            "u64" => ResultType::U64,
            "void" => ResultType::Void,
            other => return Err(format!("\"{other}\" is none of the types i32, u32, i64, u64 and void")),
        };
        let written: Vec<String> = arguments.map_or_else(Vec::new, |text| text.split(',').map(str::to_owned).collect());
        if written.len() > 6 {
            return Err(format!("{} arguments, and six is the most", written.len()));
        }
        let number = |text: &String| integer(text).ok_or_else(|| format!("\"{text}\" is no integer of up to 64 bits"));
        let arguments = written.iter().map(number).collect::<Result<_, _>>()?;
        Ok(Call { symbol: symbol.into(), result, written, arguments })
    }
}

/// A 64-bit integer, decimal or hexadecimal with 0x, perhaps with a sign.
fn integer(text: &str) -> Option<u64> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let number = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => u64::from_str_radix(digits, 16).ok()?,
        None if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
        _ => return None,
    };
    if !negative {
        return Some(number);
    }
    // Down to i64::MIN.
    (number <= 1 << 63).then(|| number.wrapping_neg())
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.symbol, self.written.join(", "))
    }
}

/// Parses the command line. What stands behind the first `--` is split by hand: clap would drop that one.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Command, clap::Error> {
    let arguments: Vec<OsString> = arguments.collect();
    let mut groups = arguments.split(|argument| argument == "--");
    let first = groups.next().unwrap_or_default();
    let matches = Arguments::command().try_get_matches_from(first)?;
    let parsed = Arguments::from_arg_matches(&matches)?;
    let wrong = |message: String| Arguments::command().error(clap::error::ErrorKind::ValueValidation, message);
    let mut modules = Vec::new();
    if let Some(file) = parsed.file {
        modules.push(ModuleArguments::new(parsed.name, file, parsed.params));
    }
    for group in groups {
        let (name, group) = match group {
            [flag, name, group @ ..] if flag == "--name" => (Some(name.to_string_lossy().into_owned()), group),
            group => (None, group),
        };
        let Some((file, params)) = group.split_first() else {
            return Err(wrong("a -- must be followed by a file".into()));
        };
        if parsed.demo {
            return Err(wrong("--demo takes no files".into()));
        }
        let text = |param: &OsString| {
            let text = param.clone().into_string();
            text.map_err(|param| wrong(format!("the parameter {param:?} is not UTF-8")))
        };
        let params = params.iter().map(text).collect::<Result<_, _>>()?;
        modules.push(ModuleArguments::new(name, file.into(), params));
    }
    if parsed.demo {
        return Ok(Command::Demo { format: parsed.format });
    }
    Ok(Command::Load(Load {
        modules,
        deps: parsed.deps,
        calls: parsed.call,
        trace: if parsed.trace { Trace::On } else { Trace::Off },
        format: parsed.format,
        exports: if parsed.export_globals { Exports::Globals } else { Exports::Declared },
        policy: parsed.policy,
        vermagic: parsed.vermagic,
        block: parsed.block,
        process_symbols: if parsed.no_process_symbols { ProcessSymbols::Hidden } else { ProcessSymbols::Offered },
    }))
}

#[cfg(test)]
mod tests {
    use super::{Call, Command, ResultType, parse};

    fn call(text: &str) -> Result<(String, ResultType, Vec<u64>), String> {
        text.parse::<Call>().map(|call| (call.to_string(), call.result, call.arguments))
    }

    #[test]
    fn calls_are_read() {
        assert_eq!(call("add=2,3"), Ok(("add(2, 3)".into(), ResultType::I32, vec![2, 3])));
        assert_eq!(call("top:u32"), Ok(("top()".into(), ResultType::U32, vec![])));
        assert_eq!(call("f:void=0xff,-1"), Ok(("f(0xff, -1)".into(), ResultType::Void, vec![255, u64::MAX])));
    }

    #[test]
    fn what_is_no_call_is_refused() {
        for (text, why) in [
            ("", "begins with the name"),
            ("=1", "begins with the name"),
            ("f:float", "none of the types"),
            ("f=", "no integer"),
            ("f=1,", "no integer"),
            ("f=1.5", "no integer"),
            ("f=--1", "no integer"),
            ("f=0x", "no integer"),
            ("f=18446744073709551616", "no integer"),
            ("f=-9223372036854775809", "no integer"),
            ("f=1,2,3,4,5,6,7", "six is the most"),
        ] {
            let refused = call(text).unwrap_err();
            assert!(refused.contains(why), "{text:?}: {refused}");
        }
    }

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
    fn nonsense_is_wrong_usage() {
        for line in
            ["modload", "modload --no-such a.o", "modload a.o --", "modload --demo -- a.o", "modload --call f=x a.o"]
        {
            assert!(modules(line).is_err(), "{line}");
        }
    }
}
