//! Streams between servers as the attackers speak them: their own side ([`Outsider`]), and a server that takes everything
//! ([`serve`]), which is the authority for their domains and the sink of the baseline.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::error::LoadError;
use crate::framer::{Framer, Part};
use crate::options::OutsideOptions;
use crate::tls::{self, Trust};

/// How long anything may take that the server has to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the attackers have done, and what became of it.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) connections: AtomicU64,
    pub(super) handshakes: AtomicU64,
    pub(super) proved: AtomicU64,
    pub(super) stanzas: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) requests: AtomicU64,
    /// Questions that the server asked our authority.
    pub(super) asked: AtomicU64,
    /// How streams and connections ended, and what was answered.
    pub(super) ends: Mutex<BTreeMap<String, u64>>,
}

impl Counts {
    pub(super) fn end(&self, how: &str) {
        let mut ends = self.ends.lock();
        match ends.get_mut(how) {
            Some(count) => *count += 1,
            None => drop(ends.insert(how.to_owned(), 1)),
        }
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        serde_json::json!({
            "connections": get(&self.connections),
            "handshakes": get(&self.handshakes),
            "proved": get(&self.proved),
            "stanzas": get(&self.stanzas),
            "bytes": get(&self.bytes),
            "dialback_requests": get(&self.requests),
            "asked": get(&self.asked),
            "ends": *self.ends.lock(),
        })
    }
}

pub(super) fn one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Why an attacker's stream came to its end.
#[derive(Debug)]
pub(super) enum Stopped {
    /// TCP.
    Connect(io::Error),
    /// Whatever broke.
    Io(io::Error),
    /// The server's stream error.
    Error(String),
    /// The server closed.
    Closed,
    /// Nothing came.
    Silence,
}

impl Stopped {
    pub(super) fn label(&self) -> String {
        match self {
            Stopped::Connect(error) => format!("connect: {}", error.kind()),
            Stopped::Io(error) => format!("broken: {}", error.kind()),
            Stopped::Error(condition) => condition.clone(),
            Stopped::Closed => "closed".into(),
            Stopped::Silence => "silence".into(),
        }
    }
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Stopped {
        Stopped::Io(error)
    }
}

/// Something that a peer said.
#[derive(Debug)]
pub(super) enum Heard {
    Open,
    Element(Vec<u8>),
}

/// Cuts what arrives into elements.
#[derive(Debug, Default)]
pub(super) struct Ear {
    framer: Framer,
    heard: VecDeque<Heard>,
    closed: bool,
}

impl Ear {
    pub(super) fn restart(&mut self) {
        *self = Ear::default();
    }

    pub(super) async fn next(&mut self, socket: &mut (impl AsyncRead + Unpin)) -> Result<Heard, Stopped> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(heard) = self.heard.pop_front() {
                if let Heard::Element(element) = &heard
                    && element.starts_with(b"<stream:error")
                {
                    return Err(Stopped::Error(condition(element)));
                }
                return Ok(heard);
            }
            if self.closed {
                return Err(Stopped::Closed);
            }
            let read = socket.read(&mut buffer).await?;
            let (heard, closed) = (&mut self.heard, &mut self.closed);
            *closed |= read == 0;
            self.framer.push(&buffer[..read], |part| match part {
                Part::Open => heard.push_back(Heard::Open),
                Part::Element(element) => heard.push_back(Heard::Element(element.to_vec())),
                Part::Close => *closed = true,
            });
        }
    }

    async fn element(&mut self, socket: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, Stopped> {
        let element = async {
            loop {
                if let Heard::Element(element) = self.next(socket).await? {
                    return Ok(element);
                }
            }
        };
        timeout(PATIENCE, element).await.unwrap_or(Err(Stopped::Silence))
    }
}

/// The first child's name.
fn condition(element: &[u8]) -> String {
    let text = String::from_utf8_lossy(element);
    let rest = text.split_once('>').map_or("", |(_, rest)| rest);
    rest.trim_start_matches('<')
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .next()
        .unwrap_or("")
        .into()
}

/// An attribute of a start tag that is written as servers write them.
pub(super) fn attribute(element: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(element).ok()?;
    let tag = &text[..text.find('>')?];
    let at = tag.find(&format!(" {name}="))? + name.len() + 2;
    let quote = tag[at..].chars().next()?;
    tag[at + 1..].split(quote).next().map(str::to_owned)
}

/// Whom to attack, and how attackers show who they are.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    pub(super) domain: String,
    name: ServerName<'static>,
    with_certificate: Arc<rustls::ClientConfig>,
    pub(super) without: Arc<rustls::ClientConfig>,
}

impl Target {
    pub(super) fn new(
        address: SocketAddr,
        domain: &str,
        outside: &OutsideOptions,
    ) -> Result<Target, LoadError> {
        let name = ServerName::try_from(domain.to_owned())
            .map_err(|error| LoadError::Usage(format!("--domain {domain}: {error}")))?;
        let mut without = tls::client(&Trust::Anything, crate::options::KeyExchange::Classic)?;
        without.alpn_protocols.clear();
        let (chain, key) = identity(outside)?;
        let mut with = without.clone();
        let provider = aws_lc_rs::default_provider();
        let certified =
            rustls::sign::CertifiedKey::from_der(chain, key, &provider).map_err(LoadError::Tls)?;
        with.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
        Ok(Target {
            address,
            domain: domain.to_owned(),
            name,
            with_certificate: Arc::new(with),
            without: Arc::new(without),
        })
    }

    /// A connection from the attackers' address number `source`.
    pub(super) async fn dial(&self, source: u32) -> Result<TcpStream, Stopped> {
        let socket = TcpSocket::new_v4().map_err(Stopped::Connect)?;
        let dialled = async {
            socket.set_nodelay(true)?;
            // Nothing lingers: there are only so many ports.
            socket.set_zero_linger()?;
            if let IpAddr::V4(ip) = self.address.ip()
                && ip.is_loopback()
            {
                let [_, b, c, d] = (source + 1).to_be_bytes();
                socket.bind(SocketAddr::from((Ipv4Addr::new(127, 64 + b, c, d), 0)))?;
            }
            timeout(PATIENCE, socket.connect(self.address))
                .await
                .unwrap_or(Err(io::ErrorKind::TimedOut.into()))
        };
        dialled.await.map_err(Stopped::Connect)
    }

    fn header(&self, from: &str) -> String {
        format!(
            "<?xml version='1.0'?><stream:stream from='{from}' to='{}' version='1.0' xmlns='jabber:server' \
             xmlns:db='jabber:server:dialback' xmlns:stream='http://etherx.jabber.org/streams'>",
            self.domain
        )
    }

    /// Up to the server's leave to begin with TLS.
    pub(super) async fn before_tls(&self, source: u32, from: &str) -> Result<TcpStream, Stopped> {
        let mut tcp = self.dial(source).await?;
        let mut ear = Ear::default();
        let hello = self.header(from) + "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
        // Not pipelined: what follows the header before features come would be refused.
        let (header, starttls) = hello.split_at(hello.len() - STARTTLS.len());
        tcp.write_all(header.as_bytes()).await?;
        ear.element(&mut tcp).await?;
        tcp.write_all(starttls.as_bytes()).await?;
        ear.element(&mut tcp).await?;
        Ok(tcp)
    }

    pub(super) async fn handshake(
        &self,
        tcp: TcpStream,
        config: &Arc<rustls::ClientConfig>,
    ) -> Result<TlsStream<TcpStream>, Stopped> {
        let connector = TlsConnector::from(Arc::clone(config));
        let handshake = connector.connect(self.name.clone(), tcp);
        timeout(PATIENCE, handshake).await.unwrap_or(Err(io::ErrorKind::TimedOut.into())).map_err(Stopped::Io)
    }

    /// A stream with TLS and features, without a certificate of ours.
    pub(super) async fn open(&self, source: u32, from: &str) -> Result<Outsider, Stopped> {
        let tcp = self.before_tls(source, from).await?;
        let mut socket = self.handshake(tcp, &self.without).await?;
        let mut ear = Ear::default();
        socket.write_all(self.header(from).as_bytes()).await?;
        ear.element(&mut socket).await?;
        Ok(Outsider { socket, ear })
    }

    /// A stream on which all of `domains` are proved: the first by EXTERNAL, the others by dialback, for which the
    /// certificate counts too.
    pub(super) async fn prove(&self, source: u32, domains: &[String]) -> Result<Outsider, Stopped> {
        let first = domains.first().map_or("", String::as_str);
        let tcp = self.before_tls(source, first).await?;
        let mut socket = self.handshake(tcp, &self.with_certificate).await?;
        let mut ear = Ear::default();
        socket.write_all(self.header(first).as_bytes()).await?;
        ear.element(&mut socket).await?;
        socket
            .write_all(b"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>=</auth>")
            .await?;
        let answer = ear.element(&mut socket).await?;
        if !answer.starts_with(b"<success") {
            return Err(Stopped::Error(format!("sasl {}", condition(&answer))));
        }
        ear.restart();
        socket.write_all(self.header(first).as_bytes()).await?;
        ear.element(&mut socket).await?;
        let mut requests = String::new();
        for domain in &domains[1.min(domains.len())..] {
            requests.push_str(&format!("<db:result from='{domain}' to='{}'>k</db:result>", self.domain));
        }
        socket.write_all(requests.as_bytes()).await?;
        for _ in domains.iter().skip(1) {
            let answer = ear.element(&mut socket).await?;
            if attribute(&answer, "type").as_deref() != Some("valid") {
                return Err(Stopped::Error("dialback refused".into()));
            }
        }
        Ok(Outsider { socket, ear })
    }
}

const STARTTLS: &str = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";

/// A stream to the server.
#[derive(Debug)]
pub(super) struct Outsider {
    pub(super) socket: TlsStream<TcpStream>,
    pub(super) ear: Ear,
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(outside: &OutsideOptions) -> Result<Identity, LoadError> {
    let failed =
        |file: &Path, error: &dyn std::fmt::Display| LoadError::Usage(format!("{}: {error}", file.display()));
    let open = |file: &Path| File::open(file).map(BufReader::new).map_err(|error| failed(file, &error));
    let chain: Result<Vec<_>, _> = CertificateDer::pem_reader_iter(open(&outside.certificate)?).collect();
    let chain = chain.map_err(|error| failed(&outside.certificate, &error))?;
    let key =
        PrivateKeyDer::from_pem_reader(open(&outside.key)?).map_err(|error| failed(&outside.key, &error))?;
    Ok((chain, key))
}

/// TLS for the attackers' own server.
pub(super) fn acceptor(outside: &OutsideOptions) -> Result<TlsAcceptor, LoadError> {
    let (chain, key) = identity(outside)?;
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(LoadError::Tls)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(LoadError::Tls)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// A server that agrees to everything and reads what comes.
pub(super) async fn serve(listener: TcpListener, tls: TlsAcceptor, counts: Arc<Counts>) {
    loop {
        let Ok((tcp, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let (tls, counts) = (tls.clone(), Arc::clone(&counts));
        tokio::spawn(async move {
            // However it ended: who attacks is told by its own side.
            let _ = agree(tcp, &tls, &counts).await;
        });
    }
}

async fn agree(mut tcp: TcpStream, tls: &TlsAcceptor, counts: &Counts) -> Result<(), Stopped> {
    let mut ear = Ear::default();
    loop {
        match ear.next(&mut tcp).await? {
            Heard::Open => {
                let features = format!("<stream:features>{STARTTLS}</stream:features>");
                tcp.write_all((header() + &features).as_bytes()).await?;
            }
            Heard::Element(element) if element.starts_with(b"<starttls") => break,
            Heard::Element(_) => return Err(Stopped::Closed),
        }
    }
    tcp.write_all(b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await?;
    let mut socket = tls.accept(tcp).await?;
    let mut ear = Ear::default();
    loop {
        let answer = match ear.next(&mut socket).await? {
            Heard::Open => {
                header()
                    + "<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>EXTERNAL\
                       </mechanism></mechanisms><dialback xmlns='urn:xmpp:features:dialback'/></stream:features>"
            }
            Heard::Element(element) if element.starts_with(b"<auth") => {
                ear.restart();
                "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>".into()
            }
            Heard::Element(element) if element.starts_with(b"<db:") => match valid(&element) {
                Some(answer) => {
                    one(&counts.asked);
                    answer
                }
                None => continue,
            },
            Heard::Element(_) => continue,
        };
        socket.write_all(answer.as_bytes()).await?;
    }
}

fn header() -> String {
    "<?xml version='1.0'?><stream:stream id='s' version='1.0' xmlns='jabber:server' \
     xmlns:db='jabber:server:dialback' xmlns:stream='http://etherx.jabber.org/streams'>"
        .to_owned()
}

/// The friendly answer to a dialback request; liars give none.
fn valid(element: &[u8]) -> Option<String> {
    let name = if element.starts_with(b"<db:verify") { "verify" } else { "result" };
    let (from, to) = (attribute(element, "from")?, attribute(element, "to")?);
    if to.contains(".liar.") {
        return None;
    }
    let id = attribute(element, "id").map(|id| format!(" id='{id}'")).unwrap_or_default();
    Some(format!("<db:{name} from='{to}' to='{from}'{id} type='valid'/>"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn what_servers_write_is_read() {
        let element = b"<db:verify from='a.test' to='d1.siege.test' id='7'>key='x'</db:verify>";
        assert_eq!(attribute(element, "from").as_deref(), Some("a.test"));
        assert_eq!(attribute(element, "key"), None);
        assert_eq!(
            valid(element).unwrap(),
            "<db:verify from='d1.siege.test' to='a.test' id='7' type='valid'/>"
        );
        assert_eq!(valid(b"<db:result from='a' to='d1.liar.siege.test'>k</db:result>"), None);
        let error = b"<stream:error><policy-violation xmlns='x'/></stream:error>";
        assert_eq!(condition(error), "policy-violation");
    }
}
