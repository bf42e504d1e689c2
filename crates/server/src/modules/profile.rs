//! What people say about themselves, whichever way: XEP-0054 vcard-temp 1.3, XEP-0292 vCard4 over XMPP 0.12.0, XEP-0084 User
//! Avatar 1.1.4 and XEP-0153 vCard-Based Avatars 1.1.1, in step as XEP-0398 1.0.0 wants it. [`crate::profile`] does the work.

use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::{Get, Set};

use super::{Answer, Level, Module, Reply, Request, Scope};
use crate::profile;
use crate::pubsub::Change;
use crate::pubsub::config::NodeConfig;

/// Keeps what users say about themselves.
pub fn module() -> Module {
    Module::new("profile", "Keep vCards and pictures of all kinds, in step")
        .xep(54, "1.3", Level::Complete)
        .xep(84, "1.1.4", Level::Complete)
        .xep(153, "1.1.1", Level::Complete)
        .xep(172, "1.1", Level::Complete)
        .xep(292, "0.12.0", Level::Complete)
        .xep(398, "1.0.0", Level::Complete)
        .feature(Scope::Host, ns::VCARD)
        .feature(Scope::Account, ns::VCARD)
        .feature(Scope::Account, ns::VCARD4)
        .feature(Scope::Account, ns::PEP_VCARD_CONVERSION)
        .iq(Scope::Account, Get, (ns::VCARD, "vCard"), get)
        .iq(Scope::Contact, Get, (ns::VCARD, "vCard"), get)
        .iq(Scope::Account, Set, (ns::VCARD, "vCard"), set)
        .iq(Scope::Contact, Set, (ns::VCARD, "vCard"), forbidden)
        .made_as(ns::VCARD4_NODE, NodeConfig::public)
        .made_as(ns::AVATAR_DATA, NodeConfig::public)
        .made_as(ns::AVATAR_METADATA, NodeConfig::public)
        .along(ns::VCARD4_NODE, profile::from_vcard4)
        .along(ns::AVATAR_DATA, profile::from_nodes)
        .along(ns::AVATAR_METADATA, profile::from_nodes)
        .published(ns::AVATAR_DATA, refresh)
        .published(ns::AVATAR_METADATA, refresh)
}

/// What presence says is another picture, or for others than before.
async fn refresh(change: Change) {
    change.exchange.refresh_avatar(&change.account).await;
}

async fn get(request: Request) -> Answer {
    let Some(account) = &request.account else { return Err(StanzaError::new(Condition::ServiceUnavailable)) };
    match request.exchange.card_for(account, (&request.from, request.lane())).await? {
        Some(card) => Ok(Reply::Payload(card)),
        // s.3.1: the own vCard is empty.
        None if request.from.same_bare(&account.jid) => {
            let mut w = Writer::new();
            w.open("vCard").attr("xmlns", ns::VCARD).close();
            Ok(w.finish().into())
        }
        // s.3.3: as if there were no such user, so that nobody finds out who there is.
        None => Err(StanzaError::new(Condition::ServiceUnavailable)),
    }
}

async fn set(request: Request) -> Answer {
    let Some(account) = &request.account else { return Err(StanzaError::new(Condition::Forbidden)) };
    let Some(card) = request.stanza.first_child() else {
        return Err(StanzaError::new(Condition::BadRequest));
    };
    let xml = card.to_standalone(ns::CLIENT);
    let most = request.exchange.config.load().limits.vcard_bytes;
    if xml.len() > most {
        return Err(StanzaError::new(Condition::ResourceConstraint)
            .text(format!("A vCard may have {most} bytes; this one has {}.", xml.len())));
    }
    request.exchange.set_card(account, xml).await?;
    Ok(Reply::Empty)
}

/// s.3.3: nobody changes somebody else's.
async fn forbidden(_: Request) -> Answer {
    Err(StanzaError::new(Condition::Forbidden))
}
