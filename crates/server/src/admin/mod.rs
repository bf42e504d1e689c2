//! Administration: ONE set of operations, whatever asks for them.
//!
//! The command line reaches a running server through [`socket`]; without a running server [`offline`] does what the
//! store alone can do. [`accounts`] is what both do to the accounts table. Deliberately absent: an operation that one
//! face has and another can't have.

pub mod accounts;
pub mod actor;
pub mod api;
pub mod check;
pub mod console;
pub mod init;
pub mod offline;
pub mod output;
mod output_policy;
pub mod schema;
pub mod socket;
pub mod table;
pub mod tokens;
pub mod totp;

use std::fmt;
use std::future::Future;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::Reload;
use crate::control::audit::{AuditEntry, AuditOp};
use crate::control::breaker::{BreakerOp, BreakerView};
use crate::control::lists::{ListEntry, ListView, ListsOp, Subscriber};
use crate::control::policy::{PolicyOp, PolicyView, TestResult};
use crate::control::reports::{ReportView, ReportsOp};
use crate::control::requests::{RequestView, RequestsOp};
use crate::control::traffic::{DomainDetail, DomainSummary, DomainsOp, HistoryPoint, NowView};
use crate::devices::Device;
use crate::notices::MotdOp;

use actor::{Actor, Scope};
use tokens::{TokenView, TokensOp};

/// Runs operations: the exchange does, and [`offline::Offline`] for those that need no running server.
pub trait Admin: Send + Sync + 'static {
    /// Runs one operation to its end for `actor`: when it returns `Ok`, what it did is durable.
    fn run(
        &self,
        actor: &Actor,
        operation: Operation,
    ) -> impl Future<Output = Result<Outcome, OpError>> + Send;
}

/// What can be asked for. Addresses are as people write them; whoever runs the operation parses them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Operation {
    /// Makes an account.
    UserAdd {
        /// `user@domain`
        address: String,
        /// Its password.
        password: Password,
    },
    /// Sets a new password. All devices are signed out.
    UserPasswd {
        /// `user@domain`
        address: String,
        /// The new one.
        password: Password,
    },
    /// Removes an account with everything it owns.
    UserRemove {
        /// `user@domain`
        address: String,
    },
    /// Disables an account: nobody can log in to it, and it is met like one that does not exist. What it owns stays.
    UserDisable {
        /// `user@domain`
        address: String,
    },
    /// Enables a disabled account again.
    UserEnable {
        /// `user@domain`
        address: String,
    },
    /// Lists accounts, in the order of their addresses, a page at a time.
    UserList {
        /// Of this domain only.
        domain: Option<String>,
        /// After this address: the last one of the page before.
        after: Option<String>,
        /// Not all of them.
        #[serde(default)]
        only: Option<Only>,
    },
    /// What is known of an account.
    UserShow {
        /// `user@domain`
        address: String,
    },
    /// How many accounts there are.
    UserCount {
        /// Of this domain only.
        #[serde(default)]
        domain: Option<String>,
    },
    /// Sends a message to whoever is online, or to everybody.
    Announce {
        /// What it says.
        text: String,
        /// To accounts of this domain only.
        #[serde(default)]
        domain: Option<String>,
        /// To those who are not online, too: it waits for them.
        #[serde(default)]
        all: bool,
    },
    /// The message of the day.
    Motd(MotdOp),
    /// Takes the second factor off an account, when its owner has lost it.
    UserTotpReset {
        /// `user@domain`
        address: String,
    },
    /// The devices of an account.
    UserClients {
        /// `user@domain`
        address: String,
    },
    /// Signs a device out: its sessions and its token end.
    UserClientEnd {
        /// `user@domain`
        address: String,
        /// Its id, from the list.
        client: String,
    },
    /// Reads the configuration and the certificates again.
    Reload,
    /// How the server is.
    Status,
    /// How the streams to other servers are.
    FederationStatus,
    /// Cuts off one domain, or all of the outside, until opened again or restarted.
    FederationClose {
        /// Which one.
        domain: Option<String>,
        /// Everybody. One of the two has to be said.
        #[serde(default)]
        all: bool,
    },
    /// Takes a close back.
    FederationOpen {
        /// `None`: all.
        domain: Option<String>,
    },
    /// Ends the sessions of an account, or one of them.
    Kick {
        /// `user@domain` or `user@domain/resource`
        address: String,
    },
    /// Makes an invitation: a link with which one account can be registered.
    InviteCreate {
        /// On this domain; `None`: the first.
        domain: Option<String>,
    },
    /// The rules for outsiders.
    Policy(PolicyOp),
    /// The graded cut-off.
    Breaker(BreakerOp),
    /// The audit log.
    Audit(AuditOp),
    /// First contacts that wait for consent.
    Requests(RequestsOp),
    /// What users reported.
    Reports(ReportsOp),
    /// Block lists.
    Lists(ListsOp),
    /// Peer domains: counters and history.
    Domains(DomainsOp),
    /// Tokens for the HTTP API.
    Tokens(TokensOp),
}

impl Operation {
    /// Its row in [`table::TABLE`].
    pub fn row(&self) -> Option<&'static table::Row> {
        let json = serde_json::to_value(self).ok()?;
        let text = |name: &str| json.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
        table::row(text("op"), text("do"))
    }

    /// What the caller needs.
    pub fn scope(&self) -> Scope {
        self.row().map_or(Scope::Accounts, |row| row.scope)
    }
}

/// Which accounts of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Only {
    /// Those that nobody can log in to.
    Disabled,
    /// Those of which a device is available.
    Online,
    /// Of these, those of which a device is neither away nor away for long.
    Active,
    /// Of these, the others.
    Idle,
}

/// How many accounts one page of a list has at most.
pub const PAGE: usize = 500;

/// What an operation came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// It is done. The text says what.
    Done {
        /// One sentence.
        text: String,
    },
    /// A page of accounts.
    Users {
        /// In the order of their addresses.
        users: Vec<User>,
        /// Whether there are more after the last of these.
        more: bool,
    },
    /// What is known of an account.
    Account(Box<AccountView>),
    /// How many accounts there are.
    Counts(Counts),
    /// The message of the day.
    Motd {
        /// `None`: there is none.
        text: Option<String>,
        /// Milliseconds since 1970.
        set_at: Option<i64>,
    },
    /// The devices of an account.
    Clients {
        /// Connected ones first.
        clients: Vec<Device>,
    },
    /// The configuration was read.
    Reloaded {
        /// What changed.
        #[serde(flatten)]
        reload: Reload,
    },
    /// How the server is.
    Status(Box<Status>),
    /// How federation is.
    Federation(FederationStatus),
    /// An invitation.
    Invitation {
        /// `xmpp:...?register;preauth=...`
        uri: String,
        /// Milliseconds since 1970.
        expires_at: i64,
    },
    /// The rules in force.
    Policy(PolicyView),
    /// What would become of a stanza.
    Tested(TestResult),
    /// A file.
    File {
        /// Its MIME type.
        media_type: String,
        /// What is in it.
        text: String,
    },
    /// The levels in force.
    Breaker(BreakerView),
    /// A page of the audit log.
    Audit {
        /// Newest first.
        entries: Vec<AuditEntry>,
        /// Whether there are older ones.
        more: bool,
    },
    /// A page of first contacts.
    Requests {
        /// Newest first.
        requests: Vec<RequestView>,
        /// Whether there are older ones.
        more: bool,
    },
    /// A page of reports.
    Reports {
        /// Newest first.
        reports: Vec<ReportView>,
        /// Whether there are older ones.
        more: bool,
    },
    /// One report.
    Report(Box<ReportView>),
    /// All lists.
    Lists {
        /// Our own last.
        lists: Vec<ListView>,
    },
    /// A page of a list.
    ListItems {
        /// In order.
        items: Vec<ListEntry>,
        /// Whether there are more.
        more: bool,
    },
    /// Who follows our own list.
    ListSubscribers {
        /// By domain.
        subscribers: Vec<Subscriber>,
    },
    /// This moment.
    Now(Box<NowView>),
    /// A page of peer domains.
    Domains {
        /// In the order asked for.
        domains: Vec<DomainSummary>,
        /// How many there are in all.
        total: u64,
    },
    /// One peer domain.
    Domain(Box<DomainDetail>),
    /// How it was.
    History {
        /// Milliseconds from one point to the next.
        step: i64,
        /// Oldest first.
        points: Vec<HistoryPoint>,
    },
    /// All tokens.
    Tokens {
        /// By name.
        tokens: Vec<TokenView>,
    },
    /// A new token.
    Token {
        /// What it is called.
        name: String,
        /// The secret: it is not shown again.
        token: String,
    },
}

/// One account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct User {
    /// `user@domain`
    pub address: String,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// No login possible.
    pub disabled: bool,
    /// Connected devices; `None` when the server is not running.
    pub sessions: Option<u32>,
}

/// What is known of an account. Whom it knows and what it writes is nobody's business.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccountView {
    /// `user@domain`
    pub address: String,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// No login possible.
    pub disabled: bool,
    /// When a device became available last: milliseconds since 1970. `None`: never, or before this was noted.
    pub last_login: Option<i64>,
    /// Contacts.
    pub contacts: u64,
    /// The resources of its connected devices.
    pub resources: Vec<String>,
}

/// How many accounts there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counts {
    /// In the database.
    pub registered: u64,
    /// Of these: nobody can log in to them.
    pub disabled: u64,
    /// Of these: a device is available.
    pub online: u64,
    /// Of those online: a device is neither away nor away for long.
    pub active: u64,
    /// Of those online: the others.
    pub idle: u64,
}

/// How the server is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// Of the process.
    pub pid: u32,
    /// Milliseconds since 1970.
    pub started_at: i64,
    /// Our domains with the ends of their certificates.
    pub domains: Vec<DomainStatus>,
    /// What is listened on: `clients 127.0.0.1:5222`.
    pub listeners: Vec<ListenerStatus>,
    /// Accounts in the database.
    pub accounts: u64,
    /// Sessions with a resource.
    pub sessions: u64,
    /// Of these, how many wait for their client to come back.
    pub sessions_waiting: u64,
    /// Peer domains with at least one stream.
    pub peers: u64,
    /// false: the outside is cut off.
    pub federation_open: bool,
    /// Bytes of memory in use.
    pub memory: Option<u64>,
    /// Bytes of the database file.
    pub database: Option<u64>,
    /// Keys that were changed and wait for a restart.
    pub needs_restart: Vec<String>,
    /// What is not well, in words: the failed lines of `/healthz`, and rules and lists that are not as they were meant.
    pub problems: Vec<String>,
}

/// One of our domains.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DomainStatus {
    /// Its name.
    pub name: String,
    /// When its certificate ends: milliseconds since 1970.
    pub certificate_expires_at: Option<i64>,
}

/// One listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListenerStatus {
    /// The key of the configuration, such as `clients.listen`.
    pub name: String,
    /// Where it listens, with the port the system chose for port 0.
    pub address: String,
}

/// How federation is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FederationStatus {
    /// false: the outside is cut off.
    pub open: bool,
    /// By domain.
    pub peers: Vec<PeerStatus>,
}

/// One peer domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerStatus {
    /// The peer's domain.
    pub domain: String,
    /// In a word: `connected`, `connecting`, `waiting` (for the next attempt), `idle`, `blocked`, `closed`.
    pub state: String,
    /// To and from it.
    pub streams: Vec<StreamStatus>,
    /// Stanzas that wait in memory.
    pub queue_stanzas: u64,
    /// Bytes that wait in memory.
    pub queue_bytes: u64,
    /// Messages that wait on disk.
    pub queue_kept: u64,
    /// Since when the oldest kept message waits: milliseconds since 1970.
    #[serde(default)]
    pub queue_oldest: Option<i64>,
    /// The next attempt: milliseconds since 1970.
    pub retry_at: Option<i64>,
    /// The last thing that went wrong, in words.
    pub last_error: Option<LastError>,
}

/// One federation stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamStatus {
    /// `in`, `out` or `both` (XEP-0288).
    pub direction: String,
    /// Our domain.
    pub us: String,
    /// The peer's socket address.
    pub address: String,
    /// How the peer proved its domain: `external`, `dialback`, or nothing yet.
    pub they_proved: Option<String>,
    /// How we proved ours.
    pub we_proved: Option<String>,
    /// `1.3` or `1.2`.
    pub tls: Option<String>,
    /// TLS from the first byte.
    pub direct_tls: bool,
    /// Acknowledged by XEP-0198.
    pub acks: bool,
    /// Milliseconds since 1970.
    pub since: i64,
}

/// What went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastError {
    /// Milliseconds since 1970.
    pub at: i64,
    /// For the operator.
    pub text: String,
}

/// Why an operation was not done. The texts are for the person who asked.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "error", content = "about", rename_all = "kebab-case")]
pub enum OpError {
    /// Theirs: not an address.
    #[error("{0}")]
    BadAddress(String),
    /// Theirs: not a domain of ours.
    #[error("{0} is not a domain of this server (`domain` and [hosts] in the configuration)")]
    UnknownDomain(String),
    /// Theirs: there already.
    #[error("{0} exists already")]
    Exists(String),
    /// Theirs: not there.
    #[error("there is no account {0}")]
    NoSuchUser(String),
    /// Theirs: can't be used as a password.
    #[error("{0}")]
    BadPassword(String),
    /// Theirs: the new configuration has errors; nothing was changed. One line for each problem.
    #[error("the configuration has errors, nothing was changed:\n{0}")]
    Config(String),
    /// Theirs: not possible in this state.
    #[error("{0}")]
    NotPossible(String),
    /// Theirs: the caller's role or token does not permit it.
    #[error("this needs the scope {0}")]
    Forbidden(String),
    /// Theirs: there is no such thing.
    #[error("there is no {0}")]
    NotFound(String),
    /// Theirs: only a running server can do it.
    #[error("the server is not running: start it with `trunkline serve`")]
    NotRunning,
    /// A program's: not a request of this protocol.
    #[error("the request was not understood: {0}")]
    BadRequest(String),
    /// Ours: the store failed.
    #[error("the database failed: {0}")]
    Store(String),
    /// Ours: shutting down.
    #[error("the server is shutting down")]
    Closing,
}

/// A password on its way to becoming SCRAM keys. Never shown, never logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Password(String);

impl Password {
    /// Takes a password as typed.
    pub fn new(password: impl Into<String>) -> Password {
        Password(password.into())
    }

    /// The password itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}
