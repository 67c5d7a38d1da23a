//! The sizes of the records of a module's patch. A module that was compiled with the SDK states the sizes in
//! `.modinfo`. For other modules, the sizes of their symbols tell. No size is assumed: with a wrong size, all records
//! of an array after the first would be lost.

use std::fmt;

use modload_edit::Addr;
use modload_loader::{Module, ModuleSymbolKind};

use crate::structs::StructError;

/// The header whose `struct module` the records refer to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KlpHeader {
    /// `modload/module.h`: the module's name, then its state.
    Sdk,
    /// Linux's header: the module's state first, and its name at offset 24.
    Linux,
}

/// The record sizes of one header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordSizes {
    pub(crate) header: KlpHeader,
    /// The size in bytes of a `struct klp_func`, `struct klp_object` and `struct klp_patch`. The fields that are read
    /// lie at the same offsets in the records of all headers.
    pub(crate) func: u64,
    pub(crate) object: u64,
    pub(crate) patch: u64,
    /// The offset of `klp_object.mod`.
    pub(crate) module: u64,
}

/// The sizes for `modload/livepatch.h`, and for Linux 6.1 as Debian configures it, where `struct kobject` has 64 bytes.
const HEADERS: [RecordSizes; 2] = [
    RecordSizes { header: KlpHeader::Sdk, func: 64, object: 96, patch: 96, module: 56 },
    RecordSizes { header: KlpHeader::Linux, func: 152, object: 168, patch: 200, module: 152 },
];

impl fmt::Display for RecordSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.func, self.object, self.patch)
    }
}

/// The known sizes of a module's records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KnownSizes {
    pub(crate) sizes: RecordSizes,
    /// Whether the module states the sizes. Sizes that follow from one symbol must agree with the sizes of all other
    /// symbols.
    is_stated: bool,
}

impl KnownSizes {
    /// Determines the sizes of the records of the patch at an address.
    ///
    /// # Errors
    /// [`StructError`]: the sizes are not known, or belong to no supported header.
    pub(crate) fn of(module: &Module, patch: Addr) -> Result<KnownSizes, StructError> {
        let measured = variable(module, patch);
        let has = |size: u64| move |sizes: &&RecordSizes| sizes.patch == size;
        if let Some(stated) = module.patch_record_sizes() {
            let sizes = HEADERS.iter().find(|sizes| sizes.to_string() == stated);
            let sizes = *sizes.ok_or_else(|| StructError::StatedSizes(stated.to_owned()))?;
            // A symbol of an array of patches is larger. A symbol with another header's size means that another source
            // file uses another header.
            let other = measured.filter(|&size| size < sizes.patch || HEADERS.iter().any(|other| other.patch == size));
            return match other.filter(|&size| size != sizes.patch) {
                Some(size) => Err(StructError::Size { what: "struct klp_patch", size }),
                None => Ok(KnownSizes { sizes, is_stated: true }),
            };
        }
        let size = measured.ok_or(StructError::UnknownSize)?;
        let sizes = HEADERS.iter().find(has(size)).ok_or(StructError::Size { what: "struct klp_patch", size })?;
        Ok(KnownSizes { sizes: *sizes, is_stated: false })
    }

    /// Compares the size of a record with the size of the array that begins at an address, if the array has a symbol.
    ///
    /// # Errors
    /// [`StructError::Size`]: the array's size is not a multiple of the record's size.
    pub(crate) fn agrees(
        &self,
        module: &Module,
        array: Addr,
        what: &'static str,
        size: u64,
    ) -> Result<(), StructError> {
        match variable(module, array).filter(|_| !self.is_stated) {
            Some(all) if all % size != 0 => Err(StructError::Size { what, size: all }),
            _ => Ok(()),
        }
    }
}

/// Returns the size of the variable that begins at an address, if the module's symbol table has that variable.
fn variable(module: &Module, at: Addr) -> Option<u64> {
    let symbol = module.symbol_at(at).filter(|symbol| symbol.kind == ModuleSymbolKind::Object);
    symbol.map(|symbol| symbol.size).filter(|size| *size != 0)
}

#[cfg(test)]
mod tests {
    use super::HEADERS;

    #[test]
    fn no_two_headers_have_the_same_sizes() {
        let [ours, linux] = HEADERS;
        assert_eq!((ours.to_string().as_str(), linux.to_string().as_str()), ("64,96,96", "152,168,200"));
        assert!(ours.patch != linux.patch && ours.object != linux.object && ours.func != linux.func);
        // `mod` lies within the record.
        assert!(HEADERS.iter().all(|sizes| sizes.module + 8 <= sizes.object));
    }
}
