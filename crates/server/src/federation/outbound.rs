//! The table `outbound`: kept stanzas that other domains have not acknowledged yet.
//!
//! Everything here goes through the store's inside lane, because senders inside cause it: so a row is always written
//! before it is deleted, and there are never more deletions than there were messages.

use bytes::Bytes;
use trunkline_store::{Batch, Db, Lane, Rows, Statement, StoreError, sql};
use trunkline_xmpp::stanza::Stanza;

use super::queue::Item;
use crate::ids::LogId;

/// Rows that are handled at once.
pub(super) const PAGE: usize = 200;

/// The batch that writes one row.
pub(super) fn insert(id: LogId, local: &str, peer: &str, item: &Item) -> Batch {
    let mut bytes = Vec::with_capacity(item.size() + 32);
    item.stanza.write(&mut bytes);
    let sender = item.stanza.head.from.as_ref().map_or("", |from| from.as_str());
    Batch::new(Lane::Inside).with(
        sql("INSERT INTO outbound (id, local_domain, peer_domain, sender, created_at, expires_at, stanza) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")
        .bind(id.0)
        .bind(local)
        .bind(peer)
        .bind(sender)
        .bind(id.millis())
        .bind(item.expires)
        .bind(bytes),
    )
}

/// The peer has them, or their senders have their errors.
pub(super) fn delete(db: &Db, ids: &[LogId]) {
    change(db, ids, |id| sql("DELETE FROM outbound WHERE id = ?1").bind(id.0));
}

/// They were written to a stream that broke.
pub(super) fn count_attempt(db: &Db, ids: &[LogId]) {
    change(db, ids, |id| sql("UPDATE outbound SET attempts = attempts + 1 WHERE id = ?1").bind(id.0));
}

fn change(db: &Db, ids: &[LogId], statement: impl Fn(LogId) -> Statement) {
    for ids in ids.chunks(PAGE) {
        let mut batch = Batch::new(Lane::Inside);
        for id in ids {
            batch.push(statement(*id));
        }
        db.submit(batch, |result| {
            if let Err(error) = result {
                // The rows stay: the peer gets the stanzas once more, under the same ids.
                tracing::warn!(%error, "could not note the delivery of stanzas to another domain");
            }
        });
    }
}

/// Rows of one pair, read back.
pub(super) struct Read {
    /// Rows, readable or not.
    pub(super) rows: usize,
    /// The last of them.
    pub(super) last: Option<LogId>,
    pub(super) items: Vec<Item>,
    /// Rows that no stanza can be made of.
    pub(super) broken: Vec<LogId>,
}

/// The rows of a pair above `after`, in order.
pub(super) async fn page(db: &Db, local: &str, peer: &str, after: LogId) -> Result<Read, StoreError> {
    // Through the writer: it sees everything that was submitted before.
    let statement = sql("SELECT id, expires_at, stanza FROM outbound \
                         WHERE local_domain = ?1 AND peer_domain = ?2 AND id > ?3 ORDER BY id LIMIT ?4")
    .bind(local)
    .bind(peer)
    .bind(after.0)
    .bind(i64::try_from(PAGE).unwrap_or(i64::MAX));
    let rows = fresh(db, statement).await?;
    let mut read = Read { rows: rows.len(), last: None, items: Vec::new(), broken: Vec::new() };
    for row in rows.iter() {
        let id = LogId(row.int(0));
        read.last = Some(id);
        match stanza(id, row.blob(2)) {
            Some(stanza) => read.items.push(Item {
                stanza,
                kept: Some(id),
                expires: row.int(1),
                held: None,
                answers: None,
                _counted: None,
            }),
            None => read.broken.push(id),
        }
    }
    Ok(read)
}

/// A pair of domains and how many rows it has.
pub(super) struct PairRows {
    pub(super) local: String,
    pub(super) peer: String,
    pub(super) rows: usize,
}

/// All pairs that have rows.
pub(super) async fn pairs(db: &Db) -> Result<Vec<PairRows>, StoreError> {
    let rows = fresh(
        db,
        sql("SELECT local_domain, peer_domain, COUNT(*) FROM outbound GROUP BY local_domain, peer_domain ORDER BY MIN(id)"),
    )
    .await?;
    Ok(rows
        .iter()
        .map(|row| PairRows {
            local: row.text(0).to_owned(),
            peer: row.text(1).to_owned(),
            rows: usize::try_from(row.int(2)).unwrap_or(0),
        })
        .collect())
}

/// A row whose time is over.
pub(super) struct Expired {
    pub(super) id: LogId,
    pub(super) local: String,
    pub(super) peer: String,
    /// `None`: no stanza can be made of it.
    pub(super) stanza: Option<Stanza>,
}

/// Rows above `after` whose time is over at `now`, at most a page. The plus keeps the planner to the index of expiry:
/// as a rule nothing has expired, and a walk by id would pass over the whole table.
pub(super) async fn expired(db: &Db, now: i64, after: LogId) -> Result<Vec<Expired>, StoreError> {
    let rows = fresh(
        db,
        sql(
            "SELECT id, local_domain, peer_domain, stanza FROM outbound WHERE expires_at <= ?1 AND +id > ?2 \
             ORDER BY +id LIMIT ?3",
        )
        .bind(now)
        .bind(after.0)
        .bind(i64::try_from(PAGE).unwrap_or(i64::MAX)),
    )
    .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let id = LogId(row.int(0));
            Expired {
                id,
                local: row.text(1).to_owned(),
                peer: row.text(2).to_owned(),
                stanza: stanza(id, row.blob(3)),
            }
        })
        .collect())
}

fn stanza(id: LogId, bytes: &Bytes) -> Option<Stanza> {
    Stanza::parse(bytes)
        .inspect_err(|error| tracing::error!(id = id.0, %error, "a stanza in the queue can't be read"))
        .ok()
}

async fn fresh(db: &Db, statement: Statement) -> Result<Rows, StoreError> {
    let mut results = db.run(Batch::new(Lane::Inside).with(statement)).await?;
    Ok(results.pop().unwrap_or_default())
}
