//! The errors of the planners.

use modload_edit::Addr;
use thiserror::Error;

/// Why a record cannot be applied.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum KeySiteProblem {
    /// The record cannot be read.
    #[error("its section is no whole number of records")]
    PartOfRecord,
    /// The site is not in text.
    #[error("its site is not within text")]
    SiteOutside,
    /// The site is neither a NOP nor the jump to the record's target.
    #[error("its site is neither a NOP of 2 or 5 bytes nor the jump to {0}")]
    NeitherNopNorJump(Addr),
    /// The site is not an instruction that a static call can be.
    #[error("its site is not {0}")]
    OtherInstruction(&'static str),
    /// The target is too far from the site.
    #[error("{0} is out of the reach of its site")]
    OutOfReach(Addr),
    /// A return at the site needs a thunk whose address is not known.
    #[error(transparent)]
    Return(#[from] modload_alternatives::RewriteProblem),
}

/// The error of the planners of this crate.
pub(crate) type KeyPlanError = modload_edit::PlanError<KeySiteProblem>;
