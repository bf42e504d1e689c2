//! The schema's history: a list that is only ever appended to.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::error::{OpenError, StoreError};

/// One step of the schema. Its place in the list is its version, counted from 1; neither its place, name nor text may
/// change once it was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// A short name for operators, such as `roster-preapproval`.
    pub name: &'static str,
    /// One or more statements. They run in one transaction; foreign keys are checked at its end.
    pub sql: &'static str,
}

/// Marks the file as ours ("TrnK"), see SQLite's `PRAGMA application_id`.
const APPLICATION_ID: i64 = 0x5472_6e4b;

/// How many of `migrations` the database has. Changes nothing, so that a refusal leaves the file as it was.
pub(crate) fn inspect(conn: &Connection, path: &Path, migrations: &[Migration]) -> Result<usize, OpenError> {
    let foreign = |why: &str| OpenError::Foreign { path: path.to_owned(), why: why.to_owned() };
    let setup = |error: rusqlite::Error| match StoreError::from(error) {
        StoreError::Corrupt(text) => foreign(&text),
        error => OpenError::Setup { path: path.to_owned(), error },
    };
    let tables: i64 =
        conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(setup)?;
    if tables == 0 {
        return Ok(0);
    }
    let mark: i64 = conn.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(setup)?;
    if mark != APPLICATION_ID {
        return Err(foreign("it has tables but not this program's mark"));
    }
    let applied = history(conn).map_err(setup)?;
    for (index, (found, checksum)) in applied.iter().enumerate() {
        match migrations.get(index) {
            Some(known) if known.name == found && fingerprint(known.sql) == *checksum => {}
            Some(known) => {
                return Err(OpenError::Diverged {
                    path: path.to_owned(),
                    version: index + 1,
                    found: found.clone(),
                    known: known.name.to_owned(),
                });
            }
            None => {
                return Err(OpenError::NewerVersion {
                    path: path.to_owned(),
                    found: applied.len(),
                    known: migrations.len(),
                    name: applied.last().map(|(name, _)| name.clone()).unwrap_or_default(),
                });
            }
        }
    }
    Ok(applied.len())
}

fn history(conn: &Connection) -> rusqlite::Result<Vec<(String, i64)>> {
    let mut statement = conn.prepare("SELECT name, checksum FROM schema ORDER BY version")?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Runs the migrations behind the first `applied`, each in a transaction of its own.
pub(crate) fn apply(
    conn: &mut Connection,
    path: &Path,
    migrations: &[Migration],
    applied: usize,
) -> Result<(), OpenError> {
    let setup = |error: rusqlite::Error| OpenError::Setup { path: path.to_owned(), error: error.into() };
    // Rebuilding a table needs them off, and inside a transaction the pragma is without effect. `step` checks instead.
    conn.pragma_update(None, "foreign_keys", false).map_err(setup)?;
    if applied == 0 {
        mark(conn).map_err(setup)?;
    }
    for (index, migration) in migrations.iter().enumerate().skip(applied) {
        step(conn, index + 1, migration).map_err(|error| OpenError::Migration {
            path: path.to_owned(),
            version: index + 1,
            name: migration.name.to_owned(),
            error,
        })?;
        tracing::info!(version = index + 1, name = migration.name, "schema upgraded");
    }
    conn.pragma_update(None, "foreign_keys", true).map_err(setup)
}

/// Makes an empty file ours.
fn mark(conn: &mut Connection) -> rusqlite::Result<()> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.execute_batch(
        "CREATE TABLE IF NOT EXISTS schema (
             version INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum INTEGER NOT NULL, applied INTEGER NOT NULL
         ) STRICT",
    )?;
    tx.commit()
}

fn step(conn: &mut Connection, version: usize, migration: &Migration) -> Result<(), StoreError> {
    // A deferred foreign key is checked at COMMIT: there the fault of one batch would fail its whole group.
    let words: Vec<String> = migration.sql.split_whitespace().map(str::to_ascii_uppercase).collect();
    if words.join(" ").contains("INITIALLY DEFERRED") {
        return Err(StoreError::Other("deferred foreign keys are not allowed".into()));
    }
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute_batch(migration.sql)?;
    let broken: i64 = tx.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0))?;
    if broken > 0 {
        return Err(StoreError::Other(format!("{broken} rows refer to rows that do not exist")));
    }
    tx.execute(
        "INSERT INTO schema (version, name, checksum, applied) VALUES (?1, ?2, ?3, unixepoch())",
        (version as i64, migration.name, fingerprint(migration.sql)),
    )?;
    Ok(tx.commit()?)
}

/// FNV-1a, 64 bits. It finds edits made by mistake; nobody is kept out by it.
fn fingerprint(text: &str) -> i64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash.cast_signed()
}
