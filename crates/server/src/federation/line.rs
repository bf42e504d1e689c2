//! A federation stream that is up, or an incoming one that proves itself: one task, one socket, every pair of domains
//! that it carries. `socket - scan - proof - crossing` one way, `queues - write - socket` the other.
//!
//! Here is the machinery: reading, writing, the end. What elements mean is in [`super::elements`], acknowledgements are
//! in [`super::management`], time is in [`super::clocks`].

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future as _, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead as _, AsyncWrite as _, AsyncWriteExt as _, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};
use trunkline_xml::Scanner;
use trunkline_xmpp::error::{StreamCondition, StreamError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::Kind;

use super::budget::{Claim, Footprint, Unproved};
use super::clocks::{Clocks, PATIENCE};
use super::crossing::Ticket;
use super::dialback::{self, Dialback, Say};
use super::failure::Failure;
use super::handle::{Command, Handle};
use super::management::{self, Sending};
use super::pair::{Pair, Parting, Room};
use super::peer::Peer;
use super::queue::Item;
use super::shared::Shared;
use super::wire;
use crate::control::traffic::Event;
use crate::exchange::Host;
use crate::logging::Refusal;
use crate::metrics::{Direction, Link, Side, StanzaKind};
use crate::net::{TlsInfo, Transport};
use crate::session::ledger::{Ledger, Loss};

/// Bytes read at once; the buffer belongs to the thread.
const READ: usize = 16 * 1024;
/// Bytes gathered for one write.
const CHUNK: usize = 16 * 1024;
/// Stanzas that one of the pairs of a stream sends before it is another's turn.
const TURN: usize = 64;
/// How long the row of a message is held back while the peer may acknowledge it (design/009-federation-speed.md).
const HOLD: Duration = Duration::from_millis(150);
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(5);
/// The same where the outside is cut off: within a second everything is over.
const CUT_OFF: Duration = Duration::from_millis(500);
/// Beyond this many bytes of answers that the peer doesn't read, it isn't read either.
const MOST_UNREAD: usize = 64 * 1024;

/// Answers, and their bytes, that may wait for a peer where the memory for all peers gets short.
const FEW_ANSWERS: (usize, usize) = (16, 16 * 1024);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
}

/// Who connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The peer.
    In,
    /// We.
    Out,
}

/// What is expected next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A stream header.
    Header,
    /// Elements.
    Open,
}

/// Why a stream ends.
#[derive(Debug)]
pub(super) enum End {
    /// The peer closed it.
    Closed,
    /// The connection broke.
    Lost(String),
    /// The peer ended it with an error.
    Peer(Failure),
    /// We end it with an error.
    Error(StreamError),
    /// The policy does not let it go on.
    Forbidden(Failure),
    /// Nothing happened on it for long.
    Idle,
    /// The server stops.
    Shutdown,
}

impl From<StreamCondition> for End {
    fn from(condition: StreamCondition) -> End {
        End::Error(StreamError::new(condition))
    }
}

/// A pair of domains for which the peer may send: it proved the first, the second is ours.
#[derive(Debug)]
pub(super) struct Proved {
    pub(super) peer: Arc<Peer>,
    pub(super) local: Arc<Host>,
    /// What it takes of its address; `None` on a stream of ours.
    pub(super) _place: Option<Claim<IpAddr>>,
}

/// A stream.
pub(super) struct Line {
    pub(super) shared: Arc<Shared>,
    pub(super) handle: Arc<Handle>,
    /// Its place among the incoming ones, until a domain is proved.
    pub(super) unproved: Option<Unproved>,
    /// Its places among the streams of each domain that is proved on it.
    pub(super) streams: Vec<Claim<Jid>>,
    /// The bytes in its buffers.
    pub(super) footprint: Footprint,
    /// Where it waits when the crossing is full.
    pub(super) ticket: Ticket,
    pub(super) role: Role,
    pub(super) stage: Stage,
    pub(super) transport: Transport,
    pub(super) scanner: Scanner,
    /// Bytes read and not scanned.
    pub(super) backlog: Vec<u8>,
    /// Bytes for the socket.
    pub(super) out: Vec<u8>,
    /// When rows that are held are looked at.
    pub(super) hold: Option<Instant>,
    /// Stanzas in `out`, when the peer doesn't acknowledge.
    pub(super) writing: VecDeque<(Arc<Pair>, Item)>,
    pub(super) flush: bool,
    pub(super) sending: Sending,
    /// Counts what the peer sends, when acknowledgements are on.
    pub(super) ledger: Option<Arc<Ledger>>,
    pub(super) settled: Arc<AtomicBool>,
    pub(super) ack_due: Option<Instant>,
    /// What the peer may send.
    pub(super) proved: Vec<Proved>,
    /// What we send.
    pub(super) carried: Vec<Arc<Pair>>,
    pub(super) turn: usize,
    /// Dialback under way for further pairs of ours.
    pub(super) asking: Vec<(Arc<Pair>, oneshot::Sender<bool>)>,
    /// Dialback requests of the peer that are being checked.
    pub(super) checking: usize,
    /// Dialback requests of the peer, all.
    pub(super) requests: usize,
    pub(super) bidi: bool,
    pub(super) external: bool,
    /// The header's addresses: our domain, the peer's domain.
    pub(super) local: Option<Arc<Host>>,
    pub(super) claimed: Option<Jid>,
    /// The id that the receiving side gave the stream.
    pub(super) id: String,
    pub(super) lang: Option<Arc<str>>,
    pub(super) opened: bool,
    pub(super) since: Instant,
    pub(super) clocks: Clocks,
    pub(super) timer: Pin<Box<Sleep>>,
    pub(super) epoch: u64,
}

impl Line {
    pub(super) fn tls(&self) -> Option<&Arc<TlsInfo>> {
        self.transport.tls()
    }

    /// Serves the stream until its end.
    pub(super) async fn serve(mut self) {
        let link = if self.role == Role::In { Link::PeerIn } else { Link::PeerOut };
        let open = self.shared.exchange.metrics.connection(link);
        let end = poll_fn(|cx| self.poll(cx)).await;
        self.finish(end).await;
        drop(open);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            self.handle.register(cx);
            match self.round(cx) {
                Ok(true) => {}
                Ok(false) if self.wait(cx) => {}
                Ok(false) => return Poll::Pending,
                Err(end) => {
                    // What was answered before the end still goes out, as far as it can at once.
                    let _ = self.poll_write(cx, Instant::now());
                    return Poll::Ready(end);
                }
            }
        }
    }

    /// One round. True when something moved.
    fn round(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.shared.is_stopping() {
            return Err(End::Shutdown);
        }
        let now = Instant::now();
        if self.epoch != self.shared.epoch() {
            self.epoch = self.shared.epoch();
            self.check_policy()?;
        }
        for command in self.handle.take_commands() {
            self.command(command);
        }
        self.check_lost()?;
        self.acknowledge_when_due(now);
        self.check_clocks(now)?;
        self.write_held(now);
        // Read first: what the peer's stanzas cause is written with what waits.
        let mut moved = self.poll_input(cx, now)?;
        moved |= self.poll_write(cx, now).map_err(|error| End::Lost(error.to_string()))?;
        if moved {
            self.account()?;
        }
        Ok(moved)
    }

    /// Counts what is in the buffers. Who has more than it may is the one that is ended.
    fn account(&mut self) -> Result<(), End> {
        let bytes = self.scanner.buffered() + self.backlog.len() + self.out.len();
        self.footprint.set(&self.shared, bytes).map_err(|name| {
            self.refused(name, &format!("{bytes} bytes in the buffers of one stream"));
            End::Error(
                StreamError::new(StreamCondition::ResourceConstraint)
                    .text("Too much at once. Try again later."),
            )
        })
    }

    /// Sets the timer. True when its time has come already.
    fn wait(&mut self, cx: &mut Context<'_>) -> bool {
        let deadline = self.next_deadline();
        // A timer that is early only makes another round; to set it anew with everything that happens costs more.
        if deadline < self.timer.deadline() || self.timer.is_elapsed() {
            self.timer.as_mut().reset(deadline);
        }
        self.timer.as_mut().poll(cx).is_ready()
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Verified { from, to, outcome } => self.verified(&from, &to, outcome),
            #[cfg(test)]
            Command::Panic => panic!("a bug"),
            Command::Carry { pair, answer } => {
                if self.role == Role::In || !self.stage_is_open() {
                    let _ = answer.send(false);
                    return;
                }
                let key = dialback::key(&pair.local.secret, &pair.peer, &pair.local.domain, &self.id);
                let request = Dialback {
                    kind: dialback::Kind::Result,
                    from: pair.local.domain.clone(),
                    to: pair.peer.clone(),
                    say: Say::Key(key),
                };
                self.out.extend_from_slice(&request.write());
                self.asking.push((pair, answer));
            }
        }
    }

    fn stage_is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// What the policy forbids now is not carried on.
    fn check_policy(&mut self) -> Result<(), End> {
        let proved = self.proved.iter().map(|proved| &proved.peer.domain);
        let carried = self.carried.iter().map(|pair| &pair.peer);
        let mut domains = proved.chain(carried).chain(&self.claimed);
        if let Some(failure) = domains.find_map(|domain| self.shared.forbidden(domain.as_str())) {
            return Err(End::Forbidden(failure));
        }
        match self.shared.is_open() {
            true => Ok(()),
            false => Err(End::Forbidden(Failure::CutOff(String::new()))),
        }
    }

    /// Takes over the sending for `pair`, if no other stream does it.
    pub(super) fn carry(&mut self, pair: &Arc<Pair>) -> bool {
        let attached = pair.attach(&self.handle);
        if attached {
            self.carried.push(Arc::clone(pair));
        }
        attached
    }

    // ---- writing

    /// Moves queues to the socket. True when something moved.
    fn poll_write(&mut self, cx: &mut Context<'_>, now: Instant) -> io::Result<bool> {
        let mut moved = false;
        loop {
            if self.out.len() < CHUNK {
                self.gather(now);
            }
            if self.out.is_empty() {
                break;
            }
            match Pin::new(&mut self.transport).poll_write(cx, &self.out) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => {
                    moved = true;
                    self.flush = true;
                    self.clocks.written = now;
                    self.clocks.blocked = None;
                    self.shared.exchange.metrics.bytes(self.link(), Direction::Out, written);
                    if written == self.out.len() {
                        // Dropped, not kept: an idle stream holds no buffer.
                        self.out = Vec::new();
                    } else {
                        self.out.drain(..written);
                    }
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.clocks.blocked.get_or_insert_with(Instant::now);
                    break;
                }
            }
        }
        if self.flush {
            match Pin::new(&mut self.transport).poll_flush(cx) {
                Poll::Ready(Ok(())) => {
                    self.flush = false;
                    self.clocks.blocked = None;
                    if self.out.is_empty() {
                        // Room for more, and nobody else says so: what was gathered waited inside TLS.
                        moved |= !self.writing.is_empty();
                        self.written();
                    }
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.clocks.blocked.get_or_insert_with(Instant::now);
                }
            }
        }
        Ok(moved)
    }

    /// Fills `out` from the queues, in turns.
    fn gather(&mut self, now: Instant) {
        if self.carried.is_empty() || !self.writing.is_empty() {
            return;
        }
        let mut window = self.window();
        let mut kinds = [0; 3];
        let mut idle = 0;
        while idle < self.carried.len()
            && self.out.len() < CHUNK
            && let Some(room) = window
        {
            let pair = Arc::clone(&self.carried[self.turn % self.carried.len()]);
            self.turn = self.turn.wrapping_add(1);
            let items = pair.pop(&self.shared, room);
            if items.is_empty() {
                idle += 1;
                continue;
            }
            idle = 0;
            let count = items.len();
            let items = items.into_iter().map(|item| (Arc::clone(&pair), item));
            // Filed away first: a bug in what follows must not lose them.
            let sent = match &mut self.sending {
                Sending::Managed(unacked) => &mut unacked.sent,
                Sending::Unmanaged | Sending::Enabling(_) | Sending::Awaited(_) => &mut self.writing,
            };
            sent.extend(items);
            let mut bytes = 0;
            let traffic = &self.shared.exchange.control.traffic;
            for (_, item) in sent.range(sent.len() - count..) {
                let kind = kind_of(item.stanza.head.kind);
                kinds[kind as usize] += 1;
                bytes += item.size();
                let (direction, bytes) = (Direction::Out, item.size());
                traffic.count(pair.peer.as_str(), Event::Stanza { direction, kind, bytes });
                item.stanza.write(&mut self.out);
            }
            if let Sending::Managed(unacked) = &mut self.sending {
                unacked.bytes += bytes;
            }
            window = self.window();
        }
        if kinds != [0; 3] {
            self.clocks.stanza = now;
            self.shared.exchange.metrics.stanzas(kinds, Direction::Out, Side::Outside);
        }
        if let Sending::Managed(unacked) = &mut self.sending
            && !unacked.sent.is_empty()
            && unacked.asked.is_none()
            && unacked.ask_from.is_none_or(|from| now >= from)
        {
            unacked.asked = Some(now);
            unacked.ask_from = None;
            self.out.extend_from_slice(&management::request());
        }
    }

    /// What may be sent now to one peer domain.
    fn window(&self) -> Option<Room> {
        let bytes = CHUNK.saturating_sub(self.out.len());
        match &self.sending {
            Sending::Unmanaged => Some(Room { stanzas: TURN, bytes }),
            Sending::Enabling(_) | Sending::Awaited(_) => None,
            Sending::Managed(unacked) => {
                let (most, most_bytes) = self.shared.unacked_bounds();
                let stanzas = most.saturating_sub(unacked.sent.len()).min(TURN);
                (stanzas > 0 && unacked.bytes < most_bytes).then_some(Room { stanzas, bytes })
            }
        }
    }

    /// Everything gathered is with the socket: for a peer that doesn't acknowledge, that is delivered.
    fn written(&mut self) {
        let written = std::mem::take(&mut self.writing);
        self.delivered(written.into_iter());
    }

    /// The peer has these.
    pub(super) fn delivered(&self, items: impl Iterator<Item = (Arc<Pair>, Item)>) {
        let mut items = items.peekable();
        while let Some((pair, first)) = items.next() {
            let mut its = vec![first];
            while let Some((_, item)) = items.next_if(|(of, _)| Arc::ptr_eq(of, &pair)) {
                its.push(item);
            }
            pair.delivered(&self.shared, its);
        }
    }

    /// Writes the rows that were held for long enough: the peer takes its time.
    fn write_held(&mut self, now: Instant) {
        if self.handle.take_held() {
            self.hold.get_or_insert(now + HOLD);
        }
        if self.hold.is_none_or(|until| until > now) {
            return;
        }
        let until = now - HOLD;
        let shared = Arc::clone(&self.shared);
        let mut next: Option<Instant> = None;
        let sent = match &mut self.sending {
            Sending::Managed(unacked) => Some(unacked.sent.iter_mut()),
            Sending::Unmanaged | Sending::Enabling(_) | Sending::Awaited(_) => None,
        };
        for (pair, item) in sent.into_iter().flatten().chain(&mut self.writing) {
            match &item.held {
                Some(held) if held.since > until => {
                    next = Some(next.map_or(held.since, |next| next.min(held.since)));
                }
                _ => pair.write_held(&shared, item),
            }
        }
        for pair in &self.carried {
            let since = pair.write_waiting(&shared, until);
            next = [next, since].into_iter().flatten().min();
        }
        self.hold = next.map(|since| since + HOLD);
    }

    // ---- reading

    /// Reads and handles what is there. True when something was read or handled.
    fn poll_input(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        if self.out.len() > MOST_UNREAD || self.clocks.brake.is_some() || !self.has_room(cx) {
            return Ok(false);
        }
        if !self.backlog.is_empty() {
            let backlog = std::mem::take(&mut self.backlog);
            self.scan(&backlog, false)?;
            return Ok(true);
        }
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            match Pin::new(&mut self.transport).poll_read(cx, &mut read) {
                Poll::Pending => Ok(false),
                Poll::Ready(Err(error)) => Err(End::Lost(error.to_string())),
                Poll::Ready(Ok(())) if read.filled().is_empty() => {
                    Err(End::Lost("closed without a farewell".into()))
                }
                Poll::Ready(Ok(())) => {
                    self.clocks.heard = now;
                    self.shared.exchange.metrics.bytes(self.link(), Direction::In, read.filled().len());
                    self.scan(read.filled(), true)?;
                    Ok(true)
                }
            }
        })
    }

    /// The crossing takes another stanza of this peer, or has been full for so long that it is refused by name.
    fn has_room(&mut self, cx: &Context<'_>) -> bool {
        let crossing = &self.shared.crossing;
        let mut room =
            self.proved.iter().all(|proved| crossing.poll_room(&proved.peer.load, &self.ticket, cx));
        if let Some(most) = self.most_answers() {
            room &= self.proved.iter().all(|proved| proved.peer.load.answers.poll_room(most, &self.handle));
        }
        if room {
            self.clocks.crowded = None;
            return true;
        }
        let since = *self.clocks.crowded.get_or_insert_with(Instant::now);
        Instant::now() >= since + PATIENCE
    }

    /// Answers of ours for which the peer is not read until it has taken some: stanzas and bytes, half of what there is room
    /// for, because what crosses now is answered too. `None`: however many wait. So it is where our window for the peer
    /// is full: what opens it stands behind the peer's questions.
    fn most_answers(&self) -> Option<(usize, usize)> {
        if !self.carried.is_empty() && self.window().is_none() {
            return None;
        }
        let federation = &self.shared.exchange.config.load().federation;
        // Where the memory for all gets short, who takes no answers is slowed at the first few.
        match self.shared.budgets.queued.all() < federation.queue_memory / 4 {
            true => Some((federation.queue_stanzas / 2, federation.queue_bytes / 2)),
            false => Some(FEW_ANSWERS),
        }
    }

    fn still_has_room(&self, answers: Option<(usize, usize)>) -> bool {
        self.proved.iter().all(|proved| {
            let load = &proved.peer.load;
            self.shared.crossing.has_room(load) && answers.is_none_or(|most| load.answers.have_room(most))
        })
    }

    /// Handles every complete element of `bytes`, or as many as the crossing takes and answers find room.
    fn scan(&mut self, bytes: &[u8], fresh: bool) -> Result<(), End> {
        let mut rest = bytes;
        let mut elements = 0;
        let answers = self.most_answers();
        let outcome = loop {
            if elements > 0 && !self.still_has_room(answers) {
                self.backlog = rest.to_vec();
                break Ok(());
            }
            match self.scanner.next(&mut rest) {
                Ok(None) => break Ok(()),
                Ok(Some(event)) => {
                    elements += 1;
                    if let Err(end) = self.event(event) {
                        break Err(end);
                    }
                }
                Err(error) => {
                    self.refused(error.label(), &error.to_string());
                    break Err(End::Error(StreamError::from(&error)));
                }
            }
        };
        self.clocks.partial = match self.scanner.buffered() {
            0 => None,
            _ if elements > 0 => Some(Instant::now()),
            _ => self.clocks.partial.or_else(|| Some(Instant::now())),
        };
        self.charge(elements, if fresh { bytes.len() } else { 0 });
        outcome
    }

    /// Counts what was received against the peer's rate.
    fn charge(&mut self, elements: usize, bytes: usize) {
        let Some(proved) = self.proved.first() else { return };
        let config = self.shared.exchange.config.load();
        let wait = proved.peer.budget.lock().take(&config.limits, self.shared.now(), (elements, bytes));
        if !wait.is_zero() {
            self.shared.exchange.metrics.refused("peer-rate");
            self.shared.exchange.control.traffic.count(&self.peer_domain(), Event::Refused("peer-rate"));
            self.clocks.brake = Some(Instant::now() + wait);
        }
    }

    // ---- the end

    /// Gives back what was not delivered, says farewell.
    async fn finish(mut self, end: End) {
        let mut patience = FAREWELL;
        let (error, failure) = match end {
            End::Closed => (None, self.has_undelivered().then_some(Failure::Closed)),
            End::Lost(why) => (None, Some(Failure::Lost(why))),
            End::Peer(failure) => (None, Some(failure)),
            End::Error(error) => {
                let failure = Failure::Protocol(format!("we ended the stream: {error}"));
                (Some(error), Some(failure))
            }
            End::Forbidden(failure) => {
                let error = StreamError::new(StreamCondition::PolicyViolation)
                    .text("This server does not talk to your domain.");
                patience = CUT_OFF;
                (Some(error), Some(failure))
            }
            End::Idle => (None, None),
            End::Shutdown => {
                (Some(StreamError::new(StreamCondition::SystemShutdown)), Some(Failure::Shutdown))
            }
        };
        if let Some(failure) = &failure {
            tracing::debug!(conn = self.handle.serial, reason = %failure, "federation stream ended");
            self.shared.exchange.control.traffic.count(&self.peer_domain(), Event::Failed(failure.label()));
        }
        let mut farewell = std::mem::take(&mut self.out);
        if !self.opened {
            // RFC 6120 s.4.9.1.2: an error before our header needs a header first.
            farewell = wire::header(&wire::Greeting {
                from: self.local.as_ref().map(|local| &local.domain),
                to: self.claimed.as_ref(),
                id: Some(&self.id),
            });
        }
        if let Some(ledger) = &self.ledger {
            farewell.extend_from_slice(&management::answer(ledger.handled()));
        }
        if let Some(error) = &error {
            self.shared.exchange.metrics.stream_error(error.condition().as_str());
            tracing::info!(conn = self.handle.serial, peer = self.peer_name(), error = %error, "stream error sent");
        }
        farewell.extend_from_slice(&wire::farewell(error.as_ref()));
        self.part(failure);
        self.shared.remove_line(self.handle.serial);
        let _ = tokio::time::timeout(patience, async {
            self.transport.write_all(&farewell).await?;
            self.transport.close().await
        })
        .await;
    }

    /// A bug ended one of its streams: see [`super::peer::MOST_FAULTS`].
    fn note_faults(&self) {
        let now = self.shared.now();
        self.proved.iter().for_each(|proved| proved.peer.faults.lock().note(now));
    }

    /// Ends the stream if a stanza of it was lost: what is not acknowledged the peer still has.
    pub(super) fn check_lost(&mut self) -> Result<(), End> {
        match self.ledger.as_ref().and_then(|ledger| ledger.loss()) {
            None => Ok(()),
            Some(Loss::NoRoom) => {
                self.refused("stanza-unanswered", "a stanza could be neither taken nor answered");
                Err(StreamCondition::ResourceConstraint.into())
            }
            Some(Loss::Bug) => {
                self.refused("stanza-lost", "a bug in this server has lost a stanza of this stream");
                self.note_faults();
                Err(StreamCondition::InternalServerError.into())
            }
        }
    }

    fn has_undelivered(&self) -> bool {
        !self.writing.is_empty()
            || matches!(&self.sending, Sending::Managed(unacked) if !unacked.sent.is_empty())
    }

    fn part(&mut self, failure: Option<Failure>) {
        // What the socket had not taken when the peer enabled acknowledgements was written before what is counted.
        let mut undelivered: Vec<(Arc<Pair>, Item)> = self.writing.drain(..).collect();
        if let Sending::Managed(unacked) = &mut self.sending {
            undelivered.extend(unacked.sent.drain(..));
        }
        let lived = self.since.elapsed();
        for pair in std::mem::take(&mut self.carried) {
            let (its, rest): (Vec<_>, Vec<_>) =
                undelivered.into_iter().partition(|(of, _)| Arc::ptr_eq(of, &pair));
            undelivered = rest;
            let parting = Parting {
                serial: self.handle.serial,
                undelivered: its.into_iter().map(|(_, item)| item).collect(),
                failure: failure.clone(),
                lived,
            };
            pair.detach(&self.shared, parting);
        }
    }

    pub(super) fn link(&self) -> Link {
        match self.role {
            Role::In => Link::PeerIn,
            Role::Out => Link::PeerOut,
        }
    }

    /// Who the peer is, or says it is, or where it is, for the log.
    pub(super) fn peer_name(&self) -> String {
        match (self.proved.first(), &self.claimed) {
            (Some(proved), _) => proved.peer.domain.as_str().to_owned(),
            (None, Some(claimed)) => format!("{claimed} (not proved)"),
            (None, None) => self.handle.status.lock().address.clone(),
        }
    }

    /// The domain that the peer has proved first, or none: what it merely claims counts for nobody.
    fn peer_domain(&self) -> String {
        let proved = self.proved.first().map(|proved| proved.peer.domain.as_str());
        proved.or_else(|| self.carried.first().map(|pair| pair.peer.as_str())).unwrap_or_default().to_owned()
    }

    /// Counts a refusal and writes its line.
    pub(super) fn refused(&self, name: &'static str, detail: &str) {
        self.shared.exchange.control.traffic.count(&self.peer_domain(), Event::Refused(name));
        self.shared.refusals.report(Refusal {
            name,
            peer: &self.peer_name(),
            conn: self.handle.serial,
            detail,
        });
    }
}

impl Drop for Line {
    /// Its task ended in the middle, by a bug or because the threads stop: what was not delivered goes back all the same.
    fn drop(&mut self) {
        if self.carried.is_empty() && !std::thread::panicking() {
            return;
        }
        if std::thread::panicking() {
            self.refused("stream-panicked", "a bug in this server ended the stream");
            self.note_faults();
        }
        self.part(Some(Failure::Internal));
        self.shared.remove_line(self.handle.serial);
    }
}

pub(super) fn kind_of(kind: Kind) -> StanzaKind {
    match kind {
        Kind::Message(_) => StanzaKind::Message,
        Kind::Presence(_) => StanzaKind::Presence,
        Kind::Iq(_) => StanzaKind::Iq,
    }
}
