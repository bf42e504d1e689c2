//! `trunkline federation reports | lists`.

use clap::{Args, Subcommand};

use super::{CliError, Common, ask};
use crate::admin::Operation;
use crate::config;
use crate::control::lists::ListsOp;
use crate::control::reports::{ReportAction, ReportsOp};
use crate::control::rule::Action;

#[derive(Debug, Subcommand)]
pub(super) enum ReportsCommand {
    /// Reports that wait, newest first
    List {
        /// Handled ones too
        #[arg(long)]
        all: bool,
        /// About this domain only
        #[arg(long)]
        domain: Option<String>,
        /// Older than this one
        #[arg(long, value_name = "ID")]
        before: Option<i64>,
        #[command(flatten)]
        common: Common,
    },
    /// One report, with the reported messages
    Show {
        /// Its number
        id: i64,
        #[command(flatten)]
        common: Common,
    },
    /// Close a report: there is nothing in it
    Dismiss(DecideArgs),
    /// Send the reported address a message from your domain: the text of --why
    Warn(DecideArgs),
    /// Let the reported address send a little only, for 7 days or --for
    Limit(DecideArgs),
    /// Block the reported address for everybody here
    BlockSender(DecideArgs),
    /// Block the reported address's domain
    BlockDomain(DecideArgs),
    /// Send the report to the provider of the reported address, if the reporter agreed
    Forward(DecideArgs),
}

#[derive(Debug, Args)]
pub(super) struct DecideArgs {
    /// The report's number
    id: i64,
    /// For the audit log; a warning says it
    #[arg(long, default_value = "")]
    why: String,
    /// How long a limit or block lasts, such as "7 days"
    #[arg(long = "for", value_name = "TIME")]
    lasts: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
pub(super) enum ListsCommand {
    /// All lists, and how they are
    Show {
        #[command(flatten)]
        common: Common,
    },
    /// Follow a list of another provider
    Subscribe {
        /// What rules know it by
        name: String,
        /// The address of its pubsub service
        service: String,
        /// As a rule muc_bans_sha256 or spam_source_domains
        node: String,
        /// What is done with those on it; without it only rules that name the list apply
        #[arg(long, value_parser = ["reject", "drop", "hold", "text-only"])]
        action: Option<String>,
        /// For the audit log
        #[arg(long, default_value = "")]
        why: String,
        #[command(flatten)]
        common: Common,
    },
    /// Stop following a list
    Unsubscribe {
        /// Its name here
        name: String,
        /// For the audit log
        #[arg(long, default_value = "")]
        why: String,
        #[command(flatten)]
        common: Common,
    },
    /// What is on a list
    Items {
        /// Its name here; "own" is the one that you publish
        name: String,
        /// After this entry
        #[arg(long, value_name = "ENTRY")]
        after: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Put an address or a domain on your own list
    Publish {
        /// An address is published as its SHA-256
        entry: String,
        /// Everybody can read it
        reason: String,
        #[command(flatten)]
        common: Common,
    },
    /// Take an address or a domain off your own list
    Retract {
        /// As it was published
        entry: String,
        /// For the audit log
        #[arg(long, default_value = "")]
        why: String,
        #[command(flatten)]
        common: Common,
    },
    /// Who follows your own list, and until when unless it is renewed
    Subscribers {
        #[command(flatten)]
        common: Common,
    },
    /// End the subscriptions of an address or of a whole domain
    RemoveSubscriber {
        /// An address or a domain
        address: String,
        /// For the audit log
        #[arg(long, default_value = "")]
        why: String,
        #[command(flatten)]
        common: Common,
    },
}

pub(super) fn reports(command: ReportsCommand) -> Result<(), CliError> {
    let (action, args) = match command {
        ReportsCommand::List { all, domain, before, common } => {
            return ask(&common, Operation::Reports(ReportsOp::List { open_only: !all, domain, before }));
        }
        ReportsCommand::Show { id, common } => {
            return ask(&common, Operation::Reports(ReportsOp::Show { id }));
        }
        ReportsCommand::Dismiss(args) => (ReportAction::Dismiss, args),
        ReportsCommand::Warn(args) => (ReportAction::Warn, args),
        ReportsCommand::Limit(args) => (ReportAction::Limit, args),
        ReportsCommand::BlockSender(args) => (ReportAction::BlockSender, args),
        ReportsCommand::BlockDomain(args) => (ReportAction::BlockDomain, args),
        ReportsCommand::Forward(args) => (ReportAction::Forward, args),
    };
    let until = args.lasts.as_deref().map(from_now).transpose()?;
    ask(&args.common, Operation::Reports(ReportsOp::Decide { id: args.id, action, why: args.why, until }))
}

/// The time after so long, milliseconds since 1970.
fn from_now(lasts: &str) -> Result<i64, CliError> {
    let span = config::value::span(lasts)
        .map_err(|_| CliError::Refused("this is not a length of time: write \"12 h\" or \"7 days\""))?;
    let span = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    Ok(jiff::Timestamp::now().as_millisecond().saturating_add(span))
}

pub(super) fn lists(command: ListsCommand) -> Result<(), CliError> {
    let (common, op) = match command {
        ListsCommand::Show { common } => (common, ListsOp::Show),
        ListsCommand::Subscribe { name, service, node, action, why, common } => {
            let action = action.map(|action| match action.as_str() {
                "drop" => Action::Drop,
                "hold" => Action::Hold,
                "text-only" => Action::TextOnly,
                _ => Action::Reject { condition: None, text: None },
            });
            (common, ListsOp::Subscribe { name, service, node, action, why })
        }
        ListsCommand::Unsubscribe { name, why, common } => (common, ListsOp::Unsubscribe { name, why }),
        ListsCommand::Items { name, after, common } => (common, ListsOp::Items { name, after }),
        ListsCommand::Publish { entry, reason, common } => (common, ListsOp::Publish { entry, reason }),
        ListsCommand::Retract { entry, why, common } => (common, ListsOp::Retract { entry, why }),
        ListsCommand::Subscribers { common } => (common, ListsOp::Subscribers),
        ListsCommand::RemoveSubscriber { address, why, common } => {
            (common, ListsOp::RemoveSubscriber { address, why })
        }
    };
    ask(&common, Operation::Lists(op))
}
