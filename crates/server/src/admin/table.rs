//! THE TABLE of operations: what each is called on every face, and what it takes to be allowed to.
//!
//! From it come the HTTP API with its description, the ad-hoc commands and the check of every caller. A new operation
//! is a variant in [`super::Operation`] (or in the `..Op` of its part) and a row here; a test fails without.

use super::actor::Scope;

/// How an operation is asked for over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Changes nothing; the fields are the query.
    Get,
    /// Changes something; the fields are the JSON body.
    Post,
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The value of `op`.
    pub op: &'static str,
    /// The value of `do`, for operations of a part; else empty.
    pub act: &'static str,
    /// GET or POST.
    pub method: Method,
    /// Below `/api/v1`.
    pub path: &'static str,
    /// What the caller needs.
    pub scope: Scope,
    /// One line for people.
    pub summary: &'static str,
}

impl Row {
    /// Whether it changes something: such an operation leaves an entry in the audit log. The scope `read` never
    /// permits one.
    pub fn changes(&self) -> bool {
        self.method == Method::Post && self.scope != Scope::Read
    }
}

const fn get(
    op: (&'static str, &'static str),
    path: &'static str,
    scope: Scope,
    summary: &'static str,
) -> Row {
    Row { op: op.0, act: op.1, method: Method::Get, path, scope, summary }
}

const fn post(
    op: (&'static str, &'static str),
    path: &'static str,
    scope: Scope,
    summary: &'static str,
) -> Row {
    Row { op: op.0, act: op.1, method: Method::Post, path, scope, summary }
}

use Scope::{Accounts, Audit, Moderate, Operate, Read};

/// Every operation.
pub const TABLE: &[Row] = &[
    post(("user-add", ""), "/accounts/add", Accounts, "Add an account"),
    post(("user-passwd", ""), "/accounts/password", Accounts, "Set an account's password"),
    post(("user-remove", ""), "/accounts/remove", Accounts, "Remove an account with everything it owns"),
    post(("user-disable", ""), "/accounts/disable", Accounts, "Disable an account"),
    post(("user-enable", ""), "/accounts/enable", Accounts, "Enable a disabled account again"),
    get(("user-list", ""), "/accounts", Accounts, "List accounts"),
    get(("user-show", ""), "/accounts/show", Accounts, "What is known of an account"),
    get(("user-count", ""), "/accounts/count", Read, "How many accounts there are"),
    get(("user-clients", ""), "/accounts/devices", Accounts, "The devices of an account"),
    post(("user-client-end", ""), "/accounts/end-device", Accounts, "Sign a device of an account out"),
    post(("kick", ""), "/accounts/end-sessions", Accounts, "End the sessions of an account"),
    post(("announce", ""), "/announce", Operate, "Send a message to whoever is online, or to everybody"),
    get(("motd", "show"), "/motd", Read, "The message of the day"),
    post(("motd", "set"), "/motd", Operate, "Set a message of the day"),
    post(("motd", "edit"), "/motd/edit", Operate, "Correct the message of the day"),
    post(("motd", "delete"), "/motd/delete", Operate, "Take the message of the day back"),
    post(("invite-create", ""), "/invitations/create", Accounts, "Make an invitation"),
    post(
        ("user-totp-reset", ""),
        "/accounts/reset-second-factor",
        Accounts,
        "Take the second factor off an account",
    ),
    get(("tokens", "list"), "/tokens", Accounts, "Tokens of the HTTP API"),
    post(("tokens", "create"), "/tokens/create", Accounts, "Make a token; its secret is shown once"),
    post(("tokens", "revoke"), "/tokens/revoke", Accounts, "End a token"),
    post(("reload", ""), "/reload", Operate, "Read the configuration and the certificates again"),
    get(("status", ""), "/status", Read, "How the server is"),
    get(("federation-status", ""), "/federation", Read, "Streams to other servers"),
    post(("federation-close", ""), "/federation/close", Operate, "Cut off a domain or all of the outside"),
    post(("federation-open", ""), "/federation/open", Operate, "Take a close back"),
    get(("policy", "show"), "/policy", Read, "The rules in force"),
    post(("policy", "set-preset"), "/policy/preset", Operate, "Change the preset"),
    post(("policy", "add"), "/policy/add", Operate, "Add a rule"),
    post(("policy", "replace"), "/policy/replace", Operate, "Replace a rule"),
    post(("policy", "move"), "/policy/move", Operate, "Move a rule"),
    post(("policy", "remove"), "/policy/remove", Operate, "Remove a rule"),
    post(("policy", "test"), "/policy/test", Read, "Test a stanza against the rules"),
    post(("policy", "block"), "/policy/block", Moderate, "Block a domain"),
    post(("policy", "unblock"), "/policy/unblock", Moderate, "Take a block back"),
    get(("policy", "export"), "/policy/blocks", Read, "Export the blocks"),
    post(("policy", "import"), "/policy/blocks", Operate, "Import blocks"),
    get(("breaker", "show"), "/breaker", Read, "The levels in force"),
    post(("breaker", "set"), "/breaker", Operate, "Set a level"),
    get(("audit", "list"), "/audit", Audit, "Who changed what"),
    get(("requests", "list"), "/requests", Moderate, "First contacts that wait for consent"),
    post(("requests", "drop"), "/requests/drop", Moderate, "Throw first contacts away"),
    get(("reports", "list"), "/reports", Moderate, "What users reported"),
    get(("reports", "show"), "/reports/show", Moderate, "One report"),
    post(("reports", "decide"), "/reports/decide", Moderate, "Act on a report"),
    get(("lists", "show"), "/lists", Read, "Block lists"),
    post(("lists", "subscribe"), "/lists/subscribe", Operate, "Follow a list"),
    post(("lists", "unsubscribe"), "/lists/unsubscribe", Operate, "Stop following a list"),
    get(("lists", "items"), "/lists/items", Read, "What is on a list"),
    post(("lists", "publish"), "/lists/publish", Moderate, "Put somebody on our own list"),
    post(("lists", "retract"), "/lists/retract", Moderate, "Take somebody off our own list"),
    get(("lists", "subscribers"), "/lists/subscribers", Moderate, "Who follows our own list"),
    post(
        ("lists", "remove-subscriber"),
        "/lists/remove-subscriber",
        Moderate,
        "End subscriptions of our own list",
    ),
    get(("domains", "now"), "/now", Read, "Inside and outside at this moment"),
    get(("domains", "list"), "/domains", Read, "Peer domains"),
    get(("domains", "show"), "/domains/show", Read, "All about one domain"),
    get(("domains", "history"), "/domains/history", Read, "How it was"),
];

/// The row of an operation.
pub fn row(op: &str, act: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.op == op && row.act == act)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::admin::Operation;

    /// The names in the schema of the operations: what the wire accepts.
    fn operations() -> BTreeSet<(String, String)> {
        let schema = schemars::schema_for!(Operation).to_value();
        let resolve = |value: &serde_json::Value| match value.get("$ref").and_then(|name| name.as_str()) {
            Some(name) => schema["$defs"][name.rsplit('/').next().unwrap_or_default()].clone(),
            None => value.clone(),
        };
        let constant = |value: &serde_json::Value, name: &str| {
            value["properties"][name]["const"].as_str().unwrap_or_default().to_owned()
        };
        let mut found = BTreeSet::new();
        for variant in schema["oneOf"].as_array().unwrap() {
            let op = constant(variant, "op");
            let part = resolve(variant);
            match part.get("oneOf").and_then(|acts| acts.as_array()) {
                Some(acts) => found.extend(acts.iter().map(|act| (op.clone(), constant(act, "do")))),
                None => assert!(found.insert((op, String::new()))),
            }
        }
        found
    }

    #[test]
    fn every_operation_has_its_row_and_every_row_an_operation() {
        let rows: BTreeSet<_> = TABLE.iter().map(|row| (row.op.to_owned(), row.act.to_owned())).collect();
        assert_eq!(rows.len(), TABLE.len(), "two rows for one operation");
        assert_eq!(operations(), rows);
        let paths: BTreeSet<_> = TABLE.iter().map(|row| (row.path, row.method == Method::Get)).collect();
        assert_eq!(paths.len(), TABLE.len(), "two operations at one path");
    }
}
