//! The cursor over an element.

use std::borrow::Cow;

use trunkline_xml::{Element, Event, Limits, Scanner, XML_NS};

fn parse(xml: &str) -> Element {
    Element::parse(xml.as_bytes().to_vec(), "jabber:client").expect("an element")
}

/// The first element of a stream with this header.
fn in_stream(header: &str, xml: &str) -> Element {
    let mut scanner = Scanner::new(Limits::default());
    assert!(matches!(scanner.next(&mut header.as_bytes()), Ok(Some(Event::Open(_)))));
    match scanner.next(&mut xml.as_bytes()) {
        Ok(Some(Event::Element(element))) => element,
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_and_namespaces() {
    let element = parse(
        "<message><body>x</body><x:y xmlns:x='urn:x' xmlns='urn:d'><z/><x:w/></x:y><v xmlns=''/></message>",
    );
    let root = element.root();
    assert!(root.is("jabber:client", "message"));
    let all: Vec<_> = root.children().map(|node| (node.prefix(), node.name(), node.ns())).collect();
    assert_eq!(all, [("", "body", "jabber:client"), ("x", "y", "urn:x"), ("", "v", "")]);
    let inner: Vec<_> =
        root.child("urn:x", "y").unwrap().children().map(|node| (node.name(), node.ns())).collect();
    assert_eq!(inner, [("z", "urn:d"), ("w", "urn:x")]);
    assert_eq!(root.first_child().unwrap().text(), "x");
    assert!(root.child("jabber:client", "bod").is_none());
    assert!(root.child("jabber:server", "body").is_none());
    assert!(root.first_child().unwrap().first_child().is_none());
    assert_eq!(element.node_count(), 6);
}

#[test]
fn attributes() {
    let element =
        parse("<a b='1' xmlns:x='urn:x' x:b=\"2'\" xml:lang='en' c = '&lt;\t\r\n&#10;&#xe9;' xmlns='y'/>");
    let root = element.root();
    assert_eq!(root.attr("b").as_deref(), Some("1"));
    assert!(matches!(root.attr("b"), Some(Cow::Borrowed(_))));
    assert_eq!(root.attr_ns("urn:x", "b").as_deref(), Some("2'"));
    assert_eq!(root.attr_ns(XML_NS, "lang").as_deref(), Some("en"));
    assert_eq!(root.attr_ns("", "b").as_deref(), Some("1"));
    assert_eq!(root.attr("c").as_deref(), Some("<  \n\u{e9}"));
    assert_eq!(root.attr("lang"), None);
    assert_eq!(root.attr("xmlns"), None);
    let raw: Vec<_> = root.attrs().map(|attr| String::from_utf8_lossy(attr.raw()).into_owned()).collect();
    assert_eq!(raw, ["b='1'", "x:b=\"2'\"", "xml:lang='en'", "c = '&lt;\t\r\n&#10;&#xe9;'"]);
    let decls: Vec<_> = root.ns_decls().map(|decl| (decl.prefix(), decl.uri().into_owned())).collect();
    assert_eq!(decls, [(Some("x"), "urn:x".to_owned()), (None, "y".to_owned())]);
}

#[test]
fn text() {
    let text = |xml: &str| parse(xml).root().text().into_owned();
    assert_eq!(text("<a/>"), "");
    assert_eq!(text("<a></a>"), "");
    assert_eq!(text("<a>x<b>y</b>z<c/></a>"), "xz");
    assert_eq!(text("<a>1 &lt; 2 &amp;&amp; &#x41;</a>"), "1 < 2 && A");
    assert_eq!(text("<a>x<![CDATA[<b>&amp;\r\n]]>y<![CDATA[]]></a>"), "x<b>&amp;\ny");
    assert_eq!(text("<a>\r\n\r&#13;\n</a>"), "\n\n\r\n");
    assert_eq!(text("<a><b>x</b><![CDATA[<b>]]></a>"), "<b>");
    let element = parse("<a>plain</a>");
    assert!(matches!(element.root().text(), Cow::Borrowed("plain")));
}

#[test]
fn bytes_are_as_they_came() {
    let xml = "<a  b = \"1\" ><!-- -->".replace("<!-- -->", "") + "x<c\n/>&#65;</a >";
    let element = parse(&xml);
    let root = element.root();
    assert_eq!(root.raw(), xml.as_bytes());
    assert_eq!(root.raw_inner(), b"x<c\n/>&#65;");
    assert_eq!(&element.bytes()[root.inner_range()], root.raw_inner());
    let child = root.first_child().unwrap();
    assert_eq!(child.raw(), b"<c\n/>");
    assert_eq!(child.raw_inner(), b"");
    assert_eq!(&element.bytes()[child.range()], child.raw());
}

#[test]
fn what_an_element_inherits_from_the_stream() {
    let header = "<s xmlns='jabber:server' xmlns:db='urn:db' xmlns:un='urn:un'>";
    let element = in_stream(header, "<db:result to='x'><un:a xmlns:un='other'/></db:result>");
    assert!(element.root().is("urn:db", "result"));
    assert_eq!(element.inherited().collect::<Vec<_>>(), [("db", "urn:db")]);
    let element = in_stream(header, "<a db:x='1'><b un:y='2' db:z='3'/></a>");
    assert_eq!(element.inherited().collect::<Vec<_>>(), [("db", "urn:db"), ("un", "urn:un")]);
    assert_eq!(element.root().attr_ns("urn:db", "x").as_deref(), Some("1"));
    let mapped = element.with_default_ns("jabber:client");
    assert!(mapped.root().child("jabber:client", "b").is_some());
    assert_eq!(mapped.inherited().count(), 2);
}

#[test]
fn standing_alone() {
    let header = "<s xmlns='jabber:client' xmlns:p='urn:&lt;p'>";
    let element = in_stream(
        header,
        "<m xmlns:q='urn:q'><p:a><b q:c='1'><d xmlns='urn:d' p:x='' xml:lang='de'/></b></p:a><e xmlns='urn:e'>&lt;</e></m>",
    );
    let mut children = element.root().children();
    let (a, e) = (children.next().unwrap(), children.next().unwrap());
    assert_eq!(
        String::from_utf8(a.to_standalone("jabber:client")).unwrap(),
        "<p:a xmlns:p='urn:&lt;p' xmlns:q='urn:q'><b q:c='1'><d xmlns='urn:d' p:x='' xml:lang='de'/></b></p:a>"
    );
    assert_eq!(
        String::from_utf8(a.to_standalone("")).unwrap(),
        "<p:a xmlns:p='urn:&lt;p' xmlns='jabber:client' xmlns:q='urn:q'><b q:c='1'><d xmlns='urn:d' p:x='' xml:lang='de'/></b></p:a>"
    );
    assert_eq!(e.to_standalone(""), b"<e xmlns='urn:e'>&lt;</e>");
    let alone = Element::parse(a.to_standalone("x"), "x").unwrap();
    assert!(alone.root().is("urn:<p", "a"));
    assert!(alone.root().child("jabber:client", "b").is_some());
}

#[test]
fn what_stands_alone_takes_its_room() {
    let xml = "<s xmlns:p=\"'''''\"><p:a/><p:a p:x=''/><b/></s>";
    let element = parse(xml);
    let children = || element.root().children();
    let whole: Vec<Vec<u8>> = children().map(|child| child.to_standalone("jabber:client")).collect();
    let bytes: usize = whole.iter().map(Vec::len).sum();
    let read = |mut room: usize| {
        let all: Option<Vec<_>> =
            children().map(|child| child.to_standalone_within("jabber:client", &mut room)).collect();
        (all, room)
    };
    assert_eq!(read(bytes), (Some(whole.clone()), 0));
    assert_eq!(read(bytes + 7), (Some(whole.clone()), 7));
    for room in 0..bytes {
        let (all, left) = read(room);
        assert!(all.is_none() && left <= room, "{room}");
    }
}

#[test]
fn a_declaration_ends_with_its_element() {
    let element = parse("<a><b xmlns:p='1'><c xmlns:p='2'><p:x/></c><p:y/></b><d xmlns:p='3' p:z=''/></a>");
    let b = element.root().first_child().unwrap();
    let namespaces: Vec<_> = b.children().map(|node| node.ns().to_owned()).collect();
    assert_eq!(namespaces, ["jabber:client", "1"]);
    assert_eq!(b.first_child().unwrap().first_child().unwrap().ns(), "2");
    assert_eq!(element.root().child("jabber:client", "d").unwrap().attr_ns("3", "z").as_deref(), Some(""));
}

#[test]
fn only_one_whole_element_parses() {
    for bad in [
        "",
        " ",
        "x",
        "<a>",
        "<a/> ",
        "<a/><b/>",
        "</a>",
        "<?xml version='1.0'?><a/>",
        "<!-- --><a/>",
        "<x:a/>",
    ] {
        assert!(Element::parse(bad.as_bytes().to_vec(), "").is_err(), "{bad}");
    }
}

#[test]
fn what_was_wrapped_still_parses() {
    let depth = 64;
    let peer = "<a>".repeat(depth) + &"</a>".repeat(depth);
    let wrapped = format!("<sent><forwarded>{peer}</forwarded></sent>");
    assert!(Element::parse(wrapped.into_bytes(), "").is_ok());
}
