//! The variants of the trampolines' code.

pub(crate) use super::x86_64::VectorWidth;

/// The registers that a set needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum SavedRegisters {
    /// The registers that the function needs again.
    Arguments,
    /// All general registers, for the tracer to read.
    All,
}

/// The instruction by which a site leads to its stub.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SiteBranch {
    /// A call of the first half.
    Call,
    /// A jump to the second half.
    Jump,
}

/// The code that runs after the tracers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AfterTracers {
    /// The function.
    Function,
    /// The code that records the call.
    Record,
    /// The code that records entry and return. The site is a jump.
    Graph,
}
