//! The nodes on the domain itself: our own block list and XEP-0485 PubSub Server Information 1.0.0. The service is [`crate::control::publication`].

use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::{Get, Set};

use super::{Answer, Level, Module, Reply, Request, Scope};
use crate::control::publication;

/// Publishes our block list and server information.
pub fn module() -> Module {
    Module::new("publication", "Publish a block list and server information")
        .xep(
            485,
            "1.0.0",
            Level::Partial(
                "items on request, without notifications; off unless federation.server_info is set",
            ),
        )
        .iq(Scope::Host, Get, (ns::PUBSUB, "pubsub"), get)
        .iq(Scope::Host, Set, (ns::PUBSUB, "pubsub"), set)
}

async fn get(request: Request) -> Answer {
    Ok(publication::get(&request).await?.into())
}

async fn set(request: Request) -> Answer {
    Ok(publication::set(&request).await?.map_or(Reply::Empty, Reply::from))
}
