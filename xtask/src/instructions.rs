//! `cargo xtask bench --instructions`: how many instructions our code takes, counted by valgrind, beside the committed
//! figures. Unlike times, counts are the same on a machine that does other things too.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use serde_json::Value;

use crate::Place;
use crate::run::{limited, say};
use crate::tools;

/// Package and bench.
const BENCHES: [(&str, &str); 2] = [("trunkline-xml", "scan"), ("trunkline-server", "exchange")];

/// Beside the run itself, the server is compiled with optimisation.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// Instructions by the name of the bench. One that ends in `_x100` does its work a hundred times.
type Figures = BTreeMap<String, u64>;

/// What became of the comparison.
pub(crate) struct Compared {
    pub(crate) counted: usize,
    /// What could not be counted, one line each. That a figure has changed is no problem.
    pub(crate) problems: Vec<String>,
}

pub(crate) fn run(place: &Place, update: bool) -> ExitCode {
    let compared = compare(place, update);
    compared.problems.iter().for_each(|problem| say(problem));
    say(&format!("{} passed, {} failed", compared.counted, compared.problems.len()));
    if compared.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Counts and prints the table; with `update` the counts become the committed figures.
pub(crate) fn compare(place: &Place, update: bool) -> Compared {
    let failed = |problem: String| Compared { counted: 0, problems: vec![problem] };
    let now = match count(place) {
        Ok(now) => now,
        Err(problem) => return failed(problem),
    };
    let committed = match read(place) {
        Ok(committed) => committed,
        Err(_) if update => Figures::new(),
        Err(problem) => return failed(problem),
    };
    table(&committed, &now).iter().for_each(|line| say(line));
    let mut problems = Vec::new();
    if update {
        problems.extend(write(place, &now).err());
    } else {
        let missing = committed.keys().filter(|name| !now.contains_key(*name));
        problems
            .extend(missing.map(|name| format!("{name} is in the committed figures and was not counted")));
    }
    Compared { counted: now.len(), problems }
}

fn table(committed: &Figures, now: &Figures) -> Vec<String> {
    let mut lines =
        vec![format!("{:<44} {:>12} {:>12} {:>9}", "instructions for each", "committed", "now", "change")];
    for (name, new) in now {
        let (shown, times) = times(name);
        let each = |count: u64| (count + times / 2) / times;
        let (old, change) = match committed.get(name) {
            Some(old) => {
                let change = (*new as f64 - *old as f64) / (*old as f64).max(1.0) * 100.0;
                (each(*old).to_string(), format!("{change:+.1} %"))
            }
            None => ("-".into(), "new".into()),
        };
        lines.push(format!("{shown:<44} {old:>12} {:>12} {change:>9}", each(*new)));
    }
    lines
}

/// `exchange::route::message_x100`: how it is shown, and a hundred.
fn times(name: &str) -> (&str, u64) {
    let split = name.rsplit_once("_x").and_then(|(shown, times)| Some((shown, times.parse().ok()?)));
    split.filter(|(_, times)| *times > 0).unwrap_or((name, 1))
}

fn count(place: &Place) -> Result<Figures, String> {
    let runner = tools::gungraun_runner(place)?;
    // What is left of an earlier run would be compared with, and grow.
    drop(fs::remove_dir_all(place.target.join("gungraun")));
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["bench", "--quiet"]);
    for (package, bench) in BENCHES {
        command.args(["-p", package, "--bench", bench]);
    }
    command.args(["--", "--output-format=json", "--parallel=auto"]);
    command.current_dir(&place.root).env("GUNGRAUN_RUNNER", runner).env("CARGO_TERM_COLOR", "never");
    let log = place.work.join("instructions.log");
    let ended = limited(command, LIMIT, &log, false).map_err(|error| format!("cargo bench: {error}"))?;
    if !ended.success {
        let lines: Vec<&str> = ended.output.lines().filter(|line| !line.starts_with('{')).collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        return Err(format!("the benches failed; all of it: {}\n{last}", log.display()));
    }
    let mut figures = Figures::new();
    for line in ended.output.lines().filter(|line| line.starts_with('{')) {
        let (name, count) = figure(line).ok_or_else(|| format!("not a figure of a bench: {line}"))?;
        figures.insert(name, count);
    }
    Ok(figures)
}

/// The name and the instructions of one line of gungraun's output (its summary schema, version 7).
fn figure(line: &str) -> Option<(String, u64)> {
    let summary: Value = serde_json::from_str(line).ok()?;
    let path = summary["module_path"].as_str()?;
    // File, group, function: one group a file, of which nobody needs to know.
    let (file, function) = (path.split("::").next()?, path.rsplit("::").next()?);
    let id = summary["id"].as_str()?;
    let values = &summary["profiles"][0]["data"]["total"]["metrics"]["Ir"]["values"];
    let count = values["new"].as_u64()?;
    Some((format!("{file}::{function}::{id}"), count))
}

fn file(place: &Place) -> PathBuf {
    place.root.join("benches/instructions.json")
}

fn read(place: &Place) -> Result<Figures, String> {
    let file = file(place);
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))
}

fn write(place: &Place, figures: &Figures) -> Result<(), String> {
    let file = file(place);
    let text = serde_json::to_string_pretty(figures).map_err(|error| error.to_string())?;
    file.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(&file, text + "\n"))
        .map_err(|error| format!("{}: {error}", file.display()))
}
