//! What can go wrong, and whose fault it is.

use std::{io, path::PathBuf};

use rusqlite::ffi;

/// Why a batch or a read did not happen. When this is returned nothing of the batch is visible.
///
/// After a failed *commit* ([`Full`](StoreError::Full), [`Io`](StoreError::Io)) followed by a power cut, the batch
/// may nevertheless turn out to be there, whole: its bytes may have reached the disk without our being told. So an
/// error means "not acknowledged", and who repeats does it under the same id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk, or this user's share of it, is full. The writer goes on and recovers when there is room again.
    #[error("the disk is full")]
    Full,
    /// A statement that [must change](crate::Statement::must_change) something found nothing to change.
    #[error("the data changed meanwhile")]
    Conflict,
    /// The data would violate a constraint of the schema. The text names table and columns, never values.
    #[error("constraint violated: {1}")]
    Constraint(Violation, String),
    /// The database file is damaged.
    #[error("the database is damaged: {0}")]
    Corrupt(String),
    /// The operating system failed to read, write or sync.
    #[error("input or output failed: {0}")]
    Io(String),
    /// The store was shut down.
    #[error("the store is closed")]
    Closed,
    /// Anything else: as a rule a mistake in a statement.
    #[error("{0}")]
    Other(String),
}

impl StoreError {
    /// A stable name for counters and logs.
    pub fn label(&self) -> &'static str {
        match self {
            StoreError::Full => "full",
            StoreError::Conflict => "conflict",
            StoreError::Constraint(..) => "constraint",
            StoreError::Corrupt(_) => "corrupt",
            StoreError::Io(_) => "io",
            StoreError::Closed => "closed",
            StoreError::Other(_) => "other",
        }
    }
}

/// Which kind of constraint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// Such a row is there already.
    Unique,
    /// The row that is referred to does not exist, or is still referred to.
    ForeignKey,
    /// NOT NULL, CHECK or a column's type.
    Value,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        let rusqlite::Error::SqliteFailure(code, text) = &error else {
            return StoreError::Other(error.to_string());
        };
        let text = text.clone().unwrap_or_else(|| code.to_string());
        match (code.extended_code & 0xff, code.extended_code) {
            (ffi::SQLITE_FULL, _) => StoreError::Full,
            (
                _,
                ffi::SQLITE_CONSTRAINT_UNIQUE
                | ffi::SQLITE_CONSTRAINT_PRIMARYKEY
                | ffi::SQLITE_CONSTRAINT_ROWID,
            ) => StoreError::Constraint(Violation::Unique, text),
            (_, ffi::SQLITE_CONSTRAINT_FOREIGNKEY) => StoreError::Constraint(Violation::ForeignKey, text),
            (ffi::SQLITE_CONSTRAINT, _) => StoreError::Constraint(Violation::Value, text),
            (ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB, _) => StoreError::Corrupt(text),
            (ffi::SQLITE_IOERR | ffi::SQLITE_CANTOPEN | ffi::SQLITE_READONLY, extended) => {
                StoreError::Io(format!("{text} (SQLite code {extended})"))
            }
            _ => StoreError::Other(text),
        }
    }
}

/// Why a database could not be opened. The texts are for the operator and say what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be created, read or locked.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Another process has it open.
    #[error(
        "{path} is in use by {holder}. Only one process may open a database: stop that one first, or use the commands \
         that talk to it",
        path = path.display()
    )]
    InUse {
        /// The database.
        path: PathBuf,
        /// Process id and program, as the lock file says.
        holder: String,
    },
    /// Written by a newer version of this program.
    #[error(
        "{path} was written by a newer version of this program: its schema is at version {found} (\"{name}\"), this \
         program knows versions up to {known}. Install the newer program again, or restore a backup made before the \
         upgrade. Nothing was changed",
        path = path.display()
    )]
    NewerVersion {
        /// The database.
        path: PathBuf,
        /// The schema version in the file.
        found: usize,
        /// The newest version this program knows.
        known: usize,
        /// The name of the newest migration in the file.
        name: String,
    },
    /// The history of the schema differs from the one this program knows.
    #[error(
        "{path}: schema version {version} is \"{found}\" in the database but \"{known}\" in this program, or its text \
         differs: it comes from another build. Run the build that made it. Nothing was changed",
        path = path.display()
    )]
    Diverged {
        /// The database.
        path: PathBuf,
        /// The first version that differs.
        version: usize,
        /// The name in the file.
        found: String,
        /// The name in this program.
        known: String,
    },
    /// A SQLite database, but not one of ours; or not a database at all.
    #[error("{path} is not a database of this program ({why}). Nothing was changed", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// How one can tell.
        why: String,
    },
    /// A migration failed; its changes were rolled back.
    #[error("{path}: upgrading the schema to version {version} (\"{name}\") failed: {error}", path = path.display())]
    Migration {
        /// The database.
        path: PathBuf,
        /// The version that could not be reached.
        version: usize,
        /// The migration's name.
        name: String,
        /// What failed.
        error: StoreError,
    },
    /// SQLite could not set the database up.
    #[error("{path}: {error}", path = path.display())]
    Setup {
        /// The database.
        path: PathBuf,
        /// What failed.
        error: StoreError,
    },
    /// A thread could not be started.
    #[error("cannot start a thread for the store: {0}")]
    Thread(io::Error),
}
