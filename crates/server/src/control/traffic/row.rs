//! What is counted of one domain, and in what: sums, steps of time, rates.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::rule::Authentication;
use super::latency::Latencies;
use crate::metrics::{Direction, StanzaKind};

/// Names of refusals and failures for one domain. All names stand in this program; this is for the reader's peace.
const MOST_NAMES: usize = 128;
/// Milliseconds from one tick to the next.
pub(super) const TICK: i64 = 10_000;
/// Ticks of which a rate is taken: a minute.
pub(super) const WINDOW: usize = 6;

/// Something to be counted.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A stanza from the domain or to it.
    Stanza {
        /// Seen from the server.
        direction: Direction,
        /// Which.
        kind: StanzaKind,
        /// Its size.
        bytes: usize,
    },
    /// A stanza or stream of it was refused, by the name of the refusal.
    Refused(&'static str),
    /// A stanza of ours to it was refused, by the name of the refusal: that says nothing about the domain.
    Withheld(&'static str),
    /// A first contact is held for consent.
    Held,
    /// A first contact was accepted.
    Accepted,
    /// A first contact was declined.
    Declined,
    /// One of its users was reported.
    Reported,
    /// A stream was proved, in either direction. [`Traffic::proved`] counts it.
    Handshake,
    /// An attempt to reach it or a stream failed, by the name of the failure.
    Failed(&'static str),
    /// It has acknowledged (XEP-0198) what it was sent, so long after it was asked.
    Acknowledged(Duration),
}

/// Sums since a domain was first seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Tally {
    /// By kind, then direction.
    pub(crate) stanzas: [[u64; 2]; 3],
    pub(crate) bytes: [[u64; 2]; 3],
    pub(crate) handshakes: u64,
    pub(crate) failed: u64,
    pub(crate) refused: u64,
    pub(crate) held: u64,
    pub(crate) accepted: u64,
    pub(crate) declined: u64,
    pub(crate) reported: u64,
}

impl Tally {
    pub(super) fn add(&mut self, event: Event) {
        match event {
            Event::Stanza { direction, kind, bytes } => {
                self.stanzas[kind as usize][direction as usize] += 1;
                self.bytes[kind as usize][direction as usize] += bytes as u64;
            }
            Event::Refused(_) | Event::Withheld(_) => self.refused += 1,
            Event::Held => self.held += 1,
            Event::Accepted => self.accepted += 1,
            Event::Declined => self.declined += 1,
            Event::Reported => self.reported += 1,
            Event::Handshake => self.handshakes += 1,
            Event::Failed(_) => self.failed += 1,
            Event::Acknowledged(_) => {}
        }
    }

    pub(crate) fn stanzas(&self, direction: Direction) -> u64 {
        self.stanzas.iter().map(|kind| kind[direction as usize]).sum()
    }
}

/// What happened within one step of the history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) stanzas: [u64; 2],
    pub(crate) bytes: [u64; 2],
    pub(crate) refused: u64,
    pub(crate) held: u64,
    pub(crate) reported: u64,
}

impl Point {
    pub(super) fn add(&mut self, event: Event) {
        match event {
            Event::Stanza { direction, bytes, .. } => {
                self.stanzas[direction as usize] += 1;
                self.bytes[direction as usize] += bytes as u64;
            }
            Event::Refused(_) | Event::Withheld(_) => self.refused += 1,
            Event::Held => self.held += 1,
            Event::Reported => self.reported += 1,
            _ => {}
        }
    }

    pub(crate) fn merge(&mut self, other: &Point) {
        for direction in 0..2 {
            self.stanzas[direction] += other.stanzas[direction];
            self.bytes[direction] += other.bytes[direction];
        }
        self.refused += other.refused;
        self.held += other.held;
        self.reported += other.reported;
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Point::default()
    }

    /// How much there is to tell.
    pub(crate) fn weight(&self) -> u64 {
        self.stanzas[0] + self.stanzas[1] + self.refused + self.held + self.reported
    }
}

/// Stanzas of the last minute, in steps of ten seconds.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The step that `steps[0]` stands for.
    step: i64,
    steps: [[u32; 2]; WINDOW],
}

impl Window {
    pub(super) fn turn(&mut self, step: i64) {
        let passed = usize::try_from(step.saturating_sub(self.step)).unwrap_or(WINDOW);
        if passed > 0 {
            let passed = passed.min(WINDOW);
            self.steps.rotate_right(passed);
            self.steps[..passed].fill([0; 2]);
            self.step = step;
        }
    }

    pub(super) fn add(&mut self, step: i64, direction: Direction) {
        self.turn(step);
        let count = &mut self.steps[0][direction as usize];
        *count = count.saturating_add(1);
    }

    pub(super) fn sum(&mut self, step: i64) -> [u32; 2] {
        self.turn(step);
        self.steps
            .iter()
            .fold([0; 2], |sum, step| [sum[0].saturating_add(step[0]), sum[1].saturating_add(step[1])])
    }
}

/// What the metrics show of one domain, or of all others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    pub(crate) tally: Tally,
    pub(crate) names: Names,
}

/// A domain (`None`: all others), its counts, and how late it acknowledges: median and 99th percentile.
pub(crate) type Exported = (Option<String>, Series, Option<(f64, f64)>);

/// Counts by name: `refused` or `failed`, and the name.
pub(crate) type Names = BTreeMap<(&'static str, &'static str), u64>;

pub(super) fn name(names: &mut Names, event: Event) {
    let key = match event {
        Event::Refused(name) | Event::Withheld(name) => ("refused", name),
        Event::Failed(name) => ("failed", name),
        _ => return,
    };
    if let Some(count) = names.get_mut(&key) {
        *count += 1;
    } else {
        let key = if names.len() < MOST_NAMES { key } else { (key.0, "other") };
        *names.entry(key).or_default() += 1;
    }
}

/// What is known of one domain.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) first_seen: i64,
    pub(crate) last_seen: i64,
    pub(crate) authentication: Option<Authentication>,
    /// Subject, issuer and end of the certificate that it showed last, in words.
    pub(crate) certificate: Vec<String>,
    pub(crate) tally: Tally,
    /// Since the start.
    pub(crate) names: Names,
    pub(crate) latencies: Latencies,
    pub(super) window: Window,
    /// What was refused of its own, in the same steps.
    pub(super) refusals: Window,
    /// Since the last tick.
    pub(super) tick: Point,
    /// Since the last minute was written.
    pub(crate) minute: Point,
    /// The last hour: begin of the step, and what was in it; empty ones are left out.
    pub(crate) recent: VecDeque<(i64, Point)>,
    pub(super) series: Option<Box<Series>>,
    /// Minutes on end that it was far from the busiest, while it has a series.
    pub(super) quiet: u8,
    /// Since when the store does not know all of it; 0: it does.
    pub(crate) dirty: i64,
    /// The store has a row.
    pub(crate) stored: bool,
    /// Its row was removed here: nobody counts in it any more.
    pub(super) gone: bool,
}

impl Row {
    pub(super) fn count(&mut self, event: Event, now: i64) {
        self.tally.add(event);
        self.tick.add(event);
        name(&mut self.names, event);
        match event {
            Event::Stanza { direction, .. } => self.window.add(now / TICK, direction),
            Event::Refused(_) => self.refusals.add(now / TICK, Direction::In),
            Event::Acknowledged(after) => self.latencies.add(after, now),
            _ => {}
        }
        if let Some(series) = &mut self.series {
            series.tally.add(event);
            name(&mut series.names, event);
        }
        self.last_seen = self.last_seen.max(now);
        if self.dirty == 0 {
            self.dirty = now;
        }
    }

    /// Stanzas of the last minute, in and out.
    pub(crate) fn rates(&mut self, now: i64) -> [u32; 2] {
        self.window.sum(now / TICK)
    }
}

pub(super) fn trim(recent: &mut VecDeque<(i64, Point)>, oldest: i64) {
    while recent.front().is_some_and(|(at, _)| *at <= oldest) {
        recent.pop_front();
    }
    if recent.is_empty() && recent.capacity() > 0 {
        // An idle domain holds no buffer.
        recent.shrink_to_fit();
    }
}
