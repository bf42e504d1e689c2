//! The exchange: what every part of a running server shares, and nothing that decides anything.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use trunkline_store::{Batch, Db, Lane, StoreError, sql};
use trunkline_xmpp::jid::Jid;

use crate::admin::actor::Scope;
use crate::config::Config;
use crate::ids::{Clock, Ids};
use crate::logging::Refusal;
use crate::modules::Modules;
use crate::route::account::Accounts;
use crate::route::remote::Remote;
use crate::session::{Bounds, PushRefusal, Session};

/// A domain this server is responsible for.
#[derive(Debug)]
pub struct Host {
    /// The store's key.
    pub id: i64,
    /// Its name, canonical.
    pub domain: Jid,
    /// Keys the fake salts of unknown users, so that they can't be told from known ones.
    pub secret: [u8; 32],
}

/// Shared state of a running server.
pub struct Exchange {
    /// The configuration; replaced as a whole on reload.
    pub config: ArcSwap<Config>,
    /// What must survive.
    pub db: Db,
    /// Ids and the clock.
    pub ids: Arc<Ids>,
    /// The local domains.
    pub hosts: HashMap<String, Arc<Host>>,
    /// The accounts in memory.
    pub accounts: Arc<Accounts>,
    /// What the server can do.
    pub modules: Modules,
    /// The way to other domains: federation and components. Set once at start.
    pub remote: OnceLock<Arc<dyn Remote>>,
    /// Sessions that can be resumed, by the hash of their resumption id.
    pub resumable: Mutex<HashMap<[u8; 32], Arc<Session>>>,
    /// What of the server is outside the exchange. Set once at start.
    pub surroundings: OnceLock<Weak<dyn crate::operations::Surroundings>>,
    /// Keys of the configuration that were changed and wait for a restart.
    pub needs_restart: Mutex<Vec<String>>,
    /// Registrations of accounts, counted by address.
    pub registrations: crate::session::attempts::Attempts,
    /// Ad-hoc commands under way.
    pub commands: crate::commands::Sessions,
    /// What outsiders may do.
    pub control: Arc<crate::control::Control>,
    /// Nodes: people's own and those of services.
    pub pubsub: crate::pubsub::Pubsub,
    /// Connected components.
    pub components: crate::route::components::Components,
    /// Failed logins, counted.
    pub logins: crate::session::attempts::Attempts,
    /// Whose failure to be stored was told lately.
    pub failed: crate::route::message::Failed,
    /// What makes the tokens of devices.
    pub mint: crate::devices::Mint,
    /// What logins are checked with.
    pub logging_in: crate::session::credentials::Credentials,
    /// Puts tombstones in the place of what was taken back.
    pub gravedigger: crate::log::tombstones::Gravedigger,
    /// Who searches an archive waits here.
    pub searches: crate::log::search::Searches,
    /// What the staff tells everybody.
    pub notices: crate::notices::Notices,
    /// Wakes devices that sleep.
    pub pushes: crate::push::Publisher,
    /// Looks after the sessions.
    pub keeper: crate::session::keeper::Keeper,
    /// Counters.
    pub metrics: Arc<crate::metrics::Metrics>,
    /// What remote parties wanted and did not get: counted, and logged at a limited rate.
    pub refusals: crate::logging::Refusals,
    /// When the server started, for XEP-0012.
    pub started: i64,
    /// Where detached work runs: the inside's worker threads.
    pub runtime: tokio::runtime::Handle,
}

impl Exchange {
    /// The host of that name, if it is ours.
    pub fn host(&self, domain: &str) -> Option<&Arc<Host>> {
        /// Comparing with so few names takes less than hashing one, and every stanza asks several times.
        const FEW: usize = 4;
        if self.hosts.len() > FEW {
            return self.hosts.get(domain);
        }
        self.hosts.iter().find(|(name, _)| name.as_str() == domain).map(|(_, host)| host)
    }

    /// The wall clock.
    pub fn clock(&self) -> &Clock {
        self.ids.clock()
    }

    /// The bounds of a client's queue.
    pub fn bounds(&self) -> Bounds {
        let limits = &self.config.load().limits;
        Bounds {
            stanzas: limits.outbox_stanzas,
            bytes: limits.outbox_bytes,
            ring: limits.unacked_stanzas,
            ring_bytes: limits.unacked_bytes,
        }
    }

    /// `jid` is an administrator of this server.
    pub fn is_admin(&self, jid: &Jid) -> bool {
        let config = self.config.load();
        config.accounts.admins.iter().any(|admin| admin.as_str() == jid.bare_str())
    }

    /// What `jid` may administrate: administrators everything, moderators what moderation needs, others nothing.
    pub fn scopes_of(&self, jid: &Jid) -> Vec<Scope> {
        if self.is_admin(jid) {
            Scope::ALL.to_vec()
        } else if self.config.load().accounts.moderators.contains(jid.bare_str()) {
            vec![Scope::Read, Scope::Moderate, Scope::Audit]
        } else {
            Vec::new()
        }
    }

    /// One of our clients is refused something: counted and, at a limited rate, logged.
    pub(crate) fn refused_client(&self, session: &Session, name: &'static str, detail: &str) {
        let peer = session.account.jid.as_str();
        self.refusals.report(Refusal { name, peer, conn: session.serial, detail });
    }

    /// A stanza found no place in a client's queue.
    pub(crate) fn not_queued(&self, session: &Session, why: PushRefusal) {
        self.refused_client(session, why.name(), "a stanza for the client was not queued");
    }

    /// Runs `future` on the inside's threads.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(future);
    }
}

/// Makes sure that each configured domain has its row; returns the hosts by name.
///
/// # Errors
/// Those of the store.
pub async fn load_hosts(db: &Db, domains: &[Jid]) -> Result<HashMap<String, Arc<Host>>, StoreError> {
    let mut hosts = HashMap::new();
    for domain in domains {
        let mut secret = [0u8; 32];
        getrandom::fill(&mut secret).map_err(|error| StoreError::Other(error.to_string()))?;
        let mut batch = Batch::new(Lane::Inside);
        batch.push(
            sql("INSERT INTO hosts (name, secret) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET \
                 secret = COALESCE(hosts.secret, excluded.secret)")
            .bind(domain.as_str())
            .bind(secret.to_vec()),
        );
        batch.push(sql("SELECT id, secret FROM hosts WHERE name = ?1").bind(domain.as_str()));
        let results = db.run(batch).await?;
        let Some(row) = results.last().and_then(|rows| rows.iter().next()) else { continue };
        if let Ok(stored) = <[u8; 32]>::try_from(row.blob(1).as_ref()) {
            secret = stored;
        }
        let host = Host { id: row.int(0), domain: domain.clone(), secret };
        hosts.insert(domain.as_str().to_owned(), Arc::new(host));
    }
    Ok(hosts)
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("hosts", &self.hosts.keys()).finish_non_exhaustive()
    }
}
