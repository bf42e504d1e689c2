//! One rule: when it applies, what it does, and who answers for it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// What kind of stanza it is: one of these.
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
    /// Ours wrote to the other, or accepted a first contact.
    Conversation,
    /// A subscription in either direction, or ours asked for one.
    Contact,
}

/// What kind of stanza it is, as far as rules tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StanzaKind {
    /// A message that is none of those below.
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
    },
    /// It vanishes.
    Drop,
    /// It waits for the receiver's consent.
    Hold,
    /// Passes up to a rate for each sender's domain; beyond it is rejected with `resource-constraint`.
    Limit {
        /// Stanzas a minute.
        per_minute: u32,
    },
    /// Passes with a mark that clients may show.
    Mark {
        /// What the mark says.
        text: String,
    },
    /// Links and media are taken out, only the text passes.
    TextOnly,
}
