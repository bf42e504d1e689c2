//! What waits for one user's consent, and what becomes of it: a request, its answer, the release.
//!
//! The request is a roster item that only holds a request (RFC 6121 s.3.1.3); the stanzas are rows below
//! `first_contacts`. Everything here holds [`Account::writes`].

use std::sync::Arc;

use trunkline_store::{Batch, Lane, Row, Rows, Statement, StoreError, sql};
use trunkline_xml::Writer;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, PresenceType, Stanza};

use super::index::{Grant, Pair, Why};
use super::intake::sorted_row;
use super::text;
use crate::config::Consent;
use crate::control::rule::Relation;
use crate::exchange::Exchange;
use crate::ids::LogId;
use crate::route::account::Account;
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
/// How long it is remembered how a domain was answered.
const ANSWERS: i64 = 180 * 24 * 3600 * 1000;
/// Rows looked at in one go.
const PAGE: i64 = 64;

/// One stanza of a stranger, and the account it is for.
struct First<'a> {
    id: LogId,
    stanza: &'a Stanza,
    peer: Jid,
    /// It is a subscription request.
    asks: bool,
}

/// What the tables say before a stanza is held.
struct Before {
    /// State, stanzas, bytes.
    contact: Option<(i64, usize, usize)>,
    account_bytes: usize,
    sender: usize,
    domain: usize,
    accepted: usize,
    declined: usize,
}

impl Exchange {
    /// A stranger's message waits for consent; or is delivered, if there is consent by now.
    pub(super) async fn hold_message(
        self: &Arc<Self>,
        account: &Arc<Account>,
        (id, stanza): (LogId, &Stanza),
    ) -> Result<(), StoreError> {
        let Some(from) = &stanza.head.from else { return Ok(()) };
        let first = First { id, stanza, peer: from.bare(), asks: false };
        let _writing = account.writes.lock().await;
        if self.is_known_by_now(account, &first.peer).await? {
            let stanza = delayed(stanza, account.jid.domain(), id);
            let batch = Batch::new(Lane::Outside).with(sorted_row(id));
            self.receive_with(account, Mail { stanza, origin: Origin::Known, receipt: None }, batch);
            return Ok(());
        }
        self.hold_first(account, &first).await
    }

    /// A stranger asks for a subscription. The caller holds [`Account::writes`].
    pub(in crate::route) async fn hold_subscription(
        self: &Arc<Self>,
        account: &Arc<Account>,
        (id, stanza): (LogId, &Stanza),
    ) -> Result<(), StoreError> {
        let Some(from) = &stanza.head.from else { return Ok(()) };
        self.hold_first(account, &First { id, stanza, peer: from.bare(), asks: true }).await
    }

    /// The store is asked, not the cache: it may be behind what was done under [`Account::writes`].
    async fn is_known_by_now(&self, account: &Account, peer: &Jid) -> Result<bool, StoreError> {
        let Some(host) = self.host(account.jid.domain()) else { return Ok(false) };
        let pair = Pair::of(host, &account.jid, peer);
        Ok(self.consents().read(&self.db, &pair).await?.is_some())
    }

    async fn hold_first(
        self: &Arc<Self>,
        account: &Arc<Account>,
        first: &First<'_>,
    ) -> Result<(), StoreError> {
        let (item, requests) = {
            let state = account.state();
            if state.removed || first.stanza.head.from.as_ref().is_none_or(|from| state.blocks(from)) {
                return Ok(());
            }
            let requests = state.roster.iter().filter(|(_, item)| item.subscription.pending_in).count();
            (state.roster.get(&first.peer).cloned(), requests)
        };
        let before = self.before(account.id, &first.peer).await?;
        let config = self.config.load_full();
        let crowded = requests >= config.limits.held_requests;
        if let Err(name) = before.admit(first, &config.consent, crowded) {
            self.first_contact_refused(name, first.peer.domain());
            return Ok(());
        }
        let mut item = item.unwrap_or_default();
        let new = !item.subscription.pending_in;
        let said = item.request.as_ref().and_then(|request| request.child(ns::CLIENT, "status"));
        let said = said.map(|status| status.text().into_owned()).unwrap_or_default();
        let more = text::append(&said, &text::of(first.stanza));
        let unasked = !first.asks && (new || item.unasked);
        let batch = self.held(account.id, first);
        if new || more.is_some() || unasked != item.unasked {
            let request = request(account, &first.peer, more.as_deref().unwrap_or(&said));
            item.subscription.pending_in = true;
            item.unasked = unasked;
            item.request = Some(request.clone());
            self.change_item_with(account, &first.peer, Some(item), batch).await?;
            if new {
                let state = account.state();
                for resource in state.resources.iter().filter(|resource| resource.presence.is_some()) {
                    resource.session.push(Queued::plain(request.clone()));
                }
            }
        } else {
            self.db.run(batch).await?;
        }
        self.control.requests.held(self, first.peer.domain());
        Ok(())
    }

    async fn before(&self, account: i64, peer: &Jid) -> Result<Before, StoreError> {
        let statements = vec![
            sql("SELECT state, stanzas, bytes FROM first_contacts WHERE account = ?1 AND peer = ?2")
                .bind(account)
                .bind(peer.as_str()),
            sql("SELECT COALESCE(SUM(bytes), 0) FROM first_contacts WHERE account = ?1 AND state = 0")
                .bind(account),
            sql("SELECT COUNT(*) FROM first_contacts WHERE domain = ?1 AND state = 0 AND peer = ?2")
                .bind(peer.domain())
                .bind(peer.as_str()),
            sql("SELECT COUNT(*) FROM first_contacts WHERE domain = ?1 AND state = 0").bind(peer.domain()),
            sql("SELECT accepted, declined FROM first_contact_answers WHERE domain = ?1").bind(peer.domain()),
        ];
        let results = self.db.read_all(Lane::Outside, statements).await?;
        let [contact, bytes, sender, domain, answers] = results.as_slice() else {
            return Err(StoreError::Closed);
        };
        Ok(Before {
            contact: contact.first().map(|row| (row.int(0), number(&row, 1), number(&row, 2))),
            account_bytes: first_number(bytes, 0),
            sender: first_number(sender, 0),
            domain: first_number(domain, 0),
            accepted: first_number(answers, 0),
            declined: first_number(answers, 1),
        })
    }

    /// The statements that hold a stanza.
    fn held(&self, account: i64, first: &First<'_>) -> Batch {
        let mut bytes = Vec::new();
        if !first.asks {
            first.stanza.write(&mut bytes);
        }
        let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let mut batch = Batch::new(Lane::Outside);
        batch.push(
            sql("INSERT INTO first_contacts (id, account, peer, domain, state, asks, stanzas, bytes, changed_at) \
                 VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, ?7, ?8) ON CONFLICT (account, peer) DO UPDATE SET \
                 asks = CASE WHEN excluded.asks = 1 THEN 1 ELSE first_contacts.asks END, \
                 stanzas = first_contacts.stanzas + excluded.stanzas, \
                 bytes = first_contacts.bytes + excluded.bytes")
            .bind(first.id.0)
            .bind(account)
            .bind(first.peer.as_str())
            .bind(first.peer.domain())
            .bind(i64::from(first.asks))
            .bind(i64::from(!first.asks))
            .bind(size)
            .bind(self.clock().now()),
        );
        if !first.asks {
            batch.push(
                sql("INSERT INTO held (id, contact, size, stanza) \
                     SELECT ?1, id, ?2, ?3 FROM first_contacts WHERE account = ?4 AND peer = ?5")
                .bind(first.id.0)
                .bind(size)
                .bind(bytes)
                .bind(account)
                .bind(first.peer.as_str())
                .must_change(),
            );
        }
        batch.push(sorted_row(first.id));
        batch
    }

    /// A stranger takes a subscription request back. What they wrote goes on waiting. The caller holds
    /// [`Account::writes`].
    pub(in crate::route) async fn withdraw(
        self: &Arc<Self>,
        account: &Arc<Account>,
        contact: &Jid,
    ) -> Result<bool, StoreError> {
        let Some(mut item) = account.state().roster.get(contact).cloned() else { return Ok(false) };
        if !item.subscription.pending_in || item.unasked {
            return Ok(false);
        }
        let of = |statement: Statement| statement.bind(account.id).bind(contact.as_str());
        let batch = Batch::new(Lane::Outside);
        if self.before(account.id, contact).await?.contact.is_some_and(|(_, stanzas, _)| stanzas > 0) {
            item.unasked = true;
            let batch =
                batch.with(of(sql("UPDATE first_contacts SET asks = 0 WHERE account = ?1 AND peer = ?2")));
            self.change_item_with(account, contact, Some(item), batch).await?;
            return Ok(false);
        }
        let batch = batch.with(of(sql("DELETE FROM first_contacts WHERE account = ?1 AND peer = ?2")));
        item.subscription.pending_in = false;
        item.request = None;
        self.change_item_with(account, contact, item.listed.then_some(item), batch).await?;
        Ok(true)
    }

    // ---- answers

    /// Adds that the user accepts what `contact` wrote: messages are granted, what is held will be released. Call
    /// [`Exchange::release_soon`] when it is committed.
    pub(in crate::route) fn note_accepted(&self, batch: &mut Batch, account: &Account, contact: &Jid) {
        let of = |statement: Statement| statement.bind(account.id).bind(contact.as_str());
        batch.push(
            of(sql("INSERT INTO first_contact_answers (domain, accepted, declined, changed_at) \
                    SELECT domain, 1, 0, ?3 FROM first_contacts WHERE account = ?1 AND peer = ?2 AND state = 0 \
                    ON CONFLICT (domain) DO UPDATE SET accepted = first_contact_answers.accepted + 1, \
                    changed_at = excluded.changed_at"))
            .bind(self.clock().now()),
        );
        batch.push(
            of(sql("UPDATE first_contacts SET state = ?3 WHERE account = ?1 AND peer = ?2")).bind(RELEASED),
        );
        if let Some(key) = self.address_key(&account.jid, contact) {
            let (why, relation, now) = (Why::Conversation, Relation::Conversation, self.clock().now());
            let grant = Grant { key, why, relation, account: account.id, peer: contact, now };
            let most = self.config.load().consent.conversations;
            self.consents().note_conversation(batch, &grant, most);
        }
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

    /// Our user writes to somebody whose request waits: that is an answer. A subscription request goes on waiting.
    pub(super) async fn accept_by_writing(self: &Arc<Self>, account: &Arc<Account>, contact: &Jid) {
        let _writing = account.writes.lock().await;
        let Some(mut item) = account.state().roster.get(contact).cloned() else { return };
        if !item.subscription.pending_in {
            return;
        }
        let mut batch = Batch::new(Lane::Inside);
        self.note_accepted(&mut batch, account, contact);
        if item.unasked {
            item.unasked = false;
            item.subscription.pending_in = false;
            item.request = None;
        }
        let item = (item.listed || item.subscription.pending_in).then_some(item);
        match self.change_item_with(account, contact, item, batch).await {
            Ok(()) => self.release_soon(account, contact),
            Err(error) => tracing::error!(%error, "an accepted first contact could not be noted"),
        }
    }

    /// Delivers what was held of an accepted contact, after whoever holds [`Account::writes`] now.
    pub(in crate::route) fn release_soon(self: &Arc<Self>, account: &Arc<Account>, contact: &Jid) {
        self.control.requests.answered(self, (contact.domain(), true));
        let (exchange, contact) = (Arc::clone(self), contact.clone());
        let account = self.accounts.hold(Arc::clone(account));
        self.spawn(async move {
            if let Err(error) = exchange.release(&account, &contact).await {
                tracing::error!(%error, "held messages could not be delivered; the next start tries again");
            }
        });
    }

    /// In order, each in one transaction with the end of its waiting.
    async fn release(self: &Arc<Self>, account: &Arc<Account>, contact: &Jid) -> Result<(), StoreError> {
        let _writing = account.writes.lock().await;
        let of = |statement: Statement| statement.bind(account.id).bind(contact.as_str()).bind(RELEASED);
        let held = of(sql("SELECT h.id, h.stanza FROM held h JOIN first_contacts f ON f.id = h.contact \
                           WHERE f.account = ?1 AND f.peer = ?2 AND f.state = ?3 ORDER BY h.id"));
        for row in self.db.read_in(Lane::Outside, held).await?.iter() {
            let id = LogId(row.int(0));
            let Ok(stanza) = Stanza::parse(row.blob(1)) else { continue };
            let stanza = delayed(&stanza, account.jid.domain(), id);
            let gone = sql("DELETE FROM held WHERE id = ?1").bind(id.0);
            let mail = Mail { stanza, origin: Origin::Known, receipt: None };
            self.receive_with(account, mail, Batch::new(Lane::Outside).with(gone));
        }
        // What was refused is answered by now: what is left goes, behind the rows of what was delivered.
        let done = of(sql("DELETE FROM first_contacts WHERE account = ?1 AND peer = ?2 AND state = ?3"));
        self.db.run(Batch::new(Lane::Outside).with(done)).await?;
        // Only now: nothing overtakes what was held.
        if let Some(key) = self.address_key(&account.jid, contact) {
            self.consents().forget(&key);
        }
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
                self.release(&account, &peer).await?;
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
                item.subscription.pending_in = false;
                item.unasked = false;
                item.request = None;
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
            .with(sql("DELETE FROM first_contact_answers WHERE changed_at < ?1").bind(now - ANSWERS));
        self.db.run(batch).await.map(drop)
    }
}

impl Before {
    /// Whether there is room for one more.
    fn admit(&self, first: &First<'_>, bounds: &Consent, crowded: bool) -> Result<(), &'static str> {
        let size = if first.asks { 0 } else { first.stanza.size() };
        match self.contact {
            Some((DECLINED, ..)) => return Err("first-contact-declined"),
            Some((_, stanzas, bytes)) => {
                if !first.asks && (stanzas >= bounds.held_stanzas || bytes + size > bounds.held_bytes) {
                    return Err("first-contact-full");
                }
            }
            None => {
                if crowded {
                    return Err("subscription-requests-full");
                }
                if self.sender >= self.slots(bounds.sender_requests) {
                    return Err("first-contacts-of-sender");
                }
                if self.domain >= self.slots(bounds.domain_requests) {
                    return Err("first-contacts-of-domain");
                }
            }
        }
        if size > bounds.held_bytes || self.account_bytes + size > bounds.account_bytes {
            return Err("first-contacts-full");
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
        Before { contact: None, account_bytes: 0, sender: 0, domain: 0, accepted, declined }
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
}
