//! How far the loading of many modules is: on the standard error stream, if that is a terminal that somebody watches.

use std::path::Path;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{Format, Trace};
use crate::failure::shown;

/// As many load before anybody has begun to wait.
const FEW: usize = 8;

/// How often it is drawn in a second, at most.
const RATE: u8 = 20;

/// A bar that is gone when it is dropped. It has no colours.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// For so many modules. A trace shows more than a bar does, and who asks for JSON is no person.
    pub(crate) fn new(modules: usize, format: Format, trace: Trace) -> Progress {
        if modules <= FEW || format != Format::Text || trace != Trace::Off {
            return Progress(ProgressBar::hidden());
        }
        // It draws nothing where there is no terminal, or a dumb one.
        let target = ProgressDrawTarget::stderr_with_hz(RATE);
        let length = u64::try_from(modules).unwrap_or(u64::MAX);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {wide_msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
        Progress(ProgressBar::with_draw_target(Some(length), target).with_style(style))
    }

    /// A module that is loaded now, and then is done.
    pub(crate) fn module<T>(&self, file: &Path, load: impl FnOnce() -> T) -> T {
        self.0.set_message(shown(file));
        let loaded = load();
        self.0.inc(1);
        loaded
    }

    /// Lets others write to the terminal.
    pub(crate) fn suspend(&self, write: impl FnOnce()) {
        self.0.suspend(write);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
