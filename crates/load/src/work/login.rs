//! `login`: in and out again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::{ClientConfig, HandshakeKind};
use tokio::task::JoinSet;

use crate::crew::{Crew, Phase, Stage, Tally};
use crate::error::LoadError;
use crate::negotiate::{self, in_time};
use crate::options::Login;
use crate::place::Place;
use crate::report::Report;
use crate::{tls, work};

pub(crate) fn run(options: &Login) -> Result<Report, LoadError> {
    let Login { server, run: run_options, resume_tls } = options;
    let place = work::place(server)?;
    let (length, meter) = work::measuring(run_options)?;
    let (threads, at_once) = (run_options.threads, server.access.at_once);
    let (register, resume_tls) = (server.access.register, *resume_tls);
    let stage = Stage::new();
    let accounts = u64::from(threads * at_once);
    stage.prepare("logging in", if register { accounts * 2 } else { accounts });
    let resumed = Arc::new(AtomicU64::new(0));
    let crew = Crew::start(&stage, threads, {
        let (stage, resumed) = (stage.clone(), resumed.clone());
        move |number, tally| {
            let (stage, place, resumed) = (stage.clone(), place.clone(), resumed.clone());
            async move {
                let users: Vec<u32> = work::share(threads * at_once, number, threads).collect();
                if register {
                    work::register(&stage, &place, users.clone(), at_once).await?;
                }
                let mut tasks = JoinSet::new();
                let (ready, mut readiness) = tokio::sync::mpsc::channel::<()>(1);
                for user in users {
                    // Tickets are used once, so each has its own, as each client of real users has.
                    let config =
                        if resume_tls { Arc::new(tls::resuming(&place.tls)) } else { place.tls.clone() };
                    let visitor = Visitor {
                        stage: stage.clone(),
                        place: place.clone(),
                        tally: tally.clone(),
                        resumed: resumed.clone(),
                        user,
                        config,
                    };
                    let ready = ready.clone();
                    tasks.spawn(async move {
                        // The first login makes the SCRAM keys and brings a ticket.
                        visitor.visit().await?;
                        visitor.stage.one_prepared();
                        drop(ready);
                        visitor.stage.reached(Phase::Warm).await?;
                        while visitor.stage.sending() {
                            visitor.visit().await?;
                        }
                        Ok::<_, LoadError>(())
                    });
                }
                drop(ready);
                // Nothing is sent: it ends when all have dropped their end, after the first login or in failure.
                let _ = readiness.recv().await;
                let mut begun = Box::pin(stage.ready());
                let mut waiting = true;
                loop {
                    tokio::select! {
                        begun = &mut begun, if waiting => {
                            begun?;
                            waiting = false;
                        }
                        done = tasks.join_next() => match done {
                            Some(done) => done.map_err(|error| LoadError::Machine(error.to_string()))??,
                            None => return Ok(()),
                        },
                    }
                }
            }
        }
    })?;
    crew.await_ready()?;
    let measured = crew.measure(length, meter.as_ref())?;
    let resumed = resumed.load(Ordering::Relaxed);
    crew.finish()?;
    let mut report = Report::new("login");
    work::describe(&mut report, server, run_options);
    report.parameter("at_once", at_once).parameter("resume_tls", resume_tls);
    report.throughput("logins", "login", &measured).latency("time of a login", &measured.latency);
    let resumed = resumed.min(measured.count);
    report.result("resumed", resumed).row("TLS resumed", format!("{resumed}"));
    Ok(report)
}

/// One account that comes and goes.
struct Visitor {
    stage: Arc<Stage>,
    place: Arc<Place>,
    tally: Arc<Tally>,
    resumed: Arc<AtomicU64>,
    user: u32,
    config: Arc<ClientConfig>,
}

impl Visitor {
    async fn visit(&self) -> Result<(), LoadError> {
        in_time("a login", async {
            let begin = self.stage.now();
            let mut dialog = negotiate::login(&self.place, self.user, &self.config).await?;
            let took = self.stage.now() - begin;
            let resumed = dialog
                .connection
                .tls()
                .is_some_and(|tls| tls.handshake_kind() == Some(HandshakeKind::Resumed));
            // The end of the stream comes after the presence, so its answer shows that both were dealt with.
            dialog.connection.queue_stanza(b"<presence/>");
            dialog.connection.say_goodbye()?;
            dialog.until_closed().await?;
            self.tally.add(1);
            if self.stage.phase() == Phase::Measure {
                self.tally.latency.lock().saturating_record(took);
                self.resumed.fetch_add(u64::from(resumed), Ordering::Relaxed);
            }
            Ok(())
        })
        .await
    }
}
