//! The first thing a newcomer runs.

use std::process::Command;

#[test]
fn the_demo_succeeds_and_says_so() {
    let output = Command::new(env!("CARGO_BIN_EXE_trunkline")).args(["demo", "--once"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("All 13 expected stanzas have arrived"), "{text}");
    assert!(text.contains("marked as delayed"), "{text}");
}
