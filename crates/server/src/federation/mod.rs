//! Federation: streams to and from other domains, what waits for them, and what outsiders may do.
//!
//! It has its own worker threads and listeners. To the inside it has two doors only: [`Remote::send`], which the
//! router calls and which never waits, and the [`crossing`], through which everything from outside goes in.
//!
//! ```text
//! router - send - Pair: Queue (+ table outbound) - trunk: dial - Line - socket
//! socket - accept - Line: proof - crossing - router
//! ```

mod crossing;
mod dial;
mod dialback;
mod failure;
mod incoming;
mod line;
mod management;
mod outbound;
mod peer;
mod queue;
#[cfg(test)]
mod tests;
mod trunk;
mod wire;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::runtime::{Handle as RuntimeHandle, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::Stanza;

use crate::admin::{FederationStatus, OpError, PeerStatus, StreamStatus};
use crate::config::Config;
use crate::exchange::Exchange;
use crate::ids::LogId;
use crate::logging::{Refusal, Refusals};
use crate::net::{
    BindError, CertStore, Gate, GateLimits, Resolver, TrustRoots, Verdict, bind, serve, verify_peer,
};
use crate::route::Mail;
use crate::route::remote::{Entrance, Remote};

use crossing::Crossing;
pub use crossing::CrossingBounds;
use dial::Network;
use dialback::{Dialback, Kind, Say};
use peer::{Bounce, Budget, Command, Handle, Peer, Peers, Sources};
use queue::{Bounds, Queue};
use trunk::Door;

/// Peer domains that are known at once. Idle ones make room.
const MOST_PEERS: usize = 20_000;
/// Of these, domains that came to us. The rest is for those that somebody here writes to.
const MOST_INCOMING: usize = MOST_PEERS / 4 * 3;
/// Pairs of domains that the streams from one address (IPv6: one /64) may prove at once.
const MOST_PROOFS: usize = 1000;
/// Connections to peers that are being made at once: for what somebody here wants to send.
const MOST_DIALS: usize = 256;
/// The same, where only answers of ours wait: nobody here is kept waiting because somebody outside asks a lot.
const MOST_ANSWER_DIALS: usize = 64;
/// Dialback keys that are checked at the same time, of all streams.
const MOST_VERIFICATIONS: usize = 256;
/// TLS handshakes at the same time.
const HANDSHAKES: usize = 256;
/// Milliseconds between two attempts of a start that finds queues for many peers.
const STAGGER: i64 = 20;
/// How often what has expired is looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// How long streams may take to say farewell when the server stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// What federation is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Our certificates.
    pub certs: Arc<CertStore>,
    /// Whom we trust to certify others.
    pub roots: Arc<ArcSwap<TrustRoots>>,
    /// DNS.
    pub resolver: Arc<dyn Resolver>,
    /// Worker threads of the inside: what the crossing takes its share of.
    pub inside_threads: usize,
}

/// Where federation runs and how it connects; tests lend their own.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    /// The threads.
    pub(crate) runtime: RuntimeHandle,
    /// The network.
    pub(crate) network: Network,
}

/// Other domains, and the way to them. Cheap to clone.
#[derive(Clone)]
pub struct Federation {
    shared: Arc<Shared>,
    /// `None` when a test lends its threads.
    own: Arc<Mutex<Option<Own>>>,
}

/// What belongs to federation alone.
struct Own {
    /// The worker threads.
    runtime: Runtime,
    /// Listeners that nobody is served on yet.
    starttls: Vec<TcpListener>,
    /// The same, for TLS from the first byte.
    direct: Vec<TcpListener>,
}

/// Why federation can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener can't be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The threads can't be started.
    #[error("federation's threads can't be started: {0}")]
    Threads(#[from] std::io::Error),
    /// The queue can't be read.
    #[error("the queue for other domains can't be read: {0}")]
    Store(#[from] trunkline_store::StoreError),
}

/// What all parts of federation share.
pub(crate) struct Shared {
    exchange: Arc<Exchange>,
    certs: Arc<CertStore>,
    roots: Arc<ArcSwap<TrustRoots>>,
    resolver: Arc<dyn Resolver>,
    network: Network,
    runtime: RuntimeHandle,
    peers: Peers,
    lines: Mutex<HashMap<u64, Arc<Handle>>>,
    /// Outgoing streams on which the peer offers dialback for further domains of ours.
    sharable: Mutex<HashSet<u64>>,
    crossing: Arc<Crossing>,
    refusals: Refusals,
    verifications: Arc<Semaphore>,
    dials: Semaphore,
    answer_dials: Semaphore,
    sources: Arc<Sources>,
    gate: Arc<Gate>,
    /// Grows when the policy may have changed.
    epoch: AtomicU64,
    stopping: AtomicBool,
    cut: Mutex<Cut>,
    /// Dropped to stop the listeners and sweepers.
    running: Mutex<Option<watch::Sender<()>>>,
}

/// What an administrator has cut off for the time being.
#[derive(Debug, Default)]
struct Cut {
    all: bool,
    domains: BTreeSet<String>,
}

impl Federation {
    /// Opens listeners and starts worker threads of its own, as the configuration says. Nobody is let in before
    /// [`Federation::serve`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(exchange: &Arc<Exchange>, parts: Parts) -> Result<Federation, StartError> {
        let config = exchange.config.load_full();
        let threads = match config.federation.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()).div_ceil(2),
            threads => threads,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("federation")
            .enable_all()
            .build()?;
        let bound = {
            // A listener belongs to the runtime in which it is opened.
            let _entered = runtime.enter();
            bind(&config.federation.listen)
                .and_then(|starttls| Ok((starttls, bind(&config.federation.listen_tls)?)))
        };
        let ground = Ground { runtime: runtime.handle().clone(), network: Network::Tcp };
        let started = match bound {
            Ok(bound) => {
                Federation::start_on(exchange, parts, ground).await.map(|federation| (federation, bound))
            }
            Err(error) => Err(error.into()),
        };
        match started {
            Ok((federation, (starttls, direct))) => {
                *federation.own.lock() = Some(Own { runtime, starttls, direct });
                Ok(federation)
            }
            Err(error) => {
                // Dropping a runtime where tasks run would panic.
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// Lets peers in. Returns what is listened on: the configuration's key and the address.
    pub fn serve(&self) -> Vec<(&'static str, SocketAddr, AbortHandle)> {
        let (starttls, direct) = match &mut *self.own.lock() {
            Some(own) => (std::mem::take(&mut own.starttls), std::mem::take(&mut own.direct)),
            None => return Vec::new(),
        };
        let mut listening = Vec::new();
        for (key, direct_tls, listeners) in
            [("federation.listen", false, starttls), ("federation.listen_tls", true, direct)]
        {
            for listener in listeners {
                let address = listener.local_addr().ok();
                let door = Arc::new(Door { shared: Arc::clone(&self.shared), direct_tls });
                let Some(stopped) = self.shared.stopped() else { return listening };
                let task =
                    self.shared.runtime.spawn(serve(listener, Arc::clone(&self.shared.gate), door, stopped));
                listening.extend(address.map(|address| (key, address, task.abort_handle())));
            }
        }
        listening
    }

    /// Starts on threads that the caller has, without listeners.
    pub(crate) async fn start_on(
        exchange: &Arc<Exchange>,
        parts: Parts,
        ground: Ground,
    ) -> Result<Federation, StartError> {
        let config = exchange.config.load_full();
        let crossing = Crossing::new(
            CrossingBounds {
                stanzas: config.limits.crossing_stanzas,
                bytes: config.limits.crossing_bytes,
                peer_stanzas: config.limits.crossing_peer_stanzas,
                share: config.limits.crossing_share,
            },
            parts.inside_threads.max(1),
        );
        let shared = Arc::new(Shared {
            exchange: Arc::clone(exchange),
            certs: parts.certs,
            roots: parts.roots,
            resolver: parts.resolver,
            network: ground.network,
            runtime: ground.runtime,
            peers: Peers::default(),
            lines: Mutex::default(),
            sharable: Mutex::default(),
            crossing,
            refusals: Refusals::new(Arc::clone(&exchange.metrics)),
            verifications: Arc::new(Semaphore::new(MOST_VERIFICATIONS)),
            dials: Semaphore::new(MOST_DIALS),
            answer_dials: Semaphore::new(MOST_ANSWER_DIALS),
            sources: Sources::new(MOST_PROOFS),
            gate: Gate::new(gate_limits(&config)),
            epoch: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            cut: Mutex::default(),
            running: Mutex::new(Some(watch::Sender::new(()))),
        });
        shared.crossing.drain(exchange);
        shared.resume_queues().await?;
        let sweeper = Arc::clone(&shared);
        if let Some(stopped) = shared.stopped() {
            shared.runtime.spawn(async move { sweeper.sweep_for_ever(stopped).await });
        }
        let federation = Federation { shared, own: Arc::default() };
        federation.watch();
        Ok(federation)
    }

    /// Gauges for the metrics.
    fn watch(&self) {
        let metrics = &self.shared.exchange.metrics;
        let shared = Arc::downgrade(&self.shared);
        metrics.watch_gauge(
            "federation_crossing_stanzas",
            "Stanzas from outside that wait to cross",
            move || shared.upgrade().map_or(0.0, |shared| shared.crossing.waiting().0 as f64),
        );
        let shared = Arc::downgrade(&self.shared);
        metrics.watch_gauge("federation_queue_kept", "Messages that wait for other domains", move || {
            let Some(shared) = shared.upgrade() else { return 0.0 };
            let peers = shared.peers.all();
            peers
                .iter()
                .map(|peer| peer.pairs.lock().values().map(|pair| pair.report().kept).sum::<usize>())
                .sum::<usize>() as f64
        });
    }

    fn report(&self) -> FederationStatus {
        let shared = &self.shared;
        let mut streams: HashMap<String, Vec<StreamStatus>> = HashMap::new();
        let handles: Vec<_> = shared.lines.lock().values().cloned().collect();
        for handle in handles {
            let peer = handle.peer.lock().clone();
            if let Some(peer) = peer {
                streams.entry(peer.as_str().to_owned()).or_default().push(handle.status.lock().clone());
            }
        }
        let mut peers: Vec<PeerStatus> = shared
            .peers
            .all()
            .iter()
            .map(|peer| {
                let mut streams = streams.remove(peer.domain.as_str()).unwrap_or_default();
                streams.sort_by_key(|stream| stream.since);
                self.peer_status(peer, streams)
            })
            .collect();
        peers.sort_by(|a, b| a.domain.cmp(&b.domain));
        FederationStatus { open: shared.is_open(), peers }
    }

    fn peer_status(&self, peer: &Peer, streams: Vec<StreamStatus>) -> PeerStatus {
        let mut status =
            PeerStatus { domain: peer.domain.as_str().to_owned(), streams, ..PeerStatus::default() };
        let mut state = "idle";
        let rank =
            |state: &str| ["idle", "waiting", "connecting", "connected"].iter().position(|s| *s == state);
        let pairs: Vec<_> = peer.pairs.lock().values().cloned().collect();
        for report in pairs.iter().map(|pair| pair.report()) {
            if rank(report.state) > rank(state) {
                state = report.state;
            }
            status.queue_stanzas += report.stanzas as u64;
            status.queue_bytes += report.bytes as u64;
            status.queue_kept += report.kept as u64;
            status.retry_at = match (status.retry_at, report.retry_at) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            let newer = report.last_error.as_ref().map(|e| e.at) > status.last_error.as_ref().map(|e| e.at);
            if newer {
                status.last_error = report.last_error;
            }
        }
        if !status.streams.is_empty() {
            state = "connected";
        }
        if !self.shared.is_open() {
            state = "closed";
        } else if !self.shared.may_talk(&status.domain) {
            state = "blocked";
        }
        status.state = state.into();
        status
    }

    /// Closes all listeners and streams with `system-shutdown`. What is not delivered stays in the log.
    pub async fn stop(&self) {
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::Release);
        shared.running.lock().take();
        shared.policy_changed();
        let patience = tokio::time::Instant::now() + FAREWELL;
        while !shared.lines.lock().is_empty() && tokio::time::Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let own = self.own.lock().take();
        if let Some(Own { runtime, .. }) = own {
            // Farewells that are still being written have this much longer.
            let closed =
                tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_millis(500)))
                    .await;
            if closed.is_err() {
                tracing::warn!("federation's threads did not stop in time");
            }
        }
    }
}

impl Drop for Federation {
    fn drop(&mut self) {
        if Arc::strong_count(&self.own) == 1
            && let Some(own) = self.own.lock().take()
        {
            own.runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Federation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Federation").field("streams", &self.shared.lines.lock().len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Remote for Federation {
    fn send(&self, _exchange: &Arc<Exchange>, mail: Mail) -> Result<(), StanzaError> {
        self.shared.send(mail)
    }

    fn status(&self) -> FederationStatus {
        self.report()
    }

    /// Also what is below the domain, until opened again.
    fn close(&self, domain: Option<&str>) -> Result<String, OpError> {
        let said = match known_domain(domain)? {
            Some(domain) => {
                let said =
                    format!("{domain} is cut off until it is opened again, or the server starts again.");
                self.shared.cut.lock().domains.insert(domain);
                said
            }
            None => {
                self.shared.cut.lock().all = true;
                "The outside is cut off until it is opened again, or the server starts again.".into()
            }
        };
        self.shared.policy_changed();
        Ok(said)
    }

    fn open(&self, domain: Option<&str>) -> Result<String, OpError> {
        let config = self.shared.exchange.config.load_full();
        let said = match known_domain(domain)? {
            Some(domain) => {
                if !self.shared.cut.lock().domains.remove(&domain) {
                    return Err(OpError::NotPossible(format!("{domain} was not closed")));
                }
                match config.federation.blocked(&domain) {
                    true => format!("{domain} is open, but federation.domains blocks it."),
                    false => format!("{domain} is open."),
                }
            }
            None => {
                self.shared.cut.lock().all = false;
                match config.federation.enabled {
                    true => "Federation is open.".into(),
                    false => "Federation is open, but federation.enabled is false.".into(),
                }
            }
        };
        self.shared.policy_changed();
        Ok(said)
    }

    fn entrance(&self) -> Option<Arc<dyn Entrance>> {
        Some(Arc::new(crossing::Doorway::new(&self.shared.crossing)))
    }

    fn reload(&self, config: &Config) {
        self.shared.gate.set_limits(gate_limits(config));
        self.shared.policy_changed();
        if !matches!(self.shared.network, Network::Tcp) {
            return;
        }
        let (shared, trust) = (Arc::clone(&self.shared), config.federation.trust.clone());
        self.shared.runtime.spawn_blocking(move || match TrustRoots::system(trust.as_deref()) {
            Ok(roots) => {
                shared.roots.store(Arc::new(roots));
                shared.policy_changed();
            }
            Err(error) => tracing::error!(%error, "federation.trust was not read again"),
        });
    }
}

fn known_domain(domain: Option<&str>) -> Result<Option<String>, OpError> {
    let Some(name) = domain else { return Ok(None) };
    match Jid::parse(name) {
        Ok(jid) if jid.is_domain() => Ok(Some(jid.as_str().to_owned())),
        _ => Err(OpError::NotPossible(format!("{name} is not a domain"))),
    }
}

fn gate_limits(config: &Config) -> GateLimits {
    let per_address = config.federation.max_connections_per_address;
    GateLimits {
        enabled: config.limits.enabled,
        connections: config.federation.max_connections,
        per_address: u32::try_from(per_address).unwrap_or(u32::MAX),
        per_minute: config.limits.connections_per_minute,
        handshakes: HANDSHAKES,
        handshake_timeout: config.federation.handshake_timeout,
    }
}

impl Shared {
    /// Takes a stanza for another domain. Never waits.
    fn send(self: &Arc<Self>, mail: Mail) -> Result<(), StanzaError> {
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
        if self.is_stopping() && !peer::keeps(&mail) {
            return Err(failure::Failure::Shutdown.stanza_error());
        }
        if !self.may_talk(domain.as_str()) {
            self.exchange.metrics.refused("policy");
            return Err(failure::Failure::Policy.stanza_error());
        }
        let most = if mail.is_answer() { MOST_INCOMING } else { MOST_PEERS };
        let Some(peer) = self.peer(&domain, most) else {
            self.exchange.metrics.refused("too-many-peers");
            return Err(StanzaError::new(Condition::ResourceConstraint)
                .text("Too many domains at once. Try again later."));
        };
        peer.pair(&local).enqueue(self, mail)
    }

    /// Answers a peer's stanza that is not let in.
    fn reply(self: &Arc<Self>, answer: Stanza) {
        // Nobody is told when the answer to an outsider finds no room.
        let _ = self.send(Mail::answer(answer));
    }

    /// Tells senders, on the inside's threads, then removes the rows.
    fn bounce(self: &Arc<Self>, bounces: Vec<Bounce>, error: StanzaError) {
        if bounces.is_empty() {
            return;
        }
        let exchange = Arc::clone(&self.exchange);
        self.exchange.spawn(async move {
            let mut gone = Vec::new();
            for bounce in bounces {
                exchange.metrics.expired.inc();
                // Nobody waits for presence that did not arrive, except for an answer to a request.
                let silent = matches!(bounce.stanza.head.kind, trunkline_xmpp::stanza::Kind::Presence(_))
                    && bounce.kept.is_none();
                if !silent && let Some(answer) = bounce.stanza.error(&error) {
                    exchange.deliver(Mail::inside(answer)).await;
                }
                gone.extend(bounce.kept);
            }
            // After the errors: a crash in between repeats them, under the same ids.
            outbound::delete(&exchange.db, &gone);
        });
    }

    /// Pairs for which something waits from before the start.
    async fn resume_queues(self: &Arc<Self>) -> Result<(), trunkline_store::StoreError> {
        for (index, rows) in (0i64..).zip(outbound::pairs(&self.exchange.db).await?) {
            let (Some(local), Ok(domain)) = (self.exchange.served(&rows.local), Jid::parse(&rows.peer))
            else {
                tracing::warn!(
                    local = rows.local,
                    peer = rows.peer,
                    "what waits in the queue is not from a domain of ours"
                );
                continue;
            };
            let Some(peer) = self.peer(&domain, MOST_PEERS) else { continue };
            let pair = peer::Pair::new(local, domain, Queue::from_disk(rows.rows));
            peer.pairs.lock().insert(rows.local, Arc::clone(&pair));
            // One after the other: ten thousand peers are not all called in the first second.
            pair.kick_at(self, self.now() + index * STAGGER);
        }
        Ok(())
    }

    async fn sweep_for_ever(self: Arc<Self>, mut stopped: watch::Receiver<()>) {
        loop {
            let every = SWEEP
                .min(self.exchange.config.load().federation.queue_age / 4)
                .max(Duration::from_millis(50));
            tokio::select! {
                _ = stopped.changed() => return,
                () = tokio::time::sleep(every) => {}
            }
            self.refusals.sweep();
            if let Err(error) = self.sweep().await {
                tracing::warn!(%error, "the queue for other domains can't be swept");
            }
        }
    }

    /// Bounces what has waited too long.
    async fn sweep(self: &Arc<Self>) -> Result<(), trunkline_store::StoreError> {
        let now = self.now();
        let mut after = LogId::ZERO;
        loop {
            let rows = outbound::expired(&self.exchange.db, now, after).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.id;
            for row in rows {
                let pair =
                    self.peers.get(&row.peer).and_then(|peer| peer.pairs.lock().get(&row.local).cloned());
                let why = match &pair {
                    Some(pair) if !pair.expire(row.id) => continue,
                    Some(pair) => {
                        pair.forget(1);
                        pair.last_failure()
                    }
                    None => None,
                };
                let Some(stanza) = row.stanza else {
                    outbound::delete(&self.exchange.db, &[row.id]);
                    continue;
                };
                let waited = words(self.exchange.config.load().federation.queue_age);
                let error = why.as_ref().map_or_else(
                    || StanzaError::new(Condition::RemoteServerTimeout),
                    failure::Failure::stanza_error,
                );
                let text = match why {
                    Some(why) => format!("{} could not be reached for {waited}: {why}.", row.peer),
                    None => format!("{} could not be reached for {waited}.", row.peer),
                };
                self.bounce(vec![Bounce { stanza, kept: Some(row.id) }], error.text(text));
            }
        }
    }

    /// Checks a dialback key with its domain and tells the stream.
    fn verify(self: &Arc<Self>, handle: Arc<Handle>, question: Dialback) {
        let tell = move |question: &Dialback, outcome| {
            handle.ask(Command::Verified { from: question.to.clone(), to: question.from.clone(), outcome });
        };
        debug_assert!(matches!((&question.kind, &question.say), (Kind::Verify(_), Say::Key(_))));
        let Ok(permit) = Arc::clone(&self.verifications).try_acquire_owned() else {
            return tell(
                &question,
                Err(failure::Failure::Unreachable("too many verifications at once".into())),
            );
        };
        let shared = Arc::clone(self);
        self.runtime.spawn(async move {
            let outcome = dial::ask(&shared, &question).await;
            drop(permit);
            tell(&question, outcome);
        });
    }

    /// The peer, if there is room for another among `most`.
    fn peer(&self, domain: &Jid, most: usize) -> Option<Arc<Peer>> {
        self.peers.get_or_make(domain, most, || Peer {
            domain: domain.clone(),
            budget: Mutex::new(Budget::new(&self.exchange.config.load().limits, self.now())),
            load: Arc::default(),
            dials: Semaphore::new(peer::MOST_DIALS),
            pairs: Mutex::default(),
        })
    }

    // ---- streams

    fn add_line(&self, status: StreamStatus) -> Arc<Handle> {
        let handle = Handle::new(crate::session::serial(), status);
        self.lines.lock().insert(handle.serial, Arc::clone(&handle));
        handle
    }

    fn remove_line(&self, serial: u64) {
        self.lines.lock().remove(&serial);
        self.sharable.lock().remove(&serial);
    }

    fn note_sharable(&self, handle: &Handle) {
        self.sharable.lock().insert(handle.serial);
    }

    /// A stream to `peer` that may take another domain of ours along.
    fn sharable(&self, peer: &Jid) -> Option<Arc<Handle>> {
        let lines = self.lines.lock();
        let sharable = self.sharable.lock();
        sharable
            .iter()
            .filter_map(|serial| lines.get(serial))
            .find(|handle| handle.peer.lock().as_ref() == Some(peer))
            .cloned()
    }

    // ---- policy

    /// Anything at all goes in or out.
    fn is_open(&self) -> bool {
        self.exchange.config.load().federation.enabled && !self.cut.lock().all
    }

    /// `domain` may be talked to.
    fn may_talk(&self, domain: &str) -> bool {
        let config = self.exchange.config.load();
        if !config.federation.enabled || config.federation.blocked(domain) {
            return false;
        }
        let cut = self.cut.lock();
        !cut.all
            && !cut
                .domains
                .iter()
                .any(|cut| domain == cut || domain.strip_suffix(cut).is_some_and(|rest| rest.ends_with('.')))
    }

    /// Dialback may prove `domain`, and prove us to it.
    fn dialback_with(&self, domain: &str) -> bool {
        self.exchange.config.load().federation.dialback_with(domain)
    }

    fn policy_changed(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let lines: Vec<_> = self.lines.lock().values().cloned().collect();
        for line in lines {
            line.wake();
        }
        for peer in self.peers.all() {
            let pairs: Vec<_> = peer.pairs.lock().values().cloned().collect();
            for pair in pairs {
                pair.hurry();
            }
        }
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn stopped(&self) -> Option<watch::Receiver<()>> {
        self.running.lock().as_ref().map(watch::Sender::subscribe)
    }

    /// What a certificate is worth for `domain`.
    fn verdict(&self, chain: &[CertificateDer<'_>], domain: &str) -> Verdict {
        let now = Timestamp::from_millisecond(self.now()).unwrap_or_else(|_| Timestamp::now());
        verify_peer(chain, domain, now, &self.roots.load())
    }

    // ---- bounds

    fn now(&self) -> i64 {
        self.exchange.clock().now()
    }

    fn queue_bounds(&self) -> Bounds {
        let config = self.exchange.config.load();
        Bounds {
            stanzas: config.federation.queue_stanzas,
            bytes: config.federation.queue_bytes,
            kept: config.federation.queue_kept,
        }
    }

    fn queue_age(&self) -> i64 {
        i64::try_from(self.exchange.config.load().federation.queue_age.as_millis()).unwrap_or(i64::MAX)
    }

    fn longest_pause(&self) -> Duration {
        self.exchange.config.load().federation.retry_max
    }

    fn unacked_bounds(&self) -> (usize, usize) {
        let config = self.exchange.config.load();
        (config.limits.unacked_stanzas, config.limits.unacked_bytes)
    }

    /// Of a stream on which a domain is proved.
    fn scan_limits(&self) -> trunkline_xml::Limits {
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
    fn early_limits(&self) -> trunkline_xml::Limits {
        let element_bytes = self.exchange.config.load().limits.stanza_bytes_unauthenticated;
        trunkline_xml::Limits { element_bytes, ..self.scan_limits() }
    }

    /// Counts a refusal and writes its line, if it is its turn.
    fn refused(&self, name: &'static str, peer: &str, conn: u64, detail: &str) {
        self.refusals.report(Refusal { name, peer, conn, detail });
    }
}

/// `2 days`, `15 min`.
fn words(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        172_800.. => format!("{} days", seconds / 86_400),
        7200.. => format!("{} hours", seconds / 3600),
        120.. => format!("{} minutes", seconds / 60),
        _ => format!("{seconds} seconds"),
    }
}
