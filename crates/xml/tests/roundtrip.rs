//! Properties: what is written is read, what is read is written, however the bytes are cut.

use proptest::collection::vec;
use proptest::prelude::*;
use trunkline_xml::{Element, Event, Limits, Node, Scanner, Writer};

/// An element to be: its namespace is declared where it differs from the parent's.
#[derive(Clone, Debug)]
struct Tree {
    name: String,
    ns: &'static str,
    attrs: Vec<(String, String)>,
    content: Vec<Content>,
}

#[derive(Clone, Debug)]
enum Content {
    Text(String),
    Child(Tree),
}

const NAMESPACES: &[&str] = &["jabber:client", "", "urn:xmpp:ping", "http://a.example/?b&c='d'"];

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z_éß你][a-zA-Z0-9_.é你-]{0,8}".prop_filter("reserved", |name| !name.starts_with("xml"))
}

/// Characters that XML 1.0 has a place for, special ones often.
fn text() -> impl Strategy<Value = String> {
    let character = prop_oneof![
        4 => prop::char::range(' ', '~'),
        2 => prop::sample::select(vec!['<', '>', '&', '\'', '"', '\t', '\n', '\r', ']', ';', '#', ' ']),
        1 => prop::char::range('\u{80}', '\u{D7FF}'),
        1 => prop::char::range('\u{E000}', '\u{FFFD}'),
        1 => prop::char::range('\u{10000}', '\u{10FFFF}'),
    ];
    vec(character, 0..20).prop_map(String::from_iter)
}

fn tree() -> impl Strategy<Value = Tree> {
    let element = |content: BoxedStrategy<Vec<Content>>| {
        (name(), prop::sample::select(NAMESPACES), vec((name(), text()), 0..4), content).prop_map(
            |(name, ns, mut attrs, content)| {
                attrs.sort();
                attrs.dedup_by(|a, b| a.0 == b.0);
                Tree { name, ns, attrs, content }
            },
        )
    };
    let leaf = element(text().prop_map(|text| vec![Content::Text(text)]).boxed());
    leaf.prop_recursive(6, 40, 5, move |inner| {
        let content = prop_oneof![text().prop_map(Content::Text), inner.prop_map(Content::Child)];
        element(vec(content, 0..5).boxed())
    })
}

fn write(tree: &Tree, outer: &str, w: &mut Writer) {
    w.open(&tree.name);
    if tree.ns != outer {
        w.attr("xmlns", tree.ns);
    }
    for (name, value) in &tree.attrs {
        w.attr(name, value);
    }
    for content in &tree.content {
        match content {
            Content::Text(text) => _ = w.text(text),
            Content::Child(child) => write(child, tree.ns, w),
        }
    }
    w.close();
}

/// Writes an element again, from what the cursor says about it.
fn rewrite(node: Node<'_>, w: &mut Writer) {
    w.open(node.name());
    for declaration in node.ns_decls() {
        w.attr("xmlns", &declaration.uri());
    }
    for attr in node.attrs() {
        w.attr(attr.name(), &attr.value());
    }
    let raw = |range: std::ops::Range<usize>| {
        &node.raw()[range.start - node.range().start..range.end - node.range().start]
    };
    let mut from = node.inner_range().start;
    for child in node.children() {
        w.raw(raw(from..child.range().start));
        rewrite(child, w);
        from = child.range().end;
    }
    w.raw(raw(from..node.inner_range().end));
    w.close();
}

fn check(node: Node<'_>, tree: &Tree) {
    assert!(node.is(tree.ns, &tree.name));
    assert_eq!(node.ns(), tree.ns);
    for (name, value) in &tree.attrs {
        assert_eq!(node.attr(name).as_deref(), Some(value.as_str()));
    }
    assert_eq!(node.attrs().count(), tree.attrs.len());
    let text: String = tree
        .content
        .iter()
        .filter_map(|c| if let Content::Text(text) = c { Some(&**text) } else { None })
        .collect();
    assert_eq!(node.text(), text);
    let children =
        tree.content.iter().filter_map(|c| if let Content::Child(child) = c { Some(child) } else { None });
    assert_eq!(node.children().count(), children.clone().count());
    for (node, child) in node.children().zip(children) {
        check(node, child);
    }
}

fn elements(input: &[u8], cuts: &[usize]) -> Vec<Element> {
    let mut scanner = Scanner::new(Limits::default());
    let mut found = Vec::new();
    let mut from = 0;
    for cut in cuts.iter().copied().chain([input.len()]) {
        let mut chunk = &input[from..cut.max(from)];
        from = cut.max(from);
        while let Some(event) = scanner.next(&mut chunk).expect("well-formed") {
            if let Event::Element(element) = event {
                found.push(element);
            }
        }
    }
    found
}

proptest! {
    #[test]
    fn what_is_written_is_read(tree in tree()) {
        let mut w = Writer::new();
        write(&tree, "jabber:client", &mut w);
        let bytes = w.finish();
        let element = Element::parse(bytes.clone(), "jabber:client").expect("well-formed");
        check(element.root(), &tree);
        let mut w = Writer::new();
        rewrite(element.root(), &mut w);
        prop_assert_eq!(w.finish(), bytes);
    }

    #[test]
    fn cuts_make_no_difference(trees in vec(tree(), 1..4), mut cuts in vec(0..2000usize, 0..8)) {
        let mut w = Writer::new();
        w.open("s").attr("xmlns", "jabber:client").raw(b" ");
        for tree in &trees {
            write(tree, "jabber:client", &mut w);
        }
        let bytes = w.finish();
        cuts.retain(|cut| *cut < bytes.len());
        cuts.sort_unstable();
        let whole = elements(&bytes, &[]);
        prop_assert_eq!(whole.len(), trees.len());
        prop_assert_eq!(&elements(&bytes, &cuts), &whole);
        for (element, tree) in whole.iter().zip(&trees) {
            check(element.root(), tree);
        }
        let joined: Vec<u8> = whole.iter().flat_map(|element| element.bytes().to_vec()).collect();
        let (header, close) = (b"<s xmlns='jabber:client'> ".len(), b"</s>".len());
        prop_assert_eq!(&joined[..], &bytes[header..bytes.len() - close]);
    }

    #[test]
    fn every_node_stands_alone(tree in tree(), default in prop::sample::select(NAMESPACES)) {
        let mut w = Writer::new();
        write(&tree, "jabber:client", &mut w);
        let element = Element::parse(w.into_bytes(), "jabber:client").expect("well-formed");
        for node in element.root().descendants() {
            let alone = Element::parse(node.to_standalone(default), default).expect("well-formed");
            let same = |a: Node<'_>, b: Node<'_>| {
                (a.ns(), a.name(), a.text(), a.attrs().count()) == (b.ns(), b.name(), b.text(), b.attrs().count())
            };
            prop_assert!(same(node, alone.root()));
            prop_assert!(node.descendants().zip(alone.root().descendants()).all(|(a, b)| same(a, b)));
        }
    }
}

/// Every prefix of a stream, then the rest: the same elements as in one piece.
#[test]
fn every_split() {
    let stream = "<?xml version='1.0'?>\n<s:s xmlns:s='urn:s' xmlns='jabber:client'><a b='&lt;\u{e9}'>\u{4f60}&#x41;\
        <![CDATA[]]]]>]<s:c xmlns:d='e' d:f=\"'\"/>\r\n</a > <b/></s:s>";
    let whole = elements(stream.as_bytes(), &[]);
    assert_eq!(whole.len(), 2);
    for first in 0..stream.len() {
        for second in first..stream.len() {
            assert_eq!(elements(stream.as_bytes(), &[first, second]), whole, "{first} {second}");
        }
    }
}
