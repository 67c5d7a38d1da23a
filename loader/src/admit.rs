//! Stage *admit*: what this version cannot load rightly, and what the host does not want, is turned away by name, before
//! anything is done for it.

use modload_abi::section;
use object::elf;

use crate::deferred;
use crate::error::{Error, escaped};
use crate::file::{File, Place};
use crate::modinfo::Modinfo;
use crate::policy::{Judge, Policy};
use crate::timeline::Recorder;

/// Turns away what cannot or may not be loaded.
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

/// Refuses sections and symbols that ask for what is not there.
pub(crate) fn check(file: &File<'_>) -> Result<(), Error> {
    for section in &file.sections {
        if section.name == section::GNU_STACK.as_bytes() && section.flags.contains(elf::SHF_EXECINSTR) {
            let why = "it asks for an executable stack; gcc does so for pointers to nested functions";
            return Err(unsupported("section", section.name, why));
        }
    }
    for section in file.sections.iter().filter(|section| section.kept) {
        let refused = |why| Err(unsupported("section", section.name, why));
        let has = |flag| section.flags.contains(flag);
        if has(elf::SHF_TLS) {
            return refused("thread-local storage is not supported yet");
        }
        if has(elf::SHF_WRITE) && has(elf::SHF_EXECINSTR) {
            return refused("it would be both writable and executable");
        }
        if has(elf::SHF_COMPRESSED) {
            return refused("compressed sections can only hold debug information");
        }
        let known = section::UNSUPPORTED.iter().find(|known| section.name == known.name.as_bytes());
        if let Some(known) = known.filter(|_| section.size != 0) {
            return refused(known.why);
        }
    }
    for (_, symbol) in file.symbols() {
        let why = match symbol.kind {
            elf::STT_TLS => "thread-local storage is not supported yet",
            elf::STT_GNU_IFUNC if matches!(symbol.place, Place::Absolute | Place::Common) => {
                "its resolver would be no function of this module"
            }
            _ if symbol.is_named(b"__gnu_lto_slim") => "it holds only GCC's intermediate code; compile without -flto",
            _ => continue,
        };
        return Err(unsupported("symbol", symbol.name(), why));
    }
    deferred::check(file)
}

fn unsupported(what: &'static str, name: &[u8], why: &'static str) -> Error {
    Error::Unsupported { what, name: escaped(name), why }
}
