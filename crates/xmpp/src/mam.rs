//! XEP-0313 Message Archive Management 1.1.3: what is asked of an archive, and how it answers; the preferences of
//! XEP-0441 0.2.0 and the search field of XEP-0431 0.2.0.

use trunkline_xml::{Node, Writer};

use crate::error::{Condition, StanzaError};
use crate::forms::{FormError, Submission};
use crate::jid::Jid;
use crate::rsm::{self, RsmError};
use crate::{ns, time};

/// The field of XEP-0431 s.3.1, in Clark notation.
pub const FULLTEXT_FIELD: &str = "{urn:xmpp:fulltext:0}fulltext";

/// What is asked of an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Stands in each result (s.4).
    pub id: Option<String>,
    /// Messages with this address alone (s.4.1.1): without a resource, with any of its devices.
    pub with: Option<Jid>,
    /// Milliseconds since 1970; nothing older (s.4.1.2).
    pub start: Option<i64>,
    /// Milliseconds since 1970; nothing younger.
    pub end: Option<i64>,
    /// Only what stands before this message (s.4.1.3).
    pub before_id: Option<String>,
    /// Only what stands behind this message.
    pub after_id: Option<String>,
    /// These messages.
    pub ids: Option<Vec<String>>,
    /// s.4.1.4. There is no group chat in a user's archive here, so this changes nothing.
    pub groupchat: Option<bool>,
    /// XEP-0431: words to look for.
    pub words: Option<String>,
    /// The page.
    pub page: rsm::Request,
    /// s.4.3.4: the page comes with its last message first.
    pub flipped: bool,
}

/// What of the form this server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// XEP-0431.
    pub search: bool,
    /// Most values of the field `ids`.
    pub ids: usize,
}

/// Why a query can't be read. The peer's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Not a form of this protocol.
    #[error("the form is not of type urn:xmpp:mam:2")]
    WrongForm,
    /// See [`FormError`].
    #[error(transparent)]
    Form(#[from] FormError),
    /// s.4.1.5: a field that the form does not have.
    #[error("the field {0} is not known")]
    UnknownField(String),
    /// A field of one value has none or several.
    #[error("the field {0} takes one value")]
    NotOneValue(&'static str),
    /// `start` or `end` is no time.
    #[error("the field {0} is not a time as XEP-0082 writes it")]
    NotATime(&'static str),
    /// `with` is no address.
    #[error("the field with is not an address")]
    NotAnAddress,
    /// `include-groupchat` is neither.
    #[error("the field include-groupchat is neither true nor false")]
    NotABoolean,
    /// More values than [`Offer::ids`].
    #[error("the field ids has {found} values; {most} are possible")]
    TooManyIds {
        /// Values there are.
        found: usize,
        /// Values there may be.
        most: usize,
    },
    /// See [`RsmError`].
    #[error(transparent)]
    Page(#[from] RsmError),
}

impl From<&QueryError> for StanzaError {
    fn from(error: &QueryError) -> StanzaError {
        let condition = match error {
            // s.4.1.5.
            QueryError::UnknownField(_) => Condition::FeatureNotImplemented,
            // RFC 6120 s.8.3.3.8.
            QueryError::NotAnAddress => Condition::JidMalformed,
            QueryError::TooManyIds { .. } | QueryError::Form(FormError::TooManyFields) => {
                Condition::ResourceConstraint
            }
            QueryError::WrongForm
            | QueryError::Form(FormError::NotAForm)
            | QueryError::NotOneValue(_)
            | QueryError::NotATime(_)
            | QueryError::NotABoolean
            | QueryError::Page(_) => Condition::BadRequest,
        };
        StanzaError::new(condition).text(error.to_string())
    }
}

impl Query {
    /// Reads `<query/>`.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub fn parse(query: Node<'_>, offer: Offer) -> Result<Query, QueryError> {
        let mut read = Query {
            id: query.attr("queryid").map(|id| id.into_owned()),
            page: rsm::Request::parse(query)?,
            flipped: query.child(ns::MAM, "flip-page").is_some(),
            ..Query::default()
        };
        if let Some(form) = query.child(ns::DATA_FORMS, "x") {
            read.filter(&Submission::parse(form)?, offer)?;
        }
        Ok(read)
    }

    fn filter(&mut self, form: &Submission, offer: Offer) -> Result<(), QueryError> {
        if form.form_type() != Some(ns::MAM) {
            return Err(QueryError::WrongForm);
        }
        for name in form.names() {
            match name {
                "FORM_TYPE" => {}
                "with" => {
                    let jid = Jid::parse(one(form, "with")?).map_err(|_| QueryError::NotAnAddress)?;
                    self.with = Some(jid);
                }
                "start" => self.start = Some(moment(form, "start")?),
                "end" => self.end = Some(moment(form, "end")?),
                "before-id" => self.before_id = Some(one(form, "before-id")?.to_owned()),
                "after-id" => self.after_id = Some(one(form, "after-id")?.to_owned()),
                "ids" => {
                    let ids: Vec<String> = form.values("ids").map(str::to_owned).collect();
                    if ids.len() > offer.ids {
                        return Err(QueryError::TooManyIds { found: ids.len(), most: offer.ids });
                    }
                    self.ids = Some(ids);
                }
                "include-groupchat" => {
                    let wanted = form.boolean("include-groupchat").ok_or(QueryError::NotABoolean)?;
                    self.groupchat = Some(wanted);
                }
                // XEP-0431 s.2.2: an empty text looks for nothing.
                FULLTEXT_FIELD if offer.search => {
                    let words = form.value(FULLTEXT_FIELD).unwrap_or_default();
                    self.words = (!words.trim().is_empty()).then(|| words.to_owned());
                }
                other => return Err(QueryError::UnknownField(other.to_owned())),
            }
        }
        Ok(())
    }
}

fn one<'a>(form: &'a Submission, var: &'static str) -> Result<&'a str, QueryError> {
    let mut values = form.values(var);
    match (values.next(), values.next()) {
        (Some(value), None) if !value.is_empty() => Ok(value),
        _ => Err(QueryError::NotOneValue(var)),
    }
}

fn moment(form: &Submission, var: &'static str) -> Result<i64, QueryError> {
    time::parse_millis(one(form, var)?.trim()).map_err(|_| QueryError::NotATime(var))
}

/// s.4.1.5: the form with every field, as the payload of the answer.
pub fn write_form(w: &mut Writer, offer: Offer) {
    w.open("query").attr("xmlns", ns::MAM);
    w.open("x").attr("xmlns", ns::DATA_FORMS).attr("type", "form");
    w.open("field").attr("type", "hidden").attr("var", "FORM_TYPE").text_element("value", ns::MAM).close();
    let mut field = |kind: &str, var: &str| {
        w.open("field").attr("type", kind).attr("var", var);
        if var == "ids" {
            // The list is open: any message's id may be chosen (XEP-0122 s.3.2).
            w.open("validate").attr("xmlns", ns::DATA_VALIDATE).attr("datatype", "xs:string");
            w.open("open").close();
            w.close();
        }
        w.close();
    };
    field("jid-single", "with");
    for var in ["start", "end", "before-id", "after-id"] {
        field("text-single", var);
    }
    field("list-multi", "ids");
    field("boolean", "include-groupchat");
    if offer.search {
        field("text-single", FULLTEXT_FIELD);
    }
    w.close().close();
}

/// s.4: the end of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fin {
    /// Nothing more matches on the side the page was read to.
    pub complete: bool,
    /// What the page is.
    pub page: rsm::Page,
}

impl Fin {
    /// Writes `<fin/>`.
    pub fn write(&self, w: &mut Writer) {
        w.open("fin").attr("xmlns", ns::MAM).attr_opt("complete", self.complete.then_some("true"));
        self.page.write(w);
        w.close();
    }
}

/// What of a message's surroundings its result tells.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// Its id in the archive.
    pub id: &'a str,
    /// Milliseconds since 1970 at which the server got it.
    pub millis: i64,
    /// As [`crate::stanza::Stanza::write`] has written it.
    pub stanza: &'a [u8],
}

/// s.4.2: the payload of one result. The stanza is copied, not read.
pub fn write_result(w: &mut Writer, query: Option<&str>, kept: Kept<'_>) {
    w.open("result").attr("xmlns", ns::MAM).attr_opt("queryid", query).attr("id", kept.id);
    w.open("forwarded").attr("xmlns", ns::FORWARD);
    w.open("delay").attr("xmlns", ns::DELAY).attr("stamp", &time::format_millis(kept.millis)).close();
    // XEP-0297 s.3: the namespace of the forwarded stanza is declared.
    match kept.stanza.strip_prefix(b"<message") {
        Some(rest) if !rest.starts_with(b" xmlns=") => {
            w.raw(b"<message xmlns='jabber:client'").raw(rest);
        }
        _ => {
            w.raw(kept.stanza);
        }
    }
    w.close().close();
}

/// XEP-0441 s.2.1: what is archived if an address is in neither list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// Everything.
    #[default]
    Always,
    /// Nothing.
    Never,
    /// Messages with contacts.
    Roster,
}

impl Rule {
    /// The attribute's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::Always => "always",
            Rule::Never => "never",
            Rule::Roster => "roster",
        }
    }

    /// Reads the attribute's value.
    pub fn parse(text: &str) -> Option<Rule> {
        [Rule::Always, Rule::Never, Rule::Roster].into_iter().find(|it| it.as_str() == text)
    }
}

/// XEP-0441: what a user wants to be archived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preferences {
    /// For addresses in neither list.
    pub rule: Rule,
    /// Always archived.
    pub always: Vec<Jid>,
    /// Never archived.
    pub never: Vec<Jid>,
}

/// Why preferences can't be read. The peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreferencesError {
    /// s.2.1.1: `default` MUST be one of three.
    #[error("default is always, never or roster")]
    NoDefault,
    /// A `<jid/>` is no address.
    #[error("<jid/> is not an address")]
    NotAnAddress,
    /// An address is in both lists.
    #[error("an address stands in both lists")]
    Contradiction,
}

impl From<&PreferencesError> for StanzaError {
    fn from(error: &PreferencesError) -> StanzaError {
        let condition = match error {
            PreferencesError::NotAnAddress => Condition::JidMalformed,
            PreferencesError::NoDefault | PreferencesError::Contradiction => Condition::BadRequest,
        };
        StanzaError::new(condition).text(error.to_string())
    }
}

impl Preferences {
    /// Reads `<prefs/>`. A list that is missing is empty (s.2.1.2, s.2.1.3).
    ///
    /// # Errors
    /// See [`PreferencesError`].
    pub fn parse(prefs: Node<'_>) -> Result<Preferences, PreferencesError> {
        let rule = prefs.attr("default").and_then(|rule| Rule::parse(&rule));
        let rule = rule.ok_or(PreferencesError::NoDefault)?;
        let list = |name| -> Result<Vec<Jid>, PreferencesError> {
            let mut jids = Vec::new();
            for child in prefs.child(ns::MAM, name).into_iter().flat_map(Node::children) {
                if child.is(ns::MAM, "jid") {
                    let jid = Jid::parse(child.text().trim()).map_err(|_| PreferencesError::NotAnAddress)?;
                    jids.push(jid);
                }
            }
            jids.sort();
            jids.dedup();
            Ok(jids)
        };
        let (always, never) = (list("always")?, list("never")?);
        if always.iter().any(|jid| never.binary_search(jid).is_ok()) {
            return Err(PreferencesError::Contradiction);
        }
        Ok(Preferences { rule, always, never })
    }

    /// Writes `<prefs/>`, with both lists (s.2.1).
    pub fn write(&self, w: &mut Writer) {
        w.open("prefs").attr("xmlns", ns::MAM).attr("default", self.rule.as_str());
        for (name, jids) in [("always", &self.always), ("never", &self.never)] {
            w.open(name);
            for jid in jids {
                w.text_element("jid", jid.as_str());
            }
            w.close();
        }
        w.close();
    }

    /// Messages with `peer` are to be archived. `contact` says whether it is in the roster.
    pub fn allows(&self, peer: &Jid, contact: impl FnOnce() -> bool) -> bool {
        // s.2.3.1: a listed address with a resource means that one, a bare one means all its devices. The more
        // precise one goes first.
        let listed = |jids: &[Jid], bare: bool| {
            jids.iter().any(|jid| if bare { jid.is_bare() && jid.same_bare(peer) } else { jid == peer })
        };
        if !(self.always.is_empty() && self.never.is_empty()) {
            for bare in [false, true] {
                if listed(&self.never, bare) {
                    return false;
                }
                if listed(&self.always, bare) {
                    return true;
                }
            }
        }
        match self.rule {
            Rule::Always => true,
            Rule::Never => false,
            Rule::Roster => contact(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_xml::Element;

    const OFFER: Offer = Offer { search: true, ids: 3 };

    fn read(fields: &str) -> Result<Query, QueryError> {
        read_with(fields, OFFER)
    }

    fn read_with(fields: &str, offer: Offer) -> Result<Query, QueryError> {
        let xml = format!(
            "<query xmlns='urn:xmpp:mam:2' queryid='f27'><x xmlns='jabber:x:data' type='submit'>\
             <field var='FORM_TYPE'><value>urn:xmpp:mam:2</value></field>{fields}</x></query>"
        );
        Query::parse(Element::parse(xml.into_bytes(), ns::CLIENT).unwrap().root(), offer)
    }

    fn field(var: &str, value: &str) -> String {
        format!("<field var='{var}'><value>{value}</value></field>")
    }

    #[test]
    fn every_field_is_read() {
        let fields = [
            field("with", "Juliet@capulet.lit/balcony"),
            field("start", "1970-01-01T00:00:01Z"),
            field("end", "1970-01-01T01:00:02+01:00"),
            field("before-id", "b"),
            field("after-id", "a"),
            "<field var='ids'><value>1</value><value>2</value></field>".to_owned(),
            field("include-groupchat", "true"),
            field(FULLTEXT_FIELD, "rose name"),
        ];
        let query = read(&fields.concat()).unwrap();
        assert_eq!(query.with.unwrap().as_str(), "juliet@capulet.lit/balcony");
        assert_eq!((query.start, query.end), (Some(1000), Some(2000)));
        assert_eq!((query.before_id.as_deref(), query.after_id.as_deref()), (Some("b"), Some("a")));
        assert_eq!(query.ids.unwrap(), ["1", "2"]);
        assert_eq!((query.groupchat, query.words.as_deref()), (Some(true), Some("rose name")));
        assert_eq!((query.id.as_deref(), query.flipped), (Some("f27"), false));
        assert_eq!(read(&field(FULLTEXT_FIELD, " ")).unwrap().words, None);
    }

    #[test]
    fn each_field_has_its_error() {
        let condition = |fields: &str| StanzaError::from(&read(fields).unwrap_err()).condition;
        for (fields, expected) in [
            (field("with", "@"), Condition::JidMalformed),
            (field("with", ""), Condition::BadRequest),
            ("<field var='with'/>".to_owned(), Condition::BadRequest),
            (
                "<field var='with'><value>a@b</value><value>c@d</value></field>".to_owned(),
                Condition::BadRequest,
            ),
            (field("start", "yesterday"), Condition::BadRequest),
            (field("end", ""), Condition::BadRequest),
            (field("before-id", ""), Condition::BadRequest),
            (field("include-groupchat", "maybe"), Condition::BadRequest),
            (field("{http://example.com/}free-text-search", "x"), Condition::FeatureNotImplemented),
            (
                format!("<field var='ids'>{}</field>", "<value>1</value>".repeat(4)),
                Condition::ResourceConstraint,
            ),
            (field("x", "1").repeat(300), Condition::ResourceConstraint),
        ] {
            assert_eq!(condition(&fields), expected, "{fields}");
        }
        let off = Offer { search: false, ..OFFER };
        assert_eq!(
            read_with(&field(FULLTEXT_FIELD, "x"), off),
            Err(QueryError::UnknownField(FULLTEXT_FIELD.to_owned()))
        );
        let wrong = "<query xmlns='urn:xmpp:mam:2'><x xmlns='jabber:x:data'/></query>";
        let element = Element::parse(wrong, ns::CLIENT).unwrap();
        assert_eq!(Query::parse(element.root(), OFFER), Err(QueryError::WrongForm));
    }

    #[test]
    fn a_result_holds_the_stanza_as_it_was() {
        let mut w = Writer::new();
        let stanza = b"<message from='a@b' to='c@d'><body>&lt;3</body></message>";
        write_result(&mut w, Some("f'1"), Kept { id: "i1", millis: 1000, stanza });
        let element = Element::parse(w.finish(), ns::CLIENT).unwrap();
        let result = element.root();
        assert_eq!(
            (result.attr("queryid").as_deref(), result.attr("id").as_deref()),
            (Some("f'1"), Some("i1"))
        );
        let forwarded = result.child(ns::FORWARD, "forwarded").unwrap();
        let delay = forwarded.child(ns::DELAY, "delay").unwrap();
        assert_eq!(delay.attr("stamp").as_deref(), Some("1970-01-01T00:00:01.000Z"));
        let message = forwarded.child(ns::CLIENT, "message").unwrap();
        assert_eq!(message.child(ns::CLIENT, "body").unwrap().text(), "<3");
        assert_eq!(message.attr("from").as_deref(), Some("a@b"));
    }

    #[test]
    fn preferences_say_what_is_kept() {
        let prefs = |xml: &str| {
            let xml = xml.replace("<prefs", "<prefs xmlns='urn:xmpp:mam:2'");
            Preferences::parse(Element::parse(xml.into_bytes(), ns::CLIENT).unwrap().root())
        };
        let jid = |text: &str| Jid::parse(text).unwrap();
        let mine = prefs(
            "<prefs default='roster'><always><jid>romeo@montague.lit</jid><jid>a@b/c</jid></always>\
             <never><jid>a@b</jid><jid>montague@montague.lit</jid></never></prefs>",
        )
        .unwrap();
        assert!(mine.allows(&jid("romeo@montague.lit/orchard"), || false));
        assert!(!mine.allows(&jid("montague@montague.lit/home"), || true));
        assert!(mine.allows(&jid("a@b/c"), || false), "the more precise one");
        assert!(!mine.allows(&jid("a@b/d"), || true));
        assert!(mine.allows(&jid("nurse@capulet.lit"), || true) && !mine.allows(&jid("x@y"), || false));
        let mut w = Writer::new();
        mine.write(&mut w);
        let again = Element::parse(w.finish(), ns::CLIENT).unwrap();
        assert_eq!(Preferences::parse(again.root()).as_ref(), Ok(&mine));
        for (xml, error) in [
            ("<prefs/>", PreferencesError::NoDefault),
            ("<prefs default='maybe'/>", PreferencesError::NoDefault),
            ("<prefs default='always'><never><jid>@</jid></never></prefs>", PreferencesError::NotAnAddress),
            (
                "<prefs default='always'><never><jid>a@b</jid></never><always><jid>A@b</jid></always></prefs>",
                PreferencesError::Contradiction,
            ),
        ] {
            assert_eq!(prefs(xml), Err(error), "{xml}");
        }
    }
}
