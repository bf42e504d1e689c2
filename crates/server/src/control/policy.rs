//! The rules in force.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rule::{Direction, Rule};
use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::exchange::Exchange;

/// The rules, ready to judge.
#[derive(Debug, Default)]
pub struct Policy {}

/// A ready-made set of rules; it stands behind the operator's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Everything passes.
    Open,
    /// First contacts wait for consent.
    #[default]
    Careful,
    /// Only domains that a rule allows.
    AllowListOnly,
    /// Nothing passes.
    Closed,
}

/// What can be asked of the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PolicyOp {
    /// The preset and all rules, with their counts.
    Show,
    /// Changes the preset.
    SetPreset {
        /// The new one.
        preset: Preset,
        /// Only decide and count, as a whole.
        #[serde(default)]
        shadow: bool,
        /// For the audit log.
        why: String,
    },
    /// Adds a rule.
    Add {
        /// The rule.
        rule: Rule,
        /// Its place, from 0; `None`: after all others.
        #[serde(default)]
        position: Option<u32>,
    },
    /// Replaces a rule.
    Replace {
        /// Which.
        id: i64,
        /// The new one.
        rule: Rule,
    },
    /// Moves a rule.
    Move {
        /// Which.
        id: i64,
        /// Its new place, from 0.
        position: u32,
        /// For the audit log.
        why: String,
    },
    /// Removes a rule.
    Remove {
        /// Which.
        id: i64,
        /// For the audit log.
        why: String,
    },
    /// Says what would become of a stanza. Changes nothing.
    Test {
        /// The stanza's XML, with `from` and `to`.
        stanza: String,
        /// Which way it goes.
        direction: Direction,
        /// How the domain is proved, and how the two stand to each other: `None` as it is in truth.
        #[serde(default)]
        relation: Option<super::rule::Relation>,
    },
    /// Blocks a domain: nothing to or from it, its streams end at once.
    Block {
        /// The domain.
        domain: String,
        /// What is below it too.
        #[serde(default)]
        subdomains: bool,
        /// Local users are told.
        reason: String,
        /// Milliseconds since 1970; `None`: until it is taken back.
        #[serde(default)]
        until: Option<i64>,
    },
    /// Takes a block back.
    Unblock {
        /// The domain.
        domain: String,
        /// For the audit log.
        why: String,
    },
    /// All blocks as a file.
    Export {
        /// Of which kind.
        format: Format,
    },
    /// Blocks from a file: all of it or nothing.
    Import {
        /// Of which kind.
        format: Format,
        /// The file.
        text: String,
        /// For the audit log.
        why: String,
    },
}

/// A file of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `domain,subdomains,reason,until`
    Csv,
    /// An array of objects with the same names.
    Json,
}

/// The policy as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyView {
    /// What stands behind the rules.
    pub preset: Preset,
    /// The preset only decides and counts.
    pub preset_shadow: bool,
    /// In order: first match wins. Those of the configuration come first and have no id.
    pub rules: Vec<RuleView>,
}

/// One rule as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleView {
    /// `None`: it stands in the configuration and is changed there.
    pub id: Option<i64>,
    /// The rule.
    pub rule: Rule,
    /// Who set it.
    pub set_by: String,
    /// Milliseconds since 1970.
    pub set_at: i64,
    /// Stanzas that it decided since the start.
    pub hits: u64,
    /// Stanzas that it would have decided, while in shadow.
    pub shadow_hits: u64,
}

/// What would become of a stanza.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TestResult {
    /// `allow`, `reject`, `drop`, `hold`, `limit`, `mark`, `text-only`.
    pub action: String,
    /// The rule that decides: its id, or its place in the configuration, or the preset's or breaker's name, in words.
    pub by: String,
    /// Its reason.
    pub reason: String,
    /// Rules that were asked before and why they did not apply, and shadow rules that would have.
    pub trace: Vec<String>,
}

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(_exchange: &Arc<Exchange>, _actor: &Actor, op: PolicyOp) -> Result<Outcome, OpError> {
    Err(OpError::NotPossible(format!("{op:?} is not built yet")))
}
