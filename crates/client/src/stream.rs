//! An XML stream over TCP or TLS: elements in, bytes out.

use std::collections::VecDeque;
use std::io;

use bytes::{Buf, BytesMut};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use trunkline_xml::{Element, Event, Limits, Scanner};

use crate::{ClientError, Direction, Security, Target, Transcript};

const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";
pub(crate) const STREAMS: &str = "http://etherx.jabber.org/streams";

/// What is read at once. An idle stream keeps no buffer.
const READ: usize = 16 * 1024;

#[derive(Debug)]
enum Transport {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Only while TLS is being negotiated, or after that failed.
    Gone,
}

/// One side of an XML stream. Reading and writing are cancel-safe: both keep their place in the buffers.
#[derive(Debug)]
pub(crate) struct Stream {
    transport: Transport,
    scanner: Scanner,
    /// Elements that came in and were not taken yet.
    arrived: VecDeque<Element>,
    closed_by_peer: bool,
    out: BytesMut,
    transcript: Option<Transcript>,
    /// How many times something was sent and then waited for.
    turns: u32,
    spoke: bool,
}

impl Stream {
    pub(crate) async fn connect(target: &Target) -> Result<Stream, ClientError> {
        let tcp = TcpStream::connect(target.address).await?;
        tcp.set_nodelay(true)?;
        // The server is not our adversary here, but a test must end even if it is.
        let limits = Limits { element_bytes: 16 * 1024 * 1024, nodes: 1 << 20, ..Limits::default() };
        let mut stream = Stream {
            transport: Transport::Tcp(tcp),
            scanner: Scanner::new(limits),
            arrived: VecDeque::new(),
            closed_by_peer: false,
            out: BytesMut::new(),
            transcript: target.transcript.clone(),
            turns: 0,
            spoke: false,
        };
        if target.security == Security::DirectTls {
            stream.start_tls(target).await?;
        }
        Ok(stream)
    }

    /// TLS from here on. What came before in clear is dropped with its scanner (RFC 6120 s.5.4.3.3).
    pub(crate) async fn start_tls(&mut self, target: &Target) -> Result<(), ClientError> {
        let Transport::Tcp(tcp) = std::mem::replace(&mut self.transport, Transport::Gone) else {
            return Err(ClientError::Tls("TLS inside TLS".into()));
        };
        let name = ServerName::try_from(target.domain.to_string())
            .map_err(|error| ClientError::Tls(format!("{}: {error}", target.domain)))?;
        let tls = TlsConnector::from(target.trust.0.clone()).connect(name, tcp).await?;
        self.transport = Transport::Tls(Box::new(tls));
        self.arrived.clear();
        self.scanner.restart();
        Ok(())
    }

    /// RFC 9266: what binds a login to this TLS connection. TLS 1.3 only: before that it would need a check that the
    /// handshake had the extended master secret.
    pub(crate) fn exporter(&self) -> Option<Vec<u8>> {
        let Transport::Tls(tls) = &self.transport else { return None };
        let (_, connection) = tls.get_ref();
        if connection.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
            return None;
        }
        connection.export_keying_material(vec![0; 32], b"EXPORTER-Channel-Binding", None).ok()
    }

    /// Opens a stream and returns its features.
    pub(crate) async fn open(&mut self, domain: &str) -> Result<Element, ClientError> {
        self.queue_header(domain, None);
        self.flush().await?;
        let features = self.next().await?;
        if features.root().is(STREAMS, "features") {
            Ok(features)
        } else {
            Err(unexpected("stream features", &features))
        }
    }

    /// Begins a stream, which others may follow in the same write. `from` is told inside TLS only.
    pub(crate) fn queue_header(&mut self, domain: &str, from: Option<&str>) {
        self.scanner.restart();
        self.arrived.clear();
        let from = from.map(|from| format!(" from='{}'", trunkline_xml::escape_attr(from)));
        let header = format!(
            "<?xml version='1.0'?><stream:stream to='{}'{} version='1.0' xml:lang='en' xmlns='jabber:client' \
             xmlns:stream='{STREAMS}'>",
            trunkline_xml::escape_attr(domain),
            from.unwrap_or_default()
        );
        self.queue(header.as_bytes());
    }

    /// Counts from here on how many times something is sent and then waited for.
    pub(crate) fn count_turns(&mut self) {
        self.turns = 0;
        self.spoke = false;
    }

    /// What was counted.
    pub(crate) fn turns(&self) -> u32 {
        self.turns
    }

    pub(crate) fn queue(&mut self, xml: &[u8]) {
        if let Some(Transcript(hook)) = &self.transcript {
            hook(Direction::Sent, xml);
        }
        self.out.extend_from_slice(xml);
    }

    pub(crate) async fn send(&mut self, xml: &[u8]) -> Result<(), ClientError> {
        self.queue(xml);
        self.flush().await
    }

    pub(crate) async fn flush(&mut self) -> Result<(), ClientError> {
        self.spoke |= self.out.has_remaining();
        while self.out.has_remaining() {
            match &mut self.transport {
                Transport::Tcp(tcp) => tcp.write_buf(&mut self.out).await?,
                Transport::Tls(tls) => tls.write_buf(&mut self.out).await?,
                Transport::Gone => return Err(ClientError::Closed),
            };
        }
        if let Transport::Tls(tls) = &mut self.transport {
            tls.flush().await?;
        }
        self.out = BytesMut::new();
        Ok(())
    }

    /// The next element; a stream error is an error.
    pub(crate) async fn next(&mut self) -> Result<Element, ClientError> {
        loop {
            if let Some(element) = self.arrived.pop_front() {
                return if element.root().is(STREAMS, "error") {
                    Err(stream_error(&element))
                } else {
                    Ok(element)
                };
            }
            if self.closed_by_peer {
                return Err(ClientError::Closed);
            }
            self.flush().await?;
            self.fill().await?;
        }
    }

    /// Whether an element can be had without waiting.
    pub(crate) fn has_next(&self) -> bool {
        !self.arrived.is_empty()
    }

    async fn fill(&mut self) -> Result<(), ClientError> {
        self.turns += u32::from(std::mem::take(&mut self.spoke));
        let mut buffer = BytesMut::with_capacity(READ);
        let read = match &mut self.transport {
            Transport::Tcp(tcp) => tcp.read_buf(&mut buffer).await,
            Transport::Tls(tls) => tls.read_buf(&mut buffer).await,
            Transport::Gone => Ok(0),
        };
        match read {
            Ok(0) => self.closed_by_peer = true,
            // A peer that ends TCP without ending TLS has said all we wait for.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.closed_by_peer = true,
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        let mut input = &buffer[..];
        while let Some(event) = self.scanner.next(&mut input)? {
            match event {
                Event::Element(element) => {
                    if let Some(Transcript(hook)) = &self.transcript {
                        hook(Direction::Received, element.bytes());
                    }
                    self.arrived.push_back(element);
                }
                Event::Close => self.closed_by_peer = true,
                Event::Open(_) | Event::Whitespace => {}
            }
        }
        Ok(())
    }

    /// Ends the stream (RFC 6120 s.4.4) and waits for the server's end of it; elements before that are dropped.
    pub(crate) async fn close(&mut self) -> Result<(), ClientError> {
        self.send(b"</stream:stream>").await?;
        loop {
            match self.next().await {
                Ok(_) => {}
                Err(ClientError::Closed) => break,
                Err(error) => return Err(error),
            }
        }
        match &mut self.transport {
            // The server may be gone already.
            Transport::Tcp(tcp) => drop(tcp.shutdown().await),
            Transport::Tls(tls) => drop(tls.shutdown().await),
            Transport::Gone => {}
        }
        Ok(())
    }
}

fn stream_error(element: &Element) -> ClientError {
    let root = element.root();
    let condition = root.children().find(|child| child.ns() == STREAM_ERRORS && child.name() != "text");
    ClientError::StreamError {
        condition: condition.map_or("undefined-condition", |child| child.name()).to_owned(),
        text: root.child(STREAM_ERRORS, "text").map(|text| text.text().into_owned()).unwrap_or_default(),
    }
}

pub(crate) fn unexpected(expected: &'static str, element: &Element) -> ClientError {
    let got = String::from_utf8_lossy(element.bytes()).chars().take(200).collect();
    ClientError::Unexpected { expected, got }
}
