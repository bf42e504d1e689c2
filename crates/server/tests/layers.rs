//! Which room of the server may look into which: DESIGN.md "Rooms". A path `crate::...` or `super::...` in a source
//! file is a look; test modules look where they like.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// One rule: files under `room` name nothing that begins with one of `closed`, but for `open`.
struct Rule {
    room: &'static str,
    closed: &'static [&'static str],
    /// (file, path) with its reason beside it.
    open: &'static [(&'static str, &'static str)],
    why: &'static str,
}

const RULES: [Rule; 5] = [
    Rule {
        room: "net",
        closed: &["crate::"],
        open: &[("", "crate::net")],
        why: "bytes in, bytes out: net knows nothing of XMPP",
    },
    Rule {
        room: "modules",
        closed: &[
            "crate::net",
            "crate::session",
            "crate::serve",
            "crate::federation",
            "crate::modules::",
            // Another module; what is shared stands in mod.rs and has a capital.
            "super::*",
        ],
        // What a hook and a request are given says who the client is.
        open: &[("modules/mod.rs", "crate::session::Session")],
        why: "a module uses services, never a connection or another module",
    },
    Rule {
        room: "route",
        closed: &["crate::net", "crate::serve", "crate::federation", "crate::modules::*"],
        open: &[],
        why: "the router knows the list of modules, no module by name, and federation only as a Remote",
    },
    Rule {
        room: "session",
        closed: &["crate::federation", "crate::serve", "crate::modules::*"],
        // Before login there is no route yet: features and registration are asked for by name.
        open: &[
            ("session/login/features.rs", "crate::modules::disco::caps_feature"),
            ("session/login/mod.rs", "crate::modules::registration::Preauth"),
            ("session/login/sasl.rs", "crate::modules::registration"),
        ],
        why: "a connection hands its stanzas to route",
    },
    Rule {
        room: "federation",
        closed: &[
            "crate::modules",
            "crate::serve",
            "crate::session",
            "crate::route::account",
            "crate::route::message",
            "crate::route::presence",
            "crate::route::roster",
            "crate::route::iq",
        ],
        // Numbers of connections and the counters of XEP-0198 are the same on both sides.
        open: &[
            ("", "crate::session::ledger"),
            ("", "crate::session::serial"),
            ("", "crate::session::management::too_high"),
        ],
        why: "promise 2: federation takes no account's lock and touches no outbox",
    },
];

#[test]
fn rooms_keep_their_doors_closed() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut broken = Vec::new();
    for rule in &RULES {
        let mut files = Vec::new();
        collect(&source.join(rule.room), &mut files);
        assert!(!files.is_empty(), "there is no {}", rule.room);
        for file in files {
            let name = file.strip_prefix(&source).unwrap().to_string_lossy().into_owned();
            if name.contains("tests") {
                continue;
            }
            for path in paths(&std::fs::read_to_string(&file).unwrap()) {
                let closed = rule.closed.iter().any(|closed| is_under(&path, closed));
                let open = rule
                    .open
                    .iter()
                    .any(|(of, open)| (of.is_empty() || *of == name) && path.starts_with(open));
                if closed && !open {
                    broken.push(format!("{name} uses {path}: {}", rule.why));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// A rule's `a::*` means something in lower case below a: a module, not an item.
fn is_under(path: &str, rule: &str) -> bool {
    match rule.strip_suffix('*') {
        None => path.starts_with(rule),
        Some(parent) => path
            .strip_prefix(parent)
            .and_then(|rest| rest.split("::").next().map(|first| (first, rest)))
            .is_some_and(|(first, rest)| {
                first.starts_with(|c: char| c.is_ascii_lowercase())
                    && rest.len() > first.len()
                    && first != "super"
            }),
    }
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Every path from `crate` or `super`, groups in braces taken apart, comments and test modules left out.
fn paths(text: &str) -> BTreeSet<String> {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code: String =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    for root in ["crate::", "super::"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            expand(&code[at..], String::new(), &mut found);
        }
    }
    found
}

/// Reads one path; at a group, each of its members. Returns the rest.
fn expand<'a>(mut rest: &'a str, mut path: String, found: &mut BTreeSet<String>) -> &'a str {
    loop {
        rest = rest.trim_start();
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        path.push_str(&rest[..end]);
        rest = &rest[end..];
        if let Some(after) = rest.strip_prefix("::") {
            rest = after;
            path.push_str("::");
        } else if let Some(inside) = rest.strip_prefix('{').filter(|_| path.ends_with("::")) {
            rest = inside;
            loop {
                rest = expand(rest, path.clone(), found).trim_start();
                rest = rest
                    .strip_prefix("as ")
                    .map_or(rest, |alias| alias.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'))
                    .trim_start();
                match rest.strip_prefix(',') {
                    Some(after) if !after.trim_start().starts_with('}') => rest = after,
                    Some(after) => return after.trim_start().strip_prefix('}').unwrap_or(after),
                    None => return rest.strip_prefix('}').unwrap_or(rest),
                }
            }
        } else {
            found.insert(path);
            return rest;
        }
    }
}

#[test]
fn groups_are_taken_apart() {
    let text = "use crate::a::{b, c::{D, e as f}, self};\nlet x = crate::g::h();\n// crate::comment\nuse super::{I, j::K};";
    let expected = [
        "crate::a::b",
        "crate::a::c::D",
        "crate::a::c::e",
        "crate::a::self",
        "crate::g::h",
        "super::I",
        "super::j::K",
    ];
    assert_eq!(paths(text), expected.into_iter().map(str::to_owned).collect());
}
