//! Who becomes available gets the last items of the nodes that they want to be told of (XEP-0163 s.4.3.4); and what is
//! known of the devices of contacts at other providers.
//!
//! A device of ours keeps what it wants beside its presence ([`Seen`]). Devices elsewhere are remembered here while
//! they are available, by the account whose contact they are ([`Watchers`]).

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;
use trunkline_store::{Lane, Rows, Statement, StoreError, sql};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::{Kind, MessageType, PresenceType, Stanza};

use super::Desk;
use super::caps::{Interests, Shown};
use super::config::{Access, SendLast};
use super::node::{self, Affiliation, Opened, Place};
use super::subscribe::write_state;
use crate::exchange::Exchange;
use crate::route::account::Account;
use crate::route::{Mail, Session};

/// Devices elsewhere that are remembered, and bytes of what is known of them. What several want may be in memory
/// once, and counts each time.
const MOST_WATCHERS: Load = Load { devices: 100_000, bytes: 64 * 1024 * 1024 };
/// Those of one domain.
const MOST_OF_DOMAIN: Load = Load { devices: 25_000, bytes: 16 * 1024 * 1024 };
/// Of one account's contacts.
const MOST_OF_ACCOUNT: usize = 2000;
/// Of one contact of an account.
const MOST_OF_CONTACT: usize = 20;
/// What one takes beside what is counted byte by byte.
const WATCHER: usize = 128;
/// Parts of the table with a lock each.
const PARTS: usize = 64;
/// A device that was not heard of for so long is forgotten: its server may have gone without a word.
const FORGOTTEN_AFTER: i64 = 7 * 24 * 3600 * 1000;
/// Accounts whose nodes are looked at in one go.
const AT_ONCE: usize = 20;

/// What is known of what one of our devices wants; beside its presence.
#[derive(Debug, Default)]
pub struct Seen {
    key: Option<Arc<str>>,
    /// What it wants to be told of, once that is known.
    pub interests: Option<Arc<Interests>>,
    /// Somebody finds out.
    busy: bool,
}

impl Seen {
    /// The device went away: when it comes back it is told everything.
    pub(crate) fn forget(&mut self) {
        self.key = None;
        self.interests = None;
    }
}

/// One device of a contact elsewhere.
#[derive(Debug)]
struct Watcher {
    jid: Jid,
    key: Arc<str>,
    interests: Arc<Interests>,
    heard: i64,
}

impl Watcher {
    fn size(&self) -> usize {
        WATCHER + self.jid.as_str().len() + self.key.len() + self.interests.size()
    }
}

/// How much is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    devices: usize,
    bytes: usize,
}

impl Load {
    fn fits(self, most: Load) -> bool {
        self.devices <= most.devices && self.bytes <= most.bytes
    }

    fn with(self, bytes: usize) -> Load {
        Load { devices: self.devices + 1, bytes: self.bytes + bytes }
    }

    fn without(self, bytes: usize) -> Load {
        Load { devices: self.devices - 1, bytes: self.bytes - bytes }
    }
}

/// Devices of contacts elsewhere that want to be told of something, by the account whose contact they are.
#[derive(Debug)]
pub(crate) struct Watchers {
    parts: Box<[Mutex<HashMap<Jid, Contacts>>]>,
    hasher: RandomState,
    /// Locked within the lock of a part, and for a moment.
    loads: Mutex<Loads>,
}

#[derive(Debug, Default)]
struct Loads {
    all: Load,
    /// By domain.
    of: HashMap<Box<str>, Load>,
}

impl Loads {
    /// Counts one in, if there is room.
    fn add(&mut self, watcher: &Watcher) -> bool {
        let (bytes, domain) = (watcher.size(), watcher.jid.domain());
        let of = self.of.get(domain).copied().unwrap_or_default().with(bytes);
        let all = self.all.with(bytes);
        if !of.fits(MOST_OF_DOMAIN) || !all.fits(MOST_WATCHERS) {
            return false;
        }
        self.all = all;
        self.of.insert(domain.into(), of);
        true
    }

    fn remove(&mut self, watcher: &Watcher) {
        let (bytes, domain) = (watcher.size(), watcher.jid.domain());
        self.all = self.all.without(bytes);
        let Some(of) = self.of.get_mut(domain) else { return };
        *of = of.without(bytes);
        if of.devices == 0 {
            self.of.remove(domain);
        }
    }
}

/// The devices of one account's contacts.
#[derive(Debug, Default)]
struct Contacts {
    /// By bare address.
    of: HashMap<Jid, Vec<Watcher>>,
    devices: usize,
}

impl Default for Watchers {
    fn default() -> Watchers {
        Watchers {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            loads: Mutex::default(),
        }
    }
}

impl Watchers {
    fn part(&self, account: &Jid) -> &Mutex<HashMap<Jid, Contacts>> {
        let at = usize::try_from(self.hasher.hash_one(account) % PARTS as u64).unwrap_or_default();
        &self.parts[at]
    }

    /// The devices that want to be told of `node`, of those contacts that `of` names.
    pub(super) fn of(&self, account: &Jid, node: &str, of: impl Fn(&Jid) -> bool) -> Vec<Jid> {
        let part = self.part(account).lock();
        let contacts = part.get(account).into_iter().flat_map(|contacts| &contacts.of);
        contacts
            .filter(|(contact, _)| of(contact))
            .flat_map(|(_, watchers)| watchers)
            .filter(|watcher| watcher.interests.wants(node))
            .map(|watcher| watcher.jid.clone())
            .collect()
    }

    /// The devices of one contact, with what they want.
    fn devices(&self, account: &Jid, contact: &Jid) -> Vec<(Jid, Arc<Interests>)> {
        let part = self.part(account).lock();
        let watchers = part.get(account).and_then(|contacts| contacts.of.get(&contact.bare()));
        let watchers = watchers.into_iter().flatten();
        watchers.map(|watcher| (watcher.jid.clone(), Arc::clone(&watcher.interests))).collect()
    }

    /// Notes that it was heard of; whether nothing has changed since.
    fn is_known(&self, account: &Jid, (jid, key): (&Jid, &str), now: i64) -> bool {
        let mut part = self.part(account).lock();
        let watchers = part.get_mut(account).and_then(|contacts| contacts.of.get_mut(&jid.bare()));
        let watcher = watchers.into_iter().flatten().find(|watcher| watcher.jid == *jid);
        watcher.is_some_and(|watcher| {
            watcher.heard = now;
            *watcher.key == *key
        })
    }

    /// Remembers a device; what it wanted before. `Err`: there is no room, and it is forgotten.
    fn note(
        &self,
        account: &Jid,
        new: (Jid, Arc<str>, Arc<Interests>),
        now: i64,
    ) -> Result<Option<Arc<Interests>>, ()> {
        let (jid, key, interests) = new;
        let mut part = self.part(account).lock();
        let before = self.take_from(&mut part, (account, &jid));
        let contact = jid.bare();
        let watcher = Watcher { jid, key, interests, heard: now };
        let contacts = part.get(account);
        let devices = contacts.map_or(0, |contacts| contacts.devices);
        let of = contacts.and_then(|contacts| contacts.of.get(&contact)).map_or(0, Vec::len);
        let room = devices < MOST_OF_ACCOUNT && of < MOST_OF_CONTACT && self.loads.lock().add(&watcher);
        if !room {
            return Err(());
        }
        let contacts = part.entry(account.clone()).or_default();
        contacts.devices += 1;
        contacts.of.entry(contact).or_default().push(watcher);
        Ok(before)
    }

    /// Forgets a device; what it wanted.
    fn take(&self, account: &Jid, jid: &Jid) -> Option<Arc<Interests>> {
        self.take_from(&mut self.part(account).lock(), (account, jid))
    }

    fn take_from(
        &self,
        part: &mut HashMap<Jid, Contacts>,
        (account, jid): (&Jid, &Jid),
    ) -> Option<Arc<Interests>> {
        let contacts = part.get_mut(account)?;
        let contact = jid.bare();
        let watchers = contacts.of.get_mut(&contact)?;
        let at = watchers.iter().position(|watcher| watcher.jid == *jid)?;
        let watcher = watchers.swap_remove(at);
        contacts.devices -= 1;
        if watchers.is_empty() {
            contacts.of.remove(&contact);
        }
        if contacts.of.is_empty() {
            part.remove(account);
        }
        self.loads.lock().remove(&watcher);
        Some(watcher.interests)
    }

    /// Forgets who was not heard of for long.
    pub(super) fn sweep(&self, now: i64) {
        for part in &self.parts {
            part.lock().retain(|_, contacts| {
                contacts.of.retain(|_, watchers| {
                    watchers.retain(|watcher| {
                        let stays = watcher.heard > now - FORGOTTEN_AFTER;
                        if !stays {
                            contacts.devices -= 1;
                            self.loads.lock().remove(watcher);
                        }
                        stays
                    });
                    !watchers.is_empty()
                });
                !contacts.of.is_empty()
            });
        }
    }
}

impl Exchange {
    /// A device of ours sent presence to everybody. What is new among what it wants is sent to it soon.
    pub(crate) fn note_caps(self: &Arc<Self>, session: &Arc<Session>) {
        {
            let mut state = session.account.state();
            let Some(resource) = state.resource_of(session) else { return };
            // s.8.4: a client may leave them out of later presence.
            let Some(shown) = resource.presence.as_ref().and_then(Shown::of) else { return };
            let seen = resource.caps.get_or_insert_default();
            if seen.key.as_ref() == Some(&shown.key()) || seen.busy {
                return;
            }
            seen.busy = true;
        }
        let (exchange, session) = (Arc::clone(self), Arc::clone(session));
        self.spawn(async move { exchange.find_out(&session).await });
    }

    /// Finds out what a device wants, until it shows nothing else any more; one at a time for a device.
    async fn find_out(self: Arc<Self>, session: &Arc<Session>) {
        loop {
            let shown = {
                let mut state = session.account.state();
                let Some(resource) = state.resource_of(session) else { return };
                let shown = resource.presence.as_ref().and_then(Shown::of);
                let seen = resource.caps.get_or_insert_default();
                match shown {
                    Some(shown) if seen.key.as_ref() != Some(&shown.key()) => {
                        seen.key = Some(shown.key());
                        shown
                    }
                    _ => {
                        seen.busy = false;
                        return;
                    }
                }
            };
            let asker = session.account.jid.clone();
            let found = self.interests(&shown, (&asker, &session.jid)).await;
            let new: Vec<String> = {
                let mut state = session.account.state();
                let Some(resource) = state.resource_of(session) else { return };
                let away = resource.presence.is_none();
                let seen = resource.caps.get_or_insert_default();
                if away {
                    // It went away meanwhile; when it comes back it is told everything.
                    seen.forget();
                    continue;
                }
                let before = std::mem::replace(&mut seen.interests, found.clone());
                let Some(found) = found else {
                    // It did not say: its next presence, or its return, asks again.
                    **seen = Seen::default();
                    return;
                };
                found.beyond(before.as_deref()).into_iter().map(str::to_owned).collect()
            };
            if !new.is_empty() {
                self.greet_with_items(session, &new).await;
            }
        }
    }

    /// The last items of the user's own nodes and of contacts at home here, to one device.
    async fn greet_with_items(self: &Arc<Self>, session: &Arc<Session>, wanted: &[String]) {
        let account = &session.account;
        let mut owners = vec![account.jid.clone()];
        {
            let state = account.state();
            let shown = |jid: &&Jid| self.host(jid.domain()).is_some() && !state.blocks(jid);
            let contacts = state.roster.iter().filter(|(_, item)| item.subscription.to).map(|(jid, _)| jid);
            owners.extend(contacts.filter(shown).cloned());
        }
        for owners in owners.chunks(AT_ONCE) {
            session.room().await;
            if session.is_ended() {
                return;
            }
            if let Err(error) = self.last_items(Lane::Inside, owners, (&session.jid, wanted)).await {
                tracing::error!(%error, "last items can't be read");
                return;
            }
        }
    }

    /// Sends the last items of these accounts' nodes that `to` wants and may read.
    async fn last_items(
        self: &Arc<Self>,
        lane: Lane,
        owners: &[Jid],
        (to, wanted): (&Jid, &[String]),
    ) -> Result<(), StoreError> {
        let names = serde_json::to_string(wanted).unwrap_or_default();
        let statements = owners.iter().map(|owner| last_of(owner, &names)).collect();
        let results = self.db.read_all(lane, statements).await?;
        for (owner, rows) in owners.iter().zip(&results) {
            if rows.is_empty() {
                continue;
            }
            let Some(account) = self.accounts.load_in(lane, &self.db, owner).await? else { continue };
            let desk = Desk {
                exchange: Arc::clone(self),
                place: Place::Account(Arc::clone(&account)),
                who: to.clone(),
                lane,
                ours: false,
            };
            desk.send_last_items(rows).await?;
        }
        Ok(())
    }

    /// A contact at another provider became available or went away.
    pub(crate) fn contact_presence(
        self: &Arc<Self>,
        kind: PresenceType,
        mail: &Mail,
    ) -> Option<crate::route::Later> {
        let (to, from) = (mail.stanza.head.to.as_ref()?, mail.stanza.head.from.as_ref()?);
        if self.host(from.domain()).is_some() || !from.is_full() || to.resource().is_some() {
            return None;
        }
        let account = to.bare();
        if kind != PresenceType::Available {
            self.pubsub.watchers.take(&account, from);
            return None;
        }
        let shown = Shown::of(&mail.stanza)?;
        let now = self.clock().now();
        if self.pubsub.watchers.is_known(&account, (from, &shown.key()), now) {
            return None;
        }
        let (exchange, from) = (Arc::clone(self), from.clone());
        Some(Box::pin(async move {
            // Who may not see the user's presence yet may be allowed to soon, and shows nothing new then.
            let contact = match exchange.accounts.load_in(Lane::Outside, &exchange.db, &account).await {
                Ok(Some(loaded)) => {
                    let state = loaded.state();
                    let subscription = state.roster.subscription(&from);
                    (subscription.from || subscription.to) && !state.blocks(&from)
                }
                _ => false,
            };
            if !contact {
                return;
            }
            match exchange.pubsub.caps.get(&shown) {
                Some(interests) => exchange.watch((&account, &from), (&shown, interests)).await,
                // The answer comes the way that this one came: it must not be waited for here.
                None => {
                    let asking = Arc::clone(&exchange);
                    exchange.spawn(async move {
                        let known = asking.interests(&shown, (&account, &from)).await;
                        if let Some(interests) = known {
                            asking.watch((&account, &from), (&shown, interests)).await;
                        }
                    });
                }
            }
        }))
    }

    /// It is known what a contact's device elsewhere wants.
    async fn watch(
        self: &Arc<Self>,
        (account, from): (&Jid, &Jid),
        (shown, interests): (&Shown, Arc<Interests>),
    ) {
        if interests.is_empty() {
            self.pubsub.watchers.take(account, from);
            return;
        }
        let new = (from.clone(), shown.key(), Arc::clone(&interests));
        // Who is not remembered is told nothing: else the same presence again and again would bring everything again.
        let Ok(before) = self.pubsub.watchers.note(account, new, self.clock().now()) else {
            return self.metrics.refused("pep-watchers-full");
        };
        let wanted: Vec<String> =
            interests.beyond(before.as_deref()).into_iter().map(str::to_owned).collect();
        let owner = std::slice::from_ref(account);
        if let Err(error) = self.last_items(Lane::Outside, owner, (from, &wanted)).await {
            tracing::warn!(%error, "last items can't be read");
        }
    }

    /// A contact may see the account's presence from now on, hence its nodes.
    pub(crate) fn show_nodes(self: &Arc<Self>, account: &Arc<Account>, contact: &Jid) {
        let at_home = |peer: Arc<Account>| -> Vec<(Jid, Arc<Interests>)> {
            let state = peer.state();
            let wants = |resource: &crate::route::account::Resource| {
                resource.presence.as_ref()?;
                Some((resource.session.jid.clone(), resource.caps.as_ref()?.interests.clone()?))
            };
            state.resources.iter().filter_map(wants).collect()
        };
        let mut devices = match self.host(contact.domain()) {
            Some(_) => self.accounts.online(contact).map(at_home).unwrap_or_default(),
            None => self.pubsub.watchers.devices(&account.jid, contact),
        };
        devices.retain(|(_, interests)| !interests.is_empty());
        if devices.is_empty() {
            return;
        }
        let (exchange, owner) = (Arc::clone(self), account.jid.clone());
        self.spawn(async move {
            for (to, interests) in devices {
                let wanted: Vec<String> = interests.beyond(None).into_iter().map(str::to_owned).collect();
                let owner = std::slice::from_ref(&owner);
                if let Err(error) = exchange.last_items(Lane::Inside, owner, (&to, &wanted)).await {
                    tracing::error!(%error, "last items can't be read");
                }
            }
        });
    }

    /// A contact sees the account's presence no more, hence no node that is for those who do: subscriptions to such
    /// nodes end (s.12.16, XEP-0163 s.4.3.3), and the subscribers are told.
    pub(crate) fn hide_nodes(self: &Arc<Self>, account: &Arc<Account>, contact: &Jid) {
        let ended = sql("DELETE FROM pubsub_subscriptions WHERE owner = ?2 AND node IN \
             (SELECT id FROM pubsub_nodes WHERE place = ?1 AND json_extract(config, '$.access') = 'presence') \
             RETURNING jid, (SELECT name FROM pubsub_nodes WHERE id = node)")
        .bind(format!("#{}", account.id))
        .bind(contact.bare_str());
        let batch = trunkline_store::Batch::new(Lane::Inside).with(ended);
        let (exchange, from) = (Arc::clone(self), account.jid.clone());
        self.db.submit(batch, move |result| match result {
            Ok(ended) if ended.iter().any(|rows| !rows.is_empty()) => {
                let telling = Arc::clone(&exchange);
                exchange.spawn(async move { telling.tell_of_ends(&from, &ended) });
            }
            Ok(_) => {}
            // They get nothing anyway: that they may read is asked again each time.
            Err(error) => tracing::warn!(%error, "subscriptions to nodes could not be ended"),
        });
    }

    /// Tells subscribers, rows of an address and a node's name, that their subscriptions have ended.
    fn tell_of_ends(self: &Arc<Self>, from: &Jid, ended: &[Rows]) {
        for row in ended.iter().flat_map(Rows::iter) {
            let Ok(to) = Jid::parse(row.text(0)) else { continue };
            let stanza = Stanza::build(Kind::Message(MessageType::Headline))
                .from(from.clone())
                .to(to)
                .id(self.ids.short())
                .body(|w| write_state(w, row.text(1), row.text(0), "none"))
                .done();
            self.answer_with(stanza);
        }
    }
}

/// The nodes of `owner` among `names` that have an item, with the newest.
fn last_of(owner: &Jid, names: &str) -> Statement {
    sql("SELECT n.id, n.name, n.config, n.created_at, n.redirect, n.account, n.payer, i.item, i.payload, i.publisher, i.at \
         FROM accounts a JOIN hosts h ON h.id = a.host_id JOIN pubsub_nodes n ON n.place = '#' || a.id \
         JOIN pubsub_items i ON i.seq = (SELECT MAX(seq) FROM pubsub_items WHERE node = n.id) \
         WHERE h.name = ?1 AND a.local = ?2 AND a.disabled = 0 AND n.redirect IS NULL \
         AND n.name IN (SELECT value FROM json_each(?3)) ORDER BY i.seq")
    .bind(owner.domain())
    .bind(owner.local().unwrap_or_default())
    .bind(names)
}

impl Desk {
    /// Sends those of the items (rows of [`last_of`]) that the person may read.
    async fn send_last_items(&self, rows: &Rows) -> Result<(), StoreError> {
        // Contacts only: who does not see the owner's presence is told nothing unasked.
        let sees = self.place.account().is_some_and(|account| {
            let state = account.state();
            self.is_own() || (state.shows_presence_to(&self.who) && !state.blocks(&self.who))
        });
        if !sees {
            return Ok(());
        }
        for row in rows.iter() {
            let (node, item) = (node::read_node(&row, 0), node::read_item(&row, 7));
            let config = &node.config;
            let now = self.exchange.clock().now();
            let expired = config.kept_for().is_some_and(|kept| item.at.saturating_add(kept) <= now);
            if config.send_last != SendLast::OnSubAndPresence || !config.notify || expired {
                continue;
            }
            // What is not decided by the roster is in the store.
            let listed = matches!(config.access, Access::Whitelist | Access::Authorize) && !self.is_own();
            let opened = if listed {
                let key = self.place.key();
                let who = (&self.who, self.exchange.clock().now());
                node::open(&self.exchange.db, self.lane, (&key, &node.name), who).await?
            } else {
                let affiliation = self.affiliation(Affiliation::None);
                Some(Opened { node, affiliation, subscriptions: Vec::new() })
            };
            if let Some(opened) = opened.filter(|opened| self.may_read(opened).is_ok()) {
                self.send_last(self.last_item(&opened.node, &item, &self.who));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchers() {
        let watchers = Watchers::default();
        let jid = |text: &str| Jid::parse(text).unwrap();
        let (romeo, phone, laptop) = (jid("romeo@a.example"), jid("j@b.example/1"), jid("j@b.example/2"));
        let note = |jid: &Jid, key: &str, nodes: &[&str]| {
            watchers.note(&romeo, (jid.clone(), key.into(), Arc::new(Interests::with(nodes))), 5)
        };
        assert_eq!(note(&phone, "k", &["a"]), Ok(None));
        assert_eq!(note(&laptop, "k", &["a", "b"]), Ok(None));
        assert!(watchers.is_known(&romeo, (&phone, "k"), 6) && !watchers.is_known(&romeo, (&phone, "l"), 6));
        assert!(!watchers.is_known(&jid("other@a.example"), (&phone, "k"), 6));
        let of = |node: &str, contact: &str| {
            let mut of = watchers.of(&romeo, node, |jid| jid.as_str() == contact);
            of.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
            of
        };
        assert_eq!(of("a", "j@b.example"), [phone.clone(), laptop.clone()]);
        assert_eq!(of("b", "j@b.example"), std::slice::from_ref(&laptop));
        assert!(of("a", "i@b.example").is_empty());
        let before = note(&phone, "l", &["b"]).unwrap().unwrap();
        assert!(before.wants("a"));
        assert_eq!(of("a", "j@b.example"), std::slice::from_ref(&laptop));
        assert_eq!(watchers.devices(&romeo, &phone).len(), 2);
        assert_eq!(watchers.devices(&romeo, &jid("i@b.example")).len(), 0);
        // The laptop was heard of at 5 only, the phone again at 7.
        assert!(watchers.is_known(&romeo, (&phone, "l"), 7));
        watchers.sweep(6 + FORGOTTEN_AFTER);
        assert_eq!(of("b", "j@b.example"), std::slice::from_ref(&phone));
        assert_eq!(watchers.loads.lock().all.devices, 1);
        watchers.sweep(7 + FORGOTTEN_AFTER);
        assert_eq!(note(&phone, "k", &["a"]), Ok(None));
        assert!(watchers.take(&romeo, &phone).is_some_and(|wanted| wanted.wants("a")));
        assert!(watchers.take(&romeo, &phone).is_none());
        assert!(watchers.parts.iter().all(|part| part.lock().is_empty()));
        let loads = watchers.loads.lock();
        assert_eq!((loads.all, loads.of.len()), (Load::default(), 0));
    }

    /// How many of `new` devices there is room for.
    fn room<'a>(watchers: &Watchers, account: &Jid, new: impl Iterator<Item = (String, &'a str)>) -> usize {
        let noted = new.map(|(jid, wanted)| {
            let new = (Jid::parse(&jid).unwrap(), "k".into(), Arc::new(Interests::with(&[wanted])));
            usize::from(watchers.note(account, new, 0).is_ok())
        });
        noted.sum()
    }

    #[test]
    fn one_contact_one_account_and_one_domain_are_bounded() {
        let watchers = Watchers::default();
        let romeo = Jid::parse("romeo@a.example").unwrap();
        let of_one = (0..MOST_OF_CONTACT + 5).map(|n| (format!("j@b.example/{n}"), "a"));
        assert_eq!(room(&watchers, &romeo, of_one), MOST_OF_CONTACT);
        // One that is there changes its mind.
        assert_eq!(room(&watchers, &romeo, std::iter::once(("j@b.example/0".to_owned(), "b"))), 1);
        let of_many = (0..MOST_OF_ACCOUNT).map(|n| (format!("j{n}@b.example/x"), "a"));
        assert_eq!(room(&watchers, &romeo, of_many), MOST_OF_ACCOUNT - MOST_OF_CONTACT);
        let account = |n: usize| Jid::parse(&format!("{n}@a.example")).unwrap();
        let of_others =
            |domain: &'static str| (0..MOST_OF_ACCOUNT).map(move |n| (format!("j{n}@{domain}/x"), "a"));
        let held: usize = (0..20).map(|n| room(&watchers, &account(n), of_others("b.example"))).sum();
        assert_eq!(held + MOST_OF_ACCOUNT, MOST_OF_DOMAIN.devices);
        assert_eq!(room(&watchers, &account(50), of_others("c.example")), MOST_OF_ACCOUNT);
    }

    #[test]
    fn the_bytes_of_what_is_wanted_are_bounded() {
        let watchers = Watchers::default();
        let long = "x".repeat(8000);
        let account = |n: usize| Jid::parse(&format!("{n}@a.example")).unwrap();
        let domains = ["b.example", "c.example", "d.example", "e.example", "f.example"];
        let held = domains.map(|domain| {
            let of_account = |n| {
                let new = (0..1000).map(|m| (format!("j{m}@{domain}/x"), long.as_str()));
                room(&watchers, &account(n), new)
            };
            (0..3).map(of_account).sum::<usize>()
        });
        assert!(held[0] < MOST_OF_DOMAIN.bytes / 8000 && held[0] > 1900, "{held:?}");
        assert!(held[4] < 20 && watchers.loads.lock().all.fits(MOST_WATCHERS), "{held:?}");
        // What changed and has no room any more is forgotten, not kept as it was.
        let new = std::iter::once(("j0@b.example/x".to_owned(), "a"));
        assert_eq!(room(&watchers, &account(0), new), 1);
        let new = (0..3).map(|n| (format!("j{n}@b.example/y"), long.as_str()));
        room(&watchers, &account(9), new);
        let new = std::iter::once(("j0@b.example/x".to_owned(), long.as_str()));
        assert_eq!(room(&watchers, &account(0), new), 0);
        assert!(watchers.of(&account(0), "a", |jid| jid.as_str() == "j0@b.example").is_empty());
    }
}
