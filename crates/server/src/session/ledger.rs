//! What was received and what of it is committed: the two counters behind every `<a h='..'/>`.
//!
//! Promise 1 (acknowledged means on disk): a stanza is *handled* (XEP-0198 s.4) when the store has
//! committed what it caused. Each received stanza gets a [`Receipt`]; whoever still works on the stanza
//! holds a clone. When the last clone is gone, the stanza is handled. `h` is the length of the handled
//! prefix.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

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
    /// Stanzas not yet handled, oldest first; `done` ones wait for those before them.
    open: VecDeque<Open>,
    wanted: bool,
}

struct Open {
    number: u32,
    done: bool,
}

/// Held by everything that still works on one received stanza.
#[derive(Clone, Debug)]
pub struct Receipt(#[allow(dead_code, reason = "held for its Drop")] Arc<Held>);

struct Held {
    ledger: Arc<Ledger>,
    number: u32,
}

impl Ledger {
    /// `grown` is called when an awaited prefix has grown; it must not block.
    pub fn new(received: u32, grown: impl Fn() + Send + Sync + 'static) -> Arc<Ledger> {
        Arc::new(Ledger { state: Mutex::new(State { received, ..State::default() }), grown: Box::new(grown) })
    }

    /// Counts one more received stanza.
    pub fn receive(self: &Arc<Self>) -> Receipt {
        let mut state = self.state.lock();
        // XEP-0198 s.4: the counters wrap at 2^32.
        state.received = state.received.wrapping_add(1);
        let number = state.received;
        state.open.push_back(Open { number, done: false });
        Receipt(Arc::new(Held { ledger: Arc::clone(self), number }))
    }

    /// The number to acknowledge: every stanza up to it is handled.
    pub fn handled(&self) -> u32 {
        self.state.lock().handled()
    }

    /// All that was received is handled.
    pub fn is_settled(&self) -> bool {
        self.state.lock().open.is_empty()
    }

    /// The peer asked for an acknowledgement (`<r/>`): `Some(h)` to answer at once, `None` when
    /// something is still open; then `grown` will be called once everything is settled.
    pub fn ask(&self) -> Option<u32> {
        let mut state = self.state.lock();
        if state.open.is_empty() {
            return Some(state.received);
        }
        state.wanted = true;
        None
    }

    /// The stream was resumed: the client will send again whatever is not handled, so counting goes on
    /// from there. Returns that number.
    pub fn rewind(&self) -> u32 {
        let mut state = self.state.lock();
        state.received = state.handled();
        state.open.clear();
        state.wanted = false;
        state.received
    }

    fn complete(&self, number: u32) {
        let mut state = self.state.lock();
        if let Some(open) = state.open.iter_mut().find(|open| open.number == number) {
            open.done = true;
        }
        while state.open.front().is_some_and(|open| open.done) {
            state.open.pop_front();
        }
        let tell = state.wanted && state.open.is_empty();
        if tell {
            state.wanted = false;
        }
        drop(state);
        if tell {
            (self.grown)();
        }
    }
}

impl State {
    fn handled(&self) -> u32 {
        self.open.front().map_or(self.received, |open| open.number.wrapping_sub(1))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ledger.complete(self.number);
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
    use std::sync::atomic::{AtomicUsize, Ordering};

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
        assert_eq!(ledger.ask(), None);
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        drop(b2);
        assert_eq!(ledger.handled(), 3);
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        assert_eq!(ledger.ask(), Some(3));
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
