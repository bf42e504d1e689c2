//! `trunkline federation`: what outsiders may do, what they did, and the way to them.

use clap::Subcommand;

use super::{CliError, Common, ask, policy, signals};
use crate::admin::Operation;
use crate::control::requests::RequestsOp;
use crate::control::traffic::DomainsOp;

#[derive(Debug, Subcommand)]
pub(super) enum FederationCommand {
    /// Show each peer domain: streams, proofs, TLS, queue, last error
    Status {
        #[command(flatten)]
        common: Common,
    },
    /// The rules for what comes from outside and goes there: show, preset, add, replace, move, remove, test
    #[command(subcommand)]
    Policy(Box<policy::PolicyCommand>),
    /// Block a domain: nothing to it or from it, its streams end at once
    Block(policy::BlockArgs),
    /// Take a block back
    Unblock(policy::UnblockArgs),
    /// Blocked domains as files: export, import
    #[command(subcommand)]
    Blocks(policy::BlocksCommand),
    /// Cut the outside off by degrees: show, set
    #[command(subcommand)]
    Breaker(policy::BreakerCommand),
    /// Cut off a domain, or the whole outside, until opened again: the breaker's last level
    Close {
        /// Which one
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        domain: Option<String>,
        /// Everybody
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Take a close back
    Open {
        /// Without one: everybody
        domain: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Show inside and outside at this moment
    Now {
        #[command(flatten)]
        common: Common,
    },
    /// List peer domains with what was counted of them
    Domains {
        /// Containing this text
        #[arg(long)]
        search: Option<String>,
        /// domain, first-seen, in, out, refused, held, reports, reputation, queue
        #[arg(long)]
        sort: Option<String>,
        /// From this place on
        #[arg(long, default_value_t = 0)]
        offset: u32,
        #[command(flatten)]
        common: Common,
    },
    /// Show all about one peer domain
    Domain {
        /// Which
        domain: String,
        #[command(flatten)]
        common: Common,
    },
    /// Show how it was: of one domain, or of all together
    History {
        /// Which
        domain: Option<String>,
        /// So many hours back, 720 at most
        #[arg(long, default_value_t = 24)]
        hours: u32,
        #[command(flatten)]
        common: Common,
    },
    /// First contacts that wait for the consent of whom they are for: list, drop
    #[command(subcommand)]
    Requests(RequestsCommand),
    /// What users reported: list, show, dismiss, warn, limit, block-sender, block-domain, forward
    #[command(subcommand)]
    Reports(signals::ReportsCommand),
    /// Block lists: show, subscribe, unsubscribe, items, publish, retract
    #[command(subcommand)]
    Lists(signals::ListsCommand),
}

#[derive(Debug, Subcommand)]
pub(super) enum RequestsCommand {
    /// Who waits for whom, newest first; never what was written
    List {
        /// From this domain only
        #[arg(long)]
        domain: Option<String>,
        /// Older than this id: the last one of the page before
        #[arg(long)]
        before: Option<i64>,
        #[command(flatten)]
        common: Common,
    },
    /// Throw away what waits from an address or from a whole domain
    Drop {
        /// A bare address or a domain
        from: String,
        /// For the audit log
        #[arg(long)]
        why: String,
        #[command(flatten)]
        common: Common,
    },
}

pub(super) fn federation(command: FederationCommand) -> Result<(), CliError> {
    match command {
        FederationCommand::Status { common } => ask(&common, Operation::FederationStatus),
        FederationCommand::Policy(command) => policy::policy(*command),
        FederationCommand::Block(args) => policy::block(args),
        FederationCommand::Unblock(args) => policy::unblock(args),
        FederationCommand::Blocks(command) => policy::blocks(command),
        FederationCommand::Breaker(command) => policy::breaker(command),
        FederationCommand::Close { domain, all, common } => {
            ask(&common, Operation::FederationClose { domain, all })
        }
        FederationCommand::Open { domain, common } => ask(&common, Operation::FederationOpen { domain }),
        FederationCommand::Requests(command) => match command {
            RequestsCommand::List { domain, before, common } => {
                ask(&common, Operation::Requests(RequestsOp::List { domain, before }))
            }
            RequestsCommand::Drop { from, why, common } => {
                ask(&common, Operation::Requests(RequestsOp::Drop { from, why }))
            }
        },
        FederationCommand::Now { common } => ask(&common, Operation::Domains(DomainsOp::Now)),
        FederationCommand::Domains { search, sort, offset, common } => {
            ask(&common, Operation::Domains(DomainsOp::List { search, sort, offset }))
        }
        FederationCommand::Domain { domain, common } => {
            ask(&common, Operation::Domains(DomainsOp::Show { domain }))
        }
        FederationCommand::History { domain, hours, common } => {
            ask(&common, Operation::Domains(DomainsOp::History { domain, hours }))
        }
        FederationCommand::Reports(command) => signals::reports(command),
        FederationCommand::Lists(command) => signals::lists(command),
    }
}
