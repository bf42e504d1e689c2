//! One connection: TCP, TLS if wanted, elements, and the counts of XEP-0198.
//!
//! Buffers belong to the thread. What a connection keeps while idle is rustls's own state and some hundred bytes.
//! Anyone on the thread may queue and flush; only the task that owns the connection reads, and it is woken when a flush
//! finds the socket full.

use std::cell::RefCell;
use std::io::{self, IoSlice, Read as _, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use memchr::memmem;
use parking_lot::Mutex;
use rustls::ClientConnection;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::TcpStream;
use trunkline_xml::{Element, escape_attr};
use trunkline_xmpp::ns;

use crate::error::LoadError;
use crate::framer::{Framer, Part};

/// A request for acknowledgement.
pub(crate) const REQUEST: &[u8] = b"<r xmlns='urn:xmpp:sm:3'/>";

/// What is read at once.
const READ: usize = 64 * 1024;

thread_local! {
    static BUFFERS: RefCell<(Vec<u8>, Vec<u8>)> = RefCell::new((vec![0; READ], vec![0; READ]));
}

/// A connection that a task reads and others write to.
pub(crate) type Link = Arc<Mutex<Connection>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Connection {
    tcp: TcpStream,
    tls: Option<Box<ClientConnection>>,
    framer: Framer,
    /// What waits for the socket, without TLS.
    clear: Vec<u8>,
    /// Whose connection this is, for errors.
    who: Box<str>,
    acks: Option<Acks>,
    /// Requests of the server are answered: set after the login.
    live: bool,
    /// A write found the socket full.
    blocked: bool,
    closed: bool,
    owner: Option<Waker>,
}

/// Counts of XEP-0198, modulo 2^32.
#[derive(Clone, Copy, Debug, Default)]
struct Acks {
    handled: u32,
    sent: u32,
    acked: u32,
    /// How many `<a/>` came.
    answers: u32,
}

impl Connection {
    pub(crate) fn new(tcp: TcpStream, tls: Option<ClientConnection>, who: &str) -> Connection {
        let mut connection = Connection {
            tcp,
            tls: None,
            framer: Framer::default(),
            clear: Vec::new(),
            who: who.into(),
            acks: None,
            live: false,
            blocked: false,
            closed: false,
            owner: None,
        };
        if let Some(tls) = tls {
            connection.start_tls(tls);
        }
        connection
    }

    pub(crate) fn who(&self) -> &str {
        &self.who
    }

    pub(crate) fn tls(&self) -> Option<&ClientConnection> {
        self.tls.as_deref()
    }

    /// TLS from here on. The handshake takes place while elements are waited for; what is queued meanwhile follows it.
    pub(crate) fn start_tls(&mut self, mut tls: ClientConnection) {
        tls.set_buffer_limit(None);
        self.tls = Some(Box::new(tls));
        self.framer.restart();
    }

    /// A new stream begins.
    pub(crate) fn restart(&mut self) {
        self.framer.restart();
    }

    /// Elements come without a stream header: for the relay.
    pub(crate) fn headless(&mut self) {
        self.framer = Framer::headless();
    }

    /// Stanzas are counted from here on, in both directions (XEP-0198 s.3).
    pub(crate) fn count_stanzas(&mut self) {
        self.acks = Some(Acks::default());
    }

    /// Requests of the server (pings, roster pushes) are answered from here on.
    pub(crate) fn go_live(&mut self) {
        self.live = true;
    }

    /// Stanzas that the server has not acknowledged.
    pub(crate) fn unacknowledged(&self) -> u32 {
        self.acks.map_or(0, |acks| acks.sent.wrapping_sub(acks.acked))
    }

    /// How many acknowledgements came.
    pub(crate) fn answers(&self) -> u32 {
        self.acks.map_or(0, |acks| acks.answers)
    }

    /// Puts one stanza into the output, in a TLS record of its own.
    pub(crate) fn queue_stanza(&mut self, xml: &[u8]) {
        self.queue_stanzas(xml, 1);
    }

    /// Puts `count` stanzas into the output, together in one TLS record as far as they fit.
    pub(crate) fn queue_stanzas(&mut self, xml: &[u8], count: u32) {
        if let Some(acks) = &mut self.acks {
            acks.sent = acks.sent.wrapping_add(count);
        }
        self.queue(xml);
    }

    /// Whether XEP-0198 is on.
    pub(crate) fn counts_stanzas(&self) -> bool {
        self.acks.is_some()
    }

    /// Asks for an acknowledgement (XEP-0198 s.4).
    pub(crate) fn request_ack(&mut self) {
        if self.acks.is_some() {
            self.queue(REQUEST);
        }
    }

    /// Puts something that is no stanza into the output.
    pub(crate) fn queue(&mut self, xml: &[u8]) {
        match &mut self.tls {
            // Writing to memory; without a limit it takes all.
            Some(tls) => drop(tls.writer().write_all(xml)),
            None => self.clear.extend_from_slice(xml),
        }
    }

    /// Writes what the socket takes now; the owner writes the rest.
    pub(crate) fn flush(&mut self) -> Result<(), LoadError> {
        if self.blocked {
            return Ok(());
        }
        let mut socket = NonBlocking(&self.tcp);
        let written = match &mut self.tls {
            Some(tls) => loop {
                if !tls.wants_write() {
                    break Ok(());
                }
                if let Err(error) = tls.write_tls(&mut socket) {
                    break Err(error);
                }
            },
            None => loop {
                if self.clear.is_empty() {
                    break Ok(());
                }
                match socket.write(&self.clear) {
                    Ok(taken) => drop(self.clear.drain(..taken)),
                    Err(error) => break Err(error),
                }
            },
        };
        match written {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.blocked = true;
                if let Some(owner) = &self.owner {
                    owner.wake_by_ref();
                }
                Ok(())
            }
            Err(error) => Err(self.io_error(error)),
        }
    }

    /// Reads once and gives the elements that are not dealt with here. Pending only when the socket is drained.
    pub(crate) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<(), LoadError>> {
        if !self.owner.as_ref().is_some_and(|owner| owner.will_wake(cx.waker())) {
            self.owner = Some(cx.waker().clone());
        }
        while self.blocked {
            match self.tcp.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {
                    self.blocked = false;
                    self.flush()?;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.io_error(error))),
                Poll::Pending => break,
            }
        }
        if self.closed {
            return Poll::Ready(Err(self.closed_error()));
        }
        BUFFERS.with_borrow_mut(|(raw, plain)| {
            let mut buffer = ReadBuf::new(raw);
            match Pin::new(&mut self.tcp).poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.io_error(error))),
                Poll::Ready(Ok(())) => {}
            }
            let input = buffer.filled();
            if input.is_empty() {
                self.closed = true;
                return Poll::Ready(Err(self.closed_error()));
            }
            Poll::Ready(self.take_in(input, plain, sink))
        })
    }

    /// Whether the server has ended the stream.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    fn take_in(
        &mut self,
        mut raw: &[u8],
        plain: &mut [u8],
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), LoadError> {
        let Connection { tls, framer, .. } = self;
        let mut desk = Desk {
            acks: &mut self.acks,
            live: self.live,
            answers: Vec::new(),
            answered: 0,
            closed: false,
            error: None,
            who: &self.who,
        };
        match tls {
            None => framer.push(raw, |part| desk.take(part, sink)),
            Some(tls) => {
                while !raw.is_empty() {
                    if let Err(error) = tls.read_tls(&mut raw) {
                        let who = self.who.to_string();
                        return Err(LoadError::Io { who, error });
                    }
                    let state = match tls.process_new_packets() {
                        Ok(state) => state,
                        Err(error) => {
                            // The alert tells the server why.
                            drop(tls.write_tls(&mut NonBlocking(&self.tcp)));
                            return Err(error.into());
                        }
                    };
                    let mut rest = state.plaintext_bytes_to_read();
                    while rest > 0 {
                        match tls.reader().read(plain) {
                            Ok(read) if read > 0 => {
                                framer.push(&plain[..read], |part| desk.take(part, sink));
                                rest -= read.min(rest);
                            }
                            _ => break,
                        }
                    }
                    desk.closed |= state.peer_has_closed();
                }
            }
        }
        let Desk { answers, answered, closed, error, .. } = desk;
        self.closed |= closed;
        if let Some(error) = error {
            return Err(error);
        }
        if !answers.is_empty() {
            if let Some(acks) = &mut self.acks {
                acks.sent = acks.sent.wrapping_add(answered);
            }
            self.queue(&answers);
        }
        if !answers.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write()) {
            self.flush()?;
        }
        Ok(())
    }

    pub(crate) fn io_error(&self, error: io::Error) -> LoadError {
        LoadError::Io { who: self.who.to_string(), error }
    }

    fn closed_error(&self) -> LoadError {
        let while_ = if self.live { "while it was in use" } else { "during the login" };
        LoadError::Closed { who: self.who.to_string(), while_ }
    }

    /// Says good-bye (RFC 6120 s.4.4), with a last count so that the server keeps nothing for us.
    pub(crate) fn say_goodbye(&mut self) -> Result<(), LoadError> {
        if let Some(acks) = self.acks {
            self.queue(format!("<a xmlns='{}' h='{}'/>", ns::SM, acks.handled).as_bytes());
        }
        self.queue(b"</stream:stream>");
        self.flush()
    }
}

/// Sorts what arrives: what every client does by itself is done here.
struct Desk<'a> {
    acks: &'a mut Option<Acks>,
    live: bool,
    /// What we have to say, and how many stanzas are in it.
    answers: Vec<u8>,
    answered: u32,
    closed: bool,
    error: Option<LoadError>,
    who: &'a str,
}

impl Desk<'_> {
    fn take(&mut self, part: Part<'_>, sink: &mut dyn FnMut(&[u8])) {
        let element = match part {
            Part::Open => return,
            Part::Close => {
                self.closed = true;
                return;
            }
            Part::Element(element) => element,
        };
        match element {
            [b'<', b'm', ..] | [b'<', b'p', b'r', b'e', ..] => {
                self.count();
                sink(element);
            }
            [b'<', b'i', b'q', ..] => {
                self.count();
                if !(self.live && self.answer(element)) {
                    sink(element);
                }
            }
            [b'<', b'r', b' ' | b'/' | b'>', ..] => {
                if let Some(acks) = self.acks {
                    // Writing to a Vec does not fail.
                    let _ = write!(self.answers, "<a xmlns='{}' h='{}'/>", ns::SM, acks.handled);
                }
            }
            [b'<', b'a', b' ', ..] => self.acknowledged(element),
            _ if element.starts_with(b"<stream:error") => {
                self.closed = true;
                self.error = Some(LoadError::StreamError {
                    who: self.who.to_owned(),
                    condition: first_child_and_text(element),
                });
            }
            _ => sink(element),
        }
    }

    fn count(&mut self) {
        if let Some(acks) = self.acks {
            acks.handled = acks.handled.wrapping_add(1);
        }
    }

    fn acknowledged(&mut self, element: &[u8]) {
        let Some(acks) = self.acks else { return };
        let h = number_attribute(element, b" h=");
        let outstanding = acks.sent.wrapping_sub(acks.acked);
        match h {
            Some(h) if h.wrapping_sub(acks.acked) <= outstanding => {
                acks.acked = h;
                acks.answers += 1;
            }
            // XEP-0198 s.4: an acknowledgement of what was not sent.
            _ => {
                self.error = Some(LoadError::Delivery(format!(
                    "the server acknowledged what {} has not sent ({} stanzas): {}",
                    self.who,
                    acks.sent,
                    excerpt(element)
                )));
            }
        }
    }

    /// Answers a request as a client does; whether it was one.
    fn answer(&mut self, element: &[u8]) -> bool {
        // Rare, so it may be parsed.
        let Ok(element) = Element::parse(element.to_vec(), ns::CLIENT) else { return false };
        let root = element.root();
        if !matches!(root.attr("type").as_deref(), Some("get" | "set")) {
            return false;
        }
        let to = root.attr("from").map(|from| format!(" to='{}'", escape_attr(&from))).unwrap_or_default();
        let id = root.attr("id").unwrap_or_default();
        let id = escape_attr(&id);
        let known = root.child(ns::PING, "ping").is_some() || root.child(ns::ROSTER, "query").is_some();
        // Writing to a Vec does not fail.
        let _ = if known {
            write!(self.answers, "<iq type='result' id='{id}'{to}/>")
        } else {
            write!(
                self.answers,
                "<iq type='error' id='{id}'{to}><error type='cancel'>\
                 <service-unavailable xmlns='{}'/></error></iq>",
                ns::STANZA_ERRORS
            )
        };
        self.answered += 1;
        true
    }
}

/// `name='123'` in a start tag.
fn number_attribute(element: &[u8], name: &[u8]) -> Option<u32> {
    let at = memmem::find(element, name)? + name.len() + 1;
    let digits = element.get(at..)?.iter().take_while(|it| it.is_ascii_digit());
    digits.fold(None, |value: Option<u32>, digit| {
        value.unwrap_or(0).checked_mul(10)?.checked_add(u32::from(digit - b'0'))
    })
}

/// The first child's name and all text of an element whose prefixes are declared on the stream: for messages.
fn first_child_and_text(element: &[u8]) -> String {
    let text = String::from_utf8_lossy(element);
    let mut pieces = text.split('<').skip(2);
    let name = pieces.next().unwrap_or_default();
    let name = name.split([' ', '/', '>']).next().unwrap_or_default().to_owned();
    let words: Vec<_> = text
        .split('<')
        .filter_map(|piece| piece.split_once('>'))
        .map(|(_, text)| text.trim())
        .filter(|it| !it.is_empty())
        .collect();
    if words.is_empty() { name } else { format!("{name} ({})", words.join(" ")) }
}

/// The start of something, for a message.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(300).collect()
}

/// Writes without waiting and without registering anybody for wake-ups.
struct NonBlocking<'a>(&'a TcpStream);

impl Write for NonBlocking<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match parts {
            // The plain call is cheaper.
            [one] => self.0.try_write(one),
            _ => self.0.try_write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_attributes() {
        assert_eq!(number_attribute(b"<a xmlns='urn:xmpp:sm:3' h='17'/>", b" h="), Some(17));
        assert_eq!(number_attribute(b"<a h=\"4294967295\" xmlns='urn:xmpp:sm:3'/>", b" h="), Some(u32::MAX));
        assert_eq!(number_attribute(b"<a h='4294967296'/>", b" h="), None);
        assert_eq!(number_attribute(b"<a h=''/>", b" h="), None);
        assert_eq!(number_attribute(b"<a/>", b" h="), None);
    }

    #[test]
    fn stream_errors_are_shown_in_words() {
        let error =
            b"<stream:error><host-unknown xmlns='x'/><text xmlns='x'>no such host</text></stream:error>";
        assert_eq!(first_child_and_text(error), "host-unknown (no such host)");
        assert_eq!(first_child_and_text(b"<stream:error><reset xmlns='x'/></stream:error>"), "reset");
    }
}
