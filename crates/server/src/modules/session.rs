//! The session request of RFC 3921 s.3, which RFC 6121 dropped and older clients still send.

use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::Set;

use super::{Module, Reply, Request, Scope};

/// Answers the session request: there is nothing to establish.
pub fn module() -> Module {
    Module::new("session", "Answer the session request of older clients")
        .iq(Scope::Account, Set, (ns::SESSION, "session"), established)
        .iq(Scope::Host, Set, (ns::SESSION, "session"), established)
}

async fn established(_: Request) -> super::Answer {
    Ok(Reply::Empty)
}
