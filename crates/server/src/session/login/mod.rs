//! From an accepted socket to a bound resource (RFC 6120 s.4 to s.7), step by step: [`tls`], [`sasl`], [`bind`], or all
//! that at once in [`inline`] with [`tasks`], and the [`features`] that each of them is announced with.
//!
//! Straight-line code: each step reads what may come there and refuses the rest by name. Nothing here is on
//! the way of a message.

mod bind;
mod features;
mod inline;
mod sasl;
mod tasks;
mod tls;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use trunkline_xml::{Element, Writer};
use trunkline_xmpp::error::StreamCondition;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

use super::client::{Budget, Connection, Seat};
use super::negotiation::{Desk, Reader, Stop, scan_limits};
use crate::config::TlsPolicy;
use crate::exchange::{Exchange, Host};
use crate::metrics::{Connected, Direction, Link};
use crate::modules::registration::Preauth;
use crate::net::{CertStore, Gate, Guard, Transport};
pub(super) use features::Stage;
use sasl::{Entered, Guess};

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
    /// Inside of something else, which is protected or not, and can't become so.
    Carried,
    /// Logged in already, as this account: for clients inside this process.
    Seated(Jid),
}

/// A connection that is not bound yet.
struct Negotiation {
    desk: Desk,
    transport: Transport,
    certificates: Option<Arc<CertStore>>,
    /// Bounds handshakes; connections that came through no gate are our own.
    gate: Option<Arc<Gate>>,
    address: SocketAddr,
    entry: Entry,
    reader: Reader,
    host: Option<Arc<Host>>,
    lang: Option<Arc<str>>,
    /// Who the client said on the stream that it is. Nobody has proved that.
    from: Option<Jid>,
    /// XEP-0509: names the features that were announced before the login.
    version: String,
    preauth: Preauth,
    /// A password of this client is being checked.
    guess: Option<Guess>,
    /// A header of ours stands on the stream: errors may follow.
    opened: bool,
}

/// Serves one client connection from accept to its end.
pub fn serve(exchange: Arc<Exchange>, arrival: Arrival) -> impl Future<Output = ()> + Send {
    let open = exchange.metrics.connection(Link::Client);
    let config = exchange.config.load_full();
    let negotiation = Negotiation {
        desk: Desk {
            exchange: Arc::clone(&exchange),
            peer: arrival.peer.ip().to_string(),
            serial: super::serial(),
            link: Link::Client,
        },
        transport: arrival.transport,
        certificates: arrival.certificates,
        gate: arrival.guard.as_ref().map(|guard| Arc::clone(guard.gate())),
        address: arrival.peer,
        entry: arrival.entry,
        reader: Reader::new(&config.limits),
        host: None,
        lang: None,
        from: None,
        version: String::new(),
        preauth: Preauth::default(),
        guess: None,
        opened: false,
    };
    let within = config.clients.login_timeout;
    Client { step: Step::Login(Box::pin(negotiation.run(within))), _place: arrival.guard, _open: open }
}

/// The task of a client, as small as a connection is: what a login needs is given back when it is over.
struct Client {
    step: Step,
    _place: Option<Guard>,
    _open: Connected,
}

#[expect(clippy::large_enum_variant, reason = "a connection stays here for as long as it lives")]
enum Step {
    Login(Pin<Box<dyn Future<Output = Option<Connection>> + Send>>),
    Serve(Connection),
    Over,
}

impl Future for Client {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.step {
                Step::Login(login) => {
                    let connection = ready!(login.as_mut().poll(cx));
                    self.step = connection.map_or(Step::Over, Step::Serve);
                }
                Step::Serve(connection) => {
                    let end = ready!(connection.poll(cx));
                    if let Step::Serve(connection) = std::mem::replace(&mut self.step, Step::Over) {
                        connection.finish(end);
                    }
                }
                Step::Over => return Poll::Ready(()),
            }
        }
    }
}

impl Negotiation {
    async fn run(mut self, limit: Duration) -> Option<Connection> {
        let outcome = match tokio::time::timeout(limit, self.negotiate()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.desk.late("login-timeout")),
        };
        match outcome {
            Ok(seat) => Some(self.bound(seat)),
            Err(stop) => {
                let header = (!self.opened).then(|| self.our_header(None));
                self.desk.farewell(&mut self.transport, stop, header).await;
                None
            }
        }
    }

    async fn negotiate(&mut self) -> Result<Seat, Stop> {
        let entered = match self.entry.clone() {
            Entry::Seated(jid) => {
                let exchange = &self.desk.exchange;
                match exchange.accounts.load(&exchange.db, &jid).await {
                    Ok(Some(account)) => Entered::Anew(Arc::clone(&account)),
                    _ => return Err(StreamCondition::NotAuthorized.into()),
                }
            }
            Entry::DirectTls => {
                self.handshake().await?;
                self.open().await?;
                self.authenticate().await?
            }
            Entry::Carried => {
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
        self.reader.set_limits(scan_limits(&self.desk.exchange.config.load().limits));
        match entered {
            Entered::Anew(account) => {
                self.reopen().await?;
                self.send(&self.session_features(Stage::Unbound)).await?;
                self.bind(account).await
            }
            Entered::Unbound(account) => self.bind(account).await,
            Entered::Bound(seat) => Ok(seat),
        }
    }

    /// A new stream on the same connection, after TLS and after SASL.
    async fn reopen(&mut self) -> Result<(), Stop> {
        self.reader.restart();
        self.opened = false;
        self.open().await
    }

    /// Reads the client's stream header and answers with ours.
    async fn open(&mut self) -> Result<(), Stop> {
        let desk = &self.desk;
        let header = self.reader.header(&mut self.transport, desk).await?;
        let root = header.root();
        if root.ns() != ns::STREAMS {
            return Err(desk.refusal(StreamCondition::InvalidNamespace, "the root is no stream"));
        }
        if root.name() != "stream" {
            return Err(desk.refusal(StreamCondition::BadFormat, "the root is no stream"));
        }
        if header.default_ns() != ns::CLIENT {
            return Err(desk.refusal(StreamCondition::InvalidNamespace, "not a client's stream"));
        }
        self.lang = root.attr_ns(ns::XML, "lang").map(|lang| Arc::from(&*lang));
        let to = root.attr("to").and_then(|to| Jid::parse(&to).ok());
        let Some(host) = to.and_then(|to| desk.exchange.host(to.as_str()).cloned()) else {
            desk.refused("host-unknown", "a stream to a domain that is not ours");
            return Err(StreamCondition::HostUnknown.into());
        };
        // RFC 6120 s.4.9.3.6: another host on a stream that has begun.
        if self.host.as_ref().is_some_and(|before| before.id != host.id) {
            return Err(desk.refusal(StreamCondition::HostUnknown, "another domain on the same stream"));
        }
        self.host = Some(host);
        let version = root.attr("version").and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        if version.unwrap_or(0) < 1 {
            return Err(desk.refusal(StreamCondition::UnsupportedVersion, "a stream without version 1.0"));
        }
        self.from = root.attr("from").and_then(|from| Jid::parse(&from).ok());
        // XEP-0388 s.2.1 and RFC 6120 s.4.9.3.9: nobody from elsewhere has an account here.
        if self
            .from
            .as_ref()
            .is_some_and(|from| self.host.as_ref().is_some_and(|host| host.domain != *from.domain()))
        {
            return Err(
                desk.refusal(StreamCondition::InvalidFrom, "a stream from another domain than it is to")
            );
        }
        let answer = self.our_header(self.from.as_ref());
        self.opened = true;
        self.send(&answer).await
    }

    fn our_header(&self, to: Option<&Jid>) -> Vec<u8> {
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
        let mut out = b"<?xml version='1.0'?>".to_vec();
        out.extend_from_slice(&w.finish_header());
        out
    }

    async fn element(&mut self) -> Result<Element, Stop> {
        self.reader.element(&mut self.transport, &self.desk).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.transport.write_all(bytes).await?;
        self.transport.flush().await?;
        self.desk.exchange.metrics.bytes(Link::Client, Direction::Out, bytes.len());
        Ok(())
    }

    fn bound(self, seat: Seat) -> Connection {
        let exchange = self.desk.exchange;
        let session = Arc::clone(seat.session());
        session.vitals.heard.store(exchange.clock().now(), Ordering::Relaxed);
        let (scanner, backlog) = self.reader.into_parts();
        Connection {
            budget: Budget::new(&exchange),
            exchange,
            session,
            seat: Some(seat),
            serial: self.desk.serial,
            transport: self.transport.settled(),
            scanner,
            lang: self.lang,
            unsent: Vec::new(),
            unsent_kept: Vec::new(),
            backlog,
            work: None,
            working_since: None,
            refill: None,
            brake: None,
            flush: false,
        }
    }
}
