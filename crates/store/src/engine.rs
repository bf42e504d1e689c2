//! The connection that writes, and the way of a group: begin, run its batches, commit, report.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::{
    Connection, ToSql, ffi,
    types::{ToSqlOutput, ValueRef},
};

use crate::{
    error::StoreError,
    file::{self, Lock},
    queue::{Done, Queue},
    statement::{Batch, Expect, Lane, Statement},
    value::{Rows, Value},
};

/// Statements from inside that one commit takes at most. Larger groups were measured to bring little more throughput,
/// only a longer wait for the first of them (design/001-store.md).
pub(crate) const GROUP: usize = 512;

/// How long batches from outside hold the writer in one turn, and how much they may write in it: the commit that
/// follows takes its time too, and that goes by the pages they touched.
const OUTSIDE_TURN: Duration = Duration::from_millis(5);
const OUTSIDE_STATEMENTS: usize = 64;
const OUTSIDE_BYTES: usize = 512 * 1024;

/// Pages in the log after which it is copied into the database: as soon as nobody waits; at last, whoever waits. A page
/// that many commits have changed is copied once, so that looking away for a while pays.
const CHECKPOINT_IDLE: i64 = 4000;
const CHECKPOINT_BUSY: i64 = 16_000;

/// Statements after which it is worth to ask how long the log is.
const CHECKPOINT_LOOK: u64 = 64;

pub(crate) struct Engine {
    // Closed before the lock is released: fields drop in this order.
    conn: Connection,
    _lock: Option<Lock>,
    /// The database on a real disk, to ask whether that is full.
    disk: Option<PathBuf>,
    counters: Arc<Counters>,
    /// Whether there is a write-ahead log to look after.
    logged: bool,
    unchecked: u64,
}

/// What [`Engine::new`] needs.
pub(crate) struct Parts {
    pub(crate) conn: Connection,
    pub(crate) lock: Option<Lock>,
    pub(crate) disk: Option<PathBuf>,
    pub(crate) logged: bool,
}

/// What became of a batch, to be told to whom it belongs.
pub(crate) struct Finished {
    done: Done,
    result: Result<Vec<Rows>, StoreError>,
}

impl Finished {
    /// Calls the callback. One that panics must not take the writer with it.
    pub(crate) fn report(self) {
        let Finished { done, result } = self;
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| done(result))).is_err() {
            tracing::error!("a callback of the store panicked");
        }
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) commits: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) overruns: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) commit_nanos: AtomicU64,
    pub(crate) last_error: Mutex<Option<StoreError>>,
}

impl Counters {
    fn failed(&self, error: &StoreError) {
        self.failed.fetch_add(1, Relaxed);
        // A conflict is an answer, not a fault.
        if *error != StoreError::Conflict {
            *self.last_error.lock() = Some(error.clone());
        }
    }
}

/// How far one batch got inside its group's transaction.
enum Step {
    Ran(Vec<Rows>),
    /// Undone; its neighbours are not touched.
    Failed(StoreError),
    /// Undone because its time was up.
    Overrun,
    /// The whole transaction is gone, with all batches before this one.
    Lost(StoreError),
}

impl Engine {
    pub(crate) fn new(parts: Parts, counters: Arc<Counters>) -> Engine {
        let Parts { conn, lock, disk, logged } = parts;
        Engine { conn, _lock: lock, disk, counters, logged, unchecked: 0 }
    }

    /// One turn: what inside has queued, then outside for its 5 ms, one commit for both.
    pub(crate) fn turn(&mut self, queue: &Queue) -> Vec<Finished> {
        let mut group = Group::default();
        for job in queue.take(Lane::Inside, GROUP) {
            let step = self.batch(&job.batch, || false);
            self.settle(&mut group, job.done, step);
        }
        self.turn_of_outside(&mut group, queue);
        self.commit(&mut group);
        group.finished
    }

    fn turn_of_outside(&mut self, group: &mut Group, queue: &Queue) {
        let start = Instant::now();
        let up = || start.elapsed() >= OUTSIDE_TURN;
        let (mut statements, mut bytes) = (0, 0);
        while statements < OUTSIDE_STATEMENTS && bytes < OUTSIDE_BYTES {
            let Some(job) = queue.take(Lane::Outside, 1).pop() else { break };
            let first = statements == 0;
            // What was withdrawn touches no page.
            statements += job.batch.statements.iter().filter(|it| it.is_wanted()).count().max(1);
            bytes += job.weight;
            // The first of a turn may overrun: put back it would overrun again, for ever.
            let step = self.batch(&job.batch, || !first && up() && queue.has_work(Lane::Inside));
            if matches!(step, Step::Overrun) {
                queue.put_back(job);
                break;
            }
            self.settle(group, job.done, step);
            if up() {
                if first {
                    self.counters.overruns.fetch_add(1, Relaxed);
                }
                break;
            }
        }
    }

    /// Files away what a batch's step gave.
    fn settle(&mut self, group: &mut Group, done: Done, step: Step) {
        let result = match step {
            Step::Ran(rows) => {
                if !rows.is_empty() {
                    group.uncommitted.push(group.finished.len());
                }
                Ok(rows)
            }
            Step::Failed(error) => Err(error),
            Step::Lost(error) => {
                self.lose(group, &error);
                Err(error)
            }
            Step::Overrun => return,
        };
        if let Err(error) = &result {
            self.counters.failed(error);
        }
        group.finished.push(Finished { done, result });
    }

    fn commit(&mut self, group: &mut Group) {
        let start = Instant::now();
        if !self.conn.is_autocommit()
            && let Err(error) = self.command("COMMIT")
        {
            tracing::error!(%error, batches = group.uncommitted.len(), "commit failed, rolled back");
            self.lose(group, &error);
            return;
        }
        if !group.uncommitted.is_empty() {
            let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.counters.commits.fetch_add(1, Relaxed);
            self.counters.commit_nanos.fetch_add(nanos, Relaxed);
            self.counters.batches.fetch_add(group.uncommitted.len() as u64, Relaxed);
        }
    }

    /// Nothing of this group will be on disk: each of its batches has failed.
    fn lose(&mut self, group: &mut Group, error: &StoreError) {
        if !self.conn.is_autocommit()
            && let Err(error) = self.command("ROLLBACK")
        {
            tracing::error!(%error, "rollback failed");
        }
        for index in group.uncommitted.drain(..) {
            group.finished[index].result = Err(error.clone());
            self.counters.failed(error);
        }
        if *error == StoreError::Full {
            // Pages that the log holds twice may fit in the database's file: then the log starts again from its front.
            self.checkpoint();
        }
    }

    /// Runs one batch. `stop` is asked before each statement but the first.
    fn batch(&mut self, batch: &Batch, stop: impl Fn() -> bool) -> Step {
        let count = batch.statements.iter().filter(|statement| statement.take()).count();
        if count == 0 {
            return Step::Ran(Vec::new());
        }
        if self.conn.is_autocommit()
            && let Err(error) = self.command("BEGIN IMMEDIATE")
        {
            return Step::Lost(error);
        }
        self.unchecked += count as u64;
        // SQLite undoes a single failing statement by itself, and a savepoint copies each page it touches.
        let alone = count == 1;
        if !alone && let Err(error) = self.command("SAVEPOINT batch") {
            return Step::Lost(error);
        }
        let mut rows = Vec::with_capacity(batch.statements.len());
        for statement in &batch.statements {
            if !statement.take() {
                rows.push(Rows::default());
                continue;
            }
            if !rows.is_empty() && stop() {
                return self.undo(Step::Overrun);
            }
            match execute(&self.conn, statement) {
                Ok(found) => rows.push(found),
                Err(error) => {
                    let error = self.full_or(error);
                    // SQLite itself rolls everything back on some errors: no room, no memory, failed input or output.
                    return match (self.conn.is_autocommit(), alone) {
                        (true, _) => Step::Lost(error),
                        (false, true) => Step::Failed(error),
                        (false, false) => self.undo(Step::Failed(error)),
                    };
                }
            }
        }
        if self.conn.is_autocommit() {
            return Step::Lost(StoreError::Other("a statement ended the transaction of its group".into()));
        }
        match alone {
            true => Step::Ran(rows),
            false => self.command("RELEASE batch").map_or_else(Step::Lost, |()| Step::Ran(rows)),
        }
    }

    fn undo(&self, step: Step) -> Step {
        let undone = self.command("ROLLBACK TO batch").and_then(|()| self.command("RELEASE batch"));
        undone.map_or_else(Step::Lost, |()| step)
    }

    fn command(&self, text: &'static str) -> Result<(), StoreError> {
        let run = || self.conn.prepare_cached(text)?.execute([]);
        run().map(drop).map_err(|error| self.full_or(error.into()))
    }

    /// A write error on a full disk is [`StoreError::Full`], whatever SQLite called it.
    fn full_or(&self, error: StoreError) -> StoreError {
        match (&error, &self.disk) {
            (StoreError::Io(_), Some(path)) if file::is_full(path) => StoreError::Full,
            _ => error,
        }
    }

    /// After the reports, when nobody waits for them any more: keeps the log short.
    pub(crate) fn maintain(&mut self, queue: &Queue) {
        if !self.logged || self.unchecked < CHECKPOINT_LOOK {
            return;
        }
        self.unchecked = 0;
        // NOOP (SQLite 3.51) only tells the numbers.
        let look = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
        let pages = match self.conn.query_row("PRAGMA wal_checkpoint(NOOP)", [], look) {
            Ok((log, copied)) => log - copied,
            Err(error) => return tracing::warn!(%error, "cannot see the length of the log"),
        };
        if pages >= CHECKPOINT_BUSY || (pages >= CHECKPOINT_IDLE && queue.is_empty()) {
            self.checkpoint();
        }
    }

    fn checkpoint(&self) {
        if !self.logged {
            return;
        }
        // PASSIVE waits for no reader. It syncs log and database by itself.
        if let Err(error) = self.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
            tracing::warn!(%error, "checkpoint failed; the log grows until one succeeds");
        }
    }

    /// Reads on this connection: inline mode has no other.
    pub(crate) fn read(&self, statements: &[Statement]) -> Result<Vec<Rows>, StoreError> {
        read(&self.conn, statements)
    }
}

/// The batches between BEGIN and COMMIT, and those that failed meanwhile.
#[derive(Default)]
struct Group {
    finished: Vec<Finished>,
    /// Indices in `finished` of those that hang on the commit.
    uncommitted: Vec<usize>,
}

/// Runs statements that must not write; several in one transaction, so that they see one state.
pub(crate) fn read(conn: &Connection, statements: &[Statement]) -> Result<Vec<Rows>, StoreError> {
    let _one_state = if statements.len() > 1 { Some(conn.unchecked_transaction()?) } else { None };
    statements.iter().map(|statement| read_one(conn, statement)).collect()
}

fn read_one(conn: &Connection, statement: &Statement) -> Result<Rows, StoreError> {
    if !conn.prepare_cached(statement.sql)?.readonly() {
        return Err(StoreError::Other(format!("`{}` is not for reading", statement.sql)));
    }
    execute(conn, statement)
}

fn execute(conn: &Connection, statement: &Statement) -> Result<Rows, StoreError> {
    let mut prepared = conn.prepare_cached(statement.sql)?;
    let (wanted, bound) = (prepared.parameter_count(), statement.params.len());
    if wanted != bound {
        return Err(StoreError::Other(format!(
            "`{}` wants {wanted} values, {bound} are bound",
            statement.sql
        )));
    }
    for (index, value) in statement.params.iter().enumerate() {
        prepared.raw_bind_parameter(index + 1, value)?;
    }
    let (columns, readonly) = (prepared.column_count(), prepared.readonly());
    let mut values = Vec::new();
    let mut rows = prepared.raw_query();
    while let Some(row) = rows.next()? {
        for column in 0..columns {
            values.push(value(row.get_ref(column)?)?);
        }
    }
    // After a query SQLite still tells the changes of the statement before it.
    let changes = if readonly { 0 } else { conn.changes() };
    let rows = Rows { sql: statement.sql, columns, values, changes, last_id: conn.last_insert_rowid() };
    match statement.expect {
        Expect::Change if rows.changes == 0 && (!readonly || rows.is_empty()) => Err(StoreError::Conflict),
        _ => Ok(rows),
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Int(int) => ValueRef::Integer(*int),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(blob) => ValueRef::Blob(blob),
        }))
    }
}

fn value(found: ValueRef<'_>) -> Result<Value, StoreError> {
    Ok(match found {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(int) => Value::Int(int),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => Value::Text(text.into()),
            Err(_) => return Err(StoreError::Corrupt("text that is not UTF-8".into())),
        },
        ValueRef::Blob(blob) => Value::Blob(Bytes::copy_from_slice(blob)),
        // No table of ours has such a column; an average or a division would give one.
        ValueRef::Real(_) => {
            return Err(StoreError::Other("floating-point numbers are not supported".into()));
        }
    })
}

/// Whether an error code says that another connection holds a lock.
pub(crate) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ffi::ErrorCode::DatabaseBusy | ffi::ErrorCode::DatabaseLocked))
}
