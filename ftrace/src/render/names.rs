//! The names in a recording, by the numbers in its records.

use std::fmt::{self, Display};

use crate::trace::{RecordedThread, TracedFunction};

/// The module of the host program's own functions, like Linux's for the kernel.
const HOST: &str = "vmlinux";

/// The functions and threads that batches have named so far. Names are escaped for a terminal.
#[derive(Default, Debug)]
pub(super) struct Names {
    functions: Vec<TracedFunction>,
    threads: Vec<RecordedThread>,
}

impl Names {
    pub(super) fn extend(&mut self, functions: Vec<TracedFunction>, threads: Vec<RecordedThread>) {
        let function = |TracedFunction { module, name }| TracedFunction { module: fit(module), name: fit(name) };
        self.functions.extend(functions.into_iter().map(function));
        self.threads
            .extend(threads.into_iter().map(|RecordedThread { tid, name }| RecordedThread { tid, name: fit(name) }));
    }

    /// Returns a function's module and name. Both are question marks if no batch has named the function.
    pub(super) fn function(&self, number: u32) -> (&str, &str) {
        let found = usize::try_from(number).ok().and_then(|number| self.functions.get(number));
        found.map_or(("?", "?"), |function| (&function.module, &function.name))
    }

    /// Returns a function in the form of Linux's `%ps`: the name and its module, without the module for the host's own
    /// functions.
    pub(super) fn shown(&self, number: u32) -> ShownFunction<'_> {
        let (module, name) = self.function(number);
        ShownFunction { module, name }
    }

    /// Returns a thread's id and name. A thread that no batch has named has the id -1, which no thread has.
    pub(super) fn thread(&self, number: u32) -> (i32, &str) {
        let found = usize::try_from(number).ok().and_then(|number| self.threads.get(number));
        found.map_or((-1, "?"), |thread| (thread.tid, &thread.name))
    }
}

/// A function for display.
#[derive(Clone, Copy)]
pub(super) struct ShownFunction<'n> {
    module: &'n str,
    name: &'n str,
}

impl Display for ShownFunction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ShownFunction { module: HOST, name } => f.write_str(name),
            ShownFunction { module, name } => write!(f, "{name} [{module}]"),
        }
    }
}

/// Returns the text without control characters. Names are escaped when they are read from a file, but a batch may come
/// from another source.
pub(super) fn fit(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let mut fit = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() { fit.extend(letter.escape_default()) } else { fit.push(letter) }
    }
    fit
}
