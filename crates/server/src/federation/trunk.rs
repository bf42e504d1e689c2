//! The making of streams: attempts to reach a peer as long as something waits for it, and what comes in through the
//! listeners.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::Instant;
use trunkline_xml::Event;
use trunkline_xmpp::error::{StreamCondition, StreamError};
use trunkline_xmpp::ns;

use super::dial::{self, Dialled};
use super::failure::Failure;
use super::incoming::read_header;
use super::line::{Clocks, Line, Proved, Role, Sending, Stage};
use super::management;
use super::peer::{Bounce, Command, Handle, Pair};
use super::wire::{self, Offers, Wire, WireError};
use super::{MOST_PEERS, Shared};
use crate::admin::StreamStatus;
use crate::metrics::Direction;
use crate::net::{Guard, Side, Transport, listen};

impl Shared {
    /// Starts looking after `pair`.
    pub(super) fn start_trunk(self: &Arc<Self>, pair: &Arc<Pair>) {
        let (shared, pair) = (Arc::clone(self), Arc::clone(pair));
        self.runtime.spawn(async move { shared.trunk(&pair).await });
    }

    /// Makes attempts until a stream carries the pair or nothing is left to send.
    async fn trunk(self: &Arc<Self>, pair: &Arc<Pair>) {
        while !self.is_stopping() && pair.next_attempt(self).await {
            pair.load_now(self).await;
            if pair.rest() {
                return;
            }
            let failure = match self.attempt(pair).await {
                Ok(()) => return,
                Err(failure) => failure,
            };
            self.note_failure(pair, &failure);
            if failure.is_final() {
                self.give_up(pair, &failure).await;
            }
            if !pair.failed(self, failure) {
                return;
            }
        }
    }

    /// One attempt. `Ok`: a stream carries the pair.
    async fn attempt(self: &Arc<Self>, pair: &Arc<Pair>) -> Result<(), Failure> {
        if !self.may_talk(pair.peer.as_str()) {
            return Err(Failure::Policy);
        }
        let Some(peer) = self.peer(&pair.peer, MOST_PEERS) else {
            return Err(Failure::Unreachable("too many domains at once".into()));
        };
        // Somebody who writes to many domains that do not answer takes a turn for each, as all others do.
        let all = if pair.is_wanted() { &self.dials } else { &self.answer_dials };
        let turns = async { (peer.dials.acquire().await, all.acquire().await) };
        let within = self.exchange.config.load().federation.connect_timeout;
        let Ok(_turns) = tokio::time::timeout(within, turns).await else {
            return Err(Failure::Unreachable("too many connections are being made at once".into()));
        };
        // The peer may have connected meanwhile, and its stream may go both ways.
        if pair.is_up() || self.share_stream(pair).await {
            return Ok(());
        }
        let dialled = dial::dial(self, &pair.local, &pair.peer).await?;
        self.open_line(pair, dialled);
        Ok(())
    }

    /// XEP-0220 s.2.5: another of our domains may have a stream to this peer that takes us along.
    async fn share_stream(self: &Arc<Self>, pair: &Arc<Pair>) -> bool {
        if !self.dialback_with(pair.peer.as_str()) {
            return false;
        }
        let Some(handle) = self.sharable(&pair.peer) else { return false };
        let (answer, outcome) = oneshot::channel();
        handle.ask(Command::Carry { pair: Arc::clone(pair), answer });
        let within = self.exchange.config.load().federation.connect_timeout;
        // Any stream error in between drops the sender of the answer.
        matches!(tokio::time::timeout(within, outcome).await, Ok(Ok(true))) && pair.is_up()
    }

    /// Puts a stream to work.
    fn open_line(self: &Arc<Self>, pair: &Arc<Pair>, dialled: Dialled) {
        let now = Instant::now();
        let tls = dialled.wire.transport.tls().cloned();
        let proof = dialled.proof;
        let version = tls.as_ref().map_or("none", |tls| tls.version);
        self.exchange.metrics.federation_stream(Direction::Out, proof, version);
        let status = StreamStatus {
            direction: if dialled.bidi { "both" } else { "out" }.into(),
            us: pair.local.domain.as_str().to_owned(),
            address: dialled.address.clone(),
            they_proved: Some(dialled.verdict.to_string()),
            we_proved: Some(proof.into()),
            tls: tls.as_ref().map(|tls| tls_words(tls)),
            direct_tls: dialled.direct_tls,
            acks: false,
            since: self.now(),
        };
        let handle = self.add_line(status);
        *handle.peer.lock() = Some(pair.peer.clone());
        tracing::info!(
            conn = handle.serial,
            peer = pair.peer.as_str(),
            local = pair.local.domain.as_str(),
            proof,
            tls = version,
            bidi = dialled.bidi,
            "stream to peer is up"
        );
        let Dialled { wire, id, lang, offers, bidi, .. } = dialled;
        let mut line = self.line(Arc::clone(&handle), Role::Out, wire);
        line.stage = Stage::Open;
        line.opened = true;
        line.id = id;
        line.lang = lang;
        line.bidi = bidi;
        line.local = Some(Arc::clone(&pair.local));
        line.claimed = Some(pair.peer.clone());
        line.scanner.set_limits(self.scan_limits());
        if offers.management {
            line.out.extend_from_slice(&management::enable());
            line.sending = Sending::Enabling(now);
        }
        if bidi && let Some(peer) = self.peer(&pair.peer, MOST_PEERS) {
            line.proved.push(Proved { peer, local: Arc::clone(&pair.local), _place: None });
        }
        if offers.dialback {
            self.note_sharable(&handle);
        }
        line.carry(pair);
        self.runtime.spawn(line.serve());
    }

    fn line(self: &Arc<Self>, handle: Arc<Handle>, role: Role, wire: Wire) -> Line {
        let now = Instant::now();
        Line {
            shared: Arc::clone(self),
            handle,
            role,
            stage: Stage::Header,
            transport: wire.transport,
            scanner: wire.scanner,
            backlog: wire.input,
            out: Vec::new(),
            writing: Vec::new(),
            flush: false,
            sending: Sending::Unmanaged,
            ledger: None,
            settled: Arc::new(AtomicBool::new(false)),
            ack_due: None,
            proved: Vec::new(),
            carried: Vec::new(),
            turn: 0,
            asking: Vec::new(),
            checking: 0,
            requests: 0,
            bidi: false,
            external: false,
            local: None,
            claimed: None,
            id: String::new(),
            lang: None,
            opened: false,
            since: now,
            clocks: Clocks::new(now),
            timer: Box::pin(tokio::time::sleep_until(now)),
            epoch: self.epoch(),
        }
    }

    fn note_failure(&self, pair: &Pair, failure: &Failure) {
        let detail = format!("{} to {}: {failure}", pair.local.domain, pair.peer);
        self.refused(failure.label(), pair.peer.as_str(), 0, &detail);
    }

    /// Bounces all that waits for a domain that does not exist, or must not be talked to.
    async fn give_up(self: &Arc<Self>, pair: &Arc<Pair>, failure: &Failure) {
        loop {
            let bounces: Vec<Bounce> = pair.give_up();
            if bounces.is_empty() {
                return;
            }
            pair.forget(bounces.iter().filter(|bounce| bounce.kept.is_some()).count());
            self.bounce(bounces, failure.stanza_error());
            pair.load_now(self).await;
        }
    }

    // ---- incoming

    /// Serves one accepted connection from its first byte.
    pub(super) async fn accept(self: Arc<Self>, arrival: Arrival) {
        let Arrival { transport, peer, direct_tls, guard } = arrival;
        let within = self.exchange.config.load().federation.handshake_timeout;
        let prove_by = Instant::now() + within;
        let wire = Wire::new(transport, self.early_limits());
        let secured = tokio::time::timeout_at(prove_by, self.secure(wire, direct_tls, guard.as_ref())).await;
        let wire = match secured {
            Ok(Ok(wire)) => wire,
            Ok(Err(refusal)) => {
                if let Some((name, detail)) = refusal {
                    self.refused(name, &peer, 0, &detail);
                }
                return;
            }
            Err(_) => {
                self.refused("tls-timeout", &peer, 0, "no TLS in time");
                return;
            }
        };
        let status = StreamStatus {
            direction: "in".into(),
            address: peer,
            tls: wire.transport.tls().map(|tls| tls_words(tls)),
            direct_tls,
            since: self.now(),
            ..StreamStatus::default()
        };
        let handle = self.add_line(status);
        let mut line = self.line(handle, Role::In, wire);
        line.clocks.prove_by = Some(prove_by);
        line.serve().await;
        drop(guard);
    }

    /// Up to the end of the TLS handshake. The error has a name when the peer is at fault.
    async fn secure(
        &self,
        mut wire: Wire,
        direct_tls: bool,
        guard: Option<&Guard>,
    ) -> Result<Wire, Option<(&'static str, String)>> {
        let mut hint = None;
        if !direct_tls {
            match self.before_tls(&mut wire).await {
                Ok(to) => hint = Some(to),
                Err(stop) => {
                    let mut out = Vec::new();
                    if !stop.opened {
                        out = wire::header(&wire::Greeting {
                            from: None,
                            to: None,
                            id: Some(&crate::ids::token(12)),
                        });
                    }
                    if let Some(error) = &stop.error {
                        self.exchange.metrics.stream_error(error.condition().as_str());
                    }
                    out.extend_from_slice(&wire::farewell(stop.error.as_ref()));
                    let _ = wire.send(&out).await;
                    let _ = wire.transport.close().await;
                    return Err(stop.name.map(|name| (name, stop.detail)));
                }
            }
        }
        let Wire { transport, mut scanner, .. } = wire;
        scanner.restart();
        let handshake = transport.accept_tls(&self.certs, Side::Servers, hint.as_deref());
        let outcome = match guard {
            Some(guard) => {
                guard.gate().handshake(handshake).await.map_err(|late| ("tls-timeout", late.to_string()))
            }
            None => Ok(handshake.await),
        };
        match outcome {
            Ok(Ok(transport)) => Ok(Wire { transport, scanner, input: Vec::new() }),
            Ok(Err(error)) => Err(Some(("tls-handshake", error.to_string()))),
            Err(late) => Err(Some(late)),
        }
    }

    /// RFC 6120 s.5: nothing but STARTTLS. Returns for which of our domains the stream is.
    async fn before_tls(&self, wire: &mut Wire) -> Result<String, Stop> {
        let header = match wire.next().await? {
            Event::Open(header) => header,
            _ => return Err(Stop::new("stream-out-of-order", StreamCondition::InvalidXml)),
        };
        let head = read_header(&header).map_err(|condition| Stop::new("stream-header", condition))?;
        let local = self.exchange.served(&head.to);
        let id = crate::ids::token(18);
        let hello = wire::header(&wire::Greeting {
            from: local.as_ref().map(|local| &local.domain),
            to: head.from.as_ref(),
            id: Some(&id),
        });
        wire.send(&hello).await?;
        if local.is_none() {
            let name = "host-unknown";
            return Err(Stop {
                detail: format!("asked for {}", super::incoming::printable(&head.to)),
                ..Stop::new(name, StreamCondition::HostUnknown).opened()
            });
        }
        if head.from.as_ref().is_some_and(|from| !self.may_talk(from.as_str())) {
            return Err(Stop::new("peer-blocked", StreamCondition::PolicyViolation).opened());
        }
        let offers = Offers { starttls: true, ..Offers::default() };
        wire.send(&offers.write()).await?;
        let element = match wire.next().await? {
            Event::Element(element) => element,
            Event::Close => return Err(Stop::closed()),
            _ => return Err(Stop::new("stream-out-of-order", StreamCondition::InvalidXml).opened()),
        };
        let root = element.root();
        if !root.is(ns::TLS, "starttls") {
            let condition = if root.is(ns::STREAMS, "error") {
                return Err(Stop::closed());
            } else if root.ns() == ns::SERVER {
                StreamCondition::NotAuthorized
            } else {
                StreamCondition::PolicyViolation
            };
            return Err(Stop::new("before-tls", condition).opened());
        }
        // RFC 6120 s.5.4.3.3: what came in the clear must not be read inside TLS.
        if !wire.input.is_empty() {
            return Err(Stop::new("plaintext-after-starttls", StreamCondition::PolicyViolation).opened());
        }
        wire.send(b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await?;
        Ok(head.to)
    }
}

/// An accepted connection.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) transport: Transport,
    /// Where it came from, for people.
    pub(super) peer: String,
    pub(super) direct_tls: bool,
    /// Its place; `None` in tests.
    pub(super) guard: Option<Guard>,
}

/// Takes what a listener accepted.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) shared: Arc<Shared>,
    pub(super) direct_tls: bool,
}

impl listen::Handler for Door {
    fn connection(&self, stream: TcpStream, peer: SocketAddr, guard: Guard) {
        if !self.shared.is_open() {
            // Cut off: nothing is said, nothing is read.
            self.shared.exchange.metrics.refused("federation-closed");
            return;
        }
        let arrival = Arrival {
            transport: stream.into(),
            peer: peer.to_string(),
            direct_tls: self.direct_tls,
            guard: Some(guard),
        };
        let shared = Arc::clone(&self.shared);
        self.shared.runtime.spawn(shared.accept(arrival));
    }

    fn refused(&self, peer: IpAddr, why: listen::Refused) {
        self.shared.refused(why.label(), &peer.to_string(), 0, "connection refused");
    }
}

/// Why an incoming stream ends before TLS.
struct Stop {
    error: Option<StreamError>,
    /// Our header stands on the stream.
    opened: bool,
    name: Option<&'static str>,
    detail: String,
}

impl Stop {
    fn new(name: &'static str, condition: StreamCondition) -> Stop {
        let detail = condition.as_str().to_owned();
        Stop { error: Some(StreamError::new(condition)), opened: false, name: Some(name), detail }
    }

    fn closed() -> Stop {
        Stop { error: None, opened: true, name: None, detail: String::new() }
    }

    fn opened(self) -> Stop {
        Stop { opened: true, ..self }
    }
}

impl From<WireError> for Stop {
    fn from(error: WireError) -> Stop {
        match error {
            WireError::Io(_) | WireError::Closed => Stop::closed(),
            WireError::Xml(error) => Stop {
                error: Some(StreamError::from(&error)),
                opened: false,
                name: Some(error.label()),
                detail: error.to_string(),
            },
        }
    }
}

impl From<std::io::Error> for Stop {
    fn from(_: std::io::Error) -> Stop {
        Stop::closed()
    }
}

/// `1.3, TLS_AES_256_GCM_SHA384, X25519MLKEM768`
fn tls_words(tls: &crate::net::TlsInfo) -> String {
    let version = tls.version.trim_start_matches("TLSv");
    format!("{version}, {}, {}", tls.cipher, tls.key_exchange)
}
