//! `trunkline check`: what an operator gets wrong, found before users find it. Each finding says what to do.

mod certificates;
mod dns;
mod system;

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::socket::Control;
use super::{Operation, Outcome, Status};
use crate::config::Config;
use crate::net::dns::SystemResolver;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Could not be checked, or doesn't matter here.
    Note,
    /// Works, but not for everybody or not for long.
    Warn,
    /// Does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// Such as `certificate`.
    pub topic: &'static str,
    /// What was found.
    pub text: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub todo: Option<String>,
}

impl Finding {
    fn ok(topic: &'static str, text: impl Into<String>) -> Finding {
        Finding { level: Level::Ok, topic, text: text.into(), todo: None }
    }
    fn note(topic: &'static str, text: impl Into<String>) -> Finding {
        Finding { level: Level::Note, ..Finding::ok(topic, text) }
    }
    fn warn(topic: &'static str, text: impl Into<String>, todo: impl Into<String>) -> Finding {
        Finding { level: Level::Warn, topic, text: text.into(), todo: Some(todo.into()) }
    }
    fn fail(topic: &'static str, text: impl Into<String>, todo: impl Into<String>) -> Finding {
        Finding { level: Level::Fail, ..Finding::warn(topic, text, todo) }
    }
}

/// Checks everything that a configuration file leads to.
pub async fn run(file: &Path) -> Vec<Finding> {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => {
            let findings = error.problems.into_iter().map(|problem| {
                let line = problem.line.map_or(String::new(), |line| format!(" line {line}:"));
                let key = if problem.key.is_empty() { String::new() } else { format!(" {}:", problem.key) };
                let text = format!("{}:{line}{key} {}", file.display(), problem.text);
                Finding::fail("config", text, "correct it; nothing else was checked")
            });
            return findings.collect();
        }
    };
    let mut findings = vec![Finding::ok("config", format!("{} has no errors", file.display()))];
    let running = status(&config).await;
    findings.push(match &running {
        Some(status) => Finding::note("server", format!("is running (pid {})", status.pid)),
        None => Finding::note("server", "is not running"),
    });
    for problem in running.iter().flat_map(|status| &status.problems) {
        findings.push(Finding::fail("server", problem.clone(), "see the server's log"));
    }
    findings.extend(system::files(&config));
    findings.extend(system::store(&config, running.is_some()));
    findings.extend(certificates::check(&config, jiff::Timestamp::now()));
    findings.extend(system::clock(&config));
    findings.extend(system::descriptors(&config, running.as_ref().map(|status| status.pid)));
    findings.extend(system::ports(&config, running.is_some()).await);
    match SystemResolver::new() {
        Ok(resolver) => {
            let eyes = dns::Eyes { resolver: &resolver, is_ours: dns::is_ours };
            findings.extend(dns::check(&config, &eyes).await);
        }
        Err(error) => {
            let text = format!("DNS can't be asked: {error}");
            findings.push(Finding::fail("dns", text, "correct this machine's /etc/resolv.conf"));
        }
    }
    findings
}

async fn status(config: &Config) -> Option<Status> {
    let mut control = Control::connect(&config.control_socket()).await.ok()?;
    match control.call(&Operation::Status).await {
        Ok(Outcome::Status(status)) => Some(*status),
        _ => None,
    }
}

/// Findings for people.
pub fn human(findings: &[Finding]) -> String {
    let mut out = String::new();
    let topic = findings.iter().map(|finding| finding.topic.len()).max().unwrap_or(0);
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok  ",
            Level::Note => "note",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        let _ = writeln!(out, "{level}  {:<topic$}  {}", finding.topic, finding.text);
        for line in finding.todo.iter().flat_map(|todo| todo.lines()) {
            let _ = writeln!(out, "      {:<topic$}  -> {line}", "");
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let _ = match (count(Level::Fail), count(Level::Warn)) {
        (0, 0) => writeln!(out, "\nEverything that can be seen from here is well."),
        (0, warnings) => writeln!(out, "\nNothing is broken; {warnings} to look at."),
        (failed, warnings) => writeln!(out, "\n{failed} to correct, {warnings} to look at."),
    };
    out
}

/// The worst of them.
pub fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_readable() {
        let findings = [
            Finding::ok("config", "has no errors"),
            Finding::fail("certificate", "expired", "renew it\nand reload"),
        ];
        assert_eq!(
            human(&findings),
            "ok    config       has no errors\nFAIL  certificate  expired\n                   -> renew it\n                   -> and reload\n\n1 to correct, 0 to look at.\n"
        );
        assert_eq!(worst(&findings), Level::Fail);
    }

    #[tokio::test]
    async fn a_broken_configuration_is_a_finding() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("trunkline.toml");
        std::fs::write(&file, "domain = \"example.org\"\nx = 1\n").unwrap();
        let findings = run(&file).await;
        assert_eq!(findings.len(), 1);
        assert!(findings[0].text.contains("line 2: x: "), "{}", findings[0].text);
    }
}
