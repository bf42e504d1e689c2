//! `idle`: sessions that do nothing.

use std::time::{Duration, Instant};

use crate::crew::{Crew, Phase, Progress, Stage};
use crate::error::LoadError;
use crate::negotiate::Wish;
use crate::options::Idle;
use crate::pairs::leave;
use crate::report::{Report, round};
use crate::usage::Meter;
use crate::work;

pub(crate) fn run(options: &Idle) -> Result<Report, LoadError> {
    let Idle { server, run: run_options, sessions, per_account, sm, presence, hold } = options;
    work::room_for(*sessions)?;
    let place = work::place(server)?;
    let (_, meter) = work::measuring(run_options)?;
    let (threads, at_once) = (run_options.threads, server.access.at_once);
    let (sessions, per_account, register) = (*sessions, *per_account, server.access.register);
    let hold = Duration::try_from_secs_f64(*hold)
        .map_err(|_| LoadError::Usage("--hold: a number of seconds".into()))?;
    let stage = Stage::new();
    let accounts = sessions.div_ceil(per_account);
    stage.prepare("logging in", u64::from(sessions) + if register { u64::from(accounts) } else { 0 });
    let wish = Wish { acks: *sm, presence: *presence, ..Wish::default() };
    let before = meter.as_ref().map(Meter::memory).transpose()?;
    let begin = Instant::now();
    let crew = Crew::start(&stage, threads, {
        let stage = stage.clone();
        move |number, _| {
            let (stage, place) = (stage.clone(), place.clone());
            async move {
                if register {
                    let users = work::share(accounts, number, threads).collect();
                    work::register(&stage, &place, users, at_once).await?;
                }
                let users = work::share(sessions, number, threads).map(|it| it % accounts).collect();
                let (links, _) = work::occupy(&stage, &place, users, (wish, at_once)).await?;
                stage.ready().await?;
                stage.reached(Phase::Drain).await?;
                leave(&links).await;
                Ok(())
            }
        }
    })?;
    crew.await_ready()?;
    let took = begin.elapsed();
    stage.enter(Phase::Measure);
    let quiet = match &meter {
        Some(meter) => await_quiet(&crew, meter)?,
        None => true,
    };
    let after = meter.as_ref().map(Meter::memory).transpose()?;
    let mut report = Report::new("idle");
    work::describe(&mut report, server, run_options);
    report.parameter("sessions", sessions).parameter("per_account", per_account);
    report.parameter("sm", *sm).parameter("presence", *presence);
    report.result("sessions", sessions).result("login_seconds", round(took.as_secs_f64()));
    report.row("sessions", format!("{sessions}, logged in within {:.1} s", took.as_secs_f64()));
    if let (Some(before), Some(after)) = (before, after) {
        let each = after.kib.saturating_sub(before.kib) as f64 / f64::from(sessions);
        report.result("memory_before_kib", before.kib).result("memory_after_kib", after.kib);
        report
            .result("kib_per_session", round(each))
            .result("memory_kind", after.kind)
            .result("quiet", quiet);
        let [old, new] = [before.kib, after.kib].map(|kib| kib as f64 / 1024.0);
        report.row("server memory", format!("{old:.1} MiB before, {new:.1} MiB after ({})", after.kind));
        report.row("per session", format!("{each:.2} KiB"));
        if !quiet {
            report.row("note", "the server had not come to rest when its memory was read".into());
        }
    } else {
        report.row("server memory", "not measured: give --server-pid".into());
    }
    if let Some(own) = Meter::new(&[std::process::id()])? {
        let own = own.memory()?;
        report.result("load_memory_kib", own.kib);
        report.row("our own memory", format!("{:.1} MiB", own.kib as f64 / 1024.0));
    }
    let mut progress = Progress::new();
    let end = Instant::now() + hold;
    while Instant::now() < end {
        progress.show(|| {
            let left = end.saturating_duration_since(Instant::now());
            format!("{sessions} sessions are held for another {:.0} s", left.as_secs_f64())
        });
        crew.pause(Duration::from_millis(200).min(end.saturating_duration_since(Instant::now())))?;
    }
    progress.clear();
    stage.enter(Phase::Drain);
    crew.finish()?;
    Ok(report)
}

/// Waits until the server uses less than a hundredth of a processor, for half a minute at most; whether it does.
fn await_quiet<T: Send + 'static>(crew: &Crew<T>, meter: &Meter) -> Result<bool, LoadError> {
    const STEP: Duration = Duration::from_millis(500);
    let mut before = meter.usage();
    for _ in 0..60 {
        crew.pause(STEP)?;
        let now = meter.usage();
        if meter.between(&before, &now).0 < STEP / 100 {
            return Ok(true);
        }
        before = now;
    }
    Ok(false)
}
