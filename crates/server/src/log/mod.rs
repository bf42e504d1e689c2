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

pub mod in_flight;
pub mod pages;
pub mod search;
pub mod tombstones;

use std::ops::Range;
use std::sync::Arc;

use trunkline_store::{Batch, Db, Lane, Rows, Statement, StoreError, Ticket, sql};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::Stanza;

use self::in_flight::Deletion;
use crate::ids::LogId;
use crate::route::account::Account;

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
    batch.push(archived(entry));
}

fn archived(entry: &Entry<'_>) -> Statement {
    let mut bytes = Vec::with_capacity(entry.stanza.size() + 32);
    entry.stanza.write(&mut bytes);
    sql("INSERT INTO archive (id, account, peer, flags, size, stanza) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")
        .bind(entry.id.0)
        .bind(entry.account)
        .bind(entry.peer.bare_str())
        .bind(entry.flags)
        .bind(i64::try_from(bytes.len()).unwrap_or(i64::MAX))
        .bind(bytes)
}

/// Adds the rows of a stanza that has to be delivered: that it waits, and the stanza, which is hidden if it is not for
/// the archive. What is there for the delivery only is not written if that is faster than the store: see
/// [`in_flight`], which is to be told of the ticket.
pub fn await_delivery(batch: &mut Batch, entry: &Entry<'_>) -> Arc<Ticket> {
    let ticket = Arc::default();
    let stanza = archived(entry);
    batch.push(if entry.flags & HIDDEN == 0 { stanza } else { stanza.under(&ticket) });
    batch.push(waits(entry).under(&ticket));
    ticket
}

fn waits(entry: &Entry<'_>) -> Statement {
    sql("INSERT INTO pending (account, id, size) VALUES (?1, ?2, ?3)")
        .bind(entry.account)
        .bind(entry.id.0)
        .bind(i64::try_from(entry.stanza.size()).unwrap_or(i64::MAX))
}

/// The owner's clients have these: nothing waits any more. A hidden stanza goes altogether.
pub fn delivered(db: &Db, account: &Arc<Account>, ids: &[LogId]) {
    let mut batches = [Batch::new(Lane::Inside), Batch::new(Lane::Outside)];
    let mut gone = [Vec::new(), Vec::new()];
    for id in ids {
        let lane = match account.in_flight.delivered(*id) {
            Deletion::Withdrawn => continue,
            Deletion::Behind(lane) => {
                gone[lane as usize].push(*id);
                lane
            }
            Deletion::Anywhere => Lane::Inside,
        };
        forget(&mut batches[lane as usize], account.id, *id);
    }
    for (batch, gone) in batches.into_iter().zip(gone) {
        if batch.is_empty() {
            continue;
        }
        let account = Arc::clone(account);
        db.submit(batch, move |result| {
            gone.iter().for_each(|id| account.in_flight.landed(*id));
            if let Err(error) = result {
                // The rows stay: the stanzas come once more, marked as delayed and under the same id.
                tracing::warn!(%error, "could not note the delivery of stanzas");
            }
        });
    }
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

/// A page of the stanzas whose ids are in this table: at most so many, and none after the bytes are reached.
macro_rules! page_of {
    ($table:literal) => {
        sql(concat!(
            "SELECT a.id, a.flags, a.stanza FROM (SELECT id, SUM(size) OVER (ORDER BY id) - size AS before FROM (",
            "SELECT id, size FROM ",
            $table,
            " WHERE account = ?1 AND id > ?2 AND id < ?3 ORDER BY id LIMIT ?4) AS rows) AS page ",
            "JOIN archive a ON a.id = page.id WHERE page.before < ?5 ORDER BY a.id",
        ))
    };
}
use page_of;

/// What waits for `account` after the start of `span` and before its end, oldest first, at most a page.
///
/// # Errors
/// Those of the store.
pub async fn pending(
    db: &Db,
    account: &Account,
    span: Range<LogId>,
    page: Page,
) -> Result<Vec<Logged>, StoreError> {
    read(db, account, page_of!("pending"), (span, page)).await
}

/// The archive of `account` after the start of `span` and before its end, oldest first, at most a page; hidden rows
/// included. What is complete is only what had an id when this was called: the span must end there.
///
/// # Errors
/// Those of the store.
pub async fn since(
    db: &Db,
    account: &Account,
    span: Range<LogId>,
    page: Page,
) -> Result<Vec<Logged>, StoreError> {
    read(db, account, page_of!("archive"), (span, page)).await
}

/// The stanzas of these ids in the archive of `account`, oldest first; hidden ones are not history.
///
/// # Errors
/// Those of the store.
pub async fn picked(db: &Db, account: &Account, ids: &[LogId]) -> Result<Vec<Logged>, StoreError> {
    let Some(last) = ids.iter().max() else { return Ok(Vec::new()) };
    account.in_flight.settled(LogId(last.0.saturating_add(1))).await;
    let mut batch = Batch::new(Lane::Inside);
    for id in ids {
        batch.push(
            sql("SELECT id, flags, stanza FROM archive WHERE id = ?1 AND account = ?2 AND flags & 2 = 0")
                .bind(id.0)
                .bind(account.id),
        );
    }
    let mut found: Vec<Logged> = db.run(batch).await?.iter().flat_map(logged).collect();
    found.sort_by_key(|logged| logged.id);
    Ok(found)
}

/// Reads behind everything about these stanzas that was submitted before: rows that are on their way are waited for,
/// and the writer, whose order that is, does the reading.
async fn read(
    db: &Db,
    account: &Account,
    statement: Statement,
    (span, page): (Range<LogId>, Page),
) -> Result<Vec<Logged>, StoreError> {
    account.in_flight.settled(span.end).await;
    let statement =
        statement.bind(account.id).bind(span.start.0).bind(span.end.0).bind(page.stanzas).bind(page.bytes);
    let results = db.run(Batch::new(Lane::Inside).with(statement)).await?;
    Ok(results.first().map(logged).unwrap_or_default())
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
    use crate::route::account::Accounts;
    use crate::schema::MIGRATIONS;
    use trunkline_store::Options;

    const PAGE: Page = Page { stanzas: 10, bytes: 1 << 20 };

    async fn juliet(db: &Db) -> Arc<Account> {
        let setup = Batch::new(Lane::Inside)
            .with(sql("INSERT INTO hosts (id, name) VALUES (1, 'here.example')"))
            .with(sql("INSERT INTO accounts (id, host_id, local, created_at) VALUES (1, 1, 'juliet', 0)"));
        db.run(setup).await.unwrap();
        let loaded = Accounts::new().load(db, &Jid::parse("juliet@here.example").unwrap()).await.unwrap();
        Arc::clone(&loaded.unwrap())
    }

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

    fn arrive(db: &Db, account: &Arc<Account>, id: LogId) {
        let stanza = Stanza::parse(b"<message type='chat'><body>hello</body></message>").unwrap();
        let peer = Jid::parse("romeo@peer.example").unwrap();
        let mut batch = Batch::new(Lane::Outside);
        let entry = Entry { id, account: 1, peer: &peer, flags: HIDDEN, stanza: &stanza };
        account.in_flight.submitted(id, Lane::Outside, Some(await_delivery(&mut batch, &entry)));
        let account = Arc::clone(account);
        db.submit(batch, move |result| {
            account.in_flight.landed(id);
            result.unwrap();
        });
    }

    #[tokio::test]
    async fn a_page_ends_at_its_bytes_and_has_one_stanza_at_least() {
        let db = Db::open(Options::memory(MIGRATIONS)).unwrap();
        let account = juliet(&db).await;
        let mut batch = Batch::new(Lane::Inside);
        let peer = Jid::parse("romeo@peer.example").unwrap();
        for (id, bytes) in [(1, 5000), (2, 100), (3, 100), (4, 100), (5, 5000), (6, 100)] {
            let xml = format!("<message type='chat'><body>{}</body></message>", "x".repeat(bytes));
            let stanza = Stanza::parse(xml.as_bytes()).unwrap();
            let entry = Entry { id: LogId(id), account: 1, peer: &peer, flags: 0, stanza: &stanza };
            await_delivery(&mut batch, &entry);
        }
        db.run(batch).await.unwrap();
        let page = Page { stanzas: 10, bytes: 1000 };
        let ids = |rows: Vec<Logged>| rows.iter().map(|logged| logged.id.0).collect::<Vec<_>>();
        for (after, expected) in [(0, vec![1]), (1, vec![2, 3, 4, 5]), (5, vec![6]), (6, vec![])] {
            let span = || LogId(after)..LogId(i64::MAX);
            assert_eq!(ids(pending(&db, &account, span(), page).await.unwrap()), expected);
            assert_eq!(ids(since(&db, &account, span(), page).await.unwrap()), expected);
        }
        let two = Page { stanzas: 2, ..page };
        assert_eq!(ids(since(&db, &account, LogId(1)..LogId(i64::MAX), two).await.unwrap()), [2, 3]);
    }

    #[tokio::test]
    async fn the_two_lanes_of_the_store_do_not_hide_anything_from_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open(Options::file(directory.path().join("test.db"), MIGRATIONS)).unwrap();
        let account = juliet(&db).await;
        let everything = || LogId::ZERO..LogId(i64::MAX);

        let held = hold(&db);
        arrive(&db, &account, LogId(1));
        let (reading, reader) = (db.clone(), Arc::clone(&account));
        let read =
            tokio::spawn(async move { pending(&reading, &reader, everything(), PAGE).await.unwrap().len() });
        tokio::task::yield_now().await;
        drop(held);
        assert_eq!(read.await.unwrap(), 1, "what came before the read is in it");

        delivered(&db, &account, &[LogId(1)]);
        assert_eq!(
            pending(&db, &account, everything(), PAGE).await.unwrap().len(),
            0,
            "on the disk: deleted"
        );
        let held = hold(&db);
        arrive(&db, &account, LogId(2));
        delivered(&db, &account, &[LogId(2)]);
        drop(held);
        db.flush().await;
        assert_eq!(
            pending(&db, &account, everything(), PAGE).await.unwrap().len(),
            0,
            "delivered once is enough"
        );
        assert_eq!(since(&db, &account, everything(), PAGE).await.unwrap().len(), 0);
    }

    #[tokio::test]
    async fn what_is_picked_is_the_owners_history_and_what_is_on_its_way_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open(Options::file(directory.path().join("test.db"), MIGRATIONS)).unwrap();
        let account = juliet(&db).await;
        arrive(&db, &account, LogId(1));
        let held = hold(&db);
        let stanza = Stanza::parse(b"<message type='chat'><body>hello</body></message>").unwrap();
        let peer = Jid::parse("romeo@peer.example").unwrap();
        let mut batch = Batch::new(Lane::Outside);
        let entry = Entry { id: LogId(2), account: 1, peer: &peer, flags: 0, stanza: &stanza };
        account.in_flight.submitted(LogId(2), Lane::Outside, Some(await_delivery(&mut batch, &entry)));
        let landing = Arc::clone(&account);
        db.submit(batch, move |result| {
            landing.in_flight.landed(LogId(2));
            result.unwrap();
        });
        let (reading, reader) = (db.clone(), Arc::clone(&account));
        let ids = [LogId(1), LogId(2), LogId(3)];
        let read = tokio::spawn(async move { picked(&reading, &reader, &ids).await.unwrap() });
        tokio::task::yield_now().await;
        drop(held);
        let found: Vec<LogId> = read.await.unwrap().iter().map(|logged| logged.id).collect();
        assert_eq!(found, [LogId(2)], "1 is hidden, 3 is not there");
        let insert = "INSERT INTO accounts (id, host_id, local, created_at) VALUES (2, 1, 'nurse', 0)";
        db.run(Batch::new(Lane::Inside).with(sql(insert))).await.unwrap();
        let loaded = Accounts::new().load(&db, &Jid::parse("nurse@here.example").unwrap()).await.unwrap();
        assert!(picked(&db, &loaded.unwrap(), &ids).await.unwrap().is_empty(), "another's archive");
    }

    #[tokio::test]
    async fn what_is_delivered_before_the_store_comes_to_it_is_never_written() {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open(Options::file(directory.path().join("test.db"), MIGRATIONS)).unwrap();
        let account = juliet(&db).await;
        let held = hold(&db);
        let before = db.stats().batches;
        arrive(&db, &account, LogId(1));
        delivered(&db, &account, &[LogId(1)]);
        drop(held);
        db.flush().await;
        assert_eq!(db.stats().batches, before, "nothing was written");
        account.in_flight.settled(LogId(i64::MAX)).await;
    }
}
