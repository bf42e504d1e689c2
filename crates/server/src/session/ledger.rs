//! What was received and what of it is committed: the two counters behind every `<a h='..'/>`.
//!
//! Promise 1 (acknowledged means on disk): a stanza is *handled* (XEP-0198 s.4) when the store has
//! committed what it caused. Each received stanza gets a [`Receipt`]; whoever still works on the stanza
//! holds a clone. When the last clone is gone, the stanza is handled. `h` is the length of the handled
//! prefix.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// Counts the stanzas received on a stream and how many of them are handled.
pub struct Ledger {
    state: Mutex<State>,
    /// Called (without the lock) when the handled prefix grows and somebody waits for it.
    grown: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct State {
    received: u32,
    /// One for each stanza after the handled prefix, oldest first. True: handled, and waits for those before.
    open: VecDeque<bool>,
    /// Counts resumptions: what is left of receipts from before the last one has no number any more.
    generation: u32,
    /// What had been received when `<r/>` came: the first one not answered yet, and the last one.
    wanted: Option<(u32, u32)>,
    /// A clock runs that ends with [`Ledger::late`].
    ticking: bool,
    /// A stanza was lost: it and what is after it are never handled.
    lost: Option<Loss>,
}

/// Why a stanza will never be handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// By a bug.
    Bug,
    /// It could be neither taken nor answered.
    NoRoom,
}

/// Held by everything that still works on one received stanza. Dropped by a panic, it takes the stanza with it: what a
/// bug has lost is not handled.
#[derive(Clone, Debug)]
pub struct Receipt(Arc<Held>);

/// What [`Ledger::ask`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Everything is handled; to be answered at once.
    Handled(u32),
    /// Something is open, and this is the first to ask for it.
    Wait,
    /// Something is open and the clock runs already.
    Again,
}

struct Held {
    ledger: Arc<Ledger>,
    number: u32,
    generation: u32,
    commits: AtomicBool,
}

impl Ledger {
    /// `grown` is called when an awaited prefix has grown, or when a stanza was lost ([`Ledger::has_lost`]); it must not
    /// block.
    pub fn new(received: u32, grown: impl Fn() + Send + Sync + 'static) -> Arc<Ledger> {
        Arc::new(Ledger { state: Mutex::new(State { received, ..State::default() }), grown: Box::new(grown) })
    }

    /// Counts one more received stanza.
    pub fn receive(self: &Arc<Self>) -> Receipt {
        let mut state = self.state.lock();
        // XEP-0198 s.4: the counters wrap at 2^32.
        state.received = state.received.wrapping_add(1);
        state.open.push_back(false);
        let (number, generation) = (state.received, state.generation);
        let commits = AtomicBool::new(false);
        Receipt(Arc::new(Held { ledger: Arc::clone(self), number, generation, commits }))
    }

    /// The number to acknowledge: every stanza up to it is handled.
    pub fn handled(&self) -> u32 {
        self.state.lock().handled()
    }

    /// All that was received is handled.
    pub fn is_settled(&self) -> bool {
        self.state.lock().open.is_empty()
    }

    /// A stanza was received that will never be handled: the stream has to end, so that the peer sends it again.
    pub fn has_lost(&self) -> bool {
        self.loss().is_some()
    }

    /// Why, if [`Ledger::has_lost`].
    pub fn loss(&self) -> Option<Loss> {
        self.state.lock().lost
    }

    /// The peer asked for an acknowledgement (`<r/>`). When something is still open, `grown` will be called once all
    /// that was received until now is handled.
    pub fn ask(&self) -> Asked {
        let mut state = self.state.lock();
        if state.open.is_empty() {
            return Asked::Handled(state.received);
        }
        let received = state.received;
        state.wanted = Some((state.wanted.map_or(received, |(first, _)| first), received));
        if std::mem::replace(&mut state.ticking, true) { Asked::Again } else { Asked::Wait }
    }

    /// Half a second after [`Asked::Wait`]: the number to answer with if the request still waits.
    pub fn late(&self) -> Option<u32> {
        let mut state = self.state.lock();
        state.ticking = false;
        state.wanted.map(|_| state.handled())
    }

    /// The stream was resumed: the client will send again whatever is not handled, so counting goes on
    /// from there. Returns that number.
    pub fn rewind(&self) -> u32 {
        let mut state = self.state.lock();
        state.received = state.handled();
        state.open.clear();
        state.wanted = None;
        // What is still under way may finish later; its number belongs to another stanza by then.
        state.generation = state.generation.wrapping_add(1);
        state.received
    }

    fn lose(&self, why: Loss) {
        self.state.lock().lost.get_or_insert(why);
        (self.grown)();
    }

    fn complete(&self, number: u32, generation: u32) {
        let mut state = self.state.lock();
        if state.generation != generation || state.lost.is_some() {
            return;
        }
        let place = number.wrapping_sub(state.handled()).wrapping_sub(1) as usize;
        if let Some(done) = state.open.get_mut(place) {
            *done = true;
        }
        while state.open.front() == Some(&true) {
            state.open.pop_front();
        }
        let handled = state.handled();
        let reached =
            |wanted: u32| state.received.wrapping_sub(handled) <= state.received.wrapping_sub(wanted);
        let tell = state.wanted.is_some_and(|(first, _)| reached(first));
        if tell {
            state.wanted = state.wanted.filter(|(_, last)| !reached(*last)).map(|(_, last)| (last, last));
        }
        drop(state);
        if tell {
            (self.grown)();
        }
    }
}

impl State {
    fn handled(&self) -> u32 {
        // The queue has at most as many as the store's queue takes: far from 2^32.
        self.received.wrapping_sub(self.open.len() as u32)
    }
}

impl Receipt {
    /// The stanza is given to the store: it is handled when that has committed.
    pub fn note_commit(&self) {
        self.0.commits.store(true, Ordering::Relaxed);
    }

    /// [`Receipt::note_commit`] was called.
    pub fn has_commit(&self) -> bool {
        self.0.commits.load(Ordering::Relaxed)
    }

    /// The stanza is lost by a bug: it must not be acknowledged.
    pub fn lose(self) {
        self.0.ledger.lose(Loss::Bug);
    }

    /// The stanza could be neither taken nor answered: it must not be acknowledged, so that its sender still has it.
    pub fn turn_away(self) {
        self.0.ledger.lose(Loss::NoRoom);
    }

    /// A stanza of its stream was lost, maybe this one.
    pub fn is_lost(&self) -> bool {
        self.0.ledger.has_lost()
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.ledger.lose(Loss::Bug);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ledger.complete(self.number, self.generation);
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({})", self.number)
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        write!(f, "Ledger(received {}, handled {})", state.received, state.handled())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn h_is_the_handled_prefix() {
        let calls = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&calls);
        let ledger = Ledger::new(0, move || {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        let (a, b, c) = (ledger.receive(), ledger.receive(), ledger.receive());
        let b2 = b.clone();
        assert_eq!(ledger.handled(), 0);
        drop(b);
        drop(c);
        assert_eq!(ledger.handled(), 0);
        drop(a);
        assert_eq!(ledger.handled(), 1);
        assert_eq!(ledger.ask(), Asked::Wait);
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        drop(b2);
        assert_eq!(ledger.handled(), 3);
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        assert_eq!(ledger.ask(), Asked::Handled(3));
    }

    #[test]
    fn each_request_is_answered_though_there_is_always_something_open() {
        let calls = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&calls);
        let ledger = Ledger::new(u32::MAX - 1, move || {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        let mut open = VecDeque::from([ledger.receive()]);
        assert_eq!(ledger.ask(), Asked::Wait);
        open.push_back(ledger.receive());
        assert_eq!(ledger.ask(), Asked::Again);
        open.push_back(ledger.receive());
        open.pop_front();
        assert_eq!((calls.load(Ordering::Relaxed), ledger.late()), (1, Some(u32::MAX)));
        open.pop_front();
        assert_eq!((calls.load(Ordering::Relaxed), ledger.late()), (2, None));
        assert_eq!(ledger.handled(), 0);
    }

    #[test]
    fn what_was_under_way_before_a_resumption_handles_nothing_after_it() {
        let ledger = Ledger::new(0, || {});
        let before = ledger.receive();
        assert_eq!(ledger.rewind(), 0);
        let again = ledger.receive();
        drop(before);
        assert_eq!(ledger.handled(), 0);
        drop(again);
        assert_eq!(ledger.handled(), 1);
    }

    #[test]
    fn what_is_lost_is_never_handled() {
        let calls = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&calls);
        let ledger = Ledger::new(0, move || {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        let (before, lost, after) = (ledger.receive(), ledger.receive(), ledger.receive());
        drop(before);
        assert!(!ledger.has_lost());
        lost.lose();
        drop(after);
        assert!(ledger.has_lost());
        assert_eq!((ledger.handled(), calls.load(Ordering::Relaxed)), (1, 1));
        assert_eq!(ledger.loss(), Some(Loss::Bug));
        let ledger = Ledger::new(0, || {});
        ledger.receive().turn_away();
        assert_eq!((ledger.handled(), ledger.loss()), (0, Some(Loss::NoRoom)));
    }

    #[test]
    fn what_a_panic_drops_is_lost() {
        let ledger = Ledger::new(0, || {});
        let (lost, after) = (ledger.receive(), ledger.receive());
        let elsewhere = lost.clone();
        let bug = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _working_on = lost;
            panic!("a bug in a handler");
        }));
        assert!(bug.is_err() && ledger.has_lost());
        drop((elsewhere, after));
        assert_eq!(ledger.handled(), 0);
    }

    #[test]
    fn the_counter_wraps() {
        let ledger = Ledger::new(u32::MAX, || {});
        let receipt = ledger.receive();
        assert_eq!(ledger.handled(), u32::MAX);
        drop(receipt);
        assert_eq!(ledger.handled(), 0);
    }

    #[test]
    fn a_resumed_stream_counts_on_from_what_is_handled() {
        let ledger = Ledger::new(5, || {});
        let (_handled, open) = (ledger.receive(), ledger.receive());
        drop(_handled);
        assert_eq!(ledger.rewind(), 6);
        drop(open);
        assert_eq!(ledger.handled(), 6);
        drop(ledger.receive());
        assert_eq!(ledger.handled(), 7);
    }
}
