//! Who may write to whom, asked without looking at an account: design/011-consent.md.
//!
//! The table `consents` is the truth; before it stand a cache of answers, positive and negative alike, and what lives
//! in memory only: directed presence, and the requests that our clients have sent.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::mem;

use aws_lc_rs::hmac;
use parking_lot::Mutex;
use tokio::sync::Notify;
use trunkline_store::{Batch, Db, Lane, Rows, Statement, StoreError, sql};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::Stanza;

use super::filter::Filter;
use crate::control::rule::Relation;
use crate::exchange::Host;

/// Names a pair of addresses in table and cache. Keyed with the host's secret, so that nobody outside can choose two
/// pairs that meet.
pub(crate) type Key = [u8; 16];

/// Parts of the cache, each with a lock of its own.
const SHARDS: usize = 16;
/// Answers in one half of a part; there are two, so this is some 2 MB altogether.
const HALF: usize = 2048;
/// Keys read at once at the start.
const LOADED: i64 = 10_000;
/// Requests remembered in one half; there are two.
const ASKED: usize = 16 * 1024;
/// Of one user: the oldest go, and nobody else's.
const ASKED_EACH: usize = 1024;
/// Gateways that one user may be registered with.
const MOST_GATEWAYS: i64 = 100;
/// Nodes elsewhere that one user may be subscribed to.
const MOST_NODES: i64 = 1000;
/// A conversation is noted once a day.
const DAY: i64 = 24 * 3600 * 1000;

/// Why somebody has consent. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The roster.
    Roster = 1,
    /// Our user wrote.
    Conversation = 2,
    /// Our user registered with that gateway: the whole domain.
    Gateway = 3,
    /// Our user accepted a first contact.
    Granted = 4,
    /// Our user subscribed to a node of that service.
    Service = 5,
}

/// What is known about a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// `None`: strangers.
    pub(crate) relation: Option<Relation>,
    /// The day on which our user's writing was noted; 0: it was not.
    day: i64,
}

/// What an answer to a request of our client's means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It is let in.
    Plain,
    /// XEP-0077: the account with this id is registered with that gateway.
    Registers(i64),
    /// XEP-0077 s.3.2: and no longer.
    Leaves,
    /// XEP-0060 s.6.1: the account with this id is subscribed to that node.
    Subscribes(i64, Key),
    /// XEP-0060 s.6.2: and no longer.
    Unsubscribes(Key),
}

/// A half-and-half approximation of "least recently used": what is found in the older half moves to the younger.
#[derive(Debug)]
struct Halves<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    most: usize,
}

impl<K: std::hash::Hash + Eq + Copy, V: Copy> Halves<K, V> {
    fn new(most: usize) -> Halves<K, V> {
        Halves { young: HashMap::new(), old: HashMap::new(), most }
    }

    fn get(&mut self, key: &K) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            return Some(*value);
        }
        let value = self.old.remove(key)?;
        self.put(*key, value);
        Some(value)
    }

    /// True: the older half is gone.
    fn put(&mut self, key: K, value: V) -> bool {
        self.old.remove(&key);
        let full = self.young.len() >= self.most && !self.young.contains_key(&key);
        if full {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(key, value);
        full
    }

    fn contains(&self, key: &K) -> bool {
        self.young.contains_key(key) || self.old.contains_key(key)
    }

    fn take(&mut self, key: &K) -> Option<V> {
        let young = self.young.remove(key);
        let old = self.old.remove(key);
        young.or(old)
    }

    fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}

/// What our clients have asked, and nobody has answered.
#[derive(Debug)]
struct Requests {
    asked: Halves<u64, Asked>,
    /// Whose they are, the oldest first.
    of: HashMap<u64, VecDeque<u64>>,
}

impl Requests {
    fn put(&mut self, user: u64, request: u64, what: Asked) {
        let theirs = self.of.entry(user).or_default();
        if !theirs.contains(&request) {
            if theirs.len() >= ASKED_EACH
                && let Some(oldest) = theirs.pop_front()
            {
                self.asked.take(&oldest);
            }
            theirs.push_back(request);
        }
        if self.asked.put(request, what) {
            let asked = &self.asked;
            self.of.retain(|_, theirs| {
                theirs.retain(|request| asked.contains(request));
                !theirs.is_empty()
            });
        }
    }

    fn take(&mut self, user: u64, request: u64) -> Option<Asked> {
        let asked = self.asked.take(&request)?;
        if let Some(theirs) = self.of.get_mut(&user) {
            theirs.retain(|other| *other != request);
            if theirs.is_empty() {
                self.of.remove(&user);
            }
        }
        Some(asked)
    }
}

#[derive(Debug)]
struct Shard {
    answers: Halves<Key, Known>,
    /// Counts changes: what was read before one may be older than it.
    changes: u64,
}

/// The index of consents.
#[derive(Debug)]
pub(crate) struct Index {
    /// What has a row, and what has consent in memory.
    filter: Filter,
    shards: Box<[Mutex<Shard>]>,
    /// Sessions' directed presence, counted: a room's occupants share its bare address.
    directed: Mutex<HashMap<Key, u32>>,
    /// Pairs of which something that was held is being delivered, counted.
    releasing: Mutex<HashMap<Key, u32>>,
    /// One of them is done.
    released: Notify,
    asked: Mutex<Requests>,
    hasher: RandomState,
}

impl Default for Index {
    fn default() -> Index {
        let shard = || Mutex::new(Shard { answers: Halves::new(HALF), changes: 0 });
        Index {
            filter: Filter::default(),
            shards: (0..SHARDS).map(|_| shard()).collect(),
            directed: Mutex::default(),
            releasing: Mutex::default(),
            released: Notify::new(),
            asked: Mutex::new(Requests { asked: Halves::new(ASKED), of: HashMap::new() }),
            hasher: RandomState::new(),
        }
    }
}

/// The two keys under which `peer` may have consent of `local`: its address, and its domain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) address: Key,
    pub(crate) domain: Key,
}

impl Pair {
    pub(crate) fn of(host: &Host, local: &Jid, peer: &Jid) -> Pair {
        Pair { address: address_key(host, local, peer), domain: domain_key(host, local, peer.domain()) }
    }
}

/// The key of one address of the other side.
pub(crate) fn address_key(host: &Host, local: &Jid, peer: &Jid) -> Key {
    keyed(host, local, ("=", peer.bare_str()))
}

/// The key of a whole domain.
pub(crate) fn domain_key(host: &Host, local: &Jid, domain: &str) -> Key {
    keyed(host, local, ("@", domain))
}

/// Names a node of a service among those of one user.
pub(crate) fn node_key(host: &Host, local: &Jid, (service, node): (&Jid, &str)) -> Key {
    keyed(host, local, ("#", &format!("{}\0{node}", service.bare_str())))
}

/// No address contains what stands between the parts.
fn keyed(host: &Host, local: &Jid, (sort, peer): (&str, &str)) -> Key {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &host.secret);
    let mut context = hmac::Context::with_key(&key);
    for part in ["consent\0", local.bare_str(), "\0", sort, peer] {
        context.update(part.as_bytes());
    }
    let mut out = Key::default();
    let tag = context.sign();
    for (to, from) in out.iter_mut().zip(tag.as_ref()) {
        *to = *from;
    }
    out
}

impl Index {
    fn shard(&self, key: &Key) -> &Mutex<Shard> {
        &self.shards[usize::from(key[0]) % SHARDS]
    }

    /// The two are strangers: certain, and known without a lock. False says nothing.
    pub(crate) fn are_strangers(&self, pair: &Pair) -> bool {
        self.filter.excludes(&pair.address) && self.filter.excludes(&pair.domain)
    }

    /// The answer without the store. `None`: the store has to be asked ([`Index::read`]).
    pub(crate) fn now(&self, pair: &Pair) -> Option<Option<Relation>> {
        if self.are_strangers(pair) {
            return Some(None);
        }
        let address = self.shard(&pair.address).lock().answers.get(&pair.address);
        if let Some(relation) = address.and_then(|known| known.relation) {
            return Some(Some(relation));
        }
        if self.directed.lock().contains_key(&pair.address) {
            return Some(Some(Relation::Conversation));
        }
        let domain = self.shard(&pair.domain).lock().answers.get(&pair.domain);
        match (address, domain) {
            (_, Some(Known { relation: Some(relation), .. })) => Some(Some(relation)),
            (Some(_), Some(_)) => Some(None),
            _ => None,
        }
    }

    /// The answer of the store, remembered.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn read(&self, db: &Db, pair: &Pair) -> Result<Option<Relation>, StoreError> {
        let keys = [pair.address, pair.domain];
        let before = keys.map(|key| self.shard(&key).lock().changes);
        let of =
            |key: Key| sql("SELECT relation, why, used_at FROM consents WHERE hash = ?1").bind(key.to_vec());
        let results = db.read_all(Lane::Outside, keys.map(of).to_vec()).await?;
        let mut answer = None;
        for ((key, rows), changes) in keys.into_iter().zip(&results).zip(before) {
            let known = known(rows);
            answer = answer.max(known.relation);
            self.learn(key, known, changes);
        }
        Ok(answer)
    }

    /// What the store said, unless something has changed since.
    fn learn(&self, key: Key, known: Known, changes: u64) {
        let mut shard = self.shard(&key).lock();
        if shard.changes == changes {
            shard.answers.put(key, known);
        }
    }

    /// Reads which keys have rows, all of them.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn load(&self, db: &Db) -> Result<(), StoreError> {
        let mut after = Vec::new();
        loop {
            let page = sql("SELECT DISTINCT hash FROM consents WHERE hash > ?1 ORDER BY hash LIMIT ?2");
            let rows = db.read(page.bind(after).bind(LOADED)).await?;
            let mut last = None;
            for row in rows.iter() {
                last = Some(row.blob(0).to_vec());
                if let Ok(key) = Key::try_from(row.blob(0).as_ref()) {
                    self.filter.insert(&key);
                }
            }
            match last {
                Some(last) => after = last,
                None => break,
            }
        }
        self.filter.complete();
        Ok(())
    }

    /// Consent was given; its row is on its way or written.
    pub(crate) fn grant(&self, key: &Key, relation: Relation) {
        self.filter.insert(key);
        let mut shard = self.shard(key).lock();
        shard.changes += 1;
        let known = shard.answers.get(key).unwrap_or_default();
        let relation = known.relation.max(Some(relation));
        shard.answers.put(*key, Known { relation, ..known });
    }

    /// The rows of this pair have changed: they are asked again.
    pub(crate) fn forget(&self, key: &Key) {
        let mut shard = self.shard(key).lock();
        shard.changes += 1;
        shard.answers.take(key);
    }

    /// Many rows have changed.
    pub(crate) fn forget_all(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.changes += 1;
            shard.answers.clear();
        }
    }

    /// That our user writes to the other side is in the store, or on its way: it is noted once a day.
    pub(crate) fn is_noted(&self, key: &Key, now: i64) -> bool {
        let known = self.shard(key).lock().answers.get(key).unwrap_or_default();
        known.day == now / DAY && known.relation.is_some()
    }

    /// Our user writes to the other side at `now`, and that is being noted.
    pub(crate) fn writes(&self, key: &Key, now: i64) {
        let mut shard = self.shard(key).lock();
        let known = shard.answers.get(key).unwrap_or_default();
        shard.changes += 1;
        self.filter.insert(key);
        let relation = known.relation.max(Some(Relation::Conversation));
        shard.answers.put(*key, Known { relation, day: now / DAY });
    }

    /// A session sends directed presence.
    pub(crate) fn direct(&self, key: Key) {
        self.filter.insert(&key);
        more(&self.directed, key);
    }

    /// And takes it back.
    pub(crate) fn undirect(&self, key: &Key) {
        less(&self.directed, key);
    }

    /// From now on until [`Index::released`], what comes waits for what was held.
    pub(crate) fn releases(&self, key: Key) {
        more(&self.releasing, key);
    }

    /// What was held is delivered.
    pub(crate) fn released(&self, key: &Key) {
        less(&self.releasing, key);
        self.released.notify_waiters();
    }

    /// Something that was held is being delivered.
    pub(crate) fn is_releasing(&self, key: &Key) -> bool {
        self.releasing.lock().contains_key(key)
    }

    /// Returns when nothing that was held is being delivered.
    pub(super) async fn wait_for_release(&self, key: &Key) {
        loop {
            let released = self.released.notified();
            if !self.is_releasing(key) {
                return;
            }
            released.await;
        }
    }

    /// The statement that writes a consent. Like all that write one it tells the filter: no row may be unknown to it.
    pub(crate) fn granted(&self, grant: &Grant<'_>) -> Statement {
        self.filter.insert(&grant.key);
        grant.bind(sql("INSERT INTO consents (hash, why, account, peer, domain, relation, used_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (hash, why) DO UPDATE SET \
             account = excluded.account, relation = excluded.relation, used_at = excluded.used_at"))
    }

    /// The same, if something waits from there: whoever writes to a stranger grants what the stranger asked for.
    pub(crate) fn granted_if_waiting(&self, grant: &Grant<'_>) -> Statement {
        self.filter.insert(&grant.key);
        grant.bind(sql("INSERT INTO consents (hash, why, account, peer, domain, relation, used_at) \
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE EXISTS \
             (SELECT 1 FROM first_contacts WHERE account = ?3 AND peer = ?4 AND state = 0) \
             ON CONFLICT (hash, why) DO UPDATE SET relation = excluded.relation, used_at = excluded.used_at"))
    }

    /// Adds a conversation, and lets the oldest of the account go beyond `most`.
    pub(crate) fn note_conversation(&self, batch: &mut Batch, grant: &Grant<'_>, most: usize) {
        batch.push(self.granted(grant));
        batch.push(within(grant, most));
    }

    /// A registration with a gateway. Changes nothing if the account has too many.
    pub(crate) fn registered(&self, grant: &Grant<'_>) -> Batch {
        self.filter.insert(&grant.key);
        Batch::new(Lane::Inside).with(
            grant
                .bind(sql("INSERT INTO consents (hash, why, account, peer, domain, relation, used_at) \
                     SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE ?8 > (SELECT COUNT(*) FROM consents \
                     WHERE account = ?3 AND why = ?2 AND hash <> ?1) \
                     ON CONFLICT (hash, why) DO UPDATE SET used_at = excluded.used_at"))
                .bind(MOST_GATEWAYS)
                .must_change(),
        )
    }

    /// A subscription to a node. Changes nothing if the account has too many.
    pub(crate) fn subscribed(&self, grant: &Grant<'_>, node: &Key) -> Batch {
        let row = sql("INSERT INTO subscribed_nodes (account, hash, node) SELECT ?1, ?2, ?3 \
             WHERE ?4 > (SELECT COUNT(*) FROM subscribed_nodes WHERE account = ?1 AND node <> ?3) \
             ON CONFLICT (hash, node) DO UPDATE SET account = excluded.account")
        .bind(grant.account)
        .bind(grant.key.to_vec())
        .bind(node.to_vec())
        .bind(MOST_NODES)
        .must_change();
        Batch::new(Lane::Inside).with(row).with(self.granted(grant))
    }

    fn user(&self, ours: &Jid) -> u64 {
        self.hasher.hash_one(ours.bare_str())
    }

    fn request(&self, (ours, theirs): (&Jid, &Jid), id: &str) -> u64 {
        self.hasher.hash_one((ours.as_str(), theirs.as_str(), id))
    }

    /// A client of ours sends an IQ request to the outside.
    pub(crate) fn asks(&self, stanza: &Stanza, what: Asked) {
        if let (Some(from), Some(to), Some(id)) = (&stanza.head.from, &stanza.head.to, &stanza.head.id) {
            let request = self.request((from, to), id);
            self.asked.lock().put(self.user(from), request, what);
        }
    }

    /// A request of our client's waits for this IQ result or error. One lock, for one look.
    pub(crate) fn is_asked(&self, stanza: &Stanza) -> bool {
        let head = &stanza.head;
        let (Some(from), Some(to), Some(id)) = (&head.from, &head.to, &head.id) else { return false };
        let request = self.request((to, from), id);
        self.asked.lock().asked.contains(&request)
    }

    /// An IQ result or error from outside is the answer to a request of our client's. Each request has one answer.
    pub(crate) fn answered(&self, stanza: &Stanza) -> Option<Asked> {
        let (from, to, id) = (stanza.head.from.as_ref()?, stanza.head.to.as_ref()?, stanza.head.id.as_ref()?);
        let request = self.request((to, from), id);
        self.asked.lock().take(self.user(to), request)
    }
}

fn more(counts: &Mutex<HashMap<Key, u32>>, key: Key) {
    *counts.lock().entry(key).or_default() += 1;
}

fn less(counts: &Mutex<HashMap<Key, u32>>, key: &Key) {
    let mut counts = counts.lock();
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn known(rows: &Rows) -> Known {
    let mut known = Known::default();
    for row in rows.iter() {
        let relation = if row.int(0) == CONTACT { Relation::Contact } else { Relation::Conversation };
        known.relation = known.relation.max(Some(relation));
        if row.int(1) == Why::Conversation as i64 {
            known.day = row.int(2) / DAY;
        }
    }
    known
}

const CONTACT: i64 = 2;

/// A consent to be written.
#[derive(Debug)]
pub(crate) struct Grant<'a> {
    pub(crate) key: Key,
    pub(crate) why: Why,
    pub(crate) relation: Relation,
    pub(crate) account: i64,
    pub(crate) peer: &'a Jid,
    pub(crate) now: i64,
}

impl Grant<'_> {
    fn bind(&self, statement: Statement) -> Statement {
        let relation = if self.relation == Relation::Contact { CONTACT } else { CONTACT - 1 };
        statement
            .bind(self.key.to_vec())
            .bind(self.why as i64)
            .bind(self.account)
            .bind(self.peer.bare_str())
            .bind(self.peer.domain())
            .bind(relation)
            .bind(self.now)
    }
}

/// The statement that takes a consent back.
pub(crate) fn revoked(key: &Key, why: Why) -> Statement {
    sql("DELETE FROM consents WHERE hash = ?1 AND why = ?2").bind(key.to_vec()).bind(why as i64)
}

/// The statement that lets the oldest consents of an account for one reason go beyond `most`.
pub(crate) fn within(grant: &Grant<'_>, most: usize) -> Statement {
    sql("DELETE FROM consents WHERE account = ?1 AND why = ?2 AND used_at <= (SELECT used_at FROM consents \
         WHERE account = ?1 AND why = ?2 ORDER BY used_at DESC LIMIT 1 OFFSET ?3)")
    .bind(grant.account)
    .bind(grant.why as i64)
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
}

/// The end of a subscription to a node: with the last one of the service its consent ends.
pub(crate) fn unsubscribed(key: &Key, node: &Key) -> Batch {
    Batch::new(Lane::Inside)
        .with(
            sql("DELETE FROM subscribed_nodes WHERE hash = ?1 AND node = ?2")
                .bind(key.to_vec())
                .bind(node.to_vec()),
        )
        .with(
            sql("DELETE FROM consents WHERE hash = ?1 AND why = ?2 \
                 AND NOT EXISTS (SELECT 1 FROM subscribed_nodes WHERE hash = ?1)")
            .bind(key.to_vec())
            .bind(Why::Service as i64),
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::MIGRATIONS;
    use trunkline_store::Options;
    use trunkline_xmpp::stanza::{IqType, Kind};

    fn jid(text: &str) -> Jid {
        Jid::parse(text).unwrap()
    }

    fn host(secret: u8) -> Host {
        Host { id: 1, domain: jid("north.example"), secret: [secret; 32] }
    }

    fn pair(local: &str, peer: &str) -> Pair {
        Pair::of(&host(1), &jid(local), &jid(peer))
    }

    async fn db() -> Db {
        let db = Db::open(Options::memory(MIGRATIONS)).unwrap();
        let batch = Batch::new(Lane::Inside)
            .with(sql("INSERT INTO hosts (id, name) VALUES (1, 'north.example')"))
            .with(sql("INSERT INTO accounts (id, host_id, local, created_at) VALUES (1, 1, 'juliet', 0)"));
        db.run(batch).await.unwrap();
        db
    }

    fn grant<'a>(key: Key, why: Why, peer: &'a Jid, now: i64) -> Grant<'a> {
        Grant { key, why, relation: Relation::Conversation, account: 1, peer, now }
    }

    #[test]
    fn keys_differ_with_each_part_and_not_with_the_resource() {
        let (juliet, iago) = (jid("juliet@north.example/a"), jid("iago@evil.example/x"));
        let key = address_key(&host(1), &juliet, &iago);
        assert_eq!(key, address_key(&host(1), &juliet.bare(), &iago.bare()));
        assert_ne!(key, address_key(&host(2), &juliet, &iago));
        assert_ne!(key, address_key(&host(1), &iago, &juliet));
        assert_ne!(key, domain_key(&host(1), &juliet, "evil.example"));
        // A service's address and its domain are two things.
        let service = jid("evil.example");
        assert_ne!(address_key(&host(1), &juliet, &service), domain_key(&host(1), &juliet, "evil.example"));
    }

    #[tokio::test]
    async fn answers_come_from_rows_and_are_remembered() {
        let (db, index, iago) = (db().await, Index::default(), jid("iago@evil.example"));
        let one = pair("juliet@north.example", "iago@evil.example");
        assert_eq!(index.now(&one), None);
        assert_eq!(index.read(&db, &one).await.unwrap(), None);
        assert_eq!(index.now(&one), Some(None));
        let batch = Batch::new(Lane::Inside).with(index.granted(&grant(one.domain, Why::Gateway, &iago, 0)));
        db.run(batch).await.unwrap();
        assert_eq!(index.now(&one), Some(None), "the cache is told of changes, it does not guess them");
        index.forget(&one.domain);
        assert_eq!(index.now(&one), None);
        assert_eq!(index.read(&db, &one).await.unwrap(), Some(Relation::Conversation));
        assert_eq!(index.now(&one), Some(Some(Relation::Conversation)));
        let other = pair("juliet@north.example", "emilia@evil.example");
        assert_eq!(index.read(&db, &other).await.unwrap(), Some(Relation::Conversation));
        let elsewhere = pair("romeo@north.example", "emilia@evil.example");
        assert_eq!(index.read(&db, &elsewhere).await.unwrap(), None);
    }

    #[test]
    fn what_was_read_before_a_change_is_not_remembered() {
        let index = Index::default();
        let one = pair("juliet@north.example", "iago@evil.example");
        let before = index.shard(&one.address).lock().changes;
        // The grant comes while the store is asked: its answer is the older one.
        index.grant(&one.address, Relation::Contact);
        index.learn(one.address, Known::default(), before);
        assert_eq!(index.now(&one), Some(Some(Relation::Contact)));
        let before = index.shard(&one.address).lock().changes;
        index.forget(&one.address);
        index.learn(one.address, Known { relation: Some(Relation::Contact), day: 0 }, before);
        assert_eq!(index.now(&one), None);
    }

    #[tokio::test]
    async fn the_conversation_not_renewed_for_longest_goes() {
        let (db, index) = (db().await, Index::default());
        let peers = ["a@x.example", "b@x.example", "c@x.example"].map(jid);
        for (now, peer) in [(1, 0), (2, 1), (3, 0), (4, 2)] {
            let key = address_key(&host(1), &jid("juliet@north.example"), &peers[peer]);
            let mut batch = Batch::new(Lane::Inside);
            index.note_conversation(&mut batch, &grant(key, Why::Conversation, &peers[peer], now), 2);
            db.run(batch).await.unwrap();
        }
        let rows = db.read(sql("SELECT peer FROM consents ORDER BY peer")).await.unwrap();
        let left: Vec<String> = rows.iter().map(|row| row.text(0).to_owned()).collect();
        assert_eq!(left, ["a@x.example", "c@x.example"]);
    }

    #[tokio::test]
    async fn strangers_are_known_as_such_without_the_store() {
        let (db, index, iago) = (db().await, Index::default(), jid("iago@evil.example"));
        let one = pair("juliet@north.example", "iago@evil.example");
        let emilia = pair("juliet@north.example", "emilia@evil.example");
        let romeo = |peer| pair("romeo@north.example", peer);
        let row = Index::default().granted(&grant(one.address, Why::Roster, &iago, 0));
        db.run(Batch::new(Lane::Inside).with(row)).await.unwrap();
        assert!(!index.are_strangers(&emilia), "nobody has looked yet");
        index.load(&db).await.unwrap();
        assert!(!index.are_strangers(&one) && index.are_strangers(&emilia));
        assert_eq!((index.now(&one), index.now(&emilia)), (None, Some(None)));
        // All that gives consent later.
        let by_row = romeo("one@evil.example");
        drop(index.granted(&grant(by_row.domain, Why::Gateway, &iago, 0)));
        let by_grant = romeo("two@other.example");
        index.grant(&by_grant.address, Relation::Contact);
        let by_writing = romeo("three@other.example");
        index.writes(&by_writing.address, DAY);
        let by_presence = romeo("room@rooms.example");
        index.direct(by_presence.address);
        for known in [by_row, by_grant, by_writing, by_presence] {
            assert!(!index.are_strangers(&known));
        }
        assert!(index.are_strangers(&romeo("four@other.example")));
    }

    #[test]
    fn writing_is_noted_once_a_day() {
        let (index, one) = (Index::default(), pair("juliet@north.example", "iago@evil.example"));
        assert!(!index.is_noted(&one.address, DAY));
        index.writes(&one.address, DAY);
        assert!(index.is_noted(&one.address, DAY + 5));
        assert_eq!(index.now(&one), Some(Some(Relation::Conversation)));
        assert!(!index.is_noted(&one.address, 2 * DAY));
        index.writes(&one.address, 2 * DAY);
        index.forget(&one.address);
        assert!(!index.is_noted(&one.address, 2 * DAY), "it may have been taken back");
    }

    #[test]
    fn directed_presence_is_counted() {
        let (index, one) = (Index::default(), pair("juliet@north.example", "room@rooms.example"));
        index.direct(one.address);
        index.direct(one.address);
        index.undirect(&one.address);
        assert_eq!(index.now(&one), Some(Some(Relation::Conversation)));
        index.undirect(&one.address);
        assert_eq!(index.now(&one), None);
        assert!(index.directed.lock().is_empty(), "nothing is left behind");
    }

    #[tokio::test]
    async fn gateways_and_nodes_are_bounded() {
        let (db, index, juliet) = (db().await, Index::default(), jid("juliet@north.example"));
        for n in 0..=MOST_GATEWAYS {
            let peer = jid(&format!("g{n}.example"));
            let key = domain_key(&host(1), &juliet, peer.domain());
            let done = db.run(index.registered(&grant(key, Why::Gateway, &peer, n))).await;
            assert_eq!(done.is_ok(), n < MOST_GATEWAYS, "gateway {n}");
            // Again is no more than once.
            let done = db.run(index.registered(&grant(key, Why::Gateway, &peer, n))).await;
            assert_eq!(done.is_ok(), n < MOST_GATEWAYS, "gateway {n} again");
        }
        let service = jid("pubsub.example");
        let key = address_key(&host(1), &juliet, &service);
        for n in 0..=MOST_NODES {
            let node = node_key(&host(1), &juliet, (&service, &format!("node {n}")));
            let done = db.run(index.subscribed(&grant(key, Why::Service, &service, n), &node)).await;
            assert_eq!(done.is_ok(), n < MOST_NODES, "node {n}");
        }
    }

    #[tokio::test]
    async fn the_last_node_ends_the_consent_of_its_service() {
        let (db, index, service) = (db().await, Index::default(), jid("pubsub.example"));
        let pair = pair("juliet@north.example", "pubsub.example");
        let node = |name| node_key(&host(1), &jid("juliet@north.example"), (&service, name));
        let grant = grant(pair.address, Why::Service, &service, 0);
        for name in ["a", "b", "b"] {
            db.run(index.subscribed(&grant, &node(name))).await.unwrap();
        }
        for (name, expected) in
            [("b", Some(Relation::Conversation)), ("c", Some(Relation::Conversation)), ("a", None)]
        {
            db.run(unsubscribed(&pair.address, &node(name))).await.unwrap();
            index.forget(&pair.address);
            assert_eq!(index.read(&db, &pair).await.unwrap(), expected, "after {name}");
        }
    }

    #[tokio::test]
    async fn writing_grants_what_waits_and_nothing_else() {
        let (db, index, iago) = (db().await, Index::default(), jid("iago@evil.example"));
        let pair = pair("juliet@north.example", "iago@evil.example");
        let grant = Grant { relation: Relation::Contact, ..grant(pair.address, Why::Granted, &iago, 0) };
        db.run(Batch::new(Lane::Inside).with(index.granted_if_waiting(&grant))).await.unwrap();
        assert_eq!(index.read(&db, &pair).await.unwrap(), None);
        let waits = sql(
            "INSERT INTO first_contacts (id, account, peer, domain, state, asks, stanzas, bytes, changed_at) \
             VALUES (1, 1, 'iago@evil.example', 'evil.example', 0, 0, 1, 1, 0)",
        );
        db.run(Batch::new(Lane::Inside).with(waits).with(index.granted_if_waiting(&grant))).await.unwrap();
        index.forget(&pair.address);
        assert_eq!(index.read(&db, &pair).await.unwrap(), Some(Relation::Contact));
    }

    #[test]
    fn each_request_has_one_answer() {
        let index = Index::default();
        let request = |from: &str, to: &str, id: &str, kind| {
            Stanza::build(Kind::Iq(kind)).from(jid(from)).to(jid(to)).id(id).done()
        };
        index.asks(&request("juliet@north.example/a", "evil.example", "1", IqType::Get), Asked::Plain);
        let answer = |from, id| index.answered(&request(from, "juliet@north.example/a", id, IqType::Result));
        let asked = |from, id| index.is_asked(&request(from, "juliet@north.example/a", id, IqType::Error));
        assert!(asked("evil.example", "1") && !asked("evil.example", "2") && !asked("other.example", "1"));
        assert_eq!(answer("other.example", "1"), None);
        assert_eq!(answer("evil.example", "2"), None);
        assert_eq!(answer("evil.example", "1"), Some(Asked::Plain));
        assert_eq!(answer("evil.example", "1"), None);
        assert!(!asked("evil.example", "1"), "once");
    }

    #[test]
    fn one_user_who_asks_much_leaves_room_for_the_answers_of_others() {
        let index = Index::default();
        let iq = |from: &str, to: &str, id: usize, kind| {
            Stanza::build(Kind::Iq(kind)).from(jid(from)).to(jid(to)).id(id.to_string()).done()
        };
        let ask = |who: &str, id| index.asks(&iq(who, "evil.example", id, IqType::Get), Asked::Plain);
        let answered = |who: &str, id| index.answered(&iq("evil.example", who, id, IqType::Result)).is_some();
        let (juliet, romeo) = ("juliet@north.example/a", "romeo@north.example/a");
        ask(romeo, 0);
        for id in 0..2 * ASKED + 10 {
            ask(if id % 2 == 0 { juliet } else { "juliet@north.example/b" }, id);
        }
        assert!(answered(romeo, 0));
        let last = 2 * ASKED + 8;
        assert!(!answered(juliet, last - ASKED_EACH) && answered(juliet, last));
        assert_eq!(index.asked.lock().of.values().map(VecDeque::len).sum::<usize>(), ASKED_EACH - 1);
        for id in 0..2 * ASKED + 10 {
            answered(juliet, id);
            answered("juliet@north.example/b", id);
        }
        assert!(index.asked.lock().of.is_empty(), "nothing is left behind");
    }

    #[test]
    fn the_cache_is_bounded() {
        let mut halves = Halves::new(10);
        for n in 0..1000_u32 {
            halves.put(n, n);
            assert!(halves.young.len() + halves.old.len() <= 20);
            assert_eq!(halves.get(&0), Some(0), "what is asked for stays");
        }
        assert_eq!(halves.get(&500), None);
    }
}
