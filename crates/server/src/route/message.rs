//! Messages to and from local accounts: RFC 6121 s.8.5, and the steps of the modules.

use std::sync::Arc;

use smallvec::SmallVec;
use tokio::sync::oneshot;
use trunkline_store::{Batch, Lane, Statement, StoreError, sql};
use trunkline_xmpp::classify::{classify, classify_sent};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::stanza::{Kind, MessageType, Stanza};

use super::account::{Account, AccountState, Resource, Waiting};
use super::presence::delayed;
use super::{Later, Mail, Routed};
use crate::exchange::Exchange;
use crate::modules::{Flow, Passage, Step, Way};
use crate::session::ledger::Receipt;
use crate::session::{Push, Queued, Session};

/// Whom a message is for.
#[derive(Debug)]
pub enum Targets {
    /// These sessions.
    Sessions(SmallVec<[Arc<Session>; 2]>),
    /// Nobody is there to take it: keep it, if it is worth keeping.
    Nobody,
    /// It can't be delivered (RFC 6121 s.8.5.2.1, s.8.5.3.2.1).
    Unavailable,
    /// It vanishes.
    Ignore(&'static str),
}

/// What is committed together with a message's rows, and who waits for that.
#[derive(Debug)]
pub(super) struct Along {
    /// The statements.
    pub(super) batch: Batch,
    /// Told when they are on the disk. Dropped: the message was refused or ignored, and nothing is written.
    pub(super) landed: Option<oneshot::Sender<Result<(), StoreError>>>,
}

impl Exchange {
    /// A client of ours sends a message: the steps of the sender's account. The message to route, and what has to be
    /// done before; or `None` when it was refused.
    pub(crate) fn send_message(
        self: &Arc<Self>,
        session: &Arc<Session>,
        mail: Mail,
    ) -> Option<(Mail, Option<Later>)> {
        let account = &session.account;
        let mut batch = Batch::new(mail.lane());
        let mut guard = account.state();
        let state = &mut *guard;
        let mut passage = Passage {
            exchange: self,
            account,
            class: classify_sent(&mail.stanza),
            stanza: mail.stanza,
            state,
            way: Way::Sent,
            session: Some(session),
            targets: SmallVec::new(),
            outside: false,
            id: None,
            waits: None,
            orders: Vec::new(),
            retraction: None,
            before: None,
            batch: &mut batch,
        };
        for step in [Step::Filter, Step::Stamp, Step::Store, Step::Notify, Step::Copy] {
            match self.modules.run(step, &mut passage) {
                Flow::Pass => {}
                Flow::Refuse(error) => {
                    let stanza = passage.stanza;
                    drop(guard);
                    crate::session::client::refuse(session, &stanza, &error);
                    return None;
                }
                Flow::Drop(name) => {
                    self.metrics.refused(name);
                    return None;
                }
            }
        }
        let mut released = self.note_writing(account, &passage.stanza, passage.batch);
        let Passage { stanza, id, retraction, before, .. } = passage;
        if !batch.is_empty() {
            let row = id.map(|id| {
                account.in_flight.submitted(id, batch.lane(), None);
                (Arc::clone(account), id)
            });
            let writer = released.take().map(|releasing| (Arc::clone(self), Arc::clone(account), releasing));
            self.commit_then(batch, (mail.receipt.clone(), &stanza), move |done| {
                if let Some((account, id)) = row {
                    account.in_flight.landed(id);
                }
                match writer {
                    Some((exchange, account, releasing)) if done => {
                        exchange.release_soon(&account, releasing)
                    }
                    Some((_, _, releasing)) => releasing.forget(),
                    None => {}
                }
            });
        }
        drop(guard);
        if let Some(retraction) = retraction {
            self.take_back(account, retraction);
        }
        Some((Mail { stanza, ..mail }, before))
    }

    /// Routes a message to a local account.
    pub(super) fn route_message(self: &Arc<Self>, mail: Mail) -> Routed {
        let Some(to) = mail.stanza.head.to.as_ref() else { return Routed::Done };
        if let Some(account) = self.accounts.online(to) {
            self.receive_message(&account, mail);
            return Routed::Done;
        }
        let exchange = Arc::clone(self);
        Routed::Later(Box::pin(async move {
            let Some(to) = mail.stanza.head.to.as_ref() else { return };
            match exchange.accounts.load_in(mail.lane(), &exchange.db, to).await {
                Ok(Some(account)) => exchange.receive_message(&account, mail),
                // RFC 6121 s.8.5.1: no such account.
                Ok(None) => exchange.refuse(&mail, None, &StanzaError::new(Condition::ServiceUnavailable)),
                Err(error) => exchange.bounce(&mail.stanza, &store_trouble(&error)),
            }
        }))
    }

    /// The steps of the recipient's account, and the fan-out.
    fn receive_message(self: &Arc<Self>, account: &Arc<Account>, mail: Mail) {
        let batch = Batch::new(mail.lane());
        self.receive_with(account, mail, Along { batch, landed: None });
    }

    /// [`Exchange::receive_message`], with what goes along with its rows, if it is delivered or kept.
    pub(super) fn receive_with(self: &Arc<Self>, account: &Arc<Account>, mail: Mail, along: Along) {
        let Along { mut batch, mut landed } = along;
        let outside = mail.is_outside();
        let mut guard = account.state();
        let state = &mut *guard;
        if state.removed {
            drop(guard);
            return self.refuse(&mail, None, &StanzaError::new(Condition::ServiceUnavailable));
        }
        let mut passage = Passage {
            exchange: self,
            account,
            class: classify(&mail.stanza),
            stanza: mail.stanza.clone(),
            state,
            way: Way::Received,
            session: None,
            targets: SmallVec::new(),
            outside,
            id: None,
            waits: None,
            orders: Vec::new(),
            retraction: None,
            before: None,
            batch: &mut batch,
        };
        match self.modules.run(Step::Filter, &mut passage) {
            Flow::Pass => {}
            Flow::Refuse(error) => {
                self.refuse_unlocked(guard, &mail, &error);
                return;
            }
            Flow::Drop(name) => return self.metrics.refused(name),
        }
        // Promise 5: to a stranger from outside group chat has one answer, whoever is there.
        let stranger = mail.is_strange_to(passage.state);
        let open = !(stranger && mail.stanza.head.kind == Kind::Message(MessageType::Groupchat));
        let found = if open { targets(passage.state, &passage.stanza) } else { Targets::Unavailable };
        passage.targets = match found {
            Targets::Sessions(sessions) => {
                // All are behind: it waits in the log as if nobody were there. A session that is catching up is
                // still there, so there is room beyond what an offline queue holds.
                let waits = passage.class.offline.yes
                    && sessions
                        .iter()
                        .all(|session| session.with_outbox(|outbox| outbox.catch_up().is_some()));
                if waits {
                    let most = self.offline_room(passage.state, &mail);
                    let most = Waiting {
                        messages: most.messages.saturating_mul(2),
                        bytes: most.bytes.saturating_mul(2),
                    };
                    if !passage.state.waiting.admit(passage.stanza.size(), most) {
                        return self.refuse_offline(guard, &mail);
                    }
                }
                sessions
            }
            Targets::Nobody if passage.class.offline.yes => {
                // XEP-0160 s.2: what is too much is refused, not thrown away later.
                let most = self.offline_room(passage.state, &mail);
                if !passage.state.waiting.admit(passage.stanza.size(), most) {
                    return self.refuse_offline(guard, &mail);
                }
                SmallVec::new()
            }
            Targets::Nobody | Targets::Unavailable => {
                self.refuse_unlocked(guard, &mail, &StanzaError::new(Condition::ServiceUnavailable));
                return;
            }
            Targets::Ignore(name) => return self.metrics.refused(name),
        };
        for step in [Step::Stamp, Step::Store, Step::Notify] {
            match self.modules.run(step, &mut passage) {
                Flow::Pass => {}
                Flow::Refuse(error) => {
                    self.refuse_unlocked(guard, &mail, &error);
                    return;
                }
                Flow::Drop(name) => return self.metrics.refused(name),
            }
        }
        if let Some(id) = passage.id {
            passage.state.last_kept = Some(id);
        }
        if stranger && !passage.batch.is_empty() {
            // Promise 5: who is there may have it before the store has come to its rows, which then are not written.
            // The acknowledgement must not come sooner for that.
            passage.batch.push(a_page());
        }
        let kept = passage.id.filter(|_| passage.class.offline.yes);
        let orders = std::mem::take(&mut passage.orders);
        if passage.batch.is_empty() {
            self.push(orders);
        } else {
            // Under the lock, so that what this account is sent is committed in the order of its ids; and before
            // it is pushed, so that the note of its delivery can't come before the row.
            let rows = std::mem::replace(passage.batch, Batch::new(mail.lane()));
            let waits = passage.id.map(|id| {
                account.in_flight.submitted(id, mail.lane(), passage.waits.take());
                (Arc::clone(account), id)
            });
            let exchange = Arc::clone(self);
            let noted = move |stored: bool| {
                if let Some((account, id)) = waits {
                    account.in_flight.landed(id);
                }
                // Promise 1: who is woken finds it.
                if stored {
                    exchange.push(orders);
                }
            };
            match landed.take() {
                // Who waits tries again if it fails: its sender need not know.
                Some(landed) => self.db.submit(rows, move |result| {
                    noted(result.is_ok());
                    let _ = landed.send(result.map(drop));
                }),
                None => self.commit_then(rows, (mail.receipt.clone(), &mail.stanza), noted),
            }
        }
        if let Some(retraction) = passage.retraction.take() {
            self.take_back(account, retraction);
        }
        for session in &passage.targets {
            let queued =
                Queued { stanza: passage.stanza.clone(), kept, outside, lazy: !passage.class.wake.yes };
            if let Push::Refused(why) = session.push(queued) {
                self.not_queued(session, why);
            }
        }
        let _ = self.modules.run(Step::Copy, &mut passage);
        if !batch.is_empty() {
            self.commit(batch, mail.receipt, &mail.stanza);
        }
        drop(guard);
    }

    fn refuse_offline(self: &Arc<Self>, guard: parking_lot::MutexGuard<'_, AccountState>, mail: &Mail) {
        self.metrics.refused("offline-messages-full");
        self.refuse_unlocked(guard, mail, &StanzaError::new(Condition::ServiceUnavailable));
    }

    /// How full the offline queue may be for one more from this sender. The outside can't fill what belongs to
    /// the inside, and strangers can't fill what belongs to contacts.
    fn offline_room(&self, state: &AccountState, mail: &Mail) -> Waiting {
        let limits = &self.config.load().limits;
        let share = match &mail.stanza.head.from {
            Some(_) if mail.is_strange_to(state) => 8,
            Some(_) if mail.is_outside() => 2,
            _ => 1,
        };
        Waiting { messages: limits.offline_messages / share, bytes: limits.offline_bytes / share }
    }

    fn refuse_unlocked(
        self: &Arc<Self>,
        guard: parking_lot::MutexGuard<'_, AccountState>,
        mail: &Mail,
        error: &StanzaError,
    ) {
        // Bouncing to a local sender takes that account's lock: never two at once. What `refuse` reads of
        // the state is the consent, so that is all that is kept.
        let stranger = mail.is_strange_to(&guard);
        drop(guard);
        if stranger {
            self.answer_stranger(mail);
        } else {
            self.bounce(&mail.stanza, error);
        }
    }

    /// Gives `batch` to the store. If that fails the sender gets an error: the message may have reached
    /// somebody, but it is not on disk (promise 1).
    pub(crate) fn commit(self: &Arc<Self>, batch: Batch, receipt: Option<Receipt>, stanza: &Stanza) {
        self.commit_then(batch, (receipt, stanza), |_| {});
    }

    /// [`Exchange::commit`]; `landed` is called when it is done, with whether it worked.
    pub(super) fn commit_then(
        self: &Arc<Self>,
        batch: Batch,
        (receipt, stanza): (Option<Receipt>, &Stanza),
        landed: impl FnOnce(bool) + Send + 'static,
    ) {
        let exchange = Arc::clone(self);
        let stanza = stanza.clone();
        if let Some(receipt) = &receipt {
            receipt.note_commit();
        }
        self.db.submit(batch, move |result| {
            landed(result.is_ok());
            if let Err(error) = result {
                exchange.metrics.refused("store-failed");
                tracing::error!(%error, "a message could not be stored; its sender is told");
                // Not here: an inline store calls back under the account's lock.
                let sender = Arc::clone(&exchange);
                exchange.spawn(async move {
                    // The sender's own copy and the receiver's fail one by one; one error is enough.
                    if sender.failed.is_first(&stanza) && !sender.tell(&stanza, &store_trouble(&error)) {
                        // Neither stored nor answered: not acknowledged either. The peer still has it.
                        receipt.into_iter().for_each(Receipt::lose);
                        return;
                    }
                    // Only now: nobody may take it for stored before the error is on its way.
                    drop(receipt);
                });
            }
        });
    }

    /// Keeps `receipt` for as long as writing a row takes, as if the stanza had been kept. An outsider who asks for an
    /// acknowledgement (XEP-0198) would otherwise see by the time whether an address exists (promise 5).
    pub(crate) fn commit_nothing(&self, receipt: Receipt) {
        self.db.submit(nothing(), move |_| drop(receipt));
    }

    /// Waits for as long as writing a row takes if `mail` came from outside, see [`Exchange::commit_nothing`].
    pub(super) async fn pretend_to_commit(&self, mail: &Mail) {
        if !mail.is_outside() {
            return;
        }
        if let Err(error) = self.db.run(nothing()).await {
            tracing::debug!(%error, "the store takes nothing");
        }
    }

    /// Hands on what a session that ended had not delivered (XEP-0198 s.5, RFC 6121 s.8.5.3.2).
    pub(crate) fn redirect(self: &Arc<Self>, account: &Arc<Account>, rest: Vec<Queued>) {
        for queued in rest {
            match queued.stanza.head.kind {
                Kind::Iq(_) => {
                    self.bounce(&queued.stanza, &StanzaError::new(Condition::ServiceUnavailable));
                }
                Kind::Message(MessageType::Groupchat) => {
                    // A room learns from the error that its occupant is gone.
                    self.bounce(&queued.stanza, &StanzaError::new(Condition::RecipientUnavailable));
                }
                Kind::Message(_) if queued.kept.is_some() => self.redirect_message(account, queued),
                Kind::Message(_) | Kind::Presence(_) => {}
            }
        }
    }

    /// A message to one device that went away is given to the others, if they did not get it; if there is
    /// no other it waits in the log.
    fn redirect_message(self: &Arc<Self>, account: &Arc<Account>, queued: Queued) {
        let Some(id) = queued.kept else { return };
        let to_full = queued.stanza.head.to.as_ref().is_some_and(|to| to.resource().is_some());
        if !to_full {
            return;
        }
        // XEP-0203: the one it was for may have had it already, without saying so.
        let stanza = delayed(&queued.stanza, account.jid.domain(), id);
        let state = account.state();
        for resource in state.resources.iter().filter(|resource| resource.takes_messages()) {
            resource.session.push(Queued { stanza: stanza.clone(), ..queued.clone() });
        }
    }
}

/// Stanzas whose failure was told to their sender lately: the last few, by sender, receiver and id.
#[derive(Debug, Default)]
pub struct Failed(parking_lot::Mutex<std::collections::VecDeque<Stanza>>);

impl Failed {
    const REMEMBERED: usize = 256;

    /// It is the first failure of this stanza; from now on it is not.
    fn is_first(&self, stanza: &Stanza) -> bool {
        let mut told = self.0.lock();
        let same = |other: &Stanza| {
            let (a, b) = (&other.head, &stanza.head);
            a.id.is_some() && a.id == b.id && a.from == b.from && a.to == b.to
        };
        if told.iter().any(same) {
            return false;
        }
        if told.len() >= Self::REMEMBERED {
            told.pop_front();
        }
        // The head is what is compared; the payload need not be kept.
        told.push_back(stanza.with_payload(b""));
        true
    }
}

/// Changes nothing that matters, but a page: the commit waits for the disk as every other one does. A row that is
/// written as it was would not.
fn a_page() -> Statement {
    sql(
        "INSERT INTO heartbeat (id, at, ballast) VALUES (2, 1, x'') ON CONFLICT (id) DO UPDATE SET at = at + 1",
    )
}

pub(super) fn nothing() -> Batch {
    Batch::new(Lane::Outside).with(a_page())
}

/// RFC 6121 s.8.5.2 and s.8.5.3: who gets a message to this account.
fn targets(state: &AccountState, stanza: &Stanza) -> Targets {
    let Kind::Message(kind) = stanza.head.kind else { return Targets::Ignore("not-a-message") };
    let resource = stanza.head.to.as_ref().and_then(|to| to.resource());
    if let Some(name) = resource {
        if let Some(resource) = state.resource(name) {
            return Targets::Sessions(SmallVec::from_iter([Arc::clone(&resource.session)]));
        }
        match kind {
            // s.8.5.3.2.1: chat goes on as if it were to the bare JID.
            MessageType::Chat => {}
            MessageType::Normal | MessageType::Groupchat => return Targets::Unavailable,
            MessageType::Headline => return Targets::Ignore("headline-nobody"),
            MessageType::Error => return Targets::Ignore("error-nobody"),
        }
    }
    match kind {
        MessageType::Groupchat => return Targets::Unavailable,
        MessageType::Error => return Targets::Ignore("error-to-bare-address"),
        MessageType::Chat | MessageType::Normal | MessageType::Headline => {}
    }
    let sessions: SmallVec<[Arc<Session>; 2]> = state
        .resources
        .iter()
        .filter(|resource| resource.takes_messages())
        .map(|resource: &Resource| Arc::clone(&resource.session))
        .collect();
    match (sessions.is_empty(), kind) {
        (false, _) => Targets::Sessions(sessions),
        (true, MessageType::Headline) => Targets::Ignore("headline-nobody"),
        (true, _) => Targets::Nobody,
    }
}

/// The error for a store that can't take more.
pub(crate) fn store_trouble(error: &trunkline_store::StoreError) -> StanzaError {
    match error {
        trunkline_store::StoreError::Full => StanzaError::new(Condition::ResourceConstraint)
            .text("The server's disk is full; try again later."),
        _ => StanzaError::new(Condition::InternalServerError).text("The server could not store this."),
    }
}
