//! `chat`: pairs of users of one server.

use tokio::task::AbortHandle;

use crate::crew::{Crew, Stage};
use crate::error::LoadError;
use crate::marker::{Reader, Template};
use crate::negotiate::Wish;
use crate::options::Chat;
use crate::pairs::{Desk, Flow, Pairs, Records, Watch, leave};
use crate::report::Report;
use crate::work;

pub(crate) fn run(options: &Chat) -> Result<Report, LoadError> {
    let Chat { server, run: run_options, messages, sm, second_device, idle, record_each } = options;
    let second = *second_device;
    let devices = if second { 2 } else { 1 };
    work::room_for(messages.pairs.saturating_mul(2 * devices).saturating_add(*idle))?;
    let place = work::place(server)?;
    let (length, meter) = work::measuring(run_options)?;
    let (threads, at_once) = (run_options.threads, server.access.at_once);
    let mut style = work::style(messages, threads)?;
    if *record_each {
        style.records = Records::Each;
    }
    let run = work::new_run();
    let stage = Stage::new();
    let (pairs, body, idle) = (messages.pairs, messages.body as usize, *idle);
    let register = server.access.register;
    let accounts = u64::from(pairs * 2 + idle);
    let logins = u64::from(pairs * 2 * devices + idle);
    stage.prepare("logging in", if register { accounts + logins } else { logins });
    let wish = Wish { acks: *sm, presence: true, carbons: second, inactive: false };
    let crew = Crew::start(&stage, threads, {
        let stage = stage.clone();
        move |number, tally| {
            let (stage, place) = (stage.clone(), place.clone());
            async move {
                let mine: Vec<u32> = work::share(pairs, number, threads).collect();
                let users: Vec<u32> = mine.iter().flat_map(|pair| [pair * 2, pair * 2 + 1]).collect();
                let idlers: Vec<u32> = work::share(idle, number, threads).map(|it| pairs * 2 + it).collect();
                if register {
                    let all = users.iter().chain(&idlers).copied().collect();
                    work::register(&stage, &place, all, at_once).await?;
                }
                let (idlers, holders) = work::occupy(&stage, &place, idlers, (wish, at_once)).await?;
                let links = work::enter_all(&stage, &place, users.clone(), (wish, at_once)).await?;
                let seconds = if second { users } else { Vec::new() };
                let wish = Wish { inactive: true, ..wish };
                let seconds = work::enter_all(&stage, &place, seconds, (wish, at_once)).await?;
                let mut pairs = Pairs::default();
                for (pair, ends) in mine.iter().zip(links.chunks_exact(2)) {
                    let to = place.jid(pair * 2 + 1);
                    let template = Template::message(run, pair * 2, (&to, "chat"), body);
                    let flow = Flow::new(pair * 2, ends[0].clone(), template, style);
                    pairs.links.push((ends[0].clone(), None));
                    pairs.links.push((ends[1].clone(), Some(flow.clone())));
                    pairs.flows.push(flow);
                }
                // Both see what the one writes and the other gets.
                for (flow, ends) in pairs.flows.iter().zip(seconds.chunks_exact(2)) {
                    pairs.watches.extend(ends.iter().map(|link| Watch::new(link.clone(), flow)));
                }
                let desk = Desk { stage, tally, reader: Reader::new(run, body) };
                let verdict = pairs.run(desk, style).await?;
                let acknowledgements = Pairs::acknowledgements(&links);
                holders.iter().for_each(AbortHandle::abort);
                leave(&links).await;
                leave(&seconds).await;
                leave(&idlers).await;
                Ok((verdict.sent, acknowledgements))
            }
        }
    })?;
    crew.await_ready()?;
    let measured = crew.measure(length, meter.as_ref())?;
    let ends = crew.finish()?;
    let mut report = Report::new("chat");
    work::describe(&mut report, server, run_options);
    work::describe_messages(&mut report, messages);
    report
        .parameter("sm", *sm)
        .parameter("second_device", second)
        .parameter("idle", idle)
        .parameter("record_each", *record_each);
    report.throughput("messages", "message", &measured).latency("latency", &measured.latency);
    let sent: u64 = ends.iter().map(|it| it.0).sum();
    report.result("verified", sent).row("verified", format!("{sent} sent, each received once, in order"));
    if second {
        report
            .result("copies_verified", sent * 2)
            .row("copies", format!("{} on second devices, the same", sent * 2));
    }
    if *sm {
        let answers: u64 = ends.iter().map(|it| it.1).sum();
        report.result("acknowledgements", answers);
        report.row("acknowledged", format!("all, with {answers} acknowledgements"));
    }
    Ok(report)
}
