//! A running server: everything put together, started and stopped in order.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use trunkline_store::{Db, OpenError, Options, StoreError};
use trunkline_xmpp::error::{StreamCondition, StreamError};
use trunkline_xmpp::jid::Jid;

use crate::config::{Config, TlsPolicy};
use crate::exchange::{Exchange, load_hosts};
use crate::ids::{Clock, Ids};
use crate::metrics::Metrics;
use crate::modules::{self, Modules};
use crate::net;
use crate::route::account::Accounts;
use crate::session::attempts::Attempts;
use crate::session::keeper::Keeper;
use crate::session::{Close, login};

/// How long connections have to say goodbye when the server stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a server gets from outside, so that tests can put other things in its place.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The wall clock.
    pub clock: Clock,
    /// Everything in memory and on the calling thread, no listeners: for plays in virtual time.
    pub in_memory: bool,
}

impl Default for Parts {
    fn default() -> Parts {
        Parts { clock: Clock::System, in_memory: false }
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
    /// A domain in the configuration.
    #[error("'{0}' is not a domain")]
    Domain(String),
}

/// A running server.
pub struct Server {
    exchange: Arc<Exchange>,
    certificates: Option<Arc<net::CertStore>>,
    stop: watch::Sender<bool>,
    tasks: Mutex<JoinSet<()>>,
    addresses: OnceLock<Vec<(&'static str, SocketAddr)>>,
}

impl Server {
    /// Opens the store, brings back sessions, listens.
    ///
    /// # Errors
    /// What the operator has to mend.
    pub async fn start(config: Config, parts: Parts) -> Result<Arc<Server>, StartError> {
        let exchange = exchange(config, &parts).await?;
        let restored = exchange.restore_sessions().await?;
        if restored > 0 {
            tracing::info!(restored, "sessions wait to be resumed");
        }
        let config = exchange.config.load_full();
        let sources = sources(&config);
        let certificates = if sources.is_empty() { None } else { Some(net::CertStore::load(&sources)?) };
        let (stop, stopped) = watch::channel(false);
        let server = Arc::new(Server {
            exchange: Arc::clone(&exchange),
            certificates,
            stop,
            tasks: Mutex::new(JoinSet::new()),
            addresses: OnceLock::new(),
        });
        server.spawn({
            let exchange = Arc::clone(&exchange);
            async move { exchange.keeper.answer().await }
        });
        server.spawn(Arc::clone(&exchange).keep_sessions());
        server.spawn({
            let exchange = Arc::clone(&exchange);
            async move {
                if let Err(error) = exchange.tell_of_the_lost().await {
                    tracing::warn!(%error, "contacts of lost sessions could not be told");
                }
            }
        });
        if !parts.in_memory {
            server.listen(&config, &stopped).await?;
        }
        Ok(server)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().spawn(task);
    }

    /// The shared state.
    pub fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
    }

    /// The certificates, to be reloaded.
    pub fn certificates(&self) -> Option<&Arc<net::CertStore>> {
        self.certificates.as_ref()
    }

    /// Serves a client inside this process that needs no login.
    pub fn seat(&self, transport: net::Transport, account: &Jid) {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        self.accept(transport, nowhere, login::Entry::Seated(account.clone()));
    }

    /// Serves a client on any transport, as if it had been accepted.
    pub fn accept(&self, transport: net::Transport, peer: SocketAddr, entry: login::Entry) {
        let arrival = login::Arrival { transport, peer, certificates: self.certificates.clone(), entry };
        let exchange = Arc::clone(&self.exchange);
        self.exchange.spawn(login::serve(exchange, arrival));
    }

    /// A clean stop: streams are closed with `system-shutdown`, resumable sessions are kept for the next
    /// start, everything submitted is on disk.
    pub async fn stop(&self) {
        let _ = self.stop.send(true);
        let sessions: Vec<_> = self
            .exchange
            .accounts
            .all()
            .iter()
            .flat_map(|account| {
                account.state().resources.iter().map(|resource| Arc::clone(&resource.session)).collect::<Vec<_>>()
            })
            .collect();
        for session in &sessions {
            session.close(Close {
                error: Some(StreamError::new(StreamCondition::SystemShutdown)),
                resumable: true,
            });
        }
        let gone = async {
            while sessions.iter().any(|session| session.is_attached() && !session.is_ended()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(FAREWELL, gone).await;
        match self.exchange.save_sessions().await {
            Ok(0) => {}
            Ok(saved) => tracing::info!(saved, "sessions kept for resumption"),
            Err(error) => tracing::error!(%error, "sessions could not be kept for resumption"),
        }
        self.exchange.db.flush().await;
        self.tasks.lock().abort_all();
    }
}

/// The shared state, with the store open.
async fn exchange(config: Config, parts: &Parts) -> Result<Arc<Exchange>, StartError> {
    let options = if parts.in_memory {
        Options::memory(crate::schema::MIGRATIONS)
    } else {
        Options::file(config.database(), crate::schema::MIGRATIONS)
    };
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
    Ok(Arc::new(Exchange {
        ids: Ids::new(parts.clock.clone(), last, mark),
        db,
        hosts,
        accounts: Accounts::new(),
        modules: Modules::new(modules::all()),
        remote: OnceLock::new(),
        resumable: Mutex::new(std::collections::HashMap::new()),
        logins: Attempts::new(parts.clock.clone()),
        keeper: Keeper::default(),
        metrics: Metrics::new(),
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
