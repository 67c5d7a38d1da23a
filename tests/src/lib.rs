//! Tools for the end-to-end tests.
//!
//! - [`Case`], [`run`]: a test that runs in a process of its own, with a time limit. A crash, a panic or a deadlock of
//!   that process is a failure, and its output is shown.
//! - [`in_fork`]: code that should end a process runs in a forked child; [`Ended`] says how the child ended.
//! - [`image`], [`Watcher`], [`Log`]: fixtures as images, subscribers that keep a log.
//! - [`Sites`], [`fire`]: text for poking, and poking while threads run through the text.
//! - [`Crowd`], [`WhoAndWhere`], [`block`]: threads to be held or asked.
//! - [`klp_scenes`]: the scenes of live patching that Linux judges, too.
//! - [`watched`], [`Watch`], [`Seen`]: calls of functions, watched in every way, and the results.
//! - [`until`], [`Patience`], [`LONG`]: waits that follow progress, not the clock; [`cpu_time`]: the processor time of
//!   some work, independent of other programs.
//! - [`prose`]: how the tree is worded.
//! - [`mappings`], [`descriptors`], [`peek`]: the kernel's data about this process. [`handle`]: a signal's handler.

mod case;
mod crowd;
mod forked;
mod klp;
mod process;
pub mod prose;
mod scene;
mod sites;
mod fire;
mod watch;

pub use case::{Case, last_segment, run};
pub use crowd::{Crowd, WhoAndWhere, bit, block, mask, unblock};
pub use fire::{Fired, Until, fire};
pub use forked::{Ended, in_fork};
pub use klp::{KlpScene, klp_folder, klp_scenes};
pub use modload_fixtures::{LONG, Patience, until};
pub use process::{Mapping, cpu_time, deny, descriptors, handle, mappings, peek, until_in};
pub use scene::{Chance, Log, Watcher, image, image_from_text, loader, object};
pub use sites::Sites;
pub use watch::{Recorded, Seen, Watch, watched};
