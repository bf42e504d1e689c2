//! What the scanner accepts, what it refuses and with which error, and that it can be fed at any granularity.

use trunkline_xml::{Event, Limits, ScanError, Scanner, XML_NS};

const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' to='example.org' version='1.0'>";

/// One line per event, ending in the error if there is one.
fn scan(input: &[u8], piece: usize, limits: Limits) -> (Vec<String>, Option<ScanError>) {
    let mut scanner = Scanner::new(limits);
    let mut events: Vec<String> = Vec::new();
    for mut chunk in input.chunks(piece) {
        loop {
            match scanner.next(&mut chunk) {
                Ok(None) => break,
                Ok(Some(Event::Whitespace)) => {}
                Ok(Some(Event::Open(header))) => {
                    events.push(format!(
                        "open {} {}",
                        String::from_utf8_lossy(header.bytes()),
                        header.default_ns()
                    ));
                }
                Ok(Some(Event::Element(element))) => {
                    events.push(format!(
                        "{} {}",
                        element.root().ns(),
                        String::from_utf8_lossy(element.bytes())
                    ));
                }
                Ok(Some(Event::Close)) => events.push("close".into()),
                Err(error) => return (events, Some(error)),
            }
        }
        assert!(chunk.is_empty(), "None means that all input was taken");
    }
    (events, None)
}

/// Scans in one piece and byte by byte; both must agree.
fn outcome(input: impl AsRef<[u8]>) -> (Vec<String>, Option<ScanError>) {
    let input = input.as_ref();
    let whole = scan(input, usize::MAX >> 1, Limits::default());
    let bytewise = scan(input, 1, Limits::default());
    // Which of two faults in one run of text is named may depend on what was there to be seen.
    let label = |error: Option<ScanError>| error.map(|error| error.label());
    assert_eq!(whole.0, bytewise.0, "{}", String::from_utf8_lossy(input));
    assert_eq!(label(whole.1), label(bytewise.1), "{}", String::from_utf8_lossy(input));
    whole
}

/// The error that `content` gives inside a stream.
fn refusal(content: impl AsRef<[u8]>) -> Option<ScanError> {
    outcome([HEADER.as_bytes(), content.as_ref()].concat()).1
}

fn malformed(content: impl AsRef<[u8]>) {
    let content = content.as_ref();
    let error = refusal(content);
    assert!(
        matches!(error, Some(ScanError::NotWellFormed(_))),
        "{}: {error:?}",
        String::from_utf8_lossy(content)
    );
}

fn restricted(content: &str) {
    let error = refusal(content);
    assert!(matches!(error, Some(ScanError::Restricted(_))), "{content}: {error:?}");
}

fn accepted(content: &str) {
    let error = refusal(content);
    assert_eq!(error, None, "{content}");
}

#[test]
fn a_stream_from_header_to_close() {
    let (events, error) =
        outcome(format!("{HEADER}<message><body>Hi &amp; ho</body></message>\n <iq/></stream:stream>\n"));
    assert_eq!(error, None);
    assert_eq!(events.len(), 4);
    assert!(events[0].starts_with("open <stream:stream "));
    assert!(events[0].ends_with(" jabber:client"));
    assert_eq!(events[1], "jabber:client <message><body>Hi &amp; ho</body></message>");
    assert_eq!(events[2], "jabber:client <iq/>");
    assert_eq!(events[3], "close");
}

#[test]
fn a_header_that_is_an_empty_element_opens_and_closes() {
    let (events, error) = outcome("<stream/>");
    assert_eq!((events, error), (vec!["open <stream/> ".to_owned(), "close".to_owned()], None));
}

#[test]
fn the_xml_declaration() {
    for fine in [
        "<?xml version='1.0'?>",
        "<?xml version=\"1.0\" encoding='utf-8' ?>",
        "<?xml version = '1.0' encoding='UTF-8' standalone='no'?>\n",
        "",
        " \n",
    ] {
        assert_eq!(outcome(format!("{fine}<s>")).1, None, "{fine}");
    }
    for bad in [
        "<?xml?>",
        "<?xml encoding='UTF-8'?>",
        "<?xml version='1.1'?>",
        "<?xml version='1.0'encoding='UTF-8'?>",
    ] {
        assert!(matches!(outcome(format!("{bad}<s>")).1, Some(ScanError::NotWellFormed(_))), "{bad}");
    }
    assert_eq!(outcome("<?xml version='1.0' encoding='ISO-8859-1'?><s>").1, Some(ScanError::Encoding));
    assert!(matches!(outcome("<?php 1 ?><s>").1, Some(ScanError::Restricted(_))));
    assert!(matches!(
        outcome("<?xml version='1.0'?><?xml version='1.0'?><s>").1,
        Some(ScanError::Restricted(_))
    ));
}

#[test]
fn before_and_behind_the_stream() {
    assert!(matches!(outcome("hello").1, Some(ScanError::NotWellFormed(_))));
    assert!(matches!(outcome("\u{FEFF}<s>").1, Some(ScanError::NotWellFormed(_))), "a byte order mark");
    assert!(matches!(outcome("<!DOCTYPE s><s>").1, Some(ScanError::Restricted(_))));
    assert!(matches!(outcome("<!-- --><s>").1, Some(ScanError::Restricted(_))));
    assert_eq!(outcome("<s></s> \r\n\t").1, None);
    assert!(matches!(outcome("<s></s> <a/>").1, Some(ScanError::NotWellFormed(_))));
    assert!(matches!(outcome("<s></t>").1, Some(ScanError::NotWellFormed(_))));
    assert!(matches!(outcome("<a:s xmlns:a='x'></s>").1, Some(ScanError::NotWellFormed(_))));
    assert_eq!(outcome("<a:s xmlns:a='x'></a:s\n>").1, None);
}

#[test]
fn what_rfc_6120_s_11_1_forbids() {
    restricted("<!-- a comment -->");
    restricted("<a><!-- a comment --></a>");
    restricted("<?pi?>");
    restricted("<a><?pi?></a>");
    restricted("<a><?xml version='1.0'?></a>");
    restricted("<!DOCTYPE a>");
    restricted("<a><!DOCTYPE a></a>");
    restricted("<a>&nbsp;</a>");
    restricted("<a b='&lol9;'/>");
}

#[test]
fn names_that_many_parsers_cannot_read() {
    for (xml, portable) in [
        ("<\u{10000}/>", false),
        ("<a\u{FEFF}/>", false),
        ("<a \u{218F}='1'/>", false),
        ("<a><b\u{203F}/></a>", false),
        ("<a xmlns='b c'/>", false),
        ("<a xmlns:b='c}'/>", false),
        ("<a xmlns:b='c&#9;'/>", false),
        ("<a xmlns:b='urn:\u{e9}' c='} {'> }\u{10000}</a>", true),
        ("<a><\u{e9}\u{b7}/></a>", true),
    ] {
        accepted(xml);
        assert_eq!(
            trunkline_xml::Element::parse(xml, "").map(|element| element.is_portable()),
            Ok(portable),
            "{xml}"
        );
    }
}

#[test]
fn text_between_elements() {
    assert_eq!(refusal("hello<a/>"), Some(ScanError::StrayText));
    assert_eq!(refusal("<a/>&lt;<a/>"), Some(ScanError::StrayText));
    malformed("<![CDATA[x]]>");
    malformed("\0");
}

#[test]
fn references() {
    accepted(
        "<a b='&lt;&gt;&amp;&quot;&apos;&#65;&#x41;&#x1F600;&#9;&#xA;&#xd;'>&lt;&gt;&amp;&quot;&apos;&#x10FFFF;</a>",
    );
    for bad in ["&", "&;", "& amp;", "&amp", "&#;", "&#x;", "&#X41;", "&#0;", "&#8;", "&#xFFFE;", "&#xD800;"]
    {
        malformed(format!("<a>{bad}</a>"));
        malformed(format!("<a b='{bad}'/>"));
    }
    for bad in ["&#x110000;", "&#99999999999;", "&#-1;", "&#+1;", "&#xG;", "&#1 ;", "&-;", "&1;"] {
        malformed(format!("<a>{bad}</a>"));
        malformed(format!("<a b='{bad}'/>"));
    }
}

#[test]
fn characters() {
    for code in (0..0x20).filter(|code| ![9, 10, 13].contains(code)) {
        malformed([b"<a>x", &[code][..], b"</a>"].concat());
        malformed([b"<a b='", &[code][..], b"'/>"].concat());
        malformed([b"<a><![CDATA[", &[code][..], b"]]></a>"].concat());
    }
    for text in ["\u{FFFE}", "\u{FFFF}"] {
        malformed(format!("<a>{text}</a>"));
        malformed(format!("<a b='{text}'/>"));
        malformed(format!("<a><![CDATA[{text}]]></a>"));
    }
    accepted(
        "<a b='\u{7F}\u{80}\u{FFFD}\u{10000}\u{10FFFF}'>\u{7F}\u{80}\u{FFFD}\u{1FFFE}<![CDATA[\u{FFFD}]]></a>",
    );
    for bad in [&b"\xff"[..], b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe4\xbd", b"\x80"] {
        for (before, behind) in [
            ("<a>", "</a>"),
            ("<a b='", "'/>"),
            ("<a><![CDATA[", "]]></a>"),
            ("<a", "/>"),
            ("<a x", "='1'/>"),
        ] {
            let error = refusal([before.as_bytes(), bad, behind.as_bytes()].concat());
            assert_eq!(error, Some(ScanError::Utf8), "{before}{bad:x?}{behind}");
        }
    }
}

#[test]
fn markup() {
    for bad in [
        "<>",
        "< a/>",
        "<a",
        "</a>",
        "<a></b>",
        "<a></aa>",
        "<aa></a>",
        "<a></a b='c'>",
        "<a></ a>",
        "<a / >",
        "<1/>",
        "<-a/>",
        "<.a/>",
        "<a!/>",
        "<a b/>",
        "<a b=c/>",
        "<a b='c/>",
        "<a b='c'd='e'/>",
        "<a b='<'/>",
        "<a ='c'/>",
        "<a b='c' b='d'/>",
        "<a><b></a></b>",
        "<a>]]></a>",
        "<a><![cdata[x]]></a>",
        "<a><!x></a>",
        "<a b=\"c'/>",
        "<a,b/>",
        "<a b='1' c>",
        "<\u{D7}/>",
        "<a\u{37E}/>",
        "<\u{300}/>",
        "<\u{B7}/>",
    ] {
        // What is merely unfinished becomes wrong with what follows.
        malformed(format!("{bad}<x/><x y='\"'></stream:stream>"));
    }
    accepted("<a  b = 'c'\n\td\r=\n\"e'\" ></a \n>");
    accepted("<a b='>'>></a>");
    accepted("<a>]] > ]] ]]&gt;</a>");
    accepted("<a><![CDATA[]]]]><![CDATA[><a></b>&x;]]></a>");
    accepted("<\u{E9}l\u{E8}ve \u{4F60}='\u{597D}' _-.1\u{B7}\u{300}=''/>");
}

#[test]
fn namespaces() {
    accepted("<a:b xmlns:a='x' a:c='1' c='1'><a:d xml:lang='en'/></a:b>");
    accepted("<a xmlns='x'><b xmlns=''/></a>");
    accepted("<a xmlns:xml='http://www.w3.org/XML/1998/namespace'/>");
    accepted("<a xmlns:b='x'/><stream:error/>");
    for bad in ["<a:b/>", "<a b:c='1'/>", "<a><b xmlns:x='y'/><x:c/></a>", "<a xmlns:b='x'/><b:c/>"] {
        assert_eq!(refusal(bad), Some(ScanError::BadPrefix), "{bad}");
    }
    for bad in
        ["<a:b:c/>", "<:a/>", "<a:/>", "<a :b='1'/>", "<a b:='1'/>", "<a:1 xmlns:a='x'/>", "<a xmlns:='x'/>"]
    {
        malformed(bad);
    }
    for bad in [
        "<a xmlns:b=''/>",
        "<a xmlns:xml='x'/>",
        "<a xmlns:b='http://www.w3.org/XML/1998/namespace'/>",
        "<a xmlns='http://www.w3.org/XML/1998/namespace'/>",
        "<a xmlns:xmlns='x'/>",
        "<a xmlns:b='http://www.w3.org/2000/xmlns/'/>",
        "<a xmlns='http://www.w3.org/2000/xmlns/'/>",
        "<xmlns:a/>",
    ] {
        let error = refusal(bad);
        assert!(matches!(error, Some(ScanError::BadNamespace(_))), "{bad}: {error:?}");
    }
    for twice in [
        "<a xmlns='x' xmlns='y'/>",
        "<a xmlns:b='x' xmlns:b='y'/>",
        "<a xmlns:b='x' xmlns:c='x' b:d='1' c:d='2'/>",
        "<a xmlns:b='x&amp;' xmlns:c='x&#38;' b:d='1' c:d='2'/>",
        "<a xml:lang='en' xml:lang='de'/>",
    ] {
        malformed(twice);
    }
    accepted("<a xmlns:b='x' xmlns:c='y' b:d='1' c:d='2' d='3'/>");
    accepted("<a xmlns:b='x' b='1'/>");
}

#[test]
fn limits() {
    let limits = Limits {
        element_bytes: 100,
        header_bytes: 80,
        depth: 3,
        attributes: 2,
        namespaces: 2,
        name_bytes: 8,
        nodes: 5,
    };
    let refusal = |content: &str| {
        let input = format!("<s xmlns='jabber:client' xmlns:p='q'>{content}");
        let whole = scan(input.as_bytes(), usize::MAX >> 1, limits);
        assert_eq!(whole, scan(input.as_bytes(), 1, limits), "{content}");
        whole.1
    };
    assert_eq!(refusal(&format!("<a>{}</a>", "x".repeat(93))), None);
    let large = Some(ScanError::TooLarge { limit: 100 });
    assert_eq!(refusal(&format!("<a>{}</a>", "x".repeat(94))), large);
    assert_eq!(refusal(&format!("<a>{}", "x".repeat(98))), large);
    assert_eq!(refusal(&format!("<a b='{}", "x".repeat(98))), large);
    assert_eq!(refusal(&format!("<a><![CDATA[{}", "x".repeat(98))), large);
    assert_eq!(refusal(&format!("<a{}", " ".repeat(99))), large);
    assert_eq!(refusal(&format!("</s{}>", " ".repeat(99))), large);
    assert_eq!(refusal(&format!("{}<a/>", " ".repeat(200))), None, "keep-alives are not an element");
    assert_eq!(refusal("<a><b><c/></b></a>"), None);
    assert_eq!(refusal("<a><b><c><d/></c></b></a>"), Some(ScanError::TooDeep { limit: 3 }));
    assert_eq!(refusal("<a b='1' c='2' xmlns='x' xmlns:y='z'/>"), None);
    assert_eq!(refusal("<a b='1' c='2' d='3'/>"), Some(ScanError::TooManyAttributes { limit: 2 }));
    assert_eq!(
        refusal("<a xmlns='x' xmlns:y='z' xmlns:z='z'/>"),
        Some(ScanError::TooManyNamespaces { limit: 2 })
    );
    assert_eq!(refusal("<abcdefgh/>"), None);
    assert_eq!(refusal("<abcdefghi/>"), Some(ScanError::NameTooLong { limit: 8 }));
    assert_eq!(refusal("<a bcdefghij='1'/>"), Some(ScanError::NameTooLong { limit: 8 }));
    assert_eq!(refusal("<a><b/><c/><d/><e/></a>"), None);
    assert_eq!(refusal("<a><b/><c/><d/><e/><f/></a>"), Some(ScanError::TooManyNodes { limit: 5 }));

    let header = |header: String| {
        let whole = scan(header.as_bytes(), usize::MAX >> 1, limits);
        assert_eq!(whole, scan(header.as_bytes(), 1, limits), "{header}");
        whole.1
    };
    assert_eq!(header(format!("<s a='{}'>", "x".repeat(72))), None);
    assert_eq!(header(format!("<s a='{}'>", "x".repeat(73))), Some(ScanError::TooLarge { limit: 80 }));
    assert_eq!(header(format!("<?xml {}", " ".repeat(80))), Some(ScanError::TooLarge { limit: 80 }));
}

#[test]
fn prefixes_in_scope_are_bounded() {
    let limits = Limits { namespaces: 1, ..Limits::default() };
    let open: String = (0..9).map(|index| format!("<a xmlns:p{index}='x'>")).collect();
    let (_, error) = scan(format!("<s>{open}").as_bytes(), 7, limits);
    assert_eq!(error, Some(ScanError::TooManyNamespaces { limit: 8 }));
}

#[test]
fn garbage_is_refused_before_the_element_ends() {
    for garbage in [
        &b"<a>\xff"[..],
        b"<a>\x01",
        b"<a>&nbsp;",
        b"<a>]]>",
        b"<a></b",
        b"<a b='<",
        b"<a><b",
        b"<!D",
        b"<?x",
    ] {
        let input = [HEADER.as_bytes(), garbage].concat();
        if garbage == b"<a><b" {
            assert_eq!(outcome(input).1, None);
        } else {
            assert!(outcome(input).1.is_some(), "{}", String::from_utf8_lossy(garbage));
        }
    }
}

#[test]
fn an_error_stays() {
    let mut scanner = Scanner::new(Limits::default());
    assert!(scanner.next(&mut &b"<s><a></b>"[..]).is_ok());
    let error = scanner.next(&mut &b"<a></b>"[..]).unwrap_err();
    assert_eq!(scanner.next(&mut &b"<a/>"[..]).unwrap_err(), error);
    scanner.restart();
    assert!(matches!(scanner.next(&mut &b"<a/>"[..]), Ok(Some(Event::Open(_)))));
}

#[test]
fn an_idle_scanner_holds_no_buffer() {
    let mut scanner = Scanner::new(Limits::default());
    let mut input = HEADER.as_bytes();
    assert!(matches!(scanner.next(&mut input), Ok(Some(Event::Open(_)))));
    assert_eq!(scanner.buffered(), 0);
    assert!(matches!(scanner.next(&mut &b"<a>half"[..]), Ok(None)));
    assert_eq!(scanner.buffered(), 7);
    let mut input = &b"</a> <b"[..];
    assert!(matches!(scanner.next(&mut input), Ok(Some(Event::Element(_)))));
    assert_eq!((scanner.buffered(), input), (0, &b" <b"[..]));
}

#[test]
fn a_restart_begins_a_new_document() {
    let mut scanner = Scanner::new(Limits::default());
    let mut input = b"<s xmlns='a'><b".as_slice();
    assert!(matches!(scanner.next(&mut input), Ok(Some(Event::Open(_)))));
    assert!(matches!(scanner.next(&mut input), Ok(None)));
    scanner.restart();
    assert_eq!(scanner.buffered(), 0);
    let mut input = b"<?xml version='1.0'?><t><b/></t>".as_slice();
    assert!(matches!(scanner.next(&mut input), Ok(Some(Event::Open(_)))));
    let Ok(Some(Event::Element(element))) = scanner.next(&mut input) else { panic!("an element") };
    assert_eq!(element.root().ns(), "");
    assert!(matches!(scanner.next(&mut input), Ok(Some(Event::Close))));
}

#[test]
fn the_header_is_read_like_an_element() {
    let mut scanner = Scanner::new(Limits::default());
    let mut input =
        "<?xml version='1.0'?><s:stream xmlns:s='urn:s' xmlns='urn:&amp;' from='a&amp;b' xml:lang='de'>"
            .as_bytes();
    let Ok(Some(Event::Open(header))) = scanner.next(&mut input) else { panic!("a header") };
    let root = header.root();
    assert!(root.is("urn:s", "stream"));
    assert_eq!(root.attr("from").as_deref(), Some("a&b"));
    assert_eq!(root.attr_ns(XML_NS, "lang").as_deref(), Some("de"));
    assert_eq!(header.default_ns(), "urn:&");
    assert_eq!(root.children().count(), 0);
    let mut input = &b"<x/>"[..];
    let Ok(Some(Event::Element(element))) = scanner.next(&mut input) else { panic!("an element") };
    assert_eq!(element.root().ns(), "urn:&");
}
