//! What a configuration value may look like, and its one canonical form.
//!
//! A [`Kind`] checks a value as the operator wrote it and turns it into the form that the structs of
//! [`super::Config`] deserialise: a single address becomes a list, `"2 days"` becomes a duration, `"1 MB"` a count
//! of bytes. After that step deserialising can't fail, so every error names the operator's own line.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use toml::Value;
use trunkline_xmpp::jid::Jid;

use crate::control::rule::Rule;
use crate::control::triggers::Trigger;
use crate::net::Network;

/// The shape of one key's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A domain name of ours.
    Domain,
    /// Socket addresses: one string or a list; an empty list switches the listener off.
    Listen,
    /// `true` or `false`.
    Bool,
    /// A whole number within bounds.
    Int(i64, i64),
    /// A length of time: `"30 s"`, `"2 days"`, or a number of seconds.
    Duration,
    /// An amount of bytes: `"64 kB"`, `"1 MiB"`, or a number.
    Bytes,
    /// Any text.
    Text,
    /// A text nobody but the configuration may show.
    Secret,
    /// A file or directory, relative to the directory of the configuration file.
    Path,
    /// Addresses of machines, or of whole networks.
    Networks,
    /// Addresses of machines.
    Ips,
    /// One of a few words.
    OneOf(&'static [&'static str]),
    /// A list of a few words.
    SomeOf(&'static [&'static str]),
    /// Where a peer domain is reached: `"host:port"`, or `"tls://host:port"` for direct TLS.
    Route,
    /// `true`/`"allow"` or `false`/`"forbid"`.
    Allow,
    /// A list of addresses `user@domain`.
    Addresses,
    /// A list of contact URIs (`mailto:`, `xmpp:`, `https:` ...).
    Uris,
    /// Where the data is kept.
    StoreUrl,
    /// Rules for outside traffic.
    Rules,
    /// What pulls the breaker.
    Triggers,
    /// A table whose own keys are listed separately; it may be empty.
    Table,
}

impl Kind {
    /// The kind in words, for the reference.
    pub fn words(self) -> String {
        match self {
            Kind::Domain => "domain name".into(),
            Kind::Listen => "address:port, or a list of them; [] for none".into(),
            Kind::Bool => "true or false".into(),
            Kind::Int(min, i64::MAX) => format!("number from {min}"),
            Kind::Int(min, max) => format!("number from {min} to {max}"),
            Kind::Duration => "duration (\"30 s\", \"10 min\", \"2 days\")".into(),
            Kind::Bytes => "size (\"64 kB\", \"1 MiB\", or bytes)".into(),
            Kind::Text => "text".into(),
            Kind::Secret => "secret text".into(),
            Kind::Path => "file path".into(),
            Kind::Networks => "list of addresses and networks (\"192.0.2.7\", \"10.0.0.0/8\")".into(),
            Kind::Ips => "list of IP addresses".into(),
            Kind::OneOf(words) => {
                words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ")
            }
            Kind::SomeOf(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                format!("list of {}", words.join(", "))
            }
            Kind::Route => "\"host:port\", or \"tls://host:port\" for direct TLS".into(),
            Kind::Allow => "true (\"allow\") or false (\"forbid\")".into(),
            Kind::Addresses => "list of addresses (\"user@domain\")".into(),
            Kind::Uris => "list of URIs (\"mailto:...\", \"xmpp:...\")".into(),
            Kind::StoreUrl => "\"sqlite:FILE\"".into(),
            Kind::Rules => "list of rules".into(),
            Kind::Triggers => "list of triggers".into(),
            Kind::Table => "table".into(),
        }
    }

    /// Checks `value` and returns its canonical form. The error is one sentence for the operator.
    pub fn normalise(self, value: &Value) -> Result<Value, String> {
        match self {
            Kind::Domain => domain(text(value)?).map(Value::String),
            Kind::Listen => {
                let list = list(value)?;
                list.into_iter()
                    .map(|one| listen(one).map(Value::String))
                    .collect::<Result<_, _>>()
                    .map(Value::Array)
            }
            Kind::Networks => {
                let list = list(value)?;
                list.into_iter()
                    .map(|one| match one.parse::<Network>() {
                        Ok(network) => Ok(Value::String(network.to_string())),
                        Err(error) => Err(error.to_string()),
                    })
                    .collect::<Result<_, _>>()
                    .map(Value::Array)
            }
            Kind::Ips => {
                let list = list(value)?;
                list.into_iter()
                    .map(|one| match one.parse::<IpAddr>() {
                        Ok(ip) => Ok(Value::String(ip.to_string())),
                        Err(_) => Err(format!("\"{one}\" is not an IP address")),
                    })
                    .collect::<Result<_, _>>()
                    .map(Value::Array)
            }
            Kind::Bool => value.as_bool().map(Value::Boolean).ok_or_else(|| wrong("true or false", value)),
            Kind::Int(min, max) => {
                let number = value.as_integer().ok_or_else(|| wrong("a whole number", value))?;
                if (min..=max).contains(&number) {
                    Ok(Value::Integer(number))
                } else {
                    Err(format!("{number} is out of range: {}", self.words()))
                }
            }
            Kind::Duration => duration(value).map(as_table),
            Kind::Bytes => bytes(value).map(Value::Integer),
            Kind::Text | Kind::Secret => text(value).map(|text| Value::String(text.to_owned())),
            Kind::Path => match text(value)? {
                "" => Err("the path is empty".into()),
                path => Ok(Value::String(path.to_owned())),
            },
            Kind::OneOf(words) => {
                let word = text(value)?;
                if words.contains(&word) {
                    Ok(Value::String(word.to_owned()))
                } else {
                    Err(format!("\"{word}\" is not possible here: {}", self.words()))
                }
            }
            Kind::SomeOf(words) => {
                let list = list(value)?;
                match list.iter().find(|word| !words.contains(word)) {
                    Some(word) => Err(format!("\"{word}\" is not possible here: {}", self.words())),
                    None => Ok(Value::Array(
                        list.into_iter().map(|word| Value::String(word.to_owned())).collect(),
                    )),
                }
            }
            Kind::Route => route(text(value)?),
            Kind::Allow => match (value.as_bool(), value.as_str()) {
                (Some(allow), _) => Ok(Value::Boolean(allow)),
                (_, Some("allow")) => Ok(Value::Boolean(true)),
                (_, Some("forbid")) => Ok(Value::Boolean(false)),
                _ => Err(wrong(&self.words(), value)),
            },
            Kind::Addresses => {
                let list = list(value)?;
                list.into_iter()
                    .map(|one| address(one).map(Value::String))
                    .collect::<Result<_, _>>()
                    .map(Value::Array)
            }
            Kind::Uris => {
                let list = list(value)?;
                list.into_iter()
                    .map(|one| uri(one).map(Value::String))
                    .collect::<Result<_, _>>()
                    .map(Value::Array)
            }
            Kind::StoreUrl => store_url(text(value)?).map(Value::String),
            Kind::Rules => {
                let rules = value.as_array().ok_or_else(|| wrong("a list of rules", value))?;
                let rules = rules.iter().map(|one| rule(one).map_err(|error| error.to_string()));
                rules.collect::<Result<_, _>>().map(Value::Array)
            }
            Kind::Triggers => {
                let triggers = value.as_array().ok_or_else(|| wrong("a list of triggers", value))?;
                let triggers = triggers.iter().map(|one| trigger(one).map_err(|error| error.to_string()));
                triggers.collect::<Result<_, _>>().map(Value::Array)
            }
            Kind::Table => value.as_table().cloned().map(Value::Table).ok_or_else(|| wrong("a table", value)),
        }
    }
}

/// A rule as people write it, in its canonical form. `then = "reject"` is short for `then = { do = "reject" }`; times may
/// be written as dates, spans and sizes with their units.
pub(super) fn rule(value: &Value) -> Result<Value, RuleError> {
    let wrong_at = |field: &str, text: String| RuleError { field: field.to_owned(), text };
    let mut table = value.as_table().cloned().ok_or_else(|| wrong_at("", wrong("a rule", value)))?;
    if let Some(Value::String(name)) = table.get("then") {
        let mut action = toml::Table::new();
        action.insert("do".into(), name.clone().into());
        table.insert("then".into(), action.into());
    }
    if let Some(until) = table.get_mut("until")
        && !until.is_integer()
    {
        let text = until.as_str().map_or_else(|| until.to_string(), str::to_owned);
        let stamp: jiff::Timestamp = text
            .parse()
            .map_err(|_| wrong_at("until", format!("{text} is not a time such as 2026-12-31T00:00:00Z")))?;
        *until = Value::Integer(stamp.as_millisecond());
    }
    if let Some(when) = table.get_mut("when").and_then(Value::as_table_mut) {
        if let Some(span) = when.get_mut("first_seen_within") {
            let seconds = duration(span).map_err(|text| wrong_at("when.first_seen_within", text))?.as_secs();
            *span = Value::Integer(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
        if let Some(size) = when.get_mut("larger_than") {
            *size = Value::Integer(bytes(size).map_err(|text| wrong_at("when.larger_than", text))?);
        }
    }
    let rule: Rule = read(table)?;
    let rule = rule.checked().map_err(|error| wrong_at(error.field, error.text))?;
    Value::try_from(rule).map_err(|error| wrong_at("", error.to_string()))
}

/// A trigger as people write it, in its canonical form.
pub(super) fn trigger(value: &Value) -> Result<Value, RuleError> {
    let wrong_at = |field: &str, text: String| RuleError { field: field.to_owned(), text };
    let mut table = value.as_table().cloned().ok_or_else(|| wrong_at("", wrong("a trigger", value)))?;
    for field in ["lasts", "above"] {
        // A rate and a share are numbers; an age is a span.
        if let Some(span) = table.get_mut(field).filter(|span| field == "lasts" || span.is_str()) {
            let seconds = duration(span).map_err(|text| wrong_at(field, text))?.as_secs();
            *span = Value::Integer(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
    }
    let trigger: Trigger = read(table)?;
    let trigger = trigger.checked().map_err(|error| wrong_at(error.field, error.text))?;
    Value::try_from(trigger).map_err(|error| wrong_at("", error.to_string()))
}

fn read<T: serde::de::DeserializeOwned>(table: toml::Table) -> Result<T, RuleError> {
    Value::Table(table).try_into().map_err(|error: toml::de::Error| {
        let text = error.message().lines().next().unwrap_or_default().to_owned();
        let field = text.split('`').nth(1).unwrap_or_default().to_owned();
        RuleError { field, text }
    })
}

/// What is wrong with a rule or a trigger.
#[derive(Debug)]
pub(super) struct RuleError {
    /// `when.domain`, or only the last name, or nothing: the rule as a whole.
    pub(super) field: String,
    pub(super) text: String,
}

impl std::fmt::Display for RuleError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.text)
        } else {
            write!(f, "{}: {}", self.field, self.text)
        }
    }
}

/// A domain in its canonical form.
pub(crate) fn domain(name: &str) -> Result<String, String> {
    match Jid::parse(name) {
        Ok(jid) if jid.is_domain() => Ok(jid.as_str().to_owned()),
        Ok(_) => Err(format!("\"{name}\" is an address, not a domain name")),
        Err(error) => Err(format!("\"{}\" is not a domain name: {error}", name.escape_debug())),
    }
}

/// A bare address in its canonical form.
fn address(address: &str) -> Result<String, String> {
    match Jid::parse(address) {
        Ok(jid) if jid.is_bare() && jid.local().is_some() => Ok(jid.as_str().to_owned()),
        Ok(_) => Err(format!("\"{address}\" is not an address of the form user@domain")),
        Err(error) => Err(format!("\"{}\" is not an address: {error}", address.escape_debug())),
    }
}

fn uri(uri: &str) -> Result<String, String> {
    match uri.split_once(':') {
        Some((scheme, rest))
            if !rest.is_empty()
                && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) =>
        {
            Ok(uri.to_owned())
        }
        _ => Err(format!("\"{uri}\" is not a URI: write \"mailto:abuse@example.org\" or \"xmpp:...\"")),
    }
}

fn listen(address: &str) -> Result<String, String> {
    address.parse::<SocketAddr>().map(|address| address.to_string()).map_err(|_| {
        format!("\"{address}\" is not an address with a port: write \"[::]:5222\", \"0.0.0.0:5222\" or \"127.0.0.1:5222\"")
    })
}

fn route(route: &str) -> Result<Value, String> {
    let (direct_tls, target) = match route.strip_prefix("tls://") {
        Some(target) => (true, target),
        None => (false, route),
    };
    let wrong =
        || format!("\"{route}\" is not a route: write \"host:port\", \"[::1]:5269\" or \"tls://host:port\"");
    let (host, port) = target.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    if host.is_empty() || host.contains(['/', '@', ' ', '[']) {
        return Err(wrong());
    }
    if host.contains(':') && host.parse::<std::net::Ipv6Addr>().is_err() {
        return Err(wrong());
    }
    let mut table = toml::Table::new();
    table.insert("host".into(), host.into());
    table.insert("port".into(), i64::from(port).into());
    table.insert("direct_tls".into(), direct_tls.into());
    Ok(Value::Table(table))
}

fn store_url(url: &str) -> Result<String, String> {
    match url.split_once(':') {
        Some(("sqlite", path)) if !path.trim_start_matches('/').is_empty() => Ok(url.to_owned()),
        Some(("postgres" | "postgresql", _)) => {
            Err("PostgreSQL is not built into this version yet: use \"sqlite:trunkline.db\"".into())
        }
        _ => Err(format!("\"{url}\" names no store: write \"sqlite:trunkline.db\"")),
    }
}

/// A span on the command line.
///
/// # Errors
/// What it should look like.
pub fn span(text: &str) -> Result<Duration, String> {
    duration(&Value::String(text.to_owned()))
}

/// `"90 s"`, `"10 min"`, `"2 days"`, `"1h"`, or a number of seconds.
fn duration(value: &Value) -> Result<Duration, String> {
    let wrong = || wrong("a duration such as \"30 s\", \"10 min\", \"12 h\" or \"2 days\"", value);
    if let Some(seconds) = value.as_integer() {
        return u64::try_from(seconds).map(Duration::from_secs).map_err(|_| wrong());
    }
    let (number, unit) = number_and_unit(value.as_str().ok_or_else(wrong)?).ok_or_else(wrong)?;
    let millis: u64 = match unit {
        "ms" => 1,
        "" | "s" | "sec" | "second" | "seconds" => 1000,
        "m" | "min" | "minute" | "minutes" => 60_000,
        "h" | "hour" | "hours" => 3_600_000,
        "d" | "day" | "days" => 86_400_000,
        "w" | "week" | "weeks" => 7 * 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)
}

/// `"64 kB"` (1000), `"1 MiB"` (1024 squared), or a number of bytes.
fn bytes(value: &Value) -> Result<i64, String> {
    let wrong = || wrong("a size such as \"64 kB\", \"4 MB\" or \"1 MiB\"", value);
    if let Some(bytes) = value.as_integer() {
        return if bytes >= 0 { Ok(bytes) } else { Err(wrong()) };
    }
    let (number, unit) = number_and_unit(value.as_str().ok_or_else(wrong)?).ok_or_else(wrong)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" | "k" => 1000,
        "mb" | "m" => 1000 * 1000,
        "gb" | "g" => 1000 * 1000 * 1000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).and_then(|bytes| i64::try_from(bytes).ok()).ok_or_else(wrong)
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim()))
}

/// The form in which `std::time::Duration` deserialises.
fn as_table(duration: Duration) -> Value {
    let mut table = toml::Table::new();
    table.insert("secs".into(), i64::try_from(duration.as_secs()).unwrap_or(i64::MAX).into());
    table.insert("nanos".into(), i64::from(duration.subsec_nanos()).into());
    Value::Table(table)
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| wrong("text in quotes", value))
}

fn list(value: &Value) -> Result<Vec<&str>, String> {
    match value {
        Value::String(one) if one.is_empty() => Ok(Vec::new()),
        Value::String(one) => Ok(vec![one]),
        Value::Array(many) => many.iter().map(text).collect(),
        other => Err(wrong("text or a list of texts", other)),
    }
}

fn wrong(expected: &str, found: &Value) -> String {
    match found {
        Value::String(text) => format!("expected {expected}, found \"{text}\""),
        Value::Integer(number) => format!("expected {expected}, found {number}"),
        other => format!("expected {expected}, found a {}", other.type_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: Kind, text: &str) -> Result<String, String> {
        kind.normalise(&Value::String(text.into())).map(|value| value.to_string())
    }

    #[test]
    fn durations_and_sizes() {
        let millis = |text: &str| duration(&Value::String(text.into())).map(|d| d.as_millis());
        assert_eq!(millis("2 days"), Ok(172_800_000));
        assert_eq!(millis("500ms"), Ok(500));
        assert_eq!(millis("10 min"), Ok(600_000));
        assert_eq!(duration(&Value::Integer(90)), Ok(Duration::from_secs(90)));
        assert!(millis("soon").is_err());
        assert!(millis("99999999999999999999 d").is_err());
        assert!(duration(&Value::Integer(-1)).is_err());
        assert_eq!(bytes(&Value::String("64 kB".into())), Ok(64_000));
        assert_eq!(bytes(&Value::String("1 MiB".into())), Ok(1 << 20));
        assert!(bytes(&Value::String("1 XB".into())).is_err());
        assert!(bytes(&Value::Integer(-4)).is_err());
    }

    #[test]
    fn routes() {
        let ok = |text: &str| Kind::Route.normalise(&Value::String(text.into())).is_ok();
        assert!(ok("127.0.0.1:5269"));
        assert!(ok("[::1]:5269"));
        assert!(ok("tls://xmpp.peer.example:5270"));
        assert!(!ok("peer.example"));
        assert!(!ok("peer.example:0"));
        assert!(!ok("http://peer.example:80"));
        assert!(!ok("::1:99999"));
    }

    #[test]
    fn listeners_take_one_or_many() {
        assert_eq!(parse(Kind::Listen, "127.0.0.1:5222").unwrap(), "[\"127.0.0.1:5222\"]");
        assert_eq!(parse(Kind::Listen, "").unwrap(), "[]");
        assert!(parse(Kind::Listen, "localhost").unwrap_err().contains("localhost"));
    }

    #[test]
    fn domains_are_canonical() {
        assert_eq!(domain("Example.ORG.").unwrap(), "example.org");
        assert_eq!(domain("xn--bcher-kva.example").unwrap(), "b\u{fc}cher.example");
        assert!(domain("a b").is_err());
        assert!(domain("a..b").is_err());
        assert!(domain("me@example.org").is_err());
    }

    #[test]
    fn postgres_says_that_it_is_not_built() {
        assert!(parse(Kind::StoreUrl, "postgres://db/x").unwrap_err().contains("not built"));
    }
}
