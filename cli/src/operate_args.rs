//! The command lines of `modhost` and `modunload`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::args::{FirstModule, Format, ModuleArguments, groups, modules};
use crate::host_options::HostOptions;
use crate::patch_args::{self, PatchCommand};
use crate::trace_args::{self, TraceArguments};

const HOST_EXAMPLES: &str = "\
Examples:
  modhost serve --socket ./host.sock greet.o times=3 &
  modhost list --host ./host.sock
  modhost params --host ./host.sock greet times=5
  modhost trace --host ./host.sock -p 'greet:*'
  modhost check *.o
  modhost inspect --function greet_hello greet.o

Each command has --help with more.
Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

const INSPECT_EXAMPLES: &str = "\
Examples:
  modhost inspect greet.o
      Modinfo, parameters, exports, imports, sections with their places in memory, relocations.
  modhost inspect --function greet_hello greet.o
      One function, disassembled, with the relocations that will change it.
  modhost inspect --format json greet.ko.xz | jq .exports

Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

const CHECK_EXAMPLES: &str = "\
Examples:
  modhost check *.o
      A line for each file.
  modhost check --format json plugin.ko.xz | jq -r .refused

Does not check missing symbols or the result of init, which only a load can tell.
Exit status: 0 all files can be loaded, 1 at least one is refused, 2 wrong usage.";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  modhost explain greet.o greet_hello
      The function as in the file and as in memory, with the records that change it.
  modhost explain --cpu XMM2,FSRM memcpy.o copy
      The same for a processor with these features.
  modhost explain --format json greet.o greet_hello | jq .changes

Undefined symbols are treated as functions at an address in reach.
Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

const IMAGE_EXAMPLES: &str = "\
Examples:
  modhost image lz4.ko --addresses addresses --symbols kallsyms --cpu-caps caps --facts facts
      Prints SECTION HEXADDRESS SIZE SHA256 for each section, as Linux 6.1 would have it in memory.
  modhost image lz4.ko --addresses addresses --symbols kallsyms --diff dump
      Compares with the memory of a running kernel, one file per section, and explains each difference.
  modhost image --symbols kallsyms --batch list

Exit status: 0 done and nothing differs, 1 refused, failed or different, 2 wrong usage.";

const KLP_LINK_EXAMPLES: &str = "\
Examples:
  cc -O2 -fPIC -fvisibility=hidden -I sdk/include -c fix.c && modhost klp-link fix.o -o fix.ko
      fix.c declares symbols of other objects: extern int count KLP_SYMBOL(target, count, 0);
  modhost klp-link --format json fix.o -o fix.ko | jq '.objects[].symbols'

The file is also a live patch for Linux 6.1 if it was compiled with Linux's headers.
Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

const SERVE_EXAMPLES: &str = "\
Examples:
  modhost serve --socket ./host.sock
      Prints \"listening on ./host.sock\" when ready, and serves until SIGTERM or SIGINT.
  modhost serve greet.o times=3 -- guest.o
      Loads two modules first. The socket is $XDG_RUNTIME_DIR/modload.sock, or /run/modload.sock for root.
  modhost serve --gdb --perf-map --socket ./host.sock
      gdb -p and perf record -p then know the functions of the host's modules.
  systemd-socket-activate -l ./host.sock modhost serve
      Serves on the socket that systemd listens on.

Only the server's own user and root can connect. When the server stops, it unloads the modules, the last one first.
Exit status: 0 all modules are unloaded, 1 the host could not start or a module is still in use, 2 wrong usage.";

const LIST_EXAMPLES: &str = "\
Examples:
  modhost list
  modhost list --host ./host.sock greet
      One module, with its memory, its parameters, its users and the modules it uses.
  modhost list --format json | jq -r '.modules[].name'

Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

const PARAMS_EXAMPLES: &str = "\
Examples:
  modhost params greet
      Shows name, type, permissions and value of each.
  modhost params greet times=5 verbose
      Sets two parameters, if their permissions have a write bit. NAME without a value sets a bool.

Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

const UNLOAD_EXAMPLES: &str = "\
Examples:
  modunload guest greet
      Unloads guest, then greet.
  modunload --host ./host.sock --wait 10 greet
      Waits up to ten seconds until greet is not in use.
  modunload --force greet
      Unloads greet even during calls of its functions, if the host was started with --allow-force.

Tries to unload every module, even if one fails.
Exit status: 0 all are unloaded, 1 at least one was refused, 2 wrong usage.";

/// Run a host for other processes, operate it, and examine module files.
#[derive(Parser, Debug)]
#[command(name = "modhost", version, after_help = HOST_EXAMPLES, max_term_width = 120)]
pub(crate) struct HostArguments {
    #[command(subcommand)]
    command: HostCommand,
}

/// The task of `modhost`.
#[derive(Subcommand, Debug)]
pub(crate) enum HostCommand {
    /// Run a host whose modules other processes load, call, list and unload through a socket.
    #[command(after_help = SERVE_EXAMPLES)]
    #[command(override_usage = "modhost serve [OPTIONS] [FILE [PARAM=VALUE]... [-- FILE [PARAM=VALUE]...]...]")]
    Serve(Serve),
    /// Show the modules of a host: states, references, users, sizes, taints, parameters.
    #[command(after_help = LIST_EXAMPLES)]
    List(ListArguments),
    /// Show or set parameters of a module.
    #[command(after_help = PARAMS_EXAMPLES)]
    Params(Params),
    /// Show which functions run in a host, as it happens: calls, durations, tables, or trace events.
    #[command(after_help = trace_args::EXAMPLES)]
    Trace(TraceArguments),
    /// Show, enable, disable, reverse or force live patches.
    #[command(after_help = patch_args::EXAMPLES, subcommand)]
    Patch(PatchCommand),
    /// Make a live patch of an object that marks references to other objects with KLP_SYMBOL (modload/livepatch.h).
    /// These references are resolved when their object is loaded.
    #[command(after_help = KLP_LINK_EXAMPLES)]
    KlpLink(KlpLink),
    /// Check whether files could be loaded, as far as this depends only on their bytes. The files need not be trusted.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArguments),
    /// Show one function before and after loading: every byte that relocations, alternatives and the like change, and
    /// why. No code of the module runs.
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(Explain),
    /// Show the bytes of a module in the memory of another machine. The profile is linux-6.1. No code of the module
    /// runs.
    #[command(after_help = IMAGE_EXAMPLES)]
    Image(ImageArguments),
    /// Show the contents of a module file without running any of its code. The file need not be trusted.
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(Inspect),
}

/// A function of a file.
#[derive(clap::Args, Debug)]
pub(crate) struct Explain {
    /// The file of the module, which may be compressed: an object, or an archive of several.
    pub(crate) file: PathBuf,

    /// The name of the function.
    pub(crate) symbol: String,

    #[command(flatten)]
    pub(crate) options: HostOptions,

    /// The output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// A module, and the machine in whose memory it is placed.
#[derive(clap::Args, Debug)]
pub(crate) struct ImageArguments {
    /// The file of the module.
    #[arg(required_unless_present = "batch")]
    pub(crate) file: Option<PathBuf>,

    /// The addresses of the module's sections: lines of SECTION HEXADDRESS.
    #[arg(long, value_name = "FILE", required_unless_present = "batch")]
    pub(crate) addresses: Option<PathBuf>,

    /// The symbols of the machine, as in /proc/kallsyms.
    #[arg(long, value_name = "FILE")]
    pub(crate) symbols: PathBuf,

    /// The processor features of the machine: Linux's x86_capability in hexadecimal words, the words of bugs last.
    #[arg(long, value_name = "FILE")]
    pub(crate) cpu_caps: Option<PathBuf>,

    /// Further facts on which the bytes depend, one per line: percpu HEX, smp 0|1, static_call KEY TARGET (0: NULL),
    /// static_key KEY 0|1, return_thunk TARGET, pv_op N TARGET. Sites without a fact stay as compiled.
    #[arg(long, value_name = "FILE")]
    pub(crate) facts: Option<PathBuf>,

    /// Stop before any code is rewritten or any table is sorted: the result of any linker.
    #[arg(long)]
    pub(crate) only_relocate: bool,

    /// Write the bytes of the sections to this folder.
    #[arg(long, value_name = "DIR", conflicts_with = "batch")]
    pub(crate) out: Option<PathBuf>,

    /// Compare with the memory in this folder, one file per section as --out writes them, and explain the differences
    /// in read-only sections.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["batch", "out"])]
    pub(crate) diff: Option<PathBuf>,

    /// Process all modules of a list, lines of FILE ADDRESSES [FACTS [DIR]], and print the time of each part of the
    /// work.
    #[arg(long, value_name = "LIST", conflicts_with_all = ["file", "addresses"])]
    pub(crate) batch: Option<PathBuf>,

    /// The output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// A host, and the format for its answers.
#[derive(clap::Args, Debug)]
pub(crate) struct Connection {
    /// The socket of the host. Default: MODLOAD_HOST if set, else $XDG_RUNTIME_DIR/modload.sock, or /run/modload.sock
    /// for root.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) host: Option<PathBuf>,

    /// The output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// The options of `modhost serve`.
#[derive(clap::Args, Debug)]
pub(crate) struct Serve {
    /// The path of the socket. Default: $XDG_RUNTIME_DIR/modload.sock, or /run/modload.sock for root.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// Allow modunload --force to unload modules that are in use. Their memory is kept until they are not in use any
    /// more.
    #[arg(long)]
    pub(crate) allow_force: bool,

    #[command(flatten)]
    pub(crate) options: HostOptions,

    /// Link several files into one module, like modload --name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// A module to load before clients are served.
    file: Option<PathBuf>,

    /// The parameters of the module.
    #[arg(value_name = "PARAM=VALUE")]
    params: Vec<String>,

    /// All modules to load, with their parameters.
    #[arg(skip)]
    pub(crate) modules: Vec<ModuleArguments>,
}

/// The options of `modhost list`.
#[derive(clap::Args, Debug)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    pub(crate) connection: Connection,

    /// Show all details of this module.
    pub(crate) name: Option<String>,
}

/// The options of `modhost params`.
#[derive(clap::Args, Debug)]
pub(crate) struct Params {
    #[command(flatten)]
    pub(crate) connection: Connection,

    /// The name of the module.
    pub(crate) name: String,

    /// The parameters to set.
    #[arg(value_name = "PARAM=VALUE")]
    pub(crate) set: Vec<String>,
}

/// The options of `modhost check`.
#[derive(clap::Args, Debug)]
pub(crate) struct CheckArguments {
    /// Module files, which may be compressed.
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// The output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// The options of `modhost klp-link`.
#[derive(clap::Args, Debug)]
pub(crate) struct KlpLink {
    /// The object, as written by a compiler.
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,

    /// The file of the patch. It is written only when it is complete, and never replaces the object.
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: PathBuf,

    /// The output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// The options of `modhost inspect`.
#[derive(clap::Args, Debug)]
pub(crate) struct Inspect {
    /// The file of the module, which may be compressed: an object, or an archive of several.
    pub(crate) file: PathBuf,

    /// Disassemble this function instead.
    #[arg(long, value_name = "NAME")]
    pub(crate) function: Option<String>,

    /// The output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Unload modules from a running host (modhost serve), in the given order.
#[derive(Parser, Debug)]
#[command(name = "modunload", version, after_help = UNLOAD_EXAMPLES, max_term_width = 120)]
pub(crate) struct Unload {
    #[command(flatten)]
    pub(crate) connection: Connection,

    /// Unload the modules even if calls or handles still hold them, if the host allows this. A module that another
    /// module uses is still refused.
    #[arg(long)]
    pub(crate) force: bool,

    /// How long to wait for each module until it is not in use.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) wait: u64,

    /// The names of the modules.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Parses the command line of `modhost`. For `serve`, the arguments after the first `--` are split without clap.
pub(crate) fn parse_host(arguments: impl Iterator<Item = OsString>) -> Result<HostCommand, clap::Error> {
    let arguments: Vec<OsString> = arguments.collect();
    if arguments.get(1).is_none_or(|command| command != "serve") {
        let command = HostArguments::try_parse_from(arguments)?.command;
        if let HostCommand::Trace(trace) = &command {
            trace.check().map_err(|message| HostArguments::command().error(ErrorKind::ArgumentConflict, message))?;
        }
        return Ok(command);
    }
    let mut groups = groups(&arguments);
    let matches = HostArguments::command().try_get_matches_from(groups.next().unwrap_or_default())?;
    let mut command = HostArguments::from_arg_matches(&matches)?.command;
    if let HostCommand::Serve(serve) = &mut command {
        let wrong = |message| HostArguments::command().error(ErrorKind::ValueValidation, message);
        let (name, file) = (serve.name.take(), serve.file.take());
        let first = FirstModule { name, file, params: std::mem::take(&mut serve.params) };
        serve.modules = modules(first, groups).map_err(wrong)?;
    }
    Ok(command)
}

/// Parses the command line of `modunload`.
pub(crate) fn parse_unload(arguments: impl Iterator<Item = OsString>) -> Result<Unload, clap::Error> {
    Unload::try_parse_from(arguments)
}
