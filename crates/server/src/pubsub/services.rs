//! Services of a domain of their own: which there are, who may make nodes, and what comes there that is no request.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::digest;
use trunkline_store::{Batch, Lane, sql};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{IqType, Kind, MessageType, PresenceType, Stanza};

use super::node::{Place, Service};
use super::{Desk, subscribe};
use crate::config::{Config, NodeMakers};
use crate::exchange::{Exchange, Host};
use crate::route::{Later, Mail, Routed};

/// The services that the configuration asks for: one for each of our domains, if no host and no component has its name.
pub fn services(config: &Config, hosts: &HashMap<String, Arc<Host>>) -> Vec<Arc<Service>> {
    if !config.pubsub.enabled {
        return Vec::new();
    }
    let service = |parent: &Arc<Host>| {
        let domain = Jid::parse(&format!("{}.{}", config.pubsub.subdomain, parent.domain)).ok()?;
        let name = domain.as_str();
        let taken = hosts.contains_key(name) || config.components.entries.contains_key(name);
        if taken || !domain.is_domain() {
            tracing::warn!(%domain, "there is no room for a publish-subscribe service: the name is taken");
            return None;
        }
        Some(Arc::new(Service { host: Arc::new(host_of(&domain, parent)), parent: parent.domain.clone() }))
    };
    hosts.values().filter_map(service).collect()
}

/// A service as federation sees it. It has no row in the store: its id is negative and follows from its name, as does
/// its secret from that of its parent.
fn host_of(domain: &Jid, parent: &Host) -> Host {
    let hash = |what: &[u8], key: &[u8]| {
        let mut context = digest::Context::new(&digest::SHA256);
        [what, domain.as_str().as_bytes(), key].into_iter().for_each(|part| context.update(part));
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        hash
    };
    let [a, b, c, d, e, f, g, h, ..] = hash(b"id", b"");
    Host {
        id: i64::from_be_bytes([a, b, c, d, e, f, g, h]) | i64::MIN,
        domain: domain.clone(),
        secret: hash(b"secret", &parent.secret),
    }
}

impl Exchange {
    /// `who` may make nodes at a service.
    pub(crate) fn may_create_at(&self, service: &Service, who: &Jid) -> bool {
        match self.config.load().pubsub.create {
            NodeMakers::Admins => self.is_admin(who),
            NodeMakers::Users => {
                who.local().is_some() && (who.domain() == service.parent.as_str() || self.is_admin(who))
            }
            NodeMakers::Anyone => true,
        }
    }

    /// A stanza for a service.
    pub(crate) fn route_to_service(self: &Arc<Self>, service: &Arc<Service>, mail: Mail) -> Routed {
        let to_service = mail.stanza.head.to.as_ref().is_some_and(Jid::is_domain);
        match mail.stanza.head.kind {
            Kind::Iq(IqType::Get | IqType::Set) if to_service => self.answer_service(&service.host, mail),
            Kind::Iq(IqType::Get | IqType::Set) => {
                self.bounce(&mail.stanza, &StanzaError::new(Condition::ServiceUnavailable));
                Routed::Done
            }
            Kind::Iq(IqType::Result | IqType::Error) => Routed::Done,
            Kind::Message(MessageType::Error) => self.undelivered(service, &mail.stanza),
            Kind::Message(_) => self.message_to_service(service, mail),
            Kind::Presence(PresenceType::Subscribe | PresenceType::Probe) => {
                let (from, to) = (mail.stanza.head.from.as_ref(), mail.stanza.head.to.as_ref());
                let answer = Stanza::build(Kind::Presence(PresenceType::Unsubscribed));
                self.answer_with(answer.from(to.map(Jid::bare)).to(from.map(Jid::bare)).done());
                Routed::Done
            }
            Kind::Presence(_) => Routed::Done,
        }
    }

    fn message_to_service(self: &Arc<Self>, service: &Arc<Service>, mail: Mail) -> Routed {
        let (Some(form), Some(from)) =
            (subscribe::authorization(&mail.stanza), mail.stanza.head.from.clone())
        else {
            self.bounce(&mail.stanza, &StanzaError::new(Condition::ServiceUnavailable));
            return Routed::Done;
        };
        let desk = Desk {
            exchange: Arc::clone(self),
            place: Place::Service(Arc::clone(service)),
            who: from,
            lane: mail.lane(),
            ours: false,
        };
        Routed::Later(Box::pin(Exchange::authorize_subscription(desk, form, mail.stanza)))
    }

    /// s.7.1.2.3: who is not there any more is subscribed to nothing. What may be over tomorrow ends no subscription.
    fn undelivered(self: &Arc<Self>, service: &Arc<Service>, stanza: &Stanza) -> Routed {
        let Some(from) = stanza.head.from.clone() else { return Routed::Done };
        let error = stanza.children().find(|child| child.name() == "error").map(StanzaError::parse);
        let gone = error.is_some_and(|error| {
            matches!(error.condition, Condition::Gone | Condition::ItemNotFound | Condition::Forbidden)
        });
        if !gone || stanza.child(ns::PUBSUB_EVENT, "event").is_none() {
            return Routed::Done;
        }
        let end = sql("DELETE FROM pubsub_subscriptions WHERE jid = ?2 AND node IN \
                       (SELECT id FROM pubsub_nodes WHERE place = ?1)")
        .bind(service.host.domain.as_str())
        .bind(from.as_str());
        let exchange = Arc::clone(self);
        let ended: Later = Box::pin(async move {
            if let Err(error) = exchange.db.run(Batch::new(Lane::Outside).with(end)).await {
                tracing::warn!(%error, "subscriptions could not be ended");
            }
        });
        Routed::Later(ended)
    }
}
