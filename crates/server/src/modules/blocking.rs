//! XEP-0191 Blocking Command 1.3, with XEP-0377 Blocking Command Reports 0.4.1: the queue is
//! [`crate::control::reports`].

use std::collections::BTreeSet;

use trunkline_store::{Batch, Lane, sql};
use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::{Get, Set};
use trunkline_xmpp::stanza::{Kind, MessageType, Stanza};

use super::{Answer, Flow, Level, Module, Passage, Reply, Request, Scope, Step, Way};
use crate::control::reports::Complaint;
use crate::route::account::Account;
use crate::route::blocked_error;
use crate::route::message::store_trouble;

/// Addresses in one request.
const MOST_BLOCKED: usize = 5000;

/// The block list.
pub fn module() -> Module {
    Module::new("blocking", "Block addresses and domains")
        .xep(191, "1.3", Level::Complete)
        .xep(377, "0.4.1", Level::Complete)
        .feature(Scope::Host, ns::BLOCKING)
        .feature(Scope::Account, ns::BLOCKING)
        .feature(Scope::Host, ns::REPORTING)
        .feature(Scope::Account, ns::REPORTING)
        .iq(Scope::Account, Get, (ns::BLOCKING, "blocklist"), list)
        .iq(Scope::Account, Set, (ns::BLOCKING, "block"), block)
        .iq(Scope::Account, Set, (ns::BLOCKING, "unblock"), unblock)
        .on(Way::Sent, Step::Filter, filter_sent)
        .on(Way::Received, Step::Filter, filter_received)
}

fn filter_sent(passage: &mut Passage<'_>) -> Flow {
    match &passage.stanza.head.to {
        Some(to) if passage.state.blocks(to) => Flow::Refuse(blocked_error()),
        _ => Flow::Pass,
    }
}

/// s.3.2: messages are refused with `service-unavailable`, as if the account were not there.
fn filter_received(passage: &mut Passage<'_>) -> Flow {
    let Some(from) = &passage.stanza.head.from else { return Flow::Pass };
    if !passage.state.blocks(from) {
        return Flow::Pass;
    }
    match passage.stanza.head.kind {
        Kind::Message(MessageType::Error) => Flow::Drop("blocked-error"),
        _ => Flow::Refuse(StanzaError::new(Condition::ServiceUnavailable)),
    }
}

async fn list(request: Request) -> Answer {
    let Some(account) = &request.account else { return Err(StanzaError::new(Condition::Forbidden)) };
    let mut state = account.state();
    if let Some(session) = &request.session
        && let Some(resource) = state.resource_of(session)
    {
        resource.block_interested = true;
    }
    let mut w = Writer::new();
    w.open("blocklist").attr("xmlns", ns::BLOCKING);
    for jid in &state.blocked {
        w.open("item").attr("jid", jid.as_str()).close();
    }
    w.close();
    Ok(w.finish().into())
}

async fn block(request: Request) -> Answer {
    let Some(account) = request.account.clone() else { return Err(StanzaError::new(Condition::Forbidden)) };
    let jids = items(&request.stanza)?;
    if jids.is_empty() {
        return Err(StanzaError::new(Condition::BadRequest).text("There is nobody to block."));
    }
    let complaints = Complaint::of_block(&request.stanza)?;
    let writing = account.writes.lock().await;
    let (new, count) = {
        let state = account.state();
        let new: Vec<Jid> = jids.iter().filter(|jid| !state.blocked.contains(*jid)).cloned().collect();
        (new, state.blocked.len())
    };
    let most = request.exchange.config.load().limits.blocked_items;
    if count + new.len() > most {
        return Err(StanzaError::new(Condition::ResourceConstraint).text(format!(
            "A block list holds {most} addresses; {} are left, this takes {}.",
            most.saturating_sub(count),
            new.len()
        )));
    }
    let mut reports =
        request.exchange.take_reports(&account, complaints).await.map_err(|error| store_trouble(&error))?;
    if !new.is_empty() || !reports.statements.is_empty() {
        let mut batch = Batch::new(Lane::Inside);
        for statement in std::mem::take(&mut reports.statements) {
            batch.push(statement);
        }
        for jid in &new {
            batch.push(
                sql("INSERT INTO blocked (account, jid) VALUES (?1, ?2) ON CONFLICT DO NOTHING")
                    .bind(account.id)
                    .bind(jid.as_str()),
            );
        }
        request.exchange.db.run(batch).await.map_err(|error| store_trouble(&error))?;
    }
    // s.3.2: whoever sees the user's presence sees them go, before the block takes effect.
    for contact in newly(&account, &new, true) {
        request.exchange.hide_presence(&account, &contact);
    }
    account.state().blocked.extend(new.iter().cloned());
    request.exchange.block_strangers(&account, &new).await.map_err(|error| store_trouble(&error))?;
    drop(writing);
    request.exchange.reports_stored(reports);
    push(&request, &account, "block", &jids);
    Ok(Reply::Empty)
}

async fn unblock(request: Request) -> Answer {
    let Some(account) = request.account.clone() else { return Err(StanzaError::new(Condition::Forbidden)) };
    let jids = items(&request.stanza)?;
    let writing = account.writes.lock().await;
    let old: Vec<Jid> = {
        let state = account.state();
        if jids.is_empty() {
            // s.3.4: an empty unblock ends every block.
            state.blocked.iter().cloned().collect()
        } else {
            jids.iter().filter(|jid| state.blocked.contains(*jid)).cloned().collect()
        }
    };
    if !old.is_empty() {
        let mut batch = Batch::new(Lane::Inside);
        for jid in &old {
            batch.push(
                sql("DELETE FROM blocked WHERE account = ?1 AND jid = ?2")
                    .bind(account.id)
                    .bind(jid.as_str()),
            );
        }
        request.exchange.db.run(batch).await.map_err(|error| store_trouble(&error))?;
    }
    let contacts = newly(&account, &old, false);
    {
        let mut state = account.state();
        for jid in &old {
            state.blocked.remove(jid);
        }
    }
    drop(writing);
    // s.3.3: contacts with a subscription see the user again.
    for contact in contacts {
        if !account.state().blocks(&contact) {
            request.exchange.show_presence(&account, &contact);
        }
    }
    push(&request, &account, "unblock", &jids);
    Ok(Reply::Empty)
}

/// Contacts with a subscription to the user whom `changed` covers; `open`: only those not blocked now.
fn newly(account: &Account, changed: &[Jid], open: bool) -> Vec<Jid> {
    let state = account.state();
    let covers = |blocked: &Jid, contact: &Jid| {
        blocked == contact || (blocked.local().is_none() && blocked.domain() == contact.domain())
    };
    state
        .roster
        .iter()
        .filter(|(_, item)| item.subscription.from)
        .map(|(jid, _)| jid)
        .filter(|jid| changed.iter().any(|blocked| covers(blocked, jid)) && (!open || !state.blocks(jid)))
        .cloned()
        .collect()
}

fn push(request: &Request, account: &Account, name: &str, jids: &[Jid]) {
    let mut w = Writer::new();
    w.open(name).attr("xmlns", ns::BLOCKING);
    for jid in jids {
        w.open("item").attr("jid", jid.as_str()).close();
    }
    w.close();
    let payload = w.finish();
    let state = account.state();
    for resource in state.resources.iter().filter(|resource| resource.block_interested) {
        request.exchange.push_iq(&resource.session, payload.clone());
    }
}

fn items(stanza: &Stanza) -> Result<Vec<Jid>, StanzaError> {
    let mut jids = BTreeSet::new();
    let Some(command) = stanza.first_child() else {
        return Err(StanzaError::new(Condition::BadRequest));
    };
    for item in command.children().filter(|child| child.is(ns::BLOCKING, "item")) {
        let jid = item.attr("jid").ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
        jids.insert(Jid::parse(&jid).map_err(|_| StanzaError::new(Condition::JidMalformed))?);
        if jids.len() > MOST_BLOCKED {
            return Err(StanzaError::new(Condition::ResourceConstraint)
                .text(format!("{MOST_BLOCKED} addresses may be named at once.")));
        }
    }
    Ok(jids.into_iter().collect())
}
