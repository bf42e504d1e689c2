//! `siege`: what users feel while their server is flooded from outside.
//!
//! Pairs of local users write to each other at a fixed rate all the time (open loop, XEP-0198 on), and a login is made
//! a few times a second. Meanwhile, for each attack and number of domains: nothing (*before*); the attackers against a
//! server of their own that takes everything (*sink*: what sharing the machine with them costs); the attackers against the
//! server (*during*); nothing again (*after*). The attackers are a process of its own ([`attack`]).

pub(crate) mod attack;
mod inside;
mod names;
mod server;
mod wire;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::LoadError;
use crate::options::{Attack, Siege};
use crate::report::{Report, round};
use crate::work;
use inside::{Felt, Inside};
use server::{Watch, refusals};

/// Attackers prepare for a minute at most, and a little more.
const PREPARED: Duration = Duration::from_secs(75);
/// From the beginning or the end of an attack to what counts: what is in the sockets' buffers is still to be dealt with.
const SETTLE: Duration = Duration::from_millis(500);

const ALL: [Attack; 5] =
    [Attack::Stanzas, Attack::Connections, Attack::Handshakes, Attack::Dialback, Attack::Presence];

pub(crate) fn run(options: &Siege) -> Result<(), LoadError> {
    let Siege { server, run, attacks, domains, .. } = options;
    work::room_for(options.pairs * 2 + options.victims)?;
    let (length, _) = work::measuring(run)?;
    let attacks = if attacks.is_empty() { &ALL[..] } else { attacks };
    let mut report = Report::new("siege");
    work::describe(&mut report, server, run);
    report
        .parameter("pairs", options.pairs)
        .parameter("rate", options.rate)
        .parameter("victims", options.victims)
        .parameter("seconds", run.seconds);
    report.row("attack", HEADINGS.to_owned());
    let mut rows = Vec::new();
    let mut failed = None;
    for attack in attacks {
        for domains in domains {
            let row = Round { options, attack: *attack, domains: *domains, length }.run();
            let label = format!("{}, {domains} domains", attack.name());
            match row {
                Ok(row) => {
                    report.row(&label, words(&row));
                    rows.push(row);
                }
                Err(error) => {
                    report.row(&label, format!("FAILED: {error}"));
                    rows.push(json!({
                        "attack": attack.name(), "domains": domains, "failed": error.to_string(),
                    }));
                    failed = Some(error);
                }
            }
        }
    }
    report.result("rows", rows);
    report.publish(run.json.as_deref())?;
    failed.map_or(Ok(()), Err)
}

const HEADINGS: &str = "p99 before / sink / during / after us, during : before, : sink | logins before / during ms | \
                        server CPU % during, MiB before / peak / after | lost";

fn words(row: &Value) -> String {
    let number = |path: &str| row.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
    format!(
        "{:.0} / {:.0} / {:.0} / {:.0}, {:.2}, {:.2} | {:.1} / {:.1} | {:.0}, {:.0} / {:.0} / {:.0} | {}",
        number("/before/p99"),
        number("/sink/p99"),
        number("/during/p99"),
        number("/after/p99"),
        number("/to_before"),
        number("/to_sink"),
        number("/before/login_ms"),
        number("/during/login_ms"),
        number("/during/server_cpu_percent"),
        number("/memory_mib/before"),
        number("/memory_mib/peak"),
        number("/memory_mib/after"),
        row["lost"],
    )
}

/// One attack from so many domains.
struct Round<'a> {
    options: &'a Siege,
    attack: Attack,
    domains: u32,
    length: Duration,
}

impl Round<'_> {
    fn run(&self) -> Result<Value, LoadError> {
        let watch = Watch::new(&self.options.run.server_pids)?;
        let mut inside = Inside::start(self.options)?;
        let scrape = || self.options.metrics.map(refusals).transpose();
        let half = self.length / 2;
        let mut before = inside.feel(half, &watch)?;

        let sink = Attackers::start(self, None)?;
        sink.prepared(&inside)?;
        let sink_felt = sink.attack(&mut inside, (self.length, &watch))?;
        let sink_done = sink.stop(&inside)?;
        inside.pause(SETTLE)?;

        before.add(inside.feel(half, &watch)?);
        let refused_before = scrape()?;
        let memory_before = watch.memory_mib();
        watch.reset_peak();
        let attackers = Attackers::start(self, Some(self.options.federation))?;
        attackers.prepared(&inside)?;
        let during = attackers.attack(&mut inside, (self.length, &watch))?;
        let done = attackers.stop(&inside)?;
        self.check_proved(&done)?;
        let refused = scrape()?;
        inside.pause(SETTLE)?;
        let after = inside.feel(self.length, &watch)?;
        let peak = watch.peak_mib();
        let memory_after = watch.memory_mib();
        let sent = inside.finish()?;

        let ratio = |to: &Felt| round(during.p99() / to.p99().max(1.0));
        Ok(json!({
            "attack": self.attack.name(),
            "domains": self.domains,
            "before": before.json(),
            "sink": sink_felt.json(),
            "during": during.json(),
            "after": after.json(),
            "to_before": ratio(&before),
            "to_sink": ratio(&sink_felt),
            "memory_mib": { "before": memory_before, "peak": peak, "after": memory_after },
            "sent": sent,
            // A loss is an error, and there is no row then.
            "lost": 0,
            "refused": refused.zip(refused_before).map(|(after, before)| server::grown(&before, &after)),
            "attackers": done,
            "attackers_of_sink": sink_done,
        }))
    }
}

impl Round<'_> {
    /// A flood from fewer domains than its row says is none of that row.
    fn check_proved(&self, done: &Value) -> Result<(), LoadError> {
        if !matches!(self.attack, Attack::Stanzas | Attack::Presence) {
            return Ok(());
        }
        match done["proved"].as_u64().unwrap_or(0) {
            proved if proved >= u64::from(self.domains) => Ok(()),
            proved => Err(LoadError::Machine(format!(
                "the attackers proved {proved} of {} domains in time; give the machine more of it",
                self.domains
            ))),
        }
    }
}

/// The process that attacks.
struct Attackers {
    child: Child,
    orders: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Attackers {
    /// Without a target against a sink of its own.
    fn start(round: &Round<'_>, target: Option<std::net::SocketAddr>) -> Result<Attackers, LoadError> {
        let failed =
            |error: &dyn std::fmt::Display| LoadError::Machine(format!("starting the attackers: {error}"));
        let program = std::env::current_exe().map_err(|error| failed(&error))?;
        let Siege { server, outside, .. } = round.options;
        let mut command = Command::new(program);
        command.args(["siege-attack", "--attack", round.attack.name()]);
        command.args(["--domains", &round.domains.to_string(), "--domain", &server.domain]);
        command.args(["--users", &server.access.users]);
        command.args(["--accounts", &inside::accounts(round.options).to_string()]);
        command.args(["--zone", &outside.zone, "--certificate"]).arg(&outside.certificate);
        command.arg("--key").arg(&outside.key);
        for (name, value) in [
            ("--target", target.map(|it| it.to_string())),
            ("--dns", outside.dns.map(|it| it.to_string())),
            ("--core", outside.core.map(|it| it.to_string())),
        ] {
            if let Some(value) = value {
                command.args([name, &value]);
            }
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| failed(&error))?;
        let (Some(orders), Some(out)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(&"no pipes"));
        };
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Attackers { child, orders, lines })
    }

    fn line(&self, inside: &Inside, within: Duration) -> Result<String, LoadError> {
        let end = Instant::now() + within;
        loop {
            match self.lines.try_recv() {
                Ok(line) => return Ok(line),
                Err(mpsc::TryRecvError::Empty) if Instant::now() < end => {
                    inside.pause(Duration::from_millis(20))?;
                }
                Err(_) => return Err(LoadError::Machine("the attackers ended or said nothing".into())),
            }
        }
    }

    fn prepared(&self, inside: &Inside) -> Result<(), LoadError> {
        self.line(inside, PREPARED).map(drop)
    }

    fn order(&self, order: &str) -> Result<(), LoadError> {
        writeln!(&self.orders, "{order}")
            .map_err(|error| LoadError::Machine(format!("the attackers don't listen: {error}")))
    }

    fn attack(&self, inside: &mut Inside, how: (Duration, &Watch)) -> Result<Felt, LoadError> {
        let (length, watch) = how;
        self.order("go")?;
        inside.pause(SETTLE)?;
        inside.feel(length, watch)
    }

    fn stop(self, inside: &Inside) -> Result<Value, LoadError> {
        self.order("stop")?;
        // With the lowest priority on a busy core it may take a while to say anything.
        let line = self.line(inside, PREPARED)?;
        serde_json::from_str(&line)
            .map_err(|error| LoadError::Machine(format!("the attackers' account can't be read: {error}")))
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing is left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
