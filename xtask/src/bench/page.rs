//! `docs/benchmarks.md`: the table, and what a stranger must know to judge it.

use std::fmt::Write as _;

use serde_json::Value;

const TEXT: &str = include_str!("page.md");

/// `runs`: the newest first; those before it are there for the rows that it left out.
pub(super) fn render(runs: &[Value], table: &str) -> String {
    TEXT.replace("{table}", table.trim_end()).replace("{runs}", about(runs).trim_end())
}

pub(super) fn about(runs: &[Value]) -> String {
    let mut text = String::new();
    for (n, run) in runs.iter().enumerate() {
        let field = |name: &str| run[name].as_str().unwrap_or("unknown");
        if runs.len() > 1 {
            let rows: Vec<&str> =
                run["rows"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let _ = writeln!(text, "{}Rows {}:\n", if n > 0 { "\n" } else { "" }, rows.join(", "));
        }
        let machine = &run["machine"];
        let name = |key: &str| machine[key].as_str().unwrap_or("unknown").to_owned();
        let _ = writeln!(text, "| | |\n|---|---|");
        let _ = writeln!(text, "| date | {} |", field("date"));
        let _ = writeln!(text, "| command | `{}` |", field("command"));
        let _ = writeln!(text, "| rounds, seconds a run | {}, {} |", run["rounds"], run["seconds"]);
        let _ = writeln!(
            text,
            "| machine | {}, {} cores, {} GiB, {}, kernel {} |",
            name("processor"),
            machine["cores"],
            machine["memory_gib"],
            name("system"),
            name("kernel")
        );
        let versions = run["versions"].as_object().into_iter().flatten();
        let versions: Vec<String> = versions
            .map(|(name, version)| format!("{name} {}", version.as_str().unwrap_or("unknown")))
            .collect();
        let _ = writeln!(text, "| versions | {} |", versions.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_everything() {
        let run = serde_json::json!({
            "date": "2026-01-02 03:04 UTC", "command": "cargo xtask bench --peers", "rounds": 3, "seconds": 4,
            "machine": { "processor": "Abacus", "cores": 2, "memory_gib": 23.5, "kernel": "6.1", "system": "Debian" },
            "versions": { "prosody": "0.12", "trunkline": "abc" }, "rows": ["login"],
        });
        let page = render(std::slice::from_ref(&run), "| the table |\n");
        let expected =
            ["| the table |", "Abacus, 2 cores, 23.5 GiB, Debian, kernel 6.1", "prosody 0.12, trunkline abc"];
        for part in expected {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("{table}") && !page.contains("{runs}") && !page.contains("Rows login"));
        assert!(render(&[run.clone(), run], "").contains("Rows login:"));
    }
}
