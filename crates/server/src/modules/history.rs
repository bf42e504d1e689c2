//! Writes of the archive (XEP-0313 s.3 business rules) and of what waits for delivery (XEP-0160). What is
//! written comes from the one classifier; queries are another module's.

use trunkline_xmpp::ns;

use super::{Flow, Level, Module, Passage, Scope, Step, Way};
use crate::log::{self, Entry};

/// Puts messages into the durable log.
pub fn module() -> Module {
    Module::new("history", "Write messages to the durable log")
        .xep(160, "1.0.1", Level::Complete)
        .feature(Scope::Host, ns::OFFLINE_FEATURE)
        .on(Way::Sent, Step::Store, store_sent)
        .on(Way::Received, Step::Store, store_received)
}

fn store_sent(passage: &mut Passage<'_>) -> Flow {
    let Some(id) = passage.id.filter(|_| passage.archives()) else { return Flow::Pass };
    let peer = passage.stanza.head.to.as_ref().unwrap_or(&passage.account.jid);
    let entry = Entry { id, account: passage.account.id, peer, flags: log::SENT, stanza: &passage.stanza };
    log::archive(passage.batch, &entry);
    Flow::Pass
}

fn store_received(passage: &mut Passage<'_>) -> Flow {
    let Some(id) = passage.id else { return Flow::Pass };
    let peer = passage.stanza.head.from.as_ref().unwrap_or(&passage.account.jid);
    let flags = if passage.archives() { 0 } else { log::HIDDEN };
    let entry = Entry { id, account: passage.account.id, peer, flags, stanza: &passage.stanza };
    if passage.class.offline.yes {
        passage.waits = Some(log::await_delivery(passage.batch, &entry));
    } else if passage.archives() {
        log::archive(passage.batch, &entry);
    }
    Flow::Pass
}
