//! The reputation of a domain: computed only from what can be explained, and shown with its reasons.
//!
//! [`Facts`] are counted, fade with time, and are stored; [`judge`] makes points of them and says why. Nothing else
//! goes in: no content, no opinion of a third party.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use trunkline_store::{Batch, Lane, StoreError, sql};

use super::traffic::Event;
use crate::exchange::Exchange;
use crate::ids::Clock;
use crate::metrics::Direction;

/// The score of a domain that nothing is known about.
pub const NEUTRAL: i32 = 50;
/// Domains whose facts are kept.
const MOST: usize = 20_000;
/// Parts of them, with so many domains each at most.
const PARTS: usize = 16;
/// Milliseconds after which a fact counts half.
const HALF_LIFE: f64 = 30.0 * 86_400_000.0;
/// How often what changed is stored.
const PAUSE: Duration = Duration::from_secs(30);
/// Domains stored in one batch.
const BATCH: usize = 200;

/// What is counted about a domain. All but `first_seen` fade: [`HALF_LIFE`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Facts {
    /// Milliseconds since 1970.
    pub first_seen: i64,
    /// First contacts that were accepted.
    pub accepted: f64,
    /// First contacts that were declined.
    pub declined: f64,
    /// Reports about its users; of one reporter one in 30 days counts.
    pub reports: f64,
    /// Stanzas and streams of it that were refused.
    pub refused: f64,
    /// Stanzas from it.
    pub stanzas: f64,
    /// Up to when they have faded, milliseconds since 1970.
    pub at: i64,
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// A first contact of it was accepted.
    Accepted,
    /// A first contact of it was declined.
    Declined,
    /// One of its users was reported.
    Reported,
    /// Something of it was refused.
    Refused,
    /// A stanza came from it.
    Stanza,
}

impl Facts {
    /// As they are at `now`: faded.
    #[must_use]
    pub fn faded(mut self, now: i64) -> Facts {
        if now <= self.at {
            return self;
        }
        let left = left_of(self.at, now);
        for fact in
            [&mut self.accepted, &mut self.declined, &mut self.reports, &mut self.refused, &mut self.stanzas]
        {
            *fact *= left;
        }
        self.at = now;
        self
    }

    fn add(&mut self, sign: Sign) {
        match sign {
            Sign::Accepted => self.accepted += 1.0,
            Sign::Declined => self.declined += 1.0,
            Sign::Reported => self.reports += 1.0,
            Sign::Refused => self.refused += 1.0,
            Sign::Stanza => self.stanzas += 1.0,
        }
    }
}

/// What is left at `now` of something that counted 1 at `since`.
fn left_of(since: i64, now: i64) -> f64 {
    let age = now.saturating_sub(since).max(0);
    (-(age as f64) / HALF_LIFE).exp2()
}

/// What the facts come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// 0 to 100.
    pub score: u8,
    /// Points, and the words for them; largest first. With [`NEUTRAL`] they add up to the score, before it is held
    /// within 0 and 100.
    pub reasons: Vec<(i32, String)>,
}

/// The score of a domain and why. A pure function of its facts.
///
/// | reason | points |
/// |---|---|
/// | seen for long | up to 15, one for each 6 days |
/// | first contacts accepted | up to 20 |
/// | first contacts declined | down to -30, by their share |
/// | reports | 10 each, less for a domain that sends much: down to half; -60 at most |
/// | refusals | down to -15, by their share |
pub fn judge(facts: &Facts, now: i64) -> Judgement {
    let facts = facts.faded(now);
    let mut reasons = Vec::new();
    let mut reason = |points: f64, words: &dyn Fn() -> String| {
        let points = points.round() as i32;
        if points != 0 {
            reasons.push((points, words()));
        }
    };
    let days = now.saturating_sub(facts.first_seen).max(0) / 86_400_000;
    reason((days as f64 / 6.0).floor().min(15.0), &|| format!("first seen {days} days ago"));

    let answered = facts.accepted + facts.declined;
    // One answer says little: two imagined ones, half of them accepted, stand beside those that were given.
    let share = (facts.accepted + 1.0) / (answered + 2.0);
    let trust = (2.0 * share - 1.0).max(0.0);
    reason(20.0 * trust, &|| {
        format!("{} of {} first contacts were accepted", whole(facts.accepted), whole(answered))
    });
    let distrust = (1.0 - 2.0 * share).max(0.0);
    reason(-30.0 * distrust, &|| {
        format!("{} of {} first contacts were declined", whole(facts.declined), whole(answered))
    });

    // Of those who talk much, more are reported.
    let talk = 0.5 + 0.5 / (1.0 + facts.stanzas / 10_000.0);
    reason(-(10.0 * facts.reports * talk).min(60.0), &|| match whole(facts.reports) {
        1 => "1 report about its users".to_owned(),
        reports => format!("{reports} reports about its users"),
    });

    let seen = facts.stanzas.max(facts.refused);
    let refused = if seen > 0.0 { facts.refused / (seen + 20.0) } else { 0.0 };
    reason(-15.0 * refused, &|| {
        format!("{} of {} stanzas and streams were refused", whole(facts.refused), whole(seen))
    });

    reasons.sort_by_key(|(points, _)| -points.abs());
    let sum: i32 = NEUTRAL + reasons.iter().map(|(points, _)| points).sum::<i32>();
    Judgement { score: u8::try_from(sum.clamp(0, 100)).unwrap_or(0), reasons }
}

fn whole(number: f64) -> u64 {
    number.round() as u64
}

/// The facts of all domains.
#[derive(Debug)]
pub struct Reputation {
    clock: Clock,
    hasher: RandomState,
    /// In parts, each with a lock of its own: something is noted for every stanza from outside.
    known: [Mutex<Known>; PARTS],
}

impl Default for Reputation {
    fn default() -> Reputation {
        Reputation::new(Clock::System)
    }
}

#[derive(Debug, Default)]
struct Known {
    domains: HashMap<Box<str>, Facts>,
    /// Not stored yet.
    changed: BTreeSet<Box<str>>,
}

impl Reputation {
    /// Nothing is known yet.
    pub fn new(clock: Clock) -> Reputation {
        Reputation { clock, hasher: RandomState::new(), known: Default::default() }
    }

    /// Something was counted that may matter here. Reports are not counted so, but by who knows the reporter.
    pub(super) fn count(&self, domain: &str, event: Event) {
        let sign = match event {
            Event::Stanza { direction: Direction::In, .. } => Sign::Stanza,
            Event::Refused(_) => Sign::Refused,
            Event::Accepted => Sign::Accepted,
            Event::Declined => Sign::Declined,
            _ => return,
        };
        self.note(domain, sign);
    }

    /// Something happened. Cheap; called for every stanza.
    pub fn note(&self, domain: &str, sign: Sign) {
        let now = self.clock.now();
        let mut known = self.part(domain).lock();
        if !known.domains.contains_key(domain) {
            if known.domains.len() >= MOST / PARTS {
                known.make_room(now);
            }
            known.domains.insert(domain.into(), Facts { first_seen: now, at: now, ..Facts::default() });
        }
        if let Some(facts) = known.domains.get_mut(domain) {
            *facts = facts.faded(now);
            facts.add(sign);
        }
        if !known.changed.contains(domain) {
            known.changed.insert(domain.into());
        }
    }

    /// A moderator found nothing in a report that counts since `since`: what is left of it goes.
    pub(super) fn take_back_report(&self, domain: &str, since: i64) {
        let now = self.clock.now();
        let mut known = self.part(domain).lock();
        let Some(facts) = known.domains.get_mut(domain) else { return };
        *facts = facts.faded(now);
        facts.reports = (facts.reports - left_of(since, now)).max(0.0);
        known.changed.insert(domain.into());
    }

    fn part(&self, domain: &str) -> &Mutex<Known> {
        let part = usize::try_from(self.hasher.hash_one(domain) % PARTS as u64).unwrap_or(0);
        &self.known[part]
    }

    /// 0 to 100; [`NEUTRAL`] for whom nobody knows.
    pub fn score(&self, domain: &str) -> u8 {
        self.judgement(domain).score
    }

    /// The score and why.
    pub fn judgement(&self, domain: &str) -> Judgement {
        match self.part(domain).lock().domains.get(domain) {
            Some(facts) => judge(facts, self.clock.now()),
            None => Judgement { score: NEUTRAL as u8, reasons: Vec::new() },
        }
    }

    /// Reads what was stored.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn load(&self, exchange: &Exchange) -> Result<(), StoreError> {
        let statement = sql("SELECT domain, first_seen, accepted, declined, reports, refused, stanzas, at \
                             FROM reputation ORDER BY at DESC LIMIT ?1")
        .bind(i64::try_from(MOST).unwrap_or(i64::MAX));
        let rows = exchange.db.read(statement).await?;
        for row in rows.iter() {
            let fact = |column| row.int(column) as f64 / 1000.0;
            let facts = Facts {
                first_seen: row.int(1),
                accepted: fact(2),
                declined: fact(3),
                reports: fact(4),
                refused: fact(5),
                stanzas: fact(6),
                at: row.int(7),
            };
            let mut known = self.part(row.text(0)).lock();
            if known.domains.len() < MOST / PARTS {
                known.domains.insert(row.text(0).into(), facts);
            }
        }
        Ok(())
    }

    /// Stores what changed.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn save(&self, exchange: &Exchange) -> Result<(), StoreError> {
        loop {
            let mut changed: Vec<(Box<str>, Option<Facts>)> = Vec::new();
            for part in &self.known {
                let mut known = part.lock();
                while changed.len() < BATCH
                    && let Some(name) = known.changed.pop_first()
                {
                    let facts = known.domains.get(&name).copied();
                    changed.push((name, facts));
                }
            }
            if changed.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new(Lane::Outside);
            for (name, facts) in &changed {
                batch.push(match facts {
                    Some(facts) => row(name, facts),
                    None => sql("DELETE FROM reputation WHERE domain = ?1").bind(&**name),
                });
            }
            if let Err(error) = exchange.db.run(batch).await {
                for (name, _) in changed {
                    self.part(&name).lock().changed.insert(name);
                }
                return Err(error);
            }
        }
    }
}

fn row(name: &str, facts: &Facts) -> trunkline_store::Statement {
    let fact = |fact: f64| (fact * 1000.0).round() as i64;
    sql("INSERT INTO reputation (domain, first_seen, accepted, declined, reports, refused, stanzas, at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (domain) DO UPDATE SET \
         first_seen = excluded.first_seen, accepted = excluded.accepted, declined = excluded.declined, \
         reports = excluded.reports, refused = excluded.refused, stanzas = excluded.stanzas, at = excluded.at")
    .bind(name)
    .bind(facts.first_seen)
    .bind(fact(facts.accepted))
    .bind(fact(facts.declined))
    .bind(fact(facts.reports))
    .bind(fact(facts.refused))
    .bind(fact(facts.stanzas))
    .bind(facts.at)
}

impl Known {
    /// Forgets a tenth of the domains: those about whom least is known. What a domain did wrong is kept longest, so
    /// that a crowd of new names does not wash it away.
    fn make_room(&mut self, now: i64) {
        let weight = |facts: &Facts| {
            let facts = facts.faded(now);
            100.0 * facts.reports + 10.0 * (facts.accepted + facts.declined) + facts.refused + facts.stanzas
        };
        let mut weights: Vec<(f64, Box<str>)> =
            self.domains.iter().map(|(name, facts)| (weight(facts), name.clone())).collect();
        weights.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (_, name) in weights.into_iter().take(MOST / PARTS / 10) {
            self.domains.remove(&name);
            self.changed.insert(name);
        }
    }
}

/// Stores the facts again and again, for ever.
pub(crate) async fn keep(exchange: Arc<Exchange>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        if let Err(error) = exchange.control.reputation.save(&exchange).await {
            tracing::warn!(%error, "the reputation of domains could not be stored");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 86_400_000;
    const NOW: i64 = 1_767_225_600_000;

    fn facts() -> impl Strategy<Value = Facts> {
        let count = || prop_oneof![Just(0.0), 0.0..5.0f64, 0.0..1e6f64];
        (0..400i64, count(), count(), count(), count(), count()).prop_map(
            |(days, accepted, declined, reports, refused, stanzas)| Facts {
                first_seen: NOW - days * DAY,
                accepted,
                declined,
                reports,
                refused,
                stanzas,
                at: NOW,
            },
        )
    }

    proptest! {
        #[test]
        fn the_reasons_add_up_to_the_score(facts in facts()) {
            let judged = judge(&facts, NOW);
            let sum = NEUTRAL + judged.reasons.iter().map(|(points, _)| points).sum::<i32>();
            prop_assert_eq!(i32::from(judged.score), sum.clamp(0, 100));
            prop_assert!(judged.reasons.windows(2).all(|pair| pair[0].0.abs() >= pair[1].0.abs()));
        }

        #[test]
        fn what_is_bad_never_raises_the_score(facts in facts(), more in 0.0..100.0f64) {
            let before = judge(&facts, NOW).score;
            let reported = Facts { reports: facts.reports + more, ..facts };
            prop_assert!(judge(&reported, NOW).score <= before);
            let declined = Facts { declined: facts.declined + more, ..facts };
            prop_assert!(judge(&declined, NOW).score <= before);
            let refused = Facts { refused: facts.refused + more, ..facts };
            prop_assert!(judge(&refused, NOW).score <= before);
        }

        #[test]
        fn what_is_good_never_lowers_it(facts in facts(), more in 0.0..100.0f64, days in 0..100i64) {
            let before = judge(&facts, NOW).score;
            let accepted = Facts { accepted: facts.accepted + more, ..facts };
            prop_assert!(judge(&accepted, NOW).score >= before);
            let older = Facts { first_seen: facts.first_seen - days * DAY, ..facts };
            prop_assert!(judge(&older, NOW).score >= before);
        }

        #[test]
        fn bad_news_fades(facts in facts(), days in 0..1000i64) {
            let bad = Facts { accepted: 0.0, first_seen: NOW, ..facts };
            let later = Facts { first_seen: NOW + days * DAY, ..bad };
            prop_assert!(judge(&later, NOW + days * DAY).score >= judge(&bad, NOW).score);
        }
    }

    fn reputation() -> Reputation {
        Reputation::new(Clock::virtual_now())
    }

    #[tokio::test(start_paused = true)]
    async fn a_reputation_is_made_and_lost() {
        let reputation = reputation();
        let score = || reputation.score("a.example");
        assert_eq!(score(), 50);
        for _ in 0..18 {
            reputation.note("a.example", Sign::Accepted);
        }
        assert_eq!(score(), 68);
        for _ in 0..3 {
            reputation.note("a.example", Sign::Reported);
        }
        assert_eq!(score(), 38);
        reputation.take_back_report("a.example", reputation.clock.now());
        assert_eq!(score(), 48);
        let words = reputation.judgement("a.example").reasons;
        assert_eq!(words[0], (-20, "2 reports about its users".to_owned()));
        assert_eq!(words[1], (18, "18 of 18 first contacts were accepted".to_owned()));
        tokio::time::advance(Duration::from_secs(60 * 86_400)).await;
        assert_eq!(score(), 69, "10 for two months, 14 of what was accepted, 5 off for what was reported");
        assert_eq!(reputation.score("other.example"), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn of_an_old_report_only_what_is_left_is_taken_back() {
        let reputation = reputation();
        let first = reputation.clock.now();
        reputation.note("a.example", Sign::Reported);
        tokio::time::advance(Duration::from_secs(30 * 86_400)).await;
        reputation.note("a.example", Sign::Reported);
        assert_eq!(reputation.score("a.example"), 40, "5 for a month, 15 off");
        reputation.take_back_report("a.example", first);
        assert_eq!(reputation.score("a.example"), 45, "the newer one counts as before");
        reputation.take_back_report("b.example", first);
        assert_eq!(reputation.part("b.example").lock().domains.get("b.example"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_names_does_not_wash_reports_away() {
        let reputation = reputation();
        reputation.note("bad.example", Sign::Reported);
        for n in 0..2 * MOST {
            reputation.note(&format!("d{n}.example"), Sign::Stanza);
        }
        assert!(reputation.known.iter().map(|part| part.lock().domains.len()).sum::<usize>() <= MOST);
        assert_eq!(reputation.score("bad.example"), 40);
    }
}
