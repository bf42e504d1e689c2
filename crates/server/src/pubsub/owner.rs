//! What owners do: make nodes (s.8.1), configure them (s.8.2), delete them (s.8.4), and look after subscriptions (s.8.8)
//! and affiliations (s.8.9).

use trunkline_store::{Batch, Rows, StoreError, sql};
use trunkline_xml::{Node as Xml, Writer};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

use super::config::{Filled, NodeConfig};
use super::node::{self, Affiliation, Node, Place, Subscription};
use super::notify::Event;
use super::read::forbidden;
use super::{Desk, Happened, errors, name_of, subscribe};
use crate::route::message::store_trouble;

/// Affiliations of one node.
const MOST_AFFILIATIONS: usize = 500;
/// Changes in one request.
const MOST_CHANGES: usize = 100;
/// Bytes of an address to look at instead.
const MOST_URI: usize = 2000;

impl Desk {
    /// Makes a node; its name (s.8.1).
    ///
    /// # Errors
    /// s.8.1.3; those of the configuration.
    pub async fn create(&self, name: Option<&str>, form: Filled) -> Result<String, StanzaError> {
        if !self.may_create() {
            return Err(forbidden());
        }
        let name = match name {
            Some(name) => name_of(name)?.to_owned(),
            // s.8.1.1: an instant node.
            None => crate::ids::token(12),
        };
        let config = match form {
            Filled::Form(form) => self.config_of_new(&name).submit(&form, &self.allowed())?,
            Filled::Nothing => self.config_of_new(&name),
            Filled::Cancelled => return Err(errors::bad("A form that is cancelled makes nothing.")),
        };
        let _turn = self.turn(self.payer()).await?;
        let mut batch = Batch::new(self.lane);
        match self.find(&name).await? {
            None => {}
            Some(opened) if opened.node.redirect.is_none() => return Err(taken()),
            // The mark of a node that has gone elsewhere makes room for a new one of the same owner.
            Some(opened) if opened.affiliation == Affiliation::Owner => {
                batch.push(sql("DELETE FROM pubsub_nodes WHERE id = ?1").bind(opened.node.id));
            }
            Some(_) => return Err(forbidden()),
        }
        self.create_in(&mut batch, &name, &config).await?;
        match self.exchange.db.run(batch).await {
            Err(StoreError::Conflict) => Err(taken()),
            Err(error) => Err(store_trouble(&error)),
            Ok(_) => Ok(name),
        }
    }

    /// The form of a node, or with no name that of a new one.
    pub(super) async fn configuration(&self, name: Option<&str>) -> Result<Vec<u8>, StanzaError> {
        let mut w = Writer::new();
        w.open("pubsub").attr("xmlns", ns::PUBSUB_OWNER);
        match name {
            Some(name) => {
                let opened = self.open_owned(name).await?;
                w.open("configure").attr("node", name);
                opened.node.config.form().write(&mut w);
            }
            None => {
                w.open("default");
                self.default_config().form().write(&mut w);
            }
        }
        w.close().close();
        Ok(w.finish())
    }

    /// s.8.2.4
    pub(super) async fn configure(&self, name: &str, form: Filled) -> Result<(), StanzaError> {
        let turn = self.turn(self.payer_of_owned(name)).await?;
        let node = self.open_owned(name).await?.node;
        let config = match form {
            Filled::Cancelled => return Ok(()),
            Filled::Nothing => return Err(errors::bad("There is no form.")),
            Filled::Form(form) => node.config.submit(&form, &self.allowed())?,
        };
        if config == node.config {
            return Ok(());
        }
        let gone = self.reconfigure(&node, config).await?;
        drop(turn);
        if !gone.is_empty() {
            self.changed(&node, Happened::Retracted(gone)).await;
        }
        self.changed(&node, Happened::Configured).await;
        Ok(())
    }

    /// What is kept in step with something does not go by itself: the other would stay.
    pub(super) fn may_be(&self, name: &str, config: &NodeConfig) -> Result<(), StanzaError> {
        let in_step = || self.place.account().is_some() && !self.exchange.modules.along(name).is_empty();
        if config.item_expire.is_some() && in_step() {
            return Err(StanzaError::new(Condition::NotAcceptable)
                .text("What this node holds is kept in step with other data and can't expire."));
        }
        Ok(())
    }

    /// The ids of the items for which there is no room any more.
    async fn reconfigure(&self, node: &Node, config: NodeConfig) -> Result<Vec<String>, StanzaError> {
        self.may_be(&node.name, &config)?;
        let most = config.items(&self.allowed());
        let kept = i64::try_from(most).unwrap_or(i64::MAX);
        let mut gone = self.ids(node).await?;
        gone.truncate(gone.len().saturating_sub(most));
        let mut batch = Batch::new(self.lane)
            .with(
                sql("UPDATE pubsub_nodes SET config = ?2, kept_for = ?3 WHERE id = ?1")
                    .bind(node.id)
                    .bind(serde_json::to_string(&config).unwrap_or_default())
                    .bind(config.kept_for())
                    .must_change(),
            )
            // What a node may not hold any more goes.
            .with(
                sql("DELETE FROM pubsub_items WHERE node = ?1 AND seq NOT IN \
                     (SELECT seq FROM pubsub_items WHERE node = ?1 ORDER BY seq DESC LIMIT ?2)")
                .bind(node.id)
                .bind(kept),
            );
        let along = match gone.is_empty() {
            true => Vec::new(),
            false => self.along(node, Happened::Retracted(gone.clone()), &[], &mut batch).await?,
        };
        self.exchange.db.run(batch).await.map_err(|error| self.refused(&error, &along))?;
        if config.notify_config {
            let node = Node { config, ..node.clone() };
            self.tell(&node, &Event::Config).await;
        }
        self.tell_along(&along).await;
        Ok(gone)
    }

    /// s.8.4; `redirect` is where to look instead.
    ///
    /// # Errors
    /// s.8.4.3.
    pub async fn delete(&self, name: &str, redirect: Option<&str>) -> Result<(), StanzaError> {
        if redirect.is_some_and(|uri| uri.is_empty() || uri.len() > MOST_URI) {
            return Err(errors::bad("The address to look at instead is none."));
        }
        let turn = self.turn(self.payer_of_owned(name)).await?;
        let node = self.open_owned(name).await?.node;
        // While there are still subscribers to tell; they are told after it is done.
        let mut batch = Batch::new(self.lane);
        let told = if node.config.notify_delete { Some(self.everybody(&node).await) } else { None };
        match redirect {
            None => {
                batch.push(sql("DELETE FROM pubsub_nodes WHERE id = ?1").bind(node.id).must_change());
            }
            Some(uri) => {
                batch.push(
                    sql("UPDATE pubsub_nodes SET redirect = ?2 WHERE id = ?1")
                        .bind(node.id)
                        .bind(uri)
                        .must_change(),
                );
                batch.push(sql("DELETE FROM pubsub_items WHERE node = ?1").bind(node.id));
                batch.push(sql("DELETE FROM pubsub_subscriptions WHERE node = ?1").bind(node.id));
            }
        }
        let along = self.along(&node, Happened::Deleted, &[], &mut batch).await?;
        self.exchange.db.run(batch).await.map_err(|error| self.refused(&error, &along))?;
        if let Some(told) = told {
            self.tell_them(&node, &Event::Delete(redirect), told);
        }
        self.tell_along(&along).await;
        drop(turn);
        self.changed(&node, Happened::Deleted).await;
        Ok(())
    }

    /// s.8.8.1: all subscriptions of a node.
    pub(super) async fn subscriptions(&self, name: &str) -> Result<Vec<u8>, StanzaError> {
        let node = self.open_owned(name).await?.node;
        let subscriptions = self.all_subscriptions(&node).await?;
        let mut w = Writer::new();
        w.open("pubsub").attr("xmlns", ns::PUBSUB_OWNER);
        w.open("subscriptions").attr("node", name);
        for subscription in subscriptions {
            w.open("subscription")
                .attr("jid", subscription.jid.as_str())
                .attr("subscription", subscription.state())
                .close();
        }
        w.close().close();
        Ok(w.finish())
    }

    async fn all_subscriptions(&self, node: &Node) -> Result<Vec<Subscription>, StanzaError> {
        let rows = self
            .exchange
            .db
            .read_in(self.lane, node::subscribers(node.id, self.now()))
            .await
            .map_err(|error| store_trouble(&error))?;
        Ok(node::read_subscriptions(&rows))
    }

    /// s.8.8.2: all that is asked for, or nothing of it. An owner subscribes people of this server, and others only if
    /// they have asked for it: else whoever has a node could make the server send to any address.
    pub(super) async fn set_subscriptions(
        &self,
        name: &str,
        wanted: Vec<(Jid, String)>,
    ) -> Result<(), StanzaError> {
        let turn = self.turn(self.payer_of_owned(name)).await?;
        let node = self.open_owned(name).await?.node;
        let before = self.all_subscriptions(&node).await?;
        let mut batch = Batch::new(self.lane);
        let mut changed = Vec::new();
        let mut new = 0;
        for (jid, state) in wanted {
            let old = before.iter().find(|subscription| subscription.jid == jid);
            if state == old.map_or("none", Subscription::state) {
                continue;
            }
            let (statement, state) = match (state.as_str(), old) {
                ("none", _) => (subscribe::end(&node, &jid), "none"),
                ("subscribed", Some(_)) => (subscribe::approve(&node, &jid), "subscribed"),
                ("subscribed", None) => {
                    if self.exchange.host(jid.domain()).is_none() {
                        return Err(StanzaError::new(Condition::NotAcceptable)
                            .text("Who is not at home here subscribes by themselves."));
                    }
                    new += 1;
                    (subscribe::put(&node, &Subscription::of(jid.clone())), "subscribed")
                }
                // We have no `unconfigured`, and nobody is asked to wait who did not ask.
                _ => {
                    return Err(StanzaError::new(Condition::NotAcceptable).text("No such state is possible."));
                }
            };
            batch.push(statement);
            changed.push((jid, state));
        }
        let most = usize::try_from(subscribe::MOST_OF_NODE).unwrap_or(usize::MAX);
        let left = most.saturating_sub(before.len());
        if new > left {
            return Err(StanzaError::new(Condition::ResourceConstraint)
                .text(format!("A node has {most} subscribers at most; {left} more are possible.")));
        }
        if !batch.is_empty() {
            self.exchange.db.run(batch).await.map_err(|error| store_trouble(&error))?;
        }
        drop(turn);
        for (jid, state) in changed {
            self.tell_subscriber(&node, &jid, state).await;
        }
        Ok(())
    }

    async fn all_affiliations(&self, node: &Node) -> Result<Vec<(Jid, Affiliation)>, StanzaError> {
        let rows: Rows = self
            .exchange
            .db
            .read_in(
                self.lane,
                sql("SELECT jid, affiliation FROM pubsub_affiliations WHERE node = ?1 ORDER BY jid")
                    .bind(node.id),
            )
            .await
            .map_err(|error| store_trouble(&error))?;
        let mut all: Vec<(Jid, Affiliation)> = rows
            .iter()
            .filter_map(|row| Some((Jid::parse(row.text(0)).ok()?, Affiliation::parse(row.text(1))?)))
            .collect();
        if let Place::Account(account) = &self.place {
            all.insert(0, (account.jid.clone(), Affiliation::Owner));
        }
        Ok(all)
    }

    /// s.8.9.1
    pub(super) async fn affiliations(&self, name: &str) -> Result<Vec<u8>, StanzaError> {
        let node = self.open_owned(name).await?.node;
        let mut w = Writer::new();
        w.open("pubsub").attr("xmlns", ns::PUBSUB_OWNER);
        w.open("affiliations").attr("node", name);
        for (jid, affiliation) in self.all_affiliations(&node).await? {
            w.open("affiliation").attr("jid", jid.as_str()).attr("affiliation", affiliation.name()).close();
        }
        w.close().close();
        Ok(w.finish())
    }

    /// s.8.9.2: all that is asked for, or nothing of it.
    pub(super) async fn set_affiliations(
        &self,
        name: &str,
        wanted: Vec<(Jid, Affiliation)>,
    ) -> Result<(), StanzaError> {
        let turn = self.turn(self.payer_of_owned(name)).await?;
        let node = self.open_owned(name).await?.node;
        let mut all = self.all_affiliations(&node).await?;
        let known = all.len();
        let unacceptable = |text: &str| StanzaError::new(Condition::NotAcceptable).text(text);
        let subscribed = self.all_subscriptions(&node).await?;
        let mut batch = Batch::new(self.lane);
        let (mut changed, mut ended, mut approved) = (Vec::new(), Vec::new(), Vec::new());
        for (jid, affiliation) in wanted {
            let jid = jid.bare();
            let before = all.iter().position(|(known, _)| *known == jid);
            if before.map_or(Affiliation::None, |at| all[at].1) == affiliation {
                continue;
            }
            if self.place.account().is_some_and(|account| account.jid == jid) {
                return Err(unacceptable("A person's nodes are the person's own."));
            }
            if affiliation == Affiliation::Owner && self.place.account().is_some() {
                return Err(unacceptable("A person's nodes have no other owner."));
            }
            match before {
                Some(at) => all[at].1 = affiliation,
                None => all.push((jid.clone(), affiliation)),
            }
            batch.push(match affiliation {
                Affiliation::None => sql("DELETE FROM pubsub_affiliations WHERE node = ?1 AND jid = ?2")
                    .bind(node.id)
                    .bind(jid.as_str()),
                _ => sql("INSERT INTO pubsub_affiliations (node, jid, affiliation) VALUES (?1, ?2, ?3) \
                          ON CONFLICT (node, jid) DO UPDATE SET affiliation = excluded.affiliation")
                .bind(node.id)
                .bind(jid.as_str())
                .bind(affiliation.name()),
            });
            let own = subscribed.iter().filter(|it| it.jid.same_bare(&jid));
            match affiliation {
                // s.8.9.2.1: who may not read is not subscribed.
                Affiliation::Outcast | Affiliation::PublishOnly => {
                    batch.push(
                        sql("DELETE FROM pubsub_subscriptions WHERE node = ?1 AND owner = ?2")
                            .bind(node.id)
                            .bind(jid.as_str()),
                    );
                    ended.extend(own.map(|it| &it.jid));
                }
                // s.4.1: who may subscribe whatever the access model does not wait for approval.
                Affiliation::Owner | Affiliation::Publisher | Affiliation::Member => {
                    for waiting in own.filter(|it| it.pending) {
                        batch.push(subscribe::approve(&node, &waiting.jid));
                        approved.push(waiting);
                    }
                }
                Affiliation::None => {}
            }
            changed.push((jid, affiliation));
        }
        all.retain(|(_, affiliation)| *affiliation != Affiliation::None);
        if !all.iter().any(|(_, affiliation)| *affiliation == Affiliation::Owner) {
            return Err(unacceptable("A node has at least one owner."));
        }
        if all.len() > MOST_AFFILIATIONS && all.len() > known {
            return Err(StanzaError::new(Condition::ResourceConstraint).text(format!(
                "A node has {MOST_AFFILIATIONS} affiliations at most; {} more are possible.",
                MOST_AFFILIATIONS.saturating_sub(known)
            )));
        }
        if !batch.is_empty() {
            self.exchange.db.run(batch).await.map_err(|error| store_trouble(&error))?;
        }
        drop(turn);
        // s.8.9.4. Who is not at home here and has nothing to do with the node gets no message: its owner writes what
        // is in it.
        let known = |jid: &Jid| {
            self.exchange.host(jid.domain()).is_some() || subscribed.iter().any(|it| it.jid.same_bare(jid))
        };
        for (jid, affiliation) in changed {
            if !known(&jid) {
                continue;
            }
            self.tell_one(&jid, |w| {
                w.open("pubsub").attr("xmlns", ns::PUBSUB);
                w.open("affiliations").attr("node", &node.name);
                w.open("affiliation")
                    .attr("jid", jid.as_str())
                    .attr("affiliation", affiliation.name())
                    .close();
                w.close().close();
            })
            .await;
        }
        // s.8.8, "Notifying Subscribers": and of what became of their subscriptions.
        for jid in ended {
            self.tell_subscriber(&node, jid, "none").await;
        }
        for waiting in approved {
            self.tell_subscriber(&node, &waiting.jid, "subscribed").await;
            self.send_last_to(&node, waiting).await;
        }
        Ok(())
    }
}

/// s.8.1.3
fn taken() -> StanzaError {
    StanzaError::new(Condition::Conflict).text("There is a node of that name.")
}

/// The changes that a `<subscriptions/>` or `<affiliations/>` asks for: addresses and what they are to be. Each address
/// once (s.8.9.2.4).
pub(super) fn changes(parent: Xml<'_>, name: &str) -> Result<Vec<(Jid, String)>, StanzaError> {
    let mut changes: Vec<(Jid, String)> = Vec::new();
    for child in parent.children().filter(|child| child.is(ns::PUBSUB_OWNER, name)) {
        let jid = child.attr("jid").ok_or_else(|| errors::bad("An address is missing."))?;
        let jid = Jid::parse(&jid).map_err(|_| StanzaError::new(Condition::JidMalformed))?;
        let value = child.attr(name).ok_or_else(|| errors::bad("It is not said what it is to be."))?;
        if changes.iter().any(|(known, _)| *known == jid) {
            return Err(errors::bad("An address stands there twice."));
        }
        if changes.len() == MOST_CHANGES {
            return Err(errors::bad("So many can't be changed at once."));
        }
        changes.push((jid, value.into_owned()));
    }
    if changes.is_empty() {
        return Err(errors::bad("There is nothing to change."));
    }
    Ok(changes)
}
