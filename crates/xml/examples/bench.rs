//! How long scanning takes: `cargo run --release -p trunkline-xml --example bench`.

use std::hint::black_box;
use std::time::Instant;

use trunkline_xml::{Element, Event, Limits, Scanner};

const HEADER: &[u8] = b"<?xml version='1.0'?><stream:stream to='example.org' xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";

const MESSAGE: &str = "<message to='juliet@example.org' from='romeo@example.net/orchard' id='af0e-1b2c' type='chat'>\
    <body>Wherefore art thou, Romeo? Deny thy father.</body>\
    <active xmlns='http://jabber.org/protocol/chatstates'/><request xmlns='urn:xmpp:receipts'/></message>";

/// Nanoseconds per round of `work`, the best of several series.
fn measure(name: &str, bytes: usize, mut work: impl FnMut()) {
    const ROUNDS: usize = 20_000;
    let mut best = f64::MAX;
    for _ in 0..15 {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            work();
        }
        best = best.min(start.elapsed().as_nanos() as f64 / ROUNDS as f64);
    }
    println!("{name:36} {best:8.0} ns {:8.0} MB/s", bytes as f64 / best * 1e3);
}

fn main() {
    println!("the message has {} bytes", MESSAGE.len());
    let mut scanner = Scanner::new(Limits::default());
    assert!(matches!(scanner.next(&mut &HEADER[..]), Ok(Some(Event::Open(_)))));
    measure("scan a message", MESSAGE.len(), || {
        black_box(scanner.next(&mut black_box(MESSAGE.as_bytes()))).expect("well-formed");
    });
    measure("scan a message in two pieces", MESSAGE.len(), || {
        let (mut first, mut second) = MESSAGE.as_bytes().split_at(100);
        black_box(scanner.next(black_box(&mut first))).expect("well-formed");
        black_box(scanner.next(black_box(&mut second))).expect("well-formed");
    });
    let long = MESSAGE.replace("Deny", &"Deny thy father and refuse thy name; ".repeat(250));
    measure("scan a message with a long body", long.len(), || {
        black_box(scanner.next(&mut black_box(long.as_bytes()))).expect("well-formed");
    });
    let items = "<item jid='romeo@example.net' name='Romeo Montague' subscription='both'><group>Verona</group></item>";
    let roster = format!(
        "<iq id='1' type='result'><query xmlns='jabber:iq:roster'>{}</query></iq>",
        items.repeat(100)
    );
    measure("scan a roster of 100", roster.len(), || {
        black_box(scanner.next(&mut black_box(roster.as_bytes()))).expect("well-formed");
    });
    measure("scan <presence/>", 11, || {
        black_box(scanner.next(&mut black_box(&b"<presence/>"[..]))).expect("well-formed");
    });
    let bytes = bytes::Bytes::from_static(MESSAGE.as_bytes());
    measure("parse from shared bytes", MESSAGE.len(), || {
        black_box(Element::parse(black_box(bytes.clone()), "jabber:client")).expect("well-formed");
    });
    let element = Element::parse(bytes, "jabber:client").expect("well-formed");
    measure("clone an element", MESSAGE.len(), || drop(black_box(element.clone())));
    measure("find a child, read its text", MESSAGE.len(), || {
        let root = black_box(&element).root();
        black_box(root.child("urn:xmpp:receipts", "request"));
        black_box(root.child("jabber:client", "body").map(|body| body.text()));
        black_box(root.attr("type"));
    });
    println!("an idle scanner: {} bytes; an element: {} bytes", size_of::<Scanner>(), size_of::<Element>());
}
