//! The description of the HTTP API (OpenAPI 3.1), made of the table of operations and their schemas.

use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::problem::KINDS;
use super::sign_in::{Enrolment, SessionView, SignIn, SignInAnswer, TotpCode};
use crate::admin::table::{Method, Row, TABLE};
use crate::admin::{Outcome, schema};

/// The document.
pub fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(make)
}

/// The document as it is committed.
pub fn text() -> String {
    let mut text = serde_json::to_string_pretty(document()).unwrap_or_default();
    text.push('\n');
    text
}

fn make() -> Value {
    let mut schemas = Map::new();
    add(&mut schemas, "Outcome", schemars::schema_for!(Outcome).to_value());
    add(&mut schemas, "SignIn", schemars::schema_for!(SignIn).to_value());
    add(&mut schemas, "SignInAnswer", schemars::schema_for!(SignInAnswer).to_value());
    add(&mut schemas, "Session", schemars::schema_for!(SessionView).to_value());
    add(&mut schemas, "Enrolment", schemars::schema_for!(Enrolment).to_value());
    add(&mut schemas, "TotpCode", schemars::schema_for!(TotpCode).to_value());
    for (name, part) in schema::definitions() {
        // The operations themselves stand in the paths.
        if !name.ends_with("Op") {
            schemas.entry(name.clone()).or_insert_with(|| moved(part.clone()));
        }
    }
    schemas.insert("Problem".into(), problem());
    let mut paths = Map::new();
    for row in TABLE {
        let path = paths.entry(row.path).or_insert_with(|| json!({}));
        let method = if row.method == Method::Get { "get" } else { "post" };
        path[method] = operation(row);
    }
    session(&mut paths);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Trunkline",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Administration of a Trunkline server. Every operation of the command line is here, and only those. \
                Unknown fields are refused; problems are answered as RFC 9457. Times are milliseconds since 1970.",
            "license": { "name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT" },
        },
        "servers": [{ "url": "/api/v1" }],
        "security": [{ "token": [] }, { "session": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {
                "Problem": {
                    "description": "It was not done.",
                    "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
                },
            },
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer", "description": "`trunkline token create`" },
                "session": {
                    "type": "apiKey", "in": "cookie", "name": "trunkline-session",
                    "description": "Of POST /session; inside TLS its name begins with __Host-. Whatever is not a GET needs the session's `csrf` as X-CSRF-Token too.",
                },
            },
        },
    })
}

fn operation(row: &Row) -> Value {
    let id = if row.act.is_empty() { row.op.to_owned() } else { format!("{}-{}", row.op, row.act) };
    let mut operation = json!({
        "operationId": id,
        "tags": [row.path.trim_start_matches('/').split('/').next().unwrap_or_default()],
        "summary": row.summary,
        "description": format!("Needs the scope `{}`.", row.scope.name()),
        "x-scope": row.scope.name(),
        "responses": {
            "200": {
                "description": "Done.",
                "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Outcome" } } },
            },
            "default": { "$ref": "#/components/responses/Problem" },
        },
    });
    let fields = schema::fields(row);
    match row.method {
        Method::Get => {
            let parameter = |field: &schema::Field| {
                json!({
                    "name": field.name,
                    "in": "query",
                    "required": field.required,
                    "description": field.summary,
                    "schema": moved(field.schema.clone()),
                })
            };
            operation["parameters"] = fields.iter().map(parameter).collect();
        }
        Method::Post => {
            let properties: Map<String, Value> =
                fields.iter().map(|field| (field.name.clone(), moved(field.schema.clone()))).collect();
            let required: Vec<&str> =
                fields.iter().filter(|field| field.required).map(|field| field.name.as_str()).collect();
            operation["requestBody"] = json!({
                "required": true,
                "content": { "application/json": { "schema": {
                    "type": "object",
                    "properties": properties,
                    "required": required,
                    "additionalProperties": false,
                } } },
            });
        }
    }
    operation
}

/// Signing in and out.
fn session(paths: &mut Map<String, Value>) {
    let content = |name: &str| json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{name}") } } });
    let answer = |status: &str, name: Option<&str>, summary: &str, id: &str| {
        let mut good = json!({ "description": "Done." });
        if let Some(name) = name {
            good["content"] = content(name);
        }
        let mut responses = json!({ "default": { "$ref": "#/components/responses/Problem" } });
        responses[status] = good;
        json!({ "operationId": id, "tags": ["session"], "summary": summary, "responses": responses })
    };
    let mut sign_in = answer(
        "200",
        Some("SignInAnswer"),
        "Sign in: SCRAM-SHA-256 (RFC 5802, RFC 7677), one message at a time, then a code where a second factor is enrolled",
        "session-sign-in",
    );
    sign_in["security"] = json!([]);
    sign_in["requestBody"] = json!({ "required": true, "content": content("SignIn") });
    let mut enrol = answer(
        "200",
        Some("Enrolment"),
        "Begin a second factor (TOTP, RFC 6238) with an empty object; confirm it with a code",
        "session-totp-enrol",
    );
    enrol["requestBody"] = json!({ "required": true, "content": content("TotpCode") });
    let mut forget = answer(
        "200",
        Some("Outcome"),
        "Take the second factor off, with a code of it",
        "session-totp-remove",
    );
    forget["requestBody"] = json!({ "required": true, "content": content("TotpCode") });
    paths.insert(
        "/session".into(),
        json!({
            "get": answer("200", Some("Session"), "Who is signed in", "session-show"),
            "post": sign_in,
            "delete": answer("204", None, "Sign out", "session-sign-out"),
        }),
    );
    paths.insert("/session/totp".into(), json!({ "post": enrol, "delete": forget }));
    paths.insert(
        "/openapi.json".into(),
        json!({ "get": {
            "operationId": "openapi",
            "tags": ["session"],
            "summary": "This document",
            "security": [],
            "responses": { "200": { "description": "Done.", "content": { "application/json": {} } } },
        } }),
    );
}

fn problem() -> Value {
    json!({
        "description": "RFC 9457.",
        "type": "object",
        "properties": {
            "type": {
                "type": "string",
                "enum": KINDS.iter().map(|(_, kind)| format!("urn:trunkline:problem:{kind}")).collect::<Vec<_>>(),
                "description": "For programs.",
            },
            "title": { "type": "string", "description": "The same for every problem of the type." },
            "status": { "type": "integer", "description": "As in the status line." },
            "detail": { "type": "string", "description": "For the person who asked." },
        },
        "required": ["type", "title", "status", "detail"],
    })
}

/// Adds a schema and the parts it names.
fn add(schemas: &mut Map<String, Value>, name: &str, mut schema: Value) {
    if let Some(parts) = schema.as_object_mut().and_then(|schema| schema.remove("$defs"))
        && let Value::Object(parts) = parts
    {
        for (name, part) in parts {
            schemas.insert(name, moved(part));
        }
    }
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("$schema");
        schema.remove("title");
    }
    schemas.insert(name.to_owned(), moved(schema));
}

/// References that lead to `components`.
fn moved(mut schema: Value) -> Value {
    match &mut schema {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                if name == "$ref"
                    && let Value::String(path) = value
                {
                    *path = path.replace("#/$defs/", "#/components/schemas/");
                } else {
                    *value = moved(value.take());
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = moved(item.take())),
        _ => {}
    }
    schema
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        fn references(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    fields.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let mut found = BTreeSet::new();
        references(document(), &mut found);
        assert!(found.len() > 20, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document().pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    }

    #[test]
    fn every_operation_is_described() {
        for row in TABLE {
            let method = if row.method == Method::Get { "get" } else { "post" };
            let described = &document()["paths"][row.path][method];
            assert_eq!(described["x-scope"], row.scope.name(), "{}", row.path);
        }
        let body = &document()["paths"]["/policy/add"]["post"]["requestBody"]["content"]["application/json"]
            ["schema"];
        assert_eq!(body["properties"]["rule"]["$ref"], "#/components/schemas/Rule");
        assert_eq!(body["required"], json!(["rule"]));
    }
}
