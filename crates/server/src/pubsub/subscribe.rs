//! Subscriptions come and go: s.6.1 to s.6.4, and an owner's approval (s.8.6).

use std::sync::Arc;
use std::time::Duration;

use trunkline_store::{Batch, Lane, Statement, StoreError, sql};
use trunkline_xml::{Node as Xml, Writer};
use trunkline_xmpp::error::{Condition, ErrorType, StanzaError};
use trunkline_xmpp::forms::{Field, Form, Submission};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, MessageType, Stanza};

use super::approvals::{Asking, Person};
use super::config::{Access, Filled, SendLast};
use super::node::{self, Affiliation, Node, Opened, Place, Subscription};
use super::options::SubscribeOptions;
use super::read::{forbidden, write_subscription};
use super::{Barred, Desk, errors};
use crate::exchange::Exchange;
use crate::logging::Refusal;
use crate::route::message::store_trouble;
use crate::route::{Mail, Origin};

/// Subscriptions to one node.
pub(super) const MOST_OF_NODE: i64 = 5000;
/// Subscriptions to one node of one domain that is not ours.
const MOST_OF_DOMAIN: i64 = 1000;
/// Subscriptions of one person at one place.
const MOST_OF_PERSON: i64 = 500;
/// Owners who are told of subscribers, and asked about them.
const MOST_TOLD: i64 = 20;
/// From one look for what has run out to the next.
const ROUND: Duration = Duration::from_secs(60);
/// What is ended in one round.
const ENDED_AT_ONCE: i64 = 1000;
/// FORM_TYPE of what owners are asked and answer (s.8.6).
pub(super) const AUTHORIZATION: &str = "http://jabber.org/protocol/pubsub#subscribe_authorization";

impl Desk {
    /// s.6.1.3.1: whom a request is for: one's own address, or that of one of one's own devices.
    pub(super) fn subscriber(&self, of: Xml<'_>) -> Result<Jid, StanzaError> {
        let jid = address(of)?;
        if jid.same_bare(&self.who) { Ok(jid) } else { Err(invalid_jid()) }
    }

    /// s.6.2.3.3: nobody ends what is somebody else's.
    pub(super) fn unsubscriber(&self, of: Xml<'_>) -> Result<Jid, StanzaError> {
        let jid = address(of)?;
        if jid.same_bare(&self.who) { Ok(jid) } else { Err(forbidden()) }
    }

    /// Subscribes `jid`; what to answer.
    pub(super) async fn subscribe(
        &self,
        name: &str,
        jid: Jid,
        options: Filled,
    ) -> Result<Vec<u8>, StanzaError> {
        let turn = self.turn_of_subscribers(name).await;
        let opened = self.open(name).await?;
        let node = &opened.node;
        let pending = self.admit_subscriber(&opened)?;
        let old = opened.subscriptions.iter().find(|subscription| subscription.jid == jid);
        if pending && old.is_some_and(|old| old.pending) {
            // s.6.1.3.7
            return Err(errors::specific(Condition::NotAuthorized, "pending-subscription"));
        }
        let before = old.map(|old| old.options).unwrap_or_default();
        let given = matches!(options, Filled::Form(_));
        let options = match options {
            Filled::Form(form) => before.submit(&form, self.now())?,
            Filled::Nothing | Filled::Cancelled => before,
        };
        if old.is_none() {
            self.room_for_subscription(node).await?;
        }
        let asking = if pending { self.approval(node)? } else { Asking::Asked };
        let subscription = Subscription { jid, pending, options, affiliation: opened.affiliation };
        if let Err(error) = self.save(put(node, &subscription), errors::no_node).await {
            if asking == Asking::Now {
                self.exchange.pubsub.approvals.take_back(&self.person(node));
            }
            return Err(error);
        }
        let mut w = Writer::new();
        w.open("pubsub").attr("xmlns", ns::PUBSUB);
        write_subscription(&mut w, &node.name, &subscription);
        // s.6.3.7
        if given {
            w.open("options");
            subscription.options.result().write(&mut w);
            w.close();
        }
        w.close();
        drop(turn);
        if asking == Asking::Now {
            self.ask_owners(node, &subscription.jid).await;
        } else if pending {
            tracing::debug!("owners were asked about a subscriber already");
        } else if old.is_none() {
            self.tell_owners(node, &subscription).await;
            self.send_last_to(node, &subscription).await;
        }
        Ok(w.finish())
    }

    /// Whether it has to be approved first.
    fn admit_subscriber(&self, opened: &Opened) -> Result<bool, StanzaError> {
        match self.may_read(opened) {
            // Who waits is asked about once more.
            Err(Barred::Subscription) => {}
            Err(barred) => return Err(barred.into()),
            Ok(()) => {}
        }
        if !opened.node.config.subscribe && opened.affiliation != Affiliation::Owner {
            return Err(errors::unsupported("subscribe"));
        }
        let approved = opened.is_subscribed() || opened.affiliation != Affiliation::None;
        Ok(opened.node.config.access == Access::Authorize && !approved)
    }

    async fn room_for_subscription(&self, node: &Node) -> Result<(), StanzaError> {
        let rows = self
            .exchange
            .db
            .read_in(
                self.lane,
                sql("SELECT (SELECT COUNT(*) FROM pubsub_subscriptions WHERE node = ?1), \
                     (SELECT COUNT(*) FROM pubsub_subscriptions s JOIN pubsub_nodes n ON n.id = s.node \
                     WHERE n.place = ?2 AND s.owner = ?3), \
                     (SELECT COUNT(*) FROM pubsub_subscriptions WHERE node = ?1 \
                     AND SUBSTR(owner, -LENGTH(?4)) = ?4)")
                .bind(node.id)
                .bind(self.place.key())
                .bind(self.who.bare_str())
                .bind(format!("@{}", self.who.domain())),
            )
            .await
            .map_err(|error| store_trouble(&error))?;
        let (of_node, own, of_domain) =
            rows.first().map_or((0, 0, 0), |row| (row.int(0), row.int(1), row.int(2)));
        // One domain elsewhere can't take all places.
        let domain_full = of_domain >= MOST_OF_DOMAIN && self.exchange.host(self.who.domain()).is_none();
        if of_node < MOST_OF_NODE && own < MOST_OF_PERSON && !domain_full {
            return Ok(());
        }
        let detail = "there are as many subscribers as there may be";
        let peer = self.who.as_str();
        self.exchange.refusals.report(Refusal { name: "too-many-subscriptions", peer, conn: 0, detail });
        // s.6.1.3.9
        Err(errors::specific(Condition::PolicyViolation, "too-many-subscriptions").kind(ErrorType::Wait).text(
            format!(
                "A node has {MOST_OF_NODE} subscribers at most, and {} more are possible; you may have {MOST_OF_PERSON} \
                 subscriptions here, and {} more are possible.",
                if domain_full { 0 } else { (MOST_OF_NODE - of_node).max(0) },
                (MOST_OF_PERSON - own).max(0)
            ),
        ))
    }

    /// Who asks for the owners' approval, as it is noted.
    pub(super) fn person(&self, node: &Node) -> Person {
        let outside = self.exchange.host(self.who.domain()).is_none();
        Person { node: node.id, who: self.who.bare(), outside }
    }

    /// Whether the owners are to be asked about them.
    fn approval(&self, node: &Node) -> Result<Asking, StanzaError> {
        let asking = self.exchange.pubsub.approvals.ask(&self.person(node), self.now());
        if asking != Asking::Full {
            return Ok(asking);
        }
        let detail = "owners are asked about as many as they may be asked about";
        let peer = self.who.as_str();
        self.exchange.refusals.report(Refusal { name: "pubsub-approvals-full", peer, conn: 0, detail });
        Err(StanzaError::new(Condition::ResourceConstraint)
            .kind(ErrorType::Wait)
            .text("Too many want to subscribe; ask again tomorrow."))
    }

    /// Runs a statement that must change something; `gone`: what it is about was not there any more.
    async fn save(
        &self,
        statement: Statement,
        gone: impl FnOnce() -> StanzaError,
    ) -> Result<(), StanzaError> {
        match self.exchange.db.run(Batch::new(self.lane).with(statement)).await {
            Ok(_) => Ok(()),
            Err(StoreError::Conflict) => Err(gone()),
            Err(error) => Err(store_trouble(&error)),
        }
    }

    /// s.6.1.7: a new subscriber gets the last item.
    pub(super) async fn send_last_to(&self, node: &Node, subscription: &Subscription) {
        if node.config.send_last == SendLast::Never || !subscription.options.deliver || !node.config.notify {
            return;
        }
        let not_before = node.config.kept_for().map_or(i64::MIN, |kept| self.now().saturating_sub(kept));
        match node::last_item(&self.exchange.db, self.lane, (node.id, not_before)).await {
            Ok(Some(item)) => self.send_last(self.last_item(node, &item, &subscription.jid)),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the last item can't be read"),
        }
    }

    /// s.6.2
    pub(super) async fn unsubscribe(&self, name: &str, jid: &Jid) -> Result<(), StanzaError> {
        let opened = self.open(name).await?;
        let none =
            || errors::specific(Condition::UnexpectedRequest, "not-subscribed").kind(ErrorType::Cancel);
        if !opened.subscriptions.iter().any(|subscription| subscription.jid == *jid) {
            return Err(none());
        }
        self.save(end(&opened.node, jid).must_change(), none).await?;
        self.tell_owners_of_end(&opened.node, jid).await;
        Ok(())
    }

    /// s.6.3: the form, or what was submitted.
    pub(super) async fn options(
        &self,
        name: &str,
        jid: Option<Jid>,
        submitted: Option<Filled>,
    ) -> Result<Option<Vec<u8>>, StanzaError> {
        let jid = jid.ok_or_else(|| errors::specific(Condition::BadRequest, "jid-required"))?;
        if !jid.same_bare(&self.who) {
            return Err(forbidden());
        }
        let opened = self.open(name).await?;
        let none =
            || errors::specific(Condition::UnexpectedRequest, "not-subscribed").kind(ErrorType::Modify);
        let found = opened.subscriptions.iter().find(|subscription| subscription.jid == jid);
        let Some(subscription) = found else { return Err(none()) };
        match submitted {
            None => {
                let mut w = Writer::new();
                w.open("pubsub").attr("xmlns", ns::PUBSUB);
                w.open("options").attr("node", name).attr("jid", jid.as_str());
                subscription.options.form().write(&mut w);
                w.close().close();
                Ok(Some(w.finish()))
            }
            Some(Filled::Cancelled) => Ok(None),
            Some(Filled::Nothing) => Err(errors::specific(Condition::BadRequest, "invalid-options")),
            Some(Filled::Form(form)) => {
                let options = subscription.options.submit(&form, self.now())?;
                let set = sql("UPDATE pubsub_subscriptions SET options = ?3, expires = ?4 \
                               WHERE node = ?1 AND jid = ?2")
                .bind(opened.node.id)
                .bind(jid.as_str())
                .bind(options.to_json())
                .bind(options.expires);
                self.save(set.must_change(), none).await?;
                Ok(None)
            }
        }
    }

    /// s.6.4: the options that a new subscription has.
    pub(super) fn default_options(&self, name: Option<&str>) -> Vec<u8> {
        let mut w = Writer::new();
        w.open("pubsub").attr("xmlns", ns::PUBSUB);
        w.open("default").attr_opt("node", name);
        SubscribeOptions::default().form().write(&mut w);
        w.close().close();
        w.finish()
    }

    /// The addresses of a node's owners, of the first so many.
    pub(super) async fn owners(&self, node: &Node, most: i64) -> Vec<Jid> {
        if let Place::Account(account) = &self.place {
            return vec![account.jid.clone()];
        }
        let owners = sql("SELECT jid FROM pubsub_affiliations WHERE node = ?1 AND affiliation = 'owner' \
                          ORDER BY jid LIMIT ?2")
        .bind(node.id)
        .bind(most);
        match self.exchange.db.read_in(self.lane, owners).await {
            Ok(rows) => rows.iter().filter_map(|row| Jid::parse(row.text(0)).ok()).collect(),
            Err(error) => {
                tracing::error!(%error, "a node's owners can't be read");
                Vec::new()
            }
        }
    }

    /// s.8.6: somebody wants to subscribe. The message waits for an owner who is not there, in the lane of who asks. To an
    /// owner who is not at home here nothing that somebody else from there asks for is kept.
    async fn ask_owners(&self, node: &Node, subscriber: &Jid) {
        let form = Form::form(AUTHORIZATION)
            .title("Somebody wants to subscribe")
            .instructions("Approve or deny the subscription.")
            .field(Field::text_single("pubsub#node").label("Node").value(&node.name))
            .field(Field::jid_single("pubsub#subscriber_jid").label("Who").value(subscriber.as_str()))
            .field(Field::boolean("pubsub#allow").label("Approve").value("0"));
        for owner in self.owners(node, MOST_TOLD).await {
            let stanza = Stanza::build(Kind::Message(MessageType::Normal))
                .from(self.place.jid().clone())
                .to(owner.clone())
                .id(self.exchange.ids.short())
                .body(|w| {
                    w.text_element("body", &format!("{subscriber} wants to subscribe to {}.", node.name));
                    form.write(w);
                })
                .done();
            let mail = match (self.lane, self.exchange.host(owner.domain())) {
                (Lane::Inside, _) => Mail::inside(stanza),
                (Lane::Outside, Some(_)) => Mail::new(stanza, Origin::Known),
                (Lane::Outside, None) => Mail::answer(stanza),
            };
            Box::pin(self.exchange.deliver(mail)).await;
        }
    }

    /// s.8.6: an owner's answer.
    async fn authorize(&self, form: &Submission) -> Result<(), StanzaError> {
        let (Some(name), Some(jid), Some(allow)) = (
            form.value("pubsub#node"),
            form.value("pubsub#subscriber_jid").and_then(|jid| Jid::parse(jid).ok()),
            form.boolean("pubsub#allow"),
        ) else {
            return Err(errors::bad("The form is not complete."));
        };
        let node = self.open_owned(name).await?.node;
        let rows = self
            .exchange
            .db
            .read_in(self.lane, node::subscribers(node.id, self.now()))
            .await
            .map_err(|error| store_trouble(&error))?;
        let found =
            node::read_subscriptions(&rows).into_iter().find(|found| found.jid == jid && found.pending);
        // Another owner was faster, or they have changed their mind.
        let Some(found) = found else { return Ok(()) };
        let subscription = Subscription { pending: false, ..found };
        let decided = if allow { approve(&node, &jid) } else { end(&node, &jid) };
        let batch = Batch::new(self.lane).with(decided);
        let results = self.exchange.db.run(batch).await.map_err(|error| store_trouble(&error))?;
        if results.first().is_none_or(|rows| rows.changes() == 0) {
            return Ok(());
        }
        self.tell_subscriber(&node, &jid, if allow { "subscribed" } else { "none" }).await;
        if allow {
            self.send_last_to(&node, &subscription).await;
        }
        Ok(())
    }

    /// A subscription has another state now.
    pub(super) async fn tell_subscriber(&self, node: &Node, jid: &Jid, state: &str) {
        self.tell_one(jid, |w| write_state(w, &node.name, jid.as_str(), state)).await;
    }

    async fn tell_owners(&self, node: &Node, subscription: &Subscription) {
        if node.config.notify_sub {
            self.tell_owners_that(node, &subscription.jid, subscription.state()).await;
        }
    }

    async fn tell_owners_of_end(&self, node: &Node, jid: &Jid) {
        if node.config.notify_sub {
            self.tell_owners_that(node, jid, "none").await;
        }
    }

    async fn tell_owners_that(&self, node: &Node, jid: &Jid, state: &str) {
        for owner in self.owners(node, MOST_TOLD).await {
            self.tell_one(&owner, |w| {
                w.open("pubsub").attr("xmlns", ns::PUBSUB);
                w.open("subscription")
                    .attr("node", &node.name)
                    .attr("jid", jid.as_str())
                    .attr("subscription", state)
                    .close();
                w.close();
            })
            .await;
        }
    }
}

/// The address that a request for a subscription is about.
fn address(of: Xml<'_>) -> Result<Jid, StanzaError> {
    of.attr("jid").and_then(|jid| Jid::parse(&jid).ok()).ok_or_else(invalid_jid)
}

fn invalid_jid() -> StanzaError {
    errors::specific(Condition::BadRequest, "invalid-jid")
}

/// The statement that makes a subscription, if the node is still there, or gives it other options. Who was approved
/// meanwhile stays approved.
pub(super) fn put(node: &Node, subscription: &Subscription) -> Statement {
    sql("INSERT INTO pubsub_subscriptions (node, jid, owner, pending, options, expires) \
         SELECT id, ?2, ?3, ?4, ?5, ?6 FROM pubsub_nodes WHERE id = ?1 AND redirect IS NULL \
         ON CONFLICT (node, jid) DO UPDATE SET pending = MIN(pending, excluded.pending), \
         options = excluded.options, expires = excluded.expires")
    .bind(node.id)
    .bind(subscription.jid.as_str())
    .bind(subscription.jid.bare_str())
    .bind(i64::from(subscription.pending))
    .bind(subscription.options.to_json())
    .bind(subscription.options.expires)
    .must_change()
}

/// The statement that approves a subscription.
pub(super) fn approve(node: &Node, jid: &Jid) -> Statement {
    sql("UPDATE pubsub_subscriptions SET pending = 0 WHERE node = ?1 AND jid = ?2 AND pending = 1")
        .bind(node.id)
        .bind(jid.as_str())
}

/// The statement that ends a subscription.
pub(super) fn end(node: &Node, jid: &Jid) -> Statement {
    sql("DELETE FROM pubsub_subscriptions WHERE node = ?1 AND jid = ?2").bind(node.id).bind(jid.as_str())
}

/// The form in a message that answers a request for approval.
pub fn authorization(stanza: &Stanza) -> Option<Submission> {
    let form = Submission::parse(stanza.child(ns::DATA_FORMS, "x")?).ok()?;
    let submitted = stanza.child(ns::DATA_FORMS, "x")?.attr("type").is_some_and(|kind| kind == "submit");
    (submitted && form.form_type() == Some(AUTHORIZATION)).then_some(form)
}

impl Exchange {
    /// An owner has answered a request for approval by a message to `place`.
    pub async fn authorize_subscription(desk: Desk, form: Submission, stanza: Stanza) {
        if let Err(error) = desk.authorize(&form).await {
            desk.exchange.bounce(&stanza, &error);
        }
    }

    /// Ends what has run out, and forgets who is gone for long.
    async fn tidy_pubsub(self: &Arc<Self>) -> Result<(), StoreError> {
        let now = self.clock().now();
        self.pubsub.watchers.sweep(now);
        let ended = self
            .db
            .read(
                sql("SELECT CASE WHEN n.place LIKE '#%' THEN a.local || '@' || h.name ELSE n.place END, n.name, s.jid \
                     FROM pubsub_subscriptions s JOIN pubsub_nodes n ON n.id = s.node \
                     LEFT JOIN accounts a ON a.id = n.account LEFT JOIN hosts h ON h.id = a.host_id \
                     WHERE s.expires <= ?1 ORDER BY s.expires LIMIT ?2")
                .bind(now)
                .bind(ENDED_AT_ONCE),
            )
            .await?;
        let batch = Batch::new(Lane::Inside)
            .with(
                sql("DELETE FROM pubsub_subscriptions WHERE (node, jid) IN (SELECT node, jid \
                     FROM pubsub_subscriptions WHERE expires <= ?1 ORDER BY expires LIMIT ?2)")
                .bind(now)
                .bind(ENDED_AT_ONCE),
            )
            .with(
                sql("DELETE FROM pubsub_items WHERE seq IN (SELECT i.seq FROM pubsub_nodes n \
                     JOIN pubsub_items i ON i.node = n.id WHERE n.kept_for IS NOT NULL \
                     AND i.at <= ?1 - n.kept_for LIMIT ?2)")
                .bind(now)
                .bind(ENDED_AT_ONCE),
            );
        self.db.run(batch).await?;
        for row in ended.iter() {
            let (Ok(from), Ok(to)) = (Jid::parse(row.text(0)), Jid::parse(row.text(2))) else { continue };
            let stanza = Stanza::build(Kind::Message(MessageType::Headline))
                .from(from)
                .to(to)
                .id(self.ids.short())
                .body(|w| write_state(w, row.text(1), row.text(2), "none"))
                .done();
            self.answer_with(stanza);
        }
        Ok(())
    }
}

/// Ends what has run out, until the server stops.
pub(crate) async fn keep(exchange: Arc<Exchange>) {
    loop {
        tokio::time::sleep(ROUND).await;
        if let Err(error) = exchange.tidy_pubsub().await {
            tracing::error!(%error, "what has run out of nodes and subscriptions could not be ended");
        }
    }
}

/// A subscription has another state now ("Notification of Subscription State Changes").
pub(super) fn write_state(w: &mut Writer, node: &str, jid: &str, state: &str) {
    w.open("event").attr("xmlns", ns::PUBSUB_EVENT);
    w.open("subscription").attr("node", node).attr("jid", jid).attr("subscription", state).close();
    w.close();
}
