//! The output of a trace: to a file or the standard output stream as records arrive, or to a string.

use std::fs::File;
use std::io::{self, Write};
use std::mem::take;
use std::path::{Path, PathBuf};

use modload::trace::render::{Form, Renderer, TracedProcess};
use modload::trace::{Batch, Missed};

use crate::failure::{CommandFailure, tell};

/// The destination of a trace.
#[derive(Debug)]
pub(crate) enum TraceOutput {
    /// The standard output stream, as records arrive.
    Stdout,
    /// A file, as records arrive.
    File(PathBuf, File),
    /// A string that the caller prints at the end.
    Kept(String),
}

impl TraceOutput {
    /// Creates the file, or truncates it.
    pub(crate) fn file(path: &Path) -> Result<TraceOutput, CommandFailure> {
        let created = File::create(path);
        let file = created.map_err(|source| CommandFailure::Out { file: path.to_owned(), source })?;
        Ok(TraceOutput::File(path.to_owned(), file))
    }

    /// Writes a complete piece in one call, so that no buffered text can be lost.
    fn put(&mut self, text: &str) -> Result<(), CommandFailure> {
        match self {
            TraceOutput::Kept(kept) => kept.push_str(text),
            TraceOutput::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(text.as_bytes())?;
                stdout.flush()?;
            }
            TraceOutput::File(path, file) => {
                let written = file.write_all(text.as_bytes());
                written.map_err(|source| CommandFailure::Out { file: path.clone(), source })?;
            }
        }
        Ok(())
    }
}

/// A trace that is being written.
#[derive(Debug)]
pub(crate) struct Telling {
    renderer: Renderer,
    place: TraceOutput,
    missed: Missed,
}

impl Telling {
    pub(crate) fn begin(
        form: Form,
        process: &TracedProcess,
        mut place: TraceOutput,
    ) -> Result<Telling, CommandFailure> {
        let mut text = String::new();
        let renderer = Renderer::begin(form, process, &mut text).map_err(io::Error::other)?;
        place.put(&text)?;
        Ok(Telling { renderer, place, missed: Missed::default() })
    }

    pub(crate) fn batch(&mut self, batch: Batch) -> Result<(), CommandFailure> {
        let mut text = String::new();
        self.missed = batch.missed;
        self.renderer.batch(batch, &mut text).map_err(io::Error::other)?;
        if text.is_empty() { Ok(()) } else { self.place.put(&text) }
    }

    /// Completes the trace. Returns the text of [`TraceOutput::Kept`]. Reports missing calls to the user.
    pub(crate) fn end(mut self) -> Result<String, CommandFailure> {
        let mut text = String::new();
        self.renderer.end(&mut text).map_err(io::Error::other)?;
        self.place.put(&text)?;
        if let Some(sentence) = sentence(&self.missed) {
            tell(&sentence);
        }
        Ok(if let TraceOutput::Kept(kept) = &mut self.place { take(kept) } else { String::new() })
    }
}

/// Returns a sentence about the missing calls and the reasons.
fn sentence(missed: &Missed) -> Option<String> {
    let all = missed.total();
    let kinds = [
        (missed.dropped, "for want of room in a thread's buffer (a larger one may help)"),
        (missed.nested, "from within the tracing itself"),
        (missed.deep, "deeper than the return stack"),
        (missed.elsewhere, "on a stack that is not the thread's own"),
    ];
    let kinds = kinds.iter().filter(|(count, _)| *count != 0);
    let kinds: Vec<String> = kinds.map(|(count, why)| format!("{count} {why}")).collect();
    let calls = if all == 1 { "1 call is".into() } else { format!("{all} calls are") };
    (all != 0).then(|| format!("{calls} missing: {}", kinds.join(", ")))
}

#[cfg(test)]
mod tests {
    use modload::trace::Missed;

    use super::sentence;

    #[test]
    fn what_is_missing_is_one_sentence() {
        assert_eq!(sentence(&Missed::default()), None);
        let missed = Missed { deep: 1, ..Missed::default() };
        assert_eq!(sentence(&missed).as_deref(), Some("1 call is missing: 1 deeper than the return stack"));
        let missed = Missed { dropped: 7, nested: 2, deep: 1, elsewhere: 3 };
        assert_eq!(
            sentence(&missed).as_deref(),
            Some(
                "13 calls are missing: 7 for want of room in a thread's buffer (a larger one may help), 2 from within the tracing \
                 itself, 1 deeper than the return stack, 3 on a stack that is not the thread's own"
            )
        );
    }
}
