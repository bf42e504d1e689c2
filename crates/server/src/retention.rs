//! How much of the past is kept: `limits.archive_bytes` and `accounts.history_age`, or what a host has instead, account
//! by account, in the background. What waits for delivery is never touched; its bound is the offline queue's.
//!
//! Between two rounds an account can exceed its bytes by what `limits.client_bytes` lets its clients send.

use std::collections::HashMap;
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
        match round(&exchange.db, &of_hosts(&exchange)).await {
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

/// By the host's key in the store.
fn of_hosts(exchange: &Exchange) -> HashMap<i64, Bounds> {
    let config = exchange.config.load();
    let now = exchange.clock().now();
    let bounds = exchange.hosts.values().map(|host| {
        let (age, bytes) = config.retention(host.domain.as_str());
        let oldest = match i64::try_from(age.as_millis()) {
            Ok(age) if age > 0 => LogId::first_of(now.saturating_sub(age)),
            _ => LogId::ZERO,
        };
        (host.id, Bounds { bytes: i64::try_from(bytes).unwrap_or(i64::MAX), oldest })
    });
    bounds.collect()
}

/// Looks at every account once. The number of rows deleted.
async fn round(db: &Db, hosts: &HashMap<i64, Bounds>) -> Result<u64, StoreError> {
    // The store names what is too much for the strictest of the hosts.
    let least = hosts.values().map(|bounds| bounds.bytes).min().unwrap_or(i64::MAX);
    let oldest = hosts.values().map(|bounds| bounds.oldest).max().unwrap_or(LogId::ZERO);
    let last = db.read(sql("SELECT COALESCE(MAX(id), 0) FROM accounts")).await?;
    let last = last.first().map_or(0, |row| row.int(0));
    let mut deleted = 0;
    let mut from = 0;
    while from < last {
        let rows = db
            .read(
                sql("SELECT sums.account, sums.bytes, sums.first, accounts.host_id FROM \
                     (SELECT account, SUM(size) AS bytes, MIN(id) AS first FROM archive \
                     WHERE account > ?1 AND account <= ?2 GROUP BY account) AS sums \
                     JOIN accounts ON accounts.id = sums.account WHERE sums.bytes > ?3 OR sums.first < ?4")
                .bind(from)
                .bind(from + ACCOUNTS)
                .bind(least)
                .bind(oldest.0),
            )
            .await?;
        for row in rows.iter() {
            // A host that is not served at present: its archives wait as they are.
            let Some(bounds) = hosts.get(&row.int(3)) else { continue };
            let excess = row.int(1).saturating_sub(bounds.bytes);
            if excess > 0 || row.int(2) < bounds.oldest.0 {
                deleted += shorten(db, row.int(0), excess, bounds.oldest).await?;
            }
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
        let hosts = HashMap::from([(1, bounds)]);
        assert_eq!(round(&db, &hosts).await.unwrap(), 900);
        let mut expected = vec![3];
        expected.extend(902..=1000);
        assert_eq!(left(&db).await, expected);
        assert_eq!(round(&db, &hosts).await.unwrap(), 0);
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
        assert_eq!(round(&db, &HashMap::from([(1, bounds)])).await.unwrap(), 6);
        let days: Vec<i64> = left(&db).await.into_iter().map(|id| LogId(id).millis() / 86_400_000).collect();
        assert_eq!(days, [1, 8, 9, 10]);
    }

    #[tokio::test(start_paused = true)]
    async fn each_host_has_its_own_bounds() {
        let db = archive_of((1..=10).map(|day| LogId::first_of(day * 86_400_000).0)).await;
        let mut batch = Batch::new(Lane::Inside)
            .with(sql("INSERT INTO hosts (id, name) VALUES (2, 'there.example'), (3, 'gone.example')"));
        for (account, host) in [(400, 2), (500, 3)] {
            batch.push(
                sql("INSERT INTO accounts (id, host_id, local, created_at) VALUES (?1, ?2, 'nurse', 0)")
                    .bind(account)
                    .bind(host),
            );
            batch.push(
                sql("INSERT INTO archive (id, account, peer, flags, size, stanza) \
                     SELECT id + ?1, ?1, peer, flags, size, stanza FROM archive WHERE account = 300")
                .bind(account),
            );
        }
        db.run(batch).await.unwrap();
        let strict = Bounds { bytes: i64::MAX, oldest: LogId::first_of(8 * 86_400_000) };
        let lenient = Bounds { bytes: i64::MAX, oldest: LogId::first_of(5 * 86_400_000) };
        assert_eq!(round(&db, &HashMap::from([(1, lenient), (2, strict)])).await.unwrap(), 4 + 7);
        let rows =
            db.read(sql("SELECT COUNT(*) FROM archive GROUP BY account ORDER BY account")).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.int(0)).collect::<Vec<_>>(), [6, 3, 10]);
        let small = Bounds { bytes: 1, oldest: LogId::ZERO };
        assert_eq!(round(&db, &HashMap::from([(1, lenient), (2, small)])).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn sums_read_the_index_and_no_stanza() {
        let db = archive_of(1..=2).await;
        let plan = db
            .read(
                sql("EXPLAIN QUERY PLAN SELECT account, SUM(size) AS bytes, MIN(id) AS first FROM archive \
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
