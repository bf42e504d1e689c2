//! The users: pairs that write to each other at a fixed rate, logins, and those who only receive.

use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use super::attack;
use super::server::Watch;
use crate::crew::{Crew, Phase, Stage, WARM_UP};
use crate::error::LoadError;
use crate::marker::{Reader, Template};
use crate::negotiate::{self, Wish};
use crate::options::Siege;
use crate::pairs::{Desk, Flow, Pairs, leave};
use crate::place::Place;
use crate::report::round;
use crate::work;

/// Between two logins that are timed.
const LOGINS: Duration = Duration::from_millis(100);
const BODY: usize = 100;

/// Accounts of the pairs and of those who only receive.
pub(super) fn accounts(options: &Siege) -> u32 {
    options.pairs * 2 + options.victims
}

/// Users of the server under siege.
pub(super) struct Inside {
    crew: Crew<u64>,
    stage: Arc<Stage>,
    logins: Arc<Mutex<Histogram<u64>>>,
}

impl Inside {
    /// All are logged in, and messages flow.
    pub(super) fn start(options: &Siege) -> Result<Inside, LoadError> {
        let place = work::place(&options.server)?;
        let run = work::new_run();
        let stage = Stage::new();
        stage.prepare("logging in", u64::from(accounts(options)));
        let messages = crate::options::Messages {
            pairs: options.pairs,
            window: 1,
            body: BODY as u32,
            rate: Some(options.rate),
        };
        let style = work::style(&messages, 1)?;
        let logins = Arc::new(Mutex::new(empty()));
        let (pairs, victims) = (options.pairs, options.victims);
        let (register, at_once) = (options.server.access.register, options.server.access.at_once);
        let wish = Wish { acks: true, presence: true, ..Wish::default() };
        let attacked = options.outside.core;
        let crew = Crew::start(&stage, 2, {
            let (stage, logins) = (stage.clone(), logins.clone());
            move |thread, tally| {
                let (stage, place, logins) = (stage.clone(), place.clone(), logins.clone());
                async move {
                    away_from(attack::core(attacked))?;
                    let all = if thread == 0 {
                        // The last account is the one that comes and goes.
                        (0..pairs * 2).chain([pairs * 2 + victims]).collect::<Vec<u32>>()
                    } else {
                        (pairs * 2..pairs * 2 + victims).collect()
                    };
                    if register {
                        work::register(&stage, &place, all, at_once).await?;
                    }
                    if thread == 1 {
                        // Their clients are not what is measured.
                        rustix::process::setpriority_process(None, 19)
                            .map_err(|error| LoadError::Machine(error.to_string()))?;
                        let online = (pairs * 2..pairs * 2 + victims).step_by(2).collect();
                        let (links, holders) = work::occupy(&stage, &place, online, (wish, at_once)).await?;
                        stage.ready().await?;
                        stage.reached(Phase::Drain).await?;
                        holders.iter().for_each(AbortHandle::abort);
                        leave(&links).await;
                        return Ok(0);
                    }
                    let users = (0..pairs * 2).collect();
                    let links = work::enter_all(&stage, &place, users, (wish, at_once)).await?;
                    let mut engine = Pairs::default();
                    for (pair, ends) in (0..pairs).zip(links.chunks_exact(2)) {
                        let to = place.jid(pair * 2 + 1);
                        let template = Template::message(run, pair * 2, (&to, "chat"), BODY);
                        let flow = Flow::new(pair * 2, ends[0].clone(), template, style);
                        engine.links.push((ends[0].clone(), None));
                        engine.links.push((ends[1].clone(), Some(flow.clone())));
                        engine.flows.push(flow);
                    }
                    let visitor =
                        tokio::spawn(come_and_go(stage.clone(), place, (pairs * 2 + victims, logins)));
                    let desk = Desk { stage, tally, reader: Reader::new(run, BODY) };
                    let verdict = engine.run(desk, style).await?;
                    visitor.abort();
                    leave(&links).await;
                    Ok(verdict.sent)
                }
            }
        })?;
        crew.await_ready()?;
        stage.enter(Phase::Warm);
        crew.pause(WARM_UP)?;
        stage.enter(Phase::Measure);
        Ok(Inside { crew, stage, logins })
    }

    pub(super) fn pause(&self, length: Duration) -> Result<(), LoadError> {
        self.crew.pause(length)
    }

    /// What users feel within the next `length`.
    pub(super) fn feel(&mut self, length: Duration, watch: &Watch) -> Result<Felt, LoadError> {
        drop(self.crew.take_latency());
        self.logins.lock().reset();
        let before = watch.used();
        let begin = std::time::Instant::now();
        self.crew.pause(length)?;
        let seconds = begin.elapsed().as_secs_f64();
        let cpu = watch.percent(&before, seconds);
        let logins = std::mem::replace(&mut *self.logins.lock(), empty());
        Ok(Felt { latency: self.crew.take_latency(), logins, seconds, cpu })
    }

    /// Ends it and gives how many messages were sent; one that did not arrive, once and in order, is an error.
    pub(super) fn finish(self) -> Result<u64, LoadError> {
        self.stage.enter(Phase::Drain);
        Ok(self.crew.finish()?.into_iter().sum())
    }
}

/// The users' devices are other machines: what measures never waits for the attackers' core, as far as there is another.
fn away_from(core: usize) -> Result<(), LoadError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        return Ok(());
    }
    let mut set = CpuSet::new();
    (0..cores).filter(|it| *it != core).for_each(|it| set.set(it));
    sched_setaffinity(None, &set)
        .map_err(|error| LoadError::Machine(format!("cores for the users' clients: {error}")))
}

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 600_000_000_000, 3)
        .expect("invariant: these bounds and digits are allowed")
}

/// Logs in again and again, and notes how long each took.
async fn come_and_go(
    stage: Arc<Stage>,
    place: Arc<Place>,
    (user, logins): (u32, Arc<Mutex<Histogram<u64>>>),
) {
    let wish = Wish { acks: true, presence: true, ..Wish::default() };
    let mut ticks = tokio::time::interval(LOGINS);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let begin = stage.now();
        match negotiate::enter(&place, user, wish).await {
            Ok(mut dialog) => {
                logins.lock().saturating_record(stage.now() - begin);
                // Its next login does not resume this one.
                let left = dialog.connection.say_goodbye();
                if left.is_ok() {
                    let _ = tokio::time::timeout(Duration::from_secs(5), dialog.until_closed()).await;
                }
            }
            Err(_) if stage.phase() >= Phase::Drain => return,
            Err(error) => return stage.fail(error),
        }
    }
}

/// What was felt for a while.
pub(super) struct Felt {
    latency: Histogram<u64>,
    logins: Histogram<u64>,
    seconds: f64,
    /// Of the server, by the names of its threads.
    cpu: Vec<(String, f64)>,
}

impl Felt {
    /// Microseconds.
    pub(super) fn p99(&self) -> f64 {
        self.latency.value_at_quantile(0.99) as f64 / 1e3
    }

    /// Another stretch of the same.
    pub(super) fn add(&mut self, other: Felt) {
        // Of the same bounds.
        let _ = self.latency.add(&other.latency);
        let _ = self.logins.add(&other.logins);
        let all = self.seconds + other.seconds;
        for (name, percent) in other.cpu {
            let share = percent * other.seconds / all;
            match self.cpu.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known = *known * self.seconds / all + share,
                None => self.cpu.push((name, share)),
            }
        }
        self.seconds = all;
    }

    pub(super) fn json(&self) -> Value {
        let at = |quantile: f64| round(self.latency.value_at_quantile(quantile) as f64 / 1e3);
        let login = |quantile: f64| round(self.logins.value_at_quantile(quantile) as f64 / 1e6);
        let threads: serde_json::Map<String, Value> =
            self.cpu.iter().map(|(name, percent)| (name.clone(), round(*percent).into())).collect();
        json!({
            "p50": at(0.5),
            "p99": at(0.99),
            "p999": at(0.999),
            "max": round(if self.latency.is_empty() { 0.0 } else { self.latency.max() as f64 / 1e3 }),
            "messages": self.latency.len(),
            "logins": self.logins.len(),
            "login_ms": login(0.5),
            "login_p95_ms": login(0.95),
            "seconds": round(self.seconds),
            "server_cpu_percent": round(self.cpu.iter().map(|(_, percent)| percent).sum()),
            "threads_cpu_percent": threads,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_stretches_are_one() {
        let felt = |value: u64, seconds: f64, cpu: f64| {
            let mut latency = empty();
            latency.saturating_record(value);
            Felt { latency, logins: empty(), seconds, cpu: vec![("inside".into(), cpu)] }
        };
        let mut both = felt(1_000_000, 1.0, 10.0);
        both.add(felt(3_000_000, 3.0, 50.0));
        let json = both.json();
        assert_eq!(json["messages"], 2);
        assert_eq!(json["server_cpu_percent"], 40.0);
        assert!((both.p99() - 3000.0).abs() < 5.0);
    }
}
