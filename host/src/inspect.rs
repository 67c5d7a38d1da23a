//! The contents of module files, and the load order of the modules of a folder. No code of a module runs, and a file need not be
//! trusted.

pub use modload_loader::{
    Change, Explanation, FunctionBytes, InspectedExport, InspectedNeed, InspectedParam, InspectedSection,
    InspectedTable, InspectedWait, Inspection,
};
use modload_loader::{Input, LoadError};

pub use crate::catalog::{Catalog, CatalogError};

use crate::host::Host;

impl Host {
    /// Explains how a function of a link unit would change in this host: every byte that relocations, alternatives and
    /// the other engines would change, with the reason. Nothing is loaded, and no code of the module runs.
    ///
    /// # Errors
    /// [`LoadError`]: the stage that failed and the reason.
    pub fn explain(&self, inputs: &[Input<'_>], stem: &str, function: &str) -> Result<Explanation, LoadError> {
        self.inner.loader.explain(inputs, stem, function)
    }
}
