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
