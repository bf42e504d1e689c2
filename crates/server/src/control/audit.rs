//! Who changed what, and why. Entries are only ever appended; the database itself refuses anything else.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trunkline_store::{Statement, sql};

use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::exchange::Exchange;
use crate::ids::Clock;

/// Entries of one page.
const PAGE: usize = 100;
/// Characters of a text of somebody's in one entry. What is cut off ends with an ellipsis.
const MOST_TEXT: usize = 4000;

/// The audit log.
#[derive(Debug)]
pub struct Audit {
    clock: Clock,
}

impl Default for Audit {
    fn default() -> Audit {
        Audit::new(Clock::System)
    }
}

impl Audit {
    /// The time of entries comes from `clock`.
    pub(super) fn new(clock: Clock) -> Audit {
        Audit { clock }
    }

    /// The entry for a change. It belongs into the batch of the change itself, so that there is never one without the
    /// other. `change` is what was before and what is now, as JSON.
    pub fn entry(
        &self,
        actor: &Actor,
        what: &str,
        why: &str,
        change: (Option<String>, Option<String>),
    ) -> Statement {
        sql("INSERT INTO audit (at, who, face, what, why, before, after) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")
            .bind(self.clock.now())
            .bind(clipped(&actor.name))
            .bind(actor.face.to_string())
            .bind(clipped(what))
            .bind(clipped(why))
            .bind(change.0)
            .bind(change.1)
    }
}

fn clipped(text: &str) -> String {
    match text.char_indices().nth(MOST_TEXT) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// What can be asked of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AuditOp {
    /// Entries, newest first, a page at a time.
    List {
        /// Older than this id: the last one of the page before.
        #[serde(default)]
        before: Option<i64>,
        /// Containing this text.
        #[serde(default)]
        search: Option<String>,
    },
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditEntry {
    /// Grows with time.
    pub id: i64,
    /// Milliseconds since 1970.
    pub at: i64,
    /// An administrator's address, `command line`, a token's name, a trigger's.
    pub who: String,
    /// Through which face: `command-line`, `api`, `console`, `ad-hoc`, `trigger`, `configuration`.
    pub face: String,
    /// What was done, such as `policy add`.
    pub what: String,
    /// The reason given.
    pub why: String,
    /// JSON of what was there before.
    pub before: Option<String>,
    /// JSON of what is there now.
    pub after: Option<String>,
}

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(exchange: &Arc<Exchange>, _actor: &Actor, op: AuditOp) -> Result<Outcome, OpError> {
    let AuditOp::List { before, search } = op;
    let page = i64::try_from(PAGE).unwrap_or(i64::MAX);
    // One row more than a page tells whether there are older ones.
    let query = sql("SELECT id, at, who, face, what, why, before, after FROM audit \
         WHERE id < ?1 AND (?2 = '' OR instr(lower(who || ' ' || face || ' ' || what || ' ' || why || ' ' || \
         coalesce(before, '') || ' ' || coalesce(after, '')), ?2) > 0) ORDER BY id DESC LIMIT ?3")
    .bind(before.unwrap_or(i64::MAX))
    .bind(search.unwrap_or_default().to_lowercase())
    .bind(page + 1);
    let rows = exchange.db.read(query).await.map_err(|error| OpError::Store(error.to_string()))?;
    let entries: Vec<AuditEntry> = rows
        .iter()
        .take(PAGE)
        .map(|row| AuditEntry {
            id: row.int(0),
            at: row.int(1),
            who: row.text(2).to_owned(),
            face: row.text(3).to_owned(),
            what: row.text(4).to_owned(),
            why: row.text(5).to_owned(),
            before: row.opt_text(6).map(str::to_owned),
            after: row.opt_text(7).map(str::to_owned),
        })
        .collect();
    Ok(Outcome::Audit { entries, more: rows.len() > PAGE })
}
