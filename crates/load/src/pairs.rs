//! Pairs that write to each other: the engine under `chat`, `s2s` and `floor`.
//!
//! Both ends of a pair are on one thread. In the closed loop the task that reads a receiver's connection sends the next
//! message on the sender's, so a message costs one wake-up, one read and one write here.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::connection::{Connection, Link, REQUEST, excerpt};
use crate::crew::{Phase, Stage, Tally};
use crate::error::LoadError;
use crate::marker::{Reader, Template};
use crate::pace::Pace;
use crate::verify::{Verdict, Verifier};

/// How messages are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// Messages of each flow under way in the closed loop; with XEP-0198, how many go with one request.
    pub(crate) window: u32,
    /// Messages a second of all flows of this thread in the open loop.
    pub(crate) rate: Option<f64>,
    /// How they are put into TLS.
    pub(crate) records: Records,
}

/// What shares a TLS record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Records {
    /// What leaves at once.
    Together,
    /// Each message has its own.
    Each,
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Messages from one connection to another.
#[derive(Debug)]
pub(crate) struct Flow {
    number: u32,
    from: Link,
    template: Template,
    sent: u32,
    verifier: Verifier,
    unasked: u32,
    style: Style,
}

pub(crate) type SharedFlow = Arc<Mutex<Flow>>;

impl Flow {
    pub(crate) fn new(number: u32, from: Link, template: Template, style: Style) -> SharedFlow {
        let verifier = Verifier::default();
        Arc::new(Mutex::new(Flow { number, from, template, sent: 0, verifier, unasked: 0, style }))
    }

    /// Sends the next `count` messages, timed from `time`, in one write.
    fn send(&mut self, count: u32, time: u64) -> Result<(), LoadError> {
        let mut from = self.from.lock();
        SCRATCH.with_borrow_mut(|out| {
            out.clear();
            let mut together = 0;
            for _ in 0..count {
                out.extend_from_slice(self.template.fill(self.sent, time));
                self.sent += 1;
                together += 1;
                self.unasked += 1;
                if self.unasked >= self.style.window && from.counts_stanzas() {
                    self.unasked = 0;
                    out.extend_from_slice(REQUEST);
                }
                if self.style.records == Records::Each {
                    from.queue_stanzas(out, together);
                    out.clear();
                    together = 0;
                }
            }
            if together > 0 {
                from.queue_stanzas(out, together);
            }
        });
        from.flush()
    }

    fn verdict(&self) -> Verdict {
        self.verifier.verdict(u64::from(self.sent))
    }
}

/// A task that reads one connection for ever: `flow` is what arrives there.
struct Receiver {
    link: Link,
    flow: Option<SharedFlow>,
    reader: Reader,
    stage: Arc<Stage>,
    tally: Arc<Tally>,
    closed_loop: bool,
}

impl Future for Receiver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            match this.turn(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    this.stage.fail(error);
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Receiver {
    /// One read, and what follows from it.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LoadError>> {
        let Some(flow) = &self.flow else {
            let reader = &self.reader;
            let mut error = None;
            let mut sink = |stanza: &[u8]| error = error.take().or_else(|| stray(reader, stanza));
            let polled = self.link.lock().poll_receive(cx, &mut sink);
            return match error {
                Some(error) => Poll::Ready(Err(error)),
                None => polled,
            };
        };
        let mut flow = flow.lock();
        let (mut count, mut now, mut error) = (0, 0, None);
        let measuring = self.stage.phase() == Phase::Measure;
        let mut latency = None;
        let mut sink = |stanza: &[u8]| {
            match self.reader.read(stanza) {
                Some(marker) if marker.flow == flow.number => {
                    if !flow.verifier.arrived(marker.number) {
                        return;
                    }
                    if count == 0 {
                        now = self.stage.now();
                    }
                    count += 1;
                    if measuring {
                        latency
                            .get_or_insert_with(|| self.tally.latency.lock())
                            .saturating_record(now.saturating_sub(marker.time));
                    }
                }
                _ => error = error.take().or_else(|| stray(&self.reader, stanza)),
            };
        };
        let polled = self.link.lock().poll_receive(cx, &mut sink);
        drop(latency);
        if let Some(error) = error {
            return Poll::Ready(Err(error));
        }
        if count > 0 {
            self.tally.add(u64::from(count));
            if self.closed_loop && self.stage.sending() {
                flow.send(count, self.stage.now())?;
            }
        }
        polled
    }
}

/// A device on the table: its user's other device, or that of the one whom its user writes to, takes part in a flow, and
/// this one must see all of it.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    link: Link,
    flow: SharedFlow,
    number: u32,
    verifier: Arc<Mutex<Verifier>>,
}

impl Watch {
    pub(crate) fn new(link: Link, flow: &SharedFlow) -> Watch {
        let number = flow.lock().number;
        Watch { link, flow: flow.clone(), number, verifier: Arc::default() }
    }

    /// Somebody takes the device up: what the server has held back comes now (XEP-0352).
    fn take_up(&self) -> Result<(), LoadError> {
        let mut link = self.link.lock();
        link.queue(format!("<active xmlns='{}'/>", trunkline_xmpp::ns::CSI).as_bytes());
        link.flush()
    }

    fn sent(&self) -> u64 {
        u64::from(self.flow.lock().sent)
    }

    fn is_complete(&self) -> bool {
        let sent = self.sent();
        self.verifier.lock().complete(sent)
    }

    fn verdict(&self) -> Verdict {
        let sent = self.sent();
        self.verifier.lock().verdict(sent)
    }
}

/// A task that reads the connection of a [`Watch`] for ever.
struct Watcher {
    watch: Watch,
    reader: Reader,
    stage: Arc<Stage>,
}

impl Future for Watcher {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Watcher { watch, reader, stage } = &*self;
        loop {
            let mut error = None;
            let mut sink = |stanza: &[u8]| match reader.read(stanza) {
                Some(marker) if marker.flow == watch.number => {
                    watch.verifier.lock().arrived(marker.number);
                }
                _ => error = error.take().or_else(|| stray(reader, stanza)),
            };
            let polled = watch.link.lock().poll_receive(cx, &mut sink);
            let failed = match (error, polled) {
                (Some(error), _) | (None, Poll::Ready(Err(error))) => error,
                (None, Poll::Ready(Ok(()))) => continue,
                (None, Poll::Pending) => return Poll::Pending,
            };
            stage.fail(failed);
            return Poll::Ready(());
        }
    }
}

/// What arrived and was not expected: nothing of ours, a bounce, or a delivery to the wrong receiver.
pub(crate) fn stray(reader: &Reader, stanza: &[u8]) -> Option<LoadError> {
    if !reader.is_ours(stanza) {
        return None;
    }
    let element = crate::negotiate::parse(stanza).ok()?;
    let root = element.root();
    if root.attr("type").is_some_and(|it| it == "error") {
        let error = root.children().find(|it| it.name() == "error");
        let condition = error.map_or_else(String::new, |it| {
            crate::negotiate::condition(it, trunkline_xmpp::ns::STANZA_ERRORS)
        });
        let to = root.attr("from").unwrap_or_default();
        return Some(LoadError::Delivery(format!("the server refused a message to {to}: {condition}")));
    }
    Some(LoadError::Delivery(format!("a message came damaged or to the wrong receiver: {}", excerpt(stanza))))
}

/// The pairs of one thread.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    pub(crate) flows: Vec<SharedFlow>,
    /// Each connection with the flow that arrives there.
    pub(crate) links: Vec<(Link, Option<SharedFlow>)>,
    /// Second devices.
    pub(crate) watches: Vec<Watch>,
}

/// Where one thread's pairs stand in the run.
#[derive(Clone, Debug)]
pub(crate) struct Desk {
    pub(crate) stage: Arc<Stage>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) reader: Reader,
}

/// How long nothing may arrive at the end before what is missing counts as lost.
pub(crate) const SILENCE: Duration = Duration::from_secs(10);
/// At the end one waits that long for repeats.
pub(crate) const AFTERMATH: Duration = Duration::from_millis(200);
/// Seconds of the open loop that may be under way.
const MOST_BEHIND: f64 = 10.0;

impl Pairs {
    /// Makes load from the start of the run to its end; gives the verdict on all deliveries.
    pub(crate) async fn run(self, desk: Desk, style: Style) -> Result<Verdict, LoadError> {
        let tasks = self.read(&desk, style.rate.is_none());
        desk.stage.ready().await?;
        match style.rate {
            None => {
                for flow in &self.flows {
                    flow.lock().send(style.window, desk.stage.now())?;
                }
            }
            Some(rate) => self.pace(&desk, rate).await?,
        }
        desk.stage.reached(Phase::Drain).await?;
        self.drain(&desk).await?;
        self.all_acknowledged(&desk).await?;
        for task in tasks {
            task.abort();
        }
        let mut verdict = Verdict::default();
        for flow in &self.flows {
            verdict.add(flow.lock().verdict());
        }
        verdict.check().map_err(LoadError::Delivery)?;
        let mut copies = Verdict::default();
        for watch in &self.watches {
            copies.add(watch.verdict());
        }
        copies.check().map_err(|text| LoadError::Delivery(format!("on second devices: {text}")))?;
        Ok(verdict)
    }

    fn read(&self, desk: &Desk, closed_loop: bool) -> Vec<JoinHandle<()>> {
        let receiver = |(link, flow): &(Link, Option<SharedFlow>)| Receiver {
            link: link.clone(),
            flow: flow.clone(),
            reader: desk.reader.clone(),
            stage: desk.stage.clone(),
            tally: desk.tally.clone(),
            closed_loop,
        };
        let watcher = |watch: &Watch| Watcher {
            watch: watch.clone(),
            reader: desk.reader.clone(),
            stage: desk.stage.clone(),
        };
        let receivers = self.links.iter().map(|it| tokio::spawn(receiver(it)));
        receivers.chain(self.watches.iter().map(|it| tokio::spawn(watcher(it)))).collect()
    }

    /// The open loop: messages leave at their times whatever happened to earlier ones.
    async fn pace(&self, desk: &Desk, rate: f64) -> Result<(), LoadError> {
        let mut pace = Pace::new(&desk.stage, rate)?;
        let mut flows = self.flows.iter().cycle();
        while desk.stage.sending() {
            let due = pace.due().await?;
            for time in due {
                if let Some(flow) = flows.next() {
                    flow.lock().send(1, time)?;
                }
            }
            let under_way = pace.sent().saturating_sub(desk.tally.received());
            if under_way as f64 > rate * MOST_BEHIND + 1000.0 {
                return Err(LoadError::Overrun { under_way });
            }
        }
        Ok(())
    }

    /// Waits until everything has arrived, or nothing more does.
    async fn drain(&self, desk: &Desk) -> Result<(), LoadError> {
        let complete = |flow: &SharedFlow| {
            let flow = flow.lock();
            flow.verifier.complete(u64::from(flow.sent))
        };
        let copies = || self.watches.iter().map(|watch| watch.verifier.lock().count()).sum::<u64>();
        for watch in &self.watches {
            watch.take_up()?;
        }
        let mut last = (desk.tally.received() + copies(), tokio::time::Instant::now());
        while !(self.flows.iter().all(complete) && self.watches.iter().all(Watch::is_complete)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            check(desk)?;
            let received = desk.tally.received() + copies();
            if received != last.0 {
                last = (received, tokio::time::Instant::now());
            } else if last.1.elapsed() > SILENCE {
                // The verdict says what is missing.
                break;
            }
        }
        tokio::time::sleep(AFTERMATH).await;
        check(desk)
    }

    /// XEP-0198: at the end nothing is left unacknowledged.
    async fn all_acknowledged(&self, desk: &Desk) -> Result<(), LoadError> {
        let waiting =
            || self.links.iter().map(|(link, _)| link.lock().unacknowledged()).map(u64::from).sum::<u64>();
        if waiting() > 0 {
            for (link, _) in &self.links {
                let mut link = link.lock();
                link.request_ack();
                link.flush()?;
            }
        }
        let end = tokio::time::Instant::now() + SILENCE;
        while waiting() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            check(desk)?;
            if tokio::time::Instant::now() > end {
                let text = format!("{} stanzas were not acknowledged (XEP-0198) at the end", waiting());
                return Err(LoadError::Delivery(text));
            }
        }
        Ok(())
    }

    /// How many acknowledgements came.
    pub(crate) fn acknowledgements(links: &[Link]) -> u64 {
        links.iter().map(|link| u64::from(link.lock().answers())).sum()
    }
}

fn check(desk: &Desk) -> Result<(), LoadError> {
    if desk.stage.phase() == Phase::Failed { Err(crate::crew::aborted()) } else { Ok(()) }
}

/// Ends all streams.
pub(crate) async fn leave(links: &[Link]) {
    for link in links {
        // The run is over; a server that is gone by now has done its work.
        let _ = link.lock().say_goodbye();
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// A connection that others may write to.
pub(crate) fn link(connection: Connection) -> Link {
    Arc::new(Mutex::new(connection))
}
