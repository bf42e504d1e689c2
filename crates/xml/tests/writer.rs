//! The writer.

use proptest::prelude::*;
use trunkline_xml::{Element, Writer, escape_attr, escape_text};

#[test]
fn writes_elements() {
    let mut w = Writer::new();
    w.open("iq").attr("type", "get").attr_opt("id", Some("1")).attr_opt("to", None::<&str>);
    w.empty("a").attr("b", "<'\">&").empty("c");
    w.text_element("d", "<&>").open("e").raw(b"<f/>").text("").close();
    w.open("g").text("x").empty("h").attr("i", "");
    assert_eq!(
        String::from_utf8(w.finish()).unwrap(),
        "<iq type='get' id='1'><a b='&lt;&apos;&quot;&gt;&amp;'/><c/><d>&lt;&amp;&gt;</d><e><f/></e><g>x<h i=''/></g></iq>"
    );
}

#[test]
fn appends_to_a_buffer() {
    let mut w = Writer::with_buf(b"<a/>".to_vec());
    w.open("stream:stream").raw_attrs(b"xmlns='x'").raw_attrs(b"").attr("to", "y");
    assert_eq!(w.finish_header(), b"<a/><stream:stream xmlns='x' to='y'>");
}

#[test]
fn escapes() {
    assert_eq!(escape_text("a'b\"c\td\ne"), "a'b\"c\td\ne");
    assert_eq!(escape_text("]]>\r"), "]]&gt;&#13;");
    assert_eq!(escape_attr("a'b\"c\td\ne\r"), "a&apos;b&quot;c&#9;d&#10;e&#13;");
    assert_eq!(
        escape_text("\0\u{1}\u{FFFE}\u{FFFF}\u{FEFF}\u{F000}"),
        "\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}\u{FEFF}\u{F000}"
    );
    assert!(matches!(escape_text("plain \u{e9}"), std::borrow::Cow::Borrowed(_)));
}

proptest! {
    #[test]
    fn what_is_written_is_read(text in any::<String>(), value in any::<String>()) {
        let legal = |text: &str| {
            text.replace(|c: char| matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}'), "\u{fffd}")
        };
        let mut w = Writer::new();
        w.open("a").attr("b", &value).text(&text);
        let element = Element::parse(w.into_bytes(), "").unwrap();
        prop_assert_eq!(element.root().text(), legal(&text));
        prop_assert_eq!(element.root().attr("b").unwrap(), legal(&value));
    }
}
