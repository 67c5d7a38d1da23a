//! The command line of `modhost patch`.

use std::path::PathBuf;

use clap::Subcommand;

use crate::operate_args::Connection;

pub(crate) const EXAMPLES: &str = "\
Examples:
  modhost patch enable fix.ko
      Loads a live patch, which enables itself.
  modhost patch list
  modhost patch status fix
      Shows the threads that block the transition, with their states and stacks.
  modhost patch disable fix && modunload --wait 10 fix
      Disables the patch, and unloads it when no thread is in its code.
  modhost patch list --format json | jq -r '.[].name'

A transition can be reversed (reverse), or ended if a thread never leaves the old code (force).
Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

/// An operation on live patches.
#[derive(Subcommand, Debug)]
pub(crate) enum PatchCommand {
    /// Show the patches of a host.
    #[command(after_help = EXAMPLES)]
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// Show one patch, and each thread that blocks its transition.
    #[command(after_help = EXAMPLES)]
    Status {
        #[command(flatten)]
        connection: Connection,
        /// The name of the patch.
        name: String,
    },
    /// Load a live patch into a host.
    #[command(after_help = EXAMPLES)]
    Enable {
        #[command(flatten)]
        connection: Connection,
        /// The module file.
        file: PathBuf,
    },
    /// Disable a patch. If the patch is just being enabled, its transition is reversed.
    #[command(after_help = EXAMPLES)]
    Disable {
        #[command(flatten)]
        connection: Connection,
        /// The name of the patch.
        name: String,
    },
    /// Reverse the transition of a patch.
    #[command(after_help = EXAMPLES)]
    Reverse {
        #[command(flatten)]
        connection: Connection,
        /// The name of the patch.
        name: String,
    },
    /// End the transition of a patch without waiting for the remaining threads. A thread in old code finishes that
    /// code.
    #[command(after_help = EXAMPLES)]
    Force {
        #[command(flatten)]
        connection: Connection,
        /// The name of the patch.
        name: String,
    },
}

impl PatchCommand {
    /// Returns the host and the output format.
    pub(crate) fn connection(&self) -> &Connection {
        match self {
            PatchCommand::List { connection }
            | PatchCommand::Status { connection, .. }
            | PatchCommand::Enable { connection, .. }
            | PatchCommand::Disable { connection, .. }
            | PatchCommand::Reverse { connection, .. }
            | PatchCommand::Force { connection, .. } => connection,
        }
    }
}
