//! Who asks for an operation, through which face, and what they may.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who asks for an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// For the audit log: an address, a token's name, a trigger's name.
    pub name: String,
    /// Through which face.
    pub face: Face,
    /// What they may.
    pub scopes: Vec<Scope>,
}

/// A way to reach the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// The control socket: who may open it may do everything.
    CommandLine,
    /// HTTP with a token.
    Api,
    /// HTTP with a session of the console.
    Console,
    /// XMPP ad-hoc commands.
    AdHoc,
    /// The server itself: something happened.
    Trigger,
    /// The server itself: the configuration was read.
    Configuration,
}

/// What a token or a role permits. Each includes nothing of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// See how the server and federation are.
    Read,
    /// Handle reports and requests, warn, limit and block.
    Moderate,
    /// Policy, breaker, lists, reload.
    Operate,
    /// Accounts, invitations, tokens.
    Accounts,
    /// Read the audit log: it names accounts, moderators and their reasons.
    Audit,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Scope; 5] = [Scope::Read, Scope::Moderate, Scope::Operate, Scope::Accounts, Scope::Audit];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Moderate => "moderate",
            Scope::Operate => "operate",
            Scope::Accounts => "accounts",
            Scope::Audit => "audit",
        }
    }
}

impl Actor {
    /// Whoever can open the control socket.
    pub fn command_line() -> Actor {
        Actor { name: "command line".into(), face: Face::CommandLine, scopes: Scope::ALL.to_vec() }
    }

    /// The server itself, because of `name`.
    pub fn trigger(name: impl Into<String>) -> Actor {
        Actor { name: name.into(), face: Face::Trigger, scopes: Scope::ALL.to_vec() }
    }

    /// Somebody with these scopes who sends ad-hoc commands.
    pub fn ad_hoc(address: impl Into<String>, scopes: Vec<Scope>) -> Actor {
        Actor { name: address.into(), face: Face::AdHoc, scopes }
    }

    /// May do what needs `scope`.
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}

impl fmt::Display for Face {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Face::CommandLine => "command-line",
            Face::Api => "api",
            Face::Console => "console",
            Face::AdHoc => "ad-hoc",
            Face::Trigger => "trigger",
            Face::Configuration => "configuration",
        })
    }
}
