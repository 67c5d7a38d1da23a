//! Section names, each spelt once.

/// `key=value` strings, each ended by a NUL.
pub const MODINFO: &str = ".modinfo";
/// Records of the symbols a module exports: [`crate::ExportedSymbol`].
pub const KSYMTAB: &str = "__ksymtab";
/// The same for symbols that only modules with a GPL-compatible licence may use.
pub const KSYMTAB_GPL: &str = "__ksymtab_gpl";
/// Records of a module's parameters: [`crate::Param`].
pub const PARAM: &str = "__param";
/// Constructors, an array of function pointers, called from first to last; `.init_array.N` by rising N before it.
pub const INIT_ARRAY: &str = ".init_array";
/// Destructors, an array of function pointers, called from last to first.
pub const FINI_ARRAY: &str = ".fini_array";
/// The older form of [`INIT_ARRAY`], called from last to first.
pub const CTORS: &str = ".ctors";
/// The older form of [`FINI_ARRAY`], called from first to last.
pub const DTORS: &str = ".dtors";
/// Empty; its flags say whether the code wants an executable stack.
pub const GNU_STACK: &str = ".note.GNU-stack";
/// Call frame information.
pub const EH_FRAME: &str = ".eh_frame";
/// Data that is written until `init` has returned and never again.
pub const RO_AFTER_INIT: &str = ".data..ro_after_init";
/// Data that only relocations write: `.data.rel.ro` and `.data.rel.ro.*`.
pub const RELOCATED_READ_ONLY: &str = ".data.rel.ro";
/// What begins so is dropped when `init` has returned (`.init.text`, `.init.data`, `.init.rodata`).
pub const INIT_PREFIX: &str = ".init.";
/// Relocations that wait until the object they name is there: `.klp.rela.OBJECT.SECTION`.
pub const KLP_RELA_PREFIX: &str = ".klp.rela.";
/// Before the name of any section, to which `__start_` and `__stop_` then refer.
pub const START_PREFIX: &str = "__start_";
/// See [`START_PREFIX`].
pub const STOP_PREFIX: &str = "__stop_";

/// The symbol of the function that is called when a module becomes LIVE: `int init_module(void)`.
pub const INIT_SYMBOL: &str = "init_module";
/// The symbol of the function that is called when it goes: `void cleanup_module(void)`.
pub const EXIT_SYMBOL: &str = "cleanup_module";
/// The address of the module's global offset table.
pub const GOT_SYMBOL: &str = "_GLOBAL_OFFSET_TABLE_";
/// An address of the module's own, by which `__cxa_atexit` and `__cxa_finalize` know it.
pub const DSO_HANDLE_SYMBOL: &str = "__dso_handle";
/// The module's own `struct module`, `THIS_MODULE` in C.
pub const THIS_MODULE_SYMBOL: &str = "__this_module";
/// Before the name of the operations of a parameter's type: `param_ops_int`.
pub const PARAM_OPS_PREFIX: &str = "param_ops_";
/// The operations of a parameter that is an array.
pub const PARAM_ARRAY_OPS_SYMBOL: &str = "param_array_ops";

/// Sections with records for machinery that this version does not have, each with what it is for. A module with one
/// of them that is not empty must be refused: to pass over it would be to run code that is not what its author meant.
pub const UNSUPPORTED: &[(&str, &str)] = &[
    (".altinstructions", "alternative instructions are not supported yet"),
    (".parainstructions", "paravirt call sites are not supported yet"),
    (".smp_locks", "lock prefixes are not supported yet"),
    (".retpoline_sites", "retpoline sites are not supported yet"),
    (".return_sites", "return thunk sites are not supported yet"),
    (".ibt_endbr_seal", "sealing of ENDBR instructions is not supported yet"),
    ("__mcount_loc", "function tracing sites are not supported yet"),
    ("__patchable_function_entries", "function tracing sites are not supported yet"),
    ("__jump_table", "static keys are not supported yet"),
    (".static_call_sites", "static calls are not supported yet"),
    (".static_call_tramp_key", "static calls are not supported yet"),
    ("__versions", "symbol versions are not supported yet"),
    ("__kcrctab", "symbol versions are not supported yet"),
    ("__kcrctab_gpl", "symbol versions are not supported yet"),
    ("__ex_table", "exception tables are not supported yet"),
    ("__bug_table", "bug tables are not supported yet"),
    (".orc_unwind", "ORC unwind tables are not supported"),
    (".orc_unwind_ip", "ORC unwind tables are not supported"),
    (".data..percpu", "per-CPU data is not supported yet"),
    (".gnu.linkonce.this_module", "a struct module of Linux's own layout is not supported"),
    ("__tracepoints", "tracepoints are not supported yet"),
];

/// `st_shndx` of a symbol that a live patch resolves when its object is there.
pub const SHN_LIVEPATCH: u16 = 0xff20;
