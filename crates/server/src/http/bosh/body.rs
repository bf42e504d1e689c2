//! The `<body/>` of XEP-0124: reading requests and writing answers.

use bytes::Bytes;
use trunkline_xml::{Element, ScanError, Writer};
use trunkline_xmpp::ns;

/// XEP-0206.
const XBOSH: &str = "urn:xmpp:xbosh";

/// Why a binding ends (XEP-0124 s.17.2). The label of its counter is its name with `bosh-` before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Condition {
    /// The request is no `<body/>`, or not one that means something.
    BadRequest,
    /// The domain is not ours.
    HostUnknown,
    /// To whom is not said.
    ImproperAddressing,
    /// No such session, or a request out of its window, or a wrong key.
    ItemNotFound,
    /// Too many or too frequent requests.
    PolicyViolation,
    /// The stream ended with an error, which is inside.
    RemoteStreamError,
    /// Another request of the same session, at the same time, ended it.
    OtherRequest,
    /// The server has no place.
    InternalServerError,
}

impl Condition {
    /// As on the wire.
    pub(in crate::http) fn name(self) -> &'static str {
        match self {
            Condition::BadRequest => "bad-request",
            Condition::HostUnknown => "host-unknown",
            Condition::ImproperAddressing => "improper-addressing",
            Condition::ItemNotFound => "item-not-found",
            Condition::PolicyViolation => "policy-violation",
            Condition::RemoteStreamError => "remote-stream-error",
            Condition::OtherRequest => "other-request",
            Condition::InternalServerError => "internal-server-error",
        }
    }

    /// For counters.
    pub(in crate::http) fn label(self) -> &'static str {
        match self {
            Condition::BadRequest => "bosh-bad-request",
            Condition::HostUnknown => "bosh-host-unknown",
            Condition::ImproperAddressing => "bosh-improper-addressing",
            Condition::ItemNotFound => "bosh-item-not-found",
            Condition::PolicyViolation => "bosh-policy-violation",
            Condition::RemoteStreamError => "bosh-remote-stream-error",
            Condition::OtherRequest => "bosh-other-request",
            Condition::InternalServerError => "bosh-internal-server-error",
        }
    }

    /// The answer that ends the binding.
    pub(in crate::http) fn body(self) -> Vec<u8> {
        let mut w = Writer::new();
        w.open("body").attr("xmlns", ns::BOSH).attr("type", "terminate").attr("condition", self.name());
        w.close();
        w.finish()
    }
}

/// A request.
#[derive(Debug, Default)]
pub(in crate::http) struct Body {
    pub(super) rid: u64,
    pub(super) sid: Option<String>,
    pub(super) to: Option<String>,
    pub(super) from: Option<String>,
    pub(super) lang: Option<String>,
    pub(super) version: Option<String>,
    /// Of BOSH.
    pub(super) ver: Option<(u32, u32)>,
    pub(super) wait: Option<u64>,
    pub(super) hold: Option<u64>,
    pub(super) ack: Option<u64>,
    pub(super) pause: Option<u64>,
    pub(super) key: Option<String>,
    pub(super) new_key: Option<String>,
    pub(super) terminate: bool,
    pub(super) restart: bool,
    /// Elements as they would stand on a stream, one behind the other.
    pub(super) payload: Bytes,
}

impl Body {
    /// s.11 and s.12: it says nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.payload.is_empty() && !self.is_last_word() && !self.restart
    }

    /// s.11: it ends or pauses the session, and may come in addition to those that may be under way.
    pub(super) fn is_last_word(&self) -> bool {
        self.terminate || self.pause.is_some()
    }
}

/// What declarations around the elements of a request may add to them, beside as much as it has bytes.
const MOST_ADDED: usize = 1024;

/// RFC 6120's streams count in 32 bits, XEP-0124 s.7 in 53.
const MOST_RID: u64 = (1 << 53) - 1;

/// Reads a request.
///
/// # Errors
/// What is wrong with it: not XML, or not the body that XEP-0124 asks for.
pub(super) fn read(bytes: Bytes) -> Result<Body, Wrong> {
    let mut text = bytes;
    // A declaration may be there: s.5 forbids no more than what XMPP does.
    if text.starts_with(b"<?xml ") {
        let end = text.windows(2).position(|two| two == b"?>").ok_or(Wrong::NoBody)?;
        text = text.slice(end + 2..);
    }
    let start = text.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let end = text.len() - text.iter().rev().take_while(|byte| byte.is_ascii_whitespace()).count();
    let element = Element::parse(text.slice(start..end.max(start)), "")?;
    let root = element.root();
    if !root.is(ns::BOSH, "body") {
        return Err(Wrong::NoBody);
    }
    let text = |name: &str| root.attr(name).map(|value| value.into_owned());
    let number = |name: &str| root.attr(name).map(|value| value.parse::<u64>().map_err(|_| Wrong::Number));
    let xbosh = |name: &str| root.attr_ns(XBOSH, name).map(|value| value.into_owned());
    let rid = number("rid").ok_or(Wrong::NoRid)??;
    if rid == 0 || rid > MOST_RID {
        return Err(Wrong::NoRid);
    }
    let stray =
        |range: std::ops::Range<usize>| element.bytes()[range].iter().any(|byte| !byte.is_ascii_whitespace());
    // What stands on the <body/> is declared again on each element that uses it: bounded, because a long name declared
    // once can be used by thousands.
    let mut room = 2 * element.bytes().len() + MOST_ADDED;
    let mut payload = Vec::new();
    let mut at = root.inner_range().start;
    for child in root.children() {
        if stray(at..child.range().start) {
            return Err(Wrong::NoBody);
        }
        at = child.range().end;
        // XEP-0206 s.2: who leaves the declaration of `jabber:client` out inherits the body's, and means what the stream
        // has.
        let child = child.to_standalone_within(ns::BOSH, &mut room).ok_or(Wrong::Declarations)?;
        payload.extend_from_slice(&child);
    }
    if stray(at..root.inner_range().end) {
        return Err(Wrong::NoBody);
    }
    Ok(Body {
        rid,
        sid: text("sid"),
        to: text("to"),
        from: text("from"),
        lang: root.attr_ns(ns::XML, "lang").map(|value| value.into_owned()),
        version: xbosh("version"),
        ver: text("ver").and_then(|ver| {
            let (major, minor) = ver.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        }),
        wait: number("wait").transpose()?,
        hold: number("hold").transpose()?,
        ack: number("ack").transpose()?,
        pause: number("pause").transpose()?,
        key: text("key"),
        new_key: text("newkey"),
        terminate: root.attr("type").is_some_and(|kind| kind == "terminate"),
        restart: xbosh("restart").is_some_and(|it| it == "true" || it == "1"),
        payload: payload.into(),
    })
}

/// Why a request is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum Wrong {
    #[error(transparent)]
    Xml(#[from] ScanError),
    #[error("the request is no <body/> with elements in it")]
    NoBody,
    #[error("a number is none")]
    Number,
    #[error("rid is missing or out of range")]
    NoRid,
    #[error("the elements lean on more declarations than a request has room for")]
    Declarations,
}

/// What a client is told when its session begins (XEP-0124 s.7, XEP-0206 s.3).
pub(super) struct Terms<'a> {
    pub(super) sid: &'a str,
    pub(super) from: &'a str,
    pub(super) stream: Option<&'a str>,
    pub(super) ver: (u32, u32),
    pub(super) wait: u64,
    pub(super) hold: u64,
    pub(super) requests: u64,
    pub(super) inactivity: u64,
    pub(super) polling: u64,
    pub(super) pause: u64,
    pub(super) ack: Option<u64>,
}

/// An answer.
#[derive(Default)]
pub(super) struct Answer<'a> {
    pub(super) terms: Option<Terms<'a>>,
    /// The highest request that came, where it is not the one that is answered.
    pub(super) ack: Option<u64>,
    /// The binding ends, with or without a reason.
    pub(super) end: Option<Option<Condition>>,
    /// Elements with all their declarations.
    pub(super) payload: &'a [Vec<u8>],
}

/// s.17.3: to whom a request has been waiting that came once more over another connection.
pub(super) fn superseded() -> Vec<u8> {
    let mut w = Writer::new();
    w.open("body").attr("xmlns", ns::BOSH).attr("type", "error").close();
    w.finish()
}

impl Answer<'_> {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.open("body").attr("xmlns", ns::BOSH);
        if let Some(terms) = &self.terms {
            w.attr("xmlns:xmpp", XBOSH)
                .attr("xmlns:stream", ns::STREAMS)
                .attr("sid", terms.sid)
                .attr("from", terms.from)
                .attr_opt("authid", terms.stream)
                .attr("ver", &format!("{}.{}", terms.ver.0, terms.ver.1))
                .attr("wait", &terms.wait.to_string())
                .attr("hold", &terms.hold.to_string())
                .attr("requests", &terms.requests.to_string())
                .attr("inactivity", &terms.inactivity.to_string())
                .attr("polling", &terms.polling.to_string())
                .attr("maxpause", &terms.pause.to_string())
                .attr_opt("ack", terms.ack.map(|ack| ack.to_string()))
                .attr("xmpp:version", "1.0")
                .attr("xmpp:restartlogic", "true");
        }
        w.attr_opt("ack", self.ack.map(|ack| ack.to_string()));
        if let Some(condition) = self.end {
            w.attr("type", "terminate").attr_opt("condition", condition.map(Condition::name));
        }
        for element in self.payload {
            w.raw(element);
        }
        w.close();
        w.finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Body, Wrong> {
        read(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn a_request_is_read() {
        let body = parse(
            "<?xml version='1.0'?>\n<body xmlns='http://jabber.org/protocol/httpbind' xmlns:xmpp='urn:xmpp:xbosh' \
             rid='1573741820' sid='s' to='a.example' xml:lang='de' wait='60' hold='1' xmpp:restart='true' \
             xmpp:version='1.0' key='k' newkey='n' ack='1'> <message><body>x</body></message>\
             <iq xmlns='jabber:client'><a xmlns='b'/></iq><auth xmlns='s'/> </body>\n",
        )
        .unwrap();
        assert_eq!((body.rid, body.wait, body.hold, body.ack), (1_573_741_820, Some(60), Some(1), Some(1)));
        assert_eq!(
            (body.sid.as_deref(), body.to.as_deref(), body.lang.as_deref()),
            (Some("s"), Some("a.example"), Some("de"))
        );
        assert!(body.restart && !body.terminate);
        assert_eq!(
            body.payload,
            "<message><body>x</body></message><iq xmlns='jabber:client'><a xmlns='b'/></iq><auth xmlns='s'/>"
        );
    }

    #[test]
    fn what_the_body_declares_holds_for_what_is_in_it() {
        let payload = |text: &str| parse(text).map(|body| String::from_utf8(body.payload.to_vec()).unwrap());
        // Without a declaration of its own it is a stanza of the stream, and a prefix still means the same.
        assert_eq!(
            payload(
                "<body xmlns='http://jabber.org/protocol/httpbind' xmlns:x='urn:x' rid='1'>\
                 <message x:a='1'><body>b</body><x:y/></message></body>"
            )
            .unwrap(),
            "<message xmlns:x='urn:x' x:a='1'><body>b</body><x:y/></message>"
        );
        assert_eq!(
            payload(
                "<b:body xmlns:b='http://jabber.org/protocol/httpbind' xmlns='jabber:client' rid='1'><iq/></b:body>"
            )
            .unwrap(),
            "<iq xmlns='jabber:client'/>"
        );
        assert_eq!(
            payload(
                "<body xmlns='http://jabber.org/protocol/httpbind' xmlns:s='urn:ietf:params:xml:ns:xmpp-sasl' \
                 rid='1'><s:auth/></body>"
            )
            .unwrap(),
            "<s:auth xmlns:s='urn:ietf:params:xml:ns:xmpp-sasl'/>"
        );
        // A long name, once declared and often used.
        let many = format!(
            "<body xmlns='http://jabber.org/protocol/httpbind' xmlns:p='{}' rid='1'>{}</body>",
            "x".repeat(2_000),
            "<p:a/>".repeat(100)
        );
        assert!(matches!(parse(&many), Err(Wrong::Declarations)));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let body = |attributes: &str, inside: &str| {
            parse(&format!("<body xmlns='http://jabber.org/protocol/httpbind' {attributes}>{inside}</body>"))
                .is_err()
        };
        assert!(!body("rid='1'", ""));
        assert!(body("", ""), "no rid");
        assert!(body("rid='-1'", "") && body("rid='x'", "") && body("rid='0'", ""));
        assert!(body("rid='9007199254740992'", ""), "2^53");
        assert!(body("rid='1' hold='x'", ""));
        assert!(body("rid='1'", "text") && body("rid='1'", "<a/>text") && body("rid='1'", "<a/>text<b/>"));
        for text in ["", "<body rid='1'/>", "<html/>", "<body", "\u{0}", "<?xml ", "<?xml version='1.0'?>"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn errors_are_written_as_the_specification_has_them() {
        assert_eq!(
            Condition::ItemNotFound.body(),
            b"<body xmlns='http://jabber.org/protocol/httpbind' type='terminate' condition='item-not-found'/>"
        );
        assert_eq!(
            Answer { end: Some(None), ..Answer::default() }.write(),
            b"<body xmlns='http://jabber.org/protocol/httpbind' type='terminate'/>"
        );
        assert_eq!(Answer::default().write(), b"<body xmlns='http://jabber.org/protocol/httpbind'/>");
    }

    proptest! {
        #[test]
        fn garbage_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), text in "[<>/a-c '=\"&;:?!]{0,40}") {
            let _ = read(bytes.into());
            let _ = parse(&format!("<body xmlns='http://jabber.org/protocol/httpbind' rid='1'>{text}</body>"));
            let _ = parse(&format!("<body xmlns='http://jabber.org/protocol/httpbind' rid='1' {text}/>"));
        }
    }
}
