//! Requests (IQ) of the server's own to other domains, and their answers.
//!
//! Who waits for an answer must not stand in the way that it comes: what handles a stanza from outside asks in a task
//! of its own, never while the crossing waits for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::oneshot;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{IqType, Kind, Stanza};

use crate::exchange::Exchange;
use crate::route::Mail;

/// Requests that wait for their answer at once.
const MOST: usize = 1024;

/// Requests under way.
#[derive(Debug, Default)]
pub struct Asking {
    waiting: Mutex<HashMap<String, Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    /// Who was asked: nobody else can answer.
    of: Jid,
    answer: oneshot::Sender<Stanza>,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// One of our domains.
    pub from: Jid,
    /// Who is asked.
    pub to: Jid,
    /// `get` or `set`.
    pub kind: IqType,
    /// The payload.
    pub payload: Vec<u8>,
    /// How long an answer may take.
    pub patience: Duration,
}

/// Why there is no answer. Theirs, but for the first.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AskError {
    /// Ours: too many requests are under way.
    #[error("too many requests are under way")]
    TooMany,
    /// Nothing came in time.
    #[error("{0} does not answer")]
    Silence(String),
    /// An error came.
    #[error("{who} answers {condition}{text}")]
    Refused {
        /// Who answers.
        who: String,
        /// The error's condition.
        condition: String,
        /// A colon and its text, or nothing.
        text: String,
    },
    /// Something else came than what was asked for.
    #[error("{0} answers something else")]
    Odd(String),
}

/// Takes the request out of the table, however the asking ends.
struct Place<'a> {
    asking: &'a Asking,
    id: String,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.asking.waiting.lock().remove(&self.id);
    }
}

impl Asking {
    /// Requests without an answer yet.
    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> usize {
        self.waiting.lock().len()
    }

    /// An IQ result or error came for one of our domains: whoever waits for it gets it.
    pub(crate) fn answered(&self, stanza: &Stanza) {
        let (Some(id), Some(from)) = (stanza.head.id.as_deref(), stanza.head.from.as_ref()) else { return };
        let mut waiting = self.waiting.lock();
        if waiting.get(id).is_none_or(|asked| asked.of != *from) {
            return;
        }
        if let Some(asked) = waiting.remove(id) {
            // Who asked may have lost patience.
            let _ = asked.answer.send(stanza.clone());
        }
    }
}

impl Exchange {
    /// Asks, and waits for the result.
    ///
    /// # Errors
    /// See [`AskError`].
    pub(crate) async fn ask(self: &Arc<Self>, question: Question) -> Result<Stanza, AskError> {
        let who = question.to.to_string();
        // Nobody but the asked one knows it, so nobody else answers (RFC 6120 s.8.1.3).
        let id = crate::ids::token(12);
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.control.asking.waiting.lock();
            if waiting.len() >= MOST {
                return Err(AskError::TooMany);
            }
            waiting.insert(id.clone(), Waiting { of: question.to.clone(), answer });
        }
        let place = Place { asking: &self.control.asking, id };
        let stanza = Stanza::build(Kind::Iq(question.kind))
            .from(question.from)
            .to(question.to)
            .id(place.id.as_str())
            .payload(question.payload)
            .done();
        self.deliver(Mail::answer(stanza)).await;
        let stanza = match tokio::time::timeout(question.patience, answered).await {
            Ok(Ok(stanza)) => stanza,
            _ => return Err(AskError::Silence(who)),
        };
        if stanza.head.kind == Kind::Iq(IqType::Result) {
            return Ok(stanza);
        }
        let error = stanza.children().find(|child| child.name() == "error").map(StanzaError::parse);
        let error = error.unwrap_or_else(|| StanzaError::new(Condition::UndefinedCondition));
        let text = error.text.map(|text| format!(": {}", short(&text, 200))).unwrap_or_default();
        Err(AskError::Refused { who, condition: error.condition.as_str().to_owned(), text })
    }
}

/// Another party's text, fit for a line: bounded, without control characters.
pub(crate) fn short(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The address in an `xmpp:` URI (RFC 5122): without query, percent-encoding taken away.
pub(crate) fn xmpp_address(uri: &str) -> Option<Jid> {
    let rest = uri.strip_prefix("xmpp:")?;
    // An authority says through whom to send, not to whom.
    let rest = match rest.strip_prefix("//") {
        Some(rest) => rest.split_once('/')?.1,
        None => rest,
    };
    let path = rest.split(['?', '#']).next()?;
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    Jid::parse(std::str::from_utf8(&bytes).ok()?).ok()
}

/// The query of service discovery, as a question's payload.
pub(crate) fn disco_info() -> Vec<u8> {
    let mut w = trunkline_xml::Writer::new();
    w.open("query").attr("xmlns", ns::DISCO_INFO).close();
    w.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_uris() {
        let address = |uri: &str| xmpp_address(uri).map(|jid| jid.as_str().to_owned());
        assert_eq!(address("xmpp:abuse@a.example?message").as_deref(), Some("abuse@a.example"));
        assert_eq!(address("xmpp:a.example").as_deref(), Some("a.example"));
        assert_eq!(address("xmpp:nasty%21%23@a.example#x").as_deref(), Some("nasty!#@a.example"));
        assert_eq!(address("xmpp://guest@b.example/support@a.example").as_deref(), Some("support@a.example"));
        for bad in ["mailto:abuse@a.example", "xmpp:", "xmpp:a%2", "xmpp:a%zz@b", "xmpp:%ff@b.example"] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_who_was_asked_can_answer() {
        let asking = Asking::default();
        let (answer, mut answered) = oneshot::channel();
        let of: Jid = "peer.example".parse().unwrap();
        asking.waiting.lock().insert("i".into(), Waiting { of: of.clone(), answer });
        let stanza = |from: &str| {
            Stanza::build(Kind::Iq(IqType::Result)).from(from.parse::<Jid>().unwrap()).id("i").done()
        };
        asking.answered(&stanza("evil.example"));
        asking.answered(&stanza("romeo@peer.example"));
        assert!(answered.try_recv().is_err());
        asking.answered(&stanza("peer.example"));
        assert!(answered.try_recv().is_ok());
        assert!(asking.waiting.lock().is_empty());
    }
}
