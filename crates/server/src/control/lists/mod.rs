//! Block lists: those of others that we follow over pubsub, and the one that we publish.
//!
//! A list is a pubsub node (XEP-0060) whose items are banned: `muc_bans_sha256` has the SHA-256 of bare addresses in
//! hex, `spam_source_domains` has domains. What an item is shows in its id, so that a node of another name does too.
//!
//! Each list is followed by a task: it subscribes, reads all items, and does so again at intervals; in between, the
//! service's events change the list at once. A service that can't be reached leaves the last state in force.
//! Nobody but the service changes a list: an event counts only if it comes from the very address that was subscribed to.

mod entries;
mod following;
mod list;
mod operations;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use trunkline_xmpp::jid::Jid;

use super::judge::Armed;
use super::rule::Action;
pub(super) use entries::Entry;
use entries::{Change, Entries, parts};
pub use operations::{ListEntry, ListView, ListsOp, Subscriber, run};

/// Lists that can be followed.
pub(crate) const MOST_LISTS: usize = 32;
/// Entries of one list.
const MOST_ENTRIES: usize = 100_000;
/// How long a service may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The list that we publish.
pub const OWN: &str = "own";

/// The lists in force.
#[derive(Debug, Default)]
pub struct Lists {
    /// By name; replaced as a whole when one comes or goes.
    followed: ArcSwap<BTreeMap<String, Arc<List>>>,
    /// Of those that do something by themselves.
    rules: ArcSwap<Vec<Arc<Armed>>>,
    /// What we publish ourselves.
    pub(super) own: RwLock<Entries>,
    own_hits: AtomicU64,
    /// Held while lists come and go.
    changing: tokio::sync::Mutex<()>,
}

/// One list that is followed.
#[derive(Debug)]
pub struct List {
    name: String,
    service: Jid,
    node: String,
    action: Option<Action>,
    /// What the action comes to.
    rule: Option<Arc<Armed>>,
    entries: RwLock<Entries>,
    state: Mutex<State>,
    unwritten: Mutex<Unwritten>,
    /// Held by who writes the list's rows, and by who takes the list off.
    turn: tokio::sync::Mutex<()>,
    hits: AtomicU64,
    /// Milliseconds since 1970; 0: never.
    changed_at: AtomicI64,
    /// It is to be read again, or has ended.
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// In words.
    words: String,
    /// What came while the list was being read; `None`: it is not being read.
    journal: Option<Vec<Change>>,
    ended: bool,
    origin: Origin,
}

/// Why a list is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Origin {
    /// It stands in the configuration.
    #[default]
    Configured,
    /// It was subscribed to at run time.
    RunTime,
    /// It stood in the configuration; a rule asked for it when it was taken out there.
    Kept,
}

/// What the store does not have yet. It stays here until it is written, whatever fails meanwhile.
#[derive(Debug, Default)]
struct Unwritten {
    /// Whose rows are not what is in memory.
    changed: HashSet<Entry>,
    /// All rows go first.
    whole: bool,
    /// Somebody is writing.
    writing: bool,
}

impl Lists {
    /// Whether an address or a domain is on the list of that name. Called for every stanza that a rule asks about.
    pub fn lists(&self, name: &str, who: &str) -> bool {
        let (bare, domain) = parts(who);
        if name == OWN {
            let listed = self.own.read().lists(bare, domain);
            self.own_hits.fetch_add(u64::from(listed), Ordering::Relaxed);
            return listed;
        }
        let followed = self.followed.load();
        let Some(list) = followed.get(name) else { return false };
        let listed = list.entries.read().lists(bare, domain);
        list.hits.fetch_add(u64::from(listed), Ordering::Relaxed);
        listed
    }

    /// What lists do by themselves with those who are on them: rules behind the operator's own and before the preset.
    pub(super) fn rules(&self) -> Arc<Vec<Arc<Armed>>> {
        self.rules.load_full()
    }

    fn set(&self, followed: BTreeMap<String, Arc<List>>) {
        let rules = followed.values().filter_map(|list| list.rule.clone()).collect();
        self.followed.store(Arc::new(followed));
        self.rules.store(Arc::new(rules));
    }

    /// The lists that a domain is on, our own among them, and their reasons.
    pub(super) fn listings(&self, domain: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for list in self.followed.load().values() {
            let reason = list.entries.read().reason(domain);
            found.extend(reason.map(|reason| (list.name.clone(), reason)));
        }
        let reason = self.own.read().reason(domain);
        found.extend(reason.map(|reason| (OWN.to_owned(), reason)));
        found
    }

    /// Names of lists that the configuration has no longer and that are followed nevertheless.
    pub(super) fn kept(&self) -> Vec<String> {
        let followed = self.followed.load();
        let kept = followed.values().filter(|list| list.state.lock().origin == Origin::Kept);
        kept.map(|list| list.name.clone()).collect()
    }

    /// Whether a list of that name is there, so that a rule can be checked.
    pub fn exists(&self, name: &str) -> bool {
        name == OWN || self.followed.load().contains_key(name)
    }
}
