//! What a subscriber wants of a subscription (s.6.3).

use serde::{Deserialize, Serialize};
use trunkline_xmpp::error::StanzaError;
use trunkline_xmpp::forms::{Field, Form, Submission};
use trunkline_xmpp::ns;
use trunkline_xmpp::time;

use super::errors;

/// Options of a subscription. As JSON in the store, but for the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SubscribeOptions {
    /// Notifications are wanted.
    pub deliver: bool,
    /// It ends by itself then; milliseconds since 1970. A column of its own.
    #[serde(skip)]
    pub expires: Option<i64>,
}

impl Default for SubscribeOptions {
    fn default() -> SubscribeOptions {
        SubscribeOptions { deliver: true, expires: None }
    }
}

const DELIVER: &str = "pubsub#deliver";
const EXPIRE: &str = "pubsub#expire";

impl SubscribeOptions {
    pub(super) fn stored(json: &str) -> SubscribeOptions {
        serde_json::from_str(json).unwrap_or_default()
    }

    pub(super) fn to_json(self) -> String {
        serde_json::to_string(&self).unwrap_or_default()
    }

    /// The form for the subscriber.
    pub fn form(self) -> Form {
        self.write(Form::form(ns::PUBSUB_SUBSCRIBE_OPTIONS))
    }

    /// As they are now (s.6.3.7).
    pub fn result(self) -> Form {
        self.write(Form::result(ns::PUBSUB_SUBSCRIBE_OPTIONS))
    }

    fn write(self, form: Form) -> Form {
        let deliver = if self.deliver { "1" } else { "0" };
        let expire = Field::text_single(EXPIRE).label("When the subscription ends by itself (a DateTime)");
        let expire = match self.expires {
            Some(at) => expire.value(&time::format_millis(at)),
            None => expire,
        };
        form.field(Field::boolean(DELIVER).label("Notifications are wanted").value(deliver)).field(expire)
    }

    /// Takes over what was submitted.
    ///
    /// # Errors
    /// s.6.3.5: `invalid-options`.
    pub fn submit(self, form: &Submission, now: i64) -> Result<SubscribeOptions, StanzaError> {
        let wrong = |text: &str| {
            let condition = trunkline_xmpp::error::Condition::BadRequest;
            errors::specific(condition, "invalid-options").text(text)
        };
        let mut options = self;
        if form.value(DELIVER).is_some() {
            options.deliver = form.boolean(DELIVER).ok_or_else(|| wrong("pubsub#deliver is yes or no."))?;
        }
        match form.value(EXPIRE).map(str::trim) {
            None => {}
            Some("") => options.expires = None,
            Some(text) => {
                let at = time::parse_millis(text).map_err(|_| wrong("pubsub#expire is not a DateTime."))?;
                if at <= now {
                    return Err(wrong("pubsub#expire lies in the past."));
                }
                options.expires = Some(at);
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use trunkline_xml::{Element, Writer};

    use super::*;

    fn submit(fields: &str) -> Result<SubscribeOptions, StanzaError> {
        let form = format!("<x xmlns='jabber:x:data' type='submit'>{fields}</x>");
        let element = Element::parse(form, ns::CLIENT).unwrap();
        let before = SubscribeOptions { deliver: true, expires: Some(5000) };
        before.submit(&Submission::parse(element.root()).unwrap(), 1000)
    }

    #[test]
    fn submitted() {
        let field =
            |name: &str, value: &str| submit(&format!("<field var='{name}'><value>{value}</value></field>"));
        assert_eq!(submit(""), Ok(SubscribeOptions { deliver: true, expires: Some(5000) }));
        assert_eq!(field(DELIVER, "0"), Ok(SubscribeOptions { deliver: false, expires: Some(5000) }));
        assert_eq!(field(EXPIRE, "").unwrap().expires, None);
        assert_eq!(field(EXPIRE, "1970-01-01T00:00:09Z").unwrap().expires, Some(9000));
        for (name, value) in [(DELIVER, "x"), (EXPIRE, "tomorrow"), (EXPIRE, "1970-01-01T00:00:01Z")] {
            let error = field(name, value).unwrap_err();
            assert!(String::from_utf8_lossy(&error.app.unwrap()).contains("invalid-options"), "{value}");
        }
    }

    #[test]
    fn what_is_shown_can_be_submitted() {
        let options = SubscribeOptions { deliver: false, expires: Some(9000) };
        let mut w = Writer::new();
        options.form().write(&mut w);
        let element = Element::parse(w.finish(), ns::CLIENT).unwrap();
        let form = Submission::parse(element.root()).unwrap();
        assert_eq!(SubscribeOptions::default().submit(&form, 0), Ok(options));
        assert_eq!(
            SubscribeOptions::stored(&options.to_json()),
            SubscribeOptions { expires: None, ..options }
        );
    }
}
