//! XEP-0280 Message Carbons 1.0.1: each device of a user sees what the others send and receive.

use std::sync::Arc;

use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::Set;
use trunkline_xmpp::stanza::{Kind, MessageType, Stanza};

use super::{Answer, Flow, Level, Module, Passage, Reply, Request, Scope, Step, Way};
use crate::route::{Push, Queued, Session};

/// Copies messages to a user's other devices.
pub fn module() -> Module {
    Module::new("carbons", "Copy messages to a user's other devices")
        .xep(280, "1.0.1", Level::Complete)
        .feature(Scope::Account, ns::CARBONS)
        .feature(Scope::Host, ns::CARBONS)
        .feature(Scope::Account, ns::CARBONS_RULES)
        .iq(Scope::Account, Set, (ns::CARBONS, "enable"), |request| switch(request, true))
        .iq(Scope::Account, Set, (ns::CARBONS, "disable"), |request| switch(request, false))
        .on(Way::Sent, Step::Copy, copy)
        .on(Way::Received, Step::Copy, copy)
}

async fn switch(request: Request, on: bool) -> Answer {
    let (Some(account), Some(session)) = (&request.account, &request.session) else {
        return Err(StanzaError::new(Condition::Forbidden));
    };
    if let Some(resource) = account.state().resource_of(session) {
        resource.carbons = on;
    }
    Ok(Reply::Empty)
}

/// s.6, s.7 and s.8: to every other device that asked for copies.
fn copy(passage: &mut Passage<'_>) -> Flow {
    let reached = |session: &Arc<Session>| match passage.way {
        Way::Sent => passage.session.is_some_and(|sender| sender.serial == session.serial),
        Way::Received => passage.targets.iter().any(|target| target.serial == session.serial),
    };
    if !passage.class.copy.yes {
        return Flow::Pass;
    }
    let others: Vec<Arc<Session>> = passage
        .state
        .resources
        .iter()
        .filter(|resource| resource.carbons && !reached(&resource.session))
        .map(|resource| Arc::clone(&resource.session))
        .collect();
    if others.is_empty() {
        return Flow::Pass;
    }
    let payload: bytes::Bytes = wrap(passage).into();
    for session in others {
        let stanza = Stanza::build(Kind::Message(carbon_type(&passage.stanza)))
            .from(passage.account.jid.clone())
            .to(session.jid.clone())
            .payload(payload.clone())
            .done();
        let queued = Queued { stanza, kept: None, outside: passage.outside, lazy: !passage.class.wake.yes };
        if let Push::Refused(why) = session.push(queued) {
            passage.exchange.not_queued(&session, why);
        }
    }
    Flow::Pass
}

/// s.7: the copy has the type of the original.
fn carbon_type(stanza: &Stanza) -> MessageType {
    match stanza.head.kind {
        Kind::Message(kind) => kind,
        Kind::Presence(_) | Kind::Iq(_) => MessageType::Normal,
    }
}

fn wrap(passage: &Passage<'_>) -> Vec<u8> {
    let name = match passage.way {
        Way::Sent => "sent",
        Way::Received => "received",
    };
    // XEP-0313 s.3.4: the other devices learn under which id the sent message is archived.
    let id = if passage.way == Way::Sent { passage.stanza_id() } else { None };
    let id = id.unwrap_or_default();
    let mut inner = Vec::with_capacity(passage.stanza.size() + id.len() + 64);
    passage.stanza.write_appended_in(&mut inner, (ns::CLIENT, &id));
    let mut w = Writer::with_buf(Vec::with_capacity(inner.len() + 128));
    w.open(name).attr("xmlns", ns::CARBONS);
    w.open("forwarded").attr("xmlns", ns::FORWARD).raw(&inner).close();
    w.close();
    w.finish()
}
