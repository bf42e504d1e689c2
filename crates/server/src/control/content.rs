//! What is in a stanza, as far as rules tell it apart; and taking out of it what a rule does not let through.
//!
//! The server looks at what it can read. Encrypted payload (OMEMO, OpenPGP) is neither searched nor touched: what is in
//! it is between the two people, and links and media inside arrive. What stands beside it in the clear is treated as in
//! any other message.

use trunkline_xml::{Node, Writer};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{IqType, Kind, PresenceType, Stanza};

use super::rule::{Content, StanzaKind};

/// The namespace of [`mark`]'s element.
pub const MARK: &str = "urn:trunkline:mark:0";
/// What stands in a text where a link was.
const REMOVED: &str = "[link removed]";
/// The link that stands in the clear beside most OMEMO messages, for clients that can't read them.
const NOTE: &str = "https://conversations.im/omemo";
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

/// What kind of stanza it is.
pub fn kind(stanza: &Stanza) -> StanzaKind {
    match stanza.head.kind {
        Kind::Presence(PresenceType::Subscribe) => StanzaKind::Subscribe,
        Kind::Presence(_) => StanzaKind::Presence,
        Kind::Iq(IqType::Set) if is_call(stanza) => StanzaKind::Call,
        Kind::Iq(_) => StanzaKind::Iq,
        Kind::Message(_) if stanza.head.kind.is_error() => StanzaKind::Message,
        Kind::Message(_) => {
            for child in stanza.children() {
                match (child.ns(), child.name()) {
                    (ns::JINGLE_MESSAGE, _) => return StanzaKind::Call,
                    (ns::CONFERENCE, "x") => return StanzaKind::Invitation,
                    (ns::MUC_USER, "x") if child.child(ns::MUC_USER, "invite").is_some() => {
                        return StanzaKind::Invitation;
                    }
                    _ => {}
                }
            }
            StanzaKind::Message
        }
    }
}

/// XEP-0166: somebody calls without announcing it by a message first.
fn is_call(stanza: &Stanza) -> bool {
    stanza
        .child(ns::JINGLE, "jingle")
        .is_some_and(|jingle| jingle.attr("action").as_deref() == Some("session-initiate"))
}

/// Whether `content` is in the stanza.
pub fn has(stanza: &Stanza, content: Content) -> bool {
    match content {
        Content::Link => has_link(stanza),
        Content::Media => stanza.children().any(|child| !is_encrypted(child) && is_media(child)),
    }
}

/// A link that a person would see: in body or subject (of a correction too, XEP-0308 carries the whole new text), in
/// XHTML-IM, or attached (XEP-0066).
fn has_link(stanza: &Stanza) -> bool {
    if !matches!(stanza.head.kind, Kind::Message(_) | Kind::Presence(_)) {
        return stanza.child(OOB_IQ, "query").is_some();
    }
    let encrypted = stanza.children().any(is_encrypted);
    stanza.children().any(|child| match (child.ns(), child.name()) {
        (ns::CLIENT, "body" | "subject" | "status") => {
            let text = child.text();
            links(&text).any(|link| !encrypted || text[link] != *NOTE)
        }
        (ns::OOB, "x") => true,
        (ns::XHTML_IM, "html") => {
            child.descendants().any(|node| node.name() == "a" || links(&node.text()).next().is_some())
        }
        _ => false,
    })
}

/// The element is a file or picture, or says where one is.
fn is_media(child: Node<'_>) -> bool {
    let own = |node: Node<'_>| {
        matches!(node.ns(), ns::OOB | OOB_IQ | SIMS | ns::FILE_SHARING | BOB | STREAM_INITIATION)
            || node.ns().starts_with(JINGLE_FILES)
            || matches!((node.ns(), node.name()), (ns::IBB, "open" | "data"))
            || (node.name() == "img" && node.ns() == "http://www.w3.org/1999/xhtml")
    };
    own(child) || child.descendants().any(own)
}

/// The element is somebody's secret from us.
fn is_encrypted(child: Node<'_>) -> bool {
    matches!(
        (child.ns(), child.name()),
        (ns::OMEMO | ns::OMEMO_LEGACY, "encrypted") | (ns::OPENPGP, "openpgp") | (ns::OPENPGP_LEGACY, "x")
    )
}

/// Only the text of a stanza.
///
/// Of a message stay: body and subject with `[link removed]` for each link, what belongs to a conversation in text
/// (`KEPT`), and encrypted payload. A message of which nothing stays, calls and file transfers are refused. Presence and
/// other requests pass as they are.
///
/// # Errors
/// The whole stanza is what is not let through.
pub fn text_only(stanza: &Stanza) -> Result<Stanza, StanzaError> {
    let refused = || StanzaError::new(Condition::PolicyViolation).text("Only text is let through just now.");
    match stanza.head.kind {
        Kind::Message(_) if stanza.head.kind.is_error() || stanza.is_empty() => Ok(stanza.clone()),
        Kind::Message(_) => {
            let mut texts = Writer::new();
            let mut any = false;
            let kept = stanza.without_children(|child| {
                let stays = is_kept(child);
                if stays
                    && child.ns() == ns::CLIENT
                    && matches!(child.name(), "body" | "subject")
                    && links(&child.text()).next().is_some()
                {
                    texts.open(child.name());
                    texts.attr_opt("xml:lang", child.attr_ns(trunkline_xml::XML_NS, "lang"));
                    texts.text(&without_links(&child.text())).close();
                    any = true;
                    return true;
                }
                any |= stays;
                !stays
            });
            match any {
                true => Ok(kept.with_appended(&texts.finish())),
                false => Err(refused()),
            }
        }
        Kind::Presence(_) => Ok(stanza.clone()),
        Kind::Iq(_) if stanza.head.kind.is_response() => Ok(stanza.clone()),
        Kind::Iq(_) => {
            let carries = |child: Node<'_>| {
                is_media(child)
                    || matches!(child.ns(), ns::JINGLE | ns::IBB | ns::BYTESTREAMS | STREAM_INITIATION)
            };
            if stanza.children().any(carries) { Err(refused()) } else { Ok(stanza.clone()) }
        }
    }
}

/// What of a message is text, or belongs to writing it.
fn is_kept(child: Node<'_>) -> bool {
    const KEPT: &[&str] = &[
        ns::CHAT_STATES,
        ns::RECEIPTS,
        ns::MARKERS,
        ns::DELAY,
        ns::STANZA_ID,
        ns::CORRECT,
        ns::RETRACT,
        ns::REPLY,
        ns::REACTIONS,
        ns::FALLBACK,
        ns::HINTS,
        ns::EME,
        ns::NICK,
        ns::OCCUPANT_ID,
        ns::MUC_USER,
        ns::MODERATE,
        ns::ADDRESS,
        MARK,
    ];
    match (child.ns(), child.name()) {
        (ns::CLIENT, "body" | "subject" | "thread" | "error") => true,
        _ if is_encrypted(child) => true,
        (own, _) => KEPT.contains(&own) && !is_media(child),
    }
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

/// The links in a text, as places in it. A link is `scheme://...`, `www....`, or one of the schemes that clients make
/// clickable without slashes. Invisible characters hide nothing.
fn links(text: &str) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    words(text).filter(|range| is_link(&text[range.clone()]))
}

fn words(text: &str) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let separates =
        |c: char| c.is_whitespace() || matches!(c, '<' | '>' | '"' | '(' | ')' | '[' | ']' | '{' | '}');
    text.split(separates).map(move |word| {
        let start = word.as_ptr() as usize - text.as_ptr() as usize;
        start..start + word.len()
    })
}

fn is_link(word: &str) -> bool {
    const WITHOUT_SLASHES: &[&str] = &[
        "xmpp:",
        "mailto:",
        "tel:",
        "sms:",
        "sip:",
        "sips:",
        "magnet:",
        "geo:",
        "bitcoin:",
        "data:",
        "javascript:",
    ];
    let invisible = |c: &char| matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}');
    let plain: String = word.chars().filter(|c| !invisible(c)).collect::<String>().to_lowercase();
    if let Some((scheme, rest)) = plain.split_once("://") {
        let scheme = scheme.rsplit(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c)).next();
        if scheme.is_some_and(|scheme| scheme.starts_with(|c: char| c.is_ascii_alphabetic()))
            && !rest.is_empty()
        {
            return true;
        }
    }
    let begins = |prefix: &str| {
        plain.match_indices(prefix).any(|(at, _)| {
            let before = plain[..at].chars().next_back();
            let after = plain[at + prefix.len()..].chars().next();
            before.is_none_or(|c| !c.is_alphanumeric()) && after.is_some_and(|c| !c.is_whitespace())
        })
    };
    begins("www.") || WITHOUT_SLASHES.iter().any(|scheme| begins(scheme)) || is_host_with_path(&plain)
}

/// `example.org/path`: what clients link although it names no scheme.
fn is_host_with_path(word: &str) -> bool {
    let Some((host, path)) = word.split_once('/') else { return false };
    let host = host.split(':').next().unwrap_or(host);
    let label = |label: &str| {
        !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || c == '-') && !label.starts_with('-')
    };
    let Some((_, top)) = host.rsplit_once('.') else { return false };
    !path.is_empty()
        && top.chars().count() >= 2
        && top.chars().all(char::is_alphabetic)
        && host.split('.').all(label)
}

fn without_links(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for link in links(text) {
        out.push_str(&text[from..link.start]);
        out.push_str(REMOVED);
        from = link.end;
    }
    out.push_str(&text[from..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stanza(xml: &str) -> Stanza {
        Stanza::parse(xml.as_bytes()).unwrap()
    }

    fn shown(stanza: &Stanza) -> String {
        let mut out = Vec::new();
        stanza.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn kinds_are_told_apart() {
        for (xml, expected) in [
            ("<message><body>x</body></message>", StanzaKind::Message),
            ("<message type='groupchat'/>", StanzaKind::Message),
            ("<presence type='subscribe'/>", StanzaKind::Subscribe),
            ("<presence/>", StanzaKind::Presence),
            ("<presence type='subscribed'/>", StanzaKind::Presence),
            ("<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>", StanzaKind::Iq),
            (
                "<iq type='set' id='1'><jingle xmlns='urn:xmpp:jingle:1' action='session-initiate'/></iq>",
                StanzaKind::Call,
            ),
            (
                "<iq type='set' id='1'><jingle xmlns='urn:xmpp:jingle:1' action='session-info'/></iq>",
                StanzaKind::Iq,
            ),
            ("<message><propose xmlns='urn:xmpp:jingle-message:0' id='1'/></message>", StanzaKind::Call),
            ("<message><x xmlns='jabber:x:conference' jid='a@b'/></message>", StanzaKind::Invitation),
            (
                "<message><x xmlns='http://jabber.org/protocol/muc#user'><invite to='a@b'/></x></message>",
                StanzaKind::Invitation,
            ),
            ("<message><x xmlns='http://jabber.org/protocol/muc#user'/></message>", StanzaKind::Message),
        ] {
            assert_eq!(kind(&stanza(xml)), expected, "{xml}");
        }
    }

    #[test]
    fn links_are_found_however_they_are_written() {
        for text in [
            "see https://evil.example/x now",
            "HTTP://EVIL.EXAMPLE",
            "aesgcm://host/abc#def",
            "(www.evil.example)",
            "write to mailto:a@b.example",
            "xmpp:room@conf.example?join",
            "ht\u{200b}tps://evil.example",
            "evil.example/offer",
            "evil.example:8080/offer",
            "magnet:?xt=urn:btih:1",
            "click:https://evil.example",
        ] {
            assert!(links(text).next().is_some(), "{text}");
        }
        for text in [
            "no link here",
            "and/or",
            "www",
            "example.org is a domain",
            "file.txt",
            "1/2 of 3.5/4",
            "note: this",
            "hotel:room",
            "://",
            "key=value",
        ] {
            assert!(links(text).next().is_none(), "{text}");
        }
        assert_eq!(
            without_links("a https://x.y/z, b (www.q.example)"),
            "a [link removed] b ([link removed])"
        );
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
    fn links_go_out_of_texts_and_corrections() {
        let correction = stanza(
            "<message><body xml:lang='de'>hier: https://evil.example/x</body><body>plain</body>\
             <replace xmlns='urn:xmpp:message-correct:0' id='1'/><a xmlns='urn:example:unknown'/></message>",
        );
        assert!(has(&correction, Content::Link));
        let text = text_only(&correction).unwrap();
        assert!(!has(&text, Content::Link));
        let shown = shown(&text);
        assert!(shown.contains("<body xml:lang='de'>hier: [link removed]</body>"), "{shown}");
        assert!(shown.contains("<body>plain</body>") && shown.contains("message-correct"), "{shown}");
        assert!(!shown.contains("urn:example:unknown"), "what is not known to be text is not: {shown}");
    }

    #[test]
    fn encrypted_payload_is_neither_read_nor_touched() {
        let secret = stanza(
            "<message><encrypted xmlns='eu.siacs.conversations.axolotl'><payload>x</payload></encrypted>\
             <body>I sent you an OMEMO message: https://conversations.im/omemo</body>\
             <encryption xmlns='urn:xmpp:eme:0' namespace='eu.siacs.conversations.axolotl'/></message>",
        );
        assert!(!has(&secret, Content::Link) && !has(&secret, Content::Media));
        let text = shown(&text_only(&secret).unwrap());
        assert!(text.contains("<payload>x</payload>") && text.contains("urn:xmpp:eme:0"), "{text}");
        // The payload is no cloak for what is written beside it.
        let cloak = stanza(
            "<message><encrypted xmlns='eu.siacs.conversations.axolotl'/><body>https://evil.example/</body></message>",
        );
        assert!(has(&cloak, Content::Link));
        assert!(!has(&text_only(&cloak).unwrap(), Content::Link));
    }

    #[test]
    fn what_is_no_text_at_all_is_refused() {
        for xml in [
            "<message><file-sharing xmlns='urn:xmpp:sfs:0'/></message>",
            "<message><propose xmlns='urn:xmpp:jingle-message:0' id='1'/></message>",
            "<iq type='set' id='1'><open xmlns='http://jabber.org/protocol/ibb' sid='1' block-size='4'/></iq>",
        ] {
            assert_eq!(text_only(&stanza(xml)).unwrap_err().condition, Condition::PolicyViolation, "{xml}");
        }
        for xml in ["<presence/>", "<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>", "<message/>"] {
            assert_eq!(text_only(&stanza(xml)).unwrap(), stanza(xml));
        }
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
