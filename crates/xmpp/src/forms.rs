//! XEP-0004 Data Forms 2.13.1: writing forms and results, reading what was submitted.

use trunkline_xml::{Node, Writer};

use crate::ns;

/// Fields one submission may have.
const MOST_FIELDS: usize = 256;

/// A form to be filled in, or a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Form {
    kind: &'static str,
    title: Option<String>,
    instructions: Option<String>,
    fields: Vec<Field>,
}

/// One field (s.3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    kind: &'static str,
    var: String,
    label: Option<String>,
    required: bool,
    options: Vec<(String, String)>,
    values: Vec<String>,
}

impl Form {
    /// A form to be filled in; `form_type` is the FORM_TYPE of XEP-0068.
    #[expect(clippy::self_named_constructors, reason = "named like the other types of s.3.1: form, result")]
    pub fn form(form_type: &str) -> Form {
        Form::new("form", form_type)
    }

    /// A result.
    pub fn result(form_type: &str) -> Form {
        Form::new("result", form_type)
    }

    fn new(kind: &'static str, form_type: &str) -> Form {
        let hidden = Field::new("hidden", "FORM_TYPE").value(form_type);
        Form { kind, fields: vec![hidden], ..Form::default() }
    }

    /// The FORM_TYPE (XEP-0068).
    pub fn form_type(&self) -> Option<&str> {
        self.fields.iter().find(|field| field.var == "FORM_TYPE")?.values.first().map(String::as_str)
    }

    /// Names and values of the fields, FORM_TYPE among them.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.fields.iter().map(|field| (field.var.as_str(), field.values.as_slice()))
    }

    /// What stands above it.
    #[must_use]
    pub fn title(mut self, title: &str) -> Form {
        self.title = Some(title.to_owned());
        self
    }

    /// What is to be done.
    #[must_use]
    pub fn instructions(mut self, instructions: &str) -> Form {
        self.instructions = (!instructions.is_empty()).then(|| instructions.to_owned());
        self
    }

    /// Adds a field.
    #[must_use]
    pub fn field(mut self, field: Field) -> Form {
        self.fields.push(field);
        self
    }

    /// Writes `<x xmlns='jabber:x:data'/>`.
    pub fn write(&self, w: &mut Writer) {
        w.open("x").attr("xmlns", ns::DATA_FORMS).attr("type", self.kind);
        if let Some(title) = &self.title {
            w.text_element("title", title);
        }
        if let Some(instructions) = &self.instructions {
            w.text_element("instructions", instructions);
        }
        for field in &self.fields {
            field.write(w);
        }
        w.close();
    }
}

impl Field {
    fn new(kind: &'static str, var: &str) -> Field {
        Field {
            kind,
            var: var.to_owned(),
            label: None,
            required: false,
            options: Vec::new(),
            values: Vec::new(),
        }
    }

    /// One line of text.
    pub fn text_single(var: &str) -> Field {
        Field::new("text-single", var)
    }

    /// One line of text that is not shown.
    pub fn text_private(var: &str) -> Field {
        Field::new("text-private", var)
    }

    /// Several lines of text, a value each.
    pub fn text_multi(var: &str) -> Field {
        Field::new("text-multi", var)
    }

    /// Not shown, sent back as it is.
    pub fn hidden(var: &str) -> Field {
        Field::new("hidden", var)
    }

    /// One of the options.
    pub fn list_single(var: &str) -> Field {
        Field::new("list-single", var)
    }

    /// Yes or no.
    pub fn boolean(var: &str) -> Field {
        Field::new("boolean", var)
    }

    /// One address.
    pub fn jid_single(var: &str) -> Field {
        Field::new("jid-single", var)
    }

    /// Addresses.
    pub fn jid_multi(var: &str) -> Field {
        Field::new("jid-multi", var)
    }

    /// Any of the options.
    pub fn list_multi(var: &str) -> Field {
        Field::new("list-multi", var)
    }

    /// What stands beside it.
    #[must_use]
    pub fn label(mut self, label: &str) -> Field {
        self.label = Some(label.to_owned());
        self
    }

    /// It must be filled in.
    #[must_use]
    pub fn required(mut self) -> Field {
        self.required = true;
        self
    }

    /// Adds an option to choose, with what is shown for it.
    #[must_use]
    pub fn option(mut self, value: &str, label: &str) -> Field {
        self.options.push((value.to_owned(), label.to_owned()));
        self
    }

    /// Adds a value.
    #[must_use]
    pub fn value(mut self, value: &str) -> Field {
        self.values.push(value.to_owned());
        self
    }

    fn write(&self, w: &mut Writer) {
        w.open("field").attr("type", self.kind).attr("var", &self.var);
        w.attr_opt("label", self.label.as_deref());
        if self.required {
            w.open("required").close();
        }
        for value in &self.values {
            w.text_element("value", value);
        }
        for (value, label) in &self.options {
            w.open("option").attr("label", label).text_element("value", value).close();
        }
        w.close();
    }
}

/// A form that was filled in.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Submission {
    fields: Vec<(String, Vec<String>)>,
}

/// Why an element is not a submission. The peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// Not `<x xmlns='jabber:x:data'/>`.
    #[error("not a data form")]
    NotAForm,
    /// More fields than any form of ours has.
    #[error("a form may have {MOST_FIELDS} fields, and this one has more")]
    TooManyFields,
}

impl Submission {
    /// Reads a form of type `submit`. XEP-0050 s.4.5.1 demands that other types are read as if they were.
    pub fn parse(node: Node<'_>) -> Result<Submission, FormError> {
        if !node.is(ns::DATA_FORMS, "x") {
            return Err(FormError::NotAForm);
        }
        let mut fields = Vec::new();
        for field in node.children().filter(|child| child.is(ns::DATA_FORMS, "field")) {
            let Some(var) = field.attr("var") else { continue };
            if fields.len() == MOST_FIELDS {
                return Err(FormError::TooManyFields);
            }
            let values = field.children().filter(|child| child.is(ns::DATA_FORMS, "value"));
            fields.push((var.into_owned(), values.map(|value| value.text().into_owned()).collect()));
        }
        Ok(Submission { fields })
    }

    /// The FORM_TYPE it was submitted with. XEP-0068 s.3.2: clients send it back, some do not.
    pub fn form_type(&self) -> Option<&str> {
        self.value("FORM_TYPE")
    }

    /// A yes or no (XEP-0004 s.3.3), or `None` if the field is absent or neither.
    pub fn boolean(&self, var: &str) -> Option<bool> {
        match self.value(var)?.trim() {
            "1" | "true" => Some(true),
            "0" | "false" => Some(false),
            _ => None,
        }
    }

    /// Names of all fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|(name, _)| name.as_str())
    }

    /// The first value of a field.
    pub fn value(&self, var: &str) -> Option<&str> {
        self.values(var).next()
    }

    /// All values of a field.
    pub fn values(&self, var: &str) -> impl Iterator<Item = &str> {
        let field = self.fields.iter().find(|(name, _)| name == var);
        field.into_iter().flat_map(|(_, values)| values.iter().map(String::as_str))
    }
}

/// Names only: there may be a password among the values.
impl std::fmt::Debug for Submission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.fields.iter().map(|(var, _)| var)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_xml::Element;

    #[test]
    fn a_form_is_written_and_its_answer_read() {
        let mut w = Writer::new();
        Form::form("urn:x")
            .title("T & T")
            .instructions("")
            .field(Field::jid_multi("who").label("Who").required())
            .write(&mut w);
        let text = String::from_utf8(w.finish()).unwrap();
        assert_eq!(
            text.replace('"', "'"),
            "<x xmlns='jabber:x:data' type='form'><title>T &amp; T</title>\
             <field type='hidden' var='FORM_TYPE'><value>urn:x</value></field>\
             <field type='jid-multi' var='who' label='Who'><required/></field></x>"
        );
        let answer = "<x xmlns='jabber:x:data' type='submit'><field var='who'><value>a</value><value>b</value>\
             </field><field/><field var='none'/></x>";
        let element = Element::parse(answer.as_bytes().to_vec(), "jabber:client").unwrap();
        let form = Submission::parse(element.root()).unwrap();
        assert_eq!(form.values("who").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(form.value("none"), None);
        assert_eq!(form.value("other"), None);
        assert_eq!(format!("{form:?}"), r#"["who", "none"]"#);
    }

    #[test]
    fn options_and_booleans() {
        let mut w = Writer::new();
        let field = Field::list_single("who").value("members").option("members", "Members only");
        Form::form("urn:x").field(field).write(&mut w);
        let text = String::from_utf8(w.finish()).unwrap();
        assert!(text.ends_with(
            "<value>members</value><option label='Members only'><value>members</value></option></field></x>"
        ));
        let answer = "<x xmlns='jabber:x:data'><field var='FORM_TYPE'><value>urn:x</value></field>\
             <field var='a'><value> true</value></field><field var='b'><value>0</value></field>\
             <field var='c'><value>yes</value></field></x>";
        let element = Element::parse(answer, "jabber:client").unwrap();
        let form = Submission::parse(element.root()).unwrap();
        assert_eq!(form.form_type(), Some("urn:x"));
        let booleans = ["a", "b", "c", "d"].map(|var| form.boolean(var));
        assert_eq!(booleans, [Some(true), Some(false), None, None]);
        assert_eq!(form.names().count(), 4);
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(var in "[ -~ä<>&']{1,8}", values in proptest::collection::vec("[ -~ä<>&']{0,8}", 0..4)) {
            let field = values.iter().fold(Field::list_multi(&var), |field, value| field.value(value));
            let mut w = Writer::new();
            Form::result("urn:x").field(field).write(&mut w);
            let element = Element::parse(w.finish(), "jabber:client").unwrap();
            let form = Submission::parse(element.root()).unwrap();
            proptest::prop_assert_eq!(form.values(&var).collect::<Vec<_>>(), values);
        }
    }

    #[test]
    fn what_is_no_form_is_refused() {
        let element = Element::parse(&b"<x xmlns='urn:y'/>"[..], "jabber:client").unwrap();
        assert_eq!(Submission::parse(element.root()), Err(FormError::NotAForm));
    }
}
