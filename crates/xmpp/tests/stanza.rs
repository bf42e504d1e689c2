//! Stanzas: what passes unchanged, what is mapped, what is refused and what is answered.

use trunkline_xml::{Event, Limits, Scanner};
use trunkline_xmpp::error::{Condition, StanzaError, StreamCondition};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{
    IqType, Kind, MessageType, PresenceType, Refusal, Stanza, StanzaParseError, StanzaRefusal,
};

const CLIENT: &str = "<s:stream xmlns='jabber:client' xmlns:s='http://etherx.jabber.org/streams'>";
const SERVER: &str = "<s:stream xmlns='jabber:server' xmlns:s='http://etherx.jabber.org/streams' xmlns:db='jabber:server:dialback'>";

/// The stanza `xml` as the first child of a stream with the header `header`.
fn from_stream(header: &str, xml: &str) -> Result<Stanza, StanzaRefusal> {
    let mut scanner = Scanner::new(Limits::default());
    let Ok(Some(Event::Open(header))) = scanner.next(&mut header.as_bytes()) else { panic!("a header") };
    let lang = header.root().attr_ns(ns::XML, "lang");
    match scanner.next(&mut xml.as_bytes()) {
        Ok(Some(Event::Element(element))) => {
            Stanza::from_element(element, &header.default_ns(), lang.as_deref())
        }
        other => panic!("{other:?}"),
    }
}

fn accepted(header: &str, xml: &str) -> Stanza {
    from_stream(header, xml).expect(xml)
}

fn refused(xml: &str) -> StanzaRefusal {
    from_stream(CLIENT, xml).expect_err(xml)
}

fn parse(xml: &str) -> Stanza {
    Stanza::parse(xml.as_bytes()).expect(xml)
}

fn written(stanza: &Stanza) -> String {
    let mut out = Vec::new();
    stanza.write(&mut out);
    String::from_utf8(out).expect("UTF-8")
}

fn bad_request() -> StanzaError {
    StanzaError::new(Condition::BadRequest)
}

#[test]
fn a_message_is_read_and_written() {
    let payload = "<body>Hi &amp; ho</body><x xmlns='y'/>";
    let stanza = accepted(
        CLIENT,
        &format!(
            "<message to='Juliet@Example.org/Balcony' id='a&apos;1' type='chat' xml:lang='en'>{payload}</message>"
        ),
    );
    assert_eq!(stanza.head.kind, Kind::Message(MessageType::Chat));
    assert_eq!(stanza.head.to.as_ref().map(|jid| jid.as_str()), Some("juliet@example.org/Balcony"));
    assert_eq!(stanza.head.id.as_deref(), Some("a'1"));
    assert_eq!(stanza.head.lang.as_deref(), Some("en"));
    assert_eq!(stanza.head.extra, None);
    assert_eq!(stanza.body().as_deref(), Some("Hi & ho"));
    let text = written(&stanza);
    assert_eq!(
        text,
        format!(
            "<message to='juliet@example.org/Balcony' id='a&apos;1' type='chat' xml:lang='en'>{payload}</message>"
        )
    );
    assert!(stanza.size() >= text.len());
}

#[test]
fn the_payload_passes_byte_for_byte() {
    let payload =
        "\n <body  >a&#x62;<![CDATA[<&>]]>\r\n</body ><enc xmlns=\"eu.siacs\"><p a = '\t>'/></enc>text";
    for header in [CLIENT, SERVER] {
        let stanza = accepted(header, &format!("<message >{payload}</message >"));
        assert_eq!(stanza.payload(), payload.as_bytes());
        assert_eq!(written(&stanza), format!("<message>{payload}</message>"));
    }
}

#[test]
fn every_content_namespace_becomes_that_of_clients() {
    for ns in ["jabber:client", "jabber:server", "jabber:component:accept"] {
        let stanza = accepted(&format!("<s xmlns='{ns}'>"), "<message><body>x</body></message>");
        assert_eq!(stanza.body().as_deref(), Some("x"), "{ns}");
        let declared =
            format!("<message xmlns='{ns}' id='1'><body xmlns='{ns}' ><b xmlns='{ns}'/></body></message>");
        let stanza = accepted(&format!("<s xmlns='{ns}'>"), &declared);
        assert_eq!(written(&stanza), "<message id='1'><body ><b/></body></message>", "{ns}");
        assert!(stanza.child(ns::CLIENT, "body").is_some_and(|body| body.child(ns::CLIENT, "b").is_some()));
    }
}

#[test]
fn a_content_namespace_declared_on_the_stanza_only() {
    let mut scanner = Scanner::new(Limits::default());
    assert!(matches!(scanner.next(&mut &b"<s xmlns='urn:other'>"[..]), Ok(Some(Event::Open(_)))));
    for ns in ["jabber:client", "jabber:server"] {
        let xml = format!("<message xmlns='{ns}'><body>x</body></message>");
        let Ok(Some(Event::Element(element))) = scanner.next(&mut xml.as_bytes()) else {
            panic!("an element")
        };
        let stanza = Stanza::from_element(element, ns, None).expect("a stanza");
        assert_eq!(stanza.body().as_deref(), Some("x"));
        assert_eq!(written(&stanza), "<message><body>x</body></message>");
    }
}

/// Some servers declare the namespace of clients on what they pass on to other servers.
#[test]
fn the_namespace_of_clients_on_a_server_stream() {
    let stanza = accepted(SERVER, "<message><body xmlns='jabber:client'>x</body></message>");
    assert_eq!(written(&stanza), "<message><body>x</body></message>");
    assert_eq!(parse(&written(&stanza)), stanza);
}

#[test]
fn a_forwarded_stanza_keeps_its_namespace() {
    let payload = "<forwarded xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client'><body>x</body></message></forwarded>";
    for header in [CLIENT, SERVER] {
        let stanza = accepted(header, &format!("<message>{payload}</message>"));
        assert_eq!(written(&stanza), format!("<message>{payload}</message>"));
        let forwarded = stanza.child("urn:xmpp:forward:0", "forwarded").expect("forwarded");
        assert!(forwarded.child(ns::CLIENT, "message").is_some());
    }
}

#[test]
fn declarations_on_the_stream_header_go_with_the_stanza() {
    let header = "<s xmlns='jabber:server' xmlns:p='urn:p' xmlns:q='urn:&amp;q' xmlns:unused='urn:u'>";
    let stanza = accepted(header, "<message q:a='1'><p:x/><body/></message>");
    assert_eq!(
        written(&stanza),
        "<message q:a='1' xmlns:q='urn:&amp;q' xmlns:p='urn:p'><p:x/><body/></message>"
    );
    assert!(stanza.child("urn:p", "x").is_some());
    assert_eq!(parse(&written(&stanza)), stanza);
    // The same when the content namespace has to be taken out.
    let stanza = accepted(header, "<message xmlns='jabber:server' q:a='1'><p:x/><body/></message>");
    assert!(stanza.child("urn:p", "x").is_some());
    assert!(stanza.child(ns::CLIENT, "body").is_some());
    assert_eq!(parse(&written(&stanza)).payload(), stanza.payload());
    assert!(parse(&written(&stanza)).child("urn:p", "x").is_some());
}

#[test]
fn extra_attributes_are_kept() {
    let xml =
        "<iq id='1' type='get' other=\"it's\" xmlns:x='urn:x' x:type='y'><ping xmlns='urn:xmpp:ping'/></iq>";
    let stanza = accepted(CLIENT, xml);
    assert_eq!(stanza.head.extra.as_deref(), Some(&b"other=\"it's\" x:type='y' xmlns:x='urn:x'"[..]));
    assert_eq!(parse(&written(&stanza)), stanza);
}

#[test]
fn the_language_is_inherited_from_the_stream() {
    let header = "<s xmlns='jabber:client' xml:lang='de'>";
    assert_eq!(written(&accepted(header, "<presence/>")), "<presence xml:lang='de'/>");
    assert_eq!(written(&accepted(header, "<presence xml:lang='fr'/>")), "<presence xml:lang='fr'/>");
    assert_eq!(accepted(CLIENT, "<presence/>").head.lang, None);
}

#[test]
fn types() {
    assert_eq!(parse("<message type='normal'/>").head.kind, Kind::Message(MessageType::Normal));
    assert_eq!(
        parse("<message type='odd'/>").head.kind,
        Kind::Message(MessageType::Normal),
        "RFC 6121 s.5.2.2"
    );
    use {IqType as I, MessageType as M, PresenceType as P};
    let messages = [M::Normal, M::Chat, M::Groupchat, M::Headline, M::Error].map(Kind::Message);
    let presences = [
        P::Available,
        P::Unavailable,
        P::Subscribe,
        P::Subscribed,
        P::Unsubscribe,
        P::Unsubscribed,
        P::Probe,
        P::Error,
    ]
    .map(Kind::Presence);
    let iqs = [I::Get, I::Set, I::Result, I::Error].map(Kind::Iq);
    for kind in messages.into_iter().chain(presences).chain(iqs) {
        let stanza = Stanza::build(kind).id("1").body(|w| _ = w.empty("x").attr("xmlns", "y")).done();
        assert_eq!(parse(&written(&stanza)).head.kind, kind);
        assert_eq!(written(&stanza).contains("type='error'"), kind.is_error());
    }
}

#[test]
fn what_is_no_stanza_ends_the_stream() {
    for (xml, label, condition) in [
        ("<foo/>", "stanza-unknown", StreamCondition::UnsupportedStanzaType),
        ("<message xmlns='jabber:server'/>", "stanza-namespace", StreamCondition::InvalidNamespace),
        ("<c:message xmlns:c='jabber:client'/>", "stanza-prefix", StreamCondition::BadNamespacePrefix),
        ("<message from='@'/>", "stanza-bad-from", StreamCondition::InvalidFrom),
    ] {
        let refusal = refused(xml);
        assert_eq!(refusal.why.label(), label);
        assert_eq!(refusal.stream_condition(), Some(condition), "{xml}");
        assert!(refusal.error_reply().is_none(), "{xml}");
    }
}

#[test]
fn what_is_refused_is_answered() {
    for (xml, condition) in [
        ("<message from='a@b.example/c' to='@@' id='7'><body/></message>", "<jid-malformed "),
        ("<iq from='a@b.example/c' type='get' id='7'/>", "<bad-request "),
        ("<iq from='a@b.example/c' type='set' id='7'><a xmlns='x'/><b xmlns='y'/></iq>", "<bad-request "),
        ("<iq from='a@b.example/c' type='odd' id='7'><a xmlns='x'/></iq>", "<bad-request "),
        ("<iq from='a@b.example/c' id='7'><a xmlns='x'/></iq>", "<bad-request "),
        ("<presence from='a@b.example/c' type='odd' id='7'/>", "<bad-request "),
        ("<message from='a@b.example/c' id='7'><x xmlns='}'/></message>", "<not-acceptable "),
        ("<message from='a@b.example/c' id='7' \u{10000}=''/>", "<not-acceptable "),
    ] {
        let refusal = refused(xml);
        assert_eq!(refusal.stream_condition(), None, "{xml}");
        let reply = refusal.error_reply().expect(xml);
        assert!(reply.head.kind.is_error(), "{xml}");
        assert_eq!(reply.head.to.as_ref().map(|jid| jid.as_str()), Some("a@b.example/c"), "{xml}");
        assert_eq!(reply.head.id.as_deref(), Some("7"), "{xml}");
        assert!(written(&reply).contains(condition), "{xml}: {reply:?}");
    }
    assert_eq!(refused("<iq type='get'><a xmlns='x'/></iq>").why, Refusal::IqId);
}

#[test]
fn refused_errors_and_results_are_not_answered() {
    for xml in [
        "<iq type='result' to='@@' id='7'/>",
        "<iq type='error' to='@@' id='7'/>",
        "<message type='error' to='@@' id='7'/>",
        "<presence type='error' to='@@' id='7'/>",
        "<iq type='result'/>",
    ] {
        assert!(refused(xml).error_reply().is_none(), "{xml}");
    }
}

#[test]
fn a_result_has_a_child_or_none() {
    assert!(from_stream(CLIENT, "<iq type='result' id='1'/>").is_ok());
    assert!(from_stream(CLIENT, "<iq type='result' id='1'><a xmlns='x'/></iq>").is_ok());
}

#[test]
fn replies_and_errors_go_back() {
    let ping = "<ping xmlns='urn:xmpp:ping'/>";
    let request = parse(&format!(
        "<iq from='a@b.example/c' to='d.example' id='7' type='get' xml:lang='de'>{ping}</iq>"
    ));
    let reply = request.reply().done();
    assert_eq!(written(&reply), "<iq from='d.example' to='a@b.example/c' id='7' type='result'/>");
    let error = request.error(&bad_request()).expect("an error");
    assert_eq!(error.head.kind, Kind::Iq(IqType::Error));
    assert_eq!((&error.head.from, &error.head.to), (&request.head.to, &request.head.from));
    assert!(error.child("urn:xmpp:ping", "ping").is_some(), "a small payload goes back");
    assert!(error.child(ns::CLIENT, "error").is_some());
    let large = request.with_payload(format!("<a xmlns='x'>{}</a>", "x".repeat(2000)));
    assert_eq!(
        large.error(&bad_request()).map(|error| error.children().count()),
        Some(1),
        "a large one does not"
    );
    // RFC 6120 s.8.3.1: no error about an error; s.8.2.3: nor about a result.
    assert!(error.error(&bad_request()).is_none());
    assert!(reply.error(&bad_request()).is_none());
}

#[test]
fn an_echoed_payload_keeps_its_declarations() {
    let stanza = parse("<message from='a@b.example' xmlns:p='urn:p'><p:x/></message>");
    let error = stanza.error(&bad_request()).expect("an error");
    assert!(parse(&written(&error)).child("urn:p", "x").is_some());
}

#[test]
fn a_payload_changes_only_where_asked() {
    let stanza = parse("<message xmlns:p='urn:p'>a<x xmlns='1'/>b<p:y/><x xmlns='1'>c</x>d</message>");
    let stripped = stanza.without_children(|child| child.is("1", "x"));
    assert_eq!(stripped.payload(), &b"ab<p:y/>d"[..]);
    assert!(stripped.child("urn:p", "y").is_some());
    assert_eq!(stanza.without_children(|_| false).payload(), stanza.payload());
    assert_eq!(stanza.without_children(|_| true).payload(), &b"abd"[..]);
    let appended = stripped.with_appended(b"<z xmlns='2'/>");
    assert_eq!(appended.payload(), &b"ab<p:y/>d<z xmlns='2'/>"[..]);
    assert!(appended.child("2", "z").is_some());
    assert!(parse("<message/>").with_appended(b"<z xmlns='2'/>").child("2", "z").is_some());
    assert!(stanza.with_payload(b"").is_empty());
}

#[test]
fn what_is_appended_in_writing_is_what_is_appended() {
    for xml in ["<message id='1'>a<b xmlns='2'/></message>", "<message xmlns:p='urn:p'/>"] {
        for more in ["<z xmlns='2'/>", ""] {
            let stanza = parse(xml);
            let (mut at_once, mut after) = (Vec::new(), Vec::new());
            stanza.write_appended_in(&mut at_once, (ns::CLIENT, more.as_bytes()));
            stanza.with_appended(more.as_bytes()).write_in(&mut after, ns::CLIENT);
            assert_eq!(at_once, after);
            assert!(String::from_utf8_lossy(&at_once).contains(more));
        }
    }
}

#[test]
fn written_with_its_namespace_it_stands_anywhere() {
    let stanza = accepted(SERVER, "<message id='1'><body>x</body></message>");
    let mut out = Vec::new();
    stanza.write_in(&mut out, ns::CLIENT);
    assert_eq!(out, b"<message xmlns='jabber:client' id='1'><body>x</body></message>");
    let again = Stanza::parse(&out).expect("a stanza");
    assert_eq!(again, stanza);
    assert_eq!(again.body().as_deref(), Some("x"));
}

#[test]
fn the_builder() {
    let stanza = Stanza::build(Kind::Message(MessageType::Chat))
        .to(trunkline_xmpp::Jid::parse("a@b.example").ok())
        .id("1")
        .lang("en")
        .payload(&b"<x xmlns='y'/>"[..])
        .body(|w| _ = w.text_element("body", "<3"))
        .done();
    assert_eq!(
        written(&stanza),
        "<message to='a@b.example' id='1' type='chat' xml:lang='en'><x xmlns='y'/><body>&lt;3</body></message>"
    );
    assert_eq!(stanza.body().as_deref(), Some("<3"));
}

#[test]
fn what_is_not_a_stanza_does_not_parse() {
    assert!(matches!(Stanza::parse(b"<message>"), Err(StanzaParseError::Xml(_))));
    assert!(matches!(Stanza::parse(b"<foo/>"), Err(StanzaParseError::Refused(Refusal::UnknownStanza))));
}
