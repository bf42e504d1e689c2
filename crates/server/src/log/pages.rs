//! Pages of one account's archive: which messages match, in what order, and the messages themselves.
//!
//! What matches is found in the index alone; messages are read when they are sent. Every read is bounded, so that
//! nobody's archive, however large, holds a reader for long: a search through a large one is many reads, and who asks
//! waits between them.

use bytes::Bytes;
use trunkline_store::{Db, Lane, Statement, StoreError, Value, sql};
use trunkline_xml::Writer;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::Stanza;

use crate::ids::{Ids, LogId};
use crate::route::account::Account;

/// Rows of the index that one read looks at when it searches for an address.
const SLICE: i64 = if cfg!(test) { 7 } else { 20_000 };
/// Messages that one read finds at most.
const ROWS: usize = if cfg!(test) { 5 } else { 4096 };
/// Messages counted for a page; above it the number is told only to those who ask for it alone.
pub const COUNTED: u64 = 1000;
/// Bytes of messages read at once. The first comes whatever its size.
const BYTES: i64 = 128 << 10;

/// What is looked for.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Only ids above.
    pub after: LogId,
    /// Only ids below. All rows below must be on the disk: see [`settle`].
    pub before: LogId,
    /// Messages with this address; a bare one stands for all its devices.
    pub with: Option<Jid>,
    /// A text for the full-text index, see [`super::search`].
    pub words: Option<String>,
    /// Of these messages.
    pub only: Option<Vec<LogId>>,
}

/// A part of what matches.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Only ids above.
    pub after: LogId,
    /// Only ids below.
    pub before: LogId,
    /// From the end.
    pub backward: bool,
    /// So many matching messages are passed over.
    pub skip: u64,
    /// Messages at most.
    pub most: usize,
}

/// A message that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its id.
    pub id: LogId,
    /// The bytes of its stanza.
    pub size: i64,
}

/// What [`find`] has found.
#[derive(Debug, Default)]
pub struct Found {
    /// Oldest first.
    pub places: Vec<Place>,
    /// There is no more in the direction of the search.
    pub complete: bool,
}

/// Waits until every message that `account` was given an id for is on the disk or has failed, and returns the end of
/// those ids.
pub async fn settle(account: &Account, next: impl FnOnce() -> LogId) -> LogId {
    let end = {
        // Ids are given out and rows submitted under this lock: what has an id below is submitted.
        let _state = account.state();
        next()
    };
    account.in_flight.settled(end).await;
    end
}

/// All of `ids` are in the account's archive.
///
/// # Errors
/// Those of the store.
pub async fn has_all(db: &Db, account: i64, ids: &[LogId]) -> Result<bool, StoreError> {
    if ids.is_empty() {
        return Ok(true);
    }
    let statements = ids.iter().map(|id| {
        sql("SELECT 1 FROM archive WHERE id = ?1 AND account = ?2 AND flags & 2 = 0").bind(id.0).bind(account)
    });
    let found = db.read_all(Lane::Inside, statements.collect()).await?;
    Ok(found.iter().all(|rows| !rows.is_empty()))
}

/// `<metadata/>` (XEP-0313 s.5): the ends of the archive as it is now.
///
/// # Errors
/// Those of the store.
pub async fn metadata(db: &Db, ids: &Ids, account: &Account) -> Result<Vec<u8>, StoreError> {
    settle(account, || ids.next()).await;
    let mut w = Writer::new();
    w.open("metadata").attr("xmlns", ns::MAM);
    if let Some((first, last)) = ends(db, account.id).await? {
        for (name, id) in [("start", first), ("end", last)] {
            let stamp = trunkline_xmpp::time::format_millis(id.millis());
            let uid = ids.uuid(id).hyphenated().to_string();
            w.open(name).attr("id", &uid).attr("timestamp", &stamp).close();
        }
    }
    w.close();
    Ok(w.finish())
}

/// The first and the last message of the archive.
async fn ends(db: &Db, account: i64) -> Result<Option<(LogId, LogId)>, StoreError> {
    let statements = vec![
        sql("SELECT id FROM archive WHERE account = ?1 AND flags & 2 = 0 ORDER BY id LIMIT 1").bind(account),
        sql("SELECT id FROM archive WHERE account = ?1 AND flags & 2 = 0 ORDER BY id DESC LIMIT 1")
            .bind(account),
    ];
    let ends = db.read_all(Lane::Inside, statements).await?;
    let end = |at: usize| ends.get(at).and_then(|rows| rows.first()).map(|row| LogId(row.int(0)));
    Ok(end(0).zip(end(1)))
}

/// Finds the messages of a part of what matches.
///
/// # Errors
/// Those of the store.
pub async fn find(db: &Db, account: i64, filter: &Filter, window: Window) -> Result<Found, StoreError> {
    let mut search = Search::new(filter, window);
    let mut places: Vec<Place> = Vec::new();
    let mut skip = window.skip;
    let mut complete = true;
    'search: while let Some(rows) = search.next(db, account).await? {
        for place in rows {
            if skip > 0 {
                skip -= 1;
            } else if places.len() < window.most {
                places.push(place);
            } else {
                complete = false;
                break 'search;
            }
        }
    }
    if window.backward {
        places.reverse();
    }
    Ok(Found { places, complete })
}

/// How many messages match: all of them, however long that takes.
///
/// # Errors
/// Those of the store.
pub async fn count(db: &Db, account: i64, filter: &Filter) -> Result<u64, StoreError> {
    let window =
        Window { after: filter.after, before: filter.before, backward: false, skip: 0, most: usize::MAX - 1 };
    let mut search = Search::new(filter, window);
    let mut count = 0;
    while let Some(rows) = search.next(db, account).await? {
        count += rows.len() as u64;
    }
    Ok(count)
}

/// How many messages match, and how many of them are older than `first`, if that is known with little work.
///
/// # Errors
/// Those of the store.
pub async fn count_for_page(
    db: &Db,
    account: i64,
    filter: &Filter,
    first: Option<LogId>,
) -> Result<Option<(u64, u64)>, StoreError> {
    if filter.with.is_some() || filter.words.is_some() || filter.only.is_some() {
        return Ok(None);
    }
    let counted = |before: LogId| {
        sql("SELECT COUNT(*) FROM (SELECT 1 FROM archive WHERE account = ?1 AND id > ?2 AND id < ?3 \
             AND flags & 2 = 0 LIMIT ?4) AS counted")
        .bind(account)
        .bind(filter.after.0)
        .bind(before.0)
        .bind(i64::try_from(COUNTED + 1).unwrap_or(i64::MAX))
    };
    let statements = vec![counted(filter.before), counted(first.unwrap_or(filter.before))];
    let rows = db.read_all(Lane::Inside, statements).await?;
    let count = |at: usize| {
        let row = rows.get(at).and_then(|rows| rows.first());
        row.and_then(|row| u64::try_from(row.int(0)).ok()).unwrap_or(0)
    };
    Ok((count(0) <= COUNTED).then(|| (count(0), count(1))))
}

/// The messages at the first of `places`, as many as are read at once, and what is left of `places`. What was deleted
/// since is not among them. `dense`: nothing that lies between them is not wanted.
///
/// # Errors
/// Those of the store.
pub async fn read<'a>(
    db: &Db,
    account: i64,
    places: &'a [Place],
    dense: bool,
) -> Result<(Vec<(LogId, Bytes)>, &'a [Place]), StoreError> {
    let mut bytes = 0;
    let fits = |place: &&Place| {
        let before = bytes;
        bytes += place.size;
        before < BYTES
    };
    let (now, later) = places.split_at(places.iter().take_while(fits).count());
    let (Some(one), Some(other)) = (now.first(), now.last()) else { return Ok((Vec::new(), later)) };
    let statements: Vec<Statement> = if dense {
        vec![
            sql("SELECT id, stanza FROM archive WHERE account = ?1 AND id >= ?2 AND id <= ?3 AND flags & 2 = 0 \
                 ORDER BY id")
            .bind(account)
            .bind(one.id.min(other.id).0)
            .bind(one.id.max(other.id).0),
        ]
    } else {
        let statement = |place: &Place| {
            sql("SELECT id, stanza FROM archive WHERE id = ?1 AND account = ?2 AND flags & 2 = 0")
                .bind(place.id.0)
                .bind(account)
        };
        now.iter().map(statement).collect()
    };
    let results = db.read_all(Lane::Inside, statements).await?;
    let rows = results.iter().flat_map(|rows| rows.iter());
    let mut stanzas: Vec<(LogId, Bytes)> = rows.map(|row| (LogId(row.int(0)), row.blob(1).clone())).collect();
    if dense && one.id > other.id {
        stanzas.reverse();
    }
    Ok((stanzas, later))
}

/// Goes through what matches, in one direction, read by read.
struct Search<'a> {
    filter: &'a Filter,
    /// What has not been looked at: above and below these.
    rest: (LogId, LogId),
    backward: bool,
    limit: usize,
    done: bool,
}

impl<'a> Search<'a> {
    fn new(filter: &'a Filter, window: Window) -> Search<'a> {
        let rest = (filter.after.max(window.after), filter.before.min(window.before));
        let skip = usize::try_from(window.skip).unwrap_or(usize::MAX);
        // One more than is wanted tells whether there is more.
        let limit = window.most.saturating_add(1).saturating_add(skip).min(ROWS);
        Search { filter, rest, backward: window.backward, limit, done: false }
    }

    /// What another read has found, which may be nothing; `None`: all was looked at.
    async fn next(&mut self, db: &Db, account: i64) -> Result<Option<Vec<Place>>, StoreError> {
        if self.done || self.rest.1.0 - self.rest.0.0 <= 1 {
            return Ok(None);
        }
        if let Some(only) = &self.filter.only {
            self.done = true;
            return self.among(db, account, only).await.map(Some);
        }
        let limit = i64::try_from(self.limit).unwrap_or(i64::MAX);
        let rows = db.read(self.statement(account, limit)).await?;
        let places: Vec<Place> =
            rows.iter().map(|row| Place { id: LogId(row.int(0)), size: row.int(1) }).collect();
        match places.last() {
            Some(last) if places.len() >= self.limit => self.go_on_behind(last.id),
            _ => match self.end_of_slice(db, account).await? {
                Some(end) => self.go_on_behind(end),
                None => self.done = true,
            },
        }
        self.of_device(db, account, places).await.map(Some)
    }

    fn go_on_behind(&mut self, id: LogId) {
        if self.backward {
            self.rest.1 = id;
        } else {
            self.rest.0 = id;
        }
    }

    fn statement(&self, account: i64, limit: i64) -> Statement {
        let with = match &self.filter.with {
            Some(with) => Value::from(with.bare_str()),
            None => Value::Null,
        };
        let (after, before) = (self.rest.0.0, self.rest.1.0);
        if let Some(words) = &self.filter.words {
            let statement = if self.backward {
                sql("SELECT a.id, a.size FROM archive_words w JOIN archive a ON a.id = w.rowid \
                     WHERE archive_words MATCH ?1 AND w.rowid > ?2 AND w.rowid < ?3 AND a.account = ?4 \
                     AND a.flags & 2 = 0 AND (?5 IS NULL OR a.peer = ?5) ORDER BY w.rowid DESC LIMIT ?6")
            } else {
                sql("SELECT a.id, a.size FROM archive_words w JOIN archive a ON a.id = w.rowid \
                     WHERE archive_words MATCH ?1 AND w.rowid > ?2 AND w.rowid < ?3 AND a.account = ?4 \
                     AND a.flags & 2 = 0 AND (?5 IS NULL OR a.peer = ?5) ORDER BY w.rowid LIMIT ?6")
            };
            let words = super::search::within(account, words);
            return statement.bind(words).bind(after).bind(before).bind(account).bind(with).bind(limit);
        }
        if self.filter.with.is_none() {
            let statement = if self.backward {
                sql(
                    "SELECT id, size FROM archive WHERE account = ?1 AND id > ?2 AND id < ?3 AND flags & 2 = 0 \
                     ORDER BY id DESC LIMIT ?4",
                )
            } else {
                sql(
                    "SELECT id, size FROM archive WHERE account = ?1 AND id > ?2 AND id < ?3 AND flags & 2 = 0 \
                     ORDER BY id LIMIT ?4",
                )
            };
            return statement.bind(account).bind(after).bind(before).bind(limit);
        }
        let statement = if self.backward {
            sql("SELECT id, size FROM (SELECT id, size, peer, flags FROM archive WHERE account = ?1 \
                 AND id > ?2 AND id < ?3 ORDER BY id DESC LIMIT ?4) AS slice \
                 WHERE peer = ?5 AND flags & 2 = 0 ORDER BY id DESC LIMIT ?6")
        } else {
            sql("SELECT id, size FROM (SELECT id, size, peer, flags FROM archive WHERE account = ?1 \
                 AND id > ?2 AND id < ?3 ORDER BY id LIMIT ?4) AS slice \
                 WHERE peer = ?5 AND flags & 2 = 0 ORDER BY id LIMIT ?6")
        };
        statement.bind(account).bind(after).bind(before).bind(SLICE).bind(with).bind(limit)
    }

    /// The last id that a read looked at when it searched for an address, if there is more behind.
    async fn end_of_slice(&self, db: &Db, account: i64) -> Result<Option<LogId>, StoreError> {
        if self.filter.with.is_none() || self.filter.words.is_some() {
            return Ok(None);
        }
        let statement = if self.backward {
            sql("SELECT id FROM archive WHERE account = ?1 AND id > ?2 AND id < ?3 \
                 ORDER BY id DESC LIMIT 1 OFFSET ?4")
        } else {
            sql(
                "SELECT id FROM archive WHERE account = ?1 AND id > ?2 AND id < ?3 ORDER BY id LIMIT 1 OFFSET ?4",
            )
        };
        let statement = statement.bind(account).bind(self.rest.0.0).bind(self.rest.1.0).bind(SLICE - 1);
        Ok(db.read(statement).await?.first().map(|row| LogId(row.int(0))))
    }

    /// Of the messages that were named those that match.
    async fn among(&self, db: &Db, account: i64, only: &[LogId]) -> Result<Vec<Place>, StoreError> {
        let statements = only.iter().map(|id| {
            sql("SELECT id, size, peer FROM archive WHERE id = ?1 AND account = ?2 AND flags & 2 = 0")
                .bind(id.0)
                .bind(account)
        });
        let results = db.read_all(Lane::Inside, statements.collect()).await?;
        let matching = results.iter().flat_map(|rows| rows.iter()).filter(|row| {
            let id = LogId(row.int(0));
            id > self.rest.0
                && id < self.rest.1
                && self.filter.with.as_ref().is_none_or(|with| with.bare_str() == row.text(2))
        });
        let mut places: Vec<Place> =
            matching.map(|row| Place { id: LogId(row.int(0)), size: row.int(1) }).collect();
        places.sort_by_key(|place| place.id);
        places.dedup();
        if self.backward {
            places.reverse();
        }
        self.of_device(db, account, places).await
    }

    /// XEP-0313 s.4.1.1: an address with a resource means that device, which the index does not know.
    async fn of_device(&self, db: &Db, account: i64, places: Vec<Place>) -> Result<Vec<Place>, StoreError> {
        let Some(device) = self.filter.with.as_ref().filter(|with| with.resource().is_some()) else {
            return Ok(places);
        };
        let mut theirs = Vec::new();
        let mut rest = places.as_slice();
        while !rest.is_empty() {
            let (stanzas, later) = read(db, account, rest, false).await?;
            let looked_at = &rest[..rest.len() - later.len()];
            for (id, bytes) in stanzas {
                let Ok(Stanza { head, .. }) = Stanza::parse(&bytes) else { continue };
                if head.from.as_ref() == Some(device) || head.to.as_ref() == Some(device) {
                    theirs.extend(looked_at.iter().find(|place| place.id == id));
                }
            }
            rest = later;
        }
        Ok(theirs)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use trunkline_store::{Batch, Options};

    use super::*;
    use crate::route::account::Accounts;
    use crate::schema::MIGRATIONS;

    /// Messages of the account, with their peer's number and whether they are hidden.
    type Model = Vec<(i64, usize, bool)>;

    const DEVICES: [&str; 3] =
        ["romeo@peer.example/phone", "romeo@peer.example/laptop", "nurse@peer.example/hall"];

    async fn archive(model: &Model) -> Db {
        let db = Db::open(Options::memory(MIGRATIONS)).unwrap();
        let mut batch = Batch::new(Lane::Inside)
            .with(sql("INSERT INTO hosts (id, name) VALUES (1, 'here.example')"))
            .with(sql("INSERT INTO accounts (id, host_id, local, created_at) VALUES (1, 1, 'juliet', 0), (2, 1, 'x', 0)"));
        let mut add = |id: i64, account: i64, device: &str, hidden: bool| {
            let stanza = format!("<message from='{device}'><body>rose</body></message>");
            batch.push(
                sql("INSERT INTO archive (id, account, peer, flags, size, stanza) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")
                    .bind(id)
                    .bind(account)
                    .bind(Jid::parse(device).unwrap().bare_str())
                    .bind(if hidden { crate::log::HIDDEN } else { 0 })
                    .bind(i64::try_from(stanza.len()).unwrap())
                    .bind(stanza.into_bytes()),
            );
        };
        for (id, device, hidden) in model {
            add(*id, 1, DEVICES[*device], *hidden);
            add(*id + 1, 2, DEVICES[*device], false);
        }
        db.run(batch).await.unwrap();
        db
    }

    fn modelled(model: &Model, filter: &Filter, window: Window) -> (Vec<i64>, bool) {
        let matches = |(id, device, hidden): &&(i64, usize, bool)| {
            let from = Jid::parse(DEVICES[*device]).unwrap();
            let id = LogId(*id);
            !*hidden
                && id > filter.after.max(window.after)
                && id < filter.before.min(window.before)
                && filter.only.as_ref().is_none_or(|only| only.contains(&id))
                && filter
                    .with
                    .as_ref()
                    .is_none_or(|with| if with.is_full() { *with == from } else { with.same_bare(&from) })
        };
        let mut ids: Vec<i64> = model.iter().filter(matches).map(|(id, ..)| *id).collect();
        if window.backward {
            ids.reverse();
        }
        let ids: Vec<i64> = ids.into_iter().skip(usize::try_from(window.skip).unwrap()).collect();
        let mut page: Vec<i64> = ids.iter().copied().take(window.most).collect();
        if window.backward {
            page.reverse();
        }
        (page, ids.len() <= window.most)
    }

    fn id() -> impl Strategy<Value = LogId> {
        (0i64..70).prop_map(|number| LogId(number * 10))
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let with = prop::option::of(prop_oneof![
            Just("romeo@peer.example"),
            Just("romeo@peer.example/phone"),
            Just("nobody@peer.example")
        ]);
        let only = prop::option::weighted(0.2, prop::collection::vec(id(), 0..6));
        (id(), 0i64..80, with, any::<bool>(), only).prop_map(|(after, before, with, words, only)| Filter {
            after,
            before: LogId(before * 10),
            with: with.map(|with| Jid::parse(with).unwrap()),
            words: words.then(|| crate::log::search::query("rose").unwrap().unwrap()),
            only,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
        #[test]
        fn a_page_equals_the_model(
            rows in prop::collection::vec((0usize..3, prop::bool::weighted(0.1)), 0..60),
            filter in filter(),
            (after, before) in (id(), id()),
            (backward, skip, most) in (any::<bool>(), 0u64..12, 1usize..9),
        ) {
            let model: Model =
                rows.iter().zip(1i64..).map(|((device, hidden), number)| (number * 10, *device, *hidden)).collect();
            let window = Window { after, before: LogId(after.0 + before.0), backward, skip, most };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let db = archive(&model).await;
                crate::log::search::keep_in_step(&db, 1, LogId(i64::MAX)).await.unwrap();
                let found = find(&db, 1, &filter, window).await.unwrap();
                let ids: Vec<i64> = found.places.iter().map(|place| place.id.0).collect();
                let (page, complete) = modelled(&model, &filter, window);
                prop_assert_eq!(&ids, &page);
                prop_assert_eq!(found.complete, complete);

                let all = Window { after: LogId::ZERO, before: LogId(i64::MAX), backward: false, skip: 0, most: 1000 };
                let matching = modelled(&model, &filter, all).0;
                prop_assert_eq!(count(&db, 1, &filter).await.unwrap(), matching.len() as u64);
                let first = ids.first().copied();
                if let Some(counted) = count_for_page(&db, 1, &filter, first.map(LogId)).await.unwrap() {
                    let older = matching.iter().filter(|id| first.is_none_or(|first| **id < first)).count();
                    prop_assert_eq!(counted, (matching.len() as u64, older as u64));
                }

                let dense = filter.with.is_none() && filter.words.is_none() && filter.only.is_none();
                let mut rest = found.places.as_slice();
                let mut sent = Vec::new();
                while !rest.is_empty() {
                    let (stanzas, later) = read(&db, 1, rest, dense).await.unwrap();
                    sent.extend(stanzas.into_iter().map(|(id, _)| id.0));
                    rest = later;
                }
                prop_assert_eq!(sent, page);
                Ok(())
            })?;
        }
    }

    #[tokio::test]
    async fn pages_and_searches_for_an_address_read_the_index_alone() {
        let db = archive(&Model::new()).await;
        for text in [
            "EXPLAIN QUERY PLAN SELECT id, size FROM archive WHERE account = ?1 AND id > ?2 AND id < ?3 \
             AND flags & 2 = 0 ORDER BY id LIMIT ?4",
            "EXPLAIN QUERY PLAN SELECT id, size FROM (SELECT id, size, peer, flags FROM archive WHERE account = ?1 \
             AND id > ?2 AND id < ?3 ORDER BY id DESC LIMIT ?4) AS slice \
             WHERE peer = ?5 AND flags & 2 = 0 ORDER BY id DESC LIMIT ?6",
        ] {
            let plan = db.read(
                [1, 0, 9, 1, 0, 1]
                    .into_iter()
                    .take(text.matches('?').count())
                    .fold(sql(text), |it, n| it.bind(n)),
            );
            let plan: Vec<String> = plan.await.unwrap().iter().map(|row| row.text(3).to_owned()).collect();
            assert!(plan.iter().any(|line| line.contains("COVERING INDEX archive_by_account")), "{plan:?}");
            assert!(!plan.iter().any(|line| line.contains("TEMP B-TREE")), "{plan:?}");
        }
    }

    #[tokio::test]
    async fn a_large_message_is_read_alone() {
        let db = archive(&vec![(10, 0, false), (20, 0, false), (30, 0, false)]).await;
        let place = |id, size| Place { id: LogId(id), size };
        let places = [place(10, BYTES + 1), place(20, BYTES / 2), place(30, BYTES)];
        let (now, later) = read(&db, 1, &places, true).await.unwrap();
        assert_eq!((now.len(), later), (1, &places[1..]));
        let (now, later) = read(&db, 1, later, true).await.unwrap();
        assert_eq!((now.len(), later.len()), (2, 0));
        let flipped = [place(30, 1), place(20, 1)];
        let (now, _) = read(&db, 1, &flipped, true).await.unwrap();
        assert_eq!(now.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [30, 20]);
    }

    #[tokio::test]
    async fn what_is_on_its_way_is_waited_for() {
        let db = archive(&Model::new()).await;
        let juliet = Jid::parse("juliet@here.example").unwrap();
        let account = Accounts::new().load(&db, &juliet).await.unwrap().unwrap();
        account.in_flight.submitted(LogId(5), Lane::Inside, None);
        let mut settling = Box::pin(settle(&account, || LogId(6)));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(settling.as_mut().poll(&mut cx).is_pending());
        account.in_flight.landed(LogId(5));
        assert!(settling.as_mut().poll(&mut cx).is_ready());
    }
}
