//! Writes of the archive (XEP-0313 s.3 business rules) and of what waits for delivery (XEP-0160). What is
//! written comes from the one classifier; queries are another module's.

use trunkline_xmpp::jid::Jid;

use super::{Flow, Level, Module, Passage, Step, Way};
use crate::log::{self, Entry};

/// Puts messages into the durable log.
pub fn module() -> Module {
    Module::new("history", "Write messages to the durable log")
        .xep(160, "1.0.1", Level::Complete)
        .on(Way::Sent, Step::Store, store_sent)
        .on(Way::Received, Step::Store, store_received)
}

fn store_sent(passage: &mut Passage<'_>) -> Flow {
    let Some(id) = passage.id else { return Flow::Pass };
    let peer = passage.stanza.head.to.clone().unwrap_or_else(|| passage.account.jid.clone());
    write(passage, id, &peer, log::SENT);
    Flow::Pass
}

fn store_received(passage: &mut Passage<'_>) -> Flow {
    let Some(id) = passage.id else { return Flow::Pass };
    let peer = passage.stanza.head.from.clone().unwrap_or_else(|| passage.account.jid.clone());
    let hidden = if passage.class.store.yes { 0 } else { log::HIDDEN };
    write(passage, id, &peer, hidden);
    if passage.class.offline.yes {
        log::await_delivery(passage.batch, passage.account.id, id);
    }
    Flow::Pass
}

fn write(passage: &mut Passage<'_>, id: crate::ids::LogId, peer: &Jid, flags: i64) {
    let entry = Entry { id, account: passage.account.id, peer, flags, stanza: &passage.stanza };
    log::archive(passage.batch, &entry);
}
