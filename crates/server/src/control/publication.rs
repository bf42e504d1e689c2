//! What our domains publish over pubsub (XEP-0060), read-only for everybody: our own block list, under the names of
//! nodes that others know (`muc_bans_sha256`, `spam_source_domains`), and server information (XEP-0485).
//!
//! Deliberately absent: nodes that anybody else could make or publish to.

use std::sync::Arc;
use std::time::Duration;

use trunkline_store::{Batch, Lane, Rows, StoreError, sql};
use trunkline_xml::{Node, Writer};
use trunkline_xmpp::disco::Info;
use trunkline_xmpp::error::{Condition, ErrorType, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, MessageType, Stanza};

use super::lists::{Entry, ListEntry, Subscriber};
use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::exchange::Exchange;
use crate::logging::Refusal;
use crate::modules::Request;
use crate::pubsub::errors::{node_required, specific as refusal, unsupported};
use crate::route::message::store_trouble;

/// Bans by the hash of an address.
const HASHES: &str = "muc_bans_sha256";
/// Bans of domains.
const DOMAINS: &str = "spam_source_domains";
/// The nodes of our block list.
pub const NODES: [&str; 2] = [HASHES, DOMAINS];
/// XEP-0485 s.5.
pub const SERVER_INFO: &str = "serverinfo";
/// Its one item.
const CURRENT: &str = "current";

/// Subscribers of all nodes.
const MOST_SUBSCRIBERS: i64 = 1000;
/// Subscriptions of one domain's addresses.
const MOST_OF_DOMAIN: i64 = 10;
/// Of these, of one of our own domains; of one address there as many as of another domain.
const MOST_OF_OURS: i64 = 100;
/// Of these, of all our own domains: others find room.
const MOST_INSIDE: i64 = MOST_SUBSCRIBERS / 2;
/// Milliseconds after which a subscription ends that nobody renewed: by subscribing again or by reading the list.
const LASTS: i64 = 30 * 24 * 60 * 60 * 1000;
/// Milliseconds for which a renewed one is not renewed again.
const RENEWED: i64 = 24 * 60 * 60 * 1000;
/// Entries of our own list.
const MOST_PUBLISHED: i64 = 50_000;
/// Characters of a reason.
const MOST_REASON: usize = 200;
/// Items in one answer: some 150 kB at most.
const PAGE: usize = 400;
/// Peers that are named in server information.
const MOST_NAMED: usize = 1000;
/// Peers that are asked in one round whether they want to be named.
const ASKED: usize = 50;
/// From one round to the next.
const ROUND: Duration = Duration::from_secs(600);

/// Our own list and its subscribers; they are in the store.
#[derive(Debug, Default)]
pub struct Publication {
    /// Held while something is counted and then written.
    changing: tokio::sync::Mutex<()>,
}

fn node_of(entry: &Entry) -> &'static str {
    match entry {
        Entry::Hash(_) => HASHES,
        Entry::Domain(_) => DOMAINS,
    }
}

/// What service discovery of a domain says about its nodes.
pub fn describe(exchange: &Exchange, info: &mut Info) {
    info.identity("pubsub", "service", Some("Block list"));
    for feature in
        ["", "#access-open", "#item-ids", "#retrieve-items", "#retrieve-subscriptions", "#subscribe"]
    {
        info.feature(&format!("{}{feature}", ns::PUBSUB));
    }
    if exchange.config.load().federation.server_info {
        info.feature(ns::PUBSUB_SERVER_INFO);
    }
}

/// The nodes, for service discovery (XEP-0060 s.5.2).
pub fn nodes(exchange: &Exchange) -> impl Iterator<Item = (&'static str, &'static str)> {
    let info = exchange.config.load().federation.server_info;
    let all = [
        (HASHES, "Addresses that are banned, as SHA-256"),
        (DOMAINS, "Domains that send spam"),
        (SERVER_INFO, "Server information"),
    ];
    all.into_iter().filter(move |(node, _)| *node != SERVER_INFO || info)
}

/// Service discovery of one node (XEP-0060 s.5.3).
pub fn node_info(exchange: &Exchange, node: &str) -> Option<Info> {
    let (_, name) = nodes(exchange).find(|(known, _)| *known == node)?;
    let mut info = Info::new();
    info.identity("pubsub", "leaf", Some(name));
    info.feature(ns::PUBSUB);
    Some(info)
}

/// Answers `<pubsub/>` of type get.
///
/// # Errors
/// Those of XEP-0060 s.6.5.9 and s.5.6.
pub async fn get(request: &Request) -> Result<Vec<u8>, StanzaError> {
    let pubsub = request.stanza.child(ns::PUBSUB, "pubsub");
    let pubsub = pubsub.ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    if let Some(items) = pubsub.child(ns::PUBSUB, "items") {
        let wanted = Wanted::read(&request.exchange, pubsub, items)?;
        return retrieve(request, wanted).await;
    }
    if pubsub.child(ns::PUBSUB, "subscriptions").is_some() {
        return subscriptions(request).await;
    }
    Err(unsupported("retrieve-affiliations"))
}

/// Which items somebody wants.
struct Wanted {
    node: &'static str,
    /// `None`: all.
    ids: Vec<String>,
    most: usize,
    after: String,
    /// They know paging (XEP-0059).
    paged: bool,
}

impl Wanted {
    fn read(exchange: &Exchange, pubsub: Node<'_>, items: Node<'_>) -> Result<Wanted, StanzaError> {
        let node = items.attr("node").ok_or_else(node_required)?;
        let (node, _) = nodes(exchange)
            .find(|(known, _)| *known == &*node)
            .ok_or_else(|| StanzaError::new(Condition::ItemNotFound))?;
        let ids = items.children().filter(|item| item.is(ns::PUBSUB, "item"));
        let ids: Vec<String> =
            ids.take(PAGE).filter_map(|item| Some(item.attr("id")?.into_owned())).collect();
        let set = pubsub.child(ns::RSM, "set");
        let number =
            |text: &str| text.trim().parse::<usize>().map_err(|_| StanzaError::new(Condition::BadRequest));
        let max = match (set.and_then(|set| set.child(ns::RSM, "max")), items.attr("max_items")) {
            (Some(max), _) => number(&max.text())?,
            (None, Some(max)) => number(&max)?,
            (None, None) => PAGE,
        };
        let after = set.and_then(|set| set.child(ns::RSM, "after")).map(|after| after.text().into_owned());
        Ok(Wanted { node, ids, most: max.min(PAGE), after: after.unwrap_or_default(), paged: set.is_some() })
    }
}

async fn retrieve(request: &Request, wanted: Wanted) -> Result<Vec<u8>, StanzaError> {
    let mut w = Writer::new();
    w.open("pubsub").attr("xmlns", ns::PUBSUB);
    w.open("items").attr("node", wanted.node);
    if wanted.node == SERVER_INFO {
        if wanted.ids.is_empty() || wanted.ids.iter().any(|id| id == CURRENT) {
            w.open("item").attr("id", CURRENT);
            server_info(&request.exchange, request.host.domain.as_str(), &mut w);
            w.close();
        }
        w.close().close();
        return Ok(w.finish());
    }
    let hashes = i64::from(wanted.node == HASHES);
    let now = request.exchange.clock().now();
    let most = i64::try_from(wanted.most).unwrap_or(i64::MAX);
    // Ids of hashes are 64 hex digits; a domain is never that (its labels have 63 characters at most).
    let statements = vec![
        sql("SELECT item, reason FROM own_list WHERE (LENGTH(item) = 64 AND item NOT LIKE '%.%') = ?1 \
             AND item > ?2 ORDER BY item LIMIT ?3")
        .bind(hashes)
        .bind(wanted.after.as_str())
        .bind(most),
        sql("SELECT COUNT(*) FROM own_list WHERE (LENGTH(item) = 64 AND item NOT LIKE '%.%') = ?1")
            .bind(hashes),
        sql("SELECT COUNT(*) FROM list_subscribers WHERE host = ?1 AND node = ?2 AND jid IN (?3, ?4) \
             AND at BETWEEN ?5 AND ?6")
        .bind(request.host.domain.as_str())
        .bind(wanted.node)
        .bind(request.from.as_str())
        .bind(request.from.bare_str())
        .bind(now - LASTS)
        .bind(now - RENEWED),
    ];
    let results = request
        .exchange
        .db
        .read_all(request.lane(), statements)
        .await
        .map_err(|error| store_trouble(&error))?;
    if results.get(2).and_then(Rows::first).is_some_and(|row| row.int(0) > 0) {
        let renewed = request.exchange.renew(request, wanted.node, now).await;
        renewed.map_err(|error| store_trouble(&error))?;
    }
    let rows = results.first().ok_or_else(|| StanzaError::new(Condition::InternalServerError))?;
    let count = results.get(1).and_then(Rows::first).map_or(0, |row| row.int(0));
    let (mut first, mut last) = (None, None);
    for row in rows.iter() {
        let id = row.text(0);
        if wanted.ids.is_empty() || wanted.ids.iter().any(|wanted| wanted == id) {
            item(&mut w, id, row.text(1));
        }
        first = first.or(Some(id));
        last = Some(id);
    }
    w.close();
    if wanted.paged {
        w.open("set").attr("xmlns", ns::RSM);
        if let (Some(first), Some(last)) = (first, last) {
            w.text_element("first", first).text_element("last", last);
        }
        w.text_element("count", &count.to_string()).close();
    }
    w.close();
    Ok(w.finish())
}

/// An item of a block list, in the form that others publish.
fn item(w: &mut Writer, id: &str, reason: &str) {
    w.open("item").attr("id", id);
    w.open("report").attr("xmlns", ns::REPORTING).attr("reason", ns::REPORTING_ABUSE);
    if !reason.is_empty() {
        w.text_element("text", reason);
    }
    w.close().close();
}

/// XEP-0485 s.4: which domains we are connected with. Named are only those that agree; the others are counted in.
fn server_info(exchange: &Exchange, domain: &str, w: &mut Writer) {
    w.open("serverinfo").attr("xmlns", ns::PUBSUB_SERVER_INFO);
    w.open("domain").attr("name", domain).open("federation");
    let status = exchange.remote.get().map(|remote| remote.status()).unwrap_or_default();
    for peer in status.peers.iter().filter(|peer| !peer.streams.is_empty()).take(MOST_NAMED) {
        let ours: Vec<&str> = peer
            .streams
            .iter()
            .filter(|stream| stream.us == domain)
            .map(|stream| match stream.direction.as_str() {
                "in" => "incoming",
                "out" => "outgoing",
                _ => "bidi",
            })
            .collect();
        if ours.is_empty() {
            continue;
        }
        w.open("remote-domain");
        if exchange.control.profiles.is_named(&peer.domain) {
            w.attr("name", &peer.domain);
        }
        for direction in ours {
            w.open("connection").attr("type", direction).close();
        }
        w.close();
    }
    w.close().close().close();
}

async fn subscriptions(request: &Request) -> Result<Vec<u8>, StanzaError> {
    let rows = request
        .exchange
        .db
        .read_in(
            request.lane(),
            sql("SELECT node, jid FROM list_subscribers WHERE host = ?1 AND jid IN (?2, ?3) AND at >= ?4")
                .bind(request.host.domain.as_str())
                .bind(request.from.as_str())
                .bind(request.from.bare_str())
                .bind(request.exchange.clock().now() - LASTS),
        )
        .await
        .map_err(|error| store_trouble(&error))?;
    let mut w = Writer::new();
    w.open("pubsub").attr("xmlns", ns::PUBSUB).open("subscriptions");
    for row in rows.iter() {
        subscription(&mut w, row.text(0), row.text(1));
    }
    w.close().close();
    Ok(w.finish())
}

fn subscription(w: &mut Writer, node: &str, jid: &str) {
    w.open("subscription").attr("node", node).attr("jid", jid).attr("subscription", "subscribed").close();
}

/// Answers `<pubsub/>` of type set: who wants to follow our list, and who does not any more.
///
/// # Errors
/// Those of XEP-0060 s.6.1.3 and s.6.2.3; `forbidden` for whatever would change a node.
pub async fn set(request: &Request) -> Result<Option<Vec<u8>>, StanzaError> {
    let pubsub = request.stanza.child(ns::PUBSUB, "pubsub");
    let wish = pubsub.and_then(|pubsub| pubsub.first_child());
    let wish = wish.ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    let follows = match wish.name() {
        "subscribe" => true,
        "unsubscribe" => false,
        "publish" | "retract" | "create" | "configure" | "delete" | "purge" => {
            return Err(StanzaError::new(Condition::Forbidden));
        }
        "options" => return Err(unsupported("subscription-options")),
        _ => return Err(StanzaError::new(Condition::BadRequest)),
    };
    let node = wish.attr("node").ok_or_else(node_required)?;
    let (node, _) = nodes(&request.exchange)
        .find(|(known, _)| *known == &*node)
        .ok_or_else(|| StanzaError::new(Condition::ItemNotFound))?;
    // s.6.1.3.1: one's own address, or one of one's own devices.
    let jid = wish.attr("jid").and_then(|jid| Jid::parse(&jid).ok());
    let jid = jid
        .filter(|jid| jid.same_bare(&request.from))
        .ok_or_else(|| refusal(Condition::BadRequest, "invalid-jid"))?;
    if node == SERVER_INFO {
        return Err(unsupported("subscribe"));
    }
    let exchange = &request.exchange;
    if !follows {
        let gone = exchange.unfollow(request.host.domain.as_str(), Some(node), &jid).await;
        return match gone.map_err(|error| store_trouble(&error))? {
            0 => Err(refusal(Condition::UnexpectedRequest, "not-subscribed").kind(ErrorType::Cancel)),
            _ => Ok(None),
        };
    }
    let taken = exchange.take_follower(request, node, &jid).await.map_err(|error| store_trouble(&error))?;
    if !taken {
        let detail = "there are as many subscribers as there may be";
        let peer = request.from.as_str();
        exchange.refusals.report(Refusal { name: "too-many-subscriptions", peer, conn: 0, detail });
        return Err(refusal(Condition::PolicyViolation, "too-many-subscriptions"));
    }
    let mut w = Writer::new();
    w.open("pubsub").attr("xmlns", ns::PUBSUB);
    subscription(&mut w, node, jid.as_str());
    w.close();
    Ok(Some(w.finish()))
}

impl Exchange {
    /// False: there are as many as there may be.
    async fn take_follower(&self, request: &Request, node: &str, jid: &Jid) -> Result<bool, StoreError> {
        let _one_by_one = self.control.publication.changing.lock().await;
        let host = request.host.domain.as_str();
        let now = self.clock().now();
        let ours: Vec<String> = self.config.load().domains().map(str::to_owned).collect();
        let ours = serde_json::to_string(&ours).unwrap_or_else(|_| "[]".into());
        let rows = self
            .db
            .read_in(
                request.lane(),
                sql("SELECT (SELECT COUNT(*) FROM list_subscribers WHERE at >= ?5), \
                     (SELECT COUNT(*) FROM list_subscribers WHERE domain = ?1 AND at >= ?5), \
                     (SELECT COUNT(*) FROM list_subscribers \
                      WHERE host = ?2 AND node = ?3 AND jid = ?4 AND at >= ?5), \
                     (SELECT COUNT(*) FROM list_subscribers WHERE domain = ?1 AND at >= ?5 \
                      AND (jid = ?6 OR substr(jid, 1, length(?6) + 1) = ?6 || '/')), \
                     (SELECT COUNT(*) FROM list_subscribers \
                      WHERE domain IN (SELECT value FROM json_each(?7)) AND at >= ?5)")
                .bind(jid.domain())
                .bind(host)
                .bind(node)
                .bind(jid.as_str())
                .bind(now - LASTS)
                .bind(jid.bare_str())
                .bind(ours),
            )
            .await?;
        let [all, own, known, one, inside] =
            rows.first().map_or([0; 5], |row| [0, 1, 2, 3, 4].map(|column| row.int(column)));
        let full = match self.host(jid.domain()).is_some() {
            true => one >= MOST_OF_DOMAIN || own >= MOST_OF_OURS || inside >= MOST_INSIDE,
            false => own >= MOST_OF_DOMAIN,
        };
        if known == 0 && (all >= MOST_SUBSCRIBERS || full) {
            return Ok(false);
        }
        let over = sql("DELETE FROM list_subscribers WHERE at < ?1").bind(now - LASTS);
        let insert =
            sql("INSERT INTO list_subscribers (host, node, jid, domain, at, since) VALUES (?1, ?2, ?3, ?4, ?5, ?5) \
                          ON CONFLICT (host, node, jid) DO UPDATE SET at = excluded.at")
            .bind(host)
            .bind(node)
            .bind(jid.as_str())
            .bind(jid.domain())
            .bind(now);
        self.db.run(Batch::new(request.lane()).with(over).with(insert)).await?;
        Ok(true)
    }

    /// Who reads the list goes on being subscribed.
    async fn renew(&self, request: &Request, node: &str, now: i64) -> Result<(), StoreError> {
        let update =
            sql("UPDATE list_subscribers SET at = ?1 WHERE host = ?2 AND node = ?3 AND jid IN (?4, ?5) \
                          AND at >= ?6")
            .bind(now)
            .bind(request.host.domain.as_str())
            .bind(node)
            .bind(request.from.as_str())
            .bind(request.from.bare_str())
            .bind(now - LASTS);
        self.db.run(Batch::new(request.lane()).with(update)).await?;
        Ok(())
    }

    /// Who follows our list; there are never more than [`MOST_SUBSCRIBERS`].
    pub(super) async fn subscribers(&self) -> Result<Outcome, OpError> {
        let rows = self
            .db
            .read(
                sql("SELECT jid, node, host, at, since FROM list_subscribers WHERE at >= ?1 \
                     ORDER BY domain, jid, node")
                .bind(self.clock().now() - LASTS),
            )
            .await
            .map_err(|error| OpError::Store(error.to_string()))?;
        let subscribers = rows.iter().map(|row| Subscriber {
            address: row.text(0).to_owned(),
            node: row.text(1).to_owned(),
            host: row.text(2).to_owned(),
            since: row.int(4),
            until: row.int(3) + LASTS,
        });
        Ok(Outcome::ListSubscribers { subscribers: subscribers.collect() })
    }

    /// Ends the subscriptions of an address, or of everybody at a domain.
    pub(super) async fn remove_subscriber(
        &self,
        actor: &Actor,
        who: &str,
        why: &str,
    ) -> Result<Outcome, OpError> {
        let jid = Jid::parse(who.trim())
            .map_err(|error| OpError::BadAddress(format!("{}: {error}", who.escape_debug())))?;
        let change = (Some(serde_json::json!({"address": jid.as_str()}).to_string()), None);
        let batch = Batch::new(Lane::Inside)
            .with(
                sql("DELETE FROM list_subscribers WHERE jid = ?1 OR (?2 AND domain = ?1)")
                    .bind(jid.as_str())
                    .bind(i64::from(jid.is_domain()))
                    .must_change(),
            )
            .with(self.control.audit.entry(actor, "lists remove-subscriber", why, change));
        self.db.run(batch).await.map_err(|error| match error {
            StoreError::Conflict => OpError::NotFound(format!("{jid} among the subscribers")),
            error => OpError::Store(error.to_string()),
        })?;
        Ok(Outcome::Done { text: format!("{jid} is not subscribed any more.") })
    }

    /// How many subscriptions ended.
    async fn unfollow(&self, host: &str, node: Option<&str>, jid: &Jid) -> Result<u64, StoreError> {
        let delete =
            sql("DELETE FROM list_subscribers WHERE host = ?1 AND (?2 IS NULL OR node = ?2) AND jid = ?3")
                .bind(host)
                .bind(node.map(str::to_owned))
                .bind(jid.as_str());
        let results = self.db.run(Batch::new(Lane::Outside).with(delete)).await?;
        Ok(results.first().map_or(0, Rows::changes))
    }

    /// An error came back to one of our domains: who is not there any more follows nothing (XEP-0060 s.7.1.2.3). What
    /// may be over tomorrow ends no subscription.
    pub(crate) async fn follower_error(self: Arc<Self>, stanza: Stanza) {
        let (Some(from), Some(to)) = (&stanza.head.from, &stanza.head.to) else { return };
        let error = stanza.children().find(|child| child.name() == "error").map(StanzaError::parse);
        let gone = error.is_some_and(|error| {
            matches!(error.condition, Condition::Gone | Condition::ItemNotFound | Condition::Forbidden)
        });
        if gone && let Err(error) = self.unfollow(to.domain(), None, from).await {
            tracing::warn!(%error, "a subscription could not be ended");
        }
    }

    /// What is on our own list.
    pub(super) async fn published(&self) -> Result<Vec<ListEntry>, OpError> {
        let rows = self
            .db
            .read(sql("SELECT entry, reason FROM own_list ORDER BY entry"))
            .await
            .map_err(|error| OpError::Store(error.to_string()))?;
        let entries = rows
            .iter()
            .map(|row| ListEntry { entry: row.text(0).to_owned(), reason: row.text(1).to_owned() });
        Ok(entries.collect())
    }

    /// Puts somebody on our own list.
    pub(super) async fn publish(
        self: &Arc<Self>,
        actor: &Actor,
        entry: &str,
        reason: &str,
    ) -> Result<Outcome, OpError> {
        let (wanted, written) = self.listable(entry)?;
        let reason = super::asking::short(reason.trim(), MOST_REASON);
        let _one_by_one = self.control.publication.changing.lock().await;
        let id = wanted.id();
        let store = |error: StoreError| OpError::Store(error.to_string());
        let rows = self
            .db
            .read(
                sql("SELECT (SELECT COUNT(*) FROM own_list), (SELECT reason FROM own_list WHERE item = ?1)")
                    .bind(id.as_str()),
            )
            .await
            .map_err(store)?;
        let (count, before) = match rows.first() {
            Some(row) => (row.int(0), row.opt_text(1).map(str::to_owned)),
            None => (0, None),
        };
        if before.is_none() && count >= MOST_PUBLISHED {
            return Err(OpError::NotPossible(format!(
                "{MOST_PUBLISHED} entries are published: that is the most"
            )));
        }
        let json = |reason: &str| serde_json::json!({"entry": written, "reason": reason}).to_string();
        let change = (before.map(|before| json(&before)), Some(json(&reason)));
        let batch = Batch::new(Lane::Inside)
            .with(
                sql("INSERT INTO own_list (item, entry, reason, at) VALUES (?1, ?2, ?3, ?4) \
                     ON CONFLICT (item) DO UPDATE SET entry = excluded.entry, reason = excluded.reason")
                .bind(id.as_str())
                .bind(written.as_str())
                .bind(reason.as_str())
                .bind(self.clock().now()),
            )
            .with(self.control.audit.entry(actor, "lists publish", &reason, change));
        self.db.run(batch).await.map_err(store)?;
        self.control.lists.own.write().add(wanted.clone(), reason.as_str().into());
        let told = self.announce(node_of(&wanted), |w| item(w, &id, &reason)).await.map_err(store)?;
        Ok(Outcome::Done { text: format!("{written} is on our list; {}.", were_told(told)) })
    }

    /// Takes somebody off our own list.
    pub(super) async fn retract(
        self: &Arc<Self>,
        actor: &Actor,
        entry: &str,
        why: &str,
    ) -> Result<Outcome, OpError> {
        let wanted = Entry::parse(entry.trim()).ok_or_else(|| {
            OpError::BadAddress(format!("{} is neither an address nor a domain", entry.escape_debug()))
        })?;
        let _one_by_one = self.control.publication.changing.lock().await;
        let id = wanted.id();
        let store = |error: StoreError| match error {
            StoreError::Conflict => OpError::NotFound(format!("{} on our list", entry.escape_debug())),
            error => OpError::Store(error.to_string()),
        };
        let before = serde_json::json!({"entry": entry}).to_string();
        let batch = Batch::new(Lane::Inside)
            .with(sql("DELETE FROM own_list WHERE item = ?1").bind(id.as_str()).must_change())
            .with(self.control.audit.entry(actor, "lists retract", why, (Some(before), None)));
        self.db.run(batch).await.map_err(store)?;
        self.control.lists.own.write().remove(&wanted);
        let told = self
            .announce(node_of(&wanted), |w| {
                w.open("retract").attr("id", &id).close();
            })
            .await
            .map_err(store)?;
        Ok(Outcome::Done { text: format!("{} is off our list; {}.", entry.trim(), were_told(told)) })
    }

    fn listable(&self, entry: &str) -> Result<(Entry, String), OpError> {
        let bad = |text: &str| OpError::BadAddress(format!("{} {text}", entry.escape_debug()));
        let jid = Jid::parse(entry.trim()).map_err(|_| bad("is neither an address nor a domain"))?.bare();
        if jid.is_domain() && self.host(jid.domain()).is_some() {
            return Err(bad("is ours"));
        }
        let wanted = Entry::parse(jid.as_str()).ok_or_else(|| bad("can't be listed"))?;
        Ok((wanted, jid.as_str().to_owned()))
    }

    /// Tells the subscribers of a node; how many.
    async fn announce(
        self: &Arc<Self>,
        node: &str,
        write: impl Fn(&mut Writer),
    ) -> Result<usize, StoreError> {
        let rows = self
            .db
            .read(
                sql("SELECT host, jid FROM list_subscribers WHERE node = ?1 AND at >= ?2")
                    .bind(node)
                    .bind(self.clock().now() - LASTS),
            )
            .await?;
        let mut w = Writer::new();
        w.open("event").attr("xmlns", ns::PUBSUB_EVENT).open("items").attr("node", node);
        write(&mut w);
        w.close().close();
        let payload = w.into_bytes();
        for row in rows.iter() {
            let (Ok(from), Ok(to)) = (Jid::parse(row.text(0)), Jid::parse(row.text(1))) else { continue };
            if self.host(from.domain()).is_none() {
                continue;
            }
            self.send(
                Stanza::build(Kind::Message(MessageType::Headline))
                    .from(from)
                    .to(to)
                    .id(self.ids.short())
                    .payload(payload.clone())
                    .done(),
            );
        }
        Ok(rows.len())
    }
}

fn were_told(subscribers: usize) -> String {
    match subscribers {
        1 => "1 subscriber was told".into(),
        more => format!("{more} subscribers were told"),
    }
}

/// Asks connected peers whether they want to be named, for ever; only where we publish whom we are connected with.
pub(crate) async fn ask_peers(exchange: Arc<Exchange>) {
    loop {
        tokio::time::sleep(ROUND).await;
        if !exchange.config.load().federation.server_info {
            continue;
        }
        let Some(from) = exchange.voice("") else { continue };
        let status = exchange.remote.get().map(|remote| remote.status()).unwrap_or_default();
        let now = exchange.clock().now();
        let unknown = status
            .peers
            .iter()
            .filter(|peer| !peer.streams.is_empty())
            .filter(|peer| exchange.control.profiles.fresh(&peer.domain, now).is_none());
        for peer in unknown.take(ASKED) {
            let Ok(domain) = Jid::parse(&peer.domain) else { continue };
            if let Err(error) = exchange.profile(&from, &domain).await {
                tracing::debug!(peer = %domain, %error, "a peer does not tell about itself");
            }
        }
    }
}
