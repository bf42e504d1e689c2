//! The HTTP API and the console's files, on a listener of their own.
//!
//! `/api/v1/...` is made of [`table::TABLE`]: a path and a method stand for an operation, the query or the JSON body are
//! its fields, the answer is its [`Outcome`](super::Outcome) or a problem (RFC 9457). Whoever asks shows a token
//! (`Authorization: Bearer`) or the cookie of a console session; everything goes through
//! [`Operator`](crate::operations::Operator), which checks the scope.
//!
//! Deliberately absent: an operation that only HTTP has, CORS, anything that answers without `nosniff` and a policy for
//! contents.

mod listen;
pub mod openapi;
mod problem;
mod rates;
mod sign_in;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method as HttpMethod, Response, StatusCode, header};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::actor::Actor;
use super::table::{self, Method, Row};
use super::{Admin as _, OpError, console, schema, tokens};
use crate::exchange::Exchange;
use crate::net::{CertStore, Gate};
use crate::operations::Operator;
use listen::From as Origin;
use problem::Problem;
use rates::{Rates, Who};
use sign_in::{Sessions, SignedIn};

/// Bytes of a body: a list of blocks to be imported is the largest.
const MOST_BODY: usize = 1 << 20;
/// Bytes of a body of somebody who is about to sign in.
const MOST_SIGN_IN: usize = 8 << 10;
/// Time for a body to come to its end.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// Tokens remembered as good: all there can be, and some that were revoked.
const MOST_GOOD: usize = 2 * tokens::MOST as usize;
/// The cookie of a session.
const COOKIE: &str = "trunkline-session";
/// The same inside TLS: browsers then refuse it from anywhere else (RFC 6265bis s.4.1.3.2).
const SECURE_COOKIE: &str = "__Host-trunkline-session";
/// What a browser may do with our pages.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The API of one server.
struct Api {
    exchange: Arc<Exchange>,
    sessions: Sessions,
    rates: Rates,
    /// Hashes of tokens that were good when they were shown last: who shows another one is a stranger until it was
    /// looked up.
    good_tokens: Mutex<HashSet<Vec<u8>>>,
}

/// What a listener needs.
pub struct Listening {
    /// Bound.
    pub listener: TcpListener,
    /// `None`: no TLS, for loopback.
    pub certificates: Option<Arc<CertStore>>,
    /// Bounds the connections of all listeners of the console.
    pub gate: Arc<Gate>,
    /// Changes when the server stops.
    pub stopped: watch::Receiver<()>,
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listening").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// One API for all listeners: a session is good on each.
#[derive(Clone)]
pub struct Face(Arc<Api>);

impl std::fmt::Debug for Face {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Face")
    }
}

impl Face {
    /// Nobody is signed in.
    pub fn new(exchange: Arc<Exchange>) -> Face {
        Face(Arc::new(Api {
            exchange,
            sessions: Sessions::default(),
            rates: Rates::default(),
            good_tokens: Mutex::default(),
        }))
    }

    /// Serves one listener until the server stops.
    ///
    /// # Errors
    /// Those of the listener.
    pub async fn serve(
        self,
        listening: Listening,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let Listening { listener, certificates, gate, stopped } = listening;
        let address = listener.local_addr()?;
        let (door, doorway) = listen::Door::new(certificates, Arc::clone(&self.0.exchange), address);
        let accepting =
            self.0.exchange.runtime.spawn(crate::net::serve(listener, gate, Arc::new(door), stopped));
        let router = Router::new().fallback(handle).with_state(Arc::clone(&self.0));
        let service = router.into_make_service_with_connect_info::<Origin>();
        let served = axum::serve(doorway, service).with_graceful_shutdown(stop).await;
        accepting.abort();
        served
    }
}

/// A request with what is known of who sends it.
struct Asked {
    method: HttpMethod,
    path: String,
    query: String,
    headers: HeaderMap,
    address: IpAddr,
    tls: bool,
}

async fn handle(
    State(api): State<Arc<Api>>,
    ConnectInfo(origin): ConnectInfo<Origin>,
    request: Request,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    origin.progress.head_is_complete();
    let own_tls = origin.tls;
    let (address, tls) = who(&parts.headers, &origin);
    let asked = Asked {
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        method: parts.method,
        headers: parts.headers,
        address,
        tls,
    };
    let mut response = match asked.path.strip_prefix("/api/") {
        None => api.file(&asked),
        Some(_) => {
            let mut response = api.api(&asked, body).await.unwrap_or_else(Problem::into_response);
            let headers = response.headers_mut();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
    };
    protect(response.headers_mut(), own_tls);
    origin.progress.is_answered();
    response
}

/// Where a request comes from, and whether the browser spoke TLS. A reverse proxy is believed if it is on this machine.
fn who(headers: &HeaderMap, origin: &Origin) -> (IpAddr, bool) {
    let (address, tls) = (origin.address.ip().to_canonical(), origin.tls);
    if !address.is_loopback() {
        return (address, tls);
    }
    let text = |name: &str| headers.get_all(name).iter().next_back().and_then(|value| value.to_str().ok());
    let forwarded = text("x-forwarded-for").and_then(|all| all.rsplit(',').next()?.trim().parse().ok());
    let https = text("x-forwarded-proto").is_some_and(|scheme| scheme.trim().eq_ignore_ascii_case("https"));
    (forwarded.unwrap_or(address), tls || https)
}

/// What every answer carries. `own_tls`: TLS ends here. RFC 6797 s.8.3: the policy holds for the host's every port, so
/// inside somebody else's TLS it is for them to say.
fn protect(headers: &mut HeaderMap, own_tls: bool) {
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::HeaderName::from_static("permissions-policy"), "camera=(), microphone=(), geolocation=()"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if own_tls {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Result<Response<Body>, Problem> {
    let text = serde_json::to_vec(value).map_err(|error| {
        tracing::error!(%error, "an answer can't be written");
        Problem::ours("the answer can't be written")
    })?;
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Who asks, and how they showed it.
enum Caller {
    Token(Actor),
    Session(SignedIn),
}

impl Caller {
    fn actor(&self) -> &Actor {
        match self {
            Caller::Token(actor) => actor,
            Caller::Session(session) => &session.actor,
        }
    }
}

impl Api {
    /// One of the console's files.
    fn file(&self, asked: &Asked) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        if let Err(problem) = self.rate(Who::Stranger(asked.address)) {
            return problem.into_response();
        }
        if asked.method != HttpMethod::GET && asked.method != HttpMethod::HEAD {
            return Problem::wrong_method("GET, HEAD").into_response();
        }
        let Some(asset) = console::file(&asked.path) else {
            return Problem::unknown_path(&asked.path).into_response();
        };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.media_type));
        // Names under /assets/ change with what is in them.
        let caching = if asked.path.starts_with("/assets/") {
            "public, max-age=31536000, immutable"
        } else {
            "no-cache"
        };
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
        let etag = format!("\"{}\"", asset.etag);
        if let Ok(value) = HeaderValue::from_str(&etag) {
            headers.insert(header::ETAG, value);
        }
        let known = asked.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        if known.is_some_and(|known| known.split(',').any(|known| known.trim() == etag)) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else if asked.method == HttpMethod::GET {
            *response.body_mut() = Body::from(asset.bytes);
        }
        response
    }

    fn rate(&self, who: Who<'_>) -> Result<(), Problem> {
        let config = self.exchange.config.load();
        if !config.limits.enabled {
            return Ok(());
        }
        let most = config.console.requests_per_minute;
        self.rates.take(who, most, self.exchange.clock().now()).map_err(|seconds| {
            self.exchange.metrics.refused("console-rate");
            Problem::too_many(seconds)
        })
    }

    async fn api(&self, asked: &Asked, body: Body) -> Result<Response<Body>, Problem> {
        let path = asked.path.strip_prefix("/api/v1").ok_or_else(|| Problem::unknown_path(&asked.path))?;
        let shown = shown(asked);
        let was_good = match &shown {
            Shown::Nothing => false,
            Shown::Token(token) => self.good_tokens.lock().contains(&tokens::hash(token)),
            Shown::Cookie(cookie) => self.sessions.knows(cookie),
        };
        // A stranger is counted before anything is looked up: a wrong token can't be tried without end, nor keep the
        // store busy.
        if !was_good {
            self.rate(Who::Stranger(asked.address))?;
        }
        let caller = self.caller(shown).await?;
        match &caller {
            Some(Caller::Token(actor)) => self.rate(Who::Known(&format!("token {}", actor.name)))?,
            Some(Caller::Session(it)) => self.rate(Who::Known(&format!("session {}", it.actor.name)))?,
            None if was_good => self.rate(Who::Stranger(asked.address))?,
            None => {}
        }
        if asked.headers.contains_key(header::AUTHORIZATION) && caller.is_none() {
            return Err(Problem::unauthorized("the token is unknown, or its time is over"));
        }
        match path {
            "/session" | "/session/totp" => return self.session(asked, (path, caller), body).await,
            "/openapi.json" if asked.method == HttpMethod::GET => {
                return json(StatusCode::OK, openapi::document());
            }
            _ => {}
        }
        let rows: Vec<&Row> = table::TABLE.iter().filter(|row| row.path == path).collect();
        if rows.is_empty() {
            return Err(Problem::unknown_path(&asked.path));
        }
        let wanted = match asked.method {
            HttpMethod::GET => Method::Get,
            HttpMethod::POST => Method::Post,
            _ => return Err(Problem::wrong_method(methods(&rows))),
        };
        let row = rows
            .iter()
            .find(|row| row.method == wanted)
            .ok_or_else(|| Problem::wrong_method(methods(&rows)))?;
        let caller = caller.ok_or_else(|| Problem::unauthorized("sign in, or send a token"))?;
        if wanted == Method::Post {
            check_csrf(asked, &caller)?;
        }
        // Before the body is looked at: who may not do it learns nothing about it.
        if !caller.actor().may(row.scope) {
            return Err(OpError::Forbidden(row.scope.name().into()).into());
        }
        let fields = match row.method {
            Method::Get => from_query(row, &asked.query)?,
            Method::Post => {
                if !asked.query.is_empty() {
                    return Err(Problem::bad_request(
                        "the fields of this operation stand in the body, not in the query",
                    ));
                }
                object(asked, body, MOST_BODY).await?
            }
        };
        let operation = schema::operation(row, fields)?;
        let outcome = Operator(Arc::clone(&self.exchange)).run(caller.actor(), operation).await?;
        json(StatusCode::OK, &outcome)
    }

    /// Who asks. An error: the store's.
    async fn caller(&self, shown: Shown) -> Result<Option<Caller>, Problem> {
        match shown {
            Shown::Nothing => Ok(None),
            Shown::Cookie(cookie) => {
                Ok(self.sessions.find(&self.exchange, &cookie).await?.map(Caller::Session))
            }
            Shown::Token(token) => {
                let actor = tokens::actor(&self.exchange, &token).await?;
                let hash = tokens::hash(&token);
                let mut good = self.good_tokens.lock();
                match &actor {
                    Some(_) => {
                        // Some of them were revoked meanwhile; the others come back.
                        if good.len() >= MOST_GOOD {
                            good.clear();
                        }
                        good.insert(hash);
                    }
                    None => drop(good.remove(&hash)),
                }
                Ok(actor.map(Caller::Token))
            }
        }
    }

    async fn session(
        &self,
        asked: &Asked,
        (path, caller): (&str, Option<Caller>),
        body: Body,
    ) -> Result<Response<Body>, Problem> {
        if path == "/session" && asked.method == HttpMethod::POST {
            if is_foreign(&asked.headers) {
                return Err(Problem::csrf("this request comes from another site"));
            }
            let wanted = read(asked, body).await?;
            let (answer, cookie) = self.sessions.sign_in(&self.exchange, asked.address, wanted).await?;
            let mut response = json(StatusCode::OK, &answer)?;
            if let Some(cookie) = cookie {
                set_cookie(response.headers_mut(), &cookie, asked.tls);
            }
            return Ok(response);
        }
        let session = match caller {
            Some(Caller::Session(session)) => session,
            _ => return Err(Problem::unauthorized("nobody is signed in")),
        };
        let no_content = || {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        };
        match (path, asked.method.as_str()) {
            ("/session", "GET") => {
                let view = self.sessions.view(&self.exchange, &session);
                json(StatusCode::OK, &view.ok_or_else(|| Problem::unauthorized("nobody is signed in"))?)
            }
            ("/session", "DELETE") => {
                check_session_csrf(asked, &session)?;
                self.sessions.sign_out(&session);
                let mut response = no_content();
                set_cookie(response.headers_mut(), "", asked.tls);
                Ok(response)
            }
            ("/session/totp", "POST") => {
                check_session_csrf(asked, &session)?;
                let wanted = read(asked, body).await?;
                match self.sessions.enrol(&self.exchange, &session, wanted).await? {
                    Some(enrolment) => json(StatusCode::OK, &enrolment),
                    None => json(StatusCode::OK, &done("The second factor is in force.")),
                }
            }
            ("/session/totp", "DELETE") => {
                check_session_csrf(asked, &session)?;
                let wanted = read(asked, body).await?;
                self.sessions.forget(&self.exchange, (&session, asked.address), wanted).await?;
                json(StatusCode::OK, &done("The second factor is off."))
            }
            ("/session", _) => Err(Problem::wrong_method("GET, POST, DELETE")),
            _ => Err(Problem::wrong_method("POST, DELETE")),
        }
    }
}

fn done(text: &str) -> super::Outcome {
    super::Outcome::Done { text: text.into() }
}

fn methods(rows: &[&Row]) -> &'static str {
    let has = |method| rows.iter().any(|row| row.method == method);
    match (has(Method::Get), has(Method::Post)) {
        (true, true) => "GET, POST",
        (true, false) => "GET",
        _ => "POST",
    }
}

/// What a request shows of who sends it.
enum Shown {
    Nothing,
    Token(String),
    Cookie(String),
}

fn shown(asked: &Asked) -> Shown {
    let Some(value) = asked.headers.get(header::AUTHORIZATION) else {
        return cookie(&asked.headers, asked.tls).map_or(Shown::Nothing, Shown::Cookie);
    };
    let token = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    });
    token.map_or(Shown::Nothing, Shown::Token)
}

/// The value of our cookie. Inside TLS only the one that no neighbour can set.
fn cookie(headers: &HeaderMap, tls: bool) -> Option<String> {
    let name = if tls { SECURE_COOKIE } else { COOKIE };
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().split_once('=').filter(|(key, _)| *key == name))
        .map(|(_, value)| value.to_owned())
}

fn set_cookie(headers: &mut HeaderMap, value: &str, tls: bool) {
    let name = if tls { SECURE_COOKIE } else { COOKIE };
    let secure = if tls { "; Secure" } else { "" };
    let end = if value.is_empty() { "; Max-Age=0" } else { "" };
    let text = format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict{secure}{end}");
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(header::SET_COOKIE, value);
    }
}

/// A browser says that another site's page made it ask (Fetch Metadata). Programs say nothing.
fn is_foreign(headers: &HeaderMap) -> bool {
    headers
        .get("sec-fetch-site")
        .and_then(|value| value.to_str().ok())
        .is_some_and(|site| site != "same-origin" && site != "none")
}

/// Who shows a cookie has to know the session's secret too: the browser adds the cookie by itself.
fn check_csrf(asked: &Asked, caller: &Caller) -> Result<(), Problem> {
    match caller {
        Caller::Token(_) => Ok(()),
        Caller::Session(session) => check_session_csrf(asked, session),
    }
}

fn check_session_csrf(asked: &Asked, session: &SignedIn) -> Result<(), Problem> {
    let shown = asked.headers.get("x-csrf-token").map(HeaderValue::as_bytes).unwrap_or_default();
    let same = aws_lc_rs::constant_time::verify_slices_are_equal(shown, session.csrf.as_bytes()).is_ok();
    if same && !is_foreign(&asked.headers) {
        return Ok(());
    }
    Err(Problem::csrf("X-CSRF-Token is missing or of another session"))
}

/// The fields of an operation in a query.
fn from_query(row: &Row, query: &str) -> Result<Map<String, Value>, Problem> {
    let mut given = Map::new();
    let known = schema::fields(row);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text: &str| {
            percent_decode_str(&text.replace('+', " "))
                .decode_utf8()
                .map(|text| text.into_owned())
                .map_err(|_| Problem::bad_request("the query is not UTF-8"))
        };
        let (name, value) = (decode(name)?, decode(value)?);
        let Some(field) = known.iter().find(|field| field.name == name) else {
            let name: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
            return Err(Problem::bad_request(format!("{name}: unknown field")));
        };
        let value = field.read(&value)?;
        if given.insert(name, value).is_some() {
            return Err(Problem::bad_request(format!("{}: given twice", field.name)));
        }
    }
    Ok(given)
}

/// A body, bounded.
async fn bytes(asked: &Asked, body: Body, most: usize) -> Result<bytes::Bytes, Problem> {
    let media_type = asked.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = media_type.and_then(|value| value.split(';').next()).map(str::trim);
    if !media_type.is_some_and(|media_type| media_type.eq_ignore_ascii_case("application/json")) {
        return Err(Problem::media_type());
    }
    match tokio::time::timeout(BODY_PATIENCE, to_bytes(body, most)).await {
        Ok(read) => read.map_err(|_| Problem::too_large(most)),
        Err(_) => Err(Problem::too_slow()),
    }
}

async fn object(asked: &Asked, body: Body, most: usize) -> Result<Map<String, Value>, Problem> {
    serde_json::from_slice(&bytes(asked, body, most).await?).map_err(|error| {
        Problem::bad_request(format!(
            "the body is not a JSON object: line {} column {}",
            error.line(),
            error.column()
        ))
    })
}

/// A body of the sign-in.
async fn read<T: DeserializeOwned>(asked: &Asked, body: Body) -> Result<T, Problem> {
    let object = object(asked, body, MOST_SIGN_IN).await?;
    serde_json::from_value(Value::Object(object)).map_err(|error| {
        // Names of fields only: values may be secret.
        let text = error.to_string();
        let text = if text.starts_with("unknown field") { text } else { "a field is of another kind".into() };
        Problem::bad_request(text)
    })
}

/// Where a listener needs TLS: everywhere but on this machine.
pub fn needs_tls(address: SocketAddr) -> bool {
    !address.ip().is_loopback()
}
