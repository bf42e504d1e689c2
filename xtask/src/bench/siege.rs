//! `cargo xtask bench --siege`: our server as it comes, flooded from outside by `trunkline-load siege`, and what its own
//! users feel. Makes docs/siege.md.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::accounts::Accounts;
use super::field::Field;
use super::rows::Subject;
use super::servers::{Plan, Server};
use super::{Options, load, ours, page, table};
use crate::Place;
use crate::run::say;

pub(super) const ATTACKS: [&str; 5] = ["stanzas", "connections", "handshakes", "dialback", "presence"];
pub(super) const DOMAINS: [&str; 3] = ["1", "100", "10000"];

/// What the attackers' domains end in.
const ZONE: &str = "outside.bench";
/// Users, those who only receive, and one who comes and goes (crates/load/src/siege/inside.rs).
const ACCOUNTS: u32 = 141;
/// Of the target: this many times the figure before, and that of the sink.
const MOST: f64 = 1.5;

const TEXT: &str = include_str!("siege.md");

pub(super) fn run(place: &Place, options: &Options, field: &Field) -> Result<(), String> {
    let wanted = |list: &[String], name: &str| list.is_empty() || list.iter().any(|it| it == name);
    let begin = Instant::now();
    let mut rows = Vec::new();
    for round in 1..=options.rounds {
        for attack in ATTACKS.into_iter().filter(|it| wanted(&options.attacks, it)) {
            for domains in DOMAINS.into_iter().filter(|it| wanted(&options.domains, it)) {
                let row = row(field, (attack, domains), &options.set).unwrap_or_else(
                    |error| json!({ "attack": attack, "domains": domains.parse::<u32>().unwrap_or(0), "failed": error }),
                );
                say(&format!("round {round}  {}", line(&[&row])));
                rows.push(row);
            }
        }
    }
    say(&format!("\n{}\nin {:.0} s", render(&rows), begin.elapsed().as_secs_f64()));
    if !options.set.is_empty() {
        return Ok(());
    }
    let file = place.root.join("docs/siege.json");
    let about = super::about(place, options);
    let document = merged(about, rows, &file);
    let runs: Vec<Value> = document["runs"].as_array().cloned().unwrap_or_default();
    let all: Vec<Value> = document["rows"].as_array().cloned().unwrap_or_default();
    let text = TEXT
        .replace("{table}", render(&all).trim_end())
        .replace("{refused}", refused(&all).trim_end())
        .replace("{runs}", page::about(&runs).trim_end());
    let write = |name: &str, text: String| {
        let file = place.root.join("docs").join(name);
        fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))
    };
    write("siege.json", format!("{document:#}\n"))?;
    write("siege.md", text)?;
    say("written: docs/siege.md, docs/siege.json");
    Ok(())
}

/// One attack against a newly started server.
fn row(field: &Field, (attack, domains): (&str, &str), own: &[String]) -> Result<Value, String> {
    let mut plan = Plan::new(Subject::Ours, "siege", 60)?;
    let name_server = free_udp()?;
    let web = super::servers::free_port(plan.address)?;
    let mut settings = vec![
        ("clients.max_connections".to_owned(), "20000".to_owned()),
        ("federation.allow_private".into(), "true".into()),
        ("federation.name_servers".into(), name_server.clone()),
        ("web.listen".into(), format!("{}:{web}", plan.address)),
        ("log.level".into(), "info".into()),
    ];
    for setting in own {
        let (key, value) = setting.split_once('=').ok_or_else(|| format!("--set {setting}: KEY=VALUE"))?;
        settings.push((key.to_owned(), value.to_owned()));
    }
    plan.as_shipped = Some(settings);
    let directory = plan.directory(field);
    if directory.exists() {
        fs::remove_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    }
    ours::prepare(&plan, field, &Accounts { groups: vec![("load", ACCOUNTS)], contacts: false, star: None })?;
    let certificate = field.certificate(ZONE)?;
    let server = Server::start(plan, field)?;
    let mut work: Vec<String> = server.plan.options(field);
    for (name, value) in [
        ("--federation", format!("{}:{}", server.plan.address, server.plan.federation)),
        ("--metrics", format!("{}:{web}", server.plan.address)),
        ("--zone", ZONE.to_owned()),
        ("--certificate", certificate.chain.to_string_lossy().into_owned()),
        ("--key", certificate.key.to_string_lossy().into_owned()),
        ("--dns", name_server),
        ("--attacks", attack.to_owned()),
        ("--domains", domains.to_owned()),
        ("--server-pid", server.pid().to_string()),
        ("--seconds", field.seconds.to_string()),
    ] {
        work.extend([name.to_owned(), value]);
    }
    work.insert(0, "siege".to_owned());
    let report = load::run(&field.load, &work, (&field.work, Duration::from_secs(300)));
    server.stop();
    let report = report?;
    report.0["results"]["rows"].get(0).cloned().ok_or_else(|| "the generator reports no row".to_owned())
}

fn free_udp() -> Result<String, String> {
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    Ok(socket.local_addr().map_err(|error| error.to_string())?.to_string())
}

/// The new rows beside those of the file that were not measured again, and which run each is of.
fn merged(mut about: Value, rows: Vec<Value>, file: &Path) -> Value {
    let name = |row: &Value| format!("{} {}", row["attack"].as_str().unwrap_or("?"), row["domains"]);
    let mut measured: Vec<String> = rows.iter().map(name).collect();
    measured.dedup();
    about["rows"] = json!(measured);
    let old: Value =
        fs::read_to_string(file).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let mut all = rows;
    all.extend(
        old["rows"].as_array().into_iter().flatten().filter(|row| !measured.contains(&name(row))).cloned(),
    );
    let mut runs = vec![about];
    for mut run in old["runs"].as_array().cloned().unwrap_or_default() {
        let kept: Vec<Value> = run["rows"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|row| row.as_str().is_some_and(|row| !measured.iter().any(|it| it == row)))
            .cloned()
            .collect();
        if !kept.is_empty() {
            run["rows"] = Value::Array(kept);
            runs.push(run);
        }
    }
    json!({ "runs": runs, "rows": all })
}

const HEADINGS: &str = "| attack | domains | p50 before | during | p99 before | sink | during | after | during : before | \
                        during : sink | p99.9 during | login before | during | server CPU | MiB before | peak | after | \
                        lost | target |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";

fn render(rows: &[Value]) -> String {
    let mut text = HEADINGS.to_owned();
    for attack in ATTACKS {
        for domains in DOMAINS {
            let rounds: Vec<&Value> = rows.iter().filter(|row| is(row, attack, domains)).collect();
            if !rounds.is_empty() {
                text.push_str(&line(&rounds));
                text.push('\n');
            }
        }
    }
    text
}

fn is(row: &Value, attack: &str, domains: &str) -> bool {
    row["attack"] == attack && row["domains"].as_u64() == domains.parse().ok()
}

/// One line of the table: the medians of all rounds.
fn line(rounds: &[&Value]) -> String {
    let Some(first) = rounds.first() else { return String::new() };
    let head = format!("| {} | {} |", first["attack"].as_str().unwrap_or("?"), first["domains"]);
    if let Some(reason) = rounds.iter().find_map(|row| row["failed"].as_str()) {
        return format!("{head} failed: {} |{}not met |", reason.replace('|', "/"), " |".repeat(15));
    }
    let figure = |path: &str| median(rounds.iter().filter_map(|row| row.pointer(path)?.as_f64()).collect());
    let number = |path: &str| table::number(figure(path));
    let (before, sink) = (figure("/to_before"), figure("/to_sink"));
    let met = before <= MOST || sink <= MOST;
    let cells = [
        number("/before/p50"),
        number("/during/p50"),
        number("/before/p99"),
        number("/sink/p99"),
        number("/during/p99"),
        number("/after/p99"),
        format!("**{before:.2}**"),
        format!("{sink:.2}"),
        number("/during/p999"),
        number("/before/login_ms"),
        number("/during/login_ms"),
        format!("{:.0} %", figure("/during/server_cpu_percent")),
        number("/memory_mib/before"),
        number("/memory_mib/peak"),
        number("/memory_mib/after"),
        format!("{:.0} of {:.0}", figure("/lost"), figure("/sent")),
        match (before <= MOST, met) {
            (true, _) => "met".into(),
            (false, true) => "met beside the sink".into(),
            (false, false) => "not met".into(),
        },
    ];
    format!("{head} {} |", cells.join(" | "))
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => f64::NAN,
        count if count % 2 == 0 => (figures[middle - 1] + figures[middle]) / 2.0,
        _ => figures[middle],
    }
}

/// What the attackers did and what the server refused, of the last round of each row.
fn refused(rows: &[Value]) -> String {
    let mut text =
        "| attack | domains | done by the attackers | refused by the server |\n|---|---|---|---|\n"
            .to_owned();
    for attack in ATTACKS {
        for domains in DOMAINS {
            let row = rows.iter().rfind(|row| is(row, attack, domains));
            let Some(row) = row.filter(|row| row["failed"].is_null()) else { continue };
            let counts = |value: &Value, leave: &[&str]| {
                let found = value.as_object().into_iter().flatten();
                let mut found: Vec<(&String, u64)> = found
                    .filter(|(name, _)| !leave.contains(&name.as_str()))
                    .filter_map(|(name, count)| Some((name, count.as_u64().filter(|it| *it > 0)?)))
                    .collect();
                found.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), (*name).clone()));
                found
                    .iter()
                    .map(|(name, count)| format!("{} {count}", name.replace('_', " ")))
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            text.push_str(&format!(
                "| {attack} | {domains} | {} | {} |\n",
                counts(&row["attackers"], &["bytes"]),
                counts(&row["refused"], &[]),
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(during: f64) -> Value {
        json!({
            "attack": "stanzas", "domains": 100, "to_before": during / 200.0, "to_sink": during / 250.0,
            "before": { "p50": 100.0, "p99": 200.0, "login_ms": 5.0 }, "sink": { "p99": 250.0 },
            "during": { "p50": 110.0, "p99": during, "p999": 900.0, "login_ms": 7.0, "server_cpu_percent": 61.0 },
            "after": { "p99": 210.0 }, "memory_mib": { "before": 20.0, "peak": 40.0, "after": 30.0 },
            "lost": 0, "sent": 4000, "refused": { "peer-rate": 7 }, "attackers": { "stanzas": 9, "bytes": 1 },
        })
    }

    #[test]
    fn the_median_of_rounds_is_compared() {
        let rows = [sample(250.0), sample(290.0), sample(5000.0)];
        let text = render(&rows);
        let row = text.lines().nth(2).unwrap_or_default();
        assert!(row.starts_with("| stanzas | 100 | 100 | 110 | 200 | 250 | 290 | 210 | **1.45** |"), "{row}");
        assert!(row.ends_with("| 0 of 4000 | met |"), "{row}");
        let beside = line(&[&sample(370.0)]);
        assert!(beside.ends_with("met beside the sink |"), "{beside}");
        assert!(line(&[&sample(400.0)]).ends_with("| not met |"));
        assert!(refused(&rows).contains("| stanzas | 100 | stanzas 9 | peer-rate 7 |"));
    }

    #[test]
    fn a_failure_is_not_met_and_rows_of_the_table_are_of_one_width() {
        let failed = json!({ "attack": "dialback", "domains": 1, "failed": "lost | 3" });
        let text = render(&[failed, sample(1.0)]);
        let widths: Vec<usize> = text.lines().map(|line| line.matches('|').count()).collect();
        assert!(widths.windows(2).all(|two| two[0] == two[1]), "{text}");
        assert!(text.contains("failed: lost / 3") && text.contains("not met"));
    }

    #[test]
    fn what_was_not_measured_again_stays() {
        let directory = std::env::temp_dir().join(format!("siege-{}", std::process::id()));
        let other = json!({ "attack": "presence", "domains": 1, "sent": 1 });
        let old = json!({ "runs": [{ "date": "old", "rows": ["stanzas 100", "presence 1"] }], "rows": [sample(9.0), other] });
        let written = fs::write(&directory, old.to_string());
        let document = merged(json!({ "date": "new" }), vec![sample(1.0)], &directory);
        drop(fs::remove_file(&directory));
        assert!(written.is_ok());
        assert_eq!(document["rows"].as_array().map(Vec::len), Some(2));
        assert_eq!(document["runs"][0]["rows"], json!(["stanzas 100"]));
        assert_eq!(document["runs"][1]["rows"], json!(["presence 1"]));
    }
}
