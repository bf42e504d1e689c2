//! Tombstones (XEP-0424 s.5): what stands in an archive where a message was that its sender took back.
//!
//! That somebody takes a message back is a row, written with the retraction, and it stands until it is done: a flood of
//! retractions, a full disk and a crash make it late, and nothing makes it forgotten. There are as many rows as
//! retractions in the archives at most. Each lane carries out its own, account by account.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use trunkline_store::{Batch, Db, Lane, Statement, StoreError, sql};
use trunkline_xml::Writer;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::Stanza;
use trunkline_xmpp::{ns, time};

use super::SENT;
use crate::exchange::Exchange;
use crate::ids::LogId;
use crate::route::account::Account;

/// Bytes of an id that is looked for.
pub const MOST_ID: usize = 1024;
/// Retractions of one account that are carried out before it is another account's turn.
const AT_ONCE: i64 = 4;
/// What could not be carried out is tried again then.
const AGAIN: Duration = Duration::from_secs(60);
/// How far back a message is looked for: so many entries of the account's archive.
const REACH: i64 = 100_000;
/// Entries that one read looks at.
const SLICE: i64 = if cfg!(test) { 3 } else { 10_000 };

/// Rows that have the id in them and are read for one retraction: the id stands in a text too.
const MOST_CANDIDATES: usize = if cfg!(test) { 5 } else { 100 };
/// Retractions that one round passes over because the store can't do them.
const MOST_PASSED: usize = if cfg!(test) { 3 } else { 100 };
/// Rounds in which a retraction is tried that the store can't do.
const MOST_TRIES: u32 = 3;

/// Somebody takes a message back.
#[derive(Clone, Debug)]
pub struct Retraction {
    /// The id of the retraction in the archive: what it is about is older.
    pub id: LogId,
    /// The other side, seen from the archive's owner.
    pub peer: Jid,
    /// The owner takes it back, not the other side.
    pub sent: bool,
    /// The other side is in a room: addresses are compared with their resources.
    pub room: bool,
    /// The store's lane of who takes it back.
    pub lane: Lane,
    /// The `id` of the message.
    pub of: String,
    /// The `id` of the retraction.
    pub by: String,
}

impl Retraction {
    /// The statement that notes that it is to be carried out; the retraction's own row must be there.
    pub(crate) fn waits(&self, account: i64) -> Statement {
        sql("INSERT INTO retractions (id, account, outside, peer, sent, room, target, name) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")
        .bind(self.id.0)
        .bind(account)
        .bind(outside(self.lane))
        .bind(self.peer.as_str())
        .bind(i64::from(self.sent))
        .bind(i64::from(self.room))
        .bind(self.of.as_str())
        .bind(self.by.as_str())
    }
}

fn outside(lane: Lane) -> i64 {
    i64::from(lane == Lane::Outside)
}

/// Who carries retractions out: one task for each lane, while there is something to do.
#[derive(Debug, Default)]
pub struct Gravedigger {
    inside: Mutex<Work>,
    outside: Mutex<Work>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Work {
    #[default]
    None,
    /// A task goes through what there is.
    UnderWay,
    /// And has to look once more: something may have come behind its back.
    OnceMore,
}

impl Gravedigger {
    fn of(&self, lane: Lane) -> &Mutex<Work> {
        match lane {
            Lane::Inside => &self.inside,
            Lane::Outside => &self.outside,
        }
    }

    /// There is something to do; whether a task has to be begun for it.
    fn begins(&self, lane: Lane) -> bool {
        let mut work = self.of(lane).lock();
        let begins = *work == Work::None;
        *work = if begins { Work::UnderWay } else { Work::OnceMore };
        begins
    }

    /// Nothing was left; whether the task may end.
    fn ends(&self, lane: Lane) -> bool {
        let mut work = self.of(lane).lock();
        let ends = *work == Work::UnderWay;
        *work = if ends { Work::None } else { Work::UnderWay };
        ends
    }
}

impl Exchange {
    /// A retraction, with the row that says that it is to be carried out, is on its way to the disk.
    pub(crate) fn take_back(self: &Arc<Self>, account: &Arc<Account>, (id, lane): (LogId, Lane)) {
        let (exchange, account) = (Arc::clone(self), Arc::clone(account));
        self.spawn(async move {
            let account = exchange.accounts.hold(account);
            account.in_flight.settled(LogId(id.0.saturating_add(1))).await;
            exchange.take_all_back(lane);
        });
    }

    /// Carries out what is to be carried out, in the background; at the start what was left.
    pub(crate) fn take_all_back(self: &Arc<Self>, lane: Lane) {
        if !self.gravedigger.begins(lane) {
            return;
        }
        let exchange = Arc::clone(self);
        self.spawn(async move {
            let mut tries = Tries::new();
            loop {
                match carry_out(&exchange.db, lane, || exchange.clock().now(), &mut tries).await {
                    Ok(_) if exchange.gravedigger.ends(lane) => return,
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, "retracted messages could not be taken out of archives");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
        });
    }
}

/// Retractions that the store could not do, and in how many rounds: [`MOST_PASSED`] at most. A restart forgets it, and tries
/// them again.
type Tries = HashMap<i64, u32>;

/// It is not about the one row: nothing else could be done either.
fn ends_the_round(error: &StoreError) -> bool {
    matches!(error, StoreError::Full | StoreError::Io(_) | StoreError::Closed)
}

/// Carries out all that waits in a lane; how many. What can't be done keeps nothing else waiting: it is passed over, and
/// given up when [`MOST_TRIES`] rounds could not do it.
///
/// # Errors
/// Those of the store; what is not done still waits.
async fn carry_out(
    db: &Db,
    lane: Lane,
    now: impl Fn() -> i64,
    tries: &mut Tries,
) -> Result<usize, StoreError> {
    let (mut done, mut last) = (0, 0);
    let mut passed: Vec<i64> = Vec::new();
    let mut trouble = None;
    loop {
        if passed.len() >= MOST_PASSED {
            break;
        }
        let but = format!("[{}]", passed.iter().map(i64::to_string).collect::<Vec<_>>().join(","));
        let next = sql("SELECT id, account, peer, sent, room, target, name FROM retractions WHERE outside = ?1 \
                        AND account = (SELECT MIN(account) FROM retractions WHERE outside = ?1 AND account > ?2 \
                        AND id NOT IN (SELECT value FROM json_each(?4))) \
                        AND id NOT IN (SELECT value FROM json_each(?4)) ORDER BY id LIMIT ?3")
        .bind(outside(lane))
        .bind(last)
        .bind(AT_ONCE)
        .bind(but);
        let rows = db.read_in(lane, next).await?;
        if rows.is_empty() && last == 0 {
            break;
        }
        last = rows.first().map_or(0, |row| row.int(1));
        for row in rows.iter().take(MOST_PASSED - passed.len()) {
            if let Ok(peer) = Jid::parse(row.text(2)) {
                let retraction = Retraction {
                    id: LogId(row.int(0)),
                    peer,
                    sent: row.int(3) != 0,
                    room: row.int(4) != 0,
                    lane,
                    of: row.text(5).to_owned(),
                    by: row.text(6).to_owned(),
                };
                match bury(db, row.int(1), &retraction, now()).await {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::debug!("a retraction names no message of its sender in the archive");
                    }
                    Err(error) if ends_the_round(&error) => return Err(error),
                    Err(error) => {
                        let tried = tries.get(&row.int(0)).map_or(1, |tried| tried + 1);
                        if tried < MOST_TRIES {
                            tracing::warn!(%error, id = row.int(0), tried, "a retraction is passed over");
                            tries.insert(row.int(0), tried);
                            passed.push(row.int(0));
                            trouble.get_or_insert(error);
                            continue;
                        }
                        tracing::error!(%error, id = row.int(0), tried, "a retraction is given up");
                    }
                }
            }
            let over = sql("DELETE FROM retractions WHERE id = ?1").bind(row.int(0));
            db.run(Batch::new(lane).with(over)).await?;
            done += 1;
        }
    }
    tries.retain(|id, _| passed.contains(id));
    trouble.map_or(Ok(done), Err)
}

/// Puts a tombstone in the place of the message; false: there is none that its sender may take back.
///
/// # Errors
/// Those of the store.
async fn bury(db: &Db, account: i64, retraction: &Retraction, now: i64) -> Result<bool, StoreError> {
    // As it stands in the row: an attribute.
    let mut needle = b" id='".to_vec();
    needle.extend_from_slice(trunkline_xml::escape_attr(&retraction.of).as_bytes());
    needle.push(b'\'');
    let mut before = retraction.id;
    let mut candidates = 0;
    for _ in 0..REACH / SLICE {
        let mut batch = vec![
            sql("SELECT id FROM archive WHERE account = ?1 AND id < ?2 ORDER BY id DESC LIMIT 1 OFFSET ?3")
                .bind(account)
                .bind(before.0)
                .bind(SLICE - 1),
        ];
        batch.push(
            sql("SELECT id FROM archive WHERE id IN (SELECT id FROM (SELECT id, peer, flags FROM archive \
                 WHERE account = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3) WHERE peer = ?4 AND flags & 1 = ?5) \
                 AND INSTR(stanza, ?6) > 0 ORDER BY id DESC LIMIT ?7")
            .bind(account)
            .bind(before.0)
            .bind(SLICE)
            .bind(retraction.peer.bare_str())
            .bind(if retraction.sent { SENT } else { 0 })
            .bind(needle.clone())
            .bind(i64::try_from(MOST_CANDIDATES - candidates).unwrap_or(0)),
        );
        let results = db.read_all(retraction.lane, batch).await?;
        let [slice, found] = results.as_slice() else { return Ok(false) };
        for row in found.iter() {
            candidates += 1;
            // One by one: each may be as long as a stanza can be.
            let one = sql("SELECT stanza FROM archive WHERE id = ?1 AND account = ?2");
            let one = db.read_in(retraction.lane, one.bind(row.int(0)).bind(account)).await?;
            let Some(Ok(stanza)) = one.first().map(|row| Stanza::parse(row.blob(0))) else { continue };
            if stanza.head.id.as_deref() == Some(&retraction.of) && may(retraction, &stanza) {
                let tombstone = buried(&stanza, retraction, now);
                return replace(db, retraction.lane, (account, row.int(0)), &tombstone).await;
            }
        }
        if candidates >= MOST_CANDIDATES {
            return Ok(false);
        }
        let Some(row) = slice.first() else { return Ok(false) };
        before = LogId(row.int(0));
    }
    Ok(false)
}

/// s.6: from the same person. The rows are those of the same bare address already. What is a tombstone stays one.
fn may(retraction: &Retraction, stanza: &Stanza) -> bool {
    let them = if retraction.sent { &stanza.head.to } else { &stanza.head.from };
    let room = retraction.room || stanza.child(ns::MUC_USER, "x").is_some();
    let same = them.as_ref().is_some_and(|them| !room || *them == retraction.peer);
    same && stanza.child(ns::RETRACT, "retracted").is_none() && stanza.child(ns::RETRACT, "retract").is_none()
}

/// Nothing is left but the head, and the id by which it is found in this archive: written anew, nothing of what others have
/// put beside it.
fn buried(stanza: &Stanza, retraction: &Retraction, now: i64) -> Stanza {
    let mut w = Writer::new();
    w.open("retracted")
        .attr("xmlns", ns::RETRACT)
        .attr("id", &retraction.by)
        .attr("stamp", &time::format_millis(now))
        .close();
    let head = &stanza.head;
    let owner = if retraction.sent { &head.from } else { &head.to };
    // What one sends to oneself may be addressed to nobody.
    let owner = owner.as_ref().or(head.from.as_ref()).map(Jid::bare_str);
    let id = stanza
        .children()
        .filter(|child| child.is(ns::STANZA_ID, "stanza-id") && child.attr("by").as_deref() == owner)
        .find_map(|child| child.attr("id"));
    if let Some((by, id)) = owner.zip(id).filter(|(_, id)| id.len() <= MOST_ID) {
        w.open("stanza-id").attr("xmlns", ns::STANZA_ID).attr("by", by).attr("id", &id).close();
    }
    stanza.with_payload(w.finish())
}

async fn replace(
    db: &Db,
    lane: Lane,
    (account, id): (i64, i64),
    tombstone: &Stanza,
) -> Result<bool, StoreError> {
    let mut bytes = Vec::with_capacity(tombstone.size() + 32);
    tombstone.write(&mut bytes);
    let batch = Batch::new(lane)
        .with(
            sql("UPDATE archive SET stanza = ?3, size = ?4 WHERE id = ?1 AND account = ?2")
                .bind(id)
                .bind(account)
                .bind(bytes.clone())
                .bind(i64::try_from(bytes.len()).unwrap_or(i64::MAX)),
        )
        // XEP-0431: nor is it found by its words.
        .with(sql("DELETE FROM archive_words WHERE rowid = ?1").bind(id));
    let results = db.run(batch).await?;
    Ok(results.first().is_some_and(|rows| rows.changes() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::MIGRATIONS;
    use trunkline_store::Options;

    async fn archive() -> Db {
        let db = Db::open(Options::memory(MIGRATIONS)).unwrap();
        let setup = Batch::new(Lane::Inside)
            .with(sql("INSERT INTO hosts (id, name) VALUES (1, 'here.example')"))
            .with(sql("INSERT INTO accounts (id, host_id, local, created_at) VALUES (1, 1, 'juliet', 0)"));
        db.run(setup).await.unwrap();
        db
    }

    async fn add(db: &Db, id: i64, (peer, flags): (&str, i64), xml: &str) {
        let insert =
            sql("INSERT INTO archive (id, account, peer, flags, size, stanza) VALUES (?1, 1, ?2, ?3, 0, ?4)")
                .bind(id)
                .bind(peer)
                .bind(flags)
                .bind(xml.as_bytes().to_vec());
        db.run(Batch::new(Lane::Inside).with(insert)).await.unwrap();
    }

    async fn text(db: &Db, id: i64) -> String {
        let rows = db.read(sql("SELECT stanza FROM archive WHERE id = ?1").bind(id)).await.unwrap();
        String::from_utf8(rows.first().unwrap().blob(0).to_vec()).unwrap()
    }

    fn by(peer: &str, of: &str) -> Retraction {
        Retraction {
            id: LogId(1000),
            peer: Jid::parse(peer).unwrap(),
            sent: false,
            room: false,
            lane: Lane::Inside,
            of: of.into(),
            by: "r'1".into(),
        }
    }

    #[tokio::test]
    async fn only_its_sender_takes_a_message_back_and_nothing_of_it_is_left() {
        let db = archive().await;
        let romeo = "romeo@there.example";
        let said = "<message from='romeo@there.example/orchard' to='juliet@here.example' id='m&apos;1' type='chat'>\
             <body>secret</body><x xmlns='jabber:x:oob'><url>https://secret.example</url></x>\
             <origin-id xmlns='urn:xmpp:sid:0' id='m&apos;1'/>\
             <stanza-id xmlns='urn:xmpp:sid:0' by='juliet@here.example' id='s1'/></message>";
        add(&db, 1, (romeo, 0), said).await;
        // The same id, of others and the other way.
        add(&db, 2, ("iago@there.example", 0), &said.replace("romeo", "iago")).await;
        add(&db, 3, (romeo, SENT), &said.replace("secret", "mine")).await;
        for id in 10..30 {
            add(&db, id, (romeo, 0), "<message id='other'><body>m'1 id='m&apos;2'</body></message>").await;
        }
        // Older only: what is retracted was there before.
        add(&db, 2000, (romeo, 0), said).await;
        assert!(!bury(&db, 1, &by("nurse@here.example/x", "m'1"), 0).await.unwrap());
        assert!(!bury(&db, 1, &by("romeo@there.example/x", "m"), 0).await.unwrap());
        let words = sql("INSERT INTO archive_words (rowid, owner, body) VALUES (1, 'a1', 'secret')");
        db.run(Batch::new(Lane::Inside).with(words)).await.unwrap();
        // From another device: the bare address counts.
        assert!(bury(&db, 1, &by("romeo@there.example/phone", "m'1"), 0).await.unwrap());
        let tombstone = text(&db, 1).await;
        assert!(!tombstone.contains("secret"), "{tombstone}");
        let stanza = Stanza::parse(tombstone.as_bytes()).unwrap();
        let retracted = stanza.child(ns::RETRACT, "retracted").unwrap();
        assert_eq!(retracted.attr("id").as_deref(), Some("r'1"));
        assert_eq!(retracted.attr("stamp").as_deref(), Some("1970-01-01T00:00:00.000Z"));
        assert_eq!(stanza.head.id.as_deref(), Some("m'1"));
        assert_eq!(stanza.child(ns::STANZA_ID, "stanza-id").unwrap().attr("id").as_deref(), Some("s1"));
        assert!(db.read(sql("SELECT 1 FROM archive_words")).await.unwrap().is_empty());
        let size = db.read(sql("SELECT size FROM archive WHERE id = 1")).await.unwrap();
        assert_eq!(size.first().unwrap().int(0), i64::try_from(tombstone.len()).unwrap());
        for id in [2, 3, 2000] {
            assert!(text(&db, id).await.contains("body"), "{id} is not theirs to take back");
        }
        // Once.
        assert!(!bury(&db, 1, &by("romeo@there.example/phone", "m'1"), 5).await.unwrap());
        assert_eq!(text(&db, 1).await, tombstone);
    }

    #[tokio::test]
    async fn however_many_there_are_none_is_forgotten() {
        let db = archive().await;
        let second = sql("INSERT INTO accounts (id, host_id, local, created_at) VALUES (2, 1, 'nurse', 0)");
        db.run(Batch::new(Lane::Inside).with(second)).await.unwrap();
        let said = |n: i64| {
            format!(
                "<message from='romeo@there.example/x' id='m{n}' type='chat'><body>secret</body></message>"
            )
        };
        for n in 1..=300 {
            add(&db, n, ("romeo@there.example", 0), &said(n)).await;
        }
        let retraction = |n: i64, lane: Lane| Retraction {
            id: LogId(1000 + n),
            lane,
            by: format!("r{n}"),
            ..by("romeo@there.example/x", &format!("m{n}"))
        };
        for n in 1..=300 {
            add(&db, 1000 + n, ("romeo@there.example", 0), "<message id='r'/>").await;
            // The last is of a lane of its own, and the one before of nobody in this archive.
            let lane = if n == 300 { Lane::Outside } else { Lane::Inside };
            let account = if n == 299 { 2 } else { 1 };
            db.run(Batch::new(lane).with(retraction(n, lane).waits(account))).await.unwrap();
        }
        let left = || async { db.read(sql("SELECT id FROM retractions ORDER BY id")).await.unwrap().len() };
        // One whose retraction is gone from the archive goes with it.
        db.run(Batch::new(Lane::Inside).with(sql("DELETE FROM archive WHERE id = 1298"))).await.unwrap();
        assert_eq!(left().await, 299);
        assert_eq!(carry_out(&db, Lane::Inside, || 0, &mut Tries::new()).await.unwrap(), 298);
        assert_eq!(left().await, 1);
        for n in 1..298 {
            assert!(text(&db, n).await.contains(&format!("id='r{n}'")), "{n}");
        }
        for n in 298..=300 {
            assert!(text(&db, n).await.contains("secret"), "{n}");
        }
        assert_eq!(carry_out(&db, Lane::Outside, || 0, &mut Tries::new()).await.unwrap(), 1);
        assert!(text(&db, 300).await.contains("retracted") && left().await == 0);
    }

    #[tokio::test]
    async fn what_a_message_declares_once_is_not_multiplied_in_its_tombstone() {
        let db = archive().await;
        let ids = "<a:origin-id/><a:x/><a:stanza-id by='juliet@here.example' x='y' id='s1'/>".repeat(500);
        // An ASCII apostrophe in the other quotes would be six bytes for one.
        let said = format!(
            "<message from='romeo@there.example/x' to='juliet@here.example/y' id='m1' type='chat' \
             xmlns:a='urn:xmpp:sid:0' xmlns:b=\"{}\">{ids}<b:x/>\
             <stanza-id xmlns='urn:xmpp:sid:0' by='romeo@there.example' id='theirs'/></message>",
            "'".repeat(10_000)
        );
        let said = said.replace("<a:x/>", "<a:stanza-id b:x='' by='x'/>");
        add(&db, 1, ("romeo@there.example", 0), &said).await;
        assert!(bury(&db, 1, &by("romeo@there.example/x", "m1"), 0).await.unwrap());
        let tombstone = text(&db, 1).await;
        // What stands on the message itself stays there, once.
        assert!(tombstone.len() < 11_000, "{} bytes", tombstone.len());
        let stanza = Stanza::parse(tombstone.as_bytes()).unwrap();
        let ids: Vec<String> = stanza
            .children()
            .filter(|child| child.ns() == ns::STANZA_ID)
            .map(|child| String::from_utf8_lossy(child.raw()).into_owned())
            .collect();
        assert_eq!(ids, ["<stanza-id xmlns='urn:xmpp:sid:0' by='juliet@here.example' id='s1'/>"]);
    }

    /// Message number `n`, and its retraction, which is not carried out yet.
    async fn said_and_taken_back(db: &Db, n: i64) {
        let said =
            format!("<message from='romeo@there.example/x' id='m{n}' type='chat'><body>x</body></message>");
        add(db, n, ("romeo@there.example", 0), &said).await;
        add(db, 1000 + n, ("romeo@there.example", 0), "<message id='r'/>").await;
        let retraction = Retraction { id: LogId(1000 + n), ..by("romeo@there.example/x", &format!("m{n}")) };
        db.run(Batch::new(Lane::Inside).with(retraction.waits(1))).await.unwrap();
    }

    /// What the store can't do keeps nothing else waiting, and is given up in the end.
    #[tokio::test]
    async fn one_that_cannot_be_done_does_not_block_the_others() {
        let db = archive().await;
        let second = sql("INSERT INTO accounts (id, host_id, local, created_at) VALUES (2, 1, 'nurse', 0)");
        let refuse = sql("CREATE TRIGGER refuse BEFORE UPDATE ON archive WHEN old.id < 3 \
                          BEGIN SELECT RAISE(ABORT, 'no'); END");
        db.run(Batch::new(Lane::Inside).with(second).with(refuse)).await.unwrap();
        for n in 1..=12 {
            said_and_taken_back(&db, n).await;
        }
        let left = || async { db.read(sql("SELECT id FROM retractions ORDER BY id")).await.unwrap().len() };
        let mut tries = Tries::new();
        for round in 1..MOST_TRIES {
            let error = carry_out(&db, Lane::Inside, || 0, &mut tries).await.unwrap_err();
            assert!(!ends_the_round(&error), "{error}");
            assert_eq!((left().await, tries.get(&1001), tries.len()), (2, Some(&round), 2));
            assert!(text(&db, 12).await.contains("retracted") && text(&db, 2).await.contains("body"));
        }
        assert_eq!(carry_out(&db, Lane::Inside, || 0, &mut tries).await, Ok(2));
        assert!(left().await == 0 && tries.is_empty());
        // Of those that close the store nothing is given up.
        for error in [StoreError::Full, StoreError::Io(String::new()), StoreError::Closed] {
            assert!(ends_the_round(&error));
        }
    }

    /// More of them than a round passes over: the rounds get to the end all the same.
    #[tokio::test]
    async fn many_that_cannot_be_done_are_given_up_too() {
        let db = archive().await;
        let refuse = sql("CREATE TRIGGER refuse BEFORE UPDATE ON archive WHEN old.id < 11 \
                          BEGIN SELECT RAISE(ABORT, 'no'); END");
        db.run(Batch::new(Lane::Inside).with(refuse)).await.unwrap();
        for n in 1..=11 {
            said_and_taken_back(&db, n).await;
        }
        let mut tries = Tries::new();
        let mut rounds = 0;
        while carry_out(&db, Lane::Inside, || 0, &mut tries).await.is_err() {
            assert!(tries.len() <= MOST_PASSED, "{tries:?}");
            rounds += 1;
            assert!(rounds < 100, "it does not end");
        }
        assert!(text(&db, 11).await.contains("retracted"));
        assert!(db.read(sql("SELECT id FROM retractions")).await.unwrap().is_empty());
    }

    /// Who quotes an id in many messages makes nobody read all of them.
    #[tokio::test]
    async fn only_so_many_rows_are_read_for_one() {
        let db = archive().await;
        let romeo = "romeo@there.example";
        let said = "<message from='romeo@there.example/x' id='m1' type='chat'><body>x</body></message>";
        let quotes = "<message from='romeo@there.example/x' id='m2'><body> id='m1'</body></message>";
        add(&db, 1, (romeo, 0), said).await;
        for id in 2..=MOST_CANDIDATES {
            add(&db, i64::try_from(id).unwrap(), (romeo, 0), quotes).await;
        }
        add(&db, 900, (romeo, 0), quotes).await;
        assert!(!bury(&db, 1, &by("romeo@there.example/x", "m1"), 0).await.unwrap());
        db.run(Batch::new(Lane::Inside).with(sql("DELETE FROM archive WHERE id = 900"))).await.unwrap();
        assert!(bury(&db, 1, &by("romeo@there.example/x", "m1"), 0).await.unwrap());
    }

    #[test]
    fn what_comes_while_one_ends_is_seen() {
        let digger = Gravedigger::default();
        assert!(digger.begins(Lane::Inside) && digger.begins(Lane::Outside));
        assert!(!digger.begins(Lane::Inside));
        assert!(!digger.ends(Lane::Inside), "it has to look once more");
        assert!(digger.ends(Lane::Inside) && digger.begins(Lane::Inside));
        assert!(digger.ends(Lane::Outside));
    }

    #[tokio::test]
    async fn in_a_room_the_resource_is_the_person() {
        let db = archive().await;
        let room = "<message from='room@muc.example/romeo' id='m1' type='chat'><body>x</body>\
             <x xmlns='http://jabber.org/protocol/muc#user'/></message>";
        add(&db, 1, ("room@muc.example", 0), room).await;
        assert!(!bury(&db, 1, &by("room@muc.example/iago", "m1"), 0).await.unwrap());
        add(&db, 2, ("room@muc.example", 0), &room.replace("muc#user", "none")).await;
        let iago = Retraction { room: true, ..by("room@muc.example/iago", "m1") };
        assert!(!bury(&db, 1, &iago, 0).await.unwrap());
        assert!(bury(&db, 1, &by("room@muc.example/romeo", "m1"), 0).await.unwrap());
        assert!(text(&db, 2).await.contains("retracted") && text(&db, 1).await.contains("body"));
    }
}
