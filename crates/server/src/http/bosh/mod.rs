//! XEP-0124 BOSH 1.11.2 with XEP-0206: a client's stream in HTTP requests that wait for their answers.
//!
//! A [`Binding`] is one session between requests. Requests are taken in the order of their numbers, whatever order they
//! come in, and answered in it. What was answered is kept until the client can't ask for it again. One task a binding
//! ([`Binding::drive`]) answers when the session writes, and ends the binding when no request comes any more.

mod body;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

pub(super) use self::body::Condition;
use self::body::{Answer, Body, Terms};
use super::frames::{END, Frame, Frames, Opening};

/// s.7: the version, or the client's if that is older.
const VERSION: (u32, u32) = (1, 11);
/// s.7: how long a request may wait for its answer, at most.
const WAIT: u64 = 60;
/// s.7: requests that wait at once; one more may come with something to say.
const HOLD: u64 = 1;
/// s.10: silence until the session is over, between requests.
const INACTIVITY: Duration = Duration::from_secs(60);
/// s.12: the shortest time between two requests that bring and get nothing.
const POLLING: Duration = Duration::from_secs(2);
/// s.10: the longest pause that a client may ask for.
const MOST_PAUSE: Duration = Duration::from_secs(120);
/// Bytes of stanzas in one answer, after which no further one is begun.
const MOST_ANSWER: usize = 64 * 1024;

/// All bindings of this server. How many there are is bounded by the places of clients.
#[derive(Default)]
pub(super) struct Bindings {
    by_sid: Mutex<HashMap<String, Arc<Binding>>>,
}

/// What a request came to.
pub(super) enum Outcome {
    /// A body.
    Answer(Bytes),
    /// The binding ends, or there is none.
    End(Condition, String),
}

/// A session that a client asks for.
pub(super) struct Wish {
    pub(super) to: String,
    pub(super) opening: Opening,
    body: Body,
}

/// A request that has been read.
pub(super) enum Request {
    /// The first one of a session.
    Begin(Box<Wish>),
    /// Another one.
    Continue(Box<Body>, String),
}

/// Reads a request.
///
/// # Errors
/// What to answer, and why.
pub(super) fn read(bytes: Bytes) -> Result<Request, (Condition, String)> {
    let body = body::read(bytes).map_err(|wrong| (Condition::BadRequest, wrong.to_string()))?;
    if let Some(sid) = body.sid.clone() {
        return Ok(Request::Continue(Box::new(body), sid));
    }
    let Some(to) = body.to.clone() else {
        return Err((Condition::ImproperAddressing, "a session with nobody".into()));
    };
    let opening = Opening {
        from: body.from.clone(),
        to: Some(to.clone()),
        id: None,
        version: Some(body.version.clone().unwrap_or_else(|| "1.0".into())),
        lang: body.lang.clone(),
    };
    Ok(Request::Begin(Box::new(Wish { to, opening, body })))
}

impl Bindings {
    /// Begins a session over `frames` and answers its first request.
    pub(super) async fn begin(self: &Arc<Self>, wish: Wish, frames: Frames) -> Outcome {
        let Wish { to, opening, body } = wish;
        let hold = body.hold.unwrap_or(HOLD).min(HOLD);
        let wait = body.wait.unwrap_or(WAIT).min(WAIT);
        frames.feed(opening.header());
        let binding = Arc::new(Binding {
            sid: crate::ids::token(24),
            domain: to,
            // s.7: who holds nothing polls.
            wait: if hold == 0 { 0 } else { wait },
            hold,
            frames,
            changed: Notify::new(),
            state: Mutex::new(State::new(&body)),
        });
        self.by_sid.lock().insert(binding.sid.clone(), Arc::clone(&binding));
        tokio::spawn(Arc::clone(&binding).drive(Arc::clone(self)));
        self.ask(binding, body).await
    }

    /// Another request of a session.
    pub(super) async fn go_on(self: &Arc<Self>, body: Body, sid: &str) -> Outcome {
        let binding = self.by_sid.lock().get(sid).cloned();
        match binding {
            Some(binding) => self.ask(binding, body).await,
            None => Outcome::End(Condition::ItemNotFound, "a session that is not there".into()),
        }
    }

    async fn ask(&self, binding: Arc<Binding>, body: Body) -> Outcome {
        // A session that reads slowly is not fed without end.
        poll_fn(|cx| binding.frames.poll_room(cx)).await;
        let rid = body.rid;
        let answer = match binding.take(body) {
            Ok(answer) => answer,
            Err((condition, why)) => {
                binding.end();
                self.by_sid.lock().remove(&binding.sid);
                return Outcome::End(condition, why.into());
            }
        };
        let mut answer = match answer {
            Taken::Before(bytes) => return Outcome::Answer(bytes),
            Taken::Waits(answer) => answer,
        };
        // Features come within moments even for those who would rather poll.
        let wait = Duration::from_secs(if binding.is_new() { WAIT } else { binding.wait });
        let outcome = match tokio::time::timeout(wait, &mut answer).await {
            Ok(outcome) => outcome,
            Err(_) => {
                binding.expire(rid);
                // One that came too early is not answered before the one that is missing.
                match tokio::time::timeout(INACTIVITY, answer).await {
                    Ok(outcome) => outcome,
                    Err(_) => return Outcome::Answer(Answer::default().write().into()),
                }
            }
        };
        // Another connection has brought the same request, or the session is over.
        Outcome::Answer(outcome.unwrap_or_else(|_| Answer::default().write().into()))
    }
}

/// One session between requests.
pub(super) struct Binding {
    sid: String,
    domain: String,
    /// Seconds.
    wait: u64,
    hold: u64,
    frames: Frames,
    /// A request has come, or been answered.
    changed: Notify,
    state: Mutex<State>,
}

struct State {
    /// The last request that was taken in order.
    rid: u64,
    /// Taken and not answered, in order.
    held: VecDeque<Held>,
    /// Came before their turn. They are within the window, so there are few.
    early: BTreeMap<u64, (Body, oneshot::Sender<Bytes>)>,
    /// Answers that may have to be given again.
    sent: VecDeque<Sent>,
    /// For the next answer, and the frames that it was made of.
    payload: Vec<Vec<u8>>,
    frames: u64,
    opening: Option<Opening>,
    /// The client knows its session's id.
    begun: bool,
    /// The session has ended, and how.
    end: Option<Option<Condition>>,
    over: bool,
    /// s.9: the client says what it has.
    acks: bool,
    ver: (u32, u32),
    /// s.15: the next key's hash.
    key: Option<String>,
    /// Since when no request waits.
    idle: Instant,
    pause: Option<Duration>,
    /// When a request came that brought nothing and got nothing as yet.
    empty: Option<Instant>,
}

struct Held {
    rid: u64,
    answer: oneshot::Sender<Bytes>,
}

struct Sent {
    rid: u64,
    bytes: Bytes,
    /// Those in it that are not confirmed.
    frames: u64,
}

/// What becomes of a request.
enum Taken {
    /// It was answered before.
    Before(Bytes),
    Waits(oneshot::Receiver<Bytes>),
}

type Refusal = (Condition, &'static str);

impl State {
    fn new(first: &Body) -> State {
        State {
            rid: first.rid - 1,
            held: VecDeque::new(),
            early: BTreeMap::new(),
            sent: VecDeque::new(),
            payload: Vec::new(),
            frames: 0,
            opening: None,
            begun: false,
            end: None,
            over: false,
            acks: first.ack.is_some(),
            ver: first.ver.unwrap_or(VERSION).min(VERSION),
            key: None,
            idle: Instant::now(),
            pause: None,
            empty: None,
        }
    }

    /// s.15: each request shows what the hash before was made of, and may begin another sequence.
    fn check_key(&mut self, body: &Body) -> bool {
        if let Some(expected) = &self.key {
            let right = body.key.as_deref().is_some_and(|key| sha1(key) == *expected);
            if !right {
                return false;
            }
            self.key.clone_from(&body.key);
        }
        if body.new_key.is_some() {
            self.key.clone_from(&body.new_key);
        }
        true
    }
}

fn sha1(text: &str) -> String {
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Binding {
    /// s.7: what the client may have under way at once.
    fn requests(&self) -> u64 {
        self.hold + 1
    }

    fn is_new(&self) -> bool {
        !self.state.lock().begun
    }

    /// Takes a request, in its turn.
    fn take(&self, body: Body) -> Result<Taken, Refusal> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.over {
            return Err((Condition::ItemNotFound, "a session that is over"));
        }
        let (sender, receiver) = oneshot::channel();
        if body.rid <= state.rid {
            // s.14.3: the same request again, because a connection broke.
            if let Some(held) = state.held.iter_mut().find(|held| held.rid == body.rid) {
                held.answer = sender;
                return Ok(Taken::Waits(receiver));
            }
            let sent = state.sent.iter().find(|sent| sent.rid == body.rid);
            return match sent {
                Some(sent) => Ok(Taken::Before(sent.bytes.clone())),
                None => Err((Condition::ItemNotFound, "a request whose answer is not kept any more")),
            };
        }
        if body.rid > state.rid + self.requests() {
            return Err((Condition::ItemNotFound, "a request beyond the window"));
        }
        state.early.insert(body.rid, (body, sender));
        while let Some((body, sender)) = state.early.remove(&(state.rid + 1)) {
            self.process(state, body, sender)?;
        }
        self.changed.notify_one();
        Ok(Taken::Waits(receiver))
    }

    fn process(&self, state: &mut State, body: Body, answer: oneshot::Sender<Bytes>) -> Result<(), Refusal> {
        if !state.check_key(&body) {
            return Err((Condition::ItemNotFound, "a wrong key"));
        }
        state.rid = body.rid;
        self.confirm(state, &body);
        let empty = body.payload.is_empty() && !body.terminate && !body.restart && body.pause.is_none();
        let now = Instant::now();
        if empty && state.begun && state.empty.is_some_and(|before| now - before < POLLING) {
            // s.12: two requests that say nothing, and the first was told nothing.
            return Err((Condition::PolicyViolation, "requests without content, too often"));
        }
        state.empty = (empty && state.begun).then_some(now);
        if body.restart {
            // XEP-0206 s.5.
            let to = Some(body.to.clone().unwrap_or_else(|| self.domain.clone()));
            let version = Some("1.0".to_owned());
            let opening = Opening { from: body.from, to, id: None, version, lang: body.lang };
            self.frames.feed(opening.header());
        }
        for element in body.payload {
            self.frames.feed(element);
        }
        if body.terminate {
            self.frames.feed(END);
        }
        state.held.push_back(Held { rid: body.rid, answer });
        state.pause = body.pause.map(|seconds| Duration::from_secs(seconds).min(MOST_PAUSE));
        // s.10: who asks for a pause wants all answers first; s.7: else there may be as many as agreed.
        let most = if state.pause.is_some() { 0 } else { self.hold.max(u64::from(!state.begun)) };
        while state.held.len() as u64 > most {
            self.respond(state);
        }
        Ok(())
    }

    /// What the client has for sure, now that it has sent this.
    fn confirm(&self, state: &mut State, body: &Body) {
        let upto = match body.ack {
            // s.9.1: the highest answer that it has.
            Some(ack) if state.acks => ack,
            _ => body.rid - 1,
        };
        let got = state.sent.iter_mut().filter(|sent| sent.rid <= upto);
        let frames = got.map(|sent| std::mem::take(&mut sent.frames)).sum();
        self.frames.confirm(frames);
    }

    /// Answers the oldest request with what there is.
    fn respond(&self, state: &mut State) {
        let Some(held) = state.held.pop_front() else { return };
        let payload = std::mem::take(&mut state.payload);
        let stream = state.opening.as_ref().and_then(|opening| opening.id.as_deref());
        let terms = (!state.begun).then(|| Terms {
            sid: &self.sid,
            from: &self.domain,
            stream,
            ver: state.ver,
            wait: self.wait,
            hold: self.hold,
            requests: self.requests(),
            inactivity: INACTIVITY.as_secs(),
            polling: POLLING.as_secs(),
            pause: MOST_PAUSE.as_secs(),
            ack: state.acks.then_some(held.rid),
        });
        let ack = (state.acks && state.begun && held.rid != state.rid).then_some(state.rid);
        let bytes = Bytes::from(Answer { terms, ack, end: state.end, payload: &payload }.write());
        state.begun = true;
        if !payload.is_empty() {
            state.empty = None;
        }
        if state.end.is_some() {
            state.over = true;
        }
        state.sent.push_back(Sent {
            rid: held.rid,
            bytes: bytes.clone(),
            frames: std::mem::take(&mut state.frames),
        });
        while state.sent.len() as u64 > self.requests() {
            let old = state.sent.pop_front();
            self.frames.confirm(old.map_or(0, |sent| sent.frames));
        }
        state.idle = Instant::now();
        // Who brought it may be gone: then it comes for it again, or the session is over some time.
        let _ = held.answer.send(bytes);
        self.changed.notify_one();
    }

    /// The request has waited long enough.
    fn expire(&self, rid: u64) {
        let mut state = self.state.lock();
        while state.held.iter().any(|held| held.rid == rid) {
            self.respond(&mut state);
        }
    }

    /// Nobody is answered any more: what waits gets an answer without content.
    fn end(&self) {
        let mut state = self.state.lock();
        state.over = true;
        state.held.clear();
        state.early.clear();
        self.changed.notify_one();
    }

    /// Answers when the session writes, until it is over.
    async fn drive(self: Arc<Self>, bindings: Arc<Bindings>) {
        loop {
            let (waits, deadline) = {
                let state = self.state.lock();
                if state.over {
                    break;
                }
                let waits = !state.held.is_empty();
                (waits, (!waits).then(|| state.idle + state.pause.unwrap_or(INACTIVITY)))
            };
            let ended = self.state.lock().end.is_some();
            tokio::select! {
                biased;
                // Only for somebody who takes it: the rest waits in the session's own queue.
                frame = self.frames.frame(), if waits && !ended => self.answer(frame).await,
                () = self.changed.notified() => {
                    let mut state = self.state.lock();
                    if state.end.is_some() && !state.held.is_empty() {
                        self.respond(&mut state);
                    }
                }
                () = sleep_until(deadline) => {
                    tracing::debug!("a BOSH session has no requests any more");
                    break;
                }
            }
        }
        self.end();
        bindings.by_sid.lock().remove(&self.sid);
    }

    /// Answers with a frame and what comes along with it.
    async fn answer(&self, first: Option<Frame>) {
        // What a session writes in one go belongs into one answer.
        tokio::task::yield_now().await;
        let mut state = self.state.lock();
        let (mut next, mut bytes) = (Some(first), 0);
        while let Some(frame) = next {
            match frame {
                Some(Frame::Open(opening)) => state.opening = Some(opening),
                Some(Frame::Element(element)) => {
                    bytes += element.len();
                    state.payload.push(element);
                }
                Some(Frame::Error(error)) => {
                    state.payload.push(error);
                    state.end = Some(Some(Condition::RemoteStreamError));
                }
                Some(Frame::Close) => state.end = Some(state.end.flatten()),
                None => {
                    state.end = Some(state.end.flatten());
                    break;
                }
            }
            state.frames += 1;
            next = if bytes < MOST_ANSWER { self.frames.try_frame().map(Some) } else { None };
        }
        // A stream header alone is nothing to tell: features follow.
        if !state.payload.is_empty() || state.end.is_some() {
            self.respond(&mut state);
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
