//! From an accepted socket to a bound resource: TLS, SASL, resumption or binding (RFC 6120 s.4 to s.7).
//!
//! Straight-line code: each step reads what may come there and refuses the rest by name. Nothing here is on
//! the way of a message.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use trunkline_xml::{Element, Event, Limits, Scanner, Writer};
use trunkline_xmpp::error::{Condition, StanzaError, StreamCondition, StreamError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::sasl;
use trunkline_xmpp::stanza::{IqType, Kind, Stanza};

use super::client::{Budget, Connection, Seat};
use super::{Session, management};
use crate::config::{Registration, TlsPolicy};
use crate::exchange::{Exchange, Host};
use crate::logging::Refusal;
use crate::net::{CertStore, Gate, Guard, Side, Transport};
use crate::route::account::{Account, Resource};

/// Failed logins on one stream before it is closed (RFC 6120 s.6.4.5 allows 2 to 5).
const MOST_FAILURES: u32 = 4;
/// Bytes read at once while negotiating.
const READ: usize = 4096;

/// How a client arrived.
#[derive(Debug)]
pub struct Arrival {
    /// The connection.
    pub transport: Transport,
    /// Where it came from.
    pub peer: SocketAddr,
    /// Our certificates.
    pub certificates: Option<Arc<CertStore>>,
    /// How the connection is protected.
    pub entry: Entry,
    /// Its place among the connections, given back at the end.
    pub guard: Option<Guard>,
}

/// How a listener's connections begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// In the clear, with STARTTLS offered; whether it must be taken.
    StartTls(TlsPolicy),
    /// With a TLS handshake (XEP-0368).
    DirectTls,
    /// Logged in already, as this account: for clients inside this process.
    Seated(Jid),
}

/// Why negotiation ended without a session.
enum Stop {
    /// A stream error to send.
    Error(StreamError),
    /// The client closed its stream.
    Closed,
    /// The socket is gone, or the client was too slow; nothing to say.
    Lost,
}

impl From<StreamCondition> for Stop {
    fn from(condition: StreamCondition) -> Stop {
        Stop::Error(StreamError::new(condition))
    }
}

impl From<std::io::Error> for Stop {
    fn from(_: std::io::Error) -> Stop {
        Stop::Lost
    }
}

/// A connection that is not bound yet.
struct Negotiation {
    exchange: Arc<Exchange>,
    transport: Transport,
    certificates: Option<Arc<CertStore>>,
    /// Bounds handshakes; connections that came through no gate are our own.
    gate: Option<Arc<Gate>>,
    peer: SocketAddr,
    entry: Entry,
    serial: u64,
    scanner: Scanner,
    /// Bytes read and not scanned.
    input: Vec<u8>,
    host: Option<Arc<Host>>,
    lang: Option<Arc<str>>,
    preauth: crate::modules::registration::Preauth,
    /// A header of ours stands on the stream: errors may follow.
    opened: bool,
}

/// Serves one client connection from accept to its end.
pub async fn serve(exchange: Arc<Exchange>, arrival: Arrival) {
    let _open = exchange.metrics.connection(crate::metrics::Link::Client);
    let config = exchange.config.load_full();
    let serial = super::serial();
    let limits =
        Limits { element_bytes: config.limits.stanza_bytes_unauthenticated, ..scan_limits(&config.limits) };
    let negotiation = Negotiation {
        exchange: Arc::clone(&exchange),
        transport: arrival.transport,
        certificates: arrival.certificates,
        gate: arrival.guard.as_ref().map(|guard| Arc::clone(guard.gate())),
        peer: arrival.peer,
        entry: arrival.entry,
        serial,
        scanner: Scanner::new(limits),
        input: Vec::new(),
        host: None,
        lang: None,
        preauth: crate::modules::registration::Preauth::default(),
        opened: false,
    };
    let _place = arrival.guard;
    let within = config.clients.login_timeout;
    drop(config);
    if let Some(connection) = Box::pin(negotiation.run(within)).await {
        connection.serve().await;
    }
}

/// The scanner's limits for this configuration.
pub fn scan_limits(limits: &crate::config::Limits) -> Limits {
    Limits {
        element_bytes: limits.stanza_bytes,
        header_bytes: limits.header_bytes,
        depth: limits.depth,
        attributes: limits.attributes,
        namespaces: limits.namespaces,
        nodes: limits.nodes,
        ..Limits::default()
    }
}

impl Negotiation {
    async fn run(mut self, within: Duration) -> Option<Connection> {
        let outcome = match tokio::time::timeout(within, self.negotiate()).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.refused("login-timeout", "no login in time");
                Err(StreamCondition::ConnectionTimeout.into())
            }
        };
        match outcome {
            Ok(seat) => Some(self.bound(seat)),
            Err(stop) => {
                self.stop(stop).await;
                None
            }
        }
    }

    async fn stop(mut self, stop: Stop) {
        let mut out = Vec::new();
        match stop {
            Stop::Lost => return,
            Stop::Closed => {}
            Stop::Error(error) => {
                // RFC 6120 s.4.9.1.2: an error before our header needs a header first.
                if !self.opened {
                    self.write_header(&mut out, None);
                }
                self.exchange.metrics.stream_error(error.condition().as_str());
                tracing::debug!(
                    conn = self.serial,
                    peer = %self.peer.ip(),
                    condition = error.condition().as_str(),
                    "stream error sent"
                );
                let mut w = Writer::new();
                error.write(&mut w);
                out.extend_from_slice(&w.finish());
            }
        }
        out.extend_from_slice(b"</stream:stream>");
        let _ = tokio::time::timeout(Duration::from_secs(5), async {
            self.transport.write_all(&out).await?;
            self.transport.shutdown().await
        })
        .await;
    }

    async fn negotiate(&mut self) -> Result<Seat, Stop> {
        let account = match self.entry.clone() {
            Entry::Seated(jid) => match self.exchange.accounts.load(&self.exchange.db, &jid).await {
                Ok(Some(account)) => Arc::clone(&account),
                _ => return Err(StreamCondition::NotAuthorized.into()),
            },
            Entry::DirectTls => {
                self.handshake().await?;
                self.open().await?;
                self.authenticate().await?
            }
            Entry::StartTls(policy) => {
                self.open().await?;
                if policy == TlsPolicy::Required {
                    self.require_tls().await?;
                }
                self.authenticate().await?
            }
        };
        self.scanner.restart();
        self.opened = false;
        let config = self.exchange.config.load_full();
        self.scanner.set_limits(scan_limits(&config.limits));
        self.open().await?;
        self.bind(account).await
    }

    /// RFC 6120 s.5: nothing but STARTTLS is offered and nothing else taken.
    async fn require_tls(&mut self) -> Result<(), Stop> {
        let mut w = Writer::new();
        w.open("stream:features");
        w.open("starttls").attr("xmlns", ns::TLS).empty("required").close();
        w.close();
        self.send(&w.finish()).await?;
        let element = self.element().await?;
        let root = element.root();
        if !root.is(ns::TLS, "starttls") {
            return Err(self.too_early(&element));
        }
        self.start_tls().await
    }

    async fn start_tls(&mut self) -> Result<(), Stop> {
        // RFC 6120 s.5.4.2.2 with the lesson of CVE-2021-38604 and its kin: what was sent along with
        // `<starttls/>` in the clear must not be read inside TLS.
        if !self.input.is_empty() {
            self.refused("plaintext-after-starttls", "bytes in the clear behind <starttls/>");
            return Err(StreamCondition::PolicyViolation.into());
        }
        self.send(b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await?;
        self.handshake().await?;
        self.scanner.restart();
        self.opened = false;
        self.open().await
    }

    async fn handshake(&mut self) -> Result<(), Stop> {
        let Some(certificates) = self.certificates.clone() else { return Err(Stop::Lost) };
        let hint = self.host.as_ref().map(|host| host.domain.clone());
        // A stand-in while the socket is inside the handshake; if that fails the socket is gone.
        let plain = std::mem::replace(&mut self.transport, Transport::from(tokio::io::duplex(1).0));
        let handshake = plain.accept_tls(&certificates, Side::Clients, hint.as_ref().map(Jid::as_str));
        let outcome = match self.gate.clone() {
            Some(gate) => gate.handshake(handshake).await,
            None => Ok(handshake.await),
        };
        match outcome {
            Ok(Ok(encrypted)) => {
                self.transport = encrypted;
                Ok(())
            }
            Err(late) => {
                self.refused("tls-timeout", &late.to_string());
                Err(Stop::Lost)
            }
            Ok(Err(error)) => {
                self.refused(error.label(), &error.to_string());
                Err(Stop::Lost)
            }
        }
    }

    fn channel_bindings(&self) -> sasl::ChannelBindings {
        let tls = self.transport.tls();
        sasl::ChannelBindings {
            exporter: tls.and_then(|tls| tls.exporter).map(|data| data.to_vec()),
            server_end_point: tls.and_then(|tls| tls.end_point.clone()),
            unique: None,
        }
    }

    /// What a client gets who sends something before it may: RFC 6120 s.4.9.3.12.
    fn too_early(&self, element: &Element) -> Stop {
        let root = element.root();
        if root.ns() == ns::CLIENT {
            self.refused("stanza-before-login", "a stanza before the login");
            return StreamCondition::NotAuthorized.into();
        }
        if root.ns() == ns::SASL {
            self.refused("sasl-before-tls", "a login without TLS");
            return Stop::Error(
                StreamError::new(StreamCondition::PolicyViolation).text("Use STARTTLS before you log in."),
            );
        }
        self.refusal(StreamCondition::UnsupportedStanzaType, "an element that is not understood here")
    }

    /// RFC 6120 s.6. Returns the account that logged in.
    async fn authenticate(&mut self) -> Result<Arc<Account>, Stop> {
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
                Ok(account) => return Ok(account),
                Err(failure) => {
                    self.exchange.metrics.login(mechanism_label(&mechanism), failure.name());
                    self.exchange.logins.failed_from(self.peer.ip());
                    self.fail(failure).await?;
                    failures += 1;
                    if failures >= MOST_FAILURES {
                        self.refused("too-many-login-failures", "too many failed logins on one stream");
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
        if self.exchange.login_blocked_from(self.peer.ip()) {
            self.refused("login-rate-address", "too many failed logins from this address");
            return Ok(Err(sasl::Failure::TemporaryAuthFailure));
        }
        let offered = match self.exchange.decoys(host).await {
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
                        return Err(
                            self.refusal(StreamCondition::NotAuthorized, "no response to a challenge")
                        );
                    }
                    server.response(&root.text());
                }
                sasl::Step::NeedCredentials { user, hash } => {
                    let jid = address(&user, host);
                    if let Some(jid) = &jid
                        && self.exchange.login_blocked_for(jid)
                    {
                        self.refused("login-rate-account", "too many failed logins for one account");
                        return Ok(Err(sasl::Failure::TemporaryAuthFailure));
                    }
                    match self.exchange.credentials(host, jid.as_ref(), hash).await {
                        Ok(keys) if mechanism == sasl::Mechanism::Plain.name() => {
                            server = match self.exchange.check_password(server, keys).await {
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
                        self.exchange.logins.failed_for(&jid);
                    }
                    return Ok(Err(failure));
                }
                sasl::Step::Done { user, data } => {
                    let Some(jid) = address(&user, host) else {
                        return Ok(Err(sasl::Failure::NotAuthorized));
                    };
                    let account = match self.exchange.accounts.load(&self.exchange.db, &jid).await {
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
                    self.exchange.metrics.login(mechanism_label(mechanism), "ok");
                    return Ok(Ok(account));
                }
            }
        }
    }
}

impl Negotiation {
    /// An IQ before login: only registration may ask (XEP-0077 s.3.1, XEP-0445).
    async fn before_login(&mut self, host: &Arc<Host>, element: Element) -> Result<(), Stop> {
        let Ok(stanza) = Stanza::from_element(element, ns::CLIENT, self.lang.as_deref()) else {
            return Err(self.refusal(StreamCondition::NotAuthorized, "no stanza, before login"));
        };
        let registers = stanza
            .first_child()
            .is_some_and(|payload| payload.ns() == ns::REGISTER || payload.ns() == ns::PARS);
        if !registers {
            self.refused("stanza-before-login", "a stanza before the login");
            return Err(StreamCondition::NotAuthorized.into());
        }
        let asker = crate::modules::registration::Asker { host, address: self.peer.ip() };
        let answer =
            crate::modules::registration::before_login(&self.exchange, asker, &mut self.preauth, &stanza)
                .await;
        let answer = match answer {
            Ok(crate::modules::Reply::Payload(payload)) => Some(stanza.reply().payload(payload).done()),
            Ok(crate::modules::Reply::Empty) => Some(stanza.reply().done()),
            Ok(crate::modules::Reply::Sent) => None,
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

    fn mechanisms(&self, bindings: &sasl::ChannelBindings) -> sasl::Offer {
        let offer = sasl::Offer::new(self.transport.is_encrypted(), bindings);
        let Some(host) = &self.host else { return offer };
        offer.domain(host.domain.as_str())
    }

    /// Features before login: mechanisms, channel-binding types (XEP-0440), registration, limits.
    fn login_features(&self, bindings: &sasl::ChannelBindings) -> Vec<u8> {
        let mut w = Writer::new();
        w.open("stream:features");
        if !self.transport.is_encrypted() && self.certificates.is_some() {
            w.open("starttls").attr("xmlns", ns::TLS).close();
        }
        w.open("mechanisms").attr("xmlns", ns::SASL);
        for name in self.mechanisms(bindings).names() {
            w.open("mechanism").text(name).close();
        }
        w.close();
        let types = bindings.types();
        if !types.is_empty() {
            w.open("sasl-channel-binding").attr("xmlns", ns::SASL_CB);
            for name in types {
                w.open("channel-binding").attr("type", name).close();
            }
            w.close();
        }
        let config = self.exchange.config.load();
        if config.accounts.registration != Registration::Closed {
            w.open("register").attr("xmlns", ns::REGISTER_FEATURE).close();
            w.open("register").attr("xmlns", ns::IBR_TOKEN).close();
        }
        write_limits(&mut w, config.limits.stanza_bytes_unauthenticated, config.clients.login_timeout);
        w.close();
        w.finish()
    }

    /// Features after login.
    fn session_features(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.open("stream:features");
        w.open("bind").attr("xmlns", ns::BIND).close();
        // RFC 3921's session: optional, as draft-cridland-xmpp-session says.
        w.open("session").attr("xmlns", ns::SESSION).empty("optional").close();
        w.open("sm").attr("xmlns", ns::SM).close();
        w.open("csi").attr("xmlns", ns::CSI).close();
        w.open("ver").attr("xmlns", ns::ROSTER_VERSIONING).close();
        w.open("sub").attr("xmlns", ns::PRE_APPROVAL).close();
        w.raw(&crate::modules::disco::caps_feature(&self.exchange));
        let config = self.exchange.config.load();
        write_limits(&mut w, config.limits.stanza_bytes, config.clients.idle_check);
        w.close();
        w.finish()
    }

    /// RFC 6120 s.7, or XEP-0198 s.5.
    async fn bind(&mut self, account: Arc<Account>) -> Result<Seat, Stop> {
        self.send(&self.session_features()).await?;
        loop {
            let element = self.element().await?;
            let root = element.root();
            if root.is(ns::SM, "resume") {
                if let Some(seat) = self.resume(&account, &element).await? {
                    return Ok(seat);
                }
                continue;
            }
            if root.is(ns::SM, "enable") {
                // XEP-0198 s.3: only after binding.
                self.send(&management::failed(Condition::UnexpectedRequest, None)).await?;
                continue;
            }
            if root.ns() != ns::CLIENT {
                return Err(self.refusal(StreamCondition::UnsupportedStanzaType, "no stanza, before binding"));
            }
            let Ok(stanza) = Stanza::from_element(element, ns::CLIENT, self.lang.as_deref()) else {
                return Err(self.refusal(StreamCondition::NotAuthorized, "no stanza, before binding"));
            };
            let bind = stanza.first_child().filter(|payload| payload.is(ns::BIND, "bind"));
            let (Kind::Iq(IqType::Set), Some(bind)) = (stanza.head.kind, bind) else {
                // RFC 6120 s.7.1: nothing before the resource is bound.
                return Err(self.refusal(StreamCondition::NotAuthorized, "a stanza before binding"));
            };
            let wanted = bind
                .child(ns::BIND, "resource")
                .map(|resource| resource.text().into_owned())
                .filter(|resource| !resource.is_empty());
            let full = match wanted {
                Some(wanted) => account.jid.with_resource(&wanted),
                None => account.jid.with_resource(&crate::ids::token(9)),
            };
            let full = match full {
                Ok(full) => full,
                Err(_) => {
                    let error = StanzaError::new(Condition::BadRequest).text("That is no resource.");
                    self.answer(&stanza, &error).await?;
                    continue;
                }
            };
            match self.exchange.bind(account.clone(), full, self.serial) {
                Ok(session) => {
                    let seat = Seat::new(&self.exchange, &session, self.serial);
                    let mut w = Writer::new();
                    w.open("bind").attr("xmlns", ns::BIND);
                    w.open("jid").text(session.jid.as_str()).close();
                    w.close();
                    let mut out = Vec::new();
                    stanza.reply().payload(w.finish()).done().write(&mut out);
                    self.send(&out).await?;
                    return Ok(seat);
                }
                Err(error) => self.answer(&stanza, &error).await?,
            }
        }
    }

    async fn answer(&mut self, stanza: &Stanza, error: &StanzaError) -> Result<(), Stop> {
        let mut out = Vec::new();
        if let Some(answer) = stanza.error(error) {
            answer.write(&mut out);
        }
        self.send(&out).await
    }

    /// XEP-0198 s.5. `None`: the client got `<failed/>` and may bind.
    async fn resume(&mut self, account: &Arc<Account>, element: &Element) -> Result<Option<Seat>, Stop> {
        let root = element.root();
        let (Some(previous), Some(h)) =
            (root.attr("previd"), root.attr("h").and_then(|h| h.parse::<u32>().ok()))
        else {
            self.send(&management::failed(Condition::BadRequest, None)).await?;
            return Ok(None);
        };
        let session = self.exchange.resumable.lock().get(&management::hash(&previous)).cloned();
        let session = session.filter(|session| session.account.id == account.id && !session.is_ended());
        let Some((session, ledger)) =
            session.and_then(|session| Some((Arc::clone(&session), session.ledger()?)))
        else {
            // After a crash, or too late. The kept messages come again with a delay.
            self.send(&management::failed(Condition::ItemNotFound, None)).await?;
            return Ok(None);
        };
        // The old connection, if it still believes to be there, goes without ending the session.
        session.attach(self.serial);
        let seat = Seat::new(&self.exchange, &session, self.serial);
        for _ in 0..10 {
            if ledger.is_settled() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let handled = ledger.rewind();
        let kept = match session.with_outbox(|outbox| outbox.resumed(h)) {
            Ok(kept) => kept,
            Err(sent) => {
                self.refused("resume-count-too-high", "<resume/> counts more than was sent");
                return Err(Stop::Error(management::too_high(h, sent)));
            }
        };
        crate::log::delivered(&self.exchange.db, account.id, &kept);
        let mut w = Writer::new();
        w.open("resumed")
            .attr("xmlns", ns::SM)
            .attr("h", &handled.to_string())
            .attr("previd", &previous)
            .close();
        self.send(&w.finish()).await?;
        self.exchange.metrics.resumed.inc();
        Ok(Some(seat))
    }

    /// Reads the client's stream header and answers with ours.
    async fn open(&mut self) -> Result<(), Stop> {
        loop {
            match self.event().await? {
                Event::Open(header) => {
                    let root = header.root();
                    if root.ns() != ns::STREAMS {
                        return Err(self.refusal(StreamCondition::InvalidNamespace, "the root is no stream"));
                    }
                    if root.name() != "stream" {
                        return Err(self.refusal(StreamCondition::BadFormat, "the root is no stream"));
                    }
                    if header.default_ns() != ns::CLIENT {
                        return Err(self.refusal(StreamCondition::InvalidNamespace, "not a client's stream"));
                    }
                    let lang = root.attr_ns(ns::XML, "lang").map(|lang| Arc::from(&*lang));
                    let from = root.attr("from").and_then(|from| Jid::parse(&from).ok());
                    let host = root
                        .attr("to")
                        .and_then(|to| Jid::parse(&to).ok())
                        .and_then(|to| self.exchange.host(to.as_str()).cloned());
                    let version = root.attr("version").map(|version| version.into_owned());
                    self.lang = lang;
                    let Some(host) = host else {
                        self.refused("host-unknown", "a stream to a domain that is not ours");
                        return Err(StreamCondition::HostUnknown.into());
                    };
                    // RFC 6120 s.4.9.3.6: another host on a stream that has begun.
                    if self.host.as_ref().is_some_and(|before| before.id != host.id) {
                        return Err(
                            self.refusal(StreamCondition::HostUnknown, "another domain on the same stream")
                        );
                    }
                    self.host = Some(host);
                    if version
                        .as_deref()
                        .and_then(|version| version.split('.').next()?.parse::<u32>().ok())
                        .unwrap_or(0)
                        < 1
                    {
                        return Err(
                            self.refusal(StreamCondition::UnsupportedVersion, "a stream without version 1.0")
                        );
                    }
                    let mut out = Vec::new();
                    self.write_header(&mut out, from.as_ref());
                    self.opened = true;
                    return self.send(&out).await;
                }
                Event::Whitespace => {}
                Event::Close => return Err(Stop::Closed),
                Event::Element(_) => return Err(self.refusal(StreamCondition::InvalidXml, "no header")),
            }
        }
    }

    fn write_header(&self, out: &mut Vec<u8>, to: Option<&Jid>) {
        let mut w = Writer::new();
        w.open("stream:stream")
            .attr("xmlns", ns::CLIENT)
            .attr("xmlns:stream", ns::STREAMS)
            .attr("id", &crate::ids::token(12))
            .attr("version", "1.0")
            .attr("xml:lang", "en");
        if let Some(host) = &self.host {
            w.attr("from", host.domain.as_str());
        }
        if let Some(to) = to {
            w.attr("to", to.as_str());
        }
        out.extend_from_slice(b"<?xml version='1.0'?>");
        out.extend_from_slice(&w.finish_header());
    }

    /// A refusal whose name is the condition's.
    fn refusal(&self, condition: StreamCondition, detail: &str) -> Stop {
        self.refused(condition.as_str(), detail);
        condition.into()
    }

    fn refused(&self, name: &'static str, detail: &str) {
        let peer = self.peer.ip().to_string();
        self.exchange.refusals.report(Refusal { name, peer: &peer, conn: self.serial, detail });
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.transport.write_all(bytes).await?;
        self.transport.flush().await?;
        Ok(())
    }

    /// The next element; whitespace is passed over, the end of the stream is the end.
    async fn element(&mut self) -> Result<Element, Stop> {
        loop {
            match self.event().await? {
                Event::Element(element) => return Ok(element),
                Event::Whitespace => {}
                Event::Close => return Err(Stop::Closed),
                Event::Open(_) => return Err(self.refusal(StreamCondition::InvalidXml, "a second header")),
            }
        }
    }

    async fn event(&mut self) -> Result<Event, Stop> {
        loop {
            let mut rest = self.input.as_slice();
            let event = self.scanner.next(&mut rest);
            let used = self.input.len() - rest.len();
            self.input.drain(..used);
            match event {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(error) => {
                    self.refused(error.label(), &error.to_string());
                    return Err(Stop::Error(StreamError::from(&error)));
                }
            }
            let mut buffer = [0u8; READ];
            let read = self.transport.read(&mut buffer).await?;
            if read == 0 {
                return Err(Stop::Lost);
            }
            self.input.extend_from_slice(&buffer[..read]);
        }
    }

    fn bound(self, seat: Seat) -> Connection {
        let session = Arc::clone(seat.session());
        session.vitals.heard.store(self.exchange.clock().now(), std::sync::atomic::Ordering::Relaxed);
        Connection {
            budget: Budget::new(&self.exchange),
            exchange: self.exchange,
            session,
            seat: Some(seat),
            serial: self.serial,
            transport: self.transport,
            scanner: self.scanner,
            lang: self.lang,
            unsent: Vec::new(),
            unsent_kept: Vec::new(),
            backlog: self.input,
            work: None,
            working_since: None,
            refill: None,
            brake: None,
            flush: false,
        }
    }
}

/// XEP-0478.
fn write_limits(w: &mut Writer, bytes: usize, idle: Duration) {
    w.open("limits").attr("xmlns", ns::STREAM_LIMITS);
    w.open("max-bytes").text(&bytes.to_string()).close();
    w.open("idle-seconds").text(&idle.as_secs().to_string()).close();
    w.close();
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
    /// Binds a resource: a new session wins, the old one of the same name gets `conflict`
    /// (RFC 6120 s.7.7.2.2).
    fn bind(
        self: &Arc<Self>,
        account: Arc<Account>,
        full: Jid,
        serial: u64,
    ) -> Result<Arc<Session>, StanzaError> {
        let most = self.config.load().clients.max_sessions_per_account;
        let mut state = loop {
            let state = account.state();
            let old = state.resource(full.resource().unwrap_or_default());
            // Two may bind the same resource at the same time: only under the lock nobody comes in between.
            let Some(old) = old.map(|resource| Arc::clone(&resource.session)) else { break state };
            drop(state);
            old.close(super::Close {
                error: Some(StreamError::new(StreamCondition::Conflict)),
                resumable: false,
            });
            self.end_session(&old, Some("Replaced by new connection"));
        };
        if state.removed {
            return Err(StanzaError::new(Condition::NotAuthorized));
        }
        if state.resources.len() >= most {
            let peer = account.jid.as_str();
            let detail = "too many devices of one account";
            self.refusals.report(Refusal { name: "too-many-sessions", peer, conn: serial, detail });
            return Err(StanzaError::new(Condition::ResourceConstraint)
                .text(format!("An account may have {most} devices connected.")));
        }
        let session = Session::new(serial, full, Arc::clone(&account), self.bounds());
        state.resources.push(Resource::new(Arc::clone(&session)));
        self.metrics.sessions.inc();
        Ok(session)
    }

    fn login_blocked_from(&self, address: std::net::IpAddr) -> bool {
        let config = self.config.load();
        config.limits.enabled
            && self.logins.from_address(address) >= config.clients.login_failures_per_address
    }

    fn login_blocked_for(&self, account: &Jid) -> bool {
        let config = self.config.load();
        config.limits.enabled && self.logins.of_account(account) >= config.clients.login_failures_per_account
    }
}
