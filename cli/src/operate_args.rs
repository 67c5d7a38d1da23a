//! The command lines of `modhost` and `modunload`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::args::{First, Format, ModuleArguments, groups, modules};
use crate::host_options::HostOptions;
use crate::patch_args::{self, PatchCommand};
use crate::trace_args::{self, Trace};

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
      Modinfo, parameters, exports, needs, sections and where they would go, relocations.
  modhost inspect --function greet_hello greet.o
      That function, disassembled, with the relocations that will change it.
  modhost inspect --format json greet.ko.xz | jq .exports

Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

const CHECK_EXAMPLES: &str = "\
Examples:
  modhost check *.o
      A line for each file.
  modhost check --format json plugin.ko.xz | jq -r .refused

What only a load can tell (missing symbols, what init returns) is not looked at.
Exit status: 0 all could be loaded, 1 one is refused, 2 wrong usage.";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  modhost explain greet.o greet_hello
      The function as it is in the file and as it would be in memory, with the records that changed it.
  modhost explain --cpu XMM2,FSRM memcpy.o copy
      The same for a processor with these features.
  modhost explain --format json greet.o greet_hello | jq .changes

Symbols that nobody has are taken to be functions somewhere in reach.
Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

const IMAGE_EXAMPLES: &str = "\
Examples:
  modhost image lz4.ko --addresses addresses --symbols kallsyms --cpu-caps caps --facts facts
      For each section SECTION HEXADDRESS SIZE SHA256, as Linux 6.1 would have it in memory.
  modhost image lz4.ko --addresses addresses --symbols kallsyms --diff dump
      Compares with the memory of a running kernel, a file a section, and says who wrote what differs.
  modhost image --symbols kallsyms --batch list

Exit status: 0 done and nothing differs, 1 refused, failed or different, 2 wrong usage.";

const KLP_LINK_EXAMPLES: &str = "\
Examples:
  cc -O2 -fPIC -fvisibility=hidden -I sdk/include -c fix.c && modhost klp-link fix.o -o fix.ko
      fix.c declares what it uses of others: extern int count KLP_SYMBOL(target, count, 0);
  modhost klp-link --format json fix.o -o fix.ko | jq '.objects[].symbols'

The file is a live patch for Linux 6.1, too, if it was compiled with Linux's headers.
Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

const SERVE_EXAMPLES: &str = "\
Examples:
  modhost serve --socket ./host.sock
      Prints \"listening on ./host.sock\" when it is ready, and serves until SIGTERM or SIGINT.
  modhost serve greet.o times=3 -- guest.o
      Loads two modules first. The socket is $XDG_RUNTIME_DIR/modload.sock, or /run/modload.sock for root.
  modhost serve --gdb --perf-map --socket ./host.sock
      The same, and gdb -p and perf record -p know the functions of its modules.
  systemd-socket-activate -l ./host.sock modhost serve
      Serves on the socket that systemd listens on.

Only the server's own user and root are served. When it stops, the modules are unloaded, the last one first.
Exit status: 0 all modules are unloaded, 1 one is held or the host could not be had, 2 wrong usage.";

const LIST_EXAMPLES: &str = "\
Examples:
  modhost list
  modhost list --host ./host.sock greet
      One module, with its memory, its parameters, and who uses whom.
  modhost list --format json | jq -r '.modules[].name'

Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

const PARAMS_EXAMPLES: &str = "\
Examples:
  modhost params greet
      Name, type, permission and value of each.
  modhost params greet times=5 verbose
      Sets two of them, if their permission has a write bit; NAME alone is for bools.

Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

const UNLOAD_EXAMPLES: &str = "\
Examples:
  modunload guest greet
      Unloads guest, then greet.
  modunload --host ./host.sock --wait 10 greet
      Waits up to ten seconds until nobody uses greet any more.
  modunload --force greet
      Although calls of it are under way, if the host was started with --allow-force.

All are tried, whatever becomes of those before them.
Exit status: 0 all are unloaded, 1 one was refused, 2 wrong usage.";

/// Run a host for other processes and operate it; look at module files.
#[derive(Parser, Debug)]
#[command(name = "modhost", version, after_help = HOST_EXAMPLES, max_term_width = 120)]
pub(crate) struct HostArguments {
    #[command(subcommand)]
    command: HostCommand,
}

/// What `modhost` is to do.
#[derive(Subcommand, Debug)]
pub(crate) enum HostCommand {
    /// Hold modules for other processes, which load, call, list and unload them through a socket.
    #[command(after_help = SERVE_EXAMPLES)]
    #[command(override_usage = "modhost serve [OPTIONS] [FILE [PARAM=VALUE]... [-- FILE [PARAM=VALUE]...]...]")]
    Serve(Serve),
    /// Show the modules of a host: states, references, users, sizes, taints, parameters.
    #[command(after_help = LIST_EXAMPLES)]
    List(List),
    /// Show or set parameters of a module.
    #[command(after_help = PARAMS_EXAMPLES)]
    Params(Params),
    /// Show which functions run in a host, as it happens: calls, durations, tables, or trace events.
    #[command(after_help = trace_args::EXAMPLES)]
    Trace(Trace),
    /// Show, enable, disable, turn round or force live patches.
    #[command(after_help = patch_args::EXAMPLES, subcommand)]
    Patch(PatchCommand),
    /// Make a live patch of an object that marks references to other objects with KLP_SYMBOL (modload/livepatch.h): they wait
    /// until their object is there.
    #[command(after_help = KLP_LINK_EXAMPLES)]
    KlpLink(KlpLink),
    /// Say of files whether they could be loaded, as far as their bytes tell. They need not be trusted.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Check),
    /// Show one function before and after: every byte that relocations, alternatives and the like change, and why. Nothing
    /// of it is run.
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(Explain),
    /// Show what a module would be in another machine's memory, byte for byte. Profile linux-6.1; nothing is run.
    #[command(after_help = IMAGE_EXAMPLES)]
    Image(Image),
    /// Show what a module file holds, without running anything of it. The file need not be trusted.
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(Inspect),
}

/// Which function of which file.
#[derive(clap::Args, Debug)]
pub(crate) struct Explain {
    /// The module's file, compressed perhaps: an object, or an archive of several.
    pub(crate) file: PathBuf,

    /// The function.
    pub(crate) symbol: String,

    #[command(flatten)]
    pub(crate) options: HostOptions,

    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Which module, and the machine in whose memory it is to be.
#[derive(clap::Args, Debug)]
pub(crate) struct Image {
    /// The module's file.
    #[arg(required_unless_present = "batch")]
    pub(crate) file: Option<PathBuf>,

    /// Where its sections stand: lines of SECTION HEXADDRESS.
    #[arg(long, value_name = "FILE", required_unless_present = "batch")]
    pub(crate) addresses: Option<PathBuf>,

    /// The machine's symbols, as in /proc/kallsyms.
    #[arg(long, value_name = "FILE")]
    pub(crate) symbols: PathBuf,

    /// Its features: Linux's x86_capability in hexadecimal words, those of bugs last.
    #[arg(long, value_name = "FILE")]
    pub(crate) cpu_caps: Option<PathBuf>,

    /// What else the bytes depend on, a line each: percpu HEX, smp 0|1, static_call KEY TARGET (0: NULL), static_key KEY
    /// 0|1, return_thunk TARGET, pv_op N TARGET. What is not listed is as compiled.
    #[arg(long, value_name = "FILE")]
    pub(crate) facts: Option<PathBuf>,

    /// Stop before anything is rewritten or sorted: what any linker would make.
    #[arg(long)]
    pub(crate) only_relocate: bool,

    /// Write the sections' bytes into this folder.
    #[arg(long, value_name = "DIR", conflicts_with = "batch")]
    pub(crate) out: Option<PathBuf>,

    /// Compare with the memory in this folder, a file a section as --out writes them, and explain what differs in
    /// read-only sections.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["batch", "out"])]
    pub(crate) diff: Option<PathBuf>,

    /// All modules of a list, lines of FILE ADDRESSES [FACTS [DIR]], and how long each part of the work takes.
    #[arg(long, value_name = "LIST", conflicts_with_all = ["file", "addresses"])]
    pub(crate) batch: Option<PathBuf>,

    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Which host, and how to print what it says.
#[derive(clap::Args, Debug)]
pub(crate) struct Connection {
    /// The socket it serves at. MODLOAD_HOST if that is set, else $XDG_RUNTIME_DIR/modload.sock, else
    /// /run/modload.sock for root.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) host: Option<PathBuf>,

    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// What is to be served.
#[derive(clap::Args, Debug)]
pub(crate) struct Serve {
    /// Where. $XDG_RUNTIME_DIR/modload.sock if nothing else is said, /run/modload.sock for root.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// Let modunload --force unload modules that are held. Their memory stays as long as they are.
    #[arg(long)]
    pub(crate) allow_force: bool,

    #[command(flatten)]
    pub(crate) options: HostOptions,

    /// Make one module of several files, as modload --name does.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// A module to be loaded before anybody is served.
    file: Option<PathBuf>,

    /// Its parameters.
    #[arg(value_name = "PARAM=VALUE")]
    params: Vec<String>,

    /// All of them.
    #[arg(skip)]
    pub(crate) modules: Vec<ModuleArguments>,
}

/// What is to be listed.
#[derive(clap::Args, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) connection: Connection,

    /// This module, with all that is known of it.
    pub(crate) name: Option<String>,
}

/// Which parameters are to be shown or set.
#[derive(clap::Args, Debug)]
pub(crate) struct Params {
    #[command(flatten)]
    pub(crate) connection: Connection,

    /// The module.
    pub(crate) name: String,

    /// What to set.
    #[arg(value_name = "PARAM=VALUE")]
    pub(crate) set: Vec<String>,
}

/// What is to be checked.
#[derive(clap::Args, Debug)]
pub(crate) struct Check {
    /// Module files, compressed perhaps.
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// What is to be linked.
#[derive(clap::Args, Debug)]
pub(crate) struct KlpLink {
    /// The object, as a compiler has made it.
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,

    /// The patch. It takes its place when it is complete, and never that of the object.
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: PathBuf,

    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
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

/// Take modules out of a host that serves (modhost serve), in the order given.
#[derive(Parser, Debug)]
#[command(name = "modunload", version, after_help = UNLOAD_EXAMPLES, max_term_width = 120)]
pub(crate) struct Unload {
    #[command(flatten)]
    pub(crate) connection: Connection,

    /// Unload them although they are held, if the host allows it. Other modules that use them are never overridden.
    #[arg(long)]
    pub(crate) force: bool,

    /// How long to wait for each until nobody uses it.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) wait: u64,

    /// The modules' names.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Parses the command line of `modhost`. For `serve`, what stands behind the first `--` is split by hand.
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
        let first = First { name, file, params: std::mem::take(&mut serve.params) };
        serve.modules = modules(first, groups).map_err(wrong)?;
    }
    Ok(command)
}

/// Parses the command line of `modunload`.
pub(crate) fn parse_unload(arguments: impl Iterator<Item = OsString>) -> Result<Unload, clap::Error> {
    Unload::try_parse_from(arguments)
}
