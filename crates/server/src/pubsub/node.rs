//! Nodes, and how somebody stands to one: what the store knows.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use trunkline_store::{Db, Lane, Row, Rows, Statement, StoreError, sql};
use trunkline_xmpp::jid::Jid;

use super::config::NodeConfig;
use super::options::SubscribeOptions;
use crate::exchange::Host;
use crate::route::account::Account;

/// Where nodes are.
#[derive(Clone, Debug)]
pub enum Place {
    /// At a person's bare address (XEP-0163).
    Account(Arc<Account>),
    /// At a service of its own domain.
    Service(Arc<Service>),
}

/// A publish-subscribe service.
#[derive(Debug)]
pub struct Service {
    /// Its domain, as federation knows it.
    pub host: Arc<Host>,
    /// The domain of the users whom it is for.
    pub parent: Jid,
}

impl Place {
    /// Its address.
    pub fn jid(&self) -> &Jid {
        match self {
            Place::Account(account) => &account.jid,
            Place::Service(service) => &service.host.domain,
        }
    }

    /// The column `place`. No domain begins with a number sign.
    pub fn key(&self) -> String {
        match self {
            Place::Account(account) => format!("#{}", account.id),
            Place::Service(service) => service.host.domain.as_str().to_owned(),
        }
    }

    /// The account whose nodes these are.
    pub fn account(&self) -> Option<&Arc<Account>> {
        match self {
            Place::Account(account) => Some(account),
            Place::Service(_) => None,
        }
    }
}

/// One node.
#[derive(Clone, Debug)]
pub struct Node {
    /// The store's key.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// How it is.
    pub config: NodeConfig,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// Who pays for it.
    pub payer: Payer,
    /// It is gone, and this is where to look instead.
    pub redirect: Option<String>,
}

/// Who pays for a node: it counts in their quotas, and changes of theirs go one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payer {
    /// The account at whose address it is, or which made it at a service.
    Account(i64),
    /// The domain that is not ours of who made it at a service.
    Domain(String),
}

impl Payer {
    /// The columns `account` and `payer` of the store.
    pub(super) fn columns(&self) -> (Option<i64>, Option<&str>) {
        match self {
            Payer::Account(account) => (Some(*account), None),
            Payer::Domain(domain) => (None, Some(domain)),
        }
    }
}

/// What tells payers at one place from one another.
impl fmt::Display for Payer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Payer::Account(account) => write!(f, "{account}"),
            Payer::Domain(domain) => write!(f, "@{domain}"),
        }
    }
}

/// How somebody stands to a node for good (s.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affiliation {
    /// Everything.
    Owner,
    /// Publishes, subscribes and reads.
    Publisher,
    /// Publishes only.
    PublishOnly,
    /// Subscribes and reads, whatever the access model.
    Member,
    /// As everybody.
    #[default]
    None,
    /// Nothing.
    Outcast,
}

const AFFILIATIONS: [(Affiliation, &str); 6] = [
    (Affiliation::Owner, "owner"),
    (Affiliation::Publisher, "publisher"),
    (Affiliation::PublishOnly, "publish-only"),
    (Affiliation::Member, "member"),
    (Affiliation::None, "none"),
    (Affiliation::Outcast, "outcast"),
];

impl Affiliation {
    /// The name on the wire and in the store.
    pub fn name(self) -> &'static str {
        AFFILIATIONS.iter().find(|(known, _)| *known == self).map_or("none", |(_, name)| name)
    }

    /// The affiliation of that name.
    pub fn parse(name: &str) -> Option<Affiliation> {
        AFFILIATIONS.iter().find(|(_, known)| *known == name).map(|(known, _)| *known)
    }

    fn of(name: Option<&str>) -> Affiliation {
        name.and_then(Affiliation::parse).unwrap_or_default()
    }
}

/// A subscription (s.4.2).
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Who gets the notifications: a bare or a full address.
    pub jid: Jid,
    /// It waits for an owner's approval.
    pub pending: bool,
    /// What the subscriber wants.
    pub options: SubscribeOptions,
    /// The affiliation of its bare address, as far as the store knows.
    pub affiliation: Affiliation,
}

impl Subscription {
    /// One as everybody has it at first.
    pub(super) fn of(jid: Jid) -> Subscription {
        Subscription {
            jid,
            pending: false,
            options: SubscribeOptions::default(),
            affiliation: Affiliation::None,
        }
    }

    /// The state's name on the wire.
    pub fn state(&self) -> &'static str {
        if self.pending { "pending" } else { "subscribed" }
    }
}

/// A node, and how one person stands to it.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The node.
    pub node: Node,
    /// Of the person's bare address.
    pub affiliation: Affiliation,
    /// Those of the person's addresses.
    pub subscriptions: Vec<Subscription>,
}

impl Opened {
    /// One of the person's addresses is subscribed.
    pub fn is_subscribed(&self) -> bool {
        self.subscriptions.iter().any(|subscription| !subscription.pending)
    }
}

/// One item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Unique in its node.
    pub id: String,
    /// The element in it, which stands for itself; empty: there is none.
    pub payload: Bytes,
    /// The bare address of who published it.
    pub publisher: String,
    /// When; milliseconds since 1970.
    pub at: i64,
}

/// Columns from `first`: id, name, config, created_at, redirect, account, payer.
pub(super) fn read_node(row: &Row<'_>, first: usize) -> Node {
    Node {
        id: row.int(first),
        name: row.text(first + 1).to_owned(),
        // What can't be read is a fault of ours: then the most careful configuration holds.
        config: serde_json::from_str(row.text(first + 2)).unwrap_or_else(|error| {
            tracing::error!(%error, node = row.int(first), "a node's configuration can't be read");
            NodeConfig::private()
        }),
        created_at: row.int(first + 3),
        redirect: row.opt_text(first + 4).map(str::to_owned),
        payer: match row.opt_int(first + 5) {
            Some(account) => Payer::Account(account),
            None => Payer::Domain(row.opt_text(first + 6).unwrap_or_default().to_owned()),
        },
    }
}

pub(super) fn read_item(row: &Row<'_>, first: usize) -> Item {
    Item {
        id: row.text(first).to_owned(),
        payload: row.blob(first + 1).clone(),
        publisher: row.text(first + 2).to_owned(),
        at: row.int(first + 3),
    }
}

/// Rows of jid, pending, options, expires, affiliation.
pub(super) fn read_subscriptions(rows: &Rows) -> Vec<Subscription> {
    rows.iter()
        .filter_map(|row| {
            Some(Subscription {
                jid: Jid::parse(row.text(0)).ok()?,
                pending: row.int(1) != 0,
                options: SubscribeOptions {
                    expires: row.opt_int(3),
                    ..SubscribeOptions::stored(row.text(2))
                },
                affiliation: Affiliation::of(row.opt_text(4)),
            })
        })
        .collect()
}

/// A node as `who` finds it; `None`: there is none of that name.
///
/// # Errors
/// The store's.
pub async fn open(
    db: &Db,
    lane: Lane,
    (place, name): (&str, &str),
    (who, now): (&Jid, i64),
) -> Result<Option<Opened>, StoreError> {
    let of = |text| sql(text).bind(place).bind(name);
    let statements = vec![
        of("SELECT id, name, config, created_at, redirect, account, payer FROM pubsub_nodes \
             WHERE place = ?1 AND name = ?2"),
        of("SELECT a.affiliation FROM pubsub_affiliations a JOIN pubsub_nodes n ON n.id = a.node \
            WHERE n.place = ?1 AND n.name = ?2 AND a.jid = ?3")
        .bind(who.bare_str()),
        of("SELECT s.jid, s.pending, s.options, s.expires, NULL FROM pubsub_subscriptions s \
            JOIN pubsub_nodes n ON n.id = s.node WHERE n.place = ?1 AND n.name = ?2 AND s.owner = ?3 \
            AND (s.expires IS NULL OR s.expires > ?4) ORDER BY s.jid")
        .bind(who.bare_str())
        .bind(now),
    ];
    let results = db.read_all(lane, statements).await?;
    let [node, affiliation, subscriptions] = results.as_slice() else { return Err(StoreError::Closed) };
    let Some(row) = node.first() else { return Ok(None) };
    Ok(Some(Opened {
        node: read_node(&row, 0),
        affiliation: Affiliation::of(affiliation.first().as_ref().map(|row| row.text(0))),
        subscriptions: read_subscriptions(subscriptions),
    }))
}

/// A part of the nodes of a place, in the order of their names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slice<'a> {
    /// From this name on, which is not in it.
    pub(super) edge: Option<&'a str>,
    /// Towards the first name, from the last or from the edge.
    pub(super) backward: bool,
    pub(super) most: usize,
}

/// A slice of the nodes of a place, those that are gone left out, with `who`'s affiliation and whether an address of
/// theirs is subscribed.
///
/// # Errors
/// The store's.
pub(super) async fn slice(
    (db, lane): (&Db, Lane),
    place: &str,
    (who, now): (&Jid, i64),
    slice: Slice<'_>,
) -> Result<Vec<(Node, Affiliation, bool)>, StoreError> {
    macro_rules! nodes {
        ($part:literal) => {
            concat!(
                "SELECT n.id, n.name, n.config, n.created_at, n.redirect, n.account, n.payer, ",
                "(SELECT a.affiliation FROM pubsub_affiliations a WHERE a.node = n.id AND a.jid = ?2), ",
                "EXISTS (SELECT 1 FROM pubsub_subscriptions s WHERE s.node = n.id AND s.owner = ?2 ",
                "AND s.pending = 0 AND (s.expires IS NULL OR s.expires > ?3)) ",
                "FROM pubsub_nodes n WHERE n.place = ?1 AND n.redirect IS NULL AND ",
                $part,
                " LIMIT ?5"
            )
        };
    }
    let statement = sql(match (slice.backward, slice.edge) {
        (false, _) => nodes!("n.name > ?4 ORDER BY n.name"),
        (true, Some(_)) => nodes!("n.name < ?4 ORDER BY n.name DESC"),
        // No name is empty.
        (true, None) => nodes!("n.name <> ?4 ORDER BY n.name DESC"),
    })
    .bind(place)
    .bind(who.bare_str())
    .bind(now)
    .bind(slice.edge.unwrap_or_default())
    .bind(i64::try_from(slice.most).unwrap_or(i64::MAX));
    let rows = db.read_in(lane, statement).await?;
    Ok(rows
        .iter()
        .map(|row| (read_node(&row, 0), Affiliation::of(row.opt_text(7)), row.int(8) != 0))
        .collect())
}

/// Everybody who is subscribed to a node or wants to be, as [`read_subscriptions`] reads it.
pub(super) fn subscribers(node: i64, now: i64) -> Statement {
    sql("SELECT s.jid, s.pending, s.options, s.expires, \
         (SELECT a.affiliation FROM pubsub_affiliations a WHERE a.node = s.node AND a.jid = s.owner) \
         FROM pubsub_subscriptions s WHERE s.node = ?1 AND (s.expires IS NULL OR s.expires > ?2) ORDER BY s.jid")
    .bind(node)
    .bind(now)
}

/// The newest item.
///
/// # Errors
/// The store's.
pub async fn last_item(
    db: &Db,
    lane: Lane,
    (node, not_before): (i64, i64),
) -> Result<Option<Item>, StoreError> {
    let rows = db
        .read_in(
            lane,
            sql("SELECT item, payload, publisher, at FROM pubsub_items WHERE node = ?1 AND at > ?2 \
                 ORDER BY seq DESC LIMIT 1")
            .bind(node)
            .bind(not_before),
        )
        .await?;
    Ok(rows.first().map(|row| read_item(&row, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_affiliations() {
        for (affiliation, name) in AFFILIATIONS {
            assert_eq!((affiliation.name(), Affiliation::parse(name)), (name, Some(affiliation)));
        }
        assert_eq!(Affiliation::parse("king"), None);
    }
}
