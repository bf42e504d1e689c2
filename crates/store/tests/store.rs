//! What callers may rely on, on real files and in memory.

// Clippy's exception for tests does not reach helper functions.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use trunkline_store::{Batch, Db, Lane, Migration, OpenError, Options, StoreError, Ticket, Violation, sql};

const MIGRATIONS: &[Migration] = &[
    Migration {
        name: "accounts",
        sql: "CREATE TABLE accounts (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, version INTEGER NOT NULL) STRICT",
    },
    Migration {
        name: "messages",
        sql: "CREATE TABLE messages (id INTEGER PRIMARY KEY, account INTEGER NOT NULL REFERENCES accounts (id), body BLOB) STRICT",
    },
];

fn open(path: &Path) -> Db {
    Db::open(Options::file(path, MIGRATIONS)).unwrap()
}

fn account(id: i64, name: &str) -> Batch {
    Batch::new(Lane::Inside)
        .with(sql("INSERT INTO accounts (id, name, version) VALUES (?1, ?2, 0)").bind(id).bind(name))
}

/// Holds the writer in a callback until the sender speaks, so that what is queued meanwhile meets in one group.
fn hold(db: &Db) -> mpsc::Sender<()> {
    let (go, wait) = mpsc::channel();
    let (started, start) = mpsc::channel();
    db.submit(account(0, "hold"), move |_| {
        started.send(()).unwrap();
        wait.recv().unwrap();
    });
    start.recv().unwrap();
    go
}

async fn count(db: &Db) -> i64 {
    db.read(sql("SELECT count(*) FROM accounts")).await.unwrap().first().unwrap().int(0)
}

#[tokio::test]
async fn values_come_back_as_they_went_in() {
    for inline in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(Options { inline, ..Options::file(dir.path().join("db"), MIGRATIONS) }).unwrap();
        let mut batch = account(1, "romeo@example.org");
        let at = batch.push(
            sql("INSERT INTO messages (id, account, body) VALUES (?1, ?2, ?3) RETURNING id, body, NULL")
                .bind(i64::MIN)
                .bind(1)
                .bind(&b"\0\xff art thou"[..]),
        );
        let rows = db.run(batch).await.unwrap();
        let row = rows[at].first().unwrap();
        assert_eq!(
            (row.int(0), row.blob(1).as_ref(), row.opt_text(2)),
            (i64::MIN, &b"\0\xff art thou"[..], None)
        );
        assert_eq!((rows[0].changes(), rows[at].changes(), rows[0].len()), (1, 1, 0));
        let found = db.read(sql("SELECT name, version FROM accounts")).await.unwrap();
        assert_eq!(
            found.iter().map(|row| (row.text(0).to_owned(), row.int(1))).collect::<Vec<_>>(),
            [("romeo@example.org".to_owned(), 0)]
        );
        db.check().await.unwrap();
    }
}

#[tokio::test]
async fn reads_together_see_one_state_and_may_not_write() {
    for inline in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(Options { inline, ..Options::file(dir.path().join("db"), MIGRATIONS) }).unwrap();
        db.run(account(1, "romeo")).await.unwrap();
        let both = || vec![sql("SELECT count(*) FROM accounts"), sql("SELECT name FROM accounts")];
        let rows = db.read_all(Lane::Outside, both()).await.unwrap();
        assert_eq!((rows[0].first().unwrap().int(0), rows[1].first().unwrap().text(0)), (1, "romeo"));
        let mut wrong = both();
        wrong.push(sql("DELETE FROM accounts"));
        assert!(db.read_all(Lane::Inside, wrong).await.is_err());
        // The connection is fit for the next one: no transaction was left open.
        assert_eq!(db.read_all(Lane::Inside, both()).await.unwrap().len(), 2);
        assert_eq!(count(&db).await, 1);
    }
}

#[tokio::test]
async fn what_is_withdrawn_is_not_run_and_what_was_run_can_not_be_withdrawn() {
    for inline in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(Options { inline, ..Options::file(dir.path().join("db"), MIGRATIONS) }).unwrap();
        let (gone, kept) = (Arc::new(Ticket::default()), Arc::new(Ticket::default()));
        assert!(gone.withdraw() && gone.withdraw());
        let insert = |id: i64, ticket: &Arc<Ticket>| {
            let insert = sql("INSERT INTO accounts (id, name, version) VALUES (?1, ?2, 0)");
            insert.bind(id).bind(format!("account {id}")).must_change().under(ticket)
        };
        let batch =
            Batch::new(Lane::Inside).with(insert(1, &gone)).with(insert(2, &kept)).with(insert(3, &kept));
        let rows = db.run(batch).await.unwrap();
        assert_eq!(rows.iter().map(trunkline_store::Rows::changes).collect::<Vec<_>>(), [0, 1, 1]);
        assert_eq!(count(&db).await, 2);
        assert!(!kept.withdraw());
        db.run(Batch::new(Lane::Inside).with(insert(4, &gone))).await.unwrap();
        assert_eq!(count(&db).await, 2);
    }
}

#[tokio::test]
async fn a_failing_batch_fails_alone_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir.path().join("db"));
    db.run(account(1, "romeo")).await.unwrap();
    let go = hold(&db);
    let results = Arc::new(Mutex::new(Vec::new()));
    let submit = |batch: Batch| {
        let results = results.clone();
        db.submit(batch, move |result| results.lock().unwrap().push(result.map(drop)));
    };
    submit(account(2, "juliet"));
    submit(account(3, "nurse").with(sql("INSERT INTO accounts (id, name, version) VALUES (4, 'romeo', 0)")));
    submit(account(5, "romeo"));
    submit(
        account(6, "tybalt")
            .with(sql("UPDATE accounts SET version = 2 WHERE id = 1 AND version = 1").must_change()),
    );
    submit(account(7, "paris").with(sql("SELECT 1 FROM accounts WHERE name = 'nobody'").must_change()));
    submit(account(8, "friar").with(sql("INSERT INTO messages (id, account) VALUES (1, 99)")));
    submit(account(9, "escalus").with(sql("INSERT INTO nowhere VALUES (1)")));
    submit(account(10, "rosaline").with(sql("SELECT ?1, ?2").bind(1)));
    submit(account(11, "mercutio").with(sql("SELECT 1 FROM accounts WHERE name = 'romeo'").must_change()));
    go.send(()).unwrap();
    db.flush().await;

    let results = std::mem::take(&mut *results.lock().unwrap());
    assert!(results[0].is_ok() && results[8].is_ok(), "{results:?}");
    assert!(matches!(&results[1], Err(StoreError::Constraint(Violation::Unique, _))), "{results:?}");
    assert!(matches!(&results[2], Err(StoreError::Constraint(Violation::Unique, _))), "{results:?}");
    assert_eq!(results[3], Err(StoreError::Conflict));
    assert_eq!(results[4], Err(StoreError::Conflict));
    assert!(matches!(&results[5], Err(StoreError::Constraint(Violation::ForeignKey, _))), "{results:?}");
    assert!(matches!(&results[6], Err(StoreError::Other(text)) if text.contains("nowhere")), "{results:?}");
    assert!(
        matches!(&results[7], Err(StoreError::Other(text)) if text.contains("wants 2 values")),
        "{results:?}"
    );
    let names = db.read(sql("SELECT name FROM accounts ORDER BY id")).await.unwrap();
    assert_eq!(
        names.iter().map(|row| row.text(0).to_owned()).collect::<Vec<_>>(),
        ["hold", "romeo", "juliet", "mercutio"]
    );
    let stats = db.stats();
    assert_eq!((stats.commits, stats.batches, stats.failed), (3, 4, 7), "one group: {stats:?}");
}

#[tokio::test]
async fn a_statement_that_ends_the_transaction_fails_its_group_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir.path().join("db"));
    assert!(matches!(db.run(account(1, "romeo").with(sql("COMMIT"))).await, Err(StoreError::Other(_))));
    db.run(account(2, "juliet")).await.unwrap();
    db.check().await.unwrap();
}

#[tokio::test]
async fn batches_of_a_lane_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir.path().join("db"));
    let (tx, rx) = mpsc::channel();
    for lane in [Lane::Inside, Lane::Outside] {
        db.run(account(lane as i64, if lane == Lane::Inside { "in" } else { "out" })).await.unwrap();
    }
    for version in 1..=3000_i64 {
        for lane in [Lane::Inside, Lane::Outside] {
            let tx = tx.clone();
            let batch = Batch::new(lane).with(
                sql("UPDATE accounts SET version = ?1 WHERE id = ?2 AND version = ?3")
                    .bind(version)
                    .bind(lane as i64)
                    .bind(version - 1)
                    .must_change(),
            );
            db.submit(batch, move |result| tx.send((lane, version, result.is_ok())).unwrap());
        }
    }
    db.flush().await;
    drop(tx);
    let done: Vec<_> = rx.iter().collect();
    assert_eq!(done.len(), 6000);
    assert!(done.iter().all(|(_, _, ok)| *ok));
    for lane in [Lane::Inside, Lane::Outside] {
        let versions: Vec<i64> = done.iter().filter(|done| done.0 == lane).map(|done| done.1).collect();
        assert!(versions.is_sorted());
    }
    assert!(db.stats().batches_per_commit() > 1.0, "{:?}", db.stats());
}

#[tokio::test]
async fn inside_goes_before_outside() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir.path().join("db"));
    let go = hold(&db);
    let order = Arc::new(Mutex::new(Vec::new()));
    for (id, lane) in [(1, Lane::Outside), (2, Lane::Inside), (3, Lane::Outside), (4, Lane::Inside)] {
        let order = order.clone();
        let mut batch = Batch::new(lane);
        batch.append(account(id, &format!("user{id}")));
        db.submit(batch, move |_| order.lock().unwrap().push(id));
    }
    go.send(()).unwrap();
    db.flush().await;
    assert_eq!(*order.lock().unwrap(), [2, 4, 1, 3]);
}

/// A statement that keeps the writer busy for well over a turn of the outside lane.
const SLOW: &str =
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500000) SELECT max(i) FROM n";

#[tokio::test]
async fn a_batch_from_outside_that_overruns_makes_way_for_inside() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir.path().join("db"));
    let go = hold(&db);
    let order = Arc::new(Mutex::new(Vec::new()));
    let submit = |name: &'static str, batch: Batch| {
        let order = order.clone();
        db.submit(batch, move |result| order.lock().unwrap().push((name, result.is_ok())));
    };
    let outside = |id: i64| {
        let mut batch = Batch::new(Lane::Outside);
        batch.append(account(id, &format!("outside{id}")));
        batch
    };
    // Alone in its turn it may take its time; the next ones wait for another turn.
    submit("slow", outside(1).with(sql(SLOW)));
    submit("next", outside(2));
    submit("inside", account(3, "inside"));
    go.send(()).unwrap();
    db.flush().await;
    assert_eq!(*order.lock().unwrap(), [("inside", true), ("slow", true), ("next", true)]);
    assert_eq!(db.stats().overruns, 1);
    assert_eq!(db.stats().commits, 3, "hold, then inside and slow, then next: {:?}", db.stats());
    assert_eq!(count(&db).await, 4);
}

#[tokio::test]
async fn a_flood_from_outside_takes_turns_of_bounded_size() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir.path().join("db"));
    let go = hold(&db);
    let order = Arc::new(Mutex::new(Vec::new()));
    for id in 1..=1000 {
        let mut batch = Batch::new(Lane::Outside);
        batch.append(account(id, &format!("outside{id}")));
        let (db, order) = (db.clone(), order.clone());
        db.clone().submit(batch, move |_| {
            // While the flood lasts, somebody inside asks for something.
            if id == 1 {
                let order = order.clone();
                db.submit(account(2000, "inside"), move |_| order.lock().unwrap().push(2000));
            }
            order.lock().unwrap().push(id);
        });
    }
    go.send(()).unwrap();
    db.flush().await;
    let place = order.lock().unwrap().iter().position(|id| *id == 2000).unwrap();
    assert!(place <= 64, "inside came behind {place} from outside");
    assert!(db.stats().commits > 1000 / 64, "{:?}", db.stats());
}

#[tokio::test]
async fn who_finds_the_lane_full_waits_and_the_other_lane_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { queue_statements: 4, ..Options::file(dir.path().join("db"), MIGRATIONS) };
    let db = Db::open(options).unwrap();
    let go = hold(&db);
    for id in 1..=4 {
        assert!(db.has_room(Lane::Inside));
        db.submit(account(id, &format!("user{id}")), |_| ());
    }
    assert!(!db.has_room(Lane::Inside) && db.has_room(Lane::Outside));
    db.ready(Lane::Outside).await;
    let waiting: Vec<_> = (5..100)
        .map(|id| {
            let db = db.clone();
            tokio::spawn(async move { db.run(account(id, &format!("user{id}"))).await })
        })
        .collect();
    // Waits for room, gets it, and has nothing to write: that must not keep the others waiting.
    let idle: Vec<_> = (0..50)
        .map(|_| {
            let db = db.clone();
            tokio::spawn(async move { db.ready(Lane::Inside).await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(db.stats().queued_inside, 4, "run waits outside of the queue");
    go.send(()).unwrap();
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    for task in idle {
        task.await.unwrap();
    }
    assert_eq!(count(&db).await, 100);
}

#[tokio::test]
async fn bytes_fill_the_queue_too() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { queue_bytes: 1000, ..Options::file(dir.path().join("db"), MIGRATIONS) };
    let db = Db::open(options).unwrap();
    let go = hold(&db);
    db.submit(account(1, &"x".repeat(1000)), |_| ());
    assert!(!db.has_room(Lane::Inside));
    go.send(()).unwrap();
    db.ready(Lane::Inside).await;
}

#[tokio::test]
async fn a_callback_that_panics_does_not_stop_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir.path().join("db"));
    db.submit(account(1, "romeo"), |_| panic!("in a callback, on purpose"));
    db.run(account(2, "juliet")).await.unwrap();
    assert_eq!(count(&db).await, 2);
}

#[tokio::test]
async fn shutdown_finishes_what_is_queued_and_refuses_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    for inline in [true, false] {
        let db = Db::open(Options { inline, ..Options::file(&path, MIGRATIONS) }).unwrap();
        let clone = db.clone();
        let before = count(&db).await;
        let (tx, rx) = mpsc::channel();
        for id in 1..=100 {
            let tx = tx.clone();
            db.submit(account(before + id, &format!("user{inline}{id}")), move |result| {
                tx.send(result.is_ok()).unwrap();
            });
        }
        db.shutdown();
        drop(tx);
        assert_eq!(rx.iter().filter(|ok| *ok).count(), 100);
        assert_eq!(clone.run(account(0, "late")).await.unwrap_err(), StoreError::Closed);
        assert_eq!(clone.read(sql("SELECT 1")).await.unwrap_err(), StoreError::Closed);
        clone.ready(Lane::Inside).await;
        clone.flush().await;
        assert!(!dir.path().join("db-wal").exists(), "the log was copied into the database");
    }
    assert_eq!(count(&open(&path)).await, 200);
}

#[tokio::test]
async fn the_last_handle_may_go_inside_a_callback() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = open(&path);
    let (tx, rx) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let clone = db.clone();
    db.submit(account(1, "romeo"), move |_| {
        wait.recv().unwrap();
        drop(clone);
        tx.send(()).unwrap();
    });
    drop(db);
    go.send(()).unwrap();
    rx.recv_timeout(Duration::from_secs(60)).unwrap();
}

#[tokio::test]
async fn reads_do_not_write_and_see_what_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    for db in [open(&dir.path().join("db")), Db::open(Options::memory(MIGRATIONS)).unwrap()] {
        let refused = db.read(sql("DELETE FROM accounts")).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Other(text) if text.contains("not for reading")), "{refused}");
        for id in 0..50 {
            db.run(account(id, &format!("user{id}"))).await.unwrap();
            assert_eq!(count(&db).await, id + 1);
        }
    }
}

#[tokio::test]
async fn reads_from_outside_leave_a_connection_for_inside() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(Options { readers: 2, ..Options::file(dir.path().join("db"), MIGRATIONS) }).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let slow: Vec<_> = (0..8)
        .map(|_| {
            let (db, order) = (db.clone(), order.clone());
            tokio::spawn(async move {
                db.read_in(Lane::Outside, sql(SLOW)).await.unwrap();
                order.lock().unwrap().push(Lane::Outside);
            })
        })
        .collect();
    while db.stats().reads_waiting < 7 {
        tokio::task::yield_now().await;
    }
    count(&db).await;
    order.lock().unwrap().push(Lane::Inside);
    for task in slow {
        task.await.unwrap();
    }
    let place = order.lock().unwrap().iter().position(|lane| *lane == Lane::Inside).unwrap();
    assert!(place <= 2, "inside waited behind {place} slow reads from outside");
}

#[tokio::test]
async fn callbacks_may_submit_also_inline() {
    let db = Db::open(Options::memory(MIGRATIONS)).unwrap();
    let (tx, rx) = mpsc::channel();
    let clone = db.clone();
    db.submit(account(1, "romeo"), move |result| {
        assert!(result.is_ok());
        clone.clone().submit(account(2, "juliet"), move |result| tx.send(result.is_ok()).unwrap());
    });
    assert_eq!(rx.try_recv(), Ok(true), "inline: done when submit returns");
    assert_eq!(count(&db).await, 2);
}

#[test]
fn the_file_is_private_and_held_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = open(&path);
    for name in ["db", "db-wal", "db-shm", "db.lock"] {
        let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let error = Db::open(Options::file(&path, MIGRATIONS)).unwrap_err();
    assert!(matches!(&error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(db);
    open(&path);
}

#[tokio::test]
async fn migrations_are_appended_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let first = Db::open(Options::file(&path, &MIGRATIONS[..1])).unwrap();
    first.run(account(1, "romeo")).await.unwrap();
    drop(first);
    drop(open(&path));

    let error = Db::open(Options::file(&path, &MIGRATIONS[..1])).unwrap_err();
    assert!(matches!(&error, OpenError::NewerVersion { found: 2, known: 1, .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("version 2 (\"messages\")") && text.contains("Install the newer program"),
        "{text}"
    );

    let edited =
        [Migration { name: "accounts", sql: "CREATE TABLE accounts (id INTEGER) STRICT" }, MIGRATIONS[1]];
    let error = Db::open(Options::file(&path, &edited)).unwrap_err();
    assert!(matches!(&error, OpenError::Diverged { version: 1, .. }), "{error}");

    let broken = [
        MIGRATIONS[0],
        MIGRATIONS[1],
        Migration {
            name: "broken",
            sql: "CREATE TABLE half (id INTEGER) STRICT; INSERT INTO nowhere VALUES (1)",
        },
    ];
    let error = Db::open(Options::file(&path, &broken)).unwrap_err();
    assert!(matches!(&error, OpenError::Migration { version: 3, .. }), "{error}");

    let deferred = [
        MIGRATIONS[0],
        MIGRATIONS[1],
        Migration {
            name: "deferred",
            sql: "CREATE TABLE d (a INTEGER REFERENCES accounts (id) DEFERRABLE INITIALLY DEFERRED) STRICT",
        },
    ];
    assert!(matches!(Db::open(Options::file(&path, &deferred)), Err(OpenError::Migration { .. })));

    // After all these refusals the database is as it was.
    let db = open(&path);
    assert_eq!(count(&db).await, 1);
    let tables =
        db.read(sql("SELECT count(*) FROM sqlite_schema WHERE name IN ('half', 'd')")).await.unwrap();
    assert_eq!(tables.first().unwrap().int(0), 0);
}

#[test]
fn a_file_of_somebody_else_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    fs::write(&text, "not a database, but long enough to be looked at as one. ".repeat(100)).unwrap();
    let before = fs::read(&text).unwrap();
    let error = Db::open(Options::file(&text, MIGRATIONS)).unwrap_err();
    assert!(matches!(&error, OpenError::Foreign { .. }), "{error}");
    assert_eq!(fs::read(&text).unwrap(), before);

    let other = dir.path().join("other");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE bookmarks (url TEXT)").unwrap();
    let before = fs::read(&other).unwrap();
    let error = Db::open(Options::file(&other, MIGRATIONS)).unwrap_err();
    assert!(matches!(&error, OpenError::Foreign { .. }), "{error}");
    assert_eq!(fs::read(&other).unwrap(), before);
}

#[test]
fn damage_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let db = open(&path);
    for id in 0..2000 {
        db.submit(account(id, &format!("a rather long name for user number {id}")), |_| ());
    }
    drop(db);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0x55);
    fs::write(&path, bytes).unwrap();
    let error = runtime.block_on(open(&path).check()).unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt(_)), "{error}");
}

#[test]
fn debug_output_shows_no_values() {
    let statement = sql("SELECT ?1, ?2").bind("what Romeo wrote").bind(&b"a key"[..]);
    let text = format!("{:?}", Batch::new(Lane::Inside).with(statement));
    assert!(!text.contains("Romeo") && !text.contains("key"), "{text}");
    assert!(text.contains("Text(16 bytes)"), "{text}");
}
