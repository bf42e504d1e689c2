//! What can be asked of the policy, and what is answered.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trunkline_xmpp::stanza::Stanza;

use super::desk::Desk;
use super::preset::Preset;
use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::control::blocks::{self, Block};
use crate::control::judge::{Case, Verdict};
use crate::control::rule::{Direction, Relation, Rule};
use crate::exchange::Exchange;

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
        relation: Option<Relation>,
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
    /// Stanzas that the preset decided since it was set.
    #[serde(default)]
    pub preset_hits: u64,
    /// Stanzas that it would have decided, while in shadow.
    #[serde(default)]
    pub preset_shadow_hits: u64,
    /// In order: first match wins. Those of the configuration come first and have no id.
    pub rules: Vec<RuleView>,
    /// Blocked domains, the latest first; 1000 at most.
    #[serde(default)]
    pub blocks: Vec<BlockView>,
    /// How many there are.
    #[serde(default)]
    pub blocks_total: u64,
    /// What is not as it was meant, in words: rules without their list, lists that are kept for a rule.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A blocked domain as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlockView {
    /// The block.
    pub block: Block,
    /// Who set it.
    pub set_by: String,
    /// Milliseconds since 1970.
    pub set_at: i64,
    /// It stands in the configuration and is changed there.
    pub configured: bool,
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
pub async fn run(exchange: &Arc<Exchange>, actor: &Actor, op: PolicyOp) -> Result<Outcome, OpError> {
    let control = &exchange.control;
    match op {
        PolicyOp::Show => {
            let view = control.policy.view(control.now());
            return Ok(Outcome::Policy(PolicyView { warnings: control.warnings(), ..view }));
        }
        PolicyOp::Test { stanza, direction, relation } => {
            return test(exchange, &stanza, direction, relation).await;
        }
        PolicyOp::Export { format } => return Ok(export(exchange, format)),
        _ => {}
    }
    let writing = control.policy.writes.lock().await;
    let old = control.policy.standing.load_full();
    let desk = Desk { exchange, actor, old };
    let text = match op {
        PolicyOp::SetPreset { preset, shadow, why } => desk.set_preset(preset, shadow, &why).await?,
        PolicyOp::Add { rule, position } => desk.add(rule, position).await?,
        PolicyOp::Replace { id, rule } => desk.replace(id, rule).await?,
        PolicyOp::Move { id, position, why } => desk.place(id, position, &why).await?,
        PolicyOp::Remove { id, why } => desk.remove(id, &why).await?,
        PolicyOp::Block { domain, subdomains, reason, until } => {
            desk.block(Block { domain, subdomains, reason, until }).await?
        }
        PolicyOp::Unblock { domain, why } => desk.unblock(&domain, &why).await?,
        PolicyOp::Import { format, text, why } => desk.import(format, &text, &why).await?,
        PolicyOp::Show | PolicyOp::Test { .. } | PolicyOp::Export { .. } => {
            return Err(OpError::BadRequest("this changes nothing".into()));
        }
    };
    drop(writing);
    control.in_force(exchange);
    Ok(Outcome::Done { text })
}

fn export(exchange: &Exchange, format: Format) -> Outcome {
    let now = exchange.control.now();
    let standing = exchange.control.policy.standing.load();
    let configured = standing.configured_blocks.values();
    let own = standing.blocks.values().filter(|set| set.holds(now));
    let mut blocks: Vec<Block> = configured.chain(own).map(|set| set.block.clone()).collect();
    blocks.sort_by(|a, b| a.domain.cmp(&b.domain));
    blocks.dedup_by(|a, b| a.domain == b.domain);
    let media_type = match format {
        Format::Csv => "text/csv",
        Format::Json => "application/json",
    };
    Outcome::File { media_type: media_type.into(), text: blocks::write(&blocks, format) }
}

/// What would become of a stanza.
async fn test(
    exchange: &Arc<Exchange>,
    stanza: &str,
    direction: Direction,
    relation: Option<Relation>,
) -> Result<Outcome, OpError> {
    let bad = |text: &str| OpError::NotPossible(text.to_owned());
    let stanza = Stanza::parse(stanza.as_bytes())
        .map_err(|error| OpError::NotPossible(format!("this is not a stanza: {error}")))?;
    let (Some(from), Some(to)) = (&stanza.head.from, &stanza.head.to) else {
        return Err(bad("the stanza needs `from` and `to`"));
    };
    let (ours, other) = match direction {
        Direction::In => (to, from),
        Direction::Out => (from, to),
        Direction::Both => return Err(bad("direction: \"in\" or \"out\"")),
    };
    if exchange.served(ours.domain()).is_none() {
        return Err(OpError::UnknownDomain(ours.domain().to_owned()));
    }
    if exchange.served(other.domain()).is_some() {
        return Err(bad("both addresses are on this server: no rule is asked"));
    }
    let relation = match relation {
        None if ours.local().is_some() && exchange.host(ours.domain()).is_some() => {
            Some(exchange.relation(ours, other).await.map_err(|error| OpError::Store(error.to_string()))?)
        }
        relation => relation,
    };
    let domain = other.domain().to_owned();
    let case = Case { direction, domain: &domain, stanza: &stanza, relation };
    let (decision, trace, reason) = exchange.control.rehearse(&case);
    let action = match &decision.verdict {
        Verdict::Allow if decision.text_only => "text-only",
        Verdict::Allow if decision.mark.is_some() => "mark",
        Verdict::Allow => "allow",
        Verdict::Reject(_) => "reject",
        Verdict::Drop => "drop",
        Verdict::Hold => "hold",
        Verdict::Undecided => "undecided",
    };
    Ok(Outcome::Tested(TestResult { action: action.into(), by: decision.by.to_string(), reason, trace }))
}
