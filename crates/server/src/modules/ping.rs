//! XEP-0199 XMPP Ping 2.0.1.

use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::Get;

use super::{Level, Module, Reply, Request, Scope};

/// Answers pings to the server and to accounts.
pub fn module() -> Module {
    Module::new("ping", "Answer pings")
        .xep(199, "2.0.1", Level::Complete)
        .feature(Scope::Host, ns::PING)
        .feature(Scope::Account, ns::PING)
        .iq(Scope::Host, Get, (ns::PING, "ping"), pong)
        .iq(Scope::Account, Get, (ns::PING, "ping"), pong)
}

async fn pong(_: Request) -> super::Answer {
    Ok(Reply::Empty)
}
