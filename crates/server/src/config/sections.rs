//! The sections of a configuration, as they are in effect. What each key means to people stands in [`super::keys`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::control::policy::Preset;
use crate::control::rule::Rule;
use crate::control::triggers::Trigger;
use crate::net::Network;

/// A certificate and its key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM, chain included.
    pub certificate: Option<PathBuf>,
    /// PEM.
    pub key: Option<PathBuf>,
}

/// A further domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Instead of the common one; PEM, chain included.
    pub certificate: Option<PathBuf>,
    /// PEM.
    pub key: Option<PathBuf>,
    /// Instead of [`Accounts::history_age`].
    pub history_age: Option<Duration>,
    /// Instead of [`Limits::archive_bytes`].
    pub archive_bytes: Option<usize>,
}

/// `[clients]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clients {
    /// STARTTLS listeners.
    pub listen: Vec<SocketAddr>,
    /// Direct TLS listeners.
    pub listen_tls: Vec<SocketAddr>,
    /// Proxies whose connections begin with a PROXY header.
    pub proxies: Vec<Network>,
    /// Whether TLS is required on `listen`.
    pub tls: TlsPolicy,
    /// Worker threads; 0: one per processor.
    pub threads: usize,
    /// All connections.
    pub max_connections: usize,
    /// Connections from one address (IPv6: /64).
    pub max_connections_per_address: usize,
    /// Connected devices of one account.
    pub max_sessions_per_account: usize,
    /// From accept to the end of SASL.
    pub login_timeout: Duration,
    /// In 10 minutes.
    pub login_failures_per_address: u32,
    /// In 10 minutes.
    pub login_failures_per_account: u32,
    /// Silence before a connection is tested.
    pub idle_check: Duration,
    /// XEP-0198 `max`.
    pub resume_timeout: Duration,
    /// Of FAST tokens; zero: there are none.
    pub token_lifetime: Duration,
}

/// Whether clients must use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsPolicy {
    /// No login without TLS.
    Required,
    /// Loopback listeners only.
    Optional,
}

/// `[accounts]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accounts {
    /// Bare addresses.
    pub admins: BTreeSet<String>,
    /// Bare addresses.
    pub moderators: BTreeSet<String>,
    /// Who may make an account from a client.
    pub registration: Registration,
    /// In an hour.
    pub registrations_per_address: u32,
    /// Whether users' invitations let the invited register.
    pub user_invites: bool,
    /// How long an invitation can be used.
    pub invite_lifetime: Duration,
    /// Whether messages stay in the archive after their delivery.
    pub archive: bool,
    /// How long messages stay in the archive; zero: for ever.
    pub history_age: Duration,
    /// How long devices that are gone are remembered; zero: for ever.
    pub device_age: Duration,
    /// Whether users may search their archives for words.
    pub search: bool,
    /// PBKDF2 iterations for new passwords.
    pub password_iterations: u32,
}

/// Who may make an account from a client (XEP-0077).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registration {
    /// Nobody.
    Closed,
    /// Who has an invitation.
    Invite,
    /// Everybody.
    Open,
}

/// `[federation]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Federation {
    /// STARTTLS listeners.
    pub listen: Vec<SocketAddr>,
    /// Direct TLS listeners.
    pub listen_tls: Vec<SocketAddr>,
    /// Proxies whose connections begin with a PROXY header.
    pub proxies: Vec<Network>,
    /// false: no stream to or from another domain.
    pub enabled: bool,
    /// What stands behind the rules, until another one is set at run time.
    pub preset: Preset,
    /// The first rules, in order.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// What becomes of messages while the breaker is closed.
    pub when_closed: WhenClosed,
    /// Connections a second, each way, after a reopening.
    pub reopen_per_second: u32,
    /// XEP-0455: where the state of the outside is written.
    pub outage_file: Option<PathBuf>,
    /// XEP-0455: where clients find it.
    #[serde(default)]
    pub outage_url: Vec<String>,
    /// What pulls the breaker by itself.
    #[serde(default)]
    pub triggers: Vec<Trigger>,
    /// PEM file with further roots.
    pub trust: Option<PathBuf>,
    /// Whether dialback may prove a domain; see [`Federation::dialback_with`].
    pub dialback: bool,
    /// Whether DNS may send us to private addresses.
    pub allow_private: bool,
    /// Worker threads; 0: one per two processors.
    pub threads: usize,
    /// Of these threads, as of processes: 0 to 19.
    pub niceness: i32,
    /// Asked instead of the system's.
    pub name_servers: Vec<SocketAddr>,
    /// Incoming connections.
    pub max_connections: usize,
    /// Incoming connections from one address (IPv6: /64).
    pub max_connections_per_address: usize,
    /// TLS handshakes at once.
    pub max_handshakes: usize,
    /// TLS handshakes at once from one address.
    pub max_handshakes_per_address: usize,
    /// Incoming connections without a proved domain.
    pub max_unproved: usize,
    /// The same, from one address.
    pub max_unproved_per_address: usize,
    /// Incoming streams on which one domain is proved.
    pub max_streams_per_domain: usize,
    /// Dialback keys being checked.
    pub max_verifications: usize,
    /// The same, brought by one address.
    pub max_verifications_per_address: usize,
    /// The same, of one domain.
    pub max_verifications_per_domain: usize,
    /// Bytes in the buffers of streams.
    pub memory: usize,
    /// The same, of the streams of one address.
    pub memory_per_address: usize,
    /// The same, of the streams of one domain.
    pub memory_per_domain: usize,
    /// From accept to the first proved domain.
    pub handshake_timeout: Duration,
    /// One attempt with all addresses of a peer.
    pub connect_timeout: Duration,
    /// Longest pause between attempts.
    pub retry_max: Duration,
    /// Silence in stanzas before a stream is closed.
    pub idle_timeout: Duration,
    /// Silence before a whitespace ping.
    pub ping_interval: Duration,
    /// Per peer domain, in memory.
    pub queue_stanzas: usize,
    /// Per peer domain, in memory.
    pub queue_bytes: usize,
    /// Of all peer domains, in memory.
    pub queue_memory: usize,
    /// Per peer domain, on disk.
    pub queue_kept: usize,
    /// Until a message bounces.
    pub queue_age: Duration,
    /// Static routes by peer domain.
    #[serde(default)]
    pub routes: BTreeMap<String, Route>,
    /// Whether whom we are connected with is published (XEP-0485).
    pub server_info: bool,
    /// Block lists that are followed, by the name that rules know.
    #[serde(default)]
    pub lists: BTreeMap<String, FollowedList>,
    /// Exceptions by peer domain; see [`Federation::dialback_with`] and [`Federation::blocked`].
    #[serde(default)]
    pub domains: BTreeMap<String, PeerPolicy>,
}

/// What becomes of messages to a domain that is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenClosed {
    /// Senders get an error at once.
    Refuse,
    /// They wait, as for a peer that can't be reached.
    Queue,
}

/// A static route.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// A name or an IP address (without brackets).
    pub host: String,
    /// Never 0.
    pub port: u16,
    /// TLS from the first byte.
    pub direct_tls: bool,
}

/// Exceptions for one peer domain.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerPolicy {
    /// Overrides [`Federation::dialback`].
    pub dialback: Option<bool>,
    /// Nothing to it, nothing from it.
    #[serde(default)]
    pub block: bool,
}

/// A block list that is followed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FollowedList {
    /// The domain of its pubsub service.
    pub service: String,
    /// The node there.
    pub node: String,
    /// See [`FollowedList::action`].
    #[serde(default)]
    action: Option<String>,
}

impl FollowedList {
    /// What is done with those on it; `None`: only rules that name the list apply.
    pub fn action(&self) -> Option<crate::control::rule::Action> {
        use crate::control::rule::Action;
        match self.action.as_deref() {
            Some("reject") => Some(Action::Reject { condition: None, text: None }),
            Some("drop") => Some(Action::Drop),
            Some("hold") => Some(Action::Hold),
            Some("text-only") => Some(Action::TextOnly),
            _ => None,
        }
    }
}

/// `[data_policy]`: what only the operator knows (XEP-0504).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPolicy {
    /// A URI.
    pub tos: Option<String>,
    /// Whether the disk is encrypted.
    pub encryption_at_rest: bool,
    /// Who may see users' data.
    pub access: Vec<String>,
    /// How often backups are made.
    pub backup_frequency: Option<Duration>,
    /// How long they are kept.
    pub backup_retention: Option<Duration>,
    /// For people.
    pub text: Option<String>,
}

impl Federation {
    /// Whether dialback may prove `domain`.
    pub fn dialback_with(&self, domain: &str) -> bool {
        self.domains.get(domain).and_then(|policy| policy.dialback).unwrap_or(self.dialback)
    }

    /// Whether the operator blocked `domain` or a domain above it.
    pub fn blocked(&self, domain: &str) -> bool {
        let mut rest = Some(domain);
        while let Some(name) = rest {
            if self.domains.get(name).is_some_and(|policy| policy.block) {
                return true;
            }
            rest = name.split_once('.').map(|(_, parent)| parent);
        }
        false
    }
}

/// `[consent]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consent {
    /// Addresses that one user has written to.
    pub conversations: usize,
    /// Of one stranger to one user.
    pub held_stanzas: usize,
    /// Of one stranger to one user.
    pub held_bytes: usize,
    /// Of all strangers to one user.
    pub account_bytes: usize,
    /// Users that one stranger waits for.
    pub sender_requests: usize,
    /// First contacts of one domain that wait.
    pub domain_requests: usize,
    /// Until what waits goes.
    pub age: Duration,
    /// Until a declined stranger may ask again.
    pub declined_age: Duration,
    /// Stanzas not sorted yet.
    pub intake_stanzas: usize,
    /// Of one domain.
    pub intake_peer_stanzas: usize,
}

/// `[push]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Push {
    /// false: nobody is woken.
    pub enabled: bool,
    /// What is told to push services in the open.
    pub summary: Vec<PushSummary>,
}

/// A part of the summary in a push (XEP-0357 s.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PushSummary {
    /// How many messages.
    Count,
    /// Who sent the last one.
    Sender,
    /// What it says, if it is not encrypted.
    Body,
}

/// `[components]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Components {
    /// XEP-0114 listeners.
    pub listen: Vec<SocketAddr>,
    /// By domain.
    #[serde(default)]
    pub entries: BTreeMap<String, Component>,
}

/// One component.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Shared secret.
    pub secret: String,
    /// How far it is trusted.
    #[serde(default)]
    pub side: Side,
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Component").field("side", &self.side).finish_non_exhaustive()
    }
}

/// On which side of the federation edge something stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// A part of this provider.
    #[default]
    Inside,
    /// Like another provider.
    Outside,
}

/// `[pubsub]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pubsub {
    /// There is a service.
    pub enabled: bool,
    /// What stands before the domain.
    pub subdomain: String,
    /// Who may make nodes.
    pub create: NodeMakers,
}

/// Who may make nodes at a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeMakers {
    /// Administrators.
    Admins,
    /// Users of its domain.
    Users,
    /// Everybody.
    Anyone,
}

/// `[web]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Web {
    /// HTTP listeners.
    pub listen: Vec<SocketAddr>,
}

/// `[http]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// HTTP listeners.
    pub listen: Vec<SocketAddr>,
    /// HTTPS listeners.
    pub listen_tls: Vec<SocketAddr>,
    /// Where browsers find these listeners; `None`: at the domain.
    pub url: Option<String>,
    /// This server's addresses, for XEP-0487.
    pub addresses: Vec<IpAddr>,
    /// Whether the web chat is served.
    pub chat: bool,
    /// Reverse proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed.
    pub trusted_proxies: Vec<Network>,
    /// Proxies whose connections begin with a PROXY header.
    pub proxies: Vec<Network>,
    /// Whether this machine itself may sign in without TLS.
    pub plain_from_loopback: bool,
}

/// `[console]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// HTTP listeners; TLS but for loopback.
    pub listen: Vec<SocketAddr>,
    /// Silence before a session ends.
    pub idle_timeout: Duration,
    /// The longest session.
    pub session_lifetime: Duration,
    /// Of one caller.
    pub requests_per_minute: u32,
}

/// `[store]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// See [`Config::database`].
    pub url: String,
}

/// `[limits]`: sizes are bytes, rates are per second.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "each field is documented in keys::KEYS, where the operator's reference comes from"
)]
pub struct Limits {
    pub enabled: bool,
    pub stanza_bytes: usize,
    pub stanza_bytes_outside: usize,
    pub stanza_bytes_unauthenticated: usize,
    pub header_bytes: usize,
    pub depth: usize,
    pub attributes: usize,
    pub namespaces: usize,
    pub nodes: usize,
    pub element_timeout: Duration,
    pub outbox_stanzas: usize,
    pub outbox_bytes: usize,
    pub outbox_standstill: Duration,
    pub unacked_stanzas: usize,
    pub unacked_bytes: usize,
    pub crossing_stanzas: usize,
    pub crossing_bytes: usize,
    pub crossing_peer_stanzas: usize,
    /// Bytes of one peer.
    pub crossing_peer_bytes: usize,
    pub crossing_share: usize,
    pub store_statements: usize,
    pub client_stanzas: u32,
    pub client_stanzas_burst: u32,
    pub client_bytes: u32,
    pub client_bytes_burst: u32,
    pub peer_stanzas: u32,
    pub peer_stanzas_burst: u32,
    pub peer_bytes: u32,
    pub peer_bytes_burst: u32,
    pub connections_per_minute: u32,
    pub offline_messages: usize,
    pub offline_bytes: usize,
    pub archive_bytes: usize,
    pub archive_page: usize,
    pub held_requests: usize,
    pub roster_items: usize,
    pub blocked_items: usize,
    pub directed_presence: usize,
    pub vcard_bytes: usize,
    pub private_bytes: usize,
    pub pubsub_nodes: usize,
    pub pubsub_items: usize,
    pub pubsub_item_bytes: usize,
    pub pubsub_bytes: usize,
    pub pubsub_service_nodes: usize,
    pub iq_timeout: Duration,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// `tracing` filter directives.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

/// `[traces]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traces {
    /// A collector's URL; `None`: no traces.
    pub endpoint: Option<String>,
    /// One of so many is sent.
    pub one_in: u32,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people, with time stamps.
    Text,
    /// For people, without time stamps.
    Journal,
    /// For programs.
    Json,
}
