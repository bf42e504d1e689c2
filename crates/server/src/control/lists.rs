//! Block lists: those of others that we follow over pubsub, and the one that we publish.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::exchange::Exchange;

/// The lists in force.
#[derive(Debug, Default)]
pub struct Lists {}

/// What can be asked of the lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ListsOp {
    /// All lists.
    Show,
    /// Follows a list.
    Subscribe {
        /// Its name here, for rules (`listed_in`).
        name: String,
        /// The address of its pubsub service.
        service: String,
        /// The node.
        node: String,
        /// What is done with those on it; `None`: only rules that name the list apply.
        #[serde(default)]
        action: Option<super::rule::Action>,
        /// For the audit log.
        why: String,
    },
    /// Stops following a list.
    Unsubscribe {
        /// Its name here.
        name: String,
        /// For the audit log.
        why: String,
    },
    /// What is on a list, a page at a time.
    Items {
        /// Its name here; `own` is the one that we publish.
        name: String,
        /// After this entry: the last one of the page before.
        #[serde(default)]
        after: Option<String>,
    },
    /// Puts an address or a domain on our own list.
    Publish {
        /// A bare address or a domain; addresses are published as their SHA-256.
        entry: String,
        /// Everybody can read it.
        reason: String,
    },
    /// Takes it off our own list.
    Retract {
        /// As it was published.
        entry: String,
        /// For the audit log.
        why: String,
    },
}

/// A list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListView {
    /// Its name here; `own` is the one that we publish.
    pub name: String,
    /// The address of its pubsub service.
    pub service: String,
    /// The node.
    pub node: String,
    /// What is done with those on it.
    pub action: Option<super::rule::Action>,
    /// Entries.
    pub entries: u64,
    /// `subscribed`, or why not, in words.
    pub state: String,
    /// The last change, milliseconds since 1970.
    pub changed_at: Option<i64>,
    /// Stanzas it decided since the start.
    pub hits: u64,
}

/// What is on a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListEntry {
    /// A domain, an address, or the hash of one in hex.
    pub entry: String,
    /// Why, as the list says.
    pub reason: String,
}

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(_exchange: &Arc<Exchange>, _actor: &Actor, op: ListsOp) -> Result<Outcome, OpError> {
    Err(OpError::NotPossible(format!("{op:?} is not built yet")))
}
