use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

fn canon(s: &str) -> Result<String, JidError> {
    Jid::parse(s).map(|j| j.to_string())
}

/// RFC 7622 s.3.5, table 1, with what stringprep makes of each.
#[test]
fn rfc7622_valid() {
    for (number, input, expected) in [
        (1, "juliet@example.com", "juliet@example.com"),
        (2, "juliet@example.com/foo", "juliet@example.com/foo"),
        (3, "juliet@example.com/foo bar", "juliet@example.com/foo bar"),
        (4, "juliet@example.com/foo@bar", "juliet@example.com/foo@bar"),
        (5, "foo\\20bar@example.com", "foo\\20bar@example.com"),
        (6, "fussball@example.com", "fussball@example.com"),
        (7, "fußball@example.com", "fussball@example.com"),
        (8, "π@example.com", "π@example.com"),
        (9, "Σ@example.com/foo", "σ@example.com/foo"),
        (10, "ς@example.com/foo", "σ@example.com/foo"),
        (11, "king@example.com/♚", "king@example.com/♚"),
        (12, "example.com", "example.com"),
        (13, "example.com/foobar", "example.com/foobar"),
        (14, "a.example.com/b@example.net", "a.example.com/b@example.net"),
    ] {
        assert_eq!(canon(input).as_deref(), Ok(expected), "example {number}");
    }
}

/// RFC 7622 s.3.5, table 2. Three of them are addresses under RFC 6122, and must not become new accounts.
#[test]
fn rfc7622_invalid() {
    let prohibited = |part, ch| Err(JidError::Prohibited { part, ch });
    for (number, input, expected) in [
        (15, "\"juliet\"@example.com", prohibited(Part::Local, '"')),
        (16, "foo bar@example.com", prohibited(Part::Local, ' ')),
        (18, "@example.com/", Err(JidError::Empty(Part::Local))),
        (21, "juliet@", Err(JidError::Empty(Part::Domain))),
        (22, "/foobar", Err(JidError::Empty(Part::Domain))),
    ] {
        assert_eq!(canon(input), expected, "example {number}");
    }
    assert_eq!(canon("juliet@example.com/ foo").as_deref(), Ok("juliet@example.com/ foo"), "example 17");
    assert_eq!(canon("henryⅣ@example.com").as_deref(), Ok("henryiv@example.com"), "example 19");
    assert_eq!(canon("♚@example.com").as_deref(), Ok("♚@example.com"), "example 20");
    assert!(!Jid::new_local_part_ok("henryⅣ"));
    assert!(!Jid::new_local_part_ok("♚"));
}

#[test]
fn parts() {
    let jid = Jid::parse("Romeo@Montague.Example/Orchard/East@2").unwrap();
    assert_eq!(jid.as_str(), "romeo@montague.example/Orchard/East@2");
    assert_eq!(jid.local(), Some("romeo"));
    assert_eq!(jid.domain(), "montague.example");
    assert_eq!(jid.resource(), Some("Orchard/East@2"));
    assert_eq!(jid.bare_str(), "romeo@montague.example");
    assert_eq!(jid.bare(), "romeo@montague.example");
    assert_eq!(jid.bare().resource(), None);
    assert_eq!(jid.domain_jid(), "montague.example");
    assert_eq!(jid.domain_jid().local(), None);
    assert_eq!(jid.domain_jid().with_resource("x").unwrap(), "montague.example/x");
    assert_eq!(jid.bare().with_resource("Garden").unwrap(), "romeo@montague.example/Garden");
    assert!(jid.is_full() && !jid.is_bare() && !jid.is_domain());
    assert!(jid.bare().is_bare() && jid.domain_jid().is_domain());
    assert!(jid.same_bare(&jid.bare()) && !jid.same_bare(&jid.domain_jid()));
    assert_eq!(std::mem::size_of::<Jid>(), 24);
}

#[test]
fn a_view_equals_a_parsed_address() {
    let full = Jid::parse("romeo@montague.example/orchard").unwrap();
    let bare = Jid::parse("romeo@montague.example").unwrap();
    let set: HashSet<Jid> = [full.bare()].into();
    assert!(set.contains(&bare));
    let map: HashMap<Jid, u8> = [(full.domain_jid(), 1)].into();
    assert_eq!(map.get("montague.example"), Some(&1));
    assert!(full.bare() < full);
}

#[test]
fn domains() {
    for (input, expected) in [
        ("EXAMPLE.com.", "example.com"),
        ("muc_rooms.example", "muc_rooms.example"),
        ("localhost", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "[::1]"),
        ("[2001:DB8:0:0:0:0:0:1]", "[2001:db8::1]"),
        ("xn--rksmrgs-5wao1o.example", "räksmörgås.example"),
        ("XN--RKSMRGS-5WAO1O.example", "räksmörgås.example"),
        ("RÄKSMÖRGÅS.example", "räksmörgås.example"),
        ("räksmörgås\u{3002}example\u{FF0E}", "räksmörgås.example"),
        ("ａｂｃ.example", "abc.example"),
        // Nameprep would make another domain of these: they keep their A-form.
        ("straße.example", "xn--strae-oqa.example"),
        ("STRASSE.example", "strasse.example"),
        ("xn--strae-oqa.example", "xn--strae-oqa.example"),
        // A letter that Unicode 3.2 did not have.
        ("\u{2C61}.example", "xn--7fj.example"),
        ("xn--7fj.example", "xn--7fj.example"),
    ] {
        assert_eq!(canon(input).as_deref(), Ok(expected), "{input}");
    }
    for input in [
        "a..b",
        ".",
        "..",
        ".a",
        "a..",
        "-a.example",
        "a-.example",
        "a b.example",
        "a:5222",
        "a@b@c",
        "ex\u{2100}ample",
        "x\u{0}y",
        "a\u{FF0F}b",
        "a\u{FF20}b",
        "[::1",
        "::1",
        "[::1]x",
        "[::1%eth0]",
        "[127.0.0.1]",
        "[]",
        "xn--a",
        "xn--",
        "a\u{200E}b.example",
        "&lt;",
        "a<b",
        "*.example",
        "\u{3002}",
    ] {
        assert!(canon(input).is_err(), "{input:?} gave {:?}", canon(input));
    }
    assert_eq!(Jid::parse("a@räksmörgås.example/b").unwrap().domain_ascii(), "xn--rksmrgs-5wao1o.example");
}

#[test]
fn lengths() {
    let long = |n: usize| "a".repeat(n);
    assert!(canon(&format!("{}@example.com", long(1023))).is_ok());
    assert_eq!(canon(&format!("{}@example.com", long(1024))), Err(JidError::TooLong(Part::Local)));
    assert!(canon(&format!("example.com/{}", long(1023))).is_ok());
    assert_eq!(canon(&format!("example.com/{}", long(1024))), Err(JidError::TooLong(Part::Resource)));
    assert!(canon(&long(63)).is_ok());
    assert_eq!(canon(&long(64)), Err(JidError::TooLong(Part::Domain)));
    let labels = vec![long(63); 16].join(".");
    assert!(labels.len() == 1023 && canon(&labels).is_ok());
    assert_eq!(canon(&format!("{labels}.a")), Err(JidError::TooLong(Part::Domain)));
    let longest = format!("{}@{labels}/{}", long(1023), long(1023));
    assert_eq!(longest.len(), MAX_JID);
    assert_eq!(canon(&longest).as_deref(), Ok(longest.as_str()));
    // Each of these grows to 33 bytes.
    assert_eq!(
        canon(&format!("a.example/{}", "\u{FDFA}".repeat(100))),
        Err(JidError::TooLong(Part::Resource))
    );
    // Nothing is left of a local part of soft hyphens.
    assert_eq!(canon("\u{AD}@example.com"), Err(JidError::Empty(Part::Local)));
    assert_eq!(canon("example.com/\u{AD}"), Err(JidError::Empty(Part::Resource)));
    assert_eq!(canon("example.com/"), Err(JidError::Empty(Part::Resource)));
    assert_eq!(canon(""), Err(JidError::Empty(Part::Domain)));
}

#[test]
fn emoji_are_nicknames_but_not_new_accounts() {
    assert_eq!(canon("room@muc.example/Mia 🐈").as_deref(), Ok("room@muc.example/Mia 🐈"));
    assert!(canon("🐈@peer.example").is_ok());
    assert!(!Jid::new_local_part_ok("🐈"));
}

#[test]
fn new_local_parts() {
    for ok in ["romeo", "Romeo", "o.capulet-1", "tom+tag", "жанна", "rené", "משה", "太郎"] {
        assert!(Jid::new_local_part_ok(ok), "{ok}");
    }
    for bad in ["", "straße", "ς", "a b", "a@b", "a/b", "ﬁ", "Ⅳ", "\u{2C60}", "a\u{200D}b", "²", "a\u{AD}"]
    {
        assert!(!Jid::new_local_part_ok(bad), "{bad}");
    }
}

/// Each character there is, in each part: what is taken has a canonical form that stays.
#[test]
fn every_character() {
    for c in (0..=0x3_3FFFu32).chain(0xE_0000..=0xE_0FFF).filter_map(char::from_u32) {
        for address in [format!("a{c}@b.c"), format!("b{c}c.d"), format!("b.c/{c}d")] {
            let Ok(jid) = Jid::parse(&address) else { continue };
            assert_eq!(Jid::parse(jid.as_str()).as_ref(), Ok(&jid), "{address:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn canonical_form_is_a_fixed_point(s in any_address()) {
        if let Ok(jid) = Jid::parse(&s) {
            let again = Jid::parse(jid.as_str());
            prop_assert_eq!(again.as_ref(), Ok(&jid));
            let again = again.unwrap();
            prop_assert_eq!(again.local(), jid.local());
            prop_assert_eq!(again.domain(), jid.domain());
            prop_assert_eq!(again.resource(), jid.resource());
            prop_assert!(jid.as_str().len() <= MAX_JID);
            let in_xml = |c: char| !c.is_control() && c != '\u{FFFE}' && c != '\u{FFFF}';
            prop_assert!(jid.as_str().chars().all(in_xml), "every address can be written in XML");
            let ascii = jid.domain_ascii();
            prop_assert!(ascii.is_ascii());
            let from_ascii = Jid::parse(&ascii).unwrap();
            prop_assert_eq!(from_ascii.domain(), jid.domain());
        }
    }

    #[test]
    fn plain_addresses_parse_to_themselves(s in "[a-z0-9._+-]{1,20}@[a-z0-9]{1,9}(\\.[a-z0-9]{1,9}){0,3}(/[ -~]{1,20})?") {
        prop_assert_eq!(canon(&s), Ok(s));
    }

    #[test]
    fn ascii_case_of_local_part_and_domain_does_not_matter(s in "[a-zA-Z]{1,9}@[a-zA-Z]{1,9}\\.[a-zA-Z]{1,9}") {
        prop_assert_eq!(canon(&s), Ok(s.to_ascii_lowercase()));
    }
}

/// Arbitrary text is seldom an address, so half of it is made of what is nearly one.
fn any_address() -> impl Strategy<Value = String> {
    let spice = "[a-zA-Z.ß🐈ⅣΣςäÄא١ﷺ\u{AD}\u{200D}\u{1F130}\u{2C60}\u{FF20}\u{3002}@/\\[\\]:-]{0,8}";
    prop_oneof![
        any::<String>(),
        (spice, "[a-zäßςא\u{2C61}\u{200C}-]{1,6}(\\.[A-Za-zÄxn-]{1,6}){0,2}", spice)
            .prop_map(|(l, d, r)| format!("{l}@{d}/{r}")),
        (any::<char>(), any::<char>(), any::<char>()).prop_map(|(l, d, r)| format!("a{l}@b{d}.c/d{r}")),
    ]
}
