//! What changes along with a node: what is kept in step with it is written in the same batch, so that neither is ever seen
//! without the other. Modules say what it is ([`crate::modules::Module::along`]); a place is locked meanwhile, and only one.

use std::pin::Pin;
use std::sync::Arc;

use trunkline_store::{Batch, Statement, StoreError, sql};
use trunkline_xmpp::error::{Condition, StanzaError};

use super::config::{Access, NodeConfig};
use super::node::{Item, Node, Opened};
use super::notify::Event;
use super::publish::on_node;
use super::{Desk, Happened, NewItem, errors};
use crate::route::message::store_trouble;

/// A node of an account is about to change. For [`crate::modules::Module::along`].
#[derive(Clone, Debug)]
pub struct Coming {
    /// The server's own desk at the account. Its [`Desk::items`] are as they were; nothing may be changed by it.
    pub desk: Desk,
    /// The node's name.
    pub node: String,
    /// What is going to happen. Items that others push out are not named in [`Happened::Published`].
    pub what: Happened,
    /// The items that go for those that come.
    pub gone: Vec<String>,
}

/// What else is to change.
#[derive(Clone, Debug)]
pub enum Also {
    /// Items of another node of the same account.
    Items(Box<Items>),
    /// Rows of other tables, of the same account.
    Rows(Vec<Statement>),
}

/// What changes in another node.
#[derive(Clone, Debug)]
pub struct Items {
    /// Its name.
    pub node: &'static str,
    /// If the node has to be made, it is made like this. If this is private, what is there becomes private.
    pub made_as: NodeConfig,
    /// These items come.
    pub put: Vec<NewItem>,
    /// These go.
    pub take: Take,
}

/// Items that go.
#[derive(Clone, Debug)]
pub enum Take {
    /// Those with these ids.
    Ids(Vec<String>),
    /// All that do not come.
    Others,
}

/// What a module says to it.
pub type Along =
    Arc<dyn Fn(Coming) -> Pin<Box<dyn Future<Output = Result<Vec<Also>, StanzaError>> + Send>> + Send + Sync>;

/// [`Items`], as far as it was found to be a change; to be told of when it is on disk.
pub(super) struct Told {
    name: &'static str,
    put: Vec<Item>,
    take: Vec<String>,
}

impl Desk {
    /// Adds to `batch` what changes along with the node.
    ///
    /// # Errors
    /// Those of the modules, which refuse the change as a whole; the store's.
    pub(super) async fn along(
        &self,
        node: &Node,
        what: Happened,
        gone: &[String],
        batch: &mut Batch,
    ) -> Result<Vec<Told>, StanzaError> {
        let Some(account) = self.place.account() else { return Ok(Vec::new()) };
        let hooks = self.exchange.modules.along(&node.name);
        if hooks.is_empty() {
            return Ok(Vec::new());
        }
        let desk = Desk { lane: self.lane, ..self.exchange.pep(account) };
        let mut all = Vec::new();
        let grows = matches!(what, Happened::Published(_));
        for hook in hooks {
            let coming = Coming {
                desk: desk.clone(),
                node: node.name.clone(),
                what: what.clone(),
                gone: gone.to_vec(),
            };
            all.extend(hook(coming).await?);
        }
        desk.add_all(all, grows, batch).await
    }

    /// Changes several things of the account at once, which `plan` is asked for while the place is locked: all of them or,
    /// if one fails, none. What changes along with one of them is for `plan` to say.
    ///
    /// # Errors
    /// Those of `plan`; quotas; the store's.
    pub async fn together<F, Fut>(&self, plan: F) -> Result<(), StanzaError>
    where
        F: FnOnce(Desk) -> Fut,
        Fut: Future<Output = Result<Vec<Also>, StanzaError>> + Send,
    {
        let _turn = self.exchange.pubsub.turn(&self.place.key()).await;
        let all = plan(self.clone()).await?;
        let mut batch = Batch::new(self.lane);
        let told = self.add_all(all, false, &mut batch).await?;
        if batch.is_empty() {
            return Ok(());
        }
        self.exchange.db.run(batch).await.map_err(|error| self.refused(&error, &told))?;
        self.tell_along(&told).await;
        Ok(())
    }

    /// Adds the statements of all of them; `grows`: more bytes come beside them.
    async fn add_all(
        &self,
        all: Vec<Also>,
        mut grows: bool,
        batch: &mut Batch,
    ) -> Result<Vec<Told>, StanzaError> {
        let mut told = Vec::new();
        for also in all {
            match also {
                Also::Items(items) => {
                    grows |= !items.put.is_empty();
                    told.extend(self.add(*items, batch).await?);
                }
                Also::Rows(rows) => rows.into_iter().for_each(|row| {
                    batch.push(row);
                }),
            }
        }
        if grows && !told.is_empty() {
            batch.push(self.room());
        }
        Ok(told)
    }

    /// Adds the statements of one.
    async fn add(&self, also: Items, batch: &mut Batch) -> Result<Option<Told>, StanzaError> {
        if also.put.is_empty() && matches!(&also.take, Take::Ids(ids) if ids.is_empty()) {
            return Ok(None);
        }
        // One that has gone elsewhere (s.8.4.1) is not followed there.
        let opened = match self.look(also.node).await {
            Err(error) if error.condition == Condition::Gone => return Ok(None),
            other => other?,
        };
        let allowed = self.allowed();
        let (config, there) = match opened {
            Some(Opened { mut node, .. }) => {
                let there = self.ids(&node).await?;
                if also.made_as.access == Access::Whitelist {
                    self.close(&mut node, batch);
                }
                (node.config, there)
            }
            None if also.put.is_empty() => return Ok(None),
            None => (self.create_in(batch, also.node, &also.made_as).await?.config, Vec::new()),
        };
        // Nothing is pushed out here: then the two would differ.
        let most = config.items(&allowed);
        let comes = |id: &str| also.put.iter().any(|item| item.id.as_deref() == Some(id));
        let take: Vec<String> = match also.take {
            Take::Ids(ids) => ids,
            Take::Others => there.iter().filter(|id| !comes(id)).cloned().collect(),
        };
        if also.put.is_empty() && take.is_empty() {
            return Ok(None);
        }
        let stay = there.iter().filter(|id| !take.contains(id) && !comes(id)).count();
        if !also.put.is_empty() && stay + also.put.len() > most {
            return Err(errors::specific(Condition::NotAllowed, "max-items-exceeded").text(format!(
                "{most} items are kept in {}; this makes them {}.",
                also.node,
                stay + also.put.len()
            )));
        }
        for item in &also.put {
            self.fits(also.node, item, allowed.payload).await?;
        }
        let publisher = self.who.bare_str().to_owned();
        let put: Vec<Item> = also
            .put
            .into_iter()
            .map(|item| Item {
                id: item.id.unwrap_or_else(|| self.exchange.ids.short()),
                payload: item.payload.into(),
                publisher: publisher.clone(),
                at: self.now(),
            })
            .collect();
        for id in &take {
            self.remove_item(also.node, id, batch);
        }
        for item in &put {
            self.put_item(also.node, item, batch);
        }
        Ok(Some(Told { name: also.node, put, take }))
    }

    /// One item has a bound however it is written. What had more before may become less.
    async fn fits(&self, node: &str, item: &NewItem, most: usize) -> Result<(), StanzaError> {
        let new = item.payload.len();
        if new <= most {
            return Ok(());
        }
        let before = match &item.id {
            Some(id) => self.item(node, id).await?.map_or(0, |item| item.payload.len()),
            None => 0,
        };
        if new < before {
            return Ok(());
        }
        let left = most.saturating_sub(before);
        Err(StanzaError::new(Condition::ResourceConstraint).text(format!(
            "An item of {node} may have {most} bytes; {left} are left, this would make it {new}."
        )))
    }

    /// XEP-0411 s.5: nobody else may read what comes from a private place.
    pub(super) fn close(&self, node: &mut Node, batch: &mut Batch) {
        if node.config.access == Access::Whitelist {
            return;
        }
        node.config.access = Access::Whitelist;
        batch.push(
            on_node(
                "UPDATE pubsub_nodes SET config = ?3 WHERE place = ?1 AND name = ?2",
                &self.place.key(),
                &node.name,
            )
            .bind(serde_json::to_string(&node.config).unwrap_or_default())
            .must_change(),
        );
    }

    /// Fails the batch if there are more bytes of items than there may be.
    fn room(&self) -> trunkline_store::Statement {
        let most = self.exchange.config.load().limits.pubsub_bytes;
        sql("UPDATE accounts SET id = id WHERE id = ?1 AND (SELECT COALESCE(SUM(i.size), 0) FROM pubsub_items i \
             JOIN pubsub_nodes n ON n.id = i.node WHERE n.place = ?2) <= ?3")
        .bind(self.place.account().map_or(0, |account| account.id))
        .bind(self.place.key())
        .bind(i64::try_from(most).unwrap_or(i64::MAX))
        .must_change()
    }

    /// What the store says to a batch of [`Desk::along`].
    pub(super) fn refused(&self, error: &StoreError, told: &[Told]) -> StanzaError {
        if matches!(error, StoreError::Conflict) && !told.is_empty() {
            let most = self.exchange.config.load().limits.pubsub_bytes;
            return StanzaError::new(Condition::ResourceConstraint)
                .text(format!("{most} bytes of items may be kept, and what is kept in step counts."));
        }
        store_trouble(error)
    }

    /// Tells of what changed along.
    pub(super) async fn tell_along(&self, told: &[Told]) {
        for Told { name, put, take } in told {
            let opened = match self.open(name).await {
                Ok(opened) => opened,
                Err(error) => {
                    tracing::error!(%error, "nobody could be told of what changed along");
                    continue;
                }
            };
            let node = &opened.node;
            if !take.is_empty() && node.config.notify_retract {
                self.tell(node, &Event::Retract(take)).await;
            }
            if !put.is_empty() && node.config.notify {
                // One by one: that is how clients know them.
                for item in put {
                    self.tell(node, &Event::Items(std::slice::from_ref(item))).await;
                }
            }
        }
    }
}
