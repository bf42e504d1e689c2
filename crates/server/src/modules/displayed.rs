//! XEP-0490 Message Displayed Synchronization 1.0.1: what was read on one device is read on all. Clients keep it in a
//! private node; here is the server's assistance (s.4.4), which saves them a request for each chat they look at.

use trunkline_xmpp::classify::classify_sent;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, MessageType};

use super::{Flow, Level, Module, Passage, Scope, Step, Way};
use crate::pubsub::config::NodeConfig;
use crate::pubsub::{NewItem, Terms};

/// Publishes what was displayed.
pub fn module() -> Module {
    Module::new("displayed", "Keep what was read in step between devices")
        .xep(490, "1.0.1", Level::Complete)
        .feature(Scope::Account, ns::DISPLAYED_ASSIST)
        .made_as(ns::DISPLAYED_SYNC, NodeConfig::private)
        .on(Way::Sent, Step::Stamp, assist)
}

/// The element goes from the message, so that nobody else learns the id, and into the node. The message goes on when that
/// is done: two of them are published in their order, and an acknowledgement stands for both.
fn assist(passage: &mut Passage<'_>) -> Flow {
    let Some(displayed) = passage.stanza.child(ns::DISPLAYED_SYNC, "displayed") else { return Flow::Pass };
    let payload = displayed.to_standalone(ns::CLIENT);
    // s.4.1: exactly one.
    let sound = displayed.children().filter(|child| child.is(ns::STANZA_ID, "stanza-id")).count() == 1;
    passage.stanza = passage.stanza.without_children(|child| child.ns() == ns::DISPLAYED_SYNC);
    passage.class = classify_sent(&passage.stanza);
    let error = passage.stanza.head.kind == Kind::Message(MessageType::Error);
    let Some(chat) = passage.stanza.head.to.clone().filter(|_| sound && !error) else {
        passage.exchange.metrics.refused("displayed-malformed");
        return Flow::Pass;
    };
    let desk = passage.exchange.pep(passage.account);
    passage.before = Some(Box::pin(async move {
        let item = NewItem { id: Some(chat.as_str().to_owned()), payload };
        // s.7: nobody else may read it, whoever made the node.
        if let Err(error) = desk.publish(ns::DISPLAYED_SYNC, vec![item], Terms::Private).await {
            desk.exchange.metrics.refused("displayed-not-published");
            tracing::debug!(%error, "what was displayed could not be published");
        }
    }));
    Flow::Pass
}
