//! Whom we talk to: what [`crate::control`] decided, carried out on the streams. And the way back after everybody was cut
//! off: not everybody at once.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use trunkline_xmpp::error::StanzaError;
use trunkline_xmpp::jid::Jid;

use super::failure::Failure;
use super::shared::Shared;
use crate::control::rule::Direction;
use crate::control::traffic::Event;
use crate::control::{Access, Case, Verdict};
use crate::route::Mail;

/// How long an incoming connection waits for its turn after a reopening; who would wait longer is sent away.
const LONGEST_TURN: Duration = Duration::from_secs(30);
/// A reopening is over when nobody has asked for a turn for this long, ...
const QUIET: Duration = Duration::from_secs(60);
/// ... and at the latest after this.
const LONGEST_REOPENING: Duration = Duration::from_secs(3600);

/// Of the turns that are free, who has one to come already gets only each so-manieth behind it: whoever comes with many
/// connections leaves nine in ten to others.
const SPREAD: u64 = 10;

/// Gives out turns, so many a second, while a reopening lasts. Otherwise everybody's turn is now.
#[derive(Debug, Default)]
pub(super) struct Turns {
    pace: Mutex<Option<Pace>>,
}

#[derive(Debug)]
struct Pace {
    gap: Duration,
    began: Instant,
    /// Turns that are given and have not come, counted from the beginning, and whose they are. Not more than there are
    /// in the longest wait that is allowed.
    given: BTreeMap<u64, Arc<str>>,
    /// The last turn of each who has one to come.
    last: HashMap<Arc<str>, u64>,
    /// No turn before this one is free.
    free: u64,
}

impl Pace {
    fn at(&self, turn: u64) -> Instant {
        let millionths = u64::try_from(self.gap.as_micros()).unwrap_or(u64::MAX).saturating_mul(turn);
        self.began + Duration::from_micros(millionths).min(2 * LONGEST_REOPENING)
    }

    /// Forgets turns that have come. The first one that has not.
    fn forget(&mut self, now: Instant) -> u64 {
        let passed = now.duration_since(self.began).as_micros();
        let next = u64::try_from(passed.div_ceil(self.gap.as_micros().max(1))).unwrap_or(u64::MAX);
        while let Some(first) = self.given.first_entry().filter(|first| *first.key() < next) {
            let (turn, whose) = first.remove_entry();
            if self.last.get(&whose) == Some(&turn) {
                self.last.remove(&whose);
            }
        }
        next
    }
}

impl Turns {
    fn begin(&self, per_second: u32, now: Instant) {
        let gap = Duration::from_secs(1) / per_second.max(1);
        let (given, last) = Default::default();
        *self.pace.lock() = Some(Pace { gap, began: now, given, last, free: 0 });
    }

    /// How long it is until the next turn that `whose` may have, which is taken; `None`: longer than `most`, and none is
    /// taken.
    fn take(&self, whose: &str, now: Instant, most: Duration) -> Option<Duration> {
        let mut pace = self.pace.lock();
        let Some(current) = pace.as_mut() else { return Some(Duration::ZERO) };
        let latest =
            current.given.last_key_value().map_or(current.at(current.free), |(turn, _)| current.at(*turn));
        if now > latest + QUIET || now > current.began + LONGEST_REOPENING {
            *pace = None;
            return Some(Duration::ZERO);
        }
        let next = current.forget(now);
        current.free = current.free.max(next);
        let last = current.last.get(whose).map(|turn| turn + SPREAD);
        let mut turn = last.unwrap_or(0).max(current.free);
        while current.given.contains_key(&turn) {
            turn += 1;
        }
        let wait = current.at(turn).saturating_duration_since(now);
        if wait > most {
            return None;
        }
        let whose: Arc<str> = whose.into();
        current.given.insert(turn, Arc::clone(&whose));
        current.last.insert(whose, turn);
        while current.given.contains_key(&current.free) {
            current.free += 1;
        }
        // Within its gap at any moment: what others do at the full second, we don't.
        let mut random = [0u8; 1];
        let _ = getrandom::fill(&mut random);
        Some(wait + current.gap.mul_f64(f64::from(random[0]) / 256.0))
    }
}

/// Who an address is as far as turns go: of IPv6 its /64, which is what one machine has.
fn whose(address: &str) -> String {
    match address.parse::<SocketAddr>().map(|address| address.ip().to_canonical()) {
        Ok(IpAddr::V6(ip)) => {
            let [a, b, c, d, ..] = ip.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}")
        }
        Ok(ip) => ip.to_string(),
        Err(_) => address.to_owned(),
    }
}

impl Shared {
    /// Anything at all goes in or out. Who looks first after everybody was cut off begins the reopening.
    pub(super) fn is_open(&self) -> bool {
        let open = self.exchange.control.is_open();
        if !open {
            self.was_closed.store(true, Ordering::Release);
        } else if self.was_closed.load(Ordering::Acquire) && self.was_closed.swap(false, Ordering::AcqRel) {
            let per_second = self.exchange.config.load().federation.reopen_per_second;
            let now = Instant::now();
            self.turns_in.begin(per_second, now);
            self.turns_out.begin(per_second, now);
            tracing::info!(
                per_second,
                "the outside is open again: connections come back one after the other"
            );
        }
        open
    }

    /// Waits for the turn of an incoming connection. False: there are too many, it is to try again later.
    pub(super) async fn turn_in(&self, address: &str) -> bool {
        match self.turns_in.take(&whose(address), Instant::now(), LONGEST_TURN) {
            Some(wait) => {
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                true
            }
            None => false,
        }
    }

    /// Waits for the turn of an outgoing connection to a domain; an empty name: of one that only answers, whatever the
    /// domain. Others could make us want as many of those as they like.
    pub(super) async fn turn_out(&self, domain: &str) {
        let wait =
            self.turns_out.take(domain, Instant::now(), LONGEST_REOPENING).unwrap_or(LONGEST_REOPENING);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Ready when `domain` (`None`: anybody) may not be talked to.
    pub(super) async fn until_forbidden(&self, domain: Option<&str>) -> Option<Failure> {
        loop {
            let changed = self.policy.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if !self.is_open() {
                return domain.and_then(|domain| self.forbidden(domain));
            }
            if let Some(failure) = domain.and_then(|domain| self.forbidden(domain)) {
                return Some(failure);
            }
            changed.await;
        }
    }

    /// `domain` may be talked to.
    pub(super) fn may_talk(&self, domain: &str) -> bool {
        self.exchange.control.access(domain) == Access::Open
    }

    /// Why `domain` may not be talked to; `None`: it may.
    pub(super) fn forbidden(&self, domain: &str) -> Option<Failure> {
        match self.exchange.control.access(domain) {
            Access::Open => None,
            Access::Blocked(reason) => Some(Failure::Policy(reason)),
            Access::Closed(reason) => Some(Failure::CutOff(reason)),
        }
    }

    /// The edge, on the way out. The server's own answers are not judged: they are what the policy says.
    pub(super) fn judge_outgoing(&self, domain: &Jid, mail: Mail) -> Result<Option<Mail>, StanzaError> {
        if mail.is_answer() {
            return Ok(Some(mail));
        }
        let case =
            Case { direction: Direction::Out, domain: domain.as_str(), stanza: &mail.stanza, relation: None };
        let decision = self.exchange.control.judge(&case);
        let refused = |name| {
            self.exchange.metrics.refused(name);
            self.exchange.control.traffic.count(domain.as_str(), Event::Withheld(name));
        };
        match decision.verdict {
            Verdict::Reject(error) => {
                refused("policy-rejected");
                Err(error)
            }
            // It vanishes: its sender is not to know.
            Verdict::Drop => {
                refused("policy-dropped");
                Ok(None)
            }
            Verdict::Allow | Verdict::Undecided | Verdict::Hold => {
                let stanza = decision.carried_out(mail.stanza.clone(), Direction::Out).inspect_err(|_| {
                    refused("policy-text-only");
                })?;
                Ok(Some(Mail { stanza, ..mail }))
            }
        }
    }

    /// Dialback may prove `domain`, and prove us to it.
    pub(super) fn dialback_with(&self, domain: &str) -> bool {
        self.exchange.config.load().federation.dialback_with(domain)
    }

    pub(super) fn policy_changed(&self) {
        // A reopening begins before anybody is woken.
        self.is_open();
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.policy.notify_waiters();
        let lines: Vec<_> = self.lines.lock().values().cloned().collect();
        for line in lines {
            line.wake();
        }
        for peer in self.peers.all() {
            let pairs: Vec<_> = peer.pairs.lock().values().cloned().collect();
            for pair in pairs {
                pair.hurry();
            }
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_comes_with_many_leaves_turns_to_others() {
        let (turns, now) = (Turns::default(), Instant::now());
        turns.begin(20, now);
        // As many as are taken from one address: not more than each tenth turn of the half minute.
        let flood = (0..2000).filter(|_| turns.take("192.0.2.1", now, LONGEST_TURN).is_some()).count();
        assert_eq!(flood, 61);
        // All others find a place, and those who come first soon.
        let gap = Duration::from_millis(50);
        for n in 0..100u32 {
            let wait = turns.take(&format!("198.51.100.{n}"), now, LONGEST_TURN).unwrap();
            assert!(wait < gap * (n + n / 9 + 3), "{n}: {wait:?}");
        }
        // Together they keep the pace.
        let given = |turns: &Turns| turns.pace.lock().as_ref().map_or(0, |pace| pace.given.len());
        assert_eq!(given(&turns), 161);
        // What has come is forgotten, and what is full says so.
        let later = now + Duration::from_secs(10);
        assert!(turns.take("203.0.113.1", later, LONGEST_TURN).is_some());
        assert_eq!(given(&turns), 161 - 100 - 20 + 1);
        let many = (0..2000).filter(|n| turns.take(&format!("d{n}"), later, LONGEST_TURN).is_some()).count();
        assert!((550..=600).contains(&many), "{many}");
        assert!(turns.take("late", later, LONGEST_TURN).is_none());
    }

    #[test]
    fn a_machine_has_many_addresses() {
        assert_eq!(whose("192.0.2.1:5000"), whose("192.0.2.1:6000"));
        assert_ne!(whose("192.0.2.1:5000"), whose("192.0.2.2:5000"));
        assert_eq!(whose("[2001:db8::1]:1"), whose("[2001:db8::ffff:1]:2"));
        assert_ne!(whose("[2001:db8::1]:1"), whose("[2001:db8:0:1::1]:1"));
        assert_eq!(whose("[::ffff:192.0.2.1]:1"), whose("192.0.2.1:2"));
    }
}
