//! The names of a recording, by the numbers that its records have for them.

use std::fmt::{self, Display};

use crate::trace::{Function, Thread};

/// Module of functions that are the host program's own, as Linux has it for the kernel's.
const HOST: &str = "vmlinux";

/// All functions and threads that batches have named so far, fit for a terminal.
#[derive(Default, Debug)]
pub(super) struct Names {
    functions: Vec<Function>,
    threads: Vec<Thread>,
}

impl Names {
    pub(super) fn extend(&mut self, functions: Vec<Function>, threads: Vec<Thread>) {
        let function = |Function { module, name }| Function { module: fit(module), name: fit(name) };
        self.functions.extend(functions.into_iter().map(function));
        self.threads.extend(threads.into_iter().map(|Thread { tid, name }| Thread { tid, name: fit(name) }));
    }

    /// A function's module and name. One that no batch has named has question marks for both.
    pub(super) fn function(&self, number: u32) -> (&str, &str) {
        let found = usize::try_from(number).ok().and_then(|number| self.functions.get(number));
        found.map_or(("?", "?"), |function| (&function.module, &function.name))
    }

    /// As Linux's `%ps` prints it: the module behind the name, unless it is the host's own.
    pub(super) fn shown(&self, number: u32) -> Shown<'_> {
        let (module, name) = self.function(number);
        Shown { module, name }
    }

    /// A thread's id and name. One that no batch has named is -1, which is nobody's.
    pub(super) fn thread(&self, number: u32) -> (i32, &str) {
        let found = usize::try_from(number).ok().and_then(|number| self.threads.get(number));
        found.map_or((-1, "?"), |thread| (thread.tid, &thread.name))
    }
}

/// A function for people.
#[derive(Clone, Copy)]
pub(super) struct Shown<'n> {
    module: &'n str,
    name: &'n str,
}

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shown { module: HOST, name } => f.write_str(name),
            Shown { module, name } => write!(f, "{name} [{module}]"),
        }
    }
}

/// Text without control characters. Names are escaped where they are read from a file, but a batch may come from elsewhere.
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
