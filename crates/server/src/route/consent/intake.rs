//! What strangers sent and nobody has looked at yet: one row for each stanza, whoever it is for.
//!
//! The acknowledgement waits for this row only. A worker sorts them at moments of its own: whatever it finds about the
//! account shows in nothing that a stranger can see. How much is let in is up to the clock alone, not to how fast it is
//! sorted.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use trunkline_store::{Batch, Lane, Statement, StoreError, sql};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::stanza::{Kind, PresenceType, Stanza};

use super::index::{Key, Pair};
use super::line::Claims;
use crate::exchange::Exchange;
use crate::ids::LogId;
use crate::logging::Refusal;
use crate::route::{Mail, Origin};

/// Rows sorted before the next pause.
const PAGE: usize = 64;
/// The pause lasts at least so many times as long as the sorting took: a quarter of the time is for strangers.
const SHARE: u32 = 3;
/// Domains whose rows are sorted at the same time.
const AT_ONCE: usize = 16;
/// The pause before rows are sorted: from, and so much more at most.
const PAUSE: (u64, u8) = (50, 100);
/// The pause after the store has failed, and before a row that could not be sorted is tried again.
pub(super) const TROUBLE: Duration = Duration::from_secs(5);
/// The pause between two rounds of throwing away what is too old.
const ROUND: Duration = Duration::from_secs(600);
/// How often a row is tried that alone can't be sorted; then it is set aside until the next start.
const TRIES: u8 = 3;
/// Rows set aside; the oldest go.
const MOST_ASIDE: i64 = 1000;

/// In so many milliseconds as much comes in as the bounds say.
const SPAN: i64 = 10_000;
/// Bytes taken in within a span: of all, and of one domain.
const BYTES: Bound = Bound { all: 16 << 20, each: 2 << 20 };
/// So many spans' worth may wait to be sorted. More means that the disk is in trouble.
const BACKLOG: usize = 4;
/// Milliseconds for which nothing is taken in then. It is no shorter when the rest was sorted quickly: that would tell
/// what it was.
const SHUT: i64 = 60_000;

/// How much of something.
#[derive(Clone, Copy, Debug)]
struct Bound {
    all: usize,
    each: usize,
}

/// What waits to be sorted, and how much more is let in.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    waiting: Mutex<Waiting>,
    filled: Notify,
    pub(super) claims: Claims,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Rows, on the disk or on their way.
    rows: HashMap<LogId, Waits>,
    /// Those of each pair: what comes later must not overtake them.
    pairs: HashMap<Key, BTreeSet<LogId>>,
    /// Rows that could not be sorted: how often they were tried, and when they are again.
    troubled: HashMap<LogId, (u8, i64)>,
    all: Buckets,
    /// By the sender's domain; those that are full are as good as not here.
    domains: HashMap<String, Buckets>,
    shut_until: i64,
}

/// A row that waits.
#[derive(Clone, Copy, Debug)]
struct Waits {
    /// By whom it is from and for.
    pair: Key,
    /// It is on the disk.
    written: bool,
}

/// Stanzas and bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Buckets {
    stanzas: Bucket,
    bytes: Bucket,
}

/// A bucket that fills steadily, within [`SPAN`].
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// Taken out, in thousandths.
    gone: u64,
    /// When: milliseconds since 1970.
    at: i64,
}

impl Bucket {
    fn gone(self, most: usize, now: i64) -> u64 {
        let passed = u64::try_from(now.saturating_sub(self.at).clamp(0, SPAN)).unwrap_or(0);
        // Thousandths in milliseconds: `most` in a second's worth of SPAN.
        self.gone
            .saturating_sub(passed.saturating_mul(most as u64).saturating_mul(1000) / SPAN.unsigned_abs())
    }

    /// As it is when `count` are taken out; `None`: there is no room.
    fn less(self, count: usize, (most, now): (usize, i64)) -> Option<Bucket> {
        let gone = self.gone(most, now).saturating_add(count as u64 * 1000);
        (gone <= most as u64 * 1000).then_some(Bucket { gone, at: now })
    }
}

impl Buckets {
    fn less(self, bytes: usize, (stanzas, most, now): (usize, usize, i64)) -> Result<Buckets, &'static str> {
        Ok(Buckets {
            stanzas: self.stanzas.less(1, (stanzas, now)).ok_or("first-contacts-unsorted")?,
            bytes: self.bytes.less(bytes, (most, now)).ok_or("first-contact-bytes-unsorted")?,
        })
    }

    fn is_full(self, stanzas: usize, now: i64) -> bool {
        self.stanzas.gone(stanzas, now) == 0 && self.bytes.gone(BYTES.each, now) == 0
    }
}

/// One stanza that comes in.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    id: LogId,
    pair: Key,
    domain: &'a str,
    bytes: usize,
}

impl Intake {
    /// One more waits, which is on the disk. Again is as once.
    pub(super) fn enter(&self, id: LogId, pair: Key) {
        self.waiting.lock().enter(id, pair);
        self.written(id);
        self.filled.notify_one();
    }

    /// It has come to the disk.
    fn written(&self, id: LogId) {
        if let Some(row) = self.waiting.lock().rows.get_mut(&id) {
            row.written = true;
        }
    }

    /// It is not on its way to the disk any more: it is there, or does not wait.
    pub(super) fn is_written(&self, id: LogId) -> bool {
        self.waiting.lock().rows.get(&id).is_none_or(|row| row.written)
    }

    /// It waits.
    pub(super) fn waits(&self, id: LogId) -> bool {
        self.waiting.lock().rows.contains_key(&id)
    }

    /// One more waits, if there is room.
    fn admit(&self, entry: Entry<'_>, stanzas: Bound, now: i64) -> Result<(), &'static str> {
        self.waiting.lock().admit(entry, stanzas, now)?;
        self.filled.notify_one();
        Ok(())
    }

    /// It does not wait any more. Again is as once.
    pub(super) fn leave(&self, id: LogId) {
        let mut waiting = self.waiting.lock();
        waiting.troubled.remove(&id);
        let Some(Waits { pair, .. }) = waiting.rows.remove(&id) else { return };
        if let Some(ids) = waiting.pairs.get_mut(&pair) {
            ids.remove(&id);
            if ids.is_empty() {
                waiting.pairs.remove(&pair);
            }
        }
    }

    /// Something from there and for them waits.
    pub(super) fn has(&self, pair: &Key) -> bool {
        self.waiting.lock().pairs.contains_key(pair)
    }

    /// What waits of one pair, the oldest first.
    pub(super) fn oldest(&self, pair: &Key, most: usize) -> Vec<LogId> {
        let waiting = self.waiting.lock();
        waiting.pairs.get(pair).map_or_else(Vec::new, |ids| ids.iter().take(most).copied().collect())
    }

    /// Whose a row is; `None`: it does not wait any more.
    fn pair_of(&self, id: LogId) -> Option<Key> {
        self.waiting.lock().rows.get(&id).map(|row| row.pair)
    }

    fn is_empty(&self) -> bool {
        self.waiting.lock().rows.is_empty()
    }

    /// It could not be sorted, for reasons of its own. True: once more, and it has been tried often enough.
    fn failed(&self, id: LogId, now: i64) -> bool {
        let mut waiting = self.waiting.lock();
        let tried = waiting.troubled.entry(id).or_default();
        tried.0 += 1;
        tried.1 = now.saturating_add(i64::try_from(TROUBLE.as_millis()).unwrap_or(i64::MAX));
        tried.0 >= TRIES
    }

    /// It failed a moment ago.
    fn rests(&self, id: LogId, now: i64) -> bool {
        self.waiting.lock().troubled.get(&id).is_some_and(|(_, next)| *next > now)
    }

    /// Nothing is counted any more.
    #[cfg(test)]
    pub(crate) fn is_as_new(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.rows.is_empty()
            && waiting.pairs.is_empty()
            && waiting.troubled.is_empty()
            && self.claims.is_empty()
    }
}

impl Waiting {
    fn enter(&mut self, id: LogId, pair: Key) {
        if self.rows.insert(id, Waits { pair, written: false }).is_none() {
            self.pairs.entry(pair).or_default().insert(id);
        }
    }

    fn admit(&mut self, entry: Entry<'_>, stanzas: Bound, now: i64) -> Result<(), &'static str> {
        if self.shut_until > now {
            return Err("first-contacts-backlog");
        }
        if self.rows.len() >= stanzas.all.saturating_mul(BACKLOG) {
            self.shut_until = now.saturating_add(SHUT);
            return Err("first-contacts-backlog");
        }
        if self.domains.len() > stanzas.all {
            // Fewer than that can have taken anything out within the last span.
            self.domains.retain(|_, buckets| !buckets.is_full(stanzas.each, now));
        }
        let each = self.domains.get(entry.domain).copied().unwrap_or_default();
        let each = each.less(entry.bytes, (stanzas.each, BYTES.each, now))?;
        self.all = self.all.less(entry.bytes, (stanzas.all, BYTES.all, now))?;
        self.domains.insert(entry.domain.to_owned(), each);
        self.enter(entry.id, entry.pair);
        Ok(())
    }
}

impl Exchange {
    /// Keeps a stranger's stanza, whoever it is for.
    pub(super) fn take_in(self: &Arc<Self>, pair: &Pair, mail: Mail) {
        let Some(from) = &mail.stanza.head.from else { return };
        let mut bytes = Vec::with_capacity(mail.stanza.size() + 32);
        mail.stanza.write(&mut bytes);
        let id = self.ids.next();
        let entry = Entry { id, pair: pair.address, domain: from.domain(), bytes: bytes.len() };
        let bounds = {
            let consent = &self.config.load().consent;
            Bound { all: consent.intake_stanzas, each: consent.intake_peer_stanzas }
        };
        if let Err(name) = self.control.requests.intake.admit(entry, bounds, self.clock().now()) {
            self.first_contact_refused(name, from.domain());
            let error =
                StanzaError::new(Condition::ResourceConstraint).text("Too much at once. Try again later.");
            return self.turn_away(&mail, &error);
        }
        let row = sql("INSERT INTO intake (id, stanza) VALUES (?1, ?2)").bind(id.0).bind(bytes);
        let exchange = Arc::clone(self);
        self.commit_then(Batch::new(Lane::Outside).with(row), (mail.receipt, &mail.stanza), move |done| {
            let intake = &exchange.control.requests.intake;
            if done { intake.written(id) } else { intake.leave(id) }
        });
    }

    /// A first contact that is not kept: counted, and named in the log. The sender sees silence.
    pub(super) fn first_contact_refused(&self, name: &'static str, domain: &str) {
        self.refusals.report(Refusal { name, peer: domain, conn: 0, detail: "a first contact was not kept" });
    }

    /// What the last run has left unsorted. What was set aside is tried again: it may be this program that can.
    pub(super) async fn enter_rows(&self) -> Result<(), StoreError> {
        self.db
            .run(Batch::new(Lane::Inside).with(sql("UPDATE intake SET aside = 0 WHERE aside = 1")))
            .await?;
        let rows = self.db.read(sql("SELECT id, stanza FROM intake")).await?;
        for row in rows.iter() {
            let head = Stanza::parse(row.blob(1)).ok().map(|stanza| stanza.head);
            let (to, from) = head.map_or((None, None), |head| (head.to, head.from));
            let host = to.as_ref().and_then(|to| self.host(to.domain()));
            let pair = match (host, &to, &from) {
                (Some(host), Some(to), Some(from)) => Pair::of(host, to, from).address,
                _ => Key::default(),
            };
            self.control.requests.intake.enter(LogId(row.int(0)), pair);
        }
        Ok(())
    }

    /// Sorts what has come, a page at most: what one domain sent in its order, so that its bounds are counted exactly;
    /// several domains at once, so that none waits for the others' disk.
    async fn sort_page(self: &Arc<Self>) -> Result<(), StoreError> {
        let intake = &self.control.requests.intake;
        let rest = intake.waiting.lock().troubled.len();
        let page = sql("SELECT id, stanza FROM intake WHERE aside = 0 ORDER BY id LIMIT ?1")
            .bind(i64::try_from(PAGE + rest).unwrap_or(i64::MAX));
        let rows = self.db.read_in(Lane::Outside, page).await?;
        let now = self.clock().now();
        let mut domains: BTreeMap<String, Vec<(LogId, Option<Stanza>)>> = BTreeMap::new();
        for row in rows.iter().filter(|row| !intake.rests(LogId(row.int(0)), now)) {
            let stanza = Stanza::parse(row.blob(1)).ok();
            let from = stanza.as_ref().and_then(|stanza| stanza.head.from.as_ref());
            let domain = from.map_or(String::new(), |from| from.domain().to_owned());
            domains.entry(domain).or_default().push((LogId(row.int(0)), stanza));
        }
        let mut sorting = JoinSet::new();
        let mut outcome = Ok(());
        for rows in domains.into_values() {
            if sorting.len() >= AT_ONCE {
                outcome = outcome.and(ended(sorting.join_next().await));
            }
            let exchange = Arc::clone(self);
            sorting.spawn(async move { exchange.sort_domain(rows).await });
        }
        while !sorting.is_empty() {
            outcome = outcome.and(ended(sorting.join_next().await));
        }
        outcome
    }

    /// Each row is deleted by what sorts it, and is not counted any more when that is on the disk. One that can't be
    /// sorted holds up nobody else.
    async fn sort_domain(self: &Arc<Self>, rows: Vec<(LogId, Option<Stanza>)>) -> Result<(), StoreError> {
        let intake = &self.control.requests.intake;
        let mut passed = HashSet::new();
        for (id, stanza) in rows {
            // Their line sorts them, and in their order.
            let pair = intake.pair_of(id).filter(|pair| !passed.contains(pair));
            let Some(pair) = pair else { continue };
            let Some(_claim) = intake.claims.try_claim(pair) else {
                passed.insert(pair);
                continue;
            };
            if intake.waits(id) {
                self.sort_alone(id, stanza).await?;
            }
        }
        Ok(())
    }

    /// One row. The caller has claimed its pair.
    ///
    /// # Errors
    /// The store's, where it has trouble with all rows alike.
    pub(super) async fn sort_alone(
        self: &Arc<Self>,
        id: LogId,
        stanza: Option<Stanza>,
    ) -> Result<(), StoreError> {
        let intake = &self.control.requests.intake;
        let exchange = Arc::clone(self);
        // A task of its own: a bug in the handling of one is its own trouble as well.
        let sorted = tokio::spawn(async move { exchange.sort_row(id, stanza).await }).await;
        match ended(Some(sorted)) {
            Ok(()) => intake.leave(id),
            Err(error @ (StoreError::Full | StoreError::Io(_) | StoreError::Closed)) => return Err(error),
            Err(error) => {
                let last = intake.failed(id, self.clock().now());
                tracing::error!(id = id.0, %error, last, "a first contact could not be sorted");
                if last {
                    self.set_aside(id).await?;
                    intake.leave(id);
                }
            }
        }
        Ok(())
    }

    /// The row stays on the disk, for the operator and the next start.
    async fn set_aside(&self, id: LogId) -> Result<(), StoreError> {
        let batch =
            Batch::new(Lane::Outside).with(sql("UPDATE intake SET aside = 1 WHERE id = ?1").bind(id.0)).with(
                sql("DELETE FROM intake WHERE aside = 1 AND id <= (SELECT id FROM intake WHERE aside = 1 \
                     ORDER BY id DESC LIMIT 1 OFFSET ?1)")
                .bind(MOST_ASIDE),
            );
        self.db.run(batch).await?;
        self.metrics.refused("first-contact-aside");
        Ok(())
    }

    async fn sort_row(self: &Arc<Self>, id: LogId, stanza: Option<Stanza>) -> Result<(), StoreError> {
        let along = match stanza {
            Some(stanza) => self.sort_one((id, stanza)).await?,
            None => false,
        };
        if along {
            return Ok(());
        }
        // Nothing became of it. One commit, as for what is held.
        self.db.run(Batch::new(Lane::Outside).with(sorted_row(id))).await.map(drop)
    }

    /// True: the row went along with what was done.
    async fn sort_one(self: &Arc<Self>, (id, stanza): (LogId, Stanza)) -> Result<bool, StoreError> {
        let (Some(to), Some(from)) = (stanza.head.to.clone(), stanza.head.from.clone()) else {
            return Ok(false);
        };
        let Some(host) = self.host(to.domain()) else { return Ok(false) };
        let pair = Pair::of(host, &to, &from);
        let relation = match self.consents().now(&pair) {
            Some(relation) => relation,
            None => self.consents().read(&self.db, &pair).await?,
        };
        // The same reading whether the account exists or not.
        let Some(account) = self.accounts.load_in(Lane::Outside, &self.db, &to).await? else {
            return Ok(false);
        };
        let origin = if relation.is_some() { Origin::Known } else { Origin::Outside };
        if let Kind::Presence(kind @ (PresenceType::Subscribe | PresenceType::Unsubscribe)) = stanza.head.kind
        {
            return self.subscribe_to(account, kind, (Mail::new(stanza, origin), Some(id))).await;
        }
        self.sort_message(&account, (id, &stanza), relation.is_some()).await
    }
}

/// A bug in one stanza's handling is logged by its panic.
fn ended(task: Option<Result<Result<(), StoreError>, JoinError>>) -> Result<(), StoreError> {
    match task {
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) => Err(StoreError::Other(error.to_string())),
        None => Ok(()),
    }
}

/// The statement that takes a row out of the intake.
pub(in crate::route) fn sorted_row(id: LogId) -> Statement {
    sql("DELETE FROM intake WHERE id = ?1").bind(id.0)
}

/// Sorts, for ever.
pub(crate) async fn sort(exchange: Arc<Exchange>) {
    let mut round = tokio::time::Instant::now();
    let mut worked = Duration::ZERO;
    loop {
        let intake = &exchange.control.requests.intake;
        if intake.is_empty() {
            let _ = tokio::time::timeout(ROUND, intake.filled.notified()).await;
        }
        let mut chance = [0u8; 1];
        let _ = getrandom::fill(&mut chance);
        let more = u64::from(chance[0]) * u64::from(PAUSE.1) / 255;
        tokio::time::sleep(Duration::from_millis(PAUSE.0 + more) + worked * SHARE).await;
        let begin = tokio::time::Instant::now();
        let sorted = exchange.sort_page().await;
        worked = begin.elapsed();
        if let Err(error) = sorted {
            tracing::warn!(%error, "first contacts could not be sorted");
            tokio::time::sleep(TROUBLE).await;
        }
        if round.elapsed() >= ROUND {
            round = tokio::time::Instant::now();
            if let Err(error) = exchange.forget_old_contacts().await {
                tracing::warn!(%error, "old first contacts could not be thrown away");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: Bound = Bound { all: 3, each: 2 };

    fn entry(id: i64, domain: &str, bytes: usize) -> Entry<'_> {
        Entry { id: LogId(id), pair: Key::default(), domain, bytes }
    }

    #[test]
    fn a_domain_is_bounded_and_leaves_room_for_others() {
        let intake = Intake::default();
        let admit = |id, domain| intake.admit(entry(id, domain, 10), FEW, 1000);
        assert!(admit(1, "flood.example").is_ok() && admit(2, "flood.example").is_ok());
        assert_eq!(admit(3, "flood.example"), Err("first-contacts-unsorted"));
        assert!(admit(4, "other.example").is_ok());
        assert_eq!(admit(5, "third.example"), Err("first-contacts-unsorted"), "all together");
        for id in [1, 2, 4, 4] {
            intake.leave(LogId(id));
        }
        assert!(intake.is_as_new(), "nothing is left behind");
    }

    #[test]
    fn what_is_let_in_depends_on_the_clock_and_not_on_what_was_sorted() {
        // Two intakes, of which one is sorted at once and one never: the answers are the same.
        let (quick, slow) = (Intake::default(), Intake::default());
        let mut admitted = 0;
        for (id, now) in (0..60).map(|n| (n, n * SPAN / 10)) {
            let ask = |intake: &Intake| {
                intake.admit(entry(id, "flood.example", 10), Bound { all: 50, each: 2 }, now)
            };
            let answer = ask(&quick);
            assert_eq!(answer, ask(&slow), "at {now} ms");
            admitted += i32::from(answer.is_ok());
            quick.leave(LogId(id));
        }
        assert_eq!(admitted, 2 + 11, "two at once, and two in each span");
    }

    #[test]
    fn bytes_are_bounded() {
        let intake = Intake::default();
        let many = Bound { all: 1000, each: 1000 };
        assert_eq!(intake.admit(entry(1, "a.example", BYTES.each), many, 0), Ok(()));
        assert_eq!(intake.admit(entry(2, "a.example", 1), many, 0), Err("first-contact-bytes-unsorted"));
        for n in 1..8 {
            let domain = format!("d{n}.example");
            assert_eq!(intake.admit(entry(10 + n, &domain, BYTES.each), many, 0), Ok(()));
        }
        assert_eq!(
            intake.admit(entry(3, "b.example", 1), many, 0),
            Err("first-contact-bytes-unsorted"),
            "of all"
        );
        assert_eq!(intake.admit(entry(4, "b.example", 1), many, SPAN / 10), Ok(()));
    }

    #[test]
    fn a_backlog_shuts_the_door_for_a_while_however_soon_it_is_gone() {
        let intake = Intake::default();
        let mut now = 0;
        for id in 0..i64::try_from(3 * BACKLOG).unwrap() {
            now += SPAN;
            assert_eq!(intake.admit(entry(id, "a.example", 1), FEW, now), Ok(()));
        }
        let late = |id, now| intake.admit(entry(id, "a.example", 1), FEW, now);
        assert_eq!(late(100, now + SPAN), Err("first-contacts-backlog"));
        for id in 0..i64::try_from(3 * BACKLOG).unwrap() {
            intake.leave(LogId(id));
        }
        assert_eq!(late(101, now + SPAN + SHUT - 1), Err("first-contacts-backlog"));
        assert_eq!(late(102, now + SPAN + SHUT), Ok(()));
    }

    #[test]
    fn domains_are_forgotten_when_they_are_as_new() {
        let intake = Intake::default();
        for id in 0..1000 {
            let _ = intake.admit(entry(id, &format!("d{id}.example"), 1), FEW, id * SPAN);
            intake.leave(LogId(id));
            assert!(intake.waiting.lock().domains.len() <= FEW.all + 1);
        }
    }
}
