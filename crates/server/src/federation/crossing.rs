//! The way from outside to inside: bounded, counted in stanzas and bytes, drained by the inside at its own pace.
//!
//! Federation threads put stanzas here and touch nothing else of the inside: no account, no room, no outbox. Workers
//! on the inside's threads take them out. Order is kept for each pair of addresses, because a pair always
//! uses the same track and a track is served by one worker. When there is no room, streams are not read.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use trunkline_store::Lane;
use trunkline_xmpp::stanza::{Kind, Stanza};

use super::answers::Answers;
use crate::exchange::Exchange;
use crate::route::remote::Entrance;
use crate::route::{Later, Mail, Origin};

/// How long a worker goes on before it looks at what else the inside has to do.
const SLICE: Duration = Duration::from_millis(1);
/// A yield that takes longer than this says that the inside is busy.
const BUSY: Duration = Duration::from_micros(100);

/// Streams that are woken when a stanza has crossed.
const WOKEN: usize = 4;

/// What may wait.
#[derive(Clone, Copy, Debug)]
pub struct CrossingBounds {
    /// Of all peers.
    pub stanzas: usize,
    /// Of all peers.
    pub bytes: usize,
    /// Of one peer domain.
    pub peer_stanzas: usize,
    /// Of one peer domain.
    pub peer_bytes: usize,
    /// Per cent of the inside's time.
    pub share: usize,
}

/// A stream's place in the line of those who wait for room: it has one at most, however often it asks.
#[derive(Debug, Default)]
pub(super) struct Ticket(Arc<AtomicBool>);

/// What one peer domain has in the crossing, and of answers on the way back.
#[derive(Debug, Default)]
pub(super) struct Load {
    stanzas: AtomicUsize,
    bytes: AtomicUsize,
    pub(super) answers: Answers,
    /// Pairs of addresses whose stanzas are crossing, counted: as many as stanzas at most.
    pairs: Mutex<HashMap<u64, usize>>,
}

impl Load {
    /// Something is crossing from there and for them: what comes later must not overtake it.
    pub(super) fn has(&self, stanza: &Stanza) -> bool {
        self.stanzas() > 0 && self.pairs.lock().contains_key(&pair_of(stanza))
    }

    fn enter(&self, pair: u64, size: usize) {
        self.stanzas.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(size, Ordering::Relaxed);
        *self.pairs.lock().entry(pair).or_default() += 1;
    }

    fn leave(&self, pair: u64, size: usize) {
        self.stanzas.fetch_sub(1, Ordering::SeqCst);
        self.bytes.fetch_sub(size, Ordering::SeqCst);
        let mut pairs = self.pairs.lock();
        if let Some(count) = pairs.get_mut(&pair) {
            *count -= 1;
            if *count == 0 {
                pairs.remove(&pair);
            }
        }
    }

    pub(super) fn stanzas(&self) -> usize {
        self.stanzas.load(Ordering::SeqCst)
    }

    /// As if so many stanzas of the peer were crossing, or fewer than there are.
    #[cfg(test)]
    pub(super) fn set(&self, stanzas: usize) {
        self.stanzas.store(stanzas, Ordering::SeqCst);
    }
}

/// The crossing.
#[derive(Debug)]
pub(super) struct Crossing {
    bounds: CrossingBounds,
    tracks: Vec<Track>,
    stanzas: AtomicUsize,
    bytes: AtomicUsize,
    /// Streams that wait for room, in the order in which they came.
    waiting: Mutex<VecDeque<(Arc<AtomicBool>, Waker)>>,
    /// There are some.
    is_awaited: AtomicBool,
}

#[derive(Debug, Default)]
struct Track {
    queue: Mutex<VecDeque<Crosser>>,
    filled: Notify,
}

#[derive(Debug)]
struct Crosser {
    mail: Mail,
    /// The gate has let it through.
    through: bool,
}

/// The room that a stanza has, as [`Mail::room`]: given back whatever happens to it.
struct Place {
    crossing: Arc<Crossing>,
    pair: u64,
    size: usize,
    load: Arc<Load>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crossing.leave((self.pair, self.size), &self.load);
    }
}

/// There is no room for this stanza.
#[derive(Debug)]
pub(super) struct NoRoom(pub(super) Mail);

impl Crossing {
    /// `threads` of the inside serve everything; the workers here occupy the configured share of them at most.
    pub(super) fn new(bounds: CrossingBounds, threads: usize) -> Arc<Crossing> {
        let workers = (threads * bounds.share / 100).clamp(1, 16);
        Arc::new(Crossing {
            bounds,
            tracks: (0..workers).map(|_| Track::default()).collect(),
            stanzas: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            waiting: Mutex::new(VecDeque::new()),
            is_awaited: AtomicBool::new(false),
        })
    }

    /// Starts the workers on the inside's threads.
    pub(super) fn drain(self: &Arc<Self>, exchange: &Arc<Exchange>) {
        for track in 0..self.tracks.len() {
            let (crossing, exchange) = (Arc::clone(self), Arc::clone(exchange));
            Arc::clone(&exchange).spawn(async move {
                loop {
                    let (worker, inside) = (Arc::clone(&crossing), Arc::clone(&exchange));
                    // A bug in a handler costs the stream of the stanza that met it, not the track.
                    match tokio::spawn(async move { worker.work(track, &inside).await }).await {
                        Err(error) if error.is_panic() => {
                            tracing::error!(%error, "a stanza from outside could not be handled; its stream ends")
                        }
                        _ => return,
                    }
                }
            });
        }
    }

    /// Whether a stanza of the peer with this load would be taken.
    pub(super) fn has_room(&self, load: &Load) -> bool {
        self.stanzas.load(Ordering::SeqCst) < self.bounds.stanzas
            && self.bytes.load(Ordering::SeqCst) < self.bounds.bytes
            && load.stanzas() < self.bounds.peer_stanzas
            && load.bytes.load(Ordering::SeqCst) < self.bounds.peer_bytes
    }

    /// Like [`Crossing::has_room`]; if not, the task is woken when something has crossed.
    pub(super) fn poll_room(&self, load: &Load, ticket: &Ticket, cx: &Context<'_>) -> bool {
        if self.has_room(load) {
            return true;
        }
        // The lock is held for a moment only: the inside takes it too, and these threads stand back.
        if !ticket.0.swap(true, Ordering::SeqCst) {
            let waker = cx.waker().clone();
            let mut waiting = self.waiting.lock();
            waiting.push_back((Arc::clone(&ticket.0), waker));
            self.is_awaited.store(true, Ordering::SeqCst);
        }
        // What crossed between the look and the registration woke nobody.
        self.has_room(load)
    }

    /// Takes a stanza, or gives it back. Never waits.
    pub(super) fn push(self: &Arc<Self>, load: &Arc<Load>, mail: Mail) -> Result<(), Box<NoRoom>> {
        self.take(load, mail, false)
    }

    /// The same for a stanza that the gate has let through.
    pub(super) fn push_through(self: &Arc<Self>, load: &Arc<Load>, mail: Mail) -> Result<(), Box<NoRoom>> {
        self.take(load, mail, true)
    }

    fn take(self: &Arc<Self>, load: &Arc<Load>, mut mail: Mail, through: bool) -> Result<(), Box<NoRoom>> {
        if !self.has_room(load) {
            return Err(Box::new(NoRoom(mail)));
        }
        let size = mail.stanza.size();
        self.stanzas.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(size, Ordering::Relaxed);
        let pair = pair_of(&mail.stanza);
        load.enter(pair, size);
        let (crossing, load) = (Arc::clone(self), Arc::clone(load));
        mail.room = Some(Arc::new(Place { crossing, pair, size, load }));
        let track = &self.tracks[self.track_of(pair)];
        track.queue.lock().push_back(Crosser { mail, through });
        track.filled.notify_one();
        Ok(())
    }

    /// Stanzas and bytes that wait.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.stanzas.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    fn track_of(&self, pair: u64) -> usize {
        usize::try_from(pair % self.tracks.len() as u64).unwrap_or(0)
    }

    async fn work(&self, track: usize, exchange: &Arc<Exchange>) {
        let track = &self.tracks[track];
        let mut slice = Instant::now();
        loop {
            let next = track.queue.lock().pop_front();
            let Some(next) = next else {
                track.filled.notified().await;
                slice = Instant::now();
                continue;
            };
            // The store is the brake on everything; inside it has a lane of its own.
            if !exchange.db.has_room(Lane::Outside) {
                exchange.db.ready(Lane::Outside).await;
            }
            let receipt = next.mail.receipt.clone();
            let is_message = matches!(next.mail.stanza.head.kind, Kind::Message(_));
            // Until it has been routed, and longer only if it keeps its room itself: who waits behind their own words.
            let room = next.mail.room.clone();
            if next.through {
                exchange.deliver_through(next.mail).await;
            } else {
                exchange.deliver(next.mail).await;
            }
            exchange.keep_back(receipt.filter(|_| is_message));
            drop(room);
            if slice.elapsed() >= SLICE {
                self.give_way(slice.elapsed()).await;
                slice = Instant::now();
            }
        }
    }

    /// Lets the inside work. If it is busy, for as long as its share of the time says.
    async fn give_way(&self, worked: Duration) {
        let start = Instant::now();
        tokio::task::yield_now().await;
        if start.elapsed() < BUSY {
            return;
        }
        let share = u32::try_from(self.bounds.share.clamp(1, 100)).unwrap_or(100);
        let left = owed(worked, share).saturating_sub(start.elapsed());
        // The timer counts in milliseconds; less is not worth a sleep.
        if left >= Duration::from_millis(1) {
            tokio::time::sleep(left).await;
        }
    }

    fn leave(&self, (pair, size): (u64, usize), load: &Load) {
        let left = self.stanzas.fetch_sub(1, Ordering::SeqCst) - 1;
        self.bytes.fetch_sub(size, Ordering::SeqCst);
        load.leave(pair, size);
        if !self.is_awaited.load(Ordering::SeqCst) {
            return;
        }
        // One place is free: to wake hundreds for it would be the inside's work. Nobody is forgotten: as long as something
        // crosses, some of those who wait are woken for each stanza, and when nothing does any more, all are.
        let most = if left == 0 { usize::MAX } else { WOKEN };
        let woken: SmallVec<[Waker; WOKEN]> = {
            let mut waiting = self.waiting.lock();
            let count = waiting.len().min(most);
            let woken = waiting.drain(..count).map(|(asked, waker)| {
                // Before it is woken: from here on it may ask again.
                asked.store(false, Ordering::SeqCst);
                waker
            });
            let woken = woken.collect();
            self.is_awaited.store(!waiting.is_empty(), Ordering::SeqCst);
            woken
        };
        for waker in woken {
            waker.wake();
        }
    }
}

/// Names who writes to whom. Two pairs that meet by chance wait for each other, and that is all.
fn pair_of(stanza: &Stanza) -> u64 {
    let mut hasher = DefaultHasher::new();
    for jid in [&stanza.head.from, &stanza.head.to] {
        jid.as_ref().map(|jid| jid.bare_str()).hash(&mut hasher);
    }
    hasher.finish()
}

/// How long the inside may work for itself after it has `worked` for the outside, whose share this is, in per cent.
fn owed(worked: Duration, share: u32) -> Duration {
    worked * (100 - share) / share
}

/// The way in for a component on the outside.
pub(super) struct Doorway {
    crossing: Arc<Crossing>,
    load: Arc<Load>,
}

impl Doorway {
    pub(super) fn new(crossing: &Arc<Crossing>) -> Doorway {
        Doorway { crossing: Arc::clone(crossing), load: Arc::default() }
    }
}

impl Entrance for Doorway {
    fn enter(&self, mail: Mail) -> Later {
        let (crossing, load) = (Arc::clone(&self.crossing), Arc::clone(&self.load));
        Box::pin(async move {
            let mut stanza = mail.stanza;
            let ticket = Ticket::default();
            loop {
                poll_fn(
                    |cx| if crossing.poll_room(&load, &ticket, cx) { Poll::Ready(()) } else { Poll::Pending },
                )
                .await;
                let mail = Mail::new(stanza, Origin::Outside);
                match crossing.push(&load, mail) {
                    Ok(()) => return,
                    // Somebody else was faster.
                    Err(no_room) => stanza = no_room.0.stanza,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::ledger::Ledger;
    use trunkline_xmpp::stanza::MessageType;

    fn mail(from: &str) -> Mail {
        let stanza = Stanza::build(Kind::Message(MessageType::Chat))
            .from(from.parse::<trunkline_xmpp::jid::Jid>().unwrap())
            .to("juliet@here.example".parse::<trunkline_xmpp::jid::Jid>().unwrap())
            .done();
        Mail::new(stanza, Origin::Outside)
    }

    /// The next one of the first track has crossed.
    fn leave(crossing: &Crossing) {
        // Not below the lock: that it leaves may wake somebody.
        let next = crossing.tracks[0].queue.lock().pop_front();
        drop(next.unwrap());
    }

    const BOUNDS: CrossingBounds =
        CrossingBounds { stanzas: 4, bytes: 1_000_000, peer_stanzas: 3, peer_bytes: 1_000_000, share: 50 };

    #[test]
    fn a_peer_is_bounded_and_leaves_room_for_others() {
        let crossing = Crossing::new(BOUNDS, 4);
        let (flood, other) = (Arc::new(Load::default()), Arc::new(Load::default()));
        for _ in 0..3 {
            assert!(crossing.push(&flood, mail("a@flood.example")).is_ok());
        }
        assert!(crossing.push(&flood, mail("a@flood.example")).is_err());
        assert!(crossing.push(&other, mail("b@other.example")).is_ok());
        assert!(!crossing.has_room(&other), "the global bound");
        assert_eq!(crossing.waiting().0, 4);
    }

    #[tokio::test]
    async fn a_component_outside_waits_for_room() {
        let crossing = Crossing::new(BOUNDS, 1);
        let doorway = Doorway::new(&crossing);
        for _ in 0..3 {
            doorway.enter(mail("a@gateway.example")).await;
        }
        let mut fourth = doorway.enter(mail("a@gateway.example"));
        let waits = poll_fn(|cx| Poll::Ready(fourth.as_mut().poll(cx).is_pending())).await;
        assert!(waits);
        leave(&crossing);
        fourth.await;
        assert_eq!(crossing.waiting().0, 3);
    }

    #[test]
    fn a_few_are_woken_for_each_stanza_and_all_at_the_end() {
        struct Count(AtomicUsize);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let crossing = Crossing::new(BOUNDS, 1);
        let load = Arc::new(Load::default());
        for _ in 0..3 {
            assert!(crossing.push(&load, mail("a@flood.example")).is_ok());
        }
        let waiters: Vec<_> =
            (0..10).map(|_| (Ticket::default(), Arc::new(Count(AtomicUsize::new(0))))).collect();
        let ask = || {
            for (ticket, count) in &waiters {
                let waker = Waker::from(Arc::clone(count));
                crossing.poll_room(&load, ticket, &Context::from_waker(&waker));
            }
        };
        let woken = || waiters.iter().map(|(_, count)| count.0.load(Ordering::SeqCst)).sum::<usize>();
        // However often they ask, they wait once.
        ask();
        ask();
        assert_eq!(crossing.waiting.lock().len(), 10);
        leave(&crossing);
        assert_eq!((woken(), crossing.waiting.lock().len()), (WOKEN, 10 - WOKEN), "the first in the line");
        assert!(waiters[..WOKEN].iter().all(|(_, count)| count.0.load(Ordering::SeqCst) == 1));
        leave(&crossing);
        leave(&crossing);
        assert_eq!((woken(), crossing.waiting.lock().len()), (10, 0), "nothing crosses any more");
        // Who was woken may wait again.
        load.set(3);
        ask();
        assert_eq!(crossing.waiting.lock().len(), 10);
    }

    #[test]
    fn what_a_bug_loses_is_not_acknowledged() {
        let crossing = Crossing::new(BOUNDS, 1);
        let load = Arc::new(Load::default());
        let ledger = Ledger::new(0, || {});
        for bug in [false, true] {
            let mail = Mail { receipt: Some(ledger.receive()), ..mail("a@b.example") };
            assert!(crossing.push(&load, mail).is_ok());
            let next = crossing.tracks[0].queue.lock().pop_front().unwrap();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _receipt = next.mail.receipt.clone();
                let _room = next.mail.room.clone();
                let _handled = next.mail;
                assert!(!bug, "a bug in a handler");
            }));
            assert_eq!((outcome.is_err(), ledger.has_lost()), (bug, bug));
            assert_eq!((ledger.handled(), crossing.waiting().0), (1, 0));
        }
    }

    #[test]
    fn a_busy_inside_gets_its_share() {
        let worked = Duration::from_millis(10);
        for (share, rest) in [(50, 10), (25, 30), (10, 90), (100, 0)] {
            assert_eq!(owed(worked, share), Duration::from_millis(rest), "{share}");
        }
    }

    #[test]
    fn bytes_count_too() {
        let crossing = Crossing::new(CrossingBounds { bytes: 1, ..BOUNDS }, 1);
        let load = Arc::new(Load::default());
        assert!(crossing.push(&load, mail("a@b.example")).is_ok());
        assert!(crossing.push(&load, mail("a@b.example")).is_err());
    }

    #[test]
    fn the_bytes_of_a_peer_leave_room_for_others() {
        let crossing = Crossing::new(CrossingBounds { peer_bytes: 1, ..BOUNDS }, 1);
        let (flood, other) = (Arc::new(Load::default()), Arc::new(Load::default()));
        assert!(crossing.push(&flood, mail("a@b.example")).is_ok());
        assert!(crossing.push(&flood, mail("a@b.example")).is_err());
        assert!(crossing.push(&other, mail("a@c.example")).is_ok());
        leave(&crossing);
        assert!(crossing.has_room(&flood));
    }

    #[test]
    fn a_pair_of_addresses_stays_in_its_track() {
        let crossing = Crossing::new(BOUNDS, 8);
        assert_eq!(crossing.tracks.len(), 4);
        let track = |from| crossing.track_of(pair_of(&mail(from).stanza));
        assert_eq!(track("a@b.example/one"), track("a@b.example/two"));
        assert_eq!(track("a@b.example/one"), track("a@b.example"));
    }

    #[test]
    fn pairs_are_remembered_while_they_cross() {
        let crossing = Crossing::new(BOUNDS, 1);
        let load = Arc::new(Load::default());
        for from in ["a@b.example/one", "a@b.example/two", "c@b.example"] {
            assert!(crossing.push(&load, mail(from)).is_ok());
        }
        let has = |from| load.has(&mail(from).stanza);
        assert!(has("a@b.example") && has("c@b.example/x") && !has("d@b.example"));
        leave(&crossing);
        assert!(has("a@b.example"), "one of two");
        leave(&crossing);
        assert!(!has("a@b.example") && has("c@b.example"));
        leave(&crossing);
        assert!(load.pairs.lock().is_empty(), "nothing is left behind");
    }
}
