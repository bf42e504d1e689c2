//! `cargo xtask bench`: our server, a bare TLS relay and, with `--peers`, Debian's Prosody and ejabberd, measured
//! alternately by `trunkline-load`.
//!
//! [`rows`] says what is measured and what is to be reached, [`measure`] how; [`field`] has the servers.

mod accounts;
mod dns;
mod ejabberd;
mod field;
mod load;
mod machine;
mod measure;
mod ours;
mod page;
mod pki;
mod prosody;
mod results;
mod rows;
mod servers;
mod siege;
mod table;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use serde_json::{Value, json};

use crate::run::say;
use crate::{Place, tools};
use field::{Field, Ground};
use measure::{GROUPS, Group};
use results::{Results, Sample};
use rows::{ROWS, Subject};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Measure Debian's Prosody and ejabberd too (installs them) and, from three rounds on, write docs/benchmarks.md
    #[arg(long)]
    peers: bool,
    /// How often everything is measured; medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// How long each run of the generator measures
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Only these rows; nothing is written then without --write
    #[arg(long, value_delimiter = ',', value_parser = row_names())]
    rows: Vec<String>,
    /// Write docs/benchmarks.md and .json; rows that were not measured keep their figures
    #[arg(long)]
    write: bool,
    /// Add a row with so many sessions on our server
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sessions: Option<u32>,
    /// What our users feel while the server is flooded from outside; writes docs/siege.md instead
    #[arg(long, conflicts_with_all = ["peers", "rows", "write", "sessions"])]
    siege: bool,
    /// Only these attacks; the others keep their figures
    #[arg(long, requires = "siege", value_delimiter = ',', value_parser = siege::ATTACKS)]
    attacks: Vec<String>,
    /// From so many domains only; the others keep their figures
    #[arg(long, requires = "siege", value_delimiter = ',', value_parser = siege::DOMAINS)]
    domains: Vec<String>,
    /// Settings of the server for a siege that is only printed (key=value)
    #[arg(long, requires = "siege", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Another load generator with the same options
    #[arg(long, value_name = "PROGRAM")]
    load: Option<PathBuf>,
}

fn row_names() -> Vec<&'static str> {
    ROWS.iter().map(|row| row.id).collect()
}

impl Options {
    fn wants(&self, group: &Group) -> bool {
        let asked = group.rows.iter().any(|row| self.rows.iter().any(|it| it == row));
        match (group.rows, self.sessions) {
            (["many"], None) => false,
            (["many"], Some(_)) => asked || self.rows.is_empty(),
            _ => asked || self.rows.is_empty(),
        }
    }

    fn subjects(&self, group: &Group) -> impl Iterator<Item = Subject> {
        group.subjects.iter().copied().filter(|it| self.peers || !Subject::PEERS.contains(it))
    }

    fn writes(&self) -> bool {
        // Fewer rounds say nothing about the spread.
        self.write || (self.peers && self.rows.is_empty() && self.rounds >= 3)
    }
}

pub(crate) fn run(place: &Place, options: &Options) -> ExitCode {
    match bench(place, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn bench(place: &Place, options: &Options) -> Result<(), String> {
    if options.peers {
        tools::servers()?;
    }
    build(place, options)?;
    let field = Field::new(Ground {
        work: place.work.join("bench"),
        programs: place.target.join("release"),
        load: options.load.clone(),
        seconds: options.seconds,
        sessions: options.sessions.unwrap_or(0),
    })?;
    if options.siege {
        return siege::run(place, options, &field);
    }
    let mut field = field;
    let begin = Instant::now();
    let mut results = Results::default();
    for round in 1..=options.rounds {
        for group in GROUPS.iter().filter(|group| options.wants(group)) {
            for subject in options.subjects(group).filter(|it| round == 1 || !group.once.contains(it)) {
                results.samples.extend(samples(&mut field, (group, subject), round));
            }
        }
        field.rest_all();
    }
    let mut text = table::render(&results);
    say(&format!("\n{text}\nin {:.0} s", begin.elapsed().as_secs_f64()));
    if options.writes() {
        let file = place.root.join("docs/benchmarks.json");
        let runs = runs(about(place, options), &mut results, &file);
        text = table::render(&results);
        let document = json!({ "runs": runs, "samples": results.to_json() });
        let write = |name: &str, text: String| {
            let file = place.root.join("docs").join(name);
            std::fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))
        };
        write("benchmarks.json", format!("{document:#}\n"))?;
        write("benchmarks.md", page::render(&runs, &text))?;
        say("written: docs/benchmarks.md, docs/benchmarks.json");
    }
    // A million accounts take some place. The logs stay until the next run.
    drop(std::fs::remove_dir_all(place.work.join("bench/store-1m")));
    Ok(())
}

/// Measures a group for one subject. A failure is a sample too.
fn samples(field: &mut Field, (group, subject): (&Group, Subject), round: u32) -> Vec<Sample> {
    let begin = Instant::now();
    let outcome = (group.measure)(field, subject);
    let seconds = begin.elapsed().as_secs_f64();
    let head = |row: &str| format!("round {round}  {row:<16} {:<10}", subject.name());
    match outcome {
        Ok(found) => found
            .into_iter()
            .map(|it| {
                say(&format!("{} {:>10}   {seconds:.0} s", head(it.row), table::number(it.value)));
                Sample { row: it.row, subject, round, outcome: Ok(it.value), note: it.note, raw: it.raw }
            })
            .collect(),
        Err(reason) => {
            say(&format!("{} FAILED: {reason}", head(group.rows[0])));
            // What failed may not be fit for the next row.
            field.rest(subject);
            let failed = |row: &&'static str| Sample {
                row,
                subject,
                round,
                outcome: Err(reason.clone()),
                note: None,
                raw: Value::Null,
            };
            group
                .rows
                .iter()
                .filter(|row| subject != Subject::Floor || **row == group.rows[0])
                .map(failed)
                .collect()
        }
    }
}

fn build(place: &Place, options: &Options) -> Result<(), String> {
    say("building the programs in release mode");
    let mut builds = vec![vec!["--bin", "trunkline"]];
    if !options.siege {
        builds.push(vec!["-p", "trunkline-client", "--example", "roster-pushes"]);
    }
    if options.load.is_none() {
        builds.push(vec!["-p", "trunkline-load"]);
    }
    for what in builds {
        let mut command = Command::new("cargo");
        command.args(["build", "--quiet", "--release"]).args(&what).current_dir(&place.root);
        if !command.status().is_ok_and(|it| it.success()) {
            return Err(format!("cargo build --release {} failed", what.join(" ")));
        }
    }
    Ok(())
}

/// Completes the results with those of the file, and says which run each row is of, the newest first.
fn runs(mut about: Value, results: &mut Results, file: &Path) -> Vec<Value> {
    about["rows"] = json!(results.rows());
    let measured = results.rows();
    results.complete(Results::read(file));
    let kept: Vec<&str> = results.rows().into_iter().filter(|row| !measured.contains(row)).collect();
    let mut runs = vec![about];
    for mut run in results::runs(file) {
        let rows = run["rows"].as_array().cloned().unwrap_or_default();
        let rows: Vec<Value> =
            rows.into_iter().filter(|row| kept.iter().any(|it| row.as_str() == Some(it))).collect();
        if !rows.is_empty() {
            run["rows"] = Value::Array(rows);
            runs.push(run);
        }
    }
    runs
}

/// What a reader must know about the run.
fn about(place: &Place, options: &Options) -> Value {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    json!({
        "date": machine::date(),
        "command": format!("cargo xtask {}", arguments.join(" ")),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "machine": machine::machine(),
        "versions": machine::versions(&place.root, options.peers),
    })
}
