//! One connection's bytes as a sequence of XML events, for the time of negotiation.

use std::io;

use tokio::io::AsyncWriteExt as _;
use trunkline_xml::{Event, Limits, ScanError, Scanner, Writer};
use trunkline_xmpp::error::StreamError;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

use crate::net::Transport;

/// A connection during negotiation.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) transport: Transport,
    pub(super) scanner: Scanner,
    /// Bytes read and not scanned.
    pub(super) input: Vec<u8>,
}

/// Why there is no next event.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the connection was closed")]
    Closed,
    #[error(transparent)]
    Xml(#[from] ScanError),
}

impl Wire {
    pub(super) fn new(transport: Transport, limits: Limits) -> Wire {
        Wire { transport, scanner: Scanner::new(limits), input: Vec::new() }
    }

    /// The next header, element or end of the stream.
    pub(super) async fn next(&mut self) -> Result<Event, WireError> {
        loop {
            if !self.input.is_empty() {
                let mut rest = self.input.as_slice();
                let event = self.scanner.next(&mut rest);
                let used = self.input.len() - rest.len();
                self.input.drain(..used);
                match event? {
                    Some(Event::Whitespace) => continue,
                    Some(event) => return Ok(event),
                    None => {}
                }
            }
            let input = &mut self.input;
            let read = self
                .transport
                .read_with(|bytes| {
                    input.extend_from_slice(bytes);
                    bytes.len()
                })
                .await?;
            if read == 0 {
                return Err(WireError::Closed);
            }
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.transport.write_all(bytes).await?;
        self.transport.flush().await
    }

    /// RFC 6120 s.4.3.3: after TLS and SASL a new stream begins. What was read before belongs to the old one.
    pub(super) fn restart(&mut self) {
        self.scanner.restart();
    }
}

/// What a stream header of ours says.
#[derive(Debug)]
pub(super) struct Greeting<'a> {
    pub(super) from: Option<&'a Jid>,
    pub(super) to: Option<&'a Jid>,
    /// Given by the receiving side.
    pub(super) id: Option<&'a str>,
}

/// The header that opens a stream between servers.
pub(super) fn header(greeting: &Greeting<'_>) -> Vec<u8> {
    let mut w = Writer::with_buf(b"<?xml version='1.0'?>".to_vec());
    w.open("stream:stream")
        .attr("xmlns", ns::SERVER)
        .attr("xmlns:stream", ns::STREAMS)
        // XEP-0220 s.2.2: says that we know dialback; our elements use the prefix.
        .attr("xmlns:db", ns::DIALBACK)
        .attr_opt("from", greeting.from.map(Jid::as_str))
        .attr_opt("to", greeting.to.map(Jid::as_str))
        .attr_opt("id", greeting.id)
        .attr("xml:lang", "en")
        .attr("version", "1.0");
    w.finish_header()
}

/// A stream error and the end of the stream.
pub(super) fn farewell(error: Option<&StreamError>) -> Vec<u8> {
    let mut w = Writer::new();
    if let Some(error) = error {
        error.write(&mut w);
    }
    let mut out = w.finish();
    out.extend_from_slice(b"</stream:stream>");
    out
}

/// The names of what a `<stream:features/>` element offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Offers {
    pub(super) starttls: bool,
    pub(super) external: bool,
    pub(super) dialback: bool,
    /// XEP-0220 s.2.3: dialback errors are understood.
    pub(super) dialback_errors: bool,
    pub(super) bidi: bool,
    pub(super) management: bool,
}

impl Offers {
    /// Reads `<stream:features/>`; what is unknown is passed over.
    pub(super) fn read(features: trunkline_xml::Node<'_>) -> Offers {
        let mut offers = Offers::default();
        for child in features.children() {
            match (child.ns(), child.name()) {
                (ns::TLS, "starttls") => offers.starttls = true,
                (ns::SASL, "mechanisms") => {
                    offers.external =
                        child.children().any(|m| m.name() == "mechanism" && m.text().trim() == "EXTERNAL");
                }
                (ns::DIALBACK_FEATURE, "dialback") => {
                    offers.dialback = true;
                    offers.dialback_errors = child.children().any(|child| child.name() == "errors");
                }
                (ns::BIDI_FEATURE, "bidi") => offers.bidi = true,
                (ns::SM, "sm") => offers.management = true,
                _ => {}
            }
        }
        offers
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.open("stream:features");
        if self.starttls {
            w.open("starttls").attr("xmlns", ns::TLS).empty("required").close();
        }
        if self.external {
            w.open("mechanisms").attr("xmlns", ns::SASL).text_element("mechanism", "EXTERNAL").close();
        }
        if self.dialback {
            w.open("dialback").attr("xmlns", ns::DIALBACK_FEATURE);
            if self.dialback_errors {
                w.empty("errors");
            }
            w.close();
        }
        if self.bidi {
            w.empty("bidi").attr("xmlns", ns::BIDI_FEATURE);
        }
        if self.management {
            w.empty("sm").attr("xmlns", ns::SM);
        }
        w.close();
        w.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_xml::Element;

    #[test]
    fn features_come_back_as_they_were_written() {
        for bits in 0..64u8 {
            let on = |bit: u8| bits & (1 << bit) != 0;
            let offers = Offers {
                starttls: on(0),
                external: on(1),
                dialback: on(2),
                dialback_errors: on(2) && on(3),
                bidi: on(4),
                management: on(5),
            };
            let xml = format!(
                "<x xmlns:stream='{}'>{}</x>",
                ns::STREAMS,
                String::from_utf8(offers.write()).unwrap()
            );
            let element = Element::parse(xml.into_bytes(), ns::SERVER).unwrap();
            assert_eq!(Offers::read(element.root().first_child().unwrap()), offers);
        }
    }

    #[tokio::test]
    async fn garbage_is_an_error_and_not_a_panic() {
        for garbage in
            ["\u{0}", "<", "hello", "<a><b></a>", "<!DOCTYPE x>", "</stream:stream>", "<stream:stream/>"]
        {
            let (a, mut b) = Transport::pair();
            b.write_all(garbage.as_bytes()).await.unwrap();
            drop(b);
            let mut wire = Wire::new(a, Limits::default());
            while let Ok(event) = wire.next().await {
                assert!(matches!(event, Event::Open(_) | Event::Close), "{garbage:?}");
            }
        }
    }
}
