//! What the result depends on besides the code, and what can be wrong with a record.

use modload_edit::Addr;
use thiserror::Error;

use crate::Features;

/// How many processors there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Processors {
    /// Lock prefixes are of no use.
    One,
    /// They stay.
    Several,
}

/// Where returns lead that the compiler made a jump to `__x86_return_thunk`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Returns {
    /// The address of `__x86_return_thunk`, by which a site is known.
    pub compiled: Option<Addr>,
    /// The value of the variable `x86_return_thunk`: where sites lead if the features want a thunk.
    pub thunk: Option<Addr>,
    /// The address of `its_return_thunk`. If that is the thunk, sites with bit 5 of their address set do without.
    pub its: Option<Addr>,
}

/// What the engines of this crate must know.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The processor's features, Linux's choice of mitigations among them.
    pub features: Features,
    /// How many processors.
    pub processors: Processors,
    /// The address of `__x86_indirect_thunk_array`: 16 thunks of 32 bytes, one for each register.
    pub indirect_thunks: Option<Addr>,
    /// Where returns lead.
    pub returns: Returns,
}

impl Facts {
    /// Those of a process on this machine: branches and returns without thunks, several processors.
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

/// What is wrong with a record, or with the place it means.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Problem {
    /// The section ends within it.
    #[error("its section is no whole number of records")]
    PartOfRecord,
    /// The site is not in text, or not all of it.
    #[error("its site of {0} bytes is not within text")]
    SiteOutside(usize),
    /// The replacement is not in text, or not all of it.
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
        /// Bytes of the replacement.
        replacement: usize,
        /// Bytes of the site.
        site: usize,
    },
    /// There is no such feature.
    #[error("there is no feature number {}*32+{}", .0 / 32, .0 % 32)]
    UnknownFeature(u16),
    /// Something refers to an address that it cannot reach from the site.
    #[error("an operand of its replacement does not reach {0} from the site")]
    OutOfReach(Addr),
    /// What the flags ask for is not known.
    #[error("its flags {0:#x} are not known")]
    UnknownFlags(u16),
    /// The instruction at the site is not one that this kind of record is about.
    #[error("its site is not {0}")]
    OtherInstruction(&'static str),
    /// The pointer that a call goes through cannot be read.
    #[error("the pointer at {0} that its call goes through is not known")]
    NoPointer(Addr),
    /// The target is none of the thunks.
    #[error("its target {0} is no thunk")]
    NoThunk(Addr),
    /// It is needed and was not given.
    #[error("the address of {0} is needed, and not known")]
    Missing(&'static str),
    /// What Linux does for this feature is not done here.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}

/// Why an engine of this crate stopped.
pub(crate) type Error = modload_edit::PlanError<Problem>;
