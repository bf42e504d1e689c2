//! What each peer domain does, counted as it happens. Called for every stanza from outside: no await, no store, one
//! short lock of the domain's own.
//!
//! Only a domain that was proved on a stream has a row: whoever merely claims a name is counted in `other`. Domains can
//! be proved in any number too (a wildcard in DNS is enough), so there are [`MOST_DOMAINS`] rows, and those go first
//! that are young and have been silent for longest.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use super::super::reputation::Reputation;
use super::super::rule::Authentication;
use super::latency::Latencies;
use crate::ids::Clock;
use crate::metrics::{Direction, StanzaKind};

/// Peer domains that are remembered, in memory and in the store.
pub const MOST_DOMAINS: usize = 10_000;
/// Rows that make room at once when there are too many.
const ROOM: usize = MOST_DOMAINS / 16;
/// Milliseconds after which a domain is no newcomer any more: newcomers make room for newcomers first.
const SETTLED: i64 = 24 * 3600 * 1000;
/// Names of refusals and failures for one domain. All names stand in this program; this is for the reader's peace.
const MOST_NAMES: usize = 128;
/// Peer domains with a series of their own in the metrics.
pub const MOST_SERIES: usize = 20;
/// A domain with a series that twice as many are busier than loses it after so many minutes.
const SERIES_QUIET: u8 = 5;
/// Milliseconds of silence after which a domain's series can become another's.
const SERIES_IDLE: i64 = 3600 * 1000;
/// Peer domains whose last hour is remembered in steps of ten seconds.
pub(super) const MOST_DETAILED: usize = 500;
/// Milliseconds from one tick to the next.
pub(super) const TICK: i64 = 10_000;
/// Ticks that are remembered: an hour.
pub(super) const RECENT: usize = 360;
/// Ticks of which a rate is taken: a minute.
const WINDOW: usize = 6;

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
    fn add(&mut self, event: Event) {
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
    fn add(&mut self, event: Event) {
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
    fn turn(&mut self, step: i64) {
        let passed = usize::try_from(step.saturating_sub(self.step)).unwrap_or(WINDOW);
        if passed > 0 {
            let passed = passed.min(WINDOW);
            self.steps.rotate_right(passed);
            self.steps[..passed].fill([0; 2]);
            self.step = step;
        }
    }

    fn add(&mut self, step: i64, direction: Direction) {
        self.turn(step);
        let count = &mut self.steps[0][direction as usize];
        *count = count.saturating_add(1);
    }

    fn sum(&mut self, step: i64) -> [u32; 2] {
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

fn name(names: &mut Names, event: Event) {
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
    fn count(&mut self, event: Event, now: i64) {
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

/// The counters.
#[derive(Debug)]
pub struct Traffic {
    clock: Clock,
    /// Is made of what is counted here.
    reputation: Arc<Reputation>,
    rows: RwLock<HashMap<String, Arc<Mutex<Row>>>>,
    /// Who has no row.
    other: Mutex<Row>,
    /// Who has no series of its own.
    other_series: Mutex<Series>,
    /// Refusals of the last minute: by name, in steps of ten seconds.
    refused: Mutex<Refused>,
    /// Rows that the store still has.
    gone: Mutex<Vec<String>>,
    /// All domains together, tick by tick: the last hour, and what is to be written.
    pub(super) total: Mutex<Total>,
}

/// All domains together.
#[derive(Debug, Default)]
pub(super) struct Total {
    pub(super) recent: VecDeque<(i64, Point)>,
    pub(super) minute: Point,
    /// Of the inside, the same: from local users and to them.
    pub(super) inside: VecDeque<(i64, Point)>,
    pub(super) inside_minute: Point,
    /// Stanzas a second of the last tick: inside, from outside, to the outside.
    pub(super) rates: [f64; 3],
    /// The counters at the last tick, and when that was.
    last: Option<(i64, [u64; 4])>,
}

#[derive(Debug, Default)]
struct Refused {
    step: i64,
    /// Newest first.
    steps: [BTreeMap<&'static str, u64>; WINDOW],
}

impl Refused {
    fn turn(&mut self, step: i64) {
        let passed = usize::try_from(step.saturating_sub(self.step)).unwrap_or(WINDOW).min(WINDOW);
        if passed > 0 {
            self.steps.rotate_right(passed);
            self.steps[..passed].iter_mut().for_each(BTreeMap::clear);
            self.step = step;
        }
    }
}

impl Default for Traffic {
    fn default() -> Traffic {
        Traffic::new(Clock::System, Arc::default())
    }
}

impl Traffic {
    /// Nothing was seen yet.
    pub fn new(clock: Clock, reputation: Arc<Reputation>) -> Traffic {
        Traffic {
            clock,
            reputation,
            rows: RwLock::default(),
            other: Mutex::default(),
            other_series: Mutex::default(),
            refused: Mutex::default(),
            gone: Mutex::default(),
            total: Mutex::default(),
        }
    }

    pub(super) fn now(&self) -> i64 {
        self.clock.now()
    }

    /// Counts something that `domain` (canonical) did or that was done to it.
    pub fn count(&self, domain: &str, event: Event) {
        let now = self.now();
        if let Event::Refused(name) | Event::Withheld(name) = event {
            let mut refused = self.refused.lock();
            refused.turn(now / TICK);
            *refused.steps[0].entry(name).or_default() += 1;
        }
        let row = self.row(domain);
        let exported = match &row {
            Some(row) => {
                self.reputation.count(domain, event);
                let mut row = row.lock();
                row.count(event, now);
                row.series.is_some()
            }
            None => {
                self.other.lock().count(event, now);
                false
            }
        };
        if !exported {
            let mut series = self.other_series.lock();
            series.tally.add(event);
            name(&mut series.names, event);
        }
    }

    /// A stream with `domain` is proved: from now on it has a row. `certificate` is what it showed, in words.
    pub fn proved(&self, domain: &str, authentication: Option<Authentication>, certificate: Vec<String>) {
        let now = self.now();
        let row =
            self.row(domain).unwrap_or_else(|| self.add(domain, Row { first_seen: now, ..Row::default() }));
        {
            let mut row = row.lock();
            row.authentication = authentication.or(row.authentication);
            if !certificate.is_empty() {
                row.certificate = certificate;
            }
        }
        self.count(domain, Event::Handshake);
    }

    /// When a stream with `domain` was proved for the first time: milliseconds since 1970.
    pub fn first_seen(&self, domain: &str) -> Option<i64> {
        Some(self.row(domain)?.lock().first_seen)
    }

    /// Stanzas from `domain` in the last minute.
    pub fn rate(&self, domain: &str) -> u32 {
        let now = self.now();
        self.row(domain).map_or(0, |row| row.lock().rates(now)[Direction::In as usize])
    }

    /// What each domain did in the last minute: stanzas from it, and what of it was refused.
    pub(in crate::control) fn last_minute(&self) -> Vec<(String, u32, u32)> {
        let now = self.now();
        let rows = self.rows();
        let of = |row: &Mutex<Row>| {
            let mut row = row.lock();
            (row.rates(now)[Direction::In as usize], row.refusals.sum(now / TICK)[Direction::In as usize])
        };
        rows.iter()
            .map(|(domain, row)| (domain.clone(), of(row)))
            .map(|(domain, (rate, refused))| (domain, rate, refused))
            .collect()
    }

    /// How `domain` proved itself the last time.
    pub fn authentication(&self, domain: &str) -> Option<Authentication> {
        self.row(domain)?.lock().authentication
    }

    /// Sums since `domain` was first seen, for who computes with them: accepted, declined, reported, refused, stanzas in.
    pub fn facts(&self, domain: &str) -> Option<Facts> {
        let row = self.row(domain)?;
        let row = row.lock();
        Some(Facts {
            first_seen: row.first_seen,
            stanzas_in: row.tally.stanzas(Direction::In),
            refused: row.tally.refused,
            failed: row.tally.failed,
            held: row.tally.held,
            accepted: row.tally.accepted,
            declined: row.tally.declined,
            reported: row.tally.reported,
        })
    }

    pub(super) fn row(&self, domain: &str) -> Option<Arc<Mutex<Row>>> {
        self.rows.read().get(domain).cloned()
    }

    /// All rows, in no order.
    pub(super) fn rows(&self) -> Vec<(String, Arc<Mutex<Row>>)> {
        self.rows.read().iter().map(|(domain, row)| (domain.clone(), Arc::clone(row))).collect()
    }

    /// Adds a row; the one that is there stays.
    pub(super) fn add(&self, domain: &str, row: Row) -> Arc<Mutex<Row>> {
        let mut rows = self.rows.write();
        if let Some(row) = rows.get(domain) {
            return Arc::clone(row);
        }
        if rows.len() >= MOST_DOMAINS {
            self.make_room(&mut rows);
        }
        let row = Arc::new(Mutex::new(row));
        rows.insert(domain.to_owned(), Arc::clone(&row));
        row
    }

    fn make_room(&self, rows: &mut HashMap<String, Arc<Mutex<Row>>>) {
        let now = self.now();
        let mut order: Vec<(bool, i64, String)> = rows
            .iter()
            .map(|(domain, row)| {
                let row = row.lock();
                (now - row.first_seen >= SETTLED, row.last_seen, domain.clone())
            })
            .collect();
        order.sort_unstable();
        let mut other = self.other.lock();
        let mut gone = self.gone.lock();
        for (_, _, domain) in order.into_iter().take(ROOM) {
            let Some(row) = rows.remove(&domain) else { continue };
            let mut row = row.lock();
            other.tick.merge(&row.tick);
            row.gone = true;
            if row.stored {
                gone.push(domain);
            }
        }
    }

    /// Domains that the store is to forget; at most so many.
    pub(super) fn take_gone(&self, most: usize) -> Vec<String> {
        let mut gone = self.gone.lock();
        let from = gone.len().saturating_sub(most);
        gone.split_off(from)
    }

    /// The store has not forgotten them.
    pub(super) fn put_gone(&self, domains: Vec<String>) {
        self.gone.lock().extend(domains);
    }

    /// Ten seconds are over. `counters` are stanzas since the start: from local users, from outside, to the outside, to
    /// local users.
    pub fn tick(&self, counters: [u64; 4]) {
        let now = self.now();
        let at = now - now.rem_euclid(TICK) - TICK;
        let oldest = at - RECENT as i64 * TICK;
        let mut sum = std::mem::take(&mut self.other.lock().tick);
        let mut detailed = 0;
        let mut points = Vec::new();
        for (_, row) in self.rows() {
            let point = {
                let mut row = row.lock();
                trim(&mut row.recent, oldest);
                detailed += usize::from(!row.recent.is_empty());
                let point = std::mem::take(&mut row.tick);
                row.minute.merge(&point);
                point
            };
            if !point.is_empty() {
                sum.merge(&point);
                points.push((row, point));
            }
        }
        for (row, point) in points {
            let mut row = row.lock();
            if row.recent.is_empty() {
                if detailed >= MOST_DETAILED || row.gone {
                    continue;
                }
                detailed += 1;
            }
            row.recent.push_back((at, point));
        }
        let mut total = self.total.lock();
        total.minute.merge(&sum);
        trim(&mut total.recent, oldest);
        if !sum.is_empty() {
            total.recent.push_back((at, sum));
        }
        if let Some((since, last)) = total.last
            && now > since
        {
            let seconds = (now - since) as f64 / 1000.0;
            total.rates = std::array::from_fn(|n| counters[n].saturating_sub(last[n]) as f64 / seconds);
            let [from, .., to] = std::array::from_fn::<u64, 4, _>(|n| counters[n].saturating_sub(last[n]));
            let inside = Point { stanzas: [from, to], ..Point::default() };
            total.inside_minute.merge(&inside);
            trim(&mut total.inside, oldest);
            if !inside.is_empty() {
                total.inside.push_back((at, inside));
            }
        }
        total.last = Some((now, counters));
    }

    /// What was refused in the last minute, by name.
    pub(super) fn refused_lately(&self) -> BTreeMap<String, u64> {
        let mut refused = self.refused.lock();
        refused.turn(self.now() / TICK);
        let mut sums = BTreeMap::new();
        for (name, count) in refused.steps.iter().flatten() {
            *sums.entry((*name).to_owned()).or_default() += count;
        }
        sums
    }

    /// The busiest domains of the last minute, in and out together.
    pub(super) fn busiest(&self, most: usize) -> Vec<(String, u64)> {
        let now = self.now();
        let mut busy: Vec<(String, u64)> = self
            .rows()
            .into_iter()
            .map(|(domain, row)| {
                let [incoming, outgoing] = row.lock().rates(now);
                (domain, u64::from(incoming) + u64::from(outgoing))
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        busy.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        busy.truncate(most);
        busy
    }

    /// Gives the busiest domains series of their own in the metrics; once a minute. A domain loses its series when it
    /// was silent for long, or far from the busiest for some minutes: one bad minute moves nobody. Series begin and
    /// end; no counter ever goes back.
    pub(super) fn choose_series(&self) {
        let now = self.now();
        let rows = self.rows();
        let rate = |row: &mut Row| row.rates(now).into_iter().map(u64::from).sum::<u64>();
        let mut rates: Vec<u64> = rows.iter().map(|(_, row)| rate(&mut row.lock())).collect();
        rates.sort_unstable_by_key(|rate| std::cmp::Reverse(*rate));
        let mut held = 0;
        for (_, row) in &rows {
            let mut row = row.lock();
            if row.series.is_none() {
                continue;
            }
            let own = rate(&mut row);
            let busier = rates.partition_point(|rate| *rate > own);
            row.quiet = if busier >= 2 * MOST_SERIES { row.quiet + 1 } else { 0 };
            if now - row.last_seen >= SERIES_IDLE || row.quiet >= SERIES_QUIET {
                row.series = None;
                row.quiet = 0;
            } else {
                held += 1;
            }
        }
        if held >= MOST_SERIES {
            return;
        }
        let mut busy: Vec<(u64, &Arc<Mutex<Row>>)> = rows
            .iter()
            .filter_map(|(_, row)| {
                let mut locked = row.lock();
                let [incoming, outgoing] = locked.rates(now);
                let count = u64::from(incoming) + u64::from(outgoing);
                (locked.series.is_none() && count > 0).then_some((count, row))
            })
            .collect();
        busy.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        for (_, row) in busy.into_iter().take(MOST_SERIES - held) {
            row.lock().series = Some(Box::default());
        }
    }

    /// The series of the metrics: those of domains, and `None` for all others together.
    pub(crate) fn series(&self) -> Vec<Exported> {
        let now = self.now();
        let mut all = Vec::new();
        for (domain, row) in self.rows() {
            let mut row = row.lock();
            if let Some(series) = row.series.as_deref().cloned() {
                all.push((Some(domain), series, row.latencies.quantiles(now)));
            }
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.push((None, self.other_series.lock().clone(), None));
        all
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.rows.read().len()
    }
}

/// Sums of a domain, for who computes with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Milliseconds since 1970.
    pub first_seen: i64,
    /// Stanzas from it.
    pub stanzas_in: u64,
    /// Stanzas and streams of it that were refused.
    pub refused: u64,
    /// Streams and attempts that failed.
    pub failed: u64,
    /// First contacts held.
    pub held: u64,
    /// First contacts accepted.
    pub accepted: u64,
    /// First contacts declined.
    pub declined: u64,
    /// Reports about its users.
    pub reported: u64,
}

fn trim(recent: &mut VecDeque<(i64, Point)>, oldest: i64) {
    while recent.front().is_some_and(|(at, _)| *at <= oldest) {
        recent.pop_front();
    }
    if recent.is_empty() && recent.capacity() > 0 {
        // An idle domain holds no buffer.
        recent.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZA: Event = Event::Stanza { direction: Direction::In, kind: StanzaKind::Iq, bytes: 10 };

    fn traffic() -> Traffic {
        Traffic::new(Clock::virtual_now(), Arc::default())
    }

    fn pass(seconds: u64) -> impl Future<Output = ()> {
        tokio::time::advance(Duration::from_secs(seconds))
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_a_domain_did_counts_in_the_share_of_its_refusals() {
        let traffic = traffic();
        traffic.proved("south.example", None, Vec::new());
        for _ in 0..3 {
            traffic.count("south.example", Event::Withheld("policy-rejected"));
        }
        assert_eq!(traffic.last_minute(), [("south.example".to_owned(), 0, 0)]);
        traffic.count("south.example", Event::Refused("policy-rejected"));
        assert_eq!(traffic.last_minute(), [("south.example".to_owned(), 0, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_proved_domains_have_a_row() {
        let traffic = traffic();
        traffic.count("claimed.example", STANZA);
        traffic.count("", Event::Refused("host-unknown"));
        assert_eq!((traffic.first_seen("claimed.example"), traffic.rate("claimed.example")), (None, 0));
        assert_eq!(traffic.authentication("claimed.example"), None);
        let start = traffic.now();
        traffic.proved("south.example", Some(Authentication::Dialback), Vec::new());
        pass(50).await;
        traffic.proved("south.example", None, Vec::new());
        assert_eq!(traffic.first_seen("south.example"), Some(start));
        assert_eq!(traffic.authentication("south.example"), Some(Authentication::Dialback));
        traffic.proved("south.example", Some(Authentication::Certificate), Vec::new());
        assert_eq!(traffic.authentication("south.example"), Some(Authentication::Certificate));
        assert_eq!(traffic.len(), 1);
        assert_eq!(traffic.refused_lately(), BTreeMap::from([("host-unknown".to_owned(), 1)]));
        pass(60).await;
        assert!(traffic.refused_lately().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_that_of_the_last_minute_from_the_domain() {
        let traffic = traffic();
        traffic.proved("south.example", None, Vec::new());
        for _ in 0..6 {
            traffic.count("south.example", STANZA);
            let out = Event::Stanza { direction: Direction::Out, kind: StanzaKind::Message, bytes: 1 };
            traffic.count("south.example", out);
            pass(10).await;
        }
        // The oldest ten seconds have just passed out of the minute.
        assert_eq!(traffic.rate("south.example"), 5);
        assert_eq!(traffic.busiest(9), [("south.example".to_owned(), 10)]);
        pass(30).await;
        assert_eq!(traffic.rate("south.example"), 2);
        pass(7200).await;
        assert_eq!(traffic.rate("south.example"), 0);
        assert!(traffic.busiest(9).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn domains_are_bounded_and_newcomers_make_room_first() {
        let traffic = traffic();
        traffic.proved("old.example", None, Vec::new());
        traffic.row("old.example").unwrap().lock().stored = true;
        pass(90_000).await;
        for n in 0..MOST_DOMAINS + 5000 {
            traffic.proved(&format!("d{n}.example"), None, Vec::new());
            if n == 0 {
                traffic.row("d0.example").unwrap().lock().stored = true;
            }
        }
        assert!(traffic.len() <= MOST_DOMAINS, "{}", traffic.len());
        assert!(traffic.first_seen("old.example").is_some(), "a flood of names does not make us forget");
        assert!(traffic.first_seen(&format!("d{}.example", MOST_DOMAINS + 4999)).is_some());
        assert_eq!(
            traffic.take_gone(100),
            ["d0.example"],
            "what the store does not know need not be deleted"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn detail_is_bounded_and_all_together_loses_nothing() {
        let traffic = traffic();
        for n in 0..MOST_DETAILED + 50 {
            traffic.proved(&format!("d{n}.example"), None, Vec::new());
            traffic.count(&format!("d{n}.example"), STANZA);
        }
        traffic.count("nobody.example", STANZA);
        pass(10).await;
        traffic.tick([100, 50, 0, 0]);
        let detailed = traffic.rows().iter().filter(|(_, row)| !row.lock().recent.is_empty()).count();
        assert_eq!(detailed, MOST_DETAILED);
        let total = traffic.total.lock().recent.back().copied().unwrap().1;
        assert_eq!(total.stanzas[0], MOST_DETAILED as u64 + 51);
        pass(10).await;
        traffic.tick([150, 50, 20, 0]);
        assert_eq!(traffic.total.lock().rates, [5.0, 0.0, 2.0]);
        pass(3600).await;
        traffic.tick([150, 50, 20, 0]);
        assert!(
            traffic.rows().iter().all(|(_, row)| row.lock().recent.is_empty()),
            "an hour later it is forgotten"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_busier_domain_takes_the_place_of_one_far_below() {
        let traffic = traffic();
        let named =
            || -> Vec<String> { traffic.series().into_iter().filter_map(|(domain, ..)| domain).collect() };
        let busy = |who: std::ops::Range<usize>, much: usize| {
            for n in who {
                traffic.proved(&format!("d{n}.example"), None, Vec::new());
                (0..much).for_each(|_| traffic.count(&format!("d{n}.example"), STANZA));
            }
        };
        busy(0..MOST_SERIES, 1);
        traffic.choose_series();
        let first = named();
        assert_eq!(first.len(), MOST_SERIES);
        for minute in 1..=SERIES_QUIET {
            pass(60).await;
            busy(0..MOST_SERIES, 1);
            // One less than twice as many: nobody moves.
            busy(MOST_SERIES..3 * MOST_SERIES - 1, 5);
            traffic.choose_series();
            assert_eq!(named(), first, "minute {minute}");
        }
        for minute in 1..=SERIES_QUIET {
            pass(60).await;
            busy(0..MOST_SERIES, 1);
            busy(MOST_SERIES..3 * MOST_SERIES, 5);
            traffic.choose_series();
            assert_eq!(named() == first, minute < SERIES_QUIET, "minute {minute}");
        }
        assert_eq!(named().len(), MOST_SERIES);
        assert!(!named().iter().any(|name| first.contains(name)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_busiest_have_series_of_their_own_and_no_counter_goes_back() {
        let traffic = traffic();
        let sum = |traffic: &Traffic| {
            traffic.series().iter().map(|(_, series, _)| series.tally.stanzas(Direction::In)).sum::<u64>()
        };
        for n in 0..100u32 {
            traffic.proved(&format!("d{n}.example"), None, Vec::new());
            (0..=n).for_each(|_| traffic.count(&format!("d{n}.example"), STANZA));
        }
        let before = sum(&traffic);
        traffic.choose_series();
        traffic.choose_series();
        assert_eq!(sum(&traffic), before);
        let named: Vec<String> = traffic.series().into_iter().filter_map(|(domain, ..)| domain).collect();
        assert_eq!(named.len(), MOST_SERIES);
        assert!(named.contains(&"d99.example".to_owned()) && !named.contains(&"d79.example".to_owned()));
        traffic.count("d99.example", STANZA);
        traffic.count("d0.example", Event::Refused("peer-rate"));
        let series = traffic.series();
        let of = |name: Option<&str>| {
            series.iter().find(|(domain, ..)| domain.as_deref() == name).unwrap().1.clone()
        };
        assert_eq!(of(Some("d99.example")).tally.stanzas(Direction::In), 1);
        assert_eq!(of(None).names.get(&("refused", "peer-rate")), Some(&1));
        // Others get a series only when there is room: here when one has been silent for an hour.
        pass(600).await;
        (0..500).for_each(|_| traffic.count("d1.example", STANZA));
        traffic.choose_series();
        assert!(!traffic.series().iter().any(|(domain, ..)| domain.as_deref() == Some("d1.example")));
        pass(3000).await;
        (0..500).for_each(|_| traffic.count("d1.example", STANZA));
        traffic.choose_series();
        let named: Vec<String> = traffic.series().into_iter().filter_map(|(domain, ..)| domain).collect();
        assert_eq!(named, ["d1.example"]);
    }
}
