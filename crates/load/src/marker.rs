//! What a message carries so that its delivery can be verified: `TL1-run-flow-number-time-` and padding.
//!
//! The marker stands in the body (of a presence: in the status). All fields are hexadecimal digits of fixed width, so
//! that a sender only patches its template and a receiver reads at fixed offsets.

use std::ops::Range;

use memchr::memmem;

/// Bytes of a marker without padding: the shortest body.
pub(crate) const LENGTH: usize = 46;

const PREFIX: usize = 13;
const FLOW: Range<usize> = 13..19;
const NUMBER: Range<usize> = 20..28;
const TIME: Range<usize> = 29..45;

/// Tells this run's messages from those of earlier runs, which may have waited offline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run(pub(crate) u32);

/// What a marker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    /// Which sender to which receiver.
    pub(crate) flow: u32,
    /// Counts from 0 in each flow.
    pub(crate) number: u32,
    /// When it was sent, or should have been: nanoseconds on the clock of the run.
    pub(crate) time: u64,
}

/// A stanza with a marker of which only number and time change.
#[derive(Debug)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    marker: usize,
    id: Option<usize>,
}

impl Template {
    /// A message of `kind` to `to` with a body of exactly `body` bytes.
    pub(crate) fn message(run: Run, flow: u32, (to, kind): (&str, &str), body: usize) -> Template {
        let to = trunkline_xml::escape_attr(to);
        let head = format!("<message to='{to}' type='{kind}' id='{:08x}{flow:06x}", run.0);
        let id = head.len();
        let mut text = format!("{head}00000000'><body>");
        let marker = text.len();
        text.push_str(&blank(run, flow, body));
        text.push_str("</body></message>");
        Template { bytes: text.into_bytes(), marker, id: Some(id) }
    }

    /// A presence to all contacts whose status is the marker.
    pub(crate) fn presence(run: Run, flow: u32) -> Template {
        let mut text = "<presence><status>".to_owned();
        let marker = text.len();
        text.push_str(&blank(run, flow, LENGTH));
        text.push_str("</status></presence>");
        Template { bytes: text.into_bytes(), marker, id: None }
    }

    /// The stanza with this number and time.
    pub(crate) fn fill(&mut self, number: u32, time: u64) -> &[u8] {
        let marker = &mut self.bytes[self.marker..];
        write_hex(&mut marker[NUMBER], u64::from(number));
        write_hex(&mut marker[TIME], time);
        if let Some(id) = self.id {
            write_hex(&mut self.bytes[id..id + 8], u64::from(number));
        }
        &self.bytes
    }
}

fn blank(run: Run, flow: u32, body: usize) -> String {
    let mut text = format!("TL1-{:08x}-{flow:06x}-{:08x}-{:016x}-", run.0, 0, 0);
    debug_assert_eq!(text.len(), LENGTH);
    text.extend(std::iter::repeat_n('.', body.saturating_sub(LENGTH)));
    text
}

/// Finds the markers of one run.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    finder: memmem::Finder<'static>,
    /// Bytes of the element's text, marker and padding.
    body: usize,
}

impl Reader {
    pub(crate) fn new(run: Run, body: usize) -> Reader {
        let prefix = format!("TL1-{:08x}-", run.0);
        debug_assert_eq!(prefix.len(), PREFIX);
        Reader { finder: memmem::Finder::new(prefix.as_bytes()).into_owned(), body }
    }

    /// The marker in a stanza of this run. `None`: there is none, or it was damaged or cut.
    pub(crate) fn read(&self, stanza: &[u8]) -> Option<Marker> {
        let at = self.finder.find(stanza)?;
        let text = &stanza[at..];
        // The body is as long as it was sent, and its element ends there.
        if text.get(self.body) != Some(&b'<') {
            return None;
        }
        Some(Marker {
            flow: read_hex(&text[FLOW])? as u32,
            number: read_hex(&text[NUMBER])? as u32,
            time: read_hex(&text[TIME])?,
        })
    }

    /// Whether the stanza belongs to this run, damaged or not.
    pub(crate) fn is_ours(&self, stanza: &[u8]) -> bool {
        self.finder.find(stanza).is_some()
    }
}

fn write_hex(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

fn read_hex(digits: &[u8]) -> Option<u64> {
    let mut value = 0;
    for digit in digits {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        value = value << 4 | u64::from(nibble);
    }
    Some(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_read_as_it_was_written() {
        let run = Run(0xdead_beef);
        let mut template = Template::message(run, 0x1234, ("a'b@example.org", "chat"), 100);
        for (number, time) in [(0, 0), (1, 987_654_321), (u32::MAX, u64::MAX)] {
            let stanza = template.fill(number, time).to_vec();
            let marker = Reader::new(run, 100).read(&stanza).unwrap();
            assert_eq!(marker, Marker { flow: 0x1234, number, time });
            let text = String::from_utf8(stanza).unwrap();
            assert!(text.contains(&format!("id='deadbeef001234{number:08x}'")), "{text}");
            assert!(text.contains("to='a&apos;b@example.org'"), "{text}");
            let body = text.split("<body>").nth(1).unwrap().split("</body>").next().unwrap();
            assert_eq!(body.len(), 100);
        }
    }

    #[test]
    fn damage_and_other_runs_are_seen() {
        let mut template = Template::message(Run(1), 0, ("a@b", "chat"), 60);
        let stanza = template.fill(5, 7).to_vec();
        let reader = Reader::new(Run(1), 60);
        assert!(reader.read(&stanza).is_some());
        assert_eq!(Reader::new(Run(2), 60).read(&stanza), None);
        assert!(!Reader::new(Run(2), 60).is_ours(&stanza));
        let shorter = String::from_utf8(stanza.clone()).unwrap().replacen("..", ".", 1);
        assert_eq!(reader.read(shorter.as_bytes()), None);
        assert!(reader.is_ours(shorter.as_bytes()));
        assert_eq!(reader.read(&stanza[..stanza.len() - 20]), None);
    }
}
