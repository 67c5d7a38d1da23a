//! A progress bar for the loading of many modules, on the standard error stream if that is a terminal.

use std::path::Path;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{Format, PrintEvents};
use crate::failure::shown;

/// So many modules load before a user begins to wait.
const FEW: usize = 8;

/// The maximum number of redraws per second.
const RATE: u8 = 20;

/// A progress bar without colours, which is erased when it is dropped.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Starts a bar for this many modules. With a trace or with JSON output, no bar is drawn.
    pub(crate) fn new(modules: usize, format: Format, trace: PrintEvents) -> Progress {
        if modules <= FEW || format != Format::Text || trace != PrintEvents::Off {
            return Progress(ProgressBar::hidden());
        }
        // The target draws nothing without a terminal, or on a dumb one.
        let target = ProgressDrawTarget::stderr_with_hz(RATE);
        let length = u64::try_from(modules).unwrap_or(u64::MAX);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {wide_msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
        Progress(ProgressBar::with_draw_target(Some(length), target).with_style(style))
    }

    /// Shows the module that is being loaded, and counts it afterwards.
    pub(crate) fn module<T>(&self, file: &Path, load: impl FnOnce() -> T) -> T {
        self.0.set_message(shown(file));
        let loaded = load();
        self.0.inc(1);
        loaded
    }

    /// Hides the bar while `write` writes to the terminal.
    pub(crate) fn suspend(&self, write: impl FnOnce()) {
        self.0.suspend(write);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
