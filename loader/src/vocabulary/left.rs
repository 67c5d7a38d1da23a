//! How code left a module's function without returning, in terms of modules.

use std::fmt;

use modload_threads::boundary::Thrown;

/// How a function of a module was left without returning, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct LeftBy {
    /// What left the function: an exception, a panic, or the end of the thread.
    pub thrown: Thrown,
    /// The innermost place in a module, as `func+0x12/0x40 [module]`; `None` outside of modules, or if unknown.
    pub place: Option<String>,
}

impl fmt::Display for LeftBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.thrown.fmt(f)?;
        let verb = match self.thrown {
            Thrown::ThreadExit => "called",
            Thrown::Cancelled => "met",
            _ => "thrown",
        };
        self.place.as_ref().map_or(Ok(()), |place| write!(f, ", {verb} at {place}"))
    }
}
