//! A server in this process and clients with real TLS, in memory.

#![allow(dead_code, reason = "each test uses what it needs")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use trunkline_server::admin::{Password, accounts};
use trunkline_server::config::overrides::Overrides;
use trunkline_server::config::{Config, TlsPolicy};
use trunkline_server::net::pki::{Authority, Leaf};
use trunkline_server::net::{TlsInfo, Transport};
use trunkline_server::serve::{Parts, Server};
use trunkline_server::session::login::Entry;
use trunkline_xml::{Element, Event, Limits, Scanner};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

pub(crate) const PASSWORD: &str = "wherefore art thou";
pub(crate) const HEADER: &str = "<stream:stream to='north.localhost' version='1.0' xmlns='jabber:client' \
                      xmlns:stream='http://etherx.jabber.org/streams'>";

pub(crate) struct House {
    pub(crate) server: Arc<Server>,
    pub(crate) files: tempfile::TempDir,
}

impl House {
    pub(crate) async fn new() -> House {
        House::with(&[]).await
    }

    /// With further settings.
    pub(crate) async fn with(settings: &[&str]) -> House {
        let files = tempfile::tempdir().unwrap();
        let (chain, key) = (files.path().join("chain.pem"), files.path().join("key.pem"));
        let authority = Authority::new("house").unwrap();
        authority.issue(&Leaf::new("north.localhost", 30)).unwrap().write(&chain, &key).unwrap();
        std::fs::write(files.path().join("ca.pem"), authority.pem()).unwrap();
        let mut presets = Overrides::default();
        for setting in [
            "domain=north.localhost".to_owned(),
            format!("data_dir={}", files.path().display()),
            "hosts.\"south.localhost\"={}".to_owned(),
            "clients.listen=[]".to_owned(),
            "federation.enabled=false".to_owned(),
            "federation.listen=[]".to_owned(),
            "limits.enabled=false".to_owned(),
            "accounts.password_iterations=4096".to_owned(),
            format!("tls.certificate={}", chain.display()),
            format!("tls.key={}", key.display()),
        ] {
            presets.set(&setting).unwrap();
        }
        for setting in settings {
            presets.set(setting).unwrap();
        }
        let text = trunkline_server::config::template(&presets);
        let config = Config::parse(&text, Path::new("logins.toml")).unwrap();
        let server = Server::start(config, Parts { in_memory: true, ..Parts::default() }).await.unwrap();
        let jid = Jid::parse("romeo@north.localhost").unwrap();
        let new =
            accounts::NewAccount { jid: &jid, password: &Password::new(PASSWORD), iterations: 4096, now: 0 };
        accounts::add(&server.exchange().db, new, None).await.unwrap();
        House { server, files }
    }

    /// How often a login ended like that.
    pub(crate) fn counted(&self, mechanism: &str, result: &str) -> bool {
        let text = self.server.exchange().metrics.encode();
        text.lines().any(|line| {
            line.contains(&format!("mechanism=\"{mechanism}\""))
                && line.contains(&format!("result=\"{result}\""))
                && !line.ends_with(" 0")
        })
    }

    pub(crate) async fn dial(&self, entry: Entry) -> Client {
        let (ours, theirs) = Transport::pair();
        self.server.accept(theirs, SocketAddr::from(([192, 0, 2, 1], 1)), entry);
        Client::new(ours)
    }

    /// STARTTLS taken, the second header answered; the features that stand there.
    pub(crate) async fn encrypted(&self) -> (Client, Element) {
        let mut client = self.dial(Entry::StartTls(TlsPolicy::Required)).await;
        client.send(HEADER).await;
        let features = client.next().await;
        assert!(features.root().child(ns::TLS, "starttls").is_some());
        assert!(features.root().child(ns::SASL, "mechanisms").is_none(), "no login without TLS");
        client.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await;
        assert!(client.next().await.root().is(ns::TLS, "proceed"));
        client.encrypt(None).await;
        client.send(HEADER).await;
        let features = client.next().await;
        (client, features)
    }
}

pub(crate) struct Client {
    pub(crate) transport: Option<Transport>,
    pub(crate) scanner: Scanner,
    input: Vec<u8>,
}

impl Client {
    pub(crate) fn new(transport: Transport) -> Client {
        Client { transport: Some(transport), scanner: Scanner::new(Limits::default()), input: Vec::new() }
    }

    pub(crate) async fn encrypt(&mut self, alpn: Option<&str>) {
        let config = trunkline_server::net::tls::anonymous_outgoing().unwrap();
        let plain = self.transport.take().unwrap();
        self.transport = Some(plain.connect_with(config, "north.localhost", alpn).await.unwrap());
        self.scanner.restart();
    }

    pub(crate) fn tls(&self) -> &TlsInfo {
        self.transport.as_ref().unwrap().tls().unwrap()
    }

    pub(crate) async fn send(&mut self, xml: &str) {
        let transport = self.transport.as_mut().unwrap();
        transport.write_all(xml.as_bytes()).await.unwrap();
        transport.flush().await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Element {
        loop {
            let mut rest = self.input.as_slice();
            let event = self.scanner.next(&mut rest).unwrap();
            let used = self.input.len() - rest.len();
            self.input.drain(..used);
            match event {
                Some(Event::Element(element)) => return element,
                Some(Event::Close) => panic!("the stream was closed"),
                Some(_) => continue,
                None => {}
            }
            let mut buffer = [0; 4096];
            let read = self.transport.as_mut().unwrap().read(&mut buffer).await.unwrap();
            assert!(read > 0, "the connection ended");
            self.input.extend_from_slice(&buffer[..read]);
        }
    }
}
