//! Traces for OpenTelemetry (OTLP over HTTP), off unless `traces.endpoint` is set. Never content: a span has what kind
//! of stanza it was, its size, and the domains, never who in them.
//!
//! Spans are made here and nowhere else, so what they can say stands on this page. Switched off, each costs a load and a
//! branch. Log lines are not exported with them: those name addresses.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::{Span, Subscriber, info_span};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::Stanza;

use crate::admin::actor::Actor;
use crate::metrics::{KINDS, StanzaKind};

/// What marks our spans.
const TARGET: &str = "trunkline::traces";
/// For each connection to the collector, and each answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer of the collector's: it says little.
const ANSWER: u64 = 64 * 1024;

static ON: AtomicBool = AtomicBool::new(false);

/// The exporter.
#[derive(Clone, Debug)]
pub struct Exporter(SdkTracerProvider);

/// Why there are no traces. The operator's fault.
#[derive(Debug, thiserror::Error)]
#[error("traces.endpoint: {0}")]
pub struct TraceError(String);

impl Exporter {
    /// Sends one of `one_in` traces to a collector at `endpoint`, `http://host:port/path`.
    ///
    /// # Errors
    /// The endpoint can't be used.
    pub fn new(endpoint: &str, one_in: u32) -> Result<Exporter, TraceError> {
        parts(endpoint).ok_or_else(|| TraceError(NOT_A_URL.into()))?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(Collector)
            .with_endpoint(endpoint)
            .with_timeout(PATIENCE)
            .build()
            .map_err(|error| TraceError(error.to_string()))?;
        let share = Sampler::TraceIdRatioBased(1.0 / f64::from(one_in.max(1)));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(share)))
            // Nothing of the machine's or the environment's.
            .with_resource(Resource::builder_empty().with_service_name("trunkline").build())
            .build();
        ON.store(true, Ordering::Relaxed);
        Ok(Exporter(provider))
    }

    /// What takes the spans.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync>(&self) -> impl Layer<S> + use<S> {
        tracing_opentelemetry::layer()
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_tracer(self.0.tracer("trunkline"))
            .with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == TARGET))
    }

    /// Sends what waits. Takes as long as the collector, [`PATIENCE`] at most for each batch.
    pub fn flush(&self) {
        if let Err(error) = self.0.force_flush() {
            tracing::warn!(%error, "traces were not sent");
        }
    }
}

/// What a wrong `traces.endpoint` is told.
pub const NOT_A_URL: &str = "not http://host:port/path (a collector on this machine or in a private network)";

/// The endpoint is one that can be used.
pub fn is_endpoint(endpoint: &str) -> bool {
    parts(endpoint).is_some()
}

fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// A stanza on its way: `way` is `outside-in` or `inside`.
pub(crate) fn stanza(way: &'static str, stanza: &Stanza) -> Span {
    if !is_on() {
        return Span::none();
    }
    let domain = |jid: &Option<Jid>| jid.as_ref().map_or(String::new(), |jid| jid.domain().to_owned());
    info_span!(
        target: TARGET,
        "stanza",
        way,
        kind = KINDS[StanzaKind::of(stanza.head.kind) as usize],
        from = domain(&stanza.head.from),
        to = domain(&stanza.head.to),
        bytes = stanza.size(),
        refused = tracing::field::Empty,
    )
}

/// An attempt to reach a domain. `failure` is recorded when it failed.
pub(crate) fn dial(local: &Jid, peer: &Jid) -> Span {
    if !is_on() {
        return Span::none();
    }
    info_span!(
        target: TARGET,
        "dial",
        from = local.domain(),
        to = peer.domain(),
        failure = tracing::field::Empty,
    )
}

/// An operation of administration. Not who asks, nor about what.
pub(crate) fn operation((op, act): (&'static str, &'static str), actor: &Actor) -> Span {
    if !is_on() {
        return Span::none();
    }
    let face = actor.face.to_string();
    info_span!(target: TARGET, "operation", op, act, face, failed = tracing::field::Empty)
}

/// Host, port and path of `http://host:port/path`.
fn parts(url: &str) -> Option<(&str, u16, &str)> {
    let rest = url.strip_prefix("http://")?;
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, 4318),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let clean = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
    (clean(host) && clean(path)).then_some((host, port, path))
}

/// One request, one connection, one answer: a collector stands beside the server, and a batch goes every few seconds. It
/// runs on the exporter's own thread, where waiting is no harm.
#[derive(Debug)]
struct Collector;

#[async_trait::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let url = request.uri().to_string();
        let (host, port, path) = parts(&url).ok_or("not http://")?;
        let address = (host, port).to_socket_addrs()?.next().ok_or("the collector's name is unknown")?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let body = request.body();
        let mut head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        for (name, value) in request.headers() {
            head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap_or_default()));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        // The head is all that matters, and a collector may keep the connection open behind its answer.
        let mut lines = BufReader::new(stream.take(ANSWER));
        while lines.read_until(b'\n', &mut answer)? > 0 && !answer.ends_with(b"\r\n\r\n") {}
        // RFC 9112 s.4: `HTTP/1.1 200 OK`. What the collector says beside it is of no use to us.
        let status = std::str::from_utf8(answer.get(9..12).unwrap_or_default())?.parse::<u16>()?;
        Ok(Response::builder().status(status).body(Bytes::new())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_collector_that_does_not_hang_up_is_not_waited_for() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let collector = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            while reader.read_until(b'\n', &mut asked).unwrap() > 0 && !asked.ends_with(b"\r\n\r\n") {}
            stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\n").unwrap();
            stream
        });
        let request = Request::builder().uri(url).body(Bytes::from_static(b"x")).unwrap();
        let answer = Collector.send_bytes(request).await.unwrap();
        assert_eq!(answer.status(), 202);
        drop(collector.join().unwrap());
    }

    #[test]
    fn endpoints() {
        assert_eq!(parts("http://127.0.0.1:4318/v1/traces"), Some(("127.0.0.1", 4318, "/v1/traces")));
        assert_eq!(parts("http://collector/v1"), Some(("collector", 4318, "/v1")));
        assert_eq!(parts("http://[::1]:9/x"), Some(("::1", 9, "/x")));
        for wrong in ["https://a/b", "http://", "http://:1/", "a", "http://a:x/", "http://a/b c\r\nx: y"] {
            assert_eq!(parts(wrong), None, "{wrong}");
        }
    }
}
