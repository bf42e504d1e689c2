//! Who reads and then writes does so one after the other: turns, by what they are about. Nobody waits for a turn of
//! something else.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Mutex as Waiting, OwnedMutexGuard};

/// Turns that are taken or waited for: as many as there are requests under way.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<String, Arc<Waiting<()>>>>);

/// Somebody's turn, until this is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    of: String,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for the turn.
    pub(crate) async fn take(&self, of: String) -> Turn<'_> {
        let waiting = Arc::clone(self.0.lock().entry(of.clone()).or_default());
        // Made before it waits: who gives up while waiting leaves nothing behind.
        let mut turn = Turn { turns: self, of, guard: None };
        turn.guard = Some(waiting.lock_owned().await);
        turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = self.turns.0.lock();
        self.guard = None;
        // Whoever else has it or waits for it has an `Arc` of it, and gets one under this lock only.
        if turns.get(&self.of).is_some_and(|waiting| Arc::strong_count(waiting) == 1) {
            turns.remove(&self.of);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn one_after_the_other_and_nothing_is_left() {
        let turns = Turns::default();
        let mut cx = Context::from_waker(Waker::noop());
        let first = turns.take("a".into()).await;
        // Something else is not waited for.
        drop(turns.take("b".into()).await);
        {
            let mut gives_up = pin!(turns.take("a".into()));
            assert!(gives_up.as_mut().poll(&mut cx).is_pending());
        }
        let mut second = Box::pin(turns.take("a".into()));
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(first);
        let second = second.await;
        assert_eq!(turns.0.lock().len(), 1);
        let mut last = Box::pin(turns.take("a".into()));
        assert!(last.as_mut().poll(&mut cx).is_pending());
        drop((second, last));
        assert!(turns.0.lock().is_empty());
    }
}
