//! The variants of the trampolines' code.

/// The width of the vector registers in which functions may have arguments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum VectorWidth {
    /// 128 bits.
    Xmm,
    /// 256 bits.
    Ymm,
    /// 512 bits.
    Zmm,
}

impl VectorWidth {
    /// Returns the largest width of this machine.
    pub(crate) fn of_this_machine() -> VectorWidth {
        if std::arch::is_x86_feature_detected!("avx512f") {
            VectorWidth::Zmm
        } else if std::arch::is_x86_feature_detected!("avx") {
            VectorWidth::Ymm
        } else {
            VectorWidth::Xmm
        }
    }
}

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
