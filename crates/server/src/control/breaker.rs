//! The graded cut-off: by hand or by a trigger, for one domain or for all.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::exchange::Exchange;

/// The levels in force.
#[derive(Debug, Default)]
pub struct Breaker {}

/// How far the outside is cut off. Each level includes those before it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As the policy says.
    #[default]
    Normal,
    /// First contacts are refused.
    NoNewContacts,
    /// Only people who have consented to each other.
    GrantedOnly,
    /// Of what they write, only text.
    TextOnly,
    /// No streams.
    Closed,
}

/// What can be asked of the breaker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BreakerOp {
    /// All levels that are not normal, and the triggers.
    Show,
    /// Sets a level.
    Set {
        /// `None`: for all.
        #[serde(default)]
        domain: Option<String>,
        /// The level.
        level: Level,
        /// Local users with outside contacts are told.
        why: String,
        /// Milliseconds since 1970; `None`: until it is taken back.
        #[serde(default)]
        until: Option<i64>,
    },
}

/// The breaker as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BreakerView {
    /// For everybody outside.
    pub all: LevelView,
    /// Domains of their own level.
    pub domains: Vec<LevelView>,
    /// What pulls it by itself, in words.
    pub triggers: Vec<String>,
}

/// A level in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LevelView {
    /// `None`: all.
    pub domain: Option<String>,
    /// The level.
    pub level: Level,
    /// Why.
    pub reason: String,
    /// Who set it; a trigger's name.
    pub set_by: String,
    /// Milliseconds since 1970.
    pub set_at: i64,
    /// When it ends.
    pub until: Option<i64>,
}

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(_exchange: &Arc<Exchange>, _actor: &Actor, op: BreakerOp) -> Result<Outcome, OpError> {
    Err(OpError::NotPossible(format!("{op:?} is not built yet")))
}
