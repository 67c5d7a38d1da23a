//! All section names, each spelt once.

/// `key=value` strings, each ended by a NUL.
pub const MODINFO: &str = ".modinfo";
/// The exported symbols of a module: [`crate::ExportedSymbol`].
pub const KSYMTAB: &str = "__ksymtab";
/// Exported symbols that only modules with a GPL-compatible licence may use. The layout of [`KSYMTAB`].
pub const KSYMTAB_GPL: &str = "__ksymtab_gpl";
/// The CRCs of the symbols in [`KSYMTAB`], in the same order, 4 bytes each.
pub const KCRCTAB: &str = "__kcrctab";
/// The CRCs of the symbols in [`KSYMTAB_GPL`], in the same order, 4 bytes each.
pub const KCRCTAB_GPL: &str = "__kcrctab_gpl";
/// The CRCs of the imported symbols, as of the module's build: [`crate::Version`].
pub const VERSIONS: &str = "__versions";
/// The parameters of a module: [`crate::KernelParam`].
pub const PARAM: &str = "__param";
/// Constructors: an array of function pointers, called from first to last. Sections `.init_array.N` are called before,
/// by rising N.
pub const INIT_ARRAY: &str = ".init_array";
/// Destructors: an array of function pointers, called from last to first.
pub const FINI_ARRAY: &str = ".fini_array";
/// The older form of [`INIT_ARRAY`], called from last to first.
pub const CTORS: &str = ".ctors";
/// The older form of [`FINI_ARRAY`], called from first to last.
pub const DTORS: &str = ".dtors";
/// Constructors of a program, called before those of its libraries.
pub const PREINIT_ARRAY: &str = ".preinit_array";
/// Pieces of the old function `_init`. The linker places them between the pieces of `crti.o` and of `crtn.o`.
pub const INIT: &str = ".init";
/// Pieces of the old function `_fini`, as [`INIT`].
pub const FINI: &str = ".fini";
/// The prefix of sections of which the linker keeps one per name: the older form of COMDAT groups.
pub const LINKONCE_PREFIX: &str = ".gnu.linkonce.";
/// An empty section. Its flags say whether the code needs an executable stack.
pub const GNU_STACK: &str = ".note.GNU-stack";
/// Call frame information.
pub const EH_FRAME: &str = ".eh_frame";
/// Data that is written until `init` has returned, and never again.
pub const RO_AFTER_INIT: &str = ".data..ro_after_init";
/// Data that only relocations write: `.data.rel.ro` and `.data.rel.ro.*`.
pub const RELOCATED_READ_ONLY: &str = ".data.rel.ro";
/// The prefix of sections that are freed when `init` has returned (`.init.text`, `.init.data`, `.init.rodata`).
pub const INIT_PREFIX: &str = ".init.";
/// The prefix of relocations that are applied when the named object is loaded: `.klp.rela.OBJECT.SECTION`.
pub const KLP_RELA_PREFIX: &str = ".klp.rela.";
/// The prefix of symbols that a live patch resolves: `.klp.sym.OBJECT.NAME,POSITION`.
pub const KLP_SYMBOL_PREFIX: &str = ".klp.sym.";
/// The prefix that the SDK's `KLP_SYMBOL` gives to a symbol, for `modhost klp-link`:
/// `.modload.klp.OBJECT.NAME.POSITION`.
pub const KLP_MARK_PREFIX: &str = ".modload.klp.";
/// The prefix of a section of relocations, followed by the name of the section that they relocate.
pub const RELA_PREFIX: &str = ".rela";
/// The prefix of a symbol for the beginning of a section: `__start_SECTION`.
pub const START_PREFIX: &str = "__start_";
/// The prefix of a symbol for the end of a section: `__stop_SECTION`.
pub const STOP_PREFIX: &str = "__stop_";

/// The symbol of the function that the loader calls before a module becomes LIVE: `int init_module(void)`.
pub const INIT_SYMBOL: &str = "init_module";
/// The symbol of the function that the loader calls when a module is unloaded: `void cleanup_module(void)`.
pub const EXIT_SYMBOL: &str = "cleanup_module";
/// The symbol for the address of the module's global offset table.
pub const GOT_SYMBOL: &str = "_GLOBAL_OFFSET_TABLE_";
/// The symbol for the start of the module's thread-local storage, in local dynamic accesses by descriptors.
pub const TLS_MODULE_BASE_SYMBOL: &str = "_TLS_MODULE_BASE_";
/// The function that finds a thread-local variable.
pub const TLS_GET_ADDR_SYMBOL: &str = "__tls_get_addr";
/// The symbol for an address that identifies the module to `__cxa_atexit` and `__cxa_finalize`.
pub const DSO_HANDLE_SYMBOL: &str = "__dso_handle";
/// The symbol of the module's own `struct module`, `THIS_MODULE` in C.
pub const THIS_MODULE_SYMBOL: &str = "__this_module";
/// The prefix of the operations of a parameter's type: `param_ops_int`.
pub const PARAM_OPS_PREFIX: &str = "param_ops_";
/// The symbol of the operations of a parameter of type array.
pub const PARAM_ARRAY_OPS_SYMBOL: &str = "param_array_ops";
/// Alternatives for pieces of code: [`crate::record::AltInstr`].
pub const ALTINSTRUCTIONS: &str = ".altinstructions";
/// Calls through an operations table: [`crate::record::ParavirtSite`].
pub const PARAINSTRUCTIONS: &str = ".parainstructions";
/// Lock prefixes: [`crate::record::RelativeSite`].
pub const SMP_LOCKS: &str = ".smp_locks";
/// Indirect branches through thunks: [`crate::record::RelativeSite`].
pub const RETPOLINE_SITES: &str = ".retpoline_sites";
/// Returns through a thunk: [`crate::record::RelativeSite`].
pub const RETURN_SITES: &str = ".return_sites";
/// ENDBR instructions that are not needed: [`crate::record::RelativeSite`].
pub const IBT_ENDBR_SEAL: &str = ".ibt_endbr_seal";
/// Calls of `__fentry__` at the beginning of functions: [`crate::record::AddressSite`].
pub const MCOUNT_LOC: &str = "__mcount_loc";
/// NOPs at the beginning of functions: [`crate::record::AddressSite`].
pub const PATCHABLE_FUNCTION_ENTRIES: &str = "__patchable_function_entries";
/// Branches that static keys control: [`crate::record::JumpEntry`].
pub const JUMP_TABLE: &str = "__jump_table";
/// Static calls: [`crate::record::StaticCallSite`].
pub const STATIC_CALL_SITES: &str = ".static_call_sites";
/// Pairs of a static call's trampoline and its key.
pub const STATIC_CALL_TRAMP_KEY: &str = ".static_call_tramp_key";
/// An empty section. It says that no tool has written [`STATIC_CALL_SITES`], so that the loader must find the calls of
/// trampolines by their relocations.
pub const STATIC_CALL_MARK: &str = ".modload.static_calls";
/// The handling of a fault at an instruction; 12 bytes a record.
pub const EX_TABLE: &str = "__ex_table";
/// The meaning of an instruction that traps.
pub const BUG_TABLE: &str = "__bug_table";
/// The rows of Linux's ORC unwinder; 6 bytes a record.
pub const ORC_UNWIND: &str = ".orc_unwind";
/// The code address of each record of [`ORC_UNWIND`]: the distance from the entry, 4 bytes.
pub const ORC_UNWIND_IP: &str = ".orc_unwind_ip";
/// Variables with one copy per processor.
pub const PERCPU: &str = ".data..percpu";
/// Linux's `struct module`.
pub const LINUX_THIS_MODULE: &str = ".gnu.linkonce.this_module";
/// Tracepoints.
pub const TRACEPOINTS: &str = "__tracepoints";
/// The prefix of sections that Linux frees when `init` has returned.
pub const INIT_SECTION_PREFIX: &str = ".init";
/// The prefix of the thunk that branches through a register, followed by the register's name.
/// `__x86_indirect_thunk_array` is the start of all thunks.
pub const INDIRECT_THUNK_PREFIX: &str = "__x86_indirect_thunk_";
/// Linux's operations table.
pub const PV_OPS_SYMBOL: &str = "pv_ops";
/// The symbol of the thunk that replaces a return instruction.
pub const RETURN_THUNK_SYMBOL: &str = "__x86_return_thunk";
/// The symbol of the function that a traceable function calls first.
pub const FENTRY_SYMBOL: &str = "__fentry__";
/// The prefix of a static call's trampoline, followed by the name of the static call.
pub const STATIC_CALL_TRAMPOLINE_PREFIX: &str = "__SCT__";
/// The prefix of a static call's key, followed by the name of the static call.
pub const STATIC_CALL_KEY_PREFIX: &str = "__SCK__";
/// Code.
pub const TEXT: &str = ".text";
/// Trampolines of static calls.
pub const STATIC_CALL_TEXT: &str = ".static_call.text";

/// `st_shndx` of a COMMON symbol that may lie anywhere: gcc's `-mcmodel=medium`.
pub const SHN_X86_64_LCOMMON: u16 = 0xff02;

/// `st_shndx` of a symbol that a live patch resolves when its object is loaded.
pub const SHN_LIVEPATCH: u16 = 0xff20;

/// `sh_flags` of a section of relocations that a live patch applies: [`KLP_RELA_PREFIX`].
pub const SHF_RELA_LIVEPATCH: u64 = 0x0010_0000;
