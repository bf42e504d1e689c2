//! A node's configuration: THE TABLE of its fields, from which the form, what is submitted, and preconditions of a
//! publication (XEP-0060 s.7.1.5) are made.

use serde::{Deserialize, Serialize};
use trunkline_xml::Node;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::forms::{Field, Form, Submission};
use trunkline_xmpp::ns;

use super::errors;

/// Characters of a title, a description and the like.
const MOST_TEXT: usize = 1000;
/// Groups of the owner's roster that one node may name.
const MOST_GROUPS: usize = 50;

/// Who may subscribe and read (s.4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Everybody.
    Open,
    /// Contacts with a subscription to the owner's presence.
    #[default]
    Presence,
    /// Contacts in some groups of the owner's roster.
    Roster,
    /// Who was approved by an owner.
    Authorize,
    /// Members.
    Whitelist,
}

/// Who may publish, beside owners and publishers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Publishers {
    /// Nobody.
    #[default]
    Publishers,
    /// Subscribers.
    Subscribers,
    /// Whoever may read.
    Open,
}

/// When the last item is sent without being asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SendLast {
    /// Never.
    Never,
    /// To new subscribers.
    OnSub,
    /// And to those who become available.
    #[default]
    OnSubAndPresence,
}

/// What happens when a node has as many items as it may have (s.7.1.2.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The oldest goes.
    #[default]
    DiscardOldest,
    /// The oldest goes, and subscribers are told.
    RetractOldest,
    /// The new one is refused.
    Reject,
}

/// Whom subscribers answer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplyTo {
    /// The owner.
    Owner,
    /// Whoever published the item.
    Publisher,
}

/// The type of messages that notify.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// To whoever is there now.
    #[default]
    Headline,
    /// To be kept for later.
    Normal,
}

/// A node's configuration. As JSON in the store: what is missing there has its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeConfig {
    /// For people.
    pub title: String,
    /// For people.
    pub description: String,
    /// Of title, description and items.
    pub language: String,
    /// What the items mean; not always their namespace (XEP-0472 s.5), so not enforced.
    pub payload: String,
    /// Who may read.
    pub access: Access,
    /// For [`Access::Roster`].
    pub groups: Vec<String>,
    /// Who may publish.
    pub publishers: Publishers,
    /// Whether anybody may subscribe.
    pub subscribe: bool,
    /// Items are kept.
    pub persist: bool,
    /// How many; `None`: as many as the service allows.
    pub max_items: Option<usize>,
    /// Seconds that an item is kept; `None`: for good.
    pub item_expire: Option<u64>,
    /// What happens when there are as many.
    pub when_full: WhenFull,
    /// Bytes of one payload; `None`: as many as the service allows.
    pub max_payload: Option<usize>,
    /// When the last item is sent.
    pub send_last: SendLast,
    /// Subscribers are told of items.
    pub notify: bool,
    /// With the payload.
    pub payloads: bool,
    /// Subscribers are told of changes of the configuration.
    pub notify_config: bool,
    /// Subscribers are told when the node goes.
    pub notify_delete: bool,
    /// Subscribers are told when an item goes.
    pub notify_retract: bool,
    /// Owners are told of subscribers that come and go.
    pub notify_sub: bool,
    /// Whom subscribers answer to.
    pub reply_to: Option<ReplyTo>,
    /// How they are told.
    pub style: Style,
}

impl Default for NodeConfig {
    fn default() -> NodeConfig {
        NodeConfig {
            title: String::new(),
            description: String::new(),
            language: String::new(),
            payload: String::new(),
            access: Access::Presence,
            groups: Vec::new(),
            publishers: Publishers::Publishers,
            subscribe: true,
            persist: true,
            max_items: Some(1),
            item_expire: None,
            when_full: WhenFull::DiscardOldest,
            max_payload: None,
            send_last: SendLast::OnSubAndPresence,
            notify: true,
            payloads: true,
            notify_config: false,
            notify_delete: true,
            notify_retract: true,
            notify_sub: false,
            reply_to: None,
            style: Style::Headline,
        }
    }
}

/// What a service allows.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// Items of one node.
    pub items: usize,
    /// Bytes of one payload.
    pub payload: usize,
    /// Access by presence and by roster groups: the owner is an account.
    pub contacts: bool,
}

/// Why a form is not taken. The peer's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a form, or one of another type.
    #[error("the form can't be read")]
    Form,
    /// No such field.
    #[error("there is no field {0}")]
    Unknown(String),
    /// The value is not one of the field's.
    #[error("{0} has a value that it can't have")]
    Value(&'static str),
    /// An access model that is not for this service.
    #[error("this access model is not for nodes here")]
    Access,
    /// More than the service allows.
    #[error("{0} may be {1} at most here")]
    Above(&'static str, usize),
    /// A node of nodes (XEP-0248).
    #[error("nodes hold items here")]
    Collection,
}

impl From<ConfigError> for StanzaError {
    fn from(error: ConfigError) -> StanzaError {
        let text = error.to_string();
        match error {
            ConfigError::Form => StanzaError::new(Condition::BadRequest).text(text),
            ConfigError::Access => {
                errors::specific(Condition::NotAcceptable, "unsupported-access-model").text(text)
            }
            ConfigError::Collection => errors::unsupported("collections").text(text),
            // s.8.2.5.2: the change can't be processed.
            ConfigError::Unknown(_) | ConfigError::Value(_) | ConfigError::Above(..) => {
                StanzaError::new(Condition::NotAcceptable).text(text)
            }
        }
    }
}

type Options = &'static [(&'static str, &'static str)];

enum Kind {
    Text,
    Yes,
    List(Options),
    Many,
}

/// One row: the field's name behind `pubsub#`, and how it is got and set.
struct Row {
    name: &'static str,
    label: &'static str,
    kind: Kind,
    get: fn(&NodeConfig) -> Vec<String>,
    set: fn(&mut NodeConfig, &[String]) -> Option<()>,
}

const ACCESS: Options = &[
    ("open", "Everybody"),
    ("presence", "Contacts who see the owner's presence"),
    ("roster", "Contacts in the groups below"),
    ("authorize", "Who was approved"),
    ("whitelist", "Members"),
];
const PUBLISHERS: Options = &[
    ("publishers", "Owners and publishers"),
    ("subscribers", "And subscribers"),
    ("open", "And whoever may read"),
];
const SEND_LAST: Options = &[
    ("never", "Never"),
    ("on_sub", "To new subscribers"),
    ("on_sub_and_presence", "And to those who become available"),
];
const WHEN_FULL: Options = &[
    ("discard-oldest", "The oldest item goes"),
    ("retract-oldest", "The oldest item goes, and subscribers are told"),
    ("reject", "The new item is refused"),
];
const REPLY_TO: Options = &[("owner", "The owner"), ("publisher", "The item's publisher")];
const STYLE: Options = &[("headline", "To whoever is there"), ("normal", "To be kept for later")];

fn text(value: &str) -> Vec<String> {
    vec![value.to_owned()]
}

fn read_text(values: &[String]) -> Option<String> {
    let text = values.first().map_or("", String::as_str);
    (text.chars().count() <= MOST_TEXT).then(|| text.to_owned())
}

fn yes(value: &bool) -> Vec<String> {
    vec![if *value { "1" } else { "0" }.to_owned()]
}

fn read_yes(values: &[String]) -> Option<bool> {
    match values.first()?.trim() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// A number, or `max`.
fn most(value: &Option<impl ToString>) -> Vec<String> {
    vec![value.as_ref().map_or_else(|| "max".to_owned(), ToString::to_string)]
}

/// `Some(None)` is `max`.
fn read_most<T: std::str::FromStr>(values: &[String]) -> Option<Option<T>> {
    match values.first()?.trim() {
        "max" | "" => Some(None),
        number => number.parse().ok().map(Some),
    }
}

/// The names of enums in forms are those in the store, but for a dash.
fn named(value: &impl Serialize) -> Vec<String> {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).into_iter().collect()
}

fn read_named<T: for<'a> Deserialize<'a>>(values: &[String]) -> Option<T> {
    serde_json::from_value(values.first()?.trim().into()).ok()
}

fn dashed(value: &impl Serialize) -> Vec<String> {
    named(value).into_iter().map(|name| name.replace('_', "-")).collect()
}

fn read_dashed<T: for<'a> Deserialize<'a>>(values: &[String]) -> Option<T> {
    read_named(&values.iter().map(|value| value.replace('-', "_")).collect::<Vec<_>>())
}

fn maybe(value: &Option<impl Serialize>) -> Vec<String> {
    value.as_ref().map(named).unwrap_or_default()
}

/// `Some(None)` is nothing.
fn read_maybe<T: for<'a> Deserialize<'a>>(values: &[String]) -> Option<Option<T>> {
    match values.first().map_or("", |value| value.trim()) {
        "" => Some(None),
        _ => read_named(values).map(Some),
    }
}

fn many(values: &[String]) -> Vec<String> {
    values.to_vec()
}

fn read_groups(values: &[String]) -> Option<Vec<String>> {
    let fits = values.len() <= MOST_GROUPS && values.iter().all(|group| group.len() <= MOST_TEXT);
    fits.then(|| values.to_vec())
}

macro_rules! row {
    ($name:literal, $label:literal, $kind:expr, $field:ident: $write:ident, $read:ident) => {
        Row {
            name: $name,
            label: $label,
            kind: $kind,
            get: |config| $write(&config.$field),
            set: |config, values| {
                config.$field = $read(values)?;
                Some(())
            },
        }
    };
}

const ROWS: &[Row] = &[
    row!("title", "Title", Kind::Text, title: text, read_text),
    row!("description", "Description", Kind::Text, description: text, read_text),
    row!("language", "Language", Kind::Text, language: text, read_text),
    row!("type", "Namespace of the items", Kind::Text, payload: text, read_text),
    row!("access_model", "Who may subscribe and read", Kind::List(ACCESS), access: named, read_named),
    row!(
        "roster_groups_allowed", "Groups of the roster that may subscribe and read",
        Kind::Many, groups: many, read_groups
    ),
    row!("publish_model", "Who may publish", Kind::List(PUBLISHERS), publishers: named, read_named),
    row!("subscribe", "Whether anybody may subscribe", Kind::Yes, subscribe: yes, read_yes),
    row!("persist_items", "Keep items", Kind::Yes, persist: yes, read_yes),
    row!(
        "max_items", "Items that are kept at most; max: as many as the server allows",
        Kind::Text, max_items: most, read_most
    ),
    row!(
        "item_expire", "Seconds after which an item goes; max: never",
        Kind::Text, item_expire: most, read_most
    ),
    row!(
        "publish_node_full", "When there are as many items as there may be",
        Kind::List(WHEN_FULL), when_full: dashed, read_dashed
    ),
    row!(
        "max_payload_size", "Bytes of an item at most; max: as many as the server allows",
        Kind::Text, max_payload: most, read_most
    ),
    row!(
        "send_last_published_item", "When the last item is sent unasked",
        Kind::List(SEND_LAST), send_last: named, read_named
    ),
    row!("deliver_notifications", "Tell subscribers of items", Kind::Yes, notify: yes, read_yes),
    row!("deliver_payloads", "With what is in them", Kind::Yes, payloads: yes, read_yes),
    row!(
        "notify_config", "Tell subscribers when the configuration changes",
        Kind::Yes, notify_config: yes, read_yes
    ),
    row!(
        "notify_delete", "Tell subscribers when the node is deleted",
        Kind::Yes, notify_delete: yes, read_yes
    ),
    row!(
        "notify_retract", "Tell subscribers when an item is retracted",
        Kind::Yes, notify_retract: yes, read_yes
    ),
    row!("notify_sub", "Tell owners of subscribers that come and go", Kind::Yes, notify_sub: yes, read_yes),
    row!("itemreply", "Whom subscribers answer to", Kind::List(REPLY_TO), reply_to: maybe, read_maybe),
    row!("notification_type", "Messages that notify", Kind::List(STYLE), style: named, read_named),
];

const PREFIX: &str = "pubsub#";

impl NodeConfig {
    /// What a node of a service is at first: XEP-0060 leaves it open, and this is what people expect of a feed.
    pub fn of_service() -> NodeConfig {
        NodeConfig {
            access: Access::Open,
            max_items: Some(20),
            send_last: SendLast::OnSub,
            ..NodeConfig::default()
        }
    }

    /// XEP-0048: one item, for nobody else; who becomes available gets it (XEP-0411 s.4).
    pub fn bookmarks_legacy() -> NodeConfig {
        NodeConfig { access: Access::Whitelist, ..NodeConfig::default() }
    }

    /// XEP-0222 s.3, XEP-0292 s.3.1: for everybody, as people expect of what they tell about themselves.
    pub fn public() -> NodeConfig {
        NodeConfig { access: Access::Open, ..NodeConfig::default() }
    }

    /// XEP-0223 s.3: nobody else gets to see it, and all of it is kept.
    pub fn private() -> NodeConfig {
        NodeConfig {
            access: Access::Whitelist,
            max_items: None,
            send_last: SendLast::Never,
            ..NodeConfig::default()
        }
    }

    /// The form for its owners (s.8.2).
    pub fn form(&self) -> Form {
        self.write(Form::form(ns::PUBSUB_NODE_CONFIG))
    }

    /// As subscribers are told of it (s.8.2.5.4).
    pub fn result(&self) -> Form {
        self.write(Form::result(ns::PUBSUB_NODE_CONFIG))
    }

    fn write(&self, form: Form) -> Form {
        ROWS.iter().fold(form, |form, row| {
            let var = format!("{PREFIX}{}", row.name);
            let field = match row.kind {
                Kind::Text => Field::text_single(&var),
                Kind::Yes => Field::boolean(&var),
                Kind::Many => Field::text_multi(&var),
                Kind::List(options) => options
                    .iter()
                    .fold(Field::list_single(&var), |field, (value, label)| field.option(value, label)),
            };
            let values = (row.get)(self);
            let values = values.iter().filter(|value| !value.is_empty());
            form.field(values.fold(field.label(row.label), |field, value| field.value(value)))
        })
    }

    /// The value of a field, as the form has it.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        let row = ROWS.iter().find(|row| row.name == name)?;
        (row.get)(self).into_iter().next()
    }

    /// Takes over what was submitted; fields that are not there stay as they are (XEP-0004 s.3.2), and what a form asked
    /// for and a server does not know is no reason to fail.
    ///
    /// # Errors
    /// See [`ConfigError`]; nothing is changed then.
    pub fn submit(&self, form: &Submission, allowed: &Allowed) -> Result<NodeConfig, ConfigError> {
        self.filled(form, allowed, |_| Ok(()))
    }

    /// s.7.1.5: what has to be so for a publication. Everything must be known.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn demand(&self, form: &Submission, allowed: &Allowed) -> Result<NodeConfig, ConfigError> {
        if form.form_type().is_some_and(|form_type| form_type != ns::PUBSUB_PUBLISH_OPTIONS) {
            return Err(ConfigError::Form);
        }
        self.filled(form, allowed, |name| Err(ConfigError::Unknown(name.chars().take(100).collect())))
    }

    fn filled(
        &self,
        form: &Submission,
        allowed: &Allowed,
        unknown: fn(&str) -> Result<(), ConfigError>,
    ) -> Result<NodeConfig, ConfigError> {
        let mut config = self.clone();
        for name in form.names().filter(|name| *name != "FORM_TYPE") {
            let Some(row) = row(name) else {
                // XEP-0248 s.4: no field of a form of ours, and what it asks for must not be passed over.
                match (name, form.value(name)) {
                    ("pubsub#node_type", Some("collection")) => return Err(ConfigError::Collection),
                    ("pubsub#node_type", Some("leaf")) => {}
                    _ => unknown(name)?,
                }
                continue;
            };
            let values: Vec<String> = form.values(name).map(str::to_owned).collect();
            config.set(row, &values)?;
        }
        config.check(allowed)?;
        Ok(config)
    }

    fn set(&mut self, row: &'static Row, values: &[String]) -> Result<(), ConfigError> {
        (row.set)(self, values).ok_or(ConfigError::Value(row.name))
    }

    fn check(&self, allowed: &Allowed) -> Result<(), ConfigError> {
        if !allowed.contacts && matches!(self.access, Access::Presence | Access::Roster) {
            return Err(ConfigError::Access);
        }
        if self.max_items.is_some_and(|items| items > allowed.items) {
            return Err(ConfigError::Above("max_items", allowed.items));
        }
        if self.max_payload.is_some_and(|bytes| bytes > allowed.payload) {
            return Err(ConfigError::Above("max_payload_size", allowed.payload));
        }
        Ok(())
    }

    /// Milliseconds that an item is kept; `None`: for good.
    pub fn kept_for(&self) -> Option<i64> {
        self.item_expire.map(|seconds| i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX))
    }

    /// The first field in which the two differ, for the one who demanded it.
    pub fn difference(&self, other: &NodeConfig) -> Option<&'static str> {
        ROWS.iter().find(|row| (row.get)(self) != (row.get)(other)).map(|row| row.name)
    }

    /// Items that are kept.
    pub fn items(&self, allowed: &Allowed) -> usize {
        if !self.persist {
            // The last one is kept for those who come later (s.12.7), unless nobody is to get it.
            return usize::from(self.send_last != SendLast::Never);
        }
        self.max_items.unwrap_or(allowed.items).min(allowed.items)
    }
}

fn row(name: &str) -> Option<&'static Row> {
    let name = name.strip_prefix(PREFIX)?;
    ROWS.iter().find(|row| row.name == name)
}

/// What is in a `<configure/>`, `<options/>` or `<publish-options/>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filled {
    /// No form.
    Nothing,
    /// XEP-0004 s.3.1: `cancel`.
    Cancelled,
    /// This.
    Form(Submission),
}

impl Filled {
    /// Reads the form in `parent`.
    ///
    /// # Errors
    /// [`ConfigError::Form`].
    pub fn read(parent: Node<'_>, form_type: &str) -> Result<Filled, ConfigError> {
        let Some(x) = parent.child(ns::DATA_FORMS, "x") else { return Ok(Filled::Nothing) };
        if x.attr("type").is_some_and(|kind| kind == "cancel") {
            return Ok(Filled::Cancelled);
        }
        let form = Submission::parse(x).map_err(|_| ConfigError::Form)?;
        // XEP-0068 s.3.2: some clients do not send it back.
        if form.form_type().is_some_and(|given| given != form_type) {
            return Err(ConfigError::Form);
        }
        Ok(Filled::Form(form))
    }
}

#[cfg(test)]
mod tests {
    use trunkline_xml::{Element, Writer};

    use super::*;

    const ALLOWED: Allowed = Allowed { items: 100, payload: 1000, contacts: true };

    fn submission(fields: &str) -> Submission {
        let form = format!("<x xmlns='jabber:x:data' type='submit'>{fields}</x>");
        Submission::parse(Element::parse(form, ns::CLIENT).unwrap().root()).unwrap()
    }

    fn field(name: &str, value: &str) -> Submission {
        submission(&format!("<field var='pubsub#{name}'><value>{value}</value></field>"))
    }

    #[test]
    fn what_is_offered_can_be_submitted() {
        for config in [NodeConfig::default(), NodeConfig::of_service(), NodeConfig::private()] {
            let mut w = Writer::new();
            config.form().write(&mut w);
            let element = Element::parse(w.finish(), ns::CLIENT).unwrap();
            let form = Submission::parse(element.root()).unwrap();
            // Whatever the node was before, it is this afterwards.
            let before =
                NodeConfig { title: "x".into(), notify: false, persist: false, ..NodeConfig::private() };
            let after = before.submit(&form, &ALLOWED).unwrap();
            assert_eq!(after, NodeConfig { title: String::new(), ..config });
        }
    }

    #[test]
    fn every_option_is_a_value() {
        for row in ROWS {
            let Kind::List(options) = row.kind else { continue };
            for (value, _) in options {
                let mut config = NodeConfig::default();
                config.set(row, &[(*value).to_owned()]).unwrap();
                assert_eq!((row.get)(&config), [*value], "{}", row.name);
            }
        }
    }

    #[test]
    fn refused() {
        let submit =
            |name: &str, value: &str| NodeConfig::default().submit(&field(name, value), &ALLOWED).map(drop);
        assert_eq!(submit("access_model", "friends"), Err(ConfigError::Value("access_model")));
        assert_eq!(submit("persist_items", "maybe"), Err(ConfigError::Value("persist_items")));
        assert_eq!(submit("max_items", "-1"), Err(ConfigError::Value("max_items")));
        assert_eq!(submit("max_items", "101"), Err(ConfigError::Above("max_items", 100)));
        assert_eq!(submit("max_items", "100"), Ok(()));
        assert_eq!(submit("max_payload_size", "1001"), Err(ConfigError::Above("max_payload_size", 1000)));
        assert_eq!(submit("title", &"x".repeat(1001)), Err(ConfigError::Value("title")));
        // There are no nodes of nodes; that a node is none may be said.
        assert_eq!(submit("node_type", "collection"), Err(ConfigError::Collection));
        let demand = |value| NodeConfig::default().demand(&field("node_type", value), &ALLOWED).map(drop);
        assert_eq!((demand("leaf"), demand("collection")), (Ok(()), Err(ConfigError::Collection)));
        let service = Allowed { contacts: false, ..ALLOWED };
        let of_contacts = NodeConfig::of_service().submit(&field("access_model", "roster"), &service);
        assert_eq!(of_contacts, Err(ConfigError::Access));
        // Unknown in a form, that is nothing; in a demand it is.
        assert_eq!(submit("of_the_future", "1"), Ok(()));
        let demand = NodeConfig::default().demand(&field("of_the_future", "1"), &ALLOWED);
        assert_eq!(demand, Err(ConfigError::Unknown("pubsub#of_the_future".into())));
    }

    #[test]
    fn what_is_demanded() {
        let config = NodeConfig::private();
        let met = |name: &str, value: &str| config.demand(&field(name, value), &ALLOWED).unwrap() == config;
        assert!(met("access_model", "whitelist") && met("max_items", "max") && met("persist_items", "true"));
        assert!(!met("access_model", "open") && !met("max_items", "100") && !met("persist_items", "0"));
        let other = config.demand(&field("access_model", "open"), &ALLOWED).unwrap();
        assert_eq!(config.difference(&other), Some("access_model"));
    }

    #[test]
    fn what_is_kept() {
        let items = |config: NodeConfig| config.items(&ALLOWED);
        assert_eq!(items(NodeConfig::default()), 1);
        assert_eq!(items(NodeConfig::private()), 100);
        assert_eq!(items(NodeConfig { persist: false, max_items: Some(9), ..NodeConfig::default() }), 1);
        assert_eq!(
            items(NodeConfig { persist: false, send_last: SendLast::Never, ..NodeConfig::default() }),
            0
        );
    }
}
