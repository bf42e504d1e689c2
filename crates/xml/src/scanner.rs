//! The scanner of one stream.

use bytes::Bytes;
use memchr::memmem;
use smallvec::SmallVec;

use crate::chars::is_space;
use crate::parse::{Parser, Rules, Stop, match_end_tag};
use crate::scope::Scope;
use crate::{Element, Header, Limits, ScanError};

/// What a stream consists of.
#[derive(Clone, Debug)]
pub enum Event {
    /// The stream header. Always first, once per document.
    Open(Header),
    /// One complete child element of the stream.
    Element(Element),
    /// White space between elements: a keep-alive. One event may stand for several.
    Whitespace,
    /// The end tag of the stream. Only white space may follow, which is dropped.
    Close,
}

/// Incremental scanner of one XML stream, resumable at any byte.
///
/// An element that lies completely in the input is parsed where it lies and its bytes are copied once; only an element
/// that comes in pieces is collected in a buffer of the scanner's own. Between elements a scanner holds no heap memory,
/// unless the stream header declares unusual namespaces.
#[derive(Debug)]
pub struct Scanner {
    limits: Limits,
    state: State,
    /// What children inherit from the stream header.
    scope: Scope,
    /// The header's name as written, which the closing tag must repeat.
    name: SmallVec<[u8; 24]>,
    partial: Option<Box<Partial>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Prolog,
    Content,
    /// The header was an empty-element tag: it opened and closed the stream.
    CloseDue,
    Closed,
    Failed(ScanError),
}

/// Something whose end has not come yet.
#[derive(Debug)]
struct Partial {
    bytes: Vec<u8>,
    parser: Box<Parser>,
    /// Bytes before the stream header's start tag: the XML declaration.
    prolog: usize,
}

/// At first a piece of the input that may complete an element is this long; then it doubles.
const FIRST_PIECE: usize = 1024;

impl Scanner {
    /// A scanner at the beginning of a document.
    pub fn new(limits: Limits) -> Scanner {
        Scanner {
            limits: limits.clamped(),
            state: State::Prolog,
            scope: Scope::EMPTY,
            name: SmallVec::new(),
            partial: None,
        }
    }

    /// Begins a new document, as after STARTTLS and SASL. What the scanner had kept of the old one is dropped.
    pub fn restart(&mut self) {
        *self = Scanner::new(self.limits);
    }

    /// Changes the limits, from the next element on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits.clamped();
    }

    /// Bytes of an incomplete element that the scanner holds.
    pub fn buffered(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.bytes.len())
    }

    /// Takes the next event from `input` and advances it. `None`: all of `input` has been taken and more is needed.
    /// After an error, every call returns that error.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Event>, ScanError> {
        let event = self.advance(input);
        if let Err(error) = event {
            self.state = State::Failed(error);
            self.partial = None;
        }
        event
    }

    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Event>, ScanError> {
        match self.state {
            State::Failed(error) => return Err(error),
            State::CloseDue => {
                self.state = State::Closed;
                return Ok(Some(Event::Close));
            }
            State::Prolog | State::Content | State::Closed => {}
        }
        if self.partial.is_some() {
            return self.resume(input);
        }
        let spaces = input.iter().take_while(|byte| is_space(**byte)).count();
        *input = &input[spaces..];
        let Some(first) = input.first() else {
            return Ok((spaces > 0 && self.state == State::Content).then_some(Event::Whitespace));
        };
        match (self.state, first) {
            (State::Closed, _) => {
                return Err(ScanError::NotWellFormed("something behind the end of the stream"));
            }
            (State::Content, _) if spaces > 0 => return Ok(Some(Event::Whitespace)),
            (_, b'<') => {}
            (State::Content, 0..0x20) => return Err(ScanError::NotWellFormed("a control character")),
            (State::Content, _) => return Err(ScanError::StrayText),
            // Never in UTF-8, always at the start of UTF-16 with its mark (RFC 6120 s.11.6).
            (_, 0xFE | 0xFF) => return Err(ScanError::Utf8),
            _ => return Err(ScanError::NotWellFormed("something before the stream header")),
        }
        let mut partial = Partial { bytes: Vec::new(), parser: Parser::take(), prolog: 0 };
        match self.token(input, &mut partial) {
            Ok(Some((length, event))) => {
                partial.parser.give_back();
                *input = &input[length..];
                Ok(Some(event))
            }
            Ok(None) => {
                partial.parser.shrink();
                partial.bytes.extend_from_slice(input);
                *input = &[];
                self.partial = Some(Box::new(partial));
                Ok(None)
            }
            Err(error) => {
                partial.parser.give_back();
                Err(error)
            }
        }
    }

    /// Goes on with what has begun in earlier input.
    fn resume(&mut self, input: &mut &[u8]) -> Result<Option<Event>, ScanError> {
        let Some(mut partial) = self.partial.take() else {
            return Ok(None);
        };
        let mut piece = FIRST_PIECE;
        while !input.is_empty() {
            let before = partial.bytes.len();
            let taken = piece.min(input.len());
            partial.bytes.extend_from_slice(&input[..taken]);
            let bytes = std::mem::take(&mut partial.bytes);
            let token = self.token(&bytes, &mut partial)?;
            if let Some((length, event)) = token {
                *input = &input[length.saturating_sub(before)..];
                partial.parser.give_back();
                return Ok(Some(event));
            }
            partial.bytes = bytes;
            *input = &input[taken..];
            piece *= 2;
        }
        self.partial = Some(partial);
        Ok(None)
    }

    /// Tries to complete the token that `bytes` begins with: the header, a child element, or the end tag.
    fn token(&mut self, bytes: &[u8], partial: &mut Partial) -> Result<Option<(usize, Event)>, ScanError> {
        let limit = match self.state {
            State::Prolog => self.limits.header_bytes,
            _ => self.limits.element_bytes,
        };
        let within = &bytes[..bytes.len().min(limit)];
        let mut result = self.token_within(within, partial);
        if matches!(result, Err(Stop::More)) && bytes.len() > limit {
            // What is wrong with it inside the limit comes first, so that errors don't depend on how bytes arrive.
            partial.parser.look_again();
            result = self.token_within(within, partial);
            if matches!(result, Err(Stop::More)) {
                return Err(ScanError::TooLarge { limit });
            }
        }
        match result {
            Ok(done) => Ok(Some(done)),
            Err(Stop::More) => Ok(None),
            Err(Stop::Refused(error)) => Err(error),
        }
    }

    fn token_within(&mut self, bytes: &[u8], partial: &mut Partial) -> Result<(usize, Event), Stop> {
        match (self.state, bytes) {
            (State::Prolog, _) => self.header(bytes, partial),
            (_, [b'<', b'/', ..]) => {
                let length = match_end_tag(bytes, &self.name)?;
                self.state = State::Closed;
                Ok((length, Event::Close))
            }
            _ => {
                let rules = Rules { scope: self.scope.get(), limits: &self.limits };
                let length = partial.parser.element(bytes, rules)?;
                let bytes = Bytes::copy_from_slice(&bytes[..length]);
                Ok((length, Event::Element(Element::new(bytes, &mut partial.parser, &self.scope))))
            }
        }
    }

    fn header(&mut self, bytes: &[u8], partial: &mut Partial) -> Result<(usize, Event), Stop> {
        if partial.prolog == 0 && (bytes.len() < 2 || bytes[1] == b'?') {
            partial.prolog = xml_declaration(bytes)?;
        }
        let spaces = bytes[partial.prolog..].iter().take_while(|byte| is_space(**byte)).count();
        let start = partial.prolog + spaces;
        let tag = &bytes[start..];
        match tag {
            [] | [b'<'] => return Err(Stop::More),
            [b'<', b'?', ..] => return Err(ScanError::Restricted("a processing instruction").into()),
            [b'<', b'!', b'-', ..] => return Err(ScanError::Restricted("a comment").into()),
            [b'<', b'!'] => return Err(Stop::More),
            [b'<', b'!', b'D', ..] => return Err(ScanError::Restricted("a document type").into()),
            [b'<', ..] => {}
            _ => return Err(ScanError::NotWellFormed("something before the stream header").into()),
        }
        let outside = Scope::EMPTY;
        let rules = Rules { scope: outside.get(), limits: &self.limits };
        let (length, empty) = partial.parser.header(tag, rules)?;
        let element = Element::new(Bytes::copy_from_slice(&tag[..length]), &mut partial.parser, &outside);
        let header = Header::new(element);
        self.scope = header.scope();
        let root = header.root();
        if !root.prefix().is_empty() {
            self.name.extend_from_slice(root.prefix().as_bytes());
            self.name.push(b':');
        }
        self.name.extend_from_slice(root.name().as_bytes());
        self.state = if empty { State::CloseDue } else { State::Content };
        Ok((start + length, Event::Open(header)))
    }
}

/// Reads the XML declaration that `bytes` begins with (XML 1.0 s.2.8); returns its length.
fn xml_declaration(bytes: &[u8]) -> Result<usize, Stop> {
    const OPEN: &[u8] = b"<?xml";
    let there = &bytes[..bytes.len().min(OPEN.len())];
    if !OPEN.starts_with(there) || bytes.get(OPEN.len()).is_some_and(|byte| !is_space(*byte) && *byte != b'?')
    {
        return Err(ScanError::Restricted("a processing instruction").into());
    }
    let Some(end) = memmem::find(bytes, b"?>") else {
        return Err(Stop::More);
    };
    let malformed = || Stop::Refused(ScanError::NotWellFormed("the XML declaration"));
    let rest = &bytes[OPEN.len()..end];
    let (version, rest) = pseudo_attribute(rest, b"version").ok_or_else(malformed)?;
    if version != b"1.0" {
        return Err(malformed());
    }
    let (encoding, rest) = pseudo_attribute(rest, b"encoding").unwrap_or((b"UTF-8", rest));
    let (standalone, rest) = pseudo_attribute(rest, b"standalone").unwrap_or((b"yes", rest));
    if !matches!(standalone, b"yes" | b"no") || !rest.iter().all(|byte| is_space(*byte)) {
        return Err(malformed());
    }
    if !encoding.eq_ignore_ascii_case(b"utf-8") {
        return Err(ScanError::Encoding.into());
    }
    Ok(end + 2)
}

/// Reads `name = "value"` with white space before it; returns the value and what follows.
fn pseudo_attribute<'a>(bytes: &'a [u8], name: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let trimmed = bytes.trim_ascii_start();
    if trimmed.len() == bytes.len() {
        return None;
    }
    let rest = trimmed.strip_prefix(name)?.trim_ascii_start().strip_prefix(b"=")?.trim_ascii_start();
    let (quote, rest) = rest.split_first()?;
    if !matches!(quote, b'"' | b'\'') {
        return None;
    }
    let end = rest.iter().position(|byte| byte == quote)?;
    Some((&rest[..end], &rest[end + 1..]))
}
