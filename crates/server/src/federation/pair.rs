//! What one of our domains sends to one peer domain: one queue, one order, the stream that carries it, and when to
//! try again.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use trunkline_xmpp::classify::classify;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::{Kind, PresenceType};

use super::answers::Answering;
use super::budget::{Claim, Most};
use super::crossing::Load;
use super::expiry::Bounce;
use super::failure::Failure;
use super::handle::Handle;
use super::outbound;
use super::peer::{MOST_FAULTS, Peer};
use super::queue::{Bounds, Full, Held, Item, Page, Queue, Sort, WEIGHT};
use super::shared::Shared;
use crate::admin::LastError;
use crate::exchange::Host;
use crate::ids::LogId;
use crate::route::Mail;
use crate::session::ledger::Receipt;

/// The pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// Without kept stanzas nothing is retried, and a new stanza may make a new attempt after this at the latest.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// Milliseconds until a domain that is cut off is looked at again, if nobody says that the policy has changed.
const FORBIDDEN: i64 = 60_000;
/// A stream that lived this long shows that the peer is well.
const GOOD_LIFE: Duration = Duration::from_secs(60);

/// One of our domains and one peer domain: what is sent keeps its order.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) local: Arc<Host>,
    pub(super) peer: Jid,
    load: Arc<Load>,
    state: Mutex<State>,
    /// Wakes who waits for the next attempt.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    phase: Phase,
    failures: u32,
    /// No attempt before; milliseconds since 1970.
    not_before: i64,
    last: Option<(i64, Failure)>,
    loading: bool,
    /// Something other than an answer of the server's has come since the pair was last at rest.
    wanted: bool,
    /// Taken by the account that has made us call the peer, until the peer answers or nothing waits.
    place: Option<Claim<Jid>>,
    /// Streams in a row that bugs of ours have ended.
    faults: u32,
}

/// What happens for a pair.
#[derive(Clone, Debug)]
enum Phase {
    /// Nothing waits, no stream.
    Idle,
    /// A stream is being made.
    Connecting,
    /// A stream carries it.
    Up(Arc<Handle>),
    /// Kept stanzas wait for the next attempt.
    Waiting,
}

/// Stanzas that stay until the peer has them: what the classifier keeps, and the four of RFC 6121 s.3. Never an answer
/// of the server's own: a peer that wants one has a stream to take it.
pub(super) fn keeps(mail: &Mail) -> bool {
    if mail.is_answer() {
        return false;
    }
    match mail.stanza.head.kind {
        Kind::Message(_) => classify(&mail.stanza).offline.yes,
        Kind::Presence(kind) => matches!(
            kind,
            PresenceType::Subscribe
                | PresenceType::Subscribed
                | PresenceType::Unsubscribe
                | PresenceType::Unsubscribed
        ),
        Kind::Iq(_) => false,
    }
}

impl Pair {
    pub(super) fn new(local: Arc<Host>, peer: &Peer, queue: Queue) -> Arc<Pair> {
        let state = State {
            wanted: !queue.is_empty(),
            queue,
            phase: Phase::Idle,
            failures: 0,
            not_before: 0,
            last: None,
            loading: false,
            place: None,
            faults: 0,
        };
        let (peer, load) = (peer.domain.clone(), Arc::clone(&peer.load));
        Arc::new(Pair { local, peer, load, state: Mutex::new(state), changed: Notify::new() })
    }

    /// Takes a stanza. Never waits.
    pub(super) fn enqueue(self: &Arc<Self>, shared: &Arc<Shared>, mail: Mail) -> Result<(), StanzaError> {
        let keep = keeps(&mail);
        // Who refuses a subscription has to know whether the refusal is on its way.
        let presence = matches!(mail.stanza.head.kind, Kind::Presence(kind) if kind != PresenceType::Error);
        let bounds = shared.queue_bounds();
        let now = shared.now();
        let mut state = self.state.lock();
        if !keep && !state.may_go_now(now) {
            // Presence of a domain that can't be reached is of no use later.
            return if presence { Ok(()) } else { Err(state.why_not(&self.peer)) };
        }
        let sort = match (keep, mail.is_answer()) {
            (true, _) => Sort::Kept,
            (false, true) => Sort::Answer,
            (false, false) => Sort::Passing,
        };
        let room = if sort == Sort::Answer { shared.answer_bounds() } else { bounds };
        if let Err(full) = state.queue.admits(sort, mail.stanza.size(), &room) {
            drop(state);
            shared.exchange.metrics.refused("peer-queue-full");
            return if presence && !keep { Ok(()) } else { Err(full_error(full, &self.peer)) };
        }
        if matches!(state.phase, Phase::Idle)
            && let Some(account) = account_of(&mail)
        {
            let most = Most::each(super::MOST_WAITING);
            let Ok(place) = shared.budgets.waiting_for.take(account, most) else {
                drop(state);
                shared.exchange.metrics.refused("too-many-domains");
                return if presence && !keep { Ok(()) } else { Err(too_many_domains()) };
            };
            state.place = Some(place);
        }
        state.wanted |= !mail.is_answer();
        let counted = Some(shared.note_queued(mail.stanza.size() + WEIGHT));
        let answers = (sort == Sort::Answer).then(|| Answering::new(&self.load, mail.stanza.size()));
        let mut item =
            Item { stanza: mail.stanza, kept: None, expires: 0, held: None, answers, _counted: counted };
        let mut held = false;
        if keep {
            item.kept = Some(shared.exchange.ids.next());
            item.expires = now.saturating_add(shared.queue_age());
            held = matches!(state.phase, Phase::Up(_))
                && matches!(item.stanza.head.kind, Kind::Message(_))
                && state.queue.has_memory(item.size(), &bounds);
            if held {
                item.held = Some(Held { since: Instant::now(), receipt: mail.receipt });
            } else {
                // Under the lock, so that rows are written in the order of their ids.
                self.write(shared, &item, mail.receipt);
            }
        }
        state.queue.push(item, &bounds);
        let start = state.start(now);
        let up = state.up();
        drop(state);
        if start {
            shared.start_trunk(self);
        }
        if let Some(handle) = up {
            if held {
                handle.note_held();
            }
            handle.wake();
        }
        Ok(())
    }

    /// Writes the row of a kept stanza; `receipt` goes when it is on disk.
    fn write(self: &Arc<Self>, shared: &Arc<Shared>, item: &Item, receipt: Option<Receipt>) {
        let Some(id) = item.kept else { return };
        let batch = outbound::insert(id, self.local.domain.as_str(), self.peer.as_str(), item);
        let (shared, pair, stanza) = (Arc::clone(shared), Arc::clone(self), item.stanza.clone());
        shared.clone().exchange.db.submit(batch, move |result| {
            if let Err(error) = result {
                tracing::warn!(%error, "a stanza for another domain can't be kept");
                let bounce = Bounce { stanza, kept: Some(id) };
                let inside = shared.exchange.runtime.clone();
                inside.spawn(async move {
                    pair.not_written(&shared, bounce, receipt);
                });
            }
        });
    }

    /// Writes the row of a stanza that was held, now.
    pub(super) fn write_held(self: &Arc<Self>, shared: &Arc<Shared>, item: &mut Item) {
        if let Some(mut held) = item.held.take() {
            self.write(shared, item, held.receipt.take());
        }
    }

    /// Writes the rows of stanzas that were held since `until` or longer and have not been sent. Since when the next one
    /// has been held.
    pub(super) fn write_waiting(self: &Arc<Self>, shared: &Arc<Shared>, until: Instant) -> Option<Instant> {
        let mut state = self.state.lock();
        for item in state.queue.held() {
            match &item.held {
                Some(held) if held.since > until => return Some(held.since),
                _ => self.write_held(shared, item),
            }
        }
        None
    }

    /// The row could not be written: the sender must not believe that it was.
    fn not_written(&self, shared: &Arc<Shared>, bounce: Bounce, receipt: Option<Receipt>) {
        let mut state = self.state.lock();
        if let Some(id) = bounce.kept
            && !state.queue.remove(id)
        {
            state.queue.remove_from_disk(id);
        }
        state.queue.forget(1);
        drop(state);
        let error =
            StanzaError::new(Condition::ResourceConstraint).text("This server can't keep messages just now.");
        shared.bounce_then(vec![Bounce { kept: None, ..bounce }], error, receipt);
    }

    /// Makes sure that somebody looks after what waits, from then on.
    pub(super) fn kick_at(self: &Arc<Self>, shared: &Arc<Shared>, at: i64) {
        let mut state = self.state.lock();
        state.not_before = at;
        let start = state.start(shared.now());
        drop(state);
        if start {
            shared.start_trunk(self);
        }
    }

    /// Waits for its time, then says whether an attempt is to be made.
    pub(super) async fn next_attempt(&self, shared: &Shared) -> bool {
        loop {
            let changed = self.changed.notified();
            let wait = {
                let mut state = self.state.lock();
                match state.phase {
                    Phase::Up(_) | Phase::Idle => return false,
                    Phase::Connecting => return true,
                    Phase::Waiting if state.queue.is_empty() => {
                        state.come_to_rest();
                        return false;
                    }
                    Phase::Waiting => {
                        let forbidden = shared.forbidden(self.peer.as_str());
                        let cut_off = matches!(forbidden, Some(Failure::CutOff(_)));
                        let wait = (state.not_before - shared.now()).max(if cut_off { FORBIDDEN } else { 0 });
                        // What waits for a domain that is blocked has come to its end.
                        if wait <= 0 || matches!(forbidden, Some(Failure::Policy(_))) {
                            state.phase = Phase::Connecting;
                            return true;
                        }
                        // A domain that is cut off is looked at again when the policy changes, or after a while.
                        Duration::from_millis(u64::try_from(wait).unwrap_or(0).max(10))
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = changed => {}
            }
        }
    }

    /// The peer showed signs of life, or the policy changed: no more waiting.
    pub(super) fn hurry(&self) {
        self.state.lock().not_before = 0;
        self.changed.notify_waiters();
    }

    /// An attempt failed. Returns false when nothing is left to retry for.
    pub(super) fn failed(&self, shared: &Arc<Shared>, failure: Failure) -> bool {
        let now = shared.now();
        let mut state = self.state.lock();
        if let Phase::Up(_) = state.phase {
            return false;
        }
        let transient = state.queue.take_transient();
        let pause = state.note_failure(now, failure.clone(), shared.longest_pause());
        let again = state.queue.has_kept();
        if again {
            state.phase = Phase::Waiting;
        } else {
            state.come_to_rest();
        }
        state.wanted = again;
        if !again {
            state.not_before = now + millis(pause.min(LONGEST_REST));
        }
        drop(state);
        let bounces = transient.into_iter().map(|stanza| Bounce { stanza, kept: None }).collect();
        shared.bounce(bounces, failure.stanza_error());
        again
    }

    /// Takes everything out that is in memory: the domain does not exist, or must not be talked to.
    pub(super) fn give_up(&self) -> Vec<Bounce> {
        let mut state = self.state.lock();
        let mut out = Vec::new();
        if let Phase::Up(_) = state.phase {
            // The peer has connected meanwhile: it does exist.
            return out;
        }
        while let Some(item) = state.queue.pop() {
            out.push(Bounce::from(item));
        }
        out
    }

    /// Nothing is left, and nobody will try.
    pub(super) fn rest(&self) -> bool {
        let mut state = self.state.lock();
        let rest = state.queue.is_empty() && matches!(state.phase, Phase::Waiting | Phase::Connecting);
        if rest {
            state.come_to_rest();
        }
        rest
    }

    /// A stream offers to carry the pair. False when another one does.
    pub(super) fn attach(&self, handle: &Arc<Handle>) -> bool {
        let mut state = self.state.lock();
        if let Phase::Up(_) = state.phase {
            return false;
        }
        state.phase = Phase::Up(Arc::clone(handle));
        state.place = None;
        drop(state);
        self.changed.notify_waiters();
        true
    }

    /// Somebody here waits for the stream; otherwise only outsiders wait for answers.
    pub(super) fn is_wanted(&self) -> bool {
        self.state.lock().wanted
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Up(_))
    }

    /// The stream is over; what it had not delivered comes back.
    pub(super) fn detach(self: &Arc<Self>, shared: &Arc<Shared>, parting: Parting) {
        let now = shared.now();
        let mut state = self.state.lock();
        if !matches!(&state.phase, Phase::Up(handle) if handle.serial == parting.serial) {
            return;
        }
        let (mut kept, lost): (Vec<_>, Vec<_>) =
            parting.undelivered.into_iter().partition(|item| item.kept.is_some());
        // Nobody carries the pair now: whatever was held gets its row.
        kept.iter_mut().chain(state.queue.held()).for_each(|item| self.write_held(shared, item));
        let tried: Vec<LogId> = kept.iter().filter_map(|item| item.kept).collect();
        state.queue.put_back(kept);
        state.faults = match parting.failure {
            Some(Failure::Internal) => state.faults.saturating_add(1),
            _ => 0,
        };
        // What makes us fail would do so on every stream, and hold up all that is behind it.
        let poisonous = match state.faults {
            MOST_FAULTS.. => std::iter::from_fn(|| state.queue.pop()).map(Bounce::from).collect(),
            _ => Vec::new(),
        };
        state.queue.forget(poisonous.iter().filter(|bounce: &&Bounce| bounce.kept.is_some()).count());
        match parting.failure.clone() {
            Some(failure) if parting.lived < GOOD_LIFE => {
                state.note_failure(now, failure, shared.longest_pause());
            }
            Some(failure) => {
                state.last = Some((now, failure));
                state.failures = 0;
                state.not_before = 0;
            }
            None => {
                state.failures = 0;
                state.not_before = 0;
            }
        }
        state.come_to_rest();
        state.wanted = !state.queue.is_empty();
        let start = state.start(now);
        drop(state);
        outbound::count_attempt(&shared.exchange.db, &tried);
        // What was written and can't be repeated: who asked gets an answer, at the price that it may be wrong.
        let failure = parting.failure.unwrap_or(Failure::Closed);
        let bounces = lost.into_iter().map(Bounce::from).chain(poisonous).collect();
        shared.bounce(bounces, failure.stanza_error());
        if start {
            shared.start_trunk(self);
        }
    }

    /// The next stanzas for the stream that carries the pair: as many as `room` takes, at least one if there is any.
    pub(super) fn pop(self: &Arc<Self>, shared: &Arc<Shared>, room: Room) -> Vec<Item> {
        let mut items = Vec::new();
        let mut bytes = 0;
        let mut state = self.state.lock();
        while items.len() < room.stanzas
            && bytes < room.bytes
            && let Some(item) = state.queue.pop()
        {
            bytes += item.size();
            items.push(item);
        }
        let page = if state.queue.is_on_disk() { state.page(&shared.queue_bounds()) } else { None };
        drop(state);
        if let Some(page) = page {
            let (shared, pair) = (Arc::clone(shared), Arc::clone(self));
            shared.runtime.clone().spawn(async move { pair.load(&shared, page).await });
        }
        items
    }

    /// Where to read on from the disk, if that is to be done now; the caller then calls [`Pair::add_page`] or
    /// [`Pair::no_page`].
    pub(super) fn wants_page(&self, bounds: &Bounds) -> Option<Page> {
        self.state.lock().page(bounds)
    }

    /// A page was read.
    pub(super) fn add_page(&self, page: Page, read: outbound::Read) {
        let mut state = self.state.lock();
        state.loading = false;
        state.queue.add_page(page, read.rows, read.last, read.items);
        let up = state.up();
        drop(state);
        if let Some(handle) = up {
            handle.wake();
        }
    }

    /// The page could not be read.
    pub(super) fn no_page(&self) {
        self.state.lock().loading = false;
    }

    /// The peer has these. Those whose row was not written need none any more; their senders may know.
    pub(super) fn delivered(&self, shared: &Shared, items: Vec<Item>) {
        self.forget(items.iter().filter(|item| item.kept.is_some()).count());
        let rows: Vec<LogId> =
            items.iter().filter(|item| item.held.is_none()).filter_map(|item| item.kept).collect();
        outbound::delete(&shared.exchange.db, &rows);
    }

    /// Rows have gone.
    pub(super) fn forget(&self, rows: usize) {
        self.state.lock().queue.forget(rows);
    }

    /// Its time is over. True when it waited here and is to be bounced now; false when it is on its way.
    pub(super) fn expire(&self, id: LogId) -> bool {
        let mut state = self.state.lock();
        !state.loading && (state.queue.remove(id) || state.queue.remove_from_disk(id))
    }

    /// Neither stream nor stanza: the pair can be forgotten.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        matches!(state.phase, Phase::Idle) && state.queue.is_empty() && state.queue.kept() == 0
    }

    /// The last thing that went wrong.
    pub(super) fn last_failure(&self) -> Option<Failure> {
        self.state.lock().last.as_ref().map(|(_, failure)| failure.clone())
    }

    /// For `trunkline federation status`.
    pub(super) fn report(&self) -> Report {
        let state = self.state.lock();
        let waiting = matches!(state.phase, Phase::Waiting);
        Report {
            state: match state.phase {
                Phase::Idle => "idle",
                Phase::Connecting => "connecting",
                Phase::Up(_) => "connected",
                Phase::Waiting => "waiting",
            },
            stanzas: state.queue.memory().0,
            bytes: state.queue.memory().1,
            kept: state.queue.kept(),
            oldest: state.queue.oldest(),
            retry_at: waiting.then_some(state.not_before),
            last_error: state
                .last
                .as_ref()
                .map(|(at, failure)| LastError { at: *at, text: failure.to_string() }),
        }
    }
}

/// How much is sent at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) stanzas: usize,
    pub(super) bytes: usize,
}

/// A stream leaves a pair.
#[derive(Debug)]
pub(super) struct Parting {
    pub(super) serial: u64,
    /// In order.
    pub(super) undelivered: Vec<Item>,
    /// `None`: it ended as streams should.
    pub(super) failure: Option<Failure>,
    pub(super) lived: Duration,
}

/// How a pair is.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) state: &'static str,
    pub(super) stanzas: usize,
    pub(super) bytes: usize,
    pub(super) kept: usize,
    /// Since when the oldest kept one waits: milliseconds since 1970.
    pub(super) oldest: Option<i64>,
    pub(super) retry_at: Option<i64>,
    pub(super) last_error: Option<LastError>,
}

impl State {
    fn come_to_rest(&mut self) {
        self.phase = Phase::Idle;
        self.place = None;
    }

    /// A stanza that isn't kept has a chance.
    fn may_go_now(&self, now: i64) -> bool {
        match self.phase {
            Phase::Up(_) | Phase::Connecting => true,
            Phase::Waiting => false,
            Phase::Idle => now >= self.not_before,
        }
    }

    fn why_not(&self, peer: &Jid) -> StanzaError {
        match &self.last {
            Some((_, failure)) => failure.stanza_error(),
            None => StanzaError::new(Condition::RemoteServerTimeout)
                .text(format!("{peer} can't be reached just now.")),
        }
    }

    /// Something waits and nobody looks after it: now somebody has to.
    fn start(&mut self, now: i64) -> bool {
        if !matches!(self.phase, Phase::Idle) || self.queue.is_empty() {
            return false;
        }
        self.phase = if now >= self.not_before { Phase::Connecting } else { Phase::Waiting };
        true
    }

    fn up(&self) -> Option<Arc<Handle>> {
        match &self.phase {
            Phase::Up(handle) => Some(Arc::clone(handle)),
            _ => None,
        }
    }

    fn note_failure(&mut self, now: i64, failure: Failure, longest: Duration) -> Duration {
        let pause = pause(self.failures, longest);
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + millis(pause);
        self.last = Some((now, failure));
        pause
    }

    fn page(&mut self, bounds: &Bounds) -> Option<Page> {
        if self.loading {
            return None;
        }
        let page = self.queue.wants_page(bounds)?;
        self.loading = true;
        Some(page)
    }
}

/// Doubles, with jitter of a quarter either way, so that servers that lost the same peer don't come back together.
fn pause(failures: u32, longest: Duration) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(longest.max(FIRST_PAUSE));
    let mut random = [0u8; 1];
    // Without randomness the pause is a quarter shorter.
    let _ = getrandom::fill(&mut random);
    whole.mul_f64(0.75 + f64::from(random[0]) / 512.0)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The local account that sends, if it is one.
fn account_of(mail: &Mail) -> Option<Jid> {
    let from = mail.stanza.head.from.as_ref().filter(|_| !mail.is_answer())?;
    from.local().is_some().then(|| from.bare())
}

fn too_many_domains() -> StanzaError {
    StanzaError::new(Condition::ResourceConstraint)
        .text("Your messages wait for too many other servers already. Try again later.")
}

fn full_error(full: Full, peer: &Jid) -> StanzaError {
    let text = match full {
        Full::Memory => format!("Too much waits for {peer}. Try again later."),
        Full::Log => format!("{peer} has not taken messages for a while, and no more can be kept for it."),
    };
    StanzaError::new(Condition::ResourceConstraint).text(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_xmpp::stanza::Stanza;

    #[test]
    fn the_pause_doubles_up_to_its_maximum_and_differs() {
        let longest = Duration::from_secs(900);
        for (failures, seconds) in [(0, 2.0), (1, 4.0), (5, 64.0), (20, 900.0), (u32::MAX, 900.0)] {
            let pauses: Vec<f64> = (0..50).map(|_| pause(failures, longest).as_secs_f64()).collect();
            assert!(
                pauses.iter().all(|pause| (seconds * 0.74..seconds * 1.26).contains(pause)),
                "{pauses:?}"
            );
            assert!(pauses.iter().any(|pause| (pause - pauses[0]).abs() > 1e-9), "jitter");
        }
    }

    #[test]
    fn what_is_kept() {
        let keep = |xml: &str| keeps(&Mail::inside(Stanza::parse(xml.as_bytes()).unwrap()));
        let answer = |xml: &str| keeps(&Mail::answer(Stanza::parse(xml.as_bytes()).unwrap()));
        assert!(keep("<message type='chat'><body>hello</body></message>"));
        assert!(keep("<presence type='subscribe'/>"));
        assert!(keep("<presence type='unsubscribed'/>"));
        assert!(!answer("<presence type='unsubscribed'/>"));
        assert!(!keep("<presence/>"));
        assert!(!keep("<presence type='unavailable'/>"));
        assert!(!keep("<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>"));
        assert!(!keep("<message><composing xmlns='http://jabber.org/protocol/chatstates'/></message>"));
    }
}
