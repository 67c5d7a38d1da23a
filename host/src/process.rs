//! Settings of the process that all hosts share.

use modload_text::TrapMask;
use modload_threads::Error as SignalError;

use crate::built_in;

/// Returns the handle to the settings of this process.
#[must_use]
pub fn process() -> Process {
    Process(())
}

/// The settings of this process. All hosts share them, those that exist already too.
///
/// ```
/// use modload::text::TrapMask;
///
/// modload::process().trap_mask(TrapMask::Trusted);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Process(());

impl Process {
    /// Chooses how published text is changed when keys and traces are switched. The default is [`TrapMask::Checked`].
    pub fn trap_mask(self, mask: TrapMask) {
        built_in::set_trap_mask(mask);
    }

    /// Chooses the real-time signal that stops threads for a moment: where text cannot be changed by traps, and where the process
    /// must know whether a thread is in a module. The default is signal 33, which glibc keeps unblocked in every thread. A thread
    /// may block the signal that is chosen here, and then cannot be stopped.
    ///
    /// # Errors
    /// [`SignalError`]: the number is not a real-time signal's, the signal has a handler already, or another signal has been used
    /// before.
    pub fn signal(self, signal: i32) -> Result<(), SignalError> {
        modload_threads::use_signal(signal)
    }
}
