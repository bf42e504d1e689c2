//! XEP-0359 Unique and Stable Stanza IDs 0.7: every kept message gets the id it has in the archive.

use trunkline_xmpp::ns;

use super::{Flow, Level, Module, Passage, Scope, Step, Way};

/// Stamps stanza ids and strips forged ones.
pub fn module() -> Module {
    Module::new("stanza_ids", "Give each kept message an id")
        .xep(359, "0.7", Level::Complete)
        .feature(Scope::Account, ns::STANZA_ID)
        .on(Way::Sent, Step::Stamp, number)
        .on(Way::Received, Step::Stamp, stamp)
}

/// The sender's archive has its own order, so a sent message has its own id there; the stanza on its way
/// does not carry it; the copies for the sender's other devices do.
fn number(passage: &mut Passage<'_>) -> Flow {
    if passage.archives() {
        passage.id = Some(passage.exchange.ids.next());
    }
    Flow::Pass
}

fn stamp(passage: &mut Passage<'_>) -> Flow {
    let by = passage.account.jid.as_str();
    // s.5: whoever stamps in our name forges.
    let forged = |node: trunkline_xml::Node<'_>| {
        node.is(ns::STANZA_ID, "stanza-id") && node.attr("by").is_some_and(|claimed| claimed == by)
    };
    if passage.stanza.children().any(forged) {
        passage.stanza = passage.stanza.without_children(forged);
    }
    if !(passage.class.store.yes || passage.class.offline.yes) {
        return Flow::Pass;
    }
    let id = passage.exchange.ids.next();
    passage.id = Some(id);
    // XEP-0313 s.3.4: the id is the archive's. Of what is kept for its delivery only there is nothing to find, and a
    // client that asks for what came after it would be told that there is no such message.
    if let Some(element) = passage.stanza_id() {
        passage.stanza = passage.stanza.with_appended(&element);
    }
    Flow::Pass
}
