//! RFC 7395: XMPP over WebSocket. One message is `<open/>`, `<close/>` or one element that stands alone.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use futures_util::{Sink as _, SinkExt as _, Stream as _, StreamExt as _};
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use trunkline_xml::{Element, ScanError, Writer};
use trunkline_xmpp::error::{StreamCondition, StreamError};
use trunkline_xmpp::ns;

use super::frames::{END, Frame, Frames, Opening};
use crate::config::Limits;
use crate::exchange::Exchange;
use crate::logging::Refusal;

/// Silence until the client is asked for a sign of life: reverse proxies cut what is silent for a minute. Who is silent
/// for as long again is gone.
const PING: Duration = Duration::from_secs(50);
/// How long the farewell of both sides may take.
const FAREWELL: Duration = Duration::from_secs(5);
/// RFC 6455 s.1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// s.3.1: the subprotocol.
const PROTOCOL: &str = "xmpp";
/// Bytes that are still read of who has made a mistake.
const MOST_THROWN_AWAY: usize = 1 << 20;
/// Bytes read at once.
const READ: usize = 4 * 1024;
/// What an element may have around it: declarations that stand on the stream elsewhere.
const SLACK: usize = 1024;

/// Why a request is no beginning of a WebSocket for XMPP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoUpgrade {
    /// No WebSocket at all.
    NotAsked,
    /// Another version than RFC 6455's.
    Version,
    /// No key, or none of 16 bytes.
    Key,
    /// RFC 7395 s.3.1: the subprotocol is not offered.
    Protocol,
}

impl NoUpgrade {
    /// RFC 6455 s.4.2.2, s.4.4.
    pub(super) fn status(self) -> StatusCode {
        match self {
            NoUpgrade::Version => StatusCode::UPGRADE_REQUIRED,
            NoUpgrade::NotAsked | NoUpgrade::Key | NoUpgrade::Protocol => StatusCode::BAD_REQUEST,
        }
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            NoUpgrade::NotAsked => "This is an XMPP server's WebSocket (RFC 7395).\n",
            NoUpgrade::Version => "This is not version 13 of WebSocket (RFC 6455).\n",
            NoUpgrade::Key => "Sec-WebSocket-Key is missing or not a key (RFC 6455 s.4.1).\n",
            NoUpgrade::Protocol => "The subprotocol xmpp is not offered (RFC 7395 s.3.1).\n",
        }
    }
}

/// RFC 6455 s.4.2.1: the headers that accept the WebSocket.
pub(super) fn accept(headers: &HeaderMap) -> Result<[(HeaderName, HeaderValue); 4], NoUpgrade> {
    let words = |name: HeaderName| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .collect::<Vec<_>>()
    };
    let has = |name, wanted: &str| words(name).iter().any(|word| word.eq_ignore_ascii_case(wanted));
    if !has(header::CONNECTION, "upgrade") || !has(header::UPGRADE, "websocket") {
        return Err(NoUpgrade::NotAsked);
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(NoUpgrade::Version);
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).map(str::trim);
    let base64 = base64::engine::general_purpose::STANDARD;
    let key = key.filter(|key| base64.decode(key).is_ok_and(|key| key.len() == 16)).ok_or(NoUpgrade::Key)?;
    if !has(header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL) {
        return Err(NoUpgrade::Protocol);
    }
    let digest = aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}{GUID}").as_bytes(),
    );
    let accepted = HeaderValue::from_str(&base64.encode(digest)).map_err(|_| NoUpgrade::Key)?;
    Ok([
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::SEC_WEBSOCKET_ACCEPT, accepted),
        (header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL)),
    ])
}

/// What an element of a message means to the session.
#[derive(Debug, PartialEq, Eq)]
enum Incoming {
    /// Bytes of a stream as on TCP.
    Stream(Bytes),
    /// Nothing but white space, which s.3.8 has no place for; it harms nobody.
    Nothing,
}

/// Reads a message: s.3.3 to s.3.6.
fn incoming(text: Bytes) -> Result<Incoming, ScanError> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(Incoming::Nothing);
    }
    // Exactly one element, and all of it: the rest of the checks are the session's.
    let element = Element::parse(text.clone(), "")?;
    let root = element.root();
    if root.ns() != ns::FRAMING {
        return Ok(Incoming::Stream(text));
    }
    match root.name() {
        "open" => Ok(Incoming::Stream(Opening::of(&root).header().into())),
        "close" => Ok(Incoming::Stream(Bytes::from_static(END))),
        _ => Err(ScanError::NotWellFormed("neither <open/> nor <close/>")),
    }
}

/// A frame as a message.
fn outgoing(frame: Frame) -> Message {
    let bytes = match frame {
        Frame::Element(bytes) | Frame::Error(bytes) => bytes,
        Frame::Open(opening) => {
            let mut w = Writer::new();
            w.open("open").attr("xmlns", ns::FRAMING);
            opening.write(&mut w);
            w.close();
            w.finish()
        }
        Frame::Close => {
            let mut w = Writer::new();
            w.open("close").attr("xmlns", ns::FRAMING).close();
            w.finish()
        }
    };
    match tungstenite::Utf8Bytes::try_from(Bytes::from(bytes)) {
        Ok(text) => Message::Text(text),
        // What has been scanned is UTF-8.
        Err(_) => Message::Text(tungstenite::Utf8Bytes::from_static("")),
    }
}

/// Who is at the other end, for the log.
pub(super) struct Peer {
    pub(super) exchange: Arc<Exchange>,
    pub(super) address: String,
}

impl Peer {
    pub(super) fn refused(&self, name: &'static str, detail: &str) {
        self.exchange.refusals.report(Refusal { name, peer: &self.address, conn: 0, detail });
    }
}

/// Carries a session over a WebSocket until one of them ends.
pub(super) async fn carry(peer: Peer, upgraded: Upgraded, frames: Frames) {
    let config = peer.exchange.config.load_full();
    let metered =
        Metered { io: TokioIo::new(upgraded), left: allowance(&config.limits, false), heard: false };
    let settings = settings(config.limits.stanza_bytes);
    let mut pump = Pump {
        socket: WebSocketStream::from_raw_socket(metered, Role::Server, Some(settings)).await,
        frames,
        opened: false,
        unconfirmed: 0,
        flush: false,
        over: false,
        tick: Box::pin(tokio::time::sleep(PING)),
        quiet: 0,
        deaf: false,
        peer,
    };
    let end = std::future::poll_fn(|cx| pump.poll(cx)).await;
    let Pump { mut socket, frames, peer, opened, .. } = pump;
    let farewell = match end {
        End::Lost => return,
        End::Said => Vec::new(),
        End::Refused(name, error) => {
            peer.refused(name, &error.to_string());
            peer.exchange.metrics.stream_error(error.condition().as_str());
            // The session ends with it and can't be resumed (XEP-0198 s.5).
            frames.feed(Bytes::from_static(END));
            let mut w = Writer::new();
            error.write(&mut w);
            let error = standalone(&w.finish());
            // s.3.5: a stream that has not begun is begun for it.
            let opening = Opening { version: Some("1.0".into()), ..Opening::default() };
            let opening = (!opened).then_some(Frame::Open(opening));
            opening.into_iter().chain([Frame::Error(error), Frame::Close]).map(outgoing).collect()
        }
    };
    let _ = tokio::time::timeout(FAREWELL, async {
        for message in farewell {
            socket.feed(message).await?;
        }
        socket.close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() })).await?;
        while socket.next().await.is_some_and(|message| message.is_ok()) {}
        // Who is in the middle of something large reads the farewell when it has written that: it is thrown away.
        let mut rest = [0; READ];
        let io = &mut socket.get_mut().io;
        for _ in 0..MOST_THROWN_AWAY / READ {
            if io.read(&mut rest).await? == 0 {
                break;
            }
        }
        Ok::<(), tungstenite::Error>(())
    })
    .await;
}

/// A stream error, with the declaration that stands on the stream elsewhere.
fn standalone(error: &[u8]) -> Vec<u8> {
    let name = b"<stream:error";
    match error.strip_prefix(name) {
        Some(rest) => [name.as_slice(), b" xmlns:stream='", ns::STREAMS.as_bytes(), b"'", rest].concat(),
        None => error.to_vec(),
    }
}

fn settings(most: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ)
        .write_buffer_size(0)
        .max_message_size(Some(most + SLACK))
        .max_frame_size(Some(most + SLACK))
}

/// What may come until a message is complete.
fn allowance(limits: &Limits, settled: bool) -> usize {
    if settled { usize::MAX } else { limits.stanza_bytes_unauthenticated + SLACK + READ }
}

/// Who has not logged in may not have a large message collected: the socket is read up to an allowance.
struct Metered {
    io: TokioIo<Upgraded>,
    left: usize,
    /// Something has come: who sends a large message slowly is no silent one.
    heard: bool,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        self.heard |= read > 0;
        self.left = self.left.saturating_sub(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

fn is_too_large(error: &tungstenite::Error) -> bool {
    match error {
        tungstenite::Error::Capacity(_) => true,
        tungstenite::Error::Io(error) => error.kind() == io::ErrorKind::FileTooLarge,
        _ => false,
    }
}

/// Why the carrying ended.
enum End {
    /// The WebSocket is gone, or the client closed it without `</stream:stream>`: the session can be resumed.
    Lost,
    /// The session has said its last word.
    Said,
    /// The client's mistake, by its name.
    Refused(&'static str, StreamError),
}

struct Pump {
    socket: WebSocketStream<Metered>,
    frames: Frames,
    /// A stream header was sent.
    opened: bool,
    /// Frames in the socket's hands.
    unconfirmed: u64,
    flush: bool,
    /// The session's last frame was sent.
    over: bool,
    tick: Pin<Box<Sleep>>,
    /// Ticks since the client was heard.
    quiet: u32,
    /// The session takes nothing for now, so nobody listens to the client.
    deaf: bool,
    peer: Peer,
}

impl Pump {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let sent = match self.poll_out(cx) {
                Ok(moved) => moved,
                Err(_) => return Poll::Ready(End::Lost),
            };
            if self.over && !self.flush {
                return Poll::Ready(End::Said);
            }
            let heard = match self.poll_in(cx) {
                Poll::Pending => false,
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(end)) => return Poll::Ready(end),
            };
            if let Some(end) = self.poll_tick(cx) {
                return Poll::Ready(end);
            }
            if !sent && !heard {
                return Poll::Pending;
            }
        }
    }

    /// Moves frames to the socket. True when something moved.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Result<bool, tungstenite::Error> {
        let mut moved = false;
        while !self.over {
            match Pin::new(&mut self.socket).poll_ready(cx)? {
                Poll::Pending => break,
                Poll::Ready(()) => {}
            }
            match self.frames.poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => self.over = true,
                Poll::Ready(Some(frame)) => {
                    self.opened |= matches!(frame, Frame::Open(_));
                    Pin::new(&mut self.socket).start_send(outgoing(frame))?;
                    self.unconfirmed += 1;
                    self.flush = true;
                    moved = true;
                }
            }
        }
        if self.flush && Pin::new(&mut self.socket).poll_flush(cx)?.is_ready() {
            self.flush = false;
            self.frames.confirm(std::mem::take(&mut self.unconfirmed));
        }
        Ok(moved)
    }

    /// Takes one message.
    fn poll_in(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let room = self.frames.poll_room(cx);
        self.deaf = room.is_pending();
        if !ready!(room) {
            // The session reads no more; what it has written still goes out.
            return Poll::Pending;
        }
        if self.frames.is_settled() {
            self.socket.get_mut().left = usize::MAX;
        }
        let message = ready!(Pin::new(&mut self.socket).poll_next(cx));
        let settled = self.frames.is_settled();
        self.socket.get_mut().left = allowance(&self.peer.exchange.config.load().limits, settled);
        Poll::Ready(match message {
            None | Some(Ok(Message::Close(_))) => Err(End::Lost),
            Some(Ok(Message::Text(text))) => match incoming(text.into()) {
                Ok(Incoming::Nothing) => Ok(()),
                Ok(Incoming::Stream(bytes)) => {
                    self.frames.feed(bytes);
                    Ok(())
                }
                Err(error) => Err(End::Refused(error.label(), StreamError::from(&error))),
            },
            // s.3.2: text only.
            Some(Ok(Message::Binary(_))) => {
                let error = StreamError::new(StreamCondition::BadFormat).text("Messages are text.");
                Err(End::Refused("websocket-binary", error))
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                // The answer to a ping waits in the socket's hands.
                self.flush = true;
                Ok(())
            }
            Some(Err(error)) if is_too_large(&error) => {
                let error =
                    StreamError::new(StreamCondition::PolicyViolation).text("The message is too large.");
                Err(End::Refused("too-large", error))
            }
            Some(Err(error)) => {
                tracing::debug!(peer = self.peer.address, %error, "a WebSocket ended");
                Err(End::Lost)
            }
        })
    }

    fn poll_tick(&mut self, cx: &mut Context<'_>) -> Option<End> {
        while self.tick.as_mut().poll(cx).is_ready() {
            self.tick.as_mut().reset(Instant::now() + PING);
            // What a client answers while nobody listens to it is heard later.
            if std::mem::take(&mut self.socket.get_mut().heard) || self.deaf {
                self.quiet = 0;
            }
            if self.quiet >= 2 {
                self.peer.refused("websocket-silent", "no answer to a ping");
                return Some(End::Lost);
            }
            self.quiet += 1;
            if let Poll::Ready(Ok(())) = Pin::new(&mut self.socket).poll_ready(cx) {
                if Pin::new(&mut self.socket).start_send(Message::Ping(Bytes::new())).is_err() {
                    return Some(End::Lost);
                }
                self.flush = true;
                cx.waker().wake_by_ref();
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(changes: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "xmpp"),
        ]
        .iter()
        .chain(changes)
        {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_websocket_is_accepted_as_in_the_rfc() {
        // RFC 6455 s.1.3.
        let accepted = accept(&headers(&[])).unwrap();
        let value = |name| accepted.iter().find(|(it, _)| it == name).unwrap().1.to_str().unwrap();
        assert_eq!(value(header::SEC_WEBSOCKET_ACCEPT), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(value(header::SEC_WEBSOCKET_PROTOCOL), "xmpp");
        assert!(accept(&headers(&[("sec-websocket-protocol", "chat, xmpp")])).is_ok());
        for (change, why) in [
            (("connection", "close"), NoUpgrade::NotAsked),
            (("upgrade", "h2c"), NoUpgrade::NotAsked),
            (("sec-websocket-version", "8"), NoUpgrade::Version),
            (("sec-websocket-key", "dGhlIHNhbXBsZQ=="), NoUpgrade::Key),
            (("sec-websocket-key", "?"), NoUpgrade::Key),
            (("sec-websocket-protocol", "chat"), NoUpgrade::Protocol),
        ] {
            assert_eq!(accept(&headers(&[change])).unwrap_err(), why);
            let upgrade = why == NoUpgrade::Version;
            assert_eq!(
                why.status(),
                if upgrade { StatusCode::UPGRADE_REQUIRED } else { StatusCode::BAD_REQUEST }
            );
        }
    }

    fn read(text: &str) -> Result<String, ScanError> {
        incoming(Bytes::copy_from_slice(text.as_bytes())).map(|it| match it {
            Incoming::Nothing => String::new(),
            Incoming::Stream(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        })
    }

    #[test]
    fn framing_becomes_a_stream() {
        let open =
            "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='a.example' version='1.0' xml:lang='en'/>";
        let header = read(open).unwrap();
        assert!(header.starts_with(
            "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'"
        ));
        assert!(header.contains(" to='a.example'") && header.contains(" xml:lang='en'"), "{header}");
        assert!(header.trim_end().ends_with("'>"), "{header}");
        assert_eq!(read("<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>").unwrap(), "</stream:stream>");
        let stanza = "<message xmlns='jabber:client'><body>x</body></message>";
        assert_eq!(read(stanza).unwrap(), stanza);
        assert_eq!(read(" \n").unwrap(), "");
    }

    #[test]
    fn one_message_is_one_element() {
        for text in [
            "<iq xmlns='jabber:client'/><iq xmlns='jabber:client'/>",
            "<iq xmlns='jabber:client'>",
            "</stream:stream>",
            "<stream:stream xmlns:stream='http://etherx.jabber.org/streams'>",
            "<?xml version='1.0'?><iq xmlns='jabber:client'/>",
            "text",
            "<stream:features/>",
            "<opens xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>",
            "<!DOCTYPE x><iq/>",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_no_panic_and_never_two_elements(text in "[<>/a-c '=\"&;:?!]{0,60}") {
            if let Ok(stream) = read(&text) {
                // What is handed on is one element, or nothing.
                let wrapped = Element::parse(format!("<w xmlns='x'>{stream}</w>").into_bytes(), "");
                let children = wrapped.map(|it| it.root().children().count());
                prop_assert!(children.is_err() || children.unwrap() <= 1);
            }
        }
    }
}
