//! XEP-0163 Personal Eventing Protocol 1.2.2: nodes at every account's bare address. The engine is [`crate::pubsub`];
//! its profiles XEP-0222 and XEP-0223 (public and private data of people) are configurations of it.

use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::{Get, Set};

use super::{Answer, Flow, Level, Module, Passage, Reply, Scope, Step, Way};
use crate::exchange::Exchange;
use crate::pubsub::requests::{self, Done};
use crate::pubsub::subscribe;

/// Keeps what people publish and tells their contacts.
pub fn module() -> Module {
    let module = Module::new("pep", "Keep what people publish about themselves and tell their contacts")
        .xep(163, "1.2.2", Level::Complete)
        .xep(222, "1.0.1", Level::Complete)
        .xep(223, "1.1.1", Level::Complete)
        .on(Way::Sent, Step::Filter, approval);
    [Scope::Account, Scope::Contact].into_iter().fold(module, |module, scope| {
        module
            .iq(
                scope,
                Get,
                (ns::PUBSUB, "pubsub"),
                |request| async move { answer(requests::get(request).await) },
            )
            .iq(
                scope,
                Set,
                (ns::PUBSUB, "pubsub"),
                |request| async move { answer(requests::set(request).await) },
            )
            .iq(scope, Get, (ns::PUBSUB_OWNER, "pubsub"), |request| async move {
                answer(requests::owner_get(request).await)
            })
            .iq(scope, Set, (ns::PUBSUB_OWNER, "pubsub"), |request| async move {
                answer(requests::owner_set(request).await)
            })
    })
}

fn answer(done: Done) -> Answer {
    Ok(done?.map_or(Reply::Empty, Reply::from))
}

/// XEP-0060 s.8.6: the user answers a request for approval by a message to the own address. It goes no further.
fn approval(passage: &mut Passage<'_>) -> Flow {
    let to_self = passage.stanza.head.to.as_ref() == Some(&passage.account.jid);
    let Some(form) = to_self.then(|| subscribe::authorization(&passage.stanza)).flatten() else {
        return Flow::Pass;
    };
    let mut desk = passage.exchange.pep(passage.account);
    desk.ours = false;
    let stanza = passage.stanza.clone();
    passage.exchange.spawn(Exchange::authorize_subscription(desk, form, stanza));
    Flow::Drop("pubsub-approval")
}
