//! A stream as everybody but its own task sees it: how it is, and how to ask it for something.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use trunkline_xmpp::jid::Jid;

use super::failure::Failure;
use super::pair::Pair;
use crate::admin::StreamStatus;

/// What others hold of a stream.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) serial: u64,
    pub(super) peer: Mutex<Option<Jid>>,
    waker: Mutex<Option<Waker>>,
    /// Its task will run again: no need to wake it once more.
    woken: AtomicBool,
    /// Something was queued whose row is not written.
    held: AtomicBool,
    commands: Mutex<Vec<Command>>,
    pub(super) status: Mutex<StreamStatus>,
}

/// What a stream is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    /// A dialback key was checked with its domain.
    Verified { from: Jid, to: Jid, outcome: Result<bool, Failure> },
    /// A bug.
    #[cfg(test)]
    Panic,
    /// Carry this pair too, if the peer allows (XEP-0220 s.2.5).
    Carry { pair: Arc<Pair>, answer: oneshot::Sender<bool> },
}

impl Handle {
    pub(super) fn new(serial: u64, status: StreamStatus) -> Arc<Handle> {
        Arc::new(Handle {
            serial,
            peer: Mutex::new(None),
            waker: Mutex::new(None),
            woken: AtomicBool::new(false),
            held: AtomicBool::new(false),
            commands: Mutex::new(Vec::new()),
            status: Mutex::new(status),
        })
    }

    /// Called by the stream's task before it looks what there is to do.
    pub(super) fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.lock();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        drop(waker);
        // Not a plain store: what was done before the flag was set has to be seen by what is looked at after this.
        self.woken.swap(false, Ordering::AcqRel);
    }

    /// Called after there is something to do. A burst wakes once.
    pub(super) fn wake(&self) {
        if self.woken.swap(true, Ordering::AcqRel) {
            return;
        }
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn note_held(&self) {
        self.held.store(true, Ordering::Release);
    }

    /// Something was held since this was called last.
    pub(super) fn take_held(&self) -> bool {
        self.held.load(Ordering::Acquire) && self.held.swap(false, Ordering::AcqRel)
    }

    pub(super) fn ask(&self, command: Command) {
        self.commands.lock().push(command);
        self.wake();
    }

    pub(super) fn take_commands(&self) -> Vec<Command> {
        std::mem::take(&mut *self.commands.lock())
    }
}
