//! [`Db`]: the one way to talk to the store.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::oneshot;

use crate::{
    engine::{Counters, Engine, Parts, is_busy},
    error::{OpenError, StoreError},
    file,
    migrate::{self, Migration},
    queue::{Bound, Done, Job, Queue},
    reader::{self, Pool},
    statement::{Batch, Lane, Statement, sql},
    value::Rows,
};

/// How to open a database. Start from [`Options::file`] or [`Options::memory`] and change what differs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database file; `None` keeps everything in memory, which implies `inline`.
    pub path: Option<PathBuf>,
    /// The schema's whole history, oldest first.
    pub migrations: Vec<Migration>,
    /// Everything happens at once on the calling thread, without threads: for tests in virtual time.
    pub inline: bool,
    /// A SQLite VFS by name instead of the real file system, see `testvfs`. Locking the database against other
    /// processes and restricting its mode are left to that VFS then.
    pub vfs: Option<String>,
    /// Connections that read: 2 to 4 make sense. Inline mode has none.
    pub readers: usize,
    /// Statements that may wait in each lane.
    pub queue_statements: usize,
    /// Bytes of parameters that may wait in each lane.
    pub queue_bytes: usize,
    /// Page cache of the writer in KiB; each reader has a sixteenth of it.
    pub cache_kib: u32,
    /// `synchronous=OFF`: proves that a power-cut test notices what is lost.
    #[cfg(feature = "test-vfs")]
    pub unsynced: bool,
}

impl Options {
    /// A database file with the default settings.
    pub fn file(path: impl Into<PathBuf>, migrations: &[Migration]) -> Options {
        Options { path: Some(path.into()), ..Options::memory(migrations) }.threaded()
    }

    /// A database in memory, inline.
    pub fn memory(migrations: &[Migration]) -> Options {
        Options {
            path: None,
            migrations: migrations.to_vec(),
            inline: true,
            vfs: None,
            readers: 3,
            queue_statements: 4096,
            queue_bytes: 64 * 1024 * 1024,
            cache_kib: 32 * 1024,
            #[cfg(feature = "test-vfs")]
            unsynced: false,
        }
    }

    fn threaded(mut self) -> Options {
        self.inline = false;
        self
    }

    /// FULL syncs the log at each commit: without that, what was acknowledged may be gone after a power cut.
    fn synchronous(&self) -> &'static str {
        #[cfg(feature = "test-vfs")]
        if self.unsynced {
            return "OFF";
        }
        "FULL"
    }

    fn name(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(":memory:"))
    }
}

/// A database. Clones share it; the last one to go closes it (and waits until what was queued is on disk).
#[derive(Clone)]
pub struct Db {
    inner: Arc<Inner>,
}

struct Inner {
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    mode: Mode,
}

enum Mode {
    Threads { writer: Mutex<Option<JoinHandle<()>>>, readers: Pool },
    Inline(Mutex<Option<Box<Engine>>>),
}

/// What the store did and has to do, for metrics and `status`.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Statements from inside that wait for the writer.
    pub queued_inside: usize,
    /// Statements from outside that wait for the writer.
    pub queued_outside: usize,
    /// Bytes of parameters that wait, both lanes.
    pub queued_bytes: usize,
    /// Reads that wait for a connection.
    pub reads_waiting: usize,
    /// Reads answered.
    pub reads: u64,
    /// Commits that succeeded.
    pub commits: u64,
    /// Batches that were committed.
    pub batches: u64,
    /// Batches that failed, conflicts included.
    pub failed: u64,
    /// Turns in which a single batch from outside took longer than its 5 ms.
    pub overruns: u64,
    /// Time spent in COMMIT altogether: mostly waiting for the disk.
    pub commit_time: Duration,
    /// The last error that was not a conflict.
    pub last_error: Option<StoreError>,
}

impl Stats {
    /// How many batches share a commit, on average.
    pub fn batches_per_commit(&self) -> f64 {
        self.batches as f64 / self.commits.max(1) as f64
    }
}

impl Db {
    /// Opens or creates a database and brings its schema up to date. Blocks: at the start of a program that is fine.
    pub fn open(options: Options) -> Result<Db, OpenError> {
        let inline = options.inline || options.path.is_none();
        let counters = Arc::new(Counters::default());
        let engine = Engine::new(open_writer(&options)?, counters.clone());
        let bound = Bound { statements: options.queue_statements, bytes: options.queue_bytes };
        let queue = Arc::new(Queue::new(bound));
        let mode = if inline {
            Mode::Inline(Mutex::new(Some(Box::new(engine))))
        } else {
            let conns =
                (0..options.readers.max(1)).map(|_| open_reader(&options)).collect::<Result<_, _>>()?;
            let readers = Pool::start(conns, counters.clone()).map_err(OpenError::Thread)?;
            let thread = thread::Builder::new().name("store-write".into());
            let writer = thread
                .spawn({
                    let queue = queue.clone();
                    move || write(engine, &queue)
                })
                .inspect_err(|_| readers.close())
                .map_err(OpenError::Thread)?;
            Mode::Threads { writer: Mutex::new(Some(writer)), readers }
        };
        Ok(Db { inner: Arc::new(Inner { queue, counters, mode }) })
    }

    /// Runs a batch as one transaction, all or nothing. When this returns `Ok` it is on disk and reads see it. Waits
    /// first when the lane is full. Gives the rows of each statement, in order.
    ///
    /// Once queued the batch runs even if this future is dropped.
    pub async fn run(&self, batch: Batch) -> Result<Vec<Rows>, StoreError> {
        self.ready(batch.lane).await;
        let (reply, answer) = oneshot::channel();
        self.hand_over(batch, true, move |result| {
            // The caller may be gone; the batch is committed all the same.
            let _ = reply.send(result);
        });
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Queues a batch without waiting; it is committed together with others that come within 20 ms. `done` is called exactly once: on the writer thread after the commit or the
    /// failure, or at once on this one when the store is closed.
    ///
    /// `done` holds up everybody's next commit, and in inline mode it runs before this returns. So it must be short,
    /// and must not take a lock that the caller holds: best it only hands the news on.
    ///
    /// This accepts more than the lane's bound; callers brake by awaiting [`ready`](Db::ready) before they read more.
    pub fn submit(&self, batch: Batch, done: impl FnOnce(Result<Vec<Rows>, StoreError>) + Send + 'static) {
        self.hand_over(batch, false, done);
    }

    fn hand_over(
        &self,
        batch: Batch,
        awaited: bool,
        done: impl FnOnce(Result<Vec<Rows>, StoreError>) + Send + 'static,
    ) {
        let done: Done = Box::new(done);
        match self.inner.queue.push(Job::new(batch, done, awaited)) {
            Ok(()) => self.inner.work(),
            Err(job) => (job.done)(Err(StoreError::Closed)),
        }
    }

    /// Returns when the lane has room (or the store is closed, so that the next call says so).
    pub async fn ready(&self, lane: Lane) {
        self.inner.queue.ready(lane).await;
    }

    /// Whether the lane has room now.
    pub fn has_room(&self, lane: Lane) -> bool {
        self.inner.queue.has_room(lane)
    }

    /// Reads everything that is committed, for inside.
    pub async fn read(&self, statement: Statement) -> Result<Rows, StoreError> {
        self.read_in(Lane::Inside, statement).await
    }

    /// Reads everything that is committed. Reads from outside go second and never hold all connections.
    pub async fn read_in(&self, lane: Lane, statement: Statement) -> Result<Rows, StoreError> {
        let mut rows = self.read_all(lane, vec![statement]).await?;
        Ok(rows.pop().unwrap_or_default())
    }

    /// Runs several reads on one connection, in one go: they see the same state of the database, and cost the way
    /// there and back once.
    pub async fn read_all(&self, lane: Lane, statements: Vec<Statement>) -> Result<Vec<Rows>, StoreError> {
        match &self.inner.mode {
            Mode::Threads { readers, .. } => readers.read(lane, statements).await,
            Mode::Inline(engine) => {
                self.inner.counters.reads.fetch_add(statements.len() as u64, Relaxed);
                engine.lock().as_ref().ok_or(StoreError::Closed)?.read(&statements)
            }
        }
    }

    /// Returns when everything that was handed over before, in both lanes, is committed or has failed.
    pub async fn flush(&self) {
        let marks = [Lane::Inside, Lane::Outside].map(|lane| {
            let (reply, answer) = oneshot::channel::<()>();
            self.hand_over(Batch::new(lane), true, move |_| drop(reply));
            answer
        });
        for mark in marks {
            // The mark's end is dropped, not sent: either way it is reached.
            let _ = mark.await;
        }
    }

    /// Looks for damage: the structure of the file, and references to rows that are not there. Reads the whole
    /// database.
    pub async fn check(&self) -> Result<(), StoreError> {
        let found = self.read(sql("PRAGMA integrity_check")).await?;
        let texts: Vec<&str> = found.iter().map(|row| row.text(0)).collect();
        if texts != ["ok"] {
            return Err(StoreError::Corrupt(texts.join("; ")));
        }
        let broken =
            self.read(sql("SELECT \"table\", count(*) FROM pragma_foreign_key_check GROUP BY 1")).await?;
        if let Some(row) = broken.first() {
            let text =
                format!("{} rows of table {} refer to rows that are not there", row.int(1), row.text(0));
            return Err(StoreError::Corrupt(text));
        }
        Ok(())
    }

    /// What the store did and has to do.
    pub fn stats(&self) -> Stats {
        let Inner { queue, counters, mode } = &*self.inner;
        let (inside, outside) = (queue.load(Lane::Inside), queue.load(Lane::Outside));
        Stats {
            queued_inside: inside.0,
            queued_outside: outside.0,
            queued_bytes: inside.1 + outside.1,
            reads_waiting: match mode {
                Mode::Threads { readers, .. } => readers.waiting(),
                Mode::Inline(_) => 0,
            },
            reads: counters.reads.load(Relaxed),
            commits: counters.commits.load(Relaxed),
            batches: counters.batches.load(Relaxed),
            failed: counters.failed.load(Relaxed),
            overruns: counters.overruns.load(Relaxed),
            commit_time: Duration::from_nanos(counters.commit_nanos.load(Relaxed)),
            last_error: counters.last_error.lock().clone(),
        }
    }

    /// Refuses new work, finishes what is queued, closes the file. Other clones get [`StoreError::Closed`] from then
    /// on. Blocks until done.
    pub fn shutdown(self) {
        self.inner.close();
    }
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Db").field(&self.stats()).finish()
    }
}

impl Inner {
    /// Inline mode: does what is queued, now. The callbacks run without the engine's lock, so they may submit again.
    fn work(&self) {
        let Mode::Inline(engine) = &self.mode else { return };
        loop {
            let mut engine = engine.lock();
            let Some(engine_ref) = engine.as_mut() else { return };
            let finished = engine_ref.turn(&self.queue);
            engine_ref.maintain(&self.queue);
            drop(engine);
            if finished.is_empty() {
                return;
            }
            finished.into_iter().for_each(crate::engine::Finished::report);
        }
    }

    fn close(&self) {
        match &self.mode {
            Mode::Threads { writer, readers } => {
                // Readers first: the last connection to close copies the log into the database, and they may not.
                readers.close();
                self.queue.close();
                if let Some(writer) = writer.lock().take() {
                    reader::join(writer);
                }
            }
            Mode::Inline(engine) => {
                self.queue.close();
                drop(engine.lock().take());
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// The writer thread.
fn write(mut engine: Engine, queue: &Queue) {
    // However this thread ends, nobody may wait for it for ever.
    let _closing = Closing(queue);
    while queue.wait() {
        engine.turn(queue).into_iter().for_each(crate::engine::Finished::report);
        engine.maintain(queue);
    }
}

struct Closing<'a>(&'a Queue);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
        for lane in [Lane::Inside, Lane::Outside] {
            for job in self.0.take(lane, usize::MAX) {
                (job.done)(Err(StoreError::Closed));
            }
        }
    }
}

fn open_writer(options: &Options) -> Result<Parts, OpenError> {
    let name = options.name();
    let disk = options.path.as_deref().filter(|_| options.vfs.is_none());
    let lock = disk.map(file::lock).transpose()?;
    if let Some(path) = disk {
        file::create(path)?;
    }
    let setup = |error: rusqlite::Error| {
        let error = match is_busy(&error) {
            true => StoreError::Other(
                "another program has the database locked, perhaps a backup or the sqlite3 shell".into(),
            ),
            false => error.into(),
        };
        OpenError::Setup { path: name.to_owned(), error }
    };
    let mut conn =
        connect(options, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE).map_err(setup)?;
    let applied = migrate::inspect(&conn, name, &options.migrations)?;
    let logged = options.path.is_some();
    if logged {
        configure_log(&conn).map_err(setup)?;
    }
    conn.pragma_update(None, "synchronous", options.synchronous()).map_err(setup)?;
    // What people deleted is overwritten in the file; in the log it stays until that is reused, after a checkpoint.
    conn.pragma_update(None, "secure_delete", true).map_err(setup)?;
    conn.pragma_update(None, "cache_size", -i64::from(options.cache_kib)).map_err(setup)?;
    migrate::apply(&mut conn, name, &options.migrations, applied)?;
    Ok(Parts { conn, lock, disk: disk.map(Path::to_owned), logged })
}

fn configure_log(conn: &Connection) -> rusqlite::Result<()> {
    let mode: String = conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(rusqlite::Error::InvalidParameterName(format!("journal mode is {mode}, not wal")));
    }
    // The engine does it after the callbacks, not inside of a commit for which people wait.
    conn.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
    conn.query_row("PRAGMA journal_size_limit = 67108864", [], |_| Ok(()))?;
    // On macOS a plain fsync leaves the data in the drive's cache. Elsewhere these do nothing.
    conn.pragma_update(None, "fullfsync", true)?;
    conn.pragma_update(None, "checkpoint_fullfsync", true)
}

fn open_reader(options: &Options) -> Result<Connection, OpenError> {
    let open = || {
        let conn = connect(options, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        conn.pragma_update(None, "query_only", true)?;
        conn.pragma_update(None, "cache_size", -i64::from(options.cache_kib / 16))?;
        Ok(conn)
    };
    open().map_err(|error: rusqlite::Error| OpenError::Setup {
        path: options.name().to_owned(),
        error: error.into(),
    })
}

/// How many of `migrations` the database at `path` has. Reads only: the file may be in use, and stays as it is.
pub fn inspect(path: &Path, migrations: &[Migration]) -> Result<usize, OpenError> {
    let options = Options::file(path, migrations);
    let conn = open_reader(&options)?;
    migrate::inspect(&conn, path, migrations)
}

/// What writer and readers have in common.
fn connect(options: &Options, flags: OpenFlags) -> rusqlite::Result<Connection> {
    // Each connection stays on one thread at a time, so SQLite need not lock it.
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = match &options.vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(options.name(), flags, vfs.as_str())?,
        None => Connection::open_with_flags(options.name(), flags)?,
    };
    conn.busy_timeout(Duration::from_secs(5))?;
    conn.set_prepared_statement_cache_capacity(512);
    conn.pragma_update(None, "foreign_keys", true)?;
    // Schema text in a file that was tampered with must not call functions.
    conn.pragma_update(None, "trusted_schema", false)?;
    // Sorting and savepoints spill to memory: no second disk, no file outside of our directory.
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    // No memory-mapped reads: an I/O error would then be a signal that kills the process, not an error.
    conn.query_row("PRAGMA mmap_size = 0", [], |_| Ok(())).or_else(|error| match error {
        rusqlite::Error::QueryReturnedNoRows => Ok(()),
        error => Err(error),
    })?;
    Ok(conn)
}
