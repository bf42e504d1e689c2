//! Who changed what, and why. Entries are only ever appended; the database itself refuses anything else.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::exchange::Exchange;

/// The audit log.
#[derive(Debug, Default)]
pub struct Audit {}

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
pub async fn run(_exchange: &Arc<Exchange>, _actor: &Actor, op: AuditOp) -> Result<Outcome, OpError> {
    Err(OpError::NotPossible(format!("{op:?} is not built yet")))
}
