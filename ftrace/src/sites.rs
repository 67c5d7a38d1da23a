//! Finds the functions of a module that can be traced, and the reasons for which others cannot.

use std::sync::Arc;

use modload_abi::record::{AddressSite, FixedRecord};
use modload_abi::section;
use modload_edit::{Addr, EditOrigin, Engine, NOP, index, wide};
use modload_loader::{Coming, FunctionSymbol, Refusal};

use crate::trace::TracedFunction;
use crate::trampoline::variants::VectorWidth;
use crate::x86_64::{LANDING_PAD, landing_pad_len, may_use_zmm, site_len};

/// A function with a record, and whether it can be traced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Traceable {
    /// The function.
    pub function: TracedFunction,
    /// The reason for which the function cannot be traced, or `None` if it can.
    pub why_not: Option<String>,
    /// The reason for which only calls can be recorded, but no returns. [`crate::Mode::Graph`] leaves the function out.
    pub why_no_returns: Option<&'static str>,
}

/// The functions that return more than once, or on another stack than the one of their call, by their names in gcc and
/// the C library. Up to two underscores may precede the name. Such a function stores its return address, so the address
/// must lead to its caller.
const RETURN_TWICE: [&str; 6] = ["getcontext", "savectx", "setjmp", "sigsetjmp", "swapcontext", "vfork"];

/// Returns the reason for which returns of a function of this name cannot be recorded. `None` if they can.
pub(crate) fn why_no_returns(name: &str) -> Option<&'static str> {
    let bare = ["__", "_"].iter().find_map(|before| name.strip_prefix(before)).unwrap_or(name);
    RETURN_TWICE.contains(&bare).then_some("it may return more than once, or to another stack")
}

/// A site: the instruction at a function's entry that can become a call or a jump.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) at: Addr,
    /// The length in bytes: 5 or 6.
    pub(crate) len: u8,
    /// The function's entry: the site's address, or the address of an ENDBR64 before the site.
    pub(crate) entry: Addr,
    pub(crate) name: Arc<str>,
    /// Whether the function is freed when `init` has returned.
    pub(crate) is_init: bool,
    pub(crate) why: EditOrigin,
}

/// The contents of a module's tables.
#[derive(Default, Debug)]
pub(crate) struct FoundSites {
    pub(crate) sites: Vec<Site>,
    /// The functions that cannot be traced, with the reasons.
    pub(crate) untraceable: Vec<(Arc<str>, String)>,
    /// The width of vector registers that may hold arguments of the functions.
    pub(crate) width: Option<VectorWidth>,
}

/// The most bytes before its entry at which a function's NOPs may begin (`-fpatchable-function-entry=N,M`).
const BEFORE: u64 = 64;

impl FoundSites {
    /// Reads the tables of a loading module. Returns `None` if it has none.
    pub(crate) fn read(coming: &Coming<'_>) -> Result<Option<FoundSites>, Refusal> {
        let names = [section::MCOUNT_LOC, section::PATCHABLE_FUNCTION_ENTRIES];
        let tables: Vec<_> = names.into_iter().flat_map(|name| coming.sections(name)).collect();
        if tables.iter().all(|table| table.bytes.is_empty()) {
            return Ok(None);
        }
        let functions = coming.module().functions();
        let mut found = FoundSites { width: Some(width(coming, &functions)), ..FoundSites::default() };
        for table in tables {
            for (record, bytes) in (0..).zip(table.bytes.chunks_exact(AddressSite::SIZE)) {
                let why = EditOrigin { engine: Engine::Fentry, section: table.table.section, record };
                found.add(coming, &functions, Addr::new(AddressSite::read(bytes).site), why)?;
            }
        }
        found.sites.sort_by_key(|site| site.at);
        Ok(Some(found))
    }

    fn add(
        &mut self,
        coming: &Coming<'_>,
        functions: &[FunctionSymbol],
        at: Addr,
        why: EditOrigin,
    ) -> Result<(), Refusal> {
        if at == Addr::NULL {
            // The linker has dropped the function. The loader skips such a record, too.
            return Ok(());
        }
        let outside = || Refusal::from(format!("{why}: its site is not within text"));
        let (start, text) = coming.text(at).ok_or_else(outside)?;
        let code = text.get(index((at - start).cast_unsigned())..).ok_or_else(outside)?;
        let len = site_len(code);
        let behind = functions.partition_point(|function| function.addr <= at);
        // Of several names for one address, the first is used.
        let named = |last: &FunctionSymbol| functions.partition_point(|function| function.addr < last.addr);
        let before = behind.checked_sub(1).map(|last| &functions[named(&functions[last])]);
        let distance = before.map(|function| at - function.addr);
        let is_endbr =
            || text.get(..index((at - start).cast_unsigned())).is_some_and(|text| text.ends_with(&LANDING_PAD));
        let place = || coming.module().display_place(at).unwrap_or_else(|| at.to_string());
        let (name, why_not) = match (before, distance) {
            (Some(function), Some(0)) => (function.name.clone(), None),
            (Some(function), Some(distance)) if distance.unsigned_abs() == wide(LANDING_PAD.len()) && is_endbr() => {
                (function.name.clone(), None)
            }
            _ => match functions.get(behind).filter(|next| next.addr - at <= BEFORE.cast_signed()) {
                // The bytes before an entry are NOPs, which the loader leaves unchanged. Other bytes are the code of a
                // function that has no name any more, because another object's function has replaced it.
                Some(next)
                    if before.is_none_or(|before| at >= before.addr + before.size)
                        && code.iter().take(index((next.addr - at).cast_unsigned())).all(|byte| *byte == NOP) =>
                {
                    return self.add_behind(coming, next, at, why);
                }
                _ => match before.filter(|before| at < before.addr + before.size.max(1)) {
                    Some(function) => {
                        let why = format!("its record points {:#x} bytes behind its entry", at - function.addr);
                        (function.name.clone(), Some(why))
                    }
                    None => (place(), Some("no symbol says that a function begins there".to_owned())),
                },
            },
        };
        let why_not = why_not.or_else(|| {
            let size = code.iter().take_while(|byte| **byte == NOP).count();
            let why = "there is no NOP of 5 or 6 bytes at its entry, and no 5 NOPs";
            len.is_none().then(|| match size {
                0 => format!("{why} (-pg -mfentry -mrecord-mcount, or -fpatchable-function-entry=5, would make one)"),
                size => format!("{why}, but {size} (-fpatchable-function-entry=5 would make them)"),
            })
        });
        let name: Arc<str> = name.into();
        match (why_not, len) {
            (None, Some(len)) => {
                let entry = at.offset(-distance.unwrap_or(0));
                self.sites.push(Site { at, len, entry, name, is_init: coming.is_init(at), why });
            }
            (why_not, _) => self.untraceable.push((name, why_not.unwrap_or_default())),
        }
        Ok(())
    }
}

impl FoundSites {
    /// Takes a record of NOPs that begin before a function's entry. Calls pass the NOPs behind the entry, which the
    /// loader has turned into one of five bytes.
    fn add_behind(
        &mut self,
        coming: &Coming<'_>,
        function: &FunctionSymbol,
        record: Addr,
        why: EditOrigin,
    ) -> Result<(), Refusal> {
        let code = |at: Addr| {
            let (start, text) = coming.text(at)?;
            text.get(index(at.checked_offset_from(start)?)..)
        };
        let entry = function.addr;
        let at = entry + wide(code(entry).map_or(0, landing_pad_len));
        let behind = code(at).unwrap_or_default();
        let name: Arc<str> = function.name.as_str().into();
        if let Some(len) = site_len(behind) {
            self.sites.push(Site { at, len, entry, name, is_init: coming.is_init(at), why });
            return Ok(());
        }
        let room = entry - record;
        let why_not = format!(
            "its record points {room} bytes before its entry, and the NOPs behind the entry, where calls pass, have no room for a \
             jump of 5 bytes; a short jump into the room before the entry is not supported \
             (-fpatchable-function-entry={},{room} would leave room)",
            room + 5
        );
        self.untraceable.push((name, why_not));
        Ok(())
    }
}

/// Returns the width of vector registers that may hold arguments of the module's functions. The largest only if an
/// instruction may use it, because saving such registers takes as long as everything else.
fn width(coming: &Coming<'_>, functions: &[FunctionSymbol]) -> VectorWidth {
    let widest = VectorWidth::of_this_machine();
    if widest != VectorWidth::Zmm {
        return widest;
    }
    let mut texts: Vec<(Addr, &[u8])> = Vec::new();
    for function in functions {
        if texts.last().is_some_and(|(start, text)| (*start..*start + wide(text.len())).contains(&function.addr)) {
            continue;
        }
        texts.extend(coming.text(function.addr));
    }
    if texts.iter().any(|(_, text)| may_use_zmm(text)) { VectorWidth::Zmm } else { VectorWidth::Ymm }
}
