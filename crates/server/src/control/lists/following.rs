//! Following: a task for each list subscribes and reads, the service's events change the list at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use trunkline_store::{Batch, Lane, StoreError, sql};
use trunkline_xml::{Node, Writer};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{IqType, Stanza};

use super::entries::{Change, Entry, reason_of};
use super::list::Taken;
use super::{List, MOST_ENTRIES, MOST_LISTS, Origin, PATIENCE};
use crate::admin::actor::{Actor, Face};
use crate::config::Config;
use crate::control::asking::{AskError, Question};
use crate::exchange::Exchange;
use crate::logging::Refusal;

/// Items asked for at once.
const ITEMS: usize = 500;
/// Changes that come while a list is read.
const MOST_JOURNAL: usize = 10_000;
/// Pages of one reading: a service may give small ones.
const MOST_PAGES: usize = 5000;
/// A list is subscribed to and read again after this time.
const AGAIN: Duration = Duration::from_secs(3600);
/// After a failure: the first pause, which doubles up to [`AGAIN`].
const RETRY: Duration = Duration::from_secs(30);

impl Exchange {
    /// A message with a pubsub event for one of our domains. True: it is dealt with.
    pub(crate) fn list_event(self: &Arc<Self>, stanza: &Stanza) -> bool {
        let Some(event) = stanza.child(ns::PUBSUB_EVENT, "event") else { return false };
        let Some(from) = &stanza.head.from else { return true };
        let followed = self.control.lists.followed.load_full();
        let is_followed = followed.values().any(|list| list.service == *from);
        // What nobody asked for is not read.
        let changes = if is_followed { changes(event) } else { BTreeMap::new() };
        let mut unexpected = !is_followed;
        for (node, changes) in changes {
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
            unexpected |= !expected;
        }
        if unexpected {
            let detail = "an event of a list that is not followed there";
            let peer = from.as_str();
            self.refusals.report(Refusal { name: "list-event-unknown", peer, conn: 0, detail });
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
        let kept = self.configure_lists(&config).await?;
        self.read_lists(&kept).await
    }

    /// Makes the rows of the lists what the configuration says. A list that it has no longer stays, as if it had been
    /// subscribed to at run time, if a rule of the run time asks for it: the rule would let everybody pass otherwise.
    /// The names of these.
    async fn configure_lists(&self, config: &Config) -> Result<BTreeSet<String>, StoreError> {
        let asked =
            serde_json::to_string(&self.control.policy.lists_asked_for()).unwrap_or_else(|_| "[]".into());
        let kept = sql("SELECT name FROM lists WHERE run_time = 0 AND \
             name NOT IN (SELECT value FROM json_each(?1)) AND name IN (SELECT value FROM json_each(?2))")
        .bind(names(config))
        .bind(asked);
        let rows = self.db.read(kept).await?;
        let kept: BTreeSet<String> = rows.iter().map(|row| row.text(0).to_owned()).collect();
        let mut batch = Batch::new(Lane::Inside);
        let actor = Actor {
            name: config.file().display().to_string(),
            face: Face::Configuration,
            scopes: Vec::new(),
        };
        for name in &kept {
            batch.push(sql("UPDATE lists SET run_time = 1 WHERE name = ?1").bind(name.as_str()));
            let after = serde_json::json!({ "name": name }).to_string();
            let why = "the configuration has it no longer, and a rule asks for it";
            batch.push(self.control.audit.entry(&actor, "lists keep", why, (None, Some(after))));
        }
        self.db.run(configured(config, batch)).await?;
        Ok(kept)
    }

    /// The configuration was read again, and is to be in force: what it lists is followed, what it lists no more is not.
    /// With an error nothing has changed.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn reload_lists(self: &Arc<Self>, config: &Config) -> Result<(), StoreError> {
        let lists = &self.control.lists;
        let _changing = lists.changing.lock().await;
        // Nobody adds a rule that names a list until it is gone or stays, and nobody writes rows of one.
        let _rules = self.control.policy.held().await;
        let before = lists.followed.load_full();
        let mut turns = Vec::new();
        for list in before.values() {
            turns.push(list.turn.lock().await);
        }
        let kept = self.configure_lists(config).await?;
        let (mut followed, mut begun) = (BTreeMap::new(), Vec::new());
        for (name, said) in config.federation.lists.iter().take(MOST_LISTS) {
            let Ok(service) = Jid::parse(&said.service) else { continue };
            let there = before.get(name).filter(|list| list.service == service && list.node == said.node);
            let list = match there {
                Some(list) if list.action == said.action() => {
                    list.state.lock().origin = Origin::Configured;
                    Arc::clone(list)
                }
                there => {
                    let fresh = List::new(name, service, &said.node, (said.action(), Origin::Configured));
                    if let Some(there) = there {
                        fresh.succeed(there);
                    }
                    begun.push(Arc::clone(&fresh));
                    fresh
                }
            };
            followed.insert(name.clone(), list);
        }
        for (name, list) in before.iter() {
            let mut state = list.state.lock();
            if kept.contains(name) {
                state.origin = Origin::Kept;
            }
            let stays = state.origin != Origin::Configured && !followed.contains_key(name);
            if stays {
                followed.insert(name.clone(), Arc::clone(list));
            }
            state.ended = !followed.get(name).is_some_and(|now| Arc::ptr_eq(now, list));
        }
        drop(turns);
        lists.set(followed);
        for list in before.values().filter(|list| list.state.lock().ended) {
            list.wake.notify_one();
            self.leave(list);
        }
        for list in &begun {
            self.follow(list);
        }
        Ok(())
    }

    /// The service of a list that is not followed any more hears of it.
    pub(super) fn leave(self: &Arc<Self>, list: &Arc<List>) {
        let (exchange, list) = (Arc::clone(self), Arc::clone(list));
        self.spawn(async move {
            // Another list, or the same one with another action, still hears of it.
            let heard = |other: &Arc<List>| other.service == list.service && other.node == list.node;
            if exchange.control.lists.followed.load().values().any(heard) {
                return;
            }
            let Some(from) = exchange.voice("") else { return };
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
            if let Err(error) = exchange.ask(question).await {
                // Its events are refused from now on; some day it notices.
                tracing::info!(%error, list = %list.name, "a list's service did not take the unsubscription");
            }
        });
    }

    async fn read_lists(self: &Arc<Self>, kept: &BTreeSet<String>) -> Result<(), StoreError> {
        let rows =
            self.db.read(sql("SELECT name, service, node, action, run_time, changed_at FROM lists")).await?;
        let mut followed = BTreeMap::new();
        for row in rows.iter() {
            let Ok(service) = Jid::parse(row.text(1)) else { continue };
            let action = row.opt_text(3).and_then(|action| serde_json::from_str(action).ok());
            let origin = match row.bool(4) {
                true if kept.contains(row.text(0)) => Origin::Kept,
                true => Origin::RunTime,
                false => Origin::Configured,
            };
            let list = List::new(row.text(0), service, row.text(2), (action, origin));
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

    pub(super) fn follow(self: &Arc<Self>, list: &Arc<List>) {
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

/// The changes in an event (XEP-0060 s.7.1.2, s.7.2.2.1, s.8.5.2), by node.
pub(super) fn changes(event: Node<'_>) -> BTreeMap<String, Vec<Change>> {
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

/// The names of the configured lists, as JSON.
fn names(config: &Config) -> String {
    let names: BTreeSet<&String> = config.federation.lists.keys().collect();
    serde_json::to_string(&names).unwrap_or_else(|_| "[]".into())
}

/// Makes the table of lists what the configuration says, those of the run time left alone; behind what is in `batch`.
pub(super) fn configured(config: &Config, mut batch: Batch) -> Batch {
    batch.push(
        sql("DELETE FROM lists WHERE run_time = 0 AND name NOT IN (SELECT value FROM json_each(?1))")
            .bind(names(config)),
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
pub(super) struct Reading {
    pub(super) read: HashMap<Entry, Box<str>>,
    after: Option<String>,
    pub(super) pages: usize,
}

impl Reading {
    /// With one page more. True: there may be others behind it.
    pub(super) fn take(&mut self, page: Page) -> bool {
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
pub(super) struct Page {
    pub(super) items: Vec<(Entry, Box<str>)>,
    /// How many it had, those that can't be read included.
    pub(super) all: usize,
    /// From where to go on; `None`: it was everything.
    pub(super) last: Option<String>,
}

impl Page {
    pub(super) fn read(answer: &Stanza, node: &str) -> Option<Page> {
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
