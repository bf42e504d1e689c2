//! How each row is measured. A group of rows comes from one run of the generator, or belongs together.

use serde_json::{Value, json};

use super::accounts::Accounts;
use super::field::Field;
use super::load::{self, Report};
use super::ours;
use super::rows::Subject::{self, Ejabberd, Floor, Ours, Prosody};
use super::servers::{self, Plan, Server};

/// One figure that was found.
pub(super) struct Found {
    pub(super) row: &'static str,
    pub(super) value: f64,
    pub(super) note: Option<String>,
    pub(super) raw: Value,
}

type Outcome = Result<Vec<Found>, String>;

pub(super) struct Group {
    pub(super) rows: &'static [&'static str],
    pub(super) subjects: &'static [Subject],
    /// What takes long, or is not compared, is measured in the first round only.
    pub(super) once: &'static [Subject],
    pub(super) measure: fn(&mut Field, Subject) -> Outcome,
}

const ALL: &[Subject] = &[Floor, Ours, Prosody, Ejabberd];
const SERVERS: &[Subject] = &[Ours, Prosody, Ejabberd];
const NONE: &[Subject] = &[];

/// In this order: with the archive off first, so that servers need not be started again for each row.
pub(super) const GROUPS: &[Group] = &[
    Group { rows: &["chat-w1"], subjects: ALL, once: NONE, measure: window_1 },
    Group { rows: &["chat-w16", "chat-w16-writes"], subjects: ALL, once: NONE, measure: window_16 },
    Group { rows: &["rate", "latency-p50", "latency-p99"], subjects: ALL, once: NONE, measure: rate },
    Group { rows: &["fanout"], subjects: SERVERS, once: NONE, measure: fanout },
    Group { rows: &["login"], subjects: SERVERS, once: NONE, measure: login },
    Group { rows: &["login-resumed"], subjects: SERVERS, once: NONE, measure: login_resumed },
    Group { rows: &["room"], subjects: SERVERS, once: NONE, measure: room },
    Group { rows: &["archived"], subjects: SERVERS, once: NONE, measure: archived },
    Group { rows: &["chat-full"], subjects: SERVERS, once: NONE, measure: chat_full },
    Group { rows: &["s2s"], subjects: SERVERS, once: NONE, measure: between },
    Group {
        rows: &["growth-few", "growth-many"],
        subjects: SERVERS,
        once: &[Prosody, Ejabberd],
        measure: growth,
    },
    Group { rows: &["idle"], subjects: SERVERS, once: NONE, measure: idle },
    Group { rows: &["many"], subjects: &[Ours], once: &[Ours], measure: many },
    Group {
        rows: &["login-1k", "login-1m", "roster-1k", "roster-1m"],
        subjects: &[Ours],
        once: NONE,
        measure: stores,
    },
    Group { rows: &["start"], subjects: &[Ours], once: NONE, measure: start },
];

const CPU: &str = "server_cpu_us_per_message";

fn found(row: &'static str, report: &Report, figure: &str) -> Result<Found, String> {
    Ok(Found { row, value: report.figure(figure)?, note: None, raw: report.0.clone() })
}

/// Chat of 100 pairs over the floor's relay or a server.
fn chat(field: &mut Field, subject: Subject, options: &[&str]) -> Result<Report, String> {
    let common = ["--pairs", "100", "--body", "100"];
    if subject == Floor {
        return field.load(&[], &[&["floor"], &common[..], options].concat());
    }
    field.server(subject)?;
    field.on(subject, &[&["chat"], &common[..], options].concat())
}

fn window_1(field: &mut Field, subject: Subject) -> Outcome {
    let report = chat(field, subject, &["--window", "1"])?;
    Ok(vec![found("chat-w1", &report, CPU)?])
}

fn window_16(field: &mut Field, subject: Subject) -> Outcome {
    if subject != Floor {
        let report = chat(field, subject, &["--window", "16"])?;
        return Ok(vec![found("chat-w16", &report, CPU)?]);
    }
    let coalesced = chat(field, subject, &["--window", "16", "--coalesce"])?;
    let single = chat(field, subject, &["--window", "16"])?;
    Ok(vec![found("chat-w16", &coalesced, CPU)?, found("chat-w16-writes", &single, CPU)?])
}

fn rate(field: &mut Field, subject: Subject) -> Outcome {
    let report = chat(field, subject, &["--rate", "1000"])?;
    Ok(vec![
        found("rate", &report, CPU)?,
        found("latency-p50", &report, "latency_us.p50")?,
        found("latency-p99", &report, "latency_us.p99")?,
    ])
}

/// Chat of 100 pairs with an archive that is empty at first.
fn kept(field: &mut Field, subject: Subject, options: &[&str]) -> Result<Report, String> {
    field.archiving(subject)?;
    let common = ["chat", "--pairs", "100", "--body", "100", "--window", "1", "--sm"];
    field.on(subject, &[&common[..], options].concat())
}

fn archived(field: &mut Field, subject: Subject) -> Outcome {
    let report = kept(field, subject, &[])?;
    Ok(vec![found("archived", &report, CPU)?])
}

fn chat_full(field: &mut Field, subject: Subject) -> Outcome {
    let report = kept(field, subject, &["--second-device"])?;
    Ok(vec![found("chat-full", &report, CPU)?])
}

fn fanout(field: &mut Field, subject: Subject) -> Outcome {
    field.server(subject)?;
    let report = field.on(subject, &["fanout", "--users", "fan", "--contacts", "1000"])?;
    Ok(vec![found("fanout", &report, "server_cpu_us_per_delivery")?])
}

fn login(field: &mut Field, subject: Subject) -> Outcome {
    field.server(subject)?;
    let report = field.on(subject, &["login", "--mechanism", "SCRAM-SHA-256"])?;
    Ok(vec![found("login", &report, "server_cpu_us_per_login")?])
}

fn login_resumed(field: &mut Field, subject: Subject) -> Outcome {
    field.server(subject)?;
    let report = field.on(subject, &["login", "--mechanism", "SCRAM-SHA-256", "--resume-tls"])?;
    let (resumed, logins) = (report.figure("resumed")?, report.figure("logins")?);
    if resumed < logins * 0.9 {
        return Err(format!("the server resumed {resumed:.0} of {logins:.0} TLS sessions"));
    }
    Ok(vec![found("login-resumed", &report, "server_cpu_us_per_login")?])
}

fn room(field: &mut Field, subject: Subject) -> Outcome {
    if subject == Ours {
        return Err("Trunkline has no rooms yet".to_owned());
    }
    let service = format!("rooms.{}", field.server(subject)?.plan.domain);
    let report = field.on(subject, &["room", "--occupants", "200", "--service", &service])?;
    Ok(vec![found("room", &report, "server_cpu_us_per_delivery")?])
}

fn growth(field: &mut Field, subject: Subject) -> Outcome {
    let few = chat(field, subject, &["--window", "1", "--idle", "100"])?;
    let many = chat(field, subject, &["--window", "1", "--idle", "10000"])?;
    field.rest(subject);
    Ok(vec![found("growth-few", &few, CPU)?, found("growth-many", &many, CPU)?])
}

/// The server is newly started, so that nothing that was freed before is used again.
fn idle(field: &mut Field, subject: Subject) -> Outcome {
    field.fresh(subject)?;
    let report = field.on(subject, &["idle", "--sessions", "10000", "--sm", "--presence"]);
    field.rest(subject);
    Ok(vec![found("idle", &report?, "kib_per_session")?])
}

/// Servers and generator hold a connection's two ends, each within its own limit of open files.
fn many(field: &mut Field, subject: Subject) -> Outcome {
    const OTHER_FILES: u64 = 300;
    let wanted = field.sessions;
    let room = u32::try_from(servers::files().saturating_sub(OTHER_FILES)).unwrap_or(u32::MAX);
    let sessions = wanted.min(room);
    field.fresh(subject)?;
    let report = field.on(subject, &["idle", "--sessions", &sessions.to_string(), "--sm", "--presence"]);
    field.rest(subject);
    let mut found = found("many", &report?, "kib_per_session")?;
    if sessions < wanted {
        let (each, limit) = (found.value, servers::files());
        return Err(format!(
            "{sessions} sessions at {each:.2} KiB each, not {wanted}: this machine lets a process have {limit} open files"
        ));
    }
    found.note = Some(format!("{sessions} sessions"));
    Ok(vec![found])
}

/// Users of one server write to users of a second of the same kind. All other servers rest.
fn between(field: &mut Field, subject: Subject) -> Outcome {
    field.rest_all();
    let name = subject.name();
    let mut first = Plan::new(subject, &format!("{name}-a"), subject as u8 + 12)?;
    let mut second = Plan::new(subject, &format!("{name}-b"), subject as u8 + 22)?;
    for plan in [&first, &second] {
        field.dns.announce(&plan.domain, (plan.address, plan.federation));
        field.prepare(plan)?;
    }
    first.other = Some((second.domain.clone(), second.address, second.federation));
    second.other = Some((first.domain.clone(), first.address, first.federation));
    let first = Server::start(first, field)?;
    let second = Server::start(second, field)?;
    let peer = format!("{}:{}", second.plan.address, second.plan.clients);
    let work = ["s2s", "--peer-server", &peer, "--peer-domain", &second.plan.domain];
    let messages = ["--pairs", "100", "--body", "100", "--window", "1"];
    let report = field.load(&[&first, &second], &[&work[..], &messages].concat());
    first.stop();
    second.stop();
    Ok(vec![found("s2s", &report?, CPU)?])
}

/// A store with a thousand accounts, and one with a million.
const STORES: [(&str, u32, &str, &str); 2] =
    [("store-1k", 1_000, "login-1k", "roster-1k"), ("store-1m", 1_000_000, "login-1m", "roster-1m")];

fn store(field: &Field, (name, count): (&str, u32)) -> Result<Plan, String> {
    let plan = Plan::new(Ours, name, if count > 1_000 { 33 } else { 32 })?;
    ours::prepare(&plan, field, &Accounts { groups: vec![("load", count)], contacts: true, star: None })?;
    Ok(plan)
}

fn stores(field: &mut Field, _: Subject) -> Outcome {
    field.rest_all();
    let mut all = Vec::new();
    for (name, count, login, roster) in STORES {
        let server = Server::start(store(field, (name, count))?, field)?;
        let report = field.load(&[&server], &["login", "--mechanism", "SCRAM-SHA-256"])?;
        all.push(found(login, &report, "server_cpu_us_per_login")?);
        let mut options = server.plan.options(field);
        options.extend(["--user", "load1", "--server-pid", &server.pid().to_string()].map(str::to_owned));
        options.extend(["--seconds".to_owned(), field.seconds.to_string()]);
        let limit = std::time::Duration::from_secs(60 + u64::from(field.seconds));
        let report = load::run(&field.rosters, &options, (&field.work, limit))?;
        all.push(found(roster, &report, "server_cpu_us_per_push")?);
        server.stop();
    }
    Ok(all)
}

/// Several starts; the median counts. The files are in the system's cache, as after any restart.
fn start(field: &mut Field, _: Subject) -> Outcome {
    const STARTS: usize = 5;
    let (name, count, ..) = STORES[1];
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let server = Server::start(store(field, (name, count))?, field)?;
        times.push(server.start.as_secs_f64() * 1e3);
        server.stop();
    }
    times.sort_by(f64::total_cmp);
    let (best, median) = (times[0], times[STARTS / 2]);
    Ok(vec![Found {
        row: "start",
        value: median,
        note: Some(format!("the best of {STARTS} starts of the last round took {best:.0} ms")),
        raw: json!({ "starts_ms": times }),
    }])
}
