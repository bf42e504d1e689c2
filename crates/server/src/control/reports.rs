//! What users reported (XEP-0377), and what moderators made of it.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::exchange::Exchange;

/// The moderation queue.
#[derive(Debug, Default)]
pub struct Reports {}

/// What can be asked of the moderation queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ReportsOp {
    /// Reports, newest first, a page at a time.
    List {
        /// Only those that wait.
        #[serde(default)]
        open_only: bool,
        /// About this domain only.
        #[serde(default)]
        domain: Option<String>,
        /// Older than this id: the last one of the page before.
        #[serde(default)]
        before: Option<i64>,
    },
    /// One report, with the reported stanzas.
    Show {
        /// Which.
        id: i64,
    },
    /// Acts on a report; it is handled then.
    Decide {
        /// Which.
        id: i64,
        /// What is done.
        action: ReportAction,
        /// For the audit log, and for whom it concerns.
        why: String,
        /// When a limit or block ends: milliseconds since 1970.
        #[serde(default)]
        until: Option<i64>,
    },
}

/// What a moderator does about a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReportAction {
    /// Nothing.
    Dismiss,
    /// The sender gets a message from the domain.
    Warn,
    /// The sender may write a little only.
    Limit,
    /// The sender's address is blocked for everybody here.
    BlockSender,
    /// The sender's domain is blocked.
    BlockDomain,
    /// It is sent to the sender's provider (its abuse address, XEP-0157). The report stays open.
    Forward,
}

/// A report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReportView {
    /// Grows with time.
    pub id: i64,
    /// Milliseconds since 1970.
    pub at: i64,
    /// Who reported.
    pub reporter: String,
    /// Their affiliation with this server (XEP-0489), such as `registered`.
    pub affiliation: String,
    /// Whom it is about.
    pub about: String,
    /// `spam` or `abuse`.
    pub reason: String,
    /// What the reporter wrote.
    pub text: String,
    /// The ids of the reported stanzas (XEP-0359).
    pub stanza_ids: Vec<String>,
    /// The reported messages, from the reporter's archive; in `show` only.
    pub messages: Vec<String>,
    /// The reporter agrees that the sender's provider is told (XEP-0377).
    pub may_forward: bool,
    /// The reporter agrees that third parties are told.
    pub may_share: bool,
    /// `open` or `handled`.
    pub state: String,
    /// What was done, by whom and why, oldest first.
    pub actions: Vec<String>,
}

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(_exchange: &Arc<Exchange>, _actor: &Actor, op: ReportsOp) -> Result<Outcome, OpError> {
    Err(OpError::NotPossible(format!("{op:?} is not built yet")))
}
