//! Stanzas: RFC 6120 s.8, RFC 6121.
//!
//! A stanza is a head, which routing reads and changes, and a payload, which passes byte for byte. Inside this server
//! every stanza's content namespace is `jabber:client`, whatever stream it came from; a stanza is written without a
//! declaration of it, so the stream it is written to gives it its own.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use trunkline_xml::{Element, Node, ScanError, Writer, XML_NS, escape_attr};

use crate::error::{Condition, StanzaError, StreamCondition};
use crate::jid::{Jid, JidError};
use crate::ns;

/// One stanza. Cloning copies the head's references and shares the payload.
#[derive(Clone, Debug)]
pub struct Stanza {
    /// What routing needs. Changing it changes what is written; the payload stays.
    pub head: Head,
    /// Its root tag is not looked at any more: the head speaks for it.
    element: Element,
    inner: Range<usize>,
}

/// A stanza's own attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Message, presence or IQ, and of which type.
    pub kind: Kind,
    /// Whom it is for; from a client without one, its own account.
    pub to: Option<Jid>,
    /// Who sent it. What a client writes here is checked or replaced before it is routed.
    pub from: Option<Jid>,
    /// The sender's id for it.
    pub id: Option<Arc<str>>,
    /// The language of its text: its own `xml:lang`, else that of the stream it came on.
    pub lang: Option<Arc<str>>,
    /// Other attributes and the prefix declarations that the payload needs, as XML, without space before it.
    pub extra: Option<Bytes>,
}

/// What a stanza is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// RFC 6121 s.5.
    Message(MessageType),
    /// RFC 6121 s.3 and s.4.
    Presence(PresenceType),
    /// RFC 6120 s.8.2.3.
    Iq(IqType),
}

/// RFC 6121 s.5.2.2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// A single message, and what a message without or with an unknown type is.
    #[default]
    Normal,
    /// Part of a conversation of two.
    Chat,
    /// From or to a room.
    Groupchat,
    /// A notice that expects no answer.
    Headline,
    /// An earlier message failed.
    Error,
}

/// RFC 6121 s.4.7.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PresenceType {
    /// No type: the sender is there.
    #[default]
    Available,
    /// The sender is gone.
    Unavailable,
    /// A request to see the recipient's presence.
    Subscribe,
    /// The request is granted.
    Subscribed,
    /// The sender doesn't want the recipient's presence any more.
    Unsubscribe,
    /// The request is denied, or the grant taken back.
    Unsubscribed,
    /// A server asks for current presence.
    Probe,
    /// An earlier presence stanza failed.
    Error,
}

/// RFC 6120 s.8.2.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IqType {
    /// Asks.
    Get,
    /// Changes.
    Set,
    /// Answers.
    Result,
    /// Answers that it failed.
    Error,
}

impl Kind {
    /// The element's name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Message(_) => "message",
            Kind::Presence(_) => "presence",
            Kind::Iq(_) => "iq",
        }
    }

    /// The value of the attribute `type`; none for normal messages and available presence.
    pub fn type_attr(self) -> Option<&'static str> {
        Some(match self {
            Kind::Message(MessageType::Normal) | Kind::Presence(PresenceType::Available) => return None,
            Kind::Message(MessageType::Chat) => "chat",
            Kind::Message(MessageType::Groupchat) => "groupchat",
            Kind::Message(MessageType::Headline) => "headline",
            Kind::Presence(PresenceType::Unavailable) => "unavailable",
            Kind::Presence(PresenceType::Subscribe) => "subscribe",
            Kind::Presence(PresenceType::Subscribed) => "subscribed",
            Kind::Presence(PresenceType::Unsubscribe) => "unsubscribe",
            Kind::Presence(PresenceType::Unsubscribed) => "unsubscribed",
            Kind::Presence(PresenceType::Probe) => "probe",
            Kind::Iq(IqType::Get) => "get",
            Kind::Iq(IqType::Set) => "set",
            Kind::Iq(IqType::Result) => "result",
            Kind::Message(MessageType::Error)
            | Kind::Presence(PresenceType::Error)
            | Kind::Iq(IqType::Error) => "error",
        })
    }

    /// Of type `error`.
    pub fn is_error(self) -> bool {
        self == self.to_error()
    }

    /// An IQ that must be answered: `get` or `set`.
    pub fn is_request(self) -> bool {
        matches!(self, Kind::Iq(IqType::Get | IqType::Set))
    }

    /// An IQ that answers: `result` or `error`.
    pub fn is_response(self) -> bool {
        matches!(self, Kind::Iq(IqType::Result | IqType::Error))
    }

    /// The same kind of stanza with the type `error`.
    pub fn to_error(self) -> Kind {
        match self {
            Kind::Message(_) => Kind::Message(MessageType::Error),
            Kind::Presence(_) => Kind::Presence(PresenceType::Error),
            Kind::Iq(_) => Kind::Iq(IqType::Error),
        }
    }

    fn parse(root: Node<'_>) -> Result<Kind, (Kind, Refusal)> {
        let kind = root.attr("type");
        match root.name() {
            "message" => Ok(Kind::Message(match kind.as_deref() {
                Some("chat") => MessageType::Chat,
                Some("groupchat") => MessageType::Groupchat,
                Some("headline") => MessageType::Headline,
                Some("error") => MessageType::Error,
                // RFC 6121 s.5.2.2: a type that is not understood is to be taken for normal.
                _ => MessageType::Normal,
            })),
            "presence" => Ok(Kind::Presence(match kind.as_deref() {
                None => PresenceType::Available,
                Some("unavailable") => PresenceType::Unavailable,
                Some("subscribe") => PresenceType::Subscribe,
                Some("subscribed") => PresenceType::Subscribed,
                Some("unsubscribe") => PresenceType::Unsubscribe,
                Some("unsubscribed") => PresenceType::Unsubscribed,
                Some("probe") => PresenceType::Probe,
                Some("error") => PresenceType::Error,
                // RFC 6121 s.4.7.1: refused with bad-request.
                Some(_) => return Err((Kind::Presence(PresenceType::Available), Refusal::PresenceType)),
            })),
            _ => Ok(Kind::Iq(match kind.as_deref() {
                Some("get") => IqType::Get,
                Some("set") => IqType::Set,
                Some("result") => IqType::Result,
                Some("error") => IqType::Error,
                _ => return Err((Kind::Iq(IqType::Get), Refusal::IqType)),
            })),
        }
    }
}

/// Payloads up to this many bytes go back with an error (RFC 6120 s.8.3.1 permits it), so that the sender sees what
/// failed. Larger ones would make errors a way to multiply traffic.
const ECHO: usize = 1024;

impl Stanza {
    /// A stanza as it came on a stream whose content namespace is `content_ns` and whose header has the language
    /// `stream_lang`.
    ///
    /// No byte of the payload changes, with one exception: where an element declares the content namespace although it
    /// is in force anyway, the declaration is dropped, because it would not hold on a stream of another kind.
    pub fn from_element(
        element: Element,
        content_ns: &str,
        stream_lang: Option<&str>,
    ) -> Result<Stanza, StanzaRefusal> {
        let root = element.root();
        if root.ns() != content_ns || !matches!(root.name(), "message" | "presence" | "iq") {
            let foreign = root.ns() != content_ns;
            let why = if foreign { Refusal::Namespace } else { Refusal::UnknownStanza };
            return Err(StanzaRefusal { why, reply: None });
        }
        if !root.prefix().is_empty() {
            return Err(StanzaRefusal { why: Refusal::Prefix, reply: None });
        }
        let element = normalise(element, content_ns);
        let root = element.root();
        let (kind, refusal) = match Kind::parse(root) {
            Ok(kind) => (kind, None),
            Err((kind, refusal)) => (kind, Some(refusal)),
        };
        let address = |name| root.attr(name).map(|text| Jid::parse(&text)).transpose();
        let (to, from) = (address("to"), address("from"));
        let mut head = Head {
            kind,
            to: to.clone().unwrap_or_default(),
            from: from.clone().unwrap_or_default(),
            id: root.attr("id").map(Arc::from),
            lang: root.attr_ns(XML_NS, "lang").as_deref().or(stream_lang).map(Arc::from),
            extra: extra(&element),
        };
        let refusal = refusal
            .or(from.err().map(Refusal::From))
            .or(to.err().map(Refusal::To))
            .or_else(|| refuse_iq(kind, &head, root))
            .or_else(|| (!element.is_portable()).then_some(Refusal::NotPortable));
        if let Some(why) = refusal {
            head.extra = None;
            return Err(StanzaRefusal { why, reply: Some(Box::new(head)) });
        }
        let inner = root.inner_range();
        Ok(Stanza { head, element, inner })
    }

    /// A stanza from storage or a test, in `jabber:client` whether that is declared or not.
    pub fn parse(xml: &[u8]) -> Result<Stanza, StanzaParseError> {
        let element = Element::parse(Bytes::copy_from_slice(xml), ns::CLIENT)?;
        Ok(Stanza::from_element(element, ns::CLIENT, None).map_err(|refusal| refusal.why)?)
    }

    /// A new stanza.
    pub fn build(kind: Kind) -> StanzaBuilder {
        let head = Head { kind, to: None, from: None, id: None, lang: None, extra: None };
        StanzaBuilder { head, payload: Bytes::new() }
    }

    fn assemble(head: Head, payload: &[u8]) -> Result<Stanza, ScanError> {
        let name = head.kind.name();
        let extra = head.extra.as_deref().unwrap_or_default();
        let mut bytes = Vec::with_capacity(2 * name.len() + extra.len() + payload.len() + 6);
        bytes.push(b'<');
        bytes.extend_from_slice(name.as_bytes());
        if !extra.is_empty() {
            bytes.push(b' ');
            bytes.extend_from_slice(extra);
        }
        bytes.push(b'>');
        let start = bytes.len();
        bytes.extend_from_slice(payload);
        let inner = start..bytes.len();
        bytes.extend_from_slice(b"</");
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(b'>');
        Ok(Stanza { head, element: Element::parse(bytes, ns::CLIENT)?, inner })
    }

    /// What is between the stanza's tags, untouched. Prefixes that it uses may be declared in [`Head::extra`].
    pub fn payload(&self) -> Bytes {
        self.element.bytes().slice(self.inner.clone())
    }

    /// The child elements.
    pub fn children(&self) -> impl Iterator<Item = Node<'_>> {
        self.element.root().children()
    }

    /// The first child element `name` in the namespace `ns`. The content namespace is always [`ns::CLIENT`].
    pub fn child(&self, ns: &str, name: &str) -> Option<Node<'_>> {
        self.element.root().child(ns, name)
    }

    /// The first child element: of an IQ, its payload.
    pub fn first_child(&self) -> Option<Node<'_>> {
        self.element.root().first_child()
    }

    /// The text of the first body.
    pub fn body(&self) -> Option<Cow<'_, str>> {
        self.child(ns::CLIENT, "body").map(Node::text)
    }

    /// True when there is nothing inside, not even text.
    pub fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    /// The same head with another payload. A payload that is not well-formed where the head's declarations are in
    /// force is a fault of the caller's; the stanza is then empty.
    pub fn with_payload(&self, payload: impl AsRef<[u8]>) -> Stanza {
        build(self.head.clone(), payload.as_ref())
    }

    /// The same stanza without the child elements that `remove` picks.
    pub fn without_children(&self, mut remove: impl FnMut(Node<'_>) -> bool) -> Stanza {
        let cuts: Vec<_> = self.children().filter(|child| remove(*child)).map(Node::range).collect();
        if cuts.is_empty() {
            return self.clone();
        }
        self.with_payload(without(self.element.bytes(), self.inner.clone(), &cuts))
    }

    /// The same stanza with `xml` behind its other content.
    pub fn with_appended(&self, xml: &[u8]) -> Stanza {
        self.with_payload([&self.element.bytes()[self.inner.clone()], xml].concat())
    }

    /// Writes the stanza for a stream whose header declares its content namespace as the default.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_tagged((None, b""), out);
    }

    /// Writes the stanza with its namespace declared: inside other elements, such as a carbon copy, and for storage.
    pub fn write_in(&self, out: &mut Vec<u8>, ns: &str) {
        self.write_tagged((Some(ns), b""), out);
    }

    /// [`Stanza::write_in`], with `xml` behind its other content: what [`Stanza::with_appended`] would write.
    pub fn write_appended_in(&self, out: &mut Vec<u8>, (ns, xml): (&str, &[u8])) {
        self.write_tagged((Some(ns), xml), out);
    }

    fn write_tagged(&self, (ns, appended): (Option<&str>, &[u8]), out: &mut Vec<u8>) {
        let head = &self.head;
        let name = head.kind.name();
        out.reserve(self.size() + appended.len());
        out.push(b'<');
        out.extend_from_slice(name.as_bytes());
        let attributes = [
            ("xmlns", ns),
            ("from", head.from.as_ref().map(Jid::as_str)),
            ("to", head.to.as_ref().map(Jid::as_str)),
            ("id", head.id.as_deref()),
            ("type", head.kind.type_attr()),
            ("xml:lang", head.lang.as_deref()),
        ];
        for (name, value) in attributes {
            if let Some(value) = value {
                out.push(b' ');
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(b"='");
                out.extend_from_slice(escape_attr(value).as_bytes());
                out.push(b'\'');
            }
        }
        if let Some(extra) = &head.extra {
            out.push(b' ');
            out.extend_from_slice(extra);
        }
        if self.inner.is_empty() && appended.is_empty() {
            out.extend_from_slice(b"/>");
            return;
        }
        out.push(b'>');
        out.extend_from_slice(&self.element.bytes()[self.inner.clone()]);
        out.extend_from_slice(appended);
        out.extend_from_slice(b"</");
        out.extend_from_slice(name.as_bytes());
        out.push(b'>');
    }

    /// The answer to an IQ: a `result` that goes back with the same id. For a message or presence, one of the same
    /// kind and type that goes back.
    pub fn reply(&self) -> StanzaBuilder {
        let kind = match self.head.kind {
            Kind::Iq(_) => Kind::Iq(IqType::Result),
            kind => kind,
        };
        StanzaBuilder { head: self.head.turned(kind), payload: Bytes::new() }
    }

    /// The error that answers this stanza, or `None` where RFC 6120 s.8.3.1 and s.8.2.3 forbid one: errors and IQ
    /// results are never answered.
    pub fn error(&self, error: &StanzaError) -> Option<Stanza> {
        if self.head.kind.is_error() || self.head.kind.is_response() {
            return None;
        }
        let mut head = self.head.turned(self.head.kind.to_error());
        let mut w = Writer::new();
        if self.inner.len() <= ECHO {
            head.lang.clone_from(&self.head.lang);
            head.extra.clone_from(&self.head.extra);
            w.raw(&self.element.bytes()[self.inner.clone()]);
        }
        error.write(&mut w);
        Some(build(head, &w.finish()))
    }

    /// About how many bytes the stanza has when written; what queues count.
    pub fn size(&self) -> usize {
        let head = &self.head;
        let jid = |jid: &Option<Jid>| jid.as_ref().map_or(0, |jid| jid.as_str().len() + 8);
        let text = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len() + 12);
        let extra = head.extra.as_ref().map_or(0, Bytes::len);
        self.inner.len() + jid(&head.to) + jid(&head.from) + text(&head.id) + text(&head.lang) + extra + 48
    }
}

/// Stanzas are equal when they would be written alike.
impl PartialEq for Stanza {
    fn eq(&self, other: &Stanza) -> bool {
        self.head == other.head
            && self.element.bytes()[self.inner.clone()] == other.element.bytes()[other.inner.clone()]
    }
}

impl Eq for Stanza {}

impl Head {
    /// The head of what goes back to the sender.
    fn turned(&self, kind: Kind) -> Head {
        Head {
            kind,
            to: self.from.clone(),
            from: self.to.clone(),
            id: self.id.clone(),
            lang: None,
            extra: None,
        }
    }
}

/// Puts a stanza together. What is not well-formed is dropped rather than written to somebody's stream, where it would
/// cost that stream its life.
fn build(head: Head, payload: &[u8]) -> Stanza {
    let bare = Head { extra: None, ..head.clone() };
    let stanza = Stanza::assemble(head, payload);
    debug_assert!(stanza.is_ok(), "{stanza:?}: {}", String::from_utf8_lossy(payload));
    stanza
        .or_else(|_| Stanza::assemble(bare, b""))
        .expect("invariant: an element without attributes and content is well-formed")
}

/// `bytes[range]` without `cuts`, which are in order.
fn without(bytes: &[u8], range: Range<usize>, cuts: &[Range<usize>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(range.len());
    let mut from = range.start;
    for cut in cuts {
        out.extend_from_slice(&bytes[from..cut.start]);
        from = cut.end;
    }
    out.extend_from_slice(&bytes[from..range.end]);
    out
}

/// Makes the content namespace `jabber:client`, and its declarations inside the stanza implicit.
fn normalise(element: Element, content_ns: &str) -> Element {
    let root = element.root();
    let mut cuts = Vec::new();
    if content_ns != ns::CLIENT {
        cuts.extend(default_declaration(root));
    }
    let mut foreign_until = 0;
    for node in root.descendants() {
        if node.range().start < foreign_until {
            continue;
        }
        let unprefixed = node.prefix().is_empty();
        match default_declaration(node) {
            // Under another default namespace, `xmlns='jabber:client'` is needed, as inside a forwarded message.
            Some(_) if !unprefixed || ![content_ns, ns::CLIENT].contains(&node.ns()) => {
                foreign_until = node.range().end;
            }
            Some(declaration) => cuts.push(declaration),
            None => {}
        }
    }
    if cuts.is_empty() {
        return element.with_default_ns(ns::CLIENT);
    }
    let name_end = root.range().start + 1 + root.name().len();
    let mut bytes = element.bytes()[..name_end].to_vec();
    for (prefix, uri) in element.inherited() {
        bytes.extend_from_slice(format!(" xmlns:{prefix}='{}'", escape_attr(uri)).as_bytes());
    }
    bytes.extend_from_slice(&without(element.bytes(), name_end..element.bytes().len(), &cuts));
    // Taking away a declaration that is in force anyway leaves what is well-formed well-formed.
    Element::parse(bytes, ns::CLIENT).unwrap_or_else(|_| element.with_default_ns(ns::CLIENT))
}

/// Where a default namespace is declared, with the white space that must stand before it.
fn default_declaration(node: Node<'_>) -> Option<Range<usize>> {
    let range = node.ns_decls().find(|declaration| declaration.prefix().is_none())?.range();
    Some(range.start - 1..range.end)
}

/// What of the root tag is not in the other fields of [`Head`].
fn extra(element: &Element) -> Option<Bytes> {
    let root = element.root();
    let mut out = Vec::new();
    let mut add = |raw: &[u8]| {
        if !out.is_empty() {
            out.push(b' ');
        }
        out.extend_from_slice(raw);
    };
    for attr in root.attrs() {
        let known = match attr.prefix() {
            "" => matches!(attr.name(), "to" | "from" | "id" | "type"),
            prefix => prefix == "xml" && attr.name() == "lang",
        };
        if !known {
            add(attr.raw());
        }
    }
    for declaration in root.ns_decls().filter(|declaration| declaration.prefix().is_some()) {
        add(declaration.raw());
    }
    for (prefix, uri) in element.inherited() {
        add(format!("xmlns:{prefix}='{}'", escape_attr(uri)).as_bytes());
    }
    (!out.is_empty()).then(|| out.into())
}

/// RFC 6120 s.8.2.3: an IQ has an id, and a request has exactly one child. (Of a result with several children nothing
/// is known to be wrong with the first, and it can't be answered: it passes.)
fn refuse_iq(kind: Kind, head: &Head, root: Node<'_>) -> Option<Refusal> {
    if !matches!(kind, Kind::Iq(_)) {
        return None;
    }
    if head.id.is_none() {
        return Some(Refusal::IqId);
    }
    let one = root.children().take(2).count() == 1;
    (kind.is_request() && !one).then_some(Refusal::IqPayload)
}

/// Builds a stanza: `Stanza::build(kind).to(jid).id("1").done()`.
#[derive(Clone, Debug)]
pub struct StanzaBuilder {
    head: Head,
    payload: Bytes,
}

impl StanzaBuilder {
    /// Whom it is for.
    pub fn to(mut self, to: impl Into<Option<Jid>>) -> StanzaBuilder {
        self.head.to = to.into();
        self
    }

    /// Who sends it.
    pub fn from(mut self, from: impl Into<Option<Jid>>) -> StanzaBuilder {
        self.head.from = from.into();
        self
    }

    /// Its id.
    pub fn id(mut self, id: impl Into<Arc<str>>) -> StanzaBuilder {
        self.head.id = Some(id.into());
        self
    }

    /// The language of its text.
    pub fn lang(mut self, lang: impl Into<Arc<str>>) -> StanzaBuilder {
        self.head.lang = Some(lang.into());
        self
    }

    /// Another type than [`Stanza::build`] or [`Stanza::reply`] gave it.
    pub fn kind(mut self, kind: Kind) -> StanzaBuilder {
        self.head.kind = kind;
        self
    }

    /// Writes the payload, behind what is there already.
    pub fn body(mut self, write: impl FnOnce(&mut Writer)) -> StanzaBuilder {
        let mut w = Writer::with_buf(self.payload.into());
        write(&mut w);
        self.payload = w.into_bytes();
        self
    }

    /// The payload, instead of what is there already. It must be well-formed and declare the prefixes it uses.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> StanzaBuilder {
        self.payload = payload.into();
        self
    }

    /// The stanza. If the payload is not well-formed, which is a fault of the caller's, it has none.
    pub fn done(self) -> Stanza {
        build(self.head, &self.payload)
    }
}

/// Why an element is not taken as a stanza. The peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not message, presence or IQ.
    #[error("neither message nor presence nor iq")]
    UnknownStanza,
    /// Not in the content namespace of the stream.
    #[error("not in the content namespace of the stream")]
    Namespace,
    /// RFC 6120 s.4.8.5: the content namespace has no prefix.
    #[error("a prefix for the content namespace")]
    Prefix,
    /// The attribute `to` is not an address.
    #[error("to: {0}")]
    To(JidError),
    /// The attribute `from` is not an address.
    #[error("from: {0}")]
    From(JidError),
    /// A presence type that RFC 6121 does not know.
    #[error("an unknown type of presence")]
    PresenceType,
    /// An IQ without type or with an unknown one.
    #[error("an unknown type of iq")]
    IqType,
    /// An IQ without id.
    #[error("an iq without id")]
    IqId,
    /// A request without or with more than one child.
    #[error("an iq request without exactly one child")]
    IqPayload,
    /// XML that many recipients could not read, and that would cost them their streams.
    #[error("names that many XML parsers can't read")]
    NotPortable,
}

impl Refusal {
    /// A short stable name, for counters.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::UnknownStanza => "stanza-unknown",
            Refusal::Namespace => "stanza-namespace",
            Refusal::Prefix => "stanza-prefix",
            Refusal::To(_) => "stanza-bad-to",
            Refusal::From(_) => "stanza-bad-from",
            Refusal::PresenceType => "stanza-presence-type",
            Refusal::IqType => "stanza-iq-type",
            Refusal::IqId => "stanza-iq-id",
            Refusal::IqPayload => "stanza-iq-payload",
            Refusal::NotPortable => "stanza-not-portable",
        }
    }
}

/// A refused stanza: why, and what the sender is to be told.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{why}")]
pub struct StanzaRefusal {
    /// The reason, for log and counter.
    pub why: Refusal,
    /// As much of its head as could be read.
    reply: Option<Box<Head>>,
}

impl StanzaRefusal {
    /// The stream error, where the stream can't go on (RFC 6120 s.4.9.3).
    pub fn stream_condition(&self) -> Option<StreamCondition> {
        match self.why {
            Refusal::UnknownStanza => Some(StreamCondition::UnsupportedStanzaType),
            Refusal::Namespace => Some(StreamCondition::InvalidNamespace),
            Refusal::Prefix => Some(StreamCondition::BadNamespacePrefix),
            // RFC 6120 s.8.1.2.1: nobody could be told but the peer that forwards such stanzas.
            Refusal::From(_) => Some(StreamCondition::InvalidFrom),
            _ => None,
        }
    }

    /// The error stanza, where the stream goes on. It has no `from` when the address asked for was no address: the
    /// answer is then the server's own.
    pub fn error_reply(&self) -> Option<Stanza> {
        let condition = match self.why {
            Refusal::To(_) => Condition::JidMalformed,
            Refusal::PresenceType | Refusal::IqType | Refusal::IqId | Refusal::IqPayload => {
                Condition::BadRequest
            }
            Refusal::NotPortable => Condition::NotAcceptable,
            Refusal::UnknownStanza | Refusal::Namespace | Refusal::Prefix | Refusal::From(_) => return None,
        };
        let head = self.reply.as_deref()?;
        build(head.clone(), b"").error(&StanzaError::new(condition))
    }
}

/// Why bytes are not a stanza: our own storage's or a test's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StanzaParseError {
    /// Not one well-formed element.
    #[error(transparent)]
    Xml(#[from] ScanError),
    /// An element, but no stanza.
    #[error(transparent)]
    Refused(#[from] Refusal),
}
