//! What must survive: statements, batches and migrations on SQLite.
//!
//! The server describes its writes as data ([`Batch`] of [`Statement`]s) and hands them to a [`Db`]. One thread
//! owns the only connection that writes; it takes what is queued, runs it in one transaction and syncs once for
//! all of it (group commit). Whoever is told `Ok` may acknowledge: the data is on disk then.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use trunkline_store::{Batch, Db, Lane, Migration, Options, sql};
//!
//! const MIGRATIONS: &[Migration] =
//!     &[Migration { name: "notes", sql: "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT" }];
//!
//! let db = Db::open(Options::file("notes.sqlite", MIGRATIONS))?;
//! let mut batch = Batch::new(Lane::Inside);
//! batch.push(sql("INSERT INTO notes (id, body) VALUES (?1, ?2)").bind(1).bind("art thou not Romeo"));
//! db.run(batch).await?;
//! let rows = db.read(sql("SELECT body FROM notes WHERE id = ?1").bind(1)).await?;
//! assert_eq!(rows.first().map(|row| row.text(0)), Some("art thou not Romeo"));
//! # Ok(()) }
//! ```
//!
//! Invariants, most of them about what is absent:
//! - No transaction is ever open while somebody waits for something else than the disk: a batch is complete when it
//!   is handed over, and read-modify-write is conditional SQL ([`Statement::must_change`]).
//! - No SQL is built at run time: a statement's text is `&'static str`, values are bound.
//! - A batch that fails fails alone; a commit that fails fails for each batch of its group, and is rolled back.
//! - Batches of one lane run in the order in which they were handed over.
//! - Values never appear in errors, logs or `Debug` output: they may be what people wrote to each other.

mod db;
mod engine;
mod error;
mod file;
mod migrate;
mod queue;
mod reader;
mod statement;
#[cfg(feature = "test-vfs")]
pub mod testvfs;
mod value;

pub use db::{Db, Options, Stats, inspect};
pub use error::{OpenError, StoreError, Violation};
pub use migrate::Migration;
pub use statement::{Batch, Lane, Statement, Ticket, sql};
pub use value::{Row, Rows, Value};
