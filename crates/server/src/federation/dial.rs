//! Connecting to a peer and agreeing on a stream, up to the point where one of our domains is proved.
//!
//! Straight-line: resolve, connect, header, STARTTLS, verdict, header, bidi, EXTERNAL or dialback. Each step reads what
//! may come there and refuses the rest by name.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use trunkline_xml::{Element, Event, Writer};
use trunkline_xmpp::error::{Condition, StreamError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

use super::dialback::{self, Dialback, Kind, Outcome, Say};
use super::elements::{peer_failure, printable, read_header};
use super::failure::Failure;
use super::shared::Shared;
use super::wire::{self, Offers, Wire, WireError};
use crate::exchange::Host;
use crate::net::{
    ConnectError, ConnectOptions, Connected, Target, TlsInfo, Transport, Verdict, connect, dns, targets,
};

/// How connections are made.
#[derive(Clone, Debug, Default)]
pub(crate) enum Network {
    /// TCP.
    #[default]
    Tcp,
    /// Between the servers of a test.
    #[cfg(test)]
    Memory(Arc<super::tests::Wires>),
}

impl Network {
    async fn connect(
        &self,
        targets: &[Target],
        options: &ConnectOptions,
    ) -> Result<Connected<Transport>, ConnectError> {
        match self {
            Network::Tcp => {
                let Connected { stream, target, address } = connect(targets, options).await?;
                Ok(Connected { stream: stream.into(), target, address })
            }
            #[cfg(test)]
            Network::Memory(wires) => {
                crate::net::connect::race(targets, options, |address| {
                    let wires = Arc::clone(wires);
                    async move { wires.dial(address) }
                })
                .await
            }
        }
    }
}

/// What we want a stream for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Stanzas.
    Send,
    /// To ask about a dialback key.
    Ask,
}

/// An outgoing stream on which one of our domains is proved.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) wire: Wire,
    pub(super) id: String,
    pub(super) lang: Option<Arc<str>>,
    pub(super) offers: Offers,
    pub(super) bidi: bool,
    /// How we proved our domain.
    pub(super) proof: &'static str,
    /// What the peer's certificate is worth.
    pub(super) verdict: Verdict,
    pub(super) direct_tls: bool,
    pub(super) address: String,
}

/// A stream in negotiation.
struct Dialling<'a> {
    shared: &'a Arc<Shared>,
    local: &'a Arc<Host>,
    peer: &'a Jid,
    wire: Wire,
    id: String,
    lang: Option<Arc<str>>,
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Failure {
        match error {
            WireError::Io(error) => Failure::Lost(error.to_string()),
            WireError::Closed => Failure::Lost("closed without a farewell".into()),
            WireError::Xml(error) => Failure::Protocol(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Lost(error.to_string())
    }
}

/// Connects to the peer and proves `local` to it.
pub(super) async fn dial(shared: &Arc<Shared>, local: &Arc<Host>, peer: &Jid) -> Result<Dialled, Failure> {
    let within = shared.exchange.config.load().federation.connect_timeout;
    tokio::time::timeout(within, reach(shared, local, peer, Purpose::Send))
        .await
        .unwrap_or_else(|_| Err(Failure::Timeout(within.as_secs())))
}

/// Asks the authoritative server of a domain whether a key is its own (XEP-0220 s.2.3).
pub(super) async fn ask(shared: &Arc<Shared>, question: &Dialback) -> Result<bool, Failure> {
    let within = shared.exchange.config.load().federation.connect_timeout;
    let local = shared
        .exchange
        .served(question.from.as_str())
        .ok_or_else(|| Failure::Policy("not a domain of ours".into()))?;
    let asking = async {
        let mut stream = reach(shared, &local, &question.to, Purpose::Ask).await?.wire;
        stream.send(&question.write()).await?;
        let outcome = loop {
            let element = next_element(&mut stream).await?;
            let root = element.root();
            let Some(answer) = (root.ns() == ns::DIALBACK).then(|| Dialback::parse(root).ok()).flatten()
            else {
                continue;
            };
            // Only the answer to this very question counts.
            if answer.kind == question.kind && answer.from == question.to && answer.to == question.from {
                match answer.say {
                    Say::Outcome(Outcome::Valid) => break Ok(true),
                    Say::Outcome(Outcome::Invalid) => break Ok(false),
                    Say::Outcome(Outcome::Error(condition)) => break Err(dialback_failure(condition)),
                    Say::Key(_) => {}
                }
            }
        };
        let _ = stream.send(&wire::farewell(None)).await;
        let _ = stream.transport.close().await;
        outcome
    };
    tokio::time::timeout(within, asking).await.unwrap_or(Err(Failure::Timeout(within.as_secs())))
}

/// Tries the peer's hosts in order: where one host's TLS or XMPP is broken, the next may do.
async fn reach(
    shared: &Arc<Shared>,
    local: &Arc<Host>,
    peer: &Jid,
    purpose: Purpose,
) -> Result<Dialled, Failure> {
    let mut targets = find(shared, peer).await?;
    let options = connect_options(shared);
    loop {
        let connected = shared
            .network
            .connect(&targets, &options)
            .await
            .map_err(|error| Failure::Unreachable(error.to_string()))?;
        let direct_tls = targets[connected.target].direct_tls;
        let address = connected.address.to_string();
        let wire = Wire::new(connected.stream, shared.early_limits());
        let dialling = Dialling { shared, local, peer, wire, id: String::new(), lang: None };
        match dialling.negotiate(direct_tls, purpose).await {
            Ok(dialled) => return Ok(Dialled { address, ..dialled }),
            Err(failure) => {
                let broken =
                    matches!(failure, Failure::Handshake(_) | Failure::Lost(_) | Failure::Protocol(_));
                targets.drain(..=connected.target);
                if !broken || targets.is_empty() {
                    return Err(failure);
                }
            }
        }
    }
}

fn connect_options(shared: &Shared) -> ConnectOptions {
    let config = shared.exchange.config.load();
    let total = config.federation.connect_timeout;
    ConnectOptions {
        allow_private: config.federation.allow_private,
        attempt: Duration::from_secs(10).min(total),
        total,
        ..ConnectOptions::default()
    }
}

async fn find(shared: &Shared, peer: &Jid) -> Result<Vec<Target>, Failure> {
    let route = shared.exchange.config.load().federation.routes.get(peer.as_str()).cloned();
    let found = match route {
        Some(route) => dns::route(&shared.resolver, &route.host, route.port, route.direct_tls).await,
        None => targets(&shared.resolver, peer.as_str(), &dns::random_pick).await,
    };
    found.map_err(|error| {
        if error.is_temporary() {
            Failure::Unreachable(error.to_string())
        } else {
            Failure::NotFound(error.to_string())
        }
    })
}

impl Dialling<'_> {
    async fn negotiate(mut self, direct_tls: bool, purpose: Purpose) -> Result<Dialled, Failure> {
        if direct_tls {
            self = self.start_tls(true).await?;
        } else {
            let offers = self.open().await?;
            if !offers.starttls {
                return Err(Failure::NoTls);
            }
            self.wire.send(b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await?;
            let element = next_element(&mut self.wire).await?;
            if !element.root().is(ns::TLS, "proceed") {
                return Err(Failure::Handshake("the peer refuses STARTTLS".into()));
            }
            // RFC 6120 s.5.4.3.3: what came in the clear behind it must not be read inside TLS.
            if !self.wire.input.is_empty() {
                return Err(Failure::Protocol("data in the clear after STARTTLS".into()));
            }
            self = self.start_tls(false).await?;
        }
        let verdict = self.shared.verdict(&self.tls_info()?.peer_chain, self.peer.as_str());
        let dialback = self.shared.dialback_with(self.peer.as_str());
        // Dialback trusts DNS to lead to the peer. Without it, the certificate has to say who this is.
        if !verdict.is_valid() && !dialback {
            return Err(Failure::Untrusted(verdict));
        }
        let mut offers = self.open().await?;
        let mut bidi = false;
        let proof = match purpose {
            Purpose::Ask => "",
            Purpose::Send => {
                bidi = offers.bidi;
                if bidi {
                    // XEP-0288 s.2: after TLS and before the proof.
                    self.wire.send(b"<bidi xmlns='urn:xmpp:bidi'/>").await?;
                }
                self.prove(&mut offers, dialback).await?
            }
        };
        Ok(Dialled {
            wire: self.wire,
            id: self.id,
            lang: self.lang,
            offers,
            bidi,
            proof,
            verdict,
            direct_tls,
            address: String::new(),
        })
    }

    fn tls_info(&self) -> Result<&Arc<TlsInfo>, Failure> {
        self.wire.transport.tls().ok_or(Failure::NoTls)
    }

    async fn start_tls(self, direct: bool) -> Result<Self, Failure> {
        let Wire { transport, mut scanner, .. } = self.wire;
        scanner.restart();
        let identity = self.shared.certs.for_domain(Some(self.local.domain.as_str()));
        let alpn = direct.then_some("xmpp-server");
        let transport = transport
            .connect_tls(&identity, self.peer.as_str(), alpn)
            .await
            .map_err(|error| Failure::Handshake(error.to_string()))?;
        Ok(Dialling { wire: Wire { transport, scanner, input: Vec::new() }, ..self })
    }

    /// Opens a stream; returns what the peer offers on it.
    async fn open(&mut self) -> Result<Offers, Failure> {
        let hello =
            wire::header(&wire::Greeting { from: Some(&self.local.domain), to: Some(self.peer), id: None });
        self.wire.send(&hello).await?;
        let Event::Open(header) = self.wire.next().await? else {
            return Err(Failure::Protocol("no stream header".into()));
        };
        let head = read_header(&header)
            .map_err(|condition| Failure::Protocol(format!("stream header: {condition}")))?;
        self.id = head.id.unwrap_or_default();
        self.lang = head.lang;
        let features = next_element(&mut self.wire).await?;
        if !features.root().is(ns::STREAMS, "features") {
            return Err(Failure::Protocol("no stream features".into()));
        }
        Ok(Offers::read(features.root()))
    }

    /// EXTERNAL when offered, else dialback when allowed.
    async fn prove(&mut self, offers: &mut Offers, dialback: bool) -> Result<&'static str, Failure> {
        let mut external = None;
        if offers.external {
            match self.external().await? {
                Ok(()) => {
                    self.wire.restart();
                    *offers = self.open().await?;
                    return Ok("external");
                }
                Err(condition) => external = Some(condition),
            }
        }
        if !dialback {
            return Err(Failure::NoExternal { external });
        }
        // Old servers know dialback without announcing it, but none that has features and leaves it out wants it.
        if !offers.dialback {
            return Err(Failure::NoProof { external });
        }
        self.dial_back().await?;
        Ok("dialback")
    }

    /// XEP-0178 s.3. The inner error is the SASL condition.
    async fn external(&mut self) -> Result<Result<(), String>, Failure> {
        let mut w = Writer::new();
        // RFC 6120 allows "=" where the authzid is the stream's `from`; some servers want it spelt out.
        w.open("auth").attr("xmlns", ns::SASL).attr("mechanism", "EXTERNAL");
        w.text(&STANDARD.encode(self.local.domain.as_str())).close();
        self.wire.send(&w.finish()).await?;
        let element = next_element(&mut self.wire).await?;
        let root = element.root();
        match (root.ns(), root.name()) {
            (ns::SASL, "success") => Ok(Ok(())),
            (ns::SASL, "failure") => {
                let condition =
                    root.children().find(|child| child.name() != "text").map(|child| child.name());
                let text =
                    root.children().find(|child| child.name() == "text").map(|text| printable(&text.text()));
                let condition = printable(condition.unwrap_or("failure"));
                Ok(Err(text.map_or(condition.clone(), |text| format!("{condition}, {text}"))))
            }
            _ => Err(Failure::Protocol("no answer to EXTERNAL".into())),
        }
    }

    /// XEP-0220 s.2.1, the initiating server's role.
    async fn dial_back(&mut self) -> Result<(), Failure> {
        if self.id.is_empty() {
            return Err(Failure::Protocol("the stream has no id to make a key for".into()));
        }
        let request = Dialback {
            kind: Kind::Result,
            from: self.local.domain.clone(),
            to: self.peer.clone(),
            say: Say::Key(dialback::key(&self.local.secret, self.peer, &self.local.domain, &self.id)),
        };
        self.wire.send(&request.write()).await?;
        loop {
            let element = next_element(&mut self.wire).await?;
            if element.root().ns() != ns::DIALBACK {
                continue;
            }
            match Dialback::parse(element.root()) {
                Ok(Dialback { kind: Kind::Result, from, to, say: Say::Outcome(outcome) })
                    if from == *self.peer && to == self.local.domain =>
                {
                    return match outcome {
                        Outcome::Valid => Ok(()),
                        Outcome::Invalid => {
                            Err(Failure::Dialback("the peer says that our key is not genuine".into()))
                        }
                        Outcome::Error(condition) => Err(dialback_failure(condition)),
                    };
                }
                _ => return Err(Failure::Protocol("no answer to dialback".into())),
            }
        }
    }
}

fn dialback_failure(condition: Option<Condition>) -> Failure {
    let condition = condition.map_or("error", Condition::as_str);
    Failure::Dialback(match condition {
        "item-not-found" => "the peer does not serve that domain".into(),
        "remote-server-not-found" => "the peer can't find our domain in DNS (remote-server-not-found)".into(),
        "remote-server-timeout" => "the peer can't reach us (remote-server-timeout)".into(),
        "not-authorized" => "the peer wants a valid certificate (not-authorized)".into(),
        other => other.to_owned(),
    })
}

/// The next element; a stream error or the end of the stream is a failure.
async fn next_element(wire: &mut Wire) -> Result<Element, Failure> {
    match wire.next().await? {
        Event::Element(element) if element.root().is(ns::STREAMS, "error") => {
            Err(peer_failure(&StreamError::parse(element.root())))
        }
        Event::Element(element) => Ok(element),
        Event::Close => Err(Failure::Closed),
        Event::Open(_) | Event::Whitespace => Err(Failure::Protocol("a second stream header".into())),
    }
}
