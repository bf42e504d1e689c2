//! Items come and go: publish (s.7.1), retract (s.7.2), purge (s.8.5).

use bytes::Bytes;
use trunkline_store::{Batch, Rows, Statement, sql};
use trunkline_xmpp::error::{Condition, ErrorType, StanzaError};
use trunkline_xmpp::jid::Jid;

use super::config::{Access, NodeConfig, WhenFull};
use super::node::{Affiliation, Item, Node, Opened, Payer, Place};
use super::notify::Event;
use super::{Desk, Happened, NewItem, Terms, errors, name_of};
use crate::route::message::store_trouble;

/// What all domains elsewhere together may have at a service, where they make nodes: so many times what one has.
const SHARES_OUTSIDE: usize = 10;
/// Items in one request.
pub(super) const MOST_AT_ONCE: usize = 100;

/// Binds `?1` and `?2` to what [`of_node`]'s text finds the node by.
pub(super) fn on_node(text: &'static str, place: &str, name: &str) -> Statement {
    sql(text).bind(place).bind(name)
}

/// How much of what there may be there is.
struct Stock {
    items: usize,
    /// Of all nodes that the same account or domain pays for.
    bytes: usize,
    /// Of all nodes at the place that domains elsewhere pay for, if this is one of them.
    bytes_outside: usize,
    /// Bytes of the items that are replaced, and their number.
    replaced: (usize, usize),
    /// The oldest, first.
    oldest: Vec<String>,
}

impl Desk {
    /// Publishes; the ids of the items, in their order.
    ///
    /// # Errors
    /// s.7.1.3, and `precondition-not-met` of s.7.1.5.
    pub async fn publish(
        &self,
        name: &str,
        items: Vec<NewItem>,
        terms: Terms,
    ) -> Result<Vec<String>, StanzaError> {
        let name = name_of(name)?;
        let turn = self.turn(self.payer_of_published(name)).await?;
        let opened = self.look(name).await?;
        let mut batch = Batch::new(self.lane);
        let node = match &opened {
            Some(opened) => {
                self.admit(opened, &terms)?;
                let mut node = opened.node.clone();
                if matches!(terms, Terms::Private) {
                    self.close(&mut node, &mut batch);
                }
                node
            }
            None => self.make(name, &terms, &mut batch).await?,
        };
        let items = self.worded(&node.config, items)?;
        let kept = node.config.items(&self.allowed());
        let mut gone = Vec::new();
        if kept > 0 && !items.is_empty() {
            gone = self.store(&node, &items, kept, &mut batch).await?;
        }
        let along = match kept {
            0 => Vec::new(),
            _ => self.along(&node, Happened::Published(items.clone()), &gone, &mut batch).await?,
        };
        self.exchange.db.run(batch).await.map_err(|error| self.refused(&error, &along))?;
        // The store gave a new node its number.
        let node = if opened.is_some() { node } else { self.open(name).await?.node };
        if node.config.notify {
            self.tell(&node, &Event::Items(&items)).await;
        }
        if !gone.is_empty() && node.config.when_full == WhenFull::RetractOldest && node.config.notify_retract
        {
            self.tell(&node, &Event::Retract(&gone)).await;
        }
        self.tell_along(&along).await;
        drop(turn);
        let ids = items.iter().map(|item| item.id.clone()).collect();
        if !gone.is_empty() {
            self.changed(&node, Happened::Retracted(gone)).await;
        }
        self.changed(&node, Happened::Published(items)).await;
        Ok(ids)
    }

    /// For [`Desk::turn`]: who pays for the node that they want to publish to, if they may.
    async fn payer_of_published(&self, name: &str) -> Result<Payer, StanzaError> {
        match self.look_to_change(name).await? {
            Some(opened) if self.may_publish(&opened) => Ok(opened.node.payer),
            Some(_) => Err(StanzaError::new(Condition::Forbidden)),
            None => {
                self.may_make()?;
                self.payer().await
            }
        }
    }

    /// The node is there: may they publish, and is it as they want it?
    fn admit(&self, opened: &Opened, terms: &Terms) -> Result<(), StanzaError> {
        if !self.may_publish(opened) {
            return Err(StanzaError::new(Condition::Forbidden));
        }
        let Terms::Options(form) = terms else { return Ok(()) };
        let config = &opened.node.config;
        let demanded = config.demand(form, &self.allowed());
        let unmet = |text: String| errors::specific(Condition::Conflict, "precondition-not-met").text(text);
        let demanded = demanded.map_err(|error| unmet(error.to_string()))?;
        match config.difference(&demanded) {
            Some(field) => Err(unmet(format!("pubsub#{field} of the node is another."))),
            None => Ok(()),
        }
    }

    /// s.7.1.4: the node is made for what is published.
    async fn make(&self, name: &str, terms: &Terms, batch: &mut Batch) -> Result<Node, StanzaError> {
        self.may_make()?;
        let config = match terms {
            Terms::Any => self.config_of_new(name),
            Terms::Private => NodeConfig { access: Access::Whitelist, ..self.config_of_new(name) },
            Terms::Options(form) => {
                self.config_of_new(name).demand(form, &self.allowed()).map_err(|error| {
                    errors::specific(Condition::Conflict, "precondition-not-met").text(error.to_string())
                })?
            }
        };
        self.create_in(batch, name, &config).await
    }

    /// Whether a node is made for what they publish.
    fn may_make(&self) -> Result<(), StanzaError> {
        if self.may_create() {
            return Ok(());
        }
        // Somebody else's account: nobody but its user makes nodes there, and nobody learns which there are.
        Err(match self.place {
            Place::Account(_) => StanzaError::new(Condition::Forbidden),
            Place::Service(_) => errors::no_node(),
        })
    }

    /// The items with ids, if they are as they must be (s.7.1.3).
    fn worded(&self, config: &NodeConfig, items: Vec<NewItem>) -> Result<Vec<Item>, StanzaError> {
        let allowed = self.allowed();
        let most = config.max_payload.unwrap_or(allowed.payload).min(allowed.payload);
        if items.len() > MOST_AT_ONCE || (config.persist && items.len() > config.items(&allowed).max(1)) {
            return Err(errors::specific(Condition::NotAllowed, "max-items-exceeded").text(format!(
                "{} items can be published at once here.",
                config.items(&allowed).min(MOST_AT_ONCE)
            )));
        }
        if items.is_empty() && (config.persist || config.payloads) {
            return Err(errors::specific(Condition::BadRequest, "item-required"));
        }
        // s.7.1.3.6: nothing is kept, and nobody would be told what is in it.
        if !items.is_empty() && !config.persist && !config.payloads {
            return Err(errors::specific(Condition::BadRequest, "item-forbidden"));
        }
        let publisher = self.who.bare_str().to_owned();
        let mut worded: Vec<Item> = Vec::with_capacity(items.len());
        for item in items {
            if item.payload.is_empty() && config.payloads {
                return Err(errors::specific(Condition::BadRequest, "payload-required"));
            }
            if item.payload.len() > most {
                return Err(errors::specific(Condition::NotAcceptable, "payload-too-big").text(format!(
                    "An item may have {most} bytes here; this one has {}.",
                    item.payload.len()
                )));
            }
            let id = match item.id {
                Some(id) => name_of(&id)?.to_owned(),
                // s.7.1.2.1: the service gives one.
                None => self.exchange.ids.short(),
            };
            // The last one of an id counts, as if they had come one by one.
            worded.retain(|other| other.id != id);
            worded.push(Item {
                id,
                payload: Bytes::from(item.payload),
                publisher: publisher.clone(),
                at: self.now(),
            });
        }
        Ok(worded)
    }

    /// Adds the statements that keep `items`; the ids of those that go for them.
    async fn store(
        &self,
        node: &Node,
        items: &[Item],
        kept: usize,
        batch: &mut Batch,
    ) -> Result<Vec<String>, StanzaError> {
        let stock = self.stock(node, items).await?;
        let count = stock.items + items.len() - stock.replaced.1;
        let over = count.saturating_sub(kept);
        if over > 0 && node.config.when_full == WhenFull::Reject {
            return Err(errors::specific(Condition::Conflict, "node-full")
                .text(format!("The node holds {kept} items.")));
        }
        let most = self.exchange.config.load().limits.pubsub_bytes;
        let new: usize = items.iter().map(|item| self.size(&node.name, item)).sum();
        let after = |bytes: usize| bytes.saturating_sub(stock.replaced.0) + new;
        let most_outside = most.saturating_mul(SHARES_OUTSIDE);
        if after(stock.bytes) > most || after(stock.bytes_outside) > most_outside {
            let left = most.saturating_sub(stock.bytes).min(most_outside.saturating_sub(stock.bytes_outside));
            return Err(StanzaError::new(Condition::ResourceConstraint)
                .text(format!("{most} bytes of items may be kept; {left} are left, this takes {new}.")));
        }
        for item in items {
            self.put_item(&node.name, item, batch);
        }
        if over == 0 {
            return Ok(Vec::new());
        }
        batch.push(self.trim(&node.name, kept));
        let is_new = |id: &String| items.iter().any(|item| item.id == *id);
        Ok(stock.oldest.into_iter().filter(|id| !is_new(id)).take(over).collect())
    }

    /// Adds the statements that keep an item; one of that id goes.
    pub(super) fn put_item(&self, node: &str, item: &Item, batch: &mut Batch) {
        self.remove_item(node, &item.id, batch);
        batch.push(
            on_node(
                "INSERT INTO pubsub_items (node, item, payload, publisher, at, size) \
                 SELECT id, ?3, ?4, ?5, ?6, ?7 FROM pubsub_nodes WHERE place = ?1 AND name = ?2",
                &self.place.key(),
                node,
            )
            .bind(item.id.as_str())
            .bind(item.payload.to_vec())
            .bind(item.publisher.as_str())
            .bind(item.at)
            .bind(i64::try_from(self.size(node, item)).unwrap_or(i64::MAX))
            .must_change(),
        );
    }

    /// What an item counts: its name is kept as well.
    fn size(&self, node: &str, item: &Item) -> usize {
        let counts = self.place.account().is_none() || !self.exchange.modules.is_copy(node);
        if counts { item.payload.len() + item.id.len() } else { 0 }
    }

    /// Adds the statement that takes an item away.
    pub(super) fn remove_item(&self, node: &str, id: &str, batch: &mut Batch) {
        batch.push(
            on_node(
                "DELETE FROM pubsub_items WHERE item = ?3 \
                 AND node = (SELECT id FROM pubsub_nodes WHERE place = ?1 AND name = ?2)",
                &self.place.key(),
                node,
            )
            .bind(id),
        );
    }

    /// Leaves the newest items.
    pub(super) fn trim(&self, node: &str, kept: usize) -> Statement {
        on_node(
            "DELETE FROM pubsub_items WHERE node = (SELECT id FROM pubsub_nodes WHERE place = ?1 AND name = ?2) \
             AND seq < (SELECT MIN(seq) FROM (SELECT seq FROM pubsub_items \
             WHERE node = (SELECT id FROM pubsub_nodes WHERE place = ?1 AND name = ?2) \
             ORDER BY seq DESC LIMIT ?3))",
            &self.place.key(),
            node,
        )
        .bind(i64::try_from(kept).unwrap_or(i64::MAX))
    }

    async fn stock(&self, node: &Node, items: &[Item]) -> Result<Stock, StanzaError> {
        let (account, domain) = node.payer.columns();
        let mut statements = vec![
            sql("SELECT COUNT(*) FROM pubsub_items WHERE node = ?1").bind(node.id),
            sql("SELECT COALESCE(SUM(i.size) FILTER (WHERE n.payer IS ?3), 0), COALESCE(SUM(i.size), 0) \
                 FROM pubsub_items i JOIN pubsub_nodes n ON n.id = i.node WHERE n.place = ?1 AND n.account IS ?2")
            .bind(self.place.key())
            .bind(account)
            .bind(domain),
            // What goes is among as many as come, and those that are replaced beside.
            sql("SELECT item FROM pubsub_items WHERE node = ?1 ORDER BY seq LIMIT ?2")
                .bind(node.id)
                .bind(i64::try_from(items.len() * 2 + MOST_AT_ONCE).unwrap_or(i64::MAX)),
        ];
        statements.extend(items.iter().map(|item| {
            sql("SELECT size FROM pubsub_items WHERE node = ?1 AND item = ?2")
                .bind(node.id)
                .bind(item.id.as_str())
        }));
        let results =
            self.exchange.db.read_all(self.lane, statements).await.map_err(|error| store_trouble(&error))?;
        let number = |rows: Option<&Rows>| {
            let row = rows.and_then(Rows::first);
            row.and_then(|row| usize::try_from(row.int(0)).ok()).unwrap_or(0)
        };
        let old: Vec<usize> =
            results.iter().skip(3).filter(|rows| !rows.is_empty()).map(|rows| number(Some(rows))).collect();
        Ok(Stock {
            items: number(results.first()),
            bytes: number(results.get(1)),
            bytes_outside: match node.payer {
                Payer::Account(_) => 0,
                Payer::Domain(_) => {
                    let row = results.get(1).and_then(Rows::first);
                    row.and_then(|row| usize::try_from(row.int(1)).ok()).unwrap_or(0)
                }
            },
            replaced: (old.iter().sum(), old.len()),
            oldest: results
                .get(2)
                .map(|rows| rows.iter().map(|row| row.text(0).to_owned()).collect())
                .unwrap_or_default(),
        })
    }

    /// Takes items back; those that were not there are passed over if the server does it.
    ///
    /// # Errors
    /// s.7.2.3.
    pub async fn retract(&self, name: &str, ids: &[String], notify: bool) -> Result<(), StanzaError> {
        if ids.is_empty() {
            return Err(errors::specific(Condition::BadRequest, "item-required"));
        }
        if ids.len() > MOST_AT_ONCE {
            return Err(errors::bad("So many items can't be retracted at once."));
        }
        let turn = self
            .turn(async {
                let opened = self.open(name).await?;
                self.may_retract(&opened, ids).await?;
                Ok(opened.node.payer)
            })
            .await?;
        let opened = self.open(name).await?;
        let node = &opened.node;
        self.may_retract(&opened, ids).await?;
        let mut batch = Batch::new(self.lane);
        for id in ids {
            batch.push(
                sql("DELETE FROM pubsub_items WHERE node = ?1 AND item = ?2").bind(node.id).bind(id.as_str()),
            );
        }
        let along = self.along(node, Happened::Retracted(ids.to_vec()), &[], &mut batch).await?;
        let results = self.exchange.db.run(batch).await.map_err(|error| self.refused(&error, &along))?;
        let gone: Vec<String> = ids
            .iter()
            .zip(&results)
            .filter(|(_, rows)| rows.changes() > 0)
            .map(|(id, _)| id.clone())
            .collect();
        // s.7.2.2.1: asked for, or the node's way.
        if !gone.is_empty() && (notify || node.config.notify_retract) {
            self.tell(node, &Event::Retract(&gone)).await;
        }
        self.tell_along(&along).await;
        drop(turn);
        if !gone.is_empty() {
            self.changed(node, Happened::Retracted(gone)).await;
        }
        Ok(())
    }

    /// Publishers take back their own items, owners any.
    async fn may_retract(&self, opened: &Opened, ids: &[String]) -> Result<(), StanzaError> {
        if !self.may_publish(opened) {
            return Err(StanzaError::new(Condition::Forbidden));
        }
        if !opened.node.config.persist {
            return Err(errors::unsupported("persistent-items"));
        }
        let statements = ids.iter().map(|id| {
            sql("SELECT publisher FROM pubsub_items WHERE node = ?1 AND item = ?2")
                .bind(opened.node.id)
                .bind(id.as_str())
        });
        let found = self
            .exchange
            .db
            .read_all(self.lane, statements.collect())
            .await
            .map_err(|error| store_trouble(&error))?;
        let publishers: Vec<Option<Jid>> =
            found.iter().map(|rows| rows.first().and_then(|row| Jid::parse(row.text(0)).ok())).collect();
        // XEP-0060 "Batch Processing": one that fails fails all.
        if !self.ours && found.iter().any(Rows::is_empty) {
            return Err(StanzaError::new(Condition::ItemNotFound));
        }
        let own = |publisher: &Option<Jid>| publisher.as_ref().is_some_and(|jid| jid.same_bare(&self.who));
        if opened.affiliation != Affiliation::Owner && !publishers.iter().all(own) {
            return Err(StanzaError::new(Condition::Forbidden));
        }
        Ok(())
    }

    /// Takes all items back.
    ///
    /// # Errors
    /// s.8.5.3.
    pub async fn purge(&self, name: &str) -> Result<(), StanzaError> {
        let turn = self.turn(self.payer_of_owned(name)).await?;
        let opened = self.open_owned(name).await?;
        if !opened.node.config.persist {
            return Err(errors::unsupported("persistent-items"));
        }
        let purge = sql("DELETE FROM pubsub_items WHERE node = ?1").bind(opened.node.id);
        let mut batch = Batch::new(self.lane).with(purge);
        let along = self.along(&opened.node, Happened::Purged, &[], &mut batch).await?;
        self.exchange.db.run(batch).await.map_err(|error| self.refused(&error, &along))?;
        // s.8.5.2
        if opened.node.config.notify_retract {
            self.tell(&opened.node, &Event::Purge).await;
        }
        self.tell_along(&along).await;
        drop(turn);
        self.changed(&opened.node, Happened::Purged).await;
        Ok(())
    }

    /// They may make nodes here.
    pub(super) fn may_create(&self) -> bool {
        match &self.place {
            Place::Account(_) => self.is_own(),
            Place::Service(service) => self.exchange.may_create_at(service, &self.who),
        }
    }

    /// Who pays for what they make at a service: their account, if it is one of ours, else their domain.
    pub(super) async fn payer(&self) -> Result<Payer, StanzaError> {
        let domain = || Payer::Domain(self.who.domain().to_owned());
        let local = self.exchange.host(self.who.domain()).and_then(|_| self.who.local());
        let Some(local) = local else { return Ok(domain()) };
        let account = sql(
            "SELECT a.id FROM accounts a JOIN hosts h ON h.id = a.host_id WHERE h.name = ?1 AND a.local = ?2",
        )
        .bind(self.who.domain())
        .bind(local);
        let rows =
            self.exchange.db.read_in(self.lane, account).await.map_err(|error| store_trouble(&error))?;
        Ok(rows.first().map_or_else(domain, |row| Payer::Account(row.int(0))))
    }

    /// Adds the statements that make a node, if there is room for it.
    pub(super) async fn create_in(
        &self,
        batch: &mut Batch,
        name: &str,
        config: &NodeConfig,
    ) -> Result<Node, StanzaError> {
        self.may_be(name, config)?;
        let key = self.place.key();
        let payer = match &self.place {
            Place::Account(account) => Payer::Account(account.id),
            Place::Service(_) => self.payer().await?,
        };
        let (account, domain) = payer.columns();
        let counted = sql("SELECT COUNT(*), COUNT(*) FILTER (WHERE account IS ?2 AND payer IS ?3), \
             COUNT(*) FILTER (WHERE account IS NULL) FROM pubsub_nodes WHERE place = ?1")
        .bind(key.as_str())
        .bind(account)
        .bind(domain);
        let rows =
            self.exchange.db.read_in(self.lane, counted).await.map_err(|error| store_trouble(&error))?;
        let row = rows.first().ok_or_else(|| StanzaError::new(Condition::InternalServerError))?;
        let limits = &self.exchange.config.load().limits;
        let (own, all) = (limits.pubsub_nodes, limits.pubsub_service_nodes);
        let count = |column| usize::try_from(row.int(column)).unwrap_or(usize::MAX);
        let full = match &self.place {
            Place::Account(_) => (count(0) >= own).then_some(own),
            Place::Service(_) if count(0) >= all => Some(all),
            // Nor do they take all places by many domains.
            Place::Service(_) if account.is_none() && count(2) >= own.saturating_mul(SHARES_OUTSIDE) => {
                Some(own)
            }
            Place::Service(_) => (count(1) >= own).then_some(own),
        };
        if let Some(most) = full {
            return Err(StanzaError::new(Condition::ResourceConstraint)
                .kind(ErrorType::Cancel)
                .text(format!("There may be {most} nodes, and none is left.")));
        }
        let json = serde_json::to_string(config).unwrap_or_default();
        batch.push(
            // Somebody who makes one of the same name at a service at this moment is not waited for.
            sql("INSERT INTO pubsub_nodes (account, place, name, config, created_at, kept_for, payer) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (place, name) DO NOTHING")
            .bind(account)
            .bind(key.as_str())
            .bind(name)
            .bind(json)
            .bind(self.now())
            .bind(config.kept_for())
            .bind(domain)
            .must_change(),
        );
        if let Place::Service(_) = self.place {
            batch.push(
                on_node(
                    "INSERT INTO pubsub_affiliations (node, jid, affiliation) \
                     SELECT id, ?3, 'owner' FROM pubsub_nodes WHERE place = ?1 AND name = ?2",
                    &key,
                    name,
                )
                .bind(self.who.bare_str()),
            );
        }
        Ok(Node {
            id: 0,
            name: name.to_owned(),
            config: config.clone(),
            created_at: self.now(),
            payer,
            redirect: None,
        })
    }
}
