//! One rule: when it applies, what it does, and who answers for it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trunkline_xmpp::error::Condition;
use trunkline_xmpp::jid::Jid;

/// Characters of a reason, a mark or an error's text.
pub const MOST_TEXT: usize = 500;

/// A rule as an operator writes it, in the configuration, over HTTP or on the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What it applies to. Everything that is given must be true.
    #[serde(default)]
    pub when: Conditions,
    /// Of which traffic.
    #[serde(default)]
    pub direction: Direction,
    /// What is done.
    pub then: Action,
    /// Why there is such a rule; local users see it when it stops their stanza.
    #[serde(default)]
    pub reason: String,
    /// When it ends: milliseconds since 1970. `None`: never.
    #[serde(default)]
    pub until: Option<i64>,
    /// Decided and counted, not enforced.
    #[serde(default)]
    pub shadow: bool,
}

/// Which way a stanza goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From another provider to us.
    In,
    /// From us to another provider.
    Out,
    /// Either.
    #[default]
    Both,
}

/// What a rule asks of a stanza. What is absent is not asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Conditions {
    /// The other provider's domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Domains below `domain` too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub subdomains: bool,
    /// One address of the other side, bare.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The domain was seen for the first time less than so many seconds ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_seen_within: Option<u64>,
    /// How the domain was proved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Authentication>,
    /// How the two people stand to each other: one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub relation: Vec<Relation>,
    /// What kind of stanza it is: one of these. A stanza can be of several kinds at once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kind: Vec<StanzaKind>,
    /// What is in it: all of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub has: Vec<Content>,
    /// It has more bytes than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub larger_than: Option<usize>,
    /// The domain sends more stanzas a minute than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faster_than: Option<u32>,
    /// The domain's reputation (0 to 100) is below this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reputation_below: Option<u8>,
    /// The domain or the sender is on the block list of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listed_in: Option<String>,
}

/// How a peer proved its domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Authentication {
    /// By a certificate (SASL EXTERNAL).
    Certificate,
    /// By dialback only (XEP-0220).
    Dialback,
}

/// How two people stand to each other, seen from ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// Nothing between them.
    Stranger,
    /// Ours wrote to the other.
    Conversation,
    /// Granted: a subscription in either direction, ours asked for one, or accepted a first contact.
    Contact,
}

/// What kind of stanza it is, as far as rules tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StanzaKind {
    /// A message, but for what only calls or invites.
    Message,
    /// A subscription request.
    Subscribe,
    /// Other presence.
    Presence,
    /// A request or its answer.
    Iq,
    /// A call (XEP-0353).
    Call,
    /// An invitation to a room (XEP-0045, XEP-0249).
    Invitation,
}

/// The kinds that a stanza is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(u8);

impl Kinds {
    /// With another one.
    pub fn and(self, kind: StanzaKind) -> Kinds {
        Kinds(self.0 | 1 << kind as u8)
    }

    /// One of these is among them.
    pub fn include_any(self, kinds: &[StanzaKind]) -> bool {
        kinds.iter().any(|kind| self.0 & (1 << *kind as u8) != 0)
    }

    /// None yet.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What can be in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// A link in the text.
    Link,
    /// A file or picture: XEP-0066, XEP-0385, XEP-0447, XEP-0231.
    Media,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// It passes; no later rule is asked.
    Allow,
    /// The sender gets an error.
    Reject {
        /// A condition of RFC 6120 s.8.3.3; `policy-violation` if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        condition: Option<String>,
        /// What the sender reads. Without it: local senders read the rule's reason, others that it is policy.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
    },
    /// It vanishes.
    Drop,
    /// It waits for the receiver's consent.
    Hold,
    /// Passes up to a rate; beyond it is rejected with `resource-constraint`.
    Limit {
        /// Stanzas a minute.
        per_minute: u32,
        /// For whom they are counted together.
        #[serde(default, skip_serializing_if = "Per::is_default")]
        per: Per,
    },
    /// Passes with a mark that clients may show.
    Mark {
        /// What the mark says.
        text: String,
    },
    /// Links and media are taken out, only the text passes.
    TextOnly,
}

/// Whose stanzas a limit counts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Per {
    /// Each domain has the rate for itself. Whoever owns a domain can make as many below it as they like: against
    /// them, say `rule`.
    #[default]
    Domain,
    /// All that the rule applies to have it together.
    Rule,
}

impl Per {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
    fn is_default(&self) -> bool {
        *self == Per::default()
    }
}

impl Action {
    /// As it is written.
    pub fn name(&self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Reject { .. } => "reject",
            Action::Drop => "drop",
            Action::Hold => "hold",
            Action::Limit { .. } => "limit",
            Action::Mark { .. } => "mark",
            Action::TextOnly => "text-only",
        }
    }
}

/// What is wrong with a rule: where, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {text}")]
pub struct RuleError {
    /// As in the rule: `when.domain`.
    pub field: &'static str,
    /// What is wrong and what to do.
    pub text: String,
}

impl Rule {
    /// The rule in canonical form: addresses as the server compares them, nothing that can't be true.
    ///
    /// # Errors
    /// What the one who wrote it has to mend.
    pub fn checked(mut self) -> Result<Rule, RuleError> {
        let wrong = |field, text: String| RuleError { field, text };
        let when = &mut self.when;
        if let Some(name) = &when.domain {
            when.domain = Some(domain(name).map_err(|text| wrong("when.domain", text))?);
        } else if when.subdomains {
            return Err(wrong("when.subdomains", "below which domain? Give `domain` too".into()));
        }
        if let Some(text) = &when.address {
            let jid = Jid::parse(text).ok().filter(|jid| jid.local().is_some() && jid.resource().is_none());
            let Some(jid) = jid else {
                return Err(wrong(
                    "when.address",
                    format!("\"{text}\" is not an address such as user@example.org"),
                ));
            };
            when.address = Some(jid.as_str().to_owned());
        }
        if when.first_seen_within == Some(0) {
            return Err(wrong("when.first_seen_within", "0 seconds are never true".into()));
        }
        if when.reputation_below.is_some_and(|below| below == 0 || below > 100) {
            return Err(wrong("when.reputation_below", "a number from 1 to 100".into()));
        }
        if when.listed_in.as_deref().is_some_and(|name| name.trim().is_empty()) {
            return Err(wrong("when.listed_in", "the name of a list is missing".into()));
        }
        match &mut self.then {
            Action::Reject { condition, text } => {
                if let Some(name) = condition
                    && Condition::parse(name).is_none()
                {
                    let text = format!(
                        "\"{name}\" is not a condition of RFC 6120 s.8.3.3, such as policy-violation"
                    );
                    return Err(wrong("then.condition", text));
                }
                short(text.as_deref().unwrap_or_default()).map_err(|text| wrong("then.text", text))?;
            }
            Action::Limit { per_minute: 0, .. } => {
                return Err(wrong(
                    "then.per_minute",
                    "0 lets nothing pass: use \"reject\" or \"drop\"".into(),
                ));
            }
            Action::Hold if self.direction == Direction::Out => {
                return Err(wrong("then", "what goes out can't be held: nobody is there to consent".into()));
            }
            Action::Mark { text } => {
                if text.trim().is_empty() {
                    return Err(wrong("then.text", "what should the mark say?".into()));
                }
                short(text).map_err(|text| wrong("then.text", text))?;
            }
            Action::Allow | Action::Drop | Action::Hold | Action::Limit { .. } | Action::TextOnly => {}
        }
        short(&self.reason).map_err(|text| wrong("reason", text))?;
        if self.until.is_some_and(|until| until <= 0) {
            return Err(wrong("until", "milliseconds since 1970, or a date".into()));
        }
        Ok(self)
    }

    /// The rule's time is over.
    pub fn has_ended(&self, now: i64) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

pub(super) fn short(text: &str) -> Result<(), String> {
    if text.chars().count() > MOST_TEXT {
        return Err(format!("longer than {MOST_TEXT} characters"));
    }
    if text.chars().any(|c| c.is_control()) {
        return Err("contains control characters".into());
    }
    Ok(())
}

/// A domain in canonical form.
pub(super) fn domain(name: &str) -> Result<String, String> {
    match Jid::parse(name.trim()) {
        Ok(jid) if jid.is_domain() => Ok(jid.as_str().to_owned()),
        _ => Err(format!("\"{name}\" is not a domain")),
    }
}
