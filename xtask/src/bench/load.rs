//! Runs the load generator, or another tool that prints one JSON object, and reads what it found.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::servers::{signal, tied};

/// What a tool printed.
#[derive(Debug)]
pub(super) struct Report(pub(super) Value);

impl Report {
    /// A figure of the results; `latency_us.p50` looks inside an object.
    pub(super) fn figure(&self, name: &str) -> Result<f64, String> {
        let mut value = &self.0["results"];
        for part in name.split('.') {
            value = &value[part];
        }
        value.as_f64().ok_or_else(|| format!("the tool reports no {name}"))
    }
}

/// Runs `program` with `options` and `--json`, in a directory and for a time at most.
pub(super) fn run(
    program: &Path,
    options: &[String],
    (work, limit): (&Path, Duration),
) -> Result<Report, String> {
    let (json, log) = (work.join("report.json"), work.join("load.log"));
    let _ = fs::remove_file(&json);
    let failed = |error: std::io::Error| format!("{}: {error}", program.display());
    let output = File::create(&log).map_err(failed)?;
    let mut command = tied(program);
    command.args(options).arg("--json").arg(&json);
    command.stdin(Stdio::null()).stdout(output.try_clone().map_err(failed)?).stderr(output);
    let mut child = command.spawn().map_err(failed)?;
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if Instant::now() > end {
            signal(&child, "KILL");
            child.wait().map_err(failed)?;
            return Err(format!("not done within {} s: {}", limit.as_secs(), last_line(&log)));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if !status.success() {
        return Err(last_line(&log));
    }
    let text = fs::read_to_string(&json).map_err(|error| format!("no report: {error}"))?;
    serde_json::from_str(&text).map(Report).map_err(|error| format!("the report can't be read: {error}"))
}

fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    // A terminal's progress line is overwritten with carriage returns.
    let line = text.lines().flat_map(|line| line.split('\r')).map(str::trim).rfind(|line| !line.is_empty());
    line.unwrap_or("ended without a word").trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found() {
        let report =
            Report(serde_json::json!({ "results": { "messages": 7, "latency_us": { "p50": 1.5 } } }));
        assert_eq!(report.figure("messages"), Ok(7.0));
        assert_eq!(report.figure("latency_us.p50"), Ok(1.5));
        assert!(report.figure("latency_us.p98").is_err_and(|it| it.contains("p98")));
    }
}
