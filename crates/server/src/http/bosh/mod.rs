//! XEP-0124 BOSH 1.11.2 with XEP-0206: a client's stream in HTTP requests that wait for their answers.
//!
//! A [`Binding`] is one session between requests. Requests are taken in the order of their numbers, whatever order they
//! come in, and answered in it. What was answered is kept until the client can't ask for it again ([`Window`]). One task
//! a binding ([`Binding::drive`]) does all of it: it takes requests when the session has room, answers them when the
//! session writes or their time is over, and ends the binding when none comes any more. An HTTP connection only brings a
//! request and waits: whether it breaks changes nothing.

mod body;
mod window;

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

pub(super) use self::body::Condition;
use self::body::{Answer, Body, Terms};
use self::window::{Agreed, Arrival, Refusal, Window};
use super::bodies::Room;
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
#[derive(Debug)]
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
    room: Room,
}

/// Another request of a session.
pub(super) struct Next {
    sid: String,
    body: Body,
    /// Of all of it.
    bytes: usize,
    room: Room,
}

/// A request that has been read.
pub(super) enum Request {
    /// The first one of a session.
    Begin(Box<Wish>),
    /// Another one.
    Continue(Box<Next>),
}

/// Reads a request, for whose bytes `room` was made.
///
/// # Errors
/// What to answer, and why.
pub(super) fn read(bytes: Bytes, room: Room) -> Result<Request, (Condition, String)> {
    let size = bytes.len();
    let body = body::read(bytes).map_err(|wrong| (Condition::BadRequest, wrong.to_string()))?;
    if let Some(sid) = body.sid.clone() {
        return Ok(Request::Continue(Box::new(Next { sid, body, bytes: size, room })));
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
    Ok(Request::Begin(Box::new(Wish { to, opening, body, room })))
}

impl Bindings {
    /// Begins a session over `frames` and answers its first request.
    pub(super) async fn begin(self: &Arc<Self>, wish: Wish, frames: Frames) -> Outcome {
        let Wish { to, opening, body, room } = wish;
        let agreed = Agreed {
            hold: body.hold.unwrap_or(HOLD).min(HOLD),
            wait: Duration::from_secs(body.wait.unwrap_or(WAIT).min(WAIT)),
            acks: body.ack.is_some(),
        };
        frames.feed(opening.header());
        let binding = Arc::new(Binding {
            sid: crate::ids::token(24),
            domain: to,
            agreed,
            frames,
            changed: Notify::new(),
            state: Mutex::new(State {
                window: Window::new(body.rid, agreed),
                payload: Vec::new(),
                frames: 0,
                opening: None,
                begun: false,
                end: None,
                over: false,
                leaving: false,
                ver: body.ver.unwrap_or(VERSION).min(VERSION),
                idle: Instant::now(),
                pause: None,
            }),
        });
        self.by_sid.lock().insert(binding.sid.clone(), Arc::clone(&binding));
        tokio::spawn(Arc::clone(&binding).drive(Arc::clone(self)));
        self.ask(&binding, body, room).await
    }

    /// Another request of a session.
    pub(super) async fn go_on(self: &Arc<Self>, next: Next, unauthenticated: usize) -> Outcome {
        let Next { sid, body, bytes, room } = next;
        let binding = self.by_sid.lock().get(&sid).cloned();
        let Some(binding) = binding else {
            return Outcome::End(Condition::ItemNotFound, "a session that is not there".into());
        };
        // Who has not logged in may not have large requests kept until it is their turn.
        if bytes > unauthenticated && !binding.frames.is_settled() {
            self.end(&binding);
            return Outcome::End(Condition::PolicyViolation, "a large request before a login".into());
        }
        self.ask(&binding, body, room).await
    }

    async fn ask(&self, binding: &Binding, body: Body, room: Room) -> Outcome {
        let (answer, waiting) = oneshot::channel();
        match binding.take(Arrival { body, at: Instant::now(), answer, _room: room }) {
            Ok(Some(bytes)) => return Outcome::Answer(bytes),
            Ok(None) => {}
            Err((condition, why)) => {
                self.end(binding);
                return Outcome::End(condition, why.into());
            }
        }
        // A binding that is over has dismissed whoever waited.
        waiting.await.unwrap_or_else(|_| Outcome::Answer(Condition::OtherRequest.body().into()))
    }

    /// A request has ended the session.
    fn end(&self, binding: &Binding) {
        binding.finish(&mut binding.state.lock());
        self.by_sid.lock().remove(&binding.sid);
    }
}

/// One session between requests.
pub(super) struct Binding {
    sid: String,
    domain: String,
    agreed: Agreed,
    frames: Frames,
    /// A request has come, or the binding is over.
    changed: Notify,
    state: Mutex<State>,
}

struct State {
    window: Window,
    /// For the next answer, and the frames that it was made of.
    payload: Vec<Vec<u8>>,
    frames: u64,
    opening: Option<Opening>,
    /// The client knows its session's id.
    begun: bool,
    /// The session has ended, and how.
    end: Option<Option<Condition>>,
    over: bool,
    /// s.13: the client has said that it ends the session.
    leaving: bool,
    ver: (u32, u32),
    /// Since when no request waits.
    idle: Instant,
    pause: Option<Duration>,
}

/// What the task of a binding waits for.
struct Watch {
    /// A request waits for an answer, and the session may have something for it.
    answers: bool,
    /// A request waits for room.
    requests: bool,
    deadline: Option<Instant>,
}

impl Binding {
    /// A request has come. An answer to it that was given before is returned.
    fn take(&self, arrival: Arrival) -> Result<Option<Bytes>, Refusal> {
        let mut state = self.state.lock();
        if state.over {
            return Err((Condition::ItemNotFound, "a session that is over"));
        }
        let before = state.window.arrive(arrival)?;
        self.changed.notify_one();
        Ok(before)
    }

    /// Carries the session until it is over.
    async fn drive(self: Arc<Self>, bindings: Arc<Bindings>) {
        while let Some(watch) = self.watch() {
            tokio::select! {
                biased;
                // A session that reads slowly is not fed without end.
                _ = poll_fn(|cx| self.frames.poll_room(cx)), if watch.requests => self.advance(),
                // Only for somebody who takes it: the rest waits in the session's own queue.
                frame = self.frames.frame(), if watch.answers => {
                    // What a session writes in one go belongs into one answer.
                    tokio::task::yield_now().await;
                    self.tell(frame);
                }
                () = self.changed.notified() => {}
                () = sleep_until(watch.deadline) => self.expire(),
            }
        }
        bindings.by_sid.lock().remove(&self.sid);
    }

    /// What to wait for; `None`: it is over.
    fn watch(&self) -> Option<Watch> {
        let state = self.state.lock();
        if state.over {
            return None;
        }
        let requests = state.window.is_next_there();
        let deadline = match state.window.oldest() {
            Some(held) => Some(held.until),
            // Who waits for us is not away.
            None if requests => None,
            None => Some(state.idle + state.pause.unwrap_or(INACTIVITY)),
        };
        let answers = state.window.waiting() > 0 && state.end.is_none();
        Some(Watch { answers, requests, deadline })
    }

    /// Takes the request whose turn it is.
    fn advance(&self) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut arrival = match state.window.next() {
            None => return,
            Some(Ok(arrival)) => arrival,
            Some(Err((arrival, (condition, why)))) => {
                let _ = arrival.answer.send(Outcome::End(condition, why.into()));
                return self.finish(state);
            }
        };
        self.frames.confirm(state.window.confirm(&arrival.body));
        let body = &mut arrival.body;
        if body.restart {
            // XEP-0206 s.5. What came along with it is ignored.
            let to = Some(body.to.clone().unwrap_or_else(|| self.domain.clone()));
            let version = Some("1.0".to_owned());
            let opening = Opening { from: body.from.take(), to, id: None, version, lang: body.lang.take() };
            self.frames.feed(opening.header());
        } else {
            self.frames.feed(std::mem::take(&mut body.payload));
        }
        if body.terminate {
            self.frames.feed(END);
            state.leaving = true;
        }
        state.pause = body.pause.map(|seconds| Duration::from_secs(seconds).min(MOST_PAUSE));
        // Features come within moments even for those who would rather poll.
        let wait = if state.begun { self.agreed.wait } else { Duration::from_secs(WAIT) };
        state.window.hold(arrival, Instant::now() + wait);
        self.collect(state, None);
        self.respond(state);
    }

    /// The session has written.
    fn tell(&self, first: Option<Frame>) {
        let mut state = self.state.lock();
        self.collect(&mut state, Some(first));
        self.respond(&mut state);
    }

    /// Time is over: for the oldest request, or for the session.
    fn expire(&self) {
        let mut state = self.state.lock();
        let state = &mut *state;
        match state.window.oldest() {
            Some(held) if held.until <= Instant::now() => {
                self.collect(state, None);
                self.answer(state);
            }
            Some(_) => {}
            None => {
                tracing::debug!("a BOSH session has no requests any more");
                self.finish(state);
            }
        }
    }

    /// Takes what the session has written, up to an answer's worth. `first` was taken before.
    fn collect(&self, state: &mut State, first: Option<Option<Frame>>) {
        let mut bytes = state.payload.iter().map(Vec::len).sum::<usize>();
        let mut next = first;
        loop {
            let frame = match next.take() {
                Some(frame) => frame,
                None if bytes >= MOST_ANSWER || state.end.is_some() => return,
                None => match self.frames.try_frame() {
                    Some(frame) => Some(frame),
                    None => return,
                },
            };
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
                Some(Frame::Close) => state.end = Some(None),
                // It was cut off without a word.
                None => {
                    state.end = Some(None);
                    return;
                }
            }
            state.frames += 1;
        }
    }

    /// Answers whom there is something to say to, and who need not wait.
    fn respond(&self, state: &mut State) {
        // s.10: who asks for a pause wants all answers first; s.12: who polls, its own; s.13: the end is told to the
        // oldest; else there may be as many as agreed. The first answer has the features.
        let most = match state.pause {
            Some(_) => 0,
            None if state.leaving => usize::MAX,
            None if state.begun && self.agreed.polls() => 0,
            None => 1,
        };
        while let Some(oldest) = state.window.oldest() {
            // A stream header alone is nothing to tell: features follow.
            let news = state.end.is_some() || (!state.payload.is_empty() && !oldest.pause);
            if !news && state.window.waiting() <= most {
                break;
            }
            self.answer(state);
        }
    }

    /// Answers the oldest request with what there is.
    fn answer(&self, state: &mut State) {
        let Some(rid) = state.window.oldest_rid() else { return };
        // s.10: the answer to a request for a pause brings nothing.
        let silent = state.window.oldest().is_some_and(|held| held.pause) && state.end.is_none();
        let (payload, frames) = match silent {
            true => (Vec::new(), 0),
            false => (std::mem::take(&mut state.payload), std::mem::take(&mut state.frames)),
        };
        let stream = state.opening.as_ref().and_then(|opening| opening.id.as_deref());
        let terms = (!state.begun).then(|| Terms {
            sid: &self.sid,
            from: &self.domain,
            stream,
            ver: state.ver,
            // s.7: who holds nothing polls.
            wait: if self.agreed.polls() { 0 } else { self.agreed.wait.as_secs() },
            hold: self.agreed.hold,
            requests: self.agreed.requests(),
            inactivity: INACTIVITY.as_secs(),
            polling: POLLING.as_secs(),
            pause: MOST_PAUSE.as_secs(),
            ack: self.agreed.acks.then_some(rid),
        });
        let highest = state.window.rid();
        let ack = (self.agreed.acks && state.begun && rid != highest).then_some(highest);
        let bytes = Bytes::from(Answer { terms, ack, end: state.end, payload: &payload }.write());
        state.begun = true;
        state.idle = Instant::now();
        state.window.answer(bytes, frames);
        if state.end.is_some() {
            self.finish(state);
        }
    }

    /// It is over: nobody is kept waiting.
    fn finish(&self, state: &mut State) {
        state.over = true;
        // s.13: beside a client's own end there is nothing to say. s.17.2: else something else has ended it.
        let rest = match state.end {
            Some(None) => Answer::default().write(),
            _ => Condition::OtherRequest.body(),
        };
        state.window.dismiss(&rest.into());
        self.changed.notify_one();
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Waker};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::http::frames::pair;
    use crate::net::Transport;

    const FEATURES: &[u8] = b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
        xmlns:stream='http://etherx.jabber.org/streams' id='1' from='a.example' version='1.0'><stream:features/>";

    /// A session that this test writes and reads, and its binding.
    struct Play {
        session: Transport,
        bindings: Arc<Bindings>,
        sid: String,
    }

    fn text(outcome: Outcome) -> String {
        match outcome {
            Outcome::Answer(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            Outcome::End(condition, why) => panic!("{condition:?}: {why}"),
        }
    }

    impl Play {
        async fn new(terms: &str) -> Play {
            let (mut session, frames) = pair(true, None);
            let bindings = Arc::new(Bindings::default());
            let body =
                format!("<body xmlns='http://jabber.org/protocol/httpbind' rid='1' to='a.example' {terms}/>");
            let Ok(Request::Begin(wish)) = read(body.into(), Room::none()) else { panic!("no beginning") };
            session.write_all(FEATURES).await.unwrap();
            let first = text(bindings.begin(*wish, frames).await);
            let sid = first.split(" sid='").nth(1).unwrap().split('\'').next().unwrap().to_owned();
            let mut play = Play { session: session.settled(), bindings, sid };
            play.reads().await;
            play
        }

        fn ask(&self, rid: u64, more: &str, inside: &str) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
            let sid = &self.sid;
            let body = format!(
                "<body xmlns='http://jabber.org/protocol/httpbind' rid='{rid}' sid='{sid}' {more}>{inside}</body>"
            );
            let Ok(Request::Continue(next)) = read(body.into(), Room::none()) else { panic!("no request") };
            let bindings = Arc::clone(&self.bindings);
            Box::pin(async move { bindings.go_on(*next, usize::MAX).await })
        }

        /// Reads what there is.
        async fn reads(&mut self) -> usize {
            let mut all = 0;
            let mut buffer = vec![0; 1 << 20];
            while let Ok(Ok(read)) =
                tokio::time::timeout(Duration::from_millis(10), self.session.read(&mut buffer)).await
            {
                all += read;
                if read == 0 {
                    break;
                }
            }
            all
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_room_and_none_is_forgotten() {
        let mut play = Play::new("wait='30' hold='1'").await;
        let large = format!("<a>{}</a>", "x".repeat(70_000));
        // Nobody waits: it is taken, and its answer is that of the next one.
        let first = tokio::spawn(play.ask(2, "", &large));
        tokio::time::sleep(Duration::from_secs(3)).await;
        let second = tokio::spawn(play.ask(3, "", &large));
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!first.is_finished(), "the second is not taken as long as there is no room");
        assert_eq!(play.reads().await, 2 * large.len());
        assert!(first.await.is_ok());
        assert!(!second.is_finished());
        play.session.write_all(b"<b/>").await.unwrap();
        assert!(text(second.await.unwrap()).contains("<b"), "and it is answered as ever");
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_does_not_read_is_no_client_that_is_away() {
        let mut play = Play::new("wait='30' hold='1'").await;
        let large = format!("<a>{}</a>", "x".repeat(70_000));
        let first = tokio::spawn(play.ask(2, "", &large));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let second = tokio::spawn(play.ask(3, "", &large));
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(first.is_finished() && !second.is_finished());
        assert_eq!(play.reads().await, 2 * large.len());
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_with_a_pause_is_told_to_the_next_request_at_once() {
        let mut play = Play::new("wait='30' hold='1'").await;
        play.session.write_all(b"<message><body>x</body></message>").await.unwrap();
        let paused = text(play.ask(2, "pause='60'", "").await);
        assert_eq!(paused, "<body xmlns='http://jabber.org/protocol/httpbind'/>", "s.10: nothing in it");
        let before = Instant::now();
        assert!(text(play.ask(3, "", "").await).contains("<body>x</body>"));
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn who_polls_is_told_what_there_is() {
        for terms in ["wait='30' hold='0'", "wait='0' hold='1'"] {
            let mut play = Play::new(terms).await;
            play.session.write_all(b"<message><body>x</body></message>").await.unwrap();
            let before = Instant::now();
            assert!(text(play.ask(2, "", "").await).contains("<body>x</body>"), "{terms}");
            assert!(!text(play.ask(3, "", "<a/>").await).contains("<body>x</body>"), "{terms}");
            assert_eq!(before.elapsed(), Duration::ZERO, "{terms}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_answered_in_time_whoever_brought_it() {
        let mut play = Play::new("wait='30' hold='1'").await;
        let mut lost = play.ask(2, "", "<a/>");
        assert!(lost.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(lost);
        tokio::time::sleep(Duration::from_secs(31)).await;
        let before = Instant::now();
        assert_eq!(
            text(play.ask(2, "", "<a/>").await),
            "<body xmlns='http://jabber.org/protocol/httpbind'/>"
        );
        assert_eq!(before.elapsed(), Duration::ZERO, "its time was over");
        play.reads().await;
        tokio::time::sleep(INACTIVITY).await;
        assert_eq!(play.session.read(&mut [0; 8]).await.unwrap(), 0, "and nothing came any more");
        assert!(play.bindings.by_sid.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_told_that_it_is_over() {
        let end = |condition: &str| {
            format!("<body xmlns='http://jabber.org/protocol/httpbind' type='terminate'{condition}/>")
        };
        // Another request, which is wrong.
        let play = Play::new("wait='30' hold='1'").await;
        let (held, early) =
            (tokio::spawn(play.ask(2, "", "<a/>")), tokio::spawn(play.ask(4, "pause='60'", "")));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(matches!(play.ask(9, "", "").await, Outcome::End(Condition::ItemNotFound, _)));
        for waiting in [held, early] {
            assert_eq!(text(waiting.await.unwrap()), end(" condition='other-request'"));
        }
        // s.13: the client's own end is told to the oldest.
        let mut play = Play::new("wait='30' hold='1'").await;
        let (held, last) =
            (tokio::spawn(play.ask(2, "", "<a/>")), tokio::spawn(play.ask(3, "type='terminate'", "<b/>")));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(play.reads().await, "<a/><b/></stream:stream>".len());
        play.session.write_all(b"</stream:stream>").await.unwrap();
        assert_eq!(text(held.await.unwrap()), end(""));
        assert_eq!(text(last.await.unwrap()), "<body xmlns='http://jabber.org/protocol/httpbind'/>");
    }
}
