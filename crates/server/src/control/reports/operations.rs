//! What can be asked of the moderation queue, and what is answered.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trunkline_store::{Row, StoreError, sql};

use super::decisions::{Decision, decide};
use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::exchange::Exchange;

/// Reports on one page of a list.
const PAGE: i64 = 100;

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
        /// When a limit or block ends: milliseconds since 1970. Without it: after 7 days, 90 days, never for a domain.
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
    /// Who reported: a user here, or another provider's domain.
    pub reporter: String,
    /// `user`, or `outside`: another provider reports one of our users.
    pub origin: String,
    /// Their affiliation with this server (XEP-0489), such as `registered`; `outside` of another provider.
    pub affiliation: String,
    /// Whom it is about.
    pub about: String,
    /// `spam`, `abuse`, or another reason's URN.
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
    /// To whom it was forwarded.
    pub forwarded_to: Option<String>,
    /// What was done, by whom and why, oldest first.
    pub actions: Vec<String>,
}

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(exchange: &Arc<Exchange>, actor: &Actor, op: ReportsOp) -> Result<Outcome, OpError> {
    match op {
        ReportsOp::List { open_only, domain, before } => list(exchange, open_only, domain, before).await,
        ReportsOp::Show { id } => Ok(Outcome::Report(Box::new(find(exchange, id).await?))),
        ReportsOp::Decide { id, action, why, until } => {
            decide(exchange, actor, Decision { id, action, why, until }).await
        }
    }
}

pub(super) fn store(error: StoreError) -> OpError {
    OpError::Store(error.to_string())
}

macro_rules! columns {
    () => {
        "id, at, reporter, origin, affiliation, about, reason, words, stanza_ids, messages, may_forward, \
         may_share, state, forwarded_to, actions"
    };
}

fn view(row: Row<'_>) -> ReportView {
    let list = |column: usize| serde_json::from_str::<Vec<String>>(row.text(column)).unwrap_or_default();
    ReportView {
        id: row.int(0),
        at: row.int(1),
        reporter: row.text(2).to_owned(),
        origin: row.text(3).to_owned(),
        affiliation: row.text(4).to_owned(),
        about: row.text(5).to_owned(),
        reason: row.text(6).to_owned(),
        text: row.text(7).to_owned(),
        stanza_ids: list(8),
        messages: list(9),
        may_forward: row.bool(10),
        may_share: row.bool(11),
        state: row.text(12).to_owned(),
        forwarded_to: row.opt_text(13).map(str::to_owned),
        actions: list(14),
    }
}

impl Exchange {
    /// How many reports wait for a moderator.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn open_reports(&self) -> Result<u64, OpError> {
        let rows =
            self.db.read(sql("SELECT COUNT(*) FROM reports WHERE state = 'open'")).await.map_err(store)?;
        Ok(rows.first().map_or(0, |row| u64::try_from(row.int(0)).unwrap_or(0)))
    }
}

async fn list(
    exchange: &Exchange,
    open_only: bool,
    domain: Option<String>,
    before: Option<i64>,
) -> Result<Outcome, OpError> {
    let statement = sql(concat!(
        "SELECT ",
        columns!(),
        " FROM reports WHERE id < ?1 AND (?2 = 0 OR state = 'open') AND (?3 IS NULL OR domain = ?3) \
         ORDER BY id DESC LIMIT ?4"
    ))
    .bind(before.unwrap_or(i64::MAX))
    .bind(i64::from(open_only))
    .bind(domain)
    .bind(PAGE + 1);
    let rows = exchange.db.read(statement).await.map_err(store)?;
    let more = rows.len() > PAGE as usize;
    let reports = rows.iter().take(PAGE as usize).map(|row| ReportView { messages: Vec::new(), ..view(row) });
    Ok(Outcome::Reports { reports: reports.collect(), more })
}

pub(super) async fn find(exchange: &Exchange, id: i64) -> Result<ReportView, OpError> {
    let statement = sql(concat!("SELECT ", columns!(), " FROM reports WHERE id = ?1")).bind(id);
    let rows = exchange.db.read(statement).await.map_err(store)?;
    rows.first().map(view).ok_or_else(|| OpError::NotFound(format!("report {id}")))
}
