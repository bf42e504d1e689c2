//! External components that are connected, and the queues of stanzas on their way to them.
//!
//! A component's domain counts as ours: federation serves it ([`Exchange::serves`]), the open-relay check knows it. A
//! stanza for a component that is not connected is answered with `remote-server-timeout`, type wait: the domain exists
//! and can't be reached now. (`service-unavailable` would tell a client that pings its room, XEP-0410 s.3.2, that it
//! is still inside.)
//!
//! The component protocol has no acknowledgements, so a stanza is at its destination when it is written to the socket
//! (DESIGN.md, promise 1). Until then its [`Receipt`] is held, so that the sender's `<a/>` does not cover it; nothing
//! goes to the disk. What was not written when the connection ends is bounced.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use parking_lot::Mutex;
use tokio::sync::Notify;
use trunkline_xmpp::error::{Condition, StanzaError, StreamCondition, StreamError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::{Kind, PresenceType, Stanza};

use super::{Mail, Routed};
use crate::config::{Component, Config, Side};
use crate::exchange::{Exchange, Host};
use crate::logging::Refusal;
use crate::metrics::StanzaKind;
use crate::session::ledger::Receipt;

/// Bytes given to the socket at once.
const WRITE: usize = 32 * 1024;

/// The components that are connected, by domain.
#[derive(Debug, Default)]
pub struct Components {
    connected: Mutex<HashMap<String, Arc<Link>>>,
    /// What federation needs to know of a component's domain, made when first asked for.
    hosts: Mutex<HashMap<String, Arc<Host>>>,
}

/// One connected component.
#[derive(Debug)]
pub struct Link {
    /// The number of its connection.
    pub serial: u64,
    /// Its domain.
    pub domain: Jid,
    /// Its configuration when it connected.
    pub component: Component,
    bounds: Bounds,
    queue: Mutex<Queue>,
    changed: Notify,
}

/// How much waits for one component: as for another provider.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Stanzas; half at most from outside.
    pub stanzas: usize,
    /// Bytes; half at most from outside.
    pub bytes: usize,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Taken and not yet known to be written.
    writing: Vec<Waiting>,
    bytes: usize,
    outside: usize,
    outside_bytes: usize,
    close: Option<StreamError>,
    ended: bool,
}

#[derive(Debug)]
struct Waiting {
    stanza: Stanza,
    outside: bool,
    size: usize,
    #[expect(dead_code, reason = "held until the stanza is written")]
    receipt: Option<Receipt>,
}

/// What a link's writer has to do.
#[derive(Debug)]
pub enum Work {
    /// Write these bytes, then call [`Link::written`].
    Write(Vec<u8>),
    /// Nothing came for a while.
    Idle,
    /// End the stream with this error.
    Close(StreamError),
}

impl Components {
    /// A component has shown its secret. A connection it had before is closed with `conflict`: who knows the secret
    /// is the component, and the older connection is most likely dead without the system's knowing.
    pub fn connect(&self, link: &Arc<Link>) {
        let old = self.connected.lock().insert(link.domain.as_str().to_owned(), Arc::clone(link));
        if let Some(old) = old {
            old.close(StreamError::new(StreamCondition::Conflict).text("Replaced by a new connection."));
        }
    }

    /// The connection is gone.
    pub fn disconnect(&self, link: &Link) {
        let mut connected = self.connected.lock();
        if connected.get(link.domain.as_str()).is_some_and(|held| held.serial == link.serial) {
            connected.remove(link.domain.as_str());
        }
    }

    fn get(&self, domain: &str) -> Option<Arc<Link>> {
        self.connected.lock().get(domain).cloned()
    }

    /// The connected domains, in order.
    pub fn domains(&self) -> Vec<String> {
        let mut domains: Vec<String> = self.connected.lock().keys().cloned().collect();
        domains.sort();
        domains
    }

    /// After a reload: components that are no longer configured, or differently, have to go.
    pub fn reconcile(&self, config: &Config) {
        self.hosts.lock().clear();
        let links: Vec<Arc<Link>> = self.connected.lock().values().cloned().collect();
        for link in links {
            let now = config.components.entries.get(link.domain.as_str());
            match now {
                None => link.close(StreamError::new(StreamCondition::HostGone)),
                Some(now) if now.secret != link.component.secret || now.side != link.component.side => {
                    link.close(
                        StreamError::new(StreamCondition::Reset).text("The configuration was changed."),
                    );
                }
                Some(_) => {}
            }
        }
    }

    /// The server stops.
    pub fn close_all(&self, error: &StreamError) {
        for link in self.connected.lock().values() {
            link.close(error.clone());
        }
    }
}

impl Link {
    /// A link with an empty queue.
    pub fn new(serial: u64, domain: Jid, component: Component, bounds: Bounds) -> Arc<Link> {
        Arc::new(Link { serial, domain, component, bounds, queue: Mutex::default(), changed: Notify::new() })
    }

    /// Whether what it sends counts as another provider's.
    pub fn is_outside(&self) -> bool {
        self.component.side == Side::Outside
    }

    /// Queues a stanza; never waits.
    ///
    /// # Errors
    /// What the sender is told.
    pub fn push(&self, mail: Mail) -> Result<(), StanzaError> {
        let size = mail.stanza.size();
        let outside = mail.is_outside();
        {
            let mut queue = self.queue.lock();
            if queue.ended {
                return Err(absent());
            }
            let full = queue.waiting.len() >= self.bounds.stanzas || queue.bytes + size > self.bounds.bytes;
            let share = outside
                && (queue.outside >= self.bounds.stanzas / 2
                    || queue.outside_bytes + size > self.bounds.bytes / 2);
            if full || share {
                return Err(StanzaError::new(Condition::ResourceConstraint)
                    .text("Too much is waiting for the component; try again later."));
            }
            queue.bytes += size;
            if outside {
                queue.outside += 1;
                queue.outside_bytes += size;
            }
            queue.waiting.push_back(Waiting { stanza: mail.stanza, outside, size, receipt: mail.receipt });
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Asks the connection to end the stream with `error`.
    pub fn close(&self, error: StreamError) {
        self.queue.lock().close.get_or_insert(error);
        self.changed.notify_one();
    }

    /// Waits for something to do; [`Work::Idle`] after `idle`.
    pub async fn work(&self, idle: Duration) -> Work {
        loop {
            if let Some(work) = self.next() {
                return work;
            }
            if tokio::time::timeout(idle, self.changed.notified()).await.is_err() {
                return Work::Idle;
            }
        }
    }

    fn next(&self) -> Option<Work> {
        let mut guard = self.queue.lock();
        let queue = &mut *guard;
        if let Some(error) = queue.close.take() {
            return Some(Work::Close(error));
        }
        let mut out = Vec::new();
        while out.len() < WRITE {
            let Some(waiting) = queue.waiting.pop_front() else { break };
            queue.bytes -= waiting.size;
            if waiting.outside {
                queue.outside -= 1;
                queue.outside_bytes -= waiting.size;
            }
            waiting.stanza.write(&mut out);
            queue.writing.push(waiting);
        }
        (!out.is_empty()).then_some(Work::Write(out))
    }

    /// What [`Link::work`] gave last is with the socket: those stanzas are where they belong.
    /// Their number by kind.
    pub fn written(&self) -> [usize; 3] {
        let written = std::mem::take(&mut self.queue.lock().writing);
        let mut kinds = [0; 3];
        for waiting in &written {
            kinds[StanzaKind::of(waiting.stanza.head.kind) as usize] += 1;
        }
        // Not under the lock: the last receipt calls back into its session.
        drop(written);
        kinds
    }

    /// A part of a stanza may be on the socket: nothing readable can follow.
    pub fn is_writing(&self) -> bool {
        !self.queue.lock().writing.is_empty()
    }

    /// Ends the queue: what was never written.
    fn end(&self) -> Vec<Stanza> {
        let (writing, waiting) = {
            let mut queue = self.queue.lock();
            queue.ended = true;
            (std::mem::take(&mut queue.writing), std::mem::take(&mut queue.waiting))
        };
        writing.into_iter().chain(waiting).map(|waiting| waiting.stanza).collect()
    }
}

impl Exchange {
    /// Whether a domain is this server's: a host, a service or a component, connected or not. What federation accepts stanzas
    /// for and proves itself as.
    pub fn serves(&self, domain: &str) -> bool {
        self.host(domain).is_some() || self.pubsub.service(domain).is_some() || self.is_component(domain)
    }

    /// The host or component of that name, as federation sees it. A component has no row in the store: its id is
    /// negative, and its secret (XEP-0185 keys are made with it) comes from the one it shows.
    pub fn served(&self, domain: &str) -> Option<Arc<Host>> {
        if let Some(host) = self.host(domain) {
            return Some(Arc::clone(host));
        }
        if let Some(service) = self.pubsub.service(domain) {
            return Some(Arc::clone(&service.host));
        }
        let config = self.config.load();
        let component = config.components.entries.get(domain)?;
        let mut hosts = self.components.hosts.lock();
        if let Some(host) = hosts.get(domain) {
            return Some(Arc::clone(host));
        }
        let parsed = Jid::parse(domain).ok()?;
        let hash = |parts: [&[u8]; 3]| {
            let mut context = digest::Context::new(&digest::SHA256);
            parts.iter().for_each(|part| context.update(part));
            let mut hash = [0; 32];
            hash.copy_from_slice(context.finish().as_ref());
            hash
        };
        let [a, b, c, d, e, f, g, h, ..] = hash([b"id", domain.as_bytes(), b""]);
        let id = i64::from_be_bytes([a, b, c, d, e, f, g, h]) | i64::MIN;
        let secret = hash([b"secret", domain.as_bytes(), component.secret.as_bytes()]);
        let host = Arc::new(Host { id, domain: parsed, secret });
        hosts.insert(domain.to_owned(), Arc::clone(&host));
        Some(host)
    }

    /// Whether a domain is a component's by configuration.
    pub fn is_component(&self, domain: &str) -> bool {
        self.config.load().components.entries.contains_key(domain)
    }

    /// The connected components that service discovery of `host` names: those below it, and those below no host.
    pub fn component_domains(&self, host: &Host) -> Vec<String> {
        let below =
            |domain: &str, host: &str| domain.strip_suffix(host).is_some_and(|rest| rest.ends_with('.'));
        let mut domains = self.components.domains();
        domains.retain(|domain| {
            below(domain, host.domain.as_str()) || !self.hosts.keys().any(|other| below(domain, other))
        });
        domains
    }

    /// Routes a stanza to a component.
    pub(super) fn route_to_component(self: &Arc<Self>, domain: &str, mail: Mail) -> Routed {
        // A sender is told of a failure unless it only said goodbye.
        let told = !matches!(
            mail.stanza.head.kind,
            Kind::Presence(
                PresenceType::Unavailable | PresenceType::Unsubscribe | PresenceType::Unsubscribed
            )
        );
        let stanza = mail.stanza.clone();
        let result = self.components.get(domain).map_or_else(|| Err(absent()), |link| link.push(mail));
        if let Err(error) = result {
            let detail = "a stanza for a component that is not connected or does not read";
            self.refusals.report(Refusal { name: "component-unreachable", peer: domain, conn: 0, detail });
            if told {
                self.bounce(&stanza, &error);
            }
        }
        Routed::Done
    }

    /// A component's connection is gone: what it did not get is bounced.
    pub fn component_gone(self: &Arc<Self>, link: &Link) {
        self.components.disconnect(link);
        for stanza in link.end() {
            self.bounce(&stanza, &absent());
        }
    }
}

fn absent() -> StanzaError {
    StanzaError::new(Condition::RemoteServerTimeout).text("The component is not connected.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Origin;
    use trunkline_xmpp::stanza::MessageType;

    fn link(stanzas: usize) -> Arc<Link> {
        let component = Component { secret: "s".into(), side: Side::Inside };
        let domain = Jid::parse("muc.north.example").unwrap();
        Link::new(1, domain, component, Bounds { stanzas, bytes: 10_000 })
    }

    fn mail(origin: Origin) -> Mail {
        let stanza = Stanza::build(Kind::Message(MessageType::Chat))
            .to(Jid::parse("room@muc.north.example").unwrap())
            .from(Jid::parse("romeo@north.example/orchard").unwrap())
            .done();
        Mail::new(stanza, origin)
    }

    #[test]
    fn outside_has_half_of_the_queue() {
        let link = link(4);
        for _ in 0..2 {
            link.push(mail(Origin::Outside)).unwrap();
        }
        let refused = link.push(mail(Origin::Outside)).unwrap_err();
        assert_eq!(refused.condition, Condition::ResourceConstraint);
        link.push(mail(Origin::Inside)).unwrap();
        link.push(mail(Origin::Inside)).unwrap();
        assert!(link.push(mail(Origin::Inside)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_written_is_given_back() {
        let link = link(10);
        link.push(mail(Origin::Inside)).unwrap();
        assert!(matches!(link.work(Duration::from_secs(1)).await, Work::Write(_)));
        link.written();
        assert!(!link.is_writing());
        link.push(mail(Origin::Inside)).unwrap();
        assert!(matches!(link.work(Duration::from_secs(1)).await, Work::Write(_)));
        link.push(mail(Origin::Inside)).unwrap();
        assert_eq!(link.end().len(), 2);
        assert_eq!(link.push(mail(Origin::Inside)).unwrap_err().condition, Condition::RemoteServerTimeout);
        assert!(matches!(link.work(Duration::from_secs(1)).await, Work::Idle));
    }

    #[tokio::test]
    async fn a_new_connection_replaces_the_old_one() {
        let components = Components::default();
        let (old, new) =
            (link(1), Link::new(2, link(1).domain.clone(), link(1).component.clone(), link(1).bounds));
        components.connect(&old);
        components.connect(&new);
        let Work::Close(error) = old.work(Duration::from_secs(1)).await else { panic!("not closed") };
        assert_eq!(error.condition(), StreamCondition::Conflict);
        components.disconnect(&old);
        assert_eq!(components.domains(), ["muc.north.example"]);
        components.disconnect(&new);
        assert!(components.domains().is_empty());
    }
}
