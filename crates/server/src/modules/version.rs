//! XEP-0092 Software Version 1.1. The operating system is not told.

use trunkline_xml::Writer;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::Get;

use super::{Answer, Level, Module, Request, Scope};

/// Tells the software's name and version.
pub fn module() -> Module {
    Module::new("version", "Tell the software's name and version")
        .xep(92, "1.1", Level::Complete)
        .feature(Scope::Host, ns::VERSION)
        .iq(Scope::Host, Get, (ns::VERSION, "query"), tell)
}

async fn tell(_: Request) -> Answer {
    let mut w = Writer::new();
    w.open("query").attr("xmlns", ns::VERSION);
    w.open("name").text("Trunkline").close();
    w.open("version").text(env!("CARGO_PKG_VERSION")).close();
    w.close();
    Ok(w.finish().into())
}
