//! What server and client say to each other, version [`VERSION`]. `docs/protocol.md` has it with examples.
//!
//! Each line is one JSON object, UTF-8, ended by a newline, of [`MAX_LINE`] bytes at most in a request. The server
//! begins with a [`Greeting`]. A request is one line, `{"id":1,"op":"list"}`, whose other fields are those of
//! [`Request`]; its descriptors travel with it (`SCM_RIGHTS`). It gets any number of lines `{"id":1,"event":{..},
//! "text":".."}` and then one, `{"id":1,"ok":{..}}` or `{"id":1,"error":{"kind":..,"message":..}}`. A client waits for
//! that before it makes the next request; who wants two at once connects twice.
//!
//! A trace sends lines `{"id":1,"trace":{..}}` besides: see [`Request::Trace`].
//!
//! A client that goes away in the middle of another request changes nothing: the request is completed, as `finit_module(2)`
//! would be, and its answer goes nowhere.

use std::time::Duration;

use modload::State;
use modload::trace::{Function, Missed};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version that this crate speaks. What is added compatibly does not change it.
pub const VERSION: u32 = 1;

/// The most bytes of a request's line, its newline not counted.
pub const MAX_LINE: usize = 64 << 10;

/// The most descriptors that come with one request.
pub const MAX_DESCRIPTORS: usize = 64;

/// The most clients at once; each has a thread.
pub const MAX_CLIENTS: usize = 64;

/// How long a client may take from the first byte of a request's line to its end.
pub const LINE_TIME: Duration = Duration::from_secs(10);

/// How long a client waits for the greeting. A host that still loads what it begins with gives none yet.
pub const GREETING_TIME: Duration = Duration::from_secs(30);

/// How long a client may leave what it is told unread before it counts as gone.
pub const WRITE_TIME: Duration = Duration::from_secs(10);

/// How long a server that stops waits for the requests under way.
pub const FINISH_TIME: Duration = Duration::from_secs(10);

/// The most bytes of a line that a client takes from a server.
pub const MAX_ANSWER: usize = 64 << 20;

/// About how many bytes of a line a batch of a trace takes: a greater one comes in several.
pub const TRACE_LINE: usize = 1 << 20;

/// The server's first line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Greeting {
    /// [`VERSION`].
    pub modload: u32,
    /// The server's own version, for people.
    pub version: String,
}

/// What is asked: the fields of a request besides its `id`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Whether anybody is there. Answer: [`Greeting`].
    Ping {},
    /// What is in the host. Answer: [`Listing`].
    List {},
    /// One module. Answer: [`Entry`].
    Info {
        /// Its name.
        name: String,
    },
    /// Loads a module. Its timeline comes as events. Answer: [`Named`].
    Load {
        /// The names of the files, whose descriptors come in the same order: regular files, open for reading. Several
        /// are linked into one module.
        files: Vec<String>,
        /// The module's name, if its `.modinfo` has none; else the file's stem.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// `name=value` each.
        #[serde(default)]
        params: Vec<String>,
        /// Symbols for whose sake members of archives are taken.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        want: Vec<String>,
    },
    /// Unloads a module. Its timeline comes as events, and while it waits, who uses the module. Answer: [`Named`].
    Unload {
        /// Its name.
        name: String,
        /// How many seconds to wait until nobody uses it.
        #[serde(default)]
        wait: u64,
        /// Whether to unload it although it is held, if the host allows that.
        #[serde(default)]
        force: bool,
    },
    /// A module's parameters. Answer: a list of [`Param`].
    Params {
        /// The module's name.
        name: String,
    },
    /// Sets a parameter. Answer: [`Param`].
    SetParam {
        /// The module's name.
        name: String,
        /// The parameter's.
        param: String,
        /// Its value; a bool may go without.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<String>,
    },
    /// Calls a function with integers. Answer: [`Called`].
    Call {
        /// Its name.
        symbol: String,
        /// In which module; else in the first that has it, in order of their loading.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        module: Option<String>,
        /// The type of its result.
        #[serde(default, rename = "type")]
        result: ResultType,
        /// Up to six; negative numbers as 64-bit two's complement.
        #[serde(default)]
        arguments: Vec<u64>,
    },
    /// Traces functions. First comes the event `tracing` ([`Tracing`]), then lines `{"id":1,"trace":{..}}`, each a
    /// [`modload::trace::Batch`]; one with `"more":true` goes on in the next line. It ends when its time is over, or when the
    /// client sends anything, which is its next request, or ends its side. Answer: [`Traced`].
    Trace(Trace),
    /// Which functions can be traced, and why others cannot. Answer: a list of [`TraceableFunction`].
    Traceable {
        /// As in [`Trace`].
        #[serde(default)]
        patterns: Vec<String>,
    },
    /// The patches that are enabled or on their way. Answer: a list of [`PatchEntry`].
    Patches {},
    /// One of them, with the threads that stand in its way. Answer: [`PatchEntry`].
    PatchStatus {
        /// Its name.
        name: String,
    },
    /// Disables a patch, turns its transition round, or ends that by force. Its lines come as events. Answer: [`PatchEntry`]; null if
    /// it is gone by then.
    Patch {
        /// Its name.
        name: String,
        /// What is done.
        action: PatchAction,
    },
}

/// What is done with a patch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchAction {
    /// It is disabled; while it is being enabled, it is turned round.
    Disable,
    /// Its transition is turned round.
    Reverse,
    /// Its transition is over, wherever threads are.
    Force,
}

/// A patch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PatchEntry {
    /// Its name.
    pub name: String,
    /// Whether it is enabled, or on its way to be.
    pub enabled: bool,
    /// Whether it has replaced all others.
    pub replace: bool,
    /// Whether its transition was ended by force.
    pub forced: bool,
    /// `patching` or `unpatching`, if it is in transition.
    pub transition: Option<String>,
    /// What it changes.
    pub objects: Vec<PatchObject>,
    /// How many threads stood in its way when they were looked at last.
    pub blocked: usize,
    /// Those threads as they are now, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocking: Vec<Blocking>,
}

/// An object of a patch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PatchObject {
    /// The module; `vmlinux` for the host's own functions.
    pub name: String,
    /// Whether it is there, and patched.
    pub patched: bool,
    /// `NAME,POSITION` each.
    pub funcs: Vec<String>,
}

/// A thread that stands in the way of a transition.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Blocking {
    /// Its id, as gettid(2) gives it.
    pub thread: i32,
    /// Its name, escaped.
    pub name: String,
    /// What it does.
    pub state: String,
    /// The frame in the way; none if no such frame is known.
    pub inside: Option<String>,
    /// Why it stands in the way: `is in func+0x12/0x40 [module]`, `has not come to a checkpoint`.
    pub why: String,
    /// Its calls, innermost first: `func+0x12/0x40 [module]`, or an address.
    pub backtrace: Vec<String>,
}

/// What is traced, and for how long.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// `[MODULE:]FUNCTION` with `*`, `?` and `[..]`, and with `!` in front to leave functions out. Without one that names any
    /// all are meant. They hold for modules that are loaded later, too.
    #[serde(default)]
    pub patterns: Vec<String>,
    /// What is recorded.
    #[serde(default)]
    pub mode: TraceMode,
    /// Bytes of each thread's buffer, from 4096 to 1 GiB; else 1 MiB. An entry and a return take 16 bytes each, a call 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffer: Option<u64>,
    /// For how many seconds; else until the client ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

/// What a trace records.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceMode {
    /// Who called which function.
    #[default]
    Calls,
    /// When functions were entered and left.
    Graph,
}

/// A trace has begun: the functions that exist by now are switched.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tracing {
    /// The traced process's id, in its own namespace.
    pub pid: u32,
    /// Its name.
    pub process: String,
    /// How many functions the patterns name by now that can be traced.
    pub functions: usize,
}

/// A trace is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Traced {
    /// What is not in it.
    pub missed: Missed,
}

/// A function that patterns name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TraceableFunction {
    /// It.
    #[serde(flatten)]
    pub function: Function,
    /// Why it cannot be traced, if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    /// Why its returns cannot be recorded, if its calls can be and they cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_no_returns: Option<String>,
}

/// The values of `op`.
pub(crate) const OPS: [&str; 13] = [
    "ping",
    "list",
    "info",
    "load",
    "unload",
    "params",
    "set_param",
    "call",
    "trace",
    "traceable",
    "patches",
    "patch_status",
    "patch",
];

/// The type of a call's result.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResultType {
    /// `int`.
    #[default]
    I32,
    /// `unsigned int`.
    U32,
    /// `long`.
    I64,
    /// `unsigned long`, or a pointer.
    U64,
    /// Nothing.
    Void,
}

impl ResultType {
    /// What stands in the result register, as this type: a number, or null.
    #[must_use]
    pub fn value(self, register: u64) -> Value {
        let [a, b, c, d, ..] = register.to_le_bytes();
        let low = [a, b, c, d];
        match self {
            ResultType::I32 => i32::from_le_bytes(low).into(),
            ResultType::U32 => u32::from_le_bytes(low).into(),
            ResultType::I64 => register.cast_signed().into(),
            ResultType::U64 => register.into(),
            ResultType::Void => Value::Null,
        }
    }
}

/// A module's name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Named {
    /// It.
    pub module: String,
}

/// What a call returned.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Called {
    /// The module it was made in.
    pub module: String,
    /// A number, or null for void.
    pub result: Value,
}

/// What is in a host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Listing {
    /// The modules from COMING to GOING, in order of their loading.
    pub modules: Vec<Entry>,
    /// The host's own taint: that of all modules it ever had, and R after an unload by force.
    pub taint: String,
    /// The memory of all modules of the process.
    pub memory: Vec<Stripe>,
    /// Names of modules that have gone while threads were in their code: their memory stays until those have left it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<String>,
}

/// A module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// `LIVE`, say.
    pub state: State,
    /// How many hold it: calls under way, and the host program's own handles.
    pub references: usize,
    /// The modules that use its symbols.
    pub used_by: Vec<String>,
    /// The modules whose symbols it uses.
    pub uses: Vec<String>,
    /// Its memory, in bytes.
    pub sizes: Sizes,
    /// Linux's letters.
    pub taint: String,
    /// Its licence, escaped, if it states one.
    pub license: Option<String>,
    /// Those that can be seen.
    pub params: Vec<Param>,
}

/// Bytes by stripe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "their names say it")]
pub struct Sizes {
    pub text: u64,
    pub read_only: u64,
    pub data: u64,
    pub ro_after_init: u64,
}

/// A parameter of a LIVE module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// As in `module_param`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its permission bits, octal: `0644`.
    pub perm: String,
    /// Its value, escaped; none if it may not be read.
    pub value: Option<String>,
}

/// A stripe of the process's memory for modules.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stripe {
    /// `text`, say.
    pub stripe: String,
    /// Bytes that modules have.
    pub used: u64,
    /// Bytes whose pages are there.
    pub touched: u64,
}

#[cfg(test)]
mod tests {
    use super::{OPS, Request};

    fn parse(text: &str) -> Result<Request, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn every_op_is_known() {
        for op in OPS {
            let refused = parse(&format!(r#"{{"op":"{op}","no_such_field":1}}"#)).unwrap_err();
            assert!(refused.contains("no_such_field") || refused.contains("missing field"), "{op}: {refused}");
        }
        assert!(parse(r#"{"op":"nonsense"}"#).unwrap_err().contains("unknown variant"));
    }

    #[test]
    fn what_can_be_left_out_has_a_default() {
        let unload = Request::Unload { name: "a".into(), wait: 0, force: false };
        assert_eq!(parse(r#"{"op":"unload","name":"a"}"#), Ok(unload));
        assert_eq!(parse(r#"{"op":"list"}"#), Ok(Request::List {}));
    }
}
