//! Instructions to scan stanzas: `cargo xtask bench --instructions`.

#![allow(missing_docs, clippy::unwrap_used, reason = "benches")]

use std::hint::black_box;

use gungraun::prelude::*;
use trunkline_xml::{Event, Limits, Scanner};

const HEADER: &str = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' \
    to='north.example' version='1.0'>";

/// 250 bytes.
const MESSAGE: &str = "<message to='juliet@north.example/balcony' type='chat' id='4f1c2a9e-0b'>\
    <body>Good night, good night! Parting is such sweet sorrow, that I shall say good night till it be morrow.\
    </body><active xmlns='http://jabber.org/protocol/chatstates'/></message>";

/// What a client sends in an hour, in small.
const MIX: [&str; 10] = [
    MESSAGE,
    "<r xmlns='urn:xmpp:sm:3'/>",
    "<a xmlns='urn:xmpp:sm:3' h='1234'/>",
    "<presence><show>away</show><status>in the orchard &amp; up the wall</status><priority>5</priority>\
     <c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='https://client.example' \
     ver='QgayPKawpkPSDYmwT/WM94uAlu0='/></presence>",
    "<iq type='get' id='p1' to='north.example'><ping xmlns='urn:xmpp:ping'/></iq>",
    "<message to='juliet@north.example' type='chat' id='e1'><composing \
     xmlns='http://jabber.org/protocol/chatstates'/><no-store xmlns='urn:xmpp:hints'/></message>",
    "<message to='juliet@north.example' type='chat' id='e2'><received xmlns='urn:xmpp:receipts' id='4f1c'/>\
     <displayed xmlns='urn:xmpp:chat-markers:0' id='4f1c'/><store xmlns='urn:xmpp:hints'/></message>",
    "<iq type='result' id='d7' to='juliet@north.example/balcony'><query \
     xmlns='http://jabber.org/protocol/disco#info' node='https://client.example#QgayPKawpkPSDYmwT/WM94uAlu0='>\
     <identity category='client' type='pc' name='Client'/><feature var='http://jabber.org/protocol/caps'/>\
     <feature var='http://jabber.org/protocol/disco#info'/><feature var='http://jabber.org/protocol/muc'/>\
     <feature var='urn:xmpp:ping'/><feature var='urn:xmpp:receipts'/><feature var='jabber:iq:version'/>\
     <x xmlns='jabber:x:data' type='result'><field var='FORM_TYPE' type='hidden'>\
     <value>urn:xmpp:dataforms:softwareinfo</value></field></x></query></iq>",
    "<message to='juliet@north.example' type='chat' id='o1'><encrypted xmlns='eu.siacs.conversations.axolotl'>\
     <header sid='27183'><key rid='31415'>MwohBXRoaXMgaXMgbm90IHJlYWxseSBhIGtleSBidXQgaXQgaXMgYXMgbG9uZyBhcyBvbmU=\
     </key><key rid='12321' prekey='true'>MwohBXRoaXMgaXMgbm90IHJlYWxseSBhIGtleSBidXQgaXQgaXMgYXMgbG9uZyBhcyBvbmU=\
     </key><iv>bm90IHJhbmRvbSBhdCBhbGw=</iv></header><payload>V2hhdCBsaWdodCB0aHJvdWdoIHlvbmRlciB3aW5kb3cgYnJlYWtz\
     </payload></encrypted><encryption xmlns='urn:xmpp:eme:0' namespace='eu.siacs.conversations.axolotl'/>\
     <body>encrypted</body></message>",
    "<message to='juliet@north.example' type='chat' id='u1'><body>\u{2665} Liebe Gr\u{fc}\u{df}e aus Verona &lt;3 \
     \u{1f339}\u{1f339} bis morgen fr\u{fc}h</body><html xmlns='http://jabber.org/protocol/xhtml-im'>\
     <body xmlns='http://www.w3.org/1999/xhtml'><p><em>Liebe</em> Gr\u{fc}\u{df}e</p></body></html></message>",
];

/// A stream on which each stanza has been read once.
struct Stream {
    scanner: Scanner,
    pieces: Vec<&'static [u8]>,
}

fn stream(pieces: &[&'static str], times: usize) -> Stream {
    assert_eq!(MESSAGE.len(), 250);
    let mut scanner = Scanner::new(Limits::default());
    let mut header = HEADER.as_bytes();
    assert!(matches!(scanner.next(&mut header), Ok(Some(Event::Open(_)))));
    let pieces: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes()).collect();
    let mut stream = Stream { scanner, pieces };
    assert_eq!(read(&mut stream), stream.pieces.len());
    stream.pieces = stream.pieces.repeat(times);
    stream
}

fn read(stream: &mut Stream) -> usize {
    let mut elements = 0;
    for mut piece in stream.pieces.iter().copied() {
        while let Some(event) = stream.scanner.next(&mut piece).unwrap() {
            elements += usize::from(matches!(event, Event::Element(_)));
            black_box(&event);
        }
    }
    elements
}

#[library_benchmark]
#[bench::message_x100(args = (&[MESSAGE], 100), setup = stream)]
#[bench::mix_x100(args = (&MIX, 10), setup = stream)]
fn scan(mut stream: Stream) -> (usize, Stream) {
    (read(&mut stream), stream)
}

library_benchmark_group!(name = xml, benchmarks = scan);
main!(library_benchmark_groups = xml);
