//! `cargo xtask fuzz`: cargo-fuzz where it can run, else the mutant test of the scanner with many more mutants.

use std::process::{Command, ExitCode};
use std::time::Duration;

use crate::Place;
use crate::run::{has, limited, say};

pub(crate) fn run(place: &Place, seconds: u64) -> ExitCode {
    let nightly =
        Command::new("cargo").args(["+nightly", "--version"]).output().is_ok_and(|it| it.status.success());
    let targets = targets(place);
    let missing = match (has("cargo-fuzz"), nightly, targets.is_empty()) {
        (_, _, true) => Some("there are no targets in fuzz/"),
        (false, _, _) => Some("cargo-fuzz is not installed (cargo install cargo-fuzz)"),
        (_, false, _) => Some("there is no nightly toolchain (rustup toolchain install nightly)"),
        _ => None,
    };
    let commands = match missing {
        Some(why) => {
            say(&format!("no coverage-guided fuzzing: {why}"));
            say("instead: the scanner against its oracle on ten million mutants");
            let mut command = Command::new("cargo");
            command.args([
                "test",
                "--release",
                "-p",
                "trunkline-xml",
                "--test",
                "mutants",
                "--",
                "--nocapture",
            ]);
            command.env("TRUNKLINE_MUTANTS", "10000000");
            vec![("mutants".to_owned(), command, 3600)]
        }
        None => targets.into_iter().map(|name| fuzz_one(name, seconds)).collect(),
    };
    let (mut passed, mut failed) = (0, 0);
    for (name, mut command, limit) in commands {
        say(&format!("== {name}"));
        command.current_dir(&place.root);
        let log = place.work.join(format!("fuzz-{name}.log"));
        let success = limited(command, Duration::from_secs(limit), &log, true).is_ok_and(|it| it.success);
        passed += u32::from(success);
        failed += u32::from(!success);
    }
    say(&format!("{passed} passed, {failed} failed"));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn fuzz_one(name: String, seconds: u64) -> (String, Command, u64) {
    let mut command = Command::new("cargo");
    command.args(["+nightly", "fuzz", "run", &name, "--", &format!("-max_total_time={seconds}")]);
    // Beside its time, a target must be built with instrumentation.
    (name, command, seconds + 900)
}

fn targets(place: &Place) -> Vec<String> {
    let directory = place.root.join("fuzz/fuzz_targets");
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            entry.file_name().to_str().and_then(|it| it.strip_suffix(".rs")).map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}
