//! XEP-0030 Service Discovery 2.5.0: what an entity says of itself, written and read.

use trunkline_xml::{Node, Writer};

use crate::caps;
use crate::forms::Form;
use crate::ns;

/// Identities, features and forms that one answer may have: more than any honest entity needs.
const MOST: usize = 512;

/// The answer to a `disco#info` query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info {
    pub(crate) identities: Vec<Identity>,
    pub(crate) features: Vec<String>,
    pub(crate) forms: Vec<InfoForm>,
    written: Vec<Form>,
}

/// What an entity is (s.3.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// Such as `server`.
    pub category: String,
    /// Such as `im`.
    pub kind: String,
    /// `xml:lang` of the name, or empty.
    pub lang: String,
    /// For people, or empty.
    pub name: String,
}

/// XEP-0128: a form with more about the entity, as far as caps needs it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InfoForm {
    pub(crate) form_type: String,
    /// Without FORM_TYPE.
    pub(crate) fields: Vec<(String, Vec<String>)>,
}

/// Why an element is not an answer that can be used. The peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InfoError {
    /// Not `<query xmlns='…disco#info'/>`.
    #[error("not a disco#info answer")]
    NotInfo,
    /// More identities, features or forms than any honest entity has.
    #[error("too long")]
    TooLong,
    /// XEP-0115 s.5.4: an identity, feature or form stands there twice, or a form has two types, so that the answer
    /// can't be hashed.
    #[error("the same entry twice")]
    Twice,
}

impl Info {
    /// An answer that says nothing yet; `disco#info` itself has to be added like any other feature.
    pub fn new() -> Info {
        Info::default()
    }

    /// Adds what the entity is; the registry of categories and types is XEP-0030's.
    pub fn identity(&mut self, category: &str, kind: &str, name: Option<&str>) {
        self.identities.push(Identity {
            category: category.to_owned(),
            kind: kind.to_owned(),
            lang: String::new(),
            name: name.unwrap_or_default().to_owned(),
        });
    }

    /// Adds what the entity can do. Twice the same counts once.
    pub fn feature(&mut self, feature: &str) {
        if !self.has(feature) {
            self.features.push(feature.to_owned());
        }
    }

    /// Adds a form (XEP-0128).
    pub fn form(&mut self, form: Form) {
        if let Some(form_type) = form.form_type() {
            let fields = form.fields().filter(|(var, _)| *var != "FORM_TYPE");
            self.forms.push(InfoForm {
                form_type: form_type.to_owned(),
                fields: fields.map(|(var, values)| (var.to_owned(), values.to_vec())).collect(),
            });
        }
        self.written.push(form);
    }

    /// Whether the feature is there.
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|known| known == feature)
    }

    /// What the entity is.
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }

    /// What the entity can do.
    pub fn features(&self) -> impl Iterator<Item = &str> {
        self.features.iter().map(String::as_str)
    }

    /// XEP-0115 s.5.1: the verification string with SHA-1, as `ver` carries it.
    pub fn verification(&self) -> String {
        caps::verification(self)
    }

    /// Writes `<query/>`; `node` is repeated from the request.
    pub fn write(&self, w: &mut Writer, node: Option<&str>) {
        w.open("query").attr("xmlns", ns::DISCO_INFO).attr_opt("node", node);
        for identity in &self.identities {
            let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
            w.open("identity").attr("category", &identity.category).attr("type", &identity.kind);
            w.attr_opt("xml:lang", given(&identity.lang)).attr_opt("name", given(&identity.name)).close();
        }
        for feature in &self.features {
            w.open("feature").attr("var", feature).close();
        }
        for form in &self.written {
            form.write(w);
        }
        w.close();
    }

    /// Reads an answer, for its features and for its verification string. Forms are not kept for writing.
    pub fn parse(query: Node<'_>) -> Result<Info, InfoError> {
        if !query.is(ns::DISCO_INFO, "query") {
            return Err(InfoError::NotInfo);
        }
        let mut info = Info::new();
        for child in query.children() {
            if info.identities.len() + info.features.len() + info.forms.len() >= MOST {
                return Err(InfoError::TooLong);
            }
            let attr = |name| child.attr(name).unwrap_or_default().into_owned();
            if child.is(ns::DISCO_INFO, "identity") {
                info.identities.push(Identity {
                    category: attr("category"),
                    kind: attr("type"),
                    lang: child.attr_ns(ns::XML, "lang").unwrap_or_default().into_owned(),
                    name: attr("name"),
                });
            } else if child.is(ns::DISCO_INFO, "feature") {
                info.features.push(attr("var"));
            } else if let Some(form) = read_form(child)? {
                info.forms.push(form);
            }
        }
        let twice = has_twice(info.features.iter())
            || has_twice(info.identities.iter())
            || has_twice(info.forms.iter().map(|form| &form.form_type));
        if twice { Err(InfoError::Twice) } else { Ok(info) }
    }
}

/// XEP-0115 s.5.4: forms whose FORM_TYPE is not a hidden field are ignored; one with two different types is none.
fn read_form(x: Node<'_>) -> Result<Option<InfoForm>, InfoError> {
    if !x.is(ns::DATA_FORMS, "x") {
        return Ok(None);
    }
    let mut form_type: Option<String> = None;
    let mut hidden = true;
    let mut fields = Vec::new();
    for field in x.children().filter(|child| child.is(ns::DATA_FORMS, "field")) {
        let values = field.children().filter(|child| child.is(ns::DATA_FORMS, "value"));
        let values = values.map(|value| value.text().into_owned());
        let var = field.attr("var").unwrap_or_default();
        if var != "FORM_TYPE" {
            fields.push((var.into_owned(), values.collect()));
            continue;
        }
        hidden &= field.attr("type").is_none_or(|kind| kind == "hidden");
        for value in values {
            if form_type.as_ref().is_some_and(|known| *known != value) {
                return Err(InfoError::Twice);
            }
            form_type = Some(value);
        }
    }
    Ok(form_type.filter(|_| hidden).map(|form_type| InfoForm { form_type, fields }))
}

fn has_twice<T: Ord>(items: impl Iterator<Item = T>) -> bool {
    let mut items: Vec<T> = items.collect();
    items.sort_unstable();
    items.windows(2).any(|pair| pair[0] == pair[1])
}

#[cfg(test)]
mod tests {
    use trunkline_xml::Element;

    use super::*;
    use crate::forms::Field;

    #[test]
    fn what_is_written_is_read() {
        let mut info = Info::new();
        info.identity("server", "im", Some("Trunk & line"));
        info.identity("pubsub", "pep", None);
        info.feature(ns::DISCO_INFO);
        info.feature(ns::PING);
        info.feature(ns::PING);
        info.form(
            Form::result(ns::SERVER_INFO)
                .field(Field::list_multi("abuse-addresses").value("mailto:a@b.example")),
        );
        let mut w = Writer::new();
        info.write(&mut w, Some("n"));
        let text = String::from_utf8(w.finish()).unwrap();
        assert!(
            text.starts_with("<query xmlns='http://jabber.org/protocol/disco#info' node='n'><identity"),
            "{text}"
        );
        let element = Element::parse(text, ns::CLIENT).unwrap();
        let read = Info::parse(element.root()).unwrap();
        assert_eq!((read.identities(), &read.forms), (info.identities(), &info.forms));
        assert_eq!(read.features().collect::<Vec<_>>(), [ns::DISCO_INFO, ns::PING]);
        assert_eq!(read.verification(), info.verification());
    }

    #[test]
    fn refused() {
        let parse = |inner: &str| {
            let element =
                Element::parse(format!("<query xmlns='{}'>{inner}</query>", ns::DISCO_INFO), ns::CLIENT)
                    .unwrap();
            Info::parse(element.root()).map(|_| ())
        };
        assert_eq!(parse("<feature var='a'/><feature var='b'/>"), Ok(()));
        assert_eq!(parse("<feature var='a'/><feature var='a'/>"), Err(InfoError::Twice));
        assert_eq!(parse(&"<identity category='a' type='b'/>".repeat(2)), Err(InfoError::Twice));
        let form = |types: &str| {
            format!("<x xmlns='jabber:x:data'><field var='FORM_TYPE' type='hidden'>{types}</field></x>")
        };
        assert_eq!(parse(&form("<value>a</value><value>a</value>")), Ok(()));
        assert_eq!(parse(&form("<value>a</value><value>b</value>")), Err(InfoError::Twice));
        assert_eq!(parse(&form("<value>a</value>").repeat(2)), Err(InfoError::Twice));
        let many: String = (0..=MOST).map(|i| format!("<feature var='{i}'/>")).collect();
        assert_eq!(parse(&many), Err(InfoError::TooLong));
        let other = Element::parse("<query xmlns='urn:x'/>", ns::CLIENT).unwrap();
        assert_eq!(Info::parse(other.root()), Err(InfoError::NotInfo));
    }
}
