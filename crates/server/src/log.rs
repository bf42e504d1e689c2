//! The durable log: every kept stanza, once per owner, and what still waits for its destination.
//!
//! Archive, offline queue and resumption are views of it (DESIGN.md, promise 1):
//!
//! - `archive`: one row per owner and stanza, in the order the owner's account gave out ids.
//! - `pending`: rows that the owner's clients have not acknowledged. A row goes when a client acknowledges
//!   (XEP-0198) or, without stream management, when the stanza has been written to the socket.
//!
//! A stanza that the classifier keeps for delivery but not for history is in both tables with the
//! `HIDDEN` flag and leaves both together.
//!
//! The federation queue is the table `outbound`; see `federation`.

use std::ops::Range;

use trunkline_store::{Batch, Db, Lane, Rows, Statement, StoreError, sql};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::Stanza;

use crate::ids::LogId;

/// Flag of an archive row: the owner sent it.
pub const SENT: i64 = 1;
/// Flag of an archive row: kept for delivery only, never shown as history.
pub const HIDDEN: i64 = 2;

/// One row to be.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Given out under the owner's account lock.
    pub id: LogId,
    /// The owner.
    pub account: i64,
    /// The other side.
    pub peer: &'a Jid,
    /// [`SENT`], [`HIDDEN`] or 0.
    pub flags: i64,
    /// As the owner sees it.
    pub stanza: &'a Stanza,
}

/// Adds the archive row.
pub fn archive(batch: &mut Batch, entry: &Entry<'_>) {
    let mut bytes = Vec::with_capacity(entry.stanza.size() + 32);
    entry.stanza.write(&mut bytes);
    batch.push(
        sql("INSERT INTO archive (id, account, peer, flags, size, stanza) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")
            .bind(entry.id.0)
            .bind(entry.account)
            .bind(entry.peer.bare_str())
            .bind(entry.flags)
            .bind(i64::try_from(bytes.len()).unwrap_or(i64::MAX))
            .bind(bytes),
    );
}

/// Adds the row that says: not delivered yet.
pub fn await_delivery(batch: &mut Batch, account: i64, id: LogId) {
    batch.push(sql("INSERT INTO pending (account, id) VALUES (?1, ?2)").bind(account).bind(id.0));
}

/// The owner's clients have these: nothing waits any more. A hidden stanza goes altogether.
pub fn delivered(db: &Db, account: i64, ids: &[LogId]) {
    if ids.is_empty() {
        return;
    }
    // Asked before anything is submitted: a row that is under way now may commit in between.
    let open = db.is_open(Lane::Outside);
    forget_all(db, account, ids, Lane::Inside);
    // The row of an outsider's stanza is written in the other lane. While that one is busy, only what is behind
    // it there is sure to find the row; once too often does no harm.
    if open {
        forget_all(db, account, ids, Lane::Outside);
    }
}

fn forget_all(db: &Db, account: i64, ids: &[LogId], lane: Lane) {
    let mut batch = Batch::new(lane);
    for id in ids {
        forget(&mut batch, account, *id);
    }
    db.submit(batch, |result| {
        if let Err(error) = result {
            // The rows stay: the stanzas come once more, marked as delayed and under the same id.
            tracing::warn!(%error, "could not note the delivery of stanzas");
        }
    });
}

fn forget(batch: &mut Batch, account: i64, id: LogId) {
    batch.push(sql("DELETE FROM pending WHERE account = ?1 AND id = ?2").bind(account).bind(id.0));
    batch.push(
        sql("DELETE FROM archive WHERE id = ?1 AND account = ?2 AND flags & 2 <> 0").bind(id.0).bind(account),
    );
}

/// A stanza read from the log.
#[derive(Debug)]
pub struct Logged {
    /// Its key.
    pub id: LogId,
    /// Its flags.
    pub flags: i64,
    /// As the owner sees it.
    pub stanza: Stanza,
}

/// How much is read at once. The first stanza comes whatever its size.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Stanzas at most.
    pub stanzas: i64,
    /// No further stanza once these are reached.
    pub bytes: i64,
}

/// What waits for `account` after the start of `span` and before its end, oldest first, at most a page.
///
/// # Errors
/// Those of the store.
pub async fn pending(
    db: &Db,
    account: i64,
    span: Range<LogId>,
    page: Page,
) -> Result<Vec<Logged>, StoreError> {
    let rows = fresh(
        db,
        sql("SELECT a.id, a.flags, a.stanza FROM (SELECT id, SUM(size) OVER (ORDER BY id) - size AS before \
             FROM (SELECT p.id AS id, a.size AS size FROM pending p JOIN archive a ON a.id = p.id \
             WHERE p.account = ?1 AND p.id > ?2 AND p.id < ?3 ORDER BY p.id LIMIT ?4) AS rows) AS page \
             JOIN archive a ON a.id = page.id WHERE page.before < ?5 ORDER BY a.id")
        .bind(account)
        .bind(span.start.0)
        .bind(span.end.0)
        .bind(page.stanzas)
        .bind(page.bytes),
    )
    .await?;
    Ok(logged(&rows))
}

/// The archive of `account` after the start of `span` and before its end, oldest first, at most a page; hidden rows
/// included. What is complete is only what had an id when this was called: the span must end there.
///
/// # Errors
/// Those of the store.
pub async fn since(db: &Db, account: i64, span: Range<LogId>, page: Page) -> Result<Vec<Logged>, StoreError> {
    let rows = fresh(
        db,
        sql("SELECT a.id, a.flags, a.stanza FROM (SELECT id, SUM(size) OVER (ORDER BY id) - size AS before \
             FROM (SELECT id, size FROM archive WHERE account = ?1 AND id > ?2 AND id < ?3 \
             ORDER BY id LIMIT ?4) AS rows) AS page \
             JOIN archive a ON a.id = page.id WHERE page.before < ?5 ORDER BY a.id")
        .bind(account)
        .bind(span.start.0)
        .bind(span.end.0)
        .bind(page.stanzas)
        .bind(page.bytes),
    )
    .await?;
    Ok(logged(&rows))
}

/// Reads behind everything that was submitted before: through the writer, whose order that is.
async fn fresh(db: &Db, statement: Statement) -> Result<Rows, StoreError> {
    // That order holds within a lane only: a message from outside may still wait while a younger one from inside is
    // committed, and whoever reads on behind the younger one would never see it.
    if db.is_open(Lane::Outside) {
        db.run(Batch::new(Lane::Outside)).await?;
    }
    let mut batch = Batch::new(Lane::Inside);
    batch.push(statement);
    let mut results = db.run(batch).await?;
    Ok(results.pop().unwrap_or_default())
}

fn logged(rows: &Rows) -> Vec<Logged> {
    rows.iter()
        .filter_map(|row| {
            let id = LogId(row.int(0));
            match Stanza::parse(row.blob(2)) {
                Ok(stanza) => Some(Logged { id, flags: row.int(1), stanza }),
                Err(error) => {
                    tracing::error!(id = id.0, %error, "a stanza in the log can't be read");
                    None
                }
            }
        })
        .collect()
}

/// The highest id in the log: ids go on above it.
///
/// # Errors
/// Those of the store.
pub async fn last_id(db: &Db) -> Result<LogId, StoreError> {
    let mut last = 0;
    for statement in
        [sql("SELECT COALESCE(MAX(id), 0) FROM archive"), sql("SELECT COALESCE(MAX(id), 0) FROM outbound")]
    {
        let rows = db.read(statement).await?;
        last = rows.iter().next().map_or(last, |row| last.max(row.int(0)));
    }
    Ok(LogId(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::MIGRATIONS;
    use trunkline_store::Options;

    const PAGE: Page = Page { stanzas: 10, bytes: 1 << 20 };

    /// A writer that is busy, so that what is submitted now waits in both lanes, until the sender is dropped.
    fn hold(db: &Db) -> std::sync::mpsc::Sender<()> {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let (began, begins) = std::sync::mpsc::channel();
        db.submit(Batch::new(Lane::Inside).with(sql("SELECT 1")), move |_| {
            let _ = began.send(());
            let _ = held.recv();
        });
        begins.recv().unwrap();
        hold
    }

    fn arrive(db: &Db, id: LogId) {
        let stanza = Stanza::parse(b"<message type='chat'><body>hello</body></message>").unwrap();
        let peer = Jid::parse("romeo@peer.example").unwrap();
        let mut batch = Batch::new(Lane::Outside);
        archive(&mut batch, &Entry { id, account: 1, peer: &peer, flags: HIDDEN, stanza: &stanza });
        await_delivery(&mut batch, 1, id);
        db.submit(batch, |result| {
            result.unwrap();
        });
    }

    #[tokio::test]
    async fn a_page_ends_at_its_bytes_and_has_one_stanza_at_least() {
        let db = Db::open(Options::memory(MIGRATIONS)).unwrap();
        let mut batch = Batch::new(Lane::Inside)
            .with(sql("INSERT INTO hosts (id, name) VALUES (1, 'here.example')"))
            .with(sql("INSERT INTO accounts (id, host_id, local, created_at) VALUES (1, 1, 'juliet', 0)"));
        let peer = Jid::parse("romeo@peer.example").unwrap();
        for (id, bytes) in [(1, 5000), (2, 100), (3, 100), (4, 100), (5, 5000), (6, 100)] {
            let xml = format!("<message type='chat'><body>{}</body></message>", "x".repeat(bytes));
            let stanza = Stanza::parse(xml.as_bytes()).unwrap();
            archive(&mut batch, &Entry { id: LogId(id), account: 1, peer: &peer, flags: 0, stanza: &stanza });
            await_delivery(&mut batch, 1, LogId(id));
        }
        db.run(batch).await.unwrap();
        let page = Page { stanzas: 10, bytes: 1000 };
        let ids = |rows: Vec<Logged>| rows.iter().map(|logged| logged.id.0).collect::<Vec<_>>();
        for (after, expected) in [(0, vec![1]), (1, vec![2, 3, 4, 5]), (5, vec![6]), (6, vec![])] {
            let span = || LogId(after)..LogId(i64::MAX);
            assert_eq!(ids(pending(&db, 1, span(), page).await.unwrap()), expected);
            assert_eq!(ids(since(&db, 1, span(), page).await.unwrap()), expected);
        }
        let two = Page { stanzas: 2, ..page };
        assert_eq!(ids(since(&db, 1, LogId(1)..LogId(i64::MAX), two).await.unwrap()), [2, 3]);
    }

    #[tokio::test]
    async fn the_two_lanes_of_the_store_do_not_hide_anything_from_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open(Options::file(directory.path().join("test.db"), MIGRATIONS)).unwrap();
        let setup = Batch::new(Lane::Inside)
            .with(sql("INSERT INTO hosts (id, name) VALUES (1, 'here.example')"))
            .with(sql("INSERT INTO accounts (id, host_id, local, created_at) VALUES (1, 1, 'juliet', 0)"));
        db.run(setup).await.unwrap();
        let everything = || LogId::ZERO..LogId(i64::MAX);

        let held = hold(&db);
        arrive(&db, LogId(1));
        let reading = db.clone();
        let read = tokio::spawn(async move { pending(&reading, 1, everything(), PAGE).await.unwrap().len() });
        tokio::task::yield_now().await;
        drop(held);
        assert_eq!(read.await.unwrap(), 1, "what came before the read is in it");

        delivered(&db, 1, &[LogId(1)]);
        db.flush().await;
        let held = hold(&db);
        arrive(&db, LogId(2));
        delivered(&db, 1, &[LogId(2)]);
        drop(held);
        db.flush().await;
        assert_eq!(pending(&db, 1, everything(), PAGE).await.unwrap().len(), 0, "delivered once is enough");
        assert_eq!(since(&db, 1, everything(), PAGE).await.unwrap().len(), 0);
    }
}
