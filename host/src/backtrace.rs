//! The calls that a thread is in, with the modules' functions by name.

use std::fmt;
use std::ops::ControlFlow;

use modload_edit::Addr;
use modload_threads::frames::{self, Ended, WalkError};

/// A frame of a [`Backtrace`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BacktraceFrame {
    /// Where it will go on.
    pub at: Addr,
    /// `func+0x12/0x40 [module]`, if that is in a module of the host.
    pub place: Option<String>,
}

/// The calls that a thread is in, innermost first. As text: a line each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backtrace {
    frames: Vec<BacktraceFrame>,
    ended: Result<Ended, WalkError>,
}

impl Backtrace {
    /// Leaves out its caller, of which it is a part. Addresses are named by `describe`, which is told whether it is a return
    /// address that it is given.
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

    /// Returns the backtrace of another thread, from the frames that were found.
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

    /// The frames, innermost first.
    #[must_use]
    pub fn frames(&self) -> &[BacktraceFrame] {
        &self.frames
    }

    /// How it has ended: with the outermost frame, or at one whose caller is not known.
    ///
    /// # Errors
    /// [`WalkError`]: at which frame, and why.
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
