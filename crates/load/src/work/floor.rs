//! `floor`: what this machine needs at least, with a relay that does nothing but forward.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use rustls_pki_types::ServerName;

use crate::connection::{Connection, Link};
use crate::crew::{Crew, Stage};
use crate::error::LoadError;
use crate::marker::{Reader, Template};
use crate::negotiate::{Dialog, in_time};
use crate::options::{Floor, KeyExchange, Security};
use crate::pairs::{self, Desk, Flow, Pairs, Records, leave};
use crate::place::Place;
use crate::report::Report;
use crate::tls::{self, Trust};
use crate::usage::Meter;
use crate::work;

/// For the stanzas: as long as the name of a server on such a machine.
const DOMAIN: &str = "floor.localhost";

pub(crate) fn run(options: &Floor) -> Result<Report, LoadError> {
    let Floor { run: run_options, messages, coalesce } = options;
    work::room_for(messages.pairs.saturating_mul(2))?;
    let relay = Relay::start(*coalesce)?;
    let place = relay.place()?;
    let (length, _) = work::measuring(run_options)?;
    let meter = Meter::new(&[relay.child.id()])?;
    let threads = run_options.threads;
    let mut style = work::style(messages, threads)?;
    // So that the relay knows where a message ends without looking at it.
    style.records = if *coalesce { Records::Together } else { Records::Each };
    let run = work::new_run();
    let stage = Stage::new();
    let (pairs, body) = (messages.pairs, messages.body as usize);
    stage.prepare("connecting", u64::from(pairs));
    let crew = Crew::start(&stage, threads, {
        let stage = stage.clone();
        move |number, tally| {
            let (stage, place) = (stage.clone(), place.clone());
            async move {
                let mut pairs_here = Pairs::default();
                let mut links = Vec::new();
                for pair in work::share(pairs, number, threads) {
                    let [near, far] = connect(&place, pair).await?;
                    let to = place.jid(pair * 2 + 1);
                    let template = Template::message(run, pair * 2, (&to, "chat"), body);
                    let flow = Flow::new(pair * 2, near.clone(), template, style);
                    links.extend([near.clone(), far.clone()]);
                    pairs_here.links.push((near, None));
                    pairs_here.links.push((far, Some(flow.clone())));
                    pairs_here.flows.push(flow);
                    stage.one_prepared();
                }
                let desk = Desk { stage, tally, reader: Reader::new(run, body) };
                let verdict = pairs_here.run(desk, style).await?;
                leave(&links).await;
                Ok(verdict.sent)
            }
        }
    })?;
    crew.await_ready()?;
    let measured = crew.measure(length, meter.as_ref())?;
    let sent: u64 = crew.finish()?.into_iter().sum();
    let mut report = Report::new("floor");
    work::describe_messages(&mut report, messages);
    report.parameter("threads", threads).parameter("coalesce", *coalesce);
    report.throughput("messages", "message", &measured).latency("latency", &measured.latency);
    report.result("verified", sent).row("verified", format!("{sent} sent, each received once, in order"));
    Ok(report)
}

/// Both ends of a pair, which the relay has joined.
async fn connect(place: &Place, pair: u32) -> Result<[Link; 2], LoadError> {
    let mut dialogs = Vec::new();
    for end in ["a", "b"] {
        let tcp = place.dial().await?;
        let tls = place.session(&place.tls)?;
        let mut connection = Connection::new(tcp, Some(tls), &format!("end {end} of pair {pair}"));
        connection.headless();
        let mut dialog = Dialog::new(connection);
        dialog.say(format!("{pair}\n"))?;
        dialogs.push(dialog);
    }
    in_time("a pair", async {
        // The first has to move on with its handshake before the second can hear of it.
        let (near, far) = dialogs.split_at_mut(1);
        tokio::try_join!(near[0].next_bytes(), far[0].next_bytes())
    })
    .await?;
    let mut links = dialogs.into_iter().map(|dialog| pairs::link(dialog.connection));
    match (links.next(), links.next()) {
        (Some(near), Some(far)) => Ok([near, far]),
        _ => Err(LoadError::Machine("a pair has two ends".into())),
    }
}

/// The relay, which ends with us.
struct Relay {
    child: Child,
    address: SocketAddr,
}

impl Relay {
    fn start(coalesce: bool) -> Result<Relay, LoadError> {
        let failed =
            |error: &dyn std::fmt::Display| LoadError::Machine(format!("starting the relay: {error}"));
        let program = std::env::current_exe().map_err(|error| failed(&error))?;
        let mut command = Command::new(program);
        command.arg("floor-relay").args(coalesce.then_some("--coalesce"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().map_err(|error| failed(&error))?;
        let mut relay = Relay { child, address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) };
        let stdout = relay.child.stdout.take().ok_or_else(|| failed(&"no output"))?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map_err(|error| failed(&error))?;
        relay.address = line.trim().parse().map_err(|_| failed(&"it did not say where it listens"))?;
        Ok(relay)
    }

    fn place(&self) -> Result<Arc<Place>, LoadError> {
        let name =
            ServerName::try_from(DOMAIN).map_err(|error| LoadError::Machine(format!("{DOMAIN}: {error}")))?;
        Ok(Arc::new(Place {
            address: self.address,
            domain: DOMAIN.to_owned(),
            security: Security::Direct,
            mechanism: None,
            prefix: "load".to_owned(),
            password: String::new(),
            // Its certificate is made anew each time, and it is our own child.
            tls: Arc::new(tls::client(&Trust::Anything, KeyExchange::Hybrid)?),
            name,
            keys: parking_lot::Mutex::default(),
            dialled: AtomicU32::new(0),
        }))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing is left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
