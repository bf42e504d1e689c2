//! Items are read (s.6.5), and who asks is told how they stand (s.5.6, s.5.7).

use trunkline_store::{Statement, sql};
use trunkline_xml::{Node as Xml, Writer};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::ns;
use trunkline_xmpp::rsm;

use super::node::{self, Item, Subscription};
use super::notify::write_item;
use super::publish::MOST_AT_ONCE;
use super::{Desk, errors};
use crate::route::message::store_trouble;

/// Items that are read in one go.
const SLICE: usize = 100;
/// Bytes of items in one answer, beyond its first item.
const PAGE_BYTES: usize = 192 * 1024;
/// What an item takes beside its id and its payload.
const ITEM_BYTES: usize = 24;
/// Subscriptions and affiliations that one person is told of.
const MOST_LISTED: usize = 1000;

/// Which items somebody wants.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    ids: Vec<String>,
    /// `max_items`: so many of the newest.
    newest: Option<usize>,
    page: Option<rsm::Request>,
    /// A subscription's id was given.
    subid: bool,
}

impl Wanted {
    pub(super) fn read(pubsub: Xml<'_>, items: Xml<'_>) -> Result<Wanted, StanzaError> {
        let given = items.children().filter(|item| item.is(ns::PUBSUB, "item"));
        let ids: Vec<String> = given.filter_map(|item| Some(item.attr("id")?.into_owned())).collect();
        if ids.len() > MOST_AT_ONCE {
            return Err(errors::bad("So many items can't be asked for at once."));
        }
        let newest = match items.attr("max_items") {
            // s.6.5.8: 1 or more.
            Some(most) => match most.trim().parse() {
                Ok(0) | Err(_) => return Err(errors::bad("max_items is a number above 0.")),
                Ok(most) => Some(most),
            },
            None => None,
        };
        // XEP-0313 and XEP-0060 s.6.5.4 have it beside, some clients put it within.
        let parent = if pubsub.child(ns::RSM, "set").is_some() { pubsub } else { items };
        let page = match parent.child(ns::RSM, "set") {
            Some(_) => Some(rsm::Request::parse(parent).map_err(|error| errors::bad(&error.to_string()))?),
            None => None,
        };
        Ok(Wanted { ids, newest, page, subid: items.attr("subid").is_some() })
    }
}

impl Desk {
    /// All items of a node, oldest first; none where there is no node.
    ///
    /// # Errors
    /// The store's; `gone`.
    pub async fn items(&self, name: &str) -> Result<Vec<Item>, StanzaError> {
        let Some(opened) = self.look(name).await? else { return Ok(Vec::new()) };
        self.may_read(&opened)?;
        let most = self.allowed().items;
        let mut rows = self.select(&opened.node, Select::Newest(most)).await?;
        rows.reverse();
        Ok(rows.into_iter().map(|(item, _)| item).collect())
    }

    /// The same; none if the node has gone elsewhere (XEP-0060 s.8.4.1).
    ///
    /// # Errors
    /// The store's.
    pub async fn items_here(&self, name: &str) -> Result<Vec<Item>, StanzaError> {
        match self.items(name).await {
            Err(error) if error.condition == Condition::Gone => Ok(Vec::new()),
            other => other,
        }
    }

    /// One item.
    ///
    /// # Errors
    /// The store's; `gone`.
    pub async fn item(&self, name: &str, id: &str) -> Result<Option<Item>, StanzaError> {
        let Some(opened) = self.look(name).await? else { return Ok(None) };
        self.may_read(&opened)?;
        Ok(self.select(&opened.node, Select::Id(id)).await?.pop().map(|(item, _)| item))
    }

    /// The ids of a node's items, oldest first.
    pub(super) async fn ids(&self, node: &node::Node) -> Result<Vec<String>, StanzaError> {
        let ids = sql("SELECT item FROM pubsub_items WHERE node = ?1 ORDER BY seq").bind(node.id);
        let rows = self.exchange.db.read_in(self.lane, ids).await.map_err(|error| store_trouble(&error))?;
        Ok(rows.iter().map(|row| row.text(0).to_owned()).collect())
    }

    /// The newest item of a node; none where there is no node, or it has gone elsewhere (s.8.4.1).
    ///
    /// # Errors
    /// The store's.
    pub async fn newest(&self, name: &str) -> Result<Option<Item>, StanzaError> {
        let opened = match self.look(name).await {
            Err(error) if error.condition == Condition::Gone => return Ok(None),
            other => other?,
        };
        let Some(opened) = opened else { return Ok(None) };
        self.may_read(&opened)?;
        Ok(self.select(&opened.node, Select::Newest(1)).await?.pop().map(|(item, _)| item))
    }

    /// They may read what is at a node, or would be if there were one.
    ///
    /// # Errors
    /// The store's.
    pub async fn shows(&self, name: &str) -> Result<bool, StanzaError> {
        match self.look(name).await {
            Ok(opened) => Ok(opened.is_none_or(|opened| self.may_read(&opened).is_ok())),
            Err(error) if error.condition == Condition::Gone => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Answers `<items/>`.
    pub(super) async fn retrieve(&self, name: &str, wanted: Wanted) -> Result<Vec<u8>, StanzaError> {
        let opened = self.open(name).await?;
        self.may_read(&opened)?;
        if wanted.subid && opened.is_subscribed() {
            // s.6.5.9.2: no subscription has one.
            return Err(errors::specific(Condition::NotAcceptable, "invalid-subid"));
        }
        let node = &opened.node;
        let mut w = Writer::new();
        w.open("pubsub").attr("xmlns", ns::PUBSUB);
        w.open("items").attr("node", &node.name);
        if !wanted.ids.is_empty() {
            self.write_some(node, &wanted.ids, &mut w).await?;
            w.close();
            return Ok(w.finish());
        }
        let request = wanted.page.clone().unwrap_or_default();
        // In the order of publication, oldest first; without further words the newest of them.
        let allowed = self.allowed().items;
        let most = request.max.or(wanted.newest).unwrap_or(allowed).min(allowed);
        let backward = request.is_backward() || (wanted.newest.is_some() && request.after.is_none());
        let select = match (&request.after, &request.before, request.index) {
            (Some(id), ..) => Select::After(self.position(node, id).await?, most),
            (None, Some(id), _) if !id.is_empty() => Select::Before(self.position(node, id).await?, most),
            (None, _, Some(index)) => Select::Index(index, most),
            _ if backward || wanted.page.is_none() => Select::Newest(most),
            _ => Select::Index(0, most),
        };
        let reversed = select.is_newest_first();
        let mut items = self.fill(node, select).await?;
        if reversed {
            items.reverse();
        }
        for (item, _) in &items {
            write_item(&mut w, item, true);
        }
        w.close();
        let (count, index) = self.count(node, items.first().map(|(_, seq)| *seq)).await?;
        let asked = wanted.newest.map_or(count, |newest| count.min(as_count(newest)));
        // s.6.5.4: who gets a part of what they asked for is told.
        if wanted.page.is_some() || as_count(items.len()) < asked {
            let ends =
                items.first().zip(items.last()).map(|(first, last)| (first.0.id.clone(), last.0.id.clone()));
            rsm::Page { ends, index, count: Some(count) }.write(&mut w);
        }
        w.close();
        Ok(w.finish())
    }

    /// Writes the items of these ids, as many as fit, and closes `<items/>`; who gets a part of them is told (s.6.5.4).
    async fn write_some(&self, node: &node::Node, ids: &[String], w: &mut Writer) -> Result<(), StanzaError> {
        let (mut bytes, mut count) = (0, 0);
        let mut written: Vec<&str> = Vec::new();
        for id in ids {
            for (item, _) in self.select(node, Select::Id(id)).await? {
                count += 1;
                bytes += size(&item);
                // More would not fit into a stanza; what is missing can be asked for again.
                if count == 1 || bytes <= PAGE_BYTES {
                    write_item(w, &item, true);
                    written.push(id);
                }
            }
        }
        w.close();
        if written.len() < count {
            let ends = written.first().zip(written.last());
            let ends = ends.map(|(first, last)| ((*first).to_owned(), (*last).to_owned()));
            rsm::Page { ends, index: None, count: Some(as_count(count)) }.write(w);
        }
        Ok(())
    }

    /// What is selected, as far as it fits into an answer: from the side where the page begins, so that what is cut off is
    /// found by the next page. No more than that is read.
    async fn fill(&self, node: &node::Node, select: Select<'_>) -> Result<Vec<(Item, i64)>, StanzaError> {
        let (most, newest_first) = (select.most(), select.is_newest_first());
        let mut items: Vec<(Item, i64)> = Vec::new();
        let mut bytes = 0;
        let mut next = select.at_most(most.min(SLICE));
        loop {
            let slice = self.select(node, next).await?;
            let last = slice.len() < SLICE;
            for (item, seq) in slice {
                bytes += size(&item);
                if !items.is_empty() && bytes > PAGE_BYTES {
                    return Ok(items);
                }
                items.push((item, seq));
            }
            let left = most.saturating_sub(items.len());
            let Some((_, edge)) = items.last().filter(|_| !last && left > 0) else { return Ok(items) };
            let slice = left.min(SLICE);
            next = if newest_first { Select::Before(*edge, slice) } else { Select::After(*edge, slice) };
        }
    }

    async fn select(&self, node: &node::Node, select: Select<'_>) -> Result<Vec<(Item, i64)>, StanzaError> {
        let statement = select.statement().bind(node.id).bind(self.not_before(node));
        let rows = self
            .exchange
            .db
            .read_in(self.lane, select.bind(statement))
            .await
            .map_err(|error| store_trouble(&error))?;
        Ok(rows.iter().map(|row| (node::read_item(&row, 0), row.int(4))).collect())
    }

    /// What was published later has not expired; also what nobody has taken away yet.
    pub(super) fn not_before(&self, node: &node::Node) -> i64 {
        node.config.kept_for().map_or(i64::MIN, |kept| self.now().saturating_sub(kept))
    }

    /// XEP-0059 s.2.2: a page is counted from an item, which must be there.
    async fn position(&self, node: &node::Node, id: &str) -> Result<i64, StanzaError> {
        let found = self.select(node, Select::Id(id)).await?;
        found.first().map(|(_, seq)| *seq).ok_or_else(errors::no_node)
    }

    /// How many items there are, and how many before the one of this number.
    async fn count(&self, node: &node::Node, first: Option<i64>) -> Result<(u64, Option<u64>), StanzaError> {
        let rows = self
            .exchange
            .db
            .read_in(
                self.lane,
                sql("SELECT COUNT(*), COALESCE(SUM(seq < ?3), 0) FROM pubsub_items \
                     WHERE node = ?1 AND at > ?2")
                .bind(node.id)
                .bind(self.not_before(node))
                .bind(first.unwrap_or(0)),
            )
            .await
            .map_err(|error| store_trouble(&error))?;
        let number = |column| rows.first().map_or(0, |row| u64::try_from(row.int(column)).unwrap_or(0));
        Ok((number(0), first.map(|_| number(1))))
    }

    /// Answers `<subscriptions/>`: the person's own, at all nodes or at one (s.5.6).
    pub(super) async fn own_subscriptions(&self, name: Option<&str>) -> Result<Vec<u8>, StanzaError> {
        let rows = self
            .exchange
            .db
            .read_in(
                self.lane,
                sql(
                    "SELECT s.jid, s.pending, s.options, s.expires, NULL, n.name FROM pubsub_subscriptions s \
                     JOIN pubsub_nodes n ON n.id = s.node WHERE n.place = ?1 AND s.owner = ?2 \
                     AND (s.expires IS NULL OR s.expires > ?3) AND (?4 IS NULL OR n.name = ?4) \
                     AND n.redirect IS NULL ORDER BY n.name, s.jid LIMIT ?5",
                )
                .bind(self.place.key())
                .bind(self.who.bare_str())
                .bind(self.now())
                .bind(name.map(str::to_owned))
                .bind(i64::try_from(MOST_LISTED).unwrap_or(i64::MAX)),
            )
            .await
            .map_err(|error| store_trouble(&error))?;
        let mut w = Writer::new();
        w.open("pubsub").attr("xmlns", ns::PUBSUB);
        w.open("subscriptions").attr_opt("node", name);
        for (subscription, row) in node::read_subscriptions(&rows).iter().zip(rows.iter()) {
            write_subscription(&mut w, row.text(5), subscription);
        }
        w.close().close();
        Ok(w.finish())
    }

    /// Answers `<affiliations/>`: the person's own (s.5.7).
    pub(super) async fn own_affiliations(&self, name: Option<&str>) -> Result<Vec<u8>, StanzaError> {
        // At one's own address one owns all of it. An administrator may do everything at a service, and owns what the store
        // says.
        let own = self.is_own();
        let statement = sql(if own {
            "SELECT name, 'owner' FROM pubsub_nodes WHERE place = ?1 AND redirect IS NULL \
             AND (?3 IS NULL OR name = ?3) AND ?2 IS NOT NULL ORDER BY name LIMIT ?4"
        } else {
            "SELECT n.name, a.affiliation FROM pubsub_affiliations a JOIN pubsub_nodes n ON n.id = a.node \
             WHERE n.place = ?1 AND n.redirect IS NULL AND (?3 IS NULL OR n.name = ?3) AND a.jid = ?2 \
             ORDER BY n.name LIMIT ?4"
        });
        let rows = self
            .exchange
            .db
            .read_in(
                self.lane,
                statement
                    .bind(self.place.key())
                    .bind(self.who.bare_str())
                    .bind(name.map(str::to_owned))
                    .bind(i64::try_from(MOST_LISTED).unwrap_or(i64::MAX)),
            )
            .await
            .map_err(|error| store_trouble(&error))?;
        let mut w = Writer::new();
        w.open("pubsub").attr("xmlns", ns::PUBSUB);
        w.open("affiliations").attr_opt("node", name);
        for row in rows.iter() {
            w.open("affiliation").attr("node", row.text(0)).attr("affiliation", row.text(1)).close();
        }
        w.close().close();
        Ok(w.finish())
    }
}

/// `<subscription/>` (s.4.2).
pub(super) fn write_subscription(w: &mut Writer, node: &str, subscription: &Subscription) {
    w.open("subscription")
        .attr("node", node)
        .attr("jid", subscription.jid.as_str())
        .attr("subscription", subscription.state());
    if let Some(expires) = subscription.options.expires {
        w.attr("expiry", &trunkline_xmpp::time::format_millis(expires));
    }
    w.close();
}

/// A part of a node's items, by the number that grows with each publication.
enum Select<'a> {
    Id(&'a str),
    /// Newest first.
    Newest(usize),
    After(i64, usize),
    /// Newest first.
    Before(i64, usize),
    Index(u64, usize),
}

impl Select<'_> {
    fn most(&self) -> usize {
        match self {
            Select::Id(_) => 1,
            Select::Newest(most)
            | Select::After(_, most)
            | Select::Before(_, most)
            | Select::Index(_, most) => *most,
        }
    }

    fn at_most(self, most: usize) -> Self {
        match self {
            Select::Id(id) => Select::Id(id),
            Select::Newest(_) => Select::Newest(most),
            Select::After(seq, _) => Select::After(seq, most),
            Select::Before(seq, _) => Select::Before(seq, most),
            Select::Index(index, _) => Select::Index(index, most),
        }
    }

    fn is_newest_first(&self) -> bool {
        matches!(self, Select::Before(..) | Select::Newest(_))
    }

    fn statement(&self) -> Statement {
        match self {
            Select::Id(_) => sql("SELECT item, payload, publisher, at, seq FROM pubsub_items \
                                  WHERE node = ?1 AND at > ?2 AND item = ?3"),
            Select::Newest(_) => sql("SELECT item, payload, publisher, at, seq FROM pubsub_items \
                                      WHERE node = ?1 AND at > ?2 ORDER BY seq DESC LIMIT ?3"),
            Select::After(..) => sql("SELECT item, payload, publisher, at, seq FROM pubsub_items \
                                      WHERE node = ?1 AND at > ?2 AND seq > ?3 ORDER BY seq LIMIT ?4"),
            Select::Before(..) => sql("SELECT item, payload, publisher, at, seq FROM pubsub_items \
                                       WHERE node = ?1 AND at > ?2 AND seq < ?3 ORDER BY seq DESC LIMIT ?4"),
            Select::Index(..) => sql("SELECT item, payload, publisher, at, seq FROM pubsub_items \
                                      WHERE node = ?1 AND at > ?2 ORDER BY seq LIMIT ?4 OFFSET ?3"),
        }
    }

    fn bind(&self, statement: Statement) -> Statement {
        let count = |most: &usize| i64::try_from(*most).unwrap_or(i64::MAX);
        match self {
            Select::Id(id) => statement.bind(*id),
            Select::Newest(most) => statement.bind(count(most)),
            Select::After(seq, most) | Select::Before(seq, most) => statement.bind(*seq).bind(count(most)),
            Select::Index(index, most) => {
                statement.bind(i64::try_from(*index).unwrap_or(i64::MAX)).bind(count(most))
            }
        }
    }
}

/// What an item takes in an answer, but for what its id has to be escaped.
fn size(item: &Item) -> usize {
    item.payload.len() + item.id.len() + ITEM_BYTES
}

fn as_count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// `forbidden`.
pub(super) fn forbidden() -> StanzaError {
    StanzaError::new(Condition::Forbidden)
}
