//! The scanner takes anything, gives the same for every way the bytes are cut, and keeps what it was given.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trunkline_xml::{Element, Event, Limits, ScanError, Scanner};

/// The elements, whether there was an error, and how many bytes of an unfinished one are left.
fn scan(pieces: [&[u8]; 2], limits: Limits) -> (Vec<Element>, bool, usize) {
    let mut scanner = Scanner::new(limits);
    let mut elements = Vec::new();
    for mut chunk in pieces {
        loop {
            match scanner.next(&mut chunk) {
                Ok(None) => break,
                Ok(Some(Event::Element(element))) => elements.push(element),
                Ok(Some(Event::Open(header))) => drop(header.default_ns()),
                Ok(Some(Event::Whitespace | Event::Close)) => {}
                Err(_) => return (elements, true, 0),
            }
        }
    }
    (elements, false, scanner.buffered())
}

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (cut, narrow, bytes) = input;
    let limits = match narrow % 2 {
        0 => Limits::default(),
        _ => Limits {
            element_bytes: 64,
            header_bytes: 64,
            depth: 3,
            attributes: 3,
            namespaces: 2,
            name_bytes: 8,
            nodes: 6,
        },
    };
    let cut = usize::from(cut).min(bytes.len());
    let (whole, error, _) = scan([bytes, b""], limits);
    let (halves, halves_error, left) = scan([&bytes[..cut], &bytes[cut..]], limits);
    assert_eq!(whole, halves);
    // A fault in a tag that comes in pieces may be noticed at its end only.
    assert!(error == halves_error || error && left > 0);

    for element in &whole {
        assert!(element.bytes().len() <= limits.element_bytes);
        assert!(element.node_count() <= limits.nodes);
        let default = element.default_ns();
        for node in std::iter::once(element.root()).chain(element.root().descendants()) {
            assert_eq!(&element.bytes()[node.range()], node.raw());
            assert!(node.is(node.ns(), node.name()));
            let attributes = node.attrs().map(|attr| attr.value().len() + attr.ns().len()).sum::<usize>();
            let alone = Element::parse(node.to_standalone(default), default).expect("it was well-formed");
            assert_eq!((alone.root().ns(), alone.root().text()), (node.ns(), node.text()));
            assert_eq!(
                attributes,
                alone.root().attrs().map(|attr| attr.value().len() + attr.ns().len()).sum::<usize>()
            );
        }
    }
    let again = Element::parse(bytes.to_vec(), "");
    assert!(!matches!(again, Err(ScanError::StrayText)));
});
