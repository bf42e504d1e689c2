//! XEP-0114 Jabber Component Protocol 1.6: one external component's connection.
//!
//! The protocol has no TLS and no resumption: the listener belongs on loopback or a private network. A second
//! connection of the same component replaces the first (see [`crate::route::components::Components::connect`]).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{constant_time, digest};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use trunkline_store::Lane;
use trunkline_xml::{Element, Limits, Writer};
use trunkline_xmpp::error::StreamCondition;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::Stanza;

use super::negotiation::{self, Desk, Reader, Stop};
use crate::config::Config;
use crate::control::Edge;
use crate::exchange::Exchange;
use crate::metrics::{self, Direction, StanzaKind};
use crate::route::components::{Bounds, Link, Work};
use crate::route::{Mail, Origin};

/// The receiving half.
struct Inbox<R> {
    socket: R,
    reader: Reader,
}

impl<R: AsyncRead + Unpin> Inbox<R> {
    async fn element(&mut self, desk: &Desk) -> Result<Element, Stop> {
        self.reader.element(&mut self.socket, desk).await
    }
}

/// Serves one connection of a component from accept to its end.
pub async fn serve<S>(exchange: Arc<Exchange>, stream: S, peer: SocketAddr)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let _open = exchange.metrics.connection(metrics::Link::Component);
    let config = exchange.config.load_full();
    let serial = super::serial();
    let (socket, mut writer) = tokio::io::split(stream);
    let mut inbox = Inbox { socket, reader: Reader::new(&config.limits) };
    let link = metrics::Link::Component;
    let mut desk = Desk { exchange: Arc::clone(&exchange), peer: peer.ip().to_string(), serial, link };
    let mut opened = false;
    let handshake = handshake(&desk, &mut inbox, &mut writer, &mut opened);
    let shown = tokio::time::timeout(config.clients.login_timeout, handshake).await;
    let link = match shown.unwrap_or_else(|_| Err(desk.late("component-handshake-timeout"))) {
        Ok((domain, component)) => {
            let bounds =
                Bounds { stanzas: config.federation.queue_stanzas, bytes: config.federation.queue_bytes };
            Link::new(serial, domain, component, bounds)
        }
        Err(stop) => {
            let header = (!opened).then(|| our_header(None));
            return desk.farewell(&mut writer, stop, header).await;
        }
    };
    exchange.components.connect(&link);
    desk.peer = link.domain.to_string();
    tracing::info!(conn = serial, component = %link.domain, peer = %peer.ip(), "component connected");
    inbox.reader.set_limits(scan_limits(&config, &link));
    let end = tokio::select! {
        end = read(&desk, &link, &mut inbox) => end,
        end = write(&desk, &link, &mut writer) => end,
    };
    tracing::info!(conn = serial, component = %link.domain, ?end, "component disconnected");
    // After a part of a stanza nothing that follows could be understood.
    let torn = link.is_writing();
    exchange.component_gone(&link);
    if !torn {
        desk.farewell(&mut writer, end, None).await;
    }
}

fn scan_limits(config: &Config, link: &Link) -> Limits {
    let bytes =
        if link.is_outside() { config.limits.stanza_bytes_outside } else { config.limits.stanza_bytes };
    Limits { element_bytes: bytes, ..negotiation::scan_limits(&config.limits) }
}

/// s.3: stream header, our header, handshake.
async fn handshake<R, W>(
    desk: &Desk,
    inbox: &mut Inbox<R>,
    writer: &mut W,
    opened: &mut bool,
) -> Result<(Jid, crate::config::Component), Stop>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let header = inbox.reader.header(&mut inbox.socket, desk).await?;
    let root = header.root();
    if root.ns() != ns::STREAMS || header.default_ns() != ns::COMPONENT {
        desk.refused("component-namespace", "not a stream of jabber:component:accept");
        return Err(StreamCondition::InvalidNamespace.into());
    }
    if root.name() != "stream" {
        return Err(StreamCondition::InvalidXml.into());
    }
    let domain = root.attr("to").and_then(|to| Jid::parse(&to).ok()).filter(Jid::is_domain);
    let known = domain.and_then(|domain| {
        let config = desk.exchange.config.load();
        let component = config.components.entries.get(domain.as_str()).cloned()?;
        Some((domain, component))
    });
    let Some((domain, component)) = known else {
        desk.refused("component-host-unknown", "a component that is not in components.entries");
        return Err(StreamCondition::HostUnknown.into());
    };
    let id = crate::ids::token(18);
    writer.write_all(&our_header(Some((&domain, &id)))).await?;
    writer.flush().await?;
    *opened = true;
    let element = inbox.element(desk).await?;
    let root = element.root();
    let shown = root.text();
    if !root.is(ns::COMPONENT, "handshake") || !is_proof(&id, &component.secret, shown.trim()) {
        desk.refused("component-not-authorized", &format!("the secret of {domain} was not shown"));
        return Err(StreamCondition::NotAuthorized.into());
    }
    writer.write_all(b"<handshake/>").await?;
    writer.flush().await?;
    Ok((domain, component))
}

/// s.3: the SHA-1 of stream id and secret, in lower-case hexadecimal digits. SHA-1 is the protocol's, and here nobody
/// can choose what is hashed.
fn is_proof(id: &str, secret: &str, shown: &str) -> bool {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(id.as_bytes());
    context.update(secret.as_bytes());
    let mut expected = String::with_capacity(40);
    for byte in context.finish().as_ref() {
        use std::fmt::Write as _;
        let _ = write!(expected, "{byte:02x}");
    }
    constant_time::verify_slices_are_equal(expected.as_bytes(), shown.as_bytes()).is_ok()
}

fn our_header(opened: Option<(&Jid, &str)>) -> Vec<u8> {
    let mut w = Writer::new();
    w.open("stream:stream").attr("xmlns", ns::COMPONENT).attr("xmlns:stream", ns::STREAMS);
    match opened {
        Some((domain, id)) => w.attr("from", domain.as_str()).attr("id", id),
        None => w.attr("id", &crate::ids::token(18)),
    };
    let mut out = b"<?xml version='1.0'?>".to_vec();
    out.extend_from_slice(&w.finish_header());
    out
}

/// Component to server, stanza by stanza: the next is read when the one before is where it belongs.
async fn read<R: AsyncRead + Unpin>(desk: &Desk, link: &Arc<Link>, inbox: &mut Inbox<R>) -> Stop {
    let exchange = &desk.exchange;
    let lane = if link.is_outside() { Lane::Outside } else { Lane::Inside };
    let mut budget = Budget::new(exchange);
    // Outside shares the crossing with other providers.
    let entrance = match exchange.remote.get() {
        Some(remote) if link.is_outside() => remote.entrance(),
        _ => None,
    };
    loop {
        exchange.db.ready(lane).await;
        let element = match inbox.element(desk).await {
            Ok(element) => element,
            Err(stop) => return stop,
        };
        if link.is_outside() {
            budget.spend(desk, element.bytes().len()).await;
        }
        let mail = match admit(desk, link, element) {
            Ok(Some(mail)) => mail,
            Ok(None) => continue,
            Err(end) => return end,
        };
        let mail = match link.is_outside() {
            true => match exchange.control.edge(mail.stanza.clone()) {
                Edge::Pass(stanza) => Mail { stanza, ..mail },
                Edge::Refused { name, by, answer } => {
                    desk.refused(name, &by);
                    if let Some(answer) = answer {
                        exchange.deliver(Mail::answer(answer)).await;
                    }
                    continue;
                }
            },
            false => mail,
        };
        match &entrance {
            Some(entrance) => entrance.enter(mail).await,
            None => exchange.deliver(mail).await,
        }
    }
}

/// A stanza that may be routed; `None` when its answer is given.
fn admit(desk: &Desk, link: &Arc<Link>, element: Element) -> Result<Option<Mail>, Stop> {
    let stanza = match Stanza::from_element(element, ns::COMPONENT, None) {
        Ok(stanza) => stanza,
        Err(refusal) => {
            desk.refused(refusal.why.label(), &refusal.to_string());
            if let Some(condition) = refusal.stream_condition() {
                return Err(condition.into());
            }
            if let Some(answer) = refusal.error_reply() {
                // A component that doesn't read its errors loses them.
                let _ = link.push(Mail::inside(answer));
            }
            return Ok(None);
        }
    };
    // s.3: as in `jabber:server`, both addresses are there, and the sender's is the component's.
    let (Some(from), Some(_)) = (&stanza.head.from, &stanza.head.to) else {
        desk.refused("component-addressing", "a stanza without from or to");
        return Err(StreamCondition::ImproperAddressing.into());
    };
    if from.domain() != link.domain.as_str() {
        desk.refused("forged-from", "a stanza from another domain than the component's");
        return Err(StreamCondition::InvalidFrom.into());
    }
    desk.exchange.metrics.stanza(StanzaKind::of(stanza.head.kind), Direction::In, side(link));
    let origin = if link.is_outside() { Origin::Outside } else { Origin::Inside };
    Ok(Some(Mail::new(stanza, origin)))
}

fn side(link: &Link) -> metrics::Side {
    if link.is_outside() { metrics::Side::Outside } else { metrics::Side::Inside }
}

/// Server to component.
async fn write<W: AsyncWrite + Unpin>(desk: &Desk, link: &Arc<Link>, writer: &mut W) -> Stop {
    loop {
        let (ping, standstill) = {
            let config = desk.exchange.config.load();
            (config.federation.ping_interval, config.limits.outbox_standstill)
        };
        let (bytes, counted) = match link.work(ping).await {
            Work::Write(bytes) => (bytes, true),
            // Finds out that the other side is gone.
            Work::Idle => (b" ".to_vec(), false),
            Work::Close(error) => return Stop::Error(error),
        };
        let writing = async {
            writer.write_all(&bytes).await?;
            writer.flush().await
        };
        match tokio::time::timeout(standstill, writing).await {
            Ok(Ok(())) => {
                desk.exchange.metrics.bytes(metrics::Link::Component, Direction::Out, bytes.len());
                if counted {
                    let kinds = link.written();
                    desk.exchange.metrics.stanzas(kinds, Direction::Out, side(link));
                }
            }
            Ok(Err(_)) => return Stop::Lost,
            Err(_) => {
                desk.refused(
                    "component-does-not-read",
                    "nothing could be written for limits.outbox_standstill",
                );
                return StreamCondition::ConnectionTimeout.into();
            }
        }
    }
}

/// What a component outside may send: as another provider (`limits.peer_*`). Above it reading slows down.
struct Budget {
    stanzas: f64,
    bytes: f64,
    at: i64,
}

impl Budget {
    fn new(exchange: &Exchange) -> Budget {
        let config = exchange.config.load();
        Budget {
            stanzas: f64::from(config.limits.peer_stanzas_burst),
            bytes: f64::from(config.limits.peer_bytes_burst),
            at: exchange.clock().now(),
        }
    }

    async fn spend(&mut self, desk: &Desk, bytes: usize) {
        let wait = {
            let config = desk.exchange.config.load();
            let limits = &config.limits;
            if !limits.enabled {
                return;
            }
            let now = desk.exchange.clock().now();
            let elapsed = u32::try_from((now - self.at).max(0)).map_or(f64::MAX, f64::from) / 1000.0;
            self.at = now;
            let fill =
                |have: f64, rate: u32, burst: u32| (have + elapsed * f64::from(rate)).min(f64::from(burst));
            self.stanzas = fill(self.stanzas, limits.peer_stanzas, limits.peer_stanzas_burst) - 1.0;
            let bytes = u32::try_from(bytes).map_or(f64::MAX, f64::from);
            self.bytes = fill(self.bytes, limits.peer_bytes, limits.peer_bytes_burst) - bytes;
            let wait = |have: f64, rate: u32| if have < 0.0 { -have / f64::from(rate.max(1)) } else { 0.0 };
            wait(self.stanzas, limits.peer_stanzas).max(wait(self.bytes, limits.peer_bytes))
        };
        if wait > 0.0 {
            desk.refused(
                "component-rate",
                "more than limits.peer_stanzas or limits.peer_bytes: read more slowly",
            );
            tokio::time::sleep(Duration::from_secs_f64(wait.min(60.0))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_that_of_the_specification() {
        let hex = "b09ea9b3b7f586be8a08d0a3dd7466f110aeb136";
        assert!(is_proof("3BF96D32", "secret", hex));
        assert!(!is_proof("3BF96D32", "secret", &hex.to_uppercase()));
        assert!(!is_proof("3BF96D33", "secret", hex));
        assert!(!is_proof("3BF96D32", "", ""));
    }
}
