//! XEP-0050 Ad-Hoc Commands 1.3.0: the commands that the other modules bring. The service is [`crate::commands`].

use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::Set;

use super::{Answer, Level, Module, Reply, Request, Scope};
use crate::control::standing;

/// Runs commands.
pub fn module() -> Module {
    Module::new("commands", "Run commands that are offered to users and administrators")
        .xep(50, "1.3.0", Level::Complete)
        .feature(Scope::Host, ns::COMMANDS)
        .iq(Scope::Host, Set, (ns::COMMANDS, "command"), run)
}

async fn run(request: Request) -> Answer {
    let node = request.stanza.child(ns::COMMANDS, "command").and_then(|command| command.attr("node"));
    if request.outside && node.as_deref() == Some(standing::NODE) {
        standing::answer(&request);
        return Ok(Reply::Sent);
    }
    let error = match crate::commands::answer(&request).await {
        Ok(payload) => return Ok(payload.into()),
        Err(error) => error,
    };
    // Without the form that came: there may be a password in it.
    let mut w = Writer::new();
    let command = request
        .stanza
        .child(ns::COMMANDS, "command")
        .ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    w.open("command")
        .attr("xmlns", ns::COMMANDS)
        .attr_opt("node", command.attr("node"))
        .attr_opt("sessionid", command.attr("sessionid"))
        .close();
    request.exchange.bounce(&request.stanza.with_payload(w.finish()), &error);
    Ok(Reply::Sent)
}
