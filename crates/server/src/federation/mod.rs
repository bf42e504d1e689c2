//! Federation: streams to and from other domains, what waits for them, and what outsiders may do.
//!
//! It has its own worker threads and listeners. To the inside it has two doors only: [`Remote::send`], which the
//! router calls and which never waits, and the [`crossing`], through which everything from outside goes in.
//!
//! ```text
//! router - send - Pair: Queue (+ table outbound) - trunk: dial - Line - socket
//! socket - accept - Line: proof - crossing - router
//! ```
//!
//! | room | what |
//! |---|---|
//! | here | the public face: start, serve, stop, what the router and an administrator ask for |
//! | `shared` | what all parts have in common: peers, streams, limits |
//! | `policy` | whom we talk to |
//! | `budget` | what the outside may use, by address, by domain, and in all |
//! | `peer`, `pair`, `queue`, `outbound` | one other domain; one of ours and one other; what waits, in memory; on disk |
//! | `restore`, `expiry` | queues read back from the disk; the end of what was not delivered |
//! | `trunk`, `dial` | attempts as long as something waits; one attempt, straight-line |
//! | `accept` | an incoming connection up to TLS |
//! | `line`, `clocks`, `management` | a stream's task: bytes in and out; time; acknowledgements |
//! | `elements`, `proof`, `dialback` | what a peer's elements mean; who it is; XEP-0220's elements |
//! | `crossing`, `answers` | into the inside; answers on the way back |
//! | `wire`, `handle`, `failure`, `status` | a connection in negotiation; a stream as others see it; why not; for people |

mod accept;
mod answers;
mod budget;
mod clocks;
mod crossing;
mod dial;
mod dialback;
mod elements;
mod expiry;
mod failure;
mod handle;
mod line;
mod management;
mod outbound;
mod pair;
mod peer;
mod policy;
mod proof;
mod queue;
mod restore;
mod shared;
mod status;
#[cfg(test)]
mod tests;
mod trunk;
mod wire;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::{Handle as RuntimeHandle, Runtime};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;
use trunkline_xmpp::error::StanzaError;

use crate::admin::FederationStatus;
use crate::config::Config;
use crate::exchange::Exchange;
use crate::logging::Refusals;
use crate::net::{BindError, CertStore, Gate, GateLimits, Neighbours, Resolver, TrustRoots, bind, serve};
use crate::route::Mail;
use crate::route::remote::{Entrance, Remote};

use accept::Door;
use budget::Budgets;
use crossing::Crossing;
pub use crossing::CrossingBounds;
use dial::Network;
use peer::Peers;
use policy::Turns;
use shared::Shared;

/// Peer domains that are known at once. Idle ones make room.
const MOST_PEERS: usize = 20_000;
/// Of these, domains that came to us. The rest is for those that somebody here writes to.
const MOST_INCOMING: usize = MOST_PEERS / 4 * 3;
/// Pairs of domains that the streams from one address (IPv6: one /64) may prove at once.
const MOST_PROOFS: usize = 1000;
/// Peer domains for which stanzas of one account may wait without a stream: nobody takes all of them.
const MOST_WAITING: usize = MOST_PEERS / 20;
/// Connections to peers that are being made at once: for what somebody here wants to send.
const MOST_DIALS: usize = 256;
/// The same, where only answers of ours wait: nobody here is kept waiting because somebody outside asks a lot.
const MOST_ANSWER_DIALS: usize = 64;
/// Bytes that the system keeps for a connection that we don't read: sockets hold megabytes otherwise, and a flood has
/// thousands of them.
const RECEIVE_BUFFER: usize = 256 * 1024;
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
        let runtime = threads_of_its_own(threads, config.federation.niceness)?;
        let bound = {
            // A listener belongs to the runtime in which it is opened.
            let _entered = runtime.enter();
            let open = |addresses| bind(addresses).inspect(|listeners| keep_little(listeners));
            open(&config.federation.listen)
                .and_then(|starttls| Ok((starttls, open(&config.federation.listen_tls)?)))
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
                peer_bytes: config.limits.crossing_peer_bytes,
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
            dials: Semaphore::new(MOST_DIALS),
            answer_dials: Semaphore::new(MOST_ANSWER_DIALS),
            budgets: Budgets::new(),
            gate: Gate::new(gate_limits(&config)),
            epoch: AtomicU64::new(0),
            policy: Notify::new(),
            was_closed: AtomicBool::new(false),
            turns_in: Turns::of_incoming(),
            turns_out: Turns::of_outgoing(),
            stopping: AtomicBool::new(false),
            running: Mutex::new(Some(watch::Sender::new(()))),
        });
        shared.gate.set_neighbours(neighbours(&config));
        shared.crossing.drain(exchange);
        shared.resume_queues().await?;
        let sweeper = Arc::clone(&shared);
        if let Some(stopped) = shared.stopped() {
            shared.runtime.spawn(async move { sweeper.sweep_for_ever(stopped).await });
        }
        shared.watch();
        Ok(Federation { shared, own: Arc::default() })
    }

    /// Gauges for the metrics.
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

impl Remote for Federation {
    fn send(&self, _exchange: &Arc<Exchange>, mail: Mail) -> Result<(), StanzaError> {
        self.shared.send(mail)
    }

    fn status(&self) -> FederationStatus {
        self.shared.report()
    }

    fn policy_changed(&self) {
        self.shared.policy_changed();
    }

    fn entrance(&self) -> Option<Arc<dyn Entrance>> {
        Some(Arc::new(crossing::Doorway::new(&self.shared.crossing)))
    }

    fn reload(&self, config: &Config) {
        self.shared.gate.set_limits(gate_limits(config));
        self.shared.gate.set_neighbours(neighbours(config));
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

fn threads_of_its_own(threads: usize, niceness: i32) -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("federation")
        .on_thread_start(move || stand_back(niceness))
        .enable_all()
        .build()
}

/// Connections have the buffers of their listener.
fn keep_little(listeners: &[TcpListener]) {
    for listener in listeners {
        if let Err(error) = socket2::SockRef::from(listener).set_recv_buffer_size(RECEIVE_BUFFER) {
            tracing::warn!(%error, "federation's sockets keep the system's buffers");
        }
    }
}

/// Lets other threads go first on this one's processor (setpriority(2), which counts for threads on Linux): when our own
/// users' work and the outside's want the same processor, the users' comes first.
fn stand_back(niceness: i32) {
    if cfg!(target_os = "linux")
        && niceness > 0
        && let Err(error) = rustix::process::setpriority_process(None, niceness)
    {
        tracing::warn!(%error, "federation's threads keep their priority");
    }
}

fn neighbours(config: &Config) -> Neighbours {
    Neighbours { proxies: config.federation.proxies.clone(), ..Neighbours::default() }
}

fn gate_limits(config: &Config) -> GateLimits {
    let per_address = config.federation.max_connections_per_address;
    GateLimits {
        enabled: config.limits.enabled,
        connections: config.federation.max_connections,
        per_address: u32::try_from(per_address).unwrap_or(u32::MAX),
        per_minute: config.limits.connections_per_minute,
        handshakes: config.federation.max_handshakes,
        handshakes_per_address: config.federation.max_handshakes_per_address,
        handshake_timeout: config.federation.handshake_timeout,
    }
}

#[cfg(test)]
mod thread_tests {
    use super::threads_of_its_own;

    /// Of the threads that serve tasks, and of those for blocking work.
    fn nicenesses(niceness: i32) -> [i32; 2] {
        let runtime = threads_of_its_own(1, niceness).unwrap();
        let own = || rustix::process::getpriority_process(None).unwrap();
        let found = runtime.block_on(async {
            [
                tokio::spawn(async move { own() }).await.unwrap(),
                tokio::task::spawn_blocking(own).await.unwrap(),
            ]
        });
        runtime.shutdown_background();
        found
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn federations_threads_stand_back_and_nobody_else_does() {
        let before = rustix::process::getpriority_process(None).unwrap();
        assert_eq!(nicenesses(17), [17, 17]);
        assert_eq!(nicenesses(0), [before, before]);
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), before);
    }
}
