//! XEP-0198 Stream Management 1.6 between servers: acknowledgements. Streams are not resumed: what a broken stream had
//! not delivered goes over the next one, under the same ids.

use trunkline_xml::Writer;
use trunkline_xmpp::error::Condition;
use trunkline_xmpp::ns;

pub(super) fn enable() -> Vec<u8> {
    empty("enable")
}

pub(super) fn enabled() -> Vec<u8> {
    empty("enabled")
}

pub(super) fn request() -> Vec<u8> {
    empty("r")
}

pub(super) fn answer(h: u32) -> Vec<u8> {
    let mut w = Writer::new();
    w.open("a").attr("xmlns", ns::SM).attr("h", &h.to_string()).close();
    w.finish()
}

pub(super) fn failed(condition: Condition) -> Vec<u8> {
    let mut w = Writer::new();
    w.open("failed").attr("xmlns", ns::SM);
    w.open(condition.as_str()).attr("xmlns", ns::STANZA_ERRORS).close();
    w.close();
    w.finish()
}

fn empty(name: &str) -> Vec<u8> {
    let mut w = Writer::new();
    w.open(name).attr("xmlns", ns::SM).close();
    w.finish()
}
