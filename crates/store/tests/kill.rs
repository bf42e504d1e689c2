//! A process that is killed loses nothing it acknowledged, and the next one can start at once.

// Clippy's exception for tests does not reach helper functions.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    env,
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use trunkline_store::{Batch, Db, Lane, Migration, Options, sql};

const MIGRATIONS: &[Migration] = &[Migration {
    name: "pairs",
    sql: "CREATE TABLE pairs (id INTEGER NOT NULL, half INTEGER NOT NULL, body BLOB NOT NULL, UNIQUE (id, half)) STRICT",
}];

/// Set for the process that is to be killed: this same test, started once more.
const CHILD: &str = "TRUNKLINE_STORE_KILL_TEST";
const KILLS: u64 = 25;

#[test]
fn a_killed_process_loses_nothing_it_acknowledged() {
    if let Some(path) = env::var_os(CHILD) {
        write_until_killed(Path::new(&path));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut acknowledged = BTreeSet::new();
    for round in 0..KILLS {
        acknowledged.extend(run_and_kill(path.as_os_str(), Duration::from_millis(round * 37 % 200)));
        let found = inspect(&path);
        let lost: Vec<_> = acknowledged.difference(&found).collect();
        assert!(lost.is_empty(), "round {round}: lost {lost:?}");
    }
    assert!(acknowledged.len() > 500, "the child got nowhere: {}", acknowledged.len());
}

/// Starts the child, kills it some time after its first acknowledgement, gives what it acknowledged.
fn run_and_kill(path: &OsStr, after: Duration) -> Vec<i64> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_killed_process_loses_nothing_it_acknowledged", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("done ")?.parse().ok());
    let first: i64 = lines.next().expect("the child wrote nothing");
    // The rest is read meanwhile: a full pipe would stop the child.
    let reader = thread::scope(|scope| {
        let reader = scope.spawn(|| lines.collect::<Vec<i64>>());
        thread::sleep(after);
        child.kill().unwrap();
        reader.join().unwrap()
    });
    child.wait().unwrap();
    [vec![first], reader].concat()
}

fn write_until_killed(path: &Path) -> ! {
    let db = Db::open(Options::file(path, MIGRATIONS)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let last = runtime.block_on(db.read(sql("SELECT coalesce(max(id), 0) FROM pairs"))).unwrap();
    for id in last.first().unwrap().int(0) + 1.. {
        let lane = if id % 3 == 0 { Lane::Outside } else { Lane::Inside };
        runtime.block_on(db.ready(lane));
        let half = |half: i64| {
            let body = vec![0; usize::try_from(id * 7919 % 3000).unwrap()];
            sql("INSERT INTO pairs (id, half, body) VALUES (?1, ?2, ?3)").bind(id).bind(half).bind(body)
        };
        db.submit(Batch::new(lane).with(half(0)).with(half(1)), move |result| {
            assert!(result.is_ok());
            // In one write, and unbuffered: what is cut off must not look like another number.
            std::io::stdout().write_all(format!("done {id}\n").as_bytes()).unwrap();
        });
    }
    unreachable!("ids do not end")
}

/// The pairs that are there. No half may be alone.
fn inspect(path: &Path) -> BTreeSet<i64> {
    let db = Db::open(Options { inline: true, ..Options::file(path, MIGRATIONS) }).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(db.check()).unwrap();
    let rows = runtime.block_on(db.read(sql("SELECT id, count(*) FROM pairs GROUP BY id"))).unwrap();
    assert!(rows.iter().all(|row| row.int(1) == 2), "a batch is there by half");
    rows.iter().map(|row| row.int(0)).collect()
}
