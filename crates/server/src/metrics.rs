//! What can be counted, for Prometheus.
//!
//! Everything on the way of a stanza is a handle that was resolved when the server started: counting is one atomic
//! addition. Labels are looked up for refusals, logins and streams only, which are rare or already paid for.
//! Labels are `&'static str`: no remote party can make the number of time series grow.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use trunkline_xmpp::stanza::Kind;

pub use crate::config::Side;

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The three kinds of stanzas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StanzaKind {
    /// `<message/>`
    Message,
    /// `<presence/>`
    Presence,
    /// `<iq/>`
    Iq,
}

impl StanzaKind {
    /// That of a stanza.
    pub fn of(kind: Kind) -> StanzaKind {
        match kind {
            Kind::Message(_) => StanzaKind::Message,
            Kind::Presence(_) => StanzaKind::Presence,
            Kind::Iq(_) => StanzaKind::Iq,
        }
    }
}

/// Seen from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Received.
    In,
    /// Written.
    Out,
}

/// What kind of connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A user's client.
    Client,
    /// Another server connected to us.
    PeerIn,
    /// We connected to another server.
    PeerOut,
    /// An external component.
    Component,
}

pub(crate) const KINDS: [&str; 3] = ["message", "presence", "iq"];
pub(crate) const DIRECTIONS: [&str; 2] = ["in", "out"];
const SIDES: [&str; 2] = ["inside", "outside"];
const LINKS: [&str; 4] = ["client", "peer-in", "peer-out", "component"];

/// All metrics. One per server; share it in an `Arc`.
pub struct Metrics {
    registry: Mutex<Registry>,
    stanzas: [[[Counter; 2]; 2]; 3],
    bytes: [[Counter; 2]; 4],
    opened: [Counter; 4],
    open: [Gauge; 4],
    refusals: Family<Labels<1>, Counter>,
    logins: Family<Labels<2>, Counter>,
    steps: Family<Labels<2>, Counter>,
    pushes: Family<Labels<1>, Counter>,
    handshakes: Family<Labels<3>, Counter>,
    errors_sent: Family<Labels<1>, Counter>,
    /// Sessions with a bound resource, connected or waiting for resumption.
    pub sessions: Gauge,
    /// Sessions whose connection broke and that wait for resumption (XEP-0198).
    pub sessions_waiting: Gauge,
    /// Sessions that were resumed.
    pub resumed: Counter,
    /// Messages bounced because their peer stayed unreachable, or its queue was full.
    pub expired: Counter,
    /// Seconds from the arrival of a client's stanza until it is in its receivers' queues.
    pub delivery_seconds: Histogram,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// A registry with everything in it, at zero.
    pub fn new() -> Arc<Metrics> {
        let mut registry = Registry::with_prefix("trunkline");
        let stanzas: Family<Labels<3>, Counter> = Family::default();
        registry.register("stanzas", "Stanzas by kind, direction and side", stanzas.clone());
        let bytes: Family<Labels<2>, Counter> = Family::default();
        registry.register("bytes", "XML bytes by kind of connection and direction", bytes.clone());
        let opened: Family<Labels<1>, Counter> = Family::default();
        registry.register("connections_opened", "Connections accepted or made", opened.clone());
        let open: Family<Labels<1>, Gauge> = Family::default();
        registry.register("connections", "Open connections", open.clone());
        let refusals = Family::default();
        registry.register(
            "refusals",
            "What was refused, by the name of the refusal",
            Family::clone(&refusals),
        );
        let logins = Family::default();
        registry.register("logins", "Logins by mechanism and result", Family::clone(&logins));
        let steps = Family::default();
        registry.register(
            "steps",
            "Messages that went through each step of each module",
            Family::clone(&steps),
        );
        let pushes = Family::default();
        registry.register("pushes", "Push notifications by what became of them", Family::clone(&pushes));
        let handshakes = Family::default();
        registry.register(
            "federation_streams",
            "Federation streams that were authenticated, by direction, proof and TLS version",
            Family::clone(&handshakes),
        );
        let errors_sent = Family::default();
        registry.register("stream_errors", "Stream errors sent, by condition", Family::clone(&errors_sent));
        let sessions = Gauge::default();
        registry.register("sessions", "Sessions with a bound resource", sessions.clone());
        let sessions_waiting = Gauge::default();
        registry.register("sessions_waiting", "Sessions waiting for resumption", sessions_waiting.clone());
        let resumed = Counter::default();
        registry.register("sessions_resumed", "Sessions that were resumed", resumed.clone());
        let expired = Counter::default();
        registry.register("federation_bounced", "Messages to peers that bounced or expired", expired.clone());
        let delivery_seconds = Histogram::new([0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0]);
        registry.register(
            "delivery_seconds",
            "Seconds from the arrival of a client's stanza until it is in its receivers' queues",
            delivery_seconds.clone(),
        );
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running version", build);
        registry.register_collector(Box::new(Process));

        let stanza = |kind: usize, direction: usize, side: usize| {
            stanzas.get_or_create_owned(&[
                ("kind", KINDS[kind]),
                ("direction", DIRECTIONS[direction]),
                ("side", SIDES[side]),
            ])
        };
        let by_link = |link: usize| [("link", LINKS[link])];
        Arc::new(Metrics {
            stanzas: std::array::from_fn(|kind| {
                std::array::from_fn(|direction| std::array::from_fn(|side| stanza(kind, direction, side)))
            }),
            bytes: std::array::from_fn(|link| {
                std::array::from_fn(|direction| {
                    bytes.get_or_create_owned(&[("link", LINKS[link]), ("direction", DIRECTIONS[direction])])
                })
            }),
            opened: std::array::from_fn(|link| opened.get_or_create_owned(&by_link(link))),
            open: std::array::from_fn(|link| open.get_or_create_owned(&by_link(link))),
            registry: Mutex::new(registry),
            refusals,
            logins,
            steps,
            pushes,
            handshakes,
            errors_sent,
            sessions,
            sessions_waiting,
            resumed,
            expired,
            delivery_seconds,
        })
    }

    /// Counts one stanza.
    pub fn stanza(&self, kind: StanzaKind, direction: Direction, side: Side) {
        self.stanzas[kind as usize][direction as usize][side as usize].inc();
    }

    /// Counts several of each kind, in the order of [`StanzaKind`].
    pub fn stanzas(&self, kinds: [usize; 3], direction: Direction, side: Side) {
        for (counters, count) in self.stanzas.iter().zip(kinds).filter(|(_, count)| *count > 0) {
            counters[direction as usize][side as usize].inc_by(count as u64);
        }
    }

    /// Stanzas since the start: from local users, from outside, to the outside, to local users.
    pub(crate) fn traffic(&self) -> [u64; 4] {
        let sum = |direction: Direction, side: Side| {
            self.stanzas.iter().map(|kind| kind[direction as usize][side as usize].get()).sum()
        };
        [
            sum(Direction::In, Side::Inside),
            sum(Direction::In, Side::Outside),
            sum(Direction::Out, Side::Outside),
            sum(Direction::Out, Side::Inside),
        ]
    }

    /// Adds what is written at each scrape.
    pub(crate) fn watch(&self, collector: Box<dyn Collector>) {
        self.registry.lock().register_collector(collector);
    }

    /// Counts bytes of XML.
    pub fn bytes(&self, link: Link, direction: Direction, bytes: usize) {
        self.bytes[link as usize][direction as usize].inc_by(bytes as u64);
    }

    /// Counts a connection until the returned guard is dropped.
    pub fn connection(self: &Arc<Metrics>, link: Link) -> Connected {
        self.opened[link as usize].inc();
        self.open[link as usize].inc();
        Connected { open: self.open[link as usize].clone() }
    }

    /// Counts a refusal. Use [`crate::logging::Refusals`], which also writes the log line.
    pub fn refused(&self, name: &'static str) {
        self.refusals.get_or_create(&[("name", name)]).inc();
    }

    /// How often something was refused.
    pub fn refusals(&self, name: &'static str) -> u64 {
        self.refusals.get(&[("name", name)]).map_or(0, |counter| counter.get())
    }

    /// Counts a push: `result` is `"sent"`, `"failed"`, `"awake"` (the device had come back) or `"dropped"`.
    pub fn pushed(&self, result: &'static str) {
        self.pushes.get_or_create(&[("result", result)]).inc();
    }

    /// Counts a login attempt: `result` is `"ok"` or the name of the SASL failure.
    pub fn login(&self, mechanism: &'static str, result: &'static str) {
        self.logins.get_or_create(&[("mechanism", mechanism), ("result", result)]).inc();
    }

    /// The counter of one step of one module: resolved once, when the module is set up.
    pub fn step(&self, step: &'static str, module: &'static str) -> Counter {
        self.steps.get_or_create_owned(&[("step", step), ("module", module)])
    }

    /// Counts an authenticated federation stream: `proof` is `"external"` or `"dialback"`.
    pub fn federation_stream(&self, direction: Direction, proof: &'static str, tls: &'static str) {
        let labels = [("direction", DIRECTIONS[direction as usize]), ("proof", proof), ("tls", tls)];
        self.handshakes.get_or_create(&labels).inc();
    }

    /// Counts a stream error that we sent.
    pub fn stream_error(&self, condition: &'static str) {
        self.errors_sent.get_or_create(&[("condition", condition)]).inc();
    }

    /// Adds a value that is read at each scrape, such as the length of a queue.
    pub fn watch_gauge(
        &self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        self.registry.lock().register_collector(Box::new(Watched { name, help, read: Box::new(read) }));
    }

    /// Everything, in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a String can't fail; a collector that fails leaves the text without its `# EOF`, which
        // Prometheus reports.
        let _ = prometheus_client::encoding::text::encode(&mut out, &self.registry.lock());
        out
    }
}

/// An open connection; counted until dropped.
#[derive(Debug)]
pub struct Connected {
    open: Gauge,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.open.dec();
    }
}

struct Watched {
    name: &'static str,
    help: &'static str,
    read: Box<dyn Fn() -> f64 + Send + Sync>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Collector for Watched {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        gauge(&mut encoder, self.name, self.help, (self.read)())
    }
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: f64) -> fmt::Result {
    let value = ConstGauge::new(value);
    value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)
}

/// What the kernel knows about this process.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        if let Some(bytes) = resident_bytes() {
            gauge(&mut encoder, "process_resident_memory_bytes", "Memory in use", bytes as f64)?;
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            gauge(&mut encoder, "process_open_fds", "Open file descriptors", files.count() as f64)?;
        }
        Ok(())
    }
}

/// Memory in use, where the system tells.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_what_was_counted() {
        let metrics = Metrics::new();
        metrics.stanza(StanzaKind::Message, Direction::In, Side::Outside);
        metrics.stanza(StanzaKind::Message, Direction::In, Side::Outside);
        metrics.refused("stanza-too-large");
        metrics.login("SCRAM-SHA-256", "not-authorized");
        metrics.step("copy", "carbons").inc();
        metrics.bytes(Link::Client, Direction::Out, 17);
        metrics.watch_gauge("queue", "A queue", || 4.0);
        let connected = metrics.connection(Link::PeerIn);
        let text = metrics.encode();
        for line in [
            "trunkline_stanzas_total{kind=\"message\",direction=\"in\",side=\"outside\"} 2",
            "trunkline_stanzas_total{kind=\"iq\",direction=\"out\",side=\"inside\"} 0",
            "trunkline_refusals_total{name=\"stanza-too-large\"} 1",
            "trunkline_logins_total{mechanism=\"SCRAM-SHA-256\",result=\"not-authorized\"} 1",
            "trunkline_steps_total{step=\"copy\",module=\"carbons\"} 1",
            "trunkline_bytes_total{link=\"client\",direction=\"out\"} 17",
            "trunkline_connections{link=\"peer-in\"} 1",
            "trunkline_queue 4.0",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert_eq!(metrics.refusals("stanza-too-large"), 1);
        drop(connected);
        assert!(metrics.encode().contains("trunkline_connections{link=\"peer-in\"} 0"));
        assert!(metrics.encode().contains("trunkline_connections_opened_total{link=\"peer-in\"} 1"));
    }
}
