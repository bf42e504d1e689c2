//! XEP-0115 Entity Capabilities 1.6.0: the verification string.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::disco::Info;

/// s.5.1: base64 of the SHA-1 of everything the entity says, in a fixed order. SHA-1 is what all implementations
/// use; the string identifies what is public anyway.
pub fn verification(info: &Info) -> String {
    BASE64.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, input(info).as_bytes()))
}

/// s.5.1, steps 1 to 7. All orders are those of bytes ("i;octet").
fn input(info: &Info) -> String {
    let mut s = String::new();
    let mut add = |text: &str| {
        s.push_str(text);
        s.push('<');
    };
    let mut identities: Vec<String> = info
        .identities
        .iter()
        .map(|it| format!("{}/{}/{}/{}", it.category, it.kind, it.lang, it.name))
        .collect();
    identities.sort_unstable();
    identities.iter().for_each(|identity| add(identity));
    let mut features: Vec<&str> = info.features().collect();
    features.sort_unstable();
    features.into_iter().for_each(&mut add);
    let mut forms: Vec<_> = info.forms.iter().collect();
    forms.sort_unstable_by_key(|form| &form.form_type);
    for form in forms {
        add(&form.form_type);
        let mut fields: Vec<_> = form.fields.iter().collect();
        fields.sort_unstable();
        for (var, values) in fields {
            add(var);
            let mut values: Vec<&str> = values.iter().map(String::as_str).collect();
            values.sort_unstable();
            values.into_iter().for_each(&mut add);
        }
    }
    s
}

/// Whether the verification string says for everybody which features end in `ending`: whatever other answer has the
/// same string, these features are the same in it.
///
/// What is hashed does not say where the features begin and end ("Security considerations": trivial preimages): moved
/// into an identity or a form, a feature is gone and the string the same. It is only known to be a list of words, each
/// closed by `<`. If no word has a `<` of its own, the list can be read in one way; and if no word with that ending
/// is anything but a feature, the words with that ending are those features.
pub fn settles(info: &Info, ending: &str) -> bool {
    let is_plain = |word: &str| !word.contains('<');
    let is_other = |word: &str| is_plain(word) && !word.ends_with(ending);
    // An identity is one word: its parts with slashes between, the name at its end.
    let identities = info.identities.iter().all(|it| {
        is_other(&it.name) && [&it.category, &it.kind, &it.lang].into_iter().all(|part| is_plain(part))
    });
    let forms = info.forms.iter().all(|form| {
        let fields = form.fields.iter();
        is_other(&form.form_type)
            && fields.clone().all(|(var, _)| is_other(var))
            && fields.flat_map(|(_, values)| values).all(|value| is_other(value))
    });
    identities && forms && info.features().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disco::Identity;
    use crate::forms::{Field, Form};
    use crate::ns;

    fn features(info: &mut Info) {
        for feature in [ns::MUC, ns::CAPS, ns::DISCO_ITEMS, ns::DISCO_INFO] {
            info.feature(feature);
        }
    }

    #[test]
    fn simple_example_of_s_5_2() {
        let mut info = Info::new();
        info.identity("client", "pc", Some("Exodus 0.9.1"));
        features(&mut info);
        assert_eq!(verification(&info), "QgayPKawpkPSDYmwT/WM94uAlu0=");
    }

    /// An answer as it comes.
    fn answer(inner: &str) -> Info {
        let query = format!("<query xmlns='{}'>{inner}</query>", ns::DISCO_INFO);
        Info::parse(trunkline_xml::Element::parse(query, ns::CLIENT).unwrap().root()).unwrap()
    }

    #[test]
    fn what_can_be_read_in_two_ways_settles_nothing() {
        let form = |kind: &str, var: &str, value: &str| {
            format!(
                "<x xmlns='jabber:x:data'><field var='FORM_TYPE' type='hidden'><value>{kind}</value></field>\
                 <field var='{var}'><value>{value}</value></field></x>"
            )
        };
        let honest = answer(
            "<identity category='client' type='pc' name='Play'/><feature var='http://a.example/b/c+notify'/>\
             <feature var='urn:x'/><feature var='urn:x+notify'/>",
        );
        assert!(settles(&honest, "+notify"));
        // The same words, and other features: as an identity, in a form, and with a sign of their own in a word.
        let forged = [
            "<identity category='client' type='pc' name='Play'/><identity category='http:' type='' xml:lang='a.example' \
             name='b/c+notify'/><feature var='urn:x'/><feature var='urn:x+notify'/>"
                .to_owned(),
            "<identity category='client' type='pc' name='Play'/>".to_owned()
                + &form("http://a.example/b/c+notify", "urn:x", "urn:x+notify"),
            "<identity category='client' type='pc' name='Play'/><feature var='http://a.example/b/c+notify&lt;urn:x'/>\
             <feature var='urn:x+notify'/>"
                .to_owned(),
            "<identity category='client' type='pc' name='Play&lt;http://a.example/b/c+notify'/><feature var='urn:x'/>\
             <feature var='urn:x+notify'/>"
                .to_owned(),
        ];
        for forged in &forged {
            let info = answer(forged);
            assert_eq!(verification(&info), verification(&honest), "the string does not tell: {forged}");
            assert!(!settles(&info, "+notify"), "{forged}");
        }
        // Each place of a form by itself.
        let settled = |form: String| settles(&answer(&format!("<feature var='a'/>{form}")), "+notify");
        assert!(settled(form("urn:f", "os", "Mac")));
        for (kind, var, value) in
            [("f+notify", "os", "Mac"), ("urn:f", "os+notify", "Mac"), ("urn:f", "os", "Mac+notify")]
        {
            assert!(!settled(form(kind, var, value)), "{kind} {var} {value}");
            let sign = |text: &str| text.replace("+notify", "&lt;");
            assert!(!settled(form(&sign(kind), &sign(var), &sign(value))), "{kind} {var} {value}");
        }
    }

    #[test]
    fn complex_example_of_s_5_3() {
        let mut info = Info::new();
        for (lang, name) in [("en", "Psi 0.11"), ("el", "Ψ 0.11")] {
            info.identities.push(Identity {
                category: "client".into(),
                kind: "pc".into(),
                lang: lang.into(),
                name: name.into(),
            });
        }
        features(&mut info);
        info.form(
            Form::result(ns::SOFTWARE_INFO)
                .field(Field::text_single("software_version").value("0.11"))
                .field(Field::text_single("os_version").value("10.5.1"))
                .field(Field::list_multi("ip_version").value("ipv6").value("ipv4"))
                .field(Field::text_single("os").value("Mac"))
                .field(Field::text_single("software").value("Psi")),
        );
        assert_eq!(verification(&info), "q07IKJEyjvHSyhy//CH0CxmKi8w=");
    }
}
