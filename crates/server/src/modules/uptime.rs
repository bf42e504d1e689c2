//! XEP-0012 Last Activity 2.0: how long the server has been up.

use trunkline_xml::Writer;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::Get;

use super::{Answer, Level, Module, Request, Scope};

/// Tells how long the server has been up.
pub fn module() -> Module {
    Module::new("uptime", "Tell how long the server has been up")
        .xep(12, "2.0", Level::Partial("the server's uptime; accounts don't tell when they were last seen"))
        .feature(Scope::Host, ns::LAST)
        .iq(Scope::Host, Get, (ns::LAST, "query"), tell)
}

async fn tell(request: Request) -> Answer {
    let seconds = (request.exchange.clock().now() - request.exchange.started).max(0) / 1000;
    let mut w = Writer::new();
    w.open("query").attr("xmlns", ns::LAST).attr("seconds", &seconds.to_string()).close();
    Ok(w.finish().into())
}
