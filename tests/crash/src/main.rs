//! Kills servers at random moments and checks that nothing acknowledged is lost.
//!
//! Two providers that federate run under a load of messages (local, federated, to people who are offline), subscriptions
//! and roster changes. Again and again one of them, or both, is killed with SIGKILL and started anew. The people at the
//! keyboards are tasks here: each connects again, takes up its session or makes a new one and repeats what was not
//! acknowledged. The [`oracle::Oracle`] knows what each server has acknowledged.
//!
//! After each kill: the database is whole (checked on a copy), and all that was acknowledged before the kill arrives. At
//! the end: rosters and subscriptions are as acknowledged, nothing is lost, nothing came twice under another id.

mod dice;
mod oracle;
mod person;
mod provider;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use dice::Dice;
use oracle::Oracle;
use person::{Order, Person};
use provider::Provider;

#[derive(Parser)]
#[command(about = "Kill servers at random moments and check that nothing acknowledged is lost")]
struct Arguments {
    /// The server's program
    #[arg(long)]
    trunkline: PathBuf,
    /// How often to kill
    #[arg(long, default_value_t = 60)]
    kills: u32,
    /// Gives the same moments, people and messages again (as far as the machine's timing allows)
    #[arg(long)]
    seed: Option<u64>,
    /// People at each provider
    #[arg(long, default_value_t = 6)]
    people: usize,
    /// One provider only, without federation
    #[arg(long)]
    alone: bool,
    /// Keep the servers' directories, with databases and logs, here
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// How long what was acknowledged may take to arrive after a restart. Federation waits between attempts.
const ARRIVAL: Duration = Duration::from_secs(20);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(dice::random_seed);
    say(&format!("seed {seed}"));
    match run(&arguments, seed).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("FAIL  {error}"));
            say("0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments, seed: u64) -> Result<usize, String> {
    let temporary = tempfile::tempdir().map_err(|error| error.to_string())?;
    let directory = arguments.keep.clone().unwrap_or_else(|| temporary.path().to_path_buf());
    let mut providers = provider::pair(&directory, &arguments.trunkline).await?;
    providers.truncate(if arguments.alone { 1 } else { 2 });
    let oracle = Arc::new(Oracle::default());
    let mut dice = Dice::new(seed);
    let mut people = Vec::new();
    for provider in &mut providers {
        for n in 0..arguments.people {
            let name = format!("{}{n}", &provider.domain[..1]);
            provider.add_user(&name).await?;
            people.push((name, provider.target()));
        }
        provider.start(!arguments.alone).await?;
    }
    let people: Vec<Person> = people
        .into_iter()
        .map(|(name, target)| Person::start(&name, target, oracle.clone(), dice.split()))
        .collect();
    let begin = Instant::now();
    let mut chaos = Chaos { providers, people, oracle, dice, late: Vec::new(), passed: 0, failed: 0 };
    let done = chaos.go(arguments.kills).await;
    chaos.report(begin.elapsed());
    for provider in &mut chaos.providers {
        provider.kill().await?;
    }
    done.map(|()| chaos.failed)
}

/// The whole experiment.
struct Chaos {
    providers: Vec<Provider>,
    people: Vec<Person>,
    oracle: Arc<Oracle>,
    dice: Dice,
    /// What had not arrived in time after some kill.
    late: Vec<Arc<str>>,
    passed: usize,
    failed: usize,
}

impl Chaos {
    async fn go(&mut self, kills: u32) -> Result<(), String> {
        self.everybody_online().await?;
        let mut pairs = self.pairs();
        // Some know each other before it begins, so that there is somebody to write to.
        for _ in 0..pairs.len() / 4 {
            self.befriend(&mut pairs);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for kill in 1..=kills {
            self.befriend(&mut pairs);
            self.sleep_or_wake();
            tokio::time::sleep(Duration::from_millis(100 + self.dice.below(900))).await;
            let due = self.oracle.acknowledged_so_far();
            let problems = self.kill_and_check().await?;
            let missing = self.arrival_of(&due).await;
            let good = problems.is_empty() && missing.is_empty();
            self.count(good);
            for problem in problems {
                say(&format!("FAIL  kill {kill}: {problem}"));
            }
            for token in &missing {
                let places: Vec<_> = self.providers.iter().map(|it| it.whereabouts(token)).collect();
                let what = self.oracle.describe(token);
                say(&format!("FAIL  kill {kill}: LOST or late: {what}; stands in {}", places.join("; ")));
            }
            self.late.extend(missing);
            if kill % 10 == 0 {
                say(&format!("      kill {kill}: {}", self.oracle.totals()));
            }
        }
        self.finish().await
    }

    /// The load stops, everybody comes online, all must arrive; then the rosters are compared.
    async fn finish(&mut self) -> Result<(), String> {
        for person in &self.people {
            person.order(Order::Quiet);
            person.order(Order::Wake);
        }
        self.everybody_online().await?;
        let end = Instant::now() + ARRIVAL;
        while Instant::now() < end && !self.oracle.settled() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for person in &self.people {
            person.order(Order::CompareRoster);
        }
        let wanted = self.people.len();
        let compared =
            self.oracle.wait_for(Duration::from_secs(30), |it| it.rosters_compared >= wanted).await;
        self.count(compared);
        if !compared {
            say("FAIL  not everybody could compare the roster");
        }
        for token in &self.late {
            say(&format!("      in the end: {}", self.oracle.describe(token)));
        }
        for (what, problems) in self.oracle.verdict() {
            self.count(problems.is_empty());
            for problem in problems.iter().take(10) {
                say(&format!("FAIL  {what}: {problem}"));
            }
            if problems.len() > 10 {
                say(&format!("FAIL  {what}: and {} more", problems.len() - 10));
            }
        }
        Ok(())
    }

    /// Kills one provider or both, checks the databases as they were left, and starts again.
    async fn kill_and_check(&mut self) -> Result<Vec<String>, String> {
        let mut problems = Vec::new();
        let federated = self.providers.len() == 2;
        let victims: &[usize] = match self.dice.below(5) {
            2 | 3 if federated => &[1],
            4 if federated => &[0, 1],
            _ => &[0],
        };
        for victim in victims {
            let provider = &mut self.providers[*victim];
            provider.kill().await?;
            self.oracle.killed();
            problems.extend(provider.check_database()?);
        }
        tokio::time::sleep(Duration::from_millis(self.dice.below(300))).await;
        for victim in victims {
            self.providers[*victim].start(federated).await?;
        }
        Ok(problems)
    }

    /// Waits for what was acknowledged before a kill; returns what did not come.
    async fn arrival_of(&self, due: &[Arc<str>]) -> Vec<Arc<str>> {
        let end = Instant::now() + ARRIVAL;
        loop {
            let missing = self.oracle.missing_of(due);
            if missing.is_empty() || Instant::now() > end {
                return missing;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn everybody_online(&self) -> Result<(), String> {
        let wanted = self.people.len();
        match self.oracle.wait_for(Duration::from_secs(60), |it| it.online.len() >= wanted).await {
            true => Ok(()),
            false => Err(format!("not everybody could log in: {}", self.oracle.totals())),
        }
    }

    /// Everybody with everybody, in random order.
    fn pairs(&mut self) -> Vec<(usize, usize)> {
        let count = self.people.len();
        let mut pairs: Vec<_> = (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b))).collect();
        for n in (1..pairs.len()).rev() {
            pairs.swap(n, self.dice.below(n as u64 + 1) as usize);
        }
        pairs
    }

    fn befriend(&mut self, pairs: &mut Vec<(usize, usize)>) {
        if let Some((a, b)) = pairs.pop() {
            let other = self.people[b].jid.clone();
            self.people[a].order(Order::Befriend(other));
        }
    }

    /// About one in four sleeps at any time, so that messages go to people who are offline.
    fn sleep_or_wake(&mut self) {
        for n in 0..self.people.len() {
            match self.dice.below(16) {
                0 => self.people[n].order(Order::Sleep),
                1..=3 => self.people[n].order(Order::Wake),
                _ => {}
            }
        }
    }

    fn count(&mut self, good: bool) {
        self.passed += usize::from(good);
        self.failed += usize::from(!good);
    }

    fn report(&self, took: Duration) {
        say(&format!("{} in {:.0} s", self.oracle.totals(), took.as_secs_f64()));
        say(&format!("{} passed, {} failed", self.passed, self.failed));
    }
}

/// Prints one line. Nobody to read it is no reason to stop.
fn say(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{line}"));
    drop(out.flush());
}
