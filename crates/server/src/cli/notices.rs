//! `trunkline announce` and `trunkline motd`: what everybody is told.

use clap::{Args, Subcommand};

use super::{CliError, Common, ask};
use crate::admin::Operation;
use crate::notices::MotdOp;

#[derive(Debug, Args)]
pub(super) struct AnnounceArgs {
    /// What it says
    text: String,
    /// To accounts of this domain only
    #[arg(long)]
    domain: Option<String>,
    /// To those who are not online, too: it waits for them
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct OfDomain {
    /// Of this domain; without it, of the first
    #[arg(long)]
    domain: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
pub(super) enum MotdCommand {
    /// Show it
    Show(OfDomain),
    /// Set another one: everybody gets it once
    Set {
        /// What it says
        text: String,
        #[command(flatten)]
        of: OfDomain,
    },
    /// Correct it: who got it already does not get it again
    Edit {
        /// What it says from now on
        text: String,
        #[command(flatten)]
        of: OfDomain,
    },
    /// Take it back
    Delete(OfDomain),
}

pub(super) fn announce(args: AnnounceArgs) -> Result<(), CliError> {
    let AnnounceArgs { text, domain, all, common } = args;
    ask(&common, Operation::Announce { text, domain, all })
}

pub(super) fn motd(command: MotdCommand) -> Result<(), CliError> {
    let (operation, common) = match command {
        MotdCommand::Show(OfDomain { domain, common }) => (MotdOp::Show { domain }, common),
        MotdCommand::Set { text, of } => (MotdOp::Set { domain: of.domain, text }, of.common),
        MotdCommand::Edit { text, of } => (MotdOp::Edit { domain: of.domain, text }, of.common),
        MotdCommand::Delete(OfDomain { domain, common }) => (MotdOp::Delete { domain }, common),
    };
    ask(&common, Operation::Motd(operation))
}
