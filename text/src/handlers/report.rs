//! The report of a call into text that is not published: one line, written by the signal handler.

use std::io::Write;

use modload_edit::Addr;

use crate::allocation::owners::{self, TextOwner, TextState};

/// A line, and the descriptor to which it is written. Filled in place and small, because it lies on a signal stack.
struct ReportLine {
    text: [u8; 256],
    len: usize,
    descriptor: libc::c_int,
}

/// Writes the line about an INT3 in the text stripe. Runs in the signal handler: no allocation, and no lock but the
/// owners', which is released before the one `write`.
pub(crate) fn report(at: Addr) {
    let mut line = ReportLine { text: [0; 256], len: 0, descriptor: 2 };
    owners::with_owner(at, |owner| line.fill(at, owner));
    if line.len != 0 {
        // SAFETY: the buffer is a local variable and `len` lies in it; write is async-signal-safe, and its result is
        // not used.
        unsafe { libc::write(line.descriptor, line.text.as_ptr().cast(), line.len) };
    }
}

impl ReportLine {
    /// Describes an INT3. The line stays empty if the INT3 lies in published text, where it belongs to the module.
    fn fill(&mut self, at: Addr, owner: Option<&TextOwner>) {
        let mut rest: &mut [u8] = &mut self.text;
        // A name that is too long is cut, and the line still ends with a line break.
        let _ = match owner {
            None => write!(rest, "modload: call to {at}, where no module has its text"),
            Some(owner) => {
                let state = match owner.state {
                    TextState::Staged => "before its text was published",
                    TextState::Freed => "after it was unloaded",
                    TextState::Published => return,
                };
                let module = owner.describe.module();
                match owner.describe.symbol(at) {
                    Some((name, 0)) => write!(rest, "modload: call to {} [{module}] {state}", name.escape_ascii()),
                    Some((name, offset)) => {
                        write!(rest, "modload: execution at {}+{offset:#x} [{module}] {state}", name.escape_ascii())
                    }
                    None => write!(rest, "modload: execution at {at} [{module}] {state}"),
                }
            }
        };
        let room = rest.len();
        let used = (self.text.len() - room).min(self.text.len() - 1);
        self.text[used] = b'\n';
        self.len = used + 1;
        self.descriptor = owner.map_or(2, |owner| owner.describe.descriptor());
    }
}
