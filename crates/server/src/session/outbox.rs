//! The queue of stanzas on their way to one client, and the ring of those not yet acknowledged.
//!
//! Bounds are those of DESIGN.md: 256 stanzas or 1 MB, half at most from outside; the ring 500 or 2 MB.
//! When the queue is full the answer depends on what is pushed: a kept message is in the log already and
//! is read from there when the socket drains ([`Push::Behind`]); presence replaces older presence of the
//! same sender; anything else is refused by name.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::task::{Context, Waker};

use serde::{Deserialize, Serialize};
use trunkline_xmpp::stanza::{Kind, PresenceType, Stanza};

use crate::ids::LogId;
use crate::metrics::StanzaKind;

/// How much an outbox holds.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Stanzas waiting to be written.
    pub stanzas: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Stanzas written and not acknowledged (XEP-0198).
    pub ring: usize,
    /// Their bytes.
    pub ring_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { stanzas: 256, bytes: 1 << 20, ring: 500, ring_bytes: 2 << 20 }
    }
}

/// A stanza to be written.
#[derive(Clone, Debug)]
pub struct Queued {
    /// The stanza.
    pub stanza: Stanza,
    /// Its place in the log, when it is kept until acknowledged.
    pub kept: Option<LogId>,
    /// It came from another provider: counted against the outside's half.
    pub outside: bool,
    /// It may wait while the client is inactive (XEP-0352).
    pub lazy: bool,
}

impl Queued {
    /// Something the server itself says: not kept, not from outside, not held back.
    pub fn plain(stanza: Stanza) -> Queued {
        Queued { stanza, kept: None, outside: false, lazy: false }
    }
}

/// What became of a pushed stanza.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    /// It is queued.
    Queued,
    /// It is queued and the client is not disturbed for it now (XEP-0352).
    Held,
    /// The queue is full or being refilled; the stanza is kept and will be read from the log.
    Behind,
    /// It is not queued.
    Refused(PushRefusal),
}

/// Why a stanza was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushRefusal {
    /// The client doesn't read as fast as others write to it.
    OutboxFull,
    /// Other providers have filled their half.
    OutsideShareFull,
    /// The session is over.
    Ended,
}

impl PushRefusal {
    /// The name used in logs and counters.
    pub fn name(self) -> &'static str {
        match self {
            PushRefusal::OutboxFull => "outbox-full",
            PushRefusal::OutsideShareFull => "outbox-outside-share-full",
            PushRefusal::Ended => "session-ended",
        }
    }
}

/// Where a session that is behind goes on reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CatchUp {
    /// What waits for the account: the first delivery of a session.
    Pending {
        /// This one and those before are delivered.
        after: LogId,
        /// From here on the archive is read: what comes while the session catches up is for it, also when another
        /// device is faster and nothing waits any more.
        until: LogId,
    },
    /// The account's archive after this id: the queue had overflowed, or what had waited is delivered.
    Archive(LogId),
}

/// What survives of an outbox with stream management.
#[derive(Debug)]
pub struct Kept {
    /// The counter of acknowledged stanzas.
    pub acked: u32,
    /// Sent after those.
    pub unacked: Vec<Queued>,
    /// Not sent.
    pub queue: Vec<Queued>,
    /// Where to go on reading the log.
    pub catch_up: Option<CatchUp>,
    /// Of what is worth a push and not acknowledged, the first and the last.
    pub owed: Option<Box<(LogId, LogId)>>,
}

/// What [`Outbox::drain`] wrote.
#[derive(Debug, Default)]
pub struct Drained {
    /// Kept stanzas written without stream management: delivered once the bytes are on the socket.
    pub kept: Vec<LogId>,
    /// Number of stanzas written: messages, presences, requests and answers.
    pub stanzas: [usize; 3],
}

/// See the module.
#[derive(Debug)]
pub struct Outbox {
    bounds: Bounds,
    /// The connection that empties it. One that was replaced may still run for a moment, and must not take anything.
    connection: u64,
    queue: VecDeque<Queued>,
    bytes: usize,
    outside: usize,
    outside_bytes: usize,
    nonzas: Vec<u8>,
    /// `<a/>`s: written behind the stanzas, so that the error for what was not stored goes before the count of it.
    acks: Vec<u8>,
    /// `Some` with stream management on.
    ring: Option<Ring>,
    inactive: bool,
    /// Something in the queue is worth waking an inactive client for.
    urgent: bool,
    catch_up: Option<CatchUp>,
    /// Of what is worth a push and not acknowledged, the first and the last.
    owed: Option<Box<(LogId, LogId)>>,
    ended: bool,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct Ring {
    sent: u32,
    acked: u32,
    unacked: VecDeque<Queued>,
    bytes: usize,
    asked: bool,
}

impl Outbox {
    pub(super) fn new(bounds: Bounds, connection: u64) -> Outbox {
        Outbox {
            bounds,
            connection,
            queue: VecDeque::new(),
            bytes: 0,
            outside: 0,
            outside_bytes: 0,
            nonzas: Vec::new(),
            acks: Vec::new(),
            ring: None,
            inactive: false,
            urgent: false,
            catch_up: None,
            owed: None,
            ended: false,
            waker: None,
        }
    }

    /// Queues one stanza or says why not.
    pub fn push(&mut self, queued: Queued) -> Push {
        if self.ended {
            return Push::Refused(PushRefusal::Ended);
        }
        if queued.kept.is_some() && self.catch_up.is_some() {
            // What is queued has to go first, also to a client that is inactive.
            self.urgent |= !queued.lazy;
            return Push::Behind;
        }
        let size = queued.stanza.size();
        if self.queue.len() >= self.bounds.stanzas || self.bytes + size > self.bounds.bytes {
            return self.overflow(queued, PushRefusal::OutboxFull);
        }
        if queued.outside
            && (self.outside >= self.bounds.stanzas / 2 || self.outside_bytes + size > self.bounds.bytes / 2)
        {
            return self.overflow(queued, PushRefusal::OutsideShareFull);
        }
        let held = self.inactive && !self.urgent && queued.lazy;
        if held && is_broadcast_presence(&queued.stanza) && self.replace_presence(&queued) {
            return Push::Held;
        }
        self.enqueue(queued, size);
        // What is held back must not take the room of what is urgent: at half of the bounds it goes.
        if held && self.queue.len() * 2 < self.bounds.stanzas && self.bytes * 2 < self.bounds.bytes {
            return Push::Held;
        }
        self.urgent = true;
        Push::Queued
    }

    fn enqueue(&mut self, queued: Queued, size: usize) {
        self.bytes += size;
        if queued.outside {
            self.outside += 1;
            self.outside_bytes += size;
        }
        self.queue.push_back(queued);
    }

    fn overflow(&mut self, queued: Queued, why: PushRefusal) -> Push {
        // XEP-0352: also an inactive client gets everything when no more can be held back.
        self.urgent = true;
        if let Some(id) = queued.kept {
            // The log has it: from here on the log is read, in order, as the socket drains.
            self.catch_up = Some(CatchUp::Archive(LogId(id.0 - 1)));
            // Also for an inactive client: the queue has to move before the log can be read.
            self.urgent = true;
            return Push::Behind;
        }
        if is_broadcast_presence(&queued.stanza) && self.replace_presence(&queued) {
            return Push::Queued;
        }
        Push::Refused(why)
    }

    /// Puts newer presence of the same full JID in the place of older.
    fn replace_presence(&mut self, queued: &Queued) -> bool {
        let from = &queued.stanza.head.from;
        let Some(place) = self
            .queue
            .iter_mut()
            .find(|old| is_broadcast_presence(&old.stanza) && old.stanza.head.from == *from)
        else {
            return false;
        };
        let (old, new) = (place.stanza.size(), queued.stanza.size());
        let share = |outside: bool, size: usize| if outside { size } else { 0 };
        let bytes = self.bytes - old + new;
        let outside_bytes = self.outside_bytes - share(place.outside, old) + share(queued.outside, new);
        // Presence may be replaced in a queue that is full, but the queue does not grow beyond its bounds by it.
        let too_much = bytes > self.bounds.bytes || (queued.outside && outside_bytes > self.bounds.bytes / 2);
        if new > old && too_much {
            return false;
        }
        self.bytes = bytes;
        self.outside_bytes = outside_bytes;
        self.outside = self.outside + usize::from(queued.outside) - usize::from(place.outside);
        place.outside = queued.outside;
        place.stanza = queued.stanza.clone();
        true
    }

    /// Queues bytes that are not counted.
    pub fn push_nonza(&mut self, bytes: &[u8]) {
        self.nonzas.extend_from_slice(bytes);
    }

    /// Queues an `<a/>`.
    pub fn push_ack(&mut self, bytes: &[u8]) {
        self.acks.extend_from_slice(bytes);
    }

    /// So many answers wait that the client must read them before it is read again.
    pub fn owes_much(&self) -> bool {
        self.nonzas.len() + self.acks.len() > 4096
    }

    /// Stream management is on: stanzas stay in the ring until acknowledged.
    pub fn manage(&mut self) {
        self.ring.get_or_insert_default();
    }

    /// Brings back the state of a session that a snapshot has kept.
    pub fn restore(&mut self, kept: Kept) {
        let Kept { acked, unacked, queue, catch_up, owed } = kept;
        let sent = acked.wrapping_add(unacked.len() as u32);
        let bytes = unacked.iter().map(|queued| queued.stanza.size()).sum();
        self.ring = Some(Ring { sent, acked, bytes, unacked: unacked.into(), asked: false });
        for queued in queue {
            let size = queued.stanza.size();
            self.enqueue(queued, size);
        }
        self.catch_up = catch_up;
        self.owed = owed;
        self.urgent = true;
    }

    /// Another connection empties it from now on; the old one is to be woken.
    pub(super) fn attach(&mut self, connection: u64) -> Option<Waker> {
        self.connection = connection;
        self.waker.take()
    }

    /// The connection wants to be woken for the next thing to write.
    pub fn register(&mut self, connection: u64, cx: &Context<'_>) {
        if self.connection != connection {
            return;
        }
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            empty => *empty = Some(cx.waker().clone()),
        }
    }

    pub(super) fn take_waker(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    fn ring_has_room(&self) -> bool {
        self.ring
            .as_ref()
            .is_none_or(|ring| ring.unacked.len() < self.bounds.ring && ring.bytes < self.bounds.ring_bytes)
    }

    #[cfg(test)]
    fn is_ready(&self) -> bool {
        !self.nonzas.is_empty()
            || (!self.queue.is_empty() && (!self.inactive || self.urgent) && self.ring_has_room())
    }

    /// The client has not acknowledged for so long that nothing more may be sent, though there is more.
    pub fn waits_for_ack(&self) -> bool {
        !self.ring_has_room() && !self.queue.is_empty()
    }

    /// Something is sent and not acknowledged.
    pub fn has_unacked(&self) -> bool {
        self.ring.as_ref().is_some_and(|ring| !ring.unacked.is_empty())
    }

    /// The queue has room for another batch from the log or a generator.
    pub fn wants_more(&self) -> bool {
        self.queue.len() < self.bounds.stanzas / 4 && self.bytes < self.bounds.bytes / 4
    }

    /// Writes stanzas to `out` until it holds `limit` bytes.
    pub fn drain(&mut self, connection: u64, out: &mut Vec<u8>, limit: usize) -> Drained {
        let mut drained = Drained::default();
        if self.connection != connection {
            return drained;
        }
        out.append(&mut self.nonzas);
        if self.inactive && !self.urgent {
            out.append(&mut self.acks);
            return drained;
        }
        while out.len() < limit && self.ring_has_room() {
            let Some(queued) = self.queue.pop_front() else { break };
            let size = queued.stanza.size();
            self.bytes -= size;
            if queued.outside {
                self.outside -= 1;
                self.outside_bytes -= size;
            }
            queued.stanza.write(out);
            drained.stanzas[StanzaKind::of(queued.stanza.head.kind) as usize] += 1;
            match &mut self.ring {
                Some(ring) => {
                    ring.sent = ring.sent.wrapping_add(1);
                    ring.bytes += size;
                    ring.unacked.push_back(queued);
                }
                None => drained.kept.extend(queued.kept),
            }
        }
        if self.queue.is_empty() {
            self.urgent = false;
            if self.queue.capacity() > 16 {
                self.queue = VecDeque::new();
            }
        }
        out.append(&mut self.acks);
        if let Some(ring) = &mut self.ring
            && drained.stanzas != [0; 3]
            && !ring.asked
        {
            ring.asked = true;
            out.extend_from_slice(b"<r xmlns='urn:xmpp:sm:3'/>");
        }
        drained
    }

    pub(super) fn acknowledged(&mut self, h: u32) -> Result<Vec<LogId>, u32> {
        let Some(ring) = &mut self.ring else { return Err(0) };
        let count = h.wrapping_sub(ring.acked) as usize;
        if count > ring.unacked.len() {
            return Err(ring.sent);
        }
        ring.acked = h;
        ring.asked = false;
        let mut kept = Vec::new();
        for queued in ring.unacked.drain(..count) {
            ring.bytes -= queued.stanza.size();
            kept.extend(queued.kept);
        }
        if let Some((first, last)) = self.owed.as_deref().copied() {
            if kept.iter().any(|id| *id >= last) {
                self.owed = None;
            } else if kept.iter().any(|id| *id >= first) {
                let next = ring.unacked.iter().find_map(|queued| queued.kept).unwrap_or(last);
                self.owed = Some(Box::new((next.clamp(first, last), last)));
            }
        }
        if ring.unacked.is_empty() && ring.unacked.capacity() > 16 {
            ring.unacked = VecDeque::new();
        } else if !ring.unacked.is_empty() {
            // More was written since the last `<r/>`: ask again.
            ring.asked = true;
            self.nonzas.extend_from_slice(b"<r xmlns='urn:xmpp:sm:3'/>");
        }
        Ok(kept)
    }

    /// This message is on its way to the client, and worth a push if the client does not acknowledge it. Without
    /// acknowledgements nothing is owed.
    pub fn owe(&mut self, id: LogId) {
        if self.ring.is_none() {
            return;
        }
        let owed = self.owed.get_or_insert_with(|| Box::new((id, id)));
        owed.1 = owed.1.max(id);
    }

    /// When the oldest message came that is worth a push and not acknowledged.
    pub fn owes_since(&self) -> Option<i64> {
        self.owed.as_ref().map(|owed| owed.0.millis())
    }

    /// The newest message that is worth a push and not acknowledged, with the message if it is here: somebody pushes
    /// now.
    pub fn take_owed(&mut self) -> Option<(LogId, Option<Stanza>)> {
        let (_, last) = *self.owed.take()?;
        let unacked = self.ring.iter().flat_map(|ring| &ring.unacked);
        let queued = unacked.chain(&self.queue).find(|queued| queued.kept == Some(last));
        Some((last, queued.map(|queued| queued.stanza.clone())))
    }

    /// XEP-0198 s.5: the client resumed and has seen `h` stanzas; the rest is sent again, before all else.
    pub(crate) fn resumed(&mut self, h: u32) -> Result<Vec<LogId>, u32> {
        let kept = self.acknowledged(h)?;
        // They belonged to the stream that is gone.
        self.nonzas.clear();
        self.acks.clear();
        if let Some(ring) = &mut self.ring {
            ring.sent = ring.acked;
            ring.bytes = 0;
            ring.asked = false;
            let again: Vec<Queued> = ring.unacked.drain(..).collect();
            for queued in again.into_iter().rev() {
                let size = queued.stanza.size();
                self.bytes += size;
                if queued.outside {
                    self.outside += 1;
                    self.outside_bytes += size;
                }
                self.queue.push_front(queued);
            }
            self.urgent = true;
        }
        self.inactive = false;
        Ok(kept)
    }

    /// What a snapshot keeps of it; `None` without stream management.
    pub fn kept(&self) -> Option<Kept> {
        let ring = self.ring.as_ref()?;
        Some(Kept {
            acked: ring.acked,
            unacked: ring.unacked.iter().cloned().collect(),
            queue: self.queue.iter().cloned().collect(),
            catch_up: self.catch_up,
            owed: self.owed.clone(),
        })
    }

    /// XEP-0352: while a client is inactive, what may wait waits.
    pub fn set_inactive(&mut self, inactive: bool) {
        self.inactive = inactive;
        if !inactive {
            self.urgent = true;
        }
    }

    /// The client said that it is inactive.
    pub fn is_inactive(&self) -> bool {
        self.inactive
    }

    /// Where the session has to go on reading the log, if it is behind.
    pub fn catch_up(&self) -> Option<CatchUp> {
        self.catch_up
    }

    /// Starts, moves or ends (`None`) catching up. To end it, hold the account's lock: it is what keeps a
    /// live message from overtaking.
    pub fn set_catch_up(&mut self, catch_up: Option<CatchUp>) {
        self.catch_up = catch_up;
    }

    /// Queues a stanza read from the log for a session that is behind, unless it is on its way already: pushed while
    /// the client was not available.
    pub fn refill(&mut self, queued: Queued) {
        let mut under_way = self.ring.iter().flat_map(|ring| &ring.unacked).chain(&self.queue);
        if under_way.any(|old| old.kept == queued.kept) {
            return;
        }
        let size = queued.stanza.size();
        self.enqueue(queued, size);
        self.urgent = true;
    }

    /// Gives back the room of what is empty: an idle session holds none. What moves often keeps its room between two
    /// calls.
    pub(super) fn shrink(&mut self) {
        if self.queue.is_empty() {
            self.queue.shrink_to_fit();
        }
        if let Some(ring) = self.ring.as_mut().filter(|ring| ring.unacked.is_empty()) {
            ring.unacked.shrink_to_fit();
        }
        for nonzas in [&mut self.nonzas, &mut self.acks] {
            nonzas.shrink_to_fit();
        }
    }

    /// Ends the outbox; returns what was never acknowledged.
    pub fn end(&mut self) -> Vec<Queued> {
        self.ended = true;
        let mut rest = Vec::new();
        if let Some(ring) = &mut self.ring {
            rest.extend(ring.unacked.drain(..));
        }
        rest.extend(self.queue.drain(..));
        (self.bytes, self.outside, self.outside_bytes) = (0, 0, 0);
        rest
    }

    /// One line for `trunkline status`.
    pub fn summary(&self) -> String {
        let mut text = format!("{} queued, {} bytes", self.queue.len(), self.bytes);
        if let Some(ring) = &self.ring {
            let _ = write!(text, ", {} unacknowledged", ring.unacked.len());
        }
        text
    }
}

fn is_broadcast_presence(stanza: &Stanza) -> bool {
    matches!(stanza.head.kind, Kind::Presence(PresenceType::Available | PresenceType::Unavailable))
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_xmpp::jid::Jid;
    use trunkline_xmpp::stanza::MessageType;

    fn outbox(stanzas: usize) -> Outbox {
        Outbox::new(Bounds { stanzas, ..Bounds::default() }, 1)
    }

    fn presence(from: &str, show: &str) -> Queued {
        let stanza = Stanza::build(Kind::Presence(PresenceType::Available))
            .from(Jid::parse(from).unwrap())
            .body(|w| {
                w.text_element("show", show);
            })
            .done();
        Queued { stanza, kept: None, outside: false, lazy: true }
    }

    fn message(id: &str, lazy: bool, kept: Option<i64>) -> Queued {
        let stanza = Stanza::build(Kind::Message(MessageType::Chat)).id(id).done();
        Queued { stanza, kept: kept.map(LogId), outside: false, lazy }
    }

    fn written(outbox: &mut Outbox) -> String {
        let mut out = Vec::new();
        outbox.drain(1, &mut out, usize::MAX);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_inactive_client_gets_the_newest_presence_with_the_next_message() {
        let mut outbox = outbox(100);
        outbox.set_inactive(true);
        assert_eq!(outbox.push(presence("juliet@north.example/balcony", "away")), Push::Held);
        assert_eq!(outbox.push(presence("nurse@north.example/hall", "chat")), Push::Held);
        assert_eq!(outbox.push(presence("juliet@north.example/balcony", "dnd")), Push::Held);
        assert_eq!(outbox.push(message("typing", true, None)), Push::Held);
        assert!(!outbox.is_ready());
        assert_eq!(written(&mut outbox), "");
        assert_eq!(outbox.push(message("m1", false, Some(1))), Push::Queued);
        assert!(outbox.is_ready());
        let text = written(&mut outbox);
        assert!(!text.contains("away"), "{text}");
        let order: Vec<usize> =
            ["dnd", "nurse", "typing", "m1"].iter().map(|what| text.find(what).unwrap()).collect();
        assert!(order.is_sorted(), "{text}");
        assert_eq!(outbox.push(presence("juliet@north.example/balcony", "xa")), Push::Held);
        outbox.set_inactive(false);
        assert!(written(&mut outbox).contains("xa"));
    }

    #[test]
    fn what_is_held_back_never_fills_the_queue() {
        let mut outbox = outbox(8);
        outbox.set_inactive(true);
        for n in 0..3 {
            assert_eq!(outbox.push(presence(&format!("n{n}@north.example/r"), "away")), Push::Held);
        }
        assert!(!outbox.is_ready());
        assert_eq!(outbox.push(presence("n3@north.example/r", "away")), Push::Queued);
        assert!(outbox.is_ready(), "half of the queue is the most that waits");
    }

    #[test]
    fn a_message_for_an_inactive_client_whose_queue_is_full_is_read_from_the_log() {
        let mut outbox = outbox(4);
        outbox.set_inactive(true);
        for n in 1..=4 {
            assert_eq!(outbox.push(message(&format!("m{n}"), false, Some(n))), Push::Queued);
        }
        assert_eq!(outbox.push(message("m5", false, Some(5))), Push::Behind);
        assert_eq!(outbox.catch_up(), Some(CatchUp::Archive(LogId(4))));
        assert!(outbox.is_ready());
        assert!(written(&mut outbox).contains("m4"));
        assert!(outbox.wants_more());
    }

    #[test]
    fn the_counters_of_a_restored_ring_wrap() {
        let mut outbox = outbox(10);
        let kept = |n: i64| message(&format!("m{n}"), false, Some(n));
        outbox.restore(Kept {
            acked: u32::MAX - 1,
            unacked: vec![kept(1), kept(2), kept(3)],
            queue: vec![kept(4)],
            catch_up: None,
            owed: None,
        });
        // XEP-0198 s.4: the client has seen two of the three; its counter has passed 2^32.
        assert_eq!(outbox.resumed(0), Ok(vec![LogId(1), LogId(2)]));
        let text = written(&mut outbox);
        assert!(!text.contains("m2") && text.find("m3").unwrap() < text.find("m4").unwrap(), "{text}");
        assert_eq!(outbox.acknowledged(u32::MAX), Err(2), "a count that goes back");
        assert_eq!(outbox.acknowledged(3), Err(2), "more than was sent");
        assert_eq!(outbox.acknowledged(2), Ok(vec![LogId(3), LogId(4)]));
        assert_eq!(outbox.acknowledged(2), Ok(Vec::new()));
    }

    #[test]
    fn what_is_owed_is_the_oldest_that_is_not_acknowledged() {
        let mut outbox = outbox(10);
        let id = |seconds: i64| LogId::first_of(seconds * 1000);
        outbox.owe(id(1));
        assert_eq!(outbox.owes_since(), None, "without acknowledgements");
        outbox.manage();
        for second in 1..=4 {
            outbox.push(message(&format!("m{second}"), false, Some(id(second).0)));
        }
        // The third is not worth a push.
        [1, 2, 4].into_iter().for_each(|second| outbox.owe(id(second)));
        written(&mut outbox);
        assert_eq!(outbox.owes_since(), Some(1000));
        outbox.acknowledged(1).unwrap();
        assert_eq!(outbox.owes_since(), Some(2000));
        outbox.acknowledged(3).unwrap();
        assert_eq!(outbox.owes_since(), Some(4000));
        let (last, stanza) = outbox.take_owed().unwrap();
        assert_eq!((last, stanza.unwrap().head.id.as_deref()), (id(4), Some("m4")));
        assert_eq!(outbox.owes_since(), None, "pushed once");
        outbox.owe(id(5));
        outbox.push(message("m5", false, Some(id(5).0)));
        written(&mut outbox);
        outbox.acknowledged(5).unwrap();
        assert_eq!(outbox.owes_since(), None, "all acknowledged");
    }

    #[test]
    fn an_idle_outbox_holds_no_memory() {
        let mut outbox = outbox(100);
        outbox.manage();
        for id in 1..=20 {
            outbox.push(message("m", false, Some(id)));
        }
        outbox.push_nonza(b"<r xmlns='urn:xmpp:sm:3'/>");
        outbox.push_ack(b"<a xmlns='urn:xmpp:sm:3' h='1'/>");
        written(&mut outbox);
        outbox.shrink();
        assert_eq!(outbox.acknowledged(20).unwrap().len(), 20);
        outbox.shrink();
        let ring = outbox.ring.as_ref().unwrap();
        let room = [outbox.queue.capacity(), ring.unacked.capacity()];
        assert_eq!((room, [outbox.nonzas.capacity(), outbox.acks.capacity()]), ([0, 0], [0, 0]));
    }

    #[test]
    fn a_connection_that_was_replaced_takes_nothing() {
        let mut outbox = outbox(10);
        outbox.manage();
        outbox.push(message("m1", false, Some(1)));
        assert!(outbox.attach(2).is_none());
        assert_eq!(written(&mut outbox), "");
        let mut out = Vec::new();
        assert_eq!(outbox.drain(2, &mut out, usize::MAX).stanzas, [1, 0, 0]);
    }

    #[test]
    fn an_error_goes_before_the_count_of_what_it_is_about() {
        let mut outbox = outbox(10);
        outbox.manage();
        outbox.push_ack(b"<a h='7'/>");
        outbox.push(message("error", false, None));
        let text = written(&mut outbox);
        assert!(text.find("error").unwrap() < text.find("<a h").unwrap(), "{text}");
    }

    #[test]
    fn presence_that_is_replaced_keeps_the_queue_within_its_bytes() {
        let bounds = Bounds { stanzas: 4, bytes: 10_000, ..Bounds::default() };
        let mut outbox = Outbox::new(bounds, 1);
        let presence = |who: &str, bytes: usize| {
            let stanza = format!(
                "<presence from='{who}@rooms.example/a'><status>{}</status></presence>",
                "x".repeat(bytes)
            );
            Queued { outside: true, ..Queued::plain(Stanza::parse(stanza.as_bytes()).unwrap()) }
        };
        assert_eq!(outbox.push(presence("a", 10)), Push::Queued);
        assert_eq!(outbox.push(presence("b", 10)), Push::Queued);
        // The outside's share is full: newer presence may take the place of older, but not its neighbours' room.
        assert_eq!(outbox.push(presence("a", 20)), Push::Queued);
        assert_eq!(outbox.push(presence("b", 9000)), Push::Refused(PushRefusal::OutsideShareFull));
        assert!(outbox.bytes < 1000 && outbox.outside_bytes == outbox.bytes && outbox.outside == 2);
    }

    #[test]
    fn outside_fills_half_of_the_queue_only() {
        let mut outbox = outbox(4);
        let outside = |id| Queued { outside: true, ..message(id, false, None) };
        assert_eq!(outbox.push(outside("o1")), Push::Queued);
        assert_eq!(outbox.push(outside("o2")), Push::Queued);
        assert_eq!(outbox.push(outside("o3")), Push::Refused(PushRefusal::OutsideShareFull));
        assert_eq!(outbox.push(message("m1", false, None)), Push::Queued);
    }
}
