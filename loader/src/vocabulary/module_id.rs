//! The number of a module in its registry.

/// The number of a module, in order of reservation. No number is used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub(crate) struct ModuleId(u64);

impl ModuleId {
    /// The number that no module's number is below.
    pub(crate) const FIRST: ModuleId = ModuleId(0);
    /// The number that no module's number is above.
    pub(crate) const LAST: ModuleId = ModuleId(u64::MAX);

    /// Returns the module's number.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// Returns the number of the module that is reserved next.
    pub(crate) fn next(self) -> ModuleId {
        ModuleId(self.0.wrapping_add(1))
    }
}
