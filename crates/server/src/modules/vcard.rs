//! XEP-0054 vcard-temp 1.3.

use trunkline_store::{Batch, Lane, sql};
use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::{Get, Set};

use super::{Answer, Level, Module, Reply, Request, Scope};
use crate::route::message::store_trouble;

/// Keeps each user's vCard and shows it to contacts.
pub fn module() -> Module {
    Module::new("vcard", "Keep and show vCards")
        .xep(54, "1.3", Level::Complete)
        .feature(Scope::Host, ns::VCARD)
        .feature(Scope::Account, ns::VCARD)
        .iq(Scope::Account, Get, (ns::VCARD, "vCard"), get)
        .iq(Scope::Contact, Get, (ns::VCARD, "vCard"), get)
        .iq(Scope::Account, Set, (ns::VCARD, "vCard"), set)
        .iq(Scope::Contact, Set, (ns::VCARD, "vCard"), forbidden)
}

async fn get(request: Request) -> Answer {
    let Some(account) = &request.account else { return Err(StanzaError::new(Condition::ItemNotFound)) };
    let rows = request
        .exchange
        .db
        .read_in(request.lane(), sql("SELECT xml FROM vcards WHERE account = ?1").bind(account.id))
        .await
        .map_err(|error| store_trouble(&error))?;
    match rows.iter().next() {
        Some(row) => Ok(Reply::Payload(row.blob(0).to_vec().into())),
        // s.3.1: the own vCard is empty; somebody else's is not found.
        None if request.from.same_bare(&account.jid) => {
            let mut w = Writer::new();
            w.open("vCard").attr("xmlns", ns::VCARD).close();
            Ok(w.finish().into())
        }
        None => Err(StanzaError::new(Condition::ItemNotFound)),
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
    let mut batch = Batch::new(Lane::Inside);
    batch.push(
        sql("INSERT INTO vcards (account, xml) VALUES (?1, ?2) \
             ON CONFLICT (account) DO UPDATE SET xml = excluded.xml")
        .bind(account.id)
        .bind(xml),
    );
    request.exchange.db.run(batch).await.map_err(|error| store_trouble(&error))?;
    Ok(Reply::Empty)
}

/// s.3.3: nobody changes somebody else's.
async fn forbidden(_: Request) -> Answer {
    Err(StanzaError::new(Condition::Forbidden))
}
