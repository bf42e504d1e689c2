//! What a first contact says, as a text that nobody can click on.

use trunkline_xmpp::classify::classify;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, Stanza};

/// Characters of a request's text.
pub(super) const MOST: usize = 500;

/// The text of one first contact, harmless and bounded.
pub(super) fn of(stanza: &Stanza) -> String {
    if let Kind::Presence(_) = stanza.head.kind {
        let status = stanza.child(ns::CLIENT, "status");
        return status.map(|status| harmless(&status.text())).unwrap_or_default();
    }
    if let Some(body) = stanza.body().filter(|body| !body.trim().is_empty()) {
        return harmless(&body);
    }
    match classify(stanza).offline.reason {
        "call" => "Calls you.".into(),
        "invitation" => invitation(stanza),
        "encrypted" | "key-transport" => "Sends an encrypted message.".into(),
        "file" => "Sends a file.".into(),
        _ => "Sends a message.".into(),
    }
}

fn invitation(stanza: &Stanza) -> String {
    let direct = stanza.child(ns::CONFERENCE, "x");
    // XEP-0045 s.7.8.2: a mediated one comes from the room.
    let room = match direct.and_then(|x| x.attr("jid")) {
        Some(jid) => jid.into_owned(),
        None => stanza.head.from.as_ref().map(|from| from.bare_str().to_owned()).unwrap_or_default(),
    };
    let mediated = stanza.child(ns::MUC_USER, "x").and_then(|x| x.child(ns::MUC_USER, "invite"));
    let reason = direct
        .and_then(|x| x.attr("reason").map(|reason| reason.into_owned()))
        .or_else(|| Some(mediated?.child(ns::MUC_USER, "reason")?.text().into_owned()))
        .unwrap_or_default();
    harmless(&format!("Invites you to the room {room}. {reason}"))
}

/// One text behind another, within the bound. `None`: there is no room for more.
pub(super) fn append(before: &str, more: &str) -> Option<String> {
    let length = before.chars().count();
    if more.is_empty() || length + 1 >= MOST {
        return None;
    }
    if before.is_empty() {
        return Some(more.to_owned());
    }
    Some(shortened(&format!("{before}\n{more}")))
}

/// Takes from a text what clients make links of: colons, dots and `@` within a word are put in brackets
/// (`https[:]//evil[.]example`), but for the time of day. Everything that is no visible character becomes one space.
pub(super) fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(4 * MOST));
    let mut chars = text.chars().peekable();
    let mut before = ' ';
    let mut count = 0;
    while let Some(c) = chars.next() {
        if count > MOST {
            break;
        }
        let c = if is_invisible(c) { ' ' } else { c };
        let next = chars.peek().copied().filter(|next| !is_invisible(*next)).unwrap_or(' ');
        let within = !before.is_whitespace() && !next.is_whitespace();
        match c {
            ' ' if before == ' ' => continue,
            ':' if before.is_ascii_digit() && next.is_ascii_digit() => out.push(c),
            ':' | '\u{fe13}' | '\u{fe55}' | '\u{ff1a}' if within => out.push_str("[:]"),
            // The full stops that stand for a dot in domain names (RFC 3490 s.3.1), and what Unicode takes for one.
            '.' | '\u{2024}' | '\u{3002}' | '\u{fe52}' | '\u{ff0e}' | '\u{ff61}' if within => {
                out.push_str("[.]")
            }
            '@' | '\u{fe6b}' | '\u{ff20}' if within => out.push_str("[@]"),
            c => out.push(c),
        }
        before = c;
        count += 1;
    }
    shortened(out.trim())
}

fn is_invisible(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        // Directions and joiners: what is read is to be what stands there.
        || matches!(c, '\u{00ad}' | '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MOST - 1) {
        Some((end, last)) if end + last.len_utf8() < text.len() => format!("{}\u{2026}", &text[..end]),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_be_clicked_on() {
        for (text, expected) in [
            ("see https://evil.example/a.php?x=1", "see https[:]//evil[.]example/a[.]php?x=1"),
            ("www.evil.example now.", "www[.]evil[.]example now."),
            ("xmpp:iago@evil.example?join", "xmpp[:]iago[@]evil[.]example?join"),
            ("mailto:a@b", "mailto[:]a[@]b"),
            ("example.org/x or evil.example", "example[.]org/x or evil[.]example"),
            ("h323:iago z39.50s://a/b", "h323[:]iago z39[.]50s[:]//a/b"),
            ("[click](https://a.b/c) <a href='//a.b'>", "[click](https[:]//a[.]b/c) <a href='//a[.]b'>"),
            ("evil\u{2024}example evil\u{fe52}example", "evil[.]example evil[.]example"),
            ("a\u{fe6b}b http\u{ff1a}//x", "a[@]b http[:]//x"),
            ("192.0.2.1", "192[.]0[.]2[.]1"),
            ("evil\u{3002}example", "evil[.]example"),
            ("a\u{200b}.\u{202e}b", "a . b"),
            ("Hello: how are you? At 12:30. Me @ home", "Hello: how are you? At 12:30. Me @ home"),
            ("one\n\n two\t", "one two"),
            ("", ""),
        ] {
            assert_eq!(harmless(text), expected, "{text:?}");
        }
    }

    /// Nothing of a stanza is shown but its text, whatever else is in it.
    #[test]
    fn what_stands_beside_the_text_is_not_shown() {
        let beside = "<subject>www.evil.example</subject><nick xmlns='http://jabber.org/protocol/nick'>evil.example</nick>\
             <x xmlns='jabber:x:oob'><url>https://evil.example/i.png</url></x>\
             <html xmlns='http://jabber.org/protocol/xhtml-im'><body xmlns='http://www.w3.org/1999/xhtml'>\
             <a href='https://evil.example'>x</a></body></html>\
             <error type='cancel'><gone xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>evil.example</gone>\
             <text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>evil.example</text></error>\
             <reactions xmlns='urn:xmpp:reactions:0' id='1'><reaction>evil.example/x</reaction></reactions>";
        let of = |xml: &str| super::of(&Stanza::parse(xml.as_bytes()).unwrap());
        for (head, body, expected) in [
            ("message", "<body>see evil.example/x</body>", "see evil[.]example/x"),
            ("message", "<body xml:lang='de'>a.b</body><body>c.d</body>", "a[.]b"),
            ("presence", "<status>evil.example</status>", "evil[.]example"),
        ] {
            let kind = if head == "presence" { " type='subscribe'" } else { "" };
            let shown = of(&format!(
                "<{head} from='iago@evil.example/x' to='juliet@north.example'{kind}>{body}{beside}</{head}>"
            ));
            assert!(shown == expected || shown == "c[.]d", "{shown}");
        }
        // Without a text it is a phrase of ours; a reason is shown like every other text.
        for xml in [
            format!("<message from='iago@evil.example/x' to='juliet@north.example'>{beside}</message>"),
            "<message from='iago@evil.example/x' to='juliet@north.example'><x xmlns='jabber:x:conference' \
             jid='den@rooms.example' reason='https://evil.example/x'/></message>"
                .to_owned(),
        ] {
            let shown = of(&xml);
            assert!(!shown.contains("evil.example") && !shown.contains("rooms.example"), "{shown}");
        }
    }

    #[test]
    fn texts_are_bounded() {
        let long = harmless(&"\u{1f600}".repeat(100_000));
        assert_eq!((long.chars().count(), long.ends_with('\u{2026}')), (MOST, true));
        assert_eq!(harmless(&"x".repeat(MOST)), "x".repeat(MOST));
        assert_eq!(harmless(&".".repeat(100_000)).chars().count(), MOST);
        let both = append(&"x".repeat(MOST - 5), "0123456789").unwrap();
        assert_eq!((both.chars().count(), both.ends_with("\n012\u{2026}")), (MOST, true));
        assert_eq!(append(&both, "more"), None);
    }

    #[test]
    fn what_has_no_text_is_described() {
        let of = |xml: &str| super::of(&Stanza::parse(xml.as_bytes()).unwrap());
        let from = "from='iago@evil.example/x' to='juliet@north.example'";
        assert_eq!(
            of(&format!("<message {from}><propose xmlns='urn:xmpp:jingle-message:0' id='c'/></message>")),
            "Calls you."
        );
        assert_eq!(
            of(&format!(
                "<message {from}><x xmlns='jabber:x:conference' jid='den@rooms.example' reason='come'/></message>"
            )),
            "Invites you to the room den[@]rooms[.]example. come"
        );
        assert_eq!(
            of("<message from='den@rooms.example' to='juliet@north.example'><x \
                xmlns='http://jabber.org/protocol/muc#user'><invite from='a@b.example'><reason>hey</reason></invite>\
                </x></message>"),
            "Invites you to the room den[@]rooms[.]example. hey"
        );
        assert_eq!(
            of(&format!(
                "<message {from}><encrypted xmlns='urn:xmpp:omemo:2'><payload/></encrypted></message>"
            )),
            "Sends an encrypted message."
        );
        assert_eq!(
            of(&format!("<presence {from} type='subscribe'><status>a.b</status></presence>")),
            "a[.]b"
        );
    }
}
