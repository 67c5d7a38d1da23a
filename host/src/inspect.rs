//! The contents of module files, and the load order of the modules of a folder. No code of a module runs, and a file need not be
//! trusted.
//!
//! ```
//! use modload::file::SIZE_LIMIT;
//! use modload::inspect::{Catalog, Inspection};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // `object` is the compiled form of: int puts(const char *); int greet(void) { return puts("hello"); }
//! # let object = modload_fixtures::c_object("int puts(const char *); int greet(void) { return puts(\"hello\"); }")?;
//! let inspection = Inspection::of(&object, "greet", SIZE_LIMIT)?;
//! assert_eq!(inspection.needs.len(), 1);
//! assert_eq!(inspection.needs[0].name, "puts");
//! assert_eq!(inspection.refused, None);
//!
//! // The modules of a folder, in load order.
//! # let folder = tempfile::tempdir()?;
//! # std::fs::write(folder.path().join("greet.o"), object)?;
//! let catalog = Catalog::read(folder.path())?;
//! let order = catalog.order(&["greet"])?;
//! assert_eq!(order.len(), 1);
//! assert_eq!(order[0].0, "greet");
//! # Ok(())
//! # }
//! ```

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
