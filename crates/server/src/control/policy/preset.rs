//! Ready-made sets of rules.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::rule::{Action, Conditions, Direction, Relation, Rule};

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

impl Preset {
    /// Every preset.
    pub const ALL: [Preset; 4] = [Preset::Open, Preset::Careful, Preset::AllowListOnly, Preset::Closed];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Open => "open",
            Preset::Careful => "careful",
            Preset::AllowListOnly => "allow-list-only",
            Preset::Closed => "closed",
        }
    }

    /// From its name.
    pub fn parse(name: &str) -> Option<Preset> {
        Preset::ALL.into_iter().find(|preset| preset.name() == name)
    }

    pub(super) fn by(self) -> &'static str {
        match self {
            Preset::Open => "preset open",
            Preset::Careful => "preset careful",
            Preset::AllowListOnly => "preset allow-list-only",
            Preset::Closed => "preset closed",
        }
    }

    /// The rule that the preset is.
    pub(in crate::control) fn rule(self, shadow: bool) -> Option<Rule> {
        let rule = |when, direction, then, reason: &str| {
            Some(Rule { when, direction, then, reason: reason.into(), until: None, shadow })
        };
        let reject = Action::Reject { condition: None, text: None };
        match self {
            Preset::Open => None,
            Preset::Careful => {
                // Of every kind: what can't wait gets an answer that says nothing (design/011-consent.md).
                let when = Conditions { relation: vec![Relation::Stranger], ..Conditions::default() };
                rule(when, Direction::In, Action::Hold, "first contacts wait for consent")
            }
            Preset::AllowListOnly => rule(
                Conditions::default(),
                Direction::Both,
                reject,
                "only providers that are on this server's list",
            ),
            Preset::Closed => rule(
                Conditions::default(),
                Direction::Both,
                reject,
                "this server does not talk to other providers",
            ),
        }
    }
}
