//! What the end-to-end tests are made with.
//!
//! - [`Case`], [`run`]: a test that runs in a process of its own, with a time limit. A crash, a panic or a deadlock of
//!   that process is a failure with its output.
//! - [`in_fork`]: what is expected to end a process runs in a forked child; [`Ended`] says how it ended.
//! - [`image`], [`Watcher`], [`Log`]: fixtures as images, subscribers that keep a log.
//! - [`Sites`], [`fire`]: text of our own to poke, and poking it while everybody runs through it.
//! - [`Crowd`], [`WhoAndWhere`], [`block`]: threads to be held or asked.
//! - [`klp_scenes`]: the scenes of live patching that Linux judges, too.
//! - [`watched`], [`Watch`], [`Seen`]: calls of functions that are looked at in every way, and what was seen.
//! - [`until`], [`Patience`], [`LONG`]: waits that follow progress, not the clock; [`cpu_time`]: what work took, whoever else worked.
//! - [`prose`]: how the tree is worded.
//! - [`mappings`], [`descriptors`], [`peek`]: what the kernel says of this process. [`handle`]: a signal's handler.

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
