//! Consent before first contact: what somebody at another provider sends to a user who does not know them waits for the
//! user's consent, and is answered in a way that says nothing about the address. design/011-consent.md.
//!
//! | part | what |
//! |---|---|
//! | here | the gate: asked for each stanza from outside to an account; and what gives consent |
//! | `index`, `filter` | who may write to whom, asked without looking at an account; who certainly may not |
//! | `intake` | what strangers sent and nobody has looked at yet; the worker that sorts it |
//! | `line` | nobody overtakes their own words: who waits behind what is not delivered yet |
//! | `hold` | what waits for one user, and what becomes of it |
//! | `text` | what a request says |

mod filter;
mod hold;
pub(crate) mod index;
mod intake;
mod line;
mod text;

use std::sync::Arc;

use trunkline_store::{Batch, Lane, StoreError, sql};
use trunkline_xml::Node;
use trunkline_xmpp::classify::classify;
use trunkline_xmpp::error::{Condition, ErrorType, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{IqType, Kind, MessageType, PresenceType, Stanza};

pub(super) use intake::sorted_row;
pub(crate) use intake::{Intake, sort};
pub(crate) use line::Lines;

use self::index::{Asked, Grant, Index, Key, Pair, Why};
use super::account::Account;
use super::message::store_trouble;
use super::roster::Item;
use super::{Mail, Origin, Routed};
use crate::control::rule::{Direction, Relation};
use crate::control::{Case, Verdict};
use crate::exchange::{Exchange, Host};
use crate::logging::Refusal;
use crate::session::ledger::Receipt;

/// What becomes of a stanza where it comes in.
#[derive(Debug)]
pub(crate) enum Threshold {
    /// It has been dealt with, all the way.
    Done,
    /// It crosses, and the gate is asked inside.
    Cross(Mail),
    /// It crosses, and was let through the gate.
    Through(Mail),
}

/// What becomes of a stanza from outside.
enum Passage {
    /// It goes on as it is.
    Pass(Stanza),
    /// Its sender gets an error, or nothing.
    Refused(Option<StanzaError>),
    /// Its sender has to have consent and does not.
    Hold(Stanza),
}

impl Exchange {
    fn consents(&self) -> &Index {
        &self.control.requests.index
    }

    /// The gate. What it answers to strangers is fixed by the stanza's kind, before anybody looks for the account.
    pub(super) fn ask_for_consent(self: &Arc<Self>, host: &Host, mail: Mail) -> Routed {
        let (Some(to), Some(from)) = (&mail.stanza.head.to, &mail.stanza.head.from) else {
            return Routed::Done;
        };
        let pair = Pair::of(host, to, from);
        if matches!(mail.stanza.head.kind, Kind::Iq(IqType::Result | IqType::Error))
            && let Some(asked) = self.consents().answered(&mail.stanza)
        {
            self.note_answer(asked, &mail.stanza);
            return self.let_in(&pair, Some(Relation::Conversation), mail);
        }
        if let Some(relation) = self.consents().now(&pair) {
            return self.let_in(&pair, relation, mail);
        }
        let exchange = Arc::clone(self);
        Routed::Later(Box::pin(async move {
            let relation = match exchange.consents().read(&exchange.db, &pair).await {
                Ok(relation) => relation,
                Err(error) => return exchange.turn_away(&mail, &store_trouble(&error)),
            };
            if let Routed::Later(later) = exchange.let_in(&pair, relation, mail) {
                later.await;
            }
        }))
    }

    /// The gate for those who are certainly strangers: asked by federation's threads, before the crossing, so that a flood
    /// of strangers is none of the inside's work. It looks at no account and waits for nothing. Only where nothing
    /// of the same pair is crossing: nobody overtakes their own words.
    pub(crate) fn meet_at_threshold(self: &Arc<Self>, mail: Mail) -> Threshold {
        let head = &mail.stanza.head;
        let (Some(to), Some(from)) = (&head.to, &head.from) else { return Threshold::Cross(mail) };
        let is_answer = matches!(head.kind, Kind::Iq(IqType::Result | IqType::Error))
            && self.consents().is_asked(&mail.stanza);
        // Reports come from domains; what a user calls a report is a message like others.
        let is_report = matches!(head.kind, Kind::Message(_))
            && from.is_domain()
            && mail.stanza.child(ns::REPORTING, "report").is_some();
        let host = self.host(to.domain()).filter(|_| to.local().is_some() && !is_answer && !is_report);
        let Some(host) = host else { return Threshold::Cross(mail) };
        // A store that is behind is waited for in the crossing.
        let pair = Pair::of(host, to, from);
        if !self.consents().are_strangers(&pair) || !self.db.has_room(Lane::Outside) {
            return Threshold::Cross(mail);
        }
        let receipt = mail.receipt.clone().filter(|_| matches!(head.kind, Kind::Message(_)));
        match self.judged(None, mail.stanza.clone()) {
            Passage::Pass(stanza) => return Threshold::Through(Mail { stanza, ..mail }),
            Passage::Refused(error) => {
                error.iter().for_each(|error| self.turn_away(&mail, error));
            }
            Passage::Hold(stanza) => self.hold(&pair, Mail { stanza, ..mail }),
        }
        self.keep_back(receipt);
        Threshold::Done
    }

    /// After a message from outside was handled: one that was kept waits for its commit, and one that was not must not be
    /// acknowledged sooner.
    pub(crate) fn keep_back(&self, receipt: Option<Receipt>) {
        if let Some(receipt) = receipt.filter(|receipt| !receipt.has_commit() && !receipt.is_lost()) {
            self.commit_nothing(receipt);
        }
    }

    /// Answers with an error what is not taken. Promise 1: where the error can't be queued, the stanza is not acknowledged
    /// either, and its stream ends.
    ///
    /// What would get the same answer another time comes again only if the way of the answer was full: a peer that we
    /// can't reach would send it for ever. An IQ request has no promise, and plain presence no answer: they are not worth a
    /// stream.
    fn turn_away(self: &Arc<Self>, mail: &Mail, error: &StanzaError) {
        let Err(why) = self.try_bounce(&mail.stanza, error) else { return };
        let promised = matches!(mail.stanza.head.kind, Kind::Message(_)) || is_kept(&mail.stanza);
        let passes = error.kind == ErrorType::Wait
            || error.condition == Condition::InternalServerError
            || why.condition == Condition::ResourceConstraint;
        if promised && passes {
            mail.receipt.iter().cloned().for_each(Receipt::turn_away);
        }
    }

    /// Routes what was let through the gate before it crossed.
    pub(crate) async fn deliver_through(self: &Arc<Self>, mail: Mail) {
        if let Routed::Later(later) = self.route_to_account(mail) {
            later.await;
        }
    }

    fn let_in(self: &Arc<Self>, pair: &Pair, relation: Option<Relation>, mail: Mail) -> Routed {
        match self.judged(relation, mail.stanza.clone()) {
            Passage::Pass(stanza) if relation.is_some() && self.must_wait(&pair.address) => {
                self.stand_in_line(*pair, Mail { stanza, ..mail });
                Routed::Done
            }
            Passage::Pass(stanza) => {
                let origin = if relation.is_some() { Origin::Known } else { Origin::Outside };
                self.route_to_account(Mail { stanza, origin, ..mail })
            }
            Passage::Refused(Some(error)) => {
                self.turn_away(&mail, &error);
                Routed::Done
            }
            Passage::Refused(None) => Routed::Done,
            Passage::Hold(stanza) => {
                self.hold(pair, Mail { stanza, ..mail });
                Routed::Done
            }
        }
    }

    /// What the policy says now that it is known how the two stand to each other.
    fn judged(&self, relation: Option<Relation>, stanza: Stanza) -> Passage {
        let Some(from) = &stanza.head.from else { return Passage::Refused(None) };
        let case = Case {
            direction: Direction::In,
            domain: from.domain(),
            stanza: &stanza,
            relation: Some(relation.unwrap_or(Relation::Stranger)),
        };
        let decision = self.control.judge(&case);
        match &decision.verdict {
            Verdict::Allow => match decision.carried_out(stanza, Direction::In) {
                Ok(stanza) => Passage::Pass(stanza),
                Err(error) => Passage::Refused(Some(error)),
            },
            Verdict::Reject(error) => Passage::Refused(Some(error.clone())),
            Verdict::Drop => Passage::Refused(None),
            // What can't be decided is held: nobody gets in by a gap between two rules.
            // It waits as it would pass: an earlier rule may let only its text through, or mark it.
            Verdict::Hold | Verdict::Undecided => match decision.carried_out(stanza, Direction::In) {
                Ok(stanza) if relation.is_none() => Passage::Hold(stanza),
                Ok(stanza) => Passage::Pass(stanza),
                Err(error) => Passage::Refused(Some(error)),
            },
        }
    }

    /// A stranger's stanza: the answer that everybody gets, and what is worth a request is kept.
    fn hold(self: &Arc<Self>, pair: &Pair, mail: Mail) {
        if is_kept(&mail.stanza) { self.take_in(pair, mail) } else { self.answer_stranger(&mail) }
    }

    /// THE TABLE of answers to strangers: promise 5.
    pub(super) fn answer_stranger(self: &Arc<Self>, mail: &Mail) {
        let stanza = &mail.stanza;
        match stanza.head.kind {
            Kind::Message(MessageType::Groupchat) | Kind::Iq(IqType::Get | IqType::Set) => {
                self.turn_away(mail, &StanzaError::new(Condition::ServiceUnavailable));
            }
            Kind::Presence(PresenceType::Probe) => {
                let (to, from) = (stanza.head.to.as_ref(), stanza.head.from.as_ref());
                self.answer_with(
                    Stanza::build(Kind::Presence(PresenceType::Unsubscribed))
                        .from(to.map(Jid::bare))
                        .to(from.map(Jid::bare))
                        .done(),
                );
            }
            Kind::Message(_) | Kind::Presence(_) | Kind::Iq(_) => {}
        }
    }

    // ---- what gives consent

    /// How one of our users stands to somebody elsewhere, if that is in memory.
    pub(crate) fn relation_now(&self, ours: &Jid, theirs: &Jid) -> Option<Relation> {
        let pair = Pair::of(self.host(ours.domain())?, ours, theirs);
        Some(self.consents().now(&pair)?.unwrap_or(Relation::Stranger))
    }

    /// How one of our users stands to somebody elsewhere.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn relation(&self, ours: &Jid, theirs: &Jid) -> Result<Relation, StoreError> {
        let Some(host) = self.host(ours.domain()) else { return Ok(Relation::Stranger) };
        let pair = Pair::of(host, ours, theirs);
        Ok(self.consents().read(&self.db, &pair).await?.unwrap_or(Relation::Stranger))
    }

    fn is_elsewhere(&self, jid: &Jid) -> bool {
        self.host(jid.domain()).is_none()
    }

    fn address_key(&self, local: &Jid, peer: &Jid) -> Option<Key> {
        Some(index::address_key(self.host(local.domain())?, local, peer))
    }

    /// Our user sends directed presence: whoever is behind that address may write while it lasts. A room's occupants.
    pub(crate) fn direct(&self, local: &Jid, to: &Jid) {
        if let Some(key) = self.address_key(local, to).filter(|_| self.is_elsewhere(to)) {
            self.consents().direct(key);
        }
    }

    /// The end of [`Exchange::direct`].
    pub(crate) fn undirect(&self, local: &Jid, to: &Jid) {
        if let Some(key) = self.address_key(local, to).filter(|_| self.is_elsewhere(to)) {
            self.consents().undirect(&key);
        }
    }

    /// A client of ours sends an IQ stanza: the answer to a request is let in.
    pub(crate) fn note_request(&self, account: &Account, stanza: &Stanza) {
        let Some(to) = stanza.head.to.as_ref().filter(|to| self.is_elsewhere(to)) else { return };
        let asked = match stanza.head.kind {
            Kind::Iq(IqType::Get) => Asked::Plain,
            Kind::Iq(IqType::Set) => self.asked(account, (to, stanza)),
            _ => return,
        };
        self.consents().asks(stanza, asked);
    }

    fn asked(&self, account: &Account, (to, stanza): (&Jid, &Stanza)) -> Asked {
        if let Some(query) = stanza.child(ns::REGISTER, "query").filter(|_| to.is_domain()) {
            return match query.child(ns::REGISTER, "remove") {
                Some(_) => Asked::Leaves,
                None => Asked::Registers(account.id),
            };
        }
        let (Some(pubsub), Some(host)) =
            (stanza.child(ns::PUBSUB, "pubsub"), self.host(account.jid.domain()))
        else {
            return Asked::Plain;
        };
        let node = |child: Node<'_>| {
            // XEP-0060 s.6.1.1: without a node it is the service's root.
            let node = child.attr("node").unwrap_or_default();
            index::node_key(host, &account.jid, (to, &node))
        };
        if let Some(subscribe) = pubsub.child(ns::PUBSUB, "subscribe") {
            Asked::Subscribes(account.id, node(subscribe))
        } else if let Some(unsubscribe) = pubsub.child(ns::PUBSUB, "unsubscribe") {
            Asked::Unsubscribes(node(unsubscribe))
        } else {
            Asked::Plain
        }
    }

    /// XEP-0100 s.4.1: a gateway speaks with the addresses of its domain. XEP-0060 s.6.1.5: what one is subscribed to
    /// comes from the service's address.
    fn note_answer(self: &Arc<Self>, asked: Asked, stanza: &Stanza) {
        let (Some(from), Some(to)) = (stanza.head.from.as_ref(), stanza.head.to.as_ref()) else { return };
        if stanza.head.kind != Kind::Iq(IqType::Result) {
            return;
        }
        let Some(host) = self.host(to.domain()) else { return };
        let pair = Pair::of(host, to, from);
        let (key, why, account) = match asked {
            Asked::Plain => return,
            Asked::Registers(account) => (pair.domain, Why::Gateway, account),
            Asked::Leaves => (pair.domain, Why::Gateway, 0),
            Asked::Subscribes(account, _) => (pair.address, Why::Service, account),
            Asked::Unsubscribes(_) => (pair.address, Why::Service, 0),
        };
        let relation = Relation::Conversation;
        let grant = Grant { key, why, relation, account, peer: from, now: self.clock().now() };
        let batch = match asked {
            Asked::Plain => return,
            Asked::Registers(_) => self.consents().registered(&grant),
            Asked::Subscribes(_, node) => self.consents().subscribed(&grant, &node),
            Asked::Leaves => Batch::new(Lane::Inside).with(index::revoked(&key, why)),
            Asked::Unsubscribes(node) => index::unsubscribed(&key, &node),
        };
        if matches!(asked, Asked::Registers(_) | Asked::Subscribes(..)) {
            self.consents().grant(&key, relation);
        }
        let (exchange, domain) = (Arc::clone(self), from.domain().to_owned());
        self.db.submit(batch, move |result| {
            exchange.consents().forget(&key);
            match result {
                Ok(_) => {}
                Err(StoreError::Conflict) => {
                    let detail = "a user has too many gateways, or subscriptions to nodes elsewhere";
                    exchange.refusals.report(Refusal {
                        name: "services-full",
                        peer: &domain,
                        conn: 0,
                        detail,
                    });
                }
                Err(error) => {
                    tracing::error!(%error, "what a user has of a service elsewhere could not be noted")
                }
            }
        });
    }

    /// Our user sends a message: whoever gets it may answer, and what waits from there is let in. Under the account's
    /// lock; the rows go with the message's own, so that nothing is held of somebody who was written to. To be given to
    /// [`Exchange::release_soon`] when they are written.
    pub(super) fn note_writing(
        self: &Arc<Self>,
        account: &Arc<Account>,
        stanza: &Stanza,
        batch: &mut Batch,
    ) -> Option<Releasing> {
        let to = stanza.head.to.as_ref().filter(|to| self.is_elsewhere(to))?;
        if stanza.head.kind == Kind::Message(MessageType::Error) {
            return None;
        }
        let key = self.address_key(&account.jid, to)?;
        let now = self.clock().now();
        if self.consents().is_noted(&key, now) {
            return None;
        }
        // Before the index says that they know each other.
        let releasing = self.releasing(account, to)?;
        self.consents().writes(&key, now);
        let most = self.config.load().consent.conversations;
        let (why, relation) = (Why::Conversation, Relation::Conversation);
        let grant = Grant { key, why, relation, account: account.id, peer: to, now };
        self.consents().note_conversation(batch, &grant, most);
        self.note_accepted(batch, account, (&to.bare(), If::Waiting));
        Some(releasing)
    }

    /// What comes from `contact` waits until the result is dropped.
    pub(in crate::route) fn releasing(
        self: &Arc<Self>,
        account: &Account,
        contact: &Jid,
    ) -> Option<Releasing> {
        let key = self.address_key(&account.jid, contact)?;
        self.consents().releases(key);
        Some(Releasing { exchange: Arc::clone(self), contact: contact.bare(), key })
    }

    /// Adds what a changed roster item means for consent to the transaction that changes it. The key, and whether the
    /// stranger becomes known by it while something of theirs is held.
    pub(super) fn note_item(
        &self,
        batch: &mut Batch,
        account: &Account,
        contact: &Jid,
        (before, after): (Option<&Item>, Option<&Item>),
    ) -> Option<(Key, bool)> {
        let key = self.address_key(&account.jid, contact)?;
        let (before, after) = (before.map(relation), after.map(relation));
        let (before, now) = (before.flatten(), after.flatten());
        if before == now {
            return None;
        }
        batch.push(match now {
            Some(relation) => self.consents().granted(&Grant {
                key,
                why: Why::Roster,
                relation,
                account: account.id,
                peer: contact,
                now: self.clock().now(),
            }),
            None => index::revoked(&key, Why::Roster),
        });
        if now.is_none() {
            // Who was accepted, became a contact, and is one no more.
            batch.push(index::revoked(&key, Why::Granted));
        }
        Some((key, before.is_none() && self.is_elsewhere(contact)))
    }

    /// The row of that pair was written or deleted.
    pub(super) fn changed_consent(&self, key: &Key) {
        self.consents().forget(key);
    }

    /// An account is gone: nothing of what it allowed may be remembered for the next of that name.
    pub(crate) fn forget_consents(&self) {
        self.consents().forget_all();
    }

    /// Reads what the last run left behind; the first time, what was there before there was consent.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn start_consent(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.db.read(sql("SELECT 1 FROM consents_built")).await?.is_empty() {
            self.build_index().await?;
        }
        self.consents().load(&self.db).await?;
        self.enter_rows().await?;
        self.finish_releases().await
    }

    /// Everybody in a roster, and everybody whom a user wrote to as far as the archive says.
    async fn build_index(self: &Arc<Self>) -> Result<(), StoreError> {
        const PAGE: i64 = 1000;
        let last = self.db.read(sql("SELECT COALESCE(MAX(id), 0) FROM accounts")).await?;
        let last = last.first().map_or(0, |row| row.int(0));
        let now = self.clock().now();
        let mut from = 0;
        while from < last {
            let of = |statement: trunkline_store::Statement| statement.bind(from).bind(from + PAGE);
            let queries = vec![
                of(sql("SELECT r.account, a.local, h.name, r.jid, r.state FROM roster r \
                        JOIN accounts a ON a.id = r.account JOIN hosts h ON h.id = a.host_id \
                        WHERE r.removed = 0 AND r.account > ?1 AND r.account <= ?2")),
                of(sql("SELECT DISTINCT r.account, a.local, h.name, r.peer FROM archive r \
                        JOIN accounts a ON a.id = r.account JOIN hosts h ON h.id = a.host_id \
                        WHERE r.flags & 1 <> 0 AND r.account > ?1 AND r.account <= ?2")),
            ];
            let results = self.db.read_all(Lane::Inside, queries).await?;
            let mut batch = Batch::new(Lane::Inside);
            for (rows, is_roster) in results.iter().zip([true, false]) {
                for row in rows.iter() {
                    let local = Jid::from_parts(Some(row.text(1)), row.text(2), None);
                    let (Ok(local), Ok(peer)) = (local, Jid::parse(row.text(3))) else { continue };
                    let (why, relation) = match is_roster {
                        true => (Why::Roster, relation(&Item::of_state(row.int(4)))),
                        false => {
                            (Why::Conversation, self.is_elsewhere(&peer).then_some(Relation::Conversation))
                        }
                    };
                    if let (Some(key), Some(relation)) = (self.address_key(&local, &peer), relation) {
                        let grant = Grant { key, why, relation, account: row.int(0), peer: &peer, now };
                        batch.push(self.consents().granted(&grant));
                    }
                }
            }
            self.db.run(batch).await?;
            from += PAGE;
        }
        let done = sql("INSERT INTO consents_built (id, at) VALUES (1, ?1)").bind(now);
        self.db.run(Batch::new(Lane::Inside).with(done)).await.map(drop)
    }
}

/// Whom a release is for: while this is there, what comes from them waits behind what was held.
pub(in crate::route) struct Releasing {
    exchange: Arc<Exchange>,
    contact: Jid,
    key: Key,
}

impl Releasing {
    /// What the index believes may be wrong: it is asked anew.
    pub(in crate::route) fn forget(&self) {
        self.exchange.consents().forget(&self.key);
    }
}

impl Drop for Releasing {
    fn drop(&mut self) {
        self.exchange.consents().released(&self.key);
    }
}

/// When an acceptance counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::route) enum If {
    /// Whatever waits.
    Any,
    /// If something waits.
    Waiting,
}

/// It is worth a request.
fn is_kept(stanza: &Stanza) -> bool {
    match stanza.head.kind {
        Kind::Message(MessageType::Chat | MessageType::Normal) => classify(stanza).offline.yes,
        Kind::Presence(PresenceType::Subscribe | PresenceType::Unsubscribe) => true,
        _ => false,
    }
}

/// What a roster item says about the two. One that only holds a request says nothing.
fn relation(item: &Item) -> Option<Relation> {
    if item.subscription.in_roster() {
        Some(Relation::Contact)
    } else {
        item.listed.then_some(Relation::Conversation)
    }
}
