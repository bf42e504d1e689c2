//! What waits for one user's consent, and what becomes of it: a request, its answer, the release.
//!
//! The request is a roster item that only holds a request (RFC 6121 s.3.1.3); the stanzas are rows below
//! `first_contacts`. Everything here holds [`Account::writes`].

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;
use trunkline_store::{Batch, Lane, Row, Rows, Statement, StoreError, sql};
use trunkline_xml::Writer;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, PresenceType, Stanza};

use super::index::{self, Grant, Pair, Why};
use super::intake::{TROUBLE, sorted_row};
use super::{If, Releasing, text};
use crate::config::Consent;
use crate::control::rule::Relation;
use crate::exchange::Exchange;
use crate::ids::LogId;
use crate::route::account::{Account, AccountState};
use crate::route::message::Along;
use crate::route::presence::delayed;
use crate::route::roster::Item;
use crate::route::{Mail, Origin};
use crate::session::Queued;

/// `first_contacts.state`: the user has not answered.
const WAITS: i64 = 0;
/// The user declined.
const DECLINED: i64 = 1;
/// The user accepted, and what was held is being delivered.
const RELEASED: i64 = 2;
/// The stranger took the request back, or it gave way to another one: it is not shown any more, and counts among what
/// its sender and domain have asked for until it is as old as what nobody answers.
const GONE: i64 = 3;
/// How long it is remembered how a domain was answered.
const ANSWERS: i64 = 180 * 24 * 3600 * 1000;
/// Rows looked at in one go.
const PAGE: i64 = 64;
/// First contacts on this server, in whatever state.
const MOST_CONTACTS: usize = 100_000;
/// Their bytes.
const MOST_BYTES: usize = 1 << 30;
/// One domain may take one in so many of a user's requests and of the bytes that wait for a user.
const DOMAIN_SHARE: usize = 8;
/// All domains together may take one in so many of a user's requests.
const OUTSIDE_SHARE: usize = 2;
/// How often a release is tried, with a pause in between; then the next start does.
const RELEASE_TRIES: usize = 12;
/// Requests that give way to one stanza, at most.
const MOST_GIVE_WAY: usize = 8;

/// One stanza of a stranger, and the account it is for.
struct First<'a> {
    id: LogId,
    stanza: &'a Stanza,
    peer: Jid,
    /// It is a subscription request.
    asks: bool,
}

impl First<'_> {
    fn size(&self) -> usize {
        if self.asks { 0 } else { self.stanza.size() }
    }
}

/// What the tables say before a stanza is held.
#[derive(Default)]
struct Before {
    /// State, stanzas, bytes.
    contact: Option<(i64, usize, usize)>,
    account_bytes: usize,
    domain_bytes: usize,
    /// The domain of which most bytes wait for the user.
    fullest: Option<String>,
    sender: usize,
    domain: usize,
    accepted: usize,
    declined: usize,
    /// On this server.
    contacts: usize,
    bytes: usize,
}

/// Requests that wait for a user's answer.
#[derive(Default)]
struct Crowd {
    all: usize,
    /// From other providers, by domain.
    outside: BTreeMap<String, usize>,
}

/// Why a stranger's stanza can't be held as things stand.
#[derive(Debug, PartialEq, Eq)]
enum Full {
    /// It is dropped.
    Drop(&'static str),
    /// The oldest request from that domain gives way; if there is none, it is dropped.
    GiveWay(String, &'static str),
}

impl Exchange {
    /// A stranger's message waits for consent; or is delivered, if there is consent by now. True: its row in the intake
    /// went along.
    pub(super) async fn sort_message(
        self: &Arc<Self>,
        account: &Arc<Account>,
        (id, stanza): (LogId, &Stanza),
        known: bool,
    ) -> Result<bool, StoreError> {
        let Some(from) = &stanza.head.from else { return Ok(false) };
        let first = First { id, stanza, peer: from.bare(), asks: false };
        let _writing = account.writes.lock().await;
        if !known && !self.is_known_by_now(account, &first.peer).await? {
            match self.hold_first(account, &first).await {
                // Consent was given between the question and the answer.
                Err(StoreError::Conflict) if self.is_known_by_now(account, &first.peer).await? => {}
                done => return done,
            }
        }
        self.release_all(account, &first.peer).await?;
        let stanza = delayed(stanza, account.jid.domain(), id);
        let batch = Batch::new(Lane::Outside).with(sorted_row(id));
        self.receive_and_wait(account, (stanza, batch)).await
    }

    /// A stranger asks for a subscription. True: its row in the intake went along. The caller holds
    /// [`Account::writes`].
    pub(in crate::route) async fn hold_subscription(
        self: &Arc<Self>,
        account: &Arc<Account>,
        (id, stanza): (LogId, &Stanza),
    ) -> Result<bool, StoreError> {
        let Some(from) = &stanza.head.from else { return Ok(false) };
        self.hold_first(account, &First { id, stanza, peer: from.bare(), asks: true }).await
    }

    /// Delivers a message to its account. True: `batch` is on the disk with its rows; false: it is not wanted.
    async fn receive_and_wait(
        self: &Arc<Self>,
        account: &Arc<Account>,
        (stanza, batch): (Stanza, Batch),
    ) -> Result<bool, StoreError> {
        let (landed, outcome) = oneshot::channel();
        let mail = Mail::new(stanza, Origin::Known);
        self.receive_with(account, mail, Along { batch, landed: Some(landed) });
        match outcome.await {
            Ok(done) => done.map(|()| true),
            // Refused, or ignored.
            Err(_) => Ok(false),
        }
    }

    /// The store is asked, not the cache: it may be behind what was done under [`Account::writes`].
    pub(in crate::route) async fn is_known_by_now(
        &self,
        account: &Account,
        peer: &Jid,
    ) -> Result<bool, StoreError> {
        let Some(host) = self.host(account.jid.domain()) else { return Ok(false) };
        let pair = Pair::of(host, &account.jid, peer);
        Ok(self.consents().read(&self.db, &pair).await?.is_some())
    }

    /// True: the row in the intake went along. [`StoreError::Conflict`]: there may be consent by now.
    async fn hold_first(
        self: &Arc<Self>,
        account: &Arc<Account>,
        first: &First<'_>,
    ) -> Result<bool, StoreError> {
        let config = self.config.load_full();
        for _ in 0..=MOST_GIVE_WAY {
            let crowd = {
                let state = account.state();
                if state.removed || first.stanza.head.from.as_ref().is_none_or(|from| state.blocks(from)) {
                    return Ok(false);
                }
                self.crowd(&state)
            };
            let before = self.before(account.id, &first.peer).await?;
            if before.contact.is_some_and(|(state, ..)| state == RELEASED) {
                // A release that was not finished.
                self.release_all(account, &first.peer).await?;
                continue;
            }
            let full = before.admit(first, &config.consent, (&crowd, config.limits.held_requests));
            let name = match full {
                Ok(()) => return self.hold_admitted(account, first).await,
                Err(Full::Drop(name)) => name,
                Err(Full::GiveWay(domain, name)) => {
                    match self.give_way(account, (&domain, &first.peer)).await? {
                        true => continue,
                        false => name,
                    }
                }
            };
            self.first_contact_refused(name, first.peer.domain());
            return Ok(false);
        }
        self.first_contact_refused("first-contacts-full", first.peer.domain());
        Ok(false)
    }

    async fn hold_admitted(
        self: &Arc<Self>,
        account: &Arc<Account>,
        first: &First<'_>,
    ) -> Result<bool, StoreError> {
        let mut item = account.state().roster.get(&first.peer).cloned().unwrap_or_default();
        let new = !item.subscription.pending_in;
        let said = item.request.as_ref().and_then(|request| request.child(ns::CLIENT, "status"));
        let said = said.map(|status| status.text().into_owned()).unwrap_or_default();
        let more = text::append(&said, &text::of(first.stanza));
        let unasked = !first.asks && (new || item.unasked);
        let batch = self.held(account, first);
        if new || more.is_some() || unasked != item.unasked {
            let request = request(account, &first.peer, more.as_deref().unwrap_or(&said));
            item.subscription.pending_in = true;
            item.unasked = unasked;
            item.request = Some(request.clone());
            self.change_item_with(account, &first.peer, Some(item), batch).await?;
            if new {
                show(account, &request);
            }
        } else {
            self.db.run(batch).await?;
        }
        self.control.requests.held(self, first.peer.domain());
        Ok(true)
    }

    fn crowd(&self, state: &AccountState) -> Crowd {
        let mut crowd = Crowd::default();
        for (contact, _) in state.roster.iter().filter(|(_, item)| item.subscription.pending_in) {
            crowd.all += 1;
            if self.is_elsewhere(contact) {
                *crowd.outside.entry(contact.domain().to_owned()).or_default() += 1;
            }
        }
        crowd
    }

    /// A user has as many open requests as may be, for one more from `contact`.
    pub(in crate::route) fn is_crowded(&self, state: &AccountState, contact: &Jid) -> bool {
        let (crowd, most) = (self.crowd(state), self.config.load().limits.held_requests);
        crowd.all >= most || self.is_elsewhere(contact) && crowd.full(contact.domain(), most).is_some()
    }

    /// The oldest request from a domain makes room for another one: what is held of it goes, and the user's clients show
    /// it no more. False: there is none but `newcomer`'s.
    async fn give_way(
        self: &Arc<Self>,
        account: &Arc<Account>,
        (domain, newcomer): (&str, &Jid),
    ) -> Result<bool, StoreError> {
        let oldest =
            sql("SELECT peer FROM first_contacts WHERE account = ?1 AND domain = ?2 AND state = ?3 \
             AND peer <> ?4 ORDER BY id LIMIT 1")
            .bind(account.id)
            .bind(domain)
            .bind(WAITS)
            .bind(newcomer.as_str());
        let rows = self.db.read_in(Lane::Outside, oldest).await?;
        let Some(peer) = rows.first().and_then(|row| Jid::parse(row.text(0)).ok()) else { return Ok(false) };
        self.first_contact_refused("first-contact-gave-way", domain);
        let mut batch = Batch::new(Lane::Outside);
        self.note_gone(&mut batch, account, &peer);
        let item = account.state().roster.get(&peer).cloned();
        let Some(mut item) = item.filter(|item| item.subscription.pending_in) else {
            return self.db.run(batch).await.map(|_| true);
        };
        item.unask();
        self.change_item_with(account, &peer, item.listed.then_some(item), batch).await?;
        show(account, &taken_back(account, &peer));
        Ok(true)
    }

    /// Adds that a request is not shown any more, and goes on counting.
    fn note_gone(&self, batch: &mut Batch, account: &Account, peer: &Jid) {
        let of = |statement: Statement| statement.bind(account.id).bind(peer.as_str());
        batch.push(of(sql("DELETE FROM held WHERE contact IN \
                           (SELECT id FROM first_contacts WHERE account = ?1 AND peer = ?2)")));
        batch.push(
            of(sql(
                "UPDATE first_contacts SET state = ?3, asks = 0, stanzas = 0, bytes = 0, changed_at = ?4 \
                    WHERE account = ?1 AND peer = ?2",
            ))
            .bind(GONE)
            .bind(self.clock().now()),
        );
    }

    async fn before(&self, account: i64, peer: &Jid) -> Result<Before, StoreError> {
        let statements = vec![
            sql("SELECT state, stanzas, bytes FROM first_contacts WHERE account = ?1 AND peer = ?2")
                .bind(account)
                .bind(peer.as_str()),
            sql("SELECT domain, SUM(bytes) FROM first_contacts WHERE account = ?1 AND state = 0 \
                 GROUP BY domain ORDER BY 2 DESC, 1")
            .bind(account),
            sql("SELECT COUNT(*) FROM first_contacts WHERE domain = ?1 AND state IN (0, 3) AND peer = ?2")
                .bind(peer.domain())
                .bind(peer.as_str()),
            sql("SELECT COUNT(*) FROM first_contacts WHERE domain = ?1 AND state IN (0, 3)")
                .bind(peer.domain()),
            sql("SELECT accepted, declined FROM first_contact_answers WHERE domain = ?1").bind(peer.domain()),
            sql("SELECT contacts, bytes FROM first_contact_totals WHERE id = 1"),
        ];
        let results = self.db.read_all(Lane::Outside, statements).await?;
        let [contact, bytes, sender, domain, answers, totals] = results.as_slice() else {
            return Err(StoreError::Closed);
        };
        let own = bytes.iter().find(|row| row.text(0) == peer.domain());
        Ok(Before {
            contact: contact.first().map(|row| (row.int(0), number(&row, 1), number(&row, 2))),
            account_bytes: bytes.iter().map(|row| number(&row, 1)).sum(),
            domain_bytes: own.map_or(0, |row| number(&row, 1)),
            fullest: bytes.first().map(|row| row.text(0).to_owned()),
            sender: first_number(sender, 0),
            domain: first_number(domain, 0),
            accepted: first_number(answers, 0),
            declined: first_number(answers, 1),
            contacts: first_number(totals, 0),
            bytes: first_number(totals, 1),
        })
    }

    /// The statements that hold a stanza, unless there is consent: that is decided where consents are written.
    fn held(&self, account: &Account, first: &First<'_>) -> Batch {
        let mut bytes = Vec::new();
        if !first.asks {
            first.stanza.write(&mut bytes);
        }
        let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let mut batch = Batch::new(Lane::Outside);
        // No host: no account either, and nothing matches.
        let pair = self.host(account.jid.domain()).map(|host| Pair::of(host, &account.jid, &first.peer));
        let (address, domain) = pair.map_or_else(Default::default, |pair| (pair.address, pair.domain));
        batch.push(
            sql("INSERT INTO first_contacts (id, account, peer, domain, state, asks, stanzas, bytes, changed_at) \
                 SELECT ?1, ?2, ?3, ?4, 0, ?5, ?6, ?7, ?8 \
                 WHERE NOT EXISTS (SELECT 1 FROM consents WHERE hash IN (?9, ?10)) \
                 ON CONFLICT (account, peer) DO UPDATE SET \
                 asks = CASE WHEN excluded.asks = 1 THEN 1 ELSE first_contacts.asks END, \
                 changed_at = CASE WHEN first_contacts.state = 3 THEN excluded.changed_at \
                 ELSE first_contacts.changed_at END, \
                 state = CASE WHEN first_contacts.state = 3 THEN 0 ELSE first_contacts.state END, \
                 stanzas = first_contacts.stanzas + excluded.stanzas, \
                 bytes = first_contacts.bytes + excluded.bytes")
            .bind(first.id.0)
            .bind(account.id)
            .bind(first.peer.as_str())
            .bind(first.peer.domain())
            .bind(i64::from(first.asks))
            .bind(i64::from(!first.asks))
            .bind(size)
            .bind(self.clock().now())
            .bind(address.to_vec())
            .bind(domain.to_vec())
            .must_change(),
        );
        if !first.asks {
            batch.push(
                sql("INSERT INTO held (id, contact, size, stanza) \
                     SELECT ?1, id, ?2, ?3 FROM first_contacts WHERE account = ?4 AND peer = ?5")
                .bind(first.id.0)
                .bind(size)
                .bind(bytes)
                .bind(account.id)
                .bind(first.peer.as_str())
                .must_change(),
            );
        }
        batch.push(sorted_row(first.id));
        batch
    }

    /// A stranger takes a subscription request back. What they wrote goes on waiting, and the request goes on counting:
    /// asking and taking back is no way around the bounds. True: the row in the intake went along. The caller holds
    /// [`Account::writes`].
    pub(in crate::route) async fn withdraw(
        self: &Arc<Self>,
        account: &Arc<Account>,
        (id, contact): (LogId, &Jid),
    ) -> Result<bool, StoreError> {
        let Some(mut item) = account.state().roster.get(contact).cloned() else { return Ok(false) };
        if !item.subscription.pending_in || item.unasked {
            return Ok(false);
        }
        let mut batch = Batch::new(Lane::Outside).with(sorted_row(id));
        if self.before(account.id, contact).await?.contact.is_some_and(|(_, stanzas, _)| stanzas > 0) {
            item.unasked = true;
            batch.push(
                sql("UPDATE first_contacts SET asks = 0 WHERE account = ?1 AND peer = ?2")
                    .bind(account.id)
                    .bind(contact.as_str()),
            );
            self.change_item_with(account, contact, Some(item), batch).await?;
            return Ok(true);
        }
        self.note_gone(&mut batch, account, contact);
        item.unask();
        self.change_item_with(account, contact, item.listed.then_some(item), batch).await?;
        // RFC 6121 A.3.2: the request that the clients show is no more.
        show(account, &taken_back(account, contact));
        Ok(true)
    }

    // ---- answers

    /// Adds that who waits has really asked for a subscription by now.
    pub(in crate::route) fn note_asked(&self, batch: &mut Batch, account: &Account, contact: &Jid) {
        batch.push(
            sql("UPDATE first_contacts SET asks = 1 WHERE account = ?1 AND peer = ?2 AND state = ?3")
                .bind(account.id)
                .bind(contact.as_str())
                .bind(WAITS),
        );
    }

    /// Adds that the user accepts what `contact` wrote: messages are granted, what is held will be released. Ask
    /// [`Exchange::releasing`] before it is committed, and call [`Exchange::release_soon`] afterwards.
    pub(in crate::route) fn note_accepted(
        &self,
        batch: &mut Batch,
        account: &Account,
        (contact, which): (&Jid, If),
    ) {
        let of = |statement: Statement| statement.bind(account.id).bind(contact.as_str());
        batch.push(
            of(sql("INSERT INTO first_contact_answers (domain, accepted, declined, changed_at) \
                    SELECT domain, 1, 0, ?3 FROM first_contacts WHERE account = ?1 AND peer = ?2 AND state = 0 \
                    ON CONFLICT (domain) DO UPDATE SET accepted = first_contact_answers.accepted + 1, \
                    changed_at = excluded.changed_at"))
            .bind(self.clock().now()),
        );
        if let Some(key) = self.address_key(&account.jid, contact) {
            let (why, relation, now) = (Why::Granted, Relation::Contact, self.clock().now());
            let grant = Grant { key, why, relation, account: account.id, peer: contact, now };
            batch.push(match which {
                If::Any => self.consents().granted(&grant),
                If::Waiting => self.consents().granted_if_waiting(&grant),
            });
            batch.push(index::within(&grant, self.config.load().consent.conversations));
        }
        batch.push(
            of(sql("UPDATE first_contacts SET state = ?3 WHERE account = ?1 AND peer = ?2")).bind(RELEASED),
        );
    }

    /// Adds that the user declines: what is held goes, and what comes is dropped for a while.
    pub(in crate::route) fn note_declined(&self, batch: &mut Batch, account: &Account, contact: &Jid) {
        let of = |statement: Statement| statement.bind(account.id).bind(contact.as_str());
        let now = self.clock().now();
        batch.push(
            of(sql("INSERT INTO first_contact_answers (domain, accepted, declined, changed_at) \
                    SELECT domain, 0, 1, ?3 FROM first_contacts WHERE account = ?1 AND peer = ?2 AND state = 0 \
                    ON CONFLICT (domain) DO UPDATE SET declined = first_contact_answers.declined + 1, \
                    changed_at = excluded.changed_at"))
            .bind(now),
        );
        batch.push(of(sql("DELETE FROM held WHERE contact IN \
                           (SELECT id FROM first_contacts WHERE account = ?1 AND peer = ?2)")));
        batch.push(
            of(sql(
                "UPDATE first_contacts SET state = ?3, asks = 0, stanzas = 0, bytes = 0, changed_at = ?4 \
                    WHERE account = ?1 AND peer = ?2",
            ))
            .bind(DECLINED)
            .bind(now),
        );
    }

    /// Delivers what was held of an accepted contact, after whoever holds [`Account::writes`] now. What comes later
    /// waits until that is done.
    pub(in crate::route) fn release_soon(self: &Arc<Self>, account: &Arc<Account>, releasing: Releasing) {
        let (exchange, account) = (Arc::clone(self), self.accounts.hold(Arc::clone(account)));
        self.spawn(async move {
            for _ in 0..RELEASE_TRIES {
                let writing = account.writes.lock().await;
                match exchange.release_all(&account, &releasing.contact).await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::error!(%error, "held messages could not be delivered; again in a moment")
                    }
                }
                drop(writing);
                tokio::time::sleep(TROUBLE).await;
            }
            releasing.forget();
        });
    }

    /// Delivers what was held of an accepted contact, in order, each in one transaction with the end of its waiting. The
    /// caller holds [`Account::writes`].
    pub(in crate::route) async fn release_all(
        self: &Arc<Self>,
        account: &Arc<Account>,
        contact: &Jid,
    ) -> Result<(), StoreError> {
        let of = |statement: Statement| statement.bind(account.id).bind(contact.as_str()).bind(RELEASED);
        let statements = vec![
            of(sql("SELECT id FROM first_contacts WHERE account = ?1 AND peer = ?2 AND state = ?3")),
            of(sql("SELECT h.id, h.stanza FROM held h JOIN first_contacts f ON f.id = h.contact \
                    WHERE f.account = ?1 AND f.peer = ?2 AND f.state = ?3 ORDER BY h.id")),
        ];
        let results = self.db.read_all(Lane::Outside, statements).await?;
        let [released, held] = results.as_slice() else { return Err(StoreError::Closed) };
        if released.is_empty() {
            return Ok(());
        }
        let mut landings = Vec::with_capacity(held.len());
        for row in held.iter() {
            let id = LogId(row.int(0));
            let Ok(stanza) = Stanza::parse(row.blob(1)) else {
                tracing::error!(id = id.0, "a held message can't be read");
                continue;
            };
            let stanza = delayed(&stanza, account.jid.domain(), id);
            let batch = Batch::new(Lane::Outside).with(sql("DELETE FROM held WHERE id = ?1").bind(id.0));
            let (landed, outcome) = oneshot::channel();
            let mail = Mail::new(stanza, Origin::Known);
            self.receive_with(account, mail, Along { batch, landed: Some(landed) });
            landings.push(outcome);
        }
        for landing in landings {
            // What was refused or ignored is not waited for: it goes with the rest.
            if let Ok(done) = landing.await {
                done?;
            }
        }
        let done = of(sql("DELETE FROM first_contacts WHERE account = ?1 AND peer = ?2 AND state = ?3"));
        let batch = Batch::new(Lane::Outside).with(done);
        let item = account.state().roster.get(contact).cloned();
        // The request that stood for what was written is answered. A real one goes on waiting.
        match item.filter(|item| item.subscription.pending_in && item.unasked) {
            Some(mut item) => {
                item.unask();
                let item = item.listed.then_some(item);
                Box::pin(self.change_item_with(account, contact, item, batch)).await?;
            }
            None => self.db.run(batch).await.map(drop)?,
        }
        self.control.requests.answered(self, (contact.domain(), true));
        Ok(())
    }

    /// Releases that a stop has interrupted.
    pub(super) async fn finish_releases(self: &Arc<Self>) -> Result<(), StoreError> {
        let rows = self
            .db
            .read(
                sql("SELECT a.local, h.name, f.peer FROM first_contacts f JOIN accounts a ON a.id = f.account \
                     JOIN hosts h ON h.id = a.host_id WHERE f.state = ?1")
                .bind(RELEASED),
            )
            .await?;
        for row in rows.iter() {
            let address = Jid::from_parts(Some(row.text(0)), row.text(1), None);
            let (Ok(address), Ok(peer)) = (address, Jid::parse(row.text(2))) else { continue };
            if let Some(account) = self.accounts.load(&self.db, &address).await? {
                let _writing = account.writes.lock().await;
                self.release_all(&account, &peer).await?;
            }
        }
        Ok(())
    }

    /// The user blocks `jids`: what waits from there goes, and conversations end. The caller holds
    /// [`Account::writes`]. Contacts stay what they are; the block covers them.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn block_strangers(
        self: &Arc<Self>,
        account: &Arc<Account>,
        jids: &[Jid],
    ) -> Result<(), StoreError> {
        for jid in jids.iter().filter(|jid| self.is_elsewhere(jid) && jid.resource().is_none()) {
            let requests: Vec<(Jid, Item)> = {
                let state = account.state();
                let covered = |contact: &Jid| match jid.local() {
                    Some(_) => contact == jid,
                    None => contact.domain() == jid.domain(),
                };
                let items = state.roster.iter().filter(|(contact, item)| {
                    covered(contact) && item.subscription.pending_in && super::relation(item).is_none()
                });
                items.map(|(contact, item)| (contact.clone(), item.clone())).collect()
            };
            for (contact, _) in requests {
                let mut batch = Batch::new(Lane::Inside);
                self.note_declined(&mut batch, account, &contact);
                self.change_item_with(account, &contact, None, batch).await?;
                self.control.requests.answered(self, (contact.domain(), false));
            }
            let whole = i64::from(jid.local().is_none());
            let of = |statement: Statement| {
                statement.bind(account.id).bind(jid.as_str()).bind(jid.domain()).bind(whole)
            };
            let batch = Batch::new(Lane::Inside)
                .with(of(sql("DELETE FROM first_contacts WHERE account = ?1 \
                              AND (peer = ?2 OR (?4 = 1 AND domain = ?3))")))
                .with(of(sql("DELETE FROM consents WHERE account = ?1 AND why <> 1 \
                              AND (peer = ?2 OR (?4 = 1 AND domain = ?3))")));
            self.db.run(batch).await?;
            match self.address_key(&account.jid, jid) {
                Some(key) if whole == 0 => self.consents().forget(&key),
                _ => self.consents().forget_all(),
            }
        }
        Ok(())
    }

    /// Throws away one first contact with all that waits of it. False: it is gone already.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn drop_first_contact(
        self: &Arc<Self>,
        (address, peer): (&Jid, &Jid),
        mut batch: Batch,
    ) -> Result<bool, StoreError> {
        let Some(account) = self.accounts.load(&self.db, address).await? else { return Ok(false) };
        let _writing = account.writes.lock().await;
        batch.push(
            sql("DELETE FROM first_contacts WHERE account = ?1 AND peer = ?2 AND state = ?3")
                .bind(account.id)
                .bind(peer.as_str())
                .bind(WAITS)
                .must_change(),
        );
        let item = account.state().roster.get(peer).cloned();
        let done = match item.filter(|item| item.subscription.pending_in) {
            Some(mut item) => {
                item.unask();
                let item = item.listed.then_some(item);
                self.change_item_with(&account, peer, item, batch).await
            }
            None => self.db.run(batch).await.map(drop),
        };
        match done {
            Ok(()) => Ok(true),
            Err(StoreError::Conflict) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What has waited for too long goes, and answers of long ago.
    pub(super) async fn forget_old_contacts(self: &Arc<Self>) -> Result<(), StoreError> {
        let (age, declined) = {
            let consent = &self.config.load().consent;
            (consent.age, consent.declined_age)
        };
        let now = self.clock().now();
        let before =
            |age: std::time::Duration| now - i64::try_from(age.as_millis()).unwrap_or(i64::MAX).min(now);
        loop {
            let rows = self
                .db
                .read(
                    sql("SELECT a.local, h.name, f.peer FROM first_contacts f JOIN accounts a ON a.id = f.account \
                         JOIN hosts h ON h.id = a.host_id \
                         WHERE f.state = ?1 AND f.changed_at < ?2 AND a.disabled = 0 ORDER BY f.changed_at LIMIT ?3")
                    .bind(WAITS)
                    .bind(before(age))
                    .bind(PAGE),
                )
                .await?;
            let mut gone = 0;
            for row in rows.iter() {
                let address = Jid::from_parts(Some(row.text(0)), row.text(1), None);
                let (Ok(address), Ok(peer)) = (address, Jid::parse(row.text(2))) else { continue };
                let batch = Batch::new(Lane::Inside);
                gone += usize::from(self.drop_first_contact((&address, &peer), batch).await?);
            }
            if gone == 0 {
                break;
            }
        }
        let batch = Batch::new(Lane::Inside)
            .with(
                sql("DELETE FROM first_contacts WHERE state = ?1 AND changed_at < ?2")
                    .bind(DECLINED)
                    .bind(before(declined)),
            )
            .with(
                sql("DELETE FROM first_contacts WHERE state = ?1 AND changed_at < ?2")
                    .bind(GONE)
                    .bind(before(age)),
            )
            .with(sql("DELETE FROM first_contact_answers WHERE changed_at < ?1").bind(now - ANSWERS));
        self.db.run(batch).await.map(drop)
    }
}

impl Crowd {
    /// Why there is no room for one more request from `domain`, if there is none. The inside has the other half.
    fn full(&self, domain: &str, most: usize) -> Option<Full> {
        let own = self.outside.get(domain).copied().unwrap_or(0);
        if own >= (most / DOMAIN_SHARE).max(1) {
            return Some(Full::GiveWay(domain.to_owned(), "requests-of-domain-full"));
        }
        if self.outside.values().sum::<usize>() >= (most / OUTSIDE_SHARE).max(1) {
            // Who has most gives way, so that a crowd from few domains locks out nobody else.
            let fullest =
                self.outside.iter().max_by_key(|(_, count)| **count).filter(|(_, count)| **count > own);
            let name = "subscription-requests-full";
            return Some(fullest.map_or(Full::Drop(name), |(domain, _)| Full::GiveWay(domain.clone(), name)));
        }
        (self.all >= most).then_some(Full::Drop("subscription-requests-full"))
    }
}

impl Before {
    /// Whether there is room for one more.
    fn admit(
        &self,
        first: &First<'_>,
        bounds: &Consent,
        (crowd, requests): (&Crowd, usize),
    ) -> Result<(), Full> {
        let (size, domain) = (first.size(), first.peer.domain());
        // First what nobody could give way to.
        if size > bounds.held_bytes {
            return Err(Full::Drop("first-contact-full"));
        }
        if self.bytes + size > MOST_BYTES {
            return Err(Full::Drop("first-contacts-overall"));
        }
        match self.contact {
            Some((DECLINED, ..)) => return Err(Full::Drop("first-contact-declined")),
            Some((_, stanzas, bytes)) => {
                if !first.asks && (stanzas >= bounds.held_stanzas || bytes + size > bounds.held_bytes) {
                    return Err(Full::Drop("first-contact-full"));
                }
            }
            None => {
                if self.sender >= self.slots(bounds.sender_requests) {
                    return Err(Full::Drop("first-contacts-of-sender"));
                }
                if self.domain >= self.slots(bounds.domain_requests) {
                    return Err(Full::Drop("first-contacts-of-domain"));
                }
                if self.contacts >= MOST_CONTACTS {
                    return Err(Full::Drop("first-contacts-overall"));
                }
            }
        }
        if self.contact.is_none_or(|(state, ..)| state == GONE)
            && let Some(full) = crowd.full(domain, requests)
        {
            return Err(full);
        }
        if self.domain_bytes + size > bounds.account_bytes / DOMAIN_SHARE {
            return Err(Full::GiveWay(domain.to_owned(), "first-contact-bytes-of-domain"));
        }
        if self.account_bytes + size > bounds.account_bytes {
            let fullest = self.fullest.clone().unwrap_or_else(|| domain.to_owned());
            return Err(Full::GiveWay(fullest, "first-contacts-full"));
        }
        Ok(())
    }

    /// Whose first contacts are declined gets fewer: the share that was accepted, and one good word for everybody.
    fn slots(&self, most: usize) -> usize {
        let share = most.saturating_mul(self.accepted + 1) / (self.accepted + self.declined + 1);
        share.max(most / 10).max(1)
    }
}

/// What the user gets: a subscription request that every client understands.
fn request(account: &Account, peer: &Jid, text: &str) -> Stanza {
    Stanza::build(Kind::Presence(PresenceType::Subscribe))
        .from(peer.clone())
        .to(account.jid.clone())
        .body(|w: &mut Writer| {
            if !text.is_empty() {
                w.open("status").text(text).close();
            }
        })
        .done()
}

/// What the user's clients get when a request is no more.
fn taken_back(account: &Account, peer: &Jid) -> Stanza {
    let kind = Kind::Presence(PresenceType::Unsubscribe);
    Stanza::build(kind).from(peer.clone()).to(account.jid.clone()).done()
}

/// To the account's clients that are there.
fn show(account: &Account, stanza: &Stanza) {
    let state = account.state();
    for resource in state.resources.iter().filter(|resource| resource.presence.is_some()) {
        resource.session.push(Queued::plain(stanza.clone()));
    }
}

fn number(row: &Row<'_>, column: usize) -> usize {
    usize::try_from(row.int(column)).unwrap_or(0)
}

fn first_number(rows: &Rows, column: usize) -> usize {
    rows.first().map_or(0, |row| number(&row, column))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn before(accepted: usize, declined: usize) -> Before {
        Before { accepted, declined, ..Before::default() }
    }

    #[test]
    fn slots_follow_the_answers() {
        for (accepted, declined, slots) in
            [(0, 0, 200), (0, 1, 100), (1, 1, 133), (9, 1, 181), (0, 9, 20), (0, 1000, 20), (50, 0, 200)]
        {
            assert_eq!(
                before(accepted, declined).slots(200),
                slots,
                "{accepted} accepted, {declined} declined"
            );
        }
        assert_eq!(before(0, 1000).slots(1), 1);
    }

    fn crowd(all: usize, outside: &[(&str, usize)]) -> Crowd {
        Crowd { all, outside: outside.iter().map(|(domain, count)| ((*domain).to_owned(), *count)).collect() }
    }

    fn gives_way(domain: &str, name: &'static str) -> Option<Full> {
        Some(Full::GiveWay(domain.to_owned(), name))
    }

    #[test]
    fn a_domain_has_an_eighth_and_the_outside_half_of_the_requests() {
        let evil = |crowd: Crowd| crowd.full("evil.example", 16);
        assert_eq!(evil(crowd(1, &[("evil.example", 1)])), None);
        assert_eq!(
            evil(crowd(2, &[("evil.example", 2)])),
            gives_way("evil.example", "requests-of-domain-full")
        );
        // Eight from outside: who has most gives way.
        let most = [("a.example", 2), ("b.example", 2), ("c.example", 2), ("d.example", 1), ("e.example", 1)];
        assert_eq!(evil(crowd(8, &most[..4])), None, "seven");
        assert_eq!(evil(crowd(8, &most)), gives_way("c.example", "subscription-requests-full"));
        // Nobody has more than the one who asks would have.
        let each: Vec<String> = (0..8).map(|n| format!("d{n}.example")).collect();
        let each: Vec<(&str, usize)> = each.iter().map(|domain| (domain.as_str(), 1)).collect();
        let mut with_own = crowd(8, &each);
        with_own.outside.insert("evil.example".into(), 1);
        assert_eq!(evil(with_own), Some(Full::Drop("subscription-requests-full")));
        // The inside fills its own half only as far as there is room.
        assert_eq!(evil(crowd(15, &[])), None);
        assert_eq!(evil(crowd(16, &[])), Some(Full::Drop("subscription-requests-full")));
    }

    #[test]
    fn bytes_are_shared_like_requests_and_bounded_overall() {
        let stanza = Stanza::parse(
            format!("<message from='iago@evil.example/x'><body>{}</body></message>", "x".repeat(100))
                .as_bytes(),
        )
        .unwrap();
        let peer = Jid::parse("iago@evil.example").unwrap();
        let first = First { id: LogId(1), stanza: &stanza, peer, asks: false };
        let size = first.size();
        let mut overrides = crate::config::overrides::Overrides::default();
        overrides.set("domain=here.example").unwrap();
        let config = crate::config::Config::parse(
            &crate::config::template(&overrides),
            std::path::Path::new("test.toml"),
        );
        let bounds =
            Consent { account_bytes: 80_000, held_bytes: 5000, held_stanzas: 3, ..config.unwrap().consent };
        let admit = |before: Before| before.admit(&first, &bounds, (&Crowd::default(), 16)).err();
        assert_eq!(admit(before(0, 0)), None);
        let domain_bytes = 10_000 - size;
        assert_eq!(admit(Before { domain_bytes, ..before(0, 0) }), None);
        assert_eq!(
            admit(Before { domain_bytes: domain_bytes + 1, ..before(0, 0) }),
            gives_way("evil.example", "first-contact-bytes-of-domain")
        );
        let fullest = Some("flood.example".to_owned());
        let account_bytes = 80_001 - size;
        assert_eq!(
            admit(Before { account_bytes, fullest, ..before(0, 0) }),
            gives_way("flood.example", "first-contacts-full")
        );
        for (full, name) in [
            (Before { contacts: MOST_CONTACTS, ..before(0, 0) }, "first-contacts-overall"),
            (Before { bytes: MOST_BYTES, ..before(0, 0) }, "first-contacts-overall"),
            (Before { contact: Some((DECLINED, 0, 0)), ..before(0, 0) }, "first-contact-declined"),
            (Before { contact: Some((WAITS, 3, 0)), ..before(0, 0) }, "first-contact-full"),
            (Before { contact: Some((WAITS, 1, 5000)), ..before(0, 0) }, "first-contact-full"),
        ] {
            assert_eq!(admit(full), Some(Full::Drop(name)));
        }
        // Who is there already takes no further place.
        let there = Before { contact: Some((WAITS, 1, 1)), contacts: MOST_CONTACTS, ..before(0, 0) };
        assert_eq!(admit(there), None);
    }
}
