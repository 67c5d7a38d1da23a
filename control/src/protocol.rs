//! The protocol between server and client, version [`VERSION`]. `docs/protocol.md` describes it with examples.
//!
//! Each line is one JSON object in UTF-8, ended by a newline. A line of a request has at most [`MAX_LINE`] bytes. The
//! server begins with a [`Greeting`]. A request is one line, `{"id":1,"op":"list"}`, whose other fields are those of
//! [`Request`]. Its descriptors are sent with it (`SCM_RIGHTS`). The answer is any number of lines
//! `{"id":1,"event":{..}, "text":".."}` and then one line `{"id":1,"ok":{..}}` or
//! `{"id":1,"error":{"kind":..,"message":..}}`. A client waits for this last line before it sends the next request. For
//! two requests at the same time, a client opens two connections.
//!
//! A trace also sends lines `{"id":1,"trace":{..}}`: see [`Request::Trace`].
//!
//! If a client closes the connection during another request, the server still completes the request, as
//! `finit_module(2)` would be, and drops the answer.

use std::time::Duration;

use modload::State;
use modload::trace::{Missed, TracedFunction};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of the protocol. Compatible additions do not change it.
pub const VERSION: u32 = 1;

/// The maximum length of a request's line in bytes, without the newline.
pub const MAX_LINE: usize = 64 << 10;

/// The maximum number of descriptors with one request.
pub const MAX_DESCRIPTORS: usize = 64;

/// The maximum number of clients at the same time. Each has a thread.
pub const MAX_CLIENTS: usize = 64;

/// The maximum time from the first byte of a request's line to its newline.
pub const LINE_TIME: Duration = Duration::from_secs(10);

/// How long a client waits for the greeting. A host sends none while it loads its first modules.
pub const GREETING_TIME: Duration = Duration::from_secs(30);

/// How long a client may leave messages unread before the server treats it as gone.
pub const WRITE_TIME: Duration = Duration::from_secs(10);

/// How long a stopping server waits for requests that are being processed.
pub const FINISH_TIME: Duration = Duration::from_secs(10);

/// The maximum length in bytes of a line from a server.
pub const MAX_ANSWER: usize = 64 << 20;

/// The approximate maximum length in bytes of a trace line. A larger batch is sent in several lines.
pub const TRACE_LINE: usize = 1 << 20;

/// The server's first line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Greeting {
    /// [`VERSION`].
    pub modload: u32,
    /// The version of the server program, for people.
    pub version: String,
}

/// A request: its fields except `id`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Checks that the server answers. Answer: [`Greeting`].
    Ping {},
    /// Lists the contents of the host. Answer: [`ModuleListing`].
    List {},
    /// Describes one module. Answer: [`ModuleEntry`].
    Info {
        /// The name of the module.
        name: String,
    },
    /// Loads a module. The events are those of the module's timeline. Answer: [`ModuleName`].
    Load {
        /// The names of the files. Their descriptors are sent in the same order. Each must be a regular file that is
        /// open for reading. Several files are linked into one module.
        files: Vec<String>,
        /// The module's name, if `.modinfo` has none. The default is the name of the last file without its extension.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// The parameters, each as `name=value`.
        #[serde(default)]
        params: Vec<String>,
        /// Symbols for which members of archives are linked in.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        want: Vec<String>,
    },
    /// Unloads a module. The events are those of the module's timeline, and `waiting` with the users of the module.
    /// Answer: [`ModuleName`].
    Unload {
        /// The name of the module.
        name: String,
        /// How many seconds to wait until the module is not in use.
        #[serde(default)]
        wait: u64,
        /// Whether to unload the module despite references to it, if the host allows this.
        #[serde(default)]
        force: bool,
    },
    /// Lists the parameters of a module. Answer: a list of [`ParamEntry`].
    Params {
        /// The name of the module.
        name: String,
    },
    /// Sets a parameter. Answer: [`ParamEntry`].
    SetParam {
        /// The name of the module.
        name: String,
        /// The name of the parameter.
        param: String,
        /// The value. A bool needs none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<String>,
    },
    /// Calls a function with integers. Answer: [`Called`].
    Call {
        /// The name of the function.
        symbol: String,
        /// The module of the function. The default is the first module that has the function, in order of loading.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        module: Option<String>,
        /// The type of the result.
        #[serde(default, rename = "type")]
        result: ResultType,
        /// Up to six arguments. Negative numbers are 64-bit two's complement.
        #[serde(default)]
        arguments: Vec<u64>,
    },
    /// Traces functions. The server first sends the event `tracing` ([`TraceStarted`]), then lines
    /// `{"id":1,"trace":{..}}`, each a [`modload::trace::Batch`]. A line with `"more":true` is continued in the next
    /// line. The trace ends when its time is over, when the client sends anything (which is its next request), or when
    /// the client ends its side of the connection. Answer: [`Traced`].
    Trace(TraceRequest),
    /// Lists the functions that can be traced, and those that cannot, with the reason. Answer: a list of
    /// [`TraceableFunction`].
    Traceable {
        /// Patterns as in [`TraceRequest`].
        #[serde(default)]
        patterns: Vec<String>,
    },
    /// Lists the patches that are enabled or in transition. Answer: a list of [`PatchEntry`].
    Patches {},
    /// Describes one patch, with the threads that block its transition. Answer: [`PatchEntry`].
    PatchStatus {
        /// The name of the patch.
        name: String,
    },
    /// Disables a patch, or reverses or forces its transition. The events are those of the patch. Answer:
    /// [`PatchEntry`], or null if the patch is gone afterwards.
    Patch {
        /// The name of the patch.
        name: String,
        /// The action.
        action: PatchAction,
    },
}

/// An action on a patch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchAction {
    /// Disables the patch. If the patch is just being enabled, its transition is reversed.
    Disable,
    /// Reverses the transition.
    Reverse,
    /// Ends the transition without waiting for the remaining threads.
    Force,
}

/// A live patch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PatchEntry {
    /// The name of the patch.
    pub name: String,
    /// Whether the patch is enabled or being enabled.
    pub enabled: bool,
    /// Whether the patch has replaced all other patches.
    pub replace: bool,
    /// Whether its transition was ended by force.
    pub forced: bool,
    /// `patching` or `unpatching` during a transition.
    pub transition: Option<String>,
    /// The objects that the patch changes.
    pub objects: Vec<PatchObject>,
    /// How many threads blocked the transition at the last check.
    pub blocked: usize,
    /// The threads that block the transition now. Only sent if the request asks for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocking: Vec<Blocking>,
}

/// An object of a patch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PatchObject {
    /// The name of the module, or `vmlinux` for the functions of the host itself.
    pub name: String,
    /// Whether the object is loaded and patched.
    pub patched: bool,
    /// The functions, each as `NAME,POSITION`.
    pub funcs: Vec<String>,
}

/// A thread that blocks a transition.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Blocking {
    /// The thread's id, as returned by gettid(2).
    pub thread: i32,
    /// The thread's name, escaped.
    pub name: String,
    /// The state of the thread.
    pub state: String,
    /// The stack frame that blocks the transition, if it is known.
    pub inside: Option<String>,
    /// Why the thread blocks the transition: `is in func+0x12/0x40 [module]`, `has not come to a checkpoint`.
    pub why: String,
    /// The thread's stack, innermost frame first: `func+0x12/0x40 [module]`, or an address.
    pub backtrace: Vec<String>,
}

/// The functions to trace, and for how long.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceRequest {
    /// Patterns of the form `[MODULE:]FUNCTION` with `*`, `?` and `[..]`. A pattern with a leading `!` excludes
    /// functions. If all patterns exclude, all other functions are traced. The patterns also apply to modules that are
    /// loaded later.
    #[serde(default)]
    pub patterns: Vec<String>,
    /// The kind of records.
    #[serde(default)]
    pub mode: TraceMode,
    /// The size of each thread's buffer in bytes, from 4096 to 1 GiB. The default is 1 MiB. An entry and a return take
    /// 16 bytes each, a call 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffer: Option<u64>,
    /// The duration in seconds. By default the trace runs until the client ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

/// The kind of records in a trace.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceMode {
    /// Each call with its caller.
    #[default]
    Calls,
    /// The times of entry and return.
    Graph,
}

/// The first event of a trace: all matching functions that exist now are being traced.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TraceStarted {
    /// The id of the traced process, in its own PID namespace.
    pub pid: u32,
    /// The name of the process.
    pub process: String,
    /// How many traceable functions match the patterns now.
    pub functions: usize,
}

/// The end of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Traced {
    /// The records that were lost.
    pub missed: Missed,
}

/// A function that matches the patterns.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TraceableFunction {
    /// The function.
    #[serde(flatten)]
    pub function: TracedFunction,
    /// Why the function cannot be traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    /// Why the returns of the function cannot be recorded, if its calls can be.
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
    /// No result.
    Void,
}

impl ResultType {
    /// Converts the result register to this type: a number, or null.
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

/// The name of a module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ModuleName {
    /// The name.
    pub module: String,
}

/// The result of a call.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Called {
    /// The module of the called function.
    pub module: String,
    /// A number, or null for void.
    pub result: Value,
}

/// The contents of a host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ModuleListing {
    /// The modules in any state from COMING to GOING, in order of loading.
    pub modules: Vec<ModuleEntry>,
    /// The host's own taint: the taints of all modules since its start, and R after an unload by force.
    pub taint: String,
    /// The memory of all modules of the process.
    pub memory: Vec<StripeEntry>,
    /// The names of quarantined modules: they were unloaded while threads were in their code, and their memory is kept
    /// until those threads have left it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<String>,
}

/// A module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ModuleEntry {
    /// The name of the module.
    pub name: String,
    /// The state, for example `LIVE`.
    pub state: State,
    /// The number of references: calls under way, and handles of the host program.
    pub references: usize,
    /// The modules that use symbols of this module.
    pub used_by: Vec<String>,
    /// The modules whose symbols this module uses.
    pub uses: Vec<String>,
    /// The size of its memory in bytes.
    pub sizes: Sizes,
    /// The taint, as Linux's letters.
    pub taint: String,
    /// The licence, escaped, if the module states one.
    pub license: Option<String>,
    /// The visible parameters.
    pub params: Vec<ParamEntry>,
}

/// The sizes of a module's memory in bytes, by stripe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of the fields say it")]
pub struct Sizes {
    pub text: u64,
    pub read_only: u64,
    pub data: u64,
    pub ro_after_init: u64,
}

/// A parameter of a LIVE module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ParamEntry {
    /// The name of the parameter.
    pub name: String,
    /// The type, as in `module_param`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The permission bits, octal: `0644`.
    pub perm: String,
    /// The value, escaped. `None` if the permissions forbid reading.
    pub value: Option<String>,
}

/// A stripe of the process's memory for modules.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StripeEntry {
    /// The name of the stripe, for example `text`.
    pub stripe: String,
    /// How many bytes modules use.
    pub used: u64,
    /// How many bytes have been touched, so that their pages exist.
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
