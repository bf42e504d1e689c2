//! From text to a checked [`Config`]: each problem with its line, its key and what to do.

use crate::control::lists::{MOST_LISTS, OWN};
use std::collections::BTreeMap;
use std::path::Path;

use toml::Value;
use toml_edit::{Document, Item, TableLike};

use super::keys::{self, KEYS, Key};
use super::value::{self, Kind};
use super::{Config, Problem, Source, TlsPolicy};

/// Reads `text`. Problems are appended; `None` when there are some that leave nothing to check further.
pub(super) fn read(text: &str, file: &Path, problems: &mut Vec<Problem>) -> Option<Config> {
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let line = error.span().map(|span| line_at(text, span.start));
            let text = format!("this is not TOML: {}", error.message());
            problems.push(Problem { line, key: String::new(), text });
            return None;
        }
    };
    let values: toml::Table = match toml::from_str(text) {
        Ok(values) => values,
        Err(error) => {
            let line = error.span().map(|span| line_at(text, span.start));
            problems.push(Problem { line, key: String::new(), text: error.message().to_owned() });
            return None;
        }
    };

    let mut found =
        Found { text, values: BTreeMap::new(), lines: BTreeMap::new(), asked: Vec::new(), problems };
    found.walk(&mut Vec::new(), document.as_table(), &values);
    let Found { mut values, lines, asked, .. } = found;
    for (list, problem) in asked {
        // A list of the run time can go: the file stands on its own.
        let is_there = |(path, _): &(Vec<String>, Value)| path[..] == ["federation", "lists", list.as_str()];
        if list != OWN && !values.values().any(is_there) {
            problems.push(problem);
        }
    }
    for key in KEYS {
        let Some(default) = key.default else { continue };
        let path: Vec<String> = key.name.split('.').map(str::to_owned).collect();
        values.entry(key.name.to_owned()).or_insert_with(|| (path, default_of(key, default)));
    }
    // A wrong one has been told of.
    if !values.contains_key("domain") && !problems.iter().any(|problem| problem.key == "domain") {
        let text = "missing: add `domain = \"example.org\"` at the top of the file".to_owned();
        problems.push(Problem { line: None, key: "domain".into(), text });
    }
    for name in lines.keys().filter(|name| name.starts_with("components.entries.")) {
        if values.get(name).is_some_and(|(_, value)| value.is_table())
            && !values.contains_key(&format!("{name}.secret"))
        {
            let text = "the secret is missing: add `secret = \"...\"`".to_owned();
            problems.push(Problem { line: lines.get(name).copied(), key: name.clone(), text });
        }
    }
    let lists = values
        .values()
        .filter(|(path, value)| path.len() == 3 && path[..2] == ["federation", "lists"] && value.is_table());
    if lists.count() > MOST_LISTS {
        let key = "federation.lists".to_owned();
        problems.push(Problem { line: None, key, text: format!("{MOST_LISTS} lists are followed at most") });
    }
    for name in lines.keys().filter(|name| name.starts_with("federation.lists.")) {
        if name == "federation.lists.own" {
            let text = "\"own\" is the list that this server publishes: choose another name".to_owned();
            problems.push(Problem { line: lines.get(name).copied(), key: name.clone(), text });
        }
        for (leaf, example) in [("service", "lists.example"), ("node", "muc_bans_sha256")] {
            if values.get(name).is_some_and(|(_, value)| value.is_table())
                && !values.contains_key(&format!("{name}.{leaf}"))
            {
                let text = format!("the {leaf} is missing: add `{leaf} = \"{example}\"`");
                problems.push(Problem { line: lines.get(name).copied(), key: name.clone(), text });
            }
        }
    }
    if !problems.is_empty() {
        return None;
    }

    let mut config = match build(&values) {
        Ok(config) => config,
        Err(error) => {
            problems.push(Problem { line: None, key: String::new(), text: error.to_string() });
            return None;
        }
    };
    config.source = Source { file: file.to_owned(), values, lines };
    let base = file.parent().unwrap_or(Path::new(""));
    resolve_paths(&mut config, base);
    problems.extend(across_keys(&config));
    Some(config)
}

/// The structs from canonical values.
pub(super) fn build(values: &BTreeMap<String, (Vec<String>, Value)>) -> Result<Config, toml::de::Error> {
    let mut root = toml::Table::new();
    for (path, value) in values.values() {
        insert(&mut root, path, value);
    }
    // A section that nobody mentions still is one.
    for (section, _) in
        keys::SECTIONS.iter().filter(|(section, _)| !section.is_empty() && !section.contains('.'))
    {
        root.entry(*section).or_insert_with(|| Value::Table(toml::Table::new()));
    }
    if root.get("hosts").and_then(Value::as_table).is_none() {
        root.remove("hosts");
    }
    root.remove("hosts.*");
    Value::Table(root).try_into()
}

fn insert(table: &mut toml::Table, path: &[String], value: &Value) {
    match path {
        [] => {}
        // The keys of a table come on their own, canonical.
        [last] if value.is_table() && !is_leaf(value) => {
            table.entry(last).or_insert_with(|| Value::Table(toml::Table::new()));
        }
        [last] => {
            table.insert(last.clone(), value.clone());
        }
        [first, rest @ ..] => {
            let inner = table.entry(first).or_insert_with(|| Value::Table(toml::Table::new()));
            if let Some(inner) = inner.as_table_mut() {
                insert(inner, rest, value);
            }
        }
    }
}

/// Canonical durations and routes are tables too; the tables of hosts and peers are kept empty.
fn is_leaf(value: &Value) -> bool {
    value.as_table().is_some_and(|table| !table.is_empty())
}

fn default_of(key: &Key, default: &str) -> Value {
    let parsed: Result<toml::Table, _> = toml::from_str(&format!("v = {default}"));
    let value = parsed.ok().and_then(|mut table| table.remove("v"));
    value
        .and_then(|value| key.kind.normalise(&value).ok())
        .expect("invariant: every default in KEYS is a valid value of its kind (tested)")
}

/// What the walk through the file collects.
struct Found<'a> {
    text: &'a str,
    values: BTreeMap<String, (Vec<String>, Value)>,
    lines: BTreeMap<String, usize>,
    /// Lists that rules ask for, with what is to be said if they are not there.
    asked: Vec<(String, Problem)>,
    problems: &'a mut Vec<Problem>,
}

impl Found<'_> {
    fn walk(&mut self, path: &mut Vec<String>, table: &dyn TableLike, values: &toml::Table) {
        for (name, item) in table.iter() {
            let Some(value) = values.get(name) else { continue };
            let line = self.line(table, name, item);
            // Domains in keys are compared in their canonical form.
            let parent = path.join(".");
            let segment = match parent.as_str() {
                "hosts" | "federation.routes" | "federation.domains" | "components.entries" => {
                    match value::domain(name) {
                        Ok(domain) => domain,
                        Err(text) => {
                            self.problem(line, &format!("{parent}.{}", quoted(name)), text);
                            continue;
                        }
                    }
                }
                _ => name.to_owned(),
            };
            path.push(segment);
            self.visit(path, line, item, value);
            path.pop();
        }
    }

    fn visit(&mut self, path: &mut Vec<String>, line: Option<usize>, item: &Item, value: &Value) {
        let name = dotted(path);
        let row = keys::find(path);
        let is_section = KEYS.iter().any(|key| {
            let mut key = key.name.split('.');
            path.iter().all(|segment| key.next().is_some_and(|name| name == "*" || name == segment))
                && key.next().is_some()
        });
        match row {
            Some(row) if row.kind == Kind::Rules => self.rules(path, line, (item, value), value::rule),
            Some(row) if row.kind == Kind::Triggers => {
                self.rules(path, line, (item, value), value::trigger);
            }
            Some(row) if row.kind != Kind::Table => match row.kind.normalise(value) {
                Ok(value) => self.insert(path, name, line, value),
                Err(text) => self.problem(line, &name, text),
            },
            _ if !is_section => {
                let text = unknown(path);
                self.problem(line, &name, text);
            }
            row => match (item.as_table_like(), value) {
                (Some(table), Value::Table(values)) => {
                    if row.is_some() {
                        self.insert(path, name, line, Value::Table(toml::Table::new()));
                    }
                    self.walk(path, table, values);
                }
                _ => {
                    let text = format!("this is a section: write `[{name}]` and its keys below it");
                    self.problem(line, &name, text);
                }
            },
        }
    }

    /// Rules and triggers: each problem with the line that it is about.
    fn rules(
        &mut self,
        path: &[String],
        line: Option<usize>,
        (item, value): (&Item, &Value),
        read: fn(&Value) -> Result<Value, value::RuleError>,
    ) {
        let name = dotted(path);
        let Some(rules) = value.as_array() else {
            self.problem(line, &name, format!("write each as a section of its own: `[[{name}]]`"));
            return;
        };
        let mut canonical = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let table: Option<&dyn TableLike> = match item {
                Item::ArrayOfTables(tables) => tables.get(index).map(|table| table as &dyn TableLike),
                _ => item
                    .as_array()
                    .and_then(|array| array.get(index)?.as_inline_table())
                    .map(|table| table as _),
            };
            let span = match item {
                Item::ArrayOfTables(tables) => tables.get(index).and_then(toml_edit::Table::span),
                _ => item.as_array().and_then(|array| array.get(index)?.span()),
            };
            let at = |field: &str| {
                let own = span.clone().map(|span| line_at(self.text, span.start));
                table.and_then(|table| self.line_of(table, field)).or(own).or(line)
            };
            let key = format!("{name}, number {}", index + 1);
            match read(rule) {
                Ok(rule) => {
                    let list =
                        rule.get("when").and_then(|when| when.get("listed_in")).and_then(Value::as_str);
                    if let Some(list) = list {
                        let text = format!(
                            "when.listed_in: there is no [federation.lists.{}] in this file: add it, or use \
                             \"own\"; rules on lists followed at run time are set at run time",
                            quoted(list)
                        );
                        let line = at("when.listed_in");
                        self.asked.push((list.to_owned(), Problem { line, key, text }));
                    }
                    canonical.push(rule);
                }
                Err(error) => {
                    let line = at(&error.field);
                    self.problem(line, &key, error.to_string());
                }
            }
        }
        self.insert(path, name, line, Value::Array(canonical));
    }

    /// The line of `field` (`when.domain`, or a name alone) below `table`.
    fn line_of(&self, table: &dyn TableLike, field: &str) -> Option<usize> {
        let (first, rest) = field.split_once('.').unwrap_or((field, ""));
        if let Some((key, item)) = table.get_key_value(first) {
            let below = item.as_table_like().and_then(|table| self.line_of(table, rest));
            return below.or_else(|| {
                let span = key.span().or_else(|| item.span())?;
                Some(line_at(self.text, span.start))
            });
        }
        table.iter().find_map(|(name, item)| match item.as_str() {
            // A word that is none of the language.
            Some(text) if text == field => self.line(table, name, item),
            _ => self.line_of(item.as_table_like()?, field),
        })
    }

    fn insert(&mut self, path: &[String], name: String, line: Option<usize>, value: Value) {
        if let Some(line) = line {
            self.lines.insert(name.clone(), line);
        }
        if self.values.contains_key(&name) && !value.is_table() {
            self.problem(line, &name, "given twice, spelled differently: remove one of them".into());
            return;
        }
        self.values.insert(name, (path.to_vec(), value));
    }

    fn problem(&mut self, line: Option<usize>, key: &str, text: String) {
        self.problems.push(Problem { line, key: key.to_owned(), text });
    }

    fn line(&self, table: &dyn TableLike, name: &str, item: &Item) -> Option<usize> {
        let key = table.get_key_value(name).and_then(|(key, _)| key.span());
        let span = key.or_else(|| item.span())?;
        Some(line_at(self.text, span.start))
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// A path as one writes it in TOML.
pub(super) fn dotted(path: &[String]) -> String {
    path.iter().map(|segment| quoted(segment)).collect::<Vec<_>>().join(".")
}

pub(super) fn quoted(segment: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !segment.is_empty() && segment.chars().all(bare) {
        segment.to_owned()
    } else {
        format!("\"{}\"", segment.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

/// The text for a key that doesn't exist: with the nearest one that does.
pub(super) fn unknown(path: &[String]) -> String {
    // Compare in the operator's own words: a `*` of the table becomes what stands at its place.
    let filled = |key: &Key| {
        let segments = key.name.split('.').enumerate();
        let filled = segments.map(|(index, name)| match (name, path.get(index)) {
            ("*", Some(own)) => quoted(own),
            ("*", None) => "\"...\"".into(),
            (name, _) => name.to_owned(),
        });
        filled.collect::<Vec<_>>().join(".")
    };
    let written = dotted(path);
    let sections = keys::SECTIONS.iter().filter(|(name, _)| !name.contains('*') && !name.is_empty());
    let candidates = KEYS.iter().map(filled).chain(sections.map(|(name, _)| (*name).to_owned()));
    let leaf = path.last().map_or("", String::as_str);
    let score = |candidate: &str| {
        let whole = strsim::normalized_damerau_levenshtein(&written, candidate);
        // `listen_tls` under the wrong section is nearer than its dotted name says.
        let own = candidate.rsplit('.').next().unwrap_or(candidate);
        let part = strsim::normalized_damerau_levenshtein(leaf, own);
        whole.max(0.9 * part)
    };
    let nearest =
        candidates.map(|candidate| (score(&candidate), candidate)).max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((score, candidate)) if score > 0.5 => {
            format!("there is no such key; the nearest is `{candidate}`")
        }
        _ => "there is no such key; docs/configuration.md lists all of them".into(),
    }
}

pub(super) fn resolve_paths(config: &mut Config, base: &Path) {
    config.data_dir = base.join(&config.data_dir);
    let hosts = config.hosts.values_mut().flat_map(|host| [&mut host.certificate, &mut host.key]);
    let federation = [&mut config.federation.trust, &mut config.federation.outage_file];
    let common = [&mut config.tls.certificate, &mut config.tls.key];
    for path in hosts.chain(common).chain(federation).flatten() {
        *path = base.join(&*path);
    }
}

/// Checks that need more than one key.
fn across_keys(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |key: &str, text: String| {
        problems.push(Problem { line: config.source.lines.get(key).copied(), key: key.to_owned(), text });
    };

    if config.hosts.contains_key(&config.domain) {
        add(
            &format!("hosts.{}", quoted(&config.domain)),
            "this is `domain` already: remove one of them".into(),
        );
    }
    if config.clients.tls == TlsPolicy::Optional
        && let Some(address) = config.clients.listen.iter().find(|address| !address.ip().is_loopback())
    {
        let text = format!(
            "\"optional\" lets passwords travel in the clear, so it is accepted on loopback only, but clients.listen has {address}: write \"required\""
        );
        add("clients.tls", text);
    }
    for (key, addresses) in
        [("accounts.admins", &config.accounts.admins), ("accounts.moderators", &config.accounts.moderators)]
    {
        for address in addresses {
            let host = address.rsplit_once('@').map_or("", |(_, host)| host);
            if !config.is_our_domain(host) {
                add(key, format!("{address} is not on this server: {host} is not one of its domains"));
            }
        }
    }
    if config.tls.certificate.is_none()
        && let Some(address) = config.console.listen.iter().find(|address| !address.ip().is_loopback())
    {
        let text = format!("{address} is not loopback, so it needs TLS: set tls.certificate and tls.key");
        add("console.listen", text);
    }
    if config.tls.certificate.is_none() && !config.http.listen_tls.is_empty() {
        add("http.listen_tls", "HTTPS needs a certificate: set tls.certificate and tls.key".into());
    }
    if let Some(url) = &config.http.url
        && !url
            .strip_prefix("https://")
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_alphanumeric() || c == '['))
        && !url.starts_with("http://localhost")
        && !url.starts_with("http://127.0.0.1")
    {
        add(
            "http.url",
            format!("\"{url}\" is not an address that browsers may use: write \"https://chat.example.org\""),
        );
    }
    for (section, certificate, key) in config.certificates() {
        match (certificate, key) {
            (Some(_), None) => {
                let text = format!("a certificate needs its private key: add {section}.key");
                add(&format!("{section}.certificate"), text);
            }
            (None, Some(_)) => {
                let text = format!("a key needs its certificate: add {section}.certificate");
                add(&format!("{section}.key"), text);
            }
            _ => {}
        }
    }
    for name in config.components.entries.keys() {
        if config.is_our_domain(name) {
            let text = "this is a domain of the server itself: a component needs a name of its own, such as gateway.example.org";
            add(&format!("components.entries.{}", quoted(name)), text.into());
        }
    }
    for name in config.federation.routes.keys().filter(|name| config.is_our_domain(name)) {
        let text = "this is a domain of the server itself: a route leads to another server";
        add(&format!("federation.routes.{}", quoted(name)), text.into());
    }
    if config.limits.stanza_bytes_unauthenticated < 10_000 {
        let text = "RFC 6120 s.13.12 asks for at least 10000 bytes";
        add("limits.stanza_bytes_unauthenticated", text.into());
    }
    for (key, bytes) in [
        ("limits.stanza_bytes", config.limits.stanza_bytes),
        ("limits.stanza_bytes_outside", config.limits.stanza_bytes_outside),
    ] {
        if bytes < 10_000 {
            add(key, "RFC 6120 s.13.12 asks for at least 10000 bytes".into());
        }
    }
    if config.limits.outbox_bytes < config.limits.stanza_bytes.max(config.limits.stanza_bytes_outside) * 2 {
        add("limits.outbox_bytes", "too small: two of the largest stanzas must fit".into());
    }
    if let Err(error) = config.log.level.parse::<tracing_subscriber::EnvFilter>() {
        add("log.level", format!("not a log filter: {error}"));
    }
    if config.traces.endpoint.as_deref().is_some_and(|endpoint| !crate::traces::is_endpoint(endpoint)) {
        add("traces.endpoint", crate::traces::NOT_A_URL.into());
    }
    duplicate_listeners(config, &mut add);
    problems
}

fn duplicate_listeners(config: &Config, add: &mut impl FnMut(&str, String)) {
    let mut seen = BTreeMap::new();
    for (key, addresses) in config.listeners() {
        for address in addresses.iter().filter(|address| address.port() != 0) {
            if let Some(other) = seen.insert(*address, key) {
                add(key, format!("{address} is taken by {other} already: each listener needs its own"));
            }
        }
    }
}

/// Files the configuration names that are not there.
pub(super) fn missing_files(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |key: &str, text: String| {
        problems.push(Problem { line: config.source.lines.get(key).copied(), key: key.to_owned(), text });
    };
    for domain in config.domains() {
        if config.certificate(domain).is_none() {
            let text = format!(
                "no certificate for {domain}: set tls.certificate and tls.key (`trunkline init --dev` makes a self-signed one for tests)"
            );
            add("tls.certificate", text);
        }
    }
    for (section, certificate, key) in config.certificates() {
        for (leaf, path) in [("certificate", certificate), ("key", key)] {
            if let Some(path) = path
                && let Err(error) = std::fs::File::open(path)
            {
                add(&format!("{section}.{leaf}"), format!("{} can't be read: {error}", path.display()));
            }
        }
    }
    if let Some(path) = &config.federation.trust
        && let Err(error) = std::fs::File::open(path)
    {
        add("federation.trust", format!("{} can't be read: {error}", path.display()));
    }
    problems
}
