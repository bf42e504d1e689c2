//! How many durable commits a second: one by one, and with many callers at once.
//!
//! `cargo run --release -p trunkline-store --example commit_rate [DIRECTORY]` (default: the current one; choose the
//! disk that is meant, a tmpfs tells nothing).

use std::{
    env,
    error::Error,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use trunkline_store::{Batch, Db, Lane, Migration, Options, Statement, sql};

/// A heap with an index, as the log has.
const MIGRATIONS: &[Migration] = &[Migration {
    name: "log",
    sql: "CREATE TABLE log (account INTEGER NOT NULL, id BLOB NOT NULL, sender TEXT NOT NULL, body BLOB NOT NULL) STRICT;
          CREATE UNIQUE INDEX log_key ON log (account, id)",
}];

const TIME: Duration = Duration::from_secs(4);

/// Callers from inside, callers from outside, messages in each batch.
const RUNS: &[(i64, i64, i64)] =
    &[(1, 0, 1), (1, 0, 128), (16, 0, 1), (128, 0, 1), (512, 0, 1), (2048, 0, 1), (0, 512, 1), (16, 512, 1)];

fn main() -> Result<(), Box<dyn Error>> {
    let directory = env::args().nth(1).unwrap_or_else(|| ".".into());
    let mut out = std::io::stdout();
    writeln!(
        out,
        "inside  outside  messages  | messages/s   batches    commit | waits of inside (else outside)"
    )?;
    writeln!(
        out,
        "           callers   /batch  |            per commit   mean |      p50        p99        max"
    )?;
    for run in RUNS {
        let dir = tempfile::tempdir_in(&directory)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        writeln!(out, "{}", runtime.block_on(measure(*run, dir.path()))?)?;
    }
    Ok(())
}

/// Each caller writes messages of about 500 bytes and waits until they are on disk, over and over.
async fn measure(
    (inside, outside, size): (i64, i64, i64),
    directory: &Path,
) -> Result<String, Box<dyn Error>> {
    let db = Db::open(Options::file(directory.join("rate.sqlite"), MIGRATIONS))?;
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for caller in 0..inside + outside {
        let db = db.clone();
        let lane = if caller < inside { Lane::Inside } else { Lane::Outside };
        tasks.spawn(async move {
            let mut waits = Vec::new();
            while start.elapsed() < TIME {
                let mut batch = Batch::new(lane);
                for number in 0..size {
                    batch.push(message(caller, waits.len() as i64 * size + number));
                }
                let before = Instant::now();
                db.run(batch).await?;
                waits.push(before.elapsed());
            }
            Ok::<_, trunkline_store::StoreError>((lane, waits))
        });
    }
    let (mut waits, mut batches) = (Vec::new(), 0);
    while let Some(result) = tasks.join_next().await {
        let (lane, some) = result??;
        batches += some.len();
        if lane == Lane::Inside || inside == 0 {
            waits.extend(some);
        }
    }
    let elapsed = start.elapsed();
    waits.sort_unstable();
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize];
    let stats = db.stats();
    Ok(format!(
        "{inside:>6}  {outside:>7}  {size:>8}  | {:>10.0}  {:>8.1}  {:>8.2?} | {:>8.2?}   {:>8.2?}   {:>8.2?}",
        (batches as i64 * size) as f64 / elapsed.as_secs_f64(),
        stats.batches_per_commit(),
        stats.commit_time / u32::try_from(stats.commits)?,
        at(0.5),
        at(0.99),
        at(1.0),
    ))
}

fn message(account: i64, number: i64) -> Statement {
    // Ids that grow with time, as UUIDv7 do.
    let id = [number.to_be_bytes(), account.to_be_bytes()].concat();
    sql("INSERT INTO log (account, id, sender, body) VALUES (?1, ?2, ?3, ?4)")
        .bind(account)
        .bind(id)
        .bind("romeo@montague.example/orchard")
        .bind(vec![b'x'; 420])
}
