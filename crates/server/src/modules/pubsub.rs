//! XEP-0060 Publish-Subscribe 1.30.0: services of a domain of their own. The engine is [`crate::pubsub`].

use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::{Get, Set};

use super::{Answer, Level, Module, Reply, Request, Scope};
use crate::pubsub::requests::{self, Done};
use crate::pubsub::{Desk, describe};

/// Keeps nodes for everybody.
pub fn module() -> Module {
    Module::new("pubsub", "Keep nodes to publish to and subscribe to")
        .xep(
            60,
            "1.30.0",
            Level::Partial(
                "no collections, no subscription ids, no digests, no ad-hoc commands; of subscription options delivery \
                 and expiry; the type of a node is not enforced",
            ),
        )
        .iq(Scope::Service, Get, (ns::PUBSUB, "pubsub"), |request| async move {
            answer(requests::get(request).await)
        })
        .iq(Scope::Service, Set, (ns::PUBSUB, "pubsub"), |request| async move {
            answer(requests::set(request).await)
        })
        .iq(Scope::Service, Get, (ns::PUBSUB_OWNER, "pubsub"), |request| async move {
            answer(requests::owner_get(request).await)
        })
        .iq(Scope::Service, Set, (ns::PUBSUB_OWNER, "pubsub"), |request| async move {
            answer(requests::owner_set(request).await)
        })
        .iq(Scope::Service, Get, (ns::DISCO_INFO, "query"), info)
        .iq(Scope::Service, Get, (ns::DISCO_ITEMS, "query"), items)
        .iq(Scope::Service, Get, (ns::PING, "ping"), |_| async { Ok(Reply::Empty) })
}

fn answer(done: Done) -> Answer {
    Ok(done?.map_or(Reply::Empty, Reply::from))
}

fn asked(request: &Request) -> Result<(Desk, Option<String>), StanzaError> {
    let desk = Desk::of(request).ok_or_else(|| StanzaError::new(Condition::ServiceUnavailable))?;
    let node =
        request.stanza.first_child().and_then(|query| query.attr("node")).map(|node| node.into_owned());
    Ok((desk, node.filter(|node| !node.is_empty())))
}

async fn info(request: Request) -> Answer {
    let (desk, node) = asked(&request)?;
    let info = match node.as_deref() {
        Some(node) => desk.node_info(node).await?,
        None => describe::service(),
    };
    let mut w = Writer::new();
    info.write(&mut w, node.as_deref());
    Ok(w.finish().into())
}

async fn items(request: Request) -> Answer {
    let (desk, node) = asked(&request)?;
    let page = request.stanza.first_child().map(describe::page_of).transpose()?.flatten();
    let mut w = Writer::new();
    w.open("query").attr("xmlns", ns::DISCO_ITEMS).attr_opt("node", node.as_deref());
    match node.as_deref() {
        Some(node) => desk.list_items(node, page, &mut w).await?,
        None => desk.list_nodes(page, &mut w).await.map(drop)?,
    }
    w.close();
    Ok(w.finish().into())
}
