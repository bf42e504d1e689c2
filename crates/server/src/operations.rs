//! The operations of administration on a running server: what command line, ad-hoc commands and modules call.
//!
//! [`Operator`] implements [`Admin`], the ONE set. What a user may do to the own account (change the password, remove
//! it) is done by the same functions.

mod users;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::Instrument as _;
use trunkline_store::{Batch, Lane, Statement};
use trunkline_xmpp::error::{Condition, StanzaError, StreamCondition, StreamError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::{Kind, PresenceType, Stanza};

use crate::admin::accounts::{self, NewAccount, State};
use crate::admin::actor::{Actor, Face, Scope};
use crate::admin::table;
use crate::admin::{Admin, DomainStatus, OpError, Operation, Outcome, Password, Status};
use crate::admin::{tokens, totp};
use crate::config::{Config, Registration};
use crate::control;
use crate::devices::{Ended, Ender};
use crate::exchange::Exchange;
use crate::invites::{InviteError, Wish};
use crate::notices::{self, Announcement};
use crate::route::Mail;
use crate::route::account::{Account, Loaded};
use crate::route::remote::Remote;
use crate::session::{Close, Session};
use crate::traces;

/// Runs operations on a running server.
#[derive(Clone, Debug)]
pub struct Operator(pub Arc<Exchange>);

impl Admin for Operator {
    async fn run(&self, actor: &Actor, operation: Operation) -> Result<Outcome, OpError> {
        let row = operation.row();
        let span = traces::operation(row.map_or(("", ""), |row| (row.op, row.act)), actor);
        let needed = row.map_or(Scope::Accounts, |row| row.scope);
        if !actor.may(needed) {
            span.record("failed", true);
            return Err(OpError::Forbidden(needed.name().into()));
        }
        if let Some(scope) = self.is_above(actor, &operation) {
            span.record("failed", true);
            return Err(OpError::Forbidden(scope.name().into()));
        }
        if let Err(error) = self.check_second_factor(actor, row.is_none_or(table::Row::changes)).await {
            span.record("failed", true);
            return Err(error);
        }
        let outcome = self.permitted(actor, operation).instrument(span.clone()).await;
        if outcome.is_err() {
            span.record("failed", true);
        }
        outcome
    }
}

impl Operator {
    /// A scope that the account has whose keys the operation changes, and `actor` has not: nobody becomes more than
    /// they are by way of another account's password or second factor.
    fn is_above(&self, actor: &Actor, operation: &Operation) -> Option<Scope> {
        let (Operation::UserAdd { address, .. }
        | Operation::UserPasswd { address, .. }
        | Operation::UserRemove { address }
        | Operation::UserDisable { address }
        | Operation::UserEnable { address }
        | Operation::UserTotpReset { address }
        | Operation::UserClientEnd { address, .. }) = operation
        else {
            return None;
        };
        // What is no address is refused as such.
        let jid = Jid::parse(address).ok()?;
        self.0.scopes_of(&jid).into_iter().find(|scope| !actor.may(*scope))
    }

    /// XMPP has no place for a code: whoever has a second factor changes nothing through ad-hoc commands, or the
    /// password alone would do, even to take the second factor off.
    ///
    /// # Errors
    /// [`OpError::NotPossible`], which says where to do it instead; or the store's.
    pub(crate) async fn check_second_factor(&self, actor: &Actor, changes: bool) -> Result<(), OpError> {
        if actor.face != Face::AdHoc || !changes {
            return Ok(());
        }
        let jid = Jid::parse(&actor.name).map_err(|error| OpError::BadAddress(error.to_string()))?;
        match totp::enrolled(&self.0.db, &jid).await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => {
                self.0.metrics.refused("second-factor");
                Err(OpError::NotPossible(
                    "your account has a second factor, which a client can't ask for: do this in the console, or with \
                     `trunkline` on the server"
                        .into(),
                ))
            }
            Err(error) => Err(OpError::Store(error.to_string())),
        }
    }

    /// Does what the caller was found to be allowed to.
    async fn permitted(&self, actor: &Actor, operation: Operation) -> Result<Outcome, OpError> {
        let exchange = &self.0;
        let config = exchange.config.load_full();
        match operation {
            Operation::UserAdd { address, password } => {
                let jid = accounts::new_address(&address, &config)?;
                self.add(actor, &jid, &password).await?;
                Ok(said(format!("{jid} was added.")))
            }
            Operation::UserPasswd { address, password } => {
                let jid = accounts::address(&address, &config)?;
                let iterations = config.accounts.password_iterations;
                let new =
                    accounts::NewPassword { password: &password, iterations, keep: 0, keep_resource: "" };
                let audit = self.note(actor, "user passwd", (None, Some(jid.to_string())));
                accounts::set_password(&exchange.db, &jid, new, Some(audit)).await?;
                if let Some(account) = exchange.accounts.online(&jid) {
                    exchange
                        .reload_pushes(&account)
                        .await
                        .map_err(|error| OpError::Store(error.to_string()))?;
                    exchange.end_sessions(&account, None, &password_changed());
                }
                Ok(said(format!("{jid} has a new password; its devices were signed out.")))
            }
            Operation::UserRemove { address } => {
                let jid = accounts::address(&address, &config)?;
                let audit = self.note(actor, "user remove", (Some(jid.to_string()), None));
                exchange.erase_account(&jid, Some(audit)).await?.depart().await;
                Ok(said(format!("{jid} was removed, with everything it owned.")))
            }
            Operation::UserDisable { address } => {
                let jid = accounts::address(&address, &config)?;
                let audit = self.note(actor, "user disable", (None, Some(jid.to_string())));
                exchange.disable_account(&jid, audit).await?;
                Ok(said(format!("{jid} is disabled: nobody can log in to it until it is enabled again.")))
            }
            Operation::UserEnable { address } => {
                let jid = accounts::address(&address, &config)?;
                let audit = self.note(actor, "user enable", (Some(jid.to_string()), None));
                accounts::set_state(&exchange.db, &jid, State::Enabled, audit).await?;
                Ok(said(format!("{jid} can be used again.")))
            }
            Operation::UserList { domain, after, only } => {
                let after = after.map(|after| accounts::address(&after, &config)).transpose()?;
                users::list(exchange, (domain.as_deref(), only), after.as_ref()).await
            }
            Operation::UserShow { address } => {
                let jid = accounts::address(&address, &config)?;
                users::show(exchange, &jid).await
            }
            Operation::UserCount { domain } => users::count(exchange, domain.as_deref()).await,
            Operation::Announce { text, domain, all } => {
                notices::announce(exchange, actor, Announcement { text, domain, all }).await
            }
            Operation::Motd(op) => notices::run(exchange, actor, op).await,
            Operation::UserClients { address } => {
                let account = exchange.account_of(&address, &config).await?;
                let clients = exchange.devices(&account).await;
                clients
                    .map(|clients| Outcome::Clients { clients })
                    .map_err(|error| OpError::Store(error.to_string()))
            }
            Operation::UserClientEnd { address, client } => {
                let account = exchange.account_of(&address, &config).await?;
                let jid = &account.jid;
                let audit = self.note(actor, "user client-end", (Some(format!("{jid} {client}")), None));
                match exchange.end_device(&account, &client, Ender::Operator(audit)).await {
                    Ok(Ended::Gone) => Ok(said(format!("The device {client} of {jid} was signed out."))),
                    Ok(Ended::KnowsPassword) => Ok(said(format!(
                        "The device {client} of {jid} was signed out. It has the password and may come back: set \
                         another one to keep it out."
                    ))),
                    Ok(Ended::Unknown) => Err(OpError::NotFound(format!("device {client} of {jid}"))),
                    Err(error) => Err(OpError::Store(error.to_string())),
                }
            }
            Operation::UserTotpReset { address } => {
                let jid = accounts::address(&address, &config)?;
                let audit = self.note(actor, "user totp reset", (Some(jid.to_string()), None));
                match totp::reset(&exchange.db, &jid, audit).await {
                    Ok(true) => Ok(said(format!("{jid} has no second factor any more."))),
                    Ok(false) => Err(OpError::NotFound(format!("second factor of {jid}"))),
                    Err(error) => Err(OpError::Store(error.to_string())),
                }
            }
            Operation::Reload => self.reload(actor, &config).await,
            Operation::Status => Ok(Outcome::Status(Box::new(exchange.status(&config).await?))),
            Operation::FederationStatus => Ok(Outcome::Federation(exchange.remote()?.status())),
            Operation::FederationClose { domain: Some(_), all: true } => {
                Err(OpError::BadRequest("all: either one domain or all".into()))
            }
            Operation::FederationClose { domain: None, all: false } => {
                Err(OpError::BadRequest("domain: missing; to cut off everybody say `all`".into()))
            }
            Operation::FederationClose { domain, .. } => {
                control::breaker::close(exchange, actor, domain).await
            }
            Operation::FederationOpen { domain } => control::breaker::open(exchange, actor, domain).await,
            Operation::Kick { address } => self.kick(actor, &address).await,
            Operation::InviteCreate { domain } => self.invite(actor, domain).await,
            Operation::Policy(op) => control::policy::run(exchange, actor, op).await,
            Operation::Breaker(op) => control::breaker::run(exchange, actor, op).await,
            Operation::Audit(op) => control::audit::run(exchange, actor, op).await,
            Operation::Requests(op) => control::requests::run(exchange, actor, op).await,
            Operation::Reports(op) => control::reports::run(exchange, actor, op).await,
            Operation::Lists(op) => control::lists::run(exchange, actor, op).await,
            Operation::Domains(op) => control::traffic::run(exchange, actor, op).await,
            Operation::Tokens(op) => tokens::run(exchange, actor, op).await,
        }
    }
}

impl Operator {
    /// The entry of the audit log for an operation on accounts or the server, without a reason: none was asked for.
    fn note(&self, actor: &Actor, what: &str, change: (Option<String>, Option<String>)) -> Statement {
        self.0.control.audit.entry(actor, what, "", change)
    }

    /// The audit log knows of something that is not in the store itself, before it is done.
    async fn noted(&self, entry: Statement) -> Result<(), OpError> {
        let batch = Batch::new(Lane::Inside).with(entry);
        self.0.db.run(batch).await.map(drop).map_err(|error| OpError::Store(error.to_string()))
    }

    async fn add(&self, actor: &Actor, jid: &Jid, password: &Password) -> Result<(), OpError> {
        let exchange = &self.0;
        let config = exchange.config.load_full();
        if let (Some(host), Some(local)) = (exchange.host(jid.domain()), jid.local()) {
            let taken = exchange.is_name_taken(host, local, None).await;
            if taken.map_err(|error| OpError::Store(error.to_string()))? {
                return Err(OpError::Exists(jid.to_string()));
            }
        }
        let new = NewAccount {
            jid,
            password,
            iterations: config.accounts.password_iterations,
            now: exchange.clock().now(),
        };
        let audit = self.note(actor, "user add", (None, Some(jid.to_string())));
        accounts::add(&exchange.db, new, Some(audit)).await
    }

    async fn invite(&self, actor: &Actor, domain: Option<String>) -> Result<Outcome, OpError> {
        let config = self.0.config.load_full();
        let domain = domain.unwrap_or_else(|| config.domain.clone());
        let host = self.0.host(&domain).ok_or(OpError::UnknownDomain(domain))?;
        if config.accounts.registration == Registration::Closed {
            return Err(OpError::NotPossible(
                "nobody can register: set accounts.registration to \"invite\" first".into(),
            ));
        }
        let audit = self.note(actor, "invite create", (None, Some(host.domain.to_string())));
        let wish = Wish { creates_account: true, audit: Some(audit), ..Wish::default() };
        let made = self.0.invite(host, wish).await.map_err(|error| match error {
            InviteError::Store(error) => OpError::Store(error.to_string()),
            error => OpError::NotPossible(error.to_string()),
        })?;
        Ok(Outcome::Invitation { uri: made.uri, expires_at: made.expires_at })
    }

    async fn kick(&self, actor: &Actor, address: &str) -> Result<Outcome, OpError> {
        let exchange = &self.0;
        let jid = Jid::parse(address).map_err(|error| OpError::BadAddress(format!("{address}: {error}")))?;
        let found = exchange.accounts.online(&jid).filter(|account| match jid.resource() {
            None => !account.state().resources.is_empty(),
            Some(name) => account.state().resource(name).is_some(),
        });
        let account = found.ok_or_else(|| OpError::NotPossible(format!("{jid} is not connected")))?;
        self.noted(self.note(actor, "kick", (Some(jid.to_string()), None))).await?;
        let error = StreamError::new(StreamCondition::PolicyViolation).text("Ended by an administrator.");
        let ended = match jid.resource() {
            None => exchange.end_sessions(&account, None, &error),
            Some(name) => {
                let session = account.state().resource(name).map(|resource| Arc::clone(&resource.session));
                if let Some(session) = &session {
                    session.close(Close { error: Some(error), resumable: false });
                    if !session.is_attached() {
                        exchange.end_session(session, None);
                    }
                }
                usize::from(session.is_some())
            }
        };
        match ended {
            1 => Ok(said(format!("One session of {jid} is ended."))),
            ended => Ok(said(format!("{ended} sessions of {jid} are ended."))),
        }
    }

    /// Reads the configuration and the certificates again. All of it is checked before anything is changed, and the
    /// audit log knows before what is in force is another.
    async fn reload(&self, actor: &Actor, old: &Config) -> Result<Outcome, OpError> {
        let exchange = &self.0;
        let (effective, reload) = old.reread().map_err(|error| OpError::Config(error.to_string()))?;
        if let Some(surroundings) = exchange.surroundings.get().and_then(std::sync::Weak::upgrade) {
            surroundings.reload(&effective).map_err(OpError::Config)?;
        }
        let after = serde_json::to_string(&reload).ok();
        self.noted(self.note(actor, "reload", (None, after))).await?;
        exchange.reload_lists(&effective).await.map_err(|error| OpError::Store(error.to_string()))?;
        let effective = Arc::new(effective);
        exchange.config.store(Arc::clone(&effective));
        *exchange.needs_restart.lock() = reload.needs_restart.clone();
        exchange.components.reconcile(&effective);
        control::Control::reloaded(exchange, &effective);
        if let Some(remote) = exchange.remote.get() {
            remote.reload(&effective);
        }
        tracing::info!(applied = ?reload.applied, needs_restart = ?reload.needs_restart, "the configuration was reloaded");
        Ok(Outcome::Reloaded { reload })
    }
}

/// RFC 6120 s.4.9.3.16: the security context of these streams is outdated.
fn password_changed() -> StreamError {
    StreamError::new(StreamCondition::Reset).text("The password was changed.")
}

/// What of a running server is not the exchange's: certificates, listeners, gates. The server registers itself once.
pub trait Surroundings: Send + Sync + 'static {
    /// Takes over what a reload can change. Certificates are read first: when one can't be read nothing is changed.
    ///
    /// # Errors
    /// A text for the operator; nothing was changed.
    fn reload(&self, config: &Config) -> Result<(), String>;

    /// Fills in what only it knows: listeners, ends of certificates.
    fn describe(&self, status: &mut Status);
}

/// An account whose rows are gone and whose sessions are still there; [`Erased::depart`] ends it.
#[must_use = "sessions and contacts of a removed account have to be told"]
pub struct Erased {
    exchange: Arc<Exchange>,
    /// `None`: it was disabled.
    account: Option<Loaded>,
}

impl Exchange {
    /// Removes every row of an account; from here on nobody can log in to it. The caller then calls
    /// [`Erased::depart`], after whatever it still has to tell the account's sessions.
    ///
    /// `audit` is the entry of the audit log, when it is not the owner who wants it.
    ///
    /// # Errors
    /// [`OpError::NoSuchUser`], or the store's.
    pub async fn erase_account(
        self: &Arc<Self>,
        jid: &Jid,
        audit: Option<Statement>,
    ) -> Result<Erased, OpError> {
        let loaded =
            self.accounts.load(&self.db, jid).await.map_err(|error| OpError::Store(error.to_string()))?;
        let Some(account) = loaded else {
            // Disabled accounts are never loaded: nobody is connected, only the rows are there.
            accounts::remove(&self.db, jid, audit).await?;
            self.forget_consents();
            return Ok(Erased { exchange: Arc::clone(self), account: None });
        };
        // What changes roster and block list waits, and finds no rows afterwards.
        let writing = account.writes.lock().await;
        accounts::remove(&self.db, jid, audit).await?;
        self.forget_consents();
        account.state().removed = true;
        self.accounts.forget(&account);
        drop(writing);
        Ok(Erased { exchange: Arc::clone(self), account: Some(account) })
    }

    /// Disables an account: its sessions end, and from here on nobody finds it, nor can log in to it. What it owns
    /// stays. Contacts are told that it is unavailable, and no more.
    async fn disable_account(self: &Arc<Self>, jid: &Jid, audit: Statement) -> Result<(), OpError> {
        let loaded =
            self.accounts.load(&self.db, jid).await.map_err(|error| OpError::Store(error.to_string()))?;
        let Some(account) = loaded else {
            // There is none, or it is disabled already.
            return accounts::set_state(&self.db, jid, State::Disabled, audit).await;
        };
        let writing = account.writes.lock().await;
        accounts::set_state(&self.db, jid, State::Disabled, audit).await?;
        // Whoever holds the account meanwhile finds it gone; enabled again, it is read from the store.
        account.state().removed = true;
        self.accounts.forget(&account);
        drop(writing);
        let sessions: Vec<Arc<Session>> =
            account.state().resources.iter().map(|resource| Arc::clone(&resource.session)).collect();
        for session in &sessions {
            let unavailable =
                Stanza::build(Kind::Presence(PresenceType::Unavailable)).from(session.jid.clone()).done();
            self.broadcast_unavailable(session, unavailable);
        }
        let error = StreamError::new(StreamCondition::NotAuthorized).text("This account is disabled.");
        self.end_sessions(&account, None, &error);
        Ok(())
    }

    /// The account of that address.
    async fn account_of(&self, address: &str, config: &Config) -> Result<Loaded, OpError> {
        let jid = accounts::address(address, config)?;
        let loaded = self.accounts.load(&self.db, &jid).await;
        let loaded = loaded.map_err(|error| OpError::Store(error.to_string()))?;
        loaded.ok_or_else(|| OpError::NoSuchUser(jid.to_string()))
    }

    /// Asks the connections of an account to close with `error`, all but `keep`; sessions without a connection
    /// end at once.
    pub fn end_sessions(
        self: &Arc<Self>,
        account: &Account,
        keep: Option<&Session>,
        error: &StreamError,
    ) -> usize {
        let sessions: Vec<Arc<Session>> = account
            .state()
            .resources
            .iter()
            .map(|resource| Arc::clone(&resource.session))
            .filter(|session| keep.is_none_or(|keep| keep.serial != session.serial))
            .collect();
        for session in &sessions {
            session.close(Close { error: Some(error.clone()), resumable: false });
            if !session.is_attached() {
                self.end_session(session, None);
            }
        }
        sessions.len()
    }

    /// Sets the password of one's own account and ends the other sessions and their tokens.
    ///
    /// # Errors
    /// Those of [`accounts::set_password`].
    pub async fn change_password(
        self: &Arc<Self>,
        session: &Session,
        password: &Password,
    ) -> Result<(), OpError> {
        let iterations = self.config.load().accounts.password_iterations;
        let keep = session.device.load(Ordering::Relaxed);
        let new = accounts::NewPassword { password, iterations, keep, keep_resource: session.resource() };
        accounts::set_password(&self.db, &session.account.jid, new, None).await?;
        self.reload_pushes(&session.account).await.map_err(|error| OpError::Store(error.to_string()))?;
        self.end_sessions(&session.account, Some(session), &password_changed());
        Ok(())
    }

    fn remote(&self) -> Result<&Arc<dyn Remote>, OpError> {
        self.remote.get().ok_or_else(|| OpError::NotPossible("there is no federation in this server".into()))
    }

    async fn status(&self, config: &Config) -> Result<Status, OpError> {
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: self.started,
            domains: config
                .domains()
                .map(|name| DomainStatus { name: name.to_owned(), ..DomainStatus::default() })
                .collect(),
            accounts: accounts::count(&self.db).await?,
            federation_open: config.federation.enabled,
            memory: resident(),
            database: std::fs::metadata(config.database()).ok().map(|file| file.len()),
            needs_restart: self.needs_restart.lock().clone(),
            ..Status::default()
        };
        if let Some(remote) = self.remote.get() {
            let federation = remote.status();
            status.federation_open = federation.open;
            status.peers = federation.peers.iter().filter(|peer| !peer.streams.is_empty()).count() as u64;
        }
        if let Some(surroundings) = self.surroundings.get().and_then(std::sync::Weak::upgrade) {
            surroundings.describe(&mut status);
        }
        status.problems.extend(self.control.warnings());
        for account in self.accounts.all() {
            for resource in &account.state().resources {
                status.sessions += 1;
                status.sessions_waiting += u64::from(!resource.session.is_attached());
            }
        }
        Ok(status)
    }

    /// Makes two accounts of this server contacts of each other (XEP-0401 s.5.5): who came with an invitation, and
    /// who invited. Each account's change is durable by itself; a failure is logged and leaves the manual way.
    pub async fn befriend(self: &Arc<Self>, one: &Jid, other: &Jid) -> Result<(), StanzaError> {
        for (owner, contact) in [(one, other), (other, one)] {
            let loaded = self
                .accounts
                .load(&self.db, owner)
                .await
                .map_err(|error| crate::route::message::store_trouble(&error))?;
            let Some(account) = loaded else { return Err(StanzaError::new(Condition::ItemNotFound)) };
            let _writing = account.writes.lock().await;
            let mut item = account.state().roster.get(contact).cloned().unwrap_or_default();
            item.listed = true;
            item.request = None;
            item.unasked = false;
            item.subscription =
                crate::route::subscription::Subscription { to: true, from: true, ..Default::default() };
            self.change_item(&account, contact, Some(item), trunkline_store::Lane::Inside).await?;
        }
        Ok(())
    }
}

impl Erased {
    /// Ends the sessions and tells the contacts (XEP-0077 s.3.2: subscriptions are cancelled).
    pub async fn depart(self) {
        let Erased { exchange, account } = self;
        let Some(account) = account else { return };
        let sessions: Vec<Arc<Session>> =
            account.state().resources.iter().map(|resource| Arc::clone(&resource.session)).collect();
        for session in &sessions {
            let unavailable =
                Stanza::build(Kind::Presence(PresenceType::Unavailable)).from(session.jid.clone()).done();
            exchange.broadcast_unavailable(session, unavailable);
        }
        // XEP-0077 s.3.2: `not-authorized` for all of the account's streams.
        exchange.end_sessions(&account, None, &StreamError::new(StreamCondition::NotAuthorized));
        let farewells: Vec<(Jid, PresenceType)> = {
            let state = account.state();
            let mut farewells = Vec::new();
            for (contact, item) in state.roster.iter() {
                let subscription = item.subscription;
                if subscription.to || subscription.pending_out {
                    farewells.push((contact.clone(), PresenceType::Unsubscribe));
                }
                if subscription.from || (subscription.pending_in && !item.unasked) {
                    farewells.push((contact.clone(), PresenceType::Unsubscribed));
                }
            }
            farewells
        };
        for (contact, kind) in farewells {
            let stanza = Stanza::build(Kind::Presence(kind)).from(account.jid.clone()).to(contact).done();
            exchange.deliver(Mail::inside(stanza)).await;
        }
    }
}

impl std::fmt::Debug for Erased {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Erased({:?})", self.account)
    }
}

/// Bytes of memory that the process occupies, where the system tells (proc(5), statm).
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

/// What a client is told of an operation that failed.
pub fn stanza_error(error: &OpError) -> StanzaError {
    let condition = match error {
        OpError::BadAddress(_) => Condition::JidMalformed,
        OpError::UnknownDomain(_) => Condition::NotAllowed,
        OpError::Exists(_) => Condition::Conflict,
        OpError::NoSuchUser(_) | OpError::NotFound(_) => Condition::ItemNotFound,
        OpError::Forbidden(_) => Condition::Forbidden,
        OpError::BadPassword(_) => Condition::NotAcceptable,
        OpError::Config(_) | OpError::NotPossible(_) => Condition::NotAllowed,
        OpError::BadRequest(_) => Condition::BadRequest,
        OpError::NotRunning | OpError::Closing => Condition::ServiceUnavailable,
        OpError::Store(_) => {
            // The text is for the log; the client can do nothing with it.
            tracing::error!(%error, "an operation failed");
            return StanzaError::new(Condition::InternalServerError);
        }
    };
    StanzaError::new(condition).text(error.to_string())
}

fn said(text: String) -> Outcome {
    Outcome::Done { text }
}
