//! Accounts for all servers without registering each: one is made with the command of ours, and its SCRAM keys are
//! given to all others, at the peers too. So the generator's work for a login is the same everywhere.

use std::path::Path;

use rusqlite::{Connection, params};

/// The account that all others are copies of.
pub(super) const TEMPLATE: &str = "template";

/// The `state` of a contact in a roster, subscribed both ways (crates/server/src/route/roster.rs).
const BOTH: i64 = 1 | 1 << 1 | 1 << 5;

/// Which accounts: `load0`, `load1`, .. and so on for each prefix.
#[derive(Clone, Debug)]
pub(super) struct Accounts {
    pub(super) groups: Vec<(&'static str, u32)>,
    /// Every tenth account of the first group has contacts.
    pub(super) contacts: bool,
    /// The first account of this group and all others of it see each other's presence.
    pub(super) star: Option<(&'static str, u32)>,
}

impl Accounts {
    /// Accounts and one contact each, subscribed both ways.
    pub(super) fn friendships(&self) -> impl Iterator<Item = (String, String)> {
        self.star.into_iter().flat_map(|(prefix, count)| {
            (1..count).flat_map(move |n| {
                let (first, other) = (format!("{prefix}0"), format!("{prefix}{n}"));
                [(first.clone(), other.clone()), (other, first)]
            })
        })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.groups.iter().flat_map(|(prefix, count)| (0..*count).map(move |n| format!("{prefix}{n}")))
    }
}

/// What a server keeps of a password for SCRAM-SHA-256 (RFC 5802 s.3).
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) salt: Vec<u8>,
    pub(super) iterations: u32,
    pub(super) stored_key: Vec<u8>,
    pub(super) server_key: Vec<u8>,
}

/// Puts accounts into the store of our server, which must not run.
pub(super) fn fill(database: &Path, wanted: &Accounts) -> rusqlite::Result<()> {
    let mut db = Connection::open(database)?;
    db.pragma_update(None, "synchronous", "OFF")?;
    let transaction = db.transaction()?;
    let template: i64 =
        transaction.query_row("SELECT id FROM accounts WHERE local = ?1", [TEMPLATE], |row| row.get(0))?;
    for (prefix, count) in &wanted.groups {
        transaction.execute(
            "WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < ?2) \
             INSERT INTO accounts (host_id, local, created_at) \
             SELECT host_id, ?1 || n, created_at FROM numbers JOIN accounts ON accounts.id = ?3",
            params![prefix, count, template],
        )?;
    }
    transaction.execute(
        "INSERT INTO credentials (account_id, mechanism, salt, iterations, stored_key, server_key) \
         SELECT accounts.id, mechanism, salt, iterations, stored_key, server_key \
         FROM accounts CROSS JOIN credentials \
         WHERE accounts.id <> ?1 AND credentials.account_id = ?1 ORDER BY accounts.id",
        [template],
    )?;
    if let Some((prefix, _)) = wanted.groups.first().filter(|_| wanted.contacts) {
        transaction.execute(
            "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 10) \
             INSERT INTO roster (account, jid, name, state, groups_json, version) \
             SELECT accounts.id, ?1 || (accounts.id + n) || '@' || hosts.name, 'Contact ' || n, ?3, '[\"Friends\"]', 1 \
             FROM accounts JOIN hosts ON hosts.id = accounts.host_id CROSS JOIN numbers \
             WHERE accounts.id <> ?2 AND accounts.id % 10 = 0",
            params![prefix, template, BOTH],
        )?;
    }
    for (account, contact) in wanted.friendships() {
        transaction.execute(
            "INSERT INTO roster (account, jid, state, groups_json, version) \
             SELECT accounts.id, ?2 || '@' || hosts.name, ?3, '[]', 1 \
             FROM accounts JOIN hosts ON hosts.id = accounts.host_id WHERE local = ?1",
            params![account, contact, BOTH],
        )?;
    }
    transaction
        .execute("UPDATE accounts SET roster_version = 1 WHERE id IN (SELECT account FROM roster)", [])?;
    transaction.commit()?;
    db.pragma_update(None, "wal_checkpoint", "TRUNCATE")?;
    db.close().map_err(|(_, error)| error)
}

/// The template's keys.
pub(super) fn keys(database: &Path) -> rusqlite::Result<Keys> {
    Connection::open(database)?.query_row(
        "SELECT salt, iterations, stored_key, server_key FROM credentials \
         JOIN accounts ON accounts.id = credentials.account_id \
         WHERE accounts.local = ?1 AND mechanism = 'SCRAM-SHA-256'",
        [TEMPLATE],
        |row| {
            Ok(Keys {
                salt: row.get(0)?,
                iterations: row.get(1)?,
                stored_key: row.get(2)?,
                server_key: row.get(3)?,
            })
        },
    )
}
