//! The history of peer domains in the store: what is known of each, and how it was, at falling resolution.
//!
//! | step | kept for | of |
//! |---|---|---|
//! | 10 s | an hour, in memory | the domains that are active, [`MOST_DETAILED`](super::counts::MOST_DETAILED) at most |
//! | 1 min | a day | all together, and the [`BUSIEST`] of that minute |
//! | 10 min | a week | all together, and the [`BUSIEST_ROLLED`] of that time |
//! | 1 h | 30 days | the same |
//!
//! One batch a minute, with bounds on what is in it: a flood of domains does not become a flood of writes.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use trunkline_store::{Batch, Db, Lane, Statement, StoreError, sql};

use super::HistoryPoint;
use super::counts::{MOST_DOMAINS, RECENT, Traffic};
use super::row::{Point, Row, TICK, Tally};
use crate::control::rule::Authentication;
use crate::exchange::Exchange;
use crate::metrics::Direction;

/// Domains that have a row in a minute.
const BUSIEST: usize = 50;
/// Domains that have rows when minutes are rolled up.
const BUSIEST_ROLLED: i64 = 100;
/// Rows of domains written in one batch.
const ROWS: usize = 200;
/// Old points deleted in one batch, of each step.
const PRUNED: i64 = 500;

const MINUTE: i64 = 60_000;
const TEN_MINUTES: i64 = 600_000;
const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;
/// How long points of each step are kept.
const KEPT: [(i64, i64); 3] = [(MINUTE, DAY), (TEN_MINUTES, 7 * DAY), (HOUR, 30 * DAY)];
/// The name of the inside among domains; no domain is called so. Its stanzas in are those from local users.
const INSIDE: &str = ".";
/// The longest history that can be asked for, in hours.
pub(super) const LONGEST: u32 = 720;

/// What the store knows of a domain beside its name and times.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Stored {
    tally: Tally,
    authentication: Option<Authentication>,
    certificate: Vec<String>,
}

/// What left memory for a batch; it comes back if that fails.
#[derive(Default)]
struct Taken {
    total: Point,
    inside: Point,
    points: Vec<(Point, Arc<Mutex<Row>>)>,
    gone: Vec<String>,
    /// Since when each was unsaved, and whether the store had a row.
    saved: Vec<(i64, bool, Arc<Mutex<Row>>)>,
}

impl Traffic {
    /// Reads what was known before the start.
    pub(crate) async fn load(&self, db: &Db) -> Result<(), StoreError> {
        let most = i64::try_from(MOST_DOMAINS).unwrap_or(i64::MAX);
        let all = sql(
            "SELECT domain, first_seen, last_seen, facts FROM peer_domains ORDER BY last_seen DESC LIMIT ?1",
        );
        for row in db.read(all.bind(most)).await?.iter() {
            // What another version wrote is no reason not to start.
            let stored: Stored = serde_json::from_str(row.text(3)).unwrap_or_default();
            let known = Row {
                first_seen: row.int(1),
                last_seen: row.int(2),
                tally: stored.tally,
                authentication: stored.authentication,
                certificate: stored.certificate,
                stored: true,
                ..Row::default()
            };
            self.add(row.text(0), known);
        }
        let beyond = sql("DELETE FROM peer_domains WHERE domain NOT IN \
             (SELECT domain FROM peer_domains ORDER BY last_seen DESC LIMIT ?1)");
        db.run(Batch::new(Lane::Outside).with(beyond.bind(most))).await.map(drop)
    }

    /// What is written now that a minute is over: its points, what has changed, what has become too old.
    fn minute(&self, now: i64) -> (Batch, Taken) {
        let at = now - now.rem_euclid(MINUTE) - MINUTE;
        let mut batch = Batch::new(Lane::Outside);
        let (minute, inside) = {
            let mut total = self.total.lock();
            (std::mem::take(&mut total.minute), std::mem::take(&mut total.inside_minute))
        };
        batch.push(insert("", at, &minute));
        if !inside.is_empty() {
            batch.push(insert(INSIDE, at, &inside));
        }
        let rows = self.rows();
        let mut busy: Vec<(Point, &str, &Arc<Mutex<Row>>)> = rows
            .iter()
            .map(|(domain, row)| (std::mem::take(&mut row.lock().minute), domain.as_str(), row))
            .filter(|(point, ..)| !point.is_empty())
            .collect();
        busy.sort_by(|a, b| b.0.weight().cmp(&a.0.weight()).then_with(|| a.1.cmp(b.1)));
        for (point, domain, _) in busy.iter().take(BUSIEST) {
            batch.push(insert(domain, at, point));
        }
        let points = busy.into_iter().map(|(point, _, row)| (point, Arc::clone(row))).collect();
        let gone = self.take_gone(ROWS);
        for domain in &gone {
            batch.push(sql("DELETE FROM peer_domains WHERE domain = ?1").bind(domain.as_str()));
        }
        let mut taken = Taken { total: minute, inside, points, gone, saved: Vec::new() };
        self.save_into((&mut batch, &mut taken), &rows);
        for (finer, step) in [(MINUTE, TEN_MINUTES), (TEN_MINUTES, HOUR)] {
            if now.rem_euclid(step) < MINUTE {
                batch.push(roll_up(finer, step, now - now.rem_euclid(step)));
            }
        }
        for (step, kept) in KEPT {
            batch.push(
                sql("DELETE FROM traffic_history WHERE (domain, step, at) IN (SELECT domain, step, at \
                     FROM traffic_history WHERE step = ?1 AND at < ?2 LIMIT ?3)")
                .bind(step)
                .bind(now - kept)
                .bind(PRUNED),
            );
        }
        (batch, taken)
    }

    /// Writes the minute that is over. If that fails, all of it is written with the next one.
    async fn write_minute(&self, db: &Db) -> Result<(), StoreError> {
        let (batch, taken) = self.minute(self.now());
        db.run(batch).await.map(drop).inspect_err(|_| self.give_back(taken))
    }

    fn give_back(&self, taken: Taken) {
        {
            let mut total = self.total.lock();
            total.minute.merge(&taken.total);
            total.inside_minute.merge(&taken.inside);
        }
        for (point, row) in taken.points {
            row.lock().minute.merge(&point);
        }
        for (dirty, stored, row) in taken.saved {
            let mut row = row.lock();
            // The older of the two: who has waited for longest goes first.
            row.dirty = dirty;
            row.stored = stored;
        }
        self.put_gone(taken.gone);
    }

    /// The rows of domains that have changed, those first that have waited for longest. False: there are more.
    fn save_into(
        &self,
        (batch, taken): (&mut Batch, &mut Taken),
        rows: &[(String, Arc<Mutex<Row>>)],
    ) -> bool {
        let mut changed: Vec<(i64, &String, &Arc<Mutex<Row>>)> = rows
            .iter()
            .map(|(domain, row)| (row.lock().dirty, domain, row))
            .filter(|(dirty, ..)| *dirty != 0)
            .collect();
        changed.sort_by_key(|(dirty, ..)| *dirty);
        for (dirty, domain, of) in changed.iter().take(ROWS) {
            let mut row = of.lock();
            let stored = Stored {
                tally: row.tally,
                authentication: row.authentication,
                certificate: row.certificate.clone(),
            };
            let facts = serde_json::to_string(&stored).unwrap_or_default();
            batch.push(
                sql("INSERT INTO peer_domains (domain, first_seen, last_seen, facts) VALUES (?1, ?2, ?3, ?4) \
                     ON CONFLICT (domain) DO UPDATE SET last_seen = excluded.last_seen, facts = excluded.facts")
                .bind(domain.as_str())
                .bind(row.first_seen)
                .bind(row.last_seen)
                .bind(facts),
            );
            taken.saved.push((*dirty, row.stored, Arc::clone(of)));
            row.dirty = 0;
            row.stored = true;
        }
        changed.len() <= ROWS
    }

    /// Writes everything that has changed: the server stops.
    pub(crate) async fn save(&self, db: &Db) -> Result<(), StoreError> {
        let rows = self.rows();
        loop {
            let mut batch = Batch::new(Lane::Outside);
            let mut taken = Taken::default();
            let done = self.save_into((&mut batch, &mut taken), &rows);
            if !batch.is_empty() {
                db.run(batch).await.inspect_err(|_| self.give_back(taken))?;
            }
            if done {
                return Ok(());
            }
        }
    }
}

/// Ticks and writes, for ever.
pub(crate) async fn keep(exchange: Arc<Exchange>) {
    let traffic = &exchange.control.traffic;
    let mut minute = traffic.now().div_euclid(MINUTE);
    loop {
        let left = TICK - traffic.now().rem_euclid(TICK);
        tokio::time::sleep(Duration::from_millis(u64::try_from(left).unwrap_or(0).max(1))).await;
        traffic.tick(exchange.metrics.traffic());
        let now = traffic.now();
        if now.div_euclid(MINUTE) == minute {
            continue;
        }
        minute = now.div_euclid(MINUTE);
        traffic.choose_series();
        if let Err(error) = traffic.write_minute(&exchange.db).await {
            tracing::warn!(%error, "the traffic of the last minute was not written: it goes with the next");
        }
    }
}

fn insert(domain: &str, at: i64, point: &Point) -> Statement {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    sql("INSERT INTO traffic_history (domain, step, at, stanzas_in, stanzas_out, bytes_in, bytes_out, refused, held, \
         reports) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
         ON CONFLICT (domain, step, at) DO UPDATE SET stanzas_in = stanzas_in + excluded.stanzas_in, \
         stanzas_out = stanzas_out + excluded.stanzas_out, bytes_in = bytes_in + excluded.bytes_in, \
         bytes_out = bytes_out + excluded.bytes_out, refused = refused + excluded.refused, \
         held = held + excluded.held, reports = reports + excluded.reports")
    .bind(domain)
    .bind(MINUTE)
    .bind(at)
    .bind(number(point.stanzas[Direction::In as usize]))
    .bind(number(point.stanzas[Direction::Out as usize]))
    .bind(number(point.bytes[Direction::In as usize]))
    .bind(number(point.bytes[Direction::Out as usize]))
    .bind(number(point.refused))
    .bind(number(point.held))
    .bind(number(point.reported))
}

/// Points of `step` made of all that is finer, up to `until`, and not rolled up yet. Doing it twice changes nothing.
fn roll_up(finer: i64, step: i64, until: i64) -> Statement {
    sql("INSERT INTO traffic_history (domain, step, at, stanzas_in, stanzas_out, bytes_in, bytes_out, refused, held, \
         reports) \
         WITH since (at) AS (SELECT COALESCE(MAX(at) + ?2, 0) FROM traffic_history WHERE domain = '' AND step = ?2), \
         fine AS (SELECT h.* FROM traffic_history h, since WHERE h.step = ?1 AND h.at >= since.at AND h.at < ?3), \
         busiest AS (SELECT domain FROM fine WHERE domain <> '.' GROUP BY domain \
         ORDER BY SUM(stanzas_in + stanzas_out + refused + held + reports) DESC LIMIT ?4) \
         SELECT domain, ?2, at - at % ?2, SUM(stanzas_in), SUM(stanzas_out), SUM(bytes_in), SUM(bytes_out), \
         SUM(refused), SUM(held), SUM(reports) FROM fine \
         WHERE domain IN ('', '.') OR domain IN (SELECT domain FROM busiest) GROUP BY domain, at - at % ?2 \
         ON CONFLICT (domain, step, at) DO UPDATE SET stanzas_in = excluded.stanzas_in, \
         stanzas_out = excluded.stanzas_out, bytes_in = excluded.bytes_in, bytes_out = excluded.bytes_out, \
         refused = excluded.refused, held = excluded.held, reports = excluded.reports")
    .bind(finer)
    .bind(step)
    .bind(until)
    .bind(BUSIEST_ROLLED)
}

/// How it was in the last `hours`: the step, and a point for each, also where nothing happened.
pub(super) async fn history(
    exchange: &Exchange,
    domain: Option<&str>,
    hours: u32,
) -> Result<(i64, Vec<HistoryPoint>), StoreError> {
    let traffic = &exchange.control.traffic;
    let now = traffic.now();
    let length = i64::from(hours) * HOUR;
    let step = match hours {
        0..=1 => TICK,
        2..=24 => MINUTE,
        25..=168 => TEN_MINUTES,
        _ => HOUR,
    };
    let end = now - now.rem_euclid(step);
    let begin = end - length + step;
    let mut points: Vec<HistoryPoint> = (begin..=end)
        .step_by(usize::try_from(step).unwrap_or(1))
        .map(|at| HistoryPoint { at, ..HistoryPoint::default() })
        .collect();
    let mut put = |(at, whose): (i64, &str), point: &Point| {
        let index = at.checked_sub(begin).filter(|since| *since >= 0).map(|since| since / step);
        let slot = index.and_then(|index| points.get_mut(usize::try_from(index).ok()?));
        if let Some(slot) = slot {
            if whose == INSIDE {
                slot.inside_in += point.stanzas[Direction::In as usize];
                slot.inside_out += point.stanzas[Direction::Out as usize];
                return;
            }
            slot.stanzas_in += point.stanzas[Direction::In as usize];
            slot.stanzas_out += point.stanzas[Direction::Out as usize];
            slot.bytes_in += point.bytes[Direction::In as usize];
            slot.bytes_out += point.bytes[Direction::Out as usize];
            slot.refused += point.refused;
            slot.held += point.held;
            slot.reports += point.reported;
        }
    };
    if step == TICK {
        debug_assert!(RECENT as i64 * TICK >= length);
        let recent: Vec<(i64, Point)> = match domain {
            None => {
                let total = traffic.total.lock();
                total.inside.iter().for_each(|(at, point)| put((*at, INSIDE), point));
                total.recent.iter().copied().collect()
            }
            Some(domain) => {
                traffic.row(domain).map(|row| row.lock().recent.iter().copied().collect()).unwrap_or_default()
            }
        };
        recent.iter().for_each(|(at, point)| put((*at, ""), point));
        return Ok((step, points));
    }
    // Coarse points as far as there are any, then finer ones up to now.
    let mut from = begin;
    for (stored, _) in KEPT.iter().rev().filter(|(stored, _)| *stored <= step) {
        let rows = exchange
            .db
            .read(
                // Of all together, the inside too.
                sql("SELECT at, stanzas_in, stanzas_out, bytes_in, bytes_out, refused, held, reports, domain \
                     FROM traffic_history WHERE domain IN (?1, iif(?1 = '', '.', ?1)) AND step = ?2 AND at >= ?3")
                .bind(domain.unwrap_or_default())
                .bind(*stored)
                .bind(from),
            )
            .await?;
        for row in rows.iter() {
            let number = |column| u64::try_from(row.int(column)).unwrap_or(0);
            let point = Point {
                stanzas: [number(1), number(2)],
                bytes: [number(3), number(4)],
                refused: number(5),
                held: number(6),
                reported: number(7),
            };
            put((row.int(0), row.text(8)), &point);
        }
        let last = sql("SELECT MAX(at) FROM traffic_history WHERE domain = '' AND step = ?1").bind(*stored);
        if let Some(last) = exchange.db.read(last).await?.first().and_then(|row| row.opt_int(0)) {
            from = from.max(last + stored);
        }
    }
    Ok((step, points))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::control::traffic::Event;
    use crate::ids::Clock;
    use crate::metrics::{Side, StanzaKind};
    use crate::serve::{Parts, Server};

    async fn server() -> Arc<Server> {
        let text = "domain = \"north.example\"\ndata_dir = \"/nonexistent\"\n";
        let config = Config::parse(text, std::path::Path::new("trunkline.toml")).unwrap();
        let parts = Parts { clock: Clock::virtual_now(), in_memory: true, ..Parts::default() };
        Server::start(config, parts).await.unwrap()
    }

    const STANZA: Event = Event::Stanza { direction: Direction::In, kind: StanzaKind::Message, bytes: 100 };

    async fn rows(exchange: &Exchange, step: i64) -> Vec<(String, i64, i64)> {
        let all =
            sql("SELECT domain, at, stanzas_in FROM traffic_history WHERE step = ?1 ORDER BY domain, at");
        let rows = exchange.db.read(all.bind(step)).await.unwrap();
        rows.iter().map(|row| (row.text(0).to_owned(), row.int(1), row.int(2))).collect()
    }

    /// One stanza a minute for a bit more than `hours`, with the roll-ups that happen meanwhile.
    async fn pass(exchange: &Exchange, minutes: i64) {
        let traffic = &exchange.control.traffic;
        for _ in 0..minutes {
            traffic.count("south.example", STANZA);
            tokio::time::advance(Duration::from_secs(60)).await;
            traffic.tick([0; 4]);
            traffic.write_minute(&exchange.db).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn minutes_become_ten_minutes_become_hours_and_old_ones_go() {
        let server = server().await;
        let exchange = server.exchange();
        let traffic = &exchange.control.traffic;
        traffic.proved("south.example", None, Vec::new());
        let start = traffic.now();
        assert_eq!(start % HOUR, 0, "the virtual clock begins at midnight");
        pass(exchange, 150).await;
        let sum = |rows: &[(String, i64, i64)], domain: &str| {
            rows.iter().filter(|row| row.0 == domain).map(|row| row.2).sum::<i64>()
        };
        for step in [MINUTE, TEN_MINUTES] {
            let rows = rows(exchange, step).await;
            assert_eq!(sum(&rows, "south.example"), 150, "{step}");
            assert_eq!(sum(&rows, ""), 150, "{step}");
        }
        let hours = rows(exchange, HOUR).await;
        let wanted =
            [("south.example".to_owned(), start, 60), ("south.example".to_owned(), start + HOUR, 60)];
        assert_eq!(hours[2..], wanted);

        // Every resolution tells the same story, the unfinished step included.
        for (hours, step, length) in [(3, MINUTE, 180), (26, TEN_MINUTES, 156), (200, HOUR, 200)] {
            for domain in [None, Some("south.example")] {
                let (found, points) = history(exchange, domain, hours).await.unwrap();
                assert_eq!((found, points.len()), (step, length));
                assert_eq!(
                    points.iter().map(|point| point.stanzas_in).sum::<u64>(),
                    150,
                    "{hours} {domain:?}"
                );
                assert_eq!(points.iter().map(|point| point.bytes_in).sum::<u64>(), 15_000);
            }
            assert_eq!(history(exchange, Some("west.example"), hours).await.unwrap().1.len(), length);
        }
        let (step, points) = history(exchange, Some("south.example"), 1).await.unwrap();
        assert_eq!((step, points.len()), (TICK, 360));
        assert_eq!(points.iter().map(|point| point.stanzas_in).sum::<u64>(), 60);

        // A day later the minutes of the first hours are gone, their tens and hours are there.
        pass(exchange, 24 * 60).await;
        let now = traffic.now();
        let minutes = rows(exchange, MINUTE).await;
        assert!(minutes.iter().all(|row| row.1 >= now - DAY), "{:?}", minutes.first());
        assert!(minutes.len() >= 2 * 1439, "{}", minutes.len());
        assert_eq!(sum(&rows(exchange, TEN_MINUTES).await, "south.example"), 150 + 1440);
        let (_, points) = history(exchange, None, 720).await.unwrap();
        assert_eq!(points.iter().map(|point| point.stanzas_in).sum::<u64>(), 150 + 1440);
        for (step, kept) in [(TEN_MINUTES, 7i64), (HOUR, 30)] {
            tokio::time::advance(Duration::from_millis(u64::try_from(kept * DAY).unwrap())).await;
            for _ in 0..3 {
                traffic.write_minute(&exchange.db).await.unwrap();
            }
            let oldest = rows(exchange, step).await.into_iter().map(|row| row.1).min();
            assert!(oldest.is_none_or(|oldest| oldest >= traffic.now() - kept * DAY), "{step}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_inside_has_a_history_of_its_own() {
        let server = server().await;
        let exchange = server.exchange();
        let traffic = &exchange.control.traffic;
        traffic.proved("south.example", None, Vec::new());
        traffic.tick(exchange.metrics.traffic());
        for _ in 0..150 {
            traffic.count("south.example", STANZA);
            for n in 0..30 {
                let direction = if n < 10 { Direction::In } else { Direction::Out };
                exchange.metrics.stanza(StanzaKind::Message, direction, Side::Inside);
            }
            tokio::time::advance(Duration::from_secs(60)).await;
            traffic.tick(exchange.metrics.traffic());
            traffic.write_minute(&exchange.db).await.unwrap();
        }
        for (hours, of) in [(1, 59..=60), (3, 150..=150), (26, 150..=150), (200, 150..=150)] {
            let (_, points) = history(exchange, None, hours).await.unwrap();
            let sum = |of: fn(&HistoryPoint) -> u64| points.iter().map(of).sum::<u64>();
            let minutes = sum(|point| point.stanzas_in);
            assert!(of.contains(&minutes), "{hours}: {minutes}");
            assert_eq!(sum(|point| point.inside_in), 10 * minutes, "{hours}");
            assert_eq!(sum(|point| point.inside_out), 20 * minutes, "{hours}");
            let (_, points) = history(exchange, Some("south.example"), hours).await.unwrap();
            assert!(points.iter().all(|point| point.inside_in == 0), "not of a domain");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_minute_that_was_not_written_goes_with_the_next() {
        let server = server().await;
        let exchange = server.exchange();
        let traffic = &exchange.control.traffic;
        traffic.proved("south.example", None, Vec::new());
        let run = |text: &'static str| exchange.db.run(Batch::new(Lane::Inside).with(sql(text)));
        run("CREATE TRIGGER broken BEFORE INSERT ON traffic_history BEGIN SELECT RAISE(ABORT, 'no'); END")
            .await
            .unwrap();
        for broken in [true, false] {
            traffic.count("south.example", STANZA);
            tokio::time::advance(Duration::from_secs(60)).await;
            traffic.tick([0; 4]);
            assert_eq!(traffic.write_minute(&exchange.db).await.is_err(), broken);
            if broken {
                run("DROP TRIGGER broken").await.unwrap();
                assert!(!traffic.row("south.example").unwrap().lock().stored);
            }
        }
        let sums: Vec<(String, i64)> =
            rows(exchange, MINUTE).await.into_iter().map(|(domain, _, sum)| (domain, sum)).collect();
        assert_eq!(sums, [(String::new(), 2), ("south.example".to_owned(), 2)]);
        let known = sql("SELECT COUNT(*) FROM peer_domains WHERE domain = 'south.example'");
        assert_eq!(exchange.db.read(known).await.unwrap().first().unwrap().int(0), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_survives_a_restart() {
        let server = server().await;
        let exchange = server.exchange();
        let traffic = &exchange.control.traffic;
        let certificate = vec!["subject: south".to_owned()];
        traffic.proved("south.example", Some(Authentication::Certificate), certificate.clone());
        let first = traffic.now();
        traffic.count("south.example", STANZA);
        tokio::time::advance(Duration::from_secs(3600)).await;
        traffic.count("south.example", Event::Declined);
        traffic.save(&exchange.db).await.unwrap();

        let again = Traffic::new(exchange.clock().clone(), Arc::default());
        again.load(&exchange.db).await.unwrap();
        assert_eq!(again.first_seen("south.example"), Some(first));
        assert_eq!(again.authentication("south.example"), Some(Authentication::Certificate));
        let facts = again.facts("south.example").unwrap();
        assert_eq!((facts.stanzas_in, facts.declined), (1, 1));
        let row = again.row("south.example").unwrap();
        assert_eq!(row.lock().certificate, certificate);
        assert_eq!(row.lock().last_seen, first + HOUR);
        // Seen again, it is not new.
        again.proved("south.example", None, Vec::new());
        assert_eq!(again.first_seen("south.example"), Some(first));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_domains_is_no_flood_of_writes() {
        let server = server().await;
        let exchange = server.exchange();
        let traffic = &exchange.control.traffic;
        for n in 0..1000 {
            let domain = format!("d{n}.example");
            traffic.proved(&domain, None, Vec::new());
            (0..=n).for_each(|_| traffic.count(&domain, STANZA));
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        traffic.tick([0; 4]);
        let (batch, _) = traffic.minute(traffic.now());
        assert!(batch.len() <= 1 + BUSIEST + 2 * ROWS + 2 + KEPT.len(), "{}", batch.len());
        exchange.db.run(batch).await.unwrap();
        let minutes = rows(exchange, MINUTE).await;
        assert_eq!(minutes.len(), BUSIEST + 1);
        assert!(minutes.iter().any(|row| row.0 == "d999.example" && row.2 == 1000));
        assert_eq!(minutes[0].2, (1..=1000).sum::<i64>(), "all together counts those without a row too");
        // Turn by turn all of them are written.
        for _ in 0..4 {
            traffic.write_minute(&exchange.db).await.unwrap();
        }
        let count = exchange.db.read(sql("SELECT COUNT(*) FROM peer_domains")).await.unwrap();
        assert_eq!(count.first().unwrap().int(0), 1000);
    }
}
