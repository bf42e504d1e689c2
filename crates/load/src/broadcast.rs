//! One speaks, many hear it: the engine under `fanout` and `room`.
//!
//! All connections are on one thread. In the closed loop the next stanza leaves when all have received one.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::connection::Link;
use crate::crew::{Phase, aborted};
use crate::error::LoadError;
use crate::marker::Template;
use crate::pace::Pace;
use crate::pairs::{AFTERMATH, Desk, SILENCE, Style, stray};
use crate::verify::{Verdict, Verifier};

/// What is said, and who has heard how much of it.
#[derive(Debug)]
pub(crate) struct Broadcast {
    speaker: Link,
    template: Template,
    flow: u32,
    sent: u32,
    hearers: Vec<Verifier>,
    /// How many have still to hear each, from the oldest that somebody has not heard.
    open: VecDeque<u32>,
    /// The number of the first of those.
    first: u32,
}

impl Broadcast {
    pub(crate) fn new(speaker: Link, (flow, template): (u32, Template), hearers: usize) -> Broadcast {
        Broadcast {
            speaker,
            template,
            flow,
            sent: 0,
            hearers: (0..hearers).map(|_| Verifier::default()).collect(),
            open: VecDeque::new(),
            first: 0,
        }
    }

    fn say(&mut self, count: u32, time: u64) -> Result<(), LoadError> {
        let mut speaker = self.speaker.lock();
        for _ in 0..count {
            speaker.queue_stanza(self.template.fill(self.sent, time));
            self.sent += 1;
            self.open.push_back(self.hearers.len() as u32);
        }
        speaker.flush()
    }

    /// Somebody heard a number; whether for the first time.
    fn heard(&mut self, hearer: usize, number: u32) -> bool {
        let new = self.hearers[hearer].arrived(number);
        if new && let Some(open) = self.open.get_mut(number.wrapping_sub(self.first) as usize) {
            *open = open.saturating_sub(1);
        }
        new
    }

    /// How many have been heard by all since the last call.
    fn completed(&mut self) -> u32 {
        let before = self.first;
        while self.open.front() == Some(&0) {
            self.open.pop_front();
            self.first += 1;
        }
        self.first - before
    }

    fn verdict(&self) -> Verdict {
        let mut sum = Verdict::default();
        for hearer in &self.hearers {
            sum.add(hearer.verdict(u64::from(self.sent)));
        }
        sum
    }

    /// Makes load from the start of the run to its end; gives how many were sent, and the verdict on all deliveries.
    pub(crate) async fn run(
        self,
        hearers: &[Link],
        desk: Desk,
        style: Style,
    ) -> Result<(u32, Verdict), LoadError> {
        let shared = Arc::new(Mutex::new(self));
        let mut tasks = Vec::new();
        for (number, link) in hearers.iter().enumerate() {
            let hearer = Hearer {
                number,
                link: link.clone(),
                broadcast: shared.clone(),
                desk: desk.clone(),
                closed_loop: style.rate.is_none(),
            };
            tasks.push(tokio::spawn(hearer));
        }
        desk.stage.ready().await?;
        match style.rate {
            None => shared.lock().say(style.window, desk.stage.now())?,
            Some(rate) => {
                let mut pace = Pace::new(&desk.stage, rate)?;
                while desk.stage.sending() {
                    for time in pace.due().await? {
                        shared.lock().say(1, time)?;
                    }
                    let under_way = shared.lock().open.len() as u64;
                    if under_way as f64 > rate * 10.0 + 1000.0 {
                        return Err(LoadError::Overrun { under_way });
                    }
                }
            }
        }
        desk.stage.reached(Phase::Drain).await?;
        let mut last = (desk.tally.received(), Instant::now());
        while !shared.lock().open.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let received = desk.tally.received();
            if received != last.0 {
                last = (received, Instant::now());
            } else if last.1.elapsed() > SILENCE {
                // The verdict says what is missing.
                break;
            }
        }
        tokio::time::sleep(AFTERMATH).await;
        if desk.stage.phase() == Phase::Failed {
            return Err(aborted());
        }
        for task in tasks {
            task.abort();
        }
        let broadcast = shared.lock();
        let verdict = broadcast.verdict();
        verdict.check().map_err(LoadError::Delivery)?;
        Ok((broadcast.sent, verdict))
    }
}

/// A task that reads one connection for ever.
struct Hearer {
    number: usize,
    link: Link,
    broadcast: Arc<Mutex<Broadcast>>,
    desk: Desk,
    closed_loop: bool,
}

impl Future for Hearer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            match this.turn(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    this.desk.stage.fail(error);
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Hearer {
    /// One read, and what follows from it.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LoadError>> {
        let Desk { stage, tally, reader } = &self.desk;
        let mut broadcast = self.broadcast.lock();
        let measuring = stage.phase() == Phase::Measure;
        let (mut count, mut now, mut error) = (0, 0, None);
        let mut sink = |stanza: &[u8]| match reader.read(stanza) {
            Some(marker) if marker.flow == broadcast.flow => {
                if broadcast.heard(self.number, marker.number) {
                    if count == 0 {
                        now = stage.now();
                    }
                    count += 1;
                    if measuring {
                        tally.latency.lock().saturating_record(now.saturating_sub(marker.time));
                    }
                }
            }
            _ => error = error.take().or_else(|| stray(reader, stanza)),
        };
        let polled = self.link.lock().poll_receive(cx, &mut sink);
        if let Some(error) = error {
            return Poll::Ready(Err(error));
        }
        if count > 0 {
            tally.add(count);
            let completed = broadcast.completed();
            if completed > 0 && self.closed_loop && stage.sending() {
                broadcast.say(completed, stage.now())?;
            }
        }
        polled
    }
}
