//! `--set key=value`: presets for `init`.

use std::collections::BTreeMap;

use thiserror::Error;
use toml_edit::{Key, Value};

use super::check::{dotted, unknown};
use super::keys;
use super::value::Kind;

/// Values by path, in the form they will have in the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub(super) values: BTreeMap<Vec<String>, Value>,
}

/// Why a `--set` is refused. The operator's fault.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OverrideError {
    /// No `=`.
    #[error("--set {0}: write key=value")]
    NoValue(String),
    /// The part before `=` is not a dotted key.
    #[error("--set {0}: not a key; quote names with dots: federation.routes.\"peer.example\"=127.0.0.1:5269")]
    BadKey(String),
    /// Not in the table of keys.
    #[error("--set {key}: {text}")]
    Unknown {
        /// As written.
        key: String,
        /// With the nearest known key.
        text: String,
    },
    /// Known, but the value doesn't fit.
    #[error("--set {key}: {text}")]
    BadValue {
        /// As written.
        key: String,
        /// What would fit.
        text: String,
    },
}

impl Overrides {
    /// Adds one `key=value`. The value is TOML (`true`, `12`, `["a", "b"]`); what isn't TOML is text, so that
    /// `clients.listen=127.0.0.1:5222` needs no quotes within quotes.
    pub fn set(&mut self, text: &str) -> Result<(), OverrideError> {
        let (key, value) = split(text).ok_or_else(|| OverrideError::NoValue(text.to_owned()))?;
        let path = Key::parse(key).map_err(|_| OverrideError::BadKey(key.to_owned()))?;
        let path: Vec<String> = path.iter().map(|segment| segment.get().to_owned()).collect();
        let Some(row) = keys::find(&path) else {
            return Err(OverrideError::Unknown { key: key.to_owned(), text: unknown(&path) });
        };
        let value = match value.trim().parse::<Value>() {
            // A file called 5222 or a level called true is text nevertheless.
            Ok(parsed) if !parsed.is_str() && wants_text(row.kind) => Value::from(value.trim()),
            Ok(parsed) => parsed.decorated("", ""),
            Err(_) => Value::from(value.trim()),
        };
        let bad = |text| OverrideError::BadValue { key: dotted(&path), text };
        let plain: toml::Table =
            toml::from_str(&format!("v = {value}")).map_err(|error| bad(error.message().to_owned()))?;
        let plain = plain.get("v").ok_or_else(|| bad("no value".into()))?;
        row.kind.normalise(plain).map_err(bad)?;
        self.values.insert(path, value);
        Ok(())
    }

    /// The same for values a program has.
    pub fn with(mut self, path: &[&str], value: impl Into<Value>) -> Overrides {
        self.values.insert(path.iter().map(|segment| (*segment).to_owned()).collect(), value.into());
        self
    }

    /// Whether a key is preset.
    pub fn contains(&self, path: &[&str]) -> bool {
        self.values.keys().any(|key| key.iter().map(String::as_str).eq(path.iter().copied()))
    }
}

fn wants_text(kind: Kind) -> bool {
    matches!(kind, Kind::Domain | Kind::Text | Kind::Secret | Kind::Path | Kind::OneOf(_) | Kind::StoreUrl)
}

/// At the first `=` outside quotes.
fn split(text: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    for (index, c) in text.char_indices() {
        match (quote, c) {
            (None, '=') => return Some((&text[..index], &text[index + 1..])),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
    }
    None
}
