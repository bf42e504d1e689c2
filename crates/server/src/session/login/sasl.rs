//! The login itself (RFC 6120 s.6, and in [`super::inline`] XEP-0388), and registering before it (XEP-0077).

use std::net::IpAddr;
use std::sync::Arc;

use trunkline_store::StoreError;
use trunkline_xml::{Element, Writer};
use trunkline_xmpp::error::{StreamCondition, StreamError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::Stanza;
use trunkline_xmpp::{ns, sasl};

use super::{Negotiation, Stop};
use crate::exchange::{Exchange, Host};
use crate::modules::{Reply, registration};
use crate::route::account::Account;
use crate::session::attempts::{Most, TooMany};
use crate::session::client::Seat;

/// Failed logins on one stream before it is closed (RFC 6120 s.6.4.5 allows 2 to 5).
const MOST_FAILURES: u32 = 4;

/// Refusals: their name and what the log says.
const FROM_ADDRESS: (&str, &str) = ("login-rate-address", "too many failed logins from this address");
const FOR_ACCOUNT: (&str, &str) = ("login-rate-account", "too many failed logins for one account");

/// A password that is being checked. Whatever becomes of the connection, it stops counting when this is dropped;
/// failures are counted before.
pub(super) struct Guess {
    exchange: Arc<Exchange>,
    address: IpAddr,
    account: Jid,
}

impl Drop for Guess {
    fn drop(&mut self) {
        self.exchange.logins.guessed(self.address, &self.account);
    }
}

/// The two ways to hold a login's conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Profile {
    /// RFC 6120 s.6.
    Plain,
    /// XEP-0388.
    Extensible,
}

impl Profile {
    fn ns(self) -> &'static str {
        match self {
            Profile::Plain => ns::SASL,
            Profile::Extensible => ns::SASL2,
        }
    }
}

/// What a login asks for.
pub(super) struct Attempt<'a> {
    pub(super) profile: Profile,
    pub(super) mechanism: &'a str,
    /// Empty: there was none; `=`: an empty one.
    pub(super) initial: &'a str,
}

/// Who has logged in.
pub(super) struct Proved {
    pub(super) account: Arc<Account>,
    /// What goes with the success, in base64.
    pub(super) data: Option<String>,
    /// Of the keys that the password was checked with.
    pub(super) salt: Vec<u8>,
    /// Their iterations.
    pub(super) iterations: u32,
    /// The client asked in so many words to be this user.
    pub(super) named: bool,
}

/// How a login ends that did not fail.
pub(super) enum Entered {
    /// A new stream is to be opened.
    Anew(Arc<Account>),
    /// The stream goes on, without a resource as yet.
    Unbound(Arc<Account>),
    /// The session is there.
    Bound(Seat),
}

impl Negotiation {
    /// RFC 6120 s.6, or XEP-0388.
    pub(super) async fn authenticate(&mut self) -> Result<Entered, Stop> {
        let host = self.host.clone().ok_or(StreamCondition::HostUnknown)?;
        let bindings = self.channel_bindings();
        let mut failures = 0;
        let features = self.login_features(&bindings);
        self.send(&features).await?;
        loop {
            let element = self.element().await?;
            let root = element.root();
            if root.is(ns::TLS, "starttls") && !self.transport.is_encrypted() {
                self.start_tls().await?;
                return Box::pin(self.authenticate()).await;
            }
            if root.ns() == ns::CLIENT && root.name() == "iq" {
                self.before_login(&host, element).await?;
                continue;
            }
            let profile = match root.ns() {
                ns::SASL => Profile::Plain,
                ns::SASL2 => Profile::Extensible,
                _ => return Err(self.too_early(&element)),
            };
            let mechanism = root.attr("mechanism").map(|name| name.into_owned()).unwrap_or_default();
            let outcome = match (profile, root.name()) {
                (Profile::Plain, "auth") => {
                    let initial = root.text().into_owned();
                    let attempt = Attempt { profile, mechanism: &mechanism, initial: &initial };
                    match self.attempt(&host, &attempt, &bindings).await? {
                        Ok(proved) => Ok(self.welcome(proved).await?),
                        Err(failure) => Err(failure),
                    }
                }
                (Profile::Extensible, "authenticate") => {
                    self.authenticate_inline(&host, &element, &bindings).await?
                }
                // s.6.4.4: nothing is under way that could be aborted or answered.
                (_, "abort") => Err(sasl::Failure::Aborted),
                _ => Err(sasl::Failure::MalformedRequest),
            };
            match outcome {
                Ok(entered) => {
                    self.guess = None;
                    self.desk.exchange.metrics.login(mechanism_label(&mechanism), "ok");
                    return Ok(entered);
                }
                Err(failure) => {
                    self.desk.exchange.metrics.login(mechanism_label(&mechanism), failure.name());
                    // What was not looked at, for rates or faults of ours, is nobody's failure; nor is what was meant
                    // for other features (XEP-0509 s.2.2).
                    let looked_at = !matches!(
                        failure,
                        sasl::Failure::TemporaryAuthFailure | sasl::Failure::OtherFeatures
                    );
                    if looked_at {
                        self.desk.exchange.logins.failed_from(self.address.ip());
                    }
                    self.guess = None;
                    self.fail(profile, failure).await?;
                    failures += 1;
                    if failures >= MOST_FAILURES {
                        self.desk.refused("too-many-login-failures", "too many failed logins on one stream");
                        return Err(Stop::Error(
                            StreamError::new(StreamCondition::PolicyViolation)
                                .text("Too many failed logins."),
                        ));
                    }
                }
            }
        }
    }

    /// RFC 6120 s.6.4.6: the end of a login in the plain profile.
    async fn welcome(&mut self, proved: Proved) -> Result<Entered, Stop> {
        let mut w = Writer::new();
        w.open("success").attr("xmlns", ns::SASL);
        if let Some(data) = &proved.data {
            w.text(data);
        }
        w.close();
        self.send(&w.finish()).await?;
        Ok(Entered::Anew(proved.account))
    }

    /// One run of a mechanism.
    pub(super) async fn attempt(
        &mut self,
        host: &Arc<Host>,
        attempt: &Attempt<'_>,
        bindings: &sasl::ChannelBindings,
    ) -> Result<Result<Proved, sasl::Failure>, Stop> {
        if let Err(failure) = self.may_try() {
            return Ok(Err(failure));
        }
        let offered = match self.desk.exchange.decoys(host).await {
            Ok(decoys) => self.mechanisms(bindings).decoys(decoys),
            Err(error) => return Ok(Err(unreadable(&error))),
        };
        let Attempt { profile, mechanism, initial } = *attempt;
        let mut server = match sasl::Server::start(mechanism, initial, &offered, bindings) {
            Ok(server) => server,
            Err(failure) => return Ok(Err(failure)),
        };
        let (mut salt, mut iterations) = (Vec::new(), 0);
        loop {
            match server.step() {
                sasl::Step::Challenge(text) => {
                    let mut w = Writer::new();
                    w.open("challenge").attr("xmlns", profile.ns()).text(&text).close();
                    self.send(&w.finish()).await?;
                    let element = self.element().await?;
                    let root = element.root();
                    if root.is(profile.ns(), "abort") {
                        return Ok(Err(sasl::Failure::Aborted));
                    }
                    if !root.is(profile.ns(), "response") {
                        return Err(self
                            .desk
                            .refusal(StreamCondition::NotAuthorized, "no response to a challenge"));
                    }
                    // Who has said its name shows its proof now.
                    let user = server.user().and_then(|user| address(user, host));
                    if let Err(failure) = user.map_or(Ok(()), |jid| self.guess(jid)) {
                        return Ok(Err(failure));
                    }
                    server.response(root.text().trim());
                }
                sasl::Step::NeedCredentials { user, hash } => {
                    let jid = address(&user, host);
                    if let Err(failure) = self.may_try_for(jid.as_ref()) {
                        return Ok(Err(failure));
                    }
                    let keys = match self.desk.exchange.credentials(host, jid.as_ref(), hash).await {
                        Ok(keys) => keys,
                        Err(error) => return Ok(Err(unreadable(&error))),
                    };
                    if let Some(keys) = &keys {
                        (salt, iterations) = (keys.salt.clone(), keys.iterations);
                    }
                    if mechanism == sasl::Mechanism::Plain.name() {
                        let turn = self.desk.exchange.password_turn().await;
                        if let Err(failure) = jid.map_or(Ok(()), |jid| self.guess(jid)) {
                            return Ok(Err(failure));
                        }
                        server = match self.desk.exchange.check_password(turn, server, keys).await {
                            Ok(server) => server,
                            Err(failure) => return Ok(Err(failure)),
                        };
                    } else {
                        server.credentials(keys);
                    }
                }
                sasl::Step::Failed(failure) => {
                    if let Some(jid) = server.user().and_then(|user| address(user, host)) {
                        self.desk.exchange.logins.failed_for(&jid);
                    }
                    return Ok(Err(failure));
                }
                sasl::Step::Done { user, data } => {
                    let Some(jid) = address(&user, host) else {
                        return Ok(Err(sasl::Failure::NotAuthorized));
                    };
                    let named = server.authzid().is_some();
                    return Ok(self.account(&jid).await.map(|account| Proved {
                        account,
                        data,
                        salt,
                        iterations,
                        named,
                    }));
                }
            }
        }
    }

    /// Somebody has proved to be this user.
    pub(super) async fn account(&self, jid: &Jid) -> Result<Arc<Account>, sasl::Failure> {
        match self.desk.exchange.accounts.load(&self.desk.exchange.db, jid).await {
            Ok(Some(account)) => Ok(Arc::clone(&account)),
            Ok(None) => Err(sasl::Failure::NotAuthorized),
            Err(error) => Err(unreadable(&error)),
        }
    }

    /// Whether logins are tried at all that come from this address.
    pub(super) fn may_try(&self) -> Result<(), sasl::Failure> {
        if self.desk.exchange.login_blocked_from(self.address.ip()) {
            self.desk.refused(FROM_ADDRESS.0, FROM_ADDRESS.1);
            return Err(sasl::Failure::TemporaryAuthFailure);
        }
        Ok(())
    }

    /// Whether logins are tried to this account, which need not exist.
    pub(super) fn may_try_for(&self, account: Option<&Jid>) -> Result<(), sasl::Failure> {
        if account.is_some_and(|jid| self.desk.exchange.login_blocked_for(jid)) {
            self.desk.refused(FOR_ACCOUNT.0, FOR_ACCOUNT.1);
            return Err(sasl::Failure::TemporaryAuthFailure);
        }
        Ok(())
    }

    /// A proof or password is about to be checked: it counts as a failure from here on until it was right.
    pub(super) fn guess(&mut self, account: Jid) -> Result<(), sasl::Failure> {
        let exchange = &self.desk.exchange;
        let config = exchange.config.load();
        if !config.limits.enabled {
            return Ok(());
        }
        let most = Most {
            per_address: config.clients.login_failures_per_address,
            per_account: config.clients.login_failures_per_account,
        };
        let address = self.address.ip();
        let (name, detail) = match exchange.logins.guess(address, &account, most) {
            Ok(()) => {
                self.guess = Some(Guess { exchange: Arc::clone(exchange), address, account });
                return Ok(());
            }
            Err(TooMany::FromAddress) => FROM_ADDRESS,
            Err(TooMany::ForAccount) => FOR_ACCOUNT,
        };
        self.desk.refused(name, detail);
        Err(sasl::Failure::TemporaryAuthFailure)
    }

    /// An IQ before login: only registration may ask (XEP-0077 s.3.1, XEP-0445).
    async fn before_login(&mut self, host: &Arc<Host>, element: Element) -> Result<(), Stop> {
        let Ok(stanza) = Stanza::from_element(element, ns::CLIENT, self.lang.as_deref()) else {
            return Err(self.desk.refusal(StreamCondition::NotAuthorized, "no stanza, before login"));
        };
        let registers = stanza
            .first_child()
            .is_some_and(|payload| payload.ns() == ns::REGISTER || payload.ns() == ns::PARS);
        if !registers {
            self.desk.refused("stanza-before-login", "a stanza before the login");
            return Err(StreamCondition::NotAuthorized.into());
        }
        let asker = registration::Asker { host, address: self.address.ip() };
        let answer = registration::before_login(&self.desk.exchange, asker, &mut self.preauth, &stanza).await;
        let answer = match answer {
            Ok(Reply::Payload(payload)) => Some(stanza.reply().payload(payload).done()),
            Ok(Reply::Empty) => Some(stanza.reply().done()),
            Ok(Reply::Sent) => None,
            // XEP-0077 s.3.3: errors don't repeat the password.
            Err(error) => stanza.with_payload([]).error(&error),
        };
        if let Some(mut answer) = answer {
            answer.head.from = Some(host.domain.clone());
            let mut out = Vec::new();
            answer.write(&mut out);
            self.send(&out).await?;
        }
        Ok(())
    }

    async fn fail(&mut self, profile: Profile, failure: sasl::Failure) -> Result<(), Stop> {
        let mut w = Writer::new();
        w.open("failure").attr("xmlns", profile.ns());
        w.open(failure.condition());
        if profile == Profile::Extensible {
            // XEP-0388 s.2.6.2: the conditions are RFC 6120's.
            w.attr("xmlns", ns::SASL);
        }
        w.close();
        if failure == sasl::Failure::OtherFeatures {
            w.open("config-version-mismatch").attr("xmlns", ns::PIPELINING).close();
        }
        w.close();
        self.send(&w.finish()).await
    }

    pub(super) fn mechanisms(&self, bindings: &sasl::ChannelBindings) -> sasl::Offer {
        let offer = sasl::Offer::new(self.transport.is_encrypted(), bindings).protected();
        let Some(host) = &self.host else { return offer };
        offer.domain(host.domain.as_str())
    }
}

/// The account of that name at this host. The name is the client's: a `/` or `@` in it must not lead to another
/// domain, so it is a local part or nothing.
pub(super) fn address(user: &str, host: &Host) -> Option<Jid> {
    Jid::from_parts(Some(user), host.domain.domain(), None).ok()
}

/// A fault of ours.
pub(super) fn unreadable(error: &StoreError) -> sasl::Failure {
    tracing::error!(%error, "credentials can't be read");
    sasl::Failure::TemporaryAuthFailure
}

/// A label of bounded number: the peer chooses the mechanism's name.
fn mechanism_label(name: &str) -> &'static str {
    sasl::known(name).unwrap_or("unknown")
}

impl Exchange {
    fn login_blocked_from(&self, address: IpAddr) -> bool {
        let config = self.config.load();
        config.limits.enabled
            && self.logins.from_address(address) >= config.clients.login_failures_per_address
    }

    fn login_blocked_for(&self, account: &Jid) -> bool {
        let config = self.config.load();
        config.limits.enabled && self.logins.of_account(account) >= config.clients.login_failures_per_account
    }
}
