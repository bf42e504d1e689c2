//! What clients and components share before they may send stanzas: reading a stream element by element, refusals by
//! name, and the farewell when nothing comes of it.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use trunkline_xml::{Element, Event, Header, Limits, Scanner, Writer};
use trunkline_xmpp::error::{StreamCondition, StreamError};

use crate::config;
use crate::exchange::Exchange;
use crate::logging::Refusal;
use crate::metrics::{Direction, Link};

/// Bytes read at once.
const READ: usize = 16 * 1024;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why a stream came to its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// A stream error to send.
    Error(StreamError),
    /// The other side closed its stream.
    Closed,
    /// The socket is gone, or the other side was too slow; nothing to say.
    Lost,
}

impl From<StreamCondition> for Stop {
    fn from(condition: StreamCondition) -> Stop {
        Stop::Error(StreamError::new(condition))
    }
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Stop {
        Stop::Lost
    }
}

/// Who is at the other end, for counters and log lines.
pub(super) struct Desk {
    pub(super) exchange: Arc<Exchange>,
    /// An IP address; later the name that was proved.
    pub(super) peer: String,
    pub(super) serial: u64,
    pub(super) link: Link,
}

impl Desk {
    /// Counts a refusal and, at a limited rate, logs it.
    pub(super) fn refused(&self, name: &'static str, detail: &str) {
        self.exchange.refusals.report(Refusal { name, peer: &self.peer, conn: self.serial, detail });
    }

    /// A refusal whose name is the condition's.
    pub(super) fn refusal(&self, condition: StreamCondition, detail: &str) -> Stop {
        self.refused(condition.as_str(), detail);
        condition.into()
    }

    /// Not logged in when the time for it was over.
    pub(super) fn late(&self, name: &'static str) -> Stop {
        self.refused(name, "no login in time");
        StreamCondition::ConnectionTimeout.into()
    }

    /// Ends a stream as `stop` demands. `header` goes before an error: RFC 6120 s.4.9.1.2 wants one where none of ours
    /// stands yet.
    pub(super) async fn farewell<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut W,
        stop: Stop,
        header: Option<Vec<u8>>,
    ) {
        let mut out = Vec::new();
        match stop {
            Stop::Lost => return,
            Stop::Closed => {}
            Stop::Error(error) => {
                out = header.unwrap_or_default();
                let condition = error.condition().as_str();
                self.exchange.metrics.stream_error(condition);
                tracing::debug!(conn = self.serial, peer = self.peer, condition, "stream error sent");
                let mut w = Writer::new();
                error.write(&mut w);
                out.extend_from_slice(&w.finish());
            }
        }
        out.extend_from_slice(b"</stream:stream>");
        let _ = tokio::time::timeout(FAREWELL, async {
            writer.write_all(&out).await?;
            writer.shutdown().await
        })
        .await;
    }
}

/// A stream that is read element by element. Not for stanzas of clients: see [`super::client`].
pub(super) struct Reader {
    scanner: Scanner,
    /// Bytes read and not scanned.
    input: Vec<u8>,
}

impl Reader {
    /// For somebody who has shown nothing yet.
    pub(super) fn new(config: &config::Limits) -> Reader {
        let element_bytes = config.stanza_bytes_unauthenticated;
        let scanner = Scanner::new(Limits { element_bytes, ..scan_limits(config) });
        Reader { scanner, input: Vec::new() }
    }

    /// Larger elements may come from now on.
    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.scanner.set_limits(limits);
    }

    /// A new stream begins on the same connection.
    pub(super) fn restart(&mut self) {
        self.scanner.restart();
    }

    /// Nothing is read that was not asked for yet.
    pub(super) fn is_empty(&self) -> bool {
        self.input.is_empty()
    }

    /// The scanner, and the bytes it has not seen. None of either hold more memory than they need.
    pub(super) fn into_parts(mut self) -> (Scanner, Vec<u8>) {
        self.input.shrink_to_fit();
        (self.scanner, self.input)
    }

    /// The stream header.
    pub(super) async fn header<R: AsyncRead + Unpin>(
        &mut self,
        socket: &mut R,
        desk: &Desk,
    ) -> Result<Header, Stop> {
        match self.event(socket, desk).await? {
            Event::Open(header) => Ok(header),
            Event::Close => Err(Stop::Closed),
            Event::Element(_) | Event::Whitespace => {
                Err(desk.refusal(StreamCondition::InvalidXml, "no stream header"))
            }
        }
    }

    /// The next element.
    pub(super) async fn element<R: AsyncRead + Unpin>(
        &mut self,
        socket: &mut R,
        desk: &Desk,
    ) -> Result<Element, Stop> {
        match self.event(socket, desk).await? {
            Event::Element(element) => Ok(element),
            Event::Close => Err(Stop::Closed),
            Event::Open(_) | Event::Whitespace => {
                Err(desk.refusal(StreamCondition::InvalidXml, "a second stream header"))
            }
        }
    }

    /// The buffer is on the stack: who waits holds none.
    fn poll_read<R: AsyncRead + Unpin>(
        &mut self,
        socket: &mut R,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut buffer = [MaybeUninit::uninit(); READ];
        let mut buffer = ReadBuf::uninit(&mut buffer);
        ready!(Pin::new(socket).poll_read(cx, &mut buffer))?;
        self.input.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// What comes next; whitespace is passed over.
    async fn event<R: AsyncRead + Unpin>(&mut self, socket: &mut R, desk: &Desk) -> Result<Event, Stop> {
        loop {
            let mut rest = self.input.as_slice();
            let event = self.scanner.next(&mut rest);
            let used = self.input.len() - rest.len();
            self.input.drain(..used);
            match event {
                Ok(Some(Event::Whitespace)) => continue,
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(error) => {
                    desk.refused(error.label(), &error.to_string());
                    return Err(Stop::Error(StreamError::from(&error)));
                }
            }
            let read = poll_fn(|cx| self.poll_read(socket, cx)).await?;
            if read == 0 {
                return Err(Stop::Lost);
            }
            desk.exchange.metrics.bytes(desk.link, Direction::In, read);
        }
    }
}

/// The scanner's limits for this configuration, once somebody has logged in.
pub(super) fn scan_limits(limits: &config::Limits) -> Limits {
    Limits {
        element_bytes: limits.stanza_bytes,
        header_bytes: limits.header_bytes,
        depth: limits.depth,
        attributes: limits.attributes,
        namespaces: limits.namespaces,
        nodes: limits.nodes,
        ..Limits::default()
    }
}
