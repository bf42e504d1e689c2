//! The history of the database's schema. Only ever append: see [`trunkline_store::Migration`].
//!
//! Rows carry the id of their host and their account; ids of accounts are never used again, so that what a removed
//! account left somewhere can't become another person's.

use trunkline_store::Migration;

/// Every migration, oldest first.
pub const MIGRATIONS: &[Migration] = &[Migration {
    name: "accounts",
    sql: "
        CREATE TABLE hosts (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE
        );
        CREATE TABLE accounts (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            host_id INTEGER NOT NULL REFERENCES hosts (id),
            local TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            disabled INTEGER NOT NULL DEFAULT 0,
            UNIQUE (host_id, local)
        );
        CREATE TABLE credentials (
            account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
            mechanism TEXT NOT NULL,
            salt BLOB NOT NULL,
            iterations INTEGER NOT NULL,
            stored_key BLOB NOT NULL,
            server_key BLOB NOT NULL,
            PRIMARY KEY (account_id, mechanism)
        );
    ",
}];
