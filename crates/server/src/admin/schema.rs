//! What each operation takes, read from the schemas of [`Operation`]: the HTTP API, its description and the ad-hoc
//! commands are made of this and of [`super::table`].

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::table::{Row, TABLE};
use super::{OpError, Operation};

/// One field of an operation.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// What it is, for people.
    pub summary: String,
    /// Its schema, as in [`definitions`].
    pub schema: Value,
    /// There is no operation without it.
    pub required: bool,
    /// What a text that stands for it is to be read as.
    pub kind: FieldKind,
}

/// How a field is written as text: in a query, in a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// As it is.
    Text,
    /// A secret text.
    Secret,
    /// Decimal digits.
    Number,
    /// `true` or `false`.
    Bool,
    /// One of these words.
    OneOf(Vec<String>),
    /// Some of these words.
    SomeOf(Vec<String>),
    /// JSON.
    Json,
}

/// The schema of [`Operation`], as JSON.
fn operations() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(|| schemars::schema_for!(Operation).to_value())
}

/// All named parts of the schemas of operations.
pub fn definitions() -> &'static Map<String, Value> {
    static NONE: OnceLock<Map<String, Value>> = OnceLock::new();
    operations().get("$defs").and_then(Value::as_object).unwrap_or_else(|| NONE.get_or_init(Map::new))
}

fn resolve(schema: &Value) -> &Value {
    let name = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
    name.and_then(|name| definitions().get(name)).unwrap_or(schema)
}

/// The fields of an operation, in the order in which they are declared.
pub fn fields(row: &Row) -> &'static [Field] {
    static FIELDS: OnceLock<HashMap<(&'static str, &'static str), Vec<Field>>> = OnceLock::new();
    let all = FIELDS.get_or_init(|| TABLE.iter().map(|row| ((row.op, row.act), read(row))).collect());
    all.get(&(row.op, row.act)).map_or(&[], Vec::as_slice)
}

fn read(row: &Row) -> Vec<Field> {
    let Some(mut variant) = variant(operations(), "op", row.op) else { return Vec::new() };
    let mut required = names(variant);
    let mut properties = variant.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    if !row.act.is_empty() {
        let Some(act) = self::variant(resolve(variant), "do", row.act) else { return Vec::new() };
        variant = act;
        required.extend(names(variant));
        properties.extend(variant.get("properties").and_then(Value::as_object).cloned().unwrap_or_default());
    }
    let field = |(name, schema): (String, Value)| Field {
        summary: summary(&schema),
        required: required.contains(&name),
        kind: kind(&name, &schema),
        name,
        schema,
    };
    properties.into_iter().filter(|(name, _)| name != "op" && name != "do").map(field).collect()
}

/// The variant of an internally tagged enum whose `tag` is `name`.
fn variant<'a>(schema: &'a Value, tag: &str, name: &str) -> Option<&'a Value> {
    let is_it = |variant: &&Value| variant["properties"][tag]["const"].as_str() == Some(name);
    schema.get("oneOf")?.as_array()?.iter().find(is_it)
}

fn names(schema: &Value) -> Vec<String> {
    let names = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    names.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn summary(schema: &Value) -> String {
    let own = schema.get("description").or_else(|| resolve(schema).get("description"));
    own.and_then(Value::as_str).unwrap_or_default().replace('\n', " ")
}

fn kind(name: &str, schema: &Value) -> FieldKind {
    if name == "password" {
        return FieldKind::Secret;
    }
    // `Option<T>` is `anyOf [T, null]`.
    let inner = schema.get("anyOf").and_then(Value::as_array).and_then(|all| all.first()).unwrap_or(schema);
    let inner = resolve(inner);
    let words = words(inner);
    if !words.is_empty() {
        return FieldKind::OneOf(words);
    }
    let is = |wanted: &str| match inner.get("type") {
        Some(Value::String(name)) => name == wanted,
        Some(Value::Array(names)) => names.iter().any(|name| name == wanted),
        _ => false,
    };
    if is("array") {
        let words = inner.get("items").map(|items| self::words(resolve(items))).unwrap_or_default();
        return if words.is_empty() { FieldKind::Json } else { FieldKind::SomeOf(words) };
    }
    match () {
        () if is("integer") || is("number") => FieldKind::Number,
        () if is("boolean") => FieldKind::Bool,
        () if is("string") => FieldKind::Text,
        () => FieldKind::Json,
    }
}

/// The words of an enum without fields.
fn words(schema: &Value) -> Vec<String> {
    let listed = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    let variants = schema.get("oneOf").and_then(Value::as_array).into_iter().flatten();
    let mut words: Vec<String> = listed.filter_map(Value::as_str).map(str::to_owned).collect();
    for variant in variants {
        match variant.get("const").and_then(Value::as_str) {
            Some(word) => words.push(word.to_owned()),
            None => {
                let listed = variant.get("enum").and_then(Value::as_array).into_iter().flatten();
                let before = words.len();
                words.extend(listed.filter_map(Value::as_str).map(str::to_owned));
                if words.len() == before {
                    return Vec::new();
                }
            }
        }
    }
    words
}

impl Field {
    /// Reads a text that stands for the field.
    ///
    /// # Errors
    /// [`OpError::BadRequest`], with the field's name.
    pub fn read(&self, text: &str) -> Result<Value, OpError> {
        let wrong = |what: &str| OpError::BadRequest(format!("{}: {what}", self.name));
        match &self.kind {
            FieldKind::Text | FieldKind::Secret => Ok(Value::String(text.to_owned())),
            FieldKind::Number => match text.trim().parse::<i64>() {
                Ok(number) => Ok(number.into()),
                Err(_) => Err(wrong("not a whole number")),
            },
            FieldKind::Bool => match text {
                "true" | "1" => Ok(true.into()),
                "false" | "0" => Ok(false.into()),
                _ => Err(wrong("neither true nor false")),
            },
            FieldKind::OneOf(words) if words.iter().any(|word| word == text) => {
                Ok(Value::String(text.to_owned()))
            }
            FieldKind::OneOf(words) => Err(wrong(&format!("not one of {}", words.join(", ")))),
            FieldKind::SomeOf(_) => {
                let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
                Ok(words.map(|word| Value::String(word.to_owned())).collect())
            }
            FieldKind::Json => serde_json::from_str(text).map_err(|_| wrong("not JSON")),
        }
    }
}

/// The operation of a row with these fields.
///
/// # Errors
/// [`OpError::BadRequest`]: a field that is unknown, missing or of another kind. The values that came are never
/// repeated: a password may be among them.
pub fn operation(row: &Row, mut given: Map<String, Value>) -> Result<Operation, OpError> {
    let known = fields(row);
    if let Some(name) = given.keys().find(|name| !known.iter().any(|field| field.name == **name)) {
        return Err(OpError::BadRequest(format!("{}: unknown field", printable(name))));
    }
    if let Some(field) = known.iter().find(|field| field.required && !given.contains_key(&field.name)) {
        return Err(OpError::BadRequest(format!("{}: missing", field.name)));
    }
    // serde overlooks unknown fields beside a variant without fields, also those of the caller's that say nothing.
    for field in known {
        let unknown = given.get(&field.name).and_then(|value| unknown(value, &field.schema));
        if let Some(path) = unknown {
            let path = printable(&format!("{}.{path}", field.name));
            return Err(OpError::BadRequest(format!("{path}: unknown field")));
        }
    }
    given.insert("op".into(), row.op.into());
    if !row.act.is_empty() {
        given.insert("do".into(), row.act.into());
    }
    serde_json::from_value(Value::Object(given.clone())).map_err(|error| {
        // Which field it was is found by leaving one out at a time: the error itself may repeat a value.
        let culprit = known.iter().find(|field| {
            let mut without = given.clone();
            without.remove(&field.name).is_some()
                && match serde_json::from_value::<Operation>(Value::Object(without)) {
                    Ok(_) => true,
                    Err(error) => error.to_string().starts_with("missing field"),
                }
        });
        let name = culprit.map_or("a field", |field| field.name.as_str());
        OpError::BadRequest(format!("{name}: {}", words_of(&error)))
    })
}

/// A text of the caller's, fit for an answer.
fn printable(text: &str) -> String {
    text.chars().take(100).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// What serde says, if it names shapes only.
fn words_of(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if text.starts_with("unknown field") || text.starts_with("missing field") {
        return printable(&text);
    }
    match text.split_once("expected ") {
        Some((_, expected)) => format!("expected {expected}"),
        None => "not of the right kind".into(),
    }
}

/// The path of a field in `value` that its schema does not know.
fn unknown(value: &Value, schema: &Value) -> Option<String> {
    match value {
        Value::Object(fields) => {
            let mut known = HashMap::new();
            collect(schema, fields, &mut known);
            fields.iter().find_map(|(name, value)| match known.get(name.as_str()) {
                Some(schema) => unknown(value, schema).map(|rest| format!("{name}.{rest}")),
                // No fields are named: the names are the caller's to choose.
                None if known.is_empty() => None,
                None => Some(name.clone()),
            })
        }
        Value::Array(items) => {
            let schema = items_of(schema)?;
            items.iter().find_map(|item| unknown(item, schema))
        }
        _ => None,
    }
}

/// The fields that a schema knows for an object with these fields: of enums those of the variants that it may be.
fn collect<'a>(schema: &'a Value, fields: &Map<String, Value>, known: &mut HashMap<&'a str, &'a Value>) {
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        let is_another = |(name, schema): (&String, &Value)| {
            schema.get("const").is_some_and(|tag| fields.get(name) != Some(tag))
        };
        if properties.iter().any(is_another) {
            return;
        }
        known.extend(properties.iter().map(|(name, schema)| (name.as_str(), schema)));
    }
    let referred = resolve(schema);
    if !std::ptr::eq(referred, schema) {
        collect(referred, fields, known);
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        for part in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
            collect(part, fields, known);
        }
    }
}

/// What the items of an array are, also of one that may be absent.
fn items_of(schema: &Value) -> Option<&Value> {
    let schema = resolve(schema);
    let parts = schema.get("anyOf").and_then(Value::as_array).into_iter().flatten();
    schema.get("items").or_else(|| parts.filter_map(items_of).next())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::actor::Scope;
    use super::super::table;
    use super::*;

    fn make(op: (&str, &str), given: Value) -> Result<Operation, String> {
        let Value::Object(given) = given else { panic!() };
        operation(table::row(op.0, op.1).unwrap(), given).map_err(|error| error.to_string())
    }

    #[test]
    fn every_field_can_be_written_as_text_or_is_json() {
        let history = fields(table::row("domains", "history").unwrap());
        let kinds: Vec<_> =
            history.iter().map(|field| (field.name.as_str(), &field.kind, field.required)).collect();
        assert_eq!(kinds, [("domain", &FieldKind::Text, false), ("hours", &FieldKind::Number, true)]);
        let set = fields(table::row("breaker", "set").unwrap());
        let level = set.iter().find(|field| field.name == "level").unwrap();
        assert!(matches!(&level.kind, FieldKind::OneOf(words) if words.len() == 5 && words[4] == "closed"));
        let password = fields(table::row("user-add", "").unwrap());
        assert!(password.iter().any(|field| field.kind == FieldKind::Secret && field.required));
        let scopes = fields(table::row("tokens", "create").unwrap());
        assert!(
            scopes.iter().any(
                |field| matches!(&field.kind, FieldKind::SomeOf(words) if words.len() == Scope::ALL.len())
            )
        );
        for row in table::TABLE.iter().filter(|row| row.method == table::Method::Get) {
            for field in fields(row) {
                assert_ne!(field.kind, FieldKind::Json, "{} {}: {}", row.op, row.act, field.name);
            }
        }
    }

    #[test]
    fn unknown_fields_are_refused_at_every_depth() {
        assert!(make(("breaker", "show"), json!({})).is_ok());
        // Every name that a rule may have is known.
        let rule = json!({
            "direction": "in",
            "when": { "domain": "a.example", "subdomains": true, "relation": ["stranger"], "has": ["link"] },
            "then": { "do": "reject", "condition": "forbidden", "text": "no" },
            "reason": "r",
            "until": null,
        });
        let made = make(("policy", "add"), json!({ "rule": rule, "position": null }));
        assert!(made.is_ok(), "{made:?}");
        for (op, given, words) in [
            (("breaker", "show"), json!({ "domain": "a.example" }), "domain: unknown field"),
            (("status", ""), json!({ "verbose": true }), "verbose: unknown field"),
            (("status", ""), json!({ "op": "reload" }), "op: unknown field"),
            (("domains", "now"), json!({ "do": "list" }), "do: unknown field"),
            (
                ("policy", "add"),
                json!({ "rule": { "then": { "do": "drop", "loudly": true } } }),
                "rule.then.loudly: unknown field",
            ),
            (
                ("policy", "add"),
                json!({ "rule": { "then": { "do": "drop", "loudly": false } } }),
                "rule.then.loudly: unknown field",
            ),
            (
                ("policy", "add"),
                json!({ "rule": { "then": { "do": "drop" }, "x": 1 } }),
                "rule.x: unknown field",
            ),
            (
                ("policy", "add"),
                json!({ "rule": { "then": { "do": "drop" }, "x": null } }),
                "rule.x: unknown field",
            ),
            (
                ("policy", "add"),
                json!({ "rule": { "when": { "y": 1 }, "then": { "do": "drop" } } }),
                "unknown field",
            ),
            (("user-add", ""), json!({ "address": "a@b.example" }), "password: missing"),
            (("domains", "history"), json!({ "hours": "many" }), "hours: "),
        ] {
            let error = make(op, given.clone()).unwrap_err();
            assert!(error.contains(words), "{op:?} {given}: {error}");
        }
    }

    #[test]
    fn values_are_not_repeated() {
        let error =
            make(("user-add", ""), json!({ "address": "a@b.example", "password": ["hunter2"] })).unwrap_err();
        assert!(error.contains("password") && !error.contains("hunter2"), "{error}");
        let error =
            make(("user-add", ""), json!({ "address": { "hunter2": 1 }, "password": "x" })).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
