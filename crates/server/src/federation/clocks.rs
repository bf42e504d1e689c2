//! What time does to a stream: proofs that do not come, silence, overdue acknowledgements, farewells to the idle.

use std::time::Duration;

use tokio::time::Instant;
use trunkline_xmpp::error::{StreamCondition, StreamError};

use super::line::{End, Line};
use super::management::{self, ENABLES, Sending};

/// How long a stanza of a peer waits for room in the crossing, before it is refused by name.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How soon something overdue is looked at again.
const OVERDUE: Duration = Duration::from_millis(20);
/// A peer silent for this long after it was asked for a sign of life is gone.
const DEAD: Duration = Duration::from_secs(60);

/// When what happened last.
#[derive(Debug)]
pub(super) struct Clocks {
    /// Until then the peer must have proved a domain.
    pub(super) prove_by: Option<Instant>,
    /// A stanza, either way.
    pub(super) stanza: Instant,
    pub(super) heard: Instant,
    pub(super) written: Instant,
    /// The socket takes nothing since.
    pub(super) blocked: Option<Instant>,
    /// An element began and is not complete.
    pub(super) partial: Option<Instant>,
    /// Not read until then: the peer is over its rate.
    pub(super) brake: Option<Instant>,
    /// A stanza waits for room in the crossing since.
    pub(super) crowded: Option<Instant>,
}

impl Clocks {
    pub(super) fn new(now: Instant) -> Clocks {
        Clocks {
            prove_by: None,
            stanza: now,
            heard: now,
            written: now,
            blocked: None,
            partial: None,
            brake: None,
            crowded: None,
        }
    }
}

impl Line {
    pub(super) fn next_deadline(&self) -> Instant {
        let config = self.shared.exchange.config.load();
        let clocks = &self.clocks;
        let now = Instant::now();
        let mut next = now + DEAD;
        // What is overdue and still waits for something is looked at again after a while, not at once.
        let mut at = |deadline: Option<Instant>| {
            if let Some(deadline) = deadline {
                next = next.min(if deadline > now { deadline } else { now + OVERDUE });
            }
        };
        let quiet = clocks.heard.max(clocks.written) + config.federation.ping_interval;
        at(Some(clocks.stanza + config.federation.idle_timeout));
        at(Some(quiet));
        at(clocks.prove_by);
        at(self.ack_due);
        at(self.hold);
        at(clocks.brake);
        at(clocks.crowded.map(|since| since + PATIENCE));
        at(clocks.blocked.map(|since| since + config.limits.outbox_standstill));
        at(clocks.partial.map(|since| since + config.limits.element_timeout));
        match &self.sending {
            Sending::Enabling(since) => at(Some(*since + DEAD)),
            Sending::Awaited(since) => at(Some(*since + ENABLES)),
            Sending::Managed(unacked) => {
                at(unacked.asked.map(|since| since.max(clocks.heard) + DEAD));
                at(unacked.ask_from);
            }
            Sending::Unmanaged => {}
        }
        next
    }

    pub(super) fn check_clocks(&mut self, now: Instant) -> Result<(), End> {
        let config = self.shared.exchange.config.load();
        let passed = |since: Option<Instant>, span: Duration| since.is_some_and(|since| now >= since + span);
        if self.clocks.prove_by.is_some_and(|by| now >= by) {
            self.refused("proof-timeout", "no domain was proved in time");
            return Err(End::Error(
                StreamError::new(StreamCondition::ConnectionTimeout).text("No domain was proved in time."),
            ));
        }
        if passed(self.clocks.blocked, config.limits.outbox_standstill) {
            return Err(End::Lost("the peer reads nothing".into()));
        }
        if passed(self.clocks.partial, config.limits.element_timeout) {
            self.refused("element-timeout", "an element did not end in time");
            return Err(End::Error(
                StreamError::new(StreamCondition::PolicyViolation).text("An element took too long."),
            ));
        }
        if matches!(&self.sending, Sending::Awaited(since) if now >= *since + ENABLES) {
            self.sending = Sending::Unmanaged;
        }
        let silent = match &self.sending {
            Sending::Enabling(since) => now >= *since + DEAD,
            Sending::Managed(unacked) => {
                passed(unacked.asked.map(|since| since.max(self.clocks.heard)), DEAD)
            }
            Sending::Unmanaged | Sending::Awaited(_) => false,
        };
        if silent {
            return Err(End::Lost("the peer does not answer".into()));
        }
        if now >= self.clocks.stanza + config.federation.idle_timeout && self.is_settled() {
            return Err(End::Idle);
        }
        if now >= self.clocks.heard.max(self.clocks.written) + config.federation.ping_interval {
            // RFC 6120 s.4.6.1: a peer that acknowledges shows that it is there, of others the socket must do.
            match &mut self.sending {
                Sending::Managed(unacked) if unacked.asked.is_none() => {
                    unacked.asked = Some(now);
                    self.out.extend_from_slice(&management::request());
                }
                _ => self.out.push(b' '),
            }
        }
        if self.clocks.brake.is_some_and(|until| now >= until) {
            self.clocks.brake = None;
        }
        Ok(())
    }

    /// Nothing is on its way in either direction.
    fn is_settled(&self) -> bool {
        let acknowledged = match &self.sending {
            Sending::Managed(unacked) => unacked.sent.is_empty(),
            Sending::Unmanaged | Sending::Enabling(_) | Sending::Awaited(_) => true,
        };
        acknowledged
            && self.writing.is_empty()
            && self.out.is_empty()
            && self.ledger.as_ref().is_none_or(|ledger| ledger.is_settled())
    }
}
