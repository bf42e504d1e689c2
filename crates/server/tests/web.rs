//! Clients in browsers, in memory: XMPP over WebSocket (RFC 7395) and BOSH (XEP-0124 with 0206), where to find them
//! (XEP-0156), and what a reverse proxy may say.

#![allow(clippy::unwrap_used, reason = "tests")]

mod house;

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use trunkline_server::net::Transport;
use trunkline_xml::Element;
use trunkline_xmpp::ns;
use trunkline_xmpp::sasl::client::plain;

use house::{House, PASSWORD};

const NEAR: &str = "127.0.0.1:40000";
const FAR: &str = "192.0.2.7:40000";
/// What a reverse proxy on this machine says of a browser far away.
const PROXIED: &str = "X-Forwarded-For: 198.51.100.9\r\nX-Forwarded-Proto: https\r\n";
const FRAMING: &str = "urn:ietf:params:xml:ns:xmpp-framing";
const OPEN: &str = "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='north.localhost' version='1.0'/>";

/// A browser's connection.
struct Browser(Transport);

struct Page {
    status: u16,
    headers: String,
    body: String,
}

impl Page {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (it, value) = line.split_once(':')?;
            it.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Browser {
    async fn new(house: &House, from: &str, encrypted: bool) -> Browser {
        let (ours, theirs) = Transport::pair();
        house.server.browse(theirs, from.parse::<SocketAddr>().unwrap(), encrypted);
        if !encrypted {
            return Browser(ours);
        }
        let config = trunkline_server::net::tls::anonymous_outgoing().unwrap();
        Browser(ours.connect_with(config, "north.localhost", Some("http/1.1")).await.unwrap())
    }

    async fn ask(&mut self, request: &str, headers: &str, body: &str) -> Page {
        let text = format!(
            "{request} HTTP/1.1\r\nHost: north.localhost\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
        self.page().await
    }

    async fn page(&mut self) -> Page {
        let mut bytes = Vec::new();
        let head = loop {
            let mut byte = [0];
            assert_eq!(self.0.read(&mut byte).await.unwrap(), 1, "the connection ended");
            bytes.push(byte[0]);
            if bytes.ends_with(b"\r\n\r\n") {
                break String::from_utf8(bytes).unwrap();
            }
        };
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut page = Page { status, headers: head, body: String::new() };
        let length = page.header("content-length").map_or(0, |it| it.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        page.body = String::from_utf8(body).unwrap();
        page
    }

    async fn socket(mut self, headers: &str) -> Result<Socket, Page> {
        let headers = format!(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: xmpp\r\n{headers}"
        );
        let text = format!("GET /xmpp-websocket HTTP/1.1\r\nHost: north.localhost\r\n{headers}\r\n");
        self.0.write_all(text.as_bytes()).await.unwrap();
        let page = self.page().await;
        if page.status != 101 {
            return Err(page);
        }
        assert_eq!(page.header("sec-websocket-protocol"), Some("xmpp"));
        Ok(Socket(WebSocketStream::from_raw_socket(self.0, Role::Client, None).await))
    }
}

struct Socket(WebSocketStream<Transport>);

impl Socket {
    async fn new(house: &House) -> Socket {
        Browser::new(house, FAR, true).await.socket("").await.map_err(|page| page.body).unwrap()
    }

    async fn send(&mut self, text: &str) {
        self.0.send(Message::Text(text.into())).await.unwrap();
    }

    /// The next element; every message must be one that stands alone.
    async fn next(&mut self) -> Element {
        loop {
            match self.0.next().await.unwrap().unwrap() {
                Message::Text(text) => return Element::parse(text.as_str().as_bytes().to_vec(), "").unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn expect(&mut self, ns: &str, name: &str) -> Element {
        let element = self.next().await;
        assert!(element.root().is(ns, name), "{element:?} is no {name}");
        element
    }

    /// The next message, whatever else comes before.
    async fn message(&mut self) -> String {
        loop {
            let element = self.next().await;
            if element.root().is(ns::CLIENT, "message") {
                return element.root().child(ns::CLIENT, "body").unwrap().text().into_owned();
            }
        }
    }

    async fn open(&mut self) -> Element {
        self.send(OPEN).await;
        let open = self.expect(FRAMING, "open").await;
        assert_eq!(open.root().attr("from").as_deref(), Some("north.localhost"));
        assert!(open.root().attr("id").is_some() && open.root().attr("version").as_deref() == Some("1.0"));
        self.expect(ns::STREAMS, "features").await
    }

    async fn sign_in(&mut self) {
        self.open().await;
        self.send(&auth()).await;
        self.expect(ns::SASL, "success").await;
        let features = self.open().await;
        assert!(features.root().child(ns::BIND, "bind").is_some());
        self.send(BIND).await;
        self.expect(ns::CLIENT, "iq").await;
    }

    /// SASL2 with Bind2 and stream management.
    async fn sign_in_at_once(&mut self) -> String {
        self.open().await;
        let initial = plain("romeo", PASSWORD);
        self.send(&format!(
            "<authenticate xmlns='{}' mechanism='PLAIN'><initial-response>{initial}</initial-response>\
             <bind xmlns='urn:xmpp:bind:0'><tag>web</tag><enable xmlns='urn:xmpp:sm:3' resume='true'/></bind>\
             </authenticate>",
            ns::SASL2
        ))
        .await;
        let success = self.expect(ns::SASL2, "success").await;
        self.expect(ns::STREAMS, "features").await;
        let bound = success.root().child("urn:xmpp:bind:0", "bound").unwrap();
        bound.child(ns::SM, "enabled").unwrap().attr("id").unwrap().into_owned()
    }

    /// The end after an error.
    async fn error(mut self) -> String {
        loop {
            let element = self.next().await;
            if element.root().is(ns::STREAMS, "error") {
                self.expect(FRAMING, "close").await;
                assert!(matches!(self.0.next().await, Some(Ok(Message::Close(_))) | None));
                return element.root().first_child().unwrap().name().to_owned();
            }
        }
    }
}

fn auth() -> String {
    format!("<auth xmlns='{}' mechanism='PLAIN'>{}</auth>", ns::SASL, plain("romeo", PASSWORD))
}

const BIND: &str =
    "<iq xmlns='jabber:client' type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
const NOTE: &str =
    "<message xmlns='jabber:client' type='chat' to='romeo@north.localhost'><body>note</body></message>";

fn count(house: &House, name: &str) -> usize {
    let text = house.server.exchange().metrics.encode();
    let line = text.lines().find(|line| line.contains(&format!("name=\"{name}\"")));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as usize)
}

#[tokio::test(start_paused = true)]
async fn a_day_over_websocket() {
    let house = House::new().await;
    let mut romeo = Socket::new(&house).await;
    romeo.sign_in().await;
    romeo.send("<presence xmlns='jabber:client'/>").await;
    romeo.expect(ns::CLIENT, "presence").await;
    romeo.send(NOTE).await;
    assert_eq!(romeo.message().await, "note");
    // s.3.6: the end is agreed on.
    romeo.send("<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>").await;
    romeo.expect(FRAMING, "close").await;
    assert!(matches!(romeo.0.next().await, Some(Ok(Message::Close(_)))));
}

#[tokio::test(start_paused = true)]
async fn resumed_after_the_socket_broke() {
    let house = House::new().await;
    let mut romeo = Socket::new(&house).await;
    let id = romeo.sign_in_at_once().await;
    romeo.send("<presence xmlns='jabber:client'/>").await;
    romeo.expect(ns::CLIENT, "presence").await;
    drop(romeo);
    let mut other = Socket::new(&house).await;
    other.sign_in().await;
    other.send(NOTE).await;
    let mut again = Socket::new(&house).await;
    again.open().await;
    again.send(&auth()).await;
    again.expect(ns::SASL, "success").await;
    again.open().await;
    again.send(&format!("<resume xmlns='urn:xmpp:sm:3' previd='{id}' h='1'/>")).await;
    let resumed = again.expect(ns::SM, "resumed").await;
    assert_eq!(resumed.root().attr("h").as_deref(), Some("1"), "the presence");
    assert_eq!(again.message().await, "note");
}

#[tokio::test(start_paused = true)]
async fn tls_of_ours_binds_the_login_and_a_proxys_does_not() {
    let house = House::new().await;
    let types = |features: &Element| {
        let bindings = features.root().child(ns::SASL_CB, "sasl-channel-binding");
        bindings
            .map(|it| it.children().filter_map(|it| Some(it.attr("type")?.into_owned())).collect::<Vec<_>>())
    };
    let features = Socket::new(&house).await.open().await;
    let bindings = types(&features).unwrap();
    assert!(bindings.contains(&"tls-exporter".to_owned()), "{bindings:?}");
    assert!(bindings.contains(&"tls-server-end-point".to_owned()), "{bindings:?}");
    let browser = Browser::new(&house, NEAR, false).await;
    let mut socket = browser.socket(PROXIED).await.map_err(|page| page.body).unwrap();
    let features = socket.open().await;
    assert_eq!(types(&features), None);
    let names = features.root().child(ns::SASL, "mechanisms").unwrap();
    let names: Vec<String> = names.children().map(|it| it.text().into_owned()).collect();
    assert!(names.contains(&"PLAIN".to_owned()), "the proxy protects it: {names:?}");
    assert!(!names.iter().any(|it| it.ends_with("-PLUS")), "{names:?}");
}

#[tokio::test(start_paused = true)]
async fn passwords_are_not_taken_in_the_clear() {
    let local = &["http.plain_from_loopback=true"][..];
    let relayed = &["http.plain_from_loopback=true", "http.proxies=[\"127.0.0.1\"]"][..];
    let says = "X-Forwarded-For: 198.51.100.9\r\nX-Forwarded-Proto: http\r\n";
    for (settings, from, headers, taken) in [
        (&[][..], FAR, "", false),
        // Whoever is not named a proxy may say what it likes.
        (&[], FAR, "X-Forwarded-Proto: https\r\n", false),
        (&[], NEAR, says, false),
        (&[], NEAR, "X-Forwarded-For: 198.51.100.9\r\n", false),
        (&[], NEAR, PROXIED, true),
        // It may be a proxy that says nothing.
        (&[], NEAR, "", false),
        (local, NEAR, "", true),
        (local, NEAR, says, false),
        (local, FAR, "", false),
        // A proxy of connections that does not know whose it is, and what the client says on it.
        (relayed, NEAR, "", false),
        (relayed, NEAR, PROXIED, false),
    ] {
        let house = House::with(settings).await;
        let outcome = Browser::new(&house, from, false).await.socket(headers).await;
        assert_eq!(outcome.is_ok(), taken, "{settings:?} {from} {headers}");
        if let Err(page) = outcome {
            assert_eq!(page.status, 403);
        }
        let begin = "<body xmlns='http://jabber.org/protocol/httpbind' rid='1' to='north.localhost'/>";
        let page = Browser::new(&house, from, false).await.ask("POST /http-bind", headers, begin).await;
        assert_eq!(page.status, if taken { 200 } else { 403 }, "{settings:?} {from} {headers}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_version_of_websocket_is_told_ours() {
    let house = House::new().await;
    let headers = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: xmpp\r\n";
    let page = Browser::new(&house, FAR, true).await.ask("GET /xmpp-websocket", headers, "").await;
    assert_eq!((page.status, page.header("sec-websocket-version")), (426, Some("13")));
}

#[tokio::test(start_paused = true)]
async fn mistakes_on_a_websocket_end_the_stream_with_their_name() {
    let house = House::new().await;
    let long = format!("<message xmlns='jabber:client'><body>{}</body></message>", "x".repeat(100_000));
    for (message, condition) in [
        (Message::Text("<a/><b/>".into()), "not-well-formed"),
        (Message::Text("</stream:stream>".into()), "not-well-formed"),
        (Message::Text("<stream:features/>".into()), "not-well-formed"),
        (Message::Text("<!-- x --><a/>".into()), "restricted-xml"),
        (Message::Text("<presence xmlns='jabber:client'/>".into()), "not-authorized"),
        (Message::Binary(b"<a/>".as_slice().into()), "bad-format"),
        (Message::Text(long.into()), "policy-violation"),
    ] {
        let mut socket = Socket::new(&house).await;
        socket.open().await;
        socket.0.send(message).await.unwrap();
        assert_eq!(socket.error().await, condition);
    }
    // Before <open/>, the server's comes first (s.3.5).
    let mut socket = Socket::new(&house).await;
    socket.send("<a/><b/>").await;
    socket.expect(FRAMING, "open").await;
    assert_eq!(socket.error().await, "not-well-formed");
}

#[tokio::test(start_paused = true)]
async fn who_has_logged_in_may_send_more_and_too_much_is_still_too_much() {
    let house = House::with(&["limits.stanza_bytes=100000"]).await;
    let mut socket = Socket::new(&house).await;
    let id = socket.sign_in_at_once().await;
    let text = |bytes: usize| {
        format!(
            "<message xmlns='jabber:client' to='romeo@north.localhost'><body>{}</body></message>",
            "x".repeat(bytes)
        )
    };
    socket.send("<presence xmlns='jabber:client'/>").await;
    socket.expect(ns::CLIENT, "presence").await;
    socket.send(&text(90_000)).await;
    assert_eq!(socket.message().await.len(), 90_000);
    socket.send(&text(110_000)).await;
    assert_eq!(socket.error().await, "policy-violation");
    // Whose stream ended with a mistake can't resume it.
    let mut again = Socket::new(&house).await;
    again.open().await;
    again.send(&auth()).await;
    again.expect(ns::SASL, "success").await;
    again.open().await;
    again.send(&format!("<resume xmlns='urn:xmpp:sm:3' previd='{id}' h='1'/>")).await;
    again.expect(ns::SM, "failed").await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_websocket_is_asked_and_then_lost() {
    let house = House::new().await;
    let mut socket = Socket::new(&house).await;
    socket.sign_in_at_once().await;
    // The client of this test answers pings only when it reads.
    let mut pings = 0;
    let end = tokio::time::Instant::now() + Duration::from_secs(180);
    while let Ok(Some(Ok(message))) = tokio::time::timeout_at(end, socket.0.next()).await {
        pings += usize::from(matches!(message, Message::Ping(_)));
    }
    assert!(pings >= 3, "{pings} pings in three minutes");
    assert_eq!(count(&house, "websocket-silent"), 0);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(count(&house, "websocket-silent"), 1, "no answer any more");
}

#[tokio::test(start_paused = true)]
async fn who_is_not_listened_to_is_not_silent() {
    // What a client sends beyond its rate is read later: here, minutes later.
    let house =
        House::with(&["limits.enabled=true", "limits.client_bytes=100", "limits.client_bytes_burst=100"])
            .await;
    let mut socket = Socket::new(&house).await;
    socket.sign_in().await;
    for _ in 0..7 {
        socket.send(&NOTE.replace("note", &"x".repeat(10_000))).await;
    }
    socket.send(&NOTE.replace("note", &"x".repeat(200_000))).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(count(&house, "client-rate") > 2);
    assert_eq!(count(&house, "websocket-silent"), 0);
    // Nor is who takes long over one message.
    let house = House::new().await;
    let mut socket = Socket::new(&house).await;
    socket.sign_in_at_once().await;
    let wire = socket.0.get_mut();
    // RFC 6455 s.5.2: text, masked with zeros, of 1000 bytes.
    wire.write_all(&[0x81, 0xfe, 0x03, 0xe8, 0, 0, 0, 0]).await.unwrap();
    for _ in 0..10 {
        wire.write_all(b"<").await.unwrap();
        wire.flush().await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    assert_eq!(count(&house, "websocket-silent"), 0);
}

#[tokio::test(start_paused = true)]
async fn connections_from_the_web_count_as_clients_do() {
    let house = House::with(&["limits.enabled=true", "clients.max_connections_per_address=2"]).await;
    let proxied =
        |address: &str| format!("X-Forwarded-For: 203.0.113.5, {address}\r\nX-Forwarded-Proto: https\r\n");
    let open = async |address: &str| Browser::new(&house, NEAR, false).await.socket(&proxied(address)).await;
    let _one = open("198.51.100.9").await.map_err(|page| page.body).unwrap();
    let _two = open("198.51.100.9").await.map_err(|page| page.body).unwrap();
    let three = open("198.51.100.9").await.map(|_| ()).unwrap_err();
    assert_eq!(three.status, 429);
    assert!(open("198.51.100.10").await.is_ok(), "somebody else behind the same proxy");
}

// ------------------------------------------------------------------------------------------------ BOSH

/// A client that counts its requests.
struct Bosh<'a> {
    house: &'a House,
    sid: String,
    rid: u64,
    jid: String,
}

const HTTPBIND: &str = "http://jabber.org/protocol/httpbind";

async fn post(house: &House, body: &str) -> String {
    let page = Browser::new(house, NEAR, false).await.ask("POST /http-bind", PROXIED, body).await;
    assert_eq!(page.status, 200, "{}", page.body);
    assert_eq!(page.header("content-type"), Some("text/xml; charset=utf-8"));
    assert_eq!(page.header("access-control-allow-origin"), Some("*"));
    page.body
}

impl<'a> Bosh<'a> {
    async fn new(house: &'a House, more: &str) -> (Bosh<'a>, Element) {
        let rid = 4_503_599_627;
        let body = format!(
            "<body xmlns='{HTTPBIND}' rid='{rid}' to='north.localhost' ver='1.6' xml:lang='en' \
             xmlns:xmpp='urn:xmpp:xbosh' xmpp:version='1.0' {more}/>"
        );
        let answer = Element::parse(post(house, &body).await.into_bytes(), "").unwrap();
        let sid = answer.root().attr("sid").unwrap_or_else(|| panic!("{answer:?}")).into_owned();
        (Bosh { house, sid, rid, jid: String::new() }, answer)
    }

    /// A session that has logged in and is available.
    async fn present(house: &'a House) -> Bosh<'a> {
        let (mut romeo, _) = Bosh::new(house, "wait='30' hold='1'").await;
        romeo.sign_in().await;
        romeo.ask("", "<presence xmlns='jabber:client'/>").await;
        romeo
    }

    fn body(&self, rid: u64, more: &str, inside: &str) -> String {
        format!(
            "<body xmlns='{HTTPBIND}' rid='{rid}' sid='{}' xmlns:xmpp='urn:xmpp:xbosh' {more}>{inside}</body>",
            self.sid
        )
    }

    async fn raw(&mut self, more: &str, inside: &str) -> String {
        self.rid += 1;
        post(self.house, &self.body(self.rid, more, inside)).await
    }

    async fn ask(&mut self, more: &str, inside: &str) -> Element {
        Element::parse(self.raw(more, inside).await.into_bytes(), "").unwrap()
    }

    async fn sign_in(&mut self) {
        let answer = self.ask("", &auth()).await;
        assert!(answer.root().child(ns::SASL, "success").is_some(), "{answer:?}");
        let answer = self.ask("xmpp:restart='true' to='north.localhost'", "").await;
        let features = answer.root().child(ns::STREAMS, "features").unwrap();
        assert!(features.child(ns::BIND, "bind").is_some());
        let answer = self.ask("", BIND).await;
        let bound = answer.root().child(ns::CLIENT, "iq").and_then(|iq| iq.child(ns::BIND, "bind")).unwrap();
        self.jid = bound.child(ns::BIND, "jid").unwrap().text().into_owned();
    }
}

fn ended(body: &str) -> Option<String> {
    let element = Element::parse(body.as_bytes().to_vec(), "").unwrap();
    let root = element.root();
    let end = root.attr("type").as_deref() == Some("terminate");
    end.then(|| root.attr("condition").map(|it| it.into_owned()).unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn a_day_over_bosh() {
    let house = House::new().await;
    let (mut romeo, answer) = Bosh::new(&house, "wait='30' hold='1'").await;
    let root = answer.root();
    let attr = |name: &str| root.attr(name).map(|it| it.into_owned());
    assert_eq!(attr("wait").as_deref(), Some("30"));
    assert_eq!(attr("requests").as_deref(), Some("2"));
    assert_eq!(attr("ver").as_deref(), Some("1.6"), "the client's, which is older");
    assert_eq!(attr("from").as_deref(), Some("north.localhost"));
    assert!(attr("authid").is_some() && attr("inactivity").is_some() && attr("polling").is_some());
    assert_eq!(root.attr_ns("urn:xmpp:xbosh", "restartlogic").as_deref(), Some("true"));
    assert!(root.child(ns::STREAMS, "features").is_some(), "the features come along: {answer:?}");
    romeo.sign_in().await;
    let answer = romeo.ask("", "<presence xmlns='jabber:client'/>").await;
    assert!(answer.root().child(ns::CLIENT, "presence").is_some());
    // One request waits while another brings a message; the answer to the first has it.
    let waiting = romeo.body(romeo.rid + 1, "", "");
    let bringing = romeo.body(romeo.rid + 2, "", NOTE);
    romeo.rid += 2;
    let (first, second) = tokio::join!(post(&house, &waiting), async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        post(&house, &bringing).await
    });
    assert!(format!("{first}{second}").contains("<body>note</body>"), "{first} {second}");
    // A request that nothing comes for is answered when it has waited long enough.
    let before = tokio::time::Instant::now();
    assert_eq!(romeo.raw("", "").await, format!("<body xmlns='{HTTPBIND}'/>"));
    assert_eq!(before.elapsed().as_secs(), 30);
    assert_eq!(
        ended(&romeo.raw("type='terminate'", "<presence xmlns='jabber:client' type='unavailable'/>").await),
        Some(String::new())
    );
    assert_eq!(ended(&romeo.raw("", "").await).as_deref(), Some("item-not-found"));
}

#[tokio::test(start_paused = true)]
async fn requests_are_taken_in_their_order_and_answered_again() {
    let house = House::new().await;
    let romeo = Bosh::present(&house).await;
    // The second comes first: it is not taken before the first.
    let text = |n: u64| NOTE.replace("note", &format!("note {n}"));
    let (one, two) = (romeo.body(romeo.rid + 1, "", &text(1)), romeo.body(romeo.rid + 2, "", &text(2)));
    let (second, first) = tokio::join!(post(&house, &two), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        post(&house, &one).await
    });
    let both = format!("{first}{second}");
    let both = if both.contains("note 2") {
        both
    } else {
        both + &post(&house, &romeo.body(romeo.rid + 3, "", "")).await
    };
    let at = |n: u64| both.find(&format!("note {n}")).unwrap_or_else(|| panic!("{both}"));
    assert!(at(1) < at(2), "{both}");
    // A connection broke: the same request gets the same answer.
    assert_eq!(post(&house, &two).await, second);
    assert_eq!(post(&house, &one.replace("note 1", "note 3")).await, first, "nothing is taken twice");
}

#[tokio::test(start_paused = true)]
async fn what_is_outside_of_the_window_ends_the_session() {
    let house = House::new().await;
    for wrong in [3, 100] {
        let (romeo, _) = Bosh::new(&house, "wait='30' hold='1'").await;
        let body = post(&house, &romeo.body(romeo.rid + wrong, "", "")).await;
        assert_eq!(
            body,
            format!("<body xmlns='{HTTPBIND}' type='terminate' condition='item-not-found'/>"),
            "{wrong}"
        );
        assert_eq!(
            ended(&post(&house, &romeo.body(romeo.rid + 1, "", "")).await).as_deref(),
            Some("item-not-found")
        );
    }
    let (mut romeo, _) = Bosh::new(&house, "wait='30' hold='1'").await;
    romeo.sign_in().await;
    let old = romeo.body(romeo.rid - 3, "", "");
    assert_eq!(ended(&post(&house, &old).await).as_deref(), Some("item-not-found"), "its answer is not kept");
}

#[tokio::test(start_paused = true)]
async fn who_polls_too_often_is_sent_away() {
    let house = House::new().await;
    let (mut romeo, _) = Bosh::new(&house, "wait='30' hold='0'").await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(ended(&romeo.raw("", "").await), None, "every three seconds is well");
    }
    assert_eq!(ended(&romeo.raw("", "").await).as_deref(), Some("policy-violation"));
}

#[tokio::test(start_paused = true)]
async fn a_session_without_requests_is_over_and_its_messages_are_not() {
    let house = House::new().await;
    let romeo = Bosh::present(&house).await;
    // From another device, while the first one is away between two requests.
    let mut other = Socket::new(&house).await;
    other.sign_in().await;
    other.send(NOTE).await;
    tokio::time::sleep(Duration::from_secs(90)).await;
    let late = romeo.body(romeo.rid + 1, "", "");
    assert_eq!(ended(&post(&house, &late).await).as_deref(), Some("item-not-found"));
    let mut again = Socket::new(&house).await;
    again.sign_in().await;
    again.send("<presence xmlns='jabber:client'/>").await;
    assert_eq!(again.message().await, "note");
}

#[tokio::test(start_paused = true)]
async fn what_a_client_may_not_have_waits_for_it_and_what_it_has_does_not() {
    let house = House::new().await;
    let (mut romeo, _) = Bosh::new(&house, "wait='30' hold='1'").await;
    romeo.sign_in().await;
    romeo.ask("", "<presence xmlns='jabber:client'/>").await;
    let mut other = Socket::new(&house).await;
    other.sign_in().await;
    // Never is there a moment without something on its way.
    for n in 1..=5 {
        other.send(&NOTE.replace("note", &format!("note {n}"))).await;
        assert!(romeo.raw("", "").await.contains(&format!("note {n}")));
    }
    // The request after the fifth may have crossed the answer with it.
    let crossing = romeo.body(romeo.rid + 1, "", "");
    let gone = tokio::time::timeout(Duration::from_secs(5), post(&house, &crossing));
    assert!(gone.await.is_err());
    tokio::time::sleep(Duration::from_secs(120)).await;
    let mut again = Socket::new(&house).await;
    again.sign_in().await;
    again.send("<presence xmlns='jabber:client'/>").await;
    assert_eq!(again.message().await, "note 5");
    let next = tokio::time::timeout(Duration::from_secs(5), again.message()).await;
    assert!(next.is_err(), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn who_has_not_logged_in_may_not_bring_much() {
    let house = House::new().await;
    let (mut romeo, _) = Bosh::new(&house, "wait='30' hold='1'").await;
    let large = format!("<auth xmlns='{}' mechanism='PLAIN'>{}</auth>", ns::SASL, "A".repeat(50_000));
    assert_eq!(ended(&romeo.raw("", &large).await).as_deref(), Some("policy-violation"));
    let begin = format!("<body xmlns='{HTTPBIND}' rid='1' to='north.localhost'>{large}</body>");
    assert_eq!(ended(&post(&house, &begin).await).as_deref(), Some("policy-violation"));
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_waited_for() {
    let house = House::new().await;
    let (mut romeo, _) = Bosh::new(&house, "wait='30' hold='1'").await;
    romeo.sign_in().await;
    assert_eq!(romeo.raw("pause='120'", "").await, format!("<body xmlns='{HTTPBIND}'/>"));
    // What comes meanwhile waits; the client is not taken for one that does not read.
    let mut other = Socket::new(&house).await;
    other.sign_in().await;
    let to = romeo.jid.clone();
    other.send(&NOTE.replace("romeo@north.localhost", &to)).await;
    tokio::time::sleep(Duration::from_secs(110)).await;
    let mut answer = romeo.raw("", "<presence xmlns='jabber:client'/>").await;
    if !answer.contains("<presence") {
        answer += &romeo.raw("", "").await;
    }
    assert!(answer.contains("<body>note</body>") && answer.contains("<presence"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_and_keys() {
    let house = House::new().await;
    // XEP-0124 s.15: K(n) is the hash of K(n-1).
    let sha1 = |text: &str| {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let keys: Vec<String> =
        std::iter::successors(Some("seed".to_owned()), |key| Some(sha1(key))).take(6).collect();
    // Hexadecimal digits are the same in capitals (s.15.3).
    let new_key = keys[5].to_uppercase();
    let (mut romeo, answer) =
        Bosh::new(&house, &format!("wait='30' hold='1' ack='1' newkey='{new_key}'")).await;
    assert_eq!(answer.root().attr("ack").as_deref(), Some(&*romeo.rid.to_string()));
    assert_eq!(ended(&romeo.raw(&format!("key='{}'", keys[4]), &auth()).await), None);
    assert_eq!(ended(&romeo.raw("key='wrong'", "").await).as_deref(), Some("item-not-found"));
}

#[tokio::test(start_paused = true)]
async fn errors_of_bosh_byte_for_byte() {
    let house = House::new().await;
    let end =
        |condition: &str| format!("<body xmlns='{HTTPBIND}' type='terminate' condition='{condition}'/>");
    for (body, condition) in [
        ("".to_owned(), "bad-request"),
        ("<html/>".to_owned(), "bad-request"),
        (format!("<body xmlns='{HTTPBIND}' to='north.localhost'/>"), "bad-request"),
        (format!("<body xmlns='{HTTPBIND}' rid='1'/>"), "improper-addressing"),
        (format!("<body xmlns='{HTTPBIND}' rid='1' to='elsewhere.example'/>"), "host-unknown"),
        (format!("<body xmlns='{HTTPBIND}' rid='1' sid='x'/>"), "item-not-found"),
    ] {
        assert_eq!(post(&house, &body).await, end(condition), "{body}");
    }
    // An error of the stream is inside of the body that ends it (s.17.2).
    let (mut romeo, _) = Bosh::new(&house, "wait='30' hold='1'").await;
    let last = romeo.ask("", "<presence xmlns='jabber:client'/>").await;
    let root = last.root();
    assert_eq!(root.attr("condition").as_deref(), Some("remote-stream-error"));
    assert_eq!(root.child(ns::STREAMS, "error").unwrap().first_child().unwrap().name(), "not-authorized");
    // Known to be too large before it comes.
    let mut browser = Browser::new(&house, NEAR, false).await;
    let head = format!(
        "POST /http-bind HTTP/1.1\r\nHost: north.localhost\r\n{PROXIED}Content-Length: 1048576\r\n\r\n"
    );
    browser.0.write_all(head.as_bytes()).await.unwrap();
    let page = browser.page().await;
    assert_eq!(page.status, 413);
}

// ------------------------------------------------------------------------------------------------ pages

#[tokio::test(start_paused = true)]
async fn where_to_find_it() {
    let house = House::with(&["http.url=https://chat.north.localhost"]).await;
    let mut browser = Browser::new(&house, FAR, true).await;
    let page = browser.ask("GET /.well-known/host-meta", "", "").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("application/xrd+xml; charset=utf-8")));
    assert_eq!(page.header("access-control-allow-origin"), Some("*"));
    assert!(page.body.contains("href='wss://chat.north.localhost/xmpp-websocket'"), "{}", page.body);
    let page = browser.ask("GET /.well-known/host-meta.json", "", "").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("application/json")));
    assert!(page.body.contains("\"href\":\"https://chat.north.localhost/http-bind\""), "{}", page.body);
    let page = browser.ask("OPTIONS /http-bind", "Origin: https://elsewhere.example\r\n", "").await;
    assert_eq!(page.header("access-control-allow-headers"), Some("Content-Type"));
    let page = browser.ask("GET /chat.json", "", "").await;
    assert_eq!(page.body, "{\"domain\":\"north.localhost\"}");
    let page = browser.ask("GET /", "", "").await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    assert_eq!(page.header("access-control-allow-origin"), None);
    assert_eq!(browser.ask("DELETE /", "", "").await.status, 405);
    assert_eq!(browser.ask("GET /../../etc/passwd", "", "").await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn garbage_on_the_web_listener_ends_the_connection_only() {
    let house = House::new().await;
    for garbage in [
        &b"\x16\x03\x01"[..],
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"<?xml version='1.0'?><stream:stream>\r\n\r\n",
    ] {
        let (mut ours, theirs) = Transport::pair();
        house.server.browse(theirs, FAR.parse().unwrap(), false);
        ours.write_all(garbage).await.unwrap();
        let mut rest = Vec::new();
        // Answered with 400, or after the time for headers not at all.
        let _ = tokio::time::timeout(Duration::from_secs(200), ours.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&rest));
    }
    let mut browser = Browser::new(&house, FAR, true).await;
    assert_eq!(browser.ask("GET /http-bind", "", "").await.status, 200);
}
