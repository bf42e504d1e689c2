//! TLS handshakes: rustls decides, this carries the bytes.
//!
//! rustls gets whole records and none beyond the handshake's last, so that nothing is left in its buffers when a
//! connection goes on with [`Records`].

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::crypto::tls13::OkmBlock;
use rustls::server::{Accepted, AcceptedAlert, Acceptor};
use rustls::{
    ClientConfig, ClientConnection, Connection, KeyLog, ProtocolVersion, ServerConfig, ServerConnection,
    SupportedCipherSuite,
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffered::Buffered;
use super::record::{Beginning, Records, Secrets};
use super::stream::{Socket, TLS_WRITE_BUFFER};

/// Bytes read at once.
const READ: usize = 16 * 1024;
/// The longest record of any version (RFC 5246 s.6.2.3), without its header.
const LONGEST: usize = (1 << 14) + 2048;

/// Bytes that a peer may send before we have sent our part.
const MOST_WAITING: usize = 12 * 1024;

thread_local! {
    static INPUT: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
    static TAPPED: RefCell<Tapped> = const { RefCell::new(Tapped { client: None, server: None }) };
}

/// A handshake as a server that has got the client's first message.
pub(super) struct Started {
    wire: Wire,
    pub(super) accepted: Accepted,
}

impl Started {
    /// Waits for the client's first message.
    pub(super) async fn new(socket: Socket) -> io::Result<Started> {
        let mut wire = Wire { socket, input: Vec::new() };
        let mut acceptor = Acceptor::default();
        loop {
            let records = wire.next(record).await?;
            let mut left = records.as_slice();
            while !left.is_empty() {
                progress(acceptor.read_tls(&mut left)?)?;
            }
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => return Ok(Started { wire, accepted }),
                Err((error, alert)) => return Err(wire.refuse(error, alert).await),
            }
        }
    }

    /// The rest of it.
    pub(super) async fn finish(self, config: Arc<ServerConfig>) -> io::Result<Accomplished> {
        let Started { mut wire, accepted } = self;
        let (connection, mut tapped) = tapped(|| accepted.into_connection(config));
        let mut connection = match connection {
            Ok(connection) => connection,
            Err((error, alert)) => return Err(wire.refuse(error, alert).await),
        };
        connection.set_buffer_limit(Some(TLS_WRITE_BUFFER));
        let mut connection = Connection::Server(connection);
        tapped.merge(wire.converse(&mut connection).await?);
        let Connection::Server(connection) = connection else {
            return Err(io::Error::other("invariant: a server stays one"));
        };
        Ok(Accomplished { wire, connection, tapped })
    }
}

/// A handshake as a server that is over.
pub(super) struct Accomplished {
    wire: Wire,
    pub(super) connection: ServerConnection,
    tapped: Tapped,
}

/// What carries a connection's data after the handshake.
pub(super) enum Carrier {
    /// TLS 1.3.
    Records(Box<Records>),
    /// TLS 1.2.
    Buffered(Box<Buffered>),
}

impl Accomplished {
    /// Goes on with the lighter carrier where there is one.
    pub(super) fn carry(self) -> io::Result<Carrier> {
        let Accomplished { wire, mut connection, tapped } = self;
        let suite = connection.negotiated_cipher_suite();
        let (Some(SupportedCipherSuite::Tls13(suite)), Some(client), Some(server)) =
            (suite, tapped.client, tapped.server)
        else {
            let buffered = Buffered::new(wire.socket, Connection::Server(connection), wire.input);
            return Ok(Carrier::Buffered(Box::new(buffered)));
        };
        debug_assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        // The tickets: they go out with the first data.
        let mut unsent = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut unsent)?;
        }
        let keys = connection.dangerous_extract_secrets().map_err(io::Error::other)?;
        let secrets = Secrets { client, server };
        let beginning = Beginning { socket: wire.socket, suite, secrets, keys, sealed: wire.input, unsent };
        Ok(Carrier::Records(Box::new(Records::new(beginning).map_err(io::Error::other)?)))
    }
}

/// A handshake as a client.
pub(super) async fn connect(
    socket: Socket,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    alpn: Option<&str>,
) -> io::Result<Buffered> {
    let alpn = alpn.map(|alpn| alpn.as_bytes().to_vec()).into_iter().collect();
    let mut connection = ClientConnection::new_with_alpn(config, name, alpn).map_err(io::Error::other)?;
    connection.set_buffer_limit(Some(TLS_WRITE_BUFFER));
    let mut connection = Connection::Client(connection);
    let mut wire = Wire { socket, input: Vec::new() };
    wire.converse(&mut connection).await?;
    Ok(Buffered::new(wire.socket, connection, wire.input))
}

/// A socket and what it gave that rustls has not got.
struct Wire {
    socket: Socket,
    input: Vec<u8>,
}

impl Wire {
    /// Sends and receives until the handshake is over. Tickets stay with rustls: they can go with the first data.
    async fn converse(&mut self, connection: &mut Connection) -> io::Result<Tapped> {
        let mut all = Tapped { client: None, server: None };
        // A client's connection stays with rustls, and it must see the alert behind a greeting before it writes to a
        // socket that is closed already.
        let portion = if matches!(connection, Connection::Client(_)) { everything } else { record };
        loop {
            let over = !connection.is_handshaking();
            let only_tickets = over
                && matches!(connection, Connection::Server(_))
                && connection.protocol_version() == Some(ProtocolVersion::TLSv1_3);
            if !only_tickets {
                self.send(connection).await?;
            }
            if over {
                return Ok(all);
            }
            let records = self.next(portion).await?;
            let mut left = records.as_slice();
            while !left.is_empty() && connection.is_handshaking() {
                progress(connection.read_tls(&mut left)?)?;
                let (outcome, new) = tapped(|| connection.process_new_packets());
                all.merge(new);
                if let Err(error) = outcome {
                    let _ = self.send(connection).await;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
            self.input.splice(..0, left.iter().copied());
        }
    }

    async fn send(&mut self, connection: &mut Connection) -> io::Result<()> {
        let mut out = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut out)?;
        }
        self.write(&out).await
    }

    /// Writes all of `out`, and reads meanwhile: the peer may be writing too, and neither may wait for the other.
    async fn write(&mut self, out: &[u8]) -> io::Result<()> {
        let mut written = 0;
        poll_fn(|cx| {
            while written < out.len() {
                match Pin::new(&mut self.socket).poll_write(cx, &out[written..]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(more)) => written += more,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending if self.input.len() > MOST_WAITING => return Poll::Pending,
                    Poll::Pending => {
                        if ready!(self.poll_fill(cx))? == 0 {
                            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                        }
                    }
                }
            }
            Pin::new(&mut self.socket).poll_flush(cx)
        })
        .await
    }

    async fn refuse(&mut self, error: rustls::Error, mut alert: AcceptedAlert) -> io::Error {
        let mut out = Vec::new();
        if alert.write_all(&mut out).is_ok() {
            let _ = self.write(&out).await;
        }
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    /// The next bytes for rustls, as `portion` cuts them off.
    async fn next(&mut self, portion: fn(&[u8]) -> Option<usize>) -> io::Result<Vec<u8>> {
        loop {
            if let Some(length) = portion(&self.input) {
                let rest = self.input.split_off(length);
                return Ok(std::mem::replace(&mut self.input, rest));
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        match poll_fn(|cx| self.poll_fill(cx)).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// The number of bytes that came; 0 at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        INPUT.with_borrow_mut(|buffer| {
            let mut buf = ReadBuf::new(buffer);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buf))?;
            self.input.extend_from_slice(buf.filled());
            Poll::Ready(Ok(buf.filled().len()))
        })
    }
}

/// rustls takes nothing only when its buffer is full of what is no message.
fn progress(taken: usize) -> io::Result<()> {
    if taken == 0 { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
}

fn everything(input: &[u8]) -> Option<usize> {
    (!input.is_empty()).then_some(input.len())
}

/// The length of the record at the beginning of `input`, if all of it is there. What can't be a record counts as one:
/// rustls has the words for it.
fn record(input: &[u8]) -> Option<usize> {
    match input {
        [] => None,
        // ChangeCipherSpec, Alert, Handshake, ApplicationData.
        [20..=23, rest @ ..] => {
            let &[_, _, high, low, ..] = rest else { return None };
            let length = usize::from(u16::from_be_bytes([high, low]));
            if length > LONGEST {
                return Some(input.len());
            }
            (input.len() >= 5 + length).then_some(5 + length)
        }
        _ => Some(input.len()),
    }
}

/// Traffic secrets that rustls told of.
struct Tapped {
    client: Option<OkmBlock>,
    server: Option<OkmBlock>,
}

impl Tapped {
    fn merge(&mut self, newer: Tapped) {
        self.client = newer.client.or(self.client.take());
        self.server = newer.server.or(self.server.take());
    }
}

/// Runs a step of a handshake and catches the secrets it comes to.
fn tapped<T>(step: impl FnOnce() -> T) -> (T, Tapped) {
    let take = || TAPPED.replace(Tapped { client: None, server: None });
    drop(take());
    let outcome = step();
    (outcome, take())
}

/// Given to rustls as its key log, the only way to the secrets from which the keys of an update come. They go no
/// further than to the step of the handshake that is being made on this thread.
#[derive(Debug)]
pub(super) struct Tap;

const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

impl KeyLog for Tap {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        TAPPED.with_borrow_mut(|tapped| match label {
            CLIENT => tapped.client = Some(OkmBlock::new(secret)),
            SERVER => tapped.server = Some(OkmBlock::new(secret)),
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT | SERVER)
    }
}
