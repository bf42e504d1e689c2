use super::*;
use crate::control::content::has;
use crate::control::content::tests::{shown, stanza};
use crate::control::rule::Content;

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
        "evil.invalid/offer",
        "evil.invalid:8080/offer",
        "192.0.2.1/offer",
        "magnet:?xt=urn:btih:1",
        "click:https://evil.example",
        // Clients link the bare name of a host.
        "go to evil.com",
        "Evil.COM",
        "*evil.com*, really",
        "look:evil.com!",
        "t.co",
        "ev\u{2066}il.com",
        "evil\u{3002}com",
        "xn--80ak6aa92e.com",
        "пример.рф",
        "evil.xn--p1ai",
        "a@b.example,evil.com",
    ] {
        assert!(links(text).next().is_some(), "{text}");
    }
    for text in [
        "no link here",
        "and/or",
        "www",
        "file.txt",
        "1/2 of 3.5/4",
        "note: this",
        "hotel:room",
        "://",
        "key=value",
        "e.g. this, i.e. that. And so on...",
        "version 1.2.3.4",
        "at 3.am",
        "juliet@example.org",
        "juliet@example.org/balcony",
        "конец.Начало",
    ] {
        assert!(links(text).next().is_none(), "{text}");
    }
    assert_eq!(without_links("a https://x.y/z, b (www.q.example)"), "a [link removed] b ([link removed])");
}

/// Everything that somebody thought of to get a link or a picture through. The text stays, the rest does not.
#[test]
fn nothing_hides_in_what_is_known() {
    for hidden in [
        "<reactions xmlns='urn:xmpp:reactions:0' id='1'><reaction>https://evil.com</reaction></reactions>",
        "<reactions xmlns='urn:xmpp:reactions:0' id='1'><reaction>buy it now, all of you, at evil</reaction></reactions>",
        "<nick xmlns='http://jabber.org/protocol/nick'>evil.com</nick>",
        "<subject>evil.com</subject>",
        "<thread>https://evil.com/1</thread>",
        "<error type='cancel'><text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>evil.com</text></error>",
        "<error type='cancel'><gone xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>http://evil.com</gone></error>",
        "<error type='cancel'><x xmlns='jabber:x:oob'><url>http://evil.com</url></x></error>",
        "<x xmlns='http://jabber.org/protocol/muc#user'><invite to='a@b'><reason>evil.com</reason></invite></x>",
        "<x xmlns='http://jabber.org/protocol/muc#user'><html xmlns='http://jabber.org/protocol/xhtml-im'>evil.com</html></x>",
        "<html xmlns='http://jabber.org/protocol/xhtml-im'><body xmlns='http://www.w3.org/1999/xhtml'><a href='http://evil.com'>x</a></body></html>",
        "<reference xmlns='urn:xmpp:reference:0' type='data' uri='https://evil.com'/>",
        "<markup xmlns='urn:xmpp:markup:0'><span start='0' end='9'><link uri='evil.com'/></span></markup>",
        "<x xmlns='jabber:x:oob'><url>https://evil.com/a.jpg</url></x>",
        "<delay xmlns='urn:xmpp:delay' stamp='2026-01-01T00:00:00Z'>evil.com</delay>",
        "<replace xmlns='urn:xmpp:message-correct:0' id='1'>evil.com</replace>",
        "<encryption xmlns='urn:xmpp:eme:0' name='evil.com' namespace='urn:x'/>",
        "<address xmlns='http://jabber.org/protocol/address' type='to' uri='http://evil.com'/>",
        "<addresses xmlns='http://jabber.org/protocol/address'><address type='to' desc='evil.com'/></addresses>",
        "<retract xmlns='urn:xmpp:message-retract:1' id='1'><reason>evil.com</reason></retract>",
        "<active xmlns='http://jabber.org/protocol/chatstates'>evil.com</active>",
        "<event xmlns='http://jabber.org/protocol/pubsub#event'><items node='urn:xmpp:avatar:data'>evil.com</items></event>",
        "<body xml:lang='de'>evil.com</body>",
        "<body>evil<!-- -->.com</body>",
        "<body>evil<b xmlns='urn:x'/>.com</body>",
    ] {
        let Ok(message) = Stanza::parse(
            format!("<message type='chat'><body>look here</body>{hidden}</message>").as_bytes(),
        ) else {
            // A comment is no XMPP (RFC 6120 s.11.1).
            assert!(hidden.contains("<!--"), "{hidden}");
            continue;
        };
        let text = shown(&text_only(&message).unwrap());
        assert!(text.contains("<body>look here</body>"), "{text}");
        assert!(!text.contains("evil"), "{text}");
    }
}

#[test]
fn text_and_what_belongs_to_it_passes_as_it_is() {
    for payload in [
        "<body>plain</body><active xmlns='http://jabber.org/protocol/chatstates'/>",
        "<body xml:lang='en'>plain</body><body xml:lang='de'>schlicht</body><thread parent='a'>b</thread>",
        "<reactions xmlns='urn:xmpp:reactions:0' id='1'><reaction>👍🏽</reaction></reactions><store xmlns='urn:xmpp:hints'/>",
        "<body>&gt; a\nb</body><reply xmlns='urn:xmpp:reply:0' to='a@b' id='1'/>\
         <fallback xmlns='urn:xmpp:fallback:0' for='urn:xmpp:reply:0'><body start='0' end='4'/></fallback>",
        "<retract xmlns='urn:xmpp:message-retract:1' id='1'/>",
        "<displayed xmlns='urn:xmpp:chat-markers:0' id='1'/>",
        "",
    ] {
        let message = stanza(&format!("<message type='chat'>{payload}</message>"));
        assert_eq!(shown(&text_only(&message).unwrap()), shown(&message));
    }
}

#[test]
fn links_go_out_of_texts_and_corrections() {
    let correction = stanza(
        "<message><body xml:lang='de'>hier: https://evil.example/x</body><body>plain</body>\
         <replace xmlns='urn:xmpp:message-correct:0' id='1'/><a xmlns='urn:example:unknown'/>\
         <fallback xmlns='urn:xmpp:fallback:0' for='urn:x'><body start='0' end='9'/></fallback></message>",
    );
    assert!(has(&correction, Content::Link));
    let text = text_only(&correction).unwrap();
    assert!(!has(&text, Content::Link));
    let shown = shown(&text);
    assert!(shown.contains("<body xml:lang='de'>hier: [link removed]</body>"), "{shown}");
    assert!(shown.contains("<body>plain</body>") && shown.contains("message-correct"), "{shown}");
    assert!(!shown.contains("urn:example:unknown"), "what is not known to be text is not: {shown}");
    assert!(!shown.contains("fallback"), "it counted characters of another text: {shown}");
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
    // Keys are found and announced.
    for xml in [
        "<message><event xmlns='http://jabber.org/protocol/pubsub#event'>\
         <items node='eu.siacs.conversations.axolotl.devicelist'><item><list xmlns='x'/></item></items></event></message>",
        "<iq type='get' id='1'><pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='urn:xmpp:omemo:2:devices'/></pubsub></iq>",
        "<iq type='result' id='1'><pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='urn:xmpp:omemo:2:devices'/></pubsub></iq>",
    ] {
        assert_eq!(text_only(&stanza(xml)).unwrap(), stanza(xml));
    }
}

#[test]
fn what_is_no_text_at_all_is_refused() {
    for xml in [
        "<message><file-sharing xmlns='urn:xmpp:sfs:0'/></message>",
        "<message><file-sharing xmlns='urn:xmpp:sfs:0'/><store xmlns='urn:xmpp:hints'/><origin-id xmlns='urn:xmpp:sid:0' id='1'/></message>",
        "<message><propose xmlns='urn:xmpp:jingle-message:0' id='1'/></message>",
        "<iq type='set' id='1'><open xmlns='http://jabber.org/protocol/ibb' sid='1' block-size='4'/></iq>",
        "<iq type='set' id='1'><jingle xmlns='urn:xmpp:jingle:1' action='session-info'/></iq>",
        "<iq type='get' id='1'><pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='urn:xmpp:avatar:data'/></pubsub></iq>",
        "<iq type='set' id='1'><made-up xmlns='urn:example:tomorrow'/></iq>",
    ] {
        assert_eq!(text_only(&stanza(xml)).unwrap_err().condition, Condition::PolicyViolation, "{xml}");
    }
    for xml in ["<presence/>", "<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>", "<message/>"] {
        assert_eq!(text_only(&stanza(xml)).unwrap(), stanza(xml));
    }
}

#[test]
fn presence_and_answers_carry_text_only_too() {
    let presence = stanza(
        "<presence><show>away</show><status>evil.com</status><priority>5</priority>\
         <x xmlns='vcard-temp:x:update'><photo>aa</photo></x><nick xmlns='http://jabber.org/protocol/nick'>Jule</nick>\
         <c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='https://client.example' ver='x' evil='1'/></presence>",
    );
    let text = shown(&text_only(&presence).unwrap());
    assert!(!text.contains("evil") && !text.contains("photo"), "{text}");
    assert!(
        text.contains("<show>away</show><status>[link removed]</status><priority>5</priority>"),
        "{text}"
    );
    assert!(text.contains("Jule") && text.contains("ver='x'"), "{text}");
    let answer = stanza(
        "<iq type='result' id='1'><vCard xmlns='vcard-temp'><PHOTO><BINVAL>aa</BINVAL></PHOTO></vCard></iq>",
    );
    assert_eq!(text_only(&answer).unwrap(), stanza("<iq type='result' id='1'/>"), "who asked is answered");
    let last = "<iq type='result' id='1'><query xmlns='jabber:iq:last' seconds='5'>evil.com</query></iq>";
    assert!(!shown(&text_only(&stanza(last)).unwrap()).contains("evil"));
    let refusal = stanza(
        "<iq type='error' id='1'><evil xmlns='urn:x'/><error type='cancel'><item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>\
         <evil xmlns='urn:x'/></error></iq>",
    );
    let text = shown(&text_only(&refusal).unwrap());
    assert!(text.contains("<item-not-found xmlns=") && !text.contains("evil"), "{text}");
}
