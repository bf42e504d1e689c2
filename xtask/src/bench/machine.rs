//! What was measured on, and with which versions.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Debian's packages whose versions matter.
const PACKAGES: [&str; 6] = ["prosody", "lua5.4", "lua-sec", "ejabberd", "erlang-base", "libssl3"];

pub(super) fn machine() -> Value {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = processors.lines().filter(|line| line.starts_with("processor")).count();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let gib = kib.and_then(|it| it.parse::<f64>().ok()).map_or(0.0, |kib| kib / 1024.0 / 1024.0);
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    json!({
        "processor": model.map_or("unknown", |(_, name)| name),
        "cores": cores,
        "memory_gib": (gib * 10.0).round() / 10.0,
        "kernel": printed("uname", &["-r"]),
        "system": system.unwrap_or("unknown").trim_matches('"'),
        "open_files": super::servers::files(),
    })
}

pub(super) fn versions(root: &Path, peers: bool) -> Value {
    let mut versions = json!({
        "trunkline": printed("git", &["-C", &root.to_string_lossy(), "describe", "--always", "--dirty"]),
        "rustc": printed("rustc", &["--version"]),
    });
    for package in PACKAGES.into_iter().filter(|_| peers) {
        versions[package] = printed("dpkg-query", &["-W", "-f", "${Version}", package]).into();
    }
    versions
}

pub(super) fn date() -> String {
    printed("date", &["-u", "+%Y-%m-%d %H:%M UTC"])
}

fn printed(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|it| String::from_utf8_lossy(&it.stdout).trim().to_owned()).unwrap_or_default();
    if text.is_empty() { "unknown".to_owned() } else { text }
}
