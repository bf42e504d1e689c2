//! [`Transport`]: one connection's bytes, whether plain TCP, TLS on either side, or in memory.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::{CipherSuite, CommonState, HandshakeKind, ProtocolVersion, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

use super::buffered::Buffered;
use super::cert::{end_point, ip_literal, to_ascii};
use super::handshake::{self, Accomplished, Carrier, Started};
use super::record::Records;
use super::tls::{CertStore, Identity, Side};

/// Bytes that may wait inside TLS for the socket to take them.
pub(super) const TLS_WRITE_BUFFER: usize = 64 * 1024;
/// One read takes at most this much: a TLS record.
const READ_CHUNK: usize = 16 * 1024;

thread_local! {
    // One buffer a thread instead of one a connection: an idle connection keeps none.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_CHUNK]);
}

/// Why a TLS handshake failed. Never over trust.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer spoke TLS wrongly, or nothing that we accept; or the connection broke.
    #[error("TLS handshake failed: {0}")]
    Failed(#[from] io::Error),
    /// TLS within TLS.
    #[error("the connection is encrypted already")]
    AlreadyEncrypted,
    /// Not a name that can be asked for.
    #[error("{0} is not a name that a TLS server can have")]
    BadName(String),
}

impl HandshakeError {
    /// A short name for counters.
    pub fn label(&self) -> &'static str {
        match self {
            HandshakeError::AlreadyEncrypted => "already-encrypted",
            HandshakeError::BadName(_) => "bad-name",
            HandshakeError::Failed(error) => match tls_error(error) {
                Some(rustls::Error::AlertReceived(_)) => "peer-alert",
                Some(rustls::Error::NoApplicationProtocol) => "alpn",
                Some(rustls::Error::PeerIncompatible(_)) => "incompatible",
                Some(rustls::Error::PeerMisbehaved(_)) => "misbehaved",
                Some(rustls::Error::InvalidMessage(_)) => "not-tls",
                Some(rustls::Error::InvalidCertificate(_)) => "bad-certificate",
                Some(_) => "tls",
                None if error.kind() == io::ErrorKind::UnexpectedEof => "closed",
                None => "io",
            },
        }
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What a handshake agreed on.
#[derive(Clone, Debug)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite, as IANA names it.
    pub cipher: &'static str,
    /// The key exchange, as `X25519MLKEM768`.
    pub key_exchange: &'static str,
    /// The session continues an earlier one.
    pub resumed: bool,
    /// The server name that was asked for.
    pub sni: Option<String>,
    /// The protocol agreed on by ALPN.
    pub alpn: Option<String>,
    /// The peer's certificates, its own first. Not checked: see [`verify_peer`](super::verify_peer).
    pub peer_chain: Vec<CertificateDer<'static>>,
    /// `tls-exporter`, RFC 9266. None where it would not be unique to this connection.
    pub exporter: Option<[u8; 32]>,
    /// `tls-server-end-point`, RFC 5929: of our certificate as a server, of the peer's as a client.
    pub end_point: Option<Vec<u8>>,
}

/// One connection's bytes. Reading and writing is cancel-safe; written bytes are on their way only after a flush.
#[derive(Debug)]
pub struct Transport {
    io: Io,
    tls: Option<Arc<TlsInfo>>,
}

#[derive(Debug)]
enum Io {
    Plain(Socket),
    Records(Box<Records>),
    Buffered(Box<Buffered>),
    Carried(Pin<Box<dyn Carried>>),
}

/// A connection inside of something else that carries it, such as messages of a WebSocket or bodies of HTTP requests.
pub trait Carried: AsyncRead + AsyncWrite + Send + Sync + fmt::Debug {
    /// Nobody on the way can read it.
    fn is_encrypted(&self) -> bool;
    /// Somebody has logged in.
    fn settle(&self);
    /// With what was written so far, `kept` stanzas are on their way of which it is to be known whether they arrive.
    fn mark(&self, kept: usize);
    /// How many of the oldest of them have arrived since this was asked last.
    fn arrived(&self) -> usize;
}

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Memory(DuplexStream),
}

impl From<TcpStream> for Transport {
    fn from(socket: TcpStream) -> Transport {
        Transport { io: Io::Plain(Socket::Tcp(socket)), tls: None }
    }
}

impl From<DuplexStream> for Transport {
    fn from(socket: DuplexStream) -> Transport {
        Transport { io: Io::Plain(Socket::Memory(socket)), tls: None }
    }
}

impl Transport {
    /// A connection that something else carries, and what that something's own TLS agreed on, if it is one connection.
    pub fn carried(carried: impl Carried + 'static, tls: Option<Arc<TlsInfo>>) -> Transport {
        Transport { io: Io::Carried(Box::pin(carried)), tls }
    }

    /// Two ends of one connection in memory, for tests.
    pub fn pair() -> (Transport, Transport) {
        let (a, b) = tokio::io::duplex(64 * 1024);
        (a.into(), b.into())
    }

    /// TLS as the server: on a direct TLS port, or after `<proceed/>`. The certificate is chosen by the client's server
    /// name, or by `hint` (the stream's `to`) when it sends none. Whatever the caller has read before and not used must
    /// be thrown away: it came in clear text (RFC 6120 s.5.4.3.3).
    pub async fn accept_tls(
        self,
        store: &CertStore,
        side: Side,
        hint: Option<&str>,
    ) -> Result<Transport, HandshakeError> {
        let Io::Plain(socket) = self.io else { return Err(HandshakeError::AlreadyEncrypted) };
        let started = Started::new(socket).await?;
        let identity = store.for_domain(started.accepted.client_hello().server_name().or(hint));
        let config = identity.server(side).clone();
        Transport::accomplished(started.finish(config.clone()).await?, &config, identity.end_point.clone())
    }

    fn accomplished(
        done: Accomplished,
        config: &ServerConfig,
        end_point: Option<Vec<u8>>,
    ) -> Result<Transport, HandshakeError> {
        let tls = &done.connection;
        let mut info = common_info(tls);
        info.sni = tls.server_name().map(str::to_owned);
        info.end_point = end_point;
        info.exporter = exporter(tls, config.require_ems, |out| {
            tls.export_keying_material(out, EXPORTER, Some(b"")).is_ok()
        });
        let io = match done.carry()? {
            Carrier::Records(records) => Io::Records(records),
            Carrier::Buffered(buffered) => Io::Buffered(buffered),
        };
        Ok(Transport { io, tls: Some(Arc::new(info)) })
    }

    /// TLS as the server with any configuration.
    #[cfg(test)]
    pub(super) async fn accept_with(self, config: Arc<ServerConfig>) -> Result<Transport, HandshakeError> {
        let Io::Plain(socket) = self.io else { return Err(HandshakeError::AlreadyEncrypted) };
        let started = Started::new(socket).await?;
        Transport::accomplished(started.finish(config.clone()).await?, &config, None)
    }

    /// TLS as the client, asking for `domain`, presenting our `identity`. ALPN is for direct TLS only (XEP-0368).
    pub async fn connect_tls(
        self,
        identity: &Identity,
        domain: &str,
        alpn: Option<&str>,
    ) -> Result<Transport, HandshakeError> {
        self.connect_with(identity.outgoing().clone(), domain, alpn).await
    }

    /// Like [`connect_tls`](Transport::connect_tls), with any configuration.
    pub async fn connect_with(
        self,
        config: Arc<rustls::ClientConfig>,
        domain: &str,
        alpn: Option<&str>,
    ) -> Result<Transport, HandshakeError> {
        let Io::Plain(socket) = self.io else { return Err(HandshakeError::AlreadyEncrypted) };
        let bad = || HandshakeError::BadName(domain.to_owned());
        let name = match ip_literal(domain) {
            Some(ip) => ServerName::from(ip),
            None => ServerName::try_from(to_ascii(domain).ok_or_else(bad)?).map_err(|_| bad())?,
        };
        let sni = matches!(name, ServerName::DnsName(_)).then(|| name.to_str().into_owned());
        let ems = config.require_ems;
        let stream = handshake::connect(socket, config, name, alpn).await?;
        let tls = stream.connection();
        let mut info = common_info(tls);
        info.sni = sni;
        info.end_point = info.peer_chain.first().and_then(end_point);
        info.exporter =
            exporter(tls, ems, |out| tls.export_keying_material(out, EXPORTER, Some(b"")).is_ok());
        Ok(Transport { io: Io::Buffered(Box::new(stream)), tls: Some(Arc::new(info)) })
    }

    /// What TLS agreed on; None on a plain connection, and after [`settled`](Transport::settled).
    pub fn tls(&self) -> Option<&Arc<TlsInfo>> {
        self.tls.as_ref()
    }

    /// The same connection without its [`TlsInfo`], which nobody needs after a login: an idle one should be small.
    pub fn settled(self) -> Transport {
        if let Io::Carried(carried) = &self.io {
            carried.settle();
        }
        Transport { tls: None, ..self }
    }

    /// Whether it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        match &self.io {
            Io::Plain(_) => false,
            Io::Records(_) | Io::Buffered(_) => true,
            Io::Carried(carried) => carried.is_encrypted(),
        }
    }

    /// Whether something else carries it.
    pub fn is_carried(&self) -> bool {
        matches!(self.io, Io::Carried(_))
    }

    /// See [`Carried::mark`]. What nothing carries knows only that all has arrived: it is flushed.
    pub fn mark(&self, kept: usize) {
        if let Io::Carried(carried) = &self.io {
            carried.mark(kept);
        }
    }

    /// See [`Carried::arrived`].
    pub fn arrived(&self) -> usize {
        match &self.io {
            Io::Carried(carried) => carried.arrived(),
            Io::Plain(_) | Io::Records(_) | Io::Buffered(_) => 0,
        }
    }

    /// The peer's address, where it has one.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self.socket()? {
            Socket::Tcp(tcp) => tcp.peer_addr().ok(),
            Socket::Memory(_) => None,
        }
    }

    /// Waits for bytes and hands them to `take` (at most 16 KiB, none at the end). No buffer is kept while waiting.
    /// A peer that closes without a TLS closing alert counts as an end too: XMPP has a closing tag of its own
    /// against truncation.
    pub async fn read_with<T>(&mut self, take: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        let mut take = Some(take);
        std::future::poll_fn(|cx| {
            SCRATCH.with_borrow_mut(|scratch| {
                let mut buf = ReadBuf::new(scratch);
                match Pin::new(&mut *self).poll_read(cx, &mut buf) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) => {
                        let take = take.take().expect("invariant: not polled after it was ready");
                        Poll::Ready(Ok(take(buf.filled())))
                    }
                }
            })
        })
        .await
    }

    /// Closes the writing side: TLS closing alert, then TCP FIN. The peer may go on sending.
    pub async fn close(&mut self) -> io::Result<()> {
        self.shutdown().await
    }

    fn socket(&self) -> Option<&Socket> {
        match &self.io {
            Io::Plain(socket) => Some(socket),
            Io::Records(records) => Some(records.socket()),
            Io::Buffered(buffered) => Some(buffered.socket()),
            Io::Carried(_) => None,
        }
    }
}

/// RFC 9266 s.2.
const EXPORTER: &[u8] = b"EXPORTER-Channel-Binding";

/// RFC 9266 s.4.2: under TLS 1.2 only with the extended master secret.
fn exporter(tls: &CommonState, ems: bool, export: impl FnOnce(&mut [u8; 32]) -> bool) -> Option<[u8; 32]> {
    let sound = tls.protocol_version() == Some(ProtocolVersion::TLSv1_3) || ems;
    let mut out = [0; 32];
    (sound && export(&mut out)).then_some(out)
}

fn common_info(tls: &CommonState) -> TlsInfo {
    TlsInfo {
        version: match tls.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        },
        cipher: tls.negotiated_cipher_suite().and_then(|suite| cipher(suite.suite())).unwrap_or_default(),
        key_exchange: tls
            .negotiated_key_exchange_group()
            .and_then(|group| group.name().as_str())
            .unwrap_or_default(),
        resumed: tls.handshake_kind() == Some(HandshakeKind::Resumed),
        sni: None,
        alpn: tls.alpn_protocol().map(|alpn| String::from_utf8_lossy(alpn).into_owned()),
        peer_chain: tls.peer_certificates().map(<[_]>::to_vec).unwrap_or_default(),
        exporter: None,
        end_point: None,
    }
}

/// As IANA names it.
fn cipher(suite: CipherSuite) -> Option<&'static str> {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => Some("TLS_AES_128_GCM_SHA256"),
        CipherSuite::TLS13_AES_256_GCM_SHA384 => Some("TLS_AES_256_GCM_SHA384"),
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Some("TLS_CHACHA20_POLY1305_SHA256"),
        older => older.as_str(),
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Io::Records(records) => records.poll_read(cx, buf),
            Io::Buffered(buffered) => buffered.poll_read(cx, buf),
            Io::Carried(carried) => carried.as_mut().poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Io::Records(records) => records.poll_write(cx, buf),
            Io::Buffered(buffered) => buffered.poll_write(cx, buf),
            Io::Carried(carried) => carried.as_mut().poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Io::Records(records) => records.poll_flush(cx),
            Io::Buffered(buffered) => buffered.poll_flush(cx),
            Io::Carried(carried) => carried.as_mut().poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Io::Records(records) => records.poll_shutdown(cx),
            Io::Buffered(buffered) => buffered.poll_shutdown(cx),
            Io::Carried(carried) => carried.as_mut().poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Socket::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Socket::Memory(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Socket::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Socket::Memory(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Socket::Tcp(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Socket::Memory(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Socket::Tcp(io) => io.is_write_vectored(),
            Socket::Memory(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Socket::Tcp(io) => Pin::new(io).poll_flush(cx),
            Socket::Memory(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Socket::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Socket::Memory(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
