//! Presence: broadcast, probes, directed presence (RFC 6121 s.4) and subscriptions (s.3).

mod catch_up;
mod probes;
mod subscriptions;

use std::sync::Arc;

use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, PresenceType, Stanza};

use super::account::AccountState;
use super::{Mail, Routed};
use crate::exchange::Exchange;
use crate::ids::LogId;
use crate::session::client::refuse;
use crate::session::{CatchUp, Push, Queued, Session};
pub(crate) use catch_up::delayed;

impl Exchange {
    /// A client of ours sends presence; `from` is its full JID.
    pub(crate) fn client_presence(
        self: &Arc<Self>,
        session: &Arc<Session>,
        kind: PresenceType,
        mail: Mail,
    ) -> Routed {
        let Some(to) = mail.stanza.head.to.clone() else {
            return match kind {
                PresenceType::Available => self.broadcast_available(session, mail),
                PresenceType::Unavailable => {
                    self.broadcast_unavailable(session, mail.stanza);
                    Routed::Done
                }
                // RFC 6121 s.4.3: probes are for servers; the other kinds need an address.
                _ => {
                    refuse(session, &mail.stanza, &StanzaError::new(Condition::BadRequest));
                    Routed::Done
                }
            };
        };
        match kind {
            PresenceType::Available | PresenceType::Unavailable => self.directed(session, kind, &to, mail),
            PresenceType::Error => self.route(mail),
            PresenceType::Probe => Routed::Done,
            PresenceType::Subscribe
            | PresenceType::Subscribed
            | PresenceType::Unsubscribe
            | PresenceType::Unsubscribed => {
                let exchange = Arc::clone(self);
                let account = Arc::clone(&session.account);
                Routed::Later(Box::pin(async move { exchange.subscribe_out(account, kind, mail).await }))
            }
        }
    }

    /// RFC 6121 s.4.2 and s.4.4: initial presence and updates.
    fn broadcast_available(self: &Arc<Self>, session: &Arc<Session>, mut mail: Mail) -> Routed {
        let priority = match priority(&mail.stanza) {
            Ok(priority) => priority,
            Err(error) => {
                refuse(session, &mail.stanza, &error);
                return Routed::Done;
            }
        };
        let account = &session.account;
        let mut state = account.state();
        state.show_avatar(&mut mail.stanza, None);
        let Some(resource) = state.resource_of(session) else { return Routed::Done };
        let initial = resource.presence.is_none();
        let takes_now = priority >= 0 && !(resource.takes_messages());
        resource.presence = Some(mail.stanza.clone());
        resource.priority = priority;
        if takes_now {
            // Under the account's lock: from here on what is kept comes through the log, in order,
            // until the session has read all of it.
            session.with_outbox(|outbox| {
                if outbox.catch_up().is_none() {
                    let until = self.ids.next();
                    outbox.set_catch_up(Some(CatchUp::Pending { after: LogId::ZERO, until }));
                }
            });
            session.wake();
        }
        let audience = audience(&state);
        let devices = devices(&state);
        drop(state);
        for device in devices {
            push_presence(&device, &mail.stanza, session.account.jid.clone(), false);
        }
        self.spread(&mail.stanza, audience);
        self.note_caps(session);
        if !initial {
            return Routed::Done;
        }
        self.note_present(account.id, session.resource());
        self.show_motd(account);
        let exchange = Arc::clone(self);
        let session = Arc::clone(session);
        // It waits for room in the client's own queue, which there may be only after the client's next <a/>: so the
        // client is read meanwhile.
        let greeting = session.begin_greeting();
        self.spawn(async move { exchange.greet(&session, greeting).await });
        Routed::Done
    }

    /// RFC 6121 s.4.5: to everyone who knew that the resource was available, directed presence included.
    pub(crate) fn broadcast_unavailable(self: &Arc<Self>, session: &Arc<Session>, stanza: Stanza) {
        let account = &session.account;
        let mut state = account.state();
        let Some(resource) = state.resource_of(session) else { return };
        let was_available = resource.presence.take().is_some();
        if let Some(caps) = &mut resource.caps {
            caps.forget();
        }
        resource.priority = 0;
        let directed = std::mem::take(&mut resource.directed);
        for to in &directed {
            self.undirect(&account.jid, to);
        }
        let mut to = if was_available { audience(&state) } else { Vec::new() };
        for jid in directed {
            let told = to.contains(&jid) || (was_available && state.shows_presence_to(&jid));
            if !told {
                to.push(jid);
            }
        }
        let mut devices = devices(&state);
        drop(state);
        if was_available {
            self.note_absent(account.id, session.resource());
            // s.4.5.2: the client that went away is told as well, as long as it is connected.
            devices.push(Arc::clone(session));
            for device in devices {
                push_presence(&device, &stanza, account.jid.clone(), false);
            }
        }
        self.spread(&stanza, to);
    }

    /// Gives `stanza` to each of `audience`.
    pub(in crate::route) fn spread(self: &Arc<Self>, stanza: &Stanza, audience: Vec<Jid>) {
        for contact in audience {
            let mut copy = stanza.clone();
            copy.head.to = Some(contact);
            self.send(copy);
        }
    }

    /// RFC 6121 s.4.6.
    fn directed(
        self: &Arc<Self>,
        session: &Arc<Session>,
        kind: PresenceType,
        to: &Jid,
        mut mail: Mail,
    ) -> Routed {
        let most = self.config.load().limits.directed_presence;
        let mut state = session.account.state();
        // XEP-0191 s.3.2: nothing goes to whom the user blocks.
        if state.blocks(to) && kind == PresenceType::Available {
            drop(state);
            refuse(session, &mail.stanza, &super::blocked_error());
            return Routed::Done;
        }
        if kind == PresenceType::Available {
            state.show_avatar(&mut mail.stanza, Some(to));
        }
        let Some(resource) = state.resource_of(session) else { return Routed::Done };
        match kind {
            PresenceType::Available => {
                if resource.directed.len() >= most && !resource.directed.contains(to) {
                    drop(state);
                    self.refused_client(
                        session,
                        "directed-presence-full",
                        "directed presence to too many addresses",
                    );
                    let error = StanzaError::new(Condition::ResourceConstraint)
                        .text(format!("Presence may be sent to {most} others, and none is left."));
                    refuse(session, &mail.stanza, &error);
                    return Routed::Done;
                }
                if resource.directed.insert(to.clone()) {
                    self.direct(&session.account.jid, to);
                }
            }
            _ => {
                if resource.directed.remove(to) {
                    self.undirect(&session.account.jid, to);
                }
            }
        }
        drop(state);
        self.route(mail)
    }

    /// Routes presence to a local account.
    pub(super) fn route_presence(self: &Arc<Self>, kind: PresenceType, mail: Mail) -> Routed {
        match kind {
            PresenceType::Available | PresenceType::Unavailable | PresenceType::Error => {
                self.receive_presence(&mail);
                match self.contact_presence(kind, &mail) {
                    Some(later) => Routed::Later(later),
                    None => Routed::Done,
                }
            }
            PresenceType::Probe => {
                let exchange = Arc::clone(self);
                Routed::Later(Box::pin(async move { exchange.receive_probe(mail).await }))
            }
            PresenceType::Subscribe
            | PresenceType::Subscribed
            | PresenceType::Unsubscribe
            | PresenceType::Unsubscribed => {
                let exchange = Arc::clone(self);
                Routed::Later(Box::pin(async move { exchange.subscribe_in(kind, mail).await }))
            }
        }
    }

    /// RFC 6121 s.8.5.2.1.2 and s.8.5.3: to all available resources, or to the one addressed.
    fn receive_presence(self: &Arc<Self>, mail: &Mail) {
        let (Some(to), Some(from)) = (&mail.stanza.head.to, &mail.stanza.head.from) else { return };
        let Some(account) = self.accounts.online(to) else { return };
        let state = account.state();
        if state.blocks(from) {
            return;
        }
        let outside = mail.is_outside();
        let target = mail.stanza.head.to.clone().unwrap_or_else(|| account.jid.clone());
        match to.resource() {
            Some(name) => {
                if let Some(resource) = state.resource(name) {
                    push_presence(&resource.session, &mail.stanza, target, outside);
                }
            }
            // An error to the bare address helps nobody, except who waits for the answer to a subscription request:
            // that goes out from the bare address.
            None if mail.stanza.head.kind == Kind::Presence(PresenceType::Error)
                && !state.roster.subscription(from).pending_out => {}
            None => {
                for resource in state.resources.iter().filter(|resource| resource.presence.is_some()) {
                    push_presence(&resource.session, &mail.stanza, target.clone(), outside);
                }
            }
        }
    }
}

/// Contacts who get the account's presence (RFC 6121 s.4.2.2), without those the user blocks.
pub(in crate::route) fn audience(state: &AccountState) -> Vec<Jid> {
    state
        .roster
        .iter()
        .filter(|(jid, item)| item.subscription.from && !state.blocks(jid))
        .map(|(jid, _)| jid.clone())
        .collect()
}

/// The account's available devices.
pub(in crate::route) fn devices(state: &AccountState) -> Vec<Arc<Session>> {
    state
        .resources
        .iter()
        .filter(|resource| resource.presence.is_some())
        .map(|resource| Arc::clone(&resource.session))
        .collect()
}

pub(in crate::route) fn push_presence(session: &Arc<Session>, stanza: &Stanza, to: Jid, outside: bool) {
    let mut stanza = stanza.clone();
    stanza.head.to = Some(to);
    if let Push::Refused(why) = session.push(Queued { stanza, kept: None, outside, lazy: true }) {
        tracing::debug!(conn = session.serial, why = why.name(), "presence not queued");
    }
}

/// RFC 6121 s.4.7.2.3: an integer from -128 to +127.
fn priority(stanza: &Stanza) -> Result<i8, StanzaError> {
    let Some(element) = stanza.child(ns::CLIENT, "priority") else { return Ok(0) };
    element.text().trim().parse().map_err(|_| {
        StanzaError::new(Condition::BadRequest).text("The priority is not a number between -128 and 127.")
    })
}
