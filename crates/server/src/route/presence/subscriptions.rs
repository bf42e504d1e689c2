//! Subscriptions and the roster items that they change: RFC 6121 s.3.

use std::sync::Arc;

use trunkline_store::{Batch, Lane, StoreError};
use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, PresenceType, Stanza};

use crate::exchange::Exchange;
use crate::ids::LogId;
use crate::logging::Refusal;
use crate::route::account::{Account, Loaded};
use crate::route::consent::{self, If};
use crate::route::message::store_trouble;
use crate::route::roster::{self, Item};
use crate::route::subscription::{Outbound, Subscription};
use crate::route::{Mail, Origin};
use crate::session::Queued;
use crate::session::client::refuse;

impl Exchange {
    /// Our user sends subscribe, subscribed, unsubscribe or unsubscribed (RFC 6121 s.3, A.2).
    pub(super) async fn subscribe_out(
        self: &Arc<Self>,
        account: Arc<Account>,
        kind: PresenceType,
        mail: Mail,
    ) {
        let Some(contact) = mail.stanza.head.to.as_ref().map(Jid::bare) else { return };
        let refused = |error: &StanzaError| match &mail.origin {
            Origin::Client(session) => refuse(session, &mail.stanza, error),
            Origin::Inside | Origin::Outside | Origin::Known | Origin::Answer => {
                self.bounce(&mail.stanza, error)
            }
        };
        if contact == account.jid {
            return refused(&StanzaError::new(Condition::NotAllowed).text("That is your own address."));
        }
        if account.state().blocks(&contact) && kind == PresenceType::Subscribe {
            return refused(&crate::route::blocked_error());
        }
        // s.3.1.2: the server stamps the bare JID of the user.
        let mut stanza = mail.stanza.clone();
        stanza.head.from = Some(account.jid.clone());
        stanza.head.to = Some(contact.clone());
        let passed = Mail { receipt: mail.receipt.clone(), ..Mail::inside(stanza) };
        // An answer goes on its way before the roster forgets what it answers: after a crash in between it can be
        // given again. A request is the other way round: it can always be made again.
        let answers = matches!(kind, PresenceType::Subscribed | PresenceType::Unsubscribed);
        let mut passed = Some(passed);
        // The answer to a request that was never made stays here: what a stranger wrote waits for it.
        let is_unasked = |item: Option<&Item>| answers && item.is_some_and(|item| item.unasked);
        let forwarded = answers && {
            let state = account.state();
            !is_unasked(state.roster.get(&contact))
                && state.roster.subscription(&contact).outbound(kind).route
        };
        if forwarded {
            self.deliver_once(&mut passed).await;
        }
        let writing = account.writes.lock().await;
        let most = self.config.load().limits.roster_items;
        let (before, item, full) = {
            let state = account.state();
            let item = state.roster.get(&contact).cloned();
            let full = state.roster.len() >= most;
            (item.as_ref().map(|item| item.subscription).unwrap_or_default(), item, full)
        };
        let unasked = is_unasked(item.as_ref());
        let outcome = match unasked {
            true => Outbound { next: Subscription { pending_in: false, ..before }, route: false },
            false => before.outbound(kind),
        };
        if item.is_none() && full && outcome.next != before {
            let text = format!("A roster holds {most} contacts, and no place is left.");
            return refused(&StanzaError::new(Condition::ResourceConstraint).text(text));
        }
        if outcome.next != before {
            let mut next = item.unwrap_or_default();
            next.subscription = outcome.next;
            next.listed |= outcome.next.in_roster();
            if !outcome.next.pending_in {
                next.request = None;
                next.unasked = false;
            }
            let next = (next.listed || next.subscription.pending_in).then_some(next);
            let mut batch = Batch::new(Lane::Inside);
            let answered = answers && before.pending_in && self.host(contact.domain()).is_none();
            // Who really asked becomes a contact by it, see `change_item_with`.
            let accepts = answered && unasked && kind == PresenceType::Subscribed;
            let declines = answered && kind == PresenceType::Unsubscribed;
            let mut releasing = None;
            if accepts {
                releasing = self.releasing(&account, &contact);
                self.note_accepted(&mut batch, &account, (&contact, If::Any));
            } else if declines {
                self.note_declined(&mut batch, &account, &contact);
            }
            if let Err(error) = self.change_item_with(&account, &contact, next, batch).await {
                return refused(&store_trouble(&error));
            }
            if let Some(releasing) = releasing {
                self.release_soon(&account, releasing);
            } else if declines {
                self.control.requests.answered(self, (contact.domain(), false));
            }
        }
        // Never hold one account's writes while another's are wanted.
        drop(writing);
        if outcome.route {
            // The receipt goes along: a request to another domain is handled once it is in the queue on disk.
            self.deliver_once(&mut passed).await;
        }
        match kind {
            // s.3.1.5: the contact now gets our presence.
            PresenceType::Subscribed if !before.from && outcome.next.from => {
                self.show_presence(&account, &contact);
            }
            // s.3.2.2
            PresenceType::Unsubscribed if before.from => self.hide_presence(&account, &contact),
            _ => {}
        }
    }

    async fn deliver_once(self: &Arc<Self>, mail: &mut Option<Mail>) {
        if let Some(mail) = mail.take() {
            Box::pin(self.deliver(mail)).await;
        }
    }

    /// A contact sends subscribe, subscribed, unsubscribe or unsubscribed (RFC 6121 s.3, A.3).
    pub(super) async fn subscribe_in(self: &Arc<Self>, kind: PresenceType, mail: Mail) {
        let Some(to) = mail.stanza.head.to.clone() else { return };
        let account = match self.accounts.load_in(mail.lane(), &self.db, &to).await {
            Ok(Some(account)) => account,
            // s.3.1.3, s.8.5.1: silence, as for every stranger.
            Ok(None) => return self.pretend_to_commit(&mail).await,
            Err(error) => return self.bounce(&mail.stanza, &store_trouble(&error)),
        };
        if let Err(error) = self.subscribe_to(account, kind, (mail, None)).await {
            tracing::debug!(%error, "the sender of a subscription stanza was told");
        }
    }

    /// [`Exchange::subscribe_in`] for an account that is there. What comes from a stranger has an id in the intake, and
    /// is held. True: its row there went along with what was done; with an error nothing was done.
    pub(in crate::route) async fn subscribe_to(
        self: &Arc<Self>,
        account: Loaded,
        kind: PresenceType,
        (mail, sorted): (Mail, Option<LogId>),
    ) -> Result<bool, StoreError> {
        let Some(from) = mail.stanza.head.from.clone() else { return Ok(false) };
        let contact = from.bare();
        let writing = account.writes.lock().await;
        let (mut before, mut item, blocked, crowded) = {
            let state = account.state();
            let item = state.roster.get(&contact).cloned();
            let before = item.as_ref().map(|item| item.subscription).unwrap_or_default();
            (before, item, state.blocks(&contact), self.is_crowded(&state, &contact))
        };
        if blocked {
            self.pretend_to_commit(&mail).await;
            return Ok(false);
        }
        // XEP-0379 s.3.5: a token of ours stands for the user's approval, and for a request of the user's own.
        let invited =
            kind == PresenceType::Subscribe && !before.from && self.is_invited(&account, &mail.stanza).await;
        if invited {
            before.approved = true;
        }
        let strange = !before.in_roster() && !item.as_ref().is_some_and(|item| item.listed);
        if let Some(id) = sorted.filter(|_| strange)
            && !self.is_known_by_now(&account, &contact).await?
        {
            let held = match kind {
                PresenceType::Subscribe => self.hold_subscription(&account, (id, &mail.stanza)).await,
                _ => self.withdraw(&account, (id, &contact)).await,
            };
            match held {
                // Consent was given between the question and the answer.
                Err(StoreError::Conflict) if self.is_known_by_now(&account, &contact).await? => {}
                done => return done,
            }
        }
        if item.as_ref().is_some_and(|item| item.unasked) {
            // What they wrote was accepted, and is about to be delivered.
            self.release_all(&account, &contact).await?;
            item = account.state().roster.get(&contact).cloned();
            before.pending_in = item.as_ref().is_some_and(|item| item.subscription.pending_in);
        }
        let mut outcome = before.inbound(kind);
        if invited && !outcome.next.to {
            outcome.next.pending_out = true;
        }
        if outcome.next.pending_in && !before.pending_in && crowded {
            self.refusals.report(Refusal {
                name: "subscription-requests-full",
                peer: contact.domain(),
                conn: 0,
                detail: "a user has too many open subscription requests",
            });
            self.pretend_to_commit(&mail).await;
            return Ok(false);
        }
        let mut stanza = mail.stanza.clone();
        // RFC 6121 s.3.1.3: addressed to the bare JID, from the bare JID.
        stanza.head.to = Some(account.jid.clone());
        stanza.head.from = Some(contact.clone());
        // What stood for their words stands for a request of theirs from now on.
        let asks = kind == PresenceType::Subscribe && item.as_ref().is_some_and(|item| item.unasked);
        let along = sorted.is_some() && (outcome.next != before || asks);
        if outcome.next != before || asks {
            let mut next = item.unwrap_or_default();
            next.subscription = outcome.next;
            next.listed |= outcome.next.in_roster();
            if !asks || !outcome.next.pending_in {
                next.request = outcome.next.pending_in.then(|| worth_keeping(&stanza));
            }
            next.unasked = false;
            let next = (next.listed || next.subscription.pending_in).then_some(next);
            let mut batch = Batch::new(mail.lane());
            if let Some(id) = sorted {
                batch.push(consent::sorted_row(id));
            }
            if asks {
                self.note_asked(&mut batch, &account, &contact);
            }
            if let Err(error) = self.change_item_with(&account, &contact, next, batch).await {
                if sorted.is_none() {
                    self.bounce(&mail.stanza, &store_trouble(&error));
                }
                return Err(error);
            }
        } else {
            self.pretend_to_commit(&mail).await;
        }
        drop(mail.receipt);
        // Never hold one account's writes while another's are wanted.
        drop(writing);
        if outcome.deliver {
            let state = account.state();
            for resource in state.resources.iter().filter(|resource| resource.presence.is_some()) {
                resource.session.push(Queued::plain(stanza.clone()));
            }
        }
        if let Some(reply) = outcome.reply {
            let reply =
                Stanza::build(Kind::Presence(reply)).from(account.jid.clone()).to(contact.clone()).done();
            // What grants something has to arrive. Saying again what was granted before does not: whoever asks for it may
            // ask as often as he likes.
            let granted = outcome.next != before;
            let mail = if granted { Mail::inside(reply) } else { Mail::answer(reply) };
            Box::pin(self.deliver(mail)).await;
            self.show_presence(&account, &contact);
        }
        if invited && outcome.next.pending_out {
            let subscribe = Stanza::build(Kind::Presence(PresenceType::Subscribe));
            let subscribe = subscribe.from(account.jid.clone()).to(contact.clone()).done();
            Box::pin(self.deliver(Mail::inside(subscribe))).await;
        }
        // s.3.3.3: who unsubscribes sees us go.
        if kind == PresenceType::Unsubscribe && before.from {
            self.hide_presence(&account, &contact);
        }
        Ok(along)
    }

    /// A subscription request shows a token that this account's user has given away (XEP-0379 s.3.5). The token is
    /// used up. Anything wrong with it, and the user decides as ever (s.4.1).
    async fn is_invited(&self, account: &Account, stanza: &Stanza) -> bool {
        let Some(token) = stanza.child(ns::PARS, "preauth").and_then(|preauth| preauth.attr("token")) else {
            return false;
        };
        match self.redeem_contact(account.id, &token).await {
            Ok(invited) => invited,
            Err(error) => {
                tracing::warn!(%error, "a token could not be looked up");
                false
            }
        }
    }

    /// The contact now may see the account's resources: it gets their presence.
    pub(crate) fn show_presence(self: &Arc<Self>, account: &Arc<Account>, contact: &Jid) {
        self.show_nodes(account, contact);
        let presences: Vec<Stanza> =
            account.state().resources.iter().filter_map(|resource| resource.presence.clone()).collect();
        for mut stanza in presences {
            stanza.head.to = Some(contact.clone());
            self.send(stanza);
        }
    }

    /// The contact no longer sees the account's resources: to it they go away.
    pub(crate) fn hide_presence(self: &Arc<Self>, account: &Arc<Account>, contact: &Jid) {
        self.hide_nodes(account, contact);
        let jids: Vec<Jid> = account
            .state()
            .resources
            .iter()
            .filter(|resource| resource.presence.is_some())
            .map(|resource| resource.session.jid.clone())
            .collect();
        for jid in jids {
            self.send(
                Stanza::build(Kind::Presence(PresenceType::Unavailable)).from(jid).to(contact.clone()).done(),
            );
        }
    }

    /// Writes one roster item (or its removal), then moves memory and tells the clients (RFC 6121 s.2.1.6).
    /// The caller holds [`Account::writes`].
    ///
    /// # Errors
    /// What to tell the sender when the store refuses.
    pub(crate) async fn change_item(
        self: &Arc<Self>,
        account: &Arc<Account>,
        contact: &Jid,
        item: Option<Item>,
        lane: Lane,
    ) -> Result<(), StanzaError> {
        self.change_item_with(account, contact, item, Batch::new(lane))
            .await
            .map_err(|error| store_trouble(&error))
    }

    /// [`Exchange::change_item`], with statements that happen together with it.
    pub(in crate::route) async fn change_item_with(
        self: &Arc<Self>,
        account: &Arc<Account>,
        contact: &Jid,
        item: Option<Item>,
        mut batch: Batch,
    ) -> Result<(), StoreError> {
        let (version, before) = {
            let state = account.state();
            (state.roster.version + 1, state.roster.get(contact).cloned())
        };
        let mut item = item;
        if let Some(item) = &mut item {
            item.version = version;
        }
        roster::save(&mut batch, account.id, contact, item.as_ref(), version);
        let consent = self.note_item(&mut batch, account, contact, (before.as_ref(), item.as_ref()));
        // Who asks a stranger, or puts one into the roster, has answered what waits from there.
        let opens = consent.is_some_and(|(_, opens)| opens)
            && before.as_ref().is_some_and(|item| item.subscription.pending_in);
        let releasing = if opens { self.releasing(account, contact) } else { None };
        if opens {
            self.note_accepted(&mut batch, account, (contact, If::Any));
        }
        self.db.run(batch).await?;
        if let Some((key, _)) = consent {
            self.changed_consent(&key);
        }
        if let Some(releasing) = releasing {
            self.release_soon(account, releasing);
        }
        let before = before.filter(|item| item.listed);
        let mut state = account.state();
        state.roster.apply(contact, item.clone(), version);
        let after = item.as_ref().filter(|item| item.listed);
        // What the client sees has not changed: a request came or went.
        if before.as_ref().map(Item::shown) == after.map(Item::shown) {
            return Ok(());
        }
        let mut w = Writer::new();
        w.open("query").attr("xmlns", ns::ROSTER).attr("ver", &version.to_string());
        roster::write_item(&mut w, contact, after);
        w.close();
        let payload = w.finish();
        for resource in state.resources.iter().filter(|resource| resource.interested) {
            self.push_iq(&resource.session, payload.clone());
        }
        Ok(())
    }
}

/// What is kept of a subscription request, in memory and on disk, until it is answered: all of a usual one, nothing but
/// the request of one that is stuffed.
fn worth_keeping(request: &Stanza) -> Stanza {
    const MOST: usize = 4096;
    if request.size() <= MOST { request.clone() } else { request.with_payload(b"") }
}
