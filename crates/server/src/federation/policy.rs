//! Whom we talk to: what [`crate::control`] decided, carried out on the streams. And the way back after everybody was cut
//! off: not everybody at once.

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

/// Gives out turns, so many a second, while a reopening lasts. Otherwise everybody's turn is now.
#[derive(Debug, Default)]
pub(super) struct Turns {
    pace: Mutex<Option<Pace>>,
}

#[derive(Debug)]
struct Pace {
    gap: Duration,
    began: Instant,
    next: Instant,
}

impl Turns {
    fn begin(&self, per_second: u32, now: Instant) {
        let gap = Duration::from_secs(1) / per_second.max(1);
        *self.pace.lock() = Some(Pace { gap, began: now, next: now });
    }

    /// How long it is until the next turn that is free, which is taken; `None`: longer than `most`, and none is taken.
    fn take(&self, now: Instant, most: Duration) -> Option<Duration> {
        let mut pace = self.pace.lock();
        let Some(current) = pace.as_mut() else { return Some(Duration::ZERO) };
        if now > current.next + QUIET || now > current.began + LONGEST_REOPENING {
            *pace = None;
            return Some(Duration::ZERO);
        }
        let at = current.next.max(now);
        if at - now > most {
            return None;
        }
        current.next = at + current.gap;
        // Within its gap at any moment: what others do at the full second, we don't.
        let mut random = [0u8; 1];
        let _ = getrandom::fill(&mut random);
        Some(at - now + current.gap.mul_f64(f64::from(random[0]) / 256.0))
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
    pub(super) async fn turn_in(&self) -> bool {
        match self.turns_in.take(Instant::now(), LONGEST_TURN) {
            Some(wait) => {
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                true
            }
            None => false,
        }
    }

    /// Waits for the turn of an outgoing connection.
    pub(super) async fn turn_out(&self) {
        let wait = self.turns_out.take(Instant::now(), LONGEST_REOPENING).unwrap_or(LONGEST_REOPENING);
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
            self.exchange.control.traffic.count(domain.as_str(), Event::Refused(name));
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
