//! The requests of one session: which may come, in what order they are taken, what was answered and what of that the
//! client has for sure. Knows neither the session nor time, which is handed to it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::body::{self, Body, Condition};
use super::{Outcome, POLLING};
use crate::http::bodies::Room;

/// Why a session ends by a request.
pub(super) type Refusal = (Condition, &'static str);

/// What a client may do at once, agreed on when its session begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    /// s.7: requests that wait for an answer at once.
    pub(super) hold: u64,
    /// s.7: how long one may wait.
    pub(super) wait: Duration,
    /// s.9: the client says what it has.
    pub(super) acks: bool,
}

impl Agreed {
    /// s.7: what the client may have under way at once.
    pub(super) fn requests(self) -> u64 {
        self.hold + 1
    }

    /// s.12: nothing ever waits.
    pub(super) fn polls(self) -> bool {
        self.hold == 0 || self.wait.is_zero()
    }
}

/// A request, and who waits for its answer.
pub(super) struct Arrival {
    pub(super) body: Body,
    pub(super) at: Instant,
    pub(super) answer: oneshot::Sender<Outcome>,
    /// What its bytes take of the room for all, until the session has them.
    pub(super) _room: Room,
}

/// A request that was taken and not answered.
pub(super) struct Held {
    rid: u64,
    key: Option<String>,
    answer: oneshot::Sender<Outcome>,
    pub(super) until: Instant,
    /// s.10: its answer brings nothing.
    pub(super) pause: bool,
}

/// An answer that may have to be given again.
struct Sent {
    rid: u64,
    key: Option<String>,
    bytes: Bytes,
    /// Those in it that the client has not for sure.
    frames: u64,
}

pub(super) struct Window {
    agreed: Agreed,
    /// The last request that was taken in order.
    rid: u64,
    /// Came before their turn, or before the session had room. They are within the window, so there are few.
    early: BTreeMap<u64, Arrival>,
    /// Taken and not answered, in order.
    held: VecDeque<Held>,
    sent: VecDeque<Sent>,
    /// Frames of answers that are not kept any more and not confirmed: the highest of their numbers, and how many.
    forgotten: Option<(u64, u64)>,
    /// s.15: what the next key's hash must be.
    key: Option<String>,
    /// When the last new request came.
    arrived: Option<Instant>,
    /// When a request came that brought nothing and was told nothing, if it was the last one.
    empty: Option<Instant>,
}

impl Window {
    /// Before the first request.
    pub(super) fn new(rid: u64, agreed: Agreed) -> Window {
        Window {
            agreed,
            rid: rid - 1,
            early: BTreeMap::new(),
            held: VecDeque::new(),
            sent: VecDeque::new(),
            forgotten: None,
            key: None,
            arrived: None,
            empty: None,
        }
    }

    /// A request has come. An answer to it that was given before is returned.
    ///
    /// # Errors
    /// Why the session must end.
    pub(super) fn arrive(&mut self, arrival: Arrival) -> Result<Option<Bytes>, Refusal> {
        let Arrival { body, at, .. } = &arrival;
        let rid = body.rid;
        if rid <= self.rid {
            return self.again(arrival);
        }
        if let Some(early) = self.early.get_mut(&rid) {
            same_key(early.body.key.as_deref(), body.key.as_deref())?;
            supersede(&mut early.answer, arrival.answer);
            return Ok(None);
        }
        // s.11: one more, if it ends or pauses the session.
        let most = self.agreed.requests() + u64::from(body.is_last_word());
        if rid > self.rid + most {
            return Err((Condition::ItemNotFound, "a request beyond the window"));
        }
        let under_way = rid - self.answered();
        if under_way > most {
            return Err((Condition::PolicyViolation, "more requests at once than agreed on"));
        }
        let soon = self.arrived.replace(*at).is_some_and(|before| *at - before < POLLING);
        // s.11: there was no reason for another one, which brings nothing either. Who polls: see `next`.
        if !self.agreed.polls() && soon && body.is_empty() && under_way == self.agreed.requests() {
            return Err((Condition::PolicyViolation, "requests without content, too often"));
        }
        self.early.insert(rid, arrival);
        Ok(None)
    }

    /// s.14.3: the same request again, because a connection broke.
    fn again(&mut self, arrival: Arrival) -> Result<Option<Bytes>, Refusal> {
        let Arrival { body, answer, .. } = arrival;
        if let Some(held) = self.held.iter_mut().find(|held| held.rid == body.rid) {
            same_key(held.key.as_deref(), body.key.as_deref())?;
            supersede(&mut held.answer, answer);
            return Ok(None);
        }
        match self.sent.iter().find(|sent| sent.rid == body.rid) {
            Some(sent) => {
                same_key(sent.key.as_deref(), body.key.as_deref())?;
                Ok(Some(sent.bytes.clone()))
            }
            None => Err((Condition::ItemNotFound, "a request whose answer is not kept any more")),
        }
    }

    /// The last request that was answered.
    fn answered(&self) -> u64 {
        self.rid - self.held.len() as u64
    }

    /// The last request that was taken.
    pub(super) fn rid(&self) -> u64 {
        self.rid
    }

    /// It is somebody's turn.
    pub(super) fn is_next_there(&self) -> bool {
        self.early.contains_key(&(self.rid + 1))
    }

    /// The request whose turn it is.
    ///
    /// # Errors
    /// Why the session must end, and who is to be told.
    pub(super) fn next(&mut self) -> Option<Result<Arrival, (Arrival, Refusal)>> {
        let arrival = self.early.remove(&(self.rid + 1))?;
        if !self.check_key(&arrival.body) {
            return Some(Err((arrival, (Condition::ItemNotFound, "a wrong key"))));
        }
        self.rid += 1;
        let empty = arrival.body.is_empty();
        let soon = self.empty.is_some_and(|before| arrival.at - before < POLLING);
        if self.agreed.polls() && empty && soon {
            // s.12: two requests that say nothing, and the first was told nothing.
            return Some(Err((arrival, (Condition::PolicyViolation, "polls too often"))));
        }
        self.empty = empty.then_some(arrival.at);
        Some(Ok(arrival))
    }

    /// s.15: each request shows what the hash before was made of, and may begin another sequence.
    fn check_key(&mut self, body: &Body) -> bool {
        if let Some(expected) = &self.key {
            let key = body.key.as_deref();
            if !key.is_some_and(|key| sha1(key).eq_ignore_ascii_case(expected)) {
                return false;
            }
            self.key.clone_from(&body.key);
        }
        if body.new_key.is_some() {
            self.key.clone_from(&body.new_key);
        }
        true
    }

    /// How many further frames the client has for sure, now that this has come from it.
    pub(super) fn confirm(&mut self, body: &Body) -> u64 {
        let upto = match body.ack {
            // s.9.2: the highest answer that it has, and all before; if it does not say so, all.
            Some(ack) if self.agreed.acks => ack,
            None if self.agreed.acks => body.rid - 1,
            // Else it may have sent this before it got the answers to those that may be under way beside it.
            _ => body.rid.saturating_sub(self.agreed.requests() + u64::from(body.is_last_word())),
        };
        let got = self.sent.iter_mut().filter(|sent| sent.rid <= upto);
        let kept: u64 = got.map(|sent| std::mem::take(&mut sent.frames)).sum();
        kept + self.forgotten.take_if(|(rid, _)| *rid <= upto).map_or(0, |(_, frames)| frames)
    }

    /// A request that was taken waits for its answer.
    pub(super) fn hold(&mut self, arrival: Arrival, until: Instant) {
        let Arrival { body, answer, .. } = arrival;
        self.held.push_back(Held {
            rid: body.rid,
            key: body.key,
            answer,
            until,
            pause: body.pause.is_some(),
        });
    }

    /// Requests that wait for an answer.
    pub(super) fn waiting(&self) -> usize {
        self.held.len()
    }

    /// The one that is answered next.
    pub(super) fn oldest(&self) -> Option<&Held> {
        self.held.front()
    }

    /// The number of the one that is answered next.
    pub(super) fn oldest_rid(&self) -> Option<u64> {
        self.held.front().map(|held| held.rid)
    }

    /// Answers the oldest.
    pub(super) fn answer(&mut self, bytes: Bytes, frames: u64) {
        let Some(Held { rid, key, answer, .. }) = self.held.pop_front() else { return };
        if frames > 0 {
            self.empty = None;
        }
        self.sent.push_back(Sent { rid, key, bytes: bytes.clone(), frames });
        // s.14.3.
        while self.sent.len() as u64 > self.agreed.requests() {
            let Some(old) = self.sent.pop_front() else { break };
            if old.frames > 0 {
                let before = self.forgotten.map_or(0, |(_, frames)| frames);
                self.forgotten = Some((old.rid, before + old.frames));
            }
        }
        // Who brought it may be gone: then it comes for it again, or the session is over some time.
        let _ = answer.send(Outcome::Answer(bytes));
    }

    /// Answers all that wait, whatever their turn.
    pub(super) fn dismiss(&mut self, bytes: &Bytes) {
        let held = self.held.drain(..).map(|held| held.answer);
        let early = std::mem::take(&mut self.early).into_values().map(|early| early.answer);
        for answer in held.chain(early) {
            let _ = answer.send(Outcome::Answer(bytes.clone()));
        }
    }
}

/// s.14.3: a repetition is an exact copy. Whoever knows the numbers but not the key gets no answer (s.15).
fn same_key(before: Option<&str>, now: Option<&str>) -> Result<(), Refusal> {
    let same = match (before, now) {
        (Some(before), Some(now)) => before.eq_ignore_ascii_case(now),
        (None, None) => true,
        _ => false,
    };
    if same { Ok(()) } else { Err((Condition::ItemNotFound, "a request again with another key")) }
}

/// s.14.3: who comes last with a request gets its answer, who came before is told at once.
fn supersede(waiting: &mut oneshot::Sender<Outcome>, by: oneshot::Sender<Outcome>) {
    let before = std::mem::replace(waiting, by);
    let _ = before.send(Outcome::Answer(body::superseded().into()));
}

fn sha1(text: &str) -> String {
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Waiting = oneshot::Receiver<Outcome>;

    fn body(rid: u64, more: &str, inside: &str) -> Body {
        let text =
            format!("<body xmlns='http://jabber.org/protocol/httpbind' rid='{rid}' {more}>{inside}</body>");
        body::read(text.into()).unwrap()
    }

    fn agreed(hold: u64, acks: bool) -> Agreed {
        Agreed { hold, wait: Duration::from_secs(60), acks }
    }

    /// A window, and a clock.
    struct Play {
        window: Window,
        now: Instant,
    }

    impl Play {
        fn new(agreed: Agreed) -> Play {
            Play { window: Window::new(1, agreed), now: Instant::now() }
        }

        fn come(&mut self, body: Body) -> (Result<Option<Bytes>, Refusal>, Waiting) {
            let (answer, waiting) = oneshot::channel();
            let arrival = Arrival { body, at: self.now, answer, _room: Room::none() };
            (self.window.arrive(arrival), waiting)
        }

        /// Comes, is taken, and waits: how much it confirms.
        fn take(&mut self, body: Body) -> u64 {
            assert!(self.come(body).0.unwrap().is_none());
            let arrival = self.window.next().unwrap().map_err(|(_, why)| why).unwrap();
            let confirmed = self.window.confirm(&arrival.body);
            self.window.hold(arrival, self.now);
            confirmed
        }

        fn answer(&mut self, frames: u64) {
            self.window.answer(Bytes::from_static(b"answer"), frames);
        }

        fn later(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }
    }

    #[test]
    fn an_answer_is_confirmed_when_no_request_may_have_crossed_it() {
        let mut play = Play::new(agreed(1, false));
        assert_eq!(play.take(body(1, "", "")), 0);
        play.answer(3);
        assert_eq!(
            play.take(body(2, "", "<a/>")),
            0,
            "it may have been sent before the answer to 1 was there"
        );
        play.answer(5);
        // One more may be under way if it is a last word.
        let mut ending = Play::new(agreed(1, false));
        ending.take(body(1, "", ""));
        ending.answer(3);
        ending.take(body(2, "", "<a/>"));
        assert_eq!(ending.take(body(3, "type='terminate'", "")), 0);
        assert_eq!(play.take(body(3, "", "<a/>")), 3, "but who has sent 3 has the answer to 1");
        play.answer(0);
        assert_eq!(play.take(body(4, "", "<a/>")), 5);
        // Who polls has one request under way.
        let mut polling = Play::new(agreed(0, false));
        polling.take(body(1, "", ""));
        polling.answer(3);
        assert_eq!(polling.take(body(2, "", "")), 3);
    }

    #[test]
    fn acknowledgements_are_taken_at_their_word() {
        let mut play = Play::new(agreed(1, true));
        play.take(body(1, "", ""));
        play.answer(3);
        assert_eq!(play.take(body(2, "", "<a/>")), 3, "without one it has everything");
        play.answer(5);
        assert_eq!(play.take(body(3, "ack='1'", "<a/>")), 0);
        play.answer(7);
        // However many answers are kept: what was not acknowledged is not confirmed by being forgotten.
        assert_eq!(play.take(body(4, "ack='1'", "<a/>")), 0);
        play.answer(11);
        assert_eq!(play.take(body(5, "ack='1'", "<a/>")), 0);
        play.answer(13);
        assert_eq!(play.take(body(6, "ack='4'", "<a/>")), 5 + 7 + 11);
        assert_eq!(play.window.sent.len(), 2, "as many answers as requests are kept");
    }

    #[test]
    fn a_repetition_shows_the_same_key() {
        let key = sha1("seed");
        let mut play = Play::new(agreed(1, false));
        play.take(body(1, &format!("newkey='{}'", sha1(&key).to_uppercase()), ""));
        play.answer(0);
        play.take(body(2, &format!("key='{key}'"), ""));
        let (outcome, _) = play.come(body(2, "", ""));
        assert_eq!(outcome.unwrap_err().0, Condition::ItemNotFound, "no key");
        let (outcome, _) = play.come(body(2, "key='other'", ""));
        assert_eq!(outcome.unwrap_err().0, Condition::ItemNotFound);
        assert!(play.come(body(2, &format!("key='{}'", key.to_uppercase()), "")).0.unwrap().is_none());
        play.answer(0);
        assert!(play.come(body(2, "", "")).0.is_err());
        assert!(play.come(body(2, &format!("key='{key}'"), "")).0.unwrap().is_some());
        // The same before its turn.
        assert!(play.come(body(4, "key='k'", "<a/>")).0.is_ok());
        assert!(play.come(body(4, "key='other'", "<a/>")).0.is_err());
    }

    #[test]
    fn who_comes_again_gets_the_answer_and_who_waited_is_told() {
        let mut play = Play::new(agreed(1, false));
        let (_, mut first) = play.come(body(2, "", "<a/>"));
        let (outcome, mut second) = play.come(body(2, "", "<a/>"));
        assert!(outcome.unwrap().is_none());
        let Ok(Outcome::Answer(bytes)) = first.try_recv() else { panic!("still waits") };
        assert_eq!(bytes, "<body xmlns='http://jabber.org/protocol/httpbind' type='error'/>");
        play.take(body(1, "", ""));
        let taken = play.window.next().unwrap().map_err(|(_, why)| why).unwrap();
        play.window.hold(taken, play.now);
        play.answer(0);
        play.answer(0);
        assert!(matches!(second.try_recv(), Ok(Outcome::Answer(bytes)) if bytes == "answer"));
    }

    #[test]
    fn more_at_once_than_agreed() {
        let violated = |play: &mut Play, it: Body| play.come(it).0.err().map(|(condition, _)| condition);
        let mut play = Play::new(agreed(1, false));
        play.take(body(1, "", ""));
        play.answer(0);
        play.take(body(2, "", ""));
        // 2 waits, 3 is not there, 4 comes: three at once.
        assert_eq!(violated(&mut play, body(4, "", "<a/>")), Some(Condition::PolicyViolation));
        assert_eq!(violated(&mut play, body(4, "type='terminate'", "")), None, "but the last word");
        assert_eq!(violated(&mut play, body(5, "", "<a/>")), Some(Condition::ItemNotFound));
        // One that says nothing beside one that waits.
        for (seconds, hold, expected) in
            [(1, 1, Some(Condition::PolicyViolation)), (POLLING.as_secs(), 1, None)]
        {
            let mut play = Play::new(agreed(hold, false));
            play.take(body(1, "", ""));
            play.answer(0);
            play.later(10);
            play.take(body(2, "", "<a/>"));
            play.later(seconds);
            assert_eq!(violated(&mut play, body(3, "", "")), expected, "{seconds}");
        }
        // Who was answered may ask again at once, unless it polls.
        for hold in [0, 1] {
            let mut play = Play::new(agreed(hold, false));
            play.take(body(1, "", "<a/>"));
            play.answer(0);
            play.take(body(2, "", ""));
            play.answer(0);
            play.later(1);
            assert_eq!(violated(&mut play, body(3, "", "")), None);
            let taken = play.window.next().unwrap();
            let condition = taken.err().map(|(_, (condition, _))| condition);
            assert_eq!(condition, (hold == 0).then_some(Condition::PolicyViolation), "{hold}");
        }
    }
}
