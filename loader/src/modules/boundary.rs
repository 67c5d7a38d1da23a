//! Catches exceptions, panics and thread exits that leave a module's code.

use modload_edit::Addr;
use modload_threads::boundary::{self, Left};

use crate::modules::module::Module;
use crate::modules::registry::Registry;
use crate::vocabulary::left::LeftBy;

impl LeftBy {
    /// Describes how a function was left, while the modules are still in memory.
    pub(crate) fn describe(registry: &Registry, left: Left) -> LeftBy {
        let describe = |pc: &u64| {
            let at = Addr::new(*pc);
            let module = registry.lock().module_at(at.offset(-1))?;
            module.describe_return(at)
        };
        LeftBy { place: left.from.iter().find_map(describe), thrown: left.thrown }
    }
}

impl Module {
    /// Runs a function that may call the module's code, and catches everything that the code throws.
    ///
    /// # Errors
    /// [`LeftBy`]: how the code was left without returning, and where.
    pub fn guard<R>(&self, run: impl FnOnce() -> R) -> Result<R, LeftBy> {
        boundary::guard(run).map_err(|left| LeftBy::describe(self.registry, left))
    }
}
