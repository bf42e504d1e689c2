//! Writing XML.

use std::borrow::Cow;

use bytes::Bytes;
use smallvec::SmallVec;

/// Writes well-formed XML into a buffer: escapes, and closes what was opened.
///
/// ```
/// # use trunkline_xml::Writer;
/// let mut w = Writer::new();
/// w.open("iq").attr("type", "result").attr_opt("id", Some("a<b"));
/// w.open("query").attr("xmlns", "jabber:iq:roster").close();
/// w.close();
/// assert_eq!(w.finish(), b"<iq type='result' id='a&lt;b'><query xmlns='jabber:iq:roster'/></iq>");
/// ```
#[derive(Debug, Default)]
pub struct Writer {
    out: Vec<u8>,
    /// Where the names of the open elements stand in `out`, and their lengths.
    open: SmallVec<[(u32, u16); 8]>,
    tag: Tag,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Tag {
    /// No start tag is unfinished.
    #[default]
    None,
    /// The start tag of the innermost open element awaits attributes or its `>`.
    Open,
    /// The same, and the element has no content.
    Empty,
}

impl Writer {
    /// A writer into a new buffer.
    pub fn new() -> Writer {
        Writer::with_buf(Vec::new())
    }

    /// A writer that appends to `buf`.
    pub fn with_buf(buf: Vec<u8>) -> Writer {
        Writer { out: buf, ..Writer::default() }
    }

    /// Opens an element. `name` is written as it is, so it must be a name.
    pub fn open(&mut self, name: &str) -> &mut Writer {
        self.start(name, Tag::Open)
    }

    /// Opens an element that has attributes at most; it closes itself with what is written next.
    pub fn empty(&mut self, name: &str) -> &mut Writer {
        self.start(name, Tag::Empty)
    }

    fn start(&mut self, name: &str, tag: Tag) -> &mut Writer {
        debug_assert!(is_name(name), "not a name: {name:?}");
        self.end_tag_head();
        self.out.push(b'<');
        let length = u16::try_from(name.len()).expect("invariant: names are chosen by this program");
        self.open.push((self.out.len() as u32, length));
        self.out.extend_from_slice(name.as_bytes());
        self.tag = tag;
        self
    }

    /// Adds an attribute to the element just opened; `value` is escaped. Namespaces are declared this way too.
    pub fn attr(&mut self, name: &str, value: &str) -> &mut Writer {
        debug_assert!(is_name(name), "not a name: {name:?}");
        debug_assert!(self.tag != Tag::None, "the attribute {name} belongs to no start tag");
        if self.tag != Tag::None {
            self.out.push(b' ');
            self.out.extend_from_slice(name.as_bytes());
            self.out.extend_from_slice(b"='");
            escape_into(value, &mut self.out, In::Attr);
            self.out.push(b'\'');
        }
        self
    }

    /// Adds an attribute if there is a value.
    pub fn attr_opt(&mut self, name: &str, value: Option<impl AsRef<str>>) -> &mut Writer {
        match value {
            Some(value) => self.attr(name, value.as_ref()),
            None => self,
        }
    }

    /// Adds attributes that are XML already, such as [`Attr::raw`](crate::Attr::raw). Space before them is added.
    pub fn raw_attrs(&mut self, attrs: &[u8]) -> &mut Writer {
        debug_assert!(self.tag != Tag::None, "attributes that belong to no start tag");
        if self.tag != Tag::None && !attrs.is_empty() {
            self.out.push(b' ');
            self.out.extend_from_slice(attrs);
        }
        self
    }

    /// Writes text, escaped.
    pub fn text(&mut self, text: &str) -> &mut Writer {
        if !text.is_empty() {
            self.end_tag_head();
            escape_into(text, &mut self.out, In::Text);
        }
        self
    }

    /// Writes what is well-formed XML already.
    pub fn raw(&mut self, xml: &[u8]) -> &mut Writer {
        if !xml.is_empty() {
            self.end_tag_head();
            self.out.extend_from_slice(xml);
        }
        self
    }

    /// Writes an element that contains only text.
    pub fn text_element(&mut self, name: &str, text: &str) -> &mut Writer {
        self.open(name).text(text).close()
    }

    /// Closes the innermost open element.
    pub fn close(&mut self) -> &mut Writer {
        if self.tag == Tag::Empty {
            self.end_tag_head();
        }
        debug_assert!(!self.open.is_empty(), "nothing is open");
        let Some((start, length)) = self.open.pop() else {
            return self;
        };
        if self.tag == Tag::Open {
            self.out.extend_from_slice(b"/>");
        } else {
            self.out.extend_from_slice(b"</");
            self.out.extend_from_within(start as usize..start as usize + usize::from(length));
            self.out.push(b'>');
        }
        self.tag = Tag::None;
        self
    }

    fn end_tag_head(&mut self) {
        match self.tag {
            Tag::None => {}
            Tag::Open => self.out.push(b'>'),
            Tag::Empty => {
                self.out.extend_from_slice(b"/>");
                self.open.pop();
            }
        }
        self.tag = Tag::None;
    }

    /// Closes what is open and returns what was written.
    pub fn finish(mut self) -> Vec<u8> {
        self.end_tag_head();
        while !self.open.is_empty() {
            self.close();
        }
        self.out
    }

    /// Like [`Writer::finish`], and makes it shareable.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from(self.finish())
    }

    /// Finishes a start tag and leaves the element open for good: a stream header.
    pub fn finish_header(mut self) -> Vec<u8> {
        self.end_tag_head();
        self.out
    }
}

/// Enough of a check for names that stand in the program's text.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_whitespace() || b"<>&'\"/=".contains(&byte))
}

/// Escapes text for use between tags. Characters that XML has no place for become U+FFFD.
pub fn escape_text(text: &str) -> Cow<'_, str> {
    escape(text, In::Text)
}

/// Escapes text for use in an attribute's value, between quotes of either kind. Characters that XML has no place for
/// become U+FFFD.
pub fn escape_attr(text: &str) -> Cow<'_, str> {
    escape(text, In::Attr)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum In {
    Text,
    Attr,
}

fn escape(text: &str, place: In) -> Cow<'_, str> {
    if is_plain(text.as_bytes(), place) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len() + 16);
    escape_into(text, &mut out, place);
    Cow::Owned(String::from_utf8(out).expect("invariant: escaping keeps UTF-8"))
}

/// Where a byte is special: bit 0 in text, bit 1 in attributes.
static SPECIAL: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = is_special(byte as u8, In::Text) as u8 | (is_special(byte as u8, In::Attr) as u8) << 1;
        byte += 1;
    }
    table
};

/// Nothing has to be escaped. Nearly always so, which is why all is looked at without a branch for each byte.
fn is_plain(bytes: &[u8], place: In) -> bool {
    let mask = if matches!(place, In::Attr) { 2 } else { 1 };
    bytes.iter().fold(0, |found, byte| found | SPECIAL[usize::from(*byte)]) & mask == 0
}

/// Bytes that can't stand as they are. Those of U+FFFE and U+FFFF begin with 0xEF, which other characters share.
const fn is_special(byte: u8, place: In) -> bool {
    match byte {
        b'<' | b'>' | b'&' | b'\r' | 0xEF => true,
        b'\'' | b'"' | b'\t' | b'\n' => matches!(place, In::Attr),
        0..0x20 => true,
        _ => false,
    }
}

fn escape_into(text: &str, out: &mut Vec<u8>, place: In) {
    let bytes = text.as_bytes();
    if is_plain(bytes, place) {
        out.extend_from_slice(bytes);
        return;
    }
    let mut done = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if !is_special(*byte, place) {
            continue;
        }
        let (replacement, length): (&[u8], usize) = match *byte {
            b'<' => (b"&lt;", 1),
            b'>' => (b"&gt;", 1),
            b'&' => (b"&amp;", 1),
            b'\'' => (b"&apos;", 1),
            b'"' => (b"&quot;", 1),
            b'\t' => (b"&#9;", 1),
            b'\n' => (b"&#10;", 1),
            b'\r' => (b"&#13;", 1),
            0xEF if matches!(bytes[at..], [_, 0xBF, 0xBE | 0xBF, ..]) => ("\u{FFFD}".as_bytes(), 3),
            0xEF => continue,
            _ => ("\u{FFFD}".as_bytes(), 1),
        };
        out.extend_from_slice(&bytes[done..at]);
        out.extend_from_slice(replacement);
        done = at + length;
    }
    out.extend_from_slice(&bytes[done..]);
}
