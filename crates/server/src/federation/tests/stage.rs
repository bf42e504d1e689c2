//! Servers, people and rogues for the tests: everything in this process, in memory, in virtual time.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::AbortHandle;
use trunkline_store::{Batch, Lane, sql};
use trunkline_xml::{Element, Event, Limits, Scanner};
use trunkline_xmpp::jid::Jid;

use crate::admin::actor::Actor;
use crate::admin::{Admin as _, OpError, Operation, Outcome};
use crate::config::Config;
use crate::config::overrides::Overrides;
use crate::exchange::Exchange;
use crate::federation::accept::Arrival;
use crate::federation::dial::Network;
use crate::federation::wire::Wire;
use crate::federation::{Federation, Ground, Parts};
use crate::ids::Clock;
use crate::net::dns::FakeResolver;
use crate::net::pki::{Authority, Leaf};
use crate::net::{CertSource, CertStore, Transport, TrustRoots};
use crate::operations::Operator;
use crate::serve::{self, Server};

/// A network in memory: connections that can be cut.
#[derive(Debug, Default)]
pub(crate) struct Wires {
    sites: Mutex<HashMap<IpAddr, Where>>,
    links: Mutex<Vec<AbortHandle>>,
    /// Connections made so far.
    pub(crate) dialled: Mutex<usize>,
    /// Each connection comes from an address of its own, as far as its stream knows.
    pub(crate) from_many: Mutex<bool>,
}

#[derive(Clone, Debug)]
enum Where {
    Site(Federation),
    Rogue(tokio::sync::mpsc::UnboundedSender<Transport>),
}

impl Wires {
    /// Connects to whoever is at `address`; port 5270 is direct TLS.
    pub(crate) fn dial(&self, address: SocketAddr) -> io::Result<Transport> {
        let place = self.sites.lock().get(&address.ip()).cloned().ok_or(io::ErrorKind::ConnectionRefused)?;
        let serial = {
            let mut dialled = self.dialled.lock();
            *dialled += 1;
            if *self.from_many.lock() { *dialled % 250 } else { 1 }
        };
        let (here, mut a) = tokio::io::duplex(64 * 1024);
        let (there, mut b) = tokio::io::duplex(64 * 1024);
        let pump = tokio::spawn(async move {
            let _ = tokio::io::copy_bidirectional(&mut a, &mut b).await;
        });
        self.links.lock().push(pump.abort_handle());
        match place {
            Where::Site(federation) => {
                let arrival = Arrival {
                    transport: there.into(),
                    // An address of documentation: all servers in memory are behind it.
                    unproved: federation.shared.let_in(IpAddr::from([203, 0, 113, 1])).ok(),
                    peer: format!("203.0.113.{serial}:5269"),
                    direct_tls: address.port() == 5270,
                    guard: None,
                };
                tokio::spawn(Arc::clone(&federation.shared).accept(arrival));
            }
            Where::Rogue(sender) => {
                let _ = sender.send(there.into());
            }
        }
        Ok(here.into())
    }

    /// Cuts every connection without a word.
    pub(crate) fn cut(&self) {
        for link in self.links.lock().drain(..) {
            link.abort();
        }
    }

    /// Nobody is at that site any more; a later [`Wires::plug`] brings it back.
    pub(crate) fn unplug(&self, site: &Site) {
        self.sites.lock().remove(&site.address);
        self.cut();
    }

    pub(crate) fn plug(&self, site: &Site) {
        self.sites.lock().insert(site.address, Where::Site(site.federation.clone()));
    }
}

/// Everything that the servers of one test share.
pub(crate) struct World {
    pub(crate) wires: Arc<Wires>,
    pub(crate) resolver: Arc<FakeResolver>,
    pub(crate) authority: Authority,
    pub(crate) files: tempfile::TempDir,
    names: Vec<String>,
}

/// One server.
pub(crate) struct Site {
    pub(crate) server: Arc<Server>,
    pub(crate) federation: Federation,
    pub(crate) address: IpAddr,
}

/// The dates that certificates in tests are valid; virtual time begins with 2026.
pub(crate) fn dates() -> (Timestamp, Timestamp) {
    ("2025-06-01T00:00:00Z".parse().unwrap(), "2027-01-01T00:00:00Z".parse().unwrap())
}

pub(crate) fn leaf(domain: &str) -> Leaf {
    Leaf { valid: dates(), ..Leaf::new(domain, 1) }
}

impl World {
    /// Every name gets an address, in order: 10.0.0.1 and so on, in DNS as A records.
    pub(crate) fn new(names: &[&str]) -> World {
        let mut resolver = FakeResolver::new();
        for (index, name) in names.iter().enumerate() {
            resolver = resolver.address(name, ip(index));
        }
        World {
            wires: Arc::default(),
            resolver: Arc::new(resolver),
            authority: Authority::new("Test Authority").unwrap(),
            files: tempfile::tempdir().unwrap(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    /// A further name of a server that stands already: a component's.
    pub(crate) fn also(&self, site: &Site, name: &str) {
        let address = ip(self.names.iter().position(|known| known == name).unwrap());
        self.wires.sites.lock().insert(address, Where::Site(site.federation.clone()));
    }

    /// A server whose certificate everybody trusts.
    pub(crate) async fn site(&self, domain: &str, settings: &[&str]) -> Site {
        self.site_with(domain, &leaf(domain), settings).await
    }

    /// A server with this certificate.
    pub(crate) async fn site_with(&self, domain: &str, leaf: &Leaf, settings: &[&str]) -> Site {
        let certs = self.certs(domain, leaf);
        self.site_of(domain, certs, settings).await
    }

    pub(crate) async fn site_of(&self, domain: &str, certs: Arc<CertStore>, settings: &[&str]) -> Site {
        let mut presets = Overrides::default();
        let fixed = [
            format!("domain={domain}"),
            "data_dir=/nonexistent".into(),
            "clients.listen=[]".into(),
            "federation.listen=[]".into(),
            "federation.allow_private=true".into(),
            // Whoever writes is let in; what is about strangers says so.
            "federation.preset=open".into(),
        ];
        for setting in fixed.iter().map(String::as_str).chain(settings.iter().copied()) {
            presets.set(setting).unwrap();
        }
        let config = Config::parse(&crate::config::template(&presets), Path::new("test.toml")).unwrap();
        let parts = serve::Parts { clock: Clock::virtual_now(), in_memory: true, ..serve::Parts::default() };
        // Boxed: without optimisation its frame is most of the stack of a test.
        let server = Box::pin(Server::start(config, parts)).await.unwrap();
        let federation = self.federate(server.exchange(), certs).await;
        let address = ip(self.names.iter().position(|name| name == domain).unwrap());
        let site = Site { server, federation, address };
        self.wires.plug(&site);
        site
    }

    /// Gives a server its federation.
    pub(crate) async fn federate(&self, exchange: &Arc<Exchange>, certs: Arc<CertStore>) -> Federation {
        let roots = TrustRoots::certificates(vec![self.authority.der()]).unwrap();
        let parts = Parts {
            certs,
            roots: Arc::new(ArcSwap::from_pointee(roots)),
            resolver: Arc::clone(&self.resolver) as Arc<dyn crate::net::Resolver>,
            inside_threads: 1,
        };
        let ground = Ground {
            runtime: tokio::runtime::Handle::current(),
            network: Network::Memory(Arc::clone(&self.wires)),
        };
        let federation = Federation::start_on(exchange, parts, ground).await.unwrap();
        let _ = exchange.remote.set(Arc::new(federation.clone()));
        federation
    }

    pub(crate) fn certs(&self, name: &str, leaf: &Leaf) -> Arc<CertStore> {
        let pem = self.authority.issue(leaf).unwrap();
        self.store(name, &pem)
    }

    pub(crate) fn store(&self, name: &str, pem: &crate::net::pki::Pem) -> Arc<CertStore> {
        let (chain, key) =
            (self.files.path().join(format!("{name}.crt")), self.files.path().join(format!("{name}.key")));
        pem.write(&chain, &key).unwrap();
        CertStore::load(&[CertSource { domains: Vec::new(), chain, key }]).unwrap()
    }

    /// Takes the connections to `name` for the test to answer.
    pub(crate) fn rogue(&self, name: &str) -> tokio::sync::mpsc::UnboundedReceiver<Transport> {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let address = ip(self.names.iter().position(|known| known == name).unwrap());
        self.wires.sites.lock().insert(address, Where::Rogue(sender));
        receiver
    }
}

fn ip(index: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, u8::try_from(index + 1).unwrap()))
}

impl Site {
    pub(crate) fn exchange(&self) -> &Arc<Exchange> {
        self.server.exchange()
    }

    /// An administrator at the command line.
    pub(crate) async fn admin(&self, operation: Operation) -> Result<Outcome, OpError> {
        // Boxed: the future of all operations is large, and tests have small stacks.
        Box::pin(Operator(Arc::clone(self.exchange())).run(&Actor::command_line(), operation)).await
    }

    pub(crate) fn refusals(&self, name: &'static str) -> u64 {
        self.exchange().metrics.refusals(name)
    }

    /// Rows in the table of stanzas for other domains.
    pub(crate) async fn outbound(&self) -> i64 {
        let rows = self.exchange().db.read(sql("SELECT COUNT(*) FROM outbound")).await.unwrap();
        rows.first().map_or(0, |row| row.int(0))
    }

    /// An account, and a client of it that is online.
    pub(crate) async fn person(&self, address: &str) -> Person {
        let jid: Jid = address.parse().unwrap();
        let host = self.exchange().host(jid.domain()).unwrap();
        let insert = sql("INSERT INTO accounts (host_id, local, created_at) VALUES (?1, ?2, 0)")
            .bind(host.id)
            .bind(jid.local().unwrap());
        self.exchange().db.run(Batch::new(Lane::Inside).with(insert)).await.unwrap();
        let mut person = self.device(address).await;
        person.arrived().await;
        person
    }

    /// A further client of an account, online.
    pub(crate) async fn device(&self, address: &str) -> Person {
        let jid: Jid = address.parse().unwrap();
        let (ours, theirs) = tokio::io::duplex(1024 * 1024);
        self.server.seat(Transport::from(theirs), &jid.bare());
        let mut person = Person { stream: ours, scanner: Scanner::new(Limits::default()), input: Vec::new() };
        person
            .send(&format!(
                "<stream:stream to='{}' version='1.0' xmlns='jabber:client' \
                 xmlns:stream='http://etherx.jabber.org/streams'>",
                jid.domain()
            ))
            .await;
        person
            .send(&format!(
                "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>{}</resource></bind></iq><presence/>",
                jid.resource().unwrap()
            ))
            .await;
        person
    }
}

impl Site {
    /// A component, connected (XEP-0114).
    pub(crate) async fn component(&self, domain: &str, secret: &str) -> Person {
        let (ours, theirs) = tokio::io::duplex(1024 * 1024);
        let peer = SocketAddr::from(([127, 0, 0, 1], 0));
        tokio::spawn(crate::session::component::serve(Arc::clone(self.exchange()), theirs, peer));
        let mut person = Person { stream: ours, scanner: Scanner::new(Limits::default()), input: Vec::new() };
        person
            .send(&format!(
                "<stream:stream to='{domain}' xmlns='jabber:component:accept' \
                 xmlns:stream='http://etherx.jabber.org/streams'>"
            ))
            .await;
        settle().await;
        let mut buffer = [0; 4096];
        let read = person.stream.read(&mut buffer).await.unwrap();
        let mut rest = &buffer[..read];
        let Some(Event::Open(header)) = person.scanner.next(&mut rest).unwrap() else { panic!("no header") };
        let id = header.root().attr("id").unwrap().into_owned();
        let hash = aws_lc_rs::digest::digest(
            &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY,
            format!("{id}{secret}").as_bytes(),
        );
        let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        person.send(&format!("<handshake>{hex}</handshake>")).await;
        assert_eq!(person.arrived().await, ["<handshake/>"]);
        person
    }
}

/// Somebody with a client.
pub(crate) struct Person {
    stream: DuplexStream,
    scanner: Scanner,
    input: Vec<u8>,
}

impl Person {
    pub(crate) async fn send(&mut self, xml: &str) {
        self.stream.write_all(xml.as_bytes()).await.unwrap();
    }

    /// Everything that has come until nobody moves any more.
    pub(crate) async fn arrived(&mut self) -> Vec<String> {
        settle().await;
        self.now().await
    }

    /// Everything that has come.
    pub(crate) async fn now(&mut self) -> Vec<String> {
        loop {
            let mut buffer = [0; 65536];
            match tokio::time::timeout(Duration::from_millis(1), self.stream.read(&mut buffer)).await {
                Ok(Ok(read)) if read > 0 => self.input.extend_from_slice(&buffer[..read]),
                _ => break,
            }
        }
        let input = std::mem::take(&mut self.input);
        let mut rest = input.as_slice();
        let mut out = Vec::new();
        while let Some(event) = self.scanner.next(&mut rest).unwrap() {
            if let Event::Element(element) = event {
                out.push(String::from_utf8_lossy(element.bytes()).into_owned());
            }
        }
        out
    }

    /// The bodies of the messages that have come.
    pub(crate) async fn bodies(&mut self) -> Vec<String> {
        let arrived = self.arrived().await;
        arrived
            .iter()
            .filter(|xml| xml.starts_with("<message") && !xml.contains("type='error'"))
            .filter_map(|xml| body(xml))
            .collect()
    }
}

pub(crate) fn body(xml: &str) -> Option<String> {
    let (_, rest) = xml.split_once("<body>")?;
    Some(rest.split_once("</body>")?.0.to_owned())
}

/// Lets the servers do all they can: paused time moves on only when every task waits.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(700)).await;
}

/// A peer played by the test, element by element.
pub(crate) struct Rogue {
    pub(crate) wire: Wire,
}

pub(crate) const HELLO: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams' xmlns:db='jabber:server:dialback' version='1.0'";

impl Rogue {
    /// Connects to a site and goes through STARTTLS with the certificate of `certs`.
    pub(crate) async fn connect(
        world: &World,
        site: &Site,
        certs: &CertStore,
        (from, to): (&str, &str),
    ) -> Rogue {
        let transport = world.wires.dial(SocketAddr::new(site.address, 5270)).unwrap();
        let identity = certs.for_domain(None);
        let transport = transport.connect_tls(&identity, to, Some("xmpp-server")).await.unwrap();
        let mut rogue = Rogue { wire: Wire::new(transport, Limits::default()) };
        rogue.hello(from, to).await;
        rogue
    }

    /// Connects and proves its domain, on a stream that goes both ways and is acknowledged both ways.
    pub(crate) async fn both_ways(world: &World, site: &Site, (from, to): (&str, &str)) -> Rogue {
        let certs = world.certs(from, &leaf(from));
        let mut rogue = Rogue::connect(world, site, &certs, (from, to)).await;
        assert!(rogue.next().await.unwrap().contains("EXTERNAL"));
        rogue.send("<bidi xmlns='urn:xmpp:bidi'/>").await;
        rogue.send(&auth(from)).await;
        assert!(rogue.next().await.unwrap().contains("success"));
        rogue.wire.restart();
        // In one go: what waits for the rogue is sent after acknowledgements are on.
        rogue.send(&format!("{HELLO} from='{from}' to='{to}'><enable xmlns='urn:xmpp:sm:3'/>")).await;
        assert!(matches!(rogue.wire.next().await, Ok(Event::Open(_))));
        assert!(rogue.next().await.unwrap().contains("features"));
        assert!(rogue.next().await.unwrap().contains("enabled"));
        rogue
    }

    /// Everything that has come until nobody moves any more.
    pub(crate) async fn heard(&mut self) -> Vec<String> {
        let mut heard = Vec::new();
        while let Ok(Ok(event)) = tokio::time::timeout(Duration::from_secs(2), self.wire.next()).await {
            if let Event::Element(element) = event {
                heard.push(show(&element));
            }
        }
        heard
    }

    /// Connects and sends bytes, without TLS.
    pub(crate) async fn plain(world: &World, site: &Site, bytes: &[u8]) -> Rogue {
        let transport = world.wires.dial(SocketAddr::new(site.address, 5269)).unwrap();
        let mut rogue = Rogue { wire: Wire::new(transport, Limits::default()) };
        let _ = rogue.wire.send(bytes).await;
        rogue
    }

    pub(crate) async fn hello(&mut self, from: &str, to: &str) {
        let from = if from.is_empty() { String::new() } else { format!(" from='{from}'") };
        self.send(&format!("{HELLO}{from} to='{to}'>")).await;
        assert!(matches!(self.wire.next().await, Ok(Event::Open(_))));
    }

    pub(crate) async fn send(&mut self, xml: &str) {
        let _ = self.wire.send(xml.as_bytes()).await;
    }

    /// The next element, as text; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<String> {
        match tokio::time::timeout(Duration::from_secs(300), self.wire.next()).await {
            Ok(Ok(Event::Element(element))) => Some(show(&element)),
            _ => None,
        }
    }

    /// Everything up to the end of the stream.
    pub(crate) async fn rest(&mut self) -> String {
        let mut out = String::new();
        loop {
            match tokio::time::timeout(Duration::from_secs(300), self.wire.next()).await {
                Ok(Ok(Event::Element(element))) => out.push_str(&show(&element)),
                Ok(Ok(Event::Open(_) | Event::Whitespace)) => {}
                _ => return out,
            }
        }
    }

    /// EXTERNAL with this authzid, up to the features behind it.
    pub(crate) async fn external(&mut self, from: &str, to: &str) {
        self.send(&auth(from)).await;
        let answer = self.next().await.unwrap();
        assert!(answer.contains("success"), "{answer}");
        self.wire.restart();
        self.hello(from, to).await;
        assert!(self.next().await.unwrap().contains("features"));
    }
}

pub(crate) fn auth(domain: &str) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(domain);
    format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>{text}</auth>")
}

fn show(element: &Element) -> String {
    String::from_utf8_lossy(element.bytes()).into_owned()
}
