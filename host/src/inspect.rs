//! What a module file holds, and in which order the modules of a folder load. No code of a module runs, and a file need not be
//! trusted.

pub use modload_loader::{
    Change, Explanation, FunctionBytes, InspectedExport, InspectedNeed, InspectedParam, InspectedSection,
    InspectedTable, InspectedWait, Inspection,
};

pub use crate::catalog::{Catalog, CatalogError};
