//! Stage *admit*: refuses, by name, modules that this version cannot load correctly and modules that the host's policy
//! forbids. Runs before any memory is taken.

use modload_abi::section;
use object::elf;

use crate::elf::error::ObjectError;
use crate::elf::file::{File, SymbolPlace};
use crate::elf::modinfo::Modinfo;
use crate::elf::sections::{check_sections, unsupported};
use crate::modules::recorder::Recorder;
use crate::operate::error::Error;
use crate::operate::judge::Judge;
use crate::prepare::deferred;
use crate::prepare::policy::Policy;

/// Refuses modules that cannot or must not be loaded.
pub(crate) fn admit<'a>(
    file: &File<'a>,
    info: &'a Modinfo<'a>,
    policy: &'a Policy,
    recorder: Recorder<'_>,
) -> Result<Judge<'a>, Error> {
    check(file)?;
    deferred::check_symbols(file, info)?;
    let judge = Judge::new(policy, file, info)?;
    judge.module(recorder)?;
    Ok(judge)
}

/// Whether a thread-local symbol can lie at this place.
fn is_thread_local(file: &File<'_>, place: SymbolPlace) -> bool {
    match place {
        SymbolPlace::Undefined => true,
        SymbolPlace::Section(section) => {
            file.section(section).is_some_and(|section| !section.kept || section.flags.contains(elf::SHF_TLS))
        }
        SymbolPlace::Absolute | SymbolPlace::Common | SymbolPlace::Livepatch => false,
    }
}

/// Refuses sections and symbols that need an unsupported feature.
pub(crate) fn check(file: &File<'_>) -> Result<(), ObjectError> {
    // First, because this check has the better reason for unmarked relocations of a live patch.
    deferred::check(file)?;
    check_sections(file)?;
    for section in &file.sections {
        if section.name == section::GNU_STACK.as_bytes() && section.flags.contains(elf::SHF_EXECINSTR) {
            let why = "it asks for an executable stack; gcc does so for pointers to nested functions, and from gcc 14 on not \
                       with -ftrampoline-impl=heap";
            return Err(unsupported("section", section.name, why));
        }
    }
    for section in file.sections.iter().filter(|section| section.kept) {
        let refused = |why| Err(unsupported("section", section.name, why));
        let has = |flag| section.flags.contains(flag);
        if has(elf::SHF_TLS) && has(elf::SHF_EXECINSTR) {
            return refused("it would be both code and thread-local data");
        }
        if has(elf::SHF_WRITE) && has(elf::SHF_EXECINSTR) {
            return refused("it would be both writable and executable");
        }
        if has(elf::SHF_COMPRESSED) {
            return refused("compressed sections can only hold debug information");
        }
    }
    for (_, symbol) in file.symbols() {
        let why = match symbol.kind {
            elf::STT_TLS if !is_thread_local(file, symbol.place) => {
                "it is said to be thread-local, and lies in no section of thread-local variables"
            }
            elf::STT_GNU_IFUNC if matches!(symbol.place, SymbolPlace::Absolute | SymbolPlace::Common) => {
                "its resolver would be no function of this module"
            }
            _ if symbol.is_named(b"__gnu_lto_slim") => "it holds only GCC's intermediate code; compile without -flto",
            _ => continue,
        };
        return Err(unsupported("symbol", symbol.name(), why));
    }
    Ok(())
}
