//! The reasons for which the records of a module's patch are not valid.

use thiserror::Error;

/// The most records of one kind that a patch may have.
pub(super) const MOST_RECORDS: usize = 4096;
/// The most bytes that a name may have: Linux's KSYM_NAME_LEN, and MODULE_NAME_LEN.
pub(super) const LONGEST: usize = 511;

/// The sizes that records can have, for errors: `HEADERS` of `record_sizes`.
const SIZES: &str = "modload/livepatch.h (64, 96, 96) or Linux 6.1 (152, 168, 200)";

/// The records of a patch are not valid.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum StructError {
    /// The module does not say that it is a live patch.
    #[error("module {0} is not marked as a livepatch module: add MODULE_INFO(livepatch, \"Y\")")]
    NotMarked(String),
    /// `klp_enable_patch` was not called from the module's init.
    #[error("module {0} calls klp_enable_patch, but not from its init: call it from init")]
    NotInInit(String),
    /// `mod` is another module, or NULL.
    #[error("the patch's `mod` is not THIS_MODULE of {0}: set it to THIS_MODULE")]
    OtherModule(String),
    /// A required pointer is NULL.
    #[error("{0} is NULL")]
    Null(&'static str),
    /// An item does not lie in the module's own memory.
    #[error("{what} must lie completely in the module's own memory")]
    Outside {
        /// The item.
        what: &'static str,
    },
    /// A record that is written lies outside variables, or in memory that does not last as long as the module.
    #[error("{what} must be a variable: neither constant, nor __initdata, nor __ro_after_init")]
    NoVariable {
        /// The record.
        what: &'static str,
    },
    /// A pointer to a function leads outside the module's lasting text.
    #[error("{what} must be a function in the module's text that stays when init has returned (not __init)")]
    NoFunction {
        /// The pointer.
        what: &'static str,
    },
    /// Neither `.modinfo` nor a symbol tells the size of the records.
    #[error(
        "the size of the module's records of live patching is not known: include modload/livepatch.h, which states it in .modinfo, \
         or keep the symbol of the struct klp_patch (strip --strip-debug does)"
    )]
    UnknownSize,
    /// `.modinfo` states sizes that no header has.
    #[error(
        "the module's records of live patching have the sizes {0} (klp_func, klp_object, klp_patch), and none of {SIZES}: compile it \
         with one of these headers"
    )]
    StatedSizes(String),
    /// A variable has a size that no header gives it.
    #[error(
        "the module's variable of type {what} has {size} bytes, which is no size of its records: they can be those of {SIZES}; \
         compile it with one of these headers"
    )]
    Size {
        /// The variable's type.
        what: &'static str,
        /// The variable's size in bytes.
        size: u64,
    },
    /// A name has no end within the limit.
    #[error("{what} has more than {LONGEST} bytes")]
    TooLong {
        /// The name.
        what: &'static str,
    },
    /// An array has no end within the limit.
    #[error("there are more than {MOST_RECORDS} {what}: an array ends with an empty record")]
    TooMany {
        /// The array.
        what: &'static str,
    },
}
