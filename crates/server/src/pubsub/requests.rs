//! An IQ request to a place with nodes: read, done, answered.

use std::sync::Arc;

use trunkline_xml::{Node as Xml, Writer};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

use super::config::Filled;
use super::node::{Affiliation, Place};
use super::publish::MOST_AT_ONCE;
use super::read::Wanted;
use super::{Desk, NewItem, Terms, errors, owner};
use crate::modules::Request;

/// `None`: an empty result.
pub type Done = Result<Option<Vec<u8>>, StanzaError>;

impl Desk {
    /// Who asks, and where: at the account, or at the service of the domain that is addressed.
    pub fn of(request: &Request) -> Option<Desk> {
        let place = match &request.account {
            Some(account) => Place::Account(Arc::clone(account)),
            None => {
                let to = request.stanza.head.to.as_ref()?;
                Place::Service(Arc::clone(request.exchange.pubsub.service(to.domain())?))
            }
        };
        Some(Desk {
            exchange: Arc::clone(&request.exchange),
            place,
            who: request.from.clone(),
            lane: request.lane(),
            ours: false,
        })
    }
}

fn desk(request: &Request) -> Result<Desk, StanzaError> {
    Desk::of(request).ok_or_else(|| StanzaError::new(Condition::ServiceUnavailable))
}

fn payload<'a>(request: &'a Request, namespace: &str) -> Result<Xml<'a>, StanzaError> {
    request.stanza.child(namespace, "pubsub").ok_or_else(|| StanzaError::new(Condition::BadRequest))
}

fn node_of(element: Xml<'_>) -> Result<String, StanzaError> {
    let node = element.attr("node").filter(|node| !node.is_empty());
    node.map(|node| node.into_owned()).ok_or_else(errors::node_required)
}

fn is_yes(value: Option<&str>) -> bool {
    matches!(value, Some("1" | "true"))
}

/// What `<pubsub/>` of type get asks for.
enum Get {
    Items(String, Wanted),
    Subscriptions(Option<String>),
    Affiliations(Option<String>),
    Options(String, Option<Jid>),
    Default(Option<String>),
}

/// Answers `<pubsub/>` of type get.
///
/// # Errors
/// Those of XEP-0060.
pub async fn get(request: Request) -> Done {
    let desk = desk(&request)?;
    let wish = {
        let pubsub = payload(&request, ns::PUBSUB)?;
        let wish = pubsub.children().find(|child| child.ns() == ns::PUBSUB);
        let wish = wish.ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
        let maybe = || node_of(wish).ok();
        match wish.name() {
            "items" => Get::Items(node_of(wish)?, Wanted::read(pubsub, wish)?),
            "subscriptions" => Get::Subscriptions(maybe()),
            "affiliations" => Get::Affiliations(maybe()),
            "options" => {
                let jid = wish.attr("jid").and_then(|jid| Jid::parse(&jid).ok());
                Get::Options(node_of(wish)?, jid)
            }
            "default" => Get::Default(maybe()),
            _ => return Err(StanzaError::new(Condition::BadRequest)),
        }
    };
    match wish {
        Get::Items(node, wanted) => desk.retrieve(&node, wanted).await.map(Some),
        Get::Subscriptions(node) => desk.own_subscriptions(node.as_deref()).await.map(Some),
        Get::Affiliations(node) => desk.own_affiliations(node.as_deref()).await.map(Some),
        Get::Options(node, jid) => desk.options(&node, jid, None).await,
        Get::Default(node) => Ok(Some(desk.default_options(node.as_deref()))),
    }
}

/// What `<pubsub/>` of type set asks for.
enum Set {
    Publish(String, Vec<NewItem>, Terms),
    Retract(String, Vec<String>, bool),
    Create(Option<String>, Filled),
    Subscribe(String, Jid, Filled),
    Unsubscribe(String, Jid),
    Options(String, Option<Jid>, Filled),
}

/// Answers `<pubsub/>` of type set.
///
/// # Errors
/// Those of XEP-0060.
pub async fn set(request: Request) -> Done {
    let desk = desk(&request)?;
    let wish = read_set(&desk, payload(&request, ns::PUBSUB)?)?;
    match wish {
        Set::Publish(node, items, terms) => {
            let ids = desk.publish(&node, items, terms).await?;
            let mut w = Writer::new();
            w.open("pubsub").attr("xmlns", ns::PUBSUB);
            w.open("publish").attr("node", &node);
            for id in ids {
                w.open("item").attr("id", &id).close();
            }
            w.close().close();
            Ok(Some(w.finish()))
        }
        Set::Retract(node, ids, notify) => desk.retract(&node, &ids, notify).await.map(|()| None),
        Set::Create(node, form) => {
            let instant = node.is_none();
            let name = desk.create(node.as_deref(), form).await?;
            if !instant {
                return Ok(None);
            }
            let mut w = Writer::new();
            w.open("pubsub").attr("xmlns", ns::PUBSUB);
            w.open("create").attr("node", &name).close().close();
            Ok(Some(w.finish()))
        }
        Set::Subscribe(node, jid, options) => desk.subscribe(&node, jid, options).await.map(Some),
        Set::Unsubscribe(node, jid) => desk.unsubscribe(&node, &jid).await.map(|()| None),
        Set::Options(node, jid, form) => desk.options(&node, jid, Some(form)).await,
    }
}

fn read_set(desk: &Desk, pubsub: Xml<'_>) -> Result<Set, StanzaError> {
    let wish = pubsub.children().find(|child| child.ns() == ns::PUBSUB);
    let wish = wish.ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    let beside = |name| pubsub.child(ns::PUBSUB, name);
    let options = |parent: Option<Xml<'_>>| match parent {
        Some(parent) => Filled::read(parent, ns::PUBSUB_SUBSCRIBE_OPTIONS)
            .map_err(|_| errors::specific(Condition::BadRequest, "invalid-options")),
        None => Ok(Filled::Nothing),
    };
    Ok(match wish.name() {
        "publish" => {
            let terms = match beside("publish-options") {
                Some(options) => match Filled::read(options, ns::PUBSUB_PUBLISH_OPTIONS)? {
                    Filled::Form(form) => Terms::Options(form),
                    Filled::Nothing | Filled::Cancelled => Terms::Any,
                },
                None => Terms::Any,
            };
            Set::Publish(node_of(wish)?, new_items(wish)?, terms)
        }
        "retract" => {
            let items = wish.children().filter(|item| item.is(ns::PUBSUB, "item"));
            let ids: Option<Vec<String>> =
                items.take(MOST_AT_ONCE + 1).map(|item| item.attr("id").map(|id| id.into_owned())).collect();
            let ids = ids.ok_or_else(|| errors::specific(Condition::BadRequest, "item-required"))?;
            Set::Retract(node_of(wish)?, ids, is_yes(wish.attr("notify").as_deref()))
        }
        "create" => {
            let form = match beside("configure") {
                // s.8.1.3: it stands for the node that is created.
                Some(configure) if configure.attr("node").is_some() => {
                    return Err(errors::bad("The configuration of a new node names no node."));
                }
                Some(configure) => Filled::read(configure, ns::PUBSUB_NODE_CONFIG)?,
                None => Filled::Nothing,
            };
            Set::Create(node_of(wish).ok(), form)
        }
        "subscribe" => {
            let given = beside("options");
            if given.is_some_and(|options| options.attr("node").or(options.attr("jid")).is_some()) {
                return Err(errors::bad(
                    "The options of a new subscription name neither a node nor an address.",
                ));
            }
            Set::Subscribe(node_of(wish)?, desk.subscriber(wish)?, options(given)?)
        }
        // s.6.2.3.5: a subscription has no id here, and one that is given is passed over.
        "unsubscribe" => Set::Unsubscribe(node_of(wish)?, desk.unsubscriber(wish)?),
        // s.6.3.7
        "options" if beside("subscribe").is_some() => {
            return Err(errors::bad("The options of a new subscription stand behind it."));
        }
        "options" => {
            let jid = wish.attr("jid").and_then(|jid| Jid::parse(&jid).ok());
            Set::Options(node_of(wish)?, jid, options(Some(wish))?)
        }
        _ => return Err(StanzaError::new(Condition::BadRequest)),
    })
}

/// What declarations around the payloads of a request may add to them, beside as much as it has bytes.
const MOST_ADDED: usize = 65_536;

/// What is published: at most one element in each item (s.7.1.3.5).
fn new_items(publish: Xml<'_>) -> Result<Vec<NewItem>, StanzaError> {
    let mut items = Vec::new();
    let mut room = 2 * publish.raw().len() + MOST_ADDED;
    for item in publish.children().filter(|item| item.is(ns::PUBSUB, "item")) {
        let mut children = item.children();
        let within = |child: Xml<'_>| {
            child.to_standalone_within("", &mut room).ok_or_else(|| {
                errors::specific(Condition::NotAcceptable, "payload-too-big")
                    .text("With what is declared around them these items are too long.")
            })
        };
        let payload = children.next().map(within).transpose()?;
        if children.next().is_some() {
            return Err(errors::specific(Condition::BadRequest, "invalid-payload")
                .text("An item has one element in it."));
        }
        if items.len() > MOST_AT_ONCE {
            return Err(errors::specific(Condition::NotAllowed, "max-items-exceeded"));
        }
        let id = item.attr("id").filter(|id| !id.is_empty()).map(|id| id.into_owned());
        items.push(NewItem { id, payload: payload.unwrap_or_default() });
    }
    Ok(items)
}

/// What an owner asks for.
enum Owner {
    Form(Option<String>),
    Subscriptions(String),
    Affiliations(String),
}

/// Answers `<pubsub/>` of an owner, of type get.
///
/// # Errors
/// Those of XEP-0060.
pub async fn owner_get(request: Request) -> Done {
    let desk = desk(&request)?;
    let wish = {
        let pubsub = payload(&request, ns::PUBSUB_OWNER)?;
        let wish = pubsub.first_child().ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
        match wish.name() {
            "configure" => Owner::Form(Some(node_of(wish)?)),
            "default" => Owner::Form(None),
            "subscriptions" => Owner::Subscriptions(node_of(wish)?),
            "affiliations" => Owner::Affiliations(node_of(wish)?),
            _ => return Err(StanzaError::new(Condition::BadRequest)),
        }
    };
    match wish {
        Owner::Form(node) => desk.configuration(node.as_deref()).await.map(Some),
        Owner::Subscriptions(node) => desk.subscriptions(&node).await.map(Some),
        Owner::Affiliations(node) => desk.affiliations(&node).await.map(Some),
    }
}

/// What an owner wants to be.
enum Change {
    Configure(String, Filled),
    Delete(String, Option<String>),
    Purge(String),
    Subscriptions(String, Vec<(Jid, String)>),
    Affiliations(String, Vec<(Jid, Affiliation)>),
}

/// Answers `<pubsub/>` of an owner, of type set.
///
/// # Errors
/// Those of XEP-0060.
pub async fn owner_set(request: Request) -> Done {
    let desk = desk(&request)?;
    let wish = {
        let pubsub = payload(&request, ns::PUBSUB_OWNER)?;
        let wish = pubsub.first_child().ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
        let node = || node_of(wish);
        match wish.name() {
            "configure" => Change::Configure(node()?, Filled::read(wish, ns::PUBSUB_NODE_CONFIG)?),
            "delete" => {
                let redirect = wish.child(ns::PUBSUB_OWNER, "redirect");
                Change::Delete(node()?, redirect.and_then(|to| to.attr("uri")).map(|uri| uri.into_owned()))
            }
            "purge" => Change::Purge(node()?),
            "subscriptions" => Change::Subscriptions(node()?, owner::changes(wish, "subscription")?),
            "affiliations" => {
                let changes = owner::changes(wish, "affiliation")?.into_iter().map(|(jid, name)| {
                    let affiliation = Affiliation::parse(&name);
                    affiliation.map(|affiliation| (jid, affiliation)).ok_or_else(|| {
                        StanzaError::new(Condition::NotAcceptable).text("There is no such affiliation.")
                    })
                });
                Change::Affiliations(node()?, changes.collect::<Result<_, _>>()?)
            }
            _ => return Err(StanzaError::new(Condition::BadRequest)),
        }
    };
    match wish {
        Change::Configure(node, form) => desk.configure(&node, form).await?,
        Change::Delete(node, redirect) => desk.delete(&node, redirect.as_deref()).await?,
        Change::Purge(node) => desk.purge(&node).await?,
        Change::Subscriptions(node, changes) => desk.set_subscriptions(&node, changes).await?,
        Change::Affiliations(node, changes) => desk.set_affiliations(&node, changes).await?,
    }
    Ok(None)
}
