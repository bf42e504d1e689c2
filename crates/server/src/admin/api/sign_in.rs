//! Signing in to the console: SCRAM-SHA-256 in two round trips of JSON, a code of the second factor where one is
//! enrolled, and then a cookie.
//!
//! The password never leaves the page. Failures count against the same limits as those of clients, and unknown users
//! are answered like known ones.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trunkline_store::sql;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::sasl;

use super::problem::Problem;
use crate::admin::actor::{Actor, Face, Scope};
use crate::admin::totp;
use crate::exchange::{Exchange, Host};
use crate::logging::Refusal;
use crate::net::listen::network;
use crate::session::attempts::{Most, TooMany};

/// Sign-ins under way, of all; and of one network. Beyond it one makes room: see [`make_room`].
const MOST_LOGINS: usize = 1000;
const MOST_LOGINS_OF_ONE: usize = 20;
/// Milliseconds for a sign-in.
const PATIENCE: i64 = 3 * 60 * 1000;
/// Codes that may be tried after one proof.
const MOST_CODES: u32 = 3;
/// Sessions at once; and of one account. The oldest makes room.
const MOST_SESSIONS: usize = 200;
const MOST_SESSIONS_OF_ONE: usize = 10;

const MECHANISM: &str = "SCRAM-SHA-256";

/// What a page sends to sign in: one of three.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SignIn {
    /// RFC 5802 `client-first-message`; the name in it is the whole address.
    #[serde(default)]
    client_first: Option<String>,
    /// From the answer to `client_first`.
    #[serde(default)]
    login: Option<String>,
    /// RFC 5802 `client-final-message`.
    #[serde(default)]
    client_final: Option<String>,
    /// Of the second factor.
    #[serde(default)]
    code: Option<String>,
}

/// What it is answered.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct SignInAnswer {
    /// For the next message.
    #[serde(skip_serializing_if = "Option::is_none")]
    login: Option<String>,
    /// RFC 5802 `server-first-message`.
    #[serde(skip_serializing_if = "Option::is_none")]
    server_first: Option<String>,
    /// RFC 5802 `server-final-message`: the server has proved that it knows the password's keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    server_final: Option<String>,
    /// A code is wanted next.
    #[serde(skip_serializing_if = "Option::is_none")]
    second_factor: Option<bool>,
    /// Signed in.
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionView>,
}

/// Who is signed in.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct SessionView {
    /// Whose session it is.
    address: String,
    /// What they may.
    scopes: Vec<Scope>,
    /// To be sent as `X-CSRF-Token` with everything that is not a GET.
    csrf: String,
    /// When it ends at the latest: milliseconds since 1970.
    expires_at: i64,
    /// A second factor is enrolled.
    totp: bool,
}

/// The second factor: empty to begin, with a code to confirm.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TotpCode {
    /// Six digits.
    #[serde(default)]
    code: Option<String>,
}

/// What an app is to be told; not in force before it is confirmed.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Enrolment {
    /// For a QR code.
    uri: String,
    /// To be typed.
    secret: String,
}

/// A session, as the page that has its cookie is told.
#[derive(Clone)]
struct Session {
    account: Jid,
    csrf: String,
    began: i64,
    used: i64,
    /// What the account was signed in to with: when it is another, the session is over.
    standing: Standing,
    enrolling: Option<totp::Secret>,
}

/// What a session hangs on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Standing {
    /// SCRAM-SHA-256 of the password.
    stored_key: Vec<u8>,
    /// When the second factor was enrolled.
    factor_since: Option<i64>,
}

/// A sign-in under way.
struct Login {
    account: Jid,
    /// One customer's addresses are one.
    network: IpAddr,
    since: i64,
    stage: Stage,
}

enum Stage {
    /// With what the proof is checked against: `None` for who does not exist.
    Proof {
        server: Box<sasl::Server>,
        stored_key: Option<Vec<u8>>,
    },
    Code {
        secret: totp::Secret,
        standing: Standing,
        tried: u32,
    },
}

/// Who is signed in, and who is about to be.
#[derive(Default)]
pub(super) struct Sessions {
    logins: Mutex<HashMap<String, Login>>,
    /// By the hash of the cookie.
    open: Mutex<HashMap<Vec<u8>, Session>>,
}

/// What a cookie stands for.
pub(super) struct SignedIn {
    pub(super) actor: Actor,
    pub(super) account: Jid,
    pub(super) csrf: String,
    /// The session's key.
    key: Vec<u8>,
}

/// An answer, and the cookie to set with it.
pub(super) type Answered = Result<(SignInAnswer, Option<String>), Problem>;

fn failed() -> Problem {
    Problem::sign_in("address, password or code are not right")
}

fn trouble(error: &trunkline_store::StoreError) -> Problem {
    tracing::error!(%error, "credentials can't be read");
    Problem::ours("the database failed; the server's log says why")
}

impl Sessions {
    /// One step of a sign-in from `address`.
    pub(super) async fn sign_in(&self, exchange: &Arc<Exchange>, address: IpAddr, asked: SignIn) -> Answered {
        match asked {
            SignIn { client_first: Some(first), login: None, client_final: None, code: None } => {
                self.begin(exchange, address, &first).await
            }
            SignIn { client_first: None, login: Some(login), client_final: Some(last), code: None } => {
                self.prove(exchange, address, (&login, &last)).await
            }
            SignIn { client_first: None, login: Some(login), client_final: None, code: Some(code) } => {
                self.code(exchange, address, (&login, &code)).await
            }
            _ => Err(Problem::bad_request("one of: client_first; login and client_final; login and code")),
        }
    }

    async fn begin(&self, exchange: &Arc<Exchange>, address: IpAddr, first: &str) -> Answered {
        let config = exchange.config.load_full();
        if config.limits.enabled
            && exchange.logins.from_address(address) >= config.clients.login_failures_per_address
        {
            return Err(too_often(exchange, address, "login-rate-address"));
        }
        let named = named(first).ok_or_else(|| Problem::bad_request("client_first: not a SCRAM message"))?;
        let (account, host) = find(exchange, &named);
        let host = host.ok_or_else(|| Problem::ours("this server has no domain"))?;
        let decoys = exchange.decoys(&host).await.map_err(|error| trouble(&error))?;
        let bindings = sasl::ChannelBindings::default();
        let local = account.as_ref().and_then(Jid::local).unwrap_or(&named);
        let offer =
            sasl::Offer::new(true, &bindings).domain(host.domain.as_str()).decoys(decoys).decoy_name(local);
        let mut server = sasl::Server::start(MECHANISM, &STANDARD.encode(first), &offer, &bindings)
            .map_err(|_| Problem::bad_request("client_first: not a SCRAM message"))?;
        let sasl::Step::NeedCredentials { hash, .. } = server.step() else {
            return Err(Problem::bad_request("client_first: not a SCRAM message"));
        };
        if let Some(account) = &account
            && config.limits.enabled
            && exchange.logins.of_account(account) >= config.clients.login_failures_per_account
        {
            return Err(too_often(exchange, address, "login-rate-account"));
        }
        let keys = match &account {
            Some(account) => {
                exchange.credentials(&host, Some(account), hash).await.map_err(|error| trouble(&error))?
            }
            None => None,
        };
        let stored_key = keys.as_ref().map(|keys| keys.stored_key.clone());
        server.credentials(keys);
        let sasl::Step::Challenge(challenge) = server.step() else { return Err(failed()) };
        // Who is nobody counts for a name of its own.
        let account = match account {
            Some(account) => account,
            None => Jid::from_parts(Some("nobody"), host.domain.domain(), None).map_err(|_| failed())?,
        };
        let login = crate::ids::token(18);
        let since = exchange.clock().now();
        {
            let mut logins = self.logins.lock();
            logins.retain(|_, login| since - login.since < PATIENCE);
            if make_room(&mut logins, network(address)) {
                let peer = address.to_string();
                let detail = "too many sign-ins to the console under way: the oldest one made room";
                exchange.refusals.report(Refusal { name: "console-logins", peer: &peer, conn: 0, detail });
            }
            let stage = Stage::Proof { server: Box::new(server), stored_key };
            logins.insert(login.clone(), Login { account, network: network(address), since, stage });
        }
        Ok((
            SignInAnswer {
                login: Some(login),
                server_first: Some(text(&challenge)),
                ..SignInAnswer::default()
            },
            None,
        ))
    }

    fn take(&self, login: &str, address: IpAddr, now: i64) -> Result<Login, Problem> {
        let mut logins = self.logins.lock();
        let found = logins
            .remove(login)
            .filter(|login| now - login.since < PATIENCE && login.network == network(address));
        found.ok_or_else(|| Problem::sign_in("this sign-in has ended: begin again"))
    }

    async fn prove(
        &self,
        exchange: &Arc<Exchange>,
        address: IpAddr,
        (login, last): (&str, &str),
    ) -> Answered {
        let now = exchange.clock().now();
        let taken = self.take(login, address, now)?;
        let Stage::Proof { mut server, stored_key } = taken.stage else { return Err(failed()) };
        let guess = guess(exchange, address, &taken.account)?;
        server.response(&STANDARD.encode(last));
        let sasl::Step::Done { data, .. } = server.step() else {
            guess.failed();
            return Err(failed());
        };
        drop(guess);
        let server_final = data.as_deref().map(text);
        // What was proved is the password as it was when this began. If it was changed meanwhile, to whatever, the proof
        // is worth nothing.
        let standing = self.standing(exchange, &taken.account).await?.ok_or_else(failed)?;
        if stored_key.as_ref() != Some(&standing.stored_key) {
            return Err(failed());
        }
        if exchange.scopes_of(&taken.account).is_empty() {
            exchange.metrics.login("console", "forbidden");
            return Err(Problem::forbidden(
                "this account may not use the console: see accounts.admins and accounts.moderators in the configuration",
            ));
        }
        let secret = totp::enrolled(&exchange.db, &taken.account).await.map_err(|error| trouble(&error))?;
        if let Some(secret) = secret {
            let stage = Stage::Code { secret, standing, tried: 0 };
            self.logins.lock().insert(login.to_owned(), Login { stage, ..taken });
            let answer = SignInAnswer { server_final, second_factor: Some(true), ..SignInAnswer::default() };
            return Ok((answer, None));
        }
        let (view, cookie) = self.open(exchange, taken.account, standing);
        Ok((SignInAnswer { server_final, session: Some(view), ..SignInAnswer::default() }, Some(cookie)))
    }

    async fn code(&self, exchange: &Arc<Exchange>, address: IpAddr, (login, code): (&str, &str)) -> Answered {
        let now = exchange.clock().now();
        let taken = self.take(login, address, now)?;
        let Stage::Code { secret, standing, tried } = taken.stage else { return Err(failed()) };
        let guess = guess(exchange, address, &taken.account)?;
        let good = match secret.check(code, now) {
            // A code that was seen on its way is not good a second time.
            Some(step) => {
                totp::spend(&exchange.db, &taken.account, step).await.map_err(|error| trouble(&error))?
            }
            None => false,
        };
        if !good {
            wrong_code(exchange, address, &taken.account);
            guess.failed();
            if tried + 1 < MOST_CODES {
                let stage = Stage::Code { secret, standing, tried: tried + 1 };
                self.logins.lock().insert(login.to_owned(), Login { stage, ..taken });
            }
            return Err(Problem::sign_in("the code is not right"));
        }
        drop(guess);
        if self.standing(exchange, &taken.account).await? != Some(standing.clone()) {
            return Err(failed());
        }
        let (view, cookie) = self.open(exchange, taken.account, standing);
        Ok((SignInAnswer { session: Some(view), ..SignInAnswer::default() }, Some(cookie)))
    }

    /// How the account stands now; `None`: there is none, or it is disabled.
    async fn standing(&self, exchange: &Arc<Exchange>, account: &Jid) -> Result<Option<Standing>, Problem> {
        let statement = sql("SELECT c.stored_key, t.enrolled_at FROM credentials c \
             JOIN accounts a ON a.id = c.account_id JOIN hosts h ON h.id = a.host_id \
             LEFT JOIN totp t ON t.account = a.id \
             WHERE h.name = ?1 AND a.local = ?2 AND c.mechanism = ?3 AND a.disabled = 0")
        .bind(account.domain())
        .bind(account.local().unwrap_or_default())
        .bind(sasl::Hash::Sha256.mechanism());
        let rows = exchange.db.read(statement).await.map_err(|error| trouble(&error))?;
        Ok(rows
            .first()
            .map(|row| Standing { stored_key: row.blob(0).to_vec(), factor_since: row.opt_int(1) }))
    }

    fn open(&self, exchange: &Exchange, account: Jid, standing: Standing) -> (SessionView, String) {
        let now = exchange.clock().now();
        let cookie = crate::ids::token(32);
        let csrf = crate::ids::token(24);
        exchange.metrics.login("console", "ok");
        tracing::info!(%account, "signed in to the console");
        let session = Session { account, csrf, began: now, used: now, standing, enrolling: None };
        let view = session.view(exchange);
        let mut open = self.open.lock();
        open.retain(|_, session| session.lives(exchange, now));
        let of_one = |open: &HashMap<Vec<u8>, Session>| {
            open.values().filter(|other| other.account == session.account).count()
        };
        while of_one(&open) >= MOST_SESSIONS_OF_ONE {
            remove_oldest(&mut open, |other| other.account == session.account);
        }
        while open.len() >= MOST_SESSIONS {
            remove_oldest(&mut open, |_| true);
        }
        open.insert(hash(&cookie), session);
        (view, cookie)
    }

    /// There is a session of this cookie, or was until a moment ago.
    pub(super) fn knows(&self, cookie: &str) -> bool {
        self.open.lock().contains_key(&hash(cookie))
    }

    /// Who has this cookie. Each request prolongs the session.
    pub(super) async fn find(
        &self,
        exchange: &Arc<Exchange>,
        cookie: &str,
    ) -> Result<Option<SignedIn>, Problem> {
        let now = exchange.clock().now();
        let key = hash(cookie);
        let session = {
            let mut open = self.open.lock();
            let Some(session) = open.get_mut(&key) else { return Ok(None) };
            if !session.lives(exchange, now) {
                open.remove(&key);
                return Ok(None);
            }
            session.used = now;
            session.clone()
        };
        let scopes = exchange.scopes_of(&session.account);
        // The account is gone, disabled, has another password, second factor or role: the session is over.
        let same = self.standing(exchange, &session.account).await?.is_some_and(|it| it == session.standing);
        if !same || scopes.is_empty() {
            self.open.lock().remove(&key);
            return Ok(None);
        }
        let actor = Actor { name: session.account.as_str().to_owned(), face: Face::Console, scopes };
        Ok(Some(SignedIn { actor, account: session.account, csrf: session.csrf, key }))
    }

    /// How the session is.
    pub(super) fn view(&self, exchange: &Exchange, who: &SignedIn) -> Option<SessionView> {
        self.open.lock().get(&who.key).map(|session| session.view(exchange))
    }

    /// Ends the session.
    pub(super) fn sign_out(&self, who: &SignedIn) {
        self.open.lock().remove(&who.key);
    }

    /// Begins or confirms the second factor. `None`: it is in force now.
    pub(super) async fn enrol(
        &self,
        exchange: &Arc<Exchange>,
        who: &SignedIn,
        asked: TotpCode,
    ) -> Result<Option<Enrolment>, Problem> {
        let enrolled = totp::enrolled(&exchange.db, &who.account).await.map_err(|error| trouble(&error))?;
        if enrolled.is_some() {
            return Err(crate::admin::OpError::Exists("a second factor".into()).into());
        }
        let Some(code) = asked.code else {
            let secret = totp::Secret::random();
            let enrolment = Enrolment { uri: secret.uri(&who.account), secret: secret.base32() };
            if let Some(session) = self.open.lock().get_mut(&who.key) {
                session.enrolling = Some(secret);
            }
            return Ok(Some(enrolment));
        };
        let secret = self.open.lock().get(&who.key).and_then(|session| session.enrolling.clone());
        let secret = secret.ok_or_else(|| Problem::bad_request("begin first: send an empty object"))?;
        let now = exchange.clock().now();
        let step = secret
            .check(&code, now)
            .ok_or_else(|| Problem::bad_request("code: this is not the code of that secret now"))?;
        let what = "second factor enrol";
        let audit = exchange.control.audit.entry(&who.actor, what, "", (None, Some(who.account.to_string())));
        totp::enrol(&exchange.db, &who.account, &secret, (step, now), audit)
            .await
            .map_err(|error| trouble(&error))?;
        self.changed_factor(who, Some(now));
        Ok(None)
    }

    /// Takes the second factor off, against a code of it.
    pub(super) async fn forget(
        &self,
        exchange: &Arc<Exchange>,
        (who, address): (&SignedIn, IpAddr),
        asked: TotpCode,
    ) -> Result<(), Problem> {
        let enrolled = totp::enrolled(&exchange.db, &who.account).await.map_err(|error| trouble(&error))?;
        let secret = enrolled.ok_or_else(|| Problem::bad_request("there is no second factor"))?;
        let guess = guess(exchange, address, &who.account)?;
        let step = secret.check(&asked.code.unwrap_or_default(), exchange.clock().now());
        let good = match step {
            Some(step) => {
                totp::spend(&exchange.db, &who.account, step).await.map_err(|error| trouble(&error))?
            }
            None => false,
        };
        if !good {
            wrong_code(exchange, address, &who.account);
            guess.failed();
            return Err(Problem::bad_request("code: this is not the code now"));
        }
        drop(guess);
        let what = "second factor remove";
        let audit = exchange.control.audit.entry(&who.actor, what, "", (Some(who.account.to_string()), None));
        totp::reset(&exchange.db, &who.account, audit).await.map_err(|error| trouble(&error))?;
        self.changed_factor(who, None);
        Ok(())
    }

    /// The session that changed the second factor goes on; the account's other ones are over, as they hang on what was
    /// before.
    fn changed_factor(&self, who: &SignedIn, since: Option<i64>) {
        let mut open = self.open.lock();
        open.retain(|key, session| session.account != who.account || *key == who.key);
        if let Some(session) = open.get_mut(&who.key) {
            session.standing.factor_since = since;
            session.enrolling = None;
        }
    }
}

impl Session {
    fn lives(&self, exchange: &Exchange, now: i64) -> bool {
        let config = exchange.config.load();
        let idle = i64::try_from(config.console.idle_timeout.as_millis()).unwrap_or(i64::MAX);
        now - self.used < idle && now < self.end(exchange) && now >= self.began
    }

    fn end(&self, exchange: &Exchange) -> i64 {
        let longest = exchange.config.load().console.session_lifetime.as_millis();
        self.began.saturating_add(i64::try_from(longest).unwrap_or(i64::MAX))
    }

    fn view(&self, exchange: &Exchange) -> SessionView {
        SessionView {
            address: self.account.as_str().to_owned(),
            scopes: exchange.scopes_of(&self.account),
            csrf: self.csrf.clone(),
            expires_at: self.end(exchange),
            totp: self.standing.factor_since.is_some(),
        }
    }
}

/// Lets one more sign-in of this network in; true: another one had to go. With too many of one network its oldest
/// goes; with too many in all the oldest of the network that has most, so that one that comes from few addresses can't
/// push the others out. Those that wait for a code only have proved the password and go last.
fn make_room(logins: &mut HashMap<String, Login>, network: IpAddr) -> bool {
    let mut of_each: HashMap<IpAddr, usize> = HashMap::new();
    for login in logins.values() {
        *of_each.entry(login.network).or_default() += 1;
    }
    let crowded = match of_each.get(&network) {
        Some(own) if *own >= MOST_LOGINS_OF_ONE => Some(network),
        _ if logins.len() >= MOST_LOGINS => None,
        _ => return false,
    };
    let rank = |login: &Login| {
        let of_its = of_each.get(&login.network).copied().unwrap_or_default();
        (matches!(login.stage, Stage::Code { .. }), std::cmp::Reverse(of_its), login.since)
    };
    let candidates =
        logins.iter().filter(|(_, login)| crowded.is_none_or(|network| login.network == network));
    let oldest = candidates.min_by_key(|(_, login)| rank(login)).map(|(key, _)| key.clone());
    oldest.is_some_and(|key| logins.remove(&key).is_some())
}

fn remove_oldest(open: &mut HashMap<Vec<u8>, Session>, of: impl Fn(&Session) -> bool) {
    let oldest = open.iter().filter(|(_, session)| of(session)).min_by_key(|(_, session)| session.used);
    if let Some(key) = oldest.map(|(key, _)| key.clone()) {
        open.remove(&key);
    }
}

/// The name in a client's first message: RFC 5802 s.7 `gs2-header` and `n=`. What else is wrong with it, SASL says.
fn named(first: &str) -> Option<String> {
    let bare = first.splitn(3, ',').nth(2)?;
    let name = bare.split(',').find_map(|part| part.strip_prefix("n="))?;
    Some(name.replace("=2C", ",").replace("=3D", "="))
}

/// The account of that name, if it can be one of ours, and the host that answers for it.
fn find(exchange: &Exchange, name: &str) -> (Option<Jid>, Option<Arc<Host>>) {
    let first = exchange.host(&exchange.config.load().domain).cloned();
    let jid = match name.contains('@') {
        true => Jid::parse(name).ok().filter(|jid| jid.is_bare() && jid.local().is_some()),
        false => first.as_ref().and_then(|host| Jid::from_parts(Some(name), host.domain.domain(), None).ok()),
    };
    match jid.as_ref().and_then(|jid| exchange.host(jid.domain())) {
        Some(host) => (jid.clone(), Some(Arc::clone(host))),
        None => (None, first),
    }
}

/// A proof or code is about to be checked: it counts as a failure from here on until it was right.
fn guess(exchange: &Arc<Exchange>, address: IpAddr, account: &Jid) -> Result<Guess, Problem> {
    let config = exchange.config.load();
    let made = |counted| Guess { exchange: Arc::clone(exchange), address, account: account.clone(), counted };
    if !config.limits.enabled {
        return Ok(made(false));
    }
    let most = Most {
        per_address: config.clients.login_failures_per_address,
        per_account: config.clients.login_failures_per_account,
    };
    match exchange.logins.guess(address, account, most) {
        Ok(()) => Ok(made(true)),
        Err(too_many) => {
            let name = match too_many {
                TooMany::FromAddress => "login-rate-address",
                TooMany::ForAccount => "login-rate-account",
            };
            Err(too_often(exchange, address, name))
        }
    }
}

/// Counted and logged: who gets here has the password.
fn wrong_code(exchange: &Exchange, address: IpAddr, account: &Jid) {
    let (peer, detail) = (address.to_string(), format!("a wrong code of the second factor of {account}"));
    exchange.refusals.report(Refusal { name: "console-code", peer: &peer, conn: 0, detail: &detail });
}

fn too_often(exchange: &Exchange, address: IpAddr, name: &'static str) -> Problem {
    let peer = address.to_string();
    exchange.refusals.report(Refusal {
        name,
        peer: &peer,
        conn: 0,
        detail: "too many failed logins to the console",
    });
    Problem::too_many(300)
}

struct Guess {
    exchange: Arc<Exchange>,
    address: IpAddr,
    account: Jid,
    counted: bool,
}

impl Guess {
    fn failed(self) {
        self.exchange.logins.failed_for(&self.account);
        self.exchange.logins.failed_from(self.address);
        self.exchange.metrics.login("console", "not-authorized");
    }
}

impl Drop for Guess {
    fn drop(&mut self) {
        if self.counted {
            self.exchange.logins.guessed(self.address, &self.account);
        }
    }
}

fn hash(cookie: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, cookie.as_bytes()).as_ref().to_vec()
}

/// What the SASL code gives in base64, as text.
fn text(encoded: &str) -> String {
    STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
}
