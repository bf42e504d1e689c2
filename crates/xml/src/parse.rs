//! The parser of one element: resumable between tokens, writes the tape.
//!
//! The tape is a sequence of 32-bit words: one word that says where the namespace table begins, the nodes in document
//! order, each followed by its attributes, and the namespace table. The highest bit of the first word says that the
//! element is not portable. Offsets count from the first byte of the element.
//!
//! | node | |
//! |---|---|
//! | 0 | offset of `<` |
//! | 1 | offset behind the start tag |
//! | 2 | offset of the end tag (behind the element, if it has none) |
//! | 3 | offset behind the element |
//! | 4 | where the next node that is not inside this one stands on the tape |
//! | 5 | bytes of the prefix (high half), of the local name (low half) |
//! | 6 | namespace (high half), number of attributes (low half) |
//!
//! | attribute | |
//! |---|---|
//! | 0 | offset of the name |
//! | 1 | offset of the value |
//! | 2 | bytes of the value |
//! | 3 | bytes of the prefix (high half), of the local name (low half) |
//! | 4 | namespace (high half), flags (low half) |

use std::cell::Cell;
use std::sync::Arc;

use memchr::{memchr, memchr2, memchr3, memmem};
use smallvec::SmallVec;

use crate::chars::{self, CLASS, HIGH, LT, NAME, NAME_START, is_space};
use crate::names::NameChar;
use crate::scope::{Bindings, Scope};
use crate::{Limits, ScanError, XML_NS, XMLNS_NS};

pub(crate) const NODE_WORDS: usize = 7;
pub(crate) const ATTR_WORDS: usize = 5;

/// The namespace that unprefixed elements inherit from the scope.
pub(crate) const NS_DEFAULT: u16 = 0;
/// No namespace.
pub(crate) const NS_NONE: u16 = 1;
/// The namespace of the prefix `xml`.
pub(crate) const NS_XML: u16 = 2;
/// The first entry of the namespace table: (offset, length) in the bytes, or a kind and an index.
pub(crate) const NS_TABLE: u16 = 3;
/// Entry kind: index into the prefixes of the scope.
pub(crate) const NS_INHERITED: u32 = 1 << 31;
/// Entry kind: index into the unescaped names of the scope.
pub(crate) const NS_UNESCAPED: u32 = 1 << 30;

/// Attribute flag: the value is not what the bytes say but needs unescaping.
pub(crate) const ATTR_ESCAPED: u32 = 1;
/// Attribute flag: a namespace declaration.
pub(crate) const ATTR_DECL: u32 = 2;
/// Attribute flag: the name has a character that many parsers don't know.
const ATTR_NEW_NAME: u32 = 4;

/// In the first word of the tape: see [`Element::is_portable`](crate::Element::is_portable).
pub(crate) const NOT_PORTABLE: u32 = 1 << 31;

/// Prefixes in scope at once, as a multiple of what one start tag may declare. Looking a prefix up is linear.
const PREFIXES_IN_SCOPE: usize = 8;

/// Why parsing stopped before the element's end.
pub(crate) enum Stop {
    /// Bytes are missing.
    More,
    Refused(ScanError),
}

impl From<ScanError> for Stop {
    fn from(error: ScanError) -> Stop {
        Stop::Refused(error)
    }
}

fn malformed(why: &'static str) -> Stop {
    Stop::Refused(ScanError::NotWellFormed(why))
}

/// What stays the same while an element is parsed.
#[derive(Clone, Copy)]
pub(crate) struct Rules<'a> {
    pub(crate) scope: &'a Bindings,
    pub(crate) limits: &'a Limits,
}

/// An open element.
struct Frame {
    node: u32,
    default: u16,
    /// Length of `Parser::prefixes` outside this element.
    prefixes: u16,
}

/// A prefix in scope.
struct Prefix {
    offset: u32,
    length: u16,
    ns: u16,
}

/// A start tag that has been read but not yet put in its place.
struct StartTag {
    end: usize,
    empty: bool,
}

/// A parser in the middle of an element, and the memory it works in.
#[derive(Default)]
pub(crate) struct Parser {
    tape: Vec<u32>,
    namespaces: Vec<[u32; 2]>,
    unescaped: Vec<Arc<str>>,
    stack: Vec<Frame>,
    prefixes: Vec<Prefix>,
    /// Namespace table index + 1 per prefix of the scope that has been used.
    inherited: SmallVec<[u16; 8]>,
    nodes: usize,
    not_portable: bool,
    /// Where the current token begins; everything before is settled.
    position: usize,
    /// How far the current token has been searched for its end, if that was tried before.
    searched: usize,
    /// The quote that the search is inside of, or 0.
    quote: u8,
}

impl std::fmt::Debug for Parser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parser").field("position", &self.position).field("depth", &self.stack.len()).finish()
    }
}

thread_local! {
    /// One parser's memory per thread, so that a whole element costs no allocation but its own.
    static SPARE: Cell<Option<Box<Parser>>> = const { Cell::new(None) };
}

/// Words of tape that a spare parser may keep.
const SPARE_WORDS: usize = 16 * 1024;

impl Parser {
    pub(crate) fn take() -> Box<Parser> {
        SPARE.take().unwrap_or_default()
    }

    /// Gives the memory back for the next element on this thread.
    pub(crate) fn give_back(mut self: Box<Parser>) {
        if self.tape.capacity() <= SPARE_WORDS {
            self.reset();
            SPARE.set(Some(self));
        }
    }

    /// Gives back memory that an element which may take long to complete does not need.
    pub(crate) fn shrink(&mut self) {
        self.tape.shrink_to(2 * self.tape.len());
        self.namespaces.shrink_to(2 * self.namespaces.len());
        self.stack.shrink_to(2 * self.stack.len());
        self.prefixes.shrink_to(2 * self.prefixes.len());
    }

    fn reset(&mut self) {
        self.tape.clear();
        self.namespaces.clear();
        self.unescaped.clear();
        self.stack.clear();
        self.prefixes.clear();
        self.inherited.clear();
        self.nodes = 0;
        self.not_portable = false;
        self.position = 0;
        self.searched = 0;
        self.quote = 0;
    }

    /// Parses the element that `bytes` begins with; returns its length. After [`Stop::More`], call again with more
    /// bytes at the end.
    pub(crate) fn element(&mut self, bytes: &[u8], rules: Rules<'_>) -> Result<usize, Stop> {
        if self.tape.is_empty() {
            self.tape.push(0);
        }
        loop {
            let at = self.position;
            let next = match bytes.get(at..) {
                Some([b'<', b'/', ..]) => self.end_tag(bytes)?,
                Some([b'<', b'!', ..]) => self.cdata(bytes)?,
                Some([b'<', b'?', ..]) => {
                    return Err(ScanError::Restricted("a processing instruction").into());
                }
                Some([b'<', _, ..]) => self.start_tag(bytes, rules)?,
                Some([] | [b'<']) | None => return Err(Stop::More),
                Some(_) => self.text(bytes)?,
            };
            self.position = next;
            self.searched = 0;
            if self.stack.is_empty() {
                return Ok(next);
            }
        }
    }

    /// Parses the single start tag that `bytes` begins with: the stream header. Returns its length and whether it was
    /// an empty-element tag.
    pub(crate) fn header(&mut self, bytes: &[u8], rules: Rules<'_>) -> Result<(usize, bool), Stop> {
        if self.tape.is_empty() {
            self.tape.push(0);
        }
        self.find_tag_end(bytes)?;
        match self.tag(bytes, rules) {
            Ok(tag) => {
                let end = tag.end as u32;
                let words = self.tape.len() as u32;
                self.tape[2..6].copy_from_slice(&[end, end, end, words]);
                Ok((tag.end, tag.empty))
            }
            Err(stop) => Err(self.retry_later(stop, 1)),
        }
    }

    /// The next call shall look at the current token again rather than search for its end: the last chance to find
    /// out what is wrong with an element that exceeds its limit.
    pub(crate) fn look_again(&mut self) {
        self.searched = 0;
    }

    /// The finished tape, and the namespace names it refers to that are not in the bytes.
    pub(crate) fn finish(&mut self, scope: &Scope) -> (Arc<[u32]>, Scope) {
        self.tape[0] = self.tape.len() as u32 | if self.not_portable { NOT_PORTABLE } else { 0 };
        self.tape.extend_from_slice(self.namespaces.as_flattened());
        (Arc::from(self.tape.as_slice()), scope.with_unescaped(std::mem::take(&mut self.unescaped)))
    }

    fn text(&mut self, bytes: &[u8]) -> Result<usize, Stop> {
        let from = self.position.max(self.searched);
        match memchr(b'<', &bytes[from..]) {
            Some(at) => {
                let end = from + at;
                chars::check_text(&bytes[self.position..end], true)?;
                Ok(end)
            }
            None => {
                // Settle what can be: garbage is refused when it comes, and long text is not checked twice.
                self.position += chars::check_text(&bytes[self.position..], false)?;
                self.searched = bytes.len();
                Err(Stop::More)
            }
        }
    }

    fn cdata(&mut self, bytes: &[u8]) -> Result<usize, Stop> {
        const OPEN: &[u8] = b"<![CDATA[";
        let token = &bytes[self.position..];
        match token.get(2) {
            None => return Err(Stop::More),
            Some(b'-') => return Err(ScanError::Restricted("a comment").into()),
            Some(b'D') => return Err(ScanError::Restricted("a document type").into()),
            Some(_) => {}
        }
        if token.len() < OPEN.len() && OPEN.starts_with(token) {
            return Err(Stop::More);
        }
        if !token.starts_with(OPEN) || self.stack.is_empty() {
            return Err(malformed("'<!' that begins no CDATA section"));
        }
        let content = self.position + OPEN.len();
        let from = content.max(self.searched);
        let Some(at) = memmem::find(&bytes[from..], b"]]>") else {
            self.searched = content.max(bytes.len().saturating_sub(2));
            return Err(Stop::More);
        };
        let end = from + at;
        let seen = chars::survey(&bytes[content..end]);
        if seen & chars::CONTROL != 0 {
            return Err(malformed("a control character"));
        }
        if seen & HIGH != 0 {
            chars::check_wide(&bytes[content..end])?;
        }
        Ok(end + 3)
    }

    fn start_tag(&mut self, bytes: &[u8], rules: Rules<'_>) -> Result<usize, Stop> {
        self.find_tag_end(bytes)?;
        let limits = rules.limits;
        if self.stack.len() >= limits.depth {
            return Err(ScanError::TooDeep { limit: limits.depth }.into());
        }
        if self.nodes >= limits.nodes {
            return Err(ScanError::TooManyNodes { limit: limits.nodes }.into());
        }
        let node = self.tape.len();
        let prefixes = self.prefixes.len() as u16;
        let tag = match self.tag(bytes, rules) {
            Ok(tag) => tag,
            Err(stop) => return Err(self.retry_later(stop, node)),
        };
        self.nodes += 1;
        self.tape[node + 1] = tag.end as u32;
        if tag.empty {
            self.prefixes.truncate(prefixes as usize);
            self.close(node, tag.end, tag.end);
        } else {
            let default = (self.tape[node + 4]) as u16;
            self.stack.push(Frame { node: node as u32, default, prefixes });
        }
        Ok(tag.end)
    }

    /// Undoes what an unfinished tag has left on the tape, and makes the next call search for its end first: a long
    /// tag that comes in small pieces must not be read again from its beginning for each piece.
    fn retry_later(&mut self, stop: Stop, node: usize) -> Stop {
        if matches!(stop, Stop::More) {
            self.tape.truncate(node);
            self.searched = self.position + 1;
            self.quote = 0;
        }
        stop
    }

    /// On the second and later attempts at a tag: goes on only when its end has come, or a `<` that can't be in it.
    fn find_tag_end(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        if self.searched <= self.position {
            return Ok(());
        }
        loop {
            let rest = &bytes[self.searched..];
            let found = match self.quote {
                0 => match memchr3(b'>', b'"', b'\'', rest) {
                    Some(at) if memchr(b'<', &rest[..at]).is_some() => return Ok(()),
                    None if memchr(b'<', rest).is_some() => return Ok(()),
                    found => found,
                },
                quote => memchr2(quote, b'<', rest),
            };
            let Some(at) = found else {
                self.searched = bytes.len();
                return Err(Stop::More);
            };
            match rest[at] {
                b'<' | b'>' if self.quote == 0 => return Ok(()),
                b'<' => return Ok(()),
                byte => self.quote = if self.quote == 0 { byte } else { 0 },
            }
            self.searched += at + 1;
        }
    }

    /// Reads the start tag at the current position and appends its node and attributes to the tape. Word 4 of the
    /// node is left holding the default namespace for its children.
    fn tag(&mut self, bytes: &[u8], rules: Rules<'_>) -> Result<StartTag, Stop> {
        let start = self.position;
        let node = self.tape.len();
        let name = name(bytes, start + 1, rules.limits.name_bytes)?;
        self.tape.extend_from_slice(&[start as u32, 0, 0, 0, 0, name.lengths, 0]);
        self.not_portable |= name.new;
        let (mut attributes, mut declarations, mut prefixed) = (0, 0, name.lengths >> 16 != 0);
        let mut at = name.end;
        let tag = loop {
            let gap = at;
            at = skip_space(bytes, at);
            match bytes.get(at) {
                None => return Err(Stop::More),
                Some(b'>') => break StartTag { end: at + 1, empty: false },
                Some(b'/') => match bytes.get(at + 1) {
                    None => return Err(Stop::More),
                    Some(b'>') => break StartTag { end: at + 2, empty: true },
                    Some(_) => return Err(malformed("'/' in a tag")),
                },
                Some(_) if gap == at => return Err(malformed("no space before an attribute")),
                Some(_) => {}
            }
            let (attribute, end) = attribute(bytes, at, rules.limits.name_bytes)?;
            at = end;
            self.not_portable |= attribute[4] & ATTR_NEW_NAME != 0;
            if attribute[4] & ATTR_DECL != 0 {
                declarations += 1;
                if declarations > rules.limits.namespaces {
                    return Err(ScanError::TooManyNamespaces { limit: rules.limits.namespaces }.into());
                }
            } else {
                attributes += 1;
                if attributes > rules.limits.attributes {
                    return Err(ScanError::TooManyAttributes { limit: rules.limits.attributes }.into());
                }
                prefixed |= attribute[3] >> 16 != 0;
            }
            self.tape.extend_from_slice(&attribute);
        };
        let mut default = self.stack.last().map_or(NS_DEFAULT, |frame| frame.default);
        if declarations > 0 {
            default = self.declare(bytes, node, default, rules)?;
        }
        let mut ns = default;
        if prefixed {
            ns = self.resolve_prefixes(bytes, node, default, rules)?;
        }
        if attributes + declarations > 1 {
            self.refuse_duplicates(bytes, node, rules.scope)?;
        }
        self.tape[node + 4] = u32::from(default);
        self.tape[node + 6] = u32::from(ns) << 16 | (attributes + declarations) as u32;
        Ok(tag)
    }

    /// Puts the declarations on the tag at `node` in force; returns the default namespace.
    fn declare(&mut self, bytes: &[u8], node: usize, outer: u16, rules: Rules<'_>) -> Result<u16, Stop> {
        let mut default = outer;
        let limit = rules.limits.namespaces;
        for at in (node + NODE_WORDS..self.tape.len()).step_by(ATTR_WORDS) {
            let [name, value, length, lengths, flags] = words(&self.tape, at);
            if flags & ATTR_DECL == 0 {
                continue;
            }
            let raw = &bytes[value as usize..(value + length) as usize];
            let unescaped = if flags & ATTR_ESCAPED == 0 { None } else { Some(unescape(raw)) };
            let uri = unescaped.as_deref().map_or(raw, str::as_bytes);
            // `xmlns` alone has no prefix; in `xmlns:p`, the "prefix" is `xmlns` and the local name is what is bound.
            let prefix: &[u8] = match lengths >> 16 {
                0 => b"",
                skip => &bytes[(name + skip + 1) as usize..][..(lengths & 0xFFFF) as usize],
            };
            guard(prefix, uri)?;
            self.not_portable |= !chars::is_uri(uri);
            let ns = if uri.is_empty() {
                NS_NONE
            } else if prefix == b"xml" {
                continue;
            } else {
                let entry = match &unescaped {
                    None => [value, length],
                    Some(_) => [NS_UNESCAPED | self.unescaped.len() as u32, 0],
                };
                self.unescaped.extend(unescaped.as_deref().map(Arc::from));
                self.add_namespace(entry, limit)?
            };
            if prefix.is_empty() {
                default = ns;
            } else if self.prefixes.len() >= limit * PREFIXES_IN_SCOPE {
                return Err(ScanError::TooManyNamespaces { limit: limit * PREFIXES_IN_SCOPE }.into());
            } else {
                let offset = name + (lengths >> 16) + 1;
                self.prefixes.push(Prefix { offset, length: lengths as u16, ns });
            }
        }
        Ok(default)
    }

    fn add_namespace(&mut self, entry: [u32; 2], limit: usize) -> Result<u16, Stop> {
        let index = self.namespaces.len() + usize::from(NS_TABLE);
        let index = u16::try_from(index).map_err(|_| ScanError::TooManyNamespaces { limit })?;
        self.namespaces.push(entry);
        Ok(index)
    }

    /// Finds the namespaces of the tag's prefixed attributes, and of the element itself, which is returned.
    fn resolve_prefixes(
        &mut self,
        bytes: &[u8],
        node: usize,
        default: u16,
        rules: Rules<'_>,
    ) -> Result<u16, Stop> {
        for at in (node + NODE_WORDS..self.tape.len()).step_by(ATTR_WORDS) {
            let [name, _, _, lengths, flags] = words(&self.tape, at);
            if flags & ATTR_DECL == 0 && lengths >> 16 != 0 {
                let prefix = &bytes[name as usize..(name + (lengths >> 16)) as usize];
                let ns = self.resolve(bytes, prefix, rules)?;
                self.tape[at + 4] = u32::from(ns) << 16 | (flags & 0xFFFF);
            }
        }
        let (start, lengths) = (self.tape[node], self.tape[node + 5]);
        match lengths >> 16 {
            0 => Ok(default),
            length => self.resolve(bytes, &bytes[start as usize + 1..][..length as usize], rules),
        }
    }

    fn resolve(&mut self, bytes: &[u8], prefix: &[u8], rules: Rules<'_>) -> Result<u16, Stop> {
        if prefix == b"xml" {
            return Ok(NS_XML);
        }
        if prefix == b"xmlns" {
            return Err(ScanError::BadNamespace("an element with the prefix xmlns").into());
        }
        let bound = self.prefixes.iter().rev().find(|bound| {
            usize::from(bound.length) == prefix.len()
                && &bytes[bound.offset as usize..][..prefix.len()] == prefix
        });
        if let Some(bound) = bound {
            return Ok(bound.ns);
        }
        let inherited = rules.scope.prefixes.iter().position(|bound| bound.0.as_bytes() == prefix);
        let Some(index) = inherited else {
            return Err(ScanError::BadPrefix.into());
        };
        if self.inherited.len() <= index {
            self.inherited.resize(index + 1, 0);
        }
        if self.inherited[index] == 0 {
            self.not_portable |= !chars::is_uri(rules.scope.prefixes[index].1.as_bytes());
            let ns = self.add_namespace([NS_INHERITED | index as u32, 0], rules.limits.namespaces)?;
            self.inherited[index] = ns;
        }
        Ok(self.inherited[index])
    }

    /// XML 1.0 s.3.1 (Unique Att Spec) and Namespaces in XML s.6.3: neither the same name nor the same expanded name.
    fn refuse_duplicates(&self, bytes: &[u8], node: usize, scope: &Bindings) -> Result<(), Stop> {
        for at in (node + NODE_WORDS..self.tape.len()).step_by(ATTR_WORDS) {
            let [name, _, _, lengths, flags] = words(&self.tape, at);
            let (prefix, local) = (lengths >> 16, lengths & 0xFFFF);
            for other in (node + NODE_WORDS..at).step_by(ATTR_WORDS) {
                let [other_name, _, _, other_lengths, other_flags] = words(&self.tape, other);
                if local != other_lengths & 0xFFFF || (prefix == 0) != (other_lengths >> 16 == 0) {
                    continue;
                }
                let skip = if prefix == 0 { 0 } else { prefix + 1 };
                let other_skip = if prefix == 0 { 0 } else { (other_lengths >> 16) + 1 };
                let local_at = |at: u32| &bytes[at as usize..][..local as usize];
                if local_at(name + skip) != local_at(other_name + other_skip)
                    || (flags ^ other_flags) & ATTR_DECL != 0
                {
                    continue;
                }
                let same_namespace = prefix == 0
                    || self.namespace(bytes, (flags >> 16) as u16, scope)
                        == self.namespace(bytes, (other_flags >> 16) as u16, scope);
                if flags & ATTR_DECL != 0 {
                    return Err(malformed("a namespace declaration twice"));
                }
                if same_namespace {
                    return Err(malformed("an attribute twice"));
                }
            }
        }
        Ok(())
    }

    fn namespace<'a>(&'a self, bytes: &'a [u8], ns: u16, scope: &'a Bindings) -> &'a [u8] {
        match ns {
            NS_DEFAULT => scope.default.as_bytes(),
            NS_NONE => b"",
            NS_XML => XML_NS.as_bytes(),
            table => match self.namespaces[usize::from(table - NS_TABLE)] {
                [entry, _] if entry & NS_INHERITED != 0 => {
                    scope.prefixes[(entry & !NS_INHERITED) as usize].1.as_bytes()
                }
                [entry, _] if entry & NS_UNESCAPED != 0 => {
                    self.unescaped[(entry & !NS_UNESCAPED) as usize].as_bytes()
                }
                [offset, length] => &bytes[offset as usize..(offset + length) as usize],
            },
        }
    }

    fn end_tag(&mut self, bytes: &[u8]) -> Result<usize, Stop> {
        let Some(frame) = self.stack.last() else {
            return Err(malformed("an end tag without a start tag"));
        };
        let node = frame.node as usize;
        let prefixes = usize::from(frame.prefixes);
        let (start, lengths) = (self.tape[node] as usize, self.tape[node + 5]);
        let length = raw_name_length(lengths);
        let end = match_end_tag(&bytes[self.position..], &bytes[start + 1..start + 1 + length])?;
        let end = self.position + end;
        self.stack.pop();
        self.prefixes.truncate(prefixes);
        self.close(node, self.position, end);
        Ok(end)
    }

    fn close(&mut self, node: usize, close_start: usize, end: usize) {
        let next = self.tape.len() as u32;
        self.tape[node + 2..node + 5].copy_from_slice(&[close_start as u32, end as u32, next]);
    }
}

/// Matches the end tag that `bytes` begins with (`</` is there) against the name it must have; returns its length.
pub(crate) fn match_end_tag(bytes: &[u8], name: &[u8]) -> Result<usize, Stop> {
    let there = &bytes[2..bytes.len().min(2 + name.len())];
    if !name.starts_with(there) {
        return Err(malformed("an end tag that does not match its start tag"));
    }
    let at = skip_space(bytes, 2 + there.len());
    match bytes.get(at) {
        None => Err(Stop::More),
        Some(b'>') => Ok(at + 1),
        Some(_) => Err(malformed("an end tag that does not match its start tag")),
    }
}

pub(crate) fn words<const N: usize>(tape: &[u32], at: usize) -> [u32; N] {
    *tape[at..].first_chunk().expect("invariant: records on the tape are whole")
}

/// Bytes of a name as it stands, prefix and colon included.
pub(crate) fn raw_name_length(lengths: u32) -> usize {
    let (prefix, local) = ((lengths >> 16) as usize, (lengths & 0xFFFF) as usize);
    if prefix == 0 { local } else { prefix + 1 + local }
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(|byte| is_space(*byte)) {
        at += 1;
    }
    at
}

struct Name {
    end: usize,
    /// Prefix in the high half, local name in the low half.
    lengths: u32,
    /// It has a character that only the fifth edition of XML 1.0 permits.
    new: bool,
}

/// Reads the qualified name at `start`.
fn name(bytes: &[u8], start: usize, limit: usize) -> Result<Name, Stop> {
    let mut at = start;
    let mut part = start;
    let mut prefix = 0;
    let mut new = false;
    loop {
        if at - start > limit {
            return Err(ScanError::NameTooLong { limit }.into());
        }
        let Some(&byte) = bytes.get(at) else {
            return Err(Stop::More);
        };
        let class = CLASS[byte as usize];
        if class & NAME != 0 {
            if at == part && class & NAME_START == 0 {
                return Err(malformed("a name that begins with a digit, '-' or '.'"));
            }
            at += 1;
        } else if class & HIGH != 0 {
            match chars::wide_name_char(&bytes[at..], at == part)? {
                Some((length, kind)) => {
                    at += length;
                    new |= kind == NameChar::New;
                }
                None => return Err(Stop::More),
            }
        } else if byte == b':' && at > part && prefix == 0 {
            prefix = at - start;
            at += 1;
            part = at;
        } else if at == part || byte == b':' {
            return Err(malformed("a name that is empty or has a ':' too many"));
        } else {
            return Ok(Name { end: at, lengths: (prefix << 16 | (at - part)) as u32, new });
        }
    }
}

/// Reads the attribute at `start`: its words (namespace unresolved) and where it ends.
fn attribute(bytes: &[u8], start: usize, name_limit: usize) -> Result<([u32; ATTR_WORDS], usize), Stop> {
    let name = name(bytes, start, name_limit)?;
    let mut at = skip_space(bytes, name.end);
    match bytes.get(at) {
        None => return Err(Stop::More),
        Some(b'=') => at = skip_space(bytes, at + 1),
        Some(_) => return Err(malformed("an attribute without '='")),
    }
    let quote = match bytes.get(at) {
        None => return Err(Stop::More),
        Some(quote @ (b'"' | b'\'')) => *quote,
        Some(_) => return Err(malformed("an attribute's value without quotes")),
    };
    let value = at + 1;
    let mut seen = 0;
    at = value;
    loop {
        match bytes.get(at) {
            Some(byte) if *byte == quote => break,
            Some(byte) => seen |= CLASS[*byte as usize],
            None if seen & LT != 0 => return Err(malformed("'<' in the value of an attribute")),
            None => return Err(Stop::More),
        }
        at += 1;
    }
    let raw = &bytes[value..at];
    if seen & (LT | chars::CONTROL | HIGH | chars::AMP) != 0 {
        chars::check_value(raw, seen)?;
    }
    let mut flags = u32::from(NS_NONE) << 16;
    let special = seen & (chars::AMP | chars::SPECIAL) != 0;
    if special && (seen & chars::AMP != 0 || memchr3(b'\t', b'\n', b'\r', raw).is_some()) {
        flags |= ATTR_ESCAPED;
    }
    if name.new {
        flags |= ATTR_NEW_NAME;
    }
    let declares = match name.lengths >> 16 {
        0 => &bytes[start..name.end] == b"xmlns",
        prefix => &bytes[start..start + prefix as usize] == b"xmlns",
    };
    if declares {
        flags |= ATTR_DECL;
    }
    Ok(([start as u32, value as u32, raw.len() as u32, name.lengths, flags], at + 1))
}

fn unescape(raw: &[u8]) -> String {
    let text = std::str::from_utf8(raw).expect("invariant: values are checked before they are used");
    chars::unescape_value(text).into_owned()
}

/// Namespaces in XML s.3: what must not be declared.
fn guard(prefix: &[u8], uri: &[u8]) -> Result<(), ScanError> {
    let bad = if prefix == b"xmlns" {
        "the prefix xmlns declared"
    } else if uri == XMLNS_NS.as_bytes() {
        "a prefix bound to the namespace of xmlns"
    } else if (prefix == b"xml") != (uri == XML_NS.as_bytes()) {
        "the prefix xml bound to another namespace, or its namespace to another prefix"
    } else if !prefix.is_empty() && uri.is_empty() {
        "a prefix bound to nothing"
    } else {
        return Ok(());
    };
    Err(ScanError::BadNamespace(bad))
}
