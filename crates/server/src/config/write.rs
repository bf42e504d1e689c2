//! The two texts made from the table of keys: the commented `trunkline.toml` and the reference.

use std::fmt::Write as _;

use toml_edit::Value;

use super::check::dotted;
use super::keys::{Apply, KEYS, Key, SECTIONS};
use super::overrides::Overrides;

/// The commented configuration file, with `presets` set in their places and every other key commented out with its
/// default.
pub fn template(presets: &Overrides) -> String {
    let mut out = String::from(
        "# The configuration of Trunkline.\n\
         #\n\
         # What is commented out shows the default. After a change: `trunkline check`, then `trunkline reload`\n\
         # (keys marked [restart] need a restart of the server).\n\
         # The reference with every key is docs/configuration.md.\n",
    );
    for (section, doc) in SECTIONS {
        let keys: Vec<&Key> = KEYS.iter().filter(|key| key.section() == *section).collect();
        let fixed = !section.contains('*');
        out.push('\n');
        comment(&mut out, &format!("--- {doc}"), 0);
        if fixed && !section.is_empty() {
            let _ = writeln!(out, "[{section}]");
        }
        if fixed {
            for key in keys.iter().filter(|key| key.leaf() != "*") {
                entry(&mut out, key, presets);
            }
            for key in keys.iter().filter(|key| key.leaf() == "*") {
                map_entries(&mut out, key, presets);
            }
        } else {
            map_tables(&mut out, section, &keys, presets);
        }
    }
    out
}

/// `key = value` with its comment.
fn entry(out: &mut String, key: &Key, presets: &Overrides) {
    let restart = if key.apply == Apply::Restart { " [restart]" } else { "" };
    out.push('\n');
    comment(out, &format!("{}{restart}", key.doc), 0);
    let path: Vec<String> = key.name.split('.').map(str::to_owned).collect();
    match presets.values.get(&path) {
        Some(value) => {
            let _ = writeln!(out, "{} = {value}", key.leaf());
        }
        None => {
            let _ = writeln!(out, "#{} = {}", key.leaf(), key.default.or(key.example).unwrap_or("\"\""));
        }
    }
}

/// The entries of a map of plain values, such as the routes. Tables within maps stand in sections of their own.
fn map_entries(out: &mut String, key: &Key, presets: &Overrides) {
    if key.kind == super::value::Kind::Table {
        return;
    }
    out.push('\n');
    comment(out, key.doc, 0);
    let mut any = false;
    for (path, value) in presets.values.iter().filter(|(path, _)| key.matches(path)) {
        let _ = writeln!(out, "{} = {value}", dotted(&path[path.len() - 1..]));
        any = true;
    }
    if !any {
        let _ = writeln!(out, "#\"peer.example\" = {}", key.example.unwrap_or("\"\""));
    }
}

/// The tables below a map, such as `[hosts."example.net"]`.
fn map_tables(out: &mut String, section: &str, keys: &[&Key], presets: &Overrides) {
    let Some(parent) = section.strip_suffix(".*") else { return };
    let name = match parent {
        "hosts" => "example.net",
        "components.entries" => "gateway.example.org",
        _ => "peer.example",
    };
    let _ = writeln!(out, "#[{parent}.\"{name}\"]");
    for key in keys {
        comment(out, key.doc, 0);
        let _ = writeln!(out, "#{} = {}", key.leaf(), key.default.or(key.example).unwrap_or("\"\""));
    }
    let depth = section.split('.').count();
    let below = |path: &Vec<String>| path.len() >= depth && dotted(&path[..depth - 1]) == parent;
    let mut last: Option<&[String]> = None;
    for (path, value) in presets.values.iter().filter(|(path, _)| below(path)) {
        let table = &path[..depth];
        if last != Some(table) {
            let _ = writeln!(out, "\n[{}]", dotted(table));
            last = Some(table);
        }
        match value {
            Value::InlineTable(inner) if path.len() == depth => {
                for (key, value) in inner {
                    let _ = writeln!(out, "{} = {}", dotted(&[key.to_owned()]), value.to_string().trim());
                }
            }
            value => {
                let _ = writeln!(out, "{} = {value}", dotted(&path[depth..]));
            }
        }
    }
}

/// The reference, Markdown.
pub fn reference() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         <!-- Made from the table of keys in crates/server/src/config/keys.rs: run\n     \
         `cargo run -- config-reference > docs/configuration.md` after a change there. -->\n\n\
         One TOML file, `trunkline.toml`. `trunkline init` writes it with every key commented; `trunkline check` tests it.\n\
         Without `--config`, commands look for `./trunkline.toml`, then `/etc/trunkline/trunkline.toml`.\n\n\
         Relative paths start at the directory of the file. Keys marked **reload** take effect with `trunkline reload`\n\
         (or SIGHUP), which changes nothing when the file has an error; keys marked **restart** need a restart. Certificates\n\
         are read again on every reload; bounds of one connection hold for those that begin later. A `*` in a name stands for a name that you choose, in quotes if it has dots:\n\
         `federation.routes.\"peer.example\"`. Unknown keys are errors.\n",
    );
    for (section, doc) in SECTIONS {
        let title = if section.is_empty() { "Top of the file".to_owned() } else { format!("`[{section}]`") };
        let _ = writeln!(out, "\n## {title}\n\n{doc}.\n", doc = doc.trim_end_matches('.'));
        let _ = writeln!(out, "| key | value | default | takes effect | |\n|---|---|---|---|---|");
        for key in
            KEYS.iter().filter(|key| key.section() == *section && key.kind != super::value::Kind::Table)
        {
            let default = match (key.default, key.example) {
                (Some(default), _) => format!("`{default}`"),
                (None, Some(example)) => format!("none; e.g. `{example}`"),
                (None, None) => "none".to_owned(),
            };
            let apply = match key.apply {
                Apply::Reload => "reload",
                Apply::Restart => "restart",
            };
            let words = key.kind.words().replace('|', "\\|");
            let _ = writeln!(out, "| `{}` | {words} | {default} | {apply} | {} |", key.name, key.doc);
        }
    }
    out
}

/// `text` as comment lines of at most 100 columns.
fn comment(out: &mut String, text: &str, indent: usize) {
    let mut line = String::new();
    let flush = |line: &mut String, out: &mut String| {
        if !line.is_empty() {
            let _ = writeln!(out, "{:indent$}#{line}", "");
            line.clear();
        }
    };
    for word in text.split_whitespace() {
        if line.len() + word.len() > 98 {
            flush(&mut line, out);
        }
        line.push(' ');
        line.push_str(word);
    }
    flush(&mut line, out);
}
