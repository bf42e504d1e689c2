//! One connection's life: client streams, federation streams, components.
//!
//! A [`Session`] is what others see of a client's connection: an address to push stanzas to. It outlives
//! the socket: stream management (XEP-0198) hands its queue to the connection that resumes it.

pub mod attempts;
pub mod client;
pub mod component;
pub mod credentials;
pub mod keeper;
pub mod ledger;
pub mod login;
pub mod management;
mod negotiation;
mod outbox;
#[cfg(test)]
mod sizes;

pub use outbox::{Bounds, CatchUp, Drained, Kept, Outbox, Push, PushRefusal, Queued};

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use trunkline_xmpp::error::StreamError;
use trunkline_xmpp::jid::Jid;

use crate::ids::LogId;
use crate::route::account::Account;
use ledger::{Ledger, Receipt};

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// A number for a connection, the `conn` of every log line about it.
pub fn serial() -> u64 {
    SERIAL.fetch_add(1, Ordering::Relaxed)
}

/// One bound resource of one account.
pub struct Session {
    /// Unique in this process; tells two sessions of one full JID apart.
    pub serial: u64,
    /// The full JID.
    pub jid: Jid,
    /// Whose session it is.
    pub account: Arc<Account>,
    outbox: Mutex<Outbox>,
    drained: Notify,
    /// Counts [`Greeting`]s.
    greeting: AtomicU64,
    life: Mutex<Life>,
    /// Which of the account's devices it is, by the store's key; 0: it did not say.
    pub device: AtomicI64,
    /// What the keeper looks at; see [`Vitals`].
    pub vitals: Vitals,
}

/// What changes rarely in a session's life.
#[derive(Default)]
struct Life {
    ledger: Option<Arc<Ledger>>,
    management: Option<Management>,
    attached: bool,
    close: Option<Box<Close>>,
    ended: bool,
    /// The numbers of connections, so that a stale one can't detach its successor.
    connection: u64,
}

/// Milliseconds of the server's clock at which something began; 0: it is not so. The keeper walks over
/// all sessions and looks at these, so that no connection needs a timer of its own.
#[derive(Debug, Default)]
pub struct Vitals {
    /// The last bytes came from the client.
    pub heard: AtomicI64,
    /// An element began and is not complete.
    pub partial: AtomicI64,
    /// The socket takes no more bytes, or the client doesn't acknowledge.
    pub blocked: AtomicI64,
    /// The connection went away and the session waits.
    pub detached: AtomicI64,
    /// A sign of life was asked for.
    pub asked: AtomicI64,
}

/// Stream management of a session that asked for it (XEP-0198 s.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Management {
    /// SHA-256 of the resumption id; `None` when resumption was not asked for.
    pub resume: Option<[u8; 32]>,
    /// Seconds the session waits for its client to come back.
    pub seconds: u32,
}

/// Another connection has resumed the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced;

/// What a client gets when it becomes available; see [`Session::begin_greeting`].
#[derive(Debug)]
pub(crate) struct Greeting(u64);

/// Why and how a session is to be closed from outside its connection.
#[derive(Clone, Debug)]
pub struct Close {
    /// Sent to the client before `</stream:stream>`.
    pub error: Option<StreamError>,
    /// The session may still be resumed afterwards.
    pub resumable: bool,
}

impl Session {
    /// A session attached to the connection that bound it.
    pub fn new(serial: u64, jid: Jid, account: Arc<Account>, bounds: Bounds) -> Arc<Session> {
        Arc::new(Session {
            serial,
            jid,
            account,
            outbox: Mutex::new(Outbox::new(bounds, serial)),
            drained: Notify::new(),
            greeting: AtomicU64::new(0),
            life: Mutex::new(Life { attached: true, connection: serial, ..Life::default() }),
            device: AtomicI64::new(0),
            vitals: Vitals::default(),
        })
    }

    /// The resource part.
    pub fn resource(&self) -> &str {
        self.jid.resource().unwrap_or_default()
    }

    /// Queues a stanza; never waits. The connection, if there is one, is woken.
    pub fn push(&self, queued: Queued) -> Push {
        let (outcome, waker) = {
            let mut outbox = self.outbox.lock();
            let outcome = outbox.push(queued);
            (outcome, matches!(outcome, Push::Queued | Push::Behind).then(|| outbox.take_waker()).flatten())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        outcome
    }

    /// Queues bytes that are no stanza (`<r/>`, `<enabled/>`).
    pub fn push_nonza(&self, bytes: &[u8]) {
        self.outbox.lock().push_nonza(bytes);
        self.wake();
    }

    /// Queues an `<a/>`, behind the stanzas that wait. It is written under the queue's lock.
    pub fn push_ack(&self, write: impl FnOnce() -> Vec<u8>) {
        self.with_outbox(|outbox| outbox.push_ack(&write()));
        self.wake();
    }

    /// Runs `f` on the outbox, under its lock.
    pub fn with_outbox<T>(&self, f: impl FnOnce(&mut Outbox) -> T) -> T {
        f(&mut self.outbox.lock())
    }

    /// Waits until the queue has room for another batch of what the server generates or reads from the
    /// log; returns at once when the session is over.
    pub async fn room(&self) {
        self.room_while(|| true).await;
    }

    /// Like [`Session::room`]; false when `still` is no longer so or the session is over.
    async fn room_while(&self, still: impl Fn() -> bool) -> bool {
        loop {
            let drained = self.drained.notified();
            if self.is_ended() || !still() {
                return false;
            }
            if self.outbox.lock().wants_more() {
                return true;
            }
            drained.await;
        }
    }

    /// The client became available: what that brings is written for the last time it did, and earlier ones stop.
    pub(crate) fn begin_greeting(&self) -> Greeting {
        let number = self.greeting.fetch_add(1, Ordering::Relaxed) + 1;
        self.drained.notify_waiters();
        Greeting(number)
    }

    /// Waits for room for a part of a greeting; false: it is to stop.
    pub(crate) async fn room_for(&self, greeting: &Greeting) -> bool {
        self.room_while(|| self.greeting.load(Ordering::Relaxed) == greeting.0).await
    }

    /// The connection has written: who waits for [`Session::room`] looks again.
    pub fn note_drained(&self) {
        self.drained.notify_waiters();
    }

    /// Wakes the connection.
    pub fn wake(&self) {
        let waker = self.outbox.lock().take_waker();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Stream management was enabled: from now on stanzas are counted.
    pub fn manage(&self, management: Management, ledger: Arc<Ledger>) {
        let mut life = self.life.lock();
        life.management = Some(management);
        life.ledger = Some(ledger);
    }

    /// Stream management, if it is on.
    pub fn management(&self) -> Option<Management> {
        self.life.lock().management.clone()
    }

    /// The counter of received stanzas, if stream management is on.
    pub fn ledger(&self) -> Option<Arc<Ledger>> {
        self.life.lock().ledger.clone()
    }

    /// A connection takes the session over; the one it had is told to go.
    pub fn attach(&self, connection: u64) {
        let mut life = self.life.lock();
        life.attached = true;
        life.connection = connection;
        life.close = None;
        // What was seen of the old connection says nothing about the new one.
        let Vitals { heard: _, partial, blocked, detached, asked } = &self.vitals;
        [partial, blocked, detached, asked].into_iter().for_each(|vital| vital.store(0, Ordering::Relaxed));
        drop(life);
        let old = self.outbox.lock().attach(connection);
        if let Some(waker) = old {
            waker.wake();
        }
    }

    /// `connection` has received a stanza: its receipt, if stream management is on.
    ///
    /// # Errors
    /// The connection serves the session no more: what it still reads the client sends again, and is not counted.
    pub fn receive(&self, connection: u64) -> Result<Option<Receipt>, Replaced> {
        let life = self.life.lock();
        if life.connection != connection {
            return Err(Replaced);
        }
        Ok(life.ledger.as_ref().map(|ledger| ledger.receive()))
    }

    /// The connection is gone. False when another one has taken over already.
    pub fn detach(&self, connection: u64) -> bool {
        let mut life = self.life.lock();
        if life.connection != connection {
            return false;
        }
        life.attached = false;
        true
    }

    /// `connection` still serves this session.
    pub fn is_served_by(&self, connection: u64) -> bool {
        let life = self.life.lock();
        life.connection == connection && !life.ended
    }

    /// A connection serves the session at this moment.
    pub fn is_attached(&self) -> bool {
        self.life.lock().attached
    }

    /// Asks the connection to close.
    pub fn close(&self, close: Close) {
        self.life.lock().close = Some(Box::new(close));
        self.wake();
    }

    /// What [`Session::close`] asked for.
    pub fn closing(&self) -> Option<Close> {
        self.life.lock().close.as_deref().cloned()
    }

    /// Marks the end; true for the first caller, who does the farewell.
    pub fn end(&self) -> bool {
        let first = !std::mem::replace(&mut self.life.lock().ended, true);
        self.drained.notify_waiters();
        self.wake();
        first
    }

    /// The session is over.
    pub fn is_ended(&self) -> bool {
        self.life.lock().ended
    }

    /// The client acknowledged `h` stanzas: the kept ones among them.
    ///
    /// # Errors
    /// The number of stanzas sent, when the client acknowledges more than that (XEP-0198 s.4).
    pub fn acknowledged(&self, h: u32) -> Result<Vec<LogId>, u32> {
        let kept = self.outbox.lock().acknowledged(h)?;
        self.wake();
        Ok(kept)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({}, conn {})", self.jid, self.serial)
    }
}
