//! Elements and cursors over them.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use memchr::{memchr3, memmem};

use crate::parse::{
    ATTR_DECL, ATTR_ESCAPED, ATTR_WORDS, NODE_WORDS, NOT_PORTABLE, NS_DEFAULT, NS_INHERITED, NS_NONE,
    NS_TABLE, NS_UNESCAPED, NS_XML, Parser, Rules, Stop, raw_name_length, words,
};
use crate::scope::Scope;
use crate::writer::escape_attr;
use crate::{Limits, ScanError, XML_NS, chars};

/// One complete element: its bytes as they came and a tape of offsets. Cloning it copies no bytes.
#[derive(Clone)]
pub struct Element {
    bytes: Bytes,
    tape: Arc<[u32]>,
    scope: Scope,
}

impl Element {
    /// Parses one self-contained element, from storage or from our own writer. Unprefixed names without a declaration
    /// are in `default_ns`; prefixes must be declared in the element. The limits are wide, so input from a peer
    /// belongs into a [`Scanner`](crate::Scanner).
    pub fn parse(bytes: impl Into<Bytes>, default_ns: &str) -> Result<Element, ScanError> {
        let bytes = bytes.into();
        let scope = Scope::new(default_ns, &[]);
        if !bytes.starts_with(b"<") {
            return Err(ScanError::NotWellFormed("not an element"));
        }
        if bytes.len() > Limits::OWN.element_bytes {
            return Err(ScanError::TooLarge { limit: Limits::OWN.element_bytes });
        }
        let mut parser = Parser::take();
        let parsed = parser.element(&bytes, Rules { scope: scope.get(), limits: &Limits::OWN });
        let element = match parsed {
            Ok(length) if length == bytes.len() => {
                let (tape, scope) = parser.finish(&scope);
                Ok(Element { bytes, tape, scope })
            }
            Ok(_) => Err(ScanError::NotWellFormed("something behind the element")),
            Err(Stop::More) => Err(ScanError::NotWellFormed("an element without its end")),
            Err(Stop::Refused(error)) => Err(error),
        };
        parser.give_back();
        element
    }

    pub(crate) fn new(bytes: Bytes, parser: &mut Parser, scope: &Scope) -> Element {
        let (tape, scope) = parser.finish(scope);
        Element { bytes, tape, scope }
    }

    /// The element itself.
    pub fn root(&self) -> Node<'_> {
        Node { element: self, at: 1 }
    }

    /// The element as it came, exactly.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The prefixes that are used in the element but declared around it, on the stream header, with what they are
    /// bound to. Who writes the element elsewhere must declare them.
    pub fn inherited(&self) -> impl Iterator<Item = (&str, &str)> {
        self.namespaces().filter(|entry| entry[0] & NS_INHERITED != 0).map(|entry| {
            let (prefix, uri) = &self.scope.get().prefixes[(entry[0] & !NS_INHERITED) as usize];
            (prefix.as_ref(), uri.as_ref())
        })
    }

    /// The same element where unprefixed names without a declaration are in `ns`. This is how the content namespace
    /// of one kind of stream is mapped to that of another; no byte changes.
    pub fn with_default_ns(self, ns: &str) -> Element {
        Element { scope: self.scope.with_default(ns), ..self }
    }

    /// The namespace that the element inherits for unprefixed names; empty for none.
    pub fn default_ns(&self) -> &str {
        &self.scope.get().default
    }

    /// How many elements there are, the outermost included.
    pub fn node_count(&self) -> usize {
        std::iter::successors(Some(self.root()), |node| node.following()).count()
    }

    /// False when it is well-formed but much of the software that may get it could not read it and would drop its
    /// stream: names with characters that only the fifth edition of XML 1.0 permits, and namespace names with ASCII
    /// characters that no URI has (parsers use such characters as separators, and refuse them since CVE-2022-25236).
    pub fn is_portable(&self) -> bool {
        self.tape[0] & NOT_PORTABLE == 0
    }

    /// Where on the tape the nodes end and the namespace table begins.
    fn nodes_end(&self) -> usize {
        (self.tape[0] & !NOT_PORTABLE) as usize
    }

    fn namespaces(&self) -> impl Iterator<Item = [u32; 2]> {
        self.tape[self.nodes_end()..].chunks_exact(2).map(|entry| [entry[0], entry[1]])
    }

    fn str(&self, range: Range<usize>) -> &str {
        // Checked when it was scanned; `unsafe` would save a few nanoseconds.
        std::str::from_utf8(&self.bytes[range]).expect("invariant: what has been scanned is UTF-8")
    }

    /// A namespace name: a string that is kept beside the element, or a place in its bytes.
    fn namespace_place(&self, ns: u16) -> Result<&str, Range<usize>> {
        let bindings = self.scope.get();
        match ns {
            NS_DEFAULT => Ok(&bindings.default),
            NS_NONE => Ok(""),
            NS_XML => Ok(XML_NS),
            table => {
                let at = self.nodes_end() + 2 * usize::from(table - NS_TABLE);
                match words(&self.tape, at) {
                    [entry, _] if entry & NS_INHERITED != 0 => {
                        Ok(&bindings.prefixes[(entry & !NS_INHERITED) as usize].1)
                    }
                    [entry, _] if entry & NS_UNESCAPED != 0 => {
                        Ok(&bindings.unescaped[(entry & !NS_UNESCAPED) as usize])
                    }
                    [offset, length] => Err(offset as usize..(offset + length) as usize),
                }
            }
        }
    }

    fn namespace(&self, ns: u16) -> &[u8] {
        match self.namespace_place(ns) {
            Ok(name) => name.as_bytes(),
            Err(range) => &self.bytes[range],
        }
    }

    fn namespace_str(&self, ns: u16) -> &str {
        self.namespace_place(ns).unwrap_or_else(|range| self.str(range))
    }
}

impl fmt::Debug for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Element").field(&String::from_utf8_lossy(&self.bytes)).finish()
    }
}

/// Elements are equal when their bytes and the default namespace around them are.
impl PartialEq for Element {
    fn eq(&self, other: &Element) -> bool {
        self.bytes == other.bytes && self.default_ns() == other.default_ns()
    }
}

impl Eq for Element {}

/// The start tag that opens a stream: an element without children and without end.
#[derive(Clone, Debug)]
pub struct Header {
    tag: Element,
}

impl Header {
    pub(crate) fn new(tag: Element) -> Header {
        Header { tag }
    }

    /// Name, attributes and declarations of the stream.
    pub fn root(&self) -> Node<'_> {
        self.tag.root()
    }

    /// The namespace of unprefixed children: the content namespace. Empty when the header declares none.
    pub fn default_ns(&self) -> Cow<'_, str> {
        let declared = self.root().ns_decls().find(|declaration| declaration.prefix().is_none());
        declared.map_or(Cow::Borrowed(""), |declaration| declaration.uri())
    }

    /// The start tag as it came; the XML declaration is not part of it.
    pub fn bytes(&self) -> &Bytes {
        self.tag.bytes()
    }

    /// What the children of the stream inherit.
    pub(crate) fn scope(&self) -> Scope {
        let declared: Vec<_> = self
            .root()
            .ns_decls()
            .filter_map(|declaration| Some((declaration.prefix()?, declaration.uri())))
            .filter(|(prefix, _)| *prefix != "xml")
            .collect();
        let prefixes: Vec<_> = declared.iter().map(|(prefix, uri)| (*prefix, uri.as_ref())).collect();
        Scope::new(&self.default_ns(), &prefixes)
    }
}

/// A cursor: one element inside an [`Element`].
#[derive(Clone, Copy)]
pub struct Node<'a> {
    element: &'a Element,
    at: usize,
}

impl<'a> Node<'a> {
    fn words(self) -> [u32; NODE_WORDS] {
        words(&self.element.tape, self.at)
    }

    fn name_range(self) -> Range<usize> {
        let [start, .., lengths, _] = self.words();
        let end = start as usize + 1 + raw_name_length(lengths);
        end - (lengths & 0xFFFF) as usize..end
    }

    /// The local name.
    pub fn name(self) -> &'a str {
        self.element.str(self.name_range())
    }

    /// The prefix as written; empty for none.
    pub fn prefix(self) -> &'a str {
        let [start, .., lengths, _] = self.words();
        let start = start as usize + 1;
        self.element.str(start..start + (lengths >> 16) as usize)
    }

    /// The namespace; empty for none.
    pub fn ns(self) -> &'a str {
        self.element.namespace_str((self.words()[6] >> 16) as u16)
    }

    /// True when this is the element `name` of the namespace `ns`.
    pub fn is(self, ns: &str, name: &str) -> bool {
        let [start, .., lengths, namespace] = self.words();
        if (lengths & 0xFFFF) as usize != name.len() {
            return false;
        }
        let end = start as usize + 1 + raw_name_length(lengths);
        &self.element.bytes[end - name.len()..end] == name.as_bytes()
            && self.element.namespace((namespace >> 16) as u16) == ns.as_bytes()
    }

    /// The value of the unprefixed attribute `name`, unescaped.
    pub fn attr(self, name: &str) -> Option<Cow<'a, str>> {
        let (_, words) = self.attribute_words().find(|(_, [start, _, _, lengths, flags])| {
            *lengths as usize == name.len()
                && flags & ATTR_DECL == 0
                && &self.element.bytes[*start as usize..][..name.len()] == name.as_bytes()
        })?;
        Some(Attr { element: self.element, words }.value())
    }

    /// The value of the attribute `name` in the namespace `ns`, unescaped: `attr_ns(XML_NS, "lang")`.
    pub fn attr_ns(self, ns: &str, name: &str) -> Option<Cow<'a, str>> {
        if ns.is_empty() {
            return self.attr(name);
        }
        self.attrs()
            .find(|attr| attr.words[3] >> 16 != 0 && attr.name() == name && attr.ns() == ns)
            .map(Attr::value)
    }

    /// The attributes as written, namespace declarations left out.
    pub fn attrs(self) -> impl Iterator<Item = Attr<'a>> {
        self.attribute_words()
            .filter(|(_, words)| words[4] & ATTR_DECL == 0)
            .map(move |(_, words)| Attr { element: self.element, words })
    }

    /// The namespace declarations that stand on this element.
    pub fn ns_decls(self) -> impl Iterator<Item = NsDecl<'a>> {
        self.attribute_words()
            .filter(|(_, words)| words[4] & ATTR_DECL != 0)
            .map(move |(_, words)| NsDecl { attr: Attr { element: self.element, words } })
    }

    fn attribute_words(self) -> impl Iterator<Item = (usize, [u32; ATTR_WORDS])> {
        let count = (self.words()[6] & 0xFFFF) as usize;
        let first = self.at + NODE_WORDS;
        (first..first + count * ATTR_WORDS)
            .step_by(ATTR_WORDS)
            .map(move |at| (at, words(&self.element.tape, at)))
    }

    /// The node that follows in document order: the first child, else what comes after.
    fn following(self) -> Option<Node<'a>> {
        let at = self.at + NODE_WORDS + (self.words()[6] & 0xFFFF) as usize * ATTR_WORDS;
        (at < self.element.nodes_end()).then_some(Node { at, ..self })
    }

    /// Where the first node that is not inside this one stands.
    fn next(self) -> usize {
        self.words()[4] as usize
    }

    /// The child elements.
    pub fn children(self) -> impl Iterator<Item = Node<'a>> {
        let end = self.next();
        let sibling = move |node: Node<'a>| (node.at < end).then_some(node);
        std::iter::successors(self.first_child(), move |node| sibling(Node { at: node.next(), ..*node }))
    }

    /// The first child element that is `name` of the namespace `ns`.
    pub fn child(self, ns: &str, name: &str) -> Option<Node<'a>> {
        self.children().find(|child| child.is(ns, name))
    }

    /// The first child element.
    pub fn first_child(self) -> Option<Node<'a>> {
        self.following().filter(|child| child.at < self.next())
    }

    /// All elements inside this one, in document order.
    pub fn descendants(self) -> impl Iterator<Item = Node<'a>> {
        self.subtree().skip(1)
    }

    /// This element and all inside it, in document order.
    fn subtree(self) -> impl Iterator<Item = Node<'a>> {
        let end = self.next();
        std::iter::successors(Some(self), move |node| node.following().filter(|next| next.at < end))
    }

    /// The text directly in this element, what is inside children left out: references resolved, CDATA sections
    /// included, line ends normalised.
    pub fn text(self) -> Cow<'a, str> {
        let mut from = self.inner_range().start;
        let mut text = Cow::Borrowed("");
        let ends =
            self.children().map(|child| child.range()).chain(std::iter::once(self.inner_range().end..0));
        for gap in ends {
            if gap.start > from {
                append_text(&mut text, self.element.str(from..gap.start));
            }
            from = gap.end;
        }
        text
    }

    /// Where this element stands in [`Element::bytes`].
    pub fn range(self) -> Range<usize> {
        let [start, _, _, end, ..] = self.words();
        start as usize..end as usize
    }

    /// Where what is between this element's tags stands in [`Element::bytes`].
    pub fn inner_range(self) -> Range<usize> {
        let [_, open_end, close_start, ..] = self.words();
        open_end as usize..close_start as usize
    }

    /// This element as it came. Elsewhere it may lack declarations that stand around it: see
    /// [`Node::to_standalone`].
    pub fn raw(self) -> &'a [u8] {
        &self.element.bytes[self.range()]
    }

    /// What is between this element's tags, as it came. The same holds for it as for [`Node::raw`].
    pub fn raw_inner(self) -> &'a [u8] {
        &self.element.bytes[self.inner_range()]
    }

    /// This element with the declarations added that it needs to stand where unprefixed names are in `default_ns`
    /// and no prefix is declared.
    pub fn to_standalone(self, default_ns: &str) -> Vec<u8> {
        self.standalone(default_ns, usize::MAX).unwrap_or_default()
    }

    /// Like [`Node::to_standalone`], of at most `room` bytes, which are taken from it; `None`: there is not that much
    /// room. For all that goes over several elements of a peer: what is declared once around them is written again with
    /// each that uses it, so that the result is bounded by the square of what came, and by nothing less.
    pub fn to_standalone_within(self, default_ns: &str, room: &mut usize) -> Option<Vec<u8>> {
        let out = self.standalone(default_ns, *room)?;
        *room -= out.len();
        Some(out)
    }

    /// `None`: it would be longer than `most`.
    fn standalone(self, default_ns: &str, most: usize) -> Option<Vec<u8>> {
        let raw = self.raw();
        let room = most.checked_sub(raw.len())?;
        let name_end = self.name_range().end - self.range().start;
        let mut out = Vec::with_capacity(raw.len() + 64.min(room));
        out.extend_from_slice(&raw[..name_end]);
        self.write_missing(default_ns, &mut out, room)?;
        out.extend_from_slice(&raw[name_end..]);
        Some(out)
    }

    /// Writes the declarations that are in force here, used in this element and not made on or in it; `None`: they are
    /// longer than `room`.
    fn write_missing(self, default_ns: &str, out: &mut Vec<u8>, mut room: usize) -> Option<()> {
        let mut missing: Vec<(&str, &str)> = Vec::new();
        // Declarations in force inside: the prefix and where the declaring element ends.
        let mut declared: Vec<(Option<&str>, usize)> = Vec::new();
        for node in self.subtree() {
            let start = node.range().start;
            declared.retain(|(_, end)| start < *end);
            declared.extend(node.ns_decls().map(|declaration| (declaration.prefix(), node.range().end)));
            let element = (node.prefix(), node.ns(), true);
            let attributes = node.attrs().map(|attr| (attr.prefix(), attr.ns(), false));
            for (prefix, ns, is_element) in std::iter::once(element).chain(attributes) {
                let key = (!prefix.is_empty()).then_some(prefix);
                let given = prefix == "xml"
                    || (prefix.is_empty() && (!is_element || ns == default_ns))
                    || declared.iter().any(|(declared, _)| *declared == key);
                // Where it is not declared in here a prefix means the same everywhere.
                if !given && !missing.iter().any(|(known, _)| *known == prefix) {
                    missing.push((prefix, ns));
                }
            }
        }
        for (prefix, ns) in missing {
            let before = out.len();
            // Before it is escaped, which may make it longer only.
            if ns.len() > room {
                return None;
            }
            out.extend_from_slice(b" xmlns");
            if !prefix.is_empty() {
                out.push(b':');
                out.extend_from_slice(prefix.as_bytes());
            }
            out.extend_from_slice(b"='");
            out.extend_from_slice(escape_attr(ns).as_bytes());
            out.push(b'\'');
            room = room.checked_sub(out.len() - before)?;
        }
        Some(())
    }
}

impl fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Node").field(&String::from_utf8_lossy(self.raw())).finish()
    }
}

/// Appends character data and CDATA sections as they stand in `raw`.
fn append_text<'a>(text: &mut Cow<'a, str>, raw: &'a str) {
    if memchr3(b'&', b'\r', b'<', raw.as_bytes()).is_none() {
        if text.is_empty() {
            *text = Cow::Borrowed(raw);
        } else {
            text.to_mut().push_str(raw);
        }
        return;
    }
    let text = text.to_mut();
    let mut rest = raw;
    while let Some((before, section)) = rest.split_once("<![CDATA[") {
        chars::unescape_into(before, text);
        let end = memmem::find(section.as_bytes(), b"]]>").unwrap_or(section.len());
        chars::unescape_cdata_into(&section[..end], text);
        rest = section.get(end + 3..).unwrap_or("");
    }
    chars::unescape_into(rest, text);
}

/// An attribute.
#[derive(Clone, Copy)]
pub struct Attr<'a> {
    element: &'a Element,
    words: [u32; ATTR_WORDS],
}

impl<'a> Attr<'a> {
    fn name_end(self) -> usize {
        self.words[0] as usize + raw_name_length(self.words[3])
    }

    /// The local name.
    pub fn name(self) -> &'a str {
        let end = self.name_end();
        self.element.str(end - (self.words[3] & 0xFFFF) as usize..end)
    }

    /// The prefix; empty for none.
    pub fn prefix(self) -> &'a str {
        let start = self.words[0] as usize;
        self.element.str(start..start + (self.words[3] >> 16) as usize)
    }

    /// The namespace; empty for none, which is that of attributes without prefix.
    pub fn ns(self) -> &'a str {
        self.element.namespace_str((self.words[4] >> 16) as u16)
    }

    /// The value, unescaped.
    pub fn value(self) -> Cow<'a, str> {
        let raw = self.raw_value();
        if self.words[4] & ATTR_ESCAPED == 0 { Cow::Borrowed(raw) } else { chars::unescape_value(raw) }
    }

    /// The value as written, without the quotes.
    pub fn raw_value(self) -> &'a str {
        let start = self.words[1] as usize;
        self.element.str(start..start + self.words[2] as usize)
    }

    /// The whole attribute as written, from the name to the closing quote.
    pub fn raw(self) -> &'a [u8] {
        &self.element.bytes[self.range()]
    }

    /// Where the attribute stands in [`Element::bytes`].
    pub fn range(self) -> Range<usize> {
        self.words[0] as usize..(self.words[1] + self.words[2]) as usize + 1
    }
}

impl fmt::Debug for Attr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Attr").field(&String::from_utf8_lossy(self.raw())).finish()
    }
}

/// A namespace declaration.
#[derive(Clone, Copy, Debug)]
pub struct NsDecl<'a> {
    attr: Attr<'a>,
}

impl<'a> NsDecl<'a> {
    /// The prefix declared, or `None` for the default namespace.
    pub fn prefix(self) -> Option<&'a str> {
        (self.attr.words[3] >> 16 != 0).then(|| self.attr.name())
    }

    /// What is declared; empty when the default namespace is taken back.
    pub fn uri(self) -> Cow<'a, str> {
        self.attr.value()
    }

    /// The declaration as written.
    pub fn raw(self) -> &'a [u8] {
        self.attr.raw()
    }

    /// Where the declaration stands in [`Element::bytes`].
    pub fn range(self) -> Range<usize> {
        self.attr.range()
    }
}
