//! Cuts the text of a stream into complete elements, and does nothing else.
//!
//! A load generator must cost far less than the server it loads, so what arrives is not parsed: only where an element
//! ends is found, by counting tags. The server is trusted to send well-formed XML; what is looked at more closely goes
//! through `trunkline_xml`.

use memchr::{memchr, memmem};

/// A part of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// The start tag of the stream.
    Open,
    /// A complete child element of the stream.
    Element(&'a [u8]),
    /// The end tag of the stream.
    Close,
}

/// Where the reader of one stream is. Holds no memory while nothing is incomplete.
#[derive(Debug, Default)]
pub(crate) struct Framer {
    /// The beginning of what is not complete yet.
    partial: Vec<u8>,
    /// How much of `partial` has been looked at: whole tags.
    scanned: usize,
    depth: u32,
    /// Whether the stream's start tag has been seen.
    open: bool,
}

enum Token {
    Start,
    Empty,
    End,
    /// `<?xml ..?>`, CDATA.
    Other,
}

impl Framer {
    /// A stream without a header, whose elements come at once.
    pub(crate) fn headless() -> Framer {
        Framer { open: true, ..Framer::default() }
    }

    /// A new document begins, as after STARTTLS and SASL.
    pub(crate) fn restart(&mut self) {
        *self = Framer::default();
    }

    /// Gives all that is complete with `input`.
    pub(crate) fn push(&mut self, input: &[u8], mut sink: impl FnMut(Part<'_>)) {
        if self.partial.is_empty() {
            let used = self.scan(input, &mut sink);
            self.partial.extend_from_slice(&input[used..]);
            return;
        }
        let mut bytes = std::mem::take(&mut self.partial);
        bytes.extend_from_slice(input);
        let used = self.scan(&bytes, &mut sink);
        if used < bytes.len() {
            bytes.drain(..used);
            self.partial = bytes;
        }
    }

    /// Gives the complete parts and returns where the first incomplete one begins; `scanned` counts from there.
    fn scan(&mut self, bytes: &[u8], sink: &mut impl FnMut(Part<'_>)) -> usize {
        let mut begin = 0;
        let mut at = std::mem::take(&mut self.scanned);
        loop {
            if self.depth == 0 {
                // White space between elements: keep-alives.
                let Some(next) = memchr(b'<', &bytes[at..]) else { return bytes.len() };
                at += next;
                begin = at;
            } else {
                match memchr(b'<', &bytes[at..]) {
                    Some(next) => at += next,
                    None => {
                        self.scanned = bytes.len() - begin;
                        return begin;
                    }
                }
            }
            let Some((length, token)) = tag(&bytes[at..]) else {
                self.scanned = at - begin;
                return begin;
            };
            at += length;
            match token {
                Token::Start if !self.open => {
                    self.open = true;
                    sink(Part::Open);
                    begin = at;
                }
                Token::Start => self.depth += 1,
                Token::Empty if self.depth == 0 => sink(Part::Element(&bytes[begin..at])),
                Token::End if self.depth == 0 => sink(Part::Close),
                Token::End => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        sink(Part::Element(&bytes[begin..at]));
                    }
                }
                Token::Empty | Token::Other => {}
            }
        }
    }
}

/// The tag that `bytes` begin with, if it is complete: its length and what it is.
fn tag(bytes: &[u8]) -> Option<(usize, Token)> {
    match bytes.get(1)? {
        b'/' => return Some((memchr(b'>', bytes)? + 1, Token::End)),
        b'?' => return Some((memmem::find(bytes, b"?>")? + 2, Token::Other)),
        b'!' => return Some((memmem::find(bytes, b"]]>")? + 3, Token::Other)),
        _ => {}
    }
    // A `>` may stand in an attribute's value.
    let mut at = 1;
    loop {
        match bytes.get(at)? {
            quote @ (b'\'' | b'"') => at += memchr(*quote, &bytes[at + 1..])? + 2,
            b'>' if bytes[at - 1] == b'/' => return Some((at + 1, Token::Empty)),
            b'>' => return Some((at + 1, Token::Start)),
            _ => at += 1,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const STREAM: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' from='a>b'>\
        <stream:features><a/><b x=\"/>\"/></stream:features>\n \
        <message><body>1 &gt; 0</body><x><![CDATA[</message>]]></x></message><r/><presence/></stream:stream>";

    fn parts(pieces: &[&[u8]]) -> Vec<String> {
        let mut framer = Framer::default();
        let mut found = Vec::new();
        for piece in pieces {
            framer.push(piece, |part| {
                found.push(match part {
                    Part::Open => "open".to_owned(),
                    Part::Element(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
                    Part::Close => "close".to_owned(),
                });
            });
        }
        assert!(framer.partial.is_empty());
        found
    }

    #[test]
    fn elements_are_found_wherever_the_bytes_are_cut() {
        let whole = parts(&[STREAM.as_bytes()]);
        assert_eq!(whole[0], "open");
        assert_eq!(whole[1], "<stream:features><a/><b x=\"/>\"/></stream:features>");
        assert_eq!(whole[2], "<message><body>1 &gt; 0</body><x><![CDATA[</message>]]></x></message>");
        assert_eq!(whole[3..], ["<r/>", "<presence/>", "close"]);
        for cut in 0..STREAM.len() {
            let (a, b) = STREAM.as_bytes().split_at(cut);
            assert_eq!(parts(&[a, b]), whole, "cut at {cut}");
        }
        let single: Vec<_> = STREAM.as_bytes().chunks(1).collect();
        assert_eq!(parts(&single), whole);
    }

    #[test]
    fn a_stream_without_a_header() {
        let mut framer = Framer::headless();
        let mut count = 0;
        framer.push(b"<message><body/></message><message/>", |part| {
            assert!(matches!(part, Part::Element(_)));
            count += 1;
        });
        assert_eq!(count, 2);
    }
}
