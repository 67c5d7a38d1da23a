//! The end of what leaves a module's code other than by returning.

use modload_edit::Addr;
use modload_threads::boundary::{self, Left};

use crate::modules::module::Module;
use crate::modules::registry::Registry;
use crate::vocabulary::left::LeftBy;

impl LeftBy {
    /// Describes it, while the modules are there.
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
    /// Runs something that may call the module's code: what that throws ends here.
    ///
    /// # Errors
    /// [`LeftBy`]: how the code was left, other than by returning, and where.
    pub fn guard<R>(&self, run: impl FnOnce() -> R) -> Result<R, LeftBy> {
        boundary::guard(run).map_err(|left| LeftBy::describe(self.registry, left))
    }
}
