//! What all parts of federation share: the peers, the streams, the limits.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::runtime::Handle as RuntimeHandle;
use tokio::sync::{Notify, Semaphore, watch};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, Stanza};

use super::budget::Budgets;
use super::crossing::Crossing;
use super::dial::Network;
use super::failure::Failure;
use super::handle::Handle;
use super::pair::keeps;
use super::peer::{self, Budget, Peer, Peers};
use super::policy::Turns;
use super::queue::Bounds;
use super::{MOST_INCOMING, MOST_PEERS};
use crate::admin::StreamStatus;
use crate::config::WhenClosed;
use crate::control::traffic::Event;
use crate::exchange::Exchange;
use crate::logging::{Refusal, Refusals};
use crate::net::{CertStore, Gate, Resolver, TrustRoots, Verdict, verify_peer};
use crate::route::Mail;

/// What all parts of federation share.
pub(crate) struct Shared {
    pub(super) exchange: Arc<Exchange>,
    pub(super) certs: Arc<CertStore>,
    pub(super) roots: Arc<ArcSwap<TrustRoots>>,
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) network: Network,
    pub(super) runtime: RuntimeHandle,
    pub(super) peers: Peers,
    pub(super) lines: Mutex<HashMap<u64, Arc<Handle>>>,
    /// Outgoing streams on which the peer offers dialback for further domains of ours.
    pub(super) sharable: Mutex<HashSet<u64>>,
    pub(super) crossing: Arc<Crossing>,
    pub(super) refusals: Refusals,
    pub(super) dials: Semaphore,
    pub(super) answer_dials: Semaphore,
    pub(super) budgets: Budgets,
    pub(super) gate: Arc<Gate>,
    /// Grows when the policy may have changed.
    pub(super) epoch: AtomicU64,
    /// Wakes who waits for that.
    pub(super) policy: Notify,
    /// Everybody was cut off when it was looked at last.
    pub(super) was_closed: AtomicBool,
    /// Turns of connections after a reopening.
    pub(super) turns_in: Arc<Turns>,
    pub(super) turns_out: Arc<Turns>,
    pub(super) stopping: AtomicBool,
    /// Dropped to stop the listeners and sweepers.
    pub(super) running: Mutex<Option<watch::Sender<()>>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// Takes a stanza for another domain. Never waits.
    pub(super) fn send(self: &Arc<Self>, mail: Mail) -> Result<(), StanzaError> {
        let (Some(from), Some(to)) = (&mail.stanza.head.from, &mail.stanza.head.to) else {
            return Err(StanzaError::new(Condition::BadRequest));
        };
        let Some(local) = self.exchange.served(from.domain()) else {
            return Err(
                StanzaError::new(Condition::NotAllowed).log("a stanza from a domain that is not ours")
            );
        };
        let domain = to.domain_jid();
        // What is kept is sent after the next start.
        if self.is_stopping() && !keeps(&mail) {
            return Err(Failure::Shutdown.stanza_error());
        }
        if let Some(failure) = self.forbidden(domain.as_str()) {
            let queue = self.exchange.config.load().federation.when_closed == WhenClosed::Queue;
            let waits = queue && matches!(failure, Failure::CutOff(_)) && keeps(&mail);
            // Presence is of no use later, and nobody waits for an answer to it, but who enters a room (XEP-0045 s.7.2).
            let enters = mail.stanza.child(ns::MUC, "x").is_some();
            if matches!(mail.stanza.head.kind, Kind::Presence(_)) && !keeps(&mail) && !enters {
                return Ok(());
            }
            if !waits {
                self.exchange.metrics.refused(failure.label());
                self.exchange.control.traffic.count(domain.as_str(), Event::Withheld(failure.label()));
                return Err(failure.stanza_error());
            }
        }
        let Some(mail) = self.judge_outgoing(&domain, mail)? else { return Ok(()) };
        let most = if mail.is_answer() { MOST_INCOMING } else { MOST_PEERS };
        let Some(peer) = self.peer(&domain, most) else {
            self.exchange.metrics.refused("too-many-peers");
            return Err(StanzaError::new(Condition::ResourceConstraint)
                .text("Too many domains at once. Try again later."));
        };
        peer.pair(&local).enqueue(self, mail)
    }

    /// Answers a peer's stanza that is not let in. False: there is no room for the answer either. Presence is not worth
    /// a stream: its answer may get lost.
    pub(super) fn reply(self: &Arc<Self>, answer: Stanza) -> bool {
        let is_presence = matches!(answer.head.kind, Kind::Presence(_));
        self.send(Mail::answer(answer)).is_ok() || is_presence
    }

    /// The peer, if there is room for another among `most`.
    pub(super) fn peer(&self, domain: &Jid, most: usize) -> Option<Arc<Peer>> {
        self.peers.get_or_make(domain, most, || Peer {
            domain: domain.clone(),
            budget: Mutex::new(Budget::new(&self.exchange.config.load().limits, self.now())),
            load: Arc::default(),
            faults: Mutex::default(),
            dials: Semaphore::new(peer::MOST_DIALS),
            pairs: Mutex::default(),
        })
    }

    // ---- streams

    pub(super) fn add_line(&self, status: StreamStatus) -> Arc<Handle> {
        let handle = Handle::new(crate::session::serial(), status);
        self.lines.lock().insert(handle.serial, Arc::clone(&handle));
        handle
    }

    pub(super) fn remove_line(&self, serial: u64) {
        self.lines.lock().remove(&serial);
        self.sharable.lock().remove(&serial);
    }

    pub(super) fn note_sharable(&self, handle: &Handle) {
        self.sharable.lock().insert(handle.serial);
    }

    /// A stream to `peer` that may take another domain of ours along.
    pub(super) fn sharable(&self, peer: &Jid) -> Option<Arc<Handle>> {
        let lines = self.lines.lock();
        let sharable = self.sharable.lock();
        sharable
            .iter()
            .filter_map(|serial| lines.get(serial))
            .find(|handle| handle.peer.lock().as_ref() == Some(peer))
            .cloned()
    }

    // ---- stopping

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn stopped(&self) -> Option<watch::Receiver<()>> {
        self.running.lock().as_ref().map(watch::Sender::subscribe)
    }

    // ---- trust, time, limits

    /// What a certificate is worth for `domain`.
    pub(super) fn verdict(&self, chain: &[CertificateDer<'_>], domain: &str) -> Verdict {
        let now = Timestamp::from_millisecond(self.now()).unwrap_or_else(|_| Timestamp::now());
        verify_peer(chain, domain, now, &self.roots.load())
    }

    pub(super) fn now(&self) -> i64 {
        self.exchange.clock().now()
    }

    pub(super) fn queue_bounds(&self) -> Bounds {
        let config = self.exchange.config.load();
        let federation = &config.federation;
        // Where the memory for all is used up, what is kept goes to disk only, and the rest is refused.
        let (stanzas, bytes) = match self.budgets.queued.all() < federation.queue_memory {
            true => (federation.queue_stanzas, federation.queue_bytes),
            false => (0, 0),
        };
        Bounds { stanzas, bytes, kept: federation.queue_kept }
    }

    /// The same for the server's own answers: half of the memory for all. What our users send has the rest, however many
    /// ask and take no answers.
    pub(super) fn answer_bounds(&self) -> Bounds {
        let bounds = self.queue_bounds();
        match self.budgets.queued.all() < self.exchange.config.load().federation.queue_memory / 2 {
            true => bounds,
            false => Bounds { stanzas: 0, bytes: 0, ..bounds },
        }
    }

    pub(super) fn queue_age(&self) -> i64 {
        i64::try_from(self.exchange.config.load().federation.queue_age.as_millis()).unwrap_or(i64::MAX)
    }

    pub(super) fn longest_pause(&self) -> Duration {
        self.exchange.config.load().federation.retry_max
    }

    pub(super) fn unacked_bounds(&self) -> (usize, usize) {
        let config = self.exchange.config.load();
        (config.limits.unacked_stanzas, config.limits.unacked_bytes)
    }

    /// Of a stream on which a domain is proved.
    pub(super) fn scan_limits(&self) -> trunkline_xml::Limits {
        let limits = &self.exchange.config.load().limits;
        trunkline_xml::Limits {
            element_bytes: limits.stanza_bytes_outside,
            header_bytes: limits.header_bytes,
            depth: limits.depth,
            attributes: limits.attributes,
            namespaces: limits.namespaces,
            nodes: limits.nodes,
            ..trunkline_xml::Limits::default()
        }
    }

    /// Before that.
    pub(super) fn early_limits(&self) -> trunkline_xml::Limits {
        let element_bytes = self.exchange.config.load().limits.stanza_bytes_unauthenticated;
        trunkline_xml::Limits { element_bytes, ..self.scan_limits() }
    }

    /// Counts a refusal and writes its line, if it is its turn.
    pub(super) fn refused(&self, name: &'static str, peer: &str, conn: u64, detail: &str) {
        // Who is refused before a proof may be anybody.
        self.exchange.control.traffic.count("", Event::Refused(name));
        self.refusals.report(Refusal { name, peer, conn, detail });
    }
}
