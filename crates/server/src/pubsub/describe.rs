//! Service discovery of places with nodes, of nodes and of items (s.5.1 to s.5.5).

use trunkline_store::sql;
use trunkline_xml::Writer;
use trunkline_xmpp::disco::Info;
use trunkline_xmpp::error::StanzaError;
use trunkline_xmpp::forms::{Field, Form};
use trunkline_xmpp::ns;
use trunkline_xmpp::time;

use super::node::{self, Affiliation, Opened, Place};
use super::{Desk, errors};
use crate::route::message::store_trouble;

/// Nodes or items in one answer.
const MOST_LISTED: usize = 500;

/// What the engine can do, behind `http://jabber.org/protocol/pubsub#` (s.10).
const FEATURES: &[&str] = &[
    "access-authorize",
    "access-open",
    "access-whitelist",
    "auto-create",
    "config-node",
    "config-node-max",
    "create-and-configure",
    "create-nodes",
    "delete-items",
    "delete-nodes",
    "instant-nodes",
    "item-ids",
    "last-published",
    "leased-subscription",
    "manage-subscriptions",
    "member-affiliation",
    "meta-data",
    "modify-affiliations",
    "multi-items",
    "outcast-affiliation",
    "persistent-items",
    "publish",
    "publish-only-affiliation",
    "publish-options",
    "publisher-affiliation",
    "purge-nodes",
    "retract-items",
    "retrieve-affiliations",
    "retrieve-default",
    "retrieve-default-sub",
    "retrieve-items",
    "retrieve-subscriptions",
    "rsm",
    "subscribe",
    "subscription-notifications",
    "subscription-options",
];

/// What accounts have beside (XEP-0163 s.6).
const OF_ACCOUNTS: &[&str] =
    &["access-presence", "access-roster", "auto-subscribe", "filtered-notifications", "presence-subscribe"];

/// Adds what an account is and can do.
pub fn account(info: &mut Info) {
    info.identity("pubsub", "pep", None);
    info.feature(ns::PUBSUB);
    for feature in FEATURES.iter().chain(OF_ACCOUNTS) {
        info.feature(&format!("{}#{feature}", ns::PUBSUB));
    }
}

/// What a service is and can do.
pub fn service() -> Info {
    let mut info = Info::new();
    info.identity("pubsub", "service", Some("Publish and subscribe"));
    for feature in [ns::DISCO_INFO, ns::DISCO_ITEMS, ns::PUBSUB, ns::PUBSUB_OWNER, ns::RSM] {
        info.feature(feature);
    }
    for feature in FEATURES {
        info.feature(&format!("{}#{feature}", ns::PUBSUB));
    }
    info
}

impl Desk {
    /// s.5.3 and s.5.4: what a node is.
    ///
    /// # Errors
    /// `item-not-found`, also of a node that is not for them.
    pub async fn node_info(&self, name: &str) -> Result<Info, StanzaError> {
        let opened = self.open(name).await?;
        // Who may neither read nor ask to has no business with it.
        match self.may_read(&opened) {
            Ok(()) | Err(super::Barred::Subscription) => {}
            Err(_) => return Err(errors::no_node()),
        }
        let node = &opened.node;
        let mut info = Info::new();
        info.identity(
            "pubsub",
            "leaf",
            (!node.config.title.is_empty()).then_some(node.config.title.as_str()),
        );
        info.feature(ns::PUBSUB);
        info.form(self.meta_data(&opened).await?);
        Ok(info)
    }

    async fn meta_data(&self, opened: &Opened) -> Result<Form, StanzaError> {
        let node = &opened.node;
        let rows = self
            .exchange
            .db
            .read_in(
                self.lane,
                sql("SELECT COUNT(*) FROM pubsub_subscriptions WHERE node = ?1 AND pending = 0")
                    .bind(node.id),
            )
            .await
            .map_err(|error| store_trouble(&error))?;
        let subscribers = rows.first().map_or(0, |row| row.int(0));
        let var = |name: &str| format!("pubsub#{name}");
        let mut form = Form::result(ns::PUBSUB_META_DATA);
        for name in ["title", "description", "language", "type", "access_model", "publish_model", "max_items"]
        {
            let value = node.config.value(name);
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                form = form.field(Field::text_single(&var(name)).value(&value));
            }
        }
        let owners = self.owners(node).await;
        let owners =
            owners.iter().fold(Field::jid_multi(&var("owner")), |field, owner| field.value(owner.as_str()));
        let created = time::format_millis(node.created_at);
        Ok(form
            .field(Field::text_single(&var("creation_date")).value(&created))
            .field(owners)
            .field(Field::text_single(&var("num_subscribers")).value(&subscribers.to_string())))
    }

    /// s.5.2: the nodes that they may know of, as items of `disco#items`.
    ///
    /// # Errors
    /// The store's.
    pub async fn list_nodes(&self, w: &mut Writer) -> Result<(), StanzaError> {
        let key = self.place.key();
        let nodes = node::all(&self.exchange.db, self.lane, &key, (&self.who, self.now()))
            .await
            .map_err(|error| store_trouble(&error))?;
        let mut left = MOST_LISTED;
        for (node, affiliation, subscribed) in nodes {
            let affiliation = self.affiliation(affiliation);
            let state = self.place.account().map(|account| account.state());
            let standing = (affiliation, subscribed);
            let may = super::may_read(&node.config, standing, (state.as_deref(), &self.who));
            // At a service it is known that one may ask for approval.
            let asks = may == Err(super::Barred::Subscription) && matches!(self.place, Place::Service(_));
            if (may.is_err() && !asks) || left == 0 {
                continue;
            }
            left -= 1;
            w.open("item").attr("jid", self.place.jid().as_str()).attr("node", &node.name);
            w.attr_opt("name", (!node.config.title.is_empty()).then_some(&node.config.title)).close();
        }
        Ok(())
    }

    /// s.5.5: the items of a node.
    ///
    /// # Errors
    /// As for reading them.
    pub async fn list_items(&self, name: &str, w: &mut Writer) -> Result<(), StanzaError> {
        let opened = self.open(name).await?;
        if opened.affiliation != Affiliation::Owner {
            self.may_read(&opened)?;
        }
        let rows = self
            .exchange
            .db
            .read_in(
                self.lane,
                sql("SELECT item FROM pubsub_items WHERE node = ?1 ORDER BY seq DESC LIMIT ?2")
                    .bind(opened.node.id)
                    .bind(i64::try_from(MOST_LISTED).unwrap_or(i64::MAX)),
            )
            .await
            .map_err(|error| store_trouble(&error))?;
        for row in rows.iter() {
            w.open("item").attr("jid", self.place.jid().as_str()).attr("name", row.text(0)).close();
        }
        Ok(())
    }
}
