//! One list as it is in memory, and what of it the store does not have yet.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use trunkline_store::{Batch, Lane, Statement, sql};
use trunkline_xmpp::jid::Jid;

use super::entries::{Change, Entries, Entry};
use super::operations::ListView;
use super::{List, MOST_ENTRIES, Origin, State, Unwritten};
use crate::control::judge::Armed;
use crate::control::rule::{Action, Conditions, Direction, Rule};

/// Changed entries that wait for the store; beyond it all rows are written anew.
const MOST_UNWRITTEN: usize = 2 * MOST_ENTRIES;
/// Entries stored in one batch.
const BATCH: usize = 250;

impl List {
    pub(super) fn new(
        name: &str,
        service: Jid,
        node: &str,
        (action, origin): (Option<Action>, Origin),
    ) -> Arc<List> {
        let rule = action.clone().map(|then| {
            let when = Conditions { listed_in: Some(name.to_owned()), ..Conditions::default() };
            let reason = format!("on the block list {name}");
            let rule = Rule { when, direction: Direction::In, then, reason, until: None, shadow: false };
            Armed::new(None, &format!("list {name}"), rule, (service.to_string(), 0))
        });
        Arc::new(List {
            name: name.to_owned(),
            service,
            node: node.to_owned(),
            action,
            rule,
            entries: RwLock::default(),
            state: Mutex::new(State { words: "not asked yet".into(), origin, ..State::default() }),
            unwritten: Mutex::default(),
            turn: tokio::sync::Mutex::new(()),
            hits: AtomicU64::new(0),
            changed_at: AtomicI64::new(0),
            wake: Notify::new(),
        })
    }

    pub(super) fn view(&self) -> ListView {
        let changed_at = self.changed_at.load(Ordering::Relaxed);
        // One lock after the other: both together are taken in the other order.
        let entries = self.entries.read().len() as u64;
        let state = self.state.lock().words.clone();
        ListView {
            name: self.name.clone(),
            service: self.service.to_string(),
            node: self.node.clone(),
            action: self.action.clone(),
            entries,
            state,
            changed_at: (changed_at != 0).then_some(changed_at),
            hits: match &self.rule {
                Some(rule) => rule.view().hits,
                None => self.hits.load(Ordering::Relaxed),
            },
        }
    }

    /// Takes over what is on `old`, another form of the same list, whose rows nobody writes meanwhile.
    pub(super) fn succeed(&self, old: &List) {
        *self.entries.write() = old.entries.read().clone();
        let left = std::mem::take(&mut *old.unwritten.lock());
        *self.unwritten.lock() = Unwritten { writing: false, ..left };
        self.changed_at.store(old.changed_at.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Carries out changes that an event brought; how many were new. The store is to have them.
    pub(super) fn apply(&self, changes: &[Change]) -> usize {
        let mut entries = self.entries.write();
        let mut changed = Vec::new();
        let mut purged = 0;
        for change in changes {
            match change {
                Change::Add(entry, reason) => {
                    let known = entries.reason_of(entry);
                    if known == Some(&**reason) || known.is_none() && entries.len() >= MOST_ENTRIES {
                        continue;
                    }
                    entries.add(entry.clone(), reason.clone());
                    changed.push(entry.clone());
                }
                Change::Remove(entry) => {
                    if entries.remove(entry) {
                        changed.push(entry.clone());
                    }
                }
                Change::Purge => {
                    *entries = Entries::default();
                    purged += 1;
                    self.unwritten.lock().whole = true;
                }
            }
        }
        let count = changed.len() + purged;
        self.note(changed);
        count
    }

    /// Puts what was read in place of what is there, with what came meanwhile; how much differs.
    pub(super) fn replace(&self, read: HashMap<Entry, Box<str>>) -> usize {
        // The journal is taken and the entries are replaced under the state's lock: no event falls in between.
        let mut state = self.state.lock();
        // It was taken off meanwhile; another list may have its name by now.
        if state.ended {
            return 0;
        }
        let journal = state.journal.take().unwrap_or_default();
        let mut changed = Vec::new();
        {
            let mut entries = self.entries.write();
            let gone = entries.iter().map(|(entry, _)| entry).filter(|entry| !read.contains_key(entry));
            changed.extend(gone);
            let mut fresh = Entries::default();
            for (entry, reason) in read {
                if entries.reason_of(&entry) != Some(&*reason) {
                    changed.push(entry.clone());
                }
                fresh.add(entry, reason);
            }
            *entries = fresh;
        }
        let count = changed.len();
        self.note(changed);
        let count = count + self.apply(&journal);
        state.words = match self.entries.read().len() {
            MOST_ENTRIES => format!("subscribed, full: {MOST_ENTRIES} entries are taken at most"),
            _ => "subscribed".into(),
        };
        count
    }

    /// The store is to have these as they are in memory.
    fn note(&self, changed: Vec<Entry>) {
        let mut unwritten = self.unwritten.lock();
        unwritten.changed.extend(changed);
        if unwritten.changed.len() > MOST_UNWRITTEN {
            unwritten.changed = HashSet::new();
            unwritten.whole = true;
        }
    }

    /// The next of what is unwritten. `None`: it was everything, and who writes has ended.
    pub(super) fn take_unwritten(&self) -> Option<Taken> {
        let entries = self.entries.read();
        let mut unwritten = self.unwritten.lock();
        let whole = std::mem::take(&mut unwritten.whole);
        if whole {
            unwritten.changed = entries.iter().map(|(entry, _)| entry).collect();
        }
        let some: Vec<Entry> = unwritten.changed.iter().take(BATCH).cloned().collect();
        if some.is_empty() && !whole {
            unwritten.changed = HashSet::new();
            unwritten.writing = false;
            return None;
        }
        let mut batch = Batch::new(Lane::Outside);
        if whole {
            batch.push(sql("DELETE FROM list_entries WHERE list = ?1").bind(self.name.as_str()));
        }
        for entry in &some {
            unwritten.changed.remove(entry);
            batch.push(match entries.reason_of(entry) {
                Some(reason) => self.insert(entry, reason),
                None => sql("DELETE FROM list_entries WHERE list = ?1 AND entry = ?2")
                    .bind(self.name.as_str())
                    .bind(entry.id()),
            });
        }
        let changed_at = self.changed_at.load(Ordering::Relaxed);
        batch.push(
            sql("UPDATE lists SET changed_at = ?2 WHERE name = ?1").bind(self.name.as_str()).bind(changed_at),
        );
        Some(Taken { batch, entries: some, whole })
    }

    /// It was not written.
    pub(super) fn give_back(&self, entries: Vec<Entry>, whole: bool) {
        self.unwritten.lock().whole |= whole;
        self.note(entries);
        self.unwritten.lock().writing = false;
    }

    fn insert(&self, entry: &Entry, reason: &str) -> Statement {
        sql("INSERT INTO list_entries (list, entry, reason) SELECT name, ?2, ?3 FROM lists WHERE name = ?1 \
             ON CONFLICT (list, entry) DO UPDATE SET reason = excluded.reason")
        .bind(self.name.as_str())
        .bind(entry.id())
        .bind(reason)
    }
}

/// Rows of a list on their way to the store. A small batch: one from outside must not hold the writer for long.
pub(super) struct Taken {
    pub(super) batch: Batch,
    pub(super) entries: Vec<Entry>,
    pub(super) whole: bool,
}
