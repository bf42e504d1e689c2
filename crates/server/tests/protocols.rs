//! `docs/protocols.md` and `doap.xml` say what the modules say. `UPDATE_DOCS=1` writes them anew.

#![allow(clippy::unwrap_used, reason = "what cannot be written is a failed test")]

use std::path::Path;

use trunkline_server::protocols;

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn check(path: &str, expected: &str) {
    let file = root().join(path);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&file, expected).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == expected,
        "{path} is stale: UPDATE_DOCS=1 cargo test -p trunkline-server --test protocols writes it anew"
    );
}

#[test]
fn every_specification_has_a_title() {
    assert_eq!(protocols::untitled(), Vec::<u16>::new());
}

#[test]
fn protocols_are_documented() {
    check("docs/protocols.md", &protocols::markdown());
}

#[test]
fn the_project_describes_itself() {
    check("doap.xml", &protocols::doap());
}
