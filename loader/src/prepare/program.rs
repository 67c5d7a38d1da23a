//! Symbols that every program has, and no module: those that its linker defines, and those of archives that its compiler
//! adds.

/// Symbols that linkers define. The process has its own, which are not the module's.
const LINKED_BOUNDS: [&[u8]; 12] = [
    b"_end",
    b"end",
    b"_etext",
    b"etext",
    b"__etext",
    b"_edata",
    b"edata",
    b"__bss_start",
    b"__data_start",
    b"data_start",
    b"__executable_start",
    b"__ehdr_start",
];

/// Returns the reason why a module has no such symbol, if linkers define it for programs.
pub(crate) fn bound(name: &[u8]) -> Option<&'static str> {
    LINKED_BOUNDS
        .contains(&name)
        .then_some("a linker defines it as a bound of the whole program, and a module's memory has several parts")
}

/// Functions of glibc that lie in each program, not in the C library itself.
const OF_LIBC_NONSHARED: [&[u8]; 12] = [
    b"atexit",
    b"at_quick_exit",
    b"pthread_atfork",
    b"stat",
    b"stat64",
    b"fstat",
    b"fstat64",
    b"lstat",
    b"lstat64",
    b"mknod",
    b"mknodat",
    b"__stack_chk_fail_local",
];

/// The beginnings of names, and the ends, of functions that compilers call and define in libgcc.a and in compiler-rt.
const OF_LIBGCC: [&[u8]; 6] =
    [b"__cpu_model", b"__cpu_indicator_init", b"__cpu_features2", b"__emutls_", b"__clear_cache", b"__morestack"];
const OF_LIBGCC_BY_TYPE: [&[u8]; 13] =
    [b"ti2", b"ti3", b"ti4", b"tiqi", b"di2", b"tf2", b"tf3", b"tfti", b"dc3", b"sc3", b"xc3", b"tc3", b"dfti"];

/// Returns the archive that compilers add to each program and that has this symbol, as the reason why it is missing.
pub(crate) fn driver_adds(name: &[u8]) -> Option<&'static str> {
    if OF_LIBC_NONSHARED.contains(&name) {
        return Some(
            "it is in libc_nonshared.a, which a compiler adds to each program; add the archive that \
             `cc -print-file-name=libc_nonshared.a` names",
        );
    }
    let of_compiler = OF_LIBGCC.iter().any(|start| name.starts_with(start))
        || name.starts_with(b"__") && OF_LIBGCC_BY_TYPE.iter().any(|end| name.ends_with(end));
    of_compiler.then_some(
        "it is in libgcc.a, which a compiler adds to each program; add the archive that `cc -print-libgcc-file-name` \
         names",
    )
}
