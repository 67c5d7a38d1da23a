//! The vector registers in which functions may have arguments.

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
