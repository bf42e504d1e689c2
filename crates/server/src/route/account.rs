//! Accounts that are in use: their resources, roster and block list, in a sharded map.
//!
//! Only accounts with a session, or with work under way, are in memory. [`Account::state`] is locked
//! for moments and never across an await; what changes the roster or block list in the store first takes
//! [`Account::writes`], so that memory and store move together.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Deref;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use trunkline_store::{Batch, Db, Lane, StoreError, sql};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::mam::{Preferences, Rule};
use trunkline_xmpp::stanza::Stanza;

use super::roster::Roster;
use crate::ids::LogId;
use crate::log::in_flight::InFlight;
use crate::profile::avatar::Avatar;
use crate::push::Registration;
use crate::session::Session;

const SHARDS: usize = 64;
const BUCKETS: usize = 32;

/// One account in memory.
pub struct Account {
    /// The store's key; never used again.
    pub id: i64,
    /// The bare JID.
    pub jid: Jid,
    /// Serialises read-modify-write of roster and block list against the store.
    pub writes: tokio::sync::Mutex<()>,
    /// Rows of its log that are on their way to the disk.
    pub in_flight: InFlight,
    state: Mutex<AccountState>,
}

/// What the account's lock protects.
#[derive(Debug, Default)]
pub struct AccountState {
    /// Bound resources, oldest first.
    pub resources: SmallVec<[Resource; 1]>,
    /// The roster.
    pub roster: Roster,
    /// The block list (XEP-0191).
    pub blocked: BTreeSet<Jid>,
    /// What is archived (XEP-0441); `None`: everything.
    pub archiving: Option<Box<Preferences>>,
    /// The newest id given to something kept for this account.
    pub last_kept: Option<LogId>,
    /// Messages that waited when the account was loaded, and those that came since when nobody was there.
    pub waiting: Waiting,
    /// What wakes the user's devices (XEP-0357).
    pub pushes: Box<[Registration]>,
    /// The user's picture, as presence says it; `None`: there never was one.
    pub avatar: Option<Box<Avatar>>,
    /// Pages of the archive that are being sent to the user's devices.
    pub pages: u8,
    /// The account was removed while in memory.
    pub removed: bool,
}

/// Messages in the offline queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Their number.
    pub messages: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl Waiting {
    /// Counts one more of `bytes` if the queue is below `most` with it.
    pub fn admit(&mut self, bytes: usize, most: Waiting) -> bool {
        if self.messages >= most.messages || self.bytes.saturating_add(bytes) > most.bytes {
            return false;
        }
        self.messages += 1;
        self.bytes += bytes;
        true
    }
}

/// One connected resource.
#[derive(Debug)]
pub struct Resource {
    /// Where its stanzas go.
    pub session: Arc<Session>,
    /// The last available presence, stamped with `from`; `None` while unavailable.
    pub presence: Option<Stanza>,
    /// RFC 6121 s.4.7.2.3.
    pub priority: i8,
    /// Whom it sent directed presence to (RFC 6121 s.4.6).
    pub directed: BTreeSet<Jid>,
    /// It asked for the roster: it gets roster pushes (RFC 6121 s.2.1.6).
    pub interested: bool,
    /// It asked for the block list: it gets block pushes (XEP-0191 s.3.3).
    pub block_interested: bool,
    /// XEP-0280 is on.
    pub carbons: bool,
    /// What it wants to be told of (XEP-0163).
    pub caps: Option<Box<crate::pubsub::presence::Seen>>,
}

impl Resource {
    /// A resource that was just bound.
    pub fn new(session: Arc<Session>) -> Resource {
        Resource {
            session,
            presence: None,
            priority: 0,
            directed: BTreeSet::new(),
            interested: false,
            block_interested: false,
            carbons: false,
            caps: None,
        }
    }

    /// The resource part.
    pub fn name(&self) -> &str {
        self.session.resource()
    }

    /// Available with a priority that lets messages to the bare JID in (RFC 6121 s.8.5.2.1.1).
    pub fn takes_messages(&self) -> bool {
        self.presence.is_some() && self.priority >= 0
    }
}

impl AccountState {
    /// The resource of that name.
    pub fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| resource.name() == name)
    }

    /// The resource that `session` is.
    pub fn resource_of(&mut self, session: &Session) -> Option<&mut Resource> {
        self.resources.iter_mut().find(|resource| resource.session.serial == session.serial)
    }

    /// Someone is available.
    pub fn is_available(&self) -> bool {
        self.resources.iter().any(|resource| resource.presence.is_some())
    }

    /// XEP-0191 s.3.1: the address is blocked as it is, without its resource, or with its whole domain.
    pub fn blocks(&self, jid: &Jid) -> bool {
        if self.blocked.is_empty() {
            return false;
        }
        self.blocked.contains(jid)
            || (jid.is_full() && self.blocked.contains(&jid.bare()))
            || self.blocked.iter().any(|blocked| {
                blocked.local().is_none()
                    && blocked.domain() == jid.domain()
                    && blocked.resource().is_none_or(|resource| jid.resource() == Some(resource))
            })
    }

    /// The user wants messages with `peer` archived.
    pub fn archives(&self, peer: &Jid) -> bool {
        self.archiving.as_ref().is_none_or(|preferences| {
            preferences.allows(peer, || self.roster.get(peer).is_some_and(|item| item.listed))
        })
    }

    /// Contacts with a subscription to us may know about us (RFC 6121 s.8.5, XEP-0030 s.8.1).
    pub fn shows_presence_to(&self, jid: &Jid) -> bool {
        self.roster.subscription(jid).from
    }
}

impl Account {
    /// The state, locked. Never hold it across an await.
    pub fn state(&self) -> MutexGuard<'_, AccountState> {
        self.state.lock()
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Account({})", self.jid)
    }
}

/// The accounts in memory.
pub struct Accounts {
    hasher: RandomState,
    shards: Box<[Shard]>,
}

type Shard = Mutex<Seats>;

#[derive(Default)]
struct Seats {
    map: HashMap<Jid, Arc<Account>>,
    /// Accounts that were taken out, by a part of their hash: what was read before may be older than what they wrote.
    /// Counted for few accounts each, so that a crowd that comes and goes keeps nobody reading again and again.
    departures: [u64; BUCKETS],
}

impl Seats {
    fn remove(&mut self, account: &Arc<Account>, bucket: usize) {
        if self.map.get(account.jid.as_str()).is_some_and(|held| Arc::ptr_eq(held, account)) {
            self.map.remove(account.jid.as_str());
            self.departures[bucket] += 1;
        }
    }
}

/// An account that stays in memory while this is held.
pub struct Loaded {
    accounts: Arc<Accounts>,
    account: Option<Arc<Account>>,
}

impl Accounts {
    /// Nobody is loaded.
    pub fn new() -> Arc<Accounts> {
        Arc::new(Accounts {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
        })
    }

    fn shard(&self, bare: &str) -> &Shard {
        let hash = self.hasher.hash_one(bare);
        &self.shards[usize::try_from(hash % SHARDS as u64).unwrap_or_default()]
    }

    fn bucket(&self, bare: &str) -> usize {
        let hash = self.hasher.hash_one(bare) / SHARDS as u64;
        usize::try_from(hash % BUCKETS as u64).unwrap_or_default()
    }

    /// The account if it is in memory.
    pub fn online(&self, jid: &Jid) -> Option<Arc<Account>> {
        self.shard(jid.bare_str()).lock().map.get(jid.bare_str()).cloned()
    }

    /// The account, read from the store if need be; `None` if there is none or it is disabled.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn load(self: &Arc<Self>, db: &Db, jid: &Jid) -> Result<Option<Loaded>, StoreError> {
        self.load_in(Lane::Inside, db, jid).await
    }

    /// Like [`Accounts::load`], on behalf of inside or outside.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn load_in(
        self: &Arc<Self>,
        lane: Lane,
        db: &Db,
        jid: &Jid,
    ) -> Result<Option<Loaded>, StoreError> {
        let bare = jid.bare();
        let Some(local) = bare.local() else { return Ok(None) };
        let (shard, bucket) = (self.shard(bare.as_str()), self.bucket(bare.as_str()));
        loop {
            let departures = {
                let seats = shard.lock();
                if let Some(account) = seats.map.get(bare.as_str()) {
                    return Ok(Some(self.hold(Arc::clone(account))));
                }
                seats.departures[bucket]
            };
            let Some((id, state)) = read(db, lane, bare.domain(), local).await? else { return Ok(None) };
            let mut seats = shard.lock();
            // Somebody else was faster.
            if let Some(account) = seats.map.get(bare.as_str()) {
                return Ok(Some(self.hold(Arc::clone(account))));
            }
            // An account may have been loaded, changed and let go while this one was read: read again.
            if seats.departures[bucket] != departures {
                continue;
            }
            let account = Arc::new(Account {
                id,
                jid: bare.clone(),
                writes: tokio::sync::Mutex::new(()),
                in_flight: InFlight::default(),
                state: Mutex::new(state),
            });
            seats.map.insert(bare, Arc::clone(&account));
            return Ok(Some(self.hold(account)));
        }
    }

    /// Takes the account out of memory if nobody uses it.
    fn release(&self, account: Arc<Account>) {
        let mut seats = self.shard(account.jid.as_str()).lock();
        // Two references: the map's and ours. New ones come from the map only, which is locked.
        if Arc::strong_count(&account) <= 2 && account.state.lock().resources.is_empty() {
            seats.remove(&account, self.bucket(account.jid.as_str()));
        }
    }

    /// A removed account: whoever loads it from now on finds no rows. Sessions that hold it go on until they end.
    pub fn forget(&self, account: &Arc<Account>) {
        let bucket = self.bucket(account.jid.as_str());
        self.shard(account.jid.as_str()).lock().remove(account, bucket);
    }

    /// Keeps `account` loaded while the result is held; on its drop unused accounts go.
    pub fn hold(self: &Arc<Self>, account: Arc<Account>) -> Loaded {
        Loaded { accounts: Arc::clone(self), account: Some(account) }
    }

    /// Every loaded account, for a walk that need not be exact (status, shutdown).
    pub fn all(&self) -> Vec<Arc<Account>> {
        self.shards.iter().flat_map(|shard| shard.lock().map.values().cloned().collect::<Vec<_>>()).collect()
    }
}

/// An account's id and state, read in one go: for an address that does not exist the store does the same work, so
/// that the time an outsider waits does not tell.
async fn read(
    db: &Db,
    lane: Lane,
    domain: &str,
    local: &str,
) -> Result<Option<(i64, AccountState)>, StoreError> {
    let of = |text| sql(text).bind(domain).bind(local);
    let statements = vec![
        of("SELECT a.id, a.roster_version, a.avatar, \
            (SELECT n.config FROM pubsub_nodes n WHERE n.place = '#' || a.id AND n.name = 'urn:xmpp:avatar:data'), \
            (SELECT n.config FROM pubsub_nodes n WHERE n.place = '#' || a.id AND n.name = 'urn:xmpp:avatar:metadata') \
            FROM accounts a JOIN hosts h ON h.id = a.host_id \
            WHERE h.name = ?1 AND a.local = ?2 AND a.disabled = 0"),
        of(Roster::QUERY),
        of("SELECT jid FROM blocked WHERE account = (SELECT a.id FROM accounts a \
            JOIN hosts h ON h.id = a.host_id WHERE h.name = ?1 AND a.local = ?2)"),
        of(
            "SELECT COUNT(*), COALESCE(SUM(size), 0) FROM pending WHERE account = (SELECT a.id FROM accounts a \
            JOIN hosts h ON h.id = a.host_id WHERE h.name = ?1 AND a.local = ?2)",
        ),
        of("SELECT jid, rule FROM archive_rules WHERE account = (SELECT a.id FROM accounts a \
            JOIN hosts h ON h.id = a.host_id WHERE h.name = ?1 AND a.local = ?2) ORDER BY jid"),
        of(Registration::QUERY),
    ];
    let results = db.read_all(lane, statements).await?;
    let [account, items, blocked, waiting, rules, pushes] = results.as_slice() else {
        return Err(StoreError::Closed);
    };
    let Some(row) = account.first() else { return Ok(None) };
    let count = |column| waiting.first().and_then(|row| usize::try_from(row.int(column)).ok()).unwrap_or(0);
    let state = AccountState {
        waiting: Waiting { messages: count(0), bytes: count(1) },
        roster: Roster::load(items, row.int(1)),
        blocked: blocked.iter().filter_map(|row| Jid::parse(row.text(0)).ok()).collect(),
        pushes: Registration::load(pushes),
        avatar: Avatar::read(&row, 2),
        archiving: (!rules.is_empty()).then(|| Box::new(preferences(rules))),
        ..AccountState::default()
    };
    Ok(Some((row.int(0), state)))
}

/// The rows of `archive_rules`.
fn preferences(rows: &trunkline_store::Rows) -> Preferences {
    let mut preferences = Preferences::default();
    for row in rows.iter() {
        let rule = match row.int(1) {
            1 => Rule::Never,
            2 => Rule::Roster,
            _ => Rule::Always,
        };
        match (Jid::parse(row.text(0)), rule) {
            (Ok(jid), Rule::Always) => preferences.always.push(jid),
            (Ok(jid), _) => preferences.never.push(jid),
            // The empty address.
            (Err(_), rule) => preferences.rule = rule,
        }
    }
    preferences
}

/// Adds the statements that put an account's preferences in the place of those it had.
pub fn save_preferences(batch: &mut Batch, account: i64, preferences: &Preferences) {
    batch.push(sql("DELETE FROM archive_rules WHERE account = ?1").bind(account));
    let mut add = |jid: &str, rule: i64| {
        batch.push(
            sql("INSERT INTO archive_rules (account, jid, rule) VALUES (?1, ?2, ?3)")
                .bind(account)
                .bind(jid)
                .bind(rule),
        );
    };
    add(
        "",
        match preferences.rule {
            Rule::Always => 0,
            Rule::Never => 1,
            Rule::Roster => 2,
        },
    );
    preferences.always.iter().for_each(|jid| add(jid.as_str(), 0));
    preferences.never.iter().for_each(|jid| add(jid.as_str(), 1));
}

impl Deref for Loaded {
    type Target = Arc<Account>;

    fn deref(&self) -> &Arc<Account> {
        self.account.as_ref().expect("invariant: taken in drop only")
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Some(account) = self.account.take() {
            self.accounts.release(account);
        }
    }
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Loaded({:?})", self.account)
    }
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts").field("loaded", &self.all().len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake, Waker};
    use std::time::Duration;

    use super::*;
    use crate::schema::MIGRATIONS;
    use trunkline_store::Options;

    /// A store with these people, on the disk: one in memory answers at once.
    async fn store(people: &[Jid]) -> (Db, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open(Options::file(directory.path().join("db"), MIGRATIONS)).unwrap();
        let mut setup =
            Batch::new(Lane::Inside).with(sql("INSERT INTO hosts (id, name) VALUES (1, 'here.example')"));
        for person in people {
            let insert = sql("INSERT INTO accounts (host_id, local, created_at) VALUES (1, ?1, 0)");
            setup.push(insert.bind(person.local().unwrap()));
        }
        db.run(setup).await.unwrap();
        (db, directory)
    }

    /// What the store has of everybody is another one than before.
    async fn change(db: &Db) {
        let all = sql("UPDATE accounts SET roster_version = roster_version + 1");
        db.run(Batch::new(Lane::Inside).with(all)).await.unwrap();
    }

    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    type Loading<'a> = Pin<Box<dyn Future<Output = Result<Option<Loaded>, StoreError>> + 'a>>;

    /// An account that is being loaded: the store has answered, and the answer is not seen yet.
    fn read_and_not_seen<'a>(accounts: &'a Arc<Accounts>, db: &'a Db, jid: &'a Jid) -> Loading<'a> {
        loop {
            let mut loading: Loading<'a> = Box::pin(accounts.load(db, jid));
            let woken = Arc::new(Woken(AtomicBool::new(false)));
            let waker = Waker::from(Arc::clone(&woken));
            // A reader may be so fast that there is nothing in between: then once more.
            if loading.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                while !woken.0.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                return loading;
            }
        }
    }

    /// People whose departures count together with juliet's, or do not; all in her shard.
    fn neighbours(accounts: &Accounts, juliet: &Jid, many: usize, same_bucket: bool) -> Vec<Jid> {
        let home =
            |jid: &Jid| (std::ptr::from_ref(accounts.shard(jid.as_str())), accounts.bucket(jid.as_str()));
        let (shard, bucket) = home(juliet);
        (0..)
            .map(|n| format!("n{n}@here.example").parse::<Jid>().unwrap())
            .filter(|jid| home(jid).0 == shard && (home(jid).1 == bucket) == same_bucket)
            .take(many)
            .collect()
    }

    #[tokio::test]
    async fn who_was_changed_and_let_go_while_being_read_is_read_again() {
        let juliet: Jid = "juliet@here.example".parse().unwrap();
        let (db, _directory) = store(std::slice::from_ref(&juliet)).await;
        let accounts = Accounts::new();
        let slow = read_and_not_seen(&accounts, &db, &juliet);
        let quick = accounts.load(&db, &juliet).await.unwrap().unwrap();
        change(&db).await;
        drop(quick);
        assert_eq!(slow.await.unwrap().unwrap().state().roster.version, 1, "what was read first is old");
        assert!(accounts.all().is_empty());
    }

    #[tokio::test]
    async fn who_was_loaded_by_somebody_else_while_being_read_is_one_account() {
        let juliet: Jid = "juliet@here.example".parse().unwrap();
        let (db, _directory) = store(std::slice::from_ref(&juliet)).await;
        let accounts = Accounts::new();
        let slow = read_and_not_seen(&accounts, &db, &juliet);
        let quick = accounts.load(&db, &juliet).await.unwrap().unwrap();
        let slow = slow.await.unwrap().unwrap();
        assert!(Arc::ptr_eq(&slow, &quick));
        drop(quick);
        assert!(accounts.online(&juliet).is_some(), "one of two still holds it");
        drop(slow);
        assert!(accounts.online(&juliet).is_none());
    }

    #[tokio::test]
    async fn a_crowd_that_comes_and_goes_keeps_nobody_reading() {
        let juliet: Jid = "juliet@here.example".parse().unwrap();
        let accounts = Accounts::new();
        let crowd = neighbours(&accounts, &juliet, 200, false);
        let (db, _directory) = store(&[std::slice::from_ref(&juliet), &crowd].concat()).await;
        let slow = read_and_not_seen(&accounts, &db, &juliet);
        for person in &crowd {
            drop(accounts.load(&db, person).await.unwrap().unwrap());
        }
        // A second look would show it.
        change(&db).await;
        assert_eq!(slow.await.unwrap().unwrap().state().roster.version, 0, "read once");
    }

    #[tokio::test]
    async fn departures_that_count_together_are_read_over() {
        let juliet: Jid = "juliet@here.example".parse().unwrap();
        let accounts = Accounts::new();
        let crowd = neighbours(&accounts, &juliet, 20, true);
        let (db, _directory) = store(&[std::slice::from_ref(&juliet), &crowd].concat()).await;
        let slow = read_and_not_seen(&accounts, &db, &juliet);
        for person in &crowd {
            drop(accounts.load(&db, person).await.unwrap().unwrap());
        }
        change(&db).await;
        assert_eq!(slow.await.unwrap().unwrap().state().roster.version, 1);
    }
}
