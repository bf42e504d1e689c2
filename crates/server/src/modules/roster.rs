//! RFC 6121 s.2 Roster, with versioning (s.2.6, XEP-0237 1.3).

use std::collections::BTreeSet;

use trunkline_store::{Lane, sql};
use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::{Get, Set};
use trunkline_xmpp::stanza::{Kind, PresenceType, Stanza};

use super::{Answer, Level, Module, Reply, Request, Scope};
use crate::route::Queued;
use crate::route::message::store_trouble;
use crate::route::roster::{Item, Roster, write_item};

/// Bytes of a contact's name or group (RFC 6121 s.2.3.3: `not-acceptable` beyond).
const MOST_NAME: usize = 1023;
const MOST_GROUPS: usize = 50;
/// Changes sent one by one to a client that has an older version; beyond that the whole roster is shorter.
const MOST_CHANGES: usize = 100;

/// The contact list.
pub fn module() -> Module {
    Module::new("roster", "Keep the contact list")
        .xep(237, "1.3", Level::Complete)
        .iq(Scope::Account, Get, (ns::ROSTER, "query"), get)
        .iq(Scope::Account, Set, (ns::ROSTER, "query"), set)
        .iq(Scope::Contact, Get, (ns::ROSTER, "query"), forbidden)
        .iq(Scope::Contact, Set, (ns::ROSTER, "query"), forbidden)
}

/// RFC 6121 s.2.2 and s.2.6.3.
async fn get(request: Request) -> Answer {
    let (Some(account), Some(session)) = (&request.account, &request.session) else {
        return Err(StanzaError::new(Condition::Forbidden));
    };
    let known = request
        .stanza
        .first_child()
        .and_then(|query| query.attr("ver"))
        .and_then(|version| version.parse::<i64>().ok());
    let removed: Vec<(Jid, i64)> = match known {
        None => Vec::new(),
        Some(known) => request
            .exchange
            .db
            .read(
                sql("SELECT jid, version FROM roster WHERE account = ?1 AND removed = 1 AND version > ?2")
                    .bind(account.id)
                    .bind(known),
            )
            .await
            .map_err(|error| store_trouble(&error))?
            .iter()
            .filter_map(|row| Some((Jid::parse(row.text(0)).ok()?, row.int(1))))
            .collect(),
    };
    // Read behind the deletions: what was forgotten in between raises it.
    let floor = match known {
        None => 0,
        Some(_) => request
            .exchange
            .db
            .read(sql(Roster::FLOOR).bind(account.id))
            .await
            .map_err(|error| store_trouble(&error))?
            .first()
            .map_or(0, |row| row.int(0)),
    };
    let mut state = account.state();
    if let Some(resource) = state.resource_of(session) {
        resource.interested = true;
    }
    let version = state.roster.version;
    if let Some(known) = known.filter(|known| (floor..=version).contains(known)) {
        let mut changes: Vec<(i64, Vec<u8>)> = Vec::new();
        let change = |jid: &Jid, item: Option<&Item>, version: i64| {
            let mut w = Writer::new();
            w.open("query").attr("xmlns", ns::ROSTER).attr("ver", &version.to_string());
            write_item(&mut w, jid, item);
            w.close();
            (version, w.finish())
        };
        for (jid, item) in state.roster.iter().filter(|(_, item)| item.listed && item.version > known) {
            changes.push(change(jid, Some(item), item.version));
        }
        for (jid, version) in &removed {
            // It may have come back since.
            if state.roster.get(jid).is_none_or(|item| !item.listed) {
                changes.push(change(jid, None, *version));
            }
        }
        if changes.len() <= MOST_CHANGES {
            changes.sort_by_key(|(version, _)| *version);
            // s.2.6.3: an empty result first, then a push for each change.
            session.push(Queued::plain(request.stanza.reply().done()));
            for (_, payload) in changes {
                request.exchange.push_iq(session, payload);
            }
            return Ok(Reply::Sent);
        }
    }
    let mut w = Writer::new();
    w.open("query").attr("xmlns", ns::ROSTER).attr("ver", &version.to_string());
    for (jid, item) in state.roster.iter().filter(|(_, item)| item.listed) {
        write_item(&mut w, jid, Some(item));
    }
    w.close();
    Ok(w.finish().into())
}

/// RFC 6121 s.2.3 to s.2.5.
async fn set(request: Request) -> Answer {
    let Some(account) = request.account.clone() else {
        return Err(StanzaError::new(Condition::Forbidden));
    };
    let (jid, wanted) = parse(&request.stanza)?;
    if jid.same_bare(&account.jid) {
        return Err(StanzaError::new(Condition::NotAllowed).text("Your own address can't be in your roster."));
    }
    let writing = account.writes.lock().await;
    let (before, count) = {
        let state = account.state();
        (state.roster.get(&jid).cloned(), state.roster.len())
    };
    let Some(wanted) = wanted else {
        let listed = before.as_ref().is_some_and(|item| item.listed);
        let Some(before) = before.filter(|_| listed) else {
            return Err(StanzaError::new(Condition::ItemNotFound));
        };
        drop(writing);
        // s.2.5.2: the removal ends the subscriptions. They end before the item goes: after a crash in between the
        // removal can be asked for again.
        let mut farewells = Vec::new();
        if before.subscription.to || before.subscription.pending_out {
            farewells.push(PresenceType::Unsubscribe);
        }
        if before.subscription.from {
            farewells.push(PresenceType::Unsubscribed);
            request.exchange.hide_presence(&account, &jid);
        }
        for kind in farewells {
            let stanza = Stanza::build(Kind::Presence(kind)).from(account.jid.clone()).to(jid.clone()).done();
            request.exchange.deliver(crate::route::Mail::inside(stanza)).await;
        }
        let _writing = account.writes.lock().await;
        request.exchange.change_item(&account, &jid, None, Lane::Inside).await?;
        return Ok(Reply::Empty);
    };
    let most = request.exchange.config.load().limits.roster_items;
    if before.is_none() && count >= most {
        return Err(StanzaError::new(Condition::ResourceConstraint)
            .text(format!("A roster holds {most} contacts, and no place is left.")));
    }
    let mut item = before.unwrap_or_default();
    item.name = wanted.name;
    item.groups = wanted.groups;
    item.listed = true;
    request.exchange.change_item(&account, &jid, Some(item), Lane::Inside).await?;
    Ok(Reply::Empty)
}

/// RFC 6121 s.2.3.3: nobody but its owner reads or changes a roster.
async fn forbidden(_: Request) -> Answer {
    Err(StanzaError::new(Condition::Forbidden))
}

/// RFC 6121 s.2.3.3: the errors of a roster set. `None` is a removal.
fn parse(stanza: &Stanza) -> Result<(Jid, Option<Item>), StanzaError> {
    let bad = |text: &str| StanzaError::new(Condition::BadRequest).text(text);
    let query = stanza.first_child().ok_or_else(|| bad("There is no query."))?;
    let mut items = query.children();
    let item =
        items.next().filter(|item| item.is(ns::ROSTER, "item")).ok_or_else(|| bad("There is no item."))?;
    if items.next().is_some() {
        return Err(bad("A roster set has one item."));
    }
    let jid = item.attr("jid").ok_or_else(|| bad("The item has no jid."))?;
    let jid = Jid::parse(&jid)
        .map_err(|_| StanzaError::new(Condition::JidMalformed).text("The item's jid is no address."))?
        .bare();
    if item.attr("subscription").as_deref() == Some("remove") {
        return Ok((jid, None));
    }
    let mut groups = BTreeSet::new();
    for group in item.children().filter(|child| child.is(ns::ROSTER, "group")) {
        let group = group.text().into_owned();
        if group.is_empty() || group.len() > MOST_NAME {
            return Err(
                StanzaError::new(Condition::NotAcceptable).text("A group's name is empty or too long.")
            );
        }
        if !groups.insert(group) {
            return Err(bad("A group is named twice."));
        }
    }
    if groups.len() > MOST_GROUPS {
        return Err(StanzaError::new(Condition::NotAcceptable).text("Too many groups."));
    }
    let name = item.attr("name").map(|name| name.into_owned()).filter(|name| !name.is_empty());
    if name.as_ref().is_some_and(|name| name.len() > MOST_NAME) {
        return Err(StanzaError::new(Condition::NotAcceptable).text("The name is too long."));
    }
    Ok((jid, Some(Item { name, groups: groups.into_iter().collect(), ..Item::default() })))
}
