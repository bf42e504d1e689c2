//! `s2s`: users of one server write to users of another.

use crate::crew::{Crew, Stage};
use crate::error::LoadError;
use crate::marker::{Reader, Template};
use crate::negotiate::Wish;
use crate::options::S2s;
use crate::pairs::{Desk, Flow, Pairs, leave};
use crate::report::Report;
use crate::work;

pub(crate) fn run(options: &S2s) -> Result<Report, LoadError> {
    let S2s { server, run: run_options, messages, peer_server, peer_domain, both_ways, sm } = options;
    work::room_for(messages.pairs.saturating_mul(2))?;
    let here = work::place(server)?;
    let there = work::place_at(peer_server, peer_domain, &server.access)?;
    let (length, meter) = work::measuring(run_options)?;
    let (threads, at_once) = (run_options.threads, server.access.at_once);
    let style = work::style(messages, threads)?;
    let run = work::new_run();
    let stage = Stage::new();
    let (pairs, body, both_ways) = (messages.pairs, messages.body as usize, *both_ways);
    let register = server.access.register;
    stage.prepare("logging in", u64::from(pairs) * if register { 4 } else { 2 });
    let wish = Wish { acks: *sm, presence: true, ..Wish::default() };
    let crew = Crew::start(&stage, threads, {
        let stage = stage.clone();
        move |number, tally| {
            let (stage, here, there) = (stage.clone(), here.clone(), there.clone());
            async move {
                let mine: Vec<u32> = work::share(pairs, number, threads).collect();
                let mut ends = Vec::new();
                for place in [&here, &there] {
                    if register {
                        work::register(&stage, place, mine.clone(), at_once).await?;
                    }
                    ends.push(work::enter_all(&stage, place, mine.clone(), (wish, at_once)).await?);
                }
                let mut pairs = Pairs::default();
                for ((pair, near), far) in mine.iter().zip(&ends[0]).zip(&ends[1]) {
                    let mut flow = |number: u32, from, to: String| {
                        let template = Template::message(run, number, (&to, "chat"), body);
                        let flow = Flow::new(number, from, template, style);
                        pairs.flows.push(flow.clone());
                        flow
                    };
                    let out = flow(pair * 2, near.clone(), there.jid(*pair));
                    let back = both_ways.then(|| flow(pair * 2 + 1, far.clone(), here.jid(*pair)));
                    pairs.links.push((near.clone(), back));
                    pairs.links.push((far.clone(), Some(out)));
                }
                let desk = Desk { stage, tally, reader: Reader::new(run, body) };
                let verdict = pairs.run(desk, style).await?;
                leave(&ends.concat()).await;
                Ok(verdict.sent)
            }
        }
    })?;
    crew.await_ready()?;
    let measured = crew.measure(length, meter.as_ref())?;
    let sent: u64 = crew.finish()?.into_iter().sum();
    let mut report = Report::new("s2s");
    work::describe(&mut report, server, run_options);
    work::describe_messages(&mut report, messages);
    report.parameter("peer_server", peer_server.as_str()).parameter("peer_domain", peer_domain.as_str());
    report.parameter("both_ways", both_ways).parameter("sm", *sm);
    report.throughput("messages", "message", &measured).latency("latency", &measured.latency);
    report.result("verified", sent).row("verified", format!("{sent} sent, each received once, in order"));
    Ok(report)
}
