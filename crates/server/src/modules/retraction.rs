//! XEP-0424 Message Retraction 0.4.2: what somebody takes back goes from the archives, and a tombstone stands in its
//! place.
//!
//! The retraction is archived like other messages, so who was away learns of it. With it stands on the disk that it is to
//! be carried out; the tombstone is made afterwards, in the background: in the archive of the sender and in that of the
//! receiver, each by its own server.

use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, MessageType};

use super::{Flow, Level, Module, Passage, Scope, Step, Way};
use crate::config::Config;
use crate::log::tombstones::{MOST_ID, Retraction};

/// Puts tombstones in the place of retracted messages.
pub fn module() -> Module {
    let archives: fn(&Config) -> bool = |config| config.accounts.archive;
    Module::new("retraction", "Take retracted messages out of the archives")
        .xep(424, "0.4.2", Level::Partial("between two people; in a room the room does it"))
        .feature_if(Scope::Account, ns::RETRACT, archives)
        .feature_if(Scope::Account, ns::RETRACT_TOMBSTONE, archives)
        .on(Way::Sent, Step::Notify, note)
        .on(Way::Received, Step::Notify, note)
}

fn note(passage: &mut Passage<'_>) -> Flow {
    if passage.class.store.reason != "retraction" && passage.class.wake.reason != "retraction" {
        return Flow::Pass;
    }
    let head = &passage.stanza.head;
    let told = matches!(head.kind, Kind::Message(MessageType::Chat | MessageType::Normal));
    let retract = passage.stanza.child(ns::RETRACT, "retract").and_then(|retract| retract.attr("id"));
    // s.5: the tombstone names the retraction by its id.
    let (Some(of), Some(by), Some(id)) = (retract, head.id.as_deref(), passage.id) else { return Flow::Pass };
    let (Some(from), Some(to)) = (&head.from, &head.to) else { return Flow::Pass };
    if !told || !passage.archives() || of.is_empty() || of.len() > MOST_ID || by.len() > MOST_ID {
        return Flow::Pass;
    }
    let sent = passage.way == Way::Sent;
    let peer = if sent { to } else { from };
    // In a room the resource is the person, and the bare address is shared (s.6).
    let room = passage.stanza.child(ns::MUC_USER, "x").is_some()
        || passage
            .state
            .resources
            .iter()
            .any(|resource| resource.directed.iter().any(|to| to.same_bare(peer)));
    let lane = passage.batch.lane();
    let retraction =
        Retraction { id, peer: peer.clone(), sent, room, lane, of: of.into_owned(), by: by.to_owned() };
    // Behind the retraction's own row, in the same batch.
    passage.batch.push(retraction.waits(passage.account.id));
    passage.retraction = Some((id, lane));
    Flow::Pass
}
