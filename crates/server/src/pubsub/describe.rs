//! Service discovery of places with nodes, of nodes and of items (s.5.1 to s.5.5).

use trunkline_store::sql;
use trunkline_xml::{Node as Xml, Writer};
use trunkline_xmpp::disco::Info;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::forms::{Field, Form};
use trunkline_xmpp::ns;
use trunkline_xmpp::rsm;
use trunkline_xmpp::time;

use super::node::{self, Affiliation, Node, Opened, Place};
use super::{Desk, errors};
use crate::route::message::store_trouble;

/// Nodes or items in one answer; more of them page by page (XEP-0059).
const MOST_LISTED: usize = 500;
/// Nodes that are looked at in one go.
const SLICE: usize = 500;

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
        let owners = self.owners(node, i64::try_from(MOST_LISTED).unwrap_or(i64::MAX)).await;
        let owners =
            owners.iter().fold(Field::jid_multi(&var("owner")), |field, owner| field.value(owner.as_str()));
        let created = time::format_millis(node.created_at);
        Ok(form
            .field(Field::text_single(&var("creation_date")).value(&created))
            .field(owners)
            .field(Field::text_single(&var("num_subscribers")).value(&subscribers.to_string())))
    }

    /// s.5.2: the nodes that they may know of, as items of `disco#items`, in the order of their names; whether these are
    /// the first ones.
    ///
    /// # Errors
    /// XEP-0059's; the store's.
    pub async fn list_nodes(&self, asked: Option<rsm::Request>, w: &mut Writer) -> Result<bool, StanzaError> {
        let page = asked.clone().unwrap_or_default();
        let key = self.place.key();
        let mut listed: Vec<Node> = Vec::new();
        let mut edge = page.after.clone().or(page.before.clone()).filter(|name| !name.is_empty());
        let most = page.max.unwrap_or(MOST_LISTED).min(MOST_LISTED);
        let more = 'page: loop {
            let slice = node::Slice { edge: edge.as_deref(), backward: page.is_backward(), most: SLICE };
            let nodes =
                node::slice((&self.exchange.db, self.lane), &key, (&self.who, self.now()), slice).await;
            let nodes = nodes.map_err(|error| store_trouble(&error))?;
            edge = nodes.last().map(|(node, ..)| node.name.clone());
            let last = nodes.len() < SLICE;
            for (node, affiliation, subscribed) in nodes {
                if !self.may_know_of(&node, (self.affiliation(affiliation), subscribed)) {
                    continue;
                }
                if listed.len() == most {
                    break 'page true;
                }
                listed.push(node);
            }
            if last {
                break false;
            }
        };
        if page.is_backward() {
            listed.reverse();
        }
        for node in &listed {
            w.open("item").attr("jid", self.place.jid().as_str()).attr("node", &node.name);
            w.attr_opt("name", (!node.config.title.is_empty()).then_some(&node.config.title)).close();
        }
        if asked.is_some() || more {
            let ends = listed.first().zip(listed.last());
            let ends = ends.map(|(first, last)| (first.name.clone(), last.name.clone()));
            rsm::Page { ends, index: None, count: None }.write(w);
        }
        Ok(page.after.is_none() && page.before.is_none())
    }

    fn may_know_of(&self, node: &Node, standing: (Affiliation, bool)) -> bool {
        let state = self.place.account().map(|account| account.state());
        match super::may_read(&node.config, standing, (state.as_deref(), &self.who)) {
            Ok(()) => true,
            // At a service it is known that one may ask for approval.
            Err(super::Barred::Subscription) => matches!(self.place, Place::Service(_)),
            Err(_) => false,
        }
    }

    /// s.5.5: the items of a node, newest first.
    ///
    /// # Errors
    /// As for reading them; XEP-0059's.
    pub async fn list_items(
        &self,
        name: &str,
        asked: Option<rsm::Request>,
        w: &mut Writer,
    ) -> Result<(), StanzaError> {
        let page = asked.clone().unwrap_or_default();
        let opened = self.open(name).await?;
        if opened.affiliation != Affiliation::Owner {
            self.may_read(&opened)?;
        }
        let most = page.max.unwrap_or(MOST_LISTED).min(MOST_LISTED);
        let edge = page.after.clone().or(page.before.clone()).filter(|id| !id.is_empty());
        let text = match (page.is_backward(), &edge) {
            (false, None) => {
                "SELECT item FROM pubsub_items WHERE node = ?1 AND at > ?4 AND item <> ?3 \
                 ORDER BY seq DESC LIMIT ?2"
            }
            (true, None) => {
                "SELECT item FROM pubsub_items WHERE node = ?1 AND at > ?4 AND item <> ?3 \
                 ORDER BY seq LIMIT ?2"
            }
            (false, Some(_)) => {
                "SELECT item FROM pubsub_items WHERE node = ?1 AND at > ?4 AND seq < \
                 (SELECT seq FROM pubsub_items WHERE node = ?1 AND item = ?3) ORDER BY seq DESC LIMIT ?2"
            }
            (true, Some(_)) => {
                "SELECT item FROM pubsub_items WHERE node = ?1 AND at > ?4 AND seq > \
                 (SELECT seq FROM pubsub_items WHERE node = ?1 AND item = ?3) ORDER BY seq LIMIT ?2"
            }
        };
        let edge = edge.unwrap_or_default();
        let not_before = self.not_before(&opened.node);
        let statements = vec![
            // One more shows that there are more.
            sql(text)
                .bind(opened.node.id)
                .bind(i64::try_from(most + 1).unwrap_or(i64::MAX))
                .bind(edge.as_str())
                .bind(not_before),
            sql("SELECT COUNT(*), COALESCE(SUM(item = ?2), 0) FROM pubsub_items WHERE node = ?1 AND at > ?3")
                .bind(opened.node.id)
                .bind(edge.as_str())
                .bind(not_before),
        ];
        let results = self.exchange.db.read_all(self.lane, statements).await;
        let results = results.map_err(|error| store_trouble(&error))?;
        let [items, counted] = results.as_slice() else {
            return Err(StanzaError::new(Condition::InternalServerError));
        };
        let (count, there) = counted.first().map_or((0, 0), |row| (row.int(0), row.int(1)));
        if !edge.is_empty() && there == 0 {
            // XEP-0059 s.2.2: a page is counted from an item, which must be there.
            return Err(errors::no_node());
        }
        let more = items.len() > most;
        let mut items: Vec<&str> = items.iter().take(most).map(|row| row.text(0)).collect();
        if page.is_backward() {
            items.reverse();
        }
        for item in &items {
            w.open("item").attr("jid", self.place.jid().as_str()).attr("name", item).close();
        }
        if asked.is_some() || more {
            let ends = items.first().zip(items.last());
            let ends = ends.map(|(first, last)| ((*first).to_owned(), (*last).to_owned()));
            rsm::Page { ends, index: None, count: u64::try_from(count).ok() }.write(w);
        }
        Ok(())
    }
}

/// The page that is asked for by a `disco#items` query, if one is.
///
/// # Errors
/// XEP-0059's.
pub fn page_of(query: Xml<'_>) -> Result<Option<rsm::Request>, StanzaError> {
    if query.child(ns::RSM, "set").is_none() {
        return Ok(None);
    }
    let page = rsm::Request::parse(query).map_err(|error| errors::bad(&error.to_string()))?;
    if page.index.is_some() {
        // XEP-0059 s.2.4
        return Err(StanzaError::new(Condition::FeatureNotImplemented));
    }
    Ok(Some(page))
}
