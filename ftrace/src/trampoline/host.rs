//! The host's own functions that can be traced.

use std::fmt;

use modload_edit::{Addr, Edit, EditOrigin, EditSet, Engine, NOPS, Sink, index, wide};
use modload_text::{Annex, HostText, TextLock, TrapMask, poke};

use crate::error::TraceError;
use crate::sites::Site;
use crate::x86_64::{LONGEST_ENTRY, host_site_len, landing_pad_len};

/// A function of the host's own that may be traced.
#[derive(Clone, Debug)]
pub struct HostFunction {
    name: String,
    at: Addr,
}

impl HostFunction {
    /// Makes the entry of a function that was compiled to be traced: with `-fpatchable-function-entry=5`, or
    /// `-pg -mfentry`.
    ///
    /// # Safety
    /// The pointer is the first address of such a function. The function's code stays mapped as long as the host to
    /// which it is given exists. No other code changes it.
    #[must_use]
    pub unsafe fn new(name: impl Into<String>, function: *const ()) -> HostFunction {
        HostFunction {
            name: name.into().escape_default().to_string(),
            at: Addr::new(wide(function.expose_provenance())),
        }
    }
}

impl HostFunction {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn at(&self) -> Addr {
        self.at
    }
}

/// The registered part of a host's own text, which exists as long as the host.
pub(crate) struct HostPart {
    pub(crate) sites: Vec<Site>,
    pub(crate) untraceable: Vec<(std::sync::Arc<str>, String)>,
    /// The memory for the stubs of the functions.
    pub(crate) annex: Option<Annex>,
    /// Dropped when no site leads anywhere any more.
    pub(crate) texts: Vec<HostText>,
}

impl fmt::Debug for HostPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostPart").field("sites", &self.sites.len()).finish_non_exhaustive()
    }
}

/// Returns the site at an entry: its distance from the entry, and its length. The code of this length becomes one NOP.
fn entry(at: Addr, code: &[u8]) -> Result<(usize, usize), String> {
    let skipped = landing_pad_len(code);
    let why = || {
        let shown = modload_edit::disassembled(at, code);
        format!("it begins with {shown}: no NOPs of 5 or 6 bytes, no 5 NOPs, and no call of __fentry__")
    };
    host_site_len(at + wide(skipped), &code[skipped..]).map(|len| (skipped, len)).ok_or_else(why)
}

impl HostPart {
    /// Registers functions: their text may be poked from now on, and calls of `__fentry__` and single NOPs become one
    /// NOP.
    pub(crate) fn register(functions: Vec<HostFunction>, stub: u64, mask: TrapMask) -> Result<HostPart, TraceError> {
        let mut part = HostPart { sites: Vec::new(), untraceable: Vec::new(), annex: None, texts: Vec::new() };
        let mut batch = EditSet::new();
        let ends = |functions: &[HostFunction]| {
            let first = functions.iter().map(|function| function.at).min()?;
            let last = functions.iter().map(|function| function.at).max()?;
            Some((first, last + wide(LONGEST_ENTRY)))
        };
        let Some((start, end)) = ends(&functions) else { return Ok(part) };
        // Mostly all functions are in one executable.
        // SAFETY: `HostFunction::new` promises it of each function. The code between functions is not poked.
        match unsafe { HostText::register(start, end) } {
            Ok(text) => part.texts.push(text),
            Err(_) => {
                for function in &functions {
                    // SAFETY: `HostFunction::new` promises it.
                    part.texts.push(unsafe { HostText::register(function.at, function.at + wide(LONGEST_ENTRY)) }?);
                }
            }
        }
        for (record, HostFunction { name, at }) in (0..).zip(functions) {
            let why = EditOrigin { engine: Engine::Fentry, section: 0, record };
            let code: *const u8 = std::ptr::with_exposed_provenance(index(at.get()));
            // SAFETY: the text is registered, so it is mapped and readable.
            let code = unsafe { std::slice::from_raw_parts(code, LONGEST_ENTRY) };
            match entry(at, code) {
                Ok((skipped, len)) => {
                    let site = at + wide(skipped);
                    let old = &code[skipped..skipped + len];
                    if old != NOPS[len - 1] {
                        batch.edit(Edit { at: site, old, new: NOPS[len - 1], why })?;
                    }
                    let len = u8::try_from(len).unwrap_or(5);
                    part.sites.push(Site { at: site, len, entry: at, name: name.into(), is_init: false, why });
                }
                Err(why_not) => part.untraceable.push((name.into(), why_not)),
            }
        }
        if !part.sites.is_empty() {
            part.annex = Some(Annex::near(start, end, wide(part.sites.len()) * stub)?);
        }
        if !batch.is_empty() {
            poke(&mut TextLock::take(), &batch, mask)?;
        }
        part.sites.sort_by_key(|site| site.at);
        Ok(part)
    }
}
