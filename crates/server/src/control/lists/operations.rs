//! What can be asked of the lists, and what is answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trunkline_store::{Batch, Lane, sql};
use trunkline_xmpp::jid::Jid;

use super::{List, MOST_LISTS, OWN, Origin};
use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::control::publication;
use crate::control::rule::Action;
use crate::exchange::Exchange;

/// Entries on one page of [`ListsOp::Items`].
const PAGE: usize = 500;

/// What can be asked of the lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ListsOp {
    /// All lists.
    Show,
    /// Follows a list.
    Subscribe {
        /// Its name here, for rules (`listed_in`).
        name: String,
        /// The address of its pubsub service.
        service: String,
        /// The node.
        node: String,
        /// What is done with those on it; `None`: only rules that name the list apply.
        #[serde(default)]
        action: Option<Action>,
        /// For the audit log.
        why: String,
    },
    /// Stops following a list.
    Unsubscribe {
        /// Its name here.
        name: String,
        /// For the audit log.
        why: String,
    },
    /// What is on a list, a page at a time.
    Items {
        /// Its name here; `own` is the one that we publish.
        name: String,
        /// After this entry: the last one of the page before.
        #[serde(default)]
        after: Option<String>,
    },
    /// Puts an address or a domain on our own list.
    Publish {
        /// A bare address or a domain; addresses are published as their SHA-256.
        entry: String,
        /// Everybody can read it.
        reason: String,
    },
    /// Takes it off our own list.
    Retract {
        /// As it was published.
        entry: String,
        /// For the audit log.
        why: String,
    },
    /// Who follows our own list.
    Subscribers,
    /// Ends subscriptions of our own list.
    RemoveSubscriber {
        /// Of this address, or of everybody at this domain.
        address: String,
        /// For the audit log.
        why: String,
    },
}

/// Who follows our own list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Subscriber {
    /// Who is told.
    pub address: String,
    /// Which node.
    pub node: String,
    /// Of which of our domains.
    pub host: String,
    /// Since when, milliseconds since 1970.
    pub since: i64,
    /// When it ends unless it is renewed, milliseconds since 1970.
    pub until: i64,
}

/// A list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListView {
    /// Its name here; `own` is the one that we publish.
    pub name: String,
    /// The address of its pubsub service.
    pub service: String,
    /// The node.
    pub node: String,
    /// What is done with those on it.
    pub action: Option<Action>,
    /// Entries.
    pub entries: u64,
    /// `subscribed`, or why not, in words.
    pub state: String,
    /// The last change, milliseconds since 1970.
    pub changed_at: Option<i64>,
    /// Stanzas that it decided since the start; without an action, how often it was asked and had somebody.
    pub hits: u64,
}

/// What is on a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListEntry {
    /// A domain, an address, or the hash of one in hex.
    pub entry: String,
    /// Why, as the list says.
    pub reason: String,
}

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(exchange: &Arc<Exchange>, actor: &Actor, op: ListsOp) -> Result<Outcome, OpError> {
    match op {
        ListsOp::Show => Ok(show(exchange)),
        ListsOp::Subscribe { name, service, node, action, why } => {
            subscribe(exchange, actor, Wish { name, service, node, action, why }).await
        }
        ListsOp::Unsubscribe { name, why } => unsubscribe(exchange, actor, &name, &why).await,
        ListsOp::Items { name, after } => items(exchange, &name, after.as_deref()).await,
        ListsOp::Publish { entry, reason } => exchange.publish(actor, &entry, &reason).await,
        ListsOp::Retract { entry, why } => exchange.retract(actor, &entry, &why).await,
        ListsOp::Subscribers => exchange.subscribers().await,
        ListsOp::RemoveSubscriber { address, why } => exchange.remove_subscriber(actor, &address, &why).await,
    }
}

fn show(exchange: &Exchange) -> Outcome {
    let lists = &exchange.control.lists;
    let mut views: Vec<ListView> = lists.followed.load().values().map(|list| list.view()).collect();
    views.push(ListView {
        name: OWN.into(),
        service: exchange.config.load().domain.clone(),
        node: publication::NODES.join(", "),
        action: None,
        entries: lists.own.read().len() as u64,
        state: "published".into(),
        changed_at: None,
        hits: lists.own_hits.load(Ordering::Relaxed),
    });
    Outcome::Lists { lists: views }
}

/// A list to be followed.
struct Wish {
    name: String,
    service: String,
    node: String,
    action: Option<Action>,
    why: String,
}

async fn subscribe(exchange: &Arc<Exchange>, actor: &Actor, wish: Wish) -> Result<Outcome, OpError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if wish.name.is_empty() || wish.name.len() > 64 || !wish.name.chars().all(fine) || wish.name == OWN {
        return Err(OpError::BadRequest(format!(
            "\"{}\" can't be a list's name: use letters, digits, dots, - and _, and not \"{OWN}\"",
            wish.name.escape_debug()
        )));
    }
    let service = Jid::parse(&wish.service)
        .map_err(|error| OpError::BadAddress(format!("{}: {error}", wish.service.escape_debug())))?;
    if exchange.host(service.domain()).is_some() {
        return Err(OpError::NotPossible("that is our own list: rules know it as \"own\"".into()));
    }
    if wish.node.is_empty() || wish.node.len() > 1024 {
        return Err(OpError::BadRequest("a node has a name of 1 to 1024 bytes".into()));
    }
    let lists = &exchange.control.lists;
    let _changing = lists.changing.lock().await;
    let followed = lists.followed.load_full();
    if followed.contains_key(&wish.name) {
        return Err(OpError::Exists(format!("the list {}", wish.name)));
    }
    if followed.len() >= MOST_LISTS {
        return Err(OpError::NotPossible(format!("{MOST_LISTS} lists are followed: that is the most")));
    }
    let action = wish.action.as_ref().and_then(|action| serde_json::to_string(action).ok());
    let after = serde_json::json!({
        "name": wish.name, "service": service.as_str(), "node": wish.node, "action": wish.action,
    });
    let batch = Batch::new(Lane::Inside)
        .with(
            sql("INSERT INTO lists (name, service, node, action, run_time) VALUES (?1, ?2, ?3, ?4, 1)")
                .bind(wish.name.as_str())
                .bind(service.as_str())
                .bind(wish.node.as_str())
                .bind(action),
        )
        .with(exchange.control.audit.entry(
            actor,
            "lists subscribe",
            &wish.why,
            (None, Some(after.to_string())),
        ));
    exchange.db.run(batch).await.map_err(|error| OpError::Store(error.to_string()))?;
    let list = List::new(&wish.name, service, &wish.node, (wish.action, Origin::RunTime));
    let mut all = BTreeMap::clone(&followed);
    all.insert(wish.name.clone(), Arc::clone(&list));
    lists.set(all);
    exchange.follow(&list);
    Ok(Outcome::Done { text: format!("{} is followed; `lists show` tells its state.", wish.name) })
}

async fn unsubscribe(
    exchange: &Arc<Exchange>,
    actor: &Actor,
    name: &str,
    why: &str,
) -> Result<Outcome, OpError> {
    let lists = &exchange.control.lists;
    let _changing = lists.changing.lock().await;
    let followed = lists.followed.load_full();
    let list =
        followed.get(name).ok_or_else(|| OpError::NotFound(format!("list {}", name.escape_debug())))?;
    if list.state.lock().origin == Origin::Configured {
        return Err(OpError::NotPossible(format!("{name} stands in the configuration: take it out there")));
    }
    // Nobody adds a rule that names it, or writes its rows, until it is gone.
    let _writes = exchange.control.policy.held().await;
    let named = exchange.control.policy.rules_on(name);
    if !named.is_empty() {
        return Err(OpError::NotPossible(format!(
            "{} asks for this list: change or remove it first",
            named.join(", ")
        )));
    }
    let _turn = list.turn.lock().await;
    let before = serde_json::to_string(&list.view()).ok();
    let batch = Batch::new(Lane::Inside)
        .with(sql("DELETE FROM lists WHERE name = ?1").bind(name))
        .with(exchange.control.audit.entry(actor, "lists unsubscribe", why, (before, None)));
    exchange.db.run(batch).await.map_err(|error| OpError::Store(error.to_string()))?;
    list.state.lock().ended = true;
    list.wake.notify_one();
    let mut all = BTreeMap::clone(&followed);
    all.remove(name);
    lists.set(all);
    exchange.leave(list);
    Ok(Outcome::Done { text: format!("{name} is not followed any more.") })
}

async fn items(exchange: &Exchange, name: &str, after: Option<&str>) -> Result<Outcome, OpError> {
    let lists = &exchange.control.lists;
    let mut items: Vec<ListEntry> = if name == OWN {
        exchange.published().await?
    } else {
        let followed = lists.followed.load();
        let list =
            followed.get(name).ok_or_else(|| OpError::NotFound(format!("list {}", name.escape_debug())))?;
        let entries = list.entries.read();
        entries
            .iter()
            .map(|(entry, reason)| ListEntry { entry: entry.id(), reason: reason.to_owned() })
            .collect()
    };
    items.retain(|item| after.is_none_or(|after| item.entry.as_str() > after));
    items.sort_by(|a, b| a.entry.cmp(&b.entry));
    let more = items.len() > PAGE;
    items.truncate(PAGE);
    Ok(Outcome::ListItems { items, more })
}
