//! What is in a stanza, as far as rules tell it apart; and taking out of it what a rule does not let through.
//!
//! The server looks at what it can read. Encrypted payload (OMEMO, OpenPGP) is neither searched nor touched: what is in
//! it is between the two people, and links and media inside arrive. What stands beside it in the clear is treated as in
//! any other message.

use trunkline_xml::{Node, Writer};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{IqType, Kind, PresenceType, Stanza};

use super::rule::{Content, Kinds, StanzaKind};
use super::text;

/// The namespace of [`mark`]'s element.
pub const MARK: &str = "urn:trunkline:mark:0";
/// The link that stands in the clear beside most OMEMO messages, for clients that can't read them.
const NOTE: &str = "https://conversations.im/omemo";
/// Names of elements whose text clients show, in whatever namespace.
const SHOWN: &[&str] = &[
    "body",
    "subject",
    "status",
    "nick",
    "reason",
    "text",
    "reaction",
    "thread",
    "title",
    "desc",
    "summary",
    "url",
    "uri",
    "name",
    "label",
    "instructions",
    "value",
];
/// XEP-0372 References.
const REFERENCE: &str = "urn:xmpp:reference:0";
/// XEP-0385 Stateless Inline Media Sharing.
const SIMS: &str = "urn:xmpp:sims:1";
/// XEP-0231 Bits of Binary.
const BOB: &str = "urn:xmpp:bob";
/// XEP-0066, between two clients.
const OOB_IQ: &str = "jabber:iq:oob";
/// XEP-0234 Jingle File Transfer, by its versions' common beginning.
const JINGLE_FILES: &str = "urn:xmpp:jingle:apps:file-transfer:";
/// XEP-0095 Stream Initiation.
const STREAM_INITIATION: &str = "http://jabber.org/protocol/si";

/// XEP-0448 Encryption for Stateless File Sharing.
const ENCRYPTED_FILES: &str = "urn:xmpp:esfs:0";
/// XEP-0449 Stickers.
const STICKERS: &str = "urn:xmpp:stickers:0";
/// XEP-0264 Jingle Content Thumbnails.
const THUMBNAILS: &str = "urn:xmpp:thumbs:1";
/// XEP-0221 Data Forms Media Element.
const MEDIA_ELEMENT: &str = "urn:xmpp:media-element";

/// What kinds of stanza it is. Another child makes it something more, and never something less: nobody gets around a
/// rule about messages by calling or inviting with the same message.
pub fn kinds(stanza: &Stanza) -> Kinds {
    let only = |kind| Kinds::default().and(kind);
    match stanza.head.kind {
        Kind::Presence(PresenceType::Subscribe) => only(StanzaKind::Subscribe),
        Kind::Presence(_) => only(StanzaKind::Presence),
        // It has one child (RFC 6120 s.8.2.3): what has more is refused before anybody asks here.
        Kind::Iq(IqType::Set) if stanza.children().any(is_call) => only(StanzaKind::Call),
        Kind::Iq(_) => only(StanzaKind::Iq),
        Kind::Message(_) if stanza.head.kind.is_error() => only(StanzaKind::Message),
        Kind::Message(_) => {
            let kinds = stanza.children().filter_map(kind_of_child).fold(Kinds::default(), Kinds::and);
            if kinds.is_empty() { only(StanzaKind::Message) } else { kinds }
        }
    }
}

/// What a child makes of a message; `None`: it goes with anything and says nothing by itself.
fn kind_of_child(child: Node<'_>) -> Option<StanzaKind> {
    let invites = || child.children().any(|child| child.is(ns::MUC_USER, "invite"));
    match (child.ns(), child.name()) {
        (ns::JINGLE_MESSAGE, _) => Some(StanzaKind::Call),
        (ns::CONFERENCE, "x") => Some(StanzaKind::Invitation),
        (ns::MUC_USER, "x") if invites() => Some(StanzaKind::Invitation),
        (ns::HINTS | ns::STANZA_ID | ns::DELAY, _) | (ns::RECEIPTS, "request") => None,
        _ => Some(StanzaKind::Message),
    }
}

/// XEP-0166: somebody calls without announcing it by a message first.
fn is_call(child: Node<'_>) -> bool {
    child.is(ns::JINGLE, "jingle") && child.attr("action").as_deref() == Some("session-initiate")
}

/// Whether `content` is in the stanza.
pub fn has(stanza: &Stanza, content: Content) -> bool {
    match content {
        Content::Link => has_link(stanza),
        Content::Media => stanza.children().any(|child| !is_encrypted(child) && is_media(child)),
    }
}

/// A link that a person would see: in any text that clients show (of a correction too, XEP-0308 carries the whole new
/// one), or attached (XEP-0066, XEP-0372).
fn has_link(stanza: &Stanza) -> bool {
    if !matches!(stanza.head.kind, Kind::Message(_) | Kind::Presence(_)) {
        return stanza.child(OOB_IQ, "query").is_some();
    }
    let encrypted = stanza.children().any(is_encrypted);
    let written = |node: Node<'_>| {
        let text = node.text();
        text::links(&text).any(|link| !encrypted || text[link] != *NOTE)
    };
    let attached = |node: Node<'_>| match (node.ns(), node.name()) {
        (ns::OOB, "x") | ("http://www.w3.org/1999/xhtml", "a") => true,
        // A mention is no link (XEP-0372 s.3.2).
        (REFERENCE, "reference") => node.attr("uri").is_some_and(|uri| !uri.starts_with("xmpp:")),
        _ => false,
    };
    let shown = |node: Node<'_>| node.ns() == "http://www.w3.org/1999/xhtml" || SHOWN.contains(&node.name());
    stanza.children().filter(|child| !is_encrypted(*child)).any(|child| {
        std::iter::once(child)
            .chain(child.descendants())
            .any(|node| attached(node) || shown(node) && written(node))
    })
}

/// The element is a file or picture, or says where one is.
fn is_media(child: Node<'_>) -> bool {
    let own = |node: Node<'_>| {
        matches!(node.ns(), ns::OOB | OOB_IQ | SIMS | ns::FILE_SHARING | BOB | STREAM_INITIATION)
            || matches!(node.ns(), ENCRYPTED_FILES | STICKERS | THUMBNAILS | MEDIA_ELEMENT | ns::AVATAR_DATA)
            || node.ns().starts_with(JINGLE_FILES)
            || matches!((node.ns(), node.name()), (ns::IBB, "open" | "data"))
            || (node.name() == "img" && node.ns() == "http://www.w3.org/1999/xhtml")
    };
    own(child) || child.descendants().any(own)
}

/// The element is somebody's secret from us.
pub(super) fn is_encrypted(child: Node<'_>) -> bool {
    matches!(
        (child.ns(), child.name()),
        (ns::OMEMO | ns::OMEMO_LEGACY, "encrypted") | (ns::OPENPGP, "openpgp") | (ns::OPENPGP_LEGACY, "x")
    )
}

/// Puts a mark on a stanza: `<mark xmlns='urn:trunkline:mark:0' by='our.domain'>text</mark>`. Only messages are marked.
pub fn mark(stanza: &Stanza, by: &str, text: &str) -> Stanza {
    if !matches!(stanza.head.kind, Kind::Message(_)) {
        return stanza.clone();
    }
    let mut w = Writer::new();
    w.open("mark").attr("xmlns", MARK).attr("by", by).text(text).close();
    stanza.with_appended(&w.finish())
}

/// The same stanza without marks: those of others say nothing here.
pub fn unmarked(stanza: Stanza) -> Stanza {
    if stanza.children().any(|child| child.ns() == MARK) {
        stanza.without_children(|child| child.ns() == MARK)
    } else {
        stanza
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::text::text_only;
    use super::*;

    pub(in crate::control) fn stanza(xml: &str) -> Stanza {
        Stanza::parse(xml.as_bytes()).unwrap()
    }

    pub(in crate::control) fn shown(stanza: &Stanza) -> String {
        let mut out = Vec::new();
        stanza.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn kinds_are_told_apart() {
        use StanzaKind::{Call, Invitation, Iq, Message, Presence, Subscribe};
        let propose = "<propose xmlns='urn:xmpp:jingle-message:0' id='1'/>";
        let invite =
            "<x xmlns='http://jabber.org/protocol/muc#user'><status code='1'/><invite to='a@b'/></x>";
        let jingle = |action| format!("<jingle xmlns='urn:xmpp:jingle:1' action='{action}'/>");
        let (initiate, info) = (jingle("session-initiate"), jingle("session-info"));
        for (xml, expected) in [
            ("<message><body>x</body></message>".to_owned(), &[Message][..]),
            ("<message type='groupchat'/>".to_owned(), &[Message]),
            ("<presence type='subscribe'/>".to_owned(), &[Subscribe]),
            ("<presence/>".to_owned(), &[Presence]),
            ("<presence type='subscribed'/>".to_owned(), &[Presence]),
            ("<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>".to_owned(), &[Iq]),
            (format!("<iq type='set' id='1'>{initiate}</iq>"), &[Call]),
            (format!("<iq type='set' id='1'>{info}</iq>"), &[Iq]),
            (format!("<message>{propose}<store xmlns='urn:xmpp:hints'/></message>"), &[Call]),
            ("<message><x xmlns='jabber:x:conference' jid='a@b'/></message>".to_owned(), &[Invitation]),
            (format!("<message>{invite}</message>"), &[Invitation]),
            ("<message><x xmlns='http://jabber.org/protocol/muc#user'/></message>".to_owned(), &[Message]),
            // Nobody gets around a rule by being something else as well.
            (format!("<message>{propose}<body>spam</body></message>"), &[Message, Call]),
            (
                format!("<message>{invite}<html xmlns='http://jabber.org/protocol/xhtml-im'/></message>"),
                &[Message, Invitation],
            ),
            (format!("<message><body>x</body>{invite}{propose}</message>"), &[Message, Invitation, Call]),
            (format!("<message type='error'>{propose}</message>"), &[Message]),
        ] {
            let found = kinds(&stanza(&xml));
            for kind in [Message, Subscribe, Presence, Iq, Call, Invitation] {
                assert_eq!(found.include_any(&[kind]), expected.contains(&kind), "{kind:?} in {xml}");
            }
        }
    }

    #[test]
    fn links_are_seen_wherever_clients_show_them() {
        for payload in [
            "<status>evil.com</status>",
            "<nick xmlns='http://jabber.org/protocol/nick'>evil.com</nick>",
            "<reactions xmlns='urn:xmpp:reactions:0' id='1'><reaction>evil.com</reaction></reactions>",
            "<x xmlns='http://jabber.org/protocol/muc#user'><invite><reason>evil.com</reason></invite></x>",
            "<error><text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>evil.com</text></error>",
            "<reference xmlns='urn:xmpp:reference:0' type='data' uri='https://evil.com'/>",
            "<html xmlns='http://jabber.org/protocol/xhtml-im'><body xmlns='http://www.w3.org/1999/xhtml'><p>evil.com</p></body></html>",
            "<body>one</body><body xml:lang='de'>evil.com</body>",
        ] {
            assert!(has(&stanza(&format!("<message>{payload}</message>")), Content::Link), "{payload}");
        }
        for payload in [
            "<body>two words</body>",
            "<reference xmlns='urn:xmpp:reference:0' type='mention' uri='xmpp:juliet@evil.com'/>",
            "<encrypted xmlns='urn:xmpp:omemo:2'><payload>evil.com</payload></encrypted>",
        ] {
            assert!(!has(&stanza(&format!("<message>{payload}</message>")), Content::Link), "{payload}");
        }
    }

    #[test]
    fn media_are_found_in_all_their_wrappings() {
        for payload in [
            "<x xmlns='jabber:x:oob'><url>https://e.example/a.jpg</url></x>",
            "<reference xmlns='urn:xmpp:reference:0' type='data'><media-sharing xmlns='urn:xmpp:sims:1'/></reference>",
            "<file-sharing xmlns='urn:xmpp:sfs:0'/>",
            "<sources xmlns='urn:xmpp:sfs:0' id='1'/>",
            "<data xmlns='urn:xmpp:bob' cid='x'>aGk=</data>",
            "<html xmlns='http://jabber.org/protocol/xhtml-im'><body xmlns='http://www.w3.org/1999/xhtml'><img src='x'/></body></html>",
        ] {
            let message = stanza(&format!("<message><body>look</body>{payload}</message>"));
            assert!(has(&message, Content::Media), "{payload}");
            let text = text_only(&message).unwrap();
            assert!(!has(&text, Content::Media), "{payload}");
            assert_eq!(text.body().as_deref(), Some("look"));
        }
        let message = stanza(
            "<message><body>plain</body><active xmlns='http://jabber.org/protocol/chatstates'/></message>",
        );
        assert!(!has(&message, Content::Media) && !has(&message, Content::Link));
        assert_eq!(text_only(&message).unwrap(), message, "text passes untouched");
        let transfer = stanza(
            "<iq type='set' id='1'><jingle xmlns='urn:xmpp:jingle:1' action='session-initiate'><content>\
             <description xmlns='urn:xmpp:jingle:apps:file-transfer:5'/></content></jingle></iq>",
        );
        assert!(has(&transfer, Content::Media));
        assert!(text_only(&transfer).is_err());
    }

    #[test]
    fn marks_of_others_are_taken_off() {
        let marked = mark(&stanza("<message><body>x</body></message>"), "south.example", "from a new domain");
        assert!(
            shown(&marked)
                .contains("<mark xmlns='urn:trunkline:mark:0' by='south.example'>from a new domain</mark>")
        );
        assert_eq!(unmarked(marked), stanza("<message><body>x</body></message>"));
        assert_eq!(mark(&stanza("<presence/>"), "a", "b"), stanza("<presence/>"));
    }
}
