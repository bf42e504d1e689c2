//! `fanout`: user 0 changes presence, and all contacts see it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;
use trunkline_xml::escape_attr;
use trunkline_xmpp::ns;

use crate::broadcast::Broadcast;
use crate::connection::Link;
use crate::crew::{Crew, Stage, aborted};
use crate::error::LoadError;
use crate::marker::{self, Reader, Template};
use crate::negotiate::{self, Wish};
use crate::options::Fanout;
use crate::pairs::{self, Desk, Records, Style, leave};
use crate::place::Place;
use crate::report::Report;
use crate::work;

/// Subscriptions under way at once.
const AT_ONCE: u32 = 64;
/// How long nothing may happen while subscriptions are made.
const SILENCE: Duration = Duration::from_secs(30);

pub(crate) fn run(options: &Fanout) -> Result<Report, LoadError> {
    let Fanout { server, run: run_options, contacts, rate } = options;
    work::room_for(contacts.saturating_add(1))?;
    let place = work::place(server)?;
    let (length, meter) = work::measuring(run_options)?;
    let style = Style { window: 1, rate: work::rate(*rate)?, records: Records::Each };
    let (contacts, at_once, register) = (*contacts, server.access.at_once, server.access.register);
    let run = work::new_run();
    let stage = Stage::new();
    let people = u64::from(contacts) + 1;
    stage.prepare("logging in", if register { people * 2 } else { people });
    let crew = Crew::start(&stage, 1, {
        let stage = stage.clone();
        move |_, tally| {
            let (stage, place) = (stage.clone(), place.clone());
            async move {
                if register {
                    work::register(&stage, &place, (0..=contacts).collect(), at_once).await?;
                }
                let mut zero = negotiate::enter(&place, 0, Wish::default()).await?;
                let query = format!("<query xmlns='{}'/>", ns::ROSTER);
                let roster = zero.request("get", "", &query, "the roster").await?;
                let known = subscriptions(roster.root().child(ns::ROSTER, "query"));
                zero.connection.queue_stanza(b"<presence/>");
                zero.sync(&place.domain).await?;
                stage.one_prepared();
                let zero = pairs::link(zero.connection);
                let holder = work::hold(&stage, std::slice::from_ref(&zero));
                let wish = Wish { presence: true, ..Wish::default() };
                let friends =
                    work::enter_all(&stage, &place, (1..=contacts).collect(), (wish, at_once)).await?;
                holder.iter().for_each(AbortHandle::abort);
                befriend(&stage, &place, (&zero, &friends), &known).await?;
                let template = Template::presence(run, 0);
                let broadcast = Broadcast::new(zero.clone(), (0, template), friends.len());
                let holder = work::hold(&stage, std::slice::from_ref(&zero));
                let desk = Desk { stage, tally, reader: Reader::new(run, marker::LENGTH) };
                let done = broadcast.run(&friends, desk, style).await?;
                holder.iter().for_each(AbortHandle::abort);
                leave(&friends).await;
                leave(&[zero]).await;
                Ok(done)
            }
        }
    })?;
    crew.await_ready()?;
    let measured = crew.measure(length, meter.as_ref())?;
    let ends = crew.finish()?;
    let mut report = Report::new("fanout");
    work::describe(&mut report, server, run_options);
    report.parameter("contacts", contacts).parameter("rate", *rate);
    report.throughput("deliveries", "delivery", &measured).latency("latency", &measured.latency);
    if let Some((sent, verdict)) = ends.first() {
        report.result("changes", *sent).result("verified", verdict.sent);
        report.row("verified", format!("{sent} changes, each seen once by {contacts} contacts, in order"));
    }
    Ok(report)
}

/// Which way each contact of a roster is subscribed (RFC 6121 s.2.1.2.5).
fn subscriptions(query: Option<trunkline_xml::Node<'_>>) -> HashMap<String, String> {
    let items = query.into_iter().flat_map(|query| query.children());
    items
        .filter_map(|item| {
            let subscription = item.attr("subscription").unwrap_or("none".into());
            Some((item.attr("jid")?.into_owned(), subscription.into_owned()))
        })
        .collect()
}

/// Makes the subscriptions that are missing, over the wire, as people do (RFC 6121 s.3.1). They stay for the next run.
async fn befriend(
    stage: &Arc<Stage>,
    place: &Place,
    (zero, friends): (&Link, &[Link]),
    known: &HashMap<String, String>,
) -> Result<(), LoadError> {
    let has = |jid: &str, way: &str| known.get(jid).is_some_and(|it| it == way || it == "both");
    let mut missing = Vec::new();
    for (number, friend) in (1..).zip(friends) {
        let jid = place.jid(number);
        if !has(&jid, "to") {
            missing.push((zero.clone(), jid.clone()));
        }
        if !has(&jid, "from") {
            // RFC 6121 s.3.1.6: only who has asked for the roster hears that a request was approved.
            let roster = format!("<iq type='get' id='roster'><query xmlns='{}'/></iq>", ns::ROSTER);
            friend.lock().queue_stanza(roster.as_bytes());
            missing.push((friend.clone(), place.jid(0)));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    stage.prepare("subscribing", missing.len() as u64);
    let done = Arc::new(AtomicU32::new(0));
    let mut tasks = Vec::new();
    for link in friends.iter().chain([zero]) {
        let friendly = Friendly { link: link.clone(), stage: stage.clone(), done: done.clone() };
        tasks.push(tokio::spawn(friendly));
    }
    let all = missing.len() as u32;
    let mut missing = missing.into_iter();
    let (mut asked, mut last) = (0, (0, Instant::now()));
    loop {
        let now = done.load(Ordering::Relaxed);
        if now >= all {
            break;
        }
        if now != last.0 {
            last = (now, Instant::now());
        } else if last.1.elapsed() > SILENCE {
            let what = format!("the answers to {} requests for subscription", all - now);
            return Err(LoadError::Timeout { what, seconds: SILENCE.as_secs() });
        }
        if stage.phase() == crate::crew::Phase::Failed {
            return Err(aborted());
        }
        if asked < now + AT_ONCE
            && let Some((link, to)) = missing.next()
        {
            asked += 1;
            let mut link = link.lock();
            link.queue_stanza(format!("<presence to='{}' type='subscribe'/>", escape_attr(&to)).as_bytes());
            link.flush()?;
        } else {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    for task in tasks {
        task.abort();
    }
    Ok(())
}

/// A task that says yes to everybody who asks, and counts who said yes.
struct Friendly {
    link: Link,
    stage: Arc<Stage>,
    done: Arc<AtomicU32>,
}

impl Future for Friendly {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut asked = Vec::new();
            let mut sink = |stanza: &[u8]| {
                let Ok(element) = negotiate::parse(stanza) else { return };
                let root = element.root();
                if !root.is(ns::CLIENT, "presence") {
                    return;
                }
                match root.attr("type").as_deref() {
                    Some("subscribe") => asked.extend(root.attr("from").map(|from| from.into_owned())),
                    Some("subscribed") => {
                        self.done.fetch_add(1, Ordering::Relaxed);
                        self.stage.one_prepared();
                    }
                    _ => {}
                }
            };
            let mut link = self.link.lock();
            let polled = link.poll_receive(cx, &mut sink);
            for from in asked {
                let yes = format!("<presence to='{}' type='subscribed'/>", escape_attr(&from));
                link.queue_stanza(yes.as_bytes());
            }
            let failed = match polled {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(done) => done.and_then(|()| link.flush()),
            };
            if let Err(error) = failed {
                self.stage.fail(error);
                return Poll::Ready(());
            }
        }
    }
}
