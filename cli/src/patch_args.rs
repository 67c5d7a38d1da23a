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
      Which threads are not over yet, what they do, and which frame is in the way.
  modhost patch disable fix && modunload --wait 10 fix
      Takes it back, and unloads it when everybody has left it.
  modhost patch list --format json | jq -r '.[].name'

A patch that is on its way can be turned round (reverse) or, if a thread stays in old code for ever, be ended (force).
Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

/// What is done with live patches.
#[derive(Subcommand, Debug)]
pub(crate) enum PatchCommand {
    /// Show the patches of a host.
    #[command(after_help = EXAMPLES)]
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// Show one patch, and each thread that stands in its way.
    #[command(after_help = EXAMPLES)]
    Status {
        #[command(flatten)]
        connection: Connection,
        /// Its name.
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
    /// Disable a patch; one that is being enabled is turned round.
    #[command(after_help = EXAMPLES)]
    Disable {
        #[command(flatten)]
        connection: Connection,
        /// Its name.
        name: String,
    },
    /// Turn the transition of a patch round.
    #[command(after_help = EXAMPLES)]
    Reverse {
        #[command(flatten)]
        connection: Connection,
        /// Its name.
        name: String,
    },
    /// End the transition of a patch, wherever threads are: who is in old code finishes it.
    #[command(after_help = EXAMPLES)]
    Force {
        #[command(flatten)]
        connection: Connection,
        /// Its name.
        name: String,
    },
}

impl PatchCommand {
    /// The host it is for, and how to print.
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
