//! A program with unmapped pages between its segments (made by build.rs). The program walks its own stack. The exit
//! status is 0 if the walk has reached the end.

use std::ops::ControlFlow;
use std::process::ExitCode;

use modload_edit::{Addr, wide};
use modload_tests::mappings;
use modload_threads::frames::{Ended, know_process, walk_here};

fn main() -> ExitCode {
    #[expect(clippy::as_conversions, reason = "functions become pointers by a cast alone")]
    let here = Addr::new(wide((main as *const ()).expose_provenance()));
    let mappings = mappings();
    let code = mappings.iter().position(|mapping| mapping.overlaps(here, 1)).unwrap();
    let (before, code) = (&mappings[code - 1], &mappings[code]);
    assert!(before.end < code.start && code.start - before.end < 1 << 30, "a hole: {before:x?} {code:x?}");
    know_process().unwrap();
    let mut frames = 0;
    let ended = walk_here(|_| {
        frames += 1;
        ControlFlow::Continue(())
    });
    println!("{frames} frames: {ended:?}");
    if ended == Ok(Ended::Outermost) && frames > 2 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
