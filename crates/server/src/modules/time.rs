//! XEP-0202 Entity Time 2.0.

use trunkline_xml::Writer;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::Get;

use super::{Answer, Level, Module, Request, Scope};

/// Tells the server's time.
pub fn module() -> Module {
    Module::new("time", "Tell the server's time")
        .xep(202, "2.0", Level::Complete)
        .feature(Scope::Host, ns::TIME)
        .iq(Scope::Host, Get, (ns::TIME, "time"), tell)
}

async fn tell(request: Request) -> Answer {
    let now = request.exchange.clock().now();
    let mut w = Writer::new();
    w.open("time").attr("xmlns", ns::TIME);
    // The server speaks UTC: its whereabouts are nobody's business.
    w.open("tzo").text("+00:00").close();
    w.open("utc").text(&trunkline_xmpp::time::format_millis(now)).close();
    w.close();
    Ok(w.finish().into())
}
