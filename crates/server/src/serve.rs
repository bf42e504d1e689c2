//! A running server: everything put together, started and stopped in order.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use trunkline_store::{Batch, Db, Lane, OpenError, Options, StoreError, sql};
use trunkline_xmpp::error::{StreamCondition, StreamError};
use trunkline_xmpp::jid::Jid;

use crate::admin::actor::Actor;
use crate::admin::api;
use crate::admin::socket::ControlSocket;
use crate::admin::{Admin as _, ListenerStatus, Operation, Status};
use crate::config::{Config, TlsPolicy};
use crate::control::traffic::history;
use crate::control::traffic::series::PeerSeries;
use crate::exchange::{Exchange, load_hosts};
use crate::federation::{self, Federation};
use crate::http;
use crate::ids::{Clock, Ids};
use crate::logging::{LogHandle, Refusal};
use crate::metrics::Metrics;
use crate::modules::{self, Modules};
use crate::net;
use crate::operations::{Operator, Surroundings};
use crate::route::account::Accounts;
use crate::session::attempts::Attempts;
use crate::session::keeper::Keeper;
use crate::session::{Close, login};
use crate::web::{Health, Pages};

/// How long connections have to say goodbye when the server stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long a registration counts against its address.
const REGISTRATIONS: Duration = Duration::from_secs(3600);

/// Clients' TLS handshakes at once; one address has 128 of them at most.
const HANDSHAKES: usize = 1024;

/// Connections of components at once.
const COMPONENT_CONNECTIONS: usize = 1000;

/// Connections to the console at once; and of one address.
const CONSOLE_CONNECTIONS: usize = 256;
const CONSOLE_CONNECTIONS_PER_ADDRESS: u32 = 64;

/// Bytes that a look at the health writes.
const BALLAST: usize = 16 * 1024;

/// How often refusals that had no line of their own are told of.
const SWEEP: Duration = Duration::from_secs(60);

/// What a server gets from outside, so that tests can put other things in its place.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The wall clock.
    pub clock: Clock,
    /// Everything in memory and on the calling thread, no listeners: for plays in virtual time.
    pub in_memory: bool,
    /// Another database than the configured one: for tests with disks that fail.
    pub store: Option<Options>,
}

impl Default for Parts {
    fn default() -> Parts {
        Parts { clock: Clock::System, in_memory: false, store: None }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Reading or writing it.
    #[error("the database can't be used: {0}")]
    Store(#[from] StoreError),
    /// A certificate or key.
    #[error(transparent)]
    Tls(#[from] net::TlsError),
    /// A listener.
    #[error(transparent)]
    Bind(#[from] net::BindError),
    /// Federation.
    #[error(transparent)]
    Federation(#[from] federation::StartError),
    /// The system's name servers.
    #[error("DNS can't be set up: {0}")]
    Dns(net::dns::DnsError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] crate::admin::socket::BindError),
    /// Threads or signals.
    #[error("the system refuses threads or signals: {0}")]
    Runtime(std::io::Error),
    /// The secret that tokens are made with.
    #[error(transparent)]
    Secret(#[from] crate::admin::init::InitError),
    /// A domain in the configuration.
    #[error("'{0}' is not a domain")]
    Domain(String),
}

/// A running server.
pub struct Server {
    exchange: Arc<Exchange>,
    certificates: Option<Arc<net::CertStore>>,
    /// For clients.
    gate: Arc<net::Gate>,
    /// For connections from browsers; the sessions on them have places among the clients.
    http_gate: Arc<net::Gate>,
    site: Arc<http::Site>,
    /// For components: a crowd of clients must not keep them out.
    component_gate: Arc<net::Gate>,
    /// Dropped at the end: listeners close.
    stop: Mutex<Option<watch::Sender<()>>>,
    stopped: watch::Receiver<()>,
    tasks: Mutex<JoinSet<()>>,
    listeners: Mutex<Vec<ListenerStatus>>,
    /// The tasks that accept connections, by the key that they listen for: none ends before the server does.
    accepting: Mutex<Vec<(&'static str, AbortHandle)>>,
    federation: OnceLock<Federation>,
    log: OnceLock<LogHandle>,
}

impl Server {
    /// Opens the store, brings back sessions, listens.
    ///
    /// # Errors
    /// What the operator has to mend.
    pub async fn start(config: Config, parts: Parts) -> Result<Arc<Server>, StartError> {
        let exchange = exchange(config, &parts).await?;
        exchange.control.traffic.load(&exchange.db).await?;
        exchange.metrics.watch(Box::new(PeerSeries(Arc::downgrade(&exchange))));
        let config = exchange.config.load_full();
        let sources = sources(&config);
        let certificates = if sources.is_empty() { None } else { Some(net::CertStore::load(&sources)?) };
        let (stop, stopped) = watch::channel(());
        let gate = net::Gate::new(gate_limits(&config));
        let server = Arc::new(Server {
            exchange: Arc::clone(&exchange),
            certificates,
            site: http::Site::new(Arc::clone(&exchange), Arc::clone(&gate)),
            gate,
            http_gate: net::Gate::new(gate_limits(&config)),
            component_gate: net::Gate::new(component_gate_limits(&config)),
            stop: Mutex::new(Some(stop)),
            stopped,
            tasks: Mutex::new(JoinSet::new()),
            listeners: Mutex::new(Vec::new()),
            accepting: Mutex::new(Vec::new()),
            federation: OnceLock::new(),
            log: OnceLock::new(),
        });
        server.meet_neighbours(&config);
        let weak = Arc::downgrade(&server);
        let _ = exchange.surroundings.set(weak);
        crate::control::Control::start(&exchange).await?;
        exchange.start_consent().await?;
        crate::modules::bookmarks::adopt(&exchange).await?;
        crate::profile::adopt(&exchange).await?;
        crate::notices::start(&exchange).await?;
        if !parts.in_memory {
            // Before anything moves: a port that is taken must not cost anybody a session.
            let bound = server.bind(&config)?;
            server.federate(&config).await?;
            server.restore().await?;
            server.listen(bound);
            server.let_peers_in();
            server.control(&config)?;
        } else {
            server.restore().await?;
        }
        server.spawn({
            let exchange = Arc::clone(&exchange);
            async move { exchange.keeper.answer().await }
        });
        server.spawn(Arc::clone(&exchange).keep_sessions());
        server.spawn(crate::retention::keep(Arc::clone(&exchange)));
        server.spawn(crate::route::consent::sort(Arc::clone(&exchange)));
        server.spawn(history::keep(Arc::clone(&exchange)));
        server.spawn(crate::control::Control::keep(Arc::clone(&exchange)));
        server.spawn(crate::control::reputation::keep(Arc::clone(&exchange)));
        server.spawn(crate::control::reports::keep(Arc::clone(&exchange)));
        server.spawn(crate::control::publication::ask_peers(Arc::clone(&exchange)));
        server.spawn(crate::pubsub::subscribe::keep(Arc::clone(&exchange)));
        exchange.take_all_back(Lane::Inside);
        exchange.take_all_back(Lane::Outside);
        exchange.follow_lists();
        server.spawn({
            let exchange = Arc::clone(&exchange);
            async move {
                loop {
                    tokio::time::sleep(SWEEP).await;
                    exchange.refusals.sweep();
                }
            }
        });
        server.spawn(async move {
            if let Err(error) = exchange.tell_of_the_lost().await {
                tracing::warn!(%error, "contacts of lost sessions could not be told");
            }
        });
        Ok(server)
    }

    /// Starts federation with threads and listeners of its own; without a certificate nobody could be reached.
    async fn federate(&self, config: &Config) -> Result<(), StartError> {
        let Some(certs) = self.certificates.clone() else {
            tracing::warn!("no certificate is configured: this server does not federate");
            return Ok(());
        };
        let parts = federation::Parts {
            certs,
            roots: Arc::new(ArcSwap::from_pointee(net::TrustRoots::system(
                config.federation.trust.as_deref(),
            )?)),
            resolver: Arc::new(resolver(&config.federation.name_servers).map_err(StartError::Dns)?),
            inside_threads: match config.clients.threads {
                0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
                threads => threads,
            },
        };
        let federation = Federation::start(&self.exchange, parts).await?;
        let _ = self.exchange.remote.set(Arc::new(federation.clone()));
        let _ = self.federation.set(federation);
        Ok(())
    }

    fn let_peers_in(&self) {
        for (key, address, task) in self.federation.get().map(Federation::serve).unwrap_or_default() {
            tracing::info!(%address, "listening: {key}");
            self.listeners.lock().push(ListenerStatus { name: key.to_owned(), address: address.to_string() });
            self.accepting.lock().push((key, task));
        }
    }

    async fn restore(&self) -> Result<(), StoreError> {
        let restored = self.exchange.restore_sessions().await?;
        if restored > 0 {
            tracing::info!(restored, "sessions wait to be resumed");
        }
        Ok(())
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.tasks.lock().spawn(task)
    }

    /// A task that accepts connections: it is missed when it ends ([`Server::health`]).
    fn spawn_listener(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let task = self.spawn(task);
        self.accepting.lock().push((name, task));
    }

    /// Proxies stand in front of some listeners.
    fn meet_neighbours(&self, config: &Config) {
        let (clients, http) = (&config.clients, &config.http);
        self.gate.set_neighbours(net::Neighbours {
            proxies: clients.proxies.clone(),
            ..net::Neighbours::default()
        });
        self.http_gate.set_neighbours(net::Neighbours {
            proxies: http.proxies.clone(),
            shared: http.trusted_proxies.clone(),
        });
    }

    fn bind(&self, config: &Config) -> Result<Bound, StartError> {
        Ok(Bound {
            clients: net::bind(&config.clients.listen)?,
            clients_tls: net::bind(&config.clients.listen_tls)?,
            components: net::bind(&config.components.listen)?,
            web: net::bind(&config.web.listen)?,
            http: net::bind(&config.http.listen)?,
            http_tls: net::bind(&config.http.listen_tls)?,
            console: net::bind(&config.console.listen)?,
            policy: config.clients.tls,
        })
    }

    fn listen(self: &Arc<Self>, bound: Bound) {
        for listener in bound.clients {
            self.serve_clients(listener, "clients.listen", login::Entry::StartTls(bound.policy));
        }
        for listener in bound.clients_tls {
            self.serve_clients(listener, "clients.listen_tls", login::Entry::DirectTls);
        }
        for listener in bound.components {
            self.note_listener("components.listen", &listener);
            let handler = Arc::new(Components { server: Arc::downgrade(self) });
            let gate = Arc::clone(&self.component_gate);
            self.spawn(net::serve(listener, gate, handler, self.stopped.clone()));
        }
        self.serve_console(bound.console);
        self.serve_http(bound.http, bound.http_tls);
        for listener in bound.web {
            self.note_listener("web.listen", &listener);
            let pages = Pages { metrics: Arc::clone(&self.exchange.metrics), health: self.health() };
            let stopped = self.stopped();
            self.spawn(async move {
                if let Err(error) = crate::web::serve(listener, pages, stopped).await {
                    tracing::error!(%error, "the HTTP listener ended");
                }
            });
        }
    }

    /// XMPP for browsers.
    fn serve_http(&self, plain: Vec<TcpListener>, tls: Vec<TcpListener>) {
        let plain = plain.into_iter().map(|listener| ("http.listen", listener, None));
        let tls = tls.into_iter().map(|listener| ("http.listen_tls", listener, self.certificates.clone()));
        for (name, listener, certificates) in plain.chain(tls) {
            if name == "http.listen_tls" && certificates.is_none() {
                tracing::error!("http.listen_tls needs a certificate: it is not served");
                continue;
            }
            self.note_listener(name, &listener);
            let (site, stopped) = (Arc::clone(&self.site), self.stopped.clone());
            let door = Arc::new(http::Door { site, certificates, stopped });
            let accepting = net::serve(listener, Arc::clone(&self.http_gate), door, self.stopped.clone());
            self.spawn_listener(name, accepting);
        }
    }

    /// The console and the HTTP API.
    fn serve_console(&self, listeners: Vec<TcpListener>) {
        let face = api::Face::new(Arc::clone(&self.exchange));
        let gate = net::Gate::new(console_gate_limits());
        for listener in listeners {
            self.note_listener("console.listen", &listener);
            let outside = listener.local_addr().is_ok_and(api::needs_tls);
            let certificates = match (outside, &self.certificates) {
                (false, _) => None,
                (true, Some(certificates)) => Some(Arc::clone(certificates)),
                (true, None) => {
                    tracing::error!("console.listen needs a certificate: it is not served");
                    continue;
                }
            };
            let (gate, stopped) = (Arc::clone(&gate), self.stopped.clone());
            let listening = api::Listening { listener, certificates, gate, stopped };
            let serving = face.clone().serve(listening, self.stopped());
            self.spawn_listener("console.listen", async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "the console's listener ended");
                }
            });
        }
    }

    fn note_listener(&self, name: &str, listener: &TcpListener) {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "listening: {name}");
            self.listeners
                .lock()
                .push(ListenerStatus { name: name.to_owned(), address: address.to_string() });
        }
    }

    fn serve_clients(self: &Arc<Self>, listener: TcpListener, name: &'static str, entry: login::Entry) {
        self.note_listener(name, &listener);
        let handler = Arc::new(Clients { server: Arc::downgrade(self), entry });
        let accepting = net::serve(listener, Arc::clone(&self.gate), handler, self.stopped.clone());
        self.spawn_listener(name, accepting);
    }

    /// Ready when the server stops.
    fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stopped = self.stopped.clone();
        async move { while stopped.changed().await.is_ok() {} }
    }

    fn control(self: &Arc<Self>, config: &Config) -> Result<(), StartError> {
        let socket = ControlSocket::bind(&config.control_socket())?;
        let operator = Arc::new(Operator(Arc::clone(&self.exchange)));
        self.spawn(socket.serve(operator, self.stopped()));
        Ok(())
    }

    /// What `/healthz` tells.
    pub fn health(self: &Arc<Self>) -> crate::web::HealthCheck {
        let server = Arc::downgrade(self);
        Arc::new(move || {
            let server = server.upgrade();
            Box::pin(async move {
                let Some(server) = server else {
                    return vec![Health { name: "server", state: Err("it has stopped".into()) }];
                };
                let state = write_something(&server.exchange).await.map_err(|error| error.to_string());
                vec![Health { name: "store", state }, server.listening()]
            })
        })
    }

    fn listening(&self) -> Health {
        let ended: Vec<&str> = self
            .accepting
            .lock()
            .iter()
            .filter(|(_, task)| task.is_finished())
            .map(|(name, _)| *name)
            .collect();
        let state = match ended.as_slice() {
            [] => Ok(()),
            names => Err(format!("nobody accepts connections any more: {}", names.join(", "))),
        };
        Health { name: "listeners", state }
    }

    /// The shared state.
    pub fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
    }

    /// The certificates, to be reloaded.
    pub fn certificates(&self) -> Option<&Arc<net::CertStore>> {
        self.certificates.as_ref()
    }

    /// What is listened on.
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        self.listeners.lock().clone()
    }

    /// Serves a client on any transport, as if it had been accepted.
    pub fn accept(&self, transport: net::Transport, peer: SocketAddr, entry: login::Entry) {
        let arrival =
            login::Arrival { transport, peer, certificates: self.certificates.clone(), entry, guard: None };
        let exchange = Arc::clone(&self.exchange);
        self.exchange.spawn(login::serve(exchange, arrival));
    }

    /// Serves a browser on any transport, as if it had been accepted, in the clear or with TLS.
    pub fn browse(&self, transport: net::Transport, peer: SocketAddr, encrypted: bool) {
        let certificates = self.certificates.clone().filter(|_| encrypted);
        let serving = Arc::clone(&self.site).greet(transport, peer, (certificates, self.stopped.clone()));
        self.exchange.spawn(serving);
    }

    /// Serves a client inside this process that needs no login.
    pub fn seat(&self, transport: net::Transport, account: &Jid) {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        self.accept(transport, nowhere, login::Entry::Seated(account.clone()));
    }

    /// A clean stop: streams are closed with `system-shutdown`, resumable sessions are kept for the next
    /// start, everything submitted is on disk.
    pub async fn stop(&self) {
        drop(self.stop.lock().take());
        let sessions: Vec<_> = self
            .exchange
            .accounts
            .all()
            .iter()
            .flat_map(|account| {
                account
                    .state()
                    .resources
                    .iter()
                    .map(|resource| Arc::clone(&resource.session))
                    .collect::<Vec<_>>()
            })
            .collect();
        for session in &sessions {
            session.close(Close {
                error: Some(StreamError::new(StreamCondition::SystemShutdown)),
                resumable: true,
            });
        }
        self.exchange.components.close_all(&StreamError::new(StreamCondition::SystemShutdown));
        let gone = async {
            while sessions.iter().any(|session| session.is_attached() && !session.is_ended()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(FAREWELL, gone).await;
        // The snapshots count what is handled: everything under way is to be on disk before.
        let settled = async {
            self.exchange.db.flush().await;
            while sessions.iter().any(|session| session.ledger().is_some_and(|ledger| !ledger.is_settled())) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(FAREWELL, settled).await;
        match self.exchange.save_sessions().await {
            Ok(0) => {}
            Ok(saved) => tracing::info!(saved, "sessions kept for resumption"),
            Err(error) => tracing::error!(%error, "sessions could not be kept for resumption"),
        }
        if let Some(federation) = self.federation.get() {
            federation.stop().await;
        }
        if let Err(error) = self.exchange.control.traffic.save(&self.exchange.db).await {
            tracing::warn!(%error, "what was counted of other domains was not kept");
        }
        if let Err(error) = self.exchange.control.reputation.save(&self.exchange).await {
            tracing::warn!(%error, "the reputation of domains could not be stored");
        }
        self.exchange.db.flush().await;
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        // Whatever still holds the store open, its file is closed: another process may take it.
        let db = self.exchange.db.clone();
        let _ = tokio::task::spawn_blocking(move || db.shutdown()).await;
    }
}

/// Writes as much as a message of some size takes: reading works on a full disk too, and so does a write that changes
/// nothing.
async fn write_something(exchange: &Exchange) -> Result<(), StoreError> {
    let now = exchange.clock().now();
    // Never the same twice: the store leaves pages alone whose bytes stay as they are.
    let ballast = exchange.ids.next().0.to_le_bytes().repeat(BALLAST / 8);
    let batch = Batch::new(Lane::Inside).with(
        sql("INSERT INTO heartbeat (id, at, ballast) VALUES (1, ?1, ?2) \
             ON CONFLICT (id) DO UPDATE SET at = excluded.at, ballast = excluded.ballast")
        .bind(now)
        .bind(ballast),
    );
    exchange.db.run(batch).await.map(drop)
}

/// Listeners that are bound and not served yet.
struct Bound {
    clients: Vec<TcpListener>,
    clients_tls: Vec<TcpListener>,
    components: Vec<TcpListener>,
    web: Vec<TcpListener>,
    http: Vec<TcpListener>,
    http_tls: Vec<TcpListener>,
    console: Vec<TcpListener>,
    policy: TlsPolicy,
}

/// Takes clients from a listener.
struct Clients {
    server: Weak<Server>,
    entry: login::Entry,
}

impl net::listen::Handler for Clients {
    fn connection(&self, stream: TcpStream, peer: SocketAddr, guard: net::Guard) {
        let Some(server) = self.server.upgrade() else { return };
        let arrival = login::Arrival {
            transport: net::Transport::from(stream),
            peer,
            certificates: server.certificates.clone(),
            entry: self.entry.clone(),
            guard: Some(guard),
        };
        server.exchange.spawn(login::serve(Arc::clone(&server.exchange), arrival));
    }

    fn refused(&self, peer: IpAddr, why: net::listen::Refused) {
        if let Some(server) = self.server.upgrade() {
            server.exchange.refusals.report(Refusal {
                name: why.label(),
                peer: &peer.to_string(),
                conn: 0,
                detail: "a connection was refused",
            });
        }
    }
}

/// Takes components from a listener.
struct Components {
    server: Weak<Server>,
}

impl net::listen::Handler for Components {
    fn connection(&self, stream: TcpStream, peer: SocketAddr, guard: net::Guard) {
        let Some(server) = self.server.upgrade() else { return };
        let exchange = Arc::clone(&server.exchange);
        server.exchange.spawn(async move {
            crate::session::component::serve(exchange, stream, peer).await;
            drop(guard);
        });
    }

    fn refused(&self, peer: IpAddr, why: net::listen::Refused) {
        if let Some(server) = self.server.upgrade() {
            server.exchange.metrics.refused(why.label());
            tracing::warn!(%peer, why = why.label(), "a component's connection was refused");
        }
    }
}

impl Surroundings for Server {
    fn reload(&self, config: &Config) -> Result<(), String> {
        if let Some(certificates) = &self.certificates {
            certificates.reload(&sources(config)).map_err(|error| error.to_string())?;
        }
        self.gate.set_limits(gate_limits(config));
        self.http_gate.set_limits(gate_limits(config));
        self.component_gate.set_limits(component_gate_limits(config));
        self.meet_neighbours(config);
        if let Some(log) = self.log.get() {
            log.set_level(&config.log.level).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn describe(&self, status: &mut Status) {
        status.listeners = self.listeners();
        for domain in &mut status.domains {
            let certificate =
                self.exchange.config.load().certificate(&domain.name).map(|(chain, _)| chain.to_owned());
            domain.certificate_expires_at = certificate
                .and_then(|chain| net::inspect(&chain).ok())
                .map(|certificate| certificate.not_after.as_millisecond());
        }
    }
}

fn resolver(servers: &[SocketAddr]) -> Result<net::dns::SystemResolver, net::dns::DnsError> {
    match servers {
        [] => net::dns::SystemResolver::new(),
        servers => net::dns::SystemResolver::with_servers(servers),
    }
}

fn gate_limits(config: &Config) -> net::GateLimits {
    net::GateLimits {
        enabled: config.limits.enabled,
        connections: config.clients.max_connections,
        per_address: u32::try_from(config.clients.max_connections_per_address).unwrap_or(u32::MAX),
        per_minute: config.limits.connections_per_minute,
        handshakes: HANDSHAKES,
        handshakes_per_address: HANDSHAKES / 8,
        ..net::GateLimits::default()
    }
}

/// The console has few users; who floods it meets bounds of its own.
fn console_gate_limits() -> net::GateLimits {
    net::GateLimits {
        connections: CONSOLE_CONNECTIONS,
        per_address: CONSOLE_CONNECTIONS_PER_ADDRESS,
        ..net::GateLimits::default()
    }
}

fn component_gate_limits(config: &Config) -> net::GateLimits {
    net::GateLimits { connections: COMPONENT_CONNECTIONS, ..gate_limits(config) }
}

/// Runs a server until SIGTERM or SIGINT; SIGHUP reads the configuration again.
///
/// # Errors
/// Why it did not start.
pub fn run(config: Config, log: LogHandle) -> Result<(), StartError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if config.clients.threads > 0 {
        builder.worker_threads(config.clients.threads);
    }
    let runtime = builder.thread_name("inside").enable_all().build().map_err(StartError::Runtime)?;
    runtime.block_on(async {
        let domain = config.domain.clone();
        let server = Server::start(config, Parts::default()).await?;
        let _ = server.log.set(log);
        crate::notify::ready(&format!("serving {domain}"));
        tracing::info!(%domain, "ready");
        wait(&server).await.map_err(StartError::Runtime)?;
        crate::notify::stopping();
        tracing::info!("stopping");
        server.stop().await;
        if let Some(log) = server.log.get().cloned() {
            let _ = tokio::task::spawn_blocking(move || log.flush()).await;
        }
        Ok(())
    })
}

/// Until a signal says stop.
async fn wait(server: &Arc<Server>) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let beat = crate::notify::watchdog_interval().map_or(Duration::from_secs(3600), |interval| interval / 2);
    let mut beat = tokio::time::interval(beat);
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = beat.tick() => crate::notify::watchdog(),
            _ = hangup.recv() => {
                let operator = Operator(Arc::clone(server.exchange()));
                if let Err(error) = operator.run(&Actor::trigger("SIGHUP"), Operation::Reload).await {
                    tracing::error!(%error, "the configuration was not reloaded");
                }
            }
        }
    }
}

/// The shared state, with the store open.
async fn exchange(config: Config, parts: &Parts) -> Result<Arc<Exchange>, StartError> {
    let mut options = match &parts.store {
        Some(options) => options.clone(),
        None if parts.in_memory => Options::memory(crate::schema::MIGRATIONS),
        None => Options::file(config.database(), crate::schema::MIGRATIONS),
    };
    options.queue_statements = config.limits.store_statements;
    let db = Db::open(options)?;
    let domains = config
        .domains()
        .map(|domain| Jid::parse(domain).map_err(|_| StartError::Domain(domain.to_owned())))
        .collect::<Result<Vec<Jid>, StartError>>()?;
    let hosts = load_hosts(&db, &domains).await?;
    let last = crate::log::last_id(&db).await?;
    // The hosts' secret makes our UUIDs our own and stays the same across restarts.
    let mark = hosts.values().map(|host| u64::from_le_bytes(first_eight(&host.secret))).fold(0, |a, b| a ^ b);
    let started = parts.clock.now();
    let metrics = Metrics::new();
    // Not in the database: who reads that can't make tokens. Where nothing is kept, nor are tokens.
    let secret = if parts.in_memory || parts.store.is_some() {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| StartError::Runtime(std::io::Error::other(error)))?;
        secret
    } else {
        crate::admin::init::server_secret(&config)?
    };
    Ok(Arc::new(Exchange {
        ids: Ids::new(parts.clock.clone(), last, mark),
        db,
        pubsub: crate::pubsub::Pubsub::new(crate::pubsub::services::services(&config, &hosts)),
        hosts,
        accounts: Accounts::new(),
        modules: Modules::new(modules::all(), &metrics),
        remote: OnceLock::new(),
        resumable: Mutex::new(std::collections::HashMap::new()),
        surroundings: OnceLock::new(),
        needs_restart: Mutex::new(Vec::new()),
        registrations: Attempts::over(parts.clock.clone(), REGISTRATIONS),
        commands: crate::commands::Sessions::default(),
        control: Arc::new(crate::control::Control::new(&parts.clock)),
        components: crate::route::components::Components::default(),
        logins: Attempts::new(parts.clock.clone()),
        mint: crate::devices::Mint::new(&secret),
        logging_in: crate::session::credentials::Credentials::default(),
        failed: crate::route::message::Failed::default(),
        gravedigger: crate::log::tombstones::Gravedigger::default(),
        searches: crate::log::search::Searches::default(),
        notices: crate::notices::Notices::default(),
        pushes: crate::push::Publisher::default(),
        keeper: Keeper::default(),
        refusals: crate::logging::Refusals::new(Arc::clone(&metrics)),
        metrics,
        started,
        runtime: tokio::runtime::Handle::current(),
        config: ArcSwap::from_pointee(config),
    }))
}

/// The certificates of the configuration, the default first.
fn sources(config: &Config) -> Vec<net::CertSource> {
    let mut sources: Vec<net::CertSource> = Vec::new();
    for domain in config.domains() {
        let Some((chain, key)) = config.certificate(domain) else { continue };
        match sources.iter_mut().find(|source| source.chain == chain && source.key == key) {
            Some(source) => source.domains.push(domain.to_owned()),
            None => sources.push(net::CertSource {
                domains: vec![domain.to_owned()],
                chain: chain.to_owned(),
                key: key.to_owned(),
            }),
        }
    }
    sources
}

fn first_eight(secret: &[u8; 32]) -> [u8; 8] {
    let mut eight = [0; 8];
    eight.copy_from_slice(&secret[..8]);
    eight
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("exchange", &self.exchange).finish_non_exhaustive()
    }
}
