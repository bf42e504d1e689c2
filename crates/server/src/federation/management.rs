//! XEP-0198 Stream Management 1.6 between servers: acknowledgements. Streams are not resumed: what a broken stream had
//! not delivered goes over the next one, under the same ids.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use trunkline_xml::{Node, Writer};
use trunkline_xmpp::error::{Condition, StreamCondition};
use trunkline_xmpp::ns;

use super::elements::printable;
use super::line::{End, Line, Role};
use super::pair::Pair;
use super::queue::{Item, slim};
use crate::control::traffic::Event;
use crate::session::ledger::{Asked, Ledger};
use crate::session::management::too_high;

/// `<r/>` is answered after this with what is committed (DESIGN.md, promise 1).
const ACK_WITHIN: Duration = Duration::from_millis(500);
/// A peer that has proved its domain enables acknowledgements within this, or not at all.
pub(super) const ENABLES: Duration = Duration::from_secs(5);
/// A peer that does not acknowledge is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Acknowledgements of what we send (XEP-0198).
#[derive(Debug)]
pub(super) enum Sending {
    /// The peer does not do that: written is delivered.
    Unmanaged,
    /// `<enable/>` is sent: no stanza before the answer, so that both sides count the same.
    Enabling(Instant),
    /// The peer has come, and may still send `<enable/>`: no stanza before that, so that none is lost between the two.
    /// Until it sends another stanza instead, or for [`ENABLES`].
    Awaited(Instant),
    /// On.
    Managed(Unacked),
}

/// What the peer has not acknowledged.
#[derive(Debug, Default)]
pub(super) struct Unacked {
    pub(super) sent: VecDeque<(Arc<Pair>, Item)>,
    pub(super) bytes: usize,
    /// The `h` of the last acknowledgement.
    pub(super) acked: u32,
    /// When `<r/>` was sent that is not answered.
    pub(super) asked: Option<Instant>,
    /// The answer was less than everything: not asked again before.
    pub(super) ask_from: Option<Instant>,
}

impl Line {
    pub(super) fn management(&mut self, node: Node<'_>) -> Result<(), End> {
        match node.name() {
            "enable" if self.role == Role::In && !self.proved.is_empty() && self.ledger.is_none() => {
                self.count_received();
                self.out.extend_from_slice(&enabled());
                // From here on both sides count both ways. What was written before is not counted: it is
                // delivered when the socket has taken it.
                if matches!(self.sending, Sending::Unmanaged | Sending::Awaited(_)) {
                    self.sending = Sending::Managed(Unacked::default());
                }
                self.handle.status.lock().acks = true;
                Ok(())
            }
            "enable" => {
                self.out.extend_from_slice(&failed(Condition::UnexpectedRequest));
                Ok(())
            }
            "enabled" if matches!(self.sending, Sending::Enabling(_)) => {
                self.sending = Sending::Managed(Unacked::default());
                self.count_received();
                self.handle.status.lock().acks = true;
                Ok(())
            }
            "failed" if matches!(self.sending, Sending::Enabling(_)) => {
                self.sending = Sending::Unmanaged;
                Ok(())
            }
            "r" if self.ledger.is_some() => {
                self.asked_for_acknowledgement();
                Ok(())
            }
            "a" => match node.attr("h").and_then(|h| h.parse::<u32>().ok()) {
                Some(h) => self.acknowledged(h),
                None => Err(StreamCondition::InvalidXml.into()),
            },
            "resume" => {
                self.out.extend_from_slice(&failed(Condition::ItemNotFound));
                Ok(())
            }
            _ => {
                self.refused("management-out-of-order", printable(node.name()).as_str());
                Err(StreamCondition::UnsupportedStanzaType.into())
            }
        }
    }

    fn count_received(&mut self) {
        let settled = Arc::new(AtomicBool::new(false));
        let (flag, handle) = (Arc::clone(&settled), Arc::downgrade(&self.handle));
        self.settled = settled;
        self.ledger = Some(Ledger::new(0, move || {
            flag.store(true, Ordering::Release);
            if let Some(handle) = handle.upgrade() {
                handle.wake();
            }
        }));
    }

    pub(super) fn acknowledge_when_due(&mut self, now: Instant) {
        let Some(ledger) = &self.ledger else { return };
        let due = self.ack_due.is_some_and(|due| now >= due);
        if self.settled.swap(false, Ordering::AcqRel) || due {
            self.ack_due = None;
            self.out.extend_from_slice(&answer(ledger.handled()));
        }
    }

    /// `<r/>`: answered at once when all is committed, otherwise when it is, or soon with less.
    pub(super) fn asked_for_acknowledgement(&mut self) {
        let Some(ledger) = &self.ledger else { return };
        match ledger.ask() {
            Asked::Handled(h) => self.out.extend_from_slice(&answer(h)),
            Asked::Wait | Asked::Again => {
                self.ack_due.get_or_insert_with(|| Instant::now() + ACK_WITHIN);
            }
        }
    }

    /// `<a/>`: XEP-0198 s.4.
    pub(super) fn acknowledged(&mut self, h: u32) -> Result<(), End> {
        let Sending::Managed(unacked) = &mut self.sending else {
            return Err(StreamCondition::UnsupportedStanzaType.into());
        };
        let count = usize::try_from(h.wrapping_sub(unacked.acked)).unwrap_or(usize::MAX);
        if count > unacked.sent.len() {
            let sent = unacked.acked.wrapping_add(u32::try_from(unacked.sent.len()).unwrap_or(u32::MAX));
            return Err(End::Error(too_high(h, sent)));
        }
        unacked.acked = h;
        if let (Some(asked), true, Some((pair, _))) = (unacked.asked, count > 0, unacked.sent.front()) {
            let event = Event::Acknowledged(asked.elapsed());
            self.shared.exchange.control.traffic.count(pair.peer.as_str(), event);
        }
        unacked.asked = None;
        let done: Vec<_> = unacked.sent.drain(..count).collect();
        slim(&mut unacked.sent);
        unacked.bytes -= done.iter().map(|(_, item)| item.size()).sum::<usize>();
        unacked.ask_from = (!unacked.sent.is_empty() && count == 0).then(|| Instant::now() + ASK_AGAIN);
        self.delivered(done.into_iter());
        Ok(())
    }
}

pub(super) fn enable() -> Vec<u8> {
    empty("enable")
}

pub(super) fn enabled() -> Vec<u8> {
    empty("enabled")
}

pub(super) fn request() -> Vec<u8> {
    empty("r")
}

pub(super) fn answer(h: u32) -> Vec<u8> {
    let mut w = Writer::new();
    w.open("a").attr("xmlns", ns::SM).attr("h", &h.to_string()).close();
    w.finish()
}

pub(super) fn failed(condition: Condition) -> Vec<u8> {
    let mut w = Writer::new();
    w.open("failed").attr("xmlns", ns::SM);
    w.open(condition.as_str()).attr("xmlns", ns::STANZA_ERRORS).close();
    w.close();
    w.finish()
}

fn empty(name: &str) -> Vec<u8> {
    let mut w = Writer::new();
    w.open(name).attr("xmlns", ns::SM).close();
    w.finish()
}
