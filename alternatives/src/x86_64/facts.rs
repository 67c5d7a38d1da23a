//! The inputs of the engines besides the code, and the errors of records.

use modload_edit::Addr;
use thiserror::Error;

use crate::Features;

/// The number of processors, as far as lock prefixes are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Processors {
    /// One processor: lock prefixes have no use.
    One,
    /// Several processors: lock prefixes are needed.
    Several,
}

/// The thunks of returns. With some options a compiler writes a jump to `__x86_return_thunk` instead of a return.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Returns {
    /// The address of `__x86_return_thunk`, the jump target that marks a return site.
    pub compiled: Option<Addr>,
    /// The value of the variable `x86_return_thunk`: the jump target of return sites if the features require a thunk.
    pub thunk: Option<Addr>,
    /// The address of `its_return_thunk`. If it equals `thunk`, sites whose address has bit 5 set use a plain return.
    pub its: Option<Addr>,
}

/// The inputs of the engines of this crate.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The processor's features, including Linux's choice of mitigations.
    pub features: Features,
    /// The number of processors.
    pub processors: Processors,
    /// The address of `__x86_indirect_thunk_array`: 16 thunks of 32 bytes, one for each register.
    pub indirect_thunks: Option<Addr>,
    /// The thunks of returns.
    pub returns: Returns,
}

impl Facts {
    /// Returns the facts for a process on this machine: branches and returns without thunks, several processors.
    #[must_use]
    pub fn of_this_machine() -> Facts {
        Facts {
            features: Features::of_this_machine(),
            processors: Processors::Several,
            indirect_thunks: None,
            returns: Returns::default(),
        }
    }
}

/// Why a record cannot be applied.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RewriteProblem {
    /// The section ends within the record.
    #[error("its section is no whole number of records")]
    PartOfRecord,
    /// The site is not completely within text.
    #[error("its site of {0} bytes is not within text")]
    SiteOutside(usize),
    /// The replacement is not completely within text.
    #[error("its replacement of {0} bytes is not within text")]
    ReplacementOutside(usize),
    /// The site ends within an instruction.
    #[error("its site of {0} bytes ends within an instruction")]
    SiteCut(usize),
    /// The replacement ends within an instruction.
    #[error("its replacement ends within an instruction")]
    ReplacementCut,
    /// The replacement is longer than the site.
    #[error("its replacement of {replacement} bytes is longer than its site of {site}")]
    TooLong {
        /// The length of the replacement in bytes.
        replacement: usize,
        /// The length of the site in bytes.
        site: usize,
    },
    /// The feature number is not in the table.
    #[error("there is no feature number {}*32+{}", .0 / 32, .0 % 32)]
    UnknownFeature(u16),
    /// An operand of the replacement cannot reach its target from the site.
    #[error("an operand of its replacement does not reach {0} from the site")]
    OutOfReach(Addr),
    /// The record has unknown flags.
    #[error("its flags {0:#x} are not known")]
    UnknownFlags(u16),
    /// The instruction at the site is of another kind than this record requires.
    #[error("its site is not {0}")]
    OtherInstruction(&'static str),
    /// The pointer of an indirect call cannot be read.
    #[error("the pointer at {0} that its call goes through is not known")]
    NoPointer(Addr),
    /// The target of the branch is not a thunk.
    #[error("its target {0} is no thunk")]
    NoThunk(Addr),
    /// An address is needed and was not given.
    #[error("the address of {0} is needed, and not known")]
    Missing(&'static str),
    /// Linux supports this feature, this crate does not.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}

/// The error of the engines of this crate.
pub(crate) type RewriteError = modload_edit::PlanError<RewriteProblem>;
