//! RFC 3454 stringprep with the three profiles XMPP addresses and passwords need: nodeprep and resourceprep
//! (RFC 6122 appendices A and B), nameprep (RFC 3491) and SASLprep (RFC 4013).
//!
//! The tables come from a crate; the procedure is ours because routing needs what the crate's procedure does not
//! offer: code points unassigned in Unicode 3.2 (all emoji) are allowed in *queries* (RFC 3454 s.7), which is what
//! addresses on a stream are, and are refused in *stored* strings, which is what a new account's name is.

use std::borrow::Cow;

use stringprep::tables;
use unicode_normalization::UnicodeNormalization as _;

/// A profile of stringprep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Local parts of addresses: folds case, refuses spaces and `"&'/:<>@`.
    Node,
    /// Labels of domain names: folds case.
    Name,
    /// Resource parts: keeps case, allows spaces.
    Resource,
    /// Passwords and user names in SASL: keeps case, maps odd spaces to U+0020.
    Sasl,
}

/// RFC 3454 s.7: what to do about code points that Unicode 3.2 did not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unassigned {
    /// The string is a query: it is compared with stored strings, and matches none if it must not.
    Allow,
    /// The string is going to be stored.
    Refuse,
}

/// Why a string has no prepared form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrepError {
    /// RFC 3454 s.5: a prohibited character, or an unassigned one in a stored string.
    Prohibited(char),
    /// RFC 3454 s.6: left-to-right and right-to-left characters mixed.
    Bidi,
    /// Preparing the prepared form gives another string, so it can't serve as a canonical form. Happens only with
    /// characters newer than Unicode 3.2.
    Unstable,
}

/// Prepares `s`. The result is a fixed point: preparing it again changes nothing.
pub(crate) fn prepare(s: &str, profile: Profile, unassigned: Unassigned) -> Result<Cow<'_, str>, PrepError> {
    if s.is_ascii() {
        return prepare_ascii(s, profile);
    }
    let once = prepare_once(s, profile, unassigned)?;
    let stable = if once.is_ascii() {
        prepare_ascii(&once, profile)? == once
    } else {
        once == s || prepare_once(&once, profile, unassigned)? == once
    };
    if stable { Ok(Cow::Owned(once)) } else { Err(PrepError::Unstable) }
}

fn prepare_ascii(s: &str, profile: Profile) -> Result<Cow<'_, str>, PrepError> {
    if let Some(c) = s.chars().find(|&c| prohibited(c, profile)) {
        return Err(PrepError::Prohibited(c));
    }
    let folds = matches!(profile, Profile::Node | Profile::Name);
    if folds && s.bytes().any(|b| b.is_ascii_uppercase()) {
        return Ok(Cow::Owned(s.to_ascii_lowercase()));
    }
    Ok(Cow::Borrowed(s))
}

fn prepare_once(s: &str, profile: Profile, unassigned: Unassigned) -> Result<String, PrepError> {
    let visible = s.chars().filter(|&c| !tables::commonly_mapped_to_nothing(c));
    let prepared: String = match profile {
        Profile::Node | Profile::Name => visible.flat_map(tables::case_fold_for_nfkc).nfkc().collect(),
        Profile::Resource => visible.nfkc().collect(),
        // RFC 4013 s.2.1. U+200B stands in both of its tables; as a space it would change a password that
        // other implementations leave alone, and they drop it.
        Profile::Sasl => {
            visible.map(|c| if tables::non_ascii_space_character(c) { ' ' } else { c }).nfkc().collect()
        }
    };
    for c in prepared.chars() {
        if prohibited(c, profile) || (unassigned == Unassigned::Refuse && tables::unassigned_code_point(c)) {
            return Err(PrepError::Prohibited(c));
        }
    }
    if bidi_ok(&prepared) { Ok(prepared) } else { Err(PrepError::Bidi) }
}

fn prohibited(c: char, profile: Profile) -> bool {
    if c.is_ascii() {
        return match profile {
            Profile::Node => !c.is_ascii_graphic() || "\"&'/:<>@".contains(c),
            // RFC 3491 s.5 leaves ASCII to the rules for host names, which the caller applies.
            Profile::Name => false,
            Profile::Resource | Profile::Sasl => c.is_ascii_control(),
        };
    }
    tables::non_ascii_space_character(c)
        || tables::non_ascii_control_character(c)
        || tables::private_use(c)
        || tables::non_character_code_point(c)
        || tables::inappropriate_for_plain_text(c)
        || tables::inappropriate_for_canonical_representation(c)
        || tables::change_display_properties_or_deprecated(c)
        || tables::tagging_character(c)
}

/// RFC 3454 s.6, requirements 2 and 3 (requirement 1 is table C.8, which all profiles prohibit).
fn bidi_ok(s: &str) -> bool {
    if !s.contains(tables::bidi_r_or_al) {
        return true;
    }
    !s.contains(tables::bidi_l)
        && s.chars().next().is_some_and(tables::bidi_r_or_al)
        && s.chars().next_back().is_some_and(tables::bidi_r_or_al)
}

#[cfg(test)]
mod tests {
    use super::PrepError::*;
    use super::*;

    type Case = (&'static str, Profile, &'static str, Result<&'static str, PrepError>);

    /// After RFC 4013 s.3, the sample strings of the libidn suite for RFC 3454 (josefsson.org/idn.php), and
    /// RFC 3920 appendices A and B.
    const CASES: &[Case] = &[
        ("RFC 4013 s.3 (1) soft hyphen mapped to nothing", Profile::Sasl, "I\u{AD}X", Ok("IX")),
        ("RFC 4013 s.3 (2) no transformation", Profile::Sasl, "user", Ok("user")),
        ("RFC 4013 s.3 (3) case preserved", Profile::Sasl, "USER", Ok("USER")),
        ("RFC 4013 s.3 (4) NFKC", Profile::Sasl, "\u{AA}", Ok("a")),
        ("RFC 4013 s.3 (5) NFKC", Profile::Sasl, "\u{2168}", Ok("IX")),
        ("RFC 4013 s.3 (6) prohibited character", Profile::Sasl, "\u{7}", Err(Prohibited('\u{7}'))),
        ("RFC 4013 s.3 (7) bidirectional check", Profile::Sasl, "\u{627}1", Err(Bidi)),
        ("odd spaces become U+0020", Profile::Sasl, "a\u{A0}b\u{3000}c", Ok("a b c")),
        (
            "map to nothing",
            Profile::Name,
            "foo\u{AD}\u{34F}\u{1806}\u{180B}bar\u{200B}\u{2060}baz\u{FE00}\u{FE08}\u{FE0F}\u{FEFF}",
            Ok("foobarbaz"),
        ),
        ("case folding ASCII", Profile::Name, "CAFE", Ok("cafe")),
        ("case folding German sharp s", Profile::Name, "\u{DF}", Ok("ss")),
        ("case folding Turkish I with dot", Profile::Name, "\u{130}", Ok("i\u{307}")),
        ("case folding multibyte", Profile::Name, "\u{143}\u{37A}", Ok("\u{144} \u{3B9}")),
        ("case folding plane 1", Profile::Name, "\u{2121}\u{33C6}\u{1D7BB}", Ok("telc\u{2215}kg\u{3C3}")),
        ("self-reverting case folding", Profile::Name, "\u{1F0}\u{390}\u{3B0}", Ok("\u{1F0}\u{390}\u{3B0}")),
        ("normalization of half-width", Profile::Name, "j\u{30C}\u{A0}\u{AA}", Ok("\u{1F0} a")),
        ("NFKC composes after folding", Profile::Name, "\u{1FB7}", Ok("\u{1FB6}\u{3B9}")),
        ("ideographic space becomes a space", Profile::Name, "\u{3000}", Ok(" ")),
        ("ogham space", Profile::Name, "\u{1680}", Err(Prohibited('\u{1680}'))),
        ("non-ASCII control", Profile::Name, "\u{85}", Err(Prohibited('\u{85}'))),
        ("mongolian vowel separator", Profile::Name, "\u{180E}", Err(Prohibited('\u{180E}'))),
        ("invisible times", Profile::Name, "\u{2063}", Err(Prohibited('\u{2063}'))),
        ("musical symbol controls", Profile::Name, "\u{1D175}", Err(Prohibited('\u{1D175}'))),
        ("private use", Profile::Name, "\u{F123}", Err(Prohibited('\u{F123}'))),
        ("private use, plane 16", Profile::Name, "\u{10F234}", Err(Prohibited('\u{10F234}'))),
        ("non-character", Profile::Name, "\u{8FFFE}", Err(Prohibited('\u{8FFFE}'))),
        ("not plain text", Profile::Name, "\u{FFFD}", Err(Prohibited('\u{FFFD}'))),
        ("ideographic description", Profile::Name, "\u{2FF5}", Err(Prohibited('\u{2FF5}'))),
        ("display property is a combining mark", Profile::Name, "\u{341}", Ok("\u{301}")),
        ("left-to-right mark", Profile::Name, "\u{200E}", Err(Prohibited('\u{200E}'))),
        ("deprecated formatting", Profile::Name, "\u{202A}", Err(Prohibited('\u{202A}'))),
        ("language tag", Profile::Name, "\u{E0001}", Err(Prohibited('\u{E0001}'))),
        ("tagging character", Profile::Name, "\u{E0042}", Err(Prohibited('\u{E0042}'))),
        ("bidi: L among RandALCat", Profile::Name, "foo\u{5BE}bar", Err(Bidi)),
        ("bidi: L around RandALCat", Profile::Name, "foo\u{FD50}bar", Err(Bidi)),
        ("bidi: neutral inside", Profile::Name, "\u{627}1\u{628}", Ok("\u{627}1\u{628}")),
        ("bidi: ends in a digit", Profile::Name, "\u{627}\u{31}", Err(Bidi)),
        (
            "large expansion",
            Profile::Name,
            "X\u{AD}\u{DF}\u{130}\u{2121}j\u{30C}\u{A0}\u{AA}\u{3B0}\u{2000}",
            Ok("xssi\u{307}tel\u{1F0} a\u{3B0} "),
        ),
        (
            "nodeprep folds",
            Profile::Node,
            "R\u{C4}ksm\u{F6}rg\u{E5}s.josef\u{DF}on.org",
            Ok("r\u{E4}ksm\u{F6}rg\u{E5}s.josefsson.org"),
        ),
        ("nodeprep: roman numeral", Profile::Node, "henry\u{2163}", Ok("henryiv")),
        ("nodeprep: final sigma", Profile::Node, "\u{3C2}", Ok("\u{3C3}")),
        ("nodeprep: space", Profile::Node, "foo bar", Err(Prohibited(' '))),
        ("nodeprep: no-break space becomes a space", Profile::Node, "foo\u{A0}bar", Err(Prohibited(' '))),
        ("nodeprep: quote", Profile::Node, "\"juliet\"", Err(Prohibited('"'))),
        ("nodeprep: full-width at sign", Profile::Node, "a\u{FF20}b", Err(Prohibited('@'))),
        ("nodeprep: account of", Profile::Node, "\u{2100}", Err(Prohibited('/'))),
        ("resourceprep keeps case and space", Profile::Resource, "Foo Bar\u{AD}", Ok("Foo Bar")),
        ("resourceprep: NFKC", Profile::Resource, "\u{2163}", Ok("IV")),
        ("resourceprep: control", Profile::Resource, "a\tb", Err(Prohibited('\t'))),
        ("resourceprep: DEL", Profile::Resource, "a\u{7F}b", Err(Prohibited('\u{7F}'))),
    ];

    #[test]
    fn suites() {
        for &(what, profile, input, ref expected) in CASES {
            let got = prepare(input, profile, Unassigned::Refuse);
            assert_eq!(got.as_deref().map_err(|e| *e), expected.as_ref().copied().map_err(|e| *e), "{what}");
        }
    }

    #[test]
    fn unassigned_is_for_queries_only() {
        let cat = "\u{1F408}";
        assert_eq!(prepare(cat, Profile::Resource, Unassigned::Allow).as_deref(), Ok(cat));
        assert_eq!(prepare(cat, Profile::Resource, Unassigned::Refuse), Err(Prohibited('\u{1F408}')));
        // U+0221 is the suite's sample of a code point that Unicode 3.2 did not assign.
        assert_eq!(prepare("\u{221}", Profile::Name, Unassigned::Refuse), Err(Prohibited('\u{221}')));
    }

    #[test]
    fn what_has_no_fixed_point_is_refused() {
        // U+1F130 SQUARED LATIN CAPITAL LETTER A (Unicode 5.2) is not folded, but NFKC gives "A".
        assert_eq!(prepare("\u{1F130}", Profile::Node, Unassigned::Allow), Err(Unstable));
        assert_eq!(prepare("\u{1F130}", Profile::Resource, Unassigned::Allow).as_deref(), Ok("A"));
    }
}
