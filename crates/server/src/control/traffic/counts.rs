//! What each peer domain does, counted as it happens. Called for every stanza from outside: no await, no store, one
//! short lock of the domain's own.
//!
//! Only a domain that was proved on a stream has a row: whoever merely claims a name is counted in `other`. Domains can
//! be proved in any number too (a wildcard in DNS is enough), so there are [`MOST_DOMAINS`] rows, and those go first
//! that are young and have been silent for longest.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::super::reputation::Reputation;
use super::super::rule::Authentication;
use super::row::{Event, Exported, Point, Row, Series, TICK, WINDOW, name, trim};
use crate::ids::Clock;
use crate::metrics::Direction;

/// Peer domains that are remembered, in memory and in the store.
pub const MOST_DOMAINS: usize = 10_000;
/// Rows that make room at once when there are too many.
const ROOM: usize = MOST_DOMAINS / 16;
/// Milliseconds after which a domain is no newcomer any more: newcomers make room for newcomers first.
const SETTLED: i64 = 24 * 3600 * 1000;
/// Peer domains with a series of their own in the metrics.
pub const MOST_SERIES: usize = 20;
/// A domain with a series that twice as many are busier than loses it after so many minutes.
const SERIES_QUIET: u8 = 5;
/// Milliseconds of silence after which a domain's series can become another's.
const SERIES_IDLE: i64 = 3600 * 1000;
/// Peer domains whose last hour is remembered in steps of ten seconds.
pub(super) const MOST_DETAILED: usize = 500;
/// Ticks that are remembered: an hour.
pub(super) const RECENT: usize = 360;

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

#[cfg(test)]
#[path = "counts_tests.rs"]
mod tests;
