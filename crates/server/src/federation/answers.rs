//! Answers of the server's own that wait for one peer domain. While too many do, its streams are not read: who asks is to
//! take the answers before it asks more.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::crossing::Load;
use super::handle::Handle;

/// How many wait, and who waits for them.
#[derive(Debug, Default)]
pub(super) struct Answers {
    stanzas: AtomicUsize,
    bytes: AtomicUsize,
    /// Streams of the peer that are not read: as many as it may have, and a few that have ended.
    waiting: Mutex<Vec<Weak<Handle>>>,
    /// There are some.
    is_awaited: AtomicBool,
}

impl Answers {
    /// Fewer wait than these stanzas and bytes, or none.
    pub(super) fn have_room(&self, (stanzas, bytes): (usize, usize)) -> bool {
        let waiting = self.stanzas.load(Ordering::SeqCst);
        waiting == 0 || (waiting < stanzas && self.bytes.load(Ordering::SeqCst) < bytes)
    }

    /// Like [`Answers::have_room`]; if not, the stream is woken when one has gone.
    pub(super) fn poll_room(&self, most: (usize, usize), line: &Arc<Handle>) -> bool {
        if self.have_room(most) {
            return true;
        }
        let mut waiting = self.waiting.lock();
        waiting.retain(|other| other.upgrade().is_some_and(|other| other.serial != line.serial));
        waiting.push(Arc::downgrade(line));
        self.is_awaited.store(true, Ordering::SeqCst);
        drop(waiting);
        // What went between the look and the registration woke nobody.
        self.have_room(most)
    }
}

/// One that waits.
#[derive(Debug)]
pub(super) struct Answering {
    load: Arc<Load>,
    size: usize,
}

impl Answering {
    pub(super) fn new(load: &Arc<Load>, size: usize) -> Answering {
        load.answers.stanzas.fetch_add(1, Ordering::SeqCst);
        load.answers.bytes.fetch_add(size, Ordering::SeqCst);
        Answering { load: Arc::clone(load), size }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let answers = &self.load.answers;
        answers.stanzas.fetch_sub(1, Ordering::SeqCst);
        answers.bytes.fetch_sub(self.size, Ordering::SeqCst);
        if !answers.is_awaited.load(Ordering::SeqCst) {
            return;
        }
        let woken = {
            let mut waiting = answers.waiting.lock();
            answers.is_awaited.store(false, Ordering::SeqCst);
            std::mem::take(&mut *waiting)
        };
        woken.iter().filter_map(Weak::upgrade).for_each(|line| line.wake());
    }
}
