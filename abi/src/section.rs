//! Section names, each spelt once.

/// `key=value` strings, each ended by a NUL.
pub const MODINFO: &str = ".modinfo";
/// Records of the symbols a module exports: [`crate::ExportedSymbol`].
pub const KSYMTAB: &str = "__ksymtab";
/// The same for symbols that only modules with a GPL-compatible licence may use.
pub const KSYMTAB_GPL: &str = "__ksymtab_gpl";
/// For each record of [`KSYMTAB`], in the same order, the CRC of its symbol: 4 bytes.
pub const KCRCTAB: &str = "__kcrctab";
/// The same for [`KSYMTAB_GPL`].
pub const KCRCTAB_GPL: &str = "__kcrctab_gpl";
/// The CRCs of the symbols that the module was built against: [`crate::Version`].
pub const VERSIONS: &str = "__versions";
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
/// Constructors of a program, called before those of its libraries.
pub const PREINIT_ARRAY: &str = ".preinit_array";
/// Pieces of the function `_init` of old: the linker lays them between those of `crti.o` and `crtn.o`.
pub const INIT: &str = ".init";
/// The same for `_fini`.
pub const FINI: &str = ".fini";
/// What begins so is taken once of all sections of the name: the older form of COMDAT groups.
pub const LINKONCE_PREFIX: &str = ".gnu.linkonce.";
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
/// Symbols that a live patch resolves: `.klp.sym.OBJECT.NAME,POSITION`.
pub const KLP_SYMBOL_PREFIX: &str = ".klp.sym.";
/// What the SDK's `KLP_SYMBOL` makes of a symbol, for `modhost klp-link`: `.modload.klp.OBJECT.NAME.POSITION`.
pub const KLP_MARK_PREFIX: &str = ".modload.klp.";
/// Before the name of the section that it relocates.
pub const RELA_PREFIX: &str = ".rela";
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
/// Alternatives for places of code: [`crate::record::AltInstr`].
pub const ALTINSTRUCTIONS: &str = ".altinstructions";
/// Calls through an operations table: [`crate::record::ParavirtSite`].
pub const PARAINSTRUCTIONS: &str = ".parainstructions";
/// Lock prefixes: [`crate::record::RelativeSite`].
pub const SMP_LOCKS: &str = ".smp_locks";
/// Branches through thunks: [`crate::record::RelativeSite`].
pub const RETPOLINE_SITES: &str = ".retpoline_sites";
/// Returns through a thunk: [`crate::record::RelativeSite`].
pub const RETURN_SITES: &str = ".return_sites";
/// ENDBRs that nobody needs: [`crate::record::RelativeSite`].
pub const IBT_ENDBR_SEAL: &str = ".ibt_endbr_seal";
/// Calls at the beginning of functions: [`crate::record::Site`].
pub const MCOUNT_LOC: &str = "__mcount_loc";
/// NOPs at the beginning of functions: [`crate::record::Site`].
pub const PATCHABLE_FUNCTION_ENTRIES: &str = "__patchable_function_entries";
/// Branches that static keys decide: [`crate::record::JumpEntry`].
pub const JUMP_TABLE: &str = "__jump_table";
/// Static calls: [`crate::record::StaticCallSite`].
pub const STATIC_CALL_SITES: &str = ".static_call_sites";
/// Which key a trampoline is for.
pub const STATIC_CALL_TRAMP_KEY: &str = ".static_call_tramp_key";
/// Says that calls of static calls' trampolines are to be found by their relocations: no tool has made records of them.
/// It holds nothing.
pub const STATIC_CALL_MARK: &str = ".modload.static_calls";
/// What to do about a fault at an instruction; 12 bytes a record.
pub const EX_TABLE: &str = "__ex_table";
/// What an instruction that traps means.
pub const BUG_TABLE: &str = "__bug_table";
/// How Linux's unwinder gets from a place of code to its caller; 6 bytes a record.
pub const ORC_UNWIND: &str = ".orc_unwind";
/// For each record of [`ORC_UNWIND`], its place: the distance from itself, 4 bytes.
pub const ORC_UNWIND_IP: &str = ".orc_unwind_ip";
/// Variables of which each processor has its own.
pub const PERCPU: &str = ".data..percpu";
/// Linux's `struct module`.
pub const LINUX_THIS_MODULE: &str = ".gnu.linkonce.this_module";
/// Tracepoints.
pub const TRACEPOINTS: &str = "__tracepoints";
/// What begins so Linux drops when `init` has returned.
pub const INIT_SECTION_PREFIX: &str = ".init";
/// Before the name of a register: the function that branches through it. `array` is the first of all.
pub const INDIRECT_THUNK_PREFIX: &str = "__x86_indirect_thunk_";
/// Linux's operations table.
pub const PV_OPS_SYMBOL: &str = "pv_ops";
/// The function that returns for others.
pub const RETURN_THUNK_SYMBOL: &str = "__x86_return_thunk";
/// What functions call first that may be traced.
pub const FENTRY_SYMBOL: &str = "__fentry__";
/// Before the name of a static call, that of its trampoline.
pub const STATIC_CALL_TRAMPOLINE_PREFIX: &str = "__SCT__";
/// Before the name of a static call, that of its key.
pub const STATIC_CALL_KEY_PREFIX: &str = "__SCK__";
/// Code.
pub const TEXT: &str = ".text";
/// Trampolines of static calls.
pub const STATIC_CALL_TEXT: &str = ".static_call.text";

/// `st_shndx` of a COMMON symbol that may stand anywhere: gcc's `-mcmodel=medium`.
pub const SHN_X86_64_LCOMMON: u16 = 0xff02;

/// `st_shndx` of a symbol that a live patch resolves when its object is there.
pub const SHN_LIVEPATCH: u16 = 0xff20;

/// `sh_flags` of a section of relocations that a live patch applies: [`KLP_RELA_PREFIX`].
pub const SHF_RELA_LIVEPATCH: u64 = 0x0010_0000;
