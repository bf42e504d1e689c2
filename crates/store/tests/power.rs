//! Power cuts at hundreds of points: what was acknowledged is there, nothing is there by half.

// Clippy's exception for tests does not reach helper functions.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use trunkline_store::{
    Batch, Db, Lane, Migration, OpenError, Options, StoreError, sql,
    testvfs::{Survival, Sync, TestDisk},
};

const MIGRATIONS: &[Migration] = &[
    Migration {
        name: "parts",
        sql: "CREATE TABLE parts (batch INTEGER NOT NULL, part INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
              CREATE UNIQUE INDEX parts_key ON parts (batch, part);
              CREATE TABLE done (batch INTEGER PRIMARY KEY) STRICT",
    },
    Migration {
        name: "totals",
        sql: "CREATE TABLE totals (lane TEXT PRIMARY KEY, batches INTEGER NOT NULL) STRICT;
              INSERT INTO totals VALUES ('inside', 0), ('outside', 0)",
    },
];

/// Batches of a run. Their bodies make the log long enough for checkpoints, so that these are cut as well.
const BATCHES: i64 = 120;

#[derive(Clone, Copy)]
struct Setup {
    inline: bool,
    unsynced: bool,
    sync: Sync,
}

const HONEST: Setup = Setup { inline: true, unsynced: false, sync: Sync::Honest };

impl Setup {
    fn options(self, disk: &TestDisk) -> Options {
        Options {
            inline: self.inline,
            unsynced: self.unsynced,
            vfs: Some(disk.name().to_owned()),
            readers: 1,
            ..Options::file("power.sqlite", MIGRATIONS)
        }
    }
}

fn parts(batch: i64) -> i64 {
    1 + batch % 5
}

fn lane(batch: i64) -> Lane {
    if batch % 3 == 0 { Lane::Outside } else { Lane::Inside }
}

/// Some batches delete the first part of an older one of their lane, so that freed pages are used again.
fn deletes(number: i64) -> bool {
    number >= DELETE_AFTER && number % 4 == 0
}

const DELETE_AFTER: i64 = 36;

fn batch(number: i64) -> Batch {
    let mut batch = Batch::new(lane(number));
    for part in 0..parts(number) {
        let length = (number * 7919 + part * 104_729) % 40_000;
        let body = vec![u8::try_from(number % 251).unwrap(); usize::try_from(length).unwrap()];
        batch.push(
            sql("INSERT INTO parts (batch, part, body) VALUES (?1, ?2, ?3)")
                .bind(number)
                .bind(part)
                .bind(body),
        );
    }
    let name = if lane(number) == Lane::Inside { "inside" } else { "outside" };
    batch.push(sql("UPDATE totals SET batches = batches + 1 WHERE lane = ?1").bind(name).must_change());
    batch.push(sql("INSERT INTO done (batch) VALUES (?1)").bind(number));
    if deletes(number) {
        batch.push(sql("DELETE FROM parts WHERE batch = ?1 AND part = 0").bind(number - DELETE_AFTER));
    }
    batch
}

/// Does the work until it is done or the power goes; gives the batches that were acknowledged.
fn work(setup: Setup, disk: &TestDisk) -> Vec<i64> {
    disk.set_sync(setup.sync);
    let Ok(db) = Db::open(setup.options(disk)) else { return Vec::new() };
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    for number in 0..BATCHES {
        let acknowledged = acknowledged.clone();
        db.submit(batch(number), move |result| {
            if result.is_ok() {
                acknowledged.lock().unwrap().push(number);
            }
        });
    }
    drop(db);
    Arc::into_inner(acknowledged).unwrap().into_inner().unwrap()
}

#[derive(Debug, Default)]
struct Verdict {
    acknowledged: usize,
    lost: Vec<i64>,
    halved: Vec<i64>,
    damage: Option<String>,
}

impl Verdict {
    fn is_good(&self) -> bool {
        self.lost.is_empty() && self.halved.is_empty() && self.damage.is_none()
    }
}

/// Looks at what a restart finds.
fn judge(setup: Setup, disk: &TestDisk, acknowledged: &[i64]) -> Verdict {
    let mut verdict = Verdict { acknowledged: acknowledged.len(), ..Verdict::default() };
    let found = match Db::open(setup.options(disk)) {
        Ok(db) => block_on(inspect(&db)),
        Err(error) => Err(error.to_string()),
    };
    let Found { done, parts: found } = match found {
        Ok(found) => found,
        Err(damage) => {
            verdict.damage = Some(damage);
            return verdict;
        }
    };
    for number in 0..BATCHES {
        let deleted = deletes(number + DELETE_AFTER) && done.contains(&(number + DELETE_AFTER));
        let expected = if done.contains(&number) { parts(number) - i64::from(deleted) } else { 0 };
        if found.get(&number).copied().unwrap_or(0) != expected {
            verdict.halved.push(number);
        }
        if !done.contains(&number) && acknowledged.contains(&number) {
            verdict.lost.push(number);
        }
    }
    verdict
}

struct Found {
    done: BTreeSet<i64>,
    /// How many parts there are of each batch that has any.
    parts: BTreeMap<i64, i64>,
}

/// Fails when the database is damaged, when a batch is there without one that went before it in its lane, or when
/// nothing can be written any more.
async fn inspect(db: &Db) -> Result<Found, String> {
    db.check().await.map_err(|error| error.to_string())?;
    let text = |error: StoreError| error.to_string();
    let rows = db.read(sql("SELECT batch FROM done")).await.map_err(text)?;
    let done: BTreeSet<i64> = rows.iter().map(|row| row.int(0)).collect();
    let rows = db.read(sql("SELECT batch, count(*) FROM parts GROUP BY batch")).await.map_err(text)?;
    let parts = rows.iter().map(|row| (row.int(0), row.int(1))).collect();
    for (name, of) in [("inside", Lane::Inside), ("outside", Lane::Outside)] {
        let total =
            db.read(sql("SELECT batches FROM totals WHERE lane = ?1").bind(name)).await.map_err(text)?;
        let total = usize::try_from(total.first().ok_or("the totals are gone")?.int(0)).unwrap();
        let found: Vec<i64> = done.iter().copied().filter(|number| lane(*number) == of).collect();
        let first: Vec<i64> = (0..BATCHES).filter(|number| lane(*number) == of).take(total).collect();
        if found != first {
            return Err(format!(
                "{found:?} are there, but {total} were counted: one is missing before another"
            ));
        }
    }
    db.run(Batch::new(Lane::Inside).with(sql("DELETE FROM parts WHERE batch < 0"))).await.map_err(text)?;
    Ok(Found { done, parts })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// How many operations the whole work takes, undisturbed.
fn length(setup: Setup) -> u64 {
    let disk = TestDisk::new();
    assert_eq!(work(setup, &disk).len(), usize::try_from(BATCHES).unwrap());
    disk.operations()
}

fn survival(number: u64) -> Survival {
    match number % 4 {
        0 => Survival::Nothing,
        1 => Survival::Some(number),
        2 => Survival::Torn(number),
        _ => Survival::Everything,
    }
}

/// Cuts the work at `points` places spread over its length.
fn cuts(setup: Setup, points: u64) -> Vec<(u64, Survival, Verdict)> {
    let length = length(setup);
    (0..points)
        .map(|point| {
            let (at, survival) = (1 + point * length / points, survival(point));
            let disk = TestDisk::new();
            disk.cut_at(at);
            let acknowledged = work(setup, &disk);
            // With threads the groups differ from run to run, and so does the number of operations.
            assert!(!setup.inline || !disk.is_powered(), "cut {at} of {length} was not reached");
            disk.power_on(survival);
            (at, survival, judge(setup, &disk, &acknowledged))
        })
        .collect()
}

fn assert_nothing_lost(cuts: &[(u64, Survival, Verdict)]) {
    for (at, survival, verdict) in cuts {
        assert!(verdict.is_good(), "cut during operation {at}, {survival:?}: {verdict:?}");
    }
    let acknowledged: usize = cuts.iter().map(|(.., verdict)| verdict.acknowledged).sum();
    assert!(acknowledged > cuts.len() * 10, "the work got nowhere: {acknowledged}");
}

#[test]
fn nothing_acknowledged_is_lost_at_240_cuts() {
    assert_nothing_lost(&cuts(HONEST, 240));
}

#[test]
fn nothing_acknowledged_is_lost_at_80_cuts_of_the_writer_thread() {
    assert_nothing_lost(&cuts(Setup { inline: false, ..HONEST }, 80));
}

/// The start of a database is its own kind of work: each operation of it is cut.
#[test]
fn a_database_can_be_opened_after_a_cut_at_any_moment_of_its_creation() {
    let disk = TestDisk::new();
    drop(Db::open(HONEST.options(&disk)).unwrap());
    for at in 1..=disk.operations() {
        for number in 0..8 {
            let disk = TestDisk::new();
            disk.cut_at(at);
            drop(Db::open(HONEST.options(&disk)));
            disk.power_on(survival(number));
            let verdict = judge(HONEST, &disk, &[]);
            assert!(verdict.is_good(), "cut during operation {at}, {:?}: {verdict:?}", survival(number));
        }
    }
}

#[test]
fn a_power_cut_during_recovery_loses_nothing_either() {
    let length = length(HONEST);
    for number in 0..40 {
        let disk = TestDisk::new();
        disk.cut_at(length / 2 + number);
        let acknowledged = work(HONEST, &disk);
        // The second start is cut as well, at each of its first operations.
        disk.power_on(survival(number));
        disk.cut_at(1 + number);
        drop(judge(HONEST, &disk, &acknowledged));
        disk.power_on(survival(number + 1));
        let verdict = judge(HONEST, &disk, &acknowledged);
        assert!(verdict.is_good(), "cut {number}: {verdict:?}");
    }
}

/// These tests can fail: without syncs they do.
#[test]
fn without_syncs_losses_are_noticed() {
    for setup in [Setup { unsynced: true, ..HONEST }, Setup { sync: Sync::Lies, ..HONEST }] {
        let cuts = cuts(setup, 40);
        let noticed = |wanted: fn(&Survival) -> bool| {
            cuts.iter().filter(|(_, survival, verdict)| wanted(survival) && !verdict.is_good()).count()
        };
        assert!(noticed(|survival| *survival == Survival::Nothing) >= 8, "{cuts:?}");
        assert!(
            noticed(|survival| matches!(survival, Survival::Some(_) | Survival::Torn(_))) >= 10,
            "{cuts:?}"
        );
        // A killed process leaves the page cache: that is why killing proves nothing about syncs.
        assert_eq!(noticed(|survival| *survival == Survival::Everything), 0, "{cuts:?}");
    }
}

#[test]
fn a_full_disk_refuses_and_recovers_and_loses_nothing() {
    for inline in [true, false] {
        let setup = Setup { inline, ..HONEST };
        let disk = TestDisk::new();
        let db = Db::open(setup.options(&disk)).unwrap();
        block_on(async {
            let mut acknowledged = Vec::new();
            let (mut refused, mut next) = (0, 0);
            disk.set_capacity(Some(3_000_000));
            while refused < 10 {
                match db.run(batch(next)).await {
                    Ok(_) => acknowledged.push(next),
                    Err(error) => {
                        assert_eq!(error, StoreError::Full);
                        refused += 1;
                    }
                }
                next += 1;
                assert!(next < BATCHES, "the disk never got full");
                // Reading goes on.
                db.read(sql("SELECT count(*) FROM parts")).await.unwrap();
            }
            assert_eq!(db.stats().last_error, Some(StoreError::Full));
            disk.set_capacity(None);
            for number in next..BATCHES {
                db.run(batch(number)).await.unwrap();
                acknowledged.push(number);
            }
            disk.power_cut();
            drop(db);
            disk.power_on(Survival::Nothing);
            let db = Db::open(setup.options(&disk)).unwrap();
            db.check().await.unwrap();
            let rows = db.read(sql("SELECT batch FROM done ORDER BY batch")).await.unwrap();
            let found: Vec<i64> = rows.iter().map(|row| row.int(0)).collect();
            assert_eq!(found, acknowledged);
        });
    }
}

#[test]
fn a_commit_that_cannot_sync_fails_for_each_of_its_group() {
    let setup = Setup { inline: false, ..HONEST };
    let disk = TestDisk::new();
    let db = Db::open(setup.options(&disk)).unwrap();
    block_on(db.run(batch(0))).unwrap();
    disk.set_sync(Sync::Fails);
    let results = Arc::new(Mutex::new(Vec::new()));
    for number in 1..20 {
        let results = results.clone();
        db.submit(batch(number), move |result| results.lock().unwrap().push(result.map(drop)));
    }
    block_on(db.flush());
    let results = std::mem::take(&mut *results.lock().unwrap());
    assert_eq!(results.len(), 19);
    assert!(results.iter().all(|result| matches!(result, Err(StoreError::Io(_)))), "{results:?}");
    disk.set_sync(Sync::Honest);
    block_on(db.run(batch(20))).unwrap();
    disk.power_cut();
    drop(db);
    disk.power_on(Survival::Nothing);
    let db = Db::open(setup.options(&disk)).unwrap();
    block_on(db.check()).unwrap();
    let rows = block_on(db.read(sql("SELECT batch FROM done ORDER BY batch"))).unwrap();
    assert_eq!(rows.iter().map(|row| row.int(0)).collect::<Vec<_>>(), [0, 20]);
}

#[test]
fn a_disk_that_fails_at_the_start_is_an_error_and_no_panic() {
    let disk = TestDisk::new();
    disk.power_cut();
    assert!(matches!(Db::open(HONEST.options(&disk)), Err(OpenError::Setup { .. })));
    let disk = TestDisk::new();
    disk.set_capacity(Some(1000));
    let error = Db::open(HONEST.options(&disk)).unwrap_err();
    assert!(matches!(&error, OpenError::Setup { error: StoreError::Full, .. }), "{error}");
}
