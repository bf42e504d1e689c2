//! A client's stream in pieces: [`pair`] makes a [`Transport`] for the session, which reads and writes a stream as on TCP
//! (RFC 6120), and [`Frames`] for what carries it, which gets whole elements that can stand alone. There is one login
//! and one client loop for TCP, WebSocket and BOSH, and none of them knows of this.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use trunkline_xml::{Event, Limits, Scanner, Writer};
use trunkline_xmpp::ns;

use crate::net::{Carried, TlsInfo, Transport};

/// Bytes that wait in either direction until the other side is slowed down; one write or message may go beyond.
const MOST_WAITING: usize = 64 * 1024;

/// What this server writes itself, archived stanzas in their wrappers included.
const OWN: Limits = Limits {
    element_bytes: 64 << 20,
    header_bytes: 64 * 1024,
    depth: 4096,
    attributes: 4096,
    namespaces: 1024,
    name_bytes: 16 * 1024,
    nodes: 4 << 20,
};

/// A piece of what the session writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A stream header.
    Open(Opening),
    /// An element with all its declarations.
    Element(Vec<u8>),
    /// A stream error with all its declarations.
    Error(Vec<u8>),
    /// The end of the stream.
    Close,
}

impl Frame {
    fn len(&self) -> usize {
        match self {
            Frame::Element(bytes) | Frame::Error(bytes) => bytes.len(),
            Frame::Open(_) | Frame::Close => 64,
        }
    }
}

/// What a stream header says, from either side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Opening {
    pub(super) from: Option<String>,
    pub(super) to: Option<String>,
    pub(super) id: Option<String>,
    pub(super) version: Option<String>,
    pub(super) lang: Option<String>,
}

impl Opening {
    /// Reads the attributes.
    pub(super) fn of(node: &trunkline_xml::Node<'_>) -> Opening {
        let attr = |name: &str| node.attr(name).map(|value| value.into_owned());
        Opening {
            from: attr("from"),
            to: attr("to"),
            id: attr("id"),
            version: attr("version"),
            lang: node.attr_ns(ns::XML, "lang").map(|value| value.into_owned()),
        }
    }

    /// Writes them.
    pub(super) fn write(&self, w: &mut Writer) {
        w.attr_opt("from", self.from.as_deref())
            .attr_opt("to", self.to.as_deref())
            .attr_opt("id", self.id.as_deref())
            .attr_opt("version", self.version.as_deref())
            .attr_opt("xml:lang", self.lang.as_deref());
    }

    /// A client's stream header.
    pub(super) fn header(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.open("stream:stream").attr("xmlns", ns::CLIENT).attr("xmlns:stream", ns::STREAMS);
        self.write(&mut w);
        w.text(" ");
        w.finish_header()
    }
}

/// How the session says that it is over.
pub(super) const END: &[u8] = b"</stream:stream>";

/// A transport for the session, and the frames on its other side. `secure`: nobody on the way can read them.
pub(super) fn pair(secure: bool, tls: Option<Arc<TlsInfo>>) -> (Transport, Frames) {
    let shared = Arc::new(Mutex::new(State::new()));
    let carried = Framed { shared: Arc::clone(&shared), secure };
    (Transport::carried(carried, tls), Frames { shared })
}

struct State {
    /// For the session to read.
    input: VecDeque<Bytes>,
    input_bytes: usize,
    input_ended: bool,
    reader: Option<Waker>,
    feeder: Option<Waker>,
    /// Written by the session.
    scanner: Scanner,
    frames: VecDeque<Frame>,
    frame_bytes: usize,
    ended: bool,
    writer: Option<Waker>,
    taker: Option<Waker>,
    /// Frames there ever were, and how many of them are with the client for sure.
    pushed: u64,
    confirmed: u64,
    /// Where the session has drawn a line: behind how many frames, and how many kept stanzas since the line before.
    marks: VecDeque<(u64, usize)>,
    /// Kept stanzas before the last mark that are not known to have arrived.
    marked: usize,
    /// Somebody has logged in.
    settled: bool,
    /// The carrying side is gone.
    abandoned: bool,
}

impl State {
    fn new() -> State {
        State {
            input: VecDeque::new(),
            input_bytes: 0,
            input_ended: false,
            reader: None,
            feeder: None,
            scanner: Scanner::new(OWN),
            frames: VecDeque::new(),
            frame_bytes: 0,
            ended: false,
            writer: None,
            taker: None,
            pushed: 0,
            confirmed: 0,
            marks: VecDeque::new(),
            marked: 0,
            settled: false,
            abandoned: false,
        }
    }

    fn push(&mut self, frame: Frame) {
        self.frame_bytes += frame.len();
        self.pushed += 1;
        self.frames.push_back(frame);
    }

    /// Cuts what the session writes.
    fn scan(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        loop {
            // After SASL and after nothing else the session begins anew, always with a declaration.
            if self.scanner.buffered() == 0 && rest.starts_with(b"<?xml") {
                self.scanner.restart();
            }
            let event = self.scanner.next(&mut rest).map_err(|error| {
                tracing::error!(%error, "a bug in this server: a stream that it writes is no XML");
                io::Error::new(io::ErrorKind::InvalidData, error)
            })?;
            match event {
                None => return Ok(()),
                Some(Event::Whitespace) => {}
                Some(Event::Open(header)) => self.push(Frame::Open(Opening::of(&header.root()))),
                Some(Event::Close) => self.push(Frame::Close),
                Some(Event::Element(element)) => {
                    let root = element.root();
                    let bytes = root.to_standalone("");
                    let error = root.is(ns::STREAMS, "error");
                    self.push(if error { Frame::Error(bytes) } else { Frame::Element(bytes) });
                }
            }
        }
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// The session's side.
struct Framed {
    shared: Arc<Mutex<State>>,
    secure: bool,
}

impl fmt::Debug for Framed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Framed")
    }
}

impl Carried for Framed {
    fn is_encrypted(&self) -> bool {
        self.secure
    }

    fn settle(&self) {
        self.shared.lock().settled = true;
    }

    fn mark(&self, kept: usize) {
        let mut state = self.shared.lock();
        let pushed = state.pushed;
        match kept.saturating_sub(state.marked) {
            0 => return,
            more => state.marks.push_back((pushed, more)),
        }
        state.marked = kept;
    }

    fn arrived(&self) -> usize {
        let mut state = self.shared.lock();
        let mut arrived = 0;
        let confirmed = state.confirmed;
        while let Some((_, kept)) = state.marks.front().filter(|(pushed, _)| *pushed <= confirmed) {
            arrived += kept;
            state.marks.pop_front();
        }
        state.marked -= arrived;
        if state.marks.is_empty() {
            // An idle client holds no buffer.
            state.marks = VecDeque::new();
        }
        arrived
    }
}

impl AsyncRead for Framed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        let Some(first) = state.input.front_mut() else {
            if state.input_ended {
                return Poll::Ready(Ok(()));
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let length = first.len().min(buf.remaining());
        buf.put_slice(&first[..length]);
        first.advance(length);
        if first.is_empty() {
            state.input.pop_front();
        }
        state.input_bytes -= length;
        if state.input.is_empty() {
            // An idle client holds no buffer.
            state.input = VecDeque::new();
        }
        wake(&mut state.feeder);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Framed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        if state.abandoned {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.frame_bytes >= MOST_WAITING {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.scan(buf)?;
        wake(&mut state.taker);
        Poll::Ready(Ok(buf.len()))
    }

    /// Once somebody has logged in, what was written is on its way only when the client has it for sure: a message that
    /// waits for a client's next request is not delivered. Until then nobody could bring the next request that waits
    /// for an answer.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        if state.abandoned {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if !state.settled || state.confirmed >= state.pushed {
            return Poll::Ready(Ok(()));
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        state.ended = true;
        wake(&mut state.taker);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Framed {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        wake(&mut state.taker);
        wake(&mut state.feeder);
    }
}

/// The carrying side. Dropped, the session's connection is lost.
pub(super) struct Frames {
    shared: Arc<Mutex<State>>,
}

impl Frames {
    /// Waits until the session reads; false: it is over.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.shared.lock();
        if state.ended {
            return Poll::Ready(false);
        }
        if state.input_bytes >= MOST_WAITING {
            state.feeder = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(true)
    }

    /// What the client sent. There should be room.
    pub(super) fn feed(&self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        state.input_bytes += bytes.len();
        state.input.push_back(bytes);
        wake(&mut state.reader);
    }

    /// The next frame; `None`: there will be none any more.
    pub(super) fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        let mut state = self.shared.lock();
        match state.frames.pop_front() {
            Some(frame) => {
                state.frame_bytes -= frame.len();
                if state.frames.is_empty() {
                    state.frames = VecDeque::new();
                }
                if state.frame_bytes < MOST_WAITING {
                    wake(&mut state.writer);
                }
                Poll::Ready(Some(frame))
            }
            None if state.ended => Poll::Ready(None),
            None => {
                state.taker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The next frame; `None`: there will be none any more.
    pub(super) async fn frame(&self) -> Option<Frame> {
        poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// The next frame, if it is there.
    pub(super) fn try_frame(&self) -> Option<Frame> {
        match self.poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(frame) => frame,
            Poll::Pending => None,
        }
    }

    /// The client has this many further frames.
    pub(super) fn confirm(&self, frames: u64) {
        let mut state = self.shared.lock();
        state.confirmed += frames;
        if frames > 0 {
            wake(&mut state.writer);
        }
    }

    /// Somebody has logged in.
    pub(super) fn is_settled(&self) -> bool {
        self.shared.lock().settled
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.abandoned = true;
        state.input_ended = true;
        wake(&mut state.reader);
        wake(&mut state.writer);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const HEADER: &[u8] = b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
        xmlns:stream='http://etherx.jabber.org/streams' id='1' from='a.example' version='1.0' xml:lang='en'>";

    fn waits<F: Future>(work: Pin<&mut F>) -> bool {
        work.poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    fn text(frame: Option<Frame>) -> String {
        match frame {
            Some(Frame::Element(bytes)) | Some(Frame::Error(bytes)) => String::from_utf8(bytes).unwrap(),
            other => format!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_stream_is_cut_into_elements_that_stand_alone() {
        let (mut transport, frames) = pair(true, None);
        transport.write_all(HEADER).await.unwrap();
        let Some(Frame::Open(opening)) = frames.frame().await else { panic!("no header") };
        assert_eq!((opening.id.as_deref(), opening.lang.as_deref()), (Some("1"), Some("en")));
        // However the bytes are cut.
        for byte in
            b"<message to='b'><body>x</body></message><stream:features><bind xmlns='b'/></stream:features>"
        {
            transport.write_all(&[*byte]).await.unwrap();
        }
        assert_eq!(
            text(frames.frame().await),
            "<message xmlns='jabber:client' to='b'><body>x</body></message>"
        );
        let features = text(frames.frame().await);
        assert!(
            features.starts_with("<stream:features xmlns:stream='http://etherx.jabber.org/streams'"),
            "{features}"
        );
        // After a login the stream begins anew.
        transport.write_all(b"<success xmlns='s'/>").await.unwrap();
        transport.write_all(HEADER).await.unwrap();
        transport.write_all(b"<stream:error><x/></stream:error></stream:stream>").await.unwrap();
        transport.shutdown().await.unwrap();
        assert_eq!(text(frames.frame().await), "<success xmlns='s'/>");
        assert!(matches!(frames.frame().await, Some(Frame::Open(_))));
        assert!(matches!(frames.frame().await, Some(Frame::Error(_))));
        assert_eq!(frames.frame().await, Some(Frame::Close));
        assert_eq!(frames.frame().await, None);
    }

    #[tokio::test]
    async fn written_is_what_is_confirmed_once_somebody_has_logged_in() {
        let (mut transport, frames) = pair(true, None);
        transport.write_all(HEADER).await.unwrap();
        transport.flush().await.unwrap();
        let mut transport = transport.settled();
        transport.write_all(b"<message/>").await.unwrap();
        let mut flush = std::pin::pin!(transport.flush());
        assert!(waits(flush.as_mut()), "nobody has taken it");
        frames.frame().await.unwrap();
        frames.frame().await.unwrap();
        assert!(waits(flush.as_mut()), "it is taken, but not confirmed");
        frames.confirm(1);
        assert!(waits(flush.as_mut()), "one of two is confirmed");
        frames.confirm(1);
        flush.await.unwrap();
    }

    #[tokio::test]
    async fn what_has_arrived_is_known_while_more_is_on_its_way() {
        let (mut transport, frames) = pair(true, None);
        transport.write_all(HEADER).await.unwrap();
        let mut transport = transport.settled();
        transport.write_all(b"<message/><message/>").await.unwrap();
        transport.mark(2);
        transport.write_all(b"<presence/>").await.unwrap();
        transport.mark(2);
        transport.write_all(b"<message/>").await.unwrap();
        transport.mark(3);
        frames.confirm(2);
        assert_eq!(transport.arrived(), 0, "the header and the first of two");
        frames.confirm(1);
        assert_eq!(transport.arrived(), 2);
        // Two are known to have arrived: one more waits, and another.
        transport.write_all(b"<message/>").await.unwrap();
        transport.mark(2);
        frames.confirm(2);
        assert_eq!(transport.arrived(), 1);
        frames.confirm(1);
        assert_eq!(transport.arrived(), 1);
        assert_eq!(transport.arrived(), 0);
    }

    #[tokio::test]
    async fn who_does_not_take_is_not_written_to_without_end() {
        let (mut transport, frames) = pair(true, None);
        transport.write_all(HEADER).await.unwrap();
        let stanza = format!("<message><body>{}</body></message>", "x".repeat(10_000));
        let mut written = 0;
        let writing = async {
            loop {
                transport.write_all(stanza.as_bytes()).await.unwrap();
                written += stanza.len();
            }
        };
        let _ = tokio::time::timeout(std::time::Duration::from_millis(50), writing).await;
        assert!((MOST_WAITING..MOST_WAITING + 2 * stanza.len()).contains(&written), "{written}");
        drop(frames);
        assert!(transport.write_all(stanza.as_bytes()).await.is_err(), "nobody is there any more");
        let mut rest = Vec::new();
        assert_eq!(transport.read_to_end(&mut rest).await.unwrap(), 0);
    }
}
