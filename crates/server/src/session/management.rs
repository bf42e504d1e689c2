//! XEP-0198 Stream Management 1.6 for clients: `<enable/>`, `<r/>`, `<a/>`. Resumption begins in
//! [`super::login`], snapshots for a clean restart are in [`super::keeper`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use aws_lc_rs::digest;
use trunkline_xml::{Node, Writer};
use trunkline_xmpp::error::{Condition, StreamCondition, StreamError};
use trunkline_xmpp::ns;

use super::ledger::{Asked, Ledger};
use super::{Close, Management, Session};
use crate::exchange::Exchange;
use crate::log;

/// Handles one element of the `urn:xmpp:sm:3` namespace on a bound stream.
///
/// # Errors
/// The stream error that the client has earned.
pub(super) fn handle(
    exchange: &Arc<Exchange>,
    session: &Arc<Session>,
    element: &Node<'_>,
) -> Result<(), StreamError> {
    match element.name() {
        "enable" => {
            enable(exchange, session, element);
            Ok(())
        }
        "r" => {
            request(exchange, session);
            Ok(())
        }
        "a" => acknowledge(exchange, session, element),
        // s.5: too late, the resource is bound.
        "resume" => {
            session.push_nonza(&failed(Condition::UnexpectedRequest, None));
            Ok(())
        }
        _ => Err(StreamError::new(StreamCondition::UnsupportedStanzaType)),
    }
}

/// What a client asks for with `<enable/>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    resume: bool,
    /// Seconds.
    max: Option<u32>,
}

impl Wish {
    /// Reads `<enable/>`.
    pub(super) fn of(element: &Node<'_>) -> Wish {
        Wish {
            resume: matches!(element.attr("resume").as_deref(), Some("true" | "1")),
            max: element.attr("max").and_then(|max| max.parse::<u32>().ok()),
        }
    }
}

/// Stream management that is on, and what is still to be done about it.
pub(super) struct Begun {
    /// `<enabled/>`.
    pub(super) enabled: Vec<u8>,
    resume: Option<[u8; 32]>,
}

impl Begun {
    /// From here on the session can be resumed. Not to be called with an account locked.
    pub(super) fn publish(&self, exchange: &Exchange, session: &Arc<Session>) {
        if let Some(hash) = self.resume {
            exchange.resumable.lock().insert(hash, Arc::clone(session));
        }
    }
}

/// s.3: what comes is counted from here on; what goes out from the caller's `Outbox::manage` on.
pub(super) fn begin(exchange: &Exchange, session: &Arc<Session>, wish: Wish) -> Begun {
    let most = exchange.config.load().clients.resume_timeout.as_secs();
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    let seconds = wish.max.unwrap_or(most).min(most);
    let id = (wish.resume && seconds > 0).then(|| crate::ids::token(24));
    let ledger = {
        let session = Arc::downgrade(session);
        Ledger::new(0, move || {
            if let Some(session) = session.upgrade() {
                answer(&session);
            }
        })
    };
    let resume = id.as_deref().map(hash);
    session.manage(Management { resume, seconds }, ledger);
    let mut w = Writer::new();
    w.open("enabled").attr("xmlns", ns::SM);
    if let Some(id) = &id {
        w.attr("resume", "true").attr("id", id).attr("max", &seconds.to_string());
    }
    w.close();
    Begun { enabled: w.finish(), resume }
}

/// s.3.
fn enable(exchange: &Arc<Exchange>, session: &Arc<Session>, element: &Node<'_>) {
    if session.management().is_some() {
        session.push_nonza(&failed(Condition::UnexpectedRequest, None));
        return;
    }
    let begun = begin(exchange, session, Wish::of(element));
    session.with_outbox(|outbox| {
        outbox.push_nonza(&begun.enabled);
        outbox.manage();
    });
    session.wake();
    begun.publish(exchange, session);
}

/// s.4: answered once everything before is committed; what is not by then, after half a second.
fn request(exchange: &Arc<Exchange>, session: &Arc<Session>) {
    let Some(ledger) = session.ledger() else {
        // s.4: `<r/>` before `<enable/>`.
        session.push_nonza(&failed(Condition::UnexpectedRequest, None));
        return;
    };
    match ledger.ask() {
        Asked::Handled(_) => answer_now(session, &ledger),
        Asked::Wait => exchange.keeper.answer_later(session),
        // One clock runs for the session: however often a client asks, there is one entry for it.
        Asked::Again => {}
    }
}

/// Sends `<a/>` with what is handled at this moment. What a bug has lost never is: then the stream ends, and the client
/// knows what to send again.
pub(super) fn answer(session: &Session) {
    let Some(ledger) = session.ledger() else { return };
    if ledger.has_lost() {
        tracing::error!(conn = session.serial, "a bug in this server has lost a stanza: the stream ends");
        let error = Some(StreamError::new(StreamCondition::InternalServerError));
        session.close(Close { error, resumable: false });
        return;
    }
    answer_now(session, &ledger);
}

/// Sends `<a/>`.
pub(super) fn answer_now(session: &Session, ledger: &Ledger) {
    // Counted under the lock of the queue: several threads answer, and `h` never goes back.
    session.push_ack(|| ack(ledger.handled()));
}

fn ack(h: u32) -> Vec<u8> {
    let mut w = Writer::new();
    w.open("a").attr("xmlns", ns::SM).attr("h", &h.to_string()).close();
    w.finish()
}

/// s.4 and s.6: an `h` above what was sent is an undefined-condition with the numbers.
fn acknowledge(
    exchange: &Arc<Exchange>,
    session: &Arc<Session>,
    element: &Node<'_>,
) -> Result<(), StreamError> {
    let Some(h) = element.attr("h").and_then(|h| h.parse::<u32>().ok()) else {
        return Err(StreamError::new(StreamCondition::UndefinedCondition).text("An <a/> needs a number."));
    };
    match session.acknowledged(h) {
        Ok(kept) => {
            session.vitals.asked.store(0, Ordering::Relaxed);
            session.vitals.blocked.store(0, Ordering::Relaxed);
            log::delivered(&exchange.db, &session.account, &kept);
            Ok(())
        }
        Err(sent) => Err(too_high(h, sent)),
    }
}

/// The error of XEP-0198 s.4 example 9.
pub(crate) fn too_high(h: u32, sent: u32) -> StreamError {
    let mut w = Writer::new();
    w.open("handled-count-too-high")
        .attr("xmlns", ns::SM)
        .attr("h", &h.to_string())
        .attr("send-count", &sent.to_string())
        .close();
    StreamError::new(StreamCondition::UndefinedCondition).app(w.finish())
}

/// `<failed/>`, with `h` where the session was known.
pub(super) fn failed(condition: Condition, h: Option<u32>) -> Vec<u8> {
    let mut w = Writer::new();
    w.open("failed").attr("xmlns", ns::SM);
    if let Some(h) = h {
        w.attr("h", &h.to_string());
    }
    w.open(condition.as_str()).attr("xmlns", ns::STANZA_ERRORS).close();
    w.close();
    w.finish()
}

/// What is kept of a resumption id: who reads the store can't resume.
pub(super) fn hash(id: &str) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, id.as_bytes());
    digest.as_ref().try_into().expect("invariant: SHA-256 has 32 bytes")
}
