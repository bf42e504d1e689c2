//! Listening: who may connect, how many, how often. What is let in is handed to a [`Handler`] with a [`Guard`] that
//! gives its place back when dropped.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::proxy::{self, Network};

/// Connections that the kernel keeps for us while we don't accept.
const BACKLOG: i32 = 1024;
/// Addresses whose rate is remembered one by one; beyond, strangers share one rate.
const REMEMBERED_ADDRESSES: usize = 64 * 1024;
/// How often (in connections) the memory of rates is tidied.
const TIDY_EVERY: u32 = 1024;
/// Pause after an accept failed for lack of descriptors or memory: the error would come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long a proxy may take to say for whom it speaks.
const INTRODUCTION: Duration = Duration::from_secs(5);

/// Bounds of one side's listeners together.
#[derive(Clone, Copy, Debug)]
pub struct GateLimits {
    /// False switches the limits per address off (`limits.enabled`), for benchmarks. The other bounds stay.
    pub enabled: bool,
    /// Connections at once. Fixed at start.
    pub connections: usize,
    /// Connections at once from one address (IPv6: from one /64).
    pub per_address: u32,
    /// New connections a minute from one address, and as many in one burst.
    pub per_minute: u32,
    /// TLS handshakes at once. Fixed at start; the others wait.
    pub handshakes: usize,
    /// TLS handshakes at once from one address (IPv6: from one /64); the others of it wait.
    pub handshakes_per_address: usize,
    /// Time for a TLS handshake, waiting for its turn included.
    pub handshake_timeout: Duration,
}

impl Default for GateLimits {
    fn default() -> GateLimits {
        GateLimits {
            enabled: true,
            connections: 10_000,
            per_address: 500,
            per_minute: 600,
            handshakes: 256,
            handshakes_per_address: 32,
            handshake_timeout: Duration::from_secs(20),
        }
    }
}

/// Why a connection was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// Its address has too many already.
    PerAddress,
    /// Its address came too often.
    TooOften,
    /// There is no place left.
    Full,
    /// A proxy that did not say for whom it speaks.
    ProxyHeader,
}

impl Refused {
    /// A short name for counters.
    pub fn label(self) -> &'static str {
        match self {
            Refused::PerAddress => "connections-per-address",
            Refused::TooOften => "connection-rate",
            Refused::Full => "connections-full",
            Refused::ProxyHeader => "proxy-header",
        }
    }
}

/// Takes what was let in. Must return at once: spawns its own task.
pub trait Handler: Send + Sync + 'static {
    /// A new connection.
    fn connection(&self, stream: TcpStream, peer: SocketAddr, guard: Guard);
    /// A connection that was closed at once.
    fn refused(&self, peer: IpAddr, why: Refused) {
        let _ = (peer, why);
    }
}

impl<F: Fn(TcpStream, SocketAddr, Guard) + Send + Sync + 'static> Handler for F {
    fn connection(&self, stream: TcpStream, peer: SocketAddr, guard: Guard) {
        self(stream, peer, guard);
    }
}

/// Machines of the operator's between us and those who connect.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    /// They begin each connection with a header that says for whom they make it.
    pub proxies: Vec<Network>,
    /// Their connections carry requests of many people, who are counted one by one elsewhere.
    pub shared: Vec<Network>,
}

/// Counts the connections of all listeners of one side.
pub struct Gate {
    rules: ArcSwap<Rules>,
    neighbours: ArcSwap<Neighbours>,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    /// Of each address with a handshake under way or waiting: what is left of its share.
    shares: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
    addresses: Mutex<HashMap<IpAddr, u32>>,
    since_tidy: AtomicU32,
}

struct Rules {
    limits: GateLimits,
    rate: DefaultKeyedRateLimiter<IpAddr>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("limits", &self.rules.load().limits).finish_non_exhaustive()
    }
}

impl Gate {
    /// A gate with these limits.
    pub fn new(limits: GateLimits) -> Arc<Gate> {
        Arc::new(Gate {
            rules: ArcSwap::from_pointee(rules(limits)),
            neighbours: ArcSwap::from_pointee(Neighbours::default()),
            connections: Arc::new(Semaphore::new(limits.connections.clamp(1, Semaphore::MAX_PERMITS))),
            handshakes: Arc::new(Semaphore::new(limits.handshakes.clamp(1, Semaphore::MAX_PERMITS))),
            shares: Mutex::new(HashMap::new()),
            addresses: Mutex::new(HashMap::new()),
            since_tidy: AtomicU32::new(0),
        })
    }

    /// New limits, except for those fixed at start.
    pub fn set_limits(&self, limits: GateLimits) {
        self.rules.store(Arc::new(rules(limits)));
    }

    /// Who stands between us and the others from now on.
    pub fn set_neighbours(&self, neighbours: Neighbours) {
        self.neighbours.store(Arc::new(neighbours));
    }

    /// Lets somebody in who has come on a connection of another gate's.
    ///
    /// # Errors
    /// Why not.
    pub fn enter(self: &Arc<Gate>, peer: IpAddr) -> Result<Guard, Refused> {
        let place = self.connections.clone().try_acquire_owned().map_err(|_| Refused::Full)?;
        self.admit(peer, place)
    }

    fn is_proxy(&self, peer: IpAddr) -> bool {
        self.neighbours.load().proxies.iter().any(|network| network.contains(peer))
    }

    fn is_shared(&self, peer: IpAddr) -> bool {
        self.neighbours.load().shared.iter().any(|network| network.contains(peer))
    }

    /// Connections that can still be let in.
    pub fn free(&self) -> usize {
        self.connections.available_permits()
    }

    /// Lets one connection from `peer` in, or says why not.
    pub fn admit(self: &Arc<Gate>, peer: IpAddr, place: OwnedSemaphorePermit) -> Result<Guard, Refused> {
        let rules = self.rules.load();
        let key = network(peer);
        let counted = rules.limits.enabled && !self.is_shared(peer);
        if counted {
            self.check_rate(&rules, key)?;
        }
        let mut addresses = self.addresses.lock();
        let count = addresses.get(&key).copied().unwrap_or(0);
        if counted && count >= rules.limits.per_address {
            return Err(Refused::PerAddress);
        }
        addresses.insert(key, count + 1);
        Ok(Guard { gate: self.clone(), key, _place: place })
    }

    fn check_rate(&self, rules: &Rules, key: IpAddr) -> Result<(), Refused> {
        if self.since_tidy.fetch_add(1, Ordering::Relaxed) >= TIDY_EVERY {
            self.since_tidy.store(0, Ordering::Relaxed);
            rules.rate.retain_recent();
            rules.rate.shrink_to_fit();
        }
        // Each new address costs memory, so a flood from very many is counted as one: the unspecified address.
        let known = rules.rate.len() < REMEMBERED_ADDRESSES;
        let key = if known { key } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        rules.rate.check_key(&key).map_err(|_| Refused::TooOften)
    }

    /// Runs a TLS handshake with `peer` within its time and among its kind. Who stalls holds up others of the same
    /// address first: no few addresses can occupy all places.
    pub async fn handshake<T>(
        &self,
        peer: IpAddr,
        work: impl Future<Output = T>,
    ) -> Result<T, HandshakeTimeout> {
        let limits = self.rules.load().limits;
        let counted = limits.enabled && !self.is_shared(peer);
        let share = counted.then(|| self.share(network(peer), limits.handshakes_per_address));
        let turn = async {
            let _mine = match &share {
                Some(share) => Some(share.places.acquire().await),
                None => None,
            };
            let _permit = self.handshakes.acquire().await;
            work.await
        };
        tokio::time::timeout(limits.handshake_timeout, turn).await.map_err(|_| HandshakeTimeout)
    }

    /// Addresses with a handshake under way or waiting.
    #[cfg(test)]
    pub(super) fn shares(&self) -> usize {
        self.shares.lock().len()
    }

    fn share(&self, key: IpAddr, most: usize) -> Share<'_> {
        let mut shares = self.shares.lock();
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        let places = shares.entry(key).or_insert_with(|| Arc::new(Semaphore::new(most)));
        Share { gate: self, key, places: Arc::clone(places) }
    }
}

/// What one address may occupy of the places for handshakes; forgotten when nobody of that address holds it.
struct Share<'a> {
    gate: &'a Gate,
    key: IpAddr,
    places: Arc<Semaphore>,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut shares = self.gate.shares.lock();
        // Two references: the map's and ours. New ones come from the map only, which is locked.
        if Arc::strong_count(&self.places) <= 2 {
            shares.remove(&self.key);
        }
    }
}

/// A TLS handshake took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the TLS handshake took too long")]
pub struct HandshakeTimeout;

fn rules(limits: GateLimits) -> Rules {
    let quota = Quota::per_minute(NonZeroU32::new(limits.per_minute).unwrap_or(NonZeroU32::MIN));
    Rules { limits, rate: RateLimiter::keyed(quota) }
}

/// What counts as one address: with IPv6 a household has a /64.
pub(crate) fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// The place of one connection; dropped, it is free again.
#[derive(Debug)]
pub struct Guard {
    gate: Arc<Gate>,
    key: IpAddr,
    _place: OwnedSemaphorePermit,
}

impl Guard {
    /// The gate it came through.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Like [`Gate::handshake`], with the peer whose place this is.
    pub async fn handshake<T>(&self, work: impl Future<Output = T>) -> Result<T, HandshakeTimeout> {
        self.gate.handshake(self.key, work).await
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut addresses = self.gate.addresses.lock();
        if let Some(count) = addresses.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.key);
            }
        }
    }
}

/// Why a listener could not be opened, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}", self.advice())]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

impl BindError {
    fn advice(&self) -> String {
        let port = self.address.port();
        match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                format!("port {port} is taken by another program (ss -ltnp 'sport = :{port}' shows which)")
            }
            io::ErrorKind::PermissionDenied if port < 1024 => format!(
                "ports below 1024 need a privilege: choose a higher one, or give the service CAP_NET_BIND_SERVICE \
                 (port {port})"
            ),
            io::ErrorKind::AddrNotAvailable => "no network interface of this machine has that address".into(),
            _ => self.source.to_string(),
        }
    }
}

/// Opens listeners on all `addresses`, or none. `[::]` takes IPv4 too, unless `0.0.0.0` with its port is listed as
/// well; on a machine without IPv6 it is `0.0.0.0`.
pub fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, BindError> {
    let one = |address: &SocketAddr| {
        let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
        let both = address.is_ipv6() && address.ip().is_unspecified() && !addresses.contains(&v4);
        let opened = match open(*address, !both) {
            Err(error) if both && no_ipv6(&error) => open(v4, false),
            opened => opened,
        };
        opened.map_err(|source| BindError { address: *address, source })
    };
    addresses.iter().map(one).collect()
}

fn no_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT without the module, EADDRNOTAVAIL when switched off by sysctl.
    error.raw_os_error() == Some(97) || error.kind() == io::ErrorKind::AddrNotAvailable
}

fn open(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // So that a restart does not wait for old connections to be forgotten.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until the sender of `shutdown` is dropped, then closes the listener.
pub async fn serve(
    listener: TcpListener,
    gate: Arc<Gate>,
    handler: Arc<dyn Handler>,
    shutdown: watch::Receiver<()>,
) {
    let mut shutdown = shutdown;
    loop {
        tokio::select! {
            biased;
            changed = shutdown.changed() => if changed.is_err() { return },
            () = accept_one(&listener, &gate, &handler) => {}
        }
    }
}

async fn accept_one(listener: &TcpListener, gate: &Arc<Gate>, handler: &Arc<dyn Handler>) {
    // Full: the kernel's backlog fills, and who comes later waits or is refused by it.
    let Ok(place) = gate.connections.clone().acquire_owned().await else { return };
    match listener.accept().await {
        Ok((stream, peer)) => {
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            let arrived = Arrived { stream, peer, place };
            if gate.is_proxy(peer.ip()) {
                // Its own task: a proxy that is slow to say for whom it speaks must not keep others waiting. The place
                // that it holds bounds how many there are.
                let (gate, handler) = (Arc::clone(gate), Arc::clone(handler));
                tokio::spawn(async move { arrived.introduced(&gate, &*handler).await });
            } else {
                arrived.let_in(gate, &**handler);
            }
        }
        Err(error) if is_about_the_peer(&error) => {}
        Err(error) => {
            tracing::warn!(%error, "accepting connections fails, trying again");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// A connection that is accepted and not let in.
struct Arrived {
    stream: TcpStream,
    peer: SocketAddr,
    place: OwnedSemaphorePermit,
}

impl Arrived {
    fn let_in(self, gate: &Arc<Gate>, handler: &dyn Handler) {
        match gate.admit(self.peer.ip(), self.place) {
            Ok(guard) => {
                tune(&self.stream);
                handler.connection(self.stream, self.peer, guard);
            }
            Err(why) => handler.refused(self.peer.ip(), why),
        }
    }

    /// Hears from the proxy who it is first.
    async fn introduced(mut self, gate: &Arc<Gate>, handler: &dyn Handler) {
        let header = proxy::read_header(&mut self.stream);
        match tokio::time::timeout(INTRODUCTION, header).await {
            Ok(Ok(source)) => {
                // Another machine's loopback is not ours.
                let source = source.filter(|it| !it.ip().is_loopback() || self.peer.ip().is_loopback());
                self.peer = source.unwrap_or(self.peer);
                self.let_in(gate, handler);
            }
            Ok(Err(error)) => {
                tracing::debug!(peer = %self.peer, %error, "a proxy's connection is closed");
                handler.refused(self.peer.ip(), Refused::ProxyHeader);
            }
            Err(_) => handler.refused(self.peer.ip(), Refused::ProxyHeader),
        }
    }
}

fn is_about_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Small writes go out at once, and a peer that vanished is noticed within minutes.
pub(super) fn tune(stream: &TcpStream) {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(300)).with_interval(Duration::from_secs(60));
    // Neither is needed for correctness: an old kernel may lack it.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}
