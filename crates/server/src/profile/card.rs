//! What the same means in a vCard of XEP-0054 and in one of XEP-0292 (vCard4, RFC 6351): THE TABLE of properties, and how
//! a change of one card is carried over to the other.
//!
//! A property that was carried over before and is the same still stays as it was written on that side; what only one side
//! knows stays there. So a client of one kind does not wear off what one of the other kind has written.

use std::collections::{BTreeSet, HashMap, VecDeque};

use trunkline_xml::{Element, Node, Writer};
use trunkline_xmpp::ns;

/// What declarations around the properties of a card may add to them, beside as much as it has bytes.
const MOST_ADDED: usize = 4096;

/// A card can't be written again: what is declared once in it would be written too many times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("With what is declared around them the properties of this card are too long.")]
pub struct TooLong;

/// The properties of a card, each with the elements that say it, in their order.
type Known = HashMap<Property, VecDeque<Vec<u8>>>;

/// One property, on both sides.
struct Row {
    old: &'static str,
    new: &'static str,
    shape: Shape,
}

/// How its value is written.
#[derive(Clone, Copy)]
enum Shape {
    /// `<TITLE>x</TITLE>`, `<title><text>x</text></title>`
    Plain(&'static str),
    /// `<EMAIL><USERID>x</USERID></EMAIL>`, `<email><text>x</text></email>`
    Within(&'static str),
    /// `<TEL><NUMBER>x</NUMBER></TEL>`, `<tel><uri>tel:x</uri></tel>`
    Number(&'static str),
    /// `<JABBERID>x</JABBERID>`, `<impp><uri>xmpp:x</uri></impp>`
    Address(&'static str),
    /// Named parts.
    Parts(&'static [(&'static str, &'static str)]),
    /// `<ORG><ORGNAME>x</ORGNAME><ORGUNIT>y</ORGUNIT></ORG>`, `<org><text>x</text><text>y</text></org>`
    List(&'static str, &'static str),
    /// `<GEO><LAT>x</LAT><LON>y</LON></GEO>`, `<geo><uri>geo:x,y</uri></geo>`
    Place,
}

const fn row(old: &'static str, new: &'static str, shape: Shape) -> Row {
    Row { old, new, shape }
}

const TABLE: &[Row] = &[
    row("FN", "fn", Shape::Plain("text")),
    row(
        "N",
        "n",
        Shape::Parts(&[
            ("FAMILY", "surname"),
            ("GIVEN", "given"),
            ("MIDDLE", "additional"),
            ("PREFIX", "prefix"),
            ("SUFFIX", "suffix"),
        ]),
    ),
    row("NICKNAME", "nickname", Shape::Plain("text")),
    row("BDAY", "bday", Shape::Plain("date")),
    row(
        "ADR",
        "adr",
        Shape::Parts(&[
            ("POBOX", "pobox"),
            ("EXTADD", "ext"),
            ("STREET", "street"),
            ("LOCALITY", "locality"),
            ("REGION", "region"),
            ("PCODE", "code"),
            ("CTRY", "country"),
        ]),
    ),
    row("TEL", "tel", Shape::Number("NUMBER")),
    row("EMAIL", "email", Shape::Within("USERID")),
    row("JABBERID", "impp", Shape::Address("xmpp:")),
    row("URL", "url", Shape::Plain("uri")),
    row("TITLE", "title", Shape::Plain("text")),
    row("ROLE", "role", Shape::Plain("text")),
    row("ORG", "org", Shape::List("ORGNAME", "ORGUNIT")),
    row("CATEGORIES", "categories", Shape::List("KEYWORD", "KEYWORD")),
    row("TZ", "tz", Shape::Plain("text")),
    row("GEO", "geo", Shape::Place),
    row("NOTE", "note", Shape::Plain("text")),
    // XEP-0292 s.10: what is called so in the old card only. Back it goes as a note.
    row("DESC", "note", Shape::Plain("text")),
];

/// What an address or a number is for; `PREF` is no type but a parameter of its own (RFC 6350 s.5.3).
const TYPES: &[(&str, &str)] = &[
    ("HOME", "home"),
    ("WORK", "work"),
    ("VOICE", "voice"),
    ("FAX", "fax"),
    ("PAGER", "pager"),
    ("MSG", "text"),
    ("CELL", "cell"),
    ("VIDEO", "video"),
];
/// Elements that hold a single value in a vCard4.
const VALUES: &[&str] = &["text", "uri", "date", "date-time", "date-and-or-time", "utc-offset"];

/// A property as it means the same in both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Property {
    /// Its name in a vCard4.
    name: &'static str,
    /// By the order of the shape's parts.
    values: Vec<String>,
    types: BTreeSet<&'static str>,
    preferred: bool,
}

impl Property {
    fn read_old(node: Node<'_>) -> Option<Property> {
        let row = TABLE.iter().find(|row| node.is(ns::VCARD, row.old))?;
        let part = |name: &str| node.child(ns::VCARD, name).map(text).unwrap_or_default();
        let values = match row.shape {
            Shape::Plain(_) | Shape::Address(_) => vec![text(node)],
            Shape::Within(name) | Shape::Number(name) => vec![part(name)],
            Shape::Parts(parts) => parts.iter().map(|(old, _)| part(old)).collect(),
            Shape::List(first, rest) => {
                let named = |child: &Node<'_>| child.is(ns::VCARD, first) || child.is(ns::VCARD, rest);
                node.children().filter(named).map(text).filter(|text| !text.is_empty()).collect()
            }
            Shape::Place => vec![part("LAT"), part("LON")],
        };
        let typed = matches!(row.shape, Shape::Within(_) | Shape::Number(_)) || row.old == "ADR";
        let has = |name: &str| typed && node.child(ns::VCARD, name).is_some();
        Property {
            name: row.new,
            values,
            types: TYPES.iter().filter(|(old, _)| has(old)).map(|(_, new)| *new).collect(),
            preferred: has("PREF"),
        }
        .filled()
    }

    fn read_new(node: Node<'_>) -> Option<Property> {
        let row = TABLE.iter().find(|row| node.is(ns::VCARD4, row.new))?;
        let single = || {
            let value = node.children().find(|child| VALUES.iter().any(|name| child.is(ns::VCARD4, name)));
            value.map(text).unwrap_or_default()
        };
        let values = match row.shape {
            Shape::Plain(_) | Shape::Within(_) => vec![single()],
            Shape::Number(_) => {
                let value = single();
                vec![value.strip_prefix("tel:").unwrap_or(&value).to_owned()]
            }
            Shape::Address(scheme) => vec![single().strip_prefix(scheme)?.to_owned()],
            Shape::Parts(parts) => {
                let part = |name: &str| {
                    // RFC 6351 s.3.2: a part may have several values.
                    let all = node.children().filter(|child| child.is(ns::VCARD4, name)).map(text);
                    all.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ")
                };
                parts.iter().map(|(_, new)| part(new)).collect()
            }
            Shape::List(..) => {
                let texts = node.children().filter(|child| child.is(ns::VCARD4, "text"));
                texts.map(text).filter(|text| !text.is_empty()).collect()
            }
            Shape::Place => {
                let value = single();
                let (lat, lon) = value.strip_prefix("geo:")?.split_once(',')?;
                vec![lat.to_owned(), lon.split([',', ';']).next().unwrap_or_default().to_owned()]
            }
        };
        let parameters = || node.children().filter(|child| child.is(ns::VCARD4, "parameters"));
        let words: Vec<String> = parameters()
            .flat_map(Node::children)
            .filter(|parameter| parameter.is(ns::VCARD4, "type"))
            .flat_map(Node::children)
            .map(|word| text(word).to_ascii_lowercase())
            .collect();
        let typed = matches!(row.shape, Shape::Within(_) | Shape::Number(_)) || row.old == "ADR";
        let preferred = parameters().any(|all| all.child(ns::VCARD4, "pref").is_some());
        let types = TYPES.iter().map(|(_, new)| *new);
        Property {
            name: row.new,
            values,
            types: types.filter(|new| typed && words.iter().any(|word| word == new)).collect(),
            preferred: typed && preferred,
        }
        .filled()
    }

    /// `None`: there is no value.
    fn filled(self) -> Option<Property> {
        self.values.iter().any(|value| !value.is_empty()).then_some(self)
    }

    fn row(&self) -> Option<&'static Row> {
        TABLE.iter().find(|row| row.new == self.name)
    }

    fn write_old(&self, w: &mut Writer) {
        let Some(row) = self.row() else { return };
        let value = self.values.first().map_or("", String::as_str);
        w.open(row.old);
        for (old, new) in TYPES {
            if self.types.contains(new) {
                w.empty(old);
            }
        }
        if matches!(row.shape, Shape::Within(_)) {
            w.empty("INTERNET");
        }
        if self.preferred {
            w.empty("PREF");
        }
        let mut part = |name: &str, value: &str| {
            if !value.is_empty() {
                w.text_element(name, value);
            }
        };
        match row.shape {
            Shape::Plain(_) | Shape::Address(_) => {
                w.text(value);
            }
            Shape::Within(name) | Shape::Number(name) => part(name, value),
            Shape::Parts(parts) => {
                parts.iter().zip(&self.values).for_each(|((old, _), value)| part(old, value));
            }
            Shape::List(first, rest) => {
                let names = std::iter::once(first).chain(std::iter::repeat(rest));
                names.zip(&self.values).for_each(|(name, value)| part(name, value));
            }
            Shape::Place => {
                ["LAT", "LON"].iter().zip(&self.values).for_each(|(name, value)| part(name, value))
            }
        }
        w.close();
    }

    fn write_new(&self, w: &mut Writer) {
        let Some(row) = self.row() else { return };
        let value = self.values.first().map_or("", String::as_str);
        w.open(row.new);
        if !self.types.is_empty() || self.preferred {
            w.open("parameters");
            if !self.types.is_empty() {
                w.open("type");
                self.types.iter().for_each(|name| {
                    w.text_element("text", name);
                });
                w.close();
            }
            if self.preferred {
                w.open("pref").text_element("integer", "1").close();
            }
            w.close();
        }
        match row.shape {
            Shape::Plain(kind) => {
                w.text_element(kind, value);
            }
            Shape::Within(_) => {
                w.text_element("text", value);
            }
            // RFC 3966 s.3: digits and visual separators; what else people write is no URI.
            Shape::Number(_) if value.chars().all(|c| c.is_ascii_digit() || "+-.()*#".contains(c)) => {
                w.text_element("uri", &format!("tel:{value}"));
            }
            Shape::Number(_) => {
                w.text_element("text", value);
            }
            Shape::Address(scheme) => {
                w.text_element("uri", &format!("{scheme}{value}"));
            }
            Shape::Parts(parts) => parts.iter().zip(&self.values).for_each(|((_, new), value)| {
                // RFC 6351 s.5: the parts of a name and of an address are all there.
                w.text_element(new, value);
            }),
            Shape::List(..) => self.values.iter().for_each(|value| {
                w.text_element("text", value);
            }),
            Shape::Place => {
                w.text_element("uri", &format!("geo:{}", self.values.join(",")));
            }
        }
        w.close();
    }
}

fn text(node: Node<'_>) -> String {
    node.text().trim().to_owned()
}

/// Bytes that the elements of a card may have with all that is declared around them.
fn most_of(card: Option<&Element>) -> usize {
    card.map_or(0, |card| 2 * card.bytes().len() + MOST_ADDED)
}

fn taken(known: &mut Known, property: &Property) -> Option<Vec<u8>> {
    known.get_mut(property)?.pop_front()
}

/// A card of XEP-0054 that says what the vCard4 says; what only `old` can say stays. `new`: `None` is an empty one.
///
/// # Errors
/// `old` can't be written again.
pub fn to_old(old: Option<&[u8]>, new: Option<&[u8]>) -> Result<Vec<u8>, TooLong> {
    let (old, new) = (parsed(old), parsed(new));
    let mut left = most_of(old.as_ref());
    let mut before = Known::new();
    let mut rest = Vec::new();
    let mut w = Writer::new();
    w.open("vCard").attr("xmlns", ns::VCARD);
    if let Some(old) = &old {
        for attr in old.root().attrs().filter(|attr| attr.ns().is_empty()) {
            w.attr(attr.name(), &attr.value());
        }
        for child in old.root().children() {
            match Property::read_old(child) {
                Some(property) => {
                    let raw = child.to_standalone_within(ns::VCARD, &mut left).ok_or(TooLong)?;
                    before.entry(property).or_default().push_back(raw);
                }
                // Known and empty.
                None if TABLE.iter().any(|row| child.is(ns::VCARD, row.old)) => {}
                None => rest.push(child.to_standalone_within(ns::VCARD, &mut left).ok_or(TooLong)?),
            }
        }
    }
    for child in new.iter().flat_map(|new| new.root().children()) {
        let Some(property) = Property::read_new(child) else { continue };
        match taken(&mut before, &property) {
            Some(raw) => {
                w.raw(&raw);
            }
            None => property.write_old(&mut w),
        }
    }
    rest.iter().for_each(|raw| {
        w.raw(raw);
    });
    w.close();
    Ok(w.finish())
}

/// A vCard4 that says what the card of XEP-0054 says; what only `new` can say stays. The picture is not in it: it has
/// nodes of its own (XEP-0084).
///
/// # Errors
/// `new` can't be written again.
pub fn to_new(old: Option<&[u8]>, new: Option<&[u8]>) -> Result<Vec<u8>, TooLong> {
    let (old, new) = (parsed(old), parsed(new));
    let mut left = most_of(new.as_ref());
    let mut before = Known::new();
    let mut rest = Vec::new();
    for child in new.iter().flat_map(|new| new.root().children()) {
        let raw = child.to_standalone_within(ns::VCARD4, &mut left).ok_or(TooLong)?;
        match Property::read_new(child) {
            Some(property) => before.entry(property).or_default().push_back(raw),
            None => rest.push(raw),
        }
    }
    let mut w = Writer::new();
    w.open("vcard").attr("xmlns", ns::VCARD4);
    for child in old.iter().flat_map(|old| old.root().children()) {
        let Some(property) = Property::read_old(child) else { continue };
        match taken(&mut before, &property) {
            Some(raw) => {
                w.raw(&raw);
            }
            None => property.write_new(&mut w),
        }
    }
    rest.iter().for_each(|raw| {
        w.raw(raw);
    });
    w.close();
    Ok(w.finish())
}

/// The card with another picture, or with none.
///
/// # Errors
/// It can't be written again.
pub fn with_photo(old: Option<&[u8]>, photo: Option<&super::avatar::Image>) -> Result<Vec<u8>, TooLong> {
    rewritten(old, |child| !child.is(ns::VCARD, "PHOTO"), photo)
}

/// The card without what is not for everybody.
///
/// # Errors
/// It can't be written again.
pub fn shown(old: &[u8], (fields, photo): (bool, bool)) -> Result<Vec<u8>, TooLong> {
    let keep = |child: Node<'_>| if child.is(ns::VCARD, "PHOTO") { photo } else { fields };
    rewritten(Some(old), keep, None)
}

fn rewritten(
    old: Option<&[u8]>,
    keep: impl Fn(Node<'_>) -> bool,
    photo: Option<&super::avatar::Image>,
) -> Result<Vec<u8>, TooLong> {
    let old = parsed(old);
    let mut left = most_of(old.as_ref());
    let mut w = Writer::new();
    w.open("vCard").attr("xmlns", ns::VCARD);
    if let Some(old) = &old {
        for attr in old.root().attrs().filter(|attr| attr.ns().is_empty()) {
            w.attr(attr.name(), &attr.value());
        }
        for child in old.root().children().filter(|child| keep(*child)) {
            w.raw(&child.to_standalone_within(ns::VCARD, &mut left).ok_or(TooLong)?);
        }
    }
    if let Some(photo) = photo {
        w.open("PHOTO")
            .text_element("TYPE", photo.media_type)
            .text_element("BINVAL", &photo.base64())
            .close();
    }
    w.close();
    Ok(w.finish())
}

/// There is something in the card.
pub fn is_empty(card: &[u8]) -> bool {
    parsed(Some(card)).is_none_or(|card| card.root().children().next().is_none())
}

/// What the server has kept itself can be read.
fn parsed(card: Option<&[u8]>) -> Option<Element> {
    Element::parse(card?.to_vec(), ns::CLIENT).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn str(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    const OLD: &str = "<vCard xmlns='vcard-temp'><FN>Peter Saint-Andre</FN>\
        <N><FAMILY>Saint-Andre</FAMILY><GIVEN>Peter</GIVEN><MIDDLE/></N><NICKNAME>stpeter</NICKNAME>\
        <BDAY>1966-08-06</BDAY><ADR><WORK/><EXTADD>Suite 600</EXTADD><LOCALITY>Denver</LOCALITY><CTRY>USA</CTRY></ADR>\
        <TEL><WORK/><VOICE/><PREF/><NUMBER>+1-303-308-3282</NUMBER></TEL><TEL><HOME/><NUMBER>0170 2</NUMBER></TEL>\
        <EMAIL><INTERNET/><HOME/><USERID>a&amp;b@jabber.org</USERID></EMAIL><JABBERID>stpeter@jabber.org</JABBERID>\
        <URL>https://stpeter.im/</URL><TITLE>Director</TITLE><ROLE>Saint</ROLE>\
        <ORG><ORGNAME>XSF</ORGNAME><ORGUNIT>Board</ORGUNIT></ORG><CATEGORIES><KEYWORD>x</KEYWORD><KEYWORD>y</KEYWORD></CATEGORIES>\
        <TZ>-06:00</TZ><GEO><LAT>39.59</LAT><LON>-105.01</LON></GEO><DESC>More.</DESC><FN/><MAILER>old</MAILER></vCard>";
    const NEW: &str = "<vcard xmlns='urn:ietf:params:xml:ns:vcard-4.0'><fn><text>Peter Saint-Andre</text></fn>\
        <n><surname>Saint-Andre</surname><given>Peter</given><additional/><prefix/><suffix/></n>\
        <nickname><text>stpeter</text></nickname><bday><date>1966-08-06</date></bday>\
        <adr><parameters><type><text>work</text></type></parameters><pobox/><ext>Suite 600</ext><street/>\
        <locality>Denver</locality><region/><code/><country>USA</country></adr>\
        <tel><parameters><type><text>voice</text><text>work</text></type><pref><integer>1</integer></pref></parameters>\
        <uri>tel:+1-303-308-3282</uri></tel>\
        <tel><parameters><type><text>home</text></type></parameters><text>0170 2</text></tel>\
        <email><parameters><type><text>home</text></type></parameters><text>a&amp;b@jabber.org</text></email>\
        <impp><uri>xmpp:stpeter@jabber.org</uri></impp><url><uri>https://stpeter.im/</uri></url>\
        <title><text>Director</text></title><role><text>Saint</text></role><org><text>XSF</text><text>Board</text></org>\
        <categories><text>x</text><text>y</text></categories><tz><text>-06:00</text></tz>\
        <geo><uri>geo:39.59,-105.01</uri></geo><note><text>More.</text></note></vcard>";

    #[test]
    fn what_both_know_goes_both_ways() {
        assert_eq!(str(to_new(Some(OLD.as_bytes()), None).unwrap()), NEW);
        let back = str(to_old(None, Some(NEW.as_bytes())).unwrap());
        // Every property of the table is in it, and comes back the same.
        for row in TABLE.iter().filter(|row| row.old != "DESC") {
            assert!(back.contains(&format!("<{}>", row.old)), "{} in {back}", row.old);
            assert!(NEW.contains(&format!("<{}>", row.new)), "{}", row.new);
        }
        assert_eq!(str(to_new(Some(back.as_bytes()), None).unwrap()), NEW);
    }

    #[test]
    fn what_one_side_knows_stays_there_as_it_was_written() {
        // As it was: MAILER, DESC and the empty part of the name too.
        let same = str(to_old(Some(OLD.as_bytes()), Some(NEW.as_bytes())).unwrap());
        assert_eq!(same, OLD.replace("<FN/>", ""));
        let written = NEW
            .replace("<fn>", "<fn x='1'>")
            .replace("</vcard>", "<gender><sex>M</sex></gender><impp><uri>sip:p@x</uri></impp></vcard>");
        // What is the same still keeps its attribute; what only the vCard4 knows is at its end.
        assert_eq!(str(to_new(Some(OLD.as_bytes()), Some(written.as_bytes())).unwrap()), written);
        let other = OLD
            .replace("<FN>Peter Saint-Andre</FN>", "<FN>Peter</FN>")
            .replace("<TITLE>Director</TITLE>", "");
        let carried = str(to_new(Some(other.as_bytes()), Some(written.as_bytes())).unwrap());
        assert!(
            carried.contains("<fn><text>Peter</text></fn>") && !carried.contains("Director"),
            "{carried}"
        );
        assert!(carried.contains("<gender>") && carried.contains("sip:p@x"), "{carried}");
    }

    #[test]
    fn a_picture_is_put_in_taken_out_and_hidden() {
        let image = super::super::avatar::Image::read("R0lGODlhAQABAA==").unwrap();
        let before = b"<vCard xmlns='vcard-temp' version='3.0'><FN>x</FN><PHOTO/></vCard>";
        let with = str(with_photo(Some(before), Some(&image)).unwrap());
        assert_eq!(
            with,
            "<vCard xmlns='vcard-temp' version='3.0'><FN>x</FN>\
             <PHOTO><TYPE>image/gif</TYPE><BINVAL>R0lGODlhAQABAA==</BINVAL></PHOTO></vCard>"
        );
        let without = "<vCard xmlns='vcard-temp' version='3.0'><FN>x</FN></vCard>";
        assert_eq!(str(with_photo(Some(with.as_bytes()), None).unwrap()), without);
        let shown = |what| shown(with.as_bytes(), what).unwrap();
        assert_eq!(str(shown((true, false))), without);
        assert!(!str(shown((false, true))).contains("<FN>"));
        assert!(is_empty(&shown((false, false))) && !is_empty(with.as_bytes()));
    }

    #[test]
    fn what_is_declared_once_is_not_multiplied() {
        let card = |(root, ns): (&str, &str), long: usize, child: &str| {
            let (long, children) = ("u".repeat(long), child.repeat(1000));
            format!("<{root} xmlns='{ns}' xmlns:a='{long}'>{children}</{root}>").into_bytes()
        };
        let (old, new) = (("vCard", ns::VCARD), ("vcard", ns::VCARD4));
        let texts = ["<a:x/>", "<FN a:x=''>x</FN>", "<fn a:x=''><text>x</text></fn>"];
        let [own, of_old, of_new] = texts;
        for child in [own, of_old] {
            let bad = card(old, 10_000, child);
            assert_eq!(to_old(Some(&bad), None), Err(TooLong), "{child}");
            assert_eq!(with_photo(Some(&bad), None), Err(TooLong), "{child}");
            assert_eq!(shown(&bad, (true, false)), Err(TooLong), "{child}");
        }
        for child in [own, of_new] {
            assert_eq!(to_new(None, Some(&card(new, 10_000, child))), Err(TooLong), "{child}");
        }
        // What is not shown counts nothing, and a few declarations are none too many.
        assert!(shown(&card(old, 10_000, own), (false, true)).is_ok());
        assert!(to_new(None, Some(&card(new, 10, of_new))).is_ok());
        assert!(to_old(Some(&card(old, 5, of_old)), None).is_ok());
    }

    #[test]
    fn what_is_there_several_times_stays_in_its_order() {
        let old = "<vCard xmlns='vcard-temp'><NOTE n='1'>x</NOTE><NOTE n='2'>x</NOTE></vCard>";
        let new = "<vcard xmlns='urn:ietf:params:xml:ns:vcard-4.0'><note><text>x</text></note>\
            <note><text>x</text></note><note><text>x</text></note></vcard>";
        assert_eq!(
            str(to_old(Some(old.as_bytes()), Some(new.as_bytes())).unwrap()),
            old.replace("</vCard>", "<NOTE>x</NOTE></vCard>")
        );
    }

    #[test]
    fn nonsense_is_no_card() {
        for text in ["", "<", "<vCard xmlns='vcard-temp'>", "\u{0}"] {
            assert!(is_empty(text.as_bytes()));
            assert_eq!(
                str(to_new(Some(text.as_bytes()), None).unwrap()),
                "<vcard xmlns='urn:ietf:params:xml:ns:vcard-4.0'/>"
            );
        }
    }
}
