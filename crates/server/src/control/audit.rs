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
/// Characters of what was before, and of what is now. An entry that was cut is no JSON any more, but it ends with an
/// ellipsis.
const MOST_CHANGE: usize = 100_000;
/// Characters of a text that is searched for.
const MOST_SEARCH: usize = 200;

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
            .bind(clipped(&actor.name, MOST_TEXT))
            .bind(actor.face.to_string())
            .bind(clipped(what, MOST_TEXT))
            .bind(clipped(why, MOST_TEXT))
            .bind(change.0.as_deref().map(recorded))
            .bind(change.1.as_deref().map(recorded))
    }
}

/// What becomes of `before` and `after` in an entry.
pub(super) fn recorded(change: &str) -> String {
    clipped(change, MOST_CHANGE)
}

fn clipped(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// What SQLite's GLOB finds `text` with, in upper and lower case. Its `lower` and LIKE know ASCII only.
fn pattern(text: &str) -> String {
    let mut pattern = String::from("*");
    for c in text.chars() {
        let mut cases = vec![c];
        for other in [one(c.to_lowercase()), one(c.to_uppercase())].into_iter().flatten() {
            if !cases.contains(&other) {
                cases.push(other);
            }
        }
        if cases.len() > 1 || ['*', '?', '['].contains(&c) {
            pattern.push('[');
            pattern.extend(cases);
            pattern.push(']');
        } else {
            pattern.push(c);
        }
    }
    pattern.push('*');
    pattern
}

fn one(mut cases: impl Iterator<Item = char>) -> Option<char> {
    let first = cases.next();
    first.filter(|_| cases.next().is_none())
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
    let search = search.unwrap_or_default();
    if search.chars().count() > MOST_SEARCH {
        return Err(OpError::BadRequest(format!("search: at most {MOST_SEARCH} characters")));
    }
    // One row more than a page tells whether there are older ones.
    let query = sql("SELECT id, at, who, face, what, why, before, after FROM audit \
         WHERE id < ?1 AND (?2 = '**' OR (who || ' ' || face || ' ' || what || ' ' || why || ' ' || \
         coalesce(before, '') || ' ' || coalesce(after, '')) GLOB ?2) ORDER BY id DESC LIMIT ?3")
    .bind(before.unwrap_or(i64::MAX))
    .bind(pattern(&search))
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
