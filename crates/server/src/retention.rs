//! How much of the past is kept: `limits.archive_bytes` and `accounts.history_age`, account by account, in the
//! background. What waits for delivery is never touched; its bound is the offline queue's.
//!
//! Between two rounds an account can exceed its bytes by what `limits.client_bytes` lets its clients send.

use std::sync::Arc;
use std::time::Duration;

use trunkline_store::{Batch, Db, Lane, StoreError, sql};

use crate::exchange::Exchange;
use crate::ids::LogId;

/// From the end of one round to the start of the next.
const PAUSE: Duration = Duration::from_secs(300);
/// Between two batches: others write too.
const BREATH: Duration = Duration::from_millis(20);
/// Ids of accounts looked at in one query.
const ACCOUNTS: i64 = 256;
/// Rows and bytes deleted in one transaction, which holds up the writer.
const BATCH: (i64, i64) = (64, 256 << 10);

/// Round after round, for ever.
pub(crate) async fn keep(exchange: Arc<Exchange>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        let bounds = Bounds::of(&exchange);
        match round(&exchange.db, &bounds).await {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "old messages were deleted from archives"),
            Err(error) => tracing::warn!(%error, "old messages could not be deleted from archives"),
        }
        match exchange.forget_devices().await {
            Ok(0) => {}
            Ok(forgotten) => tracing::info!(forgotten, "devices that no longer sign in were forgotten"),
            Err(error) => tracing::warn!(%error, "devices could not be forgotten"),
        }
    }
}

/// What an archive may hold.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    bytes: i64,
    /// Older ids go.
    oldest: LogId,
}

impl Bounds {
    fn of(exchange: &Exchange) -> Bounds {
        let config = exchange.config.load();
        let age = config.accounts.history_age;
        let oldest = match i64::try_from(age.as_millis()) {
            Ok(age) if age > 0 => LogId::first_of(exchange.clock().now().saturating_sub(age)),
            _ => LogId::ZERO,
        };
        Bounds { bytes: i64::try_from(config.limits.archive_bytes).unwrap_or(i64::MAX), oldest }
    }
}

/// Looks at every account once. The number of rows deleted.
async fn round(db: &Db, bounds: &Bounds) -> Result<u64, StoreError> {
    let last = db.read(sql("SELECT COALESCE(MAX(id), 0) FROM accounts")).await?;
    let last = last.first().map_or(0, |row| row.int(0));
    let mut deleted = 0;
    let mut from = 0;
    while from < last {
        let rows = db
            .read(
                sql("SELECT account, SUM(size), MIN(id) FROM archive WHERE account > ?1 AND account <= ?2 \
                     GROUP BY account HAVING SUM(size) > ?3 OR MIN(id) < ?4")
                .bind(from)
                .bind(from + ACCOUNTS)
                .bind(bounds.bytes)
                .bind(bounds.oldest.0),
            )
            .await?;
        for row in rows.iter() {
            deleted += shorten(db, row.int(0), row.int(1) - bounds.bytes, bounds.oldest).await?;
        }
        from += ACCOUNTS;
        tokio::time::sleep(BREATH).await;
    }
    Ok(deleted)
}

/// Deletes the oldest rows of one account: `excess` bytes, and whatever is below `oldest`.
async fn shorten(db: &Db, account: i64, mut excess: i64, oldest: LogId) -> Result<u64, StoreError> {
    let mut deleted = 0;
    loop {
        let rows = db
            .read(
                sql("SELECT a.id, a.size FROM archive a WHERE a.account = ?1 \
                     AND NOT EXISTS (SELECT 1 FROM pending p WHERE p.account = a.account AND p.id = a.id) \
                     ORDER BY a.id LIMIT ?2")
                .bind(account)
                .bind(BATCH.0),
            )
            .await?;
        let mut batch = Batch::new(Lane::Inside);
        let (mut bytes, mut count) = (0, 0);
        for row in rows.iter() {
            let (id, size) = (row.int(0), row.int(1));
            if (excess <= 0 && id >= oldest.0) || bytes >= BATCH.1 {
                break;
            }
            // What is not pending never becomes so.
            batch.push(sql("DELETE FROM archive WHERE id = ?1 AND account = ?2").bind(id).bind(account));
            excess -= size;
            bytes += size;
            count += 1;
        }
        if batch.is_empty() {
            return Ok(deleted);
        }
        db.run(batch).await?;
        deleted += count;
        tokio::time::sleep(BREATH).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{self, Entry};
    use crate::schema::MIGRATIONS;
    use trunkline_store::Options;
    use trunkline_xmpp::jid::Jid;
    use trunkline_xmpp::stanza::Stanza;

    async fn archive_of(ids: impl Iterator<Item = i64>) -> Db {
        let db = Db::open(Options::memory(MIGRATIONS)).unwrap();
        let mut batch = Batch::new(Lane::Inside)
            .with(sql("INSERT INTO hosts (id, name) VALUES (1, 'here.example')"))
            .with(sql("INSERT INTO accounts (id, host_id, local, created_at) VALUES (300, 1, 'juliet', 0)"));
        let xml = format!("<message type='chat'><body>{}</body></message>", "x".repeat(1000));
        let stanza = Stanza::parse(xml.as_bytes()).unwrap();
        let peer = Jid::parse("romeo@peer.example").unwrap();
        for id in ids {
            let entry = Entry { id: LogId(id), account: 300, peer: &peer, flags: 0, stanza: &stanza };
            log::archive(&mut batch, &entry);
        }
        db.run(batch).await.unwrap();
        db
    }

    async fn left(db: &Db) -> Vec<i64> {
        let rows = db.read(sql("SELECT id FROM archive WHERE account = 300 ORDER BY id")).await.unwrap();
        rows.iter().map(|row| row.int(0)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_goes_when_there_are_too_many_bytes_and_what_waits_stays() {
        let db = archive_of(1..=1000).await;
        let mut batch = Batch::new(Lane::Inside);
        batch.push(sql("INSERT INTO pending (account, id, size) VALUES (300, 3, 1)"));
        db.run(batch).await.unwrap();
        let size = db.read(sql("SELECT SUM(size), SUM(LENGTH(stanza)) FROM archive")).await.unwrap();
        let (size, real) = size.first().map(|row| (row.int(0), row.int(1))).unwrap();
        assert_eq!(size, real);
        let bounds = Bounds { bytes: size / 10, oldest: LogId::ZERO };
        assert_eq!(round(&db, &bounds).await.unwrap(), 900);
        let mut expected = vec![3];
        expected.extend(902..=1000);
        assert_eq!(left(&db).await, expected);
        assert_eq!(round(&db, &bounds).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_old_goes_and_what_waits_stays() {
        let db = archive_of((1..=10).map(|day| LogId::first_of(day * 86_400_000).0)).await;
        let mut batch = Batch::new(Lane::Inside);
        batch.push(
            sql("INSERT INTO pending (account, id, size) VALUES (300, ?1, 1)")
                .bind(LogId::first_of(86_400_000).0),
        );
        db.run(batch).await.unwrap();
        let bounds = Bounds { bytes: i64::MAX, oldest: LogId::first_of(8 * 86_400_000) };
        assert_eq!(round(&db, &bounds).await.unwrap(), 6);
        let days: Vec<i64> = left(&db).await.into_iter().map(|id| LogId(id).millis() / 86_400_000).collect();
        assert_eq!(days, [1, 8, 9, 10]);
    }

    #[tokio::test]
    async fn sums_read_the_index_and_no_stanza() {
        let db = archive_of(1..=2).await;
        let plan = db
            .read(
                sql("EXPLAIN QUERY PLAN SELECT account, SUM(size), MIN(id) FROM archive \
                     WHERE account > ?1 AND account <= ?2 GROUP BY account")
                .bind(0)
                .bind(256),
            )
            .await
            .unwrap();
        let plan = plan.first().unwrap().text(3).to_owned();
        assert!(plan.contains("COVERING INDEX archive_by_account"), "{plan}");
    }
}
