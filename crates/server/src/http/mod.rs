//! The public web listener: XMPP over WebSocket (RFC 7395) and BOSH (XEP-0124), where to find them (XEP-0156), and the
//! web chat. Behind each of the first two stands the same login and the same session as behind a TCP connection: see
//! [`frames`].
//!
//! Deliberately absent: anything about the server itself (that is `web`), anything that changes it (that is
//! `admin::api`), cookies.

mod bodies;
mod bosh;
pub mod chat;
mod frames;
mod meta;
mod websocket;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;

use self::bodies::{Bodies, Room, Sender, Unread};
use crate::exchange::Exchange;
use crate::logging::Refusal;
use crate::net::{CertStore, Gate, Guard, Side, TlsInfo, Transport, listen};
use crate::session::login::{self, Arrival, Entry};

/// From one request's headers to the next one's.
const HEADERS: Duration = Duration::from_secs(90);
/// A connection of requests is asked to end after this long: clients make another one.
const LIFETIME: Duration = Duration::from_secs(3600);
/// And then may take this long.
const FAREWELL: Duration = Duration::from_secs(90);
/// Of a request's line and headers.
const MOST_HEADERS: usize = 16 * 1024;
/// What a `<body/>` may have beside its stanzas.
const BODY_SLACK: usize = 4 * 1024;

type Answer = Response<Full<Bytes>>;

/// What all listeners of the section share.
pub(crate) struct Site {
    exchange: Arc<Exchange>,
    /// Clients' places: a session from the web takes one like any other.
    clients: Arc<Gate>,
    bindings: Arc<bosh::Bindings>,
    bodies: Arc<Bodies>,
}

impl Site {
    pub(crate) fn new(exchange: Arc<Exchange>, clients: Arc<Gate>) -> Arc<Site> {
        let bindings = Arc::new(bosh::Bindings::default());
        Arc::new(Site { exchange, clients, bindings, bodies: Arc::default() })
    }
}

/// Certificates, where there is to be TLS, and the end of the server.
pub(crate) type Terms = (Option<Arc<CertStore>>, watch::Receiver<()>);

/// Takes connections from a listener.
pub(crate) struct Door {
    pub(crate) site: Arc<Site>,
    /// `None`: no TLS.
    pub(crate) certificates: Option<Arc<CertStore>>,
    /// Its sender is dropped when the server stops.
    pub(crate) stopped: watch::Receiver<()>,
}

impl listen::Handler for Door {
    fn connection(&self, stream: TcpStream, peer: SocketAddr, guard: Guard) {
        let site = Arc::clone(&self.site);
        let terms: Terms = (self.certificates.clone(), self.stopped.clone());
        self.site.exchange.spawn(async move {
            let (certificates, stopped) = terms;
            let transport = Transport::from(stream);
            let transport = match certificates {
                None => transport,
                Some(certificates) => {
                    let handshake = transport.accept_tls(&certificates, Side::Web, None);
                    match guard.handshake(handshake).await {
                        Ok(Ok(transport)) => transport,
                        Ok(Err(error)) => return site.refused(peer.ip(), error.label(), &error.to_string()),
                        Err(late) => return site.refused(peer.ip(), "tls-timeout", &late.to_string()),
                    }
                }
            };
            // The place is a connection's: what becomes a session has one of its own, among clients.
            site.serve(transport, peer, stopped).await;
            drop(guard);
        });
    }

    fn refused(&self, peer: IpAddr, why: listen::Refused) {
        self.site.refused(peer, why.label(), "a connection to the web listener was refused");
    }
}

/// Who sends a request, and how well it is protected.
struct Who {
    address: SocketAddr,
    /// Nobody between browser and server can read it.
    secure: bool,
    /// Only of a connection that is ours up to the browser.
    tls: Option<Arc<TlsInfo>>,
}

impl Site {
    fn refused(&self, peer: IpAddr, name: &'static str, detail: &str) {
        let peer = peer.to_string();
        self.exchange.refusals.report(Refusal { name, peer: &peer, conn: 0, detail });
    }

    /// Serves a connection, after its TLS handshake if there are certificates.
    pub(crate) async fn greet(self: Arc<Self>, transport: Transport, peer: SocketAddr, terms: Terms) {
        let (certificates, stopped) = terms;
        let transport = match certificates {
            None => transport,
            Some(certificates) => match transport.accept_tls(&certificates, Side::Web, None).await {
                Ok(transport) => transport,
                Err(error) => return self.refused(peer.ip(), error.label(), &error.to_string()),
            },
        };
        self.serve(transport, peer, stopped).await;
    }

    /// Serves requests on a connection until it ends or becomes a WebSocket.
    async fn serve(
        self: Arc<Self>,
        transport: Transport,
        peer: SocketAddr,
        mut stopped: watch::Receiver<()>,
    ) {
        let tls = transport.tls().cloned();
        let service = service_fn(move |request: Request<Incoming>| {
            let (site, tls) = (Arc::clone(&self), tls.clone());
            async move {
                let who = site.who(request.headers(), peer, tls);
                Ok::<Answer, Infallible>(site.answer(request, who).await)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .max_buf_size(MOST_HEADERS)
            .serve_connection(TokioIo::new(transport), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = tokio::time::sleep(LIFETIME) => {}
            _ = async { while stopped.changed().await.is_ok() {} } => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(FAREWELL, connection).await;
    }

    /// A reverse proxy is believed if the operator names it, and its last word counts: what stands before it in
    /// `X-Forwarded-For` anybody may have written. Without TLS of ours nothing is taken for safe because a word is
    /// missing: a proxy that says nothing would make everybody local.
    fn who(&self, headers: &HeaderMap, peer: SocketAddr, tls: Option<Arc<TlsInfo>>) -> Who {
        let config = self.exchange.config.load();
        let trusted = |address: IpAddr| config.http.trusted_proxies.iter().any(|it| it.contains(address));
        // A proxy of connections does not read what is said on them: the words are the client's.
        let blind = config.http.proxies.iter().any(|it| it.contains(peer.ip()));
        let forwarded = ["x-forwarded-for", "x-forwarded-proto", "forwarded"];
        let is_forwarded = forwarded.iter().any(|name| headers.contains_key(*name));
        let local = config.http.plain_from_loopback && peer.ip().is_loopback() && !is_forwarded && !blind;
        if blind || !trusted(peer.ip()) || !is_forwarded {
            return Who { address: peer, secure: tls.is_some() || local, tls };
        }
        let texts = |name: &str| {
            headers
                .get_all(name)
                .iter()
                .filter_map(|it| it.to_str().ok())
                .flat_map(|it| it.split(','))
                .map(str::trim)
                .collect::<Vec<_>>()
        };
        let hops = texts("x-forwarded-for");
        let hops = hops.iter().rev().map_while(|hop| address(hop));
        let address = hops.clone().find(|hop| !trusted(*hop)).or(hops.last()).unwrap_or(peer.ip());
        let https =
            texts("x-forwarded-proto").last().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        // The connection is the proxy's: what its TLS agreed on binds nobody's login.
        Who { address: SocketAddr::new(address, peer.port()), secure: https, tls: None }
    }

    async fn answer(self: &Arc<Self>, request: Request<Incoming>, who: Who) -> Answer {
        let path = request.uri().path().to_owned();
        let mut answer = match path.as_str() {
            "/xmpp-websocket" => self.websocket(request, who),
            "/http-bind" => allow_any_origin(self.http_bind(request, who).await),
            "/.well-known/host-meta" | "/.well-known/host-meta.json" => {
                allow_any_origin(self.host_meta(&request))
            }
            _ if self.exchange.config.load().http.chat => self.chat(&request, &who),
            _ => text(StatusCode::NOT_FOUND, "There is nothing here.\n"),
        };
        let headers = answer.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        answer
    }

    /// RFC 7395 s.3.1.
    fn websocket(self: &Arc<Self>, request: Request<Incoming>, who: Who) -> Answer {
        if request.method() != Method::GET {
            return wrong_method("GET");
        }
        let accepted = match websocket::accept(request.headers()) {
            Ok(accepted) => accepted,
            Err(why) => {
                let mut answer = text(why.status(), why.text());
                if why == websocket::NoUpgrade::Version {
                    // RFC 6455 s.4.2.2: the version that is spoken here.
                    answer
                        .headers_mut()
                        .insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                }
                return answer;
            }
        };
        if !who.secure {
            return self.insecure(&who);
        }
        let ip = who.address.ip();
        let guard = match self.clients.enter(ip) {
            Ok(guard) => guard,
            Err(why) => {
                self.refused(ip, why.label(), "a WebSocket was refused");
                return text(StatusCode::TOO_MANY_REQUESTS, "Too many connections.\n");
            }
        };
        let site = Arc::clone(self);
        self.exchange.spawn(async move {
            let upgraded = match hyper::upgrade::on(request).await {
                Ok(upgraded) => upgraded,
                Err(error) => return tracing::debug!(%error, "no WebSocket came of it"),
            };
            let frames = site.enter(who, guard);
            let peer = websocket::Peer { exchange: Arc::clone(&site.exchange), address: ip.to_string() };
            websocket::carry(peer, upgraded, frames).await;
        });
        let mut answer = Response::new(Full::default());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        answer.headers_mut().extend(accepted);
        answer
    }

    /// A session's connection begins; its frames are to be carried.
    fn enter(&self, who: Who, guard: Guard) -> frames::Frames {
        let (transport, frames) = frames::pair(who.secure, who.tls);
        let arrival = Arrival {
            transport,
            peer: who.address,
            certificates: None,
            entry: Entry::Carried,
            guard: Some(guard),
        };
        self.exchange.spawn(login::serve(Arc::clone(&self.exchange), arrival));
        frames
    }

    fn insecure(&self, who: &Who) -> Answer {
        self.refused(who.address.ip(), "web-insecure", "a login over HTTP without TLS");
        text(StatusCode::FORBIDDEN, "Passwords are taken over HTTPS only.\n")
    }

    /// XEP-0124 s.5.
    async fn http_bind(self: &Arc<Self>, request: Request<Incoming>, who: Who) -> Answer {
        match *request.method() {
            Method::POST => {}
            Method::OPTIONS => return Response::new(Full::default()),
            Method::GET | Method::HEAD => {
                return text(StatusCode::OK, "This is an XMPP server's BOSH address (XEP-0124).\n");
            }
            _ => return wrong_method("GET, HEAD, OPTIONS, POST"),
        }
        if !who.secure {
            return self.insecure(&who);
        }
        let ip = who.address.ip();
        let ended = |condition: bosh::Condition, why: &str| {
            self.refused(ip, condition.label(), why);
            xml(condition.body().into())
        };
        let (bytes, room) = match self.body(request, ip).await {
            Ok(read) => read,
            Err(answer) => return answer,
        };
        // As on a WebSocket, before a login.
        let unauthenticated = self.exchange.config.load().limits.stanza_bytes_unauthenticated + BODY_SLACK;
        let size = bytes.len();
        let outcome = match bosh::read(bytes, room) {
            Err((condition, why)) => return ended(condition, &why),
            Ok(bosh::Request::Continue(next)) => self.bindings.go_on(*next, unauthenticated).await,
            Ok(bosh::Request::Begin(_)) if size > unauthenticated => {
                return ended(bosh::Condition::PolicyViolation, "a large request before a login");
            }
            Ok(bosh::Request::Begin(wish)) => {
                let known = trunkline_xmpp::jid::Jid::parse(&wish.to)
                    .is_ok_and(|to| self.exchange.host(to.as_str()).is_some());
                if !known {
                    return ended(bosh::Condition::HostUnknown, "a session with a domain that is not ours");
                }
                match self.clients.enter(ip) {
                    Ok(guard) => {
                        self.bindings.begin(*wish, self.enter(Who { tls: None, ..who }, guard)).await
                    }
                    Err(why) => {
                        self.refused(ip, why.label(), "a BOSH session was refused");
                        // Only one of the reasons is the client's doing.
                        let condition = match why {
                            listen::Refused::Full => bosh::Condition::InternalServerError,
                            _ => bosh::Condition::PolicyViolation,
                        };
                        return xml(condition.body().into());
                    }
                }
            }
        };
        match outcome {
            bosh::Outcome::Answer(bytes) => xml(bytes),
            bosh::Outcome::End(condition, why) => ended(condition, &why),
        }
    }

    /// A request's body, within bounds of bytes, of time, and of what all bodies may take.
    async fn body(&self, request: Request<Incoming>, address: IpAddr) -> Result<(Bytes, Room), Answer> {
        let config = self.exchange.config.load_full();
        let most = config.limits.stanza_bytes + BODY_SLACK;
        let sender = Sender { address, most, counted: config.limits.enabled };
        self.bodies.read(request.into_body(), sender).await.map_err(|why| match why {
            Unread::TooLarge => text(StatusCode::PAYLOAD_TOO_LARGE, "The request is too large.\n"),
            Unread::NoRoom => {
                self.refused(address, "web-bodies", "no room for a request's body");
                text(StatusCode::SERVICE_UNAVAILABLE, "Too much at once. Try again.\n")
            }
            Unread::Broken => text(StatusCode::BAD_REQUEST, "The request broke off.\n"),
            Unread::Late => text(StatusCode::REQUEST_TIMEOUT, "The request took too long.\n"),
        })
    }

    /// XEP-0156 s.3, for the domain that is asked for by its name.
    fn host_meta(&self, request: &Request<Incoming>) -> Answer {
        match *request.method() {
            Method::GET | Method::HEAD => {}
            Method::OPTIONS => return Response::new(Full::default()),
            _ => return wrong_method("GET, HEAD, OPTIONS"),
        }
        let config = self.exchange.config.load();
        let domain = self.domain(request);
        let links = meta::Links::of(&config, &domain);
        let (kind, bytes) = if request.uri().path().ends_with(".json") {
            ("application/json", links.jrd(&config, &domain).to_string().into_bytes())
        } else {
            ("application/xrd+xml; charset=utf-8", links.xrd())
        };
        let mut answer = Response::new(Full::from(bytes));
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        answer
    }

    /// Our domain that a request names, or else the first one.
    fn domain(&self, request: &Request<Incoming>) -> String {
        let host =
            request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let ours = trunkline_xmpp::jid::Jid::parse(name)
            .ok()
            .filter(|jid| self.exchange.host(jid.as_str()).is_some());
        ours.map_or_else(|| self.exchange.config.load().domain.clone(), |jid| jid.as_str().to_owned())
    }

    /// The web chat.
    fn chat(&self, request: &Request<Incoming>, who: &Who) -> Answer {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return wrong_method("GET, HEAD");
        }
        let mut answer = if request.uri().path() == "/chat.json" {
            let text = serde_json::json!({ "domain": self.domain(request) }).to_string();
            let mut answer = Response::new(Full::from(text));
            let headers = answer.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            answer
        } else {
            chat::answer(request.uri().path(), request.headers())
        };
        chat::protect(answer.headers_mut());
        if who.secure && !who.address.ip().is_loopback() {
            let always = HeaderValue::from_static("max-age=31536000");
            answer.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, always);
        }
        answer
    }
}

/// A hop of `X-Forwarded-For`: an address, perhaps with a port.
fn address(hop: &str) -> Option<IpAddr> {
    let ip = hop.parse::<IpAddr>().or_else(|_| hop.parse::<SocketAddr>().map(|it| it.ip()));
    let bracketed = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']'));
    ip.ok().or_else(|| bracketed?.parse().ok()).map(|ip| ip.to_canonical())
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    let mut answer = Response::new(Full::from(text));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

fn wrong_method(allowed: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "That is not done with this.\n");
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    answer
}

fn xml(bytes: Bytes) -> Answer {
    let mut answer = Response::new(Full::from(bytes));
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/xml; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Pages of any origin may ask: nothing here goes by cookies (XEP-0156 s.5, XEP-0124 s.20).
fn allow_any_origin(mut answer: Answer) -> Answer {
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, OPTIONS, POST"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "Content-Type"),
        (header::ACCESS_CONTROL_MAX_AGE, "86400"),
    ] {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}
