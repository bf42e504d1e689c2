//! `room`: people join a room (XEP-0045), one speaks, all hear it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{AbortHandle, JoinSet};
use trunkline_xml::escape_attr;
use trunkline_xmpp::ns;

use crate::broadcast::Broadcast;
use crate::connection::Link;
use crate::crew::{Crew, Stage};
use crate::error::LoadError;
use crate::marker::{Reader, Run, Template};
use crate::negotiate::{self, Dialog, Wish, condition, in_time};
use crate::options::Room;
use crate::pairs::{self, Desk, Records, Style, leave};
use crate::place::Place;
use crate::report::{Report, round};
use crate::work;

const MUC: &str = "http://jabber.org/protocol/muc";
const MUC_USER: &str = "http://jabber.org/protocol/muc#user";
const MUC_OWNER: &str = "http://jabber.org/protocol/muc#owner";

/// What joining took.
struct Joined {
    time: Duration,
    server_cpu: Option<Duration>,
}

pub(crate) fn run(options: &Room) -> Result<Report, LoadError> {
    let Room { server, run: run_options, occupants, window, body, rate, service } = options;
    work::room_for(*occupants)?;
    let place = work::place(server)?;
    let (length, meter) = work::measuring(run_options)?;
    let style = Style { window: *window, rate: work::rate(*rate)?, records: Records::Each };
    let (occupants, at_once, register) = (*occupants, server.access.at_once, server.access.register);
    let body = *body as usize;
    let run = work::new_run();
    let service = service.clone().unwrap_or_else(|| format!("conference.{}", server.domain));
    let room = address(run, &service);
    let stage = Stage::new();
    let steps = u64::from(occupants);
    stage.prepare("logging in and joining", if register { steps * 3 } else { steps * 2 });
    let crew = Crew::start(&stage, 1, {
        let (stage, meter) = (stage.clone(), meter.clone());
        move |_, tally| {
            let (stage, place, meter, room) = (stage.clone(), place.clone(), meter.clone(), room.clone());
            async move {
                if register {
                    work::register(&stage, &place, (0..occupants).collect(), at_once).await?;
                }
                let dialogs = log_in(&stage, &place, occupants, at_once).await?;
                let before = meter.as_ref().map(|it| it.usage());
                let begin = Instant::now();
                let links = join_all(&stage, &room, dialogs, at_once).await?;
                let server_cpu = meter
                    .as_ref()
                    .zip(before)
                    .map(|(meter, before)| meter.between(&before, &meter.usage()).0);
                let joined = Joined { time: begin.elapsed(), server_cpu };
                let template = Template::message(run, 0, (&room, "groupchat"), body);
                let broadcast = Broadcast::new(links[0].clone(), (0, template), links.len());
                let desk = Desk { stage, tally, reader: Reader::new(run, body) };
                let done = broadcast.run(&links, desk, style).await?;
                leave(&links).await;
                Ok((done, joined))
            }
        }
    })?;
    crew.await_ready()?;
    let measured = crew.measure(length, meter.as_ref())?;
    let ends = crew.finish()?;
    let mut report = Report::new("room");
    work::describe(&mut report, server, run_options);
    report.parameter("occupants", occupants).parameter("window", *window).parameter("body", body);
    report.parameter("rate", *rate).parameter("service", service);
    if let Some((_, Joined { time, server_cpu })) = ends.first() {
        report.result("joins", occupants).result("join_seconds", round(time.as_secs_f64()));
        let mut text = format!("{occupants} in {:.2} s", time.as_secs_f64());
        if let Some(cpu) = server_cpu {
            let each = cpu.as_secs_f64() * 1e6 / f64::from(occupants);
            report.result("server_cpu_us_per_join", round(each));
            text.push_str(&format!(", server CPU {each:.0} us each"));
        }
        report.row("joins", text);
    }
    report.throughput("deliveries", "delivery", &measured).latency("latency", &measured.latency);
    if let Some(((sent, verdict), _)) = ends.first() {
        report.result("sent", *sent).result("verified", verdict.sent);
        report.row("verified", format!("{sent} messages, each heard once by {occupants} people, in order"));
    }
    Ok(report)
}

fn address(run: Run, service: &str) -> String {
    format!("load-{:08x}@{service}", run.0)
}

async fn log_in(
    stage: &Arc<Stage>,
    place: &Arc<Place>,
    count: u32,
    at_once: u32,
) -> Result<Vec<(u32, Dialog)>, LoadError> {
    let (mut tasks, mut all, mut next) = (JoinSet::new(), Vec::new(), 0..count);
    loop {
        while tasks.len() < at_once as usize
            && let Some(number) = next.next()
        {
            let (stage, place) = (stage.clone(), place.clone());
            tasks.spawn(async move {
                let wish = Wish { presence: true, ..Wish::default() };
                let dialog = negotiate::enter(&place, number, wish).await?;
                stage.one_prepared();
                Ok::<_, LoadError>((number, dialog))
            });
        }
        let Some(done) = tasks.join_next().await else { break };
        all.push(done.map_err(|error| LoadError::Machine(error.to_string()))??);
    }
    all.sort_by_key(|(number, _)| *number);
    Ok(all)
}

/// The first one makes the room; then the others come, some at once.
async fn join_all(
    stage: &Arc<Stage>,
    room: &str,
    dialogs: Vec<(u32, Dialog)>,
    at_once: u32,
) -> Result<Vec<Link>, LoadError> {
    let (mut tasks, mut all, mut holders) = (JoinSet::new(), Vec::new(), Vec::new());
    for (number, mut dialog) in dialogs {
        // The first is alone until the room is there.
        let most = if all.is_empty() { 1 } else { at_once as usize };
        while tasks.len() >= most {
            take_in(stage, &mut tasks, (&mut all, &mut holders)).await?;
        }
        let room = room.to_owned();
        tasks.spawn(async move {
            in_time(
                "a place in the room (are there rooms? --service names where)",
                join(&mut dialog, &room, number),
            )
            .await?;
            Ok((number, dialog))
        });
    }
    while !tasks.is_empty() {
        take_in(stage, &mut tasks, (&mut all, &mut holders)).await?;
    }
    holders.iter().for_each(AbortHandle::abort);
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, link)| link).collect())
}

type Joining = JoinSet<Result<(u32, Dialog), LoadError>>;

/// Somebody has joined: from now on what the room says is read.
async fn take_in(
    stage: &Arc<Stage>,
    tasks: &mut Joining,
    (all, holders): (&mut Vec<(u32, Link)>, &mut Vec<AbortHandle>),
) -> Result<(), LoadError> {
    if let Some(done) = tasks.join_next().await {
        let (number, dialog) = done.map_err(|error| LoadError::Machine(error.to_string()))??;
        let link = pairs::link(dialog.connection);
        holders.extend(work::hold(stage, std::slice::from_ref(&link)));
        all.push((number, link));
        stage.one_prepared();
    }
    Ok(())
}

/// XEP-0045 s.7.2; one who is told to have made the room accepts its defaults (s.10.1.2).
async fn join(dialog: &mut Dialog, room: &str, number: u32) -> Result<(), LoadError> {
    let to = format!("{room}/user{number}");
    let to_attr = escape_attr(&to);
    dialog.say_stanza(format!("<presence to='{to_attr}'><x xmlns='{MUC}'/></presence>"))?;
    loop {
        let element = dialog.next().await?;
        let root = element.root();
        if !root.is(ns::CLIENT, "presence")
            || root.attr("from").as_deref().is_none_or(|from| !from.starts_with(room))
        {
            continue;
        }
        if root.attr("type").is_some_and(|it| it == "error") {
            let error = root.child(ns::CLIENT, "error");
            return Err(LoadError::Refused {
                what: format!("{to} for {}", dialog.connection.who()),
                condition: error.map_or_else(String::new, |it| condition(it, ns::STANZA_ERRORS)),
                advice: ": does the server have rooms there? --service names where it has them",
            });
        }
        let Some(x) = root.child(MUC_USER, "x") else { continue };
        let has = |code: &str| {
            x.children().any(|it| it.name() == "status" && it.attr("code").as_deref() == Some(code))
        };
        // Old services say no 110, but the address is our own.
        if !has("110") && root.attr("from").as_deref() != Some(&to) {
            continue;
        }
        if has("201") {
            let form =
                format!("<query xmlns='{MUC_OWNER}'><x xmlns='{}' type='submit'/></query>", ns::DATA_FORMS);
            dialog.request("set", room, &form, "the room's defaults").await?;
        }
        return Ok(());
    }
}
