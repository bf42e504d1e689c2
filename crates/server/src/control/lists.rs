//! Block lists: those of others that we follow over pubsub, and the one that we publish.
//!
//! A list is a pubsub node (XEP-0060) whose items are banned: `muc_bans_sha256` has the SHA-256 of bare addresses in
//! hex, `spam_source_domains` has domains. What an item is shows in its id, so that a node of another name does too.
//!
//! Each list is followed by a task: it subscribes, reads all items, and does so again at intervals; in between, the
//! service's events change the list at once. A service that can't be reached leaves the last state in force.
//! Nobody but the service changes a list: an event counts only if it comes from the very address that was subscribed to.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use parking_lot::{Mutex, RwLock};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use trunkline_store::{Batch, Lane, Statement, StoreError, sql};
use trunkline_xml::{Node, Writer};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{IqType, Stanza};

use super::asking::{AskError, Question, short};
use super::judge::Armed;
use super::rule::{Action, Conditions, Direction, Rule};
use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::config::Config;
use crate::exchange::Exchange;
use crate::logging::Refusal;

/// Lists that can be followed.
const MOST_LISTS: usize = 32;
/// Entries of one list.
const MOST_ENTRIES: usize = 100_000;
/// Characters of a reason.
const MOST_REASON: usize = 200;
/// Items asked for at once.
const ITEMS: usize = 500;
/// Changes that come while a list is read.
const MOST_JOURNAL: usize = 10_000;
/// Pages of one reading: a service may give small ones.
const MOST_PAGES: usize = 5000;
/// Changed entries that wait for the store; beyond it all rows are written anew.
const MOST_UNWRITTEN: usize = 2 * MOST_ENTRIES;
/// Entries stored in one batch.
const BATCH: usize = 250;
/// Entries on one page of [`ListsOp::Items`].
const PAGE: usize = 500;
/// A list is subscribed to and read again after this time.
const AGAIN: Duration = Duration::from_secs(3600);
/// After a failure: the first pause, which doubles up to [`AGAIN`].
const RETRY: Duration = Duration::from_secs(30);
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
    /// Subscribed at run time; else it stands in the configuration.
    run_time: bool,
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

/// What is on a list, by what it is compared with.
#[derive(Debug, Default)]
pub(super) struct Entries {
    hashes: HashMap<[u8; 32], Box<str>>,
    domains: HashMap<Box<str>, Box<str>>,
}

/// What an item's id stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Entry {
    /// The SHA-256 of a bare address, or of a domain.
    Hash([u8; 32]),
    /// A domain.
    Domain(Box<str>),
}

/// A change of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Add(Entry, Box<str>),
    Remove(Entry),
    Purge,
}

impl Entry {
    /// Reads an item's id: a hash in hex, a domain, or an address, which counts as its hash.
    pub(super) fn parse(id: &str) -> Option<Entry> {
        if let Some(hash) = unhex(id) {
            return Some(Entry::Hash(hash));
        }
        let jid = Jid::parse(id).ok()?;
        match jid.local() {
            None if jid.is_domain() => Some(Entry::Domain(jid.as_str().into())),
            None => None,
            Some(_) => Some(Entry::Hash(sha256(jid.bare_str()))),
        }
    }

    /// As an item's id.
    pub(super) fn id(&self) -> String {
        match self {
            Entry::Hash(hash) => hex(hash),
            Entry::Domain(domain) => domain.to_string(),
        }
    }
}

impl Entries {
    pub(super) fn len(&self) -> usize {
        self.hashes.len() + self.domains.len()
    }

    fn reason_of(&self, entry: &Entry) -> Option<&str> {
        match entry {
            Entry::Hash(hash) => self.hashes.get(hash),
            Entry::Domain(domain) => self.domains.get(domain),
        }
        .map(|reason| &**reason)
    }

    pub(super) fn add(&mut self, entry: Entry, reason: Box<str>) {
        match entry {
            Entry::Hash(hash) => self.hashes.insert(hash, reason),
            Entry::Domain(domain) => self.domains.insert(domain, reason),
        };
    }

    pub(super) fn remove(&mut self, entry: &Entry) -> bool {
        match entry {
            Entry::Hash(hash) => self.hashes.remove(hash).is_some(),
            Entry::Domain(domain) => self.domains.remove(domain).is_some(),
        }
    }

    /// Whether somebody is listed: by the domain, its hash, or the hash of the bare address.
    fn lists(&self, bare: Option<&str>, domain: &str) -> bool {
        if self.domains.contains_key(domain) {
            return true;
        }
        !self.hashes.is_empty()
            && (bare.is_some_and(|bare| self.hashes.contains_key(&sha256(bare)))
                || self.hashes.contains_key(&sha256(domain)))
    }

    /// Why a domain as a whole is listed.
    fn reason(&self, domain: &str) -> Option<String> {
        let reason = self.domains.get(domain).or_else(|| self.hashes.get(&sha256(domain)));
        reason.map(|reason| reason.to_string())
    }

    fn iter(&self) -> impl Iterator<Item = (Entry, &str)> {
        let hashes = self.hashes.iter().map(|(hash, reason)| (Entry::Hash(*hash), &**reason));
        let domains = self.domains.iter().map(|(domain, reason)| (Entry::Domain(domain.clone()), &**reason));
        hashes.chain(domains)
    }
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

    /// Whether a list of that name is there, so that a rule can be checked.
    pub fn exists(&self, name: &str) -> bool {
        name == OWN || self.followed.load().contains_key(name)
    }
}

/// The bare address, if it is one, and the domain.
fn parts(who: &str) -> (Option<&str>, &str) {
    let bare = who.split_once('/').map_or(who, |(bare, _)| bare);
    match bare.split_once('@') {
        Some((_, domain)) => (Some(bare), domain),
        None => (None, bare),
    }
}

pub(super) fn sha256(text: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    hash
}

fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// Why the list says so: the text of a report (XEP-0377), or its reason.
fn reason_of(item: Node<'_>) -> Box<str> {
    let Some(report) = item.child(ns::REPORTING, "report") else { return "".into() };
    let text = report.child(ns::REPORTING, "text").map(|text| text.text().trim().to_owned());
    let reason = text.filter(|text| !text.is_empty()).unwrap_or_else(|| {
        let reason = report.attr("reason").unwrap_or_default();
        reason.rsplit(':').next().unwrap_or_default().to_owned()
    });
    short(&reason, MOST_REASON).into()
}

impl List {
    fn new(name: &str, service: Jid, node: &str, (action, run_time): (Option<Action>, bool)) -> Arc<List> {
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
            run_time,
            entries: RwLock::default(),
            state: Mutex::new(State { words: "not asked yet".into(), ..State::default() }),
            unwritten: Mutex::default(),
            turn: tokio::sync::Mutex::new(()),
            hits: AtomicU64::new(0),
            changed_at: AtomicI64::new(0),
            wake: Notify::new(),
        })
    }

    fn view(&self) -> ListView {
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

    /// Carries out changes that an event brought; how many were new. The store is to have them.
    fn apply(&self, changes: &[Change]) -> usize {
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
    fn replace(&self, read: HashMap<Entry, Box<str>>) -> usize {
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
    fn take_unwritten(&self) -> Option<Taken> {
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
    fn give_back(&self, entries: Vec<Entry>, whole: bool) {
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
struct Taken {
    batch: Batch,
    entries: Vec<Entry>,
    whole: bool,
}

/// The changes in an event (XEP-0060 s.7.1.2, s.7.2.2.1, s.8.5.2), by node.
fn changes(event: Node<'_>) -> BTreeMap<String, Vec<Change>> {
    let mut found: BTreeMap<String, Vec<Change>> = BTreeMap::new();
    for child in event.children().filter(|child| child.ns() == ns::PUBSUB_EVENT) {
        let Some(node) = child.attr("node") else { continue };
        let changes = found.entry(node.into_owned()).or_default();
        match child.name() {
            "items" => {
                for item in child.children().filter(|item| item.ns() == ns::PUBSUB_EVENT) {
                    let Some(entry) = item.attr("id").and_then(|id| Entry::parse(&id)) else { continue };
                    match item.name() {
                        "item" => changes.push(Change::Add(entry, reason_of(item))),
                        "retract" => changes.push(Change::Remove(entry)),
                        _ => {}
                    }
                }
            }
            "purge" => changes.push(Change::Purge),
            // A deleted node says nothing about who was on it: the last state stays.
            _ => {}
        }
    }
    found
}

impl Exchange {
    /// A message with a pubsub event for one of our domains. True: it is dealt with.
    pub(crate) fn list_event(self: &Arc<Self>, stanza: &Stanza) -> bool {
        let Some(event) = stanza.child(ns::PUBSUB_EVENT, "event") else { return false };
        let Some(from) = &stanza.head.from else { return true };
        let followed = self.control.lists.followed.load_full();
        for (node, changes) in changes(event) {
            let mut expected = false;
            for list in followed.values().filter(|list| list.service == *from && list.node == node) {
                expected = true;
                let changed = {
                    let mut state = list.state.lock();
                    if let Some(journal) = &mut state.journal {
                        // What does not fit is seen at the next reading.
                        let room = MOST_JOURNAL.saturating_sub(journal.len());
                        journal.extend(changes.iter().take(room).cloned());
                    }
                    list.apply(&changes)
                };
                if changed > 0 {
                    list.changed_at.store(self.clock().now(), Ordering::Relaxed);
                    self.store_entries(list);
                }
            }
            if !expected {
                let detail = "an event of a list that is not followed there";
                self.refusals.report(Refusal {
                    name: "list-event-unknown",
                    peer: from.as_str(),
                    conn: 0,
                    detail,
                });
            }
        }
        true
    }

    /// Writes what the store does not have yet: one batch after the other, for one list never two at a time. What
    /// fails is tried again with the next change or reading of the list.
    fn store_entries(self: &Arc<Self>, list: &Arc<List>) {
        if std::mem::replace(&mut list.unwritten.lock().writing, true) {
            return;
        }
        let (exchange, list) = (Arc::clone(self), Arc::clone(list));
        self.spawn(async move {
            loop {
                let _turn = list.turn.lock().await;
                // Its rows went with it; those of that name are another list's.
                if list.state.lock().ended {
                    return;
                }
                let Some(Taken { batch, entries, whole }) = list.take_unwritten() else { return };
                if let Err(error) = exchange.db.run(batch).await {
                    tracing::warn!(list = %list.name, %error, "entries of a list could not be stored");
                    list.give_back(entries, whole);
                    return;
                }
            }
        });
    }

    /// Reads the lists from the store and begins to follow them.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn load_lists(self: &Arc<Self>) -> Result<(), StoreError> {
        let own = self.db.read(sql("SELECT item, reason FROM own_list")).await?;
        {
            let mut entries = self.control.lists.own.write();
            for row in own.iter() {
                if let Some(entry) = Entry::parse(row.text(0)) {
                    entries.add(entry, row.text(1).into());
                }
            }
        }
        let config = self.config.load_full();
        self.db.run(configured(&config)).await?;
        self.read_lists().await
    }

    async fn read_lists(self: &Arc<Self>) -> Result<(), StoreError> {
        let rows =
            self.db.read(sql("SELECT name, service, node, action, run_time, changed_at FROM lists")).await?;
        let mut followed = BTreeMap::new();
        for row in rows.iter() {
            let Ok(service) = Jid::parse(row.text(1)) else { continue };
            let action = row.opt_text(3).and_then(|action| serde_json::from_str(action).ok());
            let list = List::new(row.text(0), service, row.text(2), (action, row.bool(4)));
            list.changed_at.store(row.opt_int(5).unwrap_or(0), Ordering::Relaxed);
            let entries = self
                .db
                .read(sql("SELECT entry, reason FROM list_entries WHERE list = ?1").bind(row.text(0)))
                .await?;
            {
                let mut known = list.entries.write();
                for row in entries.iter() {
                    if let Some(entry) = Entry::parse(row.text(0)) {
                        known.add(entry, row.text(1).into());
                    }
                }
            }
            followed.insert(list.name.clone(), list);
        }
        self.control.lists.set(followed);
        Ok(())
    }

    /// Begins to follow the lists that are there: once, when stanzas can be sent.
    pub(crate) fn follow_lists(self: &Arc<Self>) {
        for list in self.control.lists.followed.load().values() {
            self.follow(list);
        }
    }

    fn follow(self: &Arc<Self>, list: &Arc<List>) {
        let (exchange, list) = (Arc::downgrade(self), Arc::clone(list));
        self.spawn(async move {
            let mut pause = RETRY;
            loop {
                let Some(exchange) = exchange.upgrade() else { return };
                if list.state.lock().ended {
                    return;
                }
                let wait = match exchange.refresh(&list).await {
                    Ok(()) => {
                        pause = RETRY;
                        AGAIN
                    }
                    Err(error) => {
                        tracing::warn!(list = %list.name, service = %list.service, %error, "a block list can't be read");
                        let mut state = list.state.lock();
                        state.journal = None;
                        state.words = format!("the last state is in force: {error}");
                        pause = (pause * 2).min(AGAIN);
                        pause / 2
                    }
                };
                exchange.store_entries(&list);
                drop(exchange);
                let _ = tokio::time::timeout(wait, list.wake.notified()).await;
            }
        });
    }

    /// Subscribes, and reads all items.
    async fn refresh(self: &Arc<Self>, list: &Arc<List>) -> Result<(), AskError> {
        let Some(from) = self.voice("") else { return Ok(()) };
        list.state.lock().journal = Some(Vec::new());
        let question = |kind, payload| Question {
            from: from.clone(),
            to: list.service.clone(),
            kind,
            payload,
            patience: PATIENCE,
        };
        let mut w = Writer::new();
        w.open("pubsub").attr("xmlns", ns::PUBSUB);
        w.open("subscribe").attr("node", &list.node).attr("jid", from.as_str()).close();
        w.close();
        let answer = self.ask(question(IqType::Set, w.finish())).await?;
        // s.6.1.2: a subscription can also wait for its approval.
        let subscription = answer
            .child(ns::PUBSUB, "pubsub")
            .and_then(|pubsub| pubsub.child(ns::PUBSUB, "subscription"))
            .and_then(|subscription| subscription.attr("subscription").map(|state| state.into_owned()));
        if subscription.is_some_and(|state| state != "subscribed") {
            return Err(AskError::Odd(format!("{} has not approved the subscription and", list.service)));
        }
        let mut reading = Reading::default();
        loop {
            let query = items_query(&list.node, reading.after.as_deref());
            let answer = self.ask(question(IqType::Get, query)).await?;
            let Some(page) = Page::read(&answer, &list.node) else {
                return Err(AskError::Odd(list.service.to_string()));
            };
            if !reading.take(page) {
                break;
            }
            if reading.pages >= MOST_PAGES {
                return Err(AskError::Odd(format!(
                    "{} gave {MOST_PAGES} pages of the list and",
                    list.service
                )));
            }
        }
        if list.replace(reading.read) > 0 {
            list.changed_at.store(self.clock().now(), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Makes the table of lists what the configuration says, those of the run time left alone.
fn configured(config: &Config) -> Batch {
    let mut batch = Batch::new(Lane::Inside);
    let names: BTreeSet<&String> = config.federation.lists.keys().collect();
    let names = serde_json::to_string(&names).unwrap_or_else(|_| "[]".into());
    batch.push(
        sql("DELETE FROM lists WHERE run_time = 0 AND name NOT IN (SELECT value FROM json_each(?1))")
            .bind(names),
    );
    for (name, list) in config.federation.lists.iter().take(MOST_LISTS) {
        let action = list.action();
        // What another service or node said is not what this one says.
        batch.push(
            sql("DELETE FROM list_entries WHERE list = ?1 AND EXISTS \
                 (SELECT 1 FROM lists WHERE name = ?1 AND (service <> ?2 OR node <> ?3))")
            .bind(name.as_str())
            .bind(list.service.as_str())
            .bind(list.node.as_str()),
        );
        batch.push(
            sql("INSERT INTO lists (name, service, node, action, run_time) VALUES (?1, ?2, ?3, ?4, 0) \
                 ON CONFLICT (name) DO UPDATE SET service = excluded.service, node = excluded.node, \
                 action = excluded.action, run_time = 0")
            .bind(name.as_str())
            .bind(list.service.as_str())
            .bind(list.node.as_str())
            .bind(action.and_then(|action| serde_json::to_string(&action).ok())),
        );
    }
    batch
}

/// s.6.5.2 with the paging of XEP-0059; who does not know it answers with all items.
fn items_query(node: &str, after: Option<&str>) -> Vec<u8> {
    let mut w = Writer::new();
    w.open("pubsub").attr("xmlns", ns::PUBSUB);
    w.open("items").attr("node", node).close();
    w.open("set").attr("xmlns", ns::RSM).text_element("max", &ITEMS.to_string());
    if let Some(after) = after {
        w.text_element("after", after);
    }
    w.close().close();
    w.finish()
}

/// What was read of a list so far.
#[derive(Default)]
struct Reading {
    read: HashMap<Entry, Box<str>>,
    after: Option<String>,
    pages: usize,
}

impl Reading {
    /// With one page more. True: there may be others behind it.
    fn take(&mut self, page: Page) -> bool {
        self.pages += 1;
        for (entry, reason) in page.items {
            if self.read.len() < MOST_ENTRIES || self.read.contains_key(&entry) {
                self.read.insert(entry, reason);
            }
        }
        // Items that can't be read or are known already are no end: others may follow.
        let end = page.all == 0 || page.last.is_none() || page.last == self.after;
        self.after = page.last;
        !end && self.read.len() < MOST_ENTRIES
    }
}

/// A page of items.
struct Page {
    items: Vec<(Entry, Box<str>)>,
    /// How many it had, those that can't be read included.
    all: usize,
    /// From where to go on; `None`: it was everything.
    last: Option<String>,
}

impl Page {
    fn read(answer: &Stanza, node: &str) -> Option<Page> {
        let pubsub = answer.child(ns::PUBSUB, "pubsub")?;
        let items = pubsub.child(ns::PUBSUB, "items")?;
        if items.attr("node").is_some_and(|of| of != node) {
            return None;
        }
        let found = || items.children().filter(|item| item.is(ns::PUBSUB, "item"));
        let all = found().count();
        let items =
            found().filter_map(|item| Some((Entry::parse(&item.attr("id")?)?, reason_of(item)))).collect();
        let last = pubsub
            .child(ns::RSM, "set")
            .and_then(|set| set.child(ns::RSM, "last"))
            .map(|last| last.text().into_owned())
            .filter(|last| last.len() <= 1024);
        Some(Page { items, all, last })
    }
}

/// What can be asked of the lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ListsOp {
    /// All lists.
    Show,
    /// Follows a list.
    Subscribe {
        /// Its name here, for rules (`listed_in`).
        name: String,
        /// The address of its pubsub service.
        service: String,
        /// The node.
        node: String,
        /// What is done with those on it; `None`: only rules that name the list apply.
        #[serde(default)]
        action: Option<super::rule::Action>,
        /// For the audit log.
        why: String,
    },
    /// Stops following a list.
    Unsubscribe {
        /// Its name here.
        name: String,
        /// For the audit log.
        why: String,
    },
    /// What is on a list, a page at a time.
    Items {
        /// Its name here; `own` is the one that we publish.
        name: String,
        /// After this entry: the last one of the page before.
        #[serde(default)]
        after: Option<String>,
    },
    /// Puts an address or a domain on our own list.
    Publish {
        /// A bare address or a domain; addresses are published as their SHA-256.
        entry: String,
        /// Everybody can read it.
        reason: String,
    },
    /// Takes it off our own list.
    Retract {
        /// As it was published.
        entry: String,
        /// For the audit log.
        why: String,
    },
    /// Who follows our own list.
    Subscribers,
    /// Ends subscriptions of our own list.
    RemoveSubscriber {
        /// Of this address, or of everybody at this domain.
        address: String,
        /// For the audit log.
        why: String,
    },
}

/// Who follows our own list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Subscriber {
    /// Who is told.
    pub address: String,
    /// Which node.
    pub node: String,
    /// Of which of our domains.
    pub host: String,
    /// When it ends unless it is renewed, milliseconds since 1970.
    pub until: i64,
}

/// A list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListView {
    /// Its name here; `own` is the one that we publish.
    pub name: String,
    /// The address of its pubsub service.
    pub service: String,
    /// The node.
    pub node: String,
    /// What is done with those on it.
    pub action: Option<super::rule::Action>,
    /// Entries.
    pub entries: u64,
    /// `subscribed`, or why not, in words.
    pub state: String,
    /// The last change, milliseconds since 1970.
    pub changed_at: Option<i64>,
    /// Stanzas that it decided since the start; without an action, how often it was asked and had somebody.
    pub hits: u64,
}

/// What is on a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListEntry {
    /// A domain, an address, or the hash of one in hex.
    pub entry: String,
    /// Why, as the list says.
    pub reason: String,
}

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(exchange: &Arc<Exchange>, actor: &Actor, op: ListsOp) -> Result<Outcome, OpError> {
    match op {
        ListsOp::Show => Ok(show(exchange)),
        ListsOp::Subscribe { name, service, node, action, why } => {
            subscribe(exchange, actor, Wish { name, service, node, action, why }).await
        }
        ListsOp::Unsubscribe { name, why } => unsubscribe(exchange, actor, &name, &why).await,
        ListsOp::Items { name, after } => items(exchange, &name, after.as_deref()).await,
        ListsOp::Publish { entry, reason } => exchange.publish(actor, &entry, &reason).await,
        ListsOp::Retract { entry, why } => exchange.retract(actor, &entry, &why).await,
        ListsOp::Subscribers => exchange.subscribers().await,
        ListsOp::RemoveSubscriber { address, why } => exchange.remove_subscriber(actor, &address, &why).await,
    }
}

fn show(exchange: &Exchange) -> Outcome {
    let lists = &exchange.control.lists;
    let mut views: Vec<ListView> = lists.followed.load().values().map(|list| list.view()).collect();
    views.push(ListView {
        name: OWN.into(),
        service: exchange.config.load().domain.clone(),
        node: super::publication::NODES.join(", "),
        action: None,
        entries: lists.own.read().len() as u64,
        state: "published".into(),
        changed_at: None,
        hits: lists.own_hits.load(Ordering::Relaxed),
    });
    Outcome::Lists { lists: views }
}

/// A list to be followed.
struct Wish {
    name: String,
    service: String,
    node: String,
    action: Option<Action>,
    why: String,
}

async fn subscribe(exchange: &Arc<Exchange>, actor: &Actor, wish: Wish) -> Result<Outcome, OpError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if wish.name.is_empty() || wish.name.len() > 64 || !wish.name.chars().all(fine) || wish.name == OWN {
        return Err(OpError::BadRequest(format!(
            "\"{}\" can't be a list's name: use letters, digits, dots, - and _, and not \"{OWN}\"",
            wish.name.escape_debug()
        )));
    }
    let service = Jid::parse(&wish.service)
        .map_err(|error| OpError::BadAddress(format!("{}: {error}", wish.service.escape_debug())))?;
    if exchange.host(service.domain()).is_some() {
        return Err(OpError::NotPossible("that is our own list: rules know it as \"own\"".into()));
    }
    if wish.node.is_empty() || wish.node.len() > 1024 {
        return Err(OpError::BadRequest("a node has a name of 1 to 1024 bytes".into()));
    }
    let lists = &exchange.control.lists;
    let _changing = lists.changing.lock().await;
    let followed = lists.followed.load_full();
    if followed.contains_key(&wish.name) {
        return Err(OpError::Exists(format!("the list {}", wish.name)));
    }
    if followed.len() >= MOST_LISTS {
        return Err(OpError::NotPossible(format!("{MOST_LISTS} lists are followed: that is the most")));
    }
    let action = wish.action.as_ref().and_then(|action| serde_json::to_string(action).ok());
    let after = serde_json::json!({
        "name": wish.name, "service": service.as_str(), "node": wish.node, "action": wish.action,
    });
    let batch = Batch::new(Lane::Inside)
        .with(
            sql("INSERT INTO lists (name, service, node, action, run_time) VALUES (?1, ?2, ?3, ?4, 1)")
                .bind(wish.name.as_str())
                .bind(service.as_str())
                .bind(wish.node.as_str())
                .bind(action),
        )
        .with(exchange.control.audit.entry(
            actor,
            "lists subscribe",
            &wish.why,
            (None, Some(after.to_string())),
        ));
    exchange.db.run(batch).await.map_err(|error| OpError::Store(error.to_string()))?;
    let list = List::new(&wish.name, service, &wish.node, (wish.action, true));
    let mut all = BTreeMap::clone(&followed);
    all.insert(wish.name.clone(), Arc::clone(&list));
    lists.set(all);
    exchange.follow(&list);
    Ok(Outcome::Done { text: format!("{} is followed; `lists show` tells its state.", wish.name) })
}

async fn unsubscribe(
    exchange: &Arc<Exchange>,
    actor: &Actor,
    name: &str,
    why: &str,
) -> Result<Outcome, OpError> {
    let lists = &exchange.control.lists;
    let _changing = lists.changing.lock().await;
    let followed = lists.followed.load_full();
    let list =
        followed.get(name).ok_or_else(|| OpError::NotFound(format!("list {}", name.escape_debug())))?;
    if !list.run_time {
        return Err(OpError::NotPossible(format!("{name} stands in the configuration: take it out there")));
    }
    // Nobody adds a rule that names it, or writes its rows, until it is gone.
    let _writes = exchange.control.policy.held().await;
    let named = exchange.control.policy.rules_on(name);
    if !named.is_empty() {
        return Err(OpError::NotPossible(format!(
            "{} asks for this list: change or remove it first",
            named.join(", ")
        )));
    }
    let _turn = list.turn.lock().await;
    let before = serde_json::to_string(&list.view()).ok();
    let batch = Batch::new(Lane::Inside)
        .with(sql("DELETE FROM lists WHERE name = ?1").bind(name))
        .with(exchange.control.audit.entry(actor, "lists unsubscribe", why, (before, None)));
    exchange.db.run(batch).await.map_err(|error| OpError::Store(error.to_string()))?;
    list.state.lock().ended = true;
    list.wake.notify_one();
    let mut all = BTreeMap::clone(&followed);
    all.remove(name);
    lists.set(all);
    let (asking, list) = (Arc::clone(exchange), Arc::clone(list));
    exchange.spawn(async move {
        let Some(from) = asking.voice("") else { return };
        let mut w = Writer::new();
        w.open("pubsub").attr("xmlns", ns::PUBSUB);
        w.open("unsubscribe").attr("node", &list.node).attr("jid", from.as_str()).close();
        w.close();
        let question = Question {
            from,
            to: list.service.clone(),
            kind: IqType::Set,
            payload: w.finish(),
            patience: PATIENCE,
        };
        if let Err(error) = asking.ask(question).await {
            // Its events are refused from now on; some day it notices.
            tracing::info!(%error, list = %list.name, "a list's service did not take the unsubscription");
        }
    });
    Ok(Outcome::Done { text: format!("{name} is not followed any more.") })
}

async fn items(exchange: &Exchange, name: &str, after: Option<&str>) -> Result<Outcome, OpError> {
    let lists = &exchange.control.lists;
    let mut items: Vec<ListEntry> = if name == OWN {
        exchange.published().await?
    } else {
        let followed = lists.followed.load();
        let list =
            followed.get(name).ok_or_else(|| OpError::NotFound(format!("list {}", name.escape_debug())))?;
        let entries = list.entries.read();
        entries
            .iter()
            .map(|(entry, reason)| ListEntry { entry: entry.id(), reason: reason.to_owned() })
            .collect()
    };
    items.retain(|item| after.is_none_or(|after| item.entry.as_str() > after));
    items.sort_by(|a, b| a.entry.cmp(&b.entry));
    let more = items.len() > PAGE;
    items.truncate(PAGE);
    Ok(Outcome::ListItems { items, more })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Clock;
    use crate::serve::{Parts, Server};

    fn list() -> Arc<List> {
        List::new("l", "rtbl.example".parse().unwrap(), "n", (None, true))
    }

    fn event(inner: &str) -> BTreeMap<String, Vec<Change>> {
        let xml = format!("<message><event xmlns='{}'>{inner}</event></message>", ns::PUBSUB_EVENT);
        let stanza = Stanza::parse(xml.as_bytes()).unwrap();
        changes(stanza.child(ns::PUBSUB_EVENT, "event").unwrap())
    }

    #[test]
    fn entries_are_what_they_look_like() {
        let hash = hex(&sha256("spammer@bad.example"));
        assert_eq!(hash.len(), 64);
        assert_eq!(Entry::parse(&hash), Entry::parse("Spammer@BAD.example/phone"));
        assert_eq!(Entry::parse(&hash.to_uppercase()), Entry::parse(&hash));
        assert_eq!(Entry::parse("Bad.Example"), Some(Entry::Domain("bad.example".into())));
        assert_eq!(Entry::parse("bad.example/x"), None);
        assert_eq!(Entry::parse(""), None);
        // Known from elsewhere: `printf abc | sha256sum`.
        assert_eq!(hex(&sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn addresses_and_domains_are_found() {
        let mut entries = Entries::default();
        entries.add(Entry::parse("spammer@bad.example").unwrap(), "".into());
        entries.add(Entry::parse("worse.example").unwrap(), "".into());
        entries.add(Entry::Hash(sha256("worst.example")), "".into());
        let listed = |who| {
            let (bare, domain) = parts(who);
            entries.lists(bare, domain)
        };
        for who in [
            "spammer@bad.example",
            "spammer@bad.example/x",
            "a@worse.example",
            "worse.example",
            "b@worst.example",
        ] {
            assert!(listed(who), "{who}");
        }
        for who in ["bad.example", "other@bad.example", "sub.worse.example", "a@sub.worse.example"] {
            assert!(!listed(who), "{who}");
        }
    }

    #[test]
    fn events_are_read() {
        let found = event(
            "<items node='n'><item id='bad.example'><report xmlns='urn:xmpp:reporting:1' \
             reason='urn:xmpp:reporting:spam'><text> much\n of it </text></report></item><item id='/'/>\
             <retract id='good.example'/></items><purge node='m'/><delete node='o'/>",
        );
        let domain = |name: &str| Entry::Domain(name.into());
        assert_eq!(
            found["n"],
            [
                Change::Add(domain("bad.example"), "much  of it".into()),
                Change::Remove(domain("good.example"))
            ]
        );
        assert_eq!(found["m"], [Change::Purge]);
        assert!(found["o"].is_empty());
    }

    #[test]
    fn what_comes_while_a_list_is_read_is_not_lost() {
        let list = list();
        let domain = |name: &str| Entry::Domain(name.into());
        list.apply(&[Change::Add(domain("old.example"), "".into())]);
        let during = [Change::Add(domain("new.example"), "".into()), Change::Remove(domain("gone.example"))];
        list.state.lock().journal = Some(during.to_vec());
        list.apply(&during);
        let read = ["kept.example", "gone.example"].map(|name| (domain(name), Box::from("")));
        let changed = list.replace(HashMap::from(read));
        let mut left: Vec<String> = list.entries.read().iter().map(|(entry, _)| entry.id()).collect();
        left.sort();
        assert_eq!(left, ["kept.example", "new.example"]);
        assert!(changed >= 4, "old goes, kept and gone come, gone goes: {changed}");
        assert_eq!(list.state.lock().words, "subscribed");
    }

    #[test]
    fn a_list_is_bounded() {
        let list = list();
        let add = |n: usize| Change::Add(Entry::Domain(format!("d{n}").into()), "".into());
        let many: Vec<Change> = (0..=MOST_ENTRIES).map(add).collect();
        list.apply(&many);
        assert_eq!(list.entries.read().len(), MOST_ENTRIES);
        // Whoever is on it can still be changed.
        let again = Change::Add(Entry::Domain("d3".into()), "worse".into());
        assert_eq!(list.apply(&[again]), 1);
        assert_eq!(list.apply(&[add(MOST_ENTRIES)]), 0);
    }

    #[test]
    fn pages_go_on_while_they_say_so() {
        let answer = |rest: &str| {
            let xml = format!(
                "<iq type='result' id='1'><pubsub xmlns='{}'><items node='n'><item id='a.example'/></items>{rest}\
                 </pubsub></iq>",
                ns::PUBSUB
            );
            Stanza::parse(xml.as_bytes()).unwrap()
        };
        let page =
            Page::read(&answer("<set xmlns='http://jabber.org/protocol/rsm'><last>x</last></set>"), "n")
                .unwrap();
        assert_eq!((page.items.len(), page.last.as_deref()), (1, Some("x")));
        assert_eq!(Page::read(&answer(""), "n").unwrap().last, None);
        assert!(Page::read(&answer(""), "other").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_moved_begins_with_nothing() {
        let config = |service: &str, node: &str| {
            let text = format!(
                "domain = \"north.example\"\ndata_dir = \"/nonexistent\"\n\
                 [federation.lists.spam]\nservice = \"{service}\"\nnode = \"{node}\"\n"
            );
            Config::parse(&text, std::path::Path::new("trunkline.toml")).unwrap()
        };
        let first = config("lists.example", "n");
        let parts = Parts { clock: Clock::virtual_now(), in_memory: true, ..Parts::default() };
        let server = Server::start(first, parts).await.unwrap();
        let db = &server.exchange().db;
        for (service, node, left) in
            [("lists.example", "n", 1), ("lists.example", "m", 0), ("elsewhere.example", "m", 0)]
        {
            let entry = sql("INSERT OR IGNORE INTO list_entries (list, entry, reason) \
                             VALUES ('spam', 'bad.example', '')");
            db.run(Batch::new(Lane::Inside).with(entry)).await.unwrap();
            db.run(configured(&config(service, node))).await.unwrap();
            let rows = db.read(sql("SELECT entry FROM list_entries")).await.unwrap();
            assert_eq!(rows.iter().count(), left, "{service} {node}");
        }
    }

    #[test]
    fn unreadable_and_known_items_do_not_end_a_reading() {
        let page = |ids: &[&str], all: usize, last: &str| {
            let items = ids.iter().filter_map(|id| Some((Entry::parse(id)?, Box::from("")))).collect();
            Page { items, all, last: Some(last.to_owned()) }
        };
        let mut reading = Reading::default();
        assert!(reading.take(page(&[], 3, "a")), "none can be read");
        assert!(reading.take(page(&["one.example"], 1, "b")));
        assert!(reading.take(page(&["one.example"], 1, "c")), "known");
        assert!(reading.take(page(&["two.example"], 1, "d")));
        assert_eq!(reading.read.len(), 2);
        assert!(!reading.take(page(&["three.example"], 1, "d")), "it does not go on");
        assert!(!Reading::default().take(page(&[], 0, "e")), "no items at all");
    }

    #[test]
    fn a_reading_that_ends_too_late_changes_nothing() {
        let list = list();
        list.state.lock().ended = true;
        let read = HashMap::from([(Entry::Domain("late.example".into()), Box::from(""))]);
        assert_eq!(list.replace(read), 0);
        assert!(list.take_unwritten().is_none(), "nothing for the rows of another list of that name");
    }

    #[test]
    fn a_changed_reason_is_written_and_what_was_not_written_is_tried_again() {
        let list = list();
        let read = |reason: &str| HashMap::from([(Entry::Domain("bad.example".into()), Box::from(reason))]);
        assert_eq!(list.replace(read("old")), 1);
        let taken = list.take_unwritten().unwrap();
        assert!(list.take_unwritten().is_none());
        list.give_back(taken.entries, taken.whole);
        assert_eq!(list.replace(read("old")), 0);
        assert_eq!(list.take_unwritten().unwrap().entries.len(), 1, "it was given back");
        assert!(list.take_unwritten().is_none());
        assert_eq!(list.replace(read("new")), 1);
        assert_eq!(list.take_unwritten().unwrap().entries.len(), 1);
    }
}
