//! A file system that is really full. The test disk does the same in memory (`power.rs`); here the system's own errors
//! are met, as it gives them.

// Clippy's exception for tests does not reach helper functions.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, process::Command};

use trunkline_store::{Batch, Db, Lane, Migration, Options, StoreError, sql};

const MIGRATIONS: &[Migration] = &[Migration {
    name: "bodies",
    sql: "CREATE TABLE bodies (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT",
}];

#[tokio::test]
async fn a_full_file_system_refuses_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mount) = Mount::new(dir.path()) else { return };
    let db = Db::open(Options::file(dir.path().join("db"), MIGRATIONS)).unwrap();
    let insert = |id: i64| {
        Batch::new(Lane::Inside)
            .with(sql("INSERT INTO bodies (id, body) VALUES (?1, ?2)").bind(id).bind(vec![7; 20_000]))
    };
    // Somebody else's file takes most of the room.
    let ballast = dir.path().join("ballast");
    fs::write(&ballast, vec![1; 5 * 1024 * 1024]).unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let mut refused = 0;
        for id in (round * 1000).. {
            match db.run(insert(id)).await {
                Ok(_) => acknowledged.push(id),
                Err(error) => {
                    assert_eq!(error, StoreError::Full);
                    refused += 1;
                }
            }
            if refused == 20 {
                break;
            }
        }
        let found = db.read(sql("SELECT count(*) FROM bodies")).await.unwrap();
        assert_eq!(found.first().unwrap().int(0), i64::try_from(acknowledged.len()).unwrap());
        // Room returns, and with it the service, without a restart.
        let room = 5 * 1024 * 1024 - (round as usize + 1) * 1024 * 1024;
        fs::OpenOptions::new().write(true).open(&ballast).unwrap().set_len(room as u64).unwrap();
        let id = round * 1000 + 999;
        db.run(insert(id)).await.unwrap();
        acknowledged.push(id);
    }
    assert!(acknowledged.len() > 20, "{acknowledged:?}");
    db.shutdown();
    let db = Db::open(Options::file(dir.path().join("db"), MIGRATIONS)).unwrap();
    db.check().await.unwrap();
    let found = db.read(sql("SELECT id FROM bodies ORDER BY id")).await.unwrap();
    assert_eq!(found.iter().map(|row| row.int(0)).collect::<Vec<_>>(), acknowledged);
}

/// A small file system in memory; only root can make one.
struct Mount<'a>(&'a Path);

impl Mount<'_> {
    #[expect(clippy::print_stderr, reason = "says why the test did nothing")]
    fn new(path: &Path) -> Option<Mount<'_>> {
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "trunkline-test"]).arg(path).output();
        match mount {
            Ok(output) if output.status.success() => Some(Mount(path)),
            Ok(output) => {
                eprintln!(
                    "skipped: cannot mount a tmpfs: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
                None
            }
            Err(error) => {
                eprintln!("skipped: cannot run mount: {error}");
                None
            }
        }
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        // Lazily: the database in it may still be open when an assertion failed.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}
