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
use trunkline_store::{Db, Lane, StoreError, sql};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::Stanza;

use super::roster::Roster;
use crate::ids::LogId;
use crate::session::Session;

const SHARDS: usize = 64;
/// The id of no account.
const NOBODY: i64 = -1;

/// One account in memory.
pub struct Account {
    /// The store's key; never used again.
    pub id: i64,
    /// The bare JID.
    pub jid: Jid,
    /// Serialises read-modify-write of roster and block list against the store.
    pub writes: tokio::sync::Mutex<()>,
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
    /// The newest id given to something kept for this account.
    pub last_kept: Option<LogId>,
    /// Messages that waited when the account was loaded, and those that came since when nobody was there.
    pub waiting: Waiting,
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

#[derive(Default)]
struct Shard {
    map: Mutex<HashMap<Jid, Arc<Account>>>,
    /// One load at a time: a second one must find what the first put in, not rows that are older.
    loading: tokio::sync::Mutex<()>,
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

    /// The account if it is in memory.
    pub fn online(&self, jid: &Jid) -> Option<Arc<Account>> {
        self.shard(jid.bare_str()).map.lock().get(jid.bare_str()).cloned()
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
        let shard = self.shard(bare.as_str());
        let found = shard.map.lock().get(bare.as_str()).cloned();
        if let Some(account) = found {
            return Ok(Some(Loaded { accounts: Arc::clone(self), account: Some(account) }));
        }
        let Some(local) = bare.local() else { return Ok(None) };
        let _one_at_a_time = shard.loading.lock().await;
        let found = shard.map.lock().get(bare.as_str()).cloned();
        if let Some(account) = found {
            return Ok(Some(Loaded { accounts: Arc::clone(self), account: Some(account) }));
        }
        let rows = db
            .read_in(
                lane,
                sql("SELECT a.id, a.roster_version FROM accounts a JOIN hosts h ON h.id = a.host_id \
                     WHERE h.name = ?1 AND a.local = ?2 AND a.disabled = 0")
                .bind(bare.domain())
                .bind(local),
            )
            .await?;
        let found = rows.iter().next().map(|row| (row.int(0), row.int(1)));
        // An account that does not exist costs an outsider as many reads as one that does: the time must not tell.
        if found.is_none() && lane == Lane::Inside {
            return Ok(None);
        }
        let (id, version) = found.unwrap_or((NOBODY, 0));
        let items = db.read_in(lane, sql(Roster::QUERY).bind(id)).await?;
        let blocks = db.read_in(lane, sql("SELECT jid FROM blocked WHERE account = ?1").bind(id)).await?;
        let waiting = db
            .read_in(
                lane,
                sql(
                    "SELECT COUNT(*), COALESCE(SUM(a.size), 0) FROM pending p JOIN archive a ON a.id = p.id \
                     WHERE p.account = ?1",
                )
                .bind(id),
            )
            .await?;
        if found.is_none() {
            return Ok(None);
        }
        let count =
            |column| waiting.first().and_then(|row| usize::try_from(row.int(column)).ok()).unwrap_or(0);
        let state = AccountState {
            waiting: Waiting { messages: count(0), bytes: count(1) },
            roster: Roster::load(&items, version),
            blocked: blocks.iter().filter_map(|row| Jid::parse(row.text(0)).ok()).collect(),
            ..AccountState::default()
        };
        let account = Arc::new(Account {
            id,
            jid: bare.clone(),
            writes: tokio::sync::Mutex::new(()),
            state: Mutex::new(state),
        });
        shard.map.lock().insert(bare, Arc::clone(&account));
        Ok(Some(Loaded { accounts: Arc::clone(self), account: Some(account) }))
    }

    /// Takes the account out of memory if nobody uses it.
    fn release(&self, account: Arc<Account>) {
        let shard = self.shard(account.jid.as_str());
        let mut map = shard.map.lock();
        // Two references: the map's and ours. New ones come from the map only, which is locked.
        if Arc::strong_count(&account) <= 2
            && account.state.lock().resources.is_empty()
            && map.get(account.jid.as_str()).is_some_and(|held| Arc::ptr_eq(held, &account))
        {
            map.remove(account.jid.as_str());
        }
    }

    /// A removed account: whoever loads it from now on finds no rows. Sessions that hold it go on until they end.
    pub fn forget(&self, account: &Arc<Account>) {
        let mut map = self.shard(account.jid.as_str()).map.lock();
        if map.get(account.jid.as_str()).is_some_and(|held| Arc::ptr_eq(held, account)) {
            map.remove(account.jid.as_str());
        }
    }

    /// Keeps `account` loaded while the result is held; on its drop unused accounts go.
    pub fn hold(self: &Arc<Self>, account: Arc<Account>) -> Loaded {
        Loaded { accounts: Arc::clone(self), account: Some(account) }
    }

    /// Every loaded account, for a walk that need not be exact (status, shutdown).
    pub fn all(&self) -> Vec<Arc<Account>> {
        self.shards.iter().flat_map(|shard| shard.map.lock().values().cloned().collect::<Vec<_>>()).collect()
    }
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
