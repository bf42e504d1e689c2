//! XEP-0030 Service Discovery 2.5.0, XEP-0115 Entity Capabilities 1.6 (the server's own), XEP-0157 Contact
//! Addresses 1.1.1, XEP-0455 Service Outage Status 0.4.0 (where the file is; [`crate::control`] writes it), XEP-0504
//! Data Policy 0.1.0.
//!
//! Accounts tell about themselves only to contacts with a presence subscription (XEP-0030 s.8.1); the others
//! get `service-unavailable`, whether the account exists or not.

use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::forms::{Field, Form};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::Get;

use super::{Answer, Level, Module, Request, Scope};
use crate::control::{disclosure, publication};
use crate::exchange::Exchange;
use crate::pubsub::{Desk, describe};
use crate::route::message::store_trouble;

/// Tells what the server and its accounts can do.
pub fn module() -> Module {
    Module::new("disco", "Tell what the server and its accounts can do")
        .xep(30, "2.5.0", Level::Complete)
        .xep(115, "1.6.0", Level::Complete)
        .xep(157, "1.1.1", Level::Complete)
        .xep(455, "0.4.0", Level::Complete)
        .xep(504, "0.1.0", Level::Partial("the server's own form; no location"))
        .feature(Scope::Host, ns::DISCO_INFO)
        .feature(Scope::Host, ns::DISCO_ITEMS)
        .feature(Scope::Account, ns::DISCO_INFO)
        .feature(Scope::Account, ns::DISCO_ITEMS)
        .iq(Scope::Host, Get, (ns::DISCO_INFO, "query"), host_info)
        .iq(Scope::Host, Get, (ns::DISCO_ITEMS, "query"), host_items)
        .iq(Scope::Account, Get, (ns::DISCO_INFO, "query"), account_info)
        .iq(Scope::Account, Get, (ns::DISCO_ITEMS, "query"), account_items)
        .iq(Scope::Contact, Get, (ns::DISCO_INFO, "query"), account_info)
        .iq(Scope::Contact, Get, (ns::DISCO_ITEMS, "query"), account_items)
}

/// What the server says of itself, for `disco#info` and for the verification string.
pub fn describe(exchange: &Exchange) -> trunkline_xmpp::disco::Info {
    let mut info = trunkline_xmpp::disco::Info::new();
    info.identity("server", "im", Some("Trunkline"));
    let config = exchange.config.load();
    for feature in exchange.modules.features(Scope::Host, &config) {
        info.feature(feature);
    }
    publication::describe(exchange, &mut info);
    disclosure::describe(exchange, &mut info);
    outage_form(&mut info, &config.federation.outage_url);
    info
}

fn node(request: &Request) -> Option<String> {
    request.stanza.first_child().and_then(|query| query.attr("node")).map(|node| node.into_owned())
}

async fn host_info(request: Request) -> Answer {
    let node = node(&request);
    let of_node = |node: &str| {
        crate::commands::info(&request, node).or_else(|| publication::node_info(&request.exchange, node))
    };
    if let Some(info) = node.as_deref().and_then(of_node) {
        let mut w = Writer::new();
        info.write(&mut w, node.as_deref());
        return Ok(w.finish().into());
    }
    let info = describe(&request.exchange);
    match node.as_deref() {
        None | Some("") => {}
        // XEP-0115 s.6.2: the node of our caps is asked for with the verification string behind '#'.
        Some(asked) if asked == format!("{}#{}", CAPS_NODE, info.verification()) => {}
        Some(_) => return Err(StanzaError::new(Condition::ItemNotFound)),
    }
    let mut w = Writer::new();
    info.write(&mut w, node.as_deref());
    Ok(w.finish().into())
}

/// The `node` of the server's entity capabilities.
pub const CAPS_NODE: &str = "https://trunkline.im";

/// XEP-0115 s.6.3: the stream feature.
pub fn caps_feature(exchange: &Exchange) -> Vec<u8> {
    let mut w = Writer::new();
    w.open("c")
        .attr("xmlns", ns::CAPS)
        .attr("hash", "sha-1")
        .attr("node", CAPS_NODE)
        .attr("ver", &describe(exchange).verification())
        .close();
    w.finish()
}

async fn host_items(request: Request) -> Answer {
    if node(&request).as_deref() == Some(ns::COMMANDS) {
        return Ok(crate::commands::items(&request).into());
    }
    if node(&request).is_some_and(|node| !node.is_empty()) {
        return Err(StanzaError::new(Condition::ItemNotFound));
    }
    let mut w = Writer::new();
    w.open("query").attr("xmlns", ns::DISCO_ITEMS);
    for (node, name) in publication::nodes(&request.exchange) {
        let jid = request.host.domain.as_str();
        w.open("item").attr("jid", jid).attr("node", node).attr("name", name).close();
    }
    for service in request.exchange.pubsub.services_of(&request.host.domain) {
        w.open("item").attr("jid", service.host.domain.as_str()).close();
    }
    for domain in request.exchange.component_domains(&request.host) {
        w.open("item").attr("jid", &domain).close();
    }
    w.close();
    Ok(w.finish().into())
}

fn authorized(request: &Request) -> Result<(), StanzaError> {
    let Some(account) = &request.account else { return Err(StanzaError::new(Condition::ServiceUnavailable)) };
    let own = request.from.same_bare(&account.jid);
    if own || account.state().shows_presence_to(&request.from) {
        return Ok(());
    }
    Err(StanzaError::new(Condition::ServiceUnavailable))
}

/// What is answered about a node that is not there or not for them: strangers get what they would get if there were no such
/// person.
fn veiled(request: &Request, error: StanzaError) -> StanzaError {
    let barred = matches!(
        error.condition,
        Condition::ItemNotFound | Condition::NotAuthorized | Condition::NotAllowed | Condition::Forbidden
    );
    if barred { authorized(request).err().unwrap_or(error) } else { error }
}

async fn account_info(request: Request) -> Answer {
    let node = node(&request);
    if let (Some(name), Some(desk)) = (node.as_deref().filter(|node| !node.is_empty()), Desk::of(&request)) {
        let mut w = Writer::new();
        desk.node_info(name).await.map_err(|error| veiled(&request, error))?.write(&mut w, Some(name));
        return Ok(w.finish().into());
    }
    authorized(&request)?;
    let mut info = trunkline_xmpp::disco::Info::new();
    let Some(account) = &request.account else { return Err(StanzaError::new(Condition::ServiceUnavailable)) };
    let known = request.exchange.affiliation(account).await.map_err(|error| store_trouble(&error))?;
    // XEP-0489 s.3.
    info.identity("account", known.name, None);
    let config = request.exchange.config.load_full();
    for feature in request.exchange.modules.features(Scope::Account, &config) {
        info.feature(feature);
    }
    describe::account(&mut info);
    let mut w = Writer::new();
    info.write(&mut w, node.as_deref());
    Ok(w.finish().into())
}

/// The available devices (XEP-0030 s.4.1), to those who see them anyway, and the nodes that they may read; or the items
/// of one node.
async fn account_items(request: Request) -> Answer {
    let desk = Desk::of(&request).ok_or_else(|| StanzaError::new(Condition::ServiceUnavailable))?;
    let page = request.stanza.first_child().map(describe::page_of).transpose()?.flatten();
    let mut w = Writer::new();
    w.open("query").attr("xmlns", ns::DISCO_ITEMS);
    if let Some(name) = node(&request).filter(|node| !node.is_empty()) {
        w.attr("node", &name);
        desk.list_items(&name, page, &mut w).await.map_err(|error| veiled(&request, error))?;
        w.close();
        return Ok(w.finish().into());
    }
    authorized(&request)?;
    // The devices are no part of the pages, and stand on the first one.
    let first = desk.list_nodes(page, &mut w).await?;
    if let Some(account) = request.account.as_ref().filter(|_| first) {
        let state = account.state();
        for resource in state.resources.iter().filter(|resource| resource.presence.is_some()) {
            w.open("item").attr("jid", resource.session.jid.as_str()).close();
        }
    }
    w.close();
    Ok(w.finish().into())
}

/// XEP-0455 s.2.1.
fn outage_form(info: &mut trunkline_xmpp::disco::Info, urls: &[String]) {
    if !urls.is_empty() {
        let field = Field::list_multi("external-status-addresses");
        let field = urls.iter().fold(field, |field, url| field.value(url));
        info.form(Form::result(ns::OUTAGE).field(field));
    }
}
