//! A client's connection once it has bound a resource: `socket - scan - admit - route` one way and
//! `outbox - write - socket` the other, in one task, without a timer and without a buffer while idle.
//!
//! Negotiation (TLS, SASL, bind) is in [`super::login`]; what others see of the connection is [`Session`].

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use trunkline_store::Lane;
use trunkline_xml::{Element, Event, Scanner};
use trunkline_xmpp::error::{StanzaError, StreamCondition, StreamError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, Stanza};

use super::{Queued, Session, management};
use crate::control::rule::{Direction as Way, Relation};
use crate::control::{Case, Verdict};
use crate::exchange::Exchange;
use crate::log;
use crate::metrics::{Direction, Link, Side, StanzaKind};
use crate::net::Transport;
use crate::route::{Later, Mail, Origin, Routed};

/// Bytes read at once; the buffer belongs to the thread.
const READ: usize = 32 * 1024;
/// Bytes written at once: one TLS record.
const WRITE: usize = 16 * 1024;
/// What a thread keeps of its buffer for writing after a large stanza.
const MOST_OUTPUT: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
    static OUTPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Why a connection ended.
#[derive(Debug)]
pub enum End {
    /// The client closed its stream.
    Closed,
    /// The socket broke or the client vanished.
    Lost,
    /// The stream is ended with this error.
    Error(StreamError),
    /// Somebody asked for it ([`Session::close`]).
    Asked(super::Close),
    /// Another connection has resumed the session.
    Replaced,
}

/// A bound client connection.
pub struct Connection {
    pub(super) exchange: Arc<Exchange>,
    pub(super) session: Arc<Session>,
    /// Given back in [`Connection::finish`], or when the connection is dropped without.
    pub(super) seat: Option<Seat>,
    /// This connection's number; the session may have begun with another.
    pub(super) serial: u64,
    pub(super) transport: Transport,
    pub(super) scanner: Scanner,
    pub(super) lang: Option<Arc<str>>,
    pub(super) budget: Budget,
    /// Bytes written to nobody yet: the socket was full.
    pub(super) unsent: Vec<u8>,
    /// Kept stanzas in `unsent`: delivered when it is empty and flushed.
    pub(super) unsent_kept: Vec<crate::ids::LogId>,
    /// Bytes read and not scanned, because `work` is not done.
    pub(super) backlog: Vec<u8>,
    /// The stanza that is being handled and needs the store.
    pub(super) work: Option<Later>,
    /// When that stanza came.
    pub(super) working_since: Option<Instant>,
    /// Feeds a session that is behind.
    pub(super) refill: Option<Later>,
    /// Waits until the store takes more, or a budget is full again.
    pub(super) brake: Option<Later>,
    pub(super) flush: bool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({}, {:?})", self.serial, self.session)
    }
}

/// A connection's hold on a session. Dropped, it detaches the session, whatever happened to the connection.
#[derive(Debug)]
pub(super) struct Seat {
    exchange: Arc<Exchange>,
    session: Arc<Session>,
    connection: u64,
    taken: bool,
}

impl Seat {
    /// `connection` serves `session` from here on.
    pub(super) fn new(exchange: &Arc<Exchange>, session: &Arc<Session>, connection: u64) -> Seat {
        Seat { exchange: Arc::clone(exchange), session: Arc::clone(session), connection, taken: true }
    }

    /// The session.
    pub(super) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    fn leave(&mut self, resumable: bool) {
        if std::mem::replace(&mut self.taken, false) {
            self.exchange.depart(&self.session, self.connection, resumable);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave(true);
    }
}

/// A token bucket for what a client sends; 24 bytes, no timer.
#[derive(Debug)]
pub struct Budget {
    stanzas: f32,
    bytes: f32,
    at: i64,
}

impl Budget {
    /// A full bucket.
    pub fn new(exchange: &Exchange) -> Budget {
        let config = exchange.config.load();
        let as_f32 = |n: u32| n as f32;
        Budget {
            stanzas: as_f32(config.limits.client_stanzas_burst),
            bytes: as_f32(config.limits.client_bytes_burst),
            at: exchange.clock().now(),
        }
    }

    /// Takes what was received; the milliseconds to wait before more is read.
    fn take(&mut self, exchange: &Exchange, stanzas: usize, bytes: usize) -> u64 {
        let config = exchange.config.load();
        let limits = &config.limits;
        if !limits.enabled {
            return 0;
        }
        let now = exchange.clock().now();
        let elapsed = (now - self.at).max(0) as f32 / 1000.0;
        self.at = now;
        let fill = |have: f32, rate: u32, burst: u32| (have + elapsed * rate as f32).min(burst as f32);
        self.stanzas =
            fill(self.stanzas, limits.client_stanzas, limits.client_stanzas_burst) - stanzas as f32;
        self.bytes = fill(self.bytes, limits.client_bytes, limits.client_bytes_burst) - bytes as f32;
        let wait = |have: f32, rate: u32| if have < 0.0 { -have / rate.max(1) as f32 } else { 0.0 };
        let seconds = wait(self.stanzas, limits.client_stanzas).max(wait(self.bytes, limits.client_bytes));
        (seconds * 1000.0) as u64
    }
}

impl Connection {
    /// Serves the session until its end. Then [`Connection::finish`] is to be called.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            self.session.with_outbox(|outbox| outbox.register(self.serial, cx));
            let serves = self.session.is_served_by(self.serial);
            if let Some(close) = self.session.closing().filter(|_| serves || self.session.is_ended()) {
                let _ = self.poll_write(cx);
                return Poll::Ready(End::Asked(close));
            }
            if !serves {
                return Poll::Ready(if self.session.is_ended() { End::Closed } else { End::Replaced });
            }
            let mut moved = match self.poll_write(cx) {
                Ok(moved) => moved,
                Err(error) => {
                    tracing::debug!(conn = self.serial, %error, "write failed");
                    return Poll::Ready(End::Lost);
                }
            };
            moved |= poll_slot(&mut self.refill, cx);
            self.start_refill(&mut moved);
            if poll_slot(&mut self.work, cx) {
                moved = true;
                if let Some(arrived) = self.working_since.take() {
                    self.delivered_after(arrived);
                }
            }
            moved |= poll_slot(&mut self.brake, cx);
            if self.work.is_none() && self.brake.is_none() {
                match self.poll_input(cx) {
                    Ok(more) => moved |= more,
                    Err(end) => {
                        // What was answered before the end still goes out.
                        let _ = self.poll_write(cx);
                        return Poll::Ready(end);
                    }
                }
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    fn start_refill(&mut self, moved: &mut bool) {
        if self.refill.is_none()
            && self.session.with_outbox(|outbox| outbox.catch_up().is_some() && outbox.wants_more())
        {
            self.refill = Some(Box::pin(Arc::clone(&self.exchange).catch_up(Arc::clone(&self.session))));
            *moved = true;
        }
    }

    /// Moves the outbox to the socket. True when something moved.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut moved = false;
        while let Some(written) = self.write_some(cx)? {
            moved = true;
            self.flush = true;
            self.exchange.metrics.bytes(Link::Client, Direction::Out, written);
            self.unmark_blocked();
        }
        if self.unsent.is_empty() && !self.unsent_kept.is_empty() {
            self.transport.mark(self.unsent_kept.len());
        }
        if self.flush {
            match Pin::new(&mut self.transport).poll_flush(cx) {
                Poll::Ready(Ok(())) => {
                    self.flush = false;
                    self.arrived();
                    if self.unsent.is_empty() {
                        self.written();
                    }
                }
                Poll::Ready(Err(error)) => return Err(error),
                // Who comes for it with a request of its own takes its time; who lets much wait is noticed above.
                Poll::Pending if self.transport.is_carried() => self.arrived(),
                Poll::Pending => self.mark_blocked(),
            }
        }
        Ok(moved)
    }

    /// One write: of what was left, or of what is in the outbox. `None`: nothing to write, or no room.
    fn write_some(&mut self, cx: &mut Context<'_>) -> io::Result<Option<usize>> {
        if !self.unsent.is_empty() {
            let mut unsent = std::mem::take(&mut self.unsent);
            let written = self.write_once(cx, &unsent)?;
            if written.is_none_or(|written| written < unsent.len()) {
                unsent.drain(..written.unwrap_or(0));
                self.unsent = unsent;
            }
            return Ok(written);
        }
        OUTPUT.with_borrow_mut(|out| {
            out.clear();
            let (drained, waits) = self
                .session
                .with_outbox(|outbox| (outbox.drain(self.serial, out, WRITE), outbox.waits_for_ack()));
            self.unsent_kept.extend(drained.kept);
            if drained.stanzas != [0; 3] {
                self.exchange.metrics.stanzas(drained.stanzas, Direction::Out, Side::Inside);
                self.session.note_drained();
            }
            if waits {
                self.mark_blocked();
            }
            if out.is_empty() {
                return Ok(None);
            }
            let written = self.write_once(cx, out)?;
            // Only what the socket did not take is the connection's: an idle one holds no buffer.
            self.unsent = out[written.unwrap_or(0)..].to_vec();
            out.clear();
            out.shrink_to(MOST_OUTPUT);
            Ok(written)
        })
    }

    fn write_once(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<Option<usize>> {
        match Pin::new(&mut self.transport).poll_write(cx, bytes) {
            Poll::Ready(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(written)) => Ok(Some(written)),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => {
                self.mark_blocked();
                Ok(None)
            }
        }
    }

    fn mark_blocked(&self) {
        let now = self.exchange.clock().now();
        let _ = self.session.vitals.blocked.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The socket takes bytes. Somebody who reads but does not acknowledge stays blocked.
    fn unmark_blocked(&self) {
        if !self.session.with_outbox(|outbox| outbox.waits_for_ack()) {
            self.session.vitals.blocked.store(0, Ordering::Relaxed);
        }
    }

    /// What is carried arrives bit by bit: a client that is always sent something would never have all of it.
    fn arrived(&mut self) {
        let arrived = self.transport.arrived().min(self.unsent_kept.len());
        if arrived > 0 {
            let kept: Vec<_> = self.unsent_kept.drain(..arrived).collect();
            log::delivered(&self.exchange.db, &self.session.account, &kept);
        }
    }

    /// All that was drained is with the socket.
    fn written(&mut self) {
        self.unmark_blocked();
        if !self.unsent_kept.is_empty() {
            let kept = std::mem::take(&mut self.unsent_kept);
            log::delivered(&self.exchange.db, &self.session.account, &kept);
        }
    }

    /// Reads and handles what is there. True when something was read.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if !self.backlog.is_empty() {
            let backlog = std::mem::take(&mut self.backlog);
            self.scan(&backlog)?;
            return Ok(true);
        }
        // The store's queue is the brake on all readers; a client that doesn't read its answers isn't read.
        if !self.exchange.db.has_room(Lane::Inside) {
            let db = self.exchange.db.clone();
            self.brake = Some(Box::pin(async move { db.ready(Lane::Inside).await }));
            return Ok(true);
        }
        if !self.unsent.is_empty()
            && self.session.with_outbox(|outbox| !outbox.wants_more() || outbox.owes_much())
        {
            return Ok(false);
        }
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            match Pin::new(&mut self.transport).poll_read(cx, &mut read) {
                Poll::Pending => Ok(false),
                Poll::Ready(Err(error)) => {
                    tracing::debug!(conn = self.serial, %error, "read failed");
                    Err(End::Lost)
                }
                Poll::Ready(Ok(())) if read.filled().is_empty() => Err(End::Lost),
                Poll::Ready(Ok(())) => {
                    let now = self.exchange.clock().now();
                    self.session.vitals.heard.store(now, Ordering::Relaxed);
                    self.exchange.metrics.bytes(Link::Client, Direction::In, read.filled().len());
                    self.scan(read.filled())?;
                    Ok(true)
                }
            }
        })
    }

    /// Handles every complete element of `bytes`, or as many as go without waiting.
    fn scan(&mut self, bytes: &[u8]) -> Result<(), End> {
        let mut rest = bytes;
        let (mut elements, mut stanzas) = (0, 0);
        let outcome = loop {
            if self.work.is_some() {
                self.backlog = rest.to_vec();
                break Ok(());
            }
            match self.scanner.next(&mut rest) {
                Ok(None) => break Ok(()),
                Ok(Some(Event::Whitespace)) => {}
                Ok(Some(Event::Element(element))) => {
                    elements += 1;
                    // What a client acknowledges is what others send it: a flood from outside must not use up its rate.
                    stanzas += usize::from(element.root().ns() != ns::SM);
                    if let Err(end) = self.element(element) {
                        break Err(end);
                    }
                }
                Ok(Some(Event::Close)) => break Err(End::Closed),
                Ok(Some(Event::Open(_))) => {
                    self.exchange.refused_client(&self.session, "second-header", "a second stream header");
                    break Err(End::Error(StreamError::new(StreamCondition::InvalidXml)));
                }
                Err(error) => {
                    self.exchange.refused_client(&self.session, error.label(), &error.to_string());
                    break Err(End::Error(StreamError::from(&error)));
                }
            }
        };
        let partial = if self.scanner.buffered() > 0 { self.exchange.clock().now() } else { 0 };
        if partial == 0 || self.session.vitals.partial.load(Ordering::Relaxed) == 0 || elements > 0 {
            self.session.vitals.partial.store(partial, Ordering::Relaxed);
        }
        let wait = self.budget.take(&self.exchange, stanzas, bytes.len() - rest.len());
        if wait > 0 && outcome.is_ok() {
            self.exchange.refused_client(
                &self.session,
                "client-rate",
                "sends more than its rate; it is read more slowly",
            );
            self.brake =
                Some(Box::pin(tokio::time::sleep(std::time::Duration::from_millis(wait.min(60_000)))));
        }
        outcome
    }

    fn element(&mut self, element: Element) -> Result<(), End> {
        let root = element.root();
        match root.ns() {
            ns::CLIENT => self.stanza(element),
            ns::SM => match management::handle(&self.exchange, &self.session, &root) {
                Ok(()) => Ok(()),
                Err(error) => {
                    self.exchange.refused_client(&self.session, "acknowledgement", &error.to_string());
                    Err(End::Error(error))
                }
            },
            ns::CSI => {
                // XEP-0352 s.4.
                match root.name() {
                    "active" => self.session.with_outbox(|outbox| outbox.set_inactive(false)),
                    "inactive" => self.session.with_outbox(|outbox| outbox.set_inactive(true)),
                    _ => return Err(self.unsupported()),
                }
                Ok(())
            }
            _ => Err(self.unsupported()),
        }
    }

    fn unsupported(&self) -> End {
        let condition = StreamCondition::UnsupportedStanzaType;
        self.exchange.refused_client(&self.session, condition.as_str(), "an element that is no stanza");
        End::Error(StreamError::new(condition))
    }

    fn stanza(&mut self, element: Element) -> Result<(), End> {
        let receipt = self.session.receive(self.serial).map_err(|super::Replaced| End::Replaced)?;
        let mut stanza = match Stanza::from_element(element, ns::CLIENT, self.lang.as_deref()) {
            Ok(stanza) => stanza,
            Err(refusal) => {
                self.exchange.refused_client(&self.session, refusal.why.label(), &refusal.to_string());
                if let Some(condition) = refusal.stream_condition() {
                    return Err(End::Error(StreamError::new(condition)));
                }
                if let Some(answer) = refusal.error_reply() {
                    self.session.push(Queued::plain(answer));
                }
                return Ok(());
            }
        };
        // RFC 6120 s.8.1.2.1: the `from` of a client is its own, full or bare.
        if let Some(from) = &stanza.head.from
            && !(from == &self.session.jid || (from.is_bare() && from.same_bare(&self.session.jid)))
        {
            self.exchange.refused_client(
                &self.session,
                "forged-from",
                "a stanza from another address than its own",
            );
            return Err(End::Error(StreamError::new(StreamCondition::InvalidFrom)));
        }
        stanza.head.from = Some(self.session.jid.clone());
        self.exchange.metrics.stanza(StanzaKind::of(stanza.head.kind), Direction::In, Side::Inside);
        let mail = Mail { receipt, ..Mail::new(stanza, Origin::Client(Arc::clone(&self.session))) };
        let arrived = Instant::now();
        match self.exchange.admit(&self.session, mail) {
            Routed::Done => self.delivered_after(arrived),
            Routed::Later(later) => {
                self.work = Some(later);
                self.working_since = Some(arrived);
            }
        }
        Ok(())
    }

    fn delivered_after(&self, arrived: Instant) {
        self.exchange.metrics.delivery_seconds.observe(arrived.elapsed().as_secs_f64());
    }

    /// Ends the stream and, unless it can be resumed, the session.
    pub(super) fn finish(mut self, end: End) {
        let (error, resumable) = match end {
            End::Closed => (None, false),
            End::Lost => (None, true),
            // XEP-0198 s.5: only a broken or timed-out stream may be resumed; after an error of the
            // client's making it may not.
            End::Error(error) => (Some(error), false),
            End::Asked(close) => (close.error, close.resumable),
            End::Replaced => (Some(StreamError::new(StreamCondition::Conflict)), true),
        };
        if let Some(error) = &error {
            self.exchange.metrics.stream_error(error.condition().as_str());
            tracing::debug!(conn = self.serial, condition = error.condition().as_str(), "stream error sent");
        }
        // What a resumable session had not written stays in its outbox or its ring.
        let mut farewell = std::mem::take(&mut self.unsent);
        if let Some(error) = error {
            let mut w = trunkline_xml::Writer::new();
            error.write(&mut w);
            farewell.extend_from_slice(&w.finish());
        }
        farewell.extend_from_slice(b"</stream:stream>");
        if let Some(seat) = &mut self.seat {
            seat.leave(resumable);
        }
        let Connection { mut transport, exchange, work, .. } = self;
        if let Some(work) = work {
            // The stanza is counted as handled when nobody works on it any more: it must not be dropped half-way.
            exchange.spawn(work);
        }
        exchange.spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            let _ = tokio::time::timeout(std::time::Duration::from_secs(5), async {
                transport.write_all(&farewell).await?;
                transport.shutdown().await
            })
            .await;
        });
    }
}

fn poll_slot(slot: &mut Option<Later>, cx: &mut Context<'_>) -> bool {
    let done = slot.as_mut().is_some_and(|future| future.as_mut().poll(cx).is_ready());
    if done {
        *slot = None;
    }
    done
}

/// Tells a client why its stanza is refused: straight to its queue, past what the account lets in.
pub(crate) fn refuse(session: &Session, stanza: &Stanza, error: &StanzaError) {
    if let Some(answer) = stanza.error(error) {
        session.push(Queued::plain(answer));
    }
}

impl Exchange {
    /// A client's stanza enters: the sender's side of RFC 6121 s.8.1 and s.4, then the router.
    pub(crate) fn admit(self: &Arc<Self>, session: &Arc<Session>, mail: Mail) -> Routed {
        let away = mail.stanza.head.to.as_ref().filter(|to| !self.serves(to.domain()));
        let Some(to) = away.filter(|to| self.control.asks_who_sends(to.domain())).cloned() else {
            return self.admit_judged(session, mail);
        };
        if let Some(relation) = self.relation_now(&session.account.jid, &to) {
            return self.admit_with(relation, session, mail);
        }
        let (exchange, session) = (Arc::clone(self), Arc::clone(session));
        Routed::Later(Box::pin(async move {
            let routed = match exchange.relation(&session.account.jid, &to).await {
                Ok(relation) => exchange.admit_with(relation, &session, mail),
                Err(error) => {
                    return refuse(&session, &mail.stanza, &crate::route::message::store_trouble(&error));
                }
            };
            if let Routed::Later(later) = routed {
                later.await;
            }
        }))
    }

    /// What the policy says to a stanza for another provider, where that depends on how the two stand to each other. The
    /// rest is judged when the stanza leaves. Before anything else, because writing to somebody is what consents.
    fn admit_with(self: &Arc<Self>, relation: Relation, session: &Arc<Session>, mail: Mail) -> Routed {
        let Some(to) = &mail.stanza.head.to else { return Routed::Done };
        let mut stanza = mail.stanza.clone();
        // Clients may leave it out.
        stanza.head.from = Some(session.jid.clone());
        let case =
            Case { direction: Way::Out, domain: to.domain(), stanza: &stanza, relation: Some(relation) };
        let decision = self.control.judge(&case);
        let refused = |error: &StanzaError| {
            self.refused_client(session, "policy-rejected", &decision.by);
            refuse(session, &mail.stanza, error);
        };
        match &decision.verdict {
            Verdict::Reject(error) => refused(error),
            Verdict::Drop => {}
            Verdict::Allow | Verdict::Undecided | Verdict::Hold => {
                match decision.carried_out(stanza.clone(), Way::Out) {
                    Ok(stanza) => return self.admit_judged(session, Mail { stanza, ..mail }),
                    Err(error) => refused(&error),
                }
            }
        }
        Routed::Done
    }

    fn admit_judged(self: &Arc<Self>, session: &Arc<Session>, mut mail: Mail) -> Routed {
        let span = crate::traces::stanza("inside", &mail.stanza);
        let _traced = span.enter();
        match mail.stanza.head.kind {
            Kind::Message(_) => {
                // RFC 6121 s.8.1.1.1: no `to` means the sender's own account.
                if mail.stanza.head.to.is_none() {
                    mail.stanza.head.to = Some(session.account.jid.clone());
                }
                match self.send_message(session, mail) {
                    Some((mail, None)) => self.route(mail),
                    Some((mail, Some(before))) => {
                        let exchange = Arc::clone(self);
                        Routed::Later(Box::pin(async move {
                            before.await;
                            exchange.deliver(mail).await;
                        }))
                    }
                    None => Routed::Done,
                }
            }
            Kind::Presence(kind) => self.client_presence(session, kind, mail),
            Kind::Iq(_) => {
                if mail.stanza.head.to.is_none() {
                    mail.stanza.head.to = Some(session.account.jid.clone());
                }
                let to_blocked = mail.stanza.head.to.as_ref().is_some_and(|to: &Jid| {
                    session.account.state().blocks(to) && !to.same_bare(&session.account.jid)
                });
                if to_blocked {
                    refuse(session, &mail.stanza, &crate::route::blocked_error());
                    return Routed::Done;
                }
                self.note_request(&session.account, &mail.stanza);
                self.route(mail)
            }
        }
    }

    /// A connection is gone: its session waits for resumption or ends.
    pub(crate) fn depart(self: &Arc<Self>, session: &Arc<Session>, connection: u64, resumable: bool) {
        if !session.detach(connection) {
            return;
        }
        // What a bug has lost can't be resumed behind: the client is told nothing but what was handled.
        let whole = session.ledger().is_some_and(|ledger| !ledger.has_lost());
        let resume = session.management().is_some_and(|management| management.resume.is_some());
        let waits = resumable && whole && resume;
        if waits {
            session.vitals.detached.store(self.clock().now().max(1), Ordering::Relaxed);
            return;
        }
        self.end_session(session, None);
    }

    /// The end of a session: contacts see it go, what it had not delivered goes on (RFC 6121 s.4.5.1,
    /// XEP-0198 s.5).
    pub(crate) fn end_session(self: &Arc<Self>, session: &Arc<Session>, status: Option<&str>) {
        if !session.end() {
            return;
        }
        if let Some(id) = session.management().and_then(|management| management.resume) {
            self.resumable.lock().remove(&id);
        }
        let unavailable = Stanza::build(Kind::Presence(trunkline_xmpp::stanza::PresenceType::Unavailable))
            .from(session.jid.clone())
            .body(|w| {
                if let Some(status) = status {
                    w.open("status").text(status).close();
                }
            })
            .done();
        self.broadcast_unavailable(session, unavailable);
        let account = Arc::clone(&session.account);
        account.state().resources.retain(|resource| resource.session.serial != session.serial);
        self.push_for(session);
        let rest = session.with_outbox(super::Outbox::end);
        self.redirect(&account, rest);
        self.metrics.sessions.dec();
        drop(self.accounts.hold(account));
    }
}
