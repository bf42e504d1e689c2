//! First contacts that wait for the consent of the one they are for.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::exchange::Exchange;

/// First contacts, counted.
#[derive(Debug, Default)]
pub struct Requests {}

/// What moderators can ask and do about first contacts. What people wrote is not shown to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RequestsOp {
    /// What waits, newest first, a page at a time.
    List {
        /// From this domain only.
        #[serde(default)]
        domain: Option<String>,
        /// Older than this id: the last one of the page before.
        #[serde(default)]
        before: Option<i64>,
    },
    /// Throws away what waits from one address, or from all of a domain.
    Drop {
        /// A bare address or a domain.
        from: String,
        /// For the audit log.
        why: String,
    },
}

/// A first contact that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequestView {
    /// Grows with time.
    pub id: i64,
    /// Whose consent it waits for.
    pub account: String,
    /// From whom.
    pub from: String,
    /// Stanzas held.
    pub stanzas: u64,
    /// The first of them, milliseconds since 1970.
    pub since: i64,
    /// A subscription request is among them.
    pub asks_subscription: bool,
}

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(_exchange: &Arc<Exchange>, _actor: &Actor, op: RequestsOp) -> Result<Outcome, OpError> {
    Err(OpError::NotPossible(format!("{op:?} is not built yet")))
}
