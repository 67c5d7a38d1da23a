//! The target of a transition.

/// The target of a transition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Linux's KLP_PATCHED.
    Patched,
    /// Linux's KLP_UNPATCHED.
    Unpatched,
}

impl Target {
    /// Returns the other target, for a reversal.
    pub(crate) fn other(self) -> Target {
        match self {
            Target::Patched => Target::Unpatched,
            Target::Unpatched => Target::Patched,
        }
    }

    /// Returns the name of the target in log lines.
    pub(crate) fn log_name(self) -> &'static str {
        match self {
            Target::Patched => "patching",
            Target::Unpatched => "unpatching",
        }
    }
}
