//! House rules that compilers don't check.

use std::fs;
use std::path::{Path, PathBuf};

/// How many files were looked at, and what was found, one line each.
pub(crate) struct Found {
    pub(crate) checked: usize,
    pub(crate) problems: Vec<String>,
}

/// Text that must not stand in a source file, and why.
const FORBIDDEN: [(&str, &str); 4] = [
    (concat!("#[ign", "ore"), "a test that does not run is no test"),
    (concat!("todo", "!("), "finish it or leave it out"),
    (concat!("unimplemented", "!("), "finish it or leave it out"),
    ("\t", "indent with spaces"),
];

/// The crates of this workspace that each may use: `xml <- xmpp <- server`, `store <- server`.
const LAYERS: [(&str, &[&str]); 5] = [
    ("xml", &[]),
    ("xmpp", &["trunkline-xml"]),
    ("store", &[]),
    ("client", &["trunkline-xml", "trunkline-xmpp"]),
    ("load", &["trunkline-xml", "trunkline-xmpp"]),
];

pub(crate) fn check(root: &Path) -> Found {
    let mut files = Vec::new();
    for directory in ["crates", "xtask", "tests"] {
        collect(&root.join(directory), &mut files);
    }
    files.sort();
    let mut problems = Vec::new();
    let mut checked = 0;
    for file in &files {
        let name = file.strip_prefix(root).unwrap_or(file).to_string_lossy().into_owned();
        match fs::read_to_string(file) {
            Ok(text) => source(&name, &text, &mut problems),
            Err(error) => problems.push(format!("{name}: {error}")),
        }
        checked += 1;
    }
    for (name, allowed) in LAYERS {
        checked += 1;
        layer(root, name, allowed, &mut problems);
    }
    Found { checked, problems }
}

fn source(name: &str, text: &str, problems: &mut Vec<String>) {
    if name.ends_with(".rs") {
        let mut in_tests = false;
        for (number, line) in text.lines().enumerate() {
            // Unit tests stand at the end of a file; they may build what a module is called with.
            in_tests |= line == "#[cfg(test)]";
            let mut bad = |why: &str| problems.push(format!("{name}:{}: {why}", number + 1));
            for (word, why) in FORBIDDEN {
                // A tab inside a string is written \t there.
                if line.contains(word) {
                    bad(why);
                }
            }
            if line.ends_with(' ') {
                bad("white space at the end of the line");
            }
            if let Some(module) = module_of(name)
                && !in_tests
                && !line.trim_start().starts_with("//")
            {
                reach(module, line, &mut bad);
            }
        }
        let starts_right = ["//!", "#![", "// "].iter().any(|start| text.starts_with(start));
        if !text.is_empty() && name.contains("/src/") && !starts_right && !is_test(name) {
            problems.push(format!("{name}:1: the first line says what the file is for (//! ...)"));
        }
    }
}

fn is_test(name: &str) -> bool {
    name.ends_with("tests.rs") || name.contains("/tests/")
}

/// The server's module that a file belongs to: `carbons` for `modules/carbons.rs` and `modules/carbons/*.rs`.
fn module_of(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("crates/server/src/modules/")?;
    let module = rest.split(['/', '.']).next()?;
    (module != "mod").then_some(module)
}

/// A module may use route, store, xmpp and services; never net, session or another module.
fn reach(module: &str, line: &str, bad: &mut impl FnMut(&str)) {
    for room in ["net", "session"] {
        if line.contains(&format!("crate::{room}::")) {
            bad(&format!("a module must not use {room}"));
        }
    }
    for (at, path) in line.match_indices("crate::modules::") {
        let used =
            line[at + path.len()..].split(|it: char| !it.is_alphanumeric() && it != '_').next().unwrap_or("");
        let is_module = used.starts_with(|it: char| it.is_ascii_lowercase());
        if is_module && used != module {
            bad(&format!("a module must not use another module ({used}): what two need is a service"));
        }
    }
}

fn layer(root: &Path, name: &str, allowed: &[&str], problems: &mut Vec<String>) {
    let file = root.join("crates").join(name).join("Cargo.toml");
    let Ok(text) = fs::read_to_string(&file) else {
        problems.push(format!("crates/{name}/Cargo.toml can't be read"));
        return;
    };
    let normal = text.split("[dev-dependencies]").next().unwrap_or_default();
    let own = format!("trunkline-{name}");
    for line in normal.lines().filter(|line| line.starts_with("trunkline-")) {
        let used = line.split(['.', ' ', '=']).next().unwrap_or_default();
        if used != own && !allowed.contains(&used) {
            problems.push(format!("crates/{name}/Cargo.toml: {name} must not use {used}"));
        }
    }
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if !path.ends_with("target") {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|it| it == "rs") {
            files.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_stay_apart() {
        let text = "//! X\nuse crate::modules::carbons::copy;\nuse crate::modules::Module;\nuse crate::net::Listener;\n";
        let mut problems = Vec::new();
        source("crates/server/src/modules/roster/mod.rs", text, &mut problems);
        assert_eq!(problems.len(), 2, "{problems:?}");
        for fine in [
            "use crate::modules::carbons::copy;",
            "#[cfg(test)]\nmod tests {\n    use crate::session::Session;\n}",
        ] {
            problems.clear();
            source("crates/server/src/modules/carbons.rs", &format!("//! X\n{fine}\n"), &mut problems);
            assert!(problems.is_empty(), "{problems:?}");
        }
    }
}
