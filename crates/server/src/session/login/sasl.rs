//! The login itself (RFC 6120 s.6), and registering before it (XEP-0077).

use std::net::IpAddr;
use std::sync::Arc;

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

impl Negotiation {
    /// RFC 6120 s.6. Returns the account that logged in.
    pub(super) async fn authenticate(&mut self) -> Result<Arc<Account>, Stop> {
        let host = self.host.clone().ok_or(StreamCondition::HostUnknown)?;
        let bindings = self.channel_bindings();
        let mut failures = 0;
        self.send(&self.login_features(&bindings)).await?;
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
            if root.ns() != ns::SASL {
                return Err(self.too_early(&element));
            }
            let mechanism = root.attr("mechanism").map(|name| name.into_owned()).unwrap_or_default();
            let initial = root.text().into_owned();
            let outcome = match root.name() {
                "auth" => self.attempt(&host, &mechanism, &initial, &bindings).await?,
                // s.6.4.4: nothing is under way that could be aborted or answered.
                "abort" => Err(sasl::Failure::Aborted),
                _ => Err(sasl::Failure::MalformedRequest),
            };
            match outcome {
                Ok(account) => {
                    self.guess = None;
                    return Ok(account);
                }
                Err(failure) => {
                    self.desk.exchange.metrics.login(mechanism_label(&mechanism), failure.name());
                    // What was not looked at, for rates or faults of ours, is nobody's failure.
                    if failure != sasl::Failure::TemporaryAuthFailure {
                        self.desk.exchange.logins.failed_from(self.address.ip());
                    }
                    self.guess = None;
                    self.fail(failure).await?;
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

    /// One run of a mechanism.
    async fn attempt(
        &mut self,
        host: &Arc<Host>,
        mechanism: &str,
        initial: &str,
        bindings: &sasl::ChannelBindings,
    ) -> Result<Result<Arc<Account>, sasl::Failure>, Stop> {
        if self.desk.exchange.login_blocked_from(self.address.ip()) {
            self.desk.refused(FROM_ADDRESS.0, FROM_ADDRESS.1);
            return Ok(Err(sasl::Failure::TemporaryAuthFailure));
        }
        let offered = match self.desk.exchange.decoys(host).await {
            Ok(decoys) => self.mechanisms(bindings).decoys(decoys),
            Err(error) => {
                tracing::error!(%error, "credentials can't be read");
                return Ok(Err(sasl::Failure::TemporaryAuthFailure));
            }
        };
        let mut server = match sasl::Server::start(mechanism, initial, &offered, bindings) {
            Ok(server) => server,
            Err(failure) => return Ok(Err(failure)),
        };
        loop {
            match server.step() {
                sasl::Step::Challenge(text) => {
                    let mut w = Writer::new();
                    w.open("challenge").attr("xmlns", ns::SASL).text(&text).close();
                    self.send(&w.finish()).await?;
                    let element = self.element().await?;
                    let root = element.root();
                    if root.is(ns::SASL, "abort") {
                        return Ok(Err(sasl::Failure::Aborted));
                    }
                    if !root.is(ns::SASL, "response") {
                        return Err(self
                            .desk
                            .refusal(StreamCondition::NotAuthorized, "no response to a challenge"));
                    }
                    // Who has said its name shows its proof now.
                    let user = server.user().and_then(|user| address(user, host));
                    if let Err(failure) = user.map_or(Ok(()), |jid| self.guess(jid)) {
                        return Ok(Err(failure));
                    }
                    server.response(&root.text());
                }
                sasl::Step::NeedCredentials { user, hash } => {
                    let jid = address(&user, host);
                    if let Some(jid) = &jid
                        && self.desk.exchange.login_blocked_for(jid)
                    {
                        self.desk.refused(FOR_ACCOUNT.0, FOR_ACCOUNT.1);
                        return Ok(Err(sasl::Failure::TemporaryAuthFailure));
                    }
                    match self.desk.exchange.credentials(host, jid.as_ref(), hash).await {
                        Ok(keys) if mechanism == sasl::Mechanism::Plain.name() => {
                            let turn = self.desk.exchange.password_turn().await;
                            if let Err(failure) = jid.map_or(Ok(()), |jid| self.guess(jid)) {
                                return Ok(Err(failure));
                            }
                            server = match self.desk.exchange.check_password(turn, server, keys).await {
                                Ok(server) => server,
                                Err(failure) => return Ok(Err(failure)),
                            };
                        }
                        Ok(keys) => server.credentials(keys),
                        Err(error) => {
                            tracing::error!(%error, "credentials can't be read");
                            return Ok(Err(sasl::Failure::TemporaryAuthFailure));
                        }
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
                    let account = match self.desk.exchange.accounts.load(&self.desk.exchange.db, &jid).await {
                        Ok(Some(account)) => Arc::clone(&account),
                        Ok(None) => return Ok(Err(sasl::Failure::NotAuthorized)),
                        Err(_) => return Ok(Err(sasl::Failure::TemporaryAuthFailure)),
                    };
                    let mut w = Writer::new();
                    w.open("success").attr("xmlns", ns::SASL);
                    if let Some(data) = &data {
                        w.text(data);
                    }
                    w.close();
                    self.send(&w.finish()).await?;
                    self.desk.exchange.metrics.login(mechanism_label(mechanism), "ok");
                    return Ok(Ok(account));
                }
            }
        }
    }

    /// A proof or password is about to be checked: it counts as a failure from here on until it was right.
    fn guess(&mut self, account: Jid) -> Result<(), sasl::Failure> {
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

    async fn fail(&mut self, failure: sasl::Failure) -> Result<(), Stop> {
        let mut w = Writer::new();
        w.open("failure").attr("xmlns", ns::SASL).empty(failure.condition());
        w.close();
        self.send(&w.finish()).await
    }

    pub(super) fn mechanisms(&self, bindings: &sasl::ChannelBindings) -> sasl::Offer {
        let offer = sasl::Offer::new(self.transport.is_encrypted(), bindings);
        let Some(host) = &self.host else { return offer };
        offer.domain(host.domain.as_str())
    }
}

/// The account of that name at this host. The name is the client's: a `/` or `@` in it must not lead to another
/// domain, so it is a local part or nothing.
fn address(user: &str, host: &Host) -> Option<Jid> {
    Jid::from_parts(Some(user), host.domain.domain(), None).ok()
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
