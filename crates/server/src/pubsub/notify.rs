//! Who is told of a change, and how (s.7.1.2, s.12.4; XEP-0163 s.4).
//!
//! Told are subscribers, by the store; and at an account its own devices and those of contacts who see its presence,
//! as far as they said that they want to (+notify). Whether they may still read is asked again each time: who lost the
//! right gets nothing, whatever the store says.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use trunkline_store::{Lane, StoreError, sql};
use trunkline_xml::Writer;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, MessageType, Stanza};
use trunkline_xmpp::time;

use super::config::{NodeConfig, ReplyTo, Style};
use super::node::{self, Affiliation, Item, Node, Place, Subscription};
use super::{Desk, may_read};
use crate::route::Mail;
use crate::route::account::{Account, AccountState};

/// What there is to tell.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// Items are new or changed.
    Items(&'a [Item]),
    /// Items with these ids are gone.
    Retract(&'a [String]),
    /// All of them are.
    Purge,
    /// The node is gone; look there instead.
    Delete(Option<&'a str>),
    /// The configuration has changed.
    Config,
}

impl Event<'_> {
    fn write(&self, node: &Node, w: &mut Writer) {
        w.open("event").attr("xmlns", ns::PUBSUB_EVENT);
        match self {
            Event::Items(items) => {
                w.open("items").attr("node", &node.name);
                for item in *items {
                    write_item(w, item, node.config.payloads);
                }
                // A notification without items (s.7.1.3.6, "transient and without payload").
                w.close();
            }
            Event::Retract(ids) => {
                w.open("items").attr("node", &node.name);
                for id in *ids {
                    w.open("retract").attr("id", id).close();
                }
                w.close();
            }
            Event::Purge => {
                w.open("purge").attr("node", &node.name).close();
            }
            Event::Delete(redirect) => {
                w.open("delete").attr("node", &node.name);
                if let Some(uri) = redirect {
                    w.open("redirect").attr("uri", uri).close();
                }
                w.close();
            }
            Event::Config => {
                w.open("configuration").attr("node", &node.name);
                if node.config.payloads {
                    node.config.result().write(w);
                }
                w.close();
            }
        }
        w.close();
    }

    /// Whom subscribers answer to, if the node says so.
    fn reply_to(&self, desk: &Desk, node: &Node) -> Option<String> {
        match (node.config.reply_to?, self) {
            (ReplyTo::Publisher, Event::Items([item, ..])) => Some(item.publisher.clone()),
            (ReplyTo::Owner, Event::Items(_)) => desk.place.account().map(|account| account.jid.to_string()),
            _ => None,
        }
    }
}

/// One item; its payload came in and goes out as it is.
pub(super) fn write_item(w: &mut Writer, item: &Item, payload: bool) {
    w.open("item").attr("id", &item.id);
    if payload {
        w.raw(&item.payload);
    }
    w.close();
}

impl Desk {
    /// Tells everybody who is to be told.
    pub(super) async fn tell(&self, node: &Node, event: &Event<'_>) {
        match self.audience(node, false).await {
            Ok(told) => self.tell_them(node, event, told),
            Err(error) => tracing::error!(%error, "nobody could be told of a change of a node"),
        }
    }

    /// Everybody who has to do with a node (s.8.4.2).
    pub(super) async fn everybody(&self, node: &Node) -> Vec<Jid> {
        self.audience(node, true).await.unwrap_or_else(|error| {
            tracing::error!(%error, "nobody could be told of a change of a node");
            Vec::new()
        })
    }

    pub(super) fn tell_them(&self, node: &Node, event: &Event<'_>, told: Vec<Jid>) {
        let mut w = Writer::new();
        event.write(node, &mut w);
        if let Some(address) = event.reply_to(self, node) {
            w.open("addresses").attr("xmlns", ns::ADDRESS);
            w.open("address").attr("type", "replyto").attr("jid", &address).close();
            w.close();
        }
        let payload = w.into_bytes();
        for to in told {
            self.exchange.send(self.notification(&node.config, to, payload.clone()));
        }
    }

    fn notification(&self, config: &NodeConfig, to: Jid, payload: Bytes) -> Stanza {
        let kind = match config.style {
            Style::Headline => MessageType::Headline,
            Style::Normal => MessageType::Normal,
        };
        Stanza::build(Kind::Message(kind))
            .from(self.place.jid().clone())
            .to(to)
            .id(self.exchange.ids.short())
            .payload(payload)
            .done()
    }

    /// The last item, to somebody who subscribes or becomes available (s.6.1.7, XEP-0163 s.4.3.4).
    pub(super) fn last_item(&self, node: &Node, item: &Item, to: &Jid) -> Stanza {
        let mut w = Writer::new();
        Event::Items(std::slice::from_ref(item)).write(node, &mut w);
        // XEP-0203: not of this moment.
        w.open("delay").attr("xmlns", ns::DELAY).attr("stamp", &time::format_millis(item.at)).close();
        self.notification(&node.config, to.clone(), w.into_bytes())
    }

    /// To those who are not at home here: an answer, which costs the disk nothing. To our own: like every other.
    pub(super) fn send_last(&self, stanza: Stanza) {
        match self.lane {
            Lane::Outside => self.exchange.answer_with(stanza),
            Lane::Inside => self.exchange.send(stanza),
        }
    }

    /// Tells one person something about a node: their subscription, their affiliation.
    pub(super) async fn tell_one(&self, to: &Jid, write: impl FnOnce(&mut Writer)) {
        let stanza = Stanza::build(Kind::Message(MessageType::Headline))
            .from(self.place.jid().clone())
            .to(to.clone())
            .id(self.exchange.ids.short())
            .body(write)
            .done();
        Box::pin(self.exchange.deliver(Mail::answer(stanza))).await;
    }

    /// Who is told of what happens at `node`; `all`: whoever subscribes gets it, also who waits for approval or does not
    /// want notifications.
    async fn audience(&self, node: &Node, all: bool) -> Result<Vec<Jid>, StoreError> {
        let statements = vec![
            node::subscribers(node.id, self.exchange.clock().now()),
            sql("SELECT jid, affiliation FROM pubsub_affiliations WHERE node = ?1").bind(node.id),
        ];
        let results = self.exchange.db.read_all(self.lane, statements).await?;
        let [subscribers, affiliations] = results.as_slice() else { return Err(StoreError::Closed) };
        let subscribers = node::read_subscriptions(subscribers);
        let affiliations: HashMap<&str, Affiliation> = affiliations
            .iter()
            .filter_map(|row| Some((row.text(0), Affiliation::parse(row.text(1))?)))
            .collect();
        let mut told: Vec<Jid> = Vec::new();
        let wants =
            |subscription: &Subscription| all || (!subscription.pending && subscription.options.deliver);
        match &self.place {
            Place::Service(_) => {
                let admins = |jid: &Jid| self.exchange.is_admin(jid);
                told.extend(subscribers.into_iter().filter(wants).filter_map(|subscription| {
                    let affiliation =
                        if admins(&subscription.jid) { Affiliation::Owner } else { subscription.affiliation };
                    let standing = (affiliation, !subscription.pending);
                    let may = may_read(&node.config, standing, (None, &subscription.jid)).is_ok() || all;
                    may.then_some(subscription.jid)
                }));
            }
            Place::Account(account) => {
                let mut contacts = Vec::new();
                {
                    let state = account.state();
                    let may = |jid: &Jid, subscribed: bool, affiliation: Affiliation| {
                        let affiliation =
                            if jid.same_bare(&account.jid) { Affiliation::Owner } else { affiliation };
                        !state.blocks(jid)
                            && may_read(&node.config, (affiliation, subscribed), (Some(&state), jid)).is_ok()
                    };
                    told.extend(subscribers.into_iter().filter(wants).filter_map(|subscription| {
                        let (jid, affiliation) = (subscription.jid, subscription.affiliation);
                        may(&jid, !subscription.pending, affiliation).then_some(jid)
                    }));
                    told.extend(interested(&state, &node.name));
                    for (jid, item) in state.roster.iter() {
                        let affiliation = affiliations.get(jid.as_str()).copied().unwrap_or_default();
                        if item.subscription.from && may(jid, false, affiliation) {
                            contacts.push(jid.clone());
                        }
                    }
                }
                self.devices_of(account, (contacts, &node.name), &mut told);
            }
        }
        // Who subscribes with a bare address has told that all devices want it.
        let mut seen: HashSet<Jid> = HashSet::with_capacity(told.len());
        told.retain(|jid| !seen.contains(&jid.bare()) && seen.insert(jid.clone()));
        Ok(told)
    }

    /// The contacts' devices that want to be told of `node`: those of our own users, and those elsewhere that we know of.
    fn devices_of(&self, account: &Account, (contacts, node): (Vec<Jid>, &str), told: &mut Vec<Jid>) {
        let elsewhere: HashSet<Jid> = contacts
            .into_iter()
            .filter(|contact| {
                if self.exchange.host(contact.domain()).is_none() {
                    return true;
                }
                // One account's lock after the other.
                if let Some(contact) = self.exchange.accounts.online(contact) {
                    told.extend(interested(&contact.state(), node));
                }
                false
            })
            .collect();
        if !elsewhere.is_empty() {
            told.extend(
                self.exchange.pubsub.watchers.of(&account.jid, node, |jid| elsewhere.contains(&jid.bare())),
            );
        }
    }
}

/// The devices of an account that want to be told of `node`.
fn interested(state: &AccountState, node: &str) -> Vec<Jid> {
    let wants = |resource: &&crate::route::account::Resource| {
        let interests = resource.caps.as_ref().and_then(|seen| seen.interests.as_ref());
        resource.presence.is_some() && interests.is_some_and(|interests| interests.wants(node))
    };
    state.resources.iter().filter(wants).map(|resource| resource.session.jid.clone()).collect()
}
