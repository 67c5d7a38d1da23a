//! The stack of a thread, with the names of modules' functions.

use std::fmt;
use std::ops::ControlFlow;

use modload_edit::Addr;
use modload_threads::frames::{self, Ended, WalkError};

/// A frame of a [`Backtrace`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BacktraceFrame {
    /// The address at which the thread will continue in this frame.
    pub at: Addr,
    /// The place as `func+0x12/0x40 [module]`, if the address is in a module of the host.
    pub place: Option<String>,
}

/// The stack of a thread, innermost frame first. The text form has a line per frame.
///
/// ```
/// use modload::Host;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let host = Host::builder().build()?;
/// let backtrace = host.backtrace();
/// assert!(backtrace.ended().is_ok(), "{backtrace}");
/// // Functions of the program are addresses; functions of modules have names.
/// assert!(backtrace.frames().iter().all(|frame| frame.place.is_none()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backtrace {
    frames: Vec<BacktraceFrame>,
    ended: Result<Ended, WalkError>,
}

impl Backtrace {
    /// Returns the stack of this thread without its innermost frame, which belongs to this module. `describe` names an
    /// address; its second argument tells whether the address is a return address.
    #[inline(always)]
    pub(crate) fn of_this_thread(describe: impl Fn(Addr, bool) -> Option<String>) -> Backtrace {
        let mut found = Vec::new();
        let ended = frames::walk_here(|frame| {
            found.push(*frame);
            ControlFlow::Continue(())
        });
        let named = found.into_iter().skip(1).map(|frame| {
            let at = Addr::new(frame.pc);
            BacktraceFrame { at, place: describe(at, !frame.is_exact) }
        });
        Backtrace { frames: named.collect(), ended }
    }

    /// Returns the recorded stack of another thread.
    #[cfg(feature = "livepatch")]
    pub(crate) fn of(
        frames: &[frames::Frame],
        ended: Result<Ended, WalkError>,
        describe: impl Fn(Addr, bool) -> Option<String>,
    ) -> Backtrace {
        let named = frames.iter().map(|frame| {
            let at = Addr::new(frame.pc);
            BacktraceFrame { at, place: describe(at, !frame.is_exact) }
        });
        Backtrace { frames: named.collect(), ended }
    }

    /// Returns the frames, innermost first.
    #[must_use]
    pub fn frames(&self) -> &[BacktraceFrame] {
        &self.frames
    }

    /// Returns how the walk has ended: at the outermost frame, or at a frame whose caller is not known.
    ///
    /// # Errors
    /// [`WalkError`]: the frame at which the walk failed, and the reason.
    pub fn ended(&self) -> Result<Ended, WalkError> {
        self.ended
    }
}

impl fmt::Display for Backtrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for frame in &self.frames {
            match &frame.place {
                Some(place) => writeln!(f, "{place}")?,
                None => writeln!(f, "{}", frame.at)?,
            }
        }
        match &self.ended {
            Ok(_) => Ok(()),
            Err(error) => writeln!(f, "and no further: {error}"),
        }
    }
}
