//! `trunkline token`: access for programs.

use clap::Subcommand;

use super::{CliError, Common, ask};
use crate::admin::Operation;
use crate::admin::actor::Scope;
use crate::admin::tokens::TokensOp;

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token; its secret is shown once
    Create {
        /// What it is for; it stands in the audit log
        name: String,
        /// What it permits: read, moderate, operate, accounts, audit; as often as needed
        #[arg(long = "scope", required = true)]
        scopes: Vec<ScopeArg>,
        /// How many days it is good for [default: for ever]
        #[arg(long)]
        days: Option<u32>,
        #[command(flatten)]
        common: Common,
    },
    /// List tokens, without their secrets
    List {
        #[command(flatten)]
        common: Common,
    },
    /// End a token at once
    Revoke {
        /// As it was created
        name: String,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum ScopeArg {
    Read,
    Moderate,
    Operate,
    Accounts,
    Audit,
}

impl From<ScopeArg> for Scope {
    fn from(scope: ScopeArg) -> Scope {
        match scope {
            ScopeArg::Read => Scope::Read,
            ScopeArg::Moderate => Scope::Moderate,
            ScopeArg::Operate => Scope::Operate,
            ScopeArg::Accounts => Scope::Accounts,
            ScopeArg::Audit => Scope::Audit,
        }
    }
}

pub(super) fn token(command: TokenCommand) -> Result<(), CliError> {
    let (operation, common) = match command {
        TokenCommand::Create { name, scopes, days, common } => {
            let now = jiff::Timestamp::now().as_millisecond();
            let until = days.map(|days| now + i64::from(days) * 86_400_000);
            let scopes = scopes.into_iter().map(Scope::from).collect();
            (TokensOp::Create { name, scopes, until }, common)
        }
        TokenCommand::List { common } => (TokensOp::List, common),
        TokenCommand::Revoke { name, common } => (TokensOp::Revoke { name }, common),
    };
    ask(&common, Operation::Tokens(operation))
}
