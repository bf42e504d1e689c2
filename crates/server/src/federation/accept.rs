//! What comes in through the listeners: a connection from its first byte to the end of the TLS handshake.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::Instant;
use trunkline_xml::Event;
use trunkline_xmpp::error::{StreamCondition, StreamError};
use trunkline_xmpp::ns;

use super::budget::Unproved;
use super::elements::{printable, read_header};
use super::line::Role;
use super::shared::Shared;
use super::trunk::tls_words;
use super::wire::{self, Offers, Wire, WireError};
use crate::admin::StreamStatus;
use crate::net::{Guard, Side, Transport, listen};

/// An accepted connection.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) transport: Transport,
    /// Where it came from, for people.
    pub(super) peer: String,
    pub(super) direct_tls: bool,
    /// Its place among those that have not proved a domain; `None` in tests.
    pub(super) unproved: Option<Unproved>,
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
        let unproved = match self.shared.let_in(peer.ip()) {
            Ok(unproved) => unproved,
            Err(name) => {
                // Nothing is said: whoever floods us doesn't read, and whoever doesn't comes again.
                self.shared.refused(
                    name,
                    &peer.ip().to_string(),
                    0,
                    "too many that have not proved a domain",
                );
                return;
            }
        };
        let arrival = Arrival {
            unproved: Some(unproved),
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

impl Shared {
    /// Serves one accepted connection from its first byte.
    pub(super) async fn accept(self: Arc<Self>, arrival: Arrival) {
        let Arrival { unproved, transport, peer, direct_tls, guard } = arrival;
        if !self.is_open() {
            // Cut off: nothing is said, nothing is read.
            self.exchange.metrics.refused("federation-closed");
            return;
        }
        if !self.turn_in(&peer).await {
            self.refused("federation-reopening", &peer, 0, "too many at once after a reopening");
            return;
        }
        let within = self.exchange.config.load().federation.handshake_timeout;
        let prove_by = Instant::now() + within;
        let wire = Wire::new(transport, self.early_limits());
        let secure = tokio::time::timeout_at(prove_by, self.secure(wire, direct_tls, guard.as_ref()));
        let secured = tokio::select! {
            secured = secure => secured,
            _ = self.until_forbidden(None) => {
                self.exchange.metrics.refused("federation-closed");
                return;
            }
        };
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
        line.unproved = unproved;
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
            Some(guard) => guard.handshake(handshake).await.map_err(|late| ("tls-timeout", late.to_string())),
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
                detail: format!("asked for {}", printable(&head.to)),
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
