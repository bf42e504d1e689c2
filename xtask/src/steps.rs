//! `cargo xtask test`: the steps, their limits, and the summary.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::Place;
use crate::run::{self, Ended, limited, say};
use crate::{instructions, tidy, tools};

pub(crate) struct Choice {
    pub(crate) only: Vec<String>,
    pub(crate) kills: u32,
    pub(crate) verbose: bool,
}

/// One step: what it is called, how long it may take, and what it does.
struct Step {
    name: &'static str,
    what: &'static str,
    minutes: u64,
    work: Work,
}

enum Work {
    /// Runs programs one after the other; the counts are read from what they print.
    Programs(fn(&Place, &Choice) -> Vec<Command>, fn(&Ended) -> Counts),
    Inside(fn(&Place) -> (Counts, String)),
}

#[derive(Clone, Copy, Default)]
struct Counts {
    passed: usize,
    failed: usize,
}

/// In this order: what is fast and fails often comes first.
const STEPS: [Step; 13] = [
    Step { name: "tools", what: "servers, clients, Python", minutes: 10, work: Work::Inside(install) },
    // Before everything that builds the server: it embeds the console.
    Step { name: "web", what: "the console", minutes: 5, work: Work::Programs(web, by_vitest) },
    Step { name: "format", what: "cargo fmt", minutes: 1, work: Work::Programs(format, by_status) },
    Step { name: "tidy", what: "house rules", minutes: 1, work: Work::Inside(rules) },
    Step { name: "lints", what: "cargo clippy", minutes: 12, work: Work::Programs(lints, by_status) },
    Step {
        name: "tests",
        what: "unit tests and plays",
        minutes: 15,
        work: Work::Programs(tests, by_test_output),
    },
    Step {
        name: "docs",
        what: "examples in documentation",
        minutes: 8,
        work: Work::Programs(docs, by_test_output),
    },
    Step { name: "build", what: "the programs", minutes: 10, work: Work::Programs(build, by_status) },
    Step { name: "demo", what: "trunkline demo --once", minutes: 2, work: Work::Programs(demo, by_status) },
    Step {
        name: "interop",
        what: "with Prosody, ejabberd, clients",
        minutes: 10,
        work: Work::Programs(interop, by_last_line),
    },
    Step {
        name: "browser",
        what: "the console in Chromium",
        minutes: 10,
        work: Work::Programs(browser, by_last_line),
    },
    Step {
        name: "crash",
        what: "kill -9 at random moments",
        minutes: 10,
        work: Work::Programs(crash, by_last_line),
    },
    Step {
        name: "instructions",
        what: "counted, beside the committed",
        minutes: 25,
        work: Work::Inside(instructions),
    },
];

pub(crate) fn names() -> Vec<&'static str> {
    STEPS.iter().map(|step| step.name).collect()
}

pub(crate) fn test(place: &Place, choice: &Choice) -> ExitCode {
    let wanted = |step: &&Step| match &choice.only[..] {
        [] => true,
        only => only.iter().any(|name| name == step.name) || needed_by(step.name, only),
    };
    let mut total = Counts::default();
    let mut table = Vec::new();
    let begin = Instant::now();
    for step in STEPS.iter().filter(wanted) {
        say(&format!("== {}: {}", step.name, step.what));
        let start = Instant::now();
        let counts = perform(step, place, choice);
        let seconds = start.elapsed().as_secs_f64();
        let verdict = if counts.failed == 0 { "ok" } else { "FAILED" };
        say(&format!("   {verdict}, {} passed, {} failed, {seconds:.1} s", counts.passed, counts.failed));
        table.push(format!(
            "{:<12} {:<34} {:>7} {:>7} {:>9.1} s  {verdict}",
            step.name, step.what, counts.passed, counts.failed, seconds
        ));
        total.passed += counts.passed;
        total.failed += counts.failed;
    }
    say("");
    say(&format!("{:<12} {:<34} {:>7} {:>7} {:>11}", "step", "", "passed", "failed", "time"));
    table.iter().for_each(|line| say(line));
    say(&format!("in {:.0} s", begin.elapsed().as_secs_f64()));
    say(&format!("{} passed, {} failed", total.passed, total.failed));
    if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `--only interop` must find programs and servers.
fn needed_by(step: &str, only: &[String]) -> bool {
    let any = |names: &[&str]| only.iter().any(|it| names.contains(&it.as_str()));
    match step {
        "tools" => any(&["web", "interop", "browser", "instructions"]),
        "web" => any(&["browser"]),
        "build" => any(&["demo", "interop", "browser", "crash"]),
        _ => false,
    }
}

fn perform(step: &Step, place: &Place, choice: &Choice) -> Counts {
    let limit = Duration::from_secs(step.minutes * 60);
    let (programs, count) = match step.work {
        Work::Inside(work) => {
            let (counts, text) = work(place);
            if counts.failed > 0 {
                say(&text);
            }
            return counts;
        }
        Work::Programs(programs, count) => (programs, count),
    };
    let start = Instant::now();
    let mut sum = Counts::default();
    for (n, mut command) in programs(place, choice).into_iter().enumerate() {
        command.current_dir(&place.root).env("CARGO_TERM_COLOR", "never");
        let log = place.work.join(format!("{}-{n}.log", step.name));
        let left = limit.saturating_sub(start.elapsed());
        let ended = match limited(command, left, &log, choice.verbose) {
            Ok(ended) => ended,
            Err(error) => Ended { success: false, timed_out: false, output: error.to_string() },
        };
        let mut counts = count(&ended);
        if !ended.success && counts.failed == 0 {
            counts.failed = 1;
        }
        if counts.failed > 0 && !choice.verbose {
            complain(&ended, &log, step.minutes);
        }
        sum.passed += counts.passed;
        sum.failed += counts.failed;
    }
    sum
}

/// Shows the lines that say what went wrong, or the last ones.
fn complain(ended: &Ended, log: &Path, minutes: u64) {
    let lines: Vec<&str> = ended.output.lines().collect();
    let telling = |line: &&&str| {
        ["FAIL", "error", "warning: ", "panicked", "Diff in", "LOST"].iter().any(|word| line.contains(word))
    };
    let told: Vec<_> = lines.iter().filter(telling).take(60).collect();
    if told.is_empty() {
        lines.iter().rev().take(40).rev().for_each(|line| say(&format!("   | {line}")));
    }
    told.iter().for_each(|line| say(&format!("   | {line}")));
    if ended.timed_out {
        say(&format!("   not done within {minutes} minutes"));
    }
    say(&format!("   all of it: {}", log.display()));
}

fn by_status(ended: &Ended) -> Counts {
    Counts { passed: usize::from(ended.success), failed: usize::from(!ended.success) }
}

/// Nextest's `Summary` line, or the `test result:` lines of cargo's own.
fn by_test_output(ended: &Ended) -> Counts {
    let mut counts = Counts::default();
    for line in ended.output.lines() {
        if line.trim_start().starts_with("Summary [") || line.starts_with("test result:") {
            counts.passed += number_before(line, "passed");
            counts.failed += number_before(line, "failed") + number_before(line, "timed out");
        }
    }
    counts
}

/// Our own programs end with `N passed, N failed`.
fn by_last_line(ended: &Ended) -> Counts {
    let last = ended.output.lines().rev().find(|line| line.contains(" passed, ")).unwrap_or_default();
    Counts { passed: number_before(last, "passed"), failed: number_before(last, "failed") }
}

/// The `Tests` line of vitest; programs without one count as one.
fn by_vitest(ended: &Ended) -> Counts {
    match ended.output.lines().find(|line| line.trim_start().starts_with("Tests ")) {
        Some(line) => Counts { passed: number_before(line, "passed"), failed: number_before(line, "failed") },
        None => by_status(ended),
    }
}

fn number_before(line: &str, word: &str) -> usize {
    let Some(at) = line.find(&format!(" {word}")) else { return 0 };
    line[..at].rsplit(|it: char| !it.is_ascii_digit()).next().and_then(|it| it.parse().ok()).unwrap_or(0)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    command
}

fn install(place: &Place) -> (Counts, String) {
    match tools::install(place) {
        Ok(()) => (Counts { passed: 1, failed: 0 }, String::new()),
        Err(error) => (Counts { passed: 0, failed: 1 }, error),
    }
}

fn rules(place: &Place) -> (Counts, String) {
    let found = tidy::check(&place.root);
    (Counts { passed: found.checked, failed: found.problems.len() }, found.problems.join("\n"))
}

fn instructions(place: &Place) -> (Counts, String) {
    let compared = instructions::compare(place, false);
    let counts = Counts { passed: compared.counted, failed: compared.problems.len() };
    (counts, compared.problems.join("\n"))
}

fn format(_: &Place, _: &Choice) -> Vec<Command> {
    vec![cargo(&["fmt", "--all", "--check"])]
}

fn lints(_: &Place, _: &Choice) -> Vec<Command> {
    vec![cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])]
}

fn tests(_: &Place, _: &Choice) -> Vec<Command> {
    if run::has("cargo-nextest") {
        return vec![cargo(&["nextest", "run", "--workspace", "--no-fail-fast", "--status-level", "fail"])];
    }
    vec![cargo(&["test", "--quiet", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"])]
}

fn docs(_: &Place, _: &Choice) -> Vec<Command> {
    vec![cargo(&["test", "--quiet", "--workspace", "--doc"])]
}

fn build(_: &Place, _: &Choice) -> Vec<Command> {
    vec![
        cargo(&["build", "--quiet", "-p", "trunkline-server", "-p", "trunkline-crash"]),
        // It has the push service that interop needs.
        cargo(&["build", "--quiet", "-p", "trunkline-load"]),
        cargo(&["build", "--quiet", "-p", "trunkline-client", "--example", "client-check"]),
    ]
}

fn demo(place: &Place, _: &Choice) -> Vec<Command> {
    let mut command = Command::new(place.binary("trunkline"));
    command.args(["demo", "--once"]);
    vec![command]
}

fn interop(place: &Place, _: &Choice) -> Vec<Command> {
    let mut command = Command::new(place.python());
    command.arg(place.root.join("tests/interop/run.py"));
    command.arg("--trunkline").arg(place.binary("trunkline"));
    command.arg("--client-check").arg(place.binary("examples/client-check"));
    vec![command]
}

fn web(place: &Place, _: &Choice) -> Vec<Command> {
    ["check", "build"].map(|script| npm(place, script)).into()
}

fn npm(place: &Place, script: &str) -> Command {
    let mut command = Command::new("npm");
    command.arg("--prefix").arg(place.root.join("web")).args(["run", script]).env("NO_COLOR", "1");
    command
}

/// `cargo xtask web`: what the server embeds.
pub(crate) fn console(place: &Place) -> ExitCode {
    let log = place.work.join("web.log");
    let built = tools::console(place).and_then(|()| {
        let mut command = npm(place, "build");
        command.current_dir(&place.root);
        let ended =
            limited(command, Duration::from_secs(300), &log, true).map_err(|error| error.to_string())?;
        if ended.success { Ok(()) } else { Err(format!("the console was not built: {}", log.display())) }
    });
    match built {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn browser(place: &Place, _: &Choice) -> Vec<Command> {
    let mut command = Command::new(place.python());
    command.arg(place.root.join("tests/browser/run.py"));
    command.arg("--trunkline").arg(place.binary("trunkline"));
    command.arg("--screenshots").arg(place.target.join("screenshots"));
    vec![command]
}

fn crash(place: &Place, choice: &Choice) -> Vec<Command> {
    let mut command = Command::new(place.binary("trunkline-crash"));
    command.arg("--trunkline").arg(place.binary("trunkline")).arg("--kills").arg(choice.kills.to_string());
    vec![command]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(output: &str) -> Ended {
        Ended { success: true, timed_out: false, output: output.into() }
    }

    #[test]
    fn counts_are_read_from_what_programs_print() {
        let nextest = "     Summary [   1.2s] 12 tests run: 10 passed (1 slow), 2 failed, 3 skipped\n";
        let counts = by_test_output(&ended(nextest));
        assert_eq!((counts.passed, counts.failed), (10, 2));
        let cargo = "test result: ok. 4 passed; 0 failed; 0 ignored\ntest result: FAILED. 1 passed; 2 failed; 0 ignored\n";
        let counts = by_test_output(&ended(cargo));
        assert_eq!((counts.passed, counts.failed), (5, 2));
        let vitest = " Test Files  2 passed (2)\n      Tests  1 failed | 19 passed (20)\n";
        let counts = by_vitest(&ended(vitest));
        assert_eq!((counts.passed, counts.failed), (19, 1));
        assert_eq!(by_vitest(&ended("built in 2 s")).passed, 1);
        let ours = "pass  x  1 passed, not this\n25 passed, 1 failed\n";
        let counts = by_last_line(&ended(ours));
        assert_eq!((counts.passed, counts.failed), (25, 1));
    }
}
