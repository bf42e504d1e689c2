//! Presence: broadcast, probes, directed presence (RFC 6121 s.4) and subscriptions (s.3).

use std::sync::Arc;
use std::time::Duration;

use trunkline_store::{Batch, Lane, StoreError};
use trunkline_xml::Writer;
use trunkline_xmpp::classify::classify;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, PresenceType, Stanza};

use super::account::{Account, AccountState, Loaded, Resource, Waiting};
use super::consent::{self, If};
use super::message::store_trouble;
use super::roster::{self, Item};
use super::subscription::{Outbound, Subscription};
use super::{Mail, Origin, Routed};
use crate::exchange::Exchange;
use crate::ids::LogId;
use crate::log::Page;
use crate::logging::Refusal;
use crate::session::client::refuse;
use crate::session::{CatchUp, Greeting, Push, Queued, Session};

/// Stanzas in one go when presence is refreshed, ...
const REFRESHED: usize = 50;
/// ... and how long until the next ones.
const REFRESH_PAUSE: Duration = Duration::from_millis(100);

impl Exchange {
    /// A client of ours sends presence; `from` is its full JID.
    pub(crate) fn client_presence(
        self: &Arc<Self>,
        session: &Arc<Session>,
        kind: PresenceType,
        mail: Mail,
    ) -> Routed {
        let Some(to) = mail.stanza.head.to.clone() else {
            return match kind {
                PresenceType::Available => self.broadcast_available(session, mail),
                PresenceType::Unavailable => {
                    self.broadcast_unavailable(session, mail.stanza);
                    Routed::Done
                }
                // RFC 6121 s.4.3: probes are for servers; the other kinds need an address.
                _ => {
                    refuse(session, &mail.stanza, &StanzaError::new(Condition::BadRequest));
                    Routed::Done
                }
            };
        };
        match kind {
            PresenceType::Available | PresenceType::Unavailable => self.directed(session, kind, &to, mail),
            PresenceType::Error => self.route(mail),
            PresenceType::Probe => Routed::Done,
            PresenceType::Subscribe
            | PresenceType::Subscribed
            | PresenceType::Unsubscribe
            | PresenceType::Unsubscribed => {
                let exchange = Arc::clone(self);
                let account = Arc::clone(&session.account);
                Routed::Later(Box::pin(async move { exchange.subscribe_out(account, kind, mail).await }))
            }
        }
    }

    /// RFC 6121 s.4.2 and s.4.4: initial presence and updates.
    fn broadcast_available(self: &Arc<Self>, session: &Arc<Session>, mail: Mail) -> Routed {
        let priority = match priority(&mail.stanza) {
            Ok(priority) => priority,
            Err(error) => {
                refuse(session, &mail.stanza, &error);
                return Routed::Done;
            }
        };
        let account = &session.account;
        let mut state = account.state();
        let Some(resource) = state.resource_of(session) else { return Routed::Done };
        let initial = resource.presence.is_none();
        let takes_now = priority >= 0 && !(resource.takes_messages());
        resource.presence = Some(mail.stanza.clone());
        resource.priority = priority;
        if takes_now {
            // Under the account's lock: from here on what is kept comes through the log, in order,
            // until the session has read all of it.
            session.with_outbox(|outbox| {
                if outbox.catch_up().is_none() {
                    let until = self.ids.next();
                    outbox.set_catch_up(Some(CatchUp::Pending { after: LogId::ZERO, until }));
                }
            });
            session.wake();
        }
        let audience = audience(&state);
        let devices = devices(&state);
        drop(state);
        for device in devices {
            push_presence(&device, &mail.stanza, session.account.jid.clone(), false);
        }
        self.spread(&mail.stanza, audience);
        self.note_caps(session);
        if !initial {
            return Routed::Done;
        }
        self.note_present(account.id, session.resource());
        let exchange = Arc::clone(self);
        let session = Arc::clone(session);
        // It waits for room in the client's own queue, which there may be only after the client's next <a/>: so the
        // client is read meanwhile.
        let greeting = session.begin_greeting();
        self.spawn(async move { exchange.greet(&session, greeting).await });
        Routed::Done
    }

    /// What a client gets after its initial presence: its other devices, its contacts, the requests that
    /// wait for an answer (RFC 6121 s.4.2.2, s.3.1.3).
    async fn greet(self: &Arc<Self>, session: &Arc<Session>, greeting: Greeting) {
        let account = &session.account;
        let (others, contacts, requests) = {
            let state = account.state();
            let others: Vec<Stanza> = state
                .resources
                .iter()
                .filter(|resource| resource.session.serial != session.serial)
                .filter_map(|resource| resource.presence.clone())
                .collect();
            let mut contacts = Vec::new();
            let mut requests = Vec::new();
            for (jid, item) in state.roster.iter() {
                if item.subscription.to && !state.blocks(jid) {
                    contacts.push(jid.clone());
                }
                if item.subscription.pending_in && !state.blocks(jid) {
                    requests.extend(item.request.clone());
                }
            }
            (others, contacts, requests)
        };
        for stanza in others {
            if !session.room_for(&greeting).await {
                return;
            }
            push_presence(session, &stanza, account.jid.clone(), false);
        }
        for stanza in requests {
            if !session.room_for(&greeting).await {
                return;
            }
            session.push(Queued::plain(stanza));
        }
        for contact in contacts {
            if !session.room_for(&greeting).await {
                return;
            }
            if self.host(contact.domain()).is_none() {
                self.probe(&account.jid, &contact);
                continue;
            }
            let Some(peer) = self.accounts.online(&contact) else { continue };
            let presences: Vec<Stanza> = {
                let state = peer.state();
                if !state.shows_presence_to(&account.jid) || state.blocks(&account.jid) {
                    continue;
                }
                state.resources.iter().filter_map(|resource| resource.presence.clone()).collect()
            };
            for stanza in presences {
                push_presence(session, &stanza, account.jid.clone(), false);
            }
        }
    }

    /// RFC 6121 s.4.3.1: from the user's bare JID.
    fn probe(self: &Arc<Self>, from: &Jid, contact: &Jid) {
        self.send(probe_of(from, contact));
    }

    /// RFC 6121 s.4.5: to everyone who knew that the resource was available, directed presence included.
    pub(crate) fn broadcast_unavailable(self: &Arc<Self>, session: &Arc<Session>, stanza: Stanza) {
        let account = &session.account;
        let mut state = account.state();
        let Some(resource) = state.resource_of(session) else { return };
        let was_available = resource.presence.take().is_some();
        if let Some(caps) = &mut resource.caps {
            caps.forget();
        }
        resource.priority = 0;
        let directed = std::mem::take(&mut resource.directed);
        for to in &directed {
            self.undirect(&account.jid, to);
        }
        let mut to = if was_available { audience(&state) } else { Vec::new() };
        for jid in directed {
            let told = to.contains(&jid) || (was_available && state.shows_presence_to(&jid));
            if !told {
                to.push(jid);
            }
        }
        let mut devices = devices(&state);
        drop(state);
        if was_available {
            self.note_absent(account.id, session.resource());
            // s.4.5.2: the client that went away is told as well, as long as it is connected.
            devices.push(Arc::clone(session));
            for device in devices {
                push_presence(&device, &stanza, account.jid.clone(), false);
            }
        }
        self.spread(&stanza, to);
    }

    /// The way to some contacts is open again: users who are online ask for their presence and send their own anew (RFC
    /// 6121 s.4.2.2, s.4.3), since neither side has heard of what changed meanwhile. A few at a time, until `goes_on`
    /// says otherwise.
    pub(crate) async fn refresh_presence(
        self: &Arc<Self>,
        concerns: impl Fn(&Jid) -> bool,
        goes_on: impl Fn() -> bool,
    ) {
        let mut sent = 0;
        for account in self.accounts.all() {
            let (presences, ask, tell) = {
                let state = account.state();
                let presences: Vec<Stanza> =
                    state.resources.iter().filter_map(|resource| resource.presence.clone()).collect();
                let of = |holds: fn(&Item) -> bool| -> Vec<Jid> {
                    let open = state.roster.iter().filter(|(jid, item)| {
                        !presences.is_empty() && holds(item) && concerns(jid) && !state.blocks(jid)
                    });
                    open.map(|(jid, _)| jid.clone()).collect()
                };
                let (ask, tell) = (of(|item| item.subscription.to), of(|item| item.subscription.from));
                (presences, ask, tell)
            };
            let probes = ask.iter().map(|contact| probe_of(&account.jid, contact));
            let own = tell.iter().flat_map(|contact| {
                presences.iter().map(|presence| {
                    let mut presence = presence.clone();
                    presence.head.to = Some(contact.clone());
                    presence
                })
            });
            for stanza in probes.chain(own).collect::<Vec<_>>() {
                self.send(stanza);
                sent += 1;
                if sent % REFRESHED == 0 {
                    tokio::time::sleep(REFRESH_PAUSE).await;
                    if !goes_on() {
                        return;
                    }
                }
            }
        }
    }

    /// Gives `stanza` to each of `audience`.
    fn spread(self: &Arc<Self>, stanza: &Stanza, audience: Vec<Jid>) {
        for contact in audience {
            let mut copy = stanza.clone();
            copy.head.to = Some(contact);
            self.send(copy);
        }
    }

    /// RFC 6121 s.4.6.
    fn directed(
        self: &Arc<Self>,
        session: &Arc<Session>,
        kind: PresenceType,
        to: &Jid,
        mail: Mail,
    ) -> Routed {
        let most = self.config.load().limits.directed_presence;
        let mut state = session.account.state();
        // XEP-0191 s.3.2: nothing goes to whom the user blocks.
        if state.blocks(to) && kind == PresenceType::Available {
            drop(state);
            refuse(session, &mail.stanza, &crate::route::blocked_error());
            return Routed::Done;
        }
        let Some(resource) = state.resource_of(session) else { return Routed::Done };
        match kind {
            PresenceType::Available => {
                if resource.directed.len() >= most && !resource.directed.contains(to) {
                    drop(state);
                    self.refused_client(
                        session,
                        "directed-presence-full",
                        "directed presence to too many addresses",
                    );
                    let error = StanzaError::new(Condition::ResourceConstraint)
                        .text("Directed presence went to too many addresses.");
                    refuse(session, &mail.stanza, &error);
                    return Routed::Done;
                }
                if resource.directed.insert(to.clone()) {
                    self.direct(&session.account.jid, to);
                }
            }
            _ => {
                if resource.directed.remove(to) {
                    self.undirect(&session.account.jid, to);
                }
            }
        }
        drop(state);
        self.route(mail)
    }

    /// Routes presence to a local account.
    pub(super) fn route_presence(self: &Arc<Self>, kind: PresenceType, mail: Mail) -> Routed {
        match kind {
            PresenceType::Available | PresenceType::Unavailable | PresenceType::Error => {
                self.receive_presence(&mail);
                match self.contact_presence(kind, &mail) {
                    Some(later) => Routed::Later(later),
                    None => Routed::Done,
                }
            }
            PresenceType::Probe => {
                let exchange = Arc::clone(self);
                Routed::Later(Box::pin(async move { exchange.receive_probe(mail).await }))
            }
            PresenceType::Subscribe
            | PresenceType::Subscribed
            | PresenceType::Unsubscribe
            | PresenceType::Unsubscribed => {
                let exchange = Arc::clone(self);
                Routed::Later(Box::pin(async move { exchange.subscribe_in(kind, mail).await }))
            }
        }
    }

    /// RFC 6121 s.8.5.2.1.2 and s.8.5.3: to all available resources, or to the one addressed.
    fn receive_presence(self: &Arc<Self>, mail: &Mail) {
        let (Some(to), Some(from)) = (&mail.stanza.head.to, &mail.stanza.head.from) else { return };
        let Some(account) = self.accounts.online(to) else { return };
        let state = account.state();
        if state.blocks(from) {
            return;
        }
        let outside = mail.is_outside();
        let target = mail.stanza.head.to.clone().unwrap_or_else(|| account.jid.clone());
        match to.resource() {
            Some(name) => {
                if let Some(resource) = state.resource(name) {
                    push_presence(&resource.session, &mail.stanza, target, outside);
                }
            }
            // An error to the bare address helps nobody, except who waits for the answer to a subscription request:
            // that goes out from the bare address.
            None if mail.stanza.head.kind == Kind::Presence(PresenceType::Error)
                && !state.roster.subscription(from).pending_out => {}
            None => {
                for resource in state.resources.iter().filter(|resource| resource.presence.is_some()) {
                    push_presence(&resource.session, &mail.stanza, target.clone(), outside);
                }
            }
        }
    }

    /// RFC 6121 s.4.3.2. Whoever may not know gets `unsubscribed`, whether the account exists or not.
    async fn receive_probe(self: &Arc<Self>, mail: Mail) {
        let (Some(to), Some(from)) = (mail.stanza.head.to.clone(), mail.stanza.head.from.clone()) else {
            return;
        };
        let loaded = match self.accounts.load_in(mail.lane(), &self.db, &to).await {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::warn!(%error, "a presence probe could not be answered");
                return;
            }
        };
        // XEP-0191 s.3.2: no answer to a contact who is blocked; `unsubscribed` would end a subscription that is
        // only covered for now.
        let hidden = |account: &Loaded| {
            let state = account.state();
            state.shows_presence_to(&from) && state.blocks(&from)
        };
        if loaded.as_ref().is_some_and(hidden) {
            return;
        }
        let answers: Option<Vec<Stanza>> = loaded.as_ref().and_then(|account| {
            let state = account.state();
            state.shows_presence_to(&from).then(|| {
                state
                    .resources
                    .iter()
                    .filter(|resource| to.resource().is_none_or(|name| resource.name() == name))
                    .filter_map(|resource| resource.presence.clone())
                    .collect()
            })
        });
        match answers {
            None => self.answer_with(
                Stanza::build(Kind::Presence(PresenceType::Unsubscribed))
                    .from(to.bare())
                    .to(from.bare())
                    .done(),
            ),
            // s.4.3.2.3: nobody is there; an answer is a courtesy that lets the peer drop what it believed.
            Some(presences) if presences.is_empty() => {
                self.answer_with(
                    Stanza::build(Kind::Presence(PresenceType::Unavailable)).from(to).to(from).done(),
                );
            }
            Some(presences) => {
                for mut stanza in presences {
                    stanza.head.to = Some(from.clone());
                    self.answer_with(stanza);
                }
            }
        }
    }

    /// Our user sends subscribe, subscribed, unsubscribe or unsubscribed (RFC 6121 s.3, A.2).
    async fn subscribe_out(self: &Arc<Self>, account: Arc<Account>, kind: PresenceType, mail: Mail) {
        let Some(contact) = mail.stanza.head.to.as_ref().map(Jid::bare) else { return };
        let refused = |error: &StanzaError| match &mail.origin {
            Origin::Client(session) => refuse(session, &mail.stanza, error),
            Origin::Inside | Origin::Outside | Origin::Known | Origin::Answer => {
                self.bounce(&mail.stanza, error)
            }
        };
        if contact == account.jid {
            return refused(&StanzaError::new(Condition::NotAllowed));
        }
        if account.state().blocks(&contact) && kind == PresenceType::Subscribe {
            return refused(&crate::route::blocked_error());
        }
        // s.3.1.2: the server stamps the bare JID of the user.
        let mut stanza = mail.stanza.clone();
        stanza.head.from = Some(account.jid.clone());
        stanza.head.to = Some(contact.clone());
        let passed = Mail { stanza, origin: Origin::Inside, receipt: mail.receipt.clone() };
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
        let (before, item, full) = {
            let state = account.state();
            let item = state.roster.get(&contact).cloned();
            let full = state.roster.len() >= self.config.load().limits.roster_items;
            (item.as_ref().map(|item| item.subscription).unwrap_or_default(), item, full)
        };
        let unasked = is_unasked(item.as_ref());
        let outcome = match unasked {
            true => Outbound { next: Subscription { pending_in: false, ..before }, route: false },
            false => before.outbound(kind),
        };
        if item.is_none() && full && outcome.next != before {
            let text = "Your roster is full.";
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
    async fn subscribe_in(self: &Arc<Self>, kind: PresenceType, mail: Mail) {
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
    pub(super) async fn subscribe_to(
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
    pub(super) async fn change_item_with(
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

    /// Feeds a session that is behind from the log until it has caught up.
    pub(crate) async fn catch_up(self: Arc<Self>, session: Arc<Session>) {
        // The outbox takes a page when it is three quarters empty.
        let bytes = i64::try_from(self.bounds().bytes / 4).unwrap_or(i64::MAX);
        let rows = Page { stanzas: 50, bytes };
        // What is younger is no replay: it came while the session was reading what is older.
        let began = self.clock().now();
        let account = Arc::clone(&session.account);
        loop {
            session.room().await;
            if session.is_ended() {
                return;
            }
            let Some(from) = session.with_outbox(|outbox| outbox.catch_up()) else { return };
            let mark = account.state().last_kept;
            let page = match from {
                CatchUp::Pending { after, until } => {
                    crate::log::pending(&self.db, &account, after..until, rows).await
                }
                CatchUp::Archive(after) => {
                    // Younger ids may still be on their way in either lane; none: all there is was there at the start.
                    let end = mark.map_or(LogId(i64::MAX), |mark| LogId(mark.0 + 1));
                    crate::log::since(&self.db, &account, after..end, rows).await
                }
            };
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    tracing::error!(%error, conn = session.serial, "stored messages can't be read");
                    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
                    continue;
                }
            };
            let mut state = account.state();
            let next = match (page.last().map(|logged| logged.id), from) {
                (Some(last), CatchUp::Pending { until, .. }) => Some(CatchUp::Pending { after: last, until }),
                (Some(last), CatchUp::Archive(_)) => Some(CatchUp::Archive(last)),
                (None, CatchUp::Pending { until, .. }) => Some(CatchUp::Archive(until)),
                // Something may have been kept since the log was read.
                (None, CatchUp::Archive(_)) if state.last_kept != mark => Some(from),
                (None, CatchUp::Archive(_)) => None,
            };
            session.with_outbox(|outbox| {
                if outbox.catch_up() != Some(from) {
                    // The connection before this one has read the same page.
                    return;
                }
                for logged in page {
                    if matches!(from, CatchUp::Archive(_)) && !was_for(&logged, &state, &session) {
                        continue;
                    }
                    let stanza = match logged.id.millis() < began {
                        true => delayed(&logged.stanza, account.jid.domain(), logged.id),
                        false => logged.stanza,
                    };
                    outbox.refill(Queued { stanza, kept: Some(logged.id), outside: false, lazy: false });
                }
                outbox.set_catch_up(next);
            });
            if next.is_none() {
                // Whatever had waited is on its way to a client.
                state.waiting = Waiting::default();
            }
            drop(state);
            session.wake();
        }
    }
}

fn probe_of(from: &Jid, contact: &Jid) -> Stanza {
    Stanza::build(Kind::Presence(PresenceType::Probe)).from(from.clone()).to(contact.clone()).done()
}

/// A message in the archive would have been pushed to `session` when it came, had there been room.
fn was_for(logged: &crate::log::Logged, state: &AccountState, session: &Session) -> bool {
    if logged.flags & crate::log::SENT != 0 || !classify(&logged.stanza).offline.yes {
        return false;
    }
    let to = logged.stanza.head.to.as_ref().and_then(|to| to.resource());
    match to.filter(|name| state.resource(name).is_some()) {
        Some(name) => name == session.resource(),
        None => state.resource(session.resource()).is_some_and(Resource::takes_messages),
    }
}

/// What is kept of a subscription request, in memory and on disk, until it is answered: all of a usual one, nothing but
/// the request of one that is stuffed.
fn worth_keeping(request: &Stanza) -> Stanza {
    const MOST: usize = 4096;
    if request.size() <= MOST { request.clone() } else { request.with_payload(b"") }
}

/// XEP-0203: when the server got the stanza.
pub(crate) fn delayed(stanza: &Stanza, domain: &str, id: LogId) -> Stanza {
    let ours = |node: trunkline_xml::Node<'_>| {
        node.is(ns::DELAY, "delay") && node.attr("from").is_some_and(|from| from == domain)
    };
    if stanza.children().any(ours) {
        return stanza.clone();
    }
    let mut w = Writer::new();
    w.open("delay")
        .attr("xmlns", ns::DELAY)
        .attr("from", domain)
        .attr("stamp", &trunkline_xmpp::time::format_millis(id.millis()))
        .close();
    stanza.with_appended(&w.finish())
}

/// Contacts who get the account's presence (RFC 6121 s.4.2.2), without those the user blocks.
fn audience(state: &AccountState) -> Vec<Jid> {
    state
        .roster
        .iter()
        .filter(|(jid, item)| item.subscription.from && !state.blocks(jid))
        .map(|(jid, _)| jid.clone())
        .collect()
}

/// The account's available devices.
fn devices(state: &AccountState) -> Vec<Arc<Session>> {
    state
        .resources
        .iter()
        .filter(|resource| resource.presence.is_some())
        .map(|resource| Arc::clone(&resource.session))
        .collect()
}

fn push_presence(session: &Arc<Session>, stanza: &Stanza, to: Jid, outside: bool) {
    let mut stanza = stanza.clone();
    stanza.head.to = Some(to);
    if let Push::Refused(why) = session.push(Queued { stanza, kept: None, outside, lazy: true }) {
        tracing::debug!(conn = session.serial, why = why.name(), "presence not queued");
    }
}

/// RFC 6121 s.4.7.2.3: an integer from -128 to +127.
fn priority(stanza: &Stanza) -> Result<i8, StanzaError> {
    let Some(element) = stanza.child(ns::CLIENT, "priority") else { return Ok(0) };
    element.text().trim().parse().map_err(|_| {
        StanzaError::new(Condition::BadRequest).text("The priority is not a number between -128 and 127.")
    })
}
