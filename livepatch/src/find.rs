//! Looks up the entries and extents of functions: patched functions by name and position, and the extent of any code.

use std::ops::Range;

use modload_edit::Addr;
use modload_ftrace::{Ftrace, untraceable};
use modload_loader::{FunctionSymbol, Module};
use modload_threads::frames::function_at;

use crate::error::PatchError;
use crate::patch::{Func, VMLINUX};

/// The place in which functions are looked up.
pub(crate) enum ObjectPlace<'a> {
    /// A module, and its functions by address.
    Module(&'a Module, Vec<FunctionSymbol>),
    /// The host's own functions.
    Host(Ftrace),
}

impl<'a> ObjectPlace<'a> {
    pub(crate) fn module(module: &'a Module) -> ObjectPlace<'a> {
        ObjectPlace::Module(module, module.functions())
    }

    fn name(&self) -> &str {
        match self {
            ObjectPlace::Module(module, _) => module.name(),
            ObjectPlace::Host(_) => VMLINUX,
        }
    }

    /// Returns a function's entry, and the address ranges of its code.
    pub(crate) fn function(&self, func: &Func) -> Result<(Addr, Vec<Range<u64>>), PatchError> {
        let object = || self.name().to_owned();
        let symbol = || func.old_name.to_string();
        let all = match self {
            ObjectPlace::Module(module, _) => module.positions(&func.old_name),
            ObjectPlace::Host(ftrace) => ftrace.host_functions(&func.old_name),
        };
        let count = all.len();
        let found = match func.old_sympos.checked_sub(1) {
            None if count == 1 => all.first(),
            None => None,
            Some(position) => usize::try_from(position).ok().and_then(|position| all.get(position)),
        };
        let entry = match found {
            Some(entry) => *entry,
            None if count == 0 => return Err(PatchError::NotFound { object: object(), symbol: symbol() }),
            None => {
                let position = func.old_sympos;
                return Err(PatchError::Position { object: object(), symbol: symbol(), position, count });
            }
        };
        if let Some(source) = untraceable(entry, self.name(), &func.old_name) {
            return Err(PatchError::Function { object: object(), symbol: symbol(), source: Box::new(source) });
        }
        let mut extent = vec![self.extent(entry)?];
        if let ObjectPlace::Module(_, functions) = self {
            extent.extend(cold_parts(functions, &func.old_name));
        }
        Ok((entry, extent))
    }

    fn extent(&self, at: Addr) -> Result<Range<u64>, PatchError> {
        let stated = match self {
            ObjectPlace::Module(_, functions) => {
                functions.iter().find(|function| function.addr == at && function.size != 0)
            }
            ObjectPlace::Host(_) => None,
        };
        stated.map_or_else(|| extent(at), |function| Ok(at.get()..at.get() + function.size))
    }
}

/// Returns the parts of a function that the compiler has placed elsewhere because they seldom run.
pub(crate) fn cold_parts(functions: &[FunctionSymbol], name: &str) -> impl Iterator<Item = Range<u64>> {
    let cold = format!("{name}.cold");
    let parts = functions.iter().filter(move |function| function.name.starts_with(&cold) && function.size != 0);
    parts.map(|function| function.addr.get()..function.addr.get() + function.size)
}

/// Returns the address range of a function's code, from call frame information.
pub(crate) fn extent(at: Addr) -> Result<Range<u64>, PatchError> {
    function_at(at.get()).ok_or(PatchError::NoExtent { at })
}
