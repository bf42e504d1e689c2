//! Whatever element comes, the stanza made of it can be written, and read again as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trunkline_xml::{Event, Limits, Scanner};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::Stanza;

const HEADERS: [&[u8]; 3] = [
    b"<s:stream xmlns='jabber:client' xmlns:s='http://etherx.jabber.org/streams' xml:lang='en'>",
    b"<s:stream xmlns='jabber:server' xmlns:s='http://etherx.jabber.org/streams' xmlns:a='urn:a'>",
    b"<s>",
];

fn written(stanza: &Stanza) -> Vec<u8> {
    let mut out = Vec::new();
    stanza.write(&mut out);
    out
}

fuzz_target!(|input: (u8, &[u8])| {
    let (header, mut bytes) = input;
    let mut scanner = Scanner::new(Limits::default());
    let Ok(Some(Event::Open(header))) = scanner.next(&mut HEADERS[usize::from(header) % HEADERS.len()]) else {
        panic!("the header is fine");
    };
    while let Ok(Some(event)) = scanner.next(&mut bytes) {
        let Event::Element(element) = event else { continue };
        let content = if header.default_ns().is_empty() { ns::CLIENT.into() } else { header.default_ns() };
        let stanza = match Stanza::from_element(element, &content, Some("en")) {
            Ok(stanza) => stanza,
            Err(refusal) => {
                assert!(refusal.stream_condition().is_none() || refusal.error_reply().is_none());
                if let Some(reply) = refusal.error_reply() {
                    assert!(Stanza::parse(&written(&reply)).is_ok() || reply.head.id.is_none());
                }
                continue;
            }
        };
        let bytes = written(&stanza);
        let again = Stanza::parse(&bytes).expect("what was written is a stanza");
        assert_eq!(again.payload(), stanza.payload());
        assert_eq!(written(&again), bytes);
        let names = |stanza: &Stanza| -> Vec<_> {
            stanza.children().map(|child| (child.ns().to_owned(), child.name().to_owned())).collect()
        };
        assert_eq!(names(&again), names(&stanza));
        assert!(stanza.without_children(|_| true).children().next().is_none());
        assert!(stanza.with_appended(b"<x xmlns='y'/>").child("y", "x").is_some());
        if let Some(error) = stanza.error(&StanzaError::new(Condition::BadRequest)) {
            assert!(error.child(ns::CLIENT, "error").is_some());
            assert!(error.error(&StanzaError::new(Condition::BadRequest)).is_none());
        }
    }
});
