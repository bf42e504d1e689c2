//! Where a stanza goes: `RFC 6120 s.10`, `RFC 6121 s.8`.
//!
//! [`Exchange::route`] is the one entrance. A reply or a bounce is a new stanza that enters there again.
//! Routing never waits for a receiver; what has to ask the store comes back as [`Routed::Later`], to be
//! awaited by whoever reads the stanza's source (so the brake is on the sender's own socket).

pub mod account;
pub mod avatar;
pub mod components;
pub(crate) mod consent;
pub mod iq;
pub mod message;
pub mod presence;
pub mod remote;
pub mod roster;
pub mod subscription;

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use trunkline_store::Lane;
use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{IqType, Kind, MessageType, PresenceType, Stanza};

use crate::exchange::{Exchange, Host};
use crate::session::ledger::Receipt;
/// What modules are given of a session: the handle, and what can be pushed into it.
pub use crate::session::{Push, Queued, Session};
use account::AccountState;

/// A stanza on its way, with what is known about its source.
#[derive(Debug)]
pub struct Mail {
    /// The stanza; `from` is stamped or verified.
    pub stanza: Stanza,
    /// Where it came from.
    pub origin: Origin,
    /// Held until the stanza is handled; its source acknowledges then.
    pub receipt: Option<Receipt>,
    /// Held until the stanza has been routed; others have its place then.
    pub(crate) room: Option<Room>,
}

/// A stanza's place where places are counted. It is free when the last clone is gone.
pub(crate) type Room = Arc<dyn Any + Send + Sync>;

/// Where a stanza came from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// One of our clients.
    Client(Arc<Session>),
    /// This server, or a component that counts as inside.
    Inside,
    /// Another provider, or a component that counts as outside: somebody of whom nothing is known.
    Outside,
    /// The same, and our user has consented: see [`consent`].
    Known,
    /// This server, which merely answers. An answer to another domain is never kept: outsiders must not fill
    /// the disk by asking.
    Answer,
}

/// What became of a routed stanza.
pub enum Routed {
    /// It is where it belongs.
    Done,
    /// The store has to be asked first: await this.
    Later(Later),
}

/// The slow part of routing one stanza.
pub type Later = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Mail {
    /// A stanza from there, which nobody waits for.
    pub fn new(stanza: Stanza, origin: Origin) -> Mail {
        Mail { stanza, origin, receipt: None, room: None }
    }

    /// A stanza of the server's own.
    pub fn inside(stanza: Stanza) -> Mail {
        Mail::new(stanza, Origin::Inside)
    }

    /// An answer of the server's own.
    pub fn answer(stanza: Stanza) -> Mail {
        Mail::new(stanza, Origin::Answer)
    }

    /// It came from another provider.
    pub fn is_outside(&self) -> bool {
        matches!(self.origin, Origin::Outside | Origin::Known)
    }

    /// It came from another provider, from somebody without consent of the account's user.
    fn is_strange_to(&self, state: &AccountState) -> bool {
        matches!(self.origin, Origin::Outside) && !self.from().is_some_and(|from| has_consent(state, from))
    }

    /// It is a mere answer, see [`Origin::Answer`].
    pub fn is_answer(&self) -> bool {
        matches!(self.origin, Origin::Answer)
    }

    /// The client that sent it.
    pub fn session(&self) -> Option<&Arc<Session>> {
        match &self.origin {
            Origin::Client(session) => Some(session),
            _ => None,
        }
    }

    /// The store's lane for what it causes.
    pub fn lane(&self) -> Lane {
        if self.is_outside() { Lane::Outside } else { Lane::Inside }
    }

    fn from(&self) -> Option<&Jid> {
        self.stanza.head.from.as_ref()
    }
}

impl Exchange {
    /// Routes a stanza with a `to` and a trusted `from`.
    pub fn route(self: &Arc<Self>, mail: Mail) -> Routed {
        let Some(to) = mail.stanza.head.to.clone() else {
            tracing::debug!("a stanza without 'to' reached the router");
            return Routed::Done;
        };
        let Some(host) = self.host(to.domain()) else {
            if let Some(service) = self.pubsub.service(to.domain()) {
                return self.route_to_service(&Arc::clone(service), mail);
            }
            if self.is_component(to.domain()) {
                return self.route_to_component(to.domain(), mail);
            }
            return self.route_remote(mail);
        };
        if let Some(taken) = self.take_outside_report(&mail) {
            return taken;
        }
        if to.local().is_none() {
            return self.route_to_host(Arc::clone(host), &to, mail);
        }
        if matches!(mail.origin, Origin::Outside) {
            return self.ask_for_consent(host, mail);
        }
        self.route_to_account(mail)
    }

    /// Routes a stanza that may go to a local account.
    fn route_to_account(self: &Arc<Self>, mail: Mail) -> Routed {
        match mail.stanza.head.kind {
            Kind::Message(_) => self.route_message(mail),
            Kind::Presence(kind) => self.route_presence(kind, mail),
            Kind::Iq(kind) => self.route_iq(kind, mail),
        }
    }

    /// Routes and, if that takes the store, waits for it.
    pub async fn deliver(self: &Arc<Self>, mail: Mail) {
        match self.route(mail) {
            Routed::Done => {}
            Routed::Later(later) => later.await,
        }
    }

    /// Routes a stanza of the server's own, in the background if it takes the store.
    pub fn send(self: &Arc<Self>, stanza: Stanza) {
        match self.route(Mail::inside(stanza)) {
            Routed::Done => {}
            Routed::Later(later) => self.spawn(later),
        }
    }

    /// Routes a stanza by which the server merely answers another one, see [`Origin::Answer`].
    pub(crate) fn answer_with(self: &Arc<Self>, stanza: Stanza) {
        match self.route(Mail::answer(stanza)) {
            Routed::Done => {}
            Routed::Later(later) => self.spawn(later),
        }
    }

    fn route_remote(self: &Arc<Self>, mail: Mail) -> Routed {
        let Some(remote) = self.remote.get() else {
            self.bounce(&mail.stanza, &StanzaError::new(Condition::RemoteServerNotFound));
            return Routed::Done;
        };
        // What came from outside does not leave again: no open relay. A component on the outside is our own domain.
        if mail.is_outside() && !mail.from().is_some_and(|from| self.is_component(from.domain())) {
            self.bounce(&mail.stanza, &StanzaError::new(Condition::ItemNotFound));
            return Routed::Done;
        }
        let stanza = mail.stanza.clone();
        if let Err(error) = remote.send(self, mail) {
            self.bounce(&stanza, &error);
        }
        Routed::Done
    }

    fn route_to_host(self: &Arc<Self>, host: Arc<Host>, to: &Jid, mail: Mail) -> Routed {
        match mail.stanza.head.kind {
            Kind::Iq(IqType::Get | IqType::Set) if to.resource().is_none() => self.answer_host(host, mail),
            Kind::Iq(IqType::Get | IqType::Set) => {
                self.bounce(&mail.stanza, &StanzaError::new(Condition::ServiceUnavailable));
                Routed::Done
            }
            Kind::Iq(IqType::Result | IqType::Error) => {
                self.control.asking.answered(&mail.stanza);
                Routed::Done
            }
            Kind::Message(MessageType::Error) => {
                if mail.stanza.child(ns::PUBSUB_EVENT, "event").is_none() {
                    return Routed::Done;
                }
                let exchange = Arc::clone(self);
                Routed::Later(Box::pin(async move { exchange.follower_error(mail.stanza).await }))
            }
            Kind::Message(_) if self.list_event(&mail.stanza) => Routed::Done,
            Kind::Message(MessageType::Headline) | Kind::Presence(_) => {
                self.presence_to_host(mail);
                Routed::Done
            }
            Kind::Message(_) => {
                self.bounce(&mail.stanza, &StanzaError::new(Condition::ServiceUnavailable));
                Routed::Done
            }
        }
    }

    /// A server has no presence to give; a subscription request to it is declined (RFC 6121 s.3.1.3).
    fn presence_to_host(self: &Arc<Self>, mail: Mail) {
        let Kind::Presence(PresenceType::Subscribe | PresenceType::Probe) = mail.stanza.head.kind else {
            return;
        };
        let (Some(from), Some(to)) = (mail.stanza.head.from.clone(), mail.stanza.head.to.clone()) else {
            return;
        };
        self.answer_with(
            Stanza::build(Kind::Presence(PresenceType::Unsubscribed)).from(to.bare()).to(from.bare()).done(),
        );
    }

    /// Sends the error that answers `stanza`, if one may be sent (RFC 6120 s.8.3.1).
    pub fn bounce(self: &Arc<Self>, stanza: &Stanza, error: &StanzaError) {
        if let Some(answer) = stanza.error(error) {
            self.answer_with(answer);
        }
    }

    /// Like [`Exchange::bounce`]. False: the error is for another provider, and there is no room for it.
    pub(crate) fn tell(self: &Arc<Self>, stanza: &Stanza, error: &StanzaError) -> bool {
        self.try_bounce(stanza, error).is_ok()
    }

    /// Like [`Exchange::bounce`]; fails with the reason why the other provider does not get the error.
    fn try_bounce(self: &Arc<Self>, stanza: &Stanza, error: &StanzaError) -> Result<(), StanzaError> {
        let Some(answer) = stanza.error(error) else { return Ok(()) };
        let away = answer.head.to.as_ref().is_some_and(|to| !self.serves(to.domain()));
        match self.remote.get() {
            Some(remote) if away => remote.send(self, Mail::answer(answer)),
            _ => {
                self.answer_with(answer);
                Ok(())
            }
        }
    }

    /// Refuses a stanza on behalf of a local account, existing or not.
    ///
    /// Promise 5: a sender from another domain without consent gets the same answer for every address:
    /// silence for messages and presence, `service-unavailable` for group chat and IQ. Most of them never get here:
    /// [`consent`] has answered. Those who do have consent of an account that is gone, or write where the policy
    /// lets strangers in.
    pub(crate) fn refuse(self: &Arc<Self>, mail: &Mail, state: Option<&AccountState>, error: &StanzaError) {
        let known = match mail.origin {
            Origin::Outside => state.is_some_and(|state| !mail.is_strange_to(state)),
            Origin::Known => state.is_some(),
            _ => true,
        };
        if known { self.bounce(&mail.stanza, error) } else { self.answer_stranger(mail) }
    }
}

/// XEP-0191 s.3.2: what a user gets who writes to somebody they block.
pub(crate) fn blocked_error() -> StanzaError {
    let mut w = Writer::new();
    w.open("blocked").attr("xmlns", ns::BLOCKING_ERRORS).close();
    StanzaError::new(Condition::NotAcceptable).app(w.finish())
}

/// The account's user has dealt with `from`: a subscription, an open request of the user, or directed
/// presence.
pub(crate) fn has_consent(state: &AccountState, from: &Jid) -> bool {
    let subscription = state.roster.subscription(from);
    subscription.to
        || subscription.from
        || subscription.pending_out
        || subscription.approved
        // Who sent presence into a room deals with everybody in it: occupants share the room's bare address.
        || state.resources.iter().any(|resource| resource.directed.iter().any(|to| to.same_bare(from)))
}

impl fmt::Debug for Routed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Routed::Done => "Done",
            Routed::Later(_) => "Later",
        })
    }
}
