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
use trunkline_store::{Batch, Db, Lane, Migration, Options, sql};

/// A heap with an index, as the log has.
const MIGRATIONS: &[Migration] = &[Migration {
    name: "log",
    sql: "CREATE TABLE log (account INTEGER NOT NULL, id BLOB NOT NULL, sender TEXT NOT NULL, body BLOB NOT NULL) STRICT;
          CREATE UNIQUE INDEX log_key ON log (account, id)",
}];

const TIME: Duration = Duration::from_secs(4);

fn main() -> Result<(), Box<dyn Error>> {
    let directory = env::args().nth(1).unwrap_or_else(|| ".".into());
    let mut out = std::io::stdout();
    writeln!(out, "callers  messages/s  batches/commit  commit mean  wait p50  wait p99  wait max")?;
    for callers in [1, 4, 16, 64, 128, 512, 2048] {
        let dir = tempfile::tempdir_in(&directory)?;
        let line = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?
            .block_on(measure(callers, dir.path()))?;
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// Each caller writes one message of about 500 bytes and waits until it is on disk, over and over.
async fn measure(callers: i64, directory: &Path) -> Result<String, Box<dyn Error>> {
    let db = Db::open(Options::file(directory.join("rate.sqlite"), MIGRATIONS))?;
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for caller in 0..callers {
        let db = db.clone();
        tasks.spawn(async move {
            let mut waits = Vec::new();
            let mut number = 0_u64;
            while start.elapsed() < TIME {
                number += 1;
                let before = Instant::now();
                db.run(message(caller, number)).await?;
                waits.push(before.elapsed());
            }
            Ok::<_, trunkline_store::StoreError>(waits)
        });
    }
    let mut waits = Vec::new();
    while let Some(result) = tasks.join_next().await {
        waits.extend(result??);
    }
    let elapsed = start.elapsed();
    waits.sort_unstable();
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize];
    let stats = db.stats();
    Ok(format!(
        "{callers:>7}  {:>10.0}  {:>14.1}  {:>11.2?}  {:>8.2?}  {:>8.2?}  {:>8.2?}",
        waits.len() as f64 / elapsed.as_secs_f64(),
        stats.batches_per_commit(),
        stats.commit_time / u32::try_from(stats.commits)?,
        at(0.5),
        at(0.99),
        at(1.0),
    ))
}

fn message(account: i64, number: u64) -> Batch {
    // Ids that grow with time, as UUIDv7 do.
    let id = [number.to_be_bytes(), (account as u64).to_be_bytes()].concat();
    Batch::new(Lane::Inside).with(
        sql("INSERT INTO log (account, id, sender, body) VALUES (?1, ?2, ?3, ?4)")
            .bind(account)
            .bind(id)
            .bind("romeo@montague.example/orchard")
            .bind(vec![b'x'; 420]),
    )
}
